//! Every op, on every family of kernels, held to the promise against the float64 reference.

mod common;

use common::compare::{Bound, compare};
use common::gpu::on_every_device;
use common::random::{Logits, Random};
use wgloss::reference::{self, Values};
use wgloss::*;

/// An op of the table: its inputs are drawn, its options are given.
struct Entry {
    op: Box<dyn Op>,
    reduction: Reduction,
    kind: Kind,
}

/// What the inputs and targets of an op are like.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    /// Logits with a target in [0, 1], hard ones among them.
    Logits,
    /// Numbers and numbers near them.
    Numbers,
    /// Scores with targets 1 and -1.
    Scores,
    /// Probabilities with a target in [0, 1].
    Probabilities,
    /// Log-probabilities with probabilities.
    LogProbabilities,
    /// Log-probabilities with log-probabilities.
    LogTargets,
    /// Rows of logits with probabilities.
    Rows,
    /// Rows of logits with classes.
    Classes,
    /// Rows of log-probabilities with classes.
    Picked,
    /// An element-wise map.
    Map,
    /// A map over rows.
    RowMap,
}

/// One row for each op and option.
fn table() -> Vec<Entry> {
    let mut table = Vec::new();
    let mut add = |op: Box<dyn Op>, reduction, kind| table.push(Entry { op, reduction, kind });
    for r in [Reduction::None, Reduction::Mean, Reduction::Sum] {
        add(Box::new(BceWithLogits::default().reduction(r)), r, Kind::Logits);
        add(Box::new(SigmoidFocal::default().reduction(r)), r, Kind::Logits);
        add(Box::new(SigmoidFocal::default().alpha(-1.0).gamma(0.5).reduction(r)), r, Kind::Logits);
        add(Box::new(SigmoidFocal::default().gamma(0.0).reduction(r)), r, Kind::Logits);
        add(Box::new(Mse::default().reduction(r)), r, Kind::Numbers);
        add(Box::new(L1::default().reduction(r)), r, Kind::Numbers);
        add(Box::new(SmoothL1::default().reduction(r)), r, Kind::Numbers);
        add(Box::new(SmoothL1::default().beta(0.0).reduction(r)), r, Kind::Numbers);
        add(Box::new(Huber::default().delta(0.75).reduction(r)), r, Kind::Numbers);
        add(Box::new(SoftMargin::default().reduction(r)), r, Kind::Scores);
        add(Box::new(Bce::default().reduction(r)), r, Kind::Probabilities);
        add(Box::new(KlDiv::default().reduction(r)), r, Kind::LogProbabilities);
        add(Box::new(KlDiv::default().log_target(true).reduction(r)), r, Kind::LogTargets);
        add(Box::new(CrossEntropy::default().reduction(r)), r, Kind::Rows);
        let smoothed = CrossEntropy::default().label_smoothing(0.2);
        add(Box::new(smoothed.reduction(r)), r, Kind::Rows);
        let extras = CrossEntropy::default().logit_scale(0.7).z_loss(1e-3).row_outputs(true);
        add(Box::new(extras.clone().reduction(r)), r, Kind::Rows);
        let classes = extras.ignore_index(2).empty_mean(0.0);
        add(Box::new(classes.clone().reduction(r)), r, Kind::Classes);
        let smoothed = classes.clone().label_smoothing(0.1).keep_state(true);
        add(Box::new(smoothed.reduction(r)), r, Kind::Classes);
        // a small cap: its error is a few units in its last place (see the documentation)
        add(Box::new(classes.softcap(2.0).reduction(r)), r, Kind::Classes);
        add(Box::new(NllLoss::default().ignore_index(2).reduction(r)), r, Kind::Picked);
    }
    let r = Reduction::BatchMean;
    add(Box::new(KlDiv::default().reduction(r)), r, Kind::LogProbabilities);
    let r = Reduction::None;
    add(Box::new(Sigmoid), r, Kind::Map);
    add(Box::new(LogSigmoid), r, Kind::Map);
    for dim in [-1, 0, 1] {
        add(Box::new(Softmax::default().dim(dim)), r, Kind::RowMap);
        add(Box::new(LogSoftmax::default().dim(dim)), r, Kind::RowMap);
    }
    table
}

/// Logits from tiny to confident.
fn logits(random: &mut Random, count: usize) -> Vec<f32> {
    (0..count).map(|_| (random.normal() * random.pick(&[1e-3, 1.0, 10.0, 30.0])) as f32).collect()
}

/// Probabilities all over [0, 1], its ends and their neighbours among them.
fn probabilities(random: &mut Random, count: usize) -> Vec<f32> {
    let mut one = || match random.below(6) {
        0 => 0.0,
        1 => 1.0,
        2 => (random.uniform() * 1e-6) as f32,
        3 => (1.0 - random.uniform() * 1e-6) as f32,
        _ => random.uniform() as f32,
    };
    (0..count).map(|_| one()).collect()
}

/// An input and, where the op has one, a target.
fn draw(random: &mut Random, kind: Kind, shape: &[usize]) -> (Vec<f32>, Option<Vec<f32>>) {
    let n = shape.iter().product();
    let log = |values: Vec<f32>| values.into_iter().map(|v| v.max(1e-30).ln()).collect();
    match kind {
        Kind::Logits => (logits(random, n), Some(probabilities(random, n))),
        Kind::Numbers => {
            let target = logits(random, n);
            let near = |t: &f32| t + random.pick(&[0.0, 1e-3, 0.7, -0.75, 1.0, -9.0]);
            (target.iter().map(near).collect(), Some(target))
        }
        Kind::Scores => {
            let target = (0..n).map(|_| random.pick(&[1.0, -1.0])).collect();
            (logits(random, n), Some(target))
        }
        Kind::Probabilities => (probabilities(random, n), Some(probabilities(random, n))),
        Kind::LogProbabilities => (log(probabilities(random, n)), Some(probabilities(random, n))),
        Kind::LogTargets => (log(probabilities(random, n)), Some(log(probabilities(random, n)))),
        Kind::Map => (logits(random, n), None),
        Kind::Rows | Kind::Classes | Kind::Picked | Kind::RowMap => {
            let rows = random.pick(&Logits::ALL);
            let x = random.logits(rows, n / shape[shape.len() - 1], shape[shape.len() - 1]);
            (x, (kind == Kind::Rows).then(|| probabilities(random, n)))
        }
    }
}

/// Whether a result keeps the promise; `factor` is what upstream and divisor have put on it.
fn hold(what: &str, got: Option<Array<'_>>, want: Option<Values>, bound: Bound, factor: f64) {
    let (got, want) = (got.map(|a| a.to_f32()), want);
    match (got, want) {
        (Some(got), Some(want)) => {
            if let Err(mismatch) = compare(&got, &want, bound.scaled(factor)) {
                panic!("{what}: {mismatch}");
            }
        }
        (None, None) => {}
        _ => panic!("{what}: computed by one of kernel and reference"),
    }
}

#[test]
fn every_op_keeps_the_promise() {
    on_every_device(|gpu| {
        let mut random = Random::new(7);
        for Entry { op, reduction, kind } in table() {
            // contiguous fours, odd counts, several dimensions
            for shape in [&[7, 12][..], &[5, 9], &[2, 3, 4, 5]] {
                let (input, target) = draw(&mut random, kind, shape);
                let rows = [&shape[..1], &shape[2..]].concat();
                let classes = random.targets(rows.iter().product(), shape[1], 2, 0.1);
                let mut args = Args::new(Array::new(&input, shape).unwrap());
                if let Some(target) = &target {
                    args = args.target(Array::new(target, shape).unwrap());
                }
                if matches!(kind, Kind::Classes | Kind::Picked) {
                    args = args.target(Array::new(&classes, &rows).unwrap());
                }
                let weight = random.uniforms(shape[1], 0.5, 2.0);
                if matches!(kind, Kind::Rows | Kind::Classes | Kind::Picked) && random.chance(0.5) {
                    args = args.weight(Array::from(&weight));
                }
                let per_row = matches!(kind, Kind::Rows | Kind::Classes | Kind::Picked);
                let upstream_shape = match (reduction, per_row) {
                    (Reduction::None, true) => &rows[..],
                    (Reduction::None, false) => shape,
                    _ => &[],
                };
                let upstream = random.normals(upstream_shape.iter().product(), 1.0);
                let factor = upstream.iter().fold(0.0, |most, g| g.abs().max(most));

                for pass in [Pass::Forward, Pass::Backward, Pass::ForwardBackward] {
                    let mut args = args.clone();
                    if pass.has_grad() {
                        args = args.upstream(Array::new(&upstream, upstream_shape).unwrap());
                    }
                    let got = gpu.block_on(gpu.run(&*op, pass, &args)).unwrap();
                    let want = reference::run(&*op, pass, &args).unwrap();
                    let what = format!("{op:?} {pass:?} {shape:?}");
                    hold(&format!("{what} loss"), got.loss, want.loss, Bound::LOSS, 1.0);
                    let factor = f64::from(factor);
                    hold(&format!("{what} grad"), got.grad, want.grad, Bound::GRAD, factor);
                    let what = format!("{what} row outputs");
                    hold(&what, got.logsumexp, want.logsumexp, Bound::LOSS, 1.0);
                    hold(&what, got.argmax, want.argmax, Bound::LOSS, 1.0);
                    hold(&what, got.correct, want.correct, Bound::LOSS, 1.0);
                }
            }
        }
    });
}
