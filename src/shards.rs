//! What goes between shards: of the classes ([`CrossEntropy::shard`](crate::CrossEntropy::shard)), and of the
//! batch. Whatever carries the bytes, these put them together.

use crate::array::Data;
use crate::{Array, DType, Error, Result, Role};

/// The numbers of a partial (`shaders/shared/row_state.wgsl`).
pub(crate) const WORDS: usize = 8;

/// What every shard of the classes told of each row, as the passes that ask for it take it
/// ([`Args::partials`](crate::Args::partials)): `[rows, shards, 8]` of so many `[rows, 1, 8]`, which come in the
/// order of their classes. Several shards that were gathered before, `[rows, n, 8]`, count as n.
///
/// # Errors
/// [`Error::Missing`] for none, [`Error::Shape`] or [`Error::DType`] for an array that is none of these, or
/// has other rows than the first.
pub fn gather(partials: &[Array<'_>]) -> Result<Array<'static>> {
    let op = || "shards::gather".into();
    let first =
        partials.first().ok_or_else(|| Error::Missing { argument: "partials", op: op() })?;
    let rows = first.shape().first().copied().unwrap_or(0);
    let mut parts = Vec::with_capacity(partials.len());
    for part in partials {
        let numbers = f32s(Role::Partials, part)?;
        match *part.shape() {
            [of_part, shards, WORDS] if of_part == rows => parts.push((numbers, shards * WORDS)),
            _ => return Err(unfit(Role::Partials, format!("[{rows}, 1, {WORDS}]"), part)),
        }
    }
    let of_row: usize = parts.iter().map(|(_, words)| words).sum();
    let mut gathered = Vec::with_capacity(rows * of_row);
    for row in 0..rows {
        for (numbers, words) in &parts {
            gathered.extend_from_slice(&numbers[row * words..(row + 1) * words]);
        }
    }
    Array::from_vec(gathered, &[rows, of_row / WORDS, WORDS])
}

/// The divisor of the mean over all shards ([`Args::divisor`](crate::Args::divisor)): the sum of what each
/// told, in their order.
///
/// # Errors
/// [`Error::Missing`] for none, [`Error::Shape`] or [`Error::DType`] for an array that is not one f32.
pub fn sum(divisors: &[Array<'_>]) -> Result<Array<'static>> {
    if divisors.is_empty() {
        return Err(Error::Missing { argument: "divisor", op: "shards::sum".into() });
    }
    let mut sum = 0.0;
    for divisor in divisors {
        match *f32s(Role::Divisor, divisor)? {
            [divisor] => sum += f64::from(divisor),
            _ => return Err(unfit(Role::Divisor, "[]".into(), divisor)),
        }
    }
    Ok(Array::scalar(sum as f32))
}

fn f32s<'a>(role: Role, array: &'a Array<'_>) -> Result<&'a [f32]> {
    match array.data() {
        Data::F32(numbers) => Ok(numbers),
        _ => Err(Error::DType {
            argument: role.name(),
            expected: DType::F32.name().into(),
            actual: array.dtype(),
        }),
    }
}

fn unfit(role: Role, expected: String, array: &Array<'_>) -> Error {
    Error::Shape { argument: role.name(), expected, actual: array.shape().to_vec() }
}
