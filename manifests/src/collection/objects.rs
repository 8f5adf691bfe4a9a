//! Files that describe objects, and what of their meaning lies between them: an object described twice, and the pods
//! that workloads stand for.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::BuildHasher as _;
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashTable};
use moat_policies::{Key, NamespacedName, Object, Pod, Sharing};
use slab::Slab;

use super::Changes;
use super::listing::{Listing, Who};
use crate::decode::{Decoder, Identity};
use crate::error::{Error, Place, Warning};
use crate::source::Position;
use crate::stack::on_a_deep_stack;
use crate::workload::{Owner, Template, expand};

#[derive(Default)]
pub(super) struct ObjectFiles {
    files: Slab<File>,
    order: BTreeMap<Position, usize>,
    /// Who is described where.
    index: HashTable<Slot>,
    hasher: DefaultHashBuilder,
    sharing: Sharing,
    /// Who is described more than once.
    twins: BTreeSet<Identity>,
    faulty: BTreeSet<Position>,
    /// Files of which nothing was told yet.
    fresh: BTreeSet<usize>,
    /// Who was told and may be gone.
    gone: BTreeSet<Key>,
    /// How many workloads there are.
    templates: usize,
    /// Workloads, nodes or pods changed since the last commit.
    population: bool,
    /// The pods that workloads stood for at the last commit.
    expanded: BTreeMap<NamespacedName, Pod>,
}

/// One place of an object: which file, and which of its entries.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Slot {
    file: u32,
    at: u32,
}

/// What is kept of a file.
#[derive(Default)]
struct File {
    name: Arc<str>,
    /// `None`: it could not be read.
    digest: Option<u128>,
    listing: Listing,
    templates: Vec<(Template, Place)>,
    errors: Vec<Error>,
    /// Until they are told.
    objects: Vec<Object>,
    warnings: Vec<Warning>,
    told: bool,
}

/// The pods that workloads stand for now, where that may have changed.
pub(super) type Workloads = Option<BTreeMap<NamespacedName, Pod>>;

impl ObjectFiles {
    pub(super) fn digest(&self, position: &Position) -> Option<u128> {
        self.files[*self.order.get(position)?].digest
    }

    pub(super) fn positions(&self) -> impl Iterator<Item = &Position> {
        self.order.keys()
    }

    pub(super) fn put(&mut self, position: &Position, name: &Arc<str>, digest: u128, bytes: &[u8]) {
        let mut decoder = Decoder::default();
        on_a_deep_stack(|| decoder.file(name, bytes));
        let Decoder { mut objects, templates, owned, seen, errors, warnings, .. } = decoder;
        let sharing = &mut self.sharing;
        for object in &mut objects {
            if let Object::Pod(pod) = object {
                sharing.share(pod);
            }
        }
        let listing = Listing::new(seen, owned);
        let digest = Some(digest);
        let name = name.clone();
        let told = false;
        self.insert(position, File { name, digest, listing, templates, errors, objects, warnings, told });
    }

    pub(super) fn fail(&mut self, position: &Position, error: Error) {
        self.insert(position, File { errors: vec![error], ..File::default() });
    }

    fn insert(&mut self, position: &Position, file: File) {
        self.remove(position);
        self.population |= file.listing.is_population();
        self.templates += file.templates.len();
        if !file.errors.is_empty() {
            self.faulty.insert(position.clone());
        }
        let ix = self.files.insert(file);
        self.order.insert(position.clone(), ix);
        self.fresh.insert(ix);
        let files = &self.files;
        let hash = |slot: &Slot| self.hasher.hash_one(slot.who(files));
        for at in 0..files[ix].listing.len() {
            let slot = Slot { file: ix as u32, at: at as u32 };
            let who = slot.who(files);
            if self.index.find(hash(&slot), |other| other.who(files) == who).is_some() {
                self.twins.insert(who.identity());
            }
            self.index.insert_unique(hash(&slot), slot, hash);
        }
    }

    pub(super) fn remove(&mut self, position: &Position) -> bool {
        let Some(ix) = self.order.remove(position) else { return false };
        self.faulty.remove(position);
        self.fresh.remove(&ix);
        let files = &self.files;
        for at in 0..files[ix].listing.len() {
            let slot = Slot { file: ix as u32, at: at as u32 };
            let who = slot.who(files);
            if let Ok(entry) = self.index.find_entry(self.hasher.hash_one(who), |other| *other == slot) {
                entry.remove();
            }
            if !self.twins.is_empty() && self.places(who).len() < 2 {
                self.twins.remove(&who.identity());
            }
        }
        let file = self.files.remove(ix);
        self.population |= file.listing.is_population();
        self.templates -= file.templates.len();
        if file.told {
            self.gone.extend(file.listing.all().filter_map(Who::key));
        }
        true
    }

    /// All that is wrong; and the workloads' pods, which can be wrong, too.
    pub(super) fn look(&self) -> (Workloads, Vec<Error>) {
        let mut errors: Vec<(&Position, Error)> = Vec::new();
        for position in &self.faulty {
            let of_file = &self.files[self.order[position]].errors;
            errors.extend(of_file.iter().map(|error| (position, error.clone())));
        }
        if !self.twins.is_empty() {
            let positions: BTreeMap<usize, &Position> = self.order.iter().map(|(p, ix)| (*ix, p)).collect();
            for identity in &self.twins {
                let mut slots = self.places(identity.into());
                slots.sort_unstable_by_key(|slot| (positions[&(slot.file as usize)], slot.at));
                let first = slots[0].place(&self.files);
                errors.extend(slots[1..].iter().map(|slot| {
                    let (place, object) = (slot.place(&self.files), identity.to_string());
                    (positions[&(slot.file as usize)], Error::Twice { place, object, first: first.clone() })
                }));
            }
        }
        errors.sort_by_key(|(position, _)| *position);
        let mut errors: Vec<Error> = errors.into_iter().map(|(_, error)| error).collect();
        let changed = self.population && (self.templates > 0 || !self.expanded.is_empty());
        (changed.then(|| self.expand(&mut errors)), errors)
    }

    /// Tells what became different. Only after a look that found nothing wrong.
    pub(super) fn commit(&mut self, workloads: Workloads, changes: &mut Changes) {
        for ix in std::mem::take(&mut self.fresh) {
            let file = &mut self.files[ix];
            file.told = true;
            changes.apply.append(&mut std::mem::take(&mut file.objects));
            changes.warnings.append(&mut std::mem::take(&mut file.warnings));
        }
        self.population = false;
        let before = workloads.map(|now| std::mem::replace(&mut self.expanded, now));
        if let Some(before) = before {
            let news = self.expanded.iter().filter(|(name, pod)| before.get(*name) != Some(*pod));
            changes.apply.extend(news.map(|(_, pod)| Object::Pod(pod.clone())));
            let ends = before.into_keys().filter(|name| !self.expanded.contains_key(name));
            self.gone.extend(ends.map(Key::Pod));
        }
        let gone = std::mem::take(&mut self.gone);
        changes.delete.extend(gone.into_iter().filter(|key| !self.is_there(key)));
    }

    fn is_there(&self, key: &Key) -> bool {
        let expanded = matches!(key, Key::Pod(name) if self.expanded.contains_key(name));
        expanded || !self.places(key.into()).is_empty()
    }

    /// The pods that workloads stand for now.
    fn expand(&self, errors: &mut Vec<Error>) -> BTreeMap<NamespacedName, Pod> {
        let files = || self.order.values().map(|ix| &self.files[*ix]);
        let mut nodes = BTreeSet::new();
        let mut owned: BTreeMap<Owner, Vec<NamespacedName>> = BTreeMap::new();
        for file in files() {
            nodes.extend(file.listing.all().filter_map(Who::node).map(Arc::from));
            for (owner, pods) in file.listing.owned() {
                owned.entry(owner.clone()).or_default().extend(pods);
            }
        }
        let mut twins = BTreeSet::new();
        let (templates, places): (Vec<&Template>, Vec<&Place>) = files()
            .flat_map(|file| &file.templates)
            .map(|(template, place)| (template, place))
            // Of a workload that is described twice, the first counts until that is mended.
            .filter(|(template, _)| {
                let identity = template.identity();
                !self.twins.contains(&identity) || twins.insert(identity)
            })
            .unzip();
        let mut all: BTreeMap<NamespacedName, (Pod, &Place)> = BTreeMap::new();
        for (template, pod) in expand(&templates, &nodes, &owned).pods {
            let identity = Identity::Object(Key::Pod(pod.name.clone()));
            let described = self.places((&identity).into()).first().map(|slot| slot.place(&self.files));
            match described.or_else(|| all.get(&pod.name).map(|(_, place)| (*place).clone())) {
                None => drop(all.insert(pod.name.clone(), (pod, places[template]))),
                Some(first) => {
                    let (place, object) = (places[template].clone(), identity.to_string());
                    errors.push(Error::Twice { place, object, first });
                }
            }
        }
        all.into_iter().map(|(name, (pod, _))| (name, pod)).collect()
    }

    fn places(&self, who: Who<'_>) -> Vec<Slot> {
        let hash = self.hasher.hash_one(who);
        let same = |slot: &&Slot| slot.who(&self.files) == who;
        self.index.iter_hash(hash).filter(same).copied().collect()
    }
}

impl Slot {
    fn who(self, files: &Slab<File>) -> Who<'_> {
        files[self.file as usize].listing.who(self.at as usize)
    }

    fn place(self, files: &Slab<File>) -> Place {
        let file = &files[self.file as usize];
        file.listing.place(self.at as usize, &file.name)
    }
}
