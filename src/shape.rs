//! Shapes: element counts, the class dimension, broadcasting.

use crate::{DType, Error, Result};

/// Shape and storage type of an argument or a result.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Layout {
    shape: Vec<usize>,
    dtype: DType,
}

impl Layout {
    /// A contiguous, row-major layout.
    pub fn new(shape: &[usize], dtype: DType) -> Self {
        Layout { shape: shape.to_vec(), dtype }
    }

    /// The shape; `[]` is 0-dimensional and has one element.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The storage type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The bytes of the elements.
    pub fn bytes(&self) -> u64 {
        self.elements() as u64 * self.dtype.size() as u64
    }
}

/// The number of elements of a shape.
///
/// # Errors
/// [`Error::Value`] when it does not fit in memory's address range.
pub(crate) fn element_count(argument: &'static str, shape: &[usize]) -> Result<usize> {
    // i64 elements are the widest: 8 bytes each must stay below isize::MAX.
    let limit = isize::MAX as usize / 8;
    let (mut count, mut empty) = (1_usize, false);
    for &size in shape {
        empty |= size == 0;
        count = count.saturating_mul(size.max(1));
    }
    if count > limit {
        return Err(Error::Value {
            argument,
            expected: format!("a shape of at most {limit} elements"),
            actual: format!("{shape:?}"),
        });
    }
    Ok(if empty { 0 } else { count })
}

/// `[C]`, `[N, C]` or `[N, C, d1, ...]` taken apart: rows of C classes, `positions` apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClassShape {
    /// N: 1 when there is no batch dimension.
    pub batch: usize,
    /// C.
    pub classes: usize,
    /// d1 * d2 * ...: also the distance from one class of a row to the next, in elements.
    pub positions: usize,
}

impl ClassShape {
    /// # Errors
    /// [`Error::Shape`] for a 0-dimensional input, or one without classes.
    pub fn of(input: &[usize]) -> Result<Self> {
        let (batch, classes, rest) = match *input {
            [classes] => (1, classes, &[][..]),
            [batch, classes, ref rest @ ..] => (batch, classes, rest),
            [] => (0, 0, &[][..]),
        };
        if classes == 0 {
            return Err(Error::Shape {
                argument: "input",
                expected: "[C], [N, C] or [N, C, d1, ...] with C at least 1".into(),
                actual: input.to_vec(),
            });
        }
        Ok(ClassShape { batch, classes, positions: rest.iter().product() })
    }

    /// The number of rows: N * d1 * d2 * ...
    pub fn rows(&self) -> usize {
        self.batch * self.positions
    }

    /// Whether every group of four classes of every row is whole, contiguous and aligned.
    pub fn loads_vec4(&self) -> bool {
        self.positions == 1 && self.classes.is_multiple_of(4)
    }
}

/// The shape of an input without its class dimension: that of class targets and of losses.
pub(crate) fn without_classes(input: &[usize]) -> Vec<usize> {
    match input {
        [] | [_] => vec![],
        [batch, _, rest @ ..] => [&[*batch], rest].concat(),
    }
}

/// The most dimensions that remain after [`broadcast`] has joined what can be joined.
pub(crate) const MAX_DIMS: usize = 8;

/// One dimension of a joint iteration over an input and tensors broadcast to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Dim<const K: usize> {
    /// The input's size.
    pub size: usize,
    /// Elements from one index to the next in each tensor: 0 where it is broadcast.
    pub strides: [usize; K],
}

/// Lays tensors of the `shapes` over an input by PyTorch's broadcasting rules: aligned at the last
/// dimension, a size of 1 repeats. Neighbouring dimensions that advance alike are joined, innermost
/// first in the result.
///
/// # Errors
/// [`Error::Shape`] when a tensor does not broadcast, or would enlarge the input, or when more
/// than [`MAX_DIMS`] dimensions remain.
pub(crate) fn broadcast<const K: usize>(
    input: &[usize],
    tensors: [(&'static str, &[usize]); K],
) -> Result<Vec<Dim<K>>> {
    for (argument, shape) in tensors {
        let fits = shape.len() <= input.len()
            && shape.iter().rev().zip(input.iter().rev()).all(|(&s, &n)| s == n || s == 1);
        if !fits {
            return Err(Error::Shape {
                argument,
                expected: format!("broadcastable to {input:?}"),
                actual: shape.to_vec(),
            });
        }
    }
    let mut advance = [1_usize; K];
    let mut dims: Vec<Dim<K>> = Vec::new();
    for (i, &size) in input.iter().rev().enumerate() {
        let strides = std::array::from_fn(|k| {
            let shape = tensors[k].1;
            match shape.len().checked_sub(i + 1).map(|d| shape[d]) {
                None | Some(1) => 0,
                Some(own) => {
                    let stride = advance[k];
                    advance[k] *= own;
                    stride
                }
            }
        });
        if size == 1 {
            continue;
        }
        match dims.last_mut() {
            Some(last) if (0..K).all(|k| strides[k] == last.strides[k] * last.size) => {
                last.size *= size;
            }
            _ => dims.push(Dim { size, strides }),
        }
    }
    if dims.len() > MAX_DIMS {
        return Err(Error::Shape {
            argument: tensors.first().map_or("input", |t| t.0),
            expected: format!("broadcast along at most {MAX_DIMS} separate dimensions"),
            actual: input.to_vec(),
        });
    }
    Ok(dims)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts() {
        assert_eq!(element_count("x", &[]), Ok(1));
        assert_eq!(element_count("x", &[3, 0, usize::MAX / 16]).ok(), None);
        assert_eq!(element_count("x", &[3, 0]), Ok(0));
        assert!(element_count("x", &[usize::MAX, 2]).is_err());
    }

    #[test]
    fn classes_of_every_rank() {
        let of = |shape: &[usize]| ClassShape::of(shape).map(|s| (s.batch, s.classes, s.positions));
        assert_eq!(of(&[5]), Ok((1, 5, 1)));
        assert_eq!(of(&[2, 5]), Ok((2, 5, 1)));
        assert_eq!(of(&[2, 5, 3, 4]), Ok((2, 5, 12)));
        assert_eq!(of(&[0, 5]), Ok((0, 5, 1)));
        assert!(of(&[]).is_err());
        assert!(of(&[0]).is_err());
        assert!(of(&[4, 0]).is_err());
        assert_eq!(without_classes(&[5]), []);
        assert_eq!(without_classes(&[2, 5, 3]), [2, 3]);
    }

    /// Every element's place by the joined dimensions against the place by the plain rule.
    #[test]
    fn broadcasting_follows_the_plain_rule() {
        let cases: [(&[usize], &[usize]); 10] = [
            (&[2, 3, 4], &[2, 3, 4]),
            (&[2, 3, 4], &[4]),
            (&[2, 3, 4], &[3, 1]),
            (&[2, 3, 4], &[2, 1, 4]),
            (&[2, 3, 4], &[1, 3, 1]),
            (&[2, 3, 4], &[]),
            (&[2, 3, 4], &[1]),
            (&[2, 1, 4], &[2, 1, 1]),
            (&[], &[]),
            (&[3, 2, 1, 5], &[3, 1, 1, 5]),
        ];
        for (input, shape) in cases {
            let dims = broadcast(input, [("weight", shape)]).unwrap();
            let count: usize = input.iter().product();
            for element in 0..count {
                let (mut rest, mut joined) = (element, 0);
                for dim in &dims {
                    joined += rest % dim.size * dim.strides[0];
                    rest /= dim.size;
                }
                let (mut rest, mut plain, mut stride) = (element, 0, 1);
                for (i, &size) in input.iter().rev().enumerate() {
                    let own = if i < shape.len() { shape[shape.len() - 1 - i] } else { 1 };
                    plain += if own == 1 { 0 } else { rest % size * stride };
                    stride *= own;
                    rest /= size;
                }
                assert_eq!(joined, plain, "{input:?} {shape:?} at {element}");
            }
        }
    }

    #[test]
    fn broadcasting_joins_and_refuses() {
        let full = broadcast(&[2, 3, 4], [("weight", &[2, 3, 4])]).unwrap();
        assert_eq!(full, [Dim { size: 24, strides: [1] }]);
        let none = broadcast(&[2, 3, 4], [("weight", &[])]).unwrap();
        assert_eq!(none, [Dim { size: 24, strides: [0] }]);
        let both = broadcast(&[2, 3, 4], [("weight", &[4]), ("pos_weight", &[])]).unwrap();
        assert_eq!(both.len(), 2);
        assert!(broadcast(&[2, 3], [("weight", &[2])]).is_err());
        assert!(broadcast(&[3], [("weight", &[2, 3])]).is_err());
        assert!(broadcast(&[1], [("weight", &[3])]).is_err());
    }
}
