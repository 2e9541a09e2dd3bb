//! What computes: a GPU, the CPU, or the reference.

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

/// How large arrays are together.
#[derive(Debug, Clone, Copy, Default)]
pub struct Size {
    pub bytes: u64,
    pub elements: u64,
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
        // what only GPUs have is asked of one
        let device = match (device, adapter) {
            (Device::Auto, Some(_)) => Device::Gpu,
            (Device::Auto, None) if team.is_some() => Device::Gpu,
            (Device::Cpu | Device::Reference, Some(name)) => {
                let word = device.word();
                bail!("--adapter {name}: expected none for --device {word}, got one");
            }
            (Device::Cpu | Device::Reference, None) if let Some(team) = team => {
                let (team, word) = (team.name(), device.word());
                bail!("--team {team}: expected none for --device {word}, got one");
            }
            (device, _) => device,
        };
        let open = |options: GpuOptions| pollster::block_on(Gpu::with_options(&options));
        let refused =
            |error: wgloss::Error| anyhow!("--device {}: {}", device.word(), error.reason());
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
                Err(error) => on_cpu(format!("; auto found no usable GPU: {}", error.reason())),
            },
        })
    }

    /// The bytes of memory that a call takes whose arguments, results and logits that are products have so
    /// many bytes and elements: about as many, and no fewer.
    pub fn memory(&self, [arguments, results, logits]: [Size; 3]) -> u64 {
        let once = arguments.bytes.saturating_add(results.bytes);
        match &self.engine {
            // staging buffers, and the device's own where that is the host's memory
            Engine::Gpu(gpu) => {
                let has_own = gpu.info().device_type == wgloss::wgpu::DeviceType::DiscreteGpu;
                match has_own {
                    true => once.saturating_mul(2),
                    false => once.saturating_mul(3).saturating_add(logits.bytes),
                }
            }
            Engine::Cpu(_) => once.saturating_add(logits.bytes),
            // each argument in float64; each result in float64 beside its magnitude, and collected
            Engine::Reference => {
                let float64 = arguments.elements.saturating_mul(8);
                let collected = results.elements.saturating_mul(40);
                // each logit, its gradient, and by how much either may be off
                let logits = logits.elements.saturating_mul(48);
                let all = [arguments.bytes, float64, collected, logits];
                all.into_iter().fold(0, u64::saturating_add)
            }
        }
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

    /// The GPU, if it is one.
    pub fn gpu(&self) -> Option<&Gpu> {
        match &self.engine {
            Engine::Gpu(gpu) => Some(gpu),
            Engine::Cpu(_) | Engine::Reference => None,
        }
    }

    /// What a call takes its time for.
    pub fn call(&self) -> &'static str {
        match &self.engine {
            Engine::Gpu(_) => "compilation, upload, dispatches and readback",
            Engine::Cpu(_) => "on all threads",
            Engine::Reference => "one thread",
        }
    }

    /// The type in which results of a type are written.
    pub fn written_as(&self, dtype: DType) -> Dtype {
        match (&self.engine, dtype) {
            (Engine::Reference, _) | (_, DType::F64) => Dtype::F64,
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
    output.into_iter().map(|(role, values)| (role, Tensor::Exact(values))).collect()
}

fn stored(output: Output<Host>) -> Output<Tensor> {
    output.into_iter().map(|(role, array)| (role, Tensor::from(array))).collect()
}
