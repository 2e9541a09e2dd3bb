//! What holds for any call and any input, on the automatic choice of kernels and on every team
//! forced. Cases are the same on every run; `PROPTEST_CASES` asks for more of each property,
//! `PROPTEST_RNG_SEED` for others.

use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{RngSeed, TestRunner};
use wgloss::reference::Values;
use wgloss::{Args, Array, Gpu, LogSoftmax, Op, Output, Pass, Reduction, Softmax};
use wgloss_testing::any::{self, AnyCall, shape};
use wgloss_testing::call::{
    Call, Elements, REDUCTIONS, Rows, bits, bits_of, hold, judge, reference, run,
};
use wgloss_testing::compare::{Promise, compare};
use wgloss_testing::devices::{Device, own_devices};
use wgloss_testing::random::{Logits, Random};

type Outcome = Result<(), TestCaseError>;

/// How many cases there are on the automatic choice of kernels, and on each team forced.
#[derive(Clone, Copy)]
struct Cases {
    automatic: u32,
    forced: u32,
}

/// Of properties whose cases share their kernels.
const SAME_KERNELS: Cases = Cases { automatic: 200, forced: 50 };
/// Of any calls: most of the time goes into compiling.
const ANY_CALL: Cases = Cases { automatic: 400, forced: 40 };

/// Holds a property against cases on every device.
fn for_all<S: Strategy>(cases: Cases, strategy: S, property: impl Fn(&Gpu, &S::Value) -> Outcome) {
    for Device { name, gpu } in own_devices() {
        let from_environment = ProptestConfig::default();
        let is_set = |name| std::env::var_os(name).is_some();
        let automatic = match is_set("PROPTEST_CASES") {
            true => from_environment.cases,
            false => cases.automatic,
        };
        let is_forced = name != "automatic";
        let config = ProptestConfig {
            cases: match is_forced {
                true => (automatic * cases.forced).div_ceil(cases.automatic),
                false => automatic,
            },
            rng_seed: match is_set("PROPTEST_RNG_SEED") {
                true => from_environment.rng_seed,
                false => RngSeed::Fixed(0),
            },
            failure_persistence: None,
            ..from_environment
        };
        let result = TestRunner::new(config).run(&strategy, |case| property(&gpu, &case));
        if let Err(error) = result {
            panic!("kernels: {name}\n{error}");
        }
    }
}

/// Cross entropy with random options; its values follow from the shape, the kind and the seed.
fn rows() -> impl Strategy<Value = Rows> {
    let smoothing = select(&[0.0, 0.1, 1.0][..]);
    let options = (select(&REDUCTIONS[..]), any::<bool>(), smoothing);
    (shape(), select(&Logits::ALL[..]), options, any::<u64>()).prop_map(
        |(shape, kind, (reduction, is_weighted, smoothing), seed)| {
            let mut random = Random::new(seed);
            let rows = Rows::random(&mut random, kind, &shape).smoothing(smoothing);
            let rows = if is_weighted { rows.weighted(&mut random) } else { rows };
            rows.reduced(reduction)
        },
    )
}

/// Cross entropy of moderate logits, one loss a row: sixteenths, which stay exact when something
/// is added.
fn moderate_rows() -> impl Strategy<Value = Rows> {
    (shape(), any::<bool>(), any::<u64>()).prop_map(|(shape, is_smoothed, seed)| {
        let mut random = Random::new(seed);
        let mut rows = Rows::random(&mut random, Logits::Normal, &shape);
        rows.logits.iter_mut().for_each(|x| *x = (*x * 16.0).round() / 16.0);
        if is_smoothed { rows.weighted(&mut random).smoothing(0.1) } else { rows }
    })
}

/// BCE with random options and broadcast weights.
fn elements() -> impl Strategy<Value = Elements> {
    let is_weighted = (any::<bool>(), any::<bool>());
    (shape(), select(&REDUCTIONS[..]), is_weighted, any::<u64>()).prop_map(
        |(shape, reduction, (has_weight, has_pos_weight), seed)| {
            let mut random = Random::new(seed);
            let mut elements = Elements::random(&mut random, &shape);
            // a suffix of the shape, in which some dimensions are 1
            let mut some = || {
                let skip = random.below(shape.len() + 1);
                let own = shape[skip..].iter().map(|&size| random.pick(&[1, size]));
                let own: Vec<usize> = own.collect();
                let values = random.normals(own.iter().product(), 1.5);
                (own, values)
            };
            if has_weight {
                elements.weight = Some(some());
            }
            if has_pos_weight {
                elements.pos_weight = Some(some());
            }
            elements.reduced(reduction)
        },
    )
}

/// Every pass, against the reference.
fn keeps_the_promise(gpu: &Gpu, call: &AnyCall) -> Outcome {
    hold(call, |op, pass, args| gpu.block_on(gpu.run(op, pass, args))).map_err(TestCaseError::fail)
}

// ---- against the reference ----

#[test]
fn calls_of_cross_entropy_keep_the_promise() {
    for_all(ANY_CALL, any::cross_entropy(), keeps_the_promise);
}

#[test]
fn calls_of_ops_over_rows_keep_the_promise() {
    for_all(ANY_CALL, any::rows(), keeps_the_promise);
}

#[test]
fn calls_of_element_wise_ops_keep_the_promise() {
    for_all(ANY_CALL, any::elements(), keeps_the_promise);
}

// ---- between passes ----

/// Loss and gradient of one pass each, against those of the fused pass.
fn fused_is_separate(gpu: &Gpu, call: &dyn Call) -> Outcome {
    let fused = run(gpu, call, Pass::ForwardBackward);
    let forward = run(gpu, call, Pass::Forward);
    let backward = run(gpu, call, Pass::Backward);
    prop_assert_eq!(bits_of(&forward.loss.unwrap()), bits_of(fused.loss.as_ref().unwrap()));
    prop_assert_eq!(bits_of(&backward.grad.unwrap()), bits_of(fused.grad.as_ref().unwrap()));
    Ok(())
}

#[test]
fn fused_cross_entropy_is_forward_and_backward_to_the_bit() {
    for_all(SAME_KERNELS, rows(), |gpu, rows| fused_is_separate(gpu, rows));
}

#[test]
fn fused_bce_with_logits_is_forward_and_backward_to_the_bit() {
    for_all(SAME_KERNELS, elements(), |gpu, elements| fused_is_separate(gpu, elements));
}

#[test]
fn kept_state_spares_a_read_and_changes_nothing() {
    for_all(SAME_KERNELS, rows(), |gpu, rows| {
        let op = rows.cross_entropy().keep_state(true);
        let kept = gpu.block_on(gpu.forward(&op, &rows.forward_args())).unwrap();
        let without = run(gpu, rows, Pass::Forward);
        prop_assert_eq!(bits_of(&kept.loss), bits_of(&without.loss.unwrap()));

        let args = rows.args(Pass::Backward).state(kept.state.unwrap());
        let got = gpu.block_on(gpu.backward(&op, &args)).unwrap();
        let want = run(gpu, rows, Pass::Backward);
        prop_assert_eq!(bits_of(&got.grad), bits_of(&want.grad.unwrap()));
        Ok(())
    });
}

#[test]
fn unreduced_losses_add_up_to_the_sum_and_the_mean() {
    for_all(SAME_KERNELS, rows(), |gpu, rows| {
        let rows = Rows { upstream: None, ..rows.clone() };
        let each = run(gpu, &rows.clone().reduced(Reduction::None), Pass::Forward);
        let each = each.loss.unwrap().to_f64();
        let magnitudes: Vec<f64> = each.iter().map(|loss| loss.abs()).collect();
        for reduction in [Reduction::Sum, Reduction::Mean] {
            let rows = rows.clone().reduced(reduction);
            let over = match rows.divisor() {
                0.0 => f64::NAN,
                divisor => divisor,
            };
            let got = run(gpu, &rows, Pass::Forward).loss.unwrap();
            let want = Values {
                shape: vec![],
                values: vec![each.iter().sum::<f64>() / over],
                magnitudes: vec![magnitudes.iter().sum::<f64>() / over.abs()],
            };
            // the sum's own error: far less than that of its terms
            let result = compare(&got.to_f32(), &want, Promise::LOSS.scaled(1.0 / over));
            prop_assert!(result.is_ok(), "{reduction:?}: {result:?}");
        }
        Ok(())
    });
}

// ---- within the mathematics ----

#[test]
fn an_offset_to_all_logits_changes_nothing() {
    let shift = select(&[1.0_f32, -1.0, 77.0, -4096.5, 1e6, -1e6][..]);
    for_all(SAME_KERNELS, (moderate_rows(), shift), |gpu, (rows, shift)| {
        let shifted = rows.logits.iter().map(|x| x + shift).collect();
        let got = run(gpu, &Rows { logits: shifted, ..rows.clone() }, Pass::ForwardBackward);
        prop_assert_eq!(bits(&got), bits(&run(gpu, rows, Pass::ForwardBackward)));
        Ok(())
    });
}

#[test]
fn gradients_of_a_row_add_up_to_zero() {
    for_all(SAME_KERNELS, moderate_rows(), |gpu, rows| {
        let want = reference(rows, Pass::Backward).grad.unwrap();
        let got = run(gpu, rows, Pass::Backward).grad.unwrap().to_f64();
        let (classes, positions) = (rows.classes(), rows.shape.iter().skip(2).product::<usize>());
        for row in 0..rows.target.len() {
            let at = |c| (row / positions * classes + c) * positions + row % positions;
            let sum: f64 = (0..classes).map(|c| got[at(c)]).sum();
            let magnitude: f64 = (0..classes).map(|c| want.magnitudes[at(c)]).sum();
            prop_assert!(sum.abs() <= 4e-6 * magnitude, "row {row}: {sum:e} of {magnitude:e}");
        }
        Ok(())
    });
}

#[test]
fn gradients_are_linear_in_the_upstream() {
    // To the bit for powers of two, which round nothing; within rounding for others.
    for_all(SAME_KERNELS, (rows(), -8..8_i32, -3.0..3.0_f32), |gpu, (rows, exponent, factor)| {
        let once = run(gpu, rows, Pass::Backward).grad.unwrap();
        let times = |factor: f32| {
            let upstream = rows.upstream.iter().flatten().map(|u| u * factor).collect();
            run(gpu, &Rows { upstream: Some(upstream), ..rows.clone() }, Pass::Backward)
        };
        let power = 2_f32.powi(*exponent);
        let scaled = times(power).grad.unwrap().to_f32();
        for (got, g) in scaled.into_iter().zip(once.to_f32()) {
            // a subnormal loses digits, or is flushed
            let is_exact = got == g * power || got.is_nan() && g.is_nan();
            prop_assert!(is_exact || (got - g * power).abs() <= f32::MIN_POSITIVE, "{got:e}");
        }
        let scaled = times(*factor).grad.unwrap().to_f32();
        for (got, g) in scaled.into_iter().zip(once.to_f32()) {
            let error = (got - g * factor).abs();
            let allowed = 4.0 * f32::EPSILON * (g * factor).abs() + f32::MIN_POSITIVE;
            prop_assert!(error <= allowed || got.is_nan() && g.is_nan(), "{got:e}");
        }
        Ok(())
    });
}

#[test]
fn rows_do_not_know_their_neighbours() {
    // Each row alone has the loss and gradient that it has among others, to the bit, whatever the
    // alignment at which it starts.
    let matrix = |rows: &Rows| rows.shape.len() == 2;
    let rows = rows().prop_filter("one matrix", matrix);
    for_all(SAME_KERNELS, (rows, any::<prop::sample::Index>()), |gpu, (rows, index)| {
        let (count, classes) = (rows.target.len(), rows.classes());
        let upstream = Random::new(0).normals(count, 1.0);
        let rows = rows.clone().upstream(&upstream).reduced(Reduction::None);
        let all = run(gpu, &rows, Pass::ForwardBackward);

        let row = index.index(count);
        let one = Rows {
            shape: vec![1, classes],
            logits: rows.row(row),
            target: vec![rows.target[row]],
            upstream: Some(vec![upstream[row]]),
            ..rows
        };
        let alone = run(gpu, &one, Pass::ForwardBackward);
        let (loss, grad) = (bits_of(&all.loss.unwrap()), bits_of(&all.grad.unwrap()));
        prop_assert_eq!(&bits_of(&alone.loss.unwrap())[..], &loss[row..row + 1]);
        let own = &grad[row * classes..(row + 1) * classes];
        prop_assert_eq!(&bits_of(&alone.grad.unwrap())[..], own);
        Ok(())
    });
}

#[test]
fn a_nan_of_the_upstream_reaches_its_row_and_no_other() {
    // Masked classes, whose probability of 0 could annihilate it, among the others.
    let matrix = |rows: &Rows| rows.shape.len() == 2;
    let rows = rows().prop_filter("one matrix", matrix);
    for_all(SAME_KERNELS, (rows, any::<prop::sample::Index>()), |gpu, (rows, index)| {
        let mut upstream = Random::new(0).normals(rows.logits.len(), 1.0);
        let broken = index.index(upstream.len());
        upstream[broken] = f32::NAN;
        let args = Args::new(Array::new(&rows.logits, &rows.shape).unwrap())
            .upstream(Array::new(&upstream, &rows.shape).unwrap());
        let maps: [&dyn Op; 2] = [&Softmax::default(), &LogSoftmax::default()];
        for map in maps {
            let grad = gpu.block_on(gpu.backward(map, &args)).unwrap().grad.to_f32();
            for (r, row) in grad.chunks(rows.classes()).enumerate() {
                let is_broken = r == broken / rows.classes();
                prop_assert!(
                    row.iter().all(|g| g.is_nan() == is_broken),
                    "{}: {row:?}",
                    map.name()
                );
            }
        }
        Ok(())
    });
}

#[test]
fn bce_with_logits_is_symmetric() {
    // The loss of x with target t is that of -x with target 1 - t, and the gradient its opposite:
    // to the bit for targets that 1 - t does not round.
    for_all(SAME_KERNELS, elements(), |gpu, elements| {
        let eighth = |t: &f32| (t * 8.0).round() / 8.0;
        let target: Vec<f32> = elements.target.iter().map(eighth).collect();
        let straight = Elements { target, pos_weight: None, ..elements.clone() };
        let mirrored = Elements {
            logits: straight.logits.iter().map(|x| -x).collect(),
            target: straight.target.iter().map(|t| 1.0 - t).collect(),
            ..straight.clone()
        };
        let got = run(gpu, &mirrored, Pass::ForwardBackward);
        let want = run(gpu, &straight, Pass::ForwardBackward);
        prop_assert_eq!(got.loss, want.loss);
        let opposite: Vec<f32> = want.grad.unwrap().to_f32().into_iter().map(|g| -g).collect();
        prop_assert_eq!(got.grad.unwrap().to_f32(), opposite);
        Ok(())
    });
}

#[test]
fn two_classes_are_bce_with_logits() {
    // Cross entropy of (0, x) is BCE of x.
    let logits = prop::collection::vec(-60.0..60.0_f32, 1..300);
    for_all(SAME_KERNELS, (logits, any::<u64>()), |gpu, (logits, seed)| {
        let mut random = Random::new(*seed);
        let target = random.targets(logits.len(), 2, -100, 0.0);
        let upstream = random.normals(logits.len(), 1.0);
        let pairs: Vec<f32> = logits.iter().flat_map(|&x| [0.0, x]).collect();
        let rows = Rows::new(&pairs, &target).upstream(&upstream);
        let hard: Vec<f32> = target.iter().map(|&t| t as f32).collect();
        let elements = Elements::new(logits, &hard).upstream(&upstream);
        let rows = run(gpu, &rows, Pass::ForwardBackward);
        let grad = rows.grad.unwrap().to_f32();
        let second: Vec<f32> = grad.chunks(2).map(|pair| pair[1]).collect();
        let grad = Array::from_vec(second, &[logits.len()]).unwrap();
        let got = Output { loss: rows.loss, grad: Some(grad), ..Output::default() };
        let want = reference(&elements, Pass::ForwardBackward);
        judge(&elements, &got, &want).map_err(TestCaseError::fail)
    });
}

#[test]
fn weights_scale_the_sum_and_not_the_mean() {
    // Twice the weights: twice the sum of the losses and the divisor, to the bit.
    for_all(SAME_KERNELS, (moderate_rows(), any::<u64>()), |gpu, (rows, seed)| {
        let weight = Random::new(*seed).eighths(rows.classes());
        let twice: Vec<f32> = weight.iter().map(|w| w * 2.0).collect();
        for reduction in [Reduction::Sum, Reduction::Mean] {
            let rows = rows.clone().reduced(reduction);
            let once = run(gpu, &rows.clone().weight(&weight), Pass::Forward).loss.unwrap();
            let got = run(gpu, &rows.weight(&twice), Pass::Forward).loss.unwrap();
            let factor = if reduction == Reduction::Sum { 2.0 } else { 1.0 };
            let want = once.item().unwrap() * factor;
            let got = got.item().unwrap();
            prop_assert!(got == want || got.is_nan() && want.is_nan(), "{got:e} {want:e}");
        }
        Ok(())
    });
}
