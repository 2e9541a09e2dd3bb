//! Trains a small language model of characters, whose loss is linear cross entropy: the logits of its
//! 9,409 tokens, pairs of characters, are never stored.
//!
//! ```sh
//! cargo run --release --example characters
//! ```
//!
//! A hidden state is made of the eight characters before a pair, by embeddings and one hidden layer; that part runs
//! here, by ndarray. At every step the device gets the hidden states and the projection, and gives the loss
//! and both gradients. The curve is drawn in `out/characters.svg`, and a step's memory is measured beside that of the same
//! model with stored logits.
//!
//! It is a check too: it fails when the model does not learn, and when its loss differs from that of stored
//! logits.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use ndarray::{Array1, Array2, Axis, Zip};
use plotters::prelude::*;
use wgloss::{Args, Array, CrossEntropy, Gpu, LinearCrossEntropy, Op, Role};

/// What it learns to write: the last tenth is held out.
const TEXT: &str = include_str!("../DESIGN.md");
const PICTURE: &str = "out/characters.svg";

/// Printable ASCII, the end of a line, and one for what is neither.
const CHARACTERS: usize = 97;
const TOKENS: usize = CHARACTERS * CHARACTERS;
const CONTEXT: usize = 8;
const EMBEDDING: usize = 16;
const HIDDEN: usize = 64;
const BATCH: usize = 512;
const STEPS: usize = 150;
const LEARNING_RATE: f32 = 0.01;

fn main() -> ExitCode {
    match train() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // with its causes, on one line
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn train() -> Result<()> {
    let text: Vec<usize> = TEXT.chars().map(index).collect();
    let (learned, held_out) = text.split_at(text.len() / 10 * 9);
    let gpu = Gpu::blocking()?;
    let op = LinearCrossEntropy::default();
    let mut model = Model::new();
    let mut losses = Vec::new();
    let start = Instant::now();

    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len}, {msg}")?;
    let bar = ProgressBar::new(STEPS as u64).with_style(style);
    for step in 0..STEPS {
        // other places of the text at every step
        let batch = Batch::new(learned, |i| step * 7919 + i * 104_729);
        let hidden = model.hidden(&batch);
        let args = model.args(&hidden, &batch)?;
        let out = gpu.block_on(gpu.forward_backward(&op, &args))?;
        let grad_hidden = matrix(out.grad()?)?;
        let grad_projection = matrix(out.grad_projection()?)?;
        losses.push(out.loss()?.item()?);
        model.descend(&batch, &hidden, grad_hidden, grad_projection);
        bar.set_message(format!("{:.3} nats a pair", losses[step]));
        bar.inc(1);
    }
    bar.finish();

    // text that it has not seen
    let batch = Batch::new(held_out, |i| i * 7919);
    let hidden = model.hidden(&batch);
    let args = model.args(&hidden, &batch)?;
    let loss = gpu.block_on(gpu.forward(&op, &args))?.loss()?.item()?;
    let logits = hidden.states.dot(&model.projection.values.t());
    let memory = compare_with_stored_logits(&args, logits)?;

    // unlike println, an error and not a panic where nobody reads on
    let mut out = io::stdout();
    let info = gpu.info();
    writeln!(out, "device: {}, driver {} {}", info.name, info.driver, info.driver_info)?;
    writeln!(out, "steps: {STEPS} of {BATCH} pairs in {:.1?}", start.elapsed())?;
    writeln!(out, "loss: {:.3} nats a pair at first, {:.3} at last", losses[0], losses[STEPS - 1])?;
    let perplexity = (f64::from(loss) / 2.0).exp();
    writeln!(out, "held out: {loss:.3} nats a pair, a perplexity of {perplexity:.1} a character")?;
    writeln!(out, "{memory}")?;
    let picture = draw(&losses).with_context(|| format!("cannot draw {PICTURE}"))?;
    writeln!(out, "loss curve: {picture}")?;
    // guessing is ln 9409 = 9.15
    ensure!(loss < 6.6, "expected less than 6.6 nats a pair of text held out, got {loss}");
    Ok(())
}

fn index(character: char) -> usize {
    match character {
        ' '..='~' => character as usize - ' ' as usize,
        '\n' => 95,
        _ => 96,
    }
}

/// Places of a text: the characters before each, and the pair that follows.
struct Batch {
    contexts: Vec<[usize; CONTEXT]>,
    pairs: Vec<i32>,
}

impl Batch {
    fn new(text: &[usize], place: impl Fn(usize) -> usize) -> Self {
        let places = (0..BATCH).map(|i| &text[place(i) % (text.len() - CONTEXT - 2)..]);
        let contexts = places.clone().map(|text| std::array::from_fn(|i| text[i])).collect();
        let pairs = places.map(|text| (text[CONTEXT] * CHARACTERS + text[CONTEXT + 1]) as i32);
        Batch { contexts, pairs: pairs.collect() }
    }
}

/// What a model learns, and Adam's moments of it.
struct Weights {
    values: Array2<f32>,
    mean: Array2<f32>,
    square: Array2<f32>,
}

impl Weights {
    /// Between -`size` and `size`, every time the same.
    fn new(shape: (usize, usize), size: f32) -> Self {
        let mut random = 1_u64;
        let values = Array2::from_shape_fn(shape, |_| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            size * ((random >> 40) as f32 / (1 << 23) as f32 - 1.0)
        });
        Weights { values, mean: Array2::zeros(shape), square: Array2::zeros(shape) }
    }

    /// A step of Adam (Kingma and Ba, 2015), without the correction of its first steps.
    fn descend(&mut self, grad: &Array2<f32>) {
        Zip::from(&mut self.values).and(&mut self.mean).and(&mut self.square).and(grad).for_each(
            |value, mean, square, &grad| {
                *mean += 0.1 * (grad - *mean);
                *square += 0.01 * (grad * grad - *square);
                *value -= LEARNING_RATE * *mean / (square.sqrt() + 1e-6);
            },
        );
    }
}

struct Model {
    embedding: Weights,
    layer: Weights,
    projection: Weights,
}

/// The hidden states of a batch, and what they are made of.
struct Hidden {
    embedded: Array2<f32>,
    states: Array2<f32>,
}

impl Model {
    fn new() -> Self {
        Model {
            embedding: Weights::new((CHARACTERS, EMBEDDING), 0.5),
            layer: Weights::new((CONTEXT * EMBEDDING, HIDDEN), 0.15),
            projection: Weights::new((TOKENS, HIDDEN), 0.1),
        }
    }

    fn hidden(&self, batch: &Batch) -> Hidden {
        let embedded = Array2::from_shape_fn((BATCH, CONTEXT * EMBEDDING), |(row, column)| {
            let character = batch.contexts[row][column / EMBEDDING];
            self.embedding.values[[character, column % EMBEDDING]]
        });
        let states = embedded.dot(&self.layer.values).mapv(f32::tanh);
        Hidden { embedded, states }
    }

    fn args<'a>(&'a self, hidden: &'a Hidden, batch: &'a Batch) -> Result<Args<Array<'a>>> {
        Ok(Args::new(array(&hidden.states)?)
            .projection(array(&self.projection.values)?)
            .target(Array::from(&batch.pairs)))
    }

    fn descend(
        &mut self,
        batch: &Batch,
        hidden: &Hidden,
        grad_states: Array2<f32>,
        grad_projection: Array2<f32>,
    ) {
        let slopes = hidden.states.mapv(|state| 1.0 - state * state);
        let grad_sums = grad_states * slopes;
        let grad_embedded = grad_sums.dot(&self.layer.values.t());
        let mut grad_embedding = Array2::<f32>::zeros((CHARACTERS, EMBEDDING));
        for (context, grad) in batch.contexts.iter().zip(grad_embedded.axis_iter(Axis(0))) {
            let of_characters = grad.exact_chunks(EMBEDDING);
            for (&character, grad) in context.iter().zip(of_characters) {
                let mut row = grad_embedding.row_mut(character);
                row += &Array1::from_iter(grad.iter().copied());
            }
        }
        self.layer.descend(&hidden.embedded.t().dot(&grad_sums));
        self.embedding.descend(&grad_embedding);
        self.projection.descend(&grad_projection);
    }
}

/// An ndarray as wgloss takes it, without a copy.
fn array(values: &Array2<f32>) -> Result<Array<'_>> {
    let slice = values.as_slice().context("expected rows one after the other")?;
    Ok(Array::new(slice, values.shape())?)
}

fn matrix(values: &Array<'_>) -> Result<Array2<f32>> {
    let shape = (values.shape()[0], values.shape()[1]);
    Ok(Array2::from_shape_vec(shape, values.to_f32())?)
}

/// Computes a batch's loss once more from stored logits, on devices of their own whose memory is watched.
fn compare_with_stored_logits(linear: &Args<Array<'_>>, logits: Array2<f32>) -> Result<String> {
    let target = linear.get(Role::Target).context("no target")?;
    let stored = Args::new(array(&logits)?).target(target.clone());
    let (loss, without) = measured(&LinearCrossEntropy::default(), linear)?;
    let (same, with) = measured(&CrossEntropy::default(), &stored)?;
    ensure!((loss - same).abs() < 1e-4 * same, "{loss} without stored logits, {same} with them");
    // the caller's products need the hidden states, the projection and their gradients there too
    let others = 2 * (linear.input().layout().bytes() + TOKENS as u64 * HIDDEN as u64 * 4);
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let [without, with] = [without, with + others].map(mib);
    Ok(format!("device memory of a step: {without:.1} MiB, {with:.1} with stored logits"))
}

/// The loss, and the bytes of all buffers that there are after loss and gradients.
fn measured(op: &dyn Op, args: &Args<Array<'_>>) -> Result<(f32, u64)> {
    let gpu = Gpu::blocking()?;
    let bytes = || gpu.device().get_internal_counters().hal.buffer_memory.read() as u64;
    let before = bytes();
    let args = gpu.block_on(gpu.upload_args(args))?;
    // the staging buffers of the upload are no part of a step
    gpu.trim();
    let out = gpu.block_on(gpu.forward_backward(op, &args))?;
    let held = bytes() - before;
    Ok((gpu.block_on(gpu.read(out.loss()?))?.item()?, held))
}

/// Draws the loss curve, and tells where.
fn draw(losses: &[f32]) -> Result<String> {
    let (least, most) = losses.iter().fold((f32::MAX, 0.0_f32), |(a, b), &v| (a.min(v), b.max(v)));
    if let Some(folder) = Path::new(PICTURE).parent() {
        fs::create_dir_all(folder)?;
    }
    let area = SVGBackend::new(PICTURE, (800, 500)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption("Learning pairs of characters", ("sans-serif", 22))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(0..losses.len(), least - 0.2..most + 0.2)?;
    chart
        .configure_mesh()
        .x_desc("step")
        .y_desc("training loss in nats a pair")
        .label_style(("sans-serif", 14))
        .bold_line_style(BLACK.mix(0.12))
        .light_line_style(TRANSPARENT)
        .draw()?;
    let points = losses.iter().copied().enumerate();
    chart.draw_series(LineSeries::new(points, BLUE.stroke_width(2)))?;
    // writes the file, and tells if that fails: dropping the area would not
    area.present()?;
    Ok(fs::canonicalize(PICTURE)?.display().to_string())
}
