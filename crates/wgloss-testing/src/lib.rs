//! What the tests, the benches and the program `wgloss` share: the table of cases, folders of cases,
//! random inputs, workloads, comparators, devices, kernels, calls that are held to the promise, memory laid
//! out as callers like.
//!
//! Not published: nothing of it is part of wgloss.

// names that say all, in a package without users beyond this workspace
#![allow(missing_docs)]

#[cfg(feature = "proptest")]
pub mod any;
pub mod call;
pub mod cases;
pub mod compare;
pub mod conformance;
pub mod custom;
pub mod devices;
pub mod files;
pub mod json;
pub mod kernels;
pub mod memory;
pub mod ops;
pub mod random;
pub mod search;
pub mod table;
pub mod timer;
pub mod workload;
