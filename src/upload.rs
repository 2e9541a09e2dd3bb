//! From the host to the device.

use std::borrow::Cow;

use crate::shape::Layout;
use crate::{Args, Array, DType, Data, Error, Gpu, Result, Tensor};

/// What staging buffers are for.
const USAGES: wgpu::BufferUsages =
    wgpu::BufferUsages::MAP_WRITE.union(wgpu::BufferUsages::COPY_SRC);

impl Gpu {
    /// A tensor with the array's elements. i64 class indices become i32.
    ///
    /// # Errors
    /// [`Error::TooLarge`] beyond the device's limits; [`Error::Value`] for an i64 that i32 does
    /// not hold; [`Error::DType`] for f64; [`Error::OutOfMemory`]; [`Error::DeviceLost`].
    pub async fn upload(&self, array: &Array<'_>) -> Result<Tensor> {
        let mut tensors = self.upload_all(&[("array", array)]).await?;
        tensors.pop().ok_or_else(|| Error::Internal("an upload without its tensor".into()))
    }

    /// Uploads every argument, in one submission.
    ///
    /// # Errors
    /// As [`Gpu::upload`].
    pub async fn upload_args(&self, args: &Args<Array<'_>>) -> Result<Args<Tensor>> {
        let arrays: Vec<_> = args.iter().map(|(role, array)| (role.name(), array)).collect();
        let mut tensors = self.upload_all(&arrays).await?.into_iter();
        args.try_map(|_, _| {
            tensors.next().ok_or_else(|| Error::Internal("an upload without its tensor".into()))
        })
    }

    /// A tensor for each array, in order.
    async fn upload_all(&self, arrays: &[(&'static str, &Array<'_>)]) -> Result<Vec<Tensor>> {
        for (argument, array) in arrays {
            expect_uploadable(argument, array)?;
            let bytes = device_layout(array.layout()).bytes();
            self.profile().limits.expect_allocatable(argument, bytes)?;
        }
        let write = || {
            let mut encoder = self.device().create_command_encoder(&Default::default());
            let mut upload = Upload::default();
            let mut tensors = Vec::with_capacity(arrays.len());
            for (argument, array) in arrays {
                let layout = device_layout(array.layout());
                let tensor = self.create_tensor(argument, &layout, layout.bytes());
                upload.encode(self, &mut encoder, array, &tensor)?;
                tensors.push(tensor);
            }
            self.queue().submit([encoder.finish()]);
            upload.submitted(self);
            Ok(tensors)
        };
        self.guarded_trimming(write).await
    }
}

/// Refuses f64, and an i64 that i32 does not hold: devices have f32 and i32.
fn expect_uploadable(argument: &'static str, array: &Array<'_>) -> Result<()> {
    let values = match array.data() {
        Data::I64(values) => values,
        Data::F64(_) => {
            let expected = "f32, f16, bf16, i32 or i64".into();
            return Err(Error::DType { argument, expected, actual: DType::F64 });
        }
        _ => return Ok(()),
    };
    match values.iter().enumerate().find(|(_, value)| i32::try_from(**value).is_err()) {
        None => Ok(()),
        Some((i, value)) => Err(Error::Value {
            argument,
            expected: "integers that fit i32".into(),
            actual: format!("{value} at element {i}"),
        }),
    }
}

/// How an argument is laid out once it is uploaded.
pub(crate) fn device_layout(host: &Layout) -> Layout {
    match host.dtype() {
        DType::I64 => host.clone().with_dtype(DType::I32),
        _ => host.clone(),
    }
}

/// Arrays on their way: in staging buffers, from which an encoder was told to copy them.
///
/// Unlike those of [`wgpu::Queue::write_buffer`], which are new each time, these staging buffers
/// are used again.
#[derive(Default)]
pub(crate) struct Upload {
    staging: Vec<wgpu::Buffer>,
}

impl Upload {
    /// Encodes the copy of an array to a tensor of its [`device_layout`].
    ///
    /// # Errors
    /// [`Error::Internal`] when a staging buffer cannot be mapped.
    pub fn encode(
        &mut self,
        gpu: &Gpu,
        encoder: &mut wgpu::CommandEncoder,
        array: &Array<'_>,
        tensor: &Tensor,
    ) -> Result<()> {
        let bytes = device_bytes(array);
        if bytes.is_empty() {
            return Ok(());
        }
        // copies and mappings are in units of four and eight bytes, tensors' buffers of sixteen
        let size = bytes.len().next_multiple_of(16);
        let buffer = gpu.buffer("wgloss.upload", size as u64, USAGES);
        let view = buffer.get_mapped_range_mut(..);
        let mut view = view.map_err(|error| Error::Internal(error.to_string()))?;
        view.slice(..bytes.len()).copy_from_slice(&bytes);
        view.slice(bytes.len()..).fill(0);
        drop(view);
        buffer.unmap();
        encoder.copy_buffer_to_buffer(&buffer, 0, tensor.buffer(), 0, size as u64);
        self.staging.push(buffer);
        Ok(())
    }

    /// Once the encoder's commands are submitted: maps the staging buffers again, after which they
    /// are idle.
    pub fn submitted(self, gpu: &Gpu) {
        for buffer in self.staging {
            let (pool, idle) = (gpu.pool().clone(), buffer.clone());
            buffer.map_async(wgpu::MapMode::Write, .., move |result| {
                if result.is_ok() {
                    pool.give(idle);
                }
            });
        }
    }
}

/// The elements' bytes as devices have them. An i64 that i32 does not hold becomes `i32::MIN`: ops have
/// checked that it is their `ignore_index`, which they pass on to kernels likewise.
fn device_bytes<'a>(array: &'a Array<'_>) -> Cow<'a, [u8]> {
    match array.data() {
        Data::I64(values) => {
            let narrow = |&value| i32::try_from(value).unwrap_or(i32::MIN).to_ne_bytes();
            Cow::Owned(values.iter().flat_map(narrow).collect())
        }
        data => Cow::Borrowed(data.bytes()),
    }
}
