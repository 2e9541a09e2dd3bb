//! `wgloss`: loss kernels from the command line.

mod npy;
mod files;
mod memory;
mod report;
mod progress;
mod devices;
mod machine;
mod ops;
mod batches;
mod run;
mod check;
mod bench;
mod manual;
#[cfg(test)]
mod fuzz;

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

const EXAMPLES: &str = "\
Examples:
  wgloss run cross-entropy --input logits.npy --target targets.npy \\
      --label-smoothing 0.1 --loss loss.npy --grad grad.npy
  wgloss run bce-with-logits --input batch.safetensors#logits \\
      --target batch.safetensors#labels --reduction none --loss out.safetensors \\
      --grad out.safetensors --device gpu
  produce-logits | wgloss run softmax --input - --output - | use-probabilities
  wgloss run mse --input x.npy --target y.npy --json | jq .results.loss.value";

const STATUSES: &str = "\
Exit status: 0 when all went well, 1 upon an error or where a check failed, 2 for a command line that is
not understood; a signal ends the program as it does any other.";

/// Losses and their gradients on the GPU
#[derive(Debug, Parser)]
#[command(name = "wgloss", version, propagate_version = true, after_help = STATUSES)]
struct Cli {
    /// Print nothing but errors, and what is sent to standard output by -
    #[arg(long, short, global = true)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compute a loss, its gradient or both from arrays in files
    ///
    /// A FILE is `x.npy`, or `x.safetensors#KEY` for a tensor in a file that holds several; without
    /// #KEY the tensor of the argument's name is meant (input, target, loss, ...). `-` is standard input,
    /// in either format, or standard output: `-` for .npy, `--loss=-#KEY` for .safetensors; the report goes to
    /// standard error then. Pipes are read too, by whatever name. Results that go to one .safetensors
    /// file are written together. Files are written when all results are complete, and replace what was
    /// there, whose permissions they keep; upon an error or a signal, none is.
    ///
    /// Numbers may be of any type: float64 is rounded to float32, except by `--device reference`, and
    /// integers and bool become floats where floats are asked for; a note on standard error tells where
    /// digits were lost. Classes are integers or bool. Gradients of float16 and bfloat16 have the input's
    /// type.
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
    Devices(report::Json),
    /// Print a completion script for a shell
    ///
    /// For bash, say: wgloss completions bash > ~/.local/share/bash-completion/completions/wgloss
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print a page of the manual, as roff
    ///
    /// To read one: wgloss man run cross-entropy | man -l -
    Man {
        /// The command whose page it is, such as `run cross-entropy`; none for the first page
        command: Vec<String>,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.quiet {
        report::be_quiet();
    }
    #[cfg(unix)]
    files::remove_upon_signals();
    match execute(cli.command) {
        Ok(true) => ExitCode::SUCCESS,
        // the report tells what failed
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // one line, whatever a driver or a file's name has in it
            let text = one_line(&error);
            // nobody is left to tell if this fails
            let _ = writeln!(io::stderr(), "wgloss: error: {text}");
            ExitCode::FAILURE
        }
    }
}

/// Does what a command asks for; whether nothing that it judges has failed.
fn execute(command: Command) -> Result<bool> {
    match command {
        Command::Run { op } => op.job().and_then(|job| run::run(&job)).map(|()| true),
        Command::Check(flags) => check::check(&flags),
        Command::Bench(flags) => bench::bench(&flags).map(|()| true),
        Command::Devices(json) => devices::list(&json).map(|()| true),
        Command::Completions { shell } => manual::completions(shell).map(|()| true),
        Command::Man { command } => manual::page(&command).map(|()| true),
    }
}

/// An error and its causes.
fn one_line(error: &anyhow::Error) -> String {
    format!("{error:#}").lines().map(str::trim).collect::<Vec<_>>().join(" ")
}
