//! Arrays from and to `.npy` and `.safetensors` files.

use std::borrow::Cow;
use std::convert::Infallible;
use std::fmt;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytemuck::pod_collect_to_vec;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use wgloss::half::{bf16, f16};
use wgloss::reference::Values;
use wgloss::{Array, Data};

use crate::npy;

#[cfg(target_endian = "big")]
compile_error!("both file formats are little-endian, and so must be the machine");

/// As many as numpy has.
const MAX_DIMENSIONS: usize = 64;

/// Where an array is: `FILE.npy`, `FILE.safetensors` or `FILE.safetensors#KEY`.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    path: PathBuf,
    key: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Format {
    Npy,
    Safetensors,
}

impl FromStr for Place {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let mut marks = text.match_indices('#').map(|(at, _)| (&text[..at], &text[at + 1..]));
        Ok(match marks.find(|(path, _)| format(Path::new(path)).is_some()) {
            Some((path, key)) => Place { path: path.into(), key: Some(key.into()) },
            None => Place { path: text.into(), key: None },
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        self.key.iter().try_for_each(|key| write!(f, "#{key}"))
    }
}

fn format(path: &Path) -> Option<Format> {
    match path.extension()?.to_str()?.to_lowercase().as_str() {
        "npy" => Some(Format::Npy),
        "safetensors" => Some(Format::Safetensors),
        _ => None,
    }
}

impl Place {
    /// The same place with a key, which it must not have yet.
    pub fn with_key(mut self, key: &str) -> Result<Self> {
        ensure!(self.key.is_none(), "--key: expected one key for --input {self}, got also {key:?}");
        self.key = Some(key.into());
        Ok(self)
    }

    fn format(&self) -> Result<Format> {
        let format = format(&self.path)
            .context("expected a name that ends in .npy, .safetensors or .safetensors#KEY")?;
        if let (Format::Npy, Some(key)) = (format, &self.key) {
            bail!("expected no key for a .npy file, got {key:?}");
        }
        Ok(format)
    }

    /// Refuses a place that several tensors cannot be written to.
    pub fn expect_tensors(&self) -> Result<()> {
        let is_whole_file = self.key.is_none() && self.format()? == Format::Safetensors;
        ensure!(is_whole_file, "expected a name that ends in .safetensors");
        expect_writable(&self.path)
    }

    /// Writes tensors by their keys, in place of what was there.
    pub fn write_tensors(&self, tensors: &[(String, Tensor)]) -> Result<()> {
        replace(&self.path, &safetensors_bytes(tensors.iter().map(|(key, value)| (key, value)))?)
    }

    /// The file that is meant, links resolved, if it exists; otherwise where it would be.
    fn resolved(&self) -> Option<PathBuf> {
        self.path
            .canonicalize()
            .ok()
            .or_else(|| Some(folder(&self.path).canonicalize().ok()?.join(self.path.file_name()?)))
    }
}

/// The folder that a file is in.
fn folder(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Refuses a path that no file can be written to.
pub fn expect_writable(path: &Path) -> Result<()> {
    let parent = folder(path);
    ensure!(parent.is_dir(), "expected an existing folder {}", parent.display());
    ensure!(path.file_name().is_some(), "expected a file's name");
    ensure!(!path.exists() || path.is_file(), "expected a file, found a folder or device");
    Ok(())
}

/// Writes a file, whole or not at all.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    // where a link leads, not the link
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut file = temporary(folder(&path))?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(&path)?;
    Ok(())
}

/// A file that is removed unless it is put in place.
fn temporary(folder: &Path) -> Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        // as for any new file, less the umask; temporary files are private otherwise
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    Ok(builder.prefix(".wgloss-").tempfile_in(folder)?)
}

fn safetensors_bytes<'a>(
    tensors: impl Iterator<Item = (&'a String, &'a Tensor)>,
) -> Result<Vec<u8>> {
    let mut views = Vec::new();
    for (key, tensor) in tensors {
        let view = TensorView::new(tensor.dtype(), tensor.shape().to_vec(), tensor.bytes());
        views.push((key, view.map_err(|error| anyhow!("{error}"))?));
    }
    safetensors::serialize(views, None).map_err(|error| anyhow!("{error}"))
}

/// What an argument's elements mean, and so what types they may have.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Numbers: float32 (float16 and bfloat16 where the op takes them).
    Numbers,
    /// Class indices: int32 or int64.
    Classes,
    /// Either: the type tells which.
    ClassesOrNumbers,
}

impl Kind {
    fn expect(self, dtype: Result<Dtype, &str>) -> Result<Dtype> {
        let (integers, floats) =
            (&[Dtype::I32, Dtype::I64], &[Dtype::F32, Dtype::F16, Dtype::BF16]);
        let (allowed, words, numpy) = match self {
            Kind::Numbers => (floats.to_vec(), "float32", "float32"),
            Kind::Classes => (integers.to_vec(), "int32 or int64", "int64"),
            Kind::ClassesOrNumbers => (
                [&integers[..], floats].concat(),
                "int32 or int64 for classes, float32 for probabilities",
                "int64) or .astype(np.float32",
            ),
        };
        match dtype {
            Ok(dtype) if allowed.contains(&dtype) => return Ok(dtype),
            Ok(dtype) => Err(anyhow!("expected {words}, got {}", name(dtype))),
            Err(other) => Err(anyhow!("expected {words}, got numpy type {other}")),
        }
        .map_err(|error| anyhow!("{error}: convert with .astype(np.{numpy})"))
    }
}

/// The name in numpy's words, where it has one.
fn name(dtype: Dtype) -> String {
    let name = match dtype {
        Dtype::BOOL => "bool",
        Dtype::U8 => "uint8",
        Dtype::U16 => "uint16",
        Dtype::U32 => "uint32",
        Dtype::U64 => "uint64",
        Dtype::I8 => "int8",
        Dtype::I16 => "int16",
        Dtype::I32 => "int32",
        Dtype::I64 => "int64",
        Dtype::F16 => "float16",
        Dtype::BF16 => "bfloat16",
        Dtype::F32 => "float32",
        Dtype::F64 => "float64",
        Dtype::C64 => "complex64",
        other => return other.to_string(),
    };
    name.into()
}

/// Reads an array. `default_key` is the key where the place has none.
pub fn read(place: &Place, default_key: &str, kind: Kind) -> Result<Array<'static>> {
    let format = place.format()?;
    let bytes = fs::read(&place.path)?;
    let (dtype, shape, fortran_order, data) = match format {
        Format::Npy => {
            let npy = npy::parse(&bytes)?;
            (npy.dtype, npy.shape, npy.fortran_order, npy.data)
        }
        Format::Safetensors => {
            let file = SafeTensors::deserialize(&bytes)
                .map_err(|error| anyhow!("not a good .safetensors file: {error}"))?;
            let key = place.key.as_deref().unwrap_or(default_key);
            let tensor = file.tensor(key).map_err(|_| missing_key(key, file.names()))?;
            (Ok(tensor.dtype()), tensor.shape().to_vec(), false, tensor.data())
        }
    };
    let dtype = kind.expect(dtype)?;
    let dimensions = shape.len();
    ensure!(
        dimensions <= MAX_DIMENSIONS,
        "expected at most {MAX_DIMENSIONS} dimensions, got {dimensions}"
    );
    let empty = shape.contains(&0);
    let elements = shape.iter().fold(1_u128, |all, &size| all.saturating_mul(size as u128));
    let expected = if empty { 0 } else { elements.saturating_mul(dtype.bitsize() as u128 / 8) };
    ensure!(
        data.len() as u128 == expected,
        "expected {expected} bytes of {} for shape {shape:?}, got {}",
        name(dtype),
        data.len()
    );
    let data = match fortran_order {
        true if !empty => Cow::Owned(row_major(data, &shape, dtype.bitsize() / 8)),
        _ => Cow::Borrowed(data),
    };
    let array = match dtype {
        Dtype::F32 => Array::from_vec::<f32>(pod_collect_to_vec(&data), &shape),
        Dtype::F16 => Array::from_vec::<f16>(pod_collect_to_vec(&data), &shape),
        Dtype::BF16 => Array::from_vec::<bf16>(pod_collect_to_vec(&data), &shape),
        Dtype::I32 => Array::from_vec::<i32>(pod_collect_to_vec(&data), &shape),
        _ => Array::from_vec::<i64>(pod_collect_to_vec(&data), &shape),
    };
    Ok(array?)
}

fn missing_key(key: &str, mut found: Vec<&str>) -> anyhow::Error {
    const SHOWN: usize = 8;
    found.sort_unstable();
    let shown: Vec<_> = found.iter().take(SHOWN).map(|name| format!("{name:?}")).collect();
    let more = if found.len() > SHOWN { ", ..." } else { "" };
    let found = if found.is_empty() { "none".into() } else { shown.join(", ") };
    anyhow!("expected a tensor {key:?}, found {found}{more} (FILE#KEY names one)")
}

/// Elements of `size` bytes, reordered from first dimension fastest to last dimension fastest.
fn row_major(data: &[u8], shape: &[usize], size: usize) -> Vec<u8> {
    let mut strides = Vec::with_capacity(shape.len());
    let mut stride = size;
    for &length in shape {
        strides.push(stride);
        stride *= length;
    }
    let mut index = vec![0; shape.len()];
    let (mut offset, mut reordered) = (0, Vec::with_capacity(data.len()));
    while reordered.len() < data.len() {
        reordered.extend_from_slice(&data[offset..offset + size]);
        for d in (0..shape.len()).rev() {
            index[d] += 1;
            offset += strides[d];
            if index[d] < shape[d] {
                break;
            }
            offset -= index[d] * strides[d];
            index[d] = 0;
        }
    }
    reordered
}

/// A result as it is written.
#[derive(Debug)]
pub enum Tensor {
    /// In its storage type.
    Stored(Array<'static>),
    /// In float64.
    Exact(Values),
}

impl From<Array<'static>> for Tensor {
    fn from(array: Array<'static>) -> Self {
        Tensor::Stored(array)
    }
}

impl Tensor {
    /// The same, rounded to float32 where it is float64.
    pub fn into_array(self) -> wgloss::Result<Array<'static>> {
        match self {
            Tensor::Stored(array) => Ok(array),
            Tensor::Exact(values) => values.to_array(),
        }
    }

    /// The shape; `[]` for a mean or a sum.
    pub fn shape(&self) -> &[usize] {
        match self {
            Tensor::Stored(array) => array.shape(),
            Tensor::Exact(values) => &values.shape,
        }
    }

    /// The elements in float64.
    pub fn to_f64(&self) -> Cow<'_, [f64]> {
        match self {
            Tensor::Stored(array) => array.to_f64().into(),
            Tensor::Exact(values) => (&values.values).into(),
        }
    }

    fn dtype(&self) -> Dtype {
        match self {
            Tensor::Exact(_) => Dtype::F64,
            Tensor::Stored(array) => match array.dtype() {
                wgloss::DType::F32 => Dtype::F32,
                wgloss::DType::F16 => Dtype::F16,
                wgloss::DType::Bf16 => Dtype::BF16,
                wgloss::DType::I32 => Dtype::I32,
                wgloss::DType::I64 => Dtype::I64,
            },
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Tensor::Stored(array) => Data::bytes(array.data()),
            Tensor::Exact(values) => bytemuck::cast_slice(&values.values),
        }
    }
}

impl fmt::Display for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", name(self.dtype()), self.shape())
    }
}

/// The files to write: checked before any work, put in place when all of them are complete.
#[derive(Debug)]
pub struct Outputs {
    files: Vec<Output>,
}

#[derive(Debug)]
struct Output {
    /// Links resolved.
    path: PathBuf,
    format: Format,
    parts: Vec<Part>,
}

/// A result in a file.
#[derive(Debug)]
struct Part {
    /// Also the flag.
    name: &'static str,
    place: Place,
    key: String,
}

impl Outputs {
    /// Refuses places that cannot be written, those that are also `inputs`, and those that would
    /// overwrite each other.
    pub fn check<'a>(
        places: impl IntoIterator<Item = (&'static str, &'a Place)>,
        inputs: &[(&'static str, &Place)],
    ) -> Result<Self> {
        let mut files: Vec<Output> = Vec::new();
        for (name, place) in places {
            let add = |files: &mut Vec<Output>| {
                let format = place.format()?;
                let parent = folder(&place.path);
                ensure!(parent.is_dir(), "expected an existing folder {}", parent.display());
                let path = place.resolved().context("expected a file's name")?;
                ensure!(
                    !path.exists() || path.is_file(),
                    "expected a file, found a folder or device"
                );
                let same = |input: &&(_, &Place)| input.1.resolved().as_ref() == Some(&path);
                if let Some((input, _)) = inputs.iter().find(same) {
                    bail!("expected another file than --{}", input.replace('_', "-"));
                }
                let key = place.key.clone().unwrap_or_else(|| name.into());
                let part = Part { name, place: place.clone(), key };
                match files.iter_mut().find(|file| file.path == path) {
                    None => files.push(Output { path, format, parts: vec![part] }),
                    Some(file) => {
                        let clash = file
                            .parts
                            .iter()
                            .find(|other| format == Format::Npy || other.key == part.key);
                        if let Some(other) = clash {
                            bail!("expected another place than --{}", other.name);
                        }
                        file.parts.push(part);
                    }
                }
                Ok(())
            };
            add(&mut files).with_context(|| format!("--{name} {place}"))?;
        }
        Ok(Outputs { files })
    }

    /// Writes every file, or none: each to a temporary file in its folder, renamed when all are
    /// complete and on disk. Tells what was written where.
    pub fn write(&self, results: &[(&'static str, &Option<Tensor>)]) -> Result<Vec<String>> {
        let result = |name| {
            let found = results.iter().find(|(result, _)| *result == name);
            found.and_then(|(_, tensor)| tensor.as_ref())
        };
        let mut complete = Vec::new();
        for file in &self.files {
            let parts: Vec<_> =
                file.parts.iter().filter_map(|part| Some((part, result(part.name)?))).collect();
            let temporary = file.complete(&parts).with_context(|| file.flags())?;
            complete.push((file, temporary, parts));
        }
        let mut written = Vec::new();
        for (file, temporary, parts) in complete {
            temporary.persist(&file.path).map_err(|error| {
                let before = match &written[..] {
                    [] => "nothing was written".into(),
                    lines => format!("written before: {}", lines.join("; ")),
                };
                anyhow!("{}: cannot be put in place: {}; {before}", file.flags(), error.error)
            })?;
            written.extend(parts.iter().map(|(part, tensor)| format!("{} {tensor}", part.place)));
        }
        Ok(written)
    }
}

impl Output {
    /// `--loss out.safetensors, --grad out.safetensors`
    fn flags(&self) -> String {
        let flags = self.parts.iter().map(|part| format!("--{} {}", part.name, part.place));
        flags.collect::<Vec<_>>().join(", ")
    }

    /// A temporary file with everything in it, beside where it belongs.
    fn complete(&self, parts: &[(&Part, &Tensor)]) -> Result<tempfile::NamedTempFile> {
        let mut file = temporary(folder(&self.path))?;
        match self.format {
            Format::Npy => {
                for (_, tensor) in parts {
                    file.write_all(&npy::header(tensor.dtype(), tensor.shape())?)?;
                    file.write_all(tensor.bytes())?;
                }
            }
            Format::Safetensors => {
                let tensors = parts.iter().map(|(part, tensor)| (&part.key, *tensor));
                file.write_all(&safetensors_bytes(tensors)?)?;
            }
        }
        file.as_file().sync_all()?;
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(path: PathBuf) -> Place {
        Place { path, key: None }
    }

    #[test]
    fn keys_follow_safetensors_files() {
        for (text, path, key) in [
            ("a.npy", "a.npy", None),
            ("a.safetensors", "a.safetensors", None),
            ("a.safetensors#b#c", "a.safetensors", Some("b#c")),
            ("a.SafeTensors#layer.0/x", "a.SafeTensors", Some("layer.0/x")),
            ("a#1.npy", "a#1.npy", None),
            ("a#1/b.safetensors#k", "a#1/b.safetensors", Some("k")),
            ("", "", None),
        ] {
            let Ok(got) = text.parse::<Place>();
            assert_eq!(got, Place { path: path.into(), key: key.map(Into::into) }, "{text}");
            assert_eq!(got.to_string(), text);
        }
    }

    #[test]
    fn row_major_against_the_plain_rule() {
        let shape = [2, 3, 4];
        let data: Vec<u8> = (0..24).flat_map(|i| [i, 100 + i]).collect();
        let got = row_major(&data, &shape, 2);
        for (i, element) in got.chunks(2).enumerate() {
            let (a, b, c) = (i / 12, i / 4 % 3, i % 4);
            let from = (a + 2 * b + 6 * c) as u8;
            assert_eq!(element, [from, 100 + from], "{i}");
        }
        assert_eq!(row_major(&[7], &[], 1), [7]);
    }

    /// Two results, and a folder that changes between the check and the writing.
    fn write(change: impl FnOnce(&Path)) -> (tempfile::TempDir, Result<Vec<String>>) {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("sub")).unwrap();
        let [loss, grad] = ["loss.npy", "sub/grad.npy"].map(|f| place(folder.path().join(f)));
        let outputs = Outputs::check([("loss", &loss), ("grad", &grad)], &[]).unwrap();
        change(&folder.path().join("sub"));
        let scalar = |value: f32| Some(Tensor::Stored(Array::scalar(value)));
        let written = outputs.write(&[("loss", &scalar(1.0)), ("grad", &scalar(2.0))]);
        (folder, written)
    }

    #[test]
    fn writes_all() {
        let (folder, written) = write(|_| {});
        assert_eq!(written.unwrap().len(), 2);
        let loss = place(folder.path().join("loss.npy"));
        let read = read(&loss, "loss", Kind::Numbers).unwrap();
        assert_eq!(read, Array::scalar(1.0_f32));
    }

    #[test]
    fn writes_nothing_when_a_result_cannot_be_completed() {
        let (folder, written) = write(|sub| fs::remove_dir(sub).unwrap());
        let error = format!("{:#}", written.unwrap_err());
        assert!(error.starts_with("--grad "), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn tells_what_is_in_place_when_a_rename_fails() {
        let (folder, written) = write(|sub| fs::create_dir_all(sub.join("grad.npy/x")).unwrap());
        let error = format!("{:#}", written.unwrap_err());
        let [loss, grad] = ["loss.npy", "sub/grad.npy"].map(|f| folder.path().join(f));
        let start = format!("--grad {}: cannot be put in place: ", grad.display());
        let end = format!("; written before: {} float32 []", loss.display());
        assert!(error.starts_with(&start) && error.ends_with(&end), "{error}");
        // the temporary file is gone
        assert_eq!(fs::read_dir(folder.path().join("sub")).unwrap().count(), 1);
    }
}
