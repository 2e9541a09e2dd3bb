//! Adapters: which there are, which to take, and what to ask of one.

use crate::{Error, Result, Team};

/// Which adapter [`Gpu::with_options`](crate::Gpu::with_options) takes, and how it is used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GpuOptions {
    hardware_only: bool,
    name: Option<String>,
    index: Option<usize>,
    pub(crate) team: Option<Team>,
    pub(crate) runtime_checks: bool,
    pub(crate) own_lost_callback: bool,
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

    /// Take the adapter of this index among those that the other options allow, in the order of
    /// [`adapters`](crate::adapters). Default: the first.
    pub fn index(mut self, index: usize) -> Self {
        self.index = Some(index);
        self
    }

    /// Use this team for every kernel, where the device has it: for tests and experiments. On software
    /// devices, whose drivers may cut long loops short, rows that are too long for it (of more than
    /// 30,000 classes a member) may be split among several, or refused with
    /// [`Error::Value`](crate::Error::Value). Default: chosen by shape and device.
    pub fn team(mut self, team: Team) -> Self {
        self.team = Some(team);
        self
    }

    /// Keeps wgpu's bounds and infinite-loop checks in shaders; they can only catch a bug of this
    /// crate and cost up to 75%, so enable them to rule this crate out. Default: without.
    pub fn runtime_checks(mut self, runtime_checks: bool) -> Self {
        self.runtime_checks = runtime_checks;
        self
    }

    /// Whether [`Gpu::from_device`](crate::Gpu::from_device) sets the device's lost callback, of which
    /// a device has one: [`Error::DeviceLost`] then tells the driver's reason. Without it a lost
    /// device is an [`Error::DeviceLost`] too, and whoever has set the callback keeps it. Default: no.
    pub fn own_lost_callback(mut self, own: bool) -> Self {
        self.own_lost_callback = own;
        self
    }

    fn describe(&self) -> String {
        let kind =
            if self.hardware_only { "a hardware GPU" } else { "a Vulkan, Metal or DX12 adapter" };
        let name = self.name.as_ref().map(|name| format!(" named {name:?}"));
        let index = self.index.map(|index| format!(" at index {index}"));
        [kind, &name.unwrap_or_default(), &index.unwrap_or_default()].concat()
    }

    /// The adapter that the options ask for.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) async fn adapter(&self) -> Result<wgpu::Adapter> {
        let adapters = adapters().await;
        let suits = |adapter: &&wgpu::Adapter| {
            let info = adapter.get_info();
            let is_named = self.name.as_ref().is_none_or(|name| {
                let known = format!("{} {} {}", info.name, info.driver, info.driver_info);
                known.to_lowercase().contains(&name.to_lowercase())
            });
            is_named && !(self.hardware_only && info.device_type == wgpu::DeviceType::Cpu)
        };
        let chosen = adapters.iter().filter(suits).nth(self.index.unwrap_or(0));
        chosen.cloned().ok_or_else(|| {
            let found: Vec<_> = adapters.iter().map(|a| a.get_info().name).collect();
            Error::NoAdapter {
                expected: self.describe(),
                found: if found.is_empty() { "none".into() } else { found.join(", ") },
            }
        })
    }

    /// The adapter that the browser gives.
    #[cfg(target_arch = "wasm32")]
    pub(crate) async fn adapter(&self) -> Result<wgpu::Adapter> {
        let request = wgpu::RequestAdapterOptions {
            power_preference: wgpu::PowerPreference::HighPerformance,
            ..Default::default()
        };
        let adapter = new_instance().request_adapter(&request).await;
        adapter.map_err(|_| Error::NoAdapter { expected: self.describe(), found: "none".into() })
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

/// The features that make a difference, of those an adapter has: for a
/// [device descriptor](wgpu::DeviceDescriptor) of the caller's own.
pub fn useful_features(adapter: &wgpu::Adapter) -> wgpu::Features {
    adapter.features()
        & (wgpu::Features::SUBGROUP
            | wgpu::Features::TIMESTAMP_QUERY
            | wgpu::Features::PIPELINE_CACHE)
}

/// What is needed beyond WebGPU's defaults, of what an adapter has: for a
/// [device descriptor](wgpu::DeviceDescriptor) of the caller's own.
pub fn useful_limits(adapter: &wgpu::Adapter) -> wgpu::Limits {
    let available = adapter.limits();
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

fn new_instance() -> wgpu::Instance {
    let descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: wgpu::Backends::PRIMARY,
        ..descriptor
    })
}
