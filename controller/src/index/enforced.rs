//! What agents say for people: what is in force on their nodes.
//!
//! Every agent says so to every replica, whichever it follows: so any of them can tell people about all nodes.

use std::collections::BTreeMap;
use std::sync::Arc;

use moat_api::wire;
use tokio::sync::Notify;

use super::AgentId;

/// What the agents of connected nodes say.
#[derive(Default)]
pub(super) struct Enforcements {
    by: BTreeMap<AgentId, Enforcement>,
    news: Arc<Notify>,
}

/// What one agent says is in force on its node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Enforcement {
    /// The node.
    pub node: Arc<str>,
    /// The agent's version.
    pub version: String,
    /// What of what people applied is in force; empty: nothing yet that has a name.
    pub fingerprint: String,
    /// Why something newer is not.
    pub error: String,
    /// How many of the node's pods are closed.
    pub closed: u32,
    /// How many of the node's pods have an interface.
    pub pods: u32,
}

impl Enforcements {
    /// An agent has connected.
    pub(super) fn join(&mut self, id: AgentId, node: Arc<str>, version: String) {
        self.by.insert(id, Enforcement { node, version, ..Enforcement::default() });
        self.news.notify_one();
    }

    /// A connection has ended.
    pub(super) fn leave(&mut self, id: AgentId) {
        self.by.remove(&id);
        self.news.notify_one();
    }

    /// An agent says so.
    pub(super) fn hear(&mut self, id: AgentId, said: wire::Enforced) {
        if let Some(enforcement) = self.by.get_mut(&id) {
            let wire::Enforced { fingerprint, error, closed } = said;
            (enforcement.fingerprint, enforcement.error, enforcement.closed) = (fingerprint, error, closed);
            self.news.notify_one();
        }
    }

    /// What is said of each node, by its newest connection that has said something.
    pub(super) fn all(&self, pods: impl Fn(&str) -> usize) -> Vec<Enforcement> {
        let mut newest: BTreeMap<&Arc<str>, &Enforcement> = BTreeMap::new();
        for said in self.by.values() {
            let known = newest.entry(&said.node).or_insert(said);
            if !said.fingerprint.is_empty() {
                *known = said;
            }
        }
        let count = |node: &str| u32::try_from(pods(node)).unwrap_or(u32::MAX);
        newest.into_iter().map(|(node, said)| Enforcement { pods: count(node), ..said.clone() }).collect()
    }

    /// Told whenever something of it has changed.
    pub(super) fn news(&self) -> &Arc<Notify> {
        &self.news
    }
}
