//! Linear cross entropy from its definition.

use std::borrow::Cow;

use super::cross_entropy::{add_z_loss, cross_entropy, divisor_of, logit, row, shares, slope};
use super::shards::{Partial, told};
use super::{Factors, Tolerance, Values};
use crate::ops::{CrossEntropy, LinearCrossEntropy, LinearShape, Op};
use crate::{Args, Array, Data, Output, Pass, Reduction, Role};

/// Half a unit in the last place of f32, relative to the number.
const ROUNDING: f64 = 1.0 / (1 << 24) as f64;

/// Over arguments that [`LinearCrossEntropy`]'s checks have passed.
///
/// T stands here for an error by which a result may be off: that of the logits' own rounding, which
/// moves a row as far as its slopes say, comes to cross entropy's.
pub(crate) fn linear_cross_entropy(
    op: &LinearCrossEntropy,
    pass: Pass,
    args: &Args<Array<'_>>,
) -> Output<Values> {
    let shape = LinearShape::of(&args.layouts()).expect("checked");
    let LinearShape { rows, dims, classes } = shape;
    let of = |role| args.get(role).map(Array::to_f64);
    let (x, w) = (args.input().to_f64(), of(Role::Projection).expect("checked"));
    let logits = Logits::new(shape, &x, &w, of(Role::Bias).as_deref());

    let array = Array::from_data(Data::F64(Cow::Borrowed(&logits.values)), &[rows, classes]);
    let mut of_logits = Args::new(array.expect("a logit for every class of a row"));
    of_logits = of_logits.target(args.get(Role::Target).expect("checked").clone());
    if let Some(weight) = args.get(Role::Weight) {
        of_logits = of_logits.weight(weight.clone());
    }
    if let Some(upstream) = args.get(Role::Upstream) {
        of_logits = of_logits.upstream(upstream.clone());
    }
    if let Some(partials) = args.get(Role::Partials) {
        of_logits = of_logits.partials(partials.clone());
    }
    if let Some(divisor) = args.get(Role::Divisor) {
        of_logits = of_logits.divisor(divisor.clone());
    }
    let mut output = cross_entropy(&op.loss, pass, &of_logits);
    if pass == Pass::Partials {
        // beside the rounding of their logits, which moves them
        return output;
    }
    let moves = Moves::of_rows(&op.loss, &logits, &of_logits);

    // What comes of the logits' rounding, in units of what is promised of the result.
    let rows_shape = &args.input().shape()[..args.input().shape().len() - 1];
    let mut results = Output::default();
    for role in [Role::Loss, Role::LogSumExp, Role::Argmax, Role::Correct, Role::Entropy] {
        let Some(mut values) = output.take(role) else { continue };
        moves.add_to(role, &mut values, op.promise(role));
        if values.shape == [rows] {
            values.shape = rows_shape.to_vec();
        }
        results = results.with(role, values);
    }

    let Some(grad) = output.take(Role::Grad) else { return results };
    let promise = op.promise(Role::Grad);
    // by how much each logit's gradient may be off
    let mut errors = moves.grads;
    for (r, errors) in errors.chunks_mut(classes).enumerate() {
        let Some(factor) = moves.factors[r] else { continue };
        let of_row = promise.scaled(factor);
        let flushed = f64::from(f32::MIN_POSITIVE) * (1.0 + factor);
        for (error, magnitude) in errors.iter_mut().zip(&grad.magnitudes[r * classes..]) {
            // where no digits are promised, a result is about as small, or 0
            *error += of_row.promised(*magnitude).min(*magnitude) + flushed;
        }
    }
    let g = Terms { values: &grad.values, errors: &errors };
    let has_bias = args.get(Role::Bias).is_some();
    let given = |role| args.get(role).map(Array::to_f64);
    if op.gives(Role::Grad, pass, has_bias) {
        let mut sums = Sums::new(rows * dims, None);
        for r in 0..rows {
            for c in 0..classes {
                let into = r * dims..(r + 1) * dims;
                sums.add(into, g.at(r * classes + c), &w[c * dims..(c + 1) * dims]);
            }
        }
        let values = sums.values(args.input().shape(), classes, promise);
        results = results.with(Role::Grad, values);
    }
    if op.gives(Role::GradProjection, pass, has_bias) {
        let mut sums = Sums::new(classes * dims, given(Role::GradProjection));
        for r in 0..rows {
            for c in 0..classes {
                let into = c * dims..(c + 1) * dims;
                sums.add(into, g.at(r * classes + c), &x[r * dims..(r + 1) * dims]);
            }
        }
        let values = sums.values(&[classes, dims], rows, promise);
        results = results.with(Role::GradProjection, values);
    }
    if op.gives(Role::GradBias, pass, has_bias) {
        let mut sums = Sums::new(classes, given(Role::GradBias));
        for r in 0..rows {
            (0..classes).for_each(|c| sums.add(c..c + 1, g.at(r * classes + c), &[1.0]));
        }
        let values = sums.values(&[classes], rows, promise);
        results = results.with(Role::GradBias, values);
    }
    results
}

/// `x W^T + b`.
struct Logits {
    shape: LinearShape,
    values: Vec<f64>,
    /// By how much f32 may round each: L of the op's documentation. 0 of those that are not finite.
    roundings: Vec<f64>,
}

impl Logits {
    fn new(shape: LinearShape, x: &[f64], w: &[f64], bias: Option<&[f64]>) -> Self {
        let LinearShape { rows, dims, classes } = shape;
        let (mut values, mut roundings) = (Vec::new(), Vec::new());
        for r in 0..rows {
            let x = &x[r * dims..(r + 1) * dims];
            for c in 0..classes {
                let products = || x.iter().zip(&w[c * dims..]).map(|(x, w)| x * w);
                let b = bias.map_or(0.0, |bias| bias[c]);
                let value = products().sum::<f64>() + b;
                let size: f64 = products().map(f64::abs).sum();
                let rounding = (dims + 8) as f64 * ROUNDING * size + ROUNDING * b.abs();
                values.push(value);
                roundings.push(if value.is_finite() { rounding } else { 0.0 });
            }
        }
        Logits { shape, values, roundings }
    }
}

/// By how much results of rows move at most while each logit moves by no more than its rounding.
struct Moves {
    /// Of each row that is kept: the absolute value of what its gradient is multiplied by.
    factors: Vec<Option<f64>>,
    reduction: Reduction,
    divisor: f64,
    losses: Vec<f64>,
    /// Of each logit's gradient, multiplied by the row's factor.
    grads: Vec<f64>,
    logsumexps: Vec<f64>,
    entropies: Vec<f64>,
    /// From the largest class to the furthest one that rounding may make the largest.
    argmaxes: Vec<f64>,
    /// 1 where rounding may make a target the largest class, or another one.
    corrects: Vec<f64>,
}

impl Moves {
    fn of_rows(op: &CrossEntropy, logits: &Logits, args: &Args<Array<'_>>) -> Self {
        let LinearShape { rows, classes, .. } = logits.shape;
        let targets = args.get(Role::Target).and_then(|target| target.to_i64().ok());
        let targets = targets.expect("checked");
        let weights = args.get(Role::Weight).map(Array::to_f64);
        let weight = |c: usize| weights.as_ref().map_or(1.0, |weights| weights[c]);
        let is_kept = |r: &usize| targets[*r] != op.ignore_index;
        let given = args.get(Role::Divisor).map(|divisor| divisor.to_f64()[0]);
        let divisor =
            given.unwrap_or_else(|| divisor_of(op, rows, classes, Some(&targets), weight));
        let factors = Factors::new(op.reduction, divisor, args);
        let factor_of = |r| is_kept(&r).then(|| factors.of(r).abs());
        let mut moves = Moves {
            factors: (0..rows).map(factor_of).collect(),
            reduction: op.reduction,
            divisor,
            losses: vec![0.0; rows],
            grads: vec![0.0; rows * classes],
            logsumexps: vec![0.0; rows],
            entropies: vec![0.0; rows],
            argmaxes: vec![0.0; rows],
            corrects: vec![0.0; rows],
        };
        let told = told(op, args);
        for (r, &target) in targets.iter().enumerate() {
            let of_row = r * classes..(r + 1) * classes;
            let (u, rounding) = (&logits.values[of_row.clone()], &logits.roundings[of_row.clone()]);
            let hot = |c: usize| f64::from(u8::from(op.first_class + c as i64 == target));
            let a = match moves.factors[r] {
                Some(_) => shares(op, classes, weight, hot),
                None => vec![0.0; classes],
            };
            if let Some(told) = &told {
                // of the row itself nothing moves, since partials are given
                let Some(factor) = moves.factors[r] else { continue };
                let moved = moved_of_shard(op, &told[r], u, rounding, &a);
                for (sum, grad) in moves.grads[of_row].iter_mut().zip(moved) {
                    *sum = factor * grad;
                }
                continue;
            }
            let Some(moved) = Moved::of(op, u, rounding, &a) else { continue };
            moves.logsumexps[r] = moved.logsumexp;
            moves.entropies[r] = moved.entropy;
            let ties = moved.ties;
            moves.argmaxes[r] =
                ties.iter().map(|&c| c.abs_diff(moved.argmax)).max().unwrap_or(0) as f64;
            if let Some(factor) = moves.factors[r] {
                let target = target as usize;
                let may_change =
                    ties.contains(&target) || target == moved.argmax && !ties.is_empty();
                moves.corrects[r] = f64::from(u8::from(may_change));
                moves.losses[r] = moved.loss;
                for (sum, grad) in moves.grads[of_row].iter_mut().zip(moved.grad) {
                    *sum = factor * grad;
                }
            }
        }
        moves
    }

    /// Adds what these moves are in units of the promise.
    fn add_to(&self, role: Role, values: &mut Values, promise: Tolerance) {
        let mut add = |moves: &[f64], promise: Tolerance| {
            for (magnitude, error) in values.magnitudes.iter_mut().zip(moves) {
                *magnitude += promise.magnitude_for(*error);
            }
        };
        match (role, self.reduction) {
            (Role::Loss, Reduction::None) => add(&self.losses, promise),
            (Role::Loss, reduction) => {
                let over = if reduction == Reduction::Mean { self.divisor } else { 1.0 };
                add(&[self.losses.iter().sum::<f64>() / over.abs()], promise);
            }
            (Role::LogSumExp, _) => add(&self.logsumexps, promise),
            (Role::Entropy, _) => add(&self.entropies, promise),
            // comparators hold integers to this promise, whatever the options
            (Role::Argmax, _) => add(&self.argmaxes, Tolerance::LOSS),
            (Role::Correct, _) => add(&self.corrects, Tolerance::LOSS),
            _ => {}
        }
    }
}

/// By how much a row's results move at most.
struct Moved {
    loss: f64,
    grad: Vec<f64>,
    logsumexp: f64,
    entropy: f64,
    argmax: usize,
    /// Which other classes may become the largest.
    ties: Vec<usize>,
}

impl Moved {
    /// Of a row of numbers `u` which become its logits, when each moves by at most its rounding. `None` where
    /// all is NaN.
    ///
    /// Each bound holds all the way from the logits as they are to those that have moved: with L the largest
    /// move, a probability grows and shrinks by e^2L at most, and so does what it leaves of 1.
    fn of(op: &CrossEntropy, u: &[f64], rounding: &[f64], a: &[f64]) -> Option<Moved> {
        let classes = u.len();
        let z: Vec<f64> = u.iter().map(|&u| logit(op, u)).collect();
        let mut row = row(&z, a);
        let argmax = super::cross_entropy::row(u, a).argmax?;
        let k = row.argmax?;
        let slopes: Vec<Slope> =
            u.iter().zip(rounding).map(|(&u, &rounding)| Slope::of(op, u, rounding)).collect();
        let moves: Vec<f64> = slopes.iter().zip(rounding).map(|(s, r)| s.largest * r).collect();
        let largest = moves.iter().copied().fold(0.0, f64::max);

        // of the largest class, what the others leave of 1 is summed: 1 - p would lose its digits
        let others = || (0..classes).filter(|&c| c != k);
        let s: f64 = others().map(|c| (z[c] - z[k]).exp()).sum();
        let p: Vec<f64> = (0..classes).map(|c| (z[c] - z[k]).exp() / (1.0 + s)).collect();
        let rest = |c: usize| if c == k { s / (1.0 + s) } else { 1.0 - p[c] };
        let sum: f64 = (0..classes).map(|c| p[c] * moves[c]).sum();
        let sum_of_others = |c: usize| match c == k {
            true => others().map(|c| p[c] * moves[c]).sum::<f64>(),
            false => (sum - p[c] * moves[c]).max(0.0),
        };
        let grown = (2.0 * largest).exp();
        let probabilities: Vec<f64> = (0..classes)
            .map(|c| {
                // the derivative along the move, and two plain bounds, for moves that are large
                let slope = p[c] * (rest(c) * moves[c] + sum_of_others(c));
                let plain = (2.0 * largest).exp_m1() * p[c].min(rest(c));
                (grown * grown * slope).min(plain).min(1.0)
            })
            .collect();
        let logsumexp = (grown * sum).min(largest);

        let total = a.iter().sum::<f64>().abs();
        let of_class = |c: usize| moves[c] * (row.grad[c].abs() + total * probabilities[c]);
        let each = |c: usize| a[c].abs() * (moves[c] + largest);
        let loss = (0..classes).map(of_class).sum::<f64>().min((0..classes).map(each).sum());
        let z_loss = op.z_loss.abs() * (2.0 * row.logsumexp.abs() + logsumexp) * logsumexp;

        let by_logsumexp = 2.0 * op.z_loss.abs();
        if op.z_loss != 0.0 {
            add_z_loss(&mut row, op.z_loss);
        }
        let grad = (0..classes).map(|c| {
            let of_z_loss =
                row.logsumexp.abs() * probabilities[c] + logsumexp * (p[c] + probabilities[c]);
            let moved = total * probabilities[c] + by_logsumexp * of_z_loss;
            let Slope { here, change, .. } = slopes[c];
            here * moved + change * (row.grad[c].abs() + moved)
        });

        // dH = sum of p[c] (-ln p[c] - H) dz[c]; on the way the term in brackets moves by twice the largest
        // move and by what H does
        let share = |c: usize| (grown * p[c]).min(1.0) * moves[c];
        let bracket = |c: usize| (row.logsumexp - z[c] - row.entropy).abs() + 2.0 * largest;
        let possible = (0..classes).filter(|&c| p[c] > 0.0);
        let (first, of_h) = possible
            .fold((0.0, 0.0), |(first, of_h), c| (first + share(c) * bracket(c), of_h + share(c)));
        let most = (classes as f64).ln();
        let entropy = if of_h < 1.0 { (first / (1.0 - of_h)).min(most) } else { most };

        let reach = |c: usize| rounding[c] + rounding[argmax];
        let ties = (0..classes).filter(|&c| c != argmax && reach(c) > 0.0);
        Some(Moved {
            loss: loss + z_loss,
            grad: grad.collect(),
            logsumexp,
            entropy,
            argmax,
            ties: ties.filter(|&c| u[argmax] - u[c] <= reach(c)).collect(),
        })
    }
}

/// By how much the gradients of a shard's numbers `u` move at most when each moves by at most its rounding, and
/// what all shards have told does not: each probability grows and shrinks by its own logit's.
fn moved_of_shard(
    op: &CrossEntropy,
    told: &Partial,
    u: &[f64],
    rounding: &[f64],
    a: &[f64],
) -> Vec<f64> {
    let row = told.row(op, u, a);
    let total = told.target_magnitude() + 2.0 * (op.z_loss * row.logsumexp).abs();
    let each = (0..u.len()).map(|c| {
        let Slope { here, largest, change } = Slope::of(op, u[c], rounding[c]);
        let moved = total * row.p[c] * (largest * rounding[c]).exp_m1();
        here * moved + change * (row.grad[c].abs() + moved)
    });
    each.collect()
}

/// The derivative of a logit by the number that it is made of.
struct Slope {
    here: f64,
    /// The largest that it has while the number moves by its rounding.
    largest: f64,
    /// By how much it moves meanwhile.
    change: f64,
}

impl Slope {
    fn of(op: &CrossEntropy, u: f64, rounding: f64) -> Slope {
        let here = slope(op, u);
        let Some(cap) = op.softcap.filter(|_| u.is_finite()) else {
            return Slope { here, largest: here, change: 0.0 };
        };
        // scale sech^2(scale u / cap), which falls from 0 on, and whose derivative is
        // -2 scale / cap tanh(scale u / cap) times it
        let largest = slope(op, (u.abs() - rounding).max(0.0));
        let steepness = (op.logit_scale * (u.abs() + rounding) / cap).tanh();
        let change = 2.0 * op.logit_scale / cap * steepness * largest * rounding;
        Slope { here, largest, change: change.min(largest) }
    }
}

/// Numbers that are summed, and by how much each may be off.
struct Terms<'a> {
    values: &'a [f64],
    errors: &'a [f64],
}

impl Terms<'_> {
    fn at(&self, index: usize) -> (f64, f64) {
        (self.values[index], self.errors[index])
    }
}

/// Sums of products of terms, beside the error that they may have and the sums of absolute values.
struct Sums {
    values: Vec<f64>,
    errors: Vec<f64>,
    sizes: Vec<f64>,
}

impl Sums {
    /// Of that many, added to what is given.
    fn new(count: usize, given: Option<Vec<f64>>) -> Self {
        let values = given.unwrap_or_else(|| vec![0.0; count]);
        let sizes = values.iter().map(|value| value.abs()).collect();
        Sums { values, errors: vec![0.0; count], sizes }
    }

    /// Adds the products of a term and these numbers.
    fn add(&mut self, into: std::ops::Range<usize>, (term, error): (f64, f64), by: &[f64]) {
        for (i, by) in into.zip(by) {
            self.values[i] += term * by;
            self.errors[i] += error * by.abs();
            self.sizes[i] += (term * by).abs();
        }
    }

    /// The sums of this many terms each.
    fn values(self, shape: &[usize], terms: usize, promise: Tolerance) -> Values {
        let roundings = (terms + 8) as f64 * ROUNDING;
        let errors = self.errors.iter().zip(&self.sizes);
        let magnitudes =
            errors.map(|(error, size)| promise.magnitude_for(error + roundings * size)).collect();
        Values { shape: shape.to_vec(), values: self.values, magnitudes }
    }
}
