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
//! for the sums, which leave the exponentials where the gradient will be, then for the gradient.
//!
//! What is known of a row stands in its lane. Where rows lie in lanes ([`Tiling::by_lane`]), that is
//! what a run over all vectors finds. Otherwise each row is a run of its own, whose lanes are put
//! together afterwards, all rows' at once: within the loop it would take registers of it apart.
//!
//! All of it is inlined into what a family does with a tile, which is vectorised as one: of few classes
//! a step is too short to be called. Inner loops work on arrays of their own, which nothing else can
//! point into: that way they stay in registers.

use super::math::{
    LANES, LOWEST, Lanes, exp_nonpositive, log1p, max, max_lanes, or_lanes, select, sum_lanes,
    tanh, tanh_slope, times,
};
use super::tiles::{Tiling, map};

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

/// What is known of a tile's rows, by lane.
#[derive(Debug, Clone, Copy)]
pub(super) struct Statistics {
    pub m: Lanes,
    pub s: Lanes,
    pub rest: Lanes,
    pub top: Lanes,
    pub gap: Lanes,
    pub flags: [u32; LANES],
}

/// The last vector of a row that is no multiple of [`LANES`] long, and how many of its lanes overlap
/// the vector before it.
#[inline(always)]
fn overlapping(row: &[f32]) -> Option<(&Lanes, usize)> {
    match row.len() % LANES {
        0 => None,
        rest => Some((row.last_chunk()?, LANES - rest)),
    }
}

/// Puts the lanes of each row together.
#[inline(always)]
pub(super) fn by_row<T: Copy + Default>(
    rows: [[T; LANES]; LANES],
    together: impl Fn([T; LANES]) -> T,
) -> [T; LANES] {
    let mut lanes = [T::default(); LANES];
    for row in 0..LANES {
        lanes[row] = together(rows[row]);
    }
    lanes
}

/// Each row's largest number, and [`IS_NAN`] where there is a NaN or +inf.
#[inline(always)]
pub(super) fn peaks(tiling: &Tiling, logits: &[f32]) -> (Lanes, [u32; LANES]) {
    const NOTHING: (Lanes, [u32; LANES]) = ([LOWEST; LANES], [0; LANES]);
    if tiling.by_lane {
        return peaks_of_run(logits.as_chunks().0, NOTHING);
    }
    let mut m = [[LOWEST; LANES]; LANES];
    let mut flags = [[0; LANES]; LANES];
    for (row, x) in logits.chunks_exact(tiling.classes()).enumerate() {
        let mut found = peaks_of_run(x.as_chunks().0, NOTHING);
        if let Some((x, _)) = overlapping(x) {
            found = peaks_of_run(&[*x], found);
        }
        (m[row], flags[row]) = found;
    }
    (by_row(m, max_lanes), by_row(flags, or_lanes))
}

/// Of vectors, and of what was found before.
#[inline(always)]
fn peaks_of_run(
    logits: &[Lanes],
    (mut m, mut flags): (Lanes, [u32; LANES]),
) -> (Lanes, [u32; LANES]) {
    for x in logits {
        for lane in 0..LANES {
            m[lane] = max(x[lane], m[lane]);
            // NaN too
            let is_fine = x[lane] < f32::INFINITY;
            flags[lane] |= u32::from(!is_fine);
        }
    }
    (m, flags)
}

/// The first class at each row's maximum; 0 where none is.
#[inline(always)]
pub(super) fn first_at(tiling: &Tiling, logits: &[f32], m: &Lanes) -> [usize; LANES] {
    let mut first = [0; LANES];
    if tiling.by_lane {
        let vectors = logits.as_chunks::<LANES>().0;
        for lane in 0..LANES {
            first[lane] = vectors.iter().position(|x| x[lane] == m[lane]).unwrap_or(0);
        }
    } else {
        for (row, x) in logits.chunks_exact(tiling.classes()).enumerate() {
            first[row] = x.iter().position(|x| *x == m[row]).unwrap_or(0);
        }
    }
    first
}

/// `softcap * tanh(scale * x / softcap)`; -inf stays.
#[inline(always)]
pub(super) fn capped(settings: &Logits, softcap: f32, x: f32) -> f32 {
    select(x == f32::NEG_INFINITY, x, softcap * tanh(x * (settings.scale / softcap)))
}

/// All numbers of a tile capped, and their derivatives by the input.
#[inline(always)]
pub(super) fn cap(
    settings: &Logits,
    softcap: f32,
    input: &[f32],
    to: &mut [f32],
    slopes: &mut [f32],
) {
    for ((&x, to), slope) in input.iter().zip(to).zip(slopes) {
        *to = capped(settings, softcap, x);
        // a class at -inf has a slope of 0 in a cap; its amount counts all the same
        let factor = tanh_slope(x * (settings.scale / softcap));
        *slope = settings.scale * select(x == f32::NEG_INFINITY, 1.0, factor);
    }
}

/// `e^(x - m)`: all that a gradient needs where the statistics are known.
#[inline(always)]
pub(super) fn exponentials(
    settings: &Logits,
    tiling: &Tiling,
    logits: &[f32],
    to: &mut [f32],
    m: &Lanes,
) {
    // their sums are known
    sums_of(tiling, logits, to, m, settings.distance_scale());
}

/// `a (m - x)`, also where the distance alone is beyond f32. Nothing of classes that are masked (a
/// flag tells of those) or have no amount.
#[inline(always)]
fn cost(a: f32, m: f32, x: f32, scale: f32) -> f32 {
    let distance = (m - x) * scale;
    let apart = (a * scale).mul_add(m, -(a * scale * x));
    let cost = select(distance == f32::INFINITY, apart, a * distance);
    select((x == f32::NEG_INFINITY) | (a == 0.0), 0.0, cost)
}

/// Whether an amount at -inf costs something, and of which sign.
#[inline(always)]
fn cost_flags(a: f32, x: f32) -> u32 {
    let is_masked = x == f32::NEG_INFINITY;
    (u32::from(is_masked & (a > 0.0)) * COSTS) | (u32::from(is_masked & (a < 0.0)) * GAINS)
}

/// The sums of a tile, of which the maximum is known. `e^(x - m)` is left in `to`. `amounts` are what
/// multiplies `-ln p` of each class: empty where that is 0 but for single classes.
#[inline(always)]
pub(super) fn statistics(
    settings: &Logits,
    tiling: &Tiling,
    logits: &[f32],
    to: &mut [f32],
    amounts: &[f32],
    (m, flags): (Lanes, [u32; LANES]),
) -> Statistics {
    let scale = settings.distance_scale();
    let s = sums_of(tiling, logits, to, &m, scale);
    let zero = [0.0; LANES];
    let mut found = Statistics { m, s, rest: zero, top: zero, gap: zero, flags };
    if !amounts.is_empty() {
        found.add_amounts(tiling, logits, amounts, scale);
    }
    found
}

/// Exponentials, and s: the sums of those below the maximum, and how many lie at it, less one.
#[inline(always)]
fn sums_of(tiling: &Tiling, logits: &[f32], to: &mut [f32], m: &Lanes, scale: f32) -> Lanes {
    let (below, at) = match tiling.by_lane {
        true => sums_of_run(logits.as_chunks().0, to.as_chunks_mut().0, m, scale),
        false => sums_by_row(tiling.classes(), logits, to, m, scale),
    };
    let mut s = below;
    for lane in 0..LANES {
        s[lane] += at[lane] - 1.0;
        // nothing at the maximum: nothing but -inf
        s[lane] = select(at[lane] == 0.0, f32::NAN, s[lane]);
    }
    s
}

#[inline(always)]
fn sums_by_row(
    classes: usize,
    logits: &[f32],
    to: &mut [f32],
    m: &Lanes,
    scale: f32,
) -> (Lanes, Lanes) {
    let [mut below, mut at] = [[[0.0; LANES]; LANES]; 2];
    let rows = logits.chunks_exact(classes).zip(to.chunks_exact_mut(classes));
    for (row, (x, to)) in rows.enumerate() {
        let m = [m[row]; LANES];
        let (mut sum, mut count) = sums_of_run(x.as_chunks().0, to.as_chunks_mut().0, &m, scale);
        if let (Some((x, skipped)), Some(to)) = (overlapping(x), to.last_chunk_mut()) {
            add_exponentials(x, to, &m, scale, skipped, (&mut sum, &mut count));
        }
        (below[row], at[row]) = (sum, count);
    }
    (by_row(below, sum_lanes), by_row(at, sum_lanes))
}

#[inline(always)]
fn sums_of_run(logits: &[Lanes], to: &mut [Lanes], m: &Lanes, scale: f32) -> (Lanes, Lanes) {
    let m = *m;
    let [mut below, mut at] = [[0.0; LANES]; 2];
    for (logits, to) in logits.chunks(BLOCK).zip(to.chunks_mut(BLOCK)) {
        let [mut block_below, mut block_at] = [[0.0; LANES]; 2];
        for (x, to) in logits.iter().zip(to) {
            add_exponentials(x, to, &m, scale, 0, (&mut block_below, &mut block_at));
        }
        for lane in 0..LANES {
            below[lane] += block_below[lane];
            at[lane] += block_at[lane];
        }
    }
    (below, at)
}

/// Of lanes from `skipped` on, the exponential below the maximum is added to the sum, and one at it
/// is counted.
#[inline(always)]
fn add_exponentials(
    x: &Lanes,
    to: &mut Lanes,
    m: &Lanes,
    scale: f32,
    skipped: usize,
    (below, at): (&mut Lanes, &mut Lanes),
) {
    let mut e = *x;
    for lane in 0..LANES {
        let is_counted = lane >= skipped;
        let is_max = e[lane] == m[lane];
        e[lane] = exp_nonpositive((e[lane] - m[lane]) * scale);
        below[lane] = select(is_counted & !is_max, below[lane] + e[lane], below[lane]);
        at[lane] = select(is_counted & is_max, at[lane] + 1.0, at[lane]);
    }
    *to = e;
}

/// What targets and upstream say of a tile's rows, by lane.
#[derive(Clone, Copy)]
pub(super) struct Marks {
    pub label: [usize; LANES],
    /// What multiplies `-ln p` at the label, beyond what is spread over all classes.
    pub amount: Lanes,
    pub factor: Lanes,
    /// 1 where the row is kept, 0 where it is ignored.
    pub kept: Lanes,
}

impl Marks {
    /// Nothing.
    pub const NONE: Marks =
        Marks { label: [0; LANES], amount: [0.0; LANES], factor: [1.0; LANES], kept: [1.0; LANES] };
}

/// What follows from the statistics of rows, by lane.
pub(super) struct Results {
    pub loss: Lanes,
    /// `ln` of the sum of `e^x`.
    pub logsumexp: Lanes,
    /// `-ln p`, and p, of a class at the maximum; NaN in rows that are.
    pub log: Lanes,
    pub inverse: Lanes,
    pub gradients: Gradients,
}

impl Statistics {
    /// Adds what amounts come to.
    #[inline(always)]
    fn add_amounts(&mut self, tiling: &Tiling, logits: &[f32], amounts: &[f32], scale: f32) {
        if tiling.by_lane {
            return self.add_run(logits.as_chunks().0, amounts.as_chunks().0, scale);
        }
        let classes = tiling.classes();
        let zero = [0.0; LANES];
        for (row, x) in logits.chunks_exact(classes).enumerate() {
            // the same for every row, or those of this one
            let a = match amounts.len() == classes {
                true => amounts,
                false => &amounts[row * classes..][..classes],
            };
            let m = [self.m[row]; LANES];
            let nothing =
                Statistics { m, s: zero, rest: zero, top: zero, gap: zero, flags: [0; LANES] };
            let mut found = nothing;
            found.add_run(x.as_chunks().0, a.as_chunks().0, scale);
            if let (Some((x, skipped)), Some((a, _))) = (overlapping(x), overlapping(a)) {
                let mut a = *a;
                a[..skipped].fill(0.0);
                found.add_run(&[*x], &[a], scale);
            }
            self.rest[row] = sum_lanes(found.rest);
            self.top[row] = sum_lanes(found.top);
            self.gap[row] = sum_lanes(found.gap);
            self.flags[row] |= or_lanes(found.flags);
        }
    }

    /// Adds what the amounts of vectors come to.
    #[inline(always)]
    fn add_run(&mut self, logits: &[Lanes], amounts: &[Lanes], scale: f32) {
        let m = self.m;
        for (logits, amounts) in logits.chunks(BLOCK).zip(amounts.chunks(BLOCK)) {
            let [mut rest, mut top, mut gap] = [[0.0; LANES]; 3];
            let mut flags = [0; LANES];
            for (x, a) in logits.iter().zip(amounts) {
                for lane in 0..LANES {
                    let (x, a) = (x[lane], a[lane]);
                    let is_max = x == m[lane];
                    top[lane] += select(is_max, a, 0.0);
                    rest[lane] += select(is_max, 0.0, a);
                    gap[lane] += cost(a, m[lane], x, scale);
                    flags[lane] |= cost_flags(a, x);
                }
            }
            for lane in 0..LANES {
                self.rest[lane] += rest[lane];
                self.top[lane] += top[lane];
                self.gap[lane] += gap[lane];
                self.flags[lane] |= flags[lane];
            }
        }
    }

    /// Adds an amount at one class of each row, with logit `x`, and draws the conclusions.
    #[inline(always)]
    pub fn conclude(&mut self, settings: &Logits, marks: &Marks, x: &Lanes) -> Results {
        const ZERO: Lanes = [0.0; LANES];
        let (scale, z_loss) = (settings.distance_scale(), settings.z_loss);
        let [mut losses, mut logsumexps, mut logs, mut inverses] = [ZERO; 4];
        let [mut amounts, mut at_max, mut threshold, mut filling] = [ZERO; 4];
        for lane in 0..LANES {
            let (m, s, a, x) = (self.m[lane], self.s[lane], marks.amount[lane], x[lane]);
            let top = self.top[lane] + select(x == m, a, 0.0);
            let rest = self.rest[lane] + select(x == m, 0.0, a);
            let gap = self.gap[lane] + cost(a, m, x, scale);
            let flags = self.flags[lane] | cost_flags(a, x);
            let is_nan = (flags & IS_NAN != 0) | s.is_nan();
            let log = log1p(s);
            let inverse = 1.0 / (1.0 + s);
            let logsumexp = m * scale + log;
            let z = select(z_loss == 0.0, 0.0, z_loss * logsumexp);

            let of_z = select(z_loss == 0.0, 0.0, z * logsumexp);
            let loss = (rest + top) * log + gap + of_z;
            let loss = select(flags & COSTS != 0, f32::INFINITY, loss);
            let loss = select(flags & GAINS != 0, f32::NEG_INFINITY, loss);
            // infinities of both signs have no sum
            let has_both = flags & (COSTS | GAINS) == COSTS | GAINS;
            let has_nan = is_nan | (rest + top).is_nan();
            let loss = select(has_nan | has_both, f32::NAN, loss);
            let is_ignored = marks.kept[lane] == 0.0;
            losses[lane] = select(is_ignored, 0.0, loss);
            logsumexps[lane] = select(is_nan, f32::NAN, logsumexp);
            logs[lane] = select(is_nan, f32::NAN, log);
            inverses[lane] = select(is_nan, f32::NAN, inverse);

            amounts[lane] = inverse * (rest + top + 2.0 * z);
            at_max[lane] = inverse * ((rest + 2.0 * z) - s * top);
            // Where rivals have less than half of the maximum's mass together, its exponential of 1
            // is the only one above three quarters. With a nearer rival the general form does not cancel,
            // and ties stay equal.
            threshold[lane] = select(s < 0.5, 0.75, f32::INFINITY);
            let of_kept = select(is_nan | marks.factor[lane].is_nan(), f32::NAN, 1.0);
            filling[lane] = select(is_ignored, 0.0, of_kept);

            self.m[lane] = select(is_nan, f32::NAN, m);
            self.rest[lane] = rest;
            self.top[lane] = top;
        }
        let gradients = Gradients { amounts, at_max, threshold, factor: marks.factor, filling };
        Results { loss: losses, logsumexp: logsumexps, log: logs, inverse: inverses, gradients }
    }
}

/// The gradients of a tile's rows by the input: what they need of the statistics.
pub(super) struct Gradients {
    amounts: Lanes,
    at_max: Lanes,
    threshold: Lanes,
    factor: Lanes,
    /// What stands in rows that are ignored, or not numbers; 1 for others.
    filling: Lanes,
}

impl Gradients {
    #[inline(always)]
    fn of_rows(&self) -> [&Lanes; 5] {
        [&self.amounts, &self.at_max, &self.threshold, &self.factor, &self.filling]
    }

    /// The gradients at one class of each row, of which `e^(x - m)` is e, whose amount is a, and whose
    /// logit has this derivative by the input.
    #[inline(always)]
    pub fn at(&self, e: &Lanes, a: &Lanes, slope: &Lanes) -> Lanes {
        let rows = self.of_rows();
        let mut at = [0.0; LANES];
        for lane in 0..LANES {
            at[lane] = gradient(rows.map(|of| of[lane]), e[lane], a[lane], slope[lane]);
        }
        at
    }

    /// Writes gradients over exponentials. `amounts` and `slopes` are empty where they are 0 and the
    /// scale.
    #[inline(always)]
    pub fn write(
        &self,
        tiling: &Tiling,
        tile: &mut [f32],
        amounts: &[f32],
        slopes: &[f32],
        scale: f32,
    ) {
        let rows = self.of_rows();
        match (amounts, slopes) {
            ([], []) => map(
                tiling,
                rows,
                [],
                tile,
                #[inline(always)]
                |row, e, []| gradient(row, e, 0.0, scale),
            ),
            (_, []) => map(
                tiling,
                rows,
                [amounts],
                tile,
                #[inline(always)]
                |row, e, [a]| gradient(row, e, a, scale),
            ),
            ([], _) => map(
                tiling,
                rows,
                [slopes],
                tile,
                #[inline(always)]
                |row, e, [slope]| gradient(row, e, 0.0, slope),
            ),
            _ => map(
                tiling,
                rows,
                [amounts, slopes],
                tile,
                #[inline(always)]
                |row, e, [a, slope]| gradient(row, e, a, slope),
            ),
        }
    }
}

/// The gradient at a class.
#[inline(always)]
fn gradient(
    [amounts, at_max, threshold, factor, filling]: [f32; 5],
    e: f32,
    a: f32,
    slope: f32,
) -> f32 {
    let usual = e.mul_add(amounts, -a);
    let g = select(e > threshold, at_max, usual);
    let g = times(g * slope, factor);
    select(filling == 1.0, g, filling)
}
