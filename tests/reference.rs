//! The float64 reference against closed forms, naive formulas, central differences, foreign values,
//! and every edge that the documentation speaks of.

mod linear;

use wgloss::reference::{self, Values};
use wgloss::{
    Args, Array, BceWithLogits, CrossEntropy, Data, Error, Mse, Op, Pass, Reduction, Role,
};
use wgloss_testing::call::result;
use wgloss_testing::compare::compare_relative;
use wgloss_testing::conformance::{self, Folder};
use wgloss_testing::random::{Logits, Random};

const NAN: f32 = f32::NAN;
const INF: f32 = f32::INFINITY;
const REDUCTIONS: [Reduction; 3] = [Reduction::None, Reduction::Mean, Reduction::Sum];

/// The loss, or a map's output, and the gradient.
#[track_caller]
fn run(op: &dyn Op, args: &Args<Array<'_>>) -> (Values, Values) {
    let out = reference::run(op, Pass::ForwardBackward, args).unwrap();
    (result(&out).clone(), out.grad().unwrap().clone())
}

fn array<'a>(values: &'a [f32], shape: &[usize]) -> Array<'a> {
    Array::new(values, shape).unwrap()
}

/// Rows of logits, one after the other, and their targets.
fn rows<'a>(logits: &'a [f32], target: &'a [i32]) -> Args<Array<'a>> {
    let classes = logits.len() / target.len();
    Args::new(array(logits, &[target.len(), classes])).target(Array::from(target))
}

fn per_row() -> CrossEntropy {
    CrossEntropy::default().reduction(Reduction::None)
}

/// Equal to the last bit, but that NaN equals NaN and -0 equals 0.
#[track_caller]
fn assert_same(got: &[f64], want: &[f64]) {
    let same = |g: &f64, w: &f64| g == w || g.is_nan() && w.is_nan();
    let all = got.len() == want.len() && got.iter().zip(want).all(|(g, w)| same(g, w));
    assert!(all, "got {got:?}\nwant {want:?}");
}

/// Within `part` of the largest value wanted.
#[track_caller]
fn assert_near(got: &[f64], want: &[f64], part: f64) {
    assert_eq!(got.len(), want.len());
    let max = want.iter().fold(f64::MIN_POSITIVE, |max, v| max.max(v.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= part * max, "at {i}: got {g:e}, want {w:e} (of {max:e})");
    }
}

#[track_caller]
fn assert_all_nan(values: &[f64]) {
    assert!(!values.is_empty() && values.iter().all(|v| v.is_nan()), "{values:?}");
}

// ---- closed forms ----

/// Logits, target, weights, smoothing; loss and gradient by 400-digit arithmetic (mpmath) on the
/// f32 logits.
type Exact = (&'static [f32], i32, Option<&'static [f32]>, f64, f64, &'static [f64]);

#[rustfmt::skip]
const EXACT: [Exact; 13] = [
    (&[20.7, 0.0], 0, None, 0.0, 1.0235378163379204e-9, &[-1.0235378158141056e-9, 1.0235378158141056e-9]),
    (&[20.7, 0.0], 1, None, 0.0, 20.70000076396299, &[0.9999999989764622, -0.9999999989764622]),
    (&[60.0, 0.0], 0, None, 0.0, 8.75651076269652e-27, &[-8.75651076269652e-27, 8.75651076269652e-27]),
    (&[700.0, 0.0], 0, None, 0.0, 9.85967654375977e-305, &[-9.85967654375977e-305, 9.85967654375977e-305]),
    (&[0.0, -69.0, -69.5], 0, None, 0.0, 1.736080131726458e-30, &[-1.736080131726458e-30, 1.0806392777072785e-30, 6.554408540191793e-31]),
    (&[40.0, 0.0, -3.0], 0, Some(&[2.0, -1.0, 0.5]), 0.0, 8.919734718101394e-18, &[-8.919734718101394e-18, 8.496708510583178e-18, 4.230262075182161e-19]),
    (&[3.0, 45.0, 1.0, 0.0], 1, None, 0.1, 3.2750000000000004, &[-0.025, 0.075, -0.025, -0.025]),
    (&[3.0, 45.0, 1.0, 0.0], 1, Some(&[1.0, -2.0, 0.0, 3.0]), 0.25, 11.0625, &[-0.0625, 0.25, -1.069905683155897e-19, -0.1875]),
    (&[0.0, 50.0, -2.0], 1, Some(&[-1.0, 0.5, 2.0]), 1.0, 18.0, &[0.3333333333333333, 0.3333333333333333, -0.6666666666666666]),
    (&[1000000.0, 999980.0, 999999.94], 0, None, 0.0, 0.6623853834205474, &[-0.4843800848249707, 1.0627718559644735e-9, 0.4843800837621989]),
    (&[-1000000.0, -1000030.0], 0, None, 0.0, 9.357622968839737e-14, &[-9.357622968839299e-14, 9.357622968839299e-14]),
    (&[30.0, 30.0, 0.0], 0, None, 0.0, 0.6931471805599921, &[-0.5000000000000234, 0.49999999999997663, 4.6788114844198684e-14]),
    (&[60.0, 0.0], 0, None, 1e-15, 3.000000000000876e-14, &[4.999999999912435e-16, -4.999999999912435e-16]),
];

#[test]
fn confident_rows_keep_every_digit() {
    for (logits, target, weight, smoothing, loss, grad) in EXACT {
        let target = [target];
        let mut args = rows(logits, &target);
        if let Some(weight) = weight {
            args = args.weight(Array::from(weight));
        }
        let (got_loss, got_grad) = run(&per_row().label_smoothing(smoothing), &args);
        let check = |got: &Values, want: &[f64]| {
            for ((g, w), t) in got.values.iter().zip(want).zip(&got.magnitudes) {
                assert!((g - w).abs() <= 1e-15 * t, "{logits:?}: got {g:e}, want {w:e}, T {t:e}");
            }
        };
        check(&got_loss, &[loss]);
        check(&got_grad, grad);
    }
}

#[test]
fn equal_logits_cost_the_log_of_their_number() {
    let (loss, grad) = run(&per_row(), &rows(&[7.0; 8], &[3]));
    assert_near(&loss.values, &[8_f64.ln()], 1e-15);
    let mut want = [0.125; 8];
    want[3] = -0.875;
    assert_same(&grad.values, &want);
}

#[test]
fn a_single_class_costs_nothing() {
    for smoothing in [0.0, 0.3, 1.0] {
        let op = per_row().label_smoothing(smoothing);
        let weight = [-2.5];
        let args = rows(&[5.0, -1e30], &[0, 0]).weight(Array::from(&weight));
        let (loss, grad) = run(&op, &args);
        assert_same(&loss.values, &[0.0, 0.0]);
        assert_same(&grad.values, &[0.0, 0.0]);
    }
}

#[test]
fn an_offset_changes_nothing() {
    let near = rows(&[0.5, -2.0, 1.0], &[0]);
    let far = rows(&[1e6 + 0.5, 1e6 - 2.0, 1e6 + 1.0], &[0]);
    let op = per_row().label_smoothing(0.2);
    assert_eq!(run(&op, &near), run(&op, &far));
}

/// Losses beyond f32 are finite here.
#[test]
fn huge_logits_do_not_swallow_the_logarithm_in_the_gradient_of_z_loss() {
    // 2 z logsumexp p[c], with p = 1/2 each; the gradients of the loss itself are as good as 0
    let (_, grad) = run(&per_row().z_loss(0.5), &rows(&[1e30, 1e30], &[0]));
    assert_near(&grad.values, &[0.5 * f64::from(1e30_f32); 2], 1e-15);
}

#[test]
fn huge_logits_do_not_overflow() {
    let (loss, grad) = run(&per_row(), &rows(&[f32::MAX, f32::MIN], &[1]));
    assert_same(&loss.values, &[2.0 * f64::from(f32::MAX)]);
    assert_same(&grad.values, &[1.0, -1.0]);
}

/// By 400-digit arithmetic: logit, target, loss, gradient.
#[test]
fn confident_elements_keep_every_digit() {
    let exact = [
        (20.0_f32, 1.0_f32, 2.061153620314381e-9, -2.0611536181902037e-9),
        (-20.0_f32, 1.0_f32, 20.000000002061153, -0.9999999979388464),
        (20.0_f32, 0.0_f32, 20.000000002061153, 0.9999999979388464),
        (-20.0_f32, 0.0_f32, 2.061153620314381e-9, 2.0611536181902037e-9),
        (100.0_f32, 1.0_f32, 3.720075976020836e-44, -3.720075976020836e-44),
        (-700.0_f32, 0.0_f32, 9.85967654375977e-305, 9.85967654375977e-305),
        (37.0_f32, 0.25_f32, 27.75, 0.7499999999999999),
        (-37.0_f32, 1.5_f32, 55.5, -1.5),
    ];
    for (x, t, loss, grad) in exact {
        let (x, t) = ([x], [t]);
        let args = Args::new(Array::from(&x)).target(Array::from(&t));
        let (got_loss, got_grad) = run(&BceWithLogits::default(), &args);
        assert_near(&got_loss.values, &[loss], 1e-15);
        assert_near(&got_grad.values, &[grad], 1e-15);
    }
}

// ---- naive formulas on moderate logits ----

/// The loss of a row and its gradient as a textbook writes them.
fn naive_row(x: &[f64], y: usize, w: &[f64], smoothing: f64) -> (f64, Vec<f64>) {
    let classes = x.len();
    let z: f64 = x.iter().map(|v| v.exp()).sum();
    let p: Vec<f64> = x.iter().map(|v| v.exp() / z).collect();
    let spread: f64 = (0..classes).map(|c| w[c] * -p[c].ln()).sum();
    let loss = (1.0 - smoothing) * w[y] * -p[y].ln() + smoothing / classes as f64 * spread;
    let grad = |c: usize| {
        let hot = if c == y { 1.0 } else { 0.0 };
        let w_sum: f64 = w.iter().sum();
        (1.0 - smoothing) * w[y] * (p[c] - hot) + smoothing / classes as f64 * (p[c] * w_sum - w[c])
    };
    (loss, (0..classes).map(grad).collect())
}

/// The input's shape and the target's; N, C and d1 * d2 * ...
type RowShape = (&'static [usize], &'static [usize], usize, usize, usize);

#[test]
fn cross_entropy_agrees_with_the_textbook_in_every_shape_and_reduction() {
    let mut random = Random::new(1);
    let shapes: [RowShape; 4] = [
        (&[7], &[], 1, 7, 1),
        (&[5, 4], &[5], 5, 4, 1),
        (&[3, 5, 2], &[3, 2], 3, 5, 2),
        (&[2, 3, 4, 5], &[2, 4, 5], 2, 3, 20),
    ];
    for (shape, target_shape, batch, classes, positions) in shapes {
        for reduction in REDUCTIONS {
            for (smoothing, weighted) in [(0.0, false), (0.0, true), (0.3, false), (0.3, true)] {
                let count = batch * positions;
                let x = random.normals(count * classes, 2.0);
                let target = random.targets(count, classes, 1, 0.2);
                let w = match weighted {
                    true => random.normals(classes, 1.0),
                    false => vec![1.0; classes],
                };
                let scalar = reduction != Reduction::None;
                let upstream = random.normals(if scalar { 1 } else { count }, 1.0);
                let mut args = Args::new(array(&x, shape))
                    .target(Array::new(&target, target_shape).unwrap())
                    .upstream(array(&upstream, if scalar { &[] } else { target_shape }));
                if weighted {
                    args = args.weight(Array::from(&w));
                }
                let op = CrossEntropy::default()
                    .reduction(reduction)
                    .label_smoothing(smoothing)
                    .ignore_index(1);
                let (loss, grad) = run(&op, &args);

                let w: Vec<f64> = w.iter().map(|&w| w.into()).collect();
                let (mut losses, mut grads) = (vec![0.0; count], vec![0.0; x.len()]);
                let mut divisor = 0.0;
                for n in 0..batch {
                    for d in 0..positions {
                        let r = n * positions + d;
                        let at = |c: usize| n * classes * positions + c * positions + d;
                        let row: Vec<f64> = (0..classes).map(|c| x[at(c)].into()).collect();
                        if target[r] == 1 {
                            continue;
                        }
                        divisor += w[target[r] as usize];
                        let (loss, grad) = naive_row(&row, target[r] as usize, &w, smoothing);
                        losses[r] = loss;
                        for c in 0..classes {
                            grads[at(c)] =
                                grad[c] * f64::from(upstream[if scalar { 0 } else { r }]);
                        }
                    }
                }
                let over = if reduction == Reduction::Mean { divisor } else { 1.0 };
                if over == 0.0 {
                    continue; // every row was ignored
                }
                grads.iter_mut().for_each(|g| *g /= over);
                if scalar {
                    assert_eq!(loss.shape, [0; 0]);
                    losses = vec![losses.iter().sum::<f64>() / over];
                } else {
                    assert_eq!(loss.shape, target_shape);
                }
                assert_eq!(grad.shape, shape);
                assert_near(&loss.values, &losses, 1e-12);
                assert_near(&grad.values, &grads, 1e-12);
            }
        }
    }
}

/// Which element of a weight belongs to element `[i, j, k]` of the input.
type Place = fn(usize, usize, usize) -> usize;

/// Shapes that broadcast to `[2, 3, 4]`, with that place written out by hand.
const BROADCASTS: [(&[usize], Place); 7] = [
    (&[], |_, _, _| 0),
    (&[1], |_, _, _| 0),
    (&[4], |_, _, k| k),
    (&[3, 1], |_, j, _| j),
    (&[2, 1, 4], |i, _, k| i * 4 + k),
    (&[1, 3, 4], |_, j, k| j * 4 + k),
    (&[2, 3, 4], |i, j, k| i * 12 + j * 4 + k),
];

#[test]
fn bce_with_logits_agrees_with_the_textbook_however_its_weights_broadcast() {
    let mut random = Random::new(2);
    for (weight_shape, weight_at) in BROADCASTS {
        for (pos_shape, pos_at) in BROADCASTS {
            for reduction in REDUCTIONS {
                let x = random.normals(24, 2.0);
                // Some outside [0, 1], which are accepted.
                let t = random.uniforms(24, -0.2, 1.2);
                let w = random.normals(weight_shape.iter().product(), 1.0);
                let p = random.normals(pos_shape.iter().product(), 1.0);
                let scalar = reduction != Reduction::None;
                let upstream = random.normals(if scalar { 1 } else { 24 }, 1.0);
                let shape = [2, 3, 4];
                let args = Args::new(array(&x, &shape))
                    .target(array(&t, &shape))
                    .weight(array(&w, weight_shape))
                    .pos_weight(array(&p, pos_shape))
                    .upstream(array(&upstream, if scalar { &[] } else { &shape }));
                let (loss, grad) = run(&BceWithLogits::default().reduction(reduction), &args);

                let (mut losses, mut grads) = (vec![], vec![]);
                for e in 0..24 {
                    let (i, j, k) = (e / 12, e / 4 % 3, e % 4);
                    let (x, t) = (f64::from(x[e]), f64::from(t[e]));
                    let (w, p) = (f64::from(w[weight_at(i, j, k)]), f64::from(p[pos_at(i, j, k)]));
                    let u = f64::from(upstream[if scalar { 0 } else { e }]);
                    let sigmoid = 1.0 / (1.0 + (-x).exp());
                    losses.push(-w * (p * t * sigmoid.ln() + (1.0 - t) * (1.0 - sigmoid).ln()));
                    grads.push(u * w * ((1.0 - t) * sigmoid - p * t * (1.0 - sigmoid)));
                }
                let over = if reduction == Reduction::Mean { 24.0 } else { 1.0 };
                grads.iter_mut().for_each(|g| *g /= over);
                if scalar {
                    assert_eq!(loss.shape, [0; 0]);
                    losses = vec![losses.iter().sum::<f64>() / over];
                }
                assert_eq!(grad.shape, shape);
                assert_near(&loss.values, &losses, 1e-12);
                assert_near(&grad.values, &grads, 1e-12);
            }
        }
    }
}

// ---- central differences ----

/// The step. Logits are multiples of it, so that moving them is exact in f32.
const H: f32 = 1.0 / 256.0;

fn on_grid(mut x: Vec<f32>) -> Vec<f32> {
    x.iter_mut().for_each(|x| *x = (*x / H).round() * H);
    x
}

/// The slope of `sum(upstream * loss)` along every finite element of `x`, against the gradient.
///
/// By four points, whose error is of order H^4.
#[track_caller]
fn check_slopes(
    op: &dyn Op,
    x: &[f32],
    upstream: &Array<'static>,
    args: impl Fn(&[f32]) -> Args<Array<'static>>,
) {
    let (loss, grad) = run(op, &args(x).upstream(upstream.clone()));
    if loss.values.iter().any(|v| !v.is_finite()) {
        return; // a kept row whose loss is infinite has no slope
    }
    let upstream = upstream.to_f64();
    let size: f64 = loss.magnitudes.iter().zip(&upstream).map(|(t, u)| (t * u).abs()).sum();
    let total = |x: &[f32]| -> f64 {
        let loss =
            reference::run(op, Pass::Forward, &args(x)).unwrap().get(Role::Loss).cloned().unwrap();
        loss.values.iter().zip(&upstream).map(|(loss, u)| loss * u).sum()
    };
    for i in (0..x.len()).filter(|&i| x[i].is_finite()) {
        let mut moved = x.to_vec();
        let mut at = |steps: f32| {
            moved[i] = x[i] + steps * H;
            total(&moved)
        };
        let slope = (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * f64::from(H));
        let (got, t) = (grad.values[i], grad.magnitudes[i]);
        // The roundings of the totals, and what H^4 leaves.
        let allowed = 1e-12 * size + 1e-10 * t;
        assert!(
            (got - slope).abs() <= allowed,
            "{op:?} at {i}: got {got:e}, slope {slope:e}, T {t:e}, total's T {size:e}, x {x:?}"
        );
    }
}

#[test]
fn cross_entropy_gradients_are_slopes() {
    let mut random = Random::new(3);
    let shapes: [(&[usize], &[usize], usize); 4] = [
        (&[6], &[], 6),
        (&[4, 5], &[4], 5),
        (&[2, 3, 2], &[2, 2], 3),
        (&[2, 3, 1, 2], &[2, 1, 2], 3),
    ];
    for trial in 0..400 {
        let (shape, target_shape, classes) = shapes[trial % shapes.len()];
        let count: usize = target_shape.iter().product();
        let kinds = [Logits::Normal, Logits::Confident, Logits::Ramp, Logits::Masked];
        let kind = random.pick(&kinds);
        let x = on_grid(random.logits(kind, 1, count * classes));
        let ignored = random.pick(&[-100, -1, 0, 1]);
        let target = random.targets(count, classes, ignored, 0.2);
        let mut weight = random.normals(classes, 1.0);
        weight[random.below(classes)] = 0.0;
        let weighted = random.chance(0.6);
        let reduction = random.pick(&REDUCTIONS);
        let upstream = match reduction {
            Reduction::None => Array::from_vec(random.normals(count, 1.0), target_shape).unwrap(),
            _ => Array::scalar(random.normal() as f32),
        };
        let op = CrossEntropy::default()
            .reduction(reduction)
            .label_smoothing(random.pick(&[0.0, 0.1, 1.0]))
            .ignore_index(ignored.into());
        check_slopes(&op, &x, &upstream, |x| {
            let target = Array::from_vec(target.clone(), target_shape).unwrap();
            let args = Args::new(array(x, shape).into_owned()).target(target);
            match weighted {
                true => args.weight(Array::from(&weight).into_owned()),
                false => args,
            }
        });
    }
}

#[test]
fn bce_with_logits_gradients_are_slopes() {
    let mut random = Random::new(4);
    for _ in 0..200 {
        let shape: &[usize] = random.pick(&[&[][..], &[5], &[2, 3], &[2, 2, 3]]);
        let count = shape.iter().product();
        let deviation = random.pick(&[2.0, 20.0]);
        let x = on_grid(random.normals(count, deviation));
        let t = random.uniforms(count, -0.2, 1.2);
        // The shape's own end, or a single value for everything.
        let mut broadcast = |share: f64| {
            let from = random.below(shape.len() + 1);
            let shape = shape[from..].to_vec();
            let values = random.normals(shape.iter().product(), 1.0);
            random.chance(share).then(|| Array::from_vec(values, &shape).unwrap())
        };
        let (weight, pos_weight) = (broadcast(0.6), broadcast(0.6));
        let reduction = random.pick(&REDUCTIONS);
        let upstream = match reduction {
            Reduction::None => Array::from_vec(random.normals(count, 1.0), shape).unwrap(),
            _ => Array::scalar(random.normal() as f32),
        };
        check_slopes(&BceWithLogits::default().reduction(reduction), &x, &upstream, |x| {
            let mut args =
                Args::new(array(x, shape).into_owned()).target(array(&t, shape).into_owned());
            if let Some(weight) = &weight {
                args = args.weight(weight.clone());
            }
            if let Some(pos_weight) = &pos_weight {
                args = args.pos_weight(pos_weight.clone());
            }
            args
        });
    }
}

// ---- foreign values ----

#[test]
fn the_notebooks_examples_agree() {
    let Folder { cases, errors } = conformance::load(&conformance::folder("seeds"));
    assert_eq!((cases.len(), errors.len()), (66, 0));
    let mut checked = 0;
    for case in &cases {
        if case.pre().unwrap().is_some() {
            continue; // a composition, of float32 values in between
        }
        let args = case.args(Pass::ForwardBackward).unwrap();
        let (loss, grad) = run(&*case.op().unwrap(), &args);
        assert_near(&loss.values, &conformance::values(case, "out_ref"), 1e-14);
        assert_near(&grad.values, &conformance::values(case, "grad_ref"), 1e-14);
        checked += 1;
    }
    assert_eq!(checked, 45);
}

#[test]
fn onnx_examples_agree() {
    let cases = conformance::load(&conformance::folder("onnx")).cases;
    let mut checked = 0;
    for case in &cases {
        let (op, args) = (case.op().unwrap(), case.args(Pass::Forward).unwrap());
        let out = reference::run(&*op, Pass::Forward, &args).unwrap();
        let got = result(&out).to_array().unwrap().to_f32();
        // Their values are f32 from numpy.
        let want = conformance::values(case, "out_ref");
        compare_relative(&got, &want, 1e-6).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        checked += 1;
    }
    assert_eq!(checked, 68);
}

// ---- edges of cross entropy ----

#[test]
fn ignored_rows_are_zero_whatever_they_hold() {
    let logits = [NAN, INF, 0.0, 1.0, 2.0, 0.5, -INF, -INF, -INF, 3e38, 1.0, 1.0];
    let target = [-100, 1, -100, -100];
    let upstream = [NAN, 2.0, INF, -INF];
    for smoothing in [0.0, 0.1] {
        let args = rows(&logits, &target).upstream(Array::from(&upstream));
        let (loss, grad) = run(&per_row().label_smoothing(smoothing), &args);
        let alone = rows(&logits[3..6], &target[1..2]).upstream(Array::from(&upstream[1..2]));
        let (alone_loss, alone_grad) = run(&per_row().label_smoothing(smoothing), &alone);
        assert_same(&loss.values, &[0.0, alone_loss.values[0], 0.0, 0.0]);
        assert_same(&grad.values[..3], &[0.0; 3]);
        assert_same(&grad.values[3..6], &alone_grad.values);
        assert_same(&grad.values[6..], &[0.0; 6]);
        assert_same(&grad.magnitudes[6..], &[0.0; 6]);

        // Nor do they count in a mean.
        let op = CrossEntropy::default().label_smoothing(smoothing);
        let (loss, grad) = run(&op, &rows(&logits, &target));
        assert_same(&loss.values, &alone_loss.values);
        assert_same(&grad.values[6..], &[0.0; 6]);
    }
}

#[test]
fn any_integer_can_be_ignored() {
    for ignored in [0, 2, -1, 7, i32::MIN] {
        let logits = [NAN, NAN, NAN, 0.0, 0.0, 0.0];
        let target = [ignored, 1];
        let op = CrossEntropy::default().ignore_index(ignored.into());
        let (loss, grad) = run(&op, &rows(&logits, &target));
        assert_near(&loss.values, &[3_f64.ln()], 1e-15);
        assert_same(&grad.values[..3], &[0.0; 3]);
    }
}

#[test]
fn all_rows_ignored() {
    for upstream in [1.0, NAN, INF] {
        let args = rows(&[1.0, NAN, 3.0, 4.0], &[-100, -100]);
        let with_upstream = args.clone().upstream(Array::scalar(upstream));
        let (loss, grad) = run(&CrossEntropy::default(), &with_upstream);
        assert_all_nan(&loss.values);
        assert_same(&grad.values, &[0.0; 4]);
        let (loss, grad) = run(&CrossEntropy::default().reduction(Reduction::Sum), &with_upstream);
        assert_same(&loss.values, &[0.0]);
        assert_same(&grad.values, &[0.0; 4]);
        assert_same(&run(&per_row(), &args).0.values, &[0.0, 0.0]);
    }
}

#[test]
fn an_empty_batch() {
    for (shape, target_shape) in [(&[0, 3][..], &[0][..]), (&[2, 3, 0], &[2, 0])] {
        let args =
            Args::new(array(&[], shape)).target(Array::new::<i32>(&[], target_shape).unwrap());
        let (loss, grad) = run(&CrossEntropy::default(), &args);
        assert_all_nan(&loss.values);
        assert_eq!((loss.shape.as_slice(), grad.shape.as_slice()), (&[][..], shape));
        assert!(grad.values.is_empty());
        let (loss, _) = run(&CrossEntropy::default().reduction(Reduction::Sum), &args);
        assert_same(&loss.values, &[0.0]);
        let (loss, _) = run(&per_row(), &args);
        assert_eq!((loss.shape.as_slice(), loss.values.len()), (target_shape, 0));
    }
}

#[test]
fn kept_rows_whose_weights_sum_to_zero() {
    let logits = [1.0, 2.0, 0.5, 1.0, 0.0, 0.0, 3.0, 3.0, 3.0];
    let target = [0, 1, -100];
    for weight in [[0.0, 0.0, 1.0], [1.5, -1.5, 1.0]] {
        for smoothing in [0.0, 0.1] {
            let args = rows(&logits, &target).weight(Array::from(&weight));
            let (loss, grad) = run(&CrossEntropy::default().label_smoothing(smoothing), &args);
            assert_all_nan(&loss.values);
            assert_all_nan(&grad.values[..6]);
            assert_same(&grad.values[6..], &[0.0; 3]);
            let op = CrossEntropy::default().reduction(Reduction::Sum);
            assert!(run(&op, &args).0.values[0].is_finite());
        }
    }
}

#[test]
fn a_masked_class_without_a_share_is_as_if_absent() {
    let weight = [2.0, 1.5, 0.0];
    for smoothing in [0.0, 0.3] {
        // With smoothing, only a weight of 0 keeps a class from having a share.
        let full = rows(&[1.0, 2.0, -INF], &[0]).weight(Array::from(&weight));
        let short = rows(&[1.0, 2.0], &[0]).weight(Array::from(&weight[..2]));
        // Smoothing spreads over C classes, masked ones too: 2/3 of 0.3 over the short row.
        let (loss, grad) = run(&per_row().label_smoothing(smoothing), &full);
        assert!(loss.values[0].is_finite() && loss.magnitudes[0].is_finite());
        assert_same(&grad.values[2..], &[0.0]);
        if smoothing == 0.0 {
            let (short_loss, short_grad) = run(&per_row(), &short);
            assert_same(&loss.values, &short_loss.values);
            assert_same(&grad.values[..2], &short_grad.values);
        }
    }
}

#[test]
fn a_masked_class_with_a_share_costs_an_infinity() {
    // The target itself is masked: p = (p0, p1, 0), a = (0, 0, 1).
    let args = rows(&[1.0, 1.0, -INF], &[2]);
    let (loss, grad) = run(&per_row(), &args);
    assert_same(&loss.values, &[f64::INFINITY]);
    assert_same(&grad.values, &[0.5, 0.5, -1.0]);

    // A negative weight: the other infinity.
    let weight = [1.0, 1.0, -2.0];
    let (loss, grad) = run(&per_row(), &args.clone().weight(Array::from(&weight)));
    assert_same(&loss.values, &[f64::NEG_INFINITY]);
    assert_same(&grad.values, &[-1.0, -1.0, 2.0]);

    // Through smoothing: a = (0.75 + 0.125, 0.125), p = (1, 0).
    let (loss, grad) = run(&per_row().label_smoothing(0.25), &rows(&[5.0, -INF], &[0]));
    assert_same(&loss.values, &[f64::INFINITY]);
    assert_same(&grad.values, &[0.125, -0.125]);

    // One such row makes a sum and a mean infinite, and leaves the gradients finite.
    let args = rows(&[0.0, 0.0, 0.0, -INF], &[0, 1]);
    for reduction in [Reduction::Mean, Reduction::Sum] {
        let (loss, grad) = run(&CrossEntropy::default().reduction(reduction), &args);
        assert_same(&loss.values, &[f64::INFINITY]);
        assert!(grad.values.iter().all(|g| g.is_finite()));
    }
}

#[test]
fn broken_rows_are_nan() {
    let zeros = [0.0; 3];
    for row in [
        [-INF, -INF, -INF],
        [INF, 0.0, 0.0],
        [INF, INF, INF],
        [INF, -INF, 0.0],
        [0.0, NAN, 0.0],
        [-INF, -INF, NAN],
        [INF, NAN, -INF],
    ] {
        let args = rows(&row, &[0]);
        // NaN comes before zeros that would annihilate.
        for args in [args.clone(), args.weight(Array::from(&zeros))] {
            for smoothing in [0.0, 0.1] {
                let (loss, grad) = run(&per_row().label_smoothing(smoothing), &args);
                assert_all_nan(&loss.values);
                assert_all_nan(&grad.values);
            }
        }
    }
    // Only the row itself.
    let (loss, grad) = run(&per_row(), &rows(&[0.0, NAN, 0.0, 0.0], &[0, 0]));
    assert!(loss.values[0].is_nan() && loss.values[1].is_finite());
    assert_all_nan(&grad.values[..2]);
    assert_same(&grad.values[2..], &[-0.5, 0.5]);
    // A mean and a sum do not lose it; the other row's gradient stays a number.
    for reduction in [Reduction::Mean, Reduction::Sum] {
        let op = CrossEntropy::default().reduction(reduction);
        let (loss, grad) = run(&op, &rows(&[0.0, NAN, 0.0, 0.0], &[0, 0]));
        assert_all_nan(&loss.values);
        assert!(grad.values[2].is_finite());
    }
}

#[test]
fn a_zero_weight_annihilates_an_infinite_loss_and_upstream() {
    let weight = [0.0, 1.0];
    let args = rows(&[-INF, 2.0], &[0]).weight(Array::from(&weight));
    for upstream in [1.0, INF, -INF] {
        let upstream = [upstream];
        let (loss, grad) = run(&per_row(), &args.clone().upstream(Array::from(&upstream)));
        assert_same(&loss.values, &[0.0]);
        assert_same(&grad.values, &[0.0, 0.0]);
    }
    let (_, grad) = run(&per_row(), &args.upstream(Array::from(&[NAN])));
    assert_all_nan(&grad.values);
}

#[test]
fn passes_return_what_they_are_for() {
    let args = rows(&[1.0, 2.0], &[0]);
    let op = CrossEntropy::default().keep_state(true);
    let of = |pass| {
        let out = reference::run(&op, pass, &args).unwrap();
        assert!(out.get(Role::State).is_none() && out.status().is_none());
        (out.get(Role::Loss).cloned(), out.get(Role::Grad).cloned())
    };
    let (loss, grad) = of(Pass::ForwardBackward);
    assert!(loss.is_some() && grad.is_some());
    assert_eq!(of(Pass::Forward), (loss, None));
    assert_eq!(of(Pass::Backward), (None, grad));
}

#[test]
fn wrong_arguments_are_refused() {
    fn of(args: Args<Array<'_>>) -> Error {
        reference::run(&CrossEntropy::default(), Pass::Forward, &args).unwrap_err()
    }
    for class in [2, -1, -99, i32::MAX] {
        let target = [0, class];
        let error = of(rows(&[1.0, 2.0, 3.0, 4.0], &target));
        assert_eq!(error, Error::Class { row: 1, class: class.into(), classes: 2 });
    }
    // far down, and the first of two
    let mut target = vec![1_i32; 5000];
    (target[10], target[2500], target[2501]) = (-100, 3, 4);
    let wide: Vec<i64> = target.iter().map(|&class| class.into()).collect();
    let logits = vec![1.0; 10_000];
    for target in [Array::from(&target), Array::from(&wide)] {
        let error = of(Args::new(array(&logits, &[5000, 2])).target(target));
        assert_eq!(error, Error::Class { row: 2500, class: 3, classes: 2 });
    }
    let long = Args::new(array(&[1.0; 4], &[2, 2])).target(Array::from(&[0, 1, 1]));
    assert!(matches!(of(long), Error::Shape { argument: "target", .. }));
    let args = rows(&[1.0, 2.0], &[0]);
    let weight = [1.0, INF];
    let error = of(args.clone().weight(Array::from(&weight)));
    assert!(matches!(error, Error::Value { argument: "weight", .. }));
    let op = CrossEntropy::default().label_smoothing(1.5);
    assert!(reference::run(&op, Pass::Forward, &args).is_err());
}

// ---- edges of BCE with logits ----

/// Unreduced loss and gradient of one element.
fn element(x: f32, t: f32, w: f32, p: f32) -> (f64, f64) {
    let ([x, t], [w, p]) = ([[x], [t]], [[w], [p]]);
    let args = Args::new(Array::from(&x))
        .target(Array::from(&t))
        .weight(Array::from(&w))
        .pos_weight(Array::from(&p));
    let op = BceWithLogits::default().reduction(Reduction::None);
    let (loss, grad) = run(&op, &args);
    (loss.values[0], grad.values[0])
}

#[test]
fn infinite_logits_with_and_against_their_target() {
    let inf = f64::INFINITY;
    assert_eq!(element(INF, 1.0, 1.0, 1.0), (0.0, 0.0));
    assert_eq!(element(-INF, 0.0, 1.0, 1.0), (0.0, 0.0));
    assert_eq!(element(INF, 0.0, 1.0, 1.0), (inf, 1.0));
    assert_eq!(element(-INF, 1.0, 1.0, 1.0), (inf, -1.0));
    assert_eq!(element(INF, 0.75, 2.0, 1.0), (inf, 0.5));
    assert_eq!(element(-INF, 0.75, -2.0, 3.0), (-inf, 4.5));
}

#[test]
fn a_zero_factor_annihilates_infinite_elements() {
    assert_eq!(element(INF, 0.0, 0.0, 1.0), (0.0, 0.0));
    assert_eq!(element(-INF, 1.0, 0.0, 1.0), (0.0, 0.0));
    assert_eq!(element(-INF, 1.0, 1.0, 0.0), (0.0, 0.0));
    for upstream in [INF, -INF] {
        let ([x, t, w], upstream) = ([[3.0], [0.5], [0.0]], [upstream]);
        let args = Args::new(Array::from(&x))
            .target(Array::from(&t))
            .weight(Array::from(&w))
            .upstream(Array::from(&upstream));
        let (_, grad) = run(&BceWithLogits::default().reduction(Reduction::None), &args);
        assert_same(&grad.values, &[0.0]);
    }
}

#[test]
fn a_nan_element_is_nan_whatever_its_factors() {
    for (x, t) in [(NAN, 0.0), (NAN, 1.0), (0.0, NAN), (INF, NAN)] {
        for (w, p) in [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0)] {
            let (loss, grad) = element(x, t, w, p);
            assert!(loss.is_nan() && grad.is_nan(), "x {x}, t {t}, w {w}, p {p}");
        }
    }
}

#[test]
fn no_elements_and_one_element_without_dimensions() {
    let none = Args::new(array(&[], &[2, 0])).target(array(&[], &[2, 0]));
    let (loss, grad) = run(&BceWithLogits::default(), &none);
    assert_all_nan(&loss.values);
    assert_eq!((grad.shape.as_slice(), grad.values.len()), (&[2, 0][..], 0));
    let (loss, _) = run(&BceWithLogits::default().reduction(Reduction::Sum), &none);
    assert_same(&loss.values, &[0.0]);

    let one = Args::new(Array::scalar(0.0_f32)).target(Array::scalar(1.0_f32));
    for reduction in REDUCTIONS {
        let (loss, grad) = run(&BceWithLogits::default().reduction(reduction), &one);
        assert_near(&loss.values, &[2_f64.ln()], 1e-15);
        assert_same(&grad.values, &[-0.5]);
        assert_eq!((loss.shape.len(), grad.shape.len()), (0, 0));
    }
}

/// Weights do not change what a mean of elements divides by.
#[test]
fn the_mean_of_elements_divides_by_their_number() {
    let (x, t, w) = ([0.0; 4], [1.0; 4], [0.0, 0.0, 3.0, -1.0]);
    let args = Args::new(Array::from(&x)).target(Array::from(&t)).weight(Array::from(&w));
    let (loss, grad) = run(&BceWithLogits::default(), &args);
    assert_near(&loss.values, &[2.0 * 2_f64.ln() / 4.0], 1e-15);
    assert_same(&grad.values, &[0.0, 0.0, -0.375, 0.125]);
}

// ---- T ----

#[test]
fn t_of_hard_targets_is_the_value() {
    let mut random = Random::new(5);
    let logits = random.logits(Logits::Confident, 8, 5);
    let target = random.targets(8, 5, -100, 0.2);
    let (weight, upstream) = (random.uniforms(5, 0.0, 2.0), random.normals(8, 1.0));
    let args = rows(&logits, &target).weight(Array::from(&weight)).upstream(Array::from(&upstream));
    let (loss, grad) = run(&per_row(), &args);
    assert_same(&loss.magnitudes, &loss.values);
    // At the target, when it is the maximum, and at classes other than target and maximum.
    let (loss, grad_of_maximum) = run(&per_row(), &rows(&[9.0, 1.0, 2.0], &[0]));
    assert_same(&loss.magnitudes, &loss.values);
    let sizes: Vec<_> = grad_of_maximum.values.iter().map(|g| g.abs()).collect();
    assert_near(&grad_of_maximum.magnitudes, &sizes, 1e-15);
    assert!(grad.values.iter().zip(&grad.magnitudes).all(|(g, t)| g.abs() <= t * (1.0 + 1e-15)));
}

#[test]
fn t_adds_up_terms_that_cancel() {
    // Weights 1 and -1, wholly smoothed, equal logits: (ln 2)/2 - (ln 2)/2.
    let weight = [1.0, -1.0];
    let args = rows(&[4.0, 4.0], &[0]).weight(Array::from(&weight));
    let (loss, grad) = run(&per_row().label_smoothing(1.0), &args);
    assert_same(&loss.values, &[0.0]);
    assert_near(&loss.magnitudes, &[2_f64.ln()], 1e-15);
    // a = (1/2, -1/2), p = 1/2 each. The maximum: (R - s u)/(1 + s) = (-1/2 - 1/2)/2. The other:
    // p (R + u) - a = 0 + 1/2, of terms p(|R| + |u|) = 1/2 and |a| = 1/2.
    assert_same(&grad.values, &[-0.5, 0.5]);
    assert_same(&grad.magnitudes, &[0.5, 1.0]);
    // t = 2: 2 ln 2 - ln 2.
    let args = Args::new(Array::scalar(0.0_f32)).target(Array::scalar(2.0_f32));
    let (loss, grad) = run(&BceWithLogits::default(), &args);
    assert_near(&loss.magnitudes, &[3.0 * 2_f64.ln()], 1e-15);
    assert_same(&grad.magnitudes, &[1.5]);
    // t = 1/2: a gradient of 1/4 - 1/4.
    let args = Args::new(Array::scalar(0.0_f32)).target(Array::scalar(0.5_f32));
    let (_, grad) = run(&BceWithLogits::default(), &args);
    assert_same(&grad.values, &[0.0]);
    assert_same(&grad.magnitudes, &[0.5]);
}

#[test]
fn t_is_summed_and_scaled_like_the_value() {
    let mut random = Random::new(6);
    let logits = random.normals(12, 1.0);
    let target = [0, 2, -100, 1];
    let weight = [1.0, 0.5, -2.0];
    let args = rows(&logits, &target).weight(Array::from(&weight));
    let (each, each_grad) = run(&per_row().label_smoothing(0.1), &args);
    let sum: f64 = each.magnitudes.iter().sum();
    assert!(sum > each.values.iter().sum::<f64>().abs());

    // The divisor is 1 - 2 + 0.5.
    let args = args.upstream(Array::scalar(-3.0_f32));
    for (reduction, over) in [(Reduction::Sum, 1.0), (Reduction::Mean, -0.5_f64)] {
        let op = CrossEntropy::default().reduction(reduction).label_smoothing(0.1);
        let (loss, grad) = run(&op, &args);
        assert_near(&loss.magnitudes, &[sum / over.abs()], 1e-15);
        let by = |values: &[f64], factor: f64| -> Vec<f64> {
            values.iter().map(|v| v * factor).collect()
        };
        assert_near(&grad.values, &by(&each_grad.values, -3.0 / over), 1e-15);
        assert_near(&grad.magnitudes, &by(&each_grad.magnitudes, 3.0 / over.abs()), 1e-15);
    }
}

#[test]
fn values_become_arrays() {
    let values = Values { shape: vec![2, 1], values: vec![0.1, 1e39], magnitudes: vec![0.1, 1e39] };
    let array = values.to_array().unwrap();
    assert_eq!((array.shape(), array.to_f32()), (&[2, 1][..], vec![0.1, INF]));
    let broken = Values { shape: vec![3], ..values };
    assert!(matches!(broken.to_array(), Err(Error::Length { expected: 3, actual: 2, .. })));
}

#[test]
fn float64_arguments_keep_their_digits() {
    // none of which float32 has
    let exact = |values: &[f64], shape: &[usize]| {
        Array::from_data(Data::F64(values.to_vec().into()), shape).unwrap()
    };
    let (x, t) = (1.0 + 2_f64.powi(-40), 1.0 - 2_f64.powi(-41));
    let args = Args::new(exact(&[x], &[1])).target(exact(&[t], &[1]));
    let (loss, grad) = run(&Mse::default(), &args);
    assert_eq!((loss.values[0], grad.values[0]), ((x - t) * (x - t), 2.0 * (x - t)));

    // beside arguments that are f32, of every role
    let logits = exact(&[2_f64.powi(-50), 0.0], &[1, 2]);
    let args = Args::new(logits).target(Array::from(&[0])).weight(Array::from(&[3.0_f32, 1.0]));
    let args = args.upstream(exact(&[0.1], &[]));
    let (loss, grad) = run(&CrossEntropy::default(), &args);
    assert!((loss.values[0] - (2_f64.ln() - 2_f64.powi(-51))).abs() < 1e-16);
    assert!((grad.values[0] + 0.1 * (0.5 - 2_f64.powi(-52))).abs() < 1e-17);
    let halves = Array::scalar(0.5_f32).to_dtype(wgloss::DType::F16).unwrap();
    let args = Args::new(halves).target(exact(&[0.1], &[]));
    assert_eq!(run(&Mse::default(), &args).0.values, [(0.5 - 0.1) * (0.5 - 0.1)]);
}

#[test]
fn multi_label_soft_margin_is_bce_with_logits() {
    // PyTorch's: losses of labels times their weights, averaged over the labels, then reduced
    let (x, t) = ([0.5_f32, -2.0, 3.0, -0.25, 1.5, -4.0], [1.0_f32, 0.0, 1.0, 1.0, 0.0, 0.5]);
    let (weight, labels) = ([0.5_f32, 2.0, 3.0], 3);
    let log_sigmoid = |x: f64| -(-x).exp().ln_1p();
    let of = |i: usize| {
        let (x, t, w) = (f64::from(x[i]), f64::from(t[i]), f64::from(weight[i % labels]));
        -w * (t * log_sigmoid(x) + (1.0 - t) * log_sigmoid(-x))
    };
    let rows: Vec<f64> =
        (0..2).map(|row| (0..3).map(|c| of(row * 3 + c)).sum::<f64>() / 3.0).collect();

    let losses = |reduction, weight: &[f32]| {
        let args = Args::new(array(&x, &[2, 3])).target(array(&t, &[2, 3])).weight(weight.into());
        run(&BceWithLogits::default().reduction(reduction), &args).0.values
    };
    let close = |got: f64, want: f64| assert!((got - want).abs() < 1e-7 * want, "{got} {want}");
    close(losses(Reduction::Mean, &weight)[0], (rows[0] + rows[1]) / 2.0);
    close(losses(Reduction::Sum, &weight.map(|w| w / 3.0))[0], rows[0] + rows[1]);
    for (got, want) in losses(Reduction::None, &weight).chunks(labels).zip(&rows) {
        close(got.iter().sum::<f64>() / 3.0, *want);
    }
}
