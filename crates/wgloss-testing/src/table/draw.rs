//! The numbers of a case: inputs, targets, weights and upstream gradients.

use wgloss::options::{Kind as Takes, Numbers, Value, Weight};
use wgloss::{Args, Array, Reduction, Result, Role};

use super::{Case, Kind, Nature};
use crate::ops;
use crate::random::{Logits, Random};

/// A case's numbers.
pub(super) struct Drawn {
    pub args: Args<Array<'static>>,
    pub upstream: Array<'static>,
    /// What gradients are added to.
    pub sums: Vec<(Role, Array<'static>)>,
    /// What the mean divides by.
    pub divisor: f64,
}

impl Case<'_> {
    /// The numbers: the same on every run.
    pub(super) fn draw(&self) -> Result<Drawn> {
        if let Kind::Linear(ignored) = self.row.kind {
            return self.draw_linear(ignored);
        }
        let mut random = Random::new(self.seed);
        let (shape, kind, count) = (self.shape, self.row.kind, self.elements());
        let (classes, positions) = along(shape, kind.dim());
        let rows = count.checked_div(classes).unwrap_or(0);
        let by_row = |values: Vec<f32>| scattered(&values, classes, positions);
        // the losses of rows have the input's shape less the classes
        let class_dim = usize::from(shape.len() > 1);
        let rest = || {
            let sizes = shape.iter().enumerate().filter(|&(d, _)| d != class_dim);
            sizes.map(|(_, &size)| size).collect::<Vec<_>>()
        };

        let (input, target) = match kind {
            Kind::Elements { input, target: None } => (self.of(input, &mut random, count), None),
            Kind::Elements { input: Numbers::Any, target: Some(Numbers::Any) } => {
                let t = Nature::Of(Logits::Normal).numbers(&mut random, count);
                let near = |t: &f32| t + random.pick(&[0.0, 1e-3, 0.7, -0.75, 1.0, -9.0]);
                match self.nature {
                    Nature::Of(Logits::Normal | Logits::Confident | Logits::Masked) => {
                        (t.iter().map(near).collect(), Some(t))
                    }
                    // the same infinity in both, among others
                    Nature::Broken => {
                        (self.numbers(&mut random, count), Some(self.numbers(&mut random, count)))
                    }
                    _ => (self.numbers(&mut random, count), Some(t)),
                }
            }
            Kind::Elements { input: Numbers::Logits, target: Some(Numbers::Probabilities) } => {
                let x = self.numbers(&mut random, count);
                let t = x.iter().map(|&x| unit(&mut random, self.nature, x)).collect();
                (x, Some(t))
            }
            Kind::Elements { input: Numbers::Scores, target: Some(target) } => {
                let t = self.of(target, &mut random, count);
                (self.numbers(&mut random, count), Some(t))
            }
            Kind::Elements { input, target: Some(target) } => {
                let x = self.of(input, &mut random, count);
                (x, Some(self.of(target, &mut random, count)))
            }
            Kind::RowMap(_) | Kind::Classes(_) | Kind::Linear(_) => {
                (by_row(self.nature.rows(&mut random, rows, classes)), None)
            }
            Kind::ClassProbabilities => {
                let t = Nature::Of(Logits::Normal).units(&mut random, count);
                (by_row(self.nature.rows(&mut random, rows, classes)), Some(t))
            }
        };
        let stored = |values, shape: &[usize]| Array::from_vec(values, shape)?.to_dtype(self.dtype);
        // rows are often of the class they are confident of: that is where digits are lost
        let largest = |row: usize| {
            let at = |c: &usize| (row / positions * classes + c) * positions + row % positions;
            (0..classes).max_by(|a, b| input[at(a)].total_cmp(&input[at(b)]))
        };
        let mut right = vec![None; rows];
        if kind.has_row_losses() && self.nature == Nature::Of(Logits::Confident) {
            right = (0..rows).map(|row| largest(row).filter(|_| random.chance(0.5))).collect();
        }
        let mut args = Args::new(stored(input, shape)?);
        if let Some(target) = target {
            args = args.target(stored(target, shape)?);
        }

        let Takes { weight: weighs, pos_weight, .. } = self.row.op.kind();
        let weight = match weighs.filter(|_| self.row.is_weighted) {
            None => None,
            Some(Weight::Classes) => Some(random.eighths(classes)),
            Some(Weight::Elements) => {
                // repeated along the first dimension and the last
                let own: Vec<usize> = shape.iter().skip(1).copied().collect();
                let own = [&own[..own.len().saturating_sub(1)], &[1][..own.len().min(1)]].concat();
                let values = random.eighths(own.iter().product());
                args = args.weight(Array::from_vec(values, &own)?);
                None
            }
        };
        if pos_weight && self.row.is_weighted {
            let own: Vec<usize> = shape.last().into_iter().copied().collect();
            let values = random.eighths(own.iter().product());
            args = args.pos_weight(Array::from_vec(values, &own)?);
        }
        let mut kept = rows as f64;
        if let Kind::Classes(ignored) = kind {
            // broken rows that are ignored must not show
            let share = if self.nature == Nature::Broken { 0.3 } else { 0.1 };
            let mut target = random.targets(rows, classes, ignored, share);
            for (y, right) in target.iter_mut().zip(right) {
                *y = right.map_or(*y, |class| class as i32);
            }
            let of = |&y: &i32| weight.as_ref().map_or(1.0, |w| w[y as usize].into());
            kept = target.iter().filter(|&&y| y != ignored).map(of).sum();
            args = args.target(Array::from_vec(target, &rest())?);
        }
        if let Some(weight) = weight {
            args = args.weight(Array::from_vec(weight, &[classes])?);
        }

        let divisor = match self.reduction {
            Reduction::None | Reduction::Sum => 1.0,
            Reduction::BatchMean => shape.first().map_or(1.0, |&size| size as f64),
            Reduction::Mean if kind.has_row_losses() => kept,
            Reduction::Mean => count as f64,
        };
        let upstream_shape = match self.reduction {
            Reduction::None if kind.has_row_losses() => rest(),
            Reduction::None => shape.to_vec(),
            _ => vec![],
        };
        let upstream = random.normals(upstream_shape.iter().product(), 1.0);
        let upstream = match self.reduction {
            Reduction::None => stored(upstream, &upstream_shape)?,
            _ => Array::from_vec(upstream, &upstream_shape)?,
        };
        Ok(Drawn { args, upstream, sums: vec![], divisor })
    }

    /// The same of hidden states and a projection, of which each nature makes logits like its own.
    fn draw_linear(&self, ignored: i32) -> Result<Drawn> {
        let mut random = Random::new(self.seed);
        let &[ref rows_shape @ .., dims, classes] = self.shape else {
            unreachable!("shapes of linear losses have two sizes at least")
        };
        let rows: usize = rows_shape.iter().product();
        let share = if self.nature == Nature::Broken { 0.3 } else { 0.1 };
        let mut target = random.targets(rows, classes, ignored, share);
        let mut x = random.normals(rows * dims, 1.0);
        let mut w = random.normals(classes * dims, 3.0 / (dims as f64).sqrt());
        let mut bias = random.normals(classes, 1.0);
        let mut is_biased = self.row.is_weighted;
        match self.nature {
            // along the row of a class, to which half of them belong
            Nature::Of(Logits::Confident) => {
                for (x, target) in x.chunks_mut(dims).zip(&mut target) {
                    let class = random.below(classes);
                    let row = &w[class * dims..(class + 1) * dims];
                    let size: f32 = row.iter().map(|w| w * w).sum();
                    let height = (5.0 + 60.0 * random.uniform() as f32) / size.max(0.1);
                    x.iter_mut().zip(row).for_each(|(x, w)| *x = height * w);
                    if *target != ignored && random.chance(0.5) {
                        *target = class as i32;
                    }
                }
            }
            Nature::Of(Logits::Ramp) => {
                let height = random.normal() as f32 * 20.0 / dims as f32;
                for (c, w) in w.chunks_mut(dims).enumerate() {
                    w.fill(height * (c as f32 / classes as f32 - 0.5));
                }
            }
            Nature::Of(Logits::Masked) => {
                is_biased = true;
                let mask = |b: &mut f32| {
                    if random.chance(0.5) {
                        *b = f32::NEG_INFINITY
                    }
                };
                bias.iter_mut().for_each(mask);
            }
            Nature::Of(Logits::Extreme) => {
                let sizes = [1e6, -1e6, 88.5, -104.0, 1e-30, -1e-40, 0.0, -0.0];
                x.iter_mut().for_each(|x| *x = random.pick(&sizes));
            }
            Nature::Broken => {
                for x in x.chunks_mut(dims) {
                    let at = random.below(dims);
                    match random.below(5) {
                        0 => x[at] = f32::NAN,
                        1 => x[at] = f32::INFINITY,
                        2 => x.fill(f32::NEG_INFINITY),
                        _ => {}
                    }
                }
            }
            Nature::Of(Logits::Normal) => {}
        }
        // one that is ignored may be a class too, and is none of a row's then
        let weight = self.row.is_weighted.then(|| random.eighths(classes));
        let of = |&y: &i32| weight.as_ref().map_or(1.0, |w| w[y as usize].into());
        let divisor = match self.reduction {
            Reduction::Mean => target.iter().filter(|&&y| y != ignored).map(of).sum(),
            _ => 1.0,
        };

        let stored = |values, shape: &[usize]| Array::from_vec(values, shape)?.to_dtype(self.dtype);
        let mut args = Args::new(stored(x, &self.shape[..self.shape.len() - 1])?)
            .projection(stored(w, &[classes, dims])?)
            .target(Array::from_vec(target, rows_shape)?);
        if is_biased {
            args = args.bias(Array::from_vec(bias, &[classes])?);
        }
        if let Some(weight) = weight {
            args = args.weight(Array::from_vec(weight, &[classes])?);
        }
        let upstream_shape = if self.reduction == Reduction::None { rows_shape } else { &[] };
        let upstream = random.normals(upstream_shape.iter().product(), 1.0);
        let is_on = |name| ops::option(&*self.row.op, name) == Some(Value::Bool(true));
        let mut sums = Vec::new();
        let mut sum = |role, shape: &[usize]| -> Result<()> {
            let values = random.normals(shape.iter().product(), 1.0);
            sums.push((role, Array::from_vec(values, shape)?));
            Ok(())
        };
        if self.row.is_weighted && !is_on("freeze_projection") && !is_on("narrow_grad_projection") {
            sum(Role::GradProjection, &[classes, dims])?;
        }
        if self.row.is_weighted && !is_on("freeze_bias") {
            sum(Role::GradBias, &[classes])?;
        }
        Ok(Drawn { args, upstream: Array::from_vec(upstream, upstream_shape)?, sums, divisor })
    }

    /// Numbers of a kind, of the case's nature.
    fn of(&self, what: Numbers, random: &mut Random, count: usize) -> Vec<f32> {
        match what {
            Numbers::Probabilities => self.units(random, count),
            Numbers::LogProbabilities => self.logs(random, count),
            Numbers::Signs => (0..count).map(|_| random.pick(&[1.0, -1.0])).collect(),
            Numbers::Counts => self.counts(random, count),
            _ => self.numbers(random, count),
        }
    }

    fn numbers(&self, random: &mut Random, count: usize) -> Vec<f32> {
        self.nature.numbers(random, count)
    }

    fn units(&self, random: &mut Random, count: usize) -> Vec<f32> {
        self.nature.units(random, count)
    }

    /// Numbers that are not negative, most of them whole: rare and common, huge and tiny ones.
    fn counts(&self, random: &mut Random, count: usize) -> Vec<f32> {
        let mut one = || match self.nature {
            Nature::Of(Logits::Confident) => random.below(1000) as f32,
            Nature::Of(Logits::Masked) if random.chance(0.5) => 0.0,
            Nature::Of(Logits::Extreme) => random.pick(&[0.0, 1.0, 1e-30, 1e-6, 1e6, 1e15]),
            Nature::Broken if random.chance(0.3) => f32::NAN,
            _ if random.chance(0.3) => random.uniform() as f32 * 3.0,
            _ => random.below(9) as f32,
        };
        (0..count).map(|_| one()).collect()
    }

    /// Logarithms of probabilities.
    fn logs(&self, random: &mut Random, count: usize) -> Vec<f32> {
        let masked = self.nature == Nature::Of(Logits::Masked);
        let log = |p: f32| if masked { p.ln() } else { p.max(1e-30).ln() };
        self.units(random, count).into_iter().map(log).collect()
    }
}

impl Nature {
    /// Numbers for ops without rows.
    fn numbers(self, random: &mut Random, count: usize) -> Vec<f32> {
        const HUGE_AND_TINY: [f32; 10] =
            [1e30, -1e30, 1e6, -1e6, 88.5, -104.0, 1e-30, -1e-40, 0.0, -0.0];
        let height = random.normal() * 20.0;
        let mut one = |i: usize| match self {
            Nature::Of(Logits::Normal) => random.normal() * random.pick(&[1e-3, 1.0, 10.0]),
            Nature::Of(Logits::Confident) => {
                (5.0 + 60.0 * random.uniform()) * random.pick(&[1.0, -1.0])
            }
            Nature::Of(Logits::Ramp) => height * (i as f64 / count as f64 - 0.5),
            Nature::Of(Logits::Masked) if random.chance(0.5) => f64::NEG_INFINITY,
            Nature::Of(Logits::Extreme) => random.pick(&HUGE_AND_TINY).into(),
            Nature::Broken if random.chance(0.3) => {
                random.pick(&[f64::NAN, -f64::NAN, f64::INFINITY, f64::NEG_INFINITY])
            }
            Nature::Of(Logits::Masked) | Nature::Broken => random.normal() * 3.0,
        };
        (0..count).map(|i| one(i) as f32).collect()
    }

    /// Numbers in [0, 1].
    fn units(self, random: &mut Random, count: usize) -> Vec<f32> {
        let mut one = |i: usize| match self {
            Nature::Of(Logits::Confident) => {
                let small = random.uniform() * 1e-6;
                random.pick(&[small, 1.0 - small])
            }
            Nature::Of(Logits::Ramp) => i as f64 / count as f64,
            Nature::Of(Logits::Masked) if random.chance(0.5) => 0.0,
            Nature::Of(Logits::Extreme) => random.pick(&[0.0, 1.0, 1e-30, 1e-40]),
            _ => random.uniform(),
        };
        (0..count).map(|i| one(i) as f32).collect()
    }

    /// Rows of logits, row after row.
    fn rows(self, random: &mut Random, rows: usize, classes: usize) -> Vec<f32> {
        let Nature::Of(kind) = self else {
            let mut values = random.logits(Logits::Normal, rows, classes);
            for row in values.chunks_mut(classes.max(1)) {
                let at = random.below(classes);
                match random.below(5) {
                    0 => row[at] = f32::NAN,
                    1 => row[at] = f32::INFINITY,
                    2 => row.fill(f32::NEG_INFINITY),
                    3 => row[at] = f32::NEG_INFINITY,
                    _ => {}
                }
            }
            return values;
        };
        random.logits(kind, rows, classes)
    }
}

/// A target in [0, 1] for a logit: often the one that it is confident of.
fn unit(random: &mut Random, nature: Nature, x: f32) -> f32 {
    let right = f32::from(u8::from(x > 0.0));
    match (nature, random.below(4)) {
        (Nature::Of(Logits::Confident), 0..3) | (_, 0) => right,
        (_, 1) => 1.0 - right,
        _ => random.uniform() as f32,
    }
}

/// The classes along a dimension, and how far apart they lie; one class without one.
fn along(shape: &[usize], dim: Option<i64>) -> (usize, usize) {
    let Some(dim) = dim else { return (1, 1) };
    let last = shape.len().saturating_sub(1);
    let dim = if dim < 0 { last } else { last.min(dim as usize) };
    (shape.get(dim).copied().unwrap_or(1), shape.iter().skip(dim + 1).product())
}

/// Rows, one after the other, as they lie where classes are `positions` apart.
fn scattered(by_row: &[f32], classes: usize, positions: usize) -> Vec<f32> {
    let mut values = vec![0.0; by_row.len()];
    for (r, row) in by_row.chunks(classes.max(1)).enumerate() {
        for (c, &x) in row.iter().enumerate() {
            values[(r / positions * classes + c) * positions + r % positions] = x;
        }
    }
    values
}
