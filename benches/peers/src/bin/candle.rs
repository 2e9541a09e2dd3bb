//! candle on its CPU backend: its losses, and its automatic differentiation.

use candle_core::{Device, Tensor, Var};
use candle_nn::loss;
use wgloss_peers::{Data, Op, Peer, Result, serve, threads, version};

struct Candle;

struct Inputs {
    op: Op,
    copies: Vec<(Var, Tensor)>,
}

impl Peer for Candle {
    type Inputs = Inputs;
    type Output = (Tensor, Tensor);

    fn describe(&self) -> [String; 3] {
        ["candle CPU".into(), version("candle-core"), threads()]
    }

    fn upload(&mut self, data: &Data, copies: usize) -> Result<Inputs> {
        let copy = || -> Result<(Var, Tensor)> {
            let (shape, device) = (&data.shape[..], &Device::Cpu);
            let target = match data.op {
                Op::CrossEntropy => Tensor::from_slice(&data.target, &shape[..1], device)?,
                Op::BceWithLogits => Tensor::from_vec(data.target_as_f32(), shape, device)?,
            };
            Ok((Var::from_slice(&data.input, shape, device)?, target))
        };
        Ok(Inputs { op: data.op, copies: (0..copies).map(|_| copy()).collect::<Result<_>>()? })
    }

    fn run(&mut self, inputs: &mut Inputs, copy: usize) -> Result<(Tensor, Tensor)> {
        let (input, target) = &inputs.copies[copy];
        let loss = match inputs.op {
            Op::CrossEntropy => loss::cross_entropy(input, target)?,
            Op::BceWithLogits => loss::binary_cross_entropy_with_logit(input, target)?,
        };
        let grad = loss.backward()?.remove(input).ok_or("no gradient")?;
        Ok((loss.detach(), grad))
    }

    fn wait(&mut self) -> Result<()> {
        Ok(())
    }

    fn read(&mut self, _: &mut Inputs, (loss, grad): (Tensor, Tensor)) -> Result<(f32, Vec<f32>)> {
        Ok((loss.to_scalar()?, grad.flatten_all()?.to_vec1()?))
    }
}

fn main() -> Result<()> {
    serve(Candle)
}
