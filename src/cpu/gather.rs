//! Negative log-likelihood: the loss gathers one entry of each row, that at the target. The
//! gradient is 0 at all others.

use super::labels::{self, Labels};
use super::math::zero_wins_unless_nan;
use super::storage::{Stored, slice, slice_mut, slice_of, with_stored};
use super::threads;
use crate::ops::NllLoss;
use crate::shape::ClassShape;
use crate::{Args, Array, Output, Reduction, Result, Role};

/// Rows of a task. A sum of losses is that of its tasks, in order, whatever the number of threads.
const TASK: usize = 1 << 12;

/// About how many elements of the gradient a task has.
const ELEMENTS: usize = 1 << 16;

/// Computes [`NllLoss`] over arrays that the op's checks have passed.
pub(crate) fn nll_loss(
    op: &NllLoss,
    args: &Args<Array<'_>>,
    output: &mut Output<Array<'static>>,
) -> Result<()> {
    with_stored!(args.input().dtype(), run::<_>(op, args, output))
}

fn run<T: Stored>(
    op: &NllLoss,
    args: &Args<Array<'_>>,
    output: &mut Output<Array<'static>>,
) -> Result<()> {
    let shape = ClassShape::of(args.input().shape())?;
    let ClassShape { classes, positions, .. } = shape;
    let Some(target) = args.get(Role::Target) else { return Ok(()) };
    let labels = Labels::of(target, op.ignore_index, 0..classes)?;
    let input = slice::<T>(args.input())?;
    let weight = slice_of::<f32>(args.get(Role::Weight))?;
    let is_none = op.reduction == Reduction::None;
    let divisor = match op.reduction {
        Reduction::Mean => labels::divisor(labels.kept(weight).1),
        _ => 1.0,
    };
    // the target weight of a kept row, and the index of its entry
    let entry = |row: usize| {
        let class = labels.class(row)?;
        let weight = weight.map_or(1.0, |weight| weight[class]);
        Some((weight, (row / positions * classes + class) * positions + row % positions))
    };

    if let Some(to) = slice_mut::<f32>(output.place(Role::Loss))? {
        let loss_of = |row: usize| match entry(row) {
            Some((target_weight, index)) => {
                zero_wins_unless_nan(-target_weight, input[index].to_f32())
            }
            None => 0.0,
        };
        let losses = |first: usize| (first..shape.rows().min(first + TASK)).map(loss_of);
        if is_none {
            threads::run(to.chunks_mut(TASK).enumerate(), |(task, to)| {
                to.iter_mut().zip(losses(task * TASK)).for_each(|(to, loss)| *to = loss);
            });
        } else {
            let sum_of = |first| losses(first).map(f64::from).sum::<f64>();
            let sums = threads::run((0..shape.rows()).step_by(TASK), sum_of);
            to.fill(labels::mean(sums.iter().sum(), divisor) as f32);
        }
    }
    let Some(grad) = slice_mut::<T>(output.place(Role::Grad))? else { return Ok(()) };
    let scalar = if is_none { None } else { slice_of::<f32>(args.get(Role::Upstream))? };
    let scale = scalar.map_or(1.0, |upstream| upstream[0]) / divisor as f32;
    let upstream = if is_none { slice_of::<T>(args.get(Role::Upstream))? } else { None };
    // A task has whole indices of the batch, so that no row is divided among tasks.
    let batches = ELEMENTS.div_ceil(shape.batch_elements().max(1));
    let tasks = grad.chunks_mut(batches * shape.batch_elements().max(1)).enumerate();
    threads::run(tasks, |(task, grad)| {
        grad.fill(T::from_f32(0.0));
        let first = task * batches * shape.batch_elements();
        let rows = grad.len() / classes;
        for row in task * batches * positions..task * batches * positions + rows {
            let Some((target_weight, index)) = entry(row) else { continue };
            let scale = upstream.map_or(scale, |upstream| upstream[row].to_f32());
            grad[index - first] = T::from_f32(zero_wins_unless_nan(-target_weight, scale));
        }
    });
    Ok(())
}
