//! Shards of the classes, and of the batch: what they tell one another, and what comes of it.

use wgloss::reference;
use wgloss::{Args, Array, CrossEntropy, Op, Output, Pass, Reduction, Result, Role};
use wgloss_testing::call::bits_of;
use wgloss_testing::compare::compare_part;
use wgloss_testing::devices::on_every_device;
use wgloss_testing::random::{Logits, Random};

/// Rows of classes that are divided into shards.
struct Whole {
    op: CrossEntropy,
    logits: Vec<f32>,
    target: Target,
    weight: Option<Vec<f32>>,
    upstream: Vec<f32>,
    rows: usize,
    classes: usize,
    /// The first class of every shard but the first.
    cuts: Vec<usize>,
}

enum Target {
    Classes(Vec<i32>),
    Probabilities(Vec<f32>),
}

/// What every shard computes, and the partials of all.
struct Sharded {
    forward: Vec<Output<Array<'static>>>,
    backward: Vec<Output<Array<'static>>>,
    both: Vec<Output<Array<'static>>>,
}

impl Whole {
    fn random(seed: u64, kind: Logits, [rows, classes]: [usize; 2], cuts: &[usize]) -> Self {
        let mut random = Random::new(seed);
        let logits = random.logits(kind, rows, classes);
        let target = Target::Classes(random.targets(rows, classes, -100, 0.1));
        let upstream = random.normals(rows, 1.0);
        let op = CrossEntropy::default().reduction(Reduction::None);
        Whole { op, logits, target, weight: None, upstream, rows, classes, cuts: cuts.to_vec() }
    }

    fn with_op(self, op: impl FnOnce(CrossEntropy) -> CrossEntropy) -> Self {
        Whole { op: op(self.op), ..self }
    }

    fn with_reduction(mut self, reduction: Reduction) -> Self {
        if reduction != Reduction::None {
            self.upstream.truncate(1);
        }
        self.with_op(|op| op.reduction(reduction))
    }

    fn with_weights(mut self, seed: u64) -> Self {
        self.weight = Some(Random::new(seed).eighths(self.classes));
        self
    }

    fn with_probabilities(mut self, seed: u64) -> Self {
        let target = Random::new(seed).uniforms(self.rows * self.classes, -0.1, 1.0);
        self.target = Target::Probabilities(target);
        self
    }

    /// First and last class of each shard.
    fn shards(&self) -> Vec<[usize; 2]> {
        let ends = self.cuts.iter().copied().chain([self.classes]);
        [0].into_iter().chain(self.cuts.iter().copied()).zip(ends).map(|(a, b)| [a, b]).collect()
    }

    fn columns(&self, matrix: &[f32], [first, end]: [usize; 2]) -> Array<'static> {
        let rows = matrix.chunks(self.classes).flat_map(|row| row[first..end].to_vec());
        Array::from_vec(rows.collect::<Vec<f32>>(), &[self.rows, end - first]).unwrap()
    }

    fn upstream(&self) -> Array<'_> {
        let shape = if self.upstream.len() == self.rows { vec![self.rows] } else { vec![] };
        Array::new(&self.upstream, &shape).unwrap()
    }

    /// The arguments of the classes of one shard, without an upstream gradient.
    fn args(&self, shard: [usize; 2]) -> Args<Array<'_>> {
        let args = Args::new(self.columns(&self.logits, shard)).target(match &self.target {
            Target::Classes(target) => Array::from(target),
            Target::Probabilities(target) => self.columns(target, shard),
        });
        match &self.weight {
            Some(weight) => args.weight(Array::from(&weight[shard[0]..shard[1]])),
            None => args,
        }
    }

    /// All passes in every shard, by way of partials.
    fn run(
        &self,
        run: impl Fn(&dyn Op, Pass, &Args<Array<'_>>) -> Result<Output<Array<'static>>>,
    ) -> Result<Sharded> {
        let shards = self.shards();
        let op = |[first, _]: [usize; 2]| self.op.clone().shard(first, self.classes);
        let told = shards
            .iter()
            .map(|&shard| run(&op(shard), Pass::Partials, &self.args(shard)))
            .collect::<Result<Vec<_>>>()?;
        // [rows, shards, 8]
        let parts: Vec<_> = told.iter().map(|told| told.partial().unwrap().to_f32()).collect();
        let rows = (0..self.rows)
            .flat_map(|row| parts.iter().flat_map(move |part| part[8 * row..8 * row + 8].to_vec()));
        let shape = [self.rows, shards.len(), 8];
        let partials = Array::from_vec(rows.collect::<Vec<f32>>(), &shape).unwrap();
        let is_mean = self.op.options()[0].value.to_string() == "mean";
        let divisor = match self.target {
            Target::Classes(_) => {
                told.iter().map(|told| told.divisor().unwrap().item().unwrap()).sum()
            }
            Target::Probabilities(_) => self.rows as f32,
        };
        let pass = |pass: Pass| {
            let of_shard = |&shard: &[usize; 2]| {
                let mut args = self.args(shard).partials(partials.clone());
                if is_mean {
                    args = args.divisor(Array::scalar(divisor));
                }
                if pass.has_grad() {
                    args = args.upstream(self.upstream());
                }
                run(&op(shard), pass, &args)
            };
            shards.iter().map(of_shard).collect::<Result<Vec<_>>>()
        };
        Ok(Sharded {
            forward: pass(Pass::Forward)?,
            backward: pass(Pass::Backward)?,
            both: pass(Pass::ForwardBackward)?,
        })
    }

    /// Holds what shards compute to what is promised of whole rows.
    #[track_caller]
    fn hold(
        &self,
        name: &str,
        run: impl Fn(&dyn Op, Pass, &Args<Array<'_>>) -> Result<Output<Array<'static>>>,
    ) {
        let sharded = self.run(run).unwrap_or_else(|error| panic!("{name}: {error}"));
        let args = self.args([0, self.classes]).upstream(self.upstream());
        let want = reference::run(&self.op, Pass::ForwardBackward, &args).unwrap();
        let divisor = match (&self.target, &self.weight) {
            _ if self.op.options()[0].value.to_string() != "mean" => 1.0,
            (Target::Probabilities(_), _) => self.rows as f64,
            (Target::Classes(target), weight) => {
                let weight = |y: usize| weight.as_ref().map_or(1.0, |w| f64::from(w[y]));
                target.iter().filter(|&&y| y >= 0).map(|&y| weight(y as usize)).sum()
            }
        };
        let upstream = self.upstream.iter().fold(0.0_f64, |max, v| max.max(f64::from(v.abs())));
        let check = |role: Role, got: &Array<'_>, scale: f64| {
            let promise = self.op.promise(role).scaled(scale);
            if let Err(mismatch) = compare_part(role, got, want.get(role).unwrap(), promise) {
                panic!("{name}: {role}: {mismatch}");
            }
        };
        for of_all in [&sharded.forward, &sharded.both] {
            for role in [Role::Loss, Role::LogSumExp, Role::Argmax, Role::Correct, Role::Entropy] {
                let Some(first) = of_all[0].get(role) else { continue };
                check(role, first, if role == Role::Loss { 1.0 / divisor } else { 1.0 });
                for other in of_all {
                    let other = other.get(role).unwrap();
                    assert_eq!(bits_of(other), bits_of(first), "{name}: {role} of every shard");
                }
            }
        }
        for of_all in [&sharded.backward, &sharded.both] {
            let parts: Vec<_> = of_all.iter().map(|part| part.grad().unwrap().to_f32()).collect();
            let row = |row: usize| {
                self.shards().into_iter().zip(&parts).flat_map(move |([first, end], part)| {
                    let classes = end - first;
                    part[row * classes..(row + 1) * classes].to_vec()
                })
            };
            let grad: Vec<f32> = (0..self.rows).flat_map(row).collect();
            let grad = Array::from_vec(grad, &[self.rows, self.classes]).unwrap();
            check(Role::Grad, &grad, upstream / divisor);
        }
    }
}

/// Calls of every kind, with shards that are even, uneven, and of one class.
fn calls() -> Vec<(&'static str, Whole)> {
    let of = |kind, seed| Whole::random(seed, kind, [37, 130], &[1, 40, 70]);
    let normal = |seed| of(Logits::Normal, seed);
    vec![
        ("plain", normal(1)),
        ("two of long rows", Whole::random(2, Logits::Normal, [3, 70_001], &[40_000])),
        ("one", Whole::random(3, Logits::Normal, [9, 33], &[])),
        ("confident", of(Logits::Confident, 4).with_op(|op| op.row_outputs(true))),
        ("ramps", of(Logits::Ramp, 5).with_reduction(Reduction::Sum)),
        ("masked", of(Logits::Masked, 6).with_op(|op| op.row_outputs(true))),
        ("mean", normal(7).with_reduction(Reduction::Mean)),
        ("weighted", normal(8).with_weights(9).with_reduction(Reduction::Mean)),
        ("smoothed", normal(10).with_weights(11).with_op(|op| op.label_smoothing(0.1))),
        ("only smoothed", of(Logits::Confident, 12).with_op(|op| op.label_smoothing(1.0))),
        ("z-loss", of(Logits::Confident, 13).with_op(|op| op.z_loss(0.01))),
        ("scaled", normal(14).with_op(|op| op.logit_scale(0.3).row_outputs(true))),
        ("capped", normal(15).with_op(|op| op.softcap(5.0).row_outputs(true))),
        ("probabilities", normal(16).with_probabilities(17).with_reduction(Reduction::Mean)),
        (
            "weighted probabilities",
            normal(18).with_probabilities(19).with_weights(20).with_op(|op| op.row_outputs(true)),
        ),
    ]
}

#[test]
fn shards_compute_what_one_device_does() {
    for (name, whole) in calls() {
        on_every_device(|gpu| {
            whole.hold(name, |op, pass, args| gpu.block_on(gpu.run(op, pass, args)));
        });
    }
}
