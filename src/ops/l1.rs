//! Absolute error.

use super::elements::{Elementwise, Point};
use super::options::{Opt, REDUCTIONS, reduction};
use crate::Reduction;
#[cfg(feature = "cpu")]
use crate::cpu;
use crate::kernel::{File, shader};
use crate::reference::sign;

/// Absolute error, element by element.
///
/// ```text
/// loss = |x - t|
/// grad = sign(x - t), 0 at x = t
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
/// - Where the input or the target is NaN, or both are the same infinity, the loss is NaN and the
///   gradient 0, as in PyTorch.
/// - No elements: mean NaN, sum 0.
///
/// Source: PyTorch's `torch.nn.L1Loss`.
///
/// ```no_run
/// use wgloss::{Args, Array, Gpu, L1};
///
/// let gpu = Gpu::blocking()?;
/// let (input, target) = ([0.5, -0.5, 3.0_f32], [1.0, 0.0, 1.0_f32]);
/// let args = Args::new(Array::from(&input)).target(Array::from(&target));
/// let op = L1::default();
/// let out = gpu.block_on(gpu.forward_backward(&op, &args))?;
/// println!("loss {}, gradient {:?}", out.loss()?.item()?, out.grad()?.to_f32());
/// # Ok::<_, wgloss::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct L1 {
    pub(crate) reduction: Reduction,
}

impl L1 {
    /// How the elements' losses become the result. Default: mean.
    pub fn reduction(mut self, reduction: Reduction) -> Self {
        self.reduction = reduction;
        self
    }
}

impl Elementwise for L1 {
    const NAME: &'static str = "l1";
    const ABOUT: &'static str = "Absolute error";
    const SHADER: File = shader!("ops/l1.wgsl");
    const OF_DIFFERENCE: bool = true;
    const OPTIONS: &'static [Opt<Self>] = &[reduction(REDUCTIONS, |op| &mut op.reduction)];

    fn reduction(&self) -> Reduction {
        self.reduction
    }

    fn zero_gradient_at_nan(&self) -> bool {
        true
    }

    fn reference(&self, x: f64, t: f64, _pos_weight: f64) -> Point {
        let d = x - t;
        Point::new([d.abs()], [sign(d)])
    }

    #[cfg(feature = "cpu")]
    #[inline(always)]
    fn point(&self, x: f32, t: f32, _pos_weight: f32) -> cpu::Point {
        use crate::cpu::prelude::*;
        let d = x - t;
        Point { loss: d.abs(), grad: sign(d) }
    }
}
