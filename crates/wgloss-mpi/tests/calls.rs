//! What ranks compute together, and what one process does.

use mpi::topology::SimpleCommunicator;
use mpi::traits::*;
use wgloss::reference;
use wgloss::{
    Args, Array, Cpu, CrossEntropy, LinearCrossEntropy, Op, Output, Pass, Reduction, Role,
};
use wgloss_mpi::{Batch, Engine, Ranks, Shards};
use wgloss_testing::call::bits_of;
use wgloss_testing::compare::compare_part;
use wgloss_testing::random::{Logits, Random};

use crate::cases::Case;

/// That a result has the same bits on every rank.
#[track_caller]
fn hold_equal(world: &SimpleCommunicator, name: &str, role: Role, array: &Array<'_>) {
    let mine = array.data().bytes();
    if mine.is_empty() {
        return;
    }
    let mut all = vec![0_u8; mine.len() * world.size() as usize];
    world.all_gather_into(mine, &mut all[..]);
    for (rank, other) in all.chunks(mine.len()).enumerate() {
        assert_eq!(other, mine, "{name}: {role} on rank {rank} and {}", world.rank());
    }
}

/// All passes of a case over shards, held to the definition.
fn hold<'a>(
    world: &SimpleCommunicator,
    ranks: &Ranks,
    engine: &impl Engine<Array<'a>>,
    name: &str,
    case: &'a Case,
) {
    let shards = Shards::of(ranks, case.shard(ranks.rank()), case.classes).unwrap();
    let whole = case.whole();
    for pass in [Pass::Forward, Pass::ForwardBackward, Pass::Backward] {
        let args = case.args(pass, shards.range());
        let out = shards.run(engine, &*case.op, pass, &args);
        let out = out.unwrap_or_else(|error| panic!("{name}: {error}, {:?}", case.op));
        case.hold(&format!("{name}, {}", pass.name()), &whole, ranks.rank(), &out);
        for (role, array) in out.iter() {
            let is_shared = match role {
                Role::Grad => case.dims > 0,
                Role::GradProjection | Role::GradBias => false,
                _ => true,
            };
            if is_shared {
                hold_equal(world, name, role, array);
            }
        }
    }
}

/// A thousand cases over all numbers of ranks.
pub fn random_shards(world: &SimpleCommunicator, ranks: Ranks) {
    let cpu = Cpu::default();
    for seed in 0..334 {
        let seed = 1000 * ranks.size() as u64 + seed;
        hold(world, &ranks, &cpu, &format!("seed {seed}"), &Case::random(seed, ranks.size()));
    }
}

pub fn random_shards_on_the_gpu(world: &SimpleCommunicator, ranks: Ranks) {
    let gpu = ranks.gpu().unwrap();
    for seed in 0..8 {
        let seed = 100 * ranks.size() as u64 + seed;
        hold(world, &ranks, &gpu, &format!("seed {seed}"), &Case::random(seed, ranks.size()));
        gpu.trim();
    }
}

pub fn random_products(world: &SimpleCommunicator, ranks: Ranks) {
    let gpu = ranks.gpu().unwrap();
    let cpu = Cpu::default();
    for seed in 0..60 {
        let case = Case::product(seed, ranks.size());
        hold(world, &ranks, &cpu, &format!("seed {seed}"), &case);
        if seed < 2 {
            hold(world, &ranks, &gpu, &format!("seed {seed} on the GPU"), &case);
        }
    }
}

/// Each rank's numbers are such that another order would have other bits.
pub fn sums_in_the_order_of_ranks(world: &SimpleCommunicator, ranks: Ranks) {
    for count in [0, 1, 3, 8, 1001] {
        let numbers = |rank: usize| Random::new(rank as u64).normals(count, 1e3);
        let mut got = numbers(ranks.rank());
        ranks.sum(&mut got).unwrap();
        let want = (1..ranks.size()).fold(numbers(0), |mut sums, rank| {
            sums.iter_mut().zip(numbers(rank)).for_each(|(sum, number)| *sum += number);
            sums
        });
        assert_eq!(got, want, "{count} numbers");
        hold_equal(world, "sum", Role::Grad, &Array::from(&got));
    }
}

pub fn one_rank(_: &SimpleCommunicator, ranks: Ranks) {
    let gpu = ranks.gpu().unwrap();
    let cpu = Cpu::default();
    let random = (0..6).map(|seed| Case::random(seed, 1));
    let products = (0..3).map(|seed| Case::product(seed, 1));
    for (number, case) in random.chain(products).enumerate() {
        let shards = Shards::new(&ranks, case.classes).unwrap();
        // partials of products are found by tiles, and merged otherwise than their logits are
        let pass = if case.dims > 0 { Pass::Forward } else { Pass::ForwardBackward };
        let args = case.args(pass, 0..case.classes);
        let of_gpu = gpu.block_on(gpu.run(&*case.op, pass, &args));
        let pairs = [
            ("GPU", shards.run(&gpu, &*case.op, pass, &args), of_gpu),
            ("CPU", shards.run(&cpu, &*case.op, pass, &args), cpu.run(&*case.op, pass, &args)),
        ];
        for (engine, got, want) in pairs {
            let (got, want) = (got.unwrap(), want.unwrap());
            for (role, want) in want.iter() {
                let (got, op) = (got.get(role).unwrap(), &case.op);
                assert_eq!(bits_of(got), bits_of(want), "case {number}, {engine}: {role}, {op:?}");
            }
        }
    }
}

/// Whether each rank merges some rows or all: the same digits, and where the CPU computes all the same bits.
pub fn merges_of_merges(world: &SimpleCommunicator, ranks: Ranks) {
    let gpu = ranks.gpu().unwrap();
    let cpu = Cpu::default();
    for seed in 0..120 {
        let case = Case::random(seed, ranks.size());
        let range = case.shard(ranks.rank());
        let gathered = Shards::of(&ranks, range.clone(), case.classes).unwrap();
        let scattered = Shards::of(&ranks, range.clone(), case.classes).unwrap().scattered(true);
        let args = case.args(Pass::ForwardBackward, range);
        let [want, got] = [gathered, scattered].map(|shards| {
            let out = match seed {
                0..3 => shards.forward_backward(&gpu, &*case.op, &args),
                _ => shards.forward_backward(&cpu, &*case.op, &args),
            };
            out.unwrap_or_else(|error| panic!("seed {seed}: {error}"))
        });
        case.hold(&format!("seed {seed}, gathered"), &case.whole(), ranks.rank(), &want);
        case.hold(&format!("seed {seed}, scattered"), &case.whole(), ranks.rank(), &got);
        // of the same engine
        for (role, want) in want.iter().filter(|_| seed >= 3) {
            assert_eq!(bits_of(got.get(role).unwrap()), bits_of(want), "seed {seed}: {role}");
        }
        hold_equal(world, "scattered", Role::Loss, got.loss().unwrap());
    }
}

/// Over tensors of a device the results are those of host arrays.
pub fn tensors(_: &SimpleCommunicator, ranks: Ranks) {
    let gpu = ranks.gpu().unwrap();
    for case in [Case::random(1, 2), Case::product(2, 2)] {
        let shards = Shards::new(&ranks, case.classes).unwrap();
        let args = case.args(Pass::ForwardBackward, shards.range());
        let want = shards.forward_backward(&gpu, &*case.op, &args).unwrap();
        let args = gpu.block_on(gpu.upload_args(&args)).unwrap();
        let got = shards.forward_backward(&gpu, &*case.op, &args).unwrap();
        for (role, want) in want.iter() {
            let got = gpu.block_on(gpu.read(got.get(role).unwrap())).unwrap();
            assert_eq!(bits_of(&got), bits_of(want), "{role}");
        }
        // the gradient of hidden states too is written over them
        let in_place = shards.forward_backward(&gpu, &*case.op, &args.clone().in_place()).unwrap();
        let got = gpu.block_on(gpu.read(args.input())).unwrap();
        assert_eq!(bits_of(&got), bits_of(want.grad().unwrap()), "in place");
        assert!(in_place.grad().unwrap() == args.input());
    }
}

/// One exchange serves forward, and backward once the upstream gradient is known.
pub fn backward_later(_: &SimpleCommunicator, ranks: Ranks) {
    let cpu = Cpu::default();
    for case in [Case::random(3, ranks.size()), Case::product(4, ranks.size())] {
        let shards = Shards::new(&ranks, case.classes).unwrap();
        let [forward, backward] =
            [Pass::Forward, Pass::Backward].map(|pass| case.args(pass, shards.range()));
        let started = shards.start(&cpu, &*case.op, &forward).unwrap();
        let told = shards.wait(&cpu, &*case.op, started).unwrap();
        let passes = [(Pass::Forward, forward), (Pass::Backward, backward)];
        for (pass, args) in passes {
            let got = shards.finish(&cpu, &*case.op, pass, &args, &told).unwrap();
            let want = shards.run(&cpu, &*case.op, pass, &args).unwrap();
            for (role, want) in want.iter() {
                assert_eq!(bits_of(got.get(role).unwrap()), bits_of(want), "{role}");
            }
        }
    }
}

/// Rows of one batch, of which each rank has some, some ranks none.
struct Rows {
    logits: Vec<f32>,
    target: Vec<i32>,
    weight: Option<Vec<f32>>,
    classes: usize,
}

impl Rows {
    fn args(&self, first: usize, end: usize) -> Args<Array<'_>> {
        let logits = &self.logits[first * self.classes..end * self.classes];
        let args = Args::new(Array::new(logits, &[end - first, self.classes]).unwrap())
            .target(Array::from(&self.target[first..end]));
        match &self.weight {
            Some(weight) => args.weight(Array::from(weight)),
            None => args,
        }
    }
}

/// Gradients are to the bit those of one process, and losses are the same bits on every rank.
pub fn parts_of_a_batch(world: &SimpleCommunicator, ranks: Ranks) {
    let gpu = ranks.gpu().unwrap();
    let cpu = Cpu::default();
    let batch = Batch::new(&ranks);
    for seed in 0..60 {
        let mut random = Random::new(seed);
        let (rows, classes) = (1 + random.below(20), 2 + random.below(60));
        let whole = Rows {
            logits: random.logits(Logits::Confident, rows, classes),
            target: random.targets(rows, classes, -100, 0.3),
            // sums that are exact in any order
            weight: random.chance(0.5).then(|| random.eighths(classes)),
            classes,
        };
        let op = CrossEntropy::default()
            .reduction(random.pick(&[Reduction::None, Reduction::Mean, Reduction::Sum]))
            .label_smoothing(random.pick(&[0.0, 0.1]))
            .empty_mean(random.pick(&[f64::NAN, 0.0]));
        let mut cuts: Vec<_> = (1..ranks.size()).map(|_| random.below(rows + 1)).collect();
        cuts.sort_unstable();
        let cuts = [vec![0], cuts, vec![rows]].concat();
        let (first, end) = (cuts[ranks.rank()], cuts[ranks.rank() + 1]);
        let args = whole.args(first, end);
        let (got, one) = if seed < 6 {
            let one = gpu.block_on(gpu.forward_backward(&op, &whole.args(0, rows)));
            (batch.forward_backward(&gpu, &op, &args), one)
        } else {
            (
                batch.forward_backward(&cpu, &op, &args),
                cpu.forward_backward(&op, &whole.args(0, rows)),
            )
        };
        let (got, one) = (got.unwrap(), one.unwrap());
        let name = format!("seed {seed}");
        let grad = &one.grad().unwrap().to_f32()[first * classes..end * classes];
        let bits = |numbers: &[f32]| numbers.iter().map(|n| n.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&got.grad().unwrap().to_f32()), bits(grad), "{name}: gradients");
        if op.options()[0].value.to_string() == "none" {
            continue;
        }
        let loss = got.loss().unwrap();
        hold_equal(world, &name, Role::Loss, loss);
        let want = reference::run(&op, Pass::Forward, &whole.args(0, rows)).unwrap();
        let want = want.get(Role::Loss).unwrap();
        let promise = op.promise(Role::Loss);
        if let Err(mismatch) = compare_part(Role::Loss, loss, want, promise) {
            panic!("{name}: {mismatch}, {op:?}");
        }
    }
    // products, whose gradients of hidden states are rows too, and those of the projection a sum
    let case = Case::product(5, 1);
    let per = case.rows.div_ceil(ranks.size());
    let (first, end) =
        ((per * ranks.rank()).min(case.rows), (per * (ranks.rank() + 1)).min(case.rows));
    let op = LinearCrossEntropy::default();
    let whole = case.args(Pass::Forward, 0..case.classes);
    let hidden = whole.input().to_f32();
    let target = whole.get(Role::Target).unwrap().to_i64().unwrap();
    let args = Args::new(
        Array::new(&hidden[first * case.dims..end * case.dims], &[end - first, case.dims]).unwrap(),
    )
    .target(Array::from(&target[first..end]))
    .projection(whole.get(Role::Projection).unwrap().clone());
    let all = Args::new(whole.input().clone())
        .target(whole.get(Role::Target).unwrap().clone())
        .projection(whole.get(Role::Projection).unwrap().clone());
    let got = batch.forward_backward(&cpu, &op, &args).unwrap();
    let want = reference::run(&op, Pass::ForwardBackward, &all).unwrap();
    let mut sums = got.grad_projection().unwrap().to_f32();
    ranks.sum(&mut sums).unwrap();
    let sums: Output<Array<'_>> = Output::default().with(
        Role::GradProjection,
        Array::from_vec(sums, got.grad_projection().unwrap().shape()).unwrap(),
    );
    let kept = target.iter().filter(|&&y| y >= 0).count() as f64;
    for (role, got) in sums.iter() {
        let promise = op.promise(role).scaled(1.0 / kept);
        compare_part(role, got, want.get(role).unwrap(), promise).unwrap();
    }
}
