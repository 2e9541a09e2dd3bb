//! Calls: one for host arrays, the same one for device tensors.

use crate::session::{Session, check};
use crate::{Args, Array, Gpu, Layout, Op, Output, Pass, Result, Role, Tensor};

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Array<'_> {}
    impl Sealed for super::Tensor {}

    /// `Send`, where wgpu's types are: not in browsers, which have one thread.
    #[cfg(not(target_arch = "wasm32"))]
    pub trait MaybeSend: Send {}
    #[cfg(not(target_arch = "wasm32"))]
    impl<T: Send> MaybeSend for T {}
    #[cfg(target_arch = "wasm32")]
    pub trait MaybeSend {}
    #[cfg(target_arch = "wasm32")]
    impl<T> MaybeSend for T {}
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
    ) -> impl Future<Output = Result<Output<Self::Output>>> + sealed::MaybeSend;
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
        let plan = gpu.kept_plan(op, pass, &args.layouts(), None).await?;
        let output = plan.allocate().await?;
        gpu.guarded(|| plan.submit(args, &output)).await?;
        // nobody waits for the results, so that a lost device would not show
        if let Some(lost) = gpu.lost(true) {
            return Err(lost);
        }
        let over_arguments = plan.over_arguments(args);
        Ok(over_arguments.fold(output, |all, (role, tensor)| all.with(role, tensor.clone())))
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
        let session = Session::new(gpu, op, pass, &args.layouts()).await?;
        session.start(args).await?.finish().await
    }
}

impl Gpu {
    /// Computes the loss, or the output of a map.
    ///
    /// # Errors
    /// What the op refuses ([`Op::outputs`], and from the host also the values that it documents);
    /// [`TooLarge`](crate::Error::TooLarge), [`OutOfMemory`](crate::Error::OutOfMemory),
    /// [`DeviceLost`](crate::Error::DeviceLost); [`Uncaptured`](crate::Error::Uncaptured) for an
    /// error that the caller's own use of the device has left.
    pub async fn forward<T: Operand>(
        &self,
        op: &dyn Op,
        args: &Args<T>,
    ) -> Result<Output<T::Output>> {
        self.run(op, Pass::Forward, args).await
    }

    /// Computes the gradient with respect to the input, times the upstream gradient.
    ///
    /// # Errors
    /// As [`Gpu::forward`].
    pub async fn backward<T: Operand>(
        &self,
        op: &dyn Op,
        args: &Args<T>,
    ) -> Result<Output<T::Output>> {
        self.run(op, Pass::Backward, args).await
    }

    /// Computes the loss and the gradient with respect to the input, times the upstream gradient.
    ///
    /// # Errors
    /// As [`Gpu::forward`].
    pub async fn forward_backward<T: Operand>(
        &self,
        op: &dyn Op,
        args: &Args<T>,
    ) -> Result<Output<T::Output>> {
        self.run(op, Pass::ForwardBackward, args).await
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

    /// Submits a pass over device tensors into given results, at once and without a wait: for
    /// frameworks that call synchronously and allocate by themselves. Plans are kept, so that a
    /// call in a training loop finds its plan, binds it, encodes and submits.
    ///
    /// `output` has a tensor for each result that the pass computes ([`Op::outputs`]). Where its
    /// gradient is the input, the pass works in place. Its status, if any, keeps the first fault
    /// that the device finds.
    ///
    /// ```no_run
    /// # use wgloss::{Args, CrossEntropy, Gpu, Output, Pass, Role, Tensor};
    /// # fn f(gpu: &Gpu, logits: Tensor, target: Tensor, loss: Tensor) -> wgloss::Result<()> {
    /// let output = Output::default().with(Role::Loss, loss).with(Role::Grad, logits.clone());
    /// let args = Args::new(logits).target(target);
    /// gpu.run_into(&CrossEntropy::default(), Pass::ForwardBackward, &args, &output)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Gpu::forward`], and those of [`Plan::bind`](crate::Plan::bind).
    #[cfg(not(target_arch = "wasm32"))]
    pub fn run_into(
        &self,
        op: &dyn Op,
        pass: Pass,
        args: &Args<Tensor>,
        output: &Output<Tensor>,
    ) -> Result<()> {
        let is_input = output.get(Role::Grad).is_some_and(|grad| grad == args.input());
        let in_place;
        let args = match is_input && !args.in_place {
            true => {
                in_place = args.clone().in_place();
                &in_place
            }
            false => args,
        };
        let results = output.try_map(|_, tensor| Ok(tensor.layout().clone()))?;
        // ready at once: only browsers have to wait for what error scopes say
        let layouts = args.layouts();
        let plan = self.kept_plan(op, pass, &layouts, Some(&results));
        let plan = pollster::block_on(plan)?;
        pollster::block_on(self.guarded(|| plan.submit(args, output)))
    }
}
