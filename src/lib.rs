//! Fused, numerically stable loss kernels for GPUs, through wgpu.

mod args;
mod array;
mod door;
mod dtype;
mod error;
mod gpu;
mod kernel;
#[cfg(test)]
mod kernel_tests;
mod ops;
mod plan;
mod program;
mod readback;
pub mod reference;
mod select;
mod shape;
mod tensor;

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
