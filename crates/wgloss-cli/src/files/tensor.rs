//! Results as they are written.

use std::borrow::Cow;

use safetensors::Dtype;
use wgloss::reference::Values;
use wgloss::{Array, Data};

/// A result as it is written.
#[derive(Debug)]
pub enum Tensor {
    /// In its storage type.
    Stored(Array<'static>),
    /// In float64.
    Exact(Values),
}

impl From<Array<'static>> for Tensor {
    fn from(array: Array<'static>) -> Self {
        Tensor::Stored(array)
    }
}

impl Tensor {
    /// The same, rounded to float32 where it is float64.
    pub fn into_array(self) -> wgloss::Result<Array<'static>> {
        match self {
            Tensor::Stored(array) => Ok(array),
            Tensor::Exact(values) => values.to_array(),
        }
    }

    /// The shape; `[]` for a mean or a sum.
    pub fn shape(&self) -> &[usize] {
        match self {
            Tensor::Stored(array) => array.shape(),
            Tensor::Exact(values) => &values.shape,
        }
    }

    /// The elements in float64.
    pub fn to_f64(&self) -> Cow<'_, [f64]> {
        match self {
            Tensor::Stored(array) => array.to_f64().into(),
            Tensor::Exact(values) => (&values.values).into(),
        }
    }

    /// The type in which it is written.
    pub fn dtype(&self) -> Dtype {
        match self {
            Tensor::Exact(_) => Dtype::F64,
            Tensor::Stored(array) => match array.dtype() {
                wgloss::DType::F32 => Dtype::F32,
                wgloss::DType::F16 => Dtype::F16,
                wgloss::DType::Bf16 => Dtype::BF16,
                wgloss::DType::I32 => Dtype::I32,
                wgloss::DType::I64 => Dtype::I64,
                wgloss::DType::F64 => Dtype::F64,
            },
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Tensor::Stored(array) => Data::bytes(array.data()),
            Tensor::Exact(values) => bytemuck::cast_slice(&values.values),
        }
    }
}
