//! Errors of the device: every use of it is guarded by error scopes, and what went wrong gets a type.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Error, Gpu, Result};

/// What the device's callbacks have told.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// Whether the lost callback is ours.
    has_lost_callback: AtomicBool,
    /// Why the device is lost.
    lost: Mutex<Option<String>>,
    /// The first error outside of any error scope: of the caller's own use of the device.
    uncaptured: Mutex<Option<Error>>,
}

impl Faults {
    /// Listens to the device's callback of its loss.
    pub fn listen(self: &Arc<Self>, device: &wgpu::Device) {
        let faults = self.clone();
        device.set_device_lost_callback(move |reason, message| faults.set_lost(reason, &message));
        self.has_lost_callback.store(true, Ordering::Release);
    }

    fn set_lost(&self, reason: wgpu::DeviceLostReason, message: &str) {
        let told = match message {
            "" => format!("{reason:?}"),
            message => format!("{reason:?}: {message}"),
        };
        lock(&self.lost).get_or_insert(told);
    }

    pub fn set_uncaptured(&self, error: wgpu::Error) {
        lock(&self.uncaptured).get_or_insert(typed(error));
    }
}

impl Gpu {
    /// Runs `work`, and waits for the errors that wgpu found in it. What fails on a device that is
    /// lost fails for that reason, whatever it says. An error that the caller's own use of the device
    /// has left is reported instead.
    pub(crate) fn guarded<T>(
        &self,
        work: impl FnOnce() -> Result<T>,
    ) -> impl Future<Output = Result<T>> {
        let earlier = lock(&self.faults().uncaptured).take();
        let scoped = match earlier {
            Some(error) => Err(Error::Uncaptured(Box::new(error))),
            // the guards of error scopes must not cross threads, so they end before any await
            None => Ok(scoped(self.device(), work)),
        };
        async {
            let (result, scopes) = scoped?;
            let error = first_of(scopes).await;
            match self.lost(error.is_some() || result.is_err()).or(error) {
                Some(error) => Err(error),
                None => result,
            }
        }
    }

    /// [`Gpu::guarded`] for work that allocates: where memory is short, once more without what is
    /// kept.
    pub(crate) async fn guarded_trimming<T>(&self, work: impl Fn() -> Result<T>) -> Result<T> {
        match self.guarded(&work).await {
            Err(Error::OutOfMemory(_)) => {
                self.trim();
                self.guarded(work).await
            }
            result => result,
        }
    }

    /// The error that the device is lost, if it is. After a failure it is looked at more closely: a
    /// lost device fails in other words first, and wgpu's callback may come late, or be somebody
    /// else's. But a lost device maps no new buffer.
    pub(crate) fn lost(&self, has_failed: bool) -> Option<Error> {
        // the callback comes with a poll
        let _ = self.device().poll(wgpu::PollType::Poll);
        let faults = self.faults();
        if let Some(reason) = lock(&faults.lost).clone() {
            return Some(Error::DeviceLost(reason));
        }
        if !has_failed && faults.has_lost_callback.load(Ordering::Acquire) {
            return None;
        }
        let buffer = self.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some("wgloss.lost"),
            size: 8,
            usage: wgpu::BufferUsages::MAP_WRITE,
            mapped_at_creation: true,
        });
        if buffer.get_mapped_range_mut(..).is_ok() {
            return None;
        }
        let reason = "it maps no buffers any more".to_string();
        Some(Error::DeviceLost(lock(&faults.lost).get_or_insert(reason).clone()))
    }
}

/// A poisoned lock guards data that is whole all the same: entries are inserted in one step.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn typed(error: wgpu::Error) -> Error {
    match error {
        wgpu::Error::OutOfMemory { source } => Error::OutOfMemory(source.to_string()),
        wgpu::Error::Validation { description, .. } => Error::Validation(description),
        wgpu::Error::Internal { description, .. } => Error::Internal(description),
    }
}

/// What `work` returns, and what the error scopes around it will have caught.
pub(crate) fn scoped<T, W: FnOnce() -> T>(
    device: &wgpu::Device,
    work: W,
) -> (T, [impl Future<Output = Option<wgpu::Error>> + use<T, W>; 3]) {
    let filters = [
        wgpu::ErrorFilter::Validation,
        wgpu::ErrorFilter::OutOfMemory,
        wgpu::ErrorFilter::Internal,
    ];
    let [validation, out_of_memory, internal] =
        filters.map(|filter| device.push_error_scope(filter));
    let value = work();
    // innermost first
    (value, [internal.pop(), out_of_memory.pop(), validation.pop()])
}

/// The first error of these scopes.
pub(crate) async fn first_of(
    scopes: impl IntoIterator<Item = impl Future<Output = Option<wgpu::Error>>>,
) -> Option<Error> {
    let mut first = None;
    for scope in scopes {
        let error = scope.await;
        first = first.or(error);
    }
    first.map(typed)
}
