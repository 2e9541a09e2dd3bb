//! Softmax.

use super::options::{self, Info, Key, Kind, Opt, Value, integer};
use super::row_maps::RowMap;
use super::{Op, sealed};
use crate::kernel::shader;
use crate::program::Program;
use crate::reference::{self, Values};
use crate::tuning::DeviceProfile;
use crate::{Args, Array, Layout, Output, Pass, Result};

/// Softmax along a dimension: a map, whose output stands where losses have their loss.
///
/// For a row `x` along the dimension, with `k` a class at its maximum and upstream gradient `g`:
///
/// ```text
/// p[c]    = e^x[c] / sum over j of e^x[j]
/// grad[c] = p[c] ((g[c] - g[k]) + sum over j of p[j] (g[k] - g[j]))
/// ```
///
/// A one-hot upstream gradient gives a row of the Jacobian.
///
/// # Arguments
/// | name | shape | storage |
/// | --- | --- | --- |
/// | `input` | any, 0-dimensional too | f32, f16 or bf16 |
/// | `upstream` | the input's; passes with a gradient ask for it | the input's |
///
/// # Edges
/// - A class at -inf has `p = 0`, and a gradient of 0 whatever its upstream gradient, but for NaN. A row
///   that is all -inf, or holds +inf or NaN, is NaN, output and gradient; a NaN of the upstream gradient
///   makes its row's gradient NaN.
/// - Differences of a row's upstream gradients that are beyond f32 are infinite.
///
/// Source: PyTorch's `torch.nn.Softmax`.
///
/// ```no_run
/// use wgloss::{Args, Array, Gpu, Softmax};
///
/// let gpu = Gpu::blocking()?;
/// let args = Args::new(Array::new(&[2.0, -1.0, 0.5, 0.1, 3.0, -2.0_f32], &[2, 3])?);
/// let out = gpu.block_on(gpu.forward(&Softmax::default(), &args))?;
/// println!("{:?}", out.output()?.to_f32());
/// # Ok::<_, wgloss::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Softmax {
    pub(crate) dim: i64,
}

impl Default for Softmax {
    fn default() -> Self {
        Softmax { dim: -1 }
    }
}

impl Softmax {
    const OPTIONS: &'static [Opt<Self>] = &[integer(
        "dim",
        "The dimension; negative ones count from the end",
        &[-1, 0, 1, -2],
        |op| &mut op.dim,
    )];

    /// The dimension along which it is taken; negative ones count from the end. Default: -1.
    pub fn dim(mut self, dim: i64) -> Self {
        self.dim = dim;
        self
    }

    fn map(&self) -> RowMap {
        RowMap {
            name: self.name(),
            dim: self.dim,
            shader: shader!("ops/softmax.wgsl"),
            upstream_is_target: false,
        }
    }
}

impl sealed::Sealed for Softmax {}

impl Op for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn about(&self) -> &'static str {
        "Softmax along a dimension"
    }

    fn kind(&self) -> Kind {
        Kind::ROW_MAP
    }

    fn options(&self) -> Vec<Info> {
        options::infos(self, Self::OPTIONS)
    }

    fn set(&mut self, name: &str, value: Value) -> Result<()> {
        options::set(self, Self::OPTIONS, name, value)
    }

    fn boxed(&self) -> Box<dyn Op> {
        Box::new(self.clone())
    }

    fn key(&self) -> Key {
        options::key(self, Self::OPTIONS)
    }

    fn outputs(&self, pass: Pass, args: &Args<Layout>) -> Result<Output<Layout>> {
        self.map().outputs(pass, args)
    }

    fn check_values(&self, _args: &Args<Array<'_>>) -> Result<()> {
        Ok(())
    }

    fn program(
        &self,
        pass: Pass,
        args: &Args<Layout>,
        outputs: &Output<Layout>,
        profile: &DeviceProfile,
    ) -> Result<Program> {
        self.map().program(pass, args, outputs, profile)
    }

    fn reference(&self, pass: Pass, args: &Args<Array<'_>>) -> Output<Values> {
        reference::softmax(self.dim, pass, args)
    }

    #[cfg(feature = "cpu")]
    fn cpu(&self, args: &Args<Array<'_>>, output: &mut Output<Array<'static>>) -> Result<()> {
        crate::cpu::softmax(self.dim, args, output)
    }
}
