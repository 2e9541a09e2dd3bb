//! How long the device takes: by timestamps around the dispatches, or the whole queue's time where
//! there are none.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use wgloss::{Gpu, wgpu};

/// Takes the time of one submission after another.
pub struct Timer<'a> {
    gpu: &'a Gpu,
    has_timestamps: bool,
}

impl<'a> Timer<'a> {
    pub fn new(gpu: &'a Gpu) -> Self {
        let has_timestamps = gpu.device().features().contains(wgpu::Features::TIMESTAMP_QUERY);
        Timer { gpu, has_timestamps }
    }

    /// What the times are of.
    pub fn describe(&self) -> &'static str {
        match self.has_timestamps {
            true => "timestamps around the dispatches",
            false => "from submission until the queue is empty",
        }
    }

    /// Runs what is encoded with the timestamps given, and waits for it.
    pub fn time(
        &self,
        encode: impl FnOnce(
            &mut wgpu::CommandEncoder,
            Option<wgpu::ComputePassTimestampWrites<'_>>,
        ) -> wgloss::Result<()>,
    ) -> Result<Duration> {
        if !self.has_timestamps {
            return self.time_whole(|encoder| encode(encoder, None));
        }
        let device = self.gpu.device();
        let buffer = |usage| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("timestamps"),
                size: 16,
                usage,
                mapped_at_creation: false,
            })
        };
        let set = device.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("timestamps"),
            ty: wgpu::QueryType::Timestamp,
            count: 2,
        });
        let resolved = buffer(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC);
        let read = buffer(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST);
        let mut encoder = device.create_command_encoder(&Default::default());
        let writes = wgpu::ComputePassTimestampWrites {
            query_set: &set,
            beginning_of_pass_write_index: Some(0),
            end_of_pass_write_index: Some(1),
        };
        encode(&mut encoder, Some(writes))?;
        encoder.resolve_query_set(&set, 0..2, &resolved, 0);
        encoder.copy_buffer_to_buffer(&resolved, 0, &read, 0, None);
        self.gpu.queue().submit([encoder.finish()]);
        read.map_async(wgpu::MapMode::Read, .., |_| {});
        self.wait()?;
        let range = read.get_mapped_range(..).context("cannot read timestamps")?;
        let tick = |bytes: &[u8]| bytes.try_into().map(u64::from_ne_bytes);
        let (start, end) = (tick(&range[..8])?, tick(&range[8..16])?);
        let nanoseconds =
            end.saturating_sub(start) as f64 * f64::from(self.gpu.queue().get_timestamp_period());
        Ok(Duration::from_nanos(nanoseconds as u64))
    }

    /// The time from submission until the queue is empty.
    pub fn time_whole(
        &self,
        encode: impl FnOnce(&mut wgpu::CommandEncoder) -> wgloss::Result<()>,
    ) -> Result<Duration> {
        self.wait()?;
        let mut encoder = self.gpu.device().create_command_encoder(&Default::default());
        encode(&mut encoder)?;
        let commands = encoder.finish();
        let start = Instant::now();
        self.gpu.queue().submit([commands]);
        self.wait()?;
        Ok(start.elapsed())
    }

    fn wait(&self) -> Result<()> {
        self.gpu.device().poll(wgpu::PollType::wait_indefinitely()).context("cannot wait")?;
        Ok(())
    }
}
