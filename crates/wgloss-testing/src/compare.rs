//! Comparators: the promise's is the library's, those for foreign values belong to the reader of
//! conformance folders. `tests/comparator.rs` shows what all of them reject.

use wgloss::reference::Values;
use wgloss::{Array, Role};

pub use crate::conformance::{compare_moderate, compare_relative};
pub use wgloss::reference::{Mismatch, Tolerance, Worst, compare};

/// Integers against the reference's: each must be the very same, or, where T is not 0, within
/// [`Tolerance::LOSS`] of it.
///
/// # Errors
/// As [`compare`]; the first integer that is off is the worst.
pub fn compare_integers(got: &Array<'_>, want: &Values) -> Result<Worst, Mismatch> {
    let magnitude = |i: usize| want.magnitudes.get(i).copied().unwrap_or(f64::NAN);
    let (got, want) = (got.to_f64(), &want.values);
    if got.len() != want.len() {
        return Err(Mismatch::Length { got: got.len(), want: want.len() });
    }
    // differences, since f32 does not hold every class
    let is_off = |i: &usize| {
        let difference =
            Values { shape: vec![], values: vec![0.0], magnitudes: vec![magnitude(*i)] };
        compare(&[(got[*i] - want[*i]) as f32], &difference, Tolerance::LOSS).is_err()
    };
    let off: Vec<usize> = (0..got.len()).filter(is_off).collect();
    match off.first() {
        None => Ok(Worst { index: 0, units: 0.0 }),
        Some(&index) => Err(Mismatch::Value {
            count: off.len(),
            index,
            got: got[index] as f32,
            want: want[index],
            magnitude: magnitude(index),
            units: f64::INFINITY,
        }),
    }
}

/// A result against the reference's: integers by equality, numbers by the promise.
///
/// # Errors
/// As [`compare`].
pub fn compare_part(
    role: Role,
    got: &Array<'_>,
    want: &Values,
    promise: Tolerance,
) -> Result<Worst, Mismatch> {
    match role {
        Role::Argmax | Role::Correct => compare_integers(got, want),
        _ => compare(&got.to_f32(), want, promise.stored_as(got.dtype())),
    }
}
