//! Cross entropy from its definition.

use super::shards::{partials, told, values};
use super::{Factors, Values, reduce, times};
use crate::ops::{CrossEntropy, has_classes};
use crate::{Args, Array, Output, Pass, Reduction, Role};

/// The loss of a row and its gradient, and T beside both.
pub(super) struct Row {
    pub logsumexp: f64,
    pub entropy: f64,
    pub argmax: Option<usize>,
    pub loss: f64,
    pub loss_magnitude: f64,
    pub grad: Vec<f64>,
    pub grad_magnitudes: Vec<f64>,
    pub p: Vec<f64>,
}

impl Row {
    /// One of which nothing is known.
    pub fn nan(classes: usize) -> Row {
        let nan = vec![f64::NAN; classes];
        Row {
            logsumexp: f64::NAN,
            entropy: f64::NAN,
            argmax: None,
            loss: f64::NAN,
            loss_magnitude: f64::NAN,
            grad: nan.clone(),
            grad_magnitudes: nan.clone(),
            p: nan,
        }
    }
}

/// `loss = sum of a[c] * -ln p[c]` and `grad[c] = p[c] * (sum of a) - a[c]`, with `p = softmax(x)`.
pub(super) fn row(x: &[f64], a: &[f64]) -> Row {
    let m = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if x.iter().any(|v| v.is_nan()) || m.is_infinite() {
        return Row::nan(x.len());
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
    let p: Vec<_> = x.iter().map(|x| (x - m).exp() / (1.0 + s)).collect();
    let mut grad: Vec<_> = (0..x.len()).map(|c| p[c] * sum - a[c]).collect();
    let mut grad_magnitudes: Vec<_> = (0..x.len()).map(|c| p[c] * sum_abs + a[c].abs()).collect();
    // At k the two terms share p[k] * a[k], which is left out of both.
    let rest = others().map(|c| a[c]).sum::<f64>();
    let rest_abs = others().map(|c| a[c].abs()).sum::<f64>();
    grad[k] = p[k] * rest - a[k] * (s / (1.0 + s));
    grad_magnitudes[k] = p[k] * rest_abs + a[k].abs() * (s / (1.0 + s));
    // each term is at least 0; 0 ln 0 is 0
    let entropy = s.ln_1p() + (0..x.len()).map(|c| times(p[c], m - x[c])).sum::<f64>();
    let logsumexp = m + s.ln_1p();
    let argmax = Some(k);
    Row { logsumexp, entropy, argmax, loss, loss_magnitude, grad, grad_magnitudes, p }
}

/// The loss with `z * logsumexp^2` added, whose derivative is `2 z logsumexp p[c]`.
pub(super) fn add_z_loss(row: &mut Row, z: f64) {
    row.loss += z * row.logsumexp.powi(2);
    row.loss_magnitude += (z * row.logsumexp.powi(2)).abs();
    for (c, p) in row.p.iter().enumerate() {
        let term = 2.0 * z * row.logsumexp * p;
        row.grad[c] += term;
        row.grad_magnitudes[c] += term.abs();
    }
}

/// Over arguments that [`CrossEntropy`]'s checks have passed.
pub(crate) fn cross_entropy(
    op: &CrossEntropy,
    pass: Pass,
    args: &Args<Array<'_>>,
) -> Output<Values> {
    let shape = args.input().shape();
    // Row r = (n, d) with class c lies at (n * classes + c) * positions + d.
    let (classes, positions, rows_shape) = match *shape {
        [batch, classes, ref rest @ ..] => {
            (classes, rest.iter().product::<usize>(), [&[batch], rest].concat())
        }
        _ => (shape[0], 1, vec![]),
    };
    let rows: usize = rows_shape.iter().product();
    let input = args.input().to_f64();
    let targets = args.get(Role::Target).expect("checked");
    // class indices, or probabilities
    let target = has_classes(&args.layouts()).then(|| targets.to_i64().expect("checked"));
    let probabilities = targets.to_f64();
    let weights = args.get(Role::Weight).map(Array::to_f64);
    let weight = |c: usize| weights.as_ref().map_or(1.0, |weights| weights[c]);

    // The class of a row; of an ignored one, the row is left out.
    let class = |r: usize| target.as_ref().map(|target| target[r]);
    let is_kept = |r: &usize| class(*r) != Some(op.ignore_index);
    let kept: Vec<usize> = (0..rows).filter(is_kept).collect();
    let divisor_here = divisor_of(op, rows, classes, target.as_deref(), weight);
    let given_divisor = args.get(Role::Divisor).map(|divisor| divisor.to_f64()[0]);
    let divisor = given_divisor.unwrap_or(divisor_here);
    let factors = Factors::new(op.reduction, divisor, args);
    let at = |r: usize, c: usize| (r / positions * classes + c) * positions + r % positions;
    let input_of = |r| -> Vec<f64> { (0..classes).map(|c| input[at(r, c)]).collect() };
    let shares_of = |r| {
        shares(op, classes, weight, |c| match class(r) {
            Some(y) => f64::from(u8::from(y == op.first_class + c as i64)),
            None => probabilities[at(r, c)],
        })
    };
    let told = told(op, args);
    if pass == Pass::Partials {
        let of_row = |r: usize| match is_kept(&r) {
            true => Some((input_of(r), shares_of(r))),
            false => op.row_outputs.then(|| (input_of(r), vec![0.0; classes])),
        };
        let divisor = Values {
            shape: vec![],
            values: vec![divisor_here],
            magnitudes: vec![divisor_here.abs()],
        };
        let found = told.unwrap_or_else(|| partials(op, (0..rows).map(of_row)));
        return Output::default()
            .with(Role::Partial, values(op, &found))
            .with_some(Role::Divisor, target.is_some().then_some(divisor));
    }

    // Ignored rows keep these zeros: neither the row nor its upstream is looked at.
    let (mut losses, mut loss_magnitudes) = (vec![0.0; rows], vec![0.0; rows]);
    let (mut grad, mut grad_magnitudes) = (vec![0.0; input.len()], vec![0.0; input.len()]);
    for &r in &kept {
        let (x, a) = (input_of(r), shares_of(r));
        let mut row = match &told {
            Some(told) => told[r].row(op, &x, &a),
            None => row(&x.iter().map(|&x| logit(op, x)).collect::<Vec<_>>(), &a),
        };
        if op.z_loss != 0.0 {
            add_z_loss(&mut row, op.z_loss);
        }
        losses[r] = row.loss;
        loss_magnitudes[r] = row.loss_magnitude;
        if pass.has_grad() {
            let factor = factors.of(r);
            for c in 0..classes {
                let slope = slope(op, input[at(r, c)]);
                grad[at(r, c)] = times(row.grad[c] * slope, factor);
                grad_magnitudes[at(r, c)] = times(row.grad_magnitudes[c] * slope, factor.abs());
            }
        }
    }
    let mut loss = reduce(op.reduction, divisor, &rows_shape, losses, loss_magnitudes);
    let is_of_none = kept.is_empty() && given_divisor.is_none_or(|divisor| divisor == 0.0);
    if op.reduction == Reduction::Mean && is_of_none {
        loss.values = vec![op.empty_mean];
    }
    let grad = || Values { shape: shape.to_vec(), values: grad, magnitudes: grad_magnitudes };
    let mut output = Output::default()
        .with_some(Role::Loss, pass.has_loss().then_some(loss))
        .with_some(Role::Grad, pass.has_grad().then(grad));
    if pass.has_loss() && op.row_outputs {
        let per_row = |value: &dyn Fn(usize) -> f64, magnitude: fn(&f64) -> f64| {
            let values: Vec<f64> = (0..rows).map(value).collect();
            let magnitudes = values.iter().map(magnitude).collect();
            Values { shape: rows_shape.clone(), values, magnitudes }
        };
        // an absolute error, in units of max(1, |value|); integers have none
        let at_least_1 = |value: &f64| value.abs().max(1.0);
        let exact = |_: &f64| 0.0;
        let none = vec![0.0; classes];
        let of_logits = |r: usize| match &told {
            Some(told) => told[r].of_logits(op),
            None => {
                let x: Vec<f64> = input_of(r).into_iter().map(|x| logit(op, x)).collect();
                // of the input itself: a cap makes ties of large logits
                let argmax = row(&input_of(r), &none).argmax;
                let row = row(&x, &none);
                (row.logsumexp, row.entropy, argmax)
            }
        };
        let of_logits: Vec<_> = (0..rows).map(of_logits).collect();
        let entropies: Vec<f64> = of_logits.iter().map(|&(_, entropy, _)| entropy).collect();
        let entropies =
            Values { shape: rows_shape.clone(), magnitudes: entropies.clone(), values: entropies };
        let argmax = |r: usize| of_logits[r].2.map_or(-1.0, |k| k as f64);
        let correct = target.as_ref().map(|target| {
            let is_correct = |r: usize| {
                let is_kept = target[r] != op.ignore_index;
                f64::from(u8::from(is_kept && argmax(r) == target[r] as f64))
            };
            per_row(&is_correct, exact)
        });
        output = output
            .with(Role::LogSumExp, per_row(&|r| of_logits[r].0, at_least_1))
            .with(Role::Argmax, per_row(&argmax, exact))
            .with_some(Role::Correct, correct)
            .with(Role::Entropy, entropies);
    }
    output
}

/// The sum of the weights of targets that are among these classes, and their count without targets.
pub(super) fn divisor_of(
    op: &CrossEntropy,
    rows: usize,
    classes: usize,
    target: Option<&[i64]>,
    weight: impl Fn(usize) -> f64,
) -> f64 {
    let Some(target) = target else { return rows as f64 };
    let here = target.iter().filter(|&&y| y != op.ignore_index).map(|y| y - op.first_class);
    here.filter(|y| (0..classes as i64).contains(y)).map(|y| weight(y as usize)).sum()
}

/// What multiplies `-ln p[c]` in the loss of a row whose target gives class c the share `t(c)`.
pub(super) fn shares(
    op: &CrossEntropy,
    classes: usize,
    weight: impl Fn(usize) -> f64,
    t: impl Fn(usize) -> f64,
) -> Vec<f64> {
    let (e, share) = (op.label_smoothing, op.label_smoothing / op.all_classes(classes) as f64);
    (0..classes).map(|c| times(weight(c), times(1.0 - e, t(c)) + share)).collect()
}

/// What becomes of a number of the input before the softmax.
pub(super) fn logit(op: &CrossEntropy, x: f64) -> f64 {
    match op.softcap {
        // -inf masks a class, with a cap too; +inf is no logit
        Some(cap) if x.is_finite() => cap * (op.logit_scale * x / cap).tanh(),
        _ => op.logit_scale * x,
    }
}

/// The derivative of that; of a masked class as if there were no cap.
pub(super) fn slope(op: &CrossEntropy, x: f64) -> f64 {
    match op.softcap {
        Some(cap) if x.is_finite() => op.logit_scale * (op.logit_scale * x / cap).cosh().powi(-2),
        _ => op.logit_scale,
    }
}
