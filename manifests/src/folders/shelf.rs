//! The files as they were read last, and those that somebody is writing.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use crate::{Collection, Error, Errors, Part, Position, read_file, walk};

use super::watch::{News, Watch};
use super::{Folders, Reading};

#[derive(Default)]
pub(super) struct Shelf {
    collection: Collection,
    /// Files that somebody writes, and when they are read even if nobody has closed them.
    unfinished: BTreeMap<Position, (PathBuf, Instant)>,
}

impl Shelf {
    /// Sets watches, and reads everything.
    pub(super) fn read_all(&mut self, folders: &Folders) -> io::Result<Watch> {
        let mut watch = Watch::new()?;
        let mut there = BTreeSet::new();
        for (part, roots) in [(Part::Manifests, &folders.manifests), (Part::PodStatus, &folders.pod_status)] {
            for (root, path) in roots.iter().enumerate() {
                self.read_root(part, root, path, &mut watch, &mut there);
            }
        }
        let gone = |position: &&Position| !there.contains(*position);
        let gone: Vec<Position> = self.collection.positions().filter(gone).cloned().collect();
        for position in gone {
            self.collection.remove(&position);
        }
        self.unfinished.retain(|position, _| there.contains(position));
        Ok(watch)
    }

    fn read_root(
        &mut self,
        part: Part,
        root: usize,
        path: &Path,
        watch: &mut Watch,
        there: &mut BTreeSet<Position>,
    ) {
        let below = |found: &Path| found.strip_prefix(path).unwrap_or(found).to_owned();
        let position = |found: &Path| Position::file(part, root, &below(found));
        watch.around(path);
        let found = walk(path, |folder| watch.folder(folder, part, root, below(folder)));
        watch.links |= found.links;
        for (failed, error) in found.errors {
            // A file or folder that is gone by now is no error. What was given is to be there, and so is a link's end.
            let vanished = failed != path && !failed.is_symlink() && is_missing(&error);
            if !vanished && there.insert(position(&failed)) {
                self.collection.fail(&position(&failed), error);
            }
        }
        for file in found.files {
            let position = position(&file);
            if file == path || file.is_symlink() {
                watch.file(&file);
            }
            there.insert(position.clone());
            if !self.unfinished.contains_key(&position) {
                self.read_file(&position, &file);
            }
        }
    }

    /// Reads the files that there are news of, and those whose time has come. Tells whether anything was read, and whether all
    /// must be.
    pub(super) fn read(&mut self, news: News) -> (bool, bool) {
        let mut files = news.done;
        for position in files.keys() {
            self.unfinished.remove(position);
        }
        self.unfinished.extend(news.begun);
        files
            .extend(news.touched.into_iter().filter(|(position, _)| !self.unfinished.contains_key(position)));
        let now = Instant::now();
        let due = self.unfinished.extract_if(.., |_, (_, deadline)| *deadline <= now);
        files.extend(due.map(|(position, (path, _))| (position, path)));
        let (mut read, mut all) = (false, news.all);
        for (position, path) in files {
            // What it is now may lead elsewhere.
            match std::fs::symlink_metadata(&path) {
                Ok(metadata) if metadata.is_symlink() || metadata.is_dir() => all = true,
                _ => read |= self.read_file(&position, &path),
            }
        }
        (read, all)
    }

    /// When the next file is read that somebody is writing.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.unfinished.values().map(|(_, deadline)| *deadline).min()
    }

    /// What became different since this last succeeded.
    pub(super) fn commit(&mut self) -> Result<Reading, Errors> {
        let changes = self.collection.commit()?;
        Ok(Reading { changes, fingerprint: self.collection.fingerprint() })
    }

    fn read_file(&mut self, position: &Position, path: &Path) -> bool {
        // Opening a pipe would wait for somebody to write into it.
        let odd = std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file());
        let read = match odd {
            true => {
                let reason = "is no regular file".to_owned();
                Err(Error::File { file: Arc::from(path.to_string_lossy()), reason })
            }
            false => read_file(path),
        };
        match read {
            Ok(source) => self.collection.put(position, &source.file, &source.bytes),
            Err(error) if is_missing(&error) && !path.is_symlink() => self.collection.remove(position),
            Err(error) => {
                self.collection.fail(position, error);
                true
            }
        }
    }
}

fn is_missing(error: &Error) -> bool {
    matches!(error, Error::Read { kind: io::ErrorKind::NotFound, .. })
}
