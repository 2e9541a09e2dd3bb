//! `wgloss run`: arrays from files, an op, results to files.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use indicatif::{ProgressBar, ProgressStyle};
use wgloss::{Args, Gpu, GpuOptions, Pass, reference};

use crate::files::{self, Kind, Outputs, Place, Tensor};
use crate::ops::{Device, Host, Job};
use crate::{devices, print};

/// What was computed, where and how fast.
struct Outcome {
    device: String,
    /// What was timed, how long it took, and what that includes.
    times: Vec<(&'static str, Duration, &'static str)>,
    loss: Option<Tensor>,
    grad: Option<Tensor>,
}

/// Does it all, or nothing.
pub fn run(job: &Job) -> Result<()> {
    let common = &job.common;
    let pass = match (common.pass, &common.grad) {
        (Some(pass), _) => pass.into(),
        (None, Some(_)) => Pass::ForwardBackward,
        (None, None) => Pass::Forward,
    };
    let asked = [("loss", &common.loss, pass.has_loss()), ("grad", &common.grad, pass.has_grad())];
    for (name, place, computed) in asked {
        if let (Some(place), false) = (place, computed) {
            let pass = pass.name().replace('_', "-");
            bail!("--{name} {place}: expected none for --pass {pass}, got one");
        }
    }
    let input = match &common.key {
        Some(key) => common.input.clone().with_key(key)?,
        None => common.input.clone(),
    };
    let inputs: Vec<_> = std::iter::once(("input", &input))
        .chain(job.given.iter().map(|given| (given.name, &given.place)))
        .collect();
    let places = asked.iter().filter_map(|(name, place, _)| Some((*name, place.as_ref()?)));
    let outputs = Outputs::check(places, &inputs)?;

    let progress = ProgressBar::new(3).with_style(
        ProgressStyle::with_template("{spinner} {bar:12} {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    progress.enable_steady_tick(Duration::from_millis(100));
    progress.set_message("loading");
    let args = load(job, &input)?;
    let explain = |error| explain(&error, common.device, &inputs);
    // before a device is opened
    job.op.outputs(pass, &args.layouts()).map_err(explain)?;
    progress.inc(1);
    progress.set_message("computing");
    let outcome = compute(job, pass, &args).map_err(explain)?;
    progress.inc(1);
    progress.set_message("writing");
    let parts = [("loss", &outcome.loss), ("grad", &outcome.grad)];
    let written = outputs.write(&parts)?;
    progress.finish_and_clear();

    let reduction = wgloss::Reduction::from(common.reduction).name();
    let mut lines = vec![
        format!("op      {}.{}, reduction {reduction}", job.op.name(), pass.name()),
        format!("device  {}", outcome.device),
    ];
    lines.extend(
        outcome.times.iter().map(|(what, time, note)| format!("{what:7} {time:.3?} ({note})")),
    );
    lines.extend(parts.iter().filter_map(|(name, part)| {
        part.as_ref().map(|tensor| format!("{name:7} {}", summary(tensor)))
    }));
    lines.extend(written.iter().map(|line| format!("wrote   {line}")));
    print(&lines)
}

/// Reads every argument.
fn load(job: &Job, input: &Place) -> Result<Args<Host>> {
    let read = |name: &str, place: &Place, kind| {
        files::read(place, name, kind).with_context(|| format!("{} {place}", flag(name)))
    };
    let mut args = Args::new(read("input", input, Kind::Numbers)?);
    for given in &job.given {
        args = (given.set)(args, read(given.name, &given.place, given.kind)?);
    }
    Ok(args)
}

fn compute(job: &Job, pass: Pass, args: &Args<Host>) -> wgloss::Result<Outcome> {
    const CPU: &str = "cpu (float64 reference, until the CPU twin exists)";
    let open = |options: GpuOptions| pollster::block_on(Gpu::with_options(&options));
    match job.common.device {
        Device::Reference => on_reference(job, pass, args, "reference (float64)".into()),
        Device::Cpu => rounded(on_reference(job, pass, args, CPU.into())?),
        Device::Gpu => on_gpu(job, pass, args, &open(GpuOptions::default())?, ""),
        Device::Auto => match open(GpuOptions::default().hardware_only(true)) {
            Ok(gpu) => on_gpu(job, pass, args, &gpu, "; auto takes the first hardware GPU"),
            Err(error) => {
                let why = error.to_string();
                let why = why.strip_prefix("device: ").unwrap_or(&why);
                let device = format!("{CPU}; auto found no usable GPU: {why}");
                rounded(on_reference(job, pass, args, device)?)
            }
        },
    }
}

fn on_gpu(
    job: &Job,
    pass: Pass,
    args: &Args<Host>,
    gpu: &Gpu,
    why: &str,
) -> wgloss::Result<Outcome> {
    let timed = || gpu.block_on(gpu.run_timed(&*job.op, pass, args));
    // the first call compiles
    timed()?;
    let (output, timing) = timed()?;
    Ok(Outcome {
        device: format!("{}{why}", devices::describe(gpu.info())),
        times: vec![
            ("kernel", timing.kernel, "the dispatches, after a first run that compiled them"),
            ("call", timing.call, "upload, dispatches and readback, after that first run"),
        ],
        loss: output.loss.map(Tensor::Stored),
        grad: output.grad.map(Tensor::Stored),
    })
}

fn on_reference(
    job: &Job,
    pass: Pass,
    args: &Args<Host>,
    device: String,
) -> wgloss::Result<Outcome> {
    let start = Instant::now();
    let output = reference::run(&*job.op, pass, args)?;
    let times = vec![("call", start.elapsed(), "one thread")];
    let (loss, grad) = (output.loss.map(Tensor::Exact), output.grad.map(Tensor::Exact));
    Ok(Outcome { device, times, loss, grad })
}

/// The same results as float32.
fn rounded(outcome: Outcome) -> wgloss::Result<Outcome> {
    let round = |part: Option<Tensor>| match part {
        Some(Tensor::Exact(values)) => Ok(Some(Tensor::Stored(values.to_array()?))),
        other => Ok(other),
    };
    Ok(Outcome { loss: round(outcome.loss)?, grad: round(outcome.grad)?, ..outcome })
}

/// The library's error, with the flag and the file in place of the argument's name.
fn explain(
    error: &wgloss::Error,
    device: Device,
    inputs: &[(&'static str, &Place)],
) -> anyhow::Error {
    let text = error.to_string();
    let Some((name, rest)) = text.split_once(": ") else { return anyhow!(text) };
    match inputs.iter().find(|(input, _)| *input == name) {
        Some((_, place)) => anyhow!("{} {place}: {rest}", flag(name)),
        None if name == "device" => anyhow!("--device {}: {rest}", device.word()),
        None => anyhow!("{}: {rest}", flag(name)),
    }
}

/// `pos_weight` as `--pos-weight`.
fn flag(name: &str) -> String {
    format!("--{}", name.replace('_', "-"))
}

/// The one value of a mean or sum; otherwise shape, mean and range.
fn summary(tensor: &Tensor) -> String {
    let values = tensor.to_f64();
    let number = |value: f64| match tensor {
        Tensor::Stored(_) => format!("{:?}", value as f32),
        Tensor::Exact(_) => seventeen_digits(value),
    };
    if let ([], &[value]) = (tensor.shape(), &*values) {
        return number(value);
    }
    let numbers: Vec<f64> = values.iter().copied().filter(|value| !value.is_nan()).collect();
    let mut text = format!("{:?}", tensor.shape());
    if !numbers.is_empty() {
        let mean = numbers.iter().sum::<f64>() / numbers.len() as f64;
        let min = numbers.iter().copied().fold(f64::INFINITY, f64::min);
        let max = numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        text += &format!(": mean {}, from {} to {}", number(mean), number(min), number(max));
    }
    if numbers.len() < values.len() {
        text += &format!(", {} NaN", values.len() - numbers.len());
    }
    text
}

/// As many significant digits as tell every two float64 apart.
fn seventeen_digits(value: f64) -> String {
    let scientific = format!("{value:.16e}");
    let exponent = scientific.split_once('e').and_then(|(_, exponent)| exponent.parse().ok());
    match exponent {
        Some(exponent @ -5..=15) => {
            let exponent: i32 = exponent;
            format!("{value:.*}", (16 - exponent) as usize)
        }
        _ => scientific,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seventeen_digits_are_seventeen() {
        for (value, text) in [
            (0.1, "0.10000000000000001"),
            (-1.5, "-1.5000000000000000"),
            (123456.789, "123456.78900000000"),
            (4503599627370497.0, "4503599627370497.0"),
            (2_f64.powi(-30), "9.3132257461547852e-10"),
            (0.0, "0.0000000000000000"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(seventeen_digits(value), text);
        }
    }
}
