//! What the controller told, on the disk: so that a node which starts without one enforces the last that it knew.
//!
//! ```text
//!   told.journal:  Kept (format, node) │ Update (all of it) │ Update │ Update …      each with its length and sum
//! ```
//!
//! Every update is appended by a thread of its own, after it was handed on: policy does not wait for a disk. Where the file has
//! grown, or something could not be written, all of it is written anew beside it and moved over it. What a crash leaves
//! unfinished at the end is not read; what was told last may then be missing, and comes with the next connection.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use moat_api::{Change, Told, wire};
use prost::Message as _;
use tracing::{info, warn};

const FILE: &str = "told.journal";
const NEW: &str = "told.new";
/// All that may be of it in a state folder.
pub(crate) const FILES: [&str; 2] = [FILE, NEW];
const FORMAT: u32 = 1;

/// The file may become so much longer than twice what it began with.
const GROWTH: u64 = 1 << 20;

/// More than this is not kept for a disk that does not take it: then all of it is written anew.
const MOST_UNWRITTEN: usize = 8 << 20;

/// Length and sum before each record.
const HEAD: usize = 4 + SUM;
const SUM: usize = 16;

/// Why what was kept cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// It cannot be read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It was told to another node.
    #[error("{} is what the node {node} was told; give this one another --state-dir", path.display())]
    AnotherNode {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        node: String,
    },
}

/// What was told so far, in memory and on the disk.
#[derive(Debug)]
pub(crate) struct Kept {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    memory: Mutex<Memory>,
    news: Condvar,
}

#[derive(Debug, Default)]
struct Memory {
    told: Told,
    /// Records that are not on the disk yet.
    unwritten: Vec<u8>,
    /// They are not enough: all is to be written anew.
    anew: bool,
    stop: bool,
}

impl Shared {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// What was kept in this folder for this node, and from now on is. What is damaged is as if it had not been written.
    pub(crate) fn open(folder: &Path, node: &str) -> Result<Self, KeptError> {
        let path = folder.join(FILE);
        let failed = |action| {
            let path = path.clone();
            move |source| KeptError::Io { action, path, source }
        };
        fs::create_dir_all(folder).map_err(failed("make the folder of"))?;
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(failed("read")(error)),
        };
        let told = read(&bytes, node).map_err(|node| KeptError::AnotherNode { path: path.clone(), node })?;
        if told.is_none() && !bytes.is_empty() {
            warn!(file = %path.display(), "what the controller told is damaged, and not used");
        }
        let memory = Memory { told: told.unwrap_or_default(), anew: !bytes.is_empty(), ..Memory::default() };
        let shared = Arc::new(Shared { memory: Mutex::new(memory), news: Condvar::new() });
        let writer =
            Writer { folder: folder.to_owned(), node: node.to_owned(), file: None, size: 0, most: 0 };
        let keeps = shared.clone();
        let thread = std::thread::Builder::new()
            .name("kept".to_owned())
            .spawn(move || writer.run(&keeps))
            .map_err(failed("start a thread that writes"))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// What was told so far.
    pub(crate) fn told(&self) -> Told {
        self.shared.memory().told.clone()
    }

    /// An update was told. Returns what it changes, with everything that goes named.
    pub(crate) fn take(&self, message: &wire::Update, change: Change) -> Change {
        let mut memory = self.shared.memory();
        let change = memory.told.take(change);
        if memory.unwritten.len() > MOST_UNWRITTEN {
            memory.anew = true;
        }
        if !memory.anew {
            append(&mut memory.unwritten, &message.encode_to_vec());
        }
        drop(memory);
        self.shared.news.notify_one();
        change
    }
}

impl Drop for Kept {
    /// What was told is on the disk then, if the disk takes it.
    fn drop(&mut self) {
        self.shared.memory().stop = true;
        self.shared.news.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Writer {
    folder: PathBuf,
    node: String,
    /// `None`: it is to be written anew.
    file: Option<File>,
    size: u64,
    /// When it has grown to this, it is written anew.
    most: u64,
}

impl Writer {
    fn run(mut self, shared: &Shared) {
        let mut failed = false;
        loop {
            let mut memory = shared.memory();
            while !memory.stop && !memory.anew && memory.unwritten.is_empty() {
                memory = shared.news.wait(memory).unwrap_or_else(PoisonError::into_inner);
            }
            let stop = memory.stop;
            if stop && !memory.anew && memory.unwritten.is_empty() {
                return;
            }
            let records = std::mem::take(&mut memory.unwritten);
            let anew = std::mem::take(&mut memory.anew) || self.file.is_none() || self.size > self.most;
            // Taken at once with the records, so that it holds them all and none that is still to be appended.
            let whole = anew.then(|| memory.told.whole());
            drop(memory);
            let written = match whole {
                Some(whole) => self.write_anew(&whole),
                None => self.append(&records),
            };
            match written {
                Ok(()) if failed => info!("what the controller tells is kept again"),
                Ok(()) => {}
                Err(error) => {
                    self.file = None;
                    if !failed {
                        warn!(
                            "what the controller tells cannot be kept: {error}; it is tried again with the next news"
                        );
                    }
                    if stop {
                        return;
                    }
                    failed = true;
                    continue;
                }
            }
            failed = false;
        }
    }

    fn append(&mut self, records: &[u8]) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        file.write_all(records)?;
        file.sync_data()?;
        self.size += records.len() as u64;
        Ok(())
    }

    fn write_anew(&mut self, whole: &Change) -> io::Result<()> {
        let bytes = file(&self.node, whole);
        let (new, path) = (self.folder.join(NEW), self.folder.join(FILE));
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).open(&new)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(&self.folder)?.sync_all()?;
        self.size = bytes.len() as u64;
        self.most = 2 * self.size + GROWTH;
        self.file = Some(file);
        Ok(())
    }
}

/// A file that tells all of this.
fn file(node: &str, whole: &Change) -> Vec<u8> {
    let mut bytes = Vec::new();
    append(&mut bytes, &wire::Kept { format: FORMAT, node: node.to_owned() }.encode_to_vec());
    append(&mut bytes, &moat_api::update(0, whole).encode_to_vec());
    bytes
}

/// A file as the next start of the node that it names writes it; `None` where it cannot be read.
#[cfg(feature = "fuzzing")]
pub(crate) fn rewritten(bytes: &[u8]) -> Option<Vec<u8>> {
    let node = wire::Kept::decode(records(bytes).next()?).ok()?.node;
    let told = read(bytes, &node).ok()??;
    Some(file(&node, &told.whole()))
}

fn append(records: &mut Vec<u8>, payload: &[u8]) {
    // A message that a controller may send is shorter by far.
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    records.extend(length.to_le_bytes());
    records.extend(&blake3::hash(payload).as_bytes()[..SUM]);
    records.extend(payload);
}

/// The records up to the first that is not whole.
fn records(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = u32::from_le_bytes(*bytes.first_chunk()?) as usize;
        let payload = bytes.get(HEAD..HEAD.checked_add(length)?)?;
        let sum = &bytes[4..HEAD];
        bytes = &bytes[HEAD + length..];
        (blake3::hash(payload).as_bytes()[..SUM] == *sum).then_some(payload)
    })
}

/// What a file tells; `None` where it is not whole up to the first state, or of another format. The error is another node's name.
fn read(bytes: &[u8], node: &str) -> Result<Option<Told>, String> {
    let mut records = records(bytes);
    let Some(Ok(head)) = records.next().map(wire::Kept::decode) else { return Ok(None) };
    if head.format != FORMAT {
        return Ok(None);
    }
    if head.node != node {
        return Err(head.node);
    }
    let mut told = None;
    for record in records {
        let Some(change) = wire::Update::decode(record).ok().and_then(|update| Change::try_from(update).ok())
        else {
            break;
        };
        told.get_or_insert_with(Told::default).take(change);
    }
    Ok(told.filter(|told| told.dangling().is_none()))
}
