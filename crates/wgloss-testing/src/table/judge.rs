//! A case under every pass, held to the reference.

use wgloss::reference::{self, Mismatch, Tolerance, Values};
use wgloss::{Args, Array, Op, Output, Pass, Result, Role};

use super::draw::Drawn;
use super::{Case, PASSES};
use crate::call::with_argument;
use crate::compare::compare_part;
use crate::ops;

impl Case<'_> {
    /// Runs every pass and holds what it computes to the promise: the worst error of each pass in
    /// units of the error allowed, or what is wrong.
    ///
    /// # Errors
    /// When the reference refuses the case, which is a defect of the table.
    pub fn check(
        &self,
        run: impl Fn(
            &dyn Op,
            Pass,
            &Args<Array<'static>>,
        ) -> std::result::Result<Output<Array<'static>>, String>,
    ) -> Result<[std::result::Result<f64, String>; 3]> {
        let op = ops::reduced(self.row.op.clone(), self.reduction);
        let Drawn { args, upstream, sums, divisor } = self.draw()?;
        let with_upstream = args.clone().upstream(upstream.clone());
        let sums = sums.into_iter();
        let with_upstream =
            sums.fold(with_upstream, |args, (role, sum)| with_argument(args, role, sum));
        let want = reference::run(&*op, Pass::ForwardBackward, &with_upstream)?;

        // a divisor of 0 makes everything NaN or 0, and has no scale
        let over = if divisor == 0.0 { 1.0 } else { divisor };
        // the largest upstream gradient that scales a finite result
        let largest = upstream.to_f64().into_iter().filter(|g| g.is_finite());
        let largest = largest.fold(0.0, |most: f64, g| most.max(g.abs()));
        let mut state = None;
        Ok(PASSES.map(|pass| {
            let args = match (pass, &state) {
                (Pass::Forward, _) => args.clone(),
                (Pass::Backward, Some(state)) => {
                    let state: &Array<'static> = state;
                    with_upstream.clone().state(state.clone())
                }
                _ => with_upstream.clone(),
            };
            let got = run(&*op, pass, &args)?;
            if pass == Pass::Forward {
                state = got.get(Role::State).cloned();
            }
            let mut worst = 0.0_f64;
            for role in Role::ALL.into_iter().filter(|role| *role != Role::State) {
                let promise = op.promise(role);
                let (is_asked, bound) = match role {
                    Role::Grad | Role::GradProjection | Role::GradBias => {
                        (pass.has_grad(), promise.scaled(largest / over))
                    }
                    Role::Loss | Role::Output => (pass.has_loss(), promise.scaled(1.0 / over)),
                    // of a row, whatever the reduction
                    _ => (pass.has_loss(), promise),
                };
                let want = want.get(role).filter(|_| is_asked);
                let units =
                    hold(role, got.get(role), want, bound).map_err(|e| format!("{role}: {e}"))?;
                worst = worst.max(units);
            }
            Ok(worst)
        }))
    }
}

/// A result against the reference: the worst error in units of the error allowed.
fn hold(
    role: Role,
    got: Option<&Array<'static>>,
    want: Option<&Values>,
    bound: Tolerance,
) -> std::result::Result<f64, String> {
    match (got, want) {
        (None, None) => Ok(0.0),
        (Some(got), Some(want)) if got.shape() != want.shape => {
            Err(format!("got shape {:?}, want {:?}", got.shape(), want.shape))
        }
        (Some(got), Some(want)) => compare_part(role, got, want, bound)
            .map(|worst| worst.units)
            .map_err(|mismatch: Mismatch| mismatch.to_string()),
        (Some(_), None) => Err("got one, want none".into()),
        (None, Some(_)) => Err("got none, want one".into()),
    }
}
