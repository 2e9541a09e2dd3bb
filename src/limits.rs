//! What a device can do at most, and how work is cut to that: pure functions, tested without a GPU.

use crate::program::{BINDINGS, chunks};
use crate::shape::{ALIGNMENT, Layout};
use crate::{Error, Result};

/// The limits of a device that programs depend on.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// The most workgroups along one dimension of a dispatch.
    pub max_workgroups: u32,
    /// The most bytes of one storage binding.
    pub max_binding: u64,
    /// The most bytes of one buffer.
    pub max_buffer: u64,
    /// The most bytes of memory that a workgroup shares.
    pub max_workgroup_memory: u32,
    /// The device's name, for messages.
    pub device: String,
}

/// The bytes of workgroup memory that a member of a team of a workgroup takes (`shaders/team`), and those
/// that all of them share (`shaders/uniform`).
const WORKGROUP_BYTES_PER_MEMBER: u32 = 20;
const WORKGROUP_BYTES_SHARED: u32 = 16;

/// Refuses devices on which kernels cannot run, or programs would have no end: the caller may have
/// asked for less than the adapter has, or for none of its compute.
pub fn expect_capable(limits: &wgpu::Limits, device: &str) -> Result<()> {
    let least = [
        ("max_bind_groups", 1, limits.max_bind_groups.into()),
        ("max_bindings_per_bind_group", BINDINGS as u64, limits.max_bindings_per_bind_group.into()),
        (
            "max_storage_buffers_per_shader_stage",
            // one of the bindings is the uniform buffer
            BINDINGS as u64 - 1,
            limits.max_storage_buffers_per_shader_stage.into(),
        ),
        (
            "max_uniform_buffers_per_shader_stage",
            1,
            limits.max_uniform_buffers_per_shader_stage.into(),
        ),
        ("max_uniform_buffer_binding_size", 1024, limits.max_uniform_buffer_binding_size),
        // less leaves sums no fewer terms after a dispatch than before it
        ("max_storage_buffer_binding_size", 4096, limits.max_storage_buffer_binding_size),
        ("max_buffer_size", 4096, limits.max_buffer_size),
        (
            "max_compute_invocations_per_workgroup",
            1,
            limits.max_compute_invocations_per_workgroup.into(),
        ),
        ("max_compute_workgroup_size_x", 1, limits.max_compute_workgroup_size_x.into()),
        (
            "max_compute_workgroup_storage_size",
            (WORKGROUP_BYTES_PER_MEMBER + WORKGROUP_BYTES_SHARED).into(),
            limits.max_compute_workgroup_storage_size.into(),
        ),
        (
            "max_compute_workgroups_per_dimension",
            1,
            limits.max_compute_workgroups_per_dimension.into(),
        ),
    ];
    let short: Vec<_> = least.into_iter().filter(|(_, least, actual)| actual < least).collect();
    if short.is_empty() {
        return Ok(());
    }
    let list = |describe: &dyn Fn(&(&str, u64, u64)) -> String| {
        short.iter().map(describe).collect::<Vec<_>>().join(", ")
    };
    Err(Error::Value {
        argument: "device",
        expected: list(&|(name, least, _)| format!("{name} of at least {least}")),
        actual: format!("{} on {device}", list(&|(.., actual)| actual.to_string())),
    })
}

/// The most invocations of a workgroup, whose team has its memory.
pub fn max_workgroup_size(limits: &wgpu::Limits) -> u32 {
    limits.max_compute_invocations_per_workgroup.min(limits.max_compute_workgroup_size_x).min(
        limits.max_compute_workgroup_storage_size.saturating_sub(WORKGROUP_BYTES_SHARED)
            / WORKGROUP_BYTES_PER_MEMBER,
    )
}

impl Limits {
    /// The most bytes of a tensor that one dispatch works on: what one binding holds, with room for
    /// its alignment, and no more than a slow device gets through before its driver loses patience.
    pub fn chunk_bytes(&self) -> u64 {
        const BUDGET: u64 = 1 << 30;
        self.max_binding.min(BUDGET).saturating_sub(ALIGNMENT).max(4)
    }

    /// Refuses what one binding cannot hold.
    pub fn expect_bindable(&self, argument: &'static str, bytes: u64) -> Result<()> {
        let limit_name = "max_storage_buffer_binding_size";
        self.expect_at_most(argument, bytes, self.max_binding, limit_name)
    }

    /// Refuses what one buffer cannot hold.
    pub fn expect_allocatable(&self, argument: &'static str, bytes: u64) -> Result<()> {
        self.expect_at_most(argument, bytes, self.max_buffer, "max_buffer_size")
    }

    fn expect_at_most(
        &self,
        argument: &'static str,
        bytes: u64,
        limit: u64,
        limit_name: &'static str,
    ) -> Result<()> {
        if bytes <= limit {
            return Ok(());
        }
        Err(Error::TooLarge { argument, bytes, limit, limit_name, device: self.device.clone() })
    }

    /// Workgroups for so many teams, folded over two dimensions where one does not hold them.
    pub fn workgroups(&self, teams: u64, teams_per_workgroup: u32) -> Result<[u32; 3]> {
        let count = teams.div_ceil(teams_per_workgroup.into());
        let most = u64::from(self.max_workgroups);
        let y = count.div_ceil(most).max(1);
        if y > most {
            let most = most.saturating_mul(most).saturating_mul(teams_per_workgroup.into());
            return Err(Error::Value {
                argument: "input",
                expected: format!("work for at most {most} teams on {}", self.device),
                actual: format!("work for {teams}"),
            });
        }
        Ok([count.div_ceil(y) as u32, y as u32, 1])
    }
}

/// How tensors of one shape, padded or not, are taken in chunks that bindings hold: by outer rows
/// (indices of the first dimension), or, where nothing lies between those, by elements of the one
/// flat row that all of them make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Split {
    outer: u64,
    inner: u64,
    per_chunk: u64,
    is_flat: bool,
}

/// What one dispatch works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// The first outer row; of a flat split, 0.
    pub first_row: u64,
    /// How many outer rows.
    pub rows: u64,
    /// The first element among all, padding not counted.
    pub first: u64,
    /// Elements of each outer row.
    pub inner: u64,
    is_flat: bool,
}

impl Chunk {
    /// Elements, padding not counted.
    pub fn elements(&self) -> u64 {
        self.rows * self.inner
    }

    /// First element, span and stride of the chunk in a tensor whose outer rows lie `stride` apart.
    pub fn range(&self, stride: u64) -> [u64; 3] {
        match self.is_flat {
            true => [self.first, self.inner, 0],
            false => [self.first_row * stride, (self.rows - 1) * stride + self.inner, stride],
        }
    }
}

impl Split {
    /// By outer rows of `inner` elements. Each tensor is named with the bytes from one row to the
    /// next and the bytes of one row.
    ///
    /// # Errors
    /// [`Error::TooLarge`] where a binding does not hold one row.
    pub fn by_rows(
        limits: &Limits,
        [outer, inner]: [u64; 2],
        tensors: impl IntoIterator<Item = (&'static str, [u64; 2])>,
    ) -> Result<Self> {
        let mut per_chunk = u64::MAX;
        for (argument, [stride, row]) in tensors {
            match limits.chunk_bytes().checked_sub(row) {
                Some(remainder) => per_chunk = per_chunk.min(remainder / stride.max(1) + 1),
                None => {
                    limits.expect_bindable(argument, row)?;
                    per_chunk = 1;
                }
            }
        }
        Ok(Split { outer, inner, per_chunk, is_flat: false })
    }

    /// The elements of tensors of one shape: flat where all are contiguous, else by outer rows.
    ///
    /// # Errors
    /// [`Error::TooLarge`] where a binding does not hold one row.
    pub fn of_elements(limits: &Limits, shape: &Layout, tensors: &[&Layout]) -> Result<Self> {
        let elements = shape.elements() as u64;
        if tensors.iter().all(|layout| layout.is_contiguous()) {
            // at multiples of 4, so that vec4s stay whole
            let sizes = tensors.iter().map(|layout| layout.dtype().size() as u64 * 4);
            let vec4s = Self::by_rows(limits, [1, 4], sizes.map(|s| ("input", [s, s])))?;
            let per_chunk = vec4s.per_chunk.saturating_mul(4);
            return Ok(Split { outer: 1, inner: elements, per_chunk, is_flat: true });
        }
        let outer = shape.shape().first().map_or(1, |&size| size as u64);
        let inner = elements / outer.max(1);
        let sizes = tensors.iter().map(|layout| {
            let size = layout.dtype().size() as u64;
            ("one row of input", [layout.row_stride() as u64 * size, inner * size])
        });
        Self::by_rows(limits, [if inner == 0 { 0 } else { outer }, inner], sizes)
    }

    /// Whether all elements make one row.
    pub fn is_flat(&self) -> bool {
        self.is_flat
    }

    /// What each dispatch works on.
    pub fn chunks(self) -> impl Iterator<Item = Chunk> {
        let count = if self.is_flat { self.inner } else { self.outer };
        chunks(count, self.per_chunk).map(move |[first, count]| match self.is_flat {
            true => Chunk { first_row: 0, rows: 1, first, inner: count, is_flat: true },
            false => Chunk {
                first_row: first,
                rows: count,
                first: first * self.inner,
                inner: self.inner,
                is_flat: false,
            },
        })
    }

    /// Whether every vec4 of every outer row is whole and aligned in all of these tensors.
    pub fn are_vec4<'a>(&self, mut tensors: impl Iterator<Item = &'a Layout>) -> bool {
        self.inner.is_multiple_of(4)
            && tensors.all(|tensor| {
                let stride = if self.is_flat { 0 } else { tensor.row_stride() };
                stride.is_multiple_of(4) && tensor.residual().is_multiple_of(4)
            })
    }
}
