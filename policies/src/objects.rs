//! The objects themselves, as they were handed over: what `evaluate` reads.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use crate::pods::{PodIx, Put};
use crate::{Key, Labels, Namespace, NamespacedName, NetworkConfig, NetworkPolicy, Node, Object, Pod, Pods};

/// The label that every namespace has, with its own name.
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// All objects, by kind and name.
///
/// Holds no finished pod: storing one removes it. A namespace always has [`NAMESPACE_NAME_LABEL`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    namespaces: BTreeMap<Arc<str>, Namespace>,
    nodes: BTreeMap<Arc<str>, Node>,
    pods: Pods,
    policies: BTreeMap<NamespacedName, NetworkPolicy>,
    config: Option<NetworkConfig>,
}

impl Objects {
    /// No objects.
    pub fn new() -> Self {
        Self::default()
    }

    /// Stores an object in place of the one with its key.
    pub fn insert(&mut self, object: Object) {
        self.store(object);
    }

    /// The same; tells what is stored now, or nothing where that changes nothing.
    pub(crate) fn store(&mut self, object: Object) -> Option<Stored<'_>> {
        match object {
            Object::Namespace(mut namespace) => {
                name_label(&mut namespace.labels, &namespace.name);
                put(&mut self.namespaces, namespace.name.clone(), namespace).map(Stored::Namespace)
            }
            Object::Node(node) => put(&mut self.nodes, node.name.clone(), node).map(|_| Stored::Other),
            Object::Pod(pod) if pod.finished => {
                let (place, before) = self.pods.remove(&pod.name)?;
                Some(Stored::FinishedPod(place, before))
            }
            Object::Pod(pod) => self.pods.put(pod).map(Stored::Pod),
            Object::Policy(policy) => {
                put(&mut self.policies, policy.name.clone(), policy).map(Stored::Policy)
            }
            Object::Config(config) => (self.config.replace(config) != self.config).then_some(Stored::Other),
        }
    }

    /// Removes the object with this key, if there is one.
    pub fn remove(&mut self, key: &Key) {
        match key {
            Key::Namespace(name) => drop(self.namespaces.remove(name)),
            Key::Node(name) => drop(self.nodes.remove(name)),
            Key::Pod(name) => drop(self.remove_pod(name)),
            Key::Policy(name) => drop(self.policies.remove(name)),
            Key::Config => self.config = None,
        }
    }

    /// Removes a pod. Tells what it was.
    pub(crate) fn remove_pod(&mut self, name: &NamespacedName) -> Option<(PodIx, Pod)> {
        self.pods.remove(name)
    }

    /// All objects, by kind and name.
    pub fn into_objects(self) -> impl Iterator<Item = Object> {
        let namespaces = self.namespaces.into_values().map(Object::Namespace);
        let nodes = self.nodes.into_values().map(Object::Node);
        let policies = self.policies.into_values().map(Object::Policy);
        let pods: Vec<Object> = self.pods.iter().map(Object::Pod).collect();
        namespaces.chain(nodes).chain(pods).chain(policies).chain(self.config.map(Object::Config))
    }

    /// The keys of all objects.
    pub fn keys(&self) -> impl Iterator<Item = Key> {
        let namespaces = self.namespaces.keys().cloned().map(Key::Namespace);
        let nodes = self.nodes.keys().cloned().map(Key::Node);
        let pods = self.pods.names().map(Key::Pod);
        let policies = self.policies.keys().cloned().map(Key::Policy);
        namespaces.chain(nodes).chain(pods).chain(policies).chain(self.config.iter().map(|_| Key::Config))
    }

    /// The namespaces, by name.
    pub fn namespaces(&self) -> &BTreeMap<Arc<str>, Namespace> {
        &self.namespaces
    }

    /// The nodes, by name.
    pub fn nodes(&self) -> &BTreeMap<Arc<str>, Node> {
        &self.nodes
    }

    /// The pods that have not finished.
    pub fn pods(&self) -> &Pods {
        &self.pods
    }

    /// The policies, by name.
    pub fn policies(&self) -> &BTreeMap<NamespacedName, NetworkPolicy> {
        &self.policies
    }

    /// The NetworkConfig, if there is one.
    pub fn config(&self) -> Option<&NetworkConfig> {
        self.config.as_ref()
    }

    /// The labels of a namespace. One that no object describes has its name for a label: pods can be in it.
    pub fn namespace_labels(&self, name: &Arc<str>) -> Labels {
        self.namespaces.get(name).map(|n| n.labels.clone()).unwrap_or_else(|| implied_labels(name))
    }
}

impl FromIterator<Object> for Objects {
    fn from_iter<I: IntoIterator<Item = Object>>(objects: I) -> Self {
        let mut all = Self::new();
        objects.into_iter().for_each(|o| all.insert(o));
        all
    }
}

/// An object that was stored.
pub(crate) enum Stored<'o> {
    Namespace(&'o Namespace),
    /// Nothing that policy depends on.
    Other,
    Pod(Put),
    /// A pod that was there and has finished is gone: where and what it was.
    FinishedPod(PodIx, Pod),
    Policy(&'o NetworkPolicy),
}

fn put<K: Ord, V: PartialEq>(all: &mut BTreeMap<K, V>, key: K, value: V) -> Option<&V> {
    match all.entry(key) {
        Entry::Vacant(vacant) => Some(vacant.insert(value)),
        Entry::Occupied(occupied) if *occupied.get() == value => None,
        Entry::Occupied(occupied) => {
            let place = occupied.into_mut();
            *place = value;
            Some(place)
        }
    }
}

/// The labels of a namespace that no object describes.
pub(crate) fn implied_labels(namespace: &Arc<str>) -> Labels {
    let mut labels = Labels::new();
    name_label(&mut labels, namespace);
    labels
}

fn name_label(labels: &mut Labels, name: &Arc<str>) {
    labels.insert(Arc::from(NAMESPACE_NAME_LABEL), name.clone());
}
