//! Which flows are worth asking about: both sides of every edge that a policy draws.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use moat_policies::{
    Direction, Family, NetworkPolicy, Objects, Peer, Peers, Pod, PortRef, Ports, Protocol, Traffic,
};

/// How much is asked about one pod at most; what is over is left out evenly.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Peers for one pod and direction.
    pub peers: usize,
    /// Ports for one pod and direction.
    pub ports: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { peers: 160, ports: 24 }
    }
}

/// What a packet carries, and what stands where its port would.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Payload {
    pub(super) traffic: Traffic,
    pub(super) port: Option<u16>,
}

/// The policies that isolate a pod in a direction.
pub(super) fn isolating<'a>(
    objects: &'a Objects,
    pod: &'a Pod,
    direction: Direction,
) -> impl Iterator<Item = &'a NetworkPolicy> {
    objects.policies().values().filter(move |p| {
        p.name.namespace == pod.name.namespace
            && p.rules(direction).is_some()
            && p.subject.matches(&pod.labels)
    })
}

/// Peer addresses: every pod's and node's, and both sides of every edge of a block.
pub(super) fn peers(
    objects: &Objects,
    pod: &Pod,
    direction: Direction,
    family: Family,
    limits: Limits,
) -> Vec<IpAddr> {
    let of_family = |a: &IpAddr| Family::of(a) == family;
    let mut edges: BTreeSet<IpAddr> = BTreeSet::new();
    for policy in isolating(objects, pod, direction) {
        for rule in policy.rules(direction).unwrap_or_default() {
            let Peers::Of(peers) = &rule.peers else { continue };
            for peer in peers {
                if let Peer::Block(block) = peer {
                    let nets = std::iter::once(&block.cidr())
                        .chain(block.except())
                        .flat_map(around)
                        .collect::<Vec<_>>();
                    edges.extend(nets);
                }
            }
        }
    }
    edges.insert(match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
    });
    edges.extend(objects.nodes().values().flat_map(|n| n.addresses.iter().copied()));
    edges.retain(of_family);
    let mut all: BTreeSet<IpAddr> = spread(edges, limits.peers);
    let pods = objects.pods().iter().flat_map(|p| p.addresses).filter(of_family).collect();
    all.extend(spread(pods, limits.peers));
    all.into_iter().collect()
}

/// The first and last address of a prefix, and those next to them outside.
fn around(net: &IpNet) -> Vec<IpAddr> {
    let step = |a: IpAddr, by: i8| match a {
        IpAddr::V4(a) => {
            let bits = if by < 0 { a.to_bits().checked_sub(1) } else { a.to_bits().checked_add(1) };
            bits.map(|b| IpAddr::V4(Ipv4Addr::from_bits(b)))
        }
        IpAddr::V6(a) => {
            let bits = if by < 0 { a.to_bits().checked_sub(1) } else { a.to_bits().checked_add(1) };
            bits.map(|b| IpAddr::V6(Ipv6Addr::from_bits(b)))
        }
    };
    let (first, last) = (net.network(), net.broadcast());
    [Some(first), Some(last), step(first, -1), step(last, 1)].into_iter().flatten().collect()
}

/// Payloads: both sides of every edge of a port range in every protocol, ICMP, and a protocol that moat does not know
/// with a payload too short for a port and with one that looks like a port that policies name.
pub(super) fn payloads(
    objects: &Objects,
    pod: &Pod,
    direction: Direction,
    family: Family,
    limits: Limits,
) -> Vec<Payload> {
    let mut ports: BTreeSet<u16> = BTreeSet::new();
    let mut edge = |first: u16, last: u16| {
        ports.extend([first, last, first.saturating_sub(1), last.saturating_add(1)]);
    };
    for policy in isolating(objects, pod, direction) {
        for rule in policy.rules(direction).unwrap_or_default() {
            let Ports::Of(matches) = &rule.ports else { continue };
            for m in matches {
                match &m.port {
                    PortRef::All => {}
                    PortRef::Range(first, last) => edge(*first, *last),
                    PortRef::Named(name) => {
                        let named = |p: &Pod| {
                            let ports = p.ports.iter().filter(|c| c.name.as_ref() == Some(name));
                            ports.map(|c| c.port).collect::<Vec<_>>()
                        };
                        match direction {
                            Direction::Ingress => named(pod).into_iter().for_each(|p| edge(p, p)),
                            Direction::Egress => {
                                let all: BTreeSet<u16> =
                                    objects.pods().iter().flat_map(|pod| named(&pod)).collect();
                                all.into_iter().for_each(|p| edge(p, p));
                            }
                        }
                    }
                }
            }
        }
    }
    let mut ports = spread(ports, limits.ports);
    ports.extend([1, 65535]);
    let mut payloads: Vec<Payload> = Vec::new();
    for protocol in Protocol::ALL {
        payloads
            .extend(ports.iter().map(|&p| Payload { traffic: Traffic::Port(protocol, p), port: Some(p) }));
    }
    let icmp = if family == Family::V4 { 1 } else { 58 };
    for number in [icmp, 253] {
        payloads.push(Payload { traffic: Traffic::Other(number), port: None });
        payloads.extend(
            ports.iter().take(4).map(|&p| Payload { traffic: Traffic::Other(number), port: Some(p) }),
        );
    }
    payloads
}

/// At most `most` of them, evenly.
fn spread<T: Ord>(all: BTreeSet<T>, most: usize) -> BTreeSet<T> {
    let step = all.len().div_ceil(most.max(1)).max(1);
    all.into_iter().step_by(step).collect()
}
