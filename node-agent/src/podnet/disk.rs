//! The few things that the journal asks of a disk, in one place: so that a test can write down in which order they were asked,
//! and try what any crash in between could leave.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
#[cfg(test)]
use std::sync::{Arc, Mutex};

/// A folder whose files are written.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    folder: PathBuf,
    #[cfg(test)]
    pub(crate) recorder: Recorder,
}

/// A file that is written at its end only.
#[derive(Debug)]
pub(crate) struct DiskFile {
    file: File,
    #[cfg(test)]
    id: usize,
    #[cfg(test)]
    recorder: Recorder,
}

impl Disk {
    /// The folder at `folder`, made where there is none.
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        let disk = Self {
            folder: folder.to_owned(),
            #[cfg(test)]
            recorder: Recorder::default(),
        };
        disk.make()?;
        Ok(disk)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Makes the folder where it is not there (any more), so that it outlives a power failure.
    pub(crate) fn make(&self) -> io::Result<()> {
        let missing: Vec<&Path> = self.folder.ancestors().take_while(|path| !path.exists()).collect();
        fs::create_dir_all(&self.folder)?;
        for parent in missing.iter().filter_map(|path| path.parent()) {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            File::open(parent)?.sync_all()?;
        }
        Ok(())
    }

    /// A file's bytes; `None` where there is no such file.
    pub(crate) fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        match File::open(self.path(name)).and_then(|mut file| file.read_to_end(&mut bytes)) {
            Ok(_) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A new, empty file, in place of one of that name.
    pub(crate) fn create(&self, name: &str) -> io::Result<DiskFile> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new().append(true).create_new(true).open(path)?;
        Ok(DiskFile {
            file,
            #[cfg(test)]
            id: self.recorder.created(name),
            #[cfg(test)]
            recorder: self.recorder.clone(),
        })
    }

    /// Gives a file another name, in place of one that has it.
    pub(crate) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))?;
        #[cfg(test)]
        self.recorder.record(Op::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    /// Waits until the names in the folder are on the disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()?;
        #[cfg(test)]
        self.recorder.record(Op::SyncFolder);
        Ok(())
    }
}

impl DiskFile {
    pub(crate) fn append(&self, bytes: &[u8]) -> io::Result<()> {
        (&self.file).write_all(bytes)?;
        #[cfg(test)]
        self.recorder.record(Op::Append(self.id, bytes.to_vec()));
        Ok(())
    }

    pub(crate) fn cut(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }

    /// Waits until the file's bytes are on the disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()?;
        #[cfg(test)]
        self.recorder.record(Op::SyncFile(self.id));
        Ok(())
    }

    /// Whether nobody who opens the folder's files will find it: it was removed, or its folder was.
    pub(crate) fn is_removed(&self) -> bool {
        self.file.metadata().is_ok_and(|metadata| metadata.nlink() == 0)
    }

    /// A file that cannot be written, for tests: it stands for a full disk.
    #[cfg(test)]
    pub(crate) fn read_only(&self, path: &Path) -> Self {
        let file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Self { file, id: self.id, recorder: self.recorder.clone() }
    }
}

/// What was asked of a disk.
#[cfg(test)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// A file, by its number, got this name.
    Create(usize, String),
    Append(usize, Vec<u8>),
    SyncFile(usize),
    Rename(String, String),
    SyncFolder,
    /// Something that the test wants to remember the moment of.
    Mark(String),
}

/// Everything that was asked, in order.
#[cfg(test)]
#[derive(Clone, Debug, Default)]
pub(crate) struct Recorder(Arc<Mutex<(usize, Vec<Op>)>>);

#[cfg(test)]
impl Recorder {
    fn created(&self, name: &str) -> usize {
        let mut log = self.0.lock().expect("no test panics in here");
        log.0 += 1;
        let id = log.0;
        log.1.push(Op::Create(id, name.to_owned()));
        id
    }

    pub(crate) fn record(&self, op: Op) {
        self.0.lock().expect("no test panics in here").1.push(op);
    }

    pub(crate) fn ops(&self) -> Vec<Op> {
        self.0.lock().expect("no test panics in here").1.clone()
    }
}
