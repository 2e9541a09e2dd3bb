//! What is left of the loss of confident rows: the relative error of the cross entropy of logits
//! `(margin, 0)`, class 0, by the textbook's form in f32 and by wgloss, against float64.
//!
//! ```sh
//! cargo run --release --features cpu --example confident -- out/confident
//! ```
//!
//! A second argument is a file by `benches/peers/torch_confident.py`: what PyTorch computes.
//!
//! It writes `out/confident.json`, every number, and `out/confident.svg`, the picture. The larger the
//! margin, the surer the model is; the true loss is `ln(1 + e^-margin)`.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use plotters::prelude::*;
use serde_json::Value;
use wgloss::{Args, Array, Cpu, CrossEntropy, Gpu, Pass, Reduction, Role, reference};

/// Margins are multiples of 1/4, which f32 has exactly.
const MARGINS: usize = 80 * 4 + 1;

/// Errors of exactly 0 are drawn here.
const FLOOR: f64 = 1e-9;

/// A way to compute the loss, and what came of it at each margin.
struct Contender {
    name: String,
    losses: Vec<f32>,
    /// With respect to the logit of the target.
    grads: Vec<f32>,
    color: RGBColor,
    /// Pixels. Of two that lie on each other the first is wide and pale, so that both are seen.
    width: u32,
}

fn main() -> Result<()> {
    let mut paths = std::env::args().skip(1);
    let to = paths.next().unwrap_or_else(|| "out/confident".into());
    let torch = paths.next().map(|path| fs::read_to_string(&path).context(path)).transpose()?;
    let margins: Vec<f32> = (0..MARGINS).map(|i| i as f32 / 4.0).collect();
    let logits: Vec<f32> = margins.iter().flat_map(|&margin| [margin, 0.0]).collect();
    let target = vec![0; MARGINS];
    let args = Args::new(Array::new(&logits, &[MARGINS, 2])?).target(Array::from(&target[..]));
    // of every row; the upstream gradient of each is 1
    let op = CrossEntropy::default().reduction(Reduction::None);

    let exact = reference::run(&op, Pass::ForwardBackward, &args)?;
    let truth = &exact.loss()?.values;
    let gpu = Gpu::blocking()?;
    let (name, driver) = (&gpu.info().name, &gpu.info().driver_info);
    let ran = [
        (
            "wgloss, CPU".to_string(),
            Cpu::default().run(&op, Pass::ForwardBackward, &args)?,
            RGBColor(140, 190, 250),
            5,
        ),
        (
            format!("wgloss, {name}"),
            gpu.block_on(gpu.run(&op, Pass::ForwardBackward, &args))?,
            RGBColor(0, 70, 160),
            2,
        ),
    ];
    let mut contenders = vec![textbook(&margins)];
    if let Some(text) = torch {
        contenders.extend(torch_of(&text, &margins)?);
    }
    let own = contenders.len();
    for (name, output, color, width) in ran {
        let part = |role| output.get(role).map(Array::to_f32).context("a result is missing");
        let grads = part(Role::Grad)?.chunks(2).map(|row| row[0]).collect();
        contenders.push(Contender { name, losses: part(Role::Loss)?, grads, color, width });
    }

    let error = |loss: f32, exact: f64| (f64::from(loss) - exact).abs() / exact;
    let errors: Vec<Vec<f64>> = contenders
        .iter()
        .map(|c| c.losses.iter().zip(truth).map(|(&loss, &exact)| error(loss, exact)).collect())
        .collect();
    for (contender, errors) in contenders.iter().zip(&errors) {
        let worst = errors.iter().copied().fold(0.0, f64::max);
        let lost = (0..MARGINS).find(|&i| contender.losses[i..].iter().all(|&loss| loss == 0.0));
        let lost = lost.map(|i| format!("; 0 from a margin of {} on", margins[i]));
        println!(
            "{}: relative error up to {worst:.1e}{}",
            contender.name,
            lost.unwrap_or_default()
        );
    }
    for (contender, errors) in contenders[own..].iter().zip(&errors[own..]) {
        // what is promised: 1e-5 from a loss of 1e-30, which is a margin of 69
        let promised = errors.iter().zip(truth).filter(|&(_, &exact)| exact >= 1e-30);
        let worst = promised.map(|(&error, _)| error).fold(0.0, f64::max);
        ensure!(worst <= 1e-5, "{}: expected an error of 1e-5, got {worst:e}", contender.name);
    }

    if let Some(folder) = Path::new(&to).parent() {
        fs::create_dir_all(folder)?;
    }
    let device = format!("{name}, {driver}");
    fs::write(format!("{to}.json"), json(&device, &margins, truth, &contenders))?;
    draw(&format!("{to}.svg"), &margins, &contenders, &errors)?;
    println!("wrote {to}.json and {to}.svg");
    Ok(())
}

/// `logsumexp - x[y]` and `p[y] - 1` in f32, with the maximum subtracted.
fn textbook(margins: &[f32]) -> Contender {
    let sum = |margin: f32| 1.0 + (-margin).exp();
    Contender {
        name: "logsumexp - x[y] in f32".into(),
        losses: margins.iter().map(|&margin| (margin + sum(margin).ln()) - margin).collect(),
        grads: margins.iter().map(|&margin| 1.0 / sum(margin) - 1.0).collect(),
        color: RED,
        width: 2,
    }
}

/// PyTorch's losses and gradients: eager, and compiled.
fn torch_of(text: &str, margins: &[f32]) -> Result<Vec<Contender>> {
    let report: Value = serde_json::from_str(text)?;
    let numbers = |value: &Value| -> Result<Vec<f32>> {
        let list = value.as_array().context("PyTorch's file: a list is missing")?;
        let number = |value: &Value| value.as_f64().context("PyTorch's file: expected a number");
        list.iter().map(|value| Ok(number(value)? as f32)).collect()
    };
    ensure!(numbers(&report["margins"])? == margins, "PyTorch's file has other margins");
    let version = report["version"].as_str().context("PyTorch's file: no version")?;
    let styles = [("eager", RGBColor(250, 190, 100), 6), ("compile", RGBColor(150, 80, 0), 2)];
    let contenders = styles.map(|(how, color, width)| {
        let losses = numbers(&report[how]["losses"])?;
        let grads = numbers(&report[how]["grads"])?;
        Ok(Contender { name: format!("PyTorch {version}, {how}"), losses, grads, color, width })
    });
    contenders.into_iter().collect()
}

fn json(device: &str, margins: &[f32], truth: &[f64], contenders: &[Contender]) -> String {
    let mut text = format!("{{\n  \"device\": {device:?},\n  \"rows\": [\n");
    for (i, margin) in margins.iter().enumerate() {
        let _ = write!(text, "    {{\"margin\": {margin}, \"exact\": {:e}", truth[i]);
        for Contender { name, losses, grads, .. } in contenders {
            let _ =
                write!(text, ", {name:?}: {{\"loss\": {:e}, \"grad\": {:e}}}", losses[i], grads[i]);
        }
        text += if i + 1 < margins.len() { "},\n" } else { "}\n" };
    }
    text + "  ]\n}\n"
}

fn draw(path: &str, margins: &[f32], contenders: &[Contender], errors: &[Vec<f64>]) -> Result<()> {
    let area = SVGBackend::new(path, (800, 440)).into_drawing_area();
    area.fill(&WHITE)?;
    let last = margins.last().copied().unwrap_or_default();
    let mut chart = ChartBuilder::on(&area)
        .caption("What is left of the loss of a confident row", ("sans-serif", 20))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(72)
        .build_cartesian_2d(0.0..last, (FLOOR..10.0).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("margin: how far the target's logit lies above the other one")
        .y_desc("relative error of the loss (1: nothing is left)")
        .x_label_formatter(&|margin| format!("{margin:.0}"))
        .y_label_formatter(&|error| format!("{error:.0e}"))
        .label_style(("sans-serif", 14))
        .bold_line_style(BLACK.mix(0.12))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for (contender, errors) in contenders.iter().zip(errors) {
        let style = contender.color.stroke_width(contender.width);
        let points = margins.iter().zip(errors).map(|(&margin, &error)| (margin, error.max(FLOOR)));
        chart
            .draw_series(LineSeries::new(points, style))?
            .label(&contender.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style));
    }
    // between the curves: one loses everything, the others lie near 1e-7
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::MiddleRight)
        .label_font(("sans-serif", 14))
        .background_style(WHITE)
        .border_style(BLACK.mix(0.3))
        .margin(10)
        .draw()?;
    area.present()?;
    Ok(())
}
