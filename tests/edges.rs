//! Where kernels break: sizes at the seams of blocks and teams, values at the edges of f32, rows that
//! are masked, ignored, confident or not a number. All against the float64 reference, on the
//! automatic choice of kernels and on every team forced.

mod sizes;
mod targets;
mod values;
mod sums;
mod bce_with_logits;
mod elements;
// on the device and the CPU
#[cfg(feature = "cpu")]
mod overflow;
mod state;

use wgloss::{Array, Output, Role};
use wgloss_testing::call::{Elements, Rows};
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
    output.get(Role::Loss).unwrap().to_f32()
}

fn grad(output: &Output<Array<'static>>) -> Vec<f32> {
    output.get(Role::Grad).unwrap().to_f32()
}

#[track_caller]
fn assert_zero(values: &[f32]) {
    assert!(values.iter().all(|&v| v == 0.0), "{values:?}");
}

#[track_caller]
fn assert_nan(values: &[f32]) {
    assert!(!values.is_empty() && values.iter().all(|v| v.is_nan()), "{values:?}");
}

/// Every logit with every target, with a random upstream gradient each.
fn all_pairs(logits: &[f32], targets: &[f32]) -> Elements {
    let pairs = logits.iter().flat_map(|&x| targets.iter().map(move |&t| (x, t)));
    let (logits, targets): (Vec<f32>, Vec<f32>) = pairs.unzip();
    let upstream = Random::new(30).normals(logits.len(), 1.0);
    Elements::new(&logits, &targets).upstream(&upstream)
}
