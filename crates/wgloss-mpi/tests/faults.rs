//! Ranks that differ, that fail, that are late and that are gone: errors on the others, and no hang.

use std::time::{Duration, Instant};

use mpi::topology::SimpleCommunicator;
use wgloss::{Args, Array, Cpu, CrossEntropy, DType, LinearCrossEntropy, Mse, Op};
use wgloss_mpi::{Batch, Error, Ranks, Shards};

fn logits(rows: usize, classes: usize) -> Array<'static> {
    let numbers = (0..rows * classes).map(|i| (i % 7) as f32).collect();
    Array::from_vec(numbers, &[rows, classes]).unwrap()
}

fn args(rows: usize, classes: usize) -> Args<Array<'static>> {
    Args::new(logits(rows, classes)).target(Array::from_vec(vec![0; rows], &[rows]).unwrap())
}

/// Every rank gets the same error, which names the rank that differs; and the next call is good.
pub fn ranks_that_differ(_: &SimpleCommunicator, ranks: Ranks) {
    let cpu = Cpu::default();
    let last = ranks.size() - 1;
    let is_odd = ranks.rank() == last && last > 0;
    let pick = |odd: usize, other: usize| if is_odd { odd } else { other };
    let expect = |error: Option<Error>, words: &str| match (last, error) {
        (0, None) => {}
        (0, Some(error)) => panic!("of one rank: {error}"),
        (last, error) => {
            let text = error.expect("an error on every rank").to_string();
            assert_eq!(text, words.replace("LAST", &last.to_string()));
        }
    };

    let shards = Shards::new(&ranks, 12).unwrap();
    let here = shards.range().len();
    let op = CrossEntropy::default();
    let good = || {
        shards.forward(&cpu, &op, &args(5, here)).unwrap();
    };

    let error = Shards::new(&ranks, pick(13, 12)).err();
    expect(error, "classes: 13 on rank LAST, 12 on rank 0");
    // the last leaves out a class, has one too many, or ends too soon
    for (less, end) in [(1, 12), (-1, 12), (0, 11)].into_iter().take(3 * last.min(1)) {
        let own = shards.range();
        let range = if is_odd { own.start.wrapping_add_signed(less)..end } else { own };
        let words = format!("rank {last} has classes ");
        let error = Shards::of(&ranks, range, 12).unwrap_err();
        assert!(matches!(error, Error::Cover { rank, .. } if rank == last), "{error}");
        assert!(error.to_string().starts_with(&words), "{error}");
    }
    good();
    let error = shards.forward(&cpu, &op, &args(pick(6, 5), here)).err();
    expect(error, "rows: 6 on rank LAST, 5 on rank 0");
    good();
    let smoothed = op.clone().label_smoothing(if is_odd { 0.25 } else { 0.1 });
    let error = shards.forward(&cpu, &smoothed, &args(5, here)).err();
    expect(error, "label_smoothing: 0.25 on rank LAST, 0.1 on rank 0");
    let capped = if is_odd { op.clone().softcap(30.0) } else { op.clone() };
    let error = shards.forward(&cpu, &capped, &args(5, here)).err();
    expect(error, "softcap: 30 on rank LAST, none on rank 0");
    let narrow = match is_odd {
        true => Args::new(logits(5, here).to_dtype(DType::F16).unwrap())
            .target(Array::from_vec(vec![0; 5], &[5]).unwrap()),
        false => args(5, here),
    };
    let error = shards.forward(&cpu, &op, &narrow).err();
    expect(error, "storage of the input: f16 on rank LAST, f32 on rank 0");
    let weighted = match is_odd {
        true => args(5, here).weight(Array::from_vec(vec![1.0_f32; here], &[here]).unwrap()),
        false => args(5, here),
    };
    let error = shards.forward(&cpu, &op, &weighted).err();
    expect(error, "weights of classes: some on rank LAST, none on rank 0");
    // other calls at the same time
    let error = match is_odd {
        true => ranks.sum(&mut [1.0]).err(),
        false => shards.forward(&cpu, &op, &args(5, here)).err(),
    };
    expect(error, "call: sum on rank LAST, partials on rank 0");
    let error = ranks.sum(&mut vec![1.0; pick(3, 2)]).err();
    expect(error, "size: 3 on rank LAST, 2 on rank 0");
    let error = Batch::new(&ranks).forward(&cpu, &op, &args(2, pick(4, 5))).err();
    expect(error, "classes: 4 on rank LAST, 5 on rank 0");
    good();
}

/// The rank that fails has its own error, the others learn which it was, and the next call is good.
pub fn a_rank_that_fails(_: &SimpleCommunicator, ranks: Ranks) {
    let cpu = Cpu::default();
    let shards = Shards::new(&ranks, 12).unwrap();
    let here = shards.range().len();
    let op = CrossEntropy::default();
    let is_odd = ranks.rank() == 1;
    let expect = |name: &str, error: Option<Error>| match error {
        Some(Error::Loss(_) | Error::Value { .. }) if is_odd => {}
        Some(Error::Failed { rank: 1 }) if !is_odd => {}
        other => panic!("{name}: rank {} has {other:?}", ranks.rank()),
    };
    for is_scattered in [false, true] {
        let shards = Shards::new(&ranks, 12).unwrap().scattered(is_scattered);
        // before the exchange: a shard of another size, and options out of range
        let width = if is_odd { here - 1 } else { here };
        expect("width", shards.forward(&cpu, &op, &args(5, width)).err());
        let odd = if is_odd { op.clone().label_smoothing(2.0) } else { op.clone() };
        expect("option", shards.forward(&cpu, &odd, &args(5, here)).err());
        let mse = Mse::default();
        let odd: &dyn Op = if is_odd { &mse } else { &op };
        expect("op without shards", shards.forward(&cpu, odd, &args(5, here)).err());
        // in the exchange: values that only the pass looks at
        let class = if is_odd { 99 } else { 0 };
        let bad = Args::new(logits(5, here)).target(Array::from_vec(vec![class; 5], &[5]).unwrap());
        expect("class", shards.forward(&cpu, &op, &bad).err());
        shards.forward(&cpu, &op, &args(5, here)).unwrap();
    }
    let class = if is_odd { 99 } else { 0 };
    let bad = Args::new(logits(5, 12)).target(Array::from_vec(vec![class; 5], &[5]).unwrap());
    expect("batch", Batch::new(&ranks).forward(&cpu, &op, &bad).err());
    // after the exchange: in the pass whose gradient is summed
    let linear = LinearCrossEntropy::default();
    let product = Args::new(logits(5, 3))
        .projection(logits(here, 3))
        .target(Array::from_vec(vec![0; 5], &[5]).unwrap());
    let upstream = if is_odd { vec![5] } else { vec![] };
    let upstream = Array::from_vec(vec![1.0_f32; upstream.iter().product()], &upstream).unwrap();
    let bad = product.clone().upstream(upstream);
    expect("upstream", shards.forward_backward(&cpu, &linear, &bad).err());
    shards.forward_backward(&cpu, &linear, &product).unwrap();
}

/// Three ranks wait for the fourth no longer than they were told, and then end it all.
pub fn a_rank_that_is_late(_: &SimpleCommunicator, ranks: Ranks) {
    let shards = Shards::new(&ranks, 12).unwrap();
    let here = shards.range().len();
    if ranks.rank() == 3 {
        std::thread::sleep(Duration::from_secs(600));
    }

    let ranks = ranks.deadline(Duration::from_secs(2));
    let cpu = Cpu::default();
    let op = CrossEntropy::default();
    let shard = |ranks: &Ranks| Shards::new(ranks, 12).unwrap_err();
    let start = Instant::now();
    let error = shard(&ranks);
    let waited = start.elapsed();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert!(waited >= Duration::from_secs(2) && waited < Duration::from_secs(6), "{waited:?}");
    // nothing is begun any more
    assert!(matches!(shard(&ranks), Error::Broken { .. }));
    let batch = Batch::new(&ranks).forward(&cpu, &op, &args(5, here));
    assert!(matches!(batch, Err(Error::Broken { .. })));
    if ranks.rank() == 0 {
        // once the others have come so far
        std::thread::sleep(Duration::from_secs(3));
        println!("TIMEOUT on 3 ranks");
        ranks.abort(3);
    }
    std::thread::sleep(Duration::from_secs(600));
}

/// mpirun ends all ranks when one ends without MPI's leave.
pub fn a_rank_that_dies(_: &SimpleCommunicator, ranks: Ranks) {
    if ranks.rank() == 2 {
        std::process::exit(9);
    }
    let shards = Shards::new(&ranks, 12);
    panic!("expected to be ended, got {shards:?}");
}
