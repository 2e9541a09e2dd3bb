//! Files as people have them: types, byte orders, pipes, links, permissions.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use safetensors::SafeTensors;
use tempfile::TempDir;

use crate::cli::{inputs, npy, parse_npy, read_npy};
use crate::command::{finished, line, program, wgloss};

/// Little-endian bytes of numbers.
macro_rules! bytes {
    ($type:ty: $($value:expr),*) => {
        [$(($value as $type).to_le_bytes()),*].concat()
    };
}

fn write(folder: &Path, name: &str, descr: &str, shape: &[usize], data: &[u8]) {
    fs::write(folder.join(name), npy(descr, shape, "False", data)).unwrap();
}

#[test]
fn integers_and_bool_are_classes() {
    let folder = inputs();
    let run = |target: &str| {
        let command = format!(
            "run cross-entropy --input logits.npy --target {target} --reduction none --device cpu \
             --loss loss.npy"
        );
        wgloss(folder.path(), &command, &[])
    };
    run("target.npy").report();
    let want = read_npy(&folder.path().join("loss.npy"));
    for (descr, data) in [
        ("|u1", bytes![u8: 0, 2]),
        ("|i1", bytes![i8: 0, 2]),
        ("<u2", bytes![u16: 0, 2]),
        ("=i2", bytes![i16: 0, 2]),
        ("u4", bytes![u32: 0, 2]),
        ("<u8", bytes![u64: 0, 2]),
        (">i4", vec![0, 0, 0, 0, 0, 0, 0, 2]),
        (">u2", vec![0, 0, 0, 2]),
    ] {
        write(folder.path(), "t.npy", descr, &[2], &data);
        run("t.npy").report();
        assert_eq!(read_npy(&folder.path().join("loss.npy")), want, "{descr}");
    }
    // bool: two classes
    write(folder.path(), "t.npy", "|b1", &[2], &[1, 0]);
    run("t.npy").report();
    let by_bool = read_npy(&folder.path().join("loss.npy"));
    write(folder.path(), "t.npy", "<i8", &[2], &bytes![i64: 1, 0]);
    run("t.npy").report();
    assert_eq!(read_npy(&folder.path().join("loss.npy")), by_bool);

    write(folder.path(), "t.npy", "|b1", &[2], &[1, 2]);
    let text = "--target t.npy: expected bool of 0 or 1, got 2 at element 1";
    assert_eq!(run("t.npy").refusal(), text);
    write(folder.path(), "t.npy", "<u8", &[2], &bytes![u64: 0, u64::MAX]);
    let text =
        "--target t.npy: expected integers that fit int64, got 1.8446744073709552e19 at element 1";
    assert_eq!(run("t.npy").refusal(), text);
    write(folder.path(), "t.npy", "|u1", &[2], &[0, 255]);
    let text = "--target t.npy: expected a class in 0..3 at row 1, got 255";
    assert_eq!(run("t.npy").refusal(), text);
    write(folder.path(), "t.npy", "<f4", &[2], &bytes![f32: 0, 2]);
    let nll = "run nll-loss --input logits.npy --target t.npy --device cpu";
    let text =
        "--target t.npy: expected integers or bool, got float32: convert with .astype(np.int64)";
    assert_eq!(wgloss(folder.path(), nll, &[]).refusal(), text);
}

#[test]
fn integers_and_float64_are_numbers() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    let run = |device: &str| {
        let command = format!(
            "run bce-with-logits --input x.npy --target t.npy --weight w.npy --reduction none --device \
             {device} --loss loss.npy --grad grad.npy"
        );
        wgloss(folder.path(), &command, &[])
    };
    write(folder.path(), "x.npy", "<f4", &[3], &bytes![f32: 0.5, -2.0, 3.0]);
    write(folder.path(), "t.npy", "<f4", &[3], &bytes![f32: 1, 0, 1]);
    write(folder.path(), "w.npy", "<f4", &[3], &bytes![f32: 1, 2, 3]);
    for device in ["cpu", "reference"] {
        write(folder.path(), "t.npy", "<f4", &[3], &bytes![f32: 1, 0, 1]);
        run(device).report();
        let want = ["loss.npy", "grad.npy"].map(|name| read_npy(&path(name)));
        for (descr, data) in [
            ("|b1", vec![1, 0, 1]),
            ("|u1", vec![1, 0, 1]),
            ("<i8", bytes![i64: 1, 0, 1]),
            ("<f8", bytes![f64: 1, 0, 1]),
            (">f8", [1.0_f64, 0.0, 1.0].map(f64::to_be_bytes).concat()),
        ] {
            write(folder.path(), "t.npy", descr, &[3], &data);
            write(folder.path(), "w.npy", "<i8", &[3], &bytes![i64: 1, 2, 3]);
            // nothing is lost, and so nothing is said
            run(device).report();
            let got = ["loss.npy", "grad.npy"].map(|name| read_npy(&path(name)));
            assert_eq!(got, want, "{descr}");
        }
    }
    // a target becomes what the input is
    write(folder.path(), "h.npy", "<f2", &[3], &[0; 6]);
    let half = "run mse --input h.npy --target t.npy --device cpu --grad grad.npy";
    wgloss(folder.path(), half, &[]).report();
    assert!(fs::read(path("grad.npy")).unwrap().windows(3).any(|word| word == b"<f2"));
}

#[test]
fn float64_is_rounded_with_a_note_and_kept_by_the_reference() {
    let folder = TempDir::new().unwrap();
    let (x, t) = (1.0 + 2_f64.powi(-40), 1.0 - 2_f64.powi(-41));
    write(folder.path(), "x.npy", "<f8", &[2], &bytes![f64: x, 0.5]);
    write(folder.path(), "t.npy", "<f8", &[2], &bytes![f64: t, t]);
    write(folder.path(), "u.npy", "<f8", &[], &bytes![f64: 0.1]);
    let command = "run mse --input x.npy --target t.npy --reduction sum --device";
    let note = |argument: &str, of: &str| {
        format!(
            "wgloss: note: {argument}: float64 was rounded to float32: {of} numbers lost digits; \
             --device reference computes in float64\n"
        )
    };
    let two = note("--input x.npy", "1 of 2") + &note("--target t.npy", "2 of 2");
    for batches in ["", " --batch-rows 1"] {
        let run = wgloss(folder.path(), &format!("{command} cpu{batches}"), &[]);
        assert_eq!((run.code, run.stderr), (Some(0), two.clone()));
        assert_eq!(line(&run.stdout, "loss"), "0.25");

        let exact = format!("{command} reference{batches} --upstream u.npy --grad g.npy");
        let report = wgloss(folder.path(), &exact, &[]).report();
        let loss: f64 = line(&report, "loss").parse().unwrap();
        assert_eq!(loss, (x - t) * (x - t) + (0.5 - t) * (0.5 - t));
        let grad = read_npy(&folder.path().join("g.npy"));
        assert_eq!(grad.values, [0.1 * 2.0 * (x - t), 0.1 * 2.0 * (0.5 - t)]);
    }
    let run = wgloss(folder.path(), &format!("{command} cpu --quiet"), &[]);
    assert_eq!((run.code, run.stdout, run.stderr), (Some(0), String::new(), String::new()));

    // what float32 has no number for
    write(folder.path(), "x.npy", "<f8", &[2], &bytes![f64: f64::INFINITY, 1e39]);
    let refusal = wgloss(folder.path(), &format!("{command} cpu"), &[]).refusal();
    let text = "--input x.npy: expected numbers in the range of float32, got 1e39 at element 1";
    assert_eq!(refusal, text);
    // 2^53 + 1
    write(folder.path(), "x.npy", "<u8", &[2], &bytes![u64: 9007199254740993, 1]);
    let run = wgloss(folder.path(), &format!("{command} reference"), &[]);
    let text =
        "wgloss: note: --input x.npy: uint64 was rounded to float64: 1 of 2 numbers lost digits\n";
    assert_eq!((run.code, &run.stderr[..]), (Some(0), text));
}

#[test]
fn a_key_that_a_header_has_twice_is_refused() {
    let folder = inputs();
    let write = |header: &str| {
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 8]].concat();
        fs::write(folder.path().join("twice.safetensors"), bytes).unwrap();
    };
    let run = || {
        let command = "run sigmoid --input twice.safetensors --device cpu";
        wgloss(folder.path(), command, &[])
    };
    let tensor = |shape: &str| {
        format!("\"input\":{{\"dtype\":\"F32\",\"shape\":[{shape}],\"data_offsets\":[0,8]}}")
    };
    write(&format!("{{{}}}", tensor("2")));
    run().report();
    write(&format!("{{{},{}}}", tensor("1,2"), tensor("2")));
    let refusal = run().refusal();
    assert!(refusal.starts_with("--input twice.safetensors: not a good .safetensors file: "));
    assert!(refusal.contains("duplicate key \"input\""), "{refusal}");
    write(&format!("{{{},\"\\u0069nput\":{{}}}}", tensor("2")));
    assert!(run().refusal().contains("duplicate key \"input\""));
    write(&format!("{{\"__metadata__\":{{\"a\":\"1\",\"a\":\"2\"}},{}}}", tensor("2")));
    assert!(run().refusal().contains("duplicate key \"a\""));
}

/// Runs the program with bytes on standard input.
fn piped(folder: &Path, command: &str, input: &[u8]) -> (Option<i32>, Vec<u8>, String) {
    let mut child = program(folder, command)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // one that refuses its input does not read it
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    (output.status.code(), output.stdout, String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_dash_is_standard_input_and_output() {
    let folder = inputs();
    let path = |name: &str| folder.path().join(name);
    let command = "run cross-entropy --reduction none --device cpu --target target.npy --input";
    wgloss(folder.path(), &format!("{command} logits.npy --loss l.npy --grad g.npy"), &[]).report();
    let [loss, grad] = ["l.npy", "g.npy"].map(|name| read_npy(&path(name)));
    let input = fs::read(path("logits.npy")).unwrap();

    // the report goes to standard error
    for batches in ["", " --batch-rows 1"] {
        let command = format!("{command} - --grad - --loss l2.npy{batches}");
        let (code, stdout, stderr) = piped(folder.path(), &command, &input);
        assert_eq!(code, Some(0), "{stderr}");
        assert_eq!(parse_npy(&stdout), grad);
        assert_eq!(read_npy(&path("l2.npy")), loss);
        assert_eq!(line(&stderr, "wrote"), "l2.npy float32 [2]");
        assert!(stderr.ends_with("wrote   - float32 [2, 3]\n"), "{stderr}");
    }
    let (code, stdout, stderr) = piped(folder.path(), &format!("-q {command} - --grad -"), &input);
    assert_eq!((code, parse_npy(&stdout), &stderr[..]), (Some(0), grad.clone(), ""));

    // several tensors in and out
    let batch = fs::read(path("batch.safetensors")).unwrap();
    let both = "run cross-entropy --reduction none --device cpu --input=-#logits --target - --loss=-#loss \
        --grad=-#g";
    let (code, stdout, stderr) = piped(folder.path(), both, &batch);
    assert_eq!(code, Some(0), "{stderr}");
    let file = SafeTensors::deserialize(&stdout).unwrap();
    let bytes: Vec<f32> = bytemuck::pod_collect_to_vec(file.tensor("g").unwrap().data());
    assert!(bytes.iter().map(|&v| f64::from(v)).eq(grad.values.iter().copied()));
    assert_eq!(file.tensor("loss").unwrap().shape(), [2]);

    // a regular file is standard input too
    let file = fs::File::open(path("logits.npy")).unwrap();
    let output = program(folder.path(), &format!("{command} - --loss l2.npy")).stdin(file).output();
    finished(output.unwrap()).report();
    assert_eq!(read_npy(&path("l2.npy")), loss);

    for (input, text) in [
        (&b"1.0 2.0 3.0"[..], "expected a .npy or .safetensors file, found neither's first bytes"),
        (b"", "expected a .npy or .safetensors file, found neither's first bytes"),
        (&input[..60], "the header is cut off"),
        (
            &batch,
            "expected a tensor \"input\", found \"labels\", \"logits\", \"target\" (FILE#KEY names one)",
        ),
    ] {
        let (code, stdout, stderr) = piped(folder.path(), &format!("{command} -"), input);
        assert_eq!((code, &stdout[..]), (Some(1), &b""[..]));
        assert_eq!(stderr, format!("wgloss: error: --input -: {text}\n"));
    }
    for (rest, text) in [
        ("--loss - --grad -", "--grad -: expected another place than --loss"),
        ("--loss - --grad=-#g", "--grad -#g: expected another place than --loss"),
        ("--loss - --json", "--json -: expected another place than --loss"),
        ("--json logits.npy", "--json logits.npy: expected another place than --input"),
        ("--loss l3.npy --json l3.npy", "--json l3.npy: expected another place than --loss"),
    ] {
        let refusal = wgloss(folder.path(), &format!("{command} logits.npy {rest}"), &[]).refusal();
        assert_eq!(refusal, text);
    }
}

#[cfg(unix)]
#[test]
fn pipes_are_read_and_not_written_over() {
    use crate::command::shell;
    let folder = inputs();
    let run = |command: &str| finished(shell(folder.path(), command).output().unwrap());
    let loss = |run: crate::command::Run| line(&run.report(), "loss").to_owned();
    let ce = "$wgloss run cross-entropy --device cpu --target target.npy";
    let want = loss(run(&format!("{ce} --input logits.npy")));
    assert!(run("mkfifo fifo.npy fifo").report().is_empty());
    for name in ["fifo.npy", "fifo"] {
        let command = format!("cat logits.npy > {name} & {ce} --input {name}");
        assert_eq!(loss(run(&command)), want);
        let batches = format!("{command} --batch-rows 1");
        assert_eq!(loss(run(&batches)), want);
    }
    assert_eq!(loss(run(&format!("cat logits.npy | {ce} --input /dev/stdin"))), want);
    let text = "--loss fifo.npy: expected a file, found a pipe";
    assert_eq!(run(&format!("{ce} --input logits.npy --loss fifo.npy")).refusal(), text);
    let text = "--input /dev/null: expected a file or pipe, found a device";
    assert_eq!(run(&format!("{ce} --input /dev/null")).refusal(), text);
    let text = "--input .: expected a file or pipe, found a folder";
    assert_eq!(run(&format!("{ce} --input .")).refusal(), text);
}

#[cfg(unix)]
#[test]
fn links_are_written_through_and_permissions_kept() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let folder = inputs();
    let path = |name: &str| folder.path().join(name);
    let run = |rest: &str| {
        let command = format!("run sigmoid --input logits.npy --device cpu {rest}");
        wgloss(folder.path(), &command, &[])
    };
    let mode = |name: &str| fs::metadata(path(name)).unwrap().permissions().mode() & 0o7777;
    for private in [0o600, 0o640, 0o666] {
        for (name, flag) in [("y.npy", "--output"), ("j.json", "--json")] {
            fs::write(path(name), "").unwrap();
            fs::set_permissions(path(name), fs::Permissions::from_mode(private)).unwrap();
            run(&format!("{flag} {name}")).report();
            assert_eq!(mode(name), private, "{name}");
            assert!(fs::metadata(path(name)).unwrap().len() > 0);
        }
    }
    // a chain of links to a file that is not there yet
    fs::create_dir(path("elsewhere")).unwrap();
    symlink("elsewhere/second.npy", path("first.npy")).unwrap();
    symlink("third.npy", path("elsewhere/second.npy")).unwrap();
    for _ in 0..2 {
        run("--output first.npy").report();
        assert!(path("first.npy").is_symlink() && path("elsewhere/second.npy").is_symlink());
        assert_eq!(read_npy(&path("elsewhere/third.npy")).shape, [2, 3]);
    }
    symlink("j2.json", path("link.json")).unwrap();
    run("--json link.json").report();
    assert!(path("link.json").is_symlink() && path("j2.json").exists());

    symlink("nowhere/y.npy", path("lost.npy")).unwrap();
    let refusal = run("--output lost.npy").refusal();
    assert!(refusal.starts_with("--loss lost.npy: expected an existing folder "), "{refusal}");
    symlink("loop.npy", path("loop.npy")).unwrap();
    let text = "--loss loop.npy: expected a file, found links that lead to each other";
    assert_eq!(run("--output loop.npy").refusal(), text);
    // a link to an input is the input
    symlink("logits.npy", path("alias.npy")).unwrap();
    let text = "--loss alias.npy: expected another file than --input";
    assert_eq!(run("--output alias.npy").refusal(), text);
}
