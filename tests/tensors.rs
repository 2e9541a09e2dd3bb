//! Tensors where callers have them: at any offset, with rows further apart than they need to be, in
//! one buffer with everything else, and gradients over the input. The results are those of
//! contiguous tensors in buffers of their own, to the bit, and no other byte is touched.

use wgloss::wgpu::{self, BufferUsages};
use wgloss::{
    Args, Array, BceWithLogits, CrossEntropy, DType, Gpu, Layout, LogSoftmax, Mse, NllLoss, Output,
    Pass, Plan, Reduction, Role, Sigmoid, Softmax, Tensor,
};
use wgloss_testing::call::{Call, Rows, bits, bits_of, judge, read, reference};
use wgloss_testing::devices::{Device, devices, gpu};
use wgloss_testing::memory::{
    ALIGNED, CONTIGUOUS, Job, ODD, Places, Where, check_in, every_op, submit,
};
use wgloss_testing::random::{Logits, Random};

const PASSES: [Pass; 3] = [Pass::Forward, Pass::Backward, Pass::ForwardBackward];
const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];

/// The kinds of kernel: rows, picked entries, row maps, elements, maps.
fn one_of_each_kind(shape: &[usize], dtype: DType, pass: Pass) -> Vec<Job> {
    let kinds = ["cross_entropy", "nll_loss", "softmax", "mse", "sigmoid"];
    let mut jobs = every_op(shape, dtype, Reduction::None, pass);
    jobs.retain(|job| kinds.contains(&job.op.name()));
    jobs
}

#[test]
fn every_op_in_one_buffer() {
    // Nine classes, two apart: rows begin at odd and at even places, in 16 bits in the middle of
    // words that belong to two rows or to two tensors.
    for pass in PASSES {
        for dtype in FLOATS {
            // asked for each time: another, once it has many kernels
            let Some(gpu) = &gpu() else { return };
            let is_bf16 = dtype == DType::Bf16;
            let jobs = every_op(&[5, 9], dtype, Reduction::None, pass);
            for job in jobs.iter().filter(|_| !is_bf16 || pass == Pass::ForwardBackward) {
                check_in(Where::OneBuffer, gpu, job, ODD);
            }
        }
    }
    let Some(gpu) = &gpu() else { return };
    // padded rows whose elements are no multiple of four are summed in another order
    for job in every_op(&[5, 9], DType::F32, Reduction::Mean, Pass::ForwardBackward) {
        check_in(Where::OneBuffer, gpu, &job, CONTIGUOUS);
    }
}

#[test]
fn groups_of_four_in_one_buffer_or_many() {
    // Twelve classes: contiguous tensors are taken in groups of four. Those of the caller are where
    // they are aligned, and by the element otherwise, with the same results.
    let Some(gpu) = &gpu() else { return };
    for dtype in FLOATS {
        for job in one_of_each_kind(&[5, 12], dtype, Pass::ForwardBackward) {
            check_in(Where::OneBuffer, gpu, &job, ALIGNED);
            check_in(Where::Apart, gpu, &job, ALIGNED);
            check_in(Where::Apart, gpu, &job, ODD);
        }
    }
    let mean = every_op(&[5, 12], DType::F16, Reduction::Mean, Pass::ForwardBackward);
    for job in mean.iter().filter(|job| ["cross_entropy", "mse"].contains(&job.op.name())) {
        check_in(Where::Apart, gpu, job, ALIGNED);
    }
}

#[test]
fn classes_that_lie_apart_in_one_buffer() {
    // [N, C, d]: neighbouring rows share every word in 16 bits.
    let Some(gpu) = &gpu() else { return };
    for dtype in FLOATS {
        for job in one_of_each_kind(&[2, 6, 3], dtype, Pass::ForwardBackward) {
            check_in(Where::OneBuffer, gpu, &job, Places { unit: 1, padding: 1 });
        }
    }
}

// ---- in place ----

/// What may be computed in place: gradients, but for a loss whose gradient would be written over
/// entries that it has yet to pick.
fn in_place(job: &Job) -> bool {
    job.pass != Pass::Forward && (job.op.kind().fused_in_place || job.pass == Pass::Backward)
}

/// Cross entropy that takes the same way in place as it does apart: its amounts are spread over the
/// row already.
fn same_way(job: &Job) -> bool {
    job.op.name() != "cross_entropy" || job.args.iter().any(|(role, _)| *role == Role::Weight)
}

#[test]
fn every_gradient_over_its_input() {
    let Some(gpu) = &gpu() else { return };
    for pass in [Pass::Backward, Pass::ForwardBackward] {
        let jobs = every_op(&[5, 9], DType::F32, Reduction::None, pass);
        for job in jobs.iter().filter(|job| in_place(job) && same_way(job)) {
            check_in(Where::InPlace, gpu, job, ODD);
        }
    }
    for job in every_op(&[5, 9], DType::Bf16, Reduction::None, Pass::Backward) {
        if same_way(&job) {
            check_in(Where::InPlace, gpu, &job, ODD);
        }
    }
}

#[test]
fn long_rows_over_their_input_on_every_team() {
    // Rows of several blocks for every member, and stretches for several teams.
    for Device { name, gpu } in devices() {
        println!("kernels: {name}");
        for (dtype, classes) in [(DType::F32, 2052), (DType::F16, 2049)] {
            let jobs = every_op(&[9, classes], dtype, Reduction::None, Pass::ForwardBackward);
            let wanted = ["cross_entropy", "softmax", "log_softmax", "mse"];
            let jobs = jobs.iter().filter(|job| wanted.contains(&job.op.name()));
            for job in jobs.filter(|job| same_way(job)) {
                check_in(Where::InPlace, &gpu, job, CONTIGUOUS);
            }
        }
    }
}

#[test]
fn plain_cross_entropy_over_its_input() {
    // It meets the target's logit on the way instead of looking it up: held to the promise, and
    // the same to the bit every time.
    for Device { name, gpu } in devices() {
        println!("kernels: {name}");
        let mut random = Random::new(21);
        for kind in Logits::ALL {
            for shape in [&[40, 33][..], &[3, 5001], &[2, 7, 5]] {
                let rows = Rows::random(&mut random, kind, shape).reduced(Reduction::Mean);
                let want = reference(&rows, Pass::ForwardBackward);
                let run = || {
                    let args = rows.args(Pass::ForwardBackward).in_place();
                    gpu.block_on(gpu.run(&*rows.op(), Pass::ForwardBackward, &args)).unwrap()
                };
                let got = run();
                if let Err(message) = judge(&rows, &got, &want) {
                    panic!("{message}\n{rows:#?}");
                }
                assert_eq!(bits(&run()), bits(&got));
            }
        }
    }
}

// ---- what is refused ----

fn buffer(gpu: &Gpu, bytes: u64, usage: BufferUsages) -> wgpu::Buffer {
    gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: bytes,
        usage,
        mapped_at_creation: false,
    })
}

fn f32(shape: &[usize]) -> Layout {
    Layout::new(shape, DType::F32)
}

fn classes(shape: &[usize]) -> Layout {
    Layout::new(shape, DType::I32)
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(result: wgloss::Result<T>, text: &str) {
    match result {
        Err(error) => assert_eq!(error.to_string(), text),
        Ok(value) => panic!("accepted {value:?}, wanted: {text}"),
    }
}

#[test]
fn layouts_that_no_buffer_has() {
    let Some(gpu) = &gpu() else { return };
    let wrap = |layout| Tensor::from_buffer(buffer(gpu, 64, BufferUsages::STORAGE), layout);
    let half = |shape: &[usize]| Layout::new(shape, DType::F16);

    // to the last element, and no further: padding behind the last row need not be there
    assert!(wrap(f32(&[4, 3]).with_row_stride(4).with_offset(1)).is_ok());
    let text = "buffer: expected at least 68 bytes for f32 [4, 3] from element 2, rows 4 apart, \
                got 64 bytes";
    assert_refused(wrap(f32(&[4, 3]).with_row_stride(4).with_offset(2)), text);
    // in whole words
    assert!(wrap(half(&[31]).with_offset(1)).is_ok());
    let text = "buffer: expected at least 68 bytes for f16 [32] from element 1, got 64 bytes";
    assert_refused(wrap(half(&[32]).with_offset(1)), text);

    let text = "buffer: expected a row stride of at least 3 elements, got 2 in [4, 3]";
    assert_refused(wrap(f32(&[4, 3]).with_row_stride(2)), text);
    let text = "buffer: expected a row stride only of at least two dimensions, got 2 in [4]";
    assert_refused(wrap(f32(&[4]).with_row_stride(2)), text);
    let most = isize::MAX as usize / 8;
    let text = format!(
        "buffer: expected offset and row stride within {most} elements, got 0 and {}",
        usize::MAX
    );
    assert_refused(wrap(f32(&[4, 3]).with_row_stride(usize::MAX)), &text);
    let text =
        format!("buffer: expected offset and row stride within {most} elements, got {most} and 3");
    assert_refused(wrap(f32(&[4, 3]).with_offset(most)), &text);
}

#[test]
fn tensors_without_elements_at_the_end_of_a_buffer() {
    let Some(gpu) = &gpu() else { return };
    // at a multiple of what bindings start at, so that one would have to begin behind the buffer
    let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
    let shared = buffer(gpu, 256, usage);
    let wrap = |layout| Tensor::from_buffer(shared.clone(), layout);
    let end = |layout: Layout| {
        let offset = 256 / layout.dtype().size();
        wrap(layout.with_offset(offset)).unwrap()
    };
    let text = "buffer: expected at least 260 bytes for f32 [0, 3] from element 65, got 256 bytes";
    assert_refused(wrap(f32(&[0, 3]).with_offset(65)), text);

    for reduction in [Reduction::None, Reduction::Mean, Reduction::Sum] {
        let rows = Args::new(end(f32(&[0, 3]))).target(end(classes(&[0])));
        let elements = Args::new(end(f32(&[0, 3]))).target(end(f32(&[0, 3])));
        let elements = elements.weight(end(f32(&[0, 3])));
        let ops: [(Box<dyn wgloss::Op>, _); 3] = [
            (Box::new(CrossEntropy::default().reduction(reduction)), rows.clone()),
            (Box::new(NllLoss::default().reduction(reduction)), rows),
            (Box::new(BceWithLogits::default().reduction(reduction)), elements),
        ];
        for (op, args) in ops {
            let pass = Pass::ForwardBackward;
            let plan = gpu.block_on(gpu.plan(&*op, pass, &args.layouts())).unwrap();
            let own = gpu.block_on(plan.allocate()).unwrap();
            let out = own.with(Role::Grad, end(f32(&[0, 3])));
            submit(&plan, gpu, &args, &out);
            let grad = gpu.block_on(gpu.read(out.grad().unwrap())).unwrap();
            assert_eq!(grad.shape(), [0, 3]);
            let loss = gpu.block_on(gpu.read(out.loss().unwrap())).unwrap().to_f32();
            match reduction {
                Reduction::None => assert!(loss.is_empty()),
                Reduction::Sum => assert_eq!(loss, [0.0]),
                _ => assert!(loss[0].is_nan()),
            }
        }
    }
    let out = gpu.block_on(gpu.forward(&Softmax::default(), &Args::new(end(f32(&[3, 0])))));
    assert_eq!(out.unwrap().output().unwrap().shape(), [3, 0]);
}

#[test]
fn layouts_that_a_plan_refuses() {
    let Some(gpu) = &gpu() else { return };
    let op = CrossEntropy::default().reduction(Reduction::None).keep_state(true);
    let pass = Pass::Backward;
    let args = || Args::new(f32(&[4, 3]).with_row_stride(5)).target(classes(&[4]));
    let plan = |args: Args<Layout>| gpu.block_on(gpu.plan(&op, pass, &args));
    assert!(plan(args()).is_ok());
    let text = "weight: expected a row stride only of at least two dimensions, got 2 in [3]";
    assert_refused(plan(args().weight(f32(&[3]).with_row_stride(2))), text);
    let text = "state: expected a contiguous layout, got row stride 8 in [4, 4]";
    assert_refused(plan(args().state(f32(&[4, 4]).with_row_stride(8))), text);
    let text = "state: expected an offset that is a multiple of 4 elements, got 6";
    assert_refused(plan(args().state(f32(&[4, 4]).with_offset(6))), text);
    let text = "target: expected a contiguous layout, got row stride 9 in [4, 2]";
    let positions = Args::new(f32(&[4, 3, 2])).target(classes(&[4, 2]).with_row_stride(9));
    assert_refused(plan(positions), text);

    // rows of a map along another dimension than the second
    let strided = Args::new(f32(&[4, 3, 2]).with_row_stride(7)).upstream(f32(&[4, 3, 2]));
    let map = |dim| gpu.block_on(gpu.plan(&Softmax::default().dim(dim), pass, &strided));
    assert!(map(1).is_ok());
    for dim in [0, 2] {
        let text = format!(
            "input: expected a row stride only for rows along dimension 1, got 7 for dim {dim} of \
             [4, 3, 2]"
        );
        assert_refused(map(dim), &text);
    }

    // results where the caller wants them
    let outputs = |grad| Output::default().with(Role::Grad, grad);
    let into = |outputs: &Output<Layout>| gpu.block_on(gpu.plan_into(&op, pass, &args(), outputs));
    assert!(into(&outputs(f32(&[4, 3]).with_row_stride(7).with_offset(3))).is_ok());
    let text = "grad: expected shape [4, 3], got [3, 4]";
    assert_refused(into(&outputs(f32(&[3, 4]))), text);
    let text = "grad: expected storage type f32, got f16";
    assert_refused(into(&outputs(Layout::new(&[4, 3], DType::F16))), text);
    let text = "grad: expected a row stride of at least 3 elements, got 2 in [4, 3]";
    assert_refused(into(&outputs(f32(&[4, 3]).with_row_stride(2))), text);
    assert_refused(into(&Output::default()), "grad: expected for this plan, got none");
    let forward = |state| {
        let outputs = Output::default().with(Role::Loss, f32(&[4])).with(Role::State, state);
        gpu.block_on(gpu.plan_into(&op, Pass::Forward, &args(), &outputs))
    };
    let text = "state: expected an offset that is a multiple of 4 elements, got 5";
    assert_refused(forward(f32(&[4, 4]).with_offset(5)), text);
    assert!(forward(f32(&[4, 4]).with_offset(8)).is_ok());
}

#[test]
fn results_of_a_plan_for_the_callers_rows() {
    // A plan's own tensors follow the layouts that it was given.
    let Some(gpu) = &gpu() else { return };
    let job = every_op(&[5, 9], DType::F16, Reduction::None, Pass::Backward).swap_remove(6);
    let (want, tensors) = (job.run_apart(gpu), gpu.block_on(gpu.upload_args(&job.host_args())));
    let tensors = tensors.unwrap();
    let grad = Layout::new(&[5, 9], DType::F16).with_row_stride(12).with_offset(7);
    let outputs = Output::default().with(Role::Grad, grad);
    let plan = gpu.block_on(gpu.plan_into(&*job.op, job.pass, &tensors.layouts(), &outputs));
    let plan = plan.unwrap();
    let out = gpu.block_on(plan.allocate()).unwrap();
    submit(&plan, gpu, &tensors, &out);
    assert_eq!(gpu.block_on(gpu.read(out.grad().unwrap())).unwrap(), want[0].1);
}

/// Mean squared error of `[4, 3]` in one buffer of 4 KiB, planned for these offsets.
struct InOneBuffer {
    buffer: wgpu::Buffer,
    plan: Plan,
}

impl InOneBuffer {
    const OFFSETS: [usize; 4] = [1, 100, 200, 300];

    fn new(gpu: &Gpu) -> Self {
        let [input, target, grad, _] = Self::OFFSETS.map(|o| f32(&[4, 3]).with_offset(o));
        let args = Args::new(input).target(target);
        let loss = f32(&[]).with_offset(Self::OFFSETS[3]);
        let outputs = Output::default().with(Role::Loss, loss).with(Role::Grad, grad);
        let op = Mse::default();
        let plan = gpu.plan_into(&op, Pass::ForwardBackward, &args, &outputs);
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
        InOneBuffer { buffer: buffer(gpu, 4096, usage), plan: gpu.block_on(plan).unwrap() }
    }

    /// Binds the plan to these offsets.
    fn bind(&self, [input, target, grad, loss]: [usize; 4]) -> wgloss::Result<()> {
        let tensor = |layout: Layout, offset| {
            Tensor::from_buffer(self.buffer.clone(), layout.with_offset(offset)).unwrap()
        };
        let args = Args::new(tensor(f32(&[4, 3]), input)).target(tensor(f32(&[4, 3]), target));
        let outputs = Output::default()
            .with(Role::Loss, tensor(f32(&[]), loss))
            .with(Role::Grad, tensor(f32(&[4, 3]), grad));
        self.plan.bind(&args, &outputs).map(|_| ())
    }
}

#[test]
fn offsets_other_than_planned() {
    let Some(gpu) = &gpu() else { return };
    let one = InOneBuffer::new(gpu);
    let [input, target, grad, loss] = InOneBuffer::OFFSETS;
    assert_eq!(one.bind([input, target, grad, loss]), Ok(()));
    // 64 numbers are 256 bytes
    assert_eq!(one.bind([input + 64 * 9, target + 64 * 9, grad + 64, loss - 64]), Ok(()));
    let text = "input: expected row stride 3 and an offset of 1 elements, up to multiples of 256 \
                bytes, got row stride 3 and offset 2";
    assert_refused(one.bind([input + 1, target, grad, loss]), text);
    let text = "grad: expected row stride 3 and an offset of 8 elements, up to multiples of 256 \
                bytes, got row stride 3 and offset 232";
    assert_refused(one.bind([input, target, grad + 32, loss]), text);
}

#[test]
fn results_that_overlap() {
    let Some(gpu) = &gpu() else { return };
    let args = Args::new(f32(&[4, 3])).target(f32(&[4, 3]));
    let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
    let shared = buffer(gpu, 4096, usage);
    // input at 0, target at 12; the rest as given, in elements
    let bind = |grad_at: usize, loss_at: usize| {
        let grad = f32(&[4, 3]).with_offset(grad_at);
        let loss = f32(&[4, 3]).with_offset(loss_at);
        let args = args.clone().target(f32(&[4, 3]).with_offset(12));
        let outputs = Output::default().with(Role::Loss, loss).with(Role::Grad, grad);
        let op = Mse::default().reduction(Reduction::None);
        let plan = gpu.block_on(gpu.plan_into(&op, Pass::ForwardBackward, &args, &outputs));
        let wrap = |layout: &Layout| Tensor::from_buffer(shared.clone(), layout.clone()).unwrap();
        let tensors = Args::new(wrap(args.input())).target(wrap(&f32(&[4, 3]).with_offset(12)));
        let outputs = outputs.iter().map(|(role, layout)| (role, wrap(layout))).collect();
        plan.unwrap().bind(&tensors, &outputs).map(|_| ())
    };
    assert_eq!(bind(24, 36), Ok(()));
    let text = "grad: expected memory apart from target, which is at bytes 48..96, \
                got bytes 92..140 of the same buffer";
    assert_refused(bind(23, 36), text);
    let text = "grad: expected memory apart from loss, which is at bytes 144..192, \
                got bytes 188..236 of the same buffer";
    assert_refused(bind(47, 36), text);
    let text = "loss: expected memory apart from input, which is at bytes 0..48, \
                got bytes 0..48 of the same buffer";
    assert_refused(bind(24, 0), text);
}

#[test]
fn halves_of_a_word_do_not_overlap() {
    let Some(gpu) = &gpu() else { return };
    let half = |offset| Layout::new(&[1, 3], DType::F16).with_offset(offset);
    let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
    let shared = buffer(gpu, 4096, usage);
    let wrap = |layout| Tensor::from_buffer(shared.clone(), layout).unwrap();
    let bind = |offset: usize| {
        let args = Args::new(half(0));
        let outputs = Output::default().with(Role::Output, half(offset));
        let plan = gpu.block_on(gpu.plan_into(&Sigmoid, Pass::Forward, &args, &outputs)).unwrap();
        let outputs = Output::default().with(Role::Output, wrap(half(offset)));
        plan.bind(&Args::new(wrap(half(0))), &outputs).map(|_| ())
    };
    assert_eq!(bind(3), Ok(()));
    let text = "output: expected memory apart from input, which is at bytes 0..6, \
                got bytes 4..10 of the same buffer";
    assert_refused(bind(2), text);
}

/// Random numbers at these places, in elements, of a buffer of 4 KiB; the rest is NaN.
fn numbers_in(gpu: &Gpu, places: &[(usize, &[f32])]) -> wgpu::Buffer {
    let mut all = vec![f32::NAN; 1024];
    for (place, numbers) in places {
        all[*place..place + numbers.len()].copy_from_slice(numbers);
    }
    let all = gpu.block_on(gpu.upload(&Array::from(&all))).unwrap();
    all.buffer().clone()
}

#[test]
fn a_state_in_a_buffer_with_another_argument() {
    let Some(gpu) = &gpu() else { return };
    let rows = Rows::random(&mut Random::new(22), Logits::Normal, &[4, 3]);
    let op = rows.cross_entropy().keep_state(true);
    let forward = gpu.block_on(gpu.forward(&op, &rows.forward_args())).unwrap();
    let state = forward.state().unwrap();
    let args = gpu.block_on(gpu.upload_args(&rows.args(Pass::Backward))).unwrap();
    let apart = args.clone().state(gpu.block_on(gpu.upload(state)).unwrap());

    let shared = numbers_in(gpu, &[(0, &rows.logits), (64, &state.to_f32())]);
    let tensor = |shape: &[usize], offset| {
        Tensor::from_buffer(shared.clone(), f32(shape).with_offset(offset)).unwrap()
    };
    let target = args.get(Role::Target).cloned().unwrap();
    let upstream = args.get(Role::Upstream).cloned().unwrap();
    let together = Args::new(tensor(&[4, 3], 0)).target(target).upstream(upstream);
    let together = together.state(tensor(&[4, 4], 64));
    let run = |args: &Args<Tensor>| {
        let out = gpu.block_on(gpu.backward(&op, args)).unwrap();
        bits_of(&gpu.block_on(gpu.read(out.grad().unwrap())).unwrap())
    };
    assert_eq!(run(&together), run(&apart));
}

#[test]
fn results_in_the_buffers_of_arguments() {
    // In buffers of their own, with the arguments, or with each other: the same bits, and nothing
    // else is written.
    let Some(gpu) = &gpu() else { return };
    let mut random = Random::new(23);
    let [input, target] = [(), ()].map(|()| random.normals(12, 2.0));
    let (op, pass) = (Mse::default().reduction(Reduction::None), Pass::ForwardBackward);
    let tensor = |buffer: &wgpu::Buffer, offset| {
        Tensor::from_buffer(buffer.clone(), f32(&[4, 3]).with_offset(offset)).unwrap()
    };
    let whole = |buffer: &wgpu::Buffer| {
        let tensor = Tensor::from_buffer(buffer.clone(), f32(&[1024])).unwrap();
        bits_of(&gpu.block_on(gpu.read(&tensor)).unwrap())
    };
    // results by the buffer that they are in: 0 is that of the arguments
    let run = |places: &[(Role, usize, usize)]| {
        let buffers = [numbers_in(gpu, &[(0, &input), (64, &target)]), numbers_in(gpu, &[])];
        let before = buffers.each_ref().map(whole);
        let args = Args::new(tensor(&buffers[0], 0)).target(tensor(&buffers[0], 64));
        let plan = gpu.block_on(gpu.plan(&op, pass, &args.layouts())).unwrap();
        let own = gpu.block_on(plan.allocate()).unwrap();
        let out = places.iter().fold(own, |out, &(role, buffer, offset)| {
            out.with(role, tensor(&buffers[buffer], offset))
        });
        submit(&plan, gpu, &args, &out);
        for (b, before) in before.iter().enumerate() {
            let mut got = whole(&buffers[b]);
            for &(_, _, offset) in places.iter().filter(|&&(_, buffer, _)| buffer == b) {
                got[offset..offset + 12].copy_from_slice(&before[offset..offset + 12]);
            }
            assert_eq!(got, *before, "{places:?}: buffer {b}");
        }
        bits(&read(gpu, &out))
    };
    let want = run(&[]);
    for places in [
        &[(Role::Loss, 0, 128)][..],
        &[(Role::Grad, 0, 128)],
        &[(Role::Loss, 0, 128), (Role::Grad, 0, 192)],
        &[(Role::Loss, 1, 128), (Role::Grad, 1, 192)],
        &[(Role::Loss, 0, 128), (Role::Grad, 1, 192)],
    ] {
        assert_eq!(run(places), want, "{places:?}");
    }
}

#[test]
fn buffers_shared_otherwise_than_said() {
    let Some(gpu) = &gpu() else { return };
    let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
    let shared = buffer(gpu, 4096, usage);
    let tensor =
        |offset| Tensor::from_buffer(shared.clone(), f32(&[4, 3]).with_offset(offset)).unwrap();
    let args = Args::new(tensor(0)).target(tensor(64));
    let (op, pass) = (Mse::default(), Pass::Backward);
    let plan = |args: &Args<Tensor>| gpu.block_on(gpu.plan(&op, pass, &args.layouts())).unwrap();
    let outputs = |grad| Output::default().with(Role::Grad, grad);
    let own = || gpu.block_on(plan(&args).allocate()).unwrap();

    // whatever shares a buffer, one plan serves
    assert!(plan(&args).bind(&args, &own()).is_ok());
    assert!(plan(&args).bind(&args, &outputs(tensor(128))).is_ok());
    let same = Args::new(tensor(0)).target(tensor(0));
    assert!(plan(&args).bind(&same, &outputs(tensor(128))).is_ok());
    // but where one lies over the other
    let text = "grad: expected memory apart from input, which is at bytes 0..48, \
                got bytes 0..48 of the same buffer";
    assert_refused(plan(&args).bind(&args, &outputs(tensor(0))), text);

    let over = args.clone().in_place();
    let none = Output::default();
    assert!(plan(&over).bind(&over, &none).is_ok());
    // the gradient may be named, as the input that it is
    assert!(plan(&over).bind(&over, &outputs(tensor(0))).is_ok());
    let text = "in_place: expected true, as planned, got false";
    assert_refused(plan(&over).bind(&args, &none), text);
    let text = "in_place: expected false, as planned, got true";
    assert_refused(plan(&args).bind(&over, &none), text);
    let text = "grad: expected the input itself, in place, got another tensor";
    assert_refused(plan(&over).bind(&over, &own()), text);
    assert_refused(plan(&over).bind(&over, &outputs(tensor(128))), text);
    // the target is read while the gradient is written
    let both = Args::new(tensor(0)).target(tensor(0)).in_place();
    let text = "grad: expected memory apart from target, which is at bytes 0..48, \
                got bytes 0..48 of the same buffer";
    assert_refused(plan(&both).bind(&both, &none), text);
    assert_refused(plan(&both).bind(&both, &outputs(tensor(0))), text);
    assert_eq!(gpu.block_on(plan(&over).allocate()).unwrap(), Output::default());
}

#[test]
fn in_place_only_where_nothing_is_read_too_late() {
    let Some(gpu) = &gpu() else { return };
    let rows = || Args::new(f32(&[4, 3])).target(classes(&[4])).in_place();
    let plan = |op: &dyn wgloss::Op, pass, args: &Args<Layout>| {
        gpu.block_on(gpu.plan(op, pass, args)).map(|_| ())
    };
    let text = "in_place: expected none for cross_entropy.forward, got one";
    assert_refused(plan(&CrossEntropy::default(), Pass::Forward, &rows()), text);
    let text = "in_place: expected none for softmax.forward, got one";
    let map = Args::new(f32(&[4, 3])).in_place();
    assert_refused(plan(&Softmax::default(), Pass::Forward, &map), text);
    let text = "in_place: expected none for nll_loss.forward_backward, got one";
    assert_refused(plan(&NllLoss::default(), Pass::ForwardBackward, &rows()), text);
    assert_eq!(plan(&NllLoss::default(), Pass::Backward, &rows()), Ok(()));
    let map = map.upstream(f32(&[4, 3]));
    assert_eq!(plan(&LogSoftmax::default(), Pass::ForwardBackward, &map), Ok(()));

    // the gradient is where the input is, and nowhere else
    let elsewhere = Output::default().with(Role::Grad, f32(&[4, 3]).with_offset(8));
    let text = "grad: expected row stride 3 and an offset of 0 elements, up to multiples of 256 \
                bytes, got row stride 3 and offset 8";
    let result = gpu.plan_into(&Sigmoid, Pass::Backward, &map, &elsewhere);
    assert_refused(gpu.block_on(result), text);
}

#[test]
fn results_in_buffers_that_nothing_can_be_copied_to() {
    // Each row's logsumexp is copied to where it belongs.
    let Some(gpu) = &gpu() else { return };
    let op = CrossEntropy::default().row_outputs(true);
    let args = Args::new(Array::new(&[0.5_f32; 12], &[4, 3]).unwrap());
    let args = args.target(Array::from(&[0, 1, 2, 0]));
    let args = gpu.block_on(gpu.upload_args(&args)).unwrap();
    let plan = gpu.block_on(gpu.plan(&op, Pass::Forward, &args.layouts())).unwrap();
    let out = gpu.block_on(plan.allocate()).unwrap();
    let fixed =
        |layout| Tensor::from_buffer(buffer(gpu, 64, BufferUsages::STORAGE), layout).unwrap();
    let bind = |out: &Output<Tensor>| plan.bind(&args, out).map(|_| ());
    assert_eq!(bind(&out), Ok(()));
    // a mean is written by a kernel
    assert_eq!(bind(&out.clone().with(Role::Loss, fixed(f32(&[])))), Ok(()));
    let usage = format!("{:?}", BufferUsages::STORAGE);
    for (role, layout) in [
        (Role::LogSumExp, f32(&[4])),
        (Role::Argmax, classes(&[4])),
        (Role::Correct, classes(&[4])),
        (Role::Entropy, f32(&[4])),
    ] {
        let text = format!("{role}: expected usage COPY_DST, got {usage}");
        assert_refused(bind(&out.clone().with(role, fixed(layout))), &text);
    }
}
