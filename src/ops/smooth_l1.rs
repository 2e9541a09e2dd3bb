//! Smooth L1.

use super::elements::{Elementwise, Point};
use super::options::{Opt, REDUCTIONS, equal_by_options, finite, number, reduction};
use crate::Reduction;
#[cfg(feature = "cpu")]
use crate::cpu;
use crate::kernel::{File, shader};
use crate::reference::sign;

/// Smooth L1: squared below `beta`, absolute above, element by element.
///
/// With `d = x - t`:
///
/// ```text
/// loss = d^2 / (2 beta)      where |d| < beta,   |d| - beta / 2   elsewhere
/// grad = d / beta            where |d| < beta,   sign(d)          elsewhere
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
/// - `beta` 0 is L1, down to the gradient of 0 at NaN.
/// - No elements: mean NaN, sum 0.
/// - Otherwise a NaN input or target makes loss and gradient NaN, and so do both at the same
///   infinity.
///
/// Source: PyTorch's `torch.nn.SmoothL1Loss`; Girshick, "Fast R-CNN", 2015.
///
/// ```no_run
/// use wgloss::{Args, Array, Gpu, SmoothL1};
///
/// let gpu = Gpu::blocking()?;
/// let (input, target) = ([0.5, -0.5, 3.0_f32], [1.0, 0.0, 1.0_f32]);
/// let args = Args::new(Array::from(&input)).target(Array::from(&target));
/// let op = SmoothL1::default().beta(0.5);
/// let out = gpu.block_on(gpu.forward_backward(&op, &args))?;
/// println!("loss {}, gradient {:?}", out.loss()?.item()?, out.grad()?.to_f32());
/// # Ok::<_, wgloss::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct SmoothL1 {
    pub(crate) reduction: Reduction,
    pub(crate) beta: f64,
}

impl Default for SmoothL1 {
    fn default() -> Self {
        SmoothL1 { reduction: Reduction::Mean, beta: 1.0 }
    }
}

impl SmoothL1 {
    /// How the elements' losses become the result. Default: mean.
    pub fn reduction(mut self, reduction: Reduction) -> Self {
        self.reduction = reduction;
        self
    }

    /// Where the squared part ends: 0 or more, and finite, since with infinity every loss would be 0.
    /// Default: 1.
    pub fn beta(mut self, beta: f64) -> Self {
        self.beta = beta;
        self
    }
}

equal_by_options!(SmoothL1);

impl Elementwise for SmoothL1 {
    const NAME: &'static str = "smooth_l1";
    const ABOUT: &'static str = "Squared error below beta, absolute error above";
    const SHADER: File = shader!("ops/smooth_l1.wgsl");
    const OF_DIFFERENCE: bool = true;
    const OPTIONS: &'static [Opt<Self>] = &[
        reduction(REDUCTIONS, |op| &mut op.reduction),
        number(
            "beta",
            "Where the one becomes the other, 0 or more",
            finite("a finite number, 0 or more", |v| v >= 0.0, &[0.0, 0.01, 0.5, 1.0, 5.0]),
            |op| &mut op.beta,
        ),
    ];

    fn reduction(&self) -> Reduction {
        self.reduction
    }

    fn settings(&self) -> Vec<f64> {
        vec![self.beta]
    }

    fn zero_gradient_at_nan(&self) -> bool {
        self.beta == 0.0
    }

    fn reference(&self, x: f64, t: f64, _pos_weight: f64) -> Point {
        let d = x - t;
        if d.abs() < self.beta {
            return Point::new([d * d / (2.0 * self.beta)], [d / self.beta]);
        }
        Point::new([d.abs(), -self.beta / 2.0], [sign(d)])
    }

    #[cfg(feature = "cpu")]
    #[inline(always)]
    fn point(&self, x: f32, t: f32, _pos_weight: f32) -> cpu::Point {
        use crate::cpu::prelude::*;
        let (d, beta) = (x - t, self.beta as f32);
        let size = d.abs();
        // half of the loss, since the difference may be beyond f32 where the loss is not
        let linear = (0.5 * x - 0.5 * t).abs() - 0.25 * beta;
        // at 0 nothing lies below beta
        let part = d / max(beta, f32::MIN_POSITIVE);
        Point {
            loss: select(size < beta, 0.5 * size * part.abs(), 2.0 * linear),
            grad: select(size < beta, part, sign(d)),
        }
    }
}
