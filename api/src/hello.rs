//! What an agent says of itself.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use moat_policies::NamespacedName;

use crate::Held;

/// Who an agent is, and what it holds from before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The highest level of the protocol that it understands.
    pub level: u32,
    /// The name of its Node object.
    pub node: Arc<str>,
    /// Its version, for people.
    pub version: String,
    /// What it holds.
    pub held: Held,
}

/// Which pods of a node have an interface.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Attachments {
    /// Counts the node's changes of them.
    pub number: u64,
    /// There are none but those of `pods`.
    pub whole: bool,
    /// Interfaces that there are, and pods that have none any more (`None`).
    pub pods: BTreeMap<NamespacedName, Option<Attached>>,
}

/// A pod's interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// `metadata.uid` of the pod it was made for, where the runtime said it.
    pub uid: Option<Arc<str>>,
    /// At most one of each family.
    pub addresses: Vec<IpAddr>,
}
