//! What maps over rows of classes share.

use super::{expect_dtype, expect_shape};
use crate::kernel::{self, File, Kernel};
use crate::program::{Program, RowParams, Slot};
use crate::select::Facts;
use crate::shape::{ClassShape, Layout};
use crate::{Args, DType, Error, Output, Pass, Result};

/// A map over rows: all that softmax and log_softmax do not share.
pub(super) struct RowMap {
    pub name: &'static str,
    pub dim: i64,
    pub shader: File,
    /// Whether the gradient is the row form with the negated upstream gradient as amounts.
    pub upstream_is_amounts: bool,
}

impl RowMap {
    pub fn outputs(&self, pass: Pass, args: &Args<Layout>) -> Result<Output<Layout>> {
        let known: &[_] = if pass.has_grad() { &["upstream"] } else { &[] };
        args.only(known, || format!("{}.{}", self.name, pass.name()))?;
        let input = &args.input;
        expect_dtype("input", input, &[DType::F32])?;
        rows_along(input.shape(), self.dim)?;
        if let Some(upstream) = &args.upstream {
            expect_dtype("upstream", upstream, &[input.dtype()])?;
            expect_shape("upstream", upstream, input.shape())?;
        }
        Ok(Output {
            loss: pass.has_loss().then(|| input.clone()),
            grad: pass.has_grad().then(|| input.clone()),
            ..Output::default()
        })
    }

    pub fn program(&self, pass: Pass, args: &Args<Layout>, facts: &Facts) -> Result<Program> {
        let mut program = Program::default();
        let shape = rows_along(args.input.shape(), self.dim)?;
        let rows = shape.rows() as u64;
        if rows == 0 || shape.classes == 0 {
            return Ok(program);
        }
        let upstream = if args.upstream.is_some() { Slot::Upstream } else { Slot::One };
        let mut bindings = vec![(1, Slot::Input), (4, upstream)];
        if pass.has_loss() {
            bindings.push((6, Slot::Loss));
        }
        if pass.has_grad() {
            bindings.push((5, Slot::Grad));
        }
        let spread = pass.has_grad() && self.upstream_is_amounts;
        let kernel = Kernel {
            label: format!("{}.{}.{}", self.name, pass.name(), args.input.dtype()),
            files: vec![
                kernel::ROW_MAPS,
                kernel::ROW_FORM,
                self.shader,
                kernel::storage(shape.loads_vec4()),
            ],
            entry_point: pass.name(),
            constants: vec![
                ("SPREAD", spread.into()),
                ("UPSTREAM", args.upstream.is_some().into()),
            ],
        };
        let params = RowParams {
            rows: rows as u32,
            classes: shape.classes as u32,
            positions: shape.positions as u32,
            ..RowParams::default()
        };
        let choice = facts.for_rows(shape.classes as u64, shape.positions as u64);
        program.push(facts, choice, rows, kernel, &params, bindings)?;
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
