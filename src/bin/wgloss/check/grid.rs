//! The grid: every op, option, reduction and pass, over shapes at the seams of the kernels and over
//! inputs of every nature. One table for the self-test of `wgloss check` and for `tests/ops.rs`.
//!
//! Not every combination is tried: a shape meets two natures under each reduction, and the table
//! sees to it that each nature meets every op.

use std::iter::repeat_n;

use wgloss::reference::{self, Mismatch, Promise, Values, compare};
use wgloss::{
    Args, Array, Bce, BceWithLogits, CrossEntropy, DType, Huber, KlDiv, L1, LogSigmoid, LogSoftmax,
    Mse, NllLoss, Op, Output, Pass, Reduction, Result, Sigmoid, SigmoidFocal, SmoothL1, SoftMargin,
    Softmax,
};

use super::random::{Logits, Random};

/// Every pass. Forward comes before backward, which takes the row state that it kept.
pub const PASSES: [Pass; 3] = [Pass::Forward, Pass::Backward, Pass::ForwardBackward];

const REDUCTIONS: &[Reduction] = &[Reduction::None, Reduction::Mean, Reduction::Sum];
const WITH_BATCH_MEAN: &[Reduction] =
    &[Reduction::None, Reduction::Mean, Reduction::Sum, Reduction::BatchMean];
const MAP: &[Reduction] = &[Reduction::None];

/// An op with options: a row of the table.
pub struct Row {
    /// What the options are, in a few words; empty for the defaults.
    pub options: &'static str,
    op: Box<dyn Fn(Reduction) -> Box<dyn Op> + Sync>,
    reductions: &'static [Reduction],
    kind: Kind,
    weights: Weights,
    shapes: &'static [&'static [usize]],
}

/// What the input and target of an op are like.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    /// Logits with targets in [0, 1], hard ones among them.
    Logits,
    /// Numbers, and targets at them or near them.
    Numbers,
    /// Scores with targets 1 and -1.
    Scores,
    /// Probabilities with targets in [0, 1].
    Probabilities,
    /// Log-probabilities with probabilities.
    LogProbabilities,
    /// Log-probabilities with log-probabilities.
    LogTargets,
    /// Numbers without targets.
    Map,
    /// Rows along a dimension, without targets.
    RowMap(i64),
    /// Rows of classes with one class each; this one is ignored.
    Classes(i32),
    /// Rows of classes with a probability for each.
    ClassProbabilities,
}

/// Which weights an op is given.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Weights {
    None,
    /// One a class.
    Classes,
    /// Broadcast over elements.
    Elements,
    /// That, and positive ones, broadcast otherwise.
    ElementsAndPositive,
}

/// What a case's numbers are like: each hides what another shows.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Nature {
    /// As [`Logits`] has them; its analogues for ops without rows.
    Of(Logits),
    /// NaN, infinities, and rows that are masked as a whole, among ordinary ones.
    Broken,
}

impl Nature {
    /// How many there are.
    const COUNT: usize = Logits::ALL.len() + 1;

    /// All of them, over and over.
    fn cycle() -> impl Iterator<Item = Nature> {
        Logits::ALL.into_iter().map(Nature::Of).chain([Nature::Broken]).cycle()
    }

    fn name(self) -> &'static str {
        match self {
            Nature::Of(Logits::Normal) => "random",
            Nature::Of(Logits::Confident) => "confident",
            Nature::Of(Logits::Ramp) => "ramping",
            Nature::Of(Logits::Masked) => "masked",
            Nature::Of(Logits::Extreme) => "extreme",
            Nature::Broken => "broken",
        }
    }
}

/// Shapes for ops without rows.
const ELEMENTS: &[&[usize]] = &[
    &[],           // 0-dimensional
    &[0, 4],       // a mean over nothing
    &[7, 12],      // whole groups of four
    &[5, 9],       // a remainder
    &[2, 3, 4, 5], // weights that broadcast in the middle
    &[3, 6667],    // several teams, and a sum over their results
];

/// Shapes for ops over rows.
const ROWS: &[&[usize]] = &[
    &[5],          // one row, no batch
    &[0, 4],       // a mean over nothing
    &[3, 1],       // one class: nothing is below the maximum
    &[7, 12],      // a row per invocation, whole groups of four
    &[5, 9],       // a remainder in every row
    &[771, 9],     // three rows a team on software devices
    &[2, 3, 4, 5], // classes that lie apart
    &[3, 65],      // a row per subgroup begins at 17 on GPUs, at 65 on software devices
    &[2, 257],     // one more than a chunk of 16 blocks of 16
    &[3, 1025],    // a row per workgroup begins here on GPUs
    &[2, 4099],    // many chunks for every team, and a remainder
];

/// Rows enough for a team to take many on software devices.
const MANY_ROWS: &[&[usize]] = &[&[66_000, 65]];

/// The table.
pub fn table() -> Vec<Row> {
    let (classes, probabilities) = (Kind::Classes(-100), Kind::ClassProbabilities);
    let (none, weights) = (Weights::None, Weights::Classes);
    vec![
        row("classes", classes, none, |r| ce().reduction(r)),
        row("classes, weights", classes, weights, |r| ce().reduction(r)),
        row("classes, weights, ignore_index", Kind::Classes(2), weights, |r| {
            ce().ignore_index(2).empty_mean(0.0).reduction(r)
        }),
        row("classes, weights, smoothing", classes, weights, |r| {
            ce().label_smoothing(0.1).reduction(r)
        }),
        row("classes, kept state", classes, none, |r| ce().keep_state(true).reduction(r)),
        row("classes, weights, smoothing, kept state", classes, weights, |r| {
            ce().label_smoothing(1.0).keep_state(true).reduction(r)
        }),
        row("classes, scale, z-loss, row outputs", classes, none, |r| {
            ce().logit_scale(0.7).z_loss(1e-3).row_outputs(true).reduction(r)
        }),
        // a small cap: its error is a few units in its last place (see the documentation)
        row("classes, scale, softcap, row outputs", classes, none, |r| {
            ce().logit_scale(0.7).softcap(2.0).row_outputs(true).reduction(r)
        }),
        Row {
            shapes: MANY_ROWS,
            ..row("classes, many rows", classes, none, |r| ce().reduction(r))
        },
        row("probabilities", probabilities, none, |r| ce().reduction(r)),
        row("probabilities, weights, smoothing", probabilities, weights, |r| {
            ce().label_smoothing(0.2).reduction(r)
        }),
        row("probabilities, kept state", probabilities, none, |r| {
            ce().keep_state(true).reduction(r)
        }),
        row("", classes, none, |r| NllLoss::default().reduction(r)),
        row("weights, ignore_index", Kind::Classes(2), weights, |r| {
            NllLoss::default().ignore_index(2).reduction(r)
        }),
        row("", Kind::Probabilities, none, |r| Bce::default().reduction(r)),
        row("weight", Kind::Probabilities, Weights::Elements, |r| Bce::default().reduction(r)),
        row("", Kind::Logits, none, |r| BceWithLogits::default().reduction(r)),
        row("weight, pos_weight", Kind::Logits, Weights::ElementsAndPositive, |r| {
            BceWithLogits::default().reduction(r)
        }),
        row("", Kind::Numbers, none, |r| Mse::default().reduction(r)),
        row("", Kind::Numbers, none, |r| L1::default().reduction(r)),
        row("", Kind::Numbers, none, |r| SmoothL1::default().reduction(r)),
        row("beta 0", Kind::Numbers, none, |r| SmoothL1::default().beta(0.0).reduction(r)),
        row("", Kind::Numbers, none, |r| Huber::default().reduction(r)),
        row("delta 0.75", Kind::Numbers, none, |r| Huber::default().delta(0.75).reduction(r)),
        row("", Kind::LogProbabilities, none, |r| KlDiv::default().reduction(r)),
        row("log_target", Kind::LogTargets, none, |r| {
            KlDiv::default().log_target(true).reduction(r)
        }),
        row("", Kind::Scores, none, |r| SoftMargin::default().reduction(r)),
        row("", Kind::Logits, none, |r| SigmoidFocal::default().reduction(r)),
        row("no alpha, gamma 0.5", Kind::Logits, none, |r| {
            SigmoidFocal::default().alpha(-1.0).gamma(0.5).reduction(r)
        }),
        row("alpha 0.999, gamma 5", Kind::Logits, none, |r| {
            SigmoidFocal::default().alpha(0.999).gamma(5.0).reduction(r)
        }),
        row("gamma 0", Kind::Logits, none, |r| SigmoidFocal::default().gamma(0.0).reduction(r)),
        row("", Kind::RowMap(-1), none, |_| Softmax::default()),
        row("dim 0", Kind::RowMap(0), none, |_| Softmax::default().dim(0)),
        row("dim 1", Kind::RowMap(1), none, |_| Softmax::default().dim(1)),
        row("", Kind::RowMap(-1), none, |_| LogSoftmax::default()),
        row("dim 0", Kind::RowMap(0), none, |_| LogSoftmax::default().dim(0)),
        row("dim 1", Kind::RowMap(1), none, |_| LogSoftmax::default().dim(1)),
        row("", Kind::Map, none, |_| Sigmoid),
        row("", Kind::Map, none, |_| LogSigmoid),
    ]
}

fn ce() -> CrossEntropy {
    CrossEntropy::default()
}

/// Options with an op of every reduction that its kind has, over all shapes.
fn row<O: Op + 'static>(
    options: &'static str,
    kind: Kind,
    weights: Weights,
    op: fn(Reduction) -> O,
) -> Row {
    let (reductions, shapes) = match kind {
        Kind::Map => (MAP, ELEMENTS),
        Kind::RowMap(_) => (MAP, ROWS),
        Kind::Classes(_) | Kind::ClassProbabilities => (REDUCTIONS, ROWS),
        Kind::LogProbabilities | Kind::LogTargets => (WITH_BATCH_MEAN, ELEMENTS),
        Kind::Logits | Kind::Numbers | Kind::Scores | Kind::Probabilities => (REDUCTIONS, ELEMENTS),
    };
    Row { options, op: Box::new(move |r| Box::new(op(r))), reductions, kind, weights, shapes }
}

/// An input and all that goes with it, to be held to the reference under every pass.
pub struct Case<'a> {
    row: &'a Row,
    reduction: Reduction,
    nature: Nature,
    dtype: DType,
    shape: &'static [usize],
    seed: u64,
}

impl Row {
    /// The op with the row's options.
    pub fn op(&self) -> &'static str {
        (self.op)(self.reductions[0]).name()
    }

    /// The cases.
    pub fn cases(&self) -> Vec<Case<'_>> {
        // so many under each reduction; maps have one
        let natures = if self.reductions == MAP { 3 } else { 2 };
        let mut cases = Vec::new();
        for (s, &shape) in self.shapes.iter().enumerate() {
            let is_dim = |dim: i64| dim < shape.len() as i64;
            if matches!(self.kind, Kind::RowMap(dim) if !is_dim(dim)) {
                continue;
            }
            for (r, &reduction) in self.reductions.iter().enumerate() {
                // others for every shape and reduction, and one more in 16 bits
                let first = s + natures * (s + r);
                let of_each = Nature::cycle().skip(first % Nature::COUNT);
                let half = [DType::F16, DType::Bf16][(s + r) % 2];
                let dtypes = repeat_n(DType::F32, natures).chain([half]);
                let each = of_each.zip(dtypes).filter(|&(nature, _)| self.kind.has(nature));
                cases.extend(each.map(|(nature, dtype)| Case {
                    row: self,
                    reduction,
                    nature,
                    dtype,
                    shape,
                    seed: (s * 64 + r) as u64,
                }));
            }
        }
        cases
    }
}

impl Kind {
    /// Whether inputs of this nature can be: probabilities are all in [0, 1].
    fn has(self, nature: Nature) -> bool {
        let unit_interval =
            matches!(self, Kind::Probabilities | Kind::LogProbabilities | Kind::LogTargets);
        !(unit_interval && nature == Nature::Broken)
    }
}

/// A case's numbers.
struct Drawn {
    args: Args<Array<'static>>,
    upstream: Array<'static>,
    /// What the mean divides by.
    divisor: f64,
}

impl Case<'_> {
    /// The case in a few words.
    pub fn name(&self) -> String {
        let reduction = match self.row.reductions == MAP {
            true => String::new(),
            false => format!("{} ", self.reduction.name()),
        };
        format!("{reduction}{} {} {:?}", self.nature.name(), self.dtype, self.shape)
    }

    /// How the input is stored.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The number of elements of the input.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Runs every pass and holds what it computes to the promise: the worst error of each pass in
    /// units of the error allowed, or what is wrong.
    ///
    /// # Errors
    /// When the reference refuses the case, which is a defect of the table.
    pub fn check(
        &self,
        run: impl Fn(
            &dyn Op,
            Pass,
            &Args<Array<'static>>,
        ) -> std::result::Result<Output<Array<'static>>, String>,
    ) -> Result<[std::result::Result<f64, String>; 3]> {
        let op = (self.row.op)(self.reduction);
        let Drawn { args, upstream, divisor } = self.draw()?;
        let with_upstream = args.clone().upstream(upstream.clone());
        let want = reference::run(&*op, Pass::ForwardBackward, &with_upstream)?;

        // a divisor of 0 makes everything NaN or 0, and has no scale
        let over = if divisor == 0.0 { 1.0 } else { divisor };
        // the largest upstream gradient that scales a finite result
        let largest = upstream.to_f64().into_iter().filter(|g| g.is_finite());
        let largest = largest.fold(0.0, |most: f64, g| most.max(g.abs()));
        let [loss, grad] = [Promise::LOSS.scaled(1.0 / over), Promise::GRAD.scaled(largest / over)];

        let mut state = None;
        Ok(PASSES.map(|pass| {
            let args = match (pass, &state) {
                (Pass::Forward, _) => args.clone(),
                (Pass::Backward, Some(state)) => {
                    let state: &Array<'static> = state;
                    with_upstream.clone().state(state.clone())
                }
                _ => with_upstream.clone(),
            };
            let got = run(&*op, pass, &args)?;
            if pass == Pass::Forward {
                state = got.state.clone();
            }
            let asked = |want: &Option<Values>, when: bool| want.clone().filter(|_| when);
            let parts = [
                ("loss", &got.loss, asked(&want.loss, pass.has_loss()), loss),
                ("grad", &got.grad, asked(&want.grad, pass.has_grad()), grad),
                // logsumexp's error is absolute
                (
                    "logsumexp",
                    &got.logsumexp,
                    asked(&want.logsumexp, pass.has_loss()),
                    Promise::LOSS,
                ),
                ("argmax", &got.argmax, asked(&want.argmax, pass.has_loss()), Promise::LOSS),
                ("correct", &got.correct, asked(&want.correct, pass.has_loss()), Promise::LOSS),
            ];
            let mut worst = 0.0_f64;
            for (part, got, want, bound) in parts {
                worst = worst.max(hold(got, &want, bound).map_err(|e| format!("{part}: {e}"))?);
            }
            Ok(worst)
        }))
    }
}

/// A result against the reference: the worst error in units of the error allowed.
fn hold(
    got: &Option<Array<'static>>,
    want: &Option<Values>,
    bound: Promise,
) -> std::result::Result<f64, String> {
    match (got, want) {
        (None, None) => Ok(0.0),
        (Some(got), Some(want)) if got.shape() != want.shape => {
            Err(format!("got shape {:?}, want {:?}", got.shape(), want.shape))
        }
        (Some(got), Some(want)) => compare(&got.to_f32(), want, bound.stored_as(got.dtype()))
            .map(|worst| worst.units)
            .map_err(|mismatch: Mismatch| mismatch.to_string()),
        (Some(_), None) => Err("got one, want none".into()),
        (None, Some(_)) => Err("got none, want one".into()),
    }
}

impl Case<'_> {
    /// The numbers: the same on every run.
    fn draw(&self) -> Result<Drawn> {
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
            Kind::Logits => {
                let x = self.numbers(&mut random, count);
                let t = x.iter().map(|&x| unit(&mut random, self.nature, x)).collect();
                (x, Some(t))
            }
            Kind::Numbers => {
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
            Kind::Scores => {
                let t = (0..count).map(|_| random.pick(&[1.0, -1.0])).collect();
                (self.numbers(&mut random, count), Some(t))
            }
            Kind::Probabilities => {
                (self.units(&mut random, count), Some(self.units(&mut random, count)))
            }
            Kind::LogProbabilities => {
                (self.logs(&mut random, count), Some(self.units(&mut random, count)))
            }
            Kind::LogTargets => {
                (self.logs(&mut random, count), Some(self.logs(&mut random, count)))
            }
            Kind::Map => (self.numbers(&mut random, count), None),
            Kind::RowMap(_) | Kind::Classes(_) => {
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

        let weight = match self.row.weights {
            Weights::None => None,
            Weights::Classes => Some(random.eighths(classes)),
            Weights::Elements | Weights::ElementsAndPositive => {
                // repeated along the first dimension and the last
                let own: Vec<usize> = shape.iter().skip(1).copied().collect();
                let own = [&own[..own.len().saturating_sub(1)], &[1][..own.len().min(1)]].concat();
                let values = random.eighths(own.iter().product());
                args = args.weight(Array::from_vec(values, &own)?);
                None
            }
        };
        if self.row.weights == Weights::ElementsAndPositive {
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
        Ok(Drawn { args, upstream, divisor })
    }

    fn numbers(&self, random: &mut Random, count: usize) -> Vec<f32> {
        self.nature.numbers(random, count)
    }

    fn units(&self, random: &mut Random, count: usize) -> Vec<f32> {
        self.nature.units(random, count)
    }

    /// Logarithms of probabilities.
    fn logs(&self, random: &mut Random, count: usize) -> Vec<f32> {
        let masked = self.nature == Nature::Of(Logits::Masked);
        let log = |p: f32| if masked { p.ln() } else { p.max(1e-30).ln() };
        self.units(random, count).into_iter().map(log).collect()
    }
}

impl Kind {
    /// The dimension of the classes, where there are rows.
    fn dim(self) -> Option<i64> {
        match self {
            Kind::RowMap(dim) => Some(dim),
            Kind::Classes(_) | Kind::ClassProbabilities => Some(1),
            _ => None,
        }
    }

    /// Whether there is one loss a row.
    fn has_row_losses(self) -> bool {
        matches!(self, Kind::Classes(_) | Kind::ClassProbabilities)
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
