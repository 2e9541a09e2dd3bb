//! Calls on device tensors: kept plans, results in given memory, the status, whose callbacks are
//! whose, and what may cross threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use wgloss::wgpu;
use wgloss::{
    Args, Array, Bce, CrossEntropy, DType, Error, Gpu, GpuOptions, Layout, Op, Output, Pass,
    Reduction, Role, Tensor, adapters,
};
use wgloss_testing::call::bits_of;
use wgloss_testing::devices::{gpu, open};
use wgloss_testing::random::Random;

fn counters(gpu: &Gpu) -> (isize, isize) {
    let hal = gpu.device().get_internal_counters().hal;
    (hal.compute_pipelines.read(), hal.buffers.read())
}

fn rows(gpu: &Gpu, rows: usize, classes: usize, target: &[i32]) -> Args<Tensor> {
    let logits = Random::new(classes as u64).normals(rows * classes, 2.0);
    let args = Args::new(Array::new(&logits, &[rows, classes]).unwrap());
    gpu.block_on(gpu.upload_args(&args.target(Array::from(target)))).unwrap()
}

/// Every async entry point can be spawned on an executor of several threads.
#[test]
fn futures_are_send() {
    fn is_send<T: Send>(_: &T) {}
    #[expect(dead_code, reason = "it is enough that it compiles")]
    fn all(gpu: &Gpu, op: &dyn Op, host: &Args<Array<'_>>, device: &Args<Tensor>) {
        let (pass, options) = (Pass::Forward, GpuOptions::default());
        let layouts = device.layouts();
        is_send(&Gpu::new());
        is_send(&Gpu::with_options(&options));
        is_send(&Gpu::from_device(gpu.device().clone(), gpu.queue().clone(), &options));
        is_send(&gpu.upload(host.input()));
        is_send(&gpu.upload_args(host));
        is_send(&gpu.read(device.input()));
        is_send(&gpu.status());
        is_send(&gpu.run(op, pass, host));
        is_send(&gpu.run(op, pass, device));
        is_send(&gpu.forward_backward(op, host));
        is_send(&gpu.plan(op, pass, &layouts));
        is_send(&gpu.plan_into(op, pass, &layouts, &Output::default()));
        let mut stream = gpu.stream(op, pass);
        is_send(&stream);
        is_send(&stream.push(host));
        is_send(&stream.next());
    }
}

#[test]
fn a_call_finds_the_plan_of_the_one_before() {
    let Some(gpu) = open(&GpuOptions::default()) else { return };
    let op = CrossEntropy::default();
    let args = rows(&gpu, 4, 10, &[1, 2, 3, 4]);
    let first = gpu.block_on(gpu.run(&op, Pass::ForwardBackward, &args)).unwrap();
    let before = counters(&gpu);
    let second = gpu.block_on(gpu.run(&op, Pass::ForwardBackward, &args)).unwrap();
    let after = counters(&gpu);
    // loss, gradient and status are new; no workspace and no kernel is
    assert!(before.0 > 0 && before.1 > 3, "{before:?}: are they counted?");
    assert_eq!(after.0, before.0);
    assert!(after.1 <= before.1 + 3, "{before:?}, {after:?}");
    for role in [Role::Loss, Role::Grad] {
        let [a, b] = [&first, &second].map(|output| output.get(role).unwrap());
        assert_ne!(a.buffer(), b.buffer(), "results are the caller's");
        let [a, b] = [a, b].map(|tensor| bits_of(&gpu.block_on(gpu.read(tensor)).unwrap()));
        assert_eq!(a, b);
    }
    gpu.trim();
    drop((first, second));
    let _ = gpu.device().poll(wgpu::PollType::wait_indefinitely());
    assert!(counters(&gpu).0 < after.0, "trim frees compiled kernels");
}

/// An op of other options never finds the plan of this one.
#[test]
fn plans_are_kept_by_all_that_they_depend_on() {
    let Some(gpu) = &gpu() else { return };
    let args = rows(gpu, 4, 10, &[1, 2, 3, 4]);
    let loss = |op: &CrossEntropy| {
        let output = gpu.block_on(gpu.forward(op, &args)).unwrap();
        gpu.block_on(gpu.read(output.loss().unwrap())).unwrap()
    };
    let plain = CrossEntropy::default();
    let smoothed = plain.clone().label_smoothing(0.1);
    let [a, b, c] = [&plain, &smoothed, &plain].map(|op| loss(op).item().unwrap());
    assert_ne!(a, b);
    assert_eq!(a, c);
    assert_eq!(loss(&plain.clone().reduction(Reduction::None)).shape(), [4]);
    // the same shapes at another offset within 256 bytes
    let moved = Layout::new(&[3, 10], DType::F32).with_offset(10);
    let moved = Tensor::from_buffer(args.input().buffer().clone(), moved).unwrap();
    let target = Layout::new(&[3], DType::I32).with_offset(1);
    let buffer = args.get(Role::Target).unwrap().buffer().clone();
    let target = Tensor::from_buffer(buffer, target).unwrap();
    let none = plain.reduction(Reduction::None);
    let tail = gpu.block_on(gpu.forward(&none, &Args::new(moved).target(target))).unwrap();
    let tail = gpu.block_on(gpu.read(tail.loss().unwrap())).unwrap();
    assert_eq!(bits_of(&tail), bits_of(&loss(&none))[1..]);
}

/// Any number of shapes leaves a bounded number of plans, and one kernel for all of them.
#[test]
fn what_is_kept_is_bounded() {
    let Some(gpu) = open(&GpuOptions::default()) else { return };
    let target = [1, 2];
    // 300 shapes of one kernel: 64 plans are kept, with a control block and some uniforms each
    for classes in 2..302 {
        let args = rows(&gpu, 2, classes, &target);
        let layouts = args.layouts();
        let output = gpu.block_on(gpu.run(&CrossEntropy::default(), Pass::Forward, &args));
        drop((output.unwrap(), layouts));
    }
    gpu.block_on(gpu.status()).unwrap();
    let _ = gpu.device().poll(wgpu::PollType::wait_indefinitely());
    let (kernels, buffers) = counters(&gpu);
    assert!((1..40).contains(&kernels), "{kernels} kernels");
    assert!((64..64 * 8).contains(&buffers), "{buffers} buffers");
}

#[test]
fn results_go_where_the_caller_wants_them() {
    let Some(gpu) = &gpu() else { return };
    let op = CrossEntropy::default();
    let args = rows(gpu, 4, 10, &[1, 2, 3, 4]);
    let want = gpu.block_on(gpu.forward_backward(&op, &args)).unwrap();
    let bits = |tensor: &Tensor| bits_of(&gpu.block_on(gpu.read(tensor)).unwrap());
    // loss and gradient in one buffer, the gradient's rows 12 apart
    let buffer = gpu.block_on(gpu.upload(&Array::from(&[0.0_f32; 64]))).unwrap();
    let tensor = |layout| Tensor::from_buffer(buffer.buffer().clone(), layout).unwrap();
    let loss = tensor(Layout::new(&[], DType::F32).with_offset(3));
    let grad = tensor(Layout::new(&[4, 10], DType::F32).with_offset(7).with_row_stride(12));
    let output = Output::default().with(Role::Loss, loss.clone()).with(Role::Grad, grad.clone());
    for _ in 0..2 {
        gpu.run_into(&op, Pass::ForwardBackward, &args, &output).unwrap();
        assert_eq!(bits(&loss), bits(want.loss().unwrap()));
        assert_eq!(bits(&grad), bits(want.grad().unwrap()));
    }
    // a gradient that is the input is written in place
    let grad = want.grad().unwrap();
    let output = Output::default().with(Role::Grad, args.input().clone());
    gpu.run_into(&op, Pass::Backward, &args, &output).unwrap();
    assert_eq!(bits(args.input()), bits(grad));
    // a result too few, and one too many
    let missing = gpu.run_into(&op, Pass::ForwardBackward, &args, &output);
    assert!(matches!(missing, Err(Error::Missing { argument: "loss", .. })), "{missing:?}");
    let output = output.with(Role::Loss, loss);
    let unexpected = gpu.run_into(&op, Pass::Backward, &args, &output);
    assert!(matches!(unexpected, Err(Error::Unexpected { argument: "loss", .. })));
}

/// A training loop that asks now and then learns of the first fault, not of the last step.
#[test]
fn the_status_keeps_the_first_fault_until_it_is_checked() {
    let Some(gpu) = &gpu() else { return };
    let op = CrossEntropy::default();
    let args = rows(gpu, 3, 10, &[1, 2, 3]);
    let layouts = args.layouts();
    let plan = gpu.block_on(gpu.plan(&op, Pass::ForwardBackward, &layouts)).unwrap();
    let output = gpu.block_on(plan.allocate()).unwrap();
    let bound = plan.bind(&args, &output).unwrap();
    let status = output.status().unwrap();
    let step = |target: [i32; 3]| {
        let buffer = args.get(Role::Target).unwrap().buffer();
        gpu.queue().write_buffer(buffer, 0, bytemuck::cast_slice(&target));
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        bound.encode(&mut encoder);
        gpu.queue().submit([encoder.finish()]);
    };
    let check = || gpu.block_on(gpu.check(status));
    step([1, 2, 3]);
    assert_eq!(check(), Ok(()));
    // the second step's fault is kept, though a later one is in an earlier row
    [[1, 2, 3], [0, 1, 77], [99, 1, 2], [0, 1, 2]].into_iter().for_each(step);
    assert_eq!(check(), Err(Error::Class { row: 2, class: 77, classes: 10 }));
    assert_eq!(check(), Ok(()), "a check clears it");
    step([-3, 1, 2]);
    assert_eq!(check(), Err(Error::Class { row: 0, class: -3, classes: 10 }));

    // one status for several ops
    let bad = gpu.block_on(gpu.upload(&Array::from(&[0.5_f32, 1.5]))).unwrap();
    let good = gpu.block_on(gpu.upload(&Array::from(&[0.5_f32, 0.5]))).unwrap();
    let loss = gpu.block_on(gpu.upload(&Array::scalar(0.0_f32))).unwrap();
    let output = Output::default().with(Role::Loss, loss).with_status(status.clone());
    let args = Args::new(bad).target(good);
    gpu.run_into(&Bce::default(), Pass::Forward, &args, &output).unwrap();
    step([1, 2, 55]);
    assert!(matches!(check(), Err(Error::Value { .. })));
}

fn own_device(gpu: &Gpu) -> (wgpu::Device, wgpu::Queue) {
    let adapter = pollster::block_on(adapters()).remove(0);
    let descriptor = wgpu::DeviceDescriptor {
        required_features: gpu.device().features(),
        required_limits: gpu.device().limits(),
        ..Default::default()
    };
    pollster::block_on(adapter.request_device(&descriptor)).unwrap()
}

/// A framework that has set the device's lost callback keeps it, and both sides learn of the loss.
#[test]
fn the_lost_callback_stays_whose_it_is() {
    let Some(gpu) = &gpu() else { return };
    for own in [false, true] {
        let (device, queue) = own_device(gpu);
        let told = Arc::new(AtomicBool::new(false));
        let tell = told.clone();
        device.set_device_lost_callback(move |_, _| tell.store(true, Ordering::Release));
        let options = GpuOptions::default().own_lost_callback(own);
        let taken = Gpu::blocking_from_device(device.clone(), queue, &options).unwrap();
        let args = rows(&taken, 2, 4, &[0, 1]);
        device.destroy();
        let op = CrossEntropy::default();
        let lost = taken.block_on(taken.run(&op, Pass::Forward, &args));
        assert!(matches!(lost, Err(Error::DeviceLost(_))), "{lost:?}");
        let _ = device.poll(wgpu::PollType::wait_indefinitely());
        assert_eq!(told.load(Ordering::Acquire), !own);
    }
}

/// An error of the caller's own is not lost: the next call says so, and does nothing else.
#[test]
fn an_error_of_the_callers_own_is_reported_by_the_next_call() {
    let Some(gpu) = open(&GpuOptions::default()) else { return };
    let args = rows(&gpu, 2, 4, &[0, 1]);
    // a buffer that is mapped and for storage is a mistake
    let _mistake = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some("mistake"),
        size: 16,
        usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::STORAGE,
        mapped_at_creation: false,
    });
    let op = CrossEntropy::default();
    let next = gpu.block_on(gpu.run(&op, Pass::Forward, &args));
    let Err(Error::Uncaptured(error)) = next else { panic!("{next:?}") };
    assert!(matches!(*error, Error::Validation(_)), "{error}");
    gpu.block_on(gpu.run(&op, Pass::Forward, &args)).unwrap();
}

#[test]
fn an_adapter_is_chosen_by_index_or_handed_over() {
    let Some(gpu) = &gpu() else { return };
    let adapters = pollster::block_on(adapters());
    let first = Gpu::blocking_with_options(&GpuOptions::default().index(0)).unwrap();
    assert_eq!(first.info().name, adapters[0].get_info().name);
    let beyond = Gpu::blocking_with_options(&GpuOptions::default().index(adapters.len()));
    let Err(error @ Error::NoAdapter { .. }) = beyond else { panic!("{beyond:?}") };
    assert!(error.to_string().contains(&format!("at index {}", adapters.len())), "{error}");
    let handed = pollster::block_on(Gpu::from_adapter(&adapters[0], &GpuOptions::default()));
    let handed = handed.unwrap();
    assert_eq!(handed.device().features(), gpu.device().features());
    assert_eq!(handed.device().limits(), gpu.device().limits());
}
