//! The ops as subcommands: what each takes beyond the common flags, and how it is made from them.

use std::num::NonZeroUsize;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Subcommand, ValueEnum};
use wgloss::{
    Args, Array, Bce, BceWithLogits, CrossEntropy, Huber, KlDiv, L1, LogSigmoid, LogSoftmax, Mse,
    NllLoss, Op, Reduction, Sigmoid, SigmoidFocal, SmoothL1, SoftMargin, Softmax,
};

use crate::files::{Kind, Place};
use crate::machine::Device;

/// An array read from a file.
pub type Host = Array<'static>;

/// The flags that every op takes.
#[derive(Debug, clap::Args)]
pub struct Common {
    /// Logits, predictions or numbers: float32, float16, or bfloat16 (.safetensors)
    #[arg(long, value_name = "FILE")]
    pub input: Place,
    /// Tensor to take from --input, where that is a .safetensors file [default: input]
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// Upstream gradient: one value for mean and sum, otherwise the shape of loss or output
    /// [default: 1]
    #[arg(long, value_name = "FILE")]
    pub upstream: Option<Place>,
    /// What to compute [default: forward-backward with --grad, otherwise forward]
    #[arg(long, value_enum)]
    pub pass: Option<Pass>,
    /// Where to write the loss, or a map's output
    #[arg(long, value_name = "FILE", visible_alias = "output")]
    pub loss: Option<Place>,
    /// Where to write the gradient
    #[arg(long, value_name = "FILE")]
    pub grad: Option<Place>,
    /// Read, compute and write this many rows (entries of the first dimension) at a time: for files
    /// that exceed the device's memory or the host's
    #[arg(long, value_name = "ROWS")]
    pub batch_rows: Option<NonZeroUsize>,
    /// Where to compute
    #[arg(long, value_enum, default_value_t = Device::Auto)]
    pub device: Device,
    /// Only adapters whose name or driver contains this, in any case of letters: as `wgloss devices` has
    /// them
    #[arg(long, value_name = "NAME")]
    pub adapter: Option<String>,
}

/// The flags that every loss takes.
#[derive(Debug, clap::Args)]
pub struct Loss {
    #[command(flatten)]
    common: Common,
    /// Targets: class indices (int32, int64) where rows have classes, otherwise numbers of
    /// the input's shape and type
    #[arg(long, value_name = "FILE")]
    target: Place,
    /// How the losses of rows or elements become the result
    #[arg(long, default_value = "mean", value_parser = reductions(&REDUCTIONS))]
    reduction: Reduction,
}

impl Loss {
    /// The reduction of the op: in batches, a mean is the sum of the batches' sums, divided once.
    fn op_reduction(&self) -> Reduction {
        match self.reduction {
            Reduction::Mean | Reduction::BatchMean if self.common.batch_rows.is_some() => {
                Reduction::Sum
            }
            reduction => reduction,
        }
    }
}

/// An op and its flags. Aliases are the names that ops have elsewhere.
#[derive(Debug, Subcommand)]
pub enum OpCommand {
    /// Softmax cross entropy of logits [C], [N, C] or [N, C, ...] with classes or probabilities
    ///
    /// Integer targets are classes; numbers of the input's shape and type are probabilities.
    #[command(alias = "cross_entropy")]
    CrossEntropy {
        #[command(flatten)]
        loss: Loss,
        /// Weights of classes, [C]
        #[arg(long, value_name = "FILE")]
        weight: Option<Place>,
        /// The class that marks rows to be left out
        #[arg(long, value_name = "CLASS", default_value_t = -100, allow_negative_numbers = true)]
        ignore_index: i64,
        /// The share, in [0, 1], of the target's weight that is spread over all classes
        #[arg(long, value_name = "SHARE", default_value_t = 0.0, allow_negative_numbers = true)]
        label_smoothing: f64,
        /// What logits are multiplied by: an inverse temperature
        #[arg(long, value_name = "FACTOR", default_value_t = 1.0, allow_negative_numbers = true)]
        logit_scale: f64,
        /// Bounds logits to +-CAP, smoothly [default: none]
        #[arg(long, value_name = "CAP", allow_negative_numbers = true)]
        softcap: Option<f64>,
        /// Adds FACTOR * logsumexp^2 to each row's loss
        #[arg(long, value_name = "FACTOR", default_value_t = 0.0, allow_negative_numbers = true)]
        z_loss: f64,
        /// The mean where every row is left out
        #[arg(long, value_name = "VALUE", default_value_t = f64::NAN, allow_negative_numbers = true)]
        empty_mean: f64,
        /// Where to write each row's logsumexp
        #[arg(long, value_name = "FILE")]
        logsumexp: Option<Place>,
        /// Where to write each row's largest class
        #[arg(long, value_name = "FILE")]
        argmax: Option<Place>,
        /// Where to write whether each row's largest class is its target
        #[arg(long, value_name = "FILE")]
        correct: Option<Place>,
    },
    /// Negative log-likelihood of log-probabilities [C], [N, C] or [N, C, ...] with classes
    #[command(alias = "nll_loss")]
    NllLoss {
        #[command(flatten)]
        loss: Loss,
        /// Weights of classes, [C]
        #[arg(long, value_name = "FILE")]
        weight: Option<Place>,
        /// The class that marks rows to be left out
        #[arg(long, value_name = "CLASS", default_value_t = -100, allow_negative_numbers = true)]
        ignore_index: i64,
    },
    /// Binary cross entropy of probabilities with targets in [0, 1]
    Bce {
        #[command(flatten)]
        loss: Loss,
        /// Weights of elements, broadcast to the input
        #[arg(long, value_name = "FILE")]
        weight: Option<Place>,
    },
    /// Binary cross entropy of logits with targets of the same shape
    #[command(alias = "bce_with_logits")]
    BceWithLogits {
        #[command(flatten)]
        loss: Loss,
        /// Weights of elements, broadcast to the input
        #[arg(long, value_name = "FILE")]
        weight: Option<Place>,
        /// Weights of the positive term, broadcast to the input
        #[arg(long, value_name = "FILE")]
        pos_weight: Option<Place>,
    },
    /// Squared error
    Mse {
        #[command(flatten)]
        loss: Loss,
    },
    /// Absolute error
    L1 {
        #[command(flatten)]
        loss: Loss,
    },
    /// Squared error below beta, absolute error above
    #[command(alias = "smooth_l1")]
    SmoothL1 {
        #[command(flatten)]
        loss: Loss,
        /// Where the one becomes the other, 0 or more
        #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
        beta: f64,
    },
    /// Squared error below delta, absolute error times delta above
    Huber {
        #[command(flatten)]
        loss: Loss,
        /// Where the one becomes the other, above 0
        #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
        delta: f64,
    },
    /// Kullback-Leibler divergence of probabilities from log-probabilities
    #[command(alias = "kl_div")]
    KlDiv {
        #[command(flatten)]
        common: Common,
        /// Targets: probabilities of the input's shape
        #[arg(long, value_name = "FILE")]
        target: Place,
        /// Targets are log-probabilities
        #[arg(long)]
        log_target: bool,
        /// How the losses of elements become the result
        #[arg(long, default_value = "mean", value_parser = reductions(&[
            Reduction::None, Reduction::Mean, Reduction::Sum, Reduction::BatchMean,
        ]))]
        reduction: Reduction,
    },
    /// Logistic loss of scores with targets 1 and -1
    #[command(alias = "soft_margin")]
    SoftMargin {
        #[command(flatten)]
        loss: Loss,
    },
    /// Sigmoid focal loss of logits with targets in [0, 1]
    #[command(alias = "sigmoid_focal")]
    SigmoidFocal {
        #[command(flatten)]
        loss: Loss,
        /// The weight of positive targets, in [0, 1]; negative: no weights
        #[arg(long, default_value_t = 0.25, allow_negative_numbers = true)]
        alpha: f64,
        /// How strongly easy elements are discounted, 0 or more
        #[arg(long, default_value_t = 2.0, allow_negative_numbers = true)]
        gamma: f64,
    },
    /// Softmax along a dimension
    Softmax {
        #[command(flatten)]
        common: Common,
        /// The dimension; negative ones count from the end
        #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
        dim: i64,
    },
    /// Logarithm of the softmax along a dimension
    #[command(alias = "log_softmax")]
    LogSoftmax {
        #[command(flatten)]
        common: Common,
        /// The dimension; negative ones count from the end
        #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
        dim: i64,
    },
    /// Logistic sigmoid
    Sigmoid {
        #[command(flatten)]
        common: Common,
    },
    /// Logarithm of the sigmoid
    #[command(name = "logsigmoid")]
    LogSigmoid {
        #[command(flatten)]
        common: Common,
    },
}

/// What a subcommand asks for.
pub struct Job {
    /// The op with its options.
    pub op: Box<dyn Op>,
    /// The common flags.
    pub common: Common,
    /// How losses become the result: maps have none. In batches, the op itself has sum for mean.
    pub reduction: Option<Reduction>,
    /// What belongs together.
    pub rows: Rows,
    /// The arguments given beside the input.
    pub given: Vec<Given>,
    /// What to write beside loss and gradient.
    pub row_outputs: Vec<(&'static str, Place)>,
}

/// What of an input belongs together, and so to one batch.
#[derive(Debug, Clone, Copy)]
pub enum Rows {
    /// Single elements.
    OfElements,
    /// Rows of classes.
    OfClasses {
        /// The class that marks rows to be left out.
        ignore_index: i64,
        /// The mean where every row is.
        empty_mean: f64,
    },
    /// Rows along a dimension; negative ones count from the end.
    Along(i64),
}

/// An argument beside the input.
pub struct Given {
    /// The library's name for it.
    pub name: &'static str,
    /// The file.
    pub place: Place,
    /// What its elements are.
    pub kind: Kind,
}

/// Puts an argument beside the input among the arguments, by the library's name for it.
pub fn set<T>(args: Args<T>, name: &str, value: T) -> Args<T> {
    match name {
        "target" => args.target(value),
        "weight" => args.weight(value),
        "pos_weight" => args.pos_weight(value),
        _ => args.upstream(value),
    }
}

impl From<OpCommand> for Job {
    fn from(command: OpCommand) -> Job {
        use OpCommand as C;
        let loss = |loss, op| Job::loss(loss, Kind::Numbers, op);
        match command {
            C::CrossEntropy {
                loss,
                weight,
                ignore_index,
                label_smoothing,
                logit_scale,
                softcap,
                z_loss,
                empty_mean,
                logsumexp,
                argmax,
                correct,
            } => {
                let row_outputs =
                    [("logsumexp", logsumexp), ("argmax", argmax), ("correct", correct)];
                let row_outputs =
                    row_outputs.into_iter().filter_map(|(name, to)| Some((name, to?)));
                let row_outputs: Vec<_> = row_outputs.collect();
                let op = CrossEntropy::default()
                    .reduction(loss.op_reduction())
                    .ignore_index(ignore_index)
                    .label_smoothing(label_smoothing)
                    .logit_scale(logit_scale)
                    .z_loss(z_loss)
                    .empty_mean(empty_mean)
                    .row_outputs(!row_outputs.is_empty());
                let op = match softcap {
                    Some(cap) => op.softcap(cap),
                    None => op,
                };
                let rows = Rows::OfClasses { ignore_index, empty_mean };
                let job = Job::loss(loss, Kind::ClassesOrNumbers, Box::new(op));
                Job { rows, row_outputs, ..job.give("weight", weight) }
            }
            C::NllLoss { loss, weight, ignore_index } => {
                let op =
                    NllLoss::default().reduction(loss.op_reduction()).ignore_index(ignore_index);
                let rows = Rows::OfClasses { ignore_index, empty_mean: f64::NAN };
                let job = Job::loss(loss, Kind::Classes, Box::new(op));
                Job { rows, ..job.give("weight", weight) }
            }
            C::Bce { loss: flags, weight } => {
                let op = Bce::default().reduction(flags.op_reduction());
                loss(flags, Box::new(op)).give("weight", weight)
            }
            C::BceWithLogits { loss: flags, weight, pos_weight } => {
                let op = BceWithLogits::default().reduction(flags.op_reduction());
                let job = loss(flags, Box::new(op)).give("weight", weight);
                job.give("pos_weight", pos_weight)
            }
            C::Mse { loss: flags } => {
                let op = Mse::default().reduction(flags.op_reduction());
                loss(flags, Box::new(op))
            }
            C::L1 { loss: flags } => {
                let op = L1::default().reduction(flags.op_reduction());
                loss(flags, Box::new(op))
            }
            C::SmoothL1 { loss: flags, beta } => {
                let op = SmoothL1::default().reduction(flags.op_reduction()).beta(beta);
                loss(flags, Box::new(op))
            }
            C::Huber { loss: flags, delta } => {
                let op = Huber::default().reduction(flags.op_reduction()).delta(delta);
                loss(flags, Box::new(op))
            }
            C::KlDiv { common, target, log_target, reduction } => {
                let flags = Loss { common, target, reduction };
                let op = KlDiv::default().reduction(flags.op_reduction()).log_target(log_target);
                loss(flags, Box::new(op))
            }
            C::SoftMargin { loss: flags } => {
                let op = SoftMargin::default().reduction(flags.op_reduction());
                loss(flags, Box::new(op))
            }
            C::SigmoidFocal { loss: flags, alpha, gamma } => {
                let op = SigmoidFocal::default().reduction(flags.op_reduction());
                loss(flags, Box::new(op.alpha(alpha).gamma(gamma)))
            }
            C::Softmax { common, dim } => {
                let job = Job::map(common, Box::new(Softmax::default().dim(dim)));
                Job { rows: Rows::Along(dim), ..job }
            }
            C::LogSoftmax { common, dim } => {
                let job = Job::map(common, Box::new(LogSoftmax::default().dim(dim)));
                Job { rows: Rows::Along(dim), ..job }
            }
            C::Sigmoid { common } => Job::map(common, Box::new(Sigmoid)),
            C::LogSigmoid { common } => Job::map(common, Box::new(LogSigmoid)),
        }
    }
}

impl Job {
    /// An op with the arguments that every op takes.
    fn map(common: Common, op: Box<dyn Op>) -> Job {
        let upstream = common.upstream.clone();
        let (given, row_outputs) = (vec![], vec![]);
        let job = Job { op, common, reduction: None, rows: Rows::OfElements, given, row_outputs };
        job.give("upstream", upstream)
    }

    /// An op with the arguments that every loss takes; `kind` is what its targets are.
    fn loss(loss: Loss, kind: Kind, op: Box<dyn Op>) -> Job {
        let Loss { common, target: place, reduction } = loss;
        let mut job = Job { reduction: Some(reduction), ..Job::map(common, op) };
        job.given.push(Given { name: "target", place, kind });
        job
    }

    /// Another argument, if it was given.
    fn give(mut self, name: &'static str, place: Option<Place>) -> Job {
        self.given.extend(place.map(|place| Given { name, place, kind: Kind::Numbers }));
        self
    }
}

const REDUCTIONS: [Reduction; 3] = [Reduction::None, Reduction::Mean, Reduction::Sum];

/// A flag that takes the names of some reductions.
fn reductions(allowed: &'static [Reduction]) -> impl TypedValueParser<Value = Reduction> + use<> {
    let help = |reduction| match reduction {
        Reduction::None => "One loss per row or element",
        Reduction::Mean => "Their sum over their number, or over the weights of the target classes",
        Reduction::Sum => "Their sum",
        Reduction::BatchMean => "Their sum over the size of the first dimension",
    };
    let values = allowed.iter().map(|&r| PossibleValue::new(r.name()).help(help(r)));
    PossibleValuesParser::new(values.collect::<Vec<_>>()).try_map(move |name| {
        let found = allowed.iter().find(|reduction| reduction.name() == name);
        found.copied().ok_or_else(|| format!("no reduction {name:?}"))
    })
}

/// [`wgloss::Pass`] as a flag.
#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
pub enum Pass {
    /// The loss or output
    Forward,
    /// The gradient with respect to the input
    Backward,
    /// Both at once
    ForwardBackward,
}

impl From<Pass> for wgloss::Pass {
    fn from(pass: Pass) -> Self {
        match pass {
            Pass::Forward => wgloss::Pass::Forward,
            Pass::Backward => wgloss::Pass::Backward,
            Pass::ForwardBackward => wgloss::Pass::ForwardBackward,
        }
    }
}
