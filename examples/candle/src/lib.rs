//! wgloss's losses on candle's CPU tensors: a file to copy into a program. No GPU is used.
//!
//! ```
//! use candle_core::{Device, Result, Tensor, Var};
//!
//! # fn main() -> Result<()> {
//! let logits = Var::new(&[[2.0_f32, -1.0, 0.5], [0.1, 3.0, -2.0]], &Device::Cpu)?;
//! let target = Tensor::new(&[0_u32, 1], &Device::Cpu)?;
//! let loss = wgloss_candle::cross_entropy(&logits, &target)?; // candle_nn::loss::cross_entropy(..)
//! let gradient = loss.backward()?.remove(&logits);
//! # assert!(gradient.is_some());
//! # Ok(())
//! # }
//! ```
//!
//! Inputs are f32, f16 or bf16, and losses f32. Class indices are u8, u32, i32 or i64; `-100_i32 as u32` is left
//! out too, as `-100` is. [`loss`] takes any op with its options.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, DType, Error, Layout, Result, Shape, Tensor};
use wgloss::{Args, Array, BceWithLogits, Cpu, CrossEntropy, Data, Op, Output, Pass, Role};

/// The mean cross entropy of logits `[N, C]` (or `[N, C, d1, ...]`) and class indices `[N]` (or
/// `[N, d1, ...]`).
///
/// # Errors
/// As [`loss`].
pub fn cross_entropy(logits: &Tensor, target: &Tensor) -> Result<Tensor> {
    loss(&CrossEntropy::default(), logits, target)
}

/// The mean binary cross entropy of logits and targets of the same shape. Targets may be of any type, as
/// candle's.
///
/// # Errors
/// As [`loss`].
pub fn binary_cross_entropy_with_logit(logits: &Tensor, target: &Tensor) -> Result<Tensor> {
    loss(&BceWithLogits::default(), logits, &target.to_dtype(logits.dtype())?)
}

/// A loss with its gradient with respect to the input; targets have none.
///
/// # Errors
/// What the op refuses: shapes and types that do not go together, a class out of range.
pub fn loss(op: &dyn Op, input: &Tensor, target: &Tensor) -> Result<Tensor> {
    input.contiguous()?.apply_op2(&target.contiguous()?, Loss(op.boxed()))
}

struct Loss(Box<dyn Op>);

impl CustomOp2 for Loss {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn cpu_fwd(
        &self,
        input: &CpuStorage,
        input_layout: &Layout,
        target: &CpuStorage,
        target_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let args = Args::new(array(input, input_layout)?).target(array(target, target_layout)?);
        storage(Cpu::default().run(&*self.0, Pass::Forward, &args), Role::Loss)
    }

    fn bwd(
        &self,
        input: &Tensor,
        target: &Tensor,
        _loss: &Tensor,
        upstream: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = Gradient(self.0.clone());
        let grad = input.apply_op3_no_bwd(target, &upstream.contiguous()?, &gradient)?;
        Ok((Some(grad), None))
    }
}

/// A loss's gradient as an operation of its own, since only those see candle's storage.
struct Gradient(Box<dyn Op>);

impl CustomOp3 for Gradient {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn cpu_fwd(
        &self,
        input: &CpuStorage,
        input_layout: &Layout,
        target: &CpuStorage,
        target_layout: &Layout,
        upstream: &CpuStorage,
        upstream_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let args = Args::new(array(input, input_layout)?)
            .target(array(target, target_layout)?)
            .upstream(array(upstream, upstream_layout)?);
        storage(Cpu::default().run(&*self.0, Pass::Backward, &args), Role::Grad)
    }
}

/// A contiguous tensor, not copied but for u8 and u32.
fn array<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<Array<'a>> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        return Err(Error::msg("expected a contiguous tensor"));
    };
    let shape = layout.dims();
    let array = match storage {
        CpuStorage::F32(values) => Array::new(&values[start..end], shape),
        CpuStorage::F16(values) => Array::new(&values[start..end], shape),
        CpuStorage::BF16(values) => Array::new(&values[start..end], shape),
        CpuStorage::I32(values) => Array::new(&values[start..end], shape),
        CpuStorage::I64(values) => Array::new(&values[start..end], shape),
        CpuStorage::U8(values) => Array::new(&values[start..end], shape),
        // beyond i32 they are negative, which no class is
        CpuStorage::U32(values) => {
            Array::from_vec(values[start..end].iter().map(|&class| class as i32).collect(), shape)
        }
        other => return Err(Error::UnsupportedDTypeForOp(dtype(other), "wgloss").bt()),
    };
    array.map_err(Error::wrap)
}

/// A result as candle stores it.
fn storage(
    output: wgloss::Result<Output<Array<'static>>>,
    role: Role,
) -> Result<(CpuStorage, Shape)> {
    let result = output.and_then(|mut output| {
        output.take(role).ok_or(wgloss::Error::NotComputed { result: role.name() })
    });
    let result = result.map_err(Error::wrap)?;
    let shape = Shape::from(result.shape());
    let storage = match result.into_data() {
        Data::F32(values) => CpuStorage::F32(values.into_owned()),
        Data::F16(values) => CpuStorage::F16(values.into_owned()),
        Data::Bf16(values) => CpuStorage::BF16(values.into_owned()),
        other => return Err(Error::msg(format!("a result of {}", other.dtype()))),
    };
    Ok((storage, shape))
}

fn dtype(storage: &CpuStorage) -> DType {
    use candle_core::backend::BackendStorage;
    storage.dtype()
}
