//! Sigmoid focal loss.

use super::elements::{Elementwise, Point};
use super::options::{
    Numbers, Opt, Others, REDUCTIONS, equal_by_options, finite, number, reduction,
};
use crate::Reduction;
#[cfg(feature = "cpu")]
use crate::cpu;
use crate::kernel::{File, shader};
use crate::reference::{sigmoid, softplus, times};

/// Sigmoid focal loss of logits with targets, element by element.
///
/// With `p = sigmoid(x)`, `q = p (1 - t) + (1 - p) t` (the probability missed) and `bce` the loss of
/// [`BceWithLogits`](super::BceWithLogits), in nats:
///
/// ```text
/// loss = (alpha t + (1 - alpha) (1 - t)) q^gamma bce
/// grad = (alpha t + (1 - alpha) (1 - t)) (q^gamma bce' + gamma q^(gamma - 1) q' bce)
/// ```
///
/// A negative `alpha` leaves the first factor out.
///
/// # Arguments
/// | name | shape | storage |
/// | --- | --- | --- |
/// | `input` | any, 0-dimensional too | f32, f16 or bf16 |
/// | `target` | the input's | the input's |
/// | `upstream` | one value (mean, sum) or the input's shape (none) | f32 for one value, else the input's |
///
/// # Reductions
/// `mean` (the default, while torchvision's is none) divides by the number of elements.
///
/// # Edges
/// - At x = +inf or -inf with the matching hard target the loss is 0, with any other one +inf;
///   gradients stay finite.
/// - Targets outside `[0, 1]` are accepted, without a promise of accuracy where `q` cancels. Where it
///   is negative, loss and gradient are NaN unless `gamma` is whole, as powers are.
/// - A subnormal target may count as 0, since GPUs may flush it.
/// - No elements: mean NaN, sum 0.
/// - A NaN input or target makes loss and gradient NaN.
///
/// Source: `torchvision.ops.sigmoid_focal_loss`; Lin et al., "Focal Loss for Dense Object
/// Detection", 2017.
///
/// ```no_run
/// use wgloss::{Args, Array, Gpu, SigmoidFocal};
///
/// let gpu = Gpu::blocking()?;
/// let (input, target) = ([2.0, -0.5, 3.0_f32], [1.0, 0.0, 1.0_f32]);
/// let args = Args::new(Array::from(&input)).target(Array::from(&target));
/// let op = SigmoidFocal::default().alpha(0.5).gamma(1.5);
/// let out = gpu.block_on(gpu.forward_backward(&op, &args))?;
/// println!("loss {}, gradient {:?}", out.loss()?.item()?, out.grad()?.to_f32());
/// # Ok::<_, wgloss::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct SigmoidFocal {
    pub(crate) reduction: Reduction,
    pub(crate) alpha: f64,
    pub(crate) gamma: f64,
}

impl Default for SigmoidFocal {
    fn default() -> Self {
        SigmoidFocal { reduction: Reduction::Mean, alpha: 0.25, gamma: 2.0 }
    }
}

impl SigmoidFocal {
    /// How the elements' losses become the result. Default: mean.
    pub fn reduction(mut self, reduction: Reduction) -> Self {
        self.reduction = reduction;
        self
    }

    /// The weight of positive targets, in `[0, 1]`; negative: no weights. Default: 0.25.
    pub fn alpha(mut self, alpha: f64) -> Self {
        self.alpha = alpha;
        self
    }

    /// How strongly easy elements are discounted: 0 or more. Default: 2.
    ///
    /// Above 10, errors are up to `gamma / 10` times as large as is promised of all ops
    /// ([`Tolerance`](crate::reference::Tolerance)), since the rounding of `q` is that of `q^gamma`,
    /// `gamma` times.
    pub fn gamma(mut self, gamma: f64) -> Self {
        self.gamma = gamma;
        self
    }
}

equal_by_options!(SigmoidFocal);

impl Elementwise for SigmoidFocal {
    const NAME: &'static str = "sigmoid_focal";
    const ABOUT: &'static str = "Sigmoid focal loss of logits with targets in [0, 1]";
    const SHADER: File = shader!("ops/sigmoid_focal.wgsl");
    const OPTIONS: &'static [Opt<Self>] = &[
        reduction(REDUCTIONS, |op| &mut op.reduction),
        number(
            "alpha",
            "The weight of positive targets, in [0, 1]; negative: no weights",
            finite(
                "a number in [0, 1], or a negative one for none",
                |v| v <= 1.0,
                &[-1.0, 0.0, 1e-9, 0.25, 0.5, 0.999, 1.0 - 1e-9, 1.0],
            ),
            |op| &mut op.alpha,
        ),
        number(
            "gamma",
            "How strongly easy elements are discounted, 0 or more",
            finite("a finite number, 0 or more", |v| v >= 0.0, &[0.0, 0.5, 1.0, 2.0, 5.0]),
            |op| &mut op.gamma,
        ),
    ];

    fn reduction(&self) -> Reduction {
        self.reduction
    }

    fn error_factor(&self) -> f64 {
        (self.gamma / 10.0).max(1.0)
    }

    fn settings(&self) -> Vec<f64> {
        // -1: what is just below 0 may be 0 in f32
        let alpha = if self.alpha < 0.0 { -1.0 } else { self.alpha };
        vec![alpha, 1.0 - alpha, self.gamma]
    }

    fn numbers(&self) -> (Numbers, Numbers, Others) {
        (Numbers::Logits, Numbers::Probabilities, Others::Unpromised)
    }

    fn reference(&self, x: f64, t: f64, _pos_weight: f64) -> Point {
        let (p, p_of_negative) = (sigmoid(x), sigmoid(-x));
        let q = times(1.0 - t, p) + times(t, p_of_negative);
        let q_slope = p * p_of_negative * (1.0 - 2.0 * t);
        let alpha = match self.alpha {
            alpha if alpha < 0.0 => 1.0,
            alpha => alpha * t + (1.0 - alpha) * (1.0 - t),
        };
        let bce = [times(t, softplus(-x)), times(1.0 - t, softplus(x))];
        // a factor is 0 at q = 0 alone, and not where it underflows
        let focus = q.powf(self.gamma);
        let focus = if q > 0.0 { focus.max(f64::MIN_POSITIVE) } else { focus };
        let focus_slope = match self.gamma {
            0.0 => 0.0,
            gamma => gamma * times(q_slope, times(bce[0] + bce[1], q.powf(gamma - 1.0))),
        };
        Point::new(
            bce.map(|term| times(alpha, times(focus, term))),
            [(1.0 - t) * p * focus, -t * p_of_negative * focus, focus_slope]
                .map(|term| times(alpha, term)),
        )
    }

    #[cfg(feature = "cpu")]
    #[inline(always)]
    fn point(&self, x: f32, t: f32, _pos_weight: f32) -> cpu::Point {
        use crate::cpu::prelude::*;
        let Logistic { log1p_exp, sigmoid: p, complement } = logistic(x);
        let negative = 1.0 - t;
        // 1 - p_t, without the subtraction that would cancel
        let q = p * negative + complement * t;
        let q_slope = p * complement * (1.0 - 2.0 * t);
        let bce =
            zero_wins(t, log1p_exp + max(-x, 0.0)) + zero_wins(negative, log1p_exp + max(x, 0.0));
        let bce_slope = negative * p - t * complement;
        let (alpha, rest) = (self.alpha as f32, (1.0 - self.alpha) as f32);
        let gamma = self.gamma as f32;
        let alpha = select(self.alpha < 0.0, 1.0, alpha * t + rest * negative);
        // the square root of |q|^gamma, which may underflow where the loss does not; 0 at q = 0 alone
        let root = max(power(q.abs(), 0.5 * gamma), f32::MIN_POSITIVE);
        let root = select(gamma == 0.0, 1.0, select(q == 0.0, 0.0, root));
        // of a negative q, which only targets outside [0, 1] have: q^(gamma - 1) has the other sign
        let is_whole = |v: f32| v == v.floor();
        let is_undefined = (q < 0.0) & !is_whole(gamma);
        let sign = select((q < 0.0) & !is_whole(0.5 * gamma), -1.0, 1.0);
        let slope_sign = select(q < 0.0, -sign, 1.0);
        let slope = zero_wins(bce, power(q.abs(), gamma - 1.0));
        let slope = gamma * slope_sign * zero_wins(q_slope, slope);
        let slope = select(gamma == 0.0, 0.0, slope);
        let loss = zero_wins(alpha, zero_wins(root, sign * (root * bce)));
        let grad = zero_wins(alpha, sign * (root * root * bce_slope) + slope);
        Point {
            loss: select(is_undefined, f32::NAN, loss),
            grad: select(is_undefined, f32::NAN, grad),
        }
    }
}
