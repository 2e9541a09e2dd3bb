//! The workloads of `wgloss bench` under criterion: kernels by timestamps, calls with upload and
//! readback, and the CPU twin: `cargo bench --features cpu --bench kernels [-- FILTER]`.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use wgloss::{Args, Cpu, DType, Gpu, Output, Pass, Tensor};
use wgloss_testing::ops::find;
use wgloss_testing::timer::Timer;
use wgloss_testing::workload::{self, Workload};

fn main() -> anyhow::Result<()> {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    let gpu = Gpu::blocking()?;
    for name in ["cross_entropy", "bce_with_logits"] {
        for shape in workload::shapes(name) {
            bench(&mut criterion, &gpu, name, shape)?;
        }
    }
    criterion.final_summary();
    Ok(())
}

fn bench(criterion: &mut Criterion, gpu: &Gpu, name: &str, shape: &[usize]) -> anyhow::Result<()> {
    let pass = Pass::ForwardBackward;
    let op = find(name);
    let Some(op) = op else { anyhow::bail!("no op {name}") };
    let workload = Workload { op, pass, dtype: DType::F32, shape: shape.to_vec() };
    let args = workload.draw(0)?;
    let output = gpu.block_on(gpu.run(&*workload.op, pass, &args))?;
    workload.judge(&args, &output)?;

    let tensors: Args<Tensor> = gpu.block_on(gpu.upload_args(&args))?;
    let plan = gpu.block_on(gpu.plan(&*workload.op, pass, &tensors.layouts()))?;
    let bound = plan.bind(&tensors, &gpu.block_on(plan.allocate())?)?;
    let timer = Timer::new(gpu);

    let mut group = criterion.benchmark_group(workload.name());
    group.throughput(Throughput::Bytes(workload.bytes(&args, &output)));
    group.bench_function(BenchmarkId::from_parameter("kernel"), |bencher| {
        bencher.iter_custom(|rounds| {
            let time = || timer.time(|encoder, writes| bound.encode_timed(encoder, writes));
            (0..rounds).map(|_| time().expect("the device was there before")).sum()
        });
    });
    group.bench_function(BenchmarkId::from_parameter("call"), |bencher| {
        bencher.iter(|| gpu.block_on(gpu.run(&*workload.op, pass, &args)));
    });
    let (cpu, mut on_cpu) = (Cpu::default(), Output::default());
    group.bench_function(BenchmarkId::from_parameter("cpu"), |bencher| {
        bencher.iter(|| cpu.run_into(&*workload.op, pass, &args, &mut on_cpu));
    });
    group.finish();
    Ok(())
}
