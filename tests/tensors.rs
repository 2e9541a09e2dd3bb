//! Tensors where callers have them: at any offset, with rows further apart than they need to be, in
//! one buffer with everything else, and gradients over the input. The results are those of
//! contiguous tensors in buffers of their own, to the bit, and no other byte is touched.

mod common;

use common::call::{Call, Rows, judge, reference};
use common::gpu::{Device, devices, gpu};
use common::memory::{Arena, Job, args, array, every_op, output, parts, submit};
use common::random::{Logits, Random};
use wgloss::wgpu::{self, BufferUsages};
use wgloss::{
    Args, Array, Bce, CrossEntropy, DType, Error, Gpu, Layout, LogSoftmax, Mse, NllLoss, Output,
    Pass, Plan, Reduction, Sigmoid, Softmax, Tensor,
};

const PASSES: [Pass; 3] = [Pass::Forward, Pass::Backward, Pass::ForwardBackward];
const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];

/// Where a job's tensors are.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Where {
    /// Each somewhere in a buffer of its own.
    Apart,
    /// All in one buffer.
    OneBuffer,
    /// All in one buffer, and the gradient over the input.
    InPlace,
}

/// Where in its buffers a tensor begins, and how many elements lie between rows.
#[derive(Debug, Clone, Copy)]
struct Places {
    /// Tensors begin at a multiple of so many elements.
    unit: usize,
    padding: usize,
}

/// Anywhere: in 16 bits, in the middle of a word.
const ODD: Places = Places { unit: 1, padding: 2 };
/// Where four elements can be taken together.
const ALIGNED: Places = Places { unit: 4, padding: 4 };
/// One behind the other.
const CONTIGUOUS: Places = Places { unit: 1, padding: 0 };

/// Runs a job in the caller's buffers, and holds all of their bytes to the run apart. Tensors of the
/// input's shape are padded.
#[track_caller]
fn check_in(memory: Where, gpu: &Gpu, job: &Job, places: Places) {
    let what = format!("{} {memory:?} {places:?}", job.name());
    let want = job.run_apart(gpu);
    let mut arenas = vec![Arena::new(places.unit)];
    let mut place = |name, array: &Array<'_>| {
        if memory == Where::Apart {
            arenas.push(Arena::new(places.unit));
        }
        // weights are contiguous, whatever their shape
        let is_padded = name != "weight" && array.shape() == job.args[0].1.shape();
        let padding = if is_padded { places.padding } else { 0 };
        let last = arenas.len() - 1;
        (name, (last, arenas[last].place(array.layout(), padding)))
    };
    let inputs: Vec<_> = job.args.iter().map(|(name, array)| place(*name, array)).collect();
    let results: Vec<_> = want
        .iter()
        .map(|(name, array)| match (*name, memory) {
            ("grad", Where::InPlace) => ("grad", inputs[0].1.clone()),
            _ => place(*name, array),
        })
        .collect();
    for ((_, (arena, layout)), (_, array)) in inputs.iter().zip(&job.args) {
        arenas[*arena].put(layout, array);
    }
    let buffers: Vec<_> = arenas.iter().map(|arena| arena.upload(gpu)).collect();

    let of_args = |args: Args<Tensor>| match memory {
        Where::Apart => args,
        Where::OneBuffer => args.one_buffer(),
        Where::InPlace => args.in_place(),
    };
    let wrap = |(name, (arena, layout)): &(&'static str, (usize, Layout))| {
        (*name, Tensor::from_buffer(buffers[*arena].clone(), layout.clone()).unwrap())
    };
    let tensors = of_args(args(inputs.iter().map(wrap)));
    let all = output(results.iter().map(wrap));
    let layouts = output(parts(&all).into_iter().map(|(name, tensor)| match name {
        // where the status goes is told at encoding
        "status" => (name, Layout::new(&[8], DType::I32)),
        _ => (name, tensor.layout().clone()),
    }));
    let plan = gpu.block_on(gpu.plan_into(&*job.op, job.pass, &tensors.layouts(), &layouts));
    let plan = plan.unwrap_or_else(|error| panic!("{what}: {error}"));
    let given = Output { grad: all.grad.clone().filter(|_| memory != Where::InPlace), ..all.clone() };
    submit(&plan, gpu, &tensors, &given);

    for ((_, (arena, layout)), (_, array)) in results.iter().zip(&want) {
        arenas[*arena].put(layout, array);
    }
    for (arena, buffer) in arenas.iter().zip(&buffers) {
        arena.expect(gpu, buffer, &what);
    }
    // and what is read back is the array that it is
    for ((name, got), (_, want)) in parts(&all).into_iter().zip(&want) {
        let got = gpu.block_on(gpu.read(got)).unwrap();
        assert_eq!(got.data().bytes(), want.data().bytes(), "{what}: {name}");
    }
}

/// The kinds of kernel: rows with classes and with probabilities, row maps, picked, elements, maps.
fn one_of_each_kind(shape: &[usize], dtype: DType, pass: Pass) -> Vec<Job> {
    let jobs = every_op(shape, dtype, Reduction::None, pass);
    let mut names = vec![];
    let is_new = |job: &Job| {
        let is_wanted = ["cross_entropy", "nll_loss", "softmax", "mse", "sigmoid"]
            .contains(&job.op.name());
        names.push(job.op.name());
        is_wanted && names.iter().filter(|&&name| name == job.op.name()).count() != 2
    };
    let mut is_new = is_new;
    jobs.into_iter().filter(|job| is_new(job)).collect()
}

#[test]
fn every_op_in_one_buffer() {
    // Nine classes, two apart: rows begin at odd and at even places, in 16 bits in the middle of
    // words that belong to two rows or to two tensors.
    let Some(gpu) = gpu() else { return };
    for pass in PASSES {
        for dtype in FLOATS {
            let is_bf16 = dtype == DType::Bf16;
            let jobs = every_op(&[5, 9], dtype, Reduction::None, pass);
            for job in jobs.iter().filter(|_| !is_bf16 || pass == Pass::ForwardBackward) {
                check_in(Where::OneBuffer, gpu, job, ODD);
            }
        }
    }
    // padded rows whose elements are no multiple of four are summed in another order
    for job in every_op(&[5, 9], DType::F32, Reduction::Mean, Pass::ForwardBackward) {
        check_in(Where::OneBuffer, gpu, &job, CONTIGUOUS);
    }
}

#[test]
fn groups_of_four_in_one_buffer_or_many() {
    // Twelve classes: contiguous tensors are taken in groups of four. Those of the caller are where
    // they are aligned, and by the element otherwise, with the same results.
    let Some(gpu) = gpu() else { return };
    for dtype in FLOATS {
        for job in one_of_each_kind(&[5, 12], dtype, Pass::ForwardBackward) {
            check_in(Where::OneBuffer, gpu, &job, ALIGNED);
            check_in(Where::Apart, gpu, &job, ALIGNED);
            check_in(Where::Apart, gpu, &job, ODD);
        }
    }
    let mean = every_op(&[5, 12], DType::F16, Reduction::Mean, Pass::ForwardBackward);
    for job in mean.iter().filter(|job| ["cross_entropy", "mse"].contains(&job.op.name())) {
        check_in(Where::Apart, gpu, job, ALIGNED);
    }
}

#[test]
fn classes_that_lie_apart_in_one_buffer() {
    // [N, C, d]: neighbouring rows share every word in 16 bits.
    let Some(gpu) = gpu() else { return };
    for dtype in FLOATS {
        for job in one_of_each_kind(&[2, 6, 3], dtype, Pass::ForwardBackward) {
            check_in(Where::OneBuffer, gpu, &job, Places { unit: 1, padding: 1 });
        }
    }
}

// ---- in place ----

/// What may be computed in place: gradients, but for a loss whose gradient would be written over
/// entries that it has yet to pick.
fn in_place(job: &Job) -> bool {
    job.pass != Pass::Forward && !(job.op.name() == "nll_loss" && job.pass != Pass::Backward)
}

/// Cross entropy that takes the same way in place as it does apart: its amounts are spread over the
/// row already.
fn same_way(job: &Job) -> bool {
    job.op.name() != "cross_entropy" || job.args.iter().any(|(name, _)| *name == "weight")
}

#[test]
fn every_gradient_over_its_input() {
    let Some(gpu) = gpu() else { return };
    for pass in [Pass::Backward, Pass::ForwardBackward] {
        let jobs = every_op(&[5, 9], DType::F32, Reduction::None, pass);
        for job in jobs.iter().filter(|job| in_place(job) && same_way(job)) {
            check_in(Where::InPlace, gpu, job, ODD);
        }
    }
    for job in every_op(&[5, 9], DType::Bf16, Reduction::None, Pass::Backward) {
        if same_way(&job) {
            check_in(Where::InPlace, gpu, &job, ODD);
        }
    }
}

#[test]
fn long_rows_over_their_input_on_every_team() {
    // Rows of several blocks for every member, and stretches for several teams.
    for Device { name, gpu } in devices() {
        println!("kernels: {name}");
        for (dtype, classes) in [(DType::F32, 2052), (DType::F16, 2049)] {
            let jobs = every_op(&[9, classes], dtype, Reduction::None, Pass::ForwardBackward);
            let wanted = ["cross_entropy", "softmax", "log_softmax", "mse"];
            let jobs = jobs.iter().filter(|job| wanted.contains(&job.op.name()));
            for job in jobs.filter(|job| same_way(job)) {
                check_in(Where::InPlace, &gpu, job, CONTIGUOUS);
            }
        }
    }
}

#[test]
fn plain_cross_entropy_over_its_input() {
    // It meets the target's logit on the way instead of looking it up: held to the promise, and
    // the same to the bit every time.
    for Device { name, gpu } in devices() {
        println!("kernels: {name}");
        let mut random = Random::new(21);
        for kind in Logits::ALL {
            for shape in [&[40, 33][..], &[3, 5001], &[2, 7, 5]] {
                let rows = Rows::random(&mut random, kind, shape).reduced(Reduction::Mean);
                let want = reference(&rows, Pass::ForwardBackward);
                let run = || {
                    let args = rows.args(Pass::ForwardBackward).in_place();
                    gpu.block_on(gpu.run(&*rows.op(), Pass::ForwardBackward, &args)).unwrap()
                };
                let got = run();
                if let Err(message) = judge(&rows, &got, &want) {
                    panic!("{message}\n{rows:#?}");
                }
                assert_eq!(common::call::bits(&run()), common::call::bits(&got));
            }
        }
    }
}
