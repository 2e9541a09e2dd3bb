//! Losses of the caller's own.

use wgloss::custom::{Elementwise, Point, Shader};
use wgloss::reference::{self, Tolerance, compare};
use wgloss::{Args, Array, Cpu, DType, Error, Op, Pass, Reduction, Result, Role};
use wgloss_testing::call::{PASSES, REDUCTIONS};
use wgloss_testing::custom::Polynomial;
use wgloss_testing::devices::gpu;

fn args(dtype: DType) -> Args<Array<'static>> {
    let numbers =
        |scale: f32| (0..3 * 1001).map(move |i| ((i * 37 % 1001) as f32 / 500.0 - 1.0) * scale);
    let of = |scale| {
        let array = Array::from_vec(numbers(scale).collect(), &[3, 1001]).unwrap();
        array.to_dtype(dtype).unwrap()
    };
    let weight = Array::from_vec(vec![0.5, 0.0, -2.0], &[3, 1]).unwrap();
    Args::new(of(1.5)).target(of(-0.5)).weight(weight)
}

#[test]
fn keep_the_promise_everywhere() {
    let gpu = gpu();
    for reduction in REDUCTIONS.into_iter().chain([Reduction::BatchMean]) {
        let op = Polynomial::new(reduction);
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            for pass in PASSES {
                let args = args(dtype);
                let args = match (pass.has_grad(), reduction) {
                    (false, _) => args,
                    (true, Reduction::None) => {
                        let upstream = args.input().clone();
                        args.upstream(upstream)
                    }
                    (true, _) => args.upstream(Array::scalar(-1.5_f32)),
                };
                let over = match reduction {
                    Reduction::Mean => 3003.0,
                    Reduction::BatchMean => 3.0,
                    _ => 1.0,
                };
                let want = reference::run(&op, pass, &args).unwrap();
                let mut outputs = vec![Cpu::default().run(&op, pass, &args).unwrap()];
                if let Some(gpu) = &gpu {
                    outputs.push(gpu.block_on(gpu.run(&op, pass, &args)).unwrap());
                }
                for got in outputs {
                    for (got, want, promise) in [
                        (
                            got.get(Role::Loss),
                            want.get(Role::Loss),
                            Tolerance::LOSS.scaled(1.0 / over),
                        ),
                        (
                            got.get(Role::Grad),
                            want.get(Role::Grad),
                            Tolerance::GRAD.scaled(1.5 / over),
                        ),
                    ] {
                        assert_eq!(got.is_some(), want.is_some());
                        let (Some(got), Some(want)) = (got, want) else { continue };
                        let promise = promise.stored_as(got.dtype());
                        compare(&got.to_f32(), want, promise)
                            .unwrap_or_else(|e| panic!("{reduction:?} {dtype} {pass:?}: {e}"));
                    }
                }
            }
        }
    }
}

/// Losses of one name and one definition, with other texts.
macro_rules! named {
    ($name:ident, $text:expr) => {
        #[derive(Debug, Clone)]
        struct $name;

        impl Elementwise for $name {
            const NAME: &'static str = "mine";
            const SHADER: Shader = Shader::new($text);

            fn reduction(&self) -> Reduction {
                Reduction::None
            }

            fn reference(&self, x: f64, t: f64, _pos_weight: f64) -> Point {
                Point::new([x - t], [1.0])
            }
        }
    };
}

named!(
    Difference,
    "fn loss(e: Elements) -> vec4<f32> { return e.x - e.t; }
    fn gradient(e: Elements) -> vec4<f32> { return vec4(1.0); }"
);
named!(
    Sum,
    "fn loss(e: Elements) -> vec4<f32> { return e.x + e.t; }
    fn gradient(e: Elements) -> vec4<f32> { return vec4(1.0); }"
);
named!(Nonsense, "fn loss(e: Elements) -> vec4<f32> { return a tree; }");
// a place far outside the arrays, which an unchecked kernel would read
named!(
    Outside,
    "fn loss(e: Elements) -> vec4<f32> {
        let at = 0x3fffffffu + bitcast<u32>(e.x.x);
        return vec4(weight[at]) + vec4(params.settings[at].x);
    }
    fn gradient(e: Elements) -> vec4<f32> { return vec4(1.0); }"
);

fn small() -> Args<Array<'static>> {
    let of = |values: [f32; 4]| Array::from_vec(values.to_vec(), &[4]).unwrap();
    Args::new(of([1.0, 2.0, 3.0, 4.0])).target(of([4.0, 3.0, 2.0, 1.0]))
}

#[test]
fn of_one_name_are_told_apart() {
    assert!(&Difference as &dyn Op != &Sum as &dyn Op);
    assert!(&Difference as &dyn Op == &Difference as &dyn Op);
    let of = |c| Polynomial { coefficients: vec![c; 8], reduction: Reduction::Mean };
    let [one, two] = [of(1.0), of(2.0)];
    assert!(&one as &dyn Op != &two as &dyn Op);
    let Some(gpu) = &gpu() else { return };
    let loss = |op: &dyn Op| {
        let output = gpu.block_on(gpu.run(op, Pass::Forward, &small())).unwrap();
        output.get(Role::Loss).cloned().unwrap().to_f32()
    };
    assert_eq!(loss(&Difference), [-3.0, -1.0, 1.0, 3.0]);
    assert_eq!(loss(&Sum), [5.0; 4]);
    assert_eq!(loss(&Difference), [-3.0, -1.0, 1.0, 3.0]);
}

#[test]
fn that_do_not_compile_are_an_error() {
    let Some(gpu) = &gpu() else { return };
    let error = gpu.block_on(gpu.run(&Nonsense, Pass::Forward, &small())).unwrap_err();
    assert!(matches!(&error, Error::Validation(text) if text.contains("tree")), "{error}");
    // and others go on
    assert!(gpu.block_on(gpu.run(&Sum, Pass::Forward, &small())).is_ok());
}

#[test]
fn that_read_outside_of_arrays_are_kept_from_it() {
    let Some(gpu) = &gpu() else { return };
    // which value comes is up to wgpu; the process goes on
    let result = gpu.block_on(gpu.run(&Outside, Pass::Forward, &small()));
    assert!(result.is_ok(), "{result:?}");
}

#[test]
fn have_eight_settings_at_most() {
    let op = Polynomial { coefficients: vec![1.0; 9], reduction: Reduction::Mean };
    let run: Result<_> = reference::run(&op, Pass::Forward, &args(DType::F32));
    assert_eq!(run.unwrap_err().to_string(), "settings: expected at most 8 numbers, got 9");
}
