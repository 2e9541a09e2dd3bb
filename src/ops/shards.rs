//! Shards of the classes, and of the batch: what one tells others, and what it is told by them.

use super::rows::MOST_CLASSES;
use super::{CrossEntropy, expect_dtype, expect_shape};
use crate::shape::Layout;
use crate::shards::WORDS;
use crate::{Args, DType, Error, Output, Pass, Reduction, Result, Role};

/// The pass whose arguments a pass takes.
pub(super) fn checked_as(pass: Pass) -> Pass {
    if pass == Pass::Partials { Pass::Forward } else { pass }
}

impl CrossEntropy {
    /// The arguments that a pass takes beside those of every loss.
    pub(super) fn loss_arguments(&self, pass: Pass) -> Vec<Role> {
        let mut known = vec![Role::Partials];
        if pass.has_grad() {
            known.push(Role::Upstream);
        }
        if pass == Pass::Backward {
            known.push(Role::State);
        }
        if pass != Pass::Partials && self.reduction == Reduction::Mean {
            known.push(Role::Divisor);
        }
        known
    }

    /// How many classes there are in all, where so many are here.
    pub(crate) fn all_classes(&self, classes: usize) -> usize {
        match self.total_classes {
            0 => classes,
            all => all as usize,
        }
    }

    /// Refuses a state that does not fit, and tells the layout of one that does.
    pub(super) fn expect_state(&self, args: &Args<Layout>, rows: usize) -> Result<Layout> {
        let state = Layout::new(&[rows, 4], DType::F32);
        if let Some(given) = args.get(Role::State) {
            expect_dtype(Role::State, given, &[DType::F32])?;
            expect_shape(Role::State, given, state.shape())?;
        }
        Ok(state)
    }

    /// Refuses a shard that does not lie among all classes, and a pass over one that is not told of the
    /// others.
    pub(super) fn expect_shard(
        &self,
        pass: Pass,
        args: &Args<Layout>,
        classes: usize,
        rows: usize,
        op: impl Fn() -> String,
    ) -> Result<()> {
        let here = i64::try_from(classes).unwrap_or(i64::MAX);
        let total = match self.total_classes {
            0 => here,
            total if (here..=i64::from(i32::MAX)).contains(&total) => total,
            total => {
                return Err(Error::Value {
                    argument: "total_classes",
                    expected: format!("0, or {classes} to 2147483647, since so many are here"),
                    actual: total.to_string(),
                });
            }
        };
        if !(0..=total - here).contains(&self.first_class) {
            return Err(Error::Value {
                argument: "first_class",
                expected: format!(
                    "0 to {}, since {here} of {total} classes are here",
                    total - here
                ),
                actual: self.first_class.to_string(),
            });
        }
        let of_partials = pass == Pass::Partials || args.get(Role::Partials).is_some();
        if of_partials && self.row_outputs && total > MOST_CLASSES.into() {
            return Err(Error::Value {
                argument: "row_outputs",
                expected: format!("false in shards of more than {MOST_CLASSES} classes"),
                actual: "true".into(),
            });
        }
        if let Some(given) = args.get(Role::Partials) {
            expect_dtype(Role::Partials, given, &[DType::F32])?;
            let shards = given.shape().get(1).copied().unwrap_or(1).clamp(1, 1 << 15);
            expect_shape(Role::Partials, given, &[rows, shards, WORDS])?;
            if let Some(argument) = [
                ("state", args.get(Role::State).is_some()),
                ("keep_state", pass.has_loss() && self.keep_state),
            ]
            .into_iter()
            .find_map(|(argument, is_given)| is_given.then_some(argument))
            {
                return Err(Error::Unexpected { argument, op: format!("{} of partials", op()) });
            }
        }
        if let Some(given) = args.get(Role::Divisor) {
            expect_dtype(Role::Divisor, given, &[DType::F32])?;
            if given.elements() != 1 {
                return Err(Error::Shape {
                    argument: Role::Divisor.name(),
                    expected: "[]".into(),
                    actual: given.shape().to_vec(),
                });
            }
        }
        if pass != Pass::Partials && here < total {
            args.required(Role::Partials, || format!("{} of a shard", op()))?;
            if self.reduction == Reduction::Mean && super::cross_entropy::has_classes(args) {
                args.required(Role::Divisor, || format!("{} of a shard", op()))?;
            }
        }
        Ok(())
    }
}

impl Output<Layout> {
    /// With what a shard tells others, in the pass that tells it.
    pub(super) fn with_partials(self, pass: Pass, rows: usize, has_classes: bool) -> Self {
        let is_asked = pass == Pass::Partials;
        self.with_some(Role::Partial, is_asked.then(|| Layout::new(&[rows, 1, WORDS], DType::F32)))
            .with_some(
                Role::Divisor,
                (is_asked && has_classes).then(|| Layout::new(&[], DType::F32)),
            )
    }
}
