//! Element-wise losses: everything that they share.

use super::{
    Op, expect_dtype, expect_finite, expect_shape, expect_upstream, loss_layout, required, sealed,
};
use crate::kernel::{self, File, Kernel};
use crate::program::{ElementParams, Program, Slot, Terms, Total};
use crate::reference::{self, Values};
use crate::select::Facts;
use crate::shape::{self, Layout, MAX_DIMS};
use crate::{Args, Array, DType, Output, Pass, Reduction, Result};

/// A loss at one element, and its derivative by the input, in float64: each as the terms whose sum
/// it is, since the error of a result is promised in units of their absolute values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    pub loss: [f64; 2],
    pub grad: [f64; 2],
}

/// An element-wise loss: all that it does not share with the others.
pub trait Elementwise: std::fmt::Debug + Send + Sync + sealed::Sealed {
    /// The stem.
    const NAME: &'static str;
    /// The shader with the two hooks, `loss` and `gradient`.
    const SHADER: File;
    /// Which of `weight` and `pos_weight` it takes.
    const WEIGHTS: &'static [&'static str];

    /// How the elements' losses become the result.
    fn reduction(&self) -> Reduction;

    /// The definition in float64, before the element's weight. NaN in `x` and `t` is dealt with by
    /// the caller.
    fn reference(&self, x: f64, t: f64, pos_weight: f64) -> Point;
}

impl<E: Elementwise> Op for E {
    fn name(&self) -> &'static str {
        E::NAME
    }

    fn outputs(&self, pass: Pass, args: &Args<Layout>) -> Result<Output<Layout>> {
        let describe = || format!("{}.{}", E::NAME, pass.name());
        let upstream: &[_] = if pass.has_grad() { &["upstream"] } else { &[] };
        args.only(&[&["target"], E::WEIGHTS, upstream].concat(), describe)?;

        let input = &args.input;
        expect_dtype("input", input, &[DType::F32])?;
        let target = required("target", &args.target, describe)?;
        expect_dtype("target", target, &[input.dtype()])?;
        expect_shape("target", target, input.shape())?;
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
            state: None,
            status: None,
        })
    }

    fn check_values(&self, args: &Args<Array<'_>>) -> Result<()> {
        expect_finite("weight", args.weight.as_ref())?;
        expect_finite("pos_weight", args.pos_weight.as_ref())
    }

    fn program(&self, pass: Pass, args: &Args<Layout>, facts: &Facts) -> Result<Program> {
        let mut program = Program::default();
        let reduction = self.reduction();
        let elements = args.input.elements() as u64;
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
                scale: if reduction == Reduction::Mean {
                    (1.0 / elements as f64) as f32
                } else {
                    1.0
                },
                unused: [0; 3],
                dim: [[0; 4]; MAX_DIMS],
            };
            for (to, from) in params.dim.iter_mut().zip(&dims) {
                *to = [from.size as u32, from.strides[0] as u32, from.strides[1] as u32, 0];
            }
            let has = |given: &Option<Layout>, slot| if given.is_some() { slot } else { Slot::One };
            let mut bindings = vec![
                (1, Slot::Input),
                (2, Slot::Target),
                (3, has(&args.weight, Slot::Weight)),
                (8, has(&args.pos_weight, Slot::PosWeight)),
            ];
            if pass.has_loss() {
                bindings.push((6, losses));
            }
            if pass.has_grad() {
                bindings.extend([(4, has(&args.upstream, Slot::Upstream)), (5, Slot::Grad)]);
            }
            let upstream_is_tensor = reduction == Reduction::None && args.upstream.is_some();
            let kernel = Kernel {
                label: label.clone(),
                files: vec![
                    kernel::ELEMENTS,
                    E::SHADER,
                    kernel::storage(elements.is_multiple_of(4)),
                    kernel::upstream(upstream_is_tensor),
                ],
                entry_point: pass.name(),
                constants: vec![
                    ("WEIGHTED", args.weight.is_some().into()),
                    ("POS_WEIGHTED", args.pos_weight.is_some().into()),
                    ("REDUCED", reduced.into()),
                ],
            };
            program.push(facts, choice, teams, kernel, &params, bindings)?;
        }
        if reduced {
            let total = match reduction {
                Reduction::Mean => Total::LossOver(Some(elements as f32)),
                _ => Total::Loss,
            };
            let terms = Terms::values(format!("{label}.sum"), losses);
            program.push_sum(facts, terms, teams, total)?;
        }
        Ok(program)
    }

    fn reference(&self, pass: Pass, args: &Args<Array<'_>>) -> Output<Values> {
        reference::elements(self.reduction(), pass, args, |x, t, p| self.reference(x, t, p))
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
