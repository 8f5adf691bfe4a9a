//! What is in force, and what keeps the newest reading from it.

use tokio::sync::watch;

/// A moment of the agent's state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// The fingerprint of the reading that the kernel holds; `None` before the first.
    pub applied: Option<String>,
    /// Why the newest reading is not in force, one problem a line; `None` where it is, or is about to be.
    pub error: Option<String>,
}

/// Tells everybody who asks.
#[derive(Debug)]
pub struct Readiness(watch::Sender<Now>);

impl Default for Readiness {
    fn default() -> Self {
        Self(watch::Sender::new(Now::default()))
    }
}

impl Readiness {
    /// A reading is in the kernel.
    pub fn applied(&self, fingerprint: String) {
        self.0.send_replace(Now { applied: Some(fingerprint), error: None });
    }

    /// The newest reading cannot be put in force; what was stays.
    pub fn failed(&self, error: String) {
        self.0.send_modify(|now| now.error = Some(error));
    }

    /// How it stands.
    pub fn now(&self) -> Now {
        self.0.borrow().clone()
    }

    /// To wait for changes.
    pub fn watch(&self) -> watch::Receiver<Now> {
        self.0.subscribe()
    }
}
