//! Soft margin.

use super::elements::{Elementwise, Point};
use super::options::{Numbers, Opt, Others, REDUCTIONS, reduction};
use crate::Reduction;
#[cfg(feature = "cpu")]
use crate::cpu;
use crate::kernel::{File, shader};
use crate::reference::{sigmoid, softplus, times};

/// Soft margin (logistic) loss of scores with targets 1 and -1, element by element.
///
/// In nats:
///
/// ```text
/// loss = ln(1 + e^(-t x))
/// grad = -t sigmoid(-t x)
/// ```
///
/// # Arguments
/// | name | shape | storage |
/// | --- | --- | --- |
/// | `input` | any, 0-dimensional too | f32, f16 or bf16 |
/// | `target` | the input's | the input's |
/// | `upstream` | one value (mean, sum) or the input's shape (none) | f32 for one value, else the input's |
///
/// # Reductions
/// `mean` (the default) divides by the number of elements.
///
/// # Edges
/// - Right at any score: neither loss nor gradient overflows, and confident elements keep their digits.
/// - Any number is accepted as a target; a target of 0 costs ln 2 whatever the score.
/// - No elements: mean NaN, sum 0.
/// - A NaN input or target makes loss and gradient NaN.
///
/// Source: PyTorch's `torch.nn.SoftMarginLoss`.
///
/// ```no_run
/// use wgloss::{Args, Array, Gpu, SoftMargin};
///
/// let gpu = Gpu::blocking()?;
/// let (input, target) = ([2.0, -0.5, 3.0_f32], [1.0, -1.0, 1.0_f32]);
/// let args = Args::new(Array::from(&input)).target(Array::from(&target));
/// let op = SoftMargin::default();
/// let out = gpu.block_on(gpu.forward_backward(&op, &args))?;
/// println!("loss {}, gradient {:?}", out.loss()?.item()?, out.grad()?.to_f32());
/// # Ok::<_, wgloss::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct SoftMargin {
    pub(crate) reduction: Reduction,
}

impl SoftMargin {
    /// How the elements' losses become the result. Default: mean.
    pub fn reduction(mut self, reduction: Reduction) -> Self {
        self.reduction = reduction;
        self
    }
}

impl Elementwise for SoftMargin {
    const NAME: &'static str = "soft_margin";
    const ABOUT: &'static str = "Logistic loss of scores with targets 1 and -1";
    const SHADER: File = shader!("ops/soft_margin.wgsl");
    const OPTIONS: &'static [Opt<Self>] = &[reduction(REDUCTIONS, |op| &mut op.reduction)];

    fn reduction(&self) -> Reduction {
        self.reduction
    }

    fn numbers(&self) -> (Numbers, Numbers, Others) {
        (Numbers::Scores, Numbers::Signs, Others::Taken)
    }

    fn reference(&self, x: f64, t: f64, _pos_weight: f64) -> Point {
        let z = -times(t, x);
        Point::new([softplus(z)], [-times(t, sigmoid(z))])
    }

    #[cfg(feature = "cpu")]
    #[inline(always)]
    fn point(&self, x: f32, t: f32, _pos_weight: f32) -> cpu::Point {
        use crate::cpu::prelude::*;
        // softplus of -t x
        let z = -zero_wins(t, x);
        let Logistic { log1p_exp, sigmoid, .. } = logistic(z);
        Point { loss: max(z, 0.0) + log1p_exp, grad: -zero_wins(t, sigmoid) }
    }
}
