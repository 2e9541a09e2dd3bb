//! A record of `run.py` as a picture: `plot RECORD.json FILE.svg`.
//!
//! A panel for what runs on the GPU's driver, one for what runs on the CPU; in each, a row a
//! workload and in it a line a program, a dot at its median and a bar over the runs' medians.

use std::fs;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use serde_json::Value;
use wgloss_peers::Result;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const FONT: &str = "sans-serif";
const WIDTH: i32 = 500;
const LEFT: i32 = 150;
const RIGHT: i32 = 44;
const LINE: i32 = 14;
const GREY: RGBColor = RGBColor(90, 90, 90);
/// wgloss's first, in each panel; apart from each other to the colour-blind too.
const COLORS: [RGBColor; 6] = [
    RGBColor(0, 90, 181),
    RGBColor(213, 94, 0),
    RGBColor(200, 140, 0),
    RGBColor(0, 140, 100),
    RGBColor(170, 70, 140),
    RGBColor(70, 70, 70),
];

fn main() -> Result<()> {
    let [from, to] = <[String; 2]>::try_from(std::env::args().skip(1).collect::<Vec<_>>())
        .map_err(|_| "usage: plot RECORD.json FILE.svg")?;
    let report: Value = serde_json::from_str(&fs::read_to_string(&from)?)?;
    let records = report["records"].as_array().ok_or("a record without records")?;

    let is_on_cpu =
        |r: &&Value| text(r, "peer").contains("CPU") || text(r, "peer").contains("flex");
    let (cpu, gpu): (Vec<_>, Vec<_>) = records.iter().partition(is_on_cpu);
    let device = |program: &str| text(&report["programs"][program], "device");
    let adapter = device("wgloss GPU").split(" (").next().unwrap_or_default();
    let panels: Vec<_> =
        [(format!("wgpu on {adapter}"), gpu), (device("wgloss CPU").to_string(), cpu)]
            .into_iter()
            .filter(|(_, records)| !records.is_empty())
            .map(|(title, records)| Panel::new(title, records))
            .collect();

    // the same for all panels
    let times = || records.iter().filter_map(|r| r["median_ms"].as_f64());
    let decades = [
        times().fold(f64::MAX, f64::min).log10().floor(),
        times().fold(0.0, f64::max).log10().ceil(),
    ];
    let lines =
        panels.iter().map(|p| p.peers.len()).max().ok_or("a record without results")? as i32;
    let workloads = panels.iter().map(|p| p.workloads.len()).max().unwrap_or(0) as i32;
    let head = 72 + 18 * lines;
    let row = LINE * lines + 10;
    let size = (WIDTH * panels.len() as i32, head + row * workloads + 56);
    let area = SVGBackend::new(&to, (size.0 as u32, size.1 as u32)).into_drawing_area();
    area.fill(&WHITE)?;
    let runs = report["runs"].as_array().map_or(1, Vec::len);
    let what = format!(
        "Mean loss and gradient in f32, ms: less is better. {}, {} cores, {runs} run{}; bars: from \
         the fastest run to the slowest",
        text(&report, "cpu"),
        report["cores"],
        if runs == 1 { "" } else { "s" }
    );
    write(&area, &what, 15, &BLACK, (16, 22), HPos::Left)?;
    for (i, panel) in panels.iter().enumerate() {
        panel.draw(&area, (WIDTH * i as i32, head, row), decades)?;
    }
    area.present()?;
    Ok(())
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn write(
    area: &Area,
    text: &str,
    size: i32,
    color: &RGBColor,
    at: (i32, i32),
    side: HPos,
) -> Result<()> {
    let style = (FONT, size).into_text_style(area).color(color).pos(Pos::new(side, VPos::Center));
    Ok(area.draw(&Text::new(text, at, style))?)
}

struct Panel<'a> {
    title: String,
    records: Vec<&'a Value>,
    /// Those whose results are drawn, in the order of their lines.
    peers: Vec<&'a str>,
    workloads: Vec<(&'a str, &'a str)>,
}

impl<'a> Panel<'a> {
    fn new(title: String, records: Vec<&'a Value>) -> Self {
        let (mut peers, mut workloads) = (Vec::new(), Vec::new());
        for record in &records {
            let (peer, workload) =
                (text(record, "peer"), (text(record, "op"), text(record, "shape")));
            if !peers.contains(&peer) {
                peers.push(peer);
            }
            if !workloads.contains(&workload) {
                workloads.push(workload);
            }
        }
        Panel { title, records, peers, workloads }
    }

    /// From pixel `left` on, rows of `row` pixels from `top` on, over times of `10^low` to
    /// `10^high` ms.
    fn draw(
        &self,
        area: &Area,
        (left, top, row): (i32, i32, i32),
        [low, high]: [f64; 2],
    ) -> Result<()> {
        let (first, last) = (left + LEFT, left + WIDTH - RIGHT);
        let x = |ms: f64| {
            first + ((ms.log10() - low) / (high - low) * f64::from(last - first)).round() as i32
        };
        let bottom = top + row * self.workloads.len() as i32;

        write(area, &self.title, 15, &BLACK, (first, 50), HPos::Left)?;
        for (i, peer) in self.peers.iter().enumerate() {
            let (y, color) = (72 + 18 * i as i32, COLORS[i % COLORS.len()]);
            area.draw(&Circle::new((first + 5, y), 4, color.filled()))?;
            write(area, peer, 14, &BLACK, (first + 16, y), HPos::Left)?;
        }
        for decade in low as i32..=high as i32 {
            let ms = 10_f64.powi(decade);
            area.draw(&PathElement::new([(x(ms), top), (x(ms), bottom)], BLACK.mix(0.2)))?;
            write(area, &format!("{ms}"), 13, &GREY, (x(ms), bottom + 14), HPos::Center)?;
        }
        write(area, "ms, log scale", 13, &GREY, ((first + last) / 2, bottom + 34), HPos::Center)?;

        for (i, &(op, shape)) in self.workloads.iter().enumerate() {
            let y = top + row * i as i32;
            area.draw(&PathElement::new([(left + 16, y), (last, y)], BLACK.mix(0.2)))?;
            let name = match op {
                "cross_entropy" => "cross entropy",
                "bce_with_logits" => "BCE with logits",
                "linear_cross_entropy" => "linear cross entropy",
                other => other,
            };
            let middle = y + row / 2;
            write(area, name, 14, &BLACK, (first - 12, middle - 9), HPos::Right)?;
            write(
                area,
                &shape.replace('x', " × "),
                14,
                &BLACK,
                (first - 12, middle + 9),
                HPos::Right,
            )?;
            // lines of a panel with fewer programs are further apart
            let line = (row - 10) / self.peers.len() as i32;
            for record in &self.records {
                if (text(record, "op"), text(record, "shape")) != (op, shape) {
                    continue;
                }
                let place = self.peers.iter().position(|&peer| peer == text(record, "peer"));
                let place = place.unwrap_or(0);
                let y = y + 5 + line * place as i32 + line / 2;
                draw_time(area, record, COLORS[place % COLORS.len()], y, first, &x)?;
            }
        }
        Ok(area.draw(&PathElement::new([(left + 16, bottom), (last, bottom)], BLACK.mix(0.2)))?)
    }
}

/// A dot with its number; hollow if what was computed is wrong.
fn draw_time(
    area: &Area,
    record: &Value,
    color: RGBColor,
    y: i32,
    first: i32,
    x: &impl Fn(f64) -> i32,
) -> Result<()> {
    let Some(median) = record["median_ms"].as_f64() else {
        return write(area, "no result", 13, &color, (first + 6, y), HPos::Left);
    };
    let range = |i: usize| record["range_ms"][i].as_f64().map_or(x(median), x);
    let (least, most) = (range(0), range(1));
    area.draw(&Rectangle::new([(least, y - 1), (most, y + 1)], color.mix(0.5).filled()))?;
    let is_right = record["is_right"] == true;
    let style = if is_right { color.filled() } else { color.stroke_width(2) };
    area.draw(&Circle::new((x(median), y), 4, style))?;
    let digits = if median < 10.0 {
        2
    } else if median < 100.0 {
        1
    } else {
        0
    };
    let label = format!("{median:.digits$}{}", if is_right { "" } else { ", wrong" });
    write(area, &label, 12, &color, (most.max(x(median)) + 8, y), HPos::Left)
}
