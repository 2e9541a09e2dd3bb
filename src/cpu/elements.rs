//! Element-wise losses and maps: blocks that fit the nearest cache, in tasks of many.

use fearless_simd::{Level, Simd, SimdBase, dispatch};
use rayon::prelude::*;

use super::math::{LANES, Lanes, Vector, select, sum_lanes, times};
use super::storage::{
    Stored, as_lanes, slice, slice_mut, slice_of, take, with_stored, write_lanes,
};
use crate::ops::{Elementwise, divisor, weight_dims};
use crate::shape::Dim;
use crate::{Args, Array, Output, Reduction, Result};

/// Elements of a block: 4 KiB of each argument and result.
const BLOCK: usize = 64 * LANES;

/// Elements of a task. A sum is that of its tasks, in order, whatever the number of threads.
const TASK: usize = 16 * BLOCK;

/// A loss or its gradient at sixteen elements.
pub struct Point<S: Simd> {
    pub loss: Vector<S>,
    pub grad: Vector<S>,
}

/// A loss or map of the crate, over arrays that its checks have passed.
pub(crate) fn elements<E: Elementwise>(
    op: &E,
    args: &Args<Array<'_>>,
    output: &mut Output<Array<'static>>,
) -> Result<()> {
    fn stored_as<S: Stored, E: Elementwise>(
        op: &E,
        args: &Args<Array<'_>>,
        output: &mut Output<Array<'static>>,
    ) -> Result<()> {
        match E::TARGET {
            true => run::<E, S, f32>(op, args, output),
            // outputs of maps are stored as their inputs
            false => run::<E, S, S>(op, args, output),
        }
    }
    with_stored!(args.input.dtype(), stored_as::<_, E>(op, args, output))
}

/// What all tasks read. `S` is how inputs are stored.
struct Job<'a, E, S> {
    op: &'a E,
    level: Level,
    input: &'a [S],
    target: Option<&'a [S]>,
    weight: Option<&'a [f32]>,
    pos_weight: Option<&'a [f32]>,
    dims: Vec<Dim<2>>,
    /// One value an element.
    upstream: Option<&'a [S]>,
    /// What gradients are multiplied by: the scalar upstream gradient over the divisor.
    scale: f32,
}

/// What one task writes: the results from element `first` on.
struct Task<'a, S, L> {
    first: usize,
    count: usize,
    grad: Option<&'a mut [S]>,
    losses: Option<&'a mut [L]>,
}

/// `S` is how inputs and gradients are stored, `L` how losses are.
fn run<E: Elementwise, S: Stored, L: Stored>(
    op: &E,
    args: &Args<Array<'_>>,
    output: &mut Output<Array<'static>>,
) -> Result<()> {
    let input = slice::<S>(&args.input)?;
    let reduction = op.reduction();
    let divisor = divisor(reduction, args.input.shape());
    let is_none = reduction == Reduction::None;
    let scalar = if is_none { None } else { slice_of::<f32>(&args.upstream)? };
    let job = Job {
        op,
        level: Level::new(),
        input,
        target: slice_of(&args.target)?,
        weight: slice_of(&args.weight)?,
        pos_weight: slice_of(&args.pos_weight)?,
        dims: weight_dims(&args.layouts())?,
        upstream: if is_none { slice_of(&args.upstream)? } else { None },
        scale: scalar.map_or(1.0, |upstream| upstream[0]) / divisor as f32,
    };

    let has_loss = output.loss.is_some();
    let mut losses = if is_none { slice_mut::<L>(&mut output.loss)? } else { None };
    let mut grad = slice_mut::<S>(&mut output.grad)?;
    let mut tasks = Vec::new();
    for first in (0..input.len()).step_by(TASK) {
        let count = TASK.min(input.len() - first);
        let (grad, losses) = (take(&mut grad, count), take(&mut losses, count));
        tasks.push(Task { first, count, grad, losses });
    }
    let sums: Vec<f64> = tasks
        .into_par_iter()
        .map_init(Buffers::default, |buffers, task| job.run(task, buffers))
        .collect();

    if has_loss && !is_none {
        let sum: f64 = sums.iter().sum();
        let loss = match reduction {
            Reduction::None | Reduction::Sum => sum,
            // an empty batch's mean is NaN, whatever its divisor
            Reduction::Mean | Reduction::BatchMean if input.is_empty() => f64::NAN,
            Reduction::Mean | Reduction::BatchMean => sum / divisor,
        };
        slice_mut::<f32>(&mut output.loss)?.into_iter().for_each(|to| to.fill(loss as f32));
    }
    Ok(())
}

/// A block's numbers, where they do not lie in memory as they are worked on.
struct Buffers {
    x: [Lanes; BLOCK / LANES],
    t: [Lanes; BLOCK / LANES],
    weight: [Lanes; BLOCK / LANES],
    pos_weight: [Lanes; BLOCK / LANES],
    upstream: [Lanes; BLOCK / LANES],
    loss: [Lanes; BLOCK / LANES],
    grad: [Lanes; BLOCK / LANES],
}

impl Default for Buffers {
    fn default() -> Self {
        let zeros = [[0.0; LANES]; BLOCK / LANES];
        let ones = [[1.0; LANES]; BLOCK / LANES];
        Buffers {
            x: zeros,
            t: zeros,
            weight: ones,
            pos_weight: ones,
            upstream: zeros,
            loss: zeros,
            grad: zeros,
        }
    }
}

impl<E: Elementwise, S: Stored> Job<'_, E, S> {
    /// Computes a task; the sum of its losses, where they are not asked for one by one.
    fn run<L: Stored>(&self, mut task: Task<'_, S, L>, buffers: &mut Buffers) -> f64 {
        let mut sum = 0.0;
        for first in (task.first..task.first + task.count).step_by(BLOCK) {
            let count = BLOCK.min(task.first + task.count - first);
            let elements = first..first + count;
            let grad = take(&mut task.grad, count).unwrap_or_default();
            let losses = take(&mut task.losses, count);
            let Buffers { x, t, weight, pos_weight, upstream, loss, grad: to_grad } = buffers;
            let vectors = count.div_ceil(LANES);

            let x = as_lanes(&self.input[elements.clone()], x);
            // maps have no target, and look at none
            let t = self.target.map_or(x, |target| as_lanes(&target[elements.clone()], t));
            if let Some(values) = self.weight {
                broadcast(values, &self.dims, 0, first, &mut weight.as_flattened_mut()[..count]);
            }
            if let Some(values) = self.pos_weight {
                let to = &mut pos_weight.as_flattened_mut()[..count];
                broadcast(values, &self.dims, 1, first, to);
            }
            let block = Block {
                x,
                t,
                pos_weight: &pos_weight[..vectors],
                weight: self.weight.map(|_| &weight[..vectors]),
                upstream: self.upstream.map(|all| as_lanes(&all[elements], upstream)),
                scale: self.scale,
            };
            let mut compute = |loss: &mut [Lanes]| {
                if grad.is_empty() {
                    block.compute(self.op, self.level, loss, &mut to_grad[..vectors]);
                } else {
                    write_lanes(grad, to_grad, |grad| {
                        block.compute(self.op, self.level, loss, grad);
                    });
                }
            };
            match losses {
                Some(losses) => write_lanes(losses, loss, compute),
                None => {
                    let loss = &mut loss[..vectors];
                    compute(loss);
                    loss.as_flattened_mut()[count..].fill(0.0);
                    sum += f64::from(dispatch!(self.level, simd => sum_of(simd, loss)));
                }
            }
        }
        sum
    }
}

/// The numbers of a block.
struct Block<'a> {
    x: &'a [Lanes],
    t: &'a [Lanes],
    pos_weight: &'a [Lanes],
    weight: Option<&'a [Lanes]>,
    upstream: Option<&'a [Lanes]>,
    scale: f32,
}

impl Block<'_> {
    /// Computes losses and gradients: both, since the one that is not asked for costs little, and
    /// stays in the nearest cache.
    fn compute<E: Elementwise>(
        &self,
        op: &E,
        level: Level,
        loss: &mut [Lanes],
        grad: &mut [Lanes],
    ) {
        dispatch!(level, simd => self.points(simd, op, loss, grad));
        if self.weight.is_some() || self.upstream.is_some() {
            dispatch!(level, simd => self.weigh(simd, loss, grad));
        }
    }

    #[inline(always)]
    fn points<S: Simd, E: Elementwise>(
        &self,
        simd: S,
        op: &E,
        loss: &mut [Lanes],
        grad: &mut [Lanes],
    ) {
        let load = |lanes: &Lanes| Vector::load_array_ref(simd, lanes);
        let gradient_at_nan = if op.zero_gradient_at_nan() { 0.0 } else { f32::NAN };
        // a weight comes before the scale, so that its 0 annihilates
        let scale = if self.weight.is_some() { 1.0 } else { self.scale };
        let scale = Vector::splat(simd, scale);
        let results = loss.iter_mut().zip(grad);
        let given = self.x.iter().zip(self.t).zip(self.pos_weight);
        for ((loss, grad), ((x, t), pos_weight)) in results.zip(given) {
            let (x, t) = (load(x), load(t));
            let point = op.point(x, t, load(pos_weight));
            // NaN before all else
            let is_number = x.simd_eq(x) & t.simd_eq(t);
            *loss = select(is_number, point.loss, f32::NAN).into();
            *grad = times(select(is_number, point.grad, gradient_at_nan), scale).into();
        }
    }

    /// Multiplies by weights and upstream gradients.
    #[inline(always)]
    fn weigh<S: Simd>(&self, simd: S, loss: &mut [Lanes], grad: &mut [Lanes]) {
        let load = |lanes: &Lanes| Vector::load_array_ref(simd, lanes);
        if let Some(weight) = self.weight {
            let scale = Vector::splat(simd, self.scale);
            for ((loss, grad), weight) in loss.iter_mut().zip(&mut *grad).zip(weight) {
                let weight = load(weight);
                *loss = times(weight, load(loss)).into();
                *grad = times(times(weight, load(grad)), scale).into();
            }
        }
        for (grad, upstream) in grad.iter_mut().zip(self.upstream.unwrap_or_default()) {
            *grad = times(load(grad), load(upstream)).into();
        }
    }
}

/// The sum of a block.
#[inline(always)]
fn sum_of<S: Simd>(simd: S, values: &[Lanes]) -> f32 {
    let load = |lanes: &Lanes| Vector::load_array_ref(simd, lanes);
    sum_lanes(values.iter().fold(Vector::splat(simd, 0.0), |sum, lanes| sum + load(lanes)))
}

/// Lays the `k`-th of the tensors of `dims` over the elements from `first` on.
fn broadcast(values: &[f32], dims: &[Dim<2>], k: usize, first: usize, to: &mut [f32]) {
    let Some(inner) = dims.first() else { return to.fill(values[0]) };
    let mut at = first;
    let mut rest = to;
    while !rest.is_empty() {
        let within = at % inner.size;
        let count = rest.len().min(inner.size - within);
        let run = rest.split_off_mut(..count).unwrap_or_default();
        let (mut index, mut place) = (at / inner.size, within * inner.strides[k]);
        for dim in &dims[1..] {
            place += index % dim.size * dim.strides[k];
            index /= dim.size;
        }
        match inner.strides[k] {
            0 => run.fill(values[place]),
            // innermost first: what it does not repeat, it has side by side
            _ => run.copy_from_slice(&values[place..place + count]),
        }
        at += count;
    }
}
