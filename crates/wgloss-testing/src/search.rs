//! Calls over all of f32, held to the promise but for what the documentation excepts.

use wgloss::options::{Numbers, Target, Value, Weight};
use wgloss::reference::Values;
use wgloss::{Args, Array, DType, Op, Output, Pass, Reduction, Role, reference};

use crate::call::{Call, PASSES, judge, reference as reference_of, with_argument};
use crate::ops;

/// Runs every pass and holds it to the promise as [`call::hold`](crate::call::hold) does, except that
/// a result may be no finite number where its terms are beyond f32: T is, before weights of elements, the
/// upstream gradient and the divisor or after; or, of a reduced loss, the sum of its losses' T. And subnormal
/// arguments may count as 0, or as anything between. Calls with infinite counts are left out.
///
/// # Errors
/// What broke the promise.
pub fn hold(
    call: &dyn Call,
    run: impl Fn(&dyn Op, Pass, &Args<Array<'_>>) -> wgloss::Result<Output<Array<'static>>>,
) -> Result<(), String> {
    let op = call.op();
    if has_infinite_counts(call) {
        return Ok(());
    }
    let (terms_of_losses, terms_of_gradient) = (terms_of_losses(call), terms_of_gradient(call));
    let sum_overflows = sum_overflows(call, &terms_of_losses);
    let mut state = None;
    for pass in PASSES {
        let mut args = call.args(pass);
        if let (Pass::Backward, Some(state)) = (pass, state.take()) {
            args = args.state(state);
        }
        let name = pass.name();
        let got = run(&*op, pass, &args).map_err(|error| format!("{name}: {error}"))?;
        let want = reference_of(call, pass);
        let of_zeros = [false, true].map(|of_all| {
            let args = flushed(&call.args(pass), of_all);
            reference::run(&*op, pass, &args).unwrap_or_default()
        });
        let want = want.iter().map(|(role, want)| {
            let mut want = want.clone();
            if let Some(got) = got.get(role) {
                let terms = match role {
                    Role::Grad => &terms_of_gradient[..],
                    Role::Loss => &terms_of_losses[..],
                    _ => &[],
                };
                let got = got.to_f64();
                for of_zeros in of_zeros.iter().filter_map(|output| output.get(role)) {
                    allow_between(&mut want, &got, &of_zeros.values);
                }
                except(&mut want, &got, terms, role == Role::Loss && sum_overflows);
            }
            (role, want)
        });
        judge(call, &got, &want.collect()).map_err(|error| format!("{name}: {error}"))?;
        state = got.get(Role::State).cloned();
    }
    Ok(())
}

/// Whether a target that counts is infinite, of which nothing is promised.
fn has_infinite_counts(call: &dyn Call) -> bool {
    let counts = matches!(call.op().kind().target, Some(Target::Numbers(Numbers::Counts, _)));
    let args = call.forward_args();
    let target = args.get(Role::Target).filter(|_| counts);
    target.is_some_and(|target| target.to_f64().iter().any(|count| count.is_infinite()))
}

/// The same arguments with 0 in the place of numbers that may count as 0: of the input's, or of all.
fn flushed<'a>(args: &Args<Array<'a>>, of_all: bool) -> Args<Array<'a>> {
    let flush = |array: &Array<'a>| -> Array<'a> {
        let Ok(zeroed) = array.to_dtype(DType::F32) else {
            return Array::from_vec(array.to_i64().expect("integers"), array.shape())
                .expect("a shape that it had");
        };
        let flush = |x: &f32| if x.is_subnormal() { 0.0_f32.copysign(*x) } else { *x };
        let zeroed = zeroed.to_f32().iter().map(flush).collect();
        let zeroed = Array::from_vec::<f32>(zeroed, array.shape()).expect("a shape that it had");
        zeroed.to_dtype(array.dtype()).expect("a type that it had")
    };
    let mut flushed = Args::new(flush(args.input()));
    for (role, array) in args.iter() {
        let array = if of_all { flush(array) } else { array.clone() };
        if role != Role::Input {
            flushed = with_argument(flushed, role, array);
        }
    }
    flushed
}

/// Takes results for right that lie between those wanted and others.
fn allow_between(want: &mut Values, got: &[f64], others: &[f64]) {
    for (i, (value, magnitude)) in want.values.iter_mut().zip(&mut want.magnitudes).enumerate() {
        let (got, other) = (got[i], others[i]);
        let is_other = got.is_nan() && other.is_nan();
        if is_other || value.min(other) <= got && got <= value.max(other) {
            (*value, *magnitude) = (got, got.abs());
        }
    }
}

/// Where no more is asked of a result than that it is there.
fn except(want: &mut Values, got: &[f64], terms: &[f64], sum_overflows: bool) {
    let both = want.values.iter_mut().zip(&mut want.magnitudes);
    for (i, ((value, magnitude), &got)) in both.zip(got).enumerate() {
        let largest = terms.get(i).map_or(*magnitude, |terms| magnitude.max(*terms));
        let overflows = value.is_finite() && largest > f64::from(f32::MAX) / 2.0;
        if (sum_overflows || overflows) && !got.is_finite() {
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

/// The T of each loss, before weights of elements are applied or after.
fn terms_of_losses(call: &dyn Call) -> Vec<f64> {
    let op = call.op();
    let op = match ops::option(&*op, "reduction") {
        Some(_) => ops::reduced(op.boxed(), Reduction::None),
        None => return vec![],
    };
    let weighted = call.forward_args();
    let mut args = Args::new(weighted.input().clone());
    for (role, array) in weighted.iter() {
        args = match role {
            Role::Target => args.target(array.clone()),
            Role::PosWeight => args.pos_weight(array.clone()),
            Role::Weight if op.kind().weight == Some(Weight::Classes) => args.weight(array.clone()),
            _ => args,
        };
    }
    let terms = [args, weighted].map(|args| {
        let each = reference::run(&*op, Pass::Forward, &args).ok();
        each.and_then(|output| Some(output.get(Role::Loss)?.magnitudes.clone())).unwrap_or_default()
    });
    let [plain, weighted] = terms;
    plain.into_iter().zip(weighted).map(|(plain, weighted)| plain.max(weighted)).collect()
}

/// Whether a reduced loss may be beyond f32 before all of its terms are added.
fn sum_overflows(call: &dyn Call, terms_of_losses: &[f64]) -> bool {
    let reduction = ops::option(&*call.op(), "reduction");
    let is_reduced = reduction.is_some_and(|value| value != Value::Reduction(Reduction::None));
    let terms = terms_of_losses.iter().filter(|terms| terms.is_finite());
    is_reduced && terms.sum::<f64>() > f64::from(f32::MAX) / 2.0
}
