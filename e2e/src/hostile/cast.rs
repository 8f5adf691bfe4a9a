//! Who is on the stage: the pods that mean harm, those that they mean it to, the nodes, and a stranger on the uplink.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use moat_policies::Family;

use super::frame::Mac;

/// The namespace of all pods.
pub(super) const NAMESPACE: &str = "hostile";
/// What the lab is made from.
pub(super) const MANIFESTS: &str = include_str!("cast.yaml");
/// The stranger on the uplink.
pub(super) const WORLD: &str = "203.0.113.66 8080/UDP\n2001:db8::66 8080/UDP\n";

/// The port that the policies let one pod reach on the victims.
pub(super) const ALLOWED: u16 = 8080;
/// A port that nobody may reach there.
pub(super) const DENIED: u16 = 9090;

/// A pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Who {
    /// May talk to nobody. On the first node.
    Denied,
    /// May reach the victims on one port. On the first node.
    Limited,
    /// No policy selects it. On the first node.
    Open,
    /// Answers `Open`, whatever it says; no policy selects it either. On the first node.
    Accomplice,
    /// Takes one port from `Limited` alone, and may talk to nobody. On the first node.
    Near,
    /// The same, on the second node.
    Far,
    /// No policy selects it. On the second node.
    OpenFar,
}

impl Who {
    pub(super) const ALL: [Who; 7] =
        [Who::Denied, Who::Limited, Who::Open, Who::Accomplice, Who::Near, Who::Far, Who::OpenFar];

    /// The pod's name.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Who::Denied => "denied",
            Who::Limited => "limited",
            Who::Open => "open",
            Who::Accomplice => "accomplice",
            Who::Near => "near",
            Who::Far => "far",
            Who::OpenFar => "open-far",
        }
    }

    /// Which node it is on, from 0.
    pub(super) const fn node(self) -> usize {
        match self {
            Who::Denied | Who::Limited | Who::Open | Who::Accomplice | Who::Near => 0,
            Who::Far | Who::OpenFar => 1,
        }
    }
}

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Sender {
    /// A pod, from its interface.
    Pod(Who),
    /// The stranger, from the link that the first node is on.
    Uplink,
}

impl fmt::Display for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Sender::Pod(who) => who.name(),
            Sender::Uplink => "uplink",
        })
    }
}

/// Where something can be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Place {
    /// At the pod's interface, coming in.
    Pod(Who),
    /// In the node's own stack, behind its firewall.
    Node(usize),
    /// On the cable of a node, leaving it.
    Wire(usize),
    /// At the host outside.
    World,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Pod(who) => f.write_str(who.name()),
            Place::Node(number) => write!(f, "node-{}", number + 1),
            Place::Wire(number) => write!(f, "wire-{}", number + 1),
            Place::World => f.write_str("world"),
        }
    }
}

/// Somebody's addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seat {
    pub(super) mac: Mac,
    /// The hardware address that it sends everything to.
    pub(super) next: Mac,
    pub(super) v4: Option<Ipv4Addr>,
    pub(super) v6: Option<Ipv6Addr>,
}

impl Seat {
    pub(super) fn new(mac: Mac, next: Mac, addresses: &[IpAddr]) -> Self {
        let v4 = addresses.iter().find_map(|a| if let IpAddr::V4(v4) = a { Some(*v4) } else { None });
        let v6 = addresses.iter().find_map(|a| if let IpAddr::V6(v6) = a { Some(*v6) } else { None });
        Self { mac, next, v4, v6 }
    }

    /// Its address of a family; the unspecified one where it has none.
    pub(super) fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.unwrap_or(Ipv4Addr::UNSPECIFIED).into(),
            Family::V6 => self.v6.unwrap_or(Ipv6Addr::UNSPECIFIED).into(),
        }
    }
}

/// Everybody's addresses.
#[derive(Clone, Debug)]
pub(super) struct Cast {
    /// In the order of [`Who::ALL`].
    pub(super) pods: [Seat; Who::ALL.len()],
    pub(super) nodes: Vec<Seat>,
    pub(super) world: Seat,
    /// The hardware address of the first node's end of the tunnel, where it has one.
    pub(super) tunnel: Option<Mac>,
    /// Whether nodes send by a router what they know no other way for.
    pub(super) routed: bool,
}

impl Cast {
    pub(super) fn pod(&self, who: Who) -> &Seat {
        &self.pods[who as usize]
    }

    pub(super) fn seat(&self, sender: Sender) -> &Seat {
        match sender {
            Sender::Pod(who) => self.pod(who),
            Sender::Uplink => &self.world,
        }
    }
}
