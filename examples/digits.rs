//! Trains two linear classifiers of handwritten digits. At every step the loss and its gradient
//! come from the GPU, and both are held against the float64 reference.
//!
//! ```sh
//! make demo  # cargo run --locked --release --example digits
//! ```
//!
//! The first head learns the ten classes together, by softmax cross entropy. The second one learns
//! ten yes-or-no questions, one a class, by binary cross entropy. The loss curves of both are drawn
//! in `out/digits.svg`.
//!
//! It is a check too: it fails when a head recognises too few of the digits held out, and when the
//! GPU strays further from the reference than wgloss promises.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;
use indicatif::{ProgressBar, ProgressStyle};
use ndarray::Array2;
use plotters::prelude::*;
use wgloss::reference::{self, Values};
use wgloss::{Args, Array, BceWithLogits, CrossEntropy, Gpu, Op, Pass};

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/digits.csv.gz");
const PICTURE: &str = "out/digits.svg";

const CLASSES: usize = 10;
const PIXELS: usize = 64;
const HELD_OUT: usize = 360;

const STEPS: usize = 300;
const MOMENTUM: f32 = 0.9;

fn main() -> ExitCode {
    match demo() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // with its causes, on one line
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo() -> Result<()> {
    let (train, test) = read_digits().with_context(|| format!("cannot read {DATA}"))?;
    let gpu = Gpu::blocking()?;

    let softmax = Head {
        name: "softmax",
        op: &CrossEntropy::default(),
        mean_over: train.labels.len(),
        learning_rate: 0.5,
        least_accuracy: 0.94,
    };
    let softmax = softmax.train(&gpu, &train, &test, |logits| {
        Args::new(logits).target(Array::from(&train.labels))
    })?;

    let one_hot = Array::from_vec(train.one_hot(), &[train.labels.len(), CLASSES])?;
    let one_vs_all = Head {
        name: "one-vs-all",
        op: &BceWithLogits::default(),
        mean_over: train.labels.len() * CLASSES,
        // the mean is over ten times as many losses, so each weighs a tenth
        learning_rate: 5.0,
        least_accuracy: 0.92,
    };
    let one_vs_all = one_vs_all.train(&gpu, &train, &test, |logits| {
        // nine answers in ten are no: the one yes counts for as much
        let pos_weight = Array::scalar(9.0_f32);
        Args::new(logits).target(one_hot.clone()).pos_weight(pos_weight)
    })?;

    // unlike println, an error and not a panic where nobody reads on
    let mut out = io::stdout();
    let info = gpu.info();
    writeln!(out, "device: {}, driver {} {}", info.name, info.driver, info.driver_info)?;
    writeln!(out, "data: {} digits to learn, {} held out", train.labels.len(), test.labels.len())?;
    writeln!(out, "{softmax}")?;
    writeln!(out, "{one_vs_all}")?;

    let picture = draw(&[(&softmax, BLUE), (&one_vs_all, RED)])
        .with_context(|| format!("cannot draw {PICTURE}"))?;
    writeln!(out, "loss curves: {picture}")?;

    softmax.check_accuracy()?;
    one_vs_all.check_accuracy()
}

/// Images of digits, and which digits they are.
struct Digits {
    /// `[N, 65]`: pixels from 0 to 1, then a column of ones, whose weights are the biases.
    images: Array2<f32>,
    /// `[N]`.
    labels: Vec<i32>,
}

/// The digits to learn and those held out, drawn at random but every time the same.
fn read_digits() -> Result<(Digits, Digits)> {
    let mut text = String::new();
    GzDecoder::new(File::open(DATA)?).read_to_string(&mut text)?;
    let mut rows = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        let row = line.split(',').map(str::parse).collect::<Result<Vec<u8>, _>>();
        let row = row.with_context(|| format!("line {number}"))?;
        let well_formed = row.len() == PIXELS + 1 && usize::from(row[PIXELS]) < CLASSES;
        ensure!(well_formed, "line {number}: expected {PIXELS} pixels and a digit");
        rows.push(row);
    }
    ensure!(rows.len() > HELD_OUT, "expected more than {HELD_OUT} lines, got {}", rows.len());

    // a Fisher-Yates shuffle by Knuth's linear congruential generator; its low bits are poor
    let mut random = 1_u64;
    for i in (1..rows.len()).rev() {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        rows.swap(i, (random >> 33) as usize % (i + 1));
    }
    let (test, train) = rows.split_at(HELD_OUT);
    Ok((Digits::new(train), Digits::new(test)))
}

impl Digits {
    fn new(rows: &[Vec<u8>]) -> Self {
        let images = Array2::from_shape_fn((rows.len(), PIXELS + 1), |(row, column)| {
            if column == PIXELS { 1.0 } else { f32::from(rows[row][column]) / 16.0 }
        });
        let labels = rows.iter().map(|row| row[PIXELS].into()).collect();
        Digits { images, labels }
    }

    /// `[N, 10]`: 1 for the digit that it is, 0 for the others.
    fn one_hot(&self) -> Vec<f32> {
        let answers = |&label: &i32| (0..CLASSES as i32).map(move |c| f32::from(c == label));
        self.labels.iter().flat_map(answers).collect()
    }

    /// The share of images with the largest logit at the digit that it is.
    fn accuracy(&self, weights: &Array2<f32>) -> f64 {
        let logits = self.images.dot(weights);
        let right = self.labels.iter().zip(logits.rows()).filter(|&(&label, logits)| {
            let label = label as usize;
            (0..CLASSES).all(|c| c == label || logits[c] < logits[label])
        });
        right.count() as f64 / self.labels.len() as f64
    }
}

/// A classifier to be.
struct Head<'a> {
    name: &'static str,
    op: &'a dyn Op,
    /// How many losses the op's mean is over.
    mean_over: usize,
    learning_rate: f32,
    least_accuracy: f64,
}

/// A classifier, and how it went.
struct Trained {
    name: &'static str,
    /// At each step.
    losses: Vec<f32>,
    /// At each step.
    gpu_calls: Vec<Duration>,
    loss_error: LargestError,
    grad_error: LargestError,
    /// On the digits held out.
    accuracy: f64,
    least_accuracy: f64,
}

impl Head<'_> {
    /// Gradient descent with momentum, over all of `train` at each step. `args` puts beside the
    /// logits whatever else the op takes.
    fn train<'a>(
        &self,
        gpu: &Gpu,
        train: &Digits,
        test: &Digits,
        args: impl Fn(Array<'a>) -> Args<Array<'a>>,
    ) -> Result<Trained> {
        let mut weights = Array2::<f32>::zeros((PIXELS + 1, CLASSES));
        let mut velocity = weights.clone();
        let (mut losses, mut gpu_calls) = (Vec::new(), Vec::new());
        let (mut loss_error, mut grad_error) = (LargestError::default(), LargestError::default());

        let style = ProgressStyle::with_template("{prefix:10} {wide_bar} {pos}/{len}, {msg}")?;
        let bar = ProgressBar::new(STEPS as u64).with_style(style).with_prefix(self.name);
        for step in 0..STEPS {
            let logits = train.images.dot(&weights);
            // row by row, however ndarray has laid the product out
            let in_rows = logits.iter().copied().collect();
            let args = args(Array::from_vec(in_rows, logits.shape())?);

            let start = Instant::now();
            let out = gpu.block_on(gpu.forward_backward(self.op, &args))?;
            gpu_calls.push(start.elapsed());
            let (loss, grad) = (out.loss()?.item()?, out.grad()?.to_f32());

            let exact = reference::run(self.op, Pass::ForwardBackward, &args)?;
            loss_error
                .compare(&[loss], exact.loss()?, 2e-6, 1)
                .with_context(|| format!("{}, loss of step {step}", self.name))?;
            grad_error
                .compare(&grad, exact.grad()?, 4e-6, self.mean_over)
                .with_context(|| format!("{}, gradient of step {step}", self.name))?;

            let grad = Array2::from_shape_vec(logits.dim(), grad)?;
            velocity = MOMENTUM * velocity + train.images.t().dot(&grad);
            weights.scaled_add(-self.learning_rate, &velocity);

            losses.push(loss);
            bar.set_message(format!("loss {loss:.4}"));
            bar.inc(1);
        }
        bar.finish();
        Ok(Trained {
            name: self.name,
            losses,
            gpu_calls,
            loss_error,
            grad_error,
            accuracy: test.accuracy(&weights),
            least_accuracy: self.least_accuracy,
        })
    }
}

/// How far f32 results have been from float64 ones at most.
#[derive(Default)]
struct LargestError {
    /// As it is.
    absolute: f64,
    /// Over what is promised: at most 1.
    of_promise: f64,
}

impl LargestError {
    /// The promise is a share of T, the sum of the absolute values of the terms that make a value
    /// up (`magnitudes`): `share` from a T of 1e-3, and 1e-5 below, where T is taken before the
    /// division of a mean (`divisor`).
    fn compare(&mut self, got: &[f32], want: &Values, share: f64, divisor: usize) -> Result<()> {
        ensure!(got.len() == want.values.len(), "{} of {} values", got.len(), want.values.len());
        for (i, &got) in got.iter().enumerate() {
            let (exact, t) = (want.values[i], want.magnitudes[i]);
            let share = if t * divisor as f64 >= 1e-3 { share } else { 1e-5 };
            // devices may flush to zero what is smaller than any normal f32
            let promised = share * t + f64::from(f32::MIN_POSITIVE);
            let error = (f64::from(got) - exact).abs();
            // not `error > promised`, which would let a NaN pass
            ensure!(
                error <= promised,
                "expected {exact:e} within {promised:.1e} at element {i} of {:?}, got {got:e}",
                want.shape,
            );
            self.absolute = self.absolute.max(error);
            self.of_promise = self.of_promise.max(error / promised);
        }
        Ok(())
    }
}

impl fmt::Display for LargestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1e}, {:.0} % of what is promised", self.absolute, 100.0 * self.of_promise)
    }
}

impl Trained {
    fn check_accuracy(&self) -> Result<()> {
        let (actual, least) = (100.0 * self.accuracy, 100.0 * self.least_accuracy);
        ensure!(actual >= least, "{}: expected accuracy {least} %, got {actual:.1} %", self.name);
        Ok(())
    }
}

impl fmt::Display for Trained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut gpu_calls = self.gpu_calls.clone();
        gpu_calls.sort();
        let median = gpu_calls[gpu_calls.len() / 2];
        let final_loss = self.losses[self.losses.len() - 1];
        writeln!(f, "{}:", self.name)?;
        writeln!(f, "  accuracy on the digits held out  {:.1} %", 100.0 * self.accuracy)?;
        writeln!(f, "  final loss                       {final_loss:.4}")?;
        writeln!(f, "  GPU call, median of {:<11}  {median:.2?}", format!("{STEPS} steps"))?;
        writeln!(f, "  largest error of the loss        {}", self.loss_error)?;
        write!(f, "  largest error of the gradient    {}", self.grad_error)
    }
}

/// Draws the loss curves, and tells where.
fn draw(curves: &[(&Trained, RGBColor)]) -> Result<String> {
    let losses = curves.iter().flat_map(|(trained, _)| &trained.losses);
    let (least, most) = losses.fold((f32::MAX, 0.0_f32), |(a, b), &v| (a.min(v), b.max(v)));
    let shown = least / 1.2..most * 1.2;
    let mut labels = vec![0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0];
    labels.retain(|label| shown.contains(label));

    if let Some(folder) = Path::new(PICTURE).parent() {
        fs::create_dir_all(folder)?;
    }
    let area = SVGBackend::new(PICTURE, (800, 500)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption("Learning handwritten digits", ("sans-serif", 22))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(0..STEPS, shown.log_scale().with_key_points(labels))?;
    chart
        .configure_mesh()
        .x_desc("step")
        .y_desc("training loss in nats, log scale")
        .label_style(("sans-serif", 14))
        .bold_line_style(BLACK.mix(0.12))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for &(trained, color) in curves {
        let style = color.stroke_width(2);
        let points = trained.losses.iter().copied().enumerate();
        chart
            .draw_series(LineSeries::new(points, style))?
            .label(format!("{}, accuracy {:.1} %", trained.name, 100.0 * trained.accuracy))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .label_font(("sans-serif", 15))
        .background_style(WHITE)
        .border_style(BLACK.mix(0.3))
        .margin(10)
        .draw()?;
    // writes the file, and tells if that fails: dropping the area would not
    area.present()?;
    Ok(fs::canonicalize(PICTURE)?.display().to_string())
}
