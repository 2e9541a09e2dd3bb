//! The command line as a user meets it: files in, files out, reports, refusals, exit codes.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use crate::command::{line, wgloss};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tempfile::TempDir;
use wgloss::{
    Args, Array, Bce, CrossEntropy, DType, Huber, KlDiv, LogSigmoid, LogSoftmax, NllLoss, Op, Pass,
    Reduction, SigmoidFocal, SmoothL1, SoftMargin, Softmax, reference,
};
use wgloss_testing::call::result;
use wgloss_testing::compare::compare_moderate;
use wgloss_testing::conformance::{self, Case};
use wgloss_testing::random::Random;

/// A `.npy` file as another program might write it: the header is not the one that wgloss writes.
pub fn npy(descr: &str, shape: &[usize], fortran_order: &str, data: &[u8]) -> Vec<u8> {
    let sizes: String = shape.iter().map(|size| format!("{size},")).collect();
    let header =
        format!("{{'shape': ({sizes}), 'fortran_order': {fortran_order}, 'descr': '{descr}'}}\n");
    let length = (header.len() as u32).to_le_bytes();
    [b"\x93NUMPY\x02\x00", &length[..], header.as_bytes(), data].concat()
}

pub fn npy_of(array: &Array<'_>) -> Vec<u8> {
    let descr = match array.dtype() {
        DType::F32 => "<f4",
        DType::I32 => "<i4",
        DType::I64 => "<i8",
        other => panic!("{other}"),
    };
    npy(descr, array.shape(), "False", array.data().bytes())
}

/// What wgloss wrote to a `.npy` file.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    /// numpy's word for the element type.
    pub descr: String,
    pub shape: Vec<usize>,
    pub values: Vec<f64>,
}

#[track_caller]
pub fn read_npy(path: &Path) -> Written {
    parse_npy(&fs::read(path).unwrap())
}

/// What wgloss wrote as `.npy`.
#[track_caller]
pub fn parse_npy(bytes: &[u8]) -> Written {
    let start = bytes.iter().position(|&byte| byte == b'\n').unwrap() + 1;
    assert_eq!(start % 64, 0, "numpy aligns the elements");
    let header = std::str::from_utf8(&bytes[10..start]).unwrap();
    let between = |a: &str, b: &str| header.split_once(a).unwrap().1.split_once(b).unwrap().0;
    assert_eq!(between("'fortran_order': ", ","), "False");
    let sizes = between("'shape': (", ")").split(',').map(str::trim).filter(|s| !s.is_empty());
    let (descr, data) = (between("'descr': '", "'"), &bytes[start..]);
    let values = match descr {
        "<f4" => data.as_chunks().0.iter().map(|&v| f32::from_le_bytes(v).into()).collect(),
        "<i4" => data.as_chunks().0.iter().map(|&v| i32::from_le_bytes(v).into()).collect(),
        "<f8" => data.as_chunks().0.iter().map(|&v| f64::from_le_bytes(v)).collect(),
        other => panic!("{other}"),
    };
    let shape = sizes.map(|size| size.parse().unwrap()).collect();
    Written { descr: descr.into(), shape, values }
}

/// A folder with logits, targets and kin, good and bad.
pub fn inputs() -> TempDir {
    let folder = TempDir::new().unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
    let logits: Vec<f32> = (0..6).map(|i| (i * i % 5) as f32 - 1.5).collect();
    let data: &[u8] = bytemuck::cast_slice(&logits);
    let doubles: Vec<f64> = logits.iter().map(|&x| x.into()).collect();
    write("logits.npy", &npy("<f4", &[2, 3], "False", data));
    write("float64.npy", &npy("<f8", &[2, 3], "False", bytemuck::cast_slice(&doubles)));
    let swapped: Vec<u8> = logits.iter().flat_map(|x| x.to_be_bytes()).collect();
    write("big-endian.npy", &npy(">f4", &[2, 3], "False", &swapped));
    write("complex.npy", &npy("<c8", &[3], "False", &[0; 24]));
    write("words.npy", &npy("<U4", &[3], "False", &[0; 48]));
    write("cut.npy", &npy("<f4", &[2, 3], "False", &data[..20]));
    write("vector.npy", &npy("<f4", &[3], "False", &data[..12]));
    write("scalar.npy", &npy("<f4", &[], "False", &data[..4]));
    write("two.npy", &npy("<f4", &[2], "False", &data[..8]));
    write("half.npy", &npy("<f2", &[2, 3], "False", &data[..12]));
    let columns = [0, 3, 1, 4, 2, 5].map(|i| logits[i]);
    write("fortran.npy", &npy("<f4", &[2, 3], "True", bytemuck::cast_slice(&columns)));
    write("target.npy", &npy("<i8", &[2], "False", bytemuck::cast_slice(&[0_i64, 2])));
    write("int32.npy", &npy("<i4", &[2], "False", bytemuck::cast_slice(&[0_i32, 2])));
    write("uint8.npy", &npy("|u1", &[2], "False", &[0, 2]));
    write("three.npy", &npy("<i8", &[3], "False", bytemuck::cast_slice(&[0_i64, 2, 1])));
    write("outside.npy", &npy("<i8", &[2], "False", bytemuck::cast_slice(&[0_i64, 3])));
    write("text.npy", b"1.0 2.0 3.0");
    write("text.safetensors", b"{\"input\": [1.0, 2.0, 3.0]}");
    write("zip.npz", b"PK\x03\x04");
    let view = |dtype, shape: &[usize], data| TensorView::new(dtype, shape.to_vec(), data).unwrap();
    let target: &[u8] = bytemuck::cast_slice(&[0_i64, 2]);
    let tensors = [
        ("logits", view(Dtype::F32, &[2, 3], data)),
        ("labels", view(Dtype::I64, &[2], target)),
        ("target", view(Dtype::I64, &[2], target)),
    ];
    write("batch.safetensors", &safetensors::serialize(tensors, None).unwrap());
    folder
}

/// The worked examples of a single op.
fn seeds() -> Vec<Case> {
    let mut cases = conformance::load(&conformance::folder("seeds")).cases;
    cases.retain(|case| case.pre().unwrap().is_none());
    assert_eq!(cases.len(), 45);
    cases
}

/// A case's options as flags.
fn flags(case: &Case) -> String {
    let mut flags = case.op.replace('_', "-");
    for name in ["reduction", "ignore_index", "label_smoothing", "dim"] {
        let value = case.param(name);
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        if !value.is_null() {
            flags += &format!(" --{} {text}", name.replace('_', "-"));
        }
    }
    flags
}

/// Runs a case from `.npy` to `.npy`: the report, loss and gradient.
fn run_case(case: &Case, device: &str) -> (String, [Written; 2]) {
    let folder = TempDir::new().unwrap();
    let mut command = format!("run {} --device {device}", flags(case));
    for role in ["input", "target", "weight", "pos_weight", "upstream"] {
        if let Some(array) = case.array(role).unwrap() {
            fs::write(folder.path().join(format!("{role}.npy")), npy_of(&array)).unwrap();
            command += &format!(" --{} {role}.npy", role.replace('_', "-"));
        }
    }
    command += " --loss loss.npy --grad grad.npy";
    let report = wgloss(folder.path(), &command, &[]).report();
    (report, ["loss.npy", "grad.npy"].map(|name| read_npy(&folder.path().join(name))))
}

/// The shape of a case's loss: cases store a mean or sum as `[1]`.
fn loss_shape(case: &Case) -> Vec<usize> {
    match case.param("reduction").as_str() {
        Some("mean" | "sum") => vec![],
        _ => case.reference("out_ref").unwrap().unwrap().shape,
    }
}

#[test]
fn worked_examples_on_the_reference() {
    for case in seeds() {
        let (report, [loss, grad]) = run_case(&case, "reference");
        assert_eq!(line(&report, "device"), "reference (float64)");
        assert_eq!(loss.shape, loss_shape(&case), "{}", case.name);
        assert_eq!(grad.shape, case.input().unwrap().shape(), "{}", case.name);
        if let [value] = loss.values[..] {
            let printed: f64 = line(&report, "loss").parse().unwrap();
            assert_eq!(printed, value, "17 digits tell every two float64 apart");
        }
        for (Written { descr, values: got, .. }, role) in [(loss, "out_ref"), (grad, "grad_ref")] {
            let want = conformance::values(&case, role);
            assert_eq!((&descr[..], got.len()), ("<f8", want.len()), "{} {role}", case.name);
            let largest = want.iter().fold(0.0_f64, |max, v| max.max(v.abs()));
            for (got, want) in got.iter().zip(&want) {
                let error = (got - want).abs();
                assert!(error <= 1e-14 * largest, "{} {role}: {got} {want}", case.name);
            }
        }
    }
}

/// One case for each op and set of options: the conformance tests run all of them through the
/// library.
fn worked_examples(device: &str, words: &[&str]) {
    let mut seen = HashSet::new();
    for case in seeds().into_iter().filter(|case| seen.insert(flags(case))) {
        let (report, [loss, grad]) = run_case(&case, device);
        for word in words {
            assert!(!line(&report, word).is_empty());
        }
        assert_eq!(loss.shape, loss_shape(&case), "{}", case.name);
        assert_eq!(grad.shape, case.input().unwrap().shape(), "{}", case.name);
        let logits =
            conformance::values(&case, "input").into_iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        for (Written { descr, values, .. }, role) in [(loss, "out_ref"), (grad, "grad_ref")] {
            assert_eq!(descr, "<f4");
            let got: Vec<f32> = values.into_iter().map(|v| v as f32).collect();
            compare_moderate(&got, &conformance::values(&case, role), logits)
                .unwrap_or_else(|error| panic!("{} {role}: {error}", case.name));
        }
    }
    assert!(seen.len() >= 6, "{seen:?}");
}

#[test]
fn worked_examples_on_the_cpu() {
    worked_examples("cpu", &["device", "call"]);
}

#[test]
fn worked_examples_on_the_gpu() {
    if wgloss_testing::devices::gpu().is_some() {
        worked_examples("gpu", &["device", "call"]);
    }
}

/// Ops and options that the examples lack, against calls of the library.
#[test]
fn every_op_takes_its_options() {
    let folder = TempDir::new().unwrap();
    let write = |name: &str, array: &Array<'_>| {
        fs::write(folder.path().join(name), npy_of(array)).unwrap();
    };
    let shape = [2, 3];
    let x = Array::new(&[0.2_f32, 0.9, 0.4, 0.7, 0.1, 0.6], &shape).unwrap();
    let t = Array::new(&[1.0_f32, 0.0, 0.5, 0.3, 0.2, 0.9], &shape).unwrap();
    let w = Array::new(&[0.5_f32, 2.0, -1.0], &[3]).unwrap();
    let classes = Array::new(&[1_i64, 2], &[2]).unwrap();
    for (name, array) in [("x.npy", &x), ("t.npy", &t), ("w.npy", &w), ("y.npy", &classes)] {
        write(name, array);
    }
    let input = Args::new(x.clone());
    let map = input.clone().upstream(t.clone());
    let loss = input.clone().target(t);
    let rows = input.target(classes);
    let weighted = loss.clone().weight(w.clone());
    let cases: Vec<(&str, Box<dyn Op>, &Args<Array<'_>>)> = vec![
        ("smooth-l1 --target t.npy --beta 0.25", Box::new(SmoothL1::default().beta(0.25)), &loss),
        ("huber --target t.npy --delta 0.3", Box::new(Huber::default().delta(0.3)), &loss),
        ("kl-div --target t.npy", Box::new(KlDiv::default()), &loss),
        (
            "kl-div --target t.npy --log-target --reduction batchmean",
            Box::new(KlDiv::default().log_target(true).reduction(Reduction::BatchMean)),
            &loss,
        ),
        ("soft-margin --target t.npy", Box::new(SoftMargin::default()), &loss),
        (
            "sigmoid-focal --target t.npy --alpha -1 --gamma 0.5 --reduction sum",
            Box::new(SigmoidFocal::default().alpha(-1.0).gamma(0.5).reduction(Reduction::Sum)),
            &loss,
        ),
        ("bce --target t.npy --weight w.npy", Box::new(Bce::default()), &weighted),
        ("nll-loss --target y.npy", Box::new(NllLoss::default()), &rows),
        ("softmax --upstream t.npy --dim -2", Box::new(Softmax::default().dim(-2)), &map),
        ("log-softmax --upstream t.npy", Box::new(LogSoftmax::default()), &map),
        ("logsigmoid --upstream t.npy", Box::new(LogSigmoid), &map),
        (
            "cross-entropy --target y.npy --logit-scale 2 --softcap 0.5 --z-loss 0.1",
            Box::new(CrossEntropy::default().logit_scale(2.0).softcap(0.5).z_loss(0.1)),
            &rows,
        ),
        (
            "cross-entropy --target t.npy --weight w.npy --label-smoothing 0.2",
            Box::new(CrossEntropy::default().label_smoothing(0.2)),
            &weighted,
        ),
    ];
    for (command, op, args) in cases {
        let command = format!(
            "run {command} --input x.npy --device reference --output loss.npy --grad grad.npy"
        );
        let report = wgloss(folder.path(), &command, &[]).report();
        let want = reference::run(&*op, Pass::ForwardBackward, args).unwrap();
        let start = format!("{}.forward_backward", op.name());
        assert!(line(&report, "op").starts_with(&start), "{report}");
        for (name, want) in [("loss.npy", result(&want)), ("grad.npy", want.grad().unwrap())] {
            let got = read_npy(&folder.path().join(name));
            assert_eq!((&got.shape, &got.values), (&want.shape, &want.values), "{command}: {name}");
        }
    }

    // what rows have beside a loss
    let command = "run cross-entropy --input x.npy --target y.npy --device cpu --logsumexp l.npy \
        --argmax a.npy --correct c.npy";
    wgloss(folder.path(), command, &[]).report();
    let read = |name: &str| read_npy(&folder.path().join(name)).values;
    assert_eq!((read("a.npy"), read("c.npy")), (vec![1.0, 0.0], vec![1.0, 0.0]));
    assert!((read("l.npy")[0] - (0.2_f64.exp() + 0.9_f64.exp() + 0.4_f64.exp()).ln()).abs() < 1e-6);
    // all rows are left out
    let empty = "run cross-entropy --input x.npy --target i.npy --ignore-index 7 --device cpu";
    write("i.npy", &Array::new(&[7_i64, 7], &[2]).unwrap());
    for (rest, loss) in [("", "NaN"), (" --empty-mean 0", "0.0")] {
        let report = wgloss(folder.path(), &format!("{empty}{rest}"), &[]).report();
        assert_eq!(line(&report, "loss"), loss);
    }
}

#[test]
fn help_tells_of_every_op_and_option() {
    let folder = TempDir::new().unwrap();
    let help = wgloss(folder.path(), "run --help", &[]).report();
    for op in wgloss::ops() {
        let name = op.name().replace('_', "-");
        assert!(help.contains(&format!("  {name} ")) && help.contains(op.about()), "{help}");
        let help = wgloss(folder.path(), &format!("run {name} --help"), &[]).report();
        assert!(help.starts_with(op.about()), "{help}");
        for info in op.options() {
            // rows' state and partials of shards are of no use in a file, and row outputs and gradients
            // have a flag each
            let flag = format!("--{}", info.name.replace('_', "-"));
            let without = ["keep_state", "row_outputs", "first_class", "total_classes"];
            let is_without = without.contains(&info.name) || info.name.starts_with("freeze_");
            assert_eq!(help.contains(&flag), !is_without, "{help}");
            assert!(is_without || help.contains(info.doc), "{help}");
        }
    }
    let help = wgloss(folder.path(), "run huber --help", &[]).report();
    assert!(help.contains("--delta <DELTA>") && help.contains("[default: 1]"), "{help}");
}

#[test]
fn options_take_numbers_of_every_form() {
    let folder = inputs();
    let run = |rest: &str| {
        let command = "run cross-entropy --input logits.npy --target target.npy --device reference";
        wgloss(folder.path(), &format!("{command} {rest}"), &[])
    };
    let loss = |rest: &str| run(rest).report();
    let without: f64 = line(&loss(""), "loss").parse().unwrap();
    for (z_loss, value) in [("-1e-1", -0.1), ("-.5", -0.5), ("=-2", -2.0), ("+3", 3.0)] {
        let flag = if z_loss.starts_with('=') { "--z-loss" } else { "--z-loss " };
        let with: f64 = line(&loss(&format!("{flag}{z_loss}")), "loss").parse().unwrap();
        // both rows have the same logits, in another order
        let logsumexp = [-1.5_f64, -0.5, 2.5].map(f64::exp).iter().sum::<f64>().ln();
        let added = value * logsumexp.powi(2);
        assert!((with - without - added).abs() < 1e-9, "{z_loss}: {with}, {without}");
    }
    loss("--empty-mean -inf --ignore-index -7");
    for (rest, message) in [
        ("--z-loss much", "invalid value 'much' for '--z-loss <Z_LOSS>': expected a finite number"),
        ("--z-loss -inf", "--z-loss: expected a finite number, got -inf"),
        ("--logit-scale -.5", "--logit-scale: expected a finite number above 0, got -0.5"),
        ("--label-smoothing", "a value is required for '--label-smoothing <LABEL_SMOOTHING>'"),
    ] {
        let run = run(rest);
        assert!(run.code != Some(0) && run.stderr.contains(message), "{}", run.stderr);
    }
}

#[test]
fn files_of_every_kind_mean_the_same() {
    let folder = inputs();
    let path = |name: &str| folder.path().join(name);
    let run = |rest: &str| {
        let command = format!("run cross-entropy --device cpu --reduction none {rest}");
        wgloss(folder.path(), &command, &[]).report()
    };
    let report = run("--input logits.npy --target target.npy --loss loss.npy --grad grad.npy");
    assert!(line(&report, "device").starts_with("cpu ("), "{report}");
    assert!(report.ends_with("wrote   loss.npy float32 [2]\nwrote   grad.npy float32 [2, 3]\n"));
    let [loss, grad] = ["loss.npy", "grad.npy"].map(|name| read_npy(&path(name)));
    assert_eq!((&loss.descr[..], &loss.shape[..]), ("<f4", &[2][..]));

    // in other words, over what is there already
    for inputs in [
        "--input fortran.npy --target int32.npy",
        "--input big-endian.npy --target uint8.npy",
        "--input float64.npy --target uint8.npy",
        "--input batch.safetensors --key logits --target batch.safetensors",
        "--input batch.safetensors#logits --target batch.safetensors#labels",
    ] {
        run(&format!("{inputs} --loss loss.npy --grad grad.npy"));
        assert_eq!(read_npy(&path("loss.npy")), loss, "{inputs}");
        assert_eq!(read_npy(&path("grad.npy")), grad, "{inputs}");
    }

    // results of 16-bit inputs are as these; losses are f32
    let zeros = npy("<f2", &[2, 3], "False", &[0; 12]);
    fs::write(path("zeros.npy"), zeros).unwrap();
    let report = run("--input zeros.npy --target target.npy --loss l.npy --grad g.npy");
    assert!(report.ends_with("wrote   l.npy float32 [2]\nwrote   g.npy float16 [2, 3]\n"));
    let losses = read_npy(&path("l.npy")).values;
    assert!(losses.iter().all(|loss| (loss - 3_f64.ln()).abs() < 1e-6), "{losses:?}");

    // both results to one file, and from there as an input
    run("--input logits.npy --target target.npy --loss out.safetensors --grad out.safetensors#g");
    let bytes = fs::read(path("out.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.len(), 2);
    for (key, Written { shape, values, .. }) in [("loss", &loss), ("g", &grad)] {
        let tensor = file.tensor(key).unwrap();
        let got: Vec<f32> = bytemuck::pod_collect_to_vec(tensor.data());
        assert_eq!((tensor.dtype(), tensor.shape()), (Dtype::F32, &shape[..]));
        assert!(got.iter().map(|&v| f64::from(v)).eq(values.iter().copied()), "{key}");
    }
    run("--input out.safetensors#g --target target.npy");
    let scalar = "run bce-with-logits --input scalar.npy --target scalar.npy --device reference";
    assert!(line(&wgloss(folder.path(), scalar, &[]).report(), "loss").len() >= 17);
}

/// Ten rows of three and all that goes with them: what is in batches of three and what is whole.
fn tall() -> TempDir {
    let folder = TempDir::new().unwrap();
    let mut random = Random::new(11);
    let mut write = |name: &str, shape: &[usize], unit: bool| {
        let count = shape.iter().product();
        let values =
            if unit { random.uniforms(count, 0.1, 0.9) } else { random.normals(count, 2.0) };
        let array = Array::from_vec::<f32>(values, shape).unwrap();
        fs::write(folder.path().join(name), npy_of(&array)).unwrap();
    };
    write("x.npy", &[10, 3], false);
    write("deep.npy", &[10, 3, 2], false);
    write("p.npy", &[10, 3], true);
    write("t.npy", &[10, 3], true);
    write("w.npy", &[3], true);
    write("w1.npy", &[1, 3], true);
    write("w10.npy", &[10, 1], true);
    write("u.npy", &[], false);
    write("u10.npy", &[10], false);
    write("u103.npy", &[10, 3], false);
    write("none.npy", &[0, 3], false);
    write("hollow.npy", &[3, 0], false);
    let integers = |name: &str, shape: &[usize], values: Vec<i64>| {
        let array = Array::from_vec::<i64>(values, shape).unwrap();
        fs::write(folder.path().join(name), npy_of(&array)).unwrap();
    };
    integers("y.npy", &[10], vec![0, 2, -100, 1, 1, -100, 0, 2, 2, 1]);
    integers("ydeep.npy", &[10, 2], (0..20).map(|i| i % 3).collect());
    integers("ignored.npy", &[10], vec![-100; 10]);
    integers("opposed.npy", &[10], vec![0, 1, -100, 0, 1, 0, 1, 0, 1, -100]);
    integers("outside.npy", &[10], vec![0, 1, 2, 0, 1, 2, 0, 3, 1, 2]);
    integers("ynone.npy", &[0], vec![]);
    let opposed = Array::new(&[1.0_f32, -1.0, 0.5], &[3]).unwrap();
    fs::write(folder.path().join("opposed-w.npy"), npy_of(&opposed)).unwrap();
    folder
}

/// What a run writes to a `.safetensors` file, by name.
fn results(folder: &Path, command: &str) -> Vec<(String, Dtype, Vec<usize>, Vec<f64>)> {
    wgloss(folder, command, &[]).report();
    let bytes = fs::read(folder.join("out.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let values = |view: &TensorView<'_>| match view.dtype() {
        Dtype::F64 => bytemuck::pod_collect_to_vec(view.data()),
        Dtype::F32 => {
            let values: Vec<f32> = bytemuck::pod_collect_to_vec(view.data());
            values.into_iter().map(f64::from).collect()
        }
        Dtype::I32 => {
            let values: Vec<i32> = bytemuck::pod_collect_to_vec(view.data());
            values.into_iter().map(f64::from).collect()
        }
        other => panic!("{other:?}"),
    };
    let mut results: Vec<_> = file
        .iter()
        .map(|(name, view)| (name.to_string(), view.dtype(), view.shape().to_vec(), values(&view)))
        .collect();
    results.sort_by(|a, b| a.0.cmp(&b.0));
    fs::remove_file(folder.join("out.safetensors")).unwrap();
    results
}

/// Whatever is divided how, the results are those of one piece.
#[test]
fn batches_of_rows_are_the_whole() {
    let folder = tall();
    let ce = "cross-entropy --input x.npy --target";
    let commands = [
        format!("{ce} y.npy"),
        format!("{ce} y.npy --weight w.npy --label-smoothing 0.2 --z-loss 0.1 --upstream u.npy"),
        format!("{ce} y.npy --reduction sum --upstream u.npy"),
        format!(
            "{ce} y.npy --reduction none --upstream u10.npy --weight w.npy \
             --logsumexp out.safetensors --argmax out.safetensors --correct out.safetensors \
             --entropy out.safetensors"
        ),
        format!("{ce} t.npy --label-smoothing 0.2 --weight w.npy"),
        format!("{ce} ignored.npy"),
        format!("{ce} ignored.npy --empty-mean 0.5"),
        format!("{ce} opposed.npy --weight opposed-w.npy"),
        "cross-entropy --input deep.npy --target ydeep.npy --weight w.npy".into(),
        "cross-entropy --input none.npy --target ynone.npy".into(),
        "nll-loss --input x.npy --target y.npy --weight w.npy".into(),
        "nll-loss --input x.npy --target opposed.npy --weight opposed-w.npy".into(),
        "bce --input p.npy --target t.npy --weight w1.npy".into(),
        "bce-with-logits --input x.npy --target t.npy --weight w10.npy --pos-weight w.npy".into(),
        "bce-with-logits --input x.npy --target t.npy --reduction none --upstream u103.npy".into(),
        "mse --input x.npy --target t.npy --upstream u.npy".into(),
        "mse --input u10.npy --target u10.npy".into(),
        "mse --input none.npy --target none.npy".into(),
        "kl-div --input x.npy --target t.npy --reduction batchmean".into(),
        "kl-div --input hollow.npy --target hollow.npy --reduction batchmean".into(),
        "kl-div --input none.npy --target none.npy --reduction batchmean".into(),
        "softmax --input x.npy --upstream u103.npy".into(),
        "log-softmax --input deep.npy --dim 1 --upstream deep.npy".into(),
        "sigmoid --input x.npy --upstream x.npy".into(),
    ];
    // The host divides, whatever computes: one command of each kind of rows will do elsewhere.
    let of_each_kind = [1, 13, 22].map(|i| &commands[i]);
    let has_gpu = wgloss_testing::devices::gpu().is_some();
    let elsewhere = if has_gpu { &["cpu", "gpu"][..] } else { &["cpu"] };
    for (i, command) in commands.iter().enumerate() {
        // a row each, a last one that is short (always), the whole, more than there is
        let sizes = [3, [1, 10, 99][i % 3]];
        let others = elsewhere.iter().filter(|_| of_each_kind.contains(&command));
        let others = others.map(|&device| (device, 2e-6, &sizes[..1]));
        for (device, tolerance, sizes) in
            [("reference", 1e-14, &sizes[..])].into_iter().chain(others)
        {
            let command = format!(
                "run {command} --device {device} --loss out.safetensors --grad out.safetensors"
            );
            let whole = results(folder.path(), &command);
            for size in sizes {
                let divided = results(folder.path(), &format!("{command} --batch-rows {size}"));
                assert_eq!(divided.len(), whole.len());
                for (got, want) in divided.iter().zip(&whole) {
                    let (of_got, of_want) = ((&got.0, got.1, &got.2), (&want.0, want.1, &want.2));
                    assert_eq!(of_got, of_want, "{command}");
                    let largest = want.3.iter().fold(0.0_f64, |max, v| max.max(v.abs()));
                    for (got, want) in got.3.iter().zip(&want.3) {
                        let error = (got - want).abs();
                        let is_equal =
                            got.is_nan() && want.is_nan() || error <= tolerance * largest;
                        assert!(is_equal, "{command}, {size} rows: {got} instead of {want}");
                    }
                }
            }
        }
    }
}

#[test]
fn any_number_of_rows_of_nothing_is_one_batch() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("x.npy"), npy("<f4", &[1 << 40, 0], "False", &[])).unwrap();
    for command in [
        "softmax --upstream x.npy",
        "mse --target x.npy",
        "kl-div --target x.npy --reduction batchmean",
    ] {
        let command =
            format!("run {command} --input x.npy --batch-rows 16 --device cpu --grad g.npy");
        let report = wgloss(folder.path(), &command, &[]).report();
        assert!(line(&report, "call").contains("(1 batches, "), "{report}");
        assert_eq!(read_npy(&folder.path().join("g.npy")).shape, [1 << 40, 0]);
    }
}

#[test]
fn the_report_of_batches_is_that_of_the_whole() {
    let folder = tall();
    let command = "run cross-entropy --input x.npy --target y.npy --reduction none --device \
        reference --loss l.npy --grad g.npy";
    let whole = wgloss(folder.path(), command, &[]).report();
    let divided = wgloss(folder.path(), &format!("{command} --batch-rows 4"), &[]).report();
    assert!(line(&divided, "call").ends_with("(3 batches, with reading and writing files)"));
    let rest = |report: &str| {
        let lines = report.lines().filter(|line| !line.starts_with("call"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(rest(&divided), rest(&whole));
    // both files are as numpy writes them
    assert_eq!(read_npy(&folder.path().join("l.npy")).shape, [10]);
    assert_eq!(read_npy(&folder.path().join("g.npy")).shape, [10, 3]);
}

#[test]
fn what_cannot_be_done_in_batches_is_refused() {
    let folder = tall();
    let columns = npy("<f4", &[10, 3], "True", &[0; 120]);
    fs::write(folder.path().join("fortran.npy"), columns).unwrap();
    let mut values = [0.5_f32; 30];
    values[6 * 3 + 4] = 1.5;
    let bad = npy("<f4", &[10, 3], "False", bytemuck::cast_slice(&values));
    fs::write(folder.path().join("bad.npy"), bad).unwrap();
    let scalar = npy("<i8", &[], "False", &[0; 8]);
    fs::write(folder.path().join("scalar.npy"), scalar).unwrap();
    let listing = || fs::read_dir(folder.path()).unwrap().count();
    let before = listing();
    let devices =
        if wgloss_testing::devices::gpu().is_some() { &["reference", "gpu"][..] } else { &["cpu"] };
    for device in devices {
        for (command, message) in [
            (
                "softmax --input x.npy --upstream x.npy --dim 0",
                "--batch-rows: expected a --dim other than the first of [10, 3], which is divided \
                 into batches, got 0",
            ),
            (
                "log-softmax --input x.npy --upstream x.npy --dim -2",
                "--batch-rows: expected a --dim other than the first of [10, 3], which is divided \
                 into batches, got -2",
            ),
            (
                "nll-loss --input w.npy --target scalar.npy",
                "--batch-rows: expected an input of shape [N, C] or [N, C, d1, ...], got [3]",
            ),
            (
                "sigmoid --input u.npy --upstream u.npy",
                "--batch-rows: expected an input of at least one dimension, got []",
            ),
            (
                "softmax --input u.npy --upstream u.npy",
                "--batch-rows: expected an input of at least one dimension, got []",
            ),
            (
                "log-softmax --input u.npy --upstream u.npy --dim 0",
                "--batch-rows: expected an input of at least one dimension, got []",
            ),
            (
                "sigmoid --input fortran.npy --upstream x.npy",
                "--input fortran.npy: expected C order for --batch-rows, got Fortran order: convert with \
                 np.ascontiguousarray",
            ),
            // the row is that of the file
            (
                "cross-entropy --input x.npy --target outside.npy",
                "--target outside.npy: expected a class in 0..3 at row 7, got 3",
            ),
            (
                "bce --input bad.npy --target t.npy",
                "rows 6..9: --input bad.npy: expected numbers in [0, 1], got 1.5 at element 4",
            ),
        ] {
            let command =
                format!("run {command} --batch-rows 3 --device {device} --loss l.npy --grad g.npy");
            assert_eq!(wgloss(folder.path(), &command, &[]).refusal(), message, "{command}");
            assert_eq!(listing(), before, "{command}");
        }
    }
    let none = wgloss(folder.path(), "run sigmoid --input x.npy --batch-rows 0", &[]);
    assert_eq!(none.code, Some(2));
    assert!(none.stderr.contains("--batch-rows <ROWS>"), "{}", none.stderr);
}

#[test]
fn passes_follow_from_the_files_asked_for() {
    let folder = inputs();
    for (rest, pass) in [
        ("", "forward"),
        ("--loss l.npy", "forward"),
        ("--grad g.npy", "forward_backward"),
        ("--pass backward", "backward"),
        ("--pass backward --grad g.npy --upstream scalar.npy", "backward"),
        ("--pass forward-backward", "forward_backward"),
    ] {
        let command = "run cross-entropy --input logits.npy --target target.npy --device reference";
        let report = wgloss(folder.path(), &format!("{command} {rest}"), &[]).report();
        assert_eq!(line(&report, "op"), format!("cross_entropy.{pass}, reduction mean"));
    }
}

#[test]
fn bad_input_is_refused_in_one_line_and_nothing_is_written() {
    let folder = inputs();
    fs::create_dir(folder.path().join("folder.npy")).unwrap();
    let good = "--input logits.npy --target target.npy";
    let name = "expected a name that ends in .npy, .safetensors or .safetensors#KEY";
    let cases = [
        // inputs
        (
            "--input complex.npy --target target.npy",
            "--input complex.npy: expected floats, integers or bool, got complex64",
        ),
        (
            "--input words.npy --target target.npy",
            "--input words.npy: expected floats, integers or bool, got numpy type <U4",
        ),
        (
            "--input target.npy --target target.npy",
            "--target target.npy: expected shape [], got [2]",
        ),
        (
            "--input logits.npy --target complex.npy",
            "--target complex.npy: expected integers or bool for classes, floats for probabilities, got \
             complex64",
        ),
        (
            "--input logits.npy --target two.npy",
            "--target two.npy: expected int32 or int64, got float32: convert with .astype(np.int64)",
        ),
        (
            "--input half.npy --target logits.npy",
            "--target logits.npy: expected int32 or int64 or float16, got float32: convert with \
             .astype(np.float16)",
        ),
        (
            "--input logits.npy --target vector.npy",
            "--target vector.npy: expected shape [2, 3], got [3]",
        ),
        (
            "--input cut.npy --target target.npy",
            "--input cut.npy: expected 24 bytes of float32 for shape [2, 3], got 20",
        ),
        (
            "--input text.npy --target target.npy",
            "--input text.npy: not a .npy file: it does not start as one",
        ),
        (
            "--input text.safetensors --target target.npy",
            "--input text.safetensors: not a good .safetensors file: header too large",
        ),
        (
            "--input batch.safetensors --target target.npy",
            "--input batch.safetensors: expected a tensor \"input\", found \"labels\", \"logits\", \
             \"target\" (FILE#KEY names one)",
        ),
        ("--input zip.npz --target target.npy", &format!("--input zip.npz: {name}")),
        (
            "--input logits.npy#k --target target.npy",
            "--input logits.npy#k: expected no key for a .npy file, got \"k\"",
        ),
        (
            "--input logits.npy --target target.npy --key k",
            "--input logits.npy#k: expected no key for a .npy file, got \"k\"",
        ),
        (
            "--input batch.safetensors#logits --target target.npy --key k",
            "--key: expected one key for --input batch.safetensors#logits, got also \"k\"",
        ),
        (
            "--input logits.npy --target three.npy",
            "--target three.npy: expected shape [2], got [3]",
        ),
        (
            "--input logits.npy --target outside.npy",
            "--target outside.npy: expected a class in 0..3 at row 1, got 3",
        ),
        (
            "--input scalar.npy --target target.npy",
            "--input scalar.npy: expected shape [C], [N, C] or [N, C, d1, ...] with C at least 1, \
             got []",
        ),
        // options
        (
            &format!("{good} --label-smoothing 1.5"),
            "--label-smoothing: expected a number in [0, 1], got 1.5",
        ),
        (
            &format!("{good} --weight logits.npy"),
            "--weight logits.npy: expected shape [3], got [2, 3]",
        ),
        (
            &format!("{good} --upstream scalar.npy --pass forward"),
            "--upstream scalar.npy: expected none for cross_entropy.forward, got one",
        ),
        // outputs
        (
            &format!("{good} --pass forward --grad g.npy"),
            "--grad g.npy: expected none for --pass forward, got one",
        ),
        (
            &format!("{good} --pass backward --loss l.npy"),
            "--loss l.npy: expected none for --pass backward, got one",
        ),
        (&format!("{good} --loss l.npy --grad g.csv"), &format!("--grad g.csv: {name}")),
        (
            &format!("{good} --loss l.npy --grad nowhere/g.npy"),
            "--grad nowhere/g.npy: expected an existing folder nowhere",
        ),
        (
            &format!("{good} --loss l.npy --grad folder.npy"),
            "--grad folder.npy: expected a file, found a folder",
        ),
        (
            &format!("{good} --loss l.npy --grad ./folder.npy/../target.npy"),
            "--grad ./folder.npy/../target.npy: expected another file than --target",
        ),
        (
            &format!("{good} --loss l.npy --grad ./l.npy"),
            "--grad ./l.npy: expected another place than --loss",
        ),
        (
            &format!("{good} --loss l.safetensors#x --grad l.safetensors#x"),
            "--grad l.safetensors#x: expected another place than --loss",
        ),
        (
            &format!("{good} --loss l.safetensors#__metadata__ --grad l.safetensors"),
            "--loss l.safetensors#__metadata__: expected another key than \"__metadata__\", which \
             .safetensors reserves",
        ),
        (
            "--input logits.npy --target logits.npy --correct c.npy",
            "--correct c.npy: expected none for these targets, got one",
        ),
        // what is wrong with an input is found before anything is written
        (
            "--input logits.npy --target three.npy --loss l.npy --grad g.npy",
            "--target three.npy: expected shape [2], got [3]",
        ),
    ];
    let listing = || {
        let names = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        names.collect::<HashSet<_>>()
    };
    let before = listing();
    for (rest, message) in cases {
        let command = format!("run cross-entropy --device reference {rest}");
        assert_eq!(wgloss(folder.path(), &command, &[]).refusal(), message, "{rest}");
        assert_eq!(listing(), before, "{rest}");
    }
    // the rest of such a line is the system's
    let missing = "run cross-entropy --input missing.npy --target target.npy --device reference";
    let line = wgloss(folder.path(), missing, &[]).refusal();
    assert!(line.starts_with("--input missing.npy: "), "{line}");
}

#[test]
fn usage_errors_end_with_2() {
    let folder = inputs();
    let good = "--input logits.npy --target target.npy";
    for (command, part) in [
        ("", "Usage: wgloss [OPTIONS] <COMMAND>"),
        ("run", "Usage: wgloss run [OPTIONS] <COMMAND>"),
        ("run no-such-op", "unrecognized subcommand 'no-such-op'"),
        ("run cross-entropy --input logits.npy", "--target <FILE>"),
        (&format!("run cross-entropy {good} --pos-weight w.npy"), "'--pos-weight'"),
        (&format!("run bce-with-logits {good} --label-smoothing 0.1"), "'--label-smoothing'"),
        (&format!("run cross-entropy {good} --reduction avg"), "none, mean, sum]"),
        (&format!("run cross-entropy {good} --reduction batchmean"), "none, mean, sum]"),
        (&format!("run softmax {good}"), "'--target'"),
        ("run sigmoid --input logits.npy --reduction sum", "'--reduction'"),
        ("run sigmoid --input --loss l.npy", "a value is required for '--input <FILE>'"),
        ("run sigmoid --input", "a value is required for '--input <FILE>'"),
        (&format!("run cross-entropy {good} --device tpu"), "auto, gpu, cpu, reference"),
    ] {
        let run = wgloss(folder.path(), command, &[]);
        assert_eq!((run.code, &run.stdout[..]), (Some(2), ""), "{command}");
        assert!(run.stderr.contains(part), "{command}: {}", run.stderr);
    }
}

#[test]
fn shapes_that_cannot_be_timed() {
    if wgloss_testing::devices::gpu().is_none() {
        return;
    }
    let folder = TempDir::new().unwrap();
    for (shape, sizes) in
        [("4294967296x4294967296", "4294967296, 4294967296"), ("100000000000x2", "100000000000, 2")]
    {
        let refusal =
            wgloss(folder.path(), &format!("bench --device gpu --shape {shape}"), &[]).refusal();
        let text = format!(
            "cross_entropy forward_backward f32 [{sizes}]: --shape: expected at most 1073741824 \
             elements, got [{sizes}]"
        );
        assert_eq!(refusal, text);
    }
}

#[test]
fn devices_are_listed() {
    let Some(gpu) = &wgloss_testing::devices::gpu() else { return };
    let folder = inputs();
    let text = wgloss(folder.path(), "devices", &[]).report();
    for part in [&gpu.info().name[..], "--device gpu   takes 0", "--device auto  takes"] {
        assert!(text.contains(part), "no {part} in:\n{text}");
    }
    let json = wgloss(folder.path(), "devices --json", &[]).report();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["gpu"], 0);
    assert_eq!(json["adapters"][0]["name"], gpu.info().name);
    let auto = json["auto"].as_u64();
    assert_eq!(auto, (!gpu.is_software()).then_some(0));

    // what `auto` is said to take is what it takes
    let command = "run cross-entropy --input logits.npy --target target.npy";
    let report = wgloss(folder.path(), command, &[]).report();
    match auto {
        Some(_) => assert!(line(&report, "device").starts_with(&gpu.info().name), "{report}"),
        None => {
            assert!(line(&report, "device").contains("; auto found no usable GPU: "), "{report}")
        }
    }
}

#[test]
fn an_adapter_by_its_name() {
    let Some(gpu) = &wgloss_testing::devices::gpu() else { return };
    let folder = inputs();
    let name = gpu.info().name.split_whitespace().next().unwrap().to_uppercase();
    // an op by its other name, too
    let command = "run cross_entropy --input logits.npy --target target.npy --adapter";
    for device in ["", " --device gpu"] {
        let report = wgloss(folder.path(), &format!("{command} {name}{device}"), &[]).report();
        assert!(line(&report, "device").starts_with(&gpu.info().name), "{report}");
    }
    let refusal = |command: &str| wgloss(folder.path(), command, &[]).refusal();
    let text = refusal(&format!("{command} nothing-like-it"));
    let start =
        "--device gpu: expected a Vulkan, Metal or DX12 adapter named \"nothing-like-it\", found";
    assert!(text.starts_with(start), "{text}");
    let text = "--adapter x: expected none for --device cpu, got one";
    assert_eq!(refusal(&format!("{command} x --device cpu")), text);
    assert_eq!(refusal("check --only mse --adapter x --device cpu"), text);
    let text = "--team subgroup: expected none for --device cpu, got one";
    assert_eq!(refusal("check --only mse --team subgroup --device cpu"), text);
    assert_eq!(refusal("bench --team subgroup --device cpu"), text);
    let text = "--plot bars.png: expected a name that ends in .svg";
    assert_eq!(refusal("bench --shape 4x4 --plot bars.png"), text);
}

/// Where the Vulkan loader finds no driver.
#[cfg(target_os = "linux")]
#[test]
fn without_an_adapter() {
    let folder = inputs();
    let none = [("VK_DRIVER_FILES", "/nonexistent"), ("VK_ICD_FILENAMES", "/nonexistent")];
    let refusal = |command: &str| wgloss(folder.path(), command, &none).refusal();
    assert!(refusal("devices").starts_with("no adapter found: install "));
    let command = "run cross-entropy --input logits.npy --target target.npy --device";
    let message = "--device gpu: expected a Vulkan, Metal or DX12 adapter, found none";
    assert_eq!(refusal(&format!("{command} gpu")), message);
    let report = wgloss(folder.path(), &format!("{command} auto"), &none).report();
    let device = line(&report, "device");
    let why = "; auto found no usable GPU: expected a hardware GPU, found none";
    assert!(device.starts_with("cpu (") && device.ends_with(why), "{device}");
}
