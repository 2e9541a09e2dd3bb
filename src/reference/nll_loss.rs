//! Negative log-likelihood from its definition.

use super::{Factors, Values, reduce, times};
use crate::ops::NllLoss;
use crate::shape::{ClassShape, without_classes};
use crate::{Args, Array, Output, Pass, Role};

/// `-w[y] x[y]`. Over arguments that [`NllLoss`]'s checks have passed.
pub(crate) fn nll_loss(op: &NllLoss, pass: Pass, args: &Args<Array<'_>>) -> Output<Values> {
    let shape = args.input().shape();
    let ClassShape { batch, classes, positions } = ClassShape::of(shape).expect("checked");
    let rows = batch * positions;
    let input = args.input().to_f64();
    let target = args.get(Role::Target).expect("checked").to_i64().expect("checked");
    let weights = args.get(Role::Weight).map(Array::to_f64);
    let weight = |y: usize| weights.as_ref().map_or(1.0, |weights| weights[y]);
    // a kept row, the weight of its class, and the place of the picked entry
    let kept: Vec<(usize, f64, usize)> = (0..rows)
        .filter(|&r| target[r] != op.ignore_index)
        .map(|r| {
            let y = target[r] as usize;
            (r, weight(y), (r / positions * classes + y) * positions + r % positions)
        })
        .collect();
    let divisor = kept.iter().map(|&(_, w, _)| w).sum();
    let factors = Factors::new(op.reduction, divisor, args);

    let mut losses = vec![0.0; rows];
    let mut grad = vec![0.0; input.len()];
    for (r, w, at) in kept {
        losses[r] = times(-w, input[at]);
        grad[at] = times(-w, factors.of(r));
    }
    let magnitudes = |values: &[f64]| values.iter().map(|value| value.abs()).collect();
    let loss_magnitudes = magnitudes(&losses);
    let loss = || reduce(op.reduction, divisor, &without_classes(shape), losses, loss_magnitudes);
    let grad =
        || Values { shape: shape.to_vec(), magnitudes: magnitudes(&grad), values: grad.clone() };
    Output::default()
        .with_some(Role::Loss, pass.has_loss().then(loss))
        .with_some(Role::Grad, pass.has_grad().then(grad))
}
