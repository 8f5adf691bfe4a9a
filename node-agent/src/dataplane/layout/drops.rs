//! Where packets are dropped: a chain for each reason and side, which counts, logs and drops.
//!
//! ```text
//! chain spoofed-egress {
//!     counter name "spoofed-egress" iifname @drops-spoofed-egress         # of all; of this pod
//!     update @log-spoofed-egress { iifname . oifname limit … } log …      # now and then
//!     drop
//! }
//! ```
//!
//! The three rules depend on nothing of each other. The first counts every packet in a counter with a name, and in the
//! element that the pod has in a set: both outlive the rules, and so an agent's restart; the element comes and goes with the
//! pod's interface. The second lets each pair of interfaces have so many log records a second, so that a noisy pod hides
//! nobody else's drops; the set that remembers the pairs is the kernel's own, and where it is full, nothing is logged. The third
//! drops, whatever became of the others.
//!
//! Where a denial is told to who is denied, rules that reject stand before the last one, for the first packets of connections and
//! never for strangers: what a pod sent may always be answered, what came to a pod only if it is the cluster's.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use moat_nfnetlink::nft::{
    Element, Field, IcmpError, IfName, Limit, Log, Reject, Rule, Set, Source, Value, Verdict, ct_state,
};
use moat_policies::{DenyAction, Direction, LogLimit};

use super::LayoutConfig;
use super::fixed::{v4, v6};
use super::masquerade;
use super::names::{self, Table};

/// Pairs of interfaces that are remembered at most, and how long after their last drop.
const LOG_PAIRS: u32 = 4096;
const LOG_MEMORY: Duration = Duration::from_secs(60);
/// How much of a packet a record holds: all headers that the drop log looks at.
const LOG_BYTES: u32 = 128;

/// Why a packet was dropped. The list is closed: nothing is dropped for another reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DropReason {
    /// No policy allows it.
    Policy,
    /// Its connection was allowed once and is not any more.
    Revoked,
    /// It belongs to no connection and cannot open one.
    Invalid,
    /// It would pick up a TCP connection in the middle, to or from an isolated pod.
    MidStream,
    /// It is to or from a pod that moat does not know yet.
    UnknownPod,
    /// It says that it is from somebody else.
    Spoofed,
    /// It is for a tunnel port, which is no pod's business; or it came there, and not from a node that may send it.
    Tunnel,
    /// It is to or from a pod whose rules the kernel did not take.
    KernelRefused,
}

impl DropReason {
    /// All reasons.
    pub const ALL: [DropReason; 8] = [
        DropReason::Policy,
        DropReason::Revoked,
        DropReason::Invalid,
        DropReason::MidStream,
        DropReason::UnknownPod,
        DropReason::Spoofed,
        DropReason::Tunnel,
        DropReason::KernelRefused,
    ];

    /// The reason in one word.
    pub const fn as_str(self) -> &'static str {
        match self {
            DropReason::Policy => "policy",
            DropReason::Revoked => "revoked",
            DropReason::Invalid => "invalid",
            DropReason::MidStream => "mid-stream",
            DropReason::UnknownPod => "unknown-pod",
            DropReason::Spoofed => "spoofed",
            DropReason::Tunnel => "tunnel",
            DropReason::KernelRefused => "kernel-refused",
        }
    }

    /// The reason, on the side of who sends or of who receives.
    pub const fn on(self, direction: Direction) -> DropPoint {
        DropPoint { reason: self, direction }
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A reason, and whose side it is: with egress it is about the pod that the packet came from, with ingress about the one that
/// it was for. Each has a chain of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DropPoint {
    /// Why.
    pub reason: DropReason,
    /// Whose side.
    pub direction: Direction,
}

impl DropPoint {
    /// All that there are.
    pub fn all() -> impl Iterator<Item = DropPoint> {
        DropReason::ALL.into_iter().flat_map(|reason| Direction::ALL.map(|direction| reason.on(direction)))
    }

    /// Those that have a chain in this table.
    pub(crate) fn all_in(table: Table) -> impl Iterator<Item = DropPoint> {
        let (veths, frames) =
            (DropReason::Spoofed.on(Direction::Egress), DropReason::Tunnel.on(Direction::Ingress));
        Self::all().filter(move |point| match table {
            Table::Inet => *point != frames,
            Table::Netdev => *point == veths,
            Table::Net => *point == frames,
        })
    }

    /// The point that a log record's prefix names.
    pub fn from_prefix(prefix: &str) -> Option<Self> {
        let name = prefix.strip_prefix("moat ")?;
        Self::all().find(|p| p.name() == name)
    }

    /// The name of its chain and of its counter, and behind `moat ` the prefix of its log records.
    pub(crate) fn name(self) -> String {
        format!("{}-{}", self.reason, self.direction)
    }

    /// To its chain.
    pub(super) fn goto(self) -> Verdict {
        Verdict::goto(self.name())
    }

    /// The set in which each pod's element counts.
    pub(crate) fn pods(self) -> Set {
        Set::new(format!("drops-{self}"), Field::IfName).counted()
    }

    /// The element of the pod with this interface.
    pub(crate) fn pod(ifname: IfName) -> Element {
        Element::new(ifname)
    }

    /// The set that remembers which pairs of interfaces were logged how often. What it remembers has the limit in it: with another
    /// limit it is another set.
    pub(crate) fn pairs(self, table: Table, limit: LogLimit) -> Set {
        let name = match limit == LogLimit::default() {
            true => format!("log-{self}"),
            false => format!("log-{self}-{}-{}", limit.rate, limit.burst),
        };
        let set = match table {
            Table::Inet | Table::Net => Set::new(name, names::key([Field::IfName, Field::IfName])),
            Table::Netdev => Set::new(name, Field::IfName),
        };
        set.dynamic().size(LOG_PAIRS).timeout(LOG_MEMORY)
    }

    /// The rules that its chain ends with.
    pub(super) fn rules(self, table: Table, config: &LayoutConfig) -> Vec<Rule> {
        let interface = match self.direction {
            Direction::Egress => Source::IIFNAME,
            Direction::Ingress => Source::OIFNAME,
        };
        // A packet that has just come in has no way out yet.
        let pair: &[Source] = match table {
            Table::Inet | Table::Net => &[Source::IIFNAME, Source::OIFNAME],
            Table::Netdev => &[Source::IIFNAME],
        };
        let log = Log {
            group: config.log_group,
            prefix: Arc::from(format!("moat {self}")),
            snaplen: Some(LOG_BYTES),
            threshold: None,
        };
        let mut rules =
            vec![Rule::new().count_in(self.name()).lookup([interface], self.pods().name().clone())];
        let LogLimit { rate, burst } = config.drop_log;
        if rate > 0 {
            let limit = Limit { rate: rate.into(), per: Duration::from_secs(1), burst };
            let pairs = self.pairs(table, config.drop_log);
            rules.push(Rule::new().meter(pair, pairs.name().clone(), limit).log(log));
        }
        if self.reason == DropReason::Policy && config.deny == DenyAction::Reject {
            rules.extend(self.rejections());
        }
        rules.push(Rule::new().verdict(Verdict::Drop));
        rules
    }

    /// Tells who sent a connection's first packet that it is denied. A connection that is there already is not reset: it may be
    /// allowed again, and both ends then find it as it was.
    fn rejections(self) -> Vec<Rule> {
        const TCP: u8 = 6;
        let first = || Rule::new().neq(Source::CT_STATE, Value::CtState(ct_state::ESTABLISHED));
        let of_the_cluster = |ipv4: bool| {
            let (rule, source) =
                if ipv4 { (v4(first()), Source::IP_SADDR) } else { (v6(first()), Source::IP6_SADDR) };
            rule.lookup([source, Source::L4PROTO], masquerade::inside(ipv4).name().clone())
        };
        let senders = match self.direction {
            // The pod's own, by its veth.
            Direction::Egress => vec![first()],
            // Who asks from outside learns nothing, also not that there is a pod.
            Direction::Ingress => vec![of_the_cluster(true), of_the_cluster(false)],
        };
        let both = |sender: Rule| {
            [
                sender.clone().eq(Source::L4PROTO, TCP).reject(Reject::TcpReset),
                sender.neq(Source::L4PROTO, TCP).reject(Reject::Icmp(IcmpError::AdminProhibited)),
            ]
        };
        senders.into_iter().flat_map(both).collect()
    }
}

impl fmt::Display for DropPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_records_prefix_names_the_reason_and_the_side() {
        assert_eq!(DropPoint::all().count(), 16);
        for point in DropPoint::all() {
            assert_eq!(DropPoint::from_prefix(&format!("moat {point}")), Some(point));
        }
        for other in ["moat", "moat policy", "moat tunnel", "somebody else's policy-ingress"] {
            assert_eq!(DropPoint::from_prefix(other), None, "{other}");
        }
    }
}
