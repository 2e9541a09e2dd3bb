//! Writing results: all files, or none.

use std::io::{Seek, SeekFrom, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail, ensure};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::place::{Format, METADATA, folder, temporary};
use super::read::name;
use super::{Place, Tensor};
use crate::npy;

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
                // where the format has no tensor, but text: no reader would take the file
                ensure!(
                    key != METADATA,
                    "expected another key than {METADATA:?}, which .safetensors reserves"
                );
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

    /// Makes room for results of these types and shapes: each in a temporary file beside where it
    /// belongs.
    pub fn create(&self, results: &[(&'static str, Dtype, Vec<usize>)]) -> Result<Writer<'_>> {
        let files = self.files.iter();
        let files = files.map(|file| file.create(results).with_context(|| file.flags()));
        Ok(Writer { files: files.collect::<Result<_>>()? })
    }
}

/// Results on their way to files, which are put in place when all of them are complete.
pub struct Writer<'a> {
    files: Vec<Growing<'a>>,
}

/// A file that is being written.
struct Growing<'a> {
    output: &'a Output,
    file: tempfile::NamedTempFile,
    regions: Vec<Region<'a>>,
}

/// Where a result goes in its file.
struct Region<'a> {
    part: &'a Part,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Where the next elements go, and where the last ones end.
    next: u64,
    end: u64,
}

impl Writer<'_> {
    /// Writes the next elements of a result, if it is one of those to be written.
    pub fn append(&mut self, name: &str, tensor: &Tensor) -> Result<()> {
        for Growing { output, file, regions } in &mut self.files {
            for region in regions.iter_mut().filter(|region| region.part.name == name) {
                file.seek(SeekFrom::Start(region.next))
                    .and_then(|_| file.write_all(tensor.bytes()))
                    .with_context(|| output.flags())?;
                region.next += tensor.bytes().len() as u64;
            }
        }
        Ok(())
    }

    /// Puts the files in place: all of them, or none where one is not complete and on disk. Tells
    /// what was written where.
    pub fn finish(self) -> Result<Vec<String>> {
        for Growing { output, file, regions } in &self.files {
            let complete = regions.iter().all(|region| region.next == region.end);
            ensure!(complete, "{}: incomplete", output.flags());
            file.as_file().sync_all().with_context(|| output.flags())?;
        }
        let mut written: Vec<String> = Vec::new();
        for Growing { output, file, regions } in self.files {
            file.persist(&output.path).map_err(|error| {
                let before = match &written[..] {
                    [] => "nothing was written".into(),
                    lines => format!("written before: {}", lines.join("; ")),
                };
                anyhow!("{}: cannot be put in place: {}; {before}", output.flags(), error.error)
            })?;
            written.extend(regions.iter().map(|Region { part, dtype, shape, .. }| {
                format!("{} {} {shape:?}", part.place, name(*dtype))
            }));
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

    /// A temporary file with a header for these results, beside where it belongs.
    fn create(&self, results: &[(&'static str, Dtype, Vec<usize>)]) -> Result<Growing<'_>> {
        let mut regions = Vec::new();
        for part in &self.parts {
            let result = results.iter().find(|(name, ..)| *name == part.name);
            let (_, dtype, shape) = result.context("expected a result, got none")?;
            regions.push(Region { part, dtype: *dtype, shape: shape.clone(), next: 0, end: 0 });
        }
        let header = match (self.format, &mut regions[..]) {
            (Format::Npy, [region]) => npy::header(region.dtype, &region.shape)?,
            (Format::Npy, _) => bail!("expected one result for a .npy file"),
            (Format::Safetensors, regions) => safetensors_start(regions)?,
        };
        let mut next = header.len() as u64;
        for region in &mut regions {
            region.next = next;
            next += bytes(region.dtype, &region.shape);
            region.end = next;
        }
        let mut file = temporary(folder(&self.path))?;
        file.write_all(&header)?;
        Ok(Growing { output: self, file, regions })
    }
}

/// The bytes of an array's elements.
fn bytes(dtype: Dtype, shape: &[usize]) -> u64 {
    shape.iter().product::<usize>() as u64 * dtype.bitsize() as u64 / 8
}

/// A `.safetensors` file up to its elements; sorts the regions into the order in which they follow.
fn safetensors_start(regions: &mut [Region<'_>]) -> Result<Vec<u8>> {
    // the widest elements first, as the format's own writer has it: all are aligned then
    regions.sort_by(|a, b| b.dtype.cmp(&a.dtype).then_with(|| a.part.key.cmp(&b.part.key)));
    let mut at = 0;
    let tensors = regions.iter().map(|Region { part, dtype, shape, .. }| {
        let start = at;
        at += bytes(*dtype, shape) as usize;
        let info = TensorInfo { dtype: *dtype, shape: shape.clone(), data_offsets: (start, at) };
        (part.key.clone(), info)
    });
    let header = Metadata::new(None, tensors.collect()).map_err(|error| anyhow!("{error}"))?;
    let mut text = serde_json::to_string(&header)?;
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    Ok([&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use wgloss::Array;

    use super::*;
    use crate::files::{Kind, Source};

    fn place(path: PathBuf) -> Place {
        Place { path, key: None }
    }

    /// Two results, and a folder that changes between the check and the writing.
    fn write(change: impl FnOnce(&Path)) -> (tempfile::TempDir, Result<Vec<String>>) {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("sub")).unwrap();
        let [loss, grad] = ["loss.npy", "sub/grad.npy"].map(|f| place(folder.path().join(f)));
        let outputs = Outputs::check([("loss", &loss), ("grad", &grad)], &[]).unwrap();
        change(&folder.path().join("sub"));
        let write = || {
            let scalar = |name| (name, Dtype::F32, vec![]);
            let mut writer = outputs.create(&[scalar("loss"), scalar("grad")])?;
            for (name, value) in [("loss", 1.0_f32), ("grad", 2.0)] {
                writer.append(name, &Array::scalar(value).into())?;
            }
            writer.finish()
        };
        (folder, write())
    }

    #[test]
    fn writes_all() {
        let (folder, written) = write(|_| {});
        assert_eq!(written.unwrap().len(), 2);
        let loss = place(folder.path().join("loss.npy"));
        let read = Source::open(&loss, "loss", Kind::Numbers).unwrap().read().unwrap();
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
