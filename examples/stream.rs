//! Streams batches through cross entropy: while the device computes one, the host makes and uploads
//! the next and reads the last one back.
//!
//! ```sh
//! cargo run --locked --release --example stream  # or with other numbers: ... -- ROWS CLASSES BATCHES
//! ```
//!
//! The same batches go through single calls, then through streams with one to four batches in
//! flight, each several times in turn; the medians of their times and the mean loss are printed. The
//! results are the same to the bit.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use wgloss::{Args, Array, CrossEntropy, Gpu, Output, Pass};

const ROUNDS: usize = 5;
const PASS: Pass = Pass::ForwardBackward;

fn main() -> Result<()> {
    let numbers: Vec<usize> =
        std::env::args().skip(1).map(|number| number.parse()).collect::<Result<_, _>>()?;
    let (rows, classes, count) = match numbers[..] {
        [rows, classes, count] => (rows, classes, count),
        _ => (1024, 1000, 20),
    };
    ensure!(rows > 0 && classes > 0 && count > 0, "expected ROWS, CLASSES and BATCHES above 0");
    let gpu = Gpu::blocking()?;
    let op = CrossEntropy::default().label_smoothing(0.1);

    // the batches that a loader would bring, each made when it is asked for
    let batch = |index| -> wgloss::Result<_> {
        let logits = (0..rows * classes).map(|i| ((i * 31 + index) % 97) as f32 * 0.1);
        let target = (0..rows).map(|row| ((row * 7 + index) % classes) as i32);
        let logits = Array::from_vec::<f32>(logits.collect(), &[rows, classes])?;
        Ok(Args::new(logits).target(Array::from_vec::<i32>(target.collect(), &[rows])?))
    };

    // single calls, then streams of 1, 2, 3 and 4 batches in flight
    let mut times = [const { Vec::new() }; 5];
    let mut expected = None;
    for _ in 0..=ROUNDS {
        for (in_flight, times) in times.iter_mut().enumerate() {
            let start = Instant::now();
            let mut mean = 0.0;
            let mut take = |output: Output<Array<'_>>| -> wgloss::Result<()> {
                mean += f64::from(output.loss()?.item()?) / count as f64;
                Ok(())
            };
            if in_flight == 0 {
                for index in 0..count {
                    take(gpu.block_on(gpu.run(&op, PASS, &batch(index)?))?)?;
                }
            } else {
                let mut stream = gpu.stream(&op, PASS).in_flight(in_flight);
                for index in 0..count {
                    if let Some(output) = gpu.block_on(stream.push(&batch(index)?)) {
                        take(output?)?;
                    }
                }
                while let Some(output) = gpu.block_on(stream.next()) {
                    take(output?)?;
                }
            }
            times.push(start.elapsed());
            let expected: f64 = *expected.get_or_insert(mean);
            ensure!(mean == expected, "{mean} instead of {expected}");
        }
    }
    println!("{}, {} {}", gpu.info().name, gpu.info().driver, gpu.info().driver_info);
    println!("{count} batches of {rows} x {classes}, medians of {ROUNDS}");
    for (in_flight, times) in times.into_iter().enumerate() {
        let what = match in_flight {
            0 => "single calls".into(),
            _ => format!("{in_flight} in flight"),
        };
        println!("{what:14} {:.2?} a batch", median(times) / count as u32);
    }
    println!("mean loss {}", expected.unwrap_or(f64::NAN));
    Ok(())
}

/// But for the first, which compiles kernels and meets memory that nobody used before.
fn median(mut times: Vec<Duration>) -> Duration {
    times.remove(0);
    times.sort_unstable();
    times[times.len() / 2]
}
