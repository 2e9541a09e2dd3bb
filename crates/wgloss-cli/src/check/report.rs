//! What came of the cases: a table for people, JSON for programs.

use anyhow::Result;
use serde::Serialize;

/// What came of a case.
#[derive(Debug, Serialize)]
pub struct Record {
    pub op: String,
    /// The op's options, or the case's folder.
    pub group: String,
    pub case: String,
    pub outcome: Outcome,
    /// The worst error of each column, in units of the error allowed.
    pub worst: [Option<f64>; 3],
    /// What is wrong, or why it was left out.
    pub reason: Option<String>,
    /// A hash of all that was computed: the same from two devices or two versions whose results are
    /// the same to the bit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Passed,
    Failed,
    Skipped,
}

/// What came of all cases.
#[derive(Debug, Serialize)]
pub struct Report {
    pub device: String,
    /// What the error allowed is, in a line.
    pub unit: &'static str,
    /// What the groups are.
    #[serde(skip)]
    pub group: &'static str,
    /// What each record's errors are of.
    pub columns: [&'static str; 3],
    pub cases: Vec<Record>,
}

/// As JSON has it.
#[derive(Serialize)]
struct WithCounts<'a> {
    #[serde(flatten)]
    report: &'a Report,
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Report {
    fn count(&self, outcome: Outcome) -> usize {
        self.cases.iter().filter(|case| case.outcome == outcome).count()
    }

    /// Whether nothing failed.
    pub fn is_good(&self) -> bool {
        self.count(Outcome::Failed) == 0
    }

    /// The whole of it, indented.
    pub fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(&WithCounts {
            report: self,
            passed: self.count(Outcome::Passed),
            failed: self.count(Outcome::Failed),
            skipped: self.count(Outcome::Skipped),
        })?)
    }

    /// The table, what failed, and the counts.
    pub fn lines(&self) -> Vec<String> {
        /// More than a screen of failures says no more.
        const SHOWN: usize = 40;
        let mut lines = vec![format!("device  {}", self.device), format!("errors  {}", self.unit)];
        lines.push(String::new());
        lines.extend(self.table());
        lines.push(String::new());
        let failed: Vec<_> =
            self.cases.iter().filter(|case| case.outcome == Outcome::Failed).collect();
        lines.extend(failed.iter().take(SHOWN).map(|case| {
            let reason = case.reason.as_deref().unwrap_or("failed");
            let group = if case.group.is_empty() { "" } else { " " };
            format!("FAILED  {}{group}{}: {}: {reason}", case.op, case.group, case.case)
        }));
        if failed.len() > SHOWN {
            lines.push(format!("FAILED  and {} more", failed.len() - SHOWN));
        }
        lines.push(format!(
            "{} passed, {} failed, {} skipped",
            self.count(Outcome::Passed),
            self.count(Outcome::Failed),
            self.count(Outcome::Skipped),
        ));
        lines
    }

    /// One line for each op and group.
    fn table(&self) -> Vec<String> {
        let [a, b, c] = self.columns;
        let mut rows = vec![["op", self.group, "cases", a, b, c, "worst case"].map(String::from)];
        let is_same = |a: &Record, b: &Record| a.op == b.op && a.group == b.group;
        for cases in self.cases.chunk_by(is_same) {
            let has_failed = cases.iter().any(|case| case.outcome == Outcome::Failed);
            let worst = |column: usize| {
                let all = cases.iter().filter_map(|case| Some((case.worst[column]?, case)));
                all.max_by(|a, b| a.0.total_cmp(&b.0))
            };
            let worst = [worst(0), worst(1), worst(2)];
            let of_all = worst
                .iter()
                .zip(self.columns)
                .filter_map(|(worst, column)| Some(((*worst)?, column)));
            let of_all = of_all.max_by(|(a, _), (b, _)| a.0.total_cmp(&b.0));
            let name = match (has_failed, of_all) {
                (true, _) => "FAILED: see below".into(),
                (false, Some(((units, case), column))) if units > 0.0 => {
                    format!("{column} {}", case.case)
                }
                _ => String::new(),
            };
            let cell = |worst: Option<(f64, &Record)>| match worst {
                None => "-".into(),
                Some((units, _)) => format!("{units:.2}"),
            };
            let [a, b, c] = worst.map(cell);
            let count = cases.len().to_string();
            rows.push([cases[0].op.clone(), cases[0].group.clone(), count, a, b, c, name]);
        }
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
        let widths: [usize; 7] = std::array::from_fn(|column| width(column).unwrap_or(0));
        let line = |row: &[String; 7]| {
            let cells = row.iter().zip(widths).enumerate().map(|(column, (cell, width))| {
                // numbers to the right
                if (2..6).contains(&column) {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:width$}")
                }
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        rows.iter().map(line).collect()
    }
}
