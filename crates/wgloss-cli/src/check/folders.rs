//! Conformance folders: every case computed and judged, every error refused.

use std::collections::HashSet;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use wgloss::{Args, Error, Output, Pass, Role};
use wgloss_testing::cases::{self, Case, Folder};
use wgloss_testing::table::PASSES;

use super::Only;
use super::report::{Outcome, Record, Report};
use crate::files::Tensor;
use crate::machine::Machine;
use crate::progress;

/// What the columns of the report are: gradients share one.
const COLUMNS: [&str; 3] = ["out", "grad", "log_prob"];

/// The gradients that a case may have a reference of.
const GRADS: [Role; 3] = [Role::Grad, Role::GradProjection, Role::GradBias];

/// A folder and what to call it.
pub struct Named {
    name: String,
    folder: Folder,
}

/// What was computed, by the keys of `--dump`.
pub type Tensors = Vec<(String, Tensor)>;

/// Reads folders, as far as their ops were asked for.
pub fn load(paths: &[PathBuf], only: &Only) -> Result<Vec<Named>> {
    let read =
        |path: &PathBuf| Ok(Named { name: path.display().to_string(), folder: cases::load(path)? });
    let mut folders = paths.iter().map(read).collect::<Result<Vec<_>>>()?;
    let all = folders.iter().flat_map(|Named { folder, .. }| [&folder.cases, &folder.errors]);
    only.expect_among(all.flatten().map(|case| &case.op[..]))?;
    for Named { folder, .. } in &mut folders {
        folder.cases.retain(|case| only.has(&case.op));
        folder.errors.retain(|case| only.has(&case.op));
    }
    Ok(folders)
}

/// Refuses cases that could not be told apart in a dump.
pub fn expect_unique_names(folders: &[Named]) -> Result<()> {
    let mut names = HashSet::new();
    for case in folders.iter().flat_map(|named| &named.folder.cases) {
        let name = &case.name;
        ensure!(names.insert(name), "--dump: expected cases of different names, got two {name:?}");
    }
    Ok(())
}

/// Computes and judges all of them.
pub fn run(machine: &Machine, folders: &[Named]) -> (Report, Tensors) {
    let count = |named: &Named| named.folder.cases.len() + named.folder.errors.len();
    let bar = progress::cases(folders.iter().map(count).sum());
    let (mut records, mut tensors) = (Vec::new(), Vec::new());
    for Named { name, folder } in folders {
        // cases of an op together, as the table has them, in the order in which ops come
        let mut all: Vec<(&Case, bool)> = folder.cases.iter().map(|case| (case, false)).collect();
        all.extend(folder.errors.iter().map(|case| (case, true)));
        let mut order: Vec<&str> = Vec::new();
        for (case, _) in &all {
            if !order.contains(&&case.op[..]) {
                order.push(&case.op);
            }
        }
        all.sort_by_key(|(case, is_error)| (*is_error, order.iter().position(|op| *op == case.op)));
        for (case, is_error) in all {
            bar.set_message(case.name.clone());
            let result = match (case.is_computable(), is_error) {
                (false, _) => Judged::skipped("its dtype is not float32"),
                (true, true) => refused(machine, case),
                (true, false) => judged(machine, case, &mut tensors),
            };
            let group = if is_error { format!("{name} (errors)") } else { name.clone() };
            records.push(Record {
                op: case.op.clone(),
                group,
                case: case.name.clone(),
                outcome: result.outcome,
                worst: result.worst,
                reason: result.reason,
                bits: None,
            });
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let report = Report {
        device: machine.description.clone(),
        unit: "in units of the error allowed: see tests/conformance/README.md",
        group: "folder",
        columns: COLUMNS,
        cases: records,
    };
    (report, tensors)
}

/// What came of a case.
struct Judged {
    outcome: Outcome,
    worst: [Option<f64>; 3],
    reason: Option<String>,
}

impl Judged {
    fn passed() -> Self {
        Judged { outcome: Outcome::Passed, worst: [None; 3], reason: None }
    }

    fn failed(reason: String) -> Self {
        Judged { outcome: Outcome::Failed, reason: Some(reason), ..Judged::passed() }
    }

    fn skipped(reason: &str) -> Self {
        let reason = Some(reason.into());
        Judged { outcome: Outcome::Skipped, reason, ..Judged::passed() }
    }
}

/// A case, whose op must come to the reference in every pass that has one.
fn judged(machine: &Machine, case: &Case, tensors: &mut Tensors) -> Judged {
    let mut judged = Judged::passed();
    let mut wrong = Vec::new();
    if let Err(error) = judge(machine, case, tensors, &mut judged.worst, &mut wrong) {
        wrong.push(format!("{error:#}"));
    }
    match &wrong[..] {
        [] => judged,
        wrong => Judged { worst: judged.worst, ..Judged::failed(wrong.join("; ")) },
    }
}

fn judge(
    machine: &Machine,
    case: &Case,
    tensors: &mut Tensors,
    worst: &mut [Option<f64>; 3],
    wrong: &mut Vec<String>,
) -> Result<()> {
    let logits = case.magnitude()?;
    let mut hold = |column: usize, name: &str, pass: Pass, tensor: &Tensor| -> Result<()> {
        let Some(want) = case.reference(&format!("{name}_ref"))? else { return Ok(()) };
        let got: Vec<f32> = tensor.to_f64().iter().map(|&v| v as f32).collect();
        match want.judge(&got, tensor.shape(), tensor.rounding(), logits) {
            Ok(found) => {
                let units = worst[column].get_or_insert(0.0);
                *units = units.max(found.units);
            }
            Err(error) => wrong.push(format!("{name} of {}: {error}", pass.name())),
        }
        Ok(())
    };
    let mut has_grad = false;
    for role in GRADS {
        has_grad |= case.reference(&format!("{role}_ref"))?.is_some();
    }
    for pass in PASSES.into_iter().filter(|pass| has_grad || !pass.has_grad()) {
        let mut output = compute(machine, case, pass)?;
        let out = output.take(Role::Loss).or_else(|| output.take(Role::Output));
        let parts = GRADS.into_iter().map(|role| (1, role.name(), output.take(role)));
        let parts: Vec<_> = std::iter::once((0, COLUMNS[0], out)).chain(parts).collect();
        for (column, name, part) in parts {
            let Some(tensor) = part else { continue };
            hold(column, name, pass, &tensor)?;
            // of all passes one is written: the fused one, where there is a gradient
            if has_grad == (pass == Pass::ForwardBackward) {
                tensors.push((format!("{}/{name}", case.name), tensor));
            }
        }
    }
    if case.reference("log_prob_ref")?.is_some() {
        let op = case.log_probabilities();
        let mut out = machine.run(&*op, Pass::Forward, &Args::new(case.input()?))?;
        let log_prob = out.take(Role::Output).context("log_softmax has an output")?;
        hold(2, COLUMNS[2], Pass::Forward, &log_prob)?;
        tensors.push((format!("{}/log_prob", case.name), log_prob));
    }
    Ok(())
}

/// A case that must be refused. That a device fails is no refusal.
fn refused(machine: &Machine, case: &Case) -> Judged {
    let what = case.what.as_deref().unwrap_or("its arguments");
    match compute(machine, case, Pass::ForwardBackward) {
        Ok(_) => Judged::failed(format!("expected an error for {what}, got a result")),
        Err(error) => match error.downcast_ref::<Error>() {
            Some(
                Error::TooLarge { .. }
                | Error::NoAdapter { .. }
                | Error::OutOfMemory(_)
                | Error::DeviceLost(_)
                | Error::Validation(_)
                | Error::Internal(_),
            ) => Judged::failed(format!("expected an error for {what}, got another: {error:#}")),
            _ => Judged::passed(),
        },
    }
}

/// A pass of a case's op, and of the map before it.
fn compute(machine: &Machine, case: &Case, pass: Pass) -> Result<Output<Tensor>> {
    let (op, pre, input) = (case.op()?, case.pre()?, case.input()?);
    let Some(pre) = pre else {
        return Ok(machine.run(&*op, pass, &case.args(pass)?)?);
    };
    let raw = Args::new(input);
    let mapped = machine.run(&*pre, Pass::Forward, &raw)?.take(Role::Output);
    let mapped = mapped.context("a map has an output")?;
    let mut output = machine.run(&*op, pass, &case.args_over(mapped.into_array()?, pass)?)?;
    // the chain rule: the op's gradient is the map's upstream
    if let Some(grad) = output.take(Role::Grad) {
        let raw = raw.upstream(grad.into_array()?);
        let grad = machine.run(&*pre, Pass::Backward, &raw)?.take(Role::Grad);
        output = output.with(Role::Grad, grad.context("backward has a gradient")?);
    }
    Ok(output)
}
