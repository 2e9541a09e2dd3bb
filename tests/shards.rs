//! Shards of the classes, and of the batch: what they tell one another, and what comes of it.

use std::borrow::Cow;

use wgloss::{
    Args, Array, CrossEntropy, DType, Data, Error, Gpu, GpuOptions, LinearCrossEntropy, Op, Output,
    Pass, Reduction, Result, Role, ops, reference, shards,
};
use wgloss_testing::call::{PASSES, bits_of, read};
use wgloss_testing::compare::compare_part;
use wgloss_testing::devices::{gpu, on_every_device, open};
use wgloss_testing::random::{Logits, Random};

const NAN: f32 = f32::NAN;
const INF: f32 = f32::INFINITY;

type Results = Result<Output<Array<'static>>>;

fn on<'a>(gpu: &'a Gpu) -> impl Fn(&dyn Op, Pass, &Args<Array<'_>>) -> Results + 'a {
    |op, pass, args| gpu.block_on(gpu.run(op, pass, args))
}

#[cfg(feature = "cpu")]
fn on_cpu(op: &dyn Op, pass: Pass, args: &Args<Array<'_>>) -> Results {
    wgloss::Cpu::default().run(op, pass, args)
}

/// On every device, and on the CPU.
fn everywhere(mut test: impl FnMut(&dyn Fn(&dyn Op, Pass, &Args<Array<'_>>) -> Results)) {
    on_every_device(|gpu| test(&on(gpu)));
    #[cfg(feature = "cpu")]
    {
        println!("the CPU");
        test(&on_cpu);
    }
}

/// The reference, whose results keep their digits.
fn by_reference(op: &dyn Op, pass: Pass, args: &Args<Array<'_>>) -> Results {
    let output = reference::run(op, pass, args)?;
    let array = |(role, values): (Role, reference::Values)| {
        Ok((role, Array::from_data(Data::F64(Cow::Owned(values.values)), &values.shape)?))
    };
    output.into_iter().map(array).collect()
}

/// `shards::gather`, also of the reference's numbers.
fn gathered(parts: &[Array<'_>]) -> Result<Array<'static>> {
    if parts[0].dtype() != DType::F64 {
        return shards::gather(parts);
    }
    let (rows, parts) = (parts[0].shape()[0], parts.iter().map(Array::to_f64));
    let parts: Vec<Vec<f64>> = parts.collect();
    let words = |row| parts.iter().flat_map(move |part| part[8 * row..8 * row + 8].to_vec());
    let all: Vec<f64> = (0..rows).flat_map(words).collect();
    Array::from_data(Data::F64(Cow::Owned(all)), &[rows, parts.len(), 8])
}

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
    dtype: DType,
    /// Whether every two shards make one partial of theirs before all merge those.
    in_groups: bool,
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
        Whole {
            op,
            logits,
            target,
            weight: None,
            upstream,
            rows,
            classes,
            cuts: cuts.to_vec(),
            dtype: DType::F32,
            in_groups: false,
        }
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

    fn stored_as(self, dtype: DType) -> Self {
        Whole { dtype, ..self }
    }

    /// With other logits at some places: row, class, logit.
    fn with_logits(mut self, logits: impl IntoIterator<Item = (usize, usize, f32)>) -> Self {
        for (row, class, logit) in logits {
            self.logits[row * self.classes + class] = logit;
        }
        self
    }

    /// With other targets of some rows.
    fn with_targets(mut self, targets: &[(usize, i32)]) -> Self {
        if let Target::Classes(all) = &mut self.target {
            targets.iter().for_each(|&(row, class)| all[row] = class);
        }
        self
    }

    fn with_probability(mut self, row: usize, class: usize, t: f32) -> Self {
        if let Target::Probabilities(all) = &mut self.target {
            all[row * self.classes + class] = t;
        }
        self
    }

    /// Any options, and shards of any sizes, of one class too.
    fn any(random: &mut Random) -> Self {
        let kinds = [Logits::Normal, Logits::Confident, Logits::Ramp, Logits::Masked];
        let kind = random.pick(&kinds);
        let [rows, classes] = [1 + random.below(20), 2 + random.below(90)];
        let cuts: Vec<_> = (1..classes).filter(|_| random.chance(0.05)).collect();
        let mut whole = Whole::random(random.bits(), kind, [rows, classes], &cuts);
        if random.chance(0.5) {
            whole = whole.with_weights(random.bits());
        }
        if random.chance(0.3) {
            whole = whole.with_probabilities(random.bits());
        }
        let smoothing = random.pick(&[0.0, 0.0, 0.1, 1.0]);
        let z_loss = random.pick(&[0.0, 0.0, 0.01, -0.1]);
        let scale = random.pick(&[1.0, 1.0, 0.5, 2.0]);
        let softcap = random.pick(&[None, None, Some(30.0)]);
        let has_row_outputs = random.chance(0.5);
        let whole = whole.with_op(|op| {
            let op = op.label_smoothing(smoothing).z_loss(z_loss).logit_scale(scale);
            let op = op.row_outputs(has_row_outputs);
            match softcap {
                Some(softcap) => op.softcap(softcap),
                None => op,
            }
        });
        whole.with_reduction(random.pick(&[Reduction::None, Reduction::Sum, Reduction::Mean]))
    }

    /// First and last class of each shard.
    fn shards(&self) -> Vec<[usize; 2]> {
        let ends = self.cuts.iter().copied().chain([self.classes]);
        [0].into_iter().chain(self.cuts.iter().copied()).zip(ends).map(|(a, b)| [a, b]).collect()
    }

    fn columns(&self, matrix: &[f32], [first, end]: [usize; 2]) -> Array<'static> {
        let rows = matrix.chunks(self.classes).flat_map(|row| row[first..end].to_vec());
        let columns = Array::from_vec(rows.collect::<Vec<f32>>(), &[self.rows, end - first]);
        columns.unwrap().to_dtype(self.dtype).unwrap()
    }

    fn upstream(&self) -> Array<'_> {
        if self.upstream.len() == self.rows {
            return Array::from(&self.upstream).to_dtype(self.dtype).unwrap();
        }
        Array::scalar(self.upstream[0])
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
        let mut parts: Vec<_> = told.iter().map(|told| told.partial().unwrap().clone()).collect();
        if self.in_groups {
            let merged = parts.chunks(2).map(|group| {
                let args = self.args(shards[0]).partials(gathered(group)?);
                Ok(run(&op(shards[0]), Pass::Partials, &args)?.partial()?.clone())
            });
            parts = merged.collect::<Result<_>>()?;
        }
        let partials = gathered(&parts)?;
        let is_mean = self.op.options()[0].value.to_string() == "mean";
        let divisor = match self.target {
            Target::Classes(_) => {
                told.iter().map(|told| told.divisor().unwrap().to_f64()[0] as f32).sum()
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

    /// Holds what shards compute to what is promised of whole rows, or to a share of it.
    #[track_caller]
    fn hold(
        &self,
        name: &str,
        share: f64,
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
        // a mean over 0 is NaN, whatever is promised
        let divisor = if divisor == 0.0 { 1.0 } else { divisor };
        let upstream = self.upstream.iter().fold(0.0_f64, |max, v| max.max(f64::from(v.abs())));
        let check = |role: Role, got: &Array<'_>, scale: f64| {
            let promise = self.op.promise(role).scaled(scale).times(share);
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
            let grad = match of_all[0].grad().unwrap().dtype() {
                // the reference's is not stored
                DType::F64 => grad,
                dtype => grad.to_dtype(dtype).unwrap(),
            };
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

/// Rows of which shards know little, or nothing, or too much: all with row outputs.
fn edges() -> Vec<(&'static str, Whole)> {
    let normal = |seed| {
        let whole = Whole::random(seed, Logits::Normal, [37, 130], &[1, 40, 70]);
        whole.with_op(|op| op.row_outputs(true))
    };
    let masked = |rows: std::ops::Range<usize>, classes: std::ops::Range<usize>| {
        rows.flat_map(move |row| classes.clone().map(move |class| (row, class, -INF)))
    };
    vec![
        ("a shard is masked", normal(31).with_logits(masked(0..9, 40..70))),
        (
            "all but one class are masked",
            normal(32).with_logits(masked(0..9, 1..130)).with_targets(&[(0, 0), (1, 0), (2, 99)]),
        ),
        ("rows are masked", normal(33).with_logits(masked(3..5, 0..130))),
        ("NaN in a shard", normal(34).with_logits([(0, 0, NAN), (1, 45, NAN), (2, 129, NAN)])),
        ("+inf in a shard", normal(35).with_logits([(0, 0, INF), (1, 45, INF), (2, 129, INF)])),
        (
            "ties across shards",
            normal(36)
                .with_logits([(0, 0, 20.0), (0, 45, 20.0), (0, 46, 20.0), (0, 100, 20.0)])
                .with_logits([(1, 69, 20.0), (1, 70, 20.0), (2, 30, 20.0), (2, 129, 20.0)])
                .with_targets(&[(0, 45), (1, 69), (2, 129)]),
        ),
        (
            "targets at masked classes",
            normal(37).with_logits([(0, 0, -INF), (1, 45, -INF), (2, 129, -INF)]).with_targets(&[
                (0, 0),
                (1, 45),
                (2, 129),
            ]),
        ),
        (
            "masked classes with smoothing",
            normal(38).with_logits(masked(0..9, 40..70)).with_op(|op| op.label_smoothing(0.1)),
        ),
        (
            "masked classes with weights of both signs",
            normal(39)
                .with_weights(40)
                .with_logits(masked(0..9, 40..70))
                .with_op(|op| op.label_smoothing(0.1)),
        ),
        (
            "ignored rows of NaN",
            normal(41)
                .with_op(|op| op.row_outputs(false))
                .with_logits([(0, 0, NAN), (1, 45, NAN), (2, 129, NAN)])
                .with_targets(&[(0, -100), (1, -100), (2, -100)]),
        ),
        (
            "ignored rows with row outputs",
            normal(42).with_logits([(1, 45, NAN)]).with_targets(&[(0, -100), (1, -100)]),
        ),
        (
            "no row is kept",
            normal(43).with_targets(&std::array::from_fn::<_, 37, _>(|r| (r, -100))),
        ),
        (
            "far apart",
            normal(44).with_logits([(0, 0, 3e38), (0, 45, -3e38), (1, 45, 3e38), (2, 129, 1e30)]),
        ),
        (
            "a capped tie",
            normal(45)
                .with_op(|op| op.softcap(2.0))
                .with_logits([(0, 0, 500.0), (0, 45, 500.0), (0, 46, 500.0)])
                .with_targets(&[(0, 45)]),
        ),
        (
            "NaN probabilities",
            normal(46).with_probabilities(47).with_probability(3, 45, NAN).with_weights(48),
        ),
        ("16 bits", normal(49).stored_as(DType::F16).with_weights(50)),
        ("16 bits of probabilities", normal(51).with_probabilities(52).stored_as(DType::Bf16)),
    ]
}

#[test]
fn shards_compute_what_one_device_does() {
    for (name, whole) in calls() {
        everywhere(|run| whole.hold(name, 1.0, run));
    }
}

#[test]
fn the_edges_of_shards_are_those_of_one_device() {
    for (name, whole) in edges() {
        everywhere(|run| whole.hold(name, 1.0, run));
    }
}

#[test]
fn the_reference_of_shards_is_that_of_whole_rows() {
    for (name, whole) in calls().into_iter().chain(edges()) {
        whole.hold(name, 1e-4, by_reference);
    }
    let mut random = Random::new(60);
    for seed in 0..200 {
        Whole::any(&mut random).hold(&format!("random call {seed}"), 1e-4, by_reference);
    }
}

#[test]
fn random_shards() {
    let mut random = Random::new(61);
    let calls: Vec<_> = (0..12).map(|_| Whole::any(&mut random)).collect();
    everywhere(|run| {
        for (seed, whole) in calls.iter().enumerate() {
            whole.hold(&format!("random call {seed}"), 1.0, run);
        }
    });
}

#[test]
fn groups_of_shards_merge_theirs_first() {
    for (name, whole) in calls() {
        let whole = Whole { in_groups: true, ..whole };
        everywhere(|run| whole.hold(name, 1.0, run));
    }
}

/// Positions behind the classes, and gradients over the logits, on the device.
#[test]
fn shards_of_classes_that_lie_apart_in_place() {
    let [batch, classes, positions] = [5, 40, 3];
    let mut random = Random::new(60);
    let logits = random.normals(batch * classes * positions, 2.0);
    let target = random.targets(batch * positions, classes, -100, 0.1);
    let target = Array::from_vec(target, &[batch, positions]).unwrap();
    let op = CrossEntropy::default().reduction(Reduction::Sum).label_smoothing(0.1);
    let whole = Array::new(&logits, &[batch, classes, positions]).unwrap();
    let args = Args::new(whole).target(target.clone());
    let want = reference::run(&op, Pass::ForwardBackward, &args).unwrap();
    let parts = [[0, 13], [13, 40]];
    let columns = |[first, end]: [usize; 2]| -> Vec<f32> {
        let of_batch = logits.chunks(classes * positions);
        of_batch.flat_map(|of| of[first * positions..end * positions].to_vec()).collect()
    };
    on_every_device(|gpu| {
        let upload = |array: &Array<'_>| gpu.block_on(gpu.upload(array)).unwrap();
        let calls = parts.map(|[first, end]| {
            let input = Array::from_vec(columns([first, end]), &[batch, end - first, positions]);
            let args = Args::new(upload(&input.unwrap())).target(upload(&target));
            (op.clone().shard(first, classes), args)
        });
        let told = calls.each_ref().map(|(op, args)| {
            let told = gpu.block_on(gpu.run(op, Pass::Partials, args)).unwrap();
            gpu.block_on(gpu.read(told.partial().unwrap())).unwrap()
        });
        let partials = upload(&shards::gather(&told).unwrap());
        let mut grad = vec![0.0; logits.len()];
        for ((op, args), [first, end]) in calls.into_iter().zip(parts) {
            let args = args.partials(partials.clone()).in_place();
            let out = gpu.block_on(gpu.forward_backward(&op, &args)).unwrap();
            let out = read(gpu, &out);
            let loss = out.loss().unwrap();
            let judged =
                compare_part(Role::Loss, loss, want.loss().unwrap(), op.promise(Role::Loss));
            assert!(judged.is_ok(), "{judged:?}");
            let part = out.grad().unwrap().to_f32();
            for (n, part) in part.chunks((end - first) * positions).enumerate() {
                let start = (n * classes + first) * positions;
                grad[start..start + part.len()].copy_from_slice(part);
            }
        }
        let grad = Array::from_vec(grad, &[batch, classes, positions]).unwrap();
        let judged = compare_part(Role::Grad, &grad, want.grad().unwrap(), op.promise(Role::Grad));
        assert!(judged.is_ok(), "{judged:?}");
    });
}

#[test]
fn one_shard_has_the_bits_of_none() {
    for (name, whole) in calls().into_iter().chain(edges()) {
        let whole = Whole { cuts: vec![], ..whole };
        everywhere(|run| {
            let sharded = whole.run(run).unwrap();
            let of_passes = [&sharded.forward, &sharded.backward, &sharded.both];
            for (pass, of_shards) in PASSES.into_iter().zip(of_passes) {
                let mut args = whole.args([0, whole.classes]);
                if pass.has_grad() {
                    args = args.upstream(whole.upstream());
                }
                let want = run(&whole.op, pass, &args).unwrap();
                for (role, want) in want.iter() {
                    let got = of_shards[0].get(role).unwrap();
                    assert!(same(got, want), "{name}: {role} of {}", pass.name());
                }
            }
        });
    }
}

/// The same bits, but of NaN.
fn same(got: &Array<'_>, want: &Array<'_>) -> bool {
    let is_same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
    got.to_f32().iter().zip(&want.to_f32()).all(is_same)
}

#[test]
fn rows_in_two_calls_have_the_gradients_of_one() {
    let whole = Whole::random(70, Logits::Normal, [64, 33], &[]);
    let whole = whole.with_weights(71).with_reduction(Reduction::Mean);
    let Target::Classes(target) = &whole.target else { return };
    let weight = whole.weight.as_deref().unwrap();
    let args = |rows: std::ops::Range<usize>| {
        let logits = &whole.logits[rows.start * 33..rows.end * 33];
        Args::new(Array::new(logits, &[rows.len(), 33]).unwrap())
            .target(Array::from(&target[rows]))
            .weight(Array::from(weight))
    };
    everywhere(|run| {
        let one = run(&whole.op, Pass::ForwardBackward, &args(0..64)).unwrap();
        let parts = [0..20, 20..64];
        let told = parts.clone().map(|rows| {
            run(&whole.op, Pass::Partials, &args(rows)).unwrap().divisor().unwrap().clone()
        });
        let divisor = shards::sum(&told).unwrap();
        let of_parts = parts.map(|rows| {
            run(&whole.op, Pass::ForwardBackward, &args(rows).divisor(divisor.clone())).unwrap()
        });
        let grads = of_parts.each_ref().map(|part| bits_of(part.grad().unwrap()));
        assert_eq!(grads.concat(), bits_of(one.grad().unwrap()));
        let loss = |part: &Output<Array<'_>>| part.loss().unwrap().item().unwrap();
        let sum: f32 = of_parts.iter().map(loss).sum();
        assert!((sum - loss(&one)).abs() <= 2e-6 * loss(&one).abs(), "{sum}, {}", loss(&one));
    });
}

#[test]
fn a_divisor_of_0_leaves_no_mean() {
    for empty_mean in [None, Some(0.5)] {
        let whole = Whole::random(72, Logits::Normal, [9, 20], &[]).with_reduction(Reduction::Mean);
        let whole = whole.with_targets(&[(0, -100), (1, 3)]);
        let whole = whole.with_op(|op| op.empty_mean(empty_mean.unwrap_or(f64::NAN)));
        everywhere(|run| {
            let args = whole.args([0, 20]).divisor(Array::scalar(0.0_f32));
            let out = run(&whole.op, Pass::ForwardBackward, &args).unwrap();
            assert!(out.loss().unwrap().item().unwrap().is_nan());
            let grad = out.grad().unwrap().to_f32();
            assert!(
                grad[..20].iter().all(|g| *g == 0.0) && grad[20..40].iter().all(|g| g.is_nan())
            );
        });
    }
}

#[test]
fn rows_of_none_kept_count_for_the_mean_of_all() {
    let logits = Random::new(73).normals(20, 1.0);
    for (divisor, want) in [(0.0, 0.5), (4.0, 0.0)] {
        let op = CrossEntropy::default().empty_mean(0.5);
        let args = || {
            Args::new(Array::new(&logits, &[2, 10]).unwrap())
                .target(Array::from(&[-100, -100]))
                .divisor(Array::scalar::<f32>(divisor))
        };
        everywhere(|run| {
            let out = run(&op, Pass::Forward, &args()).unwrap();
            assert_eq!(out.loss().unwrap().item().unwrap(), want, "over {divisor}");
        });
    }
}

#[test]
fn a_target_in_no_shard() {
    let whole = Whole::random(74, Logits::Normal, [9, 50], &[20]).with_targets(&[(4, 50), (6, -1)]);
    let error = Error::Class { row: 4, class: 50, classes: 50 };
    everywhere(|run| assert_eq!(whole.run(run).err(), Some(error.clone())));
    on_every_device(|gpu| {
        // partials of targets that are known, so that the pass is asked for nothing else
        let partials = whole.shards().into_iter().map(|shard| {
            let op = whole.op.clone().shard(shard[0], 50);
            let args = gpu.block_on(gpu.upload_args(&whole.args(shard))).unwrap();
            let told = gpu.block_on(gpu.run(&op, Pass::Partials, &args)).unwrap();
            let found = gpu.block_on(gpu.check(told.status().unwrap()));
            assert_eq!(found, Err(error.clone()), "partials");
            gpu.block_on(gpu.read(told.partial().unwrap())).unwrap()
        });
        let partials = shards::gather(&partials.collect::<Vec<_>>()).unwrap();
        let hidden = Array::from_vec(vec![0.5_f32; 9 * 4], &[9, 4]).unwrap();
        let projection = Array::from_vec(vec![0.5_f32; 50 * 4], &[50, 4]).unwrap();
        let target = whole.args([0, 50]).get(Role::Target).unwrap().clone();
        let of_product = Args::new(hidden).projection(projection).target(target);
        let loss = whole.op.clone().shard(0, 50);
        let linear = LinearCrossEntropy::new(loss.clone());
        let of_partials = whole.args([0, 50]).partials(partials.clone());
        let calls: [(&dyn Op, _); 2] = [(&linear, of_product), (&loss, of_partials)];
        for (op, args) in calls {
            let args = gpu.block_on(gpu.upload_args(&args)).unwrap();
            let told = gpu.block_on(gpu.run(op, Pass::Partials, &args)).unwrap();
            let found = gpu.block_on(gpu.check(told.status().unwrap()));
            assert_eq!(found, Err(error.clone()), "{op:?}");
        }
        for shard in whole.shards() {
            let op = whole.op.clone().shard(shard[0], 50);
            let args = whole.args(shard).partials(partials.clone());
            let args = gpu.block_on(gpu.upload_args(&args)).unwrap();
            let out = gpu.block_on(gpu.run(&op, Pass::ForwardBackward, &args)).unwrap();
            let found = gpu.block_on(gpu.check(out.status().unwrap()));
            assert_eq!(found, Err(error.clone()));
            let loss = gpu.block_on(gpu.read(out.loss().unwrap())).unwrap().to_f32();
            let is_bad = |row: usize| row == 4 || row == 6;
            assert!((0..9).all(|row| loss[row].is_nan() == is_bad(row)), "{loss:?}");
            let grad = gpu.block_on(gpu.read(out.grad().unwrap())).unwrap().to_f32();
            let grads = grad.chunks(shard[1] - shard[0]);
            assert!(grads.enumerate().all(|(row, g)| g.iter().all(|g| g.is_nan() == is_bad(row))));
        }
    });
}

#[test]
fn two_devices_of_one_process() {
    let [Some(first), Some(second)] = [(); 2].map(|()| open(&GpuOptions::default())) else {
        return;
    };
    let whole = Whole::random(75, Logits::Confident, [64, 500], &[180]).with_weights(76);
    let whole = whole.with_reduction(Reduction::Mean).with_op(|op| op.row_outputs(true));
    let ops = whole.shards().into_iter().map(|[first, _]| whole.op.clone().shard(first, 500));
    let ops: Vec<_> = ops.collect();
    // both at once
    let run = |pass: Pass, args: Vec<Args<Array<'_>>>| -> Vec<Output<Array<'static>>> {
        std::thread::scope(|scope| {
            let each = [&first, &second].into_iter().zip(&ops).zip(&args);
            let threads = each.map(|((gpu, op), args)| scope.spawn(|| on(gpu)(op, pass, args)));
            let threads: Vec<_> = threads.collect();
            threads.into_iter().map(|thread| thread.join().unwrap().unwrap()).collect()
        })
    };
    let args = || whole.shards().into_iter().map(|shard| whole.args(shard));
    let told = run(Pass::Partials, args().collect());
    let all = |role| told.iter().map(|told| told.get(role).unwrap().clone()).collect::<Vec<_>>();
    let partials = shards::gather(&all(Role::Partial)).unwrap();
    let divisor = shards::sum(&all(Role::Divisor)).unwrap();
    let args = args().map(|args| args.partials(partials.clone()).divisor(divisor.clone()));
    let args = args.map(|args| args.upstream(whole.upstream()));
    let of_two = run(Pass::ForwardBackward, args.collect());
    // the same as one after the other on one of them, to the bit
    let of_one = whole.run(on(&first)).unwrap().both;
    for (two, one) in of_two.iter().zip(&of_one) {
        for (role, two) in two.iter() {
            assert_eq!(bits_of(two), bits_of(one.get(role).unwrap()), "{role}");
        }
    }
}

// ---- linear cross entropy ----

/// A call of it: N rows of D numbers, V classes.
struct Linear {
    op: LinearCrossEntropy,
    sizes: [usize; 3],
    dtype: DType,
    x: Vec<f32>,
    w: Vec<f32>,
    bias: Option<Vec<f32>>,
    target: Vec<i32>,
    cuts: Vec<usize>,
}

impl Linear {
    fn random(seed: u64, loss: CrossEntropy, sizes: [usize; 3], cuts: &[usize]) -> Self {
        let [n, d, v] = sizes;
        let mut random = Random::new(seed);
        Linear {
            op: LinearCrossEntropy::new(loss),
            sizes,
            dtype: DType::F32,
            x: random.normals(n * d, 1.0),
            w: random.normals(v * d, 0.5),
            bias: Some(random.normals(v, 1.0)),
            target: random.targets(n, v, -100, 0.1),
            cuts: cuts.to_vec(),
        }
    }

    fn args(&self, [first, end]: [usize; 2]) -> Args<Array<'_>> {
        let [n, d, _] = self.sizes;
        let stored = |numbers: &[f32], shape: &[usize]| {
            Array::new(numbers, shape).unwrap().to_dtype(self.dtype).unwrap()
        };
        let args = Args::new(stored(&self.x, &[n, d]))
            .projection(stored(&self.w[first * d..end * d], &[end - first, d]))
            .target(Array::from(&self.target));
        match &self.bias {
            Some(bias) => args.bias(Array::from(&bias[first..end])),
            None => args,
        }
    }

    /// Holds what shards compute to what is promised of all classes.
    fn hold(
        &self,
        name: &str,
        share: f64,
        run: impl Fn(&dyn Op, Pass, &Args<Array<'_>>) -> Results,
    ) {
        let [n, d, v] = self.sizes;
        let want = reference::run(&self.op, Pass::ForwardBackward, &self.args([0, v])).unwrap();
        let ends = self.cuts.iter().copied().chain([v]);
        let shards: Vec<_> = [0]
            .into_iter()
            .chain(self.cuts.iter().copied())
            .zip(ends)
            .map(|(a, b)| [a, b])
            .collect();
        let op = |first: usize| {
            let mut op = self.op.clone();
            for (name, number) in [("first_class", first), ("total_classes", v)] {
                op.set(name, wgloss::options::Value::Integer(number as i64)).unwrap();
            }
            op
        };
        let told =
            shards.iter().map(|&shard| run(&op(shard[0]), Pass::Partials, &self.args(shard)));
        let told = told.collect::<Result<Vec<_>>>().unwrap_or_else(|e| panic!("{name}: {e}"));
        let parts: Vec<_> = told.iter().map(|told| told.partial().unwrap().clone()).collect();
        let partials = gathered(&parts).unwrap();
        let divisor: f32 = told.iter().map(|told| told.divisor().unwrap().to_f64()[0] as f32).sum();
        let is_mean = self.op.options()[0].value.to_string() == "mean";
        let scale = if is_mean { 1.0 / f64::from(divisor) } else { 1.0 };
        let check = |role: Role, got: &Array<'_>, scale: f64| {
            let promise = self.op.promise(role).scaled(scale).times(share);
            if let Err(mismatch) = compare_part(role, got, want.get(role).unwrap(), promise) {
                panic!("{name}: {role}: {mismatch}");
            }
        };
        for pass in PASSES {
            let of_shard = |&shard: &[usize; 2]| {
                let mut args = self.args(shard).partials(partials.clone());
                if is_mean {
                    args = args.divisor(Array::scalar(divisor));
                }
                run(&op(shard[0]), pass, &args)
            };
            let of_shards = shards.iter().map(of_shard).collect::<Result<Vec<_>>>();
            let of_shards = of_shards.unwrap_or_else(|e| panic!("{name}: {e}"));
            for role in [Role::Loss, Role::LogSumExp, Role::Argmax, Role::Correct, Role::Entropy] {
                let Some(first) = of_shards[0].get(role) else { continue };
                check(role, first, if role == Role::Loss { scale } else { 1.0 });
                for other in &of_shards {
                    assert_eq!(bits_of(other.get(role).unwrap()), bits_of(first), "{name}: {role}");
                }
            }
            if !pass.has_grad() {
                continue;
            }
            // the parts of the input's gradient are summed by whoever has them all
            let parts: Vec<_> = of_shards.iter().map(|out| out.grad().unwrap().to_f64()).collect();
            let sum = (0..n * d).map(|i| parts.iter().map(|part| part[i]).sum::<f64>() as f32);
            let sum = Array::from_vec(sum.collect::<Vec<f32>>(), &[n, d]).unwrap();
            match self.dtype {
                DType::F32 => check(Role::Grad, &sum, scale),
                dtype => {
                    // each part is rounded by itself
                    let rounding =
                        if dtype == DType::F16 { 2_f64.powi(-11) } else { 2_f64.powi(-8) };
                    let want = want.grad().unwrap();
                    for (i, got) in sum.to_f64().into_iter().enumerate() {
                        let size: f64 = parts.iter().map(|part| part[i].abs() + 1e-4).sum();
                        let allowed = rounding * size + 1e-5 * want.magnitudes[i];
                        let error = (got - want.values[i]).abs();
                        assert!(error <= allowed, "{name}: {i}: {error} for {allowed}");
                    }
                }
            }
            let all = |role: Role, shape: &[usize]| {
                let parts = of_shards.iter().map(|out| out.get(role).unwrap().to_f32());
                Array::from_vec(parts.collect::<Vec<_>>().concat(), shape).unwrap()
            };
            check(Role::GradProjection, &all(Role::GradProjection, &[v, d]), scale);
            if self.bias.is_some() {
                check(Role::GradBias, &all(Role::GradBias, &[v]), scale);
            }
        }
    }
}

/// Calls of linear cross entropy.
fn linear_calls() -> Vec<(&'static str, Linear)> {
    let loss = CrossEntropy::default;
    let of = |seed, loss| Linear::random(seed, loss, [19, 12, 70], &[1, 30]);
    let several = Linear::random(84, loss().row_outputs(true), [50, 8, 300], &[140]);
    let one_row = 16 * 300_i64.div_euclid(4) + 6 * 16 * 2;
    vec![
        ("mean", of(80, loss())),
        ("sum", of(81, loss().reduction(Reduction::Sum).label_smoothing(0.1))),
        ("none", of(82, loss().reduction(Reduction::None).row_outputs(true).z_loss(0.01))),
        ("capped", of(83, loss().softcap(5.0).row_outputs(true))),
        (
            "several blocks",
            Linear { op: several.op.clone().workspace_bytes(7 * one_row), ..several },
        ),
        ("without a bias", Linear { bias: None, ..of(85, loss().logit_scale(0.5)) }),
    ]
}

#[test]
fn shards_of_linear_cross_entropy() {
    for (name, call) in linear_calls() {
        everywhere(|run| call.hold(name, 1.0, run));
    }
}

#[test]
fn the_reference_of_linear_shards_is_that_of_whole_rows() {
    for (name, call) in linear_calls() {
        call.hold(name, 1e-2, by_reference);
    }
}

#[test]
fn shards_of_linear_cross_entropy_in_16_bits() {
    for dtype in [DType::F16, DType::Bf16] {
        let call = Linear::random(86, CrossEntropy::default(), [19, 12, 70], &[30]);
        let call = Linear { dtype, ..call };
        everywhere(|run| call.hold("16 bits", 1.0, run));
    }
}

// ---- errors ----

/// A shard of the second half of ten classes, and what it is told.
fn half() -> (CrossEntropy, Args<Array<'static>>) {
    let zeros =
        |shape: &[usize]| Array::from_vec(vec![0.0_f32; shape.iter().product()], shape).unwrap();
    let args = Args::new(zeros(&[2, 5])).target(Array::from_vec(vec![0, 9], &[2]).unwrap());
    let args = args.partials(zeros(&[2, 2, 8])).divisor(Array::scalar(2.0_f32));
    (CrossEntropy::default().shard(5, 10), args)
}

#[track_caller]
fn refused(op: &dyn Op, pass: Pass, args: &Args<Array<'_>>, text: &str) {
    let error = op.outputs(pass, &args.layouts()).unwrap_err();
    assert_eq!(error.to_string(), text);
    assert_eq!(reference::run(op, pass, args).unwrap_err(), error);
    #[cfg(feature = "cpu")]
    assert_eq!(on_cpu(op, pass, args).unwrap_err(), error);
    if let Some(gpu) = gpu() {
        assert_eq!(on(&gpu)(op, pass, args).unwrap_err(), error);
    }
}

#[test]
fn shards_that_do_not_fit() {
    let (op, args) = half();
    assert!(op.outputs(Pass::Forward, &args.layouts()).is_ok());
    let text = "first_class: expected 0 to 5, since 5 of 10 classes are here, got 6";
    refused(&op.clone().shard(6, 10), Pass::Forward, &args, text);
    let text = "total_classes: expected 0, or 5 to 2147483647, since so many are here, got 4";
    refused(&op.clone().shard(0, 4), Pass::Forward, &args, text);
    let text = format!(
        "total_classes: expected 0, or 5 to 2147483647, since so many are here, got {}",
        1_u64 << 31
    );
    refused(&op.clone().shard(0, 1 << 31), Pass::Forward, &args, &text);
    let text = "first_class: expected 0 to 0, since 5 of 5 classes are here, got 1";
    refused(&op.shard(1, 0), Pass::Forward, &args, text);
}

#[test]
fn what_a_shard_is_told() {
    let (op, args) = half();
    let array =
        |shape: &[usize]| Array::from_vec(vec![0.0_f32; shape.iter().product()], shape).unwrap();
    for (shape, text) in [
        (vec![2, 2, 7], "partials: expected shape [2, 2, 8], got [2, 2, 7]"),
        (vec![3, 2, 8], "partials: expected shape [2, 2, 8], got [3, 2, 8]"),
        (vec![2, 0, 8], "partials: expected shape [2, 1, 8], got [2, 0, 8]"),
        (vec![16], "partials: expected shape [2, 1, 8], got [16]"),
    ] {
        refused(&op, Pass::Forward, &args.clone().partials(array(&shape)), text);
    }
    let text = "partials: expected storage type f32, got i32";
    let integers = Array::from_vec(vec![0; 32], &[2, 2, 8]).unwrap();
    refused(&op, Pass::Forward, &args.clone().partials(integers), text);
    let text = "divisor: expected storage type f32, got i32";
    refused(&op, Pass::Forward, &args.clone().divisor(Array::scalar(1)), text);
    let text = "divisor: expected shape [], got [2]";
    refused(&op, Pass::Forward, &args.clone().divisor(array(&[2])), text);
    let text = "state: expected none for cross_entropy.backward of partials, got one";
    refused(&op, Pass::Backward, &args.clone().state(array(&[2, 4])), text);
    let text = "keep_state: expected none for cross_entropy.forward of partials, got one";
    refused(&op.clone().keep_state(true), Pass::Forward, &args, text);
    let (_, all) = half();
    let bare = Args::new(all.input().clone()).target(all.get(Role::Target).unwrap().clone());
    let text = "divisor: expected none for cross_entropy.partials, got one";
    refused(&op, Pass::Partials, &bare.divisor(Array::scalar(1.0_f32)), text);
    let text = "divisor: expected none for cross_entropy.forward, got one";
    refused(&op.clone().reduction(Reduction::Sum), Pass::Forward, &args, text);
    let bare = Args::new(args.input().clone()).target(args.get(Role::Target).unwrap().clone());
    let text = "partials: expected for cross_entropy.forward of a shard, got none";
    refused(&op, Pass::Forward, &bare, text);
    let text = "divisor: expected for cross_entropy.forward of a shard, got none";
    refused(&op, Pass::Forward, &bare.partials(array(&[2, 2, 8])), text);
}

#[test]
fn only_losses_of_rows_have_shards() {
    let text = "pass: expected forward, backward or forward_backward of an op without shards, got \
                partials";
    let has_shards = |op: &dyn Op| op.name().ends_with("cross_entropy");
    for op in ops().into_iter().filter(|op| !has_shards(op.as_ref())) {
        let args = Args::new(Array::from_vec(vec![0.5_f32; 6], &[2, 3]).unwrap());
        refused(op.as_ref(), Pass::Partials, &args, text);
    }
}

#[test]
fn what_is_put_together() {
    let part = |rows: usize, first: f32| {
        let words = (0..8 * rows).map(|i| first + i as f32).collect::<Vec<f32>>();
        Array::from_vec(words, &[rows, 1, 8]).unwrap()
    };
    let gathered = shards::gather(&[part(2, 0.0), part(2, 100.0)]).unwrap();
    assert_eq!(gathered.shape(), [2, 2, 8]);
    let firsts: Vec<f32> = gathered.to_f32().chunks(8).map(|words| words[0]).collect();
    assert_eq!(firsts, [0.0, 100.0, 8.0, 108.0]);
    let again = shards::gather(&[gathered, part(2, 200.0)]).unwrap();
    let firsts: Vec<f32> = again.to_f32().chunks(8).map(|words| words[0]).collect();
    assert_eq!(firsts, [0.0, 100.0, 200.0, 8.0, 108.0, 208.0]);
    assert_eq!(shards::sum(&[2.0, 3.5].map(Array::scalar::<f32>)).unwrap().item(), Ok(5.5));

    let text = |result: Result<Array<'_>>| result.unwrap_err().to_string();
    assert_eq!(text(shards::gather(&[])), "partials: expected for shards::gather, got none");
    assert_eq!(text(shards::sum(&[])), "divisor: expected for shards::sum, got none");
    let other_rows = shards::gather(&[part(2, 0.0), part(3, 0.0)]);
    assert_eq!(text(other_rows), "partials: expected shape [2, 1, 8], got [3, 1, 8]");
    let integer = Array::scalar(1);
    assert_eq!(text(shards::sum(&[integer])), "divisor: expected storage type f32, got i32");
    let two = shards::sum(&[Array::from(&[1.0, 2.0_f32])]);
    assert_eq!(text(two), "divisor: expected shape [], got [2]");
}
