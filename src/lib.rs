//! Loss kernels for GPUs: fused, numerically stable, the same to the bit every time.
//!
//! WGSL compute shaders compute losses and their gradients on whatever [wgpu] runs on: Vulkan,
//! Metal, DX12. The semantics are PyTorch's, to the edge cases, but for what [`pytorch`] lists; the
//! numbers are held to a float64 [`mod@reference`].
//!
//! ```no_run
//! use wgloss::{Args, Array, CrossEntropy, Gpu};
//!
//! let gpu = Gpu::blocking()?;
//! let (logits, target) = ([2.0, -1.0, 0.5, 0.1, 3.0, -2.0_f32], [0, 1]);
//! let args = Args::new(Array::new(&logits, &[2, 3])?).target(Array::from(&target));
//! let op = CrossEntropy::default().label_smoothing(0.1);
//! let out = gpu.block_on(gpu.forward_backward(&op, &args))?;
//! println!("loss {}, gradient {:?}", out.loss()?.item()?, out.grad()?.to_f32());
//! # Ok::<_, wgloss::Error>(())
//! ```
//!
//! # Three levels
//! 1. **Host arrays**: [`Gpu::forward`], [`Gpu::backward`] and [`Gpu::forward_backward`] over
//!    [`Array`]s upload, compute and read back. [`Gpu::stream`] takes batch after batch, with several
//!    in flight.
//! 2. **Device tensors**: the same calls over [`Tensor`]s, uploaded once ([`Gpu::upload`]) or
//!    wrapped around the caller's buffers ([`Tensor::from_buffer`]), submit and do not wait.
//!    `Gpu::run_into` does so synchronously, into given results.
//! 3. **Plans**: [`Gpu::plan`] settles an op for a shape; [`Plan::bind`] fixes the buffers, and
//!    [`BoundPlan::encode`] puts the dispatches into the caller's command encoder, without a submit or
//!    a wait.
//!
//! Each is built on the one below it. Calls are async; [`Gpu::block_on`] is for callers that are
//! not.
//!
//! # What is promised
//! Let T be the sum of the absolute values of the terms of a result's formula; for hard targets
//! and weights that are not negative it is the result itself. The error of a loss is at most
//! `2e-6 T` and that of a gradient at most `4e-6 T`, for T from 1e-3, and `1e-5 T` for T from 1e-30,
//! before the upstream gradient and the divisor are applied. Two options widen that, as their documentation
//! says: [`CrossEntropy::softcap`], and [`SigmoidFocal::gamma`] above 10 ([`Op::promise`] tells by how
//! much). Adding a constant to a row of logits changes its loss only by what rounding the logits did. On
//! the same device, driver and settings, results are the same to the bit on every run and in every process.
//!
//! Where f32 ends: a loss or gradient beyond 3.4e38 is infinite; so is a mean whose sum is, though the
//! mean itself may not be (as in PyTorch). Where T is beyond f32, before weights of elements, the upstream
//! gradient and the divisor are applied or after, or the quotient of the last two is, a result may be
//! infinite or NaN though terms or factors cancel. Inputs and factors below 1.2e-38 may count as 0, as
//! drivers choose.
//!
//! # Features
//! `cpu` adds [`Cpu`](https://docs.rs/wgloss/latest/wgloss/struct.Cpu.html): every op on host arrays
//! without a GPU.

// In the order in which data flows. An op's options, its programs, its CPU form and its definition
// are one matter, so `ops`, `cpu` and `reference` use one another.
mod dtype;
mod role;
mod error;
mod shape;
mod array;
mod args;
mod output;
// what `internals` shows of these four is for tests
#[allow(missing_docs)]
mod limits;
#[allow(missing_docs)]
mod tuning;
#[allow(missing_docs)]
mod kernel;
#[allow(missing_docs)]
mod program;
mod ops;
#[cfg(feature = "cpu")]
mod cpu;
pub mod reference;
pub mod shards;
pub mod pytorch;
mod cache;
mod pool;
mod adapter;
mod gpu;
mod poll;
mod guard;
mod pipelines;
mod tensor;
mod upload;
mod readback;
mod status;
// one function of it too
mod plan;
mod session;
mod call;
mod stream;

/// Losses of the caller's own: see [`custom::Elementwise`] and `examples/custom_loss.rs`.
pub mod custom {
    pub use crate::kernel::File as Shader;
    pub use crate::ops::elements::{Elementwise, Point};
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme; // its examples compile

// what goes in and comes out
pub use args::{Args, Pass, Reduction};
pub use array::{Array, Data, Element};
pub use dtype::DType;
pub use error::{Error, Result};
pub use output::{Output, RowOutputs};
pub use role::Role;
pub use shape::Layout;

// the ops
pub use ops::*;

// where they run
#[cfg(not(target_arch = "wasm32"))]
pub use adapter::adapters;
pub use adapter::{GpuOptions, useful_features, useful_limits};
pub use call::Operand;
#[cfg(feature = "cpu")]
pub use cpu::Cpu;
pub use gpu::Gpu;
pub use plan::{BoundPlan, Plan};
pub use status::Status;
pub use stream::Stream;
pub use tensor::Tensor;
pub use tuning::Team;

pub use half;
pub use wgpu;

/// What this crate's own tests look at. Nothing here is promised to anyone.
#[doc(hidden)]
pub mod internals {
    pub use crate::kernel::{Define, File, Kernel};
    pub use crate::limits::Limits;
    pub use crate::ops::internals::*;
    pub use crate::plan::program;
    pub use crate::program::{
        Binding, Command, Copy, Offsets, Port, Program, Slot, Step, View, first_index,
    };
    pub use crate::reference::compare::compare_by;
    pub use crate::shape::ClassShape;
    pub use crate::tuning::{DeviceClass, DeviceProfile, Launch, RowLaunch, Tile};
}
