//! What computes: a GPU, the CPU, or the reference.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use clap::ValueEnum;
use safetensors::Dtype;
use wgloss::reference::{self, Values};
use wgloss::{Args, Cpu, DType, Gpu, GpuOptions, Op, Output, Pass, Team};

use crate::devices;
use crate::files::Tensor;
use crate::ops::Host;

/// Where to compute.
#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
pub enum Device {
    /// A hardware GPU, or the CPU where there is none
    Auto,
    /// The best adapter, hardware first, a software one if need be
    Gpu,
    /// The CPU, on all cores, as the GPU computes: in float32
    Cpu,
    /// The float64 reference; files are written as float64
    Reference,
}

impl Device {
    /// The flag's value.
    pub fn word(self) -> &'static str {
        match self {
            Device::Auto => "auto",
            Device::Gpu => "gpu",
            Device::Cpu => "cpu",
            Device::Reference => "reference",
        }
    }
}

/// A device that was found.
pub struct Machine {
    /// What it is, and why it was taken.
    pub description: String,
    engine: Engine,
}

enum Engine {
    Gpu(Gpu),
    Cpu(Cpu),
    Reference,
}

/// What was timed, how long it took, and what that includes.
pub type Times = Vec<(&'static str, Duration, &'static str)>;

impl Machine {
    /// Finds the device: of adapters only those whose name or driver contains `adapter`, with which
    /// `auto` is `gpu`. `team` is forced on its kernels.
    pub fn open(device: Device, adapter: Option<&str>, team: Option<Team>) -> Result<Self> {
        let mut options = GpuOptions::default();
        if let Some(name) = adapter {
            options = options.name(name);
        }
        if let Some(team) = team {
            options = options.team(team);
        }
        let device = match (device, adapter) {
            (Device::Auto, Some(_)) => Device::Gpu,
            (Device::Cpu | Device::Reference, Some(name)) => {
                let word = device.word();
                bail!("--adapter {name}: expected none for --device {word}, got one");
            }
            (device, _) => device,
        };
        let open = |options: GpuOptions| pollster::block_on(Gpu::with_options(&options));
        let refused = |error: wgloss::Error| {
            let text = error.to_string();
            let text = text.strip_prefix("device: ").unwrap_or(&text);
            anyhow!("--device {}: {text}", device.word())
        };
        let on_gpu = |gpu: Gpu, why: &str| Machine {
            description: format!("{}{why}", devices::describe(gpu.info())),
            engine: Engine::Gpu(gpu),
        };
        let on_cpu = |why: String| {
            let cpu = Cpu::default();
            let description = format!("cpu ({} threads){why}", cpu.threads());
            Machine { description, engine: Engine::Cpu(cpu) }
        };
        Ok(match device {
            Device::Reference => {
                let description = "reference (float64)".into();
                Machine { description, engine: Engine::Reference }
            }
            Device::Cpu => on_cpu(String::new()),
            Device::Gpu => on_gpu(open(options).map_err(refused)?, ""),
            Device::Auto => match open(options.hardware_only(true)) {
                Ok(gpu) => on_gpu(gpu, "; auto takes the first hardware GPU"),
                Err(error) => {
                    let why = error.to_string();
                    let why = why.strip_prefix("device: ").unwrap_or(&why);
                    on_cpu(format!("; auto found no usable GPU: {why}"))
                }
            },
        })
    }

    /// Computes a pass.
    pub fn run(
        &self,
        op: &dyn Op,
        pass: Pass,
        args: &Args<Host>,
    ) -> wgloss::Result<Output<Tensor>> {
        match &self.engine {
            Engine::Gpu(gpu) => Ok(stored(gpu.block_on(gpu.run(op, pass, args))?)),
            Engine::Cpu(cpu) => Ok(stored(cpu.run(op, pass, args)?)),
            Engine::Reference => Ok(exact(reference::run(op, pass, args)?)),
        }
    }

    /// Computes a pass and tells how long it took.
    pub fn run_timed(
        &self,
        op: &dyn Op,
        pass: Pass,
        args: &Args<Host>,
    ) -> wgloss::Result<(Output<Tensor>, Times)> {
        match &self.engine {
            Engine::Gpu(gpu) => {
                let timed = || gpu.block_on(gpu.run_timed(op, pass, args));
                // the first call compiles
                timed()?;
                let (output, timing) = timed()?;
                let kernel = "the dispatches, after a first run that compiled them";
                let call = "upload, dispatches and readback, after that first run";
                let times = vec![("kernel", timing.kernel, kernel), ("call", timing.call, call)];
                Ok((stored(output), times))
            }
            Engine::Cpu(cpu) => {
                let mut output = cpu.run(op, pass, args)?;
                let start = Instant::now();
                cpu.run_into(op, pass, args, &mut output)?;
                let note = "into the memory of a first run's results";
                Ok((stored(output), vec![("call", start.elapsed(), note)]))
            }
            Engine::Reference => {
                let start = Instant::now();
                let output = reference::run(op, pass, args)?;
                Ok((exact(output), vec![("call", start.elapsed(), "one thread")]))
            }
        }
    }

    /// The type in which results of a type are written.
    pub fn written_as(&self, dtype: DType) -> Dtype {
        match (&self.engine, dtype) {
            (Engine::Reference, _) => Dtype::F64,
            (_, DType::F32) => Dtype::F32,
            (_, DType::F16) => Dtype::F16,
            (_, DType::Bf16) => Dtype::BF16,
            (_, DType::I32) => Dtype::I32,
            (_, DType::I64) => Dtype::I64,
        }
    }

    /// Whether results are float64.
    pub fn is_exact(&self) -> bool {
        matches!(self.engine, Engine::Reference)
    }

    /// Computes a pass over batches, of which the GPU has several in flight, and hands on what
    /// became of each, in their order. The first error of `batches` or `take` ends it.
    pub fn run_batches(
        &self,
        op: &dyn Op,
        pass: Pass,
        batches: impl Iterator<Item = Result<Args<Host>>>,
        mut take: impl FnMut(wgloss::Result<Output<Tensor>>) -> Result<()>,
    ) -> Result<()> {
        let Engine::Gpu(gpu) = &self.engine else {
            for args in batches {
                take(self.run(op, pass, &args?))?;
            }
            return Ok(());
        };
        let mut stream = gpu.stream(op, pass);
        for args in batches {
            if let Some(output) = gpu.block_on(stream.push(&args?)) {
                take(output.map(stored))?;
            }
        }
        while let Some(output) = gpu.block_on(stream.next()) {
            take(output.map(stored))?;
        }
        Ok(())
    }
}

fn exact(output: Output<Values>) -> Output<Tensor> {
    Output {
        loss: output.loss.map(Tensor::Exact),
        grad: output.grad.map(Tensor::Exact),
        logsumexp: output.logsumexp.map(Tensor::Exact),
        argmax: output.argmax.map(Tensor::Exact),
        correct: output.correct.map(Tensor::Exact),
        ..Output::default()
    }
}

fn stored(output: Output<Host>) -> Output<Tensor> {
    Output {
        loss: output.loss.map(Tensor::from),
        grad: output.grad.map(Tensor::from),
        state: output.state.map(Tensor::from),
        logsumexp: output.logsumexp.map(Tensor::from),
        argmax: output.argmax.map(Tensor::from),
        correct: output.correct.map(Tensor::from),
        ..Output::default()
    }
}
