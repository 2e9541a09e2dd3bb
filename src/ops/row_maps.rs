//! What maps over rows of classes share.

use super::{FLOATS, expect_args, expect_dtype, expect_shape, grad_layout};
use crate::args::Memory;
use crate::kernel::{self, File, Kernel};
use crate::program::{Binding, Program, RowParams, Slot, stretches};
use crate::select::Facts;
use crate::shape::{ClassShape, Layout};
use crate::{Args, Error, Output, Pass, Result};

/// A map over rows: all that softmax and log_softmax do not share.
pub(super) struct RowMap {
    pub name: &'static str,
    pub dim: i64,
    pub shader: File,
    /// Whether the gradient is the row form with the negated upstream gradient as amounts.
    pub upstream_is_target: bool,
}

impl RowMap {
    pub fn outputs(&self, pass: Pass, args: &Args<Layout>) -> Result<Output<Layout>> {
        let known: &[_] = if pass.has_grad() { &["upstream"] } else { &[] };
        expect_args(pass, args, known, || format!("{}.{}", self.name, pass.name()))?;
        let input = &args.input;
        expect_dtype("input", input, &FLOATS)?;
        rows_along(input.shape(), self.dim)?;
        if let Some(upstream) = &args.upstream {
            expect_dtype("upstream", upstream, &[input.dtype()])?;
            expect_shape("upstream", upstream, input.shape())?;
        }
        Ok(Output {
            loss: pass.has_loss().then(|| Layout::new(input.shape(), input.dtype())),
            grad: grad_layout(pass, args),
            ..Output::default()
        })
    }

    pub fn program(
        &self,
        pass: Pass,
        args: &Args<Layout>,
        outputs: &Output<Layout>,
        facts: &Facts,
    ) -> Result<Program> {
        let mut program = Program::default();
        let input = &args.input;
        let shape = rows_along(input.shape(), self.dim)?;
        if shape.rows() == 0 || shape.classes == 0 {
            return Ok(program);
        }
        let mut tensors = vec![(1, Slot::Input, input)];
        let others = [
            (4, Slot::Upstream, &args.upstream),
            (5, Slot::Grad, &outputs.grad),
            (6, Slot::Loss, &outputs.loss),
        ];
        tensors.extend(
            others
                .into_iter()
                .filter_map(|(binding, slot, layout)| Some((binding, slot, layout.as_ref()?))),
        );
        // the rows of a padded matrix lie along its second dimension
        let is_along_second = input.shape().first() == Some(&shape.batch)
            && input.shape().get(1) == Some(&shape.classes);
        for &(_, slot, layout) in &tensors {
            if !is_along_second && !layout.is_contiguous() {
                return Err(Error::Value {
                    argument: slot.name(),
                    expected: "a row stride only for rows along dimension 1".into(),
                    actual: format!(
                        "{} for dim {} of {:?}",
                        layout.row_stride(),
                        self.dim,
                        input.shape()
                    ),
                });
            }
        }
        let split = facts.for_rows(shape);
        let kernel = Kernel {
            label: format!("{}.{}.{}", self.name, pass.name(), input.dtype()),
            files: [
                &[kernel::ROW_MAPS, kernel::ROW_STATE, kernel::ROW_TILES, self.shader][..],
                &kernel::storage(
                    input.dtype(),
                    shape.loads_vec4(tensors.iter().map(|tensor| tensor.2)),
                    args.memory,
                ),
            ]
            .concat(),
            entry_point: pass.name(),
            constants: vec![
                ("DENSE_TARGET", (pass.has_grad() && self.upstream_is_target).into()),
                ("HAS_UPSTREAM", args.upstream.is_some().into()),
                ("STRIDED", (shape.positions > 1).into()),
            ],
            blocks: split.choice.blocks,
            shares_buffers: args.memory != Memory::Apart,
        };
        let lines: Vec<_> = tensors
            .iter()
            .map(|(_, _, layout)| {
                let sizes = [shape.batch_stride(layout), shape.batch_elements()];
                ("one row of input", sizes.map(|n| n as u64 * layout.dtype().size() as u64))
            })
            .collect();
        for [first, batches] in stretches(shape.batch as u64, facts.lines_per_part(&lines)?) {
            let params = RowParams {
                rows: (batches * shape.positions as u64) as u32,
                classes: shape.classes as u32,
                positions: shape.positions as u32,
                rows_per_team: split.each,
                splits: split.shares,
                classes_per_split: split.share,
                ..RowParams::default()
            };
            let mut bindings: Vec<_> = tensors
                .iter()
                .filter(|(_, slot, _)| *slot != Slot::Input || args.memory != Memory::InPlace)
                .map(|&(binding, slot, layout)| {
                    let stride = shape.batch_stride(layout) as u64;
                    let span = (batches - 1) * stride + shape.batch_elements() as u64;
                    Binding::part(binding, slot, layout, [first * stride, span, stride])
                })
                .collect();
            if args.upstream.is_none() {
                bindings.push(Binding::one(4));
            }
            let teams = split.teams(params.rows.into());
            program.push(facts, split.choice, teams, kernel.clone(), &params, bindings)?;
        }
        Ok(program)
    }
}

/// A shape taken apart along a dimension, counted from the end where negative. A 0-dimensional
/// input is one row of one class.
pub(crate) fn rows_along(shape: &[usize], dim: i64) -> Result<ClassShape> {
    let rank = shape.len().max(1) as i64;
    if !(-rank..rank).contains(&dim) {
        return Err(Error::Value {
            argument: "dim",
            expected: format!("a dimension in {}..{rank} for input {shape:?}", -rank),
            actual: dim.to_string(),
        });
    }
    let dim = dim.rem_euclid(rank) as usize;
    let product = |sizes: Option<&[usize]>| sizes.unwrap_or_default().iter().product();
    Ok(ClassShape {
        batch: product(shape.get(..dim)),
        classes: shape.get(dim).copied().unwrap_or(1),
        positions: product(shape.get(dim + 1..)),
    })
}
