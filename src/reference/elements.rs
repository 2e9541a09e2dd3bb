//! What element-wise losses share: weight, reduction, upstream.

use super::{Factors, Values, reduce, times};
use crate::ops::Point;
use crate::{Args, Array, Output, Pass, Reduction};

/// The loss `point(x, t, pos_weight)` of every element times its weight, reduced. The mean divides
/// by the number of elements.
///
/// Over arguments that the op's checks have passed. `weight` and `pos_weight` are broadcast to the
/// input, and 1 where not given.
pub(crate) fn elements(
    reduction: Reduction,
    pass: Pass,
    args: &Args<Array<'_>>,
    point: impl Fn(f64, f64, f64) -> Point,
) -> Output<Values> {
    let shape = args.input.shape();
    let input = args.input.to_f64();
    let target = args.target.as_ref().expect("checked").to_f64();
    let weight = broadcast(args.weight.as_ref(), shape);
    let pos_weight = broadcast(args.pos_weight.as_ref(), shape);
    let divisor = input.len() as f64;
    let factors = Factors::new(reduction, divisor, args);

    let (mut losses, mut loss_magnitudes) = (vec![], vec![]);
    let (mut grad, mut grad_magnitudes) = (vec![], vec![]);
    for i in 0..input.len() {
        let (x, t, w) = (input[i], target[i], weight[i]);
        // A NaN first; then a zero annihilates whatever it multiplies.
        let nan = if x.is_nan() || t.is_nan() { f64::NAN } else { 0.0 };
        let point = point(x, t, pos_weight[i]);
        let sum = |terms: [f64; 2]| times(w, terms[0] + terms[1]) + nan;
        let magnitude = |terms: [f64; 2]| times(w.abs(), terms[0].abs() + terms[1].abs());
        losses.push(sum(point.loss));
        loss_magnitudes.push(magnitude(point.loss));
        if pass.has_grad() {
            let factor = factors.of(i);
            grad.push(times(sum(point.grad), factor));
            grad_magnitudes.push(times(magnitude(point.grad), factor.abs()));
        }
    }
    Output {
        loss: pass.has_loss().then(|| reduce(reduction, divisor, shape, losses, loss_magnitudes)),
        grad: pass.has_grad().then(|| Values {
            shape: shape.to_vec(),
            values: grad,
            magnitudes: grad_magnitudes,
        }),
        state: None,
        status: None,
    }
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
