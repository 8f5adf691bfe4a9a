//! What moat put on a node's disk. Only what is named here is removed, and folders that are empty then: a folder may be somebody
//! else's, too.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::podnet::journal;
use crate::{cni_files, guard, source};

/// Where an agent listens, in its run folder.
pub(super) const AGENT_SOCKET: &str = "agent.sock";

/// A file or folder that is still there.
#[derive(Debug, thiserror::Error)]
#[error("cannot remove {}", path.display())]
pub struct FileError {
    path: PathBuf,
    source: io::Error,
}

/// What was removed, and what could not be.
#[derive(Debug, Default)]
pub(super) struct Swept {
    pub(super) removed: Vec<String>,
    pub(super) errors: Vec<FileError>,
}

impl Swept {
    /// So that no pod begins here any more with moat's network.
    pub(super) fn configuration(&mut self, cni_conf_dir: &Path) {
        self.installed(cni_conf_dir, cni_files::CONFIG);
    }

    /// The plugin, and the folders of the agent.
    pub(super) fn rest(&mut self, cni_bin_dir: &Path, state_dir: &Path, run_dir: &Path) {
        self.installed(cni_bin_dir, cni_files::PLUGIN);
        let state = journal::FILES.into_iter().chain(source::FILES);
        state.for_each(|name| self.file(&state_dir.join(name)));
        self.empty_folder(state_dir);
        let socket = run_dir.join(AGENT_SOCKET);
        self.notes(&moat_cni::note::folder(&socket));
        self.file(&socket);
        guard::FILES.iter().for_each(|name| self.file(&run_dir.join(name)));
        self.empty_folder(run_dir);
    }

    /// A file for the node's runtime, and what a crash may have left beside it.
    fn installed(&mut self, folder: &Path, name: &str) {
        self.file(&folder.join(name));
        self.file(&folder.join(cni_files::unfinished(name)));
    }

    /// What plugins left for an agent that will not come.
    fn notes(&mut self, folder: &Path) {
        for (link, _) in moat_cni::note::read_all(folder).unwrap_or_default() {
            if let Err(source) = moat_cni::note::remove(folder, &link) {
                self.errors.push(FileError { path: folder.join(link), source });
            }
        }
        self.empty_folder(folder);
    }

    fn file(&mut self, path: &Path) {
        self.done(path, fs::remove_file(path));
    }

    /// One that holds something, or that something is mounted on, stays.
    fn empty_folder(&mut self, path: &Path) {
        match fs::remove_dir(path) {
            Err(error)
                if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::ResourceBusy) => {
            }
            other => self.done(path, other),
        }
    }

    fn done(&mut self, path: &Path, result: io::Result<()>) {
        match result {
            Ok(()) => self.removed.push(path.display().to_string()),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(source) => self.errors.push(FileError { path: path.to_owned(), source }),
        }
    }
}
