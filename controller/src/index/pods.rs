//! Pods as the source describes them, with the addresses that their nodes say they have.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use moat_api::{Attached, Attachments};
use moat_manifests::PodStatus;
use moat_policies::{NamespacedName, Objects, Pod};

/// More interfaces than any node has. What an agent says beyond it is not taken in: nobody would ever take it out.
const MOST: usize = 16 << 10;

/// What is known of pods beside the objects that policy is compiled from.
#[derive(Default)]
pub(super) struct Pods {
    /// Pods as the source has them, where the objects have them otherwise.
    described: BTreeMap<NamespacedName, Pod>,
    /// What the source puts over the pods of these names.
    states: BTreeMap<NamespacedName, PodStatus>,
    /// The interfaces of each node whose agent has said which there are. Of such a node's pods nobody else says the addresses.
    heard: HashMap<Arc<str>, Heard>,
}

/// What a node's agent has said.
#[derive(Default)]
struct Heard {
    /// Which process of the agent; empty where it does not say.
    life: Arc<str>,
    /// The newest that it said, as it counts.
    number: u64,
    there: BTreeMap<NamespacedName, Attached>,
}

/// What an agent's announcement is about.
pub(super) struct About {
    /// These pods; `None`: any of its node.
    pub(super) pods: Option<Vec<NamespacedName>>,
    /// Whether an interface that there was is there no more.
    pub(super) goes: bool,
}

impl Pods {
    /// The pod as the source has it.
    pub(super) fn description(&self, name: &NamespacedName, objects: &Objects) -> Option<Pod> {
        self.described.get(name).cloned().or_else(|| objects.pods().get(name))
    }

    /// The source describes the pod like this, or no longer. Returns it where it is, with the addresses that it has.
    pub(super) fn describe(
        &mut self,
        name: &NamespacedName,
        description: Option<Pod>,
        objects: &Objects,
    ) -> Option<Pod> {
        let located = description.clone().map(|pod| self.located(pod, objects));
        match description.filter(|pod| located.as_ref() != Some(pod)) {
            Some(description) => drop(self.described.insert(name.clone(), description)),
            None => drop(self.described.remove(name)),
        }
        located
    }

    /// The source puts this over the pod of that name, or nothing.
    pub(super) fn put_state(&mut self, name: NamespacedName, state: Option<PodStatus>) {
        match state {
            Some(state) => drop(self.states.insert(name, state)),
            None => drop(self.states.remove(&name)),
        }
    }

    /// A node's agent says which interfaces there are.
    pub(super) fn hear(&mut self, node: &Arc<str>, life: &Arc<str>, attachments: &Attachments) -> About {
        let heard = self.heard.entry(node.clone()).or_default();
        // Who has two connections for a moment says everything twice, by each in its order; the slower one is behind. It is
        // answered as if it were not.
        let goes = attachments.whole || attachments.pods.values().any(Option::is_none);
        if !life.is_empty() && heard.life == *life && attachments.number < heard.number {
            return About { pods: Some(Vec::new()), goes };
        }
        (heard.life, heard.number) = (life.clone(), attachments.number);
        if attachments.whole {
            let there = attachments.pods.iter().filter_map(|(name, a)| Some((name.clone(), a.clone()?)));
            heard.there = there.take(MOST).collect();
            return About { pods: None, goes };
        }
        let mut about = About { pods: Some(attachments.pods.keys().cloned().collect()), goes };
        for (name, attached) in &attachments.pods {
            let before = match attached {
                Some(_) if heard.there.len() >= MOST && !heard.there.contains_key(name) => None,
                Some(attached) => heard.there.insert(name.clone(), attached.clone()),
                None => heard.there.remove(name),
            };
            about.goes |= before.is_some_and(|before| Some(&before) != attached.as_ref());
        }
        about
    }

    /// How many pods of this node have an interface, as far as anybody has said so.
    pub(super) fn on(&self, node: &str) -> usize {
        self.heard.get(node).map_or(0, |heard| heard.there.len())
    }

    /// Nobody says anything of this node's interfaces any more.
    pub(super) fn forget(&mut self, node: &str) {
        self.heard.remove(node);
    }

    /// The pod where it is, with the addresses that it has.
    fn located(&self, mut pod: Pod, objects: &Objects) -> Pod {
        if let Some(state) = self.states.get(&pod.name) {
            state.put_over(&mut pod);
        }
        if pod.host_network {
            return pod;
        }
        let Some((node, heard)) = pod.node.as_ref().and_then(|node| self.heard.get_key_value(node)) else {
            return pod;
        };
        let same = |attached: &&Attached| match (&attached.uid, &pod.uid) {
            (Some(made_for), Some(uid)) => made_for == uid,
            _ => true,
        };
        let attached = heard.there.get(&pod.name).filter(same);
        let blocks = objects.nodes().get(node).map_or(&[][..], |node| &node.pod_cidrs);
        let addresses = attached.into_iter().flat_map(|attached| &attached.addresses).copied();
        pod.addresses = addresses.filter(|address| is_the_nodes(*address, blocks)).collect();
        pod
    }
}

/// Whether a node may say of an address that a pod of it has it. An agent that is not itself any more could otherwise take other
/// nodes' pods out of every set by claiming their addresses.
fn is_the_nodes(address: IpAddr, blocks: &[IpNet]) -> bool {
    blocks.iter().any(|block| block.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An agent that is not itself any more says again and again that there is another pod.
    #[test]
    fn a_node_has_so_many_interfaces_and_no_more() {
        let (mut pods, node, life) = (Pods::default(), Arc::from("n1"), Arc::from("one"));
        let attached = Attached { uid: None, addresses: Vec::new() };
        let name = |number: u64| NamespacedName::new("shop", format!("p{number}"));
        let mut say = |number: u64, attached: Option<&Attached>| {
            let said = BTreeMap::from([(name(number % (2 * MOST as u64)), attached.cloned())]);
            pods.hear(&node, &life, &Attachments { number, whole: false, pods: said });
            pods.on(&node)
        };
        for number in 0..2 * MOST as u64 {
            assert!(say(number, Some(&attached)) <= MOST);
        }
        let round = 2 * MOST as u64;
        assert_eq!(say(round, None), MOST - 1);
        assert_eq!(say(round + MOST as u64, Some(&attached)), MOST, "there is room again");
    }
}
