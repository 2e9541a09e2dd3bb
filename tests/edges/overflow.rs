//! Numbers near the end of f32: what is beyond it on the way to a result that is not.

use std::sync::Arc;

use wgloss::internals::Slot;
use wgloss::{
    Args, Array, BceWithLogits, Cpu, CrossEntropy, Gpu, Huber, KlDiv, Mse, NllLoss, Op, Output,
    Pass, PoissonNll, Reduction, Role, SigmoidFocal, SmoothL1,
};
use wgloss_testing::any::AnyCall;
use wgloss_testing::call::{check, hold};
use wgloss_testing::devices::on_every_device;

use super::{INF, NAN, assert_nan, grad, loss};

fn array(values: &[f32]) -> Array<'static> {
    Array::from_vec(values.to_vec(), &[values.len()]).unwrap()
}

fn call(op: impl Op + 'static, input: &[f32], target: &[f32]) -> AnyCall {
    AnyCall::new(Arc::new(op), array(input), array(target))
}

/// A row of logits with a class.
fn row(op: CrossEntropy, logits: &[f32], class: i32) -> AnyCall {
    let logits = Array::from_vec(logits.to_vec(), &[1, logits.len()]).unwrap();
    AnyCall::new(Arc::new(op), logits, Array::from_vec(vec![class], &[1]).unwrap())
}

/// Holds every pass to the reference on the device and on the CPU; what the device computes.
#[track_caller]
fn hold_both(gpu: &Gpu, call: &AnyCall) -> Output<Array<'static>> {
    let cpu = Cpu::default();
    let on_gpu = hold(call, |op, pass, args| gpu.block_on(gpu.run(op, pass, args)));
    on_gpu.unwrap_or_else(|error| panic!("GPU: {error}\n{call:#?}"));
    let on_cpu = hold(call, |op, pass, args| cpu.run(op, pass, args));
    on_cpu.unwrap_or_else(|error| panic!("CPU: {error}\n{call:#?}"));
    check(gpu, call)
}

#[test]
fn gradients_that_are_beyond_f32_before_they_are_divided() {
    let sum = || Mse::default().reduction(Reduction::Sum);
    let none = || Mse::default().reduction(Reduction::None);
    on_every_device(|gpu| {
        for (x, t) in [(3e38, 0.0), (3e38, -3e38), (-f32::MAX, f32::MAX)] {
            let [x, t] = [[x, 0.0, 0.0, 0.0, 1.0], [t, 0.0, 0.0, 0.0, 0.0]];
            let out = hold_both(gpu, &call(Mse::default(), &x, &t).over(5.0));
            assert!(grad(&out)[0].is_finite(), "{:?}", grad(&out));
            let half = Huber::default().delta(f64::INFINITY);
            hold_both(gpu, &call(half, &x, &t).over(5.0));
            hold_both(gpu, &call(sum(), &x, &t).upstream(Array::scalar(0.01_f32)));
            hold_both(gpu, &call(none(), &x, &t).upstream(array(&[0.01; 5])));
        }
        // a weight too
        let [x, t] = [[1e30, -1e30, 3.0_f32], [-1.0, 2.0, 1.0]];
        let weighted = call(BceWithLogits::default(), &x, &t).over(3.0);
        let weighted = weighted.weight(array(&[2e38, 3e38, 3e38]));
        let out = check(gpu, &weighted.upstream(Array::scalar(0.01_f32)));
        assert!(grad(&out).iter().all(|g| g.is_finite()), "{:?}", grad(&out));
    });
}

#[test]
fn losses_of_distances_that_are_beyond_f32() {
    let none = Reduction::None;
    on_every_device(|gpu| {
        for delta in [1e-3, 1.0] {
            let huber = Huber::default().delta(delta).reduction(none);
            let out = hold_both(gpu, &call(huber, &[3e38, -3e38, 1.0], &[-3e38, 3e38, 3e38]));
            assert!(delta == 1.0 || loss(&out)[0].is_finite(), "{:?}", loss(&out));
        }
        let smooth = SmoothL1::default().beta(3e38).reduction(none);
        let out = hold_both(gpu, &call(smooth, &[3e38, 2e38, 1e38], &[-1e38, 0.0, 3e38]));
        assert!(loss(&out)[0].is_finite(), "{:?}", loss(&out));
    });
}

#[test]
fn half_the_squared_error() {
    on_every_device(|gpu| {
        let op = Huber::default().delta(f64::INFINITY).reduction(Reduction::None);
        let [x, t] = [[3.0, -1e4, 1e30, INF, 3e38, 0.0], [1.0, 1e4, 0.0, 0.0, -3e38, NAN]];
        let out = hold_both(gpu, &call(op, &x, &t));
        assert_eq!(loss(&out)[..4], [2.0, 2e8, INF, INF]);
        assert_eq!(grad(&out)[..4], [2.0, -2e4, 1e30, INF]);
    });
}

#[test]
fn gradients_that_do_not_depend_on_the_input() {
    on_every_device(|gpu| {
        for (is_log, target) in [(false, [0.25, 0.5, 0.0, NAN]), (true, [-1.0, -2.0, -INF, NAN])] {
            let op = KlDiv::default().log_target(is_log).reduction(Reduction::None);
            let out = hold_both(gpu, &call(op.clone(), &[NAN, -NAN, NAN, -1.0], &target));
            assert_nan(&loss(&out));
            assert!(grad(&out)[..3].iter().all(|g| g.is_finite()), "{:?}", grad(&out));
            assert_nan(&grad(&out)[3..]);

            // nor is the input bound, or uploaded, and in place it is written over
            let args = Args::new(array(&[NAN, 1.0, 2.0, 3.0])).target(array(&target));
            let layouts = args.layouts();
            let outputs = op.outputs(Pass::Backward, &layouts).unwrap();
            let program = op.program(Pass::Backward, &layouts, &outputs, gpu.profile()).unwrap();
            for binding in program.steps().flat_map(|step| &step.bindings) {
                assert_ne!(binding.slot, Slot::Tensor(Role::Input), "{binding:?}");
            }
            let in_place = gpu.block_on(gpu.backward(&op, &args.in_place())).unwrap();
            assert_eq!(grad(&in_place)[..3], grad(&out)[..3]);
        }
    });
}

#[test]
fn z_loss_of_logits_near_the_end_of_f32() {
    let z_loss = |z| CrossEntropy::default().z_loss(z).reduction(Reduction::None);
    on_every_device(|gpu| {
        for z in [1e-4, -1e-4] {
            let scaled = z_loss(z).logit_scale(3.0);
            for class in [0, 1] {
                let out = hold_both(gpu, &row(scaled.clone(), &[3e38, 0.0], class));
                assert!(grad(&out).iter().all(|g| g.is_finite()), "{:?}", grad(&out));
            }
            // where the gradient is infinite, a class of no probability has none
            hold_both(gpu, &row(z_loss(1e4 * z).logit_scale(3.0), &[3e38, 0.0], 0));
        }
        let out = hold_both(gpu, &row(z_loss(-1e-3), &[3e38, -3e38], 1));
        assert_eq!(loss(&out), [-INF]);
        let out = hold_both(gpu, &row(z_loss(-1e-3), &[3e38, -3e38], 0));
        assert_eq!(loss(&out), [-INF]);
        // but what is infinite itself stays so
        let out = hold_both(gpu, &row(z_loss(-1e-3), &[3.0, -INF], 1));
        assert_eq!(loss(&out), [INF]);
    });
}

#[test]
fn class_weights_whose_sum_is_beyond_f32() {
    // As in PyTorch, whose sum is f32's too: 0, or NaN where the sum of the losses is beyond f32 as well.
    let of = |numbers: [f32; 4], target| {
        Args::new(Array::from_vec(numbers.to_vec(), &[2, 2]).unwrap())
            .target(Array::from(target))
            .weight(array(&[3e38; 2]))
    };
    on_every_device(|gpu| {
        let cpu = Cpu::default();
        for (target, is_nan) in [(&[0, 1], false), (&[1, 0], true)] {
            let cases: [(&dyn Op, _); 2] = [
                (&CrossEntropy::default(), of([3.0, 0.0, 0.0, 3.0], target)),
                (&NllLoss::default(), of([-0.05, -3.0, -3.0, -0.05], target)),
            ];
            for (op, args) in cases {
                let on_gpu = gpu.block_on(gpu.forward_backward(op, &args)).unwrap();
                for out in [on_gpu, cpu.forward_backward(op, &args).unwrap()] {
                    let mean = loss(&out)[0];
                    assert!(if is_nan { mean.is_nan() } else { mean == 0.0 }, "{op:?}: {mean}");
                    assert!(grad(&out).iter().all(|&g| g == 0.0), "{op:?}: {:?}", grad(&out));
                }
            }
        }
    });
}

#[test]
fn subnormal_targets_times_positive_weights() {
    on_every_device(|gpu| {
        let op = BceWithLogits::default().reduction(Reduction::None);
        let [x, t] = [[-1e30, -3e38, -1e15, -1e30], [1e-40, 3e-44, 1.1e-38, 2e-45]];
        for pos_weight in [0.3, 1e-5, 7.0, 1e3] {
            hold_both(gpu, &call(op.clone(), &x, &t).pos_weight(array(&[pos_weight; 4])));
        }
    });
}

#[test]
fn counts_over_rates_whose_inverse_is_subnormal() {
    let rates = [1e38, 2e38, 3e38, f32::MAX, 8.6e37, 8.4e37, 1e37];
    on_every_device(|gpu| {
        let op = PoissonNll::default().log_input(false).eps(0.0).reduction(Reduction::None);
        let out = hold_both(gpu, &call(op.clone(), &rates, &rates));
        assert!(grad(&out).iter().all(|g| g.abs() < 1e-6), "{:?}", grad(&out));
        hold_both(gpu, &call(op, &rates, &rates.map(|t| 0.25 * t)));
    });
}

#[test]
fn softcaps_that_people_use() {
    on_every_device(|gpu| {
        let capped = |cap| CrossEntropy::default().softcap(cap).reduction(Reduction::None);
        for (cap, logits) in [(30.0, [-31.0, -80.0]), (50.0, [-55.0, -66.0])] {
            for class in [0, 1] {
                hold_both(gpu, &row(capped(cap), &logits, class));
            }
        }
    });
}

#[test]
fn focal_loss_beyond_a_gamma_of_ten() {
    on_every_device(|gpu| {
        let logits = [-6.0, -3.1, -1.7, -0.9, -0.3, 0.0, 0.4, 1.1, 2.3, 4.5];
        for gamma in [11.0, 17.5, 30.0, 60.0] {
            let op = SigmoidFocal::default().gamma(gamma).reduction(Reduction::None);
            for target in [0.0, 0.3, 1.0] {
                hold_both(gpu, &call(op.clone(), &logits, &[target; 10]));
            }
        }
    });
}
