//! The same ops with autodiff.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Backend, backend_extension};
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use wgloss::Op;
use wgloss::options::Value;

#[cfg(feature = "fusion")]
use crate::bridge::forward_specs;
use crate::bridge::{Kernels, Others, Results, Slot};

/// An op on whatever backend, in a graph where there is one.
#[backend_extension(Cube, Autodiff, Fusion: cfg(feature = "fusion"))]
pub trait Differentiable: Backend {
    /// The loss or the output of a map, and row outputs.
    #[fusion(meta = forward_specs)]
    fn wgloss_call(
        input: FloatTensor<Self>,
        #[extension_type] others: Others<Self>,
        op: Box<dyn Op>,
    ) -> Results<Self>;
}

impl Differentiable for CubeBackend {
    fn wgloss_call(
        input: CubeTensor,
        others: Others<CubeBackend>,
        op: Box<dyn Op>,
    ) -> Results<CubeBackend> {
        CubeBackend::wgloss_forward(input, others, op)
    }
}

impl<B: Kernels, C: CheckpointStrategy> Differentiable for Autodiff<B, C> {
    fn wgloss_call(
        input: FloatTensor<Self>,
        others: Others<Self>,
        op: Box<dyn Op>,
    ) -> Results<Self> {
        let others = Others {
            target: inner(others.target),
            weight: inner(others.weight),
            pos_weight: inner(others.pos_weight),
        };
        let (input, node) = input.into_parts();
        // Compute-bound, so that nothing of it is computed again where activations are: what it keeps
        // is the input, which the graph has for as long as its own operation needs it.
        match Gradient.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let mut forward = op.clone();
                if op.kind().row_outputs {
                    // known of every op of this kind
                    let _ = forward.set("keep_state", Value::Bool(true));
                }
                let mut results = B::wgloss_forward(input.clone(), others.clone(), forward);
                let state = std::mem::replace(&mut results.state, Slot::Empty);
                let kept = Kept { input, others, state, op };
                outer(results, |value| prep.finish(kept, value))
            }
            OpsKind::UnTracked(prep) => {
                let results = B::wgloss_forward(input, others, op);
                outer(results, |value| prep.finish(value))
            }
        }
    }
}

/// Targets and weights, which have no gradient.
fn inner<B: Backend, C: CheckpointStrategy>(slot: Slot<Autodiff<B, C>>) -> Slot<B> {
    match slot {
        Slot::Empty => Slot::Empty,
        Slot::Float(tensor) => Slot::Float(tensor.into_primitive()),
        Slot::Int(tensor) => Slot::Int(tensor),
    }
}

/// Results in the graph; those beside the first have no gradient.
fn outer<B: Backend, C: CheckpointStrategy>(
    results: Results<B>,
    finish: impl FnOnce(FloatTensor<B>) -> FloatTensor<Autodiff<B, C>>,
) -> Results<Autodiff<B, C>> {
    let outer = |slot| match slot {
        Slot::Empty => Slot::Empty,
        Slot::Float(tensor) => Slot::Float(Autodiff::<B, C>::from_inner(tensor)),
        Slot::Int(tensor) => Slot::Int(tensor),
    };
    Results {
        value: finish(results.value),
        state: outer(results.state),
        logsumexp: outer(results.logsumexp),
        argmax: outer(results.argmax),
        correct: outer(results.correct),
        entropy: outer(results.entropy),
    }
}

/// What backward needs of forward.
#[derive(Debug, Clone)]
struct Kept<B: Backend> {
    input: FloatTensor<B>,
    others: Others<B>,
    state: Slot<B>,
    op: Box<dyn Op>,
}

#[derive(Debug)]
struct Gradient;

impl<B: Kernels> Backward<B, 1> for Gradient {
    type State = Kept<B>;

    fn backward(self, ops: Ops<Kept<B>, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [node] = ops.parents;
        let upstream = grads.consume::<B>(&ops.node);
        let Kept { input, others, state, op } = ops.state;
        if let Some(node) = node {
            let grad = B::wgloss_backward(input, others, state, upstream, op);
            grads.register::<B>(node.id, grad);
        }
    }
}
