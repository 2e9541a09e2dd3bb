//! Softmax cross entropy.

use super::options::{
    self, Family, Info, Key, Kind, Numbers, Opt, REDUCTIONS, Target, Value, Weight, any, finite,
    flag, integer, number, optional, positive, reduction,
};
use super::rows::{
    RowKernel, RowLoss, RowOperands, RowParams, RowTarget, device_ignore_index,
    expect_class_target, expect_class_values_of, expect_class_weight,
};
use super::shards;
use super::{
    FLOATS, Op, expect_args, expect_dtype, expect_finite, expect_shape, expect_upstream,
    grad_layout, loss_layout, sealed,
};
use crate::kernel::{self, shader};
use crate::program::{Program, View};
use crate::reference::{self, Tolerance, Values};
use crate::shape::{ClassShape, Layout, without_classes};
use crate::tuning::DeviceProfile;
use crate::{Args, Array, DType, Error, Output, Pass, Reduction, Result, Role};

/// Softmax cross entropy of logits with class indices or probabilities as targets.
///
/// With `p = softmax(z)` over C classes of the logits `z` (the input `x`, but for the extras below),
/// class weights `w` (1 without them) and label smoothing `e`, the loss of a row with target class
/// `y`, in nats, is
///
/// ```text
/// loss = (1 - e) * w[y] * -ln p[y]  +  (e / C) * sum over c of w[c] * -ln p[c]
/// ```
///
/// and that of a row with target probabilities `t` is
///
/// ```text
/// loss = sum over c of w[c] * ((1 - e) * t[c] + e / C) * -ln p[c]
/// ```
///
/// The gradient with respect to the logits is `p[c] * A - a[c]`, where `a[c]` is all that multiplies
/// `-ln p[c]` in the loss, and `A` the sum of `a`.
///
/// # Arguments
/// | name | shape | storage |
/// | --- | --- | --- |
/// | `input` | `[C]`, `[N, C]` or `[N, C, d1, ...]`: logits | f32, f16 or bf16 |
/// | `target` | the input's without the class dimension: class indices | i32; i64 from the host |
/// |  | or the input's: probabilities, though rows need not sum to 1 and entries may be negative | the input's |
/// | `weight` | `[C]`: any finite numbers, zero and negative ones too | f32 |
/// | `upstream` | one value (mean, sum) or the loss's shape (none) | f32 for one value, else the input's |
/// | `state` | `[rows, 4]`, from a forward pass with [`keep_state`](Self::keep_state) over the same input, target, weight and options | f32 |
///
/// # Extras
/// With [`logit_scale`](Self::logit_scale) s, [`softcap`](Self::softcap) k and
/// [`z_loss`](Self::z_loss):
///
/// ```text
/// z       = s x,  or with a softcap  k tanh(s x / k)
/// loss   += z_loss * L^2  for each row kept, where L = logsumexp(z)
/// grad[c] = z'[c] * (p[c] * (A + 2 z_loss L) - a[c]),  z' = s,  or  s sech^2(s x / k)
/// ```
///
/// [`row_outputs`](Self::row_outputs) adds each row's logsumexp `L`, argmax, correctness and entropy
/// `H = sum over c of -p[c] ln p[c]` in nats, to which a class at -inf adds nothing.
///
/// # Reductions
/// `mean` (the default) divides the sum of the losses by the sum of `w[y]` over the rows kept:
/// their count without weights. The smoothing term is divided by it too. With probabilities it
/// divides by the number of rows, weights or not. The gradient of the mean carries the divisor.
///
/// # Edges
/// - Rows whose target is [`ignore_index`](Self::ignore_index) have loss 0 and gradient exactly 0,
///   whatever the row or its upstream gradient holds.
/// - All rows ignored, or an empty batch: mean NaN, sum 0. Rows kept whose weights sum to 0: mean
///   NaN, and NaN gradients on those rows.
/// - The sum of weights is f32's, as PyTorch's is: where weights of both signs nearly cancel it has only
///   the digits that they leave, and where it is beyond f32 the mean's gradient is 0, and the mean 0 or,
///   where the sum of the losses is beyond f32 too, NaN.
/// - A class with logit -inf costs nothing where `a[c] = 0`; with `a[c] != 0` the loss is the
///   infinity of that sign (NaN where both signs meet), and the gradient of that class `-a[c]`.
/// - A row that is all -inf, or holds +inf or NaN: loss and gradient NaN.
/// - Confident rows keep their digits: logits (20.7, 0) with target 0 lose 1.02e-9, not 0.
/// - A subnormal probability may count as 0, since GPUs may flush it.
/// - A class outside `0..C`: from the host an error before any work; on the device that row's loss
///   and gradient are NaN, it is left out of the divisor, and the status names it.
/// - A weight that is not finite: from the host an error before any work. In a device tensor it is not
///   looked for: it makes the rows of its class and the mean NaN or infinite, and no status tells of it.
///
/// Source: PyTorch's `torch.nn.CrossEntropyLoss`; label smoothing from Szegedy et al., "Rethinking
/// the Inception Architecture for Computer Vision", 2016.
///
/// ```no_run
/// use wgloss::{Args, Array, CrossEntropy, Gpu};
///
/// let gpu = Gpu::blocking()?;
/// let (logits, target) = ([2.0, -1.0, 0.5, 0.1, 3.0, -2.0_f32], [0, 1]);
/// let args = Args::new(Array::new(&logits, &[2, 3])?).target(Array::from(&target));
/// let op = CrossEntropy::default().label_smoothing(0.1);
/// let out = gpu.block_on(gpu.forward_backward(&op, &args))?;
/// println!("loss {}, gradient {:?}", out.loss()?.item()?, out.grad()?.to_f32());
/// # Ok::<_, wgloss::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct CrossEntropy {
    pub(crate) reduction: Reduction,
    pub(crate) ignore_index: i64,
    pub(crate) label_smoothing: f64,
    pub(crate) keep_state: bool,
    pub(crate) row_outputs: bool,
    pub(crate) empty_mean: f64,
    pub(crate) logit_scale: f64,
    pub(crate) softcap: Option<f64>,
    pub(crate) z_loss: f64,
    pub(crate) first_class: i64,
    pub(crate) total_classes: i64,
}

impl Default for CrossEntropy {
    fn default() -> Self {
        CrossEntropy {
            reduction: Reduction::Mean,
            ignore_index: -100,
            label_smoothing: 0.0,
            keep_state: false,
            row_outputs: false,
            empty_mean: f64::NAN,
            logit_scale: 1.0,
            softcap: None,
            z_loss: 0.0,
            first_class: 0,
            total_classes: 0,
        }
    }
}

impl CrossEntropy {
    /// How the rows' losses become the result. Default: mean.
    pub fn reduction(mut self, reduction: Reduction) -> Self {
        self.reduction = reduction;
        self
    }

    /// The class that marks rows to be left out: any integer, but a negative one with probability
    /// targets, where it has no effect. Default: -100. One that i32 does not hold is `i32::MIN` in
    /// device tensors.
    pub fn ignore_index(mut self, ignore_index: i64) -> Self {
        self.ignore_index = ignore_index;
        self
    }

    /// The share, in `[0, 1]`, of the target's weight that is spread evenly over all classes.
    /// Default: 0.
    pub fn label_smoothing(mut self, label_smoothing: f64) -> Self {
        self.label_smoothing = label_smoothing;
        self
    }

    /// Whether forward keeps each row's state (16 bytes a row) for backward, which is then one read
    /// and one write of the logits. Default: no.
    pub fn keep_state(mut self, keep_state: bool) -> Self {
        self.keep_state = keep_state;
        self
    }

    /// Whether forward also gives each row's logsumexp, argmax, the entropy of its softmax and, with
    /// class targets, whether the argmax is the target ([`Output::rows`]); of ignored rows too.
    /// Default: no.
    pub fn row_outputs(mut self, row_outputs: bool) -> Self {
        self.row_outputs = row_outputs;
        self
    }

    /// The mean where no row is kept: all are ignored, or there are none. Any number, infinities and
    /// NaN too; rounded to f32, which must hold it. Default: NaN, as in PyTorch.
    pub fn empty_mean(mut self, empty_mean: f64) -> Self {
        self.empty_mean = empty_mean;
        self
    }

    /// What logits are multiplied by, an inverse temperature: finite and above 0; rounded to f32.
    /// Default: 1. Logits of a row that are further apart than f32 reaches are so whatever the scale.
    pub fn logit_scale(mut self, logit_scale: f64) -> Self {
        self.logit_scale = logit_scale;
        self
    }

    /// Bounds logits: each, multiplied by [`logit_scale`](Self::logit_scale), becomes
    /// `softcap * tanh(x / softcap)`; -inf stays. Finite and above 0. Default: none.
    ///
    /// Capped logits are rounded as numbers as large as the cap are, which confident rows show: errors of
    /// up to `4 softcap 2^-24 T` come to those that are promised without a cap, where T is the sum of
    /// the absolute values of the terms ([`Values::magnitudes`](crate::reference::Values)). That is 7e-6
    /// T for a softcap of 30, and 1.2e-5 T for one of 50.
    ///
    /// Source: Gemma Team, "Gemma 2: Improving Open Language Models at a Practical Size", 2024.
    pub fn softcap(mut self, softcap: f64) -> Self {
        self.softcap = Some(softcap);
        self
    }

    /// Adds `z_loss * logsumexp^2` to each kept row's loss, unweighted and before the reduction: it
    /// keeps logits from drifting. Any finite number. Default: 0. The logsumexp has the error of the
    /// largest logit and the logarithm that it is the sum of, also where they cancel. Where the z-loss is
    /// beyond f32 it is all of the row's loss.
    ///
    /// Source: Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways", 2022.
    pub fn z_loss(mut self, z_loss: f64) -> Self {
        self.z_loss = z_loss;
        self
    }

    /// That the input's classes are only a shard of all: those from `first_class` on, of `classes`.
    /// Targets are counted among all; weights are the shard's. Default: all classes are here.
    ///
    /// [`Pass::Partials`] tells what the shard knows of each row, in eight f32 a row, and the sum of
    /// the weights of those targets that are its own. The other passes ask for the partials of all
    /// shards ([`Args::partials`], in the order of their classes), and those of a mean of class
    /// targets for the sum of all shards' divisors ([`Args::divisor`]). They compute the loss and
    /// [row outputs](Self::row_outputs) of whole rows, the same bits in every shard, and the gradient
    /// of the shard's own classes. Options are the same in all calls, and in all shards.
    ///
    /// Partials are merged in their order, and keep all digits that one device would. A partial's words are
    /// `m`, the sum of `e^(x - m)` below it, how many classes lie at it, the target's weight below it and
    /// at it, the sum of `a[c] (m - x[c])`, flags and the first class at `m` as bits, and the
    /// entropy's sum (`shaders/shared/row_state.wgsl`). A shard that is all -inf adds nothing. Row
    /// outputs name classes below 2^25; where a [`softcap`](Self::softcap) makes the largest logits of
    /// several shards equal, the argmax is of the first of these.
    ///
    /// Given partials of several shards, [`Pass::Partials`] makes one of them on the CPU, without a look at
    /// the input: where there are too many shards for each to hear of all, some can merge what they
    /// tell before others hear of it.
    ///
    /// Source: Shoeybi et al., "Megatron-LM", 2019, whose three all-reduces these partials replace.
    pub fn shard(mut self, first_class: usize, classes: usize) -> Self {
        let integer = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.first_class = integer(first_class);
        self.total_classes = integer(classes);
        self
    }

    pub(super) const OPTIONS: &'static [Opt<Self>] = &[
        reduction(REDUCTIONS, |op| &mut op.reduction),
        integer(
            "ignore_index",
            "The class that marks rows to be left out",
            &[-100, 0, 2, -1, 1 << 40, i64::MIN],
            |op| &mut op.ignore_index,
        ),
        number(
            "label_smoothing",
            "The share, in [0, 1], of the target's weight that is spread over all classes",
            finite("a number in [0, 1]", |v| (0.0..=1.0).contains(&v), &[0.0, 0.1, 0.5, 1.0]),
            |op| &mut op.label_smoothing,
        ),
        flag("keep_state", "Forward keeps each row's state for backward", |op| &mut op.keep_state),
        flag(
            "row_outputs",
            "Forward also gives each row's logsumexp, argmax and whether that is the target",
            |op| &mut op.row_outputs,
        ),
        number(
            "empty_mean",
            "The mean where every row is left out",
            any(&[f64::NAN, 0.0, -2.5, f64::INFINITY]),
            |op| &mut op.empty_mean,
        ),
        number(
            "logit_scale",
            "What logits are multiplied by: an inverse temperature",
            positive(&[0.1, 0.5, 1.0, 2.0, 5.0]),
            |op| &mut op.logit_scale,
        ),
        optional(
            "softcap",
            "Bounds logits to +-softcap, smoothly",
            positive(&[0.5, 2.0, 3.0, 30.0, 50.0]),
            |op| &mut op.softcap,
        ),
        number(
            "z_loss",
            "Adds z_loss * logsumexp^2 to each row's loss",
            finite("a finite number", |_| true, &[-0.1, 0.0, 1e-4, 0.1]),
            |op| &mut op.z_loss,
        ),
        integer("first_class", "The first class of a shard, among all", &[0], |op| {
            &mut op.first_class
        }),
        integer(
            "total_classes",
            "How many classes all shards have; 0 where the input has all",
            &[0],
            |op| &mut op.total_classes,
        ),
    ];

    /// Refuses options outside their range.
    pub(super) fn check_options(&self) -> Result<()> {
        options::check(self, Self::OPTIONS)?;
        match self.softcap {
            None => Ok(()),
            // what kernels multiply logits by
            Some(softcap) => options::expect_number(
                "logit_scale",
                self.logit_scale / softcap,
                "one whose quotient by softcap is finite and above 0",
                |v| v > 0.0,
            ),
        }
    }
}

options::equal_by_options!(CrossEntropy);

impl sealed::Sealed for CrossEntropy {}

impl Op for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn about(&self) -> &'static str {
        "Softmax cross entropy of logits [C], [N, C] or [N, C, ...] with classes or probabilities"
    }

    fn kind(&self) -> Kind {
        Kind {
            family: Family::RowLoss,
            input: Numbers::Logits,
            target: Some(Target::ClassesOrProbabilities),
            weight: Some(Weight::Classes),
            pos_weight: false,
            fused_in_place: true,
            grad_reads_input: true,
            row_outputs: true,
        }
    }

    fn options(&self) -> Vec<Info> {
        options::infos(self, Self::OPTIONS)
    }

    fn set(&mut self, name: &str, value: Value) -> Result<()> {
        options::set(self, Self::OPTIONS, name, value)
    }

    fn boxed(&self) -> Box<dyn Op> {
        Box::new(self.clone())
    }

    fn key(&self) -> Key {
        options::key(self, Self::OPTIONS)
    }

    fn outputs(&self, pass: Pass, args: &Args<Layout>) -> Result<Output<Layout>> {
        let describe = || format!("{}.{}", self.name(), pass.name());
        self.check_options()?;
        let mut known = vec![Role::Target, Role::Weight];
        known.extend(self.loss_arguments(pass));
        expect_args(shards::checked_as(pass), args, &known, describe)?;

        let input = args.input();
        expect_dtype(Role::Input, input, &FLOATS)?;
        let shape = ClassShape::of(input.shape())?;
        let rows = without_classes(input.shape());
        let has_classes = has_classes(args);
        if has_classes {
            expect_class_target(args, describe)?;
        } else {
            let target = args.required(Role::Target, describe)?;
            if target.shape() == rows && target.shape() != input.shape() {
                // classes, by their shape
                expect_dtype(Role::Target, target, &[DType::I32, DType::I64])?;
            }
            expect_dtype(Role::Target, target, &[DType::I32, DType::I64, input.dtype()])?;
            expect_shape(Role::Target, target, input.shape())?;
            if self.ignore_index >= 0 {
                return Err(Error::Value {
                    argument: "ignore_index",
                    expected: "a negative number with probability targets, which are never ignored"
                        .into(),
                    actual: self.ignore_index.to_string(),
                });
            }
        }
        expect_class_weight(args)?;
        expect_upstream(args, self.reduction, &rows, input.dtype())?;
        let state = self.expect_state(args, shape.rows())?;
        self.expect_shard(pass, args, shape.classes, shape.rows(), describe)?;
        let loss = pass.has_loss().then(|| loss_layout(self.reduction, &rows));
        let state = (pass.has_loss() && self.keep_state).then_some(state);
        let row_outputs = self.rows(pass, has_classes);
        let row_outputs = row_outputs.map(|(role, dtype)| (role, Layout::new(&rows, dtype)));
        Ok(row_outputs
            .collect::<Output<_>>()
            .with_some(Role::Loss, loss)
            .with_some(Role::Grad, grad_layout(pass, args))
            .with_some(Role::State, state)
            .with_partials(pass, shape.rows(), has_classes))
    }

    fn check_values(&self, args: &Args<Array<'_>>) -> Result<()> {
        if has_classes(&args.layouts()) {
            let classes = ClassShape::of(args.input().shape())?.classes;
            return expect_class_values_of(self.all_classes(classes), args, self.ignore_index);
        }
        expect_finite(Role::Weight, args.get(Role::Weight))
    }

    fn program(
        &self,
        pass: Pass,
        args: &Args<Layout>,
        outputs: &Output<Layout>,
        profile: &DeviceProfile,
    ) -> Result<Program> {
        self.expect_no_merge(pass, args, || format!("{}.{}", self.name(), pass.name()))?;
        let mut program = Program::new(&profile.limits);
        let target = View::of(Role::Target, args.required(Role::Target, || self.name().into())?);
        let has_classes = has_classes(args);
        let target =
            if has_classes { RowTarget::Classes(target) } else { RowTarget::Probabilities(target) };
        let mut operands = RowOperands::of(args, outputs, target);
        operands.row_outputs = self.row_output_views(pass, outputs);
        self.push_rows(pass, operands, &mut program, profile)?;
        Ok(program)
    }

    fn promise(&self, role: Role) -> Tolerance {
        let promise = Tolerance::of(role);
        self.softcap.map_or(promise, |softcap| promise.softcapped(softcap))
    }

    fn reference(&self, pass: Pass, args: &Args<Array<'_>>) -> Output<Values> {
        reference::cross_entropy(self, pass, args)
    }

    #[cfg(feature = "cpu")]
    fn cpu(&self, args: &Args<Array<'_>>, output: &mut Output<Array<'static>>) -> Result<()> {
        crate::cpu::cross_entropy(self, args, output)
    }
}

impl CrossEntropy {
    /// The row outputs of a pass, and how they are stored.
    pub(super) fn rows(
        &self,
        pass: Pass,
        has_classes: bool,
    ) -> impl Iterator<Item = (Role, DType)> {
        let all = [
            (Role::LogSumExp, DType::F32),
            (Role::Argmax, DType::I32),
            (Role::Correct, DType::I32),
            (Role::Entropy, DType::F32),
        ];
        let is_given = self.row_outputs && pass.has_loss();
        all.into_iter().filter(move |&(role, _)| is_given && (has_classes || role != Role::Correct))
    }

    /// Where the row outputs of a pass go, in the order in which the kernel writes them.
    pub(super) fn row_output_views(
        &self,
        pass: Pass,
        outputs: &Output<Layout>,
    ) -> Vec<Option<View>> {
        if !self.row_outputs || !pass.has_loss() {
            return vec![];
        }
        let written = [Role::LogSumExp, Role::Argmax, Role::Correct, Role::Entropy];
        written.map(|role| Some(View::of(role, outputs.get(role)?))).to_vec()
    }

    /// Adds the loss of rows over any operands to a program that others have begun.
    #[doc(hidden)]
    pub fn push_rows(
        &self,
        pass: Pass,
        operands: RowOperands,
        program: &mut Program,
        profile: &DeviceProfile,
    ) -> Result<()> {
        self.row_loss(pass, operands).push(program, profile)
    }

    pub(super) fn row_loss(&self, pass: Pass, operands: RowOperands) -> RowLoss {
        let shape = operands.input.layout.shape();
        let classes = if shape.len() > 1 { shape[1] } else { shape[0] };
        let rows = operands.input.layout.elements() / classes.max(1);
        let has_classes = matches!(operands.target, RowTarget::Classes(_));
        let mean = self.reduction == Reduction::Mean;
        // In place, the target's logit is met on the way: looked up after the row's statistics, it
        // might be overwritten already.
        let dense_target = !has_classes || self.label_smoothing != 0.0 || operands.is_in_place();
        let gives_rows = self.row_outputs && (pass.has_loss() || pass == Pass::Partials);
        let mut constants = vec![
            ("DENSE_TARGET", dense_target.into()),
            ("KEEP_STATE", (pass.has_loss() && self.keep_state).into()),
            ("FROM_STATE", operands.given_state.is_some().into()),
            ("ROW_OUTPUTS", gives_rows.into()),
            ("ENTROPY", gives_rows.into()),
            ("SCALED", (self.logit_scale != 1.0 && self.softcap.is_none()).into()),
            ("SOFTCAP", self.softcap.is_some().into()),
            ("Z_LOSS", (self.z_loss != 0.0).into()),
        ];
        // with probabilities the host knows the divisor, unless the caller does
        let is_given = operands.given_divisor.is_some();
        constants.push(("MEAN", (mean && (has_classes || is_given)).into()));
        let files = if has_classes {
            vec![shader!("ops/cross_entropy.wgsl"), kernel::UNIFORM, kernel::CONTROL]
        } else {
            vec![shader!("ops/cross_entropy_probabilities.wgsl"), kernel::CONTROL]
        };
        RowLoss {
            name: self.name(),
            pass,
            reduction: self.reduction,
            family: RowKernel::Rows,
            files,
            constants,
            params: RowParams {
                ignore_index: device_ignore_index(self.ignore_index),
                confidence: (1.0 - self.label_smoothing) as f32,
                smoothing: (self.label_smoothing / self.all_classes(classes) as f64) as f32,
                divisor: if mean { rows as f32 } else { 1.0 },
                scale: self.logit_scale as f32,
                softcap: self.softcap.unwrap_or(1.0) as f32,
                z_loss: self.z_loss as f32,
                first_class: self.first_class as u32,
                total_classes: self.all_classes(classes) as u32,
                ..RowParams::default()
            },
            empty_mean: self.empty_mean as f32,
            reads_input: true,
            operands,
        }
    }
}

/// Whether targets are class indices: integers are, whatever their shape; floats are probabilities.
pub(crate) fn has_classes(args: &Args<Layout>) -> bool {
    args.get(Role::Target).is_none_or(|t| matches!(t.dtype(), DType::I32 | DType::I64))
}
