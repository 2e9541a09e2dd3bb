//! What element-wise losses share: weight, reduction, upstream.

use super::{Factors, Values, reduce, times};
use crate::ops::{Elementwise, divisor};
use crate::{Args, Array, Output, Pass, Role};

/// The loss of every element times its weight, reduced.
///
/// Over arguments that the op's checks have passed. `weight` and `pos_weight` are broadcast to the
/// input, and 1 where not given.
pub(crate) fn elements<E: Elementwise>(
    op: &E,
    pass: Pass,
    args: &Args<Array<'_>>,
) -> Output<Values> {
    let (reduction, shape) = (op.reduction(), args.input().shape());
    let input = args.input().to_f64();
    // maps have no target, and look at none
    let target = args.get(Role::Target).map_or_else(|| vec![0.0; input.len()], Array::to_f64);
    let weight = broadcast(args.get(Role::Weight), shape);
    let pos_weight = broadcast(args.get(Role::PosWeight), shape);
    let divisor = divisor(reduction, shape);
    let factors = Factors::new(reduction, divisor, args);

    let (mut losses, mut loss_magnitudes) = (vec![], vec![]);
    let (mut grad, mut grad_magnitudes) = (vec![], vec![]);
    for i in 0..input.len() {
        let (x, t, w) = (input[i], target[i], weight[i]);
        // A NaN first; then a zero annihilates whatever it multiplies.
        let is_nan = x.is_nan() || t.is_nan() || E::OF_DIFFERENCE && (x - t).is_nan();
        let is_nan_gradient = if E::GRAD_READS_INPUT { is_nan } else { t.is_nan() };
        let point = op.reference(x, t, pos_weight[i]);
        losses.push(if is_nan { f64::NAN } else { times(w, point.loss.value) });
        loss_magnitudes.push(times(w.abs(), point.loss.magnitude));
        if pass.has_grad() {
            let factor = factors.of(i);
            let value = match is_nan_gradient {
                true if op.zero_gradient_at_nan() => 0.0,
                true => f64::NAN,
                false => times(w, point.grad.value),
            };
            grad.push(times(value, factor));
            grad_magnitudes.push(times(times(w.abs(), point.grad.magnitude), factor.abs()));
        }
    }
    let result = if E::TARGET { Role::Loss } else { Role::Output };
    let loss = || reduce(reduction, divisor, shape, losses, loss_magnitudes);
    let grad = || Values { shape: shape.to_vec(), values: grad, magnitudes: grad_magnitudes };
    Output::default()
        .with_some(result, pass.has_loss().then(loss))
        .with_some(Role::Grad, pass.has_grad().then(grad))
}

/// The array's elements repeated to a larger shape by PyTorch's rule: aligned at the last
/// dimension, a size of 1 repeats. Ones without an array.
fn broadcast(array: Option<&Array<'_>>, shape: &[usize]) -> Vec<f64> {
    let count = shape.iter().product();
    let Some(array) = array else {
        return vec![1.0; count];
    };
    let (values, own_shape) = (array.to_f64(), array.shape());
    let repeated = (0..count).map(|mut rest| {
        // Index by index from the last dimension; `rest` is what earlier dimensions are left with.
        let (mut place, mut stride) = (0, 1);
        let from_last = own_shape.iter().rev().zip(shape.iter().rev());
        for (&own, &size) in from_last {
            place += if own == 1 { 0 } else { rest % size * stride };
            stride *= own;
            rest /= size;
        }
        values[place]
    });
    repeated.collect()
}
