//! How far the controllers have answered what they are told of this node's addresses.

use std::sync::atomic::{AtomicU64, Ordering};

/// What the node's addresses are told by: announcements, counted, each of them saying everything that the ones before it said and is
/// still so. An address that was released before the newest was made is nobody's once that one is answered.
#[derive(Debug)]
pub struct Answers {
    newest: AtomicU64,
    /// Up to which all that are asked have answered that nobody has anything of what is gone.
    gone: AtomicU64,
}

impl Answers {
    /// There is nobody who would have to be told.
    pub fn of_nobody() -> Self {
        Self { newest: AtomicU64::new(0), gone: AtomicU64::new(u64::MAX) }
    }

    /// Controllers are told. The first announcement says which interfaces there are, and with that what was released before.
    pub fn of_controllers() -> Self {
        Self { newest: AtomicU64::new(1), gone: AtomicU64::new(0) }
    }

    /// The number of the newest announcement, made or about to be.
    pub fn newest(&self) -> u64 {
        self.newest.load(Ordering::SeqCst)
    }

    /// Up to which number all are answered.
    pub fn gone(&self) -> u64 {
        self.gone.load(Ordering::SeqCst)
    }

    /// There is an announcement of this number.
    pub(crate) fn announce(&self, number: u64) {
        self.newest.fetch_max(number, Ordering::SeqCst);
    }

    /// All up to this number are answered. What was answered once stays so.
    pub(crate) fn answer(&self, number: u64) {
        self.gone.fetch_max(number, Ordering::SeqCst);
    }
}
