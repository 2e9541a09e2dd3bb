//! The CPU twin beside a copy of the same bytes by as many threads, in turns:
//! `cargo bench --features cpu --bench cpu [-- FILTER]`.
//!
//! Results are reused, as a training loop would; inputs and results are taken in turn from sets
//! that are together larger than the caches. Times are medians. The bytes counted are those of
//! input, target and gradient, each once; a copy of so many bytes reads half of them and writes
//! half.

use std::hint::black_box;
use std::sync::Mutex;
use std::time::Instant;

use wgloss::{Args, Array, BceWithLogits, Cpu, CrossEntropy, Op, Output, Pass};

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

/// By all threads, the caller's among them, as the twin does.
fn copy(from: &[u8], to: &mut [u8]) {
    const PART: usize = 1 << 18;
    let parts = Mutex::new(to.chunks_mut(PART).zip(from.chunks(PART)));
    let next = || parts.lock().unwrap().next();
    let work = || {
        while let Some((to, from)) = next() {
            to.copy_from_slice(black_box(from));
        }
    };
    rayon::in_place_scope(|scope| {
        for _ in 1..rayon::current_num_threads() {
            scope.spawn(|_| work());
        }
        work();
    });
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
    Ok(())
}
