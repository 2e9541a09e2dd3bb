//! Softmax and log-softmax: maps of rows of classes.

use std::ops::Range;

use fearless_simd::{Level, Simd, SimdBase, dispatch};
use rayon::prelude::*;

use super::math::{LANES, Lanes, Vector, log1p, select, sum_lanes, times};
use super::row_form::{Logits, first_at, peak, statistics};
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
    level: Level,
    tiling: Tiling,
    input: &'a [T],
    /// Ones, where there is none.
    upstream: Option<&'a [T]>,
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
        level: Level::new(),
        tiling,
        input: slice::<T>(&args.input)?,
        upstream: slice_of(&args.upstream)?,
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
                    None => scratch.upstream.fill([1.0; LANES]),
                }
            }
            let has_grad = task.grad.is_some();
            match tiling.is_one_row {
                true => {
                    dispatch!(self.level, simd => self.tile::<_, true>(simd, scratch, has_grad))
                }
                false => {
                    dispatch!(self.level, simd => self.tile::<_, false>(simd, scratch, has_grad));
                }
            }
            if let Some(output) = &mut task.output {
                tiling.store(&scratch.output, &rows, row, output);
            }
            if let Some(grad) = &mut task.grad {
                tiling.store(&scratch.tile, &rows, row, grad);
            }
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const ONE_ROW: bool>(&self, simd: S, scratch: &mut Scratch, has_grad: bool) {
        let load = |lanes: &Lanes| Vector::load_array_ref(simd, lanes);
        let Scratch { tile, upstream, output } = scratch;
        if self.map == Map::LogSoftmax {
            output.copy_from_slice(tile);
            // the gradient is that of a loss with these amounts
            for amount in upstream.iter_mut() {
                *amount = (-load(amount)).into();
            }
        }
        let peak = peak::<S, ONE_ROW>(simd, tile);
        let k = first_at::<S, ONE_ROW>(simd, tile, peak.0);
        let amounts = match self.map {
            Map::LogSoftmax if has_grad => &upstream[..],
            _ => &[],
        };
        let found = statistics::<S, ONE_ROW>(simd, &Logits::PLAIN, tile, amounts, peak);
        let is_number = !found.is_nan;
        let or_nan = |v: Vector<S>| -> Lanes { select(is_number, v, f32::NAN).into() };
        match self.map {
            Map::LogSoftmax => {
                // two subtractions: a large maximum would swallow the logarithm
                let log = log1p(found.s);
                for x in output.iter_mut() {
                    *x = or_nan((load(x) - found.m) - log);
                }
                if has_grad {
                    let form = found.gradient(&Logits::PLAIN);
                    for (x, a) in tile.iter_mut().zip(&*upstream) {
                        *x = or_nan(form.at(load(x), load(a)));
                    }
                }
            }
            Map::Softmax => {
                let inverse = Vector::splat(simd, 1.0) / (found.s + 1.0);
                for (p, e) in output.iter_mut().zip(&*tile) {
                    *p = or_nan(load(e) * inverse);
                }
                if has_grad {
                    // p[c] ((g[c] - g[k]) + sum over j of p[j] (g[k] - g[j])), which does not cancel
                    // where class k has nearly all of the mass
                    let g_k = std::array::from_fn(|row| {
                        let (vector, lane) = self.tiling.place(row, k[row]);
                        upstream[vector][lane]
                    });
                    let g_k = load(&g_k);
                    let mean = self.mean::<S, ONE_ROW>(simd, output, upstream, g_k);
                    for ((x, p), g) in tile.iter_mut().zip(&*output).zip(&*upstream) {
                        *x = or_nan(load(p) * ((load(g) - g_k) + mean));
                    }
                }
            }
        }
    }

    /// The sum of `p[j] (g[k] - g[j])`.
    #[inline(always)]
    fn mean<S: Simd, const ONE_ROW: bool>(
        &self,
        simd: S,
        p: &[Lanes],
        g: &[Lanes],
        g_k: Vector<S>,
    ) -> Vector<S> {
        const BLOCK: usize = 64;
        let load = |lanes: &Lanes| Vector::load_array_ref(simd, lanes);
        let mut sum = Vector::splat(simd, 0.0);
        for (p, g) in p.chunks(BLOCK).zip(g.chunks(BLOCK)) {
            let terms = p.iter().zip(g).map(|(p, g)| times(load(p), g_k - load(g)));
            sum += terms.fold(Vector::splat(simd, 0.0), |sum, term| sum + term);
        }
        if ONE_ROW { Vector::splat(simd, sum_lanes(sum)) } else { sum }
    }
}
