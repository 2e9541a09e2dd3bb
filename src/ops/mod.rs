//! The ops: options, checks, documentation. One file an op, the stem of its shader.

pub mod options;
pub(crate) mod elements;
mod padding;
mod pieces;
mod products;
mod row_maps;
mod rows;
mod shards;
mod sum;

mod cross_entropy;
mod linear_cross_entropy;
mod nll_loss;
mod bce;
mod bce_with_logits;
mod mse;
mod l1;
mod smooth_l1;
mod huber;
mod kl_div;
mod soft_margin;
mod sigmoid_focal;
mod poisson_nll;
mod softmax;
mod log_softmax;
mod sigmoid;
mod logsigmoid;

pub(crate) use cross_entropy::has_classes;
#[cfg(feature = "cpu")]
pub(crate) use elements::weight_dims;
pub(crate) use elements::{Elementwise, divisor};
pub(crate) use linear_cross_entropy::LinearShape;
pub(crate) use row_maps::rows_along;

pub use bce::Bce;
pub use bce_with_logits::BceWithLogits;
pub use cross_entropy::CrossEntropy;
pub use huber::Huber;
pub use kl_div::KlDiv;
pub use l1::L1;
pub use linear_cross_entropy::LinearCrossEntropy;
pub use log_softmax::LogSoftmax;
pub use logsigmoid::LogSigmoid;
pub use mse::Mse;
pub use nll_loss::NllLoss;
pub use poisson_nll::PoissonNll;
pub use sigmoid::Sigmoid;
pub use sigmoid_focal::SigmoidFocal;
pub use smooth_l1::SmoothL1;
pub use soft_margin::SoftMargin;
pub use softmax::Softmax;

/// What the crate's own tests look at.
pub(crate) mod internals {
    pub use super::elements::ElementParams;
    pub use super::padding::PaddingParams;
    pub use super::products::{MatrixParams, PartialsParams, ProductParams};
    pub use super::rows::{Partials, RowOperands, RowParams, RowTarget};
    pub use super::sealed::Sealed;
    pub use super::sum::SumParams;
}

use std::fmt;
use std::hash::{Hash, Hasher};

use options::{Info, Key, Kind, Value};

use crate::program::{Program, Slot, View};
use crate::reference::{Tolerance, Values};
use crate::shape::Layout;
use crate::tuning::DeviceProfile;
use crate::{Args, Array, DType, Error, Output, Pass, Reduction, Result, Role};

/// Every op of this crate, with its defaults.
pub fn ops() -> Vec<Box<dyn Op>> {
    vec![
        Box::new(CrossEntropy::default()),
        Box::new(LinearCrossEntropy::default()),
        Box::new(NllLoss::default()),
        Box::new(Bce::default()),
        Box::new(BceWithLogits::default()),
        Box::new(Mse::default()),
        Box::new(L1::default()),
        Box::new(SmoothL1::default()),
        Box::new(Huber::default()),
        Box::new(KlDiv::default()),
        Box::new(SoftMargin::default()),
        Box::new(SigmoidFocal::default()),
        Box::new(PoissonNll::default()),
        Box::new(Softmax::default()),
        Box::new(LogSoftmax::default()),
        Box::new(Sigmoid),
        Box::new(LogSigmoid),
    ]
}

/// An op: its options, and all that [`Gpu`](crate::Gpu), the CPU and the
/// [`reference`](mod@crate::reference) need to know of it.
///
/// This crate implements it, and for losses of the caller's own [`Elementwise`](crate::custom::Elementwise)
/// does. Ops are equal where their names and the bits of their options are.
pub trait Op: fmt::Debug + Send + Sync + sealed::Sealed {
    /// The stem: of the file, the shader, labels, tests and benches.
    fn name(&self) -> &'static str;

    /// What it is, in a line.
    fn about(&self) -> &'static str;

    /// What it is: which arguments it takes, and what they are.
    fn kind(&self) -> Kind;

    /// Its options, and the values that they have.
    fn options(&self) -> Vec<Info>;

    /// Sets an option by its name.
    ///
    /// # Errors
    /// [`Error::Value`] that names the option, what was expected and what came; it is unchanged then.
    fn set(&mut self, name: &str, value: Value) -> Result<()>;

    /// A copy of it.
    fn boxed(&self) -> Box<dyn Op>;

    /// What tells it, with its options, from any other: a key for caches.
    fn key(&self) -> Key;

    /// Checks options and layouts, and tells the layouts of what the pass computes.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::DType`], [`Error::Value`], [`Error::Missing`] or
    /// [`Error::Unexpected`], naming the argument.
    fn outputs(&self, pass: Pass, args: &Args<Layout>) -> Result<Output<Layout>>;

    /// Checks what only the host can check before any work: the values of host arrays.
    #[doc(hidden)]
    fn check_values(&self, args: &Args<Array<'_>>) -> Result<()>;

    /// The dispatches for layouts that `outputs` has passed, and for results that lie in memory as
    /// the caller likes.
    #[doc(hidden)]
    fn program(
        &self,
        pass: Pass,
        args: &Args<Layout>,
        outputs: &Output<Layout>,
        profile: &DeviceProfile,
    ) -> Result<Program>;

    /// What is promised of a result's error, before upstream gradient and divisor (see
    /// [`Tolerance::scaled`]) and before it is stored: [`Tolerance::GRAD`] of gradients and entropies,
    /// [`Tolerance::LOSS`] of others, and more where an option says so.
    fn promise(&self, role: Role) -> Tolerance {
        Tolerance::of(role)
    }

    /// The definition in float64, over arrays that `outputs` and `check_values` have passed.
    #[doc(hidden)]
    fn reference(&self, pass: Pass, args: &Args<Array<'_>>) -> Output<Values>;

    /// The CPU's form of the kernels, over such arrays: fills results of the layouts that `outputs`
    /// tells.
    #[cfg(feature = "cpu")]
    #[doc(hidden)]
    fn cpu(&self, args: &Args<Array<'_>>, output: &mut Output<Array<'static>>) -> Result<()>;
}

impl PartialEq for dyn Op {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for dyn Op {}

impl Hash for dyn Op {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl Clone for Box<dyn Op> {
    fn clone(&self) -> Self {
        self.boxed()
    }
}

pub(crate) mod sealed {
    /// What keeps other crates from implementing [`Op`](super::Op).
    pub trait Sealed {}
}

/// What inputs may be stored as.
const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];

/// What every op asks of its arguments, before their shapes are looked at: layouts that an array can
/// have, none that is not among `known`, and a gradient where it is to be in place or padded.
fn expect_args(
    pass: Pass,
    args: &Args<Layout>,
    known: &[Role],
    op: impl Fn() -> String,
) -> Result<()> {
    if pass == Pass::Partials {
        return Err(Error::Value {
            argument: "pass",
            expected: "forward, backward or forward_backward of an op without shards".into(),
            actual: pass.name().into(),
        });
    }
    args.iter().try_for_each(|(role, layout)| layout.check(role.name()))?;
    args.only(known, &op)?;
    let of_gradients = [("in_place", args.in_place), ("zero_padding", args.zero_padding)];
    match of_gradients.into_iter().find(|&(_, is_asked)| is_asked && !pass.has_grad()) {
        Some((argument, _)) => Err(Error::Unexpected { argument, op: op() }),
        None => Ok(()),
    }
}

/// Refuses a storage type that is not among `allowed`.
fn expect_dtype(role: Role, layout: &Layout, allowed: &[DType]) -> Result<()> {
    if allowed.contains(&layout.dtype()) {
        return Ok(());
    }
    let names: Vec<_> = allowed.iter().map(|dtype| dtype.name()).collect();
    let (argument, expected) = (role.name(), names.join(" or "));
    Err(Error::DType { argument, expected, actual: layout.dtype() })
}

/// Refuses a shape other than `expected`.
fn expect_shape(role: Role, layout: &Layout, expected: &[usize]) -> Result<()> {
    if layout.shape() == expected {
        return Ok(());
    }
    let (expected, actual) = (format!("{expected:?}"), layout.shape().to_vec());
    Err(Error::Shape { argument: role.name(), expected, actual })
}

/// Refuses an upstream gradient that is not one value for mean and sum, or, for none, the loss's shape
/// in the type `unreduced`.
fn expect_upstream(
    args: &Args<Layout>,
    reduction: Reduction,
    loss: &[usize],
    unreduced: DType,
) -> Result<()> {
    let Some(upstream) = args.get(Role::Upstream) else { return Ok(()) };
    match reduction {
        Reduction::None => {
            expect_dtype(Role::Upstream, upstream, &[unreduced])?;
            expect_shape(Role::Upstream, upstream, loss)
        }
        Reduction::Mean | Reduction::Sum | Reduction::BatchMean => {
            expect_dtype(Role::Upstream, upstream, &[DType::F32])?;
            match upstream.elements() {
                1 => Ok(()),
                _ => Err(Error::Shape {
                    argument: Role::Upstream.name(),
                    expected: format!("[] for reduction {}", reduction.name()),
                    actual: upstream.shape().to_vec(),
                }),
            }
        }
    }
}

/// Refuses a weight that is not finite, naming its index.
fn expect_finite(role: Role, array: Option<&Array<'_>>) -> Result<()> {
    let Some(array) = array else { return Ok(()) };
    match array.to_f64().iter().enumerate().find(|(_, value)| !value.is_finite()) {
        None => Ok(()),
        Some((index, value)) => Err(Error::Value {
            argument: role.name(),
            expected: "finite values".into(),
            actual: format!("{value} at element {index}"),
        }),
    }
}

/// Refuses a value outside `[0, 1]`, NaN too, naming its index.
fn expect_unit_interval(role: Role, array: Option<&Array<'_>>) -> Result<()> {
    let values = array.map(Array::to_f32).unwrap_or_default();
    match values.iter().enumerate().find(|(_, value)| !(0.0..=1.0).contains(*value)) {
        None => Ok(()),
        Some((index, value)) => Err(Error::Value {
            argument: role.name(),
            expected: "numbers in [0, 1]".into(),
            actual: format!("{value} at element {index}"),
        }),
    }
}

/// The layout of the loss for a reduction.
fn loss_layout(reduction: Reduction, unreduced: &[usize]) -> Layout {
    match reduction {
        Reduction::None => Layout::new(unreduced, DType::F32),
        _ => Layout::new(&[], DType::F32),
    }
}

/// The layout of the gradient: where the input is, or contiguous.
fn grad_layout(pass: Pass, args: &Args<Layout>) -> Option<Layout> {
    let input = args.input();
    match args.in_place {
        _ if !pass.has_grad() => None,
        true => Some(input.clone()),
        false => Some(Layout::new(input.shape(), input.dtype())),
    }
}

/// The gradient as programs see it: in place, it is where the input is.
fn grad_view(args: &Args<Layout>, outputs: &Output<Layout>) -> Option<View> {
    let grad = outputs.get(Role::Grad)?;
    Some(match args.in_place {
        true => View::new(Slot::Tensor(Role::Input), grad),
        false => View::of(Role::Grad, grad),
    })
}
