//! What goes into an op and what comes out, wherever it lives.

use crate::{Error, Result};

/// How the losses of rows or elements become the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Reduction {
    /// One loss per row or element.
    None,
    /// Their sum over the op's divisor (see each op). Infinite where the sum is beyond f32.
    #[default]
    Mean,
    /// Their sum.
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
}

impl Pass {
    /// `forward`, `backward`, `forward_backward`: also the shaders' entry points.
    pub fn name(self) -> &'static str {
        match self {
            Pass::Forward => "forward",
            Pass::Backward => "backward",
            Pass::ForwardBackward => "forward_backward",
        }
    }

    /// Whether this pass computes the loss.
    pub fn has_loss(self) -> bool {
        self != Pass::Backward
    }

    /// Whether this pass computes the gradient.
    pub fn has_grad(self) -> bool {
        self != Pass::Forward
    }
}

macro_rules! args {
    ($($(#[$doc:meta])* $name:ident $text:literal,)*) => {
        /// The arguments of an op: host [`Array`](crate::Array)s, device
        /// [`Tensor`](crate::Tensor)s, or only their [`Layout`](crate::Layout)s.
        ///
        /// ```
        /// # use wgloss::{Args, Array};
        /// # let (logits, target, weight) = ([0.0_f32; 6], [0, 2], [1.0_f32; 3]);
        /// let args = Args::new(Array::new(&logits, &[2, 3])?)
        ///     .target(Array::from(&target))
        ///     .weight(Array::from(&weight));
        /// # Ok::<_, wgloss::Error>(())
        /// ```
        #[derive(Debug, Clone, PartialEq)]
        pub struct Args<T> {
            pub(crate) input: T,
            $(pub(crate) $name: Option<T>,)*
            pub(crate) memory: Memory,
        }

        impl<T> Args<T> {
            /// The input (logits, predictions), with nothing else yet.
            pub fn new(input: T) -> Self {
                Args { input, $($name: None,)* memory: Memory::Apart }
            }

            $($(#[$doc])*
            pub fn $name(mut self, $name: T) -> Self {
                self.$name = Some($name);
                self
            })*

            /// The same arguments, each turned into something else.
            pub(crate) fn map<'a, U>(
                &'a self,
                mut f: impl FnMut(&'static str, &'a T) -> Result<U>,
            ) -> Result<Args<U>> {
                Ok(Args {
                    input: f("input", &self.input)?,
                    $($name: self.$name.as_ref().map(|v| f($text, v)).transpose()?,)*
                    memory: self.memory,
                })
            }

            /// The same arguments, each turned into something else without fail.
            pub(crate) fn map_ref<'a, U>(&'a self, mut f: impl FnMut(&'a T) -> U) -> Args<U> {
                Args {
                    input: f(&self.input),
                    $($name: self.$name.as_ref().map(&mut f),)*
                    memory: self.memory,
                }
            }

            /// Every argument given, with its name.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, &T)> {
                [Some(("input", &self.input)), $(self.$name.as_ref().map(|v| ($text, v)),)*]
                    .into_iter()
                    .flatten()
            }

            /// [`Args::map`] with waiting.
            pub(crate) async fn map_async<'a, U>(
                &'a self,
                mut f: impl AsyncFnMut(&'static str, &'a T) -> Result<U>,
            ) -> Result<Args<U>> {
                Ok(Args {
                    input: f("input", &self.input).await?,
                    $($name: match &self.$name {
                        Some(value) => Some(f($text, value).await?),
                        None => None,
                    },)*
                    memory: self.memory,
                })
            }

            /// Each argument of both, by name.
            pub(crate) fn zip<'a, U>(
                &'a self,
                other: &'a Args<U>,
                mut f: impl FnMut(&'static str, Option<&'a T>, Option<&'a U>) -> Result<()>,
            ) -> Result<()> {
                f("input", Some(&self.input), Some(&other.input))?;
                $(f($text, self.$name.as_ref(), other.$name.as_ref())?;)*
                Ok(())
            }

            /// Refuses every argument that is not among `known`.
            pub(crate) fn only(&self, known: &[&str], op: impl Fn() -> String) -> Result<()> {
                $(if self.$name.is_some() && !known.contains(&$text) {
                    return Err(Error::Unexpected { argument: $text, op: op() });
                })*
                Ok(())
            }
        }
    };
}

args! {
    /// The targets: class indices, or values of the input's shape.
    target "target",
    /// The weights: of classes (`[C]`) for cross entropy, of elements otherwise. Always f32.
    weight "weight",
    /// The weight of the positive term of BCE with logits. Always f32.
    pos_weight "pos_weight",
    /// The upstream gradient: one value for mean and sum, the loss's shape for none. Backward
    /// passes without one take 1. A number becomes a tensor by
    /// `gpu.upload(&Array::scalar(1024.0_f32))`: a loss scale, say, whose buffer may be written to
    /// between steps.
    upstream "upstream",
    /// The row state that a forward pass kept: spares backward its first read of the input.
    state "state",
}

impl<T> Args<T> {
    /// The input.
    pub fn input(&self) -> &T {
        &self.input
    }

    /// Device tensors: the gradient is written over the input, which is gone then. Refused where a
    /// kernel would read of the input what it has overwritten, and where a pass has no gradient.
    pub fn in_place(mut self) -> Self {
        self.memory = Memory::InPlace;
        self
    }

    /// Device tensors: arguments and results may be ranges of one buffer, as frameworks hand them out
    /// that allocate from large buffers. Results overlap nothing else, from their first element to
    /// their last, what lies between rows included.
    pub fn one_buffer(mut self) -> Self {
        self.memory = Memory::OneBuffer;
        self
    }
}

/// How arguments and results share buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) enum Memory {
    /// No buffer of a result is one of an argument.
    #[default]
    Apart,
    /// One buffer may hold several, beside one another.
    OneBuffer,
    /// Likewise, and the gradient's elements are the input's.
    InPlace,
}

macro_rules! output {
    ($($(#[$doc:meta])* $name:ident $text:literal,)*) => {
        /// What a pass computed, whichever pass it was: the form in which tools handle every op
        /// alike.
        ///
        /// [`Gpu::forward`](crate::Gpu::forward) and its kin return [`Forward`], [`Backward`] and
        /// [`ForwardBackward`] instead, in which nothing has to be unwrapped.
        #[derive(Debug, Clone, PartialEq)]
        pub struct Output<T> {
            $($(#[$doc])* pub $name: Option<T>,)*
        }

        /// Nothing.
        impl<T> Default for Output<T> {
            fn default() -> Self {
                Output { $($name: None,)* }
            }
        }

        impl<T> Output<T> {
            /// Each part of both, by name.
            pub(crate) fn zip<'a, U>(
                &'a self,
                other: &'a Output<U>,
                f: impl Fn(&'static str, Option<&'a T>, Option<&'a U>) -> Result<()>,
            ) -> Result<()> {
                $(f($text, self.$name.as_ref(), other.$name.as_ref())?;)*
                Ok(())
            }

            /// The same, each part turned into something else.
            pub(crate) fn map<U>(
                self,
                mut f: impl FnMut(&'static str, T) -> Result<U>,
            ) -> Result<Output<U>> {
                Ok(Output { $($name: self.$name.map(|part| f($text, part)).transpose()?,)* })
            }

            /// Each part that there is.
            pub(crate) fn parts(&self) -> impl Iterator<Item = &T> {
                [$(self.$name.as_ref(),)*].into_iter().flatten()
            }

            /// The same, borrowed.
            pub(crate) fn as_ref(&self) -> Output<&T> {
                Output { $($name: self.$name.as_ref(),)* }
            }
        }
    };
}

output! {
    /// The loss, unless the pass is backward.
    loss "loss",
    /// The gradient, unless the pass is forward.
    grad "grad",
    /// The row state, where the op was told to keep it.
    state "state",
    /// See [`Forward::logsumexp`].
    logsumexp "logsumexp",
    /// See [`Forward::argmax`].
    argmax "argmax",
    /// See [`Forward::correct`].
    correct "correct",
    /// What only the device could see of the inputs (see [`Forward::status`]).
    status "status",
}

/// The loss.
#[derive(Debug, Clone, PartialEq)]
pub struct Forward<T> {
    /// The loss, f32: 0-dimensional for mean and sum, one value per row or element for none. Of maps
    /// the output, in the input's shape and storage type.
    pub loss: T,
    /// The row state, `[rows, 4]` in f32, where the op was told to keep it: spares backward its
    /// first read of the input.
    pub state: Option<T>,
    /// Each row's logsumexp of its logits, f32, where the op was told to give row outputs. NaN in rows
    /// that hold NaN or +inf, or nothing but -inf.
    pub logsumexp: Option<T>,
    /// Each row's largest class, the first of several, i32, where the op was told to give row
    /// outputs. -1 where the logsumexp is NaN.
    pub argmax: Option<T>,
    /// Whether each row's largest class is its target: 1 or 0, i32, where the op was told to give
    /// row outputs of class targets. 0 in ignored rows.
    pub correct: Option<T>,
    /// From device tensors: the words in which the device reports inputs that it alone could see,
    /// such as a class out of range; [`Gpu::check`](crate::Gpu::check) turns them into an error.
    /// `None` from host arrays, where that error was returned already, and for ops that take any
    /// input.
    pub status: Option<T>,
}

/// The gradient.
#[derive(Debug, Clone, PartialEq)]
pub struct Backward<T> {
    /// The gradient with respect to the input, in its shape and storage type.
    pub grad: T,
    /// As [`Forward::status`].
    pub status: Option<T>,
}

/// The loss and the gradient.
#[derive(Debug, Clone, PartialEq)]
pub struct ForwardBackward<T> {
    /// As [`Forward::loss`].
    pub loss: T,
    /// As [`Backward::grad`].
    pub grad: T,
    /// As [`Forward::state`].
    pub state: Option<T>,
    /// As [`Forward::logsumexp`].
    pub logsumexp: Option<T>,
    /// As [`Forward::argmax`].
    pub argmax: Option<T>,
    /// As [`Forward::correct`].
    pub correct: Option<T>,
    /// As [`Forward::status`].
    pub status: Option<T>,
}

/// The results of one pass or another.
impl<T> Output<T> {
    pub(crate) fn into_forward(self) -> Result<Forward<T>> {
        let Output { loss, grad: _, state, logsumexp, argmax, correct, status } = self;
        Ok(Forward { loss: computed(loss)?, state, logsumexp, argmax, correct, status })
    }

    pub(crate) fn into_backward(self) -> Result<Backward<T>> {
        Ok(Backward { grad: computed(self.grad)?, status: self.status })
    }

    pub(crate) fn into_forward_backward(self) -> Result<ForwardBackward<T>> {
        let Output { loss, grad, state, logsumexp, argmax, correct, status } = self;
        let (loss, grad) = (computed(loss)?, computed(grad)?);
        Ok(ForwardBackward { loss, grad, state, logsumexp, argmax, correct, status })
    }
}

/// What a pass is bound to compute.
fn computed<T>(part: Option<T>) -> Result<T> {
    part.ok_or_else(|| Error::Internal("the op did not compute what its pass asks for".into()))
}
