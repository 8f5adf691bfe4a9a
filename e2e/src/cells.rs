//! Which questions the lab asks: every ordered pair of hosts, each port, each family.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use moat_policies::{Endpoint, Family, Protocol, Traffic};

/// Somebody who sends and answers: a pod, or a host outside the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Who it is to the engine.
    pub endpoint: Endpoint,
    /// Its node; `None` outside the cluster.
    pub node: Option<std::sync::Arc<str>>,
    /// At most one of each family.
    pub addresses: Vec<IpAddr>,
    /// The TCP and UDP ports that it declares.
    pub ports: BTreeSet<(Protocol, u16)>,
}

impl Host {
    /// Its address of one family.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|a| Family::of(a) == family)
    }

    fn outside(&self) -> bool {
        matches!(self.endpoint, Endpoint::Address(_))
    }
}

/// One question: may this host reach that one with this traffic over this family? Hosts by their index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cell {
    /// Who asks.
    pub source: usize,
    /// Who is to answer.
    pub destination: usize,
    /// Protocol and port.
    pub traffic: Traffic,
    /// The family of the addresses used.
    pub family: Family,
}

/// A cell in words: `shop/web-0 -> shop/db-0 5432/TCP IPv4`.
pub struct Named<'a>(pub &'a Cell, pub &'a [Host]);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Named(cell, hosts) = self;
        let (source, destination) = (&hosts[cell.source].endpoint, &hosts[cell.destination].endpoint);
        write!(f, "{source} -> {destination} {} {}", cell.traffic, cell.family)
    }
}

/// The first port from which the undeclared ports are looked for.
const UNDECLARED_FROM: u16 = 60001;

/// The port of a protocol that stands for "a port that nobody declares".
pub fn undeclared_port(hosts: &[Host], protocol: Protocol) -> u16 {
    let taken = |port: &u16| hosts.iter().any(|h| h.ports.contains(&(protocol, *port)));
    (UNDECLARED_FROM..=u16::MAX).find(|p| !taken(p)).unwrap_or(u16::MAX)
}

/// The ports on which each host is asked and answers: those it declares, and one TCP and one UDP port that nobody does.
pub(crate) fn served_ports(hosts: &[Host]) -> Vec<BTreeSet<(Protocol, u16)>> {
    let undeclared = [Protocol::Tcp, Protocol::Udp].map(|p| (p, undeclared_port(hosts, p)));
    hosts.iter().map(|h| h.ports.iter().copied().chain(undeclared).collect()).collect()
}

/// All questions, by source, then destination, then family, then traffic. Outside hosts do not ask each other: that is nobody's policy.
pub fn cells(hosts: &[Host]) -> Vec<Cell> {
    let served = served_ports(hosts);
    let mut cells = Vec::new();
    for (source, from) in hosts.iter().enumerate() {
        for (destination, to) in hosts.iter().enumerate() {
            if source == destination || (from.outside() && to.outside()) {
                continue;
            }
            for family in Family::ALL {
                if from.address(family).is_none() || to.address(family).is_none() {
                    continue;
                }
                let ports =
                    served[destination].iter().map(|(protocol, port)| Traffic::Port(*protocol, *port));
                let icmp = Traffic::Other(icmp_number(family));
                cells.extend(ports.chain([icmp]).map(|traffic| Cell {
                    source,
                    destination,
                    traffic,
                    family,
                }));
            }
        }
    }
    cells
}

/// The protocol number of ICMP in a family.
pub(crate) fn icmp_number(family: Family) -> u8 {
    match family {
        Family::V4 => 1,
        Family::V6 => 58,
    }
}

#[cfg(test)]
mod tests {
    use moat_policies::NamespacedName;

    use super::*;

    fn pod(name: &str, addresses: &[&str], ports: &[(Protocol, u16)]) -> Host {
        Host {
            endpoint: Endpoint::Pod(NamespacedName::new("shop", name)),
            node: None,
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            ports: ports.iter().copied().collect(),
        }
    }

    #[test]
    fn every_pair_port_and_family() {
        let world = Host {
            endpoint: Endpoint::Address("203.0.113.1".parse().unwrap()),
            ..pod("", &["203.0.113.1"], &[(Protocol::Tcp, 443)])
        };
        let other_world =
            Host { endpoint: Endpoint::Address("203.0.113.2".parse().unwrap()), ..world.clone() };
        let hosts = [
            pod("a", &["10.0.0.1", "fd00::1"], &[(Protocol::Tcp, 80)]),
            pod("b", &["10.0.0.2", "fd00::2"], &[]),
            world,
            other_world,
        ];
        let cells = cells(&hosts);
        let of = |source: usize, destination: usize| {
            cells.iter().filter(|c| c.source == source && c.destination == destination).count()
        };
        // Declared, undeclared TCP, undeclared UDP and ICMP, in two families.
        assert_eq!(of(1, 0), 8);
        assert_eq!(of(0, 1), 6);
        assert_eq!(of(2, 0), 4);
        assert_eq!(of(0, 2), 4);
        assert_eq!((of(2, 3), of(3, 2), of(0, 0)), (0, 0, 0));
    }

    #[test]
    fn an_undeclared_port_is_nobodys() {
        let hosts = [pod("a", &[], &[(Protocol::Tcp, 60001)]), pod("b", &[], &[(Protocol::Tcp, 60002)])];
        assert_eq!(undeclared_port(&hosts, Protocol::Tcp), 60003);
        assert_eq!(undeclared_port(&hosts, Protocol::Udp), 60001);
    }
}
