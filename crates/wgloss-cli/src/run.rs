//! `wgloss run`: arrays from files, an op, results to files.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::Value;
use wgloss::{DType, Layout, Output, Pass, Reduction, Role};

use crate::batches::{Batches, Sources, flag};
use crate::files::{Outputs, Place, Tensor, Writer, Written, numpy_name};
use crate::machine::{Machine, Size};
use crate::ops::Job;
use crate::progress;
use crate::report::note;

/// Runs the job; writes either every requested file or none.
pub fn run(job: &Job) -> Result<()> {
    let common = &job.common;
    let asked = [("loss", &common.loss), ("grad", &common.grad)];
    let asked = asked.into_iter().filter_map(|(name, place)| Some((name, place.as_ref()?)));
    let asked: Vec<_> =
        asked.chain(job.others.iter().map(|(name, place)| (*name, place))).collect();
    let is_grad = |name: &str| ["grad", "grad_projection", "grad_bias"].contains(&name);
    let pass = match common.pass {
        Some(pass) => pass.into(),
        None if asked.iter().any(|(name, _)| is_grad(name)) => Pass::ForwardBackward,
        None => Pass::Forward,
    };
    for &(name, place) in &asked {
        let is_computed = if is_grad(name) { pass.has_grad() } else { pass.has_loss() };
        if !is_computed {
            let (flag, pass) = (flag(name), pass.name().replace('_', "-"));
            bail!("{flag} {place}: expected none for --pass {pass}, got one");
        }
    }
    if let Some((name, place)) = asked.iter().find(|(name, _)| *name == "grad_bias")
        && job.given.iter().all(|given| given.name != "bias")
    {
        bail!("{} {place}: expected none without --bias, got one", flag(name));
    }
    let input = match &common.key {
        Some(key) => common.input.clone().with_key(key)?,
        None => common.input.clone(),
    };
    let inputs: Vec<_> = std::iter::once(("input", &input))
        .chain(job.given.iter().map(|given| (given.name, &given.place)))
        .collect();
    let outputs = Outputs::check(asked.iter().copied(), &inputs)?;
    common.json.check()?;
    if let Some(json) = common.json.path() {
        let mut others =
            asked.iter().chain(inputs.iter().filter(|(_, place)| !place.is_standard()));
        others.try_for_each(|(name, place)| {
            let check = place.expect_apart(&flag(name), json);
            check.with_context(|| format!("--json {}", json.display()))
        })?;
    }

    let sources = Sources::open(job, &input)?;
    let advice = sources.advice(job);
    let explain = |error: &wgloss::Error| explain(error, &inputs, advice);
    // before a device is opened
    let computed = job.op.outputs(pass, &sources.layouts()).map_err(|error| explain(&error))?;
    for (name, place) in asked {
        let is_computed = parts(&computed).any(|(part, _)| part == name);
        let flag = flag(name);
        ensure!(is_computed, "{flag} {place}: expected none for these targets, got one");
    }
    // what no device can do without, before a driver takes its own
    let at_least =
        |[arguments, results, _]: [Size; 3]| arguments.bytes.saturating_add(results.bytes);
    sources.expect_memory(job, &computed, at_least)?;
    let batches = common.batch_rows.map(|rows| Batches::new(job, pass, &sources, rows.get()));
    let batches = batches.transpose()?;
    let machine = Machine::open(common.device, common.adapter.as_deref(), None)?;
    sources.expect_memory(job, &computed, |sizes| machine.memory(sizes))?;
    let mut results = Results::new(&outputs, &computed, &machine)?;
    let (time, how) = match &batches {
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
            results.take(&output, || sources.kept(None))?;
            (time, machine.call().to_owned())
        }
        Some(batches) => {
            let template = "{spinner} {bar:30} {human_pos} of {human_len} rows, {eta} to go";
            let progress = progress::bar(batches.rows() as u64, template);
            let start = Instant::now();
            batches.run(&machine, explain, |output, rows| {
                progress.inc(rows.len() as u64);
                results.take(&output, || sources.kept(Some(rows.clone())))
            })?;
            let how = format!("{} batches, with reading and writing files", batches.count());
            (start.elapsed(), how)
        }
    };

    let notes = sources.notes();
    notes.iter().for_each(|text| note(&format!("wgloss: note: {text}")));
    let Results { writer, summaries } = results;
    let report = Report {
        op: job.op.name(),
        pass: pass.name(),
        reduction: job.reduction.map(Reduction::name),
        device: &machine.description,
        seconds: time.as_secs_f64(),
        batches: batches.as_ref().map(Batches::count),
        results: summaries.into_iter().collect(),
        written: writer.finish()?,
        notes,
    };
    let lines = report.lines(&format!("{time:.3?} ({how})"));
    let json = || Ok(serde_json::to_string_pretty(&report)?);
    common.json.tell(json, &lines, outputs.has_standard())
}

/// What there is to tell of a run.
#[derive(Serialize)]
struct Report<'a> {
    op: &'a str,
    pass: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reduction: Option<&'static str>,
    device: &'a str,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    batches: Option<usize>,
    results: BTreeMap<&'static str, Summary>,
    written: Vec<Written>,
    notes: Vec<String>,
}

impl Report<'_> {
    fn lines(&self, time: &str) -> Vec<String> {
        let reduction = self.reduction.map(|name| format!(", reduction {name}"));
        let reduction = reduction.unwrap_or_default();
        let mut lines = vec![
            format!("op      {}.{}{reduction}", self.op, self.pass),
            format!("device  {}", self.device),
            format!("call    {time}"),
        ];
        let in_order = Role::ALL.iter().map(|role| role.name());
        let results = in_order.filter_map(|name| self.results.get_key_value(name));
        lines.extend(results.map(|(name, summary)| format!("{name:7} {summary}")));
        lines.extend(self.written.iter().map(|written| format!("wrote   {written}")));
        lines
    }
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
            summaries.push((name, Summary::new(name, &shape)));
            files.push((name, dtype, shape));
        }
        Ok(Results { writer: outputs.create(&files)?, summaries })
    }

    /// Takes the results of the next batch, or of all.
    /// Of results that rows have one of each, `kept` tells which rows are not left out.
    fn take(
        &mut self,
        output: &Output<Tensor>,
        kept: impl Fn() -> Result<Option<Vec<bool>>>,
    ) -> Result<()> {
        let is_of_rows = |(name, tensor): (&str, &Tensor)| {
            ["loss", "correct"].contains(&name) && !tensor.shape().is_empty()
        };
        let kept = if parts(output).any(is_of_rows) { kept()? } else { None };
        for (name, tensor) in parts(output) {
            self.writer.append(name, tensor)?;
            if let Some((_, summary)) = self.summaries.iter_mut().find(|(part, _)| *part == name) {
                let kept = kept.as_deref().filter(|_| is_of_rows((name, tensor)));
                summary.add(tensor, kept);
            }
        }
        Ok(())
    }
}

/// The results that can be written, by their flags.
fn parts<T>(output: &Output<T>) -> impl Iterator<Item = (&'static str, &T)> {
    // maps have --output for what losses have --loss for
    let flag = |role| if role == Role::Output { Role::Loss } else { role };
    let parts = output.iter().filter(|(role, _)| *role != Role::State);
    parts.map(move |(role, part)| (flag(role).name(), part))
}

/// The library's error, with the flag and the file in place of the argument's name, types as numpy calls
/// them, and how to mend it. `advice` is how to divide the work, where it can be divided.
pub fn explain(
    error: &wgloss::Error,
    inputs: &[(&'static str, &Place)],
    advice: Option<&str>,
) -> anyhow::Error {
    let mut reason = error.reason();
    let mut name = error.argument().unwrap_or_default();
    match error {
        // a row that is too large by itself is no smaller in a batch of its own
        wgloss::Error::TooLarge { .. } if let Some(whole) = name.strip_prefix("one row of ") => {
            reason = format!("one row: {reason} (--device cpu has no such limit)");
            name = whole;
        }
        wgloss::Error::TooLarge { .. } | wgloss::Error::OutOfMemory(_) => {
            let advice = advice.unwrap_or("--device cpu has no such limit");
            reason += &format!(" ({advice})");
        }
        wgloss::Error::DType { expected, actual, .. } => reason = types(expected, *actual),
        _ => {}
    }
    let is_option = |name: &str| {
        let ops = wgloss::ops();
        name == "device" || ops.iter().flat_map(|op| op.options()).any(|info| info.name == name)
    };
    match inputs.iter().find(|(input, _)| *input == name) {
        _ if name.is_empty() => anyhow!(reason),
        Some((_, place)) => anyhow!("{} {place}: {reason}", flag(name)),
        None if is_option(name) || ARGUMENTS.contains(&name) => anyhow!("{}: {reason}", flag(name)),
        // of results and of what devices need beside them
        None => anyhow!("{name}: {reason}"),
    }
}

/// The arguments that have a flag.
const ARGUMENTS: [&str; 7] =
    ["input", "target", "weight", "pos_weight", "projection", "bias", "upstream"];

/// A type that came in place of others, as numpy calls them, and how it becomes one of those.
fn types(expected: &str, actual: DType) -> String {
    let all = [DType::F32, DType::F16, DType::Bf16, DType::I32, DType::I64, DType::F64];
    let known = |name: &str| all.into_iter().find(|dtype| dtype.name() == name);
    let name = |word| known(word).map_or(word, |dtype| numpy_name(dtype));
    let words: Vec<&str> = expected.split(' ').map(name).collect();
    let convert = match words.last() {
        Some(&("int32" | "int64")) => ": convert with .astype(np.int64)".into(),
        Some(&to @ ("float32" | "float16")) if actual != DType::Bf16 => {
            format!(": convert with .astype(np.{to})")
        }
        _ => String::new(),
    };
    format!("expected {}, got {}{convert}", words.join(" "), numpy_name(actual))
}

/// A result in a line: the one value of a mean or sum; otherwise what can be said of all.
struct Summary {
    name: &'static str,
    shape: Vec<usize>,
    is_exact: bool,
    /// Of the numbers; the rest are NaN, or rows that are left out.
    count: usize,
    nans: usize,
    ignored: usize,
    sum: f64,
    min: f64,
    max: f64,
}

impl Summary {
    fn new(name: &'static str, shape: &[usize]) -> Self {
        let (min, max) = (f64::INFINITY, f64::NEG_INFINITY);
        let shape = shape.to_vec();
        let (count, nans, ignored) = (0, 0, 0);
        Summary { name, shape, is_exact: false, count, nans, ignored, sum: 0.0, min, max }
    }

    fn add(&mut self, tensor: &Tensor, kept: Option<&[bool]>) {
        self.is_exact = matches!(tensor, Tensor::Exact(_));
        for (i, &value) in tensor.to_f64().iter().enumerate() {
            if kept.is_some_and(|kept| !kept[i]) {
                self.ignored += 1;
                continue;
            }
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

    /// The one value of a result that has no dimensions.
    fn value(&self) -> f64 {
        if self.count > 0 { self.sum } else { f64::NAN }
    }

    fn mean(&self) -> f64 {
        self.sum / self.count as f64
    }

    /// As many digits as the result has.
    fn digits(&self, value: f64) -> String {
        match self.is_exact {
            true => seventeen_digits(value),
            false => format!("{:?}", value as f32),
        }
    }

    /// A number as JSON has it, or the name of what it has no number for.
    fn json(&self, value: f64) -> Value {
        let value = match self.is_exact {
            true => value,
            // 0.1 rather than 0.10000000149011612
            false => self.digits(value).parse().unwrap_or(value),
        };
        if value.is_finite() { value.into() } else { value.to_string().into() }
    }
}

impl Serialize for Summary {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("shape", &self.shape)?;
        match self.name {
            _ if self.shape.is_empty() && !INTEGERS.contains(&self.name) => {
                map.serialize_entry("value", &self.json(self.value()))?;
            }
            "argmax" => {}
            "correct" => {
                map.serialize_entry("correct", &(self.sum as u64))?;
                map.serialize_entry("kept", &self.count)?;
                map.serialize_entry("accuracy", &self.json(self.mean()))?;
            }
            _ => {
                let has_numbers = self.count > 0;
                let numbers = [("mean", self.mean()), ("min", self.min), ("max", self.max)];
                for (key, value) in numbers.into_iter().filter(|_| has_numbers) {
                    map.serialize_entry(key, &self.json(value))?;
                }
                map.serialize_entry("nan", &self.nans)?;
                map.serialize_entry("ignored", &self.ignored)?;
            }
        }
        map.end()
    }
}

/// Results whose mean means nothing, or something else.
const INTEGERS: [&str; 2] = ["argmax", "correct"];

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.shape.is_empty() && !INTEGERS.contains(&self.name) {
            return f.write_str(&self.digits(self.value()));
        }
        write!(f, "{:?}", self.shape)?;
        match self.name {
            "argmax" => return Ok(()),
            "correct" => {
                write!(f, ": {} of {} rows", self.sum, self.count)?;
                if self.count > 0 {
                    write!(f, ", {:.4}", self.mean())?;
                }
            }
            _ if self.count > 0 => {
                let [mean, min, max] = [self.mean(), self.min, self.max].map(|v| self.digits(v));
                write!(f, ": mean {mean}, from {min} to {max}")?;
            }
            _ => {}
        }
        if self.nans > 0 {
            write!(f, ", {} NaN", self.nans)?;
        }
        if self.ignored > 0 {
            write!(f, ", {} ignored", self.ignored)?;
        }
        Ok(())
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
    fn advice_names_flags_that_exist_and_help() {
        let place = |name: &str| {
            let Ok(place) = name.parse::<Place>();
            place
        };
        let (x, t) = (place("x.npy"), place("t.npy"));
        let inputs = [("input", &x), ("target", &t)];
        let too_large = |argument| wgloss::Error::TooLarge {
            argument,
            bytes: 200,
            limit: 100,
            limit_name: "max_storage_buffer_binding_size",
            device: "GPU".into(),
        };
        let size = "expected at most 100 bytes (max_storage_buffer_binding_size of GPU), got 200";
        let cpu = "(--device cpu has no such limit)";
        let dtype = |argument, expected: &str, actual| wgloss::Error::DType {
            argument,
            expected: expected.into(),
            actual,
        };
        let some = Some("--batch-rows divides the work");
        for (error, advice, text) in [
            (
                too_large("input"),
                some,
                format!("--input x.npy: {size} (--batch-rows divides the work)"),
            ),
            (too_large("input"), None, format!("--input x.npy: {size} {cpu}")),
            // one image is no smaller in a batch of its own
            (too_large("one row of input"), some, format!("--input x.npy: one row: {size} {cpu}")),
            (too_large("one row of results"), some, format!("results: one row: {size} {cpu}")),
            (too_large("workspace"), None, format!("workspace: {size} {cpu}")),
            (
                wgloss::Error::OutOfMemory("no more".into()),
                some,
                "--device: out of memory: no more (--batch-rows divides the work)".into(),
            ),
            (
                dtype("target", "f32", DType::F16),
                None,
                "--target t.npy: expected float32, got float16: convert with .astype(np.float32)"
                    .into(),
            ),
            (
                dtype("target", "bf16", DType::F32),
                None,
                "--target t.npy: expected bfloat16, got float32".into(),
            ),
            (
                dtype("target", "f16", DType::Bf16),
                None,
                "--target t.npy: expected float16, got bfloat16".into(),
            ),
        ] {
            assert_eq!(explain(&error, &inputs, advice).to_string(), text);
        }
        // every flag that these name is one of each op's
        let mut command = <crate::Cli as clap::CommandFactory>::command();
        let run = command.find_subcommand_mut("run").expect("a subcommand");
        for op in run.get_subcommands().filter(|op| op.get_name() != "help") {
            for flag in ["batch-rows", "device", "input"] {
                assert!(op.get_arguments().any(|arg| arg.get_long() == Some(flag)), "{flag}");
            }
        }
    }

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
