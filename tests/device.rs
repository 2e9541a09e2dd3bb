//! The device: limits, loss, foreign and broken buffers, the caller's own device, threads, plans,
//! and the same bits every time. Nothing that wgpu refuses may panic.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use wgloss::wgpu::{self, BufferUsages};
use wgloss::{
    Args, Array, BceWithLogits, CrossEntropy, DType, Error, Gpu, GpuOptions, Layout, Mse, Output,
    Pass, Reduction, Role, Team, Tensor,
};
use wgloss_testing::call::{Call, Elements, PASSES, REDUCTIONS, Rows, bits, check, read, run};
use wgloss_testing::devices::{Device, devices, gpu, on_every_device, open};
use wgloss_testing::random::{Logits, Random};

/// Twenty rows of 33 classes, each with a loss of its own.
fn some_rows() -> Rows {
    Rows::random(&mut Random::new(1), Logits::Normal, &[20, 33])
}

/// Their mean, smoothed and weighted.
fn some_mean() -> Rows {
    some_rows().weighted(&mut Random::new(2)).smoothing(0.1).reduced(Reduction::Mean)
}

fn upload(gpu: &Gpu, call: &dyn Call, pass: Pass) -> Args<Tensor> {
    gpu.block_on(gpu.upload_args(&call.args(pass))).unwrap()
}

/// A device with these limits and features. The caller's own, so to speak. `None` where there is no
/// adapter.
fn own_device(
    features: wgpu::Features,
    limits: wgpu::Limits,
) -> Option<(wgpu::Device, wgpu::Queue)> {
    gpu()?;
    let adapters = pollster::block_on(wgloss::adapters());
    let descriptor = wgpu::DeviceDescriptor {
        required_features: features,
        required_limits: limits,
        ..Default::default()
    };
    Some(pollster::block_on(adapters[0].request_device(&descriptor)).unwrap())
}

/// A `Gpu` over the caller's own device.
fn take_over(
    (device, queue): (wgpu::Device, wgpu::Queue),
    options: &GpuOptions,
) -> Result<Gpu, Error> {
    pollster::block_on(Gpu::from_device(device, queue, options))
}

fn gpu_with_limits(limits: wgpu::Limits, options: &GpuOptions) -> Option<Gpu> {
    let subgroup = gpu()?.device().features() & wgpu::Features::SUBGROUP;
    Some(take_over(own_device(subgroup, limits)?, options).unwrap())
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(result: Result<T, Error>) {
    match result {
        Err(Error::Validation(_)) => {}
        other => panic!("{other:?}"),
    }
}

// ---- buffers that will not do ----

#[test]
fn buffers_of_the_wrong_usage_or_size() {
    let Some(gpu) = &gpu() else { return };
    let buffer = |size, usage| {
        gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage,
            mapped_at_creation: false,
        })
    };
    let storage = BufferUsages::STORAGE;
    let wrap =
        |buffer, shape: &[usize], dtype| Tensor::from_buffer(buffer, Layout::new(shape, dtype));

    let error = wrap(buffer(24, BufferUsages::VERTEX), &[2, 3], DType::F32).unwrap_err();
    let text = format!("buffer: expected usage STORAGE, got {:?}", BufferUsages::VERTEX);
    assert_eq!(error.to_string(), text);
    let error = wrap(buffer(20, storage), &[2, 3], DType::F32).unwrap_err();
    let text = "buffer: expected at least 24 bytes for f32 [2, 3], got 20 bytes";
    assert_eq!(error.to_string(), text);
    // no kernel binds what has no elements
    let nothing = wrap(buffer(0, storage), &[0], DType::F32).unwrap();
    let args = Args::new(nothing.clone()).target(nothing);
    let out = gpu.block_on(gpu.forward(&Mse::default(), &args)).unwrap();
    assert!(gpu.block_on(gpu.read(out.loss().unwrap())).unwrap().item().unwrap().is_nan());
    let error = wrap(buffer(64, storage), &[2], DType::I64).unwrap_err();
    assert_eq!(error.to_string(), "buffer: expected i32 class indices, got i64");
    let error = wrap(buffer(64, storage), &[1 << 40, 1 << 40], DType::F32).unwrap_err();
    assert!(error.to_string().starts_with("buffer: expected a shape of at most"), "{error}");

    // larger than needed is fine; without COPY_SRC it serves as an argument, and is not read back
    let only_storage = wrap(buffer(64, storage), &[2, 3], DType::F32).unwrap();
    let error = gpu.block_on(gpu.read(&only_storage)).unwrap_err();
    assert!(error.to_string().starts_with("device: refused: "), "{error}");
    assert!(error.to_string().contains("COPY_SRC"), "{error}");
    let target = gpu.block_on(gpu.upload(&Array::from(&[0, 1]))).unwrap();
    let args = Args::new(only_storage).target(target);
    let out = gpu.block_on(gpu.forward(&CrossEntropy::default(), &args)).unwrap();
    let loss = gpu.block_on(gpu.read(out.loss().unwrap())).unwrap().item().unwrap();
    assert!((loss - 3_f32.ln()).abs() < 1e-6, "a fresh buffer holds zeros");
}

#[test]
fn a_callers_buffer_is_used_without_a_copy() {
    let Some(gpu) = &gpu() else { return };
    let rows = some_rows();
    let uploaded = upload(gpu, &rows, Pass::ForwardBackward);
    let wrap = |tensor: &Tensor| {
        Tensor::from_buffer(tensor.buffer().clone(), tensor.layout().clone()).unwrap()
    };
    let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some("the caller's logits"),
        size: 4 * rows.logits.len() as u64,
        usage: BufferUsages::STORAGE | BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    let bytes: Vec<u8> = rows.logits.iter().flat_map(|x| x.to_ne_bytes()).collect();
    gpu.queue().write_buffer(&buffer, 0, &bytes);
    assert_eq!(wrap(uploaded.input()), *uploaded.input());
    let target = gpu.block_on(gpu.upload(&Array::from(&rows.target))).unwrap();
    let input = Tensor::from_buffer(buffer, Layout::new(&rows.shape, DType::F32)).unwrap();
    let args = Args::new(input).target(wrap(&target));
    let got = gpu.block_on(gpu.run(&rows.cross_entropy(), Pass::Forward, &args)).unwrap();
    assert_eq!(bits(&read(gpu, &got)), bits(&run(gpu, &rows, Pass::Forward)));
}

#[test]
fn a_destroyed_buffer() {
    let Some(gpu) = &gpu() else { return };
    let rows = some_mean();
    for pass in PASSES {
        let args = upload(gpu, &rows, pass);
        args.input().buffer().destroy();
        let error = gpu.block_on(gpu.run(&*rows.op(), pass, &args)).unwrap_err();
        assert!(error.to_string().starts_with("device: refused: "), "{error}");
        assert!(error.to_string().contains("destroyed"), "{error}");
        assert_refused(gpu.block_on(gpu.read(args.input())));
    }
    check(gpu, &rows);
}

#[test]
fn a_destroyed_output() {
    let Some(gpu) = &gpu() else { return };
    let rows = some_mean();
    let args = upload(gpu, &rows, Pass::ForwardBackward);
    let out = gpu.block_on(gpu.run(&*rows.op(), Pass::ForwardBackward, &args)).unwrap();
    let (loss, status) = (out.loss().unwrap(), out.status().unwrap());
    loss.buffer().destroy();
    status.buffer().destroy();
    assert_refused(gpu.block_on(gpu.read(loss)));
    assert_refused(gpu.block_on(gpu.check(status)));
    check(gpu, &rows);
}

#[test]
fn a_buffer_that_is_mapped() {
    let Some(gpu) = &gpu() else { return };
    let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 24,
        usage: BufferUsages::STORAGE,
        mapped_at_creation: true,
    });
    let input = Tensor::from_buffer(buffer, Layout::new(&[2, 3], DType::F32)).unwrap();
    let target = gpu.block_on(gpu.upload(&Array::from(&[0, 1]))).unwrap();
    let args = Args::new(input).target(target);
    assert_refused(gpu.block_on(gpu.forward(&CrossEntropy::default(), &args)));
}

#[test]
fn a_buffer_of_another_device() {
    let Some(gpu) = &gpu() else { return };
    let adapters = pollster::block_on(wgloss::adapters());
    let [first, second] = [(), ()].map(|()| {
        let device = adapters[0].request_device(&Default::default());
        take_over(pollster::block_on(device).unwrap(), &GpuOptions::default()).unwrap()
    });
    // the caller's own buffers, of which only wgpu knows where they are from
    let unknown = |tensor: &Tensor| {
        Tensor::from_buffer(tensor.buffer().clone(), tensor.layout().clone()).unwrap()
    };
    let rows = some_rows();
    for pass in PASSES {
        let known = upload(&first, &rows, pass);
        let mut args =
            Args::new(unknown(known.input())).target(unknown(known.get(Role::Target).unwrap()));
        args = match known.get(Role::Upstream) {
            Some(upstream) => args.upstream(unknown(upstream)),
            None => args,
        };
        assert_refused(second.block_on(second.run(&*rows.op(), pass, &args)));
        let plan = second.block_on(second.plan(&*rows.op(), pass, &args.layouts())).unwrap();
        let output = second.block_on(plan.allocate()).unwrap();
        assert_refused(plan.bind(&args, &output));
        assert_refused(second.run_into(&*rows.op(), pass, &args, &output));
        assert_refused(second.block_on(second.read(args.input())));
    }
    check(&second, &rows);
    check(gpu, &rows);
}

#[test]
fn a_tensor_of_another_gpu() {
    // Two that were opened one by one, each with tensors of the same layouts: in each instance wgpu
    // numbers devices and buffers from zero, so that those of one pass for those of the other.
    let open = || open(&GpuOptions::default());
    let (Some(first), Some(second)) = (open(), open()) else { return };
    #[track_caller]
    fn assert_foreign<T: std::fmt::Debug>(result: Result<T, Error>, name: &str) {
        let error = result.unwrap_err().to_string();
        assert_eq!(error, format!("{name}: expected one of this Gpu, got one of another"));
    }
    let (rows, others) = (some_rows(), some_rows().upstream(&[1.0; 20]));
    for pass in PASSES {
        let foreign = upload(&first, &rows, pass);
        let own = upload(&second, &others, pass);
        let op = rows.op();
        assert_foreign(second.block_on(second.run(&*op, pass, &foreign)), "input");
        let plan = second.block_on(second.plan(&*op, pass, &own.layouts())).unwrap();
        let output = second.block_on(plan.allocate()).unwrap();
        assert_foreign(plan.bind(&foreign, &output), "input");
        assert_foreign(second.run_into(&*op, pass, &foreign, &output), "input");
        let elsewhere = first.block_on(first.run(&*op, pass, &foreign)).unwrap();
        let (role, result) = elsewhere.iter().next().unwrap();
        assert_foreign(plan.bind(&own, &elsewhere), role.name());
        assert_foreign(second.block_on(second.read(result)), "tensor");
        let status = elsewhere.status().unwrap();
        assert_foreign(plan.bind(&own, &output.clone().with_status(status.clone())), "status");
        assert_foreign(second.block_on(second.check(status)), "status");
        assert!(second.run_into(&*op, pass, &own, &output).is_ok());
    }
    // the caller's own buffer, once it is said whose it is
    let tensor = first.block_on(first.upload(&Array::from(&rows.logits))).unwrap();
    let tensor = Tensor::from_buffer(tensor.buffer().clone(), tensor.layout().clone()).unwrap();
    let tensor = tensor.on(&first);
    assert!(first.block_on(first.read(&tensor)).is_ok());
    assert_foreign(second.block_on(second.read(&tensor)), "tensor");
}

#[test]
fn one_buffer_in_several_roles() {
    let Some(gpu) = &gpu() else { return };
    // read twice is fine
    let half = Elements::new(&[0.25; 8], &[0.25; 8]);
    let both = gpu.block_on(gpu.upload(&Array::from(&half.logits))).unwrap();
    let args = Args::new(both.clone()).target(both.clone()).weight(both);
    let op = BceWithLogits::default().reduction(Reduction::None);
    let got = gpu.block_on(gpu.forward_backward(&op, &args)).unwrap();
    let want = run(gpu, &half.weight(&[8], &[0.25; 8]), Pass::ForwardBackward);
    assert_eq!(read(gpu, &got), want);
}

#[test]
fn a_callers_mistake_on_the_shared_device_is_not_its_loss() {
    // Outside of any call of ours, and outside of any error scope.
    let Some(gpu) = open(&GpuOptions::default()) else { return };
    let rows = some_rows();
    let args = upload(&gpu, &rows, Pass::Forward);
    let plan = gpu.block_on(gpu.plan(&*rows.op(), Pass::Forward, &args.layouts())).unwrap();
    let output = gpu.block_on(plan.allocate()).unwrap();
    let bound = plan.bind(&args, &output).unwrap();
    args.input().buffer().destroy();
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    bound.encode(&mut encoder);
    gpu.queue().submit([encoder.finish()]);
    // the next call says so, and the ones after it are not concerned
    let next = gpu.block_on(gpu.run(&*rows.op(), Pass::Forward, &rows.args(Pass::Forward)));
    assert!(matches!(next, Err(Error::Uncaptured(_))), "{next:?}");
    check(&gpu, &rows);
}

// ---- limits ----

#[track_caller]
fn assert_too_large<T: std::fmt::Debug>(gpu: &Gpu, result: Result<T, Error>, text: &str) {
    let text = text.replace("DEVICE", &gpu.info().name);
    assert_eq!(result.unwrap_err().to_string(), text);
}

#[test]
fn inputs_beyond_what_can_be_bound() {
    let limits = wgpu::Limits { max_storage_buffer_binding_size: 1 << 20, ..Default::default() };
    let Some(gpu) = gpu_with_limits(limits, &GpuOptions::default()) else { return };
    // rows are split over several bindings; one row cannot be
    check(&gpu, &Rows::random(&mut Random::new(3), Logits::Normal, &[16_385, 16]));
    let logits = vec![0.0_f32; 262_145];
    let args = Args::new(Array::new(&logits, &[1, 262_145]).unwrap()).target((&[0]).into());
    let text = "one row of input: expected at most 1048576 bytes \
                (max_storage_buffer_binding_size of DEVICE), got 1048580";
    assert_too_large(&gpu, gpu.block_on(gpu.forward(&CrossEntropy::default(), &args)), text);
}

#[test]
fn inputs_beyond_what_a_buffer_holds() {
    let limits = wgpu::Limits { max_buffer_size: 1 << 20, ..Default::default() };
    let Some(gpu) = gpu_with_limits(limits, &GpuOptions::default()) else { return };
    let args = Args::new(Layout::new(&[262_145], DType::F32));
    let args = args.target(Layout::new(&[262_145], DType::F32));
    let plan = gpu.block_on(gpu.plan(&BceWithLogits::default(), Pass::Backward, &args));
    let text = "input: expected at most 1048576 bytes (max_buffer_size of DEVICE), got 1048580";
    assert_too_large(&gpu, plan, text);
}

#[test]
fn inputs_beyond_this_device() {
    // a hundred gigabytes, of which none is allocated
    let Some(gpu) = &gpu() else { return };
    let args = Args::new(Layout::new(&[200_000, 128_256], DType::F32));
    let args = args.target(Layout::new(&[200_000], DType::I32));
    for pass in PASSES {
        let error = gpu.block_on(gpu.plan(&CrossEntropy::default(), pass, &args)).unwrap_err();
        assert!(matches!(error, Error::TooLarge { argument: "input", .. }), "{error}");
    }
}

#[test]
fn dispatches_fold_where_one_dimension_does_not_hold_them() {
    // Three workgroups along each of two dimensions: numbers of rows that fill them, that leave
    // some empty, and that are too many.
    let limits = wgpu::Limits { max_compute_workgroups_per_dimension: 3, ..Default::default() };
    for team in [Team::Invocation, Team::Subgroup, Team::Workgroup] {
        let options = GpuOptions::default().team(team);
        let Some(gpu) = gpu_with_limits(limits.clone(), &options) else { return };
        let mut random = Random::new(4);
        let mut most = 0;
        for rows in 1..=80 {
            let rows = Rows::random(&mut random, Logits::Normal, &[rows, 3]);
            match gpu.block_on(gpu.run(&*rows.op(), Pass::Forward, &rows.forward_args())) {
                Ok(_) => most = rows.target.len(),
                Err(error) => {
                    assert!(matches!(error, Error::Value { argument: "input", .. }), "{error}");
                    break;
                }
            }
            check(&gpu, &rows);
        }
        assert!(most >= 9, "nine workgroups, at least a row each: {most}");
    }
}

/// Limits with as little as kernels can do with.
fn least_limits() -> wgpu::Limits {
    wgpu::Limits {
        max_bind_groups: 1,
        max_bindings_per_bind_group: 9,
        max_storage_buffers_per_shader_stage: 8,
        max_uniform_buffers_per_shader_stage: 1,
        max_uniform_buffer_binding_size: 1024,
        max_storage_buffer_binding_size: 4096,
        max_compute_invocations_per_workgroup: 1,
        max_compute_workgroup_size_x: 1,
        max_compute_workgroup_storage_size: 36,
        ..Default::default()
    }
}

#[test]
fn a_device_with_the_least_limits() {
    for team in [None, Some(Team::Invocation), Some(Team::Subgroup), Some(Team::Workgroup)] {
        let options = team.map_or_else(GpuOptions::default, |t| GpuOptions::default().team(t));
        let Some(gpu) = gpu_with_limits(least_limits(), &options) else { return };
        check(&gpu, &some_rows());
        check(&gpu, &some_mean());
        check(&gpu, &Elements::random(&mut Random::new(5), &[7001]).reduced(Reduction::Mean));
    }
}

#[test]
fn devices_that_cannot_run_kernels() {
    type Take = fn(&mut wgpu::Limits);
    let takes: [(Take, &str); 9] = [
        (|l| *l = wgpu::Limits::downlevel_webgl2_defaults(), "max_compute_workgroup_size_x of at"),
        (
            |l| *l = wgpu::Limits::downlevel_defaults(),
            "max_storage_buffers_per_shader_stage of at least 8, got 4 on",
        ),
        (|l| l.max_storage_buffers_per_shader_stage = 7, "at least 8, got 7 on"),
        (|l| l.max_storage_buffer_binding_size = 252, "at least 4096, got 252 on"),
        (|l| l.max_buffer_size = 0, "max_buffer_size of at least 4096, got 0 on"),
        (|l| l.max_compute_invocations_per_workgroup = 0, "at least 1, got 0 on"),
        (|l| l.max_compute_workgroup_size_x = 0, "at least 1, got 0 on"),
        (|l| l.max_compute_workgroup_storage_size = 0, "at least 36, got 0 on"),
        (|l| l.max_compute_workgroups_per_dimension = 0, "at least 1, got 0 on"),
    ];
    for (take, text) in takes {
        let mut limits = least_limits();
        take(&mut limits);
        let Some(device) = own_device(wgpu::Features::empty(), limits) else { return };
        match take_over(device, &GpuOptions::default()) {
            Err(error @ Error::Value { argument: "device", .. }) => {
                assert!(error.to_string().contains(text), "{error}");
            }
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[test]
fn small_workgroups() {
    let limits = wgpu::Limits {
        max_compute_invocations_per_workgroup: 48,
        max_compute_workgroup_size_x: 48,
        ..Default::default()
    };
    for team in [Team::Invocation, Team::Workgroup] {
        let options = GpuOptions::default().team(team);
        let Some(gpu) = gpu_with_limits(limits.clone(), &options) else { return };
        check(&gpu, &some_rows());
        check(&gpu, &some_mean());
        check(&gpu, &Elements::random(&mut Random::new(5), &[70_001]).reduced(Reduction::Mean));
    }
}

#[test]
fn run_time_checks_change_no_result() {
    let Some(checked) = open(&GpuOptions::default().runtime_checks(true)) else { return };
    let Some(unchecked) = &gpu() else { return };
    let elements = Elements::random(&mut Random::new(8), &[5001]);
    let calls: [&dyn Call; 4] = [
        &some_rows(),
        &some_mean(),
        &Rows::random(&mut Random::new(7), Logits::Ramp, &[3, 1025]),
        &elements.reduced(Reduction::Mean),
    ];
    for call in calls {
        let [got, want] = [&checked, unchecked].map(|gpu| bits(&check(gpu, call)));
        assert!(got == want, "{call:?}");
    }
}

/// Sets a cache of `cached`'s device for `used`.
#[allow(unsafe_code)]
fn use_cache(cached: &Gpu, used: &Gpu, data: Option<&[u8]>) -> wgpu::PipelineCache {
    let descriptor = wgpu::PipelineCacheDescriptor { label: None, data, fallback: true };
    // SAFETY: the data, if any, is of a cache of the same device.
    let cache = unsafe { cached.device().create_pipeline_cache(&descriptor) };
    used.use_pipeline_cache(cache.clone());
    cache
}

/// That another device's cache is refused shows that kernels are compiled with it. What a driver keeps
/// in one is its own matter: lavapipe keeps nothing.
#[test]
fn kernels_are_compiled_with_the_callers_cache() {
    let Some(gpu) = open(&GpuOptions::default()) else { return };
    if !gpu.device().features().contains(wgpu::Features::PIPELINE_CACHE) {
        assert_ne!(gpu.info().backend, wgpu::Backend::Vulkan, "Vulkan has caches");
        return;
    }
    let cache = use_cache(&gpu, &gpu, None);
    check(&gpu, &some_mean());
    let data = cache.get_data().expect("Vulkan has it");

    let again = open(&GpuOptions::default()).unwrap();
    use_cache(&again, &again, Some(&data));
    check(&again, &some_mean());

    let other = open(&GpuOptions::default()).unwrap();
    use_cache(&again, &other, None);
    let rows = some_rows();
    assert_refused(other.block_on(other.run(&*rows.op(), Pass::Forward, &rows.forward_args())));
}

// ---- the caller's own device ----

#[test]
fn a_device_with_default_limits_and_no_features() {
    let none = wgpu::Features::empty();
    for team in [None, Some(Team::Invocation), Some(Team::Subgroup), Some(Team::Workgroup)] {
        let Some(device) = own_device(none, wgpu::Limits::default()) else { return };
        let options = team.map_or(GpuOptions::default(), |team| GpuOptions::default().team(team));
        let gpu = take_over(device, &options).unwrap();
        let mut random = Random::new(6);
        for reduction in REDUCTIONS {
            check(&gpu, &some_rows().weighted(&mut random).smoothing(0.1).reduced(reduction));
            let elements = Elements::random(&mut random, &[3, 50])
                .weight(&[50], &random.normals(50, 1.0))
                .pos_weight(&[], &[2.0]);
            check(&gpu, &elements.reduced(reduction));
        }
        let mean = some_mean();
        let (op, args) = (mean.cross_entropy(), mean.forward_args());
        assert!(gpu.block_on(gpu.run(&op, Pass::Forward, &args)).is_ok());
    }
}

#[test]
fn other_work_of_the_caller_stays_in_order() {
    // The logits are written by the caller's queue between two calls.
    let Some((device, queue)) = own_device(wgpu::Features::empty(), wgpu::Limits::default()) else {
        return;
    };
    let gpu = take_over((device, queue.clone()), &GpuOptions::default()).unwrap();
    let (first, second) = (some_rows(), Rows { logits: vec![0.5; 660], ..some_rows() });
    let args = upload(&gpu, &first, Pass::Forward);
    for rows in [first, second] {
        let bytes: Vec<u8> = rows.logits.iter().flat_map(|x| x.to_ne_bytes()).collect();
        queue.write_buffer(args.input().buffer(), 0, &bytes);
        let got = gpu.block_on(gpu.run(&*rows.op(), Pass::Forward, &args)).unwrap();
        assert_eq!(bits(&read(&gpu, &got)), bits(&run(&gpu, &rows, Pass::Forward)));
    }
}

// ---- loss of the device ----

#[track_caller]
fn assert_lost<T: std::fmt::Debug>(result: Result<T, Error>) {
    match result {
        Err(error @ Error::DeviceLost(_)) => {
            assert!(error.to_string().starts_with("device: lost: "), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_device_that_is_lost() {
    let Some(gpu) = open(&GpuOptions::default()) else { return };
    let rows = some_mean();
    let args = upload(&gpu, &rows, Pass::ForwardBackward);
    let op = rows.cross_entropy();
    let pass = Pass::ForwardBackward;
    let plan = gpu.block_on(gpu.plan(&op, pass, &args.layouts())).unwrap();
    let out = gpu.block_on(gpu.run(&op, pass, &args)).unwrap();

    gpu.device().destroy();
    let clone = gpu.clone();
    for gpu in [&gpu, &clone] {
        for pass in PASSES {
            assert_lost(gpu.block_on(gpu.run(&op, pass, &rows.args(pass))));
        }
        assert_lost(gpu.block_on(gpu.run(&op, pass, &args)));
        assert_lost(gpu.run_into(&op, pass, &args, &out));
        assert_lost(gpu.block_on(gpu.status()));
        assert_lost(gpu.block_on(gpu.plan(&op, pass, &args.layouts())));
        assert_lost(gpu.block_on(plan.allocate()));
        assert_lost(gpu.block_on(gpu.upload(&Array::from(&rows.logits))));
        assert_lost(gpu.block_on(gpu.upload_args(&rows.args(pass))));
        assert_lost(gpu.block_on(gpu.read(out.get(Role::Loss).unwrap())));
        assert_lost(gpu.block_on(gpu.check(out.status().unwrap())));
    }
    let device = (gpu.device().clone(), gpu.queue().clone());
    assert_lost(take_over(device, &GpuOptions::default()));

    // by the caller's own encoder: it encodes, and nothing panics
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    plan.bind(&args, &out).unwrap().encode(&mut encoder);
    gpu.queue().submit([encoder.finish()]);
}

#[test]
fn a_device_that_is_lost_at_work() {
    // What it was given before is still under way.
    let Some(gpu) = open(&GpuOptions::default()) else { return };
    let rows = some_mean();
    let much = Elements::new(&vec![0.5; 4_000_000], &vec![1.0; 4_000_000]);
    let args = upload(&gpu, &much, Pass::ForwardBackward);
    gpu.block_on(gpu.run(&*much.op(), Pass::ForwardBackward, &args)).unwrap();
    gpu.device().destroy();
    for pass in PASSES {
        assert_lost(gpu.block_on(gpu.run(&*rows.op(), pass, &rows.args(pass))));
    }
}

#[test]
fn a_device_that_is_lost_during_uploads() {
    // Wherever it is lost, also between a staging buffer and its mapping.
    for round in 0..20 {
        let Some(gpu) = open(&GpuOptions::default()) else { return };
        let values = [0.5_f32; 4096];
        std::thread::scope(|scope| {
            let upload = || loop {
                if let Err(error) = gpu.block_on(gpu.upload(&Array::from(&values))) {
                    break error;
                }
            };
            let workers: Vec<_> = (0..6).map(|_| scope.spawn(upload)).collect();
            std::thread::sleep(std::time::Duration::from_micros(500 * round));
            gpu.device().destroy();
            for worker in workers {
                assert_lost(Err::<(), _>(worker.join().unwrap()));
            }
        });
    }
}

#[test]
fn a_device_that_is_lost_while_others_use_it() {
    let Some(gpu) = open(&GpuOptions::default()) else { return };
    let rows = some_mean();
    check(&gpu, &rows);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        let pass = Pass::ForwardBackward;
                        match gpu.block_on(gpu.run(&*rows.op(), pass, &rows.args(pass))) {
                            Ok(_) => {}
                            Err(error) => break error,
                        }
                    }
                })
            })
            .collect();
        std::thread::sleep(std::time::Duration::from_millis(50));
        gpu.device().destroy();
        for worker in workers {
            assert_lost(Err::<(), _>(worker.join().unwrap()));
        }
    });
}

// ---- waiting ----

#[test]
fn a_mistake_is_told_while_the_queue_is_busy() {
    // Asynchronous functions do not hold their thread until the device is idle.
    let Some(gpu) = open(&GpuOptions::default()) else { return };
    let much = Elements::new(&vec![0.5; 4_000_000], &vec![1.0; 4_000_000]);
    let args = upload(&gpu, &much, Pass::ForwardBackward);
    let (op, pass) = (much.op(), Pass::ForwardBackward);
    let plan = gpu.block_on(gpu.plan(&*op, pass, &args.layouts())).unwrap();
    let bound = plan.bind(&args, &gpu.block_on(plan.allocate()).unwrap()).unwrap();
    let mapped = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 16,
        usage: BufferUsages::STORAGE | BufferUsages::COPY_SRC,
        mapped_at_creation: true,
    });
    let wrong = Tensor::from_buffer(mapped, Layout::new(&[4], DType::F32)).unwrap();

    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    (0..50).for_each(|_| bound.encode(&mut encoder));
    gpu.queue().submit([encoder.finish()]);
    let is_idle = std::sync::Arc::new(AtomicBool::new(false));
    let told = is_idle.clone();
    gpu.queue().on_submitted_work_done(move || told.store(true, Ordering::Release));
    assert_refused(pollster::block_on(gpu.read(&wrong)));
    assert!(!is_idle.load(Ordering::Acquire), "the error came after the work");
}

#[test]
fn awaited_while_another_thread_polls() {
    // What callers who use async do, instead of `Gpu::block_on`.
    let Some(gpu) = &gpu() else { return };
    let rows = some_mean();
    let want = bits(&run(gpu, &rows, Pass::ForwardBackward));
    let (is_done, done) = (AtomicBool::new(false), Ordering::Relaxed);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_done.load(done) {
                gpu.device().poll(wgpu::PollType::Poll).unwrap();
                std::thread::yield_now();
            }
        });
        let args = rows.args(Pass::ForwardBackward);
        let op = rows.op();
        let got = pollster::block_on(gpu.run(&*op, Pass::ForwardBackward, &args));
        is_done.store(true, done);
        assert_eq!(bits(&got.unwrap()), want);
    });
}

#[test]
fn awaited_where_nobody_polls() {
    // Under executors that know nothing of devices, and under another device's `block_on`.
    let [Some(gpu), Some(other)] = [(); 2].map(|()| open(&GpuOptions::default())) else { return };
    let rows = some_mean();
    let want = bits(&run(&gpu, &rows, Pass::ForwardBackward));
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let (op, args) = (rows.op(), rows.args(Pass::ForwardBackward));
        let call = || gpu.run(&*op, Pass::ForwardBackward, &args);
        let got = [
            pollster::block_on(call()),
            other.block_on(call()),
            pollster::block_on(async {
                let tensor = gpu.upload(args.input()).await?;
                gpu.read(&tensor).await?;
                gpu.run(&*op, Pass::ForwardBackward, &args).await
            }),
            pollster::block_on(async {
                let mut stream = gpu.stream(&*op, Pass::ForwardBackward);
                stream.push(&args).await;
                stream.next().await.unwrap()
            }),
        ];
        sender.send(got.map(|output| bits(&output.unwrap()))).unwrap();
    });
    let patience = std::time::Duration::from_secs(60);
    assert_eq!(
        receiver.recv_timeout(patience).unwrap(),
        [want.clone(), want.clone(), want.clone(), want]
    );
}

// ---- threads ----

#[test]
fn several_threads_at_once() {
    // From the first call on, so that they compile the same kernels at the same time.
    let Some(gpu) = open(&GpuOptions::default()) else { return };
    let mut random = Random::new(7);
    let calls: Vec<Box<dyn Call + Send + Sync>> = (0..8)
        .map(|i| -> Box<dyn Call + Send + Sync> {
            let rows = Rows::random(&mut random, Logits::Normal, &[30 + i, 20 + 3 * i]);
            let elements = Elements::random(&mut random, &[100 + i]);
            match i % 4 {
                0 => Box::new(rows),
                1 => Box::new(rows.weighted(&mut random).smoothing(0.1).reduced(Reduction::Mean)),
                2 => Box::new(elements),
                _ => Box::new(elements.reduced(Reduction::Sum)),
            }
        })
        .collect();
    let results = |gpu: &Gpu| -> Vec<_> {
        calls.iter().map(|call| bits(&run(gpu, &**call, Pass::ForwardBackward))).collect()
    };
    let by_threads: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..4).map(|_| scope.spawn(|| [results(&gpu), results(&gpu)].concat())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let alone = results(&gpu);
    for results in by_threads {
        assert_eq!(results, [alone.clone(), alone.clone()].concat());
    }
}

// ---- plans ----

#[test]
fn a_plan_encoded_twice_before_a_submit() {
    // Both use the plan's workspace: the dispatches of one must not disturb the other's.
    on_every_device(|gpu| {
        let mut random = Random::new(8);
        let pass = Pass::ForwardBackward;
        let rows = || some_mean();
        let other = Rows { logits: random.normals(660, 3.0), ..rows() };
        let other = Rows { target: random.targets(20, 33, -100, 0.3), ..other };
        let calls = [rows(), other];
        let layouts = calls[0].args(pass).layouts();
        // the plan is for tensors, whose classes are i32 either way
        let plan = gpu.block_on(gpu.plan(&*calls[0].op(), pass, &layouts)).unwrap();
        let args = calls.each_ref().map(|call| upload(gpu, call, pass));
        let outs = [(), ()].map(|()| gpu.block_on(plan.allocate()).unwrap());

        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        for (args, out) in args.iter().zip(&outs) {
            plan.bind(args, out).unwrap().encode(&mut encoder);
        }
        gpu.queue().submit([encoder.finish()]);
        for (call, out) in calls.iter().zip(&outs) {
            assert_eq!(bits(&read(gpu, out)), bits(&run(gpu, call, pass)));
        }

        // in two encoders, submitted together in the other order
        let outs = [(), ()].map(|()| gpu.block_on(plan.allocate()).unwrap());
        let [first, second] = [0, 1].map(|i| {
            let mut encoder = gpu.device().create_command_encoder(&Default::default());
            plan.bind(&args[i], &outs[i]).unwrap().encode(&mut encoder);
            encoder.finish()
        });
        gpu.queue().submit([second, first]);
        for (call, out) in calls.iter().zip(&outs) {
            assert_eq!(bits(&read(gpu, out)), bits(&run(gpu, call, pass)));
        }
    });
}

#[test]
fn a_plan_starts_afresh_every_time() {
    // The same outputs, first with a class out of range, then without: nothing is left behind.
    on_every_device(|gpu| {
        let (good, pass) = (some_mean(), Pass::ForwardBackward);
        let mut bad = good.clone();
        bad.target[7] = 99;
        let [bad_args, good_args] = [&bad, &good].map(|call| upload(gpu, call, pass));
        let plan = gpu.block_on(gpu.plan(&*good.op(), pass, &good_args.layouts())).unwrap();
        let out = gpu.block_on(plan.allocate()).unwrap();
        let submit = |args| {
            let mut encoder = gpu.device().create_command_encoder(&Default::default());
            plan.bind(args, &out).unwrap().encode(&mut encoder);
            gpu.queue().submit([encoder.finish()]);
            gpu.block_on(gpu.check(out.status().unwrap()))
        };
        for _ in 0..2 {
            let error = Error::Class { row: 7, class: 99, classes: 33 };
            assert_eq!(submit(&bad_args), Err(error));
            assert_eq!(submit(&good_args), Ok(()));
            assert_eq!(bits(&read(gpu, &out)), bits(&run(gpu, &good, pass)));
        }
    });
}

#[test]
fn a_plan_takes_only_what_it_was_made_for() {
    let Some(gpu) = &gpu() else { return };
    let (rows, pass) = (some_rows(), Pass::ForwardBackward);
    let args = upload(gpu, &rows, pass);
    let plan = gpu.block_on(gpu.plan(&*rows.op(), pass, &args.layouts())).unwrap();
    let out = gpu.block_on(plan.allocate()).unwrap();
    let refuse = |args: &Args<Tensor>, out: &Output<Tensor>, text: &str| {
        let error = plan.bind(args, out).unwrap_err();
        assert_eq!(error.to_string(), text);
    };
    let tensor = |array: Array<'_>| gpu.block_on(gpu.upload(&array)).unwrap();
    let zeros = |shape: &[usize]| {
        tensor(Array::from_vec(vec![0.0_f32; shape.iter().product()], shape).unwrap())
    };

    let more = Rows::random(&mut Random::new(9), Logits::Normal, &[21, 33]);
    let text = "input: expected shape [20, 33], got [21, 33]";
    refuse(&upload(gpu, &more, pass), &out, text);
    let text = "target: expected storage type i32, got f32";
    refuse(&args.clone().target(zeros(&[20])), &out, text);
    let text = "weight: expected none for this plan, got one";
    refuse(&args.clone().weight(zeros(&[33])), &out, text);
    let text = "upstream: expected for this plan, got none";
    refuse(&upload(gpu, &rows, Pass::Forward), &out, text);
    let short = out.clone().with(Role::Grad, zeros(&[20, 32]));
    refuse(&args, &short, "grad: expected shape [20, 33], got [20, 32]");
    let mut without = out.clone();
    without.take(Role::Loss);
    refuse(&args, &without, "loss: expected for this plan, got none");
    let with = out.clone().with(Role::State, zeros(&[20, 4]));
    refuse(&args, &with, "state: expected none for this plan, got one");
}

#[test]
fn a_plan_tells_what_it_computes_and_takes() {
    let Some(gpu) = &gpu() else { return };
    let rows = some_mean();
    let args = rows.args(Pass::ForwardBackward).layouts();
    let op = rows.cross_entropy().keep_state(true);
    let plan = gpu.block_on(gpu.plan(&op, Pass::ForwardBackward, &args)).unwrap();
    let out = plan.outputs();
    assert_eq!(out.loss(), Ok(&Layout::new(&[], DType::F32)));
    assert_eq!(out.grad(), Ok(&Layout::new(&[20, 33], DType::F32)));
    assert_eq!(out.state(), Ok(&Layout::new(&[20, 4], DType::F32)));
    // a loss a row, and little else
    assert!((20 * 4..4096).contains(&plan.workspace_bytes()), "{}", plan.workspace_bytes());
}

// ---- the same bits every time ----

/// Calls whose sums take several teams and workgroups; 20,000 rows also take two levels.
fn calls_with_sums(rows: usize) -> Vec<Box<dyn Call>> {
    let mut random = Random::new(10);
    let short = Rows::random(&mut random, Logits::Normal, &[rows, 5]);
    let long = Rows::random(&mut random, Logits::Confident, &[7, 5001]);
    let elements = Elements::random(&mut random, &[150_001]);
    vec![
        Box::new(short.clone().reduced(Reduction::Mean)),
        Box::new(short.weight(&[0.1, 0.7, 0.3, 1.3, 2.1]).reduced(Reduction::Mean)),
        Box::new(long.weighted(&mut random).smoothing(0.1)),
        Box::new(elements.clone().reduced(Reduction::Sum)),
        Box::new(elements.reduced(Reduction::Mean)),
    ]
}

/// The bits of all of them on every device.
fn all_bits() -> Vec<u32> {
    let mut all = vec![];
    on_every_device(|gpu| {
        for call in calls_with_sums(20_000) {
            all.extend(bits(&run(gpu, &*call, Pass::ForwardBackward)));
        }
    });
    all
}

#[test]
fn twenty_runs_agree_to_the_bit() {
    for Device { name, gpu } in devices() {
        for call in calls_with_sums(if name == "automatic" { 20_000 } else { 3_000 }) {
            let first = bits(&run(&gpu, &*call, Pass::ForwardBackward));
            for _ in 1..20 {
                let again = bits(&run(&gpu, &*call, Pass::ForwardBackward));
                assert!(again == first, "{name}: {call:?}");
            }
        }
    }
}

/// Where this test, run in a process of its own, writes what it computed.
const BITS_FILE: &str = "WGLOSS_TEST_BITS_FILE";

#[test]
fn two_processes_agree_to_the_bit() {
    let bytes: Vec<u8> = all_bits().into_iter().flat_map(u32::to_le_bytes).collect();
    if let Some(path) = std::env::var_os(BITS_FILE) {
        std::fs::write(path, bytes).unwrap();
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bits");
    let (_, module) = module_path!().split_once("::").unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("{module}::two_processes_agree_to_the_bit")])
        .env(BITS_FILE, &path)
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
    assert!(std::fs::read(path).unwrap() == bytes, "another process computed other bits");
}
