//! The status: what only the device can see of the arguments, kept until the host asks.

use crate::gpu::GpuId;
use crate::program::{BLOCK_BYTES, fault};
use crate::readback::Readback;
use crate::{Error, Gpu, Result};

/// Where a device keeps the first fault that it finds in the arguments of calls on device tensors,
/// such as a class out of range: until [`Gpu::check`] asks, however many calls later.
///
/// One status can serve all the calls of a device. Cloning is cheap: clones share the memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    buffer: wgpu::Buffer,
    gpu: GpuId,
}

impl Gpu {
    /// A status without a fault.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub async fn status(&self) -> Result<Status> {
        let descriptor = wgpu::BufferDescriptor {
            label: Some("wgloss.status"),
            size: BLOCK_BYTES,
            usage: wgpu::BufferUsages::STORAGE
                | wgpu::BufferUsages::COPY_SRC
                | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        };
        let create = || Ok(self.device().create_buffer(&descriptor));
        let buffer = self.guarded_trimming(create).await?;
        Ok(Status { buffer, gpu: self.id() })
    }

    /// Waits for the device to be done with what was submitted, and turns the first fault since the
    /// last check into an error. The status is clear then: of calls that are submitted while a check
    /// that finds a fault is under way, no fault is kept. A check whose future is dropped has cleared
    /// nothing.
    ///
    /// # Errors
    /// [`Error::Class`] for a class out of range, [`Error::Value`] for a number outside `[0, 1]`
    /// ([`Bce`](crate::Bce)); the row or element is the first such one of its call, and 2^32 - 2
    /// stands for itself and all that come after it. [`Error::Value`] also for a status of another
    /// `Gpu`; [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub async fn check(&self, status: &Status) -> Result<()> {
        self.expect_own("status", Some(status.gpu))?;
        let submit = || {
            let mut encoder = self.device().create_command_encoder(&Default::default());
            let staging = Readback::encode(self, &mut encoder, &status.buffer, 0..BLOCK_BYTES);
            let submission = self.queue().submit([encoder.finish()]);
            Ok(Readback::map(staging, &submission))
        };
        let readback = self.guarded_trimming(submit).await?;
        readback.arrived(self).await?;
        let words: Vec<u32> = readback.take(self, bytemuck::pod_collect_to_vec)?;
        let fault = Status::decode(&words);
        if fault.is_err() {
            let clear = || {
                let mut encoder = self.device().create_command_encoder(&Default::default());
                encoder.clear_buffer(&status.buffer, 0, None);
                self.queue().submit([encoder.finish()]);
                Ok(())
            };
            self.guarded(clear).await?;
        }
        fault
    }
}

impl Status {
    pub(crate) fn gpu(&self) -> GpuId {
        self.gpu
    }

    /// The words of the status, for those who read them back by themselves: eight of 32 bits, to be
    /// [decoded](Self::decode), and to be cleared after that.
    pub fn buffer(&self) -> &wgpu::Buffer {
        &self.buffer
    }

    /// Turns the words of a status into the error that [`Gpu::check`] returns.
    ///
    /// # Errors
    /// Those that the status tells of; [`Error::Length`] for other than eight words.
    pub fn decode(words: &[u32]) -> Result<()> {
        let expected = BLOCK_BYTES as usize / 4;
        let Ok(words) = <[u32; 8]>::try_from(words) else {
            return Err(Error::Length {
                argument: "status",
                shape: vec![expected],
                expected,
                actual: words.len(),
            });
        };
        fault(words).map_or(Ok(()), Err)
    }
}
