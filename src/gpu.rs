//! The device: found or taken over, its limits and features, its errors, its pipelines.

#[cfg(not(target_arch = "wasm32"))]
use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
#[cfg(not(target_arch = "wasm32"))]
use std::sync::{OnceLock, mpsc};

use crate::kernel::Kernel;
use crate::pool::Pool;
use crate::program::BINDINGS;
use crate::select::{DeviceClass, Facts, Team};
use crate::shape::ALIGNMENT;
use crate::{Error, Result};

/// A device and its queue, with the pipelines compiled for it so far.
///
/// Cloning is cheap: clones share everything.
#[derive(Clone)]
pub struct Gpu {
    inner: Arc<Inner>,
}

struct Inner {
    device: wgpu::Device,
    queue: wgpu::Queue,
    info: wgpu::AdapterInfo,
    facts: Facts,
    runtime_checks: bool,
    lost: Arc<Mutex<Option<String>>>,
    uncaptured: Arc<Mutex<Option<Error>>>,
    pipelines: Mutex<HashMap<Kernel, wgpu::ComputePipeline>>,
    pipeline_cache: Mutex<Option<wgpu::PipelineCache>>,
    pool: Arc<Pool>,
    one: wgpu::Buffer,
    unused: wgpu::Buffer,
    /// The way to a thread that polls the device for futures which [`Gpu::block_on`] does not drive.
    #[cfg(not(target_arch = "wasm32"))]
    poller: OnceLock<mpsc::Sender<Option<wgpu::SubmissionIndex>>>,
}

#[cfg(not(target_arch = "wasm32"))]
thread_local! {
    /// The submission that the future waits for which this thread polled last.
    static AWAITED: Cell<Option<wgpu::SubmissionIndex>> = const { Cell::new(None) };

    /// Whose [`Gpu::block_on`] this thread is in.
    static DRIVER: Cell<*const Inner> = const { Cell::new(std::ptr::null()) };
}

/// Which adapter [`Gpu::with_options`] takes, and how it is used.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GpuOptions {
    hardware_only: bool,
    name: Option<String>,
    team: Option<Team>,
    runtime_checks: bool,
}

impl GpuOptions {
    /// Refuse software adapters, which are CPUs. Default: take one where there is no hardware.
    pub fn hardware_only(mut self, hardware_only: bool) -> Self {
        self.hardware_only = hardware_only;
        self
    }

    /// Take only adapters whose name or driver contains this, in any case of letters.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Use this team for every kernel, where the device has it: for tests and experiments.
    /// Default: chosen by shape and device.
    pub fn team(mut self, team: Team) -> Self {
        self.team = Some(team);
        self
    }

    /// Keep wgpu's run-time checks in shaders, of bounds and of loops without end, though the host has
    /// checked all that they could find: slower, in one case by three quarters, but for finding out whether this
    /// crate is to blame. Default: without.
    pub fn runtime_checks(mut self, runtime_checks: bool) -> Self {
        self.runtime_checks = runtime_checks;
        self
    }

    fn describe(&self) -> String {
        let kind =
            if self.hardware_only { "a hardware GPU" } else { "a Vulkan, Metal or DX12 adapter" };
        match &self.name {
            Some(name) => format!("{kind} named {name:?}"),
            None => kind.into(),
        }
    }
}

/// Discrete before integrated before virtual before unknown before software.
#[cfg(not(target_arch = "wasm32"))]
fn preference(device_type: wgpu::DeviceType) -> usize {
    match device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    }
}

/// The features that make a difference, of those an adapter has.
pub(crate) fn useful_features(available: wgpu::Features) -> wgpu::Features {
    available
        & (wgpu::Features::SUBGROUP
            | wgpu::Features::TIMESTAMP_QUERY
            | wgpu::Features::PIPELINE_CACHE)
}

/// What is needed beyond WebGPU's defaults, of what an adapter has.
fn useful_limits(available: &wgpu::Limits) -> wgpu::Limits {
    wgpu::Limits {
        max_buffer_size: available.max_buffer_size,
        max_storage_buffer_binding_size: available.max_storage_buffer_binding_size,
        max_compute_invocations_per_workgroup: available.max_compute_invocations_per_workgroup,
        max_compute_workgroup_size_x: available.max_compute_workgroup_size_x,
        max_compute_workgroup_storage_size: available.max_compute_workgroup_storage_size,
        max_compute_workgroups_per_dimension: available.max_compute_workgroups_per_dimension,
        ..wgpu::Limits::default()
    }
}

/// All adapters on which kernels can run, the one to prefer first.
#[cfg(not(target_arch = "wasm32"))]
pub async fn adapters() -> Vec<wgpu::Adapter> {
    let mut adapters = instance().enumerate_adapters(wgpu::Backends::PRIMARY).await;
    adapters.retain(|adapter| {
        adapter.get_downlevel_capabilities().flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS)
    });
    adapters.sort_by_key(|adapter| preference(adapter.get_info().device_type));
    adapters
}

/// One instance for the whole process: wgpu tells a buffer of another device from one of its own only
/// within an instance.
#[cfg(not(target_arch = "wasm32"))]
fn instance() -> &'static wgpu::Instance {
    static INSTANCE: std::sync::OnceLock<wgpu::Instance> = std::sync::OnceLock::new();
    INSTANCE.get_or_init(new_instance)
}

#[cfg(target_arch = "wasm32")]
fn instance() -> wgpu::Instance {
    new_instance()
}

fn new_instance() -> wgpu::Instance {
    let descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: wgpu::Backends::PRIMARY,
        ..descriptor
    })
}

impl Gpu {
    /// The best adapter there is: hardware first.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] when there is none, [`Error::Internal`] when its driver refuses.
    pub async fn new() -> Result<Self> {
        Self::with_options(&GpuOptions::default()).await
    }

    /// [`Gpu::new`] for callers that do not use async.
    ///
    /// # Errors
    /// As [`Gpu::new`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn blocking() -> Result<Self> {
        pollster::block_on(Self::new())
    }

    /// The best adapter that the options allow.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] when there is none, [`Error::Internal`] when its driver refuses.
    #[cfg(not(target_arch = "wasm32"))]
    pub async fn with_options(options: &GpuOptions) -> Result<Self> {
        let adapters = adapters().await;
        let suits = |adapter: &&wgpu::Adapter| {
            let info = adapter.get_info();
            let named = options.name.as_ref().is_none_or(|name| {
                let known = format!("{} {} {}", info.name, info.driver, info.driver_info);
                known.to_lowercase().contains(&name.to_lowercase())
            });
            named && !(options.hardware_only && info.device_type == wgpu::DeviceType::Cpu)
        };
        let Some(adapter) = adapters.iter().find(suits) else {
            let found: Vec<_> = adapters.iter().map(|a| a.get_info().name).collect();
            return Err(Error::NoAdapter {
                expected: options.describe(),
                found: if found.is_empty() { "none".into() } else { found.join(", ") },
            });
        };
        Self::from_adapter(adapter, options).await
    }

    /// The adapter that the browser gives.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] when it gives none, [`Error::Internal`] when its driver refuses.
    #[cfg(target_arch = "wasm32")]
    pub async fn with_options(options: &GpuOptions) -> Result<Self> {
        let request = wgpu::RequestAdapterOptions {
            power_preference: wgpu::PowerPreference::HighPerformance,
            ..Default::default()
        };
        match instance().request_adapter(&request).await {
            Ok(adapter) => Self::from_adapter(&adapter, options).await,
            Err(_) => Err(Error::NoAdapter { expected: options.describe(), found: "none".into() }),
        }
    }

    async fn from_adapter(adapter: &wgpu::Adapter, options: &GpuOptions) -> Result<Self> {
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("wgloss"),
            required_features: useful_features(adapter.features()),
            required_limits: useful_limits(&adapter.limits()),
            ..Default::default()
        };
        let (device, queue) = adapter
            .request_device(&descriptor)
            .await
            .map_err(|error| Error::Internal(error.to_string()))?;
        let gpu = Self::from_device(device, queue, options).await?;
        // Errors of calls of ours come back through scopes; this is for the caller's own.
        let uncaptured = gpu.inner.uncaptured.clone();
        gpu.device().on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            lock(&uncaptured).get_or_insert(typed(error));
        }));
        Ok(gpu)
    }

    /// The caller's own device and queue, as they are: with the limits and features that they
    /// were created with. `options` may force a team and keep run-time checks; what it says of
    /// adapters is not looked at.
    ///
    /// The device's lost callback is set; [`Error::DeviceLost`] comes from it. A device has one such
    /// callback: of several `Gpu`s made for it only the last hears, so clone one instead.
    ///
    /// # Errors
    /// [`Error::DeviceLost`] when the device is lost already.
    pub async fn from_device(
        device: wgpu::Device,
        queue: wgpu::Queue,
        options: &GpuOptions,
    ) -> Result<Self> {
        let lost = Arc::new(Mutex::new(None));
        let setter = lost.clone();
        device.set_device_lost_callback(move |reason, message| {
            lock(&setter).get_or_insert(format!("{reason:?}: {message}"));
        });
        let info = device.adapter_info();
        let limits = device.limits();
        let facts = Facts {
            class: match info.device_type {
                wgpu::DeviceType::Cpu => DeviceClass::Software,
                wgpu::DeviceType::DiscreteGpu | wgpu::DeviceType::VirtualGpu => {
                    DeviceClass::Discrete
                }
                wgpu::DeviceType::IntegratedGpu | wgpu::DeviceType::Other => {
                    DeviceClass::Integrated
                }
            },
            subgroup: device
                .features()
                .contains(wgpu::Features::SUBGROUP)
                .then_some((info.subgroup_min_size, info.subgroup_max_size)),
            max_workgroup_size: limits
                .max_compute_invocations_per_workgroup
                .min(limits.max_compute_workgroup_size_x),
            max_workgroups: limits.max_compute_workgroups_per_dimension,
            // kernels count elements in 32 bits
            max_binding: limits.max_storage_buffer_binding_size.min(u32::MAX.into()),
            max_buffer: limits.max_buffer_size,
            device: info.name.clone(),
            // Browsers' compilers refuse barriers and shuffles that they cannot prove all members to
            // come to.
            forced: options
                .team
                .or((info.backend == wgpu::Backend::BrowserWebGpu).then_some(Team::Invocation)),
        };
        let small = |label, usage| wgpu::BufferDescriptor {
            label: Some(label),
            // for every binding its own
            size: BINDINGS as u64 * ALIGNMENT,
            usage: usage | wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        };
        let create = || {
            let one = device.create_buffer(&small("wgloss.one", wgpu::BufferUsages::COPY_DST));
            let ones = [1.0_f32; BINDINGS * ALIGNMENT as usize / 4];
            queue.write_buffer(&one, 0, bytemuck::cast_slice(&ones));
            let unused = device.create_buffer(&small("wgloss.unused", wgpu::BufferUsages::empty()));
            (one, unused)
        };
        let (one, unused) = guarded(&device, &lost, create).await?;
        let (uncaptured, pipelines, pipeline_cache, pool) = Default::default();
        let inner = Inner {
            device,
            queue,
            info,
            facts,
            runtime_checks: options.runtime_checks,
            lost,
            uncaptured,
            pipelines,
            pipeline_cache,
            pool,
            one,
            unused,
            #[cfg(not(target_arch = "wasm32"))]
            poller: OnceLock::new(),
        };
        Ok(Gpu { inner: Arc::new(inner) })
    }

    /// The wgpu device.
    pub fn device(&self) -> &wgpu::Device {
        &self.inner.device
    }

    /// The wgpu queue.
    pub fn queue(&self) -> &wgpu::Queue {
        &self.inner.queue
    }

    /// The adapter's name, driver and type.
    pub fn info(&self) -> &wgpu::AdapterInfo {
        &self.inner.info
    }

    /// Whether the adapter is a CPU.
    pub fn is_software(&self) -> bool {
        self.inner.facts.is_software()
    }

    /// Has kernels compiled into a cache from now on, whose [data](wgpu::PipelineCache::get_data) the
    /// caller may store, and give to the cache of a later process, which then need not compile them
    /// again. Many drivers do that by themselves.
    ///
    /// The cache must be the [device](Gpu::device)'s
    /// ([`create_pipeline_cache`](wgpu::Device::create_pipeline_cache), where the device has
    /// [`wgpu::Features::PIPELINE_CACHE`]); kernels are refused with [`Error::Validation`] otherwise.
    pub fn use_pipeline_cache(&self, cache: wgpu::PipelineCache) {
        *lock(&self.inner.pipeline_cache) = Some(cache);
    }

    /// The first error that wgpu reported outside of any call of this crate and outside of any error
    /// scope since this was last asked: of an encoder that the caller submitted, for instance.
    ///
    /// `None` for a device taken over by [`Gpu::from_device`], whose handler is left as it is.
    pub fn take_uncaptured_error(&self) -> Option<Error> {
        lock(&self.inner.uncaptured).take()
    }

    /// What the choice of kernels depends on.
    pub(crate) fn facts(&self) -> &Facts {
        &self.inner.facts
    }

    /// The buffers that are kept for later calls.
    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.inner.pool
    }

    /// A buffer that holds ones.
    pub(crate) fn one(&self) -> &wgpu::Buffer {
        &self.inner.one
    }

    /// A buffer for bindings that a kernel names and leaves alone.
    pub(crate) fn unused(&self) -> &wgpu::Buffer {
        &self.inner.unused
    }

    /// The pipeline of a kernel, compiled at most once.
    pub(crate) fn pipeline(&self, kernel: &Kernel) -> wgpu::ComputePipeline {
        let mut pipelines = lock(&self.inner.pipelines);
        if let Some(pipeline) = pipelines.get(kernel) {
            return pipeline.clone();
        }
        let module = module(self.device(), kernel, self.inner.runtime_checks);
        let constants: Vec<_> = kernel.constants.iter().map(|&(k, v)| (k, v.into())).collect();
        let pipeline = self.device().create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&kernel.label),
            layout: None,
            module: &module,
            entry_point: Some(kernel.entry_point),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &constants,
                // every kernel writes its workgroup memory before it reads it
                zero_initialize_workgroup_memory: false,
            },
            cache: lock(&self.inner.pipeline_cache).as_ref(),
        });
        pipelines.insert(kernel.clone(), pipeline.clone());
        pipeline
    }

    /// Forgets every pipeline: some may have failed to compile.
    pub(crate) fn forget_pipelines(&self) {
        lock(&self.inner.pipelines).clear();
    }

    /// Runs `work`, and waits for the errors that wgpu found in it.
    pub(crate) fn guarded<T>(&self, work: impl FnOnce() -> T) -> impl Future<Output = Result<T>> {
        guarded(&self.inner.device, &self.inner.lost, work)
    }

    /// Waits until all that was submitted is done.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) async fn idle(&self) {
        let (sender, receiver) = futures_intrusive::channel::shared::oneshot_channel();
        self.queue().on_submitted_work_done(move || {
            let _ = sender.send(());
        });
        self.awaits(None);
        receiver.receive().await;
    }

    /// To be called by a future before it waits for a submission's results, or for those of all that
    /// were submitted: somebody has to poll the device until they are there.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn awaits(&self, submission: Option<&wgpu::SubmissionIndex>) {
        if DRIVER.get() == Arc::as_ptr(&self.inner) {
            AWAITED.set(submission.cloned());
            return;
        }
        let poller = self.inner.poller.get_or_init(|| {
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

    /// Browsers poll by themselves.
    #[cfg(target_arch = "wasm32")]
    pub(crate) fn awaits(&self, _submission: Option<&wgpu::SubmissionIndex>) {}

    /// After a failure: the error that the device is lost, if it is.
    pub(crate) fn lost(&self) -> Option<Error> {
        settle(&self.inner.device, &self.inner.lost);
        lost(&self.inner.device, &self.inner.lost)
    }

    /// A buffer of this size and usage, with any content, mapped if it is for `MAP_WRITE`: one that
    /// is kept, where there is one.
    pub(crate) fn buffer(&self, label: &str, size: u64, usage: wgpu::BufferUsages) -> wgpu::Buffer {
        self.inner.pool.take(size, usage).unwrap_or_else(|| {
            self.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size,
                usage,
                mapped_at_creation: usage.contains(wgpu::BufferUsages::MAP_WRITE),
            })
        })
    }

    /// Frees the memory that is kept for later calls: up to 1 GiB of buffers, on the device and for
    /// the way to it and back, which calls on host arrays, [`Gpu::upload`] and [`Gpu::read`] leave
    /// to calls of the same sizes.
    pub fn trim(&self) {
        self.inner.pool.clear();
    }

    /// [`Gpu::guarded`] for work that allocates: where memory is short, once more without what is
    /// kept.
    pub(crate) async fn guarded_trimming<T>(&self, work: impl Fn() -> T) -> Result<T> {
        match self.guarded(&work).await {
            Err(Error::OutOfMemory(_)) => {
                self.trim();
                self.guarded(work).await
            }
            result => result,
        }
    }

    /// Runs a future of this crate to its end, and polls the device meanwhile.
    ///
    /// Callers that use async await the future instead, under any executor: a thread of this `Gpu`'s own
    /// then polls the device, which costs two changes of threads a wait.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        use std::task::{Context, Poll, Wake, Waker};

        struct Unpark(std::thread::Thread);
        impl Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }

        struct Restore(*const Inner);
        impl Drop for Restore {
            fn drop(&mut self) {
                DRIVER.set(self.0);
            }
        }

        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let _restore = Restore(DRIVER.replace(Arc::as_ptr(&self.inner)));
        AWAITED.take(); // what a future left that was dropped
        let mut future = std::pin::pin!(future);
        loop {
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return output;
            }
            wait(self.device(), AWAITED.take());
            // Returns at once if that woke the future; otherwise another thread is at work.
            std::thread::park_timeout(std::time::Duration::from_millis(1));
        }
    }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gpu").field("facts", &self.inner.facts).finish_non_exhaustive()
    }
}

/// A poisoned lock guards data that is whole all the same: entries are inserted in one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Polls the device until a submission is done, or all are.
#[cfg(not(target_arch = "wasm32"))]
fn wait(device: &wgpu::Device, submission_index: Option<wgpu::SubmissionIndex>) {
    // an error here is one of the device's: futures see it too
    let _ = device.poll(wgpu::PollType::Wait { submission_index, timeout: None });
}

fn lost(device: &wgpu::Device, lost: &Mutex<Option<String>>) -> Option<Error> {
    // the callback comes with a poll
    let _ = device.poll(wgpu::PollType::Poll);
    lock(lost).clone().map(Error::DeviceLost)
}

async fn guarded<T>(
    device: &wgpu::Device,
    is_lost: &Mutex<Option<String>>,
    work: impl FnOnce() -> T,
) -> Result<T> {
    let (value, scopes) = scoped(device, work);
    let mut first = None;
    for scope in scopes {
        if let Some(error) = scope.await {
            first = first.or(Some(error));
        }
    }
    if first.is_some() {
        settle(device, is_lost);
    }
    match (lost(device, is_lost), first) {
        (Some(lost), _) => Err(lost),
        (None, Some(error)) => Err(typed(error)),
        (None, None) => Ok(value),
    }
}

/// What a lost device is asked to do fails in other words first; that it is lost is told once its
/// queue is empty. So after a failure it is given time for that.
fn settle(device: &wgpu::Device, lost: &Mutex<Option<String>>) {
    let pause = || {
        #[cfg(not(target_arch = "wasm32"))]
        std::thread::sleep(std::time::Duration::from_millis(1));
    };
    // By polls: where another thread empties the queue meanwhile, a wait with a timeout panics in
    // wgpu 30.
    for _ in 0..5000 {
        match device.poll(wgpu::PollType::Poll) {
            Ok(status) if !status.is_queue_empty() => pause(),
            _ => break,
        }
    }
    // The poll of another thread may have the lost callback in hand: it calls those of buffers first.
    for _ in 0..20 {
        if lock(lost).is_some() {
            break;
        }
        pause();
    }
}

fn typed(error: wgpu::Error) -> Error {
    match error {
        wgpu::Error::OutOfMemory { source } => Error::OutOfMemory(source.to_string()),
        wgpu::Error::Validation { description, .. } => Error::Validation(description),
        wgpu::Error::Internal { description, .. } => Error::Internal(description),
    }
}

/// The guards of error scopes must not cross threads, so they end here, before any await.
fn scoped<T, W: FnOnce() -> T>(
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

/// A shader, usually without checks of its own: they cost up to nearly half of a kernel's time, and keep
/// compilers from unrolling its loops.
#[allow(unsafe_code)]
fn module(device: &wgpu::Device, kernel: &Kernel, runtime_checks: bool) -> wgpu::ShaderModule {
    let descriptor = wgpu::ShaderModuleDescriptor {
        label: Some(&kernel.label),
        source: wgpu::ShaderSource::Wgsl(kernel.source().into()),
    };
    if runtime_checks || !kernel.is_trusted() {
        return device.create_shader_module(descriptor);
    }
    // SAFETY: Every place that a kernel of this crate reads or writes is one of the elements of a
    // layout, which was held to the buffer it is bound to; or in an array of the shader's own, at a
    // constant, at a counter of a loop up to the array's size, or at the invocation's number in its
    // workgroup, divided by what the array has less. Classes out of range, the only places that data
    // tells of, are compared with the number of classes first. Every loop counts up to a bound that the
    // host has set. Whole numbers are divided, unsigned, by constants and by sizes of at least 1.
    unsafe {
        device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked())
    }
}
