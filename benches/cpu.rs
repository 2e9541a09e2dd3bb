//! The CPU twin beside a copy of the same bytes by as many threads, in turns:
//! `cargo bench --features cpu --bench cpu [-- FILTER]`.
//!
//! Results are reused, as a training loop would; inputs and results are taken in turn from sets
//! that are together larger than the caches. Times are medians. The bytes counted are those of
//! input, target and gradient, each once; a copy of so many bytes reads half of them and writes
//! half.
//!
//! Linear cross entropy is timed beside its three products alone, by the same kernels over blocks and
//! tiles of like sizes.

use std::hint::black_box;
use std::sync::Mutex;
use std::time::Instant;

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, Array3, Axis};
use wgloss::{Args, Array, BceWithLogits, Cpu, CrossEntropy, LinearCrossEntropy, Op, Output, Pass};

/// What all sets of a workload take together.
const FOOTPRINT: usize = 512 << 20;
const ROUNDS: usize = 41;

struct Workload {
    name: &'static str,
    op: Box<dyn Op>,
    shape: Vec<usize>,
    has_classes: bool,
}

struct Set {
    args: Args<Array<'static>>,
    output: Output<Array<'static>>,
    copied: [Vec<u8>; 2],
}

impl Workload {
    fn rows(name: &'static str, rows: usize, classes: usize) -> Self {
        let op = Box::new(CrossEntropy::default());
        Workload { name, op, shape: vec![rows, classes], has_classes: true }
    }

    fn elements(name: &'static str, count: usize) -> Self {
        let op = Box::new(BceWithLogits::default());
        Workload { name, op, shape: vec![count], has_classes: false }
    }

    fn bytes(&self) -> usize {
        let elements: usize = self.shape.iter().product();
        match self.has_classes {
            true => 8 * elements + 4 * self.shape[0],
            false => 12 * elements,
        }
    }

    fn set(&self) -> wgloss::Result<Set> {
        let count: usize = self.shape.iter().product();
        let mut state = 1_u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32
        };
        let input = (0..count).map(|_| random() * 12.0 - 6.0).collect();
        let target = match self.has_classes {
            true => {
                let classes = self.shape[1];
                let labels = (0..self.shape[0]).map(|_| (random() * classes as f32) as i32);
                Array::from_vec(labels.collect(), &self.shape[..1])?
            }
            false => {
                let labels = (0..count).map(|_| random().round()).collect::<Vec<_>>();
                Array::from_vec(labels, &self.shape)?
            }
        };
        Ok(Set {
            args: Args::new(Array::from_vec::<f32>(input, &self.shape)?).target(target),
            output: Output::default(),
            copied: [vec![1; self.bytes() / 2], vec![2; self.bytes() / 2]],
        })
    }
}

fn milliseconds(run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_secs_f64() * 1e3
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Runs tasks on all threads, the caller's among them, as the twin does.
fn run_all<T>(tasks: impl Iterator<Item = T> + Send, run: impl Fn(T) + Sync) {
    let tasks = Mutex::new(tasks);
    let next = || tasks.lock().unwrap().next();
    let work = || {
        while let Some(task) = next() {
            run(task);
        }
    };
    rayon::in_place_scope(|scope| {
        for _ in 1..rayon::current_num_threads() {
            scope.spawn(|_| work());
        }
        work();
    });
}

fn copy(from: &[u8], to: &mut [u8]) {
    const PART: usize = 1 << 18;
    let parts = to.chunks_mut(PART).zip(from.chunks(PART));
    run_all(parts, |(to, from)| to.copy_from_slice(black_box(from)));
}

/// The products of linear cross entropy alone.
struct Products {
    input: Array2<f32>,
    projection: Array2<f32>,
    logits: Array2<f32>,
    /// Sums over the classes of each part.
    of_input: Array3<f32>,
    of_projection: Array2<f32>,
    tile: usize,
    part: usize,
}

impl Products {
    fn new(input: &[f32], projection: &[f32], [rows, dims, classes]: [usize; 3]) -> Self {
        let matrix = |rows, numbers: &[f32]| Array2::from_shape_vec((rows, dims), numbers.to_vec());
        let (block, tile) = if classes > 8192 { (256, 512) } else { (512, 256) };
        let part = classes.div_ceil(32).next_multiple_of(tile);
        let parts = classes.div_ceil(part);
        Products {
            input: matrix(rows, input).unwrap(),
            projection: matrix(classes, projection).unwrap(),
            logits: Array2::zeros((block, classes)),
            of_input: Array3::zeros((parts, block, dims)),
            of_projection: Array2::zeros((classes, dims)),
            tile,
            part,
        }
    }

    fn run(&mut self) {
        let (tile, part) = (self.tile, self.part);
        for input in self.input.axis_chunks_iter(Axis(0), self.logits.nrows()) {
            let mut logits = self.logits.slice_mut(ndarray::s![..input.nrows(), ..]);
            let tiles = logits.axis_chunks_iter_mut(Axis(1), tile);
            let tiles = tiles.zip(self.projection.axis_chunks_iter(Axis(0), tile));
            run_all(tiles, |(mut to, projection)| {
                general_mat_mul(1.0, &input, &projection.t(), 0.0, &mut to);
            });
            let sums = self.of_input.outer_iter_mut();
            let sums = sums.zip(self.of_projection.axis_chunks_iter_mut(Axis(0), part));
            let factors = logits.axis_chunks_iter(Axis(1), part);
            let factors = factors.zip(self.projection.axis_chunks_iter(Axis(0), part));
            run_all(sums.zip(factors), |((of_input, mut of_projection), (g, projection))| {
                let mut of_input = of_input.slice_move(ndarray::s![..input.nrows(), ..]);
                let tiles = of_projection.axis_chunks_iter_mut(Axis(0), tile);
                let factors = g.axis_chunks_iter(Axis(1), tile);
                let factors = factors.zip(projection.axis_chunks_iter(Axis(0), tile));
                for (mut of_projection, (g, projection)) in tiles.zip(factors) {
                    general_mat_mul(1.0, &g.t(), &input, 1.0, &mut of_projection);
                    general_mat_mul(1.0, &g, &projection, 1.0, &mut of_input);
                }
            });
        }
    }
}

/// Hidden states, numbers of each, and classes.
const LINEAR: [[usize; 3]; 4] =
    [[512, 256, 32_000], [2048, 512, 32_000], [4096, 256, 128_256], [8192, 64, 1000]];

fn linear(cpu: &Cpu, filter: &str) -> wgloss::Result<()> {
    println!("\n| linear cross entropy | ms | GFLOP/s | three products, ms | GFLOP/s | added |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for sizes @ [rows, dims, classes] in LINEAR {
        let name = format!("linear {rows} x {dims} x {classes}");
        if !name.contains(filter) {
            continue;
        }
        let mut state = 1_u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32
        };
        let input: Vec<f32> = (0..rows * dims).map(|_| random() * 8.0 - 4.0).collect();
        let projection: Vec<f32> = (0..classes * dims).map(|_| random() * 0.5 - 0.25).collect();
        let target: Vec<i32> = (0..rows).map(|_| (random() * classes as f32) as i32).collect();
        let mut products = Products::new(&input, &projection, sizes);
        let args = Args::new(Array::from_vec(input, &[rows, dims])?)
            .projection(Array::from_vec(projection, &[classes, dims])?)
            .target(Array::from_vec(target, &[rows])?);
        let (op, mut output) = (LinearCrossEntropy::default(), Output::default());
        // 6NVD: each product has N V D multiplications and as many additions
        let flops = 6.0 * (rows * dims) as f64 * classes as f64;
        let rounds = (1e11 / flops).ceil().min(20.0) as usize;
        let mut times = [vec![], vec![]];
        for round in 0..=rounds {
            let mut result = Ok(());
            let run = || result = cpu.run_into(&op, Pass::ForwardBackward, &args, &mut output);
            let times_now = [milliseconds(run), milliseconds(|| products.run())];
            result?;
            // the first round allocates
            if round > 0 {
                times.iter_mut().zip(times_now).for_each(|(times, now)| times.push(now));
            }
        }
        let [ms, alone] = times.map(median);
        let speed = |ms: f64| flops / ms / 1e6;
        println!(
            "| {name} | {ms:.1} | {:.0} | {alone:.1} | {:.0} | {:.0}% |",
            speed(ms),
            speed(alone),
            (ms / alone - 1.0) * 100.0
        );
    }
    Ok(())
}

fn main() -> wgloss::Result<()> {
    let filter = std::env::args().skip(1).find(|word| !word.starts_with('-')).unwrap_or_default();
    let workloads = [
        Workload::rows("cross entropy 4096 x 1000", 4096, 1000),
        Workload::rows("cross entropy 8192 x 128", 8192, 128),
        Workload::rows("cross entropy 512 x 32000", 512, 32_000),
        Workload::rows("cross entropy 64 x 128256", 64, 128_256),
        Workload::rows("cross entropy 100000 x 10", 100_000, 10),
        Workload::elements("BCE with logits 1e6", 1_000_000),
        Workload::elements("BCE with logits 2e7", 20_000_000),
    ];
    let cpu = Cpu::default();
    println!("{} threads", cpu.threads());
    println!("| forward and backward, f32 | ms | GB/s | copy, ms | GB/s | fraction |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for workload in workloads.iter().filter(|workload| workload.name.contains(&filter)) {
        let sets = (FOOTPRINT / workload.bytes() / 2).clamp(2, 64);
        let mut sets = (0..sets).map(|_| workload.set()).collect::<wgloss::Result<Vec<_>>>()?;
        let mut times = [vec![], vec![]];
        for round in 0..2 * sets.len().max(ROUNDS) {
            let count = sets.len();
            let Set { args, output, copied: [from, to] } = &mut sets[round % count];
            let mut result = Ok(());
            let run = || result = cpu.run_into(&*workload.op, Pass::ForwardBackward, args, output);
            let times_now = [milliseconds(run), milliseconds(|| copy(from, to))];
            result?;
            // the first round of each set allocates
            if round >= count {
                times.iter_mut().zip(times_now).for_each(|(times, now)| times.push(now));
            }
        }
        let [ms, copy] = times.map(median);
        let speed = |ms: f64| workload.bytes() as f64 / ms / 1e6;
        println!(
            "| {} | {ms:.3} | {:.1} | {copy:.3} | {:.1} | {:.2} |",
            workload.name,
            speed(ms),
            speed(copy),
            copy / ms
        );
    }
    linear(&cpu, &filter)
}
