//! Beside burn's own losses and activations: the same numbers by the same calls, loss and gradient.

use burn::nn::loss as burns;
use burn::nn::loss::Reduction;
use burn::tensor::{Tensor, activation};
use wgloss_burn as ours;

use crate::common::{autodiff, classes, device, expect_close, normal, uniform};

/// Values and gradients, times 3, of the same call on both sides.
fn same<const D: usize, const R: usize>(
    name: &str,
    input: Tensor<D>,
    burns: impl FnOnce(Tensor<D>) -> Tensor<R>,
    ours: impl FnOnce(Tensor<D>) -> Tensor<R>,
) {
    let run = |loss: Box<dyn FnOnce(Tensor<D>) -> Tensor<R> + '_>| {
        let leaf = input.clone().require_grad();
        let value = loss(leaf.clone() * 1.0);
        let grad = leaf.grad(&(value.clone() * 3.0).sum().backward()).expect("a gradient");
        (value, grad)
    };
    let (a, b) = (run(Box::new(burns)), run(Box::new(ours)));
    expect_close(name, a.0, b.0, 1e-5);
    expect_close(&format!("{name}: gradient"), a.1, b.1, 1e-5);
}

#[test]
fn cross_entropy_is_burns() {
    let device = autodiff();
    let x = normal([33, 20], &device);
    let y = classes([33], 20, &device);
    let weights: Vec<f32> = (1..=20).map(|i| i as f32 / 10.0).collect();
    let plain = |pads: Option<Vec<usize>>, weights: Option<Vec<f32>>, smoothing: Option<f32>| {
        let name = format!("{pads:?}, {weights:?}, {smoothing:?}");
        let burns = burns::CrossEntropyLossConfig::new()
            .with_pad_tokens(pads.clone())
            .with_weights(weights.clone())
            .with_smoothing(smoothing)
            .init(&device);
        let ours = ours::CrossEntropyLossConfig::new()
            .with_pad_tokens(pads)
            .with_weights(weights)
            .with_smoothing(smoothing.map(f64::from))
            .init(&device);
        let (y, z) = (y.clone(), y.clone());
        same(&name, x.clone(), |x| burns.forward(x, y), |x| ours.forward(x, z));
    };
    plain(None, None, None);
    plain(Some(vec![3]), None, None);
    plain(Some(vec![3, 5, 7]), None, None);
    plain(None, Some(weights.clone()), None);
    plain(Some(vec![0, 1]), Some(weights), None);
    plain(None, None, Some(0.1));
    let (a, b) = (
        burns::CrossEntropyLoss::new(Some(3), &device),
        ours::CrossEntropyLoss::new(Some(3), &device),
    );
    let (y, z) = (y.clone(), y.clone());
    same("by index", x.clone(), |x| a.forward(x, y), |x| b.forward(x, z));
    ours::check(&self::device()).unwrap();
}

#[test]
fn elementwise_losses_are_burns() {
    let device = autodiff();
    let inner = device.clone().inner();
    let (x, t) = (normal([7, 45], &device), normal([7, 45], &inner));
    let (p, q) = (uniform([7, 45], &device), uniform([7, 45], &inner));
    for reduction in [Reduction::Mean, Reduction::Sum, Reduction::Auto] {
        let r = || reduction.clone();
        let (a, b) = (burns::MseLoss::new(), ours::MseLoss::new());
        let u = || t.clone();
        same("mse", x.clone(), |x| a.forward(x, u(), r()), |x| b.forward(x, u(), r()));
        let (a, b) =
            (burns::HuberLossConfig::new(0.7).init(), ours::HuberLossConfig::new(0.7).init());
        same("huber", x.clone(), |x| a.forward(x, u(), r()), |x| b.forward(x, u(), r()));
        let (a, b) =
            (burns::PoissonNllLossConfig::new().init(), ours::PoissonNllLossConfig::new().init());
        let u = || q.clone();
        same("poisson", p.clone(), |x| a.forward(x, u(), r()), |x| b.forward(x, u(), r()));
        let (a, b) = (burns::KLDivLossConfig::new().init(), ours::KLDivLossConfig::new().init());
        same("kl_div", p.clone(), |x| a.forward(x, u(), r()), |x| b.forward(x, u(), r()));
    }
    let (a, b) = (
        burns::SmoothL1LossConfig::new().with_beta(0.5).init(),
        ours::SmoothL1LossConfig::new().with_beta(0.5).init(),
    );
    let u = || t.clone();
    same("smooth_l1", x.clone(), |x| a.forward(x, u()), |x| b.forward(x, u()));
    let dims = &[1];
    let (f, g) = (|x| a.forward_reduce_dims(x, u(), dims), |x| b.forward_reduce_dims(x, u(), dims));
    same("smooth_l1 of rows", x.clone(), f, g);
    let r = || Reduction::Sum;
    let f = |x| a.forward_with_reduction(x, u(), r());
    same("smooth_l1, summed", x.clone(), f, |x| b.forward_with_reduction(x, u(), r()));
    let signs = || t.clone().sign();
    let (a, b) = (burns::SoftMarginLoss::new(), ours::SoftMarginLoss::new());
    let f = |x| a.forward(x, signs(), Reduction::Mean);
    same("soft_margin", x.clone(), f, |x| b.forward(x, signs(), Reduction::Mean));
}

#[test]
fn binary_cross_entropy_is_burns() {
    let device = autodiff();
    let y = classes([12, 5], 2, &device);
    let weights = vec![0.5, 1.0, 2.0, 0.1, 3.0];
    for logits in [true, false] {
        let x =
            if logits { normal([12, 5], &device) } else { uniform([12, 5], &device) * 0.9 + 0.05 };
        for (weights, smoothing) in [
            (None, None),
            (Some(weights.clone()), None),
            (None, Some(0.2)),
            (Some(weights.clone()), Some(0.1)),
        ] {
            let a = burns::BinaryCrossEntropyLossConfig::new()
                .with_logits(logits)
                .with_weights(weights.clone())
                .with_smoothing(smoothing)
                .init(&device);
            let b = ours::BinaryCrossEntropyLossConfig::new()
                .with_logits(logits)
                .with_weights(weights)
                .with_smoothing(smoothing.map(f64::from))
                .init(&device);
            let (y, z) = (y.clone(), y.clone());
            same("bce", x.clone().detach(), |x| a.forward(x, y), |x| b.forward(x, z));
        }
    }
}

#[test]
fn activations_are_burns() {
    let device = autodiff();
    let x = normal([4, 6, 8], &device);
    let w = normal([4, 6, 8], &device.clone().inner());
    let w = || w.clone();
    for dim in 0..3 {
        let a = |x| activation::softmax(x, dim) * w();
        same("softmax", x.clone(), a, |x| ours::activation::softmax(x, dim) * w());
        let a = |x| activation::log_softmax(x, dim) * w();
        same("log_softmax", x.clone(), a, |x| ours::activation::log_softmax(x, dim) * w());
    }
    let a = |x| activation::sigmoid(x) * w();
    same("sigmoid", x.clone(), a, |x| ours::activation::sigmoid(x) * w());
    let a = |x| activation::log_sigmoid(x) * w();
    same("log_sigmoid", x, a, |x| ours::activation::log_sigmoid(x) * w());
}

/// What burn's lose: a confident row's loss and gradient.
#[test]
fn confident_rows_keep_their_digits() {
    let device = autodiff();
    let x = Tensor::<2>::from_floats([[20.7, 0.0]], &device).require_grad();
    let y = Tensor::<1, burn::tensor::Int>::from_ints([0], &device);
    let loss = ours::CrossEntropyLossConfig::new().init(&device);
    let value = loss.forward(x.clone(), y);
    let grad = x.grad(&value.backward()).unwrap().into_data().try_to_vec::<f32>().unwrap();
    let value = value.into_scalar::<f32>();
    assert!((value - 1.0236e-9).abs() < 1e-12, "{value:e}");
    assert!((grad[0] + 1.0236e-9).abs() < 1e-12 && (grad[1] - 1.0236e-9).abs() < 1e-12, "{grad:?}");
}
