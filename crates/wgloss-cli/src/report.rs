//! What a command has to tell, and where that goes.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Error, Result};

use crate::files;

/// `--quiet`.
static IS_QUIET: AtomicBool = AtomicBool::new(false);

/// From now on, nothing is told but what was asked for and errors.
pub fn be_quiet() {
    IS_QUIET.store(true, Ordering::Relaxed);
}

/// Whether nothing else is to be told.
pub fn is_quiet() -> bool {
    IS_QUIET.load(Ordering::Relaxed)
}

/// The flag that every command has for a report that programs read.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Json {
    /// Write the report as JSON: to FILE, or without one (or with -) to standard output, in place of the
    /// text
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    json: Option<PathBuf>,
}

impl Json {
    /// Refuses a file that cannot be written.
    pub fn check(&self) -> Result<()> {
        let Some(path) = &self.json else { return Ok(()) };
        files::expect_writable(path).with_context(|| format!("--json {}", path.display()))
    }

    /// The file.
    pub fn path(&self) -> Option<&Path> {
        self.json.as_deref()
    }

    /// Tells a report: `json` to where it is asked for, `lines` to standard output, where that is still
    /// free, or else to standard error.
    pub fn tell(
        &self,
        json: impl FnOnce() -> Result<String>,
        lines: &[String],
        is_output_taken: bool,
    ) -> Result<()> {
        if let Some(path) = &self.json {
            let text = json()? + "\n";
            files::replace(path, text.as_bytes())
                .with_context(|| format!("--json {}", path.display()))?;
            if files::is_standard(path) {
                return Ok(());
            }
        }
        match is_output_taken {
            true => {
                lines.iter().for_each(|line| note(line));
                Ok(())
            }
            false => print(lines),
        }
    }
}

/// Prints lines. A reader that has seen enough is no error.
pub fn print(lines: &[String]) -> Result<()> {
    if is_quiet() {
        return Ok(());
    }
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::new(error).context("cannot print the report"))
        }
        _ => Ok(()),
    }
}

/// A line on standard error.
pub fn note(line: &str) {
    if !is_quiet() {
        // nobody is left to tell if this fails
        let _ = writeln!(io::stderr(), "{line}");
    }
}
