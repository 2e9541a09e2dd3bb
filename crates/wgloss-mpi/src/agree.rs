//! What ranks must have in common, compared before they exchange anything else.

use wgloss::options::Value;
use wgloss::{DType, Layout, Op, Reduction};

use crate::{Error, Result};

/// A call as all ranks are told of it: so many words in every version of this crate, since a message of another
/// length could not be read.
const WORDS: usize = 32;

/// What the first words are. An option follows each in the words after those.
const FIELDS: [&str; 12] = [
    "version of wgloss-mpi",
    "call",
    "op",
    "rows",
    "classes",
    "size",
    "dimensions of the input",
    "storage of the input",
    "target",
    "weights of classes",
    "unused",
    "unused",
];
/// Words that are not compared: whether the rank failed, and numbers of its own.
const FAILED: usize = WORDS - 4;
const OWN: usize = WORDS - 3;

/// Options that each rank may have of its own.
const FREE: [&str; 2] = ["first_class", "workspace_bytes"];

/// What a call exchanges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Which classes a rank has.
    Classes = 1,
    /// Partials of rows.
    Partials,
    /// Divisors and losses of parts of a batch.
    Batch,
    /// Arrays to be added up.
    Sum,
}

/// A call, as this rank makes it.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    words: [u64; WORDS],
    options: Vec<(&'static str, Value)>,
}

/// What the ranks say of their own, rank after rank.
#[derive(Debug)]
pub(crate) struct Agreed(Vec<[u64; WORDS]>);

impl Call {
    pub fn new(kind: Kind) -> Self {
        let mut words = [0; WORDS];
        let version = env!("CARGO_PKG_VERSION").bytes().take(8);
        words[0] = version.fold(0, |word, byte| word << 8 | u64::from(byte));
        words[1] = kind as u64;
        Call { words, options: vec![] }
    }

    /// With the length of what is exchanged.
    pub fn size(mut self, size: usize) -> Self {
        self.words[5] = size as u64;
        self
    }

    /// With how many classes there are in all.
    pub fn classes(mut self, classes: usize) -> Self {
        self.words[4] = classes as u64;
        self
    }

    /// With how many rows there are.
    pub fn rows(mut self, rows: usize) -> Self {
        self.words[3] = rows as u64;
        self
    }

    /// With an op and its options, but for those that each rank may have of its own.
    pub fn op(mut self, op: &dyn Op) -> Self {
        self.words[2] = hash(op.name());
        let options = op.options().into_iter().filter(|info| !FREE.contains(&info.name));
        self.options = options.map(|info| (info.name, info.value)).collect();
        for (word, (_, value)) in self.words[FIELDS.len()..FAILED].iter_mut().zip(&self.options) {
            *word = bits(*value);
        }
        self
    }

    /// With the arguments that must be alike: `dims` is the D of a product.
    pub fn args(mut self, input: &Layout, dims: usize, target: DType, is_weighted: bool) -> Self {
        self.words[6] = dims as u64;
        self.words[7] = hash(&input.dtype().to_string());
        // i32 and i64 are the same classes
        self.words[8] = u64::from(!matches!(target, DType::I32 | DType::I64));
        self.words[9] = is_weighted.into();
        self
    }

    /// With the fact that this rank cannot take part.
    pub fn failed(mut self) -> Self {
        self.words[FAILED] = 1;
        self
    }

    /// With numbers of this rank's own.
    pub fn own(mut self, numbers: [u64; 3]) -> Self {
        self.words[OWN..].copy_from_slice(&numbers);
        self
    }

    pub fn words(&self) -> Vec<u32> {
        self.words.iter().flat_map(|&word| [(word >> 32) as u32, word as u32]).collect()
    }

    /// Compares the calls of all ranks with that of rank 0, so that every rank comes to the same error.
    pub fn agreed(&self, words: &[u32]) -> Result<Agreed> {
        let word = |pair: &[u32]| u64::from(pair[0]) << 32 | u64::from(pair[1]);
        let calls: Vec<[u64; WORDS]> = words
            .chunks_exact(2 * WORDS)
            .map(|call| std::array::from_fn(|i| word(&call[2 * i..2 * i + 2])))
            .collect();
        let Some(first) = calls.first() else { return Ok(Agreed(calls)) };
        let differs = |field: usize| calls.iter().position(|call| call[field] != first[field]);
        // of another version nothing else can be read
        let version = differs(0).map(|rank| (0, rank));
        if let (None, Some(rank)) = (version, calls.iter().position(|call| call[FAILED] != 0)) {
            return Err(Error::Failed { rank });
        }
        let fields = 0..FAILED;
        let other = || fields.into_iter().find_map(|field| Some((field, differs(field)?)));
        match version.or_else(other) {
            None => Ok(Agreed(calls)),
            Some((field, rank)) => {
                let [theirs, first] = [calls[rank][field], first[field]];
                let [theirs, first] = [theirs, first].map(|word| self.told(field, word));
                Err(Error::Disagree { what: self.name(field).into(), rank, theirs, first })
            }
        }
    }

    fn name(&self, field: usize) -> &'static str {
        let option = || Some(self.options.get(field - FIELDS.len())?.0);
        FIELDS.get(field).copied().or_else(option).unwrap_or("options")
    }

    /// A word of a call in words.
    fn told(&self, field: usize, word: u64) -> String {
        let pick = |names: &[&str]| {
            let name = names.iter().find(|name| hash(name) == word);
            name.map_or("another".into(), |name| name.to_string())
        };
        match field {
            0 => word.to_be_bytes().iter().filter(|&&b| b != 0).map(|&b| char::from(b)).collect(),
            1 => ["none", "shards", "partials", "batch", "sum"][(word as usize).min(4)].into(),
            2 => pick(&["cross_entropy", "linear_cross_entropy"]),
            7 => pick(&["f32", "f16", "bf16"]),
            8 => ["classes", "probabilities"][(word as usize).min(1)].into(),
            9 => ["none", "some"][(word as usize).min(1)].into(),
            field if field < FIELDS.len() => word.to_string(),
            field => match self.options.get(field - FIELDS.len()) {
                Some((_, Value::Bool(_))) => (word != 0).to_string(),
                Some((_, Value::Integer(_))) => word.cast_signed().to_string(),
                Some((_, Value::Number(_))) => Value::Number(f64::from_bits(word)).to_string(),
                Some((_, Value::Optional(_))) if word == NONE => "none".into(),
                Some((_, Value::Optional(_))) => Value::Number(f64::from_bits(word)).to_string(),
                Some((_, Value::Reduction(_))) => {
                    let all = [Reduction::None, Reduction::Mean, Reduction::Sum];
                    pick(&all.map(Reduction::name))
                }
                None => word.to_string(),
            },
        }
    }
}

impl Agreed {
    /// The numbers of each rank's own.
    pub fn own(&self) -> impl Iterator<Item = [u64; 3]> {
        self.0.iter().map(|words| [words[OWN], words[OWN + 1], words[OWN + 2]])
    }
}

/// An optional number that is none: bits of a NaN that no option has.
const NONE: u64 = u64::MAX;

fn bits(value: Value) -> u64 {
    match value {
        Value::Bool(value) => value.into(),
        Value::Integer(value) => value.cast_unsigned(),
        // all NaN are one
        Value::Number(value) | Value::Optional(Some(value)) if value.is_nan() => f64::NAN.to_bits(),
        Value::Number(value) | Value::Optional(Some(value)) => value.to_bits(),
        Value::Optional(None) => NONE,
        Value::Reduction(value) => hash(value.name()),
    }
}

/// FNV-1a: the same number in every version and on every machine.
fn hash(text: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}
