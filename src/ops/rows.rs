//! What ops over rows of classes share.

use super::{expect_dtype, expect_finite, expect_shape, required};
use crate::args::Memory;
use crate::array::Data;
use crate::kernel::{self, File, Kernel};
use crate::program::{
    Binding, Copy, Program, RowParams, Slot, SumParams, Terms, Total, first_place, stretches,
};
use crate::select::{Blocks, Facts, Rows};
use crate::shape::{ClassShape, Layout, without_classes};
use crate::{Args, Array, DType, Error, Output, Pass, Reduction, Result};

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
    // all of a stretch are looked at, which takes no branches
    const STRETCH: usize = 1024;
    let has_refused = |target: &[T]| target.iter().fold(false, |any, &c| any | is_refused(c));
    let stretch = target.chunks(STRETCH).position(has_refused)?;
    let mut rows = target.iter().enumerate().skip(stretch * STRETCH);
    rows.find(|&(_, &class)| is_refused(class)).map(|(row, &class)| (row, class.into()))
}

/// An `ignore_index` as kernels know it. One that i32 does not hold is uploaded as `i32::MIN` (see
/// `device_bytes` in `src/upload.rs`).
pub(super) fn device_ignore_index(ignore_index: i64) -> i32 {
    i32::try_from(ignore_index).unwrap_or(i32::MIN)
}

/// A loss over rows: what its dispatches depend on, beside the layouts.
pub(super) struct RowLoss<'a> {
    pub name: &'static str,
    pub pass: Pass,
    pub args: &'a Args<Layout>,
    pub outputs: &'a Output<Layout>,
    pub reduction: Reduction,
    /// [`kernel::ROWS`] or [`kernel::GATHER`].
    pub family: File,
    /// The op's hooks, and what they need.
    pub files: Vec<File>,
    /// Values of their `override` declarations.
    pub constants: Vec<(&'static str, u32)>,
    /// The op's options: the rest is filled in.
    pub params: RowParams,
    /// Whether targets are classes: the divisor of the mean is then the sum of their weights.
    pub has_classes: bool,
    /// The mean where no row is kept.
    pub empty_mean: f32,
    /// Whether the kernel reads the input.
    pub reads_input: bool,
    /// Whether the kernel writes logsumexp, argmax and correct behind the losses.
    pub row_outputs: bool,
}

impl RowLoss<'_> {
    /// The targets' divisor, where only the device knows it; the rows; the sum of their losses.
    pub fn program(self, facts: &Facts) -> Result<Program> {
        let RowLoss { pass, args, outputs, reduction, .. } = self;
        let mut program = Program::default();
        let shape = ClassShape::of(args.input.shape())?;
        let rows = shape.rows() as u64;
        let label = format!("{}.{}.{}", self.name, pass.name(), args.input.dtype());
        let reduced = reduction != Reduction::None && pass.has_loss();
        let row_outputs = self.row_outputs && pass.has_loss();
        // what the kernel writes for each row, one after the other
        let results_per_row = if row_outputs { 4 } else { 1 };
        let results = match reduced || row_outputs {
            true => program.scratch(rows * results_per_row),
            false => Slot::Loss,
        };
        // where losses lie among them
        let mut losses = Vec::new();
        if rows > 0 {
            if self.has_classes {
                // It comes first, since gradients carry the divisor; the same pass over the
                // targets finds the first class out of range.
                program.push_sum(facts, self.divisor_terms(shape)?, Total::Divisor, None)?;
            }
            let tensors = [Some(&args.input), outputs.grad.as_ref(), self.probabilities()];
            let tensors: Vec<_> = tensors.into_iter().flatten().collect();
            let vec4 = shape.loads_vec4(tensors.iter().copied());
            let shared = if self.may_share() { facts.for_shared_rows(shape) } else { None };
            let split = shared.unwrap_or_else(|| facts.for_rows(shape));
            let kernel = self.kernel(label.clone(), shape, vec4, split);
            // what each team finds of its share, unless it is known
            let sums = Layout::new(&[split.teams(rows) as usize * 8], DType::F32);
            let sums = (split.shares > 1 && args.state.is_none())
                .then(|| (program.scratch(sums.elements() as u64), sums));

            let most = self.batches_per_part(facts, shape, &tensors)?;
            for [first, batches] in stretches(shape.batch as u64, most) {
                let [row, rows] = [first, batches].map(|n| n * shape.positions as u64);
                let results_part = [row * results_per_row, rows * results_per_row, 0];
                let params = RowParams {
                    rows: rows as u32,
                    classes: shape.classes as u32,
                    positions: shape.positions as u32,
                    first: first_place(row),
                    rows_per_team: split.each,
                    splits: split.shares,
                    classes_per_split: split.share,
                    ..self.params
                };
                let teams = split.teams(rows);
                let part = [first, batches];
                let sums = sums.as_ref().map(|(slot, layout)| {
                    let first = row * u64::from(split.shares) * 8;
                    in_fours(Binding::part(8, *slot, layout, [first, teams * 8, 0]))
                });
                if let Some(sums) = sums {
                    let kernel = Kernel {
                        label: format!("{label}.partials"),
                        entry_point: "partials",
                        ..kernel.clone()
                    };
                    let bindings = self.bindings(shape, part, Stage::Sums(sums));
                    program.push(facts, split.choice, teams, kernel, &params, bindings)?;
                }
                let mut bindings = self.bindings(shape, part, Stage::Results(sums));
                if pass.has_loss() {
                    let layout = match results {
                        Slot::Scratch(i) => Some(&program.scratch[i]),
                        _ => outputs.loss.as_ref(),
                    };
                    let layout = required("loss", &layout, || label.clone())?;
                    bindings.push(Binding::part(6, results, layout, results_part));
                }
                program.push(facts, split.choice, teams, kernel.clone(), &params, bindings)?;
                if row_outputs {
                    losses.push([row * results_per_row, rows]);
                }
                if row_outputs {
                    let loss = if reduced { None } else { Some(Slot::Loss) };
                    let correct = self.has_classes.then_some(Slot::Correct);
                    let parts = [loss, Some(Slot::LogSumExp), Some(Slot::Argmax), correct];
                    program.copies.extend(parts.into_iter().zip(0..).filter_map(|(to, part)| {
                        let offset = (results_part[0] + part * rows) * 4;
                        Some(Copy {
                            from: results,
                            offset,
                            to: to?,
                            to_offset: row * 4,
                            bytes: rows * 4,
                        })
                    }));
                }
            }
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
            if !row_outputs {
                losses.push([0, rows]);
            }
            let terms = Terms::values(results, losses);
            program.push_sum(facts, terms, total, outputs.loss.as_ref())?;
        }
        Ok(program)
    }

    /// Whether of each row only the entry at the target is read: nothing is held, and no state kept.
    fn is_gather(&self) -> bool {
        self.family == kernel::GATHER
    }

    /// Whether several teams may take a row together. What is told of a row beside its loss is one
    /// team's work.
    fn may_share(&self) -> bool {
        !self.is_gather() && !self.row_outputs && self.outputs.state.is_none()
    }

    /// The targets, where they are probabilities.
    fn probabilities(&self) -> Option<&Layout> {
        self.args.target.as_ref().filter(|_| !self.has_classes)
    }

    fn weighted(&self) -> (&'static str, u32) {
        ("WEIGHTED", self.args.weight.is_some().into())
    }

    fn divisor_terms(&self, shape: ClassShape) -> Result<Terms> {
        let target = required("target", &self.args.target, || self.name.into())?;
        Ok(Terms {
            label: "divisor",
            files: vec![kernel::TERMS_CLASS_WEIGHTS, kernel::CLASSES],
            binding: 2,
            slot: Slot::Target,
            layout: target.clone(),
            stretches: vec![[0, shape.rows() as u64]],
            bindings: vec![Binding::all_or_one(3, Slot::Weight, self.args.weight.as_ref())],
            constants: vec![self.weighted(), ("NOTE_KEPT", (!self.empty_mean.is_nan()).into())],
            params: SumParams {
                classes: shape.classes as u32,
                ignore_index: self.params.ignore_index,
                ..SumParams::default()
            },
        })
    }

    fn kernel(&self, label: String, shape: ClassShape, vec4: bool, split: Rows) -> Kernel {
        let args = self.args;
        let upstream = kernel::upstream(args.upstream.is_some(), self.reduction != Reduction::None);
        let common = [kernel::ROW_STATE, kernel::ROW_TILES, kernel::CLASSES, upstream];
        let storage = kernel::storage(args.input.dtype(), vec4, args.memory);
        let mut constants = [&self.constants[..], &[self.weighted()]].concat();
        constants.push(("STRIDED", (shape.positions > 1).into()));
        let mut blocks = Blocks::default();
        if !self.is_gather() {
            constants.push(("SPLIT_ROWS", (split.shares > 1).into()));
            blocks = split.choice.blocks;
        }
        Kernel {
            label,
            files: [&[self.family], &self.files[..], &common, &storage].concat(),
            entry_point: self.pass.name(),
            constants,
            blocks,
            shares_buffers: args.memory != Memory::Apart,
        }
    }

    /// How many indices of the batch one dispatch works on.
    fn batches_per_part(
        &self,
        facts: &Facts,
        shape: ClassShape,
        tensors: &[&Layout],
    ) -> Result<u64> {
        let row = |tensor: &&Layout| {
            let sizes = [shape.batch_stride(tensor), shape.batch_elements()];
            ("one row of input", sizes.map(|n| n as u64 * tensor.dtype().size() as u64))
        };
        let mut lines: Vec<_> = tensors.iter().map(row).collect();
        // what there is for each row: four numbers of state or results, or one
        let has_state = self.args.state.is_some() || self.outputs.state.is_some();
        let numbers = if has_state || self.row_outputs { 4 } else { 1 };
        lines.push(("one row of results", [shape.positions as u64 * 4 * numbers; 2]));
        facts.lines_per_part(&lines)
    }

    /// All bindings but that of the results, for some indices of the batch.
    fn bindings(
        &self,
        shape: ClassShape,
        [first, batches]: [u64; 2],
        stage: Stage,
    ) -> Vec<Binding> {
        let (args, outputs, pass) = (self.args, self.outputs, self.pass);
        let lines = |binding, slot, layout: &Layout| {
            let stride = shape.batch_stride(layout) as u64;
            let span = (batches - 1) * stride + shape.batch_elements() as u64;
            Binding::part(binding, slot, layout, [first * stride, span, stride])
        };
        let per_row = |binding, slot, layout: &Layout, numbers: u64| {
            let [first, rows] = [first, batches].map(|n| n * shape.positions as u64 * numbers);
            Binding::part(binding, slot, layout, [first, rows, 0])
        };
        let mut bindings = vec![Binding::all_or_one(3, Slot::Weight, args.weight.as_ref())];
        if let Some(target) = &args.target {
            bindings.push(match self.has_classes {
                true => per_row(2, Slot::Target, target, 1),
                false => lines(2, Slot::Target, target),
            });
        }
        if self.has_classes {
            bindings.push(Binding::control());
        }
        if self.reads_input && args.memory != Memory::InPlace {
            bindings.push(lines(1, Slot::Input, &args.input));
        }
        let grad = outputs.grad.as_ref().map(|grad| lines(5, Slot::Grad, grad));
        let sums = match stage {
            Stage::Sums(sums) => {
                // in place, the input is found there
                bindings.extend(grad.filter(|_| args.memory == Memory::InPlace));
                Some(sums)
            }
            Stage::Results(sums) => {
                bindings.extend(grad);
                if let Some(upstream) = args.upstream.as_ref().filter(|_| pass.has_grad()) {
                    bindings.push(match self.reduction {
                        Reduction::None => per_row(4, Slot::Upstream, upstream, 1),
                        _ => Binding::all(4, Slot::Upstream, upstream),
                    });
                }
                sums
            }
        };
        let state = args.state.as_ref().or(outputs.state.as_ref());
        match (sums, state) {
            (Some(sums), _) => bindings.push(sums),
            (None, Some(state)) => {
                bindings.push(in_fours(per_row(8, Slot::State, state, 4)));
            }
            (None, None) if self.is_gather() => {}
            (None, None) => bindings.push(Binding::unused(8)),
        }
        bindings
    }
}

/// A binding of which the kernel counts fours.
fn in_fours(binding: Binding) -> Binding {
    Binding { offsets: binding.offsets.map(|n| n / 4), ..binding }
}

/// What a dispatch of rows is for.
enum Stage {
    /// What each team finds of its share of a row.
    Sums(Binding),
    /// Losses and gradients, from these sums where rows are shared.
    Results(Option<Binding>),
}
