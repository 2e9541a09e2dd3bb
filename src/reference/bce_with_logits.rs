//! Binary cross entropy of a logit from its definition.

use crate::ops::Point;

/// `-(p * t * ln sigmoid(x) + (1 - t) * ln(1 - sigmoid(x)))` and its derivative by `x`.
///
/// `-ln sigmoid(x) = ln(1 + e^-x)`, and `1 - sigmoid(x) = sigmoid(-x)`. Zero annihilates: a term
/// whose factor is 0 is 0, also where the other factor is infinite.
pub(crate) fn bce_with_logits(x: f64, t: f64, pos_weight: f64) -> Point {
    if x.is_nan() || t.is_nan() {
        let nan = f64::NAN;
        return Point { loss: nan, loss_magnitude: nan, grad: nan, grad_magnitude: nan };
    }
    let term = |factor: f64, value: f64| if factor == 0.0 { 0.0 } else { factor * value };
    let (positive, negative) = (term(pos_weight, t), 1.0 - t);
    let (positive_loss, negative_loss) =
        (term(positive, softplus(-x)), term(negative, softplus(x)));
    let (positive_grad, negative_grad) = (term(positive, sigmoid(-x)), term(negative, sigmoid(x)));
    Point {
        loss: positive_loss + negative_loss,
        loss_magnitude: positive_loss.abs() + negative_loss.abs(),
        grad: negative_grad - positive_grad,
        grad_magnitude: negative_grad.abs() + positive_grad.abs(),
    }
}

/// `ln(1 + e^x)`. The exponential never grows beyond 1, so nothing overflows.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// `1 / (1 + e^-x)`: keeps its digits down to the smallest results, where `e^-x` is large.
fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}
