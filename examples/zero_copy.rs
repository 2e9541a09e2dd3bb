//! Trains a small network wholly on the GPU: its own matrix shader, wgloss's loss on its buffers,
//! one submit a step and nothing read back in between.
//!
//! ```sh
//! cargo run --release --example zero_copy
//! ```
//!
//! Points on three arms of a spiral are told apart by a layer of rectified units and a linear one.
//! The logits stay where the network's shader writes them, and the loss's gradient is written over
//! them (`Args::in_place`): wgloss allocates nothing of the size of the batch. It fails when too few
//! points are told apart.

use std::f32::consts::TAU;

use anyhow::{Context, Result, ensure};
use wgloss::{Args, Array, CrossEntropy, DType, Gpu, Layout, Pass, Tensor, wgpu};

const ARMS: usize = 3;
const POINTS: usize = 200 * ARMS;
/// x, y, and 1, whose weights are the biases.
const FEATURES: usize = 3;
const HIDDEN: usize = 64;

const STEPS: usize = 3000;
const RATE: f32 = 0.5;

/// One invocation an element of a product: `c[i, j] = sum over k of a[i, k] b[k, j]`, and what
/// becomes of it.
const MATRIX: &str = "
    struct Params {
        rows: u32, columns: u32, inner: u32, unused: u32,
        // from one row to the next, and from one column to the next: a transpose swaps them
        a: vec2<u32>, b: vec2<u32>,
    }
    @group(0) @binding(0) var<uniform> params: Params;
    @group(0) @binding(1) var<storage, read> a: array<f32>;
    @group(0) @binding(2) var<storage, read> b: array<f32>;
    @group(0) @binding(3) var<storage, read_write> c: array<f32>;

    // 0: stored. 1: rectified. 2: a gradient behind the rectified units that c holds. 3: a descent
    // of the weights in c.
    override THEN: u32;
    override RATE: f32;

    @compute @workgroup_size(8, 8)
    fn multiply(@builtin(global_invocation_id) at: vec3<u32>) {
        if at.x >= params.columns || at.y >= params.rows {
            return;
        }
        var sum = 0.0;
        for (var k = 0u; k < params.inner; k += 1u) {
            sum += a[at.y * params.a.x + k * params.a.y] * b[k * params.b.x + at.x * params.b.y];
        }
        let i = at.y * params.columns + at.x;
        switch THEN {
            case 0u: { c[i] = sum; }
            case 1u: { c[i] = max(sum, 0.0); }
            case 2u: { c[i] = select(0.0, sum, c[i] > 0.0); }
            default: { c[i] -= RATE * sum; }
        }
    }
";

#[derive(Clone, Copy)]
enum Then {
    Store = 0,
    Rectify = 1,
    Mask = 2,
    Descend = 3,
}

/// A matrix on the device, or its transpose.
#[derive(Clone)]
struct Matrix {
    buffer: wgpu::Buffer,
    rows: usize,
    columns: usize,
    strides: [usize; 2],
}

impl Matrix {
    fn new(gpu: &Gpu, rows: usize, columns: usize, values: &[f32]) -> Self {
        let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: (rows * columns * 4) as u64,
            usage: wgpu::BufferUsages::STORAGE
                | wgpu::BufferUsages::COPY_SRC
                | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
        gpu.queue().write_buffer(&buffer, 0, &bytes);
        Matrix { buffer, rows, columns, strides: [columns, 1] }
    }

    fn transposed(&self) -> Self {
        let [row, column] = self.strides;
        Matrix { rows: self.columns, columns: self.rows, strides: [column, row], ..self.clone() }
    }
}

/// A product, ready to be encoded.
struct Product {
    pipeline: wgpu::ComputePipeline,
    group: wgpu::BindGroup,
    workgroups: [u32; 2],
}

impl Product {
    fn new(gpu: &Gpu, a: &Matrix, b: &Matrix, c: &Matrix, then: Then) -> Self {
        let device = gpu.device();
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some("matrix"),
            source: wgpu::ShaderSource::Wgsl(MATRIX.into()),
        });
        let constants = [("THEN", f64::from(then as u8)), ("RATE", RATE.into())];
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some("matrix"),
            layout: None,
            module: &module,
            entry_point: Some("multiply"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &constants,
                ..Default::default()
            },
            cache: None,
        });
        let numbers = [[c.rows, c.columns], [a.columns, 0], a.strides, b.strides].concat();
        let bytes: Vec<u8> = numbers.iter().flat_map(|&n| (n as u32).to_ne_bytes()).collect();
        let params = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("matrix params"),
            size: bytes.len() as u64,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        gpu.queue().write_buffer(&params, 0, &bytes);
        let entries = [&params, &a.buffer, &b.buffer, &c.buffer];
        let entries: Vec<_> = entries
            .into_iter()
            .zip(0..)
            .map(|(buffer, binding)| wgpu::BindGroupEntry {
                binding,
                resource: buffer.as_entire_binding(),
            })
            .collect();
        let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("matrix"),
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        let workgroups = [c.columns, c.rows].map(|size| size.div_ceil(8) as u32);
        Product { pipeline, group, workgroups }
    }
}

fn encode(encoder: &mut wgpu::CommandEncoder, products: &[Product]) {
    let mut pass = encoder.begin_compute_pass(&Default::default());
    for product in products {
        pass.set_pipeline(&product.pipeline);
        pass.set_bind_group(0, &product.group, &[]);
        pass.dispatch_workgroups(product.workgroups[0], product.workgroups[1], 1);
    }
}

fn main() -> Result<()> {
    let gpu = Gpu::blocking()?;
    println!("device: {}", gpu.info().name);

    // Numbers that are the same every time, from -1 to 1.
    let mut seed = 1_u64;
    let mut random = move || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let (mut points, mut arms) = (Vec::new(), Vec::new());
    for i in 0..POINTS {
        let (arm, along) = (i % ARMS, (i / ARMS) as f32 / (POINTS / ARMS) as f32);
        let angle = (arm as f32 + 2.0 * along) * TAU / ARMS as f32 + 0.2 * random();
        points.extend([along * angle.sin(), along * angle.cos(), 1.0]);
        arms.push(arm as i32);
    }
    let x = Matrix::new(&gpu, POINTS, FEATURES, &points);
    let first: Vec<f32> = (0..FEATURES * HIDDEN).map(|_| random()).collect();
    let second: Vec<f32> = (0..HIDDEN * ARMS).map(|_| 0.1 * random()).collect();
    let w1 = Matrix::new(&gpu, FEATURES, HIDDEN, &first);
    let w2 = Matrix::new(&gpu, HIDDEN, ARMS, &second);
    let hidden = Matrix::new(&gpu, POINTS, HIDDEN, &[]);
    let logits = Matrix::new(&gpu, POINTS, ARMS, &[]);

    let forward = [
        Product::new(&gpu, &x, &w1, &hidden, Then::Rectify),
        Product::new(&gpu, &hidden, &w2, &logits, Then::Store),
    ];
    // here the logits hold the loss's gradient, and `slopes` a copy of the hidden units; weights
    // descend when no product needs them any more
    let slopes = Matrix::new(&gpu, POINTS, HIDDEN, &[]);
    let backward = [
        Product::new(&gpu, &logits, &w2.transposed(), &slopes, Then::Mask),
        Product::new(&gpu, &hidden.transposed(), &logits, &w2, Then::Descend),
        Product::new(&gpu, &x.transposed(), &slopes, &w1, Then::Descend),
    ];

    // the loss, on the network's own buffers
    let input =
        Tensor::from_buffer(logits.buffer.clone(), Layout::new(&[POINTS, ARMS], DType::F32))?;
    let target = gpu.block_on(gpu.upload(&Array::from(&arms)))?;
    let args = Args::new(input).target(target).in_place();
    let op = CrossEntropy::default().row_outputs(true);
    let plan = gpu.block_on(gpu.plan(&op, Pass::ForwardBackward, &args.layouts()))?;
    let output = gpu.block_on(plan.allocate())?;
    let loss = plan.bind(&args, &output)?;
    println!("memory of the loss's own: {} bytes", plan.workspace_bytes());

    let correct = output.rows()?.correct.context("targets are classes")?;
    let mut accuracy = 0.0;
    for step in 0..=STEPS {
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        encode(&mut encoder, &forward);
        loss.encode(&mut encoder);
        encoder.copy_buffer_to_buffer(&hidden.buffer, 0, &slopes.buffer, 0, None);
        encode(&mut encoder, &backward);
        gpu.queue().submit([encoder.finish()]);

        if step % 500 == 0 {
            let loss = gpu.block_on(gpu.read(output.loss()?))?.item()?;
            let right: f32 = gpu.block_on(gpu.read(correct))?.to_f32().iter().sum();
            accuracy = right / POINTS as f32;
            println!("step {step:4}: loss {loss:.4}, {:.1}% told apart", 100.0 * accuracy);
        }
    }
    ensure!(accuracy > 0.95, "expected more than 95% told apart, got {:.1}%", 100.0 * accuracy);
    Ok(())
}
