//! The devices that tests run on: one whose kernels are chosen by shape, and one for each team that is
//! forced on every shape.

use std::io::{Write, stderr};
use std::sync::{Mutex, Once, PoisonError};

use wgloss::{Error, Gpu, GpuOptions, Team, wgpu};

/// A device and how it comes to its kernels.
pub struct Device {
    /// `automatic`, or the name of the team that is forced.
    pub name: &'static str,
    pub gpu: Gpu,
}

/// Whether a missing adapter is a failure.
fn is_required() -> bool {
    std::env::var("WGLOSS_REQUIRE_GPU").is_ok_and(|value| value == "1")
}

/// A device of the test's own, for tests that lose it. `None`, and a line that says so, where there
/// is no adapter.
pub fn open(options: &GpuOptions) -> Option<Gpu> {
    match pollster::block_on(Gpu::with_options(options)) {
        Ok(gpu) => Some(gpu),
        Err(error @ Error::NoAdapter { .. }) if !is_required() => {
            // once a binary, and past the capture of passing tests' output, so that a suite that
            // was skipped does not look tested
            static SAID: Once = Once::new();
            SAID.call_once(|| {
                let line = format!("\nGPU tests are skipped: {error}\n");
                let _ = stderr().write_all(line.as_bytes());
            });
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Which devices there are: the automatic choice, and every team forced.
fn kinds() -> [(&'static str, GpuOptions); 4] {
    let forced = |team: Team| (team.name(), GpuOptions::default().team(team));
    let [invocation, subgroup, workgroup] =
        [Team::Invocation, Team::Subgroup, Team::Workgroup].map(forced);
    [("automatic", GpuOptions::default()), invocation, subgroup, workgroup]
}

/// Devices of the test's own, one after the other, for tests of hundreds of kernels.
pub fn own_devices() -> impl Iterator<Item = Device> {
    kinds().into_iter().map_while(|(name, options)| Some(Device { name, gpu: open(&options)? }))
}

/// So many kernels a device has before the next test, or part of one, is given another: software drivers
/// keep megabytes for each, and gigabytes for those of all tests.
const MANY_KERNELS: isize = 150;

impl Device {
    /// In place of a device that has many kernels one that has none.
    pub fn renew(&mut self) {
        if has_many_kernels(&self.gpu) {
            let options = kinds().into_iter().find(|(name, _)| *name == self.name);
            let opened = options.and_then(|(_, options)| open(&options));
            self.gpu = opened.expect("one was there before");
        }
    }
}

fn has_many_kernels(gpu: &Gpu) -> bool {
    gpu.device().get_internal_counters().hal.compute_pipelines.read() > MANY_KERNELS
}

/// A device that tests share until it has many kernels.
type Shared = Mutex<Option<Gpu>>;

fn share(shared: &Shared, open: impl FnOnce() -> Option<Gpu>) -> Option<Gpu> {
    let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
    if shared.as_ref().is_none_or(has_many_kernels) {
        // those who have the other one keep it
        *shared = None;
        *shared = open();
    }
    shared.clone()
}

/// Devices that the tests of a binary share. None where there is no adapter.
pub fn devices() -> impl Iterator<Item = Device> {
    static GPUS: [Shared; 4] = [const { Mutex::new(None) }; 4];
    kinds().into_iter().zip(&GPUS).map_while(|((name, options), shared)| {
        let gpu = share(shared, || open(&options))?;
        Some(Device { name, gpu })
    })
}

/// The automatic choice, shared. `None`, and once a line that says so, where there is no adapter.
pub fn gpu() -> Option<Gpu> {
    Some(devices().next()?.gpu)
}

/// Workgroups forced on a device without subgroups.
fn without_subgroups() -> Option<Device> {
    static GPU: Shared = Mutex::new(None);
    let open = || {
        let features = gpu()?.device().features() - wgpu::Features::SUBGROUP;
        let adapters = pollster::block_on(wgloss::adapters());
        let descriptor = wgpu::DeviceDescriptor {
            required_features: features,
            required_limits: adapters[0].limits(),
            ..Default::default()
        };
        let device = pollster::block_on(adapters[0].request_device(&descriptor));
        let (device, queue) = device.unwrap();
        let options = GpuOptions::default().team(Team::Workgroup);
        Some(pollster::block_on(Gpu::from_device(device, queue, &options)).unwrap())
    };
    Some(Device { name: "workgroup, no subgroups", gpu: share(&GPU, open)? })
}

/// Runs a test on every device, and says before each which it is: a failure is the last one's.
pub fn on_every_device(test: impl FnMut(&Gpu)) {
    on(devices(), test);
}

/// As [`on_every_device`], and on one without subgroups, whose workgroups exchange otherwise: for sizes.
pub fn on_every_device_and_without_subgroups(test: impl FnMut(&Gpu)) {
    on(devices().chain(without_subgroups()), test);
}

fn on(devices: impl Iterator<Item = Device>, mut test: impl FnMut(&Gpu)) {
    for Device { name, gpu } in devices {
        println!("kernels: {name}");
        test(&gpu);
    }
}
