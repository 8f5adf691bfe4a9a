//! Equal strings and labels of many objects, each once in memory.

use std::hash::Hash;
use std::sync::Arc;

use hashbrown::HashSet;

use crate::{Labels, NamespacedName, Pod};

/// What pods have in common: names of namespaces and nodes, labels, names of ports. A cluster's pods have mostly the same.
///
/// It keeps what it was shown as long as anybody else does, and a while longer.
#[derive(Debug, Default)]
pub struct Sharing {
    texts: Shared<Arc<str>>,
    labels: Shared<Labels>,
}

impl Sharing {
    /// Nothing is known yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets a name share its namespace's.
    pub fn share_name(&mut self, name: &mut NamespacedName) {
        self.texts.share(&mut name.namespace);
    }

    /// Lets a pod share what others have, too; and lets go of room that it does not need.
    pub fn share(&mut self, pod: &mut Pod) {
        self.share_name(&mut pod.name);
        pod.node.iter_mut().for_each(|node| self.texts.share(node));
        self.labels.share(&mut pod.labels);
        for port in &mut pod.ports {
            port.name.iter_mut().for_each(|name| self.texts.share(name));
        }
        pod.ports.shrink_to_fit();
        pod.addresses.shrink_to_fit();
    }
}

/// Values, each once.
#[derive(Clone, Debug)]
pub(crate) struct Shared<T> {
    all: HashSet<T>,
    /// How many there may be before those are let go of that nobody else has.
    most: usize,
}

/// As many are kept whoever else has them: below that it is not worth a look.
const FEW: usize = 1024;

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self { all: HashSet::new(), most: FEW }
    }
}

impl<T: Clone + Eq + Hash + Sole> Shared<T> {
    fn share(&mut self, value: &mut T) {
        if let Some(same) = self.all.get(value) {
            *value = same.clone();
            return;
        }
        if self.all.len() >= self.most {
            self.all.retain(|value| !value.is_sole());
            self.most = FEW.max(2 * self.all.len());
        }
        self.all.insert(value.clone());
    }

    /// The one that is equal to this.
    pub(crate) fn one(&mut self, mut value: T) -> T {
        self.share(&mut value);
        value
    }
}

/// What can tell that nobody else has it.
pub(crate) trait Sole {
    fn is_sole(&self) -> bool;
}

impl<T: ?Sized> Sole for Arc<T> {
    fn is_sole(&self) -> bool {
        Arc::strong_count(self) == 1
    }
}

impl Sole for Labels {
    fn is_sole(&self) -> bool {
        Labels::is_sole(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_one_and_those_that_nobody_has_go() {
        let mut shared = Shared::default();
        let mut kept: Vec<Arc<str>> = Vec::new();
        for n in 0..10 * FEW {
            let mut text: Arc<str> = format!("{}", n / 2).into();
            shared.share(&mut text);
            if n < 10 {
                kept.push(text);
            }
        }
        assert!(Arc::ptr_eq(&kept[0], &kept[1]) && !Arc::ptr_eq(&kept[1], &kept[2]));
        assert!(shared.all.len() <= FEW);
        assert!(kept.iter().all(|text| shared.all.contains(text)));
    }
}
