//! Manifest folders as the source of objects: read whole once, then file by file as they change.
//!
//! ```text
//!   folders ──inotify──▶ which files? ──read, decode──▶ Collection ──▶ Reading { changes, fingerprint }
//!      ▲                   │ nobody can say: all            (pure)
//!      └── watches are set before a folder is listed, so a change during that is seen after it
//! ```
//!
//! A folder that cannot be decoded is told as an error and changes nothing: whoever follows the readings keeps what the
//! last good one led to. A file that somebody is writing is read when it is closed; until then what it held counts.

mod shelf;
mod watch;

use std::io;
use std::path::PathBuf;

use crate::{Changes, Errors, on_a_deep_stack};

use shelf::Shelf;

/// The folders of one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folders {
    /// `--manifests`: objects.
    pub manifests: Vec<PathBuf>,
    /// `--pod-status`: where pods run and what their addresses are.
    pub pod_status: Vec<PathBuf>,
}

/// What the folders say since the reading before; of the first one, since there was nothing.
#[derive(Clone, Debug)]
pub struct Reading {
    /// What became different.
    pub changes: Changes,
    /// Names all of the content, see [`fingerprint`](crate::fingerprint()).
    pub fingerprint: String,
}

impl Folders {
    /// Calls `told` with the first reading, and with a new one whenever the folders say something else, until it
    /// returns `false`. Does not return before that: it is for a thread of its own.
    pub fn watch(&self, told: impl FnMut(Result<Reading, Errors>) -> bool + Send) -> io::Result<()> {
        on_a_deep_stack(|| self.follow(told))
    }

    fn follow(&self, mut told: impl FnMut(Result<Reading, Errors>) -> bool) -> io::Result<()> {
        let mut shelf = Shelf::default();
        let mut watch = shelf.read_all(self)?;
        let mut last: Option<Result<String, String>> = None;
        loop {
            let result = shelf.commit();
            let now = result.as_ref().map(|r| r.fingerprint.clone()).map_err(ToString::to_string);
            let changed = result.as_ref().is_ok_and(|r| !r.changes.is_empty());
            if changed || last.as_ref() != Some(&now) {
                last = Some(now);
                if !told(result) {
                    return Ok(());
                }
            }
            loop {
                let news = watch.wait(shelf.next_deadline())?;
                let (read, all) = shelf.read(news);
                if all {
                    watch = shelf.read_all(self)?;
                }
                if read || all {
                    break;
                }
            }
        }
    }
}
