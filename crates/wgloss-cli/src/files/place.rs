//! Where an array is, and how a file is put in its place.

use std::convert::Infallible;
use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail, ensure};
use safetensors::tensor::TensorView;

use super::Tensor;
use super::temporary::{Temporary, undisturbed};

/// The key that is none of a tensor in a `.safetensors` header.
pub(super) const METADATA: &str = "__metadata__";

/// Where an array is: `FILE.npy`, `FILE.safetensors` or `FILE.safetensors#KEY`; `-` or `-#KEY` for standard
/// input or output.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    pub(super) path: PathBuf,
    pub(super) key: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Format {
    Npy,
    Safetensors,
}

impl FromStr for Place {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        if let Some(key) = text.strip_prefix("-#") {
            return Ok(Place { path: "-".into(), key: Some(key.into()) });
        }
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

    /// Whether it is standard input or output: `-`.
    pub fn is_standard(&self) -> bool {
        is_standard(&self.path)
    }

    /// The format that the name tells.
    pub(super) fn format(&self) -> Result<Format> {
        let format = match (self.is_standard(), &self.key) {
            (true, None) => Format::Npy,
            (true, Some(_)) => Format::Safetensors,
            (false, _) => format(&self.path)
                .context("expected a name that ends in .npy, .safetensors or .safetensors#KEY")?,
        };
        self.expect_key_of(format)?;
        Ok(format)
    }

    /// Refuses a key where there is but one array.
    pub(super) fn expect_key_of(&self, format: Format) -> Result<()> {
        match (format, &self.key) {
            (Format::Npy, Some(key)) => bail!("expected no key for a .npy file, got {key:?}"),
            _ => Ok(()),
        }
    }

    /// Refuses a place that several tensors cannot be written to.
    pub fn expect_tensors(&self) -> Result<()> {
        let is_whole_file = self.key.is_none() && self.format()? == Format::Safetensors;
        ensure!(is_whole_file, "expected a name that ends in .safetensors");
        expect_writable(&self.path)
    }

    /// Refuses the file of another flag.
    pub fn expect_apart(&self, flag: &str, other: &Path) -> Result<()> {
        expect_apart(&self.path, flag, other)
    }

    /// Writes tensors by their keys, in place of what was there.
    pub fn write_tensors(&self, tensors: &[(String, Tensor)]) -> Result<()> {
        replace(&self.path, &safetensors_bytes(tensors.iter().map(|(key, value)| (key, value)))?)
    }
}

/// Whether a path stands for standard input or output: `-`.
pub fn is_standard(path: &Path) -> bool {
    path == Path::new("-")
}

/// The folder that a file is in.
pub(super) fn folder(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The file that is meant, links resolved: also where it does not exist yet, at the end of links that
/// lead to it.
pub(super) fn resolved(path: &Path) -> Result<PathBuf> {
    /// As many links in a row as Linux follows.
    const MOST_LINKS: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        if let Ok(existing) = path.canonicalize() {
            return Ok(existing);
        }
        match fs::read_link(&path) {
            Ok(link) => path = folder(&path).join(link),
            Err(_) => {
                let parent = folder(&path);
                ensure!(parent.is_dir(), "expected an existing folder {}", parent.display());
                let name = path.file_name().context("expected a file's name")?;
                return Ok(parent.canonicalize()?.join(name));
            }
        }
    }
    bail!("expected a file, found links that lead to each other")
}

/// What is at a path, in words, if it is nothing that a file can take the place of.
pub(super) fn expect_file_or_nothing(path: &Path) -> Result<()> {
    let Ok(metadata) = fs::metadata(path) else { return Ok(()) };
    match metadata.is_file() {
        true => Ok(()),
        false => bail!("expected a file, found a {}", word(&metadata.file_type())),
    }
}

/// A folder, a pipe or a device, in a word.
pub(super) fn word(file_type: &fs::FileType) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if file_type.is_fifo() || file_type.is_socket() {
            return "pipe";
        }
    }
    if file_type.is_dir() { "folder" } else { "device" }
}

/// Refuses a path that no file can be written to; `-` is standard output.
pub fn expect_writable(path: &Path) -> Result<()> {
    match is_standard(path) {
        true => Ok(()),
        false => expect_file_or_nothing(&resolved(path)?),
    }
}

/// Refuses a path that another flag has too.
pub fn expect_apart(path: &Path, flag: &str, other: &Path) -> Result<()> {
    let is_same = match (is_standard(path), is_standard(other)) {
        (false, false) => {
            resolved(path).ok().is_some_and(|path| resolved(other).ok() == Some(path))
        }
        (a, b) => a && b,
    };
    ensure!(!is_same, "expected another place than {flag}");
    Ok(())
}

/// Writes a file, whole or not at all, or standard output.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    if is_standard(path) {
        return write_out(&mut &bytes[..]);
    }
    let path = resolved(path)?;
    let file = Temporary::beside(&path)?;
    file.file().write_all(bytes)?;
    file.file().sync_all()?;
    let _undisturbed = undisturbed();
    Ok(file.put(&path)?)
}

/// Writes to standard output. A reader that has seen enough is no error.
pub fn write_out(from: &mut impl io::Read) -> Result<()> {
    let mut out = io::stdout().lock();
    match io::copy(from, &mut out).and_then(|_| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

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
            ("-", "-", None),
            ("-#k", "-", Some("k")),
            ("./-#k", "./-#k", None),
        ] {
            let Ok(got) = text.parse::<Place>();
            assert_eq!(got, Place { path: path.into(), key: key.map(Into::into) }, "{text}");
            assert_eq!(got.to_string(), text);
        }
    }
}
