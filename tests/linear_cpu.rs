//! Linear cross entropy on the CPU, held to a float64 computation of its products around the reference
//! of cross entropy.

use allocation_counter::measure;
use wgloss::{
    Args, Array, Cpu, CrossEntropy, DType, Data, LinearCrossEntropy, Op, Output, Pass, Reduction,
    Role,
};
use wgloss_testing::random::Random;

/// The unit of f32's rounding.
const U: f64 = 1.0 / (1 << 24) as f64;

/// A call in float64 terms.
struct Call {
    loss: CrossEntropy,
    op: LinearCrossEntropy,
    /// The scale, the cap, and the factor of the z-loss among the options.
    scale: f64,
    softcap: f64,
    z_loss: f64,
    reduction: Reduction,
    ignore_index: i64,
    sizes: [usize; 3],
    input: Array<'static>,
    projection: Array<'static>,
    bias: Option<Array<'static>>,
    target: Array<'static>,
    weight: Option<Array<'static>>,
    upstream: Option<Array<'static>>,
    given: [Option<Array<'static>>; 2],
}

/// Numbers of a storage type.
fn stored(dtype: DType, values: Vec<f32>, shape: &[usize]) -> Array<'static> {
    match dtype {
        DType::F16 => {
            let values: Vec<_> = values.into_iter().map(half::f16::from_f32).collect();
            Array::from_vec(values, shape).unwrap()
        }
        DType::Bf16 => {
            let values: Vec<_> = values.into_iter().map(half::bf16::from_f32).collect();
            Array::from_vec(values, shape).unwrap()
        }
        _ => Array::from_vec(values, shape).unwrap(),
    }
}

fn numbers(random: &mut Random, count: usize, deviation: f64) -> Vec<f32> {
    (0..count).map(|_| ((random.uniform() * 2.0 - 1.0) * deviation) as f32).collect()
}

/// f32 numbers.
fn array(random: &mut Random, shape: &[usize]) -> Array<'static> {
    let count = shape.iter().product();
    Array::from_vec(numbers(random, count, 2.0), shape).unwrap()
}

impl Call {
    fn random(random: &mut Random, dtype: DType, sizes: [usize; 3]) -> Self {
        let [n, d, v] = sizes;
        let reduction = random.pick(&[Reduction::Mean, Reduction::Sum, Reduction::None]);
        let ignore_index = random.pick(&[-100, 0]);
        let scale = random.pick(&[1.0, 0.5, 2.0]);
        let softcap = random.pick(&[None, None, Some(3.0)]);
        let z_loss = random.pick(&[0.0, 0.0, 0.01]);
        let smoothing = random.pick(&[0.0, 0.0, 0.1]);
        let mut loss = CrossEntropy::default()
            .reduction(reduction)
            .ignore_index(ignore_index)
            .label_smoothing(smoothing)
            .row_outputs(random.chance(0.3))
            .logit_scale(scale)
            .z_loss(z_loss)
            .empty_mean(7.0);
        if let Some(softcap) = softcap {
            loss = loss.softcap(softcap);
        }
        let is_narrow = random.chance(0.3);
        let least = 4 * v as i64;
        let op = LinearCrossEntropy::new(loss.clone())
            .narrow_grad_projection(is_narrow)
            .workspace_bytes(random.pick(&[least, 5 * least, 1 << 20, 256 << 20]).max(least));
        let target = (0..n).map(|_| match random.chance(0.2) {
            true => ignore_index as i32,
            false => random.below(v) as i32,
        });
        let target: Vec<i32> = target.collect();
        let weight = random.chance(0.3).then(|| {
            let weights = (0..v).map(|_| 0.5 + random.uniform() as f32).collect();
            Array::from_vec::<f32>(weights, &[v]).unwrap()
        });
        let upstream_shape = if reduction == Reduction::None { &[n][..] } else { &[] };
        let has_bias = random.chance(0.5);
        let is_given = random.chance(0.3);
        Call {
            loss,
            op,
            scale,
            softcap: softcap.unwrap_or(0.0),
            z_loss,
            reduction,
            ignore_index,
            sizes,
            input: stored(dtype, numbers(random, n * d, 1.0), &[n, d]),
            projection: stored(dtype, numbers(random, v * d, 0.5), &[v, d]),
            bias: has_bias.then(|| array(random, &[v])),
            target: Array::from_vec(target, &[n]).unwrap(),
            weight,
            upstream: random.chance(0.5).then(|| array(random, upstream_shape)),
            given: [
                (is_given && !is_narrow).then(|| array(random, &[v, d])),
                (is_given && has_bias).then(|| array(random, &[v])),
            ],
        }
    }

    fn args(&self, pass: Pass) -> Args<Array<'static>> {
        let mut args = Args::new(self.input.clone())
            .projection(self.projection.clone())
            .target(self.target.clone());
        if let Some(bias) = &self.bias {
            args = args.bias(bias.clone());
        }
        if let Some(weight) = &self.weight {
            args = args.weight(weight.clone());
        }
        if pass == Pass::Forward {
            return args;
        }
        if let Some(upstream) = &self.upstream {
            args = args.upstream(upstream.clone());
        }
        if let Some(given) = &self.given[0] {
            args = args.grad_projection(given.clone());
        }
        if let Some(given) = &self.given[1] {
            args = args.grad_bias(given.clone());
        }
        args
    }

    /// Holds the results of a pass to float64. What they may differ by follows from the bound of a
    /// logit's rounding and from the number of terms that are added.
    fn hold(&self, pass: Pass, out: &Output<Array<'static>>) {
        let [n, d, v] = self.sizes;
        let (x, w) = (self.input.to_f64(), self.projection.to_f64());
        let b = self.bias.as_ref().map_or(vec![0.0; v], Array::to_f64);
        let (mut logits, mut rounding) = (vec![0.0; n * v], 0.0_f64);
        for row in 0..n {
            for class in 0..v {
                let terms = (0..d).map(|i| x[row * d + i] * w[class * d + i]);
                let magnitude: f64 = terms.clone().map(f64::abs).sum();
                logits[row * v + class] = terms.sum::<f64>() + b[class];
                rounding = rounding.max((d + 8) as f64 * U * magnitude + U * b[class].abs());
            }
        }
        let logits = Array::from_data(Data::F64(logits.into()), &[n, v]).unwrap();
        let mut args = Args::new(logits.clone()).target(self.target.clone());
        if let Some(weight) = &self.weight {
            args = args.weight(weight.clone());
        }
        if let Some(upstream) = self.upstream.as_ref().filter(|_| pass.has_grad()) {
            args = args.upstream(upstream.clone());
        }
        let want = self.loss.reference(pass, &args);
        let moved = self.scale * rounding + 2.0 * self.softcap * U;

        if pass.has_loss() {
            let (got, want) = (out.loss().unwrap().to_f64(), want.get(Role::Loss).unwrap());
            // weights are at most 1.5, and a logsumexp is below 100
            let rows = if self.reduction == Reduction::Sum { n } else { 1 };
            let slope = rows as f64 * (8.0 + 200.0 * self.z_loss);
            for ((got, want), magnitude) in got.iter().zip(&want.values).zip(&want.magnitudes) {
                let most = 64.0 * U * magnitude + slope * moved;
                let is_held = got == want || (got - want).abs() <= most;
                assert!(is_held, "loss {got}, {want} +- {most}");
            }
        }
        if let Some(wanted) = want.get(Role::LogSumExp) {
            let rows = out.rows().unwrap();
            let target = self.target.to_i64().unwrap();
            let got = rows.logsumexp.to_f64().into_iter().zip(rows.entropy.to_f64());
            let entropies = &want.get(Role::Entropy).unwrap().values;
            for (got, want) in got.zip(wanted.values.iter().zip(entropies)) {
                let most = 16.0 * (moved + U * (1.0 + want.0.abs()));
                assert!((got.0 - want.0).abs() <= most, "logsumexp {got:?} {want:?}");
                assert!((got.1 - want.1).abs() <= 16.0 * most, "entropy {got:?} {want:?}");
            }
            let correct = rows.correct.unwrap().to_i64().unwrap();
            for (row, argmax) in rows.argmax.to_i64().unwrap().into_iter().enumerate() {
                let logits = &logits.to_f64()[row * v..][..v];
                let most = logits.iter().copied().fold(f64::MIN, f64::max);
                assert!(logits[argmax as usize] >= most - 2.0 * rounding, "argmax {argmax}");
                let is_kept = target[row] != self.ignore_index;
                assert_eq!(correct[row], i64::from(is_kept && argmax == target[row]));
            }
        }
        if !pass.has_grad() {
            return;
        }
        let g = want.get(Role::Grad).unwrap();
        let error = |at: usize| g.magnitudes[at] * (64.0 * U + 4.0 * moved);
        // a result: its terms by the index of G and the other factor, and what it is added to
        let hold = |role: Role, index: usize, terms: &[(usize, f64)], given: f64| {
            let array = out.get(role).unwrap();
            let got = array.to_f64()[index];
            let want: f64 = given + terms.iter().map(|(at, by)| g.values[*at] * by).sum::<f64>();
            let size: f64 = terms.iter().map(|(at, by)| (g.values[*at] * by).abs()).sum();
            let of_g: f64 = terms.iter().map(|(at, by)| error(*at) * by.abs()).sum();
            let stored = match array.dtype() {
                DType::F16 => want.abs() * 2_f64.powi(-11) + 2_f64.powi(-25),
                DType::Bf16 => want.abs() * 2_f64.powi(-8),
                _ => 0.0,
            };
            let added = (terms.len() + 8) as f64 * U * (size + given.abs());
            let most = added + of_g + 1.01 * stored;
            assert!((got - want).abs() <= most, "{} {index}: {got}, {want} +- {most}", role.name());
        };
        for row in 0..n {
            for i in 0..d {
                let terms: Vec<_> = (0..v).map(|c| (row * v + c, w[c * d + i])).collect();
                hold(Role::Grad, row * d + i, &terms, 0.0);
            }
        }
        let given = self.given.each_ref().map(|given| given.as_ref().map(Array::to_f64));
        for class in 0..v {
            for i in 0..d {
                let terms: Vec<_> = (0..n).map(|r| (r * v + class, x[r * d + i])).collect();
                let given = given[0].as_ref().map_or(0.0, |given| given[class * d + i]);
                hold(Role::GradProjection, class * d + i, &terms, given);
            }
            if self.bias.is_some() {
                let terms: Vec<_> = (0..n).map(|r| (r * v + class, 1.0)).collect();
                hold(Role::GradBias, class, &terms, given[1].as_ref().map_or(0.0, |g| g[class]));
            }
        }
    }
}

/// The same results, all NaN: what a pass is to write over.
fn poisoned(out: &Output<Array<'static>>) -> Output<Array<'static>> {
    let poison = |(role, array): (Role, &Array<'static>)| {
        let (count, shape) = (array.shape().iter().product(), array.shape());
        let poisoned = match array.dtype() {
            DType::I32 => Array::from_vec(vec![-7; count], shape).unwrap(),
            dtype => stored(dtype, vec![f32::NAN; count], shape),
        };
        (role, poisoned)
    };
    out.iter().map(poison).collect()
}

#[test]
fn every_option_over_sizes_at_the_seams() {
    let mut random = Random::new(5);
    let cpu = Cpu::default();
    for case in 0..240 {
        let dtype = random.pick(&[DType::F32, DType::F32, DType::F16, DType::Bf16]);
        let n = random.pick(&[1, 2, 3, 15, 16, 17, 40]);
        let d = random.pick(&[1, 2, 3, 7, 8, 33, 70]);
        let v = random.pick(&[1, 2, 3, 16, 31, 32, 33, 100, 257]);
        let call = Call::random(&mut random, dtype, [n, d, v]);
        println!("{case}: {dtype} {:?} {:?}", call.sizes, call.op);
        for pass in [Pass::Forward, Pass::Backward, Pass::ForwardBackward] {
            let args = call.args(pass);
            let mut out = cpu.run(&call.op, pass, &args).unwrap();
            call.hold(pass, &out);
            let want = format!("{out:?}");
            out = poisoned(&out);
            cpu.run_into(&call.op, pass, &args, &mut out).unwrap();
            assert_eq!(format!("{out:?}"), want, "over what was there");
        }
        let keeping =
            LinearCrossEntropy::new(call.loss.clone().keep_state(true)).workspace_bytes(1 << 20);
        let state = cpu.forward(&keeping, &call.args(Pass::Forward)).unwrap();
        let args = call.args(Pass::Backward).state(state.state().unwrap().clone());
        call.hold(Pass::Backward, &cpu.backward(&call.op, &args).unwrap());
    }
}

#[test]
fn many_classes_and_many_terms() {
    let mut random = Random::new(6);
    for [n, d, v] in [[5, 3, 4001], [2100, 2, 5], [3, 600, 20], [700, 5, 130]] {
        for dtype in [DType::F32, DType::Bf16] {
            let call = Call::random(&mut random, dtype, [n, d, v]);
            println!("{dtype} {:?} {:?}", call.sizes, call.op);
            let pass = Pass::ForwardBackward;
            call.hold(pass, &Cpu::default().run(&call.op, pass, &call.args(pass)).unwrap());
        }
    }
}

#[test]
fn any_number_of_threads_comes_to_the_same_bits() {
    let mut random = Random::new(7);
    for [n, d, v] in [[1100, 5, 37], [37, 19, 1533], [300, 64, 1000]] {
        for dtype in [DType::F32, DType::F16] {
            let call = Call::random(&mut random, dtype, [n, d, v]);
            let args = call.args(Pass::ForwardBackward);
            let of = |cpu: Cpu| {
                // of bits, since every f32 is written as it is
                format!("{:?}", cpu.forward_backward(&call.op, &args).unwrap())
            };
            let want = of(Cpu::with_threads(1).unwrap());
            for threads in [2, 3, 2] {
                let cpu = Cpu::with_threads(threads).unwrap();
                assert!(of(cpu) == want, "{threads} threads, {n} x {d} x {v}");
            }
        }
    }
}

#[test]
fn gradients_that_nobody_asks_for_are_left_out() {
    let mut random = Random::new(8);
    let mut call = Call::random(&mut random, DType::F32, [20, 9, 50]);
    call.bias = Some(array(&mut random, &[50]));
    call.given = [None, None];
    let cpu = Cpu::default();
    let run = |op: &LinearCrossEntropy| {
        cpu.forward_backward(op, &call.args(Pass::ForwardBackward)).unwrap()
    };
    let op = LinearCrossEntropy::new(call.loss.clone());
    let all = run(&op);
    let roles = [Role::Grad, Role::GradProjection, Role::GradBias];
    for kept in 0..3 {
        let op = op.clone();
        let op = op.freeze_input(kept != 0).freeze_projection(kept != 1).freeze_bias(kept != 2);
        let out = run(&op);
        for (i, role) in roles.into_iter().enumerate() {
            assert_eq!(out.get(role), all.get(role).filter(|_| i == kept), "{}", role.name());
        }
    }
}

#[test]
fn rows_that_are_left_out_add_nothing() {
    let mut random = Random::new(9);
    let (n, d, v) = (33, 6, 40);
    let input = array(&mut random, &[n, d]);
    let projection = array(&mut random, &[v, d]);
    let given = array(&mut random, &[v, d]);
    let op = LinearCrossEntropy::new(CrossEntropy::default().reduction(Reduction::Sum));
    let all = |class: i32| Array::from_vec(vec![class; n], &[n]).unwrap();
    let args = Args::new(input.clone()).projection(projection.clone());
    let cpu = Cpu::default();
    let ignored = args.clone().target(all(-100));
    let out = cpu.forward_backward(&op, &ignored).unwrap();
    assert_eq!(out.loss().unwrap().item().unwrap(), 0.0);
    assert!(out.grad().unwrap().to_f32().iter().all(|g| *g == 0.0));
    assert!(out.grad_projection().unwrap().to_f32().iter().all(|g| *g == 0.0));
    let out = cpu.forward_backward(&op, &ignored.grad_projection(given.clone())).unwrap();
    assert_eq!(out.grad_projection().unwrap(), &given);

    // a row more that is ignored leaves every bit of the sums
    let some = |rows: usize| {
        let input = Array::from_vec(input.to_f32()[..rows * d].to_vec(), &[rows, d]).unwrap();
        let target = (0..rows as i32).map(|row| if row < 20 { row } else { -100 }).collect();
        let target = Array::from_vec::<i32>(target, &[rows]).unwrap();
        let args = Args::new(input).projection(projection.clone()).target(target);
        let out = cpu.forward_backward(&op, &args).unwrap();
        (out.loss().unwrap().clone(), out.grad_projection().unwrap().clone())
    };
    assert_eq!(some(20), some(n));
}

#[test]
fn no_rows_at_all() {
    let mut random = Random::new(10);
    let projection = array(&mut random, &[5, 3]);
    let bias = array(&mut random, &[5]);
    let args = Args::new(Array::new::<f32>(&[], &[0, 3]).unwrap())
        .projection(projection.clone())
        .bias(bias.clone())
        .target(Array::new::<i32>(&[], &[0]).unwrap());
    let op = LinearCrossEntropy::new(CrossEntropy::default().empty_mean(0.25));
    let cpu = Cpu::default();
    let out = cpu.forward_backward(&op, &args).unwrap();
    assert_eq!(out.loss().unwrap().item().unwrap(), 0.25);
    assert_eq!(out.grad().unwrap().shape(), [0, 3]);
    let mut out = poisoned(&out);
    cpu.run_into(&op, Pass::ForwardBackward, &args, &mut out).unwrap();
    assert_eq!(out.grad_projection().unwrap().to_f32(), [0.0; 15]);
    assert_eq!(out.grad_bias().unwrap().to_f32(), [0.0; 5]);
    let args = args.grad_projection(projection.clone()).grad_bias(bias.clone());
    let out = cpu.forward_backward(&op, &args).unwrap();
    assert_eq!(out.grad_projection().unwrap(), &projection);
    assert_eq!(out.grad_bias().unwrap(), &bias);
}

#[test]
fn logits_are_never_stored_but_for_a_block() {
    let mut random = Random::new(11);
    let (n, d, v) = (600, 4, 8000);
    let args = Args::new(array(&mut random, &[n, d]))
        .projection(array(&mut random, &[v, d]))
        .target(Array::from_vec((0..n as i32).collect(), &[n]).unwrap());
    let cpu = Cpu::default();
    let results = 4 * (n * d + v * d);
    for workspace in [4 * v, 1 << 20, 4 << 20] {
        let op = LinearCrossEntropy::default().workspace_bytes(workspace as i64);
        let mut out = None;
        let used = measure(|| out = Some(cpu.forward_backward(&op, &args).unwrap()));
        // beside the workspace a thread has some rows of a tile
        let most = (workspace + results + (1 << 18)) as u64;
        assert!(used.bytes_max <= most, "{workspace}: {} of {most} bytes", used.bytes_max);
        drop(out);
    }
}
