//! `wgloss`: loss kernels from the command line.

mod npy;
mod files;
mod progress;
mod devices;
mod machine;
mod ops;
mod batches;
mod run;
mod check;
mod bench;

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Error, Result};
use clap::{Parser, Subcommand};

const EXAMPLES: &str = "\
Examples:
  wgloss run cross-entropy --input logits.npy --target targets.npy \\
      --label-smoothing 0.1 --loss loss.npy --grad grad.npy
  wgloss run bce-with-logits --input batch.safetensors#logits \\
      --target batch.safetensors#labels --reduction none --loss out.safetensors \\
      --grad out.safetensors --device gpu";

/// Losses and their gradients on the GPU
#[derive(Debug, Parser)]
#[command(name = "wgloss", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compute a loss, its gradient or both from arrays in files
    ///
    /// A FILE is `x.npy`, or `x.safetensors#KEY` for a tensor in a file that holds several; without
    /// #KEY the tensor of the argument's name is meant (input, target, loss, ...). Results that go
    /// to one .safetensors file are written together. Files are written when all results are
    /// complete, and replace what was there; upon an error, none is.
    ///
    /// The report tells how long the call took; `wgloss bench` measures more carefully.
    #[command(after_help = EXAMPLES)]
    Run {
        #[command(subcommand)]
        op: Box<ops::OpCommand>,
    },
    /// Hold a device to the promised accuracy: after a driver update, or on a new machine
    ///
    /// Every op, option, reduction and pass runs over random, confident, ramping, masked, extreme
    /// and broken inputs, and is held to the float64 reference. With --cases, the cases of a folder
    /// are computed and judged instead. The last line counts what passed, failed and was skipped;
    /// the exit status is 0 only if nothing failed.
    Check(check::Flags),
    /// Time kernels against copies on the same device
    ///
    /// Every result is held to the float64 reference before it is timed. Contenders take turns, and
    /// medians are told. GB/s count every argument and result once.
    Bench(bench::Flags),
    /// List the adapters that kernels can run on, and which of them `run` would take
    Devices {
        /// Write JSON
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run { op } => op.job().and_then(|job| run::run(&job)).map(|()| true),
        Command::Check(flags) => check::check(&flags),
        Command::Bench(flags) => bench::bench(&flags).map(|()| true),
        Command::Devices { json } => devices::list(json).map(|()| true),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        // the report tells what failed
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // one line, whatever a driver or a file's name has in it
            let text = format!("{error:#}").lines().map(str::trim).collect::<Vec<_>>().join(" ");
            // nobody is left to tell if this fails
            let _ = writeln!(io::stderr(), "wgloss: error: {text}");
            ExitCode::FAILURE
        }
    }
}

/// Prints lines. A reader that has seen enough is no error.
fn print(lines: &[String]) -> Result<()> {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::new(error).context("cannot print the report"))
        }
        _ => Ok(()),
    }
}
