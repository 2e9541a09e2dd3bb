//! Calls of any op, drawn by proptest.
//!
//! Shape, storage, options, numbers and weights are drawn apart and shrink apart: the numbers are few and
//! repeat over the shape, so that a failure comes down to values one can read.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::Union;
use wgloss::options::{Info, Numbers, Others, Target, Value};
use wgloss::{
    Args, Array, CrossEntropy, DType, LinearCrossEntropy, LogSoftmax, NllLoss, Op, Pass, Reduction,
    Role, Softmax,
};

use crate::call::{Call, REDUCTIONS, few, with_argument};
use crate::ops;

const NAN: f32 = f32::NAN;
const INF: f32 = f32::INFINITY;

/// A call of any op.
pub struct AnyCall {
    op: Arc<dyn Op>,
    input: Array<'static>,
    /// What forward passes take beside the input.
    others: Vec<(Role, Array<'static>)>,
    /// What gradients are added to.
    sums: Vec<(Role, Array<'static>)>,
    upstream: Option<Array<'static>>,
    divisor: f64,
}

impl AnyCall {
    /// One loss an element or row, without weights and upstream gradient.
    pub fn new(op: Arc<dyn Op>, input: Array<'static>, target: Array<'static>) -> Self {
        let others = vec![(Role::Target, target)];
        AnyCall { op, input, others, sums: vec![], upstream: None, divisor: 1.0 }
    }

    /// The same of a loss that is reduced, whose mean divides by `divisor`.
    pub fn over(self, divisor: f64) -> Self {
        AnyCall { divisor, ..self }
    }

    pub fn weight(self, weight: Array<'static>) -> Self {
        self.with(Role::Weight, weight)
    }

    pub fn pos_weight(self, pos_weight: Array<'static>) -> Self {
        self.with(Role::PosWeight, pos_weight)
    }

    fn with(mut self, role: Role, array: Array<'static>) -> Self {
        self.others.push((role, array));
        self
    }

    pub fn upstream(self, upstream: Array<'static>) -> Self {
        AnyCall { upstream: Some(upstream), ..self }
    }
}

impl Call for AnyCall {
    fn op(&self) -> Arc<dyn Op> {
        self.op.clone()
    }

    fn forward_args(&self) -> Args<Array<'_>> {
        let args = Args::new(self.input.clone());
        let others = self.others.iter();
        others.fold(args, |args, (role, array)| with_argument(args, *role, array.clone()))
    }

    fn args(&self, pass: Pass) -> Args<Array<'_>> {
        if !pass.has_grad() {
            return self.forward_args();
        }
        let upstream = self.upstream.iter().map(|upstream| (Role::Upstream, upstream));
        let sums = self.sums.iter().map(|(role, array)| (*role, array));
        upstream.chain(sums).fold(self.forward_args(), |args, (role, array)| {
            with_argument(args, role, array.clone())
        })
    }

    fn upstream(&self) -> Option<Array<'_>> {
        self.upstream.clone()
    }

    fn divisor(&self) -> f64 {
        self.divisor
    }

    fn around(&self, part: &str, index: usize) -> String {
        match (part, self.input.to_f32().get(index)) {
            ("grad", Some(x)) => format!("input {x:e}"),
            _ => String::new(),
        }
    }
}

impl Debug for AnyCall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut call = f.debug_struct("AnyCall");
        call.field("op", &format_args!("{:?}", self.op));
        for (role, part) in self.args(Pass::Backward).iter() {
            let values = match part.to_i64() {
                Ok(classes) => few(&classes),
                Err(_) => few(&part.to_f32()),
            };
            let part = format_args!("{} {:?} {values}", part.dtype(), part.shape());
            call.field(role.name(), &part);
        }
        call.finish()
    }
}

// ---- ops and their options ----

/// An op, and what its arguments depend on.
#[derive(Debug, Clone)]
struct Drawn {
    op: Arc<dyn Op>,
    reduction: Reduction,
    ignore_index: i64,
    /// The fewest dimensions that the input may have.
    rank: usize,
    is_weighted: bool,
    is_pos_weighted: bool,
}

impl Drawn {
    fn new(op: Arc<dyn Op>, reduction: Reduction) -> Self {
        Drawn {
            op,
            reduction,
            ignore_index: -100,
            rank: 0,
            is_weighted: false,
            is_pos_weighted: false,
        }
    }

    fn map(op: impl Op + 'static) -> Self {
        Self::new(Arc::new(op), Reduction::None)
    }
}

fn reduction() -> impl Strategy<Value = Reduction> {
    select(&REDUCTIONS[..])
}

fn ignore_index() -> impl Strategy<Value = i64> {
    prop_oneof![2 => Just(-100), 1 => select(&[0, 2, -1, 1 << 40, i64::MIN][..])]
}

/// What numbers are drawn from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Draw {
    /// Such as people compute with, and a few edges. Squares and their sums stay finite.
    Usual,
    /// All of f32: huge, tiny, subnormal, infinite, none, equal.
    All,
}

/// Cross entropy with targets of either kind.
pub fn cross_entropy(draw: Draw) -> impl Strategy<Value = AnyCall> {
    let classes = (cross_entropy_options(), ignore_index());
    let classes = classes.prop_map(|((op, drawn), ignore_index)| {
        let op = Arc::new(op.ignore_index(ignore_index));
        Drawn { op, ignore_index, ..drawn }
    });
    let probabilities = cross_entropy_options().prop_map(|(_, drawn)| drawn);
    prop_oneof![
        calls(Kind::Classes, classes, draw),
        calls(Kind::ClassProbabilities, probabilities, draw),
    ]
}

/// Every option takes part; but of those that are compiled into the kernel only eight combinations,
/// for compiling takes most of the time. Any two of them meet there in all four ways, on and off.
fn cross_entropy_options() -> impl Strategy<Value = (CrossEntropy, Drawn)> {
    let smoothing = select(&[0.1, 0.5, 1.0][..]);
    // of f32, as inputs are
    let scale = prop_oneof![select(&[0.5, 0.75, 2.0, 4.0][..]), 0.1..5.0_f32];
    let scale = scale.prop_map(f64::from);
    let cap = select(&[0.5, 2.0, 3.0, 30.0, 50.0][..]);
    let z_loss = prop_oneof![Just(1e-4), -0.1..0.1_f64];
    let empty_mean = select(&[f64::NAN, f64::NAN, 0.0, -2.5][..]);
    let numbers = (smoothing, scale, cap, z_loss, empty_mean);
    (0..8_u8, reduction(), numbers).prop_map(
        |(bits, reduction, (smoothing, scale, cap, z_loss, empty_mean))| {
            let [a, b, c] = [1, 2, 4].map(|bit| bits & bit != 0);
            let mut op = CrossEntropy::default()
                .reduction(reduction)
                .empty_mean(empty_mean)
                .label_smoothing(if a { smoothing } else { 0.0 })
                .keep_state(b)
                .row_outputs(a ^ b)
                .z_loss(if a ^ c { z_loss } else { 0.0 });
            if b ^ c {
                op = op.logit_scale(scale);
            }
            if a ^ b ^ c {
                op = op.softcap(cap);
            }
            let drawn = Drawn::new(Arc::new(op.clone()), reduction);
            (op, Drawn { rank: 1, is_weighted: c, ..drawn })
        },
    )
}

/// Linear cross entropy: sizes at the seams of tiles, workspaces of few rows, what is frozen, and what
/// gradients are added to. Products stay within f32: what is beyond it is no logit.
pub fn linear_cross_entropy() -> impl Strategy<Value = AnyCall> {
    let size = |most: usize| {
        let seams = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129];
        let seams: Vec<usize> = seams.into_iter().filter(|&size| size <= most).collect();
        prop_oneof![2 => select(seams), 1 => 1..=most]
    };
    let rows = prop_oneof![
        12 => size(70).prop_map(|rows| vec![rows]),
        2 => (1..4_usize, 1..9_usize).prop_map(|(n, d)| vec![n, d]),
        1 => Just(vec![]),
        1 => Just(vec![0]),
    ];
    let sizes = (rows, size(70), prop_oneof![9 => size(140), 1 => 1000..1500_usize]);
    let dtype = prop_oneof![3 => Just(DType::F32), 1 => Just(DType::F16), 1 => Just(DType::Bf16)];

    // rows of few numbers are often confident, and of many always, unless these are small
    let number = || prop_oneof![1 => (-2..3_i8).prop_map(f32::from), 3 => -2.0..2.0_f32];
    let broken = select(&[NAN, -NAN, INF, -INF][..]);
    let numbers = || {
        let broken = prop_oneof![60 => number(), 1 => broken.clone()];
        prop_oneof![9 => few_of(number()), 1 => few_of(broken)]
    };
    let scale = select(&[0.125_f32, 0.5, 1.0, 1.0, 8.0][..]);
    let biases = few_of(prop_oneof![6 => -3.0..3.0_f32, 1 => Just(-INF)]);
    let biases = prop_oneof![2 => few_of(-3.0..3.0_f32), 1 => biases];
    let classes = few_of(prop::option::weighted(0.9, 0..2000_usize));
    let sums = || prop::option::weighted(0.3, few_of(-3.0..3.0_f32));
    let values = (
        (numbers(), numbers(), scale),
        prop::option::weighted(0.5, biases),
        classes,
        eighths(),
        prop::option::weighted(0.9, factors()),
        (sums(), sums()),
    );
    let options = (cross_entropy_options(), ignore_index(), 0..7_u8, any::<bool>());
    // rows that a workspace has room for
    let room = prop::option::weighted(0.3, prop_oneof![3 => 8..40_usize, 1 => 1..3_usize]);
    (sizes, dtype, values, options, room).prop_map(
        |((rows, dims, classes), dtype, values, options, room)| {
            let ((x, w, scale), bias, targets, weight, upstream, (sum, bias_sum)) = values;
            let ((loss, drawn), ignore_index, frozen, is_narrow) = options;
            let count: usize = rows.iter().product();
            let shape = [&rows[..], &[dims]].concat();
            let scale = scale / (dims as f32).sqrt();
            let x: Vec<f32> = x.into_iter().map(|x| x * 2.0).collect();
            let w: Vec<f32> = w.into_iter().map(|w| w * scale).collect();
            let bias = bias.map(|bias| array(&bias, &[classes]));
            let weight = drawn.is_weighted.then(|| array(&weight, &[classes]));
            let class = |class: Option<usize>| match class {
                Some(class) => (class % classes) as i64,
                None => ignore_index,
            };
            let targets: Vec<i64> = repeated(&targets, count).into_iter().map(class).collect();
            let divisor = match drawn.reduction {
                Reduction::Mean => {
                    let weight = weight.as_ref().map(Array::to_f64);
                    let weight = |&y: &i64| weight.as_ref().map_or(1.0, |w| w[y as usize]);
                    targets.iter().filter(|&&y| y != ignore_index).map(weight).sum()
                }
                _ => 1.0,
            };
            let upstream_shape = if drawn.reduction == Reduction::None { &rows[..] } else { &[] };

            // one gradient is asked for at least
            let frozen = [1, 2, 4].map(|bit| frozen & bit != 0);
            let none = frozen[0] && frozen[1] && bias.is_none();
            let op = LinearCrossEntropy::new(loss.ignore_index(ignore_index))
                .freeze_input(frozen[0] && !none)
                .freeze_projection(frozen[1])
                .freeze_bias(frozen[2])
                .narrow_grad_projection(is_narrow);
            // in f32 and whole vec4s: logits of that many rows, with copies of them and of one for the least
            let [logits, state] = [classes, dims].map(|size| size.next_multiple_of(4) * 4);
            let op = match room {
                Some(rows) => op.workspace_bytes((rows * (logits + 2 * state) + 4 * state) as i64),
                None => op,
            };
            let sum = sum.filter(|_| !frozen[1] && !is_narrow);
            let bias_sum = bias_sum.filter(|_| !frozen[2] && bias.is_some());
            let stored = |values: &[f32], shape: &[usize]| {
                array(values, shape).to_dtype(dtype).expect("a type of floats")
            };
            AnyCall {
                op: Arc::new(op),
                input: stored(&x, &shape),
                others: given([
                    (Role::Projection, Some(stored(&w, &[classes, dims]))),
                    (Role::Bias, bias),
                    (Role::Target, Some(Array::from_vec(targets, &rows).expect("one a row"))),
                    (Role::Weight, weight),
                ]),
                sums: given([
                    (Role::GradProjection, sum.map(|sum| array(&sum, &[classes, dims]))),
                    (Role::GradBias, bias_sum.map(|sum| array(&sum, &[classes]))),
                ]),
                upstream: upstream.map(|upstream| array(&upstream, upstream_shape)),
                divisor,
            }
        },
    )
}

/// The other ops over rows: negative log-likelihood, softmax and log-softmax.
pub fn rows(draw: Draw) -> impl Strategy<Value = AnyCall> {
    let nll_loss = (reduction(), ignore_index(), any::<bool>());
    let nll_loss = nll_loss.prop_map(|(reduction, ignore_index, is_weighted)| {
        let op = NllLoss::default().reduction(reduction).ignore_index(ignore_index);
        Drawn { ignore_index, rank: 1, is_weighted, ..Drawn::new(Arc::new(op), reduction) }
    });
    let map = (any::<bool>(), -3..3_i64).prop_map(|(is_log, dim)| {
        let drawn = match is_log {
            true => Drawn::map(LogSoftmax::default().dim(dim)),
            false => Drawn::map(Softmax::default().dim(dim)),
        };
        // a 0-dimensional input counts as a row
        let rank = if matches!(dim, -1 | 0) { 0 } else { dim.max(-dim - 1) as usize + 1 };
        Drawn { rank, ..drawn }
    });
    prop_oneof![2 => calls(Kind::Classes, nll_loss, draw), 3 => calls(Kind::RowMap, map, draw)]
}

/// The element-wise ops.
pub fn elements(draw: Draw) -> impl Strategy<Value = AnyCall> {
    let all = ops::of(|kind| !kind.family.has_rows()).flat_map(ops::variants);
    Union::new(all.map(move |op| {
        let kind = Kind::Elements(op.kind());
        calls(kind, any_options(op), draw).boxed()
    }))
}

/// An op with any options but those that are yes or no, on which depends what it takes.
fn any_options(op: Box<dyn Op>) -> impl Strategy<Value = Drawn> {
    let infos = op.options();
    let values: Vec<_> = infos.iter().map(any_value).collect();
    let kind = op.kind();
    let weights = [kind.weight.is_some(), kind.pos_weight]
        .map(|is_taken| if is_taken { any::<bool>().boxed() } else { Just(false).boxed() });
    (values, weights).prop_map(move |(values, [is_weighted, is_pos_weighted])| {
        let mut op = op.clone();
        let mut reduction = Reduction::None;
        for (info, value) in infos.iter().zip(values) {
            op.set(info.name, value).expect("a value that it accepts");
            if let Value::Reduction(value) = value {
                reduction = value;
            }
        }
        let op = Arc::from(op);
        Drawn { is_weighted, is_pos_weighted, ..Drawn::new(op, reduction) }
    })
}

/// The default, a sample, or, of a number, any one between samples.
fn any_value(info: &Info) -> BoxedStrategy<Value> {
    let default = Just(info.value);
    let numbers = info.samples.iter().filter_map(|&sample| match sample {
        Value::Number(value) if value.is_finite() => Some(value),
        _ => None,
    });
    let numbers: Vec<f64> = numbers.collect();
    match info.value {
        Value::Bool(_) => default.boxed(),
        Value::Number(_) => {
            let least = numbers.iter().copied().fold(f64::INFINITY, f64::min);
            let most = numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let between = (least..=most).prop_map(Value::Number);
            prop_oneof![1 => default, 1 => select(info.samples.clone()), 2 => between].boxed()
        }
        _ => select(info.samples.clone()).boxed(),
    }
}

// ---- shapes and numbers ----

/// What an op takes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    /// Rows of logits with a class each.
    Classes,
    /// Rows of logits with a probability for each class.
    ClassProbabilities,
    /// Rows of numbers without targets.
    RowMap,
    /// Elements, as the op says.
    Elements(wgloss::options::Kind),
}

impl Kind {
    fn has_row_losses(self) -> bool {
        matches!(self, Kind::Classes | Kind::ClassProbabilities)
    }

    fn is_map(self) -> bool {
        match self {
            Kind::RowMap => true,
            Kind::Elements(kind) => !kind.family.is_loss(),
            _ => false,
        }
    }

    fn input(self) -> Numbers {
        match self {
            Kind::Elements(kind) => kind.input,
            _ => Numbers::Any,
        }
    }

    fn inputs(self, draw: Draw) -> BoxedStrategy<Vec<f32>> {
        if draw == Draw::All {
            return self.input().all();
        }
        match self.input() {
            Numbers::Probabilities => few_of(unit()),
            Numbers::LogProbabilities => few_of(log()),
            Numbers::Counts => few_of(count()),
            // sums of rates stay finite, unless a rate is infinite
            Numbers::LogRates => numbers()
                .prop_map(|all| {
                    all.into_iter().map(|x| if x < INF { x.min(70.0) } else { x }).collect()
                })
                .boxed(),
            _ => numbers(),
        }
    }

    /// The numbers that are its targets, if any are; and what becomes of others.
    fn target(self) -> Option<(Numbers, Others)> {
        match self {
            Kind::Elements(kind) => match kind.target {
                Some(Target::Numbers(target, others)) => Some((target, others)),
                _ => None,
            },
            _ => None,
        }
    }

    fn targets(self, draw: Draw) -> BoxedStrategy<Vec<f32>> {
        if draw == Draw::All {
            return match self.target() {
                _ if self == Kind::ClassProbabilities => Numbers::Probabilities.all(),
                Some((target, _)) => target.all(),
                None => Just(vec![]).boxed(),
            };
        }
        let unit_or =
            |others: &'static [f32]| few_of(prop_oneof![15 => unit(), 1 => select(others)]);
        if self == Kind::ClassProbabilities {
            return unit_or(&[-0.25, 3.0, NAN]);
        }
        let Some((target, others)) = self.target() else { return Just(vec![]).boxed() };
        match (target, others) {
            // a subnormal one may count as 0
            (Numbers::Probabilities, Others::Taken) => unit_or(&[-0.5, 2.0, 1e-40, NAN]),
            (Numbers::Probabilities, Others::Unpromised) => unit_or(&[NAN]),
            (Numbers::Probabilities, Others::Refused) => unit_or(&[1e-40]),
            (Numbers::LogProbabilities, _) => few_of(log()),
            (Numbers::Signs, _) => {
                few_of(prop_oneof![9 => select(&[1.0, -1.0][..]), 1 => -2.0..2.0_f32])
            }
            (Numbers::Counts, _) => {
                few_of(prop_oneof![15 => count(), 1 => select(&[-1.0, NAN][..])])
            }
            _ => {
                few_of(prop_oneof![15 => ordinary(), 1 => select(&[1e4, -1e4, INF, -INF, NAN][..])])
            }
        }
    }
}

/// How many numbers a call's values repeat.
const FEW: Range<usize> = 1..40;

fn few_of<S: Strategy<Value: Clone> + 'static>(value: S) -> BoxedStrategy<Vec<S::Value>> {
    vec(value, FEW).boxed()
}

/// Sizes that kernels treat alike, from the smallest on, which is where shrinking goes.
pub fn shape() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        4 => (1..40_usize, 1..40_usize).prop_map(|(rows, classes)| vec![rows, classes]),
        4 => (1..40_usize, 1..300_usize).prop_map(|(rows, classes)| vec![rows, classes]),
        1 => (1..300_usize).prop_map(|classes| vec![classes]),
        2 => (1..4_usize, 1..40_usize, 1..9_usize).prop_map(|(n, c, d)| vec![n, c, d]),
        1 => (1..4_usize, 1..9_usize, 1..4_usize, 1..4_usize)
            .prop_map(|(n, c, d, e)| vec![n, c, d, e]),
    ]
}

/// As [`shape`], or of any rank, with sizes of 0 among them.
fn any_shape() -> impl Strategy<Value = Vec<usize>> {
    let size = prop_oneof![15 => 1..6_usize, 1 => Just(0)];
    let long = (1..4_usize, 1000..2000_usize).prop_map(|(rows, classes)| vec![rows, classes]);
    prop_oneof![4 => vec(size, 0..6), 8 => shape(), 1 => long]
}

/// A number of which nothing is special, though some are equal.
fn ordinary() -> impl Strategy<Value = f32> {
    prop_oneof![
        3 => (-3..4_i8).prop_map(f32::from),
        6 => -20.0..20.0_f32,
        1 => 20.0..90.0_f32, // as a logit: confident
    ]
}

/// Numbers of one nature: ordinary, masked, extreme or broken.
fn numbers() -> BoxedStrategy<Vec<f32>> {
    let masked = prop_oneof![2 => ordinary(), 1 => Just(-INF)];
    // squares and their sums stay finite: f32's overflow midway is no promise
    let extreme = [-INF, -1e4, 1e4, 1e6, 1e15, -1e15, 88.5, -88.5, 1e-6, 1e-30];
    let extreme = prop_oneof![2 => ordinary(), 1 => select(extreme.to_vec())];
    let broken = prop_oneof![15 => ordinary(), 1 => select(&[NAN, -NAN, INF, -INF][..])];
    prop_oneof![
        5 => few_of(ordinary()),
        1 => few_of(masked),
        1 => few_of(extreme),
        1 => few_of(broken),
    ]
    .boxed()
}

/// All numbers of f32 that an argument may hold, of one nature or of all.
trait All {
    fn all(self) -> BoxedStrategy<Vec<f32>>;
}

impl All for Numbers {
    fn all(self) -> BoxedStrategy<Vec<f32>> {
        /// Of a magnitude between powers of two.
        fn sized(exponents: Range<i32>) -> impl Strategy<Value = f32> {
            let of = |(sign, exponent, mantissa): (f32, i32, f32)| {
                // in float64, which holds subnormals of f32
                (f64::from(sign * mantissa) * 2_f64.powi(exponent)) as f32
            };
            (select(&[1.0, -1.0][..]), exponents, 1.0..2.0_f32).prop_map(of)
        }
        const EDGES: [f32; 26] = [
            0.0,
            -0.0,
            1e-45,
            -1e-40,
            f32::MIN_POSITIVE,
            1e-30,
            6e-8,
            0.5,
            1.0,
            -1.0,
            1.000_000_1,
            0.999_999_94,
            17.0,
            88.7,
            -87.4,
            -104.0,
            1.8e19,
            -1.9e19,
            1e30,
            1e38,
            1.8e38,
            -1.8e38,
            3e38,
            -3e38,
            f32::MAX,
            f32::MIN,
        ];
        // of probabilities, counts and logarithms those that they may be
        let within = move |x: f32| match self {
            Numbers::Probabilities if x.abs() > 1.0 => (1.0 / x).abs(),
            Numbers::Probabilities | Numbers::Counts => x.abs(),
            Numbers::LogProbabilities => -x.abs(),
            Numbers::Signs => 1_f32.copysign(x),
            _ => x,
        };
        let special: &[f32] = match self {
            Numbers::Probabilities => &[0.0, 1.0],
            // of infinite counts nothing is promised
            Numbers::Counts => &[0.0, NAN],
            _ => &[INF, -INF, NAN, -NAN],
        };
        let number =
            || prop_oneof![3 => ordinary(), 2 => sized(-149..128), 3 => select(&EDGES[..])];
        let of_one = prop_oneof![
            3 => few_of(number()),
            2 => few_of(prop_oneof![1 => ordinary(), 2 => sized(120..128)]),
            1 => few_of(prop_oneof![1 => ordinary(), 2 => sized(-149..-120)]),
            1 => few_of(select(&EDGES[..])),
            2 => few_of(prop_oneof![9 => number(), 1 => select(special)]),
        ];
        let within = move |all: Vec<f32>| all.into_iter().map(within).collect();
        of_one.prop_map(within).boxed()
    }
}

/// Upstream gradients from small to nearly all that f32 holds. A row map's are multiplied by
/// probabilities and summed, so theirs stay below what overflows on the way.
fn large_factors(kind: Kind) -> impl Strategy<Value = Vec<f32>> {
    let most = if kind == Kind::RowMap { 1e35 } else { 3e38 };
    let sizes = [1e-20, 1e-3, 1.0, 1.0, 65536.0, 1e20, most];
    (select(sizes.to_vec()), few_of(-1.0..1.0_f32)).prop_map(|(size, all)| {
        // not 0, whose product with a gradient beyond f32 is NaN
        let factor = |f: f32| size * if f.abs() < 0.01 { 0.01 } else { f };
        all.into_iter().map(factor).collect()
    })
}

/// Shapes of few numbers, whole vec4s and others.
fn small_shape() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        4 => (1..6_usize, select(&[1, 2, 3, 5, 8, 9][..])).prop_map(|(n, c)| vec![n, c]),
        1 => (1..4_usize, 1..6_usize, 1..4_usize).prop_map(|(n, c, d)| vec![n, c, d]),
    ]
}

/// A number in [0, 1].
fn unit() -> impl Strategy<Value = f32> {
    prop_oneof![
        3 => select(&[0.0, 1.0][..]),
        6 => 0.0..1.0_f32,
        1 => select(&[0.5, 1e-6, 1.0 - 1e-6, 1e-30][..]),
    ]
}

/// A count or a rate.
fn count() -> impl Strategy<Value = f32> {
    prop_oneof![
        6 => (0..30_u8).prop_map(f32::from),
        3 => 0.0..5.0_f32,
        1 => select(&[1e-30, 1e-8, 1e-6, 1e4, 1e6][..]),
    ]
}

/// The logarithm of one.
fn log() -> impl Strategy<Value = f32> {
    prop_oneof![9 => -20.0..0.0_f32, 1 => select(&[0.0, -80.0, -95.0, -1e4, -INF][..])]
}

/// Eighths, whose sums are exact: the divisor of a mean has no error of its own.
fn eighths() -> impl Strategy<Value = Vec<f32>> {
    few_of((-8..25_i8).prop_map(|w| f32::from(w) / 8.0))
}

/// Upstream gradients, seldom broken ones.
fn factors() -> impl Strategy<Value = Vec<f32>> {
    let factor = || prop_oneof![1 => (-2..3_i8).prop_map(f32::from), 2 => -3.0..3.0_f32];
    prop_oneof![4 => few_of(factor()), 1 => few_of(prop_oneof![9 => factor(), 1 => Just(NAN)])]
}

/// A weight that is broadcast: its values, how many dimensions it lacks, and which are of size 1.
type Weight = (Vec<f32>, usize, u8);

fn weight() -> impl Strategy<Value = Weight> {
    (eighths(), 0..6_usize, any::<u8>())
}

/// A call of an op with what it takes.
fn calls(
    kind: Kind,
    drawn: impl Strategy<Value = Drawn> + 'static,
    draw: Draw,
) -> impl Strategy<Value = AnyCall> {
    // each number lies so much above the one before: rows that rise or fall, without ties
    let tilt = match draw {
        Draw::Usual => prop_oneof![3 => Just(0.0), 1 => -0.1..0.1_f32].boxed(),
        Draw::All => Just(0.0).boxed(),
    };
    // a class, or none: an ignored row
    let classes = few_of(prop::option::weighted(0.9, 0..2000_usize));
    let factors = match draw {
        Draw::Usual => factors().boxed(),
        Draw::All => large_factors(kind).boxed(),
    };
    let upstream = match kind.is_map() {
        // they have no gradient without one
        true => factors.prop_map(Some).boxed(),
        false => prop::option::weighted(0.9, factors).boxed(),
    };
    let values = (kind.inputs(draw), tilt, kind.targets(draw), classes, upstream);
    let shapes = match draw {
        Draw::Usual => any_shape().boxed(),
        Draw::All => small_shape().boxed(),
    };
    let dtype = prop_oneof![14 => Just(DType::F32), 1 => Just(DType::F16), 1 => Just(DType::Bf16)];
    (shapes, dtype, drawn, values, weight(), weight()).prop_map(
        move |(mut shape, dtype, drawn, values, weight, pos_weight)| {
            let (input, tilt, target, classes, upstream) = values;
            while shape.len() < drawn.rank {
                shape.insert(0, 1);
            }
            let class_dim = usize::from(shape.len() > 1);
            let mut losses = shape.clone();
            if kind.has_row_losses() {
                shape[class_dim] = shape[class_dim].max(1);
                losses.remove(class_dim);
            }
            let (count, rows) = (shape.iter().product(), losses.iter().product());
            let mut divisor = match drawn.reduction {
                Reduction::None | Reduction::Sum => 1.0,
                Reduction::Mean => rows as f64,
                Reduction::BatchMean => shape.first().map_or(1.0, |&size| size as f64),
            };

            let mut input: Vec<f32> = repeated(&input, count);
            if !matches!(kind.input(), Numbers::Probabilities | Numbers::Counts | Numbers::LogRates)
            {
                input.iter_mut().enumerate().for_each(|(i, x)| *x += tilt * i as f32);
            }
            let weight = drawn.is_weighted.then(|| match kind.has_row_losses() {
                true => array(&weight.0, &[shape[class_dim]]),
                false => broadcast(&weight, &shape),
            });
            let target = match kind {
                Kind::Classes => {
                    let class = |class: Option<usize>| match class {
                        Some(class) => (class % shape[class_dim]) as i64,
                        None => drawn.ignore_index,
                    };
                    let target: Vec<i64> =
                        repeated(&classes, rows).into_iter().map(class).collect();
                    if drawn.reduction == Reduction::Mean {
                        let weight = weight.as_ref().map(Array::to_f64);
                        let weight = |&y: &i64| weight.as_ref().map_or(1.0, |w| w[y as usize]);
                        divisor =
                            target.iter().filter(|&&y| y != drawn.ignore_index).map(weight).sum();
                    }
                    Some(Array::from_vec(target, &losses).unwrap())
                }
                _ if kind == Kind::ClassProbabilities || kind.target().is_some() => {
                    Some(array(&target, &shape).to_dtype(dtype).unwrap())
                }
                _ => None,
            };
            // f16 makes infinities of large ones
            let most = if (dtype, draw) == (DType::F16, Draw::All) { 6e4 } else { INF };
            let bounded = |upstream: Vec<f32>| -> Vec<f32> {
                upstream
                    .into_iter()
                    .map(|f| if f.abs() > most { most.copysign(f) } else { f })
                    .collect()
            };
            let upstream = upstream.map(bounded).map(|upstream| match drawn.reduction {
                Reduction::None => array(&upstream, &losses).to_dtype(dtype).unwrap(),
                _ => array(&upstream, &[]),
            });
            let pos_weight = drawn.is_pos_weighted.then(|| broadcast(&pos_weight, &shape));
            let others =
                [(Role::Target, target), (Role::Weight, weight), (Role::PosWeight, pos_weight)];
            AnyCall {
                op: drawn.op,
                input: array(&input, &shape).to_dtype(dtype).unwrap(),
                others: given(others),
                sums: vec![],
                upstream,
                divisor,
            }
        },
    )
}

/// Those of them that there are.
fn given<const N: usize>(
    arrays: [(Role, Option<Array<'static>>); N],
) -> Vec<(Role, Array<'static>)> {
    arrays.into_iter().filter_map(|(role, array)| Some((role, array?))).collect()
}

fn repeated<T: Clone>(values: &[T], count: usize) -> Vec<T> {
    values.iter().cycle().take(count).cloned().collect()
}

fn array(values: &[f32], shape: &[usize]) -> Array<'static> {
    Array::from_vec(repeated(values, shape.iter().product()), shape).unwrap()
}

fn broadcast((values, lacking, ones): &Weight, shape: &[usize]) -> Array<'static> {
    let own = shape.iter().enumerate().skip(*lacking);
    let own = own.map(|(d, &size)| if ones >> d & 1 == 1 { 1 } else { size });
    array(values, &own.collect::<Vec<_>>())
}
