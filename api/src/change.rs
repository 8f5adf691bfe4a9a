//! What changes on a node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use moat_policies::{NamespacedName, NetworkConfig, Node, NodeDelta, PodPrograms};

/// A pod of a node, as its node is told of it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ToldPod {
    /// `metadata.uid`, where the source says it.
    pub uid: Option<Arc<str>>,
    /// What policy says of it.
    pub programs: PodPrograms,
}

/// What changes on one node, from one revision of the cluster to another.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Change {
    /// The node's pods; `None`: gone.
    pub pods: BTreeMap<NamespacedName, Option<ToldPod>>,
    /// There are no pods but those of `pods`.
    pub pods_whole: bool,
    /// Programs and allow sets. The pods in it are those above, without more.
    pub policy: NodeDelta,
    /// The cluster's nodes, this one too; `None`: gone.
    pub nodes: BTreeMap<Arc<str>, Option<Node>>,
    /// There are no nodes but those of `nodes`.
    pub nodes_whole: bool,
    /// Addresses that another pod has now, or none any more.
    pub moved: BTreeSet<IpAddr>,
    /// How the network is to be, where that has changed.
    pub config: Option<NetworkConfig>,
    /// What people call the state that this leads to, where that has changed.
    pub fingerprint: Option<Arc<str>>,
}

impl Change {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        let Self { pods, pods_whole, policy, nodes, nodes_whole, moved, config, fingerprint } = self;
        let listed = pods.is_empty() && policy.is_empty() && nodes.is_empty() && moved.is_empty();
        listed && !pods_whole && !nodes_whole && config.is_none() && fingerprint.is_none()
    }

    /// Says of a pod that it is there, or gone.
    pub fn put_pod(&mut self, name: NamespacedName, pod: Option<ToldPod>) {
        self.policy.pods.insert(name.clone(), pod.as_ref().map(|pod| pod.programs));
        self.pods.insert(name, pod);
    }
}
