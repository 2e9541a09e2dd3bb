//! The maps, called as those of `burn::tensor::activation`.

use burn::tensor::Tensor;
use wgloss::{LogSigmoid, LogSoftmax, Sigmoid, Softmax};

use crate::call::map;

/// Softmax along a dimension.
///
/// # Panics
/// Where [`map`] returns an error, which it does before anything is computed: for a
/// dimension that the tensor has not, and on devices that are not shared.
pub fn softmax<const D: usize>(tensor: Tensor<D>, dim: usize) -> Tensor<D> {
    expect(map(&Softmax::default().dim(dim as i64), tensor))
}

/// Log-softmax along a dimension.
///
/// # Panics
/// As [`softmax`].
pub fn log_softmax<const D: usize>(tensor: Tensor<D>, dim: usize) -> Tensor<D> {
    expect(map(&LogSoftmax::default().dim(dim as i64), tensor))
}

/// The logistic sigmoid.
///
/// # Panics
/// As [`softmax`].
pub fn sigmoid<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    expect(map(&Sigmoid, tensor))
}

/// The logarithm of the logistic sigmoid.
///
/// # Panics
/// As [`softmax`].
pub fn log_sigmoid<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    expect(map(&LogSigmoid, tensor))
}

/// What burn's modules and activations have no result type for.
#[track_caller]
pub(crate) fn expect<T>(result: crate::Result<T>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{error}"),
    }
}
