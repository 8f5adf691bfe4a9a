//! The user's folder: manifests, `world.txt`, `expected.txt`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use moat_policies::Object;

use crate::cells::{Cell, Host, Named};
use crate::error::{LabError, Trying as _};
use crate::expected::{EXPECTED_FILE, Expected};
use crate::textfile::LineError;
use crate::world::{self, WORLD_FILE, WorldHost};

/// A folder's manifests, together with those of other folders.
pub(crate) struct Loaded {
    pub(crate) objects: Vec<Object>,
    /// What a reader should know of them.
    pub(crate) warnings: Vec<String>,
}

/// Reads manifests, strictly.
pub(crate) fn load(folders: &[PathBuf]) -> Result<Loaded, LabError> {
    let manifests = moat_manifests::load(folders).map_err(|e| LabError::Manifests(e.to_string()))?;
    let warnings = manifests.warnings.iter().map(ToString::to_string).collect();
    Ok(Loaded { objects: manifests.objects, warnings })
}

/// Reads `world.txt`; nobody is outside where there is none.
pub(crate) fn load_world(folder: &Path) -> Result<Vec<WorldHost>, LabError> {
    Ok(read(&folder.join(WORLD_FILE), world::parse)?.unwrap_or_default())
}

/// What `expected.txt` says of each cell, in their order; nothing where there is no such file. And what is odd about it.
pub(crate) fn load_expected(
    folder: &Path,
    cells: &[Cell],
    hosts: &[Host],
) -> Result<(Vec<bool>, Option<String>), LabError> {
    let file = folder.join(EXPECTED_FILE);
    let Some(expected) = read(&file, Expected::parse)? else { return Ok((Vec::new(), None)) };
    let verdicts: Vec<Option<bool>> = cells.iter().map(|c| expected.verdict(c, hosts)).collect();
    let mut unspoken = cells.iter().zip(&verdicts).filter(|(_, v)| v.is_none()).map(|(c, _)| c);
    if let Some(first) = unspoken.next() {
        let cell = Named(first, hosts).to_string();
        return Err(LabError::Unspoken { file, cell, more: unspoken.count() });
    }
    let odd = expected.line_about_nobody(hosts).map(|e| format!("{}: {e}", file.display()));
    Ok((verdicts.into_iter().flatten().collect(), odd))
}

fn read<T>(file: &Path, parse: impl Fn(&str) -> Result<T, LineError>) -> Result<Option<T>, LabError> {
    match fs::read_to_string(file) {
        Ok(text) => parse(&text).map(Some).map_err(|error| LabError::TextFile { file: file.into(), error }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).trying(|| format!("cannot read {}", file.display())),
    }
}
