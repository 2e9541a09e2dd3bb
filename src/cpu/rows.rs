//! Cross entropy: losses of rows of classes.

use std::ops::Range;

use rayon::prelude::*;

use super::labels::Labels;
use super::math::{LANES, Lanes, select, times, vectorized};
use super::row_form::{
    IS_NAN, Logits, RowGradients, Statistics, cap, capped, exponentials, first_at, peak, statistics,
};
use super::storage::{Stored, slice, slice_mut, slice_of, take, with_stored};
use super::tiles::{Piece, Tiling};
use crate::ops::{CrossEntropy, has_classes};
use crate::shape::ClassShape;
use crate::{Args, Array, Output, Reduction, Result};

/// Over arrays that the op's checks have passed.
pub(crate) fn cross_entropy(
    op: &CrossEntropy,
    args: &Args<Array<'_>>,
    output: &mut Output<Array<'static>>,
) -> Result<()> {
    with_stored!(args.input.dtype(), run::<_>(op, args, output))
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
    by_class: Vec<Lanes>,
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

/// Memory of a thread.
struct Scratch {
    tile: Vec<Lanes>,
    /// The amounts of probability targets.
    amounts: Vec<Lanes>,
    /// The derivatives of capped logits by the input.
    slopes: Vec<Lanes>,
}

/// What targets and upstream say of a tile's rows: of one row, the same in every lane.
struct Marks {
    label: [usize; LANES],
    /// What multiplies `-ln p` at the label, beyond what is spread over all classes.
    amount: Lanes,
    factor: Lanes,
    /// 1 where the row is kept, 0 where it is ignored.
    kept: Lanes,
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
    let shape = ClassShape::of(args.input.shape())?;
    let labels = match &args.target {
        Some(target) if has_classes(&args.layouts()) => Some(Labels::of(target, op.ignore_index)?),
        _ => None,
    };
    let weight = slice_of::<f32>(&args.weight)?;
    let (kept, weights) = match &labels {
        Some(labels) => labels.kept(weight),
        None => (shape.rows(), shape.rows() as f64),
    };
    let is_none = op.reduction == Reduction::None;
    let scalar = if is_none { None } else { slice_of::<f32>(&args.upstream)? };
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
            Some(_) if smoothing == 0.0 => vec![],
            Some(_) => tiling.by_class(|class| smoothing * weight_of(class)),
            None => tiling.by_class(weight_of),
        },
        state: slice_of(&args.state)?,
        has_grad: output.grad.is_some(),
        has_row_outputs: output.logsumexp.is_some(),
    };
    let job = Job {
        form,
        input: slice::<T>(&args.input)?,
        probabilities: if labels.is_none() { slice_of(&args.target)? } else { None },
        labels,
        weight,
        upstream: if is_none { slice_of(&args.upstream)? } else { None },
        factor: scalar.map_or(1.0, |upstream| upstream[0]) / divisor as f32,
    };

    let has_loss = output.loss.is_some();
    let mut loss = if is_none { slice_mut::<f32>(&mut output.loss)? } else { None };
    let mut state = slice_mut::<f32>(&mut output.state)?;
    let mut logsumexp = slice_mut::<f32>(&mut output.logsumexp)?;
    let mut argmax = slice_mut::<i32>(&mut output.argmax)?;
    let mut correct = slice_mut::<i32>(&mut output.correct)?;
    let tasks = tiling.tasks();
    let grads = tiling.pieces(slice_mut::<T>(&mut output.grad)?, &tasks);
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
    let sums: Vec<f64> = tasks
        .into_par_iter()
        .map_init(|| job.scratch(), |scratch, task| job.run(task, scratch))
        .collect();

    if has_loss && !is_none {
        let mean_of_none = op.reduction == Reduction::Mean && kept == 0;
        let loss = if mean_of_none { op.empty_mean } else { sums.iter().sum::<f64>() / divisor };
        slice_mut::<f32>(&mut output.loss)?.into_iter().for_each(|to| to.fill(loss as f32));
    }
    Ok(())
}

impl<T: Stored> Job<'_, T> {
    fn scratch(&self) -> Scratch {
        let vectors = |is_needed| if is_needed { self.form.tiling.vectors() } else { 0 };
        let tile = |is_needed| vec![[0.0; LANES]; vectors(is_needed)];
        Scratch {
            tile: tile(true),
            amounts: tile(self.probabilities.is_some()),
            slopes: tile(self.form.logits.softcap.is_some()),
        }
    }

    /// Computes a task; the sum of its losses.
    fn run(&self, mut task: Task<'_, T>, scratch: &mut Scratch) -> f64 {
        let tiling = self.form.tiling;
        let mut sum = 0.0;
        for rows in tiling.tiles(task.rows.clone()) {
            let row = rows.start - task.rows.start;
            let within = row..row + rows.len();
            let marks = self.marks(&rows);
            if tiling.is_one_row && marks.kept[0] == 0.0 && !self.form.has_row_outputs {
                // neither the row nor its upstream is looked at
                task.grad.iter_mut().for_each(|grad| tiling.fill(0.0, row, grad));
                task.loss.iter_mut().for_each(|loss| loss[row] = 0.0);
                task.state.iter_mut().for_each(|state| state[4 * row..][..4].fill(0.0));
                continue;
            }

            tiling.load(self.input, &rows, f32::NEG_INFINITY, &mut scratch.tile);
            if let Some(probabilities) = self.probabilities {
                tiling.load(probabilities, &rows, 0.0, &mut scratch.amounts);
            }
            let found = self.form.work(scratch, &rows, &marks);
            if let Some(grad) = &mut task.grad {
                tiling.store(&scratch.tile, &rows, row, grad);
            }
            let losses = &found.loss[..rows.len()];
            sum += losses.iter().copied().map(f64::from).sum::<f64>();
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
        sum
    }

    fn marks(&self, rows: &Range<usize>) -> Marks {
        let mut marks = Marks {
            label: [0; LANES],
            amount: [0.0; LANES],
            factor: [self.factor; LANES],
            kept: [1.0; LANES],
        };
        for (lane, row) in rows.clone().enumerate() {
            if let Some(upstream) = self.upstream {
                marks.factor[lane] = upstream[row].to_f32();
            }
            match self.labels.as_ref().map(|labels| labels.class(row)) {
                None => {}
                Some(None) => marks.kept[lane] = 0.0,
                Some(Some(label)) => {
                    let weight = self.weight.map_or(1.0, |weight| weight[label]);
                    marks.label[lane] = label;
                    marks.amount[lane] = self.form.confidence * weight;
                }
            }
        }
        if self.form.tiling.is_one_row {
            marks = Marks {
                label: [marks.label[0]; LANES],
                amount: [marks.amount[0]; LANES],
                factor: [marks.factor[0]; LANES],
                kept: [marks.kept[0]; LANES],
            };
        }
        marks
    }
}

impl Form<'_> {
    /// What there is to know of a tile's rows; the gradient takes the place of the logits.
    fn work(&self, scratch: &mut Scratch, rows: &Range<usize>, marks: &Marks) -> Found {
        match self.tiling.is_one_row {
            true => vectorized!(self.tile::<true>(scratch, rows, marks)),
            false => vectorized!(self.tile::<false>(scratch, rows, marks)),
        }
    }

    #[inline(always)]
    fn tile<const ONE_ROW: bool>(
        &self,
        scratch: &mut Scratch,
        rows: &Range<usize>,
        marks: &Marks,
    ) -> Found {
        let Scratch { tile, amounts, slopes } = scratch;
        let logits = &self.logits;
        let amounts = match self.has_classes {
            true => &self.by_class[..],
            false => {
                self.smooth(amounts);
                &amounts[..]
            }
        };

        let mut picked = self.at_labels(tile, marks);
        let mut peak_of_input = peak::<ONE_ROW>(tile);
        let argmax = match self.has_row_outputs {
            // of the input itself: a cap makes ties of large logits
            true => first_at::<ONE_ROW>(tile, &peak_of_input.0),
            false => [0; LANES],
        };
        if let Some(softcap) = logits.softcap {
            cap(logits, softcap, tile, slopes);
            picked = picked.map(
                #[inline(always)]
                |x| capped(logits, softcap, x),
            );
            peak_of_input.0 = peak::<ONE_ROW>(tile).0;
        }
        let statistics = match self.state {
            Some(state) => {
                let kept = kept_statistics(state, rows);
                exponentials(logits, tile, &kept.m);
                kept
            }
            None => {
                let mut found = statistics::<ONE_ROW>(logits, tile, amounts, peak_of_input);
                if self.has_classes {
                    found.add_amounts(logits, &marks.amount, &picked);
                }
                found
            }
        };
        if self.has_grad {
            self.gradient(&statistics, tile, amounts, slopes, marks, rows.len());
        }

        let Statistics { m, s, rest, top, .. } = statistics;
        let mut found = Found {
            loss: [0.0; LANES],
            state: [m, s, rest, top],
            logsumexp: [0.0; LANES],
            argmax: [-1; LANES],
        };
        for lane in 0..LANES {
            let row = statistics.row(lane);
            let is_nan = row.flags & IS_NAN != 0;
            found.loss[lane] = select(marks.kept[lane] == 0.0, 0.0, row.loss(logits));
            found.state[0][lane] = select(is_nan, f32::NAN, row.m);
        }
        if self.has_row_outputs {
            for lane in 0..LANES {
                let row = statistics.row(lane);
                found.logsumexp[lane] = row.logsumexp(logits);
                found.argmax[lane] = if row.flags & IS_NAN != 0 { -1 } else { argmax[lane] as i32 };
            }
        }
        found
    }

    /// The numbers of a tile at the labels.
    #[inline(always)]
    fn at_labels(&self, tile: &[Lanes], marks: &Marks) -> Lanes {
        let mut numbers = [0.0; LANES];
        for row in 0..LANES {
            let (vector, lane) = self.tiling.place(row, marks.label[row]);
            numbers[row] = tile[vector][lane];
        }
        numbers
    }

    /// `w[c] ((1 - label smoothing) t[c] + label smoothing / C)` in place of t.
    #[inline(always)]
    fn smooth(&self, tile: &mut [Lanes]) {
        for (t, weight) in tile.iter_mut().zip(&self.by_class) {
            for lane in 0..LANES {
                let smoothed = times(self.confidence, t[lane]) + self.smoothing;
                t[lane] = times(weight[lane], smoothed);
            }
        }
    }

    /// Writes the gradient over the exponentials.
    #[inline(always)]
    fn gradient(
        &self,
        statistics: &Statistics,
        tile: &mut [Lanes],
        amounts: &[Lanes],
        slopes: &[Lanes],
        marks: &Marks,
        rows: usize,
    ) {
        let mut scaled = ScaledGradients {
            of_logits: statistics.gradient(&self.logits),
            factor: marks.factor,
            filling: [1.0; LANES],
        };
        for lane in 0..LANES {
            let is_nan = (statistics.flags[lane] & IS_NAN != 0) | marks.factor[lane].is_nan();
            let of_kept = select(is_nan, f32::NAN, 1.0);
            scaled.filling[lane] = select(marks.kept[lane] == 0.0, 0.0, of_kept);
        }

        // at labels the amounts are others
        let zeros = [0.0; LANES];
        let scales = [self.logits.scale; LANES];
        let e = self.at_labels(tile, marks);
        let spread = if amounts.is_empty() { zeros } else { self.at_labels(amounts, marks) };
        let slope = if slopes.is_empty() { scales } else { self.at_labels(slopes, marks) };
        let mut picked = zeros;
        for lane in 0..LANES {
            picked[lane] = scaled.at(lane, e[lane], spread[lane] + marks.amount[lane], slope[lane]);
        }

        if amounts.is_empty() && slopes.is_empty() {
            for x in tile.iter_mut() {
                for lane in 0..LANES {
                    x[lane] = scaled.at(lane, x[lane], 0.0, scales[lane]);
                }
            }
        } else {
            for (i, x) in tile.iter_mut().enumerate() {
                let a = amounts.get(i).unwrap_or(&zeros);
                let slope = slopes.get(i).unwrap_or(&scales);
                for lane in 0..LANES {
                    x[lane] = scaled.at(lane, x[lane], a[lane], slope[lane]);
                }
            }
        }
        if self.has_classes {
            for row in 0..rows {
                let (vector, lane) = self.tiling.place(row, marks.label[row]);
                tile[vector][lane] = picked[row];
            }
        }
    }
}

/// The gradients of a tile's rows by the input.
struct ScaledGradients {
    of_logits: RowGradients,
    factor: Lanes,
    /// What stands in rows that are ignored, or not numbers; 1 for others.
    filling: Lanes,
}

impl ScaledGradients {
    /// As [`RowGradients::at`], where the logit's derivative by the input is `slope`.
    #[inline(always)]
    fn at(&self, lane: usize, e: f32, a: f32, slope: f32) -> f32 {
        let g = times(self.of_logits.at(lane, e, a) * slope, self.factor[lane]);
        select(self.filling[lane] == 1.0, g, self.filling[lane])
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
