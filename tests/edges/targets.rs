//! Rows that are ignored, and weights of 0 and below.

use wgloss::{Args, Array, CrossEntropy, Pass, Reduction};
use wgloss_testing::call::{Elements, Rows, bits, check, run};
use wgloss_testing::devices::on_every_device;
use wgloss_testing::random::{Logits, Random};

use super::{INF, NAN, assert_nan, assert_zero, every_kind, grad, loss, plain_and_smoothed};

#[test]
fn all_rows_ignored() {
    on_every_device(|gpu| {
        for upstream in [2.0, NAN, INF] {
            let rows = Rows::new(&[1.0, NAN, 3.0, INF, 0.5, -INF], &[-100, -100]);
            for smoothing in [0.0, 0.1] {
                let rows = rows.clone().smoothing(smoothing);
                let out = check(gpu, &rows.clone().upstream(&[upstream; 2]));
                assert_zero(&loss(&out));
                assert_zero(&grad(&out));
                let scalar = rows.upstream(&[upstream]);
                let out = check(gpu, &scalar.clone().reduced(Reduction::Mean));
                assert_nan(&loss(&out));
                assert_zero(&grad(&out));
                let out = check(gpu, &scalar.reduced(Reduction::Sum));
                assert_zero(&loss(&out));
                assert_zero(&grad(&out));
            }
        }
    });
}

#[test]
fn masks_of_bytes_and_of_16_bits_are_classes() {
    on_every_device(|gpu| {
        // 255 is what such masks ignore
        let rows = Rows::random(&mut Random::new(3), Logits::Normal, &[2, 5, 3]).ignore_index(255);
        let rows = Rows { target: vec![0, 255, 4, 1, 2, 255], ..rows };
        let bytes: Vec<u8> = rows.target.iter().map(|&class| class as u8).collect();
        let words: Vec<u16> = rows.target.iter().map(|&class| class as u16).collect();
        let want = bits(&check(gpu, &rows));
        let logits = Array::new(&rows.logits, &[2, 5, 3]).unwrap();
        let upstream = Array::new(rows.upstream.as_deref().unwrap(), &[2, 3]).unwrap();
        let args = Args::new(logits).upstream(upstream);
        let masks =
            [Array::new(&bytes, &[2, 3]).unwrap(), Array::from_vec(words, &[2, 3]).unwrap()];
        for mask in masks {
            let args = args.clone().target(mask);
            let op = rows.cross_entropy();
            let got = gpu.block_on(gpu.run(&op, Pass::ForwardBackward, &args)).unwrap();
            assert_eq!(bits(&got), want);
        }
    });
}

#[test]
fn ignored_rows_are_exactly_zero() {
    // Whatever they and their upstream gradients hold; their neighbours are untouched.
    on_every_device(|gpu| {
        let mut random = Random::new(11);
        for classes in [3, 33, 257] {
            let poison = [NAN, -NAN, INF, -INF, f32::MAX];
            let mut rows = Rows::random(&mut random, Logits::Normal, &[11, classes]);
            rows.target = random.targets(11, classes, -100, 0.0);
            let mut upstream = random.normals(11, 1.0);
            for (i, value) in poison.into_iter().enumerate() {
                let row = 2 * i + 1;
                rows.target[row] = -100;
                upstream[row] = value;
                rows.logits[row * classes..(row + 1) * classes].fill(value);
            }
            let rows = rows.upstream(&upstream);
            for rows in plain_and_smoothed(&mut random, rows) {
                let out = check(gpu, &rows);
                for row in [1, 3, 5, 7, 9] {
                    assert_zero(&loss(&out)[row..row + 1]);
                    assert_zero(&grad(&out)[row * classes..(row + 1) * classes]);
                }
                check(gpu, &rows.upstream(&[0.7]).reduced(Reduction::Mean));
            }
        }
    });
}

#[test]
fn any_integer_can_be_ignored() {
    on_every_device(|gpu| {
        let logits = [NAN, NAN, NAN, 0.5, -0.25, 1.0, 2.0, 0.0, 0.0];
        for ignored in [0, 2, 3, -1, -100, i32::MAX, i32::MIN] {
            let other = if ignored == 0 { 1 } else { 0 };
            let rows = Rows::new(&logits, &[ignored, 1, other]).ignore_index(ignored);
            check(gpu, &rows.clone().reduced(Reduction::Mean));
        }
    });
}

#[test]
fn classes_of_64_bits_from_the_host() {
    // i32::MIN stands for an ignored class that i32 does not hold.
    let logits = [NAN, NAN, 0.5, -0.25, 2.0, 0.0];
    on_every_device(|gpu| {
        for ignored in [-100, 1 << 40, i64::MAX, i64::MIN] {
            let target = [ignored, 1, 0];
            let op = CrossEntropy::default().ignore_index(ignored);
            let args = Args::new(Array::new(&logits, &[3, 2]).unwrap()).target((&target).into());
            let got = gpu.block_on(gpu.forward_backward(&op, &args)).unwrap();
            let same = Rows::new(&logits, &[-100, 1, 0]).reduced(Reduction::Mean);
            let want = run(gpu, &same, Pass::ForwardBackward);
            assert_eq!(got, want);
        }
    });
}

#[test]
fn weights_of_zero_and_below() {
    on_every_device(|gpu| {
        let mut random = Random::new(12);
        for classes in [5, 40] {
            for smoothing in [0.0, 0.3, 1.0] {
                let mut weight = random.uniforms(classes, -2.0, 2.0);
                weight[0] = 0.0;
                weight[classes - 1] = -0.0;
                let rows = every_kind(&mut random, 3, classes).smoothing(smoothing);
                check(gpu, &rows.clone().weight(&weight));
                check(gpu, &rows.weight(&vec![0.0; classes]));
            }
        }
    });
}

#[test]
fn kept_weights_that_sum_to_zero() {
    let logits = [1.0, 2.0, 0.5, 3.0, 7.0, 7.0];
    on_every_device(|gpu| {
        for (weight, smoothing) in [([1.5, -1.5], 0.0), ([1.5, -1.5], 0.2), ([0.0, 0.0], 0.0)] {
            let rows = Rows::new(&logits, &[0, 1, -100]).weight(&weight).smoothing(smoothing);
            let out = check(gpu, &rows.clone().upstream(&[0.3]).reduced(Reduction::Mean));
            assert_nan(&loss(&out));
            assert_nan(&grad(&out)[..4]);
            assert_zero(&grad(&out)[4..]);
            check(gpu, &rows.upstream(&[0.3]).reduced(Reduction::Sum));
        }
    });
}

#[test]
fn a_zero_weight_annihilates_an_infinite_upstream() {
    on_every_device(|gpu| {
        let weight = [0.0, 1.0, -2.0];
        let logits = [1.0, 2.0, 0.5, 0.0, -1.0, 1.0, 2.0, 2.0, 1.0, 0.0, 0.25, 0.5];
        let rows = Rows::new(&logits, &[0, 0, 0, 1]).weight(&weight);
        let out = check(gpu, &rows.clone().upstream(&[INF, -INF, NAN, INF]));
        assert_zero(&grad(&out)[..6]);
        assert_nan(&grad(&out)[6..9]);
        for reduction in [Reduction::Mean, Reduction::Sum] {
            let out = check(gpu, &rows.clone().upstream(&[INF]).reduced(reduction));
            assert_zero(&grad(&out)[..9]);
        }

        let elements = Elements::new(&[1.0, -2.0, 3.0, 0.5, NAN], &[1.0, 0.0, 0.5, 1.0, 1.0])
            .weight(&[5], &[0.0, 0.0, 0.0, 2.0, 0.0]);
        let out = check(gpu, &elements.clone().upstream(&[INF, -INF, NAN, INF, INF]));
        assert_zero(&grad(&out)[..2]);
        assert_nan(&grad(&out)[2..3]);
        assert_nan(&grad(&out)[4..]);
        for reduction in [Reduction::Mean, Reduction::Sum] {
            let out = check(gpu, &elements.clone().upstream(&[INF]).reduced(reduction));
            assert_zero(&grad(&out)[..3]);
        }
    });
}

#[test]
fn weights_and_upstream_whose_product_overflows() {
    // Both times e^-40 and less: what is left of the gradient does not.
    let rows = Rows::new(&[0.0, -40.0, -41.0, 0.0, -60.0, -50.0], &[0, 0]);
    on_every_device(|gpu| {
        for (weight, upstream) in [(1e30, 1e15), (1e15, 1e30), (1e-30, 1e-15), (-1e30, 1e12)] {
            check(gpu, &rows.clone().weight(&[weight; 3]).upstream(&[upstream; 2]));
        }
    });
}

#[test]
fn not_a_number_upstream() {
    on_every_device(|gpu| {
        let mut random = Random::new(13);
        let rows = Rows::random(&mut random, Logits::Normal, &[5, 6]);
        let rows = Rows { target: vec![0, 1, 2, -100, 4], ..rows };
        let out = check(gpu, &rows.clone().upstream(&[1.0, NAN, -0.5, NAN, 2.0]));
        assert_nan(&grad(&out)[6..12]);
        for reduction in [Reduction::Mean, Reduction::Sum] {
            check(gpu, &rows.clone().upstream(&[-NAN]).reduced(reduction));
        }
        let elements = Elements::random(&mut random, &[5]);
        check(gpu, &elements.clone().upstream(&[1.0, NAN, -0.5, -NAN, 2.0]));
        check(gpu, &elements.upstream(&[NAN]).reduced(Reduction::Mean));
    });
}
