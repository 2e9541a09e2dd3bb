//! wgloss: `wgloss gpu` by a plan bound to buffers, `wgloss cpu` by the CPU form.

use wgloss::{
    Args, Array, BceWithLogits, BoundPlan, Cpu, CrossEntropy, Gpu, LinearCrossEntropy, Output,
    Pass, Tensor, wgpu,
};
use wgloss_peers::{Data, Op, Peer, Result, Results, serve, threads, version};

const PASS: Pass = Pass::ForwardBackward;

fn op(data: &Data) -> Box<dyn wgloss::Op> {
    match data.op {
        Op::CrossEntropy => Box::new(CrossEntropy::default()),
        Op::BceWithLogits => Box::new(BceWithLogits::default()),
        Op::LinearCrossEntropy => Box::new(LinearCrossEntropy::default()),
    }
}

fn args(data: &Data) -> Result<Args<Array<'static>>> {
    let target = match data.op {
        Op::CrossEntropy | Op::LinearCrossEntropy => {
            let classes: Vec<i32> = data.target.iter().map(|&t| t as i32).collect();
            Array::from_vec(classes, &data.shape[..1])?
        }
        Op::BceWithLogits => Array::from_vec(data.target_as_f32(), &data.shape)?,
    };
    let args = Args::new(Array::from_vec(data.input.clone(), data.input_shape())?).target(target);
    if data.op != Op::LinearCrossEntropy {
        return Ok(args);
    }
    Ok(args.projection(Array::from_vec(data.projection.clone(), &data.projection_shape())?))
}

/// The gradients that there are.
fn grads<T>(output: &Output<T>) -> impl Iterator<Item = &T> {
    [output.grad(), output.grad_projection()].into_iter().flatten()
}

struct OnGpu {
    gpu: Gpu,
}

/// Each copy bound to the same results, as a training loop's would be.
struct Buffers {
    copies: Vec<BoundPlan>,
    output: Output<Tensor>,
    workspace_bytes: u64,
}

impl Peer for OnGpu {
    type Inputs = Buffers;
    type Output = ();

    fn describe(&self) -> [String; 3] {
        let wgpu::AdapterInfo { name, driver, driver_info, .. } = self.gpu.info();
        let device = format!("{name}, {driver} {driver_info}");
        ["wgloss GPU".into(), version("wgloss"), device]
    }

    fn upload(&mut self, data: &Data, copies: usize) -> Result<Buffers> {
        let gpu = &self.gpu;
        let host = args(data)?;
        let upload = || gpu.block_on(gpu.upload_args(&host));
        let tensors = (0..copies).map(|_| upload()).collect::<wgloss::Result<Vec<_>>>()?;
        let plan = gpu.block_on(gpu.plan(&*op(data), PASS, &tensors[0].layouts()))?;
        let output = gpu.block_on(plan.allocate())?;
        let bind = |tensors| plan.bind(tensors, &output);
        let copies = tensors.iter().map(bind).collect::<wgloss::Result<_>>()?;
        self.wait()?;
        Ok(Buffers { copies, output, workspace_bytes: plan.workspace_bytes() })
    }

    fn run(&mut self, inputs: &mut Buffers, copy: usize) -> Result<()> {
        let mut encoder = self.gpu.device().create_command_encoder(&Default::default());
        inputs.copies[copy].encode(&mut encoder);
        self.gpu.queue().submit([encoder.finish()]);
        Ok(())
    }

    fn wait(&mut self) -> Result<()> {
        self.gpu.device().poll(wgpu::PollType::wait_indefinitely())?;
        Ok(())
    }

    fn on_device(&self, inputs: &Buffers) -> Option<u64> {
        // a software device's memory is this process's
        let is_software = self.gpu.info().device_type == wgpu::DeviceType::Cpu;
        (!is_software).then_some(inputs.workspace_bytes)
    }

    fn read(&mut self, inputs: &mut Buffers, (): ()) -> Result<Results> {
        let read = |tensor| self.gpu.block_on(self.gpu.read(tensor));
        let output = &inputs.output;
        let grads = grads(output).map(|grad| Ok(read(grad)?.to_f32()));
        Ok((read(output.loss()?)?.item()?, grads.collect::<Result<_>>()?))
    }
}

struct OnCpu {
    cpu: Cpu,
}

struct Arrays {
    op: Box<dyn wgloss::Op>,
    copies: Vec<Args<Array<'static>>>,
    /// Used again by every call, as a training loop's would be.
    output: Output<Array<'static>>,
}

impl Peer for OnCpu {
    type Inputs = Arrays;
    type Output = ();

    fn describe(&self) -> [String; 3] {
        ["wgloss CPU".into(), version("wgloss"), threads()]
    }

    fn upload(&mut self, data: &Data, copies: usize) -> Result<Arrays> {
        let copies = (0..copies).map(|_| args(data)).collect::<Result<_>>()?;
        Ok(Arrays { op: op(data), copies, output: Output::default() })
    }

    fn run(&mut self, inputs: &mut Arrays, copy: usize) -> Result<()> {
        let Arrays { op, copies, output } = inputs;
        Ok(self.cpu.run_into(&**op, PASS, &copies[copy], output)?)
    }

    fn wait(&mut self) -> Result<()> {
        Ok(())
    }

    fn read(&mut self, inputs: &mut Arrays, (): ()) -> Result<Results> {
        let grads = grads(&inputs.output).map(Array::to_f32).collect();
        Ok((inputs.output.loss()?.item()?, grads))
    }
}

fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("gpu") => serve(OnGpu { gpu: Gpu::blocking()? }),
        Some("cpu") => serve(OnCpu { cpu: Cpu::default() }),
        other => Err(format!("{other:?}: expected gpu or cpu").into()),
    }
}
