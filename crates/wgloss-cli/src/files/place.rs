//! Where an array is, and how a file is put in its place.

use std::convert::Infallible;
use std::fmt;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail, ensure};
use safetensors::tensor::TensorView;

use super::Tensor;

/// The key that is none of a tensor in a `.safetensors` header.
pub(super) const METADATA: &str = "__metadata__";

/// Where an array is: `FILE.npy`, `FILE.safetensors` or `FILE.safetensors#KEY`.
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

    pub(super) fn format(&self) -> Result<Format> {
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
    pub(super) fn resolved(&self) -> Option<PathBuf> {
        self.path
            .canonicalize()
            .ok()
            .or_else(|| Some(folder(&self.path).canonicalize().ok()?.join(self.path.file_name()?)))
    }
}

/// The folder that a file is in.
pub(super) fn folder(path: &Path) -> &Path {
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
pub(super) fn temporary(folder: &Path) -> Result<tempfile::NamedTempFile> {
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
        ] {
            let Ok(got) = text.parse::<Place>();
            assert_eq!(got, Place { path: path.into(), key: key.map(Into::into) }, "{text}");
            assert_eq!(got.to_string(), text);
        }
    }
}
