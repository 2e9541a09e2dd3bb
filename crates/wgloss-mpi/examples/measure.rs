//! Measures exchanges between ranks, steps, and what it takes to merge many partials of a row.
//!
//! ```sh
//! mpirun -n 4 --oversubscribe target/mpi/debug/examples/measure            # exchanges and steps
//! target/mpi/debug/examples/measure merge                                  # one process
//! ```

use std::time::{Duration, Instant};

use anyhow::Result;
use mpi::traits::*;
use wgloss::{Args, Array, Cpu, CrossEntropy, Gpu, Op, Pass, Reduction};
use wgloss_mpi::{Engine, Ranks, Shards};
use wgloss_testing::random::{Logits, Random};

const ROUNDS: usize = 15;

fn main() -> Result<()> {
    let universe = mpi::initialize().expect("MPI");
    let world = universe.world();
    let ranks = Ranks::new(&world)?;
    if std::env::args().any(|arg| arg == "merge") {
        return merge(&ranks.gpu()?);
    }
    let barrier = || world.barrier();
    exchanges(&ranks, barrier)?;
    let engine = Cpu::with_threads(1)?;
    steps(&ranks, &engine, "CPU form, one thread a rank", barrier)?;
    steps(&ranks, &ranks.gpu()?, "GPU", barrier)
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e3
}

/// The gather of partials and the sum of hidden states' gradients.
fn exchanges(ranks: &Ranks, barrier: impl Fn()) -> Result<()> {
    let engine = Cpu::with_threads(1)?;
    let op = CrossEntropy::default();
    for rows in [64, 512, 4096, 32_768] {
        let shards = Shards::new(ranks, ranks.size())?;
        let (logits, target) = (vec![1.0_f32; rows], vec![0; rows]);
        let args = Args::new(Array::new(&logits, &[rows, 1])?).target(Array::from(&target));
        let mut times = vec![];
        for _ in 0..ROUNDS {
            let started = shards.start(&engine, &op, &args)?;
            barrier();
            let start = Instant::now();
            let told = shards.wait(&engine, &op, started)?;
            times.push(start.elapsed());
            drop(told);
        }
        let gather = median(times);
        let mut values = vec![1.0_f32; rows * 64];
        let mut times = vec![];
        for _ in 0..ROUNDS {
            barrier();
            let start = Instant::now();
            ranks.sum(&mut values)?;
            times.push(start.elapsed());
        }
        if ranks.rank() == 0 {
            println!(
                "{} ranks, {rows} rows: gather of {:.1} KB a rank {gather:.2} ms; sum of {:.1} KB a rank {:.2} ms",
                ranks.size(),
                rows as f64 * 0.032,
                values.len() as f64 * 0.004,
                median(times),
            );
        }
    }
    Ok(())
}

/// Loss and gradient of 512 rows of 32,000 classes, divided.
fn steps<'a>(
    ranks: &Ranks,
    engine: &impl Engine<Array<'a>>,
    name: &str,
    barrier: impl Fn(),
) -> Result<()> {
    const ROWS: usize = 512;
    const CLASSES: usize = 32_000;
    let shards = Shards::new(ranks, CLASSES)?;
    let here = shards.range().len();
    let logits = Random::new(1).logits(Logits::Normal, ROWS, here);
    let target: Vec<i32> = (0..ROWS as i32).map(|row| row * 61 % CLASSES as i32).collect();
    let args = Args::new(Array::from_vec(logits, &[ROWS, here])?)
        .target(Array::from_vec(target, &[ROWS])?);
    let op = CrossEntropy::default();
    let mut times = vec![vec![]; 2];
    for round in 0..ROUNDS + 2 {
        barrier();
        let start = Instant::now();
        let started = shards.start(engine, &op, &args)?;
        let told = shards.wait(engine, &op, started)?;
        let exchanged = start.elapsed();
        shards.finish(engine, &op, Pass::ForwardBackward, &args, &told)?;
        if round >= 2 {
            times[0].push(exchanged);
            times[1].push(start.elapsed());
        }
    }
    if ranks.rank() == 0 {
        let [partials, step] = [&times[0], &times[1]].map(|times| median(times.clone()));
        println!(
            "{} ranks, {ROWS} x {CLASSES}, {name}: step {step:.1} ms, of it partials and exchange {partials:.1} ms",
            ranks.size()
        );
    }
    Ok(())
}

/// Losses from many partials a row, in one process.
fn merge(gpu: &Gpu) -> Result<()> {
    const ROWS: usize = 1024;
    let cpu = Cpu::default();
    let op = CrossEntropy::default().reduction(Reduction::Sum).shard(0, 1 << 20);
    let mut random = Random::new(1);
    let one = Array::from_vec(random.logits(Logits::Normal, ROWS, 16), &[ROWS, 16])?;
    let target = Array::from_vec(vec![3; ROWS], &[ROWS])?;
    let args = Args::new(one).target(target);
    let told = cpu.run(&op, Pass::Partials, &args)?.partial()?.to_f32();
    for shards in [1, 8, 64, 1024] {
        let all: Vec<f32> = told.chunks(8).flat_map(|partial| partial.repeat(shards)).collect();
        let args = args.clone().partials(Array::from_vec(all, &[ROWS, shards, 8])?);
        let on_gpu = gpu.block_on(gpu.upload_args(&args))?;
        let time = |run: &dyn Fn() -> Result<()>| -> Result<f64> {
            let mut times = vec![];
            for round in 0..ROUNDS + 2 {
                let start = Instant::now();
                run()?;
                if round >= 2 {
                    times.push(start.elapsed());
                }
            }
            Ok(median(times))
        };
        let op: &dyn Op = &op;
        let of_gpu = time(&|| {
            let out = gpu.block_on(gpu.forward(op, &on_gpu))?;
            gpu.block_on(gpu.read(out.loss()?))?;
            Ok(())
        })?;
        let of_cpu = time(&|| {
            cpu.forward(op, &args)?;
            Ok(())
        })?;
        println!(
            "{ROWS} rows of {shards} partials, {:.1} MB: {of_gpu:.2} ms on {}, {of_cpu:.2} ms on the CPU form",
            (ROWS * shards * 32) as f64 / 1e6,
            gpu.info().name,
        );
    }
    Ok(())
}
