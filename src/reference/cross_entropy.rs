//! Cross entropy from its definition.

use super::{Factors, Values, reduce, times};
use crate::ops::{CrossEntropy, has_classes};
use crate::{Args, Array, Output, Pass};

/// The loss of a row and its gradient, and T beside both.
pub(super) struct Row {
    pub loss: f64,
    pub loss_magnitude: f64,
    pub grad: Vec<f64>,
    pub grad_magnitudes: Vec<f64>,
}

/// `loss = sum of a[c] * -ln p[c]` and `grad[c] = p[c] * (sum of a) - a[c]`, with `p = softmax(x)`.
pub(super) fn row(x: &[f64], a: &[f64]) -> Row {
    let m = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if x.iter().any(|v| v.is_nan()) || m.is_infinite() {
        let nan = vec![f64::NAN; x.len()];
        return Row {
            loss: f64::NAN,
            loss_magnitude: f64::NAN,
            grad: nan.clone(),
            grad_magnitudes: nan,
        };
    }
    // k is the first class at the maximum; `s` leaves it out, so that ln_1p(s) = -ln p[k] and
    // s / (1 + s) = 1 - p[k] keep their digits however close p[k] is to 1.
    let k = x.iter().position(|&v| v == m).expect("m is one of x");
    let others = || (0..x.len()).filter(|&c| c != k);
    let s: f64 = others().map(|c| (x[c] - m).exp()).sum();

    let (mut loss, mut loss_magnitude) = (0.0, 0.0);
    for (&x, &a) in x.iter().zip(a) {
        // Zero annihilates: nothing is added for a = 0, not even where -ln p is infinite.
        if a != 0.0 {
            loss += a * (s.ln_1p() + (m - x));
            loss_magnitude += a.abs() * (s.ln_1p() + (m - x));
        }
    }

    let (sum, sum_abs): (f64, f64) = (a.iter().sum(), a.iter().map(|a| a.abs()).sum());
    let p = |c: usize| (x[c] - m).exp() / (1.0 + s);
    let mut grad: Vec<_> = (0..x.len()).map(|c| p(c) * sum - a[c]).collect();
    let mut grad_magnitudes: Vec<_> = (0..x.len()).map(|c| p(c) * sum_abs + a[c].abs()).collect();
    // At k the two terms share p[k] * a[k], which is left out of both.
    let rest = others().map(|c| a[c]).sum::<f64>();
    let rest_abs = others().map(|c| a[c].abs()).sum::<f64>();
    grad[k] = p(k) * rest - a[k] * (s / (1.0 + s));
    grad_magnitudes[k] = p(k) * rest_abs + a[k].abs() * (s / (1.0 + s));
    Row { loss, loss_magnitude, grad, grad_magnitudes }
}

/// Over arguments that [`CrossEntropy`]'s checks have passed.
pub(crate) fn cross_entropy(
    op: &CrossEntropy,
    pass: Pass,
    args: &Args<Array<'_>>,
) -> Output<Values> {
    let shape = args.input.shape();
    // Row r = (n, d) with class c lies at (n * classes + c) * positions + d.
    let (classes, positions, rows_shape) = match *shape {
        [batch, classes, ref rest @ ..] => {
            (classes, rest.iter().product::<usize>(), [&[batch], rest].concat())
        }
        _ => (shape[0], 1, vec![]),
    };
    let rows: usize = rows_shape.iter().product();
    let input = args.input.to_f64();
    let targets = args.target.as_ref().expect("checked");
    // class indices, or probabilities
    let target = has_classes(&args.layouts()).then(|| targets.to_classes().expect("checked"));
    let probabilities = targets.to_f64();
    let weight = args.weight.as_ref().map_or_else(|| vec![1.0; classes], Array::to_f64);

    // The class of a row; of an ignored one, the row is left out.
    let class = |r: usize| target.as_ref().map(|target| target[r]);
    let kept: Vec<usize> = (0..rows).filter(|&r| class(r) != Some(op.ignore_index)).collect();
    let divisor = kept.iter().map(|&r| class(r).map_or(1.0, |y| weight[y as usize])).sum();
    let factors = Factors::new(op.reduction, divisor, args);

    // Ignored rows keep these zeros: neither the row nor its upstream is looked at.
    let (mut losses, mut loss_magnitudes) = (vec![0.0; rows], vec![0.0; rows]);
    let (mut grad, mut grad_magnitudes) = (vec![0.0; input.len()], vec![0.0; input.len()]);
    for r in kept {
        let at = |c: usize| (r / positions * classes + c) * positions + r % positions;
        let x: Vec<f64> = (0..classes).map(|c| input[at(c)]).collect();
        let t = |c: usize| match class(r) {
            Some(y) => f64::from(u8::from(y == c as i64)),
            None => probabilities[at(c)],
        };
        let (e, share) = (op.label_smoothing, op.label_smoothing / classes as f64);
        let a: Vec<f64> =
            (0..classes).map(|c| times(weight[c], times(1.0 - e, t(c)) + share)).collect();

        let row = row(&x, &a);
        losses[r] = row.loss;
        loss_magnitudes[r] = row.loss_magnitude;
        if pass.has_grad() {
            let factor = factors.of(r);
            for c in 0..classes {
                grad[at(c)] = times(row.grad[c], factor);
                grad_magnitudes[at(c)] = times(row.grad_magnitudes[c], factor.abs());
            }
        }
    }
    Output {
        loss: pass
            .has_loss()
            .then(|| reduce(op.reduction, divisor, &rows_shape, losses, loss_magnitudes)),
        grad: pass.has_grad().then(|| Values {
            shape: shape.to_vec(),
            values: grad,
            magnitudes: grad_magnitudes,
        }),
        state: None,
        status: None,
    }
}
