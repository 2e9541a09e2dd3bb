//! Rows of classes, and the tiles of a few rows that they are worked on in.

use std::iter::repeat_with;
use std::ops::Range;

use fearless_simd::{Level, Simd, SimdBase, dispatch, f32x16};

use super::math::{LANES, Lanes};
use super::storage::{Stored, as_f32, take, write_f32};
use crate::shape::ClassShape;

/// The most classes of which the rows of a tile lie in lanes: longer ones fill vectors themselves.
const FEW_CLASSES: usize = 32;

/// About how many elements a tile has, if it has several rows: so few that it is read again from
/// a near cache.
const TILE: usize = 1 << 14;

/// About how many elements a task has. A sum is that of its tasks, in order, whatever the number of
/// threads.
const TASK: usize = 1 << 15;

/// How rows lie in tiles. A tile has up to [`LANES`] rows, so that what is known of its rows is one
/// number a lane.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tiling {
    shape: ClassShape,
    /// Whether a tile has a vector for each class, with a row in each lane. Otherwise its rows lie
    /// one after the other.
    pub by_lane: bool,
    /// How many rows a tile has; the last one of a task may have fewer.
    rows: usize,
    /// Whether tiles are written over those that they are made of, so that none may write past its end.
    in_place: bool,
}

/// What a task writes of a tensor of the input's shape.
pub(super) struct Piece<'a, T> {
    /// One slice with all of its rows; or where classes lie far apart, a slice of neighbouring
    /// positions for each class.
    slices: Vec<&'a mut [T]>,
}

impl Tiling {
    pub fn of(shape: ClassShape) -> Self {
        let ClassShape { classes, positions, .. } = shape;
        let by_lane = positions >= LANES || classes <= FEW_CLASSES;
        let rows = if by_lane { LANES } else { (TILE / classes).clamp(1, LANES) };
        Tiling { shape, by_lane, rows, in_place: false }
    }

    /// The same for a block of so many rows, whose classes lie one after the other, and whether it is
    /// written over.
    pub fn of_block(self, rows: usize, in_place: bool) -> Self {
        let shape = ClassShape { batch: rows, ..self.shape };
        Tiling { shape, in_place, ..self }
    }

    pub fn classes(&self) -> usize {
        self.shape.classes
    }

    /// Memory for a tile, and where its rows have to be transposed, for the rows as they lie in the
    /// tensor.
    pub fn memory(&self, fill: f32) -> Vec<f32> {
        let tile = self.rows * self.shape.classes;
        vec![
            fill;
            if self.is_transposed() { tile + transposed_len(self.shape.classes) } else { tile }
        ]
    }

    /// The index in a tile of a class of its `row`-th row.
    #[inline(always)]
    pub fn index(&self, row: usize, class: usize) -> usize {
        if self.by_lane { class * LANES + row } else { row * self.shape.classes + class }
    }

    /// A number for each class, laid out as a tile's rows are. Where these lie one after the
    /// other, one row serves for all.
    pub fn by_class(&self, number: impl Fn(usize) -> f32) -> Vec<f32> {
        let repeated = if self.by_lane { LANES } else { 1 };
        let classes = 0..self.shape.classes;
        classes.flat_map(|class| std::iter::repeat_n(number(class), repeated)).collect()
    }

    /// Whether positions are so many that they are divided among tasks.
    fn has_columns(&self) -> bool {
        self.shape.positions >= LANES
    }

    /// Whether a tile's numbers lie in memory as they do in the tile.
    fn is_contiguous(&self) -> bool {
        !self.by_lane && self.shape.positions == 1
    }

    /// Whether a tile has rows in lanes that lie one after the other in memory.
    fn is_transposed(&self) -> bool {
        self.by_lane && self.shape.positions == 1
    }

    /// The rows of each task, in order. A task has whole tiles, and indices of the batch are
    /// divided among tasks only where these have columns.
    pub fn tasks(&self) -> Vec<Range<usize>> {
        let ClassShape { classes, positions, .. } = self.shape;
        let per_task = TASK.div_ceil(classes.max(1));
        let (run, per_task) = match self.has_columns() {
            true => (positions, per_task.next_multiple_of(self.rows)),
            false => (self.shape.rows(), per_task.next_multiple_of(self.rows * positions.max(1))),
        };
        let runs = (0..self.shape.rows()).step_by(run.max(1));
        runs.flat_map(|first| {
            let end = first + run;
            let starts = (first..end).step_by(per_task);
            starts.map(move |start| start..end.min(start + per_task))
        })
        .collect()
    }

    /// Divides a tensor of the input's shape among the tasks. Each gets `None` where there is no
    /// tensor.
    pub fn pieces<'a, T>(
        &self,
        mut tensor: Option<&'a mut [T]>,
        tasks: &[Range<usize>],
    ) -> Vec<Option<Piece<'a, T>>> {
        let ClassShape { classes, positions, .. } = self.shape;
        if !self.has_columns() {
            let piece = |rows: &Range<usize>| take(&mut tensor, rows.len() * classes);
            let slices = tasks.iter().map(piece);
            return slices.map(|slice| slice.map(|slice| Piece { slices: vec![slice] })).collect();
        }
        let Some(tensor) = tensor else { return repeat_with(|| None).take(tasks.len()).collect() };
        let mut pieces = Vec::with_capacity(tasks.len());
        let per_batch = tasks.iter().take_while(|rows| rows.start < positions).count();
        let batches =
            tensor.chunks_mut((classes * positions).max(1)).zip(tasks.chunks(per_batch.max(1)));
        for (batch, tasks) in batches {
            let first = pieces.len();
            pieces.extend(tasks.iter().map(|_| Piece { slices: Vec::with_capacity(classes) }));
            for class in batch.chunks_mut(positions) {
                let mut class = Some(class);
                for (rows, piece) in tasks.iter().zip(&mut pieces[first..]) {
                    piece.slices.extend(take(&mut class, rows.len()));
                }
            }
        }
        pieces.into_iter().map(Some).collect()
    }

    /// The rows of each tile of a task.
    pub fn tiles(&self, task: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        let (rows, end) = (self.rows, task.end);
        task.step_by(rows).map(move |first| first..end.min(first + rows))
    }

    /// How many numbers a tile of so many rows has, those of lanes without a row included.
    fn numbers_of(&self, rows: usize) -> usize {
        self.shape.classes * if self.by_lane { LANES } else { rows }
    }

    /// The numbers of rows of a tensor, laid out as a tile: the memory itself, or a copy. Lanes
    /// without a row keep what was in the copy before.
    pub fn load<'a, T: Stored>(
        &self,
        from: &'a [T],
        rows: &Range<usize>,
        copy: &'a mut [f32],
    ) -> &'a [f32] {
        let ClassShape { classes, positions, .. } = self.shape;
        if self.is_contiguous() {
            return as_f32(&from[rows.start * classes..rows.end * classes], copy);
        }
        let (copy, flat) = copy.split_at_mut(self.numbers_of(rows.len()));
        if self.is_transposed() {
            let past = (rows.end * classes + LANES).min(from.len());
            let rows = as_f32(&from[rows.start * classes..past], flat);
            rows_to_lanes(classes, rows, copy);
            return copy;
        }
        if self.has_columns() {
            let (batch, position) = (rows.start / positions, rows.start % positions);
            let by_class = from[batch * classes * positions + position..].chunks(positions);
            for (to, class) in copy.as_chunks_mut::<LANES>().0.iter_mut().zip(by_class) {
                T::read(&class[..rows.len()], &mut to[..rows.len()]);
            }
            return copy;
        }
        for (row, numbers) in rows.clone().map(|row| &from[self.first(row)..]).enumerate() {
            let numbers = numbers.iter().step_by(positions).take(classes);
            match self.by_lane {
                true => {
                    let to = copy.as_chunks_mut::<LANES>().0.iter_mut();
                    to.zip(numbers).for_each(|(to, number)| to[row] = number.to_f32());
                }
                false => {
                    let to = copy[row * classes..].iter_mut();
                    to.zip(numbers).for_each(|(to, number)| *to = number.to_f32());
                }
            }
        }
        copy
    }

    /// As [`Tiling::load`], but always a copy, of rows that a task will write over. Their classes lie one
    /// after the other, and they are counted from the task's first.
    pub fn load_copy<'a, T: Stored>(
        &self,
        from: &Piece<'_, T>,
        rows: &Range<usize>,
        copy: &'a mut [f32],
    ) -> &'a [f32] {
        let classes = self.shape.classes;
        let from = &*from.slices[0];
        match self.is_contiguous() {
            true => {
                let from = &from[rows.start * classes..rows.end * classes];
                T::read(from, &mut copy[..from.len()]);
            }
            false => {
                self.load(from, rows, copy);
            }
        }
        &copy[..self.numbers_of(rows.len())]
    }

    /// Calls `write` with a tile to write, and brings it into memory: directly, or by way of a
    /// copy. Without a tensor the copy alone is written. Rows are counted from the task's first.
    pub fn write<T: Stored, R>(
        &self,
        to: Option<&mut Piece<'_, T>>,
        rows: Range<usize>,
        copy: &mut [f32],
        write: impl FnOnce(&mut [f32]) -> R,
    ) -> R {
        let ClassShape { classes, positions, .. } = self.shape;
        let count = self.numbers_of(rows.len());
        let Some(Piece { slices }) = to else { return write(&mut copy[..count]) };
        if self.is_contiguous() {
            let to = &mut slices[0][rows.start * classes..rows.end * classes];
            return write_f32(to, copy, write);
        }
        let (copy, flat) = copy.split_at_mut(count);
        let result = write(copy);
        if self.is_transposed() {
            // what is written past this tile is overwritten by the task's next tile
            let past = rows.end * classes + if self.in_place { 0 } else { LANES };
            let past = past.min(slices[0].len());
            let to = &mut slices[0][rows.start * classes..past];
            write_f32(to, flat, |to| lanes_to_rows(classes, copy, to));
            return result;
        }
        if self.has_columns() {
            for (class, from) in slices.iter_mut().zip(copy.as_chunks::<LANES>().0) {
                T::write(&from[..rows.len()], &mut class[rows.clone()]);
            }
            return result;
        }
        for (row, first) in rows.map(|row| self.first(row)).enumerate() {
            let to = slices[0][first..].iter_mut().step_by(positions).take(classes);
            match self.by_lane {
                true => {
                    let from = copy.as_chunks::<LANES>().0;
                    to.zip(from).for_each(|(to, from)| *to = T::from_f32(from[row]));
                }
                false => {
                    let from = &copy[row * classes..];
                    to.zip(from).for_each(|(to, number)| *to = T::from_f32(*number));
                }
            }
        }
        result
    }

    /// The index of a row's first number, among those of all rows or of a task's.
    fn first(&self, row: usize) -> usize {
        let ClassShape { classes, positions, .. } = self.shape;
        row / positions * classes * positions + row % positions
    }
}

/// How many numbers the transposition of a tile reads and writes: its rows, and the remainder of
/// the vector that the last row ends in.
const fn transposed_len(classes: usize) -> usize {
    LANES * classes + LANES
}

/// Where the vectors begin in which a row is transposed. The last vector of a long row overlaps the
/// one before it; that of a short row reaches into the next row.
#[inline(always)]
fn vectors(classes: usize) -> impl Iterator<Item = usize> {
    (0..classes.div_ceil(LANES)).map(move |i| (i * LANES).min(classes.saturating_sub(LANES)))
}

/// Puts up to [`LANES`] rows into lanes. Lanes without a row have zeros.
fn rows_to_lanes(classes: usize, rows: &[f32], lanes: &mut [f32]) {
    if let Some(rows) = rows.get(..transposed_len(classes)) {
        return dispatch!(Level::new(), simd => whole_to_lanes(simd, classes, rows, lanes));
    }
    let mut padded = [0.0; transposed_len(FEW_CLASSES)];
    padded[..rows.len()].copy_from_slice(rows);
    rows_to_lanes(classes, &padded, lanes);
}

/// Takes up to [`LANES`] rows out of lanes.
fn lanes_to_rows(classes: usize, lanes: &[f32], rows: &mut [f32]) {
    if let Some(rows) = rows.get_mut(..transposed_len(classes)) {
        return dispatch!(Level::new(), simd => lanes_to_whole(simd, classes, lanes, rows));
    }
    let mut padded = [0.0; transposed_len(FEW_CLASSES)];
    lanes_to_rows(classes, lanes, &mut padded);
    rows.copy_from_slice(&padded[..rows.len()]);
}

#[inline(always)]
fn whole_to_lanes<S: Simd>(simd: S, classes: usize, rows: &[f32], lanes: &mut [f32]) {
    let lanes = &mut lanes.as_chunks_mut::<LANES>().0[..classes];
    for first in vectors(classes) {
        let mut block = [f32x16::splat(simd, 0.0); LANES];
        for row in 0..LANES {
            block[row] = f32x16::from_slice(simd, &rows[row * classes + first..][..LANES]);
        }
        let block = transposed(block);
        for (to, class) in lanes[first..].iter_mut().zip(&block) {
            class.store_slice(to);
        }
    }
}

#[inline(always)]
fn lanes_to_whole<S: Simd>(simd: S, classes: usize, lanes: &[f32], rows: &mut [f32]) {
    let lanes = &lanes.as_chunks::<LANES>().0[..classes];
    for first in vectors(classes) {
        let mut block = [f32x16::splat(simd, 0.0); LANES];
        for (class, from) in block.iter_mut().zip(&lanes[first..]) {
            *class = f32x16::from_slice(simd, from);
        }
        let block = transposed(block);
        // what is written past a row's end is overwritten by the next row
        for row in 0..LANES {
            block[row].store_slice(&mut rows[row * classes + first..][..LANES]);
        }
    }
}

/// The transpose. Interleaving the first half of the rows with the second rotates the bits of each
/// element's index by one, so doing it once for each bit of a row's index swaps rows and columns.
#[inline(always)]
fn transposed<S: Simd>(mut block: [f32x16<S>; LANES]) -> [f32x16<S>; LANES] {
    for _bit in 0..LANES.ilog2() {
        let from = block;
        for i in 0..LANES / 2 {
            (block[2 * i], block[2 * i + 1]) = from[i].interleave(from[i + LANES / 2]);
        }
    }
    block
}

/// Maps the numbers of a tile in place. The function gets what is known of the number's row, the
/// number, and the numbers at the same index in other tiles.
///
/// The last vector of a row that is no multiple of [`LANES`] long overlaps the one before it.
#[inline(always)]
pub(super) fn map<const N: usize, const K: usize>(
    tiling: &Tiling,
    of_rows: [&Lanes; N],
    others: [&[f32]; K],
    tile: &mut [f32],
    function: impl Fn([f32; N], f32, [f32; K]) -> f32,
) {
    if tiling.by_lane {
        return map_run(of_rows.map(|lanes| *lanes), others, tile, &function);
    }
    let classes = tiling.classes();
    for (row, to) in tile.chunks_exact_mut(classes).enumerate() {
        // either the same numbers for every row, or this row's
        let others = others.map(|other| match other.len() == classes {
            true => other,
            false => &other[row * classes..][..classes],
        });
        let of_row = of_rows.map(|lanes| [lanes[row]; LANES]);
        let last = to.last_chunk::<LANES>().copied();
        map_run(of_row, others, to, &function);
        if let (false, Some(mut last)) = (classes.is_multiple_of(LANES), last) {
            let others = others.map(|other| &other[classes - LANES..]);
            map_run(of_row, others, &mut last, &function);
            to.last_chunk_mut().into_iter().for_each(|to| *to = last);
        }
    }
}

/// Maps whole vectors.
#[inline(always)]
fn map_run<const N: usize, const K: usize>(
    of_lanes: [Lanes; N],
    others: [&[f32]; K],
    to: &mut [f32],
    function: &impl Fn([f32; N], f32, [f32; K]) -> f32,
) {
    let others = others.map(|other| other.as_chunks::<LANES>().0);
    for (i, to) in to.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        let others = others.map(|other| &other[i]);
        let mut mapped = *to;
        for lane in 0..LANES {
            let of_lane = of_lanes.each_ref().map(|lanes| lanes[lane]);
            mapped[lane] = function(of_lane, mapped[lane], others.map(|other| other[lane]));
        }
        *to = mapped;
    }
}
