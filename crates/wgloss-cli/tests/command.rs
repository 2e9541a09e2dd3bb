//! The program as a user runs it.

use std::path::Path;
use std::process::Command;

/// What a process left behind.
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    /// The report, where all went well.
    #[track_caller]
    pub fn report(self) -> String {
        assert_eq!((self.code, &self.stderr[..]), (Some(0), ""), "{}", self.stdout);
        self.stdout
    }

    /// The one line on stderr, where it did not.
    #[track_caller]
    pub fn refusal(self) -> String {
        assert_eq!((self.code, &self.stdout[..]), (Some(1), ""), "{}", self.stderr);
        let line = self.stderr.strip_prefix("wgloss: error: ").and_then(|e| e.strip_suffix('\n'));
        let line = line.unwrap_or_else(|| panic!("{}", self.stderr));
        assert!(!line.contains('\n'), "{line}");
        line.into()
    }
}

/// Runs the program with the words of `command` in a folder.
pub fn wgloss(folder: &Path, command: &str, environment: &[(&str, &str)]) -> Run {
    let output = program(folder, command).envs(environment.iter().copied()).output().unwrap();
    finished(output)
}

/// The program, yet to be started.
pub fn program(folder: &Path, command: &str) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_wgloss"));
    program.args(command.split_whitespace());
    in_folder(&mut program, folder);
    program
}

/// A line of a shell, in which `$wgloss` is the program.
#[cfg(unix)]
pub fn shell(folder: &Path, line: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", line]).env("wgloss", env!("CARGO_BIN_EXE_wgloss"));
    in_folder(&mut shell, folder);
    shell
}

fn in_folder(command: &mut Command, folder: &Path) {
    // Mesa complains on stderr where there is none
    command.env("XDG_RUNTIME_DIR", folder).current_dir(folder);
}

/// What a process left behind, all of it text.
pub fn finished(output: std::process::Output) -> Run {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Run { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// A line of a report by its first word.
#[track_caller]
pub fn line<'a>(report: &'a str, word: &str) -> &'a str {
    let mut lines = report.lines().filter_map(|line| line.strip_prefix(word));
    lines.next().unwrap_or_else(|| panic!("no {word} in:\n{report}")).trim()
}
