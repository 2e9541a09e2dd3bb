//! What was timed: a table for people, JSON for programs, a picture.

use std::ops::Range;
use std::time::Duration;

use anyhow::{Result, ensure};
use plotters::prelude::*;
use serde::{Deserialize, Serialize};

use wgloss_testing::workload::{Workload, has_rows};

/// Each contender's times, a round at a time.
#[derive(Default)]
pub struct Times {
    pub kernel: Vec<Duration>,
    pub encode: Vec<Duration>,
    pub copy: Vec<Duration>,
    pub copy_command: Vec<Duration>,
    pub memcpy: Vec<Duration>,
    pub cpu: Vec<Duration>,
    pub call: Vec<Duration>,
    /// Of the dispatches that are products of matrices.
    pub products: Vec<Duration>,
    /// Of a loop of multiplications and additions.
    pub loops: Vec<Duration>,
}

/// What came of a workload. Times are medians.
#[derive(Serialize, Deserialize)]
pub struct Record {
    op: String,
    pass: String,
    dtype: String,
    shape: Vec<usize>,
    /// The kernel that does the work, and the copy that it is compared with.
    kernel: String,
    copy: String,
    kernel_ms: f64,
    /// Half of all rounds lay within these.
    kernel_ms_quartiles: [f64; 2],
    /// On the host: a bound plan into a command encoder of its own.
    encode_us: f64,
    /// With upload and readback.
    call_ms: f64,
    /// Of every argument and result, each counted once.
    bytes: u64,
    gbps: f64,
    copy_gbps: f64,
    /// What `copy_buffer_to_buffer` does, which may be more or less than any kernel.
    copy_command_gbps: f64,
    fraction_of_copy: f64,
    /// The CPU twin's, and a copy of as many bytes on the host, both by all threads.
    cpu_ms: f64,
    cpu_gbps: f64,
    memcpy_gbps: f64,
    /// In units of the error allowed.
    max_error: f64,
    /// Of an op that is made of products of matrices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub products: Option<Products>,
}

/// The products of matrices that a call is made of, on their own.
#[derive(Serialize, Deserialize)]
pub struct Products {
    ms: f64,
    /// A multiplication and its addition count as two operations.
    gflops: f64,
    /// What a loop of nothing else reaches.
    loop_gflops: f64,
    fraction_of_loop: f64,
}

impl Products {
    /// Of so many multiplications and additions, beside a loop of so many.
    pub fn new(count: f64, count_of_loop: f64, times: &Times) -> Self {
        let gflops =
            |count: f64, times: &[Duration]| 2e-9 * count / median(times).as_secs_f64().max(1e-9);
        let own = gflops(count, &times.products);
        let loop_gflops = gflops(count_of_loop, &times.loops);
        Products {
            ms: ms(median(&times.products)),
            gflops: own,
            loop_gflops,
            fraction_of_loop: own / loop_gflops,
        }
    }
}

impl Record {
    pub fn new(
        workload: &Workload,
        kernel: String,
        bytes: u64,
        (copy, copy_bytes): (&str, u64),
        times: &Times,
        max_error: f64,
    ) -> Self {
        let gbps = |bytes: u64, time: Duration| bytes as f64 / time.as_secs_f64().max(1e-9) / 1e9;
        let kernel_time = median(&times.kernel);
        let own = gbps(bytes, kernel_time);
        let copy_gbps = gbps(copy_bytes, median(&times.copy));
        let quartiles = [1, 3].map(|quarter| ms(quantile(&times.kernel, quarter, 4)));
        Record {
            op: workload.op.name().into(),
            pass: workload.pass.name().into(),
            dtype: workload.dtype.to_string(),
            shape: workload.shape.clone(),
            kernel,
            copy: copy.into(),
            kernel_ms: ms(kernel_time),
            kernel_ms_quartiles: quartiles,
            encode_us: ms(median(&times.encode)) * 1e3,
            call_ms: ms(median(&times.call)),
            bytes,
            gbps: own,
            copy_gbps,
            copy_command_gbps: gbps(copy_bytes, median(&times.copy_command)),
            fraction_of_copy: own / copy_gbps,
            cpu_ms: ms(median(&times.cpu)),
            cpu_gbps: gbps(bytes, median(&times.cpu)),
            memcpy_gbps: gbps(bytes, median(&times.memcpy)),
            max_error,
            products: None,
        }
    }

    /// `4096x1000`.
    fn sizes(&self) -> String {
        let sizes: Vec<_> = self.shape.iter().map(usize::to_string).collect();
        sizes.join("x")
    }
}

/// Cells in columns as wide as their widest, numbers to the right.
fn table<const COLUMNS: usize>(rows: &[[String; COLUMNS]], numbers: Range<usize>) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: [usize; COLUMNS] = std::array::from_fn(|column| width(column).unwrap_or(0));
    let line = |row: &[String; COLUMNS]| {
        let cells = row.iter().zip(widths).enumerate().map(|(column, (cell, width))| match numbers
            .contains(&column)
        {
            true => format!("{cell:>width$}"),
            false => format!("{cell:width$}"),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The middle one, the lower of two.
pub fn median(times: &[Duration]) -> Duration {
    quantile(times, 1, 2)
}

fn quantile(times: &[Duration], part: usize, of: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    let last = sorted.len().saturating_sub(1);
    sorted.get(last * part / of).copied().unwrap_or_default()
}

/// What came of all of them.
#[derive(Serialize, Deserialize)]
pub struct Report {
    pub device: String,
    /// What was asked for: the arguments.
    pub command: String,
    /// What kernel times are.
    pub times: String,
    pub rounds: u32,
    pub records: Vec<Record>,
}

impl Report {
    /// The table.
    pub fn lines(&self) -> Vec<String> {
        let mut rows = vec![
            [
                "op",
                "pass",
                "type",
                "shape",
                "kernel ms",
                "quartiles",
                "GB/s",
                "copy",
                "of copy",
                "command",
                "encode us",
                "call ms",
                "cpu ms",
                "cpu",
                "memcpy",
                "error",
                "kernel",
            ]
            .map(String::from),
        ];
        rows.extend(self.records.iter().map(|record| {
            let [low, high] = record.kernel_ms_quartiles;
            [
                record.op.clone(),
                record.pass.clone(),
                record.dtype.clone(),
                record.sizes(),
                format!("{:.3}", record.kernel_ms),
                format!("{low:.3}-{high:.3}"),
                format!("{:.2}", record.gbps),
                format!("{:.2}", record.copy_gbps),
                format!("{:.2}", record.fraction_of_copy),
                format!("{:.2}", record.copy_command_gbps),
                format!("{:.1}", record.encode_us),
                format!("{:.2}", record.call_ms),
                format!("{:.3}", record.cpu_ms),
                format!("{:.1}", record.cpu_gbps),
                format!("{:.1}", record.memcpy_gbps),
                format!("{:.2}", record.max_error),
                record.kernel.clone(),
            ]
        }));
        let mut lines = vec![
            format!("device  {}", self.device),
            format!("times   medians of {} rounds; {}", self.rounds, self.times),
            "GB/s    every argument and result counted once; copy: the best copy kernel; command: \
             copy_buffer_to_buffer; cpu: the CPU twin; memcpy: the host's, by all threads"
                .into(),
            "error   of the results before they were timed, in units of the error allowed".into(),
            String::new(),
        ];
        lines.extend(table(&rows, 4..16));
        let with_products =
            self.records.iter().filter_map(|record| Some((record, record.products.as_ref()?)));
        let mut rows = vec![
            ["op", "pass", "type", "shape", "products ms", "rest", "GFLOP/s", "loop", "of loop"]
                .map(String::from),
        ];
        rows.extend(with_products.map(|(record, products)| {
            [
                record.op.clone(),
                record.pass.clone(),
                record.dtype.clone(),
                record.sizes(),
                format!("{:.3}", products.ms),
                format!("{:.1}%", 100.0 * (record.kernel_ms / products.ms - 1.0)),
                format!("{:.1}", products.gflops),
                format!("{:.1}", products.loop_gflops),
                format!("{:.2}", products.fraction_of_loop),
            ]
        }));
        if rows.len() > 1 {
            lines.extend([
                String::new(),
                "products of matrices alone; rest: what all else takes beside them; loop: nothing but \
                 multiplications and additions, two operations each"
                    .into(),
                String::new(),
            ]);
            lines.extend(table(&rows, 4..9));
        }
        lines
    }

    /// GB/s over the number of classes, of every op that has them, and of the copy.
    pub fn plot(&self) -> Result<String> {
        let is_shown = |record: &&Record| has_rows(&record.op) && record.shape.len() == 2;
        let shown: Vec<_> = self.records.iter().filter(is_shown).collect();
        ensure!(!shown.is_empty(), "--plot: expected an op over rows of classes among those timed");
        let classes = shown.iter().map(|record| record.shape[1] as f64);
        let (least, most) =
            classes.fold((f64::MAX, 1.0), |(a, b), c| (f64::min(a, c), f64::max(b, c)));
        let top = shown.iter().map(|r| r.gbps.max(r.copy_gbps)).fold(0.0, f64::max);
        let mut curves: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
        let mut add = |name: String, point| match curves.iter_mut().find(|(n, _)| *n == name) {
            Some((_, points)) => points.push(point),
            None => curves.push((name, vec![point])),
        };
        for record in &shown {
            let classes = record.shape[1] as f64;
            let name = format!("{} {} {}", record.op, record.pass, record.dtype);
            add(name, (classes, record.gbps));
        }
        for record in &shown {
            add("copy".into(), (record.shape[1] as f64, record.copy_gbps));
        }

        let mut svg = String::new();
        // the legend has a strip of its own, above the curves, which it would hide
        let legend = 20 * curves.len() as i32;
        let size = (900, 500 + legend as u32);
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&WHITE)?;
        let (head, body) = area.split_vertically(44 + legend);
        let font = ("sans-serif", 14);
        head.draw_text(&self.device, &("sans-serif", 16).into(), (76, 16))?;
        let mut chart = ChartBuilder::on(&body)
            .margin(16)
            .margin_top(4)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d((least..most * 1.01).log_scale(), 0.0..top * 1.1)?;
        chart
            .configure_mesh()
            .x_desc("classes, log scale")
            .x_label_formatter(&|classes| format!("{classes:.0}"))
            .y_desc("GB/s, every argument and result counted once")
            .label_style(font)
            .bold_line_style(BLACK.mix(0.12))
            .light_line_style(TRANSPARENT)
            .draw()?;
        for (i, (name, mut points)) in curves.into_iter().enumerate() {
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            let style = Palette99::pick(i).stroke_width(2);
            chart.draw_series(LineSeries::new(points, style).point_size(3))?;
            let y = 48 + 20 * i as i32;
            head.draw(&PathElement::new([(76, y), (100, y)], style))?;
            head.draw_text(&name, &font.into(), (108, y - 6))?;
        }
        area.present()?;
        // they borrow the text
        drop((chart, head, body, area));
        Ok(svg)
    }
}
