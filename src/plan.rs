//! Plans: everything about a pass that depends on shapes alone, settled once.

use crate::args::Memory;
use crate::program::{Binding, CONTROL_BYTES, Copy, Program, Slot};
use crate::shape::{ALIGNMENT, Layout};
use crate::upload::device_layout;
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
    bindings: Vec<Binding>,
    workgroups: [u32; 3],
}

/// A [`Plan`] over fixed buffers: encoding it creates nothing and allocates nothing.
#[derive(Debug, Clone)]
pub struct Bound {
    dispatches: Vec<Dispatch>,
    copies: Vec<BufferCopy>,
    control: wgpu::Buffer,
    /// Its layout, where the op has one.
    status: Option<Layout>,
}

#[derive(Debug, Clone)]
struct Dispatch {
    pipeline: wgpu::ComputePipeline,
    group: wgpu::BindGroup,
    workgroups: [u32; 3],
}

#[derive(Debug, Clone)]
struct BufferCopy {
    from: (wgpu::Buffer, u64),
    to: (wgpu::Buffer, u64),
    bytes: u64,
}

impl Gpu {
    /// Settles a pass of an op over arguments of these layouts, with contiguous results. Those of host
    /// arrays serve too: i64 class indices are planned for as the i32 that [`Gpu::upload`] makes of
    /// them.
    ///
    /// # Errors
    /// Those of [`Op::outputs`]; [`Error::TooLarge`]; [`Error::OutOfMemory`];
    /// [`Error::DeviceLost`].
    pub async fn plan(&self, op: &dyn Op, pass: Pass, args: &Args<Layout>) -> Result<Plan> {
        let outputs = expect_layouts(op, pass, args)?;
        self.plan_checked(op, pass, args, outputs).await
    }

    /// [`Gpu::plan`] with results where the caller wants them: a gradient whose rows are as far
    /// apart as the logits', say. `outputs` are those of [`Op::outputs`], moved.
    ///
    /// # Errors
    /// As [`Gpu::plan`]; [`Error::Shape`], [`Error::DType`], [`Error::Missing`] or
    /// [`Error::Unexpected`] for other results than the pass has.
    pub async fn plan_into(
        &self,
        op: &dyn Op,
        pass: Pass,
        args: &Args<Layout>,
        outputs: &Output<Layout>,
    ) -> Result<Plan> {
        let expected = expect_layouts(op, pass, args)?;
        expected.zip(outputs, |part, expected, given| {
            // in place there is no choice
            let is_input = part == "grad" && args.memory == Memory::InPlace;
            let compare = if is_input { Compare::Memory } else { Compare::Shape };
            expect_same(part, expected, given, compare)
        })?;
        outputs.as_ref().map(|part, layout| expect_strides(part, layout, args))?;
        self.plan_checked(op, pass, args, outputs.clone()).await
    }

    async fn plan_checked(
        &self,
        op: &dyn Op,
        pass: Pass,
        args: &Args<Layout>,
        outputs: Output<Layout>,
    ) -> Result<Plan> {
        let args = &args.map_ref(device_layout);
        args.map(|argument, layout| self.check_size(argument, layout.buffer_bytes()))?;
        outputs.as_ref().map(|part, layout| self.check_size(part, layout.buffer_bytes()))?;
        let Program { steps, copies, scratch } = op.program(pass, args, &outputs, self.facts())?;
        for layout in &scratch {
            self.check_size("workspace", layout.bytes())?;
        }
        let create = || Plan {
            gpu: self.clone(),
            args: args.clone(),
            outputs: outputs.clone(),
            steps: steps.iter().map(|step| self.compile(step)).collect(),
            copies: copies.clone(),
            scratch: scratch.iter().map(|layout| self.workspace(layout.bytes())).collect(),
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

    /// The bytes of device memory that it holds beside arguments and outputs: a few for each row
    /// or for each thousand elements.
    pub fn workspace_bytes(&self) -> u64 {
        let params = self.steps.iter().map(|step| step.params.size());
        let buffers = self.scratch.iter().chain([&self.control]).map(wgpu::Buffer::size);
        params.chain(buffers).sum()
    }

    /// The labels of the kernels that it dispatches, in order: `cross_entropy.forward.f32.subgroup`.
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        self.steps.iter().map(|step| &step.label[..])
    }

    /// Whether the gradient is written over the input: it is no output of its own then.
    fn is_in_place(&self) -> bool {
        self.args.memory == Memory::InPlace
    }

    /// The layouts of what is in memory of its own: in place, all but the gradient.
    pub(crate) fn own_outputs(&self) -> Output<&Layout> {
        let grad = self.outputs.grad.as_ref().filter(|_| !self.is_in_place());
        Output { grad, ..self.outputs.as_ref() }
    }

    /// Tensors for what it computes; in place, for what else it computes.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub async fn allocate(&self) -> Result<Output<Tensor>> {
        let own = self.own_outputs();
        let allocate = async |part, layout: Option<&Layout>| match layout {
            Some(layout) => self.gpu.allocate(part, layout).await.map(Some),
            None => Ok(None),
        };
        Ok(Output {
            loss: allocate("loss", own.loss).await?,
            grad: allocate("grad", own.grad).await?,
            state: allocate("state", own.state).await?,
            logsumexp: allocate("logsumexp", own.logsumexp).await?,
            argmax: allocate("argmax", own.argmax).await?,
            correct: allocate("correct", own.correct).await?,
            status: allocate("status", own.status).await?,
        })
    }

    /// Encodes its dispatches over these buffers; the status goes to that of the output, if any.
    ///
    /// Nothing is submitted and nothing waited for. The workspace is the plan's own: encoded
    /// twice, the dispatches run in the order of submission and do not disturb one another.
    ///
    /// # Errors
    /// Those of [`Plan::bind`].
    pub fn encode(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        args: &Args<Tensor>,
        output: &Output<Tensor>,
    ) -> Result<()> {
        self.bind(args, output)?.encode(encoder, output.status.as_ref())
    }

    /// Fixes the buffers that it works on. In place, the gradient is the input, and no part of the
    /// output. Nor need the status be one, which is named at every encoding.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::DType`], [`Error::Missing`] or [`Error::Unexpected`] when an
    /// argument or output is not as planned; [`Error::Value`] when one lies otherwise in its buffer
    /// (an offset may differ by multiples of 256 bytes), when they overlap, or share a buffer though
    /// [`Args::one_buffer`] was not said, or when a buffer that results are copied to lacks
    /// `COPY_DST`. What wgpu finds wrong with the buffers themselves comes
    /// through the device's error scopes.
    pub fn bind(&self, args: &Args<Tensor>, output: &Output<Tensor>) -> Result<Bound> {
        self.args.zip(args, |argument, planned, given| {
            expect_same(argument, planned, given.map(Tensor::layout), Compare::Memory)
        })?;
        if args.memory != self.args.memory {
            return Err(Error::Value {
                argument: "args",
                expected: format!("{:?}, as planned", self.args.memory),
                actual: format!("{:?}", args.memory),
            });
        }
        let in_place = if self.is_in_place() { Some(&args.input) } else { None };
        let output = match in_place {
            Some(_) if output.grad.is_some() => {
                let op = "a plan in place".to_string();
                return Err(Error::Unexpected { argument: "grad", op });
            }
            Some(input) => Output { grad: Some(input), ..output.as_ref() },
            None => output.as_ref(),
        };
        let planned = self.outputs.as_ref();
        // the status may also be named later, or not at all
        let status = planned.status.filter(|_| output.status.is_some());
        Output { status, ..planned }.zip(&output, |part, planned, given| {
            if part == "status" {
                return given.map_or(Ok(()), |status| expect_status(planned.copied(), status));
            }
            expect_same(
                part,
                planned.copied(),
                given.map(|tensor| tensor.layout()),
                Compare::Memory,
            )
        })?;
        self.expect_apart(args, &output)?;

        let buffer = |slot| self.buffer(slot, args, &output);
        let dispatches = self.steps.iter().map(|step| Dispatch {
            pipeline: step.pipeline.clone(),
            group: self.bind_step(step, buffer),
            workgroups: step.workgroups,
        });
        let mut copies = Vec::with_capacity(self.copies.len());
        for copy in &self.copies {
            let to = match copy.to {
                Slot::Loss => output.loss,
                Slot::LogSumExp => output.logsumexp,
                Slot::Argmax => output.argmax,
                Slot::Correct => output.correct,
                _ => None,
            };
            let (Some(to), Some((from, start))) = (to, buffer(copy.from)) else { continue };
            expect_copy_dst(copy.to.name(), to)?;
            copies.push(BufferCopy {
                from: (from.clone(), start + copy.offset),
                // the first element, not its aligned place
                to: (to.buffer().clone(), to.byte_range().start + copy.to_offset),
                bytes: copy.bytes,
            });
        }
        Ok(Bound {
            dispatches: dispatches.collect(),
            copies,
            control: self.control.clone(),
            status: self.outputs.status.clone(),
        })
    }

    /// The buffer in a slot, and where in it the slot's aligned start is. Programs name only what
    /// their arguments and outputs have, which `bind` has seen.
    fn buffer<'a>(
        &'a self,
        slot: Slot,
        args: &'a Args<Tensor>,
        output: &Output<&'a Tensor>,
    ) -> Option<(&'a wgpu::Buffer, u64)> {
        let tensor = match slot {
            Slot::Input => Some(&args.input),
            Slot::Target => args.target.as_ref(),
            Slot::Weight => args.weight.as_ref(),
            Slot::PosWeight => args.pos_weight.as_ref(),
            Slot::Upstream => args.upstream.as_ref(),
            Slot::State => args.state.as_ref().or(output.state),
            Slot::Loss => output.loss,
            Slot::Grad => output.grad,
            Slot::LogSumExp => output.logsumexp,
            Slot::Argmax => output.argmax,
            Slot::Correct => output.correct,
            Slot::Control => return Some((&self.control, 0)),
            Slot::Scratch(index) => return self.scratch.get(index).map(|buffer| (buffer, 0)),
            Slot::One => return Some((self.gpu.one(), 0)),
            Slot::Unused => return Some((self.gpu.unused(), 0)),
        };
        tensor.map(|tensor| (tensor.buffer(), tensor.layout().aligned_start()))
    }

    fn bind_step<'a>(
        &self,
        step: &Step,
        buffer: impl Fn(Slot) -> Option<(&'a wgpu::Buffer, u64)>,
    ) -> wgpu::BindGroup {
        // a buffer that is missing is a validation error, not a panic
        let mut entries =
            vec![wgpu::BindGroupEntry { binding: 0, resource: step.params.as_entire_binding() }];
        entries.extend(step.bindings.iter().filter_map(|binding| {
            let (buffer, start) = buffer(binding.slot)?;
            let resource = wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer,
                offset: start + binding.start,
                size: wgpu::BufferSize::new(binding.bytes),
            });
            Some(wgpu::BindGroupEntry { binding: binding.binding, resource })
        }));
        self.gpu.device().create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(&step.label),
            layout: &step.layout,
            entries: &entries,
        })
    }

    /// Refuses results that overlap one another or an argument, and results in an argument's buffer
    /// where that was not planned for.
    fn expect_apart(&self, args: &Args<Tensor>, output: &Output<&Tensor>) -> Result<()> {
        let mut before: Vec<(&'static str, &Tensor)> = Vec::new();
        args.map(|argument, tensor| {
            before.push((argument, tensor));
            Ok(())
        })?;
        let arguments = before.len();
        // kernels that write a state read it by the same binding
        if let (Some(state), Memory::Apart) = (&args.state, self.args.memory) {
            let others = before.iter().filter(|(name, _)| *name != "state");
            if let Some((name, _)) = others.clone().find(|(_, t)| t.buffer() == state.buffer()) {
                return Err(Error::Value {
                    argument: "state",
                    expected: format!("a buffer other than {name}'s, or Args::one_buffer"),
                    actual: "the same buffer".into(),
                });
            }
        }
        output.as_ref().map(|part, &tensor| {
            for (i, &(name, other)) in before.iter().enumerate() {
                let in_place = part == "grad" && name == "input" && self.is_in_place();
                if other.buffer() != tensor.buffer() || in_place {
                    continue;
                }
                let (a, b) = (bytes_of(other), bytes_of(tensor));
                if a.start.max(b.start) < a.end.min(b.end) {
                    return Err(Error::Value {
                        argument: part,
                        expected: format!("memory apart from {name}, which is at bytes {a:?}"),
                        actual: format!("bytes {b:?} of the same buffer"),
                    });
                }
                if i < arguments && self.args.memory == Memory::Apart {
                    return Err(Error::Value {
                        argument: part,
                        expected: format!("a buffer other than {name}'s, or Args::one_buffer"),
                        actual: "the same buffer".into(),
                    });
                }
            }
            before.push((part, tensor));
            Ok(())
        })?;
        Ok(())
    }
}

impl Bound {
    /// Encodes the dispatches. Nothing is submitted, waited for, created or allocated.
    ///
    /// What only the device can see of the inputs goes to `status`, 32 bytes for
    /// [`Gpu::check`](crate::Gpu::check) or [`check_status`](crate::check_status), in a buffer with
    /// `COPY_DST`. An op that takes any input has none to give.
    ///
    /// # Errors
    /// [`Error::DType`] or [`Error::Shape`] for a status other than i32 `[8]`, [`Error::Value`] for one
    /// whose buffer lacks `COPY_DST`: nothing is encoded then.
    pub fn encode(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        status: Option<&Tensor>,
    ) -> Result<()> {
        self.encode_timed(encoder, status, None)
    }

    /// [`Bound::encode`] with timestamps before and after the dispatches.
    ///
    /// # Errors
    /// Those of [`Bound::encode`].
    pub fn encode_timed(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        status: Option<&Tensor>,
        timestamp_writes: Option<wgpu::ComputePassTimestampWrites<'_>>,
    ) -> Result<()> {
        let status = status.filter(|_| self.status.is_some());
        if let Some(status) = status {
            expect_status(self.status.as_ref(), status)?;
        }
        encoder.clear_buffer(&self.control, 0, Some(CONTROL_BYTES));
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some("wgloss"),
            timestamp_writes,
        });
        for Dispatch { pipeline, group, workgroups: [x, y, z] } in &self.dispatches {
            pass.set_pipeline(pipeline);
            pass.set_bind_group(0, group, &[]);
            pass.dispatch_workgroups(*x, *y, *z);
        }
        drop(pass);
        for BufferCopy { from, to, bytes } in &self.copies {
            encoder.copy_buffer_to_buffer(&from.0, from.1, &to.0, to.1, *bytes);
        }
        if let Some(status) = status {
            let start = status.byte_range().start;
            encoder.copy_buffer_to_buffer(&self.control, 0, status.buffer(), start, CONTROL_BYTES);
        }
        Ok(())
    }
}

/// The bytes of its buffer from its first element to behind its last one.
fn bytes_of(tensor: &Tensor) -> std::ops::Range<u64> {
    let layout = tensor.layout();
    (layout.offset() * layout.dtype().size()) as u64..layout.buffer_bytes()
}

/// Refuses what the status cannot be copied to. It may lie anywhere.
fn expect_status(planned: Option<&Layout>, status: &Tensor) -> Result<()> {
    expect_same("status", planned, Some(status.layout()), Compare::Shape)?;
    expect_copy_dst("status", status)
}

/// Refuses a result that a copy cannot be written to.
fn expect_copy_dst(argument: &'static str, tensor: &Tensor) -> Result<()> {
    let usage = tensor.buffer().usage();
    if usage.contains(wgpu::BufferUsages::COPY_DST) {
        return Ok(());
    }
    let (expected, actual) = ("usage COPY_DST".into(), format!("{usage:?}"));
    Err(Error::Value { argument, expected, actual })
}

/// Checks the layouts of all arguments, and tells those of the results.
fn expect_layouts(op: &dyn Op, pass: Pass, args: &Args<Layout>) -> Result<Output<Layout>> {
    let outputs = op.outputs(pass, args)?;
    args.map(|argument, layout| expect_strides(argument, layout, args))?;
    Ok(outputs)
}

/// Refuses row strides of what does not have the input's rows, and row state that is not aligned.
fn expect_strides(argument: &'static str, layout: &Layout, args: &Args<Layout>) -> Result<()> {
    layout.check(argument)?;
    let follows_input = ["input", "target", "upstream", "loss", "grad"].contains(&argument)
        && layout.shape() == args.input.shape();
    if !layout.is_contiguous() && !follows_input {
        return Err(Error::Value {
            argument,
            expected: "a contiguous layout".into(),
            actual: format!("row stride {} in {:?}", layout.row_stride(), layout.shape()),
        });
    }
    if argument == "state" && !layout.offset().is_multiple_of(4) {
        return Err(Error::Value {
            argument,
            expected: "an offset that is a multiple of 4 elements".into(),
            actual: layout.offset().to_string(),
        });
    }
    Ok(())
}

/// What two layouts must have in common beside the storage type.
#[derive(Clone, Copy, PartialEq)]
enum Compare {
    /// The shape.
    Shape,
    /// And where elements lie, but for multiples of the alignment.
    Memory,
}

fn expect_same(
    argument: &'static str,
    planned: Option<&Layout>,
    given: Option<&Layout>,
    compare: Compare,
) -> Result<()> {
    let op = || "this plan".to_string();
    let memory = |layout: &Layout| (layout.row_stride(), layout.residual());
    match (planned, given) {
        (None, None) => Ok(()),
        (Some(_), None) => Err(Error::Missing { argument, op: op() }),
        (None, Some(_)) => Err(Error::Unexpected { argument, op: op() }),
        (Some(planned), Some(given)) if planned.dtype() != given.dtype() => Err(Error::DType {
            argument,
            expected: planned.dtype().to_string(),
            actual: given.dtype(),
        }),
        (Some(planned), Some(given)) if planned.shape() != given.shape() => Err(Error::Shape {
            argument,
            expected: format!("{:?}", planned.shape()),
            actual: given.shape().to_vec(),
        }),
        (Some(planned), Some(given))
            if compare == Compare::Memory && memory(planned) != memory(given) =>
        {
            Err(Error::Value {
                argument,
                expected: format!(
                    "row stride {} and an offset of {} elements, up to multiples of {ALIGNMENT} bytes",
                    planned.row_stride(),
                    planned.residual()
                ),
                actual: format!("row stride {} and offset {}", given.row_stride(), given.offset()),
            })
        }
        _ => Ok(()),
    }
}
