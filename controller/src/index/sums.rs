//! Sums over what agents hold, each made once for all who come: after a restart a thousand of them come within seconds, and a
//! set that selects all pods of the cluster is on each of their nodes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use moat_api::Digest;
use moat_policies::{Node, NodeDelta, NodeView, SetId};

/// Those that were asked for, of what has not changed since.
#[derive(Default)]
pub(super) struct Sums {
    sets: HashMap<SetId, Digest>,
    nodes: Option<Digest>,
}

impl Sums {
    /// Of a set, if the node of this view has it.
    pub(super) fn of_set(&mut self, id: SetId, view: &NodeView<'_>) -> Option<Digest> {
        if let Some(sum) = self.sets.get(&id) {
            return Some(*sum);
        }
        let sum = Digest::of_elements(&view.set(&id)?.elements);
        self.sets.insert(id, sum);
        Some(sum)
    }

    /// Of the cluster's nodes.
    pub(super) fn of_nodes(&mut self, nodes: &BTreeMap<Arc<str>, Node>) -> Digest {
        *self.nodes.get_or_insert_with(|| Digest::of_nodes(nodes))
    }

    /// Sets change.
    pub(super) fn change(&mut self, delta: &NodeDelta) {
        for id in delta.sets.keys() {
            self.sets.remove(id);
        }
    }

    /// Nodes change.
    pub(super) fn change_nodes(&mut self) {
        self.nodes = None;
    }
}
