//! The CPU twin: held to the same promise as the GPU, over the same tables.

use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};
use wgloss::{
    Args, Array, Cpu, CrossEntropy, Error, KlDiv, Mse, NllLoss, Op, Pass, Reduction, SigmoidFocal,
};
use wgloss_testing::any::{self, AnyCall, Draw};
use wgloss_testing::call::{hold, result};
use wgloss_testing::compare::{compare_moderate, compare_relative};
use wgloss_testing::conformance::{self, Case, magnitude, values};
use wgloss_testing::{search, table};

#[test]
fn every_op_keeps_the_promise() {
    let cpu = Cpu::default();
    for row in table::table() {
        for case in row.cases().into_iter().filter(|case| case.elements() <= 25_000) {
            let what = format!("{} {}: {}", row.op(), row.options, case.name());
            let passes =
                case.check(|op, pass, args| cpu.run(op, pass, args).map_err(|e| e.to_string()));
            for (pass, worst) in table::PASSES.iter().zip(passes.unwrap()) {
                worst.unwrap_or_else(|e| panic!("{what}: {}: {e}", pass.name()));
            }
        }
    }
}

/// Set where this test runs in a process of its own, whose threads would need too much memory.
const WITHOUT_THREADS: &str = "WGLOSS_TEST_WITHOUT_THREADS";

#[test]
fn without_threads_the_callers_works_alone() {
    if std::env::var_os(WITHOUT_THREADS).is_some() {
        assert!(std::thread::Builder::new().spawn(|| ()).is_err(), "there are threads after all");
        let values = vec![1.0_f32; 100_000];
        let args = Args::new(Array::from(&values)).target(Array::from(&values));
        for _ in 0..2 {
            let cpu = Cpu::default();
            assert_eq!(cpu.threads(), 1);
            let out = cpu.forward_backward(&Mse::default(), &args).unwrap();
            assert_eq!(out.loss().unwrap().item().unwrap(), 0.0);
        }
        assert!(Cpu::with_threads(2).is_err());
        return;
    }
    let (_, module) = module_path!().split_once("::").unwrap();
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("{module}::without_threads_the_callers_works_alone")])
        // the test itself then runs on the first thread
        .arg("--test-threads=1")
        .env(WITHOUT_THREADS, "1")
        .env("RUST_MIN_STACK", (1_u64 << 46).to_string())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn batch_means_of_no_elements() {
    let op = KlDiv::default().reduction(Reduction::BatchMean);
    for (shape, want) in [(&[3, 0][..], 0.0), (&[0, 3], f32::NAN), (&[0], f32::NAN)] {
        let empty = Array::new::<f32>(&[], shape).unwrap();
        let args = Args::new(empty.clone()).target(empty);
        let loss = Cpu::default().forward(&op, &args).unwrap().loss().unwrap().item().unwrap();
        assert!(loss == want || loss.is_nan() && want.is_nan(), "{shape:?}: {loss}");
    }
}

/// The calls that `tests/properties.rs` makes of the GPU, and as many more as `PROPTEST_CASES` says.
fn random_calls_keep_the_promise<S: Strategy<Value = AnyCall>>(calls: fn(Draw) -> S) {
    for draw in [Draw::Usual, Draw::All] {
        all_keep_the_promise(draw, calls(draw));
    }
}

fn all_keep_the_promise(draw: Draw, calls: impl Strategy<Value = AnyCall>) {
    let cpu = Cpu::default();
    let from_environment = ProptestConfig::default();
    let is_set = |name| std::env::var_os(name).is_some();
    let config = ProptestConfig {
        cases: if is_set("PROPTEST_CASES") { from_environment.cases } else { 1000 },
        rng_seed: match is_set("PROPTEST_RNG_SEED") {
            true => from_environment.rng_seed,
            false => RngSeed::Fixed(0),
        },
        failure_persistence: None,
        ..from_environment
    };
    let result = TestRunner::new(config).run(&calls, |call| {
        let run = |op: &dyn Op, pass, args: &Args<Array<'_>>| cpu.run(op, pass, args);
        let held = match draw {
            Draw::Usual => hold(&call, run),
            Draw::All => search::hold(&call, run),
        };
        held.map_err(TestCaseError::fail)
    });
    result.unwrap_or_else(|error| panic!("{draw:?}: {error}"));
}

#[test]
fn calls_of_cross_entropy_keep_the_promise() {
    random_calls_keep_the_promise(any::cross_entropy);
}

#[test]
fn calls_of_linear_cross_entropy_keep_the_promise() {
    all_keep_the_promise(Draw::Usual, any::linear_cross_entropy());
}

#[test]
fn calls_of_ops_over_rows_keep_the_promise() {
    random_calls_keep_the_promise(any::rows);
}

#[test]
fn calls_of_element_wise_ops_keep_the_promise() {
    random_calls_keep_the_promise(any::elements);
}

#[test]
fn focal_loss_where_the_probability_missed_is_negative() {
    let (cpu, [input, target]) = (Cpu::default(), [[3.0, 6.0, 30.0_f32], [2.0, 5.0, 2.0]]);
    for gamma in [0.0, 0.5, 1.0, 2.0, 5.0] {
        let op = SigmoidFocal::default().gamma(gamma).reduction(Reduction::None);
        let [input, target] =
            [input, target].map(|all| Array::from_vec(all.to_vec(), &[3]).unwrap());
        let call = AnyCall::new(Arc::new(op), input, target);
        hold(&call, |op, pass, args| cpu.run(op, pass, args)).unwrap();
    }
}

#[test]
fn any_number_of_threads_comes_to_the_same_bits() {
    assert!(matches!(Cpu::with_threads(0), Err(Error::Value { argument: "threads", .. })));
    let logits: Vec<f32> = (0..300_000).map(|i| (i as f32 * 0.7).sin() * 5.0).collect();
    let classes: Vec<i32> = (0..30_000).map(|row| row % 10).collect();
    let args = Args::new(Array::new(&logits, &[30_000, 10]).unwrap());
    let elements = args.clone().target(Array::new(&logits, &[30_000, 10]).unwrap());
    let classes = args.target(Array::from(&classes));
    let ops: [(&dyn Op, _); 3] = [
        (&CrossEntropy::default(), &classes),
        (&NllLoss::default(), &classes),
        (&Mse::default(), &elements),
    ];
    for (op, args) in ops {
        let of = |cpu: Cpu| {
            let out = cpu.forward_backward(op, args).unwrap();
            [out.loss(), out.grad()]
                .map(|array| array.unwrap().to_f32().iter().map(|x| x.to_bits()).collect())
        };
        let want: [Vec<u32>; 2] = of(Cpu::default());
        for threads in [1, 2, 3] {
            assert!(of(Cpu::with_threads(threads).unwrap()) == want, "{op:?}: {threads} threads");
        }
    }
}

/// A folder's cases, less those that compose two ops: `wgloss check` computes those too.
fn cases(folder: &str) -> Vec<(Case, Box<dyn Op>)> {
    let cases = conformance::load(&conformance::folder(folder)).cases.into_iter();
    let single = cases.filter(|case| case.pre().unwrap().is_none());
    single.map(|case| (case.op().unwrap(), case)).map(|(op, case)| (case, op)).collect()
}

#[test]
fn worked_examples_with_gradients() {
    let cpu = Cpu::default();
    for (case, op) in cases("seeds") {
        let args = case.args(Pass::ForwardBackward).unwrap();
        let out = cpu.forward_backward(&*op, &args).unwrap();
        let logits = magnitude(args.input());
        for (role, part) in [("out_ref", result(&out)), ("grad_ref", out.grad().unwrap())] {
            let result = compare_moderate(&part.to_f32(), &values(&case, role), logits);
            result.unwrap_or_else(|e| panic!("{}: {role}: {e}", case.name));
        }
    }
}

/// Their values are f32 from numpy, hence the relative bound.
#[test]
fn onnx_losses() {
    let cpu = Cpu::default();
    for (case, op) in cases("onnx") {
        let out = cpu.forward(&*op, &case.args(Pass::Forward).unwrap()).unwrap();
        compare_relative(&result(&out).to_f32(), &values(&case, "out_ref"), 1e-5)
            .unwrap_or_else(|e| panic!("{}: {e}", case.name));
    }
}
