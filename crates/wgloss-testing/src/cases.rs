//! Conformance folders: reading them, and the bounds that their values are judged by. The format is
//! described in `tests/conformance/README.md`.
//!
//! A folder that is not in the format is an error that names the file. What a case asks for may
//! still be something that this crate does not have: that is found out case by case, in
//! [`Case::op`] and [`Case::pre`].

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use serde::Deserialize;
use serde_json::{Map, Value as Json};
use wgloss::half::{bf16, f16};
use wgloss::internals::compare_by;
use wgloss::options::{Family, Info, Value};
use wgloss::reference::{Mismatch, Worst};
use wgloss::{Args, Array, DType, LogSoftmax, Op, Pass, Reduction, Sigmoid};

use crate::json::expect_unique_keys;
use crate::ops;

/// A folder's cases.
#[derive(Debug)]
pub struct Folder {
    /// Inputs and what must come of them.
    pub cases: Vec<Case>,
    /// Inputs that must be refused.
    pub errors: Vec<Case>,
}

/// A case: in a folder's `errors` without a reference.
#[derive(Debug)]
pub struct Case {
    pub name: String,
    /// The op's name, as in [`Op::name`].
    pub op: String,
    pub target_kind: Option<String>,
    params: Map<String, Json>,
    pre: Option<String>,
    /// What is wrong, in a folder's `errors`.
    pub what: Option<String>,
    /// By role: `input`, `target`, `out_ref`, ...
    tensors: BTreeMap<String, Tensor>,
}

#[derive(Debug)]
struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// `cases.json` as it is written; what is for people is left out.
#[derive(Deserialize)]
struct File {
    cases: Vec<Entry>,
    #[serde(default)]
    errors: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    name: String,
    op: String,
    params: Option<Map<String, Json>>,
    target_kind: Option<String>,
    pre: Option<String>,
    what: Option<String>,
    file: String,
    tensors: BTreeMap<String, Option<String>>,
}

/// Reads a folder.
pub fn load(folder: &Path) -> Result<Folder> {
    let list = folder.join("cases.json");
    let text = fs::read_to_string(&list)
        .with_context(|| format!("{}: expected a readable list of cases", list.display()))?;
    let text = with_quoted_numbers(&text);
    let File { cases, errors } = expect_unique_keys(&text)
        .and_then(|()| serde_json::from_str(&text))
        .with_context(|| format!("{}: expected a list of cases", list.display()))?;
    let is_empty = cases.is_empty() && errors.is_empty();
    ensure!(!is_empty, "{}: expected at least one case, got none", list.display());

    // Each safetensors file is read once, however many cases are in it.
    let mut bytes = BTreeMap::new();
    for entry in cases.iter().chain(&errors) {
        if !bytes.contains_key(&entry.file) {
            let path = folder.join(&entry.file);
            let read = fs::read(&path).with_context(|| {
                format!("{}: expected a readable file for case {:?}", path.display(), entry.name)
            })?;
            bytes.insert(entry.file.clone(), read);
        }
    }
    let mut files = HashMap::new();
    for (name, bytes) in &bytes {
        // the format's own reader takes the last of several tensors of a name
        let header = safetensors_header(bytes).map_or(Ok(()), expect_unique_keys);
        let file = header
            .map_err(SafeTensorError::InvalidHeaderDeserialization)
            .and_then(|()| SafeTensors::deserialize(bytes));
        let file = file.map_err(|error| {
            let path = folder.join(name);
            anyhow!("{}: expected a good .safetensors file: {error}", path.display())
        })?;
        files.insert(name.clone(), file);
    }
    let read = |entries: Vec<Entry>, roles: &[&str]| {
        let cases = entries.into_iter().map(|entry| {
            let path = folder.join(&entry.file);
            let case = Case::read(entry, &files, &path)?;
            for role in roles {
                let (name, list) = (&case.name, list.display());
                ensure!(
                    case.tensors.contains_key(*role),
                    "{list}: expected a tensor for role {role} of case {name:?}"
                );
            }
            Ok(case)
        });
        cases.collect::<Result<Vec<_>>>()
    };
    Ok(Folder { cases: read(cases, &["input", "out_ref"])?, errors: read(errors, &["input"])? })
}

/// The header of a `.safetensors` file, if it is text.
fn safetensors_header(bytes: &[u8]) -> Option<&str> {
    let size = usize::try_from(u64::from_le_bytes(*bytes.first_chunk()?)).ok()?;
    str::from_utf8(bytes[8..].get(..size)?).ok()
}

/// JSON, with quotes around the numbers that it lacks and that Python writes: NaN and infinities.
fn with_quoted_numbers(text: &str) -> Cow<'_, str> {
    const NUMBERS: [&str; 3] = ["NaN", "-Infinity", "Infinity"];
    if !NUMBERS.iter().any(|number| text.contains(number)) {
        return text.into();
    }
    let mut quoted = String::with_capacity(text.len());
    let (mut rest, mut in_string) = (text, false);
    while let Some(c) = rest.chars().next() {
        let number = NUMBERS.iter().find(|number| !in_string && rest.starts_with(**number));
        let length = match (c, number) {
            (_, Some(number)) => {
                quoted.extend(["\"", number, "\""]);
                rest = &rest[number.len()..];
                continue;
            }
            // whatever is escaped does not end the string
            ('\\', _) if in_string => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
            _ => c.len_utf8(),
        };
        in_string ^= c == '"';
        quoted.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    quoted.into()
}

impl Case {
    fn read(entry: Entry, files: &HashMap<String, SafeTensors<'_>>, path: &Path) -> Result<Self> {
        let file = files.get(&entry.file).context("every case's file was read")?;
        let mut tensors = BTreeMap::new();
        for (role, key) in entry.tensors {
            let Some(key) = key else { continue };
            let (path, name) = (path.display(), &entry.name);
            let tensor = file.tensor(&key).map_err(|_| {
                anyhow!("{path}: expected a tensor {key:?}, the {role} of case {name:?}")
            })?;
            let (dtype, shape) = (tensor.dtype(), tensor.shape().to_vec());
            tensors.insert(role, Tensor { dtype, shape, bytes: tensor.data().to_vec() });
        }
        Ok(Case {
            name: entry.name,
            op: entry.op,
            target_kind: entry.target_kind,
            params: entry.params.unwrap_or_default(),
            pre: entry.pre,
            what: entry.what,
            tensors,
        })
    }

    /// Whether the case is to be computed in a type in which it can be: f32, and of linear cross entropy,
    /// whose inputs are stored so, f16 and bf16.
    pub fn is_computable(&self) -> bool {
        self.dtype() == Some(DType::F32) || self.is_linear() && self.dtype().is_some()
    }

    /// The type to compute in, if it is one of ours.
    fn dtype(&self) -> Option<DType> {
        match self.param("dtype").as_str() {
            None if self.param("dtype").is_null() => Some(DType::F32),
            Some("float32") => Some(DType::F32),
            Some("float16") => Some(DType::F16),
            Some("bfloat16") => Some(DType::Bf16),
            _ => None,
        }
    }

    /// Whether its logits are a product.
    fn is_linear(&self) -> bool {
        ops::find(&self.op).is_some_and(|op| op.kind().family == Family::LinearLoss)
    }

    /// An option as it is written; `Null` where the case does not give it.
    pub fn param(&self, name: &str) -> &Json {
        self.params.get(name).unwrap_or(&Json::Null)
    }

    /// A role's tensor, as ops take it: float64 is rounded to float32.
    pub fn array(&self, role: &str) -> Result<Option<Array<'static>>> {
        let Some(Tensor { dtype, shape, bytes }) = self.tensors.get(role) else { return Ok(None) };
        let array = match dtype {
            Dtype::F32 => Array::from_vec(words(bytes, f32::from_le_bytes), shape),
            Dtype::F64 => Array::from_vec(words(bytes, |b| f64::from_le_bytes(b) as f32), shape),
            Dtype::F16 => Array::from_vec(words(bytes, |b| f16::from_le_bytes(b).to_f32()), shape),
            Dtype::BF16 => {
                Array::from_vec(words(bytes, |b| bf16::from_le_bytes(b).to_f32()), shape)
            }
            Dtype::I32 => Array::from_vec(words(bytes, i32::from_le_bytes), shape),
            Dtype::I64 => Array::from_vec(words(bytes, i64::from_le_bytes), shape),
            other => bail!("{role}: expected float32 or int64, got {other}"),
        };
        Ok(Some(array.with_context(|| role.to_owned())?))
    }

    /// A role's tensor in float64: `out_ref`, `grad_ref` and their kin.
    pub fn reference(&self, role: &str) -> Result<Option<Reference>> {
        let Some(Tensor { dtype, shape, bytes }) = self.tensors.get(role) else { return Ok(None) };
        let values = match dtype {
            Dtype::F64 => words(bytes, f64::from_le_bytes),
            _ => self.array(role)?.map(|array| array.to_f64()).unwrap_or_default(),
        };
        Ok(Some(Reference { shape: shape.clone(), values, is_exact: *dtype == Dtype::F64 }))
    }

    /// The input.
    pub fn input(&self) -> Result<Array<'static>> {
        self.array("input")?.context("input: expected one, got none")
    }

    /// What a pass takes.
    pub fn args(&self, pass: Pass) -> Result<Args<Array<'static>>> {
        self.args_over(self.input()?, pass)
    }

    /// What a pass takes, over what [`Case::pre`] has made of the input.
    pub fn args_over(&self, input: Array<'static>, pass: Pass) -> Result<Args<Array<'static>>> {
        let stored = |array: Array<'static>| match self.dtype().filter(|_| self.is_linear()) {
            Some(dtype) => array.to_dtype(dtype),
            None => Ok(array),
        };
        let mut args = Args::new(stored(input)?);
        if let Some(projection) = self.array("projection")? {
            args = args.projection(stored(projection)?);
        }
        if let Some(bias) = self.array("bias")? {
            args = args.bias(bias);
        }
        if let Some(target) = self.array("target")? {
            args = args.target(target);
        }
        if let Some(weight) = self.array("weight")? {
            args = args.weight(weight);
        }
        if let Some(pos_weight) = self.array("pos_weight")? {
            args = args.pos_weight(pos_weight);
        }
        match self.array("upstream")? {
            Some(upstream) if pass.has_grad() => Ok(args.upstream(upstream)),
            _ => Ok(args),
        }
    }

    /// The largest magnitude among the finite logits: of the input, or, of logits that are products, of the
    /// sum of their terms' absolute values, which bounds their rounding.
    pub fn magnitude(&self) -> Result<f64> {
        let input = self.input()?;
        let (Some(projection), true) = (self.array("projection")?, self.is_linear()) else {
            return Ok(magnitude(&input));
        };
        let bias = self.array("bias")?.map(|bias| magnitude(&bias)).unwrap_or_default();
        let (x, w) = (input.to_f64(), projection.to_f64());
        let dims = input.shape().last().copied().unwrap_or(1).max(1);
        let size = |x: &[f64], w: &[f64]| x.iter().zip(w).map(|(x, w)| (x * w).abs()).sum::<f64>();
        let sizes = x.chunks(dims).flat_map(|x| w.chunks(dims).map(move |w| size(x, w)));
        Ok(bias + sizes.filter(|size| size.is_finite()).fold(0.0, f64::max))
    }

    /// The op with its options.
    ///
    /// # Errors
    /// Where this crate has no such op, or cannot express what is asked of it.
    pub fn op(&self) -> Result<Box<dyn Op>> {
        self.check_target_kind()?;
        let Some(mut op) = ops::find(&self.op) else {
            bail!("op: expected one that wgloss has, got {:?}", self.op);
        };
        for (name, value) in &self.params {
            // null leaves PyTorch's default; the type to compute in: [`Case::is_f32`]
            if value.is_null() || name == "dtype" {
                continue;
            }
            let Some(info) = op.options().into_iter().find(|info| info.name == name) else {
                bail!("params: expected options of {} alone, got also {name} {value}", self.op);
            };
            op.set(name, read_option(&info, value)?)?;
        }
        Ok(op)
    }

    /// Integers are classes and floats are not: what ops go by must be what the case says.
    fn check_target_kind(&self) -> Result<()> {
        let Some(kind) = &self.target_kind else { return Ok(()) };
        let is_index = match kind.as_str() {
            "index" => true,
            "prob" | "same_shape" => false,
            other => bail!("target_kind: expected index, prob or same_shape, got {other:?}"),
        };
        match self.tensors.get("target").map(|target| target.dtype) {
            Some(dtype) if is_index != matches!(dtype, Dtype::I32 | Dtype::I64) => {
                bail!("target: expected other numbers for target_kind {kind}, got {dtype}")
            }
            _ => Ok(()),
        }
    }

    /// The map that is applied to `input` first, if any; the gradient is with respect to `input`
    /// all the same.
    ///
    /// # Errors
    /// Where this crate has no such map.
    pub fn pre(&self) -> Result<Option<Box<dyn Op>>> {
        Ok(Some(match self.pre.as_deref() {
            None => return Ok(None),
            Some("sigmoid") => Box::new(Sigmoid),
            // the log of a softmax is taken in one
            Some("log_softmax" | "softmax_log") => self.log_probabilities(),
            Some(other) => {
                bail!("pre: expected sigmoid, log_softmax or softmax_log, got {other:?}")
            }
        }))
    }

    /// The map to log-probabilities along the dimension of the classes.
    pub fn log_probabilities(&self) -> Box<dyn Op> {
        let rank = self.tensors.get("input").map_or(0, |input| input.shape.len());
        Box::new(LogSoftmax::default().dim(i64::from(rank > 1)))
    }
}

/// What a result must be.
#[derive(Debug, Clone, PartialEq)]
pub struct Reference {
    /// `[1]` where a mean or sum is `[]`.
    pub shape: Vec<usize>,
    pub values: Vec<f64>,
    /// Whether it is float64; otherwise its own rounding is allowed for.
    pub is_exact: bool,
}

impl Reference {
    /// Judges a result of inputs of this magnitude, each number of which storing may round by `rounding` of it:
    /// the worst error in units of the error allowed.
    ///
    /// # Errors
    /// What is wrong.
    pub fn judge(&self, got: &[f32], shape: &[usize], rounding: f64, logits: f64) -> Result<Worst> {
        let is_scalar = self.values.len() == 1 && got.len() == 1;
        ensure!(is_scalar || self.shape == shape, "got shape {shape:?}, want {:?}", self.shape);
        let moderate = moderate(&self.values, logits);
        let foreign = |i: usize| match self.is_exact {
            true => 0.0,
            false => relative(self.values[i], 1e-5),
        };
        let want = |i: usize| self.values[i].abs();
        // f16's smallest step, of numbers that are rounded at all
        let stored = |i: usize| match want(i) {
            size if rounding > 0.0 && size.is_finite() => rounding * size + 2_f64.powi(-25),
            _ => 0.0,
        };
        let allowed = |i: usize| moderate(i).max(foreign(i)) + stored(i);
        Ok(compare_by(got, &self.values, want, allowed)?)
    }
}

/// The bound of conformance cases, where no T is known: `|got - want| <= 2e-6 * max|want| + 2e-6 *
/// |want| + 1.2e-7 * L` for logits of magnitude L.
pub fn compare_moderate(got: &[f32], want: &[f64], logits: f64) -> Result<Worst, Mismatch> {
    compare_by(got, want, |i| want[i].abs(), moderate(want, logits))
}

/// `|got - want| <= part * |want|`: for foreign values that are f32 themselves.
pub fn compare_relative(got: &[f32], want: &[f64], part: f64) -> Result<Worst, Mismatch> {
    compare_by(got, want, |i| want[i].abs(), |i| relative(want[i], part))
}

/// The error that [`compare_moderate`] allows at an index.
fn moderate(want: &[f64], logits: f64) -> impl Fn(usize) -> f64 + use<'_> {
    let max = want.iter().filter(|v| v.is_finite()).fold(0.0, |max: f64, v| max.max(v.abs()));
    // storing may flush a subnormal to 0
    let least = 2e-6 * max + 1.2e-7 * logits + f64::from(f32::MIN_POSITIVE);
    move |i| if want[i].is_finite() { least + 2e-6 * want[i].abs() } else { least }
}

/// The error that [`compare_relative`] allows to a value.
fn relative(want: f64, part: f64) -> f64 {
    if want.is_finite() { part * want.abs() + f64::from(f32::MIN_POSITIVE) } else { 0.0 }
}

/// The largest magnitude among the finite logits.
pub fn magnitude(input: &Array<'_>) -> f64 {
    input.to_f64().into_iter().filter(|x| x.is_finite()).fold(0.0, |max, x| max.max(x.abs()))
}

/// An option's value in the form that it must have.
fn read_option(info: &Info, value: &Json) -> Result<Value> {
    // a string: see [`with_quoted_numbers`]
    let number = || match value.as_str() {
        Some(text @ ("NaN" | "Infinity" | "-Infinity")) => text.parse().ok(),
        _ => value.as_f64(),
    };
    let all = [Reduction::None, Reduction::Mean, Reduction::Sum, Reduction::BatchMean];
    let (expected, read) = match info.value {
        Value::Bool(_) => ("true or false", value.as_bool().map(Value::Bool)),
        Value::Integer(_) => ("an integer", value.as_i64().map(Value::Integer)),
        Value::Number(_) => ("a number", number().map(Value::Number)),
        Value::Optional(_) => ("a number", number().map(|v| Value::Optional(Some(v)))),
        Value::Reduction(_) => {
            let found = all.into_iter().find(|reduction| value == reduction.name());
            ("none, mean, sum or batchmean", found.map(Value::Reduction))
        }
    };
    read.ok_or_else(|| anyhow!("{}: expected {expected}, got {value}", info.name))
}

/// Little-endian numbers of N bytes each.
fn words<T, const N: usize>(bytes: &[u8], from: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks().0.iter().map(|&word| from(word)).collect()
}
