//! Element-wise losses and maps. Elements are worked on in tiles that fit the nearest cache; a
//! task has many of them.

use super::math::{LANES, Lanes, select, sum_lanes, vectorized, zero_wins_unless_nan};
use super::storage::{Stored, as_f32, slice, slice_mut, slice_of, take, with_stored, write_f32};
use super::threads;
use crate::ops::{Elementwise, divisor, weight_dims};
use crate::shape::Dim;
use crate::{Args, Array, Op, Output, Reduction, Result, Role};

/// Elements of a tile: 4 KiB of each argument and result.
const TILE: usize = 1024;

/// Elements of a task. A sum is that of its tasks, in order, whatever the number of threads.
const TASK: usize = 16 * TILE;

/// A loss and its derivative at an element.
#[derive(Debug, Clone, Copy)]
pub struct Point {
    pub loss: f32,
    pub grad: f32,
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
    with_stored!(args.input().dtype(), stored_as::<_, E>(op, args, output))
}

/// What all tasks read. `S` is how inputs are stored.
struct Job<'a, E, S> {
    op: &'a E,
    input: &'a [S],
    target: Option<&'a [S]>,
    weight: Option<&'a [f32]>,
    pos_weight: Option<&'a [f32]>,
    dims: Vec<Dim<2>>,
    /// One value an element.
    upstream: Option<&'a [S]>,
    /// What gradients are multiplied by: the scalar upstream gradient over the divisor.
    scale: f32,
    /// Whether it is read: the gradient alone may not depend on it.
    reads_input: bool,
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
    let result = if E::TARGET { Role::Loss } else { Role::Output };
    let has_loss = output.get(result).is_some();
    let input = slice::<S>(args.input())?;
    let reduction = op.reduction();
    let divisor = divisor(reduction, args.input().shape());
    let is_none = reduction == Reduction::None;
    let scalar = if is_none { None } else { slice_of::<f32>(args.get(Role::Upstream))? };
    let job = Job {
        op,
        input,
        target: slice_of(args.get(Role::Target))?,
        weight: slice_of(args.get(Role::Weight))?,
        pos_weight: slice_of(args.get(Role::PosWeight))?,
        dims: weight_dims(&args.layouts())?,
        upstream: if is_none { slice_of(args.get(Role::Upstream))? } else { None },
        scale: scalar.map_or(1.0, |upstream| upstream[0]) / divisor as f32,
        reads_input: has_loss || Op::kind(op).grad_reads_input,
    };

    let [to_result, to_grad] = output.places([result, Role::Grad])?;
    let mut losses = if is_none { slice_mut::<L>(to_result)? } else { None };
    let mut grad = slice_mut::<S>(to_grad)?;
    let mut tasks = Vec::new();
    for first in (0..input.len()).step_by(TASK) {
        let count = TASK.min(input.len() - first);
        let (grad, losses) = (take(&mut grad, count), take(&mut losses, count));
        tasks.push(Task { first, count, grad, losses });
    }
    let sums = threads::run_with(tasks, Buffers::default, |buffers, task| job.run(task, buffers));

    if has_loss && !is_none {
        let sum: f64 = sums.iter().sum();
        let loss = match reduction {
            Reduction::None | Reduction::Sum => sum,
            Reduction::Mean | Reduction::BatchMean => sum / divisor,
        };
        slice_mut::<f32>(to_result)?.into_iter().for_each(|to| to.fill(loss as f32));
    }
    Ok(())
}

/// The numbers of a tile, where they do not lie in memory as f32.
struct Buffers {
    x: [f32; TILE],
    t: [f32; TILE],
    weight: [f32; TILE],
    /// Ones, where there is none.
    pos_weight: [f32; TILE],
    upstream: [f32; TILE],
    loss: [f32; TILE],
    grad: [f32; TILE],
}

impl Default for Buffers {
    fn default() -> Self {
        let zeros = [0.0; TILE];
        Buffers {
            x: zeros,
            t: zeros,
            weight: zeros,
            pos_weight: [1.0; TILE],
            upstream: zeros,
            loss: zeros,
            grad: zeros,
        }
    }
}

impl<E: Elementwise, S: Stored> Job<'_, E, S> {
    /// Computes a task, and returns the sum of its losses if they are not stored one by one.
    fn run<L: Stored>(&self, mut task: Task<'_, S, L>, buffers: &mut Buffers) -> f64 {
        let mut sum = 0.0;
        for first in (task.first..task.first + task.count).step_by(TILE) {
            let count = TILE.min(task.first + task.count - first);
            let elements = first..first + count;
            let Buffers { x, t, weight, pos_weight, upstream, loss, grad } = &mut *buffers;
            // A map has no target, and its hooks read none; nor does a gradient that does not depend
            // on the input read that.
            let (x, t) = match self.target.map(|target| as_f32(&target[elements.clone()], t)) {
                Some(t) if !self.reads_input => (t, t),
                t => {
                    let x = as_f32(&self.input[elements.clone()], x);
                    (x, t.unwrap_or(x))
                }
            };
            if let Some(values) = self.weight {
                broadcast(values, &self.dims, 0, first, &mut weight[..count]);
            }
            if let Some(values) = self.pos_weight {
                broadcast(values, &self.dims, 1, first, &mut pos_weight[..count]);
            }
            let tile = Tile {
                x,
                t,
                pos_weight: &pos_weight[..count],
                weight: self.weight.map(|_| &weight[..count]),
                upstream: self.upstream.map(|all| as_f32(&all[elements], upstream)),
                scale: self.scale,
            };
            let mut compute = |loss: &mut [f32]| match take(&mut task.grad, count) {
                Some(to) => write_f32(to, grad, |grad| tile.compute(self.op, loss, grad)),
                None => tile.compute(self.op, loss, &mut grad[..count]),
            };
            match take(&mut task.losses, count) {
                Some(losses) => write_f32(losses, loss, compute),
                None => {
                    let loss = &mut loss[..count];
                    compute(loss);
                    sum += f64::from(vectorized!(sum_of(loss)));
                }
            }
        }
        sum
    }
}

/// The numbers of a tile.
struct Tile<'a> {
    x: &'a [f32],
    t: &'a [f32],
    pos_weight: &'a [f32],
    weight: Option<&'a [f32]>,
    upstream: Option<&'a [f32]>,
    scale: f32,
}

impl Tile<'_> {
    /// Computes losses and gradients. It always computes both, because the one that is not asked
    /// for costs little, and stays in the nearest cache.
    fn compute<E: Elementwise>(&self, op: &E, loss: &mut [f32], grad: &mut [f32]) {
        vectorized!(self.points(op, loss, grad));
        if self.weight.is_some() || self.upstream.is_some() {
            vectorized!(self.weigh(op, loss, grad));
        }
    }

    #[inline(always)]
    fn points<E: Elementwise>(&self, op: &E, loss: &mut [f32], grad: &mut [f32]) {
        let gradient_at_nan = if op.zero_gradient_at_nan() { 0.0 } else { f32::NAN };
        let is_scaled = self.weight.is_none() && self.upstream.is_none();
        let is_number = !self.scale.is_nan();
        let given = self.x.iter().zip(self.t).zip(self.pos_weight);
        for ((loss, grad), ((&x, &t), &pos_weight)) in loss.iter_mut().zip(grad).zip(given) {
            let point = op.point(x, t, pos_weight);
            // a NaN comes out whatever the hooks made of it
            let is_nan = x.is_nan() | t.is_nan() | (E::OF_DIFFERENCE & (x - t).is_nan());
            *loss = select(is_nan, f32::NAN, point.loss);
            let is_nan = if E::GRAD_READS_INPUT { is_nan } else { t.is_nan() };
            let g = select(is_nan, gradient_at_nan, point.grad);
            *grad = match is_scaled {
                true => {
                    let scaled = scaled(op, [x, t, pos_weight], g, self.scale);
                    select((g == 0.0) & is_number, 0.0, scaled)
                }
                false => g,
            };
        }
    }

    /// Multiplies by weights and upstream gradients.
    #[inline(always)]
    fn weigh<E: Elementwise>(&self, op: &E, loss: &mut [f32], grad: &mut [f32]) {
        for (loss, &weight) in loss.iter_mut().zip(self.weight.unwrap_or_default()) {
            *loss = zero_wins_unless_nan(weight, *loss);
        }
        let given = self.x.iter().zip(self.t).zip(self.pos_weight);
        let grad = grad.iter_mut().zip(given.map(|((&x, &t), &pos_weight)| [x, t, pos_weight]));
        match (self.weight, self.upstream) {
            (Some(weight), Some(upstream)) => {
                let factors = weight.iter().zip(upstream);
                for ((grad, given), (&weight, &upstream)) in grad.zip(factors) {
                    *grad = weighted(op, given, weight, *grad, upstream);
                }
            }
            (Some(weight), None) => {
                for ((grad, given), &weight) in grad.zip(weight) {
                    *grad = weighted(op, given, weight, *grad, self.scale);
                }
            }
            (None, upstream) => {
                for ((grad, given), &upstream) in grad.zip(upstream.unwrap_or_default()) {
                    let scaled = scaled(op, given, *grad, upstream);
                    *grad = select((*grad == 0.0) & !upstream.is_nan(), 0.0, scaled);
                }
            }
        }
    }
}

/// A gradient of x, t and a weight of positive terms, times its scale. What is beyond f32 before that may be
/// within it after: there the scale is multiplied in first.
#[inline(always)]
fn scaled<E: Elementwise>(op: &E, given: [f32; 3], g: f32, scale: f32) -> f32 {
    let (part, whole) = part(op, given, g);
    select(E::PROPORTIONAL & g.is_infinite(), part * scale * whole, g * scale)
}

/// The same with a weight, which a weight of 0 makes 0 under any scale.
#[inline(always)]
fn weighted<E: Elementwise>(op: &E, given: [f32; 3], weight: f32, g: f32, scale: f32) -> f32 {
    let value = zero_wins_unless_nan(weight, g);
    let (part, whole) = part(op, given, g);
    let scaled_first = zero_wins_unless_nan(weight, zero_wins_unless_nan(part, scale)) * whole;
    select(value.is_infinite(), scaled_first, zero_wins_unless_nan(value, scale))
}

/// A gradient as a part and what it is to be multiplied by: itself, but where it is beyond f32 that of
/// quarters, where the op allows it.
#[inline(always)]
fn part<E: Elementwise>(op: &E, [x, t, pos_weight]: [f32; 3], g: f32) -> (f32, f32) {
    if !E::PROPORTIONAL {
        return (g, 1.0);
    }
    let of_quarters = op.point(0.25 * x, 0.25 * t, pos_weight).grad;
    (select(g.is_infinite(), of_quarters, g), select(g.is_infinite(), 4.0, 1.0))
}

/// The sum of a tile's numbers.
#[inline(always)]
fn sum_of(values: &[f32]) -> f32 {
    let (vectors, remainder) = values.as_chunks::<LANES>();
    let mut sums: Lanes = [0.0; LANES];
    for vector in vectors {
        for lane in 0..LANES {
            sums[lane] += vector[lane];
        }
    }
    sum_lanes(sums) + remainder.iter().sum::<f32>()
}

/// Broadcasts the `k`-th of the tensors of `dims` to the elements from `first` on.
fn broadcast(values: &[f32], dims: &[Dim<2>], k: usize, first: usize, to: &mut [f32]) {
    let Some(inner) = dims.first() else { return to.fill(values[0]) };
    let mut element = first;
    let mut left = to;
    while !left.is_empty() {
        let within = element % inner.size;
        let count = left.len().min(inner.size - within);
        let run = left.split_off_mut(..count).unwrap_or_default();
        let (mut index, mut from) = (element / inner.size, within * inner.strides[k]);
        for dim in &dims[1..] {
            from += index % dim.size * dim.strides[k];
            index /= dim.size;
        }
        match inner.strides[k] {
            0 => run.fill(values[from]),
            // Along the innermost dimension a tensor that does not repeat is contiguous.
            _ => run.copy_from_slice(&values[from..from + count]),
        }
        element += count;
    }
}
