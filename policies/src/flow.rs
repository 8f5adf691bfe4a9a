//! A question ("may this flow pass?") and its answer with reasons.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::{Direction, NamespacedName, Protocol};

/// One end of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Endpoint {
    /// A pod.
    Pod(NamespacedName),
    /// An address: the pod that holds it, the node that has it, or somebody outside the cluster.
    Address(IpAddr),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Pod(name) => name.fmt(f),
            Endpoint::Address(address) => address.fmt(f),
        }
    }
}

/// The address family that a connection runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both of them.
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    /// An address's family.
    pub fn of(address: &IpAddr) -> Self {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// What a flow carries: protocol and destination port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Traffic {
    /// A protocol that has ports, and the destination port.
    Port(Protocol, u16),
    /// A protocol without ports by its IP number (ICMP is 1, ICMPv6 58); only rules without `ports` allow it.
    Other(u8),
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Traffic::Port(protocol, port) => write!(f, "{port}/{protocol}"),
            Traffic::Other(1 | 58) => f.write_str("ICMP"),
            Traffic::Other(number) => write!(f, "protocol {number}"),
        }
    }
}

/// A connection that somebody would like to make.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Who opens it.
    pub source: Endpoint,
    /// Who is to answer.
    pub destination: Endpoint,
    /// Protocol and destination port.
    pub traffic: Traffic,
    /// The family it runs over; `None`: over any that both ends have.
    pub family: Option<Family>,
}

/// The answer: may the flow pass, and what each side says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Both sides allow it over one and the same family.
    pub allowed: bool,
    /// The source's egress side.
    pub egress: Side,
    /// The destination's ingress side.
    pub ingress: Side,
    /// The families that the flow could run over; empty where neither end's addresses are known.
    pub families: Vec<Family>,
}

/// What one side says, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side {
    /// Ingress or egress.
    pub direction: Direction,
    /// Whether this side allows the flow over some family that both ends have.
    pub allowed: bool,
    /// Why.
    pub reason: Reason,
}

/// Why a side allows or denies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Allowed: a pod always reaches itself.
    Itself,
    /// Allowed: a node and the pods on it always reach each other.
    OwnNode,
    /// Allowed: this end is no policy's subject, because it is a node or a hostNetwork pod.
    HostNetwork,
    /// Allowed: this end is no policy's subject, because it is outside the cluster.
    Outside,
    /// Allowed: no policy selects this pod in this direction.
    NotIsolated,
    /// Allowed by a rule.
    Rule {
        /// All policies that isolate the pod in this direction, sorted.
        isolating: Vec<NamespacedName>,
        /// The first rule (by policy name, then index) that allows it.
        by: RuleRef,
    },
    /// Denied: isolated, and no rule allows it.
    NoRule {
        /// All policies that isolate the pod in this direction, sorted.
        isolating: Vec<NamespacedName>,
        /// Each of their rules, and what of it did not match; the nearest first.
        candidates: Vec<Candidate>,
    },
    /// Denied: the ends have no address family in common.
    NoCommonFamily,
}

/// One rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleRef {
    /// The policy.
    pub policy: NamespacedName,
    /// `ingress` or `egress`.
    pub direction: Direction,
    /// Index in `ingress` or `egress`, from 0.
    pub index: usize,
}

/// As a field path: `shop/api-from-web ingress[0]`.
impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}[{}]", self.policy, self.direction, self.index)
    }
}

/// A rule that could have allowed a flow, and why it did not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The rule.
    pub rule: RuleRef,
    /// Which part of it did not match.
    pub miss: Miss,
}

/// Which part of a rule did not match. Texts are in plain words, ready for a person, without a full stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Miss {
    /// The peer matches; the port does not. What `ports` allows, e.g. `8080/TCP, http/TCP`.
    Port {
        /// What the rule allows.
        allows: Arc<str>,
    },
    /// The port matches; the peer does not. What `from`/`to` allows, e.g. `pods app=web in namespace shop`.
    Peer {
        /// What the rule allows.
        allows: Arc<str>,
    },
    /// Neither matches.
    PeerAndPort {
        /// What `from`/`to` allows.
        peers: Arc<str>,
        /// What `ports` allows.
        ports: Arc<str>,
    },
}

/// A flow that names a pod that the cluster does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no pod {0}")]
pub struct UnknownEndpoint(pub NamespacedName);
