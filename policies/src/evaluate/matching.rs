//! Whether a rule's peers and ports match, word for word as the API has them.

use std::sync::Arc;

use super::party::{Kind, Party};
use crate::{Direction, Family, NamespaceScope, Peer, Peers, PortRef, Ports, Traffic};

/// Whether `from`/`to` of a rule of a policy in `namespace` matches a peer over a family.
pub(super) fn peers_match(
    peers: &Peers,
    namespace: &Arc<str>,
    peer: &Party<'_>,
    family: Option<Family>,
) -> bool {
    match peers {
        Peers::Any => true,
        Peers::Of(peers) => peers.iter().any(|p| peer_matches(p, namespace, peer, family)),
    }
}

fn peer_matches(wanted: &Peer, own_namespace: &Arc<str>, peer: &Party<'_>, family: Option<Family>) -> bool {
    match (wanted, &peer.kind) {
        // The address as the packet carries it, whoever holds it: pods and nodes, too.
        (Peer::Block(block), _) => peer.address(family).is_some_and(|address| block.contains(address)),
        (Peer::Pods { namespaces, pods }, Kind::Pod { pod, namespace_labels, .. }) => {
            let namespace_matches = match namespaces {
                NamespaceScope::Own => pod.name.namespace == *own_namespace,
                NamespaceScope::Selected(selector) => selector.matches(namespace_labels),
            };
            namespace_matches && pods.matches(&pod.labels) && peer.selectable(family)
        }
        // Selectors find pods, not nodes, and hostNetwork pods are their node.
        (Peer::Pods { .. }, Kind::Node { .. } | Kind::Outside) => false,
    }
}

/// Where a port is looked up.
#[derive(Clone, Copy)]
pub(super) struct Target<'p, 'a> {
    /// Whose port it is, on both sides.
    pub destination: &'p Party<'a>,
    /// Whose rule it is.
    pub direction: Direction,
    /// The family.
    pub family: Option<Family>,
}

/// Whether `ports` of a rule matches.
pub(super) fn ports_match(ports: &Ports, traffic: Traffic, target: Target<'_, '_>) -> bool {
    match (ports, traffic) {
        (Ports::Any, _) => true,
        (Ports::Of(_), Traffic::Other(_)) => false,
        (Ports::Of(entries), Traffic::Port(protocol, port)) => {
            entries.iter().filter(|e| e.protocol == protocol).any(|e| match &e.port {
                PortRef::All => true,
                PortRef::Range(first, last) => (*first..=*last).contains(&port),
                PortRef::Named(name) => container_port(target, |p| {
                    p.protocol == protocol && p.port == port && p.name.as_ref() == Some(name)
                }),
            })
        }
    }
}

/// Whether the destination is a pod with such a container port. From its own ingress side a pod knows itself; from
/// the other side it is found by its address, which must then be its alone.
fn container_port(target: Target<'_, '_>, wanted: impl Fn(&crate::ContainerPort) -> bool) -> bool {
    match &target.destination.kind {
        Kind::Pod { pod, .. } => {
            (target.direction == Direction::Ingress || target.destination.selectable(target.family))
                && pod.ports.iter().any(wanted)
        }
        Kind::Node { .. } | Kind::Outside => false,
    }
}
