//! The worlds that take turns: two nodes on a link, two pods on the first and one on the second.

use std::fmt;
use std::net::IpAddr;

use crate::real::{self, RealNode};
use crate::reference::Reference;
use crate::world::{Namespace, Pod, addresses};

/// Who carries the packets of a world's pods, and what else is done to them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The reference plugin of this name, routes between its nodes, and connection tracking.
    Reference(&'static str),
    /// The same as [`PTP`] in everything: what its ratio is away from 1 is chance.
    Control,
    /// The agent in this mode, with these of its tables left.
    Moat(&'static str, Tables),
}

/// What of moat's tables is left.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tables {
    /// None: connections are tracked, as in the worlds of the reference.
    Track,
    /// Those of anti-spoofing.
    Guard,
    /// All, policy isolates every pod both ways, and the agent runs.
    All,
}

pub(crate) const PTP: Kind = Kind::Reference("ptp");
pub(crate) const ROUTED: Kind = Kind::Moat("routed", Tables::Track);

impl Kind {
    pub(crate) const ALL: [Kind; 8] = [
        PTP,
        Kind::Control,
        Kind::Reference("bridge"),
        ROUTED,
        Kind::Moat("routed", Tables::Guard),
        Kind::Moat("routed", Tables::All),
        Kind::Moat("vxlan", Tables::Track),
        Kind::Moat("vxlan", Tables::All),
    ];

    pub(crate) fn is_reference(&self) -> bool {
        matches!(self, Kind::Reference(_) | Kind::Control)
    }

    pub(crate) fn is_tunnel(&self) -> bool {
        matches!(self, Kind::Moat("vxlan", _))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Kind::Reference(plugin) => format!("{plugin}, conntrack only"),
            Kind::Control => "ptp, once more".to_owned(),
            Kind::Moat(mode, Tables::Track) => format!("moat {mode}, conntrack only"),
            Kind::Moat(mode, Tables::Guard) => format!("moat {mode}, and anti-spoofing"),
            Kind::Moat(mode, Tables::All) => format!("moat {mode}, all, and policy"),
        };
        f.pad(&text)
    }
}

/// What a node is.
struct Node {
    name: &'static str,
    addresses: [&'static str; 2],
    pod_cidrs: [&'static str; 2],
}

const NODES: [Node; 2] = [
    Node { name: "a", addresses: ["192.0.2.1", "2001:db8::1"], pod_cidrs: ["10.1.0.0/24", "fd00:1::/64"] },
    Node { name: "b", addresses: ["192.0.2.2", "2001:db8::2"], pod_cidrs: ["10.2.0.0/24", "fd00:2::/64"] },
];

/// The pods, each with the number of its node.
const PODS: [(&str, usize); 3] = [("client", 0), ("neighbour", 0), ("remote", 1)];

/// Every pod may reach those that have a name, and be reached by them.
const POLICY: &str = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: among-us}\n\
    spec:\n  podSelector: {}\n  policyTypes: [Ingress, Egress]\n\
    \x20 ingress: [{from: [{podSelector: {matchExpressions: [{key: app, operator: Exists}]}}]}]\n\
    \x20 egress: [{to: [{podSelector: {matchExpressions: [{key: app, operator: Exists}]}}]}]\n";

/// Tracks connections and sees no packet.
const TRACK: &str = "nft 'add table inet track; add chain inet track unused; \
    add rule inet track unused ct state new accept'";

/// Two nodes, and the pods on them.
pub(crate) struct World {
    pub(crate) kind: Kind,
    pub(crate) pods: [Pod; 3],
    nodes: Nodes,
}

enum Nodes {
    Reference([Reference; 2]),
    Moat([RealNode; 2]),
}

impl World {
    pub(crate) fn new(kind: Kind) -> Self {
        let spaces = linked();
        let (nodes, pods) = match kind {
            Kind::Reference(plugin) => reference(plugin, spaces),
            Kind::Control => reference("ptp", spaces),
            Kind::Moat(mode, tables) => moat(mode, tables, spaces),
        };
        let world = Self { kind, pods, nodes };
        world.has_equal_links();
        world
    }

    /// The nodes' namespaces.
    pub(crate) fn spaces(&self) -> [&Namespace; 2] {
        match &self.nodes {
            Nodes::Reference(nodes) => nodes.each_ref().map(|node| &node.node),
            Nodes::Moat(nodes) => nodes.each_ref().map(|node| &node.ns),
        }
    }

    /// No world's links leave more to the last moment, or check more sources, than another's.
    fn has_equal_links(&self) {
        let offloads = |space: &Namespace, link: &str| {
            // Segments, checksums: where one world's links make them, all do.
            let all = space.sh(&format!(
                "ethtool -k {link} | grep -E '^(rx|tx)-checksumming|^(tcp-segmentation|generic)'"
            ));
            let on = all.lines().filter(|line| line.contains(": on")).count();
            assert_eq!(on, 4, "{}: {link}: {all}", self.kind);
        };
        for pod in &self.pods {
            offloads(&pod.ns, "eth0");
        }
        for space in self.spaces() {
            offloads(space, "uplink");
            let strict = space.sh("cat /proc/sys/net/ipv4/conf/*/rp_filter | grep -v 0 || true");
            assert!(strict.is_empty(), "{}: some link checks sources: {strict}", self.kind);
        }
    }
}

/// The namespaces of two nodes with a link between them.
fn linked() -> [Namespace; 2] {
    let [a, b] = [Namespace::new(), Namespace::new()];
    let other = b.path.display();
    a.sh(&format!("exec 9<{other}; ip link add uplink type veth peer name uplink netns /proc/self/fd/9"));
    for (space, node) in [&a, &b].into_iter().zip(&NODES) {
        let [v4, v6] = node.addresses;
        space.sh(&format!(
            "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $f; done
             ip link set lo up; ip link set uplink up; ip addr add {v4}/24 dev uplink; ip addr add {v6}/64 dev uplink nodad"
        ));
    }
    [a, b]
}

fn reference(plugin: &'static str, spaces: [Namespace; 2]) -> (Nodes, [Pod; 3]) {
    let [a, b] = spaces;
    for (space, other) in [(&a, &NODES[1]), (&b, &NODES[0])] {
        let ([v4, v6], [cidr4, cidr6]) = (other.addresses, other.pod_cidrs);
        space.sh(&format!("ip route add {cidr4} via {v4}; ip -6 route add {cidr6} via {v6}; {TRACK}"));
    }
    let nodes = [(a, &NODES[0]), (b, &NODES[1])].map(|(ns, node)| Reference::at(ns, plugin, &node.pod_cidrs));
    let pods = PODS.map(|(id, node)| {
        let ns = Namespace::new();
        let result = nodes[node].run("ADD", id, &ns.path);
        Pod { ns, id: id.to_owned(), addresses: addresses(&result), result }
    });
    (Nodes::Reference(nodes), pods)
}

fn moat(mode: &'static str, tables: Tables, spaces: [Namespace; 2]) -> (Nodes, [Pod; 3]) {
    let manifests: String =
        NODES.iter().map(|node| real::node(node.name, node.addresses, &node.pod_cidrs)).collect();
    // Where a pod is must be known before it starts, its addresses only then.
    let expected = PODS.map(|(id, node)| describe(id, NODES[node].name, &[])).concat() + POLICY;
    let [a, b] = spaces;
    let mut nodes = [(a, &NODES[0]), (b, &NODES[1])].map(|(ns, node)| {
        let mut real = RealNode::at(ns, node.name, &manifests, &expected);
        real.arguments = vec!["--mode", mode];
        real.start();
        real
    });
    let pods = PODS.map(|(id, node)| nodes[node].plugin().pod(id));
    let there =
        PODS.iter().zip(&pods).map(|((id, node), pod)| describe(id, NODES[*node].name, &pod.addresses));
    let there = there.collect::<String>() + POLICY;
    for node in &nodes {
        node.write("rest.yaml", &there);
    }
    for (node, real) in nodes.iter_mut().enumerate() {
        let local = PODS.iter().filter(|(_, on)| *on == node).count();
        // A program for each pod, each way.
        real.until("policy is in force", |real| programs(&real.ns) >= local);
        let gone = match tables {
            Tables::All => continue,
            Tables::Guard => &["inet moat", "inet moat-net"][..],
            Tables::Track => &["inet moat", "inet moat-net", "netdev moat"],
        };
        real.kill();
        for table in gone {
            real.ns.sh(&format!("nft delete table {table}"));
        }
        real.ns.sh(TRACK);
    }
    (Nodes::Moat(nodes), pods)
}

/// How many pods' packets are led to a program.
fn programs(node: &Namespace) -> usize {
    node.sh("nft list map inet moat to_pod").matches("goto ingress-").count()
}

/// The manifest of a pod.
fn describe(id: &str, node: &str, addresses: &[IpAddr]) -> String {
    let ips: Vec<String> = addresses.iter().map(|address| format!("{{ip: '{address}'}}")).collect();
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {id}, labels: {{app: {id}}}}}\n\
         spec: {{nodeName: {node}, containers: [{{name: c, image: i}}]}}\n\
         status: {{phase: Running, podIPs: [{}]}}\n",
        ips.join(", ")
    )
}
