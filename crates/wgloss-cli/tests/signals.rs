//! What ends the program from outside: nothing is left beside the output, and nothing half written in it.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::cli::npy;
use crate::command::{finished, shell};

/// A million rows, one at a time: seconds of work.
const LONG: &str =
    "$wgloss run sigmoid --input x.npy --output y.npy --batch-rows 1 --device reference";

/// A folder with an input, and a folder for results.
fn folder() -> TempDir {
    let folder = TempDir::new().unwrap();
    let header = npy("<f4", &[1 << 22], "False", &[]);
    let path = folder.path().join("x.npy");
    fs::write(&path, &header).unwrap();
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(header.len() as u64 + (4 << 22)).unwrap();
    folder
}

fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    // of drivers' own
    names.retain(|name| name.starts_with(".wgloss-") || name.ends_with(".npy"));
    names.sort();
    names
}

/// Starts the job, and waits until it writes.
fn started(folder: &Path, line: &str) -> Child {
    let mut child =
        shell(folder, line).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    while !names(folder).iter().any(|name| name.starts_with(".wgloss-")) {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it wrote");
        assert!(start.elapsed() < Duration::from_secs(60), "it never wrote");
        std::thread::sleep(Duration::from_millis(2));
    }
    child
}

fn send(signal: &str, child: &Child) {
    let line = format!("kill -s {signal} {}", child.id());
    assert!(Command::new("sh").args(["-c", &line]).status().unwrap().success());
}

/// Whether a signal is ignored here, as ^C is in the background jobs of scripts, and so in what is started
/// from here.
fn is_ignored(signal: i32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.is_some_and(|mask| u64::from_str_radix(mask.trim(), 16).unwrap() >> (signal - 1) & 1 == 1)
}

#[test]
fn a_signal_leaves_nothing_beside_the_output() {
    for (signal, number) in [("INT", 2), ("TERM", 15), ("HUP", 1), ("QUIT", 3), ("XCPU", 24)] {
        if is_ignored(number) {
            continue;
        }
        let folder = folder();
        fs::write(folder.path().join("y.npy"), "as it was").unwrap();
        let mut child = started(folder.path(), &format!("ulimit -c 0; exec {LONG}"));
        send(signal, &child);
        let status = child.wait().unwrap();
        // shells go by it: a loop ends upon ^C
        assert_eq!(status.signal(), Some(number), "{signal}: {status}");
        assert_eq!(names(folder.path()), ["x.npy", "y.npy"], "{signal}");
        assert_eq!(fs::read(folder.path().join("y.npy")).unwrap(), b"as it was", "{signal}");
    }
}

/// As `nohup` has it.
#[cfg(target_os = "linux")]
#[test]
fn what_a_parent_has_ignored_stays_ignored() {
    let folder = folder();
    let mut child = started(folder.path(), &format!("trap '' HUP; exec {LONG}"));
    send("HUP", &child);
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "SIGHUP ended it");
    send("TERM", &child);
    assert_eq!(child.wait().unwrap().signal(), Some(15));
    assert_eq!(names(folder.path()), ["x.npy"]);
}

#[test]
fn a_file_beyond_the_limit_is_an_error() {
    let folder = folder();
    let line = "ulimit -f 8; exec $wgloss run sigmoid --input x.npy --output y.npy --device cpu";
    let refusal = finished(shell(folder.path(), line).output().unwrap()).refusal();
    assert!(refusal.starts_with("--loss y.npy: File too large"), "{refusal}");
    assert_eq!(names(folder.path()), ["x.npy"]);
}

#[test]
fn a_file_that_is_cut_while_it_is_read_is_named() {
    let folder = folder();
    let child = started(folder.path(), &format!("exec {LONG}"));
    let input = fs::OpenOptions::new().write(true).open(folder.path().join("x.npy")).unwrap();
    input.set_len(1000).unwrap();
    let refusal = finished(child.wait_with_output().unwrap()).refusal();
    let text = "--input x.npy: expected a file that stays as it is, found it cut";
    assert!(refusal.starts_with(text), "{refusal}");
    assert_eq!(names(folder.path()), ["x.npy"]);
}

/// Where there is not as much address space, and where there is not as much memory.
#[cfg(target_os = "linux")]
#[test]
fn what_memory_does_not_hold_is_refused_before_it_is_read() {
    let folder = TempDir::new().unwrap();
    let sparse = |name: &str, shape: &[usize]| {
        let header = npy("<f4", shape, "False", &[]);
        let path = folder.path().join(name);
        fs::write(&path, &header).unwrap();
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        let bytes = shape.iter().product::<usize>() as u64 * 4;
        file.set_len(header.len() as u64 + bytes).unwrap();
    };
    sparse("large.npy", &[20_000_000]);
    sparse("row.npy", &[1, 20_000_000]);
    sparse("huge.npy", &[1 << 38]);
    let divides = ": --batch-rows divides the work";
    for device in ["auto", "cpu", "reference"] {
        for (limit, name, at_least, advice) in [
            ("ulimit -v 200000;", "large.npy", 152, divides),
            ("ulimit -v 200000;", "row.npy", 152, ""),
            ("", "huge.npy", 2 << 20, divides),
        ] {
            let line = format!(
                "{limit} exec $wgloss run mse --input {name} --target {name} --grad g.npy --device {device}"
            );
            let refusal = finished(shell(folder.path(), &line).output().unwrap()).refusal();
            let start = format!("--input {name}: expected memory for ");
            let rest = refusal.strip_prefix(&start).unwrap_or_else(|| panic!("{line}: {refusal}"));
            let (size, rest) = rest.split_once(", ").unwrap();
            let (size, unit) = size.split_once(' ').unwrap();
            let mebibytes = if unit == "TiB" { 1048576.0 } else { 1.0 };
            assert!(size.parse::<f64>().unwrap() * mebibytes >= at_least.into(), "{refusal}");
            assert_eq!(rest, format!("arguments and results together, found less{advice}"));
        }
    }
    // and the advice helps
    let line = "ulimit -v 200000; exec $wgloss run mse --input large.npy --target large.npy --grad g.npy \
        --device cpu --batch-rows 1000000";
    finished(shell(folder.path(), line).output().unwrap()).report();
}
