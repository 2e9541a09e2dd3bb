//! The state of the rows of a tile: what is known of them after one reading, and the loss and the
//! gradient that follow from it. The mathematics and its words are those of
//! `shaders/shared/row_state.wgsl`, with `a[c]` the target weight of class c:
//!
//! ```text
//! exp_sum_below = sum over x[c] < m of e^(x[c] - m)
//! max_count     = number of classes with x[c] = m
//! target_below  = sum over x[c] < m of a[c]
//! target_at_max = sum over x[c] = m of a[c]
//! margin_sum    = sum of a[c] (m - x[c])
//! denom_minus_1 = exp_sum_below + (max_count - 1)
//! T             = target_below + target_at_max
//! loss          = T log1p(denom_minus_1) + margin_sum
//! grad[c]       = p[c] T - a[c], but at a maximum without a near rival
//!                 (target_below - denom_minus_1 target_at_max) / (1 + denom_minus_1)
//! ```
//!
//! A tile is read again for each step, because it fits a near cache: first for the maximum, then
//! for the sums, which leave the exponentials where the gradient will be, then for the gradient.
//! So the partials of a row's blocks all have the row's maximum, and merge by addition; none is
//! rescaled.
//!
//! What is known of a row stands in its lane. Where rows lie in lanes ([`Tiling::by_lane`]), one
//! run over all vectors finds it. Otherwise each row is a run of its own. The lanes of a run are
//! added up after the last run, for all rows at once, because within the loop that would take the
//! loop's registers apart.
//!
//! Everything is inlined into what a family does with a tile, which is vectorised as one
//! function: with few classes, a step is too short to be called. Inner loops work on local
//! arrays, because these stay in registers where no reference can point into them.

use super::math::{
    LANES, LOWEST, Lanes, exp_nonpositive, log1p, max, max_lanes, min, or_lanes, select, sum_lanes,
    tanh, tanh_slope, zero_wins_unless_nan,
};
use super::tiles::{Tiling, map};

/// How many additions a lane's sum takes before it is added to the total. Longer sums drift.
const ADDITIONS: usize = 64;

/// How logits follow from the numbers of the input, and the z-loss of their logsumexp.
#[derive(Debug, Clone, Copy)]
pub(super) struct Logits {
    pub scale: f32,
    pub softcap: Option<f32>,
    pub z_loss: f32,
}

impl Logits {
    /// Logits that are the input's numbers.
    pub const PLAIN: Logits = Logits { scale: 1.0, softcap: None, z_loss: 0.0 };

    /// What distances from the maximum are multiplied by. Under a cap that is 1, because capped
    /// logits have the scale in them.
    #[inline(always)]
    pub fn distance_scale(&self) -> f32 {
        if self.softcap.is_some() { 1.0 } else { self.scale }
    }
}

/// There is NaN or +inf among the logits.
pub(super) const HAS_NAN_LOGIT: u32 = 1;
/// A logit of -inf has a target weight of this sign.
const HAS_POSITIVE_COST: u32 = 2;
const HAS_NEGATIVE_COST: u32 = 4;

/// What is known of some classes of a tile's rows, by lane: a partial each.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowPartials {
    pub m: Lanes,
    pub exp_sum_below: Lanes,
    pub max_count: Lanes,
    pub target_below: Lanes,
    pub target_at_max: Lanes,
    pub margin_sum: Lanes,
    pub flags: [u32; LANES],
}

/// What is known of a tile's rows, by lane.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowStats {
    pub m: Lanes,
    pub denom_minus_1: Lanes,
    pub target_below: Lanes,
    pub target_at_max: Lanes,
    pub margin_sum: Lanes,
    pub flags: [u32; LANES],
}

/// The last vector of a row that is no multiple of [`LANES`] long, and how many of its lanes
/// overlap the vector before it.
#[inline(always)]
fn overlapping(row: &[f32]) -> Option<(&Lanes, usize)> {
    match row.len() % LANES {
        0 => None,
        remainder => Some((row.last_chunk()?, LANES - remainder)),
    }
}

/// Reduces the lanes of each row to one number, and gives each row a lane.
#[inline(always)]
pub(super) fn by_row<T: Copy + Default>(
    rows: [[T; LANES]; LANES],
    reduce: impl Fn([T; LANES]) -> T,
) -> [T; LANES] {
    let mut lanes = [T::default(); LANES];
    for row in 0..LANES {
        lanes[row] = reduce(rows[row]);
    }
    lanes
}

/// Each row's largest number, and [`HAS_NAN_LOGIT`] where there is a NaN or +inf.
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

/// [`peaks`] of vectors, together with what was found before.
#[inline(always)]
fn peaks_of_run(
    logits: &[Lanes],
    (mut m, mut flags): (Lanes, [u32; LANES]),
) -> (Lanes, [u32; LANES]) {
    for x in logits {
        for lane in 0..LANES {
            m[lane] = max(x[lane], m[lane]);
            // false for NaN too
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

/// `softcap * tanh(scale * x / softcap)`, except that -inf stays.
#[inline(always)]
pub(super) fn capped(settings: &Logits, softcap: f32, x: f32) -> f32 {
    select(x == f32::NEG_INFINITY, x, softcap * tanh(x * (settings.scale / softcap)))
}

/// Caps all numbers of a tile, and finds their derivatives with respect to the input.
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
        // A class at -inf keeps a slope of 1, where the tanh has 0, because its target weight
        // counts.
        let of_tanh = tanh_slope(x * (settings.scale / softcap));
        *slope = settings.scale * select(x == f32::NEG_INFINITY, 1.0, of_tanh);
    }
}

/// Writes `e^(x - m)`, for a gradient whose statistics are known.
#[inline(always)]
pub(super) fn exponentials(
    settings: &Logits,
    tiling: &Tiling,
    logits: &[f32],
    to: &mut [f32],
    m: &Lanes,
) {
    // the sums are known
    exp_sums(tiling, logits, to, m, settings.distance_scale());
}

/// `a (m - x)`, which is right also where m - x overflows and the product does not. It is 0 for a
/// class at -inf, for which a flag stands, and for one without a target weight.
#[inline(always)]
pub(super) fn cost(a: f32, m: f32, x: f32, scale: f32) -> f32 {
    let distance = (m - x) * scale;
    let apart = (a * scale).mul_add(m, -(a * scale * x));
    let cost = select(distance == f32::INFINITY, apart, a * distance);
    select((x == f32::NEG_INFINITY) | (a == 0.0), 0.0, cost)
}

/// The flag for a target weight at -inf, by its sign.
#[inline(always)]
fn cost_flags(a: f32, x: f32) -> u32 {
    let is_masked = x == f32::NEG_INFINITY;
    (u32::from(is_masked & (a > 0.0)) * HAS_POSITIVE_COST)
        | (u32::from(is_masked & (a < 0.0)) * HAS_NEGATIVE_COST)
}

/// The statistics of a tile's rows, whose maxima are known. `e^(x - m)` is left in `to`.
/// `target_weights` are those of all classes: empty where they are 0 but for single classes.
#[inline(always)]
pub(super) fn row_stats(
    settings: &Logits,
    tiling: &Tiling,
    logits: &[f32],
    to: &mut [f32],
    target_weights: &[f32],
    (m, flags): (Lanes, [u32; LANES]),
) -> RowStats {
    row_partials(settings, tiling, logits, to, target_weights, (m, flags)).stats()
}

/// The partials of a tile's rows, likewise.
#[inline(always)]
pub(super) fn row_partials(
    settings: &Logits,
    tiling: &Tiling,
    logits: &[f32],
    to: &mut [f32],
    target_weights: &[f32],
    (m, flags): (Lanes, [u32; LANES]),
) -> RowPartials {
    let scale = settings.distance_scale();
    let (exp_sum_below, max_count) = exp_sums(tiling, logits, to, &m, scale);
    let mut found = RowPartials { exp_sum_below, max_count, ..RowPartials::empty(m, flags) };
    if !target_weights.is_empty() {
        found.add_target_weights(tiling, logits, target_weights, scale);
    }
    found
}

/// The sums of `weight[c] (m - x[c])` over a tile's rows, by lane.
#[inline(always)]
pub(super) fn margin_sums(
    settings: &Logits,
    tiling: &Tiling,
    logits: &[f32],
    weights: &[f32],
    m: &Lanes,
) -> Lanes {
    let mut found = RowPartials::empty(*m, [0; LANES]);
    found.add_target_weights(tiling, logits, weights, settings.distance_scale());
    found.margin_sum
}

/// Writes exponentials, and returns the sums of those below the maximum, and how many lie at it.
#[inline(always)]
fn exp_sums(
    tiling: &Tiling,
    logits: &[f32],
    to: &mut [f32],
    m: &Lanes,
    scale: f32,
) -> (Lanes, Lanes) {
    match tiling.by_lane {
        true => exp_sums_of_run(logits.as_chunks().0, to.as_chunks_mut().0, m, scale),
        false => exp_sums_by_row(tiling.classes(), logits, to, m, scale),
    }
}

#[inline(always)]
fn exp_sums_by_row(
    classes: usize,
    logits: &[f32],
    to: &mut [f32],
    m: &Lanes,
    scale: f32,
) -> (Lanes, Lanes) {
    let [mut exp_sum_below, mut max_count] = [[[0.0; LANES]; LANES]; 2];
    let rows = logits.chunks_exact(classes).zip(to.chunks_exact_mut(classes));
    for (row, (x, to)) in rows.enumerate() {
        let m = [m[row]; LANES];
        let (mut sum, mut count) =
            exp_sums_of_run(x.as_chunks().0, to.as_chunks_mut().0, &m, scale);
        if let (Some((x, skipped)), Some(to)) = (overlapping(x), to.last_chunk_mut()) {
            add_exponentials(x, to, &m, scale, skipped, (&mut sum, &mut count));
        }
        (exp_sum_below[row], max_count[row]) = (sum, count);
    }
    (by_row(exp_sum_below, sum_lanes), by_row(max_count, sum_lanes))
}

#[inline(always)]
fn exp_sums_of_run(logits: &[Lanes], to: &mut [Lanes], m: &Lanes, scale: f32) -> (Lanes, Lanes) {
    let m = *m;
    let [mut exp_sum_below, mut max_count] = [[0.0; LANES]; 2];
    for (logits, to) in logits.chunks(ADDITIONS).zip(to.chunks_mut(ADDITIONS)) {
        let [mut sum, mut count] = [[0.0; LANES]; 2];
        for (x, to) in logits.iter().zip(to) {
            add_exponentials(x, to, &m, scale, 0, (&mut sum, &mut count));
        }
        for lane in 0..LANES {
            exp_sum_below[lane] += sum[lane];
            max_count[lane] += count[lane];
        }
    }
    (exp_sum_below, max_count)
}

/// Writes a vector's exponentials. Of lanes from `skipped` on, one below the maximum is added to
/// the sum, and one at the maximum is counted.
#[inline(always)]
fn add_exponentials(
    x: &Lanes,
    to: &mut Lanes,
    m: &Lanes,
    scale: f32,
    skipped: usize,
    (sum, count): (&mut Lanes, &mut Lanes),
) {
    let mut e = *x;
    for lane in 0..LANES {
        let is_counted = lane >= skipped;
        let is_max = e[lane] == m[lane];
        e[lane] = exp_nonpositive((e[lane] - m[lane]) * scale);
        sum[lane] = select(is_counted & !is_max, sum[lane] + e[lane], sum[lane]);
        count[lane] = select(is_counted & is_max, count[lane] + 1.0, count[lane]);
    }
    *to = e;
}

/// A tile's rows, by lane: what their targets and the upstream gradient say.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    /// The target class.
    pub label: [usize; LANES],
    /// The target weight of that class, beyond what all classes get by label smoothing.
    pub target_weight: Lanes,
    /// What the row's gradient is multiplied by.
    pub scale: Lanes,
    /// 1 where the row is kept, 0 where it is ignored.
    pub kept: Lanes,
}

impl Rows {
    /// Rows without a target, whose gradients are multiplied by 1.
    pub const PLAIN: Rows = Rows {
        label: [0; LANES],
        target_weight: [0.0; LANES],
        scale: [1.0; LANES],
        kept: [1.0; LANES],
    };
}

/// What follows from the statistics of rows, by lane.
pub(super) struct Results {
    pub loss: Lanes,
    /// `ln` of the sum of `e^x`.
    pub logsumexp: Lanes,
    /// `-ln p` of a class at the maximum; NaN in a row that is NaN.
    pub log: Lanes,
    /// p of such a class, likewise.
    pub inverse: Lanes,
    pub gradients: RowGradients,
}

impl RowPartials {
    /// The partials of no class, with maxima that are known.
    #[inline(always)]
    pub fn empty(m: Lanes, flags: [u32; LANES]) -> Self {
        let zero = [0.0; LANES];
        RowPartials {
            m,
            exp_sum_below: zero,
            max_count: zero,
            target_below: zero,
            target_at_max: zero,
            margin_sum: zero,
            flags,
        }
    }

    /// Adds each row's target weight at one class, with logit `x`.
    #[inline(always)]
    pub fn add_single_target(&mut self, settings: &Logits, target_weight: &Lanes, x: &Lanes) {
        let scale = settings.distance_scale();
        for lane in 0..LANES {
            let (m, a, x) = (self.m[lane], target_weight[lane], x[lane]);
            self.target_at_max[lane] += select(x == m, a, 0.0);
            self.target_below[lane] += select(x == m, 0.0, a);
            self.margin_sum[lane] += cost(a, m, x, scale);
            self.flags[lane] |= cost_flags(a, x);
        }
    }

    /// The statistics of rows, from the partials of all of their classes.
    #[inline(always)]
    pub fn stats(self) -> RowStats {
        let RowPartials { m, target_below, target_at_max, margin_sum, flags, .. } = self;
        let mut denom_minus_1 = self.exp_sum_below;
        for lane in 0..LANES {
            denom_minus_1[lane] += self.max_count[lane] - 1.0;
            // Where no class is at the maximum, all are -inf.
            denom_minus_1[lane] =
                select(self.max_count[lane] == 0.0, f32::NAN, denom_minus_1[lane]);
        }
        RowStats { m, denom_minus_1, target_below, target_at_max, margin_sum, flags }
    }

    /// Adds what the target weights of all classes come to.
    #[inline(always)]
    fn add_target_weights(
        &mut self,
        tiling: &Tiling,
        logits: &[f32],
        target_weights: &[f32],
        scale: f32,
    ) {
        if tiling.by_lane {
            return self.add_run(logits.as_chunks().0, target_weights.as_chunks().0, scale);
        }
        let classes = tiling.classes();
        for (row, x) in logits.chunks_exact(classes).enumerate() {
            // either the same weights for every row, or this row's
            let a = match target_weights.len() == classes {
                true => target_weights,
                false => &target_weights[row * classes..][..classes],
            };
            let mut found = RowPartials::empty([self.m[row]; LANES], [0; LANES]);
            found.add_run(x.as_chunks().0, a.as_chunks().0, scale);
            if let (Some((x, skipped)), Some((a, _))) = (overlapping(x), overlapping(a)) {
                let mut a = *a;
                a[..skipped].fill(0.0);
                found.add_run(&[*x], &[a], scale);
            }
            self.target_below[row] = sum_lanes(found.target_below);
            self.target_at_max[row] = sum_lanes(found.target_at_max);
            self.margin_sum[row] = sum_lanes(found.margin_sum);
            self.flags[row] |= or_lanes(found.flags);
        }
    }

    /// Adds what the target weights of vectors come to.
    #[inline(always)]
    fn add_run(&mut self, logits: &[Lanes], target_weights: &[Lanes], scale: f32) {
        let m = self.m;
        for (logits, weights) in logits.chunks(ADDITIONS).zip(target_weights.chunks(ADDITIONS)) {
            let [mut target_below, mut target_at_max, mut margin_sum] = [[0.0; LANES]; 3];
            let mut flags = [0; LANES];
            for (x, a) in logits.iter().zip(weights) {
                for lane in 0..LANES {
                    let (x, a) = (x[lane], a[lane]);
                    let is_max = x == m[lane];
                    target_at_max[lane] += select(is_max, a, 0.0);
                    target_below[lane] += select(is_max, 0.0, a);
                    margin_sum[lane] += cost(a, m[lane], x, scale);
                    flags[lane] |= cost_flags(a, x);
                }
            }
            for lane in 0..LANES {
                self.target_below[lane] += target_below[lane];
                self.target_at_max[lane] += target_at_max[lane];
                self.margin_sum[lane] += margin_sum[lane];
                self.flags[lane] |= flags[lane];
            }
        }
    }
}

impl RowStats {
    /// Adds each row's target weight at one class, with logit `x`, and computes what follows.
    /// What the statistics then are is the row's state.
    #[inline(always)]
    pub fn conclude(&mut self, settings: &Logits, per_row: &Rows, x: &Lanes) -> Results {
        const ZERO: Lanes = [0.0; LANES];
        let (distance_scale, z_loss) = (settings.distance_scale(), settings.z_loss);
        let [mut losses, mut logsumexps, mut logs, mut inverses] = [ZERO; 4];
        let [mut factor, mut at_max, mut threshold, mut filling] = [ZERO; 4];
        for lane in 0..LANES {
            let (m, denom_minus_1) = (self.m[lane], self.denom_minus_1[lane]);
            let (a, x) = (per_row.target_weight[lane], x[lane]);
            let target_at_max = self.target_at_max[lane] + select(x == m, a, 0.0);
            let target_below = self.target_below[lane] + select(x == m, 0.0, a);
            let target_sum = target_below + target_at_max;
            let margin_sum = self.margin_sum[lane] + cost(a, m, x, distance_scale);
            let flags = self.flags[lane] | cost_flags(a, x);
            let is_nan = (flags & HAS_NAN_LOGIT != 0) | denom_minus_1.is_nan();
            let log = log1p(denom_minus_1);
            let inverse = 1.0 / (1.0 + denom_minus_1);
            let logsumexp = m * distance_scale + log;
            let z = select(z_loss == 0.0, 0.0, z_loss * logsumexp);
            // scaled logits may be beyond f32 where this is not
            let z_of_scaled = (2.0 * z_loss * distance_scale) * m;
            let z_gradient = select(logsumexp.is_infinite(), z_of_scaled, 2.0 * z);

            let loss_of_z = select(z_loss == 0.0, 0.0, z * logsumexp);
            let loss = target_sum * log + margin_sum + loss_of_z;
            // what is infinite of the loss itself is below that
            let loss = select(loss_of_z.is_infinite(), loss_of_z, loss);
            let loss = select(flags & HAS_POSITIVE_COST != 0, f32::INFINITY, loss);
            let loss = select(flags & HAS_NEGATIVE_COST != 0, f32::NEG_INFINITY, loss);
            // infinities of both signs have no sum
            const BOTH: u32 = HAS_POSITIVE_COST | HAS_NEGATIVE_COST;
            let has_both = flags & BOTH == BOTH;
            let has_nan = is_nan | target_sum.is_nan();
            let loss = select(has_nan | has_both, f32::NAN, loss);
            let is_ignored = per_row.kept[lane] == 0.0;
            losses[lane] = select(is_ignored, 0.0, loss);
            logsumexps[lane] = select(is_nan, f32::NAN, logsumexp);
            logs[lane] = select(is_nan, f32::NAN, log);
            inverses[lane] = select(is_nan, f32::NAN, inverse);

            // finite, since exponentials of 0 are multiplied by it too
            factor[lane] = min(-LOWEST, max(LOWEST, inverse * (target_sum + z_gradient)));
            at_max[lane] = inverse * ((target_below + z_gradient) - denom_minus_1 * target_at_max);
            // Where all others have less than half of the maximum's mass together, its
            // exponential of 1 is the only one above 3/4. With a nearer rival the general form
            // does not cancel, and serves for ties too, which then come out equal.
            threshold[lane] = select(denom_minus_1 < 0.5, 0.75, f32::INFINITY);
            let of_kept = select(is_nan | per_row.scale[lane].is_nan(), f32::NAN, 1.0);
            filling[lane] = select(is_ignored, 0.0, of_kept);

            self.m[lane] = select(is_nan, f32::NAN, m);
            self.target_below[lane] = target_below;
            self.target_at_max[lane] = target_at_max;
        }
        let gradients = RowGradients { factor, at_max, threshold, scale: per_row.scale, filling };
        Results { loss: losses, logsumexp: logsumexps, log: logs, inverse: inverses, gradients }
    }
}

/// What the gradients of a tile's rows need to know of them, by lane.
pub(super) struct RowGradients {
    /// `p[c] T` is this times `e^(x[c] - m)`; the z-loss is part of it.
    factor: Lanes,
    /// The gradient at a maximum without a near rival.
    at_max: Lanes,
    /// An exponential above this is that of such a maximum.
    threshold: Lanes,
    /// What the row's gradient is multiplied by.
    scale: Lanes,
    /// The gradient of a row that is ignored or NaN; 1 for other rows.
    filling: Lanes,
}

impl RowGradients {
    #[inline(always)]
    fn of_rows(&self) -> [&Lanes; 5] {
        [&self.factor, &self.at_max, &self.threshold, &self.scale, &self.filling]
    }

    /// The gradients at one class of each row. Its `e^(x - m)` is e, its target weight a, and
    /// `slope` is the derivative of its logit with respect to the input.
    #[inline(always)]
    pub fn at(&self, e: &Lanes, a: &Lanes, slope: &Lanes) -> Lanes {
        let rows = self.of_rows();
        let mut at = [0.0; LANES];
        for lane in 0..LANES {
            at[lane] = gradient(rows.map(|of| of[lane]), e[lane], a[lane], slope[lane]);
        }
        at
    }

    /// Writes gradients over exponentials. `target_weights` are empty where they are 0, `slopes`
    /// where they are `slope`.
    #[inline(always)]
    pub fn write(
        &self,
        tiling: &Tiling,
        tile: &mut [f32],
        target_weights: &[f32],
        slopes: &[f32],
        slope: f32,
    ) {
        let rows = self.of_rows();
        match (target_weights, slopes) {
            ([], []) => map(
                tiling,
                rows,
                [],
                tile,
                #[inline(always)]
                |row, e, []| gradient(row, e, 0.0, slope),
            ),
            (_, []) => map(
                tiling,
                rows,
                [target_weights],
                tile,
                #[inline(always)]
                |row, e, [a]| gradient(row, e, a, slope),
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
                [target_weights, slopes],
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
    [factor, at_max, threshold, scale, filling]: [f32; 5],
    e: f32,
    a: f32,
    slope: f32,
) -> f32 {
    let usual = e.mul_add(factor, -a);
    let g = select(e > threshold, at_max, usual);
    let g = zero_wins_unless_nan(g * slope, scale);
    select(filling == 1.0, g, filling)
}
