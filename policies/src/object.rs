//! What a source hands to the engine: the parts of Kubernetes objects that decide a verdict.
//!
//! A value of these types is valid by construction as far as a type can say it; what needs the object's
//! text to be explained (field paths, reasons) is refused earlier, where the text is read.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::{Block, Labels, NamespacedName, NetworkConfig, Selector};

/// A Namespace. The engine adds the label `kubernetes.io/metadata.name` itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `metadata.labels`.
    pub labels: Labels,
}

/// A Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `status.addresses` of type InternalIP (and ExternalIP), in their order.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
}

/// A Pod, or one of the pods that a workload's template stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// `metadata.namespace` and `metadata.name`.
    pub name: NamespacedName,
    /// `metadata.labels`.
    pub labels: Labels,
    /// `spec.nodeName`; a pod without one is on a node of its own.
    pub node: Option<Arc<str>>,
    /// `status.podIPs`: at most one address of each family. Empty: not known yet.
    pub addresses: Vec<IpAddr>,
    /// `ports` of the containers, and of the init containers that keep running.
    pub ports: Vec<ContainerPort>,
    /// `spec.hostNetwork`: the pod is its node; no policy applies to it and no selector finds it.
    pub host_network: bool,
    /// `status.phase` is Succeeded or Failed: no peer, no subject, no row anywhere.
    pub finished: bool,
    /// `metadata.uid`: tells a pod from an earlier one of its name. Decides no verdict.
    pub uid: Option<Arc<str>>,
}

/// One entry of a container's `ports`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerPort {
    /// `name`.
    pub name: Option<Arc<str>>,
    /// `protocol`, TCP where it is missing.
    pub protocol: Protocol,
    /// `containerPort`.
    pub port: u16,
}

/// A NetworkPolicy of networking.k8s.io/v1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// `metadata.namespace` and `metadata.name`.
    pub name: NamespacedName,
    /// `spec.podSelector`: which pods of the namespace it selects.
    pub subject: Selector,
    /// The rules of `spec.ingress` where Ingress is in `policyTypes`; `None` where it is not.
    pub ingress: Option<Vec<Rule>>,
    /// The rules of `spec.egress` where Egress is in `policyTypes`; `None` where it is not.
    pub egress: Option<Vec<Rule>>,
}

impl NetworkPolicy {
    /// The rules of one direction; `None` where the policy does not isolate in it.
    pub fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

/// One entry of `ingress` or `egress`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// `from` or `to`.
    pub peers: Peers,
    /// `ports`.
    pub ports: Ports,
}

/// Who a rule lets talk.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Peers {
    /// `from`/`to` missing or empty: everybody, also outside the cluster.
    Any,
    /// Any one of these.
    Of(Vec<Peer>),
}

/// One entry of `from` or `to`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// `podSelector` and/or `namespaceSelector`; a missing `podSelector` is the empty selector.
    Pods {
        /// Which namespaces.
        namespaces: NamespaceScope,
        /// Which pods of them.
        pods: Selector,
    },
    /// `ipBlock`.
    Block(Block),
}

/// Which namespaces a peer's pods are in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NamespaceScope {
    /// No `namespaceSelector`: the policy's own.
    Own,
    /// `namespaceSelector`.
    Selected(Selector),
}

/// Which ports a rule lets be talked to, on the destination.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Ports {
    /// `ports` missing or empty: every port of every protocol, and protocols without ports.
    Any,
    /// Any one of these.
    Of(Vec<PortMatch>),
}

/// One entry of `ports`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PortMatch {
    /// `protocol`, TCP where it is missing.
    pub protocol: Protocol,
    /// `port` and `endPort`.
    pub port: PortRef,
}

/// `port` and `endPort` of an entry of `ports`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PortRef {
    /// `port` missing: all ports of the protocol.
    All,
    /// `port` to `endPort`, both included; the same twice where there is no `endPort`.
    Range(u16, u16),
    /// A container port's name, looked up on the destination pod.
    Named(Arc<str>),
}

/// A protocol that has ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

    /// The IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    /// The API's word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A side of a connection, seen from the pod: who may reach it, or whom it may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Connections to the pod.
    Ingress,
    /// Connections from the pod.
    Egress,
}

impl Direction {
    /// Both of them.
    pub const ALL: [Direction; 2] = [Direction::Ingress, Direction::Egress];
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        })
    }
}

/// One object of any kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A Namespace.
    Namespace(Namespace),
    /// A Node.
    Node(Node),
    /// A Pod.
    Pod(Pod),
    /// A NetworkPolicy.
    Policy(NetworkPolicy),
    /// The NetworkConfig.
    Config(NetworkConfig),
}

impl Object {
    /// The object's key.
    pub fn key(&self) -> Key {
        match self {
            Object::Namespace(n) => Key::Namespace(n.name.clone()),
            Object::Node(n) => Key::Node(n.name.clone()),
            Object::Pod(p) => Key::Pod(p.name.clone()),
            Object::Policy(p) => Key::Policy(p.name.clone()),
            Object::Config(_) => Key::Config,
        }
    }
}

/// The kind and name of one object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// A Namespace.
    Namespace(Arc<str>),
    /// A Node.
    Node(Arc<str>),
    /// A Pod.
    Pod(NamespacedName),
    /// A NetworkPolicy.
    Policy(NamespacedName),
    /// The NetworkConfig: there is one.
    Config,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Namespace(n) => write!(f, "Namespace {n}"),
            Key::Node(n) => write!(f, "Node {n}"),
            Key::Pod(n) => write!(f, "Pod {n}"),
            Key::Policy(n) => write!(f, "NetworkPolicy {n}"),
            Key::Config => write!(f, "NetworkConfig {}", NetworkConfig::NAME),
        }
    }
}
