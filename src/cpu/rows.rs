//! Cross entropy: losses of rows of classes.

use std::ops::Range;

use super::labels::{self, Labels};
use super::math::{LANES, Lanes, vectorized, zero_wins_unless_nan};
use super::row_state::{
    HAS_NAN_LOGIT, Logits, Results, RowGradients, RowStats, Rows, cap, exponentials, first_at,
    margin_sums, peaks, row_stats,
};
use super::storage::{Stored, slice, slice_mut, slice_of, take, with_stored};
use super::threads;
use super::tiles::{Piece, Tiling};
use crate::ops::{CrossEntropy, has_classes};
use crate::shape::ClassShape;
use crate::{Args, Array, Output, Reduction, Result, Role};

/// Computes [`CrossEntropy`] over arrays that the op's checks have passed.
pub(crate) fn cross_entropy(
    op: &CrossEntropy,
    args: &Args<Array<'_>>,
    output: &mut Output<Array<'static>>,
) -> Result<()> {
    with_stored!(args.input().dtype(), run::<_>(op, args, output))
}

/// What all tasks read. `T` is how inputs are stored.
struct Job<'a, T> {
    form: Form<'a>,
    input: &'a [T],
    /// Class targets, or else there are probabilities.
    labels: Option<Labels<'a>>,
    probabilities: Option<&'a [T]>,
    weight: Option<&'a [f32]>,
    /// One value a row.
    upstream: Option<&'a [T]>,
    /// What gradients are multiplied by: the scalar upstream gradient over the divisor. It is NaN
    /// where the weights of the rows that are kept sum to 0.
    scale: f32,
}

/// What the work on a tile depends on.
struct Form<'a> {
    tiling: Tiling,
    logits: Logits,
    has_classes: bool,
    /// `1 - label smoothing`, and `label smoothing / classes`.
    confidence: f32,
    smoothing: f32,
    /// With class targets the target weights that all classes get by label smoothing, empty without
    /// it; with probabilities the class weights.
    by_class: Vec<f32>,
    state: Option<&'a [f32]>,
    has_grad: bool,
    has_row_outputs: bool,
}

/// The rows of a task, and what it writes of them.
struct Task<'a, T> {
    rows: Range<usize>,
    grad: Option<Piece<'a, T>>,
    loss: Option<&'a mut [f32]>,
    state: Option<&'a mut [f32]>,
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
    let labels = match args.get(Role::Target) {
        Some(target) if has_classes(&args.layouts()) => Some(Labels::of(target, op.ignore_index)?),
        _ => None,
    };
    let weight = slice_of::<f32>(args.get(Role::Weight))?;
    let (kept, weights) = match &labels {
        Some(labels) => labels.kept(weight),
        None => (shape.rows(), shape.rows() as f64),
    };
    let is_none = op.reduction == Reduction::None;
    let scalar = if is_none { None } else { slice_of::<f32>(args.get(Role::Upstream))? };
    let divisor = match op.reduction {
        Reduction::Mean => labels::divisor(weights),
        _ => 1.0,
    };
    let tiling = Tiling::of(shape);
    let smoothing = (op.label_smoothing / shape.classes as f64) as f32;
    let weight_of = |class: usize| weight.map_or(1.0, |weight| weight[class]);
    let form = Form {
        tiling,
        logits: Logits {
            scale: op.logit_scale as f32,
            softcap: op.softcap.map(|cap| cap as f32),
            z_loss: op.z_loss as f32,
        },
        has_classes: labels.is_some(),
        confidence: (1.0 - op.label_smoothing) as f32,
        smoothing,
        by_class: match &labels {
            _ if shape.rows() == 0 => vec![],
            Some(_) if smoothing == 0.0 => vec![],
            Some(_) => tiling.by_class(|class| smoothing * weight_of(class)),
            None => tiling.by_class(weight_of),
        },
        state: slice_of(args.get(Role::State))?,
        has_grad: output.get(Role::Grad).is_some(),
        has_row_outputs: output.get(Role::LogSumExp).is_some(),
    };
    let job = Job {
        form,
        input: slice::<T>(args.input())?,
        probabilities: if labels.is_none() { slice_of(args.get(Role::Target))? } else { None },
        labels,
        weight,
        upstream: if is_none { slice_of(args.get(Role::Upstream))? } else { None },
        scale: scalar.map_or(1.0, |upstream| upstream[0]) / divisor as f32,
    };

    let has_loss = output.get(Role::Loss).is_some();
    let [to_loss, to_grad, to_state, to_logsumexp, to_argmax, to_correct, to_entropy] = output
        .places([
            Role::Loss,
            Role::Grad,
            Role::State,
            Role::LogSumExp,
            Role::Argmax,
            Role::Correct,
            Role::Entropy,
        ])?;
    let mut loss = if is_none { slice_mut::<f32>(to_loss)? } else { None };
    let mut state = slice_mut::<f32>(to_state)?;
    let mut logsumexp = slice_mut::<f32>(to_logsumexp)?;
    let mut argmax = slice_mut::<i32>(to_argmax)?;
    let mut correct = slice_mut::<i32>(to_correct)?;
    let mut entropy = slice_mut::<f32>(to_entropy)?;
    let tasks = tiling.tasks();
    let grads = tiling.pieces(slice_mut::<T>(to_grad)?, &tasks);
    let tasks: Vec<_> = tasks
        .into_iter()
        .zip(grads)
        .map(|(rows, grad)| Task {
            grad,
            loss: take(&mut loss, rows.len()),
            state: take(&mut state, 4 * rows.len()),
            logsumexp: take(&mut logsumexp, rows.len()),
            argmax: take(&mut argmax, rows.len()),
            correct: take(&mut correct, rows.len()),
            entropy: take(&mut entropy, rows.len()),
            rows,
        })
        .collect();
    let sums = threads::run_with(tasks, || job.scratch(), |scratch, task| job.run(task, scratch));

    if has_loss && !is_none {
        let mean_of_none = op.reduction == Reduction::Mean && kept == 0;
        let loss =
            if mean_of_none { op.empty_mean } else { labels::mean(sums.iter().sum(), divisor) };
        slice_mut::<f32>(to_loss)?.into_iter().for_each(|to| to.fill(loss as f32));
    }
    Ok(())
}

impl<T: Stored> Job<'_, T> {
    fn scratch(&self) -> Scratch {
        let tiling = self.form.tiling;
        let tile = |is_needed| if is_needed { tiling.memory(0.0) } else { vec![] };
        let has_cap = self.form.logits.softcap.is_some();
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
    fn run(&self, mut task: Task<'_, T>, scratch: &mut Scratch) -> f64 {
        let tiling = self.form.tiling;
        // one sum a lane, so that no addition waits for another
        let mut sums = [0.0; LANES];
        for rows in tiling.tiles(task.rows.clone()) {
            let row = rows.start - task.rows.start;
            let within = row..row + rows.len();
            let per_row = self.rows_of(&rows);
            let Scratch { logits, grad, extra } = &mut *scratch;
            let is_ignored = per_row.kept[..rows.len()].iter().all(|kept| *kept == 0.0);
            if is_ignored && !self.form.has_row_outputs {
                // neither the rows nor their upstream gradients are read
                tiling.write(task.grad.as_mut(), within.clone(), grad, |grad| grad.fill(0.0));
                task.loss.iter_mut().for_each(|loss| loss[within.clone()].fill(0.0));
                let state = 4 * within.start..4 * within.end;
                task.state.iter_mut().for_each(|kept| kept[state.clone()].fill(0.0));
                continue;
            }

            if let Some(probabilities) = self.probabilities {
                // they become target weights in place
                let tile = tiling.load(probabilities, &rows, logits);
                extra.target_weights[..tile.len()].copy_from_slice(tile);
            }
            let input = tiling.load(self.input, &rows, logits);
            let found = tiling.write(task.grad.as_mut(), within.clone(), grad, |grad| {
                vectorized!(self.form.work(input, grad, extra, &rows, &per_row))
            });
            let losses = &found.loss[..rows.len()];
            for (sum, &loss) in sums.iter_mut().zip(losses) {
                *sum += f64::from(loss);
            }
            if let Some(loss) = &mut task.loss {
                loss[within.clone()].copy_from_slice(losses);
            }
            if let Some(state) = &mut task.state {
                for (lane, row) in within.clone().enumerate() {
                    let numbers = found.state.each_ref().map(|numbers| numbers[lane]);
                    state[4 * row..][..4].copy_from_slice(&numbers);
                }
            }
            if let Some(logsumexp) = &mut task.logsumexp {
                logsumexp[within.clone()].copy_from_slice(&found.logsumexp[..rows.len()]);
            }
            if let Some(argmax) = &mut task.argmax {
                argmax[within.clone()].copy_from_slice(&found.argmax[..rows.len()]);
            }
            if let Some(entropy) = &mut task.entropy {
                entropy[within.clone()].copy_from_slice(&found.entropy[..rows.len()]);
            }
            if let Some(correct) = &mut task.correct {
                for (lane, row) in within.enumerate() {
                    let is_label = found.argmax[lane] == per_row.label[lane] as i32;
                    correct[row] = i32::from(is_label && per_row.kept[lane] != 0.0);
                }
            }
        }
        sums.iter().sum()
    }

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
            Some(label) => {
                let weight = self.weight.map_or(1.0, |weight| weight[label]);
                per_row.label[lane] = label;
                per_row.target_weight[lane] = self.form.confidence * weight;
            }
        });
        per_row
    }
}

impl Form<'_> {
    /// Finds what there is to know of a tile's rows. Writes the gradient to `to`, or exponentials
    /// if no gradient is asked for.
    #[inline(always)]
    fn work(
        &self,
        input: &[f32],
        to: &mut [f32],
        extra: &mut Extra,
        rows: &Range<usize>,
        per_row: &Rows,
    ) -> Found {
        let (settings, tiling) = (&self.logits, &self.tiling);
        let target_weights = match self.has_classes {
            true => &self.by_class[..],
            false => {
                let target_weights = &mut extra.target_weights[..input.len()];
                self.smooth(target_weights);
                &*target_weights
            }
        };

        let (mut m, flags) = peaks(tiling, input);
        let argmax = match self.has_row_outputs {
            // of the input's numbers, because a cap makes ties of large logits
            true => first_at(tiling, input, &m),
            false => [0; LANES],
        };
        let (mut logits, mut slopes) = (input, &[][..]);
        if let Some(softcap) = settings.softcap {
            let capped = &mut extra.capped[..input.len()];
            let derivatives = &mut extra.slopes[..input.len()];
            cap(settings, softcap, input, capped, derivatives);
            logits = capped;
            slopes = derivatives;
            m = peaks(tiling, logits).0;
        }
        let x = self.at_labels(logits, per_row, rows.len());
        let mut known = *per_row;
        let mut stats = match self.state {
            Some(state) => {
                let kept = kept_stats(state, rows);
                exponentials(settings, tiling, logits, to, &kept.m);
                // the target weights of labels are part of it already
                known.target_weight = [0.0; LANES];
                kept
            }
            None => row_stats(settings, tiling, logits, to, target_weights, (m, flags)),
        };
        let Results { loss, logsumexp, log, inverse, gradients } =
            stats.conclude(settings, &known, &x);
        let mut entropy = [0.0; LANES];
        if self.has_row_outputs {
            // the exponentials are the softmax times its denominator
            let sums = margin_sums(settings, tiling, logits, to, &stats.m);
            for lane in 0..LANES {
                entropy[lane] = log[lane] + sums[lane] * inverse[lane];
            }
        }
        if self.has_grad {
            self.gradient(&gradients, to, target_weights, slopes, per_row, rows.len());
        }
        let mut classes = [-1; LANES];
        if self.has_row_outputs {
            for lane in 0..LANES {
                classes[lane] = if stats.m[lane].is_nan() { -1 } else { argmax[lane] as i32 };
            }
        }
        let state = [stats.m, stats.denom_minus_1, stats.target_below, stats.target_at_max];
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
