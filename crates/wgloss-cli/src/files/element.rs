//! Numbers of files in the types that ops take.

use bytemuck::Pod;
use wgloss::half::{bf16, f16};

/// A number of a file.
pub trait Number: Pod {
    /// Its value in float64, and whether that is all of it.
    fn wide(self) -> (f64, bool);

    /// Its value as a class index, if it is an integer that has one.
    fn class(self) -> Option<i64>;
}

macro_rules! integers {
    ($($type:ty)*) => {
        $(impl Number for $type {
            fn wide(self) -> (f64, bool) {
                let wide = self as f64;
                (wide, wide as i128 == self as i128)
            }

            fn class(self) -> Option<i64> {
                self.try_into().ok()
            }
        })*
    };
}

integers!(u8 i8 u16 i16 u32 i32 u64 i64);

impl Number for f64 {
    fn wide(self) -> (f64, bool) {
        (self, true)
    }

    fn class(self) -> Option<i64> {
        None
    }
}

/// A type of floats that numbers are converted to.
pub trait Float: Pod {
    /// The nearest one.
    fn nearest(wide: f64) -> Self;

    /// Its value.
    fn value(self) -> f64;
}

macro_rules! floats {
    ($($type:ty: $nearest:expr;)*) => {
        $(impl Float for $type {
            fn nearest(wide: f64) -> Self {
                $nearest(wide)
            }

            fn value(self) -> f64 {
                self.into()
            }
        })*
    };
}

floats! {
    f64: |wide| wide;
    f32: |wide| wide as f32;
    f16: f16::from_f64;
    bf16: bf16::from_f64;
}
