//! Sizes at the seams of blocks and teams.

use wgloss::{Pass, Reduction, Role};
use wgloss_testing::call::{
    Call, Elements, PASSES, REDUCTIONS, Rows, check, check_pass, judge, read, reference,
};
use wgloss_testing::devices::{devices, gpu, on_every_device_and_without_subgroups};
use wgloss_testing::random::{Logits, Random};

use super::{INF, NAN, assert_nan, assert_zero, every_kind, loss, plain_and_smoothed};

#[test]
fn class_counts_at_the_seams() {
    let seams: [&[usize]; 10] = [
        &[1, 2],                // no rival, one rival
        &[3, 4, 5],             // fours are loaded together: too few, whole, one over
        &[15, 16, 17],          // rescaled together by one invocation; where rows go to subgroups
        &[31, 32, 33],          // eight lanes with a four each, two with sixteen
        &[63, 64, 65],          // a small workgroup's invocations; four lanes with sixteen each
        &[127, 128, 129],       // eight lanes with sixteen each
        &[255, 256, 257],       // sixteen times sixteen, 64 lanes with a four each
        &[1023, 1024, 1025],    // 64 lanes with sixteen each; where rows go to workgroups
        &[2047, 2048, 2049],    // sixteen times sixteen for each of eight lanes
        &[16383, 16384, 16385], // sixteen times sixteen for each of 64 lanes
    ];
    on_every_device_and_without_subgroups(|gpu| {
        let mut random = Random::new(1);
        for &classes in seams.into_iter().flatten() {
            let each = if classes < 1000 { 3 } else { 1 };
            let rows = every_kind(&mut random, each, classes);
            for rows in plain_and_smoothed(&mut random, rows) {
                check(gpu, &rows);
            }
        }
    });
}

#[test]
fn odd_class_counts() {
    // Rows of an odd length start at every alignment; each of these lengths is also a prime, so
    // that no lane's last group is whole.
    on_every_device_and_without_subgroups(|gpu| {
        let mut random = Random::new(2);
        for classes in [7, 13, 37, 251, 509, 1031] {
            let rows = every_kind(&mut random, 3, classes);
            for rows in plain_and_smoothed(&mut random, rows) {
                check(gpu, &rows);
            }
        }
    });
}

#[test]
fn row_counts_at_the_seams() {
    let seams = [
        1, 2, // one row alone
        7, 8, 9, // a workgroup of eight rows on software devices
        63, 64, 65, // a workgroup of 64 rows on GPUs
        2047, 2048, 2049, // what one invocation sums of losses and weights
        16383, 16384, 16385, // what a subgroup of eight sums
    ];
    on_every_device_and_without_subgroups(|gpu| {
        let mut random = Random::new(3);
        for rows in seams {
            let call = Rows::random(&mut random, Logits::Normal, &[rows, 3]).weighted(&mut random);
            for reduction in [Reduction::Mean, Reduction::Sum] {
                check(gpu, &call.clone().reduced(reduction));
            }
        }
    });
}

#[test]
fn more_rows_than_a_dispatch_is_wide() {
    // 65,535 workgroups are the most along one dimension: 70,000 rows fold into a second one where
    // a row is a workgroup. The sums take more than one level.
    on_every_device_and_without_subgroups(|gpu| {
        let mut random = Random::new(4);
        let rows = Rows::random(&mut random, Logits::Normal, &[70_000, 3]);
        check(gpu, &rows.reduced(Reduction::Mean));
    });
}

#[test]
fn a_million_rows() {
    let Some(gpu) = &gpu() else { return };
    let mut random = Random::new(5);
    let rows = Rows::random(&mut random, Logits::Normal, &[1_000_000, 10]);
    check(gpu, &rows.reduced(Reduction::Mean));
}

#[test]
fn as_many_classes_as_a_large_vocabulary() {
    // Ramps: the maximum moves at every block, and sums have a hundred thousand terms of like size.
    const CLASSES: usize = 128_256;
    let mut random = Random::new(6);
    let ramp = |height: f32| {
        (0..CLASSES).map(move |c| height * (c as f32 / CLASSES as f32) - height / 2.0)
    };
    let mut logits: Vec<f32> = ramp(10.0).chain(ramp(-10.0)).chain(ramp(100.0)).collect();
    logits.extend(random.normals(CLASSES, 3.0));
    let target = [77, 128_255, 64_000, 5];
    let rows = Rows::new(&logits, &target).upstream(&random.normals(4, 1.0));
    // One invocation alone is never given such a row, and could not keep the promise over it.
    for device in devices().filter(|device| device.name != "invocation") {
        check(&device.gpu, &rows);
        check(&device.gpu, &rows.clone().smoothing(0.1));
    }
}

#[test]
fn two_million_classes() {
    // lavapipe 22.3 gives the loops of an invocation 65,535 iterations in all and stops there in
    // silence. No invocation may be given so many: eight lanes would each have 78,000 here.
    let Some(gpu) = &gpu() else { return };
    let mut random = Random::new(7);
    let rows = Rows::random(&mut random, Logits::Normal, &[1, 2_000_000]);
    let rows = Rows { target: vec![1_999_999], ..rows };
    check(gpu, &rows);
    // by one team, which keeps a state
    let op = rows.cross_entropy().keep_state(true);
    let out = gpu.block_on(gpu.run(&op, Pass::Forward, &rows.args(Pass::Forward))).unwrap();
    judge(&rows, &out, &reference(&rows, Pass::Forward)).unwrap();
    check(gpu, &rows.smoothing(0.1));
}

#[test]
fn few_long_rows_by_several_teams() {
    const CLASSES: usize = 70_001;
    let mut random = Random::new(9);
    let normal = random.normals(CLASSES, 3.0);
    let with = |changes: &[(usize, f32)]| {
        let mut row = normal.clone();
        changes.iter().for_each(|&(class, value)| row[class] = value);
        row
    };
    // parts begin at multiples of 4096 at least
    let masked = |classes: std::ops::Range<usize>| {
        with(&classes.map(|class| (class, -INF)).collect::<Vec<_>>())
    };
    let rows: [(Vec<f32>, i32); 10] = [
        (normal.clone(), 35_000),
        (with(&[(70_000, 60.0)]), 70_000),
        (with(&[(0, 60.0)]), 70_000),
        // ties in different parts
        (with(&[(3, 20.0), (30_000, 20.0), (69_999, 20.0)]), 30_000),
        (masked(0..50_000), 60_000),
        (masked(20_000..70_001), 60_000),
        (masked(0..70_001), 1),
        (with(&[(65_000, NAN)]), 2),
        (with(&[(5, INF)]), 2),
        ((0..CLASSES).map(|c| c as f32 * 1e-3).collect(), -100),
    ];
    // as above, without invocations
    let devices: Vec<_> = devices().filter(|device| device.name != "invocation").collect();
    for (pair, gpu) in rows.chunks(2).flat_map(|pair| devices.iter().map(move |d| (pair, &d.gpu))) {
        let logits: Vec<f32> = pair.iter().flat_map(|(row, _)| row.clone()).collect();
        let target: Vec<i32> = pair.iter().map(|&(_, target)| target).collect();
        let rows = Rows::new(&logits, &target).upstream(&[0.75, -1.25]);
        for rows in plain_and_smoothed(&mut random, rows) {
            check(gpu, &rows);
            for reduction in REDUCTIONS {
                let rows = Rows { upstream: None, ..rows.clone() }.reduced(reduction);
                check_pass(gpu, &rows, Pass::Forward);
                check_pass(gpu, &rows, Pass::Backward);
            }
            let args = gpu.block_on(gpu.upload_args(&rows.args(Pass::ForwardBackward))).unwrap();
            let args = args.in_place();
            let out = gpu.block_on(gpu.run(&rows.cross_entropy(), Pass::ForwardBackward, &args));
            let out = read(gpu, &out.unwrap());
            judge(&rows, &out, &reference(&rows, Pass::ForwardBackward)).unwrap();
            // from a kept state
            let mut state = None;
            for pass in [Pass::Forward, Pass::Backward] {
                let args = match state.take() {
                    Some(state) => rows.args(pass).state(state),
                    None => rows.args(pass),
                };
                let op = rows.cross_entropy().keep_state(true);
                let out = gpu.block_on(gpu.run(&op, pass, &args)).unwrap();
                judge(&rows, &out, &reference(&rows, pass)).unwrap();
                state = out.get(Role::State).cloned();
            }
        }
    }
}

#[test]
fn strided_classes_at_the_seams() {
    let shapes: [&[usize]; 8] = [
        &[2, 3, 4, 5],       // four dimensions
        &[1, 5, 1],          // one position: not strided at all
        &[3, 4, 2],          // fours that lie apart must not be loaded as one
        &[2, 16, 7],         // whole blocks, odd stride
        &[2, 33, 9],         // more classes than eight lanes have fours
        &[1, 129, 65],       // more positions than a workgroup has invocations
        &[2, 1025, 3],       // where strided rows go to subgroups
        &[1, 2, 3, 1, 2, 3], // six dimensions
    ];
    on_every_device_and_without_subgroups(|gpu| {
        let mut random = Random::new(8);
        for shape in shapes {
            for kind in Logits::ALL {
                let rows = Rows::random(&mut random, kind, shape);
                for rows in plain_and_smoothed(&mut random, rows) {
                    check(gpu, &rows);
                }
            }
        }
    });
}

#[test]
fn one_row_without_a_batch() {
    on_every_device_and_without_subgroups(|gpu| {
        let mut random = Random::new(9);
        for classes in [1, 2, 5, 40] {
            let rows = Rows::random(&mut random, Logits::Normal, &[classes]);
            let rows = Rows { target: vec![classes as i32 - 1], ..rows };
            for reduction in REDUCTIONS {
                let out = check(gpu, &rows.clone().reduced(reduction));
                assert_eq!(out.get(Role::Loss).cloned().unwrap().shape(), [0; 0]);
            }
        }
    });
}

#[test]
fn no_rows() {
    on_every_device_and_without_subgroups(|gpu| {
        for shape in [&[0, 5][..], &[0, 5, 3], &[2, 5, 0]] {
            let rows = Rows::shaped(shape, &[], &[]);
            for pass in PASSES {
                for reduction in REDUCTIONS {
                    check_pass(gpu, &rows.clone().reduced(reduction), pass);
                }
            }
            let out = check(gpu, &rows.clone().reduced(Reduction::Mean));
            assert_nan(&loss(&out));
            assert_zero(&loss(&check(gpu, &rows.clone().reduced(Reduction::Sum))));
            assert!(loss(&check(gpu, &rows)).is_empty());
        }
    });
}

#[test]
fn every_pass_and_reduction() {
    on_every_device_and_without_subgroups(|gpu| {
        let mut random = Random::new(10);
        let rows = every_kind(&mut random, 2, 19);
        let shape = [2, 5, 9];
        let elements = Elements::random(&mut random, &shape)
            .weight(&[5, 1], &random.normals(5, 1.0))
            .pos_weight(&[9], &random.uniforms(9, 0.0, 3.0));
        for pass in PASSES {
            for reduction in REDUCTIONS {
                for rows in plain_and_smoothed(&mut random, rows.clone()) {
                    check_pass(gpu, &rows.reduced(reduction), pass);
                }
                check_pass(gpu, &elements.clone().reduced(reduction), pass);
            }
        }
    });
}
