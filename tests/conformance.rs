//! Conformance cases on the GPU: from host slices, from device tensors by a call, and from device
//! tensors by a plan that is encoded into an encoder of the caller's own.

mod common;

use common::call::{bits, read};
use common::compare::{compare_moderate, compare_relative};
use common::conformance::{self, Case};
use common::gpu::on_every_device;
use wgloss::{Args, Array, Gpu, Op, Output, Pass};

/// Cases of a folder that this crate computes.
fn cases(folder: &str) -> Vec<(Case, Box<dyn Op>)> {
    let cases = conformance::load(&conformance::folder(folder)).cases.into_iter();
    let f32_cases = cases.filter(Case::is_f32);
    f32_cases.filter_map(|case| case.op().map(|op| (case, op))).collect()
}

fn count(cases: &[(Case, Box<dyn Op>)], name: &str) -> usize {
    cases.iter().filter(|(_, op)| op.name() == name).count()
}

/// The same pass by every door. All must agree to the bit.
#[track_caller]
fn by_every_door(
    gpu: &Gpu,
    op: &dyn Op,
    pass: Pass,
    args: &Args<Array<'_>>,
) -> Output<Array<'static>> {
    let from_host = gpu.block_on(gpu.run(op, pass, args)).unwrap();
    let tensors = gpu.block_on(gpu.upload_args(args)).unwrap();

    let called = gpu.block_on(gpu.run(op, pass, &tensors)).unwrap();
    assert_eq!(bits(&read(gpu, &called)), bits(&from_host), "a call on tensors");
    if let Some(status) = &called.status {
        assert_eq!(gpu.block_on(gpu.check(status)), Ok(()));
    }

    let plan = gpu.block_on(gpu.plan(op, pass, &tensors.layouts())).unwrap();
    let planned = gpu.block_on(plan.allocate()).unwrap();
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    plan.encode(&mut encoder, &tensors, &planned).unwrap();
    gpu.queue().submit([encoder.finish()]);
    assert_eq!(bits(&read(gpu, &planned)), bits(&from_host), "a plan");
    from_host
}

/// The largest magnitude among the finite logits.
fn largest(input: &Array<'_>) -> f64 {
    input.to_f64().into_iter().filter(|x| x.is_finite()).fold(0.0, |max, x| max.max(x.abs()))
}

#[test]
fn worked_examples_with_gradients() {
    let cases = cases("seeds");
    assert_eq!((count(&cases, "cross_entropy"), count(&cases, "bce_with_logits")), (10, 12));
    on_every_device(|gpu| {
        for (case, op) in &cases {
            println!("{}", case.name);
            let args = case.args(Pass::ForwardBackward);
            let out = by_every_door(gpu, &**op, Pass::ForwardBackward, &args);
            let logits = largest(args.input());
            for (role, part) in [("out_ref", out.loss), ("grad_ref", out.grad)] {
                let want = case.values(role).unwrap();
                let result = compare_moderate(&part.unwrap().to_f32(), &want, logits);
                result.unwrap_or_else(|e| panic!("{}: {role}: {e}", case.name));
            }
        }
    });
}

/// The gradient by a pass of its own, for which each case's loss is not needed.
#[test]
fn worked_examples_by_backward_alone() {
    let cases = cases("seeds");
    on_every_device(|gpu| {
        for (case, op) in &cases {
            println!("{}", case.name);
            let args = case.args(Pass::Backward);
            let out = by_every_door(gpu, &**op, Pass::Backward, &args);
            let (got, want) = (out.grad.unwrap(), case.values("grad_ref").unwrap());
            let result = compare_moderate(&got.to_f32(), &want, largest(args.input()));
            result.unwrap_or_else(|e| panic!("{}: {e}", case.name));
        }
    });
}

/// Their values are f32 from numpy, hence the relative bound.
#[test]
fn onnx_losses() {
    let cases = cases("onnx");
    assert_eq!(count(&cases, "cross_entropy"), 34);
    on_every_device(|gpu| {
        for (case, op) in &cases {
            println!("{}", case.name);
            let out = by_every_door(gpu, &**op, Pass::Forward, &case.args(Pass::Forward));
            let want = case.values("out_ref").unwrap();
            compare_relative(&out.loss.unwrap().to_f32(), &want, 1e-5)
                .unwrap_or_else(|e| panic!("{}: {e}", case.name));
        }
    });
}
