//! Softmax and log-softmax from their definitions.

use super::{Values, cross_entropy, times};
use crate::ops::rows_along;
use crate::shape::ClassShape;
use crate::{Args, Array, Output, Pass, Role};

/// A row's output and gradient, and T beside both.
struct Row {
    output: Vec<f64>,
    output_magnitudes: Vec<f64>,
    grad: Vec<f64>,
    grad_magnitudes: Vec<f64>,
}

/// `p[c] = e^x[c] / sum of e^x`, and its vector-Jacobian product with `g`,
/// `p[c] (g[c] - sum of p[j] g[j])`, taken relative to the largest class's `g`: where that class has
/// nearly all of the mass, the difference would cancel.
pub(crate) fn softmax(dim: i64, pass: Pass, args: &Args<Array<'_>>) -> Output<Values> {
    map_rows(dim, pass, args, |x, g| {
        let (k, p) = probabilities(x);
        let from_k = |j: usize| g[k] - g[j];
        let mean: f64 = (0..x.len()).map(|j| times(p[j], from_k(j))).sum();
        let mean_magnitude: f64 = (0..x.len()).map(|j| times(p[j], from_k(j).abs())).sum();
        // a class of no mass has no gradient, but in rows that are NaN
        let product = |p: f64, value: f64| match mean.is_nan() {
            true => mean,
            false => times(p, value),
        };
        Row {
            output_magnitudes: p.clone(),
            grad: (0..x.len()).map(|c| product(p[c], mean - from_k(c))).collect(),
            grad_magnitudes: (0..x.len())
                .map(|c| product(p[c], mean_magnitude + from_k(c).abs()))
                .collect(),
            output: p,
        }
    })
}

/// `ln p[c] = (x[c] - m) - ln(sum of e^(x - m))`, and `g[c] - p[c] (sum of g)`: the gradient of a
/// cross entropy whose amounts are `-g`.
pub(crate) fn log_softmax(dim: i64, pass: Pass, args: &Args<Array<'_>>) -> Output<Values> {
    map_rows(dim, pass, args, |x, g| {
        let (k, _) = probabilities(x);
        let s: f64 = (0..x.len()).filter(|&c| c != k).map(|c| (x[c] - x[k]).exp()).sum();
        let output: Vec<f64> = x.iter().map(|&v| (v - x[k]) - s.ln_1p()).collect();
        let amounts: Vec<f64> = g.iter().map(|&g| -g).collect();
        let row = cross_entropy::row(x, &amounts);
        Row {
            output_magnitudes: output.iter().map(|v| v.abs()).collect(),
            output,
            grad: row.grad,
            grad_magnitudes: row.grad_magnitudes,
        }
    })
}

/// A class at the maximum, and the probabilities: NaN for a row that has none.
fn probabilities(x: &[f64]) -> (usize, Vec<f64>) {
    let m = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if x.iter().any(|v| v.is_nan()) || m.is_infinite() {
        return (0, vec![f64::NAN; x.len()]);
    }
    let k = x.iter().position(|&v| v == m).expect("m is one of x");
    let sum: f64 = x.iter().map(|v| (v - m).exp()).sum();
    (k, x.iter().map(|v| (v - m).exp() / sum).collect())
}

fn map_rows(
    dim: i64,
    pass: Pass,
    args: &Args<Array<'_>>,
    row: impl Fn(&[f64], &[f64]) -> Row,
) -> Output<Values> {
    let shape = args.input().shape();
    let rows = rows_along(shape, dim).expect("checked");
    let ClassShape { classes, positions, .. } = rows;
    let input = args.input().to_f64();
    let upstream = args.get(Role::Upstream).map_or_else(|| vec![1.0; input.len()], Array::to_f64);
    let zeros = || Values {
        shape: shape.to_vec(),
        values: vec![0.0; input.len()],
        magnitudes: vec![0.0; input.len()],
    };
    let (mut output, mut grad) = (zeros(), zeros());
    // rows of no classes may be more than can be counted to
    let count = if classes == 0 { 0 } else { rows.rows() };
    for r in 0..count {
        let at = |c: usize| (r / positions * classes + c) * positions + r % positions;
        let x: Vec<f64> = (0..classes).map(|c| input[at(c)]).collect();
        let g: Vec<f64> = (0..classes).map(|c| upstream[at(c)]).collect();
        let is_nan_row = probabilities(&x).1[0].is_nan();
        let row = row(&x, &g);
        for c in 0..classes {
            output.values[at(c)] = if is_nan_row { f64::NAN } else { row.output[c] };
            output.magnitudes[at(c)] = row.output_magnitudes[c];
            grad.values[at(c)] = if is_nan_row { f64::NAN } else { row.grad[c] };
            grad.magnitudes[at(c)] = row.grad_magnitudes[c];
        }
    }
    Output::default()
        .with_some(Role::Output, pass.has_loss().then_some(output))
        .with_some(Role::Grad, pass.has_grad().then_some(grad))
}
