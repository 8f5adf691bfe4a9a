//! What a node holds after what it was told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use moat_policies::{
    AllowSet, NamespacedName, NetworkConfig, Node, NodeDelta, Program, ProgramId, SetChange, SetId, SetUpdate,
};

use crate::{Change, Digest, ToldPod};

/// What a node has been told, as of one revision.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Told {
    /// Its pods.
    pub pods: BTreeMap<NamespacedName, ToldPod>,
    /// Their programs.
    pub programs: BTreeMap<ProgramId, Arc<Program>>,
    /// The allow sets that those look into.
    pub sets: BTreeMap<SetId, Arc<AllowSet>>,
    /// The cluster's nodes.
    pub nodes: BTreeMap<Arc<str>, Node>,
    /// How the network is to be.
    pub config: NetworkConfig,
}

/// What somebody holds, in sums.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Allow sets, each with the sum over its elements.
    pub sets: BTreeMap<SetId, Digest>,
    /// Programs; an id says all of them.
    pub programs: BTreeSet<ProgramId>,
    /// The sum over all pods.
    pub pods: Digest,
    /// The sum over all nodes.
    pub nodes: Digest,
}

impl Told {
    /// Takes a change in. Returns it with everything that goes named one by one, where it said what is all that there is.
    pub fn take(&mut self, mut change: Change) -> Change {
        if std::mem::take(&mut change.pods_whole) {
            let gone: Vec<_> =
                self.pods.keys().filter(|name| !change.pods.contains_key(*name)).cloned().collect();
            gone.into_iter().for_each(|name| change.put_pod(name, None));
        }
        if std::mem::take(&mut change.nodes_whole) {
            let gone = self.nodes.keys().filter(|name| !change.nodes.contains_key(*name)).cloned();
            change.nodes.extend(gone.map(|name| (name, None)).collect::<Vec<_>>());
        }
        put_all(&mut self.pods, &change.pods);
        put_all(&mut self.programs, &change.policy.programs);
        put_all(&mut self.nodes, &change.nodes);
        if let Some(config) = &change.config {
            self.config.clone_from(config);
        }
        for (id, change) in &change.policy.sets {
            match change {
                SetChange::Create(set) => drop(self.sets.insert(*id, set.clone())),
                SetChange::Delete => drop(self.sets.remove(id)),
                SetChange::Update(update) => {
                    if let Some(set) = self.sets.get_mut(id) {
                        let set = Arc::make_mut(set);
                        set.elements = changed(std::mem::take(&mut set.elements), update);
                    }
                }
            }
        }
        change
    }

    /// All of it, as a change from whatever there was to this.
    pub fn whole(&self) -> Change {
        let mut change = Change {
            policy: NodeDelta {
                programs: self.programs.iter().map(|(id, program)| (*id, Some(program.clone()))).collect(),
                sets: self.sets.iter().map(|(id, set)| (*id, SetChange::Create(set.clone()))).collect(),
                ..NodeDelta::default()
            },
            pods_whole: true,
            nodes: self.nodes.iter().map(|(name, node)| (name.clone(), Some(node.clone()))).collect(),
            nodes_whole: true,
            config: Some(self.config.clone()),
            ..Change::default()
        };
        self.pods.iter().for_each(|(name, pod)| change.put_pod(name.clone(), Some(pod.clone())));
        change
    }

    /// It in sums.
    pub fn held(&self) -> Held {
        Held {
            sets: self.sets.iter().map(|(id, set)| (*id, Digest::of_elements(&set.elements))).collect(),
            programs: self.programs.keys().copied().collect(),
            pods: Digest::of_pods(&self.pods),
            nodes: Digest::of_nodes(&self.nodes),
        }
    }

    /// The first thing in it that refers to what is not there, if there is one.
    pub fn dangling(&self) -> Option<String> {
        for (name, pod) in &self.pods {
            let programs = [pod.programs.ingress, pod.programs.egress];
            if let Some(id) = programs.into_iter().flatten().find(|id| !self.programs.contains_key(id)) {
                return Some(format!("the pod {name} has the program {id}, which was not told"));
            }
        }
        for (id, program) in &self.programs {
            if let Some(set) = program.sets().find(|set| !self.sets.contains_key(set)) {
                return Some(format!("the program {id} looks into the set {set}, which was not told"));
            }
        }
        None
    }
}

fn put_all<K: Ord + Clone, V: Clone>(all: &mut BTreeMap<K, V>, changes: &BTreeMap<K, Option<V>>) {
    for (key, value) in changes {
        match value {
            Some(value) => drop(all.insert(key.clone(), value.clone())),
            None => drop(all.remove(key)),
        }
    }
}

/// Sorted elements after an update, in one pass.
fn changed(elements: Vec<moat_policies::Element>, update: &SetUpdate) -> Vec<moat_policies::Element> {
    let mut all = Vec::with_capacity(elements.len() + update.add.len());
    let mut added = update.add.iter().copied().peekable();
    for element in elements {
        while let Some(new) = added.next_if(|new| *new <= element) {
            if new < element {
                all.push(new);
            }
        }
        if update.remove.binary_search(&element).is_err() {
            all.push(element);
        }
    }
    all.extend(added);
    all
}
