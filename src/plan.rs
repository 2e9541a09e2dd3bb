//! Plans: everything about a pass that depends on shapes alone, settled once.

use std::collections::HashMap;
use std::sync::Arc;

use crate::guard::lock;
use crate::kernel::Kernel;
use crate::ops::options::Key;
use crate::program::{BLOCK_BYTES, Binding, Command, Copy, Program, Slot, Step, View};
use crate::shape::Layout;
use crate::tuning::DeviceProfile;
use crate::upload::device_layout;
use crate::{Args, Error, Gpu, Op, Output, Pass, Result, Role, Tensor};

mod bind;

pub use bind::BoundPlan;

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
/// plan.bind(&args, &output)?.encode(&mut encoder); // no submit, no wait
/// gpu.queue().submit([encoder.finish()]);
/// # Ok::<_, wgloss::Error>(())
/// ```
///
/// Cloning is cheap: clones share everything. The workspace is the plan's own: encoded several times,
/// the dispatches run in the order of submission and do not disturb one another.
#[derive(Debug, Clone)]
pub struct Plan {
    gpu: Gpu,
    compiled: Arc<CompiledPlan>,
}

/// What a plan is made for: the key under which calls find it again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct PlanKey {
    op: Key,
    pass: Pass,
    args: Args<Layout>,
    /// Where results lie; empty where that is left to the plan.
    results: Vec<(Role, Layout)>,
}

/// A program with its pipelines and its memory.
#[derive(Debug)]
pub(crate) struct CompiledPlan {
    args: Args<Layout>,
    outputs: Output<Layout>,
    reports: bool,
    commands: Vec<Compiled>,
    scratch: Vec<wgpu::Buffer>,
    control: wgpu::Buffer,
}

#[derive(Debug)]
enum Compiled {
    Dispatch(CompiledStep),
    Copy(Copy),
}

#[derive(Debug)]
struct CompiledStep {
    kernel: Kernel,
    pipeline: wgpu::ComputePipeline,
    params: Option<wgpu::Buffer>,
    bindings: Vec<Binding>,
    workgroups: [u32; 3],
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
        let mut outputs = outputs.clone();
        for role in Role::ALL {
            // over an argument there is no choice, and the result need not be named
            let is_argument = args.home_of(role).is_some();
            let compare = if is_argument { self.memory() } else { Compare::Shape };
            if is_argument && outputs.get(role).is_none() {
                outputs = outputs.with_some(role, expected.get(role).cloned());
            }
            expect_same(role, expected.get(role), outputs.get(role), compare)?;
        }
        outputs.iter().try_for_each(|(role, layout)| expect_strides(role, layout, args))?;
        self.plan_checked(op, pass, args, outputs).await
    }

    /// [`Gpu::plan`], but a plan of the same that is kept, where there is one; the new one is kept from
    /// now on. With `results`, [`Gpu::plan_into`].
    pub(crate) async fn kept_plan(
        &self,
        op: &dyn Op,
        pass: Pass,
        args: &Args<Layout>,
        results: Option<&Output<Layout>>,
    ) -> Result<Plan> {
        // one plan serves all tensors whose offsets differ by multiples of the alignment
        let alignment = self.alignment();
        let aligned = |layout: &Layout| layout.clone().with_offset(layout.residual_on(alignment));
        let args = args.map(aligned);
        let into: Vec<(Role, Layout)> = results
            .map(|results| results.iter().map(|(role, layout)| (role, aligned(layout))).collect())
            .unwrap_or_default();
        let key = PlanKey { op: op.key(), pass, args: args.clone(), results: into.clone() };
        let kept = lock(self.plans()).get(&key);
        if let Some(compiled) = kept {
            return Ok(Plan { gpu: self.clone(), compiled });
        }
        let plan = match results {
            Some(_) => self.plan_into(op, pass, &args, &into.into_iter().collect()).await?,
            None => self.plan(op, pass, &args).await?,
        };
        lock(self.plans()).insert(key, plan.compiled.clone(), plan.workspace_bytes());
        Ok(plan)
    }

    async fn plan_checked(
        &self,
        op: &dyn Op,
        pass: Pass,
        args: &Args<Layout>,
        outputs: Output<Layout>,
    ) -> Result<Plan> {
        let args = args.map(device_layout);
        let program = program(op, pass, &args, &outputs, self.profile())?;
        self.compile(program, args, outputs).await
    }

    /// Gives a program its pipelines and its memory.
    #[doc(hidden)]
    pub async fn compile(
        &self,
        program: Program,
        args: Args<Layout>,
        outputs: Output<Layout>,
    ) -> Result<Plan> {
        let limits = &self.profile().limits;
        for (role, layout) in args.iter().chain(outputs.iter()) {
            limits.expect_allocatable(role.name(), layout.buffer_bytes())?;
        }
        for layout in &program.scratch {
            limits.expect_allocatable("workspace", layout.bytes())?;
        }
        let reports = program.reports();
        // dispatches over chunks or pieces share a kernel, which is compiled once
        let mut pipelines = HashMap::new();
        let create = || {
            Ok(CompiledPlan {
                args,
                outputs,
                reports,
                commands: program
                    .commands
                    .into_iter()
                    .map(|command| self.compiled(command, &mut pipelines))
                    .collect(),
                scratch: program
                    .scratch
                    .iter()
                    .map(|layout| self.workspace(layout.bytes()))
                    .collect(),
                control: self.workspace(BLOCK_BYTES),
            })
        };
        let compiled = self.guarded(create).await?;
        // they are good: nothing has failed
        for (kernel, pipeline) in pipelines {
            self.keep_pipeline(kernel, pipeline);
        }
        Ok(Plan { gpu: self.clone(), compiled: Arc::new(compiled) })
    }

    fn compiled(
        &self,
        command: Command,
        pipelines: &mut HashMap<Kernel, wgpu::ComputePipeline>,
    ) -> Compiled {
        match command {
            Command::Copy(copy) => Compiled::Copy(copy),
            Command::Dispatch(Step { kernel, params, bindings, workgroups }) => {
                let params = (!params.is_empty()).then(|| {
                    let buffer = self.device().create_buffer(&wgpu::BufferDescriptor {
                        label: Some("wgloss.params"),
                        size: params.len() as u64,
                        usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
                        mapped_at_creation: false,
                    });
                    self.queue().write_buffer(&buffer, 0, &params);
                    buffer
                });
                let pipeline = pipelines
                    .entry(kernel.clone())
                    .or_insert_with(|| self.pipeline(&kernel))
                    .clone();
                Compiled::Dispatch(CompiledStep { kernel, pipeline, params, bindings, workgroups })
            }
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

impl CompiledPlan {
    fn steps(&self) -> impl Iterator<Item = &CompiledStep> {
        self.commands.iter().filter_map(|command| match command {
            Compiled::Dispatch(step) => Some(step),
            Compiled::Copy(_) => None,
        })
    }
}

impl Plan {
    /// The layouts of what it computes.
    pub fn outputs(&self) -> &Output<Layout> {
        &self.compiled.outputs
    }

    /// The bytes of device memory that it holds beside arguments and outputs: a few for each row
    /// or for each thousand elements; of [`LinearCrossEntropy`](crate::LinearCrossEntropy) also blocks of logits.
    pub fn workspace_bytes(&self) -> u64 {
        let params = self.compiled.steps().filter_map(|step| step.params.as_ref());
        let buffers = self.compiled.scratch.iter().chain([&self.compiled.control]);
        params.chain(buffers).map(wgpu::Buffer::size).sum()
    }

    /// The labels of the kernels that it dispatches, in order: `cross_entropy.forward.f32.subgroup`.
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        self.compiled.steps().map(|step| &step.kernel.label[..])
    }

    /// Whether it works on an argument: some passes take one for its layout alone.
    pub(crate) fn uses(&self, role: Role) -> bool {
        let slot = Slot::Tensor(role);
        self.compiled.commands.iter().any(|command| match command {
            Compiled::Dispatch(step) => step.bindings.iter().any(|binding| binding.slot == slot),
            Compiled::Copy(copy) => copy.from == slot || copy.to == slot,
        })
    }

    /// The layouts of what is in memory of its own: all that is not written over an argument.
    pub(crate) fn allocated(&self) -> impl Iterator<Item = (Role, &Layout)> {
        let args = &self.compiled.args;
        self.compiled.outputs.iter().filter(|(role, _)| args.home_of(*role).is_none())
    }

    /// Tensors for what it computes and does not write over an argument. With a status, where the
    /// device may find faults in the arguments.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub async fn allocate(&self) -> Result<Output<Tensor>> {
        let mut output = Output::default();
        for (role, layout) in self.allocated() {
            let bytes = self.bytes_of(role, layout);
            output = output.with(role, self.gpu.allocate(role.name(), layout, bytes).await?);
        }
        if self.compiled.reports {
            output = output.with_status(self.gpu.status().await?);
        }
        Ok(output)
    }

    /// The bytes of a buffer for a result: with the last row's padding, where zeros are written to it.
    fn bytes_of(&self, role: Role, layout: &Layout) -> u64 {
        match role == Role::Grad && self.compiled.args.zero_padding {
            true => layout.padded_bytes(),
            false => layout.buffer_bytes(),
        }
    }
}

/// What a plan of a pass is made of: the op's program, and the zeros that the arguments ask for.
pub fn program(
    op: &dyn Op,
    pass: Pass,
    args: &Args<Layout>,
    outputs: &Output<Layout>,
    profile: &DeviceProfile,
) -> Result<Program> {
    let mut program = op.program(pass, args, outputs, profile)?;
    if let Some(grad) = outputs.get(Role::Grad).filter(|_| args.zero_padding) {
        let role = if args.in_place { Role::Input } else { Role::Grad };
        program.zero_padding(&View::of(role, grad))?;
    }
    Ok(program)
}

/// Checks the layouts of all arguments, and returns those of the results.
fn expect_layouts(op: &dyn Op, pass: Pass, args: &Args<Layout>) -> Result<Output<Layout>> {
    let outputs = op.outputs(pass, args)?;
    args.iter().try_for_each(|(role, layout)| expect_strides(role, layout, args))?;
    Ok(outputs)
}

/// Refuses row strides of what does not have the input's rows, and row state that is not aligned.
fn expect_strides(role: Role, layout: &Layout, args: &Args<Layout>) -> Result<()> {
    let argument = role.name();
    layout.check(argument)?;
    let may_be_padded = match role {
        Role::Input | Role::Target | Role::Upstream | Role::Loss | Role::Output | Role::Grad => {
            layout.shape() == args.input().shape()
        }
        _ => false,
    };
    if !layout.is_contiguous() && !may_be_padded {
        return Err(Error::Value {
            argument,
            expected: "a contiguous layout".into(),
            actual: format!("row stride {} in {:?}", layout.row_stride(), layout.shape()),
        });
    }
    if matches!(role, Role::State | Role::Partials | Role::Partial)
        && !layout.offset().is_multiple_of(4)
    {
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
    /// And where elements lie, but for multiples of so many bytes.
    Memory(u64),
}

impl Gpu {
    /// What tensors of a plan have in common.
    fn memory(&self) -> Compare {
        Compare::Memory(self.alignment())
    }
}

fn expect_same(
    role: Role,
    planned: Option<&Layout>,
    given: Option<&Layout>,
    compare: Compare,
) -> Result<()> {
    let argument = role.name();
    let op = || "this plan".to_string();
    let lies_alike = |planned: &Layout, given: &Layout, alignment| {
        let start = given.start_before(planned.residual());
        planned.row_stride() == given.row_stride()
            && start.is_some_and(|start| start.is_multiple_of(alignment))
    };
    match (planned, given, compare) {
        (None, None, _) => Ok(()),
        (Some(_), None, _) => Err(Error::Missing { argument, op: op() }),
        (None, Some(_), _) => Err(Error::Unexpected { argument, op: op() }),
        (Some(planned), Some(given), _) if planned.dtype() != given.dtype() => Err(Error::DType {
            argument,
            expected: planned.dtype().to_string(),
            actual: given.dtype(),
        }),
        (Some(planned), Some(given), _) if planned.shape() != given.shape() => Err(Error::Shape {
            argument,
            expected: format!("{:?}", planned.shape()),
            actual: given.shape().to_vec(),
        }),
        (Some(planned), Some(given), Compare::Memory(alignment))
            if !lies_alike(planned, given, alignment) =>
        {
            Err(Error::Value {
                argument,
                expected: format!(
                    "row stride {} and an offset of {} elements, up to multiples of {alignment} bytes",
                    planned.row_stride(),
                    planned.residual()
                ),
                actual: format!("row stride {} and offset {}", given.row_stride(), given.offset()),
            })
        }
        _ => Ok(()),
    }
}
