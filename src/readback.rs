//! From the device back to the host: values, timestamps, errors.

use bytemuck::pod_collect_to_vec;
use futures_intrusive::channel::shared::{OneshotReceiver, oneshot_channel};
use half::{bf16, f16};

use crate::program::decode_status;
use crate::shape::Layout;
use crate::{Array, DType, Error, Gpu, Result, Tensor};

/// What staging buffers are for.
const USAGES: wgpu::BufferUsages = wgpu::BufferUsages::MAP_READ.union(wgpu::BufferUsages::COPY_DST);

impl Gpu {
    /// The tensor's elements.
    ///
    /// # Errors
    /// [`Error::Validation`] when the tensor's buffer lacks `COPY_SRC`; [`Error::OutOfMemory`];
    /// [`Error::DeviceLost`].
    pub async fn read(&self, tensor: &Tensor) -> Result<Array<'static>> {
        let submit = || {
            let mut encoder = self.device().create_command_encoder(&Default::default());
            let bytes = tensor.layout().bytes();
            let staging = Readback::encode(self, &mut encoder, tensor.buffer(), bytes);
            let submission = self.queue().submit([encoder.finish()]);
            Readback::map(staging, &submission)
        };
        let readback = self.guarded_trimming(submit).await?;
        readback.arrived(self).await?;
        readback.array(self, tensor.layout())
    }

    /// Waits for the device to be done, and turns what it reports of its inputs into an error:
    /// `status` is that of the output of a call on device tensors.
    ///
    /// # Errors
    /// [`Error::Class`] for a class out of range; those of [`Gpu::read`].
    pub async fn check(&self, status: &Tensor) -> Result<()> {
        if status.dtype() != DType::I32 {
            return Err(Error::DType {
                argument: "status",
                expected: DType::I32.to_string(),
                actual: status.dtype(),
            });
        }
        let words = self.read(status).await?.to_classes()?;
        let words: Vec<u32> = words.iter().map(|&word| word as u32).collect();
        match <[u32; 8]>::try_from(words) {
            Ok(words) => decode_status(words).map_or(Ok(()), Err),
            Err(_) => Err(Error::Shape {
                argument: "status",
                expected: "[8]".into(),
                actual: status.shape().to_vec(),
            }),
        }
    }
}

/// Bytes on their way to the host: in a staging buffer that is being mapped.
#[derive(Debug)]
pub(crate) struct Readback {
    staging: wgpu::Buffer,
    submission: wgpu::SubmissionIndex,
    mapped: OneshotReceiver<Result<(), wgpu::BufferAsyncError>>,
}

impl Readback {
    /// Encodes a copy of the first `bytes` of a buffer to a staging buffer.
    pub fn encode(
        gpu: &Gpu,
        encoder: &mut wgpu::CommandEncoder,
        from: &wgpu::Buffer,
        bytes: u64,
    ) -> wgpu::Buffer {
        let staging = gpu.buffer("wgloss.readback", bytes.next_multiple_of(16).max(16), USAGES);
        // copies are in units of four bytes
        encoder.copy_buffer_to_buffer(from, 0, &staging, 0, bytes.next_multiple_of(4));
        staging
    }

    /// Maps a staging buffer, once its copy is submitted.
    pub fn map(staging: wgpu::Buffer, submission: &wgpu::SubmissionIndex) -> Self {
        let (sender, mapped) = oneshot_channel();
        staging.map_async(wgpu::MapMode::Read, .., move |result| {
            let _ = sender.send(result);
        });
        Readback { staging, submission: submission.clone(), mapped }
    }

    /// Waits until the bytes are there.
    pub async fn arrived(&self, gpu: &Gpu) -> Result<()> {
        gpu.awaits(&self.submission);
        match self.mapped.receive().await {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(failed(gpu, error.to_string())),
            None => Err(failed(gpu, "the readback was dropped".into())),
        }
    }

    /// Hands out the bytes that have arrived, and leaves the staging buffer to the next readback.
    pub fn take<T>(&self, gpu: &Gpu, take: impl FnOnce(&[u8]) -> T) -> Result<T> {
        let range = self.staging.get_mapped_range(..);
        let range = range.map_err(|error| failed(gpu, error.to_string()))?;
        let taken = take(&range);
        drop(range);
        self.staging.unmap();
        gpu.pool().give(self.staging.clone());
        Ok(taken)
    }

    /// [`Readback::take`] as an array.
    pub fn array(&self, gpu: &Gpu, layout: &Layout) -> Result<Array<'static>> {
        self.take(gpu, |bytes| {
            let (bytes, shape) = (&bytes[..layout.bytes() as usize], layout.shape());
            match layout.dtype() {
                DType::F32 => Array::from_vec::<f32>(pod_collect_to_vec(bytes), shape),
                DType::F16 => Array::from_vec::<f16>(pod_collect_to_vec(bytes), shape),
                DType::Bf16 => Array::from_vec::<bf16>(pod_collect_to_vec(bytes), shape),
                DType::I32 => Array::from_vec::<i32>(pod_collect_to_vec(bytes), shape),
                DType::I64 => Array::from_vec::<i64>(pod_collect_to_vec(bytes), shape),
            }
        })?
    }
}

fn failed(gpu: &Gpu, message: String) -> Error {
    gpu.lost().unwrap_or(Error::Internal(message))
}
