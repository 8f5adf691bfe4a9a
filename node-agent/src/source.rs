//! Manifest folders as the source of objects: read whole, watched, read again when something in them changes.
//!
//! ```text
//!   folders ──inotify──▶ read ──▶ decode ──▶ Reading { objects, fingerprint }
//!      ▲                  │ a file vanished meanwhile: again
//!      └── watches are set before the read, so a change during it is seen after it
//! ```
//!
//! A reading that cannot be decoded is told as an error and changes nothing: whoever receives readings keeps the last
//! good one.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use moat_manifests::{Error, Errors, Source, Warning};
use moat_policies::Object;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};

/// How often a file may vanish under a reading before that is told as an error.
const VANISHED_TRIES: usize = 10;

/// How long a new file that nobody has finished writing is waited for.
const UNFINISHED: Duration = Duration::from_millis(20);

/// How long until a folder that is not there, or that could not be watched, is looked for again.
const MISSING: Duration = Duration::from_millis(500);

/// How deep sub-folders are watched; as deep as they are read.
const DEEPEST: usize = 16;

/// The folders of one agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folders {
    /// `--manifests`: objects.
    pub manifests: Vec<PathBuf>,
    /// `--pod-status`: where pods run and what their addresses are.
    pub pod_status: Vec<PathBuf>,
}

/// What the folders said at one moment.
#[derive(Clone, Debug)]
pub struct Reading {
    /// All objects, workloads as the pods that they stand for, pods' states put over them.
    pub objects: Vec<Object>,
    /// Names the content, see [`moat_manifests::fingerprint`].
    pub fingerprint: String,
    /// What is odd in the manifests.
    pub warnings: Vec<Warning>,
}

impl Folders {
    /// Reads and decodes everything once.
    pub fn read(&self) -> Result<Reading, Errors> {
        let sources = self.sources()?;
        self.decode(&sources)
    }

    fn sources(&self) -> Result<[Vec<Source>; 2], Errors> {
        let mut tries = VANISHED_TRIES;
        loop {
            let read =
                || Ok([moat_manifests::read(&self.manifests)?, moat_manifests::read(&self.pod_status)?]);
            match read() {
                Err(errors) if tries > 0 && only_vanished(&errors) && self.all_exist() => tries -= 1,
                result => return result,
            }
        }
    }

    /// A folder that was given and is gone is no file that vanished: that is for a person to mend.
    fn all_exist(&self) -> bool {
        self.manifests.iter().chain(&self.pod_status).all(|path| path.exists())
    }

    fn decode(&self, [manifests, pod_status]: &[Vec<Source>; 2]) -> Result<Reading, Errors> {
        fn files(sources: &[Source]) -> impl Iterator<Item = (&str, &[u8])> {
            sources.iter().map(|s| (&*s.file, &s.bytes[..]))
        }
        let mut decoded = moat_manifests::decode(files(manifests))?;
        decoded.overlay(&moat_manifests::decode_pod_status(files(pod_status))?);
        Ok(Reading {
            objects: decoded.objects,
            fingerprint: moat_manifests::fingerprint(manifests.iter().chain(pod_status)),
            warnings: decoded.warnings,
        })
    }

    /// Calls `told` with the first reading, and with a new one whenever the folders say something else, until it
    /// returns `false`. Does not return before that: it is for a thread of its own.
    pub fn watch(&self, mut told: impl FnMut(Result<Reading, Errors>) -> bool) -> io::Result<()> {
        let mut last: Option<Result<String, String>> = None;
        loop {
            let watch = Watch::new(self)?;
            let result = self.read();
            let now = result.as_ref().map(|r| r.fingerprint.clone()).map_err(ToString::to_string);
            if last.as_ref() != Some(&now) {
                last = Some(now);
                if !told(result) {
                    return Ok(());
                }
            }
            watch.wait()?;
        }
    }
}

fn only_vanished(errors: &Errors) -> bool {
    errors.iter().all(|e| matches!(e, Error::Read { kind: io::ErrorKind::NotFound, .. }))
}

/// Everything that has to change for the folders to say something else.
struct Watch {
    inotify: OwnedFd,
    /// Some of it could not be watched.
    incomplete: bool,
}

impl Watch {
    fn new(folders: &Folders) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let mut watched = BTreeSet::new();
        let mut incomplete = false;
        for path in folders.manifests.iter().chain(&folders.pod_status) {
            // The folder around it, too: the path can be a link that is switched, or not be there yet.
            let parent = match path.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                _ => Path::new("."),
            };
            incomplete |= !watch(&inotify, parent, 0, false, &mut watched);
            incomplete |= !watch(&inotify, path, 0, true, &mut watched);
        }
        Ok(Self { inotify, incomplete })
    }

    /// Waits until something may have changed.
    fn wait(&self) -> io::Result<()> {
        if !readable(&self.inotify, self.incomplete.then_some(MISSING))? {
            return Ok(());
        }
        // A file that was only made so far is likely being written: its writer's close is a better moment.
        while self.drain()? == Seen::OnlyCreated {
            if !readable(&self.inotify, Some(UNFINISHED))? {
                break;
            }
        }
        Ok(())
    }

    fn drain(&self) -> io::Result<Seen> {
        let mut seen = Seen::OnlyCreated;
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        loop {
            match reader.next() {
                Ok(event) if event.events() == ReadFlags::CREATE => {}
                Ok(_) => seen = Seen::Finished,
                Err(rustix::io::Errno::AGAIN) => return Ok(seen),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[derive(PartialEq, Eq)]
enum Seen {
    OnlyCreated,
    Finished,
}

/// Watches a path, and the folders in it where `deep`; tells whether all of that could be done.
fn watch(
    inotify: &OwnedFd,
    path: &Path,
    depth: usize,
    deep: bool,
    watched: &mut BTreeSet<(PathBuf, bool)>,
) -> bool {
    if depth > DEEPEST || !watched.insert((path.to_owned(), deep)) {
        return true;
    }
    let flags = WatchFlags::CLOSE_WRITE
        | WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE
        | WatchFlags::MOVE_SELF;
    if inotify::add_watch(inotify, path, flags).is_err() {
        return false;
    }
    if !deep {
        return true;
    }
    let Ok(entries) = std::fs::read_dir(path) else { return path.is_file() };
    let folders: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect();
    // Each of them, also after one that could not be watched.
    folders.iter().filter(|folder| !watch(inotify, folder, depth + 1, true, watched)).count() == 0
}

fn readable(fd: &OwnedFd, timeout: Option<Duration>) -> io::Result<bool> {
    let timeout = timeout.and_then(|t| Timespec::try_from(t).ok());
    loop {
        match poll(&mut [PollFd::new(fd, PollFlags::IN)], timeout.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
