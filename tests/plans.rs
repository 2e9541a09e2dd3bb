//! Plans: encoded into the caller's encoder without a submit, a wait, or anything created or
//! allocated; with what they hold on the device stated; from several threads.

use std::sync::{Mutex, MutexGuard, PoisonError};

use allocation_counter::measure;
use wgloss::wgpu::{self, BufferUsages};
use wgloss::{
    Args, Array, Bound, DType, Error, Gpu, GpuOptions, Layout, Op, Output, Pass, Plan, Reduction,
    Tensor, check_status,
};
use wgloss_testing::call::{Call, Rows};
use wgloss_testing::devices::open;
use wgloss_testing::memory::{Named, every_op, parts, submit};
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

/// Twenty rows with a mean: three kernels, and the copy of the status.
fn some_rows() -> Rows {
    let rows = Rows::random(&mut Random::new(41), Logits::Normal, &[20, 33]);
    rows.reduced(Reduction::Mean)
}

/// A plan bound to buffers.
struct Ready {
    plan: Plan,
    args: Args<Tensor>,
    out: Output<Tensor>,
    bound: Bound,
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

/// The arrays of each part.
fn read(gpu: &Gpu, out: &Output<Tensor>) -> Named<Array<'static>> {
    let read = |(name, part)| (name, gpu.block_on(gpu.read(part)).unwrap());
    parts(out).into_iter().map(read).collect()
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

    /// A buffer cleared, dispatches, and copies of it.
    fn encode(&self, encoder: &mut wgpu::CommandEncoder, dispatches: usize, copies: usize) {
        let [from, to] = &self.buffers;
        encoder.clear_buffer(from, 0, Some(32));
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

#[test]
fn encoding_creates_and_allocates_nothing() {
    let Some((gpu, _alone)) = alone() else { return };
    let bare = Bare::new(&gpu);
    let rows = some_rows();
    let pass = Pass::ForwardBackward;
    // the divisor, the rows, the sum; the copies of the row outputs, and that of the status
    for (op, copies) in [(rows.cross_entropy(), 1), (rows.cross_entropy().row_outputs(true), 4)] {
        let ready = ready(&gpu, &op, pass, &rows.args(pass));
        let status = ready.out.status.as_ref();
        let got = allocations(&gpu, |encoder| ready.bound.encode(encoder, status).unwrap());
        let want = allocations(&gpu, |encoder| bare.encode(encoder, 3, copies));
        assert_eq!(got, want, "allocations, and those of bare wgpu, with {copies} copies");

        let before = alive(&gpu);
        let mut encoder = new_encoder(&gpu);
        for _ in 0..10 {
            ready.bound.encode(&mut encoder, status).unwrap();
        }
        let commands = encoder.finish();
        assert_eq!(alive(&gpu), before);
        gpu.queue().submit([commands]);
        assert_eq!(read(&gpu, &ready.out), read(&gpu, &run(&gpu, &op, pass, &ready.args)));
    }
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

        let outputs: u64 = parts(&out).iter().map(|(_, tensor)| tensor.layout().bytes()).sum();
        let stated = outputs + plan.workspace_bytes();
        let used = (at_most - with_args) as u64;
        // drivers round sizes up, and uniforms are uploaded through staging memory of their size
        assert!(used >= stated && used < stated + 16_384, "{}: {used}, {stated}", job.name());
        // four numbers a row, and some a dispatch
        assert!(plan.workspace_bytes() <= 2000 * 16 + 4096, "{}: {stated}", job.name());

        drop((plan, out, args));
        wait(&gpu);
        assert_eq!(memory(), before, "{}: something is left", job.name());
    }
}

#[test]
fn a_status_goes_where_each_encoding_says() {
    let Some((gpu, _alone)) = alone() else { return };
    let rows = some_rows();
    let pass = Pass::Forward;
    let good = ready(&gpu, &*rows.op(), pass, &rows.args(pass));
    let mut target = rows.target.clone();
    target[3] = 40;
    let target = gpu.block_on(gpu.upload(&Array::from(&target))).unwrap();
    let bad = good.plan.bind(&good.args.clone().target(target), &good.out).unwrap();

    let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 256,
        usage: BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    let status = |offset| {
        let layout = Layout::new(&[8], DType::I32).with_offset(offset);
        Tensor::from_buffer(buffer.clone(), layout).unwrap()
    };
    let (first, second) = (status(3), status(21));
    let mut encoder = new_encoder(&gpu);
    good.bound.encode(&mut encoder, Some(&first)).unwrap();
    bad.encode(&mut encoder, Some(&second)).unwrap();
    good.bound.encode(&mut encoder, None).unwrap();
    // what is behind a tensor that is too small stays as it is
    let word = Layout::new(&[1], DType::I32).with_offset(32);
    let word = Tensor::from_buffer(buffer.clone(), word).unwrap();
    let error = good.bound.encode(&mut encoder, Some(&word)).unwrap_err();
    assert_eq!(error.to_string(), "status: expected shape [8], got [1]");
    let floats = Layout::new(&[8], DType::F32).with_offset(32);
    let floats = Tensor::from_buffer(buffer.clone(), floats).unwrap();
    let error = bad.encode(&mut encoder, Some(&floats)).unwrap_err();
    assert_eq!(error.to_string(), "status: expected storage type i32, got f32");
    gpu.queue().submit([encoder.finish()]);

    let error = Error::Class { row: 3, class: 40, classes: 33 };
    assert_eq!(gpu.block_on(gpu.check(&first)), Ok(()));
    assert_eq!(gpu.block_on(gpu.check(&second)), Err(error.clone()));
    // read back by the caller, with whatever else is
    let all = Tensor::from_buffer(buffer.clone(), Layout::new(&[64], DType::I32)).unwrap();
    let all = gpu.block_on(gpu.read(&all)).unwrap().to_classes().unwrap();
    let words = |start| std::array::from_fn(|i| all[start + i] as u32);
    assert_eq!(check_status(words(3)), Ok(()));
    assert_eq!(check_status(words(21)), Err(error));
    assert!([&all[..3], &all[11..21], &all[29..]].concat().iter().all(|&word| word == 0));
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
    for (bound, out) in bound.iter().zip(&outs) {
        bound.encode(&mut encoder, out.status.as_ref()).unwrap();
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
    is_send_and_sync::<Bound>();
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
