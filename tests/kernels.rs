//! Every variant of every kernel, linked and checked without a GPU.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;
use std::mem::offset_of;
use std::path::Path;

use naga::valid::{Capabilities, ModuleInfo, ShaderStages, SubgroupOperationSet, Validator};

use wgloss::internals::{
    DeviceClass, ElementParams, Facts, Kernel, Offsets, Program, RowParams, Step, SumParams,
};
use wgloss::options::{Family, Value};
use wgloss::{
    Args, BceWithLogits, CrossEntropy, DType, Layout, NllLoss, Op, Pass, Reduction, Team,
};
use wgloss_testing::ops;

/// Devices that differ in what the choice of kernels looks at.
fn devices() -> Vec<Facts> {
    let lavapipe = Facts {
        class: DeviceClass::Software,
        subgroup: Some((8, 8)),
        max_workgroup_size: 1024,
        max_workgroups: 65_535,
        max_binding: 1 << 27,
        max_buffer: (1 << 31) - 1,
        device: "test".into(),
        forced: None,
    };
    let discrete =
        Facts { class: DeviceClass::Discrete, subgroup: Some((32, 32)), ..lavapipe.clone() };
    let simple = Facts { subgroup: None, max_workgroup_size: 256, ..discrete.clone() };
    let forced = [Team::Invocation, Team::Subgroup, Team::Workgroup];
    let forced = forced.map(|team| Facts { forced: Some(team), ..lavapipe.clone() });
    [lavapipe, discrete, simple].into_iter().chain(forced).collect()
}

/// Every combination of arguments and options that leads to a kernel of its own.
fn programs(facts: &Facts) -> Vec<Program> {
    let f32 = programs_in(facts, DType::F32, Memory::Apart);
    let others = [
        programs_in(facts, DType::F16, Memory::Apart),
        programs_in(facts, DType::Bf16, Memory::Apart),
        programs_in(facts, DType::F32, Memory::OneBuffer),
        programs_in(facts, DType::F32, Memory::InPlace),
        programs_in(facts, DType::F16, Memory::InPlace),
    ];
    others.into_iter().fold(f32, |all, some| [all, some].concat())
}

/// How arguments and results share buffers.
#[derive(Clone, Copy, PartialEq)]
enum Memory {
    Apart,
    OneBuffer,
    InPlace,
}

fn programs_in(facts: &Facts, dtype: DType, memory: Memory) -> Vec<Program> {
    let mut programs = Vec::new();
    let mut add = |op: &dyn Op, pass, args: &Args<Layout>| {
        let args = &match memory {
            Memory::Apart => args.clone(),
            Memory::OneBuffer => args.clone(),
            Memory::InPlace => args.clone().in_place(),
        };
        if memory == Memory::InPlace
            && (pass == Pass::Forward || (!op.kind().fused_in_place && pass != Pass::Backward))
        {
            return;
        }
        let outputs = op.outputs(pass, args);
        let outputs = outputs.unwrap_or_else(|error| panic!("{op:?} {args:?}: {error}"));
        programs.push(op.program(pass, args, &outputs, facts).unwrap());
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
                if !args.iter().any(|(name, _)| name == "state") {
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
            }
            for shape in [&[][..], &[5], &[0, 4], &[300, 100]] {
                for op in ops::of(|kind| kind.family != Family::RowLoss) {
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
                            add(&*op, pass, &args);
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
    programs
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

fn parse(source: &str, label: &str) -> (naga::Module, ModuleInfo) {
    // unpack2x16float, which WebGPU always has
    let capabilities = Capabilities::SUBGROUP | Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    let module = naga::front::wgsl::parse_str(source)
        .unwrap_or_else(|error| panic!("{label}: {}", error.emit_to_string(source)));
    let info = Validator::new(Default::default(), capabilities)
        .subgroup_stages(ShaderStages::COMPUTE)
        .subgroup_operations(SubgroupOperationSet::all())
        .validate(&module)
        .unwrap_or_else(|error| panic!("{label}: {}", error.emit_to_string(source)));
    (module, info)
}

/// The bindings that an entry point uses, and how many of them are storage buffers.
fn used_bindings(
    module: &naga::Module,
    info: &ModuleInfo,
    kernel: &Kernel,
) -> (BTreeSet<u32>, usize) {
    let index = module
        .entry_points
        .iter()
        .position(|entry| entry.name == kernel.entry_point)
        .unwrap_or_else(|| panic!("{}: no {}", kernel.label, kernel.entry_point));
    let mut bindings = BTreeSet::new();
    let mut storage = 0;
    for (handle, variable) in module.global_variables.iter() {
        let Some(binding) = variable.binding else { continue };
        if !info.get_entry_point(index)[handle].is_empty() {
            assert_eq!(binding.group, 0, "{}", kernel.label);
            assert!(bindings.insert(binding.binding), "{}: binding used twice", kernel.label);
            storage += usize::from(matches!(variable.space, naga::AddressSpace::Storage { .. }));
        }
    }
    (bindings, storage)
}

/// Offsets of the uniform struct's members, and its size.
fn params_layout(module: &naga::Module) -> (Vec<u32>, u32) {
    let uniform = module
        .global_variables
        .iter()
        .map(|(_, variable)| variable)
        .find(|variable| variable.space == naga::AddressSpace::Uniform)
        .expect("params");
    match &module.types[uniform.ty].inner {
        naga::TypeInner::Struct { members, span } => {
            (members.iter().map(|member| member.offset).collect(), *span)
        }
        other => panic!("params: {other:?}"),
    }
}

/// Translates for Vulkan, Metal and DX12 with the constants put in, as wgpu does.
fn translate(module: &naga::Module, info: &ModuleInfo, kernel: &Kernel) {
    use naga::back::{hlsl, msl, pipeline_constants::process_overrides, spv};
    let label = &kernel.label;
    let entry = Some((naga::ShaderStage::Compute, kernel.entry_point));
    let constants: naga::back::PipelineConstants =
        kernel.constants.iter().map(|&(name, value)| (name.into(), value.into())).collect();
    let (module, info) = process_overrides(module, info, entry, &constants)
        .unwrap_or_else(|error| panic!("{label}: {error}"));

    let options = spv::Options { lang_version: (1, 3), ..Default::default() };
    spv::write_vec(&module, &info, &options, None).unwrap_or_else(|e| panic!("{label}: {e}"));
    let options =
        msl::Options { lang_version: (2, 4), fake_missing_bindings: true, ..Default::default() };
    msl::write_string(&module, &info, &options, &Default::default())
        .unwrap_or_else(|e| panic!("{label}: {e}"));
    let options = hlsl::Options {
        shader_model: hlsl::ShaderModel::V6_0,
        fake_missing_bindings: true,
        ..Default::default()
    };
    let pipeline_options = Default::default();
    let mut text = String::new();
    hlsl::Writer::new(&mut text, &options, &pipeline_options)
        .write(&module, &info, None)
        .unwrap_or_else(|e| panic!("{label}: {e}"));
}

fn offsets_of(kernel: &Kernel) -> (Vec<usize>, usize) {
    const OFFSETS: usize = size_of::<Offsets>();
    macro_rules! layout {
        ($type:ty: $($field:ident $([$count:literal])?),*) => {{
            let mut offsets = vec![0];
            $(
                let start = OFFSETS + offset_of!($type, $field);
                #[allow(unused_mut, unused_assignments)]
                let mut count = 1;
                $(count = $count;)?
                offsets.extend((0..count).map(|i| start + 4 * i));
            )*
            (offsets, OFFSETS + size_of::<$type>())
        }};
    }
    match kernel.files.first().map(|file| file.path()) {
        Some("family/rows.wgsl" | "family/row_maps.wgsl" | "family/gather.wgsl") => layout!(
            RowParams: rows, classes, positions, ignore_index, confidence, smoothing, divisor, scale, softcap, z_loss, first, rows_per_team, splits, classes_per_split, unused[2]
        ),
        Some("family/sum.wgsl") => layout!(
            SumParams: count, per_team, teams, divisor, classes, ignore_index, empty_mean, first
        ),
        Some("family/elements.wgsl") => layout!(
            ElementParams: vec4s, per_team, teams, row_elements, dims, scale, own, settings, first, dim
        ),
        other => panic!("no params known for {other:?}"),
    }
}

/// The files below `shaders/`, as kernels name them.
fn shaders() -> BTreeSet<String> {
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders");
    let folders = fs::read_dir(&all).unwrap().map(|folder| folder.unwrap().path());
    let files = folders.flat_map(|folder| fs::read_dir(folder).unwrap());
    let name = |path: &Path| path.strip_prefix(&all).unwrap().to_str().unwrap().replace('\\', "/");
    files.map(|file| name(&file.unwrap().path())).collect()
}

/// What a step asks of its kernel: the numbers of the bindings, and the bytes of the parameters.
type Asked = (Kernel, Vec<u32>, usize);

/// Every kernel once for all that differs in what is asked of it, by its text.
fn distinct_kernels() -> HashMap<String, Vec<Asked>> {
    let mut all = HashSet::new();
    for facts in devices() {
        let steps = programs(&facts).into_iter().flat_map(|program| program.steps);
        all.extend(steps.map(|Step { kernel, bindings, params, .. }| {
            (kernel, bindings.iter().map(|b| b.binding).collect(), params.len())
        }));
    }
    let mut by_text: HashMap<_, Vec<Asked>> = HashMap::new();
    for asked in all {
        by_text.entry(asked.0.source()).or_default().push(asked);
    }
    by_text
}

#[test]
fn every_variant_links_validates_and_matches_its_bindings_and_parameters() {
    let mut linked = BTreeSet::new();
    for (source, kernels) in distinct_kernels() {
        let (module, info) = parse(&source, &kernels[0].0.label);
        let mut translated = BTreeSet::new();
        for (kernel, bindings, params) in kernels {
            let (used, storage) = used_bindings(&module, &info, &kernel);
            let bound: BTreeSet<u32> = [0].into_iter().chain(bindings.iter().copied()).collect();
            assert_eq!(used, bound, "{}", kernel.label);
            assert_eq!(bound.len(), bindings.len() + 1, "{}: bound twice", kernel.label);
            assert!(storage <= 8, "{}: {storage} storage buffers", kernel.label);

            let (offsets, span) = params_layout(&module);
            let (ours, size) = offsets_of(&kernel);
            let ours: Vec<u32> = ours.into_iter().map(|offset| offset as u32).collect();
            assert_eq!((offsets, span), (ours, size as u32), "{}", kernel.label);
            assert_eq!(params, size, "{}", kernel.label);

            // constants mean the same whatever the storage: all of them once, with f32
            let is_half = [".f16", ".bf16"].iter().any(|t| kernel.label.contains(t));
            let is_plain = !is_half && !kernel.shares_buffers;
            let constants = if is_plain { &kernel.constants[..] } else { &[] };
            if translated.insert((kernel.entry_point, format!("{constants:?}"))) {
                translate(&module, &info, &kernel);
            }
            linked.extend(kernel.files.iter().map(|file| file.path.to_owned()));
        }
    }
    assert_eq!(linked, shaders(), "what is linked, and what there is");
}

#[test]
fn no_barrier_is_chosen_on_software_devices() {
    let [lavapipe, discrete, ..] = &devices()[..] else { panic!() };
    let has_workgroup_team = |facts: &Facts| {
        let files = programs(facts).into_iter().flat_map(|program| program.steps);
        files
            .flat_map(|step| step.kernel.files)
            .any(|file| file.path().starts_with("team/workgroup"))
    };
    assert!(!has_workgroup_team(lavapipe));
    assert!(has_workgroup_team(discrete));
}
