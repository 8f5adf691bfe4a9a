//! Which node needs which programs and sets, and what has changed there since the last commit.

use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::HashMap;

use super::arena::{Arena, Ix};
use super::programs::ProgramEntry;
use super::sets::Set;
use crate::{NamespacedName, PodPrograms};

pub(super) type NodeIx = Ix<NodeEntry>;

/// A node that pods are on.
pub(super) struct NodeEntry {
    pub(super) name: Arc<str>,
    pods: u32,
    /// Programs and sets whose need here has changed: whether the node had them at the last commit.
    pub(super) programs: HashMap<Ix<ProgramEntry>, bool>,
    pub(super) sets: HashMap<Ix<Set>, bool>,
    pub(super) told: BTreeMap<NamespacedName, Option<PodPrograms>>,
    touched: bool,
}

#[derive(Default)]
pub(super) struct Nodes {
    pub(super) entries: Arena<NodeEntry>,
    by_name: HashMap<Arc<str>, NodeIx>,
    touched: Vec<NodeIx>,
    /// The one that is told something, where it is not all of them.
    pub(super) only: Option<Arc<str>>,
}

impl Nodes {
    /// Whether a node is told what it needs.
    pub(super) fn is_told(&self, ix: NodeIx) -> bool {
        self.only.as_ref().is_none_or(|only| *only == self.entries[ix].name)
    }

    /// The node of one pod more.
    pub(super) fn hold(&mut self, name: &Arc<str>) -> NodeIx {
        let entries = &mut self.entries;
        let ix = *self.by_name.entry(name.clone()).or_insert_with(|| {
            entries.insert(NodeEntry {
                name: name.clone(),
                pods: 0,
                programs: HashMap::new(),
                sets: HashMap::new(),
                told: BTreeMap::new(),
                touched: false,
            })
        });
        self.entries[ix].pods += 1;
        ix
    }

    /// One pod less on the node; one without pods goes when its last changes are taken.
    pub(super) fn release(&mut self, ix: NodeIx) {
        self.touch(ix).pods -= 1;
    }

    pub(super) fn is_settled(&self) -> bool {
        self.touched.is_empty()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.by_name.is_empty() && self.touched.is_empty()
    }

    pub(super) fn find(&self, name: &str) -> Option<NodeIx> {
        self.by_name.get(name).copied()
    }

    /// The node's record, for a change.
    pub(super) fn touch(&mut self, ix: NodeIx) -> &mut NodeEntry {
        let node = &mut self.entries[ix];
        if !node.touched {
            node.touched = true;
            self.touched.push(ix);
        }
        node
    }

    /// The nodes with changes; they have none from now on, and those without pods are to be [collected](Self::collect).
    pub(super) fn take_touched(&mut self) -> Vec<NodeIx> {
        let touched = std::mem::take(&mut self.touched);
        for ix in &touched {
            self.entries[*ix].touched = false;
        }
        touched
    }

    pub(super) fn collect(&mut self, ix: NodeIx) {
        if self.entries[ix].pods == 0 {
            let node = self.entries.remove(ix);
            self.by_name.remove(&node.name);
        }
    }
}
