//! What a pass is made of: dispatches over named buffers, as plain data. Built and tested without a
//! GPU; [`Plan`](crate::Plan) gives it pipelines and memory.

use bytemuck::{Pod, Zeroable};

use crate::kernel::{self, File, Kernel};
use crate::select::{Choice, Facts};
use crate::shape::{Layout, MAX_DIMS};
use crate::{DType, Error, Result};

/// A buffer by its role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Slot {
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

/// One dispatch. Binding 0 is always the uniform buffer with `params`.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub kernel: Kernel,
    pub params: Vec<u8>,
    pub bindings: Vec<(u32, Slot)>,
    pub workgroups: [u32; 3],
}

/// A copy after the dispatches: per-row results share one binding, and are taken apart here.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Copy {
    pub from: Slot,
    /// Where in `from` it starts, in bytes.
    pub offset: u64,
    pub to: Slot,
    pub bytes: u64,
}

/// The dispatches of a pass, in order, and the copies after them.
#[derive(Debug, Clone, Default)]
pub struct Program {
    pub(crate) steps: Vec<Step>,
    pub(crate) copies: Vec<Copy>,
    /// The bytes of each scratch buffer.
    pub(crate) scratch: Vec<u64>,
}

/// `Params` of `shaders/shared/row_form.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
pub(crate) struct RowParams {
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
    pub unused: [u32; 2],
}

/// `Params` of `shaders/family/sum.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
pub(crate) struct SumParams {
    pub count: u32,
    pub per_team: u32,
    pub teams: u32,
    pub divisor: f32,
    pub classes: u32,
    pub ignore_index: i32,
    pub empty_mean: f32,
    pub unused: u32,
}

/// `Params` of `shaders/family/elements.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
pub(crate) struct ElementParams {
    pub elements: u32,
    pub per_team: u32,
    pub teams: u32,
    pub dims: u32,
    pub scale: f32,
    pub unused: u32,
    pub settings: [f32; 2],
    pub dim: [[u32; 4]; MAX_DIMS],
}

/// What is summed.
pub(crate) struct Terms {
    pub label: String,
    pub files: Vec<File>,
    pub bindings: Vec<(u32, Slot)>,
    pub constants: Vec<(&'static str, u32)>,
    /// `classes` and `ignore_index`, where the terms are class weights.
    pub params: SumParams,
}

impl Terms {
    /// Values in memory.
    pub fn values(label: String, values: Slot) -> Self {
        Terms {
            label,
            files: vec![kernel::TERMS_VALUES],
            bindings: vec![(1, values)],
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

impl Program {
    /// A new scratch buffer.
    pub(crate) fn scratch(&mut self, bytes: u64) -> Slot {
        self.scratch.push(bytes);
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
        bindings: Vec<(u32, Slot)>,
    ) -> Result<()> {
        let workgroups = facts.workgroups(teams, choice).ok_or_else(|| {
            let workgroups = u64::from(facts.max_workgroups).pow(2);
            let most = workgroups.saturating_mul(choice.teams_per_workgroup.into());
            Error::Value {
                argument: "input",
                expected: format!("work for at most {most} teams on {}", facts.device),
                actual: format!("work for {teams}"),
            }
        })?;
        kernel.files.extend([kernel::team(choice.team), kernel::MATH]);
        kernel.constants.push(("WORKGROUP_SIZE", choice.workgroup_size));
        kernel.label = format!("{}.{}", kernel.label, choice.team.name());
        let params = bytemuck::bytes_of(params).to_vec();
        self.steps.push(Step { kernel, params, bindings, workgroups });
        Ok(())
    }

    /// Adds the dispatches that sum `count` terms: as many levels as it takes.
    pub(crate) fn push_sum(
        &mut self,
        facts: &Facts,
        mut terms: Terms,
        mut count: u64,
        total: Total,
    ) -> Result<()> {
        let (choice, per_team) = facts.for_sum();
        loop {
            let teams = count.div_ceil(per_team.into()).max(1);
            let is_last = teams == 1;
            let sums = match total {
                _ if !is_last => self.scratch(teams * 4),
                Total::Divisor => Slot::Unused,
                _ => Slot::Loss,
            };
            let (divisor, empty_mean) = match total {
                Total::LossOver(divisor) if is_last => (Some(divisor), f32::NAN),
                Total::LossOverDivisor { empty_mean } if is_last => (Some(0.0), empty_mean),
                _ => (None, f32::NAN),
            };
            let params = SumParams {
                count: count as u32,
                per_team,
                teams: teams as u32,
                divisor: divisor.unwrap_or(0.0),
                empty_mean,
                ..terms.params
            };
            let to_control = is_last && matches!(total, Total::Divisor);
            let constants =
                [("TO_CONTROL", to_control.into()), ("DIVIDE", divisor.is_some().into())];
            let kernel = Kernel {
                label: terms.label.clone(),
                files: [vec![kernel::SUM, kernel::CONTROL], terms.files].concat(),
                entry_point: "sum",
                constants: [constants.to_vec(), terms.constants].concat(),
            };
            let bindings = [vec![(6, sums), (7, Slot::Control)], terms.bindings].concat();
            self.push(facts, choice, teams, kernel, &params, bindings)?;
            if is_last {
                return Ok(());
            }
            terms = Terms::values(terms.label, sums);
            count = teams;
        }
    }
}

/// The bytes of the control block.
pub(crate) const CONTROL_BYTES: u64 = 32;

/// The status: the control block as the device leaves it.
pub(crate) fn status_layout() -> Layout {
    Layout::new(&[CONTROL_BYTES as usize / 4], DType::I32)
}

/// The error that the words of a status tell of, if any.
pub(crate) fn decode_status(words: [u32; 8]) -> Option<Error> {
    let [_, first_bad, bad_value, classes, ..] = words;
    let place = u32::MAX - first_bad;
    match (first_bad, classes) {
        (0, _) => None,
        (_, 0) => Some(Error::Value {
            argument: "input, target",
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
