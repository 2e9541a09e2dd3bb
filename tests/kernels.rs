//! Every variant of every kernel, linked and checked without a GPU.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs::{self, File};
use std::io::BufWriter;
use std::mem::offset_of;
use std::path::Path;

use naga::StorageAccess;
use naga::valid::{
    Capabilities, GlobalUse, ModuleInfo, ShaderStages, SubgroupOperationSet, Validator,
};

use wgloss::custom::Elementwise;
use wgloss::internals::{
    DeviceProfile, ElementParams, Kernel, MatrixParams, Offsets, PaddingParams, PartialsParams,
    ProductParams, RowParams, SumParams,
};
use wgloss_testing::custom::Polynomial;
use wgloss_testing::kernels::{self, Asked, devices, steps};

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
    let has_file = |path| kernel.files.iter().any(|file| file.path() == path);
    match kernel.files.first().map(|file| file.path()) {
        Some("family/rows.wgsl" | "family/row_maps.wgsl" | "family/gather.wgsl") => layout!(
            RowParams: rows, classes, positions, ignore_index, confidence, smoothing, divisor, scale, softcap, z_loss, first, rows_per_team, splits, classes_per_split, shares, first_class, total_classes, unused[3]
        ),
        Some("family/sum.wgsl") => layout!(
            SumParams: count, per_team, teams, divisor, classes, ignore_index, empty_mean, first, first_class, total_classes, unused[2]
        ),
        Some("family/elements.wgsl") => layout!(
            ElementParams: vec4s, per_team, teams, row_elements, dims, scale, own, settings, first, dim
        ),
        Some("family/padding.wgsl") => layout!(PaddingParams: rows, padding, unused[2]),
        Some("family/product.wgsl") if has_file("epilogue/partials.wgsl") => layout!(
            PartialsParams: rows, columns, terms, tiles_across, has_bias, first_share, shares, classes, first_class, total_classes, ignore_index, confidence, smoothing, scale, softcap, z_loss
        ),
        Some("family/product.wgsl") => layout!(
            ProductParams: rows, columns, terms, tiles_across, has_bias, accumulates, unused[2]
        ),
        Some("family/conversions.wgsl" | "family/column_sums.wgsl") => {
            layout!(MatrixParams: rows, columns, accumulates, unused)
        }
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

/// Holds the bindings that a kernel declares to those that it is given.
fn check_bindings(module: &naga::Module, info: &ModuleInfo, asked: &Asked) {
    let Asked { kernel, ports, params } = asked;
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

/// Row losses by workgroup pay barriers for their class targets where these, or class weights, share a
/// buffer with a result, and nowhere else.
fn expect_broadcast_where_needed(kernel: &Kernel) {
    let has = |start: &str| kernel.files.iter().any(|file| file.path().starts_with(start));
    let has_targets = has("family/rows.wgsl") && has("ops/cross_entropy.wgsl");
    let shares_targets = kernel.read_write & (1 << 2 | 1 << 3) != 0;
    let expected = has_targets && has("team/workgroup") && shares_targets;
    assert_eq!(has("uniform/broadcast.wgsl"), expected, "{}", kernel.label);
}

#[test]
fn every_variant_links_validates_and_matches_its_bindings_and_parameters() {
    let mut linked = BTreeSet::new();
    let mut has_shared = false;
    for (source, kernels) in kernels::by_text(Kernel::source) {
        let (module, info) = parse(&source, &kernels[0].kernel.label);
        let params = params_layout(&module);
        let (mut translated, mut entries) = (BTreeSet::new(), BTreeSet::new());
        for asked in &kernels {
            check_bindings(&module, &info, asked);
            let kernel = &asked.kernel;
            assert_eq!(params, offsets_of(kernel), "{}", kernel.label);
            let size = params.as_ref().map_or(0, |(_, size)| *size as usize);
            assert_eq!(asked.params, size, "{}", kernel.label);

            // constants mean the same whatever the storage: all of them once, with f32
            let is_half = [".f16", ".bf16"].iter().any(|t| kernel.label.contains(t));
            let is_plain = !is_half && kernel.read_write == 0;
            let constants = if is_plain { &kernel.constants[..] } else { &[] };
            if translated.insert((kernel.entry_point, format!("{constants:?}"))) {
                // with other constants only literals of the text are others
                translate(&module, &info, kernel, entries.insert(kernel.entry_point));
            }
            has_shared |= kernel.read_write != 0;
            expect_broadcast_where_needed(kernel);
            linked.extend(kernel.files.iter().map(|file| file.path().to_owned()));
        }
    }
    assert!(has_shared, "bindings that share a buffer");
    // a loss of the caller's own
    assert!(linked.remove(Polynomial::SHADER.path()));
    assert_eq!(linked, shaders(), "what is linked, and what there is");
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

/// Browsers' compilers take shuffles only after a line that naga refuses.
#[test]
fn texts_for_browsers_enable_subgroups_where_they_use_them() {
    for (text, kernels) in kernels::by_text(Kernel::source_for_browsers) {
        let label = &kernels[0].kernel.label;
        let rest = text.strip_prefix("enable subgroups;\ndiagnostic(off, subgroup_uniformity);\n");
        assert_eq!(rest.is_some(), text.contains("subgroupShuffle"), "{label}");
        assert_eq!(rest.unwrap_or(&text), kernels[0].kernel.source(), "{label}");
    }
}

/// For `make test-tint`: see `scripts/test-tint.sh`.
#[test]
#[ignore = "writes a hundred megabytes to the file that WGLOSS_KERNELS names"]
fn export() {
    let path = env::var_os("WGLOSS_KERNELS").expect("WGLOSS_KERNELS, a path");
    let mut file = BufWriter::new(File::create(path).unwrap());
    kernels::export(&mut file).unwrap();
    file.into_inner().unwrap();
}
