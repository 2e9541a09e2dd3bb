//! Softmax and log-softmax: maps of rows of classes.

use std::ops::Range;

use rayon::prelude::*;

use super::math::{LANES, Lanes, log1p, select, sum_lanes, times, vectorized};
use super::row_form::{IS_NAN, Logits, first_at, peak, statistics};
use super::storage::{Stored, slice, slice_mut, slice_of, with_stored};
use super::tiles::{Piece, Tiling};
use crate::ops::rows_along;
use crate::{Args, Array, Output, Result};

/// Over arrays that the op's checks have passed.
pub(crate) fn softmax(
    dim: i64,
    args: &Args<Array<'_>>,
    output: &mut Output<Array<'static>>,
) -> Result<()> {
    with_stored!(args.input.dtype(), run::<_>(Map::Softmax, dim, args, output))
}

/// As [`softmax`].
pub(crate) fn log_softmax(
    dim: i64,
    args: &Args<Array<'_>>,
    output: &mut Output<Array<'static>>,
) -> Result<()> {
    with_stored!(args.input.dtype(), run::<_>(Map::LogSoftmax, dim, args, output))
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
    upstream: Option<&'a [T]>,
    /// What stands for it where there is none: 1 for each class.
    ones: Vec<Lanes>,
}

/// The rows of a task, and what it writes of them.
struct Task<'a, T> {
    rows: Range<usize>,
    output: Option<Piece<'a, T>>,
    grad: Option<Piece<'a, T>>,
}

/// Memory of a thread.
struct Scratch {
    /// The logits, then the gradient.
    tile: Vec<Lanes>,
    upstream: Vec<Lanes>,
    output: Vec<Lanes>,
}

fn run<T: Stored>(
    map: Map,
    dim: i64,
    args: &Args<Array<'_>>,
    output: &mut Output<Array<'static>>,
) -> Result<()> {
    let shape = rows_along(args.input.shape(), dim)?;
    if shape.classes == 0 {
        return Ok(());
    }
    let tiling = Tiling::of(shape);
    let job = Job {
        map,
        tiling,
        input: slice::<T>(&args.input)?,
        upstream: slice_of(&args.upstream)?,
        ones: tiling.by_class(|_| 1.0),
    };
    let tasks = tiling.tasks();
    let outputs = tiling.pieces(slice_mut::<T>(&mut output.loss)?, &tasks);
    let grads = tiling.pieces(slice_mut::<T>(&mut output.grad)?, &tasks);
    let results = outputs.into_iter().zip(grads);
    let tasks: Vec<_> = tasks
        .into_iter()
        .zip(results)
        .map(|(rows, (output, grad))| Task { rows, output, grad })
        .collect();
    tasks.into_par_iter().for_each_init(|| job.scratch(), |scratch, task| job.run(task, scratch));
    Ok(())
}

impl<T: Stored> Job<'_, T> {
    fn scratch(&self) -> Scratch {
        let tile = || vec![[0.0; LANES]; self.tiling.vectors()];
        Scratch { tile: tile(), upstream: tile(), output: tile() }
    }

    fn run(&self, mut task: Task<'_, T>, scratch: &mut Scratch) {
        let tiling = self.tiling;
        for rows in tiling.tiles(task.rows.clone()) {
            let row = rows.start - task.rows.start;
            tiling.load(self.input, &rows, f32::NEG_INFINITY, &mut scratch.tile);
            if task.grad.is_some() {
                match self.upstream {
                    Some(upstream) => tiling.load(upstream, &rows, 0.0, &mut scratch.upstream),
                    None => scratch.upstream.copy_from_slice(&self.ones),
                }
            }
            self.map.work(tiling, scratch, task.grad.is_some());
            if let Some(output) = &mut task.output {
                tiling.store(&scratch.output, &rows, row, output);
            }
            if let Some(grad) = &mut task.grad {
                tiling.store(&scratch.tile, &rows, row, grad);
            }
        }
    }
}

impl Map {
    /// The output of a tile's rows, and the gradient in place of the logits.
    fn work(self, tiling: Tiling, scratch: &mut Scratch, has_grad: bool) {
        match tiling.is_one_row {
            true => vectorized!(self.tile::<true>(tiling, scratch, has_grad)),
            false => vectorized!(self.tile::<false>(tiling, scratch, has_grad)),
        }
    }

    #[inline(always)]
    fn tile<const ONE_ROW: bool>(self, tiling: Tiling, scratch: &mut Scratch, has_grad: bool) {
        const PLAIN: Logits = Logits::PLAIN;
        let Scratch { tile, upstream, output } = scratch;
        if self == Map::LogSoftmax {
            output.copy_from_slice(tile);
            // the gradient is that of a loss with these amounts
            for amount in upstream.as_flattened_mut() {
                *amount = -*amount;
            }
        }
        let peak = peak::<ONE_ROW>(tile);
        let k = first_at::<ONE_ROW>(tile, &peak.0);
        let amounts = match self {
            Map::LogSoftmax if has_grad => &upstream[..],
            _ => &[],
        };
        let found = statistics::<ONE_ROW>(&PLAIN, tile, amounts, peak);
        match self {
            Map::LogSoftmax => {
                let mut log = [0.0; LANES];
                for lane in 0..LANES {
                    log[lane] = log1p(found.s[lane]);
                }
                for x in output.iter_mut() {
                    for lane in 0..LANES {
                        // two subtractions: a large maximum would swallow the logarithm
                        x[lane] = or_nan(found.flags[lane], (x[lane] - found.m[lane]) - log[lane]);
                    }
                }
                if has_grad {
                    let form = found.gradient(&PLAIN);
                    for (x, a) in tile.iter_mut().zip(&*upstream) {
                        for lane in 0..LANES {
                            x[lane] = or_nan(found.flags[lane], form.at(lane, x[lane], a[lane]));
                        }
                    }
                }
            }
            Map::Softmax => {
                let mut inverse = [0.0; LANES];
                for lane in 0..LANES {
                    inverse[lane] = 1.0 / (1.0 + found.s[lane]);
                }
                for (p, e) in output.iter_mut().zip(&*tile) {
                    for lane in 0..LANES {
                        p[lane] = or_nan(found.flags[lane], e[lane] * inverse[lane]);
                    }
                }
                if has_grad {
                    // p[c] ((g[c] - g[k]) + sum over j of p[j] (g[k] - g[j])), which does not cancel
                    // where class k has nearly all of the mass
                    let mut g_k = [0.0; LANES];
                    for row in 0..LANES {
                        let (vector, lane) = tiling.place(row, k[row]);
                        g_k[row] = upstream[vector][lane];
                    }
                    let mean = mean::<ONE_ROW>(output, upstream, &g_k);
                    for ((x, p), g) in tile.iter_mut().zip(&*output).zip(&*upstream) {
                        for lane in 0..LANES {
                            x[lane] = p[lane] * ((g[lane] - g_k[lane]) + mean[lane]);
                        }
                    }
                }
            }
        }
    }
}

/// NaN in rows that are, by their flags.
#[inline(always)]
fn or_nan(flags: u32, value: f32) -> f32 {
    select(flags & IS_NAN != 0, f32::NAN, value)
}

/// The sum of `p[j] (g[k] - g[j])`.
#[inline(always)]
fn mean<const ONE_ROW: bool>(p: &[Lanes], g: &[Lanes], g_k: &Lanes) -> Lanes {
    // no accumulator takes many additions
    const BLOCK: usize = 64;
    let mut sum = [0.0; LANES];
    for (p, g) in p.chunks(BLOCK).zip(g.chunks(BLOCK)) {
        let mut part = [0.0; LANES];
        for (p, g) in p.iter().zip(g) {
            for lane in 0..LANES {
                part[lane] += times(p[lane], g_k[lane] - g[lane]);
            }
        }
        for lane in 0..LANES {
            sum[lane] += part[lane];
        }
    }
    if ONE_ROW { [sum_lanes(sum); LANES] } else { sum }
}
