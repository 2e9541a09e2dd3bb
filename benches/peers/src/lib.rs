//! What every program here shares: the inputs, the float64 results that theirs are held to, the
//! clock, and the lines that they read and write.
//!
//! A program reads requests from its standard input, `OP SHAPE ROUNDS [CALLS]` such as
//! `cross_entropy 4096x1000 21`, and answers each with a line of JSON. So `run.py` keeps all
//! programs running and gives them turns.

use std::error::Error;
use std::io::{BufRead, Write};
use std::time::Instant;

use ndarray::{ArrayView2, Axis};
use serde_json::{Value, json};

#[cfg(any(feature = "burn-spirv", feature = "burn-wgsl"))]
pub mod burn;

pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A program under test, on one device.
pub trait Peer {
    /// Inputs on the device: so many copies of a workload's, each in memory of its own.
    type Inputs;
    /// Loss and gradient on the device.
    type Output;

    /// What is measured, which version of it, and where it computes.
    fn describe(&self) -> [String; 3];

    /// Brings `copies` copies of the inputs to the device, and waits until they are there.
    fn upload(&mut self, data: &Data, copies: usize) -> Result<Self::Inputs>;

    /// Computes the mean loss and the gradients of one copy: all that is timed, together with [`Peer::wait`]. Need not wait for the device.
    fn run(&mut self, inputs: &mut Self::Inputs, copy: usize) -> Result<Self::Output>;

    /// Waits until everything that was run is complete.
    fn wait(&mut self) -> Result<()>;

    /// Bytes that calls take on a device with memory of its own, which this process's does not show.
    fn on_device(&self, _inputs: &Self::Inputs) -> Option<u64> {
        None
    }

    /// What was computed: the loss, the gradient of the input, and that of a classifier.
    fn read(&mut self, inputs: &mut Self::Inputs, output: Self::Output) -> Result<Results>;
}

/// The loss, and gradients.
pub type Results = (f32, Vec<Vec<f32>>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    CrossEntropy,
    BceWithLogits,
    /// Cross entropy of hidden states times a classifier.
    LinearCrossEntropy,
}

impl Op {
    const ALL: [(&'static str, Op); 3] = [
        ("cross_entropy", Op::CrossEntropy),
        ("bce_with_logits", Op::BceWithLogits),
        ("linear_cross_entropy", Op::LinearCrossEntropy),
    ];

    fn name(self) -> &'static str {
        Op::ALL.into_iter().find(|(_, op)| *op == self).map_or("", |(name, _)| name)
    }
}

/// A workload's inputs.
pub struct Data {
    pub op: Op,
    /// `[rows, classes]`, `[elements]`, or `[rows, numbers of a hidden state, classes]`.
    pub shape: Vec<usize>,
    /// Multiples of 2^-21 in [-4, 4), exact in f32.
    pub input: Vec<f32>,
    /// The classifier, multiples of 2^-25 in [-0.25, 0.25); empty for other losses.
    pub projection: Vec<f32>,
    /// A class a row, or 0 or 1 an element.
    pub target: Vec<u32>,
}

/// What is to come of them.
struct Expected {
    loss: f64,
    /// Of the input, and of the classifier.
    grads: Vec<Vec<f64>>,
}

/// What may be wrong of a loss, relative to it, and of a gradient, relative to the largest one, for
/// a result to count as right. Fifty times what wgloss promises: room for another order of
/// summation, not for another result.
const ALLOWED: f64 = 1e-4;

/// All copies of the inputs together are larger than this, or there are `COPIES` of them.
const FOOTPRINT: usize = 512 << 20;
const COPIES: usize = 32;

/// The number `index` of a splitmix64 sequence (Steele, Lea and Flood, 2014).
fn random(seed: u64, index: u64) -> u64 {
    let z = seed.wrapping_add((index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Data {
    fn new(op: Op, shape: &[usize]) -> Data {
        let is_linear = op == Op::LinearCrossEntropy;
        let count = if is_linear { shape[0] * shape[1] } else { shape.iter().product() };
        let logit = |i| (random(1, i) >> 40) as f32 * 2_f32.powi(-21) - 4.0;
        let input: Vec<f32> = (0..count as u64).map(logit).collect();
        let target: Vec<u32> = match op {
            Op::CrossEntropy | Op::LinearCrossEntropy => {
                let classes = shape[shape.len() - 1] as u64;
                let class = |i| ((random(2, i) >> 33) % classes) as u32;
                (0..shape[0] as u64).map(class).collect()
            }
            Op::BceWithLogits => (0..count as u64).map(|i| (random(2, i) >> 63) as u32).collect(),
        };
        let weight = |i| (random(3, i) >> 40) as f32 * 2_f32.powi(-25) - 0.25;
        let count = if is_linear { shape[1] * shape[2] } else { 0 };
        let projection: Vec<f32> = (0..count as u64).map(weight).collect();
        Data { op, shape: shape.to_vec(), input, projection, target }
    }

    /// The shape of the input.
    pub fn input_shape(&self) -> &[usize] {
        if self.op == Op::LinearCrossEntropy { &self.shape[..2] } else { &self.shape }
    }

    /// The shape of the classifier, `[classes, numbers of a hidden state]`.
    pub fn projection_shape(&self) -> [usize; 2] {
        [self.shape[2], self.shape[1]]
    }

    /// Bytes of one copy of the inputs.
    fn bytes(&self) -> usize {
        size_of::<f32>() * (self.input.len() + self.projection.len() + self.target.len())
    }

    /// The target as element-wise losses take it.
    pub fn target_as_f32(&self) -> Vec<f32> {
        self.target.iter().map(|&t| t as f32).collect()
    }

    /// Products read and write more than caches hold in every call.
    fn copies(&self) -> usize {
        if self.op == Op::LinearCrossEntropy {
            return 2;
        }
        FOOTPRINT.div_ceil(self.bytes()).clamp(2, COPIES)
    }

    /// In float64.
    fn expected(&self) -> Expected {
        let (loss, grads) = match self.op {
            Op::CrossEntropy => cross_entropy(&self.input, &self.target),
            Op::BceWithLogits => bce_with_logits(&self.input, &self.target),
            Op::LinearCrossEntropy => {
                linear_cross_entropy(&self.input, &self.projection, &self.target)
            }
        };
        Expected { loss, grads }
    }
}

impl Expected {
    /// The error of a loss relative to it, and the largest of a gradient relative to the largest
    /// gradient of its kind. NaN and infinities are infinite errors.
    fn errors(&self, loss: f32, grads: &[Vec<f32>]) -> Result<[f64; 2]> {
        let counts = |grads: Vec<usize>| format!("{grads:?}");
        let got = counts(grads.iter().map(Vec::len).collect());
        let want = counts(self.grads.iter().map(Vec::len).collect());
        if got != want {
            return Err(format!("{got} gradients of {want}").into());
        }
        let error = |got: f32, want: f64| match got.is_finite() {
            true => (f64::from(got) - want).abs(),
            false => f64::INFINITY,
        };
        let of_grads = grads.iter().zip(&self.grads).map(|(got, want)| {
            let largest = want.iter().fold(0.0_f64, |most, g| most.max(g.abs()));
            let pairs = got.iter().zip(want);
            pairs.fold(0.0_f64, |most, (&g, &w)| most.max(error(g, w))) / largest
        });
        Ok([error(loss, self.loss) / self.loss, of_grads.fold(0.0, f64::max)])
    }
}

/// By blocks of rows, whose logits become their gradient.
fn linear_cross_entropy(input: &[f32], projection: &[f32], target: &[u32]) -> (f64, Vec<Vec<f64>>) {
    const ROWS: usize = 64;
    let rows = target.len();
    let dims = input.len() / rows;
    let wide = |numbers: &[f32]| -> Vec<f64> { numbers.iter().map(|&x| x.into()).collect() };
    let (input, projection) = (wide(input), wide(projection));
    let matrix = |numbers| {
        let count = <[f64]>::len(numbers) / dims;
        ArrayView2::from_shape((count, dims), numbers).expect("whole rows")
    };
    let (input, projection) = (matrix(&input), matrix(&projection));
    let mut loss = 0.0;
    let mut of_input = Vec::with_capacity(input.len());
    let mut of_projection = ndarray::Array2::<f64>::zeros(projection.dim());
    for (input, target) in input.axis_chunks_iter(Axis(0), ROWS).zip(target.chunks(ROWS)) {
        let mut logits = input.dot(&projection.t());
        for (mut row, &target) in logits.rows_mut().into_iter().zip(target) {
            let m = row.fold(f64::MIN, |most, x| most.max(*x));
            let at_target = row[target as usize];
            row.mapv_inplace(|x| (x - m).exp());
            let sum = row.sum();
            loss += sum.ln() + m - at_target;
            row /= sum * rows as f64;
            row[target as usize] -= 1.0 / rows as f64;
        }
        of_input.extend(logits.dot(&projection));
        ndarray::linalg::general_mat_mul(1.0, &logits.t(), &input, 1.0, &mut of_projection);
    }
    (loss / rows as f64, vec![of_input, of_projection.into_raw_vec_and_offset().0])
}

fn cross_entropy(input: &[f32], target: &[u32]) -> (f64, Vec<Vec<f64>>) {
    let rows = target.len();
    let (mut loss, mut grad) = (0.0, Vec::with_capacity(input.len()));
    for (row, &target) in input.chunks(input.len() / rows).zip(target) {
        let first = grad.len();
        // logits are below 4: no maximum is needed
        grad.extend(row.iter().map(|&x| f64::from(x).exp()));
        let row_grad = &mut grad[first..];
        let sum: f64 = row_grad.iter().sum();
        loss += sum.ln() - f64::from(row[target as usize]);
        row_grad.iter_mut().for_each(|g| *g /= sum * rows as f64);
        row_grad[target as usize] -= 1.0 / rows as f64;
    }
    (loss / rows as f64, vec![grad])
}

fn bce_with_logits(input: &[f32], target: &[u32]) -> (f64, Vec<Vec<f64>>) {
    let count = input.len() as f64;
    let (mut loss, mut grad) = (0.0, Vec::with_capacity(input.len()));
    for (&x, &y) in input.iter().zip(target) {
        let (x, y) = (f64::from(x), f64::from(y));
        loss += x.exp().ln_1p() - x * y;
        grad.push((1.0 / (1.0 + (-x).exp()) - y) / count);
    }
    (loss / count, vec![grad])
}

struct Request {
    op: Op,
    shape: Vec<usize>,
    rounds: usize,
    /// How many calls are timed together, and waited for once.
    calls: usize,
}

fn parse(line: &str) -> Option<Request> {
    let mut words = line.split_whitespace();
    let name = words.next()?;
    let (_, op) = Op::ALL.into_iter().find(|(of_op, _)| *of_op == name)?;
    let sizes = words.next()?.split('x').map(|size| size.parse().ok().filter(|&size| size > 0));
    let shape = sizes.collect::<Option<Vec<usize>>>()?;
    let rounds = words.next()?.parse().ok()?;
    let calls = words.next().map_or(Some(1), |word| word.parse().ok())?;
    let dimensions = match op {
        Op::BceWithLogits => 1,
        Op::CrossEntropy => 2,
        Op::LinearCrossEntropy => 3,
    };
    let is_right = shape.len() == dimensions && rounds > 0 && calls > 0;
    is_right.then_some(Request { op, shape, rounds, calls })
}

/// A workload at hand.
struct Current<I> {
    data: Data,
    expected: Expected,
    inputs: I,
    /// Which copy is next.
    next: usize,
    memory_mib: Option<f64>,
}

/// Answers requests until there are no more.
pub fn serve<P: Peer>(mut peer: P) -> Result<()> {
    let mut current: Option<Current<P::Inputs>> = None;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let request = parse(&line).ok_or_else(|| format!("{line:?}: OP SHAPE ROUNDS [CALLS]"))?;
        let is_same = |data: &Data| (data.op, &data.shape[..]) == (request.op, &request.shape[..]);
        if !current.as_ref().is_some_and(|current| is_same(&current.data)) {
            // the memory of the last one first
            drop(current.take());
            let data = Data::new(request.op, &request.shape);
            let copies = data.copies();
            if request.op == Op::LinearCrossEntropy {
                // a small one first, so that code and threads are there
                let small = Data::new(request.op, &[64, 64, 1000]);
                let mut inputs = peer.upload(&small, 1)?;
                peer.run(&mut inputs, 0)?;
                peer.wait()?;
            }
            let before = Memory::before();
            let mut inputs = peer.upload(&data, copies)?;
            let before = before.and_then(Memory::of_calls);
            let mut first = None;
            // every copy once: memory is mapped, kernels are compiled and tuned
            for copy in 0..copies {
                let output = peer.run(&mut inputs, copy)?;
                peer.wait()?;
                first = first.or_else(|| before.as_ref()?.most_since(&data));
                drop(output);
            }
            let on_device = peer.on_device(&inputs).map(|bytes| bytes as f64 / f64::from(1 << 20));
            let memory_mib = on_device.or(first);
            // later, so that its memory is not what a program uses again
            let expected = data.expected();
            current = Some(Current { data, expected, inputs, next: 0, memory_mib });
        }
        if let Some(current) = &mut current {
            let answer = turn(&mut peer, &request, current)?;
            let mut stdout = std::io::stdout().lock();
            writeln!(stdout, "{answer}")?;
            stdout.flush()?;
        }
    }
    Ok(())
}

fn turn<P: Peer>(
    peer: &mut P,
    request: &Request,
    current: &mut Current<P::Inputs>,
) -> Result<Value> {
    let Current { data, expected, inputs, next, memory_mib } = current;
    let copies = data.copies();
    let mut times = Vec::with_capacity(request.rounds);
    let mut last = None;
    // the first round warms up: others had their turns
    for round in 0..=request.rounds {
        // as a training loop would, before the next step
        last = None;
        let start = Instant::now();
        for _ in 0..request.calls {
            last = Some(peer.run(inputs, *next % copies)?);
            *next += 1;
        }
        peer.wait()?;
        let time = start.elapsed().as_secs_f64() * 1e3 / request.calls as f64;
        if round > 0 {
            times.push(time);
        }
    }
    // of what was timed, not of a call made for this
    let (loss, grads) = peer.read(inputs, last.ok_or("nothing was run")?)?;
    let [loss_error, grad_error] = expected.errors(loss, &grads)?;
    let [name, version, device] = peer.describe();
    let shape: Vec<_> = data.shape.iter().map(usize::to_string).collect();
    let mut sorted = times.clone();
    sorted.sort_by(f64::total_cmp);
    let quantile = |part: usize| sorted[(sorted.len() - 1) * part / 10];
    Ok(json!({
        "peer": name,
        "version": version,
        "device": device,
        "op": data.op.name(),
        "shape": shape.join("x"),
        "dtype": "f32",
        "pass": "forward_backward",
        "median_ms": quantile(5),
        "p10_ms": quantile(1),
        "p90_ms": quantile(9),
        "rounds": request.rounds,
        "calls": request.calls,
        "times_ms": times,
        // JSON has no NaN: null
        "loss": loss,
        "expected_loss": expected.loss,
        "loss_error": loss_error,
        "grad_error": grad_error,
        "is_right": loss_error <= ALLOWED && grad_error <= ALLOWED,
        "memory_mib": memory_mib,
    }))
}

/// This process's memory before a workload's inputs are there.
struct Memory {
    kib: f64,
}

impl Memory {
    /// `None` where the system does not tell, as on all but Linux.
    fn before() -> Option<Memory> {
        Some(Memory { kib: Memory::kib("VmRSS:")? })
    }

    /// Lets the system find the peak anew, since bringing inputs to a device takes memory too.
    fn of_calls(self) -> Option<Memory> {
        std::fs::write("/proc/self/clear_refs", "5").ok()?;
        Some(self)
    }

    /// The most that there was in calls since, beyond inputs and results, in MiB.
    fn most_since(&self, data: &Data) -> Option<f64> {
        // a gradient for every number of input and classifier
        let results = data.input.len() + data.projection.len();
        let known = data.copies() * data.bytes() + size_of::<f32>() * results;
        Some((Memory::kib("VmHWM:")? - self.kib - known as f64 / 1024.0) / 1024.0)
    }

    fn kib(name: &str) -> Option<f64> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().trim_end_matches(" kB").parse().ok()
    }
}

/// The version of a package that this was built with.
pub fn version(package: &str) -> String {
    let lock = include_str!("../Cargo.lock");
    let entry = lock.split_once(&format!("name = \"{package}\"\nversion = \""));
    entry.and_then(|(_, rest)| rest.split('"').next()).unwrap_or("unknown").into()
}

/// How many threads a program takes that takes as many as there are.
pub fn threads() -> String {
    format!("CPU, {} threads", std::thread::available_parallelism().map_or(1, usize::from))
}
