//! What the tests share: comparators, the conformance folders, random inputs.

// Every test file compiles all of this and uses some of it.
#![allow(dead_code)]

pub mod compare;
pub mod conformance;
pub mod random;
