//! Conformance cases on the GPU: from host slices, from device tensors by a call, and from device
//! tensors by a plan that is encoded into an encoder of the caller's own.

use wgloss::{Args, Array, Op, Output, Pass};
use wgloss_testing::call::{bits, read, result};
use wgloss_testing::compare::{compare_moderate, compare_relative};
use wgloss_testing::conformance::{self, Case, magnitude, values};
use wgloss_testing::devices::{Device, devices};

/// A folder's cases, less those that compose two ops: `wgloss check` computes those too.
fn cases(folder: &str) -> Vec<(Case, Box<dyn Op>)> {
    let cases = conformance::load(&conformance::folder(folder)).cases.into_iter();
    let single = cases.filter(|case| case.pre().unwrap().is_none());
    single.map(|case| (case.op().unwrap(), case)).map(|(op, case)| (case, op)).collect()
}

/// The same pass by every door. All must agree to the bit: on the automatic choice of kernels alone,
/// since doors know nothing of teams.
#[track_caller]
fn by_every_door(
    device: &Device,
    op: &dyn Op,
    pass: Pass,
    args: &Args<Array<'_>>,
) -> Output<Array<'static>> {
    let gpu = &device.gpu;
    let from_host = gpu.block_on(gpu.run(op, pass, args)).unwrap();
    if device.name != "automatic" {
        return from_host;
    }
    let tensors = gpu.block_on(gpu.upload_args(args)).unwrap();

    let called = gpu.block_on(gpu.run(op, pass, &tensors)).unwrap();
    assert_eq!(bits(&read(gpu, &called)), bits(&from_host), "a call on tensors");
    if let Some(status) = called.status() {
        assert_eq!(gpu.block_on(gpu.check(status)), Ok(()));
    }

    let plan = gpu.block_on(gpu.plan(op, pass, &tensors.layouts())).unwrap();
    let planned = gpu.block_on(plan.allocate()).unwrap();
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    plan.bind(&tensors, &planned).unwrap().encode(&mut encoder);
    gpu.queue().submit([encoder.finish()]);
    assert_eq!(bits(&read(gpu, &planned)), bits(&from_host), "a plan");
    from_host
}

#[test]
fn worked_examples_with_gradients() {
    let cases = cases("seeds");
    assert_eq!(cases.len(), 45);
    for device in devices() {
        println!("kernels: {}", device.name);
        for (case, op) in &cases {
            println!("{}", case.name);
            let args = case.args(Pass::ForwardBackward).unwrap();
            let out = by_every_door(&device, &**op, Pass::ForwardBackward, &args);
            let logits = magnitude(args.input());
            for (role, part) in [("out_ref", result(&out)), ("grad_ref", out.grad().unwrap())] {
                let want = values(case, role);
                let result = compare_moderate(&part.to_f32(), &want, logits);
                result.unwrap_or_else(|e| panic!("{}: {role}: {e}", case.name));
            }
        }
    }
}

/// The gradient by a pass of its own, for which each case's loss is not needed.
#[test]
fn worked_examples_by_backward_alone() {
    let cases = cases("seeds");
    for device in devices() {
        println!("kernels: {}", device.name);
        for (case, op) in &cases {
            println!("{}", case.name);
            let args = case.args(Pass::Backward).unwrap();
            let out = by_every_door(&device, &**op, Pass::Backward, &args);
            let (got, want) = (out.grad().unwrap(), values(case, "grad_ref"));
            let result = compare_moderate(&got.to_f32(), &want, magnitude(args.input()));
            result.unwrap_or_else(|e| panic!("{}: {e}", case.name));
        }
    }
}

/// Their values are f32 from numpy, hence the relative bound.
#[test]
fn onnx_losses() {
    let cases = cases("onnx");
    assert_eq!(cases.len(), 68);
    for device in devices() {
        println!("kernels: {}", device.name);
        for (case, op) in &cases {
            println!("{}", case.name);
            let out =
                by_every_door(&device, &**op, Pass::Forward, &case.args(Pass::Forward).unwrap());
            let want = values(case, "out_ref");
            compare_relative(&result(&out).to_f32(), &want, 1e-5)
                .unwrap_or_else(|e| panic!("{}: {e}", case.name));
        }
    }
}
