//! Shapes: element counts, the class dimension, broadcasting.

use std::fmt;

use crate::{DType, Error, Result};

/// What offsets into buffers are aligned to, in bytes: what WebGPU lets a device ask for at most.
/// What is left over is passed to kernels as elements.
pub(crate) const ALIGNMENT: u64 = 256;

/// Shape and storage type of an argument or a result, and where its elements lie in a buffer.
///
/// Elements are row-major and contiguous, but for two things that a caller's buffer may ask for:
/// they may start anywhere in it, and indices of the first dimension may lie further apart than
/// they need to.
///
/// ```
/// use wgloss::{DType, Layout};
///
/// // 512 rows of 50,257 logits, padded to 50,304, after 64 other elements
/// let layout = Layout::new(&[512, 50_257], DType::Bf16).with_offset(64).with_row_stride(50_304);
/// # assert_eq!(layout.row_stride(), 50_304);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Layout {
    shape: Vec<usize>,
    dtype: DType,
    offset: usize,
    row_stride: usize,
}

impl Layout {
    /// A contiguous layout from a buffer's start.
    pub fn new(shape: &[usize], dtype: DType) -> Self {
        let row_stride = inner_elements(shape);
        Layout { shape: shape.to_vec(), dtype, offset: 0, row_stride }
    }

    /// The same, this many elements after the buffer's start.
    pub fn with_offset(mut self, elements: usize) -> Self {
        self.offset = elements;
        self
    }

    /// The same, with this many elements from one index of the first dimension to the next: for
    /// two dimensions and more, and only for arguments and results of the input's shape.
    ///
    /// What lies between the rows is padding, which kernels neither read nor write: it may be other
    /// data of the caller's. A gradient that is written in place leaves there what was there before,
    /// such as logits of padding classes; [`Args::zero_padding`](crate::Args::zero_padding) writes
    /// zeros.
    pub fn with_row_stride(mut self, elements: usize) -> Self {
        self.row_stride = elements;
        self
    }

    /// The same, in another storage type.
    pub(crate) fn with_dtype(mut self, dtype: DType) -> Self {
        self.dtype = dtype;
        self
    }

    /// The shape; `[]` is 0-dimensional and has one element.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The storage type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Elements from the buffer's start to the first one.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Elements from one index of the first dimension to the next.
    pub fn row_stride(&self) -> usize {
        self.row_stride
    }

    /// Whether nothing lies between the elements.
    pub fn is_contiguous(&self) -> bool {
        self.row_stride == inner_elements(&self.shape)
    }

    /// The number of elements; `usize::MAX` for a shape whose elements cannot be counted, which every
    /// op refuses.
    pub fn elements(&self) -> usize {
        product(&self.shape)
    }

    /// The bytes of the elements; `u64::MAX` where they cannot be counted.
    pub fn bytes(&self) -> u64 {
        (self.elements() as u64).saturating_mul(self.dtype.size() as u64)
    }

    /// Elements from the first one to behind the last one, with what lies between them.
    pub(crate) fn span(&self) -> usize {
        match self.shape.first() {
            _ if self.elements() == 0 => 0,
            Some(rows) => (rows - 1) * self.row_stride + inner_elements(&self.shape),
            None => 1,
        }
    }

    /// Bytes from the buffer's start to behind the last element.
    pub(crate) fn buffer_bytes(&self) -> u64 {
        (self.offset as u64 + self.span() as u64) * self.dtype.size() as u64
    }

    /// Bytes from the buffer's start to behind the last row's padding.
    pub(crate) fn padded_bytes(&self) -> u64 {
        let padding = self.row_stride - inner_elements(&self.shape);
        let padding = if self.elements() == 0 { 0 } else { padding as u64 };
        self.buffer_bytes() + padding * self.dtype.size() as u64
    }

    /// Elements from the last byte before the tensor where a binding can begin, on any device, to the
    /// first one.
    pub(crate) fn residual(&self) -> usize {
        self.residual_on(ALIGNMENT)
    }

    /// The same on a device where bindings begin at multiples of so many bytes.
    pub(crate) fn residual_on(&self, alignment: u64) -> usize {
        self.offset % (alignment as usize / self.dtype.size())
    }

    /// Bytes from the buffer's start to where a binding begins that has so many elements before the
    /// first one; none where the tensor begins before that.
    pub(crate) fn start_before(&self, residual: usize) -> Option<u64> {
        Some(self.offset.checked_sub(residual)? as u64 * self.dtype.size() as u64)
    }

    /// Refuses a layout that no array can have, or whose last element cannot be counted.
    pub(crate) fn check(&self, argument: &'static str) -> Result<()> {
        element_count(argument, &self.shape)?;
        if self.is_contiguous() && self.offset == 0 {
            return Ok(());
        }
        let inner = inner_elements(&self.shape);
        let refuse = |expected: String| {
            let actual = format!("{} in {:?}", self.row_stride, self.shape);
            Err(Error::Value { argument, expected, actual })
        };
        if !self.is_contiguous() && self.shape.len() < 2 {
            return refuse("a row stride only of at least two dimensions".into());
        }
        if self.row_stride < inner {
            return refuse(format!("a row stride of at least {inner} elements"));
        }
        let rows = self.shape.first().copied().unwrap_or(1);
        let end = rows.checked_mul(self.row_stride).and_then(|span| span.checked_add(self.offset));
        match end {
            Some(end) if end <= ELEMENT_LIMIT => Ok(()),
            _ => Err(Error::Value {
                argument,
                expected: format!("offset and row stride within {ELEMENT_LIMIT} elements"),
                actual: format!("{} and {}", self.offset, self.row_stride),
            }),
        }
    }
}

/// `f32 [512, 1000]`, and where that lies if not from the start and contiguous.
impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.dtype, self.shape)?;
        if self.offset != 0 {
            write!(f, " from element {}", self.offset)?;
        }
        if !self.is_contiguous() {
            write!(f, ", rows {} apart", self.row_stride)?;
        }
        Ok(())
    }
}

/// Elements of one index of the first dimension.
fn inner_elements(shape: &[usize]) -> usize {
    product(shape.get(1..).unwrap_or_default())
}

/// A shape that cannot be counted is refused later.
fn product(sizes: &[usize]) -> usize {
    sizes.iter().fold(1, |product, &size| product.saturating_mul(size))
}

/// i64 elements are the widest: 8 bytes each must stay below `isize::MAX`.
const ELEMENT_LIMIT: usize = isize::MAX as usize / 8;

/// The number of elements of a shape.
///
/// # Errors
/// [`Error::Value`] when it does not fit in memory's address range.
pub(crate) fn element_count(argument: &'static str, shape: &[usize]) -> Result<usize> {
    let (mut count, mut empty) = (1_usize, false);
    for &size in shape {
        empty |= size == 0;
        count = count.saturating_mul(size.max(1));
    }
    if count > ELEMENT_LIMIT {
        return Err(Error::Value {
            argument,
            expected: format!("a shape of at most {ELEMENT_LIMIT} elements"),
            actual: format!("{shape:?}"),
        });
    }
    Ok(if empty { 0 } else { count })
}

/// `[C]`, `[N, C]` or `[N, C, d1, ...]` taken apart: rows of C classes, `positions` apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassShape {
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

    /// Elements of one index of the batch.
    pub fn batch_elements(&self) -> usize {
        self.classes * self.positions
    }

    /// Elements of a tensor from one index of the batch to the next.
    pub fn batch_stride(&self, layout: &Layout) -> usize {
        // only where the batch is the first dimension may a tensor be otherwise
        if layout.is_contiguous() { self.batch_elements() } else { layout.row_stride() }
    }

    /// Whether every group of four classes of every row is whole, contiguous and aligned in all of
    /// these tensors.
    pub fn loads_vec4<'a>(&self, tensors: impl IntoIterator<Item = &'a Layout>) -> bool {
        let is_aligned = |tensor: &Layout| {
            tensor.residual().is_multiple_of(4) && self.batch_stride(tensor).is_multiple_of(4)
        };
        self.positions == 1 && self.classes.is_multiple_of(4) && tensors.into_iter().all(is_aligned)
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
    let dims = joined(input, tensors.map(|tensor| tensor.1));
    if dims.len() > MAX_DIMS {
        // the one that would have the most on its own
        let worst = tensors.into_iter().max_by_key(|(_, shape)| joined(input, [shape]).len());
        let (argument, shape) = worst.unwrap_or(("input", input));
        return Err(Error::Shape {
            argument,
            expected: format!("broadcast along at most {MAX_DIMS} separate dimensions"),
            actual: shape.to_vec(),
        });
    }
    Ok(dims)
}

/// The dimensions of [`broadcast`], however many.
fn joined<const K: usize>(input: &[usize], shapes: [&[usize]; K]) -> Vec<Dim<K>> {
    let mut advance = [1_usize; K];
    let mut dims: Vec<Dim<K>> = Vec::new();
    for (i, &size) in input.iter().rev().enumerate() {
        let strides = std::array::from_fn(|k| {
            let shape = shapes[k];
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
    dims
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
    fn layouts_that_cannot_be_counted() {
        let layout = |shape: &[usize]| Layout::new(shape, DType::F32);
        assert_eq!(layout(&[usize::MAX, 2]).elements(), usize::MAX);
        assert_eq!(layout(&[usize::MAX, 2]).bytes(), u64::MAX);
        assert_eq!(layout(&[usize::MAX / 2]).bytes(), u64::MAX);
        assert_eq!(layout(&[usize::MAX, 2, 0]).bytes(), 0);
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
        // the tensor that cannot be joined is named, whichever else there is
        let own = [2, 1].repeat(9);
        for other in [&[][..], &[2; 18], &[2, 1]] {
            let error = broadcast(&[2; 18], [("weight", other), ("pos_weight", &own)]).unwrap_err();
            let text = format!(
                "pos_weight: expected shape broadcast along at most 8 separate dimensions, got \
                 {own:?}"
            );
            assert_eq!(error.to_string(), text);
        }
    }
}
