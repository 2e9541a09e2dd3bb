//! Which kernel for which shape on which device: pure functions, tested without a GPU.
//!
//! Kernels are written for *teams*: the invocations that share one row, or one chunk of elements
//! (Kokkos and OpenMP use the word likewise). What a class of devices does best is a table here;
//! what a device can do at most is in `limits`.

use crate::limits::Limits;
use crate::shape::ClassShape;
use crate::{Error, Result};

/// Who shares one row, or one chunk of elements (`shaders/team`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Team {
    /// One invocation: for few classes.
    Invocation,
    /// A subgroup, or a cluster of one, which needs no barrier.
    Subgroup,
    /// One workgroup, with barriers: for long rows on hardware GPUs.
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
struct Tuning {
    /// Rows of at most this many classes are taken by one invocation each, because a team would
    /// leave most of its members idle.
    max_classes_by_invocation: u64,
    /// The same for classes that lie apart (`[N, C, d1, ...]`), where neighbouring invocations read
    /// neighbouring positions.
    max_strided_classes_by_invocation: u64,
    /// Rows of at most this many classes are taken by a subgroup each; longer ones by a workgroup.
    max_classes_by_subgroup: u64,
    /// Every member repeats the per-row work, so give each at least this many classes.
    min_classes_per_member: u64,
    /// Register-tile sizes in vec4s per member, ascending: the smallest that covers the member's
    /// share keeps the row in registers; if none does, the largest is used and the row is read twice.
    tile_vec4s: &'static [u32],
    /// How many vec4s one member reads side by side.
    contiguous_vec4s: u32,
    /// A team takes several rows, one after the other, until each of its members has this many
    /// elements.
    row_elements_per_member: u64,
    /// How many teams keep the device busy. Where there are fewer rows than this, several teams
    /// split each row.
    busy_teams: u64,
    /// No split of a row has fewer classes than this.
    min_classes_per_split: u64,
    /// Who takes a chunk of elements, or of the terms of a sum.
    elements_team: Team,
    /// How many elements each member of such a team takes.
    elements_per_member: u32,
    /// How many terms of a sum each takes: a multiple of 32. Sums of more terms than a team may take
    /// need another dispatch.
    terms_per_member: u32,
    /// Invocations of a workgroup, by team. A workgroup of subgroups has at least one of them.
    invocation_workgroup: u32,
    subgroup_workgroup: u32,
    workgroup_workgroup: u32,
}

/// Estimates: no such device has been measured. Neighbouring members read neighbouring vec4s, and a
/// member keeps at most 64 numbers in registers, so that a workgroup of 256 keeps 16,384 classes.
const DISCRETE: Tuning = Tuning {
    max_classes_by_invocation: 16,
    max_strided_classes_by_invocation: 1024,
    max_classes_by_subgroup: 1024,
    // 512 classes: 53 instructions an element with 16 each, 41 with 32 (DESIGN.md, "Tiles")
    min_classes_per_member: 32,
    tile_vec4s: &[1, 2, 4, 8, 16],
    contiguous_vec4s: 1,
    row_elements_per_member: 0,
    busy_teams: 512,
    min_classes_per_split: 8192,
    elements_team: Team::Workgroup,
    elements_per_member: 32,
    // 32 loads one after the other take some 20 us, and another dispatch a few
    terms_per_member: 128,
    invocation_workgroup: 64,
    subgroup_workgroup: 128,
    workgroup_workgroup: 256,
};

/// Estimates, as for discrete ones, with fewer registers and subgroups of eight.
const INTEGRATED: Tuning =
    Tuning { max_classes_by_subgroup: 256, tile_vec4s: &[1, 2, 4, 8], busy_teams: 64, ..DISCRETE };

/// Measured on lavapipe 22.3 (2 cores): cross entropy, forward and backward, f32.
const SOFTWARE: Tuning = Tuning {
    // 65536 x 20: 4.4 ms by two members of a subgroup, 5.3 by an invocation
    max_classes_by_invocation: 16,
    // so that eight positions share each cache line
    max_strided_classes_by_invocation: 1024,
    // barriers cost a factor of up to 80
    max_classes_by_subgroup: u64::MAX,
    // 65536 x 32: 5.5 ms with 16, 6.3 with 8 or with all members of a subgroup
    min_classes_per_member: 16,
    // 8 and 16 gain a tenth at 256 and 512 classes, 32 loses as much at 1000 (spills), and all of them
    // take minutes to compile for all ops
    tile_vec4s: &[1, 2, 3, 4],
    // A lane reads a whole cache line, so that eight lines are on their way at once: 512 x 32000 is
    // read in 7 ms, and in 13 where neighbouring lanes read neighbouring vec4s.
    contiguous_vec4s: 4,
    // each workgroup is an allocation there
    row_elements_per_member: 256,
    // 1 x 2,000,000: 4 ms instead of 15; 8 x 128,256 gains nothing more
    busy_teams: 8,
    min_classes_per_split: 16_384,
    elements_team: Team::Subgroup,
    // contiguous 32 KiB a subgroup copy fastest
    elements_per_member: 1024,
    // another dispatch takes 3 us
    terms_per_member: 2048,
    invocation_workgroup: 8,
    // one subgroup a workgroup: lavapipe switches between several
    subgroup_workgroup: 1,
    workgroup_workgroup: 64,
};

/// What the choice of kernels depends on.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceProfile {
    /// What kind of device it is. On software barriers are slow, and loops may be cut short.
    pub class: DeviceClass,
    /// The smallest and largest subgroup, where the device has subgroup operations.
    pub subgroup: Option<(u32, u32)>,
    /// The most invocations of a workgroup.
    pub max_workgroup_size: u32,
    /// Use this team wherever it is possible, whatever would be faster: for tests and experiments.
    pub team_override: Option<Team>,
    /// Whether kernels keep run-time checks, whose counters keep compilers from unrolling loops.
    pub runtime_checks: bool,
    /// What programs are cut to.
    pub limits: Limits,
}

/// A team and the workgroups it comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    pub team: Team,
    /// Invocations of a workgroup.
    pub workgroup_size: u32,
    /// Members of one team; a divisor of the workgroup's size.
    pub team_size: u32,
    /// How many members reduce together by shuffles: a cluster of a subgroup.
    pub cluster: Option<u32>,
}

impl Launch {
    pub fn teams_per_workgroup(&self) -> u32 {
        self.workgroup_size / self.team_size
    }
}

/// What a member of a team keeps in registers at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tile {
    pub vec4s: u32,
    /// How many of them lie side by side; the team's next member has the next ones. A divisor of
    /// `vec4s`.
    pub contiguous: u32,
    /// Whether the tiles of a team hold all of a row, which is so read once.
    pub whole_row: bool,
}

/// How rows are given to teams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowLaunch {
    pub launch: Launch,
    pub tile: Tile,
    /// How many rows a team takes, one after the other.
    pub rows_per_team: u32,
    /// Or how many teams split a row, and how many classes each of them takes: whole tiles.
    pub splits: u32,
    pub classes_per_split: u32,
}

impl RowLaunch {
    /// Teams for so many rows.
    pub fn teams(&self, rows: u64) -> u64 {
        rows.div_ceil(self.rows_per_team.into()) * u64::from(self.splits)
    }
}

/// How elements, or terms of a sum, are given to teams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ElementLaunch {
    pub launch: Launch,
    pub tile: Tile,
    /// How many elements each team takes.
    pub per_team: u32,
}

/// How tiles of products are given to teams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProductLaunch {
    pub launch: Launch,
    /// The tile that a team computes (`shaders/product`).
    pub rows: u32,
    pub columns: u32,
    /// The most terms that one dispatch adds: a multiple of 4.
    pub max_terms: u64,
    /// The most bytes in f32 of the part of the projection that one dispatch works on.
    pub max_projection_bytes: u64,
}

impl DeviceProfile {
    /// lavapipe 22.3 stops all loops of an invocation after 65,535 iterations, in silence. On
    /// software devices no invocation is given more than this.
    const SOFTWARE_ITERATIONS: u64 = 60_000;

    /// The most rows that a team takes. What its members reduce of each are loops too: up to 64
    /// iterations.
    const MAX_ROWS_PER_TEAM: u64 = 256;

    /// The most classes that a member of a forced team can take. Where loops over four elements are
    /// unrolled, sixteen classes are up to eleven iterations: one of the statistics, one of an output or
    /// a gradient, and two times four for what reads the row again; where not, two each.
    fn max_classes_per_member(&self) -> u64 {
        match (self.class, self.runtime_checks) {
            (DeviceClass::Software, true) => Self::SOFTWARE_ITERATIONS / 2,
            (DeviceClass::Software, false) => Self::SOFTWARE_ITERATIONS * 3 / 2,
            _ => u64::MAX,
        }
    }

    fn tuning(&self) -> &'static Tuning {
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

    /// A team of this kind, of this size in workgroups of that.
    fn sized(&self, team: Team, workgroup_size: u32, team_size: u32) -> Launch {
        let cluster = match team {
            Team::Invocation => None,
            Team::Subgroup => Some(team_size),
            Team::Workgroup => self.subgroup.map(|(smallest, _)| smallest.min(team_size)),
        };
        Launch { team, workgroup_size, team_size, cluster }
    }

    /// The team in its largest size; a team that the device cannot have becomes the next one it can.
    fn launch(&self, team: Team) -> Launch {
        let tuning = self.tuning();
        match (team, self.subgroup) {
            (Team::Subgroup, Some((smallest, largest))) => {
                let most = largest.max(tuning.subgroup_workgroup).min(self.max_workgroup_size);
                let size = 1 << most.ilog2();
                self.sized(team, size, smallest.min(size))
            }
            // barriers cost more there than members that idle
            (Team::Subgroup, None) if self.is_software() => self.launch(Team::Invocation),
            (Team::Invocation, _) => {
                let size = tuning.invocation_workgroup.min(self.max_workgroup_size);
                self.sized(team, size, 1)
            }
            (Team::Subgroup | Team::Workgroup, _) => {
                // the tree needs a power of two
                let most = tuning.workgroup_workgroup.min(self.max_workgroup_size);
                let size = 1 << most.ilog2();
                self.sized(Team::Workgroup, size, size)
            }
        }
    }

    fn tile(&self, vec4s: u32, whole_row: bool) -> Tile {
        Tile { vec4s, contiguous: vec4s.min(self.tuning().contiguous_vec4s), whole_row }
    }

    /// As much of a row as a member keeps: its whole part, where that is little enough.
    fn tile_of_row(&self, classes: u64, team_size: u32) -> Tile {
        let needed = classes.div_ceil(4 * u64::from(team_size));
        let sizes = self.tuning().tile_vec4s;
        match sizes.iter().find(|&&vec4s| u64::from(vec4s) >= needed) {
            Some(&vec4s) => self.tile(vec4s, true),
            None => self.tile(sizes[sizes.len() - 1], false),
        }
    }

    /// Rows, each by one team.
    ///
    /// # Errors
    /// [`Error::Value`] where rows are too long for a team that is forced.
    pub fn for_rows(&self, shape: ClassShape) -> Result<RowLaunch> {
        // so many teams at least, before any takes several rows
        const TEAMS: u64 = 256;
        let classes = shape.classes as u64;
        let launch = self.team_for_rows(classes, shape.positions as u64);
        let most = self.max_classes_per_member().saturating_mul(launch.team_size.into());
        if classes > most {
            let (team, device) = (launch.team.name(), &self.limits.device);
            return Err(Error::Value {
                argument: "input",
                expected: format!("at most {most} classes for team {team} on {device}"),
                actual: classes.to_string(),
            });
        }
        let elements = self.tuning().row_elements_per_member * u64::from(launch.team_size);
        let rows_per_team = match shape.positions {
            0 | 1 => {
                let most = (shape.rows() as u64 / TEAMS).min(Self::MAX_ROWS_PER_TEAM);
                (elements / classes.max(1)).min(most).max(1)
            }
            // neighbouring positions are left to neighbouring invocations
            _ => 1,
        };
        Ok(RowLaunch {
            launch,
            tile: self.tile_of_row(classes, launch.team_size),
            rows_per_team: rows_per_team as u32,
            splits: 1,
            classes_per_split: shape.classes as u32,
        })
    }

    /// Rows that are too few and too long for that, or too long for a team that is forced, each split
    /// among several teams.
    pub fn for_split_rows(&self, shape: ClassShape) -> Option<RowLaunch> {
        let tuning = self.tuning();
        let classes = shape.classes as u64;
        let wanted = tuning.busy_teams / (shape.rows() as u64).max(1);
        let least = self.team_override.map_or(1, |team| {
            let members = u64::from(self.launch(team).team_size);
            classes.div_ceil(self.max_classes_per_member().saturating_mul(members))
        });
        let splits = wanted.min(classes / tuning.min_classes_per_split).max(least);
        if shape.positions > 1 || splits < 2 {
            return None;
        }
        let launch = self.team_for_rows(classes.div_ceil(splits), 1);
        let tile = self.tile(4, false);
        let tile_classes = u64::from(4 * tile.vec4s * launch.team_size);
        let classes_per_split = classes.div_ceil(splits).next_multiple_of(tile_classes);
        let splits = classes.div_ceil(classes_per_split) as u32;
        let classes_per_split = classes_per_split as u32;
        (splits > 1).then_some(RowLaunch {
            launch,
            tile,
            rows_per_team: 1,
            splits,
            classes_per_split,
        })
    }

    /// The most partials that one invocation merges, beside what else it does.
    pub fn max_merges(&self) -> u64 {
        if self.is_software() { Self::SOFTWARE_ITERATIONS / 4 } else { 1 << 31 }
    }

    /// Rows of which only partials are read, each by one invocation.
    pub fn for_merges(&self, shape: ClassShape) -> RowLaunch {
        let tuning = self.tuning();
        let size = tuning.invocation_workgroup.min(self.max_workgroup_size);
        RowLaunch {
            launch: self.sized(Team::Invocation, size, 1),
            tile: self.tile(1, false),
            rows_per_team: 1,
            splits: 1,
            classes_per_split: shape.classes as u32,
        }
    }

    fn team_for_rows(&self, classes: u64, positions: u64) -> Launch {
        let launch = self.whole_team_for_rows(classes, positions);
        let members = classes.div_ceil(self.tuning().min_classes_per_member).next_power_of_two();
        let most = launch.team_size;
        match launch.team {
            Team::Invocation => launch,
            Team::Subgroup => {
                let size = members.min(most.into()) as u32;
                self.sized(Team::Subgroup, launch.workgroup_size, size)
            }
            Team::Workgroup => {
                // whole subgroups
                let least = self.subgroup.map_or(64, |(_, largest)| largest).min(most);
                let size = members.clamp(least.into(), most.into()) as u32;
                self.sized(Team::Workgroup, size, size)
            }
        }
    }

    fn whole_team_for_rows(&self, classes: u64, positions: u64) -> Launch {
        let tuning = self.tuning();
        let by_invocation = match positions {
            0 | 1 => tuning.max_classes_by_invocation,
            _ => tuning.max_strided_classes_by_invocation,
        };
        let preferred = match classes {
            c if c <= by_invocation => Team::Invocation,
            c if c <= tuning.max_classes_by_subgroup => Team::Subgroup,
            _ => Team::Workgroup,
        };
        let launch = self.launch(self.team_override.unwrap_or(preferred));
        // what is forced is only made larger
        let is_free = self.team_override.is_none_or(|team| team == Team::Workgroup);
        // Where no compiler unrolls them, loops over four elements count too: four of the statistics,
        // and as many for an output and a gradient.
        let most = Self::SOFTWARE_ITERATIONS / 2;
        if is_free && self.is_software() && classes > most * u64::from(launch.team_size) {
            let members = classes.div_ceil(most).next_power_of_two().min(1 << 31) as u32;
            let least = self.launch(Team::Workgroup).team_size;
            let size = members.clamp(least, 1 << self.max_workgroup_size.ilog2());
            return self.sized(Team::Workgroup, size, size);
        }
        launch
    }

    /// Tiles of products: by clusters of eight on software, which has caches and no use for workgroup memory;
    /// by workgroups on hardware.
    pub fn for_products(&self) -> ProductLaunch {
        const MEMBERS: u32 = 8;
        let has_clusters = self.subgroup.is_some_and(|(smallest, _)| smallest >= MEMBERS);
        let preferred = if self.is_software() { Team::Subgroup } else { Team::Workgroup };
        let (launch, rows, columns) = match self.team_override.unwrap_or(preferred) {
            Team::Subgroup if has_clusters => {
                let workgroup_size = self.launch(Team::Subgroup).workgroup_size.max(MEMBERS);
                (self.sized(Team::Subgroup, workgroup_size, MEMBERS), 32, 64)
            }
            Team::Workgroup if self.tile_side() > 0 => {
                let side = self.tile_side();
                let size = side * side;
                let launch = Launch { cluster: None, ..self.sized(Team::Workgroup, size, size) };
                (launch, 8 * side, 8 * side)
            }
            _ => (self.launch(Team::Invocation), 4, 4),
        };
        // How many iterations four terms are: one where a cluster's or an invocation's loops over them are
        // unrolled, and up to 170 where not; and eight terms of a workgroup, whose loops are not, up to 200.
        let max_terms = match launch.team {
            _ if !self.is_software() => 1 << 31,
            Team::Workgroup => 2048,
            Team::Invocation | Team::Subgroup if self.runtime_checks => 1024,
            Team::Invocation | Team::Subgroup => Self::SOFTWARE_ITERATIONS,
        };
        let max_projection_bytes = if self.is_software() { 4 << 20 } else { 1 << 30 };
        ProductLaunch { launch, rows, columns, max_terms, max_projection_bytes }
    }

    /// The members along a side of a workgroup's tile of a product, which takes 512 bytes of workgroup memory for
    /// each of them; 0 where there is not enough.
    fn tile_side(&self) -> u32 {
        let fits = |side: &u32| {
            side * side <= self.max_workgroup_size && 512 * side <= self.limits.max_workgroup_memory
        };
        [16, 8, 4, 2, 1].into_iter().find(fits).unwrap_or(0)
    }

    /// Elements, in chunks for each team.
    pub fn for_elements(&self) -> ElementLaunch {
        self.by_members(self.tuning().elements_per_member)
    }

    /// Terms of a sum, in chunks for each team.
    pub fn for_sum(&self) -> ElementLaunch {
        self.by_members(self.tuning().terms_per_member)
    }

    fn by_members(&self, per_member: u32) -> ElementLaunch {
        let launch = self.launch(self.team_override.unwrap_or(self.tuning().elements_team));
        ElementLaunch { launch, tile: self.tile(4, false), per_team: per_member * launch.team_size }
    }
}
