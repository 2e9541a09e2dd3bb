//! Products of matrices, and what else linear cross entropy does with them.

use bytemuck::{Pod, Zeroable};

use super::rows::{Partials, RowLoss, RowTarget, ports as row_ports};
use crate::kernel::{self, Access, Define, Kernel};
use crate::program::{Binding, Port, Program, View, chunks};
use crate::tuning::{DeviceProfile, ProductLaunch, Team};
use crate::{DType, Error, Result};

/// `Params` of `shaders/epilogue/store.wgsl`, after the offsets.
#[allow(missing_docs)] // the shader has them
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
pub struct ProductParams {
    pub rows: u32,
    pub columns: u32,
    pub terms: u32,
    pub tiles_across: u32,
    pub has_bias: u32,
    pub accumulates: u32,
    pub unused: [u32; 2],
}

/// `Params` of `shaders/epilogue/partials.wgsl`, after the offsets.
#[allow(missing_docs)]
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
pub struct PartialsParams {
    pub rows: u32,
    pub columns: u32,
    pub terms: u32,
    pub tiles_across: u32,
    pub has_bias: u32,
    pub first_share: u32,
    pub shares: u32,
    pub classes: u32,
    pub first_class: u32,
    pub total_classes: u32,
    pub ignore_index: i32,
    pub confidence: f32,
    pub smoothing: f32,
    pub scale: f32,
    pub softcap: f32,
    pub z_loss: f32,
}

/// `Params` of `shaders/family/conversions.wgsl` and of `shaders/family/column_sums.wgsl`.
#[allow(missing_docs)]
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
pub struct MatrixParams {
    pub rows: u32,
    pub columns: u32,
    pub accumulates: u32,
    pub unused: u32,
}

mod ports {
    use crate::program::Port;

    pub const INPUT: Port = Port::read(1);
    pub const LEFT: Port = Port::read(1);
    pub const MATRIX: Port = Port::read(2);
    pub const RIGHT: Port = Port::read(4);
    pub const RESULT: Port = Port::write(5);
    pub const BIAS: Port = Port::read(6);
    pub const WIDE: Port = Port::write(6);
    pub const PARTIALS: Port = Port::write(8);
}

/// Which way operands lie: `left` by its terms or its rows, `right` by its terms or its columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// `left [rows, terms]`, `right [columns, terms]`.
    Nt,
    /// `left [rows, terms]`, `right [terms, columns]`.
    Nn,
    /// `left [terms, rows]`, `right [terms, columns]`.
    Tn,
}

impl Form {
    fn name(self) -> &'static str {
        match self {
            Form::Nt => "nt",
            Form::Nn => "nn",
            Form::Tn => "tn",
        }
    }
}

/// A part of a matrix in memory, row-major.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Matrix {
    pub view: View,
    /// The first element in memory, after the view's own.
    pub first: u64,
    /// Elements from one row to the next.
    pub stride: u64,
    pub rows: u64,
    pub columns: u64,
}

impl Matrix {
    /// All of a view, in so many rows.
    pub fn of(view: View, rows: u64, columns: u64) -> Self {
        let layout = &view.layout;
        let stride = if layout.is_contiguous() { columns } else { layout.row_stride() as u64 };
        Matrix { view, first: 0, stride, rows, columns }
    }

    /// Some of its rows.
    pub fn rows(&self, [first, count]: [u64; 2]) -> Self {
        Matrix { first: self.first + first * self.stride, rows: count, ..self.clone() }
    }

    /// Some of its columns.
    pub fn columns(&self, [first, count]: [u64; 2]) -> Self {
        Matrix { first: self.first + first, columns: count, ..self.clone() }
    }

    pub fn dtype(&self) -> DType {
        self.view.layout.dtype()
    }

    /// Whether products can read it: f32 in whole vec4s, so that no read goes beyond its last element.
    pub fn is_wide(&self) -> bool {
        self.dtype() == DType::F32 && self.has_vec4s()
    }

    /// Whether every row begins at a multiple of four elements and has whole vec4s.
    fn has_vec4s(&self) -> bool {
        let places = [self.first + self.view.layout.residual() as u64, self.stride, self.columns];
        places.iter().all(|n| n.is_multiple_of(4))
    }

    fn binding(&self, port: Port, columns: u64) -> Binding {
        let span = if self.rows == 0 { 0 } else { (self.rows - 1) * self.stride + columns };
        Binding::part(port, &self.view, [self.first, span, self.stride])
    }

    /// For kernels that read whole vec4s, the last of a row too.
    fn in_vec4s(&self, port: Port) -> Binding {
        if self.rows == 0 {
            return Binding::placeholder(port);
        }
        self.binding(port, self.columns.next_multiple_of(4)).in_vec4s()
    }
}

/// What becomes of logits that are not stored: partials of their rows.
pub(super) struct Epilogue<'a> {
    /// The loss of the rows, whose options and operands it has.
    pub loss: &'a RowLoss,
    /// Where partials of the block go.
    pub partials: &'a Partials,
    /// The first share of these columns.
    pub first_share: u64,
    /// The first column among all of this device's classes.
    pub first_class: u64,
    /// The first row of the block among all.
    pub first_row: u64,
}

impl Program {
    /// Adds the dispatches of a product: `out = left right + bias`, or `out += left right`.
    pub(super) fn product(
        &mut self,
        profile: &DeviceProfile,
        form: Form,
        [left, right, out]: [&Matrix; 3],
        bias: Option<Binding>,
        accumulates: bool,
    ) -> Result<()> {
        let by = profile.for_products();
        let terms = if form == Form::Tn { left.rows } else { left.columns };
        let storage = kernel::storage(DType::F32, out.has_vec4s(), Access::InPlace);
        let kernel = product_kernel(form, by, [vec![kernel::STORE], storage].concat());
        // the sum of no terms is to be written too
        for [first, count] in chunks(terms.max(1), by.max_terms) {
            let count = count.min(terms);
            let part = [first, count];
            let [left, right] = match form {
                Form::Nt => [left.columns(part), right.columns(part)],
                Form::Nn => [left.columns(part), right.rows(part)],
                Form::Tn => [left.rows(part), right.rows(part)],
            };
            let bias = bias.filter(|_| first + count == terms);
            let tiles_across = out.columns.div_ceil(by.columns.into());
            let params = ProductParams {
                rows: out.rows as u32,
                columns: out.columns as u32,
                terms: count as u32,
                tiles_across: tiles_across as u32,
                has_bias: bias.is_some().into(),
                accumulates: (accumulates || first > 0).into(),
                ..ProductParams::default()
            };
            let bindings = vec![
                left.in_vec4s(ports::LEFT),
                right.in_vec4s(ports::RIGHT),
                bias.unwrap_or(Binding::placeholder(ports::BIAS)),
                out.binding(ports::RESULT, out.columns),
            ];
            let tiles = tiles_across * out.rows.div_ceil(by.rows.into());
            self.dispatch_teams(by.launch, tiles, kernel.clone(), &params, bindings)?;
        }
        Ok(())
    }

    /// Adds the dispatch of a product of rows and classes, whose logits only their rows' partials know.
    pub(super) fn partials(
        &mut self,
        profile: &DeviceProfile,
        [left, right]: [&Matrix; 2],
        bias: Option<Binding>,
        epilogue: &Epilogue<'_>,
    ) -> Result<()> {
        let by = profile.for_products();
        let Epilogue { loss, partials, first_share, first_class, first_row } = *epilogue;
        let rows_of_product = kernel::rows_of_product(by.launch.team);
        let own = rows_of_product.into_iter().chain([
            kernel::PARTIALS,
            kernel::ROW_STATE,
            kernel::CLASSES,
        ]);
        let mut kernel = product_kernel(Form::Nt, by, own.collect());
        kernel.label = format!("{}.partials", kernel.label);
        let shared = ["SCALED", "SOFTCAP", "ROW_OUTPUTS", "ENTROPY"];
        let of_loss = loss.constants.iter().filter(|(name, _)| shared.contains(name));
        kernel.constants.extend(of_loss);
        kernel.constants.extend([("DENSE_TARGET", 1), ("FROM_PARTIALS", 1), loss.weighted()]);
        let tiles_across = right.rows.div_ceil(by.columns.into());
        let of_rows = &loss.params;
        let params = PartialsParams {
            rows: left.rows as u32,
            columns: right.rows as u32,
            terms: left.columns as u32,
            tiles_across: tiles_across as u32,
            has_bias: bias.is_some().into(),
            first_share: first_share as u32,
            shares: partials.shares,
            classes: right.rows as u32,
            first_class: of_rows.first_class + first_class as u32,
            total_classes: of_rows.total_classes,
            ignore_index: of_rows.ignore_index,
            confidence: of_rows.confidence,
            smoothing: of_rows.smoothing,
            scale: of_rows.scale,
            softcap: of_rows.softcap,
            z_loss: of_rows.z_loss,
        };
        let weight =
            loss.operands.weight.as_ref().map(|weight| {
                Binding::part(row_ports::WEIGHT, weight, [first_class, right.rows, 0])
            });
        let RowTarget::Classes(targets) = &loss.operands.target else {
            return Err(Error::Internal("probabilities of a product".into()));
        };
        let bindings = vec![
            left.in_vec4s(ports::LEFT),
            right.in_vec4s(ports::RIGHT),
            bias.unwrap_or(Binding::placeholder(ports::BIAS)),
            Binding::part(row_ports::TARGETS, targets, [first_row, left.rows, 0]),
            weight.unwrap_or(Binding::placeholder(row_ports::WEIGHT)),
            partials.of_rows(ports::PARTIALS, [0, first_row], left.rows),
        ];
        let tiles = tiles_across * left.rows.div_ceil(by.rows.into());
        self.dispatch_teams(by.launch, tiles, kernel, &params, bindings)
    }

    /// The binding of a bias for some of the classes.
    pub(super) fn bias_of(bias: &View, [first, count]: [u64; 2]) -> Binding {
        Binding::part(ports::BIAS, bias, [first, count, 0])
    }

    /// Adds the dispatch that copies a matrix to one that products can read.
    pub(super) fn widen(&mut self, from: &Matrix, to: &Matrix) -> Result<()> {
        let bindings = vec![from.binding(ports::INPUT, from.columns), to.in_vec4s(ports::WIDE)];
        self.convert("widen", from, from.dtype(), bindings)
    }

    /// Adds the dispatch that copies a matrix that products have written to any other.
    pub(super) fn narrow(&mut self, from: &Matrix, to: &Matrix) -> Result<()> {
        let bindings = vec![to.binding(ports::RESULT, to.columns), from.in_vec4s(ports::WIDE)];
        self.convert("narrow", to, to.dtype(), bindings)
    }

    fn convert(
        &mut self,
        entry_point: &'static str,
        shape: &Matrix,
        dtype: DType,
        bindings: Vec<Binding>,
    ) -> Result<()> {
        let params = MatrixParams {
            rows: shape.rows as u32,
            columns: shape.columns as u32,
            ..Default::default()
        };
        let storage = kernel::storage(dtype, shape.has_vec4s(), Access::Apart);
        let label = format!("{entry_point}.{dtype}");
        let vec4s = shape.rows * shape.columns.div_ceil(4);
        self.by_vec4s(label, kernel::CONVERSIONS, entry_point, storage, vec4s, &params, bindings)
    }

    /// Adds the dispatch that sums the columns of a matrix that products can read.
    pub(super) fn column_sums(
        &mut self,
        matrix: &Matrix,
        sums: &View,
        first: u64,
        accumulates: bool,
    ) -> Result<()> {
        let params = MatrixParams {
            rows: matrix.rows as u32,
            columns: matrix.columns as u32,
            accumulates: accumulates.into(),
            ..Default::default()
        };
        let bindings = vec![
            matrix.in_vec4s(ports::MATRIX),
            Binding::part(ports::RESULT, sums, [first, matrix.columns, 0]),
        ];
        let storage = kernel::storage(DType::F32, false, Access::InPlace);
        let (label, entry_point) = ("column_sums".into(), "column_sums");
        let vec4s = matrix.columns.div_ceil(4);
        self.by_vec4s(label, kernel::COLUMN_SUMS, entry_point, storage, vec4s, &params, bindings)
    }

    /// Adds a dispatch of one invocation a vec4.
    #[allow(clippy::too_many_arguments)]
    fn by_vec4s(
        &mut self,
        label: String,
        family: kernel::File,
        entry_point: &'static str,
        storage: Vec<kernel::File>,
        vec4s: u64,
        params: &MatrixParams,
        bindings: Vec<Binding>,
    ) -> Result<()> {
        /// The invocations of a workgroup.
        const WORKGROUP: u32 = 64;
        let kernel = Kernel {
            label,
            files: [vec![family, kernel::MATH, kernel::OFFSETS], storage].concat(),
            entry_point,
            constants: vec![],
            defines: vec![],
            read_write: 0,
        };
        let workgroups = self.limits.workgroups(vec4s, WORKGROUP)?;
        self.dispatch(kernel, params, bindings, workgroups)
    }
}

/// A product, but for the files of its epilogue.
fn product_kernel(form: Form, by: ProductLaunch, epilogue: Vec<kernel::File>) -> Kernel {
    let mut defines = vec![];
    if by.launch.team == Team::Workgroup {
        defines.push(("TILE_SIDE", Define::Number(by.launch.team_size.isqrt())));
    }
    let own = vec![kernel::PRODUCT, kernel::tile_of_product(by.launch.team)];
    Kernel {
        label: format!("product.{}", form.name()),
        files: [own, epilogue].concat(),
        entry_point: "product",
        constants: vec![
            ("LEFT_ALONG_TERMS", (form != Form::Tn).into()),
            ("RIGHT_ALONG_TERMS", (form == Form::Nt).into()),
        ],
        defines,
        read_write: 0,
    }
}
