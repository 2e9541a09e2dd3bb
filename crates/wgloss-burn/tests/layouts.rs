//! However tensors lie in memory, and whatever their integers are stored as.

use burn::nn::loss::CrossEntropyLossConfig;
use burn::tensor::{DType, Int, IntDType, Tensor, TensorData};
use wgloss::{CrossEntropy, LogSoftmax, Mse, Op, Reduction, Sigmoid, Softmax};
use wgloss_burn::{Args, Error, check, loss, map, share};

use crate::common::{another, autodiff, classes, device, distance, expect_close, normal, values};

fn cross_entropy(logits: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
    loss(&CrossEntropy::default(), Args::new(logits).classes(targets)).unwrap()
}

fn burns(logits: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
    let device = logits.device();
    CrossEntropyLossConfig::new().init(&device).forward(logits, targets)
}

/// A view by its name, of 64 rows of 100.
fn views() -> Vec<(&'static str, Tensor<2>)> {
    let device = autodiff();
    vec![
        ("contiguous", normal([64, 100], &device)),
        ("transposed", normal([100, 64], &device).transpose()),
        ("rows of a slice", normal([80, 100], &device).slice([10..74, 0..100])),
        ("columns of a slice", normal([64, 137], &device).slice([0..64, 13..113])),
        ("both", normal([80, 137], &device).slice([7..71, 1..101])),
        ("broadcast rows", normal([1, 100], &device).expand([64, 100])),
        ("broadcast columns", normal([64, 1], &device).expand([64, 100])),
        ("flipped", normal([64, 100], &device).flip([0, 1])),
        ("permuted", normal([10, 64, 10], &device).permute([1, 0, 2]).reshape([64, 100])),
        ("of a larger one", normal([2, 64, 100], &device).slice([1..2, 0..64]).reshape([64, 100])),
    ]
}

#[test]
fn views_are_read_as_they_lie() {
    let y = classes([64], 100, &autodiff());
    for (name, x) in views() {
        // without a gradient, nothing lies between the view and the kernel
        let (a, b) = (burns(x.clone(), y.clone()), cross_entropy(x.clone(), y.clone()));
        expect_close(name, a, b, 1e-5);
        let run = |loss: fn(Tensor<2>, Tensor<1, Int>) -> Tensor<1>| {
            let leaf = x.clone().detach().require_grad();
            leaf.grad(&loss(leaf.clone(), y.clone()).backward()).expect("a gradient")
        };
        expect_close(name, run(burns), run(cross_entropy), 1e-6);
    }
}

/// Views that the graph alone holds, whose gradient may be written over them.
#[test]
fn views_that_nobody_keeps() {
    let device = autodiff();
    let y = classes([64], 100, &device);
    let whole = normal([80, 137], &device);
    type Cut = fn(Tensor<2>) -> Tensor<2>;
    let cuts: [(&str, Cut); 4] = [
        ("columns", |x| (x * 2.0).slice([0..64, 13..113])),
        ("rows", |x| (x * 2.0).slice([10..74, 0..100])),
        ("transposed", |x| (x * 2.0).slice([0..80, 0..64]).transpose().pad((0, 20, 0, 0), 0.5)),
        ("broadcast", |x| (x * 2.0).slice([3..4, 0..100]).expand([64, 100])),
    ];
    for (name, cut) in cuts {
        let run = |loss: fn(Tensor<2>, Tensor<1, Int>) -> Tensor<1>| {
            let leaf = whole.clone().require_grad();
            let x = cut(leaf.clone());
            let x = x.clone().slice([0..64, 0..100]);
            leaf.grad(&loss(x, y.clone()).backward()).expect("a gradient")
        };
        expect_close(name, run(burns), run(cross_entropy), 1e-6);
    }
}

#[test]
fn elementwise_targets_and_maps_as_they_lie() {
    let t = normal([64, 100], &device());
    for (name, x) in views() {
        for (name_of_target, t) in [
            ("contiguous", t.clone()),
            ("transposed", normal([100, 64], &device()).transpose()),
            ("columns", normal([64, 111], &device()).slice([0..64, 2..102])),
            ("broadcast", normal([1, 100], &device()).expand([64, 100])),
        ] {
            let (x, op) = (x.clone().inner(), Mse::default());
            let ours: Tensor<1> = loss(&op, Args::new(x.clone()).target(t.clone())).unwrap();
            let want = (x - t).powi_scalar(2).mean();
            expect_close(&format!("{name}, {name_of_target}"), want, ours, 1e-4);
        }
        for dim in [0, 1] {
            let ops: [Box<dyn Op>; 2] =
                [Box::new(Softmax::default().dim(dim)), Box::new(LogSoftmax::default().dim(dim))];
            let [soft, log] = ops.map(|op| map(&*op, x.clone().inner()).unwrap());
            let want = burn::tensor::activation::softmax(x.clone().inner(), dim as usize);
            expect_close(name, want, soft.clone(), 1e-6);
            expect_close(name, soft, log.exp(), 1e-6);
        }
        let want = burn::tensor::activation::sigmoid(x.clone().inner());
        expect_close(name, want, map(&Sigmoid, x.inner()).unwrap(), 1e-6);
    }
}

#[test]
fn classes_of_every_integer() {
    let device = autodiff();
    let (x, y) = (normal([64, 100], &device), classes([64], 100, &device));
    let want = cross_entropy(x.clone(), y.clone());
    for dtype in [IntDType::I64, IntDType::I32, IntDType::U32] {
        let got = cross_entropy(x.clone(), y.clone().cast(dtype));
        assert_eq!(distance(want.clone(), got), 0.0, "{dtype:?}");
    }
    let got = cross_entropy(x.clone().flip([0]), y.clone().flip([0]));
    expect_close("flipped", want, got, 1e-6);
}

/// What i32 does not hold is no class, though the lower half of 2^32 + 1 would be one.
#[test]
fn classes_beyond_i32_are_none() {
    // faults are the device's, so that this one needs its own
    let (device, setup) = another();
    share(&device, &setup).unwrap();
    let far = TensorData::new(vec![(1_i64 << 32) + 1, 1, -1 << 40], [3]);
    let far = Tensor::<1, Int>::from_data(far, (&device, DType::I64));
    let op = CrossEntropy::default().reduction(Reduction::None);
    let args = Args::new(normal([3, 4], &device)).classes(far);
    let nan: Vec<_> = values(loss::<1>(&op, args).unwrap()).iter().map(|v| v.is_nan()).collect();
    assert_eq!(nan, [true, false, true]);
    let class = i64::from(i32::MAX);
    let fault = wgloss::Error::Class { row: 0, class, classes: 4 };
    assert_eq!(check(&device), Err(Error::Wgloss(fault)));
}

/// `[N, C, d1]`, without a reduction: losses have the targets' shape.
#[test]
fn classes_may_be_the_second_of_many_dimensions() {
    let device = autodiff();
    let (x, y) = (normal([3, 7, 5], &device), classes([3, 5], 7, &device));
    let leaf = x.require_grad();
    let op = CrossEntropy::default().reduction(Reduction::None);
    let ours: Tensor<2> = loss(&op, Args::new(leaf.clone()).classes(y.clone())).unwrap();
    let grad = leaf.grad(&ours.clone().sum().backward()).unwrap();
    assert_eq!((ours.dims(), grad.dims()), ([3, 5], [3, 7, 5]));
    let rows = leaf.clone().inner().permute([0, 2, 1]).reshape([15, 7]);
    let rows = Tensor::from_inner(rows).require_grad();
    let flat: Tensor<1> = loss(&op, Args::new(rows.clone()).classes(y.reshape([15]))).unwrap();
    let want = rows.grad(&flat.clone().sum().backward()).unwrap();
    expect_close("losses", flat, ours.reshape([15]), 1e-6);
    expect_close("gradient", want, grad.permute([0, 2, 1]).reshape([15, 7]), 1e-6);
}

/// Rows lie as far apart as they would, but what is in them lies otherwise.
#[test]
fn permuted_within_rows() {
    let device = device();
    let x = normal([3, 5, 7], &device).permute([0, 2, 1]);
    let y = classes([3, 5], 7, &device);
    let copy = Tensor::<3>::from_data(x.clone().into_data(), &device);
    let op = CrossEntropy::default();
    let of = |x| loss::<1>(&op, Args::new(x).classes(y.clone())).unwrap();
    assert_eq!(distance(of(x.clone()), of(copy.clone())), 0.0);
    let of = |x| loss::<1>(&Mse::default(), Args::new(copy.clone()).target(x)).unwrap();
    assert_eq!(values(of(x)), [0.0]);
}

#[test]
fn empty_batches() {
    let device = autodiff();
    let x = Tensor::<2>::zeros([0, 10], &device).require_grad();
    let y = Tensor::<1, Int>::zeros([0], &device);
    let of = |reduction| {
        let op = CrossEntropy::default().reduction(reduction);
        loss::<1>(&op, Args::new(x.clone()).classes(y.clone())).unwrap()
    };
    assert!(values(of(Reduction::Mean))[0].is_nan());
    assert_eq!(values(of(Reduction::Sum)), [0.0]);
    assert_eq!(of(Reduction::None).dims(), [0]);
    let grad = x.grad(&of(Reduction::Sum).backward()).unwrap();
    assert_eq!(grad.dims(), [0, 10]);
    // rows of nothing
    let (x, t) = (
        Tensor::<2>::zeros([5, 0], &device).require_grad(),
        Tensor::<2>::zeros([5, 0], &self::device()),
    );
    let op = Mse::default().reduction(Reduction::Sum);
    let sum: Tensor<1> = loss(&op, Args::new(x.clone()).target(t)).unwrap();
    assert_eq!(x.grad(&sum.backward()).unwrap().dims(), [5, 0]);
    assert_eq!(values(sum), [0.0]);
    assert_eq!(map(&Softmax::default(), x).unwrap().dims(), [5, 0]);
    wgloss_burn::check(&self::device()).unwrap();
}
