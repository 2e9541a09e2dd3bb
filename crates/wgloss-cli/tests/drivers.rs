//! `scripts/test-drivers.sh`, with stand-ins for cargo, apt-get and the drivers: what it reports,
//! and what its exit status claims.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::{env, fs};

use tempfile::TempDir;

/// A mirror that cannot be reached.
const APT_GET: &str = "echo 'E: Unable to fetch some archives' >&2; exit 100";

/// Tests that pass, on the driver and on no other.
const CARGO: &str = "case $* in *--no-run*) exit ;; esac
    [ -e \"$VK_DRIVER_FILES\" ] && [ \"$WGLOSS_REQUIRE_GPU\" = 1 ] || exit 1
    echo 'test result: ok. 2 passed; 0 failed; 0 ignored'
    echo 'test result: ok. 1 passed; 0 failed; 0 ignored'";

const CARGO_FAILS: &str = "case $* in *--no-run*) exit ;; esac
    echo 'test result: FAILED. 2 passed; 1 failed; 0 ignored'; exit 101";

/// The program on an adapter whose driver has no version of its own. It needs no GPU: what `check
/// --device gpu --json FILE` writes is of another device and other cases.
const WGLOSS: &str = concat!(
    "case $1 in devices) echo '   driver info   ' ;; check) exec '",
    env!("CARGO_BIN_EXE_wgloss"),
    "' check --device reference --cases tests/conformance/seeds --json \"$5\" ;; esac"
);

const WGLOSS_FAILS: &str = "case $1 in devices) ;; *)
    printf '{\\n  \"worst\": [\\n    0.5\\n  ],\\n  \"failed\": 1\\n}\\n' >\"$5\"
    echo '8 passed, 1 failed, 0 skipped'; exit 1 ;; esac";

const WGLOSS_FINDS_NOTHING: &str = "exit 1";

/// A build folder with stand-ins, and SwiftShader unpacked in it.
fn folder(cargo: &str, wgloss: &str) -> TempDir {
    let folder = TempDir::new().unwrap();
    let driver = folder.path().join("drivers/swiftshader");
    fs::create_dir_all(&driver).unwrap();
    fs::write(driver.join("version"), "chromium-common 1.2").unwrap();
    fs::write(driver.join("icd.json"), "{}").unwrap();
    let stand_ins = [
        ("bin/apt-get", APT_GET),
        ("bin/dpkg-deb", "exit 1"),
        ("bin/cargo", cargo),
        ("debug/wgloss", wgloss),
    ];
    for (path, text) in stand_ins {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    }
    folder
}

/// The script, to be run on a build folder.
fn script(build: &Path, drivers: &[&str]) -> Command {
    let path = format!("{}:{}", build.join("bin").display(), env::var("PATH").unwrap());
    let mut command = Command::new("bash");
    command
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/test-drivers.sh"))
        .args(drivers);
    command.env("PATH", path).env("CARGO_TARGET_DIR", build);
    command.env_remove("TESTS").env_remove("SKIP");
    command
}

/// Runs the script: its exit status, and its table as cells.
fn run(build: &Path, drivers: &[&str]) -> (Option<i32>, Vec<Vec<String>>) {
    let output = script(build, drivers).output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    let cells = |line: &str| line.split("  ").map(|c| c.trim().into()).collect::<Vec<String>>();
    let cells = |line| cells(line).into_iter().filter(|cell| !cell.is_empty()).collect();
    (output.status.code(), table.lines().skip(1).take(drivers.len()).map(cells).collect())
}

const NOT_AVAILABLE: [&str; 4] = ["not available", "-", "-", "-"];

#[test]
fn a_driver_that_cannot_be_had_has_not_passed() {
    let folder = folder("touch \"$CARGO_TARGET_DIR/called\"", WGLOSS);
    fs::remove_dir_all(folder.path().join("drivers")).unwrap();
    let (status, rows) = run(folder.path(), &["backports", "swiftshader"]);
    assert_eq!(status, Some(3));
    assert_eq!(rows[0][0], "backports");
    assert_eq!(rows[0][1..], NOT_AVAILABLE);
    assert_eq!(rows[1][0], "swiftshader");
    assert_eq!(rows[1][1..], NOT_AVAILABLE);
    let log = fs::read_to_string(folder.path().join("drivers/apt/log")).unwrap();
    assert!(log.contains("Unable to fetch"), "{log}");
    assert!(!folder.path().join("called").exists(), "there is nothing to build for");
}

#[test]
fn drivers_that_can_be_had_are_tested_all_the_same() {
    let folder = folder(CARGO, WGLOSS);
    let (status, rows) = run(folder.path(), &["backports", "swiftshader"]);
    assert_eq!(status, Some(3));
    assert_eq!(rows[0][1..], NOT_AVAILABLE);
    assert_eq!(rows[1][2], "3 of 3");
}

#[test]
fn a_driver_that_passes() {
    let folder = folder(CARGO, WGLOSS);
    let (status, rows) = run(folder.path(), &["swiftshader"]);
    assert_eq!(status, Some(0));
    assert_eq!(rows[0][..3], ["swiftshader", "chromium-common 1.2", "3 of 3"]);
    let (passed, all) = rows[0][3].split_once(" of ").unwrap();
    assert!(passed == all && all.parse::<u32>().unwrap() > 0, "{rows:?}");
    let worst: f64 = rows[0][4].parse().unwrap();
    assert!(0.0 < worst && worst < 1.0, "{rows:?}");
}

#[test]
fn a_driver_that_fails() {
    let cases = [
        (CARGO_FAILS, WGLOSS, "2 of 3"),
        ("case $* in *--no-run*) ;; *) exit 1 ;; esac", WGLOSS, "0 of 0"),
        (CARGO, WGLOSS_FAILS, "3 of 3"),
        (CARGO, WGLOSS_FINDS_NOTHING, "-"),
    ];
    for (cargo, wgloss, passed) in cases {
        let folder = folder(cargo, wgloss);
        // whether or not another can be had
        for drivers in [&["swiftshader"][..], &["swiftshader", "backports"]] {
            let (status, rows) = run(folder.path(), drivers);
            assert_eq!(status, Some(1), "{rows:?}");
            assert_eq!(rows[0][2], passed, "{rows:?}");
            if wgloss == WGLOSS_FAILS {
                assert_eq!(rows[0][3..], ["8 of 9", "above 1"]);
            }
        }
    }
}

#[test]
fn what_cannot_be_built() {
    let folder = folder("exit 101", WGLOSS);
    let (status, rows) = run(folder.path(), &["swiftshader"]);
    assert_eq!((status, rows.len()), (Some(1), 0));
}

#[test]
fn a_driver_that_is_none() {
    let folder = folder(CARGO, WGLOSS);
    let (status, rows) = run(folder.path(), &["swiftshader", "nvidia"]);
    assert_eq!((status, rows.len()), (Some(2), 0));
}

#[test]
fn tests_that_are_none() {
    let folder = folder(CARGO, WGLOSS);
    let output = script(folder.path(), &["swiftshader"]).env("TESTS", "edges egdes").output();
    assert_eq!(output.unwrap().status.code(), Some(2));
}

#[test]
fn tests_that_are_named_or_skipped() {
    let folder = folder(CARGO, WGLOSS);
    let tests = |name: &str, value: &str| {
        let output = script(folder.path(), &["swiftshader"]).env(name, value).output().unwrap();
        let table = String::from_utf8(output.stdout).unwrap();
        let line = table.lines().find_map(|line| line.strip_prefix("tests: "));
        line.unwrap().split(' ').map(String::from).collect::<Vec<_>>()
    };
    assert_eq!(tests("TESTS", "edges errors"), ["edges", "errors"]);
    let all = tests("SKIP", "");
    assert!(all.contains(&"ops".into()) && !all.contains(&"reference".into()), "{all:?}");
    let rest: Vec<_> = all.into_iter().filter(|t| t != "ops" && t != "edges").collect();
    assert_eq!(tests("SKIP", "ops edges"), rest);
}
