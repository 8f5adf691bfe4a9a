//! Files, folders and standard input.

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
        } else {
            read_path(path, 0, &mut sources, &mut errors);
        }
    }
    Errors::or(errors, sources)
}

fn read_path(path: &Path, depth: usize, sources: &mut Vec<Source>, errors: &mut Vec<Error>) {
    if depth > DEEPEST {
        let reason = format!("folders nested deeper than {DEEPEST}; does a link lead back?");
        errors.push(Error::File { file: shown(path), reason });
        return;
    }
    let result = match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => folder(path).map(|paths| {
            paths.iter().for_each(|path| read_path(path, depth + 1, sources, errors));
        }),
        Ok(_) => std::fs::File::open(path)
            .and_then(bytes)
            .map(|bytes| sources.push(Source { file: shown(path), bytes })),
        Err(e) => Err(e),
    };
    if let Err(e) = result {
        errors.push(failed(path, &e));
    }
}

/// A folder's manifests, then its sub-folders.
fn folder(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (mut files, mut folders) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(path)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let manifest = path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
        if hidden {
            continue;
        } else if path.is_dir() {
            folders.push(path);
        } else if manifest {
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
