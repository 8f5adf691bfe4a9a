//! Working inside another network namespace.
//!
//! A thread that changes its namespace would carry everything that later runs on it along. So the work is done
//! on a thread made for it, which ends with it; but for a thread that is there already.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::panic;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Why a network namespace cannot be entered.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// There is nothing at its path.
    #[error("there is no network namespace at {0}")]
    Missing(PathBuf),
    /// It is the node's own: the container has no network of its own.
    #[error("{0} is the node's own network namespace, not a pod's")]
    NotAPods(PathBuf),
    /// It cannot be entered.
    #[error("cannot enter the network namespace {path}")]
    Enter {
        /// Where it is.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Which network namespace it is, while it is there: device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NetnsId(u64, u64);

/// A handle on a network namespace, which keeps it alive.
#[derive(Debug)]
pub(crate) struct Netns {
    path: PathBuf,
    file: File,
}

impl Netns {
    /// The network namespace at `path`.
    pub(crate) fn open(path: &Path) -> Result<Self, NetnsError> {
        match File::open(path) {
            Ok(file) => Ok(Self { path: path.to_owned(), file }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(NetnsError::Missing(path.to_owned()))
            }
            Err(source) => Err(NetnsError::Enter { path: path.to_owned(), source }),
        }
    }

    /// The network namespace that the calling thread is in.
    pub(crate) fn current() -> Result<Self, NetnsError> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Whether both are the same namespace.
    pub(crate) fn is(&self, other: &Netns) -> bool {
        self.id().is_some_and(|id| other.id() == Some(id))
    }

    /// Which one it is.
    pub(crate) fn id(&self) -> Option<NetnsId> {
        self.file.metadata().ok().map(|metadata| NetnsId(metadata.dev(), metadata.ino()))
    }

    /// Runs `work` inside the namespace.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        if Self::current().is_ok_and(|current| current.is(self)) {
            return Ok(work());
        }
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
                    .map_err(|errno| NetnsError::Enter { path: self.path.clone(), source: errno.into() })?;
                Ok(work())
            });
            inside.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
        })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
