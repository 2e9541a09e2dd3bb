//! Fused, numerically stable loss kernels for GPUs, through wgpu.

mod error;
mod dtype;
mod shape;
mod array;
mod args;
mod select;
mod kernel;
mod program;
mod gpu;
mod tensor;
mod plan;
mod readback;
pub mod reference;
mod ops;
mod door;

pub use args::{Args, Backward, Forward, ForwardBackward, Output, Pass, Reduction};
pub use array::{Array, Data, Element};
pub use door::{Operand, Timing};
pub use dtype::DType;
pub use error::{Error, Result};
#[cfg(not(target_arch = "wasm32"))]
pub use gpu::adapters;
pub use gpu::{Gpu, GpuOptions};
pub use ops::{BceWithLogits, CrossEntropy, Op};
pub use plan::Plan;
pub use select::Team;
pub use shape::Layout;
pub use tensor::Tensor;

pub use half;
pub use wgpu;
