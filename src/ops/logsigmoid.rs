//! Log of sigmoid.

use super::elements::{Elementwise, Point};
use super::options::{Numbers, Others};
use crate::Reduction;
#[cfg(feature = "cpu")]
use crate::cpu;
use crate::kernel::{File, shader};
use crate::reference::{sigmoid, softplus};

/// The logarithm of the logistic sigmoid, element by element: a map, whose output stands where
/// losses have their loss.
///
/// ```text
/// output = -(ln(1 + e^-|x|) + max(-x, 0))
/// grad   = g sigmoid(-x)                 for upstream gradient g
/// ```
///
/// # Arguments
/// | name | shape | storage |
/// | --- | --- | --- |
/// | `input` | any, 0-dimensional too | f32, f16 or bf16 |
/// | `upstream` | the input's; passes with a gradient ask for it | the input's |
///
/// # Edges
/// - Right at any input, infinities too; small results keep their digits. NaN gives NaN.
///
/// Source: PyTorch's `torch.nn.LogSigmoid`.
///
/// ```no_run
/// use wgloss::{Args, Array, Gpu, LogSigmoid};
///
/// let gpu = Gpu::blocking()?;
/// let out = gpu.block_on(gpu.forward(&LogSigmoid, &Args::new(Array::from(&[-30.0, 0.0, 2.0_f32]))))?;
/// println!("{:?}", out.output()?.to_f32());
/// # Ok::<_, wgloss::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct LogSigmoid;

impl Elementwise for LogSigmoid {
    const NAME: &'static str = "logsigmoid";
    const ABOUT: &'static str = "Logarithm of the sigmoid";
    const SHADER: File = shader!("ops/logsigmoid.wgsl");
    const TARGET: bool = false;

    fn reduction(&self) -> Reduction {
        Reduction::None
    }

    fn numbers(&self) -> (Numbers, Numbers, Others) {
        (Numbers::Logits, Numbers::Any, Others::Taken)
    }

    fn reference(&self, x: f64, _t: f64, _pos_weight: f64) -> Point {
        Point::new([-softplus(-x)], [sigmoid(-x)])
    }

    #[cfg(feature = "cpu")]
    #[inline(always)]
    fn point(&self, x: f32, _t: f32, _pos_weight: f32) -> cpu::Point {
        use crate::cpu::prelude::*;
        let Logistic { log1p_exp, complement, .. } = logistic(x);
        Point { loss: -(log1p_exp + max(-x, 0.0)), grad: complement }
    }
}
