//! `wgloss check`: what it passes, what it must not pass, what it writes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::command::{line, wgloss};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::TempDir;
use wgloss::{
    Args, Array, Huber, KlDiv, LogSigmoid, LogSoftmax, Op, Pass, Reduction, SigmoidFocal, SmoothL1,
    SoftMargin, reference,
};
use wgloss_testing::call::result;
use wgloss_testing::conformance;
use wgloss_testing::devices::gpu;

fn last(report: &str) -> &str {
    report.lines().last().unwrap_or_default()
}

/// The tensors of a folder, by key: shape and little-endian bytes.
struct Tensors(BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>);

impl Tensors {
    fn f32(&mut self, key: &str, values: &[f32]) {
        let bytes = bytemuck::cast_slice(values).to_vec();
        self.0.insert(key.into(), (Dtype::F32, vec![values.len()], bytes));
    }

    fn f64(&mut self, key: &str, values: &[f64]) {
        let bytes = bytemuck::cast_slice(values).to_vec();
        self.0.insert(key.into(), (Dtype::F64, vec![values.len()], bytes));
    }

    fn write(&self, path: &Path) {
        let views = self.0.iter().map(|(key, (dtype, shape, bytes))| {
            (key, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
    }
}

/// A folder with one case of mse and one of softmax, changed in whatever way.
fn small(change: impl FnOnce(&mut Value, &mut Tensors)) -> TempDir {
    let folder = TempDir::new().unwrap();
    let mut tensors = Tensors(BTreeMap::new());
    tensors.f32("m/x", &[1.0, 2.0, 4.0]);
    tensors.f32("m/t", &[0.0, 2.5, 1.0]);
    tensors.f64("m/out", &[(1.0 + 0.25 + 9.0) / 3.0]);
    tensors.f64("m/grad", &[2.0 / 3.0, -1.0 / 3.0, 2.0]);
    tensors.f32("s/x", &[0.0, 0.0]);
    tensors.f64("s/out", &[0.5, 0.5]);
    let mut list = json!({
        "source": "made up",
        "cases": [
            {
                "name": "m", "op": "mse", "params": {"reduction": "mean"},
                "target_kind": "same_shape", "pre": null, "file": "t.safetensors",
                "tensors": {"input": "m/x", "target": "m/t", "out_ref": "m/out", "grad_ref": "m/grad"},
            },
            {
                "name": "s", "op": "softmax", "params": {"dim": 0, "dtype": null},
                "target_kind": null, "pre": null, "file": "t.safetensors",
                "tensors": {"input": "s/x", "out_ref": "s/out"},
            },
        ],
    });
    change(&mut list, &mut tensors);
    tensors.write(&folder.path().join("t.safetensors"));
    fs::write(folder.path().join("cases.json"), list.to_string()).unwrap();
    folder
}

#[test]
fn the_folders_of_this_repository_pass() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| conformance::folder(name).display().to_string();
    let (seeds, onnx) = (path("seeds"), path("onnx"));
    for device in ["gpu", "reference", "cpu"] {
        if device == "gpu" && gpu().is_none() {
            continue;
        }
        let command =
            format!("check --cases {seeds} --cases {onnx} --device {device} --json j.json");
        let report = wgloss(folder.path(), &command, &[]).report();
        let counts = "134 passed, 0 failed, 0 skipped";
        assert_eq!(last(&report), counts, "{report}");
        let json: Value =
            serde_json::from_slice(&fs::read(folder.path().join("j.json")).unwrap()).unwrap();
        let of = |name: &str| format!("{} {name}", json[name]);
        assert_eq!(["passed", "failed", "skipped"].map(of).join(", "), counts);
        assert_eq!(json["device"], line(&report, "device"));
        let cases = json["cases"].as_array().unwrap();
        let of = |name: &str| {
            let group = |case: &&Value| case["group"].as_str().unwrap().starts_with(name);
            let cases = cases.iter().filter(group);
            // both outputs of ONNX's cross entropy
            let log_probs = cases.clone().filter(|case| case["worst"][2].is_number());
            [cases.count(), log_probs.count()]
        };
        assert_eq!([of(&seeds), of(&onnx)], [[66, 0], [68, 17]]);
    }
    let command = format!("check --cases {onnx} --only sigmoid --device reference");
    let report = wgloss(folder.path(), &command, &[]).report();
    assert_eq!(last(&report), "2 passed, 0 failed, 0 skipped", "{report}");
}

/// Ops and options that the folders of this repository lack, against the library's reference.
#[test]
fn every_op_and_option_of_the_format_is_known() {
    let x = [0.25_f32, -1.5, 3.0, 0.5, 2.0, -0.75];
    let t = [1.0_f32, -1.0, 0.5, 0.0, 2.0, 0.25];
    let args = || {
        let shaped = |values| Array::new(values, &[2, 3]).unwrap();
        (shaped(&x), shaped(&t))
    };
    let batch_mean = Reduction::BatchMean;
    let ops: Vec<(Value, Box<dyn Op>)> = vec![
        (json!({"beta": 0.5, "reduction": "sum"}), {
            Box::new(SmoothL1::default().beta(0.5).reduction(Reduction::Sum))
        }),
        (json!({"delta": 2, "reduction": "none"}), {
            Box::new(Huber::default().delta(2.0).reduction(Reduction::None))
        }),
        (json!({"reduction": "batchmean"}), Box::new(KlDiv::default().reduction(batch_mean))),
        (json!({"log_target": true}), Box::new(KlDiv::default().log_target(true))),
        (json!({"reduction": "mean"}), Box::new(SoftMargin::default())),
        (json!({"alpha": 0.5, "gamma": 3, "reduction": "sum"}), {
            let op = SigmoidFocal::default().alpha(0.5).gamma(3.0);
            Box::new(op.reduction(Reduction::Sum))
        }),
        (json!({}), Box::new(LogSigmoid)),
        (json!({"dim": 0}), Box::new(LogSoftmax::default().dim(0))),
    ];
    let count = ops.len();
    let folder = small(|list, tensors| {
        let cases = list["cases"].as_array_mut().unwrap();
        let raw = |values: &[f32]| bytemuck::cast_slice(values).to_vec();
        tensors.0.insert("x".into(), (Dtype::F32, vec![2, 3], raw(&x)));
        tensors.0.insert("t".into(), (Dtype::F32, vec![2, 3], raw(&t)));
        tensors.0.insert("u".into(), (Dtype::F32, vec![2, 3], raw(&t)));
        for (i, (params, op)) in ops.into_iter().enumerate() {
            let (input, target) = args();
            let is_map = ["logsigmoid", "log_softmax"].contains(&op.name());
            let args = Args::new(input);
            // maps have an upstream gradient, losses one of 1
            let args = if is_map { args.upstream(target) } else { args.target(target) };
            let want = reference::run(&*op, Pass::ForwardBackward, &args).unwrap();
            for (part, want) in [("out", result(&want)), ("grad", want.grad().unwrap())] {
                let bytes = bytemuck::cast_slice(&want.values).to_vec();
                tensors.0.insert(format!("{i}/{part}"), (Dtype::F64, want.shape.clone(), bytes));
            }
            let (target, upstream) = match is_map {
                true => (Value::Null, "u".into()),
                false => ("t".into(), Value::Null),
            };
            cases.push(json!({
                "name": i.to_string(), "op": op.name(), "params": params, "file": "t.safetensors",
                "tensors": {
                    "input": "x", "target": target, "upstream": upstream,
                    "out_ref": format!("{i}/out"), "grad_ref": format!("{i}/grad"),
                },
            }));
        }
        // log-probabilities along the classes, then their divergence: written out
        tensors.f32("k/x", &[1.0, 2.0, 3.0]);
        tensors.f32("k/t", &[0.2, 0.3, 0.5]);
        let lse = (1_f64.exp() + 2_f64.exp() + 3_f64.exp()).ln();
        let (p, t) = ([1.0, 2.0, 3.0].map(|x: f64| x - lse), [0.2_f32, 0.3, 0.5].map(f64::from));
        let terms = [0, 1, 2].map(|c| t[c] * (t[c].ln() - p[c]));
        tensors.f64("k/out", &[terms.iter().sum()]);
        let sum: f64 = t.iter().sum();
        tensors.f64("k/grad", &[0, 1, 2].map(|c| p[c].exp() * sum - t[c]));
        cases.push(json!({
            "name": "k", "op": "kl_div", "params": {"reduction": "sum"}, "pre": "log_softmax",
            "file": "t.safetensors", "tensors": {
                "input": "k/x", "target": "k/t", "out_ref": "k/out", "grad_ref": "k/grad",
            },
        }));
    });
    let device = if gpu().is_some() { "gpu" } else { "cpu" };
    let command = format!("check --cases . --device {device}");
    let report = wgloss(folder.path(), &command, &[]).report();
    assert_eq!(last(&report), format!("{} passed, 0 failed, 0 skipped", count + 3), "{report}");
}

/// A change and what the report must say of it.
type Tampering<'a> = (&'a str, &'a str, Box<dyn FnOnce(&mut Value, &mut Tensors)>);

#[test]
fn what_is_wrong_fails() {
    let list =
        |change: fn(&mut Value)| Box::new(move |list: &mut Value, _: &mut Tensors| change(list));
    let values =
        |change: fn(&mut Tensors)| Box::new(move |_: &mut Value, t: &mut Tensors| change(t));
    let cases: Vec<Tampering<'_>> = vec![
        (
            "m",
            "grad of forward_backward: 1 values off, the worst at 1",
            values(|t| {
                t.f64("m/grad", &[2.0 / 3.0, -1.0 / 3.0 + 1e-4, 2.0]);
            }),
        ),
        ("m", "out of forward: 1 values off", values(|t| t.f64("m/out", &[f64::NAN]))),
        ("s", "out of forward: 2 values off", values(|t| t.f32("s/x", &[0.0, f32::NAN]))),
        ("s", "got shape [2], want [3]", values(|t| t.f64("s/out", &[0.5, 0.5, 0.0]))),
        (
            "s",
            "op: expected one that wgloss has, got \"hinge\"",
            list(|l| {
                l["cases"][1]["op"] = "hinge".into();
            }),
        ),
        (
            "s",
            "params: expected options of softmax alone, got also temperature 2",
            list(|l| {
                l["cases"][1]["params"]["temperature"] = 2.into();
            }),
        ),
        (
            "m",
            "reduction: expected none, mean, sum or batchmean, got \"avg\"",
            list(|l| {
                l["cases"][0]["params"]["reduction"] = "avg".into();
            }),
        ),
        (
            "m",
            "reduction: expected none, mean or sum, got batchmean",
            list(|l| {
                l["cases"][0]["params"]["reduction"] = "batchmean".into();
            }),
        ),
        (
            "s",
            "pre: expected sigmoid, log_softmax or softmax_log, got \"exp\"",
            list(|l| {
                l["cases"][1]["pre"] = "exp".into();
            }),
        ),
        (
            "m",
            "target: expected other numbers for target_kind index, got F32",
            list(|l| {
                l["cases"][0]["target_kind"] = "index".into();
            }),
        ),
        (
            "m",
            "target: expected for mse.forward, got none",
            list(|l| {
                l["cases"][0]["tensors"]["target"] = Value::Null;
            }),
        ),
    ];
    for (name, reason, change) in cases {
        let folder = small(change);
        let run = wgloss(folder.path(), "check --cases . --device reference", &[]);
        assert_eq!((run.code, &run.stderr[..]), (Some(1), ""), "{}", run.stdout);
        assert_eq!(last(&run.stdout), "1 passed, 1 failed, 0 skipped", "{}", run.stdout);
        let line = line(&run.stdout, "FAILED");
        assert!(line.contains(&format!(" .: {name}: ")) && line.contains(reason), "{line}");
    }
}

#[test]
fn what_is_not_asked_is_not_judged() {
    for (counts, change) in [
        ("2 passed, 0 failed, 0 skipped", (|_| {}) as fn(&mut Value)),
        ("1 passed, 0 failed, 1 skipped", |l| l["cases"][0]["params"]["dtype"] = "float16".into()),
        ("2 passed, 0 failed, 0 skipped", |l| {
            l["cases"][0]["params"]["dtype"] = "float32".into();
            l["cases"][0]["tensors"]["grad_ref"] = Value::Null;
            l["cases"][0]["group"] = "for people".into();
        }),
    ] {
        let folder = small(|list, _| change(list));
        let report = wgloss(folder.path(), "check --cases . --device cpu", &[]).report();
        assert_eq!(last(&report), counts, "{report}");
    }
    // Python writes numbers that JSON lacks
    let folder = small(|list, _| list["cases"][0]["note"] = "a \\\"NaN\\\" and ]".into());
    let path = folder.path().join("cases.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replacen('{', "{\"torch_vs_ref\": [NaN, -Infinity, Infinity], ", 1))
        .unwrap();
    let report = wgloss(folder.path(), "check --cases . --device cpu", &[]).report();
    assert_eq!(last(&report), "2 passed, 0 failed, 0 skipped");
}

#[test]
fn errors_must_be_refused() {
    let entry = |name: &str, op: &str, params: Value, input: &str, target: &str| {
        json!({
            "name": name, "op": op, "params": params, "what": "something", "file": "t.safetensors",
            "tensors": {"input": input, "target": target},
        })
    };
    let refused = [
        entry("length", "mse", json!({}), "m/x", "s/x"),
        entry("reduction", "mse", json!({"reduction": "avg"}), "m/x", "m/t"),
        entry("class", "cross_entropy", json!({}), "m/x", "class"),
        entry("smoothing", "cross_entropy", json!({"label_smoothing": 1.5}), "m/x", "zero"),
        entry("nan", "cross_entropy", json!({"label_smoothing": "NaN"}), "m/x", "zero"),
        entry("delta", "huber", json!({"delta": 0}), "m/x", "m/t"),
        entry("range", "bce", json!({}), "m/x", "m/t"),
        entry("dim", "softmax", json!({"dim": 1}), "m/x", "m/t"),
        entry("op", "hinge", json!({}), "m/x", "m/t"),
    ];
    let accepted = entry("fine", "mse", json!({}), "m/x", "m/t");
    let write = |entries: Vec<Value>| {
        small(|list, tensors| {
            let class = |class: i64| (Dtype::I64, vec![], class.to_le_bytes().to_vec());
            tensors.0.insert("class".into(), class(3));
            tensors.0.insert("zero".into(), class(0));
            list["errors"] = entries.into();
        })
    };
    let command = "check --cases . --device";
    for device in ["gpu", "reference"] {
        if device == "gpu" && gpu().is_none() {
            continue;
        }
        let command = format!("{command} {device}");
        let report = wgloss(write(refused.to_vec()).path(), &command, &[]).report();
        assert_eq!(last(&report), "11 passed, 0 failed, 0 skipped", "{report}");

        let run = wgloss(write(vec![accepted.clone()]).path(), &command, &[]);
        assert_eq!(run.code, Some(1));
        assert_eq!(last(&run.stdout), "2 passed, 1 failed, 0 skipped");
        assert!(run.stdout.contains("fine: expected an error for something, got a result"));
    }
}

#[test]
fn what_was_computed_is_written() {
    let folder = small(|_, _| {});
    let device = if gpu().is_some() { "gpu" } else { "cpu" };
    let command = format!("check --cases . --device {device} --dump d.safetensors");
    wgloss(folder.path(), &command, &[]).report();
    let bytes = fs::read(folder.path().join("d.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut names = file.names();
    names.sort_unstable();
    assert_eq!(names, ["m/grad", "m/out", "s/out"]);
    for (key, shape, want) in [
        ("m/out", &[][..], &[41.0 / 12.0][..]),
        ("m/grad", &[3], &[2.0 / 3.0, -1.0 / 3.0, 2.0]),
        ("s/out", &[2], &[0.5, 0.5]),
    ] {
        let tensor = file.tensor(key).unwrap();
        assert_eq!((tensor.dtype(), tensor.shape()), (Dtype::F32, shape), "{key}");
        let got: Vec<f32> = bytemuck::pod_collect_to_vec(tensor.data());
        assert!(
            got.iter().zip(want).all(|(got, want)| (got - want).abs() < 1e-6),
            "{key}: {got:?}"
        );
    }
    let refusal = |command: &str| wgloss(folder.path(), command, &[]).refusal();
    assert_eq!(
        refusal("check --cases . --cases . --dump d.safetensors"),
        "--dump: expected cases of different names, got two \"m\""
    );
    assert_eq!(
        refusal("check --cases . --dump d.npy"),
        "--dump d.npy: expected a name that ends in .safetensors"
    );
    assert_eq!(
        refusal("check --cases . --json nowhere/j.json"),
        "--json nowhere/j.json: expected an existing folder nowhere"
    );
    assert_eq!(wgloss(folder.path(), "check --dump d.safetensors", &[]).code, Some(2));
}

#[test]
fn a_malformed_folder_is_one_line() {
    let change = |change: fn(&mut Value)| small(|list, _| change(list));
    let broken = |name: &str, bytes: &[u8]| {
        let folder = small(|_, _| {});
        fs::write(folder.path().join(name), bytes).unwrap();
        folder
    };
    for (folder, message) in [
        (TempDir::new().unwrap(), "./cases.json: expected a readable list of cases: "),
        (broken("cases.json", b"{"), "./cases.json: expected a list of cases: EOF"),
        (broken("cases.json", b"[]"), "./cases.json: expected a list of cases: "),
        (broken("cases.json", b"\xff"), "./cases.json: expected a readable list of cases: "),
        (
            broken("t.safetensors", b"no tensors"),
            "./t.safetensors: expected a good .safetensors file: ",
        ),
        (
            change(|l| l["cases"][0]["file"] = "u.safetensors".into()),
            "./u.safetensors: expected a readable file for case \"m\": ",
        ),
        (
            change(|l| l["cases"][0]["tensors"]["target"] = "m/u".into()),
            "./t.safetensors: expected a tensor \"m/u\", the target of case \"m\"",
        ),
        (
            change(|l| l["cases"][1]["tensors"]["out_ref"] = Value::Null),
            "./cases.json: expected a tensor for role out_ref of case \"s\"",
        ),
        // nothing to check is no success
        (change(|l| l["cases"] = json!([])), "./cases.json: expected at least one case, got none"),
        // without an input the op would not be asked
        (
            change(|l| {
                l["errors"] = json!([{
                    "name": "e", "op": "sigmoid", "params": {}, "file": "t.safetensors",
                    "tensors": {"target": "m/t"},
                }]);
            }),
            "./cases.json: expected a tensor for role input of case \"e\"",
        ),
        (
            change(|l| l["cases"][1]["op"] = 3.into()),
            "./cases.json: expected a list of cases: invalid type: integer `3`, expected a string",
        ),
    ] {
        let refusal = wgloss(folder.path(), "check --cases .", &[]).refusal();
        assert!(refusal.starts_with(message), "{refusal}");
    }
}

#[test]
fn a_key_that_is_there_twice_is_refused() {
    let folder = small(|_, _| {});
    let refusal = || wgloss(folder.path(), "check --cases . --device cpu", &[]).refusal();
    let list = folder.path().join("cases.json");
    let good = fs::read_to_string(&list).unwrap();
    fs::write(&list, good.replace("\"op\":\"mse\"", "\"op\":\"l1\",\"op\":\"mse\"")).unwrap();
    let text = refusal();
    assert!(text.contains("cases.json: ") && text.contains("duplicate key \"op\""), "{text}");
    fs::write(&list, good).unwrap();

    let tensors = folder.path().join("t.safetensors");
    let bytes = fs::read(&tensors).unwrap();
    let size = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = str::from_utf8(&bytes[8..8 + size]).unwrap();
    // the name of one in place of another's
    let header = header.replace("\"m/t\"", "\"m/x\"");
    fs::write(&tensors, [&bytes[..8], header.as_bytes(), &bytes[8 + size..]].concat()).unwrap();
    let text = refusal();
    assert!(text.contains("t.safetensors: ") && text.contains("duplicate key \"m/x\""), "{text}");
}

/// The whole table is in `tests/ops.rs`; this is the program's way through it.
#[test]
fn a_device_tests_itself() {
    let folder = TempDir::new().unwrap();
    let check = |rest: &str| wgloss(folder.path(), &format!("check {rest}"), &[]);
    let report = check("--device cpu --only kl-div --only mse --json j.json").report();
    assert_eq!(last(&report), "174 passed, 0 failed, 0 skipped", "{report}");
    assert!(line(&report, "kl_div  log_target").starts_with("60"), "{report}");
    let json: Value =
        serde_json::from_slice(&fs::read(folder.path().join("j.json")).unwrap()).unwrap();
    assert_eq!(json["cases"].as_array().unwrap().len(), 174);
    assert_eq!(json["columns"], json!(["forward", "backward", "fused"]));
    if gpu().is_some() {
        let report = check("--only logsigmoid").report();
        assert_eq!(last(&report), "24 passed, 0 failed, 0 skipped", "{report}");
    }
    let refusal = check("--only hinge").refusal();
    assert!(
        refusal.starts_with("--only hinge: expected one of cross_entropy, linear_cross_entropy, ")
    );
    let folder = small(|_, _| {});
    let refusal = wgloss(folder.path(), "check --cases . --only huber", &[]).refusal();
    assert_eq!(refusal, "--only huber: expected one of mse, softmax");
}
