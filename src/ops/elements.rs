//! Element-wise losses: everything that they share.

use super::{
    Op, expect_dtype, expect_finite, expect_shape, expect_unit_interval, expect_upstream,
    loss_layout, refuse_batch_mean, required, sealed,
};
use crate::kernel::{self, File, Kernel};
use crate::program::{ElementParams, Program, Slot, Terms, Total, status_layout};
use crate::reference::{self, Values};
use crate::select::Facts;
use crate::shape::{self, Layout, MAX_DIMS};
use crate::{Args, Array, DType, Output, Pass, Reduction, Result};

/// A loss at one element, and its derivative by the input, in float64: each as the terms whose sum
/// it is, since the error of a result is promised in units of their absolute values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    pub loss: [f64; 2],
    pub grad: [f64; 3],
}

/// An element-wise loss or map: all that it does not share with the others.
pub trait Elementwise: std::fmt::Debug + Send + Sync + sealed::Sealed {
    /// The stem.
    const NAME: &'static str;
    /// The shader with the two hooks, `loss` and `gradient`.
    const SHADER: File;
    /// Whether there are targets: maps have none.
    const TARGET: bool = true;
    /// Which of `weight` and `pos_weight` it takes.
    const WEIGHTS: &'static [&'static str] = &[];
    /// Whether inputs and targets must lie in `[0, 1]`.
    const UNIT_INTERVAL: bool = false;
    /// Whether [`Reduction::BatchMean`] is one of its reductions.
    const BATCH_MEAN: bool = false;

    /// How the elements' losses become the result.
    fn reduction(&self) -> Reduction;

    /// Refuses options outside their range.
    fn check_options(&self) -> Result<()> {
        Ok(())
    }

    /// Numbers that the shader finds in `params.settings`.
    fn settings(&self) -> [f64; 2] {
        [0.0; 2]
    }

    /// Values of the shader's own `override` declarations.
    fn constants(&self) -> Vec<(&'static str, u32)> {
        vec![]
    }

    /// Whether the gradient at NaN is 0 instead of NaN.
    fn zero_gradient_at_nan(&self) -> bool {
        false
    }

    /// The definition in float64, before the element's weight. NaN in `x` and `t` is dealt with by
    /// the caller.
    fn reference(&self, x: f64, t: f64, pos_weight: f64) -> Point;
}

/// What the losses' sum is divided by.
pub(crate) fn divisor(reduction: Reduction, input: &[usize]) -> f64 {
    match reduction {
        Reduction::None | Reduction::Sum => 1.0,
        Reduction::Mean => input.iter().product::<usize>() as f64,
        // as in PyTorch, a 0-dimensional input is a batch of one
        Reduction::BatchMean => input.first().map_or(1.0, |&size| size as f64),
    }
}

impl<E: Elementwise> Op for E {
    fn name(&self) -> &'static str {
        E::NAME
    }

    fn outputs(&self, pass: Pass, args: &Args<Layout>) -> Result<Output<Layout>> {
        let describe = || format!("{}.{}", E::NAME, pass.name());
        self.check_options()?;
        if !E::BATCH_MEAN {
            refuse_batch_mean(self.reduction())?;
        }
        let target: &[_] = if E::TARGET { &["target"] } else { &[] };
        let upstream: &[_] = if pass.has_grad() { &["upstream"] } else { &[] };
        args.only(&[target, E::WEIGHTS, upstream].concat(), describe)?;

        let input = &args.input;
        expect_dtype("input", input, &[DType::F32])?;
        if E::TARGET {
            let target = required("target", &args.target, describe)?;
            expect_dtype("target", target, &[input.dtype()])?;
            expect_shape("target", target, input.shape())?;
        }
        for (argument, weight) in [("weight", &args.weight), ("pos_weight", &args.pos_weight)] {
            if let Some(weight) = weight {
                expect_dtype(argument, weight, &[DType::F32])?;
            }
        }
        weight_dims(args)?;
        expect_upstream(args, self.reduction(), input.shape())?;
        Ok(Output {
            loss: pass.has_loss().then(|| loss_layout(self.reduction(), input.shape())),
            grad: pass.has_grad().then(|| input.clone()),
            status: E::UNIT_INTERVAL.then(status_layout),
            ..Output::default()
        })
    }

    fn check_values(&self, args: &Args<Array<'_>>) -> Result<()> {
        expect_finite("weight", args.weight.as_ref())?;
        expect_finite("pos_weight", args.pos_weight.as_ref())?;
        if E::UNIT_INTERVAL {
            expect_unit_interval("input", Some(&args.input))?;
            expect_unit_interval("target", args.target.as_ref())?;
        }
        Ok(())
    }

    fn program(&self, pass: Pass, args: &Args<Layout>, facts: &Facts) -> Result<Program> {
        let mut program = Program::default();
        let reduction = self.reduction();
        let elements = args.input.elements() as u64;
        let divisor = divisor(reduction, args.input.shape());
        let label = format!("{}.{}.{}", E::NAME, pass.name(), args.input.dtype());
        let reduced = reduction != Reduction::None && pass.has_loss();

        let (choice, per_team) = facts.for_elements();
        let teams = elements.div_ceil(per_team.into());
        let losses = if reduced { program.scratch(teams * 4) } else { Slot::Loss };
        if elements > 0 {
            let dims = weight_dims(args)?;
            let mut params = ElementParams {
                elements: elements as u32,
                per_team,
                teams: teams as u32,
                dims: dims.len() as u32,
                scale: (1.0 / divisor) as f32,
                unused: 0,
                settings: self.settings().map(|setting| setting as f32),
                dim: [[0; 4]; MAX_DIMS],
            };
            for (to, from) in params.dim.iter_mut().zip(&dims) {
                *to = [from.size as u32, from.strides[0] as u32, from.strides[1] as u32, 0];
            }
            let has = |given: &Option<Layout>, slot| if given.is_some() { slot } else { Slot::One };
            let mut bindings = vec![
                (1, Slot::Input),
                (2, if E::TARGET { Slot::Target } else { Slot::One }),
                (3, has(&args.weight, Slot::Weight)),
                (8, has(&args.pos_weight, Slot::PosWeight)),
            ];
            if pass.has_loss() {
                bindings.push((6, losses));
            }
            if pass.has_grad() {
                bindings.extend([(4, has(&args.upstream, Slot::Upstream)), (5, Slot::Grad)]);
            }
            if E::UNIT_INTERVAL {
                bindings.push((7, Slot::Control));
            }
            let upstream_is_tensor = reduction == Reduction::None && args.upstream.is_some();
            let kernel = Kernel {
                label: label.clone(),
                files: vec![
                    kernel::ELEMENTS,
                    E::SHADER,
                    kernel::CONTROL,
                    kernel::check_elements(E::UNIT_INTERVAL),
                    kernel::storage(elements.is_multiple_of(4)),
                    kernel::upstream(upstream_is_tensor),
                ],
                entry_point: pass.name(),
                constants: [
                    vec![
                        ("HAS_TARGET", E::TARGET.into()),
                        ("ZERO_GRADIENT_AT_NAN", self.zero_gradient_at_nan().into()),
                        ("WEIGHTED", args.weight.is_some().into()),
                        ("POS_WEIGHTED", args.pos_weight.is_some().into()),
                        ("REDUCED", reduced.into()),
                    ],
                    self.constants(),
                ]
                .concat(),
            };
            program.push(facts, choice, teams, kernel, &params, bindings)?;
        }
        if reduced {
            let total = match reduction {
                Reduction::None | Reduction::Sum => Total::Loss,
                // an empty batch's mean is NaN, whatever its divisor
                _ if elements == 0 => Total::LossOver(0.0),
                Reduction::Mean | Reduction::BatchMean => Total::LossOver(divisor as f32),
            };
            let terms = Terms::values(format!("{label}.sum"), losses);
            program.push_sum(facts, terms, teams, total)?;
        }
        Ok(program)
    }

    fn reference(&self, pass: Pass, args: &Args<Array<'_>>) -> Output<Values> {
        reference::elements(self, pass, args)
    }
}

/// How `weight` and `pos_weight` lie over the input.
fn weight_dims(args: &Args<Layout>) -> Result<Vec<shape::Dim<2>>> {
    fn shape_of(layout: &Option<Layout>) -> &[usize] {
        layout.as_ref().map_or(&[], Layout::shape)
    }
    let weights = [("weight", shape_of(&args.weight)), ("pos_weight", shape_of(&args.pos_weight))];
    shape::broadcast(args.input.shape(), weights)
}
