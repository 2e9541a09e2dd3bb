//! Arrays on the device.

use crate::shape::{Layout, element_count};
use crate::{DType, Error, Gpu, Result};

/// An array in a device's buffer, contiguous and row-major from the buffer's start.
///
/// Cloning is cheap: clones share the buffer.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    buffer: wgpu::Buffer,
    layout: Layout,
}

/// What kernels and copies ask of a buffer.
pub(crate) const USAGES: wgpu::BufferUsages = wgpu::BufferUsages::STORAGE
    .union(wgpu::BufferUsages::COPY_SRC)
    .union(wgpu::BufferUsages::COPY_DST);

impl Tensor {
    /// Wraps a caller's buffer, on the device of the [`Gpu`] it will be used with. Nothing is
    /// copied. The buffer needs `STORAGE`; reading it back needs `COPY_SRC` too.
    ///
    /// wgpu recognises a buffer of another device only where both come from one
    /// [`wgpu::Instance`]; keep the buffers of several instances apart.
    ///
    /// # Errors
    /// [`Error::Value`] when the buffer lacks `STORAGE` or is smaller than the shape, or for i64,
    /// which devices do not have.
    pub fn from_buffer(buffer: wgpu::Buffer, shape: &[usize], dtype: DType) -> Result<Self> {
        element_count("buffer", shape)?;
        let layout = Layout::new(shape, dtype);
        let refuse = |expected: String, actual: String| {
            Err(Error::Value { argument: "buffer", expected, actual })
        };
        if dtype == DType::I64 {
            return refuse("i32 class indices".into(), "i64".into());
        }
        if !buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
            return refuse("usage STORAGE".into(), format!("{:?}", buffer.usage()));
        }
        // bindings are at least four bytes
        let needed = layout.bytes().max(4);
        if buffer.size() < needed {
            let expected = format!("at least {needed} bytes for {dtype} {shape:?}");
            return refuse(expected, format!("{} bytes", buffer.size()));
        }
        Ok(Tensor { buffer, layout })
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

    /// Shape and storage type.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }
}

impl Gpu {
    /// A tensor of zeros.
    pub(crate) async fn allocate(&self, argument: &'static str, layout: &Layout) -> Result<Tensor> {
        let size = layout.bytes().next_multiple_of(16).max(16);
        self.check_size(argument, size)?;
        let descriptor = wgpu::BufferDescriptor {
            label: Some(argument),
            size,
            usage: USAGES,
            mapped_at_creation: false,
        };
        let buffer = self.guarded(|| self.device().create_buffer(&descriptor)).await?;
        Ok(Tensor { buffer, layout: layout.clone() })
    }

    /// Refuses what the device cannot hold or bind.
    pub(crate) fn check_size(&self, argument: &'static str, bytes: u64) -> Result<()> {
        let facts = self.facts();
        for (limit_name, limit) in [
            ("max_storage_buffer_binding_size", facts.max_binding),
            ("max_buffer_size", facts.max_buffer),
        ] {
            if bytes > limit {
                let device = facts.device.clone();
                return Err(Error::TooLarge { argument, bytes, limit, limit_name, device });
            }
        }
        Ok(())
    }
}
