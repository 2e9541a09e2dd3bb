//! Cross entropy: losses of rows of classes.

use std::ops::Range;

use fearless_simd::{Level, Simd, SimdBase, SimdMask, dispatch};
use rayon::prelude::*;

use super::labels::Labels;
use super::math::{LANES, Lanes, Mask, Vector, select, times};
use super::row_form::{Logits, Statistics, cap, capped, exponentials, first_at, peak, statistics};
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
    level: Level,
    tiling: Tiling,
    logits: Logits,
    input: &'a [T],
    /// Class targets; otherwise there are probabilities.
    labels: Option<Labels<'a>>,
    probabilities: Option<&'a [T]>,
    weight: Option<&'a [f32]>,
    /// `1 - label smoothing`, and `label smoothing / classes`.
    confidence: f32,
    smoothing: f32,
    /// With class targets what is spread over all classes, empty where nothing is; with
    /// probabilities the weights.
    by_class: Vec<Lanes>,
    state: Option<&'a [f32]>,
    /// One value a row.
    upstream: Option<&'a [T]>,
    /// What gradients are multiplied by: the scalar upstream gradient over the divisor. NaN where
    /// kept rows' weights sum to 0.
    factor: f32,
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
    let job = Job {
        level: Level::new(),
        tiling,
        logits: Logits {
            scale: op.logit_scale as f32,
            softcap: op.softcap.map(|cap| cap as f32),
            z_loss: op.z_loss as f32,
        },
        input: slice::<T>(&args.input)?,
        by_class: match &labels {
            Some(_) if smoothing == 0.0 => vec![],
            Some(_) => tiling.by_class(|class| smoothing * weight_of(class)),
            None => tiling.by_class(weight_of),
        },
        probabilities: if labels.is_none() { slice_of(&args.target)? } else { None },
        labels,
        weight,
        confidence: (1.0 - op.label_smoothing) as f32,
        smoothing,
        state: slice_of(&args.state)?,
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
        let tile = |is_needed| {
            let vectors = if is_needed { self.tiling.vectors() } else { 0 };
            vec![[0.0; LANES]; vectors]
        };
        Scratch {
            tile: tile(true),
            amounts: tile(self.probabilities.is_some()),
            slopes: tile(self.logits.softcap.is_some()),
        }
    }

    /// Computes a task; the sum of its losses.
    fn run(&self, mut task: Task<'_, T>, scratch: &mut Scratch) -> f64 {
        let tiling = self.tiling;
        let has_row_outputs = task.logsumexp.is_some();
        let mut sum = 0.0;
        for rows in tiling.tiles(task.rows.clone()) {
            let row = rows.start - task.rows.start;
            let within = row..row + rows.len();
            let marks = self.marks(&rows);
            if tiling.is_one_row && marks.kept[0] == 0.0 && !has_row_outputs {
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
            let has_grad = task.grad.is_some();
            let found = match tiling.is_one_row {
                true => dispatch!(self.level, simd => {
                    self.tile::<_, true>(simd, scratch, &rows, &marks, has_grad, has_row_outputs)
                }),
                false => dispatch!(self.level, simd => {
                    self.tile::<_, false>(simd, scratch, &rows, &marks, has_grad, has_row_outputs)
                }),
            };
            if let Some(grad) = &mut task.grad {
                tiling.store(&scratch.tile, &rows, row, grad);
            }
            sum += found.loss[..rows.len()].iter().copied().map(f64::from).sum::<f64>();
            if let Some(loss) = &mut task.loss {
                loss[within.clone()].copy_from_slice(&found.loss[..rows.len()]);
            }
            for (lane, row) in within.enumerate() {
                if let Some(state) = &mut task.state {
                    let numbers = found.state.each_ref().map(|numbers| numbers[lane]);
                    state[4 * row..][..4].copy_from_slice(&numbers);
                }
                if let Some(logsumexp) = &mut task.logsumexp {
                    logsumexp[row] = found.logsumexp[lane];
                }
                if let Some(argmax) = &mut task.argmax {
                    argmax[row] = found.argmax[lane];
                }
                if let Some(correct) = &mut task.correct {
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
        for lane in 0..if self.tiling.is_one_row { LANES } else { rows.len() } {
            let row = if self.tiling.is_one_row { rows.start } else { rows.start + lane };
            if let Some(upstream) = self.upstream {
                marks.factor[lane] = upstream[row].to_f32();
            }
            match self.labels.as_ref().map(|labels| labels.class(row)) {
                None => {}
                Some(None) => marks.kept[lane] = 0.0,
                Some(Some(label)) => {
                    let weight = self.weight.map_or(1.0, |weight| weight[label]);
                    marks.label[lane] = label;
                    marks.amount[lane] = self.confidence * weight;
                }
            }
        }
        marks
    }

    /// The numbers of a tile at the labels.
    #[inline(always)]
    fn at_labels(&self, tile: &[Lanes], label: &[usize; LANES]) -> Lanes {
        std::array::from_fn(|row| {
            let (vector, lane) = self.tiling.place(row, label[row]);
            tile[vector][lane]
        })
    }

    /// What there is to know of a tile's rows; the gradient takes the place of the logits.
    #[inline(always)]
    fn tile<S: Simd, const ONE_ROW: bool>(
        &self,
        simd: S,
        scratch: &mut Scratch,
        rows: &Range<usize>,
        marks: &Marks,
        has_grad: bool,
        has_row_outputs: bool,
    ) -> Found {
        let load = |lanes: &Lanes| Vector::load_array_ref(simd, lanes);
        let Scratch { tile, amounts, slopes } = scratch;
        let logits = &self.logits;
        let amounts = match self.probabilities {
            Some(_) => {
                self.smooth(simd, amounts);
                &amounts[..]
            }
            None => &self.by_class[..],
        };

        let mut picked = load(&self.at_labels(tile, &marks.label));
        let (mut m, is_bad) = peak::<S, ONE_ROW>(simd, tile);
        let argmax = match has_row_outputs {
            // of the input itself: a cap makes ties of large logits
            true => first_at::<S, ONE_ROW>(simd, tile, m),
            false => [0; LANES],
        };
        if let Some(softcap) = logits.softcap {
            cap(simd, logits, softcap, tile, slopes);
            picked = capped(logits, softcap, picked);
            m = peak::<S, ONE_ROW>(simd, tile).0;
        }
        let statistics = match self.state {
            Some(state) => {
                let kept = self.kept_statistics(simd, state, rows);
                exponentials(simd, logits, tile, kept.m);
                kept
            }
            None => {
                let mut found = statistics::<S, ONE_ROW>(simd, logits, tile, amounts, (m, is_bad));
                if self.labels.is_some() {
                    found.add_amount(logits, load(&marks.amount), picked);
                }
                found
            }
        };
        let is_kept = load(&marks.kept).simd_eq(1.0);
        if has_grad {
            self.gradient(simd, &statistics, tile, amounts, slopes, marks, rows.len());
        }

        let Statistics { s, rest, top, is_nan, .. } = statistics;
        let is_nan_lane = is_nan.to_bitmask();
        let argmax = std::array::from_fn(|lane| match is_nan_lane >> lane & 1 {
            0 => argmax[lane] as i32,
            _ => -1,
        });
        Found {
            loss: select(is_kept, statistics.loss(logits), 0.0).into(),
            state: [select(is_nan, f32::NAN, statistics.m), s, rest, top].map(Into::into),
            logsumexp: statistics.logsumexp(logits).into(),
            argmax,
        }
    }

    /// `w[c] ((1 - label smoothing) t[c] + label smoothing / C)` in place of t.
    #[inline(always)]
    fn smooth<S: Simd>(&self, simd: S, tile: &mut [Lanes]) {
        let load = |lanes: &Lanes| Vector::load_array_ref(simd, lanes);
        let confidence = Vector::splat(simd, self.confidence);
        for (t, weight) in tile.iter_mut().zip(&self.by_class) {
            *t = times(load(weight), times(confidence, load(t)) + self.smoothing).into();
        }
    }

    /// What a forward pass has kept.
    #[inline(always)]
    fn kept_statistics<S: Simd>(
        &self,
        simd: S,
        state: &[f32],
        rows: &Range<usize>,
    ) -> Statistics<S> {
        let number = |i: usize| {
            let of_row = |lane: usize| state[4 * (rows.start + lane.min(rows.len() - 1)) + i];
            Vector::load_array(simd, std::array::from_fn(of_row))
        };
        let m = number(0);
        Statistics {
            m,
            s: number(1),
            rest: number(2),
            top: number(3),
            gap: Vector::splat(simd, 0.0),
            is_nan: !m.simd_eq(m),
            costs: [Mask::splat(simd, false); 2],
        }
    }

    /// Writes the gradient over the exponentials.
    #[expect(clippy::too_many_arguments)] // the columns of a tile, each its own array
    #[inline(always)]
    fn gradient<S: Simd>(
        &self,
        simd: S,
        statistics: &Statistics<S>,
        tile: &mut [Lanes],
        amounts: &[Lanes],
        slopes: &[Lanes],
        marks: &Marks,
        rows: usize,
    ) {
        let load = |lanes: &Lanes| Vector::load_array_ref(simd, lanes);
        let form = statistics.gradient(&self.logits);
        let factor = load(&marks.factor);
        let is_kept = load(&marks.kept).simd_eq(1.0);
        let is_number = is_kept & factor.simd_eq(factor) & !statistics.is_nan;
        let filling = select(is_kept, f32::NAN, 0.0);
        let scaled = |g: Vector<S>, slope: Vector<S>| -> Lanes {
            select(is_number, times(g * slope, factor), filling).into()
        };
        let zero = Vector::splat(simd, 0.0);
        let slope = Vector::splat(simd, self.logits.scale);

        // at labels the amounts are others
        let label = &marks.label;
        let at_labels = |tile: &[Lanes], otherwise: Vector<S>| match tile {
            [] => otherwise,
            tile => load(&self.at_labels(tile, label)),
        };
        let amount = at_labels(amounts, zero) + load(&marks.amount);
        let picked = form.at(at_labels(tile, zero), amount);
        let picked = scaled(picked, at_labels(slopes, slope));

        for (i, x) in tile.iter_mut().enumerate() {
            let a = amounts.get(i).map_or(zero, load);
            let slope = slopes.get(i).map_or(slope, load);
            *x = scaled(form.at(load(x), a), slope);
        }
        if self.labels.is_some() {
            for row in 0..rows {
                let (vector, lane) = self.tiling.place(row, label[row]);
                tile[vector][lane] = picked[row];
            }
        }
    }
}
