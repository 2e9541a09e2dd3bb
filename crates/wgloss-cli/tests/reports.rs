//! What the program tells: reports for people and for programs, completions, the manual, advice.

use std::fs;

use serde_json::{Value, json};

use crate::cli::{inputs, npy};
use crate::command::{line, wgloss};

#[test]
fn accuracy_is_over_kept_rows() {
    let folder = inputs();
    // rows [-1.5, -0.5, 2.5] and [2.5, -0.5, -1.5]
    let target = npy("<i8", &[4], "False", bytemuck::cast_slice(&[2_i64, -100, 1, -100]));
    fs::write(folder.path().join("t.npy"), target).unwrap();
    let rows: Vec<f32> = [-1.5, -0.5, 2.5].repeat(4);
    let logits = npy("<f4", &[4, 3], "False", bytemuck::cast_slice(&rows));
    fs::write(folder.path().join("x.npy"), logits).unwrap();
    for batches in ["", "--batch-rows 3"] {
        let command = format!(
            "run cross-entropy --input x.npy --target t.npy --reduction none --device cpu {batches} \
             --correct out.safetensors --argmax out.safetensors --entropy out.safetensors"
        );
        let report = wgloss(folder.path(), &command, &[]).report();
        assert_eq!(line(&report, "correct"), "[4]: 1 of 2 rows, 0.5000, 2 ignored");
        assert_eq!(line(&report, "argmax"), "[4]");
        // the mean that PyTorch would give
        let loss = line(&report, "loss");
        assert!(loss.starts_with("[4]: mean 1.5") && loss.ends_with(", 2 ignored"), "{loss}");
        assert!(line(&report, "entropy").starts_with("[4]: mean 0."));

        let json = wgloss(folder.path(), &format!("{command} --json"), &[]).report();
        let json: Value = serde_json::from_str(&json).unwrap();
        let correct = json!({"shape": [4], "correct": 1, "kept": 2, "accuracy": 0.5});
        assert_eq!(json["results"]["correct"], correct);
        assert_eq!(json["results"]["argmax"], json!({"shape": [4]}));
        assert_eq!(json["results"]["loss"]["ignored"], 2);
    }
}

#[test]
fn one_form_of_json_for_every_command() {
    let folder = inputs();
    let run = "run cross-entropy --input logits.npy --target target.npy --device cpu";
    let check = "check --only mse --device cpu";
    let bench = "bench --op mse --shape 64 --rounds 1 --device cpu";
    let mut commands = vec![run, check, bench];
    if wgloss_testing::devices::gpu().is_some() {
        commands.push("devices");
    }
    for command in commands {
        let read = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        let alone = read(&wgloss(folder.path(), &format!("{command} --json"), &[]).report());
        let dash = read(&wgloss(folder.path(), &format!("{command} --json -"), &[]).report());
        // beside the text
        let text = wgloss(folder.path(), &format!("{command} --json j.json"), &[]).report();
        let file = read(&fs::read_to_string(folder.path().join("j.json")).unwrap());
        assert!(text.contains("device"), "{text}");
        for json in [&dash, &file] {
            assert!(json.as_object().unwrap().keys().eq(alone.as_object().unwrap().keys()));
        }
        let refusal = wgloss(folder.path(), &format!("{command} --json no/j.json"), &[]).refusal();
        assert_eq!(refusal, "--json no/j.json: expected an existing folder no", "{command}");
        let quiet = wgloss(folder.path(), &format!("{command} --quiet"), &[]).report();
        assert_eq!(quiet, "", "{command}");
    }
    let json = wgloss(folder.path(), &format!("{run} --grad g.npy --json"), &[]).report();
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["op"], "cross_entropy");
    assert_eq!((&json["pass"], &json["reduction"]), (&json!("forward_backward"), &json!("mean")));
    assert!(json["seconds"].as_f64().unwrap() > 0.0);
    let report = wgloss(folder.path(), run, &[]).report();
    let loss = json["results"]["loss"]["value"].to_string();
    assert_eq!(loss, line(&report, "loss"), "as many digits as float32 has");
    let written = json!([{"result": "grad", "file": "g.npy", "dtype": "float32", "shape": [2, 3]}]);
    assert_eq!(json["written"], written);
    // JSON has no number for it
    let nan = npy("<f4", &[1], "False", &f32::NAN.to_le_bytes());
    fs::write(folder.path().join("nan.npy"), nan).unwrap();
    let command = "run mse --input nan.npy --target nan.npy --device cpu --json";
    let json: Value = serde_json::from_str(&wgloss(folder.path(), command, &[]).report()).unwrap();
    assert_eq!(json["results"]["loss"]["value"], "NaN");
}

/// Where there is no hardware GPU, every command takes the CPU, unless it is told otherwise.
#[test]
fn one_default_device_for_every_command() {
    let folder = inputs();
    let none = [("VK_DRIVER_FILES", "/nonexistent"), ("VK_ICD_FILENAMES", "/nonexistent")];
    for command in [
        "run cross-entropy --input logits.npy --target target.npy",
        "check --only mse",
        "bench --op mse --shape 64 --rounds 1",
    ] {
        let report = wgloss(folder.path(), command, &none).report();
        let device = line(&report, "device");
        let why = "; auto found no usable GPU: expected a hardware GPU, found none";
        assert!(device.starts_with("cpu (") && device.ends_with(why), "{command}: {device}");
        let refusal = wgloss(folder.path(), &format!("{command} --device gpu"), &none).refusal();
        assert!(refusal.starts_with("--device gpu: expected "), "{command}: {refusal}");
    }
    // what only a GPU has is asked of one
    for command in ["check --only mse --team subgroup", "bench --team workgroup", "bench --sweep"] {
        let refusal = wgloss(folder.path(), command, &none).refusal();
        assert!(refusal.starts_with("--device gpu: expected "), "{command}: {refusal}");
    }
    let refusal = wgloss(folder.path(), "bench --device reference", &none).refusal();
    assert!(refusal.starts_with("--device reference: expected auto, gpu or cpu"), "{refusal}");
}

#[test]
fn completions_and_manual_know_every_flag() {
    let folder = inputs();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = wgloss(folder.path(), &format!("completions {shell}"), &[]).report();
        for word in ["cross-entropy", "label-smoothing", "batch-rows", "quiet", "sweep"] {
            assert!(script.contains(word), "no {word} for {shell}");
        }
    }
    let page = wgloss(folder.path(), "man", &[]).report();
    assert!(page.contains(".TH") && page.contains("wgloss\\-run(1)"), "{page}");
    let page = wgloss(folder.path(), "man run cross_entropy", &[]).report();
    assert!(page.contains("wgloss\\-run\\-cross\\-entropy"), "{page}");
    assert!(page.contains("label\\-smoothing") && page.contains("batch\\-rows"), "{page}");
    let refusal = wgloss(folder.path(), "man no", &[]).refusal();
    assert!(refusal.starts_with("man no: expected one of run, check, bench"), "{refusal}");
}

/// Every numeric flag takes numbers in every form in which people write them.
#[test]
fn every_numeric_flag_takes_negative_numbers() {
    use wgloss::options::Value;
    let folder = inputs();
    let mut count = 0;
    for op in wgloss::ops() {
        let name = op.name().replace('_', "-");
        let has_flag = |name| !["first_class", "total_classes"].contains(&name);
        for info in op.options().into_iter().filter(|info| has_flag(info.name)) {
            let words: &[&str] = match info.value {
                Value::Integer(_) => &["-1", "-0", "+0"],
                Value::Number(_) | Value::Optional(_) => &[
                    "-1e-4",
                    "-.5",
                    "-inf",
                    "-1E3",
                    "-0.0",
                    "1e-4",
                    ".5",
                    "inf",
                    "-infinity",
                    "NaN",
                ],
                Value::Bool(_) | Value::Reduction(_) => continue,
            };
            let flag = format!("--{}", info.name.replace('_', "-"));
            for word in words {
                count += 1;
                let kind = op.kind();
                let target = if kind.target.is_some() { "--target none.npy" } else { "" };
                let is_linear = kind.family == wgloss::options::Family::LinearLoss;
                let projection = if is_linear { "--projection none.npy" } else { "" };
                let command =
                    format!("run {name} --input none.npy {target} {projection} {flag} {word}");
                let run = wgloss(folder.path(), &command, &[]);
                // read as a number, and refused as one at most; the file is missing
                assert_eq!(run.code, Some(1), "{command}: {}", run.stderr);
                let about =
                    [format!("error: {flag}: expected "), "error: --input none.npy: ".into()];
                let is_about = about.iter().any(|text| run.stderr.contains(text));
                assert!(is_about, "{command}: {}", run.stderr);
            }
        }
    }
    assert!(count > 50, "{count}");
    for command in ["bench --rounds -1", "run sigmoid --input logits.npy --batch-rows -1"] {
        let run = wgloss(folder.path(), command, &[]);
        assert_eq!(run.code, Some(2));
        assert!(run.stderr.contains("invalid value '-1' for '--"), "{}", run.stderr);
    }
}
