//! Classes that are divided among ranks.

use std::ops::Range;

use wgloss::options::Value;
use wgloss::{
    Args, Array, Cpu, CrossEntropy, DType, Layout, Op, Operand, Output, Pass, Reduction, Role,
};

use crate::agree::{Call, Kind};
use crate::ranks::Exchange;
use crate::transport::Collective;
use crate::{Engine, Error, Ranks, Result};

/// The numbers of a partial.
const WORDS: usize = 8;
/// What follows a rank's partials: its divisor, and whether it failed (its number and 1, or 0).
const TAIL: usize = 2;
/// The most ranks whose partials are all gathered by each, by default: beyond that each merges a part of the rows.
const MOST_GATHERED: usize = 8;
/// The partial of no class: the lowest number as maximum, and flags in the exponent that they have
/// (`shaders/shared/row_state.wgsl`).
const EMPTY: [f32; WORDS] = [f32::MIN, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0, 0.0];

/// A loss whose classes are divided among ranks, one shard after the other in the order of ranks.
///
/// Arguments and results are those of [`CrossEntropy`](wgloss::CrossEntropy) and
/// [`LinearCrossEntropy`](wgloss::LinearCrossEntropy), of this rank's classes alone: logits `[N, C here]`,
/// a projection `[V here, D]`, weights of the classes here; but targets count among all classes. Every
/// rank has the same rows. The loss and [row outputs](wgloss::Output::rows) are those of whole rows, the
/// same bits on every rank; gradients of logits, projection and bias are this rank's. The gradient of
/// hidden states is summed over ranks, by [`Ranks::sum`], where the input is f32; in 16 bits each
/// rank's part is rounded before it is added in f32, and the sum once more.
///
/// ```no_run
/// use wgloss::{Args, Array, CrossEntropy};
/// use wgloss_mpi::{Ranks, Shards};
///
/// let universe = mpi::initialize().expect("MPI");
/// let ranks = Ranks::new(&universe.world())?;
/// let gpu = ranks.gpu()?;
/// let shards = Shards::new(&ranks, 50_257)?;
/// let (logits, target) = (vec![0.0_f32; 512 * shards.range().len()], vec![7; 512]);
/// let args = Args::new(Array::new(&logits, &[512, shards.range().len()])?).target(Array::from(&target));
/// let out = shards.forward_backward(&gpu, &CrossEntropy::default(), &args)?;
/// println!("{} of whole rows", out.loss()?.item()?);
/// # Ok::<_, wgloss_mpi::Error>(())
/// ```
///
/// A pass is two passes of the device and an exchange: [`Pass::Partials`], a gather of 32 bytes a row and
/// rank (and 8 a rank), and the pass itself. Before that ranks compare what they must have in common
/// (256 bytes a rank), while the partials are computed. The host waits for the partials: what is
/// exchanged goes through its memory. Where ranks are many, [the exchange is another](Self::scattered).
#[derive(Debug)]
pub struct Shards<'r> {
    ranks: &'r Ranks,
    range: Range<usize>,
    classes: usize,
    is_scattered: bool,
}

/// Partials of this rank on their way to the others: [`Shards::wait`] ends that. Dropped without it, the exchange is given
/// up, and these ranks exchange nothing more.
#[must_use = "dropping it ends all exchanges of these ranks"]
pub struct Started<'s> {
    exchange: Exchange<'s>,
    rows: usize,
}

/// What all ranks told of each row, for one pass or several over the same arguments: of a forward pass
/// and, once its upstream gradient is known, backward.
#[derive(Debug, Clone)]
pub struct Told<T> {
    partials: T,
    divisor: T,
}

impl<'r> Shards<'r> {
    /// All classes, divided as evenly as can be: the first ranks have one more where that does not come
    /// out even.
    ///
    /// # Errors
    /// As [`Shards::of`].
    pub fn new(ranks: &'r Ranks, classes: usize) -> Result<Self> {
        let (each, more) = (classes / ranks.size(), classes % ranks.size());
        let first = |rank: usize| rank * each + rank.min(more);
        Self::of(ranks, first(ranks.rank())..first(ranks.rank() + 1), classes)
    }

    /// These classes of so many are this rank's: shards may be of any size, also of none, as long as all
    /// classes come one after the other in the order of ranks.
    ///
    /// # Errors
    /// [`Error::Disagree`] where ranks count other classes in all, [`Error::Cover`] where shards
    /// overlap, leave some out or come in another order; [`Error::Timeout`], [`Error::Mpi`].
    pub fn of(ranks: &'r Ranks, range: Range<usize>, classes: usize) -> Result<Self> {
        let call = Call::new(Kind::Classes).classes(classes);
        let own = [range.start as u64, range.end as u64, 0];
        let told = ranks.agree(call.own(own))?.wait()?;
        let mut end = 0;
        let mut last = 0;
        for (rank, [first, next, _]) in told.own().enumerate() {
            let [first, next] = [first, next].map(|class| class as usize);
            if first != end || next < first {
                let expected = end.to_string();
                return Err(Error::Cover { rank, first, end: next, classes, expected });
            }
            (last, end) = (first, next);
        }
        if end != classes {
            let (rank, expected) = (ranks.size() - 1, format!("{last}, and to end with all"));
            return Err(Error::Cover { rank, first: last, end, classes, expected });
        }
        Ok(Shards { ranks, range, classes, is_scattered: ranks.size() > MOST_GATHERED })
    }

    /// Whether each rank merges the partials of a part of the rows, and sends the others what it made of them, in place of
    /// each rank gathering and merging all: 64 bytes a row for each rank, however many there are, in two
    /// exchanges and not 32 a row and rank in one. That merge is the CPU's: where a GPU computes the rest, last bits
    /// are not those of the gather, though the same on every rank. All ranks choose the same.
    /// Default: from 9 ranks on.
    pub fn scattered(mut self, is_scattered: bool) -> Self {
        self.is_scattered = is_scattered;
        self
    }

    /// This rank's classes.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// How many classes there are in all.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Computes the loss.
    ///
    /// # Errors
    /// As [`Shards::run`].
    pub fn forward<T: Operand + Clone>(
        &self,
        engine: &impl Engine<T>,
        op: &dyn Op,
        args: &Args<T>,
    ) -> Result<Output<T::Output>> {
        self.run(engine, op, Pass::Forward, args)
    }

    /// Computes the gradient. After a forward pass over the same arguments, [`Shards::finish`] with what that
    /// was told saves an exchange.
    ///
    /// # Errors
    /// As [`Shards::run`].
    pub fn backward<T: Operand + Clone>(
        &self,
        engine: &impl Engine<T>,
        op: &dyn Op,
        args: &Args<T>,
    ) -> Result<Output<T::Output>> {
        self.run(engine, op, Pass::Backward, args)
    }

    /// Computes loss and gradient.
    ///
    /// # Errors
    /// As [`Shards::run`].
    pub fn forward_backward<T: Operand + Clone>(
        &self,
        engine: &impl Engine<T>,
        op: &dyn Op,
        args: &Args<T>,
    ) -> Result<Output<T::Output>> {
        self.run(engine, op, Pass::ForwardBackward, args)
    }

    /// Computes whichever pass: all ranks call it at the same time.
    ///
    /// # Errors
    /// [`Error::Loss`] of what wgloss refuses or the device fails in; [`Error::Failed`] where that happens to
    /// another rank; [`Error::Disagree`] where ranks have other rows, options or storage;
    /// [`Error::Timeout`], [`Error::Broken`], [`Error::Mpi`].
    pub fn run<T: Operand + Clone>(
        &self,
        engine: &impl Engine<T>,
        op: &dyn Op,
        pass: Pass,
        args: &Args<T>,
    ) -> Result<Output<T::Output>> {
        let started = self.start(engine, op, args)?;
        let told = self.wait(engine, op, started)?;
        self.finish(engine, op, pass, args, &told)
    }

    /// Compares the calls of all ranks, computes this rank's partials meanwhile, and begins to send them.
    /// What this rank does before [`Shards::wait`] overlaps with the others' computing, and with the
    /// exchange as far as MPI proceeds by itself: many implementations move larger messages only within
    /// calls of theirs.
    ///
    /// # Errors
    /// As [`Shards::run`].
    pub fn start<T: Operand + Clone>(
        &self,
        engine: &impl Engine<T>,
        op: &dyn Op,
        args: &Args<T>,
    ) -> Result<Started<'_>> {
        // an op without shards is refused below, where the others hear of it
        let (op, has_shards) = match self.of_shard(op, self.range.start) {
            Ok(op) => (op, Ok(())),
            Err(error) => (op.boxed(), Err(error)),
        };
        let args = of_partials(args);
        let layouts = args.layouts();
        let call = Call::new(Kind::Partials).classes(self.classes).op(&*op);
        let call = call.size(usize::from(self.is_scattered));
        let rows = has_shards.and_then(|()| self.check(&*op, &layouts));
        let agreement = self.ranks.agree(match &rows {
            Ok(rows) => {
                let target = layouts.get(Role::Target).map_or(DType::I32, Layout::dtype);
                let dims = layouts
                    .get(Role::Projection)
                    .and_then(|p| p.shape().get(1))
                    .copied()
                    .unwrap_or(0);
                let is_weighted = layouts.get(Role::Weight).is_some();
                call.rows(*rows).args(layouts.input(), dims, target, is_weighted)
            }
            Err(_) => call.failed(),
        })?;
        let found = rows.and_then(|rows| self.find_partials(engine, &*op, &args, rows));
        if let Err(error) = agreement.wait() {
            // what this rank has to say is told by nobody else
            return Err(found.err().unwrap_or(error));
        }
        let (rows, partials, divisor, error) = match found {
            Ok((rows, Partials { partials, divisor })) => (rows, partials, divisor, None),
            Err(error) => {
                let rows = rows_of(&layouts);
                (rows, EMPTY.repeat(rows), 0.0, Some(error))
            }
        };
        let failed = error.as_ref().map(|_| self.ranks.rank());
        let (collective, words) = if self.is_scattered {
            let own = rows.div_ceil(self.ranks.size());
            let part = |rank: usize| {
                let [first, end] = [rank, rank + 1].map(|rank| (rank * own).min(rows) * WORDS);
                let mut part = partials[first..end].to_vec();
                part.extend(EMPTY.repeat(own - (end - first) / WORDS));
                words_of(&part, divisor, failed)
            };
            (Collective::AllToAll, (0..self.ranks.size()).flat_map(part).collect())
        } else {
            (Collective::AllGather, words_of(&partials, divisor, failed))
        };
        let exchange = self.ranks.begin("partials", collective, words)?;
        let started = Started { exchange, rows };
        match error {
            None => Ok(started),
            Some(error) => {
                // the others are told by what has begun
                self.gather(started, |_| Err(Error::Failed { rank: self.ranks.rank() })).ok();
                Err(error)
            }
        }
    }

    /// Waits for what the other ranks tell, with the op of [`Shards::start`].
    ///
    /// # Errors
    /// As [`Shards::run`].
    pub fn wait<T: Operand + Clone>(
        &self,
        engine: &impl Engine<T>,
        op: &dyn Op,
        started: Started<'_>,
    ) -> Result<Told<T>> {
        let told = self.gather(started, |told| self.merge(op, &told.partials))?;
        Ok(Told {
            partials: engine.argument(told.partials)?,
            divisor: engine.argument(told.divisor)?,
        })
    }

    /// Ends the exchange of partials: `merge` makes one partial a row of several.
    fn gather(
        &self,
        started: Started<'_>,
        merge: impl FnOnce(&Gathered) -> Result<Vec<f32>>,
    ) -> Result<Gathered> {
        let Started { exchange, rows } = started;
        let words = exchange.wait()?;
        if !self.is_scattered {
            return Gathered::of(&words, rows)?.checked();
        }
        let own = rows.div_ceil(self.ranks.size());
        // whoever failed has said so to everybody
        let told = Gathered::of(&words, own)?.checked()?;
        let merged = merge(&told);
        let failed = merged.is_err().then(|| self.ranks.rank());
        let partials = merged.as_deref().map_or(EMPTY.repeat(own), <[f32]>::to_vec);
        let words = words_of(&partials, 0.0, failed);
        let all = self.ranks.begin("merged partials", Collective::AllGather, words)?.wait()?;
        merged?;
        let messages = || all.chunks_exact(own * WORDS + TAIL);
        if let Some(rank) = messages().position(|message| message[own * WORDS + 1] != 0) {
            return Err(Error::Failed { rank });
        }
        // the rows of one rank after those of the other
        let words = messages().flat_map(|message| &message[..own * WORDS]).take(rows * WORDS);
        let numbers = words.map(|&word| f32::from_bits(word)).collect();
        Ok(Gathered { partials: Array::from_vec(numbers, &[rows, 1, WORDS])?, ..told })
    }

    /// Computes a pass from what all ranks told of the same arguments. An upstream gradient may have come since.
    /// Where hidden states have a gradient, all ranks call this at the same time.
    ///
    /// # Errors
    /// As [`Shards::run`].
    pub fn finish<T: Operand + Clone>(
        &self,
        engine: &impl Engine<T>,
        op: &dyn Op,
        pass: Pass,
        args: &Args<T>,
        told: &Told<T>,
    ) -> Result<Output<T::Output>> {
        let is_mean = reduction(op) == Some(Reduction::Mean);
        let has_classes = args.get(Role::Target).is_none_or(|t| is_class(t.layout().dtype()));
        // of probabilities it is the number of rows, which every rank knows
        let needs_divisor = is_mean && has_classes && args.get(Role::Divisor).is_none();
        let with = |args: Args<T>| {
            let args = args.partials(told.partials.clone());
            if needs_divisor { args.divisor(told.divisor.clone()) } else { args }
        };
        let output = if self.range.is_empty() {
            self.of_no_class(engine, op, pass, args, with)
        } else {
            let op = self.of_shard(op, self.range.start)?;
            engine.run(&*op, pass, &with(args.clone())).map_err(Error::from)
        };
        // every rank knows whether there is a sum to be had
        let freezes_input = is_set(op, "freeze_input");
        let is_product = args.get(Role::Projection).is_some();
        if !is_product || !pass.has_grad() || freezes_input {
            return output;
        }
        self.with_summed_grad(engine, args, output)
    }

    /// The same op, of classes that begin there.
    fn of_shard(&self, op: &dyn Op, first: usize) -> Result<Box<dyn Op>> {
        let mut op = op.boxed();
        op.set("first_class", Value::Integer(first as i64))?;
        op.set("total_classes", Value::Integer(self.classes as i64))?;
        Ok(op)
    }

    /// How many rows there are, of arguments that the op takes.
    fn check(&self, op: &dyn Op, layouts: &Args<Layout>) -> Result<usize> {
        let (expected, role) = match layouts.get(Role::Projection) {
            Some(projection) => (projection.shape().first(), Role::Projection),
            None => (
                layouts.input().shape().get(usize::from(layouts.input().shape().len() > 1)),
                Role::Input,
            ),
        };
        if expected != Some(&self.range.len()) {
            return Err(Error::Value {
                argument: role.name(),
                expected: format!("{} classes, those of this shard", self.range.len()),
                actual: expected.map_or("none".into(), usize::to_string),
            });
        }
        if !self.range.is_empty() {
            op.outputs(Pass::Partials, layouts)?;
        }
        Ok(rows_of(layouts))
    }

    /// This rank's rows and what it has to tell of them.
    fn find_partials<T: Operand>(
        &self,
        engine: &impl Engine<T>,
        op: &dyn Op,
        args: &Args<T>,
        rows: usize,
    ) -> Result<(usize, Partials)> {
        if self.range.is_empty() {
            return Ok((rows, Partials { partials: EMPTY.repeat(rows), divisor: 0.0 }));
        }
        let told = engine.run(op, Pass::Partials, args)?;
        let partials = engine.read(told.partial()?)?.to_f32();
        let divisor = match told.get(Role::Divisor) {
            Some(divisor) => engine.read(divisor)?.item()?,
            None => 0.0,
        };
        Ok((rows, Partials { partials, divisor }))
    }

    /// One partial a row, of those of all ranks. They are on the host, and so is the merge.
    fn merge(&self, op: &dyn Op, partials: &Array<'static>) -> Result<Vec<f32>> {
        let rows = partials.shape()[0];
        if rows == 0 {
            return Ok(vec![]);
        }
        // the pass reads neither logits nor targets
        let args = Args::new(zeros(&[rows, 1], DType::F32)?)
            .target(Array::from_vec(vec![0; rows], &[rows])?)
            .partials(partials.clone());
        let op = self.of_shard(&loss_of(op)?.ignore_index(-100), 0)?;
        let merged = Cpu::default().run(&*op, Pass::Partials, &args)?;
        Ok(merged.partial()?.to_f32())
    }

    /// What a rank without classes has of a pass: the loss of whole rows, and gradients of nothing.
    fn of_no_class<T: Operand + Clone>(
        &self,
        engine: &impl Engine<T>,
        op: &dyn Op,
        pass: Pass,
        args: &Args<T>,
        with: impl Fn(Args<T>) -> Args<T>,
    ) -> Result<Output<T::Output>> {
        let mut output = Output::default();
        if pass.has_loss() {
            let args = with(self.stand_in(engine, args)?);
            let op = self.of_shard(&loss_of(op)?, 0)?;
            output = engine.run(&*op, Pass::Forward, &args)?;
        }
        let Some(layouts) = pass.has_grad().then(|| args.layouts()) else { return Ok(output) };
        let grads = match layouts.get(Role::Projection) {
            None => vec![(Role::Grad, layouts.input().clone())],
            Some(projection) => {
                let f32 = |layout: &Layout| Layout::new(layout.shape(), DType::F32);
                let of_projection = match is_set(op, "narrow_grad_projection") {
                    true => Layout::new(projection.shape(), projection.dtype()),
                    false => f32(projection),
                };
                let of_bias = layouts.get(Role::Bias).map(f32);
                let all = [
                    ("freeze_input", Role::Grad, Some(layouts.input().clone())),
                    ("freeze_projection", Role::GradProjection, Some(of_projection)),
                    ("freeze_bias", Role::GradBias, of_bias),
                ];
                let asked = all.into_iter().filter(|(freeze, ..)| !is_set(op, freeze));
                asked.filter_map(|(_, role, layout)| Some((role, layout?))).collect()
            }
        };
        for (role, layout) in grads {
            let zeros = zeros(layout.shape(), layout.dtype())?;
            output = output.with(role, engine.result(zeros)?);
        }
        Ok(output)
    }

    /// Arguments of one class, whose logits nobody reads where partials are given: for the loss on a rank
    /// without classes.
    fn stand_in<T: Operand + Clone>(
        &self,
        engine: &impl Engine<T>,
        args: &Args<T>,
    ) -> Result<Args<T>> {
        let zeros = |shape: &[usize], dtype| Ok::<_, Error>(engine.argument(zeros(shape, dtype)?)?);
        let given = args.get(Role::Target);
        let Some(target) = given.filter(|target| is_class(target.layout().dtype())) else {
            // of the shape and type of the logits
            let layout = args.input().layout();
            let mut shape = layout.shape().to_vec();
            shape[usize::from(layout.shape().len() > 1)] = 1;
            let input = Args::new(zeros(&shape, layout.dtype())?);
            return Ok(input.target(zeros(&shape, layout.dtype())?));
        };
        let mut shape = target.layout().shape().to_vec();
        shape.insert(shape.len().min(1), 1);
        Ok(Args::new(zeros(&shape, DType::F32)?).target(target.clone()))
    }

    /// The gradient of hidden states, to which every rank has a part.
    fn with_summed_grad<T: Operand>(
        &self,
        engine: &impl Engine<T>,
        args: &Args<T>,
        output: Result<Output<T::Output>>,
    ) -> Result<Output<T::Output>> {
        let layout = args.input().layout();
        let part = output.and_then(|output| {
            let part = engine.read(output.grad()?)?.to_f32();
            Ok((output, part))
        });
        let (part, mut sums) = match part {
            Ok((output, part)) => (Ok(output), part),
            Err(error) => (Err(error), vec![0.0; layout.elements()]),
        };
        let summed = self.ranks.sum_agreed(&mut sums, part.is_err());
        let mut output = part?;
        summed?;
        let sums = Array::from_vec(sums, layout.shape())?.to_dtype(layout.dtype())?;
        if let Some(mut grad) = output.take(Role::Grad) {
            engine.overwrite(&mut grad, sums)?;
            output = output.with(Role::Grad, grad);
        }
        Ok(output)
    }
}

/// What a rank has to tell.
struct Partials {
    partials: Vec<f32>,
    divisor: f32,
}

/// What came of one exchange.
struct Gathered {
    /// `[rows, shards, 8]`.
    partials: Array<'static>,
    /// The sum of the divisors, in the order of ranks.
    divisor: Array<'static>,
    /// The first rank that failed.
    failed: Option<usize>,
}

impl Gathered {
    /// Of the partials of all ranks of the same rows.
    fn of(words: &[u32], rows: usize) -> Result<Self> {
        let (mut partials, mut divisors, mut failed) = (vec![], vec![], None);
        for message in words.chunks_exact(rows * WORDS + TAIL) {
            let numbers: Vec<f32> = message.iter().map(|&word| f32::from_bits(word)).collect();
            divisors.push(Array::scalar(numbers[rows * WORDS]));
            failed = failed.or(message[rows * WORDS + 1].checked_sub(1));
            let of_rank = numbers[..rows * WORDS].to_vec();
            partials.push(Array::from_vec(of_rank, &[rows, 1, WORDS])?);
        }
        Ok(Gathered {
            partials: wgloss::shards::gather(&partials)?,
            divisor: wgloss::shards::sum(&divisors)?,
            failed: failed.map(|rank| rank as usize),
        })
    }

    /// An error where a rank has failed.
    fn checked(self) -> Result<Self> {
        match self.failed {
            Some(rank) => Err(Error::Failed { rank }),
            None => Ok(self),
        }
    }
}

/// A rank's message.
fn words_of(partials: &[f32], divisor: f32, failed: Option<usize>) -> Vec<u32> {
    let failed = failed.map_or(0, |rank| rank as u32 + 1);
    partials.iter().chain(&[divisor]).map(|number| number.to_bits()).chain([failed]).collect()
}

/// The cross entropy that a product is made of: its options of the same names.
fn loss_of(op: &dyn Op) -> Result<CrossEntropy> {
    let mut loss = CrossEntropy::default();
    let known: Vec<_> = loss.options().iter().map(|info| info.name).collect();
    for info in op.options().iter().filter(|info| known.contains(&info.name)) {
        loss.set(info.name, info.value)?;
    }
    Ok(loss)
}

/// What [`Pass::Partials`] takes of the arguments of other passes.
fn of_partials<T: Clone>(args: &Args<T>) -> Args<T> {
    args.iter().fold(Args::new(args.input().clone()), |all, (role, argument)| match role {
        Role::Target => all.target(argument.clone()),
        Role::Weight => all.weight(argument.clone()),
        Role::Projection => all.projection(argument.clone()),
        Role::Bias => all.bias(argument.clone()),
        _ => all,
    })
}

fn rows_of(layouts: &Args<Layout>) -> usize {
    let shape = layouts.input().shape();
    let all_but = |axis: usize| {
        let kept = shape.iter().enumerate().filter(|(i, _)| *i != axis);
        kept.map(|(_, size)| size).product()
    };
    match layouts.get(Role::Projection) {
        Some(_) => all_but(shape.len().wrapping_sub(1)),
        None => all_but(usize::from(shape.len() > 1)),
    }
}

fn zeros(shape: &[usize], dtype: DType) -> Result<Array<'static>> {
    let zeros = vec![0.0_f32; shape.iter().product()];
    Ok(Array::from_vec(zeros, shape)?.to_dtype(dtype)?)
}

fn is_class(dtype: DType) -> bool {
    matches!(dtype, DType::I32 | DType::I64)
}

/// How an op reduces losses.
pub(crate) fn reduction(op: &dyn Op) -> Option<Reduction> {
    op.options().into_iter().find_map(|info| match info.value {
        Value::Reduction(reduction) => Some(reduction),
        _ => None,
    })
}

/// Whether an option that is yes or no is yes.
fn is_set(op: &dyn Op, name: &str) -> bool {
    op.options().iter().any(|info| info.name == name && info.value == Value::Bool(true))
}
