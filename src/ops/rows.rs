//! What ops over rows of classes share.

use bytemuck::{Pod, Zeroable};

use super::pieces::{RowTensor, pieces};
use super::sum::{SumParams, Terms, Total};
use super::{expect_dtype, expect_finite, expect_shape, grad_view};
use crate::array::Data;
use crate::kernel::{self, Access, File, Kernel};
use crate::program::{Binding, Copy, Program, View, first_index};
use crate::shape::{ClassShape, Layout, without_classes};
use crate::tuning::{DeviceProfile, RowLaunch, Tile};
use crate::{Args, Array, DType, Error, Output, Pass, Reduction, Result, Role};

/// Refuses class-index targets and class weights that do not fit the input.
pub(super) fn expect_class_target(args: &Args<Layout>, op: impl FnOnce() -> String) -> Result<()> {
    let target = args.required(Role::Target, op)?;
    expect_dtype(Role::Target, target, &[DType::I32, DType::I64])?;
    expect_shape(Role::Target, target, &without_classes(args.input().shape()))
}

/// Refuses class weights other than one f32 a class.
pub(super) fn expect_class_weight(args: &Args<Layout>) -> Result<()> {
    let Some(weight) = args.get(Role::Weight) else { return Ok(()) };
    expect_dtype(Role::Weight, weight, &[DType::F32])?;
    expect_shape(Role::Weight, weight, &[ClassShape::of(args.input().shape())?.classes])
}

/// Refuses class weights that are not finite and classes out of range, naming the first.
pub(super) fn expect_class_values(args: &Args<Array<'_>>, ignore_index: i64) -> Result<()> {
    expect_class_values_of(ClassShape::of(args.input().shape())?.classes, args, ignore_index)
}

/// [`expect_class_values`] where there are so many classes.
pub(super) fn expect_class_values_of(
    classes: usize,
    args: &Args<Array<'_>>,
    ignore_index: i64,
) -> Result<()> {
    expect_finite(Role::Weight, args.get(Role::Weight))?;
    let Some(target) = args.get(Role::Target) else { return Ok(()) };
    let classes = classes as i64;
    let first = match target.data() {
        Data::I32(target) => {
            let ignored = i32::try_from(ignore_index).ok();
            // as u32, negative classes lie past all others
            let end = classes.min(1 << 31) as u32;
            first_of(target, |class| (class as u32 >= end) & (Some(class) != ignored))
        }
        Data::I64(target) => {
            let end = classes as u64;
            first_of(target, |class| (class as u64 >= end) & (class != ignore_index))
        }
        _ => None, // refused before
    };
    match first {
        None => Ok(()),
        Some((row, class)) => Err(Error::Class { row: row as u64, class, classes: classes as u64 }),
    }
}

/// The first class that is refused, and its row.
fn first_of<T: Into<i64> + std::marker::Copy>(
    target: &[T],
    is_refused: impl Fn(T) -> bool,
) -> Option<(usize, i64)> {
    // every target of a chunk is looked at, which takes no branches
    const CHUNK: usize = 1024;
    let has_refused = |target: &[T]| target.iter().fold(false, |any, &c| any | is_refused(c));
    let chunk = target.chunks(CHUNK).position(has_refused)?;
    let mut rows = target.iter().enumerate().skip(chunk * CHUNK);
    rows.find(|&(_, &class)| is_refused(class)).map(|(row, &class)| (row, class.into()))
}

/// An `ignore_index` as kernels know it. One that i32 does not hold is uploaded as `i32::MIN` (see
/// `device_bytes` in `src/upload.rs`).
pub(super) fn device_ignore_index(ignore_index: i64) -> i32 {
    i32::try_from(ignore_index).unwrap_or(i32::MIN)
}

/// `Params` of `shaders/shared/row_tiles.wgsl`, after the offsets.
#[allow(missing_docs)] // the shader has them
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
pub struct RowParams {
    pub rows: u32,
    pub classes: u32,
    pub positions: u32,
    pub ignore_index: i32,
    pub confidence: f32,
    pub smoothing: f32,
    pub divisor: f32,
    pub scale: f32,
    pub softcap: f32,
    pub z_loss: f32,
    pub first: u32,
    pub rows_per_team: u32,
    pub splits: u32,
    pub classes_per_split: u32,
    pub unused: [u32; 2],
}

/// The bindings of kernels over rows.
pub(super) mod ports {
    use crate::program::Port;

    pub const INPUT: Port = Port::read(1);
    pub const TARGETS: Port = Port::read(2);
    pub const WEIGHT: Port = Port::read(3);
    pub const UPSTREAM: Port = Port::read(4);
    pub const GRAD: Port = Port::write(5);
    pub const RESULTS: Port = Port::write(6);
    pub const STATE: Port = Port::write(8);
}

/// What the loop over rows is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RowKernel {
    /// Every class of a row is read, and a state can be kept.
    Rows,
    /// Of each row only the entry at the target is read.
    Gather,
}

/// A loss over rows, over operands: arguments and results of an op, or scratch memory of a larger
/// program.
#[derive(Debug, Clone)]
pub(super) struct RowLoss {
    pub name: &'static str,
    pub pass: Pass,
    pub reduction: Reduction,
    pub family: RowKernel,
    /// The op's hooks, and what they need.
    pub files: Vec<File>,
    /// Values of their `override` declarations.
    pub constants: Vec<(&'static str, u32)>,
    /// The op's options: the rest is filled in.
    pub params: RowParams,
    /// The mean where no row is kept.
    pub empty_mean: f32,
    /// Whether the kernel reads the input.
    pub reads_input: bool,
    pub operands: RowOperands,
}

/// What a loss over rows works on. The shape of the input is that of the rows.
#[allow(missing_docs)]
#[derive(Debug, Clone)]
pub struct RowOperands {
    pub input: View,
    pub target: RowTarget,
    pub weight: Option<View>,
    pub upstream: Option<View>,
    /// The row state that forward kept.
    pub given_state: Option<View>,
    /// The row state to keep.
    pub kept_state: Option<View>,
    pub loss: Option<View>,
    /// In place where it is the input.
    pub grad: Option<View>,
    /// Results for each row behind its loss, in the order in which the kernel writes them; `None` for
    /// one that nobody asked for.
    pub row_outputs: Vec<Option<View>>,
}

/// The targets of rows.
#[derive(Debug, Clone)]
pub enum RowTarget {
    /// A class a row: the divisor of the mean is the sum of their weights.
    Classes(View),
    /// A probability for each class.
    Probabilities(View),
}

impl RowOperands {
    /// The arguments and results of an op.
    pub fn of(args: &Args<Layout>, outputs: &Output<Layout>, target: RowTarget) -> Self {
        let argument = |role| args.get(role).map(|layout| View::of(role, layout));
        let result = |role| outputs.get(role).map(|layout| View::of(role, layout));
        RowOperands {
            input: View::of(Role::Input, args.input()),
            target,
            weight: argument(Role::Weight),
            upstream: argument(Role::Upstream),
            given_state: argument(Role::State),
            kept_state: result(Role::State),
            loss: result(Role::Loss),
            grad: grad_view(args, outputs),
            row_outputs: vec![],
        }
    }

    pub(super) fn is_in_place(&self) -> bool {
        self.grad.as_ref().is_some_and(|grad| grad.slot == self.input.slot)
    }

    fn has_classes(&self) -> bool {
        matches!(self.target, RowTarget::Classes(_))
    }
}

/// What the dispatches of rows leave behind, for what follows them.
pub(super) struct RowResults {
    /// Each row's loss, and what else is told of it, piece by piece.
    view: Option<View>,
    /// Where losses lie in it.
    losses: Vec<[u64; 2]>,
    /// Memory for what teams find of split rows, which blocks of rows use one after the other.
    partials: Option<View>,
}

impl RowLoss {
    /// Adds the dispatches: the targets' divisor, where only the device knows it; the rows; the sum
    /// of their losses.
    pub fn push(self, program: &mut Program, profile: &DeviceProfile) -> Result<()> {
        let shape = ClassShape::of(self.operands.input.layout.shape())?;
        let rows = shape.rows() as u64;
        let mut results = self.begin(shape.classes, rows, program, profile)?;
        if rows > 0 {
            self.push_rows(0, &mut results, program, profile)?;
        }
        self.finish(rows, results, program, profile)
    }

    /// What the kernel writes for each row, one after the other.
    fn results_per_row(&self) -> u64 {
        1 + self.operands.row_outputs.len() as u64
    }

    /// The loss, where the pass has one.
    fn loss(&self) -> Option<&View> {
        self.operands.loss.as_ref().filter(|_| self.pass.has_loss())
    }

    fn sums_losses(&self) -> bool {
        self.loss().is_some() && self.reduction != Reduction::None
    }

    /// Adds what comes before the rows, of which there are so many in all.
    pub fn begin(
        &self,
        classes: usize,
        rows: u64,
        program: &mut Program,
        profile: &DeviceProfile,
    ) -> Result<RowResults> {
        let results_per_row = self.results_per_row();
        let view = self.loss().map(|loss| match self.sums_losses() || results_per_row > 1 {
            true => program.scratch_f32(rows * results_per_row),
            false => loss.clone(),
        });
        if let (RowTarget::Classes(targets), true) = (&self.operands.target, rows > 0) {
            // It comes first, since gradients carry the divisor; the same pass over the
            // targets finds the first class out of range.
            let terms = self.divisor_terms(classes, rows, targets);
            program.sum(profile.for_sum(), terms, &Total::Divisor)?;
        }
        Ok(RowResults { view, losses: vec![], partials: None })
    }

    /// Adds the dispatches of a block of rows, whose first is `first_row` of what has a few numbers for each
    /// row. The input, and what else has a number for each of the input's, is the block's alone.
    pub fn push_rows(
        &self,
        first_row: u64,
        results: &mut RowResults,
        program: &mut Program,
        profile: &DeviceProfile,
    ) -> Result<()> {
        let operands = &self.operands;
        let shape = ClassShape::of(operands.input.layout.shape())?;
        let rows = shape.rows() as u64;
        let results_per_row = self.results_per_row();
        let tensors = self.tensors();
        let launch = if self.may_split() { profile.for_split_rows(shape) } else { None };
        let launch = launch.map_or_else(|| profile.for_rows(shape), Ok)?;
        // what each team finds of its split, unless it is known
        let needed = launch.teams(rows) * 8;
        let partials = (launch.splits > 1 && operands.given_state.is_none()).then(|| {
            let had = results.partials.take();
            let had = had.filter(|had| had.layout.elements() as u64 >= needed);
            results.partials.insert(had.unwrap_or_else(|| program.scratch_f32(needed))).clone()
        });
        for piece in pieces(program, shape, &tensors, self.per_row_bytes())? {
            let [in_block, rows] = [piece.first_row, piece.rows];
            let row = first_row + in_block;
            let kernel = self.kernel(shape, &tensors, launch);
            let params = RowParams {
                rows: rows as u32,
                classes: shape.classes as u32,
                positions: piece.positions as u32,
                first: first_index(row),
                rows_per_team: launch.rows_per_team,
                splits: launch.splits,
                classes_per_split: launch.classes_per_split,
                ..self.params
            };
            let teams = launch.teams(rows);
            let partials = partials.as_ref().map(|partials| {
                let first = in_block * u64::from(launch.splits) * 8;
                Binding::part(ports::STATE, partials, [first, teams * 8, 0]).in_vec4s()
            });
            piece.before.iter().for_each(|&copy| program.copy(copy));
            let mut bindings = self.bindings(&piece.bindings, row, rows, partials);
            if partials.is_some() {
                let kernel = Kernel {
                    label: format!("{}.sums", kernel.label),
                    entry_point: "partials",
                    ..kernel.clone()
                };
                // losses and gradients are not written yet; in place, the input is found there
                let is_bound = |binding: &&Binding| match binding.port {
                    ports::GRAD => operands.is_in_place(),
                    port => port != ports::UPSTREAM,
                };
                let bindings = bindings.iter().filter(is_bound).copied().collect();
                program.dispatch_teams(launch.launch, teams, kernel, &params, bindings)?;
            }
            if let Some(results) = &results.view {
                let part = [row * results_per_row, rows * results_per_row, 0];
                bindings.push(Binding::part(ports::RESULTS, results, part));
            }
            program.dispatch_teams(launch.launch, teams, kernel, &params, bindings)?;
            piece.after.iter().for_each(|&copy| program.copy(copy));
            if let Some(view) = results.view.as_ref().filter(|_| results_per_row > 1) {
                results.losses.push([row * results_per_row, rows]);
                let loss = if self.sums_losses() { &None } else { &operands.loss };
                let parts = [loss].into_iter().chain(&operands.row_outputs).zip(0..);
                for (to, part) in parts {
                    let Some(to) = to else { continue };
                    program.copy(Copy {
                        from: view.slot,
                        from_offset: (row * results_per_row + part * rows) * 4,
                        to: to.slot,
                        to_offset: row * 4,
                        bytes: rows * 4,
                    });
                }
            }
        }
        Ok(())
    }

    /// Adds what comes after all rows: the sum of their losses, and the status.
    pub fn finish(
        &self,
        rows: u64,
        results: RowResults,
        program: &mut Program,
        profile: &DeviceProfile,
    ) -> Result<()> {
        let has_classes = self.operands.has_classes();
        let RowResults { view, mut losses, .. } = results;
        if let (Some(loss), Some(results), true) = (self.loss(), view, self.sums_losses()) {
            let loss = loss.clone();
            let total = match self.reduction {
                // with probabilities the divisor is known, unless there is nothing to divide
                Reduction::Mean if has_classes || rows == 0 => {
                    Total::SumOverDivisor { sum: loss, empty_mean: self.empty_mean }
                }
                Reduction::Mean => Total::SumOver(loss, rows as f32),
                _ => Total::Sum(loss),
            };
            if self.results_per_row() == 1 {
                losses.push([0, rows]);
            }
            program.sum(profile.for_sum(), Terms::values(results, losses), &total)?;
        }
        if has_classes && rows > 0 {
            program.keep_first_fault();
        }
        Ok(())
    }

    /// Whether several teams may split a row. What is told of a row beside its loss is one team's
    /// work.
    fn may_split(&self) -> bool {
        self.family == RowKernel::Rows
            && self.operands.row_outputs.is_empty()
            && self.operands.kept_state.is_none()
    }

    fn weighted(&self) -> (&'static str, u32) {
        ("WEIGHTED", self.operands.weight.is_some().into())
    }

    fn divisor_terms(&self, classes: usize, rows: u64, targets: &View) -> Terms {
        let weight = self.operands.weight.as_ref();
        Terms {
            label: "divisor",
            files: vec![kernel::TERMS_CLASS_WEIGHTS, kernel::CLASSES],
            port: ports::TARGETS,
            view: targets.clone(),
            ranges: vec![[0, rows]],
            bindings: vec![Binding::all_or_placeholder(ports::WEIGHT, weight)],
            constants: vec![self.weighted(), ("NOTE_KEPT", (!self.empty_mean.is_nan()).into())],
            params: SumParams {
                classes: classes as u32,
                ignore_index: self.params.ignore_index,
                ..SumParams::default()
            },
        }
    }

    /// The tensors that have an element for each of the input's.
    fn tensors(&self) -> Vec<RowTensor> {
        let RowOperands { input, target, grad, .. } = &self.operands;
        let in_place = self.operands.is_in_place();
        let tensor = |port, view: &View, is_read| RowTensor { port, view: view.clone(), is_read };
        let mut tensors = Vec::new();
        if self.reads_input && !in_place {
            tensors.push(tensor(ports::INPUT, input, true));
        }
        if let RowTarget::Probabilities(target) = target {
            tensors.push(tensor(ports::TARGETS, target, true));
        }
        if let Some(grad) = grad.as_ref().filter(|_| self.pass.has_grad()) {
            tensors.push(tensor(ports::GRAD, grad, in_place));
        }
        tensors
    }

    /// Bytes of the largest binding with a few numbers for each row: four of state or results, or one.
    fn per_row_bytes(&self) -> u64 {
        let RowOperands { given_state, kept_state, row_outputs, .. } = &self.operands;
        let has_state = given_state.is_some() || kept_state.is_some();
        let state = if has_state { 4 } else { 1 };
        4 * state.max(1 + row_outputs.len() as u64)
    }

    fn kernel(&self, shape: ClassShape, tensors: &[RowTensor], launch: RowLaunch) -> Kernel {
        let operands = &self.operands;
        let layout = &operands.input.layout;
        let is_reduced = self.reduction != Reduction::None;
        let upstream = kernel::upstream(operands.upstream.is_some(), is_reduced);
        let family = match self.family {
            RowKernel::Rows => kernel::ROWS,
            RowKernel::Gather => kernel::GATHER,
        };
        let vec4 = shape.loads_vec4(tensors.iter().map(|tensor| &tensor.view.layout));
        let storage = kernel::storage(layout.dtype(), vec4, Access::of(operands.is_in_place()));
        let mut constants = [&self.constants[..], &[self.weighted()]].concat();
        constants.push(("STRIDED", (shape.positions > 1).into()));
        if self.family == RowKernel::Rows {
            constants.push(("SPLIT_ROWS", (launch.splits > 1).into()));
        }
        Kernel {
            label: format!("{}.{}.{}", self.name, self.pass.name(), layout.dtype()),
            files: [
                &[family],
                &self.files[..],
                &[kernel::ROW_STATE, kernel::ROW_TILES, kernel::CLASSES, upstream],
                &storage,
            ]
            .concat(),
            entry_point: self.pass.name(),
            constants,
            defines: kernel::tile(match self.family {
                RowKernel::Rows => launch.tile,
                // nothing stays in registers
                RowKernel::Gather => Tile { vec4s: 1, contiguous: 1, whole_row: false },
            }),
            read_write: 0,
        }
    }

    /// All bindings but that of the results, for some rows.
    fn bindings(
        &self,
        tensors: &[Binding],
        first: u64,
        rows: u64,
        partials: Option<Binding>,
    ) -> Vec<Binding> {
        let RowOperands { target, weight, upstream, given_state, kept_state, .. } = &self.operands;
        let per_row = |port, view: &View, numbers: u64| {
            Binding::part(port, view, [first * numbers, rows * numbers, 0])
        };
        let mut bindings = tensors.to_vec();
        bindings.push(Binding::all_or_placeholder(ports::WEIGHT, weight.as_ref()));
        if let RowTarget::Classes(classes) = target {
            bindings.push(per_row(ports::TARGETS, classes, 1));
            bindings.push(Binding::control());
        }
        if let Some(upstream) = upstream.as_ref().filter(|_| self.pass.has_grad()) {
            bindings.push(match self.reduction {
                Reduction::None => per_row(ports::UPSTREAM, upstream, 1),
                _ => Binding::all(ports::UPSTREAM, upstream),
            });
        }
        match (partials, given_state.as_ref().or(kept_state.as_ref())) {
            (Some(partials), _) => bindings.push(partials),
            (None, Some(state)) => bindings.push(per_row(ports::STATE, state, 4).in_vec4s()),
            (None, None) if self.family == RowKernel::Gather => {}
            (None, None) => bindings.push(Binding::placeholder(ports::STATE)),
        }
        bindings
    }
}
