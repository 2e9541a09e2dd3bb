//! Writing results: all files, or none.

use std::fmt;
use std::fs;
use std::io::{self, IsTerminal, Seek, SeekFrom, Write};
use std::path::PathBuf;

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::Serialize;

use super::place::{Format, METADATA, expect_file_or_nothing, is_standard, resolved, write_out};
use super::read::name;
use super::temporary::{Temporary, undisturbed};
use super::{Place, Tensor};
use crate::batches::flag;
use crate::npy;

/// The files to write: checked before any work, put in place when all of them are complete.
#[derive(Debug)]
pub struct Outputs {
    files: Vec<Output>,
}

#[derive(Debug)]
struct Output {
    /// Links resolved; `-` is standard output.
    path: PathBuf,
    format: Format,
    parts: Vec<Part>,
}

/// A result in a file.
#[derive(Debug)]
struct Part {
    /// The library's name for it.
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
                let path = match place.is_standard() {
                    true => {
                        let is_terminal = io::stdout().is_terminal();
                        ensure!(!is_terminal, "expected a file or pipe, found a terminal");
                        place.path.clone()
                    }
                    false => {
                        let path = resolved(&place.path)?;
                        expect_file_or_nothing(&path)?;
                        let is_same = |input: &&(_, &Place)| {
                            !input.1.is_standard()
                                && resolved(&input.1.path).is_ok_and(|input| input == path)
                        };
                        if let Some((input, _)) = inputs.iter().find(is_same) {
                            bail!("expected another file than {}", flag(input));
                        }
                        path
                    }
                };
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
                        let clash = file.parts.iter().find(|other| {
                            let has_one = [format, file.format].contains(&Format::Npy);
                            has_one || other.key == part.key
                        });
                        if let Some(other) = clash {
                            bail!("expected another place than {}", flag(other.name));
                        }
                        file.parts.push(part);
                    }
                }
                Ok(())
            };
            add(&mut files).with_context(|| format!("{} {place}", flag(name)))?;
        }
        Ok(Outputs { files })
    }

    /// Whether something goes to standard output.
    pub fn has_standard(&self) -> bool {
        self.files.iter().any(|file| is_standard(&file.path))
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
    file: Growth,
    regions: Vec<Region<'a>>,
}

/// Where a file grows.
enum Growth {
    /// Beside where it belongs.
    Beside(Temporary),
    /// In a file without a name, until it is copied to standard output.
    Apart(fs::File),
}

impl Growth {
    fn file(&self) -> &fs::File {
        match self {
            Growth::Beside(temporary) => temporary.file(),
            Growth::Apart(file) => file,
        }
    }
}

/// A result that was written.
#[derive(Debug, Serialize)]
pub struct Written {
    /// The library's name for it.
    pub result: &'static str,
    pub file: String,
    pub dtype: String,
    pub shape: Vec<usize>,
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {:?}", self.file, self.dtype, self.shape)
    }
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
                let mut file = file.file();
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
    pub fn finish(self) -> Result<Vec<Written>> {
        for Growing { output, file, regions } in &self.files {
            let complete = regions.iter().all(|region| region.next == region.end);
            ensure!(complete, "{}: incomplete", output.flags());
            if let Growth::Beside(temporary) = file {
                temporary.file().sync_all().with_context(|| output.flags())?;
            }
        }
        let mut written: Vec<Written> = Vec::new();
        // a signal finds all files in place, or none
        let guard = undisturbed();
        let (beside, apart): (Vec<_>, Vec<_>) =
            self.files.into_iter().partition(|file| matches!(file.file, Growth::Beside(_)));
        for Growing { output, file, regions } in beside {
            if let Growth::Beside(temporary) = file {
                temporary.put(&output.path).map_err(|error| {
                    let lines: Vec<_> = written.iter().map(Written::to_string).collect();
                    let before = match &lines[..] {
                        [] => "nothing was written".into(),
                        lines => format!("written before: {}", lines.join("; ")),
                    };
                    anyhow!("{}: cannot be put in place: {error}; {before}", output.flags())
                })?;
            }
            written.extend(regions.iter().map(Region::written));
        }
        drop(guard);
        // a reader of standard output takes its time
        for Growing { output, file, regions } in apart {
            let mut file = file.file();
            file.seek(SeekFrom::Start(0))
                .map_err(Error::new)
                .and_then(|_| write_out(&mut file))
                .with_context(|| output.flags())?;
            written.extend(regions.iter().map(Region::written));
        }
        Ok(written)
    }
}

impl Region<'_> {
    fn written(&self) -> Written {
        Written {
            result: self.part.name,
            file: self.part.place.to_string(),
            dtype: name(self.dtype),
            shape: self.shape.clone(),
        }
    }
}

impl Output {
    /// `--loss out.safetensors, --grad out.safetensors`
    fn flags(&self) -> String {
        let flags = self.parts.iter().map(|part| format!("{} {}", flag(part.name), part.place));
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
        let file = match is_standard(&self.path) {
            true => Growth::Apart(tempfile::tempfile()?),
            false => Growth::Beside(Temporary::beside(&self.path)?),
        };
        file.file().write_all(&header)?;
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
    use std::path::Path;

    use wgloss::Array;

    use super::*;
    use crate::files::{Kind, Opened, Source, Wanted};

    fn place(path: PathBuf) -> Place {
        Place { path, key: None }
    }

    /// Two results, and a folder that changes between the check and the writing.
    fn write(change: impl FnOnce(&Path)) -> (tempfile::TempDir, Result<Vec<Written>>) {
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
        let wanted = Wanted { kind: Kind::Numbers, float: wgloss::DType::F32, is_exact: false };
        let source = Source::open(&mut Opened::default(), &loss, "loss", wanted).unwrap();
        let read = source.read().unwrap();
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
