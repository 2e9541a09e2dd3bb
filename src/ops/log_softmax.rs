//! Log-softmax.

use super::options::{self, Info, Key, Kind, Opt, Value, integer};
use super::row_maps::RowMap;
use super::{Op, sealed};
use crate::kernel::shader;
use crate::program::Program;
use crate::reference::{self, Values};
use crate::tuning::DeviceProfile;
use crate::{Args, Array, Layout, Output, Pass, Result};

/// Log-softmax along a dimension: a map, whose output stands where losses have their loss.
///
/// For a row `x` along the dimension, with maximum `m`, `p = softmax(x)` and upstream gradient `g`:
///
/// ```text
/// output[c] = (x[c] - m) - ln(sum over j of e^(x[j] - m))
/// grad[c]   = g[c] - p[c] sum over j of g[j]
/// ```
///
/// # Arguments
/// | name | shape | storage |
/// | --- | --- | --- |
/// | `input` | any, 0-dimensional too | f32, f16 or bf16 |
/// | `upstream` | the input's; passes with a gradient ask for it | the input's |
///
/// # Edges
/// - Confident rows keep their digits, in the output at the maximum and in the gradient.
/// - A class at -inf is -inf. A row that is all -inf, or holds +inf or NaN, is NaN, output and
///   gradient; a NaN of the upstream gradient makes its row's gradient NaN.
/// - Where the sum of a row's upstream gradients is beyond f32, on the way too, the row's gradient is
///   infinite or NaN.
///
/// Source: PyTorch's `torch.nn.LogSoftmax`.
///
/// ```no_run
/// use wgloss::{Args, Array, Gpu, LogSoftmax};
///
/// let gpu = Gpu::blocking()?;
/// let args = Args::new(Array::new(&[2.0, -1.0, 0.5, 0.1, 3.0, -2.0_f32], &[2, 3])?);
/// let out = gpu.block_on(gpu.forward(&LogSoftmax::default(), &args))?;
/// println!("{:?}", out.output()?.to_f32());
/// # Ok::<_, wgloss::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LogSoftmax {
    pub(crate) dim: i64,
}

impl Default for LogSoftmax {
    fn default() -> Self {
        LogSoftmax { dim: -1 }
    }
}

impl LogSoftmax {
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
            shader: shader!("ops/log_softmax.wgsl"),
            upstream_is_target: true,
        }
    }
}

impl sealed::Sealed for LogSoftmax {}

impl Op for LogSoftmax {
    fn name(&self) -> &'static str {
        "log_softmax"
    }

    fn about(&self) -> &'static str {
        "Logarithm of the softmax along a dimension"
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
        reference::log_softmax(self.dim, pass, args)
    }

    #[cfg(feature = "cpu")]
    fn cpu(&self, args: &Args<Array<'_>>, output: &mut Output<Array<'static>>) -> Result<()> {
        crate::cpu::log_softmax(self.dim, args, output)
    }
}
