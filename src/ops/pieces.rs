//! How tensors of rows of classes are cut to what one dispatch can bind.

use crate::limits::{Limits, Split};
use crate::program::{Binding, Copy, Port, Program, View, chunks};
use crate::shape::{ClassShape, Layout};
use crate::{Error, Result};

/// A tensor with an element for each of the input's.
#[derive(Debug, Clone)]
pub struct RowTensor {
    pub port: Port,
    pub view: View,
    /// Whether the kernel reads it. In place, the gradient is read too.
    pub is_read: bool,
}

/// The rows of one dispatch, and where it finds them.
#[derive(Debug, Clone)]
pub struct Piece {
    /// The first row among all, counted over `[N, d1, ...]`.
    pub first_row: u64,
    pub rows: u64,
    /// How far the classes of a row lie apart.
    pub positions: u64,
    /// Where the tensors are, in the order in which they were given.
    pub bindings: Vec<Binding>,
    /// What has to be copied before and after the dispatch.
    pub before: Vec<Copy>,
    pub after: Vec<Copy>,
}

/// Cuts rows into pieces: so many indices of the batch as bindings hold. Where they hold not even
/// one, whose classes lie apart, its positions are cut: chunks of them are copied from each class
/// into scratch memory, worked on there, and results copied back.
///
/// `bytes_per_row` are those of the largest tensor that has a few numbers for each row.
///
/// # Errors
/// [`Error::TooLarge`] where bindings do not hold one row, or where 16-bit elements lie at odd
/// places, which copies cannot reach.
pub fn pieces(
    program: &mut Program,
    shape: ClassShape,
    tensors: &[RowTensor],
    bytes_per_row: u64,
) -> Result<Vec<Piece>> {
    let (positions, batch) = (shape.positions as u64, shape.batch as u64);
    let size_of = |layout: &Layout| layout.dtype().size() as u64;
    let batch_stride = |layout: &Layout| shape.batch_stride(layout) as u64;
    let rows = tensors.iter().map(|RowTensor { view: View { layout, .. }, .. }| {
        let row = shape.batch_elements() as u64 * size_of(layout);
        ("one row of input", [batch_stride(layout) * size_of(layout), row])
    });
    let results = ("one row of results", [positions * bytes_per_row; 2]);
    let counts = [batch, shape.batch_elements() as u64];
    match Split::by_rows(&program.limits, counts, rows.chain([results])) {
        Ok(split) => Ok(split
            .chunks()
            .map(|chunk| Piece {
                first_row: chunk.first_row * positions,
                rows: chunk.rows * positions,
                positions,
                bindings: tensors
                    .iter()
                    .map(|RowTensor { port, view, .. }| {
                        Binding::part(*port, view, chunk.range(batch_stride(&view.layout)))
                    })
                    .collect(),
                before: vec![],
                after: vec![],
            })
            .collect()),
        Err(error @ Error::TooLarge { .. }) if positions > 1 => {
            staged(program, shape, tensors, bytes_per_row, error)
        }
        Err(error) => Err(error),
    }
}

/// Pieces that are copied to scratch memory: of one index of the batch, some positions.
fn staged(
    program: &mut Program,
    shape: ClassShape,
    tensors: &[RowTensor],
    bytes_per_row: u64,
    too_large: Error,
) -> Result<Vec<Piece>> {
    let (positions, classes) = (shape.positions as u64, shape.classes as u64);
    // copies are in units of four bytes
    let is_aligned = |RowTensor { view: View { layout, .. }, .. }: &RowTensor| {
        let stride = shape.batch_stride(layout) as u64;
        let all_even = [positions, layout.offset() as u64, stride].iter().all(|n| n % 2 == 0);
        layout.dtype().size() == 4 || all_even
    };
    let Some(per_piece) = positions_per_piece(&program.limits, classes, tensors, bytes_per_row)
        .filter(|_| tensors.iter().all(is_aligned))
    else {
        return Err(too_large);
    };
    // every piece uses the same memory: the device works on one after the other
    let scratch: Vec<_> = tensors
        .iter()
        .map(|RowTensor { view, .. }| {
            let elements = classes as usize * per_piece.min(positions) as usize;
            program.scratch(Layout::new(&[elements], view.layout.dtype()))
        })
        .collect();
    let mut pieces = Vec::new();
    for image in 0..shape.batch as u64 {
        for [first, count] in chunks(positions, per_piece) {
            let mut piece = Piece {
                first_row: image * positions + first,
                rows: count,
                positions: count,
                bindings: vec![],
                before: vec![],
                after: vec![],
            };
            for (tensor, scratch) in tensors.iter().zip(&scratch) {
                let RowTensor { port, view, is_read } = tensor;
                piece.bindings.push(Binding::part(*port, scratch, [0, classes * count, 0]));
                let size = view.layout.dtype().size() as u64;
                let start = image * shape.batch_stride(&view.layout) as u64 + first;
                for class in 0..classes {
                    let there = (start + class * positions) * size;
                    let (here, bytes) = (class * count * size, count * size);
                    let (tensor, scratch) = (view.slot, scratch.slot);
                    if *is_read {
                        piece.before.push(Copy {
                            from: tensor,
                            from_offset: there,
                            to: scratch,
                            to_offset: here,
                            bytes,
                        });
                    }
                    if port.writes {
                        piece.after.push(Copy {
                            from: scratch,
                            from_offset: here,
                            to: tensor,
                            to_offset: there,
                            bytes,
                        });
                    }
                }
            }
            pieces.push(piece);
        }
    }
    Ok(pieces)
}

/// How many positions a piece has, so that bindings hold all classes of each; a multiple of 64, so
/// that the classes of every tensor start at whole cache lines. `None` where that is too many.
fn positions_per_piece(
    limits: &Limits,
    classes: u64,
    tensors: &[RowTensor],
    bytes_per_row: u64,
) -> Option<u64> {
    // memory beyond what the caller has given: not much of it
    const SCRATCH_BYTES: u64 = 1 << 26;
    let most = limits.chunk_bytes().min(SCRATCH_BYTES);
    let of_tensors = tensors.iter().map(|t| classes * t.view.layout.dtype().size() as u64);
    let bytes = of_tensors.chain([bytes_per_row]).max()?;
    Some(most / bytes.max(1) / 64 * 64).filter(|&positions| positions > 0)
}
