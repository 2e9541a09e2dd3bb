//! Plans: everything about a pass that depends on shapes alone, settled once.

use crate::program::{CONTROL_BYTES, Copy, Program, Slot};
use crate::shape::{Layout, element_count};
use crate::{Args, Error, Gpu, Op, Output, Pass, Result, Tensor};

/// A pass of an op over one set of layouts, ready to be encoded any number of times: its pipelines
/// are compiled and its workspace is allocated.
///
/// ```no_run
/// use wgloss::{Args, Array, CrossEntropy, Gpu, Pass};
///
/// let gpu = Gpu::blocking()?;
/// # let (logits, target) = ([0.0_f32; 6], [0, 2]);
/// let args = gpu.block_on(gpu.upload_args(
///     &Args::new(Array::new(&logits, &[2, 3])?).target(Array::from(&target)),
/// ))?;
/// let op = CrossEntropy::default();
/// let plan = gpu.block_on(gpu.plan(&op, Pass::ForwardBackward, &args.layouts()))?;
/// let output = gpu.block_on(plan.allocate())?;
///
/// let mut encoder = gpu.device().create_command_encoder(&Default::default());
/// plan.encode(&mut encoder, &args, &output)?; // no submit, no wait
/// gpu.queue().submit([encoder.finish()]);
/// # Ok::<_, wgloss::Error>(())
/// ```
#[derive(Debug)]
pub struct Plan {
    gpu: Gpu,
    args: Args<Layout>,
    outputs: Output<Layout>,
    steps: Vec<Step>,
    copies: Vec<Copy>,
    scratch: Vec<wgpu::Buffer>,
    control: wgpu::Buffer,
}

#[derive(Debug)]
struct Step {
    label: String,
    pipeline: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
    params: wgpu::Buffer,
    bindings: Vec<(u32, Slot)>,
    workgroups: [u32; 3],
}

impl Gpu {
    /// Settles a pass of an op over arguments of these layouts.
    ///
    /// # Errors
    /// Those of [`Op::outputs`]; [`Error::TooLarge`]; [`Error::OutOfMemory`];
    /// [`Error::DeviceLost`].
    pub async fn plan(&self, op: &dyn Op, pass: Pass, args: &Args<Layout>) -> Result<Plan> {
        // layouts of no array may have any shape: first of all, one whose elements can be counted
        args.map(|argument, layout| element_count(argument, layout.shape()))?;
        let outputs = op.outputs(pass, args)?;
        args.map(|argument, layout| self.check_size(argument, layout.bytes()))?;
        outputs.as_ref().map(|part, layout| self.check_size(part, layout.bytes()))?;
        let Program { steps, copies, scratch } = op.program(pass, args, self.facts())?;
        for &bytes in &scratch {
            self.check_size("workspace", bytes)?;
        }
        let create = || Plan {
            gpu: self.clone(),
            args: args.clone(),
            outputs: outputs.clone(),
            steps: steps.iter().map(|step| self.compile(step)).collect(),
            copies: copies.clone(),
            scratch: scratch.iter().map(|&bytes| self.workspace(bytes)).collect(),
            control: self.workspace(CONTROL_BYTES),
        };
        let plan = self.guarded(create).await;
        if plan.is_err() {
            // a pipeline that failed must not be found again
            self.forget_pipelines();
        }
        plan
    }

    fn compile(&self, step: &crate::program::Step) -> Step {
        let pipeline = self.pipeline(&step.kernel);
        let params = self.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some("wgloss.params"),
            size: step.params.len() as u64,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        self.queue().write_buffer(&params, 0, &step.params);
        Step {
            label: step.kernel.label.clone(),
            layout: pipeline.get_bind_group_layout(0),
            pipeline,
            params,
            bindings: step.bindings.clone(),
            workgroups: step.workgroups,
        }
    }

    fn workspace(&self, bytes: u64) -> wgpu::Buffer {
        self.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some("wgloss.workspace"),
            size: bytes.max(16),
            usage: wgpu::BufferUsages::STORAGE
                | wgpu::BufferUsages::COPY_SRC
                | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    }
}

impl Plan {
    /// The layouts of what it computes.
    pub fn outputs(&self) -> &Output<Layout> {
        &self.outputs
    }

    /// The bytes of device memory that it holds beside arguments and outputs.
    pub fn workspace_bytes(&self) -> u64 {
        let params = self.steps.iter().map(|step| step.params.size());
        let buffers = self.scratch.iter().chain([&self.control]).map(wgpu::Buffer::size);
        params.chain(buffers).sum()
    }

    /// Tensors for what it computes.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub async fn allocate(&self) -> Result<Output<Tensor>> {
        let allocate = async |part, layout: &Option<Layout>| match layout {
            Some(layout) => self.gpu.allocate(part, layout).await.map(Some),
            None => Ok(None),
        };
        Ok(Output {
            loss: allocate("loss", &self.outputs.loss).await?,
            grad: allocate("grad", &self.outputs.grad).await?,
            state: allocate("state", &self.outputs.state).await?,
            logsumexp: allocate("logsumexp", &self.outputs.logsumexp).await?,
            argmax: allocate("argmax", &self.outputs.argmax).await?,
            correct: allocate("correct", &self.outputs.correct).await?,
            status: allocate("status", &self.outputs.status).await?,
        })
    }

    /// Encodes its dispatches over these buffers: the primitive on which all else is built.
    ///
    /// Nothing is submitted and nothing waited for. The workspace is the plan's own: encoded
    /// twice, the dispatches run in the order of submission and do not disturb one another.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::DType`], [`Error::Missing`] or [`Error::Unexpected`] when an
    /// argument or output is not as planned. What wgpu finds wrong with the buffers themselves
    /// comes through the device's error scopes.
    pub fn encode(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        args: &Args<Tensor>,
        output: &Output<Tensor>,
    ) -> Result<()> {
        self.encode_timed(encoder, args, output, None)
    }

    pub(crate) fn encode_timed(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        args: &Args<Tensor>,
        output: &Output<Tensor>,
        timestamp_writes: Option<wgpu::ComputePassTimestampWrites<'_>>,
    ) -> Result<()> {
        self.expect_as_planned(args, output)?;
        let buffer = |slot| self.buffer(slot, args, output);
        if let Some(control) = buffer(Slot::Control) {
            encoder.clear_buffer(control, 0, Some(CONTROL_BYTES));
        }
        let groups: Vec<_> = self.steps.iter().map(|step| self.bind(step, buffer)).collect();
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some("wgloss"),
            timestamp_writes,
        });
        for (step, group) in self.steps.iter().zip(&groups) {
            let [x, y, z] = step.workgroups;
            pass.set_pipeline(&step.pipeline);
            pass.set_bind_group(0, group, &[]);
            pass.dispatch_workgroups(x, y, z);
        }
        drop(pass);
        for copy in &self.copies {
            if let (Some(from), Some(to)) = (buffer(copy.from), buffer(copy.to)) {
                encoder.copy_buffer_to_buffer(from, copy.offset, to, 0, copy.bytes);
            }
        }
        Ok(())
    }

    /// The buffer in a slot. Programs name only what their arguments and outputs have, which
    /// `expect_as_planned` has seen.
    fn buffer<'a>(
        &'a self,
        slot: Slot,
        args: &'a Args<Tensor>,
        output: &'a Output<Tensor>,
    ) -> Option<&'a wgpu::Buffer> {
        let tensor = match slot {
            Slot::Input => Some(&args.input),
            Slot::Target => args.target.as_ref(),
            Slot::Weight => args.weight.as_ref(),
            Slot::PosWeight => args.pos_weight.as_ref(),
            Slot::Upstream => args.upstream.as_ref(),
            Slot::State => args.state.as_ref().or(output.state.as_ref()),
            Slot::Loss => output.loss.as_ref(),
            Slot::Grad => output.grad.as_ref(),
            Slot::LogSumExp => output.logsumexp.as_ref(),
            Slot::Argmax => output.argmax.as_ref(),
            Slot::Correct => output.correct.as_ref(),
            Slot::Control => match &output.status {
                Some(status) => Some(status),
                None => return Some(&self.control),
            },
            Slot::Scratch(index) => return self.scratch.get(index),
            Slot::One => return Some(self.gpu.one()),
            Slot::Unused => return Some(self.gpu.unused()),
        };
        tensor.map(Tensor::buffer)
    }

    fn bind<'a>(
        &'a self,
        step: &'a Step,
        buffer: impl Fn(Slot) -> Option<&'a wgpu::Buffer>,
    ) -> wgpu::BindGroup {
        // a buffer that is missing is a validation error, not a panic
        let mut entries =
            vec![wgpu::BindGroupEntry { binding: 0, resource: step.params.as_entire_binding() }];
        entries.extend(step.bindings.iter().filter_map(|&(binding, slot)| {
            Some(wgpu::BindGroupEntry { binding, resource: buffer(slot)?.as_entire_binding() })
        }));
        self.gpu.device().create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(&step.label),
            layout: &step.layout,
            entries: &entries,
        })
    }

    fn expect_as_planned(&self, args: &Args<Tensor>, output: &Output<Tensor>) -> Result<()> {
        let args = args.map(|_, tensor| Ok(tensor.layout().clone()))?;
        let output = output.as_ref().map(|_, tensor| Ok(tensor.layout().clone()))?;
        let compare = |argument, planned: Option<&Layout>, given: Option<&Layout>| {
            let op = || "this plan".to_string();
            match (planned, given) {
                (None, None) => Ok(()),
                (Some(_), None) => Err(Error::Missing { argument, op: op() }),
                (None, Some(_)) => Err(Error::Unexpected { argument, op: op() }),
                (Some(planned), Some(given)) if planned.dtype() != given.dtype() => {
                    Err(Error::DType {
                        argument,
                        expected: planned.dtype().to_string(),
                        actual: given.dtype(),
                    })
                }
                (Some(planned), Some(given)) if planned.shape() != given.shape() => {
                    Err(Error::Shape {
                        argument,
                        expected: format!("{:?}", planned.shape()),
                        actual: given.shape().to_vec(),
                    })
                }
                _ => Ok(()),
            }
        };
        self.args.zip(&args, compare)?;
        self.outputs.zip(&output, compare)
    }
}
