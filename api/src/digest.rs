//! Sums over what a node holds, the same in every process: what has the same sum need not be sent.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use moat_policies::{Element, NamespacedName, Node};

use crate::ToldPod;

/// Names content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 16]);

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Digest {
    /// The sum over an allow set's elements, which are sorted. What the set selects is in its id.
    pub fn of_elements(elements: &[Element]) -> Self {
        let mut sum = Sum::new("elements");
        for Element { address, port } in elements {
            sum.address(*address);
            match port {
                None => sum.number(0),
                Some((protocol, port)) => {
                    sum.number(1 + u64::from(protocol.number()));
                    sum.number((*port).into());
                }
            }
        }
        sum.finish()
    }

    /// The sum over a node's pods.
    pub fn of_pods(pods: &BTreeMap<NamespacedName, ToldPod>) -> Self {
        let mut sum = Sum::new("pods");
        for (name, pod) in pods {
            sum.text(&name.namespace);
            sum.text(&name.name);
            sum.text(pod.uid.as_deref().unwrap_or_default());
            for program in [pod.programs.ingress, pod.programs.egress] {
                sum.bytes(program.as_ref().map_or(&[], |id| &id.0));
            }
        }
        sum.finish()
    }

    /// The sum over the cluster's nodes.
    pub fn of_nodes(nodes: &BTreeMap<Arc<str>, Node>) -> Self {
        let mut sum = Sum::new("nodes");
        for node in nodes.values() {
            sum.text(&node.name);
            sum.number(node.addresses.len() as u64);
            node.addresses.iter().for_each(|address| sum.address(*address));
            sum.number(node.pod_cidrs.len() as u64);
            for cidr in &node.pod_cidrs {
                sum.address(cidr.addr());
                sum.number(cidr.prefix_len().into());
            }
        }
        sum.finish()
    }
}

/// A hash over typed parts, each with its length, so that no two sequences of them run into each other.
struct Sum(blake3::Hasher);

impl Sum {
    fn new(what: &str) -> Self {
        let mut sum = Self(blake3::Hasher::new());
        sum.text(what);
        sum
    }

    fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn address(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.bytes(&address.octets()),
            IpAddr::V6(address) => self.bytes(&address.octets()),
        }
    }

    fn finish(self) -> Digest {
        let mut digest = [0; 16];
        digest.copy_from_slice(&self.0.finalize().as_bytes()[..16]);
        Digest(digest)
    }
}
