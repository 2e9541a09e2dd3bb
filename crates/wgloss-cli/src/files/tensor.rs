//! Results as they are written.

use std::borrow::Cow;

use safetensors::Dtype;
use wgloss::reference::Values;
use wgloss::{Array, DType, Data};

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

    /// What storing it has rounded beyond f32, relative to the number: 0 of other types.
    pub fn rounding(&self) -> f64 {
        match self.dtype() {
            Dtype::F16 => 2_f64.powi(-11),
            Dtype::BF16 => 2_f64.powi(-8),
            _ => 0.0,
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

/// Results of one shape that are added, in float32 or in float64 as they are.
pub enum Sum {
    Stored { values: Vec<f32>, shape: Vec<usize> },
    Exact(Values),
}

impl Sum {
    /// The first of them.
    pub fn new(first: Tensor) -> Self {
        match first {
            Tensor::Stored(array) => {
                Sum::Stored { values: array.to_f32(), shape: array.shape().to_vec() }
            }
            Tensor::Exact(values) => Sum::Exact(values),
        }
    }

    /// Adds the next one.
    pub fn add(&mut self, next: &Tensor) {
        match (self, next) {
            (Sum::Exact(sum), next) => {
                sum.values.iter_mut().zip(next.to_f64().iter()).for_each(|(sum, v)| *sum += v);
            }
            (Sum::Stored { values, .. }, next) => match next {
                // without a copy, since it may be as large as a classifier
                Tensor::Stored(array) if let Data::F32(next) = array.data() => {
                    values.iter_mut().zip(next.iter()).for_each(|(sum, v)| *sum += v);
                }
                next => {
                    let next = next.to_f64();
                    values.iter_mut().zip(next.iter()).for_each(|(sum, v)| *sum += *v as f32);
                }
            },
        }
    }

    /// The sum, in this type where it is not float64.
    pub fn finish(self, dtype: DType) -> wgloss::Result<Tensor> {
        match self {
            Sum::Exact(values) => Ok(Tensor::Exact(values)),
            Sum::Stored { values, shape } => {
                let array = Array::from_vec(values, &shape)?;
                let array = if dtype == DType::F32 { array } else { array.to_dtype(dtype)? };
                Ok(array.into())
            }
        }
    }
}
