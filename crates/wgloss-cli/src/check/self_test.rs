//! The device against the float64 reference, over the table of every op and option.

use std::cell::Cell;

use anyhow::Result;
use rayon::prelude::*;
use wgloss::{Array, Output, Role};
use wgloss_testing::table::{self, Case, Row};

use super::Only;
use super::report::{Outcome, Record, Report};
use crate::files::Tensor;
use crate::machine::Machine;
use crate::progress;

/// The rows of the table that were asked for.
pub fn rows(only: &Only) -> Result<Vec<Row>> {
    let mut table = table::table();
    only.expect_among(table.iter().map(Row::op))?;
    table.retain(|row| only.has(row.op()));
    Ok(table)
}

/// Runs every case under every pass. Each row of the table has a device of its own, since rows share few
/// kernels: so rows run side by side, where most of the time goes into compiling, and no driver keeps
/// the kernels of all.
pub fn run(open: impl Fn() -> Result<Machine> + Sync, table: &[Row]) -> Result<Report> {
    let bar = progress::cases(table.iter().map(|row| row.cases().len()).sum());
    let run_row = |row: &Row| {
        let machine = open()?;
        let records: Result<Vec<_>> = row
            .cases()
            .iter()
            .map(|case| {
                bar.set_message(row.op());
                let record = record(&machine, row, case)?;
                bar.inc(1);
                Ok(record)
            })
            .collect();
        Ok((machine.description, records?))
    };
    // few at once: a device of a hardware GPU takes some of its memory too
    let threads = rayon::current_num_threads().min(4);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    let rows: Result<Vec<_>> =
        pool.install(|| table.par_iter().with_max_len(1).map(run_row).collect());
    bar.finish_and_clear();
    let (devices, records): (Vec<_>, Vec<_>) = rows?.into_iter().unzip();
    Ok(Report {
        device: devices.into_iter().next().unwrap_or_default(),
        unit: "in units of the error allowed: what the documentation promises, or 1",
        group: "options",
        columns: ["forward", "backward", "fused"],
        cases: records.into_iter().flatten().collect(),
    })
}

fn record(machine: &Machine, row: &Row, case: &Case<'_>) -> Result<Record> {
    let bits = Cell::new(FNV_OFFSET);
    let passes = case.check(|op, pass, args| {
        let output = machine.run(op, pass, args).and_then(rounded);
        let output = output.map_err(|error| error.to_string())?;
        bits.set(hash(bits.get(), &output));
        Ok(output)
    })?;
    let worst = passes.each_ref().map(|worst| worst.as_ref().ok().copied());
    let reasons = passes
        .into_iter()
        .zip(table::PASSES)
        .filter_map(|(worst, pass)| Some(format!("{}: {}", pass.name(), worst.err()?)));
    let reasons: Vec<_> = reasons.collect();
    Ok(Record {
        op: row.op().into(),
        group: row.options.into(),
        case: case.name(),
        outcome: if reasons.is_empty() { Outcome::Passed } else { Outcome::Failed },
        worst,
        reason: (!reasons.is_empty()).then(|| reasons.join("; ")),
        bits: Some(format!("{:016x}", bits.get())),
    })
}

/// The start of an FNV-1a hash of 64 bits (Fowler, Noll and Vo).
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

/// A hash with the bytes of every result added.
fn hash(seed: u64, output: &Output<Array<'static>>) -> u64 {
    let roles = [
        Role::Loss,
        Role::Output,
        Role::Grad,
        Role::State,
        Role::Partial,
        Role::Divisor,
        Role::LogSumExp,
        Role::Argmax,
        Role::Correct,
        Role::Entropy,
        Role::GradProjection,
        Role::GradBias,
    ];
    let results = roles.into_iter().filter_map(|role| output.get(role));
    let bytes = results.flat_map(|array| array.data().bytes());
    bytes.fold(seed, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

fn rounded(output: Output<Tensor>) -> wgloss::Result<Output<Array<'static>>> {
    output.into_iter().map(|(role, tensor)| Ok((role, tensor.into_array()?))).collect()
}
