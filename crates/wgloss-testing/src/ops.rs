//! Ops by what they say of themselves: every list of ops in tests, benches and the program comes from
//! here.

use wgloss::options::{Kind, Value};
use wgloss::{Op, Reduction};

/// The op of this name, with its defaults.
pub fn find(name: &str) -> Option<Box<dyn Op>> {
    wgloss::ops().into_iter().find(|op| op.name() == name)
}

/// All ops of a kind, with their defaults.
pub fn of(is_wanted: impl Fn(Kind) -> bool) -> impl Iterator<Item = Box<dyn Op>> {
    wgloss::ops().into_iter().filter(move |op| is_wanted(op.kind()))
}

/// The value of an option, where the op has it.
pub fn option(op: &dyn Op, name: &str) -> Option<Value> {
    op.options().into_iter().find(|info| info.name == name).map(|info| info.value)
}

/// The value of an option that is a whole number.
pub fn integer(op: &dyn Op, name: &str) -> Option<i64> {
    match option(op, name)? {
        Value::Integer(value) => Some(value),
        _ => None,
    }
}

/// The reductions that an op takes: maps have none.
pub fn reductions(op: &dyn Op) -> Vec<Reduction> {
    let info = op.options().into_iter().find(|info| info.name == "reduction");
    let samples = info.map(|info| info.samples).unwrap_or_default();
    let reduction = |value| match value {
        Value::Reduction(reduction) => Some(reduction),
        _ => None,
    };
    samples.into_iter().filter_map(reduction).collect()
}

/// The op with another reduction; maps as they are.
pub fn reduced(mut op: Box<dyn Op>, reduction: Reduction) -> Box<dyn Op> {
    if option(&*op, "reduction").is_some() {
        op.set("reduction", Value::Reduction(reduction)).expect("a reduction of the op");
    }
    op
}

/// An op with every combination of its options that are yes or no: what arguments are may depend on
/// them, and kernels do.
pub fn variants(op: Box<dyn Op>) -> Vec<Box<dyn Op>> {
    let mut variants = vec![op];
    for info in variants[0].options() {
        if let Value::Bool(default) = info.value {
            let others = variants.clone();
            variants.extend(others.into_iter().map(|mut op| {
                op.set(info.name, Value::Bool(!default)).expect("yes or no");
                op
            }));
        }
    }
    variants
}
