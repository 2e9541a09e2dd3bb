//! Every op, storage type and reduction, loss and gradient by burn's autodiff, held to the float64
//! reference.

use burn::tensor::Tensor;
use wgloss::options::{Family, Value};
use wgloss::{Array, CrossEntropy, DType, Op, Output, Pass, Reduction, Role};
use wgloss_burn::{Args, loss, loss_and_rows, map};
use wgloss_testing::ops::{option, reduced, reductions};
use wgloss_testing::workload::Workload;

use crate::common::{autodiff, classes_to_burn, device, integers, to_burn, values};

fn array<const D: usize>(tensor: Tensor<D>, shape: &[usize], dtype: DType) -> Array<'static> {
    Array::from_vec(values(tensor), shape).unwrap().to_dtype(dtype).unwrap()
}

/// Arguments of a workload, with a bias where logits are a product.
fn draw(work: &Workload, seed: u64) -> wgloss::Args<Array<'static>> {
    let args = work.draw(seed).unwrap();
    match work.op.kind().family {
        Family::LinearLoss => {
            let classes = work.shape[2];
            let bias = (0..classes).map(|i| (i * 7 % 11) as f32 / 10.0 - 0.5).collect();
            args.bias(Array::from_vec(bias, &[classes]).unwrap())
        }
        _ => args,
    }
}

/// The shape of a workload, of as many rows and classes.
fn shape_of(op: &dyn Op, rows: usize, classes: usize) -> Vec<usize> {
    match op.kind().family {
        Family::LinearLoss => vec![rows, 13, classes],
        _ => vec![rows, classes],
    }
}

/// Loss and gradients of a workload whose logits are a product.
fn compute_linear(work: &Workload, args: &wgloss::Args<Array<'_>>) -> Output<Array<'static>> {
    let device = autodiff();
    let get = |role| args.get(role).unwrap();
    let x = to_burn::<2>(args.input(), &device).require_grad();
    let w = to_burn::<2>(get(Role::Projection), &device).require_grad();
    let b = to_burn::<1>(get(Role::Bias), &device).require_grad();
    // nobody else has these
    let call = Args::new(x.clone().reshape([work.shape[0] as i32, -1]))
        .projection(w.clone())
        .bias(b.clone())
        .classes(classes_to_burn(get(Role::Target), &device));
    let value: Tensor<1> = loss(&*work.op, call).unwrap();
    let is_none = option(&*work.op, "reduction") == Some(Value::Reduction(Reduction::None));
    let shape = if is_none { &work.shape[..1] } else { &[] };
    let grads = value.clone().sum().backward();
    let grad = |tensor: &Tensor<2>| {
        let grad = tensor.grad(&grads)?;
        let shape = grad.dims();
        Some(array(grad, &shape, work.dtype))
    };
    let of_bias = b.grad(&grads).map(|grad| array(grad, &[work.shape[2]], DType::F32));
    let given = [
        (Role::Grad, "freeze_input", grad(&x)),
        (Role::GradProjection, "freeze_projection", grad(&w)),
        (Role::GradBias, "freeze_bias", of_bias),
    ];
    let mut output = Output::default().with(Role::Loss, array(value, shape, DType::F32));
    for (role, freeze, grad) in given {
        let is_frozen = option(&*work.op, freeze) == Some(Value::Bool(true));
        assert_eq!(grad.is_none(), is_frozen, "{role} of {:?}", work.op);
        if let Some(grad) = grad {
            output = output.with(role, grad);
        }
    }
    output
}

/// Loss and gradient of a workload, by way of burn.
fn compute(work: &Workload, args: &wgloss::Args<Array<'_>>) -> Output<Array<'static>> {
    if work.op.kind().family == Family::LinearLoss {
        return compute_linear(work, args);
    }
    let device = autodiff();
    let leaf = to_burn::<2>(args.input(), &device).require_grad();
    let kind = work.op.kind();
    // nobody else has these
    let input = leaf.clone().reshape([work.shape[0] as i32, -1]);
    let (role, value, grads) = if !kind.family.is_loss() {
        let upstream = to_burn::<2>(args.get(Role::Upstream).unwrap(), &device);
        let value = map(&*work.op, input).unwrap();
        // a product's gradient is its other factor
        let grads = match work.dtype {
            // burn's WGSL has no product of bf16
            DType::Bf16 => None,
            _ => Some((value.clone() * upstream).sum().backward()),
        };
        (Role::Output, array(value, &work.shape, work.dtype), grads)
    } else {
        let target = args.get(Role::Target).unwrap();
        let args = Args::new(input);
        let args = match target.shape().len() {
            1 => args.classes(classes_to_burn(target, &device)),
            _ => args.target(to_burn::<2>(target, &device)),
        };
        let is_none =
            work.op.options().iter().any(|info| info.value == Value::Reduction(Reduction::None));
        match (is_none, kind.family) {
            (false, _) => {
                let value = loss::<1>(&*work.op, args).unwrap();
                let grads = value.backward();
                (Role::Loss, array(value, &[], DType::F32), Some(grads))
            }
            (true, Family::RowLoss) => {
                let value = loss::<1>(&*work.op, args).unwrap();
                let grads = value.clone().sum().backward();
                (Role::Loss, array(value, &work.shape[..1], DType::F32), Some(grads))
            }
            (true, _) => {
                let value = loss::<2>(&*work.op, args).unwrap();
                let grads = value.clone().sum().backward();
                (Role::Loss, array(value, &work.shape, DType::F32), Some(grads))
            }
        }
    };
    let output = Output::default().with(role, value);
    match grads {
        None => output,
        Some(grads) => {
            let grad = leaf.grad(&grads).expect("a gradient");
            output.with(Role::Grad, array(grad, &work.shape, work.dtype))
        }
    }
}

#[test]
fn every_op_keeps_the_promise() {
    for op in wgloss::ops() {
        let all = match reductions(&*op).is_empty() {
            true => vec![op],
            false => reductions(&*op).into_iter().map(|r| reduced(op.clone(), r)).collect(),
        };
        for op in all {
            for dtype in [DType::F32, DType::F16, DType::Bf16] {
                let is_none =
                    op.options().iter().any(|info| info.value == Value::Reduction(Reduction::None));
                let is_linear = op.kind().family == Family::LinearLoss;
                if dtype == DType::Bf16 && is_none && !is_linear {
                    continue;
                }
                for [rows, classes] in [[32, 10], [5, 1000]] {
                    let shape = shape_of(&*op, rows, classes);
                    let (op, pass) = (op.clone(), Pass::ForwardBackward);
                    let work = Workload { op, pass, dtype, shape };
                    let args = draw(&work, 1);
                    let got = compute(&work, &args);
                    let judged = work.judge(&args, &got);
                    assert!(judged.is_ok(), "{} {:?}: {judged:?}", work.name(), work.op);
                }
            }
        }
    }
    wgloss_burn::check(&device()).unwrap();
}

#[test]
fn every_option_keeps_the_promise() {
    for op in wgloss::ops() {
        for info in op.options() {
            for &sample in &info.samples {
                let mut op = op.clone();
                op.set(info.name, sample).unwrap();
                // beyond i32, and classes that the workload has none of or all of
                let is_far = matches!(sample, Value::Integer(i) if i32::try_from(i).is_err());
                if is_far || info.name == "reduction" {
                    continue;
                }
                let (pass, dtype) = (Pass::ForwardBackward, DType::F32);
                let shape = shape_of(&*op, 16, 12);
                let work = Workload { op, pass, dtype, shape };
                let args = draw(&work, 2);
                let got = compute(&work, &args);
                let judged = work.judge(&args, &got);
                assert!(judged.is_ok(), "{} {:?}: {judged:?}", work.name(), work.op);
            }
        }
    }
}

#[test]
fn row_outputs_come_with_the_loss() {
    let op: Box<dyn Op> = Box::new(CrossEntropy::default().row_outputs(true));
    let work = Workload { op, pass: Pass::Forward, dtype: DType::F32, shape: vec![9, 300] };
    let args = work.draw(3).unwrap();
    let device = autodiff();
    let leaf = to_burn::<2>(args.input(), &device).require_grad();
    let targets = classes_to_burn(args.get(Role::Target).unwrap(), &device);
    let call = Args::new(leaf.clone()).classes(targets);
    let (value, rows) = loss_and_rows::<1, 1>(&*work.op, call).unwrap();
    let grad = leaf.grad(&value.backward()).expect("a gradient");
    assert_eq!(grad.dims(), [9, 300]);
    let ints = |tensor| integers(tensor).into_iter().map(|i| i as i32).collect::<Vec<_>>();
    let got = Output::default()
        .with(Role::Loss, array(value, &[], DType::F32))
        .with(Role::LogSumExp, array(rows.logsumexp, &[9], DType::F32))
        .with(Role::Argmax, Array::from_vec(ints(rows.argmax), &[9]).unwrap())
        .with(Role::Correct, Array::from_vec(ints(rows.correct.unwrap()), &[9]).unwrap())
        .with(Role::Entropy, array(rows.entropy, &[9], DType::F32));
    let judged = work.judge(&args, &got);
    assert!(judged.is_ok(), "{judged:?}");
}
