//! Reads conformance folders: the format is in `tests/conformance/README.md`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use wgloss::{Args, Array, BceWithLogits, CrossEntropy, Op, Pass, Reduction};

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
    pub params: Params,
    pub target_kind: Option<TargetKind>,
    pub pre: Option<Pre>,
    /// What is wrong, in a folder's `errors`.
    pub what: Option<String>,
    /// By role: `input`, `target`, `out_ref`, ...
    tensors: BTreeMap<String, Tensor>,
}

/// The options; `None` where the case does not give one, which leaves PyTorch's default.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Params {
    /// A word, since a case in `errors` may ask for one that does not exist.
    pub reduction: Option<String>,
    pub ignore_index: Option<i64>,
    pub label_smoothing: Option<f64>,
    pub dim: Option<i64>,
    pub beta: Option<f64>,
    pub delta: Option<f64>,
    pub log_target: Option<bool>,
    /// The type to compute in, where it is not f32.
    pub dtype: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetKind {
    /// Class indices.
    Index,
    /// Probabilities of the input's shape.
    Prob,
    /// The input's shape, for element-wise losses.
    SameShape,
}

/// What is applied to `input` first. The gradient is with respect to `input` all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pre {
    Sigmoid,
    LogSoftmax,
    /// The log of a softmax.
    SoftmaxLog,
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
    #[serde(default)]
    params: Params,
    target_kind: Option<TargetKind>,
    pre: Option<Pre>,
    what: Option<String>,
    file: String,
    tensors: BTreeMap<String, String>,
}

/// Where the folders of this repository are.
pub fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance").join(name)
}

/// Reads a folder. Panics where it is not in the documented format.
pub fn load(folder: &Path) -> Folder {
    let read = |name: &str| {
        let path = folder.join(name);
        fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    };
    let file: File = serde_json::from_slice(&read("cases.json"))
        .unwrap_or_else(|e| panic!("{}/cases.json: {e}", folder.display()));

    // Each safetensors file is read once, however many cases are in it.
    let mut bytes = BTreeMap::new();
    for entry in file.cases.iter().chain(&file.errors) {
        bytes.entry(entry.file.clone()).or_insert_with(|| read(&entry.file));
    }
    let parsed: BTreeMap<_, _> = bytes
        .iter()
        .map(|(name, bytes)| {
            let tensors = SafeTensors::deserialize(bytes);
            (name.clone(), tensors.unwrap_or_else(|e| panic!("{}/{name}: {e}", folder.display())))
        })
        .collect();
    let case = |entry: Entry| {
        let tensors = entry.tensors.iter().map(|(role, key)| {
            let tensor = parsed[&entry.file].tensor(key);
            let tensor = tensor.unwrap_or_else(|e| panic!("{}: {role}: {e}", entry.name));
            let (dtype, shape) = (tensor.dtype(), tensor.shape().to_vec());
            (role.clone(), Tensor { dtype, shape, bytes: tensor.data().to_vec() })
        });
        Case {
            tensors: tensors.collect(),
            name: entry.name,
            op: entry.op,
            params: entry.params,
            target_kind: entry.target_kind,
            pre: entry.pre,
            what: entry.what,
        }
    };
    Folder {
        cases: file.cases.into_iter().map(case).collect(),
        errors: file.errors.into_iter().map(case).collect(),
    }
}

impl Case {
    /// Whether the case is to be computed in f32.
    pub fn is_f32(&self) -> bool {
        self.params.dtype.as_deref().is_none_or(|dtype| dtype == "float32")
    }

    /// A role's tensor in its own storage type.
    pub fn array(&self, role: &str) -> Option<Array<'static>> {
        let Tensor { dtype, shape, bytes } = self.tensors.get(role)?;
        let array = match dtype {
            Dtype::F32 => Array::from_vec(words(bytes, f32::from_le_bytes), shape),
            Dtype::F16 => Array::from_vec(words(bytes, half::f16::from_le_bytes), shape),
            Dtype::BF16 => Array::from_vec(words(bytes, half::bf16::from_le_bytes), shape),
            Dtype::I32 => Array::from_vec(words(bytes, i32::from_le_bytes), shape),
            Dtype::I64 => Array::from_vec(words(bytes, i64::from_le_bytes), shape),
            other => panic!("{}: {role}: stored as {other:?}", self.name),
        };
        Some(array.unwrap_or_else(|e| panic!("{}: {role}: {e}", self.name)))
    }

    /// A role's tensor in float64: `out_ref`, `grad_ref` and their kin.
    pub fn values(&self, role: &str) -> Option<Vec<f64>> {
        match self.tensors.get(role)? {
            Tensor { dtype: Dtype::F64, bytes, .. } => Some(words(bytes, f64::from_le_bytes)),
            _ => self.array(role).map(|array| array.to_f64()),
        }
    }

    /// What a pass takes.
    pub fn args(&self, pass: Pass) -> Args<Array<'static>> {
        let mut args = Args::new(self.array("input").expect("a case has an input"));
        if let Some(target) = self.array("target") {
            args = args.target(target);
        }
        if let Some(weight) = self.array("weight") {
            args = args.weight(weight);
        }
        if let Some(pos_weight) = self.array("pos_weight") {
            args = args.pos_weight(pos_weight);
        }
        match self.array("upstream") {
            Some(upstream) if pass.has_grad() => args.upstream(upstream),
            _ => args,
        }
    }

    /// The op with its options, or `None` where this crate cannot compute it (yet), or cannot even
    /// express what is asked.
    pub fn op(&self) -> Option<Box<dyn Op>> {
        let reduction = match self.params.reduction.as_deref() {
            None | Some("mean") => Reduction::Mean,
            Some("none") => Reduction::None,
            Some("sum") => Reduction::Sum,
            Some(_) => return None,
        };
        let Params { ignore_index, label_smoothing, .. } = self.params;
        match (self.op.as_str(), self.target_kind, self.pre) {
            ("cross_entropy", Some(TargetKind::Index), None) => Some(Box::new(
                CrossEntropy::default()
                    .reduction(reduction)
                    .ignore_index(ignore_index.unwrap_or(-100))
                    .label_smoothing(label_smoothing.unwrap_or(0.0)),
            )),
            ("bce_with_logits", _, None) => {
                Some(Box::new(BceWithLogits::default().reduction(reduction)))
            }
            _ => None,
        }
    }
}

/// Little-endian numbers of N bytes each.
fn words<T, const N: usize>(bytes: &[u8], from: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks().0.iter().map(|&word| from(word)).collect()
}
