//! Every error that a caller can provoke, with the text that it reads.

use wgloss::{
    Args, Array, BceWithLogits, CrossEntropy, DType, Data, Error, Gpu, GpuOptions, Huber, Layout,
    LinearCrossEntropy, NllLoss, Op, Pass, Reduction, Role, SigmoidFocal, SmoothL1, Softmax,
    Status, Tensor, ops, reference,
};
use wgloss_testing::call::{Call, PASSES, Rows, bits_of, run};
use wgloss_testing::devices::{gpu, on_every_device, open};
use wgloss_testing::random::{Logits, Random};

const LOGITS: [f32; 6] = [0.5, -1.0, 2.0, 0.0, 1.0, -0.25];
const TARGET: [i32; 2] = [0, 2];

fn logits() -> Args<Array<'static>> {
    Args::new(Array::new(&LOGITS, &[2, 3]).unwrap())
}

/// Two rows of three classes that are all right.
fn rows() -> Args<Array<'static>> {
    logits().target(Array::from(&TARGET))
}

/// Two rows of three elements that are all right.
fn elements() -> Args<Array<'static>> {
    logits().target(Array::new(&[0.0, 1.0, 0.0, 0.5, 1.0, 0.0_f32], &[2, 3]).unwrap())
}

fn zeros(shape: &[usize]) -> Array<'static> {
    Array::from_vec(vec![0.0_f32; shape.iter().product()], shape).unwrap()
}

fn cross_entropy() -> CrossEntropy {
    CrossEntropy::default()
}

fn bce() -> BceWithLogits {
    BceWithLogits::default()
}

/// Refused from the host with this text, and where the layouts alone tell, also when planned.
#[track_caller]
fn refused(gpu: &Gpu, op: &dyn Op, pass: Pass, args: &Args<Array<'_>>, text: &str) {
    let error = gpu.block_on(gpu.run(op, pass, args)).unwrap_err();
    assert_eq!(error.to_string(), text);
    if op.outputs(pass, &args.layouts()).is_err() {
        let planned = gpu.block_on(gpu.plan(op, pass, &args.layouts())).unwrap_err();
        assert_eq!(planned, error);
    }
}

// ---- options ----

#[test]
fn smoothing_outside_zero_to_one() {
    let Some(gpu) = &gpu() else { return };
    for (smoothing, text) in [(1.5, "1.5"), (-1e-9, "-0.000000001"), (f64::NAN, "NaN")] {
        let op = cross_entropy().label_smoothing(smoothing);
        let text = format!("label_smoothing: expected a number in [0, 1], got {text}");
        refused(gpu, &op, Pass::Forward, &rows(), &text);
    }
}

#[test]
fn options_that_f32_does_not_hold() {
    let Some(gpu) = &gpu() else { return };
    let entropy = |op: CrossEntropy, text: &str| refused(gpu, &op, Pass::Forward, &rows(), text);
    let above_0 = "expected a finite number above 0";
    let huge = format!("1{}", "0".repeat(39));
    entropy(cross_entropy().logit_scale(0.0), &format!("logit_scale: {above_0}, got 0"));
    let text = format!("logit_scale: {above_0}, in f32 too, got {huge}");
    entropy(cross_entropy().logit_scale(1e39), &text);
    let text = format!("softcap: {above_0}, in f32 too, got {huge}");
    entropy(cross_entropy().softcap(1e39), &text);
    let text = "logit_scale: expected one whose quotient by softcap is finite and above 0, in f32 \
                too, got 1";
    let text = format!("{text}{}", "0".repeat(40));
    entropy(cross_entropy().logit_scale(1e20).softcap(1e-20), &text);
    let text = "z_loss: expected a finite number, got inf";
    entropy(cross_entropy().z_loss(f64::INFINITY), text);
    let text = format!("empty_mean: expected any number, in f32 too, got {huge}");
    entropy(cross_entropy().empty_mean(1e39), &text);
    for any in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1e-50] {
        assert!(cross_entropy().empty_mean(any).outputs(Pass::Forward, &rows().layouts()).is_ok());
    }

    let refused = |op: &dyn Op, text: &str| {
        let args = Args::new(Array::from(&[0.5_f32])).target(Array::from(&[1.0_f32]));
        let error = op.outputs(Pass::Forward, &args.layouts()).unwrap_err();
        assert_eq!(error.to_string(), text);
    };
    let text = format!("gamma: expected a finite number, 0 or more, in f32 too, got {huge}");
    refused(&SigmoidFocal::default().gamma(1e39), &text);
    let text = format!("delta: expected a number above 0, in f32 too, got {huge}");
    refused(&Huber::default().delta(1e39), &text);
    let text = "beta: expected a finite number, 0 or more, got -1";
    refused(&SmoothL1::default().beta(-1.0), text);

    // just below 0 is no alpha, not 0
    let args = Args::new(Array::from(&[0.5_f32])).target(Array::from(&[1.0_f32]));
    let of = |alpha| gpu.block_on(gpu.forward(&SigmoidFocal::default().alpha(alpha), &args));
    assert_eq!(of(-1e-50).unwrap(), of(-1.0).unwrap());
}

#[test]
fn in_place_without_a_gradient() {
    let ops: [(Box<dyn Op>, _); 4] = [
        (Box::new(cross_entropy()), rows()),
        (Box::new(NllLoss::default()), rows()),
        (Box::new(bce()), elements()),
        (Box::new(Softmax::default()), logits()),
    ];
    for (op, args) in ops {
        let upstream = logits().input().clone();
        let args = args.in_place();
        let text = format!("in_place: expected none for {}.forward, got one", op.name());
        let error = reference::run(&*op, Pass::Forward, &args).unwrap_err();
        assert_eq!(error.to_string(), text);
        #[cfg(feature = "cpu")]
        assert_eq!(wgloss::Cpu::default().run(&*op, Pass::Forward, &args), Err(error));
        if let Some(gpu) = &gpu() {
            refused(gpu, &*op, Pass::Forward, &args, &text);
        }
        let args = if op.kind().family.is_loss() { args } else { args.upstream(upstream) };
        assert!(reference::run(&*op, Pass::Backward, &args).is_ok());
    }
}

// ---- shapes ----

#[test]
fn shapes_that_cannot_be_counted() {
    let floats = |shape: &[usize]| Layout::new(shape, DType::F32);
    let refused = |op: &dyn Op, args: Args<Layout>, text: &str| {
        let error = op.outputs(Pass::Forward, &args).unwrap_err().to_string();
        assert!(error.starts_with(text), "{error}");
    };
    let long = floats(&[2, 3, usize::MAX, 2]);
    let target = Layout::new(&[2, usize::MAX, 2], DType::I32);
    let text = "input: expected a shape of at most ";
    refused(&cross_entropy(), Args::new(long.clone()).target(target.clone()), text);
    refused(&NllLoss::default(), Args::new(long.clone()).target(target), text);
    let pair = floats(&[usize::MAX, 2]);
    refused(&bce(), Args::new(pair.clone()).target(pair.clone()), text);
    refused(&Softmax::default(), Args::new(pair.clone()), text);
    let weighted = Args::new(floats(&[2])).target(floats(&[2])).weight(pair);
    refused(&bce(), weighted, "weight: expected a shape of at most ");
}

#[test]
fn shapes_that_do_not_fit() {
    let Some(gpu) = &gpu() else { return };
    let (forward, backward) = (Pass::Forward, Pass::Backward);
    let ce =
        |args: &Args<Array<'_>>, pass, text: &str| refused(gpu, &cross_entropy(), pass, args, text);
    let target = |shape: &[usize]| {
        let classes = vec![0; shape.iter().product()];
        logits().target(Array::from_vec::<i32>(classes, shape).unwrap())
    };
    ce(&target(&[3]), forward, "target: expected shape [2], got [3]");
    ce(&target(&[]), forward, "target: expected shape [2], got []");
    ce(&target(&[2, 1]), forward, "target: expected shape [2], got [2, 1]");
    let probabilities = logits().target(zeros(&[2]));
    // by their shape they are classes
    ce(&probabilities, forward, "target: expected storage type i32 or i64, got f32");
    ce(&rows().weight(zeros(&[2])), forward, "weight: expected shape [3], got [2]");
    ce(&rows().weight(zeros(&[1, 3])), forward, "weight: expected shape [3], got [1, 3]");
    ce(&rows().state(zeros(&[2, 3])), backward, "state: expected shape [2, 4], got [2, 3]");

    let strided = Args::new(zeros(&[2, 3, 4])).target(Array::from(&TARGET));
    ce(&strided, forward, "target: expected shape [2, 4], got [2]");
    for shape in [&[][..], &[0], &[4, 0], &[4, 0, 2]] {
        let args = Args::new(zeros(shape)).target(Array::from(&TARGET));
        let text = format!(
            "input: expected shape [C], [N, C] or [N, C, d1, ...] with C at least 1, got {shape:?}"
        );
        ce(&args, forward, &text);
    }

    let bce = |args: &Args<Array<'_>>, text: &str| refused(gpu, &bce(), forward, args, text);
    bce(&logits().target(zeros(&[3])), "target: expected shape [2, 3], got [3]");
    bce(&logits().target(zeros(&[2, 1])), "target: expected shape [2, 3], got [2, 1]");
    let weight = elements().weight(zeros(&[2]));
    bce(&weight, "weight: expected shape broadcastable to [2, 3], got [2]");
    let enlarging = elements().pos_weight(zeros(&[4, 2, 3]));
    bce(&enlarging, "pos_weight: expected shape broadcastable to [2, 3], got [4, 2, 3]");
    let ones = elements().weight(zeros(&[1, 1, 1]));
    bce(&ones, "weight: expected shape broadcastable to [2, 3], got [1, 1, 1]");
}

#[test]
fn upstream_gradients_of_the_wrong_shape() {
    let Some(gpu) = &gpu() else { return };
    let each = cross_entropy().reduction(Reduction::None);
    for pass in [Pass::Backward, Pass::ForwardBackward] {
        let upstream = rows().upstream(zeros(&[3]));
        refused(gpu, &each, pass, &upstream, "upstream: expected shape [2], got [3]");
        let upstream = rows().upstream(zeros(&[]));
        refused(gpu, &each, pass, &upstream, "upstream: expected shape [2], got []");
        let upstream = rows().upstream(zeros(&[2]));
        let text = "upstream: expected shape [] for reduction mean, got [2]";
        refused(gpu, &cross_entropy(), pass, &upstream, text);
        let upstream = elements().upstream(zeros(&[2, 3]));
        let text = "upstream: expected shape [] for reduction sum, got [2, 3]";
        refused(gpu, &bce().reduction(Reduction::Sum), pass, &upstream, text);
        let text = "upstream: expected shape [2, 3], got [6]";
        let upstream = elements().upstream(zeros(&[6]));
        refused(gpu, &bce().reduction(Reduction::None), pass, &upstream, text);
    }
    // one value may have dimensions
    let upstream = rows().upstream(zeros(&[1, 1]));
    assert!(gpu.block_on(gpu.backward(&cross_entropy(), &upstream)).is_ok());
}

#[test]
fn arrays_of_another_length_than_their_shape() {
    let error = Array::new(&LOGITS[..5], &[2, 3]).unwrap_err();
    assert_eq!(error.to_string(), "array: expected 6 elements for shape [2, 3], got 5");
    let error = Array::from_vec::<i32>(vec![], &[]).unwrap_err();
    assert_eq!(error.to_string(), "array: expected 1 elements for shape [], got 0");
    let error = zeros(&[2]).item().unwrap_err();
    assert_eq!(error.to_string(), "item: expected shape with one element, got [2]");
}

#[test]
fn shapes_beyond_counting() {
    // Products of sizes that overflow must not come out small, or panic.
    let huge = [1 << 40, 1 << 40];
    let error = Array::new(&LOGITS, &huge).unwrap_err();
    assert!(error.to_string().starts_with("array: expected a shape of at most "), "{error}");
    let Some(gpu) = &gpu() else { return };
    for shape in [&huge[..], &[usize::MAX, 3], &[1 << 32, 1 << 32], &[1 << 62, 1]] {
        let input = Layout::new(shape, DType::F32);
        let args = Args::new(input.clone()).target(Layout::new(&shape[..1], DType::I32));
        let plan = gpu.block_on(gpu.plan(&cross_entropy(), Pass::Forward, &args));
        assert!(plan.is_err(), "{shape:?}");
        let args = Args::new(input.clone()).target(input);
        let plan = gpu.block_on(gpu.plan(&bce(), Pass::Forward, &args));
        assert!(plan.is_err(), "{shape:?}");
    }
}

// ---- storage types ----

#[test]
fn storage_types_that_an_argument_does_not_take() {
    let Some(gpu) = &gpu() else { return };
    let forward = Pass::Forward;
    let integers = Array::new(&[0; 6], &[2, 3]).unwrap();
    let input = Args::new(integers.clone()).target(Array::from(&TARGET));
    let text = "input: expected storage type f32 or f16 or bf16, got i32";
    refused(gpu, &cross_entropy(), forward, &input, text);
    let halves = [half::f16::ONE; 6];
    let target = logits().target(Array::new(&halves, &[2, 3]).unwrap());
    let text = "target: expected storage type i32 or i64 or f32, got f16";
    refused(gpu, &cross_entropy(), forward, &target, text);
    let weight = rows().weight(Array::from(&[1_i64, 2, 3]));
    let text = "weight: expected storage type f32, got i64";
    refused(gpu, &cross_entropy(), forward, &weight, text);
    let upstream = rows().upstream(Array::scalar(1));
    let text = "upstream: expected storage type f32, got i32";
    refused(gpu, &cross_entropy(), Pass::Backward, &upstream, text);
    let state = rows().state(Array::new(&[0; 8], &[2, 4]).unwrap());
    let text = "state: expected storage type f32, got i32";
    refused(gpu, &cross_entropy(), Pass::Backward, &state, text);
    let target = logits().target(integers.clone());
    let text = "target: expected storage type f32, got i32";
    refused(gpu, &bce(), forward, &target, text);
    let pos_weight = elements().pos_weight(integers);
    let text = "pos_weight: expected storage type f32, got i32";
    refused(gpu, &bce(), forward, &pos_weight, text);

    let error = zeros(&[2]).to_i64().unwrap_err();
    assert_eq!(error.to_string(), "target: expected storage type i32 or i64, got f32");
}

#[test]
fn integers_of_64_bits_that_32_do_not_hold() {
    let Some(gpu) = &gpu() else { return };
    let error = gpu.block_on(gpu.upload(&Array::from(&[7, 1_i64 << 40]))).unwrap_err();
    let text = "expected integers that fit i32, got 1099511627776 at element 1";
    assert_eq!(error.to_string(), format!("array: {text}"));
    let args = Args::new(zeros(&[2, 3])).target(Array::from(&[2, 1_i64 << 40]));
    let error = gpu.block_on(gpu.upload_args(&args)).unwrap_err();
    assert_eq!(error.to_string(), format!("target: {text}"));
}

#[test]
fn float64_is_for_the_reference() {
    let Some(gpu) = &gpu() else { return };
    let exact = |shape: &[usize]| {
        let count = shape.iter().product();
        Array::from_data(Data::F64(vec![0.0; count].into()), shape).unwrap()
    };
    let text = "expected storage type f32 or f16 or bf16, got f64";
    let args = Args::new(exact(&[2, 3])).target(Array::from(&[0, 1]));
    refused(gpu, &cross_entropy(), Pass::Forward, &args, &format!("input: {text}"));
    let weight = rows().weight(exact(&[3]));
    let text = "weight: expected storage type f32, got f64";
    refused(gpu, &cross_entropy(), Pass::Forward, &weight, text);
    let error = gpu.block_on(gpu.upload(&exact(&[2]))).unwrap_err();
    let text = "array: expected storage type f32, f16, bf16, i32 or i64, got f64";
    assert_eq!(error.to_string(), text);
    let buffer = gpu.block_on(gpu.upload(&zeros(&[2]))).unwrap().buffer().clone();
    let error = Tensor::from_buffer(buffer, Layout::new(&[1], DType::F64)).unwrap_err();
    assert_eq!(error.to_string(), "buffer: expected f32, f16 or bf16, got f64");
}

// ---- too few arguments, and too many ----

#[test]
fn arguments_that_are_missing() {
    let Some(gpu) = &gpu() else { return };
    for pass in PASSES {
        let text = format!("target: expected for cross_entropy.{}, got none", pass.name());
        refused(gpu, &cross_entropy(), pass, &logits(), &text);
        let text = format!("target: expected for bce_with_logits.{}, got none", pass.name());
        refused(gpu, &bce(), pass, &logits(), &text);
    }
}

#[test]
fn gradients_of_maps_without_an_upstream_gradient() {
    for op in ops().into_iter().filter(|op| !op.kind().family.is_loss()) {
        assert!(reference::run(&*op, Pass::Forward, &logits()).is_ok());
        for pass in [Pass::Backward, Pass::ForwardBackward] {
            let text = format!("upstream: expected for {}.{}, got none", op.name(), pass.name());
            let error = reference::run(&*op, pass, &logits()).unwrap_err();
            assert_eq!(error.to_string(), text);
            #[cfg(feature = "cpu")]
            assert_eq!(wgloss::Cpu::default().run(&*op, pass, &logits()), Err(error));
            if let Some(gpu) = &gpu() {
                refused(gpu, &*op, pass, &logits(), &text);
            }
        }
    }
    // a loss that is not reduced takes ones
    let op = bce().reduction(Reduction::None);
    let ones = elements().upstream(Array::from_vec(vec![1.0_f32; 6], &[2, 3]).unwrap());
    let [want, got] = [&ones, &elements()].map(|args| reference::run(&op, Pass::Backward, args));
    assert_eq!(got.unwrap(), want.unwrap());
}

#[test]
fn arguments_without_a_use() {
    let Some(gpu) = &gpu() else { return };
    for pass in PASSES {
        let text = format!("pos_weight: expected none for cross_entropy.{}, got one", pass.name());
        refused(gpu, &cross_entropy(), pass, &rows().pos_weight(zeros(&[3])), &text);
        let text = format!("state: expected none for bce_with_logits.{}, got one", pass.name());
        refused(gpu, &bce(), pass, &elements().state(zeros(&[2, 4])), &text);
    }
    for pass in [Pass::Forward, Pass::ForwardBackward] {
        let text = format!("state: expected none for cross_entropy.{}, got one", pass.name());
        refused(gpu, &cross_entropy(), pass, &rows().state(zeros(&[2, 4])), &text);
    }
    let upstream = rows().upstream(Array::scalar(1.0_f32));
    let text = "upstream: expected none for cross_entropy.forward, got one";
    refused(gpu, &cross_entropy(), Pass::Forward, &upstream, text);
    let upstream = elements().upstream(Array::scalar(1.0_f32));
    let text = "upstream: expected none for bce_with_logits.forward, got one";
    refused(gpu, &bce(), Pass::Forward, &upstream, text);
}

// ---- values ----

#[test]
fn weights_that_are_not_finite() {
    let Some(gpu) = &gpu() else { return };
    let infinite = [1.0, f32::NEG_INFINITY, f32::NAN];
    let weight = rows().weight(Array::from(&infinite));
    let text = "weight: expected finite values, got -inf at element 1";
    refused(gpu, &cross_entropy(), Pass::Forward, &weight, text);
    let weight = elements().weight(Array::from(&infinite[2..]));
    let text = "weight: expected finite values, got NaN at element 0";
    refused(gpu, &bce(), Pass::Backward, &weight, text);
    let pos_weight = elements().pos_weight(Array::from(&infinite));
    let text = "pos_weight: expected finite values, got -inf at element 1";
    refused(gpu, &bce(), Pass::ForwardBackward, &pos_weight, text);
}

#[test]
fn classes_out_of_range_from_the_host() {
    let Some(gpu) = &gpu() else { return };
    for (target, row, class) in [
        ([0, 3], 1, "3"),
        ([-1, 2], 0, "-1"),
        ([-100, -101], 1, "-101"),
        ([i32::MAX, 3], 0, "2147483647"),
    ] {
        let text = format!("target: expected a class in 0..3 at row {row}, got {class}");
        for pass in PASSES {
            let args = logits().target(Array::from(&target));
            refused(gpu, &cross_entropy(), pass, &args, &text);
            let target = target.map(i64::from);
            refused(gpu, &cross_entropy(), pass, &logits().target(Array::from(&target)), &text);
        }
    }
    // what would be a class in range, or the ignored one, if it were cut to 32 bits
    for (class, text) in [(1_i64 << 32, "4294967296"), ((1 << 32) - 100, "4294967196")] {
        let target = [2, class];
        let text = format!("target: expected a class in 0..3 at row 1, got {text}");
        let args = logits().target(Array::from(&target));
        refused(gpu, &cross_entropy(), Pass::Forward, &args, &text);
    }
    // what stands on the device for an ignored class that i32 does not hold
    let target = [0, i32::MIN];
    let op = cross_entropy().ignore_index(1 << 40);
    let text = "target: expected a class in 0..3 at row 1, got -2147483648";
    refused(gpu, &op, Pass::Forward, &logits().target(Array::from(&target)), text);
    // rows are counted over [N, d1, ...]
    let target = Array::new(&[0, 1, 2, 0, 5, 1], &[2, 3]).unwrap();
    let args = Args::new(zeros(&[2, 4, 3])).target(target);
    let text = "target: expected a class in 0..4 at row 4, got 5";
    refused(gpu, &cross_entropy(), Pass::Forward, &args, text);
}

#[test]
fn host_arrays_are_checked_before_any_work() {
    // A device that is gone is not even asked.
    let Some(gpu) = open(&GpuOptions::default()) else { return };
    gpu.device().destroy();
    let target = logits().target(Array::from(&[0, 7]));
    let text = "target: expected a class in 0..3 at row 1, got 7";
    refused(&gpu, &cross_entropy(), Pass::Forward, &target, text);
    let shape = rows().weight(zeros(&[2]));
    let text = "weight: expected shape [3], got [2]";
    refused(&gpu, &cross_entropy(), Pass::Forward, &shape, text);
    let value = elements().weight(Array::from(&[f32::NAN]));
    let text = "weight: expected finite values, got NaN at element 0";
    refused(&gpu, &bce(), Pass::Forward, &value, text);
}

// ---- classes out of range on the device ----

/// The status of a pass over device tensors.
fn status_of(gpu: &Gpu, op: &dyn Op, pass: Pass, args: &Args<Array<'_>>) -> Result<(), Error> {
    let args = gpu.block_on(gpu.upload_args(args)).unwrap();
    let out = gpu.block_on(gpu.run(op, pass, &args)).unwrap();
    gpu.block_on(gpu.check(out.status().unwrap()))
}

#[test]
fn the_device_reports_the_first_class_out_of_range() {
    on_every_device(|gpu| {
        for bad in [5, -1, i32::MAX, i32::MIN, -101] {
            let mut rows = Rows::random(&mut Random::new(1), Logits::Normal, &[40, 5]);
            rows.target[29] = 1000;
            rows.target[17] = bad;
            rows.target[18] = 2000;
            let text = format!("target: expected a class in 0..5 at row 17, got {bad}");
            for pass in PASSES {
                let error = status_of(gpu, &rows.cross_entropy(), pass, &rows.args(pass));
                assert_eq!(error.unwrap_err().to_string(), text);
            }
        }
    });
}

#[test]
fn the_device_counts_rows_over_batch_and_positions() {
    on_every_device(|gpu| {
        let mut rows = Rows::random(&mut Random::new(2), Logits::Normal, &[3, 4, 5]);
        rows.target[13] = 4;
        let rows = rows.weight(&[1.0, 2.0, -1.0, 0.5]).smoothing(0.1);
        let error = status_of(gpu, &rows.cross_entropy(), Pass::Forward, &rows.forward_args());
        assert_eq!(error, Err(Error::Class { row: 13, class: 4, classes: 4 }));
    });
}

#[test]
fn the_device_reports_rows_far_down() {
    // beyond what one workgroup, one level of the sum and one dimension of a dispatch cover
    on_every_device(|gpu| {
        let mut rows = Rows::random(&mut Random::new(3), Logits::Normal, &[70_000, 2]);
        for (row, class) in [(69_999, -7), (66_001, 9)] {
            rows.target[row] = class;
            let args = rows.forward_args();
            let error = status_of(gpu, &rows.cross_entropy(), Pass::Forward, &args);
            let want = Error::Class { row: row as u64, class: class.into(), classes: 2 };
            assert_eq!(error, Err(want));
        }
    });
}

#[test]
fn the_device_has_nothing_to_report_of_classes_in_range() {
    on_every_device(|gpu| {
        let rows = Rows::random(&mut Random::new(4), Logits::Normal, &[40, 5]);
        for ignored in [-100, 5, -1, i32::MIN] {
            let target = rows.target.iter().map(|&y| if y == -100 { ignored } else { y });
            let rows = Rows { target: target.collect(), ..rows.clone() }.ignore_index(ignored);
            for pass in PASSES {
                let op = rows.cross_entropy();
                assert_eq!(status_of(gpu, &op, pass, &rows.args(pass)), Ok(()));
            }
        }
        // without rows there is nothing to find, and no status
        let none = Rows::shaped(&[0, 5], &[], &[]);
        let args = gpu.block_on(gpu.upload_args(&none.forward_args())).unwrap();
        let out = gpu.block_on(gpu.forward(&none.cross_entropy(), &args)).unwrap();
        assert_eq!(out.status(), None);
    });
}

#[test]
fn a_class_out_of_range_spoils_its_own_row_only() {
    // Loss and gradient of that row are NaN; everything else is to the bit what it is where the row
    // is ignored, the divisor of the mean included.
    on_every_device(|gpu| {
        let mut random = Random::new(5);
        for classes in [5, 40] {
            let rows = Rows::random(&mut random, Logits::Normal, &[9, classes]);
            let weighted = rows.clone().weighted(&mut random).smoothing(0.1);
            for ignored in [rows, weighted] {
                let mut ignored = ignored;
                ignored.target = random.targets(9, classes, -100, 0.0);
                ignored.target[4] = -100;
                let mut bad = ignored.clone();
                bad.target[4] = classes as i32;

                let each = run_on_tensors(gpu, &bad, Pass::ForwardBackward);
                let want = run(gpu, &ignored, Pass::ForwardBackward);
                assert!(each.loss.to_f32()[4].is_nan());
                let own = |grad: &[f32]| grad[4 * classes..5 * classes].to_vec();
                assert!(own(&each.grad.to_f32()).iter().all(|g| g.is_nan()));
                let others = |array: &Array<'_>, size: usize| {
                    let mut bits = bits_of(array);
                    bits.drain(4 * size..5 * size);
                    bits
                };
                assert_eq!(others(&each.loss, 1), others(want.loss().unwrap(), 1));
                let want = want.grad().unwrap();
                assert_eq!(others(&each.grad, classes), others(want, classes));

                let args = bad.args(Pass::ForwardBackward);
                let args = gpu.block_on(gpu.upload_args(&args)).unwrap();
                let op = bad.cross_entropy().row_outputs(true);
                let out = gpu.block_on(gpu.forward_backward(&op, &args)).unwrap();
                let same = gpu.block_on(gpu.read(out.grad().unwrap())).unwrap();
                assert!(own(&same.to_f32()).iter().all(|g| g.is_nan()));
                assert_eq!(others(&same, classes), others(&each.grad, classes));

                let mean = run_on_tensors(gpu, &bad.reduced(Reduction::Mean), Pass::Backward);
                let want = run(gpu, &ignored.reduced(Reduction::Mean), Pass::Backward);
                assert!(own(&mean.grad.to_f32()).iter().all(|g| g.is_nan()));
                let want = want.grad().unwrap();
                assert_eq!(others(&mean.grad, classes), others(want, classes));
            }
        }
    });
}

struct Read {
    /// Zeros where the pass has none.
    loss: Array<'static>,
    grad: Array<'static>,
}

/// From device tensors, whose classes are not looked at before.
fn run_on_tensors(gpu: &Gpu, rows: &Rows, pass: Pass) -> Read {
    let args = gpu.block_on(gpu.upload_args(&rows.args(pass))).unwrap();
    let out = gpu.block_on(gpu.run(&rows.cross_entropy(), pass, &args)).unwrap();
    let read = |part: Option<&Tensor>| match part {
        Some(tensor) => gpu.block_on(gpu.read(tensor)).unwrap(),
        None => zeros(&[rows.target.len()]),
    };
    Read { loss: read(out.get(Role::Loss)), grad: read(out.get(Role::Grad)) }
}

#[test]
fn a_class_out_of_range_is_kept_in_the_state() {
    on_every_device(|gpu| {
        let mut rows = Rows::random(&mut Random::new(6), Logits::Normal, &[3, 5]);
        rows.target = vec![1, 7, 4];
        let op = rows.cross_entropy().keep_state(true);
        let args = gpu.block_on(gpu.upload_args(&rows.args(Pass::Backward))).unwrap();
        let forward = gpu.block_on(gpu.upload_args(&rows.forward_args())).unwrap();
        let kept = gpu.block_on(gpu.forward(&op, &forward)).unwrap();
        let args = args.state(kept.state().unwrap().clone());
        let out = gpu.block_on(gpu.backward(&op, &args)).unwrap();
        let grad = gpu.block_on(gpu.read(out.grad().unwrap())).unwrap().to_f32();
        let is_nan: Vec<_> = grad.iter().map(|g| g.is_nan()).collect();
        assert_eq!(is_nan, [[false; 5], [true; 5], [false; 5]].concat());
        let error = gpu.block_on(gpu.check(out.status().unwrap()));
        assert_eq!(error, Err(Error::Class { row: 1, class: 7, classes: 5 }));
    });
}

#[test]
fn words_that_are_no_status() {
    let words = [0; 9];
    for count in [0, 3, 7, 9] {
        let error = Status::decode(&words[..count]).unwrap_err();
        let text = format!("status: expected 8 elements for shape [8], got {count}");
        assert_eq!(error.to_string(), text);
    }
    assert_eq!(Status::decode(&words[..8]), Ok(()));
}

// ---- results that there are none of ----

#[test]
fn results_that_a_pass_does_not_compute() {
    let Some(gpu) = &gpu() else { return };
    let run = |op: &dyn Op, pass, args: &Args<Array<'static>>| {
        gpu.block_on(gpu.run(op, pass, args)).unwrap()
    };
    let refused = |result: Result<(), Error>, name: &'static str| {
        let error = result.unwrap_err();
        assert_eq!(error, Error::NotComputed { result: name });
        assert_eq!(error.argument(), Some(name));
        assert_eq!(error.reason(), "expected a pass that computes it, got none");
        assert_eq!(error.to_string(), format!("{name}: {}", error.reason()));
    };
    type Output = wgloss::Output<Array<'static>>;
    type Get = fn(&Output) -> Result<(), Error>;
    let get: [(&'static str, Get); 5] = [
        ("loss", |out| out.loss().map(|_| ())),
        ("output", |out| out.output().map(|_| ())),
        ("grad", |out| out.grad().map(|_| ())),
        ("state", |out| out.state().map(|_| ())),
        ("logsumexp", |out| out.rows().map(|_| ())),
    ];
    let all = cross_entropy().keep_state(true).row_outputs(true);
    let passes: [(Box<dyn Op>, Pass, _, &[&str]); 6] = [
        (Box::new(cross_entropy()), Pass::Forward, rows(), &["loss"]),
        (Box::new(cross_entropy()), Pass::Backward, rows(), &["grad"]),
        (Box::new(bce()), Pass::ForwardBackward, elements(), &["loss", "grad"]),
        (Box::new(all.clone()), Pass::Forward, rows(), &["loss", "state", "logsumexp"]),
        (Box::new(all), Pass::Backward, rows(), &["grad"]),
        (Box::new(Softmax::default()), Pass::Forward, logits(), &["output"]),
    ];
    for (op, pass, args, computed) in passes {
        let out = run(&*op, pass, &args);
        for (name, get) in get {
            match computed.contains(&name) {
                true => assert_eq!(get(&out), Ok(()), "{name} of {op:?}, {pass:?}"),
                false => refused(get(&out), name),
            }
        }
    }
}

// ---- adapters ----

#[test]
fn no_such_adapter() {
    let Some(_) = gpu() else { return };
    let found = pollster::block_on(wgloss::adapters());
    let found: Vec<_> = found.iter().map(|adapter| adapter.get_info().name).collect();
    let open = |options: &GpuOptions| pollster::block_on(Gpu::with_options(options));
    let error = open(&GpuOptions::default().name("no such adapter")).unwrap_err();
    let text = format!(
        "device: expected a Vulkan, Metal or DX12 adapter named \"no such adapter\", found {}",
        found.join(", ")
    );
    assert_eq!(error.to_string(), text);
    match open(&GpuOptions::default().hardware_only(true)) {
        Ok(gpu) => assert!(!gpu.is_software()),
        Err(error) => {
            let text = format!("device: expected a hardware GPU, found {}", found.join(", "));
            assert_eq!(error.to_string(), text);
        }
    }
    // any part of the name, in any case of letters
    let part = found[0][..4].to_uppercase();
    assert!(open(&GpuOptions::default().name(part)).is_ok());
}

// ---- linear cross entropy ----

#[test]
fn operands_of_products_that_do_not_fit() {
    let (f32, i32) =
        (|s: &[usize]| Layout::new(s, DType::F32), |s: &[usize]| Layout::new(s, DType::I32));
    let half = |shape: &[usize]| Layout::new(shape, DType::F16);
    let args = |input, projection| Args::new(input).projection(projection).target(i32(&[6]));
    let good = || args(f32(&[6, 3]), f32(&[4, 3]));
    let op = LinearCrossEntropy::default;
    let refused = |op: LinearCrossEntropy, pass, args: &Args<Layout>, text: &str| {
        let error = op.outputs(pass, args).expect_err(text);
        assert_eq!(error.to_string(), text);
    };
    let both = Pass::ForwardBackward;
    for (args, text) in [
        (
            Args::new(f32(&[6, 3])),
            "projection: expected for linear_cross_entropy.forward_backward, got none",
        ),
        (
            args(f32(&[6, 3]), f32(&[4, 2])),
            "projection: expected shape [V, 3] with V at least 1, as the input is [6, 3], got [4, 2]",
        ),
        (
            args(f32(&[6, 3]), f32(&[0, 3])),
            "projection: expected shape [V, 3] with V at least 1, as the input is [6, 3], got [0, 3]",
        ),
        (
            args(f32(&[6, 0]), f32(&[4, 0])),
            "input: expected shape [..., D] with D at least 1, got [6, 0]",
        ),
        (args(f32(&[]), f32(&[4, 3])), "input: expected shape [..., D] with D at least 1, got []"),
        (args(half(&[6, 3]), f32(&[4, 3])), "projection: expected storage type f16, got f32"),
        (args(f32(&[2, 3, 3]), f32(&[4, 3])), "target: expected shape [2, 3], got [6]"),
        (good().bias(f32(&[3])), "bias: expected shape [4], got [3]"),
        (good().bias(half(&[4])), "bias: expected storage type f32, got f16"),
        (good().weight(f32(&[6])), "weight: expected shape [4], got [6]"),
        (good().grad_projection(f32(&[4])), "grad_projection: expected shape [4, 3], got [4]"),
        (
            good().grad_projection(half(&[4, 3])),
            "grad_projection: expected storage type f32, got f16",
        ),
        (
            good().grad_bias(f32(&[4])),
            "grad_bias: expected none for linear_cross_entropy.forward_backward, got one",
        ),
        (good().upstream(f32(&[6])), "upstream: expected shape [] for reduction mean, got [6]"),
        (
            good().state(f32(&[6, 4])),
            "state: expected none for linear_cross_entropy.forward_backward, got one",
        ),
        (good().target(f32(&[6, 4])), "target: expected storage type i32 or i64, got f32"),
    ] {
        refused(op(), both, &args, text);
    }
    let sums = good().grad_projection(f32(&[4, 3]));
    for op in [op().narrow_grad_projection(true), op().freeze_projection(true)] {
        let text =
            "grad_projection: expected none for linear_cross_entropy.forward_backward, got one";
        refused(op, both, &sums, text);
    }
    let text = "grad_projection: expected none for linear_cross_entropy.forward, got one";
    refused(op(), Pass::Forward, &sums, text);
    let frozen = || op().freeze_input(true);
    let text = "freeze_input: expected a gradient that is not frozen, got none";
    refused(frozen().freeze_projection(true), both, &good(), text);
    assert!(frozen().freeze_projection(true).outputs(both, &good().bias(f32(&[4]))).is_ok());
    let text = "in_place: expected none for linear_cross_entropy.forward_backward, got one";
    refused(frozen(), both, &good().in_place(), text);
    let text = "zero_padding: expected none for linear_cross_entropy.forward_backward, got one";
    refused(frozen(), both, &good().zero_padding(), text);
    let text = "workspace_bytes: expected at least 112, for one row of 4 classes, got 100";
    refused(op().workspace_bytes(100), both, &good(), text);
    refused(op().workspace_bytes(-1), both, &good(), &text.replace("100", "-1"));
}
