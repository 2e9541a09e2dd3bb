//! Softmax cross entropy.

use super::{
    Op, expect_dtype, expect_finite, expect_shape, expect_upstream, loss_layout,
    refuse_batch_mean, required, sealed,
};
use crate::kernel::{self, Kernel, shader};
use crate::program::{Program, RowParams, Slot, SumParams, Terms, Total, status_layout};
use crate::reference::{self, Values};
use crate::select::Facts;
use crate::shape::{ClassShape, Layout, without_classes};
use crate::{Args, Array, DType, Error, Output, Pass, Reduction, Result};

/// Softmax cross entropy of logits with class-index targets.
///
/// With `p = softmax(input)` over C classes, target class `y`, class weights `w` (1 without them)
/// and label smoothing `e`, the loss of a row, in nats, is
///
/// ```text
/// loss = (1 - e) * w[y] * -ln p[y]  +  (e / C) * sum over c of w[c] * -ln p[c]
/// ```
///
/// and its gradient with respect to the logits is `p[c] * A - a[c]`, where `a[c]` is all that
/// multiplies `-ln p[c]` in the loss, and `A` the sum of `a`.
///
/// # Arguments
/// | name | shape | storage |
/// | --- | --- | --- |
/// | `input` | `[C]`, `[N, C]` or `[N, C, d1, ...]`: logits | f32 |
/// | `target` | the input's without the class dimension: class indices | i32; i64 from the host |
/// | `weight` | `[C]`: any finite numbers, zero and negative ones too | f32 |
/// | `upstream` | one value (mean, sum) or the target's shape (none) | f32 |
/// | `state` | `[rows, 4]`, from a forward pass with [`keep_state`](Self::keep_state) over the same input, target, weight and options | f32 |
///
/// # Reductions
/// `mean` (the default) divides the sum of the losses by the sum of `w[y]` over the rows kept:
/// their count without weights. The smoothing term is divided by it too. The gradient of the mean
/// carries the divisor.
///
/// # Edges
/// - Rows whose target is [`ignore_index`](Self::ignore_index) have loss 0 and gradient exactly 0,
///   whatever the row or its upstream gradient holds.
/// - All rows ignored, or an empty batch: mean NaN, sum 0. Rows kept whose weights sum to 0: mean
///   NaN, and NaN gradients on those rows.
/// - A class with logit -inf costs nothing where `a[c] = 0`; with `a[c] != 0` the loss is the
///   infinity of that sign, and the gradient of that class `-a[c]`.
/// - A row that is all -inf, or holds +inf or NaN: loss and gradient NaN.
/// - Confident rows keep their digits: logits (20.7, 0) with target 0 lose 1.02e-9, not 0.
/// - A class outside `0..C`: from the host an error before any work; on the device that row's loss
///   and gradient are NaN, it is left out of the divisor, and the status names it.
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
/// println!("loss {}, gradient {:?}", out.loss.item()?, out.grad.to_f32());
/// # Ok::<_, wgloss::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct CrossEntropy {
    pub(crate) reduction: Reduction,
    pub(crate) ignore_index: i64,
    pub(crate) label_smoothing: f64,
    pub(crate) keep_state: bool,
}

impl Default for CrossEntropy {
    fn default() -> Self {
        CrossEntropy {
            reduction: Reduction::Mean,
            ignore_index: -100,
            label_smoothing: 0.0,
            keep_state: false,
        }
    }
}

impl CrossEntropy {
    /// How the rows' losses become the result. Default: mean.
    pub fn reduction(mut self, reduction: Reduction) -> Self {
        self.reduction = reduction;
        self
    }

    /// The class that marks rows to be left out: any integer. Default: -100.
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

    fn describe(&self, pass: Pass) -> String {
        format!("{}.{}", self.name(), pass.name())
    }
}

impl sealed::Sealed for CrossEntropy {}

impl Op for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn outputs(&self, pass: Pass, args: &Args<Layout>) -> Result<Output<Layout>> {
        if !(0.0..=1.0).contains(&self.label_smoothing) {
            return Err(Error::Value {
                argument: "label_smoothing",
                expected: "a number in [0, 1]".into(),
                actual: self.label_smoothing.to_string(),
            });
        }
        refuse_batch_mean(self.reduction)?;
        let known: &[&str] = match pass {
            Pass::Forward => &["target", "weight"],
            Pass::Backward => &["target", "weight", "upstream", "state"],
            Pass::ForwardBackward => &["target", "weight", "upstream"],
        };
        args.only(known, || self.describe(pass))?;

        expect_dtype("input", &args.input, &[DType::F32])?;
        let shape = ClassShape::of(args.input.shape())?;
        let rows = without_classes(args.input.shape());
        let target = required("target", &args.target, || self.describe(pass))?;
        expect_dtype("target", target, &[DType::I32, DType::I64])?;
        expect_shape("target", target, &rows)?;
        if let Some(weight) = &args.weight {
            expect_dtype("weight", weight, &[DType::F32])?;
            expect_shape("weight", weight, &[shape.classes])?;
        }
        expect_upstream(args, self.reduction, &rows)?;
        let state = Layout::new(&[shape.rows(), 4], DType::F32);
        if let Some(given) = &args.state {
            expect_dtype("state", given, &[DType::F32])?;
            expect_shape("state", given, state.shape())?;
        }
        Ok(Output {
            loss: pass.has_loss().then(|| loss_layout(self.reduction, &rows)),
            grad: pass.has_grad().then(|| args.input.clone()),
            state: (pass.has_loss() && self.keep_state).then_some(state),
            status: Some(status_layout()),
        })
    }

    fn check_values(&self, args: &Args<Array<'_>>) -> Result<()> {
        expect_finite("weight", args.weight.as_ref())?;
        let classes = ClassShape::of(args.input.shape())?.classes as i64;
        let target = required("target", &args.target, || self.name().into())?.to_classes()?;
        let outside = |&(_, &class): &(usize, &i64)| {
            class != self.ignore_index && !(0..classes).contains(&class)
        };
        match target.iter().enumerate().find(outside) {
            None => Ok(()),
            Some((row, &class)) => {
                Err(Error::Class { row: row as u64, class, classes: classes as u64 })
            }
        }
    }

    fn program(&self, pass: Pass, args: &Args<Layout>, facts: &Facts) -> Result<Program> {
        let mut program = Program::default();
        let shape = ClassShape::of(args.input.shape())?;
        let (rows, classes) = (shape.rows() as u64, shape.classes as u32);
        // an ignore_index that i32 does not hold is uploaded as this one (see Gpu::upload)
        let ignore_index = i32::try_from(self.ignore_index).unwrap_or(i32::MIN);
        let label = format!("{}.{}.{}", self.name(), pass.name(), args.input.dtype());
        let mean = self.reduction == Reduction::Mean;
        let weighted = ("WEIGHTED", args.weight.is_some().into());
        let weight = if args.weight.is_some() { Slot::Weight } else { Slot::One };

        let reduced = self.reduction != Reduction::None && pass.has_loss();
        let losses = if reduced { program.scratch(rows * 4) } else { Slot::Loss };
        if rows > 0 {
            // The divisor comes first, since gradients carry it; the same pass over the targets
            // finds the first class out of range.
            let terms = Terms {
                label: format!("{label}.divisor"),
                files: vec![kernel::TERMS_CLASS_WEIGHTS, kernel::CLASSES],
                bindings: vec![(2, Slot::Target), (3, weight)],
                constants: vec![weighted],
                params: SumParams { classes, ignore_index, ..SumParams::default() },
            };
            program.push_sum(facts, terms, rows, Total::Divisor)?;

            let params = RowParams {
                rows: rows as u32,
                classes,
                positions: shape.positions as u32,
                ignore_index,
                confidence: (1.0 - self.label_smoothing) as f32,
                smoothing: (self.label_smoothing / f64::from(classes)) as f32,
                unused: [0; 2],
            };
            let keep_state = pass.has_loss() && self.keep_state;
            let has_state = keep_state || args.state.is_some();
            let mut bindings = vec![
                (1, Slot::Input),
                (2, Slot::Target),
                (3, weight),
                (7, Slot::Control),
                (8, if has_state { Slot::State } else { Slot::Unused }),
            ];
            if pass.has_loss() {
                bindings.push((6, losses));
            }
            if pass.has_grad() {
                let upstream = if args.upstream.is_some() { Slot::Upstream } else { Slot::One };
                bindings.extend([(4, upstream), (5, Slot::Grad)]);
            }
            let vec4 = shape.positions == 1 && shape.classes.is_multiple_of(4);
            let upstream_is_tensor = self.reduction == Reduction::None && args.upstream.is_some();
            let kernel = Kernel {
                label: label.clone(),
                files: vec![
                    kernel::ROWS,
                    kernel::CLASSES,
                    kernel::CONTROL,
                    shader!("ops/cross_entropy.wgsl"),
                    kernel::storage(vec4),
                    kernel::upstream(upstream_is_tensor),
                ],
                entry_point: pass.name(),
                constants: vec![
                    weighted,
                    ("MEAN", mean.into()),
                    ("SPREAD", (self.label_smoothing != 0.0).into()),
                    ("KEEP_STATE", keep_state.into()),
                    ("FROM_STATE", args.state.is_some().into()),
                ],
            };
            let choice = facts.for_rows(classes.into(), shape.positions as u64);
            program.push(facts, choice, rows, kernel, &params, bindings)?;
        }
        if reduced {
            let total = if mean { Total::LossOver(None) } else { Total::Loss };
            let terms = Terms::values(format!("{label}.sum"), losses);
            program.push_sum(facts, terms, rows, total)?;
        }
        Ok(program)
    }

    fn reference(&self, pass: Pass, args: &Args<Array<'_>>) -> Output<Values> {
        reference::cross_entropy(self, pass, args)
    }
}
