//! Autodiff's edges.

use burn::tensor::{Int, Tensor, activation};
use wgloss::{CrossEntropy, Mse, Reduction};
use wgloss_burn::{Args, Error, loss, map, share};

use crate::common::{
    another, autodiff, classes, device, distance, expect_close, normal, uniform, values,
};

fn cross_entropy(logits: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
    loss(&CrossEntropy::default(), Args::new(logits).classes(targets)).unwrap()
}

/// burn's operations alone.
fn plain(logits: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
    let rows = targets.dims()[0];
    activation::log_softmax(logits, 1).gather(1, targets.reshape([rows, 1])).mean().neg()
}

/// Gradients by a graph that the loss is part of.
fn same_gradient(
    name: &str,
    graph: impl Fn(Tensor<2>, fn(Tensor<2>, Tensor<1, Int>) -> Tensor<1>) -> Tensor<1>,
) {
    for device in [autodiff(), autodiff().gradient_checkpointing()] {
        let x = normal([24, 30], &device);
        let run = |loss| {
            let leaf = x.clone().require_grad();
            leaf.grad(&graph(leaf.clone(), loss).backward()).expect("a gradient")
        };
        let name = format!("{name}, {:?}", device.gradient_checkpointing_strategy());
        expect_close(&name, run(plain), run(cross_entropy), 2e-6);
    }
}

#[test]
fn losses_in_graphs() {
    let y = || Tensor::<1, Int>::arange(0..24, &device());
    same_gradient("a leaf", |x, loss| loss(x, y()));
    same_gradient("an upstream gradient", |x, loss| loss(x, y()) * -3.0);
    same_gradient("logits that are recomputed", |x, loss| loss((x * 2.0).exp().log() + 1.0, y()));
    same_gradient("logits that others read", |x, loss| {
        let x = x * 2.0;
        loss(x.clone(), y()) + (x.clone() * x).mean()
    });
    same_gradient("logits of two losses", |x, loss| {
        let x = x * 2.0;
        loss(x.clone(), y()) + loss(x, y().flip([0])) * 0.5
    });
    same_gradient("a loss of a loss", |x, loss| {
        let first = loss(x.clone(), y());
        loss(x * first.reshape([1, 1]), y())
    });
    same_gradient("a loss twice", |x, loss| {
        let value = loss(x, y());
        value.clone() * value
    });
    same_gradient("one loss of two", |x, loss| {
        let _left = loss(x.clone() * 3.0, y());
        loss(x, y())
    });
}

#[test]
fn maps_in_graphs() {
    for device in [autodiff(), autodiff().gradient_checkpointing()] {
        let x = normal([12, 9], &device);
        let w = normal([12, 9], &device.clone().inner());
        let run = |softmax: fn(Tensor<2>) -> Tensor<2>| {
            let leaf = x.clone().require_grad();
            let y = softmax(leaf.clone() * 0.5);
            let z = softmax(y.clone() * w.clone()) + y;
            leaf.grad(&(z * w.clone()).sum().backward()).expect("a gradient")
        };
        let ours = |x| map(&wgloss::Softmax::default(), x).unwrap();
        expect_close("softmax", run(|x| activation::softmax(x, 1)), run(ours), 2e-6);
    }
}

/// A graph is used up by backward: the second gives what burn's own losses give.
#[test]
fn a_graph_is_used_once() {
    let device = autodiff();
    let y = classes([8], 5, &device);
    let twice = |loss: fn(Tensor<2>, Tensor<1, Int>) -> Tensor<1>| {
        let leaf = normal([8, 5], &device).require_grad();
        let value = loss(leaf.clone() * 2.0, y.clone());
        let first = leaf.grad(&value.backward()).is_some();
        let second = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            leaf.grad(&value.backward()).is_some()
        }));
        (first, second.ok())
    };
    assert_eq!(twice(plain), twice(cross_entropy));
}

#[test]
fn without_a_gradient() {
    let device = autodiff();
    let (x, y) = (normal([8, 5], &device), classes([8], 5, &device));
    // constants, detached, and without autodiff
    let want = cross_entropy(x.clone(), y.clone());
    assert!(!want.is_tracked());
    let detached = (x.clone().require_grad() * 1.0).detach();
    assert!(!cross_entropy(detached, y.clone()).is_tracked());
    let inner = cross_entropy(x.clone().inner(), y.clone());
    assert_eq!(distance(want, inner), 0.0);
    // a constant beside a leaf
    let leaf = normal([8, 5], &device).require_grad();
    let sum = cross_entropy(x, y.clone()) + cross_entropy(leaf.clone(), y);
    assert!(leaf.grad(&sum.backward()).is_some());
}

/// The gradient is written over logits only where nobody else has them.
#[test]
fn what_others_hold_stays() {
    let device = autodiff();
    let y = classes([64], 100, &device);
    let leaf = normal([64, 100], &device).require_grad();
    let logits = leaf.clone() * 2.0;
    let view = logits.clone().slice([3..9, 1..50]);
    let before = (values(leaf.clone()), values(logits.clone()), values(view.clone()));
    cross_entropy(logits.clone(), y.clone()).backward();
    cross_entropy(leaf.clone(), y.clone()).backward();
    assert!(before == (values(leaf.clone()), values(logits), values(view)));

    // a view that outlives the logits that it is of
    let logits = leaf * 2.0;
    let (view, before) = (logits.clone().slice([0..1, 0..100]), values(logits.clone()));
    cross_entropy(logits, y).backward();
    assert_eq!(values(view), before[..100]);
}

/// The memory of a step is that of the logits: the gradient is written over them.
#[test]
fn backward_takes_no_memory_of_the_logits_size() {
    // other tests allocate too
    let (device, setup) = another();
    share(&device, &setup).unwrap();
    let device = device.autodiff();
    let (rows, columns) = (256, 8192);
    let y = classes([rows], columns, &device);
    let leaf = normal([rows, 1], &device).require_grad();
    let step = || {
        let logits = leaf.clone().expand([rows, columns]) * 2.0;
        let loss = cross_entropy(logits, y.clone());
        let grads = loss.backward();
        values(leaf.grad(&grads).unwrap())
    };
    step();
    device.sync().unwrap();
    device.memory_cleanup();
    let before = device.memory_pool_usage().unwrap().bytes_reserved;
    step();
    device.sync().unwrap();
    let after = device.memory_pool_usage().unwrap().bytes_reserved;
    let size = (rows * columns * 4) as u64;
    assert!(after - before < 2 * size, "{before} then {after}, logits of {size}");
}

#[test]
fn without_reduction_and_with_weights() {
    let device = autodiff();
    let (x, y) = (normal([16, 6], &device), classes([16], 6, &device));
    let w = uniform([6], &device.clone().inner());
    let op = CrossEntropy::default();
    let mean = |op: &CrossEntropy| {
        let leaf = x.clone().require_grad();
        let args = Args::new(leaf.clone()).classes(y.clone()).weight(w.clone());
        let value: Tensor<1> = loss(op, args).unwrap();
        let divisor = w.clone().gather(0, y.clone().inner()).sum();
        let value = match value.dims() {
            [1] => value,
            _ => value.sum() / Tensor::from_inner(divisor),
        };
        (value.clone(), leaf.grad(&value.backward()).unwrap())
    };
    let (a, b) = (mean(&op), mean(&op.clone().reduction(Reduction::None)));
    expect_close("loss", a.0, b.0, 1e-6);
    expect_close("gradient", a.1, b.1, 1e-6);
}

/// A gradient of targets would be missing without a word.
#[test]
fn targets_in_a_graph_are_refused() {
    let device = autodiff();
    let (a, b) = (normal([3, 4], &device), normal([3, 4], &device).require_grad());
    let refused = loss::<1>(&Mse::default(), Args::new(a.clone()).target(b.clone())).unwrap_err();
    assert_eq!(refused, Error::Tracked { argument: "target" });
    let text = "target: expected a tensor without a gradient, got one in a graph: take its inner()";
    assert_eq!(refused.to_string(), text);
    loss::<1>(&Mse::default(), Args::new(a).target(b.inner())).unwrap();
}
