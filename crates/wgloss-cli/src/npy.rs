//! The `.npy` format: numpy's header, then the elements.
//!
//! Written out here because a header is a few lines of text, and the parsers of Python literals at
//! hand take exponential time over a hostile one.

use anyhow::{Context, Result, bail, ensure};
use safetensors::Dtype;

use crate::files;

/// How every file begins.
pub const MAGIC: &[u8] = b"\x93NUMPY";

/// What each element type is called in a header. 8-bit types have no byte order.
const TYPES: [(Dtype, &str); 13] = [
    (Dtype::BOOL, "|b1"),
    (Dtype::U8, "|u1"),
    (Dtype::I8, "|i1"),
    (Dtype::U16, "<u2"),
    (Dtype::I16, "<i2"),
    (Dtype::F16, "<f2"),
    (Dtype::U32, "<u4"),
    (Dtype::I32, "<i4"),
    (Dtype::F32, "<f4"),
    (Dtype::U64, "<u8"),
    (Dtype::I64, "<i8"),
    (Dtype::F64, "<f8"),
    (Dtype::C64, "<c8"),
];

/// An array as it lies in the file.
#[derive(Debug, PartialEq)]
pub struct Npy<'a> {
    /// The element type, or numpy's word for one that safetensors does not know.
    pub dtype: Result<Dtype, &'a str>,
    /// The first byte of an element is its highest, as no machine here has it.
    pub big_endian: bool,
    pub shape: Vec<usize>,
    /// The first dimension varies fastest, instead of the last.
    pub fortran_order: bool,
    /// The elements.
    pub data: &'a [u8],
}

/// The most bytes before the header's text.
pub const PREFIX: usize = 12;

/// The longest text of a header that is read: versions 2 and 3 have room for gigabytes, and as many
/// dimensions as numpy has take a few kilobytes.
const MAX_HEADER: usize = 1 << 20;

const CUT_OFF: &str = "the header is cut off";

/// Where the elements start, by the file's first [`PREFIX`] bytes (fewer where it has fewer).
pub fn data_start(file: &[u8]) -> Result<usize> {
    let (text, length) = header_text(file)?;
    Ok(text + length)
}

/// Where the header's text starts, and how long it is.
fn header_text(file: &[u8]) -> Result<(usize, usize)> {
    let rest = file.strip_prefix(MAGIC).context("not a .npy file: it does not start as one")?;
    let (&[major, minor], rest) = rest.split_first_chunk().context(CUT_OFF)?;
    let at = MAGIC.len() + 2;
    match (major, minor) {
        (1, 0) => {
            let &length = rest.first_chunk().context(CUT_OFF)?;
            Ok((at + 2, u16::from_le_bytes(length).into()))
        }
        (2 | 3, 0) => {
            let &length = rest.first_chunk().context(CUT_OFF)?;
            let length = u32::from_le_bytes(length) as usize;
            ensure!(
                length <= MAX_HEADER,
                "expected a header of at most {MAX_HEADER} bytes, got {length}"
            );
            Ok((at + 4, length))
        }
        _ => bail!("expected .npy version 1.0, 2.0 or 3.0, got {major}.{minor}"),
    }
}

/// Reads a file's bytes. Whether `data` has the length that `dtype` and `shape` ask for is left to
/// the caller.
pub fn parse(bytes: &[u8]) -> Result<Npy<'_>> {
    let (text, length) = header_text(bytes)?;
    let (header, data) = bytes[text..].split_at_checked(length).context(CUT_OFF)?;
    let malformed = "the header is malformed";
    let header = str::from_utf8(header).context(malformed)?;
    let (mut dtype, mut shape, mut fortran_order) = (None, None, None);
    let entries = entries(header).context(malformed)?;
    for (at, (key, value)) in entries.iter().copied().enumerate() {
        // Python takes the last of several, and nobody means the others
        let is_repeated = entries[..at].iter().any(|(other, _)| *other == key);
        ensure!(!is_repeated, "the header has several entries {key}");
        match key {
            "descr" => dtype = Some(element_type(value)),
            "shape" => shape = Some(tuple(value).context("the header's shape is malformed")?),
            "fortran_order" => {
                fortran_order = Some(match value {
                    "True" => true,
                    "False" => false,
                    _ => bail!("the header's fortran_order is malformed"),
                });
            }
            _ => bail!("the header has an unknown entry: {key}"),
        }
    }
    let (dtype, big_endian) = match dtype.context("the header lacks descr")? {
        Ok((dtype, big_endian)) => (Ok(dtype), big_endian),
        Err(other) => (Err(other), false),
    };
    Ok(Npy {
        dtype,
        big_endian,
        shape: shape.context("the header lacks shape")?,
        fortran_order: fortran_order.context("the header lacks fortran_order")?,
        data,
    })
}

/// The header of a file whose elements follow in row-major order.
pub fn header(dtype: Dtype, shape: &[usize]) -> Result<Vec<u8>> {
    let known = TYPES.iter().find(|(known, _)| *known == dtype);
    let (_, descr) = known.context("the .npy format has no such type; use .safetensors")?;
    let sizes: String = shape.iter().map(|size| format!("{size}, ")).collect();
    // Python's `(5,)`, `(2, 3)` and `()`
    let sizes = if shape.len() == 1 { sizes.trim_end() } else { sizes.trim_end_matches(", ") };
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({sizes}), }}");
    // the elements start at a multiple of 64 bytes
    let start = (MAGIC.len() + 4 + text.len() + 1).next_multiple_of(64);
    text.extend(std::iter::repeat_n(' ', start - MAGIC.len() - 4 - text.len() - 1));
    text.push('\n');
    let length = u16::try_from(text.len()).context("too many dimensions for .npy")?;
    Ok([MAGIC, &[1, 0], &length.to_le_bytes(), text.as_bytes()].concat())
}

/// The entries of a Python dictionary whose keys are strings. Values are left as text.
fn entries(header: &str) -> Option<Vec<(&str, &str)>> {
    let mut rest = header.trim().strip_prefix('{')?.strip_suffix('}')?.trim();
    let mut found = Vec::new();
    while !rest.is_empty() {
        let quote = rest.chars().next().filter(|c| "'\"".contains(*c))?;
        let (key, after) = rest[1..].split_once(quote)?;
        let value = after.trim_start().strip_prefix(':')?;
        let (mut depth, mut quoted) = (0_usize, None);
        let comma = value.find(|c| {
            match (c, quoted) {
                (_, Some(quote)) => quoted = quoted.filter(|_| c != quote),
                ('\'' | '"', None) => quoted = Some(c),
                ('(' | '[' | '{', None) => depth += 1,
                (')' | ']' | '}', None) => depth = depth.saturating_sub(1),
                _ => {}
            }
            c == ',' && depth == 0 && quoted.is_none()
        });
        let end = comma.unwrap_or(value.len());
        found.push((key, value[..end].trim()));
        rest = value[end..].strip_prefix(',').unwrap_or_default().trim_start();
    }
    Some(found)
}

/// `(2, 3)`, `(5,)` or `()`; `(2L, 3L)` too, as Python 2 wrote it. `(5)` is no tuple in Python.
fn tuple(text: &str) -> Option<Vec<usize>> {
    let inner = text.strip_prefix('(')?.strip_suffix(')')?.trim();
    if inner.is_empty() {
        return Some(vec![]);
    }
    let sizes = inner.strip_suffix(',');
    let size = |text: &str| {
        let text = text.trim();
        let digits = text.strip_suffix('L').unwrap_or(text);
        // Python takes no leading zeros
        let is_plain = digits.bytes().all(|byte| byte.is_ascii_digit())
            && (digits.len() == 1 || !digits.starts_with('0'));
        is_plain.then(|| digits.parse().ok())?
    };
    let all: Vec<usize> = sizes.unwrap_or(inner).split(',').map(size).collect::<Option<_>>()?;
    (all.len() > 1 || sizes.is_some()).then_some(all)
}

/// `'<f4'` and its kin, and whether the highest byte comes first: with or without a byte order (`f4`, `=f4`,
/// `|f4` are this machine's), or by name (`float32`), as numpy reads them.
fn element_type(text: &str) -> Result<(Dtype, bool), &str> {
    let quoted = ['\'', '"'].into_iter().find_map(|quote| {
        text.strip_prefix(quote)?.strip_suffix(quote).filter(|inner| !inner.contains(quote))
    });
    let name = quoted.ok_or(text)?;
    let by_name = TYPES.iter().find(|(dtype, _)| files::name(*dtype) == name);
    if let Some((dtype, _)) = by_name {
        return Ok((*dtype, false));
    }
    let (order, code) = match name.split_at_checked(1) {
        Some((order, code)) if "<>=|".contains(order) => (order, code),
        _ => ("=", name),
    };
    let code = if code == "?" { "b1" } else { code };
    let known = TYPES.iter().find(|(_, descr)| &descr[1..] == code);
    known.map(|(dtype, _)| (*dtype, order == ">" && dtype.bitsize() > 8)).ok_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(version: u8, header: &str, data: &[u8]) -> Vec<u8> {
        let length = header.len() as u32;
        let bytes = if version == 1 { 2 } else { 4 };
        [MAGIC, &[version, 0], &length.to_le_bytes()[..bytes], header.as_bytes(), data].concat()
    }

    #[test]
    fn what_is_written_is_read() {
        for shape in [&[][..], &[5], &[0], &[2, 3], &[4, 0, 1, 7]] {
            for (dtype, name) in TYPES {
                let bytes = [header(dtype, shape).unwrap(), vec![1, 2, 3]].concat();
                assert_eq!((bytes.len() - 3) % 64, 0, "{name} {shape:?}");
                let npy = parse(&bytes).unwrap();
                let (shape, data) = (shape.to_vec(), &[1, 2, 3][..]);
                let (dtype, fortran_order) = (Ok(dtype), false);
                let expected = Npy { dtype, big_endian: false, shape, fortran_order, data };
                assert_eq!(npy, expected);
            }
        }
        assert!(header(Dtype::BF16, &[2]).is_err());
        assert!(header(Dtype::F32, &[1; 40_000]).is_err());
    }

    #[test]
    fn headers_as_numpy_writes_them() {
        let numpy = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, \
            'shape': (2, 3), }                                                          \n";
        assert_eq!(header(Dtype::F32, &[2, 3]).unwrap(), numpy);
        let one = String::from_utf8_lossy(&header(Dtype::F64, &[5]).unwrap()).into_owned();
        assert!(one.contains("'shape': (5,), }"), "{one}");
        let none = String::from_utf8_lossy(&header(Dtype::F64, &[]).unwrap()).into_owned();
        assert!(none.contains("'shape': (), }"), "{none}");
    }

    #[test]
    fn headers_as_others_may_write_them() {
        for (version, text) in [
            (1, "{'descr': '<i8', 'fortran_order': True, 'shape': (2, 3)}\n"),
            (2, "{\"shape\":(2,3,),\"fortran_order\":True,\"descr\":\"<i8\"}"),
            (3, "  { 'fortran_order' : True , 'shape' : ( 2 , 3 ) , 'descr' : '<i8' , }   \n"),
        ] {
            let bytes = file(version, text, b"");
            let npy = parse(&bytes).unwrap();
            assert_eq!((npy.dtype, npy.shape), (Ok(Dtype::I64), vec![2, 3]), "{text}");
            assert!(npy.fortran_order);
        }
        // numpy's dtype() takes all of these
        for (descr, dtype, big_endian) in [
            ("'f4'", Dtype::F32, false),
            ("'=f4'", Dtype::F32, false),
            ("'|f4'", Dtype::F32, false),
            ("'>f4'", Dtype::F32, true),
            ("\"<f4\"", Dtype::F32, false),
            ("'float32'", Dtype::F32, false),
            ("'|u1'", Dtype::U8, false),
            ("'>u1'", Dtype::U8, false),
            ("'u1'", Dtype::U8, false),
            ("'|b1'", Dtype::BOOL, false),
            ("'?'", Dtype::BOOL, false),
            ("'bool'", Dtype::BOOL, false),
            ("'>i8'", Dtype::I64, true),
        ] {
            for version in 1..=3 {
                let text =
                    format!("{{'descr': {descr}, 'fortran_order': False, 'shape': (2L, 3L), }}\n");
                let bytes = file(version, &text, b"");
                let npy = parse(&bytes).unwrap();
                let found = (npy.dtype, npy.big_endian, npy.shape);
                assert_eq!(found, (Ok(dtype), big_endian, vec![2, 3]), "{text}");
            }
        }
        for descr in ["'<f4", "<f4", "''", "'<'", "'<f3'", "'f4' 'f4'", "'<f4\"", "'U3'"] {
            let text = format!("{{'descr': {descr}, 'fortran_order': False, 'shape': ()}}");
            let bytes = file(1, &text, b"");
            assert!(parse(&bytes).is_err() || parse(&bytes).unwrap().dtype.is_err(), "{text}");
        }
        let text = "{'descr': [('a', '<f4'), ('b', '<i8')], 'fortran_order': False, 'shape': ()}";
        let bytes = file(1, text, b"");
        assert_eq!(parse(&bytes).unwrap().dtype, Err("[('a', '<f4'), ('b', '<i8')]"));
    }

    #[test]
    fn malformed_headers_are_refused() {
        for text in [
            "",
            "{",
            "{}",
            "[]",
            "{'descr'}",
            "{'descr': '<f4'}",
            "{'descr: '<f4', 'fortran_order': False, 'shape': ()}",
            "{'descr': '<f4', 'fortran_order': false, 'shape': ()}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': 3}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (3)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (+3,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (03,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), 'shape': (3, 2)}",
            "{'descr': '<f8', 'fortran_order': False, 'shape': (3,), 'descr': '<f4'}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-3,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (3,,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (), 'more': 1}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': ((((((((((((((",
            "{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{}",
        ] {
            assert!(parse(&file(1, text, b"")).is_err(), "{text}");
        }
        assert!(parse(&file(4, "{}", b"")).is_err());
        let long = format!("{}{{}}", " ".repeat(MAX_HEADER - 1));
        let error = data_start(&file(2, &long, b"")).unwrap_err().to_string();
        assert_eq!(error, "expected a header of at most 1048576 bytes, got 1048577");
        assert!(data_start(&file(2, &long[1..], b"")).is_ok());
        assert!(parse(b"PK\x03\x04").is_err());
    }

    /// Every prefix and every one-byte change of a good file: refused or read, without a panic.
    #[test]
    fn damaged_files_do_no_harm() {
        let good = [header(Dtype::F32, &[2, 3]).unwrap(), vec![0; 24]].concat();
        let start = good.len() - 24;
        for length in 0..start {
            assert!(parse(&good[..length]).is_err(), "cut at {length}");
        }
        for at in 0..start {
            for byte in 0..=255 {
                let mut bytes = good.clone();
                bytes[at] = byte;
                let _ = parse(&bytes);
            }
        }
    }
}
