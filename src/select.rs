//! Which kernel for which shape on which device: pure functions, tested without a GPU.

use crate::shape::{ALIGNMENT, ClassShape};
use crate::{Error, Result};

/// Who shares one row, or one stretch of elements (`shaders/team`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Team {
    /// One invocation: for few classes.
    Invocation,
    /// A subgroup, or neighbours in one, who need no barrier.
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

/// What kinds of devices there are for the choice of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceClass {
    /// With memory of its own.
    Discrete,
    /// With the host's memory.
    Integrated,
    /// The host's own cores.
    Software,
}

/// What a class of devices does best.
struct Table {
    /// Up to so many classes, one invocation takes a row.
    rows_by_invocation: u64,
    /// The same of classes that lie apart: neighbours then read neighbouring positions.
    strided_rows_by_invocation: u64,
    /// Up to so many classes, a subgroup takes a row; from there on, a workgroup.
    rows_by_subgroup: u64,
    /// Classes of a row for each member of its team at least, whatever the team: what is done once a
    /// row, each does.
    classes_each: u64,
    /// How many fours of a row's elements a member can hold: the first of these that is enough for its
    /// part of the row; or the last, and the row is read in blocks, and again for the gradient.
    held: &'static [u32],
    /// How many fours side by side one member reads.
    run: u32,
    /// Elements of rows for each member of a team, which takes as many rows as that.
    row_elements_each: u64,
    /// Teams that keep the device busy: rows that are fewer are shared out, but no share has fewer
    /// classes than this.
    busy_teams: u64,
    share: u64,
    /// Who takes a stretch of elements or of terms of a sum.
    elements_by: Team,
    /// Elements for each member of such a team.
    elements_each: u32,
    /// Terms of a sum for each: a multiple of 32. One team sums as many as it may, and more take
    /// another dispatch.
    terms_each: u32,
    /// Invocations of a workgroup, by team. Subgroups: at least one.
    by_invocation: u32,
    by_subgroup: u32,
    by_workgroup: u32,
}

/// Estimates: no such device has been measured. A member reads neighbours of its neighbours' fours,
/// holds at most 64 numbers, and a workgroup of 256 so up to 16,384 classes.
const DISCRETE: Table = Table {
    rows_by_invocation: 16,
    strided_rows_by_invocation: 1024,
    rows_by_subgroup: 1024,
    // 512 classes: 53 instructions an element with 16 each, 41 with 32 (DESIGN.md, "Blocks")
    classes_each: 32,
    held: &[1, 2, 4, 8, 16],
    run: 1,
    row_elements_each: 0,
    busy_teams: 512,
    share: 8192,
    elements_by: Team::Workgroup,
    elements_each: 32,
    // 32 loads one after the other, some 20 us; another dispatch takes a few
    terms_each: 128,
    by_invocation: 64,
    by_subgroup: 128,
    by_workgroup: 256,
};

/// Estimates, as for discrete ones, with fewer registers and subgroups of eight.
const INTEGRATED: Table =
    Table { rows_by_subgroup: 256, held: &[1, 2, 4, 8], busy_teams: 64, ..DISCRETE };

/// Measured on lavapipe 22.3 (2 cores): cross entropy, forward and backward, f32.
const SOFTWARE: Table = Table {
    // 65536 x 20: 4.4 ms by two members of a subgroup, 5.3 by an invocation
    rows_by_invocation: 16,
    // so that eight positions share each cache line
    strided_rows_by_invocation: 1024,
    // barriers cost a factor of up to 80
    rows_by_subgroup: u64::MAX,
    // 65536 x 32: 5.5 ms with 16, 6.3 with 8 or with all members of a subgroup
    classes_each: 16,
    // 8 and 16 gain a tenth at 256 and 512 classes, 32 loses as much at 1000 (spills), and all of them
    // take minutes to compile for all ops
    held: &[1, 2, 3, 4],
    // A cache line a lane, eight on their way at once: 512 x 32000 read in 7 ms, 13 with neighbours on
    // neighbouring fours.
    run: 4,
    // each workgroup is an allocation there
    row_elements_each: 256,
    // 1 x 2,000,000: 4 ms instead of 15; 8 x 128,256 gains nothing more
    busy_teams: 8,
    share: 16_384,
    elements_by: Team::Subgroup,
    // contiguous 32 KiB a subgroup copy fastest
    elements_each: 1024,
    // another dispatch takes 3 us
    terms_each: 2048,
    by_invocation: 8,
    // one a workgroup: lavapipe switches between several
    by_subgroup: 1,
    by_workgroup: 64,
};

/// What the choice of kernels depends on.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// What kind of device it is. On software barriers are slow, and loops may be cut short.
    pub class: DeviceClass,
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
pub struct Blocks {
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
    /// Of one team; a divisor of the workgroup's.
    pub team_size: u32,
    pub blocks: Blocks,
}

impl Choice {
    pub fn teams_per_workgroup(&self) -> u32 {
        self.workgroup_size / self.team_size
    }
}

/// How rows are given to teams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rows {
    pub choice: Choice,
    /// How many rows a team takes, one after the other.
    pub each: u32,
    /// Or how many teams take a row together, and how many classes each.
    pub shares: u32,
    pub share: u32,
}

impl Rows {
    /// Teams for so many rows.
    pub fn teams(&self, rows: u64) -> u64 {
        rows.div_ceil(self.each.into()) * u64::from(self.shares)
    }
}

impl Facts {
    /// lavapipe 22.3 stops all loops of an invocation after 65,535 iterations, in silence. On
    /// software devices no invocation is given more than this.
    const SOFTWARE_ITERATIONS: u64 = 60_000;

    /// The most rows that a team takes. What its members exchange of each are loops too: up to 64
    /// iterations.
    const ROWS_EACH: u64 = 256;

    fn table(&self) -> &'static Table {
        match self.class {
            DeviceClass::Discrete => &DISCRETE,
            DeviceClass::Integrated => &INTEGRATED,
            DeviceClass::Software => &SOFTWARE,
        }
    }

    /// Whether the adapter is a CPU.
    pub fn is_software(&self) -> bool {
        self.class == DeviceClass::Software
    }

    /// The team and its workgroup; a team that the device cannot have becomes the next one it can.
    fn choice(&self, team: Team) -> Choice {
        let blocks = self.blocks(4, false);
        match (team, self.subgroup) {
            (Team::Subgroup, Some((smallest, largest))) => {
                let most = largest.max(self.table().by_subgroup).min(self.max_workgroup_size);
                let size = 1 << most.ilog2();
                Choice { team, workgroup_size: size, team_size: smallest.min(size), blocks }
            }
            (Team::Invocation, _) => {
                let size = self.table().by_invocation.min(self.max_workgroup_size);
                Choice { team, workgroup_size: size, team_size: 1, blocks }
            }
            (Team::Subgroup | Team::Workgroup, _) => {
                // the tree needs a power of two
                let most = self.table().by_workgroup.min(self.max_workgroup_size);
                let size = 1 << most.ilog2();
                Choice { team: Team::Workgroup, workgroup_size: size, team_size: size, blocks }
            }
        }
    }

    /// How many of a team's members, as neighbours in a subgroup, exchange by shuffles.
    pub(crate) fn neighbours(&self, choice: Choice) -> Option<u32> {
        match choice.team {
            Team::Invocation => None,
            Team::Subgroup => Some(choice.team_size),
            Team::Workgroup => self.subgroup.map(|(smallest, _)| smallest.min(choice.team_size)),
        }
    }

    fn blocks(&self, held: u32, fits: bool) -> Blocks {
        Blocks { held, run: held.min(self.table().run), fits }
    }

    /// As much of a row as a member holds: all that is its own, where that is little enough.
    fn blocks_of_row(&self, classes: u64, team_size: u32) -> Blocks {
        let fours = classes.div_ceil(4 * u64::from(team_size));
        let held = self.table().held;
        match held.iter().find(|&&held| u64::from(held) >= fours) {
            Some(&held) => self.blocks(held, true),
            None => self.blocks(held[held.len() - 1], false),
        }
    }

    /// Rows, each by one team.
    pub(crate) fn for_rows(&self, shape: ClassShape) -> Rows {
        // so many teams at least, before any takes several rows
        const TEAMS: u64 = 256;
        let classes = shape.classes as u64;
        let choice = self.team_for_rows(classes, shape.positions as u64);
        let elements = self.table().row_elements_each * u64::from(choice.team_size);
        let each = match shape.positions {
            0 | 1 => {
                let most = (shape.rows() as u64 / TEAMS).min(Self::ROWS_EACH);
                (elements / classes.max(1)).min(most).max(1)
            }
            // neighbouring positions are left to neighbours
            _ => 1,
        };
        let choice = Choice { blocks: self.blocks_of_row(classes, choice.team_size), ..choice };
        Rows { choice, each: each as u32, shares: 1, share: shape.classes as u32 }
    }

    /// Rows that are too few and too long for that, each by several teams.
    pub(crate) fn for_shared_rows(&self, shape: ClassShape) -> Option<Rows> {
        let table = self.table();
        let classes = shape.classes as u64;
        let wanted = table.busy_teams / (shape.rows() as u64).max(1);
        let shares = wanted.min(classes / table.share);
        if shape.positions > 1 || shares < 2 {
            return None;
        }
        let choice = self.team_for_rows(classes.div_ceil(shares), 1);
        let block = u64::from(4 * choice.blocks.held * choice.team_size);
        let share = classes.div_ceil(shares).next_multiple_of(block);
        let shares = classes.div_ceil(share) as u32;
        (shares > 1).then_some(Rows { choice, each: 1, shares, share: share as u32 })
    }

    fn team_for_rows(&self, classes: u64, positions: u64) -> Choice {
        let choice = self.whole_team_for_rows(classes, positions);
        let members = classes.div_ceil(self.table().classes_each).next_power_of_two();
        let most = choice.team_size;
        match choice.team {
            Team::Invocation => choice,
            Team::Subgroup => Choice { team_size: members.min(most.into()) as u32, ..choice },
            Team::Workgroup => {
                // whole subgroups
                let least = self.subgroup.map_or(64, |(_, largest)| largest).min(most);
                let size = members.clamp(least.into(), most.into()) as u32;
                Choice { workgroup_size: size, team_size: size, ..choice }
            }
        }
    }

    fn whole_team_for_rows(&self, classes: u64, positions: u64) -> Choice {
        let table = self.table();
        let by_invocation = match positions {
            0 | 1 => table.rows_by_invocation,
            _ => table.strided_rows_by_invocation,
        };
        let preferred = match classes {
            c if c <= by_invocation => Team::Invocation,
            c if c <= table.rows_by_subgroup => Team::Subgroup,
            _ => Team::Workgroup,
        };
        let choice = self.choice(self.forced.unwrap_or(preferred));
        // Where no compiler unrolls them, loops over four elements: four of the statistics, and as many
        // for an output and a gradient.
        let most = Self::SOFTWARE_ITERATIONS / 2;
        if self.is_software() && classes > most * u64::from(choice.team_size) {
            let members = classes.div_ceil(most).next_power_of_two().min(1 << 31) as u32;
            let choice = self.choice(Team::Workgroup);
            let size = members.clamp(choice.team_size, 1 << self.max_workgroup_size.ilog2());
            return Choice { workgroup_size: size, team_size: size, ..choice };
        }
        choice
    }

    /// Elements in a stretch per team: the choice and the elements each team takes.
    pub(crate) fn for_elements(&self) -> (Choice, u32) {
        let choice = self.choice(self.forced.unwrap_or(self.table().elements_by));
        (choice, self.table().elements_each * choice.team_size)
    }

    /// Terms of a sum: the choice and the terms each team sums.
    pub(crate) fn for_sum(&self) -> (Choice, u32) {
        let choice = self.choice(self.forced.unwrap_or(self.table().elements_by));
        (choice, self.table().terms_each * choice.team_size)
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
        let count = teams.div_ceil(choice.teams_per_workgroup().into());
        let most = u64::from(self.max_workgroups);
        let y = count.div_ceil(most).max(1);
        let x = count.div_ceil(y);
        (y <= most).then_some([x as u32, y as u32, 1])
    }
}
