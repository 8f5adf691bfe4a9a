//! Who is connected.

use std::sync::Arc;

use moat_api::LEVEL;
use tokio::sync::Notify;

use super::pending::Pending;
use super::waits::{Announcements, Progress};

/// One connection of one agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AgentId(pub(super) u64);

/// A connection, of an agent that follows this controller, or that follows another and only announces here.
pub(super) struct Caller {
    pub(super) node: Arc<str>,
    /// The process of the agent; empty where it does not say.
    pub(super) life: Arc<str>,
    /// Woken when there is something to be told.
    pub(super) wake: Arc<Notify>,
    pub(super) announcements: Announcements,
}

/// A connected agent that follows this controller.
pub(super) struct Agent {
    pub(super) node: Arc<str>,
    pub(super) pending: Pending,
    pub(super) wake: Arc<Notify>,
    /// The revision that it was told last.
    pub(super) told: u64,
    pub(super) progress: Progress,
    pub(super) error: String,
    pub(super) closed: u32,
}

/// What is known of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentState {
    /// The node that it speaks for.
    pub node: Arc<str>,
    /// It holds everything that it is to hold, and has said that it is in force.
    pub current: bool,
    /// Why the newest that it was told is not in force.
    pub error: String,
    /// How many of its pods are closed because of the kernel or a limit.
    pub closed: u32,
}

impl Agent {
    /// One that was told nothing yet, and is to be told this.
    pub(super) fn new(node: Arc<str>, pending: Pending, wake: Arc<Notify>) -> Self {
        let progress = Progress::default();
        Self { node, pending, wake, told: 0, progress, error: String::new(), closed: 0 }
    }

    /// How it stands.
    pub(super) fn state(&self) -> AgentState {
        let told_all = self.pending.is_empty() && self.progress.in_force >= self.told;
        AgentState {
            node: self.node.clone(),
            current: told_all && self.error.is_empty(),
            error: self.error.clone(),
            closed: self.closed,
        }
    }

    /// The revision that it has to come to before it has everything that there is for it at `now`, if it has only `reached`
    /// another yet.
    pub(super) fn lags(&self, reached: u64, now: u64) -> Option<u64> {
        let needed = if self.pending.is_empty() { self.told } else { now };
        Some(needed).filter(|needed| reached < *needed)
    }
}

/// The level that both speak; `None` where there is none.
pub fn common_level(theirs: u32) -> Option<u32> {
    Some(theirs.min(LEVEL)).filter(|level| *level > 0)
}
