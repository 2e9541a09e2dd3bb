//! What ops over rows of classes share.

use super::{expect_dtype, expect_finite, expect_shape, required};
use crate::kernel::{self, File, Kernel};
use crate::program::{Copy, Program, RowParams, Slot, SumParams, Terms, Total};
use crate::select::Facts;
use crate::shape::{ClassShape, Layout, without_classes};
use crate::{Args, Array, DType, Error, Pass, Reduction, Result};

/// Refuses class-index targets and class weights that do not fit the input.
pub(super) fn expect_class_target(args: &Args<Layout>, op: impl FnOnce() -> String) -> Result<()> {
    let target = required("target", &args.target, op)?;
    expect_dtype("target", target, &[DType::I32, DType::I64])?;
    expect_shape("target", target, &without_classes(args.input.shape()))
}

/// Refuses class weights other than one f32 a class.
pub(super) fn expect_class_weight(args: &Args<Layout>) -> Result<()> {
    let Some(weight) = &args.weight else { return Ok(()) };
    expect_dtype("weight", weight, &[DType::F32])?;
    expect_shape("weight", weight, &[ClassShape::of(args.input.shape())?.classes])
}

/// Refuses class weights that are not finite and classes out of range, naming the first.
pub(super) fn expect_class_values(args: &Args<Array<'_>>, ignore_index: i64) -> Result<()> {
    expect_finite("weight", args.weight.as_ref())?;
    let Some(target) = &args.target else { return Ok(()) };
    let classes = ClassShape::of(args.input.shape())?.classes as i64;
    let target = target.to_classes()?;
    let outside =
        |&(_, &class): &(usize, &i64)| class != ignore_index && !(0..classes).contains(&class);
    match target.iter().enumerate().find(outside) {
        None => Ok(()),
        Some((row, &class)) => {
            Err(Error::Class { row: row as u64, class, classes: classes as u64 })
        }
    }
}

/// An `ignore_index` as kernels know it. One that i32 does not hold is uploaded as `i32::MIN` (see
/// `Gpu::upload_argument`).
pub(super) fn device_ignore_index(ignore_index: i64) -> i32 {
    i32::try_from(ignore_index).unwrap_or(i32::MIN)
}

/// A loss over rows: what its dispatches depend on, beside the layouts.
pub(super) struct RowLoss<'a> {
    pub label: String,
    pub pass: Pass,
    pub args: &'a Args<Layout>,
    pub shape: ClassShape,
    pub reduction: Reduction,
    /// The family and the op's hooks.
    pub files: Vec<File>,
    /// Values of their `override` declarations.
    pub constants: Vec<(&'static str, u32)>,
    /// Bindings beside those that every row loss has.
    pub bindings: Vec<(u32, Slot)>,
    /// The op's options: the rest is filled in.
    pub params: RowParams,
    /// Whether targets are classes: the divisor of the mean is then the sum of their weights.
    pub has_classes: bool,
    /// The mean where no row is kept.
    pub empty_mean: f32,
    /// Whether the kernel writes logsumexp, argmax and correct behind the losses.
    pub row_outputs: bool,
}

impl RowLoss<'_> {
    /// The targets' divisor, where only the device knows it; the rows; the sum of their losses.
    pub fn program(self, facts: &Facts) -> Result<Program> {
        let RowLoss { label, pass, args, shape, reduction, .. } = self;
        let mut program = Program::default();
        let rows = shape.rows() as u64;
        let reduced = reduction != Reduction::None && pass.has_loss();
        let row_outputs = self.row_outputs && pass.has_loss();
        let losses = match (row_outputs, reduced) {
            (true, _) => program.scratch(rows * 4 * 4),
            (false, true) => program.scratch(rows * 4),
            (false, false) => Slot::Loss,
        };
        let weighted = ("WEIGHTED", args.weight.is_some().into());
        let weight = if args.weight.is_some() { Slot::Weight } else { Slot::One };
        let params = RowParams {
            rows: rows as u32,
            classes: shape.classes as u32,
            positions: shape.positions as u32,
            ..self.params
        };
        if rows > 0 {
            if self.has_classes {
                // It comes first, since gradients carry the divisor; the same pass over the
                // targets finds the first class out of range.
                let terms = Terms {
                    label: format!("{label}.divisor"),
                    files: vec![kernel::TERMS_CLASS_WEIGHTS, kernel::CLASSES],
                    bindings: vec![(2, Slot::Target), (3, weight)],
                    constants: vec![weighted, ("NOTE_KEPT", (!self.empty_mean.is_nan()).into())],
                    params: SumParams {
                        classes: params.classes,
                        ignore_index: params.ignore_index,
                        ..SumParams::default()
                    },
                };
                program.push_sum(facts, terms, rows, Total::Divisor)?;
            }
            let mut bindings = self.bindings;
            bindings.extend([(2, Slot::Target), (3, weight)]);
            if pass.has_loss() {
                bindings.push((6, losses));
            }
            if pass.has_grad() {
                let upstream = if args.upstream.is_some() { Slot::Upstream } else { Slot::One };
                bindings.extend([(4, upstream), (5, Slot::Grad)]);
            }
            let upstream_is_tensor = reduction == Reduction::None && args.upstream.is_some();
            let common = [
                kernel::ROW_FORM,
                kernel::CLASSES,
                kernel::storage(shape.loads_vec4()),
                kernel::upstream(upstream_is_tensor),
            ];
            let kernel = Kernel {
                label: label.clone(),
                files: [&self.files[..], &common].concat(),
                entry_point: pass.name(),
                constants: [self.constants, vec![weighted]].concat(),
            };
            let choice = facts.for_rows(shape.classes as u64, shape.positions as u64);
            program.push(facts, choice, rows, kernel, &params, bindings)?;
        }
        if row_outputs && rows > 0 {
            let loss = if reduced { None } else { Some(Slot::Loss) };
            let correct = self.has_classes.then_some(Slot::Correct);
            let parts = [loss, Some(Slot::LogSumExp), Some(Slot::Argmax), correct];
            program.copies.extend(parts.into_iter().zip(0..).filter_map(|(to, part)| {
                let bytes = rows * 4;
                Some(Copy { from: losses, offset: part * bytes, to: to?, bytes })
            }));
        }
        if reduced {
            let total = match reduction {
                // with probabilities the divisor is known, unless there is nothing to divide
                Reduction::Mean if self.has_classes || rows == 0 => {
                    Total::LossOverDivisor { empty_mean: self.empty_mean }
                }
                Reduction::Mean => Total::LossOver(rows as f32),
                _ => Total::Loss,
            };
            let terms = Terms::values(format!("{label}.sum"), losses);
            program.push_sum(facts, terms, rows, total)?;
        }
        Ok(program)
    }
}
