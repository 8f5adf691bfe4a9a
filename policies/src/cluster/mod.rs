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
use crate::{Evaluator, Key, Limits, NamespacedName, NodeDelta, Object, Objects, Pod};

/// All objects, and what is compiled from them.
///
/// The order of changes never matters: what the nodes have after a commit depends on the objects alone.
#[derive(Default)]
pub struct Cluster {
    objects: Objects,
    /// The pods in their node's network: nothing is compiled for them, and their addresses are nodes'.
    host_pods: BTreeSet<NamespacedName>,
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

    /// The objects as they were applied.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// An evaluator for questions about pods and others with these addresses. It has not read all pods to know whose every
    /// address is, as [`Evaluator::new`] does, but only those around these addresses and those in their node's network: so it is
    /// there at once in a large cluster, too.
    pub fn evaluator_of(&self, addresses: &[IpAddr]) -> Evaluator<'_> {
        let names = self.compiler.pods_around(addresses).into_iter().chain(&self.host_pods);
        let pods: Vec<&Pod> = names.filter_map(|name| self.objects.pods().get(name)).collect();
        Evaluator::who_knows(&self.objects, pods.into_iter())
    }

    /// An object is there, new or in place of the one with its key.
    pub fn apply(&mut self, object: Object) {
        match self.objects.store(object) {
            None | Some(Stored::Node) => {}
            Some(Stored::Namespace(namespace)) => {
                self.compiler.describe_namespace(&namespace.name, Some(&namespace.labels));
            }
            Some(Stored::Pod(pod)) if pod.host_network => {
                self.host_pods.insert(pod.name.clone());
                self.compiler.remove_pod(&pod.name);
            }
            Some(Stored::Pod(pod)) => {
                self.host_pods.remove(&pod.name);
                self.compiler.put_pod(pod);
            }
            Some(Stored::FinishedPod(name)) => self.forget_pod(&name),
            Some(Stored::Policy(policy)) => self.compiler.put_policy(policy),
        }
    }

    /// The object with this key is gone.
    pub fn delete(&mut self, key: &Key) {
        self.objects.remove(key);
        match key {
            Key::Namespace(name) => self.compiler.describe_namespace(name, None),
            Key::Node(_) => {}
            Key::Pod(name) => self.forget_pod(name),
            Key::Policy(name) => self.compiler.remove_policy(name),
        }
    }

    fn forget_pod(&mut self, name: &NamespacedName) {
        self.host_pods.remove(name);
        self.compiler.remove_pod(name);
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
        self.compiler.commit()
    }

    /// Everything that a node has been told by the commits so far, as a change from nothing.
    ///
    /// Ask it after a [`commit`](Self::commit), before anything is applied: what is applied is in some sets at once, and
    /// the next commit would tell it a second time.
    pub fn state(&self, node: &str) -> NodeDelta {
        self.compiler.state(node)
    }
}
