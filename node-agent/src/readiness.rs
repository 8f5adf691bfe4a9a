//! What is in force, and what keeps the newest reading from it.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

use crate::dataplane::Closed;

/// A moment of the agent's state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// The fingerprint of the reading that the kernel holds; `None` before the first.
    pub applied: Option<String>,
    /// Why the newest reading is not in force, one problem a line; `None` where it is, or is about to be.
    pub error: Option<String>,
    /// The pods that are closed although policy allows them something, and why.
    pub closed: Closed,
}

/// Tells everybody who asks.
#[derive(Debug)]
pub struct Readiness {
    now: watch::Sender<Now>,
    /// The number of the newest reading.
    newest: AtomicU64,
}

/// A reading's place in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nth(u64);

impl Default for Readiness {
    fn default() -> Self {
        Self { now: watch::Sender::new(Now::default()), newest: AtomicU64::new(0) }
    }
}

impl Readiness {
    /// There is a new reading, good or bad. What is said of an older one from now on changes nothing about its errors.
    pub fn reading(&self) -> Nth {
        Nth(self.newest.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// A reading is in force, for new connections and for those that were there.
    pub fn applied(&self, reading: Nth, fingerprint: String) {
        self.now.send_modify(|now| {
            now.applied = Some(fingerprint);
            if self.newest.load(Ordering::Relaxed) == reading.0 {
                now.error = None;
            }
        });
    }

    /// The newest reading cannot be put in force; what was stays.
    pub fn failed(&self, error: String) {
        self.now.send_modify(|now| now.error = Some(error));
    }

    /// These pods are closed, and no others.
    pub fn closed(&self, closed: Closed) {
        self.now.send_if_modified(|now| std::mem::replace(&mut now.closed, closed.clone()) != closed);
    }

    /// How it stands.
    pub fn now(&self) -> Now {
        self.now.borrow().clone()
    }

    /// To wait for changes.
    pub fn watch(&self) -> watch::Receiver<Now> {
        self.now.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_reading_takes_no_error_of_a_newer_one_away() {
        let readiness = Readiness::default();
        let good = readiness.reading();
        readiness.reading();
        readiness.failed("bad".to_owned());
        readiness.applied(good, "good".to_owned());
        assert_eq!(
            readiness.now(),
            Now { applied: Some("good".to_owned()), error: Some("bad".to_owned()), ..Now::default() }
        );
        readiness.applied(readiness.reading(), "mended".to_owned());
        assert_eq!(
            readiness.now(),
            Now { applied: Some("mended".to_owned()), error: None, ..Now::default() }
        );
    }
}
