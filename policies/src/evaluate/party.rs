//! The two ends of a question, with all that policies can say about them.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::{ContainerPort, Direction, Family, Labels, NetworkPolicy, Node, Pod, Rule};

/// One end of a question: a pod with the policies that isolate it, a node, or somebody outside the cluster.
#[derive(Clone, Debug)]
pub struct Party<'a> {
    pub(super) kind: Kind<'a>,
    /// The address of each family, IPv4 first.
    addresses: [Option<Address>; 2],
    /// Of a pod: whether policy decides what it may send to its own node.
    pub(super) judged_to_node: bool,
}

/// An address, and whether selectors may find its holder by it.
#[derive(Clone, Copy, Debug)]
struct Address {
    address: IpAddr,
    /// No other pod claims it.
    sole: bool,
}

#[derive(Clone, Debug)]
pub(super) enum Kind<'a> {
    /// A pod with a network of its own.
    Pod {
        pod: Box<Pod>,
        namespace_labels: Labels,
        /// By direction; in the order of their names.
        isolating: [Vec<&'a NetworkPolicy>; 2],
        /// By direction: their rules, of equal ones the first. All are of one namespace, so equal rules say the same.
        rules: [Vec<OwnedRule<'a>>; 2],
    },
    /// A node, or a hostNetwork pod on it: no policy's subject, found by no selector.
    Node { name: Option<&'a Arc<str>> },
    /// Nobody that the cluster knows.
    Outside,
}

/// A rule, its policy and its index there.
#[derive(Clone, Copy, Debug)]
pub(super) struct OwnedRule<'a> {
    pub policy: &'a NetworkPolicy,
    pub index: usize,
    pub rule: &'a Rule,
}

fn distinct_rules<'a>(policies: &[&'a NetworkPolicy], direction: Direction) -> Vec<OwnedRule<'a>> {
    let all = policies.iter().flat_map(|policy| {
        let rules = policy.rules(direction).unwrap_or_default().iter().enumerate();
        rules.map(|(index, rule)| OwnedRule { policy, index, rule })
    });
    let mut seen = HashSet::new();
    all.filter(|owned| seen.insert(owned.rule)).collect()
}

impl<'a> Party<'a> {
    pub(super) fn pod(
        pod: Pod,
        namespace_labels: Labels,
        isolating: [Vec<&'a NetworkPolicy>; 2],
        addresses: [Option<(IpAddr, bool)>; 2],
    ) -> Self {
        let addresses = addresses.map(|a| a.map(|(address, sole)| Address { address, sole }));
        let rules = Direction::ALL.map(|d| distinct_rules(&isolating[d as usize], d));
        Self {
            kind: Kind::Pod { pod: Box::new(pod), namespace_labels, isolating, rules },
            addresses,
            judged_to_node: false,
        }
    }

    /// A hostNetwork pod: its own addresses are the node's; where it has none yet, the node's first ones are.
    pub(super) fn host_pod(pod: &Pod, name: Option<&'a Arc<str>>, node: Option<&Node>) -> Self {
        let known: &[IpAddr] = match node {
            Some(node) if pod.addresses.is_empty() => &node.addresses,
            _ => &pod.addresses,
        };
        let addresses = Family::ALL.map(|family| {
            let address = *known.iter().find(|a| Family::of(a) == family)?;
            Some(Address { address, sole: true })
        });
        Self { kind: Kind::Node { name }, addresses, judged_to_node: false }
    }

    pub(super) fn node(name: Option<&'a Arc<str>>, address: IpAddr) -> Self {
        Self { kind: Kind::Node { name }, addresses: only(address), judged_to_node: false }
    }

    pub(super) fn outside(address: IpAddr) -> Self {
        Self { kind: Kind::Outside, addresses: only(address), judged_to_node: false }
    }

    /// The policies that isolate it in a direction, in the order of their names; none where it is no pod.
    pub fn isolating(&self, direction: Direction) -> &[&'a NetworkPolicy] {
        match &self.kind {
            Kind::Pod { isolating, .. } => &isolating[direction as usize],
            Kind::Node { .. } | Kind::Outside => &[],
        }
    }

    /// Their rules, of equal ones the first.
    pub(super) fn rules(&self, direction: Direction) -> &[OwnedRule<'a>] {
        match &self.kind {
            Kind::Pod { rules, .. } => &rules[direction as usize],
            Kind::Node { .. } | Kind::Outside => &[],
        }
    }

    /// A pod's container ports.
    pub(super) fn ports(&self) -> Option<&[ContainerPort]> {
        match &self.kind {
            Kind::Pod { pod, .. } => Some(&pod.ports),
            Kind::Node { .. } | Kind::Outside => None,
        }
    }

    pub(super) fn address(&self, family: Option<Family>) -> Option<IpAddr> {
        self.addresses[family? as usize].map(|a| a.address)
    }

    /// Whether selectors find this pod over a family: not by an address that another pod claims, too.
    pub(super) fn selectable(&self, family: Option<Family>) -> bool {
        match family {
            Some(family) if self.has_address() => self.addresses[family as usize].is_some_and(|a| a.sole),
            _ => true,
        }
    }

    pub(super) fn is_same_pod(&self, other: &Self) -> bool {
        match (&self.kind, &other.kind) {
            (Kind::Pod { pod: a, .. }, Kind::Pod { pod: b, .. }) => a.name == b.name,
            _ => false,
        }
    }

    /// Whether this is a pod and the other one its node, and policy has no say between them in this direction.
    pub(super) fn is_free_to(&self, other: &Self, direction: Direction) -> bool {
        self.is_on_node_of(other) && !(self.judged_to_node && direction == Direction::Egress)
    }

    /// Whether this is a pod and the other one its node. A pod without a node is on a node of its own.
    fn is_on_node_of(&self, other: &Self) -> bool {
        match (&self.kind, &other.kind) {
            (Kind::Pod { pod, .. }, Kind::Node { name: Some(node) }) => pod.node.as_ref() == Some(*node),
            _ => false,
        }
    }

    fn has_address(&self) -> bool {
        self.addresses.iter().any(Option::is_some)
    }
}

fn only(address: IpAddr) -> [Option<Address>; 2] {
    let mut addresses = [None; 2];
    addresses[Family::of(&address) as usize] = Some(Address { address, sole: true });
    addresses
}

/// The families that a flow could run over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Families {
    /// Neither end's addresses are known: nothing is decided by address.
    Unknown,
    /// IPv4 and IPv6, or one of them, or none.
    Of([bool; 2]),
}

impl Families {
    /// What both ends have; an end whose addresses are not known yet may have any.
    pub(super) fn common(a: &Party<'_>, b: &Party<'_>, asked: Option<Family>) -> Self {
        let ends = [a, b];
        if asked.is_none() && !ends.iter().any(|p| p.has_address()) {
            return Families::Unknown;
        }
        Families::Of(Family::ALL.map(|family| {
            asked.is_none_or(|f| f == family)
                && ends.iter().all(|p| !p.has_address() || p.addresses[family as usize].is_some())
        }))
    }

    /// One turn a family; one turn without any where none is known.
    pub(super) fn iter(self) -> impl Iterator<Item = Option<Family>> {
        let (unknown, [v4, v6]) = match self {
            Families::Unknown => (true, [false; 2]),
            Families::Of(of) => (false, of),
        };
        [unknown.then_some(None), v4.then_some(Some(Family::V4)), v6.then_some(Some(Family::V6))]
            .into_iter()
            .flatten()
    }
}
