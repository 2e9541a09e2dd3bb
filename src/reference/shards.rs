//! Partials of rows from their definition, and the rows that those of all shards come to.

use super::cross_entropy::{Row, logit};
use super::{Values, times};
use crate::ops::CrossEntropy;
use crate::{Args, Array, Role};

/// The words of a partial (`shaders/shared/row_state.wgsl`).
const WORDS: usize = 8;
const CLASS_BITS: u32 = 25;
const NORMAL_BITS: u32 = 0x4000_0000;

const HAS_NAN_LOGIT: u32 = 1;
const HAS_POSITIVE_COST: u32 = 2;
const HAS_NEGATIVE_COST: u32 = 4;
const HAS_NAN_TARGET: u32 = 8;

/// What some classes of a row come to, beside T of what is a sum of terms of both signs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Partial {
    m: f64,
    exp_sum_below: f64,
    max_count: f64,
    target_below: f64,
    target_at_max: f64,
    margin_sum: f64,
    entropy_sum: f64,
    flags: u32,
    first_at_max: u32,
    below_magnitude: f64,
    at_max_magnitude: f64,
    margin_magnitude: f64,
}

/// A number of the input as partials have it: a cap is part of it, a scale alone is one of distances.
fn number(op: &CrossEntropy, x: f64) -> f64 {
    if op.softcap.is_some() { logit(op, x) } else { x }
}

/// What distances between such numbers are multiplied by.
fn distance_scale(op: &CrossEntropy) -> f64 {
    if op.softcap.is_some() { 1.0 } else { op.logit_scale }
}

impl Partial {
    const EMPTY: Partial = Partial {
        m: f32::MIN as f64,
        exp_sum_below: 0.0,
        max_count: 0.0,
        target_below: 0.0,
        target_at_max: 0.0,
        margin_sum: 0.0,
        entropy_sum: 0.0,
        flags: 0,
        first_at_max: 0,
        below_magnitude: 0.0,
        at_max_magnitude: 0.0,
        margin_magnitude: 0.0,
    };

    /// Of a shard's numbers of the input, with the weights of their targets.
    fn of(op: &CrossEntropy, input: &[f64], a: &[f64]) -> Self {
        let mut found = Partial::EMPTY;
        for (&x, &a) in input.iter().zip(a) {
            let is_masked = x == f64::NEG_INFINITY;
            let flags = [
                (x.is_nan() || x == f64::INFINITY, HAS_NAN_LOGIT),
                (is_masked && a > 0.0, HAS_POSITIVE_COST),
                (is_masked && a < 0.0, HAS_NEGATIVE_COST),
                (a.is_nan(), HAS_NAN_TARGET),
            ];
            found.flags |=
                flags.iter().filter(|(is_set, _)| *is_set).map(|(_, flag)| flag).sum::<u32>();
        }
        let largest = input.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if found.flags & HAS_NAN_LOGIT != 0 {
            return Partial { m: f64::NAN, ..found };
        }
        let numbers = || input.iter().map(|&x| number(op, x));
        let is_masked = largest == f64::NEG_INFINITY;
        if !is_masked {
            found.m = number(op, largest);
            let first = input.iter().position(|&x| x == largest).unwrap_or(0);
            found.first_at_max = op.first_class as u32 + first as u32;
        }
        for (x, &a) in numbers().zip(a) {
            if x == found.m && !is_masked {
                found.max_count += 1.0;
                found.target_at_max += a;
                found.at_max_magnitude += a.abs();
                continue;
            }
            found.target_below += a;
            found.below_magnitude += a.abs();
            if x == f64::NEG_INFINITY {
                // an infinite cost is a flag
                continue;
            }
            let distance = (found.m - x) * distance_scale(op);
            found.exp_sum_below += (-distance).exp();
            found.entropy_sum += times((-distance).exp(), distance);
            found.margin_sum += times(a, distance);
            found.margin_magnitude += times(a.abs(), distance);
        }
        found
    }

    fn words(&self, has_row_outputs: bool) -> [f64; WORDS] {
        let first = if has_row_outputs { self.first_at_max.min((1 << CLASS_BITS) - 1) } else { 0 };
        let bits = f32::from_bits(NORMAL_BITS | self.flags << CLASS_BITS | first);
        let entropy_sum = if has_row_outputs { self.entropy_sum } else { 0.0 };
        [
            self.m,
            self.exp_sum_below,
            self.max_count,
            self.target_below,
            self.target_at_max,
            self.margin_sum,
            bits.into(),
            entropy_sum,
        ]
    }

    fn magnitudes(&self) -> [f64; WORDS] {
        let Partial { below_magnitude, at_max_magnitude, margin_magnitude, .. } = *self;
        let [m, sum] = [self.m.abs(), self.exp_sum_below];
        [m, sum, 0.0, below_magnitude, at_max_magnitude, margin_magnitude, 0.0, self.entropy_sum]
    }

    fn from_words(words: &[f64]) -> Self {
        let bits = (words[6] as f32).to_bits() & (NORMAL_BITS - 1);
        Partial {
            m: words[0],
            exp_sum_below: words[1],
            max_count: words[2],
            target_below: words[3],
            target_at_max: words[4],
            margin_sum: words[5],
            entropy_sum: words[7],
            flags: bits >> CLASS_BITS,
            first_at_max: bits & ((1 << CLASS_BITS) - 1),
            below_magnitude: words[3].abs(),
            at_max_magnitude: words[4].abs(),
            margin_magnitude: words[5].abs(),
        }
    }

    /// What the classes of all of these come to.
    fn all(op: &CrossEntropy, parts: &[Partial]) -> Self {
        let flags = parts.iter().fold(0, |flags, part| flags | part.flags);
        let all = Partial { flags, ..Partial::EMPTY };
        let there = || parts.iter().filter(|part| part.max_count > 0.0);
        let m = there().map(|part| part.m).fold(f64::NEG_INFINITY, f64::max);
        if m.is_infinite() || flags & HAS_NAN_LOGIT != 0 {
            // all are masked, or there is nothing to know
            return all;
        }
        let first_at_max = there().filter(|part| part.m == m).map(|part| part.first_at_max).min();
        let mut all = Partial { m, first_at_max: first_at_max.unwrap_or(0), ..all };
        for part in parts {
            let target_sum = part.target_below + part.target_at_max;
            let magnitude = part.below_magnitude + part.at_max_magnitude;
            let distance = (m - part.m) * distance_scale(op);
            if part.max_count == 0.0 {
                // Its costs are flags, and of its target weights there is only their sum.
                all.target_below += target_sum;
                all.below_magnitude += magnitude;
                continue;
            }
            let is_at_max = part.m == m;
            let exp_sum = part.exp_sum_below + part.max_count;
            let factor = (-distance).exp();
            let [below, at_max] = match is_at_max {
                true => [part.exp_sum_below, part.max_count],
                false => [exp_sum * factor, 0.0],
            };
            all.exp_sum_below += below;
            all.max_count += at_max;
            all.entropy_sum += times(factor, part.entropy_sum + times(exp_sum, distance));
            all.margin_sum += part.margin_sum + times(target_sum, distance);
            all.margin_magnitude += part.margin_magnitude + times(magnitude, distance);
            let (below, at_max) = match is_at_max {
                true => (part.target_below, part.target_at_max),
                false => (target_sum, 0.0),
            };
            all.target_below += below;
            all.target_at_max += at_max;
            let (below, at_max) = match is_at_max {
                true => (part.below_magnitude, part.at_max_magnitude),
                false => (magnitude, 0.0),
            };
            all.below_magnitude += below;
            all.at_max_magnitude += at_max;
        }
        all
    }

    /// The row, with the gradients of some of its classes: numbers of the input, and the weights of their
    /// targets. The loss is `T log1p(s) + margin_sum` and a gradient `p[c] T - a[c]`, where T is all target
    /// weight and s what is beside one class at the maximum, relative to it.
    pub fn row(&self, op: &CrossEntropy, input: &[f64], a: &[f64]) -> Row {
        if self.max_count == 0.0 || self.flags & (HAS_NAN_LOGIT | HAS_NAN_TARGET) != 0 {
            let mut row = Row::nan(input.len());
            if self.max_count > 0.0 {
                (row.logsumexp, row.entropy, row.argmax) = self.of_logits(op);
            }
            return row;
        }
        let (logsumexp, entropy, argmax) = self.of_logits(op);
        let s = self.exp_sum_below + (self.max_count - 1.0);
        let target_sum = self.target_below + self.target_at_max;
        let magnitude = self.below_magnitude + self.at_max_magnitude;
        let loss = match self.flags & (HAS_POSITIVE_COST | HAS_NEGATIVE_COST) {
            0 => target_sum * s.ln_1p() + self.margin_sum,
            HAS_POSITIVE_COST => f64::INFINITY,
            HAS_NEGATIVE_COST => f64::NEG_INFINITY,
            _ => f64::NAN,
        };
        let loss_magnitude = magnitude * s.ln_1p() + self.margin_magnitude;
        let scale = distance_scale(op);
        let is_only_max = |x: f64| x == self.m && self.max_count == 1.0;
        let numbers: Vec<f64> = input.iter().map(|&x| number(op, x)).collect();
        let p: Vec<f64> =
            numbers.iter().map(|x| ((x - self.m) * scale).exp() / (1.0 + s)).collect();
        let grad = numbers.iter().zip(a).zip(&p).map(|((&x, a), p)| match is_only_max(x) {
            // p[c] a[c] is part of both terms, and left out of them
            true => (self.target_below - s * self.target_at_max) / (1.0 + s),
            false => p * target_sum - a,
        });
        let of_max = (self.below_magnitude + s * self.at_max_magnitude) / (1.0 + s);
        let grad_magnitudes = numbers
            .iter()
            .zip(a)
            .zip(&p)
            .map(|((&x, a), p)| if is_only_max(x) { of_max } else { p * magnitude + a.abs() });
        Row {
            logsumexp,
            entropy,
            argmax,
            loss,
            loss_magnitude,
            grad: grad.collect(),
            grad_magnitudes: grad_magnitudes.collect(),
            p,
        }
    }

    /// Logsumexp, entropy and the largest class.
    pub fn of_logits(&self, op: &CrossEntropy) -> (f64, f64, Option<usize>) {
        if self.max_count == 0.0 || self.flags & HAS_NAN_LOGIT != 0 {
            return (f64::NAN, f64::NAN, None);
        }
        let s = self.exp_sum_below + (self.max_count - 1.0);
        let logsumexp = self.m * distance_scale(op) + s.ln_1p();
        let entropy = s.ln_1p() + self.entropy_sum / (1.0 + s);
        (logsumexp, entropy, Some(self.first_at_max as usize))
    }

    /// The sum of the absolute values of the weights of all targets.
    pub fn target_magnitude(&self) -> f64 {
        self.below_magnitude + self.at_max_magnitude
    }
}

/// What all shards have told of each row, if that is among the arguments.
pub(super) fn told(op: &CrossEntropy, args: &Args<Array<'_>>) -> Option<Vec<Partial>> {
    let partials = args.get(Role::Partials)?;
    let of_row = WORDS * partials.shape()[1];
    let rows = partials.to_f64();
    let merged = |row: &[f64]| {
        let parts: Vec<_> = row.chunks(WORDS).map(Partial::from_words).collect();
        Partial::all(op, &parts)
    };
    Some(rows.chunks(of_row).map(merged).collect())
}

/// What a shard tells of rows: the numbers of the input and the weights of their targets, or nothing.
pub(super) fn partials(
    op: &CrossEntropy,
    rows: impl Iterator<Item = Option<(Vec<f64>, Vec<f64>)>>,
) -> Vec<Partial> {
    let of_row = |row: Option<(Vec<f64>, Vec<f64>)>| match row {
        Some((input, a)) => Partial::of(op, &input, &a),
        None => Partial::EMPTY,
    };
    rows.map(of_row).collect()
}

/// Partials of rows as they lie in memory.
pub(super) fn values(op: &CrossEntropy, partials: &[Partial]) -> Values {
    Values {
        shape: vec![partials.len(), 1, WORDS],
        values: partials.iter().flat_map(|part| part.words(op.row_outputs)).collect(),
        magnitudes: partials.iter().flat_map(Partial::magnitudes).collect(),
    }
}
