//! Rows that are divided among ranks.

use wgloss::options::Value;
use wgloss::{Args, Array, DType, Op, Operand, Output, Pass, Reduction, Role};

use crate::agree::{Call, Kind};
use crate::shards::reduction;
use crate::transport::Collective;
use crate::{Engine, Error, Ranks, Result};

/// A loss whose rows are divided among ranks: each rank has a part of the batch, of any size, and all
/// classes.
///
/// The mean divides by the divisor of the whole batch, so that gradients of logits are what one process would
/// compute of all rows: the same bits, where the sum of the targets' weights is exact in f32 (without
/// weights it is a count). The loss is the sum of the ranks' losses, in f64 and in their order,
/// rounded once: the same bits on every rank. Gradients of a model's parameters are parts of a sum:
/// [`Ranks::sum`] adds them. A mean is that of [`CrossEntropy`](wgloss::CrossEntropy) or
/// [`LinearCrossEntropy`](wgloss::LinearCrossEntropy); other losses are summed or not reduced.
///
/// ```no_run
/// use wgloss::{Args, Array, CrossEntropy};
/// use wgloss_mpi::{Batch, Ranks};
///
/// let universe = mpi::initialize().expect("MPI");
/// let ranks = Ranks::new(&universe.world())?;
/// let gpu = ranks.gpu()?;
/// let (logits, target) = (vec![0.0_f32; 128 * 10], vec![7; 128]); // of this rank's rows
/// let args = Args::new(Array::new(&logits, &[128, 10])?).target(Array::from(&target));
/// let out = Batch::new(&ranks).forward_backward(&gpu, &CrossEntropy::default(), &args)?;
/// println!("{} of all rows", out.loss()?.item()?);
/// # Ok::<_, wgloss_mpi::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Batch<'r> {
    ranks: &'r Ranks,
}

impl<'r> Batch<'r> {
    /// Over these ranks.
    pub fn new(ranks: &'r Ranks) -> Self {
        Batch { ranks }
    }

    /// Computes the loss.
    ///
    /// # Errors
    /// As [`Batch::run`].
    pub fn forward<T: Operand + Clone>(
        &self,
        engine: &impl Engine<T>,
        op: &dyn Op,
        args: &Args<T>,
    ) -> Result<Output<T::Output>> {
        self.run(engine, op, Pass::Forward, args)
    }

    /// Computes the gradient.
    ///
    /// # Errors
    /// As [`Batch::run`].
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
    /// As [`Batch::run`].
    pub fn forward_backward<T: Operand + Clone>(
        &self,
        engine: &impl Engine<T>,
        op: &dyn Op,
        args: &Args<T>,
    ) -> Result<Output<T::Output>> {
        self.run(engine, op, Pass::ForwardBackward, args)
    }

    /// Computes whichever pass: all ranks call it at the same time. The divisor is found on the host, from the
    /// targets and class weights, which are read back where they are on the device. A mean's divisor may be
    /// given instead ([`Args::divisor`]).
    ///
    /// # Errors
    /// [`Error::Loss`] of what wgloss refuses or the device fails in; [`Error::Failed`] where that happens to
    /// another rank; [`Error::Disagree`] where ranks have other options, classes or storage;
    /// [`Error::Timeout`], [`Error::Broken`], [`Error::Mpi`].
    pub fn run<T: Operand + Clone>(
        &self,
        engine: &impl Engine<T>,
        op: &dyn Op,
        pass: Pass,
        args: &Args<T>,
    ) -> Result<Output<T::Output>> {
        let layouts = args.layouts();
        let call = Call::new(Kind::Batch).op(op);
        let checked = op.outputs(pass, &layouts).map_err(Error::from);
        let own = checked.and_then(|_| Own::of(engine, op, args));
        let agreement = self.ranks.agree(match &own {
            Ok(own) => {
                let projection = layouts.get(Role::Projection).map(|layout| layout.shape());
                let shape = layouts.input().shape();
                let classes = match projection {
                    Some(projection) => projection[0],
                    None => shape.get(usize::from(shape.len() > 1)).copied().unwrap_or(1),
                };
                let dims = projection.map_or(0, |p| p[1]);
                let target = layouts.get(Role::Target).map_or(DType::I32, |t| t.dtype());
                let is_weighted = layouts.get(Role::Weight).is_some();
                call.classes(classes).args(layouts.input(), dims, target, is_weighted).own([
                    own.divisor.to_bits(),
                    own.kept,
                    0,
                ])
            }
            Err(_) => call.failed(),
        })?;
        let agreed = match (own, agreement.wait()) {
            (Err(error), _) | (_, Err(error)) => return Err(error),
            (Ok(_), Ok(agreed)) => agreed,
        };
        let (divisors, kept): (Vec<_>, Vec<_>) =
            agreed.own().map(|[divisor, kept, _]| (f64::from_bits(divisor), kept)).unzip();
        let divisor = divisors.into_iter().sum::<f64>() as f32;
        let is_mean = reduction(op) == Some(Reduction::Mean);
        let given = args.get(Role::Divisor).is_some();
        let output = if is_mean && !given {
            let divisor = engine.argument(Array::scalar(divisor));
            divisor.and_then(|divisor| engine.run(op, pass, &args.clone().divisor(divisor)))
        } else {
            engine.run(op, pass, args)
        };
        if !pass.has_loss() || reduction(op) == Some(Reduction::None) {
            return Ok(output?);
        }
        let is_empty = is_mean && !given && kept.iter().sum::<u64>() == 0;
        let loss = output.and_then(|output| {
            let loss = engine.read(output.loss()?)?.item()?;
            Ok((output, loss))
        });
        let words = loss.as_ref().map_or([0, 1], |(_, loss)| [loss.to_bits(), 0]);
        let words = self.ranks.begin("losses", Collective::AllGather, words.to_vec())?.wait()?;
        let (mut output, mut loss) = loss?;
        if let Some(rank) = words.chunks_exact(2).position(|words| words[1] != 0) {
            return Err(Error::Failed { rank });
        }
        // of no row every rank has said what the mean is
        if !is_empty {
            let losses = words.chunks_exact(2).map(|words| f64::from(f32::from_bits(words[0])));
            let sum = if is_mean && !given && divisor == 0.0 { f64::NAN } else { losses.sum() };
            loss = sum as f32;
        }
        if let Some(mut place) = output.take(Role::Loss) {
            engine.overwrite(&mut place, Array::scalar(loss))?;
            output = output.with(Role::Loss, place);
        }
        Ok(output)
    }
}

/// What this rank has of the divisor.
struct Own {
    divisor: f64,
    /// How many rows are kept.
    kept: u64,
}

impl Own {
    fn of<T: Operand>(engine: &impl Engine<T>, op: &dyn Op, args: &Args<T>) -> Result<Self> {
        let is_given = args.get(Role::Divisor).is_some();
        let needed = reduction(op) == Some(Reduction::Mean) && !is_given;
        let Some(target) = args.get(Role::Target).filter(|_| needed) else {
            return Ok(Own { divisor: 0.0, kept: 1 });
        };
        if !matches!(target.layout().dtype(), DType::I32 | DType::I64) {
            let shape = args.input().layout().shape();
            let rows: usize = shape
                .iter()
                .enumerate()
                .filter(|(i, _)| *i != usize::from(shape.len() > 1))
                .map(|(_, n)| n)
                .product();
            return Ok(Own { divisor: rows as f64, kept: rows as u64 });
        }
        let weight = args.get(Role::Weight).map(|weight| engine.read_argument(weight));
        let weight = weight.transpose()?.map(|weight| weight.to_f32());
        let shape = args.input().layout().shape();
        let projection = args.get(Role::Projection).map(|p| p.layout().shape()[0]);
        let classes = projection.unwrap_or_else(|| shape[usize::from(shape.len() > 1)]);
        let ignored = op.options().into_iter().find_map(|info| match info.value {
            Value::Integer(class) if info.name == "ignore_index" => Some(class),
            _ => None,
        });
        let mut own = Own { divisor: 0.0, kept: 0 };
        let target = engine.read_argument(target)?;
        for class in target.to_i64()? {
            // a class out of range is the engine's to refuse
            let class_index = usize::try_from(class).ok().filter(|&class| class < classes);
            let (Some(class_index), false) = (class_index, Some(class) == ignored) else {
                continue;
            };
            own.kept += 1;
            own.divisor += weight.as_ref().map_or(1.0, |weight| weight[class_index].into());
        }
        Ok(own)
    }
}
