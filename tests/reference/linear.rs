//! Linear cross entropy: its values, its slopes, and how much T allows.

use wgloss::reference::{self, Values};
use wgloss::{
    Args, Array, CrossEntropy, DType, Data, LinearCrossEntropy, Op, Output, Pass, Reduction, Role,
};
use wgloss_testing::compare::{Tolerance, compare, compare_part};
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
        let is_scalar = self
            .op
            .options()
            .iter()
            .all(|option| option.value != wgloss::options::Value::Reduction(Reduction::None));
        let shape = if is_scalar { &[][..] } else { &self.sizes[..1] };
        self.forward_args().upstream(Array::new(&self.upstream, shape).unwrap())
    }

    #[track_caller]
    fn run(&self) -> Output<Values> {
        reference::run(&self.op, Pass::ForwardBackward, &self.args()).unwrap()
    }
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
fn loss_of(op: &LinearCrossEntropy) -> CrossEntropy {
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
fn in_f32(call: &Call, loss: &CrossEntropy, round: fn(f32) -> f32) -> Output<Array<'static>> {
    let [rows, dims, classes] = call.sizes;
    let mut logits = vec![0.0; rows * classes];
    for r in 0..rows {
        for c in 0..classes {
            let mut sum = 0.0_f32;
            for d in 0..dims {
                sum += call.x[r * dims + d] * call.w[c * dims + d];
            }
            logits[r * classes + c] = round(sum + call.bias.as_ref().map_or(0.0, |bias| bias[c]));
        }
    }
    let out = of_logits(call, loss, Array::new(&logits, &[rows, classes]).unwrap());
    let g = out.grad().unwrap().to_array().unwrap().to_f32();
    let (mut dx, mut dw, mut db) =
        (vec![0.0; rows * dims], vec![0.0; classes * dims], vec![0.0; classes]);
    for r in 0..rows {
        for c in 0..classes {
            let g = g[r * classes + c];
            db[c] += g;
            for d in 0..dims {
                dx[r * dims + d] += g * call.w[c * dims + d];
                dw[c * dims + d] += g * call.x[r * dims + d];
            }
        }
    }
    let array = |values: Vec<f32>, shape: &[usize]| Array::from_vec(values, shape).unwrap();
    let results = out.iter().filter(|(role, _)| *role != Role::Grad).map(|(role, values)| {
        let floats = values.to_array().unwrap();
        let integers = || floats.to_f32().into_iter().map(|value| value as i32).collect::<Vec<_>>();
        (
            role,
            match role {
                Role::Argmax | Role::Correct => Array::from_vec(integers(), &values.shape).unwrap(),
                _ => floats,
            },
        )
    });
    let results: Output<_> = results.collect();
    let results = results
        .with(Role::Grad, array(dx, &[rows, dims]))
        .with(Role::GradProjection, array(dw, &[classes, dims]));
    match &call.bias {
        Some(_) => results.with(Role::GradBias, array(db, &[classes])),
        None => results,
    }
}

/// The error of each result in units of what is allowed, infinite where none is.
fn units(call: &Call, got: &Output<Array<'_>>) -> Vec<(Role, f64)> {
    let want = call.run();
    assert!(want.iter().map(|(role, _)| role).eq(got.iter().map(|(role, _)| role)));
    let is_mean = call
        .op
        .options()
        .iter()
        .any(|option| option.value == wgloss::options::Value::Reduction(Reduction::Mean));
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
        let loss = loss_of(&call.op).row_outputs(true);
        call.op = LinearCrossEntropy::new(loss.clone());
        if call.run().grad().unwrap().values.iter().any(|g| g.is_nan()) {
            continue; // a mean over a divisor of 0
        }
        for (role, units) in units(&call, &in_f32(&call, &loss, |logit| logit)) {
            assert!(units <= 1.0, "{role}: {units} of {call:?}");
            match worst.iter_mut().find(|(of, _)| *of == role) {
                Some((_, worst)) => *worst = worst.max(units),
                None => worst.push((role, units)),
            }
        }
        calls += 1;
        let narrow = in_f32(&call, &loss, |logit| half::bf16::from_f32(logit).to_f32());
        refused += usize::from(units(&call, &narrow).iter().any(|(_, units)| *units > 1.0));
    }
    println!("{worst:?}, {refused} of {calls}");
    for (role, units) in worst {
        let is_integer = matches!(role, Role::Argmax | Role::Correct);
        assert!(is_integer || units > 0.02, "{role}: at most {units} of what is allowed");
    }
    assert!(refused * 100 > calls * 95, "{refused} of {calls}");
}
