//! `wgloss run`: arrays from files, an op, results to files.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use indicatif::{ProgressBar, ProgressStyle};
use wgloss::{Args, Pass};

use crate::files::{self, Kind, Outputs, Place, Tensor};
use crate::machine::{Device, Machine};
use crate::ops::{Host, Job};
use crate::print;

/// Does it all, or nothing.
pub fn run(job: &Job) -> Result<()> {
    let common = &job.common;
    let pass = match (common.pass, &common.grad) {
        (Some(pass), _) => pass.into(),
        (None, Some(_)) => Pass::ForwardBackward,
        (None, None) => Pass::Forward,
    };
    let asked = [("loss", &common.loss), ("grad", &common.grad)];
    let asked = asked.into_iter().filter_map(|(name, place)| Some((name, place.as_ref()?)));
    let asked: Vec<_> =
        asked.chain(job.row_outputs.iter().map(|(name, place)| (*name, place))).collect();
    for &(name, place) in &asked {
        let is_computed = if name == "grad" { pass.has_grad() } else { pass.has_loss() };
        if !is_computed {
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
    let outputs = Outputs::check(asked, &inputs)?;

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
    let machine = Machine::open(common.device).map_err(explain)?;
    let (output, times) = machine.run_timed(&*job.op, pass, &args).map_err(explain)?;
    progress.inc(1);
    progress.set_message("writing");
    let parts = [
        ("loss", &output.loss),
        ("grad", &output.grad),
        ("logsumexp", &output.logsumexp),
        ("argmax", &output.argmax),
        ("correct", &output.correct),
    ];
    let written = outputs.write(&parts)?;
    progress.finish_and_clear();

    let reduction = job.reduction.map(|r| format!(", reduction {}", r.name()));
    let reduction = reduction.unwrap_or_default();
    let mut lines = vec![
        format!("op      {}.{}{reduction}", job.op.name(), pass.name()),
        format!("device  {}", machine.description),
    ];
    lines.extend(times.iter().map(|(what, time, note)| format!("{what:7} {time:.3?} ({note})")));
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
