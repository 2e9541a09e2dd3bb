//! Mean squared error.

use super::elements::{Elementwise, Point};
use super::options::{Opt, REDUCTIONS, reduction};
use crate::Reduction;
#[cfg(feature = "cpu")]
use crate::cpu;
use crate::kernel::{File, shader};

/// Squared error, element by element.
///
/// ```text
/// loss = (x - t)^2
/// grad = 2 (x - t)
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
/// - The loss is infinite from |x - t| = 1.8e19 on, where its square is beyond f32.
///
/// Source: PyTorch's `torch.nn.MSELoss`.
///
/// ```no_run
/// use wgloss::{Args, Array, Gpu, Mse};
///
/// let gpu = Gpu::blocking()?;
/// let (input, target) = ([0.5, -0.5, 3.0_f32], [1.0, 0.0, 1.0_f32]);
/// let args = Args::new(Array::from(&input)).target(Array::from(&target));
/// let op = Mse::default();
/// let out = gpu.block_on(gpu.forward_backward(&op, &args))?;
/// println!("loss {}, gradient {:?}", out.loss()?.item()?, out.grad()?.to_f32());
/// # Ok::<_, wgloss::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Mse {
    pub(crate) reduction: Reduction,
}

impl Mse {
    /// How the elements' losses become the result. Default: mean.
    pub fn reduction(mut self, reduction: Reduction) -> Self {
        self.reduction = reduction;
        self
    }
}

impl Elementwise for Mse {
    const NAME: &'static str = "mse";
    const ABOUT: &'static str = "Squared error";
    const SHADER: File = shader!("ops/mse.wgsl");
    const OF_DIFFERENCE: bool = true;
    const PROPORTIONAL: bool = true;
    const OPTIONS: &'static [Opt<Self>] = &[reduction(REDUCTIONS, |op| &mut op.reduction)];

    fn reduction(&self) -> Reduction {
        self.reduction
    }

    fn reference(&self, x: f64, t: f64, _pos_weight: f64) -> Point {
        let d = x - t;
        Point::new([d * d], [2.0 * d])
    }

    #[cfg(feature = "cpu")]
    #[inline(always)]
    fn point(&self, x: f32, t: f32, _pos_weight: f32) -> cpu::Point {
        use crate::cpu::prelude::*;
        let d = x - t;
        Point { loss: d * d, grad: 2.0 * d }
    }
}
