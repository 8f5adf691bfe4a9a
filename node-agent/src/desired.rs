//! What this node wants of its data plane: from readings and attachments to updates. Pure.
//!
//! The pods of this node have the addresses that the pod network gave them, whatever a manifest says: the agent
//! knows them before anybody else, and knows at once when they are gone.

use std::collections::BTreeMap;
use std::sync::Arc;

use moat_policies::{Cluster, Key, NamespacedName, Node, Object, Objects, Pod};

use crate::dataplane::{LocalPod, Update};
use crate::podnet::{Attachment, AttachmentKey};

/// The state that updates come from.
pub struct Desired {
    node: Arc<str>,
    cluster: Cluster,
    /// Pods as they were read.
    pods: BTreeMap<NamespacedName, Pod>,
    /// The interface that each pod of this node has.
    attachments: BTreeMap<NamespacedName, Attachment>,
}

impl Desired {
    /// The state of the node with this name, with these attachments and no objects.
    pub fn new(node: Arc<str>, attachments: impl IntoIterator<Item = Attachment>) -> Self {
        let attachments = attachments.into_iter().map(|a| (a.pod(), a)).collect();
        Self { node, cluster: Cluster::new(), pods: BTreeMap::new(), attachments }
    }

    /// The first update: the objects of the first reading and all attachments.
    pub fn start(&mut self, objects: Vec<Object>) -> Update {
        let pods = self.attachments.values().map(|a| (a.pod(), Some(local_pod(a)))).collect();
        Update { pods, ..self.read(objects) }
    }

    /// There is a new reading.
    pub fn read(&mut self, objects: Vec<Object>) -> Update {
        self.pods = objects
            .iter()
            .filter_map(|o| match o {
                Object::Pod(pod) => Some((pod.name.clone(), pod.clone())),
                _ => None,
            })
            .collect();
        let objects: Vec<Object> = objects
            .into_iter()
            .map(|object| match object {
                Object::Pod(pod) => Object::Pod(self.located(pod)),
                other => other,
            })
            .collect();
        self.cluster.reset(objects);
        self.commit()
    }

    /// A pod of this node has an interface from now on.
    pub fn attach(&mut self, attachment: &Attachment) -> Update {
        let pod = attachment.pod();
        self.attachments.insert(pod.clone(), attachment.clone());
        self.relocate(&pod);
        Update { pods: [(pod, Some(local_pod(attachment)))].into(), ..self.commit() }
    }

    /// An interface is gone. Another one that its pod has got meanwhile stays.
    pub fn detach(&mut self, key: &AttachmentKey) -> Update {
        let Some(pod) = self.attachments.values().find(|a| a.key() == *key).map(Attachment::pod) else {
            return Update::default();
        };
        self.attachments.remove(&pod);
        self.relocate(&pod);
        Update { pods: [(pod, None)].into(), ..self.commit() }
    }

    /// Whether some manifest describes this pod, so that policy can say something about it.
    pub fn knows(&self, pod: &NamespacedName) -> bool {
        self.pods.get(pod).is_some_and(|p| !p.finished)
    }

    /// The objects that policy is compiled from.
    pub fn objects(&self) -> &Objects {
        self.cluster.objects()
    }

    /// This node, if a manifest describes it.
    pub fn node(&self) -> Option<&Node> {
        self.objects().nodes().get(&self.node)
    }

    /// The other nodes.
    pub fn other_nodes(&self) -> Vec<Node> {
        self.objects().nodes().values().filter(|n| n.name != self.node).cloned().collect()
    }

    fn relocate(&mut self, name: &NamespacedName) {
        if let Some(pod) = self.pods.get(name) {
            let pod = self.located(pod.clone());
            self.cluster.apply(Object::Pod(pod));
        } else {
            self.cluster.delete(&Key::Pod(name.clone()));
        }
    }

    /// The pod where it is, with the addresses that it has.
    fn located(&self, mut pod: Pod) -> Pod {
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
        let policy = self.cluster.commit().remove(&self.node).unwrap_or_default();
        Update { policy, ..Update::default() }
    }
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
mod tests {
    use super::*;
    use moat_policies::{Labels, NetworkPolicy, Peer, Peers, Ports, Rule, Selector, SetChange};
    use std::net::IpAddr;

    fn pod(name: &str, node: &str, address: &str) -> Object {
        Object::Pod(Pod {
            name: NamespacedName::new("shop", name),
            labels: Labels::new(),
            node: Some(node.into()),
            addresses: vec![address.parse().unwrap()],
            ports: vec![],
            host_network: false,
            finished: false,
            uid: None,
        })
    }

    fn among_themselves() -> Object {
        let all = Peer::Pods { namespaces: moat_policies::NamespaceScope::Own, pods: Selector::everything() };
        Object::Policy(NetworkPolicy {
            name: NamespacedName::new("shop", "among-themselves"),
            subject: Selector::everything(),
            ingress: Some(vec![Rule { peers: Peers::Of(vec![all]), ports: Ports::Any }]),
            egress: None,
        })
    }

    fn attachment(pod: &str, container: &str, address: &str) -> Attachment {
        Attachment {
            container_id: container.into(),
            ifname: "eth0".into(),
            network: "moat".into(),
            pod_namespace: "shop".into(),
            pod_name: pod.into(),
            pod_uid: None,
            netns: "/proc/self/ns/net".into(),
            host_ifname: AttachmentKey::new(container, "eth0").host_ifname(),
            host_mac: [6; 6],
            pod_mac: [2; 6],
            v4: Some(address.parse().unwrap()),
            v6: None,
            mtu: 1500,
        }
    }

    fn addresses(update: &Update) -> Vec<IpAddr> {
        let sets = update.policy.sets.values().flat_map(|change| match change {
            SetChange::Create(set) => set.elements.clone(),
            SetChange::Update(update) => update.add.clone(),
            SetChange::Delete => vec![],
        });
        sets.map(|e| e.address).collect()
    }

    #[test]
    fn a_pod_here_has_the_address_that_it_was_given_and_no_other() {
        let mut desired = Desired::new("here".into(), []);
        let objects =
            || vec![pod("a", "here", "10.0.0.9"), pod("b", "there", "10.0.1.1"), among_themselves()];
        let start = desired.start(objects());
        assert_eq!(addresses(&start), ["10.0.1.1".parse::<IpAddr>().unwrap()]);
        assert!(start.pods.is_empty());

        let a = attachment("a", "one", "10.0.0.1");
        let update = desired.attach(&a);
        assert_eq!(addresses(&update), ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(update.pods.len(), 1);
        assert!(desired.read(objects()).is_empty(), "the same reading changes nothing");

        let update = desired.detach(&a.key());
        assert_eq!(update.pods[&a.pod()], None);
        assert!(
            update.policy.sets.values().any(|c| matches!(c, SetChange::Update(u) if u.remove.len() == 1))
        );
    }

    #[test]
    fn an_old_interface_that_goes_leaves_the_new_one() {
        let mut desired = Desired::new("here".into(), []);
        desired.start(vec![pod("a", "here", "10.0.0.9"), among_themselves()]);
        let (old, new) = (attachment("a", "old", "10.0.0.1"), attachment("a", "new", "10.0.0.2"));
        desired.attach(&old);
        let update = desired.attach(&new);
        assert_eq!(addresses(&update), ["10.0.0.2".parse::<IpAddr>().unwrap()]);
        assert!(desired.detach(&old.key()).is_empty());
        assert_eq!(desired.detach(&new.key()).pods[&new.pod()], None);
    }
}
