//! Losses as modules, made from configs as burn's are, with the names that burn's have where burn has
//! them: a program changes its `use` lines.
//!
//! ```no_run
//! use burn::tensor::{Device, Int, Tensor};
//! use wgloss_burn::CrossEntropyLossConfig; // instead of burn::nn::loss::CrossEntropyLossConfig
//!
//! # fn f(device: &Device, logits: Tensor<2>, targets: Tensor<1, Int>) {
//! let loss = CrossEntropyLossConfig::new().with_smoothing(Some(0.1)).init(device);
//! let loss: Tensor<1> = loss.forward(logits, targets);
//! # }
//! ```
//!
//! Their methods panic where [`loss`](crate::loss()) returns an error, at the call and before anything is
//! computed, since burn's have no result type; [`op`](CrossEntropyLoss::op) gives what to call `loss` with.

use burn::config::Config;
use burn::module::Module;
use burn::nn::loss::Reduction;
use burn::tensor::{AsIndex, DType, Device, Int, Tensor};
use wgloss::options::Value;
use wgloss::{
    Bce, BceWithLogits, CrossEntropy, Huber, KlDiv, L1, LinearCrossEntropy, Mse, NllLoss as Nll,
    Op, PoissonNll, SigmoidFocal, SmoothL1, SoftMargin,
};

use crate::Error;
use crate::activation::expect;
use crate::call::{Args, RowOutputs, loss, loss_and_rows};

/// The op with a reduction; `None` for none.
fn reduced(op: &dyn Op, reduction: Option<Reduction>) -> Box<dyn Op> {
    let reduction = match reduction {
        None => wgloss::Reduction::None,
        Some(Reduction::Sum) => wgloss::Reduction::Sum,
        Some(Reduction::BatchMean) => wgloss::Reduction::BatchMean,
        // what burn means by it
        Some(Reduction::Auto) if op.name() == KlDiv::default().name() => {
            wgloss::Reduction::BatchMean
        }
        Some(Reduction::Mean | Reduction::Auto) => wgloss::Reduction::Mean,
    };
    let mut op = op.boxed();
    expect(op.set("reduction", Value::Reduction(reduction)).map_err(Into::into));
    op
}

fn to_tensor(weights: Option<&Vec<f32>>, device: &Device) -> Option<Tensor<1>> {
    let weights = weights?;
    Some(Tensor::from_floats(&weights[..], &device.clone().without_autodiff()))
}

// ---------------------------------------------------------------------------- rows of classes

/// Configuration of [`CrossEntropyLoss`]. See [`wgloss::CrossEntropy`] for what each option does, to the
/// edge cases.
#[derive(Config, Debug)]
pub struct CrossEntropyLossConfig {
    /// Targets that are left out, as burn's are. With them, there is no other `ignore_index`.
    pub pad_tokens: Option<Vec<usize>>,
    /// The target that is left out: any that an i32 holds.
    #[config(default = "-100")]
    pub ignore_index: i64,
    /// A weight for each class: any finite numbers.
    pub weights: Option<Vec<f32>>,
    /// The share, in `[0, 1]`, of the target's weight that is spread evenly over all classes.
    pub smoothing: Option<f64>,
    /// The mean where every target is left out. None: NaN.
    pub empty_mean: Option<f64>,
    /// What logits are multiplied by.
    #[config(default = "1.0")]
    pub logit_scale: f64,
    /// Bounds logits: each becomes `softcap * tanh(x / softcap)`.
    pub softcap: Option<f64>,
    /// Adds `z_loss * logsumexp^2` to each row's loss.
    #[config(default = "0.0")]
    pub z_loss: f64,
}

impl CrossEntropyLossConfig {
    /// The loss, with its weights on this device. Options outside their range are refused when it is
    /// called.
    pub fn init(&self, device: &Device) -> CrossEntropyLoss {
        let pad_tokens = self.pad_tokens.clone().unwrap_or_default();
        let mut op = CrossEntropy::default()
            .ignore_index(pad_tokens.first().map_or(self.ignore_index, |&token| token as i64))
            .label_smoothing(self.smoothing.unwrap_or(0.0))
            .empty_mean(self.empty_mean.unwrap_or(f64::NAN))
            .logit_scale(self.logit_scale)
            .z_loss(self.z_loss);
        if let Some(softcap) = self.softcap {
            op = op.softcap(softcap);
        }
        let weights = to_tensor(self.weights.as_ref(), device);
        CrossEntropyLoss { weights, pad_tokens, op }
    }
}

/// Softmax cross entropy of logits `[N, C]` or `[N, C, d1, ...]`.
#[derive(Module, Debug)]
pub struct CrossEntropyLoss {
    weights: Option<Tensor<1>>,
    #[module(skip)]
    pad_tokens: Vec<usize>,
    #[module(skip)]
    op: CrossEntropy,
}

impl CrossEntropyLoss {
    /// The loss without options, but for a target that may be left out.
    pub fn new(pad_index: Option<usize>, device: &Device) -> Self {
        let pad_tokens = pad_index.map(|token| vec![token]);
        CrossEntropyLossConfig::new().with_pad_tokens(pad_tokens).init(device)
    }

    /// The op with its options: for [`loss`](crate::loss()), which returns errors.
    pub fn op(&self) -> &CrossEntropy {
        &self.op
    }

    /// The mean over the rows that are not left out; with weights, over the sum of their targets'
    /// weights. Targets are class indices in the logits' shape without the dimension C.
    ///
    /// # Panics
    /// Where [`loss`](crate::loss()) returns an error.
    pub fn forward<const D: usize, const T: usize>(
        &self,
        logits: Tensor<D>,
        targets: Tensor<T, Int>,
    ) -> Tensor<1> {
        self.forward_with_reduction(logits, targets, Reduction::Mean)
    }

    /// The mean or the sum.
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn forward_with_reduction<const D: usize, const T: usize>(
        &self,
        logits: Tensor<D>,
        targets: Tensor<T, Int>,
        reduction: Reduction,
    ) -> Tensor<1> {
        expect(loss(&*reduced(&self.op, Some(reduction)), self.args(logits, targets)))
    }

    /// Each row's loss, in the targets' shape.
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn forward_no_reduction<const D: usize, const T: usize>(
        &self,
        logits: Tensor<D>,
        targets: Tensor<T, Int>,
    ) -> Tensor<T> {
        expect(loss(&*reduced(&self.op, None), self.args(logits, targets)))
    }

    /// The mean, and for metrics each row's logsumexp, largest class, whether that is the target, and
    /// entropy: in the same read of the logits.
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn forward_with_rows<const D: usize, const T: usize>(
        &self,
        logits: Tensor<D>,
        targets: Tensor<T, Int>,
    ) -> (Tensor<1>, RowOutputs<T>) {
        let op = self.op.clone().row_outputs(true);
        expect(loss_and_rows(&op, self.args(logits, targets)))
    }

    /// The mean, with a probability for each class as targets, in the logits' shape and storage type.
    ///
    /// # Panics
    /// As [`forward`](Self::forward); with `pad_tokens`, since such targets are never left out.
    pub fn forward_probabilities<const D: usize>(
        &self,
        logits: Tensor<D>,
        targets: Tensor<D>,
    ) -> Tensor<1> {
        let args = self.weighted(Args::new(logits).target(targets));
        expect(loss(&self.op, args))
    }

    fn args<const D: usize, const T: usize>(
        &self,
        logits: Tensor<D>,
        mut targets: Tensor<T, Int>,
    ) -> Args {
        if let [first, others @ ..] = &self.pad_tokens[..] {
            for &token in others {
                let is_pad = targets.clone().equal_scalar(token as i64);
                targets = targets.mask_fill(is_pad, *first as i64);
            }
        }
        self.weighted(Args::new(logits).classes(targets))
    }

    fn weighted(&self, args: Args) -> Args {
        match &self.weights {
            Some(weights) => args.weight(weights.clone()),
            None => args,
        }
    }
}

/// Configuration of [`LinearCrossEntropyLoss`].
#[derive(Config, Debug)]
pub struct LinearCrossEntropyLossConfig {
    /// The options of the loss of logits.
    #[config(default = "CrossEntropyLossConfig::new()")]
    pub loss: CrossEntropyLossConfig,
    /// The most bytes of memory for blocks of logits and of copies: at least one row's.
    #[config(default = "268435456")]
    pub workspace_bytes: i64,
    /// Whether backward computes the logits again, so that the graph keeps 16 bytes a row in place of gradients: see
    /// [`LinearCrossEntropyLoss`].
    #[config(default = "false")]
    pub recompute: bool,
}

impl LinearCrossEntropyLossConfig {
    /// The loss, with its weights on this device. Options outside their range are refused when it is
    /// called.
    pub fn init(&self, device: &Device) -> LinearCrossEntropyLoss {
        let loss = self.loss.init(device);
        let of_logits = loss.op.clone().keep_state(self.recompute);
        let op = LinearCrossEntropy::new(of_logits).workspace_bytes(self.workspace_bytes);
        LinearCrossEntropyLoss { loss, op }
    }
}

/// Softmax cross entropy of the logits `hidden projection^T + bias`, which are never stored, with gradients of all
/// three: [`wgloss::LinearCrossEntropy`]. It is the loss of language models.
///
/// Hidden states are `[..., D]`, the projection is `[V, D]` of their storage type, the bias is `[V]` of f32 or f16. A
/// projection or bias without a gradient, such as that of a head that is not trained, saves the work for it. burn's
/// [`Linear`](burn::nn::Linear) keeps its weight as `[D, V]`: hand over `weight.val().transpose()`, which burn copies
/// at every call (V x D numbers), or keep the head as `[V, D]`, as an embedding has it.
///
/// # In a graph
/// A mean or a sum of f32 has its gradients computed in `forward`, in one pass with the loss: three products of N x V
/// x D. The graph keeps those of what is tracked, over hidden states that nobody else holds, and `backward` multiplies
/// them by the upstream gradient, which stays on the device. So a loss that is not for training is
/// better computed without autodiff (`inner()`), in one product; and each of several losses that are summed before
/// `backward` keeps V x D numbers.
///
/// [`recompute`](LinearCrossEntropyLossConfig::recompute) keeps the arguments and 16 bytes a row instead, and
/// `backward` computes the logits again: four products. So do, whatever it says, losses without a reduction, whose
/// upstream gradient is known in `backward` alone; and f16 and bf16, since a mean's gradient may be too small for
/// f16 before the loss's scale is in it. An op of the caller's own says it by
/// [`keep_state`](wgloss::CrossEntropy::keep_state).
///
/// Rows that are left out have a gradient of 0 whatever the upstream gradient is, as has a projection or bias where all
/// are. Of rows that are kept, the multiplication is the usual one: an infinity times 0 is NaN.
///
/// ```no_run
/// use burn::tensor::{Device, Int, Tensor};
/// use wgloss_burn::{CrossEntropyLossConfig, LinearCrossEntropyLossConfig};
///
/// # fn f(device: &Device, hidden: Tensor<3>, head: Tensor<2>, targets: Tensor<2, Int>) {
/// let options = CrossEntropyLossConfig::new().with_smoothing(Some(0.1));
/// let loss = LinearCrossEntropyLossConfig::new().with_loss(options).init(device);
/// // [batch, time, D], [V, D] and [batch, time]
/// let loss: Tensor<1> = loss.forward(hidden, head, None, targets);
/// # }
/// ```
#[derive(Module, Debug)]
pub struct LinearCrossEntropyLoss {
    loss: CrossEntropyLoss,
    #[module(skip)]
    op: LinearCrossEntropy,
}

impl LinearCrossEntropyLoss {
    /// The op with its options: for [`loss`](crate::loss()), which returns errors.
    pub fn op(&self) -> &LinearCrossEntropy {
        &self.op
    }

    /// The mean over the rows that are not left out; with weights, over the sum of their targets'
    /// weights. Targets are class indices in the hidden states' shape without the last dimension.
    ///
    /// # Panics
    /// Where [`loss`](crate::loss()) returns an error.
    pub fn forward<const D: usize, const T: usize>(
        &self,
        hidden: Tensor<D>,
        projection: Tensor<2>,
        bias: Option<Tensor<1>>,
        targets: Tensor<T, Int>,
    ) -> Tensor<1> {
        self.forward_with_reduction(hidden, projection, bias, targets, Reduction::Mean)
    }

    /// The mean or the sum.
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn forward_with_reduction<const D: usize, const T: usize>(
        &self,
        hidden: Tensor<D>,
        projection: Tensor<2>,
        bias: Option<Tensor<1>>,
        targets: Tensor<T, Int>,
        reduction: Reduction,
    ) -> Tensor<1> {
        let op = reduced(&self.op, Some(reduction));
        expect(loss(&*op, self.args(hidden, projection, bias, targets)))
    }

    /// Each row's loss, in the targets' shape.
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn forward_no_reduction<const D: usize, const T: usize>(
        &self,
        hidden: Tensor<D>,
        projection: Tensor<2>,
        bias: Option<Tensor<1>>,
        targets: Tensor<T, Int>,
    ) -> Tensor<T> {
        expect(loss(&*reduced(&self.op, None), self.args(hidden, projection, bias, targets)))
    }

    /// The mean, and what [`CrossEntropyLoss::forward_with_rows`] tells of each row.
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn forward_with_rows<const D: usize, const T: usize>(
        &self,
        hidden: Tensor<D>,
        projection: Tensor<2>,
        bias: Option<Tensor<1>>,
        targets: Tensor<T, Int>,
    ) -> (Tensor<1>, RowOutputs<T>) {
        let mut op = self.op.clone();
        expect(op.set("row_outputs", Value::Bool(true)).map_err(Into::into));
        expect(loss_and_rows(&op, self.args(hidden, projection, bias, targets)))
    }

    fn args<const D: usize, const T: usize>(
        &self,
        hidden: Tensor<D>,
        projection: Tensor<2>,
        bias: Option<Tensor<1>>,
        targets: Tensor<T, Int>,
    ) -> Args {
        let args = self.loss.args(hidden, targets).projection(projection);
        match bias {
            Some(bias) => args.bias(bias),
            None => args,
        }
    }
}

/// Configuration of [`NllLoss`]. See [`wgloss::NllLoss`].
#[derive(Config, Debug)]
pub struct NllLossConfig {
    /// The target that is left out: any that an i32 holds.
    #[config(default = "-100")]
    pub ignore_index: i64,
    /// A weight for each class: any finite numbers.
    pub weights: Option<Vec<f32>>,
}

impl NllLossConfig {
    /// The loss, with its weights on this device.
    pub fn init(&self, device: &Device) -> NllLoss {
        let weights = to_tensor(self.weights.as_ref(), device);
        NllLoss { weights, op: Nll::default().ignore_index(self.ignore_index) }
    }
}

/// Negative log-likelihood of log-probabilities `[N, C]` or `[N, C, d1, ...]`.
#[derive(Module, Debug)]
pub struct NllLoss {
    weights: Option<Tensor<1>>,
    #[module(skip)]
    op: Nll,
}

impl NllLoss {
    /// The op with its options: for [`loss`](crate::loss()), which returns errors.
    pub fn op(&self) -> &Nll {
        &self.op
    }

    /// The mean or the sum. Targets are class indices in the input's shape without the dimension C.
    ///
    /// # Panics
    /// Where [`loss`](crate::loss()) returns an error.
    pub fn forward<const D: usize, const T: usize>(
        &self,
        log_probabilities: Tensor<D>,
        targets: Tensor<T, Int>,
        reduction: Reduction,
    ) -> Tensor<1> {
        let op = reduced(&self.op, Some(reduction));
        expect(loss(&*op, self.args(log_probabilities, targets)))
    }

    /// Each row's loss, in the targets' shape.
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn forward_no_reduction<const D: usize, const T: usize>(
        &self,
        log_probabilities: Tensor<D>,
        targets: Tensor<T, Int>,
    ) -> Tensor<T> {
        expect(loss(&*reduced(&self.op, None), self.args(log_probabilities, targets)))
    }

    fn args<const D: usize, const T: usize>(
        &self,
        input: Tensor<D>,
        targets: Tensor<T, Int>,
    ) -> Args {
        let args = Args::new(input).classes(targets);
        match &self.weights {
            Some(weights) => args.weight(weights.clone()),
            None => args,
        }
    }
}

// ---------------------------------------------------------------------------- elements

/// A module for an element-wise loss without weights.
macro_rules! element_loss {
    ($(#[$doc:meta])* $Loss:ident, $Op:ty) => {
        $(#[$doc])*
        #[derive(Module, Debug)]
        pub struct $Loss {
            #[module(skip)]
            op: $Op,
        }

        impl $Loss {
            /// The op with its options: for [`loss`](crate::loss()), which returns errors.
            pub fn op(&self) -> &$Op {
                &self.op
            }

            /// The reduced loss of predictions and targets of the same shape and storage type.
            ///
            /// # Panics
            /// Where [`loss`](crate::loss()) returns an error.
            pub fn forward<const D: usize>(
                &self,
                predictions: Tensor<D>,
                targets: Tensor<D>,
                reduction: Reduction,
            ) -> Tensor<1> {
                let op = reduced(&self.op, Some(reduction));
                expect(loss(&*op, Args::new(predictions).target(targets)))
            }

            /// Each element's loss.
            ///
            /// # Panics
            /// As [`forward`](Self::forward).
            pub fn forward_no_reduction<const D: usize>(
                &self,
                predictions: Tensor<D>,
                targets: Tensor<D>,
            ) -> Tensor<D> {
                expect(loss(&*reduced(&self.op, None), Args::new(predictions).target(targets)))
            }
        }
    };
}

/// The loss of an op without options.
macro_rules! plain_loss {
    ($Loss:ident, $Op:ty) => {
        impl $Loss {
            /// The loss.
            pub fn new() -> Self {
                $Loss { op: <$Op>::default() }
            }
        }

        impl Default for $Loss {
            fn default() -> Self {
                Self::new()
            }
        }
    };
}

element_loss!(
    /// The squared error: [`wgloss::Mse`].
    MseLoss,
    Mse
);
plain_loss!(MseLoss, Mse);

element_loss!(
    /// The absolute error: [`wgloss::L1`].
    L1Loss,
    L1
);
plain_loss!(L1Loss, L1);

element_loss!(
    /// `ln(1 + e^(-t x))`: [`wgloss::SoftMargin`].
    SoftMarginLoss,
    SoftMargin
);
plain_loss!(SoftMarginLoss, SoftMargin);

/// Configuration of [`SmoothL1Loss`].
#[derive(Config, Debug)]
pub struct SmoothL1LossConfig {
    /// Where the square ends: 0 or more.
    #[config(default = "1.0")]
    pub beta: f64,
}

impl SmoothL1LossConfig {
    /// The loss.
    pub fn init(&self) -> SmoothL1Loss {
        SmoothL1Loss { op: SmoothL1::default().beta(self.beta) }
    }
}

/// The absolute error, squared near 0: [`wgloss::SmoothL1`].
#[derive(Module, Debug)]
pub struct SmoothL1Loss {
    #[module(skip)]
    op: SmoothL1,
}

impl SmoothL1Loss {
    /// The op with its options: for [`loss`](crate::loss()), which returns errors.
    pub fn op(&self) -> &SmoothL1 {
        &self.op
    }

    /// Each element's loss, of predictions and targets of the same shape and storage type.
    ///
    /// # Panics
    /// Where [`loss`](crate::loss()) returns an error.
    pub fn forward<const D: usize>(&self, predictions: Tensor<D>, targets: Tensor<D>) -> Tensor<D> {
        expect(loss(&*reduced(&self.op, None), Args::new(predictions).target(targets)))
    }

    /// The reduced loss.
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn forward_with_reduction<const D: usize>(
        &self,
        predictions: Tensor<D>,
        targets: Tensor<D>,
        reduction: Reduction,
    ) -> Tensor<1> {
        let op = reduced(&self.op, Some(reduction));
        expect(loss(&*op, Args::new(predictions).target(targets)))
    }

    /// The mean over some dimensions, which then have size 1: of the elements' losses, by burn.
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn forward_reduce_dims<const D: usize>(
        &self,
        predictions: Tensor<D>,
        targets: Tensor<D>,
        dims: &[impl AsIndex],
    ) -> Tensor<D> {
        self.forward(predictions, targets).mean_dims(dims)
    }
}

/// Configuration of [`HuberLoss`].
#[derive(Config, Debug)]
pub struct HuberLossConfig {
    /// Where the square ends: above 0.
    pub delta: f64,
}

impl HuberLossConfig {
    /// The loss.
    pub fn init(&self) -> HuberLoss {
        HuberLoss { op: Huber::default().delta(self.delta) }
    }
}

element_loss!(
    /// The squared error, linear far from 0: [`wgloss::Huber`].
    HuberLoss,
    Huber
);

/// Configuration of [`KLDivLoss`].
#[derive(Config, Debug)]
pub struct KLDivLossConfig {
    /// Whether targets are log-probabilities.
    #[config(default = "false")]
    pub log_target: bool,
}

impl KLDivLossConfig {
    /// The loss.
    pub fn init(&self) -> KLDivLoss {
        KLDivLoss { op: KlDiv::default().log_target(self.log_target) }
    }
}

element_loss!(
    /// The Kullback-Leibler divergence of log-probabilities from targets: [`wgloss::KlDiv`].
    /// `Reduction::Auto` is `BatchMean`, as burn's is.
    KLDivLoss,
    KlDiv
);

/// Configuration of [`PoissonNllLoss`].
#[derive(Config, Debug)]
pub struct PoissonNllLossConfig {
    /// Whether predictions are the logarithms of rates.
    #[config(default = "true")]
    pub log_input: bool,
    /// Adds Stirling's term where targets exceed 1.
    #[config(default = "false")]
    pub full: bool,
    /// What is added to a rate whose logarithm is taken: above 0.
    #[config(default = "1e-8")]
    pub eps: f64,
}

impl PoissonNllLossConfig {
    /// The loss.
    pub fn init(&self) -> PoissonNllLoss {
        let op = PoissonNll::default().log_input(self.log_input).full(self.full).eps(self.eps);
        PoissonNllLoss { op }
    }
}

element_loss!(
    /// The negative log-likelihood of counts: [`wgloss::PoissonNll`].
    PoissonNllLoss,
    PoissonNll
);

/// Configuration of [`SigmoidFocalLoss`].
#[derive(Config, Debug)]
pub struct SigmoidFocalLossConfig {
    /// The weight of the positive term, in `[0, 1]`; negative for none.
    #[config(default = "0.25")]
    pub alpha: f64,
    /// How much confident elements count less: 0 or more.
    #[config(default = "2.0")]
    pub gamma: f64,
}

impl SigmoidFocalLossConfig {
    /// The loss.
    pub fn init(&self) -> SigmoidFocalLoss {
        SigmoidFocalLoss { op: SigmoidFocal::default().alpha(self.alpha).gamma(self.gamma) }
    }
}

element_loss!(
    /// The focal loss of logits: [`wgloss::SigmoidFocal`].
    SigmoidFocalLoss,
    SigmoidFocal
);

/// Configuration of [`BinaryCrossEntropyLoss`].
#[derive(Config, Debug)]
pub struct BinaryCrossEntropyLossConfig {
    /// A weight for each index of the last dimension: any finite numbers. (burn's differ for inputs
    /// of one dimension, where it takes a weight for each of the two targets.)
    pub weights: Option<Vec<f32>>,
    /// The share, in `[0, 1]`, of the integer targets that is spread evenly over the last dimension, or
    /// over two classes where there is no other dimension.
    pub smoothing: Option<f64>,
    /// A weight of the positive term for each index of the last dimension; with `logits` alone.
    pub pos_weights: Option<Vec<f32>>,
    /// Whether inputs are logits rather than probabilities.
    #[config(default = "false")]
    pub logits: bool,
}

impl BinaryCrossEntropyLossConfig {
    /// The loss, with its weights on this device.
    pub fn init(&self, device: &Device) -> BinaryCrossEntropyLoss {
        BinaryCrossEntropyLoss {
            weights: to_tensor(self.weights.as_ref(), device),
            pos_weights: to_tensor(self.pos_weights.as_ref(), device),
            smoothing: self.smoothing,
            logits: self.logits,
        }
    }
}

/// Binary cross entropy of logits ([`wgloss::BceWithLogits`]) or of probabilities ([`wgloss::Bce`]).
#[derive(Module, Debug)]
pub struct BinaryCrossEntropyLoss {
    weights: Option<Tensor<1>>,
    pos_weights: Option<Tensor<1>>,
    smoothing: Option<f64>,
    logits: bool,
}

impl BinaryCrossEntropyLoss {
    /// The op: for [`loss`](crate::loss()), which returns errors.
    pub fn op(&self) -> Box<dyn Op> {
        match self.logits {
            true => Box::new(BceWithLogits::default()),
            false => Box::new(Bce::default()),
        }
    }

    /// The mean, with targets that are 0 or 1.
    ///
    /// # Panics
    /// Where [`loss`](crate::loss()) returns an error; for bf16 where burn has none, since it converts
    /// the targets: [`forward_probabilities`](Self::forward_probabilities) takes those of bf16.
    pub fn forward<const D: usize>(&self, input: Tensor<D>, targets: Tensor<D, Int>) -> Tensor<1> {
        let dtype = input.dtype();
        if dtype == DType::BF16 && !input.device().supports_dtype(dtype) {
            let (argument, expected) =
                ("input", "f32 or f16, since burn has no bf16 on this device");
            expect(Err(Error::DType { argument, expected, actual: dtype }))
        }
        let mut targets = targets.float().cast(dtype);
        if let Some(smoothing) = self.smoothing {
            let classes = if D > 1 { targets.dims()[D - 1] } else { 2 };
            targets = targets * (1.0 - smoothing) + smoothing / classes as f64;
        }
        self.forward_probabilities(input, targets, Reduction::Mean)
    }

    /// The mean or the sum, with targets of any numbers (with logits) or of numbers in `[0, 1]`.
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn forward_probabilities<const D: usize>(
        &self,
        input: Tensor<D>,
        targets: Tensor<D>,
        reduction: Reduction,
    ) -> Tensor<1> {
        expect(loss(&*reduced(&*self.op(), Some(reduction)), self.args(input, targets)))
    }

    /// Each element's loss.
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn forward_no_reduction<const D: usize>(
        &self,
        input: Tensor<D>,
        targets: Tensor<D>,
    ) -> Tensor<D> {
        expect(loss(&*reduced(&*self.op(), None), self.args(input, targets)))
    }

    fn args<const D: usize>(&self, input: Tensor<D>, targets: Tensor<D>) -> Args {
        let mut args = Args::new(input).target(targets);
        if let Some(weights) = &self.weights {
            args = args.weight(weights.clone());
        }
        if let Some(pos_weights) = &self.pos_weights {
            args = args.pos_weight(pos_weights.clone());
        }
        args
    }
}
