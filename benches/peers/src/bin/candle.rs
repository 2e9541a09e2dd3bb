//! candle on its CPU backend: its losses, and its automatic differentiation.

use candle_core::{Device, Tensor, Var};
use candle_nn::loss;
use wgloss_peers::{Data, Op, Peer, Result, Results, serve, threads, version};

struct Candle;

struct Inputs {
    op: Op,
    copies: Vec<Copy>,
}

struct Copy {
    input: Var,
    projection: Option<Var>,
    target: Tensor,
}

impl Peer for Candle {
    type Inputs = Inputs;
    type Output = (Tensor, Vec<Tensor>);

    fn describe(&self) -> [String; 3] {
        ["candle CPU".into(), version("candle-core"), threads()]
    }

    fn upload(&mut self, data: &Data, copies: usize) -> Result<Inputs> {
        let copy = || -> Result<Copy> {
            let (shape, device) = (data.input_shape(), &Device::Cpu);
            let target = match data.op {
                Op::BceWithLogits => Tensor::from_vec(data.target_as_f32(), shape, device)?,
                _ => Tensor::from_slice(&data.target, &shape[..1], device)?,
            };
            let input = Var::from_slice(&data.input, shape, device)?;
            let projection = match data.op {
                Op::LinearCrossEntropy => {
                    let shape = &data.projection_shape()[..];
                    Some(Var::from_slice(&data.projection, shape, device)?)
                }
                _ => None,
            };
            Ok(Copy { input, projection, target })
        };
        Ok(Inputs { op: data.op, copies: (0..copies).map(|_| copy()).collect::<Result<_>>()? })
    }

    fn run(&mut self, inputs: &mut Inputs, copy: usize) -> Result<(Tensor, Vec<Tensor>)> {
        let Copy { input, projection, target } = &inputs.copies[copy];
        let loss = match (inputs.op, projection) {
            (Op::BceWithLogits, _) => loss::binary_cross_entropy_with_logit(input, target)?,
            (_, Some(projection)) => loss::cross_entropy(&input.matmul(&projection.t()?)?, target)?,
            _ => loss::cross_entropy(input, target)?,
        };
        let mut grads = loss.backward()?;
        let variables = [Some(input), projection.as_ref()].into_iter().flatten();
        let grads = variables.map(|of| grads.remove(of).ok_or("no gradient"));
        let grads = grads.collect::<std::result::Result<_, _>>()?;
        Ok((loss.detach(), grads))
    }

    fn wait(&mut self) -> Result<()> {
        Ok(())
    }

    fn read(&mut self, _: &mut Inputs, (loss, grads): (Tensor, Vec<Tensor>)) -> Result<Results> {
        let grads = grads.iter().map(|grad| Ok(grad.flatten_all()?.to_vec1()?));
        Ok((loss.to_scalar()?, grads.collect::<Result<_>>()?))
    }
}

fn main() -> Result<()> {
    serve(Candle)
}
