//! Sizes, weights and values of BCE with logits.

use std::sync::Arc;

use wgloss::{
    Args, Array, CrossEntropy, Gpu, KlDiv, LogSoftmax, Mse, NllLoss, Op, Output, Pass, Reduction,
    Role, Softmax,
};
use wgloss_testing::any::AnyCall;
use wgloss_testing::call::{Elements, PASSES, REDUCTIONS, Rows, check, check_pass, result, run};
use wgloss_testing::devices::{gpu, on_every_device};
use wgloss_testing::random::Random;

use super::{INF, NAN, NANS, all_pairs, assert_nan, grad, loss};

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
    let Some(gpu) = &gpu() else { return };
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
                assert_eq!(out.get(Role::Grad).cloned().unwrap().shape(), shape);
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
    let maps = hollow.clone().upstream(hollow.input().clone());
    let ops: [(Box<dyn Op>, _); 7] = [
        (Box::new(CrossEntropy::default().empty_mean(2.0)), &rows),
        (Box::new(CrossEntropy::default().label_smoothing(0.1).reduction(Reduction::None)), &rows),
        (Box::new(NllLoss::default()), &rows),
        (Box::new(Softmax::default()), &maps),
        (Box::new(LogSoftmax::default()), &maps),
        (Box::new(Softmax::default().dim(0)), &maps),
        (Box::new(Mse::default().reduction(Reduction::Sum)), &losses),
    ];
    for (op, args) in ops {
        let pass = Pass::ForwardBackward;
        let want = wgloss::reference::run(&*op, pass, args).unwrap();
        let want_loss = &result(&want).values;
        let same = |got: &Output<Array<'static>>| {
            let got = result(got).to_f64();
            let same = |(&got, &want): (&f64, &f64)| got == want || got.is_nan() && want.is_nan();
            got.len() == want_loss.len() && got.iter().zip(want_loss).all(same)
        };
        assert!(want.get(Role::Grad).cloned().unwrap().values.is_empty());
        #[cfg(feature = "cpu")]
        {
            let got = wgloss::Cpu::default().run(&*op, pass, args).unwrap();
            assert!(same(&got), "{op:?}");
        }
        if let Some(gpu) = &gpu() {
            let got = gpu.block_on(gpu.run(&*op, pass, args)).unwrap();
            assert!(same(&got), "{op:?}");
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
    let Some(gpu) = &gpu() else { return };
    let mut random = Random::new(29);
    let weight = random.normals(70_001, 1.0);
    let pos_weight = random.uniforms(15, 0.0, 4.0);
    let elements = Elements::random(&mut random, &[70_001, 15]);
    check(gpu, &elements.weight(&[70_001, 1], &weight).pos_weight(&[15], &pos_weight));
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
