//! Multiplications and additions alone: what the device computes. The yardstick that products of matrices
//! are held to.

use std::time::Duration;

use anyhow::{Context, Result};
use wgloss::{Gpu, wgpu};
use wgloss_testing::timer::Timer;

/// Sums that do not wait for one another, of factors in registers. Each tends to where a sum stays the same.
const LOOP: &str = "
    override SIZE: u32;
    @group(0) @binding(0) var<storage, read_write> sink: array<vec4<f32>>;

    @compute @workgroup_size(SIZE)
    fn multiply_add(
        @builtin(workgroup_id) id: vec3<u32>,
        @builtin(local_invocation_index) member: u32,
    ) {
        let i = id.x * SIZE + member;
        // no constants, which a compiler may read from memory each time
        let factor = 0.5 + 1e-6 * f32(member);
        let addend = 1.0 + 1e-6 * f32(member);
        START
        for (var turn = 0u; turn < TURNS; turn += 1u) {
            STEPS
        }
        sink[i % arrayLength(&sink)] = TOTAL;
    }
";

/// Workgroups' sizes, and how many vectors of sums an invocation has: the first ones for software devices,
/// whose registers are few.
const VARIANTS: [(u32, u32); 6] = [(8, 2), (8, 3), (8, 4), (64, 4), (256, 4), (256, 8)];

/// How often an invocation's loop runs: fewer times than software drivers allow.
const TURNS: u32 = 1 << 10;

/// How many steps of each sum a turn of the loop has: software drivers store all variables at its end.
const STEPS: u32 = 8;

/// A loop of nothing else, long enough to be timed.
pub struct MultiplyAdds {
    pipeline: wgpu::ComputePipeline,
    group: wgpu::BindGroup,
    workgroups: u32,
    of_workgroup: f64,
}

impl MultiplyAdds {
    /// The fastest of several ways.
    pub fn fastest(gpu: &Gpu, timer: &Timer<'_>) -> Result<Self> {
        let mut best: Option<(f64, MultiplyAdds)> = None;
        for (size, sums) in VARIANTS {
            let mut variant = Self::new(gpu, size, sums);
            // the next call reports what went wrong
            gpu.block_on(gpu.status())?;
            let rate = variant.rate(gpu, timer)?;
            if best.as_ref().is_none_or(|(fastest, _)| rate > *fastest) {
                best = Some((rate, variant));
            }
        }
        best.map(|(_, variant)| variant).context("no loop")
    }

    fn new(gpu: &Gpu, size: u32, sums: u32) -> Self {
        let device = gpu.device();
        // variables of their own, since an array need not be in registers
        let each = |line: fn(u32) -> String| (0..sums).map(line).collect::<Vec<_>>();
        let steps = each(|k| format!("s{k} = s{k} * factor + addend;\n")).concat();
        let text = LOOP
            .replace("START", &each(|k| format!("var s{k} = vec4(f32(i + {k}u));")).join("\n"))
            .replace("STEPS", &steps.repeat(STEPS as usize))
            .replace("TOTAL", &each(|k| format!("s{k}")).join(" + "))
            .replace("TURNS", &format!("{TURNS}u"));
        let label = Some("multiply_add");
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label,
            source: wgpu::ShaderSource::Wgsl(text.into()),
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label,
            layout: None,
            module: &module,
            entry_point: Some("multiply_add"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &[("SIZE", size.into())],
                ..Default::default()
            },
            cache: None,
        });
        let sink = device.create_buffer(&wgpu::BufferDescriptor {
            label,
            size: 1 << 16,
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        });
        let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label,
            layout: &pipeline.get_bind_group_layout(0),
            entries: &[wgpu::BindGroupEntry { binding: 0, resource: sink.as_entire_binding() }],
        });
        let of_workgroup = f64::from(size) * f64::from(4 * sums) * f64::from(TURNS * STEPS);
        MultiplyAdds { pipeline, group, workgroups: 32, of_workgroup }
    }

    /// Takes so many workgroups that a run takes a while, and returns how many multiplications a second it does.
    fn rate(&mut self, gpu: &Gpu, timer: &Timer<'_>) -> Result<f64> {
        const WHILE: Duration = Duration::from_millis(10);
        let most = gpu.device().limits().max_compute_workgroups_per_dimension;
        loop {
            let run = || timer.time(|encoder, writes| self.encode(encoder, writes));
            // the first one warms up
            run()?;
            let time = run()?.min(run()?);
            if time >= WHILE || self.workgroups * 2 > most {
                return Ok(self.count() / time.as_secs_f64().max(1e-9));
            }
            self.workgroups *= 2;
        }
    }

    /// Multiplications, each with an addition.
    pub fn count(&self) -> f64 {
        self.of_workgroup * f64::from(self.workgroups)
    }

    pub fn encode(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        timestamp_writes: Option<wgpu::ComputePassTimestampWrites<'_>>,
    ) {
        let descriptor =
            wgpu::ComputePassDescriptor { label: Some("multiply_add"), timestamp_writes };
        let mut pass = encoder.begin_compute_pass(&descriptor);
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.group, &[]);
        pass.dispatch_workgroups(self.workgroups, 1, 1);
    }
}
