//! What goes into an op: the pass, the reduction and the arguments, wherever they live.

use crate::role::Parts;
use crate::{Error, Layout, Operand, Result, Role};

/// How the losses of rows or elements become the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Reduction {
    /// One loss per row or element.
    None,
    /// Their sum over the op's divisor (see each op). Infinite where the sum is beyond f32.
    #[default]
    Mean,
    /// Their sum. One that is beyond f32 on the way, where losses are near 1e38, is infinite, and NaN where
    /// it then meets an infinite loss of the other sign.
    Sum,
    /// Their sum over the size of the first dimension: for [`KlDiv`](crate::KlDiv) alone.
    BatchMean,
}

impl Reduction {
    /// PyTorch's word: `none`, `mean`, `sum`, `batchmean`.
    pub fn name(self) -> &'static str {
        match self {
            Reduction::None => "none",
            Reduction::Mean => "mean",
            Reduction::Sum => "sum",
            Reduction::BatchMean => "batchmean",
        }
    }
}

/// What to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pass {
    /// The loss.
    Forward,
    /// The gradient of the loss with respect to the input, times an upstream gradient.
    Backward,
    /// Both, in one pass over the input where the mathematics allows it.
    ForwardBackward,
    /// What a shard of the classes tells of each row, for the passes of all shards: of
    /// [`CrossEntropy`](crate::CrossEntropy::shard) and
    /// [`LinearCrossEntropy`](crate::LinearCrossEntropy) alone. Of given partials it makes one,
    /// on the CPU.
    Partials,
}

impl Pass {
    /// `forward`, `backward`, `forward_backward`, `partials`: also the shaders' entry points.
    pub fn name(self) -> &'static str {
        match self {
            Pass::Forward => "forward",
            Pass::Backward => "backward",
            Pass::ForwardBackward => "forward_backward",
            Pass::Partials => "partials",
        }
    }

    /// Whether this pass computes the loss.
    pub fn has_loss(self) -> bool {
        matches!(self, Pass::Forward | Pass::ForwardBackward)
    }

    /// Whether this pass computes the gradient.
    pub fn has_grad(self) -> bool {
        matches!(self, Pass::Backward | Pass::ForwardBackward)
    }
}

/// The arguments of an op: host [`Array`](crate::Array)s, device [`Tensor`](crate::Tensor)s, or only
/// their [`Layout`]s.
///
/// ```
/// # use wgloss::{Args, Array};
/// # let (logits, target, weight) = ([0.0_f32; 6], [0, 2], [1.0_f32; 3]);
/// let args = Args::new(Array::new(&logits, &[2, 3])?)
///     .target(Array::from(&target))
///     .weight(Array::from(&weight));
/// # Ok::<_, wgloss::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Args<T> {
    input: T,
    /// All but the input.
    others: Parts<T>,
    pub(crate) in_place: bool,
    pub(crate) zero_padding: bool,
}

impl<T> Args<T> {
    /// The input (logits, predictions), with nothing else yet.
    pub fn new(input: T) -> Self {
        Args { input, others: Parts::default(), in_place: false, zero_padding: false }
    }

    fn with(mut self, role: Role, value: T) -> Self {
        *self.others.get_mut(role) = Some(value);
        self
    }

    /// The targets: class indices, or values of the input's shape.
    pub fn target(self, target: T) -> Self {
        self.with(Role::Target, target)
    }

    /// The weights: of classes (`[C]`) for cross entropy, of elements otherwise. Always f32.
    pub fn weight(self, weight: T) -> Self {
        self.with(Role::Weight, weight)
    }

    /// The weight of the positive term of BCE with logits. Always f32.
    pub fn pos_weight(self, pos_weight: T) -> Self {
        self.with(Role::PosWeight, pos_weight)
    }

    /// The classifier of [`LinearCrossEntropy`](crate::LinearCrossEntropy), `[V, D]`.
    pub fn projection(self, projection: T) -> Self {
        self.with(Role::Projection, projection)
    }

    /// What [`LinearCrossEntropy`](crate::LinearCrossEntropy) adds to each class's logit, `[V]`. Always f32.
    pub fn bias(self, bias: T) -> Self {
        self.with(Role::Bias, bias)
    }

    /// What the gradient with respect to the projection is added to, always f32: that of micro-batches
    /// before this one. On the device the sum is written over it.
    pub fn grad_projection(self, so_far: T) -> Self {
        self.with(Role::GradProjection, so_far)
    }

    /// What the gradient with respect to the bias is added to, as [`grad_projection`](Self::grad_projection).
    pub fn grad_bias(self, so_far: T) -> Self {
        self.with(Role::GradBias, so_far)
    }

    /// The upstream gradient: one value for mean and sum, the loss's shape for none. Backward
    /// passes of losses without one take 1, also of losses that are not reduced, each of which is of its own
    /// row or element. Those of maps ask for one of the output's shape, as PyTorch does. A number becomes a tensor by
    /// `gpu.upload(&Array::scalar(1024.0_f32))`: a loss scale, say, whose buffer may be written to
    /// between steps.
    pub fn upstream(self, upstream: T) -> Self {
        self.with(Role::Upstream, upstream)
    }

    /// The row state that a forward pass kept: spares backward its first read of the input.
    pub fn state(self, state: T) -> Self {
        self.with(Role::State, state)
    }

    /// What every shard of the classes told of each row ([`Pass::Partials`]), `[rows, shards, 8]` in
    /// the order of their classes: losses and gradients are then those of whole rows.
    pub fn partials(self, partials: T) -> Self {
        self.with(Role::Partials, partials)
    }

    /// The divisor of the mean, one f32, in place of what these rows alone would be divided by: that
    /// of all shards, of the classes or of the batch.
    pub fn divisor(self, divisor: T) -> Self {
        self.with(Role::Divisor, divisor)
    }

    /// Device tensors: the gradient is written over the input, which is gone then. Refused where a
    /// kernel would read of the input what it has overwritten, and where a pass has no gradient.
    ///
    /// Padding between rows (see [`Layout::with_row_stride`]) is left as it is, so that it holds
    /// what it held beside the logits: [`zero_padding`](Self::zero_padding) is for gradients that
    /// a product over all columns reads.
    pub fn in_place(mut self) -> Self {
        self.in_place = true;
        self
    }

    /// Device tensors: zeros are written into the padding after each row of the gradient, the last
    /// row's too, for which the gradient's buffer must have room. Without this, padding is neither
    /// read nor written, since it may be the caller's other data.
    pub fn zero_padding(mut self) -> Self {
        self.zero_padding = true;
        self
    }

    /// The argument of this role.
    pub fn get(&self, role: Role) -> Option<&T> {
        match role {
            Role::Input => Some(&self.input),
            role => self.others.get(role),
        }
    }

    /// The input.
    pub fn input(&self) -> &T {
        &self.input
    }

    /// Every argument given, with its role.
    pub fn iter(&self) -> impl Iterator<Item = (Role, &T)> {
        std::iter::once((Role::Input, &self.input)).chain(self.others.iter())
    }

    /// The argument that a result is written over, if any: in place the input by the gradient, and what a sum
    /// is added to by the sum.
    pub(crate) fn home_role(&self, result: Role) -> Option<Role> {
        match result {
            Role::Grad if self.in_place => Some(Role::Input),
            Role::GradProjection | Role::GradBias => self.get(result).map(|_| result),
            _ => None,
        }
    }

    /// That argument.
    pub(crate) fn home_of(&self, result: Role) -> Option<&T> {
        self.get(self.home_role(result)?)
    }

    /// The same arguments, each turned into something else.
    pub(crate) fn try_map<'a, U>(
        &'a self,
        mut f: impl FnMut(Role, &'a T) -> Result<U>,
    ) -> Result<Args<U>> {
        Ok(Args {
            input: f(Role::Input, &self.input)?,
            others: self.others.try_map(f)?,
            in_place: self.in_place,
            zero_padding: self.zero_padding,
        })
    }

    /// The same arguments, each turned into something else without fail.
    pub(crate) fn map<'a, U>(&'a self, mut f: impl FnMut(&'a T) -> U) -> Args<U> {
        let Ok(others) = self.others.try_map(|_, part| Ok::<_, std::convert::Infallible>(f(part)));
        Args {
            input: f(&self.input),
            others,
            in_place: self.in_place,
            zero_padding: self.zero_padding,
        }
    }

    /// The argument of this role, or [`Error::Missing`].
    pub(crate) fn required(&self, role: Role, op: impl FnOnce() -> String) -> Result<&T> {
        self.get(role).ok_or_else(|| Error::Missing { argument: role.name(), op: op() })
    }

    /// Refuses every argument that is not among `known`.
    pub(crate) fn only(&self, known: &[Role], op: impl Fn() -> String) -> Result<()> {
        match self.others.iter().find(|(role, _)| !known.contains(role)) {
            Some((role, _)) => Err(Error::Unexpected { argument: role.name(), op: op() }),
            None => Ok(()),
        }
    }
}

impl<T: Operand> Args<T> {
    /// The layouts of the arguments: what a plan is made for.
    pub fn layouts(&self) -> Args<Layout> {
        self.map(|value| value.layout().clone())
    }
}
