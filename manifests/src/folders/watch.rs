//! What changes in the folders, as the kernel tells it.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::{Part, Position, is_hidden, is_manifest};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};

/// How long a new file is waited for into which nobody has written: it may be complete, as a hard link is.
const CREATED: Duration = Duration::from_millis(20);

/// How long a file that is being written is waited for, from the last write on.
const WRITTEN: Duration = Duration::from_secs(1);

/// How long until a folder that is not there, or that could not be watched, is looked for again.
const MISSING: Duration = Duration::from_millis(500);

/// Names that come and go in a folder, and the folder itself. Two watches of one folder are one to the kernel, so each adds to
/// what is there.
const NAMES: WatchFlags = WatchFlags::MASK_ADD
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE)
    .union(WatchFlags::MOVE_SELF);

/// These, and what the files hold.
const CONTENT: WatchFlags =
    NAMES.union(WatchFlags::CLOSE_WRITE).union(WatchFlags::MODIFY).union(WatchFlags::ATTRIB);

/// Everything that has to change for the folders to say something else.
pub(super) struct Watch {
    inotify: OwnedFd,
    places: HashMap<i32, Vec<Place>>,
    /// Some of it could not be watched.
    incomplete: bool,
    /// Something in the folders is a link: what it leads to can change by the change of any name.
    pub(super) links: bool,
}

/// What a watch is there for.
enum Place {
    /// The folder around a path that was given: this name in it.
    Around { name: OsString, link: bool },
    /// A folder of manifests.
    Folder { path: PathBuf, part: Part, root: usize, below: PathBuf },
    /// A file by itself.
    File,
}

/// What has changed.
#[derive(Default)]
pub(super) struct News {
    /// Nobody can say what: everything must be read.
    pub(super) all: bool,
    /// Files to be read, or gone.
    pub(super) done: BTreeMap<Position, PathBuf>,
    /// Files that somebody is writing, and until when they are waited for.
    pub(super) begun: BTreeMap<Position, (PathBuf, Instant)>,
    /// Files whose owner or mode changed: they may be readable now, or not any more.
    pub(super) touched: BTreeMap<Position, PathBuf>,
}

impl Watch {
    pub(super) fn new() -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(Self { inotify, places: HashMap::new(), incomplete: false, links: false })
    }

    /// Watches the folder around a path that was given: the path can be a link that is switched, or not be there yet.
    pub(super) fn around(&mut self, path: &Path) {
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let name = path.file_name().unwrap_or_default().to_owned();
        self.add(parent, NAMES, Place::Around { name, link: path.is_symlink() });
        self.incomplete |= !path.exists();
    }

    /// Watches a folder of manifests: `below` is its path below the given path number `root`.
    pub(super) fn folder(&mut self, path: &Path, part: Part, root: usize, below: PathBuf) {
        self.add(path, CONTENT, Place::Folder { path: path.to_owned(), part, root, below });
    }

    /// Watches a file that no watched folder need hold.
    pub(super) fn file(&mut self, path: &Path) {
        self.add(path, CONTENT, Place::File);
    }

    fn add(&mut self, path: &Path, events: WatchFlags, place: Place) {
        match inotify::add_watch(&self.inotify, path, events) {
            Ok(watch) => self.places.entry(watch).or_default().push(place),
            Err(_) => self.incomplete = true,
        }
    }

    /// Waits until something may have changed, or until `deadline`.
    pub(super) fn wait(&self, deadline: Option<Instant>) -> io::Result<News> {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = left.into_iter().chain(self.incomplete.then_some(MISSING)).min();
        let mut news = News::default();
        if readable(&self.inotify, timeout)? {
            self.drain(&mut news)?;
        } else {
            news.all = self.incomplete;
        }
        Ok(news)
    }

    fn drain(&self, news: &mut News) -> io::Result<()> {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 16384];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        loop {
            match reader.next() {
                Ok(event) => {
                    let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
                    news.all |= event.events().contains(ReadFlags::QUEUE_OVERFLOW);
                    for place in self.places.get(&event.wd()).into_iter().flatten() {
                        self.hear(place, event.events(), name, news);
                    }
                }
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn hear(&self, place: &Place, events: ReadFlags, name: Option<&OsStr>, news: &mut News) {
        let (folder, part, root, below, name) = match (place, name) {
            (Place::Around { name: watched, link }, Some(name)) => {
                news.all |= *link || watched == name;
                return;
            }
            // The folder around may itself be moved or go: the next look finds out.
            (Place::Around { .. } | Place::File, _) => return news.all = true,
            // The folder itself.
            (Place::Folder { .. }, None) => return news.all |= !events.contains(ReadFlags::IGNORED),
            (Place::Folder { path, part, root, below }, Some(name)) => (path, *part, *root, below, name),
        };
        if is_hidden(name) || !(events.contains(ReadFlags::ISDIR) || is_manifest(name)) {
            return news.all |= self.links;
        }
        if events.contains(ReadFlags::ISDIR) {
            return news.all = true;
        }
        let (position, path) = (Position::file(part, root, &below.join(name)), folder.join(name));
        let unfinished = |patience| (path.clone(), Instant::now() + patience);
        if events.contains(ReadFlags::MODIFY) {
            news.done.remove(&position);
            news.begun.insert(position, unfinished(WRITTEN));
        } else if events.contains(ReadFlags::CREATE) {
            news.done.remove(&position);
            news.begun.insert(position, unfinished(CREATED));
        } else if events.contains(ReadFlags::ATTRIB) {
            news.touched.insert(position, path);
        } else {
            news.begun.remove(&position);
            news.done.insert(position, path);
        }
    }
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
