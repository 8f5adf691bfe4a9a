//! An inverted index of selectors: which of very many can match these labels?
//!
//! Each selector hangs on one anchor: a value of its shortest `In`, else the key of an `Exists`, else nothing. An
//! object's labels lead to the few selectors whose anchor it has. `P` keeps selectors of different places apart.

use std::hash::Hash;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::{Operator, Selector};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Anchor {
    Label(Arc<str>, Arc<str>),
    Key(Arc<str>),
    Nothing,
}

pub(super) struct SelectorIndex<P, S> {
    anchored: HashMap<(P, Anchor), Vec<S>>,
}

impl<P, S> Default for SelectorIndex<P, S> {
    fn default() -> Self {
        Self { anchored: HashMap::default() }
    }
}

impl<P: Copy + Eq + Hash, S: Copy + Eq> SelectorIndex<P, S> {
    pub(super) fn insert(&mut self, place: P, selector: &Selector, id: S) {
        for anchor in anchors(selector) {
            self.anchored.entry((place, anchor)).or_default().push(id);
        }
    }

    pub(super) fn remove(&mut self, place: P, selector: &Selector, id: S) {
        for anchor in anchors(selector) {
            let key = (place, anchor);
            if let Some(ids) = self.anchored.get_mut(&key) {
                ids.retain(|i| *i != id);
                if ids.is_empty() {
                    self.anchored.remove(&key);
                }
            }
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.anchored.is_empty()
    }

    /// Calls `found` once with each selector of `place` that may match; the rest cannot.
    pub(super) fn candidates<'a>(
        &self,
        place: P,
        labels: impl Iterator<Item = (&'a Arc<str>, &'a Arc<str>)>,
        mut found: impl FnMut(S),
    ) {
        let mut look = |anchor| {
            if let Some(ids) = self.anchored.get(&(place, anchor)) {
                ids.iter().copied().for_each(&mut found);
            }
        };
        look(Anchor::Nothing);
        for (key, value) in labels {
            look(Anchor::Label(key.clone(), value.clone()));
            look(Anchor::Key(key.clone()));
        }
    }
}

fn anchors(selector: &Selector) -> Vec<Anchor> {
    let requirements = selector.requirements();
    let shortest_in =
        requirements.iter().filter(|r| r.operator() == Operator::In).min_by_key(|r| r.values().len());
    if let Some(r) = shortest_in {
        return r.values().iter().map(|v| Anchor::Label(r.key().clone(), v.clone())).collect();
    }
    match requirements.iter().find(|r| r.operator() == Operator::Exists) {
        Some(r) => vec![Anchor::Key(r.key().clone())],
        None => vec![Anchor::Nothing],
    }
}
