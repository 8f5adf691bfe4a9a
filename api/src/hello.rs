//! What an agent says of itself.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use moat_policies::NamespacedName;

use crate::{Held, wire};

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
    /// It follows another replica, and only announces here.
    pub announces_only: bool,
    /// Which process of the agent speaks; empty: it does not say.
    pub life: Arc<str>,
}

/// How far an agent's attachments are in force elsewhere, as one replica of the controller knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Announced {
    /// Up to this number, new connections know of what is there.
    pub number: u64,
    /// Up to this number, nobody has anything of what is gone.
    pub gone: u64,
}

impl Announced {
    /// As it is said at this level of the protocol.
    pub fn at(self, level: u32) -> wire::Announced {
        match level {
            ..=1 => wire::Announced { number: self.number.min(self.gone), gone: 0 },
            _ => wire::Announced { number: self.number, gone: self.gone },
        }
    }

    /// What was said at this level of the protocol.
    pub fn heard(said: wire::Announced, level: u32) -> Self {
        match level {
            ..=1 => Self { number: said.number, gone: said.number },
            _ => Self { number: said.number, gone: said.gone },
        }
    }
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
