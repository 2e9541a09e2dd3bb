//! The device against the float64 reference, over the grid of every op and option.

use anyhow::Result;
use wgloss::{Array, Output};

use super::grid::{self, Row};
use super::report::{Outcome, Record, Report};
use super::{Only, progress};
use crate::files::Tensor;
use crate::machine::Machine;

/// The rows of the grid that were asked for.
pub fn rows(only: &Only) -> Result<Vec<Row>> {
    let mut table = grid::table();
    only.expect_among(table.iter().map(Row::op))?;
    table.retain(|row| only.has(row.op()));
    Ok(table)
}

/// Runs every case under every pass.
pub fn run(machine: &Machine, table: &[Row]) -> Result<Report> {
    let cases: Vec<_> =
        table.iter().flat_map(|row| row.cases().into_iter().map(move |case| (row, case))).collect();
    let bar = progress(cases.len());
    let mut records = Vec::new();
    for (row, case) in &cases {
        bar.set_message(row.op());
        let passes = case.check(|op, pass, args| {
            let output = machine.run(op, pass, args).and_then(rounded);
            output.map_err(|error| error.to_string())
        })?;
        let worst = passes.each_ref().map(|worst| worst.as_ref().ok().copied());
        let reasons = passes
            .into_iter()
            .zip(grid::PASSES)
            .filter_map(|(worst, pass)| Some(format!("{}: {}", pass.name(), worst.err()?)));
        let reasons: Vec<_> = reasons.collect();
        records.push(Record {
            op: row.op().into(),
            group: row.options.into(),
            case: case.name(),
            outcome: if reasons.is_empty() { Outcome::Passed } else { Outcome::Failed },
            worst,
            reason: (!reasons.is_empty()).then(|| reasons.join("; ")),
        });
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(Report {
        device: machine.description.clone(),
        unit: "in units of the error allowed: what the documentation promises, or 1",
        group: "options",
        columns: ["forward", "backward", "fused"],
        cases: records,
    })
}

fn rounded(output: Output<Tensor>) -> wgloss::Result<Output<Array<'static>>> {
    let part = |tensor: Option<Tensor>| tensor.map(Tensor::into_array).transpose();
    Ok(Output {
        loss: part(output.loss)?,
        grad: part(output.grad)?,
        state: part(output.state)?,
        logsumexp: part(output.logsumexp)?,
        argmax: part(output.argmax)?,
        correct: part(output.correct)?,
        ..Output::default()
    })
}
