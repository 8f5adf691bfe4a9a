//! The state file: who holds which address, written so that no crash and no full disk can make an address go out twice.
//!
//! One line a record, appended and synced before the address is used; so what a crash can cut off is the record
//! of an address that nobody has yet. At each start the file is written anew with what still
//! counts: beside the old one, synced, then moved over it, and the folder synced.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::de::Error as _;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::attachment::{Attachment, AttachmentKey};

const FILE: &str = "attachments.journal";
const LOCK: &str = "attachments.lock";

/// The first line: what this file is, and in which version of its form.
const HEADER: &str = r#"{"moat":"attachments","version":1}"#;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum Record {
    /// These addresses are this attachment's.
    Attached(Attachment),
    /// The attachment is gone; its addresses rest since then.
    Released {
        /// Whose they were.
        key: AttachmentKey,
        /// Microseconds since the Unix epoch.
        at: u64,
    },
    /// An address rests since then: what is left of an attachment when the file is written anew.
    Resting {
        /// The address.
        address: IpAddr,
        /// Microseconds since the Unix epoch.
        at: u64,
    },
}

/// Why the state file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process writes it.
    #[error("another agent uses the state in {0}; stop it first, or give this one another --state-dir")]
    InUse(PathBuf),
    /// It is of a release that this one does not know, or no state file at all.
    #[error("{0} is not a state file of this release of moat")]
    Foreign(PathBuf),
    /// A line in its midst cannot be read: not what a crash leaves.
    #[error(
        "line {line} of {path} is damaged, so it is not known which addresses are taken; restore the file, or drain \
         the node and remove it"
    )]
    Damaged {
        /// The state file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// It cannot be read or written.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What a state file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    pub(crate) attachments: BTreeMap<AttachmentKey, Attachment>,
    pub(crate) resting: BTreeMap<IpAddr, u64>,
}

impl Contents {
    fn apply(&mut self, record: Record) {
        match record {
            Record::Attached(attachment) => {
                for address in attachment.addresses() {
                    self.resting.remove(&address);
                }
                self.attachments.insert(attachment.key(), attachment);
            }
            Record::Released { key, at } => {
                if let Some(attachment) = self.attachments.remove(&key) {
                    self.resting.extend(attachment.addresses().map(|address| (address, at)));
                }
            }
            Record::Resting { address, at } => {
                self.resting.insert(address, at);
            }
        }
    }

    /// An address that the record gives to an attachment while another has it: nothing that we wrote.
    fn clash(&self, record: &Record) -> Option<(IpAddr, AttachmentKey)> {
        let Record::Attached(new) = record else { return None };
        let others = self.attachments.iter().filter(|(key, _)| **key != new.key());
        others
            .flat_map(|(key, other)| other.addresses().map(move |address| (address, key.clone())))
            .find(|(address, _)| new.addresses().any(|wanted| wanted == *address))
    }

    fn records(&self) -> impl Iterator<Item = Record> + '_ {
        let resting = self.resting.iter().map(|(&address, &at)| Record::Resting { address, at });
        resting.chain(self.attachments.values().cloned().map(Record::Attached))
    }
}

/// A file that has grown by this much, in bytes, and to twice what counted in it, is written anew.
const SLACK: u64 = 1 << 20;

/// The state file, open for writing by us alone.
#[derive(Debug)]
pub(crate) struct Journal {
    folder: PathBuf,
    path: PathBuf,
    file: File,
    /// What the file says, and the pending records with it.
    contents: Contents,
    /// At which length the file is written anew.
    limit: u64,
    /// How long the file is without what a failed write may have left.
    length: u64,
    /// A failed write may have left something.
    dirty: bool,
    /// Records that did not fit on the disk; they go before anything else that is written.
    pending: Vec<Record>,
    lock: File,
}

impl Journal {
    /// Opens the state file of `folder`, making it where there is none.
    pub(crate) fn open(folder: &Path) -> Result<Self, JournalError> {
        fs::create_dir_all(folder).map_err(io_error("make the folder", folder))?;
        let lock_path = folder.join(LOCK);
        let lock = File::create(&lock_path).map_err(io_error("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(JournalError::InUse(folder.to_owned())),
            Err(TryLockError::Error(source)) => return Err(io_error("lock", &lock_path)(source)),
        }
        let path = folder.join(FILE);
        let contents = match read(&path)? {
            Some(text) => decode(&path, &text)?.0,
            None => Contents::default(),
        };
        if let Err(error) = rewrite(folder, &path, &contents) {
            // A disk that is full now must not keep the pods that exist from being served: the old file is as good.
            warn!(error = &error as &dyn std::error::Error, "the state file cannot be written anew");
            if !path.exists() {
                return Err(error);
            }
        }
        let length = read(&path)?.map_or(Ok(0), |text| decode(&path, &text).map(|(_, length)| length))?;
        let file = OpenOptions::new().append(true).open(&path).map_err(io_error("open", &path))?;
        Ok(Self {
            folder: folder.to_owned(),
            path,
            file,
            contents,
            limit: length * 2 + SLACK,
            length,
            // Of a file that was not written anew, what a crash left is still there.
            dirty: true,
            pending: Vec::new(),
            lock,
        })
    }

    /// What is recorded, or will be as soon as the disk takes it.
    pub(crate) fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Writes a record; it is on the disk when this returns. After a failure it is as if nothing had been asked.
    pub(crate) fn write(&mut self, record: Record) -> Result<(), JournalError> {
        self.pending.push(record.clone());
        let result = self.flush();
        match result {
            Ok(()) => {
                self.contents.apply(record);
                self.rewrite_if_long();
            }
            Err(_) => drop(self.pending.pop()),
        }
        result
    }

    /// Writes a record now or, if the disk does not take it, before the next one that it takes.
    ///
    /// For releases: until the record is written, a crash leaves the address with an attachment that is gone, which
    /// the next start sees and releases. So nothing is lost, and a full disk keeps no pod from being removed.
    pub(crate) fn write_or_keep(&mut self, record: Record) {
        self.contents.apply(record.clone());
        self.pending.push(record);
        match self.flush() {
            Ok(()) => self.rewrite_if_long(),
            Err(error) => warn!(error = &error as &dyn std::error::Error, "a release will be recorded later"),
        }
    }

    /// Leaves out what no longer counts, where that is worth the writing. Nothing may be pending.
    fn rewrite_if_long(&mut self) {
        if self.length < self.limit {
            return;
        }
        let rewritten = rewrite(&self.folder, &self.path, &self.contents).and_then(|length| {
            let file =
                OpenOptions::new().append(true).open(&self.path).map_err(io_error("open", &self.path))?;
            Ok((length, file))
        });
        match rewritten {
            Ok((length, file)) => {
                self.file = file;
                self.length = length;
            }
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "the state file cannot be written anew")
            }
        }
        self.limit = self.length * 2 + SLACK;
    }

    fn flush(&mut self) -> Result<(), JournalError> {
        if self.dirty {
            self.file.set_len(self.length).map_err(io_error("cut", &self.path))?;
        }
        // Half a line would run into the next one.
        self.dirty = true;
        let lines: Vec<u8> = self.pending.iter().flat_map(line).collect();
        let written = self.file.write_all(&lines).and_then(|()| self.file.sync_data());
        if written.is_err() && self.file.set_len(self.length).is_err() {
            // The next write begins with another try at it.
            written.map_err(io_error("write", &self.path))
        } else {
            self.dirty = false;
            written.map_err(io_error("write", &self.path))?;
            self.length += lines.len() as u64;
            self.pending.clear();
            Ok(())
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        // Closing alone would leave the lock with a child process that was forked, and has not got to its exec.
        let _ = self.lock.unlock();
    }
}

/// Every attachment that the state file in `folder` records; none where there is no such file. Reads what
/// the agent that owns the file has synced, without disturbing it.
pub(crate) fn read_attachments(folder: &Path) -> Result<Vec<Attachment>, JournalError> {
    let path = folder.join(FILE);
    match read(&path)? {
        Some(text) => Ok(decode(&path, &text)?.0.attachments.into_values().collect()),
        None => Ok(Vec::new()),
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, JournalError> {
    let mut text = Vec::new();
    match File::open(path).and_then(|mut file| file.read_to_end(&mut text)) {
        Ok(_) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(io_error("read", path)(source)),
    }
}

/// What a state file says, and how many of its bytes say it.
fn decode(path: &Path, text: &[u8]) -> Result<(Contents, u64), JournalError> {
    let mut contents = Contents::default();
    let mut lines = text.split_inclusive(|&byte| byte == b'\n').enumerate();
    let header = lines.next().map(|(_, line)| line);
    if header.and_then(|line| line.strip_suffix(b"\n")) != Some(HEADER.as_bytes()) {
        return Err(JournalError::Foreign(path.to_owned()));
    }
    let mut good = HEADER.len() as u64 + 1;
    let mut bad = None;
    for (index, line) in lines {
        match serde_json::from_slice(line) {
            Ok(record) if line.ends_with(b"\n") => {
                let clash = || {
                    let (address, key) = contents.clash(&record)?;
                    let reason = format_args!("{address} belongs to {key} already");
                    Some((index + 1, serde_json::Error::custom(reason)))
                };
                if let Some((line, source)) = bad.take().or_else(clash) {
                    return Err(JournalError::Damaged { path: path.to_owned(), line, source });
                }
                contents.apply(record);
                good += line.len() as u64;
            }
            // Without its newline it was not written to its end, so nobody was told that it was.
            Ok(_) => break,
            // What a crash cut off is at the end: nothing readable may follow.
            Err(source) => {
                bad.get_or_insert((index + 1, source));
            }
        }
    }
    Ok((contents, good))
}

/// Writes the file anew; returns its length. After an error the old file is as it was.
fn rewrite(folder: &Path, path: &Path, contents: &Contents) -> Result<u64, JournalError> {
    let text = encode(contents);
    let new = path.with_extension("new");
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(io_error("write", &new))?;
    // From the rename on, the new file is the one that counts, also if a power failure could still bring the old
    // one back: they say the same.
    if let Err(error) = File::open(folder).and_then(|folder| folder.sync_all()) {
        warn!(%error, "the state file's folder cannot be synced");
    }
    Ok(text.len() as u64)
}

/// The whole file: what [`decode`] reads.
fn encode(contents: &Contents) -> Vec<u8> {
    let mut text = HEADER.as_bytes().to_vec();
    text.push(b'\n');
    text.extend(contents.records().flat_map(|record| line(&record)));
    text
}

/// A state file as it is written anew, for the fuzz targets; `None` where it cannot be read.
#[cfg(feature = "fuzzing")]
pub(crate) fn rewritten(text: &[u8]) -> Option<Vec<u8>> {
    decode(Path::new(FILE), text).ok().map(|(contents, _)| encode(&contents))
}

fn line(record: &Record) -> Vec<u8> {
    // Strings and numbers: nothing here can fail to become JSON.
    let mut line = serde_json::to_vec(record).unwrap_or_default();
    line.push(b'\n');
    line
}

fn io_error(action: &'static str, path: &Path) -> impl Fn(io::Error) -> JournalError + use<> {
    let path = path.to_owned();
    move |source| JournalError::Io { action, path: path.clone(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(container: &str, address: &str) -> Attachment {
        let key = AttachmentKey::new(container, "eth0");
        Attachment {
            container_id: container.into(),
            ifname: "eth0".into(),
            network: "moat".into(),
            pod_namespace: "default".into(),
            pod_name: "web".into(),
            pod_uid: None,
            netns: "/run/netns/x".into(),
            host_ifname: key.host_ifname(),
            host_mac: [6; 6],
            pod_mac: [2; 6],
            v4: Some(address.parse().unwrap()),
            v6: None,
            mtu: 1500,
        }
    }

    fn written() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(folder.path()).unwrap();
        assert_eq!(journal.contents(), &Contents::default());
        journal.write(Record::Attached(attachment("a", "10.1.0.1"))).unwrap();
        journal.write(Record::Attached(attachment("b", "10.1.0.2"))).unwrap();
        journal.write(Record::Released { key: AttachmentKey::new("a", "eth0"), at: 7 }).unwrap();
        journal.write(Record::Attached(attachment("c", "10.1.0.3"))).unwrap();
        let path = folder.path().join(FILE);
        (folder, path)
    }

    fn names(contents: &Contents) -> Vec<&str> {
        contents.attachments.keys().map(|key| key.container_id.as_str()).collect()
    }

    #[test]
    fn what_was_written_is_read_again_and_again() {
        let (folder, _) = written();
        for _ in 0..3 {
            let journal = Journal::open(folder.path()).unwrap();
            assert_eq!(names(journal.contents()), ["b", "c"]);
            assert_eq!(journal.contents().resting, BTreeMap::from([("10.1.0.1".parse().unwrap(), 7)]));
            assert_eq!(read_attachments(folder.path()).unwrap().len(), 2);
        }
    }

    #[test]
    fn one_writer_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let first = Journal::open(folder.path()).unwrap();
        assert!(matches!(Journal::open(folder.path()), Err(JournalError::InUse(_))));
        drop(first);
        Journal::open(folder.path()).unwrap();
    }

    /// A kill can stop the writing at any byte. Whatever it cuts off, every record before it counts, and the next is taken.
    #[test]
    fn cut_off_at_any_byte() {
        let (folder, path) = written();
        let whole = fs::read(&path).unwrap();
        for length in HEADER.len() + 1..whole.len() {
            let complete = whole[..length].iter().filter(|&&byte| byte == b'\n').count();
            let expected: &[&str] = match complete - 1 {
                0 => &[],
                1 => &["a"],
                2 => &["a", "b"],
                _ => &["b"],
            };
            let (contents, good) = decode(&path, &whole[..length]).unwrap();
            assert_eq!(names(&contents), expected, "cut at {length}");
            let whole_lines = whole[..length].iter().rposition(|&byte| byte == b'\n').unwrap() + 1;
            assert_eq!(good, whole_lines as u64, "cut at {length}");
        }
        for lost in [1, 2, 100] {
            fs::write(&path, &whole[..whole.len() - lost]).unwrap();
            let mut journal = Journal::open(folder.path()).unwrap();
            journal.write(Record::Attached(attachment("d", "10.1.0.9"))).unwrap();
            drop(journal);
            let journal = Journal::open(folder.path()).unwrap();
            assert_eq!(names(journal.contents()), ["b", "d"], "{lost} bytes lost");
        }
    }

    #[test]
    fn damage_in_the_midst_is_no_crash() {
        let (folder, path) = written();
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replacen("attached", "attacked", 1)).unwrap();
        let error = Journal::open(folder.path()).unwrap_err();
        assert!(matches!(error, JournalError::Damaged { line: 2, .. }), "{error}");
        fs::write(&path, "hello\n").unwrap();
        assert!(matches!(Journal::open(folder.path()), Err(JournalError::Foreign(_))));
    }

    /// One of them would be released while the other still uses the address.
    #[test]
    fn an_address_of_two_attachments_is_damage() {
        let (folder, path) = written();
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replacen("10.1.0.2", "10.1.0.1", 1)).unwrap();
        let error = Journal::open(folder.path()).unwrap_err();
        let JournalError::Damaged { line: 3, source, .. } = &error else { panic!("{error:?}") };
        assert_eq!(source.to_string(), "10.1.0.1 belongs to eth0 of container a already");
    }

    #[test]
    fn a_release_that_did_not_fit_goes_before_the_next_record() {
        let (folder, path) = written();
        let mut journal = Journal::open(folder.path()).unwrap();
        // A file that cannot be written stands for the full disk.
        let good = std::mem::replace(&mut journal.file, File::open(&path).unwrap());
        journal.write_or_keep(Record::Released { key: AttachmentKey::new("b", "eth0"), at: 9 });
        assert!(journal.write(Record::Attached(attachment("d", "10.1.0.2"))).is_err());
        journal.file = good;
        journal.write(Record::Attached(attachment("e", "10.1.0.2"))).unwrap();
        let told = journal.contents().clone();
        drop(journal);
        let journal = Journal::open(folder.path()).unwrap();
        assert_eq!(journal.contents(), &told);
        assert_eq!(names(&told), ["c", "e"]);
        assert!(!told.resting.contains_key(&"10.1.0.2".parse().unwrap()));
    }

    #[test]
    fn a_long_life_makes_no_long_file() {
        let (folder, path) = written();
        let mut journal = Journal::open(folder.path()).unwrap();
        // As if it had grown: the next record makes it be written anew.
        journal.limit = journal.length;
        journal.write(Record::Attached(attachment("d", "10.1.0.4"))).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), journal.length);
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert_eq!(lines, 1 + 1 + 3, "the header, one resting address, three attachments");
        journal.write(Record::Attached(attachment("e", "10.1.0.5"))).unwrap();
        let told = journal.contents().clone();
        drop(journal);
        assert_eq!(Journal::open(folder.path()).unwrap().contents(), &told);
    }
}
