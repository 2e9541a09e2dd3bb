//! Host arrays on a device: upload, dispatches and readback in one submission.

use crate::plan::BoundPlan;
use crate::readback::Readback;
use crate::shape::Layout;
use crate::tensor::USAGES;
use crate::upload::{Upload, device_layout};
use crate::{Args, Array, Gpu, Op, Output, Pass, Result, Role, Tensor};

/// Everything checkable of host arrays, before any work.
pub(crate) fn check(op: &dyn Op, pass: Pass, args: &Args<Array<'_>>) -> Result<()> {
    op.outputs(pass, &args.layouts())?;
    op.check_values(args)
}

/// A bound plan with tensors for its arguments and results: where calls on host arrays of one set of
/// layouts are carried out. Such calls follow one another on the device, so one set of tensors
/// serves however many are in flight.
#[derive(Debug)]
pub(crate) struct Session {
    gpu: Gpu,
    bound: BoundPlan,
    /// Those of the arguments that the plan works on.
    used: Vec<Role>,
    args: Args<Tensor>,
    output: Output<Tensor>,
    /// What is written over arguments.
    over_arguments: Vec<(Role, Tensor)>,
}

impl Session {
    /// A session for host arrays of these layouts.
    pub async fn new(gpu: &Gpu, op: &dyn Op, pass: Pass, args: &Args<Layout>) -> Result<Self> {
        let args = args.map(device_layout);
        let plan = gpu.kept_plan(op, pass, &args, None).await?;
        let allocate = || {
            let args = args.try_map(|role, layout| tensor(gpu, role, layout))?;
            // Host arguments are checked before any work, so there is no status.
            let mut output = Output::default();
            for (role, layout) in plan.allocated() {
                output = output.with(role, tensor(gpu, role, layout)?);
            }
            Ok((plan.bind_unguarded(&args, &output)?, args, output))
        };
        let (bound, args, output) = gpu.guarded_trimming(allocate).await?;
        let used = args.iter().map(|(role, _)| role).filter(|&role| plan.uses(role)).collect();
        let over_arguments = plan.over_arguments(&args);
        let over_arguments = over_arguments.map(|(role, tensor)| (role, tensor.clone())).collect();
        Ok(Session { gpu: gpu.clone(), bound, used, args, output, over_arguments })
    }

    /// Uploads and submits: the arrays are free when this returns, and the results on their way.
    pub async fn start(&self, args: &Args<Array<'_>>) -> Result<PendingCall> {
        let gpu = &self.gpu;
        let submit = || {
            let mut encoder = gpu.device().create_command_encoder(&Default::default());
            let mut upload = Upload::default();
            for (role, array) in args.iter().filter(|(role, _)| self.used.contains(role)) {
                if let Some(tensor) = self.args.get(role) {
                    upload.encode(gpu, &mut encoder, array, tensor)?;
                }
            }
            self.bound.encode(&mut encoder);
            let mut copies = Vec::new();
            let over_arguments = self.over_arguments.iter().map(|(role, tensor)| (*role, tensor));
            for (role, tensor) in self.output.iter().chain(over_arguments) {
                let staging = Readback::encode_tensor(gpu, &mut encoder, tensor);
                copies.push((role, staging, tensor.layout().clone()));
            }
            let submission = gpu.queue().submit([encoder.finish()]);
            upload.submitted(gpu);
            let map = |(role, staging, layout)| (role, Readback::map(staging, &submission), layout);
            Ok(copies.into_iter().map(map).collect())
        };
        let results = gpu.guarded_trimming(submit).await?;
        Ok(PendingCall { gpu: gpu.clone(), results })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let tensors = self.args.iter().chain(self.output.iter());
        tensors.for_each(|(_, tensor)| self.gpu.pool().give(tensor.buffer().clone()));
    }
}

/// A tensor with any content, in a buffer from the pool.
fn tensor(gpu: &Gpu, role: Role, layout: &Layout) -> Result<Tensor> {
    let size = layout.bytes().next_multiple_of(16).max(16);
    gpu.profile().limits.expect_allocatable(role.name(), size)?;
    Tensor::from_buffer(gpu.buffer(role.name(), size, USAGES), layout.clone())
}

/// A call on host arrays whose results are on their way.
#[derive(Debug)]
pub(crate) struct PendingCall {
    gpu: Gpu,
    results: Vec<(Role, Readback, Layout)>,
}

impl PendingCall {
    /// Waits for the results. To be called until it has returned once.
    pub async fn finish(&self) -> Result<Output<Array<'static>>> {
        for (_, readback, _) in &self.results {
            readback.arrived(&self.gpu).await?;
        }
        let array = |(role, readback, layout): &(Role, Readback, Layout)| {
            Ok((*role, readback.array(&self.gpu, layout)?))
        };
        self.results.iter().map(array).collect()
    }
}
