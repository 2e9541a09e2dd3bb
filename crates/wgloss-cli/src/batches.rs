//! Arguments from files: whole, or some rows at a time (`--batch-rows`).

use std::ops::Range;

use anyhow::{Context, Result, bail};
use wgloss::options::Value;
use wgloss::{Args, Array, DType, Data, Error, Layout, Op, Output, Pass, Reduction, Role};

use crate::files::{Kind, Opened, Place, Source, Sum, Tensor, Wanted};
use crate::machine::{Device, Machine, Size};
use crate::ops::{Host, Job, Rows, integer, is_on, set};
use crate::{devices, memory};

/// The arguments, their headers read and their elements not yet.
pub struct Sources {
    input: Argument,
    given: Vec<Argument>,
    /// The class that marks rows to be left out, where targets are classes.
    ignore_index: Option<i64>,
}

/// An argument and its file.
struct Argument {
    /// The library's name for it.
    name: &'static str,
    place: Place,
    source: Source,
}

impl Argument {
    /// `--input x.npy`
    fn label(&self) -> String {
        format!("{} {}", flag(self.name), self.place)
    }

    fn read(&self) -> Result<Host> {
        self.source.read().with_context(|| self.label())
    }

    fn rows(&self, rows: Range<usize>) -> Result<Host> {
        self.source.rows(rows).with_context(|| self.label())
    }

    fn size(&self) -> Size {
        let elements = self.source.layout().elements() as u64;
        let bytes = elements.saturating_mul(self.source.element_bytes() as u64);
        // rows that lie apart are put together in a second array
        let copies = if self.source.is_fortran() { 2 } else { 1 };
        Size { bytes: bytes.saturating_mul(copies), elements }
    }
}

impl Sources {
    /// Opens the files.
    pub fn open(job: &Job, input: &Place) -> Result<Self> {
        let is_exact = job.common.device == Device::Reference;
        let mut opened = Opened::default();
        let mut open = |name: &'static str, place: &Place, kind, float| {
            let wanted = Wanted { kind, float, is_exact };
            let source = Source::open(&mut opened, place, name, wanted);
            let source = source.with_context(|| format!("{} {place}", flag(name)))?;
            anyhow::Ok(Argument { name, place: place.clone(), source })
        };
        let input = open("input", input, Kind::Numbers, DType::F32)?;
        let of_input = input.source.layout().dtype();
        let given = job.given.iter().map(|given| {
            open(given.name, &given.place, given.kind, job.float(given.name, of_input))
        });
        let given = given.collect::<Result<_>>()?;
        let mut sources = Sources { input, given, ignore_index: None };
        if let Rows::OfClasses { ignore_index, .. } = job.rows {
            let target = sources.get("target").map(|target| target.source.layout().dtype());
            let has_classes = matches!(target, Some(DType::I32 | DType::I64));
            sources.ignore_index = has_classes.then_some(ignore_index);
        }
        Ok(sources)
    }

    /// Shapes and types.
    pub fn layouts(&self) -> Args<Layout> {
        let args = Args::new(self.input.source.layout());
        self.given.iter().fold(args, |args, given| set(args, given.name, given.source.layout()))
    }

    /// All of the arguments.
    pub fn read(&self) -> Result<Args<Host>> {
        let mut args = Args::new(self.input.read()?);
        for given in &self.given {
            args = set(args, given.name, given.read()?);
        }
        Ok(args)
    }

    /// Which rows of the whole, or of a batch, are not left out; `None` where none can be.
    pub fn kept(&self, rows: Option<Range<usize>>) -> Result<Option<Vec<bool>>> {
        let (Some(target), Some(ignored)) = (self.get("target"), self.ignore_index) else {
            return Ok(None);
        };
        let target = match rows {
            Some(rows) => target.rows(rows)?,
            None => target.read()?,
        };
        Ok(Some(target.to_i64()?.into_iter().map(|class| class != ignored).collect()))
    }

    /// What was lost by conversion.
    pub fn notes(&self) -> Vec<String> {
        let all = std::iter::once(&self.input).chain(&self.given);
        let notes = all.map(|argument| Some((argument.label(), argument.source.note()?)));
        notes.flatten().map(|(label, note)| format!("{label}: {note}")).collect()
    }

    /// Refuses what memory does not hold, before it is read: arguments and results at once, and logits that
    /// are products, of which `memory` tells what a call takes.
    pub fn expect_memory(
        &self,
        job: &Job,
        results: &Output<Layout>,
        memory: impl Fn([Size; 3]) -> u64,
    ) -> Result<()> {
        let shape = self.input.source.layout();
        let rows = shape.shape().first().map_or(1, |&rows| rows as u64);
        let at_once = job.common.batch_rows.map_or(rows, |size| rows.min(size.get() as u64));
        // of what has as many rows as the input, those of the batches that are in flight
        const IN_FLIGHT: u64 = 3;
        let part = |name: &str, size: Size, layout: &Layout| {
            let first = layout.shape().first();
            let is_divided = !is_whole(name) && first.is_some_and(|&first| first as u64 == rows);
            if at_once == rows {
                return size;
            }
            if !is_divided {
                // a batch has a copy of its own, and what is summed is beside what is added to it
                let copies = if is_whole(name) { 2 } else { 1 };
                return Size { bytes: size.bytes.saturating_mul(copies), ..size };
            }
            let part = |all: u64| {
                let part =
                    u128::from(all) * u128::from(at_once * IN_FLIGHT) / u128::from(rows.max(1));
                all.min(part as u64)
            };
            Size { bytes: part(size.bytes), elements: part(size.elements) }
        };
        let sum = |all: &mut Size, size: Size| {
            all.bytes = all.bytes.saturating_add(size.bytes);
            all.elements = all.elements.saturating_add(size.elements);
        };
        let mut sizes = [Size::default(); 3];
        for argument in std::iter::once(&self.input).chain(&self.given) {
            let layout = argument.source.layout();
            sum(&mut sizes[0], part(argument.name, argument.size(), &layout));
        }
        for (role, layout) in results.iter() {
            let size = Size { bytes: layout.bytes(), elements: layout.elements() as u64 };
            sum(&mut sizes[1], part(role.name(), size, layout));
        }
        if let Some(projection) = self.get("projection") {
            let projection = projection.source.layout();
            let classes = projection.shape().first().map_or(0, |&classes| classes as u64);
            // hidden states without a batch are one row
            let states = match shape.shape() {
                [_, positions @ .., _] => {
                    positions.iter().fold(at_once, |all, &size| all.saturating_mul(size as u64))
                }
                _ => 1,
            };
            let elements = states.saturating_mul(classes);
            let room = u64::try_from(integer(&*job.op, "workspace_bytes")).unwrap_or(0);
            sizes[2] = Size { bytes: elements.saturating_mul(4).min(room), elements };
        }
        let bytes = memory(sizes);
        if memory::has_room(bytes) {
            return Ok(());
        }
        let advice = self.advice(job).map(|advice| format!(": {advice}")).unwrap_or_default();
        let bytes = devices::in_units(bytes);
        bail!(
            "{}: expected memory for {bytes}, arguments and results together, found less{advice}",
            self.input.label()
        )
    }

    /// How to take less memory at once, where there is a way.
    pub fn advice(&self, job: &Job) -> Option<&'static str> {
        let layout = self.input.source.layout();
        let shape = layout.shape();
        let is_divisible = divides(job.rows, shape) && !self.input.source.is_fortran();
        let rows = shape.first().copied().unwrap_or(1);
        match job.common.batch_rows {
            _ if !is_divisible || rows <= 1 => None,
            None => Some("--batch-rows divides the work"),
            Some(size) if size.get() > 1 => Some("fewer --batch-rows take less at once"),
            Some(_) => None,
        }
    }

    fn get(&self, name: &str) -> Option<&Argument> {
        self.given.iter().find(|given| given.name == name)
    }
}

/// Whether an input can be divided by its first dimension.
fn divides(rows: Rows, shape: &[usize]) -> bool {
    match rows {
        Rows::OfElements => !shape.is_empty(),
        Rows::OfClasses { .. } => shape.len() >= 2,
        Rows::Along(dim) => !shape.is_empty() && dim != 0 && dim != -(shape.len() as i64),
    }
}

/// Whether an argument or a result has no rows of the input's, whatever its shape.
fn is_whole(name: &str) -> bool {
    ["projection", "bias", "grad_projection", "grad_bias"].contains(&name)
}

/// `pos_weight` as `--pos-weight`.
pub fn flag(name: &str) -> String {
    format!("--{}", name.replace('_', "-"))
}

/// The option that stores the projection's gradient as the projection is.
const NARROW: &str = "narrow_grad_projection";

/// A run in batches.
pub struct Batches<'a> {
    job: &'a Job,
    /// That of a batch: what is summed over batches is rounded to 16 bits when all are added.
    op: Box<dyn Op>,
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
        let layout = sources.input.source.layout();
        let shape = layout.shape();
        match job.rows {
            _ if divides(job.rows, shape) => {}
            Rows::OfClasses { is_linear: true, .. } => bail!(
                "--batch-rows: expected an input of shape [N, D] or [N, ..., D], got {shape:?}"
            ),
            Rows::OfClasses { .. } if !shape.is_empty() => bail!(
                "--batch-rows: expected an input of shape [N, C] or [N, C, d1, ...], got {shape:?}"
            ),
            Rows::Along(dim) if !shape.is_empty() => bail!(
                "--batch-rows: expected a --dim other than the first of {shape:?}, which is \
                 divided into batches, got {dim}"
            ),
            _ => bail!("--batch-rows: expected an input of at least one dimension, got {shape:?}"),
        }
        let mut op = job.op.clone();
        if is_on(&*op, NARROW) {
            op.set(NARROW, Value::Bool(false))?;
        }
        let mut batches = Batches {
            job,
            op,
            pass,
            sources,
            rows: shape[0],
            // of nothing, one batch is enough, however many rows there are
            size: if layout.elements() == 0 { shape[0].max(1) } else { size },
            whole: vec![],
            upstream: 1.0,
            mean: None,
        };
        for given in &sources.given {
            if !batches.has_rows(given) {
                let value = given.read()?;
                match given.name {
                    // one, as the op's checks have found
                    "upstream" => batches.upstream = value.to_f64().first().copied().unwrap_or(1.0),
                    name => batches.whole.push((name, value)),
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
    fn has_rows(&self, given: &Argument) -> bool {
        let (own, input) = (given.source.layout(), self.sources.input.source.layout());
        match given.name {
            "target" => true,
            "upstream" => !self.is_reduced(),
            name if is_whole(name) => false,
            // weights of classes, or of elements, which broadcast
            _ => {
                own.shape().len() == input.shape().len()
                    && own.shape().first() == input.shape().first()
            }
        }
    }

    fn mean(&self) -> Result<Option<Mean>> {
        let layout = self.sources.input.source.layout();
        let simple = |divisor: usize, empty| {
            Ok(Some(Mean { divisor: divisor as f64, empty: (divisor == 0).then_some(empty) }))
        };
        match (self.job.reduction, self.job.rows) {
            (Some(Reduction::BatchMean), _) => simple(self.rows, f64::NAN),
            (Some(Reduction::Mean), Rows::OfClasses { ignore_index, empty_mean, .. }) => {
                match (self.sources.get("target"), self.sources.ignore_index) {
                    (Some(target), Some(_)) => {
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
    fn mean_of_kept(&self, target: &Argument, ignore_index: i64, empty: f64) -> Result<Mean> {
        let weight = self.whole.iter().find(|(name, _)| *name == "weight");
        let weight = weight.map(|(_, array)| array.to_f64());
        let (mut divisor, mut kept) = (0.0, false);
        for index in 0..self.count() {
            let target = target.rows(self.range(index))?;
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

    /// Computes all batches. `take` gets the results that have rows, batch by batch with their rows, and at
    /// last those that have none.
    pub fn run(
        &self,
        machine: &Machine,
        explain: impl Fn(&Error) -> anyhow::Error,
        mut take: impl FnMut(Output<Tensor>, Range<usize>) -> Result<()>,
    ) -> Result<()> {
        let factor = self.mean.map_or(1.0, Mean::factor);
        // float64 results are divided in float64, others by the upstream gradient, which is f32
        let (before, after) =
            if machine.is_exact() && !factor.is_nan() { (1.0, factor) } else { (factor, 1.0) };
        let batches = (0..self.count()).map(|index| self.args(self.range(index), before));
        let (mut index, mut sum, mut last) = (0, 0.0, None);
        // gradients that are sums over all rows
        let mut sums: Vec<(Role, Sum)> = Vec::new();
        machine.run_batches(&*self.op, self.pass, batches, |output| {
            let rows = self.range(index);
            let mut output = output.map_err(|error| self.explain(error, &rows, &explain))?;
            for role in [Role::Grad, Role::GradProjection, Role::GradBias] {
                let Some(mut grad) = output.take(role) else { continue };
                if let Tensor::Exact(grad) = &mut grad {
                    grad.values.iter_mut().for_each(|value| *value *= after);
                }
                match sums.iter_mut().find(|(of, _)| *of == role) {
                    _ if role == Role::Grad => output = output.with(role, grad),
                    Some((_, sum)) => sum.add(&grad),
                    None => sums.push((role, Sum::new(grad))),
                }
            }
            if self.is_reduced()
                && let Some(loss) = output.take(Role::Loss)
            {
                sum += loss.to_f64().iter().sum::<f64>();
                last = Some(loss);
            }
            index += 1;
            take(output, rows)
        })?;
        let loss = self.mean.map_or(sum, |mean| mean.of(sum));
        let loss = last.map(|last| match last {
            Tensor::Stored(_) => Array::scalar(loss as f32).into(),
            Tensor::Exact(mut values) => {
                values.values = vec![loss];
                Tensor::Exact(values)
            }
        });
        let mut last: Output<Tensor> = loss.into_iter().map(|loss| (Role::Loss, loss)).collect();
        for (role, sum) in sums {
            let dtype = if role == Role::GradProjection { self.sum_dtype() } else { DType::F32 };
            last = last.with(role, sum.finish(dtype)?);
        }
        take(last, 0..0)
    }

    /// How the sum of the batches' gradients of the projection is stored.
    fn sum_dtype(&self) -> DType {
        match (is_on(&*self.job.op, NARROW), self.sources.get("projection")) {
            (true, Some(projection)) => projection.source.layout().dtype(),
            _ => DType::F32,
        }
    }

    /// The arguments of a batch, whose gradients are to be multiplied by `factor`.
    fn args(&self, rows: Range<usize>, factor: f64) -> Result<Args<Host>> {
        let sources = self.sources;
        let mut args = Args::new(sources.input.rows(rows.clone())?);
        for (name, array) in &self.whole {
            args = set(args, name, array.clone());
        }
        for given in &sources.given {
            if self.has_rows(given) {
                args = set(args, given.name, given.rows(rows.clone())?);
            }
        }
        if self.is_reduced() && self.pass.has_grad() {
            let upstream = self.upstream * factor;
            args = args.upstream(match self.job.common.device {
                Device::Reference => Array::from_data(Data::F64(vec![upstream].into()), &[])?,
                _ => Array::scalar(upstream as f32),
            });
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
            let layout = self.sources.input.source.layout();
            let positions = match (self.job.rows, layout.shape()) {
                (Rows::OfClasses { is_linear: true, .. }, [_, positions @ .., _]) => positions,
                (_, shape) => &shape[2..],
            };
            let positions: usize = positions.iter().product();
            let row = row + (rows.start * positions) as u64;
            return explain(&Error::Class { row, class, classes });
        }
        explain(&error).context(format!("rows {}..{}", rows.start, rows.end))
    }
}
