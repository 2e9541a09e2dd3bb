//! Trains the language model of the library's `examples/characters.rs` three times: in one process, with its 9,409 tokens
//! in shards, and with its batch in parts, over as many processes as there are.
//!
//! ```sh
//! make mpi-demo
//! mpirun -n 4 --oversubscribe target/mpi/debug/examples/characters --cpu
//! ```
//!
//! It is a check too: it fails where the three do not learn the same, and where shards have another loss than one
//! process of the same weights.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ndarray::{Array1, Array2, Axis, Zip, s};
use wgloss::{Args, Array, Cpu, LinearCrossEntropy, Op, Pass};
use wgloss_mpi::{Batch, Engine, Ranks, Shards};

const TEXT: &str = include_str!("../../../DESIGN.md");

/// Printable ASCII, the end of a line, and one for what is neither.
const CHARACTERS: usize = 97;
const TOKENS: usize = CHARACTERS * CHARACTERS;
const CONTEXT: usize = 8;
const EMBEDDING: usize = 16;
const HIDDEN: usize = 64;
const BATCH: usize = 512;
const STEPS: usize = 60;
const LEARNING_RATE: f32 = 0.01;

/// What is divided among processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Divided {
    Nothing,
    Classes,
    Rows,
}

fn main() -> ExitCode {
    let Some(universe) = mpi::initialize() else {
        eprintln!("error: MPI does not start");
        return ExitCode::FAILURE;
    };
    let ranks = match Ranks::new(&universe.world()) {
        Ok(ranks) => ranks.deadline(Duration::from_secs(300)),
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let is_cpu = std::env::args().any(|arg| arg == "--cpu");
    let outcome = match is_cpu {
        true => compare(&ranks, &Cpu::default(), "the CPU"),
        false => ranks.gpu().map_err(Into::into).and_then(|gpu| {
            let name = gpu.info().name.clone();
            compare(&ranks, &gpu, &name)
        }),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error on rank {}: {error:#}", ranks.rank());
            // the others may wait for this one, and MPI's own end would wait for them
            ranks.abort(1)
        }
    }
}

/// Trains in all three ways, and holds the losses to one another.
fn compare<E>(ranks: &Ranks, engine: &E, device: &str) -> Result<()>
where
    E: for<'a> Engine<Array<'a>>,
{
    let all = [Divided::Nothing, Divided::Classes, Divided::Rows];
    let mut curves = vec![];
    for divided in all {
        let start = Instant::now();
        let losses = train(ranks, engine, divided)?;
        if ranks.rank() == 0 {
            let (first, last) = (losses[0], losses[STEPS - 1]);
            println!(
                "{divided:?} divided among {}: {first:.6} nats a pair at first, {last:.6} after {STEPS} steps, {:.1?}",
                ranks.size(),
                start.elapsed(),
            );
        }
        curves.push(losses);
    }
    let off = |curve: &[f32]| {
        let pairs = curve.iter().zip(&curves[0]);
        pairs.map(|(loss, one)| (loss - one).abs() / one).fold(0.0, f32::max)
    };
    let [classes, rows] = [off(&curves[1]), off(&curves[2])];
    if ranks.rank() == 0 {
        println!(
            "on {device}; losses off by at most {classes:.1e} (classes) and {rows:.1e} (rows) on the way"
        );
    }
    // rounding, which training carries along
    ensure!(classes < 1e-3 && rows < 1e-3, "curves are apart: {classes:e}, {rows:e}");
    let (first, last) = (curves[0][0], curves[0][STEPS - 1]);
    ensure!(last < first - 1.5, "expected to learn, got {first} and {last}");
    Ok(())
}

/// The losses of all steps.
fn train<E>(ranks: &Ranks, engine: &E, divided: Divided) -> Result<Vec<f32>>
where
    E: for<'a> Engine<Array<'a>>,
{
    let text: Vec<usize> = TEXT.chars().map(index).collect();
    let op = LinearCrossEntropy::default();
    let shards = Shards::new(ranks, TOKENS)?;
    let tokens = match divided {
        Divided::Classes => shards.range(),
        _ => 0..TOKENS,
    };
    let rows = match divided {
        Divided::Rows => {
            let part = |rank: usize| rank * BATCH / ranks.size();
            part(ranks.rank())..part(ranks.rank() + 1)
        }
        _ => 0..BATCH,
    };
    let mut model = Model::new(tokens);
    let mut losses = vec![];
    for step in 0..STEPS {
        // other places of the text at every step
        let places: Vec<_> = rows
            .clone()
            .map(|i| (step * 7919 + i * 104_729) % (text.len() - CONTEXT - 2))
            .collect();
        let batch = Pairs::new(&text, &places);
        let hidden = model.hidden(&batch);
        let args = model.args(&hidden, &batch)?;
        let pass = Pass::ForwardBackward;
        let out = match divided {
            Divided::Nothing => engine.run(&op, pass, &args)?,
            Divided::Classes => shards.run(engine, &op, pass, &args)?,
            Divided::Rows => Batch::new(ranks).run(engine, &op, pass, &args)?,
        };
        if step % 20 == 0 {
            hold(ranks, engine, divided, &model, &hidden, &batch, out.loss()?.item()?)?;
        }
        losses.push(out.loss()?.item()?);
        let grads = [matrix(out.grad()?)?, matrix(out.grad_projection()?)?];
        let mut grads = model.gradients(&batch, &hidden, grads);
        if divided == Divided::Rows {
            for grad in &mut grads {
                ranks.sum(grad.as_slice_mut().context("expected rows one after the other")?)?;
            }
        }
        model.descend(&grads);
    }
    Ok(losses)
}

/// Holds the loss of shards to that of one process of the same weights.
fn hold<E>(
    ranks: &Ranks,
    engine: &E,
    divided: Divided,
    model: &Model,
    hidden: &Hidden,
    batch: &Pairs,
    loss: f32,
) -> Result<()>
where
    E: for<'a> Engine<Array<'a>>,
{
    if divided != Divided::Classes {
        return Ok(());
    }
    // a sum with zeros gathers the shards
    let mut whole = Array2::<f32>::zeros((TOKENS, HIDDEN));
    whole.slice_mut(s![model.tokens.clone(), ..]).assign(&model.projection.values);
    ranks.sum(whole.as_slice_mut().context("expected rows one after the other")?)?;
    let args = Args::new(array(&hidden.states)?)
        .projection(array(&whole)?)
        .target(Array::from(&batch.pairs));
    let op: &dyn Op = &LinearCrossEntropy::default();
    let one = engine.run(op, Pass::Forward, &args)?.loss()?.item()?;
    // twice the promise, with room for the rounding of the logits
    ensure!((loss - one).abs() <= 8e-6 * one, "{loss} of shards, {one} of one process");
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
struct Pairs {
    contexts: Vec<[usize; CONTEXT]>,
    pairs: Vec<i32>,
}

impl Pairs {
    fn new(text: &[usize], places: &[usize]) -> Self {
        let places = places.iter().map(|&place| &text[place..]);
        let contexts = places.clone().map(|text| std::array::from_fn(|i| text[i])).collect();
        let pairs = places.map(|text| (text[CONTEXT] * CHARACTERS + text[CONTEXT + 1]) as i32);
        Pairs { contexts, pairs: pairs.collect() }
    }
}

/// What a model learns, and Adam's moments of it.
struct Weights {
    values: Array2<f32>,
    mean: Array2<f32>,
    square: Array2<f32>,
}

impl Weights {
    /// Between -`size` and `size`, every time the same: some rows of a matrix of so many.
    fn new(shape: (usize, usize), rows: std::ops::Range<usize>, size: f32) -> Self {
        let mut random = 1_u64;
        let values = Array2::from_shape_fn(shape, |_| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            size * ((random >> 40) as f32 / (1 << 23) as f32 - 1.0)
        });
        let values = values.slice(s![rows, ..]).to_owned();
        let zeros = Array2::zeros(values.raw_dim());
        Weights { values, mean: zeros.clone(), square: zeros }
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
    /// Of these tokens.
    projection: Weights,
    tokens: std::ops::Range<usize>,
}

/// The hidden states of a batch, and what they are made of.
struct Hidden {
    embedded: Array2<f32>,
    states: Array2<f32>,
}

impl Model {
    fn new(tokens: std::ops::Range<usize>) -> Self {
        Model {
            embedding: Weights::new((CHARACTERS, EMBEDDING), 0..CHARACTERS, 0.5),
            layer: Weights::new((CONTEXT * EMBEDDING, HIDDEN), 0..CONTEXT * EMBEDDING, 0.15),
            projection: Weights::new((TOKENS, HIDDEN), tokens.clone(), 0.1),
            tokens,
        }
    }

    fn hidden(&self, batch: &Pairs) -> Hidden {
        let shape = (batch.contexts.len(), CONTEXT * EMBEDDING);
        let embedded = Array2::from_shape_fn(shape, |(row, column)| {
            let character = batch.contexts[row][column / EMBEDDING];
            self.embedding.values[[character, column % EMBEDDING]]
        });
        let states = embedded.dot(&self.layer.values).mapv(f32::tanh);
        Hidden { embedded, states }
    }

    fn args<'a>(&'a self, hidden: &'a Hidden, batch: &'a Pairs) -> Result<Args<Array<'a>>> {
        Ok(Args::new(array(&hidden.states)?)
            .projection(array(&self.projection.values)?)
            .target(Array::from(&batch.pairs)))
    }

    /// Of the embedding, the layer and the projection.
    fn gradients(
        &self,
        batch: &Pairs,
        hidden: &Hidden,
        [grad_states, grad_projection]: [Array2<f32>; 2],
    ) -> [Array2<f32>; 3] {
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
        let layer = hidden.embedded.t().dot(&grad_sums);
        [grad_embedding, layer.as_standard_layout().into_owned(), grad_projection]
    }

    fn descend(&mut self, [embedding, layer, projection]: &[Array2<f32>; 3]) {
        self.embedding.descend(embedding);
        self.layer.descend(layer);
        self.projection.descend(projection);
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
