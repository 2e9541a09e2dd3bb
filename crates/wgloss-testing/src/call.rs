//! Calls of the ops with all their options and values: what tests build, print, run on a device and
//! hold to the promise.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;
use std::sync::Arc;

use wgloss::Role;
use wgloss::reference::{self, Values};
use wgloss::{Args, Array, BceWithLogits, CrossEntropy, Gpu, Op, Output, Pass, Reduction, Tensor};

use crate::compare::{Mismatch, Tolerance, compare_part};
use crate::random::{Logits, Random};

pub const REDUCTIONS: [Reduction; 3] = [Reduction::None, Reduction::Mean, Reduction::Sum];
pub const PASSES: [Pass; 3] = [Pass::Forward, Pass::Backward, Pass::ForwardBackward];

/// An op with its arguments.
pub trait Call: Debug {
    /// The op with its options.
    fn op(&self) -> Arc<dyn Op>;

    /// All that a forward pass takes.
    fn forward_args(&self) -> Args<Array<'_>>;

    /// What a backward pass takes beyond that.
    fn upstream(&self) -> Option<Array<'_>>;

    /// What the mean divides by: 1 for other reductions.
    fn divisor(&self) -> f64;

    /// The values that a loss or gradient of this index comes from.
    fn around(&self, part: &str, index: usize) -> String;

    /// What a pass takes.
    fn args(&self, pass: Pass) -> Args<Array<'_>> {
        let args = self.forward_args();
        match self.upstream() {
            Some(upstream) if pass.has_grad() => args.upstream(upstream),
            _ => args,
        }
    }
}

/// Cross entropy of class indices.
#[derive(Clone)]
pub struct Rows {
    pub shape: Vec<usize>,
    pub logits: Vec<f32>,
    pub target: Vec<i32>,
    pub weight: Option<Vec<f32>>,
    /// One value (mean, sum) or one a row (none).
    pub upstream: Option<Vec<f32>>,
    pub reduction: Reduction,
    pub ignore_index: i32,
    pub smoothing: f64,
    pub row_outputs: bool,
}

/// BCE with logits. Weights come with their shapes.
#[derive(Clone)]
pub struct Elements {
    pub shape: Vec<usize>,
    pub logits: Vec<f32>,
    pub target: Vec<f32>,
    pub weight: Option<(Vec<usize>, Vec<f32>)>,
    pub pos_weight: Option<(Vec<usize>, Vec<f32>)>,
    /// One value (mean, sum) or one an element (none).
    pub upstream: Option<Vec<f32>>,
    pub reduction: Reduction,
}

impl Rows {
    /// Rows with a target each, one loss a row.
    pub fn new(logits: &[f32], target: &[i32]) -> Self {
        let classes = logits.len() / target.len();
        Self::shaped(&[target.len(), classes], logits, target)
    }

    /// Logits of any shape, one loss a row.
    pub fn shaped(shape: &[usize], logits: &[f32], target: &[i32]) -> Self {
        Rows {
            shape: shape.to_vec(),
            logits: logits.to_vec(),
            target: target.to_vec(),
            weight: None,
            upstream: None,
            reduction: Reduction::None,
            ignore_index: -100,
            smoothing: 0.0,
            row_outputs: false,
        }
    }

    /// Random logits and targets, a tenth of the rows ignored; one loss a row, random upstream.
    pub fn random(random: &mut Random, kind: Logits, shape: &[usize]) -> Self {
        let (classes, positions) = match shape {
            [classes] => (*classes, 1),
            [_, classes, rest @ ..] => (*classes, rest.iter().product()),
            [] => panic!("a shape with classes"),
        };
        let rows = shape.iter().product::<usize>() / classes;
        let by_row = random.logits(kind, rows, classes);
        let mut logits = vec![0.0; by_row.len()];
        for (r, row) in by_row.chunks(classes).enumerate() {
            for (c, &x) in row.iter().enumerate() {
                logits[(r / positions * classes + c) * positions + r % positions] = x;
            }
        }
        let target = random.targets(rows, classes, -100, 0.1);
        let upstream = random.normals(rows, 1.0);
        Rows { upstream: Some(upstream), ..Self::shaped(shape, &logits, &target) }
    }

    /// Random weights: see [`Random::eighths`].
    pub fn weighted(self, random: &mut Random) -> Self {
        let weight = random.eighths(self.classes());
        self.weight(&weight)
    }

    pub fn weight(self, weight: &[f32]) -> Self {
        Rows { weight: Some(weight.to_vec()), ..self }
    }

    pub fn upstream(self, upstream: &[f32]) -> Self {
        Rows { upstream: Some(upstream.to_vec()), ..self }
    }

    /// Another reduction than none: the upstream gradient is that of the first row.
    pub fn reduced(mut self, reduction: Reduction) -> Self {
        if let Some(upstream) = &mut self.upstream
            && reduction != Reduction::None
        {
            upstream.resize(1, 1.0);
        }
        Rows { reduction, ..self }
    }

    pub fn row_outputs(self) -> Self {
        Rows { row_outputs: true, ..self }
    }

    pub fn smoothing(self, smoothing: f64) -> Self {
        Rows { smoothing, ..self }
    }

    pub fn ignore_index(self, ignore_index: i32) -> Self {
        Rows { ignore_index, ..self }
    }

    pub fn classes(&self) -> usize {
        self.shape[usize::from(self.shape.len() > 1)]
    }

    /// The op, for options that are not among the fields.
    pub fn cross_entropy(&self) -> CrossEntropy {
        CrossEntropy::default()
            .reduction(self.reduction)
            .ignore_index(self.ignore_index.into())
            .label_smoothing(self.smoothing)
            .row_outputs(self.row_outputs)
    }

    /// The shape of the targets and of unreduced losses.
    pub fn rows_shape(&self) -> Vec<usize> {
        match &self.shape[..] {
            [batch, _, rest @ ..] => [&[*batch], rest].concat(),
            _ => vec![],
        }
    }

    /// The logits of a row.
    pub fn row(&self, row: usize) -> Vec<f32> {
        let positions: usize = self.shape.iter().skip(2).product();
        let at = |c| (row / positions * self.classes() + c) * positions + row % positions;
        (0..self.classes()).map(|c| self.logits[at(c)]).collect()
    }
}

impl Call for Rows {
    fn op(&self) -> Arc<dyn Op> {
        Arc::new(self.cross_entropy())
    }

    fn forward_args(&self) -> Args<Array<'_>> {
        let args = Args::new(Array::new(&self.logits, &self.shape).unwrap())
            .target(Array::new(&self.target, &self.rows_shape()).unwrap());
        match &self.weight {
            Some(weight) => args.weight(Array::from(weight)),
            None => args,
        }
    }

    fn upstream(&self) -> Option<Array<'_>> {
        let shape = if self.reduction == Reduction::None { self.rows_shape() } else { vec![] };
        self.upstream.as_ref().map(|upstream| Array::new(upstream, &shape).unwrap())
    }

    fn divisor(&self) -> f64 {
        if self.reduction != Reduction::Mean {
            return 1.0;
        }
        let kept = self.target.iter().filter(|&&class| class != self.ignore_index);
        match &self.weight {
            Some(weight) => kept.map(|&class| f64::from(weight[class as usize])).sum(),
            None => kept.count() as f64,
        }
    }

    fn around(&self, part: &str, index: usize) -> String {
        let positions: usize = self.shape.iter().skip(2).product();
        let row = match (part, self.reduction) {
            ("grad", _) => index / (self.classes() * positions) * positions + index % positions,
            (_, Reduction::None) => index,
            _ => return String::new(),
        };
        let class = index / positions % self.classes();
        format!("row {row}, class {class}: target {}, {}", self.target[row], few(&self.row(row)))
    }
}

impl Debug for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rows")
            .field("shape", &format_args!("{:?}", self.shape))
            .field("logits", &format_args!("{}", few(&self.logits)))
            .field("target", &format_args!("{}", few(&self.target)))
            .field("weight", &format_args!("{:?}", self.weight.as_deref().map(few)))
            .field("upstream", &format_args!("{:?}", self.upstream.as_deref().map(few)))
            .field("reduction", &self.reduction)
            .field("ignore_index", &self.ignore_index)
            .field("smoothing", &self.smoothing)
            .finish()
    }
}

impl Elements {
    /// One loss an element.
    pub fn new(logits: &[f32], target: &[f32]) -> Self {
        Self::shaped(&[logits.len()], logits, target)
    }

    /// Logits of any shape, one loss an element.
    pub fn shaped(shape: &[usize], logits: &[f32], target: &[f32]) -> Self {
        Elements {
            shape: shape.to_vec(),
            logits: logits.to_vec(),
            target: target.to_vec(),
            weight: None,
            pos_weight: None,
            upstream: None,
            reduction: Reduction::None,
        }
    }

    /// Random logits of deviation 8, hard and soft targets; one loss an element, random upstream.
    pub fn random(random: &mut Random, shape: &[usize]) -> Self {
        let count = shape.iter().product();
        let logits = random.normals(count, 8.0);
        let target: Vec<f32> = (0..count)
            .map(|_| {
                let soft = random.uniform() as f32;
                random.pick(&[0.0, 1.0, soft])
            })
            .collect();
        let upstream = random.normals(count, 1.0);
        Elements { upstream: Some(upstream), ..Self::shaped(shape, &logits, &target) }
    }

    pub fn weight(self, shape: &[usize], weight: &[f32]) -> Self {
        Elements { weight: Some((shape.to_vec(), weight.to_vec())), ..self }
    }

    pub fn pos_weight(self, shape: &[usize], pos_weight: &[f32]) -> Self {
        Elements { pos_weight: Some((shape.to_vec(), pos_weight.to_vec())), ..self }
    }

    pub fn upstream(self, upstream: &[f32]) -> Self {
        Elements { upstream: Some(upstream.to_vec()), ..self }
    }

    /// Another reduction than none: the upstream gradient is that of the first element.
    pub fn reduced(mut self, reduction: Reduction) -> Self {
        if let Some(upstream) = &mut self.upstream
            && reduction != Reduction::None
        {
            upstream.resize(1, 1.0);
        }
        Elements { reduction, ..self }
    }
}

impl Call for Elements {
    fn op(&self) -> Arc<dyn Op> {
        Arc::new(BceWithLogits::default().reduction(self.reduction))
    }

    fn forward_args(&self) -> Args<Array<'_>> {
        let mut args = Args::new(Array::new(&self.logits, &self.shape).unwrap())
            .target(Array::new(&self.target, &self.shape).unwrap());
        if let Some((shape, weight)) = &self.weight {
            args = args.weight(Array::new(weight, shape).unwrap());
        }
        if let Some((shape, pos_weight)) = &self.pos_weight {
            args = args.pos_weight(Array::new(pos_weight, shape).unwrap());
        }
        args
    }

    fn upstream(&self) -> Option<Array<'_>> {
        let shape = if self.reduction == Reduction::None { &self.shape[..] } else { &[] };
        self.upstream.as_ref().map(|upstream| Array::new(upstream, shape).unwrap())
    }

    fn divisor(&self) -> f64 {
        if self.reduction == Reduction::Mean { self.logits.len() as f64 } else { 1.0 }
    }

    fn around(&self, part: &str, index: usize) -> String {
        match (part, self.reduction) {
            ("grad", _) | (_, Reduction::None) => {
                format!("logit {:e}, target {:e}", self.logits[index], self.target[index])
            }
            _ => String::new(),
        }
    }
}

impl Debug for Elements {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let weight = |w: &Option<(Vec<usize>, Vec<f32>)>| match w {
            Some((shape, values)) => format!("{shape:?} {}", few(values)),
            None => "None".into(),
        };
        f.debug_struct("Elements")
            .field("shape", &format_args!("{:?}", self.shape))
            .field("logits", &format_args!("{}", few(&self.logits)))
            .field("target", &format_args!("{}", few(&self.target)))
            .field("weight", &format_args!("{}", weight(&self.weight)))
            .field("pos_weight", &format_args!("{}", weight(&self.pos_weight)))
            .field("upstream", &format_args!("{:?}", self.upstream.as_deref().map(few)))
            .field("reduction", &self.reduction)
            .finish()
    }
}

/// As many values as a reader can take in.
pub fn few<T: Debug>(values: &[T]) -> String {
    const FEW: usize = 24;
    let shown = format!("{:?}", &values[..values.len().min(FEW)]);
    if values.len() > FEW { format!("{shown} and {} more", values.len() - FEW) } else { shown }
}

/// Runs a pass from host arrays.
#[track_caller]
pub fn run(gpu: &Gpu, call: &dyn Call, pass: Pass) -> Output<Array<'static>> {
    gpu.block_on(gpu.run(&*call.op(), pass, &call.args(pass)))
        .unwrap_or_else(|error| panic!("{error}\n{pass:?} of {call:?}"))
}

/// Runs the fused pass and holds loss and gradient to the promise.
#[track_caller]
pub fn check(gpu: &Gpu, call: &dyn Call) -> Output<Array<'static>> {
    check_pass(gpu, call, Pass::ForwardBackward)
}

/// Runs a pass and holds what it computes to the promise.
#[track_caller]
pub fn check_pass(gpu: &Gpu, call: &dyn Call, pass: Pass) -> Output<Array<'static>> {
    let want = reference(call, pass);
    let got = run(gpu, call, pass);
    if let Err(message) = judge(call, &got, &want) {
        panic!("{message}\n{pass:?} of {call:#?}");
    }
    got
}

/// The float64 reference. A test that comes back to a case on its next device gets what was computed
/// for the first.
#[track_caller]
pub fn reference(call: &dyn Call, pass: Pass) -> Rc<Output<Values>> {
    /// Of numbers that are kept: what does not fit is computed anew.
    const MOST: usize = 4_000_000;
    // of one test, which has a thread of its own
    thread_local! {
        static KNOWN: RefCell<HashMap<u64, Rc<Output<Values>>>> = RefCell::default();
        static KEPT: Cell<usize> = const { Cell::new(0) };
    }
    let (op, args) = (call.op(), call.args(pass));
    let mut key = DefaultHasher::new();
    (format!("{op:?}"), pass).hash(&mut key);
    for (name, array) in args.iter() {
        (name, array.dtype().name(), array.shape(), array.data().bytes()).hash(&mut key);
    }
    let key = key.finish();
    if let Some(known) = KNOWN.with_borrow(|known| known.get(&key).cloned()) {
        return known;
    }
    let output = reference::run(&*op, pass, &args);
    let output = Rc::new(output.unwrap_or_else(|e| panic!("{e}\n{pass:?} of {call:?}")));
    let kept = KEPT.get() + args.input().layout().elements();
    if kept <= MOST {
        KEPT.set(kept);
        KNOWN.with_borrow_mut(|known| known.insert(key, output.clone()));
    }
    output
}

/// Runs every pass and holds it to the promise. Backward takes the state that forward kept.
pub fn hold(
    call: &dyn Call,
    run: impl Fn(&dyn Op, Pass, &Args<Array<'_>>) -> wgloss::Result<Output<Array<'static>>>,
) -> Result<(), String> {
    let op = call.op();
    let mut state = None;
    for pass in PASSES {
        let mut args = call.args(pass);
        if let (Pass::Backward, Some(state)) = (pass, state.take()) {
            args = args.state(state);
        }
        let name = pass.name();
        let got = run(&*op, pass, &args).map_err(|error| format!("{name}: {error}"))?;
        judge(call, &got, &reference(call, pass)).map_err(|error| format!("{name}: {error}"))?;
        state = got.get(Role::State).cloned();
    }
    Ok(())
}

/// Holds results of a call to the promise, as far as `want` has them.
pub fn judge(
    call: &dyn Call,
    got: &Output<Array<'_>>,
    want: &Output<Values>,
) -> Result<(), String> {
    for role in Role::ALL.into_iter().filter(|role| *role != Role::State) {
        judge_part(call, role, got.get(role), want.get(role), promise(call, role))?;
    }
    Ok(())
}

/// What is promised of a result of a call.
fn promise(call: &dyn Call, role: Role) -> Tolerance {
    // a divisor of 0 makes everything NaN or 0, and has no scale
    let over = if call.divisor() == 0.0 { 1.0 } else { call.divisor() };
    // the largest upstream gradient that scales a finite result
    let finite = |max: f64, v: f64| if v.is_finite() { max.max(v.abs()) } else { max };
    let upstream = call.upstream().map_or(1.0, |all| all.to_f64().into_iter().fold(0.0, finite));
    let promise = call.op().promise(role);
    match role {
        Role::Loss => promise.scaled(1.0 / over),
        Role::Grad | Role::GradProjection | Role::GradBias => promise.scaled(upstream / over),
        _ => promise,
    }
}

/// The arguments with one more, by its role.
pub fn with_argument<T>(args: Args<T>, role: Role, value: T) -> Args<T> {
    match role {
        Role::Target => args.target(value),
        Role::Weight => args.weight(value),
        Role::PosWeight => args.pos_weight(value),
        Role::Projection => args.projection(value),
        Role::Bias => args.bias(value),
        Role::Upstream => args.upstream(value),
        Role::State => args.state(value),
        Role::Partials => args.partials(value),
        Role::Divisor => args.divisor(value),
        Role::GradProjection => args.grad_projection(value),
        Role::GradBias => args.grad_bias(value),
        other => panic!("no argument beside the input is {other}"),
    }
}

fn judge_part(
    call: &dyn Call,
    role: Role,
    got: Option<&Array<'_>>,
    want: Option<&Values>,
    bound: Tolerance,
) -> Result<(), String> {
    let (got, want) = match (got, want) {
        (None, None) => return Ok(()),
        (Some(got), Some(want)) => (got, want),
        _ => return Err(format!("{role}: got {got:?}, want {want:?}")),
    };
    if got.shape() != want.shape {
        return Err(format!("{role}: got shape {:?}, want {:?}", got.shape(), want.shape));
    }
    match compare_part(role, got, want, bound) {
        Ok(_) => Ok(()),
        Err(mismatch @ Mismatch::Value { index, .. }) => {
            Err(format!("{role}: {mismatch}\n{}", call.around(role.name(), index)))
        }
        Err(mismatch) => Err(format!("{role}: {mismatch}")),
    }
}

/// The loss, or the output of a map.
#[track_caller]
pub fn result<T>(output: &Output<T>) -> &T {
    output.get(Role::Loss).or_else(|| output.get(Role::Output)).expect("a pass with a loss")
}

/// Every result on the host.
#[track_caller]
pub fn read(gpu: &Gpu, output: &Output<Tensor>) -> Output<Array<'static>> {
    let read = |(role, tensor)| (role, gpu.block_on(gpu.read(tensor)).unwrap());
    output.iter().map(read).collect()
}

/// The bits of every result, for comparisons in which NaN equals itself and -0 differs from 0.
pub fn bits(output: &Output<Array<'_>>) -> Vec<u32> {
    output.iter().flat_map(|(_, array)| bits_of(array)).collect()
}

/// The bits of an array's values.
pub fn bits_of(array: &Array<'_>) -> Vec<u32> {
    array.to_f32().into_iter().map(f32::to_bits).collect()
}
