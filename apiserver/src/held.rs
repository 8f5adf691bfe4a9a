//! What is in the cluster, by name and version, and what a list or a watch changes about it. Synchronous, and without a clock.
//!
//! Whatever comes, however often and in whatever order, what was handed on in the end is what the API server has. A list is
//! always believed. Of a watch, versions tell what is news: an object's versions grow, and where that leaves open what happened,
//! the kind is listed again.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use moat_manifests::Changes;
use moat_policies::{Key, NamespacedName, Object, Sharing};
use tracing::error;

use crate::PolicyNote;

/// An object as some version of it was.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    /// `metadata.resourceVersion`.
    pub version: Arc<str>,
    /// What the engine takes of it.
    pub object: Object,
    /// What is to be said about it, if it is a policy.
    pub note: Option<Box<PolicyNote>>,
}

/// What is heard of one kind.
#[derive(Clone, Debug)]
pub enum Heard {
    /// A list begins; one that was begun before is void.
    Begin,
    /// The list has this.
    Listed(Said),
    /// The list is complete, and of this version of the cluster.
    End(Arc<str>),
    /// This is there, new or changed.
    Applied(Said),
    /// This was there last, and is gone.
    Deleted(Said),
}

/// What happened cannot be told from the watch alone: the kind is to be listed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfOrder;

/// What became different.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct News {
    /// For the engine.
    pub changes: Changes,
    /// What there is to be said about policies that came or changed; `None`: nothing any more.
    pub notes: BTreeMap<NamespacedName, Option<PolicyNote>>,
    /// The policies and namespaces that came, changed or went, with their versions.
    pub versions: Vec<Versioned>,
}

/// The versions of an object before and after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// A policy or a namespace.
    pub key: Key,
    /// Its version that the last news had; `None`: there was none.
    pub before: Option<Arc<str>>,
    /// Its version now; `None`: it is gone.
    pub now: Option<Arc<str>>,
}

/// All kinds.
#[derive(Default)]
pub struct Held {
    kinds: [Kept; 5],
    /// What has not been handed on yet: the newest of each object.
    fresh: HashMap<Key, Option<Said>>,
    /// The versions of policies and namespaces that the last news had.
    told: HashMap<Key, Arc<str>>,
    /// The policies about which there is something to be said.
    noted: BTreeMap<NamespacedName, Arc<str>>,
    /// There has been news.
    begun: bool,
    sharing: Sharing,
}

/// The objects of one kind.
#[derive(Default)]
struct Kept {
    there: HashMap<Key, Entry>,
    /// Counts lists: whatever is not in the newest is gone.
    round: u32,
    /// What the list that is under way has, and is not there already.
    listed: Option<Vec<Said>>,
    /// There has been a whole list.
    complete: bool,
    /// Whatever is not there and older than this is gone: the version of the last list, or of a later deletion.
    gone: u64,
}

struct Entry {
    version: Arc<str>,
    round: u32,
}

impl Held {
    /// Nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in what was heard of the kind of that number; `numbers` are the caller's, from 0 to 4.
    pub fn take(&mut self, kind: usize, heard: Heard) -> Result<(), OutOfOrder> {
        let kept = &mut self.kinds[kind];
        let (sharing, fresh) = (&mut self.sharing, &mut self.fresh);
        let mut tell = |key: Key, said: Option<Said>| drop(fresh.insert(key, said));
        match heard {
            Heard::Begin => {
                kept.round = kept.round.wrapping_add(1);
                kept.listed = Some(Vec::new());
            }
            Heard::Listed(said) => kept.list(shared(said, sharing)),
            Heard::End(version) => {
                for said in kept.listed.take().into_iter().flatten() {
                    let (key, round) = (said.object.key(), kept.round);
                    kept.there.insert(key.clone(), Entry { version: said.version.clone(), round });
                    tell(key, Some(said));
                }
                let round = kept.round;
                kept.there.extract_if(|_, entry| entry.round != round).for_each(|(key, _)| tell(key, None));
                kept.complete = true;
                kept.gone = number(&version).unwrap_or(0);
            }
            Heard::Applied(said) => {
                let said = shared(said, sharing);
                let key = said.object.key();
                if kept.is_news(&key, &said.version)? {
                    let entry = Entry { version: said.version.clone(), round: kept.round };
                    kept.there.insert(key.clone(), entry);
                    tell(key, Some(said));
                }
            }
            Heard::Deleted(said) => {
                let key = said.object.key();
                kept.gone = kept.gone.max(number(&said.version).unwrap_or(0));
                if kept.there.get(&key).is_some_and(|held| !is_older(&said.version, &held.version)) {
                    kept.there.remove(&key);
                    tell(key, None);
                }
            }
        }
        Ok(())
    }

    /// Whether all kinds have been listed.
    pub fn is_complete(&self) -> bool {
        self.kinds.iter().all(|kept| kept.complete)
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.kinds.iter().map(|kept| kept.there.len()).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What became different since the last news; the first of them is everything. `None`: nothing has, or not all kinds have been
    /// listed yet: half the objects would be another policy.
    pub fn news(&mut self) -> Option<News> {
        if !self.is_complete() || (self.begun && self.fresh.is_empty()) {
            return None;
        }
        self.begun = true;
        let mut news = News::default();
        for (key, said) in std::mem::take(&mut self.fresh) {
            if let (Key::Config, Some(note)) = (&key, said.as_ref().and_then(|said| said.note.as_ref())) {
                // The last good one stays, and that is what the versions say.
                note.refused
                    .iter()
                    .for_each(|finding| error!("NetworkConfig refused, the last stays: {finding}"));
                continue;
            }
            self.version_of(&key, said.as_ref(), &mut news);
            let (object, note) = said.map(|said| (said.object, said.note)).unzip();
            if let Key::Policy(name) = &key {
                self.note(name, note.flatten(), &mut news);
            }
            match object {
                Some(object) => news.changes.apply.push(object),
                None => news.changes.delete.push(key),
            }
        }
        Some(news)
    }

    fn version_of(&mut self, key: &Key, said: Option<&Said>, news: &mut News) {
        if matches!(key, Key::Pod(_) | Key::Node(_)) {
            return;
        }
        let now = said.map(|said| said.version.clone());
        let before = match &now {
            Some(version) => self.told.insert(key.clone(), version.clone()),
            None => self.told.remove(key),
        };
        if before != now {
            news.versions.push(Versioned { key: key.clone(), before, now });
        }
    }

    fn note(&mut self, name: &NamespacedName, note: Option<Box<PolicyNote>>, news: &mut News) {
        let before = match &note {
            Some(note) => self.noted.insert(name.clone(), note.version.clone()),
            None => self.noted.remove(name),
        };
        if note.is_some() || before.is_some() {
            news.notes.insert(name.clone(), note.map(|note| *note));
        }
    }
}

impl Kept {
    fn list(&mut self, said: Said) {
        let Some(listed) = &mut self.listed else { return };
        match self.there.get_mut(&said.object.key()) {
            // One version of an object is always the same.
            Some(entry) if !said.version.is_empty() && entry.version == said.version => {
                entry.round = self.round
            }
            _ => listed.push(said),
        }
    }

    fn is_news(&self, key: &Key, version: &Arc<str>) -> Result<bool, OutOfOrder> {
        match self.there.get(key) {
            Some(held) => Ok(held.version != *version && !is_older(version, &held.version)),
            // It is from before its own deletion, or that of another object has overtaken it.
            None if number(version).is_some_and(|version| version < self.gone) => Err(OutOfOrder),
            None => Ok(true),
        }
    }
}

/// The number that a version is. Kubernetes says since 1.35 that versions can be compared as numbers, and they always could be;
/// where some server has others, what comes is believed in the order in which it comes.
fn number(version: &str) -> Option<u64> {
    version.parse().ok()
}

fn is_older(one: &str, other: &str) -> bool {
    matches!((number(one), number(other)), (Some(one), Some(other)) if one < other)
}

fn shared(mut said: Said, sharing: &mut Sharing) -> Said {
    match &mut said.object {
        Object::Pod(pod) => sharing.share(pod),
        Object::Policy(policy) => sharing.share_name(&mut policy.name),
        Object::Namespace(_) | Object::Node(_) | Object::Config(_) => {}
    }
    said
}
