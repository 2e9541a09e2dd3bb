//! Tensors larger than a binding, along any dimension; and what becomes of padding.

use wgloss::wgpu;
use wgloss::{
    Args, Array, CrossEntropy, DType, Error, Gpu, GpuOptions, Layout, LogSoftmax, NllLoss, Op,
    Output, Pass, Reduction, Role, Softmax, Tensor, adapters,
};
use wgloss_testing::call::bits_of;
use wgloss_testing::devices::{gpu, on_every_device};
use wgloss_testing::random::Random;

/// A device that binds this many bytes at most.
fn small_bindings(bytes: u64) -> Option<Gpu> {
    gpu()?;
    let adapter = pollster::block_on(adapters()).remove(0);
    let limits =
        wgpu::Limits { max_storage_buffer_binding_size: bytes, ..wgloss::useful_limits(&adapter) };
    let descriptor = wgpu::DeviceDescriptor {
        required_features: wgloss::useful_features(&adapter),
        required_limits: limits,
        ..Default::default()
    };
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).unwrap();
    Some(Gpu::blocking_from_device(device, queue, &GpuOptions::default()).unwrap())
}

/// Holds what a device with small bindings computes to what one without computes, to the bit.
#[track_caller]
fn expect_same(small: &Gpu, op: &dyn Op, pass: Pass, args: &Args<Array<'_>>) {
    let large = gpu().unwrap();
    let [got, want] = [small, &large].map(|gpu| gpu.block_on(gpu.run(op, pass, args)).unwrap());
    for (role, want) in want.iter() {
        let got = got.get(role).unwrap();
        assert_eq!(bits_of(got), bits_of(want), "{op:?} {pass:?} {role}");
    }
}

/// An image of a few classes is larger than a binding, though each of its rows is short.
#[test]
fn rows_are_split_along_positions_where_an_image_does_not_fit_a_binding() {
    let Some(small) = small_bindings(1 << 16) else { return };
    // 19 classes of 48 x 64 positions: 228 KiB an image in f32, 114 in 16 bits
    let shape = [2, 19, 48, 64];
    let (count, rows) = (2 * 19 * 48 * 64, 2 * 48 * 64);
    let mut random = Random::new(19);
    let fused = Pass::ForwardBackward;
    for dtype in [DType::F32, DType::F16] {
        let stored = |values: Vec<f32>, shape: &[usize]| {
            Array::from_vec(values, shape).unwrap().to_dtype(dtype).unwrap()
        };
        let input = stored(random.normals(count, 3.0), &shape);
        let target = random.targets(rows, 19, -100, 0.1);
        let target = Array::from_vec(target, &[2, 48, 64]).unwrap();
        let weight = Array::from_vec(random.eighths(19), &[19]).unwrap();
        let args = Args::new(input.clone()).target(target).weight(weight);
        let none = CrossEntropy::default().reduction(Reduction::None);
        let upstream = stored(random.normals(rows, 1.0), &[2, 48, 64]);
        expect_same(&small, &none.row_outputs(true), fused, &args.clone().upstream(upstream));
        if dtype == DType::F16 {
            continue;
        }
        let mean = CrossEntropy::default().keep_state(true).label_smoothing(0.1);
        expect_same(&small, &mean, Pass::Forward, &args);
        expect_same(&small, &CrossEntropy::default(), Pass::Backward, &args);
        expect_same(&small, &NllLoss::default(), fused, &args);
        let probabilities = stored(random.uniforms(count, 0.0, 1.0), &shape);
        let args = Args::new(input.clone()).target(probabilities);
        expect_same(&small, &CrossEntropy::default(), fused, &args);
        let args = Args::new(input).upstream(stored(random.normals(count, 1.0), &shape));
        expect_same(&small, &Softmax::default().dim(1), fused, &args);
        expect_same(&small, &LogSoftmax::default().dim(1), Pass::Backward, &args);
    }
}

/// Copies count in words of four bytes: 16-bit classes at odd places are refused, by name.
#[test]
fn halves_at_odd_places_of_such_an_image_are_refused() {
    let Some(small) = small_bindings(1 << 16) else { return };
    let layout = Layout::new(&[1, 19, 47 * 63], DType::F16);
    let op = Softmax::default().dim(1);
    let plan = small.block_on(small.plan(&op, Pass::Forward, &Args::new(layout)));
    assert!(matches!(plan, Err(Error::TooLarge { argument: "one row of input", .. })), "{plan:?}");
}

/// Padded logits in place: without the setting the padding is left alone, with it zeros are there,
/// behind the last row too, and nowhere else.
#[test]
fn padding_is_left_alone_or_zeroed() {
    on_every_device(|gpu| {
        for (dtype, padding) in
            [(DType::F32, 3), (DType::F16, 3), (DType::Bf16, 2), (DType::F32, 1)]
        {
            let (rows, classes) = (5, 9);
            let stride = classes + padding;
            let mut random = Random::new(9);
            // one element before the first row, and two behind the last one's padding
            let all = 1 + rows * stride + 2;
            let numbers = Array::from_vec(random.normals(all, 2.0), &[all]).unwrap();
            let numbers = numbers.to_dtype(dtype).unwrap();
            let target = Array::from_vec(random.targets(rows, classes, -100, 0.0), &[rows]);
            let target = target.unwrap();
            let op = CrossEntropy::default();
            let run = |zero_padding: bool| {
                let [buffer, target] =
                    [&numbers, &target].map(|array| gpu.block_on(gpu.upload(array)).unwrap());
                let layout = Layout::new(&[rows, classes], dtype);
                let layout = layout.with_offset(1).with_row_stride(stride);
                let logits = Tensor::from_buffer(buffer.buffer().clone(), layout).unwrap();
                let mut args = Args::new(logits).target(target).in_place();
                if zero_padding {
                    args = args.zero_padding();
                }
                let pass = Pass::ForwardBackward;
                gpu.block_on(gpu.run(&op, pass, &args)).unwrap();
                gpu.block_on(gpu.read(&buffer)).unwrap().to_f32()
            };
            let (kept, zeroed, before) = (run(false), run(true), numbers.to_f32());
            for i in 0..all {
                let column = (i + stride - 1) % stride;
                let is_padding = i > 0 && i <= rows * stride && column >= classes;
                let is_outside = i == 0 || i > rows * stride;
                if is_padding {
                    assert_eq!((kept[i], zeroed[i]), (before[i], 0.0), "{dtype} {i}");
                } else {
                    assert_eq!(kept[i].to_bits(), zeroed[i].to_bits(), "{dtype} {i}");
                }
                assert!(!is_outside || kept[i] == before[i], "{dtype} {i}");
            }
        }
    });
}

/// The zeros behind the last row need room.
#[test]
fn zeros_beyond_the_buffer_are_refused() {
    let Some(gpu) = &gpu() else { return };
    let target = gpu.block_on(gpu.upload(&Array::from(&[0, 1]))).unwrap();
    // 16 bytes a row: 11 floats end in the third word of 16 bytes
    let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 4 * (6 + 5),
        usage: wgpu::BufferUsages::STORAGE,
        mapped_at_creation: false,
    });
    let layout = Layout::new(&[2, 5], DType::F32).with_row_stride(6);
    let logits = Tensor::from_buffer(buffer, layout).unwrap();
    let args = Args::new(logits).target(target).in_place().zero_padding();
    let op = CrossEntropy::default();
    let result = gpu.block_on(gpu.run(&op, Pass::Backward, &args));
    assert!(matches!(result, Err(Error::Value { argument: "grad", .. })), "{result:?}");
    let forward = gpu.block_on(gpu.run(&op, Pass::Forward, &args));
    assert!(matches!(forward, Err(Error::Unexpected { .. })), "{forward:?}");
}

/// Gradients of their own are padded as the caller likes, and zeroed too.
#[test]
fn padding_of_a_gradient_of_its_own_is_zeroed() {
    let Some(gpu) = &gpu() else { return };
    let logits = Array::new(&[1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3]).unwrap();
    let args = Args::new(logits).target(Array::from(&[0, 1]));
    let args = gpu.block_on(gpu.upload_args(&args)).unwrap().zero_padding();
    let padded = Layout::new(&[2, 3], DType::F32).with_row_stride(5);
    let outputs: Output<Layout> = [(Role::Grad, padded)].into_iter().collect();
    let op = CrossEntropy::default();
    let layouts = args.layouts();
    let plan = gpu.block_on(gpu.plan_into(&op, Pass::Backward, &layouts, &outputs)).unwrap();
    let output = gpu.block_on(plan.allocate()).unwrap();
    let grad = output.grad().unwrap();
    let ones = vec![1.0_f32; 10];
    gpu.queue().write_buffer(grad.buffer(), 0, bytemuck::cast_slice(&ones));
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    plan.bind(&args, &output).unwrap().encode(&mut encoder);
    gpu.queue().submit([encoder.finish()]);
    let whole = Tensor::from_buffer(grad.buffer().clone(), Layout::new(&[10], DType::F32)).unwrap();
    let got = gpu.block_on(gpu.read(&whole)).unwrap().to_f32();
    assert_eq!([got[3], got[4], got[8], got[9]], [0.0; 4]);
    assert!(got[..3].iter().chain(&got[5..8]).all(|g| *g != 0.0 && *g != 1.0), "{got:?}");
}

/// What lies in the last row's padding would be overwritten with zeros.
#[test]
fn padding_that_is_zeroed_overlaps_nothing() {
    let Some(gpu) = &gpu() else { return };
    let buffer = gpu.device().create_buffer(&wgloss::wgpu::BufferDescriptor {
        label: None,
        size: 40,
        usage: wgloss::wgpu::BufferUsages::STORAGE,
        mapped_at_creation: false,
    });
    let of = |layout: Layout| Tensor::from_buffer(buffer.clone(), layout).unwrap();
    // two rows of three at 0 and 5: the padding of the last is at 8 and 9, where the classes are
    let logits = of(Layout::new(&[2, 3], DType::F32).with_row_stride(5));
    let target = of(Layout::new(&[2], DType::I32).with_offset(8));
    let args = Args::new(logits).target(target).in_place();
    let bind = |args: &Args<Tensor>| {
        let op = CrossEntropy::default();
        let plan = gpu.block_on(gpu.plan(&op, Pass::Backward, &args.layouts())).unwrap();
        plan.bind(args, &Output::default()).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(bind(&args), Ok(()));
    let text = "grad: expected memory apart from target, which is at bytes 32..40, \
                got bytes 0..40 of the same buffer";
    assert_eq!(bind(&args.zero_padding()), Err(text.into()));
}

/// Pieces of one tensor share their kernel.
#[test]
fn a_kernel_of_several_dispatches_is_compiled_once() {
    let Some(small) = small_bindings(1 << 16) else { return };
    let pipelines = || small.device().get_internal_counters().hal.compute_pipelines.read() as usize;
    let before = pipelines();
    let args = Args::new(Layout::new(&[200, 1000], DType::F32));
    let plan = small.block_on(small.plan(&Softmax::default(), Pass::Forward, &args)).unwrap();
    assert!(plan.kernels().count() > 10, "{:?}", plan.kernels().collect::<Vec<_>>());
    assert_eq!(pipelines() - before, 1);
}
