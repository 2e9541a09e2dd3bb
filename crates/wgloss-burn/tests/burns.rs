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

/// What burn has no loss for, from its operations.
#[test]
fn probabilities_and_log_probabilities() {
    let device = autodiff();
    let inner = device.clone().inner();
    let (x, y) = (normal([9, 14], &device), classes([9], 14, &device));
    let p = activation::softmax(normal([9, 14], &inner), 1);
    let p = || p.clone();
    let module = ours::CrossEntropyLossConfig::new().init(&device);
    let burns = |x| -(activation::log_softmax(x, 1) * p()).sum_dim(1).mean();
    same("probabilities", x.clone(), burns, |x| module.forward_probabilities(x, p()));

    let weights: Vec<f32> = (1..=14).map(|i| i as f32).collect();
    let module = ours::NllLossConfig::new().with_weights(Some(weights.clone())).init(&device);
    let weights = Tensor::<1>::from_floats(&weights[..], &inner);
    let of_rows = || weights.clone().gather(0, y.clone());
    let terms = |x: Tensor<2>| -x.gather(1, y.clone().reshape([9, 1])).reshape([9]) * of_rows();
    let (a, b) =
        (|x| terms(x).sum() / of_rows().sum(), |x| module.forward(x, y.clone(), Reduction::Mean));
    same("nll", x.clone(), a, b);
    same("nll of rows", x.clone(), terms, |x| module.forward_no_reduction(x, y.clone()));

    let pos_weights: Vec<f32> = (1..=14).map(|i| i as f32 / 7.0).collect();
    let module = ours::BinaryCrossEntropyLossConfig::new()
        .with_logits(true)
        .with_pos_weights(Some(pos_weights.clone()))
        .init(&device);
    let pos_weights = Tensor::<1>::from_floats(&pos_weights[..], &inner).reshape([1, 14]);
    let burns = |x: Tensor<2>| {
        let positive = activation::log_sigmoid(x.clone()) * p() * pos_weights.clone();
        -(positive + activation::log_sigmoid(-x) * (-p() + 1.0))
    };
    same("pos_weights", x, burns, |x| module.forward_no_reduction(x, p()));
}

#[test]
fn configs_have_the_options_of_ops() {
    let device = device();
    let op = ours::CrossEntropyLossConfig::new()
        .with_ignore_index(7)
        .with_smoothing(Some(0.1))
        .with_empty_mean(Some(0.0))
        .with_logit_scale(0.5)
        .with_softcap(Some(30.0))
        .with_z_loss(1e-4)
        .init(&device);
    let want = wgloss::CrossEntropy::default()
        .ignore_index(7)
        .label_smoothing(0.1)
        .empty_mean(0.0)
        .logit_scale(0.5)
        .softcap(30.0)
        .z_loss(1e-4);
    assert_eq!(op.op(), &want);
    let op = ours::CrossEntropyLossConfig::new().init(&device);
    assert_eq!(op.op(), &wgloss::CrossEntropy::default());
    let op = ours::NllLossConfig::new().with_ignore_index(-1).init(&device);
    assert_eq!(op.op(), &wgloss::NllLoss::default().ignore_index(-1));
    let op = ours::SmoothL1LossConfig::new().with_beta(0.3).init();
    assert_eq!(op.op(), &wgloss::SmoothL1::default().beta(0.3));
    let op = ours::HuberLossConfig::new(0.3).init();
    assert_eq!(op.op(), &wgloss::Huber::default().delta(0.3));
    let op = ours::KLDivLossConfig::new().with_log_target(true).init();
    assert_eq!(op.op(), &wgloss::KlDiv::default().log_target(true));
    let op = ours::SigmoidFocalLossConfig::new().with_alpha(-1.0).with_gamma(1.5).init();
    assert_eq!(op.op(), &wgloss::SigmoidFocal::default().alpha(-1.0).gamma(1.5));
    let op = ours::PoissonNllLossConfig::new()
        .with_log_input(false)
        .with_full(true)
        .with_eps(1e-6)
        .init();
    assert_eq!(op.op(), &wgloss::PoissonNll::default().log_input(false).full(true).eps(1e-6));
    // defaults
    assert_eq!(ours::SigmoidFocalLossConfig::new().init().op(), &wgloss::SigmoidFocal::default());
    assert_eq!(ours::PoissonNllLossConfig::new().init().op(), &wgloss::PoissonNll::default());
    assert_eq!(ours::SmoothL1LossConfig::new().init().op(), &wgloss::SmoothL1::default());
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
