//! wgloss's losses on burn's tensors.

// In the order in which data flows. Traits of burn's extension API are public for its macros alone.
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
