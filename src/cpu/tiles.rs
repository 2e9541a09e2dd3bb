//! Rows of classes, and the tiles of vectors that they are worked on in.

use std::iter::repeat_with;
use std::ops::Range;

use super::math::{LANES, Lanes};
use super::storage::{Stored, take};
use crate::shape::ClassShape;

/// The most classes of which sixteen rows share a tile. One row alone would leave lanes idle, and
/// have its results for itself.
const FEW_CLASSES: usize = 32;

/// About how many elements a task has. A sum is that of its tasks, in order, whatever the number of
/// threads.
const TASK: usize = 1 << 15;

/// How rows lie in tiles.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tiling {
    shape: ClassShape,
    /// Whether a tile is one row, whose classes fill its vectors one after the other. Otherwise it
    /// is sixteen rows, a vector holds one class of each, and lanes know nothing of one another.
    pub is_one_row: bool,
}

/// What a task writes of a tensor of the input's shape.
pub(super) struct Piece<'a, T> {
    /// All of its rows in one; or where classes lie far apart, one line of neighbouring positions a
    /// class.
    lines: Vec<&'a mut [T]>,
}

impl Tiling {
    pub fn of(shape: ClassShape) -> Self {
        let ClassShape { classes, positions, .. } = shape;
        let is_one_row = positions < LANES && (positions > 1 || classes > FEW_CLASSES);
        Tiling { shape, is_one_row }
    }

    /// How many vectors a tile has.
    pub fn vectors(&self) -> usize {
        match self.is_one_row {
            true => self.shape.classes.div_ceil(LANES),
            false => self.shape.classes,
        }
    }

    /// The vector and the lane of a class, in the `row`-th row of a tile.
    #[inline(always)]
    pub fn place(&self, row: usize, class: usize) -> (usize, usize) {
        if self.is_one_row { (class / LANES, class % LANES) } else { (class, row) }
    }

    /// A number for each class, as a tile has them.
    pub fn by_class(&self, number: impl Fn(usize) -> f32) -> Vec<Lanes> {
        let mut tile = vec![[0.0; LANES]; self.vectors()];
        for class in 0..self.shape.classes {
            match self.is_one_row {
                true => tile[class / LANES][class % LANES] = number(class),
                false => tile[class] = [number(class); LANES],
            }
        }
        tile
    }

    /// Whether positions are so many that they are divided among tasks.
    fn has_columns(&self) -> bool {
        self.shape.positions >= LANES
    }

    /// The rows of each task, in order. A tile's rows are never of two tasks, nor of two indices of
    /// the batch where classes lie apart.
    pub fn tasks(&self) -> Vec<Range<usize>> {
        let ClassShape { classes, positions, .. } = self.shape;
        let at_least = |elements: usize| TASK.div_ceil(elements.max(1)).next_multiple_of(LANES);
        let (line, per_task) = match (self.has_columns(), self.is_one_row) {
            (true, _) => (positions, at_least(classes)),
            (_, true) => {
                (self.shape.rows(), TASK.div_ceil(classes).next_multiple_of(positions.max(1)))
            }
            (_, false) => (self.shape.rows(), at_least(classes)),
        };
        let lines = (0..self.shape.rows()).step_by(line.max(1));
        lines
            .flat_map(|first| {
                let end = first + line;
                let starts = (first..end).step_by(per_task);
                starts.map(move |start| start..end.min(start + per_task))
            })
            .collect()
    }

    /// A tensor of the input's shape, divided among the tasks; nothing for each where there is none.
    pub fn pieces<'a, T>(
        &self,
        mut tensor: Option<&'a mut [T]>,
        tasks: &[Range<usize>],
    ) -> Vec<Option<Piece<'a, T>>> {
        let ClassShape { classes, positions, .. } = self.shape;
        if !self.has_columns() {
            let piece = |rows: &Range<usize>| take(&mut tensor, rows.len() * classes);
            let lines = tasks.iter().map(piece);
            return lines.map(|line| line.map(|line| Piece { lines: vec![line] })).collect();
        }
        let Some(tensor) = tensor else { return repeat_with(|| None).take(tasks.len()).collect() };
        let mut pieces = Vec::with_capacity(tasks.len());
        let per_batch = tasks.iter().take_while(|rows| rows.start < positions).count();
        let batches =
            tensor.chunks_mut((classes * positions).max(1)).zip(tasks.chunks(per_batch.max(1)));
        for (batch, tasks) in batches {
            let first = pieces.len();
            pieces.extend(tasks.iter().map(|_| Piece { lines: Vec::with_capacity(classes) }));
            for class in batch.chunks_mut(positions) {
                let mut class = Some(class);
                for (rows, piece) in tasks.iter().zip(&mut pieces[first..]) {
                    piece.lines.extend(take(&mut class, rows.len()));
                }
            }
        }
        pieces.into_iter().map(Some).collect()
    }

    /// The rows of each tile of a task.
    pub fn tiles(&self, task: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        let rows = if self.is_one_row { 1 } else { LANES };
        let end = task.end;
        task.step_by(rows).map(move |first| first..end.min(first + rows))
    }

    /// Reads rows of a tensor. Lanes past the classes become `padding`; lanes past the rows stay as
    /// they are.
    pub fn load<T: Stored>(
        &self,
        from: &[T],
        rows: &Range<usize>,
        padding: f32,
        tile: &mut [Lanes],
    ) {
        let ClassShape { classes, positions, .. } = self.shape;
        let (batch, position) = (rows.start / positions, rows.start % positions);
        let from = &from[batch * classes * positions + position..];
        if self.is_one_row {
            let (row, rest) = tile.as_flattened_mut().split_at_mut(classes);
            match positions {
                1 => T::read(&from[..classes], row),
                _ => {
                    let numbers = from.iter().step_by(positions);
                    row.iter_mut().zip(numbers).for_each(|(to, number)| *to = number.to_f32());
                }
            }
            rest.fill(padding);
        } else if positions == 1 {
            for (lane, row) in from.chunks_exact(classes).take(rows.len()).enumerate() {
                tile.iter_mut().zip(row).for_each(|(to, number)| to[lane] = number.to_f32());
            }
        } else {
            for (to, line) in tile.iter_mut().zip(from.chunks(positions)) {
                T::read(&line[..rows.len()], &mut to[..rows.len()]);
            }
        }
    }

    /// Writes rows, of which the first is the `row`-th of the task.
    pub fn store<T: Stored>(
        &self,
        tile: &[Lanes],
        rows: &Range<usize>,
        row: usize,
        to: &mut Piece<'_, T>,
    ) {
        let ClassShape { classes, positions, .. } = self.shape;
        let lines = &mut to.lines;
        if self.has_columns() {
            for (line, from) in lines.iter_mut().zip(tile) {
                T::write(&from[..rows.len()], &mut line[row..row + rows.len()]);
            }
            return;
        }
        let Some(line) = lines.first_mut() else { return };
        let to = &mut line[row / positions * classes * positions + row % positions..];
        if self.is_one_row {
            let row = &tile.as_flattened()[..classes];
            match positions {
                1 => T::write(row, &mut to[..classes]),
                _ => {
                    let numbers = to.iter_mut().step_by(positions);
                    numbers.zip(row).for_each(|(to, &number)| *to = T::from_f32(number));
                }
            }
        } else {
            for (lane, row) in to.chunks_exact_mut(classes).take(rows.len()).enumerate() {
                row.iter_mut().zip(tile).for_each(|(to, from)| *to = T::from_f32(from[lane]));
            }
        }
    }

    /// Fills a row's numbers, the `row`-th of the task, of a tile that is one row.
    pub fn fill<T: Stored>(&self, value: f32, row: usize, to: &mut Piece<'_, T>) {
        let ClassShape { classes, positions, .. } = self.shape;
        let Some(line) = to.lines.first_mut() else { return };
        let to = &mut line[row / positions * classes * positions + row % positions..];
        to.iter_mut().step_by(positions).take(classes).for_each(|to| *to = T::from_f32(value));
    }
}
