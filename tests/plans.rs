//! Plans: encoded into the caller's encoder without a submit, a wait, or anything created or
//! allocated; with what they hold on the device stated; from several threads.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

use allocation_counter::measure;
use wgloss::wgpu::{self, BufferUsages};
use wgloss::{
    Args, Array, BoundPlan, DType, Error, Gpu, GpuOptions, Layout, Mse, Op, Output, Pass, Plan,
    Reduction, Role, Status, Tensor,
};
use wgloss_testing::call::{Call, Rows, read};
use wgloss_testing::devices::open;
use wgloss_testing::memory::{every_op, submit};
use wgloss_testing::random::{Logits, Random};

/// A device of its own, one at a time: its counters are watched.
fn alone() -> Option<(Gpu, MutexGuard<'static, ()>)> {
    static ONE: Mutex<()> = Mutex::new(());
    let guard = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    Some((open(&GpuOptions::default())?, guard))
}

/// What is alive on a device: buffers, bind groups, pipelines, shaders, and the bytes of buffers.
fn alive(gpu: &Gpu) -> [isize; 5] {
    let counters = gpu.device().get_internal_counters().hal;
    [
        counters.buffers.read(),
        counters.bind_groups.read(),
        counters.compute_pipelines.read(),
        counters.shader_modules.read(),
        counters.buffer_memory.read(),
    ]
}

/// Twenty rows with a mean: four kernels, of which the last one keeps what the others report.
fn some_rows() -> Rows {
    let rows = Rows::random(&mut Random::new(41), Logits::Normal, &[20, 33]);
    rows.reduced(Reduction::Mean)
}

/// A plan bound to buffers.
struct Ready {
    plan: Plan,
    args: Args<Tensor>,
    out: Output<Tensor>,
    bound: BoundPlan,
}

fn ready(gpu: &Gpu, op: &dyn Op, pass: Pass, args: &Args<Array<'_>>) -> Ready {
    let args = gpu.block_on(gpu.upload_args(args)).unwrap();
    let plan = gpu.block_on(gpu.plan(op, pass, &args.layouts())).unwrap();
    let out = gpu.block_on(plan.allocate()).unwrap();
    let bound = plan.bind(&args, &out).unwrap();
    Ready { plan, args, out, bound }
}

fn new_encoder(gpu: &Gpu) -> wgpu::CommandEncoder {
    gpu.device().create_command_encoder(&Default::default())
}

/// Waits until all is done, and what was uploaded has left its staging memory.
fn wait(gpu: &Gpu) {
    gpu.queue().submit([]);
    gpu.device().poll(wgpu::PollType::wait_indefinitely()).unwrap();
}

/// The host's allocations while encoding, after some submissions so that nothing is done for the
/// first time.
fn allocations(gpu: &Gpu, encode: impl Fn(&mut wgpu::CommandEncoder)) -> u64 {
    for _ in 0..3 {
        let mut encoder = new_encoder(gpu);
        encode(&mut encoder);
        gpu.queue().submit([encoder.finish()]);
    }
    wait(gpu);
    let mut encoder = new_encoder(gpu);
    measure(|| encode(&mut encoder)).count_total
}

/// Dispatches as bare wgpu encodes them.
struct Bare {
    buffers: [wgpu::Buffer; 2],
    /// Two, by turns: wgpu drops what is set twice in a row.
    dispatches: [(wgpu::ComputePipeline, wgpu::BindGroup); 2],
}

impl Bare {
    /// Everything has a label, which wgpu copies.
    fn new(gpu: &Gpu) -> Self {
        let (device, label) = (gpu.device(), Some("bare"));
        let buffers = [(), ()].map(|()| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label,
                size: 32,
                usage: BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        });
        let text = "@group(0) @binding(0) var<storage, read_write> data: array<u32>;
                    @compute @workgroup_size(1) fn main() { data[0] += 1u; }";
        let dispatches = [(), ()].map(|()| {
            let source = wgpu::ShaderSource::Wgsl(text.into());
            let module = wgpu::ShaderModuleDescriptor { label, source };
            let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label,
                layout: None,
                module: &device.create_shader_module(module),
                entry_point: None,
                compilation_options: Default::default(),
                cache: None,
            });
            let resource = buffers[0].as_entire_binding();
            let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
                label,
                layout: &pipeline.get_bind_group_layout(0),
                entries: &[wgpu::BindGroupEntry { binding: 0, resource }],
            });
            (pipeline, group)
        });
        Bare { buffers, dispatches }
    }

    /// A buffer cleared, and so many dispatches, followed by so many copies of it, by turns.
    fn encode(&self, encoder: &mut wgpu::CommandEncoder, commands: &[[usize; 2]]) {
        let [from, to] = &self.buffers;
        encoder.clear_buffer(from, 0, Some(32));
        for &[dispatches, copies] in commands {
            let descriptor =
                wgpu::ComputePassDescriptor { label: Some("bare"), timestamp_writes: None };
            let mut pass = encoder.begin_compute_pass(&descriptor);
            for (pipeline, group) in self.dispatches.iter().cycle().take(dispatches) {
                pass.set_pipeline(pipeline);
                pass.set_bind_group(0, group, &[]);
                pass.dispatch_workgroups(1, 1, 1);
            }
            drop(pass);
            for _ in 0..copies {
                encoder.copy_buffer_to_buffer(from, 0, to, 0, 32);
            }
        }
    }
}

#[test]
fn encoding_creates_and_allocates_nothing() {
    let Some((gpu, _alone)) = alone() else { return };
    let bare = Bare::new(&gpu);
    let rows = some_rows();
    let pass = Pass::ForwardBackward;
    // the divisor, the rows, and, after the copies of the row outputs, the sum and the status
    for (op, commands) in [
        (rows.cross_entropy(), &[[4, 0]][..]),
        (rows.cross_entropy().row_outputs(true), &[[2, 4], [2, 0]]),
    ] {
        let ready = ready(&gpu, &op, pass, &rows.args(pass));
        let got = allocations(&gpu, |encoder| ready.bound.encode(encoder));
        let want = allocations(&gpu, |encoder| bare.encode(encoder, commands));
        assert_eq!(got, want, "allocations, and those of bare wgpu, of {commands:?}");

        let before = alive(&gpu);
        let mut encoder = new_encoder(&gpu);
        for _ in 0..10 {
            ready.bound.encode(&mut encoder);
        }
        let commands = encoder.finish();
        assert_eq!(alive(&gpu), before);
        gpu.queue().submit([commands]);
        assert_eq!(read(&gpu, &ready.out), read(&gpu, &run(&gpu, &op, pass, &ready.args)));
    }
}

/// What a plan is made of is made once: later calls find it, in whatever buffers their tensors are.
#[test]
fn calls_find_the_plans_of_earlier_ones() {
    let Some((gpu, _alone)) = alone() else { return };
    let rows = some_rows();
    let (op, pass) = (rows.cross_entropy().row_outputs(true), Pass::ForwardBackward);
    let args = gpu.block_on(gpu.upload_args(&rows.args(pass))).unwrap();
    wait(&gpu);
    gpu.trim();
    let settled = || {
        wait(&gpu);
        alive(&gpu)
    };
    let fresh = settled();

    // on tensors: beside its results, a call leaves nothing but the plan of the first one
    drop(run(&gpu, &op, pass, &args));
    let kept = settled();
    let plan = gpu.block_on(gpu.plan(&op, pass, &args.layouts())).unwrap();
    let of_plan = plan.workspace_bytes() as isize;
    assert_eq!(kept[4] - fresh[4], of_plan);
    assert_eq!(kept[2] - fresh[2], plan.kernels().count() as isize);
    let buffers = kept[0] - fresh[0];
    // made anew, a plan has the same pipelines, and memory of its own
    let second = settled();
    assert_eq!(second, [kept[0] + buffers, kept[1], kept[2], kept[3], kept[4] + of_plan]);
    drop(plan);
    assert_eq!(settled(), kept);
    let out = run(&gpu, &op, pass, &args);
    let status = out.status().map(Status::buffer).into_iter();
    let results: Vec<_> = out.iter().map(|(_, part)| part.buffer()).chain(status).collect();
    let bytes = results.iter().map(|buffer| buffer.size() as isize).sum::<isize>();
    let count = results.len() as isize;
    assert_eq!(settled(), [kept[0] + count, kept[1], kept[2], kept[3], kept[4] + bytes]);

    // and does none of a plan's work
    let whole_call = || measure(|| drop(run(&gpu, &op, pass, &args))).count_total;
    let of_call = whole_call();
    wait(&gpu);
    let planned = measure(|| {
        drop(gpu.block_on(gpu.plan(&op, pass, &args.layouts())).unwrap());
    });
    let parts = || {
        let plan = gpu.block_on(gpu.plan(&op, pass, &args.layouts())).unwrap();
        measure(|| {
            let out = gpu.block_on(plan.allocate()).unwrap();
            submit(&plan, &gpu, &args, &out);
        })
    };
    let (planned, parts) = (planned.count_total, parts().count_total);
    println!("allocations: {of_call} of a call, {planned} of a plan, {parts} of the rest");
    assert!(of_call < parts + planned / 2, "{of_call}, {planned}, {parts}");
    drop(out);
    assert_eq!(settled(), kept);

    // from the host: the same plan, and buffers for transfers, which are kept too
    let host = rows.args(pass);
    let of_host = || drop(gpu.block_on(gpu.run(&op, pass, &host)).unwrap());
    of_host();
    let once = settled();
    assert_eq!(once[2], kept[2]);
    for _ in 0..3 {
        of_host();
        assert_eq!(settled(), once);
    }

    gpu.trim();
    assert_eq!(settled(), fresh);
}

#[test]
fn one_kept_plan_serves_all_offsets_that_bindings_can_begin_at() {
    let Some((gpu, _alone)) = alone() else { return };
    assert_eq!(plans_at(&gpu, &[0, 64, 128, 64, 0]), [1, 1, 1, 1, 1]);
    assert_eq!(plans_at(&gpu, &[1, 65, 2, 130, 1]), [1, 1, 2, 2, 2]);

    // a device that may begin them closer together
    let adapter = gpu.block_on(wgloss::adapters()).remove(0);
    let mut required_limits = wgpu::Limits::default();
    let alignment = adapter.limits().min_storage_buffer_offset_alignment;
    required_limits.min_storage_buffer_offset_alignment = alignment;
    let descriptor = wgpu::DeviceDescriptor { required_limits, ..Default::default() };
    let (device, queue) = gpu.block_on(adapter.request_device(&descriptor)).unwrap();
    let close = Gpu::blocking_from_device(device, queue, &GpuOptions::default()).unwrap();
    let numbers = alignment as usize / 4;
    assert_eq!(plans_at(&close, &[0, numbers, 3 * numbers, 64]), [1; 4]);
    assert_eq!(plans_at(&close, &[1, numbers + 1, 2, 65]), [1, 1, 2, 2]);
}

/// So many plans a kept call has made after each of these offsets of its input, whose results are
/// right.
fn plans_at(gpu: &Gpu, offsets: &[usize]) -> Vec<isize> {
    let numbers: Vec<f32> = (0..1024).map(|i| i as f32).collect();
    let numbers = gpu.block_on(gpu.upload(&Array::from(&numbers))).unwrap();
    let tensor = |offset| {
        let layout = Layout::new(&[5, 7], DType::F32).with_offset(offset);
        Tensor::from_buffer(numbers.buffer().clone(), layout).unwrap()
    };
    wait(gpu);
    gpu.trim();
    wait(gpu);
    let before = alive(gpu)[0];
    let call = |offset| {
        let args = Args::new(tensor(offset)).target(tensor(512));
        run(gpu, &Mse::default(), Pass::ForwardBackward, &args)
    };
    let count = |&offset: &usize| {
        drop(call(offset));
        wait(gpu);
        alive(gpu)[0] - before
    };
    let buffers: Vec<_> = offsets.iter().map(count).collect();
    for &offset in offsets {
        let loss = read(gpu, &call(offset)).loss().unwrap().item().unwrap();
        assert_eq!(loss, (512.0 - offset as f32).powi(2));
    }
    buffers.iter().map(|count| count / buffers[0]).collect()
}

fn run(gpu: &Gpu, op: &dyn Op, pass: Pass, args: &Args<Tensor>) -> Output<Tensor> {
    gpu.block_on(gpu.run(op, pass, args)).unwrap()
}

#[test]
fn device_memory_is_arguments_results_and_a_stated_workspace() {
    let Some((gpu, _alone)) = alone() else { return };
    // without what is kept for the transfers of later calls
    let memory = || {
        gpu.trim();
        alive(&gpu)[4]
    };
    for job in every_op(&[2000, 257], DType::F32, Reduction::Mean, Pass::ForwardBackward) {
        // pipelines, and what wgpu keeps for itself
        drop(job.run_apart(&gpu));
        wait(&gpu);
        let before = memory();
        let args = gpu.block_on(gpu.upload_args(&job.host_args())).unwrap();
        wait(&gpu);
        let with_args = memory();
        let plan = gpu.block_on(gpu.plan(&*job.op, job.pass, &args.layouts())).unwrap();
        let out = gpu.block_on(plan.allocate()).unwrap();
        submit(&plan, &gpu, &args, &out);
        let at_most = memory();

        let outputs: u64 = out.iter().map(|(_, tensor)| tensor.layout().bytes()).sum();
        let status = out.status().map_or(0, |status| status.buffer().size());
        let stated = outputs + status + plan.workspace_bytes();
        let used = (at_most - with_args) as u64;
        // drivers round sizes up, and uniforms are uploaded through staging memory of their size
        assert!(used >= stated && used < stated + 16_384, "{}: {used}, {stated}", job.name());
        // five numbers a row, and some a dispatch
        let most = 2000 * 20 + 4096;
        // of linear cross entropy also the logits, and copies of both operands in whole vec4s
        let products = args.get(Role::Projection).map_or(0, |projection| {
            let [classes, dims] = [0, 1].map(|dim| projection.shape()[dim].next_multiple_of(4));
            4 * (2000 * classes + (2000 + classes) * dims) + 8192
        });
        assert!(plan.workspace_bytes() <= most + products as u64, "{}: {stated}", job.name());

        drop((plan, out, args));
        wait(&gpu);
        assert_eq!(memory(), before, "{}: something is left", job.name());
    }
}

#[test]
fn a_status_keeps_the_first_fault_of_what_is_bound_to_it() {
    let Some((gpu, _alone)) = alone() else { return };
    let rows = some_rows();
    let pass = Pass::Forward;
    let good = ready(&gpu, &*rows.op(), pass, &rows.args(pass));
    let with_class = |row: usize, class| {
        let mut target = rows.target.clone();
        target[row] = class;
        let target = gpu.block_on(gpu.upload(&Array::from(&target))).unwrap();
        good.args.clone().target(target)
    };
    let new = || gpu.block_on(gpu.status()).unwrap();
    let bind = |args: &Args<Tensor>, status: Option<&Status>| {
        let out: Output<Tensor> =
            good.out.iter().map(|(role, part)| (role, part.clone())).collect();
        let out = match status {
            Some(status) => out.with_status(status.clone()),
            None => out,
        };
        good.plan.bind(args, &out).unwrap()
    };
    let (bad, worse) = (with_class(3, 40), with_class(1, -7));
    let [first, second, third] = [new(), new(), new()];
    let mut encoder = new_encoder(&gpu);
    bind(&good.args, Some(&first)).encode(&mut encoder);
    bind(&bad, Some(&second)).encode(&mut encoder);
    // the first one of those that came one after the other, wherever in its call
    bind(&good.args, Some(&third)).encode(&mut encoder);
    bind(&bad, Some(&third)).encode(&mut encoder);
    bind(&good.args, Some(&third)).encode(&mut encoder);
    bind(&worse, Some(&third)).encode(&mut encoder);
    // nobody asks
    bind(&worse, None).encode(&mut encoder);
    gpu.queue().submit([encoder.finish()]);

    let fault = Error::Class { row: 3, class: 40, classes: 33 };
    // read back by the caller, with whatever else is
    let words = |status: &Status| {
        let layout = Layout::new(&[8], DType::I32);
        let tensor = Tensor::from_buffer(status.buffer().clone(), layout).unwrap();
        let words = gpu.block_on(gpu.read(&tensor)).unwrap().to_i64().unwrap();
        words.into_iter().map(|word| word as u32).collect::<Vec<_>>()
    };
    assert_eq!(words(&first), [0; 8]);
    for status in [&second, &third] {
        assert_eq!(Status::decode(&words(status)), Err(fault.clone()));
    }
    assert_eq!(gpu.block_on(gpu.check(&first)), Ok(()));
    // a check that is begun and given up takes nothing with it
    let mut given_up = Box::pin(gpu.check(&second));
    let begun = given_up.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    drop(given_up);
    if begun.is_ready() {
        // the device was faster: the fault has been told, and comes again
        let mut encoder = new_encoder(&gpu);
        bind(&bad, Some(&second)).encode(&mut encoder);
        gpu.queue().submit([encoder.finish()]);
    }
    for status in [&second, &third] {
        assert_eq!(gpu.block_on(gpu.check(status)), Err(fault.clone()));
        // clear, and ready for the next fault
        assert_eq!(words(status), [0; 8]);
        assert_eq!(gpu.block_on(gpu.check(status)), Ok(()));
    }
    let mut encoder = new_encoder(&gpu);
    bind(&worse, Some(&third)).encode(&mut encoder);
    gpu.queue().submit([encoder.finish()]);
    let fault = Error::Class { row: 1, class: -7, classes: 33 };
    assert_eq!(gpu.block_on(gpu.check(&third)), Err(fault));
}

#[test]
fn layouts_of_host_arrays_are_planned_for() {
    // Class indices are i64 on the host and i32 on the device.
    let Some((gpu, _alone)) = alone() else { return };
    let rows = some_rows();
    let pass = Pass::ForwardBackward;
    let target: Vec<i64> = rows.target.iter().map(|&class| class.into()).collect();
    let host = rows.args(pass).target(Array::from(&target));
    let op = rows.cross_entropy();
    let plan = gpu.block_on(gpu.plan(&op, pass, &host.layouts())).unwrap();
    let args = gpu.block_on(gpu.upload_args(&host)).unwrap();
    let out = gpu.block_on(plan.allocate()).unwrap();
    submit(&plan, &gpu, &args, &out);
    assert_eq!(read(&gpu, &out), read(&gpu, &run(&gpu, &op, pass, &args)));
}

#[test]
fn one_workspace_for_many_encodings() {
    // Losses, logsumexps, argmaxes and correctness lie in the workspace until they are copied.
    let Some((gpu, _alone)) = alone() else { return };
    let pass = Pass::ForwardBackward;
    let op = some_rows().cross_entropy().row_outputs(true).keep_state(true);
    let mut random = Random::new(42);
    let calls = [(), (), ()].map(|()| Rows {
        logits: random.normals(660, 3.0),
        target: random.targets(20, 33, -100, 0.3),
        ..some_rows()
    });
    let plan = gpu.block_on(gpu.plan(&op, pass, &calls[0].args(pass).layouts())).unwrap();
    let args =
        calls.each_ref().map(|call| gpu.block_on(gpu.upload_args(&call.args(pass))).unwrap());
    let outs = args.each_ref().map(|_| gpu.block_on(plan.allocate()).unwrap());
    let bound = [0, 1, 2].map(|i| plan.bind(&args[i], &outs[i]).unwrap());
    let mut encoder = new_encoder(&gpu);
    for bound in &bound {
        bound.encode(&mut encoder);
    }
    gpu.queue().submit([encoder.finish()]);
    for (args, out) in args.iter().zip(&outs) {
        assert_eq!(read(&gpu, out), read(&gpu, &run(&gpu, &op, pass, args)));
    }
}

#[test]
fn one_plan_in_several_threads() {
    fn is_send_and_sync<T: Send + Sync>() {}
    is_send_and_sync::<Plan>();
    is_send_and_sync::<BoundPlan>();
    is_send_and_sync::<Tensor>();

    let Some((gpu, _alone)) = alone() else { return };
    let rows = some_rows();
    let (op, pass) = (rows.cross_entropy().row_outputs(true), Pass::ForwardBackward);
    let plan = gpu.block_on(gpu.plan(&op, pass, &rows.args(pass).layouts())).unwrap();
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let (plan, gpu, op) = (&plan, &gpu, &op);
            scope.spawn(move || {
                let logits = Random::new(seed).normals(660, 3.0);
                let rows = Rows { logits, ..some_rows() };
                let args = gpu.block_on(gpu.upload_args(&rows.args(pass))).unwrap();
                let want = read(gpu, &run(gpu, op, pass, &args));
                for _ in 0..5 {
                    let out = gpu.block_on(plan.allocate()).unwrap();
                    submit(plan, gpu, &args, &out);
                    assert_eq!(read(gpu, &out), want);
                }
            });
        }
    });
}
