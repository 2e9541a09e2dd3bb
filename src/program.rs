//! What a pass is made of: dispatches over named buffers, as plain data. Built and tested without a
//! GPU; [`Plan`](crate::Plan) gives it pipelines and memory.

use bytemuck::{Pod, Zeroable};

use crate::kernel::{self, File, Kernel};
use crate::select::{Blocks, Choice, Facts};
use crate::shape::{ALIGNMENT, Layout, MAX_DIMS};
use crate::{DType, Error, Result};

/// A buffer by its role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Slot {
    Input,
    Target,
    Weight,
    PosWeight,
    Upstream,
    /// The row state, given to backward or kept by forward.
    State,
    Loss,
    Grad,
    LogSumExp,
    Argmax,
    Correct,
    /// The control block of `shaders/shared/control.wgsl`: the status, where the op has one.
    Control,
    /// Memory of the plan's own.
    Scratch(usize),
    /// The number 1, read only: an upstream gradient that was not given.
    One,
    /// Bound because the shader names it, though this variant leaves it alone.
    Unused,
}

impl Slot {
    /// The argument's or result's name, for errors.
    pub fn name(self) -> &'static str {
        match self {
            Slot::Input => "input",
            Slot::Target => "target",
            Slot::Weight => "weight",
            Slot::PosWeight => "pos_weight",
            Slot::Upstream => "upstream",
            Slot::State => "state",
            Slot::Loss => "loss",
            Slot::Grad => "grad",
            Slot::LogSumExp => "logsumexp",
            Slot::Argmax => "argmax",
            Slot::Correct => "correct",
            Slot::Control | Slot::Scratch(_) | Slot::One | Slot::Unused => "workspace",
        }
    }
}

/// What a dispatch finds at a binding: a stretch of a tensor, and where in it to work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    pub binding: u32,
    pub slot: Slot,
    /// Bytes from the tensor's aligned start (see [`Layout`]); a multiple of `ALIGNMENT`.
    pub start: u64,
    pub bytes: u64,
    /// What `shaders/shared/places.wgsl` says of it: elements from there to the first one to work
    /// on, and from one line to the next.
    pub place: [u32; 2],
}

impl Binding {
    /// `span` elements from element `first` on, both counted as they lie, in lines `stride` apart.
    pub fn part(
        binding: u32,
        slot: Slot,
        layout: &Layout,
        [first, span, stride]: [u64; 3],
    ) -> Self {
        let size = layout.dtype().size() as u64;
        let first = first + layout.residual() as u64;
        let start = first * size / ALIGNMENT * ALIGNMENT;
        let end = (first + span) * size;
        // what cannot be counted in 32 bits does not fit a binding either, which `push` refuses; but
        // for the stride of one line, after which there is no other
        let place = [(first - start / size) as u32, u32::try_from(stride).unwrap_or(0)];
        let bytes = (end - start).next_multiple_of(4).max(4);
        Binding { binding, slot, start, bytes, place }
    }

    /// All of a contiguous tensor.
    pub fn all(binding: u32, slot: Slot, layout: &Layout) -> Self {
        Self::part(binding, slot, layout, [0, layout.span() as u64, 0])
    }

    /// A number 1. No two bindings of a dispatch share one: a browser refuses that where they may be
    /// written to.
    pub fn one(binding: u32) -> Self {
        let start = u64::from(binding) * ALIGNMENT;
        Binding { binding, slot: Slot::One, start, bytes: 16, place: [0; 2] }
    }

    /// Memory that the shader names and this variant leaves alone.
    pub fn unused(binding: u32) -> Self {
        Binding { slot: Slot::Unused, ..Self::one(binding) }
    }

    /// The argument, or where it was not given, the number 1.
    pub fn all_or_one(binding: u32, slot: Slot, layout: Option<&Layout>) -> Self {
        layout.map_or(Self::one(binding), |layout| Self::all(binding, slot, layout))
    }

    /// The control block.
    pub fn control() -> Self {
        Binding { binding: 7, slot: Slot::Control, start: 0, bytes: CONTROL_BYTES, place: [0; 2] }
    }
}

/// How many bindings there are at most, the uniform buffer among them.
pub(crate) const BINDINGS: usize = 9;

/// The bindings of the input and of the gradient.
const INPUT: u32 = 1;
const GRAD: u32 = 5;

/// `places` of every `Params`: four numbers a binding, since uniforms are laid out so.
pub type Places = [[u32; 4]; BINDINGS];

/// One dispatch. Binding 0 is always the uniform buffer with `params`, which begin with the places
/// of the other bindings.
#[derive(Debug, Clone)]
pub struct Step {
    pub kernel: Kernel,
    pub params: Vec<u8>,
    pub bindings: Vec<Binding>,
    pub workgroups: [u32; 3],
}

/// A copy after the dispatches: per-row results share one binding, and are taken apart here.
#[derive(Debug, Clone, Copy)]
pub struct Copy {
    pub from: Slot,
    /// Where in `from` it starts, in bytes.
    pub offset: u64,
    pub to: Slot,
    /// Where in `to`, in bytes from its first element.
    pub to_offset: u64,
    pub bytes: u64,
}

/// The dispatches of a pass, in order, and the copies after them.
#[derive(Debug, Clone, Default)]
pub struct Program {
    pub steps: Vec<Step>,
    pub copies: Vec<Copy>,
    /// The layout of each scratch buffer.
    pub scratch: Vec<Layout>,
}

/// `Params` of `shaders/shared/row_form.wgsl`, after the places.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
pub struct RowParams {
    pub rows: u32,
    pub classes: u32,
    pub positions: u32,
    pub ignore_index: i32,
    pub confidence: f32,
    pub smoothing: f32,
    pub divisor: f32,
    pub scale: f32,
    pub softcap: f32,
    pub z_loss: f32,
    pub first: u32,
    pub rows_each: u32,
    pub shares: u32,
    pub share: u32,
    pub unused: [u32; 2],
}

/// `Params` of `shaders/family/sum.wgsl`, after the places.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
pub struct SumParams {
    pub count: u32,
    pub per_team: u32,
    pub teams: u32,
    pub divisor: f32,
    pub classes: u32,
    pub ignore_index: i32,
    pub empty_mean: f32,
    pub first: u32,
}

/// `Params` of `shaders/family/elements.wgsl`, after the places.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
pub struct ElementParams {
    pub quads: u32,
    pub per_team: u32,
    pub teams: u32,
    pub line: u32,
    pub dims: u32,
    pub scale: f32,
    pub own: [u32; 2],
    pub settings: [f32; 8],
    pub first: u32,
    pub unused: [u32; 3],
    pub dim: [[u32; 4]; MAX_DIMS],
}

/// `first` of a dispatch's `Params`. The status names places up to `LAST_PLACE`, which stands for
/// all that come after it.
pub fn first_place(first: u64) -> u32 {
    first.min(LAST_PLACE.into()) as u32
}

/// The last row or element that a status can name.
const LAST_PLACE: u32 = u32::MAX - 1;

/// What is summed: one term for each element of a tensor.
pub(crate) struct Terms {
    /// The same for all terms of a kind, whose kernels are the same.
    pub label: &'static str,
    pub files: Vec<File>,
    /// The tensor's binding.
    pub binding: u32,
    pub slot: Slot,
    pub layout: Layout,
    /// The stretches of it that hold terms: first element and count.
    pub stretches: Vec<[u64; 2]>,
    /// What else is bound.
    pub bindings: Vec<Binding>,
    pub constants: Vec<(&'static str, u32)>,
    /// `classes` and `ignore_index`, where the terms are class weights.
    pub params: SumParams,
}

impl Terms {
    /// Values in memory.
    pub fn values(slot: Slot, stretches: Vec<[u64; 2]>) -> Self {
        let end = stretches.last().map_or(0, |[first, count]| first + count);
        Terms {
            label: "sum",
            files: vec![kernel::TERMS_VALUES],
            binding: 1,
            slot,
            layout: Layout::new(&[end as usize], DType::F32),
            stretches,
            bindings: vec![],
            constants: vec![],
            params: SumParams::default(),
        }
    }
}

/// Where a total goes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Total {
    /// It is the divisor in the control block.
    Divisor,
    /// It is the loss.
    Loss,
    /// Divided by so much it is the loss.
    LossOver(f32),
    /// Divided by the divisor in the control block it is the loss; so much where no row was kept.
    LossOverDivisor { empty_mean: f32 },
}

/// A count taken in stretches of at most `most`: the first and the size of each.
pub(crate) fn stretches(count: u64, most: u64) -> impl Iterator<Item = [u64; 2]> {
    (0..count.div_ceil(most)).map(move |i| [i * most, most.min(count - i * most)])
}

impl Program {
    /// A new scratch buffer of f32.
    pub(crate) fn scratch(&mut self, elements: u64) -> Slot {
        self.scratch.push(Layout::new(&[elements as usize], DType::F32));
        Slot::Scratch(self.scratch.len() - 1)
    }

    /// Adds a dispatch in which `teams` teams have work.
    pub(crate) fn push(
        &mut self,
        facts: &Facts,
        choice: Choice,
        teams: u64,
        mut kernel: Kernel,
        params: &impl Pod,
        bindings: Vec<Binding>,
    ) -> Result<()> {
        for binding in &bindings {
            facts.expect_bindable(binding.slot.name(), binding.bytes)?;
        }
        let workgroups = facts.workgroups(teams, choice).ok_or_else(|| {
            let workgroups = u64::from(facts.max_workgroups).pow(2);
            let most = workgroups.saturating_mul(choice.teams_per_workgroup().into());
            Error::Value {
                argument: "input",
                expected: format!("work for at most {most} teams on {}", facts.device),
                actual: format!("work for {teams}"),
            }
        })?;
        let neighbours = facts.neighbours(choice);
        kernel.files.extend(kernel::team(choice.team, neighbours.is_some()));
        kernel.files.extend([kernel::MATH, kernel::PLACES]);
        kernel.constants.push(("WORKGROUP_SIZE", choice.workgroup_size));
        kernel.constants.extend(neighbours.map(|count| ("NEIGHBOURS", count)));
        kernel.label = format!("{}.{}", kernel.label, choice.team.name());
        let mut places = Places::default();
        for &Binding { binding, place: [first, stride], .. } in &bindings {
            places[binding as usize] = [first, stride, 0, 0];
        }
        if bindings.iter().all(|binding| binding.binding != INPUT) {
            // in place, the input lies where the gradient does
            places[INPUT as usize] = places[GRAD as usize];
        }
        let params = [bytemuck::bytes_of(&places), bytemuck::bytes_of(params)].concat();
        self.steps.push(Step { kernel, params, bindings, workgroups });
        Ok(())
    }

    /// Adds the dispatches that sum terms: as many levels as it takes.
    pub(crate) fn push_sum(
        &mut self,
        facts: &Facts,
        mut terms: Terms,
        total: Total,
        result: Option<&Layout>,
    ) -> Result<()> {
        let (choice, per_team) = facts.for_sum();
        let most = facts.part_bytes() / terms.layout.dtype().size() as u64;
        loop {
            let mut parts: Vec<_> = terms
                .stretches
                .iter()
                .flat_map(|&[start, count]| {
                    stretches(count, most).map(move |[first, count]| [start + first, count])
                })
                .collect();
            if parts.is_empty() {
                // the sum of nothing is to be written too
                parts.push([0, 0]);
            }
            let teams_of = |count: u64| count.div_ceil(per_team.into()).max(1);
            let teams: u64 = parts.iter().map(|&[_, count]| teams_of(count)).sum();
            let is_last = teams == 1;
            let sums = if is_last { Slot::Loss } else { self.scratch(teams) };
            let (divisor, empty_mean) = match total {
                Total::LossOver(divisor) if is_last => (Some(divisor), f32::NAN),
                Total::LossOverDivisor { empty_mean } if is_last => (Some(0.0), empty_mean),
                _ => (None, f32::NAN),
            };
            let to_control = is_last && matches!(total, Total::Divisor);
            let mut done = 0;
            for [first, count] in parts {
                let teams = teams_of(count);
                let params = SumParams {
                    count: count as u32,
                    per_team,
                    teams: teams as u32,
                    divisor: divisor.unwrap_or(0.0),
                    empty_mean,
                    first: first_place(first),
                    ..terms.params
                };
                let constants =
                    [("TO_CONTROL", to_control.into()), ("DIVIDE", divisor.is_some().into())];
                let kernel = Kernel {
                    label: terms.label.into(),
                    files: [&[kernel::SUM, kernel::CONTROL], &terms.files[..]].concat(),
                    entry_point: "sum",
                    constants: [&constants[..], &terms.constants].concat(),
                    blocks: Blocks::default(),
                    shares_buffers: false,
                };
                let (part, stretch) = ([first, count, 0], [done, teams, 0]);
                let written = match (sums, result) {
                    (Slot::Scratch(i), _) => Binding::part(6, sums, &self.scratch[i], stretch),
                    (_, Some(loss)) if !to_control => Binding::all(6, sums, loss),
                    _ => Binding::unused(6),
                };
                let mut bindings = terms.bindings.clone();
                bindings.push(Binding::part(terms.binding, terms.slot, &terms.layout, part));
                bindings.extend([written, Binding::control()]);
                self.push(facts, choice, teams, kernel, &params, bindings)?;
                done += teams;
            }
            if is_last {
                return Ok(());
            }
            terms = Terms::values(sums, vec![[0, teams]]);
        }
    }
}

/// The bytes of the control block.
pub(crate) const CONTROL_BYTES: u64 = 32;

/// The status: the control block as the device leaves it.
pub(crate) fn status_layout() -> Layout {
    Layout::new(&[CONTROL_BYTES as usize / 4], DType::I32)
}

/// Turns what the device reports of a pass's inputs into an error: the words of a status, for those
/// who read it back by themselves.
///
/// # Errors
/// [`Error::Class`] for a class out of range, [`Error::Value`] for a number outside `[0, 1]`. The row
/// or element is the first such one; 2^32 - 2 stands for itself and all that come after it.
pub fn check_status(words: [u32; 8]) -> Result<()> {
    decode_status(words).map_or(Ok(()), Err)
}

/// The error that the words of a status tell of, if any.
fn decode_status(words: [u32; 8]) -> Option<Error> {
    let [_, first_bad, bad_value, classes, ..] = words;
    let place = u32::MAX - first_bad;
    match (first_bad, classes) {
        (0, _) => None,
        (_, 0) => Some(Error::Value {
            argument: "input or target",
            expected: "numbers in [0, 1]".into(),
            actual: format!("another one at element {place}"),
        }),
        (_, classes) => Some(Error::Class {
            row: place.into(),
            class: bad_value.cast_signed().into(),
            classes: classes.into(),
        }),
    }
}
