//! Every variant of every kernel, linked and checked without a GPU.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::mem::offset_of;
use std::path::Path;

use naga::StorageAccess;
use naga::valid::{
    Capabilities, GlobalUse, ModuleInfo, ShaderStages, SubgroupOperationSet, Validator,
};

use wgloss::internals::{
    Binding, DeviceClass, DeviceProfile, ElementParams, File, Kernel, Limits, Offsets, RowParams,
    Slot, Step, SumParams,
};
use wgloss::options::{Family, Value};
use wgloss::{
    Args, BceWithLogits, CrossEntropy, DType, Layout, NllLoss, Op, Pass, Reduction, Role, Team,
};
use wgloss_testing::ops;

/// Devices that differ in what the choice of kernels looks at.
fn devices() -> Vec<DeviceProfile> {
    let lavapipe = DeviceProfile {
        class: DeviceClass::Software,
        subgroup: Some((8, 8)),
        max_workgroup_size: 1024,
        team_override: None,
        limits: Limits {
            max_workgroups: 65_535,
            max_binding: 1 << 27,
            max_buffer: (1 << 31) - 1,
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
fn steps(profile: &DeviceProfile) -> Vec<Step> {
    let all = [
        (DType::F32, Memory::Apart),
        (DType::F16, Memory::Apart),
        (DType::Bf16, Memory::Apart),
        (DType::F32, Memory::OneBuffer),
        (DType::F16, Memory::OneBuffer),
        (DType::F32, Memory::InPlace),
        (DType::F16, Memory::InPlace),
    ];
    all.into_iter().flat_map(|(dtype, memory)| steps_in(profile, dtype, memory)).collect()
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
    Step { kernel: Kernel { read_write, ..step.kernel.clone() }, ..step.clone() }
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
        let program = op.program(pass, args, &outputs, profile).unwrap();
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

/// The bindings that an entry point uses: how each is declared, where it is not the uniform buffer, and
/// whether the entry point writes to it.
fn used_bindings(
    module: &naga::Module,
    info: &ModuleInfo,
    kernel: &Kernel,
) -> BTreeMap<u32, (Option<StorageAccess>, bool)> {
    let index = module
        .entry_points
        .iter()
        .position(|entry| entry.name == kernel.entry_point)
        .unwrap_or_else(|| panic!("{}: no {}", kernel.label, kernel.entry_point));
    let mut bindings = BTreeMap::new();
    for (handle, variable) in module.global_variables.iter() {
        let Some(binding) = variable.binding else { continue };
        let uses = info.get_entry_point(index)[handle];
        if !uses.is_empty() {
            assert_eq!(binding.group, 0, "{}", kernel.label);
            let access = match variable.space {
                naga::AddressSpace::Storage { access } => Some(access),
                _ => None,
            };
            let is_written = uses.contains(GlobalUse::WRITE);
            let before = bindings.insert(binding.binding, (access, is_written));
            assert!(before.is_none(), "{}: binding used twice", kernel.label);
        }
    }
    bindings
}

/// Offsets of the uniform struct's members, and its size; none where there is no uniform.
fn params_layout(module: &naga::Module) -> Option<(Vec<u32>, u32)> {
    let uniform = module
        .global_variables
        .iter()
        .map(|(_, variable)| variable)
        .find(|variable| variable.space == naga::AddressSpace::Uniform)?;
    match &module.types[uniform.ty].inner {
        naga::TypeInner::Struct { members, span } => {
            Some((members.iter().map(|member| member.offset).collect(), *span))
        }
        other => panic!("params: {other:?}"),
    }
}

/// Translates for Vulkan, and `everywhere` for Metal and DX12 too, with the constants put in, as wgpu
/// does.
fn translate(module: &naga::Module, info: &ModuleInfo, kernel: &Kernel, everywhere: bool) {
    use naga::back::{hlsl, msl, pipeline_constants::process_overrides, spv};
    let label = &kernel.label;
    let entry = Some((naga::ShaderStage::Compute, kernel.entry_point));
    let constants: naga::back::PipelineConstants =
        kernel.constants.iter().map(|&(name, value)| (name.into(), value.into())).collect();
    let (module, info) = process_overrides(module, info, entry, &constants)
        .unwrap_or_else(|error| panic!("{label}: {error}"));

    let options = spv::Options { lang_version: (1, 3), ..Default::default() };
    spv::write_vec(&module, &info, &options, None).unwrap_or_else(|e| panic!("{label}: {e}"));
    if !everywhere {
        return;
    }
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

/// Offsets of our struct's members, and its size; none where a kernel has no parameters.
fn offsets_of(kernel: &Kernel) -> Option<(Vec<u32>, u32)> {
    const OFFSETS: usize = size_of::<Offsets>();
    macro_rules! layout {
        ($type:ty: $($field:ident $([$count:literal])?),*) => {{
            let mut offsets = vec![0];
            $(
                let start = OFFSETS + offset_of!($type, $field);
                #[allow(unused_mut, unused_assignments)]
                let mut count = 1;
                $(count = $count;)?
                offsets.extend((0..count).map(|i| (start + 4 * i) as u32));
            )*
            Some((offsets, (OFFSETS + size_of::<$type>()) as u32))
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
        Some("family/status.wgsl") => None,
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

/// What a step asks of its kernel: its bindings, and the bytes of the parameters.
type Asked = (Kernel, Vec<(u32, bool)>, usize);

/// Every kernel once for all that differs in what is asked of it, by its text.
fn distinct_kernels() -> HashMap<String, Vec<Asked>> {
    let mut all = HashSet::new();
    for profile in devices() {
        all.extend(steps(&profile).into_iter().map(|Step { kernel, bindings, params, .. }| {
            let ports = bindings.iter().map(|b| (b.port.binding, b.port.writes)).collect();
            (kernel, ports, params.len())
        }));
    }
    let mut by_text: HashMap<_, Vec<Asked>> = HashMap::new();
    for asked in all {
        by_text.entry(asked.0.source()).or_default().push(asked);
    }
    by_text
}

/// Holds the bindings that a kernel declares to those that it is given.
fn check_bindings(module: &naga::Module, info: &ModuleInfo, asked: &Asked) {
    let (kernel, ports, params) = asked;
    let used = used_bindings(module, info, kernel);
    let shares = |binding: u32| kernel.read_write >> binding & 1 == 1;
    let mut declared = BTreeMap::new();
    for &(binding, writes) in ports {
        let access = match writes || shares(binding) {
            true => StorageAccess::LOAD | StorageAccess::STORE,
            false => StorageAccess::LOAD,
        };
        let before = declared.insert(binding, Some(access));
        assert!(before.is_none(), "{}: {binding} is bound twice", kernel.label);
        assert!(!(writes && shares(binding)), "{}: {binding} is not only read", kernel.label);
        // a number among those that are used, or the accesses differ
        let is_written = used.get(&binding).is_some_and(|&(_, is_written)| is_written);
        assert!(writes || !is_written, "{}: {binding} is written to", kernel.label);
    }
    let is_bound = |binding: u32| ports.iter().any(|&(other, _)| other == binding);
    assert!((0..u16::BITS).all(|bit| !shares(bit) || is_bound(bit)), "{}", kernel.label);
    assert!(declared.len() <= 8, "{}: {} storage buffers", kernel.label, declared.len());
    if *params > 0 {
        declared.insert(0, None);
    }
    let used: BTreeMap<_, _> = used.into_iter().map(|(at, (access, _))| (at, access)).collect();
    assert_eq!(used, declared, "{}", kernel.label);
}

#[test]
fn every_variant_links_validates_and_matches_its_bindings_and_parameters() {
    let mut linked = BTreeSet::new();
    let mut has_shared = false;
    for (source, kernels) in distinct_kernels() {
        let (module, info) = parse(&source, &kernels[0].0.label);
        let params = params_layout(&module);
        let (mut translated, mut entries) = (BTreeSet::new(), BTreeSet::new());
        for asked in &kernels {
            check_bindings(&module, &info, asked);
            let (kernel, _, bytes) = asked;
            assert_eq!(params, offsets_of(kernel), "{}", kernel.label);
            let size = params.as_ref().map_or(0, |(_, size)| *size as usize);
            assert_eq!(*bytes, size, "{}", kernel.label);

            // constants mean the same whatever the storage: all of them once, with f32
            let is_half = [".f16", ".bf16"].iter().any(|t| kernel.label.contains(t));
            let is_plain = !is_half && kernel.read_write == 0;
            let constants = if is_plain { &kernel.constants[..] } else { &[] };
            if translated.insert((kernel.entry_point, format!("{constants:?}"))) {
                // with other constants only literals of the text are others
                translate(&module, &info, kernel, entries.insert(kernel.entry_point));
            }
            has_shared |= kernel.read_write != 0;
            linked.extend(kernel.files.iter().map(|file| file.path().to_owned()));
        }
    }
    assert!(has_shared, "bindings that share a buffer");
    // no program of an op's has it: see below
    linked.insert("family/padding.wgsl".into());
    assert_eq!(linked, shaders(), "what is linked, and what there is");
}

/// Plans add it to the programs of ops, in private: so it is linked here as they do.
#[test]
fn zeros_between_rows_link_validate_and_match_their_bindings() {
    let [lavapipe, ..] = &devices()[..] else { panic!() };
    let steps = [DType::F32, DType::F16, DType::Bf16]
        .into_iter()
        .flat_map(|dtype| steps_in(lavapipe, dtype, Memory::Apart));
    let files: HashMap<_, File> =
        steps.flat_map(|step| step.kernel.files).map(|file| (file.path(), file)).collect();
    let padding = fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders/family/padding.wgsl"),
    );
    let padding = File::new(padding.unwrap().leak());
    for (dtype, storage) in [
        (DType::F32, &["storage/f32.wgsl"][..]),
        (DType::F16, &["storage/half.wgsl", "encoding/f16.wgsl"]),
        (DType::Bf16, &["storage/half.wgsl", "encoding/bf16.wgsl"]),
    ] {
        let shared = ["shared/math.wgsl", "shared/offsets.wgsl", "access/apart.wgsl"];
        let linked = shared.iter().chain(storage).map(|path| files[path]);
        let kernel = Kernel {
            label: format!("zero_padding.{dtype}"),
            files: [padding].into_iter().chain(linked).collect(),
            entry_point: "zero_padding",
            constants: vec![],
            defines: vec![],
            read_write: 0,
        };
        let (module, info) = parse(&kernel.source(), &kernel.label);
        let size = size_of::<Offsets>() + 16;
        check_bindings(&module, &info, &(kernel.clone(), vec![(5, true)], size));
        let members = [0, 4, 8, 12].map(|at| (size_of::<Offsets>() + at) as u32);
        let members = [0].into_iter().chain(members).collect();
        assert_eq!(params_layout(&module), Some((members, size as u32)));
        translate(&module, &info, &kernel, true);
    }
}

#[test]
fn no_barrier_is_chosen_on_software_devices() {
    let [lavapipe, discrete, ..] = &devices()[..] else { panic!() };
    let has_workgroup_team = |profile: &DeviceProfile| {
        let files = steps(profile).into_iter().flat_map(|step| step.kernel.files);
        files.into_iter().any(|file| file.path().starts_with("team/workgroup"))
    };
    assert!(!has_workgroup_team(lavapipe));
    assert!(has_workgroup_team(discrete));
}
