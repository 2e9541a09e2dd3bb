//! The ops as subcommands: what each takes beyond the common flags, and how it is made from them.

use clap::{Subcommand, ValueEnum};
use wgloss::{Args, Array, BceWithLogits, CrossEntropy, Op};

use crate::files::{Kind, Place};

/// An array read from a file.
pub type Host = Array<'static>;

/// The flags that every loss takes.
#[derive(Debug, clap::Args)]
pub struct Common {
    /// Logits or predictions, float32
    #[arg(long, value_name = "FILE")]
    pub input: Place,
    /// Tensor to take from --input, where that is a .safetensors file [default: input]
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// Targets: class indices (int32, int64) for cross-entropy, otherwise float32
    #[arg(long, value_name = "FILE")]
    pub target: Place,
    /// Upstream gradient: one value for mean and sum, the loss's shape for none [default: 1]
    #[arg(long, value_name = "FILE")]
    pub upstream: Option<Place>,
    /// How the losses of rows or elements become the result
    #[arg(long, value_enum, default_value_t = Reduction::Mean)]
    pub reduction: Reduction,
    /// What to compute [default: forward-backward with --grad, otherwise forward]
    #[arg(long, value_enum)]
    pub pass: Option<Pass>,
    /// Where to write the loss
    #[arg(long, value_name = "FILE")]
    pub loss: Option<Place>,
    /// Where to write the gradient
    #[arg(long, value_name = "FILE")]
    pub grad: Option<Place>,
    /// Where to compute
    #[arg(long, value_enum, default_value_t = Device::Auto)]
    pub device: Device,
}

/// An op and its flags.
#[derive(Debug, Subcommand)]
pub enum OpCommand {
    /// Softmax cross entropy of logits [C], [N, C] or [N, C, ...] with class indices
    CrossEntropy {
        #[command(flatten)]
        common: Common,
        /// Weights of classes, [C]
        #[arg(long, value_name = "FILE")]
        weight: Option<Place>,
        /// The class that marks rows to be left out
        #[arg(long, value_name = "CLASS", default_value_t = -100, allow_negative_numbers = true)]
        ignore_index: i64,
        /// The share, in [0, 1], of the target's weight that is spread over all classes
        #[arg(long, value_name = "SHARE", default_value_t = 0.0, allow_negative_numbers = true)]
        label_smoothing: f64,
    },
    /// Binary cross entropy of logits with targets of the same shape
    BceWithLogits {
        #[command(flatten)]
        common: Common,
        /// Weights of elements, broadcast to the input
        #[arg(long, value_name = "FILE")]
        weight: Option<Place>,
        /// Weights of the positive term, broadcast to the input
        #[arg(long, value_name = "FILE")]
        pos_weight: Option<Place>,
    },
}

/// What a subcommand asks for.
pub struct Job {
    /// The op with its options.
    pub op: Box<dyn Op>,
    /// The common flags.
    pub common: Common,
    /// The arguments given beside the input.
    pub given: Vec<Given>,
}

/// An argument beside the input.
pub struct Given {
    /// The library's name for it.
    pub name: &'static str,
    /// The file.
    pub place: Place,
    /// What its elements are.
    pub kind: Kind,
    /// Puts the array among the arguments.
    pub set: fn(Args<Host>, Host) -> Args<Host>,
}

impl From<OpCommand> for Job {
    fn from(command: OpCommand) -> Job {
        match command {
            OpCommand::CrossEntropy { common, weight, ignore_index, label_smoothing } => {
                let op = CrossEntropy::default()
                    .reduction(common.reduction.into())
                    .ignore_index(ignore_index)
                    .label_smoothing(label_smoothing);
                Job::new(op, common, Kind::Classes).give("weight", weight, Args::weight)
            }
            OpCommand::BceWithLogits { common, weight, pos_weight } => {
                let op = BceWithLogits::default().reduction(common.reduction.into());
                Job::new(op, common, Kind::Numbers).give("weight", weight, Args::weight).give(
                    "pos_weight",
                    pos_weight,
                    Args::pos_weight,
                )
            }
        }
    }
}

impl Job {
    /// An op with the arguments that every loss takes; `target` is what its targets are.
    fn new(op: impl Op + 'static, common: Common, target: Kind) -> Job {
        let (place, upstream) = (common.target.clone(), common.upstream.clone());
        let target = Given { name: "target", place, kind: target, set: Args::target };
        Job { op: Box::new(op), common, given: vec![target] }.give(
            "upstream",
            upstream,
            Args::upstream,
        )
    }

    /// Another argument, if it was given.
    fn give(
        mut self,
        name: &'static str,
        place: Option<Place>,
        set: fn(Args<Host>, Host) -> Args<Host>,
    ) -> Job {
        self.given.extend(place.map(|place| Given { name, place, kind: Kind::Numbers, set }));
        self
    }
}

/// [`wgloss::Reduction`] as a flag.
#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
pub enum Reduction {
    /// One loss per row or element
    None,
    /// Their sum over their number (cross-entropy: over the weights of the target classes)
    Mean,
    /// Their sum
    Sum,
}

impl From<Reduction> for wgloss::Reduction {
    fn from(reduction: Reduction) -> Self {
        match reduction {
            Reduction::None => wgloss::Reduction::None,
            Reduction::Mean => wgloss::Reduction::Mean,
            Reduction::Sum => wgloss::Reduction::Sum,
        }
    }
}

/// [`wgloss::Pass`] as a flag.
#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
pub enum Pass {
    /// The loss
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

/// Where to compute.
#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
pub enum Device {
    /// A hardware GPU, or the CPU where there is none
    Auto,
    /// The best adapter, hardware first, a software one if need be
    Gpu,
    /// The CPU, rounded to float32
    Cpu,
    /// The float64 reference; files are written as float64
    Reference,
}

impl Device {
    /// The flag's value.
    pub fn word(self) -> &'static str {
        match self {
            Device::Auto => "auto",
            Device::Gpu => "gpu",
            Device::Cpu => "cpu",
            Device::Reference => "reference",
        }
    }
}
