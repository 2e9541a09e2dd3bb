//! Random files, good and damaged, and random command lines, in this process. Cases are the same on every
//! run; `PROPTEST_CASES` asks for more of each property, `PROPTEST_RNG_SEED` for others.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::Result;
use clap::Parser;
use clap::error::ErrorKind;
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};
use tempfile::TempDir;
use wgloss::DType;
use wgloss_testing::files::{ArrayFile, Elements, array_file, command_line, damaged};
use wgloss_testing::random::Random;

use crate::files::{Kind, Opened, Place, Source, Wanted};
use crate::machine::Device;
use crate::{Cli, Command, npy, one_line, report, run};

/// Holds a property against seeds. A panic is a failure, too.
fn for_all(cases: u32, property: impl Fn(&mut Random)) {
    let from_environment = ProptestConfig::default();
    let is_set = |name| std::env::var_os(name).is_some();
    let config = ProptestConfig {
        cases: if is_set("PROPTEST_CASES") { from_environment.cases } else { cases },
        rng_seed: match is_set("PROPTEST_RNG_SEED") {
            true => from_environment.rng_seed,
            false => RngSeed::Fixed(0),
        },
        failure_persistence: None,
        // a smaller seed is no smaller case
        max_shrink_iters: 0,
        ..from_environment
    };
    let result = TestRunner::new(config).run(&any::<u64>(), |seed| {
        property(&mut Random::new(seed));
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

const SHAPES: [&[usize]; 9] =
    [&[], &[0], &[1], &[5], &[3, 4], &[4, 3], &[2, 3, 4], &[1, 7, 1], &[2, 0, 3]];

/// Opens and reads a file: its shape and values.
fn read(path: &Path, key: Option<&str>, kind: Kind) -> Result<(Vec<usize>, Vec<f64>)> {
    let name = path.to_str().unwrap_or_default();
    let Ok(place) = match key {
        Some(key) => format!("{name}#{key}").parse::<Place>(),
        None => name.parse(),
    };
    let wanted = Wanted { kind, float: DType::F32, is_exact: true };
    let source = Source::open(&mut Opened::default(), &place, "input", wanted)?;
    let array = source.read()?;
    // by rows, where it has some, they are the same
    let layout = source.layout();
    if let Some(&rows) = layout.shape().first()
        && !source.is_fortran()
        && layout.elements() < 1000
    {
        let parts: Vec<f64> = (0..rows)
            .map(|r| Ok(source.rows(r..r + 1)?.to_f64()))
            .collect::<Result<Vec<_>>>()?
            .concat();
        assert!(same(&parts, &array.to_f64()), "{parts:?} {array:?}");
    }
    Ok((array.shape().to_vec(), array.to_f64()))
}

fn same(a: &[f64], b: &[f64]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a == b || a.is_nan() && b.is_nan())
}

#[test]
fn good_files_mean_what_they_say() {
    let folder = TempDir::new().unwrap();
    for_all(2000, |random| {
        let shape = random.pick(&SHAPES);
        let (kind, elements) = match random.chance(0.3) {
            true => (Kind::Classes, Elements::Classes(100)),
            false => (Kind::Numbers, Elements::Numbers),
        };
        let file = array_file(random, "input", shape, elements);
        let path = folder.path().join(&file.name);
        fs::write(&path, &file.bytes).unwrap();
        let (shape, values) = read(&path, file.key.as_deref(), kind)
            .unwrap_or_else(|error| panic!("{error:#} {file:?}"));
        assert!(shape == file.shape && same(&values, &file.values), "{values:?} {file:?}");
    });
}

#[test]
fn damaged_files_are_refused_or_mean_what_they_say() {
    let folder = TempDir::new().unwrap();
    let [tried, taken] = [const { Cell::new(0) }; 2];
    for_all(6000, |random| {
        let shape = random.pick(&SHAPES);
        let kind =
            random.pick(&[Kind::Numbers, Kind::Numbers, Kind::Classes, Kind::ClassesOrNumbers]);
        let good = array_file(random, "input", shape, Elements::Numbers);
        let bytes = damaged(random, &good.bytes);
        let path = folder.path().join(&good.name);
        fs::write(&path, &bytes).unwrap();
        tried.update(|tried| tried + 1);
        let Ok((shape, values)) = read(&path, good.key.as_deref(), kind) else { return };
        taken.update(|taken| taken + 1);
        match good.key {
            None => expect_of_npy(&bytes, &shape, values.len()),
            Some(key) => expect_of_safetensors(&bytes, &key, &shape, &values),
        }
    });
    expect_both(tried.get(), taken.get());
}

/// Of what is tried, some must be taken and some refused, or it is no test.
fn expect_both(tried: u32, taken: u32) {
    let part = f64::from(taken) / f64::from(tried);
    assert!(tried < 100 || (0.01..0.99).contains(&part), "{taken} of {tried} were taken");
}

/// What was read of a `.npy` file is in its header's own words, and takes all of its bytes.
fn expect_of_npy(bytes: &[u8], shape: &[usize], count: usize) {
    let npy = npy::parse(bytes).unwrap();
    let start = bytes.len() - npy.data.len();
    let header = String::from_utf8(bytes[10..start].to_vec()).unwrap();
    assert_eq!(shape.iter().product::<usize>(), count, "{header}");
    assert_eq!(npy.data.len() * 8, count * npy.dtype.unwrap().bitsize(), "{header}");
    let mut rest = header.split_once("shape").expect("a shape").1;
    for size in shape {
        let at = rest.find(|c: char| c.is_ascii_digit()).expect("a size");
        let digits = rest[at..].split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        assert_eq!(digits.parse(), Ok(*size), "{header}");
        rest = &rest[at + digits.len()..];
    }
    let closed = rest.split_once(')').expect("a tuple").0;
    assert!(!closed.contains(|c: char| c.is_ascii_digit()), "{header}");
    assert_eq!(header.contains("True"), npy.fortran_order, "{header}");
    for key in ["descr", "shape", "fortran_order"] {
        assert_eq!(header.matches(key).count(), 1, "{header}");
    }
}

/// What was read of a `.safetensors` file is what the format's own reader finds.
fn expect_of_safetensors(bytes: &[u8], key: &str, shape: &[usize], values: &[f64]) {
    use bytemuck::pod_collect_to_vec as pod;
    use safetensors::Dtype;
    let file = safetensors::SafeTensors::deserialize(bytes).unwrap();
    let tensor = file.tensor(key).unwrap();
    let data = tensor.data();
    fn wide<T: Copy + Into<f64>>(values: Vec<T>) -> Vec<f64> {
        values.into_iter().map(Into::into).collect()
    }
    let want = match tensor.dtype() {
        Dtype::BOOL | Dtype::U8 => wide(data.to_vec()),
        Dtype::I8 => wide(pod::<u8, i8>(data)),
        Dtype::U16 => wide(pod::<u8, u16>(data)),
        Dtype::I16 => wide(pod::<u8, i16>(data)),
        Dtype::U32 => wide(pod::<u8, u32>(data)),
        Dtype::I32 => wide(pod::<u8, i32>(data)),
        Dtype::U64 => pod::<u8, u64>(data).into_iter().map(|v| v as f64).collect(),
        Dtype::I64 => pod::<u8, i64>(data).into_iter().map(|v| v as f64).collect(),
        Dtype::F16 => wide(pod::<u8, wgloss::half::f16>(data)),
        Dtype::BF16 => wide(pod::<u8, wgloss::half::bf16>(data)),
        Dtype::F32 => wide(pod::<u8, f32>(data)),
        Dtype::F64 => pod(data),
        other => panic!("{other} was read"),
    };
    assert!(tensor.shape() == shape && same(&want, values), "{values:?} instead of {want:?}");
    let header = String::from_utf8_lossy(&bytes[8..]).into_owned();
    let name = serde_json::Value::from(key).to_string();
    assert!(header.matches(&format!("{name}:")).count() <= 1, "{header}");
}

fn names(folder: &Path) -> BTreeSet<String> {
    let names = fs::read_dir(folder).unwrap();
    names.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

/// Files for command lines to choose from, some of them damaged.
fn write_files(random: &mut Random, folder: &Path) -> Vec<String> {
    let (rows, classes) = (1 + random.below(4), 1 + random.below(4));
    let mut write = |stem: &str, shape: &[usize], elements| {
        let ArrayFile { name, key, mut bytes, .. } = array_file(random, stem, shape, elements);
        if random.chance(0.1) {
            bytes = damaged(random, &bytes);
        }
        fs::write(folder.join(&name), bytes).unwrap();
        let path = folder.join(name).to_str().unwrap().to_owned();
        match key {
            Some(key) => format!("{path}#{key}"),
            None => path,
        }
    };
    vec![
        write("logits", &[rows, classes], Elements::Numbers),
        write("more", &[rows, classes], Elements::Numbers),
        write("probabilities", &[rows, classes], Elements::Classes(2)),
        write("classes", &[rows], Elements::Classes(classes)),
        write("weights", &[classes], Elements::Numbers),
        write("one", &[], Elements::Numbers),
        write("deep", &[rows, classes, 2], Elements::Numbers),
    ]
}

/// What is asked of a run by whatever line: it computes and writes what it is asked for, or it names what
/// is wrong and leaves nothing.
#[test]
fn random_command_lines_end_well() {
    report::be_quiet();
    let [tried, taken] = [const { Cell::new(0) }; 2];
    for_all(3000, |random| {
        let folder = TempDir::new().unwrap();
        let files = write_files(random, folder.path());
        let before = names(folder.path());
        let mut words = command_line(random, &files, false);
        for word in &mut words {
            // tests share the current folder
            for name in ["out", "no/"] {
                let start =
                    if word.starts_with("--") { word.find('=').map_or(0, |at| at + 1) } else { 0 };
                if word[start..].starts_with(name) {
                    word.insert_str(start, &format!("{}/", folder.path().display()));
                }
            }
        }
        let line = words.join(" ");
        let cli = match Cli::try_parse_from(
            std::iter::once("wgloss").chain(words.iter().map(|w| &w[..])),
        ) {
            Ok(cli) => cli,
            Err(error) => {
                // status 2, or 0 where help is asked for
                let is_help = error.kind() == ErrorKind::DisplayHelp;
                assert!(error.exit_code() == if is_help { 0 } else { 2 }, "{line}: {error}");
                assert!(!error.to_string().is_empty());
                return;
            }
        };
        let Command::Run { op } = cli.command else { return };
        let result = op.job().and_then(|mut job| {
            // devices are for the processes of tests/fuzz.rs
            if let Device::Auto | Device::Gpu = job.common.device {
                (job.common.device, job.common.adapter) = (Device::Cpu, None);
            }
            run::run(&job)
        });
        tried.update(|tried| tried + 1);
        taken.update(|taken| taken + u32::from(result.is_ok()));
        let after = names(folder.path());
        let left: Vec<_> = after.difference(&before).collect();
        match result {
            Ok(()) => {
                let is_asked_for = |name: &&&String| line.contains(&format!("/{name}"));
                assert!(left.iter().all(|name| is_asked_for(&name)), "{line}: left {left:?}");
            }
            Err(error) => {
                let text = one_line(&error);
                assert!(text.contains("--"), "{line}: {text}");
                assert!(left.is_empty(), "{line}: {text}: left {left:?}");
            }
        }
    });
    expect_both(tried.get(), taken.get());
}
