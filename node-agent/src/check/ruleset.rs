//! A table as `nft -j` tells it: chains of rules, sets and verdict maps, in words that can be judged.

use std::collections::{BTreeMap, HashMap};

/// One table.
#[derive(Debug, Default)]
pub struct Ruleset {
    /// Chains by name, the rules of each in order.
    pub chains: BTreeMap<String, Chain>,
    /// Sets and verdict maps by name.
    pub sets: BTreeMap<String, Set>,
}

/// One chain.
#[derive(Debug, Default)]
pub struct Chain {
    /// Where it is hooked in; `None` for a chain that only others lead to.
    pub base: Option<Base>,
    /// The rules.
    pub rules: Vec<Vec<Statement>>,
}

/// Where a base chain is hooked in, and what is at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// `forward`, `input`, …
    pub hook: String,
    /// The order among chains of a hook.
    pub priority: i64,
    /// Whether a packet that no rule decides is dropped.
    pub drops: bool,
}

/// What a rule does, part by part.
#[derive(Debug, Clone, PartialEq)]
pub enum Statement {
    /// Goes on with the rule only where it holds.
    Match {
        /// What of the packet.
        left: Vec<Field>,
        /// Whether it is to match, or not to.
        negate: bool,
        /// What with.
        right: Right,
    },
    /// Looks its verdict up; goes on with the next rule where there is none.
    VerdictMap {
        /// What of the packet.
        key: Vec<Field>,
        /// The map's name.
        map: String,
    },
    /// Ends the rule.
    Verdict(Verdict),
    /// A counter, a log, a limit before a log: decides nothing.
    Silent,
}

/// The right side of a match.
#[derive(Debug, Clone, PartialEq)]
pub enum Right {
    /// Any one of these patterns.
    Any(Vec<Pattern>),
    /// The named set.
    Set(String),
}

/// What becomes of the packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Passes this base chain.
    Accept,
    /// Is gone.
    Drop,
    /// Goes through another chain, then comes back.
    Jump(String),
    /// Goes through another chain and does not come back.
    Goto(String),
    /// Goes back to where the last jump came from.
    Return,
    /// Goes on with the next rule.
    Continue,
}

/// A named set or verdict map. Elements with nothing but single values are in `exact`.
#[derive(Debug, Default)]
pub struct Set {
    /// The type of each part of the key.
    pub types: Vec<Type>,
    /// Elements by key; a set's have no verdict.
    pub exact: HashMap<Vec<Datum>, Option<Verdict>>,
    /// Elements with ranges or prefixes in them.
    pub ranges: Vec<(Vec<Pattern>, Option<Verdict>)>,
}

impl Set {
    /// The element that a key meets, with its verdict.
    pub fn get(&self, key: &[Datum]) -> Option<&Option<Verdict>> {
        self.exact.get(key).or_else(|| {
            self.ranges
                .iter()
                .find(|(patterns, _)| patterns.iter().zip(key).all(|(p, d)| p.matches(d)))
                .map(|(_, v)| v)
        })
    }
}

/// Something of a packet that a rule looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// What it is.
    pub kind: FieldKind,
    /// Bits that count, where a rule masks it.
    pub mask: Option<u128>,
}

/// What of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldKind {
    /// `meta iifname`
    InName,
    /// `meta oifname`
    OutName,
    /// `ether saddr`
    EtherSource,
    /// `meta nfproto`
    NfProto,
    /// `meta l4proto`
    L4Proto,
    /// `ip saddr`; there only on IPv4 packets.
    Source4,
    /// `ip daddr`
    Destination4,
    /// `ip6 saddr`; there only on IPv6 packets.
    Source6,
    /// `ip6 daddr`
    Destination6,
    /// `tcp dport`, `udp dport`, `sctp dport`: there only on packets of that protocol (its number).
    PortOf(u8),
    /// `th dport`: whatever stands where ports do.
    Port,
    /// `tcp sport` and the like.
    SourcePortOf(u8),
    /// `th sport`
    SourcePort,
    /// `tcp flags`
    TcpFlags,
    /// `icmp type`, `icmpv6 type` (the protocol's number).
    IcmpType(u8),
    /// `ct state`
    CtState,
    /// `ct mark`
    CtMark,
    /// `ct direction`
    CtDirection,
    /// `ct original|reply ip saddr`: in a packet of a connection that is new, reply is the destination.
    CtSource4 {
        /// Of the reply tuple.
        reply: bool,
    },
    /// `ct original|reply ip6 saddr`
    CtSource6 {
        /// Of the reply tuple.
        reply: bool,
    },
}

/// How the values of a field are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// Interface names; `*` at the end stands for any rest.
    Name,
    /// Hardware addresses.
    Ether,
    /// IPv4 addresses.
    Ipv4,
    /// IPv6 addresses.
    Ipv6,
    /// IP protocols, by name or number.
    Protocol,
    /// `ipv4`, `ipv6`
    Family,
    /// Conntrack states, one bit each.
    CtState,
    /// `original`, `reply`
    CtDirection,
    /// TCP flags, one bit each.
    TcpFlags,
    /// ICMP types by name or number; the protocol's number.
    IcmpType(u8),
    /// Plain numbers: ports, marks.
    Number,
}

impl FieldKind {
    /// How its values are written.
    pub fn value_type(self) -> Type {
        match self {
            FieldKind::InName | FieldKind::OutName => Type::Name,
            FieldKind::EtherSource => Type::Ether,
            FieldKind::NfProto => Type::Family,
            FieldKind::L4Proto => Type::Protocol,
            FieldKind::Source4 | FieldKind::Destination4 | FieldKind::CtSource4 { .. } => Type::Ipv4,
            FieldKind::Source6 | FieldKind::Destination6 | FieldKind::CtSource6 { .. } => Type::Ipv6,
            FieldKind::TcpFlags => Type::TcpFlags,
            FieldKind::IcmpType(protocol) => Type::IcmpType(protocol),
            FieldKind::CtState => Type::CtState,
            FieldKind::CtDirection => Type::CtDirection,
            FieldKind::PortOf(_)
            | FieldKind::Port
            | FieldKind::SourcePortOf(_)
            | FieldKind::SourcePort
            | FieldKind::CtMark => Type::Number,
        }
    }
}

/// One value.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Datum {
    /// An interface's name.
    Name(String),
    /// Everything else; addresses as the number that they are.
    Number(u128),
}

/// What a value is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pattern {
    /// This value.
    Exactly(Datum),
    /// A name that begins so.
    Begins(String),
    /// A number in this range, both ends included.
    Within(u128, u128),
    /// A number that has one of these bits (`ct state new,related`).
    AnyBit(u128),
}

impl Pattern {
    /// Whether a value matches.
    pub fn matches(&self, datum: &Datum) -> bool {
        match (self, datum) {
            (Pattern::Exactly(d), _) => d == datum,
            (Pattern::Begins(prefix), Datum::Name(name)) => name.starts_with(prefix.as_str()),
            (Pattern::Within(first, last), Datum::Number(n)) => (first..=last).contains(&n),
            (Pattern::AnyBit(bits), Datum::Number(n)) => n & bits != 0,
            _ => false,
        }
    }
}
