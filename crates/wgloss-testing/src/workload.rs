//! What is timed: ops with options, passes, storage types and shapes.

use anyhow::{Result, bail};
use wgloss::options::{Family, Numbers, Target};
use wgloss::reference::{self, compare};
use wgloss::{Args, Array, DType, Op, Output, Pass, Role};

use crate::ops;
use crate::random::Random;

/// The most elements of a workload: 4 GiB of f32, of which judging by the float64 reference takes a
/// multiple.
const MAX_ELEMENTS: usize = 1 << 30;

/// An op over one shape.
pub struct Workload {
    pub op: Box<dyn Op>,
    pub pass: Pass,
    pub dtype: DType,
    pub shape: Vec<usize>,
}

/// Whether an op works on rows of classes: its shapes are `[N, C]`.
pub fn has_rows(op: &str) -> bool {
    matches!(family(op), Some(Family::RowLoss | Family::RowMap))
}

/// What the sizes of an op's shapes are, where it is not indifferent to them.
pub fn sizes(op: &str) -> Option<&'static str> {
    match family(op)? {
        Family::RowLoss | Family::RowMap => Some("NxC"),
        Family::LinearLoss => Some("NxDxV"),
        Family::ElementLoss | Family::ElementMap => None,
    }
}

fn family(op: &str) -> Option<Family> {
    Some(ops::find(op)?.kind().family)
}

/// The shapes that an op is timed on where none is asked for.
pub fn shapes(op: &str) -> &'static [&'static [usize]] {
    match family(op) {
        Some(Family::LinearLoss) => &[&[32, 64, 10], &[1024, 64, 1000], &[512, 256, 32_000]],
        Some(Family::RowLoss | Family::RowMap) => &[
            &[32, 10],
            &[100_000, 10],
            &[8192, 128],
            &[4096, 1000],
            &[512, 32_000],
            &[64, 128_256],
        ],
        _ => &[&[1_000_000], &[20_000_000]],
    }
}

impl Workload {
    /// Arguments of one call, others for every seed: logits of deviation 3, targets at random.
    ///
    /// # Errors
    /// A shape of more than `MAX_ELEMENTS`.
    pub fn draw(&self, seed: u64) -> Result<Args<Array<'static>>> {
        let of = |sizes: &[usize]| {
            let count = sizes.iter().try_fold(1_usize, |count, &size| count.checked_mul(size));
            match count.filter(|&count| count <= MAX_ELEMENTS) {
                Some(count) => Ok(count),
                None => {
                    bail!("--shape: expected at most {MAX_ELEMENTS} elements, got {:?}", self.shape)
                }
            }
        };
        let mut random = Random::new(seed);
        if let Some([rows, dims, classes]) = self.linear() {
            of(&[rows, dims])?;
            of(&[classes, dims])?;
            let mut float = |deviation, shape: &[usize]| {
                let values = random.normals(shape.iter().product(), deviation);
                Array::from_vec(values, shape)?.to_dtype(self.dtype)
            };
            // logits of deviation 3
            let input = float(1.0, &[rows, dims])?;
            let projection = float(3.0 / (dims as f64).sqrt(), &[classes, dims])?;
            let target = (0..rows).map(|_| random.below(classes) as i32).collect();
            let args = Args::new(input).projection(projection);
            return Ok(args.target(Array::from_vec(target, &[rows])?));
        }
        let count = of(&self.shape)?;
        let (rows, classes) = match (self.op.kind().family.has_rows(), &self.shape[..]) {
            (true, [rows, classes]) => (*rows, *classes),
            _ => (count, 1),
        };
        let float = |values| Array::from_vec(values, &self.shape)?.to_dtype(self.dtype);
        let numbers = |random: &mut Random, numbers| match numbers {
            Numbers::Probabilities => random.uniforms(count, 0.0, 1.0),
            Numbers::LogProbabilities => random.uniforms(count, -12.0, 0.0),
            Numbers::Counts => (0..count).map(|_| random.below(10) as f32).collect(),
            Numbers::Signs => (0..count).map(|_| random.pick(&[1.0, -1.0])).collect(),
            _ => random.normals(count, 3.0),
        };
        let kind = self.op.kind();
        let args = Args::new(float(numbers(&mut random, kind.input))?);
        Ok(match kind.target {
            Some(Target::Classes | Target::ClassesOrProbabilities) => {
                let target = (0..rows).map(|_| random.below(classes) as i32).collect();
                args.target(Array::from_vec(target, &[rows])?)
            }
            Some(Target::Numbers(target, _)) => args.target(float(numbers(&mut random, target))?),
            Some(other) => bail!("{}: no workload has targets like {other:?}", self.op.name()),
            None if self.pass.has_grad() => args.upstream(float(random.normals(count, 1.0))?),
            None => args,
        })
    }

    /// N, D and V of a loss whose logits are a product.
    fn linear(&self) -> Option<[usize; 3]> {
        match (self.op.kind().family, &self.shape[..]) {
            (Family::LinearLoss, &[rows, dims, classes]) => Some([rows, dims, classes]),
            _ => None,
        }
    }

    /// The same with so few rows that the float64 reference, which takes three products of one thread's, is
    /// done in seconds; `None` where all may be judged.
    pub fn judged(&self) -> Option<Workload> {
        const MOST: usize = 1 << 28;
        let [rows, dims, classes] = self.linear()?;
        let judged = (MOST / dims.saturating_mul(classes)).clamp(1, rows.max(1));
        let shape = vec![judged, dims, classes];
        let fewer = Workload { op: self.op.clone(), pass: self.pass, dtype: self.dtype, shape };
        (judged < rows).then_some(fewer)
    }

    /// The worst error of a call's results in units of the error allowed; an error where one is
    /// larger.
    pub fn judge(&self, args: &Args<Array<'static>>, got: &Output<Array<'static>>) -> Result<f64> {
        let want = reference::run(&*self.op, self.pass, args)?;
        let elements = self.shape.iter().product::<usize>() as f64;
        let losses = match sizes(self.op.name()) {
            Some(_) => self.shape[0] as f64,
            None => elements,
        };
        let is_mean = want.get(Role::Loss).is_some_and(|loss| loss.shape.is_empty());
        // upstream gradients are normal: few of them exceed 5
        let scales = if is_mean { [1.0 / losses; 2] } else { [1.0, 5.0] };
        let mut worst = 0.0_f64;
        for (role, got) in got.iter() {
            let is_grad = matches!(role, Role::Grad | Role::GradProjection | Role::GradBias);
            let scale = scales[usize::from(is_grad)];
            let bound = self.op.promise(role).scaled(scale);
            if let Some(want) = want.get(role) {
                let bound = bound.stored_as(got.dtype());
                worst = worst.max(compare(&got.to_f32(), want, bound)?.units);
            }
        }
        Ok(worst)
    }

    /// Bytes of every argument that the pass reads, and of every result, each counted once: the least that
    /// has to be moved.
    pub fn bytes(&self, args: &Args<Array<'_>>, output: &Output<Array<'_>>) -> u64 {
        let reads_input = self.pass.has_loss() || self.op.kind().grad_reads_input;
        let read = args.iter().filter(|(role, _)| *role != Role::Input || reads_input);
        read.chain(output.iter()).map(|(_, array)| array.layout().bytes()).sum()
    }

    /// Multiplications, each with an addition, of the products of matrices that a call with these results takes, if
    /// it takes any: one for the logits, and one for each gradient of a factor.
    pub fn multiplications(&self, output: &Output<Array<'_>>) -> Option<f64> {
        let of_one: f64 = self.linear()?.iter().map(|&size| size as f64).product();
        let factors = [Role::Grad, Role::GradProjection];
        let gradients = factors.iter().filter(|&&role| output.get(role).is_some()).count();
        Some(of_one * (1 + gradients) as f64)
    }

    /// `cross_entropy forward_backward f32 [4096, 1000]`.
    pub fn name(&self) -> String {
        format!("{} {} {} {:?}", self.op.name(), self.pass.name(), self.dtype, self.shape)
    }
}
