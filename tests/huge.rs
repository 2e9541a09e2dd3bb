//! Inputs larger than one binding, and more rows than anything counts in 16 bits or in floats: on a
//! device whose bindings are small, everything comes out as on one where they are not. wgpu itself
//! refuses every binding beyond the limit.

use wgloss::wgpu;
use wgloss::{
    Args, Array, Bce, BceWithLogits, CrossEntropy, DType, Error, Gpu, GpuOptions, Layout, Mse, Op,
    Pass, Reduction, Role, Softmax, reference,
};
use wgloss_testing::call::{Call, Rows, judge as judge_call};
use wgloss_testing::devices::gpu;
use wgloss_testing::memory::{Job, ODD, Where, array, check_in, every_op, judge};
use wgloss_testing::random::{Logits, Random};

const PASSES: [Pass; 3] = [Pass::Forward, Pass::Backward, Pass::ForwardBackward];

/// A device with these limits, and otherwise like the automatic one. `None` where there is no adapter.
fn limited(limits: wgpu::Limits) -> Option<Gpu> {
    let features = gpu()?.device().features() & wgpu::Features::SUBGROUP;
    let adapters = pollster::block_on(wgloss::adapters());
    let descriptor = wgpu::DeviceDescriptor {
        required_features: features,
        required_limits: limits,
        ..Default::default()
    };
    let (device, queue) = pollster::block_on(adapters[0].request_device(&descriptor)).unwrap();
    Some(pollster::block_on(Gpu::from_device(device, queue, &GpuOptions::default())).unwrap())
}

/// No binding beyond 8 KiB: 2048 numbers in f32.
fn small_bindings() -> Option<Gpu> {
    limited(wgpu::Limits { max_storage_buffer_binding_size: 8192, ..Default::default() })
}

/// Results on a device with small bindings against those on another. Sums over elements are taken
/// apart where the input is: losses of mean and sum may differ in their last digits.
#[track_caller]
fn check_alike(small: &Gpu, large: &Gpu, job: &Job, reduction: Reduction) {
    let (got, want) = (job.run_apart(small), job.run_apart(large));
    assert_eq!(got.len(), want.len(), "{}", job.name());
    for ((role, got), (wanted, want)) in got.iter().zip(&want) {
        assert_eq!(role, wanted, "{}", job.name());
        if *role == Role::Loss && reduction != Reduction::None {
            let [got, want] = [got, want].map(|loss| f64::from(loss.item().unwrap()));
            assert!((got - want).abs() <= 1e-5 * want.abs(), "{}: {got}, {want}", job.name());
        } else {
            assert!(got.data().bytes() == want.data().bytes(), "{}: {role}", job.name());
        }
    }
}

#[test]
fn every_op_in_parts() {
    // five parts; one index of the batch is 231 numbers where classes lie apart
    let (Some(small), Some(large)) = &(small_bindings(), gpu()) else { return };
    for pass in PASSES {
        for reduction in [Reduction::None, Reduction::Mean, Reduction::Sum] {
            for job in every_op(&[301, 33], DType::F32, reduction, pass) {
                check_alike(small, large, &job, reduction);
            }
        }
    }
    for job in every_op(&[37, 11, 21], DType::F16, Reduction::None, Pass::ForwardBackward) {
        check_alike(small, large, &job, Reduction::None);
    }
}

#[test]
fn every_op_in_parts_of_the_callers_buffers() {
    let Some(small) = small_bindings() else { return };
    for job in every_op(&[301, 33], DType::F32, Reduction::None, Pass::ForwardBackward) {
        check_in(Where::OneBuffer, &small, &job, ODD);
    }
    for job in every_op(&[301, 33], DType::F16, Reduction::None, Pass::Backward) {
        if job.op.name() != "cross_entropy" {
            check_in(Where::InPlace, &small, &job, ODD);
        }
    }
}

#[test]
fn kept_state_in_parts() {
    let (Some(small), Some(large)) = &(small_bindings(), gpu()) else { return };
    // fewer classes than numbers of state: it is the state that decides how many rows a part has
    let rows = Rows::random(&mut Random::new(31), Logits::Confident, &[1500, 3]);
    for reduction in [Reduction::None, Reduction::Mean] {
        let rows = rows.clone().reduced(reduction);
        let op = rows.cross_entropy().keep_state(true);
        let run = |gpu: &Gpu| {
            let forward = gpu.block_on(gpu.forward(&op, &rows.forward_args())).unwrap();
            let args = rows.args(Pass::Backward).state(forward.state().unwrap().clone());
            (forward, gpu.block_on(gpu.backward(&op, &args)).unwrap())
        };
        assert_eq!(run(small), run(large));
    }
}

#[test]
fn losses_in_more_parts_than_one_sum_takes() {
    // 9,000 losses of four bytes are five bindings.
    let Some(small) = small_bindings() else { return };
    let mut random = Random::new(32);
    for reduction in [Reduction::None, Reduction::Mean, Reduction::Sum] {
        let rows = Rows::random(&mut random, Logits::Normal, &[9000, 2]).weight(&[0.25, 1.5]);
        let rows = rows.reduced(reduction);
        let args = rows.args(Pass::ForwardBackward);
        for op in [rows.cross_entropy(), rows.cross_entropy().row_outputs(true)] {
            let want = reference::run(&op, Pass::ForwardBackward, &args).unwrap();
            let got = small.block_on(small.run(&op, Pass::ForwardBackward, &args)).unwrap();
            judge_call(&rows, &got, &want).unwrap();
            for role in [Role::Argmax, Role::Correct] {
                let want = want.get(role).map(|part| part.values.clone());
                assert_eq!(got.get(role).map(|part| part.to_f64()), want, "{role}");
            }
        }
    }
}

#[test]
fn what_a_status_names_in_a_late_part() {
    let Some(small) = small_bindings() else { return };
    let upload = |array: Array<'_>| small.block_on(small.upload(&array)).unwrap();
    let mut target = vec![1; 3000];
    let logits = upload(Array::from_vec(vec![0.5_f32; 9000], &[3000, 3]).unwrap());
    let op = CrossEntropy::default().reduction(Reduction::None);
    for (row, class) in [(2999, 7), (2500, -3), (2048, 3)] {
        target[row] = class;
        let args = Args::new(logits.clone()).target(upload(Array::from(&target)));
        let out = small.block_on(small.forward_backward(&op, &args)).unwrap();
        let error = Error::Class { row: row as u64, class: class.into(), classes: 3 };
        assert_eq!(small.block_on(small.check(out.status().unwrap())), Err(error));
        let loss = small.block_on(small.read(out.loss().unwrap())).unwrap().to_f32();
        let is_nan: Vec<_> = (0..3000).filter(|&row| loss[row].is_nan()).collect();
        let bad: Vec<_> = (0..3000).filter(|&row| target[row] != 1).collect();
        assert_eq!(is_nan, bad);
    }

    let mut probabilities = vec![0.25_f32; 9000];
    let target = upload(Array::from_vec(probabilities.clone(), &[3000, 3]).unwrap());
    for element in [8999, 4100, 4097] {
        probabilities[element] = 1.5;
        let args = Args::new(upload(Array::new(&probabilities, &[3000, 3]).unwrap()));
        let args = args.target(target.clone());
        let out = small.block_on(small.forward(&Bce::default(), &args)).unwrap();
        let error = small.block_on(small.check(out.status().unwrap())).unwrap_err();
        let text = format!(
            "input or target: expected numbers in [0, 1], got another one at element {element}"
        );
        assert_eq!(error.to_string(), text);
    }
}

#[test]
fn weights_of_many_shapes_in_parts() {
    // Whatever dimension a part begins in the middle of.
    let (Some(small), Some(large)) = &(small_bindings(), gpu()) else { return };
    let mut random = Random::new(33);
    let shape = [13, 7, 5, 23];
    let count = shape.iter().product();
    let input = array(&random.normals(count, 2.0), &shape, DType::F32);
    let target = array(&random.uniforms(count, 0.0, 1.0), &shape, DType::F32);
    let op = BceWithLogits::default().reduction(Reduction::None);
    let shapes: [&[usize]; 6] =
        [&shape, &[23], &[5, 1], &[7, 1, 23], &[13, 1, 5, 1], &[13, 7, 1, 1]];
    for weight in shapes {
        for pos_weight in shapes {
            let mut weights =
                |shape: &[usize]| array(&random.eighths(shape.iter().product()), shape, DType::F32);
            let args = vec![
                (Role::Input, input.clone()),
                (Role::Target, target.clone()),
                (Role::Weight, weights(weight)),
                (Role::PosWeight, weights(pos_weight)),
            ];
            let job = Job { op: Box::new(op.clone()), pass: Pass::ForwardBackward, args };
            judge(&job, &job.run_apart(large).into_iter().collect());
            check_alike(small, large, &job, Reduction::None);
        }
    }
}

#[test]
fn more_rows_than_a_dispatch_has_workgroups_and_a_float_has_digits() {
    // Beyond 2^22 rows; the divisor and the sum of their losses take three levels.
    let Some(gpu) = &gpu() else { return };
    let rows = (1 << 22) + 3;
    let mut random = Random::new(34);
    let logits = random.logits(Logits::Normal, 1021, 3);
    let logits: Vec<f32> = logits.into_iter().cycle().take(3 * rows).collect();
    let target: Vec<i32> =
        random.targets(509, 3, -100, 0.1).into_iter().cycle().take(rows).collect();
    let rows = Rows::new(&logits, &target).upstream(&[1.0]).reduced(Reduction::Mean);
    let want = wgloss_testing::call::reference(&rows, Pass::ForwardBackward);
    let got = wgloss_testing::call::run(gpu, &rows, Pass::ForwardBackward);
    if let Err(message) = judge_call(&rows, &got, &want) {
        panic!("{message}");
    }
}

#[test]
fn rows_longer_than_a_team_gets_through_in_one_loop() {
    // lavapipe 22.3 stops the loops of an invocation after 65,535 iterations, in silence.
    let Some(gpu) = &gpu() else { return };
    let logits = Random::new(35).normals(600_000, 3.0);
    let args = vec![
        (Role::Input, array(&logits, &[1, 600_000], DType::F32)),
        (Role::Upstream, array(&Random::new(36).normals(600_000, 1.0), &[1, 600_000], DType::F32)),
    ];
    let job = Job { op: Box::new(Softmax::default()), pass: Pass::ForwardBackward, args };
    judge(&job, &job.run_apart(gpu).into_iter().collect());
}

#[test]
fn what_does_not_fit() {
    let Some(small) = small_bindings() else { return };
    let name = small.info().name.clone();
    let f32 = |shape: &[usize]| Layout::new(shape, DType::F32);
    let plan = |op: &dyn Op, args: &Args<Layout>| {
        small.block_on(small.plan(op, Pass::ForwardBackward, args)).map(|_| ())
    };
    let refused = |op: &dyn Op, args: &Args<Layout>, argument: &str, bytes: u64| {
        let limit = format!("8192 bytes (max_storage_buffer_binding_size of {name})");
        let text = format!("{argument}: expected at most {limit}, got {bytes}");
        assert_eq!(plan(op, args).unwrap_err().to_string(), text);
    };
    let op = CrossEntropy::default();
    let rows = |classes| Args::new(f32(&[5, classes])).target(Layout::new(&[5], DType::I32));
    assert_eq!(plan(&op, &rows(1984)), Ok(()));
    // a row that fits alone, and begins where a binding can
    assert_eq!(plan(&op, &rows(2048)), Ok(()));
    // one that fits, and begins elsewhere
    refused(&op, &rows(2047), "input", 8188 + 252);
    refused(&op, &rows(2049), "one row of input", 8196);
    let map = Args::new(f32(&[5, 2049])).upstream(f32(&[5, 2049]));
    refused(&Softmax::default(), &map, "one row of input", 8196);
    // elements need no row to fit, but where rows are padded
    let elements =
        |row_stride| Args::new(f32(&[5, 3000]).with_row_stride(row_stride)).target(f32(&[5, 3000]));
    assert_eq!(plan(&Mse::default(), &elements(3000)), Ok(()));
    refused(&Mse::default(), &elements(3001), "one row of input", 12_000);
    // a weight that is broadcast is bound whole, one for each element is not
    let weighted =
        |weight: &[usize]| Args::new(f32(&[3, 3000])).target(f32(&[3, 3000])).weight(f32(weight));
    assert_eq!(plan(&BceWithLogits::default(), &weighted(&[3, 3000])), Ok(()));
    refused(&BceWithLogits::default(), &weighted(&[3000]), "weight", 12_000);

    let limits = wgpu::Limits { max_buffer_size: 1 << 20, ..Default::default() };
    let Some(small) = limited(limits) else { return };
    let text = format!("expected at most 1048576 bytes (max_buffer_size of {name}), got 1048580");
    let plan = |args| small.block_on(small.plan(&Mse::default(), Pass::Backward, &args));
    let args = Args::new(f32(&[262_145])).target(f32(&[262_145]));
    assert_eq!(plan(args).unwrap_err().to_string(), format!("input: {text}"));
    // what lies before and between the elements counts too
    let args = Args::new(f32(&[2, 1]).with_row_stride(262_143).with_offset(1));
    let args = args.target(f32(&[2, 1]));
    assert_eq!(plan(args.clone()).unwrap_err().to_string(), format!("input: {text}"));
}
