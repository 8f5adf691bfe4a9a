//! What may come out of the tunnel: frames from nodes that we know, and in them packets from those nodes' pods only.
//!
//! ```text
//! inet moat-net  tunnel (input)   udp, port 4789, not from a pod   ──▶ senders
//!                senders          frame's sender . inner packet's sender @tunnel-…   ──▶ accept | tunnel-ingress
//! ```
//!
//! The tunnel's device tells nobody whom a packet came from. So a frame is looked into before the device gets it: at `input` it
//! is a UDP datagram that is whole (the kernel has put fragments together), in which everything stands at a fixed distance from
//! the UDP header. What is not plain IPv4 or IPv6 in Ethernet, tags and ARP for example, is in nobody's range.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use moat_nfnetlink::nft::{
    Chain, Cmp, Element, Field, Hook, Operand, PayloadBase, Policy, Rule, Set, Source, Value, Verdict,
};
use moat_policies::{Direction, Node};

use super::drops::DropReason;
use super::fixed::{tunnel, v4, v6, veth};
use super::names::{self, Table};
use super::sets::ranges;
use super::{ChainRules, LayoutConfig};

/// Behind the chain that decides what comes from pods.
const PRIORITY: i32 = 10;

const CHAIN: &str = "tunnel";
const SENDERS: &str = "senders";

/// UDP header, VXLAN header.
const FRAME: u16 = 8 + 8;
const ETHERNET: u16 = 14;

/// Who may send what through the tunnel: addresses of nodes, and for each the prefixes that its packets may be from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Senders(BTreeSet<(IpAddr, IpNet)>);

impl Senders {
    /// The other nodes send what their pods send, and what they send themselves. None of it is from here.
    pub fn of(local: &Node, others: &[Node]) -> Self {
        let here = |net: &IpNet| {
            let own = local.pod_cidrs.iter().any(|cidr| cidr.contains(net) || net.contains(cidr));
            own || local.addresses.iter().any(|address| net.contains(address))
        };
        let of = |node: &Node| {
            let prefixes: Vec<IpNet> = node
                .pod_cidrs
                .iter()
                .map(IpNet::trunc)
                .chain(node.addresses.iter().map(|address| IpNet::from(*address)))
                .filter(|net| !here(net))
                .collect();
            let pair = |address: IpAddr| prefixes.iter().map(move |net| (address, *net)).collect::<Vec<_>>();
            node.addresses.iter().flat_map(|address| pair(*address)).collect::<Vec<_>>()
        };
        Self(others.iter().filter(|node| node.name != local.name).flat_map(of).collect())
    }

    /// The elements, by the families of frame and packet.
    fn elements(&self) -> BTreeMap<Pair, Vec<Element>> {
        let mut by_sender: BTreeMap<IpAddr, Vec<IpNet>> = BTreeMap::new();
        for (sender, net) in &self.0 {
            by_sender.entry(*sender).or_default().push(*net);
        }
        let mut elements: BTreeMap<Pair, Vec<Element>> = BTreeMap::new();
        for pair in Pair::ALL {
            let ends = elements.entry(pair).or_default();
            for (sender, nets) in by_sender.iter().filter(|(sender, _)| sender.is_ipv4() == pair.outer_v4) {
                let sender = Value::from(*sender);
                ends.extend(ranges(nets, pair.inner_v4).into_iter().map(|(first, last)| {
                    Element::range([sender, Value::from(first)], [sender, Value::from(last)])
                }));
            }
        }
        elements
    }
}

/// The families of a frame and of the packet in it. Each pair has a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pair {
    outer_v4: bool,
    inner_v4: bool,
}

impl Pair {
    const ALL: [Pair; 4] = [
        Pair { outer_v4: true, inner_v4: true },
        Pair { outer_v4: true, inner_v4: false },
        Pair { outer_v4: false, inner_v4: true },
        Pair { outer_v4: false, inner_v4: false },
    ];

    fn set(self) -> Set {
        let field = |v4| if v4 { Field::Ipv4Addr } else { Field::Ipv6Addr };
        let digit = |v4| if v4 { '4' } else { '6' };
        let name = format!("tunnel-{}in{}", digit(self.inner_v4), digit(self.outer_v4));
        Set::new(name, names::key([field(self.outer_v4), field(self.inner_v4)])).intervals()
    }

    /// Lets a frame in whose packet may be from where it says.
    fn rule(self) -> Rule {
        let inner = |offset, len| Source::Payload { base: PayloadBase::Transport, offset, len };
        let (family, outer): (fn(Rule) -> Rule, _) =
            if self.outer_v4 { (v4, Source::IP_SADDR) } else { (v6, Source::IP6_SADDR) };
        let (carries, sender) = match self.inner_v4 {
            true => (0x0800, inner(FRAME + ETHERNET + 12, 4)),
            false => (0x86dd, inner(FRAME + ETHERNET + 8, 16)),
        };
        family(Rule::new())
            .eq(inner(FRAME + 12, 2), Operand::be16(carries))
            .lookup([outer, sender], self.set().name().clone())
            .verdict(Verdict::Accept)
    }
}

/// The sets, with what is in them.
pub(crate) fn sets(senders: &Senders) -> Vec<(Set, Vec<Element>)> {
    senders.elements().into_iter().map(|(pair, elements)| (pair.set(), elements)).collect()
}

/// The chains of the tunnel, each behind those that it leads to.
pub(crate) fn chains(config: &LayoutConfig) -> Vec<ChainRules> {
    if !config.tunnel {
        return Vec::new();
    }
    let mut rules: Vec<Rule> = Pair::ALL.into_iter().map(Pair::rule).collect();
    rules.push(Rule::new().verdict(DropReason::Tunnel.on(Direction::Ingress).goto()));
    let hook = Chain::filter(CHAIN, Hook::Input, PRIORITY, Policy::Accept);
    let frames = tunnel().then(veth(Source::IIFNAME, Cmp::Neq)).verdict(Verdict::goto(SENDERS));
    vec![
        ChainRules { table: Table::Net, chain: Chain::new(SENDERS), rules },
        ChainRules { table: Table::Net, chain: hook, rules: vec![frames] },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, addresses: &[&str], cidrs: &[&str]) -> Node {
        Node {
            name: name.into(),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            pod_cidrs: cidrs.iter().map(|c| c.parse().unwrap()).collect(),
        }
    }

    fn text(senders: &Senders) -> Vec<String> {
        let range = |set: &Set, e: &Element| format!("{} {}-{}", set.name(), e.key, e.end.unwrap());
        sets(senders)
            .iter()
            .flat_map(|(set, all)| all.iter().map(|e| range(set, e)).collect::<Vec<_>>())
            .collect()
    }

    #[test]
    fn a_node_sends_what_is_its_own() {
        let local = node("a", &["192.0.2.1"], &["10.1.0.0/24"]);
        let b = node("b", &["192.0.2.2", "2001:db8::2"], &["10.2.0.0/24", "fd00:2::/64"]);
        let expected = [
            "tunnel-4in4 192.0.2.2 . 10.2.0.0-192.0.2.2 . 10.2.0.255",
            "tunnel-4in4 192.0.2.2 . 192.0.2.2-192.0.2.2 . 192.0.2.2",
            "tunnel-6in4 192.0.2.2 . 2001:db8::2-192.0.2.2 . 2001:db8::2",
            "tunnel-6in4 192.0.2.2 . fd00:2::-192.0.2.2 . fd00:2::ffff:ffff:ffff:ffff",
            "tunnel-4in6 2001:db8::2 . 10.2.0.0-2001:db8::2 . 10.2.0.255",
            "tunnel-4in6 2001:db8::2 . 192.0.2.2-2001:db8::2 . 192.0.2.2",
            "tunnel-6in6 2001:db8::2 . 2001:db8::2-2001:db8::2 . 2001:db8::2",
            "tunnel-6in6 2001:db8::2 . fd00:2::-2001:db8::2 . fd00:2::ffff:ffff:ffff:ffff",
        ];
        let mut all = text(&Senders::of(&local, &[b, local.clone()]));
        all.sort_by_key(|line| expected.iter().position(|e| e == line));
        assert_eq!(all, expected);
    }

    #[test]
    fn nobody_sends_what_is_from_here_and_overlapping_claims_are_one() {
        let local = node("a", &["192.0.2.1"], &["10.1.0.0/24"]);
        let greedy = node("b", &["192.0.2.2"], &["0.0.0.0/0", "10.1.0.0/25", "10.2.0.0/24", "10.2.0.128/25"]);
        let senders = Senders::of(&local, &[greedy]);
        let expected = [
            "tunnel-4in4 192.0.2.2 . 10.2.0.0-192.0.2.2 . 10.2.0.255",
            "tunnel-4in4 192.0.2.2 . 192.0.2.2-192.0.2.2 . 192.0.2.2",
        ];
        assert_eq!(text(&senders), expected);
    }
}
