//! What an op says of itself: its kind, its options, and what tells it from others.
//!
//! Each is declared once, next to the op. Flags of the command line, parameters of conformance cases,
//! random calls in tests and the workloads of benches follow from that.
//!
//! ```
//! use wgloss::options::Value;
//!
//! let mut op = wgloss::ops().into_iter().find(|op| op.name() == "sigmoid_focal").unwrap();
//! op.set("gamma", Value::Number(1.5))?;
//! let names: Vec<_> = op.options().iter().map(|info| info.name).collect();
//! assert_eq!(names, ["reduction", "alpha", "gamma"]);
//! assert_eq!(op.options()[2].value, Value::Number(1.5));
//! # Ok::<_, wgloss::Error>(())
//! ```

use std::any::TypeId;
use std::fmt;
use std::hash::{Hash, Hasher};

use crate::{Error, Reduction, Result};

/// The value of an option. Numbers are equal by their bits, so that NaN is NaN.
#[derive(Debug, Clone, Copy)]
pub enum Value {
    /// Yes or no.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// A number.
    Number(f64),
    /// A number, or none.
    Optional(Option<f64>),
    /// How losses become the result.
    Reduction(Reduction),
}

impl Value {
    /// Which variant it is, and its bits.
    fn bits(self) -> (u8, u64) {
        match self {
            Value::Bool(value) => (0, value.into()),
            Value::Integer(value) => (1, value.cast_unsigned()),
            Value::Number(value) => (2, value.to_bits()),
            Value::Optional(None) => (3, 0),
            Value::Optional(Some(value)) => (4, value.to_bits()),
            Value::Reduction(value) => (5, value as u64),
        }
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        self.bits() == other.bits()
    }
}

impl Eq for Value {}

impl Hash for Value {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.bits().hash(state);
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Bool(value) => value.fmt(f),
            Value::Integer(value) => value.fmt(f),
            // 1e-8 rather than 0.00000001, and 1e39 rather than forty digits
            Value::Number(value) | Value::Optional(Some(value)) => match value.abs() {
                size if size.is_finite() && size != 0.0 && !(1e-3..1e16).contains(&size) => {
                    write!(f, "{value:e}")
                }
                _ => value.fmt(f),
            },
            Value::Optional(None) => f.write_str("none"),
            Value::Reduction(value) => f.write_str(value.name()),
        }
    }
}

/// An option of an op, and the value that it has.
#[derive(Debug, Clone, PartialEq)]
pub struct Info {
    /// Its name: that of the builder's method, and PyTorch's where PyTorch has it.
    pub name: &'static str,
    /// What it does, in a line.
    pub doc: &'static str,
    /// What it accepts.
    pub expected: String,
    /// The value that it has.
    pub value: Value,
    /// Values to try: all that it accepts where they are few, otherwise common ones and the ends of
    /// what is accepted.
    pub samples: Vec<Value>,
}

impl Info {
    /// Reads a value from its text, such as `0.25`, `-inf`, `true` or `mean`.
    ///
    /// # Errors
    /// [`Error::Value`] that names the option.
    pub fn parse(&self, text: &str) -> Result<Value> {
        let value = match self.value {
            Value::Bool(_) => text.parse().ok().map(Value::Bool),
            Value::Integer(_) => text.parse().ok().map(Value::Integer),
            Value::Number(_) => text.parse().ok().map(Value::Number),
            Value::Optional(_) if text == "none" => Some(Value::Optional(None)),
            Value::Optional(_) => text.parse().ok().map(|value| Value::Optional(Some(value))),
            Value::Reduction(_) => {
                self.samples.iter().copied().find(|sample| sample.to_string() == text)
            }
        };
        value.ok_or_else(|| Error::Value {
            argument: self.name,
            expected: self.expected.clone(),
            actual: text.into(),
        })
    }
}

/// An option of ops of type `O`, as it is declared.
#[derive(Debug)]
pub struct Opt<O> {
    name: &'static str,
    doc: &'static str,
    field: Field<O>,
}

/// Where its value stands, and what that may be.
#[derive(Debug)]
enum Field<O> {
    Bool(fn(&mut O) -> &mut bool),
    Integer { samples: &'static [i64], at: fn(&mut O) -> &mut i64 },
    Number { range: Range, at: fn(&mut O) -> &mut f64 },
    Optional { range: Range, at: fn(&mut O) -> &mut Option<f64> },
    Reduction { allowed: &'static [Reduction], at: fn(&mut O) -> &mut Reduction },
}

/// What an option that is a number accepts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Range {
    /// In words.
    expected: &'static str,
    /// Whether infinities and NaN are among them, as far as `accepts` says yes.
    has_infinities: bool,
    accepts: fn(f64) -> bool,
    samples: &'static [f64],
}

/// Finite numbers that `accepts` says yes to.
pub(crate) const fn finite(
    expected: &'static str,
    accepts: fn(f64) -> bool,
    samples: &'static [f64],
) -> Range {
    Range { expected, has_infinities: false, accepts, samples }
}

/// Finite numbers above 0.
pub(crate) const fn positive(samples: &'static [f64]) -> Range {
    finite("a finite number above 0", |v| v > 0.0, samples)
}

/// Numbers above 0, infinity too.
pub(crate) const fn positive_or_infinite(samples: &'static [f64]) -> Range {
    Range { expected: "a number above 0", has_infinities: true, accepts: |v| v > 0.0, samples }
}

/// Any number, infinities and NaN too.
pub(crate) const fn any(samples: &'static [f64]) -> Range {
    Range { expected: "any number", has_infinities: true, accepts: |_| true, samples }
}

/// Yes or no.
pub(crate) const fn flag<O>(
    name: &'static str,
    doc: &'static str,
    at: fn(&mut O) -> &mut bool,
) -> Opt<O> {
    Opt { name, doc, field: Field::Bool(at) }
}

/// A whole number.
pub(crate) const fn integer<O>(
    name: &'static str,
    doc: &'static str,
    samples: &'static [i64],
    at: fn(&mut O) -> &mut i64,
) -> Opt<O> {
    Opt { name, doc, field: Field::Integer { samples, at } }
}

/// A number, worked with in float64 and rounded to f32 once.
pub(crate) const fn number<O>(
    name: &'static str,
    doc: &'static str,
    range: Range,
    at: fn(&mut O) -> &mut f64,
) -> Opt<O> {
    Opt { name, doc, field: Field::Number { range, at } }
}

/// A number or none.
pub(crate) const fn optional<O>(
    name: &'static str,
    doc: &'static str,
    range: Range,
    at: fn(&mut O) -> &mut Option<f64>,
) -> Opt<O> {
    Opt { name, doc, field: Field::Optional { range, at } }
}

/// The reduction: one of `allowed`.
pub(crate) const fn reduction<O>(
    allowed: &'static [Reduction],
    at: fn(&mut O) -> &mut Reduction,
) -> Opt<O> {
    let doc = "How the losses of rows or elements become the result";
    Opt { name: "reduction", doc, field: Field::Reduction { allowed, at } }
}

/// The reductions of most losses.
pub(crate) const REDUCTIONS: &[Reduction] = &[Reduction::None, Reduction::Mean, Reduction::Sum];

impl<O: Clone> Opt<O> {
    fn get(&self, op: &O) -> Value {
        // one accessor serves reading too
        let op = &mut op.clone();
        match &self.field {
            Field::Bool(at) => Value::Bool(*at(op)),
            Field::Integer { at, .. } => Value::Integer(*at(op)),
            Field::Number { at, .. } => Value::Number(*at(op)),
            Field::Optional { at, .. } => Value::Optional(*at(op)),
            Field::Reduction { at, .. } => Value::Reduction(*at(op)),
        }
    }

    /// Puts a value where it belongs; whether it is of the right variant.
    fn put(&self, op: &mut O, value: Value) -> bool {
        match (&self.field, value) {
            (Field::Bool(at), Value::Bool(value)) => *at(op) = value,
            (Field::Integer { at, .. }, Value::Integer(value)) => *at(op) = value,
            (Field::Number { at, .. }, Value::Number(value)) => *at(op) = value,
            (Field::Optional { at, .. }, Value::Optional(value)) => *at(op) = value,
            (Field::Reduction { at, .. }, Value::Reduction(value)) => *at(op) = value,
            _ => return false,
        }
        true
    }

    fn expected(&self) -> String {
        match &self.field {
            Field::Bool(_) => "true or false".into(),
            Field::Integer { .. } => "an integer".into(),
            Field::Number { range, .. } | Field::Optional { range, .. } => range.expected.into(),
            Field::Reduction { allowed, .. } => {
                let names: Vec<_> = allowed.iter().map(|reduction| reduction.name()).collect();
                match &names[..] {
                    [others @ .., last] if !others.is_empty() => {
                        format!("{} or {last}", others.join(", "))
                    }
                    _ => names.join(""),
                }
            }
        }
    }

    fn samples(&self) -> Vec<Value> {
        match &self.field {
            Field::Bool(_) => [false, true].map(Value::Bool).to_vec(),
            Field::Integer { samples, .. } => samples.iter().copied().map(Value::Integer).collect(),
            Field::Number { range, .. } => {
                range.samples.iter().copied().map(Value::Number).collect()
            }
            Field::Optional { range, .. } => {
                let some = range.samples.iter().map(|&value| Some(value));
                std::iter::once(None).chain(some).map(Value::Optional).collect()
            }
            Field::Reduction { allowed, .. } => {
                allowed.iter().copied().map(Value::Reduction).collect()
            }
        }
    }

    /// Refuses a value outside what is accepted.
    fn check(&self, op: &O) -> Result<()> {
        match (&self.field, self.get(op)) {
            (
                Field::Number { range, .. } | Field::Optional { range, .. },
                Value::Number(value) | Value::Optional(Some(value)),
            ) if value.is_finite() || !range.has_infinities || !(range.accepts)(value) => {
                expect_number(self.name, value, range.expected, range.accepts)
            }
            (Field::Reduction { allowed, .. }, Value::Reduction(value))
                if !allowed.contains(&value) =>
            {
                Err(Error::Value {
                    argument: self.name,
                    expected: self.expected(),
                    actual: value.name().into(),
                })
            }
            _ => Ok(()),
        }
    }
}

/// Refuses a number that is not finite or out of range, also once it is rounded to f32, as kernels
/// have it.
pub(crate) fn expect_number(
    argument: &'static str,
    value: f64,
    expected: &str,
    accepts: impl Fn(f64) -> bool,
) -> Result<()> {
    let accepts = |value: f64| value.is_finite() && accepts(value);
    let expected = match (accepts(value), accepts(f64::from(value as f32))) {
        (true, true) => return Ok(()),
        (true, false) => format!("{expected}, in f32 too"),
        (false, _) => expected.into(),
    };
    Err(Error::Value { argument, expected, actual: value.to_string() })
}

/// An op's options, as tools see them.
pub(super) fn infos<O: Clone>(op: &O, options: &[Opt<O>]) -> Vec<Info> {
    let info = |option: &Opt<O>| Info {
        name: option.name,
        doc: option.doc,
        expected: option.expected(),
        value: option.get(op),
        samples: option.samples(),
    };
    options.iter().map(info).collect()
}

/// Whether one of these options has this name.
pub(super) fn has<O>(options: &[Opt<O>], name: &str) -> bool {
    options.iter().any(|option| option.name == name)
}

/// Sets an option by its name.
pub(super) fn set<O: Clone>(
    op: &mut O,
    options: &[Opt<O>],
    name: &str,
    value: Value,
) -> Result<()> {
    let Some(option) = options.iter().find(|option| option.name == name) else {
        let names: Vec<_> = options.iter().map(|option| option.name).collect();
        return Err(unknown(&names, name));
    };
    let mut changed = op.clone();
    if !option.put(&mut changed, value) {
        return Err(Error::Value {
            argument: option.name,
            expected: option.expected(),
            actual: value.to_string(),
        });
    }
    option.check(&changed)?;
    *op = changed;
    Ok(())
}

/// The error for an option that is none of these.
pub(super) fn unknown(names: &[&str], name: &str) -> Error {
    let expected = match names.len() {
        0 => "no options".into(),
        _ => format!("one of {}", names.join(", ")),
    };
    Error::Value { argument: "option", expected, actual: name.into() }
}

/// Refuses options outside what each accepts by itself.
pub(super) fn check<O: Clone>(op: &O, options: &[Opt<O>]) -> Result<()> {
    options.iter().try_for_each(|option| option.check(op))
}

/// The values of all options, in order.
pub(super) fn values<O: Clone>(op: &O, options: &[Opt<O>]) -> Vec<Value> {
    options.iter().map(|option| option.get(op)).collect()
}

/// The key of an op whose kernels depend on its options alone.
pub(super) fn key<O: Clone + 'static>(op: &O, options: &[Opt<O>]) -> Key {
    Key { op: TypeId::of::<O>(), values: values(op, options), constants: vec![] }
}

/// Equality and hash by the options' values, for ops with numbers among them: by bits, so that an op
/// whose `empty_mean` is NaN equals itself.
macro_rules! equal_by_options {
    ($op:ty) => {
        impl PartialEq for $op {
            fn eq(&self, other: &Self) -> bool {
                let of = |op| $crate::ops::options::values(op, Self::OPTIONS);
                of(self) == of(other)
            }
        }

        impl Eq for $op {}

        impl std::hash::Hash for $op {
            fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
                $crate::ops::options::values(self, Self::OPTIONS).hash(state);
            }
        }
    };
}
pub(super) use equal_by_options;

/// What tells an op with its options from any other.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// The op, whose kernel text is its type's.
    pub(crate) op: TypeId,
    pub(crate) values: Vec<Value>,
    /// What kernels depend on beyond that, where an op of the caller's own declares no options.
    pub(crate) constants: Vec<(&'static str, u32)>,
}

impl Key {
    /// That of the same op with other kernels.
    #[doc(hidden)]
    pub fn with(mut self, name: &'static str, value: u32) -> Self {
        self.constants.push((name, value));
        self
    }
}

/// What an op is: which arguments it takes, and what they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Kind {
    /// What it works on, and what it gives.
    pub family: Family,
    /// What its inputs are.
    pub input: Numbers,
    /// What its targets are; maps have none.
    pub target: Option<Target>,
    /// What `weight` weighs, where it takes one.
    pub weight: Option<Weight>,
    /// Whether it takes `pos_weight`, one an element.
    pub pos_weight: bool,
    /// Whether the fused pass can write the gradient over the input.
    pub fused_in_place: bool,
    /// Whether the gradient depends on the input. Where it does not, backward takes the input for its
    /// layout alone, and does not read it.
    pub grad_reads_input: bool,
    /// Whether it can keep its rows' state for backward, and give each row's logsumexp and argmax.
    pub row_outputs: bool,
}

impl Kind {
    /// Softmax and log-softmax.
    pub(crate) const ROW_MAP: Kind = Kind {
        family: Family::RowMap,
        input: Numbers::Logits,
        target: None,
        weight: None,
        pos_weight: false,
        fused_in_place: true,
        grad_reads_input: true,
        row_outputs: false,
    };
}

/// What an op works on, and what it gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// A loss of rows of classes: inputs are `[C]`, `[N, C]` or `[N, C, d1, ...]`.
    RowLoss,
    /// A loss of rows of classes whose logits are a product: inputs are hidden states `[..., D]`, and the
    /// projection is `[V, D]`.
    LinearLoss,
    /// A map of rows along the dimension of the option `dim`.
    RowMap,
    /// A loss of elements.
    ElementLoss,
    /// A map of elements.
    ElementMap,
}

impl Family {
    /// Whether it works on rows.
    pub fn has_rows(self) -> bool {
        matches!(self, Family::RowLoss | Family::LinearLoss | Family::RowMap)
    }

    /// Whether it gives losses, from targets; otherwise it is a map.
    pub fn is_loss(self) -> bool {
        matches!(self, Family::RowLoss | Family::LinearLoss | Family::ElementLoss)
    }
}

/// What numbers stand for: tests and benches draw them accordingly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Numbers {
    /// Any.
    Any,
    /// Logits: any, where large ones are confident.
    Logits,
    /// Scores: any, whose sign is compared with the target's.
    Scores,
    /// 1 and -1.
    Signs,
    /// In `[0, 1]`.
    Probabilities,
    /// The logarithms of probabilities: 0 or less.
    LogProbabilities,
    /// Counts or rates: 0 or more.
    Counts,
    /// The logarithms of rates: any, whose exponentials may overflow.
    LogRates,
}

/// What targets are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Target {
    /// A class a row: integers.
    Classes,
    /// A class a row, or, in the input's shape and type, a probability for each class.
    ClassesOrProbabilities,
    /// In the input's shape and type: these numbers, and what becomes of others.
    Numbers(Numbers, Others),
}

/// What becomes of numbers other than an argument should hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    /// They are taken, with the same promise.
    Taken,
    /// They are taken, without a promise.
    Unpromised,
    /// They are an error.
    Refused,
}

/// What `weight` weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// Classes: `[C]`.
    Classes,
    /// Elements: broadcast to the input.
    Elements,
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::ops::{Op, ops};

    #[test]
    fn names_are_unique_and_options_are_documented() {
        let names: HashSet<_> = ops().iter().map(|op| op.name()).collect();
        assert_eq!(names.len(), ops().len());
        for op in ops() {
            assert!(!op.about().is_empty() && !op.about().ends_with('.'), "{op:?}");
            let options = op.options();
            let names: HashSet<_> = options.iter().map(|info| info.name).collect();
            assert_eq!(names.len(), options.len(), "{op:?}");
            for info in options {
                assert!(!info.doc.is_empty(), "{op:?}: {}", info.name);
                // a shard needs what other shards tell, which no random call has
                let of_shards = ["first_class", "total_classes"].contains(&info.name);
                assert!(info.samples.len() > usize::from(!of_shards), "{op:?}: {}", info.name);
                // the builder's method: Debug shows the field
                assert!(format!("{op:?}").contains(&format!("{}: ", info.name)), "{op:?}");
            }
        }
    }

    #[test]
    fn an_op_equals_itself_and_no_other() {
        let mut all: Vec<Box<dyn Op>> = Vec::new();
        for op in ops() {
            for info in op.options() {
                for &sample in info.samples.iter().filter(|&&sample| sample != info.value) {
                    let mut changed = op.boxed();
                    changed.set(info.name, sample).unwrap();
                    let now = changed.options().into_iter().find(|now| now.name == info.name);
                    assert_eq!(now.unwrap().value, sample, "{changed:?}");
                    all.push(changed);
                }
            }
            all.push(op);
        }
        let distinct: HashSet<_> = all.iter().cloned().collect();
        assert_eq!(distinct.len(), all.len());
        assert!(all.iter().all(|op| distinct.contains(op) && op == &op.clone()));
        assert_eq!(crate::CrossEntropy::default(), crate::CrossEntropy::default());
    }

    #[test]
    fn values_are_read_back_as_they_are_shown() {
        for info in ops().iter().flat_map(|op| op.options()) {
            for &sample in &info.samples {
                assert_eq!(info.parse(&sample.to_string()), Ok(sample), "{}", info.name);
            }
            assert!(info.parse("-").is_err() && info.parse("").is_err(), "{}", info.name);
        }
    }

    #[test]
    fn what_an_option_does_not_accept_is_refused() {
        let refused = |op: &str, name: &str, value| {
            let mut op = ops().into_iter().find(|known| known.name() == op).unwrap();
            let before = op.clone();
            let error = op.set(name, value).unwrap_err().to_string();
            assert!(op == before, "{error}");
            error
        };
        let number = Value::Number;
        for (op, name, value, message) in [
            (
                "sigmoid_focal",
                "alpha",
                number(1.5),
                "alpha: expected a number in [0, 1], or a negative one for none, got 1.5",
            ),
            ("huber", "delta", number(0.0), "delta: expected a number above 0, got 0"),
            ("huber", "delta", number(f64::NAN), "delta: expected a number above 0, got NaN"),
            (
                "smooth_l1",
                "beta",
                number(f64::INFINITY),
                "beta: expected a finite number, 0 or more, got inf",
            ),
            ("huber", "delta", Value::Bool(true), "delta: expected a number above 0, got true"),
            ("huber", "beta", number(1.0), "option: expected one of reduction, delta, got beta"),
            ("sigmoid", "beta", number(1.0), "option: expected no options, got beta"),
            (
                "mse",
                "reduction",
                Value::Reduction(Reduction::BatchMean),
                "reduction: expected none, mean or sum, got batchmean",
            ),
            (
                "cross_entropy",
                "label_smoothing",
                number(-0.5),
                "label_smoothing: expected a number in [0, 1], got -0.5",
            ),
            (
                "cross_entropy",
                "z_loss",
                number(f64::NAN),
                "z_loss: expected a finite number, got NaN",
            ),
            (
                "cross_entropy",
                "softcap",
                Value::Optional(Some(-1.0)),
                "softcap: expected a finite number above 0, got -1",
            ),
        ] {
            assert_eq!(refused(op, name, value), message);
        }
    }
}
