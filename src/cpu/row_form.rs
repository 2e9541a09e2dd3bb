//! The row form: what is known of the rows of a tile after one reading, and the gradient from it.
//! The mathematics is that of `shaders/shared/row_form.wgsl`:
//!
//! ```text
//! below = sum over x[c] < m of e^(x[c] - m)        at  = how many classes lie at m
//! rest  = sum over x[c] < m of a[c]                top = sum over x[c] = m of a[c]
//! gap   = sum of a[c] (m - x[c])                   s   = below + (at - 1)
//! loss  = (rest + top) log1p(s) + gap
//! grad[c] = p[c] (rest + top) - a[c];  at a lone maximum:  (rest - s top) / (1 + s)
//! ```
//!
//! Here a tile is read again for each step, since it fits a near cache: first for the maximum, then
//! for the sums, of which the exponentials are left in the tile, then for the gradient from those.
//!
//! `ONE_ROW` says whether a tile is one row. Its lanes then exchange what they have found, and every
//! lane knows the same; otherwise each knows of a row of its own.

use fearless_simd::{ExtractToken, Simd, SimdBase, SimdFloat, SimdMask};

use super::math::{
    LANES, LOWEST, Lanes, Mask, Vector, exp_nonpositive, log1p, select, sum_lanes, tanh, tanh_slope,
};

/// How many vectors are summed before the sum is added to the total: no accumulator takes many.
const BLOCK: usize = 64;

/// What becomes of the numbers of the input.
#[derive(Debug, Clone, Copy)]
pub(super) struct Logits {
    pub scale: f32,
    pub softcap: Option<f32>,
    pub z_loss: f32,
}

impl Logits {
    /// The numbers themselves.
    pub const PLAIN: Logits = Logits { scale: 1.0, softcap: None, z_loss: 0.0 };

    /// What distances from the maximum are multiplied by: with a cap, logits have their scale.
    fn distance_scale(&self) -> f32 {
        if self.softcap.is_some() { 1.0 } else { self.scale }
    }
}

/// What is known of rows.
#[derive(Clone, Copy)]
pub(super) struct Statistics<S: Simd> {
    pub m: Vector<S>,
    pub s: Vector<S>,
    pub rest: Vector<S>,
    pub top: Vector<S>,
    pub gap: Vector<S>,
    /// NaN or +inf among the logits, or nothing but -inf.
    pub is_nan: Mask<S>,
    /// Whether a logit of -inf costs something, and whether it costs less than nothing.
    pub costs: [Mask<S>; 2],
}

#[inline(always)]
fn load<S: Simd>(simd: S, lanes: &Lanes) -> Vector<S> {
    Vector::load_array_ref(simd, lanes)
}

/// Every lane's sum, of a row all lanes'.
#[inline(always)]
fn team_sum<S: Simd, const ONE_ROW: bool>(v: Vector<S>) -> Vector<S> {
    if ONE_ROW { Vector::splat(v.token(), sum_lanes(v)) } else { v }
}

#[inline(always)]
fn team_any<S: Simd, const ONE_ROW: bool>(simd: S, mask: Mask<S>) -> Mask<S> {
    if ONE_ROW { Mask::splat(simd, mask.any_true()) } else { mask }
}

/// The largest number, and whether there is a NaN or +inf among them.
#[inline(always)]
pub(super) fn peak<S: Simd, const ONE_ROW: bool>(simd: S, tile: &[Lanes]) -> (Vector<S>, Mask<S>) {
    let mut m = Vector::splat(simd, LOWEST);
    let mut is_good = Mask::splat(simd, true);
    for x in tile {
        let x = load(simd, x);
        m = x.max(m);
        is_good &= x.simd_lt(f32::INFINITY);
    }
    if ONE_ROW {
        m = Vector::splat(simd, m.reduce_max());
    }
    (m, team_any::<S, ONE_ROW>(simd, !is_good))
}

/// The first class at the maximum in each lane's row; 0 where none is.
#[inline(always)]
pub(super) fn first_at<S: Simd, const ONE_ROW: bool>(
    simd: S,
    tile: &[Lanes],
    m: Vector<S>,
) -> [usize; LANES] {
    let mut first = [usize::MAX; LANES];
    for (vector, x) in tile.iter().enumerate() {
        let mut found = load(simd, x).simd_eq(m).to_bitmask();
        while found != 0 {
            let lane = found.trailing_zeros() as usize;
            first[lane] = first[lane].min(vector);
            found &= found - 1;
        }
    }
    if ONE_ROW {
        let class = |(lane, &vector): (usize, &usize)| {
            (vector != usize::MAX).then(|| vector * LANES + lane)
        };
        let class = first.iter().enumerate().filter_map(class).min();
        return [class.unwrap_or(0); LANES];
    }
    first.map(|class| if class == usize::MAX { 0 } else { class })
}

/// `softcap * tanh(scale * x / softcap)` in place of the numbers, -inf staying; their derivatives
/// by the input into `slopes`.
#[inline(always)]
pub(super) fn cap<S: Simd>(
    simd: S,
    logits: &Logits,
    softcap: f32,
    tile: &mut [Lanes],
    slopes: &mut [Lanes],
) {
    let factor = logits.scale / softcap;
    for (x, slope) in tile.iter_mut().zip(slopes) {
        let raw = load(simd, x);
        let is_masked = raw.simd_eq(f32::NEG_INFINITY);
        *x = select(is_masked, raw, tanh(raw * factor) * softcap).into();
        // a class at -inf has a slope of 0 in a cap; its amount counts all the same
        *slope = select(is_masked, logits.scale, tanh_slope(raw * factor) * logits.scale).into();
    }
}

/// One number through the same.
#[inline(always)]
pub(super) fn capped<S: Simd>(logits: &Logits, softcap: f32, raw: Vector<S>) -> Vector<S> {
    let capped = tanh(raw * (logits.scale / softcap)) * softcap;
    select(raw.simd_eq(f32::NEG_INFINITY), raw, capped)
}

/// `e^(x - m)` in place of the logits: all that a gradient needs where the statistics are known.
#[inline(always)]
pub(super) fn exponentials<S: Simd>(simd: S, logits: &Logits, tile: &mut [Lanes], m: Vector<S>) {
    let scale = logits.distance_scale();
    for x in tile {
        *x = exp_nonpositive((load(simd, x) - m) * scale).into();
    }
}

/// `a (m - x)`, also where the distance alone is beyond f32.
#[inline(always)]
fn cost<S: Simd>(a: Vector<S>, m: Vector<S>, x: Vector<S>, scale: f32) -> Vector<S> {
    let distance = m - x;
    let scaled = a * scale;
    let apart = scaled.mul_sub(m, scaled * x);
    select(distance.simd_eq(f32::INFINITY), apart, a * (distance * scale))
}

/// The sums of a tile, whose maximum is known; `e^(x - m)` is left in place of the logits.
/// `amounts` are what multiplies `-ln p` of each class; empty where that is 0 but for single classes.
#[inline(always)]
pub(super) fn statistics<S: Simd, const ONE_ROW: bool>(
    simd: S,
    logits: &Logits,
    tile: &mut [Lanes],
    amounts: &[Lanes],
    (m, is_bad): (Vector<S>, Mask<S>),
) -> Statistics<S> {
    let zero = Vector::splat(simd, 0.0);
    let no = Mask::splat(simd, false);
    let scale = logits.distance_scale();
    let [mut below, mut at, mut rest, mut top, mut gap] = [zero; 5];
    let mut costs = [no; 2];
    for (block, tile) in tile.chunks_mut(BLOCK).enumerate() {
        let [mut block_below, mut block_at] = [zero; 2];
        if amounts.is_empty() {
            for x in tile {
                let logit = load(simd, x);
                let is_max = logit.simd_eq(m);
                let e = exp_nonpositive((logit - m) * scale);
                block_below += select(is_max, 0.0, e);
                block_at += select(is_max, 1.0, 0.0);
                *x = e.into();
            }
        } else {
            let [mut block_rest, mut block_top, mut block_gap] = [zero; 3];
            for (x, a) in tile.iter_mut().zip(&amounts[block * BLOCK..]) {
                let (logit, a) = (load(simd, x), load(simd, a));
                let is_max = logit.simd_eq(m);
                let e = exp_nonpositive((logit - m) * scale);
                block_below += select(is_max, 0.0, e);
                block_at += select(is_max, 1.0, 0.0);
                *x = e.into();
                block_top += select(is_max, a, 0.0);
                block_rest += select(is_max, 0.0, a);
                let is_masked = logit.simd_eq(f32::NEG_INFINITY);
                let is_free = is_masked | a.simd_eq(0.0);
                block_gap += select(is_free, 0.0, cost(a, m, logit, scale));
                costs[0] |= is_masked & a.simd_gt(0.0);
                costs[1] |= is_masked & a.simd_lt(0.0);
            }
            rest += block_rest;
            top += block_top;
            gap += block_gap;
        }
        below += block_below;
        at += block_at;
    }
    let at = team_sum::<S, ONE_ROW>(at);
    Statistics {
        m,
        s: team_sum::<S, ONE_ROW>(below) + (at - 1.0),
        rest: team_sum::<S, ONE_ROW>(rest),
        top: team_sum::<S, ONE_ROW>(top),
        gap: team_sum::<S, ONE_ROW>(gap),
        // nothing at the maximum: nothing but -inf
        is_nan: is_bad | at.simd_eq(0.0),
        costs: costs.map(|costs| team_any::<S, ONE_ROW>(simd, costs)),
    }
}

impl<S: Simd> Statistics<S> {
    /// Adds an amount at one class of each row, with logit `x`.
    #[inline(always)]
    pub fn add_amount(&mut self, logits: &Logits, amount: Vector<S>, x: Vector<S>) {
        let is_top = x.simd_eq(self.m);
        self.top += select(is_top, amount, 0.0);
        self.rest += select(is_top, 0.0, amount);
        let is_masked = x.simd_eq(f32::NEG_INFINITY);
        let is_free = is_masked | amount.simd_eq(0.0);
        self.gap += select(is_free, 0.0, cost(amount, self.m, x, logits.distance_scale()));
        self.costs[0] |= is_masked & amount.simd_gt(0.0);
        self.costs[1] |= is_masked & amount.simd_lt(0.0);
    }

    /// `ln` of the sum of `e^x`.
    #[inline(always)]
    pub fn logsumexp(&self, logits: &Logits) -> Vector<S> {
        let value = self.m * logits.distance_scale() + log1p(self.s);
        select(self.is_nan, f32::NAN, value)
    }

    #[inline(always)]
    pub fn loss(&self, logits: &Logits) -> Vector<S> {
        let mut loss = (self.rest + self.top) * log1p(self.s) + self.gap;
        if logits.z_loss != 0.0 {
            let z = self.logsumexp(logits);
            loss += z * z * logits.z_loss;
        }
        let [costs, gains] = self.costs;
        let loss = select(costs, f32::INFINITY, loss);
        let loss = select(gains, f32::NEG_INFINITY, loss);
        // infinities of both signs have no sum
        select(self.is_nan | (costs & gains), f32::NAN, loss)
    }

    #[inline(always)]
    pub fn gradient(&self, logits: &Logits) -> RowGradient<S> {
        let inverse = Vector::splat(self.m.token(), 1.0) / (self.s + 1.0);
        let mut z = Vector::splat(self.m.token(), 0.0);
        if logits.z_loss != 0.0 {
            z = self.logsumexp(logits) * (2.0 * logits.z_loss);
        }
        let is_alone = self.s.simd_lt(0.5);
        RowGradient {
            amounts: inverse * (self.rest + self.top + z),
            at_max: ((self.rest + z) - self.s * self.top) * inverse,
            // Where rivals have less than half of the maximum's mass together, its exponential of 1
            // is the only one above a half. With a nearer rival the general form does not cancel,
            // and ties stay equal.
            threshold: select(is_alone, 0.5, f32::INFINITY),
        }
    }
}

/// What the gradient of rows needs of their statistics.
pub(super) struct RowGradient<S: Simd> {
    amounts: Vector<S>,
    at_max: Vector<S>,
    threshold: Vector<S>,
}

impl<S: Simd> RowGradient<S> {
    /// The gradient by logits of which `e^(x - m)` is e, and whose amounts are a.
    #[inline(always)]
    pub fn at(&self, e: Vector<S>, a: Vector<S>) -> Vector<S> {
        select(e.simd_gt(self.threshold), self.at_max, e.mul_sub(self.amounts, a))
    }
}
