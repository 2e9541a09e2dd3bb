//! Loss and gradient beside burn's own, in turns, as a table. What burn does is WGSL, with fusion where
//! that feature is on.
//!
//! ```sh
//! make bench-burn
//! ```

use std::time::Instant;

use anyhow::{Result, ensure};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::tensor::{Device, Distribution, Int, Tensor};

const SHAPES: [[usize; 2]; 5] = [[32, 10], [8192, 128], [4096, 1000], [512, 32_000], [64, 128_256]];
const ROUNDS: usize = 7;

fn main() -> Result<()> {
    let device = wgloss_burn::init()?.autodiff();
    device.seed(1);
    let fusion = if cfg!(feature = "fusion") { "with fusion" } else { "without fusion" };
    println!(
        "| N x C | burn {fusion}, ms | here, ms | times | burn's host, us | here | burn's memory, MiB | here |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    for [rows, classes] in SHAPES {
        let logits = Tensor::<2>::random([rows, classes], Distribution::Normal(0.0, 3.0), &device);
        let targets = Distribution::Uniform(0.0, classes as f64);
        let targets = Tensor::<1, Int>::random([rows], targets, &device);
        let burns = CrossEntropyLossConfig::new().init(&device);
        let ours = wgloss_burn::CrossEntropyLossConfig::new().init(&device);
        let burns = |x, y| burns.forward(x, y);
        let ours = |x, y| ours.forward(x, y);
        let mut times = [const { Vec::new() }; 2];
        let mut hosts = [const { Vec::new() }; 2];
        let mut memory = [0; 2];
        let mut losses = [0.0; 2];
        // the first round compiles
        for round in 0..=ROUNDS {
            for who in 0..2 {
                let (x, y) = (logits.clone(), targets.clone());
                let step = match who {
                    0 => step(&device, x, y, &burns)?,
                    _ => step(&device, x, y, &ours)?,
                };
                if round > 0 {
                    times[who].push(step.seconds);
                    hosts[who].push(step.host);
                }
                (memory[who], losses[who]) = (step.bytes, step.loss);
            }
        }
        ensure!((losses[0] - losses[1]).abs() < 1e-4 * losses[0].abs(), "{losses:?}");
        let [a, b] = times.map(median);
        let [c, d] = hosts.map(median);
        let mib = memory.map(|bytes| bytes as f64 / f64::from(1 << 20));
        println!(
            "| {rows} x {classes} | {:.2} | {:.2} | {:.1} | {:.0} | {:.0} | {:.1} | {:.1} |",
            a * 1e3,
            b * 1e3,
            a / b,
            c * 1e6,
            d * 1e6,
            mib[0],
            mib[1],
        );
    }
    Ok(wgloss_burn::check(&device)?)
}

struct Step {
    /// Until the gradient is there.
    seconds: f64,
    /// Until the calls have returned.
    host: f64,
    /// What burn's pools hold more than before.
    bytes: u64,
    loss: f32,
}

/// Loss and gradient of logits that stay as they are: in a model, ours takes one buffer less.
fn step(
    device: &Device,
    logits: Tensor<2>,
    targets: Tensor<1, Int>,
    loss: &dyn Fn(Tensor<2>, Tensor<1, Int>) -> Tensor<1>,
) -> Result<Step> {
    let logits = logits.require_grad();
    device.sync()?;
    device.memory_cleanup();
    let reserved = || device.memory_pool_usage().map_or(0, |usage| usage.bytes_reserved);
    let (before, start) = (reserved(), Instant::now());
    let loss = loss(logits, targets);
    let grads = loss.backward();
    let host = start.elapsed().as_secs_f64();
    device.sync()?;
    let seconds = start.elapsed().as_secs_f64();
    let bytes = reserved().saturating_sub(before);
    drop(grads);
    Ok(Step { seconds, host, bytes, loss: loss.into_scalar::<f32>() })
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
