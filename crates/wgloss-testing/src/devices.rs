//! The devices that tests run on: one whose kernels are chosen by shape, and one for each team that is
//! forced on every shape.

use std::io::{Write, stderr};
use std::sync::{Once, OnceLock};

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

/// Devices of the test's own, one after the other, for tests of hundreds of kernels: software drivers
/// keep megabytes for each, and compile those of one device on one thread.
pub fn own_devices() -> impl Iterator<Item = Device> {
    kinds().into_iter().map_while(|(name, options)| Some(Device { name, gpu: open(&options)? }))
}

/// Devices that the tests of a binary share. None where there is no adapter.
pub fn devices() -> impl Iterator<Item = Device> {
    static GPUS: [OnceLock<Option<Gpu>>; 4] = [const { OnceLock::new() }; 4];
    kinds().into_iter().zip(&GPUS).map_while(|((name, options), cell)| {
        let gpu = cell.get_or_init(|| open(&options)).clone()?;
        Some(Device { name, gpu })
    })
}

/// The automatic choice, shared. `None`, and once a line that says so, where there is no adapter.
pub fn gpu() -> Option<&'static Gpu> {
    static GPU: OnceLock<Option<Gpu>> = OnceLock::new();
    GPU.get_or_init(|| Some(devices().next()?.gpu)).as_ref()
}

/// Workgroups forced on a device without subgroups.
fn without_subgroups() -> Option<Device> {
    static GPU: OnceLock<Option<Gpu>> = OnceLock::new();
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
    let gpu = GPU.get_or_init(open).clone()?;
    Some(Device { name: "workgroup, no subgroups", gpu })
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
