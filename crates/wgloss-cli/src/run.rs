//! `wgloss run`: arrays from files, an op, results to files.

use std::fmt;
use std::time::Instant;

use anyhow::{Result, anyhow, bail, ensure};
use wgloss::{Layout, Output, Pass, Role};

use crate::batches::{Batches, Sources, flag};
use crate::files::{Outputs, Place, Tensor, Writer};
use crate::machine::Machine;
use crate::ops::Job;
use crate::{print, progress};

/// Runs the job; writes either every requested file or none.
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
    let outputs = Outputs::check(asked.iter().copied(), &inputs)?;

    let sources = Sources::open(job, &input)?;
    let explain = |error: &wgloss::Error| explain(error, &inputs);
    // before a device is opened
    let computed = job.op.outputs(pass, &sources.layouts()).map_err(|error| explain(&error))?;
    for (name, place) in asked {
        let is_computed = parts(&computed).any(|(part, _)| part == name);
        ensure!(is_computed, "--{name} {place}: expected none for these targets, got one");
    }
    let batches = common.batch_rows.map(|rows| Batches::new(job, pass, &sources, rows.get()));
    let batches = batches.transpose()?;
    let machine = Machine::open(common.device, common.adapter.as_deref(), None)?;
    let mut results = Results::new(&outputs, &computed, &machine)?;
    let time = match &batches {
        None => {
            let progress = progress::bar(3, "{spinner} {bar:12} {msg}");
            progress.set_message("loading");
            let args = sources.read()?;
            progress.inc(1);
            progress.set_message("computing");
            let start = Instant::now();
            let output = machine.run(&*job.op, pass, &args).map_err(|error| explain(&error))?;
            let time = start.elapsed();
            progress.inc(1);
            progress.set_message("writing");
            results.take(&output)?;
            format!("call    {time:.3?} ({})", machine.call())
        }
        Some(batches) => {
            let template = "{spinner} {bar:30} {human_pos} of {human_len} rows, {eta} to go";
            let progress = progress::bar(batches.rows() as u64, template);
            let start = Instant::now();
            batches.run(&machine, explain, |output, rows| {
                progress.inc(rows as u64);
                results.take(&output)
            })?;
            let (time, count) = (start.elapsed(), batches.count());
            format!("call    {time:.3?} ({count} batches, with reading and writing files)")
        }
    };

    let reduction = job.reduction.map(|r| format!(", reduction {}", r.name()));
    let reduction = reduction.unwrap_or_default();
    let mut lines = vec![
        format!("op      {}.{}{reduction}", job.op.name(), pass.name()),
        format!("device  {}", machine.description),
        time,
    ];
    lines.extend(results.finish()?);
    print(&lines)
}

/// Results as they come: on their way to the files that were asked for, and summed up.
struct Results<'a> {
    writer: Writer<'a>,
    summaries: Vec<(&'static str, Summary)>,
}

impl<'a> Results<'a> {
    /// For results of these layouts, in however many batches they come.
    fn new(outputs: &'a Outputs, layouts: &Output<Layout>, machine: &Machine) -> Result<Self> {
        let (mut files, mut summaries) = (vec![], vec![]);
        for (name, layout) in parts(layouts) {
            let (dtype, shape) = (machine.written_as(layout.dtype()), layout.shape().to_vec());
            summaries.push((name, Summary::new(&shape)));
            files.push((name, dtype, shape));
        }
        Ok(Results { writer: outputs.create(&files)?, summaries })
    }

    /// Takes the results of the next batch, or of all.
    fn take(&mut self, output: &Output<Tensor>) -> Result<()> {
        for (name, tensor) in parts(output) {
            self.writer.append(name, tensor)?;
            if let Some((_, summary)) = self.summaries.iter_mut().find(|(part, _)| *part == name) {
                summary.add(tensor);
            }
        }
        Ok(())
    }

    /// Puts the files in place; the lines of the report.
    fn finish(self) -> Result<Vec<String>> {
        let lines = self.summaries.iter().map(|(name, summary)| format!("{name:7} {summary}"));
        let mut lines: Vec<_> = lines.collect();
        lines.extend(self.writer.finish()?.iter().map(|line| format!("wrote   {line}")));
        Ok(lines)
    }
}

/// The results that can be written, by their flags.
fn parts<T>(output: &Output<T>) -> impl Iterator<Item = (&'static str, &T)> {
    // maps have --output for what losses have --loss for
    let flag = |role| if role == Role::Output { Role::Loss } else { role };
    let parts = output.iter().filter(|(role, _)| *role != Role::State);
    parts.map(move |(role, part)| (flag(role).name(), part))
}

/// The library's error, with the flag and the file in place of the argument's name.
pub fn explain(error: &wgloss::Error, inputs: &[(&'static str, &Place)]) -> anyhow::Error {
    let mut reason = error.reason();
    if matches!(error, wgloss::Error::TooLarge { .. }) {
        reason += " (--batch-rows divides the work)";
    }
    let Some(name) = error.argument() else { return anyhow!(reason) };
    match inputs.iter().find(|(input, _)| *input == name) {
        Some((_, place)) => anyhow!("{} {place}: {reason}", flag(name)),
        None => anyhow!("{}: {reason}", flag(name)),
    }
}

/// A result in a line: the one value of a mean or sum; otherwise shape, mean and range.
struct Summary {
    shape: Vec<usize>,
    is_exact: bool,
    /// Of the numbers; the rest are NaN.
    count: usize,
    nans: usize,
    sum: f64,
    min: f64,
    max: f64,
}

impl Summary {
    fn new(shape: &[usize]) -> Self {
        let (min, max) = (f64::INFINITY, f64::NEG_INFINITY);
        let shape = shape.to_vec();
        Summary { shape, is_exact: false, count: 0, nans: 0, sum: 0.0, min, max }
    }

    fn add(&mut self, tensor: &Tensor) {
        self.is_exact = matches!(tensor, Tensor::Exact(_));
        for &value in &*tensor.to_f64() {
            if value.is_nan() {
                self.nans += 1;
                continue;
            }
            self.count += 1;
            self.sum += value;
            self.min = self.min.min(value);
            self.max = self.max.max(value);
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |value: f64| match self.is_exact {
            true => seventeen_digits(value),
            false => format!("{:?}", value as f32),
        };
        if self.shape.is_empty() {
            return f.write_str(&number(if self.count > 0 { self.sum } else { f64::NAN }));
        }
        write!(f, "{:?}", self.shape)?;
        if self.count > 0 {
            let (mean, min, max) = (self.sum / self.count as f64, self.min, self.max);
            write!(f, ": mean {}, from {} to {}", number(mean), number(min), number(max))?;
        }
        match self.nans {
            0 => Ok(()),
            nans => write!(f, ", {nans} NaN"),
        }
    }
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
