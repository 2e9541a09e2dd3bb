//! Arrays from and to `.npy` and `.safetensors` files.

mod place;
mod read;
mod element;
mod temporary;
mod tensor;
mod write;

pub use place::{Place, expect_apart, expect_writable, is_standard, replace, write_out};
pub use read::{Kind, Opened, Source, Wanted, name, numpy_name};
#[cfg(unix)]
pub use temporary::remove_upon_signals;
pub use tensor::{Sum, Tensor};
pub use write::{Outputs, Writer, Written};

#[cfg(target_endian = "big")]
compile_error!("both file formats are little-endian, and so must be the machine");
