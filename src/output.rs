//! What comes out of an op, wherever it lives.

use crate::role::Parts;
use crate::{Error, Result, Role, Status};

/// What a pass computed: host [`Array`](crate::Array)s, device [`Tensor`](crate::Tensor)s, or only
/// their [`Layout`](crate::Layout)s.
///
/// | role | of | shape | storage |
/// | --- | --- | --- | --- |
/// | `loss` | losses | `[]` for mean and sum; one value a row or element for none | f32 |
/// | `output` | maps, such as [`Softmax`](crate::Softmax) | the input's | the input's |
/// | `grad` | backward passes | the input's | the input's |
/// | `grad_projection`, `grad_bias` | backward passes of [`LinearCrossEntropy`](crate::LinearCrossEntropy) | the projection's, the bias's | f32, or the projection's by choice |
/// | `state` | ops that were told to keep it | `[rows, 4]` | f32 |
/// | `partial`, `divisor` | [`Pass::Partials`](crate::Pass::Partials) | `[rows, 1, 8]`, `[]` | f32 |
/// | `logsumexp`, `argmax`, `correct`, `entropy` | ops that were told to give [row outputs](Self::rows) | a value a row | f32, i32, i32, f32 |
#[derive(Debug, Clone, PartialEq)]
pub struct Output<T> {
    parts: Parts<T>,
    status: Option<Status>,
}

/// What cross entropy tells of each row beside its loss
/// ([`CrossEntropy::row_outputs`](crate::CrossEntropy::row_outputs)), ignored rows included.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowOutputs<'a, T> {
    /// The logsumexp of the row's logits, f32. NaN in rows that hold NaN or +inf, or nothing but
    /// -inf.
    pub logsumexp: &'a T,
    /// The largest class, the first of several, i32. -1 where the logsumexp is NaN.
    pub argmax: &'a T,
    /// Whether the largest class is the target: 1 or 0, i32. 0 in ignored rows. `None` where
    /// targets are probabilities.
    pub correct: Option<&'a T>,
    /// The entropy of the row's softmax in nats, f32: `-sum of p[c] ln p[c]`. NaN where the
    /// logsumexp is.
    pub entropy: &'a T,
}

impl<T> Default for Output<T> {
    fn default() -> Self {
        Output { parts: Parts::default(), status: None }
    }
}

impl<T> Output<T> {
    /// The loss.
    ///
    /// # Errors
    /// [`Error::NotComputed`] of backward passes and maps.
    pub fn loss(&self) -> Result<&T> {
        self.computed(Role::Loss)
    }

    /// The output of a map.
    ///
    /// # Errors
    /// [`Error::NotComputed`] of backward passes and losses.
    pub fn output(&self) -> Result<&T> {
        self.computed(Role::Output)
    }

    /// The gradient with respect to the input, in its shape and storage type.
    ///
    /// # Errors
    /// [`Error::NotComputed`] of forward passes.
    pub fn grad(&self) -> Result<&T> {
        self.computed(Role::Grad)
    }

    /// The gradient with respect to the projection.
    ///
    /// # Errors
    /// [`Error::NotComputed`] of forward passes, of ops without one, and where it is frozen.
    pub fn grad_projection(&self) -> Result<&T> {
        self.computed(Role::GradProjection)
    }

    /// The gradient with respect to the bias.
    ///
    /// # Errors
    /// As [`Output::grad_projection`], and where there is no bias.
    pub fn grad_bias(&self) -> Result<&T> {
        self.computed(Role::GradBias)
    }

    /// The row state that forward kept for backward.
    ///
    /// # Errors
    /// [`Error::NotComputed`] where the op was not told to keep it.
    pub fn state(&self) -> Result<&T> {
        self.computed(Role::State)
    }

    /// What a shard of the classes tells of each row.
    ///
    /// # Errors
    /// [`Error::NotComputed`] but of [`Pass::Partials`](crate::Pass::Partials).
    pub fn partial(&self) -> Result<&T> {
        self.computed(Role::Partial)
    }

    /// What the mean of the rows whose target is a class of this shard would be divided by: the sum of
    /// their targets' weights.
    ///
    /// # Errors
    /// [`Error::NotComputed`] but of [`Pass::Partials`](crate::Pass::Partials) with class targets.
    pub fn divisor(&self) -> Result<&T> {
        self.computed(Role::Divisor)
    }

    /// What is known of each row beside its loss.
    ///
    /// # Errors
    /// [`Error::NotComputed`] where the op was not told to give it.
    pub fn rows(&self) -> Result<RowOutputs<'_, T>> {
        Ok(RowOutputs {
            logsumexp: self.computed(Role::LogSumExp)?,
            argmax: self.computed(Role::Argmax)?,
            correct: self.get(Role::Correct),
            entropy: self.computed(Role::Entropy)?,
        })
    }

    /// From device tensors: where the device reports inputs that it alone could see, such as a class
    /// out of range. `None` from host arrays, where that error was returned already, and for ops
    /// that take any input or are given no elements.
    pub fn status(&self) -> Option<&Status> {
        self.status.as_ref()
    }

    /// The result of this role, where it was computed.
    pub fn get(&self, role: Role) -> Option<&T> {
        self.parts.get(role)
    }

    /// Takes the result of this role out.
    pub fn take(&mut self, role: Role) -> Option<T> {
        self.parts.get_mut(role).take()
    }

    /// With this result: for callers who provide the memory of results.
    pub fn with(mut self, role: Role, value: T) -> Self {
        *self.parts.get_mut(role) = Some(value);
        self
    }

    /// With this place for what the device reports.
    pub fn with_status(mut self, status: Status) -> Self {
        self.status = Some(status);
        self
    }

    /// Every result that there is, with its role.
    pub fn iter(&self) -> impl Iterator<Item = (Role, &T)> {
        self.parts.iter()
    }

    fn computed(&self, role: Role) -> Result<&T> {
        self.get(role).ok_or(Error::NotComputed { result: role.name() })
    }

    /// The place of a result.
    #[cfg(feature = "cpu")]
    pub(crate) fn place(&mut self, role: Role) -> &mut Option<T> {
        self.parts.get_mut(role)
    }

    /// The places of several results at once.
    #[cfg(feature = "cpu")]
    pub(crate) fn places<const N: usize>(
        &mut self,
        roles: [Role; N],
    ) -> Result<[&mut Option<T>; N]> {
        let places = self.parts.get_disjoint_mut(roles);
        places.ok_or_else(|| Error::Internal("one result in two places".into()))
    }

    /// With this result, if there is one.
    pub(crate) fn with_some(self, role: Role, value: Option<T>) -> Self {
        match value {
            Some(value) => self.with(role, value),
            None => self,
        }
    }

    /// The same results, each turned into something else.
    pub(crate) fn try_map<'a, U>(
        &'a self,
        f: impl FnMut(Role, &'a T) -> Result<U>,
    ) -> Result<Output<U>> {
        Ok(Output { parts: self.parts.try_map(f)?, status: self.status.clone() })
    }
}

impl<T> IntoIterator for Output<T> {
    type Item = (Role, T);
    type IntoIter = std::vec::IntoIter<(Role, T)>;

    /// Every result that there is, with its role.
    fn into_iter(self) -> Self::IntoIter {
        self.parts.into_parts().collect::<Vec<_>>().into_iter()
    }
}

impl<T> FromIterator<(Role, T)> for Output<T> {
    fn from_iter<I: IntoIterator<Item = (Role, T)>>(results: I) -> Self {
        results
            .into_iter()
            .fold(Output::default(), |output, (role, value)| output.with(role, value))
    }
}
