//! What the writer is asked for, and what it tells.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use tokio::sync::oneshot;

use crate::dataplane::concern::Concern;
use crate::dataplane::error::Error;
use crate::dataplane::revoked::Revoked;
use crate::dataplane::update::Update;

/// What the writer is asked for.
#[derive(Debug)]
pub(in crate::dataplane) enum Order {
    /// An update, and who waits for it.
    Update(Box<Update>, Waiter),
    /// Connections follow everything up to the commit of this number, and these of them are revoked.
    Followed(u64, Revoked),
}

/// Who waits for an update.
#[derive(Debug)]
pub(in crate::dataplane) struct Waiter {
    /// Told when the kernel holds it, or has refused it.
    pub(in crate::dataplane) done: oneshot::Sender<Result<(), Error>>,
    /// Told when the connections that are there already follow it, too.
    pub(in crate::dataplane) cut: oneshot::Sender<()>,
}

/// What the writer tells those who look after connections: something is in force that they may not follow yet.
#[derive(Debug)]
pub struct Commit {
    /// Which one it is of those that were told of. The first is 1.
    pub number: u64,
    /// Whose connections it is about.
    pub concern: Concern,
    /// To be told when they have been looked at, or will not be.
    pub waiting: Vec<oneshot::Sender<()>>,
}

/// Who hears of commits, if somebody does.
#[derive(Default)]
pub(in crate::dataplane) struct Listener(Mutex<Option<Box<Hear>>>);

type Hear = dyn Fn(Commit) + Send;

impl Listener {
    pub(in crate::dataplane) fn set(&self, hear: Box<Hear>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(hear);
    }

    /// Where nobody hears of it, whoever waits is told by what is dropped here.
    pub(super) fn tell(&self, commit: Commit) {
        if let Some(hear) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            hear(commit);
        }
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener")
    }
}
