//! Losses beside burn's own, whole training steps with each, and a head's product with its loss, as tables.
//!
//! ```sh
//! make bench-burn                      # builds three settings of burn, and measures them
//! make bench-burn RECORD=FILE.json     # and writes what was measured
//! ```
//!
//! burn's settings are chosen when it is built, so that each is a program of its own: this one, which
//! `bench PROGRAM...` starts once for burn's loss and once for ours, for each workload. All of these
//! processes take turns of some rounds, so that whatever else the machine does hits all of them. After the
//! times, the same processes tell
//!
//! - how long the host's calls take until they return, on an idle device, since drivers may make a call
//!   wait for what was submitted before (lavapipe does);
//! - how much one more round takes, of burn's pools and of the process.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};
use burn::backend::wgpu::WgpuSetup;
use burn::module::Module;
use burn::nn::loss::{CrossEntropyLoss, CrossEntropyLossConfig};
use burn::nn::{Linear, LinearConfig, Relu};
use burn::optim::{GradientsParams, ModuleOptimizer, SgdConfig};
use burn::tensor::{Device, Distribution, Int, Tensor};
use serde_json::{Value, json};

/// Rows and classes.
const LOSSES: [[usize; 2]; 5] = [[32, 10], [8192, 128], [4096, 1000], [512, 32_000], [64, 128_256]];
const STEPS: [[usize; 2]; 2] = [[1024, 1000], [512, 8000]];
const LINEARS: [[usize; 2]; 2] = [[2048, 1000], [512, 32_000]];
/// Numbers of a hidden state that a head takes.
const HEAD: usize = 256;
/// Of losses; and of the others, which take longer.
const TURNS: [usize; 2] = [5, 3];
const ROUNDS: usize = 2;
const HOST_ROUNDS: usize = 15;
const USAGE: &str = "usage: bench [--only loss|step|linear] [--record FILE] PROGRAM...; make bench-burn \
                     builds the programs";
const HIDDEN: usize = 64;

fn main() -> Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let mut args = args.iter().map(String::as_str);
    let (mut only, mut path, mut programs) = (None, None, Vec::new());
    while let Some(arg) = args.next() {
        match arg {
            "serve" => {
                let args: Vec<&str> = args.collect();
                let [who, what, rows, classes] = args[..] else { bail!("{USAGE}") };
                return serve(who, what, [rows.parse()?, classes.parse()?]);
            }
            "--only" => only = Some(args.next().context(USAGE)?),
            "--record" => path = Some(args.next().context(USAGE)?),
            program => programs.push(program),
        }
    }
    ensure!(!programs.is_empty(), USAGE);
    let record = compare(&programs, only)?;
    if let Some(path) = path {
        fs::write(path, format!("{record:#}\n")).with_context(|| format!("cannot write {path}"))?;
    }
    Ok(())
}

// ------------------------------------------------------------------------ one setting, one loss

/// Answers each line of the input: `turn` with the times of some rounds, `memory` with what one takes.
fn serve(who: &str, what: &str, [rows, classes]: [usize; 2]) -> Result<()> {
    let (device, setup) = Device::wgpu_options().init_with_setup()?;
    wgloss_burn::share(&device, &setup)?;
    let device = device.autodiff();
    device.seed(1);
    let targets = Distribution::Uniform(0.0, classes as f64);
    let targets = Tensor::<1, Int>::random([rows], targets, &device);
    let loss = Loss::new(who, &device)?;
    let mut work: Box<Work<'_>> = match what {
        "loss" => {
            let logits = Distribution::Normal(0.0, 3.0);
            let logits = Tensor::<2>::random([rows, classes], logits, &device);
            let device = device.clone();
            Box::new(move |is_idle| {
                loss_and_gradient(&device, &loss, logits.clone(), targets.clone(), is_idle)
            })
        }
        "step" => {
            let images = Distribution::Normal(0.0, 1.0);
            let images = Tensor::<2>::random([rows, HIDDEN], images, &device).inner();
            let mut training = Training::new(loss, classes, &device);
            let device = device.clone();
            Box::new(move |_| training.step(&device, images.clone(), targets.clone()))
        }
        "linear" => {
            let hidden = Distribution::Normal(0.0, 1.0);
            let hidden = Tensor::<2>::random([rows, HEAD], hidden, &device);
            let projection = Distribution::Normal(0.0, 0.1);
            let projection = Tensor::<2>::random([classes, HEAD], projection, &device);
            let linear = wgloss_burn::LinearCrossEntropyLossConfig::new().init(&device);
            let device = device.clone();
            Box::new(move |_| {
                let hidden = hidden.clone().require_grad();
                let projection = projection.clone().require_grad();
                device.sync()?;
                let start = Instant::now();
                let loss = match &loss {
                    Loss::Burns(loss) => {
                        loss.forward(hidden.matmul(projection.transpose()), targets.clone())
                    }
                    Loss::Ours(_) => linear.forward(hidden, projection, None, targets.clone()),
                };
                let grads = loss.backward();
                device.sync()?;
                let seconds = start.elapsed().as_secs_f64();
                drop(grads);
                let loss = loss.into_scalar::<f32>();
                Ok(Round { seconds, forward: 0.0, backward: 0.0, loss })
            })
        }
        _ => bail!("{what}: expected loss, step or linear"),
    };
    // compiles, tunes, and fills the pools
    for _ in 0..3 {
        work(false)?;
    }
    let setting =
        json!({ "fusion": cfg!(feature = "fusion"), "autotune": cfg!(feature = "autotune") });
    println!("{setting}");
    for line in std::io::stdin().lines() {
        let answer = match &line?[..] {
            "turn" => turn(&mut work, &setup)?,
            "host" => host(&mut work)?,
            "memory" => memory(&mut work, &device)?,
            other => bail!("{other}: expected turn, host or memory"),
        };
        println!("{answer}");
    }
    Ok(wgloss_burn::check(&device)?)
}

/// A round; whether the device is to be idle before each of its calls.
type Work<'a> = dyn FnMut(bool) -> Result<Round> + 'a;

fn turn(work: &mut Work<'_>, setup: &WgpuSetup) -> Result<Value> {
    // one to warm up what the others' turns have cooled down
    work(false)?;
    let before = created(setup)?;
    let rounds: Vec<Round> = (0..ROUNDS).map(|_| work(false)).collect::<Result<_>>()?;
    Ok(json!({
        "ms": rounds.iter().map(|round| round.seconds * 1e3).collect::<Vec<_>>(),
        "loss": rounds[0].loss,
        "created": created(setup)? - before,
    }))
}

/// Microseconds until the calls have returned.
fn host(work: &mut Work<'_>) -> Result<Value> {
    let rounds: Vec<Round> = (0..HOST_ROUNDS).map(|_| work(true)).collect::<Result<_>>()?;
    let of = |f: fn(&Round) -> f64| median(&rounds.iter().map(f).collect::<Vec<_>>()) * 1e6;
    Ok(json!({ "forward": of(|round| round.forward), "backward": of(|round| round.backward) }))
}

/// The buffers and pipelines that wgpu has: a plan of ours takes two buffers at least.
fn created(setup: &WgpuSetup) -> Result<i64> {
    let report = setup.instance.generate_report().context("expected a native instance")?;
    let hub = report.hub_report();
    Ok((hub.buffers.num_allocated + hub.compute_pipelines.num_allocated) as i64)
}

/// What a round takes more than is there before it: of burn's pools and of the process, of which a
/// software driver's memory is a part.
fn memory(work: &mut Work<'_>, device: &Device) -> Result<Value> {
    device.memory_cleanup();
    device.sync()?;
    let reserved = || device.memory_pool_usage().map_or(0, |usage| usage.bytes_reserved);
    // the peak begins anew: Linux's own
    let is_new = fs::write("/proc/self/clear_refs", "5").is_ok();
    let before = (reserved(), resident("VmRSS:")?);
    work(false)?;
    let (pools, process) = (reserved() - before.0, resident("VmHWM:")?.saturating_sub(before.1));
    Ok(json!({ "pools": pools, "process": is_new.then_some(process) }))
}

/// A line of Linux's account of this process, in bytes.
fn resident(line: &str) -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let found = status.lines().find_map(|it| it.strip_prefix(line)?.trim().strip_suffix(" kB"));
    Ok(found.context("expected Linux's /proc/self/status")?.parse::<u64>()? * 1024)
}

/// burn's loss, or ours.
enum Loss {
    Burns(CrossEntropyLoss),
    Ours(wgloss_burn::CrossEntropyLoss),
}

impl Loss {
    fn new(who: &str, device: &Device) -> Result<Self> {
        match who {
            "burn" => Ok(Loss::Burns(CrossEntropyLossConfig::new().init(device))),
            "wgloss" => Ok(Loss::Ours(wgloss_burn::CrossEntropyLossConfig::new().init(device))),
            _ => bail!("{who}: expected burn or wgloss"),
        }
    }

    fn forward(&self, logits: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
        match self {
            Loss::Burns(loss) => loss.forward(logits, targets),
            Loss::Ours(loss) => loss.forward(logits, targets),
        }
    }
}

struct Round {
    /// From inputs on the device until all is complete.
    seconds: f64,
    /// Until the loss's call has returned, and until backward's has; 0 where there is more in these.
    forward: f64,
    backward: f64,
    loss: f32,
}

/// Loss and gradient of logits that stay as they are: in a model, ours takes one buffer less.
fn loss_and_gradient(
    device: &Device,
    loss: &Loss,
    logits: Tensor<2>,
    targets: Tensor<1, Int>,
    is_idle: bool,
) -> Result<Round> {
    let logits = logits.require_grad();
    device.sync()?;
    let start = Instant::now();
    let loss = loss.forward(logits, targets);
    let forward = start.elapsed().as_secs_f64();
    if is_idle {
        device.sync()?;
    }
    let before = start.elapsed().as_secs_f64();
    let grads = loss.backward();
    let backward = start.elapsed().as_secs_f64() - before;
    device.sync()?;
    let seconds = start.elapsed().as_secs_f64();
    drop(grads);
    Ok(Round { seconds, forward, backward, loss: loss.into_scalar::<f32>() })
}

#[derive(Module, Debug)]
struct Model {
    hidden: Linear,
    activation: Relu,
    head: Linear,
}

struct Training {
    model: Model,
    optimizer: ModuleOptimizer,
    loss: Loss,
}

impl Training {
    fn new(loss: Loss, classes: usize, device: &Device) -> Self {
        let model = Model {
            hidden: LinearConfig::new(HIDDEN, HIDDEN).init(device),
            activation: Relu::new(),
            head: LinearConfig::new(HIDDEN, classes).init(device),
        };
        Training { model, optimizer: SgdConfig::new().init(), loss }
    }

    /// Forward, backward and the optimizer's step.
    fn step(
        &mut self,
        device: &Device,
        images: Tensor<2>,
        targets: Tensor<1, Int>,
    ) -> Result<Round> {
        device.sync()?;
        let start = Instant::now();
        let model = &self.model;
        let logits = model.activation.forward(model.hidden.forward(Tensor::from_inner(images)));
        let loss = self.loss.forward(model.head.forward(logits), targets);
        let grads = GradientsParams::from_grads(loss.backward(), &self.model);
        self.model = self.optimizer.step(0.01, self.model.clone(), grads);
        device.sync()?;
        let seconds = start.elapsed().as_secs_f64();
        Ok(Round { seconds, forward: 0.0, backward: 0.0, loss: loss.into_scalar::<f32>() })
    }
}

// ------------------------------------------------------------------------ all of them in turns

/// A process that serves.
struct Server {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Server {
    fn start(program: &str, who: &str, what: &str, shape: [usize; 2]) -> Result<Self> {
        let shape = shape.map(|size| size.to_string());
        let mut process = Command::new(program)
            .args(["serve", who, what, &shape[0], &shape[1]])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let input = process.stdin.take().context("expected a pipe")?;
        let output = BufReader::new(process.stdout.take().context("expected a pipe")?);
        Ok(Server { process, input, output })
    }

    fn answer(&mut self) -> Result<Value> {
        let mut line = String::new();
        ensure!(self.output.read_line(&mut line)? > 0, "it ended: {}", self.process.wait()?);
        Ok(serde_json::from_str(&line)?)
    }

    fn ask(&mut self, request: &str) -> Result<Value> {
        writeln!(self.input, "{request}")?;
        self.answer()
    }

    /// Tells it to end, and waits until it has.
    fn end(self) -> Result<()> {
        let Server { mut process, input, .. } = self;
        drop(input);
        let status = process.wait()?;
        ensure!(status.success(), "{status}");
        Ok(())
    }
}

fn compare(programs: &[&str], only: Option<&str>) -> Result<Value> {
    let mut records = Vec::new();
    let load = load()?;
    for (what, title, shapes, turns) in [
        ("loss", "Loss and gradient of leaf logits", &LOSSES[..], TURNS[0]),
        ("step", "Whole steps: 64 to 64 to classes, SGD", &STEPS[..], TURNS[1]),
        (
            "linear",
            "Product and loss of hidden states of 256 numbers, both gradients",
            &LINEARS[..],
            TURNS[1],
        ),
    ] {
        if only.is_some_and(|only| only != what) {
            continue;
        }
        println!("{title}\n");
        println!(
            "| N x C | setting | burn, ms | wgloss, ms | times | host, us: burn | wgloss | pools, MiB: \
             burn | wgloss | process, MiB: burn | wgloss | created |"
        );
        println!("| --- | --- | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: |");
        for &shape in shapes {
            records.extend(workload(programs, what, shape, turns)?);
        }
        println!();
    }
    Ok(json!({
        "date": output_of("date", &["-u", "+%FT%TZ"])?,
        "revision": output_of("git", &["rev-parse", "--short", "HEAD"])?,
        "cpu": cpu()?,
        "cores": std::thread::available_parallelism()?.get(),
        "load_before": load,
        "load_after": self::load()?,
        "burn": "0.22.1, WGSL",
        "dtype": "f32",
        "turns": TURNS,
        "rounds": ROUNDS,
        "records": records,
    }))
}

/// All programs on one workload, each with burn's loss and with ours.
fn workload(programs: &[&str], what: &str, shape: [usize; 2], turns: usize) -> Result<Vec<Value>> {
    let mut servers = Vec::new();
    for program in programs {
        for who in ["burn", "wgloss"] {
            let mut server = Server::start(program, who, what, shape)?;
            // one after the other, since they compile
            let setting =
                server.answer().map_err(|error| eprintln!("{program} {who}: {error}")).ok();
            servers.push((who, setting, server, Vec::new()));
        }
    }
    for _ in 0..turns {
        for (_, _, server, turns) in servers.iter_mut().filter(|(_, setting, ..)| setting.is_some())
        {
            turns.push(server.ask("turn")?);
        }
    }
    let mut records = Vec::new();
    for (who, setting, mut server, turns) in servers {
        let Some(setting) = setting else {
            records.push(json!({ "who": who, "what": what, "shape": shape, "failed": true }));
            continue;
        };
        let all = |key: &str| {
            let turns = turns.iter().filter_map(|turn| turn[key].as_array());
            turns.flatten().filter_map(Value::as_f64).collect::<Vec<_>>()
        };
        let host = if what == "loss" { server.ask("host")? } else { Value::Null };
        let memory = server.ask("memory")?;
        server.end()?;
        let ms = all("ms");
        records.push(json!({
            "who": who,
            "what": what,
            "shape": shape,
            "setting": setting,
            "ms": median(&ms),
            "range_ms": [least(&ms), -least(&ms.iter().map(|ms| -ms).collect::<Vec<_>>())],
            "host_us": host,
            "created": turns.iter().filter_map(|turn| turn["created"].as_i64()).sum::<i64>(),
            "loss": turns[0]["loss"],
            "pools_bytes": memory["pools"],
            "process_bytes": memory["process"],
        }));
    }
    print_rows(&records, shape);
    Ok(records)
}

/// A row for each setting.
fn print_rows(records: &[Value], [rows, classes]: [usize; 2]) {
    for pair in records.chunks(2) {
        let [burn, ours] = pair else { continue };
        let number = |record: &Value, key: &str| record[key].as_f64().unwrap_or(f64::NAN);
        let mib = |record: &Value, key: &str| number(record, key) / f64::from(1 << 20);
        let host = |record: &Value| {
            let calls = ["forward", "backward"].map(|call| record["host_us"][call].as_f64());
            calls.map(|us| us.map_or("-".into(), |us| format!("{us:.0}"))).join(" + ")
        };
        let losses = [burn, ours].map(|record| number(record, "loss"));
        let is_right = (losses[0] - losses[1]).abs() <= 1e-4 * losses[1].abs();
        let is_on = |name: &str| ours["setting"][name] == json!(true);
        let setting: Vec<_> =
            ["fusion", "autotune"].into_iter().filter(|name| is_on(name)).collect();
        println!(
            "| {rows} x {classes} | {} | {:.2}{} | {:.2} | {:.1} | {} | {} | {:.1} | {:.1} | \
             {:.0} | {:.0} | {} |",
            if setting.is_empty() { "plain".into() } else { setting.join(", ") },
            number(burn, "ms"),
            if is_right { "" } else { ", **wrong**" },
            number(ours, "ms"),
            number(burn, "ms") / number(ours, "ms"),
            host(burn),
            host(ours),
            mib(burn, "pools_bytes"),
            mib(ours, "pools_bytes"),
            mib(burn, "process_bytes"),
            mib(ours, "process_bytes"),
            ours["created"],
        );
    }
}

fn median(numbers: &[f64]) -> f64 {
    let mut numbers = numbers.to_vec();
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
}

fn least(numbers: &[f64]) -> f64 {
    numbers.iter().copied().fold(f64::INFINITY, f64::min)
}

fn output_of(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).output();
    let output = output.with_context(|| format!("cannot start {program}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_string())
}

fn cpu() -> Result<String> {
    let info = fs::read_to_string("/proc/cpuinfo")?;
    let line = info.lines().find(|line| line.starts_with("model name"));
    Ok(line.and_then(|line| line.split(": ").nth(1)).unwrap_or("unknown").to_string())
}

fn load() -> Result<String> {
    Ok(fs::read_to_string("/proc/loadavg")?.split(' ').take(3).collect::<Vec<_>>().join(" "))
}
