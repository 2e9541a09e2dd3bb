//! Buffers kept from one call to the next.
//!
//! The first use of a buffer is what costs: the system zeroes its pages, the driver maps them. So
//! calls on host arrays leave their buffers here, and calls of the same sizes find them.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The most bytes that are kept: a call on the largest input that 128 MiB bindings allow, with its
/// gradient and staging buffers for both, and as much again.
const MAX_BYTES: u64 = 1 << 30;
/// The most buffers that are kept, so that a search among them is short.
const MAX_BUFFERS: usize = 128;

/// Idle buffers, the one that was used last at the end. Those for `MAP_WRITE` are mapped.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    idle: Mutex<VecDeque<wgpu::Buffer>>,
}

impl Pool {
    fn idle(&self) -> MutexGuard<'_, VecDeque<wgpu::Buffer>> {
        // buffers come and go in one step each, so a poisoned lock guards data that is whole
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An idle buffer of this size and usage.
    pub fn take(&self, size: u64, usage: wgpu::BufferUsages) -> Option<wgpu::Buffer> {
        let mut idle = self.idle();
        let place = idle.iter().rposition(|b| (b.size(), b.usage()) == (size, usage))?;
        idle.remove(place)
    }

    /// Keeps a buffer for later. Those unused for longest make room.
    pub fn give(&self, buffer: wgpu::Buffer) {
        let mut idle = self.idle();
        idle.push_back(buffer);
        let mut bytes: u64 = idle.iter().map(wgpu::Buffer::size).sum();
        while bytes > MAX_BYTES || idle.len() > MAX_BUFFERS {
            let Some(oldest) = idle.pop_front() else { break };
            bytes -= oldest.size();
        }
    }

    /// Frees every buffer.
    pub fn clear(&self) {
        self.idle().clear();
    }
}
