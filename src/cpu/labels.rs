//! Class-index targets.

use std::ops::Range;

use super::storage::slice;
use super::threads;
use crate::array::Data;
use crate::{Array, Result};

/// The classes of rows, one of which (`ignore_index`) marks rows to be left out.
pub(super) struct Labels<'a> {
    classes: Classes<'a>,
    ignore_index: i64,
    /// Those of this shard, among all.
    here: Range<usize>,
}

enum Classes<'a> {
    I32(&'a [i32]),
    I64(&'a [i64]),
}

impl<'a> Labels<'a> {
    pub fn of(target: &'a Array<'_>, ignore_index: i64, here: Range<usize>) -> Result<Self> {
        let classes = match target.data() {
            Data::I64(classes) => Classes::I64(classes),
            _ => Classes::I32(slice(target)?),
        };
        Ok(Labels { classes, ignore_index, here })
    }

    /// The class of a row, unless the row is ignored. It is in range, as the op's checks have
    /// found.
    pub fn class(&self, row: usize) -> Option<usize> {
        let class = match self.classes {
            Classes::I32(classes) => classes[row].into(),
            Classes::I64(classes) => classes[row],
        };
        self.unless_ignored(class)
    }

    /// Where a class lies among those of this shard, if it is one of them.
    #[inline(always)]
    pub fn here(&self, class: usize) -> Option<usize> {
        self.here.contains(&class).then(|| class - self.here.start)
    }

    /// Calls `take` with the position and the class of each of some rows, as [`Labels::class`]
    /// gives it.
    #[inline(always)]
    pub fn each_class(&self, rows: Range<usize>, mut take: impl FnMut(usize, Option<usize>)) {
        let each = 0..rows.len();
        match self.classes {
            Classes::I32(classes) => each
                .zip(&classes[rows])
                .for_each(|(i, &class)| take(i, self.unless_ignored(class.into()))),
            Classes::I64(classes) => {
                each.zip(&classes[rows]).for_each(|(i, &class)| take(i, self.unless_ignored(class)))
            }
        }
    }

    #[inline(always)]
    fn unless_ignored(&self, class: i64) -> Option<usize> {
        (class != self.ignore_index).then_some(class as usize)
    }

    /// How many rows are kept, and the sum of the weights of those whose class is one of this shard's.
    pub fn kept(&self, weight: Option<&[f32]>) -> (usize, f64) {
        const TASK: usize = 1 << 14;
        let rows = match self.classes {
            Classes::I32(classes) => classes.len(),
            Classes::I64(classes) => classes.len(),
        };
        let count = |first: usize| {
            let kept = (first..rows.min(first + TASK)).filter_map(|row| self.class(row));
            match weight {
                Some(weight) => kept.fold((0, 0.0), |(n, sum), class| {
                    let weight = self.here(class).map_or(0.0, |class| weight[class]);
                    (n + 1, sum + f64::from(weight))
                }),
                None => {
                    let is_here = |class| usize::from(self.here(class).is_some());
                    let (count, here) =
                        kept.fold((0, 0), |(n, here), class| (n + 1, here + is_here(class)));
                    (count, here as f64)
                }
            }
        };
        let tasks = threads::run((0..rows).step_by(TASK), count);
        tasks.into_iter().fold((0, 0.0), |(n, sum), (count, weights)| (n + count, sum + weights))
    }
}

/// What the mean of rows with these weights in sum divides by: the sum in f32, as kernels and shards have
/// it; NaN for 0, and infinite where it is beyond f32.
pub(super) fn divisor(weights: f64) -> f64 {
    match weights as f32 {
        0.0 => f64::NAN,
        sum => sum.into(),
    }
}

/// A mean from the sum of losses. Under an infinite divisor it is 0, or NaN where the sum is beyond f32
/// too.
pub(super) fn mean(sum: f64, divisor: f64) -> f64 {
    if divisor.is_infinite() { f64::from(sum as f32) / divisor } else { sum / divisor }
}
