//! Linear cross entropy, whose projection and bias have gradients of their own, beside burn's product and
//! burn's loss of logits.

use burn::nn::loss as burns;
use burn::tensor::{DType, Device, Int, IntDType, Tensor};
use wgloss::{CrossEntropy, LinearCrossEntropy, Op, Reduction};
use wgloss_burn::{
    Args, CrossEntropyLossConfig, Error, LinearCrossEntropyLossConfig, check, loss, share,
};

use crate::common::{
    another, autodiff, classes, device, distance, expect_close, integers, normal, values,
};

const ROWS: usize = 37;
const DIMS: usize = 19;
const CLASSES: usize = 45;
/// What two graphs in f32 may differ by, relative to the largest value: each product rounds logits by up to
/// (D + 8) 2^-24 of the sum of their terms' sizes, and each loss is within 2e-6 of its own. Numbers are other ones
/// on every run.
const ALLOWED: f32 = 2.0 * ((DIMS + 8) as f32 * (f32::EPSILON / 2.0) + 2e-6);

type Loss = fn(Tensor<2>, Tensor<2>, Option<Tensor<1>>, Tensor<1, Int>) -> Tensor<1>;

fn ours(x: Tensor<2>, w: Tensor<2>, b: Option<Tensor<1>>, y: Tensor<1, Int>) -> Tensor<1> {
    let device = x.device();
    LinearCrossEntropyLossConfig::new().init(&device).forward(x, w, b, y)
}

/// The same where backward computes the logits again.
fn again(x: Tensor<2>, w: Tensor<2>, b: Option<Tensor<1>>, y: Tensor<1, Int>) -> Tensor<1> {
    let device = x.device();
    LinearCrossEntropyLossConfig::new().with_recompute(true).init(&device).forward(x, w, b, y)
}

/// burn's operations alone, in f32.
fn plain(x: Tensor<2>, w: Tensor<2>, b: Option<Tensor<1>>, y: Tensor<1, Int>) -> Tensor<1> {
    let device = x.device();
    burns::CrossEntropyLossConfig::new().init(&device).forward(logits(x, w, b), y)
}

fn logits(x: Tensor<2>, w: Tensor<2>, b: Option<Tensor<1>>) -> Tensor<2> {
    let logits = x.cast(DType::F32).matmul(w.cast(DType::F32).transpose());
    match b {
        Some(b) => logits + b.cast(DType::F32).unsqueeze::<2>(),
        None => logits,
    }
}

/// Hidden states, projection and bias.
struct Leaves(Tensor<2>, Tensor<2>, Tensor<1>);

impl Leaves {
    fn new(dtype: DType, device: &Device) -> Self {
        Leaves(
            (normal([ROWS, DIMS], device) / 3.0).cast(dtype),
            (normal([CLASSES, DIMS], device) / 3.0).cast(dtype),
            normal([CLASSES], device).cast(dtype),
        )
    }
}

type Grads = (Option<Tensor<2>>, Option<Tensor<2>>, Option<Tensor<1>>);

/// The value and the gradients of a graph: those of the leaves that are tracked.
fn run(
    leaves: &Leaves,
    is_tracked: [bool; 3],
    graph: impl FnOnce(Tensor<2>, Tensor<2>, Tensor<1>) -> Tensor<1>,
) -> (Tensor<1>, Grads) {
    let Leaves(x, w, b) = leaves;
    let x = x.clone().detach().set_require_grad(is_tracked[0]);
    let w = w.clone().detach().set_require_grad(is_tracked[1]);
    let b = b.clone().detach().set_require_grad(is_tracked[2]);
    let value = graph(x.clone(), w.clone(), b.clone());
    let grads = value.backward();
    (value, (x.grad(&grads), w.grad(&grads), b.grad(&grads)))
}

fn same<const D: usize>(name: &str, a: Option<Tensor<D>>, b: Option<Tensor<D>>, allowed: f32) {
    match (a, b) {
        (Some(a), Some(b)) => {
            assert_eq!(a.dtype(), b.dtype(), "{name}");
            expect_close(name, a, b, allowed);
        }
        (a, b) => assert_eq!(a.is_some(), b.is_some(), "{name}"),
    }
}

/// Fails unless a graph has the same value and gradients with burn's loss and with ours.
fn same_graph(
    name: &str,
    dtype: DType,
    is_tracked: [bool; 3],
    graph: impl Fn(Tensor<2>, Tensor<2>, Tensor<1>, Loss) -> Tensor<1>,
) {
    // f16 has 11 bits
    let allowed = if dtype == DType::F16 { 1e-3 } else { ALLOWED };
    for device in [autodiff(), autodiff().gradient_checkpointing()] {
        let leaves = Leaves::new(dtype, &device);
        let of = |loss: Loss| run(&leaves, is_tracked, |x, w, b| graph(x, w, b, loss));
        let (want_value, want_grads) = of(plain);
        let strategy = device.gradient_checkpointing_strategy();
        for (way, loss) in [("at once", ours as Loss), ("again", again)] {
            let (got, grads) = of(loss);
            let name = format!("{name}, {way}, {dtype:?}, {is_tracked:?}, {strategy:?}");
            let want = want_grads.clone();
            expect_close(&name, want_value.clone(), got, ALLOWED);
            same(&format!("{name}: input"), want.0, grads.0, allowed);
            same(&format!("{name}: projection"), want.1, grads.1, allowed);
            same(&format!("{name}: bias"), want.2, grads.2, allowed);
        }
    }
    check(&device()).unwrap();
}

fn y() -> Tensor<1, Int> {
    Tensor::<1, Int>::arange(3..3 + ROWS as i64, &device())
}

const ALL: [bool; 3] = [true; 3];

#[test]
fn gradients_of_whatever_is_tracked() {
    for dtype in [DType::F32, DType::F16] {
        for bits in 1..8 {
            let is_tracked = [bits & 1 != 0, bits & 2 != 0, bits & 4 != 0];
            // so that gradients are no small numbers
            same_graph("with a bias", dtype, is_tracked, |x, w, b, loss| {
                loss(x, w, Some(b), y()) * ROWS as f64
            });
            if !is_tracked[2] {
                same_graph("without", dtype, is_tracked, |x, w, _, loss| {
                    loss(x, w, None, y()) * ROWS as f64
                });
            }
        }
    }
}

#[test]
fn losses_in_graphs() {
    let n = ROWS as f64;
    same_graph("hidden states that nobody keeps", DType::F32, ALL, |x, w, b, loss| {
        loss((x * 0.5).tanh() * 2.0, w * 1.5, Some(b), y()) * n
    });
    same_graph("rows apart that nobody keeps", DType::F32, ALL, |x, w, b, loss| {
        let (x, w) = ((x * 2.0).slice([0..ROWS, 3..12]), w.slice([0..CLASSES, 3..12]));
        loss(x, w, Some(b), y()) * n
    });
    same_graph("two losses", DType::F32, ALL, |x, w, b, loss| {
        let x = x * 2.0;
        loss(x.clone(), w.clone(), Some(b), y()) * n + loss(x, w, None, y().flip([0])) * n
    });
    same_graph("arguments that others read", DType::F32, ALL, |x, w, b, loss| {
        let x = x * 2.0;
        let others = (x.clone() * x.clone()).sum() + (w.clone() * w.clone()).sum();
        loss(x, w, Some(b.clone()), y()) * n + others + (b.clone() * b).sum()
    });
    same_graph("one tensor as both", DType::F32, ALL, |x, _, _, loss| {
        loss(x.clone(), x, None, Tensor::arange(0..ROWS as i64, &device())) * n
    });
    same_graph("a weight as burn's linear layer keeps it", DType::F32, ALL, |x, w, b, loss| {
        let w = (w * 2.0).swap_dims(0, 1);
        loss(x, w.transpose(), Some(b), y()) * n
    });
    same_graph("an upstream gradient", DType::F32, ALL, |x, w, b, loss| {
        loss(x, w, Some(b), y()) * (-3.0 * n)
    });
    same_graph("a loss twice", DType::F32, ALL, |x, w, b, loss| {
        let value = loss(x * 2.0, w, Some(b), y());
        value.clone() * value * n
    });
    same_graph("hidden states that burn keeps", DType::F32, ALL, |x, w, b, loss| {
        loss((x * 0.1).exp(), w, Some(b), y()) * n
    });
    same_graph("one loss of two", DType::F32, ALL, |x, w, b, loss| {
        let _left = loss(x.clone() * 3.0, w.clone(), None, y());
        loss(x, w, Some(b), y()) * n
    });
}

/// Each row with an upstream gradient of its own.
#[test]
fn without_a_reduction() {
    for dtype in [DType::F32, DType::F16] {
        let device = autodiff();
        let leaves = Leaves::new(dtype, &device);
        let upstream = normal([ROWS], &device.clone().inner());
        let module = LinearCrossEntropyLossConfig::new().init(&device);
        let of_ours = |x, w, b| {
            let rows = module.forward_no_reduction(x, w, Some(b), y());
            (rows * Tensor::from_inner(upstream.clone())).sum()
        };
        let of_burns = |x, w, b| {
            let rows = burn::tensor::activation::log_softmax(logits(x, w, Some(b)), 1);
            let rows = rows.gather(1, y().reshape([ROWS, 1])).reshape([ROWS]).neg();
            (rows * Tensor::from_inner(upstream.clone())).sum()
        };
        let allowed = if dtype == DType::F16 { 1e-3 } else { 3e-6 };
        let ((a, a_grads), (b, b_grads)) =
            (run(&leaves, ALL, of_burns), run(&leaves, ALL, of_ours));
        expect_close("sum", a, b, 1e-5);
        same("input", a_grads.0, b_grads.0, allowed);
        same("projection", a_grads.1, b_grads.1, allowed);
        same("bias", a_grads.2, b_grads.2, allowed);
    }
}

/// A scale of the loss keeps small gradients of 16 bits from what these round to 0.
#[test]
fn a_scale_keeps_small_gradients() {
    let scale = f64::from(1 << 18);
    same_graph("a scale", DType::F16, [true, true, false], |x, w, _, loss| {
        loss(x, w / 1024.0, None, y()) * scale / 32.0
    });
}

/// Rows that are left out have a gradient of 0 whatever the upstream gradient is, and a projection and a bias where
/// all are. Rows that are kept have one that is not finite.
#[test]
fn rows_left_out() {
    let device = autodiff();
    let is_zero = |values: &[f32]| values.iter().all(|&v| v == 0.0);
    let is_nan = |values: &[f32]| values.iter().all(|v| v.is_nan());
    for (dtype, recompute) in [(DType::F32, false), (DType::F32, true), (DType::F16, false)] {
        let leaves = Leaves::new(dtype, &device);
        let module = LinearCrossEntropyLossConfig::new().with_recompute(recompute).init(&device);
        for reduction in [burns::Reduction::Mean, burns::Reduction::Sum] {
            let grads = |y: Tensor<1, Int>, upstream: f32| {
                let graph = |x, w, b| {
                    let reduction = reduction.clone();
                    module.forward_with_reduction(x, w, Some(b), y, reduction) * upstream
                };
                let (x, w, b) = run(&leaves, ALL, graph).1;
                (values(x.unwrap()), values(w.unwrap()), values(b.unwrap()))
            };
            let name = format!("{dtype:?}, {reduction:?}, recompute: {recompute}");
            let none = Tensor::full([ROWS], -100, &self::device());
            let is_left_out = y().lower_elem(12) & y().greater_elem(5);
            let some = y().mask_fill(is_left_out, -100);
            for upstream in [f32::NAN, f32::INFINITY, -2.0] {
                let (x, w, b) = grads(none.clone(), upstream);
                assert!(is_zero(&x) && is_zero(&w) && is_zero(&b), "{name}, all, {upstream}");
                let (mut x, w, b) = grads(some.clone(), upstream);
                let of_left_out: Vec<_> = x.drain(3 * DIMS..9 * DIMS).collect();
                assert!(is_zero(&of_left_out), "{name}, {upstream}: {of_left_out:?}");
                let is_finite = |values: &[f32]| values.iter().all(|v| v.is_finite());
                match upstream {
                    _ if upstream.is_nan() => {
                        assert!(is_nan(&x) && is_nan(&w) && is_nan(&b), "{name}");
                    }
                    _ if upstream.is_infinite() => {
                        let mut of_kept = x.iter().chain(&w);
                        assert!(of_kept.all(|v| !v.is_finite()), "{name}");
                    }
                    _ => assert!(is_finite(&x) && is_finite(&w) && is_finite(&b), "{name}"),
                }
            }
        }
    }
    check(&self::device()).unwrap();
}

/// A class that is left out is no other one where the targets' integers cannot hold it, such as 0.
#[test]
fn targets_of_any_integers() {
    let device = autodiff();
    let x = normal([ROWS, DIMS], &device);
    let w = normal([CLASSES, DIMS], &device);
    let y = Tensor::<1, Int>::arange(0..ROWS as i64, &device);
    let of = |loss: Loss, dtype| {
        let (x, w) = (x.clone().require_grad(), w.clone().require_grad());
        let value = loss(x.clone(), w.clone(), None, y.clone().cast(dtype)) * (3.0 * ROWS as f64);
        let grads = value.backward();
        (x.grad(&grads).unwrap(), w.grad(&grads).unwrap())
    };
    let want = of(plain, IntDType::I32);
    for dtype in [IntDType::I64, IntDType::I32, IntDType::U32] {
        let got = of(ours, dtype);
        expect_close(&format!("{dtype:?}, input"), want.0.clone(), got.0, 3e-6);
        expect_close(&format!("{dtype:?}, projection"), want.1.clone(), got.1, 3e-6);
    }
}

/// The same bits at every run.
#[test]
fn gradients_have_the_same_bits() {
    let leaves = Leaves::new(DType::F32, &autodiff());
    let bits = || {
        let (value, grads) = run(&leaves, ALL, |x, w, b| ours(x * 2.0, w, Some(b), y()) * 3.0);
        let of = [values(grads.0.unwrap()), values(grads.1.unwrap()), values(grads.2.unwrap())];
        let of = of.concat().into_iter().chain(values(value));
        of.map(f32::to_bits).collect::<Vec<_>>()
    };
    let first = bits();
    assert!((0..3).all(|_| bits() == first));
}

/// The gradient is written over hidden states only where nobody else has them.
#[test]
fn what_others_hold_stays() {
    let device = autodiff();
    let Leaves(x, w, b) = Leaves::new(DType::F32, &device);
    let (leaf, w, b) = (x.require_grad(), w.require_grad(), b.require_grad());
    let x = leaf.clone() * 2.0;
    let all = || (values(leaf.clone()), values(x.clone()), values(w.clone()), values(b.clone()));
    let before = all();
    ours(x.clone(), w.clone(), Some(b.clone()), y()).backward();
    ours(leaf.clone(), w.clone(), Some(b.clone()), y()).backward();
    again(leaf.clone(), w.clone(), Some(b.clone()), y()).backward();
    assert!(before == all());
    // not even a forward pass without backward
    let _value = ours(x.clone(), w.clone(), Some(b.clone()), y());
    assert!(before == all());
}

#[test]
fn options_dimensions_and_rows() {
    let device = autodiff();
    let weights: Vec<f32> = (1..=CLASSES).map(|i| i as f32 / 10.0).collect();
    let pads = vec![3, 5, 7];
    let module = LinearCrossEntropyLossConfig::new()
        .with_loss(
            CrossEntropyLossConfig::new()
                .with_pad_tokens(Some(pads.clone()))
                .with_weights(Some(weights.clone())),
        )
        .with_workspace_bytes(1 << 16)
        .init(&device);
    let want = LinearCrossEntropy::new(CrossEntropy::default().ignore_index(3));
    assert_eq!(module.op(), &want.workspace_bytes(1 << 16));
    let default = LinearCrossEntropyLossConfig::new().init(&device);
    assert_eq!(default.op(), &LinearCrossEntropy::default());
    let again = LinearCrossEntropyLossConfig::new().with_recompute(true).init(&device);
    let keeps = LinearCrossEntropy::new(CrossEntropy::default().keep_state(true));
    assert_eq!(again.op(), &keeps);

    let burns = burns::CrossEntropyLossConfig::new()
        .with_pad_tokens(Some(pads))
        .with_weights(Some(weights))
        .init(&device);
    let Leaves(x, w, b) = Leaves::new(DType::F32, &device);
    let y = classes([36], CLASSES, &device);
    let x = x.slice([0..36, 0..DIMS]);
    let all = logits(x.clone(), w.clone(), Some(b.clone()));
    let want = burns.forward(all.clone(), y.clone());
    // of [batch, time, D]
    let hidden = x.clone().reshape([4, 9, DIMS]);
    let targets = y.clone().reshape([4, 9]);
    let got = module.forward(hidden.clone(), w.clone(), Some(b.clone()), targets.clone());
    expect_close("mean", want.clone(), got, 3e-6);
    let each =
        module.forward_no_reduction(hidden.clone(), w.clone(), Some(b.clone()), targets.clone());
    assert_eq!(each.dims(), [4, 9]);
    let sum = module.forward_with_reduction(
        hidden.clone(),
        w.clone(),
        Some(b.clone()),
        targets.clone(),
        burns::Reduction::Sum,
    );
    expect_close("sum", each.sum(), sum, 3e-6);

    let leaf = w.clone().require_grad();
    let (mean, rows) = module.forward_with_rows(hidden, leaf.clone(), Some(b), targets);
    assert_eq!(leaf.grad(&mean.backward()).expect("a gradient").dims(), [CLASSES, DIMS]);
    expect_close("mean with rows", want, mean, 3e-6);
    let p = burn::tensor::activation::softmax(all.clone(), 1);
    let logsumexp = all.clone().exp().sum_dim(1).log().reshape([4, 9]);
    expect_close("logsumexp", logsumexp, rows.logsumexp, 3e-6);
    let entropy = -(p.clone() * p.log()).sum_dim(1).reshape([4, 9]);
    expect_close("entropy", entropy, rows.entropy, 1e-5);
    let argmax = integers(all.argmax(1));
    let correct: Vec<_> = argmax.iter().zip(integers(y)).map(|(a, y)| i64::from(*a == y)).collect();
    assert_eq!(integers(rows.argmax), argmax);
    // targets that are left out are none
    let of_kept: Vec<_> = correct.into_iter().zip(integers(rows.correct.unwrap())).collect();
    assert!(of_kept.iter().all(|(want, got)| got <= want), "{of_kept:?}");
    check(&self::device()).unwrap();
}

/// bf16 has the gradient of a loss without reduction too, since the upstream gradient stays f32.
#[test]
fn bf16() {
    let device = autodiff();
    // numbers that bf16 holds
    let x: Vec<_> = (0..6).map(|i| half::bf16::from_f32(i as f32 / 4.0 - 0.5)).collect();
    let w: Vec<_> = (0..12).map(|i| half::bf16::from_f32(1.0 - i as f32 / 8.0)).collect();
    let tensor = |values, shape: [usize; 2], dtype| {
        let data = burn::tensor::TensorData::new::<half::bf16, _>(values, shape);
        match dtype {
            DType::BF16 => Tensor::<2>::from_data(data, (&device, DType::BF16)),
            _ => Tensor::from_data(data.convert::<f32>(), (&device, DType::F32)),
        }
    };
    let op = LinearCrossEntropy::new(CrossEntropy::default().reduction(Reduction::None));
    let of = |dtype| {
        let x = tensor(x.clone(), [2, 3], dtype).require_grad();
        let w = tensor(w.clone(), [4, 3], dtype).require_grad();
        let y = Tensor::<1, Int>::from_ints([0, 3], &device);
        let args = Args::new(x.clone()).projection(w.clone()).classes(y);
        let each: Tensor<1> = loss(&op, args).unwrap();
        let upstream = Tensor::from_floats([1.0, -2.0], &device);
        let grads = (each.clone() * upstream).sum().backward();
        let grads = (x.grad(&grads).unwrap(), w.grad(&grads).unwrap());
        assert_eq!((grads.0.dtype(), grads.1.dtype()), (dtype, dtype));
        [values(each), values(grads.0), values(grads.1)].concat()
    };
    for (a, b) in of(DType::F32).into_iter().zip(of(DType::BF16)) {
        assert!((a - b).abs() <= a.abs() / 256.0 + 1e-6, "{a} and {b}");
    }
}

/// No rows: gradients are zeros. Gradients that the caller has frozen: none, though tensors are tracked.
#[test]
fn edges() {
    let device = autodiff();
    let Leaves(_, w, b) = Leaves::new(DType::F32, &device);
    let (w, b) = (w.require_grad(), b.require_grad());
    let x = Tensor::<2>::zeros([0, DIMS], &device).require_grad();
    let no_rows = Tensor::<1, Int>::zeros([0], &device);
    let sum: Box<dyn Op> =
        Box::new(LinearCrossEntropy::new(CrossEntropy::default().reduction(Reduction::Sum)));
    let args =
        |x: &Tensor<2>, y| Args::new(x.clone()).projection(w.clone()).bias(b.clone()).classes(y);
    let value: Tensor<1> = loss(&*sum, args(&x, no_rows)).unwrap();
    let grads = value.backward();
    assert_eq!(values(value), [0.0]);
    assert_eq!(x.grad(&grads).unwrap().dims(), [0, DIMS]);
    assert_eq!(values(w.grad(&grads).unwrap()), vec![0.0; CLASSES * DIMS]);
    assert_eq!(values(b.grad(&grads).unwrap()), vec![0.0; CLASSES]);

    let x = normal([ROWS, DIMS], &device).require_grad();
    let given = |op: &LinearCrossEntropy| {
        let value: Tensor<1> = loss(op, args(&x, y())).unwrap();
        let grads = value.backward();
        [x.grad(&grads).is_some(), w.grad(&grads).is_some(), b.grad(&grads).is_some()]
    };
    let op = LinearCrossEntropy::default();
    assert_eq!(given(&op), ALL);
    assert_eq!(given(&op.clone().freeze_projection(true)), [true, false, true]);
    let op = op.freeze_input(true).freeze_bias(true);
    assert_eq!(given(&op), [false, true, false]);
    // tensors that are not leaves
    let (bent, op) = (x.clone() * 2.0, op.freeze_bias(true));
    let value: Tensor<1> = loss(&op, args(&bent, y())).unwrap();
    assert!(w.grad(&(value + bent.sum()).backward()).is_some());
    let value: Tensor<1> = loss(&op.freeze_projection(true), args(&x, y())).unwrap();
    assert!(!value.is_tracked());
    check(&self::device()).unwrap();
}

/// A step stores no logits, and no gradient of a head that is not trained: of the two larger things here,
/// one is there where it is asked for. Losses that wait for backward each keep one, or none where backward computes
/// the logits again.
#[test]
fn a_step_takes_the_memory_of_its_gradients() {
    // other tests allocate too
    let (device, setup) = another();
    share(&device, &setup).unwrap();
    let device = device.autodiff();
    let (rows, dims, classes) = (256, 32, 16_384);
    let y = self::classes([rows], classes, &device);
    let x = normal([rows, dims], &device).require_grad();
    let w = normal([classes, dims], &device);
    let size = (classes * dims * 4) as u64;
    let reserved = || {
        device.sync().unwrap();
        device.memory_pool_usage().unwrap().bytes_reserved
    };
    // by some losses, and by backward after that
    let grown_by = |w: &Tensor<2>, losses: usize, recompute: bool| {
        let config = LinearCrossEntropyLossConfig::new().with_workspace_bytes(1 << 20);
        let module = config.with_recompute(recompute).init(&device);
        device.sync().unwrap();
        device.memory_cleanup();
        let before = reserved();
        let loss = || module.forward(x.clone(), w.clone(), None, y.clone());
        let sum = (1..losses).fold(loss(), |sum, _| sum + loss());
        let kept = reserved();
        let grads = sum.backward();
        let grads = (x.grad(&grads).unwrap(), w.grad(&grads));
        let after = reserved();
        drop(grads);
        [kept - before, after - kept]
    };
    let frozen: u64 = grown_by(&w, 1, false).iter().sum();
    assert!(frozen < size, "{frozen}, of a projection of {size}");
    let w = w.require_grad();
    let trained: u64 = grown_by(&w, 1, false).iter().sum();
    // logits are 8 times that
    assert!((size..2 * size).contains(&trained), "{trained}, of a projection of {size}");
    let [kept, _] = grown_by(&w, 8, false);
    assert!(kept >= 8 * size, "{kept}, of a projection of {size}");
    let [kept, _] = grown_by(&w, 8, true);
    assert!(kept < size, "{kept}, of a projection of {size}");
}

#[test]
fn what_is_refused_is_refused_at_the_call() {
    let device = device();
    let Leaves(x, w, b) = Leaves::new(DType::F32, &device);
    let refused = |args| loss::<1>(&LinearCrossEntropy::default(), args).unwrap_err().to_string();
    let args = || Args::new(x.clone()).classes(y());
    assert!(refused(args()).contains("projection"), "{}", refused(args()));
    let turned = args().projection(w.clone().transpose());
    assert!(
        refused(turned.clone()).starts_with("projection: expected shape"),
        "{}",
        refused(turned)
    );
    let narrow = args().projection(w.clone().cast(DType::F16));
    assert!(
        refused(narrow.clone()).starts_with("projection: expected storage type"),
        "{}",
        refused(narrow)
    );
    let short = args().projection(w.clone()).bias(b.clone().narrow(0, 0, CLASSES - 1));
    assert!(refused(short.clone()).starts_with("bias: expected shape"), "{}", refused(short));
    // a tracked weight of classes is as for other losses
    let tracked = Tensor::<1>::ones([CLASSES], &autodiff()).require_grad();
    let tracked =
        loss::<1>(&LinearCrossEntropy::default(), args().projection(w.clone()).weight(tracked));
    assert_eq!(tracked.unwrap_err(), Error::Tracked { argument: "weight" });
    // other ops have no projection
    let args = Args::new(x.clone()).classes(y() - 3).projection(w.clone());
    let refused = loss::<1>(&CrossEntropy::default(), args).unwrap_err().to_string();
    assert!(refused.starts_with("projection"), "{refused}");
}

/// Hidden states of a body that has no autodiff, under a head that has.
#[test]
fn a_body_without_autodiff() {
    let Leaves(x, w, _) = Leaves::new(DType::F32, &device());
    let of = |x| {
        let w = Tensor::<2>::from_inner(w.clone()).require_grad();
        w.grad(&ours(x, w.clone(), None, y()).backward()).expect("a gradient")
    };
    assert_eq!(distance(of(x.clone()), of(Tensor::from_inner(x))), 0.0);
}
