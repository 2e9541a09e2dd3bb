//! The device: found, handed over or taken over; what it can do, and what is kept for it.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::adapter::{GpuOptions, useful_features, useful_limits};
use crate::cache::Cache;
use crate::guard::{Faults, first_of, lock, scoped};
use crate::limits::{Limits, expect_capable, max_workgroup_size};
use crate::pipelines::Pipelines;
use crate::plan::{CompiledPlan, PlanKey};
use crate::poll::Poller;
use crate::pool::Pool;
use crate::program::BINDINGS;
use crate::shape::ALIGNMENT;
use crate::tuning::{DeviceClass, DeviceProfile};
use crate::{Error, Result};

/// A device and its queue, with the kernels compiled and the plans made for it so far.
///
/// Cloning is cheap: clones share everything.
#[derive(Clone)]
pub struct Gpu {
    inner: Arc<Inner>,
}

/// Which `Gpu` something is of. wgpu numbers devices and buffers anew in every instance, so that
/// those of two instances may be equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GpuId(u64);

impl GpuId {
    fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        GpuId(COUNT.fetch_add(1, Ordering::Relaxed))
    }
}

struct Inner {
    id: GpuId,
    device: wgpu::Device,
    queue: wgpu::Queue,
    info: wgpu::AdapterInfo,
    profile: DeviceProfile,
    alignment: u64,
    faults: Arc<Faults>,
    pipelines: Pipelines,
    plans: Mutex<Cache<PlanKey, Arc<CompiledPlan>>>,
    pool: Arc<Pool>,
    placeholders: Placeholders,
    poller: Poller,
}

/// Buffers for bindings that a kernel names and leaves alone: one for those that it declares as read,
/// one for the others, since a dispatch may use a buffer in one way only.
struct Placeholders {
    read: wgpu::Buffer,
    written: wgpu::Buffer,
}

/// The most plans that are kept for calls on tensors and arrays, and the most bytes of their
/// workspace: with room for both passes of linear cross entropy, of 256 MiB each by default, which would
/// otherwise push one another out at every step.
const MAX_PLANS: usize = 64;
const MAX_PLAN_BYTES: u64 = 1 << 30;

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
        Self::blocking_with_options(&GpuOptions::default())
    }

    /// The best adapter that the options allow; in a browser, the one that it gives.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] when there is none, [`Error::Internal`] when its driver refuses.
    pub async fn with_options(options: &GpuOptions) -> Result<Self> {
        Self::from_adapter(&options.adapter().await?, options).await
    }

    /// [`Gpu::with_options`] for callers that do not use async.
    ///
    /// # Errors
    /// As [`Gpu::with_options`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn blocking_with_options(options: &GpuOptions) -> Result<Self> {
        pollster::block_on(Self::with_options(options))
    }

    /// A new device of this adapter, with its [useful features](useful_features) and
    /// [limits](useful_limits). What `options` says of the choice of adapters is not looked at.
    ///
    /// # Errors
    /// [`Error::Internal`] when the driver refuses.
    pub async fn from_adapter(adapter: &wgpu::Adapter, options: &GpuOptions) -> Result<Self> {
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("wgloss"),
            required_features: useful_features(adapter),
            required_limits: useful_limits(adapter),
            ..Default::default()
        };
        let (device, queue) = adapter
            .request_device(&descriptor)
            .await
            .map_err(|error| Error::Internal(error.to_string()))?;
        let options = options.clone().own_lost_callback(true);
        let gpu = Self::from_device(device, queue, &options).await?;
        // Errors of calls of ours come back through scopes; this is for the caller's own.
        let faults = gpu.inner.faults.clone();
        gpu.device().on_uncaptured_error(Arc::new(move |error| faults.set_uncaptured(error)));
        Ok(gpu)
    }

    /// The caller's own device and queue, as they are: with the limits and features that they
    /// were created with ([`useful_features`] and [`useful_limits`] are those that make a
    /// difference). `options` may force a team, keep run-time checks and take over the lost callback;
    /// what it says of adapters is not looked at.
    ///
    /// # Errors
    /// [`Error::Value`] when its limits are too small for kernels: with fewer than eight storage
    /// buffers for a stage, say, or without compute. [`Error::DeviceLost`] when the device is lost
    /// already.
    pub async fn from_device(
        device: wgpu::Device,
        queue: wgpu::Queue,
        options: &GpuOptions,
    ) -> Result<Self> {
        let info = device.adapter_info();
        expect_capable(&device.limits(), &info.name)?;
        let faults = Arc::new(Faults::default());
        if options.own_lost_callback {
            faults.listen(&device);
        }
        let profile = profile(&device, &info, options);
        // no less than four numbers, which kernels may read at once
        let alignment = u64::from(device.limits().min_storage_buffer_offset_alignment);
        let alignment = alignment.clamp(16, ALIGNMENT);
        let small = |label| wgpu::BufferDescriptor {
            label: Some(label),
            // a range of its own for every binding
            size: BINDINGS as u64 * ALIGNMENT,
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        };
        let create = || Placeholders {
            read: device.create_buffer(&small("wgloss.read_placeholder")),
            written: device.create_buffer(&small("wgloss.written_placeholder")),
        };
        let (placeholders, scopes) = scoped(&device, create);
        let error = first_of(scopes).await;
        let gpu = Gpu {
            inner: Arc::new(Inner {
                id: GpuId::new(),
                device,
                queue,
                info,
                profile,
                alignment,
                faults,
                pipelines: Pipelines::default(),
                plans: Mutex::new(Cache::new(MAX_PLANS, MAX_PLAN_BYTES)),
                pool: Arc::default(),
                placeholders,
                poller: Poller::default(),
            }),
        };
        match gpu.lost(true).or(error) {
            Some(error) => Err(error),
            None => Ok(gpu),
        }
    }

    /// [`Gpu::from_device`] for callers that do not use async.
    ///
    /// # Errors
    /// As [`Gpu::from_device`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn blocking_from_device(
        device: wgpu::Device,
        queue: wgpu::Queue,
        options: &GpuOptions,
    ) -> Result<Self> {
        pollster::block_on(Self::from_device(device, queue, options))
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
        self.inner.profile.is_software()
    }

    /// What the choice of kernels depends on.
    #[doc(hidden)]
    pub fn profile(&self) -> &DeviceProfile {
        &self.inner.profile
    }

    /// Frees what is kept for later calls: buffers (up to 1 GiB, on the device and for the way to it
    /// and back, which calls on host arrays, [`Gpu::upload`] and [`Gpu::read`] leave to calls of the
    /// same sizes), plans with their workspace, and compiled kernels.
    pub fn trim(&self) {
        self.inner.pool.clear();
        lock(&self.inner.plans).clear();
        self.inner.pipelines.clear();
    }

    /// Bindings begin at multiples of so many bytes: at 256 of any device, at fewer where the device
    /// was created with such a limit.
    pub(crate) fn alignment(&self) -> u64 {
        self.inner.alignment
    }

    pub(crate) fn id(&self) -> GpuId {
        self.inner.id
    }

    /// Refuses what is known to be another `Gpu`'s.
    pub(crate) fn expect_own(&self, argument: &'static str, owner: Option<GpuId>) -> Result<()> {
        if owner.is_none_or(|owner| owner == self.id()) {
            return Ok(());
        }
        Err(Error::Value {
            argument,
            expected: "one of this Gpu".into(),
            actual: "one of another".into(),
        })
    }

    pub(crate) fn faults(&self) -> &Arc<Faults> {
        &self.inner.faults
    }

    pub(crate) fn pipelines(&self) -> &Pipelines {
        &self.inner.pipelines
    }

    pub(crate) fn has_runtime_checks(&self) -> bool {
        self.inner.profile.runtime_checks
    }

    /// The plans of calls on tensors and arrays.
    pub(crate) fn plans(&self) -> &Mutex<Cache<PlanKey, Arc<CompiledPlan>>> {
        &self.inner.plans
    }

    /// The buffers that are kept for later calls.
    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.inner.pool
    }

    pub(crate) fn poller(&self) -> &Poller {
        &self.inner.poller
    }

    /// A buffer for a binding that a kernel names and leaves alone.
    pub(crate) fn placeholder(&self, is_written: bool) -> &wgpu::Buffer {
        let Placeholders { read, written } = &self.inner.placeholders;
        if is_written { written } else { read }
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
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gpu").field("profile", &self.inner.profile).finish_non_exhaustive()
    }
}

/// What the choice of kernels depends on, of a device.
fn profile(device: &wgpu::Device, info: &wgpu::AdapterInfo, options: &GpuOptions) -> DeviceProfile {
    let limits = device.limits();
    let has_subgroups = device.features().contains(wgpu::Features::SUBGROUP);
    DeviceProfile {
        class: match info.device_type {
            wgpu::DeviceType::Cpu => DeviceClass::Software,
            wgpu::DeviceType::DiscreteGpu | wgpu::DeviceType::VirtualGpu => DeviceClass::Discrete,
            wgpu::DeviceType::IntegratedGpu | wgpu::DeviceType::Other => DeviceClass::Integrated,
        },
        subgroup: has_subgroups.then_some((info.subgroup_min_size, info.subgroup_max_size)),
        max_workgroup_size: max_workgroup_size(&limits),
        team_override: options.team,
        // browsers have their own
        runtime_checks: options.runtime_checks || info.backend == wgpu::Backend::BrowserWebGpu,
        limits: Limits {
            max_workgroups: limits.max_compute_workgroups_per_dimension,
            // kernels count elements in 32 bits
            max_binding: limits.max_storage_buffer_binding_size.min(u32::MAX.into()),
            max_buffer: limits.max_buffer_size,
            max_workgroup_memory: limits.max_compute_workgroup_storage_size,
            device: info.name.clone(),
        },
    }
}
