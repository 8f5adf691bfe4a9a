//! What the agent hands to the data plane, and how two hand-overs become one.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use moat_policies::{AllowSet, Element, NamespacedName, NodeDelta, SetChange, SetId, SetUpdate};

use super::layout::{HostPorts, Inside, Live, LocalPod, Senders};

/// A change of what the kernel is to enforce.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Update {
    /// What the engine says about this node's pods.
    pub policy: NodeDelta,
    /// Pods whose interfaces came, changed (`Some`) or went (`None`).
    pub pods: BTreeMap<NamespacedName, Option<LocalPod>>,
    /// Addresses that another pod has now, or none any more: connections of theirs are another's.
    pub moved: BTreeSet<IpAddr>,
    /// Who may send what through the tunnel, where that has changed.
    pub senders: Option<Senders>,
    /// What is the cluster's, where that has changed.
    pub inside: Option<Inside>,
    /// Where ports of the node lead, where that has changed.
    pub host_ports: Option<HostPorts>,
    /// What of the layout may change, where it has.
    pub live: Option<Live>,
}

impl Update {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.policy.is_empty()
            && self.pods.is_empty()
            && self.moved.is_empty()
            && self.senders.is_none()
            && self.inside.is_none()
            && self.host_ports.is_none()
            && self.live.is_none()
    }

    /// Adds what came later: the result does what this one and then `later` do.
    pub fn merge(&mut self, later: Update) {
        self.pods.extend(later.pods);
        self.moved.extend(later.moved);
        self.senders = later.senders.or(self.senders.take());
        self.inside = later.inside.or(self.inside.take());
        self.host_ports = later.host_ports.or(self.host_ports.take());
        self.live = later.live.or(self.live);
        self.policy.pods.extend(later.policy.pods);
        self.policy.programs.extend(later.policy.programs);
        for (id, change) in later.policy.sets {
            merge_set(&mut self.policy.sets, id, change);
        }
    }
}

fn merge_set(sets: &mut BTreeMap<SetId, SetChange>, id: SetId, later: SetChange) {
    let mut entry = match sets.entry(id) {
        Entry::Vacant(entry) => {
            entry.insert(later);
            return;
        }
        Entry::Occupied(entry) => entry,
    };
    let merged = match (entry.get(), later) {
        (SetChange::Create(set), SetChange::Update(update)) => SetChange::Create(Arc::new(AllowSet {
            elements: changed(&set.elements, &update),
            ..(**set).clone()
        })),
        (SetChange::Update(first), SetChange::Update(second)) => {
            let both = joined(first, &second);
            if both.add.is_empty() && both.remove.is_empty() {
                entry.remove();
                return;
            }
            SetChange::Update(Arc::new(both))
        }
        // A set that is created replaces what there was; one that is deleted is gone, however it came.
        (_, later) => later,
    };
    entry.insert(merged);
}

fn changed(elements: &[Element], update: &SetUpdate) -> Vec<Element> {
    let mut all: BTreeSet<Element> = elements.iter().copied().collect();
    for element in &update.remove {
        all.remove(element);
    }
    all.extend(update.add.iter().copied());
    all.into_iter().collect()
}

fn joined(first: &SetUpdate, second: &SetUpdate) -> SetUpdate {
    let set = |elements: &[Element]| elements.iter().copied().collect::<BTreeSet<_>>();
    let (add, remove) = (set(&first.add), set(&first.remove));
    let (later_add, later_remove) = (set(&second.add), set(&second.remove));
    let both = |a: &BTreeSet<Element>,
                a_undone: &BTreeSet<Element>,
                b: &BTreeSet<Element>,
                b_undone: &BTreeSet<Element>| {
        let mut all: BTreeSet<Element> = a.difference(a_undone).copied().collect();
        all.extend(b.difference(b_undone));
        all.into_iter().collect()
    };
    SetUpdate {
        add: both(&add, &later_remove, &later_add, &remove),
        remove: both(&remove, &later_add, &later_remove, &add),
    }
}
