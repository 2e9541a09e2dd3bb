//! Random command lines over random files, each by a process of its own. `PROPTEST_CASES` asks for so many,
//! `PROPTEST_RNG_SEED` for others; `src/fuzz.rs` has those that need no process.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use tempfile::TempDir;
use wgloss_testing::files::{Elements, array_file, command_line, damaged};
use wgloss_testing::random::Random;

use crate::command::program;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn names(folder: &Path) -> BTreeSet<String> {
    let names = fs::read_dir(folder).unwrap();
    names.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn processes_end_in_the_statuses_that_are_documented() {
    let seed = number("PROPTEST_RNG_SEED").unwrap_or(0);
    let mut statuses = [0; 3];
    for case in 0..number("PROPTEST_CASES").unwrap_or(40) {
        let random = &mut Random::new(seed.wrapping_mul(1 << 32).wrapping_add(case));
        let folder = TempDir::new().unwrap();
        let (rows, classes) = (1 + random.below(4), 1 + random.below(4));
        let mut files = Vec::new();
        for (stem, shape, elements) in [
            ("logits", &[rows, classes][..], Elements::Numbers),
            ("more", &[rows, classes], Elements::Numbers),
            ("classes", &[rows], Elements::Classes(classes)),
            ("weights", &[classes], Elements::Numbers),
        ] {
            let mut file = array_file(random, stem, shape, elements);
            if random.chance(0.1) {
                file.bytes = damaged(random, &file.bytes);
            }
            fs::write(folder.path().join(&file.name), &file.bytes).unwrap();
            files.push(match file.key {
                Some(key) => format!("{}#{key}", file.name),
                None => file.name,
            });
        }
        let before = names(folder.path());
        let words = command_line(random, &files, true);
        let input = match random.chance(0.5) {
            true => array_file(random, "input", &[rows, classes], Elements::Numbers).bytes,
            false => vec![],
        };
        let input = if random.chance(0.2) { damaged(random, &input) } else { input };
        let mut child = program(folder.path(), "")
            .args(&words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // one that refuses its input does not read it
        let _ = child.stdin.take().unwrap().write_all(&input);
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        let about = format!("seed {seed}, case {case}: wgloss {words:?}\n{stderr}");
        let left: Vec<_> = names(folder.path()).difference(&before).cloned().collect();
        assert!(!left.iter().any(|name| name.starts_with(".wgloss-")), "{about}left {left:?}");
        assert!(!stderr.contains("panicked"), "{about}");
        match output.status.code() {
            Some(0) => statuses[0] += 1,
            Some(1) => {
                statuses[1] += 1;
                let last = stderr.lines().last().unwrap_or_default();
                assert!(last.starts_with("wgloss: error: ") && last.contains("--"), "{about}");
                assert!(!left.iter().any(|name| name.starts_with("out")), "{about}left {left:?}");
                assert_eq!(output.stdout, b"", "{about}");
            }
            Some(2) => {
                statuses[2] += 1;
                assert!(stderr.starts_with("error: ") && stderr.contains("--help"), "{about}");
                assert!(left.is_empty() && output.stdout.is_empty(), "{about}left {left:?}");
            }
            _ => panic!("{}: {about}", output.status),
        }
    }
    // of each there were some, or the lines are no test
    assert!(statuses.iter().all(|&count| count > 0), "{statuses:?}");
}
