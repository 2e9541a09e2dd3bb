//! Files of arrays in every dialect that readers take, damage to them, and command lines of `wgloss run`:
//! random, the same for the same seed.

use wgloss::options::Family;

use crate::random::Random;

/// A file with an array, and what it means.
#[derive(Debug, Clone)]
pub struct ArrayFile {
    /// With the extension; `#KEY` is [`ArrayFile::key`].
    pub name: String,
    /// The tensor's, in a `.safetensors` file.
    pub key: Option<String>,
    pub bytes: Vec<u8>,
    pub shape: Vec<usize>,
    /// Row-major.
    pub values: Vec<f64>,
}

/// What the elements of a drawn file are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Elements {
    /// Eighths up to 4 in size, which every type of floats has; not negative where the type has no sign.
    Numbers,
    /// Classes below this, at most 100.
    Classes(usize),
}

/// A type: numpy's and safetensors' names, bytes, and the little-endian bytes of a value.
struct Type {
    numpy: [&'static str; 2],
    safetensors: &'static str,
    size: usize,
    is_integer: bool,
    is_signed: bool,
    encode: fn(f64) -> Vec<u8>,
}

macro_rules! types {
    ($($code:literal $name:literal $tensor:literal $type:ty, $integer:literal, $signed:literal;)*) => {
        [$(Type {
            numpy: [$code, $name],
            safetensors: $tensor,
            size: size_of::<$type>(),
            is_integer: $integer,
            is_signed: $signed,
            encode: |value| (value as $type).to_le_bytes().to_vec(),
        }),*]
    };
}

fn types() -> Vec<Type> {
    let mut all = Vec::from(types! {
        "b1" "bool" "BOOL" u8, true, false;
        "u1" "uint8" "U8" u8, true, false;
        "i1" "int8" "I8" i8, true, true;
        "u2" "uint16" "U16" u16, true, false;
        "i2" "int16" "I16" i16, true, true;
        "u4" "uint32" "U32" u32, true, false;
        "i4" "int32" "I32" i32, true, true;
        "u8" "uint64" "U64" u64, true, false;
        "i8" "int64" "I64" i64, true, true;
        "f4" "float32" "F32" f32, false, true;
        "f8" "float64" "F64" f64, false, true;
    });
    let half = |value: f64| wgloss::half::f16::from_f64(value).to_le_bytes().to_vec();
    let numpy = ["f2", "float16"];
    let (is_integer, is_signed) = (false, true);
    all.push(Type { numpy, safetensors: "F16", size: 2, is_integer, is_signed, encode: half });
    all
}

/// A good file of an array of this shape, by a name that begins with `stem`.
pub fn array_file(
    random: &mut Random,
    stem: &str,
    shape: &[usize],
    elements: Elements,
) -> ArrayFile {
    let is_class = elements != Elements::Numbers;
    let mut all = types();
    all.retain(|kind| kind.is_integer || !is_class);
    let kind = &all[random.below(all.len())];
    let count = shape.iter().product();
    let most = match elements {
        Elements::Classes(classes) => classes,
        Elements::Numbers => 5,
    };
    let most = if kind.safetensors == "BOOL" { most.min(2) } else { most };
    let value = |random: &mut Random| match kind.is_integer {
        true if is_class || !kind.is_signed => random.below(most) as f64,
        true => random.below(9) as f64 - 4.0,
        false => (random.below(65) as f64 - 32.0) / 8.0,
    };
    let values: Vec<f64> = (0..count).map(|_| value(random)).collect();
    let encoded = |order: &[usize], swapped: bool| -> Vec<u8> {
        let bytes = order.iter().map(|&i| {
            let mut bytes = (kind.encode)(values[i]);
            if swapped {
                bytes.reverse();
            }
            bytes
        });
        bytes.flatten().collect()
    };
    let in_order: Vec<usize> = (0..count).collect();
    let is_npy = random.chance(0.6);
    let (name, key, bytes) = match is_npy {
        true => {
            let is_fortran = random.chance(0.3);
            let order = if is_fortran { columns(shape) } else { in_order };
            let byte_order = random.pick(&["<", "", "=", "|", ">"]);
            let data = encoded(&order, byte_order == ">");
            let descr = match random.chance(0.1) && byte_order.is_empty() {
                true => kind.numpy[1].to_owned(),
                false => format!("{byte_order}{}", kind.numpy[0]),
            };
            (format!("{stem}.npy"), None, npy(random, &descr, shape, is_fortran, &data))
        }
        false => {
            let key = random.pick(&[stem, "a", "layer.0/\u{e9} \"x\""]).to_owned();
            let data = encoded(&in_order, false);
            let bytes = safetensors(random, &key, kind.safetensors, shape, &data, kind.size);
            (format!("{stem}.safetensors"), Some(key), bytes)
        }
    };
    ArrayFile { name, key, bytes, shape: shape.to_vec(), values }
}

/// The row-major index of each element, first dimension fastest.
fn columns(shape: &[usize]) -> Vec<usize> {
    let count: usize = shape.iter().product();
    let place = |mut at: usize| {
        let mut index = 0;
        let mut stride = count;
        for &size in shape {
            stride /= size;
            index += at % size * stride;
            at /= size;
        }
        index
    };
    (0..count).map(place).collect()
}

/// A header as numpy may find it, and the elements.
fn npy(random: &mut Random, descr: &str, shape: &[usize], fortran: bool, data: &[u8]) -> Vec<u8> {
    let version = random.pick(&[1_u8, 2, 3]);
    let quote = random.pick(&['\'', '"']);
    let space = |random: &mut Random| random.pick(&["", " ", "  "]);
    let suffix = if version < 3 && random.chance(0.1) { "L" } else { "" };
    let sizes = shape.iter().map(|size| format!("{size}{suffix},{}", space(random)));
    let mut sizes: String = sizes.collect();
    if shape.len() > 1 && random.chance(0.5) {
        sizes.truncate(sizes.trim_end().len() - 1);
    }
    let order = if fortran { "True" } else { "False" };
    let mut entries = [
        format!("{quote}descr{quote}:{}{quote}{descr}{quote}", space(random)),
        format!("{quote}fortran_order{quote}{}: {order}", space(random)),
        format!("{quote}shape{quote}: ({sizes})"),
    ];
    let (a, b) = (random.below(3), random.below(3));
    entries.swap(a, b);
    let last = random.pick(&["", ",", ", "]);
    let padding = " ".repeat(random.below(70));
    let text = format!("{{{}{last}}}{padding}\n", entries.join(","));
    let length = (text.len() as u32).to_le_bytes();
    let length = if version == 1 { &length[..2] } else { &length[..] };
    [&b"\x93NUMPY"[..], &[version, 0], length, text.as_bytes(), data].concat()
}

/// A file with the tensor and perhaps another.
fn safetensors(
    random: &mut Random,
    key: &str,
    dtype: &str,
    shape: &[usize],
    data: &[u8],
    align: usize,
) -> Vec<u8> {
    let key = serde_json::Value::from(key);
    let before = if random.chance(0.3) { align * random.below(4) } else { 0 };
    let ends = [before, before + data.len()];
    let mut entries = vec![format!(
        "{key}:{{\"dtype\":\"{dtype}\",\"shape\":{shape:?},\"data_offsets\":{ends:?}}}"
    )];
    if before > 0 {
        entries.push(format!(
            "\"before\":{{\"data_offsets\":[0,{before}],\"shape\":[{before}],\"dtype\":\"U8\"}}"
        ));
    }
    if random.chance(0.3) {
        entries.insert(0, "\"__metadata__\":{\"format\":\"pt\"}".into());
    }
    let header = format!("{{{}}}{}", entries.join(","), " ".repeat(random.below(9)));
    let size = (header.len() as u64).to_le_bytes();
    [&size[..], header.as_bytes(), &vec![7; before], data].concat()
}

/// The bytes with one to three kinds of damage.
pub fn damaged(random: &mut Random, bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..1 + random.below(3) {
        // headers are where most can go wrong
        let near = if random.chance(0.7) { bytes.len().min(160) } else { bytes.len() };
        let at = random.below(near.max(1)).min(bytes.len());
        let end = bytes.len().min(at + random.below(24));
        match random.below(10) {
            0 => bytes.truncate(at),
            1 | 2 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
            3 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = random.bits() as u8;
                }
            }
            4 => bytes.insert(at, random.pick(b"\0\xff 9,-'\"(){}:")),
            5 => drop(bytes.drain(at..end)),
            6 => {
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            7 => with_other_number(random, &mut bytes),
            8 => with_another_entry(random, &mut bytes),
            _ => {
                let size = random.pick(&[0, 1, 99_999_999, 100_000_001, u64::MAX, 1 << 63]);
                let size: [u8; 8] = size.to_le_bytes();
                let from = if bytes.starts_with(b"\x93NUMPY") { 8 } else { 0 };
                let to = bytes.len().min(from + if from == 8 { 2 } else { 8 });
                if from < to {
                    bytes[from..to].copy_from_slice(&size[..to - from]);
                }
            }
        }
    }
    bytes
}

/// Puts another entry into a header, whose length is as it must be: often of a key that is there already.
fn with_another_entry(random: &mut Random, bytes: &mut Vec<u8>) {
    let is_npy = bytes.starts_with(b"\x93NUMPY");
    let entries: [&str; 3] = match is_npy {
        true => ["'shape': (1,), ", "'descr': '<f4', ", "'fortran_order': False, "],
        false => [
            "\"input\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]},",
            "\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},",
            "\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"},",
        ],
    };
    let entry = random.pick(&entries);
    let Some(brace) = bytes.iter().position(|&byte| byte == b'{') else { return };
    let (at, size) = match (is_npy, bytes.get(6)) {
        (true, Some(1)) => (8, 2),
        (true, _) => (8, 4),
        (false, _) => (0, 8),
    };
    if brace < at + size {
        return;
    }
    let mut length = [0; 8];
    length[..size].copy_from_slice(&bytes[at..at + size]);
    let length = u64::from_le_bytes(length).wrapping_add(entry.len() as u64).to_le_bytes();
    bytes[at..at + size].copy_from_slice(&length[..size]);
    bytes.splice(brace + 1..=brace, entry.bytes());
}

/// Puts another number in place of one of a header's.
fn with_other_number(random: &mut Random, bytes: &mut Vec<u8>) {
    let head = bytes.len().min(300);
    let starts =
        (10..head).filter(|&i| bytes[i].is_ascii_digit() && !bytes[i - 1].is_ascii_alphanumeric());
    let starts: Vec<usize> = starts.collect();
    if starts.is_empty() {
        return;
    }
    let start = random.pick(&starts);
    let end = (start..bytes.len()).find(|&i| !bytes[i].is_ascii_digit()).unwrap_or(bytes.len());
    let numbers: [&[u8]; 9] = [
        b"0",
        b"1",
        b"-1",
        b"007",
        b"4294967296",
        b"9223372036854775807",
        b"18446744073709551616",
        b"99999999999999999999999999999999",
        b"1e3",
    ];
    bytes.splice(start..end, random.pick(&numbers).iter().copied());
}

/// Words of a command line: mostly `run` with the flags of an op, among them some that it does not have,
/// values that it does not take, and files of all kinds. `files` are names to choose from; with
/// `standard`, everything that reads and writes standard streams is among the words.
pub fn command_line(random: &mut Random, files: &[String], standard: bool) -> Vec<String> {
    let ops = wgloss::ops();
    let op = &ops[random.below(ops.len())];
    let file = |random: &mut Random| match random.below(if standard { 24 } else { 23 }) {
        0 => {
            random.pick(&["", ".", "no/x.npy", "x", "out.npy#k", "#", ".npy", "\u{e9}.npy"]).into()
        }
        1..4 => format!("{}#{}", random.pick(files), random.pick(&["a", "target", "input", ""])),
        23 => random.pick(&["-", "-#a", "-#target"]).into(),
        _ => random.pick(files),
    };
    let output = |random: &mut Random| {
        let outputs =
            ["out.npy", "out2.npy", "out.safetensors", "out.safetensors#k", "no/o.npy", "o.txt"];
        match standard && random.chance(0.1) {
            true => random.pick(&["-", "-#k"]).to_owned(),
            false => random.pick(&outputs).to_owned(),
        }
    };
    let number = |random: &mut Random| {
        let numbers = [
            "0",
            "1",
            "-1",
            "-1e-4",
            "-.5",
            ".5",
            "+2",
            "-inf",
            "inf",
            "nan",
            "-0",
            "1e400",
            "-100",
            "3",
            "9223372036854775808",
            "0x10",
            "1_000",
            "",
            " 1",
            "one",
            "--",
            "1,5",
            "\u{661}",
        ];
        random.pick(&numbers).to_owned()
    };
    let mut words = vec!["run".to_owned(), op.name().replace('_', "-")];
    let push = |words: &mut Vec<String>, flag: &str, value: String, random: &mut Random| {
        let flag = format!("--{}", flag.replace('_', "-"));
        match random.chance(0.2) {
            true => words.push(format!("{flag}={value}")),
            false => words.extend([flag, value]),
        }
    };
    let mut arguments = vec![("input", 0.97)];
    let kind = op.kind();
    arguments.push(("target", if kind.target.is_some() { 0.97 } else { 0.03 }));
    arguments.push(("weight", if kind.weight.is_some() { 0.2 } else { 0.02 }));
    arguments.push(("pos_weight", if kind.pos_weight { 0.2 } else { 0.02 }));
    let is_linear = kind.family == Family::LinearLoss;
    arguments.push(("projection", if is_linear { 0.97 } else { 0.02 }));
    arguments.push(("bias", if is_linear { 0.4 } else { 0.02 }));
    arguments.push(("upstream", 0.1));
    for (name, chance) in arguments {
        if random.chance(chance) {
            let value = file(random);
            push(&mut words, name, value, random);
        }
    }
    let of_sums = if is_linear { 0.3 } else { 0.01 };
    let outputs = [
        ("loss", 0.4),
        ("grad", 0.4),
        ("output", 0.05),
        ("grad_projection", of_sums),
        ("grad_bias", of_sums),
    ];
    let of_rows = ["logsumexp", "argmax", "correct", "entropy"];
    let chance = if kind.row_outputs { 0.1 } else { 0.01 };
    for (name, chance) in outputs.into_iter().chain(of_rows.map(|name| (name, chance))) {
        if random.chance(chance) {
            let value = output(random);
            push(&mut words, name, value, random);
        }
    }
    let has_flag = |name| !["first_class", "total_classes"].contains(&name);
    for info in op.options().into_iter().filter(|info| has_flag(info.name)) {
        if random.chance(0.3) {
            let value = match random.chance(0.6) && !info.samples.is_empty() {
                true => random.pick(&info.samples).to_string(),
                false => number(random),
            };
            push(&mut words, info.name, value, random);
        }
    }
    let device = random.pick(&["cpu", "reference", "cpu", "reference", "auto", "gpu", "tpu"]);
    push(&mut words, "device", device.into(), random);
    for (name, chance) in [("batch_rows", 0.3), ("pass", 0.15), ("key", 0.05), ("adapter", 0.02)] {
        if random.chance(chance) {
            let value = match (name, random.chance(0.8)) {
                ("batch_rows", true) => random.pick(&["1", "2", "3", "100"]).into(),
                ("pass", true) => random.pick(&["forward", "backward", "forward-backward"]).into(),
                ("key", true) => random.pick(&["a", "input"]).into(),
                _ => number(random),
            };
            push(&mut words, name, value, random);
        }
    }
    if random.chance(0.1) {
        let value = if standard { "-" } else { "out.json" };
        push(&mut words, "json", random.pick(&[value, "out.json", "no/j.json"]).into(), random);
    }
    match random.below(20) {
        0 => drop(words.remove(random.below(words.len()))),
        1 => {
            words.push(random.pick(&["--no-such-flag", "--log-target", "extra", "-q", "--"]).into())
        }
        2 => words.swap(0, 1),
        _ => {}
    }
    words
}
