//! Sigmoid.

use super::elements::{Elementwise, Point};
use super::options::{Numbers, Others};
use crate::Reduction;
#[cfg(feature = "cpu")]
use crate::cpu;
use crate::kernel::{File, shader};
use crate::reference::sigmoid;

/// The logistic sigmoid, element by element: a map, whose output stands where losses have their
/// loss.
///
/// ```text
/// output = 1 / (1 + e^-x)
/// grad   = g sigmoid(x) sigmoid(-x)      for upstream gradient g
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
/// Source: PyTorch's `torch.sigmoid`.
///
/// ```no_run
/// use wgloss::{Args, Array, Gpu, Sigmoid};
///
/// let gpu = Gpu::blocking()?;
/// let out = gpu.block_on(gpu.forward(&Sigmoid, &Args::new(Array::from(&[-30.0, 0.0, 2.0_f32]))))?;
/// println!("{:?}", out.output()?.to_f32());
/// # Ok::<_, wgloss::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Sigmoid;

impl Elementwise for Sigmoid {
    const NAME: &'static str = "sigmoid";
    const ABOUT: &'static str = "Logistic sigmoid";
    const SHADER: File = shader!("ops/sigmoid.wgsl");
    const TARGET: bool = false;

    fn reduction(&self) -> Reduction {
        Reduction::None
    }

    fn numbers(&self) -> (Numbers, Numbers, Others) {
        (Numbers::Logits, Numbers::Any, Others::Taken)
    }

    fn reference(&self, x: f64, _t: f64, _pos_weight: f64) -> Point {
        Point::new([sigmoid(x)], [sigmoid(x) * sigmoid(-x)])
    }

    #[cfg(feature = "cpu")]
    #[inline(always)]
    fn point(&self, x: f32, _t: f32, _pos_weight: f32) -> cpu::Point {
        use crate::cpu::prelude::*;
        let Logistic { sigmoid, complement, .. } = logistic(x);
        Point { loss: sigmoid, grad: sigmoid * complement }
    }
}
