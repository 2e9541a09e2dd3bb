//! float64 results straight from the definitions: what every kernel is tested against.
//!
//! Written for being right and easy to check, not for speed. Only the formulas' rearrangements that
//! float64 itself needs are made (a confident row would lose its digits even there); none of the
//! kernels' accumulators, blocks or merging rules appear. [`run`] computes; [`compare`] holds f32
//! results to what is promised of them.

pub(crate) mod compare;
mod cross_entropy;
mod elements;
mod linear_cross_entropy;
mod nll_loss;
mod row_maps;
mod shards;

pub use compare::{Mismatch, Tolerance, Worst, compare};
pub(crate) use cross_entropy::cross_entropy;
pub(crate) use elements::elements;
pub(crate) use linear_cross_entropy::linear_cross_entropy;
pub(crate) use nll_loss::nll_loss;
pub(crate) use row_maps::{log_softmax, softmax};

use crate::ops::Op;
use crate::{Args, Array, DType, Layout, Output, Pass, Reduction, Result, Role};

/// float64 results, and beside every value the measure of the error that it may have.
#[derive(Debug, Clone, PartialEq)]
pub struct Values {
    /// The shape; `[]` for mean and sum.
    pub shape: Vec<usize>,
    /// The values, row-major.
    pub values: Vec<f64>,
    /// For each value T: the sum of the absolute values of the terms whose sum it is. A result's
    /// error is promised as a multiple of T, since terms that cancel leave no more than that.
    ///
    /// T is scaled like its value: by the divisor of a mean, and in gradients by the upstream. It
    /// means nothing where the value is NaN or infinite. Of integers it is 0, as they are exact; but where
    /// [`LinearCrossEntropy`](crate::LinearCrossEntropy)'s largest logits are so near one another that their
    /// rounding may make any of them the largest, it lets these pass.
    pub magnitudes: Vec<f64>,
}

impl Values {
    /// The values rounded to f32.
    ///
    /// # Errors
    /// [`Error::Length`](crate::Error::Length) when the number of values is not the product of the
    /// shape, which cannot be where [`run`] made them.
    pub fn to_array(&self) -> Result<Array<'static>> {
        Array::from_vec(self.values.iter().map(|&value| value as f32).collect(), &self.shape)
    }
}

/// Computes an op in float64 on this thread.
///
/// Arguments may be f64 too ([`Data::F64`](crate::Data::F64)), which stands for whatever type of floats an
/// op asks for.
///
/// Row state is neither kept nor used, and there is no status: what it would tell of is an error.
///
/// ```
/// use wgloss::{Args, Array, CrossEntropy, Pass, reference};
///
/// let args = Args::new(Array::new(&[60.0_f32, 0.0], &[1, 2])?).target(Array::from(&[0]));
/// let out = reference::run(&CrossEntropy::default(), Pass::ForwardBackward, &args)?;
/// let (loss, grad) = (out.loss()?, out.grad()?);
/// assert_eq!(loss.values, [(-60_f64).exp()]); // -ln p[0], to the last digit
/// assert_eq!(grad.shape, [1, 2]);
/// # Ok::<_, wgloss::Error>(())
/// ```
///
/// # Errors
/// Those of [`Op::outputs`]; and for values that the op does not take, such as a class out of
/// range, [`Error::Class`](crate::Error::Class) or [`Error::Value`](crate::Error::Value).
pub fn run(op: &dyn Op, pass: Pass, args: &Args<Array<'_>>) -> Result<Output<Values>> {
    op.outputs(pass, &as_devices_have_them(&args.layouts()))?;
    op.check_values(args)?;
    Ok(op.reference(pass, args))
}

/// The layouts, with f32 for floats of every width where one is f64, which no device has.
fn as_devices_have_them(layouts: &Args<Layout>) -> Args<Layout> {
    if layouts.iter().all(|(_, layout)| layout.dtype() != DType::F64) {
        return layouts.clone();
    }
    layouts.map(|layout| match layout.dtype() {
        DType::I32 | DType::I64 => layout.clone(),
        DType::F32 | DType::F16 | DType::Bf16 | DType::F64 => layout.clone().with_dtype(DType::F32),
    })
}

/// The losses of rows or elements, reduced. A mean over a divisor of 0 is NaN.
fn reduce(
    reduction: Reduction,
    divisor: f64,
    shape: &[usize],
    losses: Vec<f64>,
    magnitudes: Vec<f64>,
) -> Values {
    let over = match reduction {
        Reduction::None => {
            return Values { shape: shape.to_vec(), values: losses, magnitudes };
        }
        Reduction::Sum => 1.0,
        Reduction::Mean | Reduction::BatchMean if divisor == 0.0 => f64::NAN,
        Reduction::Mean | Reduction::BatchMean => divisor,
    };
    Values {
        shape: vec![],
        values: vec![losses.iter().sum::<f64>() / over],
        magnitudes: vec![magnitudes.iter().sum::<f64>() / over.abs()],
    }
}

/// What multiplies the gradients of rows or elements: the upstream gradient, 1 without one, over
/// the divisor of a mean.
struct Factors {
    upstream: Option<Vec<f64>>,
    reduction: Reduction,
    divisor: f64,
}

impl Factors {
    fn new(reduction: Reduction, divisor: f64, args: &Args<Array<'_>>) -> Self {
        Factors { upstream: args.get(Role::Upstream).map(Array::to_f64), reduction, divisor }
    }

    /// The factor of a row or element. NaN where the divisor is 0.
    fn of(&self, index: usize) -> f64 {
        let upstream = self.upstream.as_ref();
        match self.reduction {
            Reduction::None => upstream.map_or(1.0, |all| all[index]),
            Reduction::Sum => upstream.map_or(1.0, |one| one[0]),
            Reduction::Mean | Reduction::BatchMean if self.divisor == 0.0 => f64::NAN,
            Reduction::Mean | Reduction::BatchMean => {
                upstream.map_or(1.0, |one| one[0]) / self.divisor
            }
        }
    }
}

/// `factor * value`, where a factor of exactly 0 annihilates an infinity too.
pub(crate) fn times(factor: f64, value: f64) -> f64 {
    if factor == 0.0 && !value.is_nan() { 0.0 } else { factor * value }
}

/// 1, -1, or 0 at 0.
pub(crate) fn sign(x: f64) -> f64 {
    if x == 0.0 { 0.0 } else { x.signum() }
}

/// `ln(1 + e^x)`. The exponential never grows beyond 1, so nothing overflows.
pub(crate) fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// `1 / (1 + e^-x)`: keeps its digits down to the smallest results, where `e^-x` is large.
pub(crate) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}
