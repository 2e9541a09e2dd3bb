//! Random calls over whole rows, the shards that ranks have of them, and what is right.

use std::ops::Range;

use wgloss::reference::{self, Values};
use wgloss::{Args, Array, CrossEntropy, LinearCrossEntropy, Op, Output, Pass, Reduction, Role};
use wgloss_testing::compare::compare_part;
use wgloss_testing::random::{Logits, Random};

pub struct Case {
    pub op: Box<dyn Op>,
    pub rows: usize,
    pub classes: usize,
    /// Logits, or hidden states of `dims` numbers.
    input: Vec<f32>,
    pub dims: usize,
    projection: Option<Vec<f32>>,
    bias: Option<Vec<f32>>,
    target: Target,
    weight: Option<Vec<f32>>,
    upstream: Vec<f32>,
    /// The first class of every rank, and the end.
    pub cuts: Vec<usize>,
}

enum Target {
    Classes(Vec<i32>),
    Probabilities(Vec<f32>),
}

impl Case {
    /// The same on every rank.
    pub fn random(seed: u64, ranks: usize) -> Self {
        let mut random = Random::new(seed);
        let rows = 1 + random.below(12);
        let most = if random.chance(0.2) { 3000 } else { 90 };
        let classes = 2 + random.below(most);
        let kinds = [Logits::Normal, Logits::Confident, Logits::Ramp, Logits::Masked];
        let kind = random.pick(&kinds);
        let input = random.logits(kind, rows, classes);
        let is_class = random.chance(0.75);
        // probabilities have no class to mark rows by
        let target = match is_class {
            true => Target::Classes(random.targets(rows, classes, -100, 0.1)),
            false => Target::Probabilities(random.uniforms(rows * classes, -0.1, 1.0)),
        };
        let reduction = random.pick(&[Reduction::None, Reduction::Mean, Reduction::Sum]);
        let op = CrossEntropy::default()
            .reduction(reduction)
            .label_smoothing(random.pick(&[0.0, 0.0, 0.1, 1.0]))
            .z_loss(random.pick(&[0.0, 0.0, 0.01]))
            .logit_scale(random.pick(&[1.0, 1.0, 0.3]))
            .row_outputs(random.chance(0.3));
        let weight = random.chance(0.3).then(|| random.eighths(classes));
        let upstream = match reduction {
            Reduction::None => random.normals(rows, 1.0),
            _ => random.normals(1, 1.0),
        };
        let cuts = cuts(&mut random, classes, ranks);
        Case {
            op: Box::new(op),
            rows,
            classes,
            input,
            dims: 0,
            projection: None,
            bias: None,
            target,
            weight,
            upstream,
            cuts,
        }
    }

    /// Logits that are a product.
    pub fn product(seed: u64, ranks: usize) -> Self {
        let mut random = Random::new(seed);
        let (rows, dims) = (1 + random.below(40), 1 + random.below(24));
        let classes = 2 + random.below(150);
        let reduction = random.pick(&[Reduction::None, Reduction::Mean, Reduction::Sum]);
        let loss = CrossEntropy::default()
            .reduction(reduction)
            .label_smoothing(random.pick(&[0.0, 0.1]))
            .row_outputs(random.chance(0.3));
        let mut numbers = |count| random.uniforms(count, -1.0, 1.0);
        let (input, projection) = (numbers(rows * dims), numbers(classes * dims));
        let bias = numbers(classes);
        let count = if reduction == Reduction::None { rows } else { 1 };
        Case {
            op: Box::new(LinearCrossEntropy::new(loss)),
            rows,
            classes,
            input,
            dims,
            projection: Some(projection),
            bias: random.chance(0.5).then_some(bias),
            target: Target::Classes(random.targets(rows, classes, -100, 0.1)),
            weight: random.chance(0.3).then(|| random.eighths(classes)),
            upstream: random.normals(count, 1.0),
            cuts: cuts(&mut random, classes, ranks),
        }
    }

    pub fn shard(&self, rank: usize) -> Range<usize> {
        self.cuts[rank]..self.cuts[rank + 1]
    }

    fn columns(&self, matrix: &[f32], shard: Range<usize>) -> Array<'static> {
        let shape = [self.rows, shard.len()];
        let rows = matrix.chunks(self.classes).flat_map(|row| row[shard.clone()].to_vec());
        Array::from_vec(rows.collect::<Vec<f32>>(), &shape).unwrap()
    }

    /// What a pass takes, of some classes.
    pub fn args(&self, pass: Pass, shard: Range<usize>) -> Args<Array<'_>> {
        let args = match &self.projection {
            None => Args::new(self.columns(&self.input, shard.clone())),
            Some(projection) => {
                let rows = &projection[shard.start * self.dims..shard.end * self.dims];
                Args::new(Array::new(&self.input, &[self.rows, self.dims]).unwrap())
                    .projection(Array::new(rows, &[shard.len(), self.dims]).unwrap())
            }
        };
        let mut args = args.target(match &self.target {
            Target::Classes(target) => Array::from(target),
            Target::Probabilities(target) => self.columns(target, shard.clone()),
        });
        if let Some(bias) = &self.bias {
            args = args.bias(Array::from(&bias[shard.clone()]));
        }
        if let Some(weight) = &self.weight {
            args = args.weight(Array::from(&weight[shard]));
        }
        if !pass.has_grad() {
            return args;
        }
        let shape = if self.upstream.len() == self.rows && self.is_unreduced() {
            vec![self.rows]
        } else {
            vec![]
        };
        args.upstream(Array::new(&self.upstream, &shape).unwrap())
    }

    fn reduction(&self) -> String {
        let options = self.op.options();
        options.iter().find(|info| info.name == "reduction").unwrap().value.to_string()
    }

    fn is_unreduced(&self) -> bool {
        self.reduction() == "none"
    }

    fn divisor(&self) -> f64 {
        match (&self.target, &self.weight) {
            _ if self.reduction() != "mean" => 1.0,
            (Target::Probabilities(_), _) => self.rows as f64,
            (Target::Classes(target), weight) => {
                let weight = |y: usize| weight.as_ref().map_or(1.0, |w| f64::from(w[y]));
                target.iter().filter(|&&y| y >= 0).map(|&y| weight(y as usize)).sum()
            }
        }
    }

    /// The definition over whole rows, once for all that is held to it.
    pub fn whole(&self) -> Output<Values> {
        let args = self.args(Pass::ForwardBackward, 0..self.classes);
        reference::run(&*self.op, Pass::ForwardBackward, &args).unwrap()
    }

    /// Holds what a rank has computed to what is promised of whole rows.
    #[track_caller]
    pub fn hold(&self, name: &str, whole: &Output<Values>, rank: usize, got: &Output<Array<'_>>) {
        let shard = self.shard(rank);
        let upstream = self.upstream.iter().fold(0.0_f64, |max, v| max.max(f64::from(v.abs())));
        for (role, array) in got.iter() {
            let want = whole.get(role).unwrap();
            let want = match role {
                Role::Grad if self.dims == 0 => columns(want, self.classes, shard.clone()),
                Role::GradProjection => rows(want, self.dims, shard.clone()),
                Role::GradBias => rows(want, 1, shard.clone()),
                _ => want.clone(),
            };
            // of no row the mean is NaN, and gradients are 0
            let divisor = if self.divisor() == 0.0 { 1.0 } else { self.divisor() };
            let scale = match role {
                Role::Loss => 1.0 / divisor,
                Role::Grad | Role::GradProjection | Role::GradBias => upstream / divisor,
                _ => 1.0,
            };
            let promise = self.op.promise(role).scaled(scale);
            assert_eq!(array.shape(), want.shape, "{name}: {role}");
            if let Err(mismatch) = compare_part(role, array, &want, promise) {
                panic!(
                    "{name}, rank {rank}: {role}: {mismatch}, {:?}, cuts {:?}",
                    self.op, self.cuts
                );
            }
        }
    }
}

/// Uneven shards: some of one class, some of none, some of all.
fn cuts(random: &mut Random, classes: usize, ranks: usize) -> Vec<usize> {
    let mut cuts: Vec<_> = (1..ranks).map(|_| random.below(classes + 1)).collect();
    if random.chance(0.3) {
        for cut in &mut cuts {
            *cut = random.pick(&[0, 1, classes / 2, classes / 2 + 1, classes]);
        }
    }
    cuts.sort_unstable();
    [vec![0], cuts, vec![classes]].concat()
}

fn columns(values: &Values, classes: usize, shard: Range<usize>) -> Values {
    let of = |numbers: &[f64]| -> Vec<f64> {
        numbers.chunks(classes).flat_map(|row| row[shard.clone()].to_vec()).collect()
    };
    Values {
        shape: vec![values.shape[0], shard.len()],
        values: of(&values.values),
        magnitudes: of(&values.magnitudes),
    }
}

fn rows(values: &Values, dims: usize, shard: Range<usize>) -> Values {
    let range = shard.start * dims..shard.end * dims;
    Values {
        shape: [vec![shard.len()], values.shape[1..].to_vec()].concat(),
        values: values.values[range.clone()].to_vec(),
        magnitudes: values.magnitudes[range].to_vec(),
    }
}
