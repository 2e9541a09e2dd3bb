//! Comparators: results against float64 ones.

use std::fmt;

use super::Values;
use crate::{DType, Role};

/// The error that is promised of an f32 result, as a multiple of its T (see
/// [`Values::magnitudes`]): `2e-6` for losses and `4e-6` for gradients where T is at least 1e-3,
/// `1e-5` where it is at least 1e-30. [`Op::promise`](crate::Op::promise) tells that of an op, which its
/// options may widen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// For T of at least 1e-3.
    wide: f64,
    /// For T from 1e-30 to 1e-3.
    narrow: f64,
    /// The largest factor that upstream and divisor have put on T: the promise is made before them.
    scale: f64,
    storage: Storage,
}

/// What storing a result does to it.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Storage {
    /// Half a unit in the last place, relative to the number.
    rounding: f64,
    /// What is smaller may become 0, or one step larger.
    smallest: f64,
    /// What is larger in magnitude becomes infinite.
    largest: f64,
}

impl Storage {
    /// Subnormals may be flushed to 0.
    const F32: Storage = Storage {
        rounding: 1.0 / (1 << 24) as f64,
        smallest: f32::MIN_POSITIVE as f64,
        largest: f32::MAX as f64,
    };
    /// Subnormals are kept; infinite from half a step beyond 65504.
    const F16: Storage = Storage {
        rounding: 1.0 / (1 << 11) as f64,
        smallest: 0.5 / (1 << 24) as f64,
        largest: 65_520.0,
    };
    /// As f32, whose upper half it is.
    const BF16: Storage = Storage { rounding: 1.0 / (1 << 8) as f64, ..Self::F32 };
}

impl Tolerance {
    /// For losses: 2e-6 T.
    pub const LOSS: Tolerance =
        Tolerance { wide: 2e-6, narrow: 1e-5, scale: 1.0, storage: Storage::F32 };
    /// For gradients: 4e-6 T.
    pub const GRAD: Tolerance = Tolerance { wide: 4e-6, ..Self::LOSS };

    /// What is promised of a result without further ado.
    pub(crate) fn of(role: Role) -> Tolerance {
        match role {
            Role::Grad | Role::GradProjection | Role::GradBias | Role::Entropy => Self::GRAD,
            _ => Self::LOSS,
        }
    }

    /// The same promise for results that were multiplied by `factor` (the greatest upstream, over
    /// the divisor of a mean) at the end: 1e-3 and 1e-30 move along.
    pub fn scaled(self, factor: f64) -> Tolerance {
        Tolerance { scale: self.scale * factor.abs(), ..self }
    }

    /// The promise of [`CrossEntropy`](crate::CrossEntropy) with a softcap: `4 softcap 2^-24 T` more, since
    /// capped logits have the rounding of numbers as large as the cap.
    pub fn softcapped(self, softcap: f64) -> Tolerance {
        let more = 4.0 * softcap * Storage::F32.rounding;
        Tolerance { wide: self.wide + more, narrow: self.narrow + more, ..self }
    }

    /// The same promise with errors so many times as large.
    pub fn times(self, factor: f64) -> Tolerance {
        Tolerance { wide: self.wide * factor, narrow: self.narrow * factor, ..self }
    }

    /// The same promise for results that are stored in this type: they are rounded to it once.
    /// Results are f32 where nothing is said.
    pub fn stored_as(self, dtype: DType) -> Tolerance {
        let storage = match dtype {
            DType::F16 => Storage::F16,
            DType::Bf16 => Storage::BF16,
            DType::F32 | DType::I32 | DType::I64 | DType::F64 => Storage::F32,
        };
        Tolerance { storage, ..self }
    }

    /// What T has to be for this error to be allowed before a result is stored, or a larger one: less is
    /// promised where T is small.
    pub(super) fn magnitude_for(self, error: f64) -> f64 {
        error / self.wide
    }

    /// The error allowed before a result is stored.
    pub(super) fn promised(self, magnitude: f64) -> f64 {
        if magnitude >= 1e-3 * self.scale {
            self.wide * magnitude
        } else if magnitude >= 1e-30 * self.scale {
            self.narrow * magnitude
        } else {
            // No digits are promised here, only that the result is about as small: `want` is at
            // most T.
            1e-29 * self.scale
        }
    }

    /// What is allowed to a result.
    fn allowed(self, want: f64, magnitude: f64) -> Allowed {
        let Storage { rounding, smallest, largest } = self.storage;
        let error = self.promised(magnitude);
        Allowed { error, rounding: want.abs() * rounding + smallest, infinite: largest - error }
    }
}

/// What is allowed to one result.
struct Allowed {
    /// The error, and what storing the result may add to it.
    error: f64,
    rounding: f64,
    /// How large the result has to be for an infinity to stand for it.
    infinite: f64,
}

/// The largest error among results that all kept the bound.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Worst {
    /// Where; 0 when there were no results.
    pub index: usize,
    /// The error, beyond what rounding to the storage type makes of it, over the error allowed: at
    /// most 1.
    pub units: f64,
}

/// Why results are not what they should be.
#[derive(Debug, Clone, PartialEq)]
pub enum Mismatch {
    /// There are more or fewer of them.
    Length {
        /// The number of results.
        got: usize,
        /// The number expected.
        want: usize,
    },
    /// `count` of them are off, the worst of them this one.
    Value {
        /// How many are off.
        count: usize,
        /// Where the worst is.
        index: usize,
        /// What it is.
        got: f32,
        /// What it should be.
        want: f64,
        /// What its error is a multiple of: T.
        magnitude: f64,
        /// The error over the error allowed: infinite where no error is, as with NaN for a number.
        units: f64,
    },
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mismatch::Length { got, want } => write!(f, "got {got} values, want {want}"),
            Mismatch::Value { count, index, got, want, magnitude, units } => write!(
                f,
                "{count} values off, the worst at {index}: got {got:e}, want {want:e} \
                 (T {magnitude:e}): {units:.3} times the error allowed",
            ),
        }
    }
}

impl std::error::Error for Mismatch {}

/// Holds results to the promise.
///
/// NaN must meet NaN, and an infinity the same infinity; -0 equals 0. What the storage type cannot
/// hold may be the infinity of its sign.
///
/// ```
/// use wgloss::reference::{Tolerance, Values, compare};
///
/// let want = Values { shape: vec![2], values: vec![0.1, 2.0], magnitudes: vec![0.1, 2.0] };
/// assert!(compare(&[0.1, 2.000_001], &want, Tolerance::LOSS)?.units < 1.0);
/// assert!(compare(&[0.1, f32::NAN], &want, Tolerance::LOSS).is_err());
/// # Ok::<_, wgloss::reference::Mismatch>(())
/// ```
///
/// # Errors
/// [`Mismatch::Length`] unless there is a result for every value, and [`Mismatch::Value`] naming
/// the worst result where some error is larger than allowed. Nothing is right of a value without a
/// finite T.
pub fn compare(got: &[f32], want: &Values, bound: Tolerance) -> Result<Worst, Mismatch> {
    let magnitude = |i: usize| want.magnitudes.get(i).copied().unwrap_or(f64::NAN);
    compare_all(got, &want.values, magnitude, |i| bound.allowed(want.values[i], magnitude(i)))
}

/// [`compare`] by the caller's own bound: for values that came without a T. `allowed` is the error
/// allowed to the result at an index, and `magnitude` what it is a multiple of, for the message.
///
/// # Errors
/// As [`compare`]. Nothing is right where `allowed` is not finite.
pub fn compare_by(
    got: &[f32],
    want: &[f64],
    magnitude: impl Fn(usize) -> f64,
    allowed: impl Fn(usize) -> f64,
) -> Result<Worst, Mismatch> {
    compare_all(got, want, magnitude, |index| {
        let error = allowed(index);
        Allowed { error, rounding: 0.0, infinite: Storage::F32.largest - error }
    })
}

fn compare_all(
    got: &[f32],
    want: &[f64],
    magnitude: impl Fn(usize) -> f64,
    allowed: impl Fn(usize) -> Allowed,
) -> Result<Worst, Mismatch> {
    if got.len() != want.len() {
        return Err(Mismatch::Length { got: got.len(), want: want.len() });
    }
    let mut worst = Worst { index: 0, units: 0.0 };
    let mut count = 0;
    for (index, (&g, &w)) in got.iter().zip(want).enumerate() {
        let units = units(g, w, allowed(index));
        count += usize::from(units > 1.0);
        if units > worst.units {
            worst = Worst { index, units };
        }
    }
    let Worst { index, units } = worst;
    match count {
        0 => Ok(worst),
        _ => Err(Mismatch::Value {
            count,
            index,
            got: got[index],
            want: want[index],
            magnitude: magnitude(index),
            units,
        }),
    }
}

/// The error, beyond what storing makes of it, over the error allowed: infinite where none is.
/// Never NaN.
fn units(got: f32, want: f64, allowed: Allowed) -> f64 {
    let overflows = allowed.error.is_finite() && want.abs() >= allowed.infinite;
    let same = if want.is_nan() {
        got.is_nan()
    } else if want.is_infinite() || got.is_infinite() {
        f64::from(got) == want || got.is_infinite() && overflows && (got > 0.0) == (want > 0.0)
    } else {
        let error = (f64::from(got) - want).abs() - allowed.rounding;
        // an error of 0 needs no allowance: 0 / 0 is no number
        let units = if error <= 0.0 { 0.0 } else { error / allowed.error };
        // Also from a `got` that is NaN, or where no finite error is allowed.
        return if allowed.error.is_finite() && !units.is_nan() { units } else { f64::INFINITY };
    };
    if same { 0.0 } else { f64::INFINITY }
}
