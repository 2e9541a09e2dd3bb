//! Linear cross entropy: products, and the losses of their rows.
//!
//! Rows are worked on in blocks. A block's logits are one product, of tiles of classes; the code of
//! cross entropy turns them into their gradient in place; and of that come the block's gradient, as
//! one product, and what the block adds to the projection's, as another. What is added up, and in which
//! order, follows from sizes alone, so results do not depend on the number of threads.

use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2, Axis};

use super::math::vectorized;
use super::rows::{Asked, Losses, RowResults};
use super::storage::{Stored, as_f32, slice, slice_mut, slice_of, take, with_stored, write_f32};
use super::threads;
use crate::ops::{LinearCrossEntropy, LinearShape};
use crate::shape::ClassShape;
use crate::{Args, Array, DType, Error, Output, Result, Role};

/// About how many logits a block has: they fit a last cache, and there are enough rows for a
/// projection to be read seldom.
const BLOCK: usize = 1 << 22;

/// The fewest rows of a block, unless memory for them or rows themselves are fewer.
const LEAST_ROWS: usize = 256;

/// The most rows of a block.
const MOST_ROWS: usize = 512;

/// About how many classes a product takes at a time.
const TILE: usize = 512;

/// About how many it takes where classes are few, so that there are tasks for several threads.
const SMALL_TILE: usize = 256;

/// About how many rows a task has for which it computes the logits of a tile.
const TASK_ROWS: usize = 256;

/// Elements of a task that only copies or adds up.
const ELEMENTS: usize = 1 << 16;

/// Into how many parts the classes are divided, at most. Each part adds up the terms of its own classes
/// to the gradient of the input.
const MOST_PARTS: usize = 32;

/// Computes [`LinearCrossEntropy`] over arrays that the op's checks have passed.
pub(crate) fn linear_cross_entropy(
    op: &LinearCrossEntropy,
    args: &Args<Array<'_>>,
    output: &mut Output<Array<'static>>,
) -> Result<()> {
    with_stored!(args.input().dtype(), run::<_>(op, args, output))
}

/// How rows and classes are divided.
#[derive(Debug, Clone, Copy)]
struct Blocks {
    /// Rows of a block; the last one may have fewer.
    rows: usize,
    /// Rows of a task of logits; the last one of a block may have fewer.
    rows_per_task: usize,
    /// Classes of a tile; the last one may have fewer.
    tile: usize,
    /// Tiles of a part; the last one may have fewer.
    tiles_per_part: usize,
}

impl Blocks {
    fn of(shape: LinearShape, workspace_bytes: i64) -> Self {
        let LinearShape { rows, dims, classes } = shape;
        // As many tiles as a power of two, if they are few, are shared by threads evenly. All are as large.
        let small = classes.div_ceil(SMALL_TILE).next_power_of_two().min(MOST_PARTS);
        let tiles = classes.div_ceil(TILE).max(small);
        let tile = classes.div_ceil(tiles);
        let tiles = classes.div_ceil(tile);
        // the sums of all parts take less memory than logits
        let parts = (classes / (2 * dims)).clamp(1, MOST_PARTS);
        let tiles_per_part = tiles.div_ceil(parts);
        let parts = tiles.div_ceil(tiles_per_part);

        let numbers = usize::try_from(workspace_bytes).unwrap_or(usize::MAX) / size_of::<f32>();
        let most = numbers / (classes + parts * dims + dims);
        let rows_of_block = (BLOCK / classes).clamp(LEAST_ROWS, MOST_ROWS).min(most).max(1);
        // so are blocks
        let blocks = rows.div_ceil(rows_of_block).max(1);
        let rows = rows.div_ceil(blocks).max(1);
        let rows_per_task = rows.div_ceil(rows.div_ceil(TASK_ROWS));
        Blocks { rows, rows_per_task, tile, tiles_per_part }
    }

    fn classes_per_part(&self) -> usize {
        self.tile * self.tiles_per_part
    }
}

fn run<T: Stored>(
    op: &LinearCrossEntropy,
    args: &Args<Array<'_>>,
    output: &mut Output<Array<'static>>,
) -> Result<()> {
    let shape = LinearShape::of(&args.layouts())?;
    let LinearShape { rows, dims, classes } = shape;
    let blocks = Blocks::of(shape, op.workspace_bytes);
    let Some(projection) = args.get(Role::Projection) else { return Ok(()) };
    let layer = Layer {
        dims,
        blocks,
        projection: slice::<T>(projection)?,
        bias: slice_of(args.get(Role::Bias))?,
    };
    let input = slice::<T>(args.input())?;
    let is_asked = |role| output.get(role).is_some();
    let has_grad = [Role::Grad, Role::GradProjection, Role::GradBias].into_iter().any(is_asked);
    let of_rows = ClassShape { batch: rows, classes, positions: 1 };
    let asked = Asked::of(&op.loss, output, has_grad);
    let losses = Losses::<f32>::of(&op.loss, args, of_rows, true, asked)?;

    let [grad, grad_projection, grad_bias, places @ ..] = output.places([
        Role::Grad,
        Role::GradProjection,
        Role::GradBias,
        Role::Loss,
        Role::State,
        Role::Partials,
        Role::LogSumExp,
        Role::Argmax,
        Role::Correct,
        Role::Entropy,
    ])?;
    let mut results = RowResults::of(op.loss.reduction, places)?;
    let mut grad = slice_mut::<T>(grad)?;
    // a gradient that is stored in 16 bits is added up in f32 first
    let is_narrow = grad_projection.as_ref().is_some_and(|grad| grad.dtype() != DType::F32);
    let mut wide = if is_narrow { vec![0.0; classes * dims] } else { vec![] };
    let (to_projection, narrow) = match is_narrow {
        true => (Some(&mut wide[..]), slice_mut::<T>(grad_projection)?),
        false => (slice_mut::<f32>(grad_projection)?, None),
    };
    let is_empty = rows == 0;
    let mut of_projection = Sums::begin(to_projection, args.get(Role::GradProjection), is_empty)?;
    let mut of_bias =
        Sums::begin(slice_mut::<f32>(grad_bias)?, args.get(Role::GradBias), is_empty)?;

    let memory = |is_needed, numbers: usize| vec![0.0; if is_needed { numbers } else { 0 }];
    let reads_rows = losses.reads_rows();
    let mut logits = memory(reads_rows, blocks.rows * classes);
    let mut copy = memory(T::DTYPE != DType::F32, blocks.rows * dims);
    let mut partial_sums = memory(grad.is_some(), layer.parts() * blocks.rows * dims);
    let mut sum = 0.0;
    for first in (0..rows).step_by(blocks.rows) {
        let count = blocks.rows.min(rows - first);
        let of_block = first..first + count;
        if !reads_rows {
            sum += losses.of_block(of_block, &mut [], results.take(count));
            continue;
        }
        let hidden = as_f32(&input[first * dims..(first + count) * dims], &mut copy);
        let hidden = matrix(hidden, dims)?;
        let logits = &mut logits[..count * classes];
        layer.write_logits(hidden, logits)?;
        sum += losses.of_block(of_block, logits, results.take(count));
        if !has_grad {
            continue;
        }
        let grad = take(&mut grad, count * dims);
        let partial_sums = &mut partial_sums[..grad.iter().len() * layer.parts() * count * dims];
        layer.add_gradients(hidden, logits, &mut of_projection, &mut of_bias, partial_sums)?;
        if let Some(grad) = grad {
            write_sums(partial_sums, grad);
        }
    }
    if let Some(narrow) = narrow {
        let tasks = narrow.chunks_mut(ELEMENTS).zip(wide.chunks(ELEMENTS));
        threads::run(tasks, |(to, from)| T::write(from, to));
    }
    losses.write_total(sum, output)
}

/// The linear layer that logits come of. `T` is how its weights are stored.
struct Layer<'a, T> {
    dims: usize,
    blocks: Blocks,
    projection: &'a [T],
    bias: Option<&'a [f32]>,
}

/// Sums that every block of rows adds to, if they are asked for.
struct Sums<'a> {
    sums: Option<&'a mut [f32]>,
    /// Whether there is something to add to. Otherwise the first block is stored.
    has_begun: bool,
}

impl<'a> Sums<'a> {
    /// Sums that begin with what is given, or with nothing.
    fn begin(
        mut sums: Option<&'a mut [f32]>,
        given: Option<&Array<'_>>,
        is_empty: bool,
    ) -> Result<Self> {
        let given = slice_of::<f32>(given)?;
        if let Some(sums) = &mut sums {
            match given {
                Some(given) => {
                    let tasks = sums.chunks_mut(ELEMENTS).zip(given.chunks(ELEMENTS));
                    threads::run(tasks, |(to, from)| to.copy_from_slice(from));
                }
                None if is_empty => sums.fill(0.0),
                None => {}
            }
        }
        Ok(Sums { sums, has_begun: given.is_some() })
    }

    /// A part of so many numbers for each task, and what they are multiplied by before a block's are
    /// added.
    fn parts(&mut self, numbers: usize) -> (impl Iterator<Item = Option<&mut [f32]>>, f32) {
        let factor = if std::mem::replace(&mut self.has_begun, true) { 1.0 } else { 0.0 };
        (parts(self.sums.as_deref_mut(), numbers), factor)
    }
}

/// Parts of so many numbers, or `None` again and again.
fn parts<T>(mut numbers: Option<&mut [T]>, count: usize) -> impl Iterator<Item = Option<&mut [T]>> {
    std::iter::repeat_with(move || {
        let count = numbers.as_ref().map_or(0, |numbers| count.min(numbers.len()));
        take(&mut numbers, count)
    })
}

/// Some classes of some rows: what a task writes logits of.
struct Tile<'a> {
    first_class: usize,
    hidden: ArrayView2<'a, f32>,
    to: ArrayViewMut2<'a, f32>,
}

/// The classes of a task, and where it adds their share of the gradients.
struct Part<'a, T> {
    projection: &'a [T],
    /// The gradient of their logits.
    gradient: ArrayView2<'a, f32>,
    of_projection: Option<&'a mut [f32]>,
    of_bias: Option<&'a mut [f32]>,
    of_input: Option<&'a mut [f32]>,
}

impl<T: Stored> Layer<'_, T> {
    fn classes(&self) -> usize {
        self.projection.len() / self.dims
    }

    fn parts(&self) -> usize {
        self.classes().div_ceil(self.blocks.classes_per_part())
    }

    /// Memory for a tile of the projection, if it is not f32.
    fn tile_memory(&self) -> Vec<f32> {
        vec![0.0; if T::DTYPE == DType::F32 { 0 } else { self.blocks.tile * self.dims }]
    }

    /// Writes the logits of a block of rows. A task has a tile of the classes of some rows.
    fn write_logits(&self, hidden: ArrayView2<'_, f32>, logits: &mut [f32]) -> Result<()> {
        let Blocks { tile, rows_per_task, .. } = self.blocks;
        let logits = matrix_mut(logits, self.classes())?;
        let hidden = hidden.axis_chunks_iter(Axis(0), rows_per_task);
        let mut tasks = Vec::new();
        for (to, hidden) in split(logits, Axis(0), rows_per_task).into_iter().zip(hidden) {
            let tiles = split(to, Axis(1), tile).into_iter().enumerate();
            tasks.extend(tiles.map(|(i, to)| Tile { first_class: i * tile, hidden, to }));
        }
        let run = |copy: &mut Vec<f32>, Tile { first_class, hidden, mut to }: Tile<'_>| {
            let classes = first_class..first_class + to.ncols();
            let projection = &self.projection[classes.start * self.dims..classes.end * self.dims];
            let projection = matrix(as_f32(projection, copy), self.dims)?;
            general_mat_mul(1.0, &hidden, &projection.t(), 0.0, &mut to);
            if let Some(bias) = self.bias {
                let bias = &bias[classes];
                for mut row in to.rows_mut() {
                    let row = row.as_slice_mut().ok_or_else(scattered)?;
                    vectorized!(add(bias, row));
                }
            }
            Ok(())
        };
        threads::run_with(tasks, || self.tile_memory(), run).into_iter().collect()
    }

    /// Adds what a block of rows has for the gradients of projection and bias, and writes the gradient of
    /// its input as a sum for each part of the classes, where there is memory for them. A task has a part.
    fn add_gradients(
        &self,
        hidden: ArrayView2<'_, f32>,
        gradient: &[f32],
        of_projection: &mut Sums<'_>,
        of_bias: &mut Sums<'_>,
        partial_sums: &mut [f32],
    ) -> Result<()> {
        let Blocks { tile, .. } = self.blocks;
        let (dims, classes) = (self.dims, self.blocks.classes_per_part());
        let gradient = matrix(gradient, self.classes())?;
        let (of_projection, projection_factor) = of_projection.parts(classes * dims);
        let (of_bias, bias_factor) = of_bias.parts(classes);
        let of_input = (!partial_sums.is_empty()).then_some(partial_sums);
        let of_input = parts(of_input, hidden.len());
        let tasks: Vec<_> = self
            .projection
            .chunks(classes * dims)
            .zip(gradient.axis_chunks_iter(Axis(1), classes))
            .zip(of_projection.zip(of_bias).zip(of_input))
            .map(|((projection, gradient), ((of_projection, of_bias), of_input))| Part {
                projection,
                gradient,
                of_projection,
                of_bias,
                of_input,
            })
            .collect();
        let run = |copy: &mut Vec<f32>, mut part: Part<'_, T>| {
            let mut input_factor = 0.0;
            let tiles = part.projection.chunks(tile * dims);
            for (projection, gradient) in tiles.zip(part.gradient.axis_chunks_iter(Axis(1), tile)) {
                if let Some(sums) = take(&mut part.of_projection, projection.len()) {
                    let mut sums = matrix_mut(sums, dims)?;
                    general_mat_mul(1.0, &gradient.t(), &hidden, projection_factor, &mut sums);
                }
                if let Some(sums) = take(&mut part.of_bias, gradient.ncols()) {
                    add_rows(gradient, bias_factor, sums)?;
                }
                if let Some(sums) = &mut part.of_input {
                    let projection = matrix(as_f32(projection, copy), dims)?;
                    let mut sums = matrix_mut(sums, dims)?;
                    general_mat_mul(1.0, &gradient, &projection, input_factor, &mut sums);
                    input_factor = 1.0;
                }
            }
            Ok(())
        };
        threads::run_with(tasks, || self.tile_memory(), run).into_iter().collect()
    }
}

/// Adds the rows of a matrix to sums that are multiplied by a factor of 0 or 1 first.
fn add_rows(matrix: ArrayView2<'_, f32>, factor: f32, sums: &mut [f32]) -> Result<()> {
    let mut of_rows = vec![0.0; sums.len()];
    for row in matrix.rows() {
        let row = row.to_slice().ok_or_else(scattered)?;
        vectorized!(add(row, &mut of_rows));
    }
    match factor {
        0.0 => sums.copy_from_slice(&of_rows),
        _ => add(&of_rows, sums),
    }
    Ok(())
}

fn scattered() -> Error {
    Error::Internal("the numbers of a row of a matrix are apart".into())
}

#[inline(always)]
fn add(from: &[f32], to: &mut [f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

/// Writes the sum of sums that lie one after the other.
fn write_sums<T: Stored>(sums: &[f32], to: &mut [T]) {
    let count = to.len();
    let tasks = to.chunks_mut(ELEMENTS).enumerate();
    threads::run_with(tasks, Vec::new, |copy, (task, to)| {
        let length = to.len();
        copy.resize(if T::DTYPE == DType::F32 { 0 } else { length }, 0.0);
        let each = (task * ELEMENTS..sums.len()).step_by(count);
        let mut each = each.map(|first| &sums[first..first + length]);
        let (first, others) = (each.next().unwrap_or_default(), each);
        write_f32(to, copy, |to| {
            to.copy_from_slice(first);
            others.for_each(|sums| vectorized!(add(sums, to)));
        });
    });
}

/// A matrix of rows that lie one after the other.
fn matrix(numbers: &[f32], columns: usize) -> Result<ArrayView2<'_, f32>> {
    let shape = (numbers.len() / columns, columns);
    ArrayView2::from_shape(shape, numbers).map_err(|error| Error::Internal(error.to_string()))
}

/// As [`matrix`], to write.
fn matrix_mut(numbers: &mut [f32], columns: usize) -> Result<ArrayViewMut2<'_, f32>> {
    let shape = (numbers.len() / columns, columns);
    ArrayViewMut2::from_shape(shape, numbers).map_err(|error| Error::Internal(error.to_string()))
}

/// The pieces of a matrix that are so long along an axis; the last one may be shorter.
fn split(
    mut from: ArrayViewMut2<'_, f32>,
    axis: Axis,
    length: usize,
) -> Vec<ArrayViewMut2<'_, f32>> {
    let mut pieces = Vec::with_capacity(from.len_of(axis).div_ceil(length));
    while from.len_of(axis) > length {
        let (piece, rest) = from.split_at(axis, length);
        pieces.push(piece);
        from = rest;
    }
    pieces.push(from);
    pieces
}
