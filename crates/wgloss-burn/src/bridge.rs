//! The bridge: ops over the buffers that burn's tensors lie in.

#[cfg(feature = "fusion")]
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::ops::{FloatTensorOps, IntTensorOps};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, ExtensionType, TensorMetadata, backend_extension};
use burn::tensor::{DType, IntDType, Shape, TensorData};
use burn_cubecl::cubecl::wgpu::{AutoCompiler, WgpuServer};
use burn_cubecl::kernel::{cast, into_contiguous};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::{CubeBackend, tensor::CubeTensor};
use wgloss::options::{Family, Value};
use wgloss::{Args, Layout, Op, Output, Pass, Role};

use crate::Error;
use crate::device::{Shared, find};

/// A tensor that an op may have or not.
#[derive(Debug, Clone, Default, ExtensionType)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub enum Slot<B: Backend> {
    /// None.
    #[default]
    Empty,
    /// Numbers.
    Float(FloatTensor<B>),
    /// Integers.
    Int(IntTensor<B>),
}

/// The arguments of an op beside its input.
#[derive(Debug, Clone, ExtensionType)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct Others<B: Backend> {
    /// The targets.
    #[extension_type]
    pub target: Slot<B>,
    /// The weights of classes or elements.
    #[extension_type]
    pub weight: Slot<B>,
    /// The weights of positive terms.
    #[extension_type]
    pub pos_weight: Slot<B>,
    /// What the input is multiplied by.
    #[extension_type]
    pub projection: Slot<B>,
    /// What is added to that product.
    #[extension_type]
    pub bias: Slot<B>,
}

/// What forward gives, and what it gives with backward in one pass.
#[derive(Debug, Clone, ExtensionType)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct Results<B: Backend> {
    /// The loss, or the output of a map.
    pub value: FloatTensor<B>,
    /// The rows' state.
    #[extension_type]
    pub state: Slot<B>,
    /// The rows' logsumexp.
    #[extension_type]
    pub logsumexp: Slot<B>,
    /// The rows' largest classes.
    #[extension_type]
    pub argmax: Slot<B>,
    /// Whether these are the targets.
    #[extension_type]
    pub correct: Slot<B>,
    /// The entropy of the rows' softmax.
    #[extension_type]
    pub entropy: Slot<B>,
    /// The gradients, of a pass that has them.
    #[extension_type]
    pub grads: Grads<B>,
}

/// Gradients: each where there is such a tensor and its gradient is not frozen.
#[derive(Debug, Clone, ExtensionType)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct Grads<B: Backend> {
    /// That of the input.
    #[extension_type]
    pub input: Slot<B>,
    /// That of the projection.
    #[extension_type]
    pub projection: Slot<B>,
    /// That of the bias.
    #[extension_type]
    pub bias: Slot<B>,
}

impl<B: Backend> Default for Grads<B> {
    fn default() -> Self {
        Grads { input: Slot::Empty, projection: Slot::Empty, bias: Slot::Empty }
    }
}

/// What fusion has to know of results before they are computed.
#[cfg(feature = "fusion")]
#[expect(clippy::borrowed_box, reason = "burn's macro calls it with references to the arguments")]
pub fn forward_specs(
    input: &TensorSpec,
    others: &OthersMetadata,
    op: &Box<dyn Op>,
    pass: &Pass,
) -> ResultsMetadata {
    let args = layouts_of_specs(input, others);
    let outputs = op.outputs(*pass, &args).expect("arguments that the call has checked");
    let slot = |role| slot_spec(&outputs, role);
    ResultsMetadata {
        value: spec_of(value_of(&outputs).expect("losses have a loss, maps an output")),
        state: slot(Role::State),
        logsumexp: slot(Role::LogSumExp),
        argmax: slot(Role::Argmax),
        correct: slot(Role::Correct),
        entropy: slot(Role::Entropy),
        grads: grad_specs(&outputs),
    }
}

/// As [`forward_specs`], of forward alone.
#[cfg(feature = "fusion")]
#[expect(clippy::borrowed_box, reason = "burn's macro calls it with references to the arguments")]
pub fn call_specs(
    input: &TensorSpec,
    others: &OthersMetadata,
    op: &Box<dyn Op>,
) -> ResultsMetadata {
    forward_specs(input, others, op, &Pass::Forward)
}

/// As [`forward_specs`], of gradients.
#[cfg(feature = "fusion")]
#[expect(clippy::borrowed_box, reason = "burn's macro calls it with references to the arguments")]
pub fn backward_specs(
    input: &TensorSpec,
    others: &OthersMetadata,
    _state: &SlotMetadata,
    upstream: &TensorSpec,
    op: &Box<dyn Op>,
) -> GradsMetadata {
    let args = layouts_of_specs(input, others);
    let forward = op.outputs(Pass::Forward, &args).expect("arguments that the call has checked");
    let dtype = storage(upstream_dtype(&**op, &forward, input.dtype)).expect("a float");
    // burn has one value as shape [1], whose layout kernels take for []
    let args = args.upstream(Layout::new(&upstream.shape, dtype));
    let outputs = op.outputs(Pass::Backward, &args).expect("arguments that the call has checked");
    grad_specs(&outputs)
}

#[cfg(feature = "fusion")]
fn grad_specs(outputs: &Output<Layout>) -> GradsMetadata {
    GradsMetadata {
        input: slot_spec(outputs, Role::Grad),
        projection: slot_spec(outputs, Role::GradProjection),
        bias: slot_spec(outputs, Role::GradBias),
    }
}

#[cfg(feature = "fusion")]
fn layouts_of_specs(input: &TensorSpec, others: &OthersMetadata) -> Args<Layout> {
    let layout = |spec: &TensorSpec| {
        let dtype = storage(spec.dtype).expect("storage types that the call has checked");
        Layout::new(&spec.shape, dtype)
    };
    let mut args = Args::new(layout(input));
    for (slot, set) in [
        (&others.target, Args::target as fn(Args<Layout>, Layout) -> Args<Layout>),
        (&others.weight, Args::weight),
        (&others.pos_weight, Args::pos_weight),
        (&others.projection, Args::projection),
        (&others.bias, Args::bias),
    ] {
        if let SlotMetadata::Float(spec) | SlotMetadata::Int(spec) = slot {
            args = set(args, layout(spec));
        }
    }
    args
}

#[cfg(feature = "fusion")]
fn spec_of(layout: &Layout) -> TensorSpec {
    TensorSpec::new(burn_shape(layout), burn_dtype(layout))
}

#[cfg(feature = "fusion")]
fn slot_spec(outputs: &Output<Layout>, role: Role) -> SlotMetadata {
    match outputs.get(role) {
        None => SlotMetadata::Empty,
        Some(layout) if layout.dtype() == wgloss::DType::I32 => SlotMetadata::Int(spec_of(layout)),
        Some(layout) => SlotMetadata::Float(spec_of(layout)),
    }
}

/// What runs on the device, without autodiff.
#[backend_extension(Cube, Fusion: cfg(feature = "fusion"))]
pub trait Kernels: Backend {
    /// All that the op's forward pass gives, or that of both passes in one for an upstream gradient of 1: the
    /// input's gradient over the input where nobody else has it.
    #[fusion(meta = forward_specs)]
    fn wgloss_forward(
        input: FloatTensor<Self>,
        #[extension_type] others: Others<Self>,
        op: Box<dyn Op>,
        pass: Pass,
    ) -> Results<Self>;

    /// The gradients times the upstream gradient: the input's over the input where nobody else has it.
    #[fusion(meta = backward_specs)]
    fn wgloss_backward(
        input: FloatTensor<Self>,
        #[extension_type] others: Others<Self>,
        #[extension_type] state: Slot<Self>,
        upstream: FloatTensor<Self>,
        op: Box<dyn Op>,
    ) -> Grads<Self>;
}

impl Kernels for CubeBackend {
    fn wgloss_forward(
        input: CubeTensor,
        others: Others<CubeBackend>,
        op: Box<dyn Op>,
        pass: Pass,
    ) -> Results<CubeBackend> {
        let mut output = run(&*op, pass, arguments(input, others));
        let grads = take_grads(&mut output);
        let mut float = |role| output.take(role).map_or(Slot::Empty, Slot::Float);
        let (state, logsumexp) = (float(Role::State), float(Role::LogSumExp));
        let entropy = float(Role::Entropy);
        let mut int = |role| output.take(role).map_or(Slot::Empty, Slot::Int);
        let (argmax, correct) = (int(Role::Argmax), int(Role::Correct));
        let value = output.take(Role::Loss).or_else(|| output.take(Role::Output));
        let value = value.expect("losses have a loss, maps an output");
        Results { value, state, logsumexp, argmax, correct, entropy, grads }
    }

    fn wgloss_backward(
        input: CubeTensor,
        others: Others<CubeBackend>,
        state: Slot<CubeBackend>,
        upstream: CubeTensor,
        op: Box<dyn Op>,
    ) -> Grads<CubeBackend> {
        let mut args = arguments(input, others).upstream(upstream);
        if let Slot::Float(state) = state {
            args = args.state(state);
        }
        take_grads(&mut run(&*op, Pass::Backward, args))
    }
}

fn take_grads(output: &mut Output<CubeTensor>) -> Grads<CubeBackend> {
    let mut grad = |role| output.take(role).map_or(Slot::Empty, Slot::Float);
    Grads {
        input: grad(Role::Grad),
        projection: grad(Role::GradProjection),
        bias: grad(Role::GradBias),
    }
}

fn arguments(input: CubeTensor, others: Others<CubeBackend>) -> Args<CubeTensor> {
    let mut args = Args::new(input);
    if let Slot::Float(target) | Slot::Int(target) = others.target {
        args = args.target(target);
    }
    if let Slot::Float(weight) = others.weight {
        args = args.weight(weight);
    }
    if let Slot::Float(pos_weight) = others.pos_weight {
        args = args.pos_weight(pos_weight);
    }
    if let Slot::Float(projection) = others.projection {
        args = args.projection(projection);
    }
    if let Slot::Float(bias) = others.bias {
        args = args.bias(bias);
    }
    args
}

/// How wgloss stores what burn stores so: other integers than i32 are converted.
pub fn storage(dtype: DType) -> Option<wgloss::DType> {
    match dtype {
        DType::F32 | DType::Flex32 => Some(wgloss::DType::F32),
        DType::F16 => Some(wgloss::DType::F16),
        DType::BF16 => Some(wgloss::DType::Bf16),
        dtype if dtype.is_int() || dtype.is_uint() => Some(wgloss::DType::I32),
        _ => None,
    }
}

/// The shape in burn, which has no tensors of 0 dimensions.
pub fn burn_shape(layout: &Layout) -> Shape {
    match layout.shape() {
        [] => Shape::new([1]),
        shape => Shape::from(shape.to_vec()),
    }
}

fn burn_dtype(layout: &Layout) -> DType {
    match layout.dtype() {
        wgloss::DType::F32 => DType::F32,
        wgloss::DType::F16 => DType::F16,
        wgloss::DType::Bf16 => DType::BF16,
        wgloss::DType::I32 | wgloss::DType::I64 => DType::I32,
        // of the reference alone
        wgloss::DType::F64 => DType::F64,
    }
}

/// The loss of a loss, the output of a map.
pub fn value_of(outputs: &Output<Layout>) -> Option<&Layout> {
    outputs.get(Role::Loss).or_else(|| outputs.get(Role::Output))
}

/// Runs a pass. Where that fails, the device keeps the error for `check`, and results are NaN.
fn run(op: &dyn Op, pass: Pass, args: Args<CubeTensor>) -> Output<CubeTensor> {
    let shared = find(&args.input().device).expect("a device that the call has found");
    let args = as_kernels_read(op, args);
    let layouts = map(&args, |_, tensor| layout_of(tensor, tensor.shape().to_vec()));
    let layouts = layouts.expect("storage types that the call has checked");
    let planned = op.outputs(pass, &layouts).expect("arguments that the call has checked");
    let input = args.input();
    // a view's rows may lie apart: the gradient's then lie so too
    let is_in_place = pass.has_grad() && input.can_mut();
    let allocate = |(role, layout): (Role, &Layout)| {
        let tensor = match role {
            Role::Grad if is_in_place => input.clone(),
            _ => empty_device_contiguous_dtype(
                input.client.clone(),
                input.device.clone(),
                burn_shape(layout),
                burn_dtype(layout),
            ),
        };
        (role, tensor)
    };
    let output: Output<CubeTensor> = planned.iter().map(allocate).collect();
    match submit(op, pass, &args, &output, &planned, &shared) {
        Ok(()) => output,
        Err(error) => {
            shared.set_failed(error);
            let fill = |(role, layout)| (role, invalid(layout, input));
            planned.iter().map(fill).collect()
        }
    }
}

/// The arguments in the storage types and the order of elements that kernels read.
fn as_kernels_read(op: &dyn Op, args: Args<CubeTensor>) -> Args<CubeTensor> {
    let shape = args.input().shape();
    let may_have_rows_apart = match op.kind().family {
        Family::RowLoss | Family::ElementLoss | Family::ElementMap => true,
        Family::LinearLoss => shape.num_dims() == 2,
        // the rows of such maps lie along any dimension
        Family::RowMap => {
            let dim = op.options().into_iter().find(|option| option.name == "dim");
            let dim = dim.map(|option| option.value);
            shape.num_dims() == 2 && matches!(dim, Some(Value::Integer(1 | -1)))
        }
    };
    let read = |role, tensor: &CubeTensor| {
        let tensor = tensor.clone();
        let has_input_shape = tensor.shape() == shape;
        let tensor = match role {
            Role::Target if tensor.dtype.is_int() || tensor.dtype.is_uint() => {
                to_i32::<CubeBackend>(tensor)
            }
            Role::Upstream => converted(tensor, upstream_of_tensors(op, &args)),
            _ => tensor,
        };
        let may_stay = match role {
            Role::Input | Role::Target => may_have_rows_apart && has_input_shape,
            _ => false,
        };
        Ok::<_, wgloss::Error>(match row_stride(&tensor) {
            Some(stride) if may_stay || stride == row_elements(&tensor) => tensor,
            _ => contiguous(tensor),
        })
    };
    match map(&args, read) {
        Ok(args) => args,
        Err(_) => unreachable!("nothing above fails"),
    }
}

/// The type in which kernels read the upstream gradient. burn has that of a loss in the loss's type, which is
/// f32.
fn upstream_dtype(op: &dyn Op, forward: &Output<Layout>, input: DType) -> DType {
    let is_reduced = value_of(forward).is_some_and(|value| value.shape().is_empty());
    match is_reduced || op.kind().family == Family::LinearLoss {
        true => DType::F32,
        false => input,
    }
}

/// The same of arguments, which need not be those of backward.
fn upstream_of_tensors(op: &dyn Op, args: &Args<CubeTensor>) -> DType {
    let layout = |tensor: &CubeTensor| {
        Layout::new(&tensor.shape(), storage(tensor.dtype).unwrap_or(wgloss::DType::F32))
    };
    let mut forward = Args::new(layout(args.input()));
    if let Some(target) = args.get(Role::Target) {
        forward = forward.target(layout(target));
    }
    if let Some(projection) = args.get(Role::Projection) {
        forward = forward.projection(layout(projection));
    }
    let outputs = op.outputs(Pass::Forward, &forward).expect("arguments that the call has checked");
    upstream_dtype(op, &outputs, args.input().dtype)
}

/// Looks up the buffers, and submits behind what burn has submitted.
fn submit(
    op: &dyn Op,
    pass: Pass,
    args: &Args<CubeTensor>,
    output: &Output<CubeTensor>,
    planned: &Output<Layout>,
    shared: &Shared,
) -> Result<(), Error> {
    // Looking a buffer up submits what is pending on this thread's stream and on the tensor's. While
    // what it returns is held, burn leaves the memory in its place.
    let mut held = Vec::new();
    let mut view = |tensor: &CubeTensor, shape: Vec<usize>| -> Result<wgloss::Tensor, Error> {
        let layout = layout_of(tensor, shape)?;
        if layout.elements() == 0 {
            // burn gives it no memory, and no kernel binds it
            let any = shared.status.buffer().clone();
            return Ok(wgloss::Tensor::from_buffer(any, layout)?);
        }
        let resource = tensor
            .client
            .get_resource::<WgpuServer<AutoCompiler>>(tensor.handle.clone())
            .map_err(|error| Error::Burn(error.to_string()))?;
        let found = resource.resource();
        let size = layout.dtype().size() as u64;
        let layout = layout.with_offset((found.offset / size) as usize);
        let tensor = wgloss::Tensor::from_buffer(found.buffer.clone(), layout)?;
        held.push(resource);
        Ok(tensor)
    };
    let args = map(args, |_, tensor| view(tensor, tensor.shape().to_vec()))?;
    let mut results = Output::default().with_status(shared.status.clone());
    for (role, tensor) in output.iter() {
        let shape = planned.get(role).map_or_else(Vec::new, |layout| layout.shape().to_vec());
        results = results.with(role, view(tensor, shape)?);
    }
    Ok(shared.gpu.run_into(op, pass, &args, &results)?)
}

/// Shape and storage type of a tensor whose rows may lie apart, from the start of a buffer.
fn layout_of(tensor: &CubeTensor, shape: Vec<usize>) -> Result<Layout, Error> {
    let dtype = storage(tensor.dtype).ok_or(Error::DType {
        argument: "tensor",
        expected: "f32, f16, bf16 or integers",
        actual: tensor.dtype,
    })?;
    let layout = Layout::new(&shape, dtype);
    Ok(match row_stride(tensor) {
        Some(stride) if shape.len() > 1 => layout.with_row_stride(stride),
        _ => layout,
    })
}

/// The same arguments, each turned into something else.
fn map<T, U, E>(args: &Args<T>, mut f: impl FnMut(Role, &T) -> Result<U, E>) -> Result<Args<U>, E> {
    let mut mapped = Args::new(f(Role::Input, args.input())?);
    for (role, value) in args.iter().filter(|(role, _)| *role != Role::Input) {
        let value = f(role, value)?;
        mapped = match role {
            Role::Target => mapped.target(value),
            Role::Weight => mapped.weight(value),
            Role::PosWeight => mapped.pos_weight(value),
            Role::Projection => mapped.projection(value),
            Role::Bias => mapped.bias(value),
            Role::Upstream => mapped.upstream(value),
            Role::State => mapped.state(value),
            _ => unreachable!("{role} is no argument"),
        };
    }
    Ok(mapped)
}

/// Elements of one index of the first dimension.
fn row_elements(tensor: &CubeTensor) -> usize {
    tensor.meta.shape().iter().skip(1).product()
}

/// Elements from one index of the first dimension to the next, where the others are contiguous and
/// rows do not overlap.
fn row_stride(tensor: &CubeTensor) -> Option<usize> {
    if tensor.meta.is_tiled() {
        return None;
    }
    let (shape, strides) = (tensor.meta.shape(), tensor.meta.strides());
    let mut inner = 1;
    for (&size, &stride) in shape.iter().zip(strides.iter()).skip(1).rev() {
        if size != 1 && stride != inner {
            return None;
        }
        inner *= size;
    }
    match (shape.first(), strides.first()) {
        (Some(0 | 1), _) | (None, _) => Some(inner),
        // wgloss has no distance between single elements
        (_, Some(&stride)) if stride == inner || shape.num_dims() > 1 && stride > inner => {
            Some(stride)
        }
        _ => None,
    }
}

fn contiguous(tensor: CubeTensor) -> CubeTensor {
    match tensor.dtype {
        // burn's WGSL has no bf16; a copy as f16 moves the same bits
        DType::BF16 => {
            let copy = into_contiguous(CubeTensor { dtype: DType::F16, ..tensor });
            CubeTensor { dtype: DType::BF16, ..copy }
        }
        _ => into_contiguous(tensor),
    }
}

fn converted(tensor: CubeTensor, dtype: DType) -> CubeTensor {
    if tensor.dtype == dtype { tensor } else { cast(tensor, dtype) }
}

/// Class indices as kernels read them. Those that i32 does not hold become its ends, which are no
/// classes either.
pub fn to_i32<B: Backend>(tensor: IntTensor<B>) -> IntTensor<B> {
    let tensor = match tensor.dtype() {
        DType::I32 => return tensor,
        DType::I64 => B::int_clamp(tensor, i64::from(i32::MIN).into(), i64::from(i32::MAX).into()),
        DType::U64 | DType::U32 => B::int_clamp_max(tensor, i64::from(i32::MAX).into()),
        _ => tensor,
    };
    B::int_cast(tensor, IntDType::I32)
}

/// What stands for a result of a call that has failed.
fn invalid(layout: &Layout, like: &CubeTensor) -> CubeTensor {
    let (shape, dtype) = (burn_shape(layout), burn_dtype(layout));
    match dtype {
        DType::I32 => {
            CubeBackend::int_from_data(TensorData::full_dtype(shape, -1, dtype), &like.device)
        }
        _ => {
            let data = TensorData::full_dtype(shape, f32::NAN, dtype);
            CubeBackend::float_from_data(data, &like.device)
        }
    }
}
