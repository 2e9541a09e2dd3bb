//! Sums of millions of terms.

use wgloss::reference::Values;
use wgloss::{Output, Pass, Reduction, Role};
use wgloss_testing::call::{Elements, Rows, check, check_pass, judge, reference, run};
use wgloss_testing::devices::{gpu, on_every_device};
use wgloss_testing::random::{Logits, Random};

#[test]
fn sums_of_equal_losses_do_not_drift() {
    const COUNT: usize = 1_000_000;
    // One after the other into one f32, a million equal losses are off in the fourth digit.
    let logits = [0.3, 1.1].repeat(COUNT);
    let rows = Rows::new(&logits, &vec![0; COUNT]);
    let one =
        reference(&Rows::new(&logits[..2], &[0]), Pass::Forward).get(Role::Loss).unwrap().values[0];
    let naive: f32 = (0..COUNT).map(|_| one as f32).sum();
    let want = one * COUNT as f64;
    assert!((f64::from(naive) / want - 1.0).abs() > 1e-4, "{naive} would do");

    let Some(gpu) = &gpu() else { return };
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
    let Some(gpu) = &gpu() else { return };
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
    let Some(gpu) = &gpu() else { return };
    let mut random = Random::new(22);
    let tile = Elements::random(&mut random, &[TILE]);
    let cycle = |values: &[f32]| values.iter().copied().cycle().take(COUNT).collect::<Vec<_>>();
    let all = Elements::new(&cycle(&tile.logits), &cycle(&tile.target));

    let each = reference(&tile, Pass::Forward).loss().unwrap().clone();
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
        let want = Output::default().with(Role::Loss, loss);
        judge(&call, &got, &want).unwrap_or_else(|message| panic!("{reduction:?}: {message}"));
    }
}
