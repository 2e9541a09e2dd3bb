//! What holds for any call and any input, on the automatic choice of kernels and on every team
//! forced. Cases are the same on every run; `PROPTEST_CASES` asks for more of each property,
//! `PROPTEST_RNG_SEED` for others.

use std::cell::RefCell;
use std::fmt::Debug;

use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{RngSeed, TestRunner};
use wgloss::reference::Values;
use wgloss::{Args, Array, Gpu, LogSoftmax, Op, Output, Pass, Reduction, Role, Softmax};
use wgloss_testing::any::{self, AnyCall, Draw, shape};
use wgloss_testing::call::{
    Call, Elements, PASSES, REDUCTIONS, Rows, bits, bits_of, hold, judge, reference, run,
};
use wgloss_testing::compare::{Tolerance, compare};
use wgloss_testing::devices::{Device, devices, own_devices};
use wgloss_testing::random::{Logits, Random};
use wgloss_testing::search;

type Outcome = Result<(), TestCaseError>;

/// How many cases there are on the automatic choice of kernels, and on each team forced.
#[derive(Clone, Copy)]
struct Cases {
    automatic: u32,
    forced: u32,
}

/// Of properties whose cases share their kernels.
const SAME_KERNELS: Cases = Cases { automatic: 100, forced: 25 };
/// Of any calls, and of rows of any size: most of the time goes into compiling.
const ANY_CALL: Cases = Cases { automatic: 60, forced: 15 };

/// Of calls that are many dispatches, which barriers on software devices make slow.
const MANY_DISPATCHES: Cases = Cases { automatic: 20, forced: 3 };

/// Of calls of few numbers, all of f32: a short run of a search that `PROPTEST_CASES` makes a long one.
const ANY_NUMBERS: Cases = Cases { automatic: 15, forced: 1 };

/// Holds a property against cases on every device.
fn for_all<S: Strategy>(
    cases: Cases,
    devices: impl Iterator<Item = Device>,
    strategy: S,
    property: impl Fn(&Gpu, &S::Value) -> Outcome,
) {
    for device in devices {
        let name = device.name;
        let device = RefCell::new(device);
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
        let result = TestRunner::new(config).run(&strategy, |case| {
            let mut device = device.borrow_mut();
            device.renew();
            property(&device.gpu, &case)
        });
        if let Err(error) = result {
            panic!("kernels: {name}\n{error}");
        }
    }
}

/// A property of a case and of what the passes computed of it.
type Property<C> = (&'static str, fn(&Gpu, &C, &Passes) -> Outcome);

/// What each pass alone, and the fused one, computed of a case.
struct Passes {
    forward: Output<Array<'static>>,
    backward: Output<Array<'static>>,
    fused: Output<Array<'static>>,
}

impl Passes {
    fn of(gpu: &Gpu, call: &dyn Call) -> Self {
        let [forward, backward, fused] = PASSES.map(|pass| run(gpu, call, pass));
        Passes { forward, backward, fused }
    }

    fn loss(&self) -> &Array<'static> {
        self.forward.get(Role::Loss).expect("forward computes it")
    }

    fn grad(&self) -> &Array<'static> {
        self.backward.get(Role::Grad).expect("backward computes it")
    }
}

/// Holds every property to each case, which is computed once. A failure says which one it is.
fn all_hold<C: Debug>(
    cases: Cases,
    strategy: impl Strategy<Value = C>,
    call: fn(&C) -> &dyn Call,
    properties: &[Property<C>],
) {
    for_all(cases, devices(), strategy, |gpu, case| {
        let passes = Passes::of(gpu, call(case));
        properties.iter().try_for_each(|(name, property)| {
            property(gpu, case, &passes).map_err(|error| match error {
                TestCaseError::Fail(why) => TestCaseError::fail(format!("{name}: {why}")),
                rejected => rejected,
            })
        })
    });
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
    for_all(ANY_CALL, own_devices(), any::cross_entropy(Draw::Usual), keeps_the_promise);
}

#[test]
fn calls_of_linear_cross_entropy_keep_the_promise() {
    for_all(MANY_DISPATCHES, own_devices(), any::linear_cross_entropy(), keeps_the_promise);
}

#[test]
fn calls_of_ops_over_rows_keep_the_promise() {
    for_all(ANY_CALL, own_devices(), any::rows(Draw::Usual), keeps_the_promise);
}

#[test]
fn calls_of_element_wise_ops_keep_the_promise() {
    for_all(ANY_CALL, own_devices(), any::elements(Draw::Usual), keeps_the_promise);
}

// ---- against the reference, over all of f32 ----

/// Every pass, but for what the documentation excepts.
fn keeps_the_promise_of_all_numbers(gpu: &Gpu, call: &AnyCall) -> Outcome {
    search::hold(call, |op, pass, args| gpu.block_on(gpu.run(op, pass, args)))
        .map_err(TestCaseError::fail)
}

#[test]
fn any_numbers_of_cross_entropy() {
    for_all(
        ANY_NUMBERS,
        own_devices(),
        any::cross_entropy(Draw::All),
        keeps_the_promise_of_all_numbers,
    );
}

#[test]
fn any_numbers_of_ops_over_rows() {
    for_all(ANY_NUMBERS, own_devices(), any::rows(Draw::All), keeps_the_promise_of_all_numbers);
}

#[test]
fn any_numbers_of_element_wise_ops() {
    for_all(ANY_NUMBERS, own_devices(), any::elements(Draw::All), keeps_the_promise_of_all_numbers);
}

// ---- passes and properties of rows ----

/// Loss and gradient of one pass each are those of the fused pass, to the bit.
fn fused_is_separate<C>(_: &Gpu, _: &C, passes: &Passes) -> Outcome {
    prop_assert_eq!(bits_of(passes.loss()), bits_of(passes.fused.get(Role::Loss).unwrap()));
    prop_assert_eq!(bits_of(passes.grad()), bits_of(passes.fused.get(Role::Grad).unwrap()));
    Ok(())
}

/// Rows of any options, and what properties vary of them.
#[derive(Debug)]
struct AnyRows {
    rows: Rows,
    /// Of the power of two that an upstream gradient is multiplied with.
    exponent: i32,
    factor: f32,
    index: prop::sample::Index,
}

#[test]
fn properties_of_rows() {
    let varied = (-8..8_i32, -3.0..3.0_f32, any::<prop::sample::Index>());
    let cases = (rows(), varied).prop_map(|(rows, (exponent, factor, index))| AnyRows {
        rows,
        exponent,
        factor,
        index,
    });
    all_hold(
        ANY_CALL,
        cases,
        |case| &case.rows,
        &[
            ("fused is forward and backward to the bit", fused_is_separate),
            ("kept state changes nothing", kept_state_changes_nothing),
            ("losses add up to the sum and the mean", losses_add_up_to_the_sum_and_the_mean),
            ("gradients are linear in the upstream", gradients_are_linear_in_the_upstream),
            ("rows do not know their neighbours", rows_do_not_know_their_neighbours),
            ("NaN of the upstream stays in its row", nan_of_the_upstream_stays_in_its_row),
        ],
    );
}

fn kept_state_changes_nothing(gpu: &Gpu, case: &AnyRows, passes: &Passes) -> Outcome {
    let rows = &case.rows;
    let op = rows.cross_entropy().keep_state(true);
    let kept = gpu.block_on(gpu.forward(&op, &rows.forward_args())).unwrap();
    prop_assert_eq!(bits_of(kept.loss().unwrap()), bits_of(passes.loss()));

    let args = rows.args(Pass::Backward).state(kept.get(Role::State).cloned().unwrap());
    let got = gpu.block_on(gpu.backward(&op, &args)).unwrap();
    prop_assert_eq!(bits_of(got.grad().unwrap()), bits_of(passes.grad()));
    Ok(())
}

fn losses_add_up_to_the_sum_and_the_mean(gpu: &Gpu, case: &AnyRows, passes: &Passes) -> Outcome {
    let loss = |reduction| match reduction == case.rows.reduction {
        true => passes.loss().clone(),
        false => {
            let rows = Rows { upstream: None, ..case.rows.clone() }.reduced(reduction);
            run(gpu, &rows, Pass::Forward).get(Role::Loss).cloned().unwrap()
        }
    };
    let each = loss(Reduction::None).to_f64();
    let magnitudes: Vec<f64> = each.iter().map(|loss| loss.abs()).collect();
    for reduction in [Reduction::Sum, Reduction::Mean] {
        let over = match case.rows.clone().reduced(reduction).divisor() {
            0.0 => f64::NAN,
            divisor => divisor,
        };
        let want = Values {
            shape: vec![],
            values: vec![each.iter().sum::<f64>() / over],
            magnitudes: vec![magnitudes.iter().sum::<f64>() / over.abs()],
        };
        // the sum's own error: far less than that of its terms
        let got = loss(reduction).to_f32();
        let result = compare(&got, &want, Tolerance::LOSS.scaled(1.0 / over));
        prop_assert!(result.is_ok(), "{reduction:?}: {result:?}");
    }
    Ok(())
}

/// To the bit for powers of two, which round nothing; within rounding for others.
fn gradients_are_linear_in_the_upstream(gpu: &Gpu, case: &AnyRows, passes: &Passes) -> Outcome {
    let once = passes.grad().to_f32();
    let times = |factor: f32| {
        let upstream = case.rows.upstream.iter().flatten().map(|u| u * factor).collect();
        let rows = Rows { upstream: Some(upstream), ..case.rows.clone() };
        run(gpu, &rows, Pass::Backward).get(Role::Grad).cloned().unwrap().to_f32()
    };
    let power = 2_f32.powi(case.exponent);
    for (got, g) in times(power).into_iter().zip(&once) {
        // a subnormal loses digits, or is flushed
        let is_exact = got == g * power || got.is_nan() && g.is_nan();
        prop_assert!(is_exact || (got - g * power).abs() <= f32::MIN_POSITIVE, "{got:e}");
    }
    for (got, g) in times(case.factor).into_iter().zip(&once) {
        let error = (got - g * case.factor).abs();
        let allowed = 4.0 * f32::EPSILON * (g * case.factor).abs() + f32::MIN_POSITIVE;
        prop_assert!(error <= allowed || got.is_nan() && g.is_nan(), "{got:e}");
    }
    Ok(())
}

/// Each row alone has the loss and gradient that it has among others, to the bit, whatever the
/// alignment at which it starts.
fn rows_do_not_know_their_neighbours(gpu: &Gpu, case: &AnyRows, _: &Passes) -> Outcome {
    let rows = case.rows.clone();
    let [count, classes] = rows.shape[..] else { return Ok(()) };
    let upstream = Random::new(0).normals(count, 1.0);
    let rows = rows.upstream(&upstream).reduced(Reduction::None);
    let all = run(gpu, &rows, Pass::ForwardBackward);

    let row = case.index.index(count);
    let one = Rows {
        shape: vec![1, classes],
        logits: rows.row(row),
        target: vec![rows.target[row]],
        upstream: Some(vec![upstream[row]]),
        ..rows
    };
    let alone = run(gpu, &one, Pass::ForwardBackward);
    let (loss, grad) = (
        bits_of(&all.get(Role::Loss).cloned().unwrap()),
        bits_of(&all.get(Role::Grad).cloned().unwrap()),
    );
    prop_assert_eq!(&bits_of(&alone.get(Role::Loss).cloned().unwrap())[..], &loss[row..row + 1]);
    let own = &grad[row * classes..(row + 1) * classes];
    prop_assert_eq!(&bits_of(&alone.get(Role::Grad).cloned().unwrap())[..], own);
    Ok(())
}

/// Masked classes, whose probability of 0 could annihilate it, are among the others.
fn nan_of_the_upstream_stays_in_its_row(gpu: &Gpu, case: &AnyRows, _: &Passes) -> Outcome {
    let rows = &case.rows;
    let [_, classes] = rows.shape[..] else { return Ok(()) };
    let mut upstream = Random::new(0).normals(rows.logits.len(), 1.0);
    let broken = case.index.index(upstream.len());
    upstream[broken] = f32::NAN;
    let args = Args::new(Array::new(&rows.logits, &rows.shape).unwrap())
        .upstream(Array::new(&upstream, &rows.shape).unwrap());
    let maps: [&dyn Op; 2] = [&Softmax::default(), &LogSoftmax::default()];
    for map in maps {
        let grad = gpu.block_on(gpu.backward(map, &args)).unwrap().grad().unwrap().to_f32();
        for (r, row) in grad.chunks(classes).enumerate() {
            let is_broken = r == broken / classes;
            let is_right = row.iter().all(|g| g.is_nan() == is_broken);
            prop_assert!(is_right, "{}: {row:?}", map.name());
        }
    }
    Ok(())
}

// ---- rows of moderate logits ----

/// Moderate rows, and what properties vary of them.
#[derive(Debug)]
struct ModerateRows {
    rows: Rows,
    shift: f32,
    seed: u64,
}

#[test]
fn properties_of_rows_of_moderate_logits() {
    let shift = select(&[1.0_f32, -1.0, 77.0, -4096.5, 1e6, -1e6][..]);
    let cases = (moderate_rows(), shift, any::<u64>());
    all_hold(
        ANY_CALL,
        cases.prop_map(|(rows, shift, seed)| ModerateRows { rows, shift, seed }),
        |case| &case.rows,
        &[
            ("an offset to all logits changes nothing", an_offset_changes_nothing),
            ("gradients of a row add up to zero", gradients_of_a_row_add_up_to_zero),
            ("weights scale the sum and not the mean", weights_scale_the_sum_and_not_the_mean),
        ],
    );
}

fn an_offset_changes_nothing(gpu: &Gpu, case: &ModerateRows, passes: &Passes) -> Outcome {
    let shifted = case.rows.logits.iter().map(|x| x + case.shift).collect();
    let got = run(gpu, &Rows { logits: shifted, ..case.rows.clone() }, Pass::ForwardBackward);
    prop_assert_eq!(bits(&got), bits(&passes.fused));
    Ok(())
}

fn gradients_of_a_row_add_up_to_zero(_: &Gpu, case: &ModerateRows, passes: &Passes) -> Outcome {
    let rows = &case.rows;
    let want = reference(rows, Pass::Backward).grad().unwrap().clone();
    let got = passes.grad().to_f64();
    let (classes, positions) = (rows.classes(), rows.shape.iter().skip(2).product::<usize>());
    for row in 0..rows.target.len() {
        let at = |c| (row / positions * classes + c) * positions + row % positions;
        let sum: f64 = (0..classes).map(|c| got[at(c)]).sum();
        let magnitude: f64 = (0..classes).map(|c| want.magnitudes[at(c)]).sum();
        prop_assert!(sum.abs() <= 4e-6 * magnitude, "row {row}: {sum:e} of {magnitude:e}");
    }
    Ok(())
}

/// Twice the weights: twice the sum of the losses and the divisor, to the bit.
fn weights_scale_the_sum_and_not_the_mean(gpu: &Gpu, case: &ModerateRows, _: &Passes) -> Outcome {
    let weight = Random::new(case.seed).eighths(case.rows.classes());
    let twice: Vec<f32> = weight.iter().map(|w| w * 2.0).collect();
    for reduction in [Reduction::Sum, Reduction::Mean] {
        let rows = case.rows.clone().reduced(reduction);
        let once = run(gpu, &rows.clone().weight(&weight), Pass::Forward)
            .get(Role::Loss)
            .cloned()
            .unwrap();
        let got = run(gpu, &rows.weight(&twice), Pass::Forward).get(Role::Loss).cloned().unwrap();
        let factor = if reduction == Reduction::Sum { 2.0 } else { 1.0 };
        let want = once.item().unwrap() * factor;
        let got = got.item().unwrap();
        prop_assert!(got == want || got.is_nan() && want.is_nan(), "{got:e} {want:e}");
    }
    Ok(())
}

// ---- elements ----

#[test]
fn properties_of_elements() {
    all_hold(
        SAME_KERNELS,
        elements(),
        |elements| elements,
        &[
            ("fused is forward and backward to the bit", fused_is_separate),
            ("BCE with logits is symmetric", bce_with_logits_is_symmetric),
        ],
    );
}

/// The loss of x with target t is that of -x with target 1 - t, and the gradient its opposite: to the
/// bit for targets that 1 - t does not round.
fn bce_with_logits_is_symmetric(gpu: &Gpu, elements: &Elements, _: &Passes) -> Outcome {
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
    prop_assert_eq!(got.loss(), want.loss());
    let opposite: Vec<f32> =
        want.get(Role::Grad).cloned().unwrap().to_f32().into_iter().map(|g| -g).collect();
    prop_assert_eq!(got.get(Role::Grad).cloned().unwrap().to_f32(), opposite);
    Ok(())
}

#[test]
fn two_classes_are_bce_with_logits() {
    // Cross entropy of (0, x) is BCE of x.
    let logits = prop::collection::vec(-60.0..60.0_f32, 1..300);
    for_all(SAME_KERNELS, devices(), (logits, any::<u64>()), |gpu, (logits, seed)| {
        let mut random = Random::new(*seed);
        let target = random.targets(logits.len(), 2, -100, 0.0);
        let upstream = random.normals(logits.len(), 1.0);
        let pairs: Vec<f32> = logits.iter().flat_map(|&x| [0.0, x]).collect();
        let rows = Rows::new(&pairs, &target).upstream(&upstream);
        let hard: Vec<f32> = target.iter().map(|&t| t as f32).collect();
        let elements = Elements::new(logits, &hard).upstream(&upstream);
        let rows = run(gpu, &rows, Pass::ForwardBackward);
        let grad = rows.get(Role::Grad).cloned().unwrap().to_f32();
        let second: Vec<f32> = grad.chunks(2).map(|pair| pair[1]).collect();
        let grad = Array::from_vec(second, &[logits.len()]).unwrap();
        let got = rows.with(Role::Grad, grad);
        let want = reference(&elements, Pass::ForwardBackward);
        judge(&elements, &got, &want).map_err(TestCaseError::fail)
    });
}
