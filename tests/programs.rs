//! Programs for inputs that no test allocates: beyond 2^31 and 2^32 elements, on a large GPU and on
//! lavapipe. The parts cover every element once, and nothing is cut short on its way into 32 bits.

use std::collections::HashMap;
use std::mem::size_of;

use bytemuck::pod_read_unaligned;

use wgloss::internals::{
    Binding, Define, DeviceClass, DeviceProfile, ElementParams, Limits, Offsets, Program,
    RowParams, Slot, Step, SumParams, first_index,
};
use wgloss::{
    Args, Bce, BceWithLogits, CrossEntropy, DType, Error, Layout, Mse, NllLoss, Op, Output, Pass,
    Reduction, Role, Softmax, Status, Team,
};

/// What the start of a binding is a multiple of, in bytes.
const ALIGNMENT: u64 = 256;

/// What one dispatch works on at most.
const BUDGET: u64 = 1 << 30;

fn large_gpu() -> DeviceProfile {
    DeviceProfile {
        class: DeviceClass::Discrete,
        subgroup: Some((32, 32)),
        max_workgroup_size: 1024,
        team_override: None,
        runtime_checks: false,
        limits: Limits {
            max_workgroups: 65_535,
            max_binding: u32::MAX.into(),
            max_buffer: 1 << 45,
            max_workgroup_memory: 16 << 10,
            device: "large".into(),
        },
    }
}

fn lavapipe() -> DeviceProfile {
    let large = large_gpu();
    let limits = Limits { max_binding: 1 << 27, ..large.limits };
    DeviceProfile { class: DeviceClass::Software, subgroup: Some((8, 8)), limits, ..large }
}

fn f32(shape: &[usize]) -> Layout {
    Layout::new(shape, DType::F32)
}

fn f16(shape: &[usize]) -> Layout {
    Layout::new(shape, DType::F16)
}

fn classes(shape: &[usize]) -> Layout {
    Layout::new(shape, DType::I32)
}

/// Bytes of the buffer that holds a tensor: from its start to behind the last element.
fn buffer_bytes(layout: &Layout) -> u64 {
    let rows = layout.shape().first().copied().unwrap_or(1);
    let span = match layout.elements() {
        0 => 0,
        elements => (rows - 1) * layout.row_stride() + elements / rows,
    };
    (layout.offset() + span) as u64 * layout.dtype().size() as u64
}

/// Bytes of it before the last aligned place that is not behind the first element.
fn aligned_start(layout: &Layout) -> u64 {
    (layout.offset() * layout.dtype().size()) as u64 / ALIGNMENT * ALIGNMENT
}

/// Elements from there to the first one.
fn residual(layout: &Layout) -> u64 {
    layout.offset() as u64 - aligned_start(layout) / layout.dtype().size() as u64
}

/// A program with the layouts that it was made for.
struct Planned {
    args: Args<Layout>,
    outputs: Output<Layout>,
    program: Program,
    limits: Limits,
}

#[track_caller]
fn plan(op: &dyn Op, pass: Pass, args: Args<Layout>, profile: &DeviceProfile) -> Planned {
    let outputs = op.outputs(pass, &args).unwrap();
    let program = op.program(pass, &args, &outputs, profile).unwrap();
    Planned { args, outputs, program, limits: profile.limits.clone() }
}

fn family(step: &Step) -> &str {
    step.kernel.files[0].path()
}

fn params<P: bytemuck::AnyBitPattern>(step: &Step) -> P {
    pod_read_unaligned(&step.params[size_of::<Offsets>()..])
}

/// Lines of elements that a dispatch finds at a binding: how many, and the elements of each.
type Lines = [u64; 2];

impl Planned {
    fn layout(&self, slot: Slot) -> Option<&Layout> {
        match slot {
            Slot::Tensor(role) => self.args.get(role).or_else(|| self.outputs.get(role)),
            Slot::Scratch(index) => self.program.scratch_layouts().get(index),
            Slot::Control | Slot::Status | Slot::Placeholder => None,
        }
    }

    /// What a dispatch of rows or elements works on at a binding that goes with them; none for what
    /// is bound whole.
    fn lines(&self, step: &Step, binding: &Binding, layout: &Layout) -> Option<Lines> {
        if layout.elements() <= 1 {
            return None;
        }
        match family(step) {
            "family/elements.wgsl" => {
                let ElementParams { vec4s, row_elements: line, teams, .. } = params(step);
                const WEIGHTS: [Slot; 2] =
                    [Slot::Tensor(Role::Weight), Slot::Tensor(Role::PosWeight)];
                let is_weight = WEIGHTS.contains(&binding.slot);
                let is_broadcast = is_weight && layout.elements() != self.args.input().elements();
                let lines = u64::from(vec4s / line.div_ceil(4));
                match binding.slot {
                    _ if is_broadcast => None,
                    Slot::Scratch(_) => Some([1, teams.into()]),
                    // contiguous, whatever the lines
                    _ if is_weight => Some([1, lines * u64::from(line)]),
                    _ => Some([lines, line.into()]),
                }
            }
            "family/sum.wgsl" => {
                let SumParams { count, teams, .. } = params(step);
                match binding.port.binding {
                    6 => Some([1, teams.into()]),
                    3 => None,
                    _ => Some([1, count.into()]),
                }
            }
            _ => {
                let RowParams { rows, classes, positions, .. } = params(step);
                let [rows, positions] = [rows, positions].map(u64::from);
                let has_shape = layout.shape() == self.args.input().shape();
                match binding.slot {
                    Slot::Tensor(Role::Weight) => None,
                    _ if has_shape => Some([rows / positions, u64::from(classes) * positions]),
                    Slot::Tensor(Role::State) => Some([1, 4 * rows]),
                    Slot::Scratch(_) => Some([1, rows * self.numbers_per_row(layout)]),
                    _ => Some([1, rows]),
                }
            }
        }
    }

    /// How many results of a row share a buffer.
    fn numbers_per_row(&self, results: &Layout) -> u64 {
        let shape = self.args.input().shape();
        let rows = shape.iter().product::<usize>() / shape[usize::from(shape.len() > 1)];
        (results.elements() / rows) as u64
    }

    /// Elements from one line of a tensor to the next.
    fn stride(&self, step: &Step, layout: &Layout, [lines, line]: Lines) -> u64 {
        if lines == 1 {
            return line;
        }
        match family(step) {
            "family/elements.wgsl" => layout.row_stride() as u64,
            _ if layout.is_contiguous() => line,
            _ => layout.row_stride() as u64,
        }
    }

    /// Every binding within the limits and within its buffer; every tensor covered once, in order.
    #[track_caller]
    fn check(&self) {
        // what is reported of classes is kept, at the end
        let statuses = self.steps_of("family/status.wgsl").len();
        let last = self.program.steps().last().map(family);
        assert_eq!(statuses, usize::from(last == Some("family/status.wgsl")));
        let has_classes = self.args.get(Role::Target).is_some_and(|t| t.dtype() == DType::I32);
        assert!(statuses == 1 || !has_classes);
        // elements done of each tensor, as they lie, by the kernels that take it in parts
        let mut done: HashMap<(String, Slot, u32), u64> = HashMap::new();
        for step in self.program.steps() {
            let label = &step.kernel.label;
            let offsets = match &step.params[..] {
                // two blocks of a few words
                [] => {
                    assert_eq!(family(step), "family/status.wgsl");
                    let bindings = step.bindings.iter().map(|b| (b.slot, b.start, b.bytes));
                    assert!(bindings.eq([(Slot::Status, 0, 32), (Slot::Control, 0, 32)]));
                    Offsets::default()
                }
                params => pod_read_unaligned(&params[..size_of::<Offsets>()]),
            };
            assert!(step.workgroups.iter().all(|&n| (1..=65_535).contains(&n)), "{label}");
            for binding in &step.bindings {
                let what = format!("{label}: {}: {binding:?}", binding.slot.name());
                assert!(binding.bytes <= self.limits.max_binding, "{what}");
                assert!(binding.start.is_multiple_of(ALIGNMENT), "{what}");
                let Some(layout) = self.layout(binding.slot) else { continue };
                let size = layout.dtype().size() as u64;
                let buffer = buffer_bytes(layout).next_multiple_of(4) - aligned_start(layout);
                assert!(binding.start + binding.bytes <= buffer, "{what}: of {buffer}");

                let Some([lines, line]) = self.lines(step, binding, layout) else { continue };
                assert!(binding.bytes <= BUDGET || lines == 1, "{what}");
                // the kernel counts in fours there
                let is_of_fours = family(step) == "family/rows.wgsl" && binding.port.binding == 8;
                let unit = if is_of_fours { 4 } else { 1 };
                let [first, told, ..] = offsets[binding.port.binding as usize].map(u64::from);
                let stride = self.stride(step, layout, [lines, line]);
                assert!(lines == 1 || told == stride, "{what}");
                let end = first * unit + (lines - 1) * stride + line;
                assert!(end * size <= binding.bytes, "{what}: up to {end}");
                assert!(end < 1 << 32, "{what}");

                let begin = binding.start / size + first * unit - residual(layout);
                let key = (label.clone(), binding.slot, binding.port.binding);
                let next = done.entry(key).or_insert(0);
                assert_eq!(begin, *next, "{what}");
                // a line of many is followed by what lies between it and the next
                let is_strided = !layout.is_contiguous();
                let after = if is_strided { layout.row_stride() as u64 } else { line };
                *next += (lines - 1) * stride + after;
            }
        }
        for ((label, slot, _), done) in done {
            let layout = self.layout(slot).unwrap();
            let rows = layout.shape().first().map_or(1, |&rows| rows as u64);
            let all = match layout.is_contiguous() {
                true => layout.elements() as u64,
                false => rows * layout.row_stride() as u64,
            };
            assert_eq!(done, all, "{label}: {}", slot.name());
        }
    }

    fn steps_of(&self, of: &str) -> Vec<&Step> {
        self.program.steps().filter(|step| family(step) == of).collect()
    }
}

const PASSES: [Pass; 3] = [Pass::Forward, Pass::Backward, Pass::ForwardBackward];
const REDUCTIONS: [Reduction; 3] = [Reduction::None, Reduction::Mean, Reduction::Sum];

/// More than 2^32 elements, rows that end in the middle of a word.
const ROWS: usize = (1 << 20) + 3;
const CLASSES: usize = 4999;

#[test]
fn rows_beyond_32_bits_of_elements() {
    for profile in [large_gpu(), lavapipe()] {
        for pass in PASSES {
            for reduction in REDUCTIONS {
                let args = Args::new(f16(&[ROWS, CLASSES])).target(classes(&[ROWS]));
                let args = args.weight(f32(&[CLASSES]));
                let op = CrossEntropy::default().reduction(reduction);
                plan(&op, pass, args.clone(), &profile).check();
                let op = op.keep_state(true);
                plan(&op, pass, args.clone(), &profile).check();
                plan(&NllLoss::default().reduction(reduction), pass, args, &profile).check();

                let offset = f16(&[ROWS, CLASSES]).with_offset(12_345).with_row_stride(5056);
                let probabilities = f16(&[ROWS, CLASSES]).with_offset((1 << 33) + 7);
                let args = Args::new(offset).target(probabilities);
                plan(&op, pass, args, &profile).check();
            }
            let map = Args::new(f16(&[ROWS, CLASSES]));
            let map = if pass.has_grad() { map.upstream(f16(&[ROWS, CLASSES])) } else { map };
            plan(&Softmax::default(), pass, map, &profile).check();
        }
        let args = Args::new(f16(&[ROWS, CLASSES])).target(classes(&[ROWS])).in_place();
        let planned = plan(&CrossEntropy::default(), Pass::Backward, args, &profile);
        let rows = planned.steps_of("family/rows.wgsl");
        assert!(!rows.is_empty());
        for step in rows {
            let mut files = step.kernel.files.iter();
            assert!(files.any(|file| file.path() == "access/in_place.wgsl"));
            let grad = step.bindings.iter().find(|b| b.port.binding == 5);
            assert_eq!(grad.map(|b| b.slot), Some(Slot::Tensor(Role::Input)));
        }
        planned.check();
    }
}

#[test]
fn classes_that_lie_apart_beyond_32_bits_of_elements() {
    let shape = [70, 21, (1 << 22) + 1];
    for pass in PASSES {
        for reduction in REDUCTIONS {
            let args = Args::new(f16(&shape)).target(classes(&[shape[0], shape[2]]));
            let op = CrossEntropy::default().reduction(reduction).keep_state(true);
            plan(&op, pass, args, &large_gpu()).check();
        }
    }
}

#[test]
fn more_rows_than_32_bits_count() {
    // A row is named by the status where 32 bits can.
    let rows = (1 << 32) + 77;
    for reduction in REDUCTIONS {
        let args = Args::new(f16(&[rows, 1])).target(classes(&[rows]));
        let op = CrossEntropy::default().reduction(reduction);
        let planned = plan(&op, Pass::ForwardBackward, args, &large_gpu());
        planned.check();
        let mut row = 0;
        for step in planned.steps_of("family/rows.wgsl") {
            let RowParams { first, rows, .. } = params(step);
            assert_eq!(first, first_index(row));
            row += u64::from(rows);
        }
        assert_eq!(row, rows as u64);
    }
    assert_eq!(first_index((1 << 32) - 3), u32::MAX - 2);
    assert_eq!(first_index((1 << 32) - 2), u32::MAX - 1);
    assert_eq!(first_index(1 << 40), u32::MAX - 1);
    // the last place that can be named leaves the word that tells of it above 0
    let status = Status::decode(&[0, 1, 3_i32 as u32, 1, 0, 0, 0, 0]);
    assert_eq!(status, Err(Error::Class { row: (1 << 32) - 2, class: 3, classes: 1 }));
}

#[test]
fn elements_beyond_32_bits() {
    let count = (1 << 33) + 13;
    for profile in [large_gpu(), lavapipe()] {
        for pass in PASSES {
            for reduction in REDUCTIONS {
                let op = Mse::default().reduction(reduction);
                let args = Args::new(f16(&[count])).target(f16(&[count]).with_offset(3));
                plan(&op, pass, args, &profile).check();
                let padded = f16(&[1 << 18, 40_001]).with_row_stride(40_008);
                let args = Args::new(padded).target(f16(&[1 << 18, 40_001]));
                plan(&op, pass, args, &profile).check();
                // rows so far apart that 32 bits do not count the distance
                let far = f16(&[3, 1000]).with_row_stride((1 << 33) + 1);
                plan(&op, pass, Args::new(far).target(f16(&[3, 1000])), &profile).check();
            }
        }
        let args = Args::new(f16(&[count])).target(f16(&[count]));
        let planned = plan(&Bce::default(), Pass::Forward, args, &profile);
        planned.check();
        assert_eq!(planned.steps_of("family/status.wgsl").len(), 1);
        assert_eq!(planned.program.scratch_layouts()[0].elements(), {
            let teams = planned.steps_of("family/elements.wgsl").into_iter().map(|step| {
                let ElementParams { vec4s, per_team, teams, .. } = params(step);
                assert_eq!(teams, vec4s.div_ceil(per_team));
                teams as usize
            });
            teams.sum::<usize>()
        });
    }
}

/// What `weight_indices` of `shaders/family/elements.wgsl` computes, in the same 32 bits.
fn weight_indices(params: &ElementParams, offsets: &Offsets, i: u32) -> [u32; 2] {
    let mut rest = i;
    let mut found = [offsets[3][0] + i * params.own[0], offsets[8][0] + i * params.own[1]];
    for [size, weight, pos_weight, begin] in &params.dim[..params.dims as usize] {
        let index = rest % size + begin;
        let carry = u32::from(index >= *size);
        let index = index - carry * size;
        found[0] += index * weight;
        found[1] += index * pos_weight;
        rest = rest / size + carry;
    }
    found
}

#[test]
fn weights_beyond_32_bits_of_elements() {
    let long = (1 << 32) + 5;
    let cases: [(&[usize], [&[usize]; 2]); 7] = [
        (&[3, long], [&[3, long], &[3, 1]]),
        (&[3, long], [&[3, 1], &[]]),
        (&[2, long, 3], [&[2, 1, 3], &[2, 1, 1]]),
        (&[2, 1 << 31, 3], [&[2, 1, 3], &[3]]),
        (&[2, (1 << 31) - 1, 3], [&[2, 1, 1], &[2, (1 << 31) - 1, 3]]),
        (&[1 << 20, 7, 1003], [&[1 << 20, 1, 1], &[7, 1]]),
        (&[1 << 20, 7, 1003], [&[7, 1003], &[1003]]),
    ];
    for (shape, weights) in cases {
        let args = Args::new(f16(shape)).target(f16(shape));
        let args = args.weight(f32(weights[0]).with_offset(5)).pos_weight(f32(weights[1]));
        let op = BceWithLogits::default();
        let planned = plan(&op, Pass::ForwardBackward, args, &large_gpu());
        planned.check();

        let mut first = 0;
        for step in planned.steps_of("family/elements.wgsl") {
            let params: ElementParams = params(step);
            let offsets: Offsets = pod_read_unaligned(&step.params[..size_of::<Offsets>()]);
            let count = u64::from(params.row_elements);
            // where a dimension ends within the part, and a few places besides
            let ends = (0..4).map(|k| {
                let unit: u64 = shape.iter().rev().take(k).map(|&n| n as u64).product();
                unit - first % unit
            });
            let around = ends.flat_map(|end| [end.saturating_sub(1), end, end + 1]);
            let samples = around.chain([0, 1, 12_345_678, count - 1]).filter(|&i| i < count);
            for i in samples {
                let found = weight_indices(&params, &offsets, i as u32);
                for (k, binding) in [3, 8].into_iter().enumerate() {
                    let bound = step.bindings.iter().find(|b| b.port.binding == binding).unwrap();
                    let layout = planned.layout(bound.slot).unwrap();
                    let at = bound.start / 4 + u64::from(found[k]) - residual(layout);
                    assert_eq!(at, broadcast_place(shape, weights[k], first + i), "{shape:?} {i}");
                }
            }
            first += count;
        }
        assert_eq!(first, shape.iter().map(|&n| n as u64).product::<u64>());
    }
}

/// Where an element's weight lies, by the plain rule.
fn broadcast_place(input: &[usize], weight: &[usize], element: u64) -> u64 {
    let (mut rest, mut place, mut stride) = (element, 0, 1);
    for (i, &size) in input.iter().rev().enumerate() {
        let own = weight.iter().rev().nth(i).map_or(1, |&own| own as u64);
        place += if own == 1 { 0 } else { rest % size as u64 * stride };
        stride *= own;
        rest /= size as u64;
    }
    place
}

#[test]
fn sums_take_as_many_levels_as_they_need() {
    let rows = 3 << 30;
    let args = Args::new(f16(&[rows, 1])).target(classes(&[rows]));
    let planned = plan(&CrossEntropy::default(), Pass::Forward, args, &lavapipe());
    planned.check();
    let sums = planned.steps_of("family/sum.wgsl");
    let count_of = |step: &&Step| u64::from(params::<SumParams>(step).count);
    // the targets' weights and the losses, each with the sums of sums
    let is_divisor = |step: &&Step| step.kernel.constants.contains(&("TO_CONTROL", 1));
    let (divisor, losses) = sums.split_at(1 + sums.iter().position(is_divisor).unwrap());
    for levels in [divisor, losses] {
        let mut levels = levels.iter().map(count_of);
        let mut terms = rows as u64;
        while terms > 1 {
            let mut left = terms;
            let mut sums = 0;
            while left > 0 {
                let count = levels.next().unwrap();
                left -= count;
                sums += count.div_ceil(2048 * 8);
            }
            terms = sums;
        }
        assert_eq!(levels.next(), None);
    }
}

#[test]
fn forced_teams_take_long_rows_too() {
    let rows = || Args::new(f32(&[3, 70_000])).target(classes(&[3]));
    let cases: [(Box<dyn Op>, Args<Layout>); 5] = [
        (Box::new(CrossEntropy::default()), rows()),
        (Box::new(CrossEntropy::default().row_outputs(true)), rows()),
        (Box::new(NllLoss::default()), rows()),
        (Box::new(Softmax::default()), Args::new(f32(&[3, 70_000])).upstream(f32(&[3, 70_000]))),
        (Box::new(Mse::default()), Args::new(f32(&[70_000])).target(f32(&[70_000]))),
    ];
    for (op, args) in cases {
        for team in [Team::Invocation, Team::Subgroup, Team::Workgroup] {
            let profile = DeviceProfile { team_override: Some(team), ..lavapipe() };
            let planned = plan(&*op, Pass::ForwardBackward, args.clone(), &profile);
            let labels = planned.program.steps().map(|step| &step.kernel.label[..]);
            let labels: Vec<_> = labels.filter(|&label| label != "status").collect();
            let is_forced = |label: &&str| label.ends_with(team.name());
            assert!(!labels.is_empty() && labels.iter().all(is_forced), "{team:?}: {labels:?}");
        }
    }
}

#[test]
fn forced_teams_keep_to_what_lavapipe_iterates() {
    let forced = |team, runtime_checks| DeviceProfile {
        team_override: Some(team),
        runtime_checks,
        ..lavapipe()
    };
    let invocation = forced(Team::Invocation, false);
    let splits = |classes, profile: &DeviceProfile| {
        let args = Args::new(f32(&[50, classes])).target(self::classes(&[50]));
        let planned = plan(&CrossEntropy::default(), Pass::ForwardBackward, args, profile);
        planned.check();
        params::<RowParams>(planned.steps_of("family/rows.wgsl")[0]).splits
    };
    // where a row can be split, it is
    assert_eq!([90_000, 90_001, 2_000_000].map(|c| splits(c, &invocation)), [1, 2, 23]);
    assert_eq!([30_000, 30_001].map(|c| splits(c, &forced(Team::Invocation, true))), [1, 2]);
    assert_eq!(splits(2_000_000, &forced(Team::Subgroup, false)), 3);
    assert_eq!(splits(2_000_000, &forced(Team::Workgroup, false)), 1);
    // elsewhere nothing is right but to refuse it
    let error = |classes| {
        let args = Args::new(f32(&[3, classes]));
        let outputs = Softmax::default().outputs(Pass::Forward, &args).unwrap();
        let program = Softmax::default().program(Pass::Forward, &args, &outputs, &invocation);
        program.err().map(|error| error.to_string())
    };
    assert_eq!(error(90_000), None);
    let expected = "input: expected at most 90000 classes for team invocation on large, got 90001";
    assert_eq!(error(90_001).unwrap(), expected);
}

/// lavapipe would stop the loop over partials after some rows.
#[test]
fn teams_that_merge_many_partials_take_fewer_rows() {
    let rows = 1 << 20;
    let args = Args::new(f32(&[rows, 1])).target(classes(&[rows]));
    let rows_per_team = |shards| {
        let op = CrossEntropy::default().reduction(Reduction::Sum).shard(0, shards);
        let args = args.clone().partials(f32(&[rows, shards, 8]));
        let planned = plan(&op, Pass::Backward, args, &lavapipe());
        params::<RowParams>(planned.steps_of("family/rows.wgsl")[0]).rows_per_team
    };
    assert_eq!([1, 58, 1000, 20_000].map(rows_per_team), [256, 256, 15, 1]);
}

#[test]
fn software_without_subgroups_does_without_barriers() {
    let profile = DeviceProfile { subgroup: None, ..lavapipe() };
    for classes in [8, 32, 1000, 20_000] {
        let args = Args::new(f32(&[512, classes])).target(self::classes(&[512]));
        let op = CrossEntropy::default().reduction(Reduction::Mean);
        let planned = plan(&op, Pass::ForwardBackward, args, &profile);
        let labels = planned.program.steps().map(|step| &step.kernel.label[..]);
        let by_teams: Vec<_> = labels.filter(|label| *label != "status").collect();
        assert!(by_teams.iter().all(|label| label.ends_with(".invocation")), "{by_teams:?}");
    }
}

#[test]
fn few_long_rows_are_shared() {
    let long = || Args::new(f32(&[2, 70_001])).target(classes(&[2]));
    let state = f32(&[2, 4]);
    for profile in [large_gpu(), lavapipe()] {
        let entries = |op: &CrossEntropy, pass, args| {
            let planned = plan(op, pass, args, &profile);
            let steps = planned.steps_of("family/rows.wgsl");
            for step in &steps {
                let RowParams { splits: shares, classes_per_split: share, .. } = params(step);
                assert!(shares * share >= 70_001 && (shares - 1) * share < 70_001, "{shares}");
                // no tile of a team reaches into the next share; on both, a team is a workgroup
                let mut constants = step.kernel.constants.iter();
                let (_, members) = constants.find(|(name, _)| *name == "WORKGROUP_SIZE").unwrap();
                let mut defines = step.kernel.defines.iter();
                let tile = defines.find(|(name, _)| *name == "TILE_VEC4S");
                let Some((_, Define::Number(vec4s))) = tile else { panic!("{tile:?}") };
                let tile = 4 * vec4s * members;
                assert!(shares == 1 || share % tile == 0, "{share} {tile}");
            }
            steps.iter().map(|step| step.kernel.entry_point).collect::<Vec<_>>()
        };
        let op = CrossEntropy::default();
        for pass in PASSES {
            assert_eq!(entries(&op, pass, long()), ["partials", pass.name()]);
            plan(&op, pass, long(), &profile).check();
        }
        // nothing to sum
        let from_state = long().state(state.clone());
        assert_eq!(entries(&op, Pass::Backward, from_state), ["backward"]);
        let op = CrossEntropy::default().row_outputs(true).reduction(Reduction::None);
        assert_eq!(entries(&op, Pass::Forward, long()), ["partials", "forward"]);
        plan(&op, Pass::Forward, long(), &profile).check();
        // what is one team's
        let op = op.keep_state(true);
        assert_eq!(entries(&op, Pass::Forward, long()), ["forward"]);
        // partials cannot tell what a cap has made equal
        let op = CrossEntropy::default().row_outputs(true).softcap(30.0);
        assert_eq!(entries(&op, Pass::Forward, long()), ["forward"]);
    }
}

#[test]
fn teams_of_neighbours_fill_workgroups_whatever_a_subgroups_size() {
    // SwiftShader, lavapipe, Intel, RDNA, Adreno; and fewer invocations than a subgroup may have
    let subgroups = [(4, 4), (8, 8), (8, 32), (32, 64), (64, 128)];
    for (subgroup, max_workgroup_size) in subgroups.into_iter().flat_map(|s| [(s, 1024), (s, 100)])
    {
        for team_override in [None, Some(Team::Subgroup), Some(Team::Workgroup)] {
            let large = large_gpu();
            let profile = DeviceProfile {
                subgroup: Some(subgroup),
                max_workgroup_size,
                team_override,
                ..large
            };
            for count in [1, 17, 33, 100, 128, 1000, 1025] {
                let args = Args::new(f32(&[100, count])).target(classes(&[100]));
                let planned = plan(&CrossEntropy::default(), Pass::ForwardBackward, args, &profile);
                for step in planned.steps_of("family/rows.wgsl") {
                    let constant = |name| {
                        let mut all = step.kernel.constants.iter();
                        all.find(|(known, _)| *known == name).map(|(_, value)| *value)
                    };
                    let Some(neighbours) = constant("CLUSTER_SIZE") else { continue };
                    let workgroup = constant("WORKGROUP_SIZE").unwrap();
                    let what = format!("{profile:?} {count}: {neighbours} of {workgroup}");
                    assert!(neighbours.is_power_of_two() && neighbours <= subgroup.0, "{what}");
                    assert!(workgroup.is_power_of_two() && neighbours <= workgroup, "{what}");
                    assert!(workgroup <= max_workgroup_size, "{what}");
                    // whole subgroups, where one fits
                    let most = 1 << max_workgroup_size.ilog2();
                    assert!(workgroup >= subgroup.1.min(most), "{what}");
                    // a workgroup each, or one for as many teams as it holds
                    let is_team = step.kernel.label.contains("subgroup");
                    let teams = if is_team { workgroup / neighbours } else { 1 };
                    assert_eq!(step.workgroups, [100_u32.div_ceil(teams), 1, 1], "{what}");
                }
            }
        }
    }
}

#[test]
fn teams_take_short_rows_in_turn_within_what_lavapipe_iterates() {
    let team_override = [None, Some(Team::Invocation), Some(Team::Subgroup), Some(Team::Workgroup)];
    for team_override in team_override {
        let profile = DeviceProfile { team_override, ..lavapipe() };
        for few in [1, 2, 10, 64] {
            let args = Args::new(f32(&[1_000_000, few])).target(classes(&[1_000_000]));
            let planned = plan(&CrossEntropy::default(), Pass::ForwardBackward, args, &profile);
            for step in planned.steps_of("family/rows.wgsl") {
                let RowParams { rows_per_team, .. } = params(step);
                // each with exchanges of some 40 iterations, if a workgroup takes it
                assert!(
                    rows_per_team > 1 && rows_per_team * 40 < 65_535,
                    "{team_override:?} {few}: {rows_per_team}"
                );
            }
        }
    }
}

#[test]
fn one_row_that_no_binding_holds() {
    for (op, args) in [
        (&CrossEntropy::default() as &dyn Op, Args::new(f32(&[2, 1 << 30])).target(classes(&[2]))),
        (&Softmax::default(), Args::new(f32(&[2, 1 << 30]))),
        (&Mse::default(), {
            let padded = f32(&[2, 1 << 30]).with_row_stride((1 << 30) + 1);
            Args::new(padded).target(f32(&[2, 1 << 30]))
        }),
    ] {
        let outputs = op.outputs(Pass::Forward, &args).unwrap();
        let error = op.program(Pass::Forward, &args, &outputs, &large_gpu()).unwrap_err();
        let text = "one row of input: expected at most 4294967295 bytes \
                    (max_storage_buffer_binding_size of large), got 4294967296";
        assert_eq!(error.to_string(), text);
    }
    // one beyond the budget of a dispatch is one's own
    let args = Args::new(f32(&[3, 1 << 29])).target(classes(&[3]));
    let planned = plan(&CrossEntropy::default(), Pass::ForwardBackward, args, &large_gpu());
    planned.check();
    // each row is shared by several teams
    assert_eq!(planned.steps_of("family/rows.wgsl").len(), 6);
}
