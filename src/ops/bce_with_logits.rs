//! Binary cross entropy of logits.

use super::elements::{Elementwise, Point};
use super::options::{Numbers, Opt, Others, REDUCTIONS, reduction};
#[cfg(feature = "cpu")]
use crate::cpu;
use crate::kernel::{File, shader};
use crate::reference::{sigmoid, softplus, times};
use crate::{Reduction, Role};

/// Binary cross entropy of logits with targets, element by element.
///
/// With logit `x`, target `t`, weight `w` and positive weight `p` (1 without them) and
/// `q = ln(1 + e^-|x|)`, the loss of an element, in nats, and its gradient are
///
/// ```text
/// loss = w * (p * t * (q + max(-x, 0)) + (1 - t) * (q + max(x, 0)))
/// grad = w * ((1 - t) * sigmoid(x) - p * t * sigmoid(-x))
/// ```
///
/// # Arguments
/// | name | shape | storage |
/// | --- | --- | --- |
/// | `input` | any, 0-dimensional too: logits | f32, f16 or bf16 |
/// | `target` | the input's: probabilities, though any number is accepted | the input's |
/// | `weight` | broadcastable to the input: any finite numbers | f32 |
/// | `pos_weight` | broadcastable to the input: any finite numbers | f32 |
/// | `upstream` | one value (mean, sum) or the input's shape (none) | f32 for one value, else the input's |
///
/// # Reductions
/// `mean` (the default) divides by the number of elements, weights or not.
///
/// # Edges
/// - Confident elements keep their digits: the loss at logit 20 with target 1 is 2.06e-9.
/// - At x = +inf or -inf with the matching hard target the loss is 0, with the other one +inf;
///   gradients stay finite.
/// - A factor of exactly 0 (a weight, `t`, `1 - t`) annihilates what it multiplies, an infinity
///   too. A NaN input or target makes loss and gradient NaN.
/// - A weight that is not finite: from the host an error before any work. In a device tensor it is not
///   looked for, and no status tells of it.
/// - No elements: mean NaN, sum 0.
///
/// Source: PyTorch's `torch.nn.BCEWithLogitsLoss`.
///
/// ```no_run
/// use wgloss::{Args, Array, BceWithLogits, Gpu};
///
/// let gpu = Gpu::blocking()?;
/// let (logits, target) = ([20.0, -0.5, 3.0_f32], [1.0, 0.0, 1.0_f32]);
/// let args = Args::new(Array::from(&logits)).target(Array::from(&target));
/// let out = gpu.block_on(gpu.forward_backward(&BceWithLogits::default(), &args))?;
/// println!("loss {}, gradient {:?}", out.loss()?.item()?, out.grad()?.to_f32());
/// # Ok::<_, wgloss::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct BceWithLogits {
    pub(crate) reduction: Reduction,
}

impl BceWithLogits {
    /// How the elements' losses become the result. Default: mean.
    pub fn reduction(mut self, reduction: Reduction) -> Self {
        self.reduction = reduction;
        self
    }
}

impl Elementwise for BceWithLogits {
    const NAME: &'static str = "bce_with_logits";
    const ABOUT: &'static str = "Binary cross entropy of logits with targets of the same shape";
    const SHADER: File = shader!("ops/bce_with_logits.wgsl");
    const WEIGHTS: &'static [Role] = &[Role::Weight, Role::PosWeight];
    const OPTIONS: &'static [Opt<Self>] = &[reduction(REDUCTIONS, |op| &mut op.reduction)];

    fn reduction(&self) -> Reduction {
        self.reduction
    }

    fn numbers(&self) -> (Numbers, Numbers, Others) {
        (Numbers::Logits, Numbers::Probabilities, Others::Taken)
    }

    fn reference(&self, x: f64, t: f64, pos_weight: f64) -> Point {
        // -(p t ln sigmoid(x) + (1 - t) ln(1 - sigmoid(x))), with -ln sigmoid(x) = softplus(-x)
        let (positive, negative) = (pos_weight * t, 1.0 - t);
        Point::new(
            [times(positive, softplus(-x)), times(negative, softplus(x))],
            [times(negative, sigmoid(x)), -times(positive, sigmoid(-x))],
        )
    }

    #[cfg(feature = "cpu")]
    #[inline(always)]
    fn point(&self, x: f32, t: f32, pos_weight: f32) -> cpu::Point {
        use crate::cpu::prelude::*;
        let Logistic { log1p_exp, sigmoid, complement } = logistic(x);
        let (positive, negative) = (pos_weight * t, 1.0 - t);
        // 2^64 times as large where it might be subnormal, and have lost digits that its cost brings back
        let is_small = positive.abs() < 1e-30;
        let enlarged = pos_weight * select(is_small, t * 18_446_744_073_709_551_616.0, t);
        let of_positive = zero_wins(enlarged, log1p_exp + max(-x, 0.0))
            * select(is_small, 1.0 / 18_446_744_073_709_551_616.0, 1.0);
        Point {
            loss: of_positive + zero_wins(negative, log1p_exp + max(x, 0.0)),
            grad: negative * sigmoid - positive * complement,
        }
    }
}
