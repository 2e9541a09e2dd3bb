//! Comparators: the promise's is the library's, those for foreign values belong to the reader of
//! conformance folders. `tests/comparator.rs` shows what all of them reject.

pub use crate::conformance::{compare_moderate, compare_relative};
pub use wgloss::reference::{Mismatch, Promise, Worst, compare};
