//! Pipelines: kernels compiled for a device, each at most once while it is kept.

use std::sync::Mutex;

use crate::Gpu;
use crate::cache::Cache;
use crate::guard::lock;
use crate::kernel::Kernel;

/// The most pipelines that are kept: some hundred serve a training run, and drivers keep up to a
/// megabyte for each.
const LIMIT: usize = 256;

#[derive(Debug)]
pub(crate) struct Pipelines {
    known: Mutex<Cache<Kernel, wgpu::ComputePipeline>>,
    /// What the driver keeps for a later process.
    driver_cache: Mutex<Option<wgpu::PipelineCache>>,
}

impl Default for Pipelines {
    fn default() -> Self {
        Pipelines { known: Mutex::new(Cache::new(LIMIT, u64::MAX)), driver_cache: Mutex::default() }
    }
}

impl Pipelines {
    pub fn clear(&self) {
        lock(&self.known).clear();
    }
}

impl Gpu {
    /// Has kernels compiled into a cache from now on, whose [data](wgpu::PipelineCache::get_data) the
    /// caller may store, and give to the cache of a later process, which then need not compile them
    /// again. Many drivers do that by themselves.
    ///
    /// The cache must be the [device](Gpu::device)'s
    /// ([`create_pipeline_cache`](wgpu::Device::create_pipeline_cache), where the device has
    /// [`wgpu::Features::PIPELINE_CACHE`]); kernels are refused with
    /// [`Error::Validation`](crate::Error::Validation) otherwise.
    pub fn use_pipeline_cache(&self, cache: wgpu::PipelineCache) {
        *lock(&self.pipelines().driver_cache) = Some(cache);
    }

    /// The pipeline of a kernel: a known one, or one that is compiled now, without a lock, so that
    /// threads compile side by side. It is kept only by [`Gpu::keep_pipeline`], once error scopes
    /// have said that it is good.
    pub(crate) fn pipeline(&self, kernel: &Kernel) -> wgpu::ComputePipeline {
        if let Some(pipeline) = self.kept_pipeline(kernel) {
            return pipeline;
        }
        let module = self.module(kernel);
        let constants: Vec<_> = kernel.constants.iter().map(|&(k, v)| (k, v.into())).collect();
        let driver_cache = lock(&self.pipelines().driver_cache).clone();
        self.device().create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&kernel.label),
            layout: None,
            module: &module,
            entry_point: Some(kernel.entry_point),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &constants,
                // every kernel writes its workgroup memory before it reads it
                zero_initialize_workgroup_memory: false,
            },
            cache: driver_cache.as_ref(),
        })
    }

    /// A shader, usually without checks of its own: they cost up to nearly half of a kernel's time, and
    /// keep compilers from unrolling its loops.
    #[allow(unsafe_code)]
    fn module(&self, kernel: &Kernel) -> wgpu::ShaderModule {
        let source = match self.info().backend {
            wgpu::Backend::BrowserWebGpu => kernel.source_for_browsers(),
            _ => kernel.source(),
        };
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(&kernel.label),
            source: wgpu::ShaderSource::Wgsl(source.into()),
        };
        if self.has_runtime_checks() || !kernel.is_trusted() {
            return self.device().create_shader_module(descriptor);
        }
        let checks = wgpu::ShaderRuntimeChecks::unchecked();
        // SAFETY: Unchecked shaders must not access memory out of bounds, loop without end, or divide
        // integers by zero. In the kernels of this crate, which alone are trusted:
        // - Every index into a storage buffer lies inside a layout that was checked against its buffer.
        // - Class indices that are read from memory are compared with the class count before their use.
        // - Every index into an array of the shader's own is a constant, or a loop counter below the
        //   array's length, or the invocation's index in its workgroup, divided by what the array is
        //   shorter than the workgroup.
        // - Every loop counts up to a bound that the host has set.
        // - Integer divisors are constants or sizes of at least 1, and unsigned.
        unsafe { self.device().create_shader_module_trusted(descriptor, checks) }
    }

    /// A pipeline that is kept.
    pub(crate) fn kept_pipeline(&self, kernel: &Kernel) -> Option<wgpu::ComputePipeline> {
        lock(&self.pipelines().known).get(kernel)
    }

    /// Keeps a pipeline that is known to be good.
    pub(crate) fn keep_pipeline(&self, kernel: Kernel, pipeline: wgpu::ComputePipeline) {
        lock(&self.pipelines().known).insert(kernel, pipeline, 0);
    }
}
