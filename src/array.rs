//! Arrays on the host: a slice or a vector, and its shape.

use std::borrow::Cow;

use half::{bf16, f16};

use crate::shape::{Layout, element_count};
use crate::{DType, Error, Result};

/// An array in host memory, row-major: borrowed where it is an input, owned where it is a result.
///
/// ```
/// use wgloss::Array;
///
/// let logits = Array::new(&[2.0, -1.0, 0.5, 0.1, 3.0, -2.0], &[2, 3])?;
/// assert_eq!(logits.shape(), [2, 3]);
/// let target = Array::from(&[0, 1]); // one dimension: its length
/// assert_eq!(target.shape(), [2]);
/// # Ok::<_, wgloss::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Array<'a> {
    data: Data<'a>,
    layout: Layout,
}

/// The elements of an [`Array`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Data<'a> {
    /// f32.
    F32(Cow<'a, [f32]>),
    /// f16.
    F16(Cow<'a, [f16]>),
    /// bf16.
    Bf16(Cow<'a, [bf16]>),
    /// i32.
    I32(Cow<'a, [i32]>),
    /// i64.
    I64(Cow<'a, [i64]>),
    /// f64: for the [`reference`](crate::reference) only, by [`Array::from_data`]. It is no [`Element`],
    /// so that `&[0.5, 2.0]` is f32.
    F64(Cow<'a, [f64]>),
}

mod sealed {
    pub trait Sealed {}
}

/// A type that an [`Array`] is made from: `f32`, `f16`, `bf16`, `i32`, `i64`; and `u8` and `u16`, the class
/// indices of masks, which it holds as i32, since kernels read those.
///
/// ```
/// use wgloss::{Array, DType};
///
/// let mask = Array::new(&[0_u8, 255, 3, 1], &[1, 2, 2])?;
/// assert_eq!((mask.dtype(), mask.to_i64()?), (DType::I32, vec![0, 255, 3, 1]));
/// # Ok::<_, wgloss::Error>(())
/// ```
pub trait Element: sealed::Sealed + Clone + 'static {
    /// Wraps a slice or vector; `u8` and `u16` are widened into a new one.
    fn data(values: Cow<'_, [Self]>) -> Data<'_>;
}

macro_rules! elements {
    ($($type:ty, $variant:ident;)*) => {
        impl Data<'_> {
            /// The storage type.
            pub fn dtype(&self) -> DType {
                match self { $(Data::$variant(_) => DType::$variant,)* }
            }

            /// The number of elements.
            pub fn len(&self) -> usize {
                match self { $(Data::$variant(values) => values.len(),)* }
            }

            /// Whether there are none.
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }

            /// The elements' bytes in this machine's order.
            pub fn bytes(&self) -> &[u8] {
                match self { $(Data::$variant(values) => bytemuck::cast_slice(values),)* }
            }

            fn into_owned(self) -> Data<'static> {
                match self {
                    $(Data::$variant(values) => Data::$variant(Cow::Owned(values.into_owned())),)*
                }
            }
        }
    };
}

elements! {
    f32, F32;
    f16, F16;
    bf16, Bf16;
    i32, I32;
    i64, I64;
    f64, F64;
}

macro_rules! made_from {
    ($($type:ty: $values:ident => $data:expr;)*) => {
        $(impl sealed::Sealed for $type {}
        impl Element for $type {
            fn data($values: Cow<'_, [Self]>) -> Data<'_> {
                $data
            }
        })*
    };
}

made_from! {
    f32: values => Data::F32(values);
    f16: values => Data::F16(values);
    bf16: values => Data::Bf16(values);
    i32: values => Data::I32(values);
    i64: values => Data::I64(values);
    u8: values => Data::I32(values.iter().map(|&class| class.into()).collect());
    u16: values => Data::I32(values.iter().map(|&class| class.into()).collect());
}

impl<'a> Array<'a> {
    /// A slice with a shape. A 0-dimensional shape `[]` has one element.
    ///
    /// # Errors
    /// [`Error::Length`] when the slice's length is not the product of the shape.
    pub fn new<T: Element>(values: &'a [T], shape: &[usize]) -> Result<Self> {
        Self::from_data(T::data(Cow::Borrowed(values)), shape)
    }

    /// A vector with a shape.
    ///
    /// # Errors
    /// [`Error::Length`] when the vector's length is not the product of the shape.
    pub fn from_vec<T: Element>(values: Vec<T>, shape: &[usize]) -> Result<Array<'static>> {
        Array::from_data(T::data(Cow::Owned(values)), shape)
    }

    /// Elements of any type with a shape.
    ///
    /// # Errors
    /// [`Error::Length`] when the number of elements is not the product of the shape.
    pub fn from_data(data: Data<'a>, shape: &[usize]) -> Result<Self> {
        let expected = element_count("array", shape)?;
        if data.len() != expected {
            return Err(Error::Length {
                argument: "array",
                shape: shape.to_vec(),
                expected,
                actual: data.len(),
            });
        }
        let layout = Layout::new(shape, data.dtype());
        Ok(Array { data, layout })
    }

    /// A 0-dimensional array: a scalar upstream gradient, for instance.
    pub fn scalar<T: Element>(value: T) -> Array<'static> {
        let data = T::data(Cow::Owned(vec![value]));
        let layout = Layout::new(&[], data.dtype());
        Array { data, layout }
    }

    /// The shape.
    pub fn shape(&self) -> &[usize] {
        self.layout.shape()
    }

    /// The storage type.
    pub fn dtype(&self) -> DType {
        self.layout.dtype()
    }

    /// Shape and storage type.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The elements.
    pub fn data(&self) -> &Data<'a> {
        &self.data
    }

    /// The elements, with what holds them.
    pub fn into_data(self) -> Data<'a> {
        self.data
    }

    /// The elements, to be overwritten.
    #[cfg(feature = "cpu")]
    pub(crate) fn data_mut(&mut self) -> &mut Data<'a> {
        &mut self.data
    }

    /// The elements as f32: converted where they are stored otherwise.
    pub fn to_f32(&self) -> Vec<f32> {
        match &self.data {
            Data::F32(values) => values.to_vec(),
            Data::F16(values) => values.iter().map(|v| v.to_f32()).collect(),
            Data::Bf16(values) => values.iter().map(|v| v.to_f32()).collect(),
            Data::I32(values) => values.iter().map(|&v| v as f32).collect(),
            Data::I64(values) => values.iter().map(|&v| v as f32).collect(),
            Data::F64(values) => values.iter().map(|&v| v as f32).collect(),
        }
    }

    /// The elements as f64: exact for every type but i64 beyond 2^53.
    pub fn to_f64(&self) -> Vec<f64> {
        match &self.data {
            Data::F32(values) => values.iter().map(|&v| v.into()).collect(),
            Data::F16(values) => values.iter().map(|v| v.to_f64()).collect(),
            Data::Bf16(values) => values.iter().map(|v| v.to_f64()).collect(),
            Data::I32(values) => values.iter().map(|&v| v.into()).collect(),
            Data::I64(values) => values.iter().map(|&v| v as f64).collect(),
            Data::F64(values) => values.to_vec(),
        }
    }

    /// The same numbers stored in f32, f16 or bf16, rounded to nearest even.
    ///
    /// # Errors
    /// [`Error::DType`] for integers and f64, or when asked for them.
    pub fn to_dtype(&self, dtype: DType) -> Result<Array<'static>> {
        let refuse = |actual| {
            let expected = "f32, f16 or bf16".into();
            Err(Error::DType { argument: "array", expected, actual })
        };
        if let DType::I32 | DType::I64 | DType::F64 = self.dtype() {
            return refuse(self.dtype());
        }
        let values = self.to_f32();
        match dtype {
            DType::F32 => Array::from_vec(values, self.shape()),
            DType::F16 => {
                Array::from_vec(values.into_iter().map(f16::from_f32).collect(), self.shape())
            }
            DType::Bf16 => {
                Array::from_vec(values.into_iter().map(bf16::from_f32).collect(), self.shape())
            }
            DType::I32 | DType::I64 | DType::F64 => refuse(dtype),
        }
    }

    /// The elements of integers: class indices, an argmax.
    ///
    /// # Errors
    /// [`Error::DType`] unless they are stored as i32 or i64.
    pub fn to_i64(&self) -> Result<Vec<i64>> {
        match &self.data {
            Data::I32(values) => Ok(values.iter().map(|&v| v.into()).collect()),
            Data::I64(values) => Ok(values.to_vec()),
            _ => Err(Error::DType {
                argument: "target",
                expected: "i32 or i64".into(),
                actual: self.dtype(),
            }),
        }
    }

    /// The one value of a mean, a sum or a 0-dimensional array.
    ///
    /// # Errors
    /// [`Error::Shape`] unless there is exactly one element.
    pub fn item(&self) -> Result<f32> {
        match self.to_f32()[..] {
            [value] => Ok(value),
            _ => Err(Error::Shape {
                argument: "item",
                expected: "with one element".into(),
                actual: self.shape().to_vec(),
            }),
        }
    }

    /// The same array, owning its elements.
    pub fn into_owned(self) -> Array<'static> {
        Array { data: self.data.into_owned(), layout: self.layout }
    }
}

impl<'a, T: Element> From<&'a [T]> for Array<'a> {
    fn from(values: &'a [T]) -> Self {
        let data = T::data(Cow::Borrowed(values));
        let layout = Layout::new(&[values.len()], data.dtype());
        Array { data, layout }
    }
}

impl<'a, T: Element> From<&'a Vec<T>> for Array<'a> {
    fn from(values: &'a Vec<T>) -> Self {
        values.as_slice().into()
    }
}

impl<'a, T: Element, const N: usize> From<&'a [T; N]> for Array<'a> {
    fn from(values: &'a [T; N]) -> Self {
        values.as_slice().into()
    }
}
