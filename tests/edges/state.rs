//! Backward from the state that forward kept.

use wgloss::Pass;
use wgloss::Role;
use wgloss_testing::call::{Call, judge, reference};
use wgloss_testing::devices::on_every_device;
use wgloss_testing::random::Random;

use super::{INF, NAN, every_kind, plain_and_smoothed};

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
                    let state = kept.get(Role::State).cloned().unwrap();
                    assert_eq!(state.shape(), [20, 4]);
                    let args = rows.args(Pass::Backward).state(state);
                    let got = gpu.block_on(gpu.run(&op, Pass::Backward, &args)).unwrap();
                    judge(&rows, &got, &want).unwrap_or_else(|e| panic!("{e}\n{rows:#?}"));
                }
            }
        }
    });
}
