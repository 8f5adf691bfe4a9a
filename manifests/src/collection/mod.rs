//! Files that change one by one, and what that changes about the objects.
//!
//! ```text
//!   put(position, bytes) ──decode that file──▶ File { objects, who they are, what is wrong }
//!   remove(position)                               │ merged: twins, pods of workloads, states of pods
//!                                                  ▼
//!   commit() ──▶ Changes: objects to apply, keys to delete; or all Errors, and nothing changes
//! ```
//!
//! Whoever follows the changes has what a decoding of all files gives: [`decode`](crate::decode()) and this are held
//! together by a test over random histories. Neither the bytes nor the objects are kept: of each file a digest, who its
//! objects are and where they stand, and what other files' meaning depends on.

mod listing;
mod objects;
mod states;

use std::collections::BTreeMap;
use std::sync::Arc;

use moat_policies::{Key, NamespacedName, Object};

use crate::error::{Error, Errors, Warning};
use crate::fields::MOST_TOLD;
use crate::fingerprint::{Fingerprint, digest};
use crate::source::{Part, Position};
use crate::status::PodStatus;

use objects::ObjectFiles;
use states::StateFiles;

/// The files that there are.
#[derive(Default)]
pub struct Collection {
    objects: ObjectFiles,
    states: StateFiles,
    fingerprint: Fingerprint,
}

/// What became different.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Objects that are there, new or in place of the one with their key. Some may be as they were.
    pub apply: Vec<Object>,
    /// Objects that are gone, unless they are in `apply`.
    pub delete: Vec<Key>,
    /// States of pods that are to be put over the pods of their names, or no longer.
    pub states: BTreeMap<NamespacedName, Option<PodStatus>>,
    /// What is odd in the files that changed.
    pub warnings: Vec<Warning>,
}

impl Changes {
    /// Whether nothing became different.
    pub fn is_empty(&self) -> bool {
        self.apply.is_empty() && self.delete.is_empty() && self.states.is_empty()
    }

    /// Whether some object of these is among those that came, changed or went.
    pub fn are_about(&self, these: impl Fn(&Key) -> bool) -> bool {
        self.delete.iter().any(&these) || self.apply.iter().any(|object| these(&object.key()))
    }
}

impl Collection {
    /// No files.
    pub fn new() -> Self {
        Self::default()
    }

    /// A file is there with these bytes. Tells whether that is news.
    pub fn put(&mut self, position: &Position, file: &Arc<str>, bytes: &[u8]) -> bool {
        let new = digest(file, bytes);
        let before = self.digest(position);
        if before == Some(new) {
            return false;
        }
        match position.part() {
            Part::Manifests => self.objects.put(position, file, new, bytes),
            Part::PodStatus => self.states.put(position, file, new, bytes),
        }
        before.into_iter().for_each(|before| self.fingerprint.remove(before));
        self.fingerprint.add(new);
        true
    }

    /// A file, or a folder, is there and cannot be read.
    pub fn fail(&mut self, position: &Position, error: Error) {
        let before = self.digest(position);
        before.into_iter().for_each(|before| self.fingerprint.remove(before));
        match position.part() {
            Part::Manifests => self.objects.fail(position, error),
            Part::PodStatus => self.states.fail(position, error),
        }
    }

    /// There is no such file any more. Tells whether there was one.
    pub fn remove(&mut self, position: &Position) -> bool {
        let before = self.digest(position);
        before.into_iter().for_each(|before| self.fingerprint.remove(before));
        match position.part() {
            Part::Manifests => self.objects.remove(position),
            Part::PodStatus => self.states.remove(position),
        }
    }

    /// Where files are, and what could not be read.
    pub fn positions(&self) -> impl Iterator<Item = &Position> {
        self.objects.positions().chain(self.states.positions())
    }

    /// Names what all files hold, as [`fingerprint`](crate::fingerprint()) does.
    pub fn fingerprint(&self) -> String {
        self.fingerprint.to_string()
    }

    /// What became different since this last succeeded; or all that is wrong with the files as they are now.
    pub fn commit(&mut self) -> Result<Changes, Errors> {
        let (workloads, mut errors) = self.objects.look();
        errors.extend(self.states.errors());
        errors.truncate(MOST_TOLD);
        Errors::or(errors, ())?;
        let mut changes = Changes { states: self.states.commit(), ..Changes::default() };
        self.objects.commit(workloads, &mut changes);
        Ok(changes)
    }

    fn digest(&self, position: &Position) -> Option<u128> {
        match position.part() {
            Part::Manifests => self.objects.digest(position),
            Part::PodStatus => self.states.digest(position),
        }
    }
}
