//! What an agent has not been told yet: names, not contents. What they stand for is read when it is sent, so an agent that reads
//! slowly is told the newest of everything once, however often it has changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use moat_api::{Change, Digest, Held, ToldPod};
use moat_policies::{
    Element, NamespacedName, NetworkConfig, Node, NodeDelta, NodeView, Program, ProgramId, SetChange, SetId,
    SetUpdate,
};

use super::sums::Sums;

/// More single changes of a set than this, and it is told whole.
const MOST_ELEMENTS: usize = 16 << 10;

/// What is to be told.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// There is something to be said even where nothing has changed: that this is all.
    greet: bool,
    pods: BTreeSet<NamespacedName>,
    pods_whole: bool,
    programs: BTreeSet<ProgramId>,
    sets: BTreeMap<SetId, Dirt>,
    nodes: BTreeSet<Arc<str>>,
    nodes_whole: bool,
    moved: BTreeSet<IpAddr>,
    config: bool,
    fingerprint: bool,
}

/// What of a set is to be told.
#[derive(Debug)]
enum Dirt {
    /// Whether there is one, and if so all of it.
    Whole,
    /// These come (`true`) or go.
    Elements(BTreeMap<Element, bool>),
}

/// What a node is to hold, for who asks by name.
pub(super) struct Truth<'i> {
    pub(super) view: NodeView<'i>,
    pub(super) pods: &'i BTreeMap<NamespacedName, Option<Arc<str>>>,
    pub(super) nodes: &'i BTreeMap<Arc<str>, Node>,
    pub(super) config: Option<&'i NetworkConfig>,
    pub(super) fingerprint: &'i Arc<str>,
}

impl Truth<'_> {
    fn pod(&self, name: &NamespacedName) -> Option<ToldPod> {
        let uid = self.pods.get(name)?.clone();
        Some(ToldPod { uid, programs: self.view.pod(name)? })
    }

    fn pods(&self) -> BTreeMap<NamespacedName, ToldPod> {
        self.pods.keys().filter_map(|name| Some((name.clone(), self.pod(name)?))).collect()
    }
}

impl Pending {
    /// What somebody is to be told who holds something else than this.
    pub(super) fn from(held: &Held, truth: &Truth<'_>, sums: &mut Sums) -> Self {
        let pods = truth.pods();
        let needed = pods.values().flat_map(|pod| [pod.programs.ingress, pod.programs.egress]).flatten();
        let programs: BTreeMap<ProgramId, Arc<Program>> = needed
            .collect::<BTreeSet<_>>()
            .into_iter()
            .filter_map(|id| Some((id, truth.view.program(&id)?)))
            .collect();
        let sets: BTreeSet<SetId> = programs.values().flat_map(|program| program.sets()).collect();
        let stale = held.sets.keys().filter(|id| !sets.contains(*id));
        // A sum is made where there is one to compare it with: many agents begin with nothing.
        let differs =
            |id: &&SetId| held.sets.get(*id).is_none_or(|sum| sums.of_set(**id, &truth.view) != Some(*sum));
        let sets = sets.iter().filter(differs).chain(stale).map(|id| (*id, Dirt::Whole)).collect();
        let others = |id: &&ProgramId| !programs.contains_key(*id);
        let missing = programs.keys().filter(|id| !held.programs.contains(*id));
        let programs = missing.chain(held.programs.iter().filter(others)).copied().collect();
        let mut pending = Self {
            greet: true,
            // Short, and so always said.
            config: true,
            fingerprint: true,
            sets,
            programs,
            pods_whole: Digest::of_pods(&pods) != held.pods,
            nodes_whole: sums.of_nodes(truth.nodes) != held.nodes,
            ..Self::default()
        };
        if pending.pods_whole {
            pending.pods = truth.pods.keys().cloned().collect();
        }
        if pending.nodes_whole {
            pending.nodes = truth.nodes.keys().cloned().collect();
        }
        pending
    }

    /// This changes.
    pub(super) fn policy(&mut self, delta: &NodeDelta) {
        self.pods.extend(delta.pods.keys().cloned());
        self.programs.extend(delta.programs.keys().copied());
        for (id, change) in &delta.sets {
            match change {
                SetChange::Create(_) | SetChange::Delete => drop(self.sets.insert(*id, Dirt::Whole)),
                SetChange::Update(update) => {
                    let dirt = self.sets.entry(*id).or_insert_with(|| Dirt::Elements(BTreeMap::new()));
                    dirt.update(update);
                }
            }
        }
    }

    /// Something of this pod changes that policy does not say.
    pub(super) fn pod(&mut self, name: &NamespacedName) {
        self.pods.insert(name.clone());
    }

    /// This node changes.
    pub(super) fn node(&mut self, name: &Arc<str>) {
        self.nodes.insert(name.clone());
    }

    /// These addresses are another's now.
    pub(super) fn moved(&mut self, addresses: &BTreeSet<IpAddr>) {
        self.moved.extend(addresses);
    }

    /// The network is to be otherwise.
    pub(super) fn config(&mut self) {
        self.config = true;
    }

    /// People call the state otherwise.
    pub(super) fn fingerprint(&mut self) {
        self.fingerprint = true;
    }

    /// Whether there is nothing to be told.
    pub(super) fn is_empty(&self) -> bool {
        self.moved.is_empty() && !self.is_pressing()
    }

    /// Whether something is to be told that cannot wait. That an address is another's can, a little: before it is handed out
    /// again everybody is waited for.
    pub(super) fn is_pressing(&self) -> bool {
        let Self {
            greet,
            pods,
            pods_whole,
            programs,
            sets,
            nodes,
            nodes_whole,
            moved: _,
            config,
            fingerprint,
        } = self;
        let whole = *greet || *pods_whole || *nodes_whole || *config || *fingerprint;
        whole || !(pods.is_empty() && programs.is_empty() && sets.is_empty() && nodes.is_empty())
    }

    /// What is to be told, as it is now. Nothing is, from now on.
    pub(super) fn take(&mut self, truth: &Truth<'_>) -> Change {
        let Self {
            greet: _,
            pods,
            pods_whole,
            programs,
            sets,
            nodes,
            nodes_whole,
            moved,
            config,
            fingerprint,
        } = std::mem::take(self);
        let mut change = Change { pods_whole, nodes_whole, moved, ..Change::default() };
        change.config = config.then(|| truth.config.cloned().unwrap_or_default());
        change.fingerprint = fingerprint.then(|| truth.fingerprint.clone());
        for name in pods {
            let pod = truth.pod(&name);
            if !(pods_whole && pod.is_none()) {
                change.put_pod(name, pod);
            }
        }
        for id in programs {
            change.policy.programs.insert(id, truth.view.program(&id));
        }
        for (id, dirt) in sets {
            if let Some(told) = dirt.take(id, truth) {
                change.policy.sets.insert(id, told);
            }
        }
        for name in nodes {
            let node = truth.nodes.get(&name).cloned();
            change.nodes.insert(name, node);
        }
        change
    }
}

impl Dirt {
    fn update(&mut self, update: &SetUpdate) {
        let Dirt::Elements(elements) = self else { return };
        let news = update.add.iter().map(|e| (*e, true)).chain(update.remove.iter().map(|e| (*e, false)));
        for (element, comes) in news {
            // Changes of an element alternate: one that undoes the last leaves what the agent has.
            if elements.remove(&element).is_none() {
                elements.insert(element, comes);
            }
        }
        if elements.len() > MOST_ELEMENTS {
            *self = Dirt::Whole;
        }
    }

    fn take(self, id: SetId, truth: &Truth<'_>) -> Option<SetChange> {
        match self {
            Dirt::Whole => Some(truth.view.set(&id).map_or(SetChange::Delete, SetChange::Create)),
            Dirt::Elements(elements) if elements.is_empty() => None,
            Dirt::Elements(elements) => {
                let mut update = SetUpdate::default();
                for (element, comes) in elements {
                    if comes { &mut update.add } else { &mut update.remove }.push(element);
                }
                Some(SetChange::Update(Arc::new(update)))
            }
        }
    }
}
