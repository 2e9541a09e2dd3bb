//! What the comparators reject and accept: a comparator that lets a NaN pass makes every other test
//! worthless.

use wgloss::reference::Values;
use wgloss::{Array, CrossEntropy, Op, Role, SigmoidFocal};
use wgloss_testing::compare::{
    Mismatch, Tolerance, Worst, compare, compare_integers, compare_moderate, compare_relative,
};

/// Values of which each is its own T, as for hard targets.
fn exact(values: &[f64]) -> Values {
    let magnitudes = values.iter().map(|v| v.abs()).collect();
    Values { shape: vec![values.len()], values: values.to_vec(), magnitudes }
}

/// Runs every comparator over the same values.
fn all(got: &[f32], want: &[f64]) -> [Result<Worst, Mismatch>; 4] {
    [
        compare(got, &exact(want), Tolerance::LOSS),
        compare(got, &exact(want), Tolerance::GRAD),
        compare_moderate(got, want, 10.0),
        compare_relative(got, want, 1e-5),
    ]
}

#[track_caller]
fn all_accept(got: &[f32], want: &[f64]) {
    for (i, result) in all(got, want).into_iter().enumerate() {
        assert!(result.is_ok(), "comparator {i}: {got:?} for {want:?}: {result:?}");
    }
}

/// All reject, and name the element.
#[track_caller]
fn all_reject(got: &[f32], want: &[f64], at: usize) {
    for (i, result) in all(got, want).into_iter().enumerate() {
        match result {
            Err(Mismatch::Value { index, count: 1, units, .. }) if units > 1.0 => {
                assert_eq!(index, at, "comparator {i}: {got:?} for {want:?}");
            }
            other => panic!("comparator {i}: {got:?} for {want:?}: {other:?}"),
        }
    }
}

const INF: f32 = f32::INFINITY;
const INF_64: f64 = f64::INFINITY;

#[test]
fn equal_values_are_accepted() {
    all_accept(&[1.0, -2.0, 0.5], &[1.0, -2.0, 0.5]);
    all_accept(&[], &[]);
}

#[test]
fn nan_for_a_number_is_rejected() {
    all_reject(&[1.0, f32::NAN, 3.0], &[1.0, 2.0, 3.0], 1);
    all_reject(&[1.0, f32::NAN], &[1.0, 0.0], 1);
    all_reject(&[f32::NAN], &[INF_64], 0);
}

#[test]
fn a_number_for_nan_is_rejected() {
    all_reject(&[1.0, 2.0], &[1.0, f64::NAN], 1);
    all_reject(&[0.0, 2.0], &[f64::NAN, 2.0], 0);
    all_reject(&[INF], &[f64::NAN], 0);
}

#[test]
fn nan_meets_nan() {
    all_accept(&[f32::NAN, 1.0], &[f64::NAN, 1.0]);
}

#[test]
fn a_swapped_sign_is_rejected() {
    all_reject(&[1.0, -2.0], &[1.0, 2.0], 1);
    let want = exact(&[1.0, 2e-12]);
    assert!(compare(&[1.0, -2e-12], &want, Tolerance::LOSS).is_err());
    assert!(compare(&[1.0, -2e-12], &want, Tolerance::GRAD).is_err());
}

#[test]
fn a_missing_or_surplus_element_is_rejected() {
    for result in all(&[1.0], &[1.0, 2.0]) {
        assert_eq!(result, Err(Mismatch::Length { got: 1, want: 2 }));
    }
    for result in all(&[1.0, 2.0, 3.0], &[1.0, 2.0]) {
        assert_eq!(result, Err(Mismatch::Length { got: 3, want: 2 }));
    }
    assert!(all(&[], &[1.0]).iter().all(Result::is_err));
}

#[test]
fn one_wrong_element_among_many_is_rejected() {
    let want: Vec<f64> = (0..1000).map(|i| f64::from(i % 7) + 1.0).collect();
    let mut got: Vec<f32> = want.iter().map(|&v| v as f32).collect();
    all_accept(&got, &want);
    got[617] += 1e-3;
    all_reject(&got, &want, 617);
}

#[test]
fn swapped_elements_are_rejected() {
    assert!(all(&[2.0, 1.0], &[1.0, 2.0]).iter().all(Result::is_err));
}

#[test]
fn the_other_infinity_is_rejected() {
    all_reject(&[INF], &[-INF_64], 0);
    all_reject(&[-INF], &[INF_64], 0);
}

#[test]
fn an_infinity_for_a_number_and_a_number_for_an_infinity_are_rejected() {
    all_reject(&[1.0, INF], &[1.0, 3e38], 1);
    all_reject(&[1.0, f32::MAX], &[1.0, INF_64], 1);
    all_reject(&[1.0, -INF], &[1.0, 0.0], 1);
}

#[test]
fn the_same_infinity_is_accepted() {
    all_accept(&[INF, -INF, 1.0], &[INF_64, -INF_64, 1.0]);
}

#[test]
fn what_f32_cannot_hold_may_be_an_infinity_of_the_same_sign() {
    all_accept(&[INF, -INF], &[1e39, -1e39]);
    all_reject(&[-INF], &[1e39], 0);
    all_reject(&[f32::NAN], &[1e39], 0);
}

#[test]
fn negative_zero_equals_zero() {
    all_accept(&[-0.0, 0.0], &[0.0, -0.0]);
}

/// Just inside and just outside of `part * T`, with T the value: at the two widths of the promise.
#[test]
fn the_promise_is_kept_to_its_edge() {
    let near = |want: f64, part: f64| [(want * (1.0 + part)) as f32, (want * (1.0 - part)) as f32];
    // what options add, as their documentation has it
    let softcap = |role, cap| CrossEntropy::default().softcap(cap).promise(role);
    let gamma = |gamma| SigmoidFocal::default().gamma(gamma).promise(Role::Grad);
    for (bound, wide, narrow) in [
        (Tolerance::LOSS, 2e-6, 1e-5),
        (Tolerance::GRAD, 4e-6, 1e-5),
        (gamma(10.0), 4e-6, 1e-5),
        (gamma(30.0), 1.2e-5, 3e-5),
        (softcap(Role::Loss, 30.0), 2e-6 + 7.152_557e-6, 1e-5 + 7.152_557e-6),
        (softcap(Role::Grad, 50.0), 4e-6 + 1.192_093e-5, 1e-5 + 1.192_093e-5),
    ] {
        for (want, part) in [
            (1.0, wide),
            (-300.0, wide),
            (1.1e-3, wide),
            (0.9e-3, narrow),
            (1e-12, narrow),
            (2e-30, narrow),
        ] {
            // Storing may have cost 2^-24 more, and the test's own values are rounded too.
            let slack = 2_f64.powi(-23);
            for got in near(want, part - 0.5 * slack) {
                let worst = compare(&[got], &exact(&[want]), bound).unwrap();
                assert!(worst.units > 0.9, "{got:e} for {want:e}: {worst:?}");
            }
            for got in near(want, part + 1.5 * slack) {
                let mismatch = compare(&[got], &exact(&[want]), bound).unwrap_err();
                assert!(matches!(mismatch, Mismatch::Value { units, .. } if units < 1.2));
            }
        }
    }
}

/// Terms that cancel leave an error of their own size: T, not the value, is the measure.
#[test]
fn the_measure_is_t() {
    let want = Values { shape: vec![1], values: vec![0.01], magnitudes: vec![100.0] };
    assert!(compare(&[0.010_19], &want, Tolerance::LOSS).is_ok());
    assert!(compare(&[0.010_21], &want, Tolerance::LOSS).is_err());
    assert!(compare(&[0.010_21], &want, Tolerance::GRAD).is_ok());
    assert!(compare(&[0.010_41], &want, Tolerance::GRAD).is_err());
}

#[test]
fn below_the_promise_results_must_still_be_tiny() {
    let want = exact(&[1e-33]);
    assert!(compare(&[0.0], &want, Tolerance::LOSS).is_ok());
    assert!(compare(&[2e-33], &want, Tolerance::LOSS).is_ok());
    assert!(compare(&[1.1e-29], &want, Tolerance::LOSS).is_err());
    assert!(compare(&[-1.1e-29], &want, Tolerance::LOSS).is_err());
    assert!(compare(&[1e-20], &exact(&[0.0]), Tolerance::GRAD).is_err());
}

/// A promise made for T = 0.1 holds for T = 1e-4 after a division by 1000, and is no narrower.
#[test]
fn divisor_and_upstream_move_the_widths() {
    let got = [(1e-4 * (1.0 + 6e-6)) as f32];
    let want = exact(&[1e-4]);
    assert!(compare(&got, &want, Tolerance::GRAD).is_ok());
    assert!(compare(&got, &want, Tolerance::GRAD.scaled(1e-3)).is_err());
    // T = 1e-4 times an upstream of 100 was promised to 1e-5.
    let (got, want) = ([(0.01 * (1.0 + 6e-6)) as f32], exact(&[0.01]));
    assert!(compare(&got, &want, Tolerance::GRAD).is_err());
    assert!(compare(&got, &want, Tolerance::GRAD.scaled(-100.0)).is_ok());
}

#[test]
fn moderate_bound_is_kept_to_its_edge() {
    // 2e-6 * 4 + 2e-6 * 1 + 1.2e-7 * 10 = 1.12e-5, at the second element.
    let want = [4.0, 1.0];
    assert!(compare_moderate(&[4.0, 1.0 + 1.10e-5], &want, 10.0).is_ok());
    assert!(compare_moderate(&[4.0, 1.0 + 1.14e-5], &want, 10.0).is_err());
    assert!(compare_moderate(&[4.0, 1.0 + 1.04e-5], &want, 0.0).is_err());
    // An infinity among the values does not widen the bound of the others.
    assert!(compare_moderate(&[INF, 1.01], &[INF_64, 1.0], 0.0).is_err());
}

#[test]
fn relative_bound_is_kept_to_its_edge() {
    assert!(compare_relative(&[4.0, 1.0 + 0.9e-5], &[4.0, 1.0], 1e-5).is_ok());
    assert!(compare_relative(&[4.0, 1.0 + 1.1e-5], &[4.0, 1.0], 1e-5).is_err());
}

/// A T that is not a number must not let everything pass.
#[test]
fn a_broken_t_accepts_nothing() {
    for magnitude in [f64::NAN, INF_64] {
        let want = Values { shape: vec![1], values: vec![1.0], magnitudes: vec![magnitude] };
        assert!(compare(&[2.0], &want, Tolerance::LOSS).is_err());
        assert!(compare(&[INF], &want, Tolerance::LOSS).is_err());
        assert!(compare(&[f32::NAN], &want, Tolerance::LOSS).is_err());
    }
}

#[test]
fn the_worst_element_is_named() {
    let want = exact(&[1.0, 1.0, 1.0]);
    let worst = compare(&[1.0, 1.000_001, 1.0], &want, Tolerance::LOSS).unwrap();
    assert_eq!(worst.index, 1);
    assert!((0.4..0.6).contains(&worst.units), "{worst:?}");

    let mismatch = compare(&[1.1, 1.0, 1.5], &want, Tolerance::LOSS).unwrap_err();
    assert!(matches!(mismatch, Mismatch::Value { count: 2, index: 2, .. }), "{mismatch:?}");
    let text = mismatch.to_string();
    assert!(
        text.starts_with("2 values off, the worst at 2: got 1.5e0, want 1e0 (T 1e0)"),
        "{text}"
    );
}

#[test]
fn storing_in_16_bits_rounds_once() {
    use wgloss::DType::{Bf16, F16};
    let hold = |got: f32, want: f64, dtype| {
        let want = Values { shape: vec![1], values: vec![want], magnitudes: vec![want.abs()] };
        compare(&[got], &want, Tolerance::GRAD.stored_as(dtype)).map(|worst| worst.units)
    };
    // half a unit in the last place of f16 at 1 is 2^-11, of bf16 2^-8
    let f16 = 1.0 + 2_f32.powi(-11);
    assert_eq!(hold(f16, 1.0, F16), Ok(0.0));
    assert!(hold(f16 + 3e-6, 1.0, F16).is_ok());
    assert!(hold(f16 + 5e-6, 1.0, F16).is_err());
    assert_eq!(hold(1.0 + 2_f32.powi(-8), 1.0, Bf16), Ok(0.0));
    assert!(hold(1.0 + 2_f32.powi(-8) + 5e-6, 1.0, Bf16).is_err());
    // f16 keeps subnormals, and ends half a step beyond 65504
    assert!(hold(0.0, 6e-8, F16).is_err());
    assert!(hold(0.0, 2.9e-8, F16).is_ok());
    assert!(hold(f32::INFINITY, 65_520.0, F16).is_ok());
    assert!(hold(f32::INFINITY, 65_510.0, F16).is_err());
    assert!(hold(65_504.0, 65_510.0, F16).is_ok());
}

#[test]
fn an_integer_off_by_one_is_rejected_however_large() {
    let want = Values { magnitudes: vec![0.0; 3], ..exact(&[-1.0, 600_000.0, 16_777_217.0]) };
    let got = |values: [i32; 3]| compare_integers(&Array::from(&values), &want);
    assert!(got([-1, 600_000, 16_777_217]).is_ok());
    for (index, other) in [(0, [0, 600_000, 16_777_217]), (1, [-1, 600_001, 16_777_217])] {
        let is_named = matches!(got(other), Err(Mismatch::Value { index: i, .. }) if i == index);
        assert!(is_named, "{other:?}");
    }
    assert!(got([-1, 600_000, 16_777_216]).is_err());
    let few = compare_integers(&Array::from(&[-1]), &want);
    assert_eq!(few, Err(Mismatch::Length { got: 1, want: 3 }));
}

#[test]
fn an_integer_is_as_far_off_as_its_t_lets_it() {
    let want = Values { magnitudes: vec![0.0, 3.0 / 2e-6], ..exact(&[7.0, 16_777_217.0]) };
    let got = |values: [i32; 2]| compare_integers(&Array::from(&values), &want).is_ok();
    assert!(got([7, 16_777_214]) && got([7, 16_777_220]));
    assert!(!got([7, 16_777_213]) && !got([7, 16_777_221]) && !got([8, 16_777_217]));
}
