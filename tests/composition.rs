//! Kernels compose: the rows of a loss over scratch memory, in place, within a larger program. A
//! product in front of the rows needs just that.

use wgloss::internals::{
    Binding, DeviceProfile, File, Kernel, Port, Program, RowOperands, RowTarget, Slot, View,
};
use wgloss::reference::{self, Tolerance, compare};
use wgloss::{Args, Array, CrossEntropy, DType, Layout, Op, Output, Pass, Reduction, Role};
use wgloss_testing::devices::on_every_device;
use wgloss_testing::random::{Logits, Random};

/// Doubles every number.
const DOUBLE: File = File::new(
    "struct Params { offsets: array<vec4<u32>, 9>, count: vec4<u32> }
    @group(0) @binding(0) var<uniform> params: Params;
    @group(0) @binding(1) var<storage, read> source: array<f32>;
    @group(0) @binding(6) var<storage, read_write> sink: array<f32>;
    @compute @workgroup_size(64)
    fn double(@builtin(global_invocation_id) id: vec3<u32>) {
        if id.x < params.count.x {
            sink[params.offsets[6].x + id.x] = 2.0 * source[params.offsets[1].x + id.x];
        }
    }",
);

fn push_double(program: &mut Program, from: &View, to: &View) {
    let count = from.layout.elements() as u32;
    let kernel = Kernel {
        label: "double".into(),
        files: vec![DOUBLE],
        entry_point: "double",
        constants: vec![],
        defines: vec![],
        read_write: 0,
    };
    let bindings = vec![Binding::all(Port::read(1), from), Binding::all(Port::write(6), to)];
    let workgroups = [count.div_ceil(64), 1, 1];
    program.dispatch(kernel, &[count, 0, 0, 0], bindings, workgroups).unwrap();
}

/// Cross entropy of doubled logits, which lie in scratch memory, as does their gradient; that is
/// doubled on its way out, as the chain rule asks.
fn program(
    profile: &DeviceProfile,
    op: &CrossEntropy,
    args: &Args<Layout>,
    outputs: &Output<Layout>,
) -> Program {
    let argument = |role| View::of(role, args.get(role).unwrap());
    let result = |role| View::of(role, outputs.get(role).unwrap());
    let mut program = Program::new(&profile.limits);
    let logits = program.scratch(args.input().clone());
    push_double(&mut program, &argument(Role::Input), &logits);
    let operands = RowOperands {
        input: logits.clone(),
        target: RowTarget::Classes(argument(Role::Target)),
        weight: None,
        upstream: None,
        given_state: None,
        kept_state: None,
        given_partials: None,
        partial: None,
        given_divisor: None,
        divisor: None,
        loss: Some(result(Role::Loss)),
        grad: Some(logits.clone()),
        row_outputs: vec![],
    };
    op.push_rows(Pass::ForwardBackward, operands, &mut program, profile).unwrap();
    push_double(&mut program, &logits, &result(Role::Grad));
    program
}

#[test]
fn rows_work_in_place_over_scratch_memory_of_a_larger_program() {
    // a row for an invocation, a subgroup and several tiles; an ignored row among them
    for shape in [[7, 9], [5, 65], [3, 1025]] {
        let mut random = Random::new(shape[1] as u64);
        let logits = random.logits(Logits::Normal, shape[0], shape[1]);
        let logits = Array::from_vec(logits, &shape).unwrap();
        let mut target = random.targets(shape[0], shape[1], -100, 0.0);
        target[1] = -100;
        let target = Array::from_vec(target, &shape[..1]).unwrap();
        let args = Args::new(logits).target(target);

        for reduction in [Reduction::None, Reduction::Mean] {
            let op = CrossEntropy::default().reduction(reduction);
            let same = op.clone().logit_scale(2.0);
            let want = reference::run(&same, Pass::ForwardBackward, &args).unwrap();
            on_every_device(|gpu| {
                let tensors = gpu.block_on(gpu.upload_args(&args)).unwrap();
                let layouts = tensors.layouts();
                let outputs = op.outputs(Pass::ForwardBackward, &layouts).unwrap();
                let program = program(gpu.profile(), &op, &layouts, &outputs);
                let is_scratch = |slot: Slot| matches!(slot, Slot::Scratch(_));
                let in_place = program.steps().any(|step| {
                    step.kernel.entry_point == "forward_backward"
                        && step.bindings.iter().any(|b| b.port.binding == 5 && is_scratch(b.slot))
                });
                assert!(in_place, "the gradient is in scratch memory");
                let plan = gpu.block_on(gpu.compile(program, layouts, outputs)).unwrap();
                let output = gpu.block_on(plan.allocate()).unwrap();
                let mut encoder = gpu.device().create_command_encoder(&Default::default());
                plan.bind(&tensors, &output).unwrap().encode(&mut encoder);
                gpu.queue().submit([encoder.finish()]);
                let kept = if reduction == Reduction::Mean { shape[0] as f64 - 1.0 } else { 1.0 };
                for (role, promise) in
                    [(Role::Loss, Tolerance::LOSS), (Role::Grad, Tolerance::GRAD)]
                {
                    let got = gpu.block_on(gpu.read(output.get(role).unwrap())).unwrap();
                    assert_eq!(got.dtype(), DType::F32);
                    let promise = promise.scaled(1.0 / kept);
                    compare(&got.to_f32(), want.get(role).unwrap(), promise).unwrap();
                }
            });
        }
    }
}
