//! Arguments from files: whole, or some rows at a time (`--batch-rows`).

use std::ops::Range;

use anyhow::{Context, Result, ensure};
use wgloss::{Args, Array, DType, Error, Layout, Output, Pass, Reduction, Role};

use crate::files::{Kind, Place, Source, Tensor};
use crate::machine::Machine;
use crate::ops::{Host, Job, Rows, set};

/// The arguments, their headers read and their elements not yet.
pub struct Sources {
    input: Source,
    given: Vec<(&'static str, Source)>,
}

impl Sources {
    /// Opens the files.
    pub fn open(job: &Job, input: &Place) -> Result<Self> {
        let open = |name: &str, place: &Place, kind| {
            Source::open(place, name, kind).with_context(|| format!("{} {place}", flag(name)))
        };
        let given = job.given.iter();
        Ok(Sources {
            input: open("input", input, Kind::Numbers)?,
            given: given
                .map(|given| Ok((given.name, open(given.name, &given.place, given.kind)?)))
                .collect::<Result<_>>()?,
        })
    }

    /// Shapes and types.
    pub fn layouts(&self) -> Args<Layout> {
        let args = Args::new(self.input.layout());
        self.given.iter().fold(args, |args, (name, source)| set(args, name, source.layout()))
    }

    /// All of the arguments.
    pub fn read(&self) -> Result<Args<Host>> {
        let mut args = Args::new(self.input.read().context("--input")?);
        for (name, source) in &self.given {
            args = set(args, name, source.read().with_context(|| flag(name))?);
        }
        Ok(args)
    }

    fn get(&self, name: &str) -> Option<&Source> {
        self.given.iter().find(|(given, _)| *given == name).map(|(_, source)| source)
    }
}

/// `pos_weight` as `--pos-weight`.
pub fn flag(name: &str) -> String {
    format!("--{}", name.replace('_', "-"))
}

/// A run in batches.
pub struct Batches<'a> {
    job: &'a Job,
    pass: Pass,
    sources: &'a Sources,
    /// Rows of the input, and of a batch.
    rows: usize,
    size: usize,
    /// Arguments that every batch takes whole.
    whole: Vec<(&'static str, Host)>,
    /// The one upstream gradient of a mean or sum.
    upstream: f64,
    /// What turns the sum of all losses into their mean.
    mean: Option<Mean>,
}

/// The divisor of a mean, known before the first batch, since gradients take it too.
#[derive(Debug, Clone, Copy)]
struct Mean {
    divisor: f64,
    /// The mean where no row is kept.
    empty: Option<f64>,
}

impl Mean {
    fn of(self, sum: f64) -> f64 {
        match self.empty {
            Some(value) => value,
            None if self.divisor == 0.0 => f64::NAN,
            None => sum / self.divisor,
        }
    }

    /// What multiplies the gradients of a sum.
    fn factor(self) -> f64 {
        match self.empty {
            // they are zeros
            Some(_) => 1.0,
            None if self.divisor == 0.0 => f64::NAN,
            None => 1.0 / self.divisor,
        }
    }
}

impl<'a> Batches<'a> {
    /// Refuses what cannot be done in batches, and reads what all of them need.
    pub fn new(job: &'a Job, pass: Pass, sources: &'a Sources, size: usize) -> Result<Self> {
        let layout = sources.input.layout();
        let shape = layout.shape();
        ensure!(
            !shape.is_empty(),
            "--batch-rows: expected an input of at least one dimension, got {shape:?}"
        );
        match job.rows {
            Rows::OfElements => {}
            Rows::OfClasses { .. } => ensure!(
                shape.len() >= 2,
                "--batch-rows: expected an input of shape [N, C] or [N, C, d1, ...], got {shape:?}"
            ),
            Rows::Along(dim) => {
                let is_first = dim == 0 || dim == -(shape.len() as i64);
                ensure!(
                    !is_first,
                    "--batch-rows: expected a --dim other than the first of {shape:?}, which is \
                     divided into batches, got {dim}"
                );
            }
        }
        let mut batches = Batches {
            job,
            pass,
            sources,
            rows: shape[0],
            // of nothing, one batch is enough, however many rows there are
            size: if layout.elements() == 0 { shape[0].max(1) } else { size },
            whole: vec![],
            upstream: 1.0,
            mean: None,
        };
        for (name, source) in &sources.given {
            if !batches.has_rows(name, source) {
                let value = source.read().with_context(|| flag(name))?;
                match *name {
                    "upstream" => batches.upstream = value.item()?.into(),
                    _ => batches.whole.push((name, value)),
                }
            }
        }
        batches.mean = batches.mean()?;
        Ok(batches)
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How many batches: one of no rows where there are none.
    pub fn count(&self) -> usize {
        self.rows.div_ceil(self.size).max(1)
    }

    fn range(&self, index: usize) -> Range<usize> {
        index * self.size..self.rows.min((index + 1) * self.size)
    }

    /// Whether the job's losses become one number.
    fn is_reduced(&self) -> bool {
        self.job.reduction.is_some_and(|reduction| reduction != Reduction::None)
    }

    /// Whether an argument is divided into batches like the input.
    fn has_rows(&self, name: &str, source: &Source) -> bool {
        let (own, input) = (source.layout(), self.sources.input.layout());
        match name {
            "target" => true,
            "upstream" => !self.is_reduced(),
            // weights of classes, or of elements, which broadcast
            _ => {
                own.shape().len() == input.shape().len()
                    && own.shape().first() == input.shape().first()
            }
        }
    }

    fn mean(&self) -> Result<Option<Mean>> {
        let layout = self.sources.input.layout();
        let simple = |divisor: usize, empty| {
            Ok(Some(Mean { divisor: divisor as f64, empty: (divisor == 0).then_some(empty) }))
        };
        match (self.job.reduction, self.job.rows) {
            (Some(Reduction::BatchMean), _) => simple(self.rows, f64::NAN),
            (Some(Reduction::Mean), Rows::OfClasses { ignore_index, empty_mean }) => {
                match self.sources.get("target") {
                    Some(target) if matches!(target.layout().dtype(), DType::I32 | DType::I64) => {
                        self.mean_of_kept(target, ignore_index, empty_mean).map(Some)
                    }
                    _ => simple(layout.elements() / layout.shape()[1], empty_mean),
                }
            }
            (Some(Reduction::Mean), _) => simple(layout.elements(), f64::NAN),
            _ => Ok(None),
        }
    }

    /// The sum of the target classes' weights, by a pass over the targets alone.
    fn mean_of_kept(&self, target: &Source, ignore_index: i64, empty: f64) -> Result<Mean> {
        let weight = self.whole.iter().find(|(name, _)| *name == "weight");
        let weight = weight.map(|(_, array)| array.to_f64());
        let (mut divisor, mut kept) = (0.0, false);
        for index in 0..self.count() {
            let target = target.rows(self.range(index)).context("--target")?;
            for class in target.to_i64()?.into_iter().filter(|&class| class != ignore_index) {
                kept = true;
                // a class out of range is an error of its batch
                divisor += match &weight {
                    Some(weight) => weight.get(class as usize).copied().unwrap_or(0.0),
                    None => 1.0,
                };
            }
        }
        Ok(Mean { divisor, empty: (!kept).then_some(empty) })
    }

    /// Computes all batches. `take` gets the results that have rows, batch by batch with their
    /// number of rows, and at last those that have none.
    pub fn run(
        &self,
        machine: &Machine,
        explain: impl Fn(&Error) -> anyhow::Error,
        mut take: impl FnMut(Output<Tensor>, usize) -> Result<()>,
    ) -> Result<()> {
        let factor = self.mean.map_or(1.0, Mean::factor);
        // float64 results are divided in float64, others by the upstream gradient, which is f32
        let (before, after) =
            if machine.is_exact() && !factor.is_nan() { (1.0, factor) } else { (factor, 1.0) };
        let batches = (0..self.count()).map(|index| self.args(self.range(index), before));
        let (mut index, mut sum, mut last) = (0, 0.0, None);
        machine.run_batches(&*self.job.op, self.pass, batches, |output| {
            let rows = self.range(index);
            let mut output = output.map_err(|error| self.explain(error, &rows, &explain))?;
            if let Some(mut grad) = output.take(Role::Grad) {
                if let Tensor::Exact(grad) = &mut grad {
                    grad.values.iter_mut().for_each(|value| *value *= after);
                }
                output = output.with(Role::Grad, grad);
            }
            if self.is_reduced()
                && let Some(loss) = output.take(Role::Loss)
            {
                sum += loss.to_f64().iter().sum::<f64>();
                last = Some(loss);
            }
            index += 1;
            take(output, rows.len())
        })?;
        let loss = self.mean.map_or(sum, |mean| mean.of(sum));
        let loss = last.map(|last| match last {
            Tensor::Stored(_) => Array::scalar(loss as f32).into(),
            Tensor::Exact(mut values) => {
                values.values = vec![loss];
                Tensor::Exact(values)
            }
        });
        take(loss.into_iter().map(|loss| (Role::Loss, loss)).collect(), 0)
    }

    /// The arguments of a batch, whose gradients are to be multiplied by `factor`.
    fn args(&self, rows: Range<usize>, factor: f64) -> Result<Args<Host>> {
        let sources = self.sources;
        let mut args = Args::new(sources.input.rows(rows.clone()).context("--input")?);
        for (name, array) in &self.whole {
            args = set(args, name, array.clone());
        }
        for (name, source) in &sources.given {
            if self.has_rows(name, source) {
                let array = source.rows(rows.clone()).with_context(|| flag(name))?;
                args = set(args, name, array);
            }
        }
        if self.is_reduced() && self.pass.has_grad() {
            args = args.upstream(Array::scalar((self.upstream * factor) as f32));
        }
        Ok(args)
    }

    /// A batch's error, with rows counted from the first batch's.
    fn explain(
        &self,
        error: Error,
        rows: &Range<usize>,
        explain: impl Fn(&Error) -> anyhow::Error,
    ) -> anyhow::Error {
        let error = match error {
            Error::Batch { error, .. } => *error,
            error => error,
        };
        if let Error::Class { row, class, classes } = error {
            let positions: usize = self.sources.input.layout().shape()[2..].iter().product();
            let row = row + (rows.start * positions) as u64;
            return explain(&Error::Class { row, class, classes });
        }
        explain(&error).context(format!("rows {}..{}", rows.start, rows.end))
    }
}
