//! Where kernels break: sizes at the seams of blocks and teams, values at the edges of f32, rows that
//! are masked, ignored, confident or not a number. All against the float64 reference, on the
//! automatic choice of kernels and on every team forced.

use std::sync::Arc;

use wgloss::reference::{Promise, Values, compare};
use wgloss::{
    Args, Array, BceWithLogits, CrossEntropy, Gpu, Huber, KlDiv, L1, LogSoftmax, Mse, NllLoss, Op,
    Output, Pass, Reduction, SigmoidFocal, SmoothL1, Softmax, Tensor,
};
use wgloss_testing::any::AnyCall;
use wgloss_testing::call::{
    Call, Elements, PASSES, REDUCTIONS, Rows, check, check_pass, judge, reference, run,
};
use wgloss_testing::devices::{devices, gpu, on_every_device};
use wgloss_testing::random::{Logits, Random};

const NAN: f32 = f32::NAN;
const INF: f32 = f32::INFINITY;

/// NaN of both signs, quiet and signalling, with the fewest and the most bits set.
const NANS: [u32; 6] =
    [0x7fc0_0000, 0xffc0_0000, 0x7f80_0001, 0xff80_0001, 0x7fff_ffff, 0xffff_ffff];

/// The same rows plain, and with every option on.
fn plain_and_smoothed(random: &mut Random, rows: Rows) -> [Rows; 2] {
    [rows.clone(), rows.weighted(random).smoothing(0.1)]
}

/// Rows of every nature, `each` of one kind, with random upstream gradients.
fn every_kind(random: &mut Random, each: usize, classes: usize) -> Rows {
    let logits: Vec<f32> =
        Logits::ALL.into_iter().flat_map(|kind| random.logits(kind, each, classes)).collect();
    let rows = logits.len() / classes;
    let target = random.targets(rows, classes, -100, 0.1);
    let upstream = random.normals(rows, 1.0);
    Rows::new(&logits, &target).upstream(&upstream)
}

fn loss(output: &Output<Array<'static>>) -> Vec<f32> {
    output.loss.as_ref().unwrap().to_f32()
}

fn grad(output: &Output<Array<'static>>) -> Vec<f32> {
    output.grad.as_ref().unwrap().to_f32()
}

#[track_caller]
fn assert_zero(values: &[f32]) {
    assert!(values.iter().all(|&v| v == 0.0), "{values:?}");
}

#[track_caller]
fn assert_nan(values: &[f32]) {
    assert!(!values.is_empty() && values.iter().all(|v| v.is_nan()), "{values:?}");
}

// ---- sizes ----

#[test]
fn class_counts_at_the_seams() {
    let seams: [&[usize]; 10] = [
        &[1, 2],                // no rival, one rival
        &[3, 4, 5],             // fours are loaded together: too few, whole, one over
        &[15, 16, 17],          // rescaled together by one invocation; where rows go to subgroups
        &[31, 32, 33],          // eight lanes with a four each, two with sixteen
        &[63, 64, 65],          // a small workgroup's invocations; four lanes with sixteen each
        &[127, 128, 129],       // eight lanes with sixteen each
        &[255, 256, 257],       // sixteen times sixteen, 64 lanes with a four each
        &[1023, 1024, 1025],    // 64 lanes with sixteen each; where rows go to workgroups
        &[2047, 2048, 2049],    // sixteen times sixteen for each of eight lanes
        &[16383, 16384, 16385], // sixteen times sixteen for each of 64 lanes
    ];
    on_every_device(|gpu| {
        let mut random = Random::new(1);
        for &classes in seams.into_iter().flatten() {
            let each = if classes < 1000 { 3 } else { 1 };
            let rows = every_kind(&mut random, each, classes);
            for rows in plain_and_smoothed(&mut random, rows) {
                check(gpu, &rows);
            }
        }
    });
}

#[test]
fn odd_class_counts() {
    // Rows of an odd length start at every alignment; each of these lengths is also a prime, so
    // that no lane's last group is whole.
    on_every_device(|gpu| {
        let mut random = Random::new(2);
        for classes in [7, 13, 37, 251, 509, 1031] {
            let rows = every_kind(&mut random, 3, classes);
            for rows in plain_and_smoothed(&mut random, rows) {
                check(gpu, &rows);
            }
        }
    });
}

#[test]
fn row_counts_at_the_seams() {
    let seams = [
        1, 2, // one row alone
        7, 8, 9, // a workgroup of eight rows on software devices
        63, 64, 65, // a workgroup of 64 rows on GPUs
        2047, 2048, 2049, // what one invocation sums of losses and weights
        16383, 16384, 16385, // what a subgroup of eight sums
    ];
    on_every_device(|gpu| {
        let mut random = Random::new(3);
        for rows in seams {
            let call = Rows::random(&mut random, Logits::Normal, &[rows, 3]).weighted(&mut random);
            for reduction in [Reduction::Mean, Reduction::Sum] {
                check(gpu, &call.clone().reduced(reduction));
            }
        }
    });
}

#[test]
fn more_rows_than_a_dispatch_is_wide() {
    // 65,535 workgroups are the most along one dimension: 70,000 rows fold into a second one where
    // a row is a workgroup. The sums take more than one level.
    on_every_device(|gpu| {
        let mut random = Random::new(4);
        let rows = Rows::random(&mut random, Logits::Normal, &[70_000, 3]);
        check(gpu, &rows.reduced(Reduction::Mean));
    });
}

#[test]
fn a_million_rows() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(5);
    let rows = Rows::random(&mut random, Logits::Normal, &[1_000_000, 10]);
    check(gpu, &rows.reduced(Reduction::Mean));
}

#[test]
fn as_many_classes_as_a_large_vocabulary() {
    // Ramps: the maximum moves at every block, and sums have a hundred thousand terms of like size.
    const CLASSES: usize = 128_256;
    let mut random = Random::new(6);
    let ramp = |height: f32| {
        (0..CLASSES).map(move |c| height * (c as f32 / CLASSES as f32) - height / 2.0)
    };
    let mut logits: Vec<f32> = ramp(10.0).chain(ramp(-10.0)).chain(ramp(100.0)).collect();
    logits.extend(random.normals(CLASSES, 3.0));
    let target = [77, 128_255, 64_000, 5];
    let rows = Rows::new(&logits, &target).upstream(&random.normals(4, 1.0));
    // One invocation alone is never given such a row, and could not keep the promise over it.
    for device in devices().filter(|device| device.name != "invocation") {
        check(&device.gpu, &rows);
        check(&device.gpu, &rows.clone().smoothing(0.1));
    }
}

#[test]
fn two_million_classes() {
    // lavapipe 22.3 gives the loops of an invocation 65,535 iterations in all and stops there in
    // silence. No invocation may be given so many: eight lanes would each have 78,000 here.
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(7);
    let rows = Rows::random(&mut random, Logits::Normal, &[1, 2_000_000]);
    let rows = Rows { target: vec![1_999_999], ..rows };
    check(gpu, &rows);
    // by one team, which keeps a state
    let op = rows.cross_entropy().keep_state(true);
    let out = gpu.block_on(gpu.run(&op, Pass::Forward, &rows.args(Pass::Forward))).unwrap();
    judge(&rows, &out, &reference(&rows, Pass::Forward)).unwrap();
    check(gpu, &rows.smoothing(0.1));
}

#[test]
fn few_long_rows_by_several_teams() {
    const CLASSES: usize = 70_001;
    let mut random = Random::new(9);
    let normal = random.normals(CLASSES, 3.0);
    let with = |changes: &[(usize, f32)]| {
        let mut row = normal.clone();
        changes.iter().for_each(|&(class, value)| row[class] = value);
        row
    };
    // parts begin at multiples of 4096 at least
    let masked = |classes: std::ops::Range<usize>| {
        with(&classes.map(|class| (class, -INF)).collect::<Vec<_>>())
    };
    let rows: [(Vec<f32>, i32); 10] = [
        (normal.clone(), 35_000),
        (with(&[(70_000, 60.0)]), 70_000),
        (with(&[(0, 60.0)]), 70_000),
        // ties in different parts
        (with(&[(3, 20.0), (30_000, 20.0), (69_999, 20.0)]), 30_000),
        (masked(0..50_000), 60_000),
        (masked(20_000..70_001), 60_000),
        (masked(0..70_001), 1),
        (with(&[(65_000, NAN)]), 2),
        (with(&[(5, INF)]), 2),
        ((0..CLASSES).map(|c| c as f32 * 1e-3).collect(), -100),
    ];
    // as above, without invocations
    let devices: Vec<_> = devices().filter(|device| device.name != "invocation").collect();
    for (pair, gpu) in rows.chunks(2).flat_map(|pair| devices.iter().map(move |d| (pair, &d.gpu))) {
        let logits: Vec<f32> = pair.iter().flat_map(|(row, _)| row.clone()).collect();
        let target: Vec<i32> = pair.iter().map(|&(_, target)| target).collect();
        let rows = Rows::new(&logits, &target).upstream(&[0.75, -1.25]);
        for rows in plain_and_smoothed(&mut random, rows) {
            check(gpu, &rows);
            for reduction in REDUCTIONS {
                let rows = Rows { upstream: None, ..rows.clone() }.reduced(reduction);
                check_pass(gpu, &rows, Pass::Forward);
                check_pass(gpu, &rows, Pass::Backward);
            }
            let args = gpu.block_on(gpu.upload_args(&rows.args(Pass::ForwardBackward))).unwrap();
            let args = args.in_place();
            let out = gpu.block_on(gpu.run(&rows.cross_entropy(), Pass::ForwardBackward, &args));
            let read = |tensor: Option<Tensor>| gpu.block_on(gpu.read(&tensor?)).ok();
            let out = out.unwrap();
            let out = Output { loss: read(out.loss), grad: read(out.grad), ..Output::default() };
            judge(&rows, &out, &reference(&rows, Pass::ForwardBackward)).unwrap();
            // from a kept state
            let mut state = None;
            for pass in [Pass::Forward, Pass::Backward] {
                let args = match state.take() {
                    Some(state) => rows.args(pass).state(state),
                    None => rows.args(pass),
                };
                let op = rows.cross_entropy().keep_state(true);
                let out = gpu.block_on(gpu.run(&op, pass, &args)).unwrap();
                judge(&rows, &out, &reference(&rows, pass)).unwrap();
                state = out.state;
            }
        }
    }
}

#[test]
fn strided_classes_at_the_seams() {
    let shapes: [&[usize]; 8] = [
        &[2, 3, 4, 5],       // four dimensions
        &[1, 5, 1],          // one position: not strided at all
        &[3, 4, 2],          // fours that lie apart must not be loaded as one
        &[2, 16, 7],         // whole blocks, odd stride
        &[2, 33, 9],         // more classes than eight lanes have fours
        &[1, 129, 65],       // more positions than a workgroup has invocations
        &[2, 1025, 3],       // where strided rows go to subgroups
        &[1, 2, 3, 1, 2, 3], // six dimensions
    ];
    on_every_device(|gpu| {
        let mut random = Random::new(8);
        for shape in shapes {
            for kind in Logits::ALL {
                let rows = Rows::random(&mut random, kind, shape);
                for rows in plain_and_smoothed(&mut random, rows) {
                    check(gpu, &rows);
                }
            }
        }
    });
}

#[test]
fn one_row_without_a_batch() {
    on_every_device(|gpu| {
        let mut random = Random::new(9);
        for classes in [1, 2, 5, 40] {
            let rows = Rows::random(&mut random, Logits::Normal, &[classes]);
            let rows = Rows { target: vec![classes as i32 - 1], ..rows };
            for reduction in REDUCTIONS {
                let out = check(gpu, &rows.clone().reduced(reduction));
                assert_eq!(out.loss.unwrap().shape(), [0; 0]);
            }
        }
    });
}

#[test]
fn no_rows() {
    on_every_device(|gpu| {
        for shape in [&[0, 5][..], &[0, 5, 3], &[2, 5, 0]] {
            let rows = Rows::shaped(shape, &[], &[]);
            for pass in PASSES {
                for reduction in REDUCTIONS {
                    check_pass(gpu, &rows.clone().reduced(reduction), pass);
                }
            }
            let out = check(gpu, &rows.clone().reduced(Reduction::Mean));
            assert_nan(&loss(&out));
            assert_zero(&loss(&check(gpu, &rows.clone().reduced(Reduction::Sum))));
            assert!(loss(&check(gpu, &rows)).is_empty());
        }
    });
}

#[test]
fn every_pass_and_reduction() {
    on_every_device(|gpu| {
        let mut random = Random::new(10);
        let rows = every_kind(&mut random, 2, 19);
        let shape = [2, 5, 9];
        let elements = Elements::random(&mut random, &shape)
            .weight(&[5, 1], &random.normals(5, 1.0))
            .pos_weight(&[9], &random.uniforms(9, 0.0, 3.0));
        for pass in PASSES {
            for reduction in REDUCTIONS {
                for rows in plain_and_smoothed(&mut random, rows.clone()) {
                    check_pass(gpu, &rows.reduced(reduction), pass);
                }
                check_pass(gpu, &elements.clone().reduced(reduction), pass);
            }
        }
    });
}

// ---- targets and weights ----

#[test]
fn all_rows_ignored() {
    on_every_device(|gpu| {
        for upstream in [2.0, NAN, INF] {
            let rows = Rows::new(&[1.0, NAN, 3.0, INF, 0.5, -INF], &[-100, -100]);
            for smoothing in [0.0, 0.1] {
                let rows = rows.clone().smoothing(smoothing);
                let out = check(gpu, &rows.clone().upstream(&[upstream; 2]));
                assert_zero(&loss(&out));
                assert_zero(&grad(&out));
                let scalar = rows.upstream(&[upstream]);
                let out = check(gpu, &scalar.clone().reduced(Reduction::Mean));
                assert_nan(&loss(&out));
                assert_zero(&grad(&out));
                let out = check(gpu, &scalar.reduced(Reduction::Sum));
                assert_zero(&loss(&out));
                assert_zero(&grad(&out));
            }
        }
    });
}

#[test]
fn ignored_rows_are_exactly_zero() {
    // Whatever they and their upstream gradients hold; their neighbours are untouched.
    on_every_device(|gpu| {
        let mut random = Random::new(11);
        for classes in [3, 33, 257] {
            let poison = [NAN, -NAN, INF, -INF, f32::MAX];
            let mut rows = Rows::random(&mut random, Logits::Normal, &[11, classes]);
            rows.target = random.targets(11, classes, -100, 0.0);
            let mut upstream = random.normals(11, 1.0);
            for (i, value) in poison.into_iter().enumerate() {
                let row = 2 * i + 1;
                rows.target[row] = -100;
                upstream[row] = value;
                rows.logits[row * classes..(row + 1) * classes].fill(value);
            }
            let rows = rows.upstream(&upstream);
            for rows in plain_and_smoothed(&mut random, rows) {
                let out = check(gpu, &rows);
                for row in [1, 3, 5, 7, 9] {
                    assert_zero(&loss(&out)[row..row + 1]);
                    assert_zero(&grad(&out)[row * classes..(row + 1) * classes]);
                }
                check(gpu, &rows.upstream(&[0.7]).reduced(Reduction::Mean));
            }
        }
    });
}

#[test]
fn any_integer_can_be_ignored() {
    on_every_device(|gpu| {
        let logits = [NAN, NAN, NAN, 0.5, -0.25, 1.0, 2.0, 0.0, 0.0];
        for ignored in [0, 2, 3, -1, -100, i32::MAX, i32::MIN] {
            let other = if ignored == 0 { 1 } else { 0 };
            let rows = Rows::new(&logits, &[ignored, 1, other]).ignore_index(ignored);
            check(gpu, &rows.clone().reduced(Reduction::Mean));
        }
    });
}

#[test]
fn classes_of_64_bits_from_the_host() {
    // i32::MIN stands for an ignored class that i32 does not hold.
    let logits = [NAN, NAN, 0.5, -0.25, 2.0, 0.0];
    on_every_device(|gpu| {
        for ignored in [-100, 1 << 40, i64::MAX, i64::MIN] {
            let target = [ignored, 1, 0];
            let op = CrossEntropy::default().ignore_index(ignored);
            let args = Args::new(Array::new(&logits, &[3, 2]).unwrap()).target((&target).into());
            let got = gpu.block_on(gpu.forward_backward(&op, &args)).unwrap();
            let same = Rows::new(&logits, &[-100, 1, 0]).reduced(Reduction::Mean);
            let want = run(gpu, &same, Pass::ForwardBackward);
            assert_eq!(got.loss, want.loss.unwrap());
            assert_eq!(got.grad, want.grad.unwrap());
        }
    });
}

#[test]
fn weights_of_zero_and_below() {
    on_every_device(|gpu| {
        let mut random = Random::new(12);
        for classes in [5, 40] {
            for smoothing in [0.0, 0.3, 1.0] {
                let mut weight = random.uniforms(classes, -2.0, 2.0);
                weight[0] = 0.0;
                weight[classes - 1] = -0.0;
                let rows = every_kind(&mut random, 3, classes).smoothing(smoothing);
                check(gpu, &rows.clone().weight(&weight));
                check(gpu, &rows.weight(&vec![0.0; classes]));
            }
        }
    });
}

#[test]
fn kept_weights_that_sum_to_zero() {
    let logits = [1.0, 2.0, 0.5, 3.0, 7.0, 7.0];
    on_every_device(|gpu| {
        for (weight, smoothing) in [([1.5, -1.5], 0.0), ([1.5, -1.5], 0.2), ([0.0, 0.0], 0.0)] {
            let rows = Rows::new(&logits, &[0, 1, -100]).weight(&weight).smoothing(smoothing);
            let out = check(gpu, &rows.clone().upstream(&[0.3]).reduced(Reduction::Mean));
            assert_nan(&loss(&out));
            assert_nan(&grad(&out)[..4]);
            assert_zero(&grad(&out)[4..]);
            check(gpu, &rows.upstream(&[0.3]).reduced(Reduction::Sum));
        }
    });
}

#[test]
fn a_zero_weight_annihilates_an_infinite_upstream() {
    on_every_device(|gpu| {
        let weight = [0.0, 1.0, -2.0];
        let logits = [1.0, 2.0, 0.5, 0.0, -1.0, 1.0, 2.0, 2.0, 1.0, 0.0, 0.25, 0.5];
        let rows = Rows::new(&logits, &[0, 0, 0, 1]).weight(&weight);
        let out = check(gpu, &rows.clone().upstream(&[INF, -INF, NAN, INF]));
        assert_zero(&grad(&out)[..6]);
        assert_nan(&grad(&out)[6..9]);
        for reduction in [Reduction::Mean, Reduction::Sum] {
            let out = check(gpu, &rows.clone().upstream(&[INF]).reduced(reduction));
            assert_zero(&grad(&out)[..9]);
        }

        let elements = Elements::new(&[1.0, -2.0, 3.0, 0.5, NAN], &[1.0, 0.0, 0.5, 1.0, 1.0])
            .weight(&[5], &[0.0, 0.0, 0.0, 2.0, 0.0]);
        let out = check(gpu, &elements.clone().upstream(&[INF, -INF, NAN, INF, INF]));
        assert_zero(&grad(&out)[..2]);
        assert_nan(&grad(&out)[2..3]);
        assert_nan(&grad(&out)[4..]);
        for reduction in [Reduction::Mean, Reduction::Sum] {
            let out = check(gpu, &elements.clone().upstream(&[INF]).reduced(reduction));
            assert_zero(&grad(&out)[..3]);
        }
    });
}

#[test]
fn weights_and_upstream_whose_product_overflows() {
    // Both times e^-40 and less: what is left of the gradient does not.
    let rows = Rows::new(&[0.0, -40.0, -41.0, 0.0, -60.0, -50.0], &[0, 0]);
    on_every_device(|gpu| {
        for (weight, upstream) in [(1e30, 1e15), (1e15, 1e30), (1e-30, 1e-15), (-1e30, 1e12)] {
            check(gpu, &rows.clone().weight(&[weight; 3]).upstream(&[upstream; 2]));
        }
    });
}

#[test]
fn not_a_number_upstream() {
    on_every_device(|gpu| {
        let mut random = Random::new(13);
        let rows = Rows::random(&mut random, Logits::Normal, &[5, 6]);
        let rows = Rows { target: vec![0, 1, 2, -100, 4], ..rows };
        let out = check(gpu, &rows.clone().upstream(&[1.0, NAN, -0.5, NAN, 2.0]));
        assert_nan(&grad(&out)[6..12]);
        for reduction in [Reduction::Mean, Reduction::Sum] {
            check(gpu, &rows.clone().upstream(&[-NAN]).reduced(reduction));
        }
        let elements = Elements::random(&mut random, &[5]);
        check(gpu, &elements.clone().upstream(&[1.0, NAN, -0.5, -NAN, 2.0]));
        check(gpu, &elements.upstream(&[NAN]).reduced(Reduction::Mean));
    });
}

// ---- values ----

/// Every row of four logits out of a few, with every target.
fn all_rows_of(values: &[f32]) -> Rows {
    const CLASSES: usize = 4;
    let (mut logits, mut target) = (vec![], vec![]);
    for i in 0..values.len().pow(CLASSES as u32) {
        for y in 0..CLASSES {
            logits.extend(
                (0..CLASSES).map(|c| values[i / values.len().pow(c as u32) % values.len()]),
            );
            target.push(y as i32);
        }
    }
    let upstream = Random::new(14).normals(target.len(), 1.0);
    Rows::new(&logits, &target).upstream(&upstream)
}

#[test]
fn masked_classes_with_and_without_cost() {
    // Where the mask lies on the target, beside it, on every class; where a masked class costs
    // something (its weight and the smoothing), where its weight is 0, and where it is negative, so
    // that the loss is the infinity of either sign, or NaN from both.
    let rows = all_rows_of(&[-INF, 0.5, 2.0]);
    on_every_device(|gpu| {
        for smoothing in [0.0, 0.25, 1.0] {
            let rows = rows.clone().smoothing(smoothing);
            check(gpu, &rows);
            for weight in [[1.0, -2.0, 0.0, 0.5], [0.0, 0.0, 0.0, 1.0], [-1.0; 4], [0.0; 4]] {
                check(gpu, &rows.clone().weight(&weight));
            }
        }
    });
}

#[test]
fn masked_classes_in_long_rows() {
    on_every_device(|gpu| {
        let mut random = Random::new(15);
        for classes in [33, 130, 1029] {
            // all but one class masked, at the start, at the end and in between
            for open in [0, classes / 2, classes - 1] {
                let mut logits = vec![-INF; 2 * classes];
                logits[open] = 3.0;
                logits[classes + open] = -1e30;
                let other = if open == 0 { 1 } else { 0 };
                let rows = Rows::new(&logits, &[open as i32, other]);
                let rows = rows.upstream(&random.normals(2, 1.0));
                for rows in plain_and_smoothed(&mut random, rows) {
                    check(gpu, &rows);
                }
                // the weight of every masked class 0: masks cost nothing, smoothed or not
                let mut weight = vec![0.0; classes];
                weight[open] = 1.5;
                let rows = Rows::new(&logits, &[open as i32; 2]).upstream(&[0.75, -1.25]);
                let out = check(gpu, &rows.weight(&weight).smoothing(0.1));
                assert!(loss(&out).iter().all(|loss| loss.is_finite()));
            }
        }
    });
}

#[test]
fn not_a_number_and_infinity_anywhere_in_a_row() {
    // At every class of short rows, at every third, then every thirteenth class of long ones: in
    // every lane and every four of a block, alone or not, at the target's class or not. Every other
    // row is ordinary and stays as it is.
    let values: Vec<f32> = NANS.map(f32::from_bits).into_iter().chain([INF]).collect();
    on_every_device(|gpu| {
        let mut random = Random::new(16);
        for (classes, step) in [(1, 1), (3, 1), (33, 1), (131, 1), (300, 3), (2100, 13)] {
            let places: Vec<usize> = (0..classes).step_by(step).collect();
            // every value at every place, where there are few
            let rounds = if classes > 3 { 1 } else { values.len() };
            let count = 2 * rounds * places.len();
            let mut rows = Rows::random(&mut random, Logits::Normal, &[count, classes]);
            rows.target = random.targets(count, classes, -100, 0.0);
            for row in 0..count / 2 {
                let place = places[row % places.len()];
                rows.logits[2 * row * classes + place] = values[row % values.len()];
            }
            for rows in plain_and_smoothed(&mut random, rows) {
                let out = check(gpu, &rows);
                let by_row: Vec<_> = grad(&out).chunks(classes).map(<[f32]>::to_vec).collect();
                for row in (0..count).step_by(2) {
                    assert_nan(&loss(&out)[row..row + 1]);
                    assert_nan(&by_row[row]);
                    assert!(by_row[row + 1].iter().all(|g| g.is_finite()));
                }
            }
        }
    });
}

#[test]
fn not_a_number_beats_masks_and_infinities() {
    let rows = all_rows_of(&[-INF, INF, NAN, 1.0]);
    on_every_device(|gpu| {
        for smoothing in [0.0, 0.25] {
            let rows = rows.clone().smoothing(smoothing);
            check(gpu, &rows);
            check(gpu, &rows.weight(&[0.0, 1.0, -1.0, 0.0]));
        }
    });
}

#[test]
fn huge_logits() {
    // The lowest f32 is still above -inf.
    let sets: [&[f32]; 4] =
        [&[1e4, -1e4, 0.0], &[1e30, -1e30, 0.0], &[1e30, 1e30, 9e29], &[f32::MIN, -INF, -1e38]];
    on_every_device(|gpu| {
        for values in sets {
            let rows = all_rows_of(values);
            check(gpu, &rows);
            check(gpu, &rows.weight(&[0.5, 1.0, 0.0, -0.25]).smoothing(0.2));
        }
    });
}

#[test]
fn logits_further_apart_than_f32_reaches() {
    // Their distance overflows; the loss is infinite only where it does too.
    let rows = all_rows_of(&[f32::MAX, f32::MIN, 0.0]);
    on_every_device(|gpu| {
        check(gpu, &rows);
        check(gpu, &rows.clone().weight(&[0.25; 4]));
        check(gpu, &rows.clone().weight(&[0.5, 1.0, 0.0, -0.25]).smoothing(0.2));
    });
}

/// A call with no helper of its own, on a device and, where there is one, the CPU twin.
fn check_everywhere(gpu: &Gpu, op: &dyn Op, args: &Args<Array<'_>>, scale: f64) {
    for pass in [Pass::Backward, Pass::ForwardBackward] {
        let want = wgloss::reference::run(op, pass, args).unwrap();
        let judge = |got: Output<Array<'static>>| {
            for (got, want, promise) in [
                (&got.loss, &want.loss, Promise::LOSS),
                (&got.grad, &want.grad, Promise::GRAD.scaled(scale)),
            ] {
                let (Some(got), Some(want)) = (got, want) else { continue };
                compare(&got.to_f32(), want, promise).unwrap();
            }
        };
        judge(gpu.block_on(gpu.run(op, pass, args)).unwrap());
        #[cfg(feature = "cpu")]
        judge(wgloss::Cpu::default().run(op, pass, args).unwrap());
    }
}

#[test]
fn tiny_amounts_at_distances_that_only_their_scale_takes_beyond_f32() {
    let logits = Array::new(&[0.0, -1e37_f32], &[1, 2]).unwrap();
    let args = Args::new(logits).target(Array::new(&[1.0, 1e-30_f32], &[1, 2]).unwrap());
    let op = CrossEntropy::default().logit_scale(100.0);
    on_every_device(|gpu| check_everywhere(gpu, &op, &args, 1.0));
}

#[test]
fn masked_classes_of_softmax_have_no_gradient() {
    // Where the upstream gradient is far from that of the largest class, and where it is infinite.
    let logits = Array::new(&[2.0, -INF, 1.0], &[1, 3]).unwrap();
    on_every_device(|gpu| {
        for masked in [-3e38, INF, -INF] {
            let upstream = Array::from_vec(vec![3e38, masked, 2.5e38], &[1, 3]).unwrap();
            let args = Args::new(logits.clone()).upstream(upstream);
            check_everywhere(gpu, &Softmax::default(), &args, 3e38);
        }
        let upstream = Array::new(&[1.0, NAN, 2.0], &[1, 3]).unwrap();
        let args = Args::new(logits.clone()).upstream(upstream);
        let out = gpu.block_on(gpu.backward(&Softmax::default(), &args)).unwrap();
        assert_nan(&out.grad.to_f32());
    });
}

#[test]
fn tiny_logits() {
    // Subnormals may be flushed to 0, which changes no result that f32 can show.
    let rows = all_rows_of(&[0.0, -0.0, 1e-40, -1e-40, 1e-7]);
    on_every_device(|gpu| {
        check(gpu, &rows);
        check(gpu, &rows.clone().smoothing(0.2));
    });
}

#[test]
fn confident_rows_keep_their_digits() {
    // Logits, target, loss and gradient of the first class, by 400-digit arithmetic on the f32
    // logits.
    let exact = [
        ([20.7, 0.0], 0, 1.0235378163379204e-9, -1.0235378158141056e-9),
        ([20.7, 0.0], 1, 20.70000076396299, 0.9999999989764622),
        ([60.0, 0.0], 0, 8.75651076269652e-27, -8.75651076269652e-27),
        ([-1e6, -1000030.0], 0, 9.357622968839737e-14, -9.357622968839299e-14),
    ];
    on_every_device(|gpu| {
        for (logits, target, want_loss, want_grad) in exact {
            let out = check(gpu, &Rows::new(&logits, &[target]));
            for (got, want) in [(loss(&out)[0], want_loss), (grad(&out)[0], want_grad)] {
                let error = (f64::from(got) - want).abs() / f64::abs(want);
                assert!(error < 1e-5, "{logits:?}: got {got:e}, want {want:e}");
            }
        }
        // One class ahead by 5 to 65 among many: the target, another one, smoothed and not.
        let mut random = Random::new(17);
        for classes in [2, 3, 10, 33, 100, 1000] {
            let mut rows = Rows::random(&mut random, Logits::Confident, &[40, classes]);
            for row in (0..40).step_by(2) {
                let logits = &rows.logits[row * classes..(row + 1) * classes];
                let ahead = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
                rows.target[row] = ahead.unwrap().0 as i32;
            }
            for rows in plain_and_smoothed(&mut random, rows) {
                check(gpu, &rows);
            }
            // so little smoothing that it costs about as much as the rest
            let rows = Rows::random(&mut random, Logits::Confident, &[10, classes]);
            check(gpu, &rows.smoothing(1e-7));
        }
    });
}

#[test]
fn ramps_up_and_down() {
    on_every_device(|gpu| {
        let mut random = Random::new(18);
        for classes in [31_i32, 256, 3000] {
            for step in [1e-4, 0.03, 1.0, 40.0] {
                let up = (0..classes).map(|c| c as f32 * step);
                let down = (0..classes).map(|c| -(c as f32) * step);
                let logits: Vec<f32> =
                    up.clone().chain(down.clone()).chain(up).chain(down).collect();
                let rows = Rows::new(&logits, &[0, 0, classes - 1, classes - 1]);
                let rows = rows.upstream(&random.normals(4, 1.0));
                for rows in plain_and_smoothed(&mut random, rows) {
                    check(gpu, &rows);
                }
            }
        }
    });
}

#[test]
fn ties_share_equally() {
    on_every_device(|gpu| {
        for classes in [1, 2, 3, 4, 17, 33, 256, 1000] {
            for value in [0.0_f32, -3.5, 1e6, -1e30] {
                // the second row has one class that is not part of the tie
                let mut logits = vec![value; 2 * classes];
                logits[2 * classes - 1] = value - value.abs() - 1.0;
                let rows = Rows::new(&logits, &[0, 0]).upstream(&[1.7, -0.4]);
                let out = check(gpu, &rows);
                check(gpu, &rows.clone().smoothing(0.1));
                // classes at the same logit have the same gradient, the target aside
                let gradient = grad(&out);
                if classes > 1 {
                    let first = &gradient[1..classes];
                    assert!(first.iter().all(|&g| g == first[0]), "{first:?}");
                    let second = &gradient[classes + 1..2 * classes - 1];
                    assert!(second.iter().all(|&g| g == second[0]), "{second:?}");
                }
            }
        }
    });
}

#[test]
fn offsets_change_only_what_rounding_the_logits_did() {
    // Sixteenths below 2^19 stay exact with 1e6 added, so nothing may change at all.
    on_every_device(|gpu| {
        let mut random = Random::new(19);
        for classes in [3, 33, 300] {
            let near = Rows::random(&mut random, Logits::Normal, &[20, classes]);
            let sixteenths = near.logits.iter().map(|x| (x * 16.0).round() / 16.0).collect();
            let near = Rows { logits: sixteenths, ..near };
            for near in plain_and_smoothed(&mut random, near) {
                let want = check(gpu, &near);
                for offset in [1e6, -1e6] {
                    let far = near.logits.iter().map(|x| x + offset).collect();
                    let got = check(gpu, &Rows { logits: far, ..near.clone() });
                    assert_eq!(loss(&got), loss(&want), "{offset}");
                    assert_eq!(grad(&got), grad(&want), "{offset}");
                }
            }
        }
    });
}

#[test]
fn smoothing_from_none_to_all() {
    on_every_device(|gpu| {
        let mut random = Random::new(20);
        for classes in [1, 2, 5, 100] {
            for smoothing in [1e-30, 1e-9, 0.5, 1.0 - 1e-9, 1.0] {
                let rows = every_kind(&mut random, 2, classes).smoothing(smoothing);
                check(gpu, &rows);
                check(gpu, &rows.weighted(&mut random));
            }
        }
    });
}

// ---- sums ----

#[test]
fn sums_of_equal_losses_do_not_drift() {
    const COUNT: usize = 1_000_000;
    // One after the other into one f32, a million equal losses are off in the fourth digit.
    let logits = [0.3, 1.1].repeat(COUNT);
    let rows = Rows::new(&logits, &vec![0; COUNT]);
    let one = reference(&Rows::new(&logits[..2], &[0]), Pass::Forward).loss.unwrap().values[0];
    let naive: f32 = (0..COUNT).map(|_| one as f32).sum();
    let want = one * COUNT as f64;
    assert!((f64::from(naive) / want - 1.0).abs() > 1e-4, "{naive} would do");

    let Some(gpu) = gpu() else { return };
    check_pass(gpu, &rows.clone().reduced(Reduction::Sum), Pass::Forward);
    check_pass(gpu, &rows.reduced(Reduction::Mean), Pass::Forward);
    on_every_device(|gpu| {
        let elements = Elements::new(&vec![0.3; COUNT], &vec![1.0; COUNT]);
        check_pass(gpu, &elements.clone().reduced(Reduction::Sum), Pass::Forward);
        check_pass(gpu, &elements.reduced(Reduction::Mean), Pass::Forward);
    });
}

#[test]
fn class_weights_are_summed_without_drift() {
    // The divisor of the mean: a hundred thousand weights that f32 does not hold exactly.
    const COUNT: usize = 100_000;
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(21);
    let rows = Rows::random(&mut random, Logits::Normal, &[COUNT, 2]).weight(&[0.1, 0.7]);
    check(gpu, &rows.reduced(Reduction::Mean));
}

#[test]
fn twenty_million_elements() {
    // More than 65,535 loop iterations for any invocation that is given a fixed share of a fixed
    // grid; lavapipe 22.3 would stop there in silence. A tile of prime length repeats, so that its
    // reference is enough, while no team sees the same elements as another.
    const COUNT: usize = 20_000_000;
    const TILE: usize = 10_007;
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(22);
    let tile = Elements::random(&mut random, &[TILE]);
    let cycle = |values: &[f32]| values.iter().copied().cycle().take(COUNT).collect::<Vec<_>>();
    let all = Elements::new(&cycle(&tile.logits), &cycle(&tile.target));

    let each = reference(&tile, Pass::Forward).loss.unwrap();
    let tiled = |values: &[f64]| {
        let whole = values.iter().sum::<f64>() * (COUNT / TILE) as f64;
        whole + values[..COUNT % TILE].iter().sum::<f64>()
    };
    let (sum, magnitude) = (tiled(&each.values), tiled(&each.magnitudes));
    for (reduction, over) in [(Reduction::Sum, 1.0), (Reduction::Mean, COUNT as f64)] {
        let call = all.clone().reduced(reduction);
        let got = run(gpu, &call, Pass::Forward);
        let loss =
            Values { shape: vec![], values: vec![sum / over], magnitudes: vec![magnitude / over] };
        let want = Output { loss: Some(loss), ..Output::default() };
        judge(&call, &got, &want).unwrap_or_else(|message| panic!("{reduction:?}: {message}"));
    }
}

// ---- BCE with logits ----

#[test]
fn element_counts_at_the_seams() {
    let seams = [
        1, 2, 3, 4, 5, // fours are loaded together: too few, whole, one over
        31, 32, 33, // eight lanes with a four each
        255, 256, 257, // 64 lanes with a four each
        1023, 1024, 1025, // what one invocation takes
        8191, 8192, 8193, 8196, // what a subgroup of eight takes
        65_535, 65_536, 65_537, 65_540, // what a workgroup of 64 takes
    ];
    on_every_device(|gpu| {
        let mut random = Random::new(23);
        for count in seams {
            let elements = Elements::random(&mut random, &[count]);
            check(gpu, &elements);
            check(gpu, &elements.reduced(Reduction::Mean));
        }
    });
}

#[test]
fn a_million_elements_with_gradients() {
    // An odd number: the last four are not whole. Each loss and gradient is looked at.
    let Some(gpu) = gpu() else { return };
    let elements = Elements::random(&mut Random::new(24), &[1_000_001]);
    check(gpu, &elements);
    check(gpu, &elements.reduced(Reduction::Mean));
}

#[test]
fn elements_of_every_rank() {
    on_every_device(|gpu| {
        let mut random = Random::new(25);
        let shapes: [&[usize]; 5] =
            [&[], &[1], &[1, 1, 1], &[2, 3, 4, 5], &[1, 2, 1, 3, 1, 2, 1, 2, 1]];
        for shape in shapes {
            for reduction in REDUCTIONS {
                let out = check(gpu, &Elements::random(&mut random, shape).reduced(reduction));
                assert_eq!(out.grad.unwrap().shape(), shape);
            }
        }
    });
}

#[test]
fn no_elements() {
    on_every_device(|gpu| {
        for shape in [&[0][..], &[3, 0], &[0, 2, 5]] {
            for pass in PASSES {
                for reduction in REDUCTIONS {
                    let elements = Elements::shaped(shape, &[], &[]).weight(&[1], &[2.0]);
                    check_pass(gpu, &elements.reduced(reduction), pass);
                }
            }
        }
    });
}

#[test]
fn no_elements_in_dimensions_that_no_memory_holds() {
    // Rows of so many classes, or so many rows of none: nothing may be made of either.
    const HUGE: usize = 1 << 45;
    let rows = Args::new(Array::new::<f32>(&[], &[0, HUGE]).unwrap());
    let rows = rows.target(Array::new::<i32>(&[], &[0]).unwrap());
    let hollow = Args::new(Array::new::<f32>(&[], &[HUGE, 0]).unwrap());
    let losses = hollow.clone().target(hollow.input().clone());
    let ops: [(Box<dyn Op>, _); 7] = [
        (Box::new(CrossEntropy::default().empty_mean(2.0)), &rows),
        (Box::new(CrossEntropy::default().label_smoothing(0.1).reduction(Reduction::None)), &rows),
        (Box::new(NllLoss::default()), &rows),
        (Box::new(Softmax::default()), &hollow),
        (Box::new(LogSoftmax::default()), &hollow),
        (Box::new(Softmax::default().dim(0)), &hollow),
        (Box::new(Mse::default().reduction(Reduction::Sum)), &losses),
    ];
    for (op, args) in ops {
        let pass = Pass::ForwardBackward;
        let want = wgloss::reference::run(&*op, pass, args).unwrap();
        let want_loss = want.loss.unwrap().values;
        let same = |loss: Option<Array<'static>>| {
            let got = loss.unwrap().to_f64();
            let same = |(&got, &want): (&f64, &f64)| got == want || got.is_nan() && want.is_nan();
            got.len() == want_loss.len() && got.iter().zip(&want_loss).all(same)
        };
        assert!(want.grad.unwrap().values.is_empty());
        #[cfg(feature = "cpu")]
        {
            let got = wgloss::Cpu::default().run(&*op, pass, args).unwrap();
            assert!(same(got.loss), "{op:?}");
        }
        if let Some(gpu) = gpu() {
            let got = gpu.block_on(gpu.run(&*op, pass, args)).unwrap();
            assert!(same(got.loss), "{op:?}");
        }
    }
}

#[test]
fn batch_means_of_no_elements() {
    // PyTorch divides the sum of nothing by the number of rows.
    let op: Arc<dyn Op> = Arc::new(KlDiv::default().reduction(Reduction::BatchMean));
    on_every_device(|gpu| {
        for (shape, want) in [(&[3, 0][..], 0.0), (&[3, 0, 2], 0.0), (&[0, 3], NAN), (&[0], NAN)] {
            let empty = Array::new::<f32>(&[], shape).unwrap();
            let call = AnyCall::new(op.clone(), empty.clone(), empty);
            for pass in [Pass::Forward, Pass::ForwardBackward] {
                let got = loss(&check_pass(gpu, &call, pass))[0];
                assert!(got == want || got.is_nan() && want.is_nan(), "{shape:?}: {got}");
            }
        }
    });
}

#[test]
fn weights_broadcast_to_the_elements() {
    let shape = [2, 3, 4, 5];
    let weights: [&[usize]; 8] = [
        &[],           // one for all
        &[1],          // the same with a dimension
        &[5],          // along the last dimension
        &[4, 1],       // along the one before
        &[3, 1, 5],    // along two that are not neighbours
        &[2, 1, 4, 1], // along every other
        &[1, 3, 4, 5], // all but the first
        &[2, 3, 4, 5], // the input's own shape
    ];
    on_every_device(|gpu| {
        let mut random = Random::new(26);
        let mut values = |shape: &[usize]| random.normals(shape.iter().product(), 1.5);
        for (i, own) in weights.into_iter().enumerate() {
            let other = weights[(i + 3) % weights.len()];
            let elements = Elements::random(&mut Random::new(27), &shape);
            check(gpu, &elements.clone().weight(own, &values(own)));
            check(gpu, &elements.clone().pos_weight(own, &values(own)));
            let both = elements.weight(own, &values(own)).pos_weight(other, &values(other));
            check(gpu, &both);
            check(gpu, &both.reduced(Reduction::Mean));
        }
        // 256 elements in eight dimensions, every other one broadcast: none can be joined
        let own = [2, 1, 2, 1, 2, 1, 2, 1];
        let elements = Elements::random(&mut Random::new(28), &[2; 8]);
        check(gpu, &elements.weight(&own, &values(&own)));
    });
}

#[test]
fn a_weight_for_each_of_a_million_elements() {
    // Weights that repeat along the rows and along the columns of a long table.
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(29);
    let weight = random.normals(70_001, 1.0);
    let pos_weight = random.uniforms(15, 0.0, 4.0);
    let elements = Elements::random(&mut random, &[70_001, 15]);
    check(gpu, &elements.weight(&[70_001, 1], &weight).pos_weight(&[15], &pos_weight));
}

/// Every logit with every target, with a random upstream gradient each.
fn all_pairs(logits: &[f32], targets: &[f32]) -> Elements {
    let pairs = logits.iter().flat_map(|&x| targets.iter().map(move |&t| (x, t)));
    let (logits, targets): (Vec<f32>, Vec<f32>) = pairs.unzip();
    let upstream = Random::new(30).normals(logits.len(), 1.0);
    Elements::new(&logits, &targets).upstream(&upstream)
}

/// Each with no weights, and with weights of 0, of both signs, and positive ones.
#[track_caller]
fn check_weighted(gpu: &Gpu, elements: &Elements) {
    check(gpu, elements);
    for (weight, pos_weight) in [(0.0, 2.0), (-1.5, 0.0), (0.5, -3.0), (2.0, 0.25)] {
        let elements = elements.clone().weight(&[], &[weight]).pos_weight(&[], &[pos_weight]);
        check(gpu, &elements);
    }
}

#[test]
fn confident_elements_keep_their_digits() {
    let logits = [
        0.0,
        -0.0,
        1e-40,
        1e-7,
        0.5,
        5.0,
        15.0,
        17.0,
        20.0,
        40.0,
        80.0,
        86.9,
        87.1,
        88.8,
        104.0,
        200.0,
        1e4,
        1e30,
        f32::MAX,
    ];
    let logits: Vec<f32> = logits.into_iter().flat_map(|x| [x, -x]).collect();
    let elements = all_pairs(&logits, &[0.0, 1.0, 0.25, 1e-7, 1.0 - 1e-6]);
    on_every_device(|gpu| {
        check_weighted(gpu, &elements);
        // by 400-digit arithmetic
        let out = check(gpu, &Elements::new(&[20.0], &[1.0]));
        assert!((f64::from(loss(&out)[0]) / 2.061153620314381e-9 - 1.0).abs() < 1e-5);
        assert!((f64::from(grad(&out)[0]) / -2.0611536181902037e-9 - 1.0).abs() < 1e-5);
    });
}

#[test]
fn targets_outside_zero_to_one() {
    let elements = all_pairs(&[0.0, 0.5, -3.0, 20.0, -40.0, 1e4], &[-0.5, 1.5, 2.0, -3.0, 100.0]);
    on_every_device(|gpu| check_weighted(gpu, &elements));
}

#[test]
fn infinite_logits_and_targets() {
    // With the matching hard target nothing is lost, with the other one everything.
    let elements = all_pairs(&[INF, -INF], &[0.0, 1.0, 0.5, 2.0, -1.0]);
    on_every_device(|gpu| {
        check_weighted(gpu, &elements);
        let out = check(gpu, &Elements::new(&[INF, -INF, INF, -INF], &[1.0, 0.0, 0.0, 1.0]));
        assert_eq!(loss(&out), [0.0, 0.0, INF, INF]);
        assert_eq!(grad(&out), [0.0, 0.0, 1.0, -1.0]);
    });
}

#[test]
fn elements_that_are_not_numbers() {
    // NaN comes first, before a weight of 0; its neighbours in the same four stay as they are.
    let mut nans = NANS.map(f32::from_bits).to_vec();
    nans.extend([0.5, -INF, INF]);
    let elements = all_pairs(&nans, &[1.0, 0.0, NAN, -NAN]);
    on_every_device(|gpu| {
        check_weighted(gpu, &elements);
        let out = check(gpu, &elements.clone().weight(&[], &[0.0]));
        assert_nan(&loss(&out)[..24]);
        assert_nan(&grad(&out)[..24]);
        assert_nan(&loss(&check(gpu, &elements.clone().reduced(Reduction::Sum))));
    });
}

#[test]
fn overflow_becomes_an_infinity() {
    // In the loss, the gradient, and in sums of finite losses.
    on_every_device(|gpu| {
        let elements = Elements::new(&[3e38, -3e38, 1.0], &[-1.0, 3.0, 1.0]);
        let out = check(gpu, &elements.clone().upstream(&[3e38, 1e38, f32::MAX]));
        assert_eq!(loss(&out)[..2], [INF, INF]);
        let out = run(gpu, &elements.reduced(Reduction::Sum), Pass::Forward);
        assert_eq!(loss(&out), [INF]);
        let rows = Rows::new(&[0.0, 3e38, 0.0, 3e38], &[0, 0]);
        let out = run(gpu, &rows.reduced(Reduction::Sum), Pass::Forward);
        assert_eq!(loss(&out), [INF]);
    });
}

// ---- other element-wise losses ----

/// One loss for every input with every target.
fn pairs(op: &Arc<dyn Op>, inputs: &[f32], targets: &[f32]) -> AnyCall {
    let Elements { logits, target, .. } = all_pairs(inputs, targets);
    let shape = [target.len()];
    let [input, target] = [logits, target].map(|all| Array::from_vec(all, &shape).unwrap());
    AnyCall::new(op.clone(), input, target)
}

#[test]
fn infinities_of_one_sign_have_no_difference() {
    let none = Reduction::None;
    // and whether the gradient is NaN there
    let losses: [(Arc<dyn Op>, bool); 5] = [
        (Arc::new(Mse::default().reduction(none)), true),
        (Arc::new(Huber::default().reduction(none)), true),
        (Arc::new(SmoothL1::default().reduction(none)), true),
        (Arc::new(SmoothL1::default().beta(0.0).reduction(none)), false),
        (Arc::new(L1::default().reduction(none)), false),
    ];
    on_every_device(|gpu| {
        for (op, has_nan_gradient) in &losses {
            check(gpu, &pairs(op, &[INF, -INF, 1.0, NAN], &[INF, -INF, 0.5, NAN]));
            for infinity in [INF, -INF] {
                let out = check(gpu, &pairs(op, &[infinity], &[infinity]));
                assert_nan(&loss(&out));
                assert_eq!(grad(&out)[0].is_nan(), *has_nan_gradient, "{op:?}");
                let out = check(gpu, &pairs(op, &[infinity], &[-infinity]));
                assert_eq!(loss(&out), [INF]);
            }
        }
    });
}

#[test]
fn subnormal_targets_are_not_zero() {
    // for drivers that flush them either; where their product is subnormal too, it may be 0
    let logits = [-INF, -f32::MAX, -1e30, -1e15, -1e4, -1.0, 0.0, 1.0, 1e30, INF];
    let targets = [1e-45, 1e-40, f32::MIN_POSITIVE.next_down(), f32::MIN_POSITIVE];
    let ops: [Arc<dyn Op>; 2] = [
        Arc::new(BceWithLogits::default().reduction(Reduction::None)),
        Arc::new(KlDiv::default().reduction(Reduction::None)),
    ];
    on_every_device(|gpu| {
        for op in &ops {
            check(gpu, &pairs(op, &logits, &targets));
            let out = check(gpu, &pairs(op, &[-INF], &targets));
            assert!(loss(&out).iter().all(|&loss| loss == INF), "{op:?}: {:?}", loss(&out));
        }
        // nor, below 0, a number that has a logarithm
        assert_nan(&loss(&check(gpu, &pairs(&ops[1], &[-1.0, 0.0], &[-1e-45, -1e-40]))));
    });
}

#[test]
fn divergence_from_targets_whose_exponentials_underflow() {
    // e^t is 0 in f32 from -104 on, but a factor of 0 only at -inf
    let inputs = [-INF, -1e38, -1e30, -1e12, -95.0, -1.0, 0.0];
    let targets = [-INF, -1e38, -1e4, -300.0, -174.5, -110.0, -100.0, -87.5, -80.0, -1.0, 0.0];
    let op = KlDiv::default().log_target(true).reduction(Reduction::None);
    let op: Arc<dyn Op> = Arc::new(op);
    on_every_device(|gpu| {
        check(gpu, &pairs(&op, &inputs, &targets));
        let out = check(gpu, &pairs(&op, &[-INF], &targets));
        assert_eq!(loss(&out)[0], 0.0);
        assert!(loss(&out)[1..].iter().all(|&loss| loss == INF), "{:?}", loss(&out));
    });
}

#[test]
fn focal_loss_of_targets_whose_powers_underflow() {
    // q is the target where the logit is far below 0, and 1 - target where it is far above
    let logits = [-INF, -3e38, -1e30, -1e15, -1e4, -100.0, -60.0, -3.0, 0.5, 60.0, 1e30, INF];
    let targets = [0.0, 1e-37, 1e-30, 1e-20, 1e-10, 0.3, 1.0 - 1e-6, 1.0];
    on_every_device(|gpu| {
        for gamma in [0.0, 0.5, 1.0, 2.0, 5.0] {
            let op = SigmoidFocal::default().gamma(gamma).reduction(Reduction::None);
            let op: Arc<dyn Op> = Arc::new(op);
            check(gpu, &pairs(&op, &logits, &targets));
            let out = check(gpu, &pairs(&op, &[-INF], &targets));
            assert_eq!(loss(&out)[0], 0.0);
            assert!(loss(&out)[1..].iter().all(|&loss| loss == INF), "{:?}", loss(&out));
            // where q is negative only whole powers are numbers
            let out = check(gpu, &pairs(&op, &[3.0, 6.0, 30.0], &[2.0, 5.0]));
            assert_eq!(loss(&out)[0].is_nan(), gamma == 0.5);
            assert_eq!(grad(&out)[0].is_nan(), gamma == 0.5);
        }
    });
}

#[test]
fn focal_loss_with_alpha_near_one() {
    // 1 - alpha has digits that f32 loses, or all of them
    on_every_device(|gpu| {
        for alpha in [0.999, 1.0 - 1e-6, 1.0 - 1e-9, 1.0, 1e-9, 0.0] {
            let op = SigmoidFocal::default().alpha(alpha).reduction(Reduction::None);
            let op: Arc<dyn Op> = Arc::new(op);
            check(gpu, &pairs(&op, &[-8.0, -1.0, 0.5, 30.0, INF], &[0.0, 1.0, 0.5, 1e-6]));
        }
    });
}

// ---- kept state ----

#[test]
fn kept_state_at_every_edge() {
    // Masked, ignored, confident, tied rows and rows that are not numbers: backward from the state
    // that forward kept must do what it does without.
    on_every_device(|gpu| {
        let mut random = Random::new(31);
        for classes in [3, 33, 300] {
            let mut rows = every_kind(&mut random, 4, classes);
            rows.logits[..classes].fill(-INF);
            rows.logits[classes] = NAN;
            rows.logits[2 * classes + 1] = INF;
            for rows in plain_and_smoothed(&mut random, rows) {
                let op = rows.cross_entropy().keep_state(true);
                let want = reference(&rows, Pass::Backward);
                for pass in [Pass::Forward, Pass::ForwardBackward] {
                    let kept = gpu.block_on(gpu.run(&op, pass, &rows.args(pass))).unwrap();
                    let state = kept.state.unwrap();
                    assert_eq!(state.shape(), [20, 4]);
                    let args = rows.args(Pass::Backward).state(state);
                    let got = gpu.block_on(gpu.run(&op, Pass::Backward, &args)).unwrap();
                    judge(&rows, &got, &want).unwrap_or_else(|e| panic!("{e}\n{rows:#?}"));
                }
            }
        }
    });
}
