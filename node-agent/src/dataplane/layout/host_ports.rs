//! Ports of the node that lead to pods (`hostPort`).
//!
//! ```text
//! inet moat-net  host-ports-in (prerouting), host-ports-out (output)   protocol . port in @host-ports   ──▶ host-ports
//!                host-ports     to a loopback address                                        ──▶ as it is
//!                               address . protocol . port ▶ host-ports-at…                   ──▶ the pod's address and port
//!                               to one of the node's addresses, protocol . port ▶ host-ports…   ──▶ the same
//!                hairpin (postrouting)   a pod to itself   ──▶ in the node's name
//! ```
//!
//! Destinations are translated before packets are routed, so `forward` judges a packet by the pod and the port that it goes to
//! in the end, and by the source that it has: nothing hides that but where a pod reaches itself, which would not take a packet
//! from its own address. The chains are there only while a port leads somewhere: then whoever looks for one that does not pays
//! for one lookup, with a connection's first packet, and on a node without host ports nobody pays.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use moat_cni::port::{HostPort, Transport};
use moat_nfnetlink::nft::{
    Base, Chain, ChainType, Cmp, Element, FibResult, Field, Hook, Operand, Policy, Rule, Set, Socket, Source,
    Statement, Value, Verdict, fib,
};

use super::ChainRules;
use super::fixed::{v4, v6, veth};
use super::names::{self, Table};

/// Behind kube-proxy, which translates at `dstnat` (-100), iptables' way and nftables': a Service's port on the nodes is the
/// cluster's, and a pod that asks for the same one as its host port does not get what is for the Service.
const DESTINATION: i32 = -99;
/// Where the kernel translates sources (`srcnat`).
const SOURCE: i32 = 100;

const CHAIN: &str = "host-ports";

/// `RTN_LOCAL`.
const LOCAL: u32 = 2;

/// To which address a packet must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum To {
    /// To this one.
    Address(IpAddr),
    /// To any of the node's; IPv4 ones or else IPv6 ones.
    Node { ipv4: bool },
}

/// Where the node's ports lead.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostPorts(BTreeMap<(To, u8, u16), SocketAddr>);

impl HostPorts {
    /// What these pods have asked for. A port that two have asked for leads to the first.
    pub fn of<'a>(pods: impl IntoIterator<Item = (&'a HostPort, IpAddr)>) -> Self {
        let mut ports = BTreeMap::new();
        for (port, address) in pods {
            let to = match port.address() {
                Some(to) => To::Address(to),
                None => To::Node { ipv4: address.is_ipv4() },
            };
            if port.is_of(address.is_ipv4()) {
                let key = (to, port.protocol.number(), port.host_port);
                ports.entry(key).or_insert(SocketAddr::new(address, port.port));
            }
        }
        Self(ports)
    }

    /// Whether no port leads anywhere.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is not as `wanted` says, a sentence each.
    pub(crate) fn drift(&self, wanted: &HostPorts) -> Vec<String> {
        let differs = |(key, target): (&(To, u8, u16), &SocketAddr)| {
            let (to, protocol, port) = key;
            let port = match to {
                To::Address(address) => SocketAddr::new(*address, *port).to_string(),
                To::Node { ipv4: true } => format!("{port} (IPv4)"),
                To::Node { ipv4: false } => format!("{port} (IPv6)"),
            };
            let port = format!("the host port {port} of protocol {protocol}");
            match self.0.get(key) {
                Some(there) if there == target => None,
                Some(there) => Some(format!("{port} leads to {there}, not to {target}")),
                None => Some(format!("{port} leads nowhere, not to {target}")),
            }
        };
        wanted.0.iter().filter_map(differs).collect()
    }

    /// What the pod with these addresses has asked for, as far as it can be told.
    pub(crate) fn asked_by(&self, pod: &[IpAddr]) -> Vec<HostPort> {
        let mut asked: BTreeMap<(Option<IpAddr>, Transport, u16, u16), BTreeSet<bool>> = BTreeMap::new();
        for (&(to, protocol, host_port), target) in self.0.iter().filter(|(_, t)| pod.contains(&t.ip())) {
            let address = match to {
                To::Address(address) => Some(address),
                To::Node { .. } => None,
            };
            let known = Transport::ALL.into_iter().find(|t| t.number() == protocol);
            if let Some(protocol) = known {
                let families = asked.entry((address, protocol, host_port, target.port())).or_default();
                families.insert(target.is_ipv4());
            }
        }
        let of_pod: BTreeSet<bool> = pod.iter().map(IpAddr::is_ipv4).collect();
        let whole = |((address, protocol, host_port, port), families): (_, BTreeSet<bool>)| {
            let host_ip = match (address, families.first()) {
                (None, Some(true)) if families != of_pod => Some(Ipv4Addr::UNSPECIFIED.into()),
                (None, Some(false)) if families != of_pod => Some(Ipv6Addr::UNSPECIFIED.into()),
                (address, _) => address,
            };
            HostPort { protocol, host_port, host_ip, port }
        };
        asked.into_iter().map(whole).collect()
    }

    /// The sets, with what is in them, always in the same order.
    pub(crate) fn sets(&self) -> Vec<(Set, Vec<Element>)> {
        let ports: BTreeSet<(u8, u16)> = self.0.keys().map(|&(_, protocol, port)| (protocol, port)).collect();
        let any = ports.into_iter().map(|(protocol, port)| Element::new(pair(protocol, port)));
        let mut sets = vec![(asked_for(), any.collect())];
        for ipv4 in [true, false] {
            let (mut node, mut address) = (Vec::new(), Vec::new());
            let mut pods = BTreeSet::new();
            for (&(to, protocol, port), target) in self.0.iter().filter(|(_, t)| t.is_ipv4() == ipv4) {
                let [protocol, port] = pair(protocol, port);
                let element = match to {
                    To::Node { .. } => (&mut node, Element::new([protocol, port])),
                    To::Address(at) => (&mut address, Element::new([at.into(), protocol, port])),
                };
                element.0.push(element.1.value([target.ip().into(), Value::Port(target.port())]));
                pods.insert(target.ip());
            }
            let itself = |pod| Element::new([Value::from(pod), Value::from(pod)]);
            sets.push((by_port(ipv4), node));
            sets.push((by_address(ipv4), address));
            sets.push((hairpin(ipv4), pods.into_iter().map(itself).collect()));
        }
        sets
    }

    /// The chains, each behind those that it leads to: none while no port leads anywhere.
    pub(crate) fn chains(&self) -> Vec<ChainRules> {
        if self.is_empty() { Vec::new() } else { chains().into() }
    }

    /// Where ports lead in the network namespace of the calling thread: the kernel's word. Without our tables, nowhere.
    pub(crate) fn in_force() -> Result<Self, moat_nfnetlink::Error> {
        let mut ports = Self::default();
        let mut socket = Socket::open()?;
        for map in Self::maps() {
            let listed = socket.elements(&Table::Net.id(), map.name(), |view| {
                // What is not like ours leads nowhere that we would lead to.
                view.element(&map).map(|element| ports.take(&element));
            });
            match listed {
                Ok(_) => {}
                Err(e) if e.is_not_found() => {}
                Err(e) => return Err(e),
            }
        }
        Ok(ports)
    }

    /// The maps that say where ports lead.
    fn maps() -> [Set; 4] {
        [by_port(true), by_port(false), by_address(true), by_address(false)]
    }

    /// Takes an element of one of them in; whether it is one as they are made.
    fn take(&mut self, element: &Element) -> bool {
        let target = match &element.data {
            Some(moat_nfnetlink::nft::Data::Value(value)) => value.values(),
            _ => return false,
        };
        let target = match *target {
            [Value::Ipv4(ip), Value::Port(port)] => SocketAddr::new(ip.into(), port),
            [Value::Ipv6(ip), Value::Port(port)] => SocketAddr::new(ip.into(), port),
            _ => return false,
        };
        let key = match *element.key.values() {
            [Value::Proto(protocol), Value::Port(port)] => {
                (To::Node { ipv4: target.is_ipv4() }, protocol, port)
            }
            [Value::Ipv4(at), Value::Proto(protocol), Value::Port(port)] => {
                (To::Address(at.into()), protocol, port)
            }
            [Value::Ipv6(at), Value::Proto(protocol), Value::Port(port)] => {
                (To::Address(at.into()), protocol, port)
            }
            _ => return false,
        };
        self.0.insert(key, target);
        true
    }
}

fn pair(protocol: u8, port: u16) -> [Value; 2] {
    [Value::Proto(protocol), Value::Port(port)]
}

const fn address(ipv4: bool) -> Field {
    if ipv4 { Field::Ipv4Addr } else { Field::Ipv6Addr }
}

fn digit(ipv4: bool) -> char {
    if ipv4 { '4' } else { '6' }
}

/// The ports that lead to pods, whoever they are for.
fn asked_for() -> Set {
    Set::new(CHAIN, names::key([Field::InetProto, Field::InetService]))
}

fn by_port(ipv4: bool) -> Set {
    let key = names::key([Field::InetProto, Field::InetService]);
    Set::new(format!("{CHAIN}{}", digit(ipv4)), key).map(names::key([address(ipv4), Field::InetService]))
}

fn by_address(ipv4: bool) -> Set {
    let key = names::key([address(ipv4), Field::InetProto, Field::InetService]);
    Set::new(format!("{CHAIN}-at{}", digit(ipv4)), key).map(names::key([address(ipv4), Field::InetService]))
}

fn hairpin(ipv4: bool) -> Set {
    Set::new(format!("hairpin{}", digit(ipv4)), names::key([address(ipv4), address(ipv4)]))
}

/// The chains, each behind those that it leads to.
fn chains() -> [ChainRules; 4] {
    let base = |name: &'static str, hook, priority, rules| {
        let base = Base { kind: ChainType::Nat, hook, priority, policy: Policy::Accept };
        ChainRules { table: Table::Net, chain: Chain { base: Some(base), ..Chain::new(name) }, rules }
    };
    let asked = || {
        let key = [Source::L4PROTO, Source::TH_DPORT];
        vec![Rule::new().lookup(key, asked_for().name().clone()).verdict(Verdict::goto(CHAIN))]
    };
    let family_of = |rule, ipv4: bool| if ipv4 { v4(rule) } else { v6(rule) };
    let family = |ipv4: bool| family_of(Rule::new(), ipv4);
    let to = |ipv4: bool| if ipv4 { Source::IP_DADDR } else { Source::IP6_DADDR };
    let lead = |rule: Rule, key: Box<[Source]>, map: Set, ipv4| {
        rule.then(Statement::DestinationNat { key, map: map.name().clone(), ipv4 })
    };
    let mut rules = vec![
        // Whoever listens there is the node's own; and such a packet could not leave the node.
        v4(Rule::new())
            .masked(Source::IP_DADDR, Operand::bytes([255, 0, 0, 0]), Cmp::Eq, Operand::bytes([127, 0, 0, 0]))
            .verdict(Verdict::Accept),
        v6(Rule::new())
            .eq(Source::IP6_DADDR, Operand::bytes(Ipv6Addr::LOCALHOST.octets()))
            .verdict(Verdict::Accept),
    ];
    for ipv4 in [true, false] {
        let key = Box::new([to(ipv4), Source::L4PROTO, Source::TH_DPORT]);
        rules.push(lead(family(ipv4), key, by_address(ipv4), ipv4));
        let nodes = family(ipv4)
            .eq(Source::Fib { flags: fib::DADDR, result: FibResult::AddressType }, Operand::host32(LOCAL));
        rules.push(lead(nodes, Box::new([Source::L4PROTO, Source::TH_DPORT]), by_port(ipv4), ipv4));
    }
    let back = |ipv4: bool| {
        let from = if ipv4 { Source::IP_SADDR } else { Source::IP6_SADDR };
        // Most packets leave by another link: that is found out first.
        let rule = family_of(Rule::new().then(veth(Source::OIFNAME, Cmp::Eq)), ipv4);
        rule.lookup([from, to(ipv4)], hairpin(ipv4).name().clone()).then(Statement::Masquerade)
    };
    [
        ChainRules { table: Table::Net, chain: Chain::new(CHAIN), rules },
        base("host-ports-in", Hook::Prerouting, DESTINATION, asked()),
        base("host-ports-out", Hook::Output, DESTINATION, asked()),
        base("hairpin", Hook::Postrouting, SOURCE, vec![back(true), back(false)]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(host_ip: &str, host_port: u16, port: u16) -> HostPort {
        HostPort { protocol: Transport::Tcp, host_port, host_ip: host_ip.parse().ok(), port }
    }

    fn text(ports: &HostPorts) -> Vec<String> {
        let line = |set: &Set, e: &Element| match &e.data {
            Some(moat_nfnetlink::nft::Data::Value(to)) => format!("{} {} : {to}", set.name(), e.key),
            _ => format!("{} {}", set.name(), e.key),
        };
        ports
            .sets()
            .iter()
            .flat_map(|(set, all)| all.iter().map(|e| line(set, e)).collect::<Vec<_>>())
            .collect()
    }

    fn of(pods: &[(HostPort, &str)]) -> HostPorts {
        HostPorts::of(pods.iter().map(|(port, ip)| (port, ip.parse().unwrap())))
    }

    #[test]
    fn a_port_leads_to_the_address_of_each_family_that_was_asked_for() {
        let any = port("", 8080, 80);
        assert_eq!(
            text(&of(&[(any, "10.1.0.5"), (any, "fd00:1::5")])),
            [
                "host-ports 6 . 8080",
                "host-ports4 6 . 8080 : 10.1.0.5 . 80",
                "hairpin4 10.1.0.5 . 10.1.0.5",
                "host-ports6 6 . 8080 : fd00:1::5 . 80",
                "hairpin6 fd00:1::5 . fd00:1::5",
            ]
        );
        let one = port("192.0.2.7", 8080, 80);
        assert_eq!(
            text(&of(&[(one, "10.1.0.5"), (one, "fd00:1::5")])),
            [
                "host-ports 6 . 8080",
                "host-ports-at4 192.0.2.7 . 6 . 8080 : 10.1.0.5 . 80",
                "hairpin4 10.1.0.5 . 10.1.0.5",
            ]
        );
        let six = port("::", 8080, 80);
        assert_eq!(text(&of(&[(six, "10.1.0.5"), (six, "fd00:1::5")])).len(), 3);
    }

    #[test]
    fn what_is_read_back_is_what_was_written() {
        let (any, one) = (port("", 8080, 80), port("192.0.2.7", 8080, 81));
        let wanted = of(&[(any, "10.1.0.5"), (any, "fd00:1::5"), (one, "10.1.0.6")]);
        let mut read = HostPorts::default();
        assert_eq!(
            read.drift(&wanted)[0],
            "the host port 192.0.2.7:8080 of protocol 6 leads nowhere, not to 10.1.0.6:81"
        );
        let maps = HostPorts::maps().map(|map| map.name().clone());
        for (_, elements) in wanted.sets().iter().filter(|(set, _)| maps.contains(set.name())) {
            assert!(elements.iter().all(|element| read.take(element)));
        }
        assert_eq!(read, wanted);
        assert_eq!(read.drift(&wanted), [""; 0]);
        let pods = |ips: &[&str]| ips.iter().map(|ip| ip.parse().unwrap()).collect::<Vec<IpAddr>>();
        assert_eq!(read.asked_by(&pods(&["10.1.0.5", "fd00:1::5"])), [any]);
        assert_eq!(read.asked_by(&pods(&["10.1.0.6"])), [one]);
        let four = port("0.0.0.0", 53, 53);
        let pod = pods(&["10.1.0.5", "fd00:1::5"]);
        let dual = HostPorts::of(pod.iter().map(|ip| (&four, *ip)));
        assert_eq!(dual.asked_by(&pod), [four]);
    }
}
