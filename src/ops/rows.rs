//! What ops over rows of classes share.

use bytemuck::{Pod, Zeroable};

use super::pieces::{RowTensor, pieces};
use super::sum::{SumParams, Terms, Total};
use super::{expect_dtype, expect_finite, expect_shape, grad_view};
use crate::array::Data;
use crate::kernel::{self, Access, File, Kernel};
use crate::program::{Binding, Copy, Port, Program, Slot, View, first_index};
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
    pub shares: u32,
    pub first_class: u32,
    pub total_classes: u32,
    pub unused: [u32; 3],
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

/// The most classes whose largest a partial can name.
pub(super) const MOST_CLASSES: u32 = 1 << 25;

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
    /// Partials of each row, which tell of all of its classes.
    pub given_partials: Option<Partials>,
    /// Where each row's partial goes in a pass that gives them, `[rows, 1, 8]`.
    pub partial: Option<View>,
    /// The divisor of the mean in place of the sum of the targets' weights.
    pub given_divisor: Option<View>,
    /// Where that sum goes.
    pub divisor: Option<View>,
    pub loss: Option<View>,
    /// In place where it is the input.
    pub grad: Option<View>,
    /// Results for each row behind its loss, in the order in which the kernel writes them; `None` for
    /// one that nobody asked for.
    pub row_outputs: Vec<Option<View>>,
}

/// Partials of rows in memory, `[rows, shares, 8]` (`shaders/shared/row_state.wgsl`).
#[derive(Debug, Clone)]
pub struct Partials {
    /// Where they lie.
    pub view: View,
    /// How many there are of each row.
    pub shares: u32,
    /// Whether they are those of a block of rows alone.
    pub of_block: bool,
}

impl Partials {
    fn of_all_rows(view: View) -> Self {
        let shares = view.layout.shape()[1] as u32;
        Partials { view, shares, of_block: false }
    }

    /// Those of some rows, of which the first is so far into a block, and so far among all.
    pub(super) fn of_rows(&self, port: Port, [in_block, row]: [u64; 2], rows: u64) -> Binding {
        let first = if self.of_block { in_block } else { row };
        per_row(port, &self.view, 8 * u64::from(self.shares), first, rows).in_vec4s()
    }
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
            given_partials: argument(Role::Partials).map(Partials::of_all_rows),
            partial: result(Role::Partial),
            given_divisor: argument(Role::Divisor),
            divisor: result(Role::Divisor),
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
    /// How many words that is for each row.
    words: u64,
    /// Where losses lie in it.
    losses: Vec<[u64; 2]>,
    /// Memory for what teams find of split rows, which blocks of rows use one after the other.
    memory: Option<View>,
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

    /// What the kernel writes for each row, one after the other, but for a state.
    fn results_per_row(&self) -> u64 {
        1 + self.operands.row_outputs.len() as u64
    }

    /// With a state, where that follows them.
    fn words_per_row(&self) -> u64 {
        let RowOperands { kept_state, given_partials, .. } = &self.operands;
        let follows = kept_state.is_some() && given_partials.is_some();
        self.results_per_row() + if follows { 4 } else { 0 }
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
        let words = self.words_per_row();
        let view = self.loss().map(|loss| match self.sums_losses() || words > 1 {
            true => program.scratch_f32(rows * words),
            false => loss.clone(),
        });
        if let (RowTarget::Classes(targets), true) = (&self.operands.target, rows > 0) {
            // It comes first, since gradients carry the divisor; the same pass over the
            // targets finds the first class out of range.
            let terms = self.divisor_terms(classes, rows, targets);
            program.sum(profile.for_sum(), terms, &Total::Divisor)?;
        }
        let of_control = |from, to| Copy { from, from_offset: 0, to, to_offset: 0, bytes: 4 };
        if let Some(divisor) = &self.operands.divisor {
            program.copy(of_control(Slot::Control, divisor.slot));
        }
        if let Some(divisor) = &self.operands.given_divisor {
            program.copy(of_control(divisor.slot, Slot::Control));
        }
        Ok(RowResults { view, words, losses: vec![], memory: None })
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
        let shape = ClassShape::of(self.operands.input.layout.shape())?;
        let tensors = self.tensors();
        let launch = self.launch(shape, profile)?;
        let found = self.partials_to_find(launch, shape.rows() as u64, results, program);
        let known = found.as_ref().or(self.operands.given_partials.as_ref());
        let shares = known.map_or(0, |partials| partials.shares);
        for piece in pieces(program, shape, &tensors, self.per_row_bytes(shares))? {
            let [in_block, rows] = [piece.first_row, piece.rows];
            let row = first_row + in_block;
            let teams = launch.teams(rows);
            let params = RowParams {
                rows: rows as u32,
                classes: shape.classes as u32,
                positions: piece.positions as u32,
                first: first_index(row),
                rows_per_team: launch.rows_per_team,
                splits: launch.splits,
                classes_per_split: launch.classes_per_split,
                shares,
                ..self.params
            };
            let mut bindings = self.bindings(&piece.bindings, row, rows);
            let of_rows =
                |partials: &Partials| partials.of_rows(ports::STATE, [in_block, row], rows);
            piece.before.iter().for_each(|&copy| program.copy(copy));
            if let Some(found) = &found {
                let kernel = self.kernel("partials", shape, &tensors, launch);
                // losses and gradients are not written yet; in place, the input is found there
                let is_read = |binding: &&Binding| match binding.port {
                    ports::GRAD => self.operands.is_in_place(),
                    Port::CONTROL => self.operands.has_classes(),
                    port => port != ports::UPSTREAM,
                };
                let mut bindings: Vec<_> = bindings.iter().filter(is_read).copied().collect();
                bindings.push(of_rows(found));
                program.dispatch_teams(launch.launch, teams, kernel, &params, bindings)?;
            }
            let partials = known.map(of_rows);
            if self.pass == Pass::Partials {
                self.merge(row, partials, &params, shape, program, profile)?;
                continue;
            }
            let RowOperands { given_state, kept_state, .. } = &self.operands;
            bindings.extend(match (partials, given_state.as_ref().or(kept_state.as_ref())) {
                (Some(partials), _) => Some(partials),
                (None, Some(state)) => Some(per_row(ports::STATE, state, 4, row, rows).in_vec4s()),
                (None, None) if self.family == RowKernel::Gather => None,
                (None, None) => Some(Binding::placeholder(ports::STATE)),
            });
            if let Some(view) = &results.view {
                bindings.push(per_row(ports::RESULTS, view, results.words, row, rows));
            }
            let kernel = self.kernel(self.pass.name(), shape, &tensors, launch);
            program.dispatch_teams(launch.launch, teams, kernel, &params, bindings)?;
            piece.after.iter().for_each(|&copy| program.copy(copy));
            self.copy_results(row, rows, results, program);
        }
        Ok(())
    }

    /// How rows are given to teams.
    fn launch(&self, shape: ClassShape, profile: &DeviceProfile) -> Result<RowLaunch> {
        if !self.reads_classes() {
            return Ok(profile.for_merges(shape));
        }
        let may_split = self.may_split() && self.operands.kept_state.is_none();
        let launch = match profile.for_split_rows(shape).filter(|_| may_split) {
            Some(launch) => launch,
            None => profile.for_rows(shape)?,
        };
        // of each of its rows a team merges so many partials, in a loop that software drivers count too
        let shares = self.operands.given_partials.as_ref().map_or(1, |given| given.shares);
        let most = (profile.max_merges() / u64::from(shares)).max(1);
        let rows_per_team = u64::from(launch.rows_per_team).min(most) as u32;
        Ok(RowLaunch { rows_per_team, ..launch })
    }

    /// Memory for the partials that the pass is to find first.
    fn partials_to_find(
        &self,
        launch: RowLaunch,
        rows: u64,
        results: &mut RowResults,
        program: &mut Program,
    ) -> Option<Partials> {
        let operands = &self.operands;
        if operands.given_state.is_some() || operands.given_partials.is_some() {
            return None;
        }
        let shares = launch.splits;
        if let (1, Some(view)) = (shares, &operands.partial) {
            return Some(Partials { view: view.clone(), shares, of_block: false });
        }
        if shares == 1 {
            return None;
        }
        let needed = rows * u64::from(shares) * 8;
        let had = results.memory.take().filter(|had| had.layout.elements() as u64 >= needed);
        let view = had.unwrap_or_else(|| program.scratch_f32(needed));
        results.memory = Some(view.clone());
        Some(Partials { view, shares, of_block: true })
    }

    /// Adds the dispatch that makes one partial of several.
    fn merge(
        &self,
        row: u64,
        partials: Option<Binding>,
        params: &RowParams,
        shape: ClassShape,
        program: &mut Program,
        profile: &DeviceProfile,
    ) -> Result<()> {
        let (Some(from), Some(to)) = (partials, &self.operands.partial) else { return Ok(()) };
        if from.slot == to.slot {
            return Ok(());
        }
        let rows = params.rows.into();
        let launch = profile.for_merges(shape);
        let kernel = self.kernel("merge_partials", shape, &[], launch);
        let params = RowParams { rows_per_team: launch.rows_per_team, splits: 1, ..*params };
        let has_classes = self.operands.has_classes();
        let mut bindings = if has_classes { self.bindings(&[], row, rows) } else { vec![] };
        bindings.extend([from, per_row(ports::RESULTS, to, 8, row, rows)]);
        program.dispatch_teams(launch.launch, launch.teams(rows), kernel, &params, bindings)
    }

    /// Adds the copies of what the kernel has written for some rows beside one another.
    fn copy_results(&self, row: u64, rows: u64, results: &mut RowResults, program: &mut Program) {
        let Some(view) = results.view.as_ref().filter(|_| results.words > 1) else { return };
        let first = row * results.words;
        results.losses.push([first, rows]);
        let mut copy = |to: &Option<View>, part: u64, words: u64| {
            let Some(to) = to else { return };
            program.copy(Copy {
                from: view.slot,
                from_offset: (first + part * rows) * 4,
                to: to.slot,
                to_offset: row * words * 4,
                bytes: rows * words * 4,
            });
        };
        let operands = &self.operands;
        copy(if self.sums_losses() { &None } else { &operands.loss }, 0, 1);
        for (to, part) in operands.row_outputs.iter().zip(1..) {
            copy(to, part, 1);
        }
        if self.words_per_row() > self.results_per_row() {
            copy(&operands.kept_state, self.results_per_row(), 4);
        }
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
        let is_given = self.operands.given_divisor.is_some();
        let RowResults { view, mut losses, .. } = results;
        if let (Some(loss), Some(results), true) = (self.loss(), view, self.sums_losses()) {
            let loss = loss.clone();
            let total = match self.reduction {
                // with probabilities the divisor is known, unless there is nothing to divide
                Reduction::Mean if has_classes || rows == 0 || is_given => {
                    // whether a row is kept is noted of classes alone
                    let empty_mean =
                        if has_classes || rows == 0 { self.empty_mean } else { f32::NAN };
                    Total::SumOverDivisor { sum: loss, empty_mean }
                }
                Reduction::Mean => Total::SumOver(loss, rows as f32),
                _ => Total::Sum(loss),
            };
            if self.words_per_row() == 1 {
                losses.push([0, rows]);
            }
            program.sum(profile.for_sum(), Terms::values(results, losses), &total)?;
        }
        if has_classes && rows > 0 {
            program.keep_first_fault();
        }
        Ok(())
    }

    /// Whether a pass reads a row's classes, or only what partials tell of them.
    fn reads_classes(&self) -> bool {
        self.pass.has_grad() || self.operands.given_partials.is_none()
    }

    /// Whether partials of a row's classes tell all that is asked of it.
    pub fn may_split(&self) -> bool {
        // a cap makes ties of large logits, which partials cannot tell apart
        let is_capped = self.constants.contains(&("SOFTCAP", 1));
        let names_largest = self.constants.contains(&("ROW_OUTPUTS", 1));
        let can_name = !is_capped && self.params.total_classes <= MOST_CLASSES;
        self.family == RowKernel::Rows && (!names_largest || can_name)
    }

    pub(super) fn weighted(&self) -> (&'static str, u32) {
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
                first_class: self.params.first_class,
                total_classes: self.params.total_classes,
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
        if self.reads_input && self.reads_classes() && !in_place {
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

    /// Bytes of the largest binding with a few numbers for each row: partials, state or results.
    fn per_row_bytes(&self, shares: u32) -> u64 {
        let RowOperands { given_state, kept_state, .. } = &self.operands;
        let [is_given, is_kept] = [given_state, kept_state].map(Option::is_some);
        let state = if is_given || is_kept { 4 } else { 0 };
        4 * self.words_per_row().max(state).max(8 * u64::from(shares))
    }

    fn kernel(
        &self,
        entry_point: &'static str,
        shape: ClassShape,
        tensors: &[RowTensor],
        launch: RowLaunch,
    ) -> Kernel {
        let operands = &self.operands;
        let layout = &operands.input.layout;
        let is_reduced = self.reduction != Reduction::None;
        let upstream = kernel::upstream(operands.upstream.is_some(), is_reduced);
        let family = match self.family {
            RowKernel::Rows => kernel::ROWS,
            RowKernel::Gather => kernel::GATHER,
        };
        let vec4 = shape.loads_vec4(tensors.iter().map(|tensor| &tensor.view.layout));
        let access = match self.reads_classes() {
            true => Access::of(operands.is_in_place()),
            false => Access::Unread,
        };
        let storage = kernel::storage(layout.dtype(), vec4, access);
        let mut constants = [&self.constants[..], &[self.weighted()]].concat();
        constants.push(("STRIDED", (shape.positions > 1).into()));
        if self.family == RowKernel::Rows {
            let splits = launch.splits > 1;
            let is_known = operands.given_state.is_none()
                && (operands.given_partials.is_some() || splits)
                || entry_point == "merge_partials";
            constants.push(("SPLIT_ROWS", splits.into()));
            constants.push(("FROM_PARTIALS", (is_known && entry_point != "partials").into()));
        }
        Kernel {
            label: format!("{}.{entry_point}.{}", self.name, layout.dtype()),
            files: [
                &[family],
                &self.files[..],
                &[kernel::ROW_STATE, kernel::ROW_TILES, kernel::CLASSES, upstream],
                &storage,
            ]
            .concat(),
            entry_point,
            constants,
            defines: kernel::tile(match self.family {
                RowKernel::Rows => launch.tile,
                // nothing stays in registers
                RowKernel::Gather => Tile { vec4s: 1, contiguous: 1, whole_row: false },
            }),
            read_write: 0,
        }
    }

    /// The bindings of arguments and gradients, for some rows.
    fn bindings(&self, tensors: &[Binding], first: u64, rows: u64) -> Vec<Binding> {
        let RowOperands { target, weight, upstream, .. } = &self.operands;
        let mut bindings = tensors.to_vec();
        bindings.push(Binding::all_or_placeholder(ports::WEIGHT, weight.as_ref()));
        if let RowTarget::Classes(classes) = target {
            bindings.push(per_row(ports::TARGETS, classes, 1, first, rows));
        }
        if self.operands.has_classes() || self.pass.has_grad() {
            bindings.push(Binding::control());
        }
        if let Some(upstream) = upstream.as_ref().filter(|_| self.pass.has_grad()) {
            bindings.push(match self.reduction {
                Reduction::None => per_row(ports::UPSTREAM, upstream, 1, first, rows),
                _ => Binding::all(ports::UPSTREAM, upstream),
            });
        }
        bindings
    }
}

/// So many numbers of each of some rows.
fn per_row(port: Port, view: &View, numbers: u64, first: u64, rows: u64) -> Binding {
    Binding::part(port, view, [first * numbers, rows * numbers, 0])
}
