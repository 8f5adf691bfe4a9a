//! What a cluster is to be: names, addresses, folders. Pure; everything else follows it.
//!
//! ```text
//!   host ── 127.0.0.1:PORT ──(the keeper's proxy)──┐
//!                                                  ▼
//!        fabric's namespace:  etcd  kube-apiserver  …  192.168.240.1 on a bridge
//!                                                        │        │        │
//!        a namespace each:                             node1    node2    node3    192.168.240.11, .12, .13
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What pods get their network from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum PodNetwork {
    /// moat, deployed as on any cluster
    Moat,
    /// The reference plugins ptp and host-local, and static routes: no policy is enforced
    Reference,
}

/// How kube-proxy writes its rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ProxyMode {
    /// nftables
    Nftables,
    /// iptables
    Iptables,
}

/// A cluster, before there is one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The cluster's name.
    pub(crate) name: String,
    /// How many nodes.
    pub(crate) nodes: u8,
    /// The folder of everything that it writes.
    pub(crate) state: PathBuf,
    /// The folder of Kubernetes' programs.
    pub(crate) kubernetes: PathBuf,
    /// The archives of all images that pods are made of.
    pub(crate) images: Vec<PathBuf>,
    /// The folder that moat is deployed from; `None` where the pod network is the reference plugins'.
    pub(crate) moat: Option<PathBuf>,
    pub(crate) proxy: ProxyMode,
    /// Whether nodes, pods and Services have IPv6 addresses as well.
    pub(crate) dual_stack: bool,
}

/// The most nodes: as many as there are addresses on the fabric, and more than a machine can bear.
pub(crate) const MOST_NODES: u8 = 50;
/// The control plane's address on the fabric.
pub(crate) const CONTROL_PLANE: Ipv4Addr = Ipv4Addr::new(192, 168, 240, 1);
/// The same in IPv6.
const CONTROL_PLANE_V6: Ipv6Addr = Ipv6Addr::new(0xfd10, 0x240, 0, 0, 0, 0, 0, 1);
/// The API server's port, on the fabric.
pub(crate) const API_PORT: u16 = 6443;
/// All pods' addresses. The nodes get a /24 and a /64 of it each, from the controller manager.
const POD_CIDRS: [&str; 2] = ["10.244.0.0/16", "fd10:244::/56"];
/// All Services' addresses.
const SERVICE_CIDRS: [&str; 2] = ["10.96.0.0/16", "fd10:96::/112"];
/// The first Service address, which is the API server's.
pub(crate) const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// The Service address of DNS.
pub(crate) const DNS_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

/// One node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) name: String,
    /// Of each family one, IPv4 first.
    pub(crate) addresses: Vec<IpAddr>,
    /// The node's own folder, outside and inside of its namespaces.
    pub(crate) folder: PathBuf,
    /// Its control group, below every controller's root.
    pub(crate) cgroup: String,
}

impl Plan {
    /// The nodes.
    pub(crate) fn nodes(&self) -> Vec<Node> {
        let node = |number: u8| {
            let name = format!("node{number}");
            let folder = self.state.join("nodes").join(&name);
            let cgroup = format!("{}/{name}", self.cgroup());
            let addresses = [
                IpAddr::from(Ipv4Addr::new(192, 168, 240, 10 + number)),
                IpAddr::from(Ipv6Addr::new(0xfd10, 0x240, 0, 0, 0, 0, 0, 0x10 + u16::from(number))),
            ];
            Node { name, addresses: addresses[..self.families()].to_vec(), folder, cgroup }
        };
        (1..=self.nodes).map(node).collect()
    }

    fn families(&self) -> usize {
        if self.dual_stack { 2 } else { 1 }
    }

    /// The control plane's addresses on the fabric.
    pub(crate) fn control_plane(&self) -> Vec<IpAddr> {
        [CONTROL_PLANE.into(), CONTROL_PLANE_V6.into()][..self.families()].to_vec()
    }

    /// All pods' addresses, as Kubernetes' programs take them.
    pub(crate) fn pod_cidrs(&self) -> String {
        POD_CIDRS[..self.families()].join(",")
    }

    /// All Services' addresses, as Kubernetes' programs take them.
    pub(crate) fn service_cidrs(&self) -> String {
        SERVICE_CIDRS[..self.families()].join(",")
    }

    /// The control group of all nodes.
    pub(crate) fn cgroup(&self) -> String {
        cgroup(&self.name)
    }

    /// A program of Kubernetes.
    pub(crate) fn kubernetes(&self, program: &str) -> PathBuf {
        self.kubernetes.join(program)
    }

    /// A certificate or a key.
    pub(crate) fn pki(&self, file: &str) -> PathBuf {
        self.state.join("pki").join(file)
    }

    /// The kubeconfig of somebody who speaks to the API server on the fabric.
    pub(crate) fn inner_kubeconfig(&self, who: &str) -> PathBuf {
        self.state.join("pki").join(format!("{who}.kubeconfig"))
    }

    /// The administrator's kubeconfig, for the host.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.state.join("kubeconfig")
    }

    /// The folder of logs of everything that runs beside the nodes.
    pub(crate) fn logs(&self) -> PathBuf {
        self.state.join("logs")
    }
}

impl Node {
    /// The node's logs.
    pub(crate) fn logs(&self) -> PathBuf {
        self.folder.join("logs")
    }

    /// A file of its configuration.
    pub(crate) fn config(&self, file: &str) -> PathBuf {
        self.folder.join("config").join(file)
    }

    /// What is the node's own /etc/cni/net.d.
    pub(crate) fn cni(&self) -> PathBuf {
        self.folder.join("cni")
    }

    /// The host's end of its cable, on the fabric.
    pub(crate) fn port(&self) -> &str {
        &self.name
    }
}

/// The prefix length of the fabric, in the family of an address.
pub(crate) fn fabric_bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 24 } else { 64 }
}

/// The control group of all nodes of the cluster of that name.
pub(crate) fn cgroup(cluster: &str) -> String {
    format!("/moat-cluster-{cluster}")
}

/// Whether it can be a cluster's name: it becomes the name of a folder and of control groups.
pub(crate) fn good_name(name: &str) -> bool {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !name.is_empty() && name.len() <= 24 && name.chars().all(good)
}

/// Paths as text; ours are made of checked names below a folder that is checked when it is chosen.
pub(crate) fn text(path: impl AsRef<Path>) -> String {
    path.as_ref().display().to_string()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn plan(nodes: u8) -> Plan {
        Plan {
            name: "test".into(),
            nodes,
            state: "/state".into(),
            kubernetes: "/kubernetes".into(),
            images: Vec::new(),
            moat: None,
            proxy: ProxyMode::Nftables,
            dual_stack: false,
        }
    }

    #[test]
    fn no_two_nodes_share_anything() {
        let nodes = Plan { dual_stack: true, ..plan(MOST_NODES) }.nodes();
        for (number, one) in nodes.iter().enumerate() {
            assert!(!one.addresses.contains(&CONTROL_PLANE.into()));
            for other in &nodes[number + 1..] {
                assert!(one.name != other.name && one.addresses.iter().all(|a| !other.addresses.contains(a)));
                assert!(one.folder != other.folder && one.cgroup != other.cgroup);
            }
        }
    }

    #[test]
    fn names() {
        assert!(good_name("moat") && good_name("a-1"));
        assert!(!good_name("") && !good_name("A") && !good_name("a/b") && !good_name(".."));
    }
}
