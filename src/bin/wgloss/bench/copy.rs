//! Copies: what the device's memory gives. The yardstick that kernels are held to.

use anyhow::Result;
use wgloss::{Gpu, wgpu};

/// Each workgroup copies a contiguous stretch, of which each invocation takes `RUN` times sixteen
/// bytes side by side.
const COPY: &str = "
    override SIZE: u32;
    override EACH: u32;
    override RUN: u32;
    @group(0) @binding(0) var<storage, read> source: array<vec4<f32>>;
    @group(0) @binding(1) var<storage, read_write> sink: array<vec4<f32>>;

    @compute @workgroup_size(SIZE)
    fn copy(
        @builtin(workgroup_id) id: vec3<u32>,
        @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) member: u32,
    ) {
        let first = (id.x + id.y * count.x) * SIZE * EACH;
        let end = min(first + SIZE * EACH, arrayLength(&source));
        for (var i = first + member * RUN; i < end; i += SIZE * RUN) {
            for (var k = i; k < min(i + RUN, end); k += 1u) {
                sink[k] = source[k];
            }
        }
    }
";

/// Workgroups' sizes, how many times sixteen bytes each invocation copies, and how many of them side
/// by side. The first ones are for software devices, where small workgroups do best, and where each
/// lane of a thread that reads a cache line of its own has eight on their way; the others for GPUs.
const VARIANTS: [(u32, u32, u32); 9] = [
    (8, 256, 4),
    (8, 256, 1),
    (8, 64, 4),
    (8, 64, 1),
    (32, 64, 1),
    (64, 16, 1),
    (256, 1, 1),
    (256, 4, 1),
    (256, 16, 1),
];

/// A way to copy half as many bytes as it moves.
pub struct Copy {
    pub name: String,
    kind: Kind,
    from: wgpu::Buffer,
    to: wgpu::Buffer,
}

enum Kind {
    Kernel { pipeline: wgpu::ComputePipeline, group: wgpu::BindGroup, workgroups: [u32; 2] },
    Command,
}

impl Copy {
    /// Every way to move so many bytes, read and written ones together.
    pub fn all(gpu: &Gpu, bytes: u64) -> Result<Vec<Copy>> {
        let device = gpu.device();
        let limit = device.limits().max_storage_buffer_binding_size;
        let size = (bytes / 2).next_multiple_of(16).clamp(16, limit / 16 * 16);
        let buffer = || {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("copy"),
                size,
                usage: wgpu::BufferUsages::STORAGE
                    | wgpu::BufferUsages::COPY_SRC
                    | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        };
        let (from, to) = (buffer(), buffer());
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some("copy"),
            source: wgpu::ShaderSource::Wgsl(COPY.into()),
        });
        let mut copies = vec![Copy {
            name: "copy_buffer_to_buffer".into(),
            kind: Kind::Command,
            from: from.clone(),
            to: to.clone(),
        }];
        for (workgroup, each, run) in VARIANTS {
            let constants =
                [("SIZE", workgroup.into()), ("EACH", each.into()), ("RUN", run.into())];
            let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some("copy"),
                layout: None,
                module: &module,
                entry_point: Some("copy"),
                compilation_options: wgpu::PipelineCompilationOptions {
                    constants: &constants,
                    ..Default::default()
                },
                cache: None,
            });
            let entries = [(0, &from), (1, &to)].map(|(binding, buffer)| wgpu::BindGroupEntry {
                binding,
                resource: buffer.as_entire_binding(),
            });
            let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some("copy"),
                layout: &pipeline.get_bind_group_layout(0),
                entries: &entries,
            });
            let count = (size / 16).div_ceil(u64::from(workgroup * each));
            let most = u64::from(device.limits().max_compute_workgroups_per_dimension);
            let y = count.div_ceil(most);
            let workgroups = [count.div_ceil(y) as u32, y as u32];
            copies.push(Copy {
                name: format!("{workgroup} x {each} x 16 bytes, {run} side by side"),
                kind: Kind::Kernel { pipeline, group, workgroups },
                from: from.clone(),
                to: to.clone(),
            });
        }
        match gpu.take_uncaptured_error() {
            None => Ok(copies),
            Some(error) => Err(error.into()),
        }
    }

    /// Bytes read and written.
    pub fn bytes(&self) -> u64 {
        2 * self.from.size()
    }

    /// Encodes it, and tells whether the timestamps were.
    pub fn encode(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        timestamp_writes: Option<wgpu::ComputePassTimestampWrites<'_>>,
    ) {
        match &self.kind {
            Kind::Command => {
                encoder.copy_buffer_to_buffer(&self.from, 0, &self.to, 0, None);
            }
            Kind::Kernel { pipeline, group, workgroups: [x, y] } => {
                let descriptor =
                    wgpu::ComputePassDescriptor { label: Some("copy"), timestamp_writes };
                let mut pass = encoder.begin_compute_pass(&descriptor);
                pass.set_pipeline(pipeline);
                pass.set_bind_group(0, group, &[]);
                pass.dispatch_workgroups(*x, *y, 1);
            }
        }
    }

    /// Whether timestamps can be taken around it.
    pub fn has_pass(&self) -> bool {
        matches!(self.kind, Kind::Kernel { .. })
    }
}
