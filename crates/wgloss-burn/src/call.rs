//! Calls: any op of wgloss on burn's tensors.

use burn::backend::{Dispatch, DispatchTensor, TensorMetadata};
use burn::tensor::{DType, Device, Int, Tensor};
use wgloss::options::{Family, Value};
use wgloss::{Layout, Op, Output, Pass, Role};

use crate::autodiff::Differentiable;
use crate::bridge::{Others, Results, Slot, burn_shape, storage, value_of};
use crate::{Error, Result, device};

/// The arguments of an op: an input, and what else the op takes.
///
/// Tensors may be of f32, f16 or bf16, class indices of any integers, and everything may be sliced,
/// transposed, broadcast or flipped. Rows of an input, or of targets of its shape, that lie apart in
/// memory are read where they are; what lies otherwise is copied by burn first.
#[derive(Debug, Clone)]
#[must_use]
pub struct Args {
    input: DispatchTensor,
    target: Option<DispatchTensor>,
    has_classes: bool,
    weight: Option<DispatchTensor>,
    pos_weight: Option<DispatchTensor>,
    projection: Option<DispatchTensor>,
    bias: Option<DispatchTensor>,
    /// The first argument that has a gradient to ask for, though ops have none.
    tracked: Option<Role>,
}

impl Args {
    /// The input, with respect to which there is a gradient: logits, predictions, hidden states.
    pub fn new<const D: usize>(input: Tensor<D>) -> Self {
        Args {
            input: input.into_dispatch(),
            target: None,
            has_classes: false,
            weight: None,
            pos_weight: None,
            projection: None,
            bias: None,
            tracked: None,
        }
    }

    /// Targets of the input's shape and storage type: numbers, or probabilities of classes.
    pub fn target<const D: usize>(mut self, target: Tensor<D>) -> Self {
        self.note(Role::Target, &target);
        self.target = Some(target.into_dispatch());
        self.has_classes = false;
        self
    }

    /// Class indices, of the input's shape without the class dimension.
    pub fn classes<const D: usize>(mut self, target: Tensor<D, Int>) -> Self {
        self.target = Some(target.into_dispatch());
        self.has_classes = true;
        self
    }

    /// The weights: of classes (`[C]`) for cross entropy and NLL, otherwise of elements, broadcast to
    /// the input. f32.
    pub fn weight<const D: usize>(mut self, weight: Tensor<D>) -> Self {
        self.note(Role::Weight, &weight);
        self.weight = Some(weight.into_dispatch());
        self
    }

    /// The weights of the positive terms of BCE with logits, broadcast to the input. f32.
    pub fn pos_weight<const D: usize>(mut self, pos_weight: Tensor<D>) -> Self {
        self.note(Role::PosWeight, &pos_weight);
        self.pos_weight = Some(pos_weight.into_dispatch());
        self
    }

    /// What hidden states are multiplied by to give logits, of the input's storage type: `[V, D]`, a row a class,
    /// with a gradient of its own where it is in a graph. burn's [`Linear`](burn::nn::Linear) keeps its weight as
    /// `[D, V]`: hand over `weight.val().transpose()`, which burn copies at every call, or keep the weight as
    /// `[V, D]`.
    pub fn projection(mut self, projection: Tensor<2>) -> Self {
        self.projection = Some(projection.into_dispatch());
        self
    }

    /// What is added to each row of logits: `[V]`, with a gradient of its own where it is in a graph. f32; one of
    /// f16, or of bf16 where burn has that, is converted.
    pub fn bias(mut self, bias: Tensor<1>) -> Self {
        let bias = match bias.dtype() {
            DType::F16 | DType::BF16 if bias.device().supports_dtype(bias.dtype()) => {
                bias.cast(DType::F32)
            }
            _ => bias,
        };
        self.bias = Some(bias.into_dispatch());
        self
    }

    fn note<const D: usize>(&mut self, role: Role, tensor: &Tensor<D>) {
        if tensor.is_tracked() {
            self.tracked.get_or_insert(role);
        }
    }

    /// Every argument beside the input.
    fn others(&self) -> impl Iterator<Item = (Role, &DispatchTensor)> {
        let all = [
            (Role::Target, &self.target),
            (Role::Weight, &self.weight),
            (Role::PosWeight, &self.pos_weight),
            (Role::Projection, &self.projection),
            (Role::Bias, &self.bias),
        ];
        all.into_iter().filter_map(|(role, tensor)| Some((role, tensor.as_ref()?)))
    }
}

/// What cross entropy tells of each row beside its loss, for metrics. Of ignored rows too; without
/// gradients.
#[derive(Debug, Clone)]
pub struct RowOutputs<const D: usize> {
    /// The logsumexp of the row's logits, f32. NaN in rows that hold NaN or +inf, or nothing but -inf.
    pub logsumexp: Tensor<D>,
    /// The largest class, the first of several. -1 where the logsumexp is NaN.
    pub argmax: Tensor<D, Int>,
    /// Whether the largest class is the target: 1 or 0; 0 in ignored rows. None where targets are
    /// probabilities.
    pub correct: Option<Tensor<D, Int>>,
    /// The entropy of the row's softmax in nats, f32. NaN where the logsumexp is.
    pub entropy: Tensor<D>,
}

/// A loss, with its gradient in a graph where the input is in one, or the projection or bias of
/// [`LinearCrossEntropy`](wgloss::LinearCrossEntropy). Its storage type is f32, whatever that of the input; a
/// gradient has that of its tensor.
///
/// A mean or a sum has shape `[1]`, as burn's have. Without a reduction the result has the shape of class
/// targets, or that of the input.
///
/// ```no_run
/// use burn::tensor::{Int, Tensor};
/// use wgloss::{CrossEntropy, Reduction};
/// use wgloss_burn::{Args, Result, loss};
///
/// # fn f(logits: Tensor<3>, classes: Tensor<2, Int>) -> Result<()> {
/// // of images: [N, C, d1], without a reduction
/// let op = CrossEntropy::default().reduction(Reduction::None).softcap(30.0);
/// let losses: Tensor<2> = loss(&op, Args::new(logits).classes(classes))?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::NotShared`] and [`Error::NotWgpu`]; [`Error::Tracked`] for targets or weights in a graph;
/// [`Error::Wgloss`] for what the op refuses ([`Op::outputs`]); the others for tensors that do not go
/// together. What only the device sees, such as a class out of range, is told by
/// [`check`](crate::check).
pub fn loss<const R: usize>(op: &dyn Op, args: Args) -> Result<Tensor<R>> {
    expect_rank::<R>(&expect_valid(op, &args)?, Role::Loss)?;
    Ok(Tensor::from_dispatch(call(op, args).value))
}

/// A loss as [`loss`] computes it, and what is known of each row: with
/// [`CrossEntropy::row_outputs`](wgloss::CrossEntropy::row_outputs), in the same read of the logits.
///
/// # Errors
/// As [`loss`]; [`wgloss::Error::NotComputed`] where the op was not told to give row outputs.
pub fn loss_and_rows<const R: usize, const D: usize>(
    op: &dyn Op,
    args: Args,
) -> Result<(Tensor<R>, RowOutputs<D>)> {
    let outputs = expect_valid(op, &args)?;
    expect_rank::<R>(&outputs, Role::Loss)?;
    expect_rank::<D>(&outputs, Role::LogSumExp)?;
    let results = call(op, args);
    let missing = |result| wgloss::Error::NotComputed { result };
    let rows = RowOutputs {
        logsumexp: float(results.logsumexp).ok_or(missing("logsumexp"))?,
        argmax: int(results.argmax).ok_or(missing("argmax"))?,
        correct: int(results.correct),
        entropy: float(results.entropy).ok_or(missing("entropy"))?,
    };
    Ok((Tensor::from_dispatch(results.value), rows))
}

/// A map, such as [`wgloss::Softmax`], with its gradient in a graph where the input is in one. Shape and
/// storage type are the input's.
///
/// # Errors
/// As [`loss`].
pub fn map<const D: usize>(op: &dyn Op, input: Tensor<D>) -> Result<Tensor<D>> {
    let args = Args::new(input);
    expect_rank::<D>(&expect_valid(op, &args)?, Role::Output)?;
    Ok(Tensor::from_dispatch(call(op, args).value))
}

/// An op over arguments that were checked.
fn call(op: &dyn Op, args: Args) -> Results<Dispatch> {
    let float = |tensor: Option<DispatchTensor>| tensor.map_or(Slot::Empty, Slot::Float);
    let target = match args.has_classes {
        true => args.target.map_or(Slot::Empty, Slot::Int),
        false => float(args.target),
    };
    let others = Others {
        target,
        weight: float(args.weight),
        pos_weight: float(args.pos_weight),
        projection: float(args.projection),
        bias: float(args.bias),
    };
    Dispatch::wgloss_call(args.input, others, op.boxed())
}

fn float<const D: usize>(slot: Slot<Dispatch>) -> Option<Tensor<D>> {
    match slot {
        Slot::Float(tensor) => Some(Tensor::from_dispatch(tensor)),
        _ => None,
    }
}

fn int<const D: usize>(slot: Slot<Dispatch>) -> Option<Tensor<D, Int>> {
    match slot {
        Slot::Int(tensor) => Some(Tensor::from_dispatch(tensor)),
        _ => None,
    }
}

/// Refuses another number of dimensions than a result has.
fn expect_rank<const R: usize>(outputs: &Output<Layout>, role: Role) -> Result<()> {
    let layout = outputs.get(role).ok_or(wgloss::Error::NotComputed { result: role.name() })?;
    let actual = burn_shape(layout).to_vec();
    match actual.len() == R {
        true => Ok(()),
        false => Err(Error::Rank { result: role.name(), expected: R, actual }),
    }
}

/// Refuses a class to be left out that no target can be, since targets become i32.
fn expect_i32(op: &dyn Op) -> Result<()> {
    let ignored = op.options().into_iter().find(|option| option.name == "ignore_index");
    match ignored.map(|option| option.value) {
        Some(Value::Integer(class)) if i32::try_from(class).is_err() => {
            let (argument, expected) = ("ignore_index", "an integer that i32 holds".into());
            Err(wgloss::Error::Value { argument, expected, actual: class.to_string() }.into())
        }
        _ => Ok(()),
    }
}

/// Checks all that can be checked before burn computes, which may be much later and on another thread.
fn expect_valid(op: &dyn Op, args: &Args) -> Result<Output<Layout>> {
    let device = Device::new(args.input.device());
    device::shared(&device)?;
    let layout = |role: Role, tensor: &DispatchTensor| {
        let (argument, actual) = (role.name(), tensor.dtype());
        let expected = "f32, f16, bf16 or integers";
        let dtype = storage(actual).ok_or(Error::DType { argument, expected, actual })?;
        Ok::<_, Error>(Layout::new(&tensor.shape(), dtype))
    };
    let mut layouts = wgloss::Args::new(layout(Role::Input, &args.input)?);
    for (role, tensor) in args.others() {
        let actual = Device::new(tensor.device());
        if actual.clone().inner() != device.clone().inner() {
            let (expected, actual) = (format!("{device:?}"), format!("{actual:?}"));
            return Err(Error::OtherDevice { argument: role.name(), expected, actual });
        }
        let layout = layout(role, tensor)?;
        layouts = match role {
            Role::Target => layouts.target(layout),
            Role::Weight => layouts.weight(layout),
            Role::Projection => layouts.projection(layout),
            Role::Bias => layouts.bias(layout),
            _ => layouts.pos_weight(layout),
        };
    }
    let outputs = op.outputs(Pass::Forward, &layouts)?;
    expect_i32(op)?;
    if let Some(role) = args.tracked {
        return Err(Error::Tracked { argument: role.name() });
    }
    let is_reduced = value_of(&outputs).is_some_and(|value| value.shape().is_empty());
    // an upstream gradient of one value a row would have to become bf16
    if args.input.dtype() == DType::BF16
        && !is_reduced
        && op.kind().family != Family::LinearLoss
        && outputs.get(Role::Loss).is_some()
        && Dispatch::is_tracked(&args.input)
        && !device.supports_dtype(DType::BF16)
    {
        let expected = "f32 or f16 for the gradient of a loss without reduction, since burn has no \
                        bf16 on this device";
        return Err(Error::DType { argument: "input", expected, actual: DType::BF16 });
    }
    Ok(outputs)
}
