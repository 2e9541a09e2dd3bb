//! burn, its losses and its automatic differentiation: with `wgpu` on the adapter that burn prefers
//! (hardware first, as wgloss does), with `flex` on the CPU. It is built twice, since burn chooses
//! between SPIR-V and WGSL when it is built; flex is in one of the programs.

use burn::nn::loss::{BinaryCrossEntropyLossConfig, CrossEntropyLossConfig};
use burn::tensor::{Device, DeviceKind, Int, Tensor, TensorData};

use crate::{Data, Op, Peer, Result, Results, serve, version};

struct Burn {
    name: &'static str,
    on: String,
    device: Device,
}

enum Inputs {
    Rows(Vec<(Tensor<2>, Tensor<1, Int>)>),
    Elements(Vec<(Tensor<1>, Tensor<1, Int>)>),
    Linear(Vec<(Tensor<2>, Tensor<2>, Tensor<1, Int>)>),
}

/// Loss and gradients.
enum Output {
    Rows(Tensor<1>, Tensor<2>),
    Elements(Tensor<1>, Tensor<1>),
    Linear(Tensor<1>, [Tensor<2>; 2]),
}

impl Burn {
    fn wgpu(name: &'static str) -> Result<Burn> {
        let device = Device::wgpu(DeviceKind::DefaultDevice);
        let identity = device.identity().ok_or("no device")?;
        let on = format!("{}, {}", identity.name, identity.fingerprint);
        Ok(Burn { name, on, device })
    }

    #[cfg(feature = "burn-spirv")]
    fn flex() -> Burn {
        Burn { name: "burn flex", on: crate::threads(), device: Device::flex() }
    }
}

impl Peer for Burn {
    type Inputs = Inputs;
    type Output = Output;

    fn describe(&self) -> [String; 3] {
        [self.name.into(), version("burn"), self.on.clone()]
    }

    fn upload(&mut self, data: &Data, copies: usize) -> Result<Inputs> {
        let device = &self.device;
        let target = || {
            let target: Vec<i32> = data.target.iter().map(|&t| t as i32).collect();
            Tensor::<1, Int>::from_data(TensorData::new(target, [data.target.len()]), device)
        };
        let input = || TensorData::new(data.input.clone(), data.input_shape().to_vec());
        let copies = 0..copies;
        let inputs = match data.op {
            Op::CrossEntropy => Inputs::Rows(
                copies.map(|_| (Tensor::from_data(input(), device), target())).collect(),
            ),
            Op::BceWithLogits => Inputs::Elements(
                copies.map(|_| (Tensor::from_data(input(), device), target())).collect(),
            ),
            Op::LinearCrossEntropy => {
                let projection =
                    || TensorData::new(data.projection.clone(), data.projection_shape());
                let copy = |_| {
                    let input = Tensor::from_data(input(), device);
                    (input, Tensor::from_data(projection(), device), target())
                };
                Inputs::Linear(copies.map(copy).collect())
            }
        };
        self.wait()?;
        Ok(inputs)
    }

    fn run(&mut self, inputs: &mut Inputs, copy: usize) -> Result<Output> {
        match inputs {
            Inputs::Rows(copies) => {
                let (input, target) = copies[copy].clone();
                let input = input.autodiff().require_grad();
                let op = CrossEntropyLossConfig::new().init(&self.device);
                let loss = op.forward(input.clone(), target);
                let mut grads = loss.backward();
                let grad = input.grad_remove(&mut grads).ok_or("no gradient")?;
                Ok(Output::Rows(loss.inner(), grad))
            }
            Inputs::Elements(copies) => {
                let (input, target) = copies[copy].clone();
                let input = input.autodiff().require_grad();
                let op = BinaryCrossEntropyLossConfig::new().with_logits(true).init(&self.device);
                let loss = op.forward(input.clone(), target);
                let mut grads = loss.backward();
                let grad = input.grad_remove(&mut grads).ok_or("no gradient")?;
                Ok(Output::Elements(loss.inner(), grad))
            }
            Inputs::Linear(copies) => {
                let (input, projection, target) = copies[copy].clone();
                let input = input.autodiff().require_grad();
                let projection = projection.autodiff().require_grad();
                let op = CrossEntropyLossConfig::new().init(&self.device);
                let logits = input.clone().matmul(projection.clone().transpose());
                let loss = op.forward(logits, target);
                let mut grads = loss.backward();
                let of_input = input.grad_remove(&mut grads).ok_or("no gradient")?;
                let of_projection = projection.grad_remove(&mut grads).ok_or("no gradient")?;
                Ok(Output::Linear(loss.inner(), [of_input, of_projection]))
            }
        }
    }

    fn wait(&mut self) -> Result<()> {
        Ok(self.device.sync().map_err(|error| format!("{error:?}"))?)
    }

    fn read(&mut self, _: &mut Inputs, output: Output) -> Result<Results> {
        let (loss, grads) = match output {
            Output::Rows(loss, grad) => (loss, vec![grad.into_data()]),
            Output::Elements(loss, grad) => (loss, vec![grad.into_data()]),
            Output::Linear(loss, grads) => (loss, grads.map(Tensor::into_data).to_vec()),
        };
        let floats =
            |data: TensorData| data.try_to_vec::<f32>().map_err(|error| format!("{error:?}"));
        let loss = floats(loss.into_data())?[0];
        let grads = grads.into_iter().map(floats).collect::<std::result::Result<_, _>>()?;
        Ok((loss, grads))
    }
}

/// The program, whose wgpu backend is called `name`.
pub fn main(name: &'static str) -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("wgpu") => serve(Burn::wgpu(name)?),
        #[cfg(feature = "burn-spirv")]
        Some("flex") => serve(Burn::flex()),
        other => Err(format!("{other:?}: expected wgpu or flex").into()),
    }
}
