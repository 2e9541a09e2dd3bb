//! `scripts/test-tint.sh`, with stand-ins for cargo, apt-get, node and npm: what its exit status claims.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use tempfile::TempDir;

/// What the script needs of the system, beside the stand-ins.
const TOOLS: [&str; 11] =
    ["bash", "cat", "cmp", "cp", "dirname", "env", "id", "mkdir", "rm", "sh", "uname"];

const WRITES_KERNELS: &str = ": >\"$CARGO_TARGET_DIR/called\"; echo '{}' >\"$WGLOSS_KERNELS\"";

/// Stand-ins by their names. The script finds no others of these.
type StandIns<'a> = &'a [(&'a str, &'a str)];

fn tool(name: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap();
    env::split_paths(&path).map(|folder| folder.join(name)).find(|path| path.exists()).unwrap()
}

/// Runs the script on a build folder of its own: the exit status, what it prints, and the folder.
fn run(stand_ins: StandIns) -> (Option<i32>, String, TempDir) {
    let folder = TempDir::new().unwrap();
    let bin = folder.path().join("bin");
    fs::create_dir(&bin).unwrap();
    for name in TOOLS {
        symlink(tool(name), bin.join(name)).unwrap();
    }
    let no_mirror = ("apt-get", "echo 'E: Unable to fetch some archives' >&2; exit 100");
    for (name, text) in [no_mirror].iter().chain(stand_ins) {
        fs::write(bin.join(name), format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(bin.join(name), PermissionsExt::from_mode(0o755)).unwrap();
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/test-tint.sh");
    let mut command = Command::new(bin.join("bash"));
    command.arg(script).env("PATH", &bin).env("CARGO_TARGET_DIR", folder.path());
    let output = command.env_remove("WGLOSS_SKIP_SETUP").output().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap(), folder)
}

fn is_built(folder: &Path) -> bool {
    folder.join("called").exists()
}

#[test]
fn what_cannot_be_had_has_not_passed() {
    let cargo = ("cargo", WRITES_KERNELS);
    let cases: [StandIns; 3] = [
        &[cargo],
        &[cargo, ("node", "exit 0")],
        // a registry that cannot be reached
        &[cargo, ("node", "exit 0"), ("npm", "exit 1")],
    ];
    for stand_ins in cases {
        let (status, printed, folder) = run(stand_ins);
        assert_eq!(status, Some(3), "{stand_ins:?}");
        assert!(printed.ends_with("not available\n"), "{printed}");
        assert!(!is_built(folder.path()), "there is nothing to build for");
    }
    // a system that the package has no library for
    let (status, printed, _) = run(&[cargo, ("node", "exit 3"), ("npm", "exit 0")]);
    assert_eq!(status, Some(3));
    assert!(printed.ends_with("not available\n"), "{printed}");
}

#[test]
fn kernels_that_are_accepted_or_refused() {
    for (node, expected) in [("[ -s \"$2\" ]", 0), ("exit 1", 1), ("kill -ABRT $$", 134)] {
        let (status, printed, folder) =
            run(&[("cargo", WRITES_KERNELS), ("node", node), ("npm", "exit 0")]);
        assert_eq!(status, Some(expected), "{node}");
        assert!(!printed.contains("not available"), "{printed}");
        assert!(is_built(folder.path()));
    }
}

#[test]
fn kernels_that_are_not_written() {
    for cargo in ["exit 101", "exit 0", ": >\"$WGLOSS_KERNELS\""] {
        let (status, printed, _) = run(&[("cargo", cargo), ("node", "exit 0"), ("npm", "exit 0")]);
        assert_eq!(status, Some(1), "{cargo}");
        assert!(!printed.contains("not available"), "{printed}");
    }
}
