//! Linear cross entropy on the command line: more arguments and gradients than other ops have.

use std::fs;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::TempDir;
use wgloss::half::{bf16, f16};
use wgloss::{
    Args, Array, CrossEntropy, LinearCrossEntropy, Output, Pass, Reduction, Role, reference,
};
use wgloss_testing::random::Random;

use crate::cli::{npy, npy_of, read_npy};
use crate::command::{line, wgloss};

const RUN: &str = "run linear-cross-entropy --input x.npy --projection w.npy --target y.npy";

/// Ten hidden states of three numbers, four classes, and ten.
struct Inputs {
    x: Array<'static>,
    w: Array<'static>,
    bias: Array<'static>,
    target: Array<'static>,
    weight: Array<'static>,
    folder: TempDir,
}

impl Inputs {
    fn new() -> Self {
        let mut random = Random::new(31);
        let mut numbers = |shape: &[usize]| -> Array<'static> {
            Array::from_vec(random.normals(shape.iter().product(), 1.0), shape).unwrap()
        };
        let folder = TempDir::new().unwrap();
        let inputs = Inputs {
            x: numbers(&[10, 3]),
            w: numbers(&[4, 3]),
            bias: numbers(&[4]),
            target: Array::from_vec(vec![0_i64, 3, -100, 1, 2, -100, 0, 2, 3, 1], &[10]).unwrap(),
            weight: Array::from_vec(vec![0.5_f32, 1.0, 2.0, 0.25], &[4]).unwrap(),
            folder,
        };
        let write = |name: &str, array: &Array<'_>| inputs.write(name, &npy_of(array));
        write("x.npy", &inputs.x);
        write("w.npy", &inputs.w);
        write("b.npy", &inputs.bias);
        write("y.npy", &inputs.target);
        write("c.npy", &inputs.weight);
        write("u10.npy", &numbers(&[10]));
        write("u.npy", &Array::scalar(-1.5_f32));
        // as many classes as hidden states: of the same shape
        write("w10.npy", &numbers(&[10, 3]));
        write("b10.npy", &numbers(&[10]));
        // rows of two dimensions
        write("x52.npy", &numbers(&[5, 2, 3]));
        let classes = |count: usize| (0..count).map(|i| (i % 4) as i64).collect::<Vec<_>>();
        write("y52.npy", &Array::from_vec(classes(10), &[5, 2]).unwrap());
        write("y10.npy", &Array::from_vec(classes(10), &[10]).unwrap());
        let outside = classes(10).into_iter().enumerate().map(|(i, y)| if i == 7 { 4 } else { y });
        write("outside.npy", &Array::from_vec(outside.collect(), &[10]).unwrap());
        let outside = classes(10).into_iter().enumerate().map(|(i, y)| if i == 7 { 4 } else { y });
        write("outside52.npy", &Array::from_vec(outside.collect(), &[5, 2]).unwrap());
        write("none.npy", &numbers(&[0, 3]));
        write("ynone.npy", &Array::from_vec::<i64>(vec![], &[0]).unwrap());
        write("one.npy", &numbers(&[3]));
        write("yone.npy", &Array::from_vec(vec![2_i64], &[]).unwrap());
        write("w2.npy", &numbers(&[4, 2]));
        for (name, shape) in [("half-x.npy", [10, 3]), ("half-w.npy", [4, 3])] {
            let values = random.normals(shape.iter().product(), 1.0);
            let values: Vec<_> = values.into_iter().map(f16::from_f32).collect();
            inputs.write(name, &npy("<f2", &shape, "False", bytemuck::cast_slice(&values)));
        }
        inputs
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path().join(name), bytes).unwrap();
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn args(&self) -> Args<Array<'static>> {
        Args::new(self.x.clone()).projection(self.w.clone()).target(self.target.clone())
    }

    #[track_caller]
    fn report(&self, command: &str) -> String {
        wgloss(self.path(), command, &[]).report()
    }

    #[track_caller]
    fn refusal(&self, command: &str) -> String {
        let before = fs::read_dir(self.path()).unwrap().count();
        let refusal = wgloss(self.path(), command, &[]).refusal();
        assert_eq!(fs::read_dir(self.path()).unwrap().count(), before, "{command}");
        refusal
    }

    /// What a command writes to `out.safetensors`, by name.
    fn results(&self, command: &str) -> Vec<(String, Dtype, Vec<usize>, Vec<f64>)> {
        self.report(command);
        let bytes = fs::read(self.path().join("out.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let values = |view: &TensorView<'_>| -> Vec<f64> {
            let halves = || bytemuck::pod_collect_to_vec::<u8, f16>(view.data());
            let floats = || bytemuck::pod_collect_to_vec::<u8, f32>(view.data());
            let integers = || bytemuck::pod_collect_to_vec::<u8, i32>(view.data());
            match view.dtype() {
                Dtype::F16 => halves().into_iter().map(f64::from).collect(),
                Dtype::F32 => floats().into_iter().map(f64::from).collect(),
                Dtype::I32 => integers().into_iter().map(f64::from).collect(),
                Dtype::F64 => bytemuck::pod_collect_to_vec(view.data()),
                other => panic!("{other:?}"),
            }
        };
        let of = |(name, view): (&str, TensorView<'_>)| {
            (name.to_owned(), view.dtype(), view.shape().to_vec(), values(&view))
        };
        let mut all: Vec<_> = file.iter().map(of).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        fs::remove_file(self.path().join("out.safetensors")).unwrap();
        all
    }
}

#[test]
fn loss_and_gradients_are_the_definitions() {
    let inputs = Inputs::new();
    let loss = CrossEntropy::default().label_smoothing(0.1).z_loss(0.01).logit_scale(0.5);
    let op = LinearCrossEntropy::new(loss);
    let args = inputs.args().bias(inputs.bias.clone()).weight(inputs.weight.clone());
    let args = args.upstream(Array::scalar(-1.5_f32));
    let want = reference::run(&op, Pass::ForwardBackward, &args).unwrap();
    let report = inputs.report(&format!(
        "{RUN} --bias b.npy --weight c.npy --upstream u.npy --label-smoothing 0.1 --z-loss 0.01 \
         --logit-scale 0.5 --device reference --loss l.npy --grad dx.npy --grad-projection dw.npy \
         --grad-bias db.npy"
    ));
    assert_eq!(line(&report, "op"), "linear_cross_entropy.forward_backward, reduction mean");
    for (role, name) in [
        (Role::Loss, "l.npy"),
        (Role::Grad, "dx.npy"),
        (Role::GradProjection, "dw.npy"),
        (Role::GradBias, "db.npy"),
    ] {
        let (got, want) = (read_npy(&inputs.path().join(name)), want.get(role).unwrap());
        assert_eq!((&got.shape, &got.values), (&want.shape, &want.values), "{role}");
    }
    assert!(report.ends_with("wrote   db.npy float64 [4]\n"), "{report}");
}

#[test]
fn what_is_not_asked_for_is_not_computed() {
    let inputs = Inputs::new();
    let told = |rest: &str| {
        let report = inputs.report(&format!("{RUN} --bias b.npy --device cpu {rest}"));
        let names = report.lines().map(|line| line.split(' ').next().unwrap().to_owned());
        names.filter(|name| !["op", "device", "call", "wrote"].contains(&&name[..])).collect()
    };
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    for (rest, want) in [
        ("", &["loss"][..]),
        ("--grad g.npy", &["loss", "grad"]),
        ("--grad-projection g.npy", &["loss", "grad_projection"]),
        ("--grad-bias g.npy", &["loss", "grad_bias"]),
        ("--grad g.npy --grad-bias b.safetensors", &["loss", "grad", "grad_bias"]),
        ("--pass backward --grad-projection g.npy", &["grad_projection"]),
        // of which none is written: all are told of
        ("--pass backward", &["grad", "grad_projection", "grad_bias"]),
        (
            "--entropy e.npy --reduction none",
            &["loss", "logsumexp", "argmax", "correct", "entropy"],
        ),
    ] {
        let told: Vec<String> = told(rest);
        assert_eq!(told, names(want), "{rest}");
    }
    // what the reference has not computed either
    let of = |op: &LinearCrossEntropy| -> Output<reference::Values> {
        reference::run(op, Pass::Backward, &inputs.args()).unwrap()
    };
    assert!(of(&LinearCrossEntropy::default().freeze_input(true)).grad().is_err());
}

/// Whatever is divided how, the results are those of one piece: sums over rows are added.
#[test]
fn batches_are_the_whole() {
    let inputs = Inputs::new();
    let run = |x: &str, w: &str, y: &str| {
        format!("run linear-cross-entropy --input {x}.npy --projection {w}.npy --target {y}.npy")
    };
    let commands = [
        format!("{RUN} --bias b.npy"),
        format!("{RUN} --weight c.npy --label-smoothing 0.2 --z-loss 0.1 --upstream u.npy"),
        format!("{RUN} --bias b.npy --reduction sum --upstream u.npy"),
        format!(
            "{RUN} --reduction none --upstream u10.npy --weight c.npy --logsumexp out.safetensors \
             --argmax out.safetensors --correct out.safetensors --entropy out.safetensors"
        ),
        format!("{} --bias b10.npy --ignore-index 3", run("x", "w10", "y10")),
        format!("{} --bias b.npy", run("x52", "w", "y52")),
        format!("{RUN} --softcap 2 --workspace-bytes 120"),
        format!("{} --bias b.npy", run("none", "w", "ynone")),
        run("half-x", "half-w", "y"),
        format!("{} --narrow-grad-projection", run("half-x", "half-w", "y")),
    ];
    let has_gpu = wgloss_testing::devices::gpu().is_some();
    for (i, command) in commands.iter().enumerate() {
        // a row each, a last one that is short, the whole, more than there is
        let sizes = [3, [1, 10, 99][i % 3]];
        for (device, tolerance) in [("reference", 1e-14), ("cpu", 2e-6), ("gpu", 2e-6)] {
            // the host adds and divides, whatever computes: one command will do on the GPU
            if device == "gpu" && (i != 0 || !has_gpu) {
                continue;
            }
            let sizes = if device == "reference" { &sizes[..] } else { &sizes[..1] };
            let all =
                "--loss out.safetensors --grad out.safetensors --grad-projection out.safetensors";
            let bias = if command.contains("--bias") { "--grad-bias out.safetensors" } else { "" };
            let command = format!("{command} --device {device} {all} {bias}");
            let whole = inputs.results(&command);
            for size in sizes {
                let divided = inputs.results(&format!("{command} --batch-rows {size}"));
                assert_eq!(divided.len(), whole.len());
                for (got, want) in divided.iter().zip(&whole) {
                    let (of_got, of_want) = ((&got.0, got.1, &got.2), (&want.0, want.1, &want.2));
                    assert_eq!(of_got, of_want, "{command}");
                    let tolerance = if got.1 == Dtype::F16 { 1e-3 } else { tolerance };
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
fn gradients_of_projections_in_16_bits_are_f32_unless_asked() {
    let inputs = Inputs::new();
    let command = "run linear-cross-entropy --input half-x.npy --projection half-w.npy --target y.npy \
        --device cpu --grad out.safetensors --grad-projection out.safetensors";
    for (rest, dtype) in [("", Dtype::F32), ("--narrow-grad-projection", Dtype::F16)] {
        for batches in ["", "--batch-rows 4"] {
            let results = inputs.results(&format!("{command} {rest} {batches}"));
            let types: Vec<_> =
                results.iter().map(|(name, dtype, ..)| (&name[..], *dtype)).collect();
            assert_eq!(types, [("grad", Dtype::F16), ("grad_projection", dtype)]);
        }
    }
}

#[test]
fn what_is_wrong_is_named() {
    let inputs = Inputs::new();
    let run = |rest: &str| format!("run linear-cross-entropy --device cpu {rest}");
    for (command, message) in [
        (
            "--input x.npy --projection w2.npy --target y.npy",
            "--projection w2.npy: expected shape [V, 3] with V at least 1, as the input is [10, 3], got [4, 2]",
        ),
        (
            "--input x.npy --projection half-w.npy --target y.npy",
            "--projection half-w.npy: expected float32, got float16: convert with .astype(np.float32)",
        ),
        (
            "--input x.npy --projection w.npy --target y52.npy",
            "--target y52.npy: expected shape [10], got [5, 2]",
        ),
        (
            "--input x.npy --projection w.npy --target outside.npy",
            "--target outside.npy: expected a class in 0..4 at row 7, got 4",
        ),
        (
            "--input x.npy --projection w.npy --target outside.npy --batch-rows 2",
            "--target outside.npy: expected a class in 0..4 at row 7, got 4",
        ),
        (
            "--input x52.npy --projection w.npy --target outside52.npy --batch-rows 2",
            "--target outside52.npy: expected a class in 0..4 at row 7, got 4",
        ),
        (
            "--input x.npy --projection w.npy --target y.npy --bias u10.npy",
            "--bias u10.npy: expected shape [4], got [10]",
        ),
        (
            "--input x.npy --projection w.npy --target y.npy --grad-bias g.npy",
            "--grad-bias g.npy: expected none without --bias, got one",
        ),
        (
            "--input x.npy --projection w.npy --target y.npy --grad-projection g.npy --pass forward",
            "--grad-projection g.npy: expected none for --pass forward, got one",
        ),
        (
            "--input x.npy --projection w.npy --target y.npy --grad g.npy --grad-projection g.npy",
            "--grad-projection g.npy: expected another place than --grad",
        ),
        (
            "--input x.npy --projection w.npy --target y.npy --grad-projection w.npy",
            "--grad-projection w.npy: expected another file than --projection",
        ),
        (
            "--input x.npy --projection w.npy --target y.npy --workspace-bytes 12",
            "--workspace-bytes: expected at least 112, for one row of 4 classes, got 12",
        ),
        (
            "--input one.npy --projection w.npy --target yone.npy --batch-rows 2",
            "--batch-rows: expected an input of shape [N, D] or [N, ..., D], got [3]",
        ),
        ("--input x.npy --projection missing.npy --target y.npy", "--projection missing.npy: "),
    ] {
        let refusal = inputs.refusal(&run(command));
        assert!(refusal.starts_with(message), "{command}: {refusal}");
    }
    let run = wgloss(inputs.path(), "run linear-cross-entropy --input x.npy --target y.npy", &[]);
    assert_eq!(run.code, Some(2));
    assert!(run.stderr.contains("--projection <FILE>"), "{}", run.stderr);
    let run = wgloss(inputs.path(), "run cross-entropy --projection w.npy", &[]);
    assert_eq!(run.code, Some(2));
    let help = inputs.report("run linear-cross-entropy --help");
    for word in ["--grad-bias <FILE>", "Hidden states, [..., D]", "--workspace-bytes", "[V, D]"] {
        assert!(help.contains(word), "{word}: {help}");
    }
    assert!(!help.contains("freeze"), "{help}");
}

/// A tensor: its type, shape and bytes.
type Stored = (Dtype, Vec<usize>, Vec<u8>);

/// A folder with a case in f32 and one in bfloat16, and what came of changes to it.
fn folder(change: impl FnOnce(&mut Value)) -> TempDir {
    let inputs = Inputs::new();
    let (mut tensors, mut cases) = (Vec::new(), Vec::new());
    let wide = |array: &Array<'_>| -> Stored {
        (Dtype::F32, array.shape().to_vec(), bytemuck::cast_slice(&array.to_f32()).to_vec())
    };
    let narrow = |array: &Array<'_>| -> Stored {
        let values: Vec<_> = array.to_f32().into_iter().map(bf16::from_f32).collect();
        (Dtype::BF16, array.shape().to_vec(), bytemuck::cast_slice(&values).to_vec())
    };
    let classes: Vec<u8> = bytemuck::cast_slice(&inputs.target.to_i64().unwrap()).to_vec();
    tensors.push(("y".to_owned(), (Dtype::I64, vec![10], classes)));
    tensors.push(("b".to_owned(), wide(&inputs.bias)));
    for (name, dtype, stored) in
        [("wide", "float32", wgloss::DType::F32), ("narrow", "bfloat16", wgloss::DType::Bf16)]
    {
        let (x, w) = (&inputs.x, &inputs.w);
        let store = |array: &Array<'_>| if name == "wide" { wide(array) } else { narrow(array) };
        tensors.push((format!("{name}/x"), store(x)));
        tensors.push((format!("{name}/w"), store(w)));
        let args = Args::new(x.to_dtype(stored).unwrap())
            .projection(w.to_dtype(stored).unwrap())
            .bias(inputs.bias.clone())
            .target(inputs.target.clone());
        let op = LinearCrossEntropy::new(CrossEntropy::default().reduction(Reduction::Sum));
        let want = reference::run(&op, Pass::ForwardBackward, &args).unwrap();
        for (role, part) in [
            (Role::Loss, "out"),
            (Role::Grad, "grad"),
            (Role::GradProjection, "grad_projection"),
            (Role::GradBias, "grad_bias"),
        ] {
            let want = want.get(role).unwrap();
            let bytes = bytemuck::cast_slice(&want.values).to_vec();
            tensors.push((format!("{name}/{part}"), (Dtype::F64, want.shape.clone(), bytes)));
        }
        cases.push(json!({
            "name": name, "op": "linear_cross_entropy", "file": "t.safetensors",
            "params": {"reduction": "sum", "dtype": dtype}, "target_kind": "index",
            "tensors": {
                "input": format!("{name}/x"), "projection": format!("{name}/w"), "bias": "b",
                "target": "y", "out_ref": format!("{name}/out"), "grad_ref": format!("{name}/grad"),
                "grad_projection_ref": format!("{name}/grad_projection"),
                "grad_bias_ref": format!("{name}/grad_bias"),
            },
        }));
    }
    let mut list = json!({"source": "a test", "cases": cases});
    change(&mut list);
    let folder = TempDir::new().unwrap();
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    fs::write(folder.path().join("t.safetensors"), bytes).unwrap();
    fs::write(folder.path().join("cases.json"), list.to_string()).unwrap();
    folder
}

#[test]
fn folders_of_cases_have_projections_and_their_gradients() {
    let has_gpu = wgloss_testing::devices::gpu().is_some();
    let devices = if has_gpu { &["reference", "cpu", "gpu"][..] } else { &["reference", "cpu"] };
    for device in devices {
        let folder = folder(|_| {});
        let command = format!("check --cases . --device {device} --dump d.safetensors");
        let report = wgloss(folder.path(), &command, &[]).report();
        assert!(report.ends_with("2 passed, 0 failed, 0 skipped\n"), "{report}");
        let bytes = fs::read(folder.path().join("d.safetensors")).unwrap();
        let dump = SafeTensors::deserialize(&bytes).unwrap();
        let mut names = dump.names();
        names.sort_unstable();
        let parts = ["grad", "grad_bias", "grad_projection", "out"];
        let all = ["narrow", "wide"].map(|case| parts.map(|part| format!("{case}/{part}")));
        assert_eq!(names, all.concat());
    }
    let swapped = |case: usize, to: &str, from: &str| {
        let folder = folder(|list| {
            let tensors = &mut list["cases"][case]["tensors"];
            tensors[to] = tensors[from].clone();
        });
        let run = wgloss(folder.path(), "check --cases . --device cpu", &[]);
        assert_eq!(run.code, Some(1), "{}", run.stdout);
        line(&run.stdout, "FAILED").to_owned()
    };
    // another's values: each reference is looked at
    let failed = swapped(0, "grad_projection_ref", "projection");
    assert!(failed.contains("grad_projection of backward: "), "{failed}");
    let failed = swapped(1, "grad_bias_ref", "bias");
    assert!(failed.contains("grad_bias of forward_backward: "), "{failed}");
    let failed = swapped(0, "bias", "out_ref");
    assert!(failed.contains("bias: expected shape [4], got "), "{failed}");
    // a type in which nothing is computed
    let folder = folder(|list| list["cases"][0]["params"]["dtype"] = "float64".into());
    let report = wgloss(folder.path(), "check --cases . --device cpu", &[]).report();
    assert!(report.ends_with("1 passed, 0 failed, 1 skipped\n"), "{report}");
}

#[test]
fn it_is_timed_by_hidden_states_numbers_and_classes() {
    let folder = TempDir::new().unwrap();
    let on = |device: &str, rest: &str| {
        let command =
            format!("bench --op linear-cross-entropy --device {device} --rounds 1 {rest}");
        wgloss(folder.path(), &command, &[])
    };
    let run = |rest: &str| on("cpu", rest);
    let bench = run("--shape 40x8x30 --json j.json");
    assert_eq!(bench.code, Some(0), "{}", bench.stderr);
    let json: Value =
        serde_json::from_slice(&fs::read(folder.path().join("j.json")).unwrap()).unwrap();
    assert_eq!(json["records"][0]["shape"], json!([40, 8, 30]));
    assert!(json["records"][0]["max_error"].as_f64().unwrap() <= 1.0);
    if wgloss_testing::devices::gpu().is_some() {
        let report = on("gpu", "--shape 40x8x30").report();
        let (_, products) = report.split_once("products of matrices alone").unwrap();
        let row = products.lines().last().unwrap();
        let [.., gflops, of_loop, share] = row.split_whitespace().collect::<Vec<_>>()[..] else {
            panic!("{products}")
        };
        let [gflops, of_loop, share] = [gflops, of_loop, share].map(|n| n.parse::<f64>().unwrap());
        assert!(of_loop > 1.0 && of_loop > gflops && share < 1.0, "{products}");
    }
    assert_eq!(
        run("--shape 40x8").refusal(),
        "--shape: expected NxDxV for linear_cross_entropy, got [40, 8]"
    );
}
