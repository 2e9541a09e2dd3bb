//! The tests of the library, in one binary: they share devices, and are linked once. A module a
//! subject.

// without a GPU
mod comparator;
#[cfg(feature = "cpu")]
mod cpu;
mod kernels;
#[cfg(feature = "cpu")]
mod linear_cpu;
mod programs;
mod readme;
mod reference;

mod calls;
mod composition;
mod conformance;
#[cfg(feature = "cpu")]
mod custom;
mod device;
mod edges;
mod errors;
mod huge;
mod linear;
mod naive;
mod ops;
mod pieces;
mod plans;
mod properties;
mod storage;
mod shards;
mod stream;
mod tensors;
