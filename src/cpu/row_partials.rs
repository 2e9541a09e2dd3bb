//! Partials of rows in memory: what a shard of the classes tells of each row, and how those of all shards
//! are merged. Their words and the rule are those of `shaders/shared/row_state.wgsl`.

use std::ops::Range;

use super::math::{LANES, LOWEST, Lanes, exp_nonpositive, max, min, select};
use super::row_state::{Logits, RowPartials, cost};
use crate::shards::WORDS;

/// A target weight is NaN.
const HAS_NAN_TARGET: u32 = 8;

/// Flags and class as bits are those of a float between 2 and 2^64, as kernels have them.
const CLASS_BITS: u32 = 25;
const NORMAL_BITS: u32 = 0x4000_0000;

/// What is known of a shard's classes of a tile's rows, by lane, also for row outputs.
#[derive(Debug, Clone, Copy)]
pub(super) struct ShardPartials {
    pub sums: RowPartials,
    /// The first class at the maximum, among those of all shards.
    pub first_at_max: [u32; LANES],
    /// The sum of `e^(x[c] - m) (m - x[c])`.
    pub entropy_sum: Lanes,
}

impl ShardPartials {
    fn empty() -> Self {
        ShardPartials {
            sums: RowPartials::empty([LOWEST; LANES], [0; LANES]),
            first_at_max: [0; LANES],
            entropy_sum: [0.0; LANES],
        }
    }

    /// The partials of rows from those of each shard, in order.
    #[inline(always)]
    pub fn merged(
        settings: &Logits,
        partials: &[f32],
        shards: usize,
        rows: &Range<usize>,
    ) -> ShardPartials {
        let mut total = ShardPartials::empty();
        for shard in 0..shards {
            total.merge(settings, ShardPartials::unpack(partials, shards, shard, rows));
        }
        total
    }

    /// Adds the partials of other classes. Both are rescaled to the larger maximum.
    #[inline(always)]
    fn merge(&mut self, settings: &Logits, mut other: ShardPartials) {
        let (here, there) = (&self.sums, &other.sums);
        for lane in 0..LANES {
            let is_empty = here.max_count[lane] == 0.0;
            let takes = (there.m[lane] > here.m[lane]) | is_empty;
            let has_both = (there.m[lane] == here.m[lane]) & (there.max_count[lane] != 0.0);
            let [first, of_other] = [self.first_at_max[lane], other.first_at_max[lane]];
            let first = if has_both { first.min(of_other) } else { first };
            self.first_at_max[lane] = if takes { of_other } else { first };
        }
        self.rescale(settings, &other.sums.m);
        other.rescale(settings, &self.sums.m);
        let (here, there) = (&mut self.sums, &other.sums);
        for lane in 0..LANES {
            here.exp_sum_below[lane] += there.exp_sum_below[lane];
            here.max_count[lane] += there.max_count[lane];
            here.target_below[lane] += there.target_below[lane];
            here.target_at_max[lane] += there.target_at_max[lane];
            here.margin_sum[lane] += there.margin_sum[lane];
            here.flags[lane] |= there.flags[lane];
            self.entropy_sum[lane] += other.entropy_sum[lane];
        }
    }

    /// Moves maxima up to m. What was at the maximum is below it afterwards.
    #[inline(always)]
    fn rescale(&mut self, settings: &Logits, m: &Lanes) {
        let scale = settings.distance_scale();
        let sums = &mut self.sums;
        for lane in 0..LANES {
            let (from, to) = (sums.m[lane], m[lane]);
            let is_moved = to > from;
            let distance = min((from - to) * scale, 0.0);
            let factor = exp_nonpositive(distance);
            // Every exponential moves down by the distance. One that becomes 0 has no entropy, however far
            // it moves.
            let exp_sum = sums.exp_sum_below[lane] + sums.max_count[lane];
            let entropy_sum = (self.entropy_sum[lane] - exp_sum * distance) * factor;
            let entropy_sum = select(factor == 0.0, 0.0, entropy_sum);
            // Every class moves further from the maximum.
            let target_sum = sums.target_below[lane] + sums.target_at_max[lane];
            let margin_sum = sums.margin_sum[lane] + cost(target_sum, to, from, scale);

            let moved = |after, before| select(is_moved, after, before);
            self.entropy_sum[lane] = moved(entropy_sum, self.entropy_sum[lane]);
            sums.exp_sum_below[lane] = moved(exp_sum * factor, sums.exp_sum_below[lane]);
            sums.max_count[lane] = moved(0.0, sums.max_count[lane]);
            sums.margin_sum[lane] = moved(margin_sum, sums.margin_sum[lane]);
            sums.target_below[lane] = moved(target_sum, sums.target_below[lane]);
            sums.target_at_max[lane] = moved(0.0, sums.target_at_max[lane]);
            sums.m[lane] = max(to, from);
        }
    }

    /// One row's, as it lies in memory.
    pub fn pack(&self, lane: usize) -> [f32; WORDS] {
        let sums = &self.sums;
        let has_nan = (sums.target_below[lane] + sums.target_at_max[lane]).is_nan();
        let flags = sums.flags[lane] | if has_nan { HAS_NAN_TARGET } else { 0 };
        let first = self.first_at_max[lane].min((1 << CLASS_BITS) - 1);
        [
            sums.m[lane],
            sums.exp_sum_below[lane],
            sums.max_count[lane],
            sums.target_below[lane],
            sums.target_at_max[lane],
            sums.margin_sum[lane],
            f32::from_bits(NORMAL_BITS | flags << CLASS_BITS | first),
            self.entropy_sum[lane],
        ]
    }

    /// Those of no class, of one row.
    pub fn packed_empty() -> [f32; WORDS] {
        ShardPartials::empty().pack(0)
    }

    /// Those that one of the shards has told of some rows. Lanes past the rows repeat the last one.
    #[inline(always)]
    fn unpack(partials: &[f32], shards: usize, shard: usize, rows: &Range<usize>) -> Self {
        let mut found = ShardPartials::empty();
        let sums = &mut found.sums;
        for lane in 0..LANES {
            let row = rows.start + lane.min(rows.len() - 1);
            let words = &partials[WORDS * (row * shards + shard)..][..WORDS];
            let bits = words[6].to_bits() & (NORMAL_BITS - 1);
            let flags = bits >> CLASS_BITS;
            sums.m[lane] = words[0];
            sums.exp_sum_below[lane] = words[1];
            sums.max_count[lane] = words[2];
            sums.target_below[lane] = select(flags & HAS_NAN_TARGET != 0, f32::NAN, words[3]);
            sums.target_at_max[lane] = words[4];
            sums.margin_sum[lane] = words[5];
            sums.flags[lane] = flags & !HAS_NAN_TARGET;
            found.first_at_max[lane] = bits & ((1 << CLASS_BITS) - 1);
            found.entropy_sum[lane] = words[7];
        }
        found
    }
}
