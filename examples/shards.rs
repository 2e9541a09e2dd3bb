//! A vocabulary on two devices of one process: each has half of the classes, and what they tell one another goes
//! through the host. Two adapters where there are two, else the first one twice.
//!
//! ```sh
//! cargo run --locked --release --example shards  # or with other numbers: ... -- ROWS CLASSES
//! ```
//!
//! Prints times, and the bytes that were exchanged, and compares the loss with that of one device.

use std::ops::Range;
use std::time::Instant;

use anyhow::{Result, ensure};
use wgloss::{Args, Array, CrossEntropy, Gpu, GpuOptions, Pass, Tensor, shards};

/// A device and its classes.
struct Shard {
    gpu: Gpu,
    op: CrossEntropy,
    args: Args<Tensor>,
}

impl Shard {
    fn new(gpu: Gpu, [rows, classes]: [usize; 2], here: Range<usize>) -> Result<Self> {
        let op = CrossEntropy::default().label_smoothing(0.1).shard(here.start, classes);
        // in training, each device computes the logits of its own classes
        let logit = |row: usize, class: usize| ((row * 31 + class * 17) % 97) as f32 * 0.1;
        let logits = (0..rows).flat_map(|row| here.clone().map(move |class| logit(row, class)));
        let logits = Array::from_vec::<f32>(logits.collect(), &[rows, here.len()])?;
        // classes are counted among all
        let target = (0..rows).map(|row| ((row * 7919) % classes) as i32);
        let args = Args::new(logits).target(Array::from_vec::<i32>(target.collect(), &[rows])?);
        let args = gpu.block_on(gpu.upload_args(&args))?;
        Ok(Shard { gpu, op, args })
    }

    fn read(&self, tensor: &Tensor) -> wgloss::Result<Array<'static>> {
        self.gpu.block_on(self.gpu.read(tensor))
    }
}

/// Loss and gradients of all classes. Returns the loss, and how many bytes each shard was told.
///
/// Calls on tensors return while the device works, so all devices work at once.
fn step(all: &[Shard]) -> wgloss::Result<(f32, usize)> {
    let tell =
        |shard: &Shard| shard.gpu.block_on(shard.gpu.run(&shard.op, Pass::Partials, &shard.args));
    let told: Vec<_> = all.iter().map(tell).collect::<wgloss::Result<_>>()?;
    let (mut partials, mut divisors) = (vec![], vec![]);
    for (shard, told) in all.iter().zip(&told) {
        partials.push(shard.read(told.partial()?)?);
        divisors.push(shard.read(told.divisor()?)?);
    }
    let (partials, divisor) = (shards::gather(&partials)?, shards::sum(&divisors)?);
    let bytes = partials.data().bytes().len() + divisor.data().bytes().len();

    let compute = |shard: &Shard| {
        shard.gpu.block_on(async {
            let args = shard.args.clone().partials(shard.gpu.upload(&partials).await?);
            let args = args.divisor(shard.gpu.upload(&divisor).await?);
            // its gradient is that of the shard's own classes, and stays on its device
            shard.gpu.forward_backward(&shard.op, &args).await
        })
    };
    let computed: Vec<_> = all.iter().map(compute).collect::<wgloss::Result<_>>()?;
    let loss = |(shard, output): (&Shard, &wgloss::Output<Tensor>)| shard.read(output.loss()?);
    let losses: Vec<_> = all.iter().zip(&computed).map(loss).collect::<wgloss::Result<_>>()?;
    Ok((losses[0].item()?, bytes))
}

fn main() -> Result<()> {
    let numbers: Vec<usize> =
        std::env::args().skip(1).map(|number| number.parse()).collect::<Result<_, _>>()?;
    let (rows, classes) = match numbers[..] {
        [rows, classes] => (rows, classes),
        _ => (256, 32_000),
    };
    ensure!(rows > 0 && classes > 1, "expected ROWS above 0 and CLASSES above 1");

    let first = Gpu::blocking()?;
    let second = Gpu::blocking_with_options(&GpuOptions::default().index(1));
    let second = second.or_else(|_| Gpu::blocking())?;
    for gpu in [&first, &second] {
        println!("{}, {} {}", gpu.info().name, gpu.info().driver, gpu.info().driver_info);
    }
    let one = [Shard::new(first.clone(), [rows, classes], 0..classes)?];
    let two = [
        Shard::new(first, [rows, classes], 0..classes / 2)?,
        Shard::new(second, [rows, classes], classes / 2..classes)?,
    ];
    // Kernels are compiled in the first round.
    for round in 1..=3 {
        let start = Instant::now();
        let (of_one, _) = step(&one)?;
        let alone = start.elapsed();
        let start = Instant::now();
        let (of_two, bytes) = step(&two)?;
        println!(
            "round {round}: one device {alone:.1?}, two {:.1?}, {bytes} bytes to each; loss {of_two}",
            start.elapsed()
        );
        ensure!((of_two - of_one).abs() <= 4e-6 * of_one.abs(), "{of_two} instead of {of_one}");
    }
    Ok(())
}
