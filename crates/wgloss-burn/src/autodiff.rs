//! The same ops with autodiff.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Backend, TensorMetadata, backend_extension};
use burn::tensor::{BoolDType, DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use wgloss::options::{Family, Value};
use wgloss::{Op, Pass, Reduction};

#[cfg(feature = "fusion")]
use crate::bridge::call_specs;
use crate::bridge::{Grads, Kernels, Others, Results, Slot, storage, to_i32};

/// An op on whatever backend, in a graph where there is one.
#[backend_extension(Cube, Autodiff, Fusion: cfg(feature = "fusion"))]
pub trait Differentiable: Backend {
    /// The loss or the output of a map, and row outputs.
    #[fusion(meta = call_specs)]
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
        CubeBackend::wgloss_forward(input, others, op, Pass::Forward)
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
    parents: [Parent; N],
    input: FloatTensor<B>,
    others: Others<B>,
    mut op: Box<dyn Op>,
) -> Results<Autodiff<B, C>> {
    let is_asked = parents.each_ref().map(|parent| parent.is_tracked);
    let parents = parents.map(|parent| parent.node);
    // Compute-bound, so that nothing of it is computed again where activations are: what it keeps are gradients, or
    // the arguments, which the graph has for as long as its own operation needs them.
    let prepared = Backward::<B, N>::prepare::<C>(Gradient, parents).compute_bound();
    match prepared.stateful() {
        OpsKind::Tracked(prep) => {
            freeze_others(&mut *op, is_asked);
            let (results, kept) = tracked(input, others, op);
            outer(results, |value| prep.finish(kept, value))
        }
        OpsKind::UnTracked(prep) => {
            let results = B::wgloss_forward(input, others, op, Pass::Forward);
            outer(results, |value| prep.finish(value))
        }
    }
}

/// The results, and what the graph keeps for backward.
fn tracked<B: Kernels>(
    input: FloatTensor<B>,
    others: Others<B>,
    op: Box<dyn Op>,
) -> (Results<B>, Kept<B>) {
    if gives_gradients_in_forward(&*op, input.dtype()) {
        let target = others.target.clone();
        let ignored = match value_of_option(&*op, "ignore_index") {
            Some(Value::Integer(class)) => class,
            _ => unreachable!("every op of this family leaves a class out"),
        };
        let mut results = B::wgloss_forward(input, others, op, Pass::ForwardBackward);
        let grads = std::mem::take(&mut results.grads);
        return (results, Kept::Gradients { grads, target, ignored });
    }
    let mut forward = op.clone();
    if op.kind().row_outputs {
        // known of every op of this kind
        let _ = forward.set(KEEP_STATE, Value::Bool(true));
    }
    let mut results = B::wgloss_forward(input.clone(), others.clone(), forward, Pass::Forward);
    let state = std::mem::take(&mut results.state);
    (results, Kept::Arguments { input, others, state, op })
}

/// The option by which the caller has backward compute the logits again.
const KEEP_STATE: &str = "keep_state";

/// Whether forward computes the gradients too, which backward then multiplies by the upstream gradient: the logits,
/// a product of N x V x D, are not computed again.
///
/// The upstream gradient must be one number for that. Gradients of 16 bits wait for backward, which rounds them once,
/// after the upstream gradient is in them, because a mean's may be so small that f16 has them only by the scale
/// of the loss.
fn gives_gradients_in_forward(op: &dyn Op, input: DType) -> bool {
    op.kind().family == Family::LinearLoss
        && storage(input) == Some(wgloss::DType::F32)
        && value_of_option(op, "reduction") != Some(Value::Reduction(Reduction::None))
        && value_of_option(op, KEEP_STATE) != Some(Value::Bool(true))
}

fn value_of_option(op: &dyn Op, name: &str) -> Option<Value> {
    op.options().into_iter().find(|option| option.name == name).map(|option| option.value)
}

/// Which of `FREEZE` the caller has set.
fn frozen(op: &dyn Op) -> [bool; 3] {
    if op.kind().family != Family::LinearLoss {
        return [false; 3];
    }
    let options = op.options();
    FREEZE.map(|name| options.iter().any(|it| it.name == name && it.value == Value::Bool(true)))
}

/// A parent of a node.
struct Parent {
    node: NodeGuard,
    /// Whether the graph has a use for its gradient.
    is_tracked: bool,
}

/// A tensor and its node: one outside the graph where its gradient is frozen, since burn expects a gradient
/// of every parent in the graph.
fn parts<B: Backend, C: CheckpointStrategy>(
    tensor: FloatTensor<Autodiff<B, C>>,
    is_frozen: bool,
) -> (FloatTensor<B>, Parent) {
    let tensor = match is_frozen {
        true => Autodiff::<B, C>::from_inner(tensor.into_primitive()),
        false => tensor,
    };
    let is_tracked = tensor.is_tracked();
    let (tensor, node) = tensor.into_parts();
    (tensor, Parent { node, is_tracked })
}

/// The same of a tensor that may be missing.
fn slot_parts<B: Backend, C: CheckpointStrategy>(
    slot: Slot<Autodiff<B, C>>,
    is_frozen: bool,
) -> (Slot<B>, Option<Parent>) {
    match slot {
        Slot::Float(tensor) => {
            let (tensor, parent) = parts::<B, C>(tensor, is_frozen);
            (Slot::Float(tensor), Some(parent))
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
        grads: Grads::default(),
    }
}

/// What backward needs of forward.
#[derive(Debug, Clone)]
enum Kept<B: Backend> {
    /// What the gradients are computed of.
    Arguments { input: FloatTensor<B>, others: Others<B>, state: Slot<B>, op: Box<dyn Op> },
    /// The gradients for an upstream gradient of 1, the targets, and which of them are left out.
    Gradients { grads: Grads<B>, target: Slot<B>, ignored: i64 },
}

#[derive(Debug)]
struct Gradient;

impl<B: Kernels, const N: usize> Backward<B, N> for Gradient {
    type State = Kept<B>;

    fn backward(self, ops: Ops<Kept<B>, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let upstream = grads.consume::<B>(&ops.node);
        let given = match ops.state {
            Kept::Arguments { input, others, state, op } => {
                B::wgloss_backward(input, others, state, upstream, op)
            }
            Kept::Gradients { grads, target, ignored } => scaled(grads, target, ignored, upstream),
        };
        let given = [given.input, given.projection, given.bias];
        for (node, grad) in ops.parents.into_iter().zip(given) {
            if let (Some(node), Slot::Float(grad)) = (node, grad) {
                grads.register::<B>(node.id, grad);
            }
        }
    }
}

/// Gradients for an upstream gradient of 1, times another. Rows that are left out are multiplied by 1, because their
/// gradient is 0 whatever the upstream gradient is, and NaN times 0 would be NaN. So are the sums over rows where all
/// are left out.
fn scaled<B: Backend>(
    grads: Grads<B>,
    target: Slot<B>,
    ignored: i64,
    upstream: FloatTensor<B>,
) -> Grads<B> {
    let Slot::Int(target) = target else {
        unreachable!("the call has checked that it has classes")
    };
    let mut shape = target.shape();
    if shape.num_elements() == 0 {
        // they are zeros, and a reduction over no rows has nothing to look at
        return grads;
    }
    // the booleans of burn's WGSL
    let dtype = BoolDType::U32;
    let is_kept = B::int_not_equal_elem(to_i32::<B>(target), ignored.into(), dtype);
    let is_none_kept = B::bool_not(B::bool_any(is_kept.clone()));
    let of_rows = B::float_expand(upstream.clone(), shape.clone());
    let of_rows = B::float_mask_fill(of_rows, B::bool_not(is_kept), 1.0.into());
    let of_sums = B::float_mask_fill(upstream, is_none_kept, 1.0.into());
    let times = |grad: Slot<B>, factor: FloatTensor<B>| match grad {
        Slot::Float(grad) => Slot::Float(B::float_mul(grad, factor)),
        other => other,
    };
    shape.push(1);
    Grads {
        input: times(grads.input, B::float_reshape(of_rows, shape)),
        projection: times(grads.projection, B::float_reshape(of_sums.clone(), Shape::new([1, 1]))),
        bias: times(grads.bias, of_sums),
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
