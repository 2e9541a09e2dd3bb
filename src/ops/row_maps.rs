//! What maps over rows of classes share.

use super::pieces::{RowTensor, pieces};
use super::rows::{RowParams, ports};
use super::{FLOATS, expect_args, expect_dtype, expect_shape, grad_layout, grad_view};
use crate::kernel::{self, Access, File, Kernel};
use crate::program::{Binding, Program, View};
use crate::shape::{ClassShape, Layout};
use crate::tuning::DeviceProfile;
use crate::{Args, Error, Output, Pass, Result, Role};

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
        let known: &[_] = if pass.has_grad() { &[Role::Upstream] } else { &[] };
        let describe = || format!("{}.{}", self.name, pass.name());
        expect_args(pass, args, known, describe)?;
        let input = args.input();
        expect_dtype(Role::Input, input, &FLOATS)?;
        rows_along(input.shape(), self.dim)?;
        if pass.has_grad() {
            let upstream = args.required(Role::Upstream, describe)?;
            expect_dtype(Role::Upstream, upstream, &[input.dtype()])?;
            expect_shape(Role::Upstream, upstream, input.shape())?;
        }
        let output = pass.has_loss().then(|| Layout::new(input.shape(), input.dtype()));
        Ok(Output::default()
            .with_some(Role::Output, output)
            .with_some(Role::Grad, grad_layout(pass, args)))
    }

    pub fn program(
        &self,
        pass: Pass,
        args: &Args<Layout>,
        outputs: &Output<Layout>,
        profile: &DeviceProfile,
    ) -> Result<Program> {
        let mut program = Program::new(&profile.limits);
        let input = args.input();
        let shape = rows_along(input.shape(), self.dim)?;
        if shape.rows() == 0 || shape.classes == 0 {
            return Ok(program);
        }
        let mut tensors = Vec::new();
        let mut add = |port, view: Option<View>, is_read| {
            tensors.extend(view.map(|view| RowTensor { port, view, is_read }));
        };
        let argument = |role| args.get(role).map(|layout| View::of(role, layout));
        // in place, the input is bound as the gradient
        add(ports::INPUT, argument(Role::Input).filter(|_| !args.in_place), true);
        add(ports::UPSTREAM, argument(Role::Upstream), true);
        add(ports::GRAD, grad_view(args, outputs), args.in_place);
        let output = outputs.get(Role::Output).map(|layout| View::of(Role::Output, layout));
        add(ports::RESULTS, output, false);

        // the rows of a padded matrix lie along its second dimension
        let is_along_second = input.shape().first() == Some(&shape.batch)
            && input.shape().get(1) == Some(&shape.classes);
        for RowTensor { view: View { slot, layout }, .. } in &tensors {
            if !is_along_second && !layout.is_contiguous() {
                let (stride, shape) = (layout.row_stride(), input.shape());
                return Err(Error::Value {
                    argument: slot.name(),
                    expected: "a row stride only for rows along dimension 1".into(),
                    actual: format!("{stride} for dim {} of {shape:?}", self.dim),
                });
            }
        }
        let launch = profile.for_rows(shape)?;
        let vec4 = shape.loads_vec4(tensors.iter().map(|tensor| &tensor.view.layout));
        let storage = kernel::storage(input.dtype(), vec4, Access::of(args.in_place));
        let kernel = Kernel {
            label: format!("{}.{}.{}", self.name, pass.name(), input.dtype()),
            files: [
                &[kernel::ROW_MAPS, kernel::ROW_STATE, kernel::ROW_TILES, self.shader][..],
                &storage,
            ]
            .concat(),
            entry_point: pass.name(),
            constants: vec![
                ("DENSE_TARGET", (pass.has_grad() && self.upstream_is_target).into()),
                ("STRIDED", (shape.positions > 1).into()),
            ],
            defines: kernel::tile(launch.tile),
            read_write: 0,
        };
        for piece in pieces(&mut program, shape, &tensors, 0)? {
            let params = RowParams {
                rows: piece.rows as u32,
                classes: shape.classes as u32,
                positions: piece.positions as u32,
                rows_per_team: launch.rows_per_team,
                splits: launch.splits,
                classes_per_split: launch.classes_per_split,
                ..RowParams::default()
            };
            let mut bindings = piece.bindings;
            if !pass.has_grad() {
                // its text names the upstream gradient
                bindings.push(Binding::placeholder(ports::UPSTREAM));
            }
            piece.before.iter().for_each(|&copy| program.copy(copy));
            let teams = launch.teams(piece.rows);
            program.dispatch_teams(launch.launch, teams, kernel.clone(), &params, bindings)?;
            piece.after.iter().for_each(|&copy| program.copy(copy));
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
