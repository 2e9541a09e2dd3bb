//! Streams of batches against single calls: results, order, what is in flight when, errors, memory.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};

use wgloss::{
    Args, Array, BceWithLogits, CrossEntropy, Error, Gpu, GpuOptions, Pass, Sigmoid, wgpu,
};
use wgloss_testing::call::bits;
use wgloss_testing::devices::{gpu, open};
use wgloss_testing::random::Random;

const CLASSES: usize = 7;

/// A batch of this many rows.
fn batch(random: &mut Random, rows: usize) -> Args<Array<'static>> {
    let logits = (0..rows * CLASSES).map(|_| random.normal() as f32).collect();
    let target = (0..rows).map(|_| random.below(CLASSES) as i64).collect();
    Args::new(Array::from_vec::<f32>(logits, &[rows, CLASSES]).unwrap())
        .target(Array::from_vec::<i64>(target, &[rows]).unwrap())
}

/// Batches of several sizes: equal ones in a row, a change and back, an empty one, a short last one.
fn batches() -> Vec<Args<Array<'static>>> {
    let mut random = Random::new(1);
    [64, 64, 64, 5, 64, 0, 1, 64, 64, 33].map(|rows| batch(&mut random, rows)).into()
}

fn op() -> CrossEntropy {
    CrossEntropy::default().label_smoothing(0.1).row_outputs(true).keep_state(true)
}

#[test]
fn results_are_those_of_single_calls_in_order() {
    let Some(gpu) = &gpu() else { return };
    let op = op();
    for pass in [Pass::Forward, Pass::Backward, Pass::ForwardBackward] {
        let single = |args| bits(&gpu.block_on(gpu.run(&op, pass, args)).unwrap());
        let expected: Vec<_> = batches().iter().map(single).collect();
        for limit in [0, 1, 2, 3, 100] {
            let stream = gpu.stream(&op, pass).in_flight(limit);
            let got: Vec<_> =
                stream.blocking(batches()).map(|output| bits(&output.unwrap())).collect();
            assert_eq!(got, expected, "{pass:?}, {limit} in flight");
        }
    }
    let none = gpu.stream(&op, Pass::Forward).blocking(Vec::new()).count();
    assert_eq!(none, 0);
}

/// What a caller sees of a batch, by its index.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Event {
    /// It was asked for, to be submitted at once.
    Asked(usize),
    /// Its results have come.
    Read(usize),
}

/// What happened in a stream of ten batches.
fn events(gpu: &Gpu, limit: usize) -> Vec<Event> {
    let events = RefCell::new(Vec::new());
    let op = op();
    let stream = gpu.stream(&op, Pass::ForwardBackward).in_flight(limit);
    let batches = batches().into_iter().enumerate();
    let batches = batches.inspect(|(i, _)| events.borrow_mut().push(Event::Asked(*i)));
    for (i, output) in stream.blocking(batches.map(|(_, args)| args)).enumerate() {
        assert!(output.is_ok());
        events.borrow_mut().push(Event::Read(i));
    }
    events.into_inner()
}

#[test]
fn the_next_batch_is_submitted_before_the_last_is_read() {
    let Some(gpu) = &gpu() else { return };
    for limit in 1..=4 {
        let events = events(gpu, limit);
        assert_eq!(events.len(), 20, "{events:?}");
        let place = |event| events.iter().position(|&e| e == event).unwrap();
        for i in 0..10 {
            assert!(place(Event::Asked(i)) < place(Event::Read(i)), "{events:?}");
        }
        for i in 0..9 {
            let overlaps = place(Event::Asked(i + 1)) < place(Event::Read(i));
            assert_eq!(overlaps, limit > 1, "{limit} in flight: {events:?}");
            assert!(place(Event::Asked(i)) < place(Event::Asked(i + 1)));
            assert!(place(Event::Read(i)) < place(Event::Read(i + 1)));
        }
        let (mut in_flight, mut most) = (0, 0);
        for event in &events {
            match event {
                Event::Asked(_) => in_flight += 1,
                Event::Read(_) => in_flight -= 1,
            }
            most = most.max(in_flight);
        }
        assert_eq!((most, in_flight), (limit, 0), "{events:?}");
    }
}

/// Batches that are pushed: nothing comes back before as many as may be are in flight.
#[test]
fn results_come_when_there_is_no_room_for_another_batch() {
    let Some(gpu) = &gpu() else { return };
    let (op, all) = (op(), batches());
    for limit in 1..=4 {
        let mut stream = gpu.stream(&op, Pass::ForwardBackward).in_flight(limit);
        let mut outputs = Vec::new();
        for (i, args) in all.iter().enumerate() {
            let output = gpu.block_on(stream.push(args));
            assert_eq!(output.is_some(), i >= limit, "batch {i}, {limit} in flight");
            outputs.extend(output);
        }
        for left in (0..limit).rev() {
            outputs.extend(gpu.block_on(stream.next()));
            assert_eq!(outputs.len(), 10 - left);
        }
        assert!(gpu.block_on(stream.next()).is_none());
        for (output, args) in outputs.iter().zip(&all) {
            let want = gpu.block_on(gpu.run(&op, Pass::ForwardBackward, args)).unwrap();
            assert_eq!(bits(output.as_ref().unwrap()), bits(&want));
        }
    }
}

#[test]
fn a_bad_batch_is_named_and_the_others_are_not_concerned() {
    let Some(gpu) = &gpu() else { return };
    let op = op();
    let mut all = batches();
    let mut random = Random::new(2);
    all[2] = batch(&mut random, 8).target(Array::from_vec::<i64>(vec![7; 8], &[8]).unwrap());
    all[9] = batch(&mut random, 8).target(Array::from_vec::<i64>(vec![1; 9], &[9]).unwrap());
    let stream = gpu.stream(&op, Pass::ForwardBackward).in_flight(3);
    let results: Vec<_> = stream.blocking(all.clone()).collect();
    assert_eq!(results.len(), 10);
    for (i, (result, args)) in results.iter().zip(&all).enumerate() {
        let expected = gpu.block_on(gpu.run(&op, Pass::ForwardBackward, args));
        match (result, expected) {
            (Ok(output), Ok(expected)) => assert_eq!(bits(output), bits(&expected)),
            (Err(Error::Batch { index, error }), Err(expected)) => {
                assert_eq!((*index, &**error), (i, &expected));
            }
            (result, expected) => panic!("batch {i}: {result:?} instead of {expected:?}"),
        }
        assert_eq!(result.is_err(), [2, 9].contains(&i));
    }
    let message = results[2].as_ref().unwrap_err().to_string();
    assert_eq!(message, "batch 2: target: expected a class in 0..7 at row 0, got 7");
}

/// No executor of this crate, and another thread that polls the device.
#[test]
fn streams_are_awaited_without_blocking() {
    let Some(gpu) = &gpu() else { return };
    let (op, all, done) = (op(), batches(), AtomicBool::new(false));
    let run = async || {
        let mut outputs = Vec::new();
        let mut stream = gpu.stream(&op, Pass::ForwardBackward);
        for args in &all {
            outputs.extend(stream.push(args).await);
        }
        while let Some(output) = stream.next().await {
            outputs.push(output);
        }
        outputs
    };
    let outputs = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                gpu.device().poll(wgpu::PollType::Poll).unwrap();
                std::thread::yield_now();
            }
        });
        let outputs = pollster::block_on(run());
        done.store(true, Ordering::Relaxed);
        outputs
    });
    assert_eq!(outputs.len(), all.len());
    for (output, args) in outputs.iter().zip(&all) {
        let expected = gpu.block_on(gpu.run(&op, Pass::ForwardBackward, args)).unwrap();
        assert_eq!(bits(output.as_ref().unwrap()), bits(&expected));
    }
}

/// Several threads share a device and what is kept of its memory.
#[test]
fn streams_of_several_threads_do_not_mix() {
    let Some(gpu) = &gpu() else { return };
    let (op, all) = (op(), batches());
    let single = |args| bits(&gpu.block_on(gpu.run(&op, Pass::ForwardBackward, args)).unwrap());
    let expected: Vec<_> = all.iter().map(single).collect();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (op, all, expected) = (&op, &all, &expected);
            scope.spawn(move || {
                for round in 0..5 {
                    let stream = gpu.stream(op, Pass::ForwardBackward).in_flight(1 + thread);
                    let outputs = stream.blocking(all.iter().cloned());
                    let got: Vec<_> = outputs.map(|output| bits(&output.unwrap())).collect();
                    assert!(got == *expected, "thread {thread}, round {round}");
                }
            });
        }
    });
}

/// A wait that is given up loses nothing.
#[test]
fn a_wait_may_be_given_up() {
    use std::task::{Context, Poll, Waker};

    let Some(gpu) = &gpu() else { return };
    let (op, all) = (op(), batches());
    let mut stream = gpu.stream(&op, Pass::Forward).in_flight(3);
    for args in &all[..2] {
        assert!(gpu.block_on(stream.push(args)).is_none());
    }
    let mut pending = 0;
    for _ in 0..3 {
        let next = std::pin::pin!(stream.next());
        match next.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => pending += 1,
            // nobody polls the device here, but a driver may be that fast
            Poll::Ready(_) => return,
        }
    }
    assert_eq!(pending, 3);
    for args in &all[..2] {
        let expected = gpu.block_on(gpu.run(&op, Pass::Forward, args)).unwrap();
        let output = gpu.block_on(stream.next()).unwrap().unwrap();
        assert_eq!(bits(&output), bits(&expected));
    }
    assert!(gpu.block_on(stream.next()).is_none());
}

#[test]
fn a_lost_device_ends_every_batch_with_an_error() {
    let Some(gpu) = open(&GpuOptions::default()) else { return };
    let op = op();
    let mut seen = 0;
    let mut lost = Vec::new();
    for (i, output) in gpu.stream(&op, Pass::Forward).blocking(batches()).enumerate() {
        seen += 1;
        match output {
            Ok(_) => {}
            Err(Error::Batch { index, error }) if matches!(*error, Error::DeviceLost(_)) => {
                assert_eq!(index, i);
                lost.push(index);
            }
            Err(error) => panic!("{error}"),
        }
        if i == 3 {
            gpu.device().destroy();
        }
    }
    assert_eq!(seen, 10);
    // those that were in flight may have been done
    assert!(lost.len() >= 4 && lost.last() == Some(&9), "{lost:?}");
}

/// The bytes of the device's buffers; None where the backend does not tell.
fn allocated(gpu: &Gpu) -> Option<u64> {
    Some(gpu.device().generate_allocator_report()?.allocations.iter().map(|a| a.size).sum())
}

/// A device of the test's own, which others do not allocate on.
#[test]
fn memory_is_used_again_and_can_be_freed() {
    let Some(gpu) = open(&GpuOptions::default()) else { return };
    let Some(fresh) = allocated(&gpu) else { return };
    let op = BceWithLogits::default();
    let values = vec![0.5_f32; 100_000];
    let array = Array::from(&values);
    let args = Args::new(array.clone()).target(array.clone());
    let bytes = array.layout().bytes();
    let stream = |count: usize| {
        let stream = gpu.stream(&op, Pass::ForwardBackward).in_flight(2);
        stream.blocking(std::iter::repeat_n(args.clone(), count)).for_each(|o| drop(o.unwrap()));
        allocated(&gpu).unwrap()
    };
    // input, target and gradient; staging buffers for two batches, and one before it is idle again, which
    // depends on when the driver tells: however many batches there are
    let expect_few = |count| {
        let few = stream(count);
        assert!((3 * bytes..=13 * bytes).contains(&(few - fresh)), "{fresh} {few}, {bytes} each");
    };
    expect_few(3);
    expect_few(300);
    for _ in 0..10 {
        gpu.block_on(gpu.run(&op, Pass::ForwardBackward, &args)).unwrap();
        let tensor = gpu.block_on(gpu.upload(&array)).unwrap();
        gpu.block_on(gpu.read(&tensor)).unwrap();
    }
    expect_few(3);
    gpu.trim();
    gpu.device().poll(wgpu::PollType::wait_indefinitely()).unwrap();
    let trimmed = allocated(&gpu).unwrap();
    assert!(trimmed < fresh + bytes, "{fresh} {trimmed}");
}

/// What is kept is bounded: the buffers of 200 sizes would be 600, and those of their plans 400.
#[test]
fn few_buffers_are_kept() {
    let Some(gpu) = open(&GpuOptions::default()) else { return };
    for length in 1..=200 {
        let values = vec![0.0_f32; 4 * length];
        let args = Args::new(Array::from(&values));
        gpu.block_on(gpu.run(&Sigmoid, Pass::Forward, &args)).unwrap();
    }
    let count = || Some(gpu.device().generate_allocator_report()?.allocations.len());
    let Some(kept) = count() else { return };
    // 128 buffers, and 64 plans with two each
    assert!(kept < 300, "{kept}");
    gpu.trim();
    gpu.device().poll(wgpu::PollType::wait_indefinitely()).unwrap();
    let trimmed = count().unwrap();
    assert!(trimmed < 20, "{trimmed} of {kept}");
}
