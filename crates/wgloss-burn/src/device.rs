//! Devices: which of burn's are shared with wgloss, and what has gone wrong on them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::backend::DispatchDevice;
use burn::backend::wgpu::WgpuSetup;
use burn::tensor::Device;
use burn_cubecl::CubeDevice;
use wgloss::{Gpu, GpuOptions, Status};

use crate::{Error, Result};

/// A device of burn's as wgloss uses it.
pub struct Shared {
    pub gpu: Gpu,
    /// Where kernels keep the first fault that they find in the arguments.
    pub status: Status,
    /// The first error of a call since the last check. Calls run when burn gets to them, with fusion
    /// on burn's own thread, where nobody could take an error and a panic would end the device.
    failed: Mutex<Option<Error>>,
}

impl Shared {
    pub fn set_failed(&self, error: Error) {
        lock(&self.failed).get_or_insert(error);
    }
}

static DEVICES: Mutex<Option<HashMap<CubeDevice, Arc<Shared>>>> = Mutex::new(None);

/// A poisoned lock guards data that is whole all the same.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts burn on its default wgpu device, shared with wgloss: call it before anything else uses that
/// device. `Device::default()` is this device from then on, where wgpu is burn's only backend.
///
/// Options of burn's, or another adapter: make the device with `Device::wgpu_options()` and hand it to
/// [`share`].
///
/// # Errors
/// [`Error::Burn`] where burn finds no adapter, and where the device is in use already.
pub fn init() -> Result<Device> {
    let (device, setup) =
        Device::wgpu_options().init_with_setup().map_err(|error| Error::Burn(error.to_string()))?;
    share(&device, &setup)?;
    Ok(device)
}

/// Shares with wgloss a device of burn's that was started with `init_with_setup`, which returns the
/// setup, or from a setup of the program's own:
///
/// ```no_run
/// use burn::tensor::{Device, DeviceKind};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let options = Device::wgpu_options().device_kind(DeviceKind::IntegratedGpu(0));
/// let (device, setup) = options.init_with_setup()?;
/// wgloss_burn::share(&device, &setup)?;
/// # Ok(())
/// # }
/// ```
///
/// burn generates its kernels for what the adapter can do. A device of the program's own therefore
/// needs all of the adapter's features but experimental ones and `MAPPABLE_PRIMARY_BUFFERS`, and all of
/// its limits, or burn's kernels do not compile. burn's own devices have them.
///
/// burn's callback of a lost device stays as it is.
///
/// # Errors
/// [`Error::NotWgpu`]; [`Error::Wgloss`] where the device is lost or has too few limits.
pub fn share(device: &Device, setup: &WgpuSetup) -> Result<()> {
    let key = cube_device(device)?.clone();
    let options = GpuOptions::default();
    let gpu = Gpu::blocking_from_device(setup.device.clone(), setup.queue.clone(), &options)?;
    let status = gpu.block_on(gpu.status())?;
    let shared = Shared { gpu, status, failed: Mutex::default() };
    lock(&DEVICES).get_or_insert_default().insert(key, Arc::new(shared));
    Ok(())
}

/// Waits for all that was computed on the device, and turns the first fault since the last check into
/// an error: a class out of range, whose row's loss is NaN; a lost device; too little memory. Since
/// that waits, call it now and then, such as once an epoch.
///
/// With fusion, that is all that this thread has asked for, and what others have asked for whose results
/// were needed.
///
/// Losses do not report such faults themselves, since burn computes later than it is called. The
/// results of a call that has failed are NaN, and -1 where they are integers.
///
/// # Errors
/// [`Error::Wgloss`] for the fault, [`Error::Burn`] where burn has lost the device,
/// [`Error::NotShared`].
pub fn check(device: &Device) -> Result<()> {
    let shared = shared(device)?;
    // with fusion, calls may not have run yet
    let synced = device.sync();
    if let Some(error) = lock(&shared.failed).take() {
        return Err(error);
    }
    shared.gpu.block_on(shared.gpu.check(&shared.status))?;
    synced.map_err(|error| Error::Burn(error.to_string()))
}

/// What is shared of a device.
pub fn shared(device: &Device) -> Result<Arc<Shared>> {
    let key = cube_device(device)?;
    find(key).ok_or_else(|| Error::NotShared { device: format!("{device:?}") })
}

pub fn find(device: &CubeDevice) -> Option<Arc<Shared>> {
    lock(&DEVICES).as_ref()?.get(device).cloned()
}

fn cube_device(device: &Device) -> Result<&CubeDevice> {
    let inner = match device.as_dispatch() {
        DispatchDevice::Autodiff(device) => device,
        device => device,
    };
    match inner {
        DispatchDevice::Cube(device @ CubeDevice::Wgpu(_)) => Ok(device),
        _ => Err(Error::NotWgpu { device: format!("{device:?}") }),
    }
}
