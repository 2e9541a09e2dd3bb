//! Who polls the device. wgpu calls back only where somebody polls: [`Gpu::block_on`] does for the
//! future that it drives, and for futures under other executors a thread does. Browsers poll by
//! themselves.

#[cfg(not(target_arch = "wasm32"))]
pub(crate) use native::Poller;
#[cfg(target_arch = "wasm32")]
pub(crate) use web::Poller;

#[cfg(not(target_arch = "wasm32"))]
mod native {
    use std::cell::Cell;
    use std::sync::{Arc, OnceLock, mpsc};
    use std::task::{Context, Poll, Wake, Waker};

    use crate::Gpu;

    /// The way to a thread that polls the device for futures which [`Gpu::block_on`] does not drive.
    #[derive(Default)]
    pub(crate) struct Poller(OnceLock<mpsc::Sender<Option<wgpu::SubmissionIndex>>>);

    thread_local! {
        /// The submission awaited by the future that this thread most recently polled.
        static AWAITED: Cell<Option<wgpu::SubmissionIndex>> = const { Cell::new(None) };

        /// Whose [`Gpu::block_on`] this thread is in: the address of its [`Poller`].
        static DRIVER: Cell<*const Poller> = const { Cell::new(std::ptr::null()) };
    }

    impl Gpu {
        /// To be called by a future before it waits for a submission's results, or for those of all
        /// that were submitted: somebody has to poll the device until they are there.
        pub(crate) fn awaits(&self, submission: Option<&wgpu::SubmissionIndex>) {
            if DRIVER.get() == std::ptr::from_ref(self.poller()) {
                AWAITED.set(submission.cloned());
                return;
            }
            let poller = self.poller().0.get_or_init(|| {
                let (sender, receiver) = mpsc::channel();
                let device = self.device().clone();
                let work =
                    move || receiver.into_iter().for_each(|submission| wait(&device, submission));
                // it ends with the last clone of this Gpu; where there can be none, nothing is received
                let _ = std::thread::Builder::new().name("wgloss".into()).spawn(work);
                sender
            });
            if let Err(mpsc::SendError(submission)) = poller.send(submission.cloned()) {
                wait(self.device(), submission);
            }
        }

        /// Runs a future of this crate to its end, and polls the device meanwhile.
        ///
        /// Callers that use async await the future instead, under any executor: a thread of this
        /// `Gpu`'s own then polls the device, which costs two changes of threads a wait.
        pub fn block_on<F: Future>(&self, future: F) -> F::Output {
            struct Unpark(std::thread::Thread);
            impl Wake for Unpark {
                fn wake(self: Arc<Self>) {
                    self.0.unpark();
                }
            }

            struct Restore(*const Poller);
            impl Drop for Restore {
                fn drop(&mut self) {
                    DRIVER.set(self.0);
                }
            }

            let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
            let _restore = Restore(DRIVER.replace(std::ptr::from_ref(self.poller())));
            AWAITED.take(); // what a future left that was dropped
            let mut future = std::pin::pin!(future);
            loop {
                if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker))
                {
                    return output;
                }
                wait(self.device(), AWAITED.take());
                // Returns at once if that woke the future; otherwise another thread is at work.
                std::thread::park_timeout(std::time::Duration::from_millis(1));
            }
        }
    }

    /// Polls the device until a submission is done, or all are.
    fn wait(device: &wgpu::Device, submission_index: Option<wgpu::SubmissionIndex>) {
        // an error here is one of the device's: futures see it too
        let _ = device.poll(wgpu::PollType::Wait { submission_index, timeout: None });
    }
}

#[cfg(target_arch = "wasm32")]
mod web {
    use crate::Gpu;

    #[derive(Default)]
    pub(crate) struct Poller;

    impl Gpu {
        pub(crate) fn awaits(&self, _submission: Option<&wgpu::SubmissionIndex>) {}
    }
}
