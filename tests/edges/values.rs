//! Rows that are masked, confident, tied, or not numbers.

use wgloss::reference::{Tolerance, compare};
use wgloss::{Args, Array, CrossEntropy, Gpu, Op, Output, Pass, Role, Softmax};
use wgloss_testing::call::{Rows, check};
use wgloss_testing::devices::on_every_device;
use wgloss_testing::random::{Logits, Random};

use super::{INF, NAN, NANS, assert_nan, every_kind, grad, loss, plain_and_smoothed};

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
            for (role, got) in got.iter() {
                let grad = Tolerance::GRAD.scaled(scale);
                let promise = if role == Role::Grad { grad } else { Tolerance::LOSS };
                compare(&got.to_f32(), want.get(role).unwrap(), promise).unwrap();
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
        assert_nan(&out.grad().unwrap().to_f32());
    });
}

#[test]
fn what_is_told_of_rows_at_the_edges() {
    let sets: [&[f32]; 5] = [
        &[-INF, 0.5, 2.0],
        &[-INF, INF, NAN, 1.0],
        &[0.0, -25.0, -80.0],
        &[1e4, -1e4, 0.0],
        &[f32::MIN, -INF, -1e38],
    ];
    // ties, one class open, the smaller of two classes nearly gone, and no distribution at all
    let exact = [
        ([1.5, 1.5, 1.5, 1.5], 4_f64.ln()),
        ([-INF, 7.0, -INF, 7.0], 2_f64.ln()),
        ([-INF, -INF, -3.0, -INF], 0.0),
        ([0.0, -20.0, -INF, -INF], 4.328_422_598_4e-8), // by 40 digits
        ([-INF; 4], f64::NAN),
        ([0.0, NAN, 0.0, 0.0], f64::NAN),
    ];
    on_every_device(|gpu| {
        for values in sets {
            let rows = all_rows_of(values).row_outputs();
            check(gpu, &rows);
            check(gpu, &rows.smoothing(0.2));
        }
        for (logits, want) in exact {
            let out = check(gpu, &Rows::new(&logits, &[1]).row_outputs());
            let got = f64::from(out.rows().unwrap().entropy.to_f32()[0]);
            let is_near = (got - want).abs() <= 4e-6 * want || got.is_nan() && want.is_nan();
            assert!(is_near, "{logits:?}: got {got:e}, want {want:e}");
        }
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
