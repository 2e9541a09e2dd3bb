//! Converts numbers between the type they are stored in and f32, in which arithmetic is done.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::array::{Data, Element};
use crate::{Array, DType, Error, Result};

/// A type of elements that an [`Array`] can hold.
pub(super) trait ArrayElement: Element + Copy + Send + Sync {
    const DTYPE: DType;

    fn slice<'a>(data: &'a Data<'_>) -> Option<&'a [Self]>;

    fn slice_mut<'a>(data: &'a mut Data<'_>) -> Option<&'a mut [Self]>;
}

macro_rules! array_elements {
    ($($type:ident, $variant:ident;)*) => {
        $(impl ArrayElement for $type {
            const DTYPE: DType = DType::$variant;

            fn slice<'a>(data: &'a Data<'_>) -> Option<&'a [Self]> {
                if let Data::$variant(values) = data { Some(values) } else { None }
            }

            fn slice_mut<'a>(data: &'a mut Data<'_>) -> Option<&'a mut [Self]> {
                if let Data::$variant(values) = data { Some(values.to_mut()) } else { None }
            }
        })*
    };
}

array_elements! {
    f32, F32;
    f16, F16;
    bf16, Bf16;
    i32, I32;
    i64, I64;
}

/// A type that inputs and gradients may be stored in.
pub(super) trait Stored: ArrayElement {
    fn to_f32(self) -> f32;

    /// Rounds to nearest even.
    fn from_f32(value: f32) -> Self;

    /// Reads a slice.
    fn read(from: &[Self], to: &mut [f32]);

    /// Writes a slice.
    fn write(from: &[f32], to: &mut [Self]);

    /// The elements, if they are f32.
    fn as_f32(_from: &[Self]) -> Option<&[f32]> {
        None
    }

    /// As [`Stored::as_f32`], for writing.
    fn as_f32_mut(_to: &mut [Self]) -> Option<&mut [f32]> {
        None
    }
}

impl Stored for f32 {
    fn to_f32(self) -> f32 {
        self
    }

    fn from_f32(value: f32) -> Self {
        value
    }

    fn read(from: &[Self], to: &mut [f32]) {
        to.copy_from_slice(from);
    }

    fn write(from: &[f32], to: &mut [Self]) {
        to.copy_from_slice(from);
    }

    fn as_f32(from: &[Self]) -> Option<&[f32]> {
        Some(from)
    }

    fn as_f32_mut(to: &mut [Self]) -> Option<&mut [f32]> {
        Some(to)
    }
}

macro_rules! halves {
    ($($type:ident)*) => {
        $(impl Stored for $type {
            fn to_f32(self) -> f32 {
                self.to_f32()
            }

            fn from_f32(value: f32) -> Self {
                $type::from_f32(value)
            }

            fn read(from: &[Self], to: &mut [f32]) {
                from.convert_to_f32_slice(to);
            }

            fn write(from: &[f32], to: &mut [Self]) {
                to.convert_from_f32_slice(from);
            }
        })*
    };
}

halves! { f16 bf16 }

/// The elements of an argument or result that the op's checks have passed.
pub(super) fn slice<'a, T: ArrayElement>(array: &'a Array<'_>) -> Result<&'a [T]> {
    T::slice(array.data()).ok_or_else(|| unexpected::<T>(array.dtype()))
}

/// As [`slice`], for an argument that may not be there.
pub(super) fn slice_of<'a, T: ArrayElement>(
    array: Option<&'a Array<'_>>,
) -> Result<Option<&'a [T]>> {
    array.map(slice).transpose()
}

/// As [`slice_of`], for writing.
pub(super) fn slice_mut<'a, T: ArrayElement>(
    array: &'a mut Option<Array<'_>>,
) -> Result<Option<&'a mut [T]>> {
    let Some(array) = array else { return Ok(None) };
    let dtype = array.dtype();
    T::slice_mut(array.data_mut()).map(Some).ok_or_else(|| unexpected::<T>(dtype))
}

fn unexpected<T: ArrayElement>(actual: DType) -> Error {
    Error::DType { argument: "array", expected: T::DTYPE.name().into(), actual }
}

/// Calls a function with the type of an array's elements.
macro_rules! with_stored {
    ($dtype:expr, $function:ident :: <_ $(, $rest:ty)*> ($($argument:expr),*)) => {
        match $dtype {
            crate::DType::F16 => $function::<half::f16 $(, $rest)*>($($argument),*),
            crate::DType::Bf16 => $function::<half::bf16 $(, $rest)*>($($argument),*),
            _ => $function::<f32 $(, $rest)*>($($argument),*),
        }
    };
}
pub(super) use with_stored;

/// Returns numbers as f32: the memory itself if they are stored so, or else a copy.
pub(super) fn as_f32<'a, T: Stored>(from: &'a [T], copy: &'a mut [f32]) -> &'a [f32] {
    if let Some(numbers) = T::as_f32(from) {
        return numbers;
    }
    let copy = &mut copy[..from.len()];
    T::read(from, copy);
    copy
}

/// Calls `write` with f32 to write, and brings them into memory: directly if they are stored so,
/// or else by way of a copy.
pub(super) fn write_f32<T: Stored, R>(
    to: &mut [T],
    copy: &mut [f32],
    write: impl FnOnce(&mut [f32]) -> R,
) -> R {
    if let Some(numbers) = T::as_f32_mut(to) {
        return write(numbers);
    }
    let copy = &mut copy[..to.len()];
    let result = write(copy);
    T::write(copy, to);
    result
}

/// Splits the next `count` elements off a slice that may not be there.
pub(super) fn take<'a, T>(slice: &mut Option<&'a mut [T]>, count: usize) -> Option<&'a mut [T]> {
    slice.as_mut().map(|slice| slice.split_off_mut(..count).unwrap_or_default())
}
