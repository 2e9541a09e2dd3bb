//! Cross entropy: losses of rows of classes.

use std::ops::Range;

use super::labels::{self, Labels};
use super::math::{LANES, Lanes, vectorized, zero_wins_unless_nan};
use super::row_partials::ShardPartials;
use super::row_state::{
    HAS_NAN_LOGIT, Logits, Results, RowGradients, RowStats, Rows, cap, exponentials, first_at,
    margin_sums, peaks, row_partials, row_stats,
};
use super::storage::{Stored, slice, slice_mut, slice_of, take, with_stored};
use super::threads;
use super::tiles::{Piece, Tiling};
use crate::ops::{CrossEntropy, has_classes};
use crate::shape::ClassShape;
use crate::shards::WORDS;
use crate::{Args, Array, Output, Reduction, Result, Role};

/// Computes [`CrossEntropy`] over arrays that the op's checks have passed.
pub(crate) fn cross_entropy(
    op: &CrossEntropy,
    args: &Args<Array<'_>>,
    output: &mut Output<Array<'static>>,
) -> Result<()> {
    with_stored!(args.input().dtype(), run::<_>(op, args, output))
}

/// What the losses of all rows depend on. `T` is how upstream gradients of rows are stored.
pub(super) struct Losses<'a, T> {
    form: Form,
    /// Class targets, or else there are probabilities.
    labels: Option<Labels<'a>>,
    weight: Option<&'a [f32]>,
    /// One value a row.
    upstream: Option<&'a [T]>,
    /// The statistics that a forward pass has kept.
    state: Option<&'a [f32]>,
    /// What shards have told of each row, and how many they are.
    partials: Option<(&'a [f32], usize)>,
    /// What gradients are multiplied by: the scalar upstream gradient over the divisor. It is NaN
    /// where the weights of the rows that are kept sum to 0.
    scale: f32,
    reduction: Reduction,
    divisor: f64,
    /// The sum of the weights of targets that are classes of this shard.
    weights: f64,
    /// The mean, where no row is kept.
    mean_of_none: Option<f64>,
}

/// What all tasks read. `T` is how inputs are stored.
struct Job<'a, T> {
    losses: &'a Losses<'a, T>,
    tiling: Tiling,
    /// The index of its first row among all.
    first: usize,
    /// `None` where the input lies where the gradient goes.
    input: Option<&'a [T]>,
    probabilities: Option<&'a [T]>,
}

/// What the work on a tile depends on.
struct Form {
    tiling: Tiling,
    logits: Logits,
    has_classes: bool,
    /// `1 - label smoothing`, and `label smoothing / classes`.
    confidence: f32,
    smoothing: f32,
    /// With class targets the target weights that all classes get by label smoothing, empty without
    /// it; with probabilities the class weights.
    by_class: Vec<f32>,
    asked: Asked,
    /// The first of these classes, among those of all shards.
    first_class: u32,
}

/// What is asked of rows beside their losses.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub grad: bool,
    pub row_outputs: bool,
    /// What a shard tells others, and nothing else.
    pub partials: bool,
}

impl Asked {
    /// By the results that there are places for, and whether there are gradients among them.
    pub fn of(op: &CrossEntropy, output: &Output<Array<'static>>, grad: bool) -> Self {
        let partials = output.get(Role::Partial).is_some();
        let row_outputs = output.get(Role::LogSumExp).is_some() || partials && op.row_outputs;
        Asked { grad, row_outputs, partials }
    }
}

/// The rows of a task, and what it writes of them.
struct Task<'a, T> {
    rows: Range<usize>,
    grad: Option<Piece<'a, T>>,
    results: RowResults<'a>,
}

/// What is written for each row beside its gradient: all that is asked for.
pub(super) struct RowResults<'a> {
    loss: Option<&'a mut [f32]>,
    state: Option<&'a mut [f32]>,
    partials: Option<&'a mut [f32]>,
    logsumexp: Option<&'a mut [f32]>,
    argmax: Option<&'a mut [i32]>,
    correct: Option<&'a mut [i32]>,
    entropy: Option<&'a mut [f32]>,
}

/// A thread's memory for one tile of each tensor.
struct Scratch {
    logits: Vec<f32>,
    /// The exponentials, then the gradient.
    grad: Vec<f32>,
    extra: Extra,
}

/// Memory that only some settings need; empty with others.
struct Extra {
    /// The target weights of probability targets.
    target_weights: Vec<f32>,
    /// Capped logits, and their derivatives with respect to the input.
    capped: Vec<f32>,
    slopes: Vec<f32>,
}

/// What was found of a tile's rows.
struct Found {
    loss: Lanes,
    state: [Lanes; 4],
    logsumexp: Lanes,
    argmax: [i32; LANES],
    entropy: Lanes,
}

fn run<T: Stored>(
    op: &CrossEntropy,
    args: &Args<Array<'_>>,
    output: &mut Output<Array<'static>>,
) -> Result<()> {
    let shape = ClassShape::of(args.input().shape())?;
    let has_classes = has_classes(&args.layouts());
    let asked = Asked::of(op, output, output.get(Role::Grad).is_some());
    let losses = Losses::of(op, args, shape, has_classes, asked)?;
    let job = Job {
        losses: &losses,
        tiling: losses.form.tiling,
        first: 0,
        input: Some(slice::<T>(args.input())?),
        probabilities: if has_classes { None } else { slice_of(args.get(Role::Target))? },
    };
    let [loss, grad, state, partials, logsumexp, argmax, correct, entropy] = output.places([
        Role::Loss,
        Role::Grad,
        Role::State,
        Role::Partial,
        Role::LogSumExp,
        Role::Argmax,
        Role::Correct,
        Role::Entropy,
    ])?;
    let places = [loss, state, partials, logsumexp, argmax, correct, entropy];
    let results = RowResults::of(op.reduction, places)?;
    let sum = job.run_all(slice_mut::<T>(grad)?, results);
    losses.write_total(sum, output)
}

impl<'a> RowResults<'a> {
    /// The places of loss, state, partials, logsumexp, argmax, correctness and entropy.
    pub fn of(
        reduction: Reduction,
        [loss, state, partials, logsumexp, argmax, correct, entropy]: [&'a mut Option<Array<'static>>;
            7],
    ) -> Result<Self> {
        Ok(RowResults {
            loss: if reduction == Reduction::None { slice_mut(loss)? } else { None },
            state: slice_mut(state)?,
            partials: slice_mut(partials)?,
            logsumexp: slice_mut(logsumexp)?,
            argmax: slice_mut(argmax)?,
            correct: slice_mut(correct)?,
            entropy: slice_mut(entropy)?,
        })
    }

    /// Splits those of the next rows off.
    pub fn take(&mut self, rows: usize) -> Self {
        RowResults {
            loss: take(&mut self.loss, rows),
            state: take(&mut self.state, 4 * rows),
            partials: take(&mut self.partials, WORDS * rows),
            logsumexp: take(&mut self.logsumexp, rows),
            argmax: take(&mut self.argmax, rows),
            correct: take(&mut self.correct, rows),
            entropy: take(&mut self.entropy, rows),
        }
    }
}

impl<'a, T: Stored> Losses<'a, T> {
    /// Those of an op's arguments, for rows of this shape: whether targets are classes, and what is asked.
    pub fn of(
        op: &CrossEntropy,
        args: &'a Args<Array<'_>>,
        shape: ClassShape,
        has_classes: bool,
        asked: Asked,
    ) -> Result<Self> {
        let first_class = op.first_class as usize;
        let here = first_class..first_class + shape.classes;
        let labels = match args.get(Role::Target) {
            Some(target) if has_classes => Some(Labels::of(target, op.ignore_index, here)?),
            _ => None,
        };
        let weight = slice_of::<f32>(args.get(Role::Weight))?;
        let (kept, weights) = match &labels {
            Some(labels) => labels.kept(weight),
            None => (shape.rows(), shape.rows() as f64),
        };
        let is_none = op.reduction == Reduction::None;
        let scalar = if is_none { None } else { slice_of::<f32>(args.get(Role::Upstream))? };
        let given = slice_of::<f32>(args.get(Role::Divisor))?.map(|divisor| f64::from(divisor[0]));
        let divisor = match op.reduction {
            Reduction::Mean => labels::divisor(given.unwrap_or(weights)),
            _ => 1.0,
        };
        let is_of_none = kept == 0 && given.is_none_or(|divisor| divisor == 0.0);
        let partials = match args.get(Role::Partials) {
            Some(partials) => Some((slice(partials)?, partials.shape()[1])),
            None => None,
        };
        let tiling = Tiling::of(shape);
        let classes = op.all_classes(shape.classes);
        let smoothing = (op.label_smoothing / classes as f64) as f32;
        let weight_of = |class: usize| weight.map_or(1.0, |weight| weight[class]);
        let form = Form {
            tiling,
            logits: Logits {
                scale: op.logit_scale as f32,
                softcap: op.softcap.map(|cap| cap as f32),
                z_loss: op.z_loss as f32,
            },
            has_classes,
            confidence: (1.0 - op.label_smoothing) as f32,
            smoothing,
            by_class: match &labels {
                _ if shape.rows() == 0 => vec![],
                Some(_) if smoothing == 0.0 => vec![],
                Some(_) => tiling.by_class(|class| smoothing * weight_of(class)),
                None => tiling.by_class(weight_of),
            },
            asked,
            first_class: first_class as u32,
        };
        Ok(Losses {
            form,
            labels,
            weight,
            upstream: if is_none { slice_of(args.get(Role::Upstream))? } else { None },
            state: slice_of(args.get(Role::State))?,
            partials,
            scale: scalar.map_or(1.0, |upstream| upstream[0]) / divisor as f32,
            reduction: op.reduction,
            divisor,
            weights,
            mean_of_none: (op.reduction == Reduction::Mean && is_of_none).then_some(op.empty_mean),
        })
    }

    /// Whether rows themselves are read, and not only what shards have told of them.
    pub fn reads_rows(&self) -> bool {
        self.form.asked.grad || self.partials.is_none()
    }

    /// Writes what is asked of all rows: the mean or the sum of losses whose sum is this, or a shard's
    /// divisor.
    pub fn write_total(&self, sum: f64, output: &mut Output<Array<'static>>) -> Result<()> {
        if let Some(to) = slice_mut::<f32>(output.place(Role::Divisor))? {
            to.fill(self.weights as f32);
        }
        if self.reduction == Reduction::None {
            return Ok(());
        }
        let loss = self.mean_of_none.unwrap_or_else(|| labels::mean(sum, self.divisor));
        let to = slice_mut::<f32>(output.place(Role::Loss))?;
        to.into_iter().for_each(|to| to.fill(loss as f32));
        Ok(())
    }
}

impl Losses<'_, f32> {
    /// Computes the losses of a block of rows, whose logits become their gradient if one is asked for. There
    /// are none where rows are not read. Returns the sum of the losses.
    pub fn of_block(&self, rows: Range<usize>, logits: &mut [f32], results: RowResults<'_>) -> f64 {
        let in_place = self.form.asked.grad;
        let (first, tiling) = (rows.start, self.form.tiling.of_block(rows.len(), in_place));
        let (input, grad) = if in_place { (None, Some(logits)) } else { (Some(&*logits), None) };
        Job { losses: self, tiling, first, input, probabilities: None }.run_all(grad, results)
    }
}

impl<T: Stored> Job<'_, T> {
    /// Computes all rows, and returns the sum of their losses.
    fn run_all(&self, grad: Option<&mut [T]>, mut results: RowResults<'_>) -> f64 {
        let tasks = self.tiling.tasks();
        let grads = self.tiling.pieces(grad, &tasks);
        let tasks: Vec<_> = tasks
            .into_iter()
            .zip(grads)
            .map(|(rows, grad)| Task { grad, results: results.take(rows.len()), rows })
            .collect();
        let run = |scratch: &mut Scratch, task| self.run(task, scratch);
        threads::run_with(tasks, || self.scratch(), run).iter().sum()
    }

    fn scratch(&self) -> Scratch {
        let tiling = self.tiling;
        let tile = |is_needed| if is_needed { tiling.memory(0.0) } else { vec![] };
        let has_cap = self.losses.form.logits.softcap.is_some();
        Scratch {
            logits: tile(true),
            grad: tile(true),
            extra: Extra {
                target_weights: tile(self.probabilities.is_some()),
                capped: tile(has_cap),
                slopes: tile(has_cap),
            },
        }
    }

    /// Computes a task, and returns the sum of its losses.
    fn run(&self, task: Task<'_, T>, scratch: &mut Scratch) -> f64 {
        let (tiling, form) = (self.tiling, &self.losses.form);
        let Task { rows: of_task, mut grad, mut results } = task;
        // one sum a lane, so that no addition waits for another
        let mut sums = [0.0; LANES];
        for rows in tiling.tiles(of_task.clone()) {
            let row = rows.start - of_task.start;
            let within = row..row + rows.len();
            let among_all = self.first + rows.start..self.first + rows.end;
            let per_row = self.losses.rows_of(&among_all);
            let Scratch { logits, grad: grad_copy, extra } = &mut *scratch;
            let is_ignored = per_row.kept[..rows.len()].iter().all(|kept| *kept == 0.0);
            if is_ignored && !form.asked.row_outputs {
                // neither the rows nor their upstream gradients are read
                tiling.write(grad.as_mut(), within.clone(), grad_copy, |grad| grad.fill(0.0));
                results.ignore(within);
                continue;
            }

            let reads_rows = self.losses.reads_rows();
            if let Some(probabilities) = self.probabilities.filter(|_| reads_rows) {
                // they become target weights in place
                let tile = tiling.load(probabilities, &rows, logits);
                extra.target_weights[..tile.len()].copy_from_slice(tile);
            }
            let input = match (self.input, &grad) {
                _ if !reads_rows => &[],
                (Some(input), _) => tiling.load(input, &rows, logits),
                (None, Some(grad)) => tiling.load_copy(grad, &within, logits),
                (None, None) => &[],
            };
            if form.asked.partials {
                let told = match self.losses.partials {
                    None => tiling.write::<T, _>(None, within.clone(), grad_copy, |to| {
                        vectorized!(form.tell(input, to, extra, rows.len(), &per_row))
                    }),
                    Some((partials, shards)) => {
                        let settings = &form.logits;
                        ShardPartials::merged(settings, partials, shards, &among_all)
                    }
                };
                results.tell(within, &told, |lane| {
                    form.asked.row_outputs || per_row.kept[lane] != 0.0
                });
                continue;
            }
            let state = self.losses.state.map(|state| (state, &among_all));
            let found = tiling.write(grad.as_mut(), within.clone(), grad_copy, |grad| {
                match self.losses.partials {
                    None => vectorized!(form.work(input, grad, extra, state, rows.len(), &per_row)),
                    Some((partials, shards)) => {
                        let settings = &form.logits;
                        vectorized!(form.work_of_shard(
                            input,
                            grad,
                            extra,
                            &ShardPartials::merged(settings, partials, shards, &among_all),
                            rows.len(),
                            &per_row
                        ))
                    }
                }
            });
            for (sum, &loss) in sums.iter_mut().zip(&found.loss[..rows.len()]) {
                *sum += f64::from(loss);
            }
            results.write(within, &found, self.losses.labels.as_ref(), among_all);
        }
        sums.iter().sum()
    }
}

impl RowResults<'_> {
    /// Writes what is found of rows that are all ignored.
    fn ignore(&mut self, rows: Range<usize>) {
        let state = 4 * rows.start..4 * rows.end;
        self.loss.iter_mut().for_each(|loss| loss[rows.clone()].fill(0.0));
        self.state.iter_mut().for_each(|kept| kept[state.clone()].fill(0.0));
        if let Some(partials) = &mut self.partials {
            let partials = &mut partials[WORDS * rows.start..WORDS * rows.end];
            partials.as_chunks_mut().0.fill(ShardPartials::packed_empty());
        }
    }

    /// Writes what a shard tells of the rows of a tile: nothing of one that is not told.
    fn tell(&mut self, rows: Range<usize>, told: &ShardPartials, is_told: impl Fn(usize) -> bool) {
        let Some(partials) = &mut self.partials else { return };
        let partials = &mut partials[WORDS * rows.start..WORDS * rows.end];
        for (lane, to) in partials.as_chunks_mut().0.iter_mut().enumerate() {
            *to = if is_told(lane) { told.pack(lane) } else { ShardPartials::packed_empty() };
        }
    }

    /// Writes what was found of the rows of a tile.
    #[inline(always)]
    fn write(
        &mut self,
        rows: Range<usize>,
        found: &Found,
        labels: Option<&Labels<'_>>,
        among_all: Range<usize>,
    ) {
        let count = rows.len();
        if let Some(loss) = &mut self.loss {
            loss[rows.clone()].copy_from_slice(&found.loss[..count]);
        }
        if let Some(state) = &mut self.state {
            for (lane, row) in rows.clone().enumerate() {
                let numbers = found.state.each_ref().map(|numbers| numbers[lane]);
                state[4 * row..][..4].copy_from_slice(&numbers);
            }
        }
        if let Some(logsumexp) = &mut self.logsumexp {
            logsumexp[rows.clone()].copy_from_slice(&found.logsumexp[..count]);
        }
        if let Some(argmax) = &mut self.argmax {
            argmax[rows.clone()].copy_from_slice(&found.argmax[..count]);
        }
        if let Some(entropy) = &mut self.entropy {
            entropy[rows.clone()].copy_from_slice(&found.entropy[..count]);
        }
        if let (Some(correct), Some(labels)) = (&mut self.correct, labels) {
            labels.each_class(among_all, |lane, label| {
                let is_label = label.is_some_and(|label| found.argmax[lane] == label as i32);
                correct[rows.start + lane] = i32::from(is_label);
            });
        }
    }
}

impl<T: Stored> Losses<'_, T> {
    /// What targets and upstream gradient say of the rows of a tile.
    fn rows_of(&self, rows: &Range<usize>) -> Rows {
        let mut per_row = Rows { scale: [self.scale; LANES], ..Rows::PLAIN };
        if let Some(upstream) = self.upstream {
            let upstream = &upstream[rows.clone()];
            per_row.scale.iter_mut().zip(upstream).for_each(|(to, from)| *to = from.to_f32());
        }
        let Some(labels) = &self.labels else { return per_row };
        labels.each_class(rows.clone(), |lane, label| match label {
            None => per_row.kept[lane] = 0.0,
            // of another shard's class, there is no target weight here
            Some(label) => {
                let Some(label) = labels.here(label) else { return };
                let weight = self.weight.map_or(1.0, |weight| weight[label]);
                per_row.label[lane] = label;
                per_row.target_weight[lane] = self.form.confidence * weight;
            }
        });
        per_row
    }
}

/// The numbers that losses are made of.
struct Prepared<'a> {
    /// The input, or what a cap makes of it, and then the slope of each.
    logits: &'a [f32],
    slopes: &'a [f32],
    /// Those of all classes, as [`row_stats`] takes them.
    target_weights: &'a [f32],
}

impl Form {
    /// Finds what there is to know of a tile's rows. Writes the gradient to `to`, or exponentials
    /// if no gradient is asked for.
    #[inline(always)]
    fn work(
        &self,
        input: &[f32],
        to: &mut [f32],
        extra: &mut Extra,
        state: Option<(&[f32], &Range<usize>)>,
        rows: usize,
        per_row: &Rows,
    ) -> Found {
        let (settings, tiling) = (&self.logits, &self.tiling);
        let (peaks, argmax) = self.peaks(input);
        let Prepared { logits, slopes, target_weights } = self.prepare(input, extra);
        let peaks = self.peaks_of(logits, peaks);
        let x = self.at_labels(logits, per_row, rows);
        let mut known = *per_row;
        let mut stats = match state {
            Some((state, rows)) => {
                let kept = kept_stats(state, rows);
                exponentials(settings, tiling, logits, to, &kept.m);
                // the target weights of labels are part of it already
                known.target_weight = [0.0; LANES];
                kept
            }
            None => row_stats(settings, tiling, logits, to, target_weights, peaks),
        };
        let results = stats.conclude(settings, &known, &x);
        let mut entropy_sum = [0.0; LANES];
        if self.asked.row_outputs {
            // the exponentials are the softmax times its denominator
            entropy_sum = margin_sums(settings, tiling, logits, to, &stats.m);
        }
        if self.asked.grad {
            self.gradient(&results.gradients, to, target_weights, slopes, per_row, rows);
        }
        self.found(&stats, &results, &argmax, &entropy_sum)
    }

    /// As [`Form::work`], of a shard's classes, where it is known what all classes of the rows come to. There
    /// is an input only if a gradient is asked for.
    #[inline(always)]
    fn work_of_shard(
        &self,
        input: &[f32],
        to: &mut [f32],
        extra: &mut Extra,
        merged: &ShardPartials,
        rows: usize,
        per_row: &Rows,
    ) -> Found {
        let mut stats = merged.sums.stats();
        let m = stats.m;
        // the target weights of labels are part of it already
        let known = Rows { target_weight: [0.0; LANES], ..*per_row };
        let results = stats.conclude(&self.logits, &known, &[0.0; LANES]);
        if self.asked.grad {
            let Prepared { logits, slopes, target_weights } = self.prepare(input, extra);
            exponentials(&self.logits, &self.tiling, logits, to, &m);
            self.gradient(&results.gradients, to, target_weights, slopes, per_row, rows);
        }
        self.found(&stats, &results, &merged.first_at_max, &merged.entropy_sum)
    }

    /// What a shard's classes of a tile's rows come to. Writes exponentials to `to`.
    #[inline(always)]
    fn tell(
        &self,
        input: &[f32],
        to: &mut [f32],
        extra: &mut Extra,
        rows: usize,
        per_row: &Rows,
    ) -> ShardPartials {
        let (settings, tiling) = (&self.logits, &self.tiling);
        let (peaks, mut first_at_max) = self.peaks(input);
        let Prepared { logits, target_weights, .. } = self.prepare(input, extra);
        let peaks = self.peaks_of(logits, peaks);
        let mut sums = row_partials(settings, tiling, logits, to, target_weights, peaks);
        let x = self.at_labels(logits, per_row, rows);
        sums.add_single_target(settings, &per_row.target_weight, &x);
        let mut entropy_sum = [0.0; LANES];
        if self.asked.row_outputs {
            entropy_sum = margin_sums(settings, tiling, logits, to, &sums.m);
            first_at_max = first_at_max.map(|class| class + self.first_class);
        }
        ShardPartials { sums, first_at_max, entropy_sum }
    }

    /// The largest numbers of the input, flags, and the first class at each where row outputs are asked for.
    #[inline(always)]
    fn peaks(&self, input: &[f32]) -> ((Lanes, [u32; LANES]), [u32; LANES]) {
        let (m, flags) = peaks(&self.tiling, input);
        let first = match self.asked.row_outputs {
            // of the input's numbers, because a cap makes ties of large logits
            true => first_at(&self.tiling, input, &m).map(|class| class as u32),
            false => [0; LANES],
        };
        ((m, flags), first)
    }

    /// The largest logits, from the largest numbers of the input.
    #[inline(always)]
    fn peaks_of(&self, logits: &[f32], (m, flags): (Lanes, [u32; LANES])) -> (Lanes, [u32; LANES]) {
        let m = if self.logits.softcap.is_some() { peaks(&self.tiling, logits).0 } else { m };
        (m, flags)
    }

    #[inline(always)]
    fn prepare<'a>(&'a self, input: &'a [f32], extra: &'a mut Extra) -> Prepared<'a> {
        let Extra { target_weights, capped, slopes } = extra;
        let target_weights = match self.has_classes {
            true => &self.by_class[..],
            false => {
                let target_weights = &mut target_weights[..input.len()];
                self.smooth(target_weights);
                &*target_weights
            }
        };
        let Some(softcap) = self.logits.softcap else {
            return Prepared { logits: input, slopes: &[], target_weights };
        };
        let (logits, slopes) = (&mut capped[..input.len()], &mut slopes[..input.len()]);
        cap(&self.logits, softcap, input, logits, slopes);
        Prepared { logits, slopes, target_weights }
    }

    /// What is written of rows.
    #[inline(always)]
    fn found(
        &self,
        stats: &RowStats,
        results: &Results,
        argmax: &[u32; LANES],
        entropy_sum: &Lanes,
    ) -> Found {
        let (mut entropy, mut classes) = ([0.0; LANES], [-1; LANES]);
        if self.asked.row_outputs {
            for lane in 0..LANES {
                entropy[lane] = results.log[lane] + entropy_sum[lane] * results.inverse[lane];
                classes[lane] = if stats.m[lane].is_nan() { -1 } else { argmax[lane] as i32 };
            }
        }
        let state = [stats.m, stats.denom_minus_1, stats.target_below, stats.target_at_max];
        let Results { loss, logsumexp, .. } = *results;
        Found { loss, state, logsumexp, argmax: classes, entropy }
    }

    /// The numbers of a tile at the labels.
    #[inline(always)]
    fn at_labels(&self, tile: &[f32], per_row: &Rows, rows: usize) -> Lanes {
        let mut numbers = [0.0; LANES];
        for row in 0..rows {
            numbers[row] = tile[self.tiling.index(row, per_row.label[row])];
        }
        numbers
    }

    /// `w[c] ((1 - label smoothing) t[c] + label smoothing / C)` in place of t.
    #[inline(always)]
    fn smooth(&self, tile: &mut [f32]) {
        for tile in tile.chunks_exact_mut(self.by_class.len()) {
            for (t, weight) in tile.iter_mut().zip(&self.by_class) {
                let smoothed = zero_wins_unless_nan(self.confidence, *t) + self.smoothing;
                *t = zero_wins_unless_nan(*weight, smoothed);
            }
        }
    }

    /// Writes the gradient over the exponentials.
    #[inline(always)]
    fn gradient(
        &self,
        gradients: &RowGradients,
        tile: &mut [f32],
        target_weights: &[f32],
        slopes: &[f32],
        per_row: &Rows,
        rows: usize,
    ) {
        let (tiling, scale) = (&self.tiling, self.logits.scale);
        // the gradient at labels is computed again, since they have a target weight of their own
        let e = self.at_labels(tile, per_row, rows);
        gradients.write(tiling, tile, target_weights, slopes, scale);
        if !self.has_classes {
            return;
        }
        let mut a = per_row.target_weight;
        if !target_weights.is_empty() {
            for row in 0..rows {
                // those of all classes are the same for every row, and there once if not by lane
                let all = if tiling.by_lane { row } else { 0 };
                a[row] += target_weights[tiling.index(all, per_row.label[row])];
            }
        }
        let slope = match slopes {
            [] => [scale; LANES],
            slopes => self.at_labels(slopes, per_row, rows),
        };
        let g = gradients.at(&e, &a, &slope);
        for row in 0..rows {
            tile[tiling.index(row, per_row.label[row])] = g[row];
        }
    }
}

/// The statistics that a forward pass has kept. Lanes past the rows repeat the last one.
#[inline(always)]
fn kept_stats(state: &[f32], rows: &Range<usize>) -> RowStats {
    let number = |i: usize| {
        std::array::from_fn(|lane| state[4 * (rows.start + lane.min(rows.len() - 1)) + i])
    };
    let m: Lanes = number(0);
    RowStats {
        m,
        denom_minus_1: number(1),
        target_below: number(2),
        target_at_max: number(3),
        margin_sum: [0.0; LANES],
        flags: m.map(|m| u32::from(m.is_nan()) * HAS_NAN_LOGIT),
    }
}
