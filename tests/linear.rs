//! Linear cross entropy on the device: bits, memory, gradients added up over micro-batches.

use wgloss::internals::program;
use wgloss::wgpu;
use wgloss::{
    Args, Array, CrossEntropy, DType, Gpu, GpuOptions, Layout, LinearCrossEntropy, Op, Output,
    Pass, Reduction, Role, Team, Tensor, reference,
};
use wgloss_testing::call::read;
use wgloss_testing::compare::compare_part;
use wgloss_testing::devices::{gpu, on_every_device, open};
use wgloss_testing::random::Random;

/// Arguments of so many rows, numbers and classes, between -1 and 1.
struct Drawn {
    input: Vec<f32>,
    projection: Vec<f32>,
    bias: Vec<f32>,
    target: Vec<i32>,
    sizes: [usize; 3],
}

impl Drawn {
    fn new(seed: u64, sizes: [usize; 3]) -> Self {
        let [rows, dims, classes] = sizes;
        let mut random = Random::new(seed);
        let mut numbers = |count| random.uniforms(count, -1.0, 1.0);
        let (input, projection) = (numbers(rows * dims), numbers(classes * dims));
        let bias = numbers(classes);
        let target = (0..rows).map(|row| (row * 7919 % classes) as i32).collect();
        Drawn { input, projection, bias, target, sizes }
    }

    fn args(&self) -> Args<Array<'_>> {
        let [rows, dims, classes] = self.sizes;
        Args::new(Array::new(&self.input, &[rows, dims]).unwrap())
            .projection(Array::new(&self.projection, &[classes, dims]).unwrap())
            .bias(Array::from(&self.bias))
            .target(Array::from(&self.target))
    }
}

fn bits(output: &Output<Array<'static>>) -> Vec<(Role, Vec<u8>)> {
    output.iter().map(|(role, array)| (role, array.data().bytes().to_vec())).collect()
}

fn run(gpu: &Gpu, op: &dyn Op, args: &Args<Array<'_>>) -> Output<Array<'static>> {
    gpu.block_on(gpu.forward_backward(op, args)).unwrap()
}

#[test]
fn bits_are_the_same_on_every_run_in_blocks_of_any_size() {
    let Some(gpu) = &gpu() else { return };
    let drawn = Drawn::new(1, [300, 37, 150]);
    let whole = LinearCrossEntropy::new(CrossEntropy::default().row_outputs(true));
    let want = bits(&run(gpu, &whole, &drawn.args()));
    for _ in 0..20 {
        assert!(bits(&run(gpu, &whole, &drawn.args())) == want);
    }
    // blocks of 32 rows: fewer would be split among teams, which add them up otherwise
    for bytes in [40 << 10, 100 << 10] {
        let blocks = whole.clone().workspace_bytes(bytes);
        let dispatches = |op: &LinearCrossEntropy| {
            let layouts = drawn.args().layouts();
            gpu.block_on(gpu.plan(op, Pass::ForwardBackward, &layouts)).unwrap().kernels().count()
        };
        assert!(dispatches(&blocks) > dispatches(&whole), "{bytes} bytes are several blocks");
        for (got, want) in bits(&run(gpu, &blocks, &drawn.args())).iter().zip(&want) {
            // the losses of blocks are added up apart
            assert!(got == want || got.0 == Role::Loss, "{} in {bytes} bytes", got.0);
        }
    }
}

#[test]
fn bits_are_the_same_wherever_in_the_queue() {
    let Some(gpu) = &gpu() else { return };
    let op = LinearCrossEntropy::default();
    let batches: Vec<_> = (0..6).map(|seed| Drawn::new(seed, [40, 16, 70])).collect();
    let alone: Vec<_> = batches.iter().map(|batch| bits(&run(gpu, &op, &batch.args()))).collect();
    // all of them on their way at once, in either order
    for order in [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]] {
        let calls = order.map(|i| {
            let args = gpu.block_on(gpu.upload_args(&batches[i].args())).unwrap();
            (i, gpu.block_on(gpu.forward_backward(&op, &args)).unwrap())
        });
        for (i, output) in calls {
            assert!(bits(&read(gpu, &output)) == alone[i], "batch {i}");
        }
    }
}

#[test]
fn its_products_can_be_run_apart() {
    let Some(gpu) = &gpu() else { return };
    // whole vec4s, which products read in place
    let sizes @ [rows, dims, _] = [6, 8, 9];
    let drawn = Drawn::new(3, sizes);
    let args = gpu.block_on(gpu.upload_args(&drawn.args())).unwrap();
    let op = LinearCrossEntropy::default();
    let plan = gpu.block_on(gpu.plan(&op, Pass::ForwardBackward, &args.layouts())).unwrap();
    let output = gpu.block_on(plan.allocate()).unwrap();
    let bound = plan.bind(&args, &output).unwrap();
    let run = |bound: &wgloss::BoundPlan| {
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        bound.encode(&mut encoder);
        gpu.queue().submit([encoder.finish()]);
        read(gpu, &output)
    };
    let products = run(&bound.only(|label| label.starts_with("product.")));
    // without the loss's kernel, the logits themselves stand in for their gradient
    let Drawn { input, projection, bias, .. } = &drawn;
    let logit = |row: usize, class: usize| {
        let terms = 0..dims;
        let sum = terms.map(|d| input[row * dims + d] * projection[class * dims + d]).sum::<f32>();
        sum + bias[class]
    };
    let got = products.get(Role::GradProjection).unwrap().to_f32();
    for (i, got) in got.iter().enumerate() {
        let (class, d) = (i / dims, i % dims);
        let want: f32 = (0..rows).map(|row| logit(row, class) * input[row * dims + d]).sum();
        assert!((got - want).abs() < 1e-4, "{got} in place of {want}, class {class}, {d}");
    }
    assert_eq!(products.loss().unwrap().item().unwrap(), 0.0);
    assert!(products.get(Role::GradBias).unwrap().to_f32().iter().all(|&sum| sum == 0.0));
    assert!(bits(&run(&bound.only(|_| true))) == bits(&self::run(gpu, &op, &drawn.args())));
}

#[test]
fn a_plan_holds_its_workspace_and_no_logits() {
    let Some(gpu) = open(&GpuOptions::default()) else { return };
    let [rows, dims, classes] = [4096, 16, 1000];
    let drawn = Drawn::new(2, [rows, dims, classes]);
    let workspace = 1 << 20;
    let op = LinearCrossEntropy::default().workspace_bytes(workspace);
    let memory = || gpu.device().get_internal_counters().hal.buffer_memory.read();
    let args = gpu.block_on(gpu.upload_args(&drawn.args())).unwrap();
    gpu.trim();
    let before = memory();
    let plan = gpu.block_on(gpu.plan(&op, Pass::ForwardBackward, &args.layouts())).unwrap();
    let stated = plan.workspace_bytes();
    // losses of rows, partial sums and parameters come to the blocks
    let others = 4 * rows as u64 + (64 << 10);
    assert!(stated <= workspace as u64 + others, "{stated} bytes");
    assert!((memory() - before) as u64 <= stated + (64 << 10), "{} bytes", memory() - before);
    // all logits would be 16 MB
    let results = gpu.block_on(plan.allocate()).unwrap();
    plan.bind(&args, &results).unwrap();
    let results: u64 = results.iter().map(|(_, tensor)| tensor.layout().bytes()).sum();
    let held = (memory() - before) as u64;
    assert!(held <= workspace as u64 + others + results + (64 << 10), "{held} bytes");
}

#[test]
fn gradients_of_micro_batches_are_added_where_they_are() {
    let Some(gpu) = &gpu() else { return };
    let drawn = Drawn::new(3, [60, 9, 21]);
    let [_, dims, classes] = drawn.sizes;
    let op = LinearCrossEntropy::new(CrossEntropy::default().reduction(Reduction::Sum));
    let whole = run(gpu, &op, &drawn.args());
    let upload = |array: &Array<'_>| gpu.block_on(gpu.upload(array)).unwrap();
    let zeros = |shape: &[usize]| {
        let count = shape.iter().product();
        upload(&Array::from_vec(vec![0.0_f32; count], shape).unwrap())
    };
    let (grad_projection, grad_bias) = (zeros(&[classes, dims]), zeros(&[classes]));
    for part in [0..32, 32..60] {
        let input = &drawn.input[part.start * dims..part.end * dims];
        let args = Args::new(upload(&Array::new(input, &[part.len(), dims]).unwrap()))
            .projection(upload(drawn.args().get(Role::Projection).unwrap()))
            .bias(upload(drawn.args().get(Role::Bias).unwrap()))
            .target(upload(&Array::from(&drawn.target[part])))
            .grad_projection(grad_projection.clone())
            .grad_bias(grad_bias.clone());
        let out = gpu.block_on(gpu.forward_backward(&op, &args)).unwrap();
        assert_eq!(out.grad_projection().unwrap(), &grad_projection);
        assert_eq!(out.grad_bias().unwrap(), &grad_bias);
    }
    let values = |tensor: &Tensor| gpu.block_on(gpu.read(tensor)).unwrap().to_f32();
    // sums go on from what is there, term by term
    assert_eq!(values(&grad_projection), whole.grad_projection().unwrap().to_f32());
    assert_eq!(values(&grad_bias), whole.grad_bias().unwrap().to_f32());
}

#[test]
fn a_sum_lies_where_what_it_is_added_to_does() {
    let Some(gpu) = &gpu() else { return };
    let drawn = Drawn::new(4, [3, 4, 5]);
    let args = gpu.block_on(gpu.upload_args(&drawn.args())).unwrap();
    let zeros = Array::from_vec(vec![0.0_f32; 20], &[5, 4]).unwrap();
    let upload = || gpu.block_on(gpu.upload(&zeros)).unwrap();
    let args = args.grad_projection(upload());
    let op = LinearCrossEntropy::default().freeze_input(true).freeze_bias(true);
    let plan = gpu.block_on(gpu.plan(&op, Pass::Backward, &args.layouts())).unwrap();
    let elsewhere = Output::default().with_status(gpu.block_on(gpu.status()).unwrap());
    assert!(plan.bind(&args, &elsewhere).is_ok());
    let error = plan.bind(&args, &elsewhere.with(Role::GradProjection, upload())).unwrap_err();
    let text = "grad_projection: expected the argument that it is added to, got another tensor";
    assert_eq!(error.to_string(), text);
}

/// More rows than dispatches have workgroups, and than f32 counts in steps of 1/16.
#[test]
fn a_million_rows() {
    let Some(gpu) = &gpu() else { return };
    let [rows, dims, classes] = [1 << 20, 4, 9];
    let drawn = Drawn::new(5, [rows, dims, classes]);
    let op = LinearCrossEntropy::default().freeze_input(true).workspace_bytes(4 << 20);
    let out = run(gpu, &op, &drawn.args());
    // straight from the definition, since the reference keeps all logits
    let (mut loss, mut grad_bias) = (0.0, vec![0.0; classes]);
    let mut logits = vec![0.0; classes];
    for (input, &target) in drawn.input.chunks(dims).zip(&drawn.target) {
        let projected = drawn.projection.chunks(dims).zip(&drawn.bias);
        for (logit, (weights, &bias)) in logits.iter_mut().zip(projected) {
            let terms = input.iter().zip(weights).map(|(&x, &w)| f64::from(x) * f64::from(w));
            *logit = f64::from(bias) + terms.sum::<f64>();
        }
        let denominator: f64 = logits.iter().map(|z| z.exp()).sum();
        loss += (denominator.ln() - logits[target as usize]) / rows as f64;
        for (class, (grad, z)) in grad_bias.iter_mut().zip(&logits).enumerate() {
            let hit = f64::from(u8::from(class == target as usize));
            *grad += (z.exp() / denominator - hit) / rows as f64;
        }
    }
    let got = f64::from(out.loss().unwrap().item().unwrap());
    assert!((got - loss).abs() <= 4e-6 * loss, "{got}, {loss}");
    for (got, want) in out.grad_bias().unwrap().to_f32().into_iter().zip(grad_bias) {
        // a million roundings, of which most cancel
        assert!((f64::from(got) - want).abs() <= 1e-5, "{got}, {want}");
    }
}

/// The head of a large language model: its logits would be 2.1 GB. Minutes on a software device.
#[test]
#[ignore = "takes minutes"]
fn a_vocabulary_of_128256_in_64_mib() {
    let Some(gpu) = open(&GpuOptions::default()) else { return };
    let sizes = [4096, 256, 128_256];
    let drawn = Drawn::new(6, sizes);
    let op = LinearCrossEntropy::default().workspace_bytes(64 << 20);
    let args = gpu.block_on(gpu.upload_args(&drawn.args())).unwrap();
    // the staging buffers of the upload are no part of a step
    gpu.device().poll(wgpu::PollType::wait_indefinitely()).unwrap();
    gpu.trim();
    let plan = gpu.block_on(gpu.plan(&op, Pass::ForwardBackward, &args.layouts())).unwrap();
    assert!(plan.workspace_bytes() <= 65 << 20, "{}", plan.workspace_bytes());
    drop(plan); // the call has one of its own
    let start = std::time::Instant::now();
    let out = gpu.block_on(gpu.forward_backward(&op, &args)).unwrap();
    let loss = gpu.block_on(gpu.read(out.loss().unwrap())).unwrap().item().unwrap();
    let memory = gpu.device().get_internal_counters().hal.buffer_memory.read();
    let others: u64 =
        args.iter().chain(out.iter()).map(|(_, tensor)| tensor.layout().bytes()).sum();
    println!(
        "{:.1?}, {memory} bytes of buffers, {others} of arguments and results",
        start.elapsed()
    );
    // a loss near ln V for numbers without a meaning, and the very loss of a few rows
    assert!((11.0..50.0).contains(&loss), "{loss}");
    assert!(memory as u64 <= others + (70 << 20), "{memory} bytes");
    let few = Drawn {
        target: drawn.target[..2].to_vec(),
        input: drawn.input[..512].to_vec(),
        sizes: [2, 256, 128_256],
        ..drawn
    };
    let few_out = run(&gpu, &op, &few.args());
    let want = reference::run(&op, Pass::Forward, &few.args()).unwrap();
    let (got, want) = (few_out.loss().unwrap().item().unwrap(), want.loss().unwrap().values[0]);
    assert!((f64::from(got) - want).abs() <= 1e-5 * want, "{got}, {want}");
}

#[test]
fn bindings_are_never_larger_than_a_device_takes() {
    let profile = wgloss_testing::kernels::devices().remove(0);
    let op = LinearCrossEntropy::default();
    // 1.05 GB of projection; hidden states that are wider than the logits
    for (sizes, dtype) in [([8192, 4096, 128_256], DType::Bf16), ([8192, 65_536, 10], DType::F32)] {
        let [rows, dims, classes] = sizes;
        let args = Args::new(Layout::new(&[rows, dims], dtype))
            .projection(Layout::new(&[classes, dims], dtype))
            .target(Layout::new(&[rows], DType::I32));
        for pass in [Pass::Forward, Pass::Backward, Pass::ForwardBackward] {
            let outputs = op.outputs(pass, &args).unwrap();
            let program = program(&op, pass, &args, &outputs, &profile).unwrap();
            let largest = program.steps().flat_map(|step| &step.bindings).map(|b| b.bytes).max();
            assert!(largest.unwrap() <= profile.limits.max_binding, "{sizes:?}");
            let scratch = program.scratch_layouts().iter();
            let workspace: u64 = scratch.map(|layout| layout.bytes()).sum();
            assert!(workspace <= (256 << 20) + (1 << 20), "{sizes:?}: {workspace}");
        }
    }
}

#[test]
fn forward_keeps_to_the_least_workspace() {
    // classes that fit in part, or that end within a tile
    for (dims, classes, dtype) in [(8, 100, DType::F16), (4, 63, DType::F32), (8, 50, DType::F32)] {
        let args = Args::new(Layout::new(&[20, dims], dtype))
            .projection(Layout::new(&[classes, dims], dtype))
            .target(Layout::new(&[20], DType::I32));
        let least = (4 * classes).next_multiple_of(16) + 6 * 4 * dims;
        for workspace in [least, 2 * least, 5 * least] {
            let op = LinearCrossEntropy::default().workspace_bytes(workspace as i64);
            for profile in wgloss_testing::kernels::devices() {
                let outputs = op.outputs(Pass::Forward, &args).unwrap();
                let program = program(&op, Pass::Forward, &args, &outputs, &profile).unwrap();
                let scratch = program.scratch_layouts().iter().map(|layout| layout.bytes());
                // and the losses of rows
                let bound = (workspace + 20 * 4) as u64;
                assert!(scratch.sum::<u64>() <= bound, "{dims} {classes} {workspace}");
            }
        }
    }
}

/// Tiles of the product tell of their rows what losses, row outputs and states need: with several dispatches of
/// classes, the last tile short, and rows that are ignored.
#[test]
fn forward_alone_stores_no_logits() {
    let [rows, dims, classes] = [70, 2048, 700];
    let mut drawn = Drawn::new(9, [rows, dims, classes]);
    drawn.target[3] = -100;
    let weight = Random::new(10).eighths(classes);
    let plain = CrossEntropy::default().reduction(Reduction::None);
    let options = [
        plain.clone(),
        plain.clone().row_outputs(true).keep_state(true).logit_scale(0.1),
        plain.label_smoothing(0.1).z_loss(0.01).softcap(20.0),
    ];
    for loss in options {
        let op = LinearCrossEntropy::new(loss.clone());
        let args = drawn.args().weight(Array::from(&weight));
        let want = reference::run(&op, Pass::ForwardBackward, &args).unwrap();
        on_every_device(|gpu| {
            let layouts = args.layouts();
            let plan = gpu.block_on(gpu.plan(&op, Pass::Forward, &layouts)).unwrap();
            let tiles = plan.kernels().filter(|label| label.contains("nt.partials")).count();
            if tiles == 0 {
                // the tiles of an invocation are too small to tell of
                assert!(plan.kernels().any(|label| label == "product.nt.invocation"));
            } else {
                assert!(plan.workspace_bytes() < (rows * classes * 4 / 3) as u64);
            }
            let mut out = gpu.block_on(gpu.forward(&op, &args)).unwrap();
            if let Some(state) = out.take(Role::State) {
                let args = args.clone().state(state);
                let backward = gpu.block_on(gpu.backward(&op, &args)).unwrap();
                out = backward.into_iter().chain(out).collect();
            }
            for (role, got) in out.iter() {
                let judged = compare_part(role, got, want.get(role).unwrap(), op.promise(role));
                assert!(judged.is_ok(), "{role}: {judged:?}\n{loss:?}");
            }
        });
    }
}

/// Rows of five numbers that lie eight apart, where the buffer ends with the last number: no vec4 of that row
/// is whole.
#[test]
fn hidden_states_at_the_end_of_a_buffer() {
    let Some(gpu) = &gpu() else { return };
    let drawn = Drawn::new(7, [3, 5, 6]);
    let want = run(gpu, &LinearCrossEntropy::default(), &drawn.args());
    let args = gpu.block_on(gpu.upload_args(&drawn.args())).unwrap();
    let numbers: Vec<f32> =
        drawn.input.chunks(5).flat_map(|row| [row, &[f32::NAN; 3]].concat()).collect();
    let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 21 * 4,
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    let bytes: Vec<u8> = numbers[..21].iter().flat_map(|x| x.to_ne_bytes()).collect();
    gpu.queue().write_buffer(&buffer, 0, &bytes);
    let layout = Layout::new(&[3, 5], DType::F32).with_row_stride(8);
    let mut apart = Args::new(Tensor::from_buffer(buffer, layout).unwrap());
    for (role, tensor) in args.iter() {
        apart = match role {
            Role::Projection => apart.projection(tensor.clone()),
            Role::Bias => apart.bias(tensor.clone()),
            Role::Target => apart.target(tensor.clone()),
            _ => apart,
        };
    }
    let out = gpu.block_on(gpu.forward_backward(&LinearCrossEntropy::default(), &apart)).unwrap();
    assert!(bits(&read(gpu, &out)) == bits(&want));
}

/// More terms than a software driver's loops may take in one dispatch: of the input's gradient, and of logits.
#[test]
fn terms_by_the_ten_thousands_on_every_team() {
    let forced = [Team::Invocation, Team::Subgroup, Team::Workgroup];
    let forced = forced.map(|team| GpuOptions::default().team(team));
    for sizes in [[3, 2, 70_001], [3, 70_001, 2]] {
        let drawn = Drawn::new(8, sizes);
        let op = LinearCrossEntropy::default();
        let want = reference::run(&op, Pass::ForwardBackward, &drawn.args()).unwrap();
        for options in [GpuOptions::default()].iter().chain(&forced) {
            let Some(gpu) = open(options) else { return };
            let got = run(&gpu, &op, &drawn.args());
            for (role, want) in want.iter() {
                let promise = op.promise(role).scaled(1.0 / 3.0);
                let got = got.get(role).unwrap().to_f32();
                let judged = reference::compare(&got, want, promise);
                assert!(judged.is_ok(), "{options:?} {sizes:?} {role}: {judged:?}");
            }
        }
    }
}
