//! Where everything goes: the lab's nodes, and which pod is on which. Pure.
//!
//! ```text
//!   fabric 192.168.244.0/24, fd10:244:ffff::/64          (one bridge)
//!     ├── node-1  .1   10.244.1.0/24, fd10:244:0:1::/64   pods …
//!     ├── node-2  .2   10.244.2.0/24, fd10:244:0:2::/64   pods …
//!     └── world        the addresses of world.txt
//! ```

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use moat_policies::{Endpoint, Family, NamespacedName, Node, Object, Pod, Protocol};

use crate::cells::Host;
use crate::world::WorldHost;

/// More nodes than this do not fit into the lab's address plan.
pub const MAX_NODES: usize = 250;

/// Which address families the lab's own nodes have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Families {
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
    /// Both.
    Dual,
}

impl Families {
    /// Whether a family is among them.
    pub fn has(self, family: Family) -> bool {
        match self {
            Families::V4 => family == Family::V4,
            Families::V6 => family == Family::V6,
            Families::Dual => true,
        }
    }
}

/// How the nodes are joined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Joined {
    /// All on one link, with the outside hosts.
    #[default]
    Link,
    /// Each on a link of its own with a router, which knows the nodes and the outside hosts, but no pod.
    Router,
    /// The same, and the router drops what comes with a source that it would not send back that way.
    StrictRouter,
}

impl std::fmt::Display for Joined {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Joined::Link => "one link",
            Joined::Router => "a router",
            Joined::StrictRouter => "a router that filters sources",
        })
    }
}

/// Why there is no lab for these manifests.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// No pods.
    #[error("the manifests hold no pods, and no workload that stands for one")]
    NoPods,
    /// More nodes than addresses.
    #[error("{0} nodes are too many: the lab has addresses for {MAX_NODES}")]
    TooManyNodes(usize),
    /// A Node object that the lab cannot build.
    #[error(
        "Node {node} has no {what} for {family}; the lab builds its nodes from the Node objects of the manifests where there are any, and each needs both"
    )]
    IncompleteNode {
        /// Its name.
        node: Arc<str>,
        /// `spec.podCIDRs` or `status.addresses`.
        what: &'static str,
        /// The family that another field has.
        family: Family,
    },
    /// A Node object with no addresses at all.
    #[error(
        "Node {0} has neither spec.podCIDRs nor an InternalIP; the lab builds its nodes from the Node objects of the manifests where there are any"
    )]
    EmptyNode(Arc<str>),
    /// A pod on a node that is no Node object.
    #[error("pod {pod} is on node {node}, but there is no such Node object among the manifests' {known}")]
    UnknownNode {
        /// The pod.
        pod: NamespacedName,
        /// Its `spec.nodeName`.
        node: Arc<str>,
        /// The nodes there are.
        known: String,
    },
}

/// The lab's nodes: the Node objects where there are any, else nodes of the lab's own making: those that pods name in
/// `spec.nodeName`, and `node-1`, `node-2`, … until there are `count`.
pub fn nodes(
    objects: &[Object],
    count: usize,
    families: Families,
) -> Result<(Vec<Node>, Origin), TopologyError> {
    let given: BTreeMap<_, _> = objects
        .iter()
        .filter_map(|o| if let Object::Node(n) = o { Some((n.name.clone(), n)) } else { None })
        .collect();
    if !given.is_empty() {
        let nodes = given.into_values().cloned().collect::<Vec<_>>();
        nodes.iter().try_for_each(complete)?;
        return Ok((nodes, Origin::Manifests));
    }
    let mut names: Vec<Arc<str>> = pods(objects).filter_map(|p| p.node.clone()).collect();
    names.sort();
    names.dedup();
    let mut next = 1;
    while names.len() < count.max(1) {
        let name: Arc<str> = format!("node-{next}").into();
        if !names.contains(&name) {
            names.push(name);
        }
        next += 1;
    }
    names.sort_by(|a, b| natural(a).cmp(&natural(b)));
    if names.len() > MAX_NODES {
        return Err(TopologyError::TooManyNodes(names.len()));
    }
    let nodes = (1u8..).zip(names).map(|(number, name)| own_node(number, name, families)).collect();
    Ok((nodes, Origin::Lab))
}

/// Who says what the nodes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The Node objects of the manifests.
    Manifests,
    /// The lab.
    Lab,
}

/// `node-10` after `node-9`.
fn natural(name: &str) -> (&str, u64) {
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    (stem, name[stem.len()..].parse().unwrap_or(0))
}

fn own_node(number: u8, name: Arc<str>, families: Families) -> Node {
    let n = u16::from(number);
    let v4 = (
        IpAddr::V4(Ipv4Addr::new(192, 168, 244, number)),
        IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 244, number, 0), 24)),
    );
    let v6 = (
        IpAddr::V6(Ipv6Addr::new(0xfd10, 0x244, 0xffff, 0, 0, 0, 0, n)),
        IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfd10, 0x244, 0, n, 0, 0, 0, 0), 64)),
    );
    let all = [(Family::V4, v4), (Family::V6, v6)];
    let (addresses, pod_cidrs) =
        all.into_iter().filter(|(f, _)| families.has(*f)).map(|(_, both)| both).unzip();
    Node { name, addresses, pod_cidrs }
}

fn complete(node: &Node) -> Result<(), TopologyError> {
    if node.addresses.is_empty() && node.pod_cidrs.is_empty() {
        return Err(TopologyError::EmptyNode(node.name.clone()));
    }
    for family in Family::ALL {
        let address = node.addresses.iter().any(|a| Family::of(a) == family);
        let cidr = node.pod_cidrs.iter().any(|c| Family::of(&c.addr()) == family);
        let what = match (address, cidr) {
            (true, false) => "spec.podCIDRs",
            (false, true) => "status.addresses of type InternalIP",
            _ => continue,
        };
        return Err(TopologyError::IncompleteNode { node: node.name.clone(), what, family });
    }
    Ok(())
}

/// A pod in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The pod, `node` filled in.
    pub pod: Pod,
    /// The node it is on.
    pub node: Arc<str>,
}

/// Puts pods on nodes: `spec.nodeName`, else where the pod is already, else the node that is next in turn.
pub fn place(
    objects: &[Object],
    nodes: &[Node],
    already: &BTreeMap<NamespacedName, Arc<str>>,
) -> Result<Vec<Placed>, TopologyError> {
    let sorted: BTreeMap<_, _> = pods(objects).map(|p| (p.name.clone(), p)).collect();
    if sorted.is_empty() {
        return Err(TopologyError::NoPods);
    }
    let mut turn = already.len();
    sorted
        .into_values()
        .map(|pod| {
            let node = match (&pod.node, already.get(&pod.name)) {
                (Some(named), _) => nodes
                    .iter()
                    .find(|n| n.name == *named)
                    .map(|n| n.name.clone())
                    .ok_or_else(|| unknown_node(pod, named, nodes))?,
                (None, Some(there)) => there.clone(),
                (None, None) => {
                    let node = nodes[turn % nodes.len()].name.clone();
                    turn += 1;
                    node
                }
            };
            Ok(Placed { pod: Pod { node: Some(node.clone()), ..pod.clone() }, node })
        })
        .collect()
}

fn unknown_node(pod: &Pod, node: &Arc<str>, nodes: &[Node]) -> TopologyError {
    let known = nodes.iter().map(|n| &*n.name).collect::<Vec<_>>().join(", ");
    TopologyError::UnknownNode { pod: pod.name.clone(), node: node.clone(), known }
}

fn pods(objects: &[Object]) -> impl Iterator<Item = &Pod> {
    objects.iter().filter_map(|o| match o {
        Object::Pod(pod) if !pod.finished => Some(pod),
        _ => None,
    })
}

/// The address of each family that stands for a node.
pub fn node_addresses(node: &Node) -> Vec<IpAddr> {
    Family::ALL
        .into_iter()
        .filter_map(|f| node.addresses.iter().copied().find(|a| Family::of(a) == f))
        .collect()
}

/// Everybody who sends and answers: the pods with their addresses, then the outside hosts of a family that the lab has.
pub fn hosts(
    placed: &[Placed],
    nodes: &[Node],
    world: &[WorldHost],
    addresses: &BTreeMap<NamespacedName, Vec<IpAddr>>,
) -> Vec<Host> {
    let pods = placed.iter().map(|p| {
        let addresses = if p.pod.host_network {
            nodes.iter().find(|n| n.name == p.node).map(node_addresses).unwrap_or_default()
        } else {
            addresses.get(&p.pod.name).cloned().unwrap_or_default()
        };
        let ports = p.pod.ports.iter().filter(|c| c.protocol != Protocol::Sctp);
        Host {
            endpoint: Endpoint::Pod(p.pod.name.clone()),
            node: Some(p.node.clone()),
            addresses,
            ports: ports.map(|c| (c.protocol, c.port)).collect(),
        }
    });
    let outside = reachable_world(world, nodes).map(|w| Host {
        endpoint: Endpoint::Address(w.address),
        node: None,
        addresses: vec![w.address],
        ports: w.ports.clone(),
    });
    pods.chain(outside).collect()
}

/// The outside hosts of a family that the nodes have.
pub fn reachable_world<'a>(world: &'a [WorldHost], nodes: &'a [Node]) -> impl Iterator<Item = &'a WorldHost> {
    world
        .iter()
        .filter(|w| nodes.iter().flat_map(|n| &n.addresses).any(|a| Family::of(a) == Family::of(&w.address)))
}

/// Addresses such as the pods would get, for predictions without a running lab: the first free ones of each node's podCIDRs.
pub fn made_up_addresses(placed: &[Placed], nodes: &[Node]) -> BTreeMap<NamespacedName, Vec<IpAddr>> {
    let mut next: BTreeMap<&Arc<str>, u32> = BTreeMap::new();
    let mut addresses = BTreeMap::new();
    for p in placed.iter().filter(|p| !p.pod.host_network) {
        let Some(node) = nodes.iter().find(|n| n.name == p.node) else { continue };
        let number = next.entry(&node.name).or_insert(2);
        let of = |cidr: &IpNet| match cidr {
            IpNet::V4(net) => IpAddr::V4(Ipv4Addr::from_bits(net.network().to_bits() + *number)),
            IpNet::V6(net) => IpAddr::V6(Ipv6Addr::from_bits(net.network().to_bits() + u128::from(*number))),
        };
        let own = Family::ALL
            .into_iter()
            .filter_map(|f| node.pod_cidrs.iter().find(|c| Family::of(&c.addr()) == f))
            .map(of)
            .collect();
        addresses.insert(p.pod.name.clone(), own);
        *number += 1;
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, node: Option<&str>) -> Object {
        Object::Pod(Pod {
            name: NamespacedName::new("shop", name),
            labels: Default::default(),
            node: node.map(Arc::from),
            addresses: vec![],
            ports: vec![],
            host_network: false,
            finished: false,
            uid: None,
        })
    }

    fn node(name: &str, addresses: &[&str], cidrs: &[&str]) -> Object {
        Object::Node(Node {
            name: name.into(),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            pod_cidrs: cidrs.iter().map(|c| c.parse().unwrap()).collect(),
        })
    }

    fn names(nodes: &[Node]) -> Vec<&str> {
        nodes.iter().map(|n| &*n.name).collect()
    }

    #[test]
    fn the_lab_makes_nodes_where_there_are_none() {
        let (made, origin) = nodes(&[pod("a", None), pod("b", Some("gpu"))], 3, Families::Dual).unwrap();
        assert_eq!((names(&made), origin), (vec!["gpu", "node-1", "node-2"], Origin::Lab));
        assert_eq!(made[1].addresses.len(), 2);
        assert_eq!(made[1].pod_cidrs[0].to_string(), "10.244.2.0/24");
        let (made, _) = nodes(&[pod("a", None)], 2, Families::V6).unwrap();
        assert!(made.iter().all(|n| n.addresses.iter().all(IpAddr::is_ipv6)));
    }

    #[test]
    fn node_objects_are_the_nodes() {
        let objects = [pod("a", None), node("x", &["10.9.0.1"], &["10.8.0.0/24"])];
        let (given, origin) = nodes(&objects, 5, Families::V4).unwrap();
        assert_eq!((names(&given), origin), (vec!["x"], Origin::Manifests));
        let half = [node("x", &["10.9.0.1", "fd00::1"], &["10.8.0.0/24"])];
        let error = nodes(&half, 1, Families::V4).unwrap_err().to_string();
        assert!(error.starts_with("Node x has no spec.podCIDRs for IPv6"), "{error}");
    }

    #[test]
    fn pods_are_placed_by_name_else_in_turn_and_stay() {
        let objects = [pod("a", None), pod("b", None), pod("c", Some("node-1")), pod("d", None)];
        let (made, _) = nodes(&objects, 2, Families::V4).unwrap();
        let placed = place(&objects, &made, &BTreeMap::new()).unwrap();
        let on = |placed: &[Placed]| placed.iter().map(|p| p.node.to_string()).collect::<Vec<_>>();
        assert_eq!(on(&placed), ["node-1", "node-2", "node-1", "node-1"]);
        let already = placed.iter().skip(1).map(|p| (p.pod.name.clone(), p.node.clone())).collect();
        assert_eq!(on(&place(&objects, &made, &already).unwrap()), ["node-2", "node-2", "node-1", "node-1"]);
        let lost = [pod("a", Some("nowhere"))];
        assert!(matches!(place(&lost, &made, &already), Err(TopologyError::UnknownNode { .. })));
        assert_eq!(place(&[], &made, &already), Err(TopologyError::NoPods));
    }
}
