//! What the tests share: comparators, the conformance folders, random inputs, devices, calls that
//! are held to the promise, memory laid out as callers like, the program and its table of ops.

// Every test file compiles all of this and uses some of it.
#![allow(dead_code, unused_imports)]

pub mod any;
pub mod call;
#[cfg(feature = "cli")]
pub mod command;
pub mod compare;
pub mod conformance;
pub mod gpu;
#[path = "../../src/bin/wgloss/check/grid.rs"]
pub mod grid;
pub mod memory;
#[path = "../../src/bin/wgloss/check/random.rs"]
pub mod random;
