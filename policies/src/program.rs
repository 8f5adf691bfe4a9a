//! What the compiler gives to a node: verdict programs and allow sets, canonical and named by content.
//!
//! How a verdict program decides a packet between its pod and a peer address, exactly:
//!
//! 1. The destination's (protocol, port) lies in the ranges of at most one of `classes`. If it lies in one, that
//!    class's `allow` decides the peer; else `every` does (nobody, where it is `None`).
//! 2. Also allowed: what `named` holds (peer address, protocol, port); egress programs only.
//! 3. Everything else is denied.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::{NamespacedName, Protocol};

macro_rules! content_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        /// 32 hex digits.
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

content_id!(
    /// Names a verdict program by its content: equal programs have equal ids, in every process.
    ProgramId
);
content_id!(
    /// Names an allow set by what it selects (not by the addresses it holds just now), in every process.
    SetId
);

/// What all policies together say about one pod in one direction in which it is isolated.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Program {
    /// Peers allowed on every port of every protocol, ICMP too.
    pub every: Option<Allow>,
    /// Disjoint, sorted by their first range. A class's `allow` includes the peers of `every`.
    pub classes: Vec<PortClass>,
    /// Peers by named port: a set of kind [`SetKind::AddressPorts`]. Egress only.
    pub named: Option<SetId>,
    /// Set where policies ask for more than a limit: then nothing of it was worked out, and it allows nobody.
    pub excess: Option<Excess>,
}

impl Program {
    /// The sets that it looks into; one may be named more than once.
    pub fn sets(&self) -> impl Iterator<Item = SetId> {
        let allows = self.every.iter().chain(self.classes.iter().map(|class| &class.allow));
        let set = |allow: &Allow| match allow {
            Allow::Everyone => None,
            Allow::Set(id) => Some(*id),
        };
        allows.filter_map(set).chain(self.named)
    }
}

/// How much the policies of one pod may ask for in one direction. By default nothing is limited.
///
/// Whose policies ask for more has a program that allows nobody and says why. So one pod's policies cannot hold up the
/// programs of all others: what they come to is bounded before it is worked out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most port classes of a program.
    pub classes: usize,
    /// Most work on a program: of each segment that rules cut the ports into, the pod selectors that hold there, and the
    /// prefixes twofold where they come from more than one rule; of each rule, the names of ports times the peers.
    pub work: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { classes: usize::MAX, work: usize::MAX }
    }
}

impl Limits {
    /// So much work on each class that may be: the defaults together allow a merged list of prefixes for each that is as long
    /// as would fit in a node's allow sets if all classes had one. Docs: how long that takes.
    const WORK_OF_A_CLASS: usize = 8192;

    /// The port classes that a program may have where nobody says otherwise. The kernel has a chain and up to four sets for
    /// each.
    pub const CLASSES: usize = 256;

    /// So many port classes, and the work that such programs can need.
    pub fn of_classes(classes: usize) -> Self {
        Self { classes, work: classes.saturating_mul(Self::WORK_OF_A_CLASS) }
    }
}

/// Which of the [`Limits`] policies exceed, and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Excess {
    /// [`Limits::classes`].
    Classes(usize),
    /// [`Limits::work`].
    Work(usize),
}

/// Some of the (protocol, port) space, all of it with the same peers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PortClass {
    /// Sorted, disjoint, not adjacent, never empty.
    pub ports: Vec<PortRange>,
    /// Who may talk on them.
    pub allow: Allow,
}

/// Ports of one protocol, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortRange {
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The first port; 0 where the rule names no port.
    pub first: u16,
    /// The last port.
    pub last: u16,
}

/// Who is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Allow {
    /// Every address, also outside the cluster.
    Everyone,
    /// The addresses of one set, of kind [`SetKind::Addresses`].
    Set(SetId),
}

/// The key of an allow set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SetKind {
    /// Peer addresses: pods' exactly, blocks as prefixes.
    Addresses,
    /// (peer address, protocol, port): pods by a named port. Holds no prefixes.
    AddressPorts,
}

/// One allow set, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowSet {
    /// What its elements are.
    pub kind: SetKind,
    /// Whether it selects pods, so that elements may come and go; if not, it is its prefixes and never changes.
    pub pods: bool,
    /// Blocks minus their excepts: disjoint, sorted, as few as possible, both families. Part of the set's
    /// identity: they never change.
    pub prefixes: Arc<[IpNet]>,
    /// The pods it holds now, sorted, each once. They may lie inside `prefixes`.
    pub elements: Vec<Element>,
}

/// One pod's entry in an allow set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Element {
    /// The pod's address.
    pub address: IpAddr,
    /// The port that a name stands for on this pod; `Some` exactly in sets of kind [`SetKind::AddressPorts`].
    pub port: Option<(Protocol, u16)>,
}

/// The programs of one pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct PodPrograms {
    /// `None`: not isolated for ingress.
    pub ingress: Option<ProgramId>,
    /// `None`: not isolated for egress.
    pub egress: Option<ProgramId>,
}

/// What changes on one node. Holds what the node's own pods need and nothing else. To apply it on top of what the
/// node has, in an order in which nothing refers to what is not there: create sets, update sets, add programs, set
/// pods, then delete programs, then delete sets.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct NodeDelta {
    /// The node's pods (hostNetwork pods are not among them); `None`: the pod is gone.
    pub pods: BTreeMap<NamespacedName, Option<PodPrograms>>,
    /// Programs that come (`Some`) or are no longer needed (`None`).
    pub programs: BTreeMap<ProgramId, Option<Arc<Program>>>,
    /// Sets that come, change or are no longer needed.
    pub sets: BTreeMap<SetId, SetChange>,
}

impl NodeDelta {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty() && self.programs.is_empty() && self.sets.is_empty()
    }
}

/// What changes in one allow set on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetChange {
    /// The node needs it from now on.
    Create(Arc<AllowSet>),
    /// Elements come and go.
    Update(Arc<SetUpdate>),
    /// The node needs it no longer.
    Delete,
}

/// Elements that come to an allow set and go from it: both sorted, disjoint, not both empty.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct SetUpdate {
    /// New elements; none of them was there.
    pub add: Vec<Element>,
    /// Elements that go; all of them were there.
    pub remove: Vec<Element>,
}
