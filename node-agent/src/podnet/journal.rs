//! The state file: who holds which address, written so that no crash and no full disk makes an address go out twice.
//!
//! What happens is appended before it is done ([`Journal::attach`]) or after it was undone ([`Journal::release`]). Two kinds
//! of crash are told apart:
//!
//! - The agent dies, the kernel lives on: what was appended is in the kernel's memory, synced or not, and the links are there.
//! - The machine dies: what was synced is on the disk, and no link is there.
//!
//! So a record need not have reached the disk before its link is made, but before the pod is told its addresses
//! ([`Durable::sync`], which one call does for all that wait); and a release need not be waited for at all: without
//! its record the next start finds an attachment whose link is gone.
//!
//! At each start, when the records were compared with the kernel, the file is written anew with what counts
//! ([`Journal::renew`]): beside the old one, synced, moved over it, and the folder synced. So is it when it has grown, and
//! when the disk may have lost a part of it.

mod format;
#[cfg(test)]
mod power_loss;
#[cfg(test)]
mod tests;

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use moat_cni::failpoint;
use tracing::warn;

use super::attachment::{Attachment, AttachmentKey};
use super::clock::{Clock, rebase};
use super::disk::{Disk, DiskFile};
pub(crate) use format::Contents;
pub(crate) use format::Record;
use format::{Decoded, decode, header, line};

const FILE: &str = "attachments.journal";
const NEW: &str = "attachments.new";
const LOCK: &str = "attachments.lock";

/// All that may be of it in a state folder.
pub(crate) const FILES: [&str; 3] = [FILE, NEW, LOCK];
/// Where a file goes that is damaged, for whoever wants to know what it said.
const DAMAGED: &str = "attachments.damaged";

/// Why the state file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process writes it.
    #[error("another agent uses the state in {0}; stop it first, or give this one another --state-dir")]
    InUse(PathBuf),
    /// It is of a later release.
    #[error(
        "{path} is of a later release of moat (its version is {version}); run that one, or move the file away: who \
         has which address is then read from the pods' links"
    )]
    Newer {
        /// The state file.
        path: PathBuf,
        /// The version that it says it has.
        version: u32,
    },
    /// It cannot be read or written.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The disk lost something that it had taken.
    #[error("the disk did not keep what was written to {0}; the file is written anew")]
    Lost(PathBuf),
}

/// What an opened state file was found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// There was none.
    Nothing,
    /// Whole, but for what a crash may have cut off.
    Whole,
    /// Parts of it cannot be read.
    Damaged,
}

/// A file that has grown by this much, in bytes, and to twice what counted in it, is written anew.
const SLACK: u64 = 1 << 20;

/// The state file, open for writing by us alone.
#[derive(Debug)]
pub(crate) struct Journal {
    disk: Disk,
    clock: Clock,
    durable: Arc<Durable>,
    /// What the file says, and the pending records with it.
    contents: Contents,
    /// At which length the file is written anew.
    limit: u64,
    /// How long the file is without what a failed write may have left.
    length: u64,
    /// A failed write may have left something.
    dirty: bool,
    /// The file does not say what counts: nothing can be appended to it.
    stale: bool,
    /// Records that did not fit on the disk; they go before anything else that is written.
    pending: Vec<Record>,
    lock: File,
}

/// Waits until what was appended is on the disk. Apart from the journal, so that who waits keeps nobody from appending.
#[derive(Debug, Default)]
pub(crate) struct Durable {
    /// How often something was appended.
    appended: AtomicU64,
    /// Where to.
    file: Mutex<Option<Arc<DiskFile>>>,
    /// Up to which append it is on the disk. Held while the disk is waited for.
    synced: Mutex<u64>,
    /// The disk may have lost what it had taken: the file must be written anew.
    lost: AtomicBool,
}

impl Durable {
    fn file(&self) -> Option<Arc<DiskFile>> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns when everything that was appended before the call is on the disk. Who has to wait for another's call finds
    /// afterwards, more often than not, that it was done for him as well.
    pub(crate) fn sync(&self, path: &Path) -> Result<(), JournalError> {
        let wanted = self.appended.load(Ordering::SeqCst);
        let mut synced = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        if *synced >= wanted {
            return Ok(());
        }
        // In this order: should the file be written anew in between, the new one has all of it.
        let now = self.appended.load(Ordering::SeqCst);
        let Some(file) = self.file() else { return Ok(()) };
        if self.lost.load(Ordering::SeqCst) {
            return Err(JournalError::Lost(path.to_owned()));
        }
        if let Err(source) = file.sync() {
            // The kernel tells it once and then forgets: another try would succeed, and mean nothing.
            self.lost.store(true, Ordering::SeqCst);
            return Err(io_error("sync", path)(source));
        }
        *synced = now;
        Ok(())
    }
}

impl Journal {
    /// Opens the state file of `folder` and says what it found. Nothing can be written before [`Journal::renew`] succeeded.
    pub(crate) fn open(folder: &Path, clock: Clock) -> Result<(Self, Found), JournalError> {
        let disk = Disk::open(folder).map_err(io_error("make the folder", folder))?;
        let lock = lock(&disk)?;
        let path = disk.path(FILE);
        let bytes = disk.read(FILE).map_err(io_error("read", &path))?;
        let (decoded, found) = match &bytes {
            None => (Decoded::default(), Found::Nothing),
            Some(bytes) => match decode(bytes) {
                Ok(decoded) if decoded.damaged.is_none() => (decoded, Found::Whole),
                Ok(decoded) => (decoded, Found::Damaged),
                Err(format::Newer(version)) => return Err(JournalError::Newer { path, version }),
            },
        };
        if let Some(line) = decoded.damaged {
            let kept = disk.path(DAMAGED);
            let copied = std::fs::copy(&path, &kept);
            tracing::error!(
                line,
                kept = %kept.display(),
                copied = copied.is_ok(),
                "{} is damaged; who has which address is read from the pods' links",
                path.display()
            );
        }
        let mut contents = decoded.contents;
        let (comparable, now) = (clock.knows(decoded.boot.as_deref()), clock.now());
        contents.resting = rebase(contents.resting, comparable, now);
        contents.forgotten = contents.forgotten.map(|at| if comparable { at.min(now) } else { now });
        let journal = Self {
            disk,
            clock,
            durable: Arc::new(Durable::default()),
            contents,
            limit: u64::MAX,
            length: 0,
            dirty: false,
            stale: true,
            pending: Vec::new(),
            lock,
        };
        Ok((journal, found))
    }

    /// What is recorded, or will be as soon as the disk takes it.
    pub(crate) fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Changes what is recorded; [`Journal::renew`] writes it down.
    pub(crate) fn contents_mut(&mut self) -> &mut Contents {
        self.stale = true;
        &mut self.contents
    }

    /// To wait for the disk with.
    pub(crate) fn durable(&self) -> Arc<Durable> {
        Arc::clone(&self.durable)
    }

    /// Where the state file is.
    pub(crate) fn path(&self) -> PathBuf {
        self.disk.path(FILE)
    }

    /// Whether the disk takes no records.
    pub(crate) fn is_behind(&self) -> bool {
        self.stale || !self.pending.is_empty()
    }

    /// Records an attachment. After a failure it is as if nothing had been asked; after success it is not on the disk before
    /// [`Durable::sync`] says so.
    pub(crate) fn attach(&mut self, attachment: Attachment) -> Result<(), JournalError> {
        let undo = self.contents.attach(attachment.clone());
        self.pending.push(Record::Attached(attachment));
        let written = self.flush();
        if written.is_err() {
            self.pending.pop();
            self.contents.undo(undo);
        }
        written
    }

    /// Records that an attachment is gone, now or, if the disk does not take it, before the next record that it takes.
    pub(crate) fn release(&mut self, key: &AttachmentKey, at: u64) {
        self.write_or_keep(Record::Released { key: key.clone(), at });
    }

    /// Records that an address of no attachment rests, as [`Journal::release`] does.
    pub(crate) fn rest(&mut self, address: std::net::IpAddr, at: u64) {
        self.write_or_keep(Record::Resting { address, at });
    }

    fn write_or_keep(&mut self, record: Record) {
        self.contents.apply(record.clone());
        self.pending.push(record);
        if let Err(error) = self.flush() {
            warn!(error = &error as &dyn std::error::Error, "a release will be recorded later");
        }
    }

    /// Appends what is pending.
    fn flush(&mut self) -> Result<(), JournalError> {
        if self.is_unusable() {
            return self.renew();
        }
        let path = self.path();
        let line = line(&self.pending);
        let Some(file) = self.durable.file() else { return Err(JournalError::Lost(path)) };
        if self.dirty {
            file.cut(self.length).map_err(io_error("cut", &path))?;
        }
        // Half a line would run into the next one.
        self.dirty = true;
        if failpoint::is_next("record torn") {
            let _ = file.append(&line[..line.len() / 2]);
            failpoint::reach("record torn");
        }
        let written = file.append(&line).map_err(io_error("write", &path));
        if written.is_err() && file.cut(self.length).is_err() {
            // The next write begins with another try at it.
            return written;
        }
        self.dirty = false;
        written?;
        self.durable.appended.fetch_add(1, Ordering::SeqCst);
        self.length += line.len() as u64;
        self.pending.clear();
        if self.length >= self.limit
            && let Err(error) = self.renew()
        {
            // What is there is good, if long.
            warn!(error = &error as &dyn std::error::Error, "the state file cannot be written anew");
            self.stale = false;
            self.limit = self.length * 2 + SLACK;
        }
        Ok(())
    }

    /// Whether appending to the file would be in vain.
    fn is_unusable(&self) -> bool {
        self.stale
            || self.durable.lost.load(Ordering::SeqCst)
            || self.durable.file().is_none_or(|file| file.is_removed())
    }

    /// Writes the file anew, with what counts. After an error the old file is as it was, and the next record tries again.
    pub(crate) fn renew(&mut self) -> Result<(), JournalError> {
        self.stale = true;
        let bytes = encode(self.clock.boot(), &self.contents);
        let new = self.disk.path(NEW);
        let write = || {
            let removed = !self.disk.folder().exists();
            self.disk.make()?;
            let file = self.disk.create(NEW)?;
            file.append(&bytes)?;
            file.sync()?;
            failpoint::reach("new file written");
            self.disk.rename(NEW, FILE)?;
            failpoint::reach("new file moved");
            // Before this, a power failure may bring the old file back, without what is appended to the new one.
            self.disk.sync()?;
            Ok((file, removed))
        };
        let (file, removed) = write().map_err(io_error("write", &new))?;
        if removed {
            warn!(folder = %self.disk.folder().display(), "the state folder was removed; it is made anew");
            self.lock = lock(&self.disk)?;
        }
        *self.durable.file.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(file));
        self.durable.lost.store(false, Ordering::SeqCst);
        self.length = bytes.len() as u64;
        self.limit = self.length * 2 + SLACK;
        (self.dirty, self.stale) = (false, false);
        self.pending.clear();
        Ok(())
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        // Closing alone would leave the lock with a child process that was forked, and has not got to its exec.
        let _ = self.lock.unlock();
    }
}

fn lock(disk: &Disk) -> Result<File, JournalError> {
    let path = disk.path(LOCK);
    let file = File::create(&path).map_err(io_error("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(JournalError::InUse(disk.folder().to_owned())),
        Err(TryLockError::Error(source)) => Err(io_error("lock", &path)(source)),
    }
}

/// Every attachment that the state file in `folder` records, the oldest first; none where there is no such file. Reads
/// without disturbing the agent that owns the file.
pub(crate) fn read_attachments(folder: &Path) -> Result<Vec<Attachment>, JournalError> {
    let path = folder.join(FILE);
    match std::fs::read(&path) {
        Ok(bytes) => match decode(&bytes) {
            Ok(decoded) => Ok(decoded.contents.attachments().to_vec()),
            Err(format::Newer(version)) => Err(JournalError::Newer { path, version }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(io_error("read", &path)(source)),
    }
}

/// The whole file: what [`decode`] reads.
fn encode(boot: &str, contents: &Contents) -> Vec<u8> {
    let mut bytes = header(boot);
    for record in contents.records() {
        bytes.extend(line(&[record]));
    }
    bytes
}

/// A state file as it is written anew, for the fuzz targets; `None` where it is of a later release.
#[cfg(feature = "fuzzing")]
pub(crate) fn rewritten(text: &[u8]) -> Option<Vec<u8>> {
    let decoded = decode(text).ok()?;
    Some(encode(decoded.boot.as_deref().unwrap_or_default(), &decoded.contents))
}

fn io_error(action: &'static str, path: &Path) -> impl Fn(io::Error) -> JournalError + use<> {
    let path = path.to_owned();
    move |source| JournalError::Io { action, path: path.clone(), source }
}
