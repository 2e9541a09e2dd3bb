//! Measures what host arrays cost on their way: the host door's bytes a second beside those of a
//! plain `write_buffer` and a plain map of the same bytes, in the same run.
//!
//! ```sh
//! cargo run --locked --release --example transfer  # or with sizes in MB: ... -- 1 16 64
//! ```
//!
//! Uploads go to a new buffer each, as an uploaded tensor is the caller's. Otherwise the plain
//! contender keeps its buffers from one round to the next, which is the best that it can do: on
//! software devices most of a first use goes into the system's zeroing of pages. All of them run in
//! turn, round after round; medians are printed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use wgloss::{Args, Array, Gpu, Pass, Sigmoid, wgpu};
use wgloss_testing::timer::Timer;

const ROUNDS: usize = 15;
const MEGABYTE: usize = 1_000_000;

fn main() -> Result<()> {
    let sizes: Vec<usize> =
        std::env::args().skip(1).map(|size| size.parse()).collect::<Result<_, _>>()?;
    let sizes = if sizes.is_empty() { vec![1, 16, 64] } else { sizes };
    let gpu = Gpu::blocking()?;
    println!("{}, {} {}", gpu.info().name, gpu.info().driver, gpu.info().driver_info);
    println!("GB/s; medians of {ROUNDS}; in brackets the share of the plain transfer's");
    println!("{:>6}  {:^24}  {:^24}  {:^24}", "", "upload", "readback", "call less kernel");
    println!("{:>6}{}", "MB", format!("  {:>6} {:>8} {:>8}", "plain", "wgloss", "").repeat(3));
    for size in sizes {
        let mut line = format!("{size:>6}");
        for Pair { plain, ours } in measure(&gpu, size * MEGABYTE / 4)? {
            let share = format!("({:.0}%)", 100.0 * ours / plain);
            line += &format!("  {plain:>6.2} {ours:>8.2} {share:>8}");
        }
        println!("{line}");
    }
    Ok(())
}

/// Bytes a second, in GB.
struct Pair {
    plain: f64,
    ours: f64,
}

/// Upload, readback, and a call that uploads and reads back as many bytes.
fn measure(gpu: &Gpu, elements: usize) -> Result<[Pair; 3]> {
    let values: Vec<f32> = (0..elements).map(|i| (i % 1000) as f32 / 1000.0).collect();
    let array = Array::from(&values);
    let tensor = gpu.block_on(gpu.upload(&array))?;
    let plain = Plain::new(gpu, 4 * elements as u64);
    plain.upload(&plain.buffer, bytemuck::cast_slice(&values))?;
    let args = Args::new(array.clone());
    let on_device = Args::new(tensor.clone());
    let plan = gpu.block_on(gpu.plan(&Sigmoid, Pass::Forward, &on_device.layouts()))?;
    let bound = plan.bind(&on_device, &gpu.block_on(plan.allocate())?)?;
    let timer = Timer::new(gpu);
    let (mut upload, mut readback, mut call) = <([Vec<_>; 2], [Vec<_>; 2], [Vec<_>; 2])>::default();
    for round in 0..=ROUNDS {
        let plain_upload = timed(|| {
            let buffer = create(gpu, plain.size, STORAGE);
            plain.upload(&buffer, bytemuck::cast_slice(&values))?;
            Ok(buffer)
        })?;
        let our_upload = timed(|| {
            let tensor = gpu.block_on(gpu.upload(&array))?;
            plain.finish()?;
            Ok(tensor)
        })?;
        let (plain_readback, read) = timed(|| plain.readback())?;
        ensure!(read == values, "the plain transfer changed the values");
        let (our_readback, read) = timed(|| Ok(gpu.block_on(gpu.read(&tensor))?))?;
        ensure!(read == array, "wgloss changed the values");
        let plain_both = timed(|| {
            plain.upload(&plain.buffer, bytemuck::cast_slice(&values))?;
            plain.readback()
        })?;
        let (whole, _) = timed(|| Ok(gpu.block_on(gpu.run(&Sigmoid, Pass::Forward, &args))?))?;
        let kernel = timer.time(|encoder, writes| bound.encode_timed(encoder, writes))?;
        if round == 0 {
            // compiles kernels, and meets memory that nobody used before
            continue;
        }
        upload[0].push(plain_upload.0);
        upload[1].push(our_upload.0);
        readback[0].push(plain_readback);
        readback[1].push(our_readback);
        call[0].push(plain_both.0);
        call[1].push(whole.saturating_sub(kernel));
    }
    let rates = |[plain, ours]: [Vec<Duration>; 2], bytes: usize| {
        let rate = |times| bytes as f64 / median(times).as_secs_f64() / 1e9;
        Pair { plain: rate(plain), ours: rate(ours) }
    };
    Ok([rates(upload, 4 * elements), rates(readback, 4 * elements), rates(call, 2 * 4 * elements)])
}

fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(Duration, T)> {
    let start = Instant::now();
    let value = work()?;
    Ok((start.elapsed(), value))
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

const STORAGE: wgpu::BufferUsages = wgpu::BufferUsages::STORAGE
    .union(wgpu::BufferUsages::COPY_SRC)
    .union(wgpu::BufferUsages::COPY_DST);

/// wgpu's own way: a buffer, and another one to map.
struct Plain<'a> {
    gpu: &'a Gpu,
    size: u64,
    buffer: wgpu::Buffer,
    staging: wgpu::Buffer,
}

impl<'a> Plain<'a> {
    fn new(gpu: &'a Gpu, size: u64) -> Self {
        let buffer = create(gpu, size, STORAGE);
        let staging =
            create(gpu, size, wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST);
        Plain { gpu, size, buffer, staging }
    }

    fn upload(&self, buffer: &wgpu::Buffer, bytes: &[u8]) -> Result<()> {
        self.gpu.queue().write_buffer(buffer, 0, bytes);
        self.finish()
    }

    /// Writes are carried out with the next submission.
    fn finish(&self) -> Result<()> {
        self.gpu.queue().submit([]);
        self.wait()
    }

    fn readback(&self) -> Result<Vec<f32>> {
        let mut encoder = self.gpu.device().create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(&self.buffer, 0, &self.staging, 0, self.buffer.size());
        self.gpu.queue().submit([encoder.finish()]);
        self.staging.map_async(wgpu::MapMode::Read, .., |_| {});
        self.wait()?;
        let range = self.staging.get_mapped_range(..).context("the map failed")?;
        let values = bytemuck::pod_collect_to_vec(&range);
        drop(range);
        self.staging.unmap();
        Ok(values)
    }

    fn wait(&self) -> Result<()> {
        self.gpu.device().poll(wgpu::PollType::wait_indefinitely())?;
        Ok(())
    }
}

fn create(gpu: &Gpu, size: u64, usage: wgpu::BufferUsages) -> wgpu::Buffer {
    gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size,
        usage,
        mapped_at_creation: false,
    })
}
