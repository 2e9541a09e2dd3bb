//! Negative log-likelihood.

use super::options::{
    self, Family, Info, Key, Kind, Numbers, Opt, REDUCTIONS, Target, Value, Weight, integer,
    reduction,
};
use super::rows::{
    RowKernel, RowLoss, RowOperands, RowParams, RowTarget, device_ignore_index,
    expect_class_target, expect_class_values, expect_class_weight,
};
use super::{
    FLOATS, Op, expect_args, expect_dtype, expect_upstream, grad_layout, loss_layout, sealed,
};
use crate::kernel::{self, shader};
use crate::program::{Program, View};
use crate::reference::{self, Values};
use crate::shape::{ClassShape, Layout, without_classes};
use crate::tuning::DeviceProfile;
use crate::{Args, Array, Error, Output, Pass, Reduction, Result, Role};

/// Negative log-likelihood of log-probabilities with class-index targets.
///
/// With log-probabilities `x`, target class `y` and class weights `w` (1 without them), the loss of
/// a row, in nats, and its gradient are
///
/// ```text
/// loss    = -w[y] x[y]
/// grad[c] = -w[y] at c = y, 0 elsewhere
/// ```
///
/// Only the picked entries are read. From logits, [`CrossEntropy`](super::CrossEntropy) is one pass
/// and keeps the digits of confident rows.
///
/// # Arguments
/// | name | shape | storage |
/// | --- | --- | --- |
/// | `input` | `[C]`, `[N, C]` or `[N, C, d1, ...]`: log-probabilities | f32, f16 or bf16 |
/// | `target` | the input's without the class dimension: class indices | i32; i64 from the host |
/// | `weight` | `[C]`: any finite numbers, zero and negative ones too | f32 |
/// | `upstream` | one value (mean, sum) or the target's shape (none) | f32 for one value, else the input's |
///
/// # Reductions
/// `mean` (the default) divides the sum of the losses by the sum of `w[y]` over the rows kept:
/// their count without weights.
///
/// # Edges
/// - Rows whose target is [`ignore_index`](Self::ignore_index) have loss 0 and gradient 0.
/// - All rows ignored, or an empty batch: mean NaN, sum 0. Rows kept whose weights sum to 0: mean
///   NaN, and NaN gradients at the picked entries.
/// - The sum of weights is f32's, as PyTorch's is: where weights of both signs nearly cancel it has only
///   the digits that they leave, and where it is beyond f32 the mean is 0 or NaN.
/// - A weight that is not finite: from the host an error before any work. In a device tensor it is not
///   looked for, and no status tells of it.
/// - A weight of 0 annihilates an infinite log-probability. A picked NaN makes the loss NaN; the
///   gradient does not look at it.
/// - A class outside `0..C`: as in [`CrossEntropy`](super::CrossEntropy).
///
/// Source: PyTorch's `torch.nn.NLLLoss`.
///
/// ```no_run
/// use wgloss::{Args, Array, Gpu, NllLoss};
///
/// let gpu = Gpu::blocking()?;
/// let (input, target) = ([-0.1, -2.4, -1.6, -0.4, -1.7, -2.0_f32], [0, 1]);
/// let args = Args::new(Array::new(&input, &[2, 3])?).target(Array::from(&target));
/// let out = gpu.block_on(gpu.forward_backward(&NllLoss::default(), &args))?;
/// println!("loss {}, gradient {:?}", out.loss()?.item()?, out.grad()?.to_f32());
/// # Ok::<_, wgloss::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NllLoss {
    pub(crate) reduction: Reduction,
    pub(crate) ignore_index: i64,
}

impl Default for NllLoss {
    fn default() -> Self {
        NllLoss { reduction: Reduction::Mean, ignore_index: -100 }
    }
}

impl NllLoss {
    const OPTIONS: &'static [Opt<Self>] = &[
        reduction(REDUCTIONS, |op| &mut op.reduction),
        integer(
            "ignore_index",
            "The class that marks rows to be left out",
            &[-100, 0, 2, -1, 1 << 40, i64::MIN],
            |op| &mut op.ignore_index,
        ),
    ];

    /// How the rows' losses become the result. Default: mean.
    pub fn reduction(mut self, reduction: Reduction) -> Self {
        self.reduction = reduction;
        self
    }

    /// The class that marks rows to be left out: any integer. Default: -100. One that i32 does not
    /// hold is `i32::MIN` in device tensors.
    pub fn ignore_index(mut self, ignore_index: i64) -> Self {
        self.ignore_index = ignore_index;
        self
    }
}

impl sealed::Sealed for NllLoss {}

impl Op for NllLoss {
    fn name(&self) -> &'static str {
        "nll_loss"
    }

    fn about(&self) -> &'static str {
        "Negative log-likelihood of log-probabilities [C], [N, C] or [N, C, ...] with classes"
    }

    fn kind(&self) -> Kind {
        Kind {
            family: Family::RowLoss,
            input: Numbers::LogProbabilities,
            target: Some(Target::Classes),
            weight: Some(Weight::Classes),
            pos_weight: false,
            // the loss reads entries that the gradient would have overwritten
            fused_in_place: false,
            grad_reads_input: false,
            row_outputs: false,
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
        options::check(self, Self::OPTIONS)?;
        let upstream: &[_] = if pass.has_grad() { &[Role::Upstream] } else { &[] };
        expect_args(pass, args, &[&[Role::Target, Role::Weight], upstream].concat(), describe)?;
        let input = args.input();
        expect_dtype(Role::Input, input, &FLOATS)?;
        if args.in_place && pass == Pass::ForwardBackward {
            return Err(Error::Unexpected { argument: "in_place", op: describe() });
        }
        ClassShape::of(input.shape())?;
        let rows = without_classes(input.shape());
        expect_class_target(args, describe)?;
        expect_class_weight(args)?;
        expect_upstream(args, self.reduction, &rows, input.dtype())?;
        let loss = pass.has_loss().then(|| loss_layout(self.reduction, &rows));
        Ok(Output::default()
            .with_some(Role::Loss, loss)
            .with_some(Role::Grad, grad_layout(pass, args)))
    }

    fn check_values(&self, args: &Args<Array<'_>>) -> Result<()> {
        expect_class_values(args, self.ignore_index)
    }

    fn program(
        &self,
        pass: Pass,
        args: &Args<Layout>,
        outputs: &Output<Layout>,
        profile: &DeviceProfile,
    ) -> Result<Program> {
        let mut program = Program::new(&profile.limits);
        let target = args.required(Role::Target, || self.name().into())?;
        let target = RowTarget::Classes(View::of(Role::Target, target));
        RowLoss {
            name: self.name(),
            pass,
            reduction: self.reduction,
            family: RowKernel::Gather,
            files: vec![kernel::CONTROL, shader!("ops/cross_entropy.wgsl")],
            constants: vec![("MEAN", (self.reduction == Reduction::Mean).into())],
            params: RowParams {
                ignore_index: device_ignore_index(self.ignore_index),
                // all of the target's weight counts
                confidence: 1.0,
                total_classes: ClassShape::of(args.input().shape())?.classes as u32,
                ..RowParams::default()
            },
            empty_mean: f32::NAN,
            // the gradient does not depend on it
            reads_input: pass.has_loss(),
            operands: RowOperands::of(args, outputs, target),
        }
        .push(&mut program, profile)?;
        Ok(program)
    }

    fn reference(&self, pass: Pass, args: &Args<Array<'_>>) -> Output<Values> {
        reference::nll_loss(self, pass, args)
    }

    #[cfg(feature = "cpu")]
    fn cpu(&self, args: &Args<Array<'_>>, output: &mut Output<Array<'static>>) -> Result<()> {
        crate::cpu::nll_loss(self, args, output)
    }
}
