//! [wgloss]'s losses on [burn]'s tensors: fused kernels in burn's own device memory, with
//! autodiff.
//!
//! ```no_run
//! use burn::tensor::{Int, Tensor};
//! use wgloss_burn::CrossEntropyLossConfig; // instead of burn::nn::loss::CrossEntropyLossConfig
//!
//! # fn main() -> wgloss_burn::Result<()> {
//! let device = wgloss_burn::init()?.autodiff(); // instead of Device::default().autodiff()
//! let logits = Tensor::<2>::from_floats([[2.0, -1.0, 0.5]], &device).require_grad();
//! let targets = Tensor::<1, Int>::from_ints([0], &device);
//! let loss = CrossEntropyLossConfig::new().init(&device).forward(logits.clone(), targets);
//! let grad = logits.grad(&loss.backward());
//! # Ok(())
//! # }
//! ```
//!
//! - Modules and configs, named as burn's: [`CrossEntropyLossConfig`] and the others of this page.
//! - [`activation`]: softmax, log-softmax, sigmoid, log-sigmoid.
//! - [`loss()`], [`loss_and_rows`] and [`map`]: any op of wgloss with its options, losses of the caller's own
//!   ([`wgloss::custom`]) included, returning errors.
//! - [`init`] and [`share`] for devices, [`check`] for what only these can tell.
//!
//! The semantics are wgloss's, and so PyTorch's but for what [`wgloss::pytorch`] lists.
//!
//! # How it works
//! A tensor's buffer is looked up in burn's runtime, which submits what is pending before that, and kept in
//! its place while a kernel over it is encoded and submitted to the same queue. Plans are kept, so that a
//! training loop makes each once. In a graph, cross entropy keeps 16 bytes a row, and backward is one read
//! and one write of the logits: over them, where the graph is their last holder. Linear cross entropy of f32 gives the
//! gradients of the arguments that are tracked in forward, in one pass with the loss; the graph keeps them, and backward
//! multiplies them by the upstream gradient ([`LinearCrossEntropyLoss`] has what it does otherwise, and when). The
//! upstream gradient stays on the device. Nothing waits.
//!
//! # What burn would have to offer
//! - The wgpu device of a runtime that is up. There is none, so that programs have to start with [`init`].
//! - A way into its command encoder. Each call cuts burn's batch of operations, and is a submission of its
//!   own; kernels could be part of a captured graph and seen by its profiler otherwise.
//! - An error of a deferred operation of an extension. It can only return results or panic on burn's
//!   thread, so that [`check`] tells, and results are NaN.
//! - Tensors of no dimensions: losses have shape `[1]`.
//! - bf16 in WGSL as storage, which wgloss's kernels read as words.

// In the order in which data flows. What burn's macros make public is documented where it is written.
mod error;
#[allow(missing_docs)]
mod device;
#[allow(missing_docs)]
mod bridge;
#[allow(missing_docs)]
mod autodiff;
mod call;
pub mod activation;
mod losses;

pub use call::{Args, RowOutputs, loss, loss_and_rows, map};
pub use device::{check, init, share};
pub use error::{Error, Result};
pub use losses::*;

pub use wgloss;
