//! burn, its losses and its automatic differentiation: with `wgpu` on the adapter that burn prefers
//! (hardware first, as wgloss does), with `flex` on the CPU. It is built twice, since burn chooses
//! between SPIR-V and WGSL when it is built; flex is in one of the programs.

use burn::nn::loss::{BinaryCrossEntropyLossConfig, CrossEntropyLossConfig};
use burn::tensor::{Device, DeviceKind, Int, Tensor, TensorData};

use crate::{Data, Op, Peer, Result, serve, version};

struct Burn {
    name: &'static str,
    on: String,
    device: Device,
}

enum Inputs {
    Rows(Vec<(Tensor<2>, Tensor<1, Int>)>),
    Elements(Vec<(Tensor<1>, Tensor<1, Int>)>),
}

/// Loss and gradient, the latter flat.
enum Output {
    Rows(Tensor<1>, Tensor<2>),
    Elements(Tensor<1>, Tensor<1>),
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
        let input = || TensorData::new(data.input.clone(), data.shape.clone());
        let copies = 0..copies;
        let inputs = match data.op {
            Op::CrossEntropy => Inputs::Rows(
                copies.map(|_| (Tensor::from_data(input(), device), target())).collect(),
            ),
            Op::BceWithLogits => Inputs::Elements(
                copies.map(|_| (Tensor::from_data(input(), device), target())).collect(),
            ),
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
        }
    }

    fn wait(&mut self) -> Result<()> {
        Ok(self.device.sync().map_err(|error| format!("{error:?}"))?)
    }

    fn read(&mut self, _: &mut Inputs, output: Output) -> Result<(f32, Vec<f32>)> {
        let (loss, grad) = match output {
            Output::Rows(loss, grad) => (loss, grad.into_data()),
            Output::Elements(loss, grad) => (loss, grad.into_data()),
        };
        let floats =
            |data: TensorData| data.try_to_vec::<f32>().map_err(|error| format!("{error:?}"));
        Ok((floats(loss.into_data())?[0], floats(grad)?))
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
