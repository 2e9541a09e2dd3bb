//! `wgloss check`: whether a device computes what it should.

mod report;
mod folders;
mod self_test;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use wgloss::Team;

use crate::files::Place;
use crate::machine::{Device, Machine};
use crate::report::Json;

/// The flags.
#[derive(Debug, clap::Args)]
pub struct Flags {
    /// A folder of cases to compute instead, as tests/conformance/README.md describes it;
    /// may be given more than once
    #[arg(long, value_name = "DIR")]
    cases: Vec<PathBuf>,
    /// Only this op, as in `wgloss run --help`; may be given more than once
    #[arg(long, value_name = "OP")]
    only: Vec<String>,
    /// Where to compute
    #[arg(long, value_enum, default_value_t = Device::Auto)]
    device: Device,
    /// Only adapters whose name or driver contains this, in any case of letters
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
    /// Compute every case with this team of a GPU, where it has that, instead of the one that suits it
    #[arg(long, value_parser = ["invocation", "subgroup", "workgroup"])]
    team: Option<String>,
    // every case's result, with a hash of its bits
    #[command(flatten)]
    json: Json,
    /// Where to write what was computed of --cases: CASE/out, CASE/grad
    #[arg(long, value_name = "FILE.safetensors", requires = "cases")]
    dump: Option<Place>,
}

/// Checks, reports, and tells whether nothing failed.
pub fn check(flags: &Flags) -> Result<bool> {
    // what is wrong with files is found before any work
    flags.json.check()?;
    if let Some(place) = &flags.dump {
        let check = || {
            place.expect_tensors()?;
            flags.json.path().map_or(Ok(()), |json| place.expect_apart("--json", json))
        };
        check().with_context(|| format!("--dump {place}"))?;
    }
    let only = Only(flags.only.iter().map(|op| op.replace('-', "_")).collect());
    let (folders, table) = match &flags.cases[..] {
        [] => (vec![], self_test::rows(&only)?),
        paths => (folders::load(paths, &only)?, vec![]),
    };
    if flags.dump.is_some() {
        folders::expect_unique_names(&folders)?;
    }

    let teams = [Team::Invocation, Team::Subgroup, Team::Workgroup];
    let team = teams.into_iter().find(|team| Some(team.name()) == flags.team.as_deref());
    let open = || Machine::open(flags.device, flags.adapter.as_deref(), team);
    let (report, tensors) = match &folders[..] {
        [] => (self_test::run(open, &table)?, vec![]),
        folders => folders::run(&open()?, folders),
    };
    if let Some(place) = &flags.dump {
        place.write_tensors(&tensors).with_context(|| format!("--dump {place}"))?;
    }
    flags.json.tell(|| report.json(), &report.lines(), false)?;
    Ok(report.is_good())
}

/// The ops that were asked for: all, where none is named.
struct Only(Vec<String>);

impl Only {
    fn has(&self, op: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|name| name == op)
    }

    /// Refuses a name that is none of those there are.
    fn expect_among<'a>(&self, ops: impl Iterator<Item = &'a str>) -> Result<()> {
        let mut known: Vec<_> = ops.collect();
        known.dedup();
        match self.0.iter().find(|name| !known.contains(&&name[..])) {
            None => Ok(()),
            Some(name) => bail!("--only {name}: expected one of {}", known.join(", ")),
        }
    }
}
