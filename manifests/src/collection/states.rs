//! Files that hold states of pods. Where several speak of one pod, the last of them counts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use moat_policies::NamespacedName;

use crate::error::Error;
use crate::source::Position;
use crate::stack::on_a_deep_stack;
use crate::status::{PodStatus, decode_states};

#[derive(Default)]
pub(super) struct StateFiles {
    files: BTreeMap<Position, File>,
    /// Which files speak of a pod.
    by_pod: BTreeMap<NamespacedName, BTreeSet<Position>>,
    faulty: BTreeSet<Position>,
    /// Files of which nothing was told yet.
    fresh: BTreeSet<Position>,
    /// Pods whose state was told and may be another now.
    touched: BTreeSet<NamespacedName>,
}

#[derive(Default)]
struct File {
    /// `None`: it could not be read.
    digest: Option<u128>,
    states: BTreeMap<NamespacedName, PodStatus>,
    errors: Vec<Error>,
    told: bool,
}

impl StateFiles {
    pub(super) fn digest(&self, position: &Position) -> Option<u128> {
        self.files.get(position)?.digest
    }

    pub(super) fn positions(&self) -> impl Iterator<Item = &Position> {
        self.files.keys()
    }

    pub(super) fn put(&mut self, position: &Position, name: &Arc<str>, digest: u128, bytes: &[u8]) {
        let (mut found, mut errors) = (Vec::new(), Vec::new());
        on_a_deep_stack(|| decode_states(name, bytes, &mut found, &mut errors));
        let states = found.into_iter().map(|state| (state.name.clone(), state)).collect();
        self.insert(position, File { digest: Some(digest), states, errors, told: false });
    }

    pub(super) fn fail(&mut self, position: &Position, error: Error) {
        self.insert(position, File { errors: vec![error], ..File::default() });
    }

    fn insert(&mut self, position: &Position, file: File) {
        self.remove(position);
        for pod in file.states.keys() {
            self.by_pod.entry(pod.clone()).or_default().insert(position.clone());
        }
        if !file.errors.is_empty() {
            self.faulty.insert(position.clone());
        }
        self.fresh.insert(position.clone());
        self.files.insert(position.clone(), file);
    }

    pub(super) fn remove(&mut self, position: &Position) -> bool {
        let Some(file) = self.files.remove(position) else { return false };
        self.faulty.remove(position);
        self.fresh.remove(position);
        for pod in file.states.into_keys() {
            if let Some(files) = self.by_pod.get_mut(&pod) {
                files.remove(position);
                if files.is_empty() {
                    self.by_pod.remove(&pod);
                }
            }
            if file.told {
                self.touched.insert(pod);
            }
        }
        true
    }

    pub(super) fn errors(&self) -> impl Iterator<Item = Error> {
        self.faulty.iter().flat_map(|position| self.files[position].errors.iter().cloned())
    }

    /// The states that became different. Only where nothing is wrong.
    pub(super) fn commit(&mut self) -> BTreeMap<NamespacedName, Option<PodStatus>> {
        let mut pods = std::mem::take(&mut self.touched);
        for position in std::mem::take(&mut self.fresh) {
            if let Some(file) = self.files.get_mut(&position) {
                file.told = true;
                pods.extend(file.states.keys().cloned());
            }
        }
        let state = |pod: &NamespacedName| {
            let last = self.by_pod.get(pod)?.last()?;
            self.files.get(last)?.states.get(pod).cloned()
        };
        pods.into_iter().map(|pod| (pod.clone(), state(&pod))).collect()
    }
}
