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
    /// From where to where: the next ones at every turn.
    buffers: Vec<[wgpu::Buffer; 2]>,
}

enum Kind {
    /// A bind group for each of the buffers.
    Kernel {
        pipeline: wgpu::ComputePipeline,
        groups: Vec<wgpu::BindGroup>,
        workgroups: [u32; 2],
    },
    Command,
}

impl Copy {
    /// Every way to move so many bytes, read and written ones together, in as many places.
    pub fn all(gpu: &Gpu, bytes: u64, places: usize) -> Result<Vec<Copy>> {
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
        let buffers: Vec<_> = (0..places).map(|_| [buffer(), buffer()]).collect();
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some("copy"),
            source: wgpu::ShaderSource::Wgsl(COPY.into()),
        });
        let mut copies = vec![Copy {
            name: "copy_buffer_to_buffer".into(),
            kind: Kind::Command,
            buffers: buffers.clone(),
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
            let layout = pipeline.get_bind_group_layout(0);
            let group = |[from, to]: &[wgpu::Buffer; 2]| {
                let entries = [(0, from), (1, to)].map(|(binding, buffer)| wgpu::BindGroupEntry {
                    binding,
                    resource: buffer.as_entire_binding(),
                });
                device.create_bind_group(&wgpu::BindGroupDescriptor {
                    label: Some("copy"),
                    layout: &layout,
                    entries: &entries,
                })
            };
            let groups = buffers.iter().map(group).collect();
            let count = (size / 16).div_ceil(u64::from(workgroup * each));
            let most = u64::from(device.limits().max_compute_workgroups_per_dimension);
            let y = count.div_ceil(most);
            let workgroups = [count.div_ceil(y) as u32, y as u32];
            copies.push(Copy {
                name: format!("{workgroup} x {each} x 16 bytes, {run} side by side"),
                kind: Kind::Kernel { pipeline, groups, workgroups },
                buffers: buffers.clone(),
            });
        }
        match gpu.take_uncaptured_error() {
            None => Ok(copies),
            Some(error) => Err(error.into()),
        }
    }

    /// Bytes read and written.
    pub fn bytes(&self) -> u64 {
        2 * self.buffers[0][0].size()
    }

    /// Encodes it, in the places of a turn.
    pub fn encode(
        &self,
        turn: usize,
        encoder: &mut wgpu::CommandEncoder,
        timestamp_writes: Option<wgpu::ComputePassTimestampWrites<'_>>,
    ) {
        let place = turn % self.buffers.len();
        match &self.kind {
            Kind::Command => {
                let [from, to] = &self.buffers[place];
                encoder.copy_buffer_to_buffer(from, 0, to, 0, None);
            }
            Kind::Kernel { pipeline, groups, workgroups: [x, y] } => {
                let descriptor =
                    wgpu::ComputePassDescriptor { label: Some("copy"), timestamp_writes };
                let mut pass = encoder.begin_compute_pass(&descriptor);
                pass.set_pipeline(pipeline);
                pass.set_bind_group(0, &groups[place], &[]);
                pass.dispatch_workgroups(*x, *y, 1);
            }
        }
    }

    /// Whether timestamps can be taken around it.
    pub fn has_pass(&self) -> bool {
        matches!(self.kind, Kind::Kernel { .. })
    }
}
