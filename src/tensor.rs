//! Arrays on the device.

use crate::gpu::GpuId;
use crate::shape::Layout;
use crate::{DType, Error, Gpu, Result};

/// An array in a device's buffer.
///
/// Cloning is cheap: clones share the buffer.
#[derive(Debug, Clone)]
pub struct Tensor {
    buffer: wgpu::Buffer,
    layout: Layout,
    /// Whose device the buffer is known to be of.
    gpu: Option<GpuId>,
}

impl PartialEq for Tensor {
    fn eq(&self, other: &Self) -> bool {
        (&self.buffer, &self.layout) == (&other.buffer, &other.layout)
    }
}

/// What kernels and copies ask of a buffer.
pub(crate) const USAGES: wgpu::BufferUsages = wgpu::BufferUsages::STORAGE
    .union(wgpu::BufferUsages::COPY_SRC)
    .union(wgpu::BufferUsages::COPY_DST);

impl Tensor {
    /// Wraps a caller's buffer, on the device of the [`Gpu`] it will be used with. Nothing is
    /// copied. The buffer needs `STORAGE`; reading it back needs `COPY_SRC` too, and `COPY_DST` a result
    /// that is copied to its place, such as the row outputs of cross entropy.
    ///
    /// The layout says where in the buffer the elements lie. No offset needs to be aligned, but that
    /// of row state, to 16 bytes. Storage is read and written in words of four bytes; of a word that
    /// a 16-bit tensor shares with something else, the other half is left alone.
    ///
    /// wgpu recognises a buffer of another device only where both come from one
    /// [`wgpu::Instance`]; to another instance it is whatever has the same number there, so that
    /// results are wrong without an error. Where there are several instances, let
    /// [`on`](Self::on) say whose the buffer is.
    ///
    /// # Errors
    /// [`Error::Value`] when the buffer lacks `STORAGE` or ends before the tensor does, when rows
    /// would overlap, or for i64 and f64, which devices do not have.
    pub fn from_buffer(buffer: wgpu::Buffer, layout: Layout) -> Result<Self> {
        layout.check("buffer")?;
        let refuse = |expected: String, actual: String| {
            Err(Error::Value { argument: "buffer", expected, actual })
        };
        match layout.dtype() {
            DType::I64 => return refuse("i32 class indices".into(), "i64".into()),
            DType::F64 => return refuse("f32, f16 or bf16".into(), "f64".into()),
            DType::F32 | DType::F16 | DType::Bf16 | DType::I32 => {}
        }
        if !buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
            return refuse("usage STORAGE".into(), format!("{:?}", buffer.usage()));
        }
        let tensor = Tensor { buffer, layout, gpu: None };
        let needed = tensor.byte_range().end;
        if tensor.buffer.size() < needed {
            let expected = format!("at least {needed} bytes for {}", tensor.layout);
            return refuse(expected, format!("{} bytes", tensor.buffer.size()));
        }
        Ok(tensor)
    }

    /// Says that the buffer is of this `Gpu`'s device: any other `Gpu` then refuses the tensor with an
    /// [`Error::Value`], one that was made of the same device included. Tensors of
    /// [`Gpu::upload`], [`Plan::allocate`](crate::Plan::allocate) and calls are their `Gpu`'s.
    pub fn on(mut self, gpu: &Gpu) -> Self {
        self.gpu = Some(gpu.id());
        self
    }

    pub(crate) fn gpu(&self) -> Option<GpuId> {
        self.gpu
    }

    /// The bytes that its elements lie in, in whole words of four: none where there are no elements,
    /// since no kernel binds such a tensor.
    pub(crate) fn byte_range(&self) -> std::ops::Range<u64> {
        let size = self.layout.dtype().size() as u64;
        let start = self.layout.offset() as u64 * size;
        let end = start + self.layout.span() as u64 * size;
        start / 4 * 4..end.next_multiple_of(4)
    }

    /// The buffer.
    pub fn buffer(&self) -> &wgpu::Buffer {
        &self.buffer
    }

    /// The shape.
    pub fn shape(&self) -> &[usize] {
        self.layout.shape()
    }

    /// The storage type.
    pub fn dtype(&self) -> DType {
        self.layout.dtype()
    }

    /// Shape and storage type, and where in the buffer the elements lie.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }
}

impl Gpu {
    /// A tensor of zeros, in a buffer of at least so many bytes.
    pub(crate) async fn allocate(
        &self,
        argument: &'static str,
        layout: &Layout,
        bytes: u64,
    ) -> Result<Tensor> {
        self.profile().limits.expect_allocatable(argument, bytes)?;
        self.guarded_trimming(|| Ok(self.create_tensor(argument, layout, bytes))).await
    }

    /// [`Gpu::allocate`] for those who watch the device's errors themselves.
    pub(crate) fn create_tensor(&self, argument: &str, layout: &Layout, bytes: u64) -> Tensor {
        let buffer = self.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some(argument),
            size: bytes.next_multiple_of(16).max(16),
            usage: USAGES,
            mapped_at_creation: false,
        });
        Tensor { buffer, layout: layout.clone(), gpu: Some(self.id()) }
    }
}
