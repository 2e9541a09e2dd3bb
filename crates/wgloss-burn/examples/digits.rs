//! A classifier of handwritten digits in burn, with wgloss's loss: the three lines that are ours are
//! marked.
//!
//! ```sh
//! cargo run --example digits
//! ```
//!
//! It is a check too: it fails when the classifier recognises too few of the digits held out.

use std::fs::File;
use std::io::Read;

use anyhow::{Context, Result, ensure};
use burn::module::Module;
use burn::nn::{Linear, LinearConfig, Relu};
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, Int, Tensor, TensorData};
use flate2::read::GzDecoder;
use wgloss_burn::CrossEntropyLossConfig; // 1

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/data/digits.csv.gz");

const CLASSES: usize = 10;
const PIXELS: usize = 64;
const HELD_OUT: usize = 360;
const STEPS: usize = 60;

#[derive(Module, Debug)]
struct Classifier {
    hidden: Linear,
    activation: Relu,
    output: Linear,
}

impl Classifier {
    fn new(device: &Device) -> Self {
        Classifier {
            hidden: LinearConfig::new(PIXELS, 32).init(device),
            activation: Relu::new(),
            output: LinearConfig::new(32, CLASSES).init(device),
        }
    }

    fn forward(&self, images: Tensor<2>) -> Tensor<2> {
        self.output.forward(self.activation.forward(self.hidden.forward(images)))
    }
}

fn main() -> Result<()> {
    let device = wgloss_burn::init()?; // 2
    device.seed(1);
    let (train, test) = digits(&device).with_context(|| format!("cannot read {DATA}"))?;
    let device = device.autodiff();
    let mut model = Classifier::new(&device);
    let mut adam = AdamConfig::new().init();
    let criterion = CrossEntropyLossConfig::new().with_smoothing(Some(0.05)).init(&device); // 3
    for step in 0..STEPS {
        let logits = model.forward(Tensor::from_inner(train.0.clone()));
        let (loss, rows) = criterion.forward_with_rows(logits, train.1.clone());
        if step % 10 == 0 {
            let right = rows.correct.map(|correct| correct.float().mean().into_scalar::<f32>());
            println!(
                "step {step}: loss {:.3}, right {right:.3?}",
                loss.clone().into_scalar::<f32>()
            );
        }
        let grads = GradientsParams::from_grads(loss.backward(), &model);
        model = adam.step(0.02, model, grads);
    }
    // a class out of range would be told here
    wgloss_burn::check(&device)?;
    let logits = model.forward(Tensor::from_inner(test.0)).inner();
    let right = logits.argmax(1).reshape([-1]).equal(test.1).float().mean().into_scalar::<f32>();
    println!("right of {HELD_OUT} held out: {right:.3}");
    ensure!(right > 0.93, "expected more than 0.93 right");
    Ok(())
}

/// Images and labels: of training, and held out.
type Digits = (Tensor<2>, Tensor<1, Int>);

fn digits(device: &Device) -> Result<(Digits, Digits)> {
    let mut text = String::new();
    GzDecoder::new(File::open(DATA)?).read_to_string(&mut text)?;
    let rows: Vec<Vec<u8>> = text
        .lines()
        .map(|line| line.split(',').map(|cell| Ok(cell.parse()?)).collect())
        .collect::<Result<_>>()?;
    let is_whole = |row: &Vec<u8>| row.len() == PIXELS + 1 && usize::from(row[PIXELS]) < CLASSES;
    ensure!(
        rows.len() > HELD_OUT && rows.iter().all(is_whole),
        "expected pixels and a digit a line"
    );
    let tensors = |rows: &[Vec<u8>]| {
        let pixels: Vec<f32> = rows
            .iter()
            .flat_map(|row| &row[..PIXELS])
            .map(|&pixel| f32::from(pixel) / 16.0)
            .collect();
        let labels: Vec<i32> = rows.iter().map(|row| row[PIXELS].into()).collect();
        (
            Tensor::from_data(TensorData::new(pixels, [rows.len(), PIXELS]), device),
            Tensor::from_data(TensorData::new(labels, [rows.len()]), device),
        )
    };
    let (test, train) = rows.split_at(HELD_OUT);
    Ok((tensors(train), tensors(test)))
}
