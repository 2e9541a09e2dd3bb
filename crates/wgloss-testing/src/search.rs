//! Calls over all of f32, held to the promise but for what the documentation excepts.

use wgloss::reference::Values;
use wgloss::{Args, Array, Op, Output, Pass, Reduction, Role, reference};

use crate::call::{Call, PASSES, judge, reference as reference_of};
use crate::ops;

/// Runs every pass and holds it to the promise as [`call::hold`](crate::call::hold) does, except that
/// a result may be no finite number where its terms are beyond f32: T is, before the upstream gradient
/// and the divisor or after; or, of a reduced loss, the sum of its losses' T.
///
/// # Errors
/// What broke the promise.
pub fn hold(
    call: &dyn Call,
    run: impl Fn(&dyn Op, Pass, &Args<Array<'_>>) -> wgloss::Result<Output<Array<'static>>>,
) -> Result<(), String> {
    let op = call.op();
    let sum_overflows = sum_overflows(call);
    let terms_of_gradient = terms_of_gradient(call);
    let mut state = None;
    for pass in PASSES {
        let mut args = call.args(pass);
        if let (Pass::Backward, Some(state)) = (pass, state.take()) {
            args = args.state(state);
        }
        let name = pass.name();
        let got = run(&*op, pass, &args).map_err(|error| format!("{name}: {error}"))?;
        let want = reference_of(call, pass);
        let want = want.iter().map(|(role, want)| {
            let mut want = want.clone();
            if let Some(got) = got.get(role) {
                let terms = if role == Role::Grad { &terms_of_gradient[..] } else { &[] };
                except(&mut want, &got.to_f64(), terms, role == Role::Loss && sum_overflows);
            }
            (role, want)
        });
        judge(call, &got, &want.collect()).map_err(|error| format!("{name}: {error}"))?;
        state = got.get(Role::State).cloned();
    }
    Ok(())
}

/// Where no more is asked of a result than that it is there.
fn except(want: &mut Values, got: &[f64], terms: &[f64], sum_overflows: bool) {
    let both = want.values.iter_mut().zip(&mut want.magnitudes);
    for (i, ((value, magnitude), &got)) in both.zip(got).enumerate() {
        let largest = terms.get(i).map_or(*magnitude, |terms| magnitude.max(*terms));
        let overflows = value.is_finite() && largest > f64::from(f32::MAX) / 2.0;
        if sum_overflows || overflows && !got.is_finite() {
            (*value, *magnitude) = (got, got.abs());
        }
    }
}

/// The T of a loss's gradient before the upstream gradient and the divisor are applied, or that of their
/// quotient where it is larger. Of maps nothing, whose terms have the upstream gradient in them.
fn terms_of_gradient(call: &dyn Call) -> Vec<f64> {
    let op = call.op();
    if !op.kind().family.is_loss() {
        return vec![];
    }
    let Ok(ones) = reference::run(&*op, Pass::Backward, &call.forward_args()) else {
        return vec![];
    };
    let over = call.divisor().abs();
    let upstream = call.upstream().map_or(1.0, |all| {
        all.to_f64().into_iter().fold(0.0, |most: f64, upstream| most.max(upstream.abs()))
    });
    let terms = ones.get(Role::Grad).map(|grad| grad.magnitudes.clone()).unwrap_or_default();
    terms.into_iter().map(|terms| (terms * over).max(upstream / over)).collect()
}

/// Whether a reduced loss may be beyond f32 before all of its terms are added.
fn sum_overflows(call: &dyn Call) -> bool {
    let op = call.op().boxed();
    let is_reduced =
        ops::option(&*op, "reduction").is_some_and(|value| value.to_string() != "none");
    if !is_reduced {
        return false;
    }
    let op = ops::reduced(op, Reduction::None);
    let Ok(each) = reference::run(&*op, Pass::Forward, &call.forward_args()) else { return false };
    let Some(each) = each.get(Role::Loss) else { return false };
    let of_numbers =
        each.values.iter().zip(&each.magnitudes).filter(|(value, _)| value.is_finite());
    of_numbers.map(|(_, magnitude)| magnitude).sum::<f64>() > f64::from(f32::MAX) / 2.0
}
