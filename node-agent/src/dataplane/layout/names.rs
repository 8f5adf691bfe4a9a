//! What everything in the tables is called.

use std::sync::Arc;

use moat_nfnetlink::nft::{Family, Field, KeyType, Set, TableId};
use moat_policies::{Direction, ProgramId, SetId};

/// The name of the tables that policy is in.
pub const TABLE: &str = "moat";
/// The name of the table that the pod network is in.
pub const NET_TABLE: &str = "moat-net";
/// What the name of every pod's host end begins with.
pub const VETH_PREFIX: &str = "moat";

pub(crate) const FORWARD: &str = "forward";
pub(crate) const INPUT: &str = "input";
/// Decides the ingress side: everything that is about to leave by a pod's host end comes here.
pub(crate) const TO_POD: &str = "to-pod";
/// The side on which a pod is not isolated that is isolated on the other.
pub(crate) const OPEN_EGRESS: &str = "open-egress";
pub(crate) const OPEN_INGRESS: &str = "open-ingress";
/// From an interface like a pod's that is not known with this hardware address.
pub(crate) const STRANGER: &str = "stranger";
/// Judges answers by the side of who opened the connection, [`ANSWERER`] by the side of who answers.
pub(crate) const ANSWERS: &str = "answers";
pub(crate) const ANSWERER: &str = "answerer";
/// An answer of a connection that is denied: its mark is set, and it is dropped.
pub(crate) const REVOKE: &str = "revoke";
pub(crate) const IRREGULAR: &str = "irregular";
pub(crate) const RELATED: &str = "related";
/// What a veth's own chain does not accept.
pub(crate) const ODD: &str = "odd";
pub(crate) const OPTIONS: &str = "options";
/// IPv6 of a pod that is not plain TCP or UDP.
pub(crate) const OTHER6: &str = "other6";
pub(crate) const NOISE: &str = "noise";

/// One of our tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Table {
    /// `inet moat`: verdicts.
    Inet,
    /// `netdev moat`: anti-spoofing, a chain a veth.
    Netdev,
    /// `inet moat-net`: what the pod network needs of the kernel's tables, which decides no policy.
    Net,
}

impl Table {
    pub(crate) const ALL: [Table; 3] = [Table::Inet, Table::Netdev, Table::Net];

    pub(crate) fn id(self) -> TableId {
        match self {
            Table::Inet => TableId::new(Family::Inet, TABLE),
            Table::Netdev => TableId::new(Family::Netdev, TABLE),
            Table::Net => TableId::new(Family::Inet, NET_TABLE),
        }
    }
}

/// The sets that have elements for each local pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum PodSet {
    /// Host end and the pod's hardware address → egress program.
    FromPod,
    /// Host end → ingress program.
    ToPod,
    /// Host end → egress program, as it judges the answers to this pod.
    AnswersTo,
    /// Host end → ingress program, as it judges the answers of this pod.
    AnswersFrom,
    /// Host ends and hardware addresses of the pods that we know.
    Pods,
    /// Host end, address, address: a pod and itself, IPv4.
    Self4,
    /// The same, IPv6.
    Self6,
    /// The pods' addresses, IPv4.
    Local4,
    /// The same, IPv6.
    Local6,
}

impl PodSet {
    pub(crate) const ALL: [PodSet; 9] = [
        PodSet::FromPod,
        PodSet::ToPod,
        PodSet::AnswersTo,
        PodSet::AnswersFrom,
        PodSet::Pods,
        PodSet::Self4,
        PodSet::Self6,
        PodSet::Local4,
        PodSet::Local6,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            PodSet::FromPod => "from_pod",
            PodSet::ToPod => "to_pod",
            PodSet::AnswersTo => "answers_to",
            PodSet::AnswersFrom => "answers_from",
            PodSet::Pods => "pods",
            PodSet::Self4 => "self4",
            PodSet::Self6 => "self6",
            PodSet::Local4 => "local4",
            PodSet::Local6 => "local6",
        }
    }

    /// The set as it is declared.
    pub(crate) fn set(self) -> Set {
        match self {
            PodSet::FromPod => Set::new(self.name(), key([Field::IfName, Field::EtherAddr])).verdict_map(),
            PodSet::ToPod | PodSet::AnswersTo | PodSet::AnswersFrom => {
                Set::new(self.name(), Field::IfName).verdict_map()
            }
            PodSet::Pods => Set::new(self.name(), key([Field::IfName, Field::EtherAddr])),
            PodSet::Self4 => Set::new(self.name(), key([Field::IfName, Field::Ipv4Addr, Field::Ipv4Addr])),
            PodSet::Self6 => Set::new(self.name(), key([Field::IfName, Field::Ipv6Addr, Field::Ipv6Addr])),
            PodSet::Local4 => Set::new(self.name(), Field::Ipv4Addr),
            PodSet::Local6 => Set::new(self.name(), Field::Ipv6Addr),
        }
    }
}

/// Whose each veth is: host end, the pod's hardware address, its address. For packets that the veth's own chain leaves to [`ODD`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum OwnSet {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl OwnSet {
    pub(crate) const ALL: [OwnSet; 2] = [OwnSet::V4, OwnSet::V6];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            OwnSet::V4 => "own4",
            OwnSet::V6 => "own6",
        }
    }

    /// The set as it is declared.
    pub(crate) fn set(self) -> Set {
        let address = match self {
            OwnSet::V4 => Field::Ipv4Addr,
            OwnSet::V6 => Field::Ipv6Addr,
        };
        Set::new(self.name(), key([Field::IfName, Field::EtherAddr, address]))
    }
}

/// A key of two or three fields.
pub(crate) fn key<const N: usize>(fields: [Field; N]) -> KeyType {
    // The widest key, a name and two IPv6 addresses, has 48 of the 64 bytes that there are.
    KeyType::new(&fields).unwrap_or(KeyType::from(fields[0]))
}

/// Which way the packets go that a chain judges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// From who opens a connection.
    There,
    /// Back: answers.
    Back,
}

impl Way {
    pub(crate) const BOTH: [Way; 2] = [Way::There, Way::Back];
}

/// A program's chain. Programs are named by content alone, so one may serve both directions; the chains differ.
pub(crate) fn program(way: Way, direction: Direction, id: ProgramId) -> Arc<str> {
    match way {
        Way::There => format!("{direction}-{id}").into(),
        Way::Back => format!("{direction}-{id}-answers").into(),
    }
}

/// The chain that passes an allow set's peers.
pub(crate) fn peers(way: Way, direction: Direction, set: SetId) -> Arc<str> {
    match way {
        Way::There => format!("{direction}-peers-{set}").into(),
        Way::Back => format!("{direction}-peers-{set}-answers").into(),
    }
}

/// The map from protocol and port to the chains of its port classes' peers.
pub(crate) fn ports(way: Way, direction: Direction, id: ProgramId) -> Arc<str> {
    format!("{}-ports", program(way, direction, id)).into()
}

/// What of an allow set one kernel set holds. One allow set is up to four of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Part {
    /// Pods' addresses.
    Pods4,
    /// Pods' addresses.
    Pods6,
    /// Prefixes.
    Nets4,
    /// Prefixes.
    Nets6,
    /// Pods' addresses with protocol and port.
    Ports4,
    /// Pods' addresses with protocol and port.
    Ports6,
}

impl Part {
    /// The set as it is declared.
    pub(crate) fn set(self, id: SetId) -> Set {
        let (word, fields): (_, &[Field]) = match self {
            Part::Pods4 => ("pods4", &[Field::Ipv4Addr]),
            Part::Pods6 => ("pods6", &[Field::Ipv6Addr]),
            // The second field is always the whole range: the kernel keeps intervals of one field in a structure
            // that is slow to change, those of two in a fast one.
            Part::Nets4 => ("nets4", &[Field::Ipv4Addr, Field::InetProto]),
            Part::Nets6 => ("nets6", &[Field::Ipv6Addr, Field::InetProto]),
            Part::Ports4 => ("ports4", &[Field::Ipv4Addr, Field::InetProto, Field::InetService]),
            Part::Ports6 => ("ports6", &[Field::Ipv6Addr, Field::InetProto, Field::InetService]),
        };
        let name = format!("{word}-{id}");
        let set = Set::new(name, KeyType::new(fields).unwrap_or(KeyType::from(fields[0])));
        if matches!(self, Part::Nets4 | Part::Nets6) { set.intervals() } else { set }
    }

    /// Whether it holds IPv4 addresses.
    pub(crate) const fn is_v4(self) -> bool {
        matches!(self, Part::Pods4 | Part::Nets4 | Part::Ports4)
    }
}
