//! The compiler: a synchronous state machine from objects to what each node needs.
//!
//! ```text
//!   policy ─▶ rules ─┐                                       pod ─▶ profile
//!      │             ▼                                                 │
//!      └──▶ group's subject ──▶ recipe ──▶ program ──▶ allow sets ◀── groups
//!                             (commit)        └─ span ─┴─▶ NodeDelta
//! ```
//!
//! `apply` and `delete` note what a change touches; `commit` works out just that, once, however many changes came.

mod arena;
mod assemble;
mod commit;
mod compiler;
#[cfg(test)]
mod leaks;
mod membership;
mod nodes;
mod pods;
mod programs;
mod rules;
mod selector_index;
mod sets;
mod subjects;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashSet;

pub use self::view::NodeView;

use self::compiler::Compiler;
use crate::objects::Stored;
use crate::pods::{PodIx, Put};
use crate::{Evaluator, Key, Limits, NodeDelta, Object, Objects, Pod};

/// All objects, and what is compiled from them.
///
/// The order of changes never matters: what the nodes have after a commit depends on the objects alone.
#[derive(Default)]
pub struct Cluster {
    objects: Objects,
    /// The pods in their node's network: nothing is compiled for them, and their addresses are nodes'.
    host_pods: BTreeSet<PodIx>,
    compiler: Compiler,
}

impl Cluster {
    /// A cluster without objects.
    pub fn new() -> Self {
        Self::default()
    }

    /// A cluster without objects, in which the policies of one pod may ask for so much.
    pub fn with_limits(limits: Limits) -> Self {
        let mut cluster = Self::default();
        cluster.compiler.programs.limits = limits;
        cluster
    }

    /// The same, where this node alone is told what it needs. In a large cluster that saves most of a commit.
    pub fn telling(mut self, node: Arc<str>) -> Self {
        self.compiler.nodes.only = Some(node);
        self
    }

    /// The objects as they were applied.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// An evaluator for questions about pods and others with these addresses. It has not read all pods to know whose every
    /// address is, as [`Evaluator::new`] does, but only those around these addresses and those in their node's network: so it is
    /// there at once in a large cluster, too.
    pub fn evaluator_of(&self, addresses: &[IpAddr]) -> Evaluator<'_> {
        let around = self.compiler.pods_around(addresses, self.objects.pods());
        let places: Vec<PodIx> = around.into_iter().chain(self.host_pods.iter().copied()).collect();
        Evaluator::who_knows(&self.objects, &places)
    }

    /// An object is there, new or in place of the one with its key.
    pub fn apply(&mut self, object: Object) {
        match self.objects.store(object) {
            None | Some(Stored::Other) => {}
            Some(Stored::Namespace(namespace)) => {
                let (name, labels) = (namespace.name.clone(), namespace.labels.clone());
                self.compiler.describe_namespace(&name, Some(&labels), self.objects.pods());
            }
            Some(Stored::Pod(Put { place, before })) => {
                let now = self.objects.pods().pod(place);
                match now.host_network {
                    true => self.host_pods.insert(place),
                    false => self.host_pods.remove(&place),
                };
                let before = before.filter(|pod| !pod.host_network);
                let now = Some(now).filter(|pod| !pod.host_network);
                self.compiler.change_pod(place, before.as_ref(), now.as_ref());
            }
            Some(Stored::FinishedPod(place, pod)) => self.forget_pod(place, &pod),
            Some(Stored::Policy(policy)) => self.compiler.put_policy(policy),
        }
    }

    /// The object with this key is gone.
    pub fn delete(&mut self, key: &Key) {
        match key {
            Key::Pod(name) => {
                if let Some((place, pod)) = self.objects.remove_pod(name) {
                    self.forget_pod(place, &pod);
                }
            }
            Key::Namespace(name) => {
                self.objects.remove(key);
                self.compiler.describe_namespace(name, None, self.objects.pods());
            }
            Key::Node(_) | Key::Config => self.objects.remove(key),
            Key::Policy(name) => {
                self.objects.remove(key);
                self.compiler.remove_policy(name);
            }
        }
    }

    fn forget_pod(&mut self, place: PodIx, pod: &Pod) {
        if !self.host_pods.remove(&place) {
            self.compiler.change_pod(place, Some(pod), None);
        }
    }

    /// These objects are there, and no others.
    pub fn reset(&mut self, objects: impl IntoIterator<Item = Object>) {
        let before: Vec<Key> = self.objects.keys().collect();
        if before.is_empty() {
            objects.into_iter().for_each(|object| self.apply(object));
            return;
        }
        let objects: Vec<Object> = objects.into_iter().collect();
        let keep: HashSet<Key> = objects.iter().map(Object::key).collect();
        before.iter().filter(|key| !keep.contains(*key)).for_each(|key| self.delete(key));
        objects.into_iter().for_each(|object| self.apply(object));
    }

    /// Works out what the changes since the last commit come to: what changes on which node.
    pub fn commit(&mut self) -> BTreeMap<Arc<str>, NodeDelta> {
        self.compiler.commit(self.objects.pods())
    }

    /// Everything that a node has been told by the commits so far, as a change from nothing.
    ///
    /// Ask it after a [`commit`](Self::commit), before anything is applied: what is applied is in some sets at once, and
    /// the next commit would tell it a second time.
    pub fn state(&self, node: &str) -> NodeDelta {
        self.compiler.state(node, self.objects.pods())
    }
}
