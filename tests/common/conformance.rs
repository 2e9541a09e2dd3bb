//! The conformance folders of this repository, read by the program's own reader.

use std::path::{Path, PathBuf};

#[path = "../../src/bin/wgloss/check/cases.rs"]
mod cases;

pub use cases::{Case, Folder, Reference, compare_moderate, compare_relative, magnitude};

/// Where the folders are.
pub fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance").join(name)
}

/// Reads a folder. Panics where it is not in the documented format.
pub fn load(folder: &Path) -> Folder {
    cases::load(folder).unwrap_or_else(|error| panic!("{error:#}"))
}
