//! Infinities, subnormals and underflow in the other element-wise losses.

use std::sync::Arc;

use wgloss::{
    Array, BceWithLogits, Huber, KlDiv, L1, Mse, Op, PoissonNll, Reduction, SigmoidFocal, SmoothL1,
};
use wgloss_testing::any::AnyCall;
use wgloss_testing::call::{Elements, check};
use wgloss_testing::devices::on_every_device;

use super::{INF, NAN, all_pairs, assert_nan, grad, loss};

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

#[test]
fn poisson_losses_at_their_edges() {
    let counts = [0.0, 0.5, 1.0, 1.0 + 1e-6, 2.0, 1e3, 1e15, 1e30, -1.0];
    let log_rates = [-INF, -1e30, -200.0, -1.0, 0.0, 1.0, 88.0, 88.72, 88.73, 1e30, INF];
    // near 1 a rounded sum has lost what its logarithm is of
    let below_1 = [0.0, 1e-30, 1e-8, 0.25, 0.5, 0.75, 0.875, 1.0 - 6e-8];
    let rates = [&below_1[..], &[1.0, 1.0 + 1.2e-7, 2.0, 1e30, INF, -1.0]].concat();
    on_every_device(|gpu| {
        for full in [false, true] {
            let op = PoissonNll::default().full(full).reduction(Reduction::None);
            let of_logs: Arc<dyn Op> = Arc::new(op.clone());
            check(gpu, &pairs(&of_logs, &log_rates, &counts));
            let out = check(gpu, &pairs(&of_logs, &[-INF, INF], &[0.0, 3.0]));
            assert_eq!(loss(&out), [0.0, INF, INF, INF]);
            for eps in [0.0, 1e-8, 0.125, 0.5] {
                let of_rates: Arc<dyn Op> = Arc::new(op.clone().log_input(false).eps(eps));
                check(gpu, &pairs(&of_rates, &rates, &counts));
                assert_nan(&loss(&check(gpu, &pairs(&of_rates, &[-1.0], &[0.0, 3.0]))));
            }
        }
    });
}
