//! Which kernel for which shape on which device: pure functions, tested without a GPU.

use crate::shape::ALIGNMENT;
use crate::{Error, Result};

/// Who shares one row, or one stretch of elements (`shaders/team`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Team {
    /// One invocation: for few classes.
    Invocation,
    /// One subgroup, which needs no barrier.
    Subgroup,
    /// One workgroup, with barriers: for long rows on real GPUs.
    Workgroup,
}

impl Team {
    /// The stem of the shader.
    pub fn name(self) -> &'static str {
        match self {
            Team::Invocation => "invocation",
            Team::Subgroup => "subgroup",
            Team::Workgroup => "workgroup",
        }
    }
}

/// What the choice of kernels depends on.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// Whether the adapter is a CPU: barriers are slow there, and loops may be cut short.
    pub software: bool,
    /// The smallest and largest subgroup, where the device has subgroup operations.
    pub subgroup: Option<(u32, u32)>,
    /// The most invocations of a workgroup.
    pub max_workgroup_size: u32,
    /// The most workgroups along one dimension of a dispatch.
    pub max_workgroups: u32,
    /// The most bytes of one storage binding.
    pub max_binding: u64,
    /// The most bytes of one buffer.
    pub max_buffer: u64,
    /// The device's name, for messages.
    pub device: String,
    /// Use this team wherever it is possible, whatever would be faster: for tests and experiments.
    pub forced: Option<Team>,
}

/// In what portions a member of a team takes what is its own, in fours of elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Blocks {
    /// Fours held at a time.
    pub held: u32,
    /// Fours that lie side by side; the team's next member has the next ones. A divisor of `held`.
    pub run: u32,
    /// Whether the team holds all of a row at once, and so reads it once.
    pub fits: bool,
}

impl Default for Blocks {
    fn default() -> Self {
        Blocks { held: 1, run: 1, fits: false }
    }
}

/// A team, the workgroups it comes in, and how its members walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Choice {
    pub team: Team,
    /// Invocations of a workgroup.
    pub workgroup_size: u32,
    /// The fewest teams a workgroup holds.
    pub teams_per_workgroup: u32,
    /// The fewest members a team has.
    pub team_size: u32,
    pub blocks: Blocks,
}

impl Facts {
    /// lavapipe 22.3 stops all loops of an invocation after 65,535 iterations, in silence. On
    /// software devices no invocation is given more than this.
    const SOFTWARE_ITERATIONS: u64 = 60_000;

    /// The team and its workgroup; a team that the device cannot have becomes the next one it can.
    fn choice(&self, team: Team) -> Choice {
        let blocks = self.blocks(4, false);
        match (team, self.subgroup) {
            (Team::Subgroup, Some((smallest, largest))) => {
                // One subgroup a workgroup keeps lavapipe from switching between them; on GPUs a
                // workgroup of several hides latency.
                let wanted = if self.software { largest } else { largest.max(128) };
                let size = wanted.min(self.max_workgroup_size);
                Choice {
                    team,
                    workgroup_size: size,
                    teams_per_workgroup: (size / largest).max(1),
                    team_size: smallest.min(size),
                    blocks,
                }
            }
            (Team::Invocation, _) => {
                let wanted = if self.software { 8 } else { 64 };
                let size = wanted.min(self.max_workgroup_size);
                Choice {
                    team,
                    workgroup_size: size,
                    teams_per_workgroup: size,
                    team_size: 1,
                    blocks,
                }
            }
            (Team::Subgroup | Team::Workgroup, _) => {
                let wanted = if self.software { 64 } else { 256 };
                // the tree needs a power of two
                let size = 1 << wanted.min(self.max_workgroup_size).ilog2();
                Choice {
                    team: Team::Workgroup,
                    workgroup_size: size,
                    teams_per_workgroup: 1,
                    team_size: size,
                    blocks,
                }
            }
        }
    }

    /// On GPUs neighbours read neighbouring fours. On a CPU each member of a team is a lane of one
    /// thread, and reads a line of its cache by itself: then eight lines are on their way at once.
    fn blocks(&self, held: u32, fits: bool) -> Blocks {
        let run = if self.software { held.min(4) } else { 1 };
        Blocks { held, run, fits }
    }

    /// As much of a row as a member holds: all that is its own, where that is little enough.
    fn blocks_of_row(&self, classes: u64, team_size: u32) -> Blocks {
        let sizes: &[u32] = match self.software {
            // 8 and 16 gain a tenth at 256 and 512 classes, and take minutes to compile for all ops
            true => &[1, 2, 3, 4],
            false => &[1, 2, 4, 8, 16],
        };
        let fours = classes.div_ceil(4 * u64::from(team_size));
        match sizes.iter().find(|&&size| u64::from(size) >= fours) {
            Some(&size) => self.blocks(size, true),
            None => self.blocks(4, false),
        }
    }

    /// Rows of `classes` classes that lie `positions` elements apart.
    ///
    /// Thresholds measured on lavapipe; those for GPUs are estimates until one has been measured.
    pub(crate) fn for_rows(&self, classes: u64, positions: u64) -> Choice {
        let choice = self.team_for_rows(classes, positions);
        Choice { blocks: self.blocks_of_row(classes, choice.team_size), ..choice }
    }

    fn team_for_rows(&self, classes: u64, positions: u64) -> Choice {
        if let Some(team) = self.forced {
            return self.choice(team);
        }
        // Strided classes are read by neighbouring invocations at neighbouring positions.
        let by_invocation = match (self.software, positions > 1) {
            (true, false) => 32,
            (true, true) => 1024,
            (false, false) => 16,
            (false, true) => 1024,
        };
        let by_subgroup = if self.software { u64::MAX } else { 1024 };
        let preferred = match classes {
            c if c <= by_invocation => Team::Invocation,
            c if c <= by_subgroup => Team::Subgroup,
            _ => Team::Workgroup,
        };
        let choice = self.choice(preferred);
        // Where no compiler unrolls them, loops over four elements: four of the statistics, and as many
        // for an output and a gradient.
        let most = Self::SOFTWARE_ITERATIONS / 2;
        if self.software && classes > most * u64::from(choice.team_size) {
            let members = classes.div_ceil(most).next_power_of_two().min(1 << 31) as u32;
            let choice = self.choice(Team::Workgroup);
            let size = members.clamp(choice.team_size, 1 << self.max_workgroup_size.ilog2());
            return Choice { workgroup_size: size, team_size: size, ..choice };
        }
        choice
    }

    /// Elements in a stretch per team: the choice and the elements each team takes.
    ///
    /// On lavapipe a subgroup that walks through a contiguous 32 KiB copies fastest.
    pub(crate) fn for_elements(&self) -> (Choice, u32) {
        let preferred = if self.software { Team::Subgroup } else { Team::Workgroup };
        let choice = self.choice(self.forced.unwrap_or(preferred));
        let per_member = if self.software { 1024 } else { 32 };
        (choice, per_member * choice.team_size)
    }

    /// Terms of a sum: the choice and the terms each team sums.
    pub(crate) fn for_sum(&self) -> (Choice, u32) {
        let preferred = if self.software { Team::Subgroup } else { Team::Workgroup };
        let choice = self.choice(self.forced.unwrap_or(preferred));
        (choice, 2048 * choice.team_size)
    }

    /// The most bytes of a tensor that one dispatch works on: what one binding holds, with room for
    /// its alignment, and no more than a slow device gets through before its driver loses patience.
    pub(crate) fn part_bytes(&self) -> u64 {
        const BUDGET: u64 = 1 << 30;
        self.max_binding.min(BUDGET).saturating_sub(ALIGNMENT).max(4)
    }

    /// How many lines of some tensors one dispatch works on, each tensor given by its name, the
    /// bytes from line to line and the bytes of one.
    pub(crate) fn lines_per_part(&self, tensors: &[(&'static str, [u64; 2])]) -> Result<u64> {
        let mut lines = u64::MAX;
        for &(argument, [stride, line]) in tensors {
            match self.part_bytes().checked_sub(line) {
                Some(rest) => lines = lines.min(rest / stride.max(1) + 1),
                None => {
                    self.expect_bindable(argument, line)?;
                    lines = 1;
                }
            }
        }
        Ok(lines)
    }

    /// Refuses what one binding cannot hold.
    pub(crate) fn expect_bindable(&self, argument: &'static str, bytes: u64) -> Result<()> {
        if bytes <= self.max_binding {
            return Ok(());
        }
        Err(Error::TooLarge {
            argument,
            bytes,
            limit: self.max_binding,
            limit_name: "max_storage_buffer_binding_size",
            device: self.device.clone(),
        })
    }

    /// Workgroups for so many teams, folded over two dimensions where one does not hold them.
    pub(crate) fn workgroups(&self, teams: u64, choice: Choice) -> Option<[u32; 3]> {
        let count = teams.div_ceil(choice.teams_per_workgroup.into());
        let most = u64::from(self.max_workgroups);
        let y = count.div_ceil(most).max(1);
        let x = count.div_ceil(y);
        (y <= most).then_some([x as u32, y as u32, 1])
    }
}
