//! Arrays from and to `.npy` and `.safetensors` files.

mod place;
mod read;
mod tensor;
mod write;

pub use place::{Place, expect_writable, replace};
pub use read::{Kind, Source};
pub use tensor::Tensor;
pub use write::{Outputs, Writer};

#[cfg(target_endian = "big")]
compile_error!("both file formats are little-endian, and so must be the machine");
