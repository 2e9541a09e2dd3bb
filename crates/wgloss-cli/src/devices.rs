//! `wgloss devices`: what there is to run on.

use anyhow::bail;
use serde::{Serialize, Serializer};
use wgloss::wgpu::{Adapter, AdapterInfo, DeviceType, Features};

use crate::report::Json;

const NONE: &str = "no adapter found: install a Vulkan driver for the GPU, or Mesa's for the CPU \
    (Debian, Ubuntu: apt-get install libvulkan1 mesa-vulkan-drivers); VK_DRIVER_FILES and \
    VK_ICD_FILENAMES hide every other driver when they are set";
const ORDER: &str = "hardware before software, discrete before integrated";

/// A property of an adapter.
#[derive(Serialize)]
#[serde(untagged)]
enum Value {
    Text(String),
    Flag(bool),
    Number(u64),
    Bytes(u64),
}

impl Value {
    fn text(&self) -> String {
        match self {
            Value::Text(text) => text.clone(),
            Value::Flag(flag) => if *flag { "yes" } else { "no" }.into(),
            Value::Number(number) => number.to_string(),
            Value::Bytes(bytes) => in_units(*bytes),
        }
    }
}

/// Bytes in the unit that suits them.
pub fn in_units(bytes: u64) -> String {
    let unit = (bytes.max(1).ilog2() / 10).min(4);
    let name = ["bytes", "KiB", "MiB", "GiB", "TiB"][unit as usize];
    let short = bytes as f64 / f64::from(unit * 10).exp2();
    format!("{} {name}", (short * 100.0).round() / 100.0)
}

/// What distinguishes an adapter, in the order in which it is told.
struct Properties(Vec<(&'static str, Value)>);

impl Serialize for Properties {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

/// All of it, as JSON has it.
#[derive(Serialize)]
struct Listing {
    adapters: Vec<Properties>,
    /// Which of them `--device gpu` takes.
    gpu: Option<usize>,
    /// Which of them `--device auto` takes.
    auto: Option<usize>,
}

/// Lists every adapter.
pub fn list(json: &Json) -> anyhow::Result<()> {
    json.check()?;
    let adapters = pollster::block_on(wgloss::adapters());
    let gpu = (!adapters.is_empty()).then_some(0);
    let auto = adapters.iter().position(|a| a.get_info().device_type != DeviceType::Cpu);
    let listing = || {
        let adapters = adapters.iter().map(properties).collect();
        Ok(serde_json::to_string_pretty(&Listing { adapters, gpu, auto })?)
    };
    let mut lines = Vec::new();
    if gpu.is_some() {
        for (index, adapter) in adapters.iter().enumerate() {
            for (key, value) in properties(adapter).0 {
                lines.push(match key {
                    "name" => format!("{index}  {}", value.text()),
                    _ => format!("   {:34} {}", key.replace('_', " "), value.text()),
                });
            }
            lines.push(String::new());
        }
        lines.push(format!("--device gpu   takes 0: the first ({ORDER})"));
        lines.push(match auto {
            Some(index) => format!("--device auto  takes {index}: the first hardware GPU"),
            None => "--device auto  takes the CPU: none of these is a hardware GPU".into(),
        });
    }
    json.tell(listing, &lines, false)?;
    match gpu {
        Some(_) => Ok(()),
        None => bail!(NONE),
    }
}

/// An adapter in a line.
pub fn describe(info: &AdapterInfo) -> String {
    let mut words = vec![kind(info.device_type).to_string(), info.backend.to_string()];
    words.extend([&info.driver, &info.driver_info].into_iter().filter(|w| !w.is_empty()).cloned());
    format!("{}: {}", info.name, words.join(", "))
}

fn kind(device_type: DeviceType) -> &'static str {
    match device_type {
        DeviceType::DiscreteGpu => "discrete GPU",
        DeviceType::IntegratedGpu => "integrated GPU",
        DeviceType::VirtualGpu => "virtual GPU",
        DeviceType::Other => "unknown",
        DeviceType::Cpu => "software",
    }
}

fn properties(adapter: &Adapter) -> Properties {
    let (info, limits, features) = (adapter.get_info(), adapter.limits(), adapter.features());
    let text = |text: &str| Value::Text(text.into());
    let flag = |feature| Value::Flag(features.contains(feature));
    let number = |number: u32| Value::Number(number.into());
    Properties(vec![
        ("name", text(&info.name)),
        ("type", text(kind(info.device_type))),
        ("backend", text(info.backend.to_str())),
        ("driver", text(&info.driver)),
        ("driver_info", text(&info.driver_info)),
        ("subgroups", flag(Features::SUBGROUP)),
        ("subgroup_min_size", number(info.subgroup_min_size)),
        ("subgroup_max_size", number(info.subgroup_max_size)),
        ("timestamp_queries", flag(Features::TIMESTAMP_QUERY)),
        ("shader_f16", flag(Features::SHADER_F16)),
        ("max_buffer_size", Value::Bytes(limits.max_buffer_size)),
        ("max_storage_buffer_binding_size", Value::Bytes(limits.max_storage_buffer_binding_size)),
        ("max_storage_buffers_per_stage", number(limits.max_storage_buffers_per_shader_stage)),
        ("max_invocations_per_workgroup", number(limits.max_compute_invocations_per_workgroup)),
        ("max_workgroup_memory", Value::Bytes(limits.max_compute_workgroup_storage_size.into())),
        ("max_workgroups_per_dimension", number(limits.max_compute_workgroups_per_dimension)),
    ])
}
