//! The doors: one call for host arrays, the same call for device tensors.

use std::time::{Duration, Instant};

use crate::args::Memory;
use crate::shape::Layout;
use crate::{
    Args, Array, Backward, Error, Forward, ForwardBackward, Gpu, Op, Output, Pass, Plan, Result,
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
        let (plan, args) = gpu.prepare(op, pass, args).await?;
        let output = plan.allocate().await?;
        gpu.submit(&plan, &args, &output).await?;
        gpu.read_output(&output.or_in_place(&args)).await
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
    /// The dispatches alone: by the device's timestamps where it has them, otherwise from
    /// submission to completion.
    pub kernel: Duration,
    /// The whole call from host arrays to host arrays.
    pub call: Duration,
}

impl Gpu {
    /// Computes the loss.
    ///
    /// # Errors
    /// What the op refuses ([`Op::outputs`], and from the host also the values that it documents);
    /// [`Error::TooLarge`], [`Error::OutOfMemory`], [`Error::DeviceLost`].
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
    pub async fn run_timed(
        &self,
        op: &dyn Op,
        pass: Pass,
        args: &Args<Array<'_>>,
    ) -> Result<(Output<Array<'static>>, Timing)> {
        let start = Instant::now();
        let (plan, args) = self.prepare(op, pass, args).await?;
        let output = plan.allocate().await?;
        let kernel = self.submit_timed(&plan, &args, &output).await?;
        let output = self.read_output(&output.or_in_place(&args)).await?;
        Ok((output, Timing { kernel, call: start.elapsed() }))
    }

    /// Uploads every argument.
    ///
    /// # Errors
    /// As [`Gpu::upload`].
    pub async fn upload_args(&self, args: &Args<Array<'_>>) -> Result<Args<Tensor>> {
        args.map_async(async |argument, array| self.upload_argument(argument, array).await).await
    }

    /// Checks and uploads.
    async fn prepare(
        &self,
        op: &dyn Op,
        pass: Pass,
        args: &Args<Array<'_>>,
    ) -> Result<(Plan, Args<Tensor>)> {
        op.outputs(pass, &args.layouts())?;
        op.check_values(args)?;
        // sizes before work: an upload that fails half way would be for nothing
        args.map(|argument, array| self.check_size(argument, array.layout().bytes()))?;
        let args = self.upload_args(args).await?;
        Ok((self.plan(op, pass, &args.layouts()).await?, args))
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

    /// Submits, waits, and tells how long the dispatches took.
    async fn submit_timed(
        &self,
        plan: &Plan,
        args: &Args<Tensor>,
        output: &Output<Tensor>,
    ) -> Result<Duration> {
        if !self.device().features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            self.read_bytes(4, |encoder, staging| encoder.clear_buffer(staging, 0, None)).await?;
            let start = Instant::now();
            self.submit(plan, args, output).await?;
            // a readback of four bytes ends when everything before it has
            self.read_bytes(4, |encoder, staging| encoder.clear_buffer(staging, 0, None)).await?;
            return Ok(start.elapsed());
        }
        let submit = || {
            let queries = self.device().create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("wgloss.timestamps"),
                ty: wgpu::QueryType::Timestamp,
                count: 2,
            });
            let resolved = self.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some("wgloss.timestamps"),
                size: 16,
                usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            });
            let mut encoder = self.device().create_command_encoder(&Default::default());
            let writes = wgpu::ComputePassTimestampWrites {
                query_set: &queries,
                beginning_of_pass_write_index: Some(0),
                end_of_pass_write_index: Some(1),
            };
            let bound = plan.bind(args, output)?;
            bound.encode_timed(&mut encoder, output.status.as_ref(), Some(writes));
            encoder.resolve_query_set(&queries, 0..2, &resolved, 0);
            self.queue().submit([encoder.finish()]);
            Ok(resolved)
        };
        let resolved = self.guarded(submit).await??;
        let copy = |encoder: &mut wgpu::CommandEncoder, staging: &wgpu::Buffer| {
            encoder.copy_buffer_to_buffer(&resolved, 0, staging, 0, 16);
        };
        let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&self.read_bytes(16, copy).await?);
        let nanoseconds = ticks[1].saturating_sub(ticks[0]) as f64
            * f64::from(self.queue().get_timestamp_period());
        Ok(Duration::from_nanos(nanoseconds as u64))
    }

    /// The parts that have a meaning on the host. Host arguments were checked before any work, so
    /// the status has nothing to tell.
    async fn read_output(&self, output: &Output<Tensor>) -> Result<Output<Array<'static>>> {
        let mut tensors = Vec::new();
        let places = Output { status: None, ..output.as_ref() }.map(|_, tensor| {
            tensors.push(tensor);
            Ok(tensors.len() - 1)
        })?;
        let arrays = self.read_all(&tensors).await?;
        places.map(|_, place| Ok(arrays[place].clone()))
    }
}

/// The results of one pass or another.
impl<T> Output<T> {
    pub(crate) fn into_forward(self) -> Result<Forward<T>> {
        let Output { loss, grad: _, state, logsumexp, argmax, correct, status } = self;
        Ok(Forward { loss: computed(loss)?, state, logsumexp, argmax, correct, status })
    }

    pub(crate) fn into_backward(self) -> Result<Backward<T>> {
        Ok(Backward { grad: computed(self.grad)?, status: self.status })
    }

    pub(crate) fn into_forward_backward(self) -> Result<ForwardBackward<T>> {
        let Output { loss, grad, state, logsumexp, argmax, correct, status } = self;
        let (loss, grad) = (computed(loss)?, computed(grad)?);
        Ok(ForwardBackward { loss, grad, state, logsumexp, argmax, correct, status })
    }
}

/// What a pass is bound to compute.
fn computed<T>(part: Option<T>) -> Result<T> {
    part.ok_or_else(|| Error::Internal("the op did not compute what its pass asks for".into()))
}
