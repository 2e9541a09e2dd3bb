//! From the device back to the host.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use bytemuck::pod_collect_to_vec;
use futures_intrusive::channel::shared::{OneshotReceiver, oneshot_channel};
use half::{bf16, f16};

use crate::shape::Layout;
use crate::{Array, DType, Data, Error, Gpu, Result, Tensor};

/// What staging buffers are for.
const USAGES: wgpu::BufferUsages = wgpu::BufferUsages::MAP_READ.union(wgpu::BufferUsages::COPY_DST);

impl Gpu {
    /// The tensor's elements.
    ///
    /// # Errors
    /// [`Error::Validation`] when the tensor's buffer lacks `COPY_SRC`; [`Error::Value`] when it is
    /// another `Gpu`'s; [`Error::OutOfMemory`]; [`Error::DeviceLost`].
    pub async fn read(&self, tensor: &Tensor) -> Result<Array<'static>> {
        self.expect_own("tensor", tensor.gpu())?;
        let submit = || {
            let mut encoder = self.device().create_command_encoder(&Default::default());
            let staging = Readback::encode_tensor(self, &mut encoder, tensor);
            let submission = self.queue().submit([encoder.finish()]);
            Ok(Readback::map(staging, &submission))
        };
        let readback = self.guarded_trimming(submit).await?;
        readback.arrived(self).await?;
        readback.array(self, tensor.layout())
    }
}

/// Bytes on their way to the host: in a staging buffer that is being mapped.
#[derive(Debug)]
pub(crate) struct Readback {
    staging: wgpu::Buffer,
    submission: wgpu::SubmissionIndex,
    mapped: OneshotReceiver<Result<(), wgpu::BufferAsyncError>>,
    /// The receiver yields its result once, and a wait may be given up and taken up again.
    has_arrived: AtomicBool,
}

impl Readback {
    /// Encodes a copy of whole words of a buffer to a staging buffer.
    pub fn encode(
        gpu: &Gpu,
        encoder: &mut wgpu::CommandEncoder,
        from: &wgpu::Buffer,
        bytes: Range<u64>,
    ) -> wgpu::Buffer {
        let size = bytes.end - bytes.start;
        let staging = gpu.buffer("wgloss.readback", size.next_multiple_of(16).max(16), USAGES);
        encoder.copy_buffer_to_buffer(from, bytes.start, &staging, 0, size);
        staging
    }

    /// Encodes a copy of a tensor, with what lies between its rows.
    pub fn encode_tensor(
        gpu: &Gpu,
        encoder: &mut wgpu::CommandEncoder,
        tensor: &Tensor,
    ) -> wgpu::Buffer {
        let bytes = if tensor.layout().elements() == 0 { 0..0 } else { tensor.byte_range() };
        Self::encode(gpu, encoder, tensor.buffer(), bytes)
    }

    /// Maps a staging buffer, once its copy is submitted.
    pub fn map(staging: wgpu::Buffer, submission: &wgpu::SubmissionIndex) -> Self {
        let (sender, mapped) = oneshot_channel();
        staging.map_async(wgpu::MapMode::Read, .., move |result| {
            let _ = sender.send(result);
        });
        let has_arrived = AtomicBool::new(false);
        Readback { staging, submission: submission.clone(), mapped, has_arrived }
    }

    /// Waits until the bytes are there.
    pub async fn arrived(&self, gpu: &Gpu) -> Result<()> {
        if self.has_arrived.load(Ordering::Acquire) {
            return Ok(());
        }
        gpu.awaits(Some(&self.submission));
        match self.mapped.receive().await {
            Some(Ok(())) => {
                self.has_arrived.store(true, Ordering::Release);
                Ok(())
            }
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
            let (bytes, shape) = (&contiguous(layout, bytes)[..], layout.shape());
            match layout.dtype() {
                DType::F32 => Array::from_vec::<f32>(pod_collect_to_vec(bytes), shape),
                DType::F16 => Array::from_vec::<f16>(pod_collect_to_vec(bytes), shape),
                DType::Bf16 => Array::from_vec::<bf16>(pod_collect_to_vec(bytes), shape),
                DType::I32 => Array::from_vec::<i32>(pod_collect_to_vec(bytes), shape),
                DType::I64 => Array::from_vec::<i64>(pod_collect_to_vec(bytes), shape),
                DType::F64 => Array::from_data(Data::F64(pod_collect_to_vec(bytes).into()), shape),
            }
        })?
    }
}

fn failed(gpu: &Gpu, message: String) -> Error {
    gpu.lost(true).unwrap_or(Error::Internal(message))
}

/// The bytes of a tensor's elements, without those between its rows, of the words that they lie in.
fn contiguous<'a>(layout: &Layout, words: &'a [u8]) -> Cow<'a, [u8]> {
    let size = layout.dtype().size();
    let first = layout.offset() * size % 4;
    if layout.is_contiguous() || layout.elements() == 0 {
        return words[first.min(words.len())..][..layout.bytes() as usize].into();
    }
    let rows = words[first..].chunks(layout.row_stride() * size);
    let row = layout.bytes() as usize / layout.shape()[0];
    rows.take(layout.shape()[0]).flat_map(|bytes| &bytes[..row]).copied().collect()
}
