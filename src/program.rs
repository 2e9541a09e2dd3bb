//! What a pass is made of: dispatches and copies over named buffers, as plain data. Built and tested
//! without a GPU; [`Plan`](crate::Plan) gives it pipelines and memory.
//!
//! This module knows no family of kernels: what belongs to one (its parameters, its bindings) lies
//! beside it in `src/ops`.

use bytemuck::Pod;

use crate::kernel::{self, Kernel};
use crate::limits::Limits;
use crate::shape::{ALIGNMENT, Layout};
use crate::tuning::Launch;
use crate::{DType, Error, Result, Role};

/// A buffer by what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Slot {
    /// An argument or a result.
    Tensor(Role),
    /// The control block of `shaders/shared/control.wgsl`.
    Control,
    /// Where the first fault is kept until it is checked.
    Status,
    /// Memory of the plan's own.
    Scratch(usize),
    /// Memory for a binding that the shader declares, though an override makes this variant skip
    /// every access to it.
    Placeholder,
}

impl Slot {
    /// The argument's or result's name, for errors.
    pub fn name(self) -> &'static str {
        match self {
            Slot::Tensor(role) => role.name(),
            Slot::Control | Slot::Status | Slot::Scratch(_) | Slot::Placeholder => "workspace",
        }
    }
}

/// What a kernel works on: a buffer, and how elements lie in it. Any kernel can take its operands
/// from arguments, from results, or from the scratch memory of a larger program.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    pub slot: Slot,
    pub layout: Layout,
}

impl View {
    pub fn new(slot: Slot, layout: &Layout) -> Self {
        View { slot, layout: layout.clone() }
    }

    /// An argument or a result.
    pub fn of(role: Role, layout: &Layout) -> Self {
        Self::new(Slot::Tensor(role), layout)
    }
}

/// A binding as kernels declare it: its number, and whether they write to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    pub binding: u32,
    pub writes: bool,
}

impl Port {
    pub const fn read(binding: u32) -> Self {
        Port { binding, writes: false }
    }

    pub const fn write(binding: u32) -> Self {
        Port { binding, writes: true }
    }

    /// The control block.
    pub const CONTROL: Port = Port::write(7);
}

/// What a dispatch finds at a binding: a range of a tensor, and where in it to work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    pub port: Port,
    pub slot: Slot,
    /// Bytes from the tensor's aligned start (see [`Layout`]); a multiple of `ALIGNMENT`.
    pub start: u64,
    pub bytes: u64,
    /// What `shaders/shared/offsets.wgsl` says of it: elements from there to the first one to work
    /// on, and from one outer row to the next.
    pub offsets: [u32; 2],
}

impl Binding {
    /// Binds `span` elements starting at `first`, both counted in memory (padding included), in rows
    /// `stride` elements apart.
    pub fn part(port: Port, view: &View, [first, span, stride]: [u64; 3]) -> Self {
        let layout = &view.layout;
        let size = layout.dtype().size() as u64;
        let first = first + layout.residual() as u64;
        let start = first * size / ALIGNMENT * ALIGNMENT;
        let end = (first + span) * size;
        // What cannot be counted in 32 bits does not fit a binding either, which `dispatch` refuses;
        // except for the stride of a single row, after which there is no other.
        let offsets = [(first - start / size) as u32, u32::try_from(stride).unwrap_or(0)];
        let bytes = (end - start).next_multiple_of(4).max(4);
        Binding { port, slot: view.slot, start, bytes, offsets }
    }

    /// All of a contiguous tensor.
    pub fn all(port: Port, view: &View) -> Self {
        Self::part(port, view, [0, view.layout.span() as u64, 0])
    }

    /// Memory that the shader names and this variant leaves alone. Each binding has its own, since a
    /// browser refuses two bindings of one range where they may be written to.
    pub fn placeholder(port: Port) -> Self {
        let start = u64::from(port.binding) * ALIGNMENT;
        Binding { port, slot: Slot::Placeholder, start, bytes: 16, offsets: [0; 2] }
    }

    /// All of an argument, or a placeholder where it was not given.
    pub fn all_or_placeholder(port: Port, view: Option<&View>) -> Self {
        view.map_or(Self::placeholder(port), |view| Self::all(port, view))
    }

    /// The control block.
    pub fn control() -> Self {
        Self::block(Port::CONTROL, Slot::Control)
    }

    /// A block of [`BLOCK_BYTES`].
    fn block(port: Port, slot: Slot) -> Self {
        Binding { port, slot, start: 0, bytes: BLOCK_BYTES, offsets: [0; 2] }
    }

    /// The same memory for a kernel that counts it in vec4s.
    pub fn in_vec4s(self) -> Self {
        Binding { offsets: self.offsets.map(|n| n / 4), ..self }
    }
}

/// The bytes of the control block and of the status.
pub const BLOCK_BYTES: u64 = 32;

/// How many bindings there are at most, the uniform buffer among them.
pub const BINDINGS: usize = 9;

/// The bindings of the input and of the gradient, which in-place kernels exchange.
const INPUT: u32 = 1;
const GRAD: u32 = 5;

/// `offsets` of every `Params`: four numbers a binding, since uniforms are laid out so.
pub type Offsets = [[u32; 4]; BINDINGS];

/// One dispatch. Binding 0 is the uniform buffer with `params`, if there are any; they begin with the
/// offsets of the other bindings.
#[derive(Debug, Clone)]
pub struct Step {
    pub kernel: Kernel,
    pub params: Vec<u8>,
    pub bindings: Vec<Binding>,
    pub workgroups: [u32; 3],
}

/// A copy between buffers, counted from the first elements of the tensors in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copy {
    pub from: Slot,
    /// In bytes.
    pub from_offset: u64,
    pub to: Slot,
    pub to_offset: u64,
    pub bytes: u64,
}

/// What a program does at one time.
#[derive(Debug, Clone)]
pub enum Command {
    Dispatch(Step),
    Copy(Copy),
}

/// The dispatches and copies of a pass, in order.
#[derive(Debug, Clone)]
pub struct Program {
    pub(crate) limits: Limits,
    pub(crate) commands: Vec<Command>,
    /// The layout of each scratch buffer.
    pub(crate) scratch: Vec<Layout>,
}

impl Program {
    /// A program without commands, for a device with these limits.
    pub fn new(limits: &Limits) -> Self {
        Program { limits: limits.clone(), commands: vec![], scratch: vec![] }
    }

    /// The dispatches.
    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        self.commands.iter().filter_map(|command| match command {
            Command::Dispatch(step) => Some(step),
            Command::Copy(_) => None,
        })
    }

    /// The copies.
    pub fn copies(&self) -> impl Iterator<Item = &Copy> {
        self.commands.iter().filter_map(|command| match command {
            Command::Copy(copy) => Some(copy),
            Command::Dispatch(_) => None,
        })
    }

    /// The layouts of the scratch buffers.
    pub fn scratch_layouts(&self) -> &[Layout] {
        &self.scratch
    }

    /// Whether the device may find faults in the arguments, which a status keeps.
    pub fn reports(&self) -> bool {
        self.steps().any(|step| step.bindings.iter().any(|binding| binding.slot == Slot::Status))
    }

    /// A new scratch buffer.
    pub fn scratch(&mut self, layout: Layout) -> View {
        self.scratch.push(layout.clone());
        View { slot: Slot::Scratch(self.scratch.len() - 1), layout }
    }

    /// A new scratch buffer of f32.
    pub fn scratch_f32(&mut self, elements: u64) -> View {
        self.scratch(Layout::new(&[elements as usize], DType::F32))
    }

    /// Adds a copy.
    pub fn copy(&mut self, copy: Copy) {
        self.commands.push(Command::Copy(copy));
    }

    /// Adds a dispatch. `params` follow the offsets of the bindings in the uniform buffer.
    pub fn dispatch(
        &mut self,
        kernel: Kernel,
        params: &impl Pod,
        bindings: Vec<Binding>,
        workgroups: [u32; 3],
    ) -> Result<()> {
        for binding in &bindings {
            self.limits.expect_bindable(binding.slot.name(), binding.bytes)?;
        }
        let mut offsets = Offsets::default();
        for &Binding { port, offsets: [first, stride], .. } in &bindings {
            offsets[port.binding as usize] = [first, stride, 0, 0];
        }
        if bindings.iter().all(|binding| binding.port.binding != INPUT) {
            // in place, the input lies where the gradient does
            offsets[INPUT as usize] = offsets[GRAD as usize];
        }
        let params = [bytemuck::bytes_of(&offsets), bytemuck::bytes_of(params)].concat();
        self.commands.push(Command::Dispatch(Step { kernel, params, bindings, workgroups }));
        Ok(())
    }

    /// Adds a dispatch in which `teams` teams have work. The kernel's text gets the team's files.
    pub fn dispatch_teams(
        &mut self,
        launch: Launch,
        teams: u64,
        mut kernel: Kernel,
        params: &impl Pod,
        bindings: Vec<Binding>,
    ) -> Result<()> {
        let workgroups = self.limits.workgroups(teams, launch.teams_per_workgroup())?;
        kernel.files.extend(kernel::team(launch.team, launch.cluster.is_some()));
        kernel.files.extend([kernel::MATH, kernel::OFFSETS]);
        kernel.constants.push(("WORKGROUP_SIZE", launch.workgroup_size));
        kernel.constants.extend(launch.cluster.map(|size| ("CLUSTER_SIZE", size)));
        kernel.label = format!("{}.{}", kernel.label, launch.team.name());
        self.dispatch(kernel, params, bindings, workgroups)
    }

    /// Adds the dispatch that keeps what the ones before it have reported in the status, unless that
    /// holds an earlier fault.
    pub fn keep_first_fault(&mut self) {
        let kernel = Kernel {
            label: "status".into(),
            files: vec![kernel::STATUS],
            entry_point: "keep_first_fault",
            constants: vec![],
            defines: vec![],
            read_write: 0,
        };
        let bindings = vec![
            Binding::block(Port::write(6), Slot::Status),
            Binding::block(Port::CONTROL, Slot::Control),
        ];
        let step = Step { kernel, params: vec![], bindings, workgroups: [1; 3] };
        self.commands.push(Command::Dispatch(step));
    }
}

/// A count taken in chunks of at most `most`: the first and the size of each.
pub fn chunks(count: u64, most: u64) -> impl Iterator<Item = [u64; 2]> {
    (0..count.div_ceil(most)).map(move |i| [i * most, most.min(count - i * most)])
}

/// `first` of a dispatch's `Params`. The status names rows and elements up to `LAST_INDEX`, which
/// stands for all that come after it.
pub fn first_index(first: u64) -> u32 {
    first.min(LAST_INDEX.into()) as u32
}

/// The last row or element that a status can name.
const LAST_INDEX: u32 = u32::MAX - 1;

/// The error that the words of a status tell of, if any.
pub fn fault(words: [u32; 8]) -> Option<Error> {
    let [_, first_bad, bad_value, classes, ..] = words;
    let index = u32::MAX - first_bad;
    match (first_bad, classes) {
        (0, _) => None,
        (_, 0) => Some(Error::Value {
            argument: "input or target",
            expected: "numbers in [0, 1]".into(),
            actual: format!("another one at element {index}"),
        }),
        (_, classes) => Some(Error::Class {
            row: index.into(),
            class: bad_value.cast_signed().into(),
            classes: classes.into(),
        }),
    }
}
