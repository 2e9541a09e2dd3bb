//! The ops as subcommands: what each takes beyond the common flags, and how it is made from them.

use std::num::NonZeroUsize;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Args as _, Command, FromArgMatches, Subcommand, ValueEnum};
use wgloss::options::{Family, Info, Target, Value, Weight};
use wgloss::{Args, Array, DType, Op, Reduction, Role};

use crate::files::{Kind, Place};
use crate::machine::Device;
use crate::report::Json;
use crate::run::explain;

/// An array read from a file.
pub type Host = Array<'static>;

/// The flags that every op takes.
#[derive(Debug, clap::Args)]
pub struct Common {
    /// Logits, predictions or numbers: float32, float16, or bfloat16 (.safetensors); others are converted
    /// to float32
    #[arg(long, value_name = "FILE")]
    pub input: Place,
    /// Tensor to take from --input, where that is a .safetensors file [default: input]
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// Upstream gradient: one value for mean and sum, otherwise the shape of loss or output
    /// [default: 1; the gradient of a map needs one]
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
    #[arg(long, value_name = "ROWS", allow_negative_numbers = true)]
    pub batch_rows: Option<NonZeroUsize>,
    /// Where to compute
    #[arg(long, value_enum, default_value_t = Device::Auto)]
    pub device: Device,
    /// Only adapters whose name or driver contains this, in any case of letters: as `wgloss devices` has
    /// them
    #[arg(long, value_name = "NAME")]
    pub adapter: Option<String>,
    #[command(flatten)]
    pub json: Json,
}

/// An op as a subcommand, and what was given to it.
#[derive(Debug)]
pub struct OpCommand {
    op: Box<dyn Op>,
    common: Common,
    given: ArgMatches,
}

/// The subcommands are made from what ops say of themselves.
impl Subcommand for OpCommand {
    fn augment_subcommands(command: Command) -> Command {
        command.subcommands(wgloss::ops().iter().map(|op| subcommand(&**op)))
    }

    fn augment_subcommands_for_update(command: Command) -> Command {
        Self::augment_subcommands(command)
    }

    fn has_subcommand(name: &str) -> bool {
        wgloss::ops().iter().any(|op| dashed(op.name()) == name)
    }
}

impl FromArgMatches for OpCommand {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let missing = || clap::Error::new(ErrorKind::MissingSubcommand);
        let (name, given) = matches.subcommand().ok_or_else(missing)?;
        let op = wgloss::ops().into_iter().find(|op| dashed(op.name()) == name);
        let op = op.ok_or_else(missing)?;
        Ok(OpCommand { op, common: Common::from_arg_matches(given)?, given: given.clone() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// `smooth_l1` as `smooth-l1`.
fn dashed(name: &str) -> String {
    name.replace('_', "-")
}

/// Options without a flag. Flags for results stand for some: to keep rows' state is of no use in a file, row
/// outputs are asked for one by one, and gradients that are not asked for are left out. Shards tell one another
/// partials, which files do not hold.
const WITHOUT_FLAG: [&str; 7] = [
    "keep_state",
    "row_outputs",
    "freeze_input",
    "freeze_projection",
    "freeze_bias",
    "first_class",
    "total_classes",
];

/// The gradients of losses whose logits are a product, and the option that leaves each out.
const GRADS: [(&str, &str); 3] = [
    ("grad", "freeze_input"),
    ("grad_projection", "freeze_projection"),
    ("grad_bias", "freeze_bias"),
];

/// What rows have beside a loss.
const ROW_OUTPUTS: [(&str, &str); 4] = [
    ("logsumexp", "Where to write each row's logsumexp"),
    ("argmax", "Where to write each row's largest class"),
    ("correct", "Where to write whether each row's largest class is its target"),
    ("entropy", "Where to write the entropy of each row's softmax, in nats"),
];

/// The subcommand of an op. Its alias is the name that the op has elsewhere.
fn subcommand(op: &dyn Op) -> Command {
    let mut command = Common::augment_args(Command::new(dashed(op.name())));
    // in place of what the flags say of themselves
    command = command.about(op.about());
    if dashed(op.name()) != op.name() {
        command = command.alias(op.name());
    }
    let kind = op.kind();
    let file = |name: &'static str, help: &'static str| {
        let parser = clap::value_parser!(Place);
        Arg::new(name).long(dashed(name)).value_name("FILE").value_parser(parser).help(help)
    };
    if let Some(target) = kind.target {
        let help = match target {
            Target::Classes => "Targets: class indices (integers or bool)",
            Target::ClassesOrProbabilities => {
                "Targets: class indices (integers or bool), or probabilities in the input's shape and type"
            }
            _ => {
                "Targets: numbers of the input's shape and type; float64, integers and bool are converted"
            }
        };
        command = command.arg(file("target", help).required(true));
    }
    if kind.family == Family::LinearLoss {
        let input = "Hidden states, [..., D]: float32, float16, or bfloat16 (.safetensors); others are converted \
                     to float32";
        command = command
            .mut_arg("input", |arg| arg.help(input))
            .mut_arg("grad", |arg| arg.help("Where to write the gradient of the hidden states"))
            .arg(
                file("projection", "What hidden states are multiplied by, [V, D], in their type")
                    .required(true),
            )
            .arg(file("bias", "What is added to each class's logits, [V]"))
            .arg(file("grad_projection", "Where to write the gradient of the projection"))
            .arg(file("grad_bias", "Where to write the gradient of the bias"));
    }
    if let Some(weight) = kind.weight {
        let help = match weight {
            Weight::Classes => "Weights of classes, [C]",
            Weight::Elements => "Weights of elements, broadcast to the input",
        };
        command = command.arg(file("weight", help));
    }
    if kind.pos_weight {
        let help = "Weights of the positive term, broadcast to the input";
        command = command.arg(file("pos_weight", help));
    }
    let options = op.options().into_iter().filter(|info| !WITHOUT_FLAG.contains(&info.name));
    command = command.args(options.map(option));
    if kind.row_outputs {
        command = command.args(ROW_OUTPUTS.map(|(name, help)| file(name, help)));
    }
    command
}

/// An option as a flag.
fn option(info: Info) -> Arg {
    let arg = Arg::new(info.name).long(dashed(info.name)).help(info.doc);
    let arg = arg.value_name(info.name.to_uppercase());
    let default = info.value.to_string();
    match info.value {
        Value::Bool(false) => arg.action(ArgAction::SetTrue),
        Value::Bool(true) => {
            let parse = move |text: &str| info.parse(text);
            arg.default_value(default).value_parser(parse)
        }
        Value::Reduction(_) => arg.default_value(default).value_parser(reductions(info)),
        Value::Optional(None) => {
            let help = format!("{} [default: none]", info.doc);
            number(arg.help(help), info)
        }
        Value::Integer(_) | Value::Number(_) | Value::Optional(_) => {
            number(arg.default_value(default), info)
        }
    }
}

/// A flag whose value may begin with a dash: `-1e-4`, `-.5`, `-inf`.
fn number(arg: Arg, info: Info) -> Arg {
    let parse =
        move |text: &str| info.parse(text).map_err(|_| format!("expected {}", info.expected));
    arg.allow_hyphen_values(true).value_parser(parse)
}

/// The names of the reductions that an op takes.
fn reductions(info: Info) -> impl TypedValueParser<Value = Value> {
    let help = |reduction| match reduction {
        Value::Reduction(Reduction::None) => "One loss per row or element",
        Value::Reduction(Reduction::Mean) => {
            "Their sum over their number, or over the weights of the target classes"
        }
        Value::Reduction(Reduction::BatchMean) => "Their sum over the size of the first dimension",
        _ => "Their sum",
    };
    let values = info.samples.iter().map(|&v| PossibleValue::new(v.to_string()).help(help(v)));
    PossibleValuesParser::new(values.collect::<Vec<_>>()).try_map(move |name| info.parse(&name))
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
    /// What to write beside the loss and the input's gradient.
    pub others: Vec<(&'static str, Place)>,
}

impl Job {
    /// What a number that is no float16 or bfloat16 is converted to, where an argument is of the input's type.
    pub fn float(&self, name: &str, of_input: DType) -> DType {
        let is_reduced = self.reduction.is_some_and(|reduction| reduction != Reduction::None);
        let is_linear = matches!(self.rows, Rows::OfClasses { is_linear: true, .. });
        match name {
            "target" | "projection" => of_input,
            "upstream" if !is_reduced && !is_linear => of_input,
            _ => DType::F32,
        }
    }
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
        /// Whether they are products of hidden states `[..., D]`, which have no dimension of classes.
        is_linear: bool,
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
        "projection" => args.projection(value),
        "bias" => args.bias(value),
        _ => args.upstream(value),
    }
}

impl OpCommand {
    /// What it asks for.
    ///
    /// # Errors
    /// That of an option which is outside its range, by its flag.
    pub fn job(self) -> anyhow::Result<Job> {
        let OpCommand { mut op, common, given } = self;
        let mut reduction = None;
        for info in op.options().iter().filter(|info| !WITHOUT_FLAG.contains(&info.name)) {
            let mut value = match info.value {
                Value::Bool(false) => Value::Bool(given.get_flag(info.name)),
                _ => given.get_one(info.name).copied().unwrap_or(info.value),
            };
            if let Value::Reduction(asked) = value {
                reduction = Some(asked);
                // in batches, a mean is the sum of the batches' sums, divided once
                let is_mean = matches!(asked, Reduction::Mean | Reduction::BatchMean);
                if is_mean && common.batch_rows.is_some() {
                    value = Value::Reduction(Reduction::Sum);
                }
            }
            op.set(info.name, value).map_err(|error| explain(&error, &[], None))?;
        }
        let kind = op.kind();
        let place = |name: &str| given.get_one::<Place>(name).cloned();
        let mut others = Vec::new();
        if kind.row_outputs {
            others.extend(ROW_OUTPUTS.iter().filter_map(|&(name, _)| Some((name, place(name)?))));
            op.set("row_outputs", Value::Bool(!others.is_empty()))?;
        }
        let is_linear = kind.family == Family::LinearLoss;
        if is_linear {
            // a pass that computes gradients of which none is to be written tells of all
            let is_any = GRADS.iter().any(|(name, _)| place(name).is_some());
            for (name, freeze) in GRADS {
                op.set(freeze, Value::Bool(is_any && place(name).is_none()))?;
            }
            let grads = GRADS.iter().filter(|(name, _)| *name != Role::Grad.name());
            others.extend(grads.filter_map(|&(name, _)| Some((name, place(name)?))));
        }
        let target = kind.target.map(|target| match target {
            Target::Classes => Kind::Classes,
            Target::ClassesOrProbabilities => Kind::ClassesOrNumbers,
            _ => Kind::Numbers,
        });
        let arguments = [
            ("upstream", Some(Kind::Numbers)),
            ("target", target),
            ("weight", kind.weight.map(|_| Kind::Numbers)),
            ("pos_weight", kind.pos_weight.then_some(Kind::Numbers)),
            ("projection", is_linear.then_some(Kind::Numbers)),
            ("bias", is_linear.then_some(Kind::Numbers)),
        ];
        let arguments = arguments.into_iter().filter_map(|(name, kind)| {
            let (kind, place) = (kind?, place(name)?);
            Some(Given { name, place, kind })
        });
        let rows = match kind.family {
            Family::RowLoss | Family::LinearLoss => Rows::OfClasses {
                ignore_index: integer(&*op, "ignore_index"),
                empty_mean: match value(&*op, "empty_mean") {
                    Some(Value::Number(empty_mean)) => empty_mean,
                    _ => f64::NAN,
                },
                is_linear,
            },
            Family::RowMap => Rows::Along(integer(&*op, "dim")),
            Family::ElementLoss | Family::ElementMap => Rows::OfElements,
        };
        let given = arguments.collect();
        Ok(Job { op, common, reduction, rows, given, others })
    }
}

fn value(op: &dyn Op, name: &str) -> Option<Value> {
    op.options().into_iter().find(|info| info.name == name).map(|info| info.value)
}

/// The value of an option that every op of a family has.
pub fn integer(op: &dyn Op, name: &str) -> i64 {
    match value(op, name) {
        Some(Value::Integer(value)) => value,
        _ => 0,
    }
}

/// Whether an option is there and on.
pub fn is_on(op: &dyn Op, name: &str) -> bool {
    value(op, name) == Some(Value::Bool(true))
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
