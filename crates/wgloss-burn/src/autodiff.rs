//! The same ops with autodiff.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Backend, backend_extension};
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use wgloss::Op;
use wgloss::options::{Family, Value};

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
        let [input_is_frozen, projection_is_frozen, bias_is_frozen] = frozen(&*op);
        let (projection, of_projection) = slot_parts(others.projection, projection_is_frozen);
        let (bias, of_bias) = slot_parts(others.bias, bias_is_frozen);
        let others = Others {
            target: inner(others.target),
            weight: inner(others.weight),
            pos_weight: inner(others.pos_weight),
            projection,
            bias,
        };
        let (input, of_input) = parts::<B, C>(input, input_is_frozen);
        // in the order of `FREEZE`; a bias comes with a projection
        match (of_projection, of_bias) {
            (Some(projection), Some(bias)) => {
                in_graph::<B, C, 3>([of_input, projection, bias], input, others, op)
            }
            (Some(projection), None) => {
                in_graph::<B, C, 2>([of_input, projection], input, others, op)
            }
            (None, _) => in_graph::<B, C, 1>([of_input], input, others, op),
        }
    }
}

/// The options that leave out the gradient of a node's first, second and third parent.
const FREEZE: [&str; 3] = ["freeze_input", "freeze_projection", "freeze_bias"];

/// The results, as a node whose parents are the arguments that may have a gradient.
fn in_graph<B: Kernels, C: CheckpointStrategy, const N: usize>(
    parents: [NodeGuard; N],
    input: FloatTensor<B>,
    others: Others<B>,
    op: Box<dyn Op>,
) -> Results<Autodiff<B, C>> {
    // Compute-bound, so that nothing of it is computed again where activations are: what it keeps
    // are the arguments, which the graph has for as long as its own operation needs them.
    let prepared = Backward::<B, N>::prepare::<C>(Gradient, parents).compute_bound();
    match prepared.stateful() {
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

/// Which of `FREEZE` the caller has set.
fn frozen(op: &dyn Op) -> [bool; 3] {
    if op.kind().family != Family::LinearLoss {
        return [false; 3];
    }
    let options = op.options();
    FREEZE.map(|name| options.iter().any(|it| it.name == name && it.value == Value::Bool(true)))
}

/// A tensor and its node: one outside the graph where its gradient is frozen, since burn expects a gradient
/// of every parent in the graph.
fn parts<B: Backend, C: CheckpointStrategy>(
    tensor: FloatTensor<Autodiff<B, C>>,
    is_frozen: bool,
) -> (FloatTensor<B>, NodeGuard) {
    let tensor = match is_frozen {
        true => Autodiff::<B, C>::from_inner(tensor.into_primitive()),
        false => tensor,
    };
    tensor.into_parts()
}

/// The same of a tensor that may be missing.
fn slot_parts<B: Backend, C: CheckpointStrategy>(
    slot: Slot<Autodiff<B, C>>,
    is_frozen: bool,
) -> (Slot<B>, Option<NodeGuard>) {
    match slot {
        Slot::Float(tensor) => {
            let (tensor, node) = parts::<B, C>(tensor, is_frozen);
            (Slot::Float(tensor), Some(node))
        }
        other => (inner(other), None),
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

impl<B: Kernels, const N: usize> Backward<B, N> for Gradient {
    type State = Kept<B>;

    fn backward(self, ops: Ops<Kept<B>, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let upstream = grads.consume::<B>(&ops.node);
        let Kept { input, others, state, mut op } = ops.state;
        freeze_others(&mut *op, ops.parents.each_ref().map(Option::is_some));
        let given = B::wgloss_backward(input, others, state, upstream, op);
        let given = [given.input, given.projection, given.bias];
        for (node, grad) in ops.parents.into_iter().zip(given) {
            if let (Some(node), Slot::Float(grad)) = (node, grad) {
                grads.register::<B>(node.id, grad);
            }
        }
    }
}

/// Freezes the gradients that the graph has no use for.
fn freeze_others<const N: usize>(op: &mut dyn Op, is_asked: [bool; N]) {
    if op.kind().family != Family::LinearLoss {
        return;
    }
    // known of every op of this family
    let mut set = |name| {
        let _ = op.set(name, Value::Bool(true));
    };
    // burn's gradients are stored as their tensors are
    set("narrow_grad_projection");
    FREEZE
        .into_iter()
        .zip(is_asked)
        .filter(|(_, is_asked)| !is_asked)
        .for_each(|(name, _)| set(name));
}
