//! The chains that are there before any pod is.

use moat_nfnetlink::nft::{
    Chain, Cmp, Direction as CtDirection, Hook, IfName, Operand, Options, PayloadBase, Policy, Rule, Source,
    Statement, UserData, Value, Verdict, ct_state,
};

use super::answers;
use super::drops::{DropPoint, DropReason};
use super::names::{self, OwnSet, PodSet, Table};
use super::{ChainRules, FastPath, LayoutConfig, PodToNode, TUNNEL_PORT, USERDATA_VERSION, VERSION};
use moat_policies::Direction;

/// The priority of our chains at `forward` and `input`: `filter`, behind connection tracking and NAT of destinations.
const FILTER: i32 = 0;

const IPV4: u8 = 2;
const IPV6: u8 = 10;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMP6: u8 = 58;
const ETHER_IPV4: u16 = 0x0800;
const ETHER_ARP: u16 = 0x0806;
const ETHER_IPV6: u16 = 0x86dd;
/// `IP_CT_DIR_REPLY`.
const REPLY: u8 = 1;

/// From the node's inside, a packet is some pod's own doing where it comes from one.
const EGRESS: Direction = Direction::Egress;

/// The fixed chains of a table, each behind those that it leads to.
pub(crate) fn chains(table: Table, config: &LayoutConfig, fast: FastPath) -> Vec<ChainRules> {
    let mut chains: Vec<ChainRules> =
        DropPoint::all_in(table).map(|point| drop_chain(table, point, config)).collect();
    match table {
        Table::Inet => {
            let (revoked, invalid) = (sides(DropReason::Revoked), sides(DropReason::Invalid));
            chains.extend([
                open_ingress(),
                to_pod(),
                open_egress(),
                stranger(),
                related(),
                revoked,
                invalid,
                irregular(),
            ]);
            chains.extend(answers::chains(config));
            chains.extend([forward(config, fast), input(config)]);
        }
        Table::Netdev => chains.extend([options(), other6(), noise(), odd()]),
        Table::Net => {
            chains.extend(super::tunnel::chains(config));
            chains.extend(super::masquerade::chain(config));
        }
    }
    chains
}

pub(super) fn regular(table: Table, name: &'static str, rules: Vec<Rule>) -> ChainRules {
    ChainRules { table, chain: Chain::new(name), rules }
}

/// `iifname "moat*"` or `oifname "moat*"`, or the opposite.
pub(super) fn veth(source: Source, cmp: Cmp) -> Statement {
    let value = IfName::new(names::VETH_PREFIX).map_or(Operand::bytes(*b"moat"), Operand::prefix);
    Statement::Match { source, mask: None, cmp, value }
}

pub(super) fn v4(rule: Rule) -> Rule {
    rule.eq(Source::NFPROTO, IPV4)
}

pub(super) fn v6(rule: Rule) -> Rule {
    rule.eq(Source::NFPROTO, IPV6)
}

/// TCP that is neither a connection's first packet nor one that could be.
pub(super) fn mid_stream(direction: Direction) -> Rule {
    const FIN_SYN_RST_ACK: u8 = 0x17;
    const SYN: u8 = 0x02;
    Rule::new()
        .eq(Source::L4PROTO, TCP)
        .masked(Source::TCP_FLAGS, FIN_SYN_RST_ACK, Cmp::Neq, SYN)
        // Those of a known connection come here while connections are judged anew.
        .neq(Source::CT_STATE, Value::CtState(ct_state::ESTABLISHED))
        .verdict(DropReason::MidStream.on(direction).goto())
}

fn drop_chain(table: Table, point: DropPoint, config: &LayoutConfig) -> ChainRules {
    let mut rules = Vec::new();
    if matches!(point.reason, DropReason::Policy | DropReason::MidStream) {
        rules.extend(itself());
    }
    if point.reason == DropReason::Policy {
        // A connection that is judged anew: what is denied one way is denied the other.
        rules.push(revoke(config));
    }
    rules.extend(point.rules(table, config));
    ChainRules { table, chain: Chain::new(point.name()), rules }
}

/// A pod always reaches itself; through a Service its packets come back to it this way. Asked only where a packet would be
/// dropped, it costs the others nothing.
pub(super) fn itself() -> [Rule; 2] {
    [
        v4(Rule::new())
            .lookup([Source::IIFNAME, Source::IP_SADDR, Source::IP_DADDR], PodSet::Self4.name())
            .verdict(Verdict::Accept),
        v6(Rule::new())
            .lookup([Source::IIFNAME, Source::IP6_SADDR, Source::IP6_DADDR], PodSet::Self6.name())
            .verdict(Verdict::Accept),
    ]
}

/// Sets the mark of a connection that is there already.
pub(super) fn revoke(config: &LayoutConfig) -> Rule {
    Rule::new()
        .eq(Source::CT_STATE, Value::CtState(ct_state::ESTABLISHED))
        .then(Statement::SetCtMark { value: config.revoked_mark, mask: config.revoked_mark })
}

/// To the drop of a reason that no side has found: from a pod, it is that one's; else it is that of the pod that it is for.
/// Only traffic to and from pods is ours; the rest goes on as if we were not there.
fn sides(reason: DropReason) -> ChainRules {
    let side =
        |source, direction| Rule::new().then(veth(source, Cmp::Eq)).verdict(reason.on(direction).goto());
    let rules = vec![side(Source::IIFNAME, EGRESS), side(Source::OIFNAME, Direction::Ingress)];
    regular(Table::Inet, reason.as_str(), rules)
}

/// The chain that all forwarded packets go through.
pub(crate) fn forward(config: &LayoutConfig, fast: FastPath) -> ChainRules {
    let established = || Value::CtState(ct_state::ESTABLISHED);
    let first = Rule::new().with_userdata(UserData::new().with(USERDATA_VERSION, [VERSION]));
    let revoked = Rule::new().ct_mark(config.revoked_mark, true);
    let drop_revoked = Verdict::jump(DropReason::Revoked.as_str());
    let mut rules = match fast {
        // One rule, so that a packet of a connection that was let in passes at one rule's cost; the mark is a part of it,
        // because a revoked connection stays established.
        FastPath::Open => vec![
            first
                .ct_mark(config.revoked_mark, false)
                .eq(Source::CT_STATE, established())
                .verdict(Verdict::Accept),
            revoked.verdict(drop_revoked),
        ],
        // Whatever the mark says, which is about what was in force before.
        FastPath::Shut => vec![
            first
                .eq(Source::CT_STATE, established())
                .eq(Source::CT_DIRECTION, REPLY)
                .verdict(Verdict::goto(names::ANSWERS)),
            // An error about a connection is not the connection's own packet: nobody judges it anew.
            revoked.neq(Source::CT_STATE, established()).verdict(drop_revoked),
        ],
    };
    rules.extend([
        Rule::new()
            .neq(Source::CT_STATE, Value::CtState(ct_state::NEW))
            .verdict(Verdict::jump(names::IRREGULAR)),
        tunnel().then(veth(Source::IIFNAME, Cmp::Eq)).verdict(DropReason::Tunnel.on(EGRESS).goto()),
        // The hardware address is asked for here, where a connection opens, and not in the veth's own chain: reading it
        // costs every packet more than all else there, and once a connection is open it decides nothing.
        Rule::new().vmap([Source::IIFNAME, Source::ETHER_SADDR], PodSet::FromPod.name()),
        Rule::new().then(veth(Source::IIFNAME, Cmp::Eq)).verdict(Verdict::goto(names::STRANGER)),
        // From elsewhere, but with the address of one of our pods: only its own host end may bring that.
        v4(Rule::new())
            .lookup([Source::IP_SADDR], PodSet::Local4.name())
            .verdict(DropReason::Spoofed.on(Direction::Ingress).goto()),
        v6(Rule::new())
            .lookup([Source::IP6_SADDR], PodSet::Local6.name())
            .verdict(DropReason::Spoofed.on(Direction::Ingress).goto()),
        Rule::new().verdict(Verdict::goto(names::TO_POD)),
    ]);
    ChainRules {
        table: Table::Inet,
        chain: Chain::filter(names::FORWARD, Hook::Forward, FILTER, Policy::Accept),
        rules,
    }
}

/// To the tunnel's port.
pub(super) fn tunnel() -> Rule {
    Rule::new().eq(Source::L4PROTO, UDP).eq(Source::TH_DPORT, Operand::be16(TUNNEL_PORT))
}

fn to_pod() -> ChainRules {
    regular(
        Table::Inet,
        names::TO_POD,
        vec![
            Rule::new().vmap([Source::OIFNAME], PodSet::ToPod.name()),
            Rule::new()
                .then(veth(Source::OIFNAME, Cmp::Eq))
                .verdict(DropReason::UnknownPod.on(Direction::Ingress).goto()),
            // Not left to the base chain's policy: a program's port class may have been jumped to, and then the end of this
            // chain would be a return into the program, to its denial.
            Rule::new().verdict(Verdict::Accept),
        ],
    )
}

/// To a pod that is isolated for egress only. Nobody may pick up a connection of an isolated pod in its middle, from
/// either end: the kernel would take the one who answers for the one who asks, and carry the rest on.
fn open_ingress() -> ChainRules {
    let rules = vec![mid_stream(Direction::Ingress), Rule::new().verdict(Verdict::Accept)];
    regular(Table::Inet, names::OPEN_INGRESS, rules)
}

/// From a pod that is isolated for ingress only.
fn open_egress() -> ChainRules {
    let rules = vec![mid_stream(EGRESS), Rule::new().verdict(Verdict::goto(names::TO_POD))];
    regular(Table::Inet, names::OPEN_EGRESS, rules)
}

/// From an interface like a pod's, but not from a pod that we know: the interface is not known, or it is and the
/// hardware address is another's.
fn stranger() -> ChainRules {
    regular(
        Table::Inet,
        names::STRANGER,
        vec![
            v4(Rule::new())
                .lookup([Source::IIFNAME, Source::IP_SADDR, Source::IP_SADDR], PodSet::Self4.name())
                .verdict(DropReason::Spoofed.on(EGRESS).goto()),
            v6(Rule::new())
                .lookup([Source::IIFNAME, Source::IP6_SADDR, Source::IP6_SADDR], PodSet::Self6.name())
                .verdict(DropReason::Spoofed.on(EGRESS).goto()),
            Rule::new().verdict(DropReason::UnknownPod.on(EGRESS).goto()),
        ],
    )
}

/// Neither new nor established. What is left, packets that nobody tracks, comes back and is judged as new.
fn irregular() -> ChainRules {
    regular(
        Table::Inet,
        names::IRREGULAR,
        vec![
            Rule::new().ct_state(ct_state::RELATED).verdict(Verdict::goto(names::RELATED)),
            Rule::new().ct_state(ct_state::INVALID).verdict(Verdict::jump(DropReason::Invalid.as_str())),
        ],
    )
}

/// ICMP errors. From a pod only about its own connection: the end of the connection that the error comes from must be
/// the pod. Else a pod that may not talk could reset other pods' connections with forged errors. From elsewhere, where
/// every router on the way may have something to say, not about a connection between two pods of this node, which no
/// router has seen, and not in a pod's name.
fn related() -> ChainRules {
    let outside = || Rule::new().then(veth(Source::IIFNAME, Cmp::Neq));
    let forged = || DropReason::Spoofed.on(Direction::Ingress).goto();
    let ends = [CtDirection::Original, CtDirection::Reply];
    let between4 = ends
        .into_iter()
        .fold(v4(outside()), |rule, end| rule.lookup([Source::ct_ip_saddr(end)], PodSet::Local4.name()));
    let between6 = ends
        .into_iter()
        .fold(v6(outside()), |rule, end| rule.lookup([Source::ct_ip6_saddr(end)], PodSet::Local6.name()));
    let mut rules = vec![
        between4.verdict(forged()),
        between6.verdict(forged()),
        v4(outside()).lookup([Source::IP_SADDR], PodSet::Local4.name()).verdict(forged()),
        v6(outside()).lookup([Source::IP6_SADDR], PodSet::Local6.name()).verdict(forged()),
        outside().verdict(Verdict::Accept),
    ];
    for (number, direction) in [(0_u8, CtDirection::Original), (1, CtDirection::Reply)] {
        let own = Rule::new().eq(Source::CT_DIRECTION, number);
        rules.push(
            v4(own.clone())
                .lookup(
                    [Source::IIFNAME, Source::IP_SADDR, Source::ct_ip_saddr(direction)],
                    PodSet::Self4.name(),
                )
                .verdict(Verdict::Accept),
        );
        rules.push(
            v6(own)
                .lookup(
                    [Source::IIFNAME, Source::IP6_SADDR, Source::ct_ip6_saddr(direction)],
                    PodSet::Self6.name(),
                )
                .verdict(Verdict::Accept),
        );
    }
    rules.push(Rule::new().verdict(DropReason::Spoofed.on(EGRESS).goto()));
    regular(Table::Inet, names::RELATED, rules)
}

/// A node and its own pods always reach each other, but only pods that we know; and what makes a pod more than a pod
/// to its node (a tunnel's frames, routes by ICMP, addresses that mean the node itself) is nobody's.
fn input(config: &LayoutConfig) -> ChainRules {
    const REDIRECT: u8 = 5;
    const ROUTER_ADVERTISEMENT: u8 = 9;
    let routers = |kind: u8| {
        let message = Rule::new().eq(Source::L4PROTO, ICMP).eq(Source::ICMP_TYPE, kind);
        message.verdict(DropReason::Spoofed.on(EGRESS).goto())
    };
    let mut rules = vec![
        Rule::new().then(veth(Source::IIFNAME, Cmp::Neq)).verdict(Verdict::Accept),
        tunnel().verdict(DropReason::Tunnel.on(EGRESS).goto()),
        Rule::new()
            .lookup_missing([Source::IIFNAME, Source::ETHER_SADDR], PodSet::Pods.name())
            .verdict(Verdict::goto(names::STRANGER)),
        v4(Rule::new())
            .masked(Source::IP_DADDR, Operand::bytes([255, 0, 0, 0]), Cmp::Eq, Operand::bytes([127, 0, 0, 0]))
            .verdict(DropReason::Spoofed.on(EGRESS).goto()),
        routers(REDIRECT),
        // The kernel believes none, but a daemon of the node may (RFC 1256).
        routers(ROUTER_ADVERTISEMENT),
        // Only about the pod's own connections: else it could end the node's with errors that it makes up.
        Rule::new().ct_state(ct_state::RELATED).verdict(Verdict::goto(names::RELATED)),
    ];
    if config.pod_to_node == PodToNode::Policy {
        rules.extend(pod_to_node());
    }
    ChainRules {
        table: Table::Inet,
        chain: Chain::filter(names::INPUT, Hook::Input, FILTER, Policy::Accept),
        rules,
    }
}

/// What a known pod sends to its own node, judged by its egress program. Every packet is, not a connection's first only:
/// there is little of it, and so a denial holds at once for what is open already.
fn pod_to_node() -> [Rule; 4] {
    const NEIGHBOUR_SOLICITATION: u8 = 135;
    const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    [
        // Answers to what the node asked, a kubelet's probes above all.
        Rule::new()
            .eq(Source::CT_STATE, Value::CtState(ct_state::ESTABLISHED))
            .eq(Source::CT_DIRECTION, REPLY)
            .verdict(Verdict::Accept),
        // For its own addresses only: its veth's chain has seen to that.
        v6(Rule::new())
            .eq(Source::L4PROTO, ICMP6)
            .range(Source::ICMP_TYPE, NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT)
            .verdict(Verdict::Accept),
        Rule::new().ct_state(ct_state::INVALID).verdict(Verdict::jump(DropReason::Invalid.as_str())),
        // A program that accepts goes on to where packets to pods are judged, and this one leaves by no pod's link.
        Rule::new().vmap([Source::IIFNAME, Source::ETHER_SADDR], PodSet::FromPod.name()),
    ]
}

/// IPv4 from a pod's own address, with options: multicast's router alert and nothing else. A source route would lead a
/// packet past what judges it; and the kernel's own test for one misses those that are not well formed.
fn options() -> ChainRules {
    const SIX_WORDS: u8 = 0x46;
    const ROUTER_ALERT: [u8; 4] = [148, 4, 0, 0];
    let header = |offset, len| Source::Payload { base: PayloadBase::Network, offset, len };
    regular(
        Table::Netdev,
        names::OPTIONS,
        vec![
            Rule::new()
                .eq(header(0, 1), SIX_WORDS)
                .eq(header(20, 4), Operand::bytes(ROUTER_ALERT))
                .verdict(Verdict::Accept),
            Rule::new().verdict(DropReason::Spoofed.on(EGRESS).goto()),
        ],
    )
}

/// IPv6 from a pod's own addresses that is not plain TCP or UDP: no source route, of ICMPv6 nothing that only a router says, and of
/// neighbours' addresses only its own. A packet of which the kernel cannot tell what it carries matches neither protocol, and is
/// dropped.
fn other6() -> ChainRules {
    const ROUTER_ADVERTISEMENT: u8 = 134;
    const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    const REDIRECT: u8 = 137;
    let is = |kind: u8| Rule::new().eq(Source::ICMP_TYPE, kind);
    let spoofed = || DropReason::Spoofed.on(EGRESS).goto();
    let of_others = is(NEIGHBOUR_ADVERTISEMENT).lookup_missing(sender(Source::ND_TARGET), OwnSet::V6.name());
    regular(
        Table::Netdev,
        names::OTHER6,
        vec![
            routing_header().verdict(spoofed()),
            Rule::new().neq(Source::L4PROTO, ICMP6).eq(ROUTING_HEADER, 0).verdict(Verdict::Accept),
            is(ROUTER_ADVERTISEMENT).verdict(spoofed()),
            is(REDIRECT).verdict(spoofed()),
            of_others.verdict(spoofed()),
            Rule::new().eq(Source::L4PROTO, ICMP6).eq(ROUTING_HEADER, 0).verdict(Verdict::Accept),
            Rule::new().verdict(spoofed()),
        ],
    )
}

/// The key that a pod has in an [`OwnSet`], with the address that stands there in the packet.
const fn sender(address: Source) -> [Source; 3] {
    [Source::IIFNAME, Source::ETHER_SADDR, address]
}

fn routing_header() -> Rule {
    Rule::new().eq(ROUTING_HEADER, 1)
}

/// Whether an IPv6 packet has a routing header, which is what IPv6 calls a source route.
const ROUTING_HEADER: Source = Source::Has { options: Options::Ipv6, kind: 43 };

/// What is not plain IPv4, TCP or UDP from the pod's own addresses: ARP that tells the truth, and what [`options`] and [`other6`] look
/// at. The rest is from an address that is not the pod's. A fresh interface looks for routers, neighbours and multicast groups from
/// the unspecified and the link-local address; that is dropped too, but it is no attempt at anything.
fn odd() -> ChainRules {
    let carries = |kind: u16| Rule::new().eq(Source::ETHER_TYPE, Value::EtherType(kind));
    let icmp6 = || carries(ETHER_IPV6).eq(Source::L4PROTO, ICMP6);
    let link_local = Source::Payload { base: PayloadBase::Network, offset: 8, len: 2 };
    // Who says that he has the address, and whose frame it is.
    let arp_sender = [Source::IIFNAME, Source::ARP_SADDR_ETHER, Source::ARP_SADDR_IP];
    regular(
        Table::Netdev,
        names::ODD,
        vec![
            carries(ETHER_ARP)
                .lookup(sender(Source::ARP_SADDR_IP), OwnSet::V4.name())
                .lookup(arp_sender, OwnSet::V4.name())
                .verdict(Verdict::Accept),
            carries(ETHER_IPV4)
                .lookup(sender(Source::IP_SADDR), OwnSet::V4.name())
                .verdict(Verdict::goto(names::OPTIONS)),
            carries(ETHER_IPV6)
                .lookup(sender(Source::IP6_SADDR), OwnSet::V6.name())
                .verdict(Verdict::goto(names::OTHER6)),
            icmp6()
                .masked(link_local, Operand::be16(0xffc0), Cmp::Eq, Operand::be16(0xfe80))
                .verdict(Verdict::goto(names::NOISE)),
            icmp6().eq(Source::IP6_SADDR, Operand::bytes([0; 16])).verdict(Verdict::goto(names::NOISE)),
            Rule::new().verdict(DropReason::Spoofed.on(EGRESS).goto()),
        ],
    )
}

fn noise() -> ChainRules {
    let quiet = |from: u8, to: u8| Rule::new().range(Source::ICMP_TYPE, from, to).verdict(Verdict::Drop);
    regular(
        Table::Netdev,
        names::NOISE,
        vec![
            // Multicast listener reports and router solicitations; neighbour discovery; reports of version 2.
            quiet(131, 133),
            quiet(135, 136),
            quiet(143, 143),
            Rule::new().verdict(DropReason::Spoofed.on(EGRESS).goto()),
        ],
    )
}
