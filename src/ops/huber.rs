//! Huber loss.

use super::elements::{Elementwise, Point};
use super::options::{Opt, REDUCTIONS, equal_by_options, number, positive_or_infinite, reduction};
use crate::Reduction;
#[cfg(feature = "cpu")]
use crate::cpu;
use crate::kernel::{File, shader};
use crate::reference::sign;

/// Huber loss: squared below `delta`, linear above, element by element.
///
/// With `d = x - t`:
///
/// ```text
/// loss = d^2 / 2             where |d| < delta,   delta (|d| - delta / 2)   elsewhere
/// grad = d                   where |d| < delta,   delta sign(d)             elsewhere
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
/// - No elements: mean NaN, sum 0.
/// - A NaN input or target makes loss and gradient NaN, and so do both at the same infinity.
///
/// Source: PyTorch's `torch.nn.HuberLoss`; Huber, "Robust Estimation of a Location Parameter",
/// 1964.
///
/// ```no_run
/// use wgloss::{Args, Array, Gpu, Huber};
///
/// let gpu = Gpu::blocking()?;
/// let (input, target) = ([0.5, -0.5, 3.0_f32], [1.0, 0.0, 1.0_f32]);
/// let args = Args::new(Array::from(&input)).target(Array::from(&target));
/// let op = Huber::default().delta(0.5);
/// let out = gpu.block_on(gpu.forward_backward(&op, &args))?;
/// println!("loss {}, gradient {:?}", out.loss()?.item()?, out.grad()?.to_f32());
/// # Ok::<_, wgloss::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Huber {
    pub(crate) reduction: Reduction,
    pub(crate) delta: f64,
}

impl Default for Huber {
    fn default() -> Self {
        Huber { reduction: Reduction::Mean, delta: 1.0 }
    }
}

impl Huber {
    /// How the elements' losses become the result. Default: mean.
    pub fn reduction(mut self, reduction: Reduction) -> Self {
        self.reduction = reduction;
        self
    }

    /// Where the squared part ends: above 0. Default: 1. With infinity the loss is half the squared error.
    pub fn delta(mut self, delta: f64) -> Self {
        self.delta = delta;
        self
    }
}

equal_by_options!(Huber);

impl Elementwise for Huber {
    const NAME: &'static str = "huber";
    const ABOUT: &'static str = "Squared error below delta, absolute error times delta above";
    const SHADER: File = shader!("ops/huber.wgsl");
    const OF_DIFFERENCE: bool = true;
    const PROPORTIONAL: bool = true;
    const OPTIONS: &'static [Opt<Self>] = &[
        reduction(REDUCTIONS, |op| &mut op.reduction),
        number(
            "delta",
            "Where the one becomes the other, above 0",
            positive_or_infinite(&[0.01, 0.75, 1.0, 5.0, f64::INFINITY]),
            |op| &mut op.delta,
        ),
    ];

    fn reduction(&self) -> Reduction {
        self.reduction
    }

    fn settings(&self) -> Vec<f64> {
        vec![self.delta]
    }

    fn reference(&self, x: f64, t: f64, _pos_weight: f64) -> Point {
        let (d, delta) = (x - t, self.delta);
        // nothing is beyond an infinite delta, an infinite difference included
        if d.abs() < delta || delta.is_infinite() {
            return Point::new([d * d / 2.0], [d]);
        }
        Point::new([delta * d.abs(), -delta * delta / 2.0], [delta * sign(d)])
    }

    #[cfg(feature = "cpu")]
    #[inline(always)]
    fn point(&self, x: f32, t: f32, _pos_weight: f32) -> cpu::Point {
        use crate::cpu::prelude::*;
        // half of the difference, since all of it may be beyond f32
        let (d, half, delta) = (x - t, 0.5 * x - 0.5 * t, self.delta as f32);
        let is_squared = (d.abs() < delta) | delta.is_infinite();
        let linear = delta * (half.abs() - 0.25 * delta);
        Point {
            loss: select(is_squared, 0.5 * d * d, 2.0 * linear),
            grad: select(is_squared, d, delta * sign(d)),
        }
    }
}
