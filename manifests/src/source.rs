//! Files, folders and standard input.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Errors};
use crate::text::LONGEST_FILE;

/// How deep folders may be nested; a link that leads back into itself ends here.
const DEEPEST: usize = 16;

/// A file's name, as messages show it, and its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The path as it was given, or found in a folder that was; `stdin` for standard input.
    pub file: Arc<str>,
    /// What it holds.
    pub bytes: Vec<u8>,
}

/// What files are read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Objects.
    Manifests,
    /// States of pods.
    PodStatus,
}

/// Where a file stands among all that are read: they are read in this order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    part: Part,
    /// Which of the paths that were given.
    root: usize,
    /// From there to the file. A folder's files come before its sub-folders.
    steps: Arc<[(bool, OsString)]>,
}

impl Position {
    /// The position of a file at this path below the given path of this number; of the given path itself, where it is
    /// empty.
    pub fn file(part: Part, root: usize, below: &Path) -> Self {
        let mut steps: Vec<(bool, OsString)> = below.iter().map(|step| (true, step.into())).collect();
        if let Some((folder, _)) = steps.last_mut() {
            *folder = false;
        }
        Self { part, root, steps: steps.into() }
    }

    /// What the file is read for.
    pub fn part(&self) -> Part {
        self.part
    }
}

/// What a path leads to.
#[derive(Debug, Default)]
pub struct Walk {
    /// The files, in the order in which they are read.
    pub files: Vec<PathBuf>,
    /// Whether something below the path is a link.
    pub links: bool,
    /// What could not be looked at, and why.
    pub errors: Vec<(PathBuf, Error)>,
}

/// Finds the files that [`read`] would read at this path. `entering` is called with each folder before it is listed.
pub fn walk(path: &Path, mut entering: impl FnMut(&Path)) -> Walk {
    let mut walk = Walk::default();
    walk.step(path, 0, &mut entering);
    walk
}

/// Whether a folder's entry of this name is read, if it is a file.
pub fn is_manifest(name: &OsStr) -> bool {
    let ending = Path::new(name).extension();
    !is_hidden(name) && ending.is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
}

/// Whether a folder's entry of this name is passed over, whatever it is.
pub fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

/// Reads files: each path is a file, a folder, or `-` for standard input.
///
/// Of a folder, the files that end in `.yaml`, `.yml` or `.json`, sorted by name, then its sub-folders likewise. Names
/// that start with a dot are passed over. A file that is named itself may have any name.
pub fn read(paths: &[PathBuf]) -> Result<Vec<Source>, Errors> {
    let (mut sources, mut errors) = (Vec::new(), Vec::new());
    for path in paths {
        if path.as_os_str() == "-" {
            match bytes(io::stdin().lock()) {
                Ok(bytes) => sources.push(Source { file: Arc::from("stdin"), bytes }),
                Err(e) => errors.push(failed(Path::new("stdin"), &e)),
            }
            continue;
        }
        let found = walk(path, |_| {});
        errors.extend(found.errors.into_iter().map(|(_, error)| error));
        for file in found.files {
            match read_file(&file) {
                Ok(source) => sources.push(source),
                Err(error) => errors.push(error),
            }
        }
    }
    Errors::or(errors, sources)
}

/// Reads one file.
pub fn read_file(path: &Path) -> Result<Source, Error> {
    let bytes = std::fs::File::open(path).and_then(bytes).map_err(|e| failed(path, &e))?;
    Ok(Source { file: shown(path), bytes })
}

impl Walk {
    fn step(&mut self, path: &Path, depth: usize, entering: &mut impl FnMut(&Path)) {
        if depth > DEEPEST {
            let reason = format!("folders nested deeper than {DEEPEST}; does a link lead back?");
            return self.errors.push((path.to_owned(), Error::File { file: shown(path), reason }));
        }
        self.links |= depth > 0 && path.is_symlink();
        match std::fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => {
                entering(path);
                match folder(path) {
                    Ok(paths) => paths.iter().for_each(|path| self.step(path, depth + 1, entering)),
                    Err(e) => self.errors.push((path.to_owned(), failed(path, &e))),
                }
            }
            Ok(_) => self.files.push(path.to_owned()),
            Err(e) => self.errors.push((path.to_owned(), failed(path, &e))),
        }
    }
}

/// A folder's manifests, then its sub-folders.
fn folder(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (mut files, mut folders) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let (name, path) = (entry.file_name(), entry.path());
        if is_hidden(&name) {
            continue;
        } else if path.is_dir() {
            folders.push(path);
        } else if is_manifest(&name) {
            files.push(path);
        }
    }
    files.sort();
    folders.sort();
    files.append(&mut folders);
    Ok(files)
}

/// All bytes, or enough of them to see that there are too many.
fn bytes(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(LONGEST_FILE as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn failed(path: &Path, error: &io::Error) -> Error {
    let text = error.to_string();
    // The number is of no use to a person.
    let reason = text.split(" (os error").next().unwrap_or(&text).to_string();
    Error::Read { file: shown(path), kind: error.kind(), reason }
}

fn shown(path: &Path) -> Arc<str> {
    Arc::from(path.to_string_lossy())
}
