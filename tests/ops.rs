//! Every op, on every family of kernels, held to the promise against the float64 reference: the
//! table is that of `wgloss check`.

use std::cell::Cell;

use wgloss::{Array, DType, Pass, Role, Team, reference};
use wgloss_testing::devices::{Device, own_devices};
use wgloss_testing::table::{self, Case, Row};

/// Holds a row's cases that are wanted to the promise, under every pass.
fn hold(device: &Device, row: &Row, is_wanted: impl Fn(&Case<'_>) -> bool) {
    for case in row.cases().into_iter().filter(is_wanted) {
        let what = format!("{} {} {}: {}", device.name, row.op(), row.options, case.name());
        let passes = case.check(|op, pass, args| {
            device.gpu.block_on(device.gpu.run(op, pass, args)).map_err(|e| e.to_string())
        });
        for (pass, worst) in table::PASSES.iter().zip(passes.unwrap()) {
            worst.unwrap_or_else(|e| panic!("{what}: {}: {e}", pass.name()));
        }
    }
}

/// The automatic choice. A device a row: rows share few kernels, and no device keeps them all. Most of
/// the time goes into compiling, and a row's options into every storage type's kernels alike: an op's
/// first row is held in 16 bits over all shapes, each other one over every third.
fn hold_rows(is_wanted: impl Fn(&Row) -> bool) {
    for rows in table::table().chunk_by(|a, b| a.op() == b.op()) {
        for (i, row) in rows.iter().enumerate().filter(|(_, row)| is_wanted(row)) {
            let halves = Cell::new(i);
            let is_wanted = |case: &Case<'_>| {
                let is_half = case.dtype() != DType::F32;
                halves.set(halves.get() + usize::from(is_half));
                let is_left_out = is_half && i > 0 && halves.get() % 3 != 0;
                !is_left_out && case.elements() <= 25_000
            };
            for device in own_devices().take(1) {
                hold(&device, row, is_wanted);
            }
        }
    }
}

#[test]
fn cross_entropy_keeps_the_promise() {
    hold_rows(|row| row.op() == "cross_entropy");
}

#[test]
fn every_other_op_keeps_the_promise() {
    hold_rows(|row| row.op() != "cross_entropy");
}

/// A forced team does on small shapes all that it does. The automatic choice takes invocations for
/// few classes and subgroups for many, so with these an op's first row will do; workgroups it never
/// takes on software devices. Storage is independent of both: one row of an op in 16 bits will do.
#[test]
fn every_op_keeps_the_promise_on_every_team() {
    let is_small = |case: &Case<'_>| case.elements() <= 150;
    for mut device in own_devices().skip(1) {
        for rows in table::table().chunk_by(|a, b| a.op() == b.op()) {
            device.renew();
            let [first, others @ ..] = rows else { continue };
            hold(&device, first, is_small);
            if device.name == Team::Workgroup.name() {
                let is_wanted = |case: &Case<'_>| is_small(case) && case.dtype() == DType::F32;
                others.iter().for_each(|row| hold(&device, row, is_wanted));
            }
        }
    }
}

/// Results of a case that come from the reference, changed.
fn changed(case: &Case<'_>, change: impl Fn(Pass, &mut Vec<f32>)) -> [Result<f64, String>; 3] {
    let passes = case.check(|op, pass, args| {
        let want = reference::run(op, pass, args).map_err(|e| e.to_string())?;
        let part = |(role, values): (Role, reference::Values)| {
            let mut rounded: Vec<f32> = values.values.iter().map(|&v| v as f32).collect();
            change(pass, &mut rounded);
            (role, Array::from_vec(rounded, &values.shape).unwrap())
        };
        Ok(want.into_iter().map(part).collect())
    });
    passes.unwrap()
}

/// A table whose bounds are too wide, or that leaves a pass out, would pass everything.
#[test]
fn the_table_notices_what_is_wrong() {
    let (mut noticed, mut count) = (0, 0);
    for row in table::table() {
        for case in row.cases().into_iter().filter(|case| case.elements() <= 150) {
            let what = format!("{} {}: {}", row.op(), row.options, case.name());
            let same = changed(&case, |_, _| {});
            assert!(same.iter().all(|r| r.as_ref().is_ok_and(|units| *units < 1.0)), "{what}");
            for pass in table::PASSES {
                // one NaN in place of a number: always, and in this pass alone
                let is_there = Cell::new(false);
                let off = changed(&case, |p, values| {
                    let number = values.iter_mut().find(|v| p == pass && !v.is_nan());
                    number.into_iter().for_each(|v| {
                        *v = f32::NAN;
                        is_there.set(true);
                    });
                });
                for (p, result) in table::PASSES.into_iter().zip(off) {
                    let is_right = result.is_err() == (is_there.get() && p == pass);
                    assert!(is_right, "{what}: {}: {result:?}", p.name());
                }
                // an error of 1e-4: but for sums whose terms nearly cancel, where T is far larger
                let is_there = Cell::new(false);
                let off = changed(&case, |p, values| {
                    for v in values.iter_mut().filter(|_| p == pass) {
                        is_there.set(is_there.get() || v.is_finite() && v.abs() > 1e-20);
                        *v *= 1.0001;
                    }
                });
                count += usize::from(is_there.get());
                noticed += usize::from(is_there.get() && off.iter().any(Result::is_err));
            }
        }
    }
    println!("{noticed} of {count}");
    assert!(noticed * 100 > count * 97, "{noticed} of {count}");
}
