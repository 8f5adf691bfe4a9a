//! What this node wants of its data plane: from readings and attachments to updates. Pure.
//!
//! The pods of this node have the addresses that the pod network gave them, whatever a manifest says: the agent
//! knows them before anybody else, and knows at once when they are gone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use moat_api::{Change, ToldPod};
use moat_manifests::{Changes, PodStatus};
use moat_policies::{
    Cluster, Evaluator, Key, Labels, Limits, NamespacedName, Node, NodeDelta, Object, Objects, Pod,
};

use crate::dataplane::{HostPorts, Inside, LocalPod, Senders, Update};
use crate::network::Network;
use crate::podnet::{Attachment, AttachmentKey, host_ports};

/// The state that updates come from.
pub struct Desired {
    node: Arc<str>,
    cluster: Cluster,
    /// Pods as the manifests have them, where the cluster has them otherwise: with a state, or where they really are.
    described: BTreeMap<NamespacedName, Pod>,
    /// What is put over the pods of these names.
    states: BTreeMap<NamespacedName, PodStatus>,
    /// The interface that each pod of this node has.
    attachments: BTreeMap<NamespacedName, Attachment>,
    /// Addresses that a pod had at the last update and has not now.
    moved: BTreeSet<IpAddr>,
    /// How the network is to be where no NetworkConfig says otherwise.
    flags: Network,
    /// Somebody else compiles the policies, and tells what they come to. Then there are no policies here, no labels, and no pods
    /// of other nodes.
    told: bool,
    /// Where ports of the node led at the last update.
    host_ports: HostPorts,
}

impl Desired {
    /// The state of the node with this name, with these attachments and no objects.
    pub fn new(node: Arc<str>, attachments: impl IntoIterator<Item = Attachment>) -> Self {
        let attachments = attachments.into_iter().map(|a| (a.pod(), a)).collect();
        let cluster = Cluster::new().telling(node.clone());
        Self {
            node,
            cluster,
            described: BTreeMap::new(),
            states: BTreeMap::new(),
            attachments,
            moved: BTreeSet::new(),
            flags: Network::default(),
            told: false,
            host_ports: HostPorts::default(),
        }
    }

    /// The same, of a node that a controller tells what its policies come to.
    pub fn told_by_a_controller(self) -> Self {
        debug_assert!(self.objects().keys().next().is_none(), "who compiles is said before any object");
        Self { told: true, ..self }
    }

    /// Whether the policies are here, so that a verdict can be explained.
    pub fn explains(&self) -> bool {
        !self.told
    }

    /// The same, where policies may ask for so much.
    pub fn limited(self, limits: Limits) -> Self {
        debug_assert!(self.objects().keys().next().is_none(), "limits are there before any object");
        Self { cluster: Cluster::with_limits(limits).telling(self.node.clone()), ..self }
    }

    /// The first update: the objects of the first reading and all attachments.
    pub fn start(&mut self, first: Changes) -> Update {
        let (pods, host_ports) = self.local();
        Update { pods, host_ports, ..self.read(first) }
    }

    /// The first update: what the controller told first, and all attachments.
    pub fn start_told(&mut self, first: Change) -> Update {
        let (pods, host_ports) = self.local();
        Update { pods, host_ports, ..self.hear(first) }
    }

    /// All interfaces, and where ports of the node lead.
    fn local(&mut self) -> (BTreeMap<NamespacedName, Option<LocalPod>>, Option<HostPorts>) {
        let pods = self.attachments.values().map(|a| (a.pod(), Some(local_pod(a)))).collect();
        (pods, self.moved_ports())
    }

    /// The controller tells a change, everything that goes named in it.
    pub fn hear(&mut self, change: Change) -> Update {
        debug_assert!(self.told && !change.pods_whole && !change.nodes_whole);
        let configured = change.config.is_some();
        let nodes = configured || !change.nodes.is_empty();
        if let Some(config) = change.config {
            self.cluster.apply(Object::Config(config));
        }
        for (name, node) in change.nodes {
            match node {
                Some(node) => self.cluster.apply(Object::Node(node)),
                None => self.cluster.delete(&Key::Node(name)),
            }
        }
        for (name, pod) in change.pods {
            let pod = pod.map(|told| self.told_pod(&name, told));
            self.put(&name, pod);
        }
        let (senders, inside) = nodes.then(|| self.about_nodes()).unzip();
        let live = configured.then(|| self.network().live());
        let mut update = Update { senders, inside, live, ..self.commit() };
        update.policy = change.policy;
        update.moved.extend(self.not_given_here(change.moved));
        update
    }

    fn told_pod(&self, name: &NamespacedName, told: ToldPod) -> Pod {
        Pod {
            name: name.clone(),
            labels: Labels::new(),
            node: Some(self.node.clone()),
            addresses: Vec::new(),
            ports: Vec::new(),
            host_network: false,
            finished: false,
            uid: told.uid,
        }
    }

    /// There is a new reading: this is what became different.
    pub fn read(&mut self, changes: Changes) -> Update {
        let configured = changes.are_about(|key| matches!(key, Key::Config));
        let nodes = configured || changes.are_about(|key| matches!(key, Key::Node(_)));
        for key in &changes.delete {
            match key {
                Key::Pod(name) => self.put(name, None),
                other => self.cluster.delete(other),
            }
        }
        for object in changes.apply {
            match object {
                Object::Pod(pod) => self.put(&pod.name.clone(), Some(pod)),
                other => self.cluster.apply(other),
            }
        }
        for (pod, state) in changes.states {
            match state {
                Some(state) => drop(self.states.insert(pod.clone(), state)),
                None => drop(self.states.remove(&pod)),
            }
            self.put(&pod, self.description(&pod));
        }
        let (senders, inside) = nodes.then(|| self.about_nodes()).unzip();
        let live = configured.then(|| self.network().live());
        Update { senders, inside, live, ..self.commit() }
    }

    /// The same, on a node whose flags say this of the network.
    pub fn flagged(self, flags: Network) -> Self {
        Self { flags, ..self }
    }

    /// How the network is to be.
    pub fn network(&self) -> Network {
        self.flags.under(self.objects().config())
    }

    /// Who may send what through a tunnel to this node, and what is the cluster's.
    fn about_nodes(&self) -> (Senders, Inside) {
        let Some(local) = self.node() else { return Default::default() };
        let others = self.other_nodes();
        (Senders::of(local, &others), Inside::of(local, &others, &self.network().inside))
    }

    /// A pod of this node has an interface from now on.
    pub fn attach(&mut self, attachment: &Attachment) -> Update {
        let pod = attachment.pod();
        let before = self.attachments.insert(pod.clone(), attachment.clone());
        self.put(&pod, self.description(&pod));
        let host_ports = self.moved_ports_of(before.iter().chain([attachment]));
        Update { pods: [(pod, Some(local_pod(attachment)))].into(), host_ports, ..self.commit() }
    }

    /// An interface is gone. Another one that its pod has got meanwhile stays.
    pub fn detach(&mut self, key: &AttachmentKey) -> Update {
        let Some(pod) = self.attachments.values().find(|a| a.key() == *key).map(Attachment::pod) else {
            return Update::default();
        };
        let gone = self.attachments.remove(&pod);
        // Also where no manifest describes the pod any more: the interface had them.
        self.moved.extend(gone.iter().flat_map(Attachment::addresses));
        self.put(&pod, self.description(&pod));
        let host_ports = self.moved_ports_of(gone.iter());
        Update { pods: [(pod, None)].into(), host_ports, ..self.commit() }
    }

    /// Where ports of the node lead, if that has changed with the coming or going of these. Most pods have none, and then nobody
    /// has to go through all.
    fn moved_ports_of<'a>(
        &mut self,
        mut concerned: impl Iterator<Item = &'a Attachment>,
    ) -> Option<HostPorts> {
        concerned.any(|a| !a.host_ports.is_empty()).then(|| self.moved_ports()).flatten()
    }

    /// Where ports of the node lead, if that has changed.
    fn moved_ports(&mut self) -> Option<HostPorts> {
        let now = host_ports(self.attachments.values());
        let moved = now != self.host_ports;
        self.host_ports.clone_from(&now);
        moved.then_some(now)
    }

    /// The interface of this key is made anew: what the kernel is told before (`there` is false), and then. `None`: no pod has it
    /// any more.
    pub fn renew(&self, key: &AttachmentKey, there: bool) -> Option<Update> {
        let attachment = self.attachments.values().find(|a| a.key() == *key)?;
        let local = there.then(|| local_pod(attachment));
        Some(Update { pods: [(attachment.pod(), local)].into(), ..Update::default() })
    }

    /// Whether the source knows this pod, so that policy can say something about it; and knows it by this UID, where both say one:
    /// another one is another pod of the same name, with labels of its own.
    pub fn knows(&self, pod: &NamespacedName, uid: Option<&str>) -> bool {
        let same = |pod: Pod| uid.zip(pod.uid.as_deref()).is_none_or(|(one, other)| one == other);
        self.objects().pods().get(pod).is_some_and(same)
    }

    /// The objects that policy is compiled from.
    pub fn objects(&self) -> &Objects {
        self.cluster.objects()
    }

    /// An evaluator for questions about these addresses.
    pub fn evaluator_of(&self, addresses: &[IpAddr]) -> Evaluator<'_> {
        self.cluster.evaluator_of(addresses)
    }

    /// The pod of this node whose host end has this name.
    pub fn pod_of(&self, host_ifname: &str) -> Option<NamespacedName> {
        self.attachments.values().find(|a| a.host_ifname == host_ifname).map(Attachment::pod)
    }

    /// The interfaces that the pods of this node have.
    pub fn interfaces(&self) -> impl Iterator<Item = &Attachment> {
        self.attachments.values()
    }

    /// The name of this node.
    pub fn node_name(&self) -> &Arc<str> {
        &self.node
    }

    /// This node, if a manifest describes it.
    pub fn node(&self) -> Option<&Node> {
        self.objects().nodes().get(&self.node)
    }

    /// The other nodes.
    pub fn other_nodes(&self) -> Vec<Node> {
        self.objects().nodes().values().filter(|n| n.name != self.node).cloned().collect()
    }

    /// The pod as the manifests have it.
    fn description(&self, name: &NamespacedName) -> Option<Pod> {
        self.described.get(name).cloned().or_else(|| self.objects().pods().get(name))
    }

    /// The manifests have the pod like this now, or do not have it.
    fn put(&mut self, name: &NamespacedName, description: Option<Pod>) {
        let now = description.clone().map(|pod| self.located(pod));
        if let Some(before) = self.cluster.objects().pods().get(name) {
            self.moved.extend(before.addresses.iter().filter(|a| !still_has(now.as_ref(), &before, a)));
        }
        match description.filter(|pod| now.as_ref() != Some(pod)) {
            Some(description) => drop(self.described.insert(name.clone(), description)),
            None => drop(self.described.remove(name)),
        }
        match now {
            Some(pod) => self.cluster.apply(Object::Pod(pod)),
            None => self.cluster.delete(&Key::Pod(name.clone())),
        }
    }

    /// The pod where it is, with the addresses that it has.
    fn located(&self, mut pod: Pod) -> Pod {
        if let Some(state) = self.states.get(&pod.name) {
            state.put_over(&mut pod);
        }
        if pod.host_network {
            return pod;
        }
        if let Some(attachment) = self.attachments.get(&pod.name) {
            pod.node = Some(self.node.clone());
            pod.addresses = attachment.addresses().collect();
        } else if pod.node.as_ref() == Some(&self.node) {
            pod.addresses.clear();
        }
        pod
    }

    fn commit(&mut self) -> Update {
        let compiled = self.cluster.commit().remove(&self.node).unwrap_or_default();
        // What follows from no policies is not what the controller's come to.
        let policy = if self.told { NodeDelta::default() } else { compiled };
        let moved = std::mem::take(&mut self.moved);
        Update { policy, moved: self.not_given_here(moved), ..Update::default() }
    }

    /// Those that other nodes give to their pods. Whoever takes an address of this node's own back has its connections forgotten
    /// once its interface is gone, and before that nobody else has it: one look for both is enough.
    fn not_given_here(&self, mut moved: BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
        if let Some(node) = self.node() {
            moved.retain(|address| !node.pod_cidrs.iter().any(|block| block.contains(address)));
        }
        moved
    }
}

/// Whether the pod is who it was before, and has the address. An address that is a node's, too, is nobody's to lose.
fn still_has(now: Option<&Pod>, before: &Pod, address: &IpAddr) -> bool {
    let another = |now: &Pod| matches!((&now.uid, &before.uid), (Some(now), Some(before)) if now != before);
    let has = |now: &Pod| !now.finished && now.addresses.contains(address) && !another(now);
    before.host_network || now.is_some_and(has)
}

fn local_pod(attachment: &Attachment) -> LocalPod {
    LocalPod {
        ifname: attachment.host_ifname.clone(),
        pod_mac: attachment.pod_mac,
        v4: attachment.v4,
        v6: attachment.v6,
    }
}

#[cfg(test)]
mod tests;
