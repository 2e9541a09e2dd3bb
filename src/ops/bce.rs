//! Binary cross entropy.

use super::elements::{Elementwise, Point};
use super::options::{Numbers, Opt, Others, REDUCTIONS, reduction};
#[cfg(feature = "cpu")]
use crate::cpu;
use crate::kernel::{File, shader};
use crate::reference::times;
use crate::{Reduction, Role};

/// Binary cross entropy of probabilities with targets, element by element.
///
/// With probability `x`, target `t` and weight `w` (1 without it), in nats:
///
/// ```text
/// loss = -w (t max(ln x, -100) + (1 - t) max(ln(1 - x), -100))
/// grad = w (x - t) / max(x (1 - x), 1e-12)
/// ```
///
/// From logits, [`BceWithLogits`](super::BceWithLogits) is exact where this one has lost its digits.
///
/// # Arguments
/// | name | shape | storage |
/// | --- | --- | --- |
/// | `input` | any, 0-dimensional too | f32, f16 or bf16 |
/// | `target` | the input's | the input's |
/// | `weight` | broadcastable to the input: any finite numbers | f32 |
/// | `upstream` | one value (mean, sum) or the input's shape (none) | f32 for one value, else the input's |
///
/// # Reductions
/// `mean` (the default) divides by the number of elements, weights or not.
///
/// # Edges
/// - An input or target outside `[0, 1]`, or NaN: from the host an error before any work; on the
///   device loss and gradient of that element are NaN, and the status names it.
/// - A factor of exactly 0 (a weight, `t`, `1 - t`) annihilates what it multiplies.
/// - A weight that is not finite: from the host an error before any work. In a device tensor it is not
///   looked for, and no status tells of it.
/// - No elements: mean NaN, sum 0.
///
/// Source: PyTorch's `torch.nn.BCELoss`.
///
/// ```no_run
/// use wgloss::{Args, Array, Bce, Gpu};
///
/// let gpu = Gpu::blocking()?;
/// let (input, target) = ([0.9, 0.2, 0.7_f32], [1.0, 0.0, 1.0_f32]);
/// let args = Args::new(Array::from(&input)).target(Array::from(&target));
/// let op = Bce::default();
/// let out = gpu.block_on(gpu.forward_backward(&op, &args))?;
/// println!("loss {}, gradient {:?}", out.loss()?.item()?, out.grad()?.to_f32());
/// # Ok::<_, wgloss::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Bce {
    pub(crate) reduction: Reduction,
}

impl Bce {
    /// How the elements' losses become the result. Default: mean.
    pub fn reduction(mut self, reduction: Reduction) -> Self {
        self.reduction = reduction;
        self
    }
}

impl Elementwise for Bce {
    const NAME: &'static str = "bce";
    const ABOUT: &'static str = "Binary cross entropy of probabilities with targets in [0, 1]";
    const SHADER: File = shader!("ops/bce.wgsl");
    const WEIGHTS: &'static [Role] = &[Role::Weight];
    const UNIT_INTERVAL: bool = true;
    const OPTIONS: &'static [Opt<Self>] = &[reduction(REDUCTIONS, |op| &mut op.reduction)];

    fn reduction(&self) -> Reduction {
        self.reduction
    }

    fn numbers(&self) -> (Numbers, Numbers, Others) {
        (Numbers::Probabilities, Numbers::Probabilities, Others::Refused)
    }

    fn reference(&self, x: f64, t: f64, _pos_weight: f64) -> Point {
        let complement = (-x).ln_1p();
        let denominator = (x * (1.0 - x)).max(1e-12);
        Point::new(
            [-times(t, x.ln().max(-100.0)), -times(1.0 - t, complement.max(-100.0))],
            [x / denominator, -t / denominator],
        )
    }

    #[cfg(feature = "cpu")]
    #[inline(always)]
    fn point(&self, x: f32, t: f32, _pos_weight: f32) -> cpu::Point {
        use crate::cpu::prelude::*;
        let complement = 1.0 - x;
        // below 1/2 the complement is rounded, so its logarithm is taken without it
        let of_small = -log1p_unit(min(x, 0.5) / max(complement, 0.5));
        let ln_complement = select(x <= 0.5, of_small, ln(complement));
        let positive = zero_wins(t, max(ln(x), -100.0));
        let negative = zero_wins(1.0 - t, max(ln_complement, -100.0));
        Point { loss: -positive - negative, grad: (x - t) / max(x * complement, 1e-12) }
    }
}
