//! The layout of the tables: pure functions from policy to chains, sets and elements.
//!
//! ```text
//! netdev moat   <veth> (ingress)      own addresses only                  ──▶ odd, options, other6, noise, spoofed
//! inet moat     forward               ct mark not revoked, established    ──▶ accept, the fast path
//!                                     revoked, irregular (related, invalid)
//!                                     iifname . MAC ▶ from_pod            ──▶ egress-<program> | to-pod
//!               egress-<program>      peers and ports                     ──▶ to-pod | policy-egress
//!               to-pod                oifname ▶ to_pod                    ──▶ ingress-<program> | accept
//!               ingress-<program>     peers and ports                     ──▶ accept | policy-ingress
//!               …-peers-<allow set>   peers, where a program has many ports
//!               input                 iifname . MAC in pods: from pods that we know only
//!
//!  while connections are judged anew, instead of the fast path:
//!               answers               oifname ▶ answers_to                ──▶ egress-<program>-answers | answerer
//!               answerer              iifname ▶ answers_from              ──▶ ingress-<program>-answers | accept
//!               …-answers             peers and ports                     ──▶ answerer | accept | revoke
//! inet moat-net tunnel                what comes to the tunnel's port   ──▶ senders
//!               masquerade            what leaves the cluster
//!               host-ports            what comes to ports of the node that lead to pods, while there are any
//! ```
//!
//! `forward` accepts what it does not decide: other traffic is not ours. All that is from or to an interface whose name
//! begins with `moat` is decided: every chain that such a packet can reach ends in an accept or in a chain of one
//! [`DropReason`].

mod answers;
mod drops;
mod fixed;
mod host_ports;
mod masquerade;
mod names;
mod program;
mod sets;
mod tunnel;
mod veth;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use moat_nfnetlink::nft::{Chain, Element, IfName, Rule, Value, Verdict};
use moat_policies::{DenyAction, Direction, LogLimit, ProgramId};

pub use drops::{DropPoint, DropReason};
pub(crate) use fixed::{chains as fixed_chains, forward};
pub use host_ports::HostPorts;
pub use masquerade::Inside;
use names::Way;
pub(crate) use names::{FORWARD, OwnSet, Part, PodSet, Table};
pub use names::{NET_TABLE, TABLE, VETH_PREFIX};
pub(crate) use program::{ProgramObjects, peers, program};
pub(crate) use sets::{element, parts, prefixes};
pub use tunnel::Senders;
pub(crate) use tunnel::sets as tunnel_sets;
pub(crate) use veth::{chain as veth_chain, own};

/// Changes whenever the layout does. Kept with each table that is made, and with the first rule of [`FORWARD`], which is
/// written anew whenever tables are adopted: so it says who filled them last.
///
/// Tables of every version are adopted, so that an update of moat is no moment without policy. For that, a set, a map or a
/// base chain whose declaration changes gets another name, too.
pub(crate) const VERSION: u8 = 6;

/// The kind of the user data that holds the version. `nft` itself uses small numbers.
pub(crate) const USERDATA_VERSION: u8 = 0x6d;

/// Where VXLAN frames go (IANA). No pod may send there: a frame that looked like a tunnel's would bring packets with any
/// source into the node's network.
pub const TUNNEL_PORT: u16 = 4789;

/// What the layout depends on besides policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayoutConfig {
    /// The bits of the connection mark that say "revoked". Other bits belong to others and are left alone.
    pub revoked_mark: u32,
    /// The nflog group that copies of dropped packets go to.
    pub log_group: u16,
    /// Whether pods have IPv4 addresses here. Without, no set has an IPv4 part, and isolated pods reach nobody over it.
    pub v4: bool,
    /// Whether pods have IPv6 addresses here.
    pub v6: bool,
    /// Whether there may be a tunnel to other nodes, so that it is looked at what comes to its port.
    pub tunnel: bool,
    /// Whether what leaves the cluster leaves in the node's name.
    pub masquerade: bool,
    /// Whether ports of the node may lead to pods.
    pub host_ports: bool,
    /// Whether policy decides what a pod may send to its own node.
    pub pod_to_node: PodToNode,
    /// What becomes of a packet that no policy allows.
    pub deny: DenyAction,
    /// How many dropped packets are logged.
    pub drop_log: LogLimit,
}

/// What of the layout may change while it is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Live {
    /// See [`LayoutConfig::tunnel`].
    pub tunnel: bool,
    /// See [`LayoutConfig::masquerade`].
    pub masquerade: bool,
    /// See [`LayoutConfig::deny`].
    pub deny: DenyAction,
    /// See [`LayoutConfig::drop_log`].
    pub drop_log: LogLimit,
}

/// Who decides what a pod may send to its own node. What the node sends to its own pods always passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum PodToNode {
    /// Nobody: all of it passes, as the API of NetworkPolicy says
    #[default]
    Allow,
    /// The pod's egress policies, as for every other address that is no pod's
    Policy,
}

impl Default for LayoutConfig {
    fn default() -> Self {
        Self {
            revoked_mark: 0x0800_0000,
            log_group: 86,
            v4: true,
            v6: true,
            tunnel: false,
            masquerade: false,
            host_ports: false,
            pod_to_node: PodToNode::Allow,
            deny: DenyAction::default(),
            drop_log: LogLimit::default(),
        }
    }
}

impl LayoutConfig {
    /// The same with these. Where the kernel translates no addresses, and so no ports either, nothing is masqueraded.
    pub fn with(&self, live: Live) -> Self {
        let Live { tunnel, masquerade, deny, drop_log } = live;
        Self { tunnel, masquerade: masquerade && self.host_ports, deny, drop_log, ..self.clone() }
    }
}

/// Whether packets of connections that are there already pass without being judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FastPath {
    /// They do: every connection's mark says what is in force.
    Open,
    /// They are judged as the connection's first packet would be, whichever way they go: what is in force has changed, and
    /// not all connections have been looked at since.
    Shut,
}

/// A pod of this node, as the pod network made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalPod {
    /// The name of its veth's end in the node's namespace; it begins with [`VETH_PREFIX`].
    pub ifname: String,
    /// The hardware address of the pod's end.
    pub pod_mac: [u8; 6],
    /// Its IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub v6: Option<Ipv6Addr>,
}

impl LocalPod {
    /// Its addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6))
    }
}

/// A chain and all its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChainRules {
    pub(crate) table: Table,
    pub(crate) chain: Chain,
    pub(crate) rules: Vec<Rule>,
}

/// What decides about a pod in each direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PodVerdict {
    /// Its programs, where it is isolated.
    Programs { ingress: Option<ProgramId>, egress: Option<ProgramId> },
    /// Nothing gets through: the kernel did not take its rules.
    Closed,
}

impl PodVerdict {
    fn of_packets_to(self) -> Verdict {
        match self {
            PodVerdict::Programs { ingress: Some(id), .. } => {
                Verdict::goto(names::program(Way::There, Direction::Ingress, id))
            }
            PodVerdict::Programs { ingress: None, egress: Some(_) } => Verdict::goto(names::OPEN_INGRESS),
            PodVerdict::Programs { ingress: None, egress: None } => Verdict::Accept,
            PodVerdict::Closed => DropReason::KernelRefused.on(Direction::Ingress).goto(),
        }
    }

    fn of_packets_from(self) -> Verdict {
        match self {
            PodVerdict::Programs { egress: Some(id), .. } => {
                Verdict::goto(names::program(Way::There, Direction::Egress, id))
            }
            PodVerdict::Programs { egress: None, ingress: Some(_) } => Verdict::goto(names::OPEN_EGRESS),
            PodVerdict::Programs { egress: None, ingress: None } => Verdict::goto(names::TO_POD),
            PodVerdict::Closed => DropReason::KernelRefused.on(Direction::Egress).goto(),
        }
    }

    /// Answers to it belong to connections that it opened: its egress side.
    fn of_answers_to(self) -> Verdict {
        match self {
            PodVerdict::Programs { egress: Some(id), .. } => {
                Verdict::goto(names::program(Way::Back, Direction::Egress, id))
            }
            PodVerdict::Programs { egress: None, .. } => Verdict::goto(names::ANSWERER),
            PodVerdict::Closed => DropReason::KernelRefused.on(Direction::Ingress).goto(),
        }
    }

    /// Its own answers belong to connections that others opened: its ingress side.
    fn of_answers_from(self) -> Verdict {
        match self {
            PodVerdict::Programs { ingress: Some(id), .. } => {
                Verdict::goto(names::program(Way::Back, Direction::Ingress, id))
            }
            PodVerdict::Programs { ingress: None, .. } => Verdict::Accept,
            PodVerdict::Closed => DropReason::KernelRefused.on(Direction::Egress).goto(),
        }
    }
}

/// The elements that a pod has: one in each set that it is in.
pub(crate) fn pod_elements(ifname: IfName, pod: &LocalPod, verdict: PodVerdict) -> Vec<(PodSet, Element)> {
    let sender = [Value::IfName(ifname), Value::Ether(pod.pod_mac)];
    let mut elements = vec![
        (PodSet::FromPod, Element::new(sender).verdict(verdict.of_packets_from())),
        (PodSet::ToPod, Element::new(ifname).verdict(verdict.of_packets_to())),
        (PodSet::AnswersTo, Element::new(ifname).verdict(verdict.of_answers_to())),
        (PodSet::AnswersFrom, Element::new(ifname).verdict(verdict.of_answers_from())),
    ];
    if verdict == PodVerdict::Closed {
        // Its node does not know it either.
        return elements;
    }
    elements.push((PodSet::Pods, Element::new(sender)));
    let mut address = |itself: PodSet, local: PodSet, address: IpAddr| {
        let value = Value::from(address);
        elements.push((itself, Element::new([Value::IfName(ifname), value, value])));
        elements.push((local, Element::new(value)));
    };
    if let Some(v4) = pod.v4 {
        address(PodSet::Self4, PodSet::Local4, v4.into());
    }
    if let Some(v6) = pod.v6 {
        address(PodSet::Self6, PodSet::Local6, v6.into());
    }
    elements
}
