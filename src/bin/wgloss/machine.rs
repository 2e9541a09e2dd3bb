//! What computes: a GPU, or the reference in its place.

use std::time::{Duration, Instant};

use anyhow::Result;
use clap::ValueEnum;
use safetensors::Dtype;
use wgloss::reference::{self, Values};
use wgloss::{Args, DType, Gpu, GpuOptions, Op, Output, Pass};

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
    /// The CPU, rounded to float32
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
    Reference,
    /// The reference, rounded.
    Cpu,
}

/// What was timed, how long it took, and what that includes.
pub type Times = Vec<(&'static str, Duration, &'static str)>;

impl Machine {
    /// Finds the device.
    pub fn open(device: Device) -> wgloss::Result<Self> {
        const CPU: &str = "cpu (float64 reference, until the CPU twin exists)";
        let open = |options: GpuOptions| pollster::block_on(Gpu::with_options(&options));
        let on_gpu = |gpu: Gpu, why: &str| Machine {
            description: format!("{}{why}", devices::describe(gpu.info())),
            engine: Engine::Gpu(gpu),
        };
        let without = |description: String, engine| Machine { description, engine };
        Ok(match device {
            Device::Reference => without("reference (float64)".into(), Engine::Reference),
            Device::Cpu => without(CPU.into(), Engine::Cpu),
            Device::Gpu => on_gpu(open(GpuOptions::default())?, ""),
            Device::Auto => match open(GpuOptions::default().hardware_only(true)) {
                Ok(gpu) => on_gpu(gpu, "; auto takes the first hardware GPU"),
                Err(error) => {
                    let why = error.to_string();
                    let why = why.strip_prefix("device: ").unwrap_or(&why);
                    let description = format!("{CPU}; auto found no usable GPU: {why}");
                    without(description, Engine::Cpu)
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
            Engine::Reference | Engine::Cpu => self.exact(reference::run(op, pass, args)?),
        }
    }

    /// Computes a pass and tells how long it took.
    pub fn run_timed(
        &self,
        op: &dyn Op,
        pass: Pass,
        args: &Args<Host>,
    ) -> wgloss::Result<(Output<Tensor>, Times)> {
        let Engine::Gpu(gpu) = &self.engine else {
            let start = Instant::now();
            let output = reference::run(op, pass, args)?;
            let times = vec![("call", start.elapsed(), "one thread")];
            return Ok((self.exact(output)?, times));
        };
        let timed = || gpu.block_on(gpu.run_timed(op, pass, args));
        // the first call compiles
        timed()?;
        let (output, timing) = timed()?;
        let times = vec![
            ("kernel", timing.kernel, "the dispatches, after a first run that compiled them"),
            ("call", timing.call, "upload, dispatches and readback, after that first run"),
        ];
        Ok((stored(output), times))
    }

    /// The type in which results of a type are written.
    pub fn written_as(&self, dtype: DType) -> Dtype {
        match (&self.engine, dtype) {
            (Engine::Reference, _) => Dtype::F64,
            (Engine::Cpu, _) | (_, DType::F32) => Dtype::F32,
            (Engine::Gpu(_), DType::F16) => Dtype::F16,
            (Engine::Gpu(_), DType::Bf16) => Dtype::BF16,
            (Engine::Gpu(_), DType::I32) => Dtype::I32,
            (Engine::Gpu(_), DType::I64) => Dtype::I64,
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

    /// The reference's results, rounded where the device is the CPU.
    fn exact(&self, output: Output<Values>) -> wgloss::Result<Output<Tensor>> {
        let is_rounded = matches!(self.engine, Engine::Cpu);
        let part = |values: Option<Values>| match values {
            Some(values) if is_rounded => values.to_array().map(|array| Some(array.into())),
            values => Ok(values.map(Tensor::Exact)),
        };
        Ok(Output {
            loss: part(output.loss)?,
            grad: part(output.grad)?,
            logsumexp: part(output.logsumexp)?,
            argmax: part(output.argmax)?,
            correct: part(output.correct)?,
            ..Output::default()
        })
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
