//! The doors: one call for host arrays, the same call for device tensors.

use std::time::Duration;
#[cfg(not(target_arch = "wasm32"))]
use std::time::Instant;

use crate::args::Memory;
use crate::readback::Readback;
use crate::shape::Layout;
use crate::tensor::USAGES;
use crate::upload::{Upload, device_layout};
use crate::{
    Args, Array, Backward, Bound, Forward, ForwardBackward, Gpu, Op, Output, Pass, Plan, Result,
    Tensor,
};

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Array<'_> {}
    impl Sealed for super::Tensor {}
}

/// Where arguments live: [`Array`]s on the host, [`Tensor`]s on the device. Results come back to
/// the same place.
pub trait Operand: sealed::Sealed + Sized {
    /// What results are: `Array<'static>` or `Tensor`.
    type Output;

    /// Shape and storage type.
    fn layout(&self) -> &Layout;

    #[doc(hidden)]
    fn run(
        gpu: &Gpu,
        op: &dyn Op,
        pass: Pass,
        args: &Args<Self>,
    ) -> impl Future<Output = Result<Output<Self::Output>>>;
}

impl Operand for Tensor {
    type Output = Tensor;

    fn layout(&self) -> &Layout {
        self.layout()
    }

    async fn run(
        gpu: &Gpu,
        op: &dyn Op,
        pass: Pass,
        args: &Args<Tensor>,
    ) -> Result<Output<Tensor>> {
        let plan = gpu.plan(op, pass, &args.layouts()).await?;
        let output = plan.allocate().await?;
        gpu.submit(&plan, args, &output).await?;
        Ok(output.or_in_place(args))
    }
}

impl Operand for Array<'_> {
    type Output = Array<'static>;

    fn layout(&self) -> &Layout {
        self.layout()
    }

    async fn run(
        gpu: &Gpu,
        op: &dyn Op,
        pass: Pass,
        args: &Args<Self>,
    ) -> Result<Output<Array<'static>>> {
        check(op, pass, args)?;
        let station = Station::new(gpu, op, pass, &args.layouts()).await?;
        station.start(args).await?.finish().await
    }
}

impl Output<Tensor> {
    /// With the gradient that was written over the input, if that was asked for.
    fn or_in_place(self, args: &Args<Tensor>) -> Self {
        let is_in_place = args.memory == Memory::InPlace;
        let grad = self.grad.or_else(|| is_in_place.then(|| args.input.clone()));
        Output { grad, ..self }
    }
}

impl<T: Operand> Args<T> {
    /// The layouts of the arguments: what a plan is made for.
    pub fn layouts(&self) -> Args<Layout> {
        self.map_ref(|value| value.layout().clone())
    }
}

/// How long a call took (see [`Gpu::run_timed`]).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timing {
    /// The dispatches alone: by the device's timestamps where it has them, otherwise a second run of
    /// them, from submission to completion.
    pub kernel: Duration,
    /// The whole call from host arrays to host arrays, with that second run where there is one.
    pub call: Duration,
}

impl Gpu {
    /// Computes the loss.
    ///
    /// # Errors
    /// What the op refuses ([`Op::outputs`], and from the host also the values that it documents);
    /// [`TooLarge`](crate::Error::TooLarge), [`OutOfMemory`](crate::Error::OutOfMemory),
    /// [`DeviceLost`](crate::Error::DeviceLost).
    pub async fn forward<T: Operand>(
        &self,
        op: &dyn Op,
        args: &Args<T>,
    ) -> Result<Forward<T::Output>> {
        self.run(op, Pass::Forward, args).await?.into_forward()
    }

    /// Computes the gradient with respect to the input, times the upstream gradient.
    ///
    /// # Errors
    /// As [`Gpu::forward`].
    pub async fn backward<T: Operand>(
        &self,
        op: &dyn Op,
        args: &Args<T>,
    ) -> Result<Backward<T::Output>> {
        self.run(op, Pass::Backward, args).await?.into_backward()
    }

    /// Computes the loss and the gradient with respect to the input, times the upstream gradient.
    ///
    /// # Errors
    /// As [`Gpu::forward`].
    pub async fn forward_backward<T: Operand>(
        &self,
        op: &dyn Op,
        args: &Args<T>,
    ) -> Result<ForwardBackward<T::Output>> {
        self.run(op, Pass::ForwardBackward, args).await?.into_forward_backward()
    }

    /// Computes whichever pass.
    ///
    /// # Errors
    /// As [`Gpu::forward`].
    pub async fn run<T: Operand>(
        &self,
        op: &dyn Op,
        pass: Pass,
        args: &Args<T>,
    ) -> Result<Output<T::Output>> {
        T::run(self, op, pass, args).await
    }

    /// [`Gpu::run`] from host arrays, timed. The first call for a shape compiles kernels and is
    /// slower than later ones.
    ///
    /// # Errors
    /// As [`Gpu::forward`].
    #[cfg(not(target_arch = "wasm32"))] // where std has no clock
    pub async fn run_timed(
        &self,
        op: &dyn Op,
        pass: Pass,
        args: &Args<Array<'_>>,
    ) -> Result<(Output<Array<'static>>, Timing)> {
        let start = Instant::now();
        check(op, pass, args)?;
        let station = Station::new(self, op, pass, &args.layouts()).await?;
        station.run_timed(args, start).await
    }

    async fn submit(
        &self,
        plan: &Plan,
        args: &Args<Tensor>,
        output: &Output<Tensor>,
    ) -> Result<()> {
        let submit = || {
            let mut encoder = self.device().create_command_encoder(&Default::default());
            plan.encode(&mut encoder, args, output)?;
            self.queue().submit([encoder.finish()]);
            Ok(())
        };
        self.guarded(submit).await?
    }
}

/// Everything checkable of host arrays, before any work.
pub(crate) fn check(op: &dyn Op, pass: Pass, args: &Args<Array<'_>>) -> Result<()> {
    op.outputs(pass, &args.layouts())?;
    op.check_values(args)
}

/// A plan with tensors for its arguments and results: where calls on host arrays of one set of
/// layouts are carried out. Such calls follow one another on the device, so one set of tensors
/// serves however many are in flight.
#[derive(Debug)]
pub(crate) struct Station {
    gpu: Gpu,
    bound: Bound,
    args: Args<Tensor>,
    output: Output<Tensor>,
}

impl Station {
    /// A station for host arrays of these layouts.
    pub async fn new(gpu: &Gpu, op: &dyn Op, pass: Pass, args: &Args<Layout>) -> Result<Self> {
        let args = args.map_ref(device_layout);
        let plan = gpu.plan(op, pass, &args).await?;
        let allocate = || {
            let args = args.map(|part, layout| tensor(gpu, part, layout))?;
            // host arguments are checked before any work: the status would have nothing to tell
            let outputs = Output { status: None, ..plan.own_outputs() };
            let output = outputs.map(|part, layout| tensor(gpu, part, layout))?;
            Ok((plan.bind(&args, &output)?, args, output))
        };
        let (bound, args, output) = gpu.guarded_trimming(allocate).await??;
        Ok(Station { gpu: gpu.clone(), bound, args, output })
    }

    /// Uploads and submits: the arrays are free when this returns, and the results on their way.
    pub async fn start(&self, args: &Args<Array<'_>>) -> Result<Call> {
        self.start_timed(args, None).await
    }

    async fn start_timed(
        &self,
        args: &Args<Array<'_>>,
        timestamps: Option<&Timestamps>,
    ) -> Result<Call> {
        let gpu = &self.gpu;
        let submit = || {
            let mut encoder = gpu.device().create_command_encoder(&Default::default());
            let mut upload = Upload::default();
            args.zip(&self.args, |_, array, tensor| match (array, tensor) {
                (Some(array), Some(tensor)) => upload.encode(gpu, &mut encoder, array, tensor),
                _ => Ok(()),
            })?;
            let writes = timestamps.map(Timestamps::writes);
            self.bound.encode_timed(&mut encoder, None, writes)?;
            if let Some(Timestamps { queries, resolved }) = timestamps {
                encoder.resolve_query_set(queries, 0..2, resolved, 0);
            }
            let results = self.output.clone().or_in_place(&self.args);
            let copies = results.map(|_, tensor| {
                let staging = Readback::encode_tensor(gpu, &mut encoder, &tensor);
                Ok((staging, tensor.layout().clone()))
            })?;
            let submission = gpu.queue().submit([encoder.finish()]);
            upload.submitted(gpu);
            copies.map(|_, (staging, layout)| Ok((Readback::map(staging, &submission), layout)))
        };
        let results = gpu.guarded_trimming(submit).await??;
        Ok(Call { gpu: gpu.clone(), results })
    }

    /// A call, timed from `start`.
    #[cfg(not(target_arch = "wasm32"))]
    async fn run_timed(
        &self,
        args: &Args<Array<'_>>,
        start: Instant,
    ) -> Result<(Output<Array<'static>>, Timing)> {
        let gpu = &self.gpu;
        if gpu.device().features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            let timestamps = gpu.guarded(|| Timestamps::new(gpu)).await?;
            let output = self.start_timed(args, Some(&timestamps)).await?.finish().await?;
            let call = start.elapsed();
            return Ok((output, Timing { kernel: timestamps.elapsed(gpu).await?, call }));
        }
        let output = self.start(args).await?.finish().await?;
        gpu.idle().await;
        let again = Instant::now();
        let submit = || {
            let mut encoder = gpu.device().create_command_encoder(&Default::default());
            self.bound.encode(&mut encoder, None)?;
            gpu.queue().submit([encoder.finish()]);
            Ok(())
        };
        gpu.guarded(submit).await??;
        gpu.idle().await;
        Ok((output, Timing { kernel: again.elapsed(), call: start.elapsed() }))
    }
}

/// The times at which dispatches begin and end.
struct Timestamps {
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
}

#[cfg_attr(target_arch = "wasm32", expect(dead_code))]
impl Timestamps {
    fn new(gpu: &Gpu) -> Self {
        let label = Some("wgloss.timestamps");
        let ty = wgpu::QueryType::Timestamp;
        let queries =
            gpu.device().create_query_set(&wgpu::QuerySetDescriptor { label, ty, count: 2 });
        let resolved = gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label,
            size: 16,
            usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        Timestamps { queries, resolved }
    }

    fn writes(&self) -> wgpu::ComputePassTimestampWrites<'_> {
        wgpu::ComputePassTimestampWrites {
            query_set: &self.queries,
            beginning_of_pass_write_index: Some(0),
            end_of_pass_write_index: Some(1),
        }
    }

    /// Once they are submitted and resolved.
    async fn elapsed(&self, gpu: &Gpu) -> Result<Duration> {
        let submit = || {
            let mut encoder = gpu.device().create_command_encoder(&Default::default());
            let staging = Readback::encode(gpu, &mut encoder, &self.resolved, 0..16);
            let submission = gpu.queue().submit([encoder.finish()]);
            Readback::map(staging, &submission)
        };
        let ticks = gpu.guarded(submit).await?;
        ticks.arrived(gpu).await?;
        let ticks: Vec<u64> = ticks.take(gpu, bytemuck::pod_collect_to_vec)?;
        let nanoseconds = ticks[1].saturating_sub(ticks[0]) as f64
            * f64::from(gpu.queue().get_timestamp_period());
        Ok(Duration::from_nanos(nanoseconds as u64))
    }
}

impl Drop for Station {
    fn drop(&mut self) {
        let give = |tensor: &Tensor| self.gpu.pool().give(tensor.buffer().clone());
        self.args.map_ref(give);
        self.output.parts().for_each(give);
    }
}

/// A tensor with any content, in a buffer from the pool.
fn tensor(gpu: &Gpu, argument: &'static str, layout: &Layout) -> Result<Tensor> {
    let size = layout.bytes().next_multiple_of(16).max(16);
    gpu.check_size(argument, size)?;
    Tensor::from_buffer(gpu.buffer(argument, size, USAGES), layout.clone())
}

/// A call on host arrays whose results are on their way.
#[derive(Debug)]
pub(crate) struct Call {
    gpu: Gpu,
    results: Output<(Readback, Layout)>,
}

impl Call {
    /// Waits for the results. To be called until it has returned once.
    pub async fn finish(&self) -> Result<Output<Array<'static>>> {
        for (readback, _) in self.results.parts() {
            readback.arrived(&self.gpu).await?;
        }
        self.results.as_ref().map(|_, (readback, layout)| readback.array(&self.gpu, layout))
    }
}
