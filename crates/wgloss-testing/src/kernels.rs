//! Every kernel of the library, without a GPU: what the tests link and translate, and what
//! `make test-tint` gives to a browser's compiler.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, Write};

use serde_json::json;
use wgloss::internals::{Binding, DeviceClass, DeviceProfile, Kernel, Limits, Slot, Step, program};
use wgloss::options::{Family, Value};
use wgloss::{
    Args, BceWithLogits, CrossEntropy, DType, Layout, LinearCrossEntropy, NllLoss, Op, Pass,
    Reduction, Role, Team,
};

use crate::custom::Polynomial;
use crate::ops;

/// Devices that differ in what the choice of kernels looks at.
pub fn devices() -> Vec<DeviceProfile> {
    let lavapipe = DeviceProfile {
        class: DeviceClass::Software,
        subgroup: Some((8, 8)),
        max_workgroup_size: 1024,
        team_override: None,
        runtime_checks: false,
        limits: Limits {
            max_workgroups: 65_535,
            max_binding: 1 << 27,
            max_buffer: (1 << 31) - 1,
            max_workgroup_memory: 32 << 10,
            device: "test".into(),
        },
    };
    let subgroup = Some((32, 32));
    let discrete = DeviceProfile { class: DeviceClass::Discrete, subgroup, ..lavapipe.clone() };
    let simple = DeviceProfile { subgroup: None, max_workgroup_size: 256, ..discrete.clone() };
    let forced = [Team::Invocation, Team::Subgroup, Team::Workgroup];
    let forced = forced.map(|team| DeviceProfile { team_override: Some(team), ..lavapipe.clone() });
    [lavapipe, discrete, simple].into_iter().chain(forced).collect()
}

/// The dispatches of every combination of arguments and options that leads to a kernel of its own.
pub fn steps(profile: &DeviceProfile) -> Vec<Step> {
    let all = [
        (DType::F32, Memory::Apart),
        (DType::F16, Memory::Apart),
        (DType::Bf16, Memory::Apart),
        (DType::F32, Memory::OneBuffer),
        (DType::F16, Memory::OneBuffer),
        (DType::F32, Memory::InPlace),
        (DType::F16, Memory::InPlace),
    ];
    let of_ops = all.into_iter().flat_map(|(dtype, memory)| steps_in(profile, dtype, memory));
    of_ops.chain(zeros_between_rows(profile)).chain(of_shards(profile)).collect()
}

/// How arguments and results share buffers.
#[derive(Clone, Copy, PartialEq)]
enum Memory {
    Apart,
    OneBuffer,
    InPlace,
}

/// The step as it is when it is bound: what is only read is declared `read_write` where it shares a
/// buffer with what is written.
fn bound(step: &Step, memory: Memory) -> Step {
    // which buffer it is: of placeholders, those that are written to have one of their own
    let buffer = |binding: &Binding| match binding.slot {
        Slot::Tensor(_) if memory == Memory::OneBuffer => (Slot::Tensor(Role::Input), false),
        Slot::Placeholder => (Slot::Placeholder, binding.port.writes),
        slot => (slot, false),
    };
    let written: Vec<_> = step.bindings.iter().filter(|b| b.port.writes).map(buffer).collect();
    let read_only = step.bindings.iter().filter(|b| !b.port.writes);
    let shared = read_only.filter(|b| written.contains(&buffer(b)));
    let read_write = shared.fold(0, |bits, b| bits | 1 << b.port.binding);
    Step { kernel: step.kernel.with_read_write(read_write), ..step.clone() }
}

fn steps_in(profile: &DeviceProfile, dtype: DType, memory: Memory) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut add = |op: &dyn Op, pass, args: &Args<Layout>| {
        let args = &match memory {
            Memory::Apart | Memory::OneBuffer => args.clone(),
            Memory::InPlace => args.clone().in_place(),
        };
        if memory == Memory::InPlace
            && (pass == Pass::Forward || (!op.kind().fused_in_place && pass != Pass::Backward))
        {
            return;
        }
        let outputs = op.outputs(pass, args);
        let outputs = outputs.unwrap_or_else(|error| panic!("{op:?} {args:?}: {error}"));
        let program = program(op, pass, args, &outputs, profile).unwrap();
        steps.extend(program.steps().map(|step| bound(step, memory)));
    };
    let f32 = |shape: &[usize]| Layout::new(shape, DType::F32);
    let float = |shape: &[usize]| Layout::new(shape, dtype);
    let upstream_of = |reduction, shape: &[usize]| match reduction {
        Reduction::None => float(shape),
        _ => f32(&[]),
    };
    for pass in [Pass::Forward, Pass::Backward, Pass::ForwardBackward] {
        for reduction in [Reduction::None, Reduction::Mean, Reduction::Sum] {
            for bits in 0..64_u32 {
                let bit = |i: u32| bits >> i & 1 == 1;
                let shape = match (bit(0), bit(5)) {
                    (true, false) => vec![6, 8],
                    // a row by several teams
                    (true, true) => vec![2, 40_000],
                    (false, true) => vec![70_000, 1001],
                    (false, false) => vec![2, 8, 3],
                };
                let mut args = Args::new(float(&shape));
                if bit(1) {
                    args = args.weight(f32(&shape[1..2]));
                }
                let rows = [&shape[..1], &shape[2..]].concat();
                if bit(2) && pass.has_grad() {
                    args = args.upstream(upstream_of(reduction, &rows));
                }
                if bit(3) && pass == Pass::Backward {
                    args = args.state(f32(&[rows.iter().product(), 4]));
                }
                let op = CrossEntropy::default()
                    .reduction(reduction)
                    .label_smoothing(if bit(4) { 0.1 } else { 0.0 })
                    .keep_state(bit(3))
                    .row_outputs(bit(2))
                    .logit_scale(if bit(1) { 0.5 } else { 1.0 })
                    .z_loss(if bit(0) { 1e-4 } else { 0.0 });
                let op = if bit(5) { op.softcap(30.0).empty_mean(0.0) } else { op };
                add(&op, pass, &args.clone().target(float(&shape)));
                let args = args.target(Layout::new(&rows, DType::I32));
                add(&op, pass, &args);
                if args.get(Role::State).is_none() {
                    add(&NllLoss::default().reduction(reduction), pass, &args);
                }
            }
            for bits in 0..16_u32 {
                let bit = |i: u32| bits >> i & 1 == 1;
                let shape = if bit(0) { [40_000, 8] } else { [3, 5] };
                let mut args = Args::new(float(&shape)).target(float(&shape));
                if bit(1) {
                    args = args.weight(f32(&shape[1..]));
                }
                if bit(2) {
                    args = args.pos_weight(f32(&[shape[0], 1]));
                }
                if bit(3) && pass.has_grad() {
                    args = args.upstream(upstream_of(reduction, &shape));
                }
                add(&BceWithLogits::default().reduction(reduction), pass, &args);
                if args.get(Role::PosWeight).is_none() {
                    add(&Polynomial::new(reduction), pass, &args);
                }
            }
            for bits in 0..16_u32 {
                let bit = |i: u32| bits >> i & 1 == 1;
                // whole vec4s or not, and several blocks of the logits or one
                let (shape, classes) = if bit(0) { ([100, 8], 12) } else { ([70, 5], 33) };
                let mut args = Args::new(float(&shape)).projection(float(&[classes, shape[1]]));
                args = args.target(Layout::new(&shape[..1], DType::I32));
                if bit(1) {
                    args = args.bias(f32(&[classes])).weight(f32(&[classes]));
                }
                if bit(2) && pass.has_grad() {
                    let upstream = if reduction == Reduction::None { &shape[..1] } else { &[] };
                    args = args.upstream(f32(upstream)).grad_projection(f32(&[classes, shape[1]]));
                }
                if bit(3) && pass == Pass::Backward {
                    args = args.state(f32(&[shape[0], 4]));
                }
                let loss = CrossEntropy::default()
                    .reduction(reduction)
                    .label_smoothing(if bit(1) { 0.1 } else { 0.0 })
                    .keep_state(bit(3))
                    .row_outputs(bit(2));
                let op = LinearCrossEntropy::new(loss)
                    .narrow_grad_projection(!bit(2) && bit(3))
                    .workspace_bytes(if bit(0) { 1 << 12 } else { 256 << 20 });
                add(&op, pass, &args);
            }
            for shape in [&[][..], &[5], &[0, 4], &[300, 100]] {
                let of_elements = |family| !matches!(family, Family::RowLoss | Family::LinearLoss);
                for op in ops::of(|kind| of_elements(kind.family)) {
                    for op in ends(op) {
                        let kind = op.kind();
                        let reductions = ops::reductions(&*op);
                        let of_maps =
                            if reductions.is_empty() { Some(Reduction::None) } else { None };
                        // each time another of those that most losses have, and once its own
                        let own = reductions.into_iter().filter(|&own| match own {
                            Reduction::BatchMean => reduction == Reduction::None,
                            own => own == reduction,
                        });
                        for reduction in own.chain(of_maps) {
                            let op = ops::reduced(op.clone(), reduction);
                            let mut args = Args::new(float(shape));
                            if kind.target.is_some() {
                                args = args.target(float(shape));
                            }
                            // maps have no gradient without an upstream one
                            if kind.family.is_loss() || !pass.has_grad() {
                                add(&*op, pass, &args);
                            }
                            if pass.has_grad() {
                                args = args.upstream(upstream_of(reduction, shape));
                            }
                            add(&*op, pass, &args);
                        }
                    }
                }
            }
        }
    }
    steps
}

/// What a gradient in place has behind its rows, where arguments ask for zeros there.
fn zeros_between_rows(profile: &DeviceProfile) -> impl Iterator<Item = Step> {
    [DType::F32, DType::F16, DType::Bf16].into_iter().flat_map(move |dtype| {
        let input = Layout::new(&[6, 7], dtype).with_row_stride(8);
        let target = Layout::new(&[6], DType::I32);
        let args = Args::new(input).target(target).in_place().zero_padding();
        let (op, pass) = (CrossEntropy::default(), Pass::ForwardBackward);
        let outputs = op.outputs(pass, &args).unwrap();
        let program = program(&op, pass, &args, &outputs, profile).unwrap();
        program.steps().map(|step| bound(step, Memory::InPlace)).collect::<Vec<_>>()
    })
}

/// Passes of shards of the classes: what finds partials, and what merges them.
fn of_shards(profile: &DeviceProfile) -> impl Iterator<Item = Step> {
    let f32 = |shape: &[usize]| Layout::new(shape, DType::F32);
    let passes = [Pass::Partials, Pass::Forward, Pass::Backward, Pass::ForwardBackward];
    let calls = (0..64_u32).flat_map(move |bits| passes.map(|pass| (bits, pass)));
    calls.flat_map(move |(bits, pass)| {
        let bit = |i: u32| bits >> i & 1 == 1;
        let dtype = if bit(5) { DType::F16 } else { DType::F32 };
        let [rows, classes] = if bit(0) { [2, 40_000] } else { [6, 10] };
        let op = CrossEntropy::default()
            .shard(1, classes + 2)
            .label_smoothing(if bit(1) { 0.1 } else { 0.0 })
            .row_outputs(bit(2));
        let op = if bit(3) { op.softcap(30.0) } else { op };
        let given = |args: Args<Layout>| match pass {
            Pass::Partials => args,
            _ => args.partials(f32(&[rows, 3, 8])).divisor(f32(&[])),
        };
        let weighted =
            |args: Args<Layout>| if bit(4) { args.weight(f32(&[classes])) } else { args };
        let indices = Layout::new(&[rows], DType::I32);
        let input = Layout::new(&[rows, classes], dtype);
        let of_classes = weighted(given(Args::new(input.clone()).target(indices.clone())));
        let of_probabilities = weighted(given(Args::new(input.clone()).target(input)));
        let linear = Args::new(Layout::new(&[rows, 8], dtype))
            .projection(Layout::new(&[classes, 8], dtype))
            .target(indices);
        let linear = weighted(given(linear));
        let calls: [(Box<dyn Op>, Args<Layout>); 3] = [
            (Box::new(op.clone()), of_classes),
            (Box::new(op.clone()), of_probabilities),
            (Box::new(LinearCrossEntropy::new(op)), linear),
        ];
        calls.into_iter().flat_map(move |(op, args)| {
            let outputs = op.outputs(pass, &args);
            let outputs = outputs.unwrap_or_else(|error| panic!("{op:?} {args:?}: {error}"));
            let program = program(&*op, pass, &args, &outputs, profile).unwrap();
            program.steps().map(|step| bound(step, Memory::Apart)).collect::<Vec<_>>()
        })
    })
}

/// An op with every combination of its options that are yes or no, and with each other one at an end
/// of what it accepts: where kernels may differ.
fn ends(op: Box<dyn Op>) -> Vec<Box<dyn Op>> {
    let mut all = ops::variants(op);
    for info in all[0].options() {
        let ends = match info.value {
            Value::Number(_) | Value::Optional(_) => {
                [info.samples.first(), info.samples.last()].into_iter().flatten().copied().collect()
            }
            Value::Integer(_) => vec![Value::Integer(0)],
            _ => vec![],
        };
        for end in ends {
            let mut op = all[0].clone();
            op.set(info.name, end).unwrap();
            all.push(op);
        }
    }
    all
}

/// A kernel, and what the steps that dispatch it bring: their bindings, and bytes of parameters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Asked {
    pub kernel: Kernel,
    /// Numbers, and whether they are written to.
    pub ports: Vec<(u32, bool)>,
    pub params: usize,
}

/// Every kernel once for all that differs in what is asked of it.
pub fn all() -> HashSet<Asked> {
    let mut all = HashSet::new();
    for profile in devices() {
        all.extend(steps(&profile).into_iter().map(|Step { kernel, bindings, params, .. }| {
            Asked {
                kernel,
                ports: bindings.iter().map(|b| (b.port.binding, b.port.writes)).collect(),
                params: params.len(),
            }
        }));
    }
    all
}

/// Kernels by their text.
pub fn by_text(text: impl Fn(&Kernel) -> String) -> HashMap<String, Vec<Asked>> {
    let mut by_text: HashMap<_, Vec<Asked>> = HashMap::new();
    for asked in all() {
        by_text.entry(text(&asked.kernel)).or_default().push(asked);
    }
    by_text
}

/// Writes every text as browsers get it, a line of JSON each, with the pipelines that are made of it.
pub fn export(to: &mut impl Write) -> io::Result<()> {
    for (text, kernels) in by_text(Kernel::source_for_browsers) {
        // bindings and parameters make no other pipelines
        let pipelines: BTreeMap<_, _> = kernels
            .iter()
            .map(|Asked { kernel, .. }| ((kernel.entry_point, &kernel.constants), kernel))
            .collect();
        let pipelines = pipelines.values().map(|kernel| {
            let constants: BTreeMap<_, _> = kernel.constants.iter().copied().collect();
            json!({
                "label": kernel.label,
                "entry_point": kernel.entry_point,
                "constants": constants,
            })
        });
        let line = json!({ "text": text, "pipelines": pipelines.collect::<Vec<_>>() });
        writeln!(to, "{line}")?;
    }
    Ok(())
}
