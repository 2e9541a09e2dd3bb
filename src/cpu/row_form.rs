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
//! for the sums, which leave the exponentials in the tile, then for the gradient from those.
//!
//! `ONE_ROW` says whether a tile is one row. Its lanes then exchange what they have found, and every
//! lane knows the same; otherwise each knows of a row of its own. Loops over lanes are what becomes
//! vector code, so everything here is inlined into functions that
//! [`vectorized`](super::math::vectorized) runs.

use super::math::{
    LANES, LOWEST, Lanes, exp_nonpositive, log1p, max, select, sum_lanes, tanh, tanh_slope,
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
    #[inline(always)]
    fn distance_scale(&self) -> f32 {
        if self.softcap.is_some() { 1.0 } else { self.scale }
    }
}

/// NaN or +inf among the logits, or nothing but -inf.
pub(super) const IS_NAN: u32 = 1;
/// Logits of -inf that cost something, by the sign of what they cost.
const COSTS: u32 = 2;
const GAINS: u32 = 4;

/// What is known of a row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub m: f32,
    pub s: f32,
    pub rest: f32,
    pub top: f32,
    pub gap: f32,
    pub flags: u32,
}

/// The same of a tile's rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Statistics {
    pub m: Lanes,
    pub s: Lanes,
    pub rest: Lanes,
    pub top: Lanes,
    pub gap: Lanes,
    pub flags: [u32; LANES],
}

/// Every lane's sum; of one row, all lanes'.
#[inline(always)]
fn team_sum<const ONE_ROW: bool>(lanes: Lanes) -> Lanes {
    if ONE_ROW { [sum_lanes(lanes); LANES] } else { lanes }
}

#[inline(always)]
fn team_or<const ONE_ROW: bool>(flags: [u32; LANES]) -> [u32; LANES] {
    if ONE_ROW { [flags.iter().fold(0, |all, flag| all | flag); LANES] } else { flags }
}

/// The largest number, and [`IS_NAN`] where there is a NaN or +inf.
#[inline(always)]
pub(super) fn peak<const ONE_ROW: bool>(tile: &[Lanes]) -> (Lanes, [u32; LANES]) {
    let mut m = [LOWEST; LANES];
    let mut flags = [0; LANES];
    for x in tile {
        for lane in 0..LANES {
            m[lane] = max(x[lane], m[lane]);
            // NaN too
            let is_fine = x[lane] < f32::INFINITY;
            flags[lane] |= u32::from(!is_fine);
        }
    }
    if ONE_ROW {
        m = [m.into_iter().fold(LOWEST, max); LANES];
    }
    (m, team_or::<ONE_ROW>(flags))
}

/// The first class at the maximum in each lane's row; 0 where none is.
#[inline(always)]
pub(super) fn first_at<const ONE_ROW: bool>(tile: &[Lanes], m: &Lanes) -> [usize; LANES] {
    if ONE_ROW {
        let first = tile.as_flattened().iter().position(|x| *x == m[0]);
        return [first.unwrap_or(0); LANES];
    }
    std::array::from_fn(|lane| tile.iter().position(|x| x[lane] == m[lane]).unwrap_or(0))
}

/// `softcap * tanh(scale * x / softcap)`; -inf stays.
#[inline(always)]
pub(super) fn capped(logits: &Logits, softcap: f32, x: f32) -> f32 {
    select(x == f32::NEG_INFINITY, x, softcap * tanh(x * (logits.scale / softcap)))
}

/// Caps all numbers of a tile, and writes their derivatives by the input into `slopes`.
#[inline(always)]
pub(super) fn cap(logits: &Logits, softcap: f32, tile: &mut [Lanes], slopes: &mut [Lanes]) {
    let numbers = tile.as_flattened_mut().iter_mut();
    for (x, slope) in numbers.zip(slopes.as_flattened_mut()) {
        // a class at -inf has a slope of 0 in a cap; its amount counts all the same
        let factor = tanh_slope(*x * (logits.scale / softcap));
        *slope = logits.scale * select(*x == f32::NEG_INFINITY, 1.0, factor);
        *x = capped(logits, softcap, *x);
    }
}

/// `e^(x - m)` in place of the logits: all that a gradient needs where the statistics are known.
#[inline(always)]
pub(super) fn exponentials(logits: &Logits, tile: &mut [Lanes], m: &Lanes) {
    let scale = logits.distance_scale();
    for x in tile {
        for lane in 0..LANES {
            x[lane] = exp_nonpositive((x[lane] - m[lane]) * scale);
        }
    }
}

/// `a (m - x)`, also where the distance alone is beyond f32. Nothing of classes that are masked (a
/// flag tells of those) or have no amount.
#[inline(always)]
fn cost(a: f32, m: f32, x: f32, scale: f32) -> f32 {
    let distance = m - x;
    let apart = (a * scale).mul_add(m, -(a * scale * x));
    let cost = select(distance == f32::INFINITY, apart, a * (distance * scale));
    select((x == f32::NEG_INFINITY) | (a == 0.0), 0.0, cost)
}

/// Whether an amount at -inf costs something, and of which sign.
#[inline(always)]
fn cost_flags(a: f32, x: f32) -> u32 {
    let is_masked = x == f32::NEG_INFINITY;
    (u32::from(is_masked & (a > 0.0)) * COSTS) | (u32::from(is_masked & (a < 0.0)) * GAINS)
}

/// The sums of a tile, of which the maximum is known; `e^(x - m)` is left in place of the logits.
/// `amounts` are what multiplies `-ln p` of each class: empty where that is 0 but for single classes.
#[inline(always)]
pub(super) fn statistics<const ONE_ROW: bool>(
    logits: &Logits,
    tile: &mut [Lanes],
    amounts: &[Lanes],
    (m, mut flags): (Lanes, [u32; LANES]),
) -> Statistics {
    const ZERO: Lanes = [0.0; LANES];
    let scale = logits.distance_scale();
    let [mut below, mut at, mut rest, mut top, mut gap] = [ZERO; 5];
    for (block, tile) in tile.chunks_mut(BLOCK).enumerate() {
        let [mut block_below, mut block_at, mut block_rest, mut block_top, mut block_gap] =
            [ZERO; 5];
        if !amounts.is_empty() {
            for (x, a) in tile.iter().zip(&amounts[block * BLOCK..]) {
                for lane in 0..LANES {
                    let (x, a) = (x[lane], a[lane]);
                    let is_max = x == m[lane];
                    block_top[lane] += select(is_max, a, 0.0);
                    block_rest[lane] += select(is_max, 0.0, a);
                    block_gap[lane] += cost(a, m[lane], x, scale);
                    flags[lane] |= cost_flags(a, x);
                }
            }
        }
        for x in tile {
            for lane in 0..LANES {
                let is_max = x[lane] == m[lane];
                let e = exp_nonpositive((x[lane] - m[lane]) * scale);
                block_below[lane] += select(is_max, 0.0, e);
                block_at[lane] += select(is_max, 1.0, 0.0);
                x[lane] = e;
            }
        }
        for lane in 0..LANES {
            below[lane] += block_below[lane];
            at[lane] += block_at[lane];
            rest[lane] += block_rest[lane];
            top[lane] += block_top[lane];
            gap[lane] += block_gap[lane];
        }
    }
    let (below, at) = (team_sum::<ONE_ROW>(below), team_sum::<ONE_ROW>(at));
    let mut flags = team_or::<ONE_ROW>(flags);
    for lane in 0..LANES {
        // nothing at the maximum: nothing but -inf
        flags[lane] |= u32::from(at[lane] == 0.0) * IS_NAN;
    }
    Statistics {
        m,
        s: std::array::from_fn(|lane| below[lane] + (at[lane] - 1.0)),
        rest: team_sum::<ONE_ROW>(rest),
        top: team_sum::<ONE_ROW>(top),
        gap: team_sum::<ONE_ROW>(gap),
        flags,
    }
}

impl Statistics {
    /// A lane's row.
    #[inline(always)]
    pub fn row(&self, lane: usize) -> Row {
        Row {
            m: self.m[lane],
            s: self.s[lane],
            rest: self.rest[lane],
            top: self.top[lane],
            gap: self.gap[lane],
            flags: self.flags[lane],
        }
    }

    /// Adds an amount at one class of each row, with logit `x`.
    #[inline(always)]
    pub fn add_amounts(&mut self, logits: &Logits, amount: &Lanes, x: &Lanes) {
        for lane in 0..LANES {
            let (a, x, m) = (amount[lane], x[lane], self.m[lane]);
            self.top[lane] += select(x == m, a, 0.0);
            self.rest[lane] += select(x == m, 0.0, a);
            self.gap[lane] += cost(a, m, x, logits.distance_scale());
            self.flags[lane] |= cost_flags(a, x);
        }
    }

    /// What each row's gradient needs.
    #[inline(always)]
    pub fn gradient(&self, logits: &Logits) -> RowGradients {
        let mut gradients =
            RowGradients { amounts: [0.0; LANES], at_max: [0.0; LANES], threshold: [0.0; LANES] };
        for lane in 0..LANES {
            let row = self.row(lane);
            let inverse = 1.0 / (1.0 + row.s);
            let z = match logits.z_loss {
                0.0 => 0.0,
                z_loss => 2.0 * z_loss * row.logsumexp(logits),
            };
            gradients.amounts[lane] = inverse * (row.rest + row.top + z);
            gradients.at_max[lane] = ((row.rest + z) - row.s * row.top) * inverse;
            // Where rivals have less than half of the maximum's mass together, its exponential of 1
            // is the only one above a half. With a nearer rival the general form does not cancel,
            // and ties stay equal.
            gradients.threshold[lane] = select(row.s < 0.5, 0.5, f32::INFINITY);
        }
        gradients
    }
}

impl Row {
    /// `ln` of the sum of `e^x`.
    #[inline(always)]
    pub fn logsumexp(&self, logits: &Logits) -> f32 {
        let value = self.m * logits.distance_scale() + log1p(self.s);
        select(self.flags & IS_NAN != 0, f32::NAN, value)
    }

    #[inline(always)]
    pub fn loss(&self, logits: &Logits) -> f32 {
        let loss = (self.rest + self.top) * log1p(self.s) + self.gap;
        let loss = match logits.z_loss {
            0.0 => loss,
            z_loss => loss + z_loss * self.logsumexp(logits) * self.logsumexp(logits),
        };
        let loss = select(self.flags & COSTS != 0, f32::INFINITY, loss);
        let loss = select(self.flags & GAINS != 0, f32::NEG_INFINITY, loss);
        // infinities of both signs have no sum
        let has_both = self.flags & (COSTS | GAINS) == COSTS | GAINS;
        let is_nan = (self.flags & IS_NAN != 0) | (self.rest + self.top).is_nan();
        select(is_nan | has_both, f32::NAN, loss)
    }
}

/// What the gradients of a tile's rows need of their statistics.
pub(super) struct RowGradients {
    amounts: Lanes,
    at_max: Lanes,
    threshold: Lanes,
}

impl RowGradients {
    /// The gradient by a logit of which `e^(x - m)` is e, and whose amount is a.
    #[inline(always)]
    pub fn at(&self, lane: usize, e: f32, a: f32) -> f32 {
        let usual = e.mul_add(self.amounts[lane], -a);
        select(e > self.threshold[lane], self.at_max[lane], usual)
    }
}
