//! Kernels: whole WGSL files joined into one text, an entry point and its constants.
//!
//! WGSL's module scope ignores order, so a list of files is all the linking there is: files of one
//! folder define the same functions, and a kernel takes one of each.

use std::fmt::Write;
use std::hash::{Hash, Hasher};

use crate::DType;
use crate::tuning::{Team, Tile};

/// A WGSL file: of `shaders/`, or a text of the caller's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct File {
    /// Its path below `shaders/`.
    pub(crate) path: &'static str,
    pub(crate) text: &'static str,
    /// Whether it is the crate's own, so that run-time checks can be done without.
    pub(crate) is_trusted: bool,
}

impl Hash for File {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // not 45 KB of text, for every kernel of every plan; equality goes by the text too
        self.path.hash(state);
    }
}

impl File {
    pub(crate) const fn trusted(path: &'static str, text: &'static str) -> Self {
        File { path, text, is_trusted: true }
    }

    /// WGSL text of the caller's own, which is compiled with run-time checks.
    pub const fn new(text: &'static str) -> Self {
        File { path: "(the caller's)", text, is_trusted: false }
    }

    #[doc(hidden)]
    pub fn path(&self) -> &'static str {
        self.path
    }

    #[doc(hidden)]
    pub fn text(&self) -> &'static str {
        self.text
    }

    /// Another text in its place: nobody's, and so with run-time checks.
    #[doc(hidden)]
    pub fn replaced(self, text: &'static str) -> Self {
        File { text, is_trusted: false, ..self }
    }
}

/// The file at a path below `shaders/`.
macro_rules! shader {
    ($path:expr) => {
        $crate::kernel::File::trusted(
            $path,
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $path)),
        )
    };
}
pub(crate) use shader;

pub(crate) const MATH: File = shader!("shared/math.wgsl");
pub(crate) const OFFSETS: File = shader!("shared/offsets.wgsl");
pub(crate) const CONTROL: File = shader!("shared/control.wgsl");
pub(crate) const CLASSES: File = shader!("shared/classes.wgsl");
pub(crate) const ROW_STATE: File = shader!("shared/row_state.wgsl");
pub(crate) const ROW_TILES: File = shader!("shared/row_tiles.wgsl");
pub(crate) const ROWS: File = shader!("family/rows.wgsl");
pub(crate) const ROW_MAPS: File = shader!("family/row_maps.wgsl");
pub(crate) const GATHER: File = shader!("family/gather.wgsl");
pub(crate) const ELEMENTS: File = shader!("family/elements.wgsl");
pub(crate) const SUM: File = shader!("family/sum.wgsl");
pub(crate) const STATUS: File = shader!("family/status.wgsl");
pub(crate) const PADDING: File = shader!("family/padding.wgsl");
pub(crate) const PRODUCT: File = shader!("family/product.wgsl");
pub(crate) const STORE: File = shader!("epilogue/store.wgsl");
pub(crate) const PARTIALS: File = shader!("epilogue/partials.wgsl");
pub(crate) const CONVERSIONS: File = shader!("family/conversions.wgsl");
pub(crate) const COLUMN_SUMS: File = shader!("family/column_sums.wgsl");
pub(crate) const TERMS_VALUES: File = shader!("terms/values.wgsl");
pub(crate) const TERMS_CLASS_WEIGHTS: File = shader!("terms/class_weights.wgsl");
/// How compilers know that class targets are the same for a whole team: by where they lie, which may
/// turn out otherwise ([`Kernel::with_read_write`]).
pub(crate) const UNIFORM: File = shader!("uniform/read_only.wgsl");

const CLUSTER: File = shader!("shared/cluster.wgsl");
const WORKGROUP: File = shader!("team/workgroup.wgsl");
const WORKGROUP_OF_SUBGROUPS: File = shader!("team/workgroup_of_subgroups.wgsl");

/// The shaders of a team, whose members reduce by shuffles in clusters of a subgroup, or not.
pub(crate) fn team(team: Team, has_cluster: bool) -> Vec<File> {
    match team {
        Team::Invocation => vec![shader!("team/invocation.wgsl")],
        Team::Subgroup => vec![shader!("team/subgroup.wgsl"), CLUSTER],
        Team::Workgroup if has_cluster => vec![WORKGROUP_OF_SUBGROUPS, CLUSTER],
        Team::Workgroup => vec![WORKGROUP],
    }
}

/// The shader of a team's tile of a product.
pub(crate) fn tile_of_product(team: Team) -> File {
    match team {
        Team::Invocation => shader!("product/invocation.wgsl"),
        Team::Subgroup => shader!("product/subgroup.wgsl"),
        Team::Workgroup => shader!("product/workgroup.wgsl"),
    }
}

/// The shader that merges what members of a tile know of its rows, where they are several.
pub(crate) fn rows_of_product(team: Team) -> Option<File> {
    match team {
        Team::Invocation => None,
        Team::Subgroup => Some(shader!("product_rows/subgroup.wgsl")),
        Team::Workgroup => Some(shader!("product_rows/workgroup.wgsl")),
    }
}

/// Where a kernel finds the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// In memory of its own.
    Apart,
    /// Where the gradient will be.
    InPlace,
    /// Nowhere: the pass does not read it.
    Unread,
}

impl Access {
    /// Of a pass that reads its input.
    pub fn of(in_place: bool) -> Self {
        if in_place { Access::InPlace } else { Access::Apart }
    }
}

/// The shaders of storage in a type, and of the input's memory: vec4s where every one of them is whole
/// and aligned.
pub(crate) fn storage(dtype: DType, vec4: bool, access: Access) -> Vec<File> {
    let access = match access {
        Access::Apart => shader!("access/apart.wgsl"),
        Access::InPlace => shader!("access/in_place.wgsl"),
        Access::Unread => shader!("access/unread.wgsl"),
    };
    let encoding = match dtype {
        DType::F16 => shader!("encoding/f16.wgsl"),
        DType::Bf16 => shader!("encoding/bf16.wgsl"),
        // ops take no other input
        DType::F32 | DType::I32 | DType::I64 | DType::F64 => {
            let words =
                if vec4 { shader!("storage/f32_vec4.wgsl") } else { shader!("storage/f32.wgsl") };
            return vec![words, access];
        }
    };
    let words = if vec4 { shader!("storage/half_vec4.wgsl") } else { shader!("storage/half.wgsl") };
    vec![words, access, encoding]
}

/// The shader of an upstream gradient: a tensor of the losses' shape where they are not reduced, one
/// value where they are, or none.
pub(crate) fn upstream(is_given: bool, is_reduced: bool) -> File {
    match (is_given, is_reduced) {
        (false, _) => shader!("upstream/none.wgsl"),
        (true, false) => shader!("upstream/tensor.wgsl"),
        (true, true) => shader!("upstream/scalar.wgsl"),
    }
}

/// The shader of what element-wise ops write: losses, or a map's output.
pub(crate) fn results(losses: bool) -> File {
    if losses { shader!("results/losses.wgsl") } else { shader!("results/outputs.wgsl") }
}

/// The shader that tells which elements an op does not take.
pub(crate) fn check_elements(unit_interval: bool) -> File {
    if unit_interval { shader!("checks/unit_interval.wgsl") } else { shader!("checks/none.wgsl") }
}

/// A number that a kernel's text has as a constant: sizes of arrays, which no `override` can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Define {
    /// A `u32`.
    Number(u32),
    /// A `bool`.
    Switch(bool),
}

/// How a member walks a row or a chunk, as the kernel's text has it.
pub(crate) fn tile(tile: Tile) -> Vec<(&'static str, Define)> {
    vec![
        ("TILE_VEC4S", Define::Number(tile.vec4s)),
        ("CONTIGUOUS_VEC4S", Define::Number(tile.contiguous)),
        ("ROW_IN_REGISTERS", Define::Switch(tile.whole_row)),
    ]
}

/// A kernel: what a pipeline is made of, and the key under which it is cached.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// For labels: `cross_entropy.forward.f32.subgroup`.
    pub label: String,
    pub files: Vec<File>,
    pub entry_point: &'static str,
    /// Values of `override` declarations.
    pub constants: Vec<(&'static str, u32)>,
    /// Constants that stand in the text.
    pub defines: Vec<(&'static str, Define)>,
    /// A bit for each binding that is only read, but lies in a buffer that the dispatch writes to:
    /// it is declared `read_write`, since a dispatch may use a buffer in one way only. Set by
    /// [`Kernel::with_read_write`].
    pub read_write: u16,
}

impl Kernel {
    /// The bindings of class targets and class weights, as bits.
    const TARGETS: u16 = 1 << 2 | 1 << 3;

    /// The kernel for these [`Kernel::read_write`] bindings. Where class targets are among them, a
    /// workgroup's compiler must be told that they are the same for all members.
    pub fn with_read_write(&self, read_write: u16) -> Kernel {
        let mut files = self.files.clone();
        let has_barriers = |file: &File| *file == WORKGROUP || *file == WORKGROUP_OF_SUBGROUPS;
        if read_write & Self::TARGETS != 0 && files.iter().any(has_barriers) {
            for file in files.iter_mut().filter(|file| **file == UNIFORM) {
                *file = shader!("uniform/broadcast.wgsl");
            }
        }
        Kernel { files, read_write, ..self.clone() }
    }

    /// Whether all of its text is the crate's own, whose bounds are known to hold.
    pub fn is_trusted(&self) -> bool {
        self.files.iter().all(|file| file.is_trusted)
    }

    /// The joined text for browsers. WGSL asks for a line that enables subgroups, which naga does not
    /// take yet; so natively they are enabled by the device's features alone. The other line takes
    /// shuffles out of the proof that all invocations come to them, since what control flow depends on
    /// is the same for a cluster, but not for a subgroup of several.
    pub fn source_for_browsers(&self) -> String {
        const SUBGROUPS: &str = "enable subgroups;\ndiagnostic(off, subgroup_uniformity);\n";
        let directives = if self.files.contains(&CLUSTER) { SUBGROUPS } else { "" };
        [directives, &self.source()].concat()
    }

    /// The joined text. Each part's start is marked, so that a compiler's line can be found.
    pub fn source(&self) -> String {
        let mut source = String::new();
        for (name, value) in &self.defines {
            let _ = match value {
                Define::Number(number) => writeln!(source, "const {name}: u32 = {number}u;"),
                Define::Switch(on) => writeln!(source, "const {name}: bool = {on};"),
            };
        }
        for file in &self.files {
            let _ = writeln!(source, "// ---- shaders/{}\n{}", file.path, file.text);
        }
        for binding in (0..u16::BITS).filter(|binding| self.read_write >> binding & 1 != 0) {
            let declared = |access| format!("@binding({binding}) var<storage, {access}>");
            source = source.replace(&declared("read"), &declared("read_write"));
        }
        source
    }
}
