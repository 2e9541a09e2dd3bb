//! Kernels: whole WGSL files joined into one text, an entry point and its constants.
//!
//! WGSL's module scope ignores order, so a list of files is all the linking there is: files of one
//! folder define the same functions, and a kernel takes one of each.

use std::fmt::Write;
use std::hash::{Hash, Hasher};

use crate::DType;
use crate::args::Memory;
use crate::select::Blocks;

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
pub(crate) const PLACES: File = shader!("shared/places.wgsl");
pub(crate) const CONTROL: File = shader!("shared/control.wgsl");
pub(crate) const CLASSES: File = shader!("shared/classes.wgsl");
pub(crate) const ROW_FORM: File = shader!("shared/row_form.wgsl");
pub(crate) const ROWS: File = shader!("family/rows.wgsl");
pub(crate) const ROW_MAPS: File = shader!("family/row_maps.wgsl");
pub(crate) const PICKED: File = shader!("family/picked.wgsl");
pub(crate) const ELEMENTS: File = shader!("family/elements.wgsl");
pub(crate) const SUM: File = shader!("family/sum.wgsl");
pub(crate) const TERMS_VALUES: File = shader!("terms/values.wgsl");
pub(crate) const TERMS_CLASS_WEIGHTS: File = shader!("terms/class_weights.wgsl");

/// The shaders of a team, of which neighbours in a subgroup exchange by shuffles or none do.
pub(crate) fn team(team: crate::Team, has_neighbours: bool) -> Vec<File> {
    const NEIGHBOURS: File = shader!("shared/neighbours.wgsl");
    match team {
        crate::Team::Invocation => vec![shader!("team/invocation.wgsl")],
        crate::Team::Subgroup => vec![shader!("team/subgroup.wgsl"), NEIGHBOURS],
        crate::Team::Workgroup if has_neighbours => {
            vec![shader!("team/workgroup_of_subgroups.wgsl"), NEIGHBOURS]
        }
        crate::Team::Workgroup => vec![shader!("team/workgroup.wgsl")],
    }
}

/// The shaders of storage in a type, and of the input's memory: four elements at a time where every
/// four of them are whole and aligned.
pub(crate) fn storage(dtype: DType, vec4: bool, memory: Memory) -> Vec<File> {
    let access = match memory {
        Memory::InPlace => shader!("access/in_place.wgsl"),
        Memory::Apart | Memory::OneBuffer => shader!("access/apart.wgsl"),
    };
    let encoding = match dtype {
        DType::F16 => shader!("encoding/f16.wgsl"),
        DType::Bf16 => shader!("encoding/bf16.wgsl"),
        // ops take no other input
        DType::F32 | DType::I32 | DType::I64 => {
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

/// A kernel: what a pipeline is made of, and the key under which it is cached.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// For labels: `cross_entropy.forward.f32.subgroup`.
    pub label: String,
    pub files: Vec<File>,
    pub entry_point: &'static str,
    /// Values of `override` declarations.
    pub constants: Vec<(&'static str, u32)>,
    /// How a member walks: sizes of arrays, which no `override` can be.
    pub blocks: Blocks,
    /// Whether arguments may lie in buffers that results are written to.
    pub shares_buffers: bool,
}

impl Kernel {
    /// Whether all of its text is the crate's own, whose bounds are known to hold.
    pub fn is_trusted(&self) -> bool {
        self.files.iter().all(|file| file.is_trusted)
    }

    /// The joined text. Each part's start is marked, so that a compiler's line can be found.
    pub fn source(&self) -> String {
        let Blocks { held, run, fits } = self.blocks;
        let mut source = format!(
            "const HELD: u32 = {held}u;\nconst RUN: u32 = {run}u;\nconst FITS: bool = {fits};\n"
        );
        for file in &self.files {
            let _ = writeln!(source, "// ---- shaders/{}\n{}", file.path, file.text);
        }
        if self.shares_buffers {
            // a dispatch may use a buffer in one way only, whatever its ranges
            source = source.replace("var<storage, read>", "var<storage, read_write>");
        }
        source
    }
}
