//! `wgloss bench`: how fast kernels are, beside copies of the same bytes on the same device, and products
//! beside a loop of multiplications and additions.

mod copy;
mod multiply_add;
mod report;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::ValueEnum;
use wgloss::{
    Args, Array, BoundPlan, Cpu, DType, Gpu, GpuOptions, Output, Pass, Role, Team, Tensor,
};
use wgloss_testing::ops::find;
use wgloss_testing::timer::Timer;
use wgloss_testing::workload::{self, Workload};

use crate::machine::{Device, Machine};
use crate::report::{Json, print};
use crate::{devices, files, ops, progress};
use copy::Copy;
use multiply_add::MultiplyAdds;
use report::{Products, Record, Report, Times};

/// The flags.
#[derive(Debug, clap::Args)]
pub struct Flags {
    /// Only this op; may be given more than once. Default: cross_entropy and bce_with_logits
    #[arg(long, value_name = "OP|all")]
    op: Vec<String>,
    /// Only this pass; may be given more than once. Default: forward-backward
    #[arg(long, value_enum)]
    pass: Vec<ops::Pass>,
    /// Only this storage type; may be given more than once. Default: f32
    #[arg(long, value_enum)]
    dtype: Vec<DTypeFlag>,
    /// A shape instead of the ops' own, such as 4096x1000, or of linear-cross-entropy 512x256x32000 (hidden
    /// states, their numbers, classes); may be given more than once
    #[arg(long, value_name = "NxC")]
    shape: Vec<String>,
    /// How many times each contender has its turn
    #[arg(long, default_value_t = 9, allow_negative_numbers = true,
        value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// What to time: a GPU's kernels, or the CPU's
    #[arg(long, value_enum, default_value_t = Device::Auto)]
    device: Device,
    /// Force kernels of this team of a GPU, for experiments
    #[arg(long, value_enum)]
    team: Option<TeamFlag>,
    /// Only adapters whose name or driver contains this, in any case of letters
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
    /// Find out from how many classes on which team is fastest, instead
    #[arg(long, conflicts_with_all = ["op", "pass", "dtype", "shape", "team", "json", "plot"])]
    sweep: bool,
    /// Draw what --json has written, instead of timing anything
    #[arg(long, value_name = "FILE.json", requires = "plot", conflicts_with_all =
        ["op", "pass", "dtype", "shape", "rounds", "device", "team", "adapter", "sweep", "json"])]
    from: Option<PathBuf>,
    #[command(flatten)]
    json: Json,
    /// Where to draw GB/s over the number of classes
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DTypeFlag {
    F32,
    F16,
    Bf16,
}

impl From<DTypeFlag> for DType {
    fn from(flag: DTypeFlag) -> DType {
        match flag {
            DTypeFlag::F32 => DType::F32,
            DTypeFlag::F16 => DType::F16,
            DTypeFlag::Bf16 => DType::Bf16,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TeamFlag {
    Invocation,
    Subgroup,
    Workgroup,
}

impl From<TeamFlag> for Team {
    fn from(flag: TeamFlag) -> Team {
        match flag {
            TeamFlag::Invocation => Team::Invocation,
            TeamFlag::Subgroup => Team::Subgroup,
            TeamFlag::Workgroup => Team::Workgroup,
        }
    }
}

/// Times, reports, writes and draws.
pub fn bench(flags: &Flags) -> Result<()> {
    flags.json.check()?;
    if let Some(path) = &flags.plot {
        let check = || {
            let is_svg = path.extension().is_some_and(|extension| extension == "svg");
            ensure!(is_svg, "expected a name that ends in .svg");
            files::expect_writable(path)?;
            flags.json.path().map_or(Ok(()), |json| files::expect_apart(path, "--json", json))
        };
        check().with_context(|| format!("--plot {}", path.display()))?;
    }
    if let Some(path) = &flags.from {
        let read = || anyhow::Ok(serde_json::from_slice(&std::fs::read(path)?)?);
        let report: Report = read().with_context(|| format!("--from {}", path.display()))?;
        return draw(&report, flags);
    }
    let workloads = workloads(flags)?;
    ensure!(
        flags.device != Device::Reference,
        "--device reference: expected auto, gpu or cpu, since the reference is not made to be fast"
    );
    let device = match (flags.device, flags.sweep) {
        // teams are those of a GPU
        (Device::Auto, true) => Device::Gpu,
        (device, _) => device,
    };
    let team = flags.team.map(Team::from);
    let machine = Machine::open(device, flags.adapter.as_deref(), team)?;
    let gpu = machine.gpu();
    if flags.sweep {
        let gpu =
            gpu.with_context(|| format!("--device {}: expected gpu to sweep", device.word()))?;
        return sweep(gpu, flags.rounds);
    }

    let bar = progress::cases(workloads.len() * flags.rounds as usize);
    let mut report = Report {
        device: machine.description.clone(),
        command: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
        times: gpu
            .map_or("of the CPU and the host's copies, by the host's clock", |gpu| {
                Timer::new(gpu).describe()
            })
            .into(),
        rounds: flags.rounds,
        records: Vec::new(),
    };
    for workload in &workloads {
        bar.set_message(workload.name());
        let record = match gpu {
            Some(gpu) => time(gpu, workload, flags.rounds, &bar),
            None => time_on_cpu(workload, flags.rounds, &bar),
        };
        report.records.push(record.with_context(|| workload.name().to_string())?);
    }
    bar.finish_and_clear();
    draw(&report, flags)?;
    let json = || Ok(serde_json::to_string_pretty(&report)?);
    flags.json.tell(json, &report.lines(), false)
}

/// Draws what `--plot` asks for.
fn draw(report: &Report, flags: &Flags) -> Result<()> {
    let Some(path) = &flags.plot else { return Ok(()) };
    let svg = report.plot()?;
    files::replace(path, svg.as_bytes()).with_context(|| format!("--plot {}", path.display()))
}

/// What was asked for.
fn workloads(flags: &Flags) -> Result<Vec<Workload>> {
    let names: Vec<String> = match &flags.op[..] {
        [] => vec!["cross_entropy".into(), "bce_with_logits".into()],
        [all] if all == "all" => wgloss::ops().iter().map(|op| op.name().into()).collect(),
        names => names.iter().map(|name| name.replace('-', "_")).collect(),
    };
    let given = flags.shape.iter().map(|shape| parse_shape(shape)).collect::<Result<Vec<_>>>()?;
    let passes: Vec<Pass> = match &flags.pass[..] {
        [] => vec![Pass::ForwardBackward],
        passes => passes.iter().map(|&pass| pass.into()).collect(),
    };
    let dtypes: Vec<DType> = match &flags.dtype[..] {
        [] => vec![DType::F32],
        dtypes => dtypes.iter().map(|&dtype| dtype.into()).collect(),
    };
    let mut workloads = Vec::new();
    for name in &names {
        let own: Vec<_> = workload::shapes(name).iter().map(|shape| shape.to_vec()).collect();
        for shape in if given.is_empty() { &own } else { &given } {
            if let Some(sizes) = workload::sizes(name) {
                let count = sizes.split('x').count();
                ensure!(
                    shape.len() == count,
                    "--shape: expected {sizes} for {name}, got {shape:?}"
                );
            }
            for &pass in &passes {
                for &dtype in &dtypes {
                    let op = find(name);
                    let Some(op) = op else {
                        let known: Vec<_> = wgloss::ops().iter().map(|op| op.name()).collect();
                        bail!("--op {name}: expected all or one of {}", known.join(", "));
                    };
                    workloads.push(Workload { op, pass, dtype, shape: shape.clone() });
                }
            }
        }
    }
    Ok(workloads)
}

fn parse_shape(text: &str) -> Result<Vec<usize>> {
    let sizes = text.split('x').map(str::parse).collect::<Result<Vec<usize>, _>>();
    let sizes = sizes.ok().filter(|sizes| sizes.iter().all(|&size| size > 0));
    sizes.ok_or_else(|| anyhow!("--shape {text}: expected sizes like 4096x1000"))
}

/// A call's arguments on the device, ready to be encoded.
struct Call {
    args: Args<Array<'static>>,
    bound: BoundPlan,
    /// Its products of matrices alone, if there are any.
    products: BoundPlan,
}

/// Calls on memory of their own: together more than caches hold, unless they are very small.
fn prepare(gpu: &Gpu, workload: &Workload) -> Result<(Vec<Call>, String)> {
    const MORE_THAN_CACHES: u64 = 256 << 20;
    const MOST: usize = 32;
    let mut calls = Vec::new();
    let mut kernel = String::new();
    let mut bytes = 0;
    while calls.is_empty() || bytes < MORE_THAN_CACHES && calls.len() < MOST {
        let args = workload.draw(calls.len() as u64)?;
        let tensors: Args<Tensor> = gpu.block_on(gpu.upload_args(&args))?;
        let plan = gpu.block_on(gpu.plan(&*workload.op, workload.pass, &tensors.layouts()))?;
        let output = gpu.block_on(plan.allocate())?;
        let bound = plan.bind(&tensors, &output)?;
        bytes += tensors.iter().map(|(_, tensor)| tensor.layout().bytes()).sum::<u64>();
        bytes += output.get(Role::Grad).map_or(0, |grad| grad.layout().bytes());
        kernel = plan
            .kernels()
            .find(|label| label.starts_with(workload.op.name()))
            .unwrap_or_default()
            .into();
        let products = bound.only(|label| label.starts_with("product."));
        calls.push(Call { args, bound, products });
    }
    Ok((calls, kernel))
}

fn time(
    gpu: &Gpu,
    workload: &Workload,
    rounds: u32,
    bar: &indicatif::ProgressBar,
) -> Result<Record> {
    let (calls, kernel) = prepare(gpu, workload)?;
    let args = &calls[0].args;
    let run =
        |args: &Args<Array<'static>>| gpu.block_on(gpu.run(&*workload.op, workload.pass, args));
    let host = || run(args);
    let output = host()?;
    let max_error = judged(workload, args, &output, run)?;
    let bytes = workload.bytes(args, &output);

    let timer = Timer::new(gpu);
    // in as many places as the kernel is given
    let copies = Copy::all(gpu, bytes, calls.len())?;
    let time_copy = |copy: &Copy, turn| match copy.has_pass() {
        true => timer.time(|encoder, writes| copy.encode(turn, encoder, writes)),
        false => timer.time_whole(|encoder| copy.encode(turn, encoder, None)),
    };
    let (kernels, commands): (Vec<_>, Vec<_>) = copies.iter().partition(|copy| copy.has_pass());
    let best = best_copy(&kernels, time_copy)?;
    let command = best_copy(&commands, time_copy)?;
    let multiplications = workload.multiplications(&output);
    drop(output);
    let bare = multiplications.map(|_| MultiplyAdds::fastest(gpu, &timer)).transpose()?;
    let mut memory = Memory::new(bytes);
    // into the results of the last round: fresh memory would be most of what is timed
    let (cpu, mut on_cpu) = (Cpu::default(), Output::default());

    let mut times = Times::default();
    // the first round warms up
    for round in 0..=rounds as usize {
        let call = &calls[round % calls.len()];
        let kernel = timer.time(|encoder, writes| call.bound.encode_timed(encoder, writes))?;
        let (copy, copy_command) = (time_copy(best, round)?, time_copy(command, round)?);
        let memcpy = memory.copy();
        let start = Instant::now();
        cpu.run_into(&*workload.op, workload.pass, &call.args, &mut on_cpu)?;
        let twin = start.elapsed();
        let start = Instant::now();
        host()?;
        let whole = start.elapsed();
        let encode = || {
            let start = Instant::now();
            let mut encoder = gpu.device().create_command_encoder(&Default::default());
            call.bound.encode(&mut encoder);
            drop(encoder.finish());
            start.elapsed()
        };
        // the second counts: after all of the above the host's caches are cold
        let encode = [encode(), encode()][1];
        if let Some(bare) = &bare {
            let products = &call.products;
            let products = timer.time(|encoder, writes| products.encode_timed(encoder, writes))?;
            let loops = timer.time(|encoder, writes| bare.encode(encoder, writes))?;
            if round > 0 {
                times.products.push(products);
                times.loops.push(loops);
            }
        }
        if round > 0 {
            times.encode.push(encode);
            times.kernel.push(kernel);
            times.copy.push(copy);
            times.copy_command.push(copy_command);
            times.memcpy.push(memcpy);
            times.cpu.push(twin);
            times.call.push(whole);
            bar.inc(1);
        }
    }
    let copied = (&best.name[..], best.bytes());
    let mut record = Record::new(workload, kernel, bytes, copied, &times, max_error);
    if let (Some(count), Some(bare)) = (multiplications, bare) {
        record.products = Some(Products::new(count, bare.count(), &times));
    }
    Ok(record)
}

/// The worst error of a call in units of the error allowed: of one with fewer rows where the reference would
/// take too long for all.
fn judged(
    workload: &Workload,
    args: &Args<Array<'static>>,
    output: &Output<Array<'static>>,
    run: impl Fn(&Args<Array<'static>>) -> wgloss::Result<Output<Array<'static>>>,
) -> Result<f64> {
    let Some(fewer) = workload.judged() else { return workload.judge(args, output) };
    let args = fewer.draw(0)?;
    fewer.judge(&args, &run(&args)?)
}

/// The CPU in place of the GPU, beside the host's copies.
fn time_on_cpu(workload: &Workload, rounds: u32, bar: &indicatif::ProgressBar) -> Result<Record> {
    let cpu = Cpu::default();
    let calls: Vec<_> = (0..2).map(|turn| workload.draw(turn)).collect::<Result<_>>()?;
    let mut output = cpu.run(&*workload.op, workload.pass, &calls[0])?;
    let run = |args: &Args<Array<'static>>| cpu.run(&*workload.op, workload.pass, args);
    let max_error = judged(workload, &calls[0], &output, run)?;
    let bytes = workload.bytes(&calls[0], &output);
    let mut memory = Memory::new(bytes);
    let mut times = Times::default();
    // the first round warms up
    for round in 0..=rounds as usize {
        let args = &calls[round % calls.len()];
        let start = Instant::now();
        cpu.run_into(&*workload.op, workload.pass, args, &mut output)?;
        let kernel = start.elapsed();
        let memcpy = memory.copy();
        if round > 0 {
            // a call is a kernel here, and the copy is the host's
            for calls in [&mut times.kernel, &mut times.cpu, &mut times.call] {
                calls.push(kernel);
            }
            for copies in [&mut times.copy, &mut times.copy_command, &mut times.memcpy] {
                copies.push(memcpy);
            }
            times.encode.push(Duration::ZERO);
            bar.inc(1);
        }
    }
    let kernel = format!("cpu ({} threads)", cpu.threads());
    Ok(Record::new(workload, kernel, bytes, ("memcpy", bytes / 2 * 2), &times, max_error))
}

/// The fastest way to copy, by the medians of a few runs.
fn best_copy<'a>(
    copies: &[&'a Copy],
    time: impl Fn(&Copy, usize) -> Result<Duration>,
) -> Result<&'a Copy> {
    let mut best: Option<(Duration, &Copy)> = None;
    for &copy in copies {
        let mut runs = (0..4).map(|turn| time(copy, turn)).collect::<Result<Vec<_>>>()?;
        // the first one warmed up
        runs.remove(0);
        runs.sort();
        if best.is_none_or(|(fastest, _)| runs[1] < fastest) {
            best = Some((runs[1], copy));
        }
    }
    best.map(|(_, copy)| copy).context("no way to copy")
}

/// A copy of as many bytes on the host, by all of its threads.
struct Memory {
    from: Vec<u8>,
    to: Vec<u8>,
}

impl Memory {
    fn new(bytes: u64) -> Self {
        let half = (bytes / 2).max(1) as usize;
        Memory { from: vec![1; half], to: vec![2; half] }
    }

    fn copy(&mut self) -> Duration {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let each = self.from.len().div_ceil(threads);
        let start = Instant::now();
        std::thread::scope(|scope| {
            for (from, to) in self.from.chunks(each).zip(self.to.chunks_mut(each)) {
                scope.spawn(move || to.copy_from_slice(from));
            }
        });
        start.elapsed()
    }
}

/// Cross entropy by every team, over numbers of classes: where one becomes faster than another is
/// a threshold of `src/tuning.rs`.
fn sweep(gpu: &Gpu, rounds: u32) -> Result<()> {
    const LOGITS: usize = 1 << 22;
    let teams = [Team::Invocation, Team::Subgroup, Team::Workgroup];
    let classes: Vec<usize> = (2..=17).flat_map(|n| [1 << n, (1 << n) * 3 / 2]).collect();
    let bar = progress::cases(classes.len());
    let mut lines = vec![
        format!("device  {}", devices::describe(gpu.info())),
        format!("cross entropy, forward and backward, {LOGITS} logits, ms by team"),
        String::new(),
        format!(
            "{:>8}  {:>10}  {:>10}  {:>10}  fastest",
            "classes", "invocation", "subgroup", "workgroup"
        ),
    ];
    let mut rows = Vec::new();
    for &classes in &classes {
        bar.set_message(format!("{classes} classes"));
        let mut contenders = Vec::new();
        for team in teams {
            let options = GpuOptions::default().team(team);
            let (device, queue) = (gpu.device().clone(), gpu.queue().clone());
            let gpu = pollster::block_on(Gpu::from_device(device, queue, &options))?;
            let workload = Workload {
                op: Box::new(wgloss::CrossEntropy::default()),
                pass: Pass::ForwardBackward,
                dtype: DType::F32,
                shape: vec![LOGITS / classes, classes],
            };
            let (calls, _) = prepare(&gpu, &workload)?;
            let output = gpu.block_on(gpu.run(&*workload.op, workload.pass, &calls[0].args))?;
            workload.judge(&calls[0].args, &output)?;
            contenders.push((gpu, calls, Vec::new()));
        }
        // the first round warms up
        for round in 0..=rounds as usize {
            for (gpu, calls, times) in &mut contenders {
                let bound = &calls[round % calls.len()].bound;
                let time =
                    Timer::new(gpu).time(|encoder, writes| bound.encode_timed(encoder, writes))?;
                if round > 0 {
                    times.push(time);
                }
            }
        }
        let median = |team: usize| report::median(&contenders[team].2).as_secs_f64() * 1e3;
        let medians = [median(0), median(1), median(2)];
        let fastest = (0..3).min_by(|&a, &b| medians[a].total_cmp(&medians[b])).unwrap_or(0);
        rows.push(medians);
        lines.push(format!(
            "{classes:>8}  {:>10.3}  {:>10.3}  {:>10.3}  {}",
            medians[0],
            medians[1],
            medians[2],
            teams[fastest].name()
        ));
        bar.inc(1);
    }
    bar.finish_and_clear();
    let up_to = thresholds(&rows).map(|count| count.checked_sub(1).map_or(0, |last| classes[last]));
    lines.extend([
        String::new(),
        "thresholds for src/tuning.rs, with which these times have the least product:".into(),
        format!("    max_classes_by_invocation: {},", up_to[0]),
        format!("    max_classes_by_subgroup: {},", up_to[1]),
    ]);
    print(&lines)
}

/// How many of the first rows are best left to the first team, and how many to the first two: times
/// are noisy, so all of them have a say.
fn thresholds(rows: &[[f64; 3]]) -> [usize; 2] {
    let cost = |[first, second]: [usize; 2]| {
        let team = |row: usize| usize::from(row >= first) + usize::from(row >= second);
        rows.iter().enumerate().map(|(row, times)| times[team(row)].ln()).sum::<f64>()
    };
    let all = (0..=rows.len()).flat_map(|first| (first..=rows.len()).map(move |s| [first, s]));
    all.min_by(|&a, &b| cost(a).total_cmp(&cost(b))).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::thresholds;

    #[test]
    fn thresholds_are_where_all_times_together_are_least() {
        // the second team is as fast as the first, once, and once a little faster than the third
        let rows =
            [[1.0, 2.0, 9.0], [2.0, 2.0, 9.0], [2.0, 3.0, 9.0], [4.0, 3.0, 9.0], [9.0, 3.0, 2.9]];
        assert_eq!(thresholds(&rows), [3, 4]);
        assert_eq!(thresholds(&[]), [0, 0]);
        assert_eq!(thresholds(&[[3.0, 2.0, 1.0]]), [0, 0]);
    }
}
