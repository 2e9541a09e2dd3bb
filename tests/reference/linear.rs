//! Linear cross entropy: its values, its slopes, and how much T allows.

use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};
use wgloss::options::Value;
use wgloss::reference::{self, Values};
use wgloss::{
    Args, Array, CrossEntropy, Data, LinearCrossEntropy, Op, Output, Pass, Reduction, Role,
};
use wgloss_testing::any;
use wgloss_testing::call::hold;
use wgloss_testing::compare::compare_part;
use wgloss_testing::random::Random;

use super::{H, INF, NAN, REDUCTIONS, assert_all_nan, assert_near, assert_same, on_grid};

/// A call: N rows of D numbers, V classes.
#[derive(Debug, Clone)]
struct Call {
    sizes: [usize; 3],
    op: LinearCrossEntropy,
    x: Vec<f32>,
    w: Vec<f32>,
    bias: Option<Vec<f32>>,
    target: Vec<i32>,
    weight: Option<Vec<f32>>,
    upstream: Vec<f32>,
}

impl Call {
    /// Any options, about an eighth of the rows ignored.
    fn random(random: &mut Random, sizes: [usize; 3], deviation: f64) -> Self {
        let [rows, dims, classes] = sizes;
        let reduction = random.pick(&REDUCTIONS);
        let mut loss = CrossEntropy::default()
            .reduction(reduction)
            .label_smoothing(random.pick(&[0.0, 0.1, 1.0]))
            .logit_scale(random.pick(&[1.0, 0.5]))
            .z_loss(random.pick(&[0.0, 0.0, 0.01, -0.1]));
        if random.chance(0.3) {
            loss = loss.softcap(random.pick(&[2.0, 30.0]));
        }
        let upstream = if reduction == Reduction::None { rows } else { 1 };
        Call {
            sizes,
            op: LinearCrossEntropy::new(loss),
            x: random.normals(rows * dims, deviation),
            w: random.normals(classes * dims, 1.0),
            bias: random.chance(0.5).then(|| random.normals(classes, 1.0)),
            target: random.targets(rows, classes, -100, 0.1),
            weight: random.chance(0.5).then(|| random.eighths(classes)),
            upstream: random.normals(upstream, 1.0),
        }
    }

    fn forward_args(&self) -> Args<Array<'_>> {
        let [rows, dims, classes] = self.sizes;
        let mut args = Args::new(Array::new(&self.x, &[rows, dims]).unwrap())
            .projection(Array::new(&self.w, &[classes, dims]).unwrap())
            .target(Array::from(&self.target));
        if let Some(bias) = &self.bias {
            args = args.bias(Array::from(bias));
        }
        if let Some(weight) = &self.weight {
            args = args.weight(Array::from(weight));
        }
        args
    }

    fn args(&self) -> Args<Array<'_>> {
        let is_none = option(&self.op, "reduction") == Value::Reduction(Reduction::None);
        let shape = if is_none { &self.sizes[..1] } else { &[] };
        self.forward_args().upstream(Array::new(&self.upstream, shape).unwrap())
    }

    #[track_caller]
    fn run(&self) -> Output<Values> {
        reference::run(&self.op, Pass::ForwardBackward, &self.args()).unwrap()
    }
}

fn option(op: &dyn Op, name: &str) -> Value {
    wgloss_testing::ops::option(op, name).unwrap()
}

fn f64s(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| value.into()).collect()
}

/// Cross entropy of these logits, with the other arguments of the call.
fn of_logits(call: &Call, loss: &CrossEntropy, logits: Array<'_>) -> Output<Values> {
    let mut args = Args::new(logits).target(Array::from(&call.target));
    let all = call.args();
    if let Some(weight) = all.get(Role::Weight) {
        args = args.weight(weight.clone());
    }
    args = args.upstream(all.get(Role::Upstream).unwrap().clone());
    reference::run(loss, Pass::ForwardBackward, &args).unwrap()
}

/// The options of the loss that a call's op is made of.
fn loss_of(op: &dyn Op) -> CrossEntropy {
    let mut loss = CrossEntropy::default();
    let names: Vec<_> = loss.options().into_iter().map(|option| option.name).collect();
    for option in op.options().into_iter().filter(|option| names.contains(&option.name)) {
        loss.set(option.name, option.value).unwrap();
    }
    loss
}

#[test]
fn values_are_those_of_three_products_and_cross_entropy() {
    let mut random = Random::new(21);
    for sizes in [[4, 3, 5], [1, 4, 6], [5, 1, 2], [3, 2, 1], [0, 2, 3]] {
        for _ in 0..20 {
            let call = Call::random(&mut random, sizes, 1.0);
            let [rows, dims, classes] = sizes;
            let (x, w) = (f64s(&call.x), f64s(&call.w));
            let mut logits = vec![0.0; rows * classes];
            for r in 0..rows {
                for c in 0..classes {
                    let products = (0..dims).map(|d| x[r * dims + d] * w[c * dims + d]);
                    let bias = call.bias.as_ref().map_or(0.0, |bias| bias[c].into());
                    logits[r * classes + c] = products.sum::<f64>() + bias;
                }
            }
            let logits = Array::from_data(Data::F64(logits.into()), &[rows, classes]).unwrap();
            let want = of_logits(&call, &loss_of(&call.op), logits);
            let got = call.run();
            assert_same(&got.loss().unwrap().values, &want.loss().unwrap().values);
            assert_eq!(got.loss().unwrap().shape, want.loss().unwrap().shape);

            let g = &want.grad().unwrap().values;
            if g.iter().any(|g| g.is_nan()) {
                continue; // a mean over a divisor of 0
            }
            let (mut dx, mut dw, mut db) =
                (vec![0.0; rows * dims], vec![0.0; w.len()], vec![0.0; classes]);
            for r in 0..rows {
                for c in 0..classes {
                    let g = g[r * classes + c];
                    db[c] += g;
                    for d in 0..dims {
                        dx[r * dims + d] += g * w[c * dims + d];
                        dw[c * dims + d] += g * x[r * dims + d];
                    }
                }
            }
            assert_near(&got.grad().unwrap().values, &dx, 1e-13);
            assert_near(&got.grad_projection().unwrap().values, &dw, 1e-13);
            assert_eq!(got.grad_projection().unwrap().shape, [classes, dims]);
            assert_eq!(got.grad_bias().is_ok(), call.bias.is_some());
            if let Ok(grad_bias) = got.grad_bias() {
                assert_near(&grad_bias.values, &db, 1e-13);
            }
        }
    }
}

/// As `check_slopes` for every argument that has a gradient.
#[test]
fn gradients_are_slopes() {
    let mut random = Random::new(22);
    let mut checked = 0;
    for _ in 0..60 {
        let mut call = Call::random(&mut random, [3, 2, 4], 1.0);
        call.x = on_grid(call.x);
        call.w = on_grid(call.w);
        call.bias = call.bias.map(on_grid);
        let out = call.run();
        let upstream = f64s(&call.upstream);
        let total = |call: &Call| -> f64 {
            let out = reference::run(&call.op, Pass::Forward, &call.forward_args()).unwrap();
            let losses = out.loss().unwrap().values.clone();
            losses.iter().zip(&upstream).map(|(loss, u)| loss * u).sum()
        };
        let size = 1.0 + total(&call).abs();
        if !size.is_finite() {
            continue; // a mean over a divisor of 0
        }
        type Part = fn(&mut Call) -> &mut [f32];
        let parts: [(Role, Part); 3] = [
            (Role::Grad, |call| &mut call.x),
            (Role::GradProjection, |call| &mut call.w),
            (Role::GradBias, |call| call.bias.as_mut().unwrap()),
        ];
        for (role, part) in parts {
            let Some(grad) = out.get(role) else { continue };
            for (i, got) in grad.values.iter().enumerate() {
                let at = |steps: f32| {
                    let mut moved = call.clone();
                    part(&mut moved)[i] += steps * H;
                    total(&moved)
                };
                let h = f64::from(H);
                let slope = (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * h);
                // what H^4 leaves, of products with numbers of either side
                let allowed = 1e-11 * size + 1e-7 * slope.abs().max(size * 1e-2);
                assert!((got - slope).abs() <= allowed, "{role} {i}: {got:e}, {slope:e}, {call:?}");
                checked += 1;
            }
        }
    }
    assert!(checked > 500, "{checked}");
}

/// The definition in f32, whose logits go through `round`: what a kernel may do.
fn in_f32(
    op: &dyn Op,
    pass: Pass,
    args: &Args<Array<'_>>,
    round: fn(f32) -> f32,
) -> Output<Array<'static>> {
    let outputs = op.outputs(pass, &args.layouts()).unwrap();
    let of = |role| args.get(role).map(Array::to_f32);
    let (x, w, bias) = (args.input().to_f32(), of(Role::Projection).unwrap(), of(Role::Bias));
    let &[classes, dims] = args.get(Role::Projection).unwrap().shape() else { unreachable!() };
    let rows = x.len() / dims;
    let mut logits = vec![0.0; rows * classes];
    for (i, logit) in logits.iter_mut().enumerate() {
        let (r, c) = (i / classes, i % classes);
        let mut sum = 0.0_f32;
        for d in 0..dims {
            sum += x[r * dims + d] * w[c * dims + d];
        }
        *logit = round(sum + bias.as_ref().map_or(0.0, |bias| bias[c]));
    }
    let logits = Array::new(&logits, &[rows, classes]).unwrap();
    let target = args.get(Role::Target).unwrap().to_i64().unwrap();
    let of_logits = args.iter().fold(Args::new(logits), |all, (role, array)| match role {
        Role::Target => all.target(Array::from_vec(target.clone(), &[rows]).unwrap()),
        Role::Weight => all.weight(array.clone()),
        Role::Upstream => {
            let is_none = option(op, "reduction") == Value::Reduction(Reduction::None);
            let shape = if is_none { &[rows][..] } else { &[] };
            all.upstream(Array::from_vec(array.to_f32(), shape).unwrap())
        }
        _ => all,
    });
    let loss = loss_of(op);
    let out = reference::run(&loss, pass, &of_logits).unwrap();

    let given = |role: Role, count: usize| of(role).unwrap_or_else(|| vec![0.0; count]);
    let mut dx = vec![0.0; x.len()];
    let mut dw = given(Role::GradProjection, w.len());
    let mut db = given(Role::GradBias, classes);
    let g = out.grad().map(|g| g.to_array().unwrap().to_f32()).unwrap_or_default();
    for (i, g) in g.into_iter().enumerate() {
        let (r, c) = (i / classes, i % classes);
        db[c] += g;
        for d in 0..dims {
            dx[r * dims + d] += g * w[c * dims + d];
            dw[c * dims + d] += g * x[r * dims + d];
        }
    }
    let result = |(role, layout): (Role, &wgloss::Layout)| {
        let shape = layout.shape();
        let values = match role {
            Role::Grad => dx.clone(),
            Role::GradProjection => dw.clone(),
            Role::GradBias => db.clone(),
            Role::State => vec![0.0; layout.elements()],
            role => out.get(role).unwrap().to_array().unwrap().to_f32(),
        };
        let array = match role {
            Role::Argmax | Role::Correct => {
                Array::from_vec(values.into_iter().map(|value| value as i32).collect(), shape)
            }
            _ => Array::from_vec(values, shape).unwrap().to_dtype(layout.dtype()),
        };
        (role, array.unwrap())
    };
    outputs.iter().map(result).collect()
}

/// The error of each result in units of what is allowed, infinite where none is.
fn units(call: &Call, got: &Output<Array<'_>>) -> Vec<(Role, f64)> {
    let want = call.run();
    assert!(want.iter().map(|(role, _)| role).eq(got.iter().map(|(role, _)| role)));
    let is_mean = option(&call.op, "reduction") == Value::Reduction(Reduction::Mean);
    let weight = |&y: &i32| call.weight.as_ref().map_or(1.0, |w| f64::from(w[y as usize]));
    let divisor: f64 = call.target.iter().filter(|&&y| y != -100).map(weight).sum();
    // where all rows are ignored, gradients are 0
    let over = if is_mean && divisor != 0.0 { divisor.abs() } else { 1.0 };
    let upstream = f64s(&call.upstream).into_iter().fold(0.0, |max: f64, u| max.max(u.abs()));
    let of = |(role, got): (Role, &Array<'_>)| {
        let promise = call.op.promise(role).scaled(match role {
            Role::Loss => 1.0 / over,
            Role::Grad | Role::GradProjection | Role::GradBias => upstream / over,
            _ => 1.0,
        });
        match compare_part(role, got, want.get(role).unwrap(), promise) {
            Ok(worst) => (role, worst.units),
            Err(wgloss::reference::Mismatch::Value { units, .. }) => (role, units),
            Err(error) => panic!("{role}: {error}"),
        }
    };
    got.iter().map(of).collect()
}

/// Calls of every option, size and value.
#[test]
fn random_calls_in_f32_keep_the_promise() {
    let config = ProptestConfig {
        cases: 500,
        rng_seed: RngSeed::Fixed(0),
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let result = TestRunner::new(config).run(&any::linear_cross_entropy(), |call| {
        let run = |op: &dyn Op, pass, args: &Args<Array<'_>>| Ok(in_f32(op, pass, args, |x| x));
        hold(&call, run).map_err(TestCaseError::fail)
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

/// A bound that nothing comes near would hide faults, so the worst of each result is told from below too.
#[test]
fn the_definition_in_f32_keeps_the_promise_and_logits_in_16_bits_do_not() {
    let mut random = Random::new(23);
    let mut worst: Vec<(Role, f64)> = vec![];
    let (mut calls, mut refused) = (0, 0);
    for _ in 0..300 {
        let sizes = random.pick(&[[4, 8, 9], [3, 32, 20], [1, 64, 33], [9, 3, 5], [2, 1, 7]]);
        let deviation = random.pick(&[0.3, 1.0, 4.0]);
        let mut call = Call::random(&mut random, sizes, deviation);
        call.op = LinearCrossEntropy::new(loss_of(&call.op).row_outputs(true));
        if call.run().grad().unwrap().values.iter().any(|g| g.is_nan()) {
            continue; // a mean over a divisor of 0
        }
        let got = |round| in_f32(&call.op, Pass::ForwardBackward, &call.args(), round);
        for (role, units) in units(&call, &got(|logit| logit)) {
            assert!(units <= 1.0, "{role}: {units} of {call:?}");
            note(&mut worst, role, units);
        }
        calls += 1;
        let narrow = got(|logit| half::bf16::from_f32(logit).to_f32());
        refused += usize::from(units(&call, &narrow).iter().any(|(_, units)| *units > 1.0));
    }
    println!("{worst:?}, {refused} of {calls}");
    for (role, units) in worst {
        let is_integer = matches!(role, Role::Argmax | Role::Correct);
        assert!(is_integer || units > 0.02, "{role}: at most {units} of what is allowed");
    }
    assert!(refused * 100 > calls * 95, "{refused} of {calls}");
}

/// Logits that lie so far from where they should be as f32 may leave them, with all options: results there are
/// within T, and come near it.
#[test]
fn t_is_what_moved_logits_do() {
    let mut random = Random::new(24);
    let mut reached: Vec<(Role, f64)> = vec![];
    for trial in 0..2000 {
        let (rows, classes) = (random.pick(&[1, 2, 3]), random.pick(&[1, 2, 3, 8]));
        let mut call = Call::random(&mut random, [rows, 2, classes], 1.0);
        call.upstream.fill(1.0);
        // x = (a, a) and w = (b + u, -b): products are large, and their sums are not
        let (a, spread) = (16.0, random.pick(&[0.1, 0.3, 1.0]));
        call.x.fill(a);
        let height = random.pick(&[1.0, 100.0, 3000.0_f32, 20_000.0]);
        for w in call.w.chunks_mut(2) {
            let b = (height * random.uniform() as f32).round();
            (w[0], w[1]) = (b + (random.normal() * spread) as f32, -b);
        }
        call.bias = None;
        let loss = loss_of(&call.op).row_outputs(true);
        call.op = LinearCrossEntropy::new(loss.clone());
        let want = call.run();
        if want.loss().unwrap().values.iter().any(|loss| loss.is_nan()) {
            continue; // a mean over a divisor of 0
        }
        let (x, w) = (f64s(&call.x), f64s(&call.w));
        let mut logits = vec![0.0; rows * classes];
        let mut moves = vec![0.0; rows * classes];
        for (i, logit) in logits.iter_mut().enumerate() {
            let products = [0, 1].map(|d| x[i / classes * 2 + d] * w[i % classes * 2 + d]);
            *logit = products[0] + products[1];
            moves[i] = 10.0 * 2_f64.powi(-24) * (products[0].abs() + products[1].abs());
        }
        let at = |moved: Vec<f64>| {
            let moved = Array::from_data(Data::F64(moved.into()), &[rows, classes]).unwrap();
            of_logits(&call, &loss, moved)
        };
        // up the slope of a row's loss, or anywhere
        let slopes = at(logits.clone()).grad().unwrap().values.clone();
        let moved = (0..logits.len()).map(|i| {
            let sign = if trial % 2 == 0 { slopes[i].signum() } else { random.pick(&[-1.0, 1.0]) };
            logits[i] + sign * moves[i]
        });
        let got = at(moved.collect());
        let g = &got.grad().unwrap().values;
        let (mut dx, mut dw) = (vec![0.0; 2 * rows], vec![0.0; w.len()]);
        for (i, g) in g.iter().enumerate() {
            let (r, c) = (i / classes, i % classes);
            for d in 0..2 {
                dx[r * 2 + d] += g * w[c * 2 + d];
                dw[c * 2 + d] += g * x[r * 2 + d];
            }
        }
        let more = match option(&call.op, "softcap") {
            Value::Optional(Some(cap)) => 4.0 * cap * 2_f64.powi(-24),
            _ => 0.0,
        };
        let values = |role| got.get(role).unwrap().values.clone();
        for (role, got, tolerance) in [
            (Role::Loss, values(Role::Loss), 2e-6),
            (Role::LogSumExp, values(Role::LogSumExp), 2e-6),
            (Role::Entropy, values(Role::Entropy), 4e-6),
            (Role::Grad, dx, 4e-6),
            (Role::GradProjection, dw, 4e-6),
        ] {
            let want = want.get(role).unwrap();
            for (i, got) in got.iter().enumerate() {
                let allowed = (tolerance + more) * want.magnitudes[i];
                let error = (got - want.values[i]).abs();
                assert!(error <= allowed + 1e-300, "{role} {i}: {}, {call:?}", error / allowed);
                if allowed > 0.0 {
                    note(&mut reached, role, error / allowed);
                }
            }
        }
    }
    println!("{reached:?}");
    for (role, units) in reached {
        assert!(units > 0.5, "{role}: moved logits reach {units} of what is allowed");
    }
}

/// Keeps the largest of each role.
fn note(worst: &mut Vec<(Role, f64)>, role: Role, units: f64) {
    match worst.iter_mut().find(|(of, _)| *of == role) {
        Some((_, worst)) => *worst = worst.max(units),
        None => worst.push((role, units)),
    }
}

fn per_row() -> CrossEntropy {
    CrossEntropy::default().reduction(Reduction::None)
}

/// One loss a row: `x` of rows of D numbers, `w` of V rows.
fn call<'a>(x: &'a [f32], w: &'a [f32], dims: usize, target: &'a [i32]) -> Args<Array<'a>> {
    Args::new(Array::new(x, &[x.len() / dims, dims]).unwrap())
        .projection(Array::new(w, &[w.len() / dims, dims]).unwrap())
        .target(Array::from(target))
}

#[track_caller]
fn run(op: &LinearCrossEntropy, args: &Args<Array<'_>>) -> Output<Values> {
    reference::run(op, Pass::ForwardBackward, args).unwrap()
}

#[test]
fn gradients_are_added_to_what_is_given_and_left_out_where_frozen() {
    let (x, w) = ([1.0, 2.0, -1.0, 0.5], [0.5, 0.0, -1.0, 1.0, 0.25, 0.25]);
    let (bias, op) = ([0.0, 0.5, -0.5], LinearCrossEntropy::default());
    let args = call(&x, &w, 2, &[0, 2]).bias(Array::from(&bias));
    let plain = run(&op, &args);
    let given = [10.0, -20.0, 30.0, 0.0, 1.0, 2.0_f32];
    let added = args
        .clone()
        .grad_projection(Array::new(&given, &[3, 2]).unwrap())
        .grad_bias(Array::from(&[4.0, 5.0, 6.0_f32]));
    let both = run(&op, &added);
    for (role, given) in [(Role::GradProjection, &given[..]), (Role::GradBias, &[4.0, 5.0, 6.0])] {
        let (plain, both) = (plain.get(role).unwrap(), both.get(role).unwrap());
        for (i, given) in f64s(given).into_iter().enumerate() {
            assert!((plain.values[i] + given - both.values[i]).abs() < 1e-14);
            // two roundings of what is given at least, and not many more
            let more = (both.magnitudes[i] - plain.magnitudes[i]) * 4e-6 / 2_f64.powi(-24);
            assert!((2.0..=12.0).contains(&(more / given.abs())) || given == 0.0, "{role}: {more}");
        }
    }
    let roles = |op: &LinearCrossEntropy| {
        let roles: Vec<_> = run(op, &args).iter().map(|(role, _)| role).collect();
        roles
    };
    let (all, op) = ([Role::Grad, Role::GradProjection, Role::GradBias], op);
    for frozen in 0..7 {
        let [a, b, c] = [1, 2, 4].map(|bit| frozen & bit != 0);
        let op = op.clone().freeze_input(a).freeze_projection(b).freeze_bias(c);
        let kept =
            all.into_iter().zip([a, b, c]).filter_map(|(role, frozen)| (!frozen).then_some(role));
        let want: Vec<_> = std::iter::once(Role::Loss).chain(kept).collect();
        assert_eq!(roles(&op), want);
    }
}

#[test]
fn any_of_the_classes_that_rounding_may_make_the_largest_is_the_argmax() {
    let op = LinearCrossEntropy::new(per_row().row_outputs(true));
    // logits 1e4 and 1e4 + 1/1024: (2 + 8) 2^-24 2e4 is 0.012
    let (x, w) = ([100.0, 0.0], [100.0, 0.0, 100.0 + 2_f32.powi(-17), 0.0, 99.0, 0.0]);
    let rows = |target: i32| {
        let (out, target) = (run(&op, &call(&x, &w, 2, &[target])), target);
        let rows = out.rows().unwrap();
        assert_eq!(rows.argmax.values, [1.0]);
        assert_eq!(rows.correct.unwrap().values, [f64::from(u8::from(target == 1))]);
        let holds = |value: i32, of: &Values| {
            compare_part(Role::Argmax, &Array::from(&[value]), of, op.promise(Role::Argmax)).is_ok()
        };
        let classes = [0, 1, 2].map(|class| holds(class, rows.argmax));
        (classes[..2] == [true, true], [0, 1].map(|value| holds(value, rows.correct.unwrap())))
    };
    assert_eq!(rows(0), (true, [true, true]));
    assert_eq!(rows(1), (true, [true, true]));
    assert_eq!(rows(2), (true, [true, false]));

    // far enough from one another: only one is right
    let w = [100.0, 0.0, 100.5, 0.0, 99.0, 0.0];
    let out = run(&op, &call(&x, &w, 2, &[0]));
    let rows = out.rows().unwrap();
    assert_eq!(
        (&rows.argmax.magnitudes[..], &rows.correct.unwrap().magnitudes[..]),
        (&[0.0][..], &[0.0][..])
    );
    // equal without any rounding: the first
    let out = run(&op, &call(&[0.0, 0.0], &w, 2, &[1]));
    let rows = out.rows().unwrap();
    assert_eq!((rows.argmax.values[0], rows.argmax.magnitudes[0]), (0.0, 0.0));
}

#[test]
fn confident_rows_keep_their_digits_through_the_product() {
    // logits 40, 0 and -2
    let (x, w) = ([4.0, 1.0], [10.0, 0.0, 0.0, 0.0, 0.0, -2.0]);
    let out = run(&LinearCrossEntropy::new(per_row()), &call(&x, &w, 2, &[0]));
    let (p1, p2) = ((-40_f64).exp(), (-42_f64).exp());
    assert_near(&out.loss().unwrap().values, &[p1 + p2], 1e-14);
    assert_near(&out.grad().unwrap().values, &[-10.0 * (p1 + p2), -2.0 * p2], 1e-14);
    let want = [-4.0 * (p1 + p2), -(p1 + p2), 4.0 * p1, p1, 4.0 * p2, p2];
    assert_near(&out.grad_projection().unwrap().values, &want, 1e-14);
    // T too: a loss of 0, or a gradient of 0, is none of these
    for role in [Role::Loss, Role::Grad, Role::GradProjection] {
        let of = out.get(role).unwrap();
        for (value, t) in of.values.iter().zip(&of.magnitudes) {
            assert!(*t < 1e3 * value.abs(), "{role}: T {t:e} of {value:e}");
        }
    }
}

#[test]
fn what_is_not_finite_spreads_as_products_spread_it() {
    let op = LinearCrossEntropy::new(per_row().row_outputs(true));
    let w = [1.0, 0.0, 0.0, 1.0, -1.0, 2.0];
    // a bias of -inf masks a class: its gradient is 0, and adds nothing
    let masked = call(&[1.0, 2.0], &w, 2, &[0]).bias(Array::from(&[0.0, -INF, 0.0]));
    let out = run(&op, &masked);
    assert_near(&out.loss().unwrap().values, &[2_f64.exp().ln_1p()], 1e-15);
    assert!(
        out.grad()
            .unwrap()
            .values
            .iter()
            .chain(&out.grad().unwrap().magnitudes)
            .all(|v| v.is_finite())
    );
    assert_same(&out.grad_projection().unwrap().values[2..4], &[0.0, 0.0]);
    assert!(out.rows().unwrap().entropy.magnitudes[0].is_finite());

    // an infinity or NaN in a row: all of it, and the sums over rows; other rows keep their gradient
    for broken in [INF, -INF, NAN] {
        let out = run(&op, &call(&[broken, 2.0, 1.0, 1.0], &w, 2, &[0, 1]));
        let (loss, grad) = (out.loss().unwrap(), out.grad().unwrap());
        assert!(loss.values[0].is_nan() && loss.values[1].is_finite());
        assert_all_nan(&grad.values[..2]);
        assert!(grad.values[2..].iter().chain(&grad.magnitudes[2..]).all(|v| v.is_finite()));
        assert_all_nan(&out.grad_projection().unwrap().values);
    }
    // an ignored row has no gradient, but 0 times an infinity is NaN
    let out = run(&op, &call(&[INF, 2.0, 1.0, 1.0], &w, 2, &[-100, 1]));
    assert_same(&out.grad().unwrap().values[..2], &[0.0, 0.0]);
    assert_same(&out.grad().unwrap().magnitudes[..2], &[0.0, 0.0]);
    let grad = &out.grad_projection().unwrap().values;
    assert_all_nan(&[grad[0], grad[2], grad[4]]);
    assert!([grad[1], grad[3], grad[5]].iter().all(|v| v.is_finite()));
    assert_eq!(out.rows().unwrap().argmax.values[0], -1.0);
}

#[test]
fn rows_keep_the_shape_of_the_input() {
    let op = LinearCrossEntropy::new(per_row().row_outputs(true));
    for shape in [&[2, 3, 2][..], &[6, 2], &[2], &[0, 2]] {
        let rows = &shape[..shape.len() - 1];
        let count = rows.iter().product();
        let args = Args::new(Array::from_vec(vec![1.0; count * 2], shape).unwrap())
            .projection(Array::new(&[0.5, 0.25, -1.0, 2.0], &[2, 2]).unwrap())
            .target(Array::from_vec(vec![0; count], rows).unwrap());
        let out = run(&op, &args);
        assert_eq!(out.loss().unwrap().shape, rows);
        assert_eq!(out.rows().unwrap().entropy.shape, rows);
        assert_eq!(out.grad().unwrap().shape, shape);
    }
}
