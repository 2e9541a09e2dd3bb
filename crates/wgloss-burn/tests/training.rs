//! The same model trained with burn's loss and with ours.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig, Relu};
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::common::{another, autodiff, normal};

#[derive(Module, Debug)]
struct Mlp {
    hidden: Linear,
    activation: Relu,
    output: Linear,
}

impl Mlp {
    fn new(device: &Device) -> Self {
        Mlp {
            hidden: LinearConfig::new(32, 64).init(device),
            activation: Relu::new(),
            output: LinearConfig::new(64, 10).init(device),
        }
    }

    fn forward(&self, input: Tensor<2>) -> Tensor<2> {
        self.output.forward(self.activation.forward(self.hidden.forward(input)))
    }
}

#[test]
fn losses_are_burns_step_by_step() {
    let device = autodiff();
    let first = Mlp::new(&device);
    let x = normal([256, 32], &device).inner() / 3.0;
    let y = x.clone().slice([0..256, 0..10]).argmax(1).reshape([256]);
    let train = |loss: &dyn Fn(Tensor<2>, Tensor<1, Int>) -> Tensor<1>| -> Vec<f32> {
        let mut model = first.clone();
        let mut sgd = SgdConfig::new().init();
        let step = |_| {
            let x = Tensor::from_inner(x.clone());
            let loss = loss(model.forward(x), y.clone());
            let grads = GradientsParams::from_grads(loss.backward(), &model);
            model = sgd.step(0.3, model.clone(), grads);
            loss.into_scalar::<f32>()
        };
        (0..20).map(step).collect()
    };
    let burns = burn::nn::loss::CrossEntropyLossConfig::new().init(&device);
    let ours = wgloss_burn::CrossEntropyLossConfig::new().init(&device);
    let burns = train(&|x, y| burns.forward(x, y));
    let ours = train(&|x, y| ours.forward(x, y));
    assert!(burns[19] < burns[0] - 0.2, "it learns: {burns:?}");
    for (step, (a, b)) in burns.iter().zip(&ours).enumerate() {
        assert!((a - b).abs() < 2e-6, "step {step}: {a} and {b}");
    }
}

/// Batches of three sizes, which are uploaded, while losses are kept for a while: tensors lie elsewhere at
/// every step, and there are six plans all the same. A plan takes two buffers at least, and burn's pools
/// grow no more after the first steps.
#[test]
fn steps_after_the_first_ones_create_nothing() {
    // other tests create too
    let (device, setup) = another();
    wgloss_burn::share(&device, &setup).unwrap();
    let device = device.autodiff();
    let created = || {
        let report = setup.instance.generate_report().expect("a native instance");
        let hub = report.hub_report();
        (hub.buffers.num_allocated, hub.compute_pipelines.num_allocated)
    };
    let mut model = Mlp::new(&device);
    let x = normal([256, 32], &device).inner();
    let loss = wgloss_burn::CrossEntropyLossConfig::new().init(&device);
    let mut sgd = SgdConfig::new().init();
    let (mut losses, mut counts) = (Vec::new(), Vec::new());
    for step in 0..90 {
        let rows = 250 + step % 3;
        let y: Vec<i32> = (step..step + rows).map(|i| i * 7 % 10).collect();
        let rows = y.len();
        let y = Tensor::<1, Int>::from_data(TensorData::new(y, [rows]), &device);
        let x = Tensor::from_inner(x.clone().slice([0..rows, 0..32]));
        let loss = loss.forward(model.forward(x), y);
        losses.push(loss.clone().inner());
        if step % 7 == 0 {
            losses.drain(..).for_each(|loss| drop(loss.into_data()));
        }
        let grads = GradientsParams::from_grads(loss.backward(), &model);
        model = sgd.step(0.1, model.clone(), grads);
        device.sync().unwrap();
        counts.push(created());
    }
    assert!(counts[30..].iter().all(|count| count == &counts[30]), "{counts:?}");
}
