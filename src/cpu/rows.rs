//! Cross entropy: losses of rows of classes.

use std::ops::Range;

use super::labels::Labels;
use super::math::{LANES, Lanes, times, vectorized};
use super::row_form::{
    Gradients, IS_NAN, Logits, Marks, Results, Statistics, cap, exponentials, first_at, peaks,
    statistics,
};
use super::storage::{Stored, slice, slice_mut, slice_of, take, with_stored};
use super::threads;
use super::tiles::{Piece, Tiling};
use crate::ops::{CrossEntropy, has_classes};
use crate::shape::ClassShape;
use crate::{Args, Array, Output, Reduction, Result, Role};

/// Over arrays that the op's checks have passed.
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
    /// Class targets; otherwise there are probabilities.
    labels: Option<Labels<'a>>,
    probabilities: Option<&'a [T]>,
    weight: Option<&'a [f32]>,
    /// One value a row.
    upstream: Option<&'a [T]>,
    /// What gradients are multiplied by: the scalar upstream gradient over the divisor. NaN where
    /// kept rows' weights sum to 0.
    factor: f32,
}

/// What the work on a tile depends on.
struct Form<'a> {
    tiling: Tiling,
    logits: Logits,
    has_classes: bool,
    /// `1 - label smoothing`, and `label smoothing / classes`.
    confidence: f32,
    smoothing: f32,
    /// With class targets what is spread over all classes, empty where nothing is; with
    /// probabilities the weights.
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
}

/// Memory of a thread: a tile each, where it is needed.
struct Scratch {
    logits: Vec<f32>,
    /// The exponentials, then the gradient.
    grad: Vec<f32>,
    extra: Extra,
}

/// What only some settings need.
struct Extra {
    /// The amounts of probability targets.
    amounts: Vec<f32>,
    /// Capped logits, and their derivatives by the input.
    capped: Vec<f32>,
    slopes: Vec<f32>,
}

/// What was found of a tile's rows.
struct Found {
    loss: Lanes,
    state: [Lanes; 4],
    logsumexp: Lanes,
    argmax: [i32; LANES],
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
        Reduction::Mean if weights == 0.0 => f64::NAN,
        Reduction::Mean => weights,
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
        factor: scalar.map_or(1.0, |upstream| upstream[0]) / divisor as f32,
    };

    let has_loss = output.get(Role::Loss).is_some();
    let roles = [Role::Loss, Role::Grad, Role::State, Role::LogSumExp, Role::Argmax, Role::Correct];
    let [to_loss, to_grad, to_state, to_logsumexp, to_argmax, to_correct] = output.places(roles)?;
    let mut loss = if is_none { slice_mut::<f32>(to_loss)? } else { None };
    let mut state = slice_mut::<f32>(to_state)?;
    let mut logsumexp = slice_mut::<f32>(to_logsumexp)?;
    let mut argmax = slice_mut::<i32>(to_argmax)?;
    let mut correct = slice_mut::<i32>(to_correct)?;
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
            rows,
        })
        .collect();
    let sums = threads::run_with(tasks, || job.scratch(), |scratch, task| job.run(task, scratch));

    if has_loss && !is_none {
        let mean_of_none = op.reduction == Reduction::Mean && kept == 0;
        let loss = if mean_of_none { op.empty_mean } else { sums.iter().sum::<f64>() / divisor };
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
                amounts: tile(self.probabilities.is_some()),
                capped: tile(has_cap),
                slopes: tile(has_cap),
            },
        }
    }

    /// Computes a task; the sum of its losses.
    fn run(&self, mut task: Task<'_, T>, scratch: &mut Scratch) -> f64 {
        let tiling = self.form.tiling;
        // a sum a lane, so that none waits for another
        let mut sums = [0.0; LANES];
        for rows in tiling.tiles(task.rows.clone()) {
            let row = rows.start - task.rows.start;
            let within = row..row + rows.len();
            let marks = self.marks(&rows);
            let Scratch { logits, grad, extra } = &mut *scratch;
            let is_ignored = marks.kept[..rows.len()].iter().all(|kept| *kept == 0.0);
            if is_ignored && !self.form.has_row_outputs {
                // neither the rows nor their upstream are looked at
                tiling.write(task.grad.as_mut(), within.clone(), grad, |grad| grad.fill(0.0));
                task.loss.iter_mut().for_each(|loss| loss[within.clone()].fill(0.0));
                let state = 4 * within.start..4 * within.end;
                task.state.iter_mut().for_each(|kept| kept[state.clone()].fill(0.0));
                continue;
            }

            if let Some(probabilities) = self.probabilities {
                // amounts are made of them in place
                let amounts = &mut extra.amounts;
                let tile = tiling.load(probabilities, &rows, logits);
                amounts[..tile.len()].copy_from_slice(tile);
            }
            let input = tiling.load(self.input, &rows, logits);
            let found = tiling.write(task.grad.as_mut(), within.clone(), grad, |grad| {
                vectorized!(self.form.work(input, grad, extra, &rows, &marks))
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
            if let Some(correct) = &mut task.correct {
                for (lane, row) in within.enumerate() {
                    let is_label = found.argmax[lane] == marks.label[lane] as i32;
                    correct[row] = i32::from(is_label && marks.kept[lane] != 0.0);
                }
            }
        }
        sums.iter().sum()
    }

    fn marks(&self, rows: &Range<usize>) -> Marks {
        let mut marks = Marks { factor: [self.factor; LANES], ..Marks::NONE };
        if let Some(upstream) = self.upstream {
            let upstream = &upstream[rows.clone()];
            marks.factor.iter_mut().zip(upstream).for_each(|(to, from)| *to = from.to_f32());
        }
        let Some(labels) = &self.labels else { return marks };
        labels.each_class(rows.clone(), |lane, label| match label {
            None => marks.kept[lane] = 0.0,
            Some(label) => {
                let weight = self.weight.map_or(1.0, |weight| weight[label]);
                marks.label[lane] = label;
                marks.amount[lane] = self.form.confidence * weight;
            }
        });
        marks
    }
}

impl Form<'_> {
    /// What there is to know of a tile's rows. The gradient is written to `to`; exponentials are, if
    /// it is not asked for.
    #[inline(always)]
    fn work(
        &self,
        input: &[f32],
        to: &mut [f32],
        extra: &mut Extra,
        rows: &Range<usize>,
        marks: &Marks,
    ) -> Found {
        let (settings, tiling) = (&self.logits, &self.tiling);
        let amounts = match self.has_classes {
            true => &self.by_class[..],
            false => {
                let amounts = &mut extra.amounts[..input.len()];
                self.smooth(amounts);
                &*amounts
            }
        };

        let (mut m, flags) = peaks(tiling, input);
        let argmax = match self.has_row_outputs {
            // of the input itself: a cap makes ties of large logits
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
        let picked = self.at_labels(logits, marks, rows.len());
        let mut known = *marks;
        let mut found = match self.state {
            Some(state) => {
                let kept = kept_statistics(state, rows);
                exponentials(settings, tiling, logits, to, &kept.m);
                // amounts at labels are part of it already
                known.amount = [0.0; LANES];
                kept
            }
            None => statistics(settings, tiling, logits, to, amounts, (m, flags)),
        };
        let Results { loss, logsumexp, gradients, .. } = found.conclude(settings, &known, &picked);
        if self.has_grad {
            self.gradient(&gradients, to, amounts, slopes, marks, rows.len());
        }
        let mut classes = [-1; LANES];
        if self.has_row_outputs {
            for lane in 0..LANES {
                classes[lane] = if found.m[lane].is_nan() { -1 } else { argmax[lane] as i32 };
            }
        }
        let state = [found.m, found.s, found.rest, found.top];
        Found { loss, state, logsumexp, argmax: classes }
    }

    /// The numbers of a tile at the labels.
    #[inline(always)]
    fn at_labels(&self, tile: &[f32], marks: &Marks, rows: usize) -> Lanes {
        let mut numbers = [0.0; LANES];
        for row in 0..rows {
            numbers[row] = tile[self.tiling.place(row, marks.label[row])];
        }
        numbers
    }

    /// `w[c] ((1 - label smoothing) t[c] + label smoothing / C)` in place of t.
    #[inline(always)]
    fn smooth(&self, tile: &mut [f32]) {
        for tile in tile.chunks_exact_mut(self.by_class.len()) {
            for (t, weight) in tile.iter_mut().zip(&self.by_class) {
                let smoothed = times(self.confidence, *t) + self.smoothing;
                *t = times(*weight, smoothed);
            }
        }
    }

    /// Writes the gradient over the exponentials.
    #[inline(always)]
    fn gradient(
        &self,
        gradients: &Gradients,
        tile: &mut [f32],
        amounts: &[f32],
        slopes: &[f32],
        marks: &Marks,
        rows: usize,
    ) {
        let (tiling, scale) = (&self.tiling, self.logits.scale);
        // at labels the amounts are others
        let e = self.at_labels(tile, marks, rows);
        gradients.write(tiling, tile, amounts, slopes, scale);
        if !self.has_classes {
            return;
        }
        let mut amount = marks.amount;
        if !amounts.is_empty() {
            for row in 0..rows {
                // of all rows alike
                let all = if tiling.by_lane { row } else { 0 };
                amount[row] += amounts[tiling.place(all, marks.label[row])];
            }
        }
        let slope = match slopes {
            [] => [scale; LANES],
            slopes => self.at_labels(slopes, marks, rows),
        };
        let picked = gradients.at(&e, &amount, &slope);
        for row in 0..rows {
            tile[tiling.place(row, marks.label[row])] = picked[row];
        }
    }
}

/// What a forward pass has kept. Lanes past the rows repeat the last one.
#[inline(always)]
fn kept_statistics(state: &[f32], rows: &Range<usize>) -> Statistics {
    let number = |i: usize| {
        std::array::from_fn(|lane| state[4 * (rows.start + lane.min(rows.len() - 1)) + i])
    };
    let m: Lanes = number(0);
    Statistics {
        m,
        s: number(1),
        rest: number(2),
        top: number(3),
        gap: [0.0; LANES],
        flags: m.map(|m| u32::from(m.is_nan()) * IS_NAN),
    }
}
