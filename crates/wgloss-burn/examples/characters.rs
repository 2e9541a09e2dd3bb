//! A small language model of characters in burn, with wgloss's loss over a padded vocabulary: the
//! model's head has 128 columns, which matrix kernels like, of which 97 are characters. A slice of the
//! columns is read where it lies, and padding never counts.
//!
//! ```sh
//! cargo run --example characters
//! ```
//!
//! It is a check too: it fails when the model does not learn.

use anyhow::{Result, ensure};
use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig, Relu};
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, Int, Tensor, TensorData};
use wgloss_burn::CrossEntropyLossConfig;

/// What it learns to write.
const TEXT: &str = include_str!("../../../DESIGN.md");

/// Printable ASCII, the end of a line, and one for what is neither.
const CHARACTERS: usize = 97;
const PADDED: usize = 128;
const CONTEXT: usize = 8;
const BATCH: usize = 512;
const STEPS: usize = 60;

#[derive(Module, Debug)]
struct Model {
    embedding: Embedding,
    hidden: Linear,
    activation: Relu,
    head: Linear,
}

impl Model {
    fn new(device: &Device) -> Self {
        Model {
            embedding: EmbeddingConfig::new(PADDED, 16).init(device),
            hidden: LinearConfig::new(CONTEXT * 16, 128).init(device),
            activation: Relu::new(),
            head: LinearConfig::new(128, PADDED).init(device),
        }
    }

    /// Logits of the character after each context, `[BATCH, CHARACTERS]`.
    fn forward(&self, contexts: Tensor<2, Int>) -> Tensor<2> {
        let rows = contexts.dims()[0];
        let x = self.embedding.forward(contexts).reshape([rows, CONTEXT * 16]);
        let x = self.head.forward(self.activation.forward(self.hidden.forward(x)));
        x.slice([0..rows, 0..CHARACTERS])
    }
}

fn main() -> Result<()> {
    let device = wgloss_burn::init()?;
    device.seed(1);
    let text: Vec<i32> = TEXT.chars().map(index).collect();
    let autodiff = device.clone().autodiff();
    let mut model = Model::new(&autodiff);
    let mut adam = AdamConfig::new().init();
    let criterion = CrossEntropyLossConfig::new().init(&autodiff);
    let mut last = f32::INFINITY;
    for step in 0..STEPS {
        // other places of the text at every step
        let starts = (0..BATCH).map(|i| (step * 7919 + i * 104_729) % (text.len() - CONTEXT));
        let (contexts, targets): (Vec<_>, Vec<_>) =
            starts.map(|at| (&text[at..at + CONTEXT], text[at + CONTEXT])).unzip();
        let contexts = TensorData::new(contexts.concat(), [BATCH, CONTEXT]);
        let targets = TensorData::new(targets, [BATCH]);
        let targets = Tensor::<1, Int>::from_data(targets, &device);
        let logits = model.forward(Tensor::from_data(contexts, &device));
        let loss = criterion.forward(logits, targets);
        let grads = GradientsParams::from_grads(loss.backward(), &model);
        model = adam.step(0.01, model, grads);
        if step % 10 == 9 {
            last = loss.into_scalar::<f32>();
            println!("step {:3}: {last:.3} nats a character", step + 1);
        }
    }
    wgloss_burn::check(&device)?;
    // guessing is ln 97 = 4.57
    ensure!(last < 2.9, "expected less than 2.9 nats a character");
    Ok(())
}

fn index(character: char) -> i32 {
    match character {
        ' '..='~' => character as i32 - ' ' as i32,
        '\n' => 95,
        _ => 96,
    }
}
