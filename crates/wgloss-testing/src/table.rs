//! The table of cases: every op, option, reduction and pass, over shapes at the seams of the kernels
//! and over inputs of every nature. One table for the self-test of `wgloss check` and for tests.
//!
//! Not every combination is tried: a shape meets two natures under each reduction, and the table
//! sees to it that each nature meets every op.

mod draw;
mod judge;

use std::iter::repeat_n;

use wgloss::options::{Family, Numbers, Target};
use wgloss::{
    Bce, BceWithLogits, CrossEntropy, DType, Huber, KlDiv, L1, LinearCrossEntropy, LogSigmoid,
    LogSoftmax, Mse, NllLoss, Op, Pass, PoissonNll, Reduction, Sigmoid, SigmoidFocal, SmoothL1,
    SoftMargin, Softmax,
};

use crate::ops;
use crate::random::Logits;

/// Every pass. Forward comes before backward, which takes the row state that it kept.
pub const PASSES: [Pass; 3] = [Pass::Forward, Pass::Backward, Pass::ForwardBackward];

/// An op with options: a row of the table.
pub struct Row {
    /// What the options are, in a few words; empty for the defaults.
    pub options: &'static str,
    op: Box<dyn Op>,
    /// Those that the op takes; of maps, none.
    reductions: Vec<Reduction>,
    kind: Kind,
    is_weighted: bool,
    shapes: &'static [&'static [usize]],
}

/// What the input and target of an op are like.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    /// Numbers, and, but for maps, targets that are numbers.
    Elements { input: Numbers, target: Option<Numbers> },
    /// Rows along a dimension, without targets.
    RowMap(i64),
    /// Rows of classes with one class each; this one is ignored.
    Classes(i32),
    /// Rows of classes with a probability for each.
    ClassProbabilities,
    /// Hidden states with one class each, and a projection; this class is ignored.
    Linear(i32),
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

/// Shapes of hidden states, and how many classes there are: `[..., D, V]`.
const LINEAR: &[&[usize]] = &[
    &[3, 5],         // one hidden state, no batch
    &[0, 4, 3],      // a mean over nothing
    &[1, 1, 1],      // one number, one class
    &[7, 8, 12],     // whole groups of four
    &[8, 5, 17],     // a remainder in every row of both
    &[2, 3, 16, 9],  // rows of two dimensions
    &[65, 33, 130],  // one more than tiles of 64, of 32 and of 128
    &[3, 130, 257],  // sums over many numbers
    &[20, 16, 1025], // several blocks of one row each where the workspace is small
];

/// Rows enough for a team to take many on software devices.
const MANY_ROWS: &[&[usize]] = &[&[66_000, 65]];

/// The table.
pub fn table() -> Vec<Row> {
    vec![
        row("classes", ce()),
        row("classes, weights", ce()).weighted(),
        row("classes, weights, ignore_index", ce().ignore_index(2).empty_mean(0.0)).weighted(),
        row("classes, weights, smoothing", ce().label_smoothing(0.1)).weighted(),
        row("classes, kept state", ce().keep_state(true)),
        row("classes, weights, smoothing, kept state", ce().label_smoothing(1.0).keep_state(true))
            .weighted(),
        row(
            "classes, scale, z-loss, row outputs",
            ce().logit_scale(0.7).z_loss(1e-3).row_outputs(true),
        ),
        row(
            "classes, scale, softcap, row outputs",
            ce().logit_scale(0.7).softcap(2.0).row_outputs(true),
        ),
        // those that people use
        row("classes, softcap 30, row outputs", ce().softcap(30.0).row_outputs(true)),
        row("probabilities, softcap 50, weights", ce().softcap(50.0)).weighted().probabilities(),
        Row { shapes: MANY_ROWS, ..row("classes, many rows", ce()) },
        row("probabilities", ce()).probabilities(),
        row("probabilities, weights, smoothing", ce().label_smoothing(0.2))
            .weighted()
            .probabilities(),
        row("probabilities, kept state", ce().keep_state(true)).probabilities(),
        row("", linear(ce())),
        row("bias, weights, smoothing, sums", linear(ce().label_smoothing(0.1))).weighted(),
        // of the most classes it holds one row
        row(
            "bias, weights, ignore_index, small workspace",
            linear(ce().ignore_index(2).empty_mean(0.0)).workspace_bytes(8 << 10),
        )
        .weighted(),
        row("kept state", linear(ce().keep_state(true))),
        row(
            "scale, z-loss, row outputs",
            linear(ce().logit_scale(0.7).z_loss(1e-3).row_outputs(true)),
        ),
        row("bias, weights, softcap 30, row outputs", linear(ce().softcap(30.0).row_outputs(true)))
            .weighted(),
        row("projection's type", linear(ce()).narrow_grad_projection(true)),
        row("bias, weights, frozen projection", linear(ce()).freeze_projection(true)).weighted(),
        row("frozen input", linear(ce()).freeze_input(true)),
        row("", NllLoss::default()),
        row("weights, ignore_index", NllLoss::default().ignore_index(2)).weighted(),
        row("", Bce::default()),
        row("weight", Bce::default()).weighted(),
        row("", BceWithLogits::default()),
        row("weight, pos_weight", BceWithLogits::default()).weighted(),
        row("", Mse::default()),
        row("", L1::default()),
        row("", SmoothL1::default()),
        row("beta 0", SmoothL1::default().beta(0.0)),
        row("", Huber::default()),
        row("delta 0.75", Huber::default().delta(0.75)),
        row("", KlDiv::default()),
        row("log_target", KlDiv::default().log_target(true)),
        row("", SoftMargin::default()),
        row("", SigmoidFocal::default()),
        row("no alpha, gamma 0.5", SigmoidFocal::default().alpha(-1.0).gamma(0.5)),
        row("alpha 0.999, gamma 5", SigmoidFocal::default().alpha(0.999).gamma(5.0)),
        row("gamma 0", SigmoidFocal::default().gamma(0.0)),
        row("", PoissonNll::default()),
        row("full", PoissonNll::default().full(true)),
        row("rates", PoissonNll::default().log_input(false)),
        row("rates, full, eps 0.25", PoissonNll::default().log_input(false).full(true).eps(0.25)),
        row("", Softmax::default()),
        row("dim 0", Softmax::default().dim(0)),
        row("dim 1", Softmax::default().dim(1)),
        row("", LogSoftmax::default()),
        row("dim 0", LogSoftmax::default().dim(0)),
        row("dim 1", LogSoftmax::default().dim(1)),
        row("", Sigmoid),
        row("", LogSigmoid),
    ]
}

fn ce() -> CrossEntropy {
    CrossEntropy::default()
}

fn linear(loss: CrossEntropy) -> LinearCrossEntropy {
    LinearCrossEntropy::new(loss)
}

/// Options with an op of every reduction that it has, over all shapes.
fn row(options: &'static str, op: impl Op + 'static) -> Row {
    let wgloss::options::Kind { family, input, target, .. } = op.kind();
    let ignored = || Some(ops::integer(&op, "ignore_index")? as i32);
    let kind = match (family, target) {
        (Family::RowLoss, _) => Kind::Classes(ignored().expect("of row losses")),
        (Family::LinearLoss, _) => Kind::Linear(ignored().expect("of row losses")),
        (Family::RowMap, _) => Kind::RowMap(ops::integer(&op, "dim").expect("of row maps")),
        (_, Some(Target::Numbers(target, _))) => Kind::Elements { input, target: Some(target) },
        _ => Kind::Elements { input, target: None },
    };
    let reductions = ops::reductions(&op);
    Row {
        options,
        op: Box::new(op),
        reductions: if reductions.is_empty() { vec![Reduction::None] } else { reductions },
        kind,
        is_weighted: false,
        shapes: match family {
            Family::LinearLoss => LINEAR,
            family if family.has_rows() => ROWS,
            _ => ELEMENTS,
        },
    }
}

impl Row {
    /// With all weights that the op takes.
    fn weighted(self) -> Row {
        Row { is_weighted: true, ..self }
    }

    /// With a probability for each class.
    fn probabilities(self) -> Row {
        Row { kind: Kind::ClassProbabilities, ..self }
    }

    /// Whether it is a map, of no reduction.
    fn is_map(&self) -> bool {
        !self.op.kind().family.is_loss()
    }
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
        self.op.name()
    }

    /// The cases.
    pub fn cases(&self) -> Vec<Case<'_>> {
        // so many under each reduction; maps have one
        let natures = if self.is_map() { 3 } else { 2 };
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
        let unit_interval = matches!(
            self,
            Kind::Elements { input: Numbers::Probabilities | Numbers::LogProbabilities, .. }
        );
        !(unit_interval && nature == Nature::Broken)
    }
}

impl Case<'_> {
    /// The case in a few words.
    pub fn name(&self) -> String {
        let reduction = match self.row.is_map() {
            true => String::new(),
            false => format!("{} ", self.reduction.name()),
        };
        format!("{reduction}{} {} {:?}", self.nature.name(), self.dtype, self.shape)
    }

    /// How the input is stored.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The number of elements of the input, or of the largest of inputs, projection and logits.
    pub fn elements(&self) -> usize {
        match (self.row.kind, self.shape) {
            (Kind::Linear(_), [rows @ .., dims, classes]) => {
                let rows: usize = rows.iter().product();
                (rows * dims).max(classes * dims).max(rows * classes)
            }
            _ => self.shape.iter().product(),
        }
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
        matches!(self, Kind::Classes(_) | Kind::ClassProbabilities | Kind::Linear(_))
    }
}
