//! Softmax and log-softmax: maps of rows of classes.

use std::ops::Range;

use super::math::{LANES, Lanes, select, sum_lanes, vectorized, zero_wins, zero_wins_unless_nan};
use super::row_state::{Logits, Results, Rows, by_row, first_at, peaks, row_stats};
use super::storage::{Stored, slice, slice_mut, slice_of, with_stored};
use super::threads;
use super::tiles::{Piece, Tiling, map};
use crate::ops::rows_along;
use crate::{Args, Array, Output, Result, Role};

/// Computes softmax over arrays that the op's checks have passed.
pub(crate) fn softmax(
    dim: i64,
    args: &Args<Array<'_>>,
    output: &mut Output<Array<'static>>,
) -> Result<()> {
    with_stored!(args.input().dtype(), run::<_>(Map::Softmax, dim, args, output))
}

/// Computes log-softmax over arrays that the op's checks have passed.
pub(crate) fn log_softmax(
    dim: i64,
    args: &Args<Array<'_>>,
    output: &mut Output<Array<'static>>,
) -> Result<()> {
    with_stored!(args.input().dtype(), run::<_>(Map::LogSoftmax, dim, args, output))
}

#[derive(Clone, Copy, PartialEq)]
enum Map {
    Softmax,
    LogSoftmax,
}

/// What all tasks read.
struct Job<'a, T> {
    map: Map,
    tiling: Tiling,
    input: &'a [T],
    /// Where there is none, it is 1 everywhere.
    upstream: Option<&'a [T]>,
}

/// The rows of a task, and what it writes of them.
struct Task<'a, T> {
    rows: Range<usize>,
    output: Option<Piece<'a, T>>,
    grad: Option<Piece<'a, T>>,
}

/// A thread's memory for one tile of each tensor.
struct Scratch {
    logits: Vec<f32>,
    output: Vec<f32>,
    /// The exponentials, then the gradient.
    grad: Vec<f32>,
    upstream: Vec<f32>,
}

fn run<T: Stored>(
    map: Map,
    dim: i64,
    args: &Args<Array<'_>>,
    output: &mut Output<Array<'static>>,
) -> Result<()> {
    let shape = rows_along(args.input().shape(), dim)?;
    if shape.classes == 0 {
        return Ok(());
    }
    let tiling = Tiling::of(shape);
    let job = Job {
        map,
        tiling,
        input: slice::<T>(args.input())?,
        upstream: slice_of(args.get(Role::Upstream))?,
    };
    let tasks = tiling.tasks();
    let [to_output, to_grad] = output.places([Role::Output, Role::Grad])?;
    let outputs = tiling.pieces(slice_mut::<T>(to_output)?, &tasks);
    let grads = tiling.pieces(slice_mut::<T>(to_grad)?, &tasks);
    let results = outputs.into_iter().zip(grads);
    let tasks: Vec<_> = tasks
        .into_iter()
        .zip(results)
        .map(|(rows, (output, grad))| Task { rows, output, grad })
        .collect();
    threads::run_with(tasks, || job.scratch(), |scratch, task| job.run(task, scratch));
    Ok(())
}

impl<T: Stored> Job<'_, T> {
    fn scratch(&self) -> Scratch {
        let tile = || self.tiling.memory(0.0);
        Scratch { logits: tile(), output: tile(), grad: tile(), upstream: self.tiling.memory(1.0) }
    }

    fn run(&self, mut task: Task<'_, T>, scratch: &mut Scratch) {
        let tiling = self.tiling;
        let has_grad = task.grad.is_some();
        for rows in tiling.tiles(task.rows.clone()) {
            let first = rows.start - task.rows.start;
            let within = first..first + rows.len();
            let Scratch { logits, output, grad, upstream } = &mut *scratch;
            let x = tiling.load(self.input, &rows, logits);
            let g = match self.upstream {
                Some(values) => tiling.load(values, &rows, upstream),
                None => &upstream[..x.len()],
            };
            tiling.write(task.output.as_mut(), within.clone(), output, |output| {
                tiling.write(task.grad.as_mut(), within, grad, |grad| {
                    let tile = Tile { tiling: &tiling, x, g, rows: rows.len(), has_grad };
                    match self.map {
                        Map::Softmax => vectorized!(tile.softmax(output, grad)),
                        Map::LogSoftmax => vectorized!(tile.log_softmax(output, grad)),
                    }
                });
            });
        }
    }
}

/// The logits and upstream gradients of a tile.
struct Tile<'a> {
    tiling: &'a Tiling,
    x: &'a [f32],
    g: &'a [f32],
    rows: usize,
    has_grad: bool,
}

impl Tile<'_> {
    /// `(x - m) - ln sum e^(x - m)`, and the gradient `g - p sum g`.
    #[inline(always)]
    fn log_softmax(&self, output: &mut [f32], grad: &mut [f32]) {
        let Tile { tiling, x, .. } = *self;
        // The gradient is that of a cross entropy with these target weights. They are kept where
        // the output will be, which is written last.
        let target_weights = match self.has_grad {
            true => &mut *output,
            false => &mut [],
        };
        target_weights.iter_mut().zip(self.g).for_each(|(weight, g)| *weight = -g);
        let mut stats =
            row_stats(&Logits::PLAIN, tiling, x, grad, target_weights, peaks(tiling, x));
        let Results { log, gradients, .. } =
            stats.conclude(&Logits::PLAIN, &Rows::PLAIN, &[0.0; LANES]);
        if self.has_grad {
            gradients.write(tiling, grad, target_weights, &[], 1.0);
        }
        map(
            tiling,
            [&stats.m, &log],
            [x],
            output,
            // m is subtracted first, because added to a large m the logarithm would lose its digits
            #[inline(always)]
            |[m, log], _, [x]| (x - m) - log,
        );
    }

    /// `p = e^(x - m) / sum e^(x - m)`, and the gradient `p[c] ((g[c] - g[k]) + sum over j of
    /// p[j] (g[k] - g[j]))`, which does not cancel where class k has nearly all of the mass.
    #[inline(always)]
    fn softmax(&self, output: &mut [f32], grad: &mut [f32]) {
        let Tile { tiling, x, g, .. } = *self;
        let peaks = peaks(tiling, x);
        let mut stats = row_stats(&Logits::PLAIN, tiling, x, grad, &[], peaks);
        let Results { inverse, .. } = stats.conclude(&Logits::PLAIN, &Rows::PLAIN, &[0.0; LANES]);
        map(
            tiling,
            [&inverse],
            [&*grad],
            output,
            #[inline(always)]
            |[inverse], _, [e]| e * inverse,
        );
        if !self.has_grad {
            return;
        }
        let k = first_at(tiling, x, &peaks.0);
        let mut g_k = [0.0; LANES];
        for row in 0..self.rows {
            g_k[row] = g[tiling.index(row, k[row])];
        }
        let mean = self.mean(output, &g_k);
        map(
            tiling,
            [&g_k, &mean],
            [&*output, g],
            grad,
            #[inline(always)]
            |[g_k, mean], _, [p, g]| {
                let gradient = zero_wins(p, (g - g_k) + mean);
                select(mean.is_nan(), mean, gradient)
            },
        );
    }

    /// The sum of `p[j] (g[k] - g[j])`, by lane.
    #[inline(always)]
    fn mean(&self, p: &[f32], g_k: &Lanes) -> Lanes {
        if self.tiling.by_lane {
            return mean_of_run(p.as_chunks().0, self.g.as_chunks().0, g_k);
        }
        let classes = self.tiling.classes();
        let mut sums = [[0.0; LANES]; LANES];
        let rows = p.chunks_exact(classes).zip(self.g.chunks_exact(classes));
        for (row, (p, g)) in rows.enumerate() {
            let ((p, last_p), (g, last_g)) = (p.as_chunks(), g.as_chunks());
            sums[row] = mean_of_run(p, g, &[g_k[row]; LANES]);
            for (lane, (p, g)) in last_p.iter().zip(last_g).enumerate() {
                sums[row][lane] += zero_wins_unless_nan(*p, g_k[row] - g);
            }
        }
        by_row(sums, sum_lanes)
    }
}

#[inline(always)]
fn mean_of_run(p: &[Lanes], g: &[Lanes], g_k: &Lanes) -> Lanes {
    // a sum of more additions would drift
    const ADDITIONS: usize = 64;
    let mut sum = [0.0; LANES];
    for (p, g) in p.chunks(ADDITIONS).zip(g.chunks(ADDITIONS)) {
        let mut partial = [0.0; LANES];
        for (p, g) in p.iter().zip(g) {
            for lane in 0..LANES {
                partial[lane] += zero_wins_unless_nan(p[lane], g_k[lane] - g[lane]);
            }
        }
        for lane in 0..LANES {
            sum[lane] += partial[lane];
        }
    }
    sum
}
