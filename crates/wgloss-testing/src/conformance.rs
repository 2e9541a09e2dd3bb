//! The conformance folders of this repository, read as the program reads them.

use std::path::{Path, PathBuf};

use crate::cases;

pub use crate::cases::{Case, Folder, compare_moderate, compare_relative, magnitude};

/// Where the folders are.
pub fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/conformance").join(name)
}

/// The values of a role that the case has.
#[track_caller]
pub fn values(case: &Case, role: &str) -> Vec<f64> {
    let reference = case.reference(role).unwrap_or_else(|error| panic!("{}: {error}", case.name));
    reference.unwrap_or_else(|| panic!("{}: no {role}", case.name)).values
}

/// Reads a folder. Panics where it is not in the documented format.
pub fn load(folder: &Path) -> Folder {
    cases::load(folder).unwrap_or_else(|error| panic!("{error:#}"))
}
