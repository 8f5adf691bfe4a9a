//! Who is in which group: pods by their labels, groups by their selectors, both ways kept up to date.
//!
//! ```text
//!   namespace ──labels──▶ scope  (one namespace, or those that a namespaceSelector selects)
//!       │                   │ + podSelector
//!       ▼                   ▼
//!    profile ────────────▶ group (what subjects and peers are made of)
//!       ▲ namespace, labels and named ports that pods share
//!      pod
//! ```
//!
//! Pods with equal labels are told apart by nothing that a policy can say, so groups hold profiles, not pods: a pod
//! more in a Deployment costs no selector at all.

mod scopes;

use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashMap, HashSet, HashTable};

use self::scopes::{NamespaceEntry, Scope, ScopeKind};
use super::arena::{Arena, Ix};
use super::programs::Recipe;
use super::selector_index::SelectorIndex;
use super::sets::Set;
use super::subjects::Subject;
use crate::hash::ContentHash;
use crate::pods::PodIx;
use crate::{ContainerPort, Labels, NamespaceScope, Operator, Protocol, Selector, objects};

pub(super) type NamespaceIx = Ix<NamespaceEntry>;
pub(super) type ScopeIx = Ix<Scope>;
pub(super) type GroupIx = Ix<Group>;
pub(super) type ProfileIx = Ix<Profile>;

/// The pods that a podSelector selects in a scope.
pub(super) struct Group {
    scope: ScopeIx,
    selector: Selector,
    /// Names the group by what it selects, in every process.
    pub(super) id: [u8; 16],
    pub(super) profiles: HashSet<ProfileIx>,
    /// What the policies whose subject it is say; `None` where it is nobody's.
    pub(super) subject: Option<Box<Subject>>,
    /// The allow sets that hold it.
    pub(super) sets: Vec<Ix<Set>>,
    /// How many policies, rules, recipes and sets hold on to it.
    refs: u32,
}

/// What pods have in common that no policy can tell apart.
pub(super) struct Profile {
    namespace: NamespaceIx,
    labels: Box<[(Arc<str>, Arc<str>)]>,
    /// The ports that have a name, sorted, each once.
    pub(super) ports: Box<[NamedPort]>,
    /// Sorted.
    pub(super) groups: Vec<GroupIx>,
    pub(super) pods: HashSet<PodIx>,
    /// By direction, `None` where it is not isolated.
    pub(super) recipes: [Option<Ix<Recipe>>; 2],
    pub(super) dirty: bool,
}

/// A container port by which a rule can ask.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct NamedPort {
    pub(super) name: Arc<str>,
    pub(super) protocol: Protocol,
    pub(super) port: u16,
}

/// A profile whose groups have changed.
pub(super) struct Moved {
    pub(super) profile: ProfileIx,
    pub(super) before: Vec<GroupIx>,
}

#[derive(Default)]
pub(super) struct Membership {
    namespaces: Arena<NamespaceEntry>,
    namespace_by_name: HashMap<Arc<str>, NamespaceIx>,
    scopes: Arena<Scope>,
    scope_by_kind: HashMap<ScopeKind, ScopeIx>,
    selected_scopes: SelectorIndex<(), ScopeIx>,
    pub(super) groups: Arena<Group>,
    group_by_key: HashMap<(ScopeIx, Selector), GroupIx>,
    group_index: SelectorIndex<ScopeIx, GroupIx>,
    pub(super) profiles: Arena<Profile>,
    profile_table: HashTable<ProfileIx>,
    profile_hasher: DefaultHashBuilder,
    /// Profiles by namespace and label: the other way round, for a group that is new.
    postings: HashMap<(NamespaceIx, Arc<str>, Arc<str>), HashSet<ProfileIx>>,
    unused_groups: Vec<GroupIx>,
}

impl Membership {
    /// A namespace object is there, or gone (`None`). Says which profiles are in other groups now.
    pub(super) fn describe_namespace(&mut self, name: &Arc<str>, labels: Option<&Labels>) -> Vec<Moved> {
        let ix = self.namespace(name);
        let namespace = &mut self.namespaces[ix];
        namespace.described = labels.is_some();
        namespace.labels = match labels {
            Some(labels) => labels.clone(),
            None => objects::implied_labels(name),
        };
        let scopes = self.scopes_of(ix);
        let namespace = &mut self.namespaces[ix];
        if namespace.scopes == scopes {
            self.collect_namespace(ix);
            return Vec::new();
        }
        let before = std::mem::replace(&mut namespace.scopes, scopes.clone());
        let profiles: Vec<ProfileIx> = namespace.profiles.iter().copied().collect();
        for scope in before.iter().filter(|s| !scopes.contains(s)) {
            self.scopes[*scope].namespaces.remove(&ix);
        }
        for scope in scopes.iter().filter(|s| !before.contains(s)) {
            self.scopes[*scope].namespaces.insert(ix);
        }
        let moved = profiles.into_iter().filter_map(|profile| self.regroup(profile)).collect();
        self.collect_namespace(ix);
        moved
    }

    /// The group of a policy's subject, or of a peer of a policy in `namespace`. The caller holds on to it.
    pub(super) fn hold_group(
        &mut self,
        namespace: &Arc<str>,
        scope: &NamespaceScope,
        pods: &Selector,
    ) -> GroupIx {
        let scope = self.scope(namespace, scope);
        if let Some(&group) = self.group_by_key.get(&(scope, pods.clone())) {
            self.groups[group].refs += 1;
            return group;
        }
        let id = {
            let mut hash = ContentHash::new("group");
            match &self.scopes[scope].kind {
                ScopeKind::One(name) => hash.text("namespace").text(name),
                ScopeKind::Selected(selector) => hash.text("selected").selector(selector),
            };
            hash.selector(pods).finish()
        };
        let group = self.groups.insert(Group {
            scope,
            selector: pods.clone(),
            id,
            profiles: HashSet::new(),
            subject: None,
            sets: Vec::new(),
            refs: 1,
        });
        self.scopes[scope].refs += 1;
        self.group_by_key.insert((scope, pods.clone()), group);
        self.group_index.insert(scope, pods, group);
        let namespaces: Vec<NamespaceIx> = self.scopes[scope].namespaces.iter().copied().collect();
        for namespace in namespaces {
            for profile in self.profiles_matching(namespace, pods) {
                self.groups[group].profiles.insert(profile);
                let groups = &mut self.profiles[profile].groups;
                if let Err(place) = groups.binary_search(&group) {
                    groups.insert(place, group);
                }
            }
        }
        group
    }

    /// One more holder of a group that somebody holds.
    pub(super) fn hold(&mut self, group: GroupIx) {
        self.groups[group].refs += 1;
    }

    /// One holder less. A group that nobody holds goes at the next [`Membership::collect`].
    pub(super) fn release(&mut self, group: GroupIx) {
        let entry = &mut self.groups[group];
        entry.refs -= 1;
        if entry.refs == 0 {
            self.unused_groups.push(group);
        }
    }

    /// The profile of pods in `namespace` with these labels and ports.
    pub(super) fn profile(
        &mut self,
        namespace: &Arc<str>,
        labels: &Labels,
        ports: &[ContainerPort],
    ) -> ProfileIx {
        let namespace = self.namespace(namespace);
        let mut named: Vec<NamedPort> = ports
            .iter()
            .filter_map(|p| Some(NamedPort { name: p.name.clone()?, protocol: p.protocol, port: p.port }))
            .collect();
        named.sort_unstable();
        named.dedup();
        let hasher = self.profile_hasher.clone();
        let hash = profile_hash(&hasher, namespace, labels.iter(), &named);
        let same = |ix: &ProfileIx| {
            let p = &self.profiles[*ix];
            p.namespace == namespace && *p.ports == *named && p.labels.iter().map(|(k, v)| (k, v)).eq(labels)
        };
        if let Some(&found) = self.profile_table.find(hash, same) {
            return found;
        }
        let profile = self.profiles.insert(Profile {
            namespace,
            labels: labels.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
            ports: named.into(),
            groups: Vec::new(),
            pods: HashSet::new(),
            recipes: [None, None],
            dirty: false,
        });
        let rehash = |ix: &ProfileIx| {
            let p = &self.profiles[*ix];
            profile_hash(&hasher, p.namespace, p.labels.iter().map(|(k, v)| (k, v)), &p.ports)
        };
        self.profile_table.insert_unique(hash, profile, rehash);
        self.namespaces[namespace].profiles.insert(profile);
        for (key, value) in labels {
            self.postings.entry((namespace, key.clone(), value.clone())).or_default().insert(profile);
        }
        self.regroup(profile);
        profile
    }

    /// Forgets a profile that no pod has.
    pub(super) fn remove_profile(&mut self, ix: ProfileIx) {
        let profile = &self.profiles[ix];
        let namespace = profile.namespace;
        let labels = profile.labels.iter().map(|(k, v)| (k, v));
        let hash = profile_hash(&self.profile_hasher, namespace, labels, &profile.ports);
        if let Ok(entry) = self.profile_table.find_entry(hash, |found| *found == ix) {
            entry.remove();
        }
        let profile = self.profiles.remove(ix);
        for (key, value) in profile.labels {
            let key = (namespace, key, value);
            if let Some(posting) = self.postings.get_mut(&key) {
                posting.remove(&ix);
                if posting.is_empty() {
                    self.postings.remove(&key);
                }
            }
        }
        for group in profile.groups {
            self.groups[group].profiles.remove(&ix);
        }
        self.namespaces[namespace].profiles.remove(&ix);
        self.collect_namespace(namespace);
    }

    /// Forgets the groups that nobody holds any more.
    pub(super) fn collect(&mut self) {
        for ix in std::mem::take(&mut self.unused_groups) {
            // Held again meanwhile, or here twice.
            if self.groups.get(ix).is_none_or(|g| g.refs > 0) {
                continue;
            }
            let group = self.groups.remove(ix);
            for profile in group.profiles {
                self.profiles[profile].groups.retain(|g| *g != ix);
            }
            self.group_index.remove(group.scope, &group.selector, ix);
            self.group_by_key.remove(&(group.scope, group.selector));
            self.release_scope(group.scope);
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        let Self {
            namespaces,
            namespace_by_name,
            scopes,
            scope_by_kind,
            selected_scopes,
            groups,
            group_by_key,
            group_index,
            profiles,
            profile_table,
            profile_hasher: _,
            postings,
            unused_groups,
        } = self;
        let namespaces = namespaces.is_empty() && namespace_by_name.is_empty();
        let scopes = scopes.is_empty() && scope_by_kind.is_empty() && selected_scopes.is_empty();
        let groups = groups.is_empty() && group_by_key.is_empty() && group_index.is_empty();
        let profiles = profiles.is_empty() && profile_table.is_empty() && postings.is_empty();
        namespaces && scopes && groups && profiles && unused_groups.is_empty()
    }

    fn profiles_matching(&self, namespace: NamespaceIx, selector: &Selector) -> Vec<ProfileIx> {
        let matches = |profile: &&ProfileIx| self.profiles[**profile].selected_by(selector);
        let by_label = selector.requirements().iter().find(|r| r.operator() == Operator::In);
        match by_label {
            Some(requirement) => requirement
                .values()
                .iter()
                .filter_map(|v| self.postings.get(&(namespace, requirement.key().clone(), v.clone())))
                .flat_map(|posting| posting.iter().filter(matches))
                .copied()
                .collect(),
            None => self.namespaces[namespace].profiles.iter().filter(matches).copied().collect(),
        }
    }

    /// Works out a profile's groups anew.
    fn regroup(&mut self, ix: ProfileIx) -> Option<Moved> {
        let profile = &self.profiles[ix];
        let mut groups = Vec::new();
        for scope in &self.namespaces[profile.namespace].scopes {
            self.group_index.candidates(*scope, profile.labels.iter().map(|(k, v)| (k, v)), |group| {
                if profile.selected_by(&self.groups[group].selector) {
                    groups.push(group);
                }
            });
        }
        groups.sort_unstable();
        if groups == profile.groups {
            return None;
        }
        for group in profile.groups.iter().filter(|g| groups.binary_search(g).is_err()) {
            self.groups[*group].profiles.remove(&ix);
        }
        for group in groups.iter().filter(|g| profile.groups.binary_search(g).is_err()) {
            self.groups[*group].profiles.insert(ix);
        }
        let before = std::mem::replace(&mut self.profiles[ix].groups, groups);
        Some(Moved { profile: ix, before })
    }
}

impl Profile {
    fn selected_by(&self, selector: &Selector) -> bool {
        selector.matches_by(|key| {
            let place = self.labels.binary_search_by(|(k, _)| (**k).cmp(key)).ok()?;
            Some(&*self.labels[place].1)
        })
    }
}

fn profile_hash<'a>(
    hasher: &DefaultHashBuilder,
    namespace: NamespaceIx,
    labels: impl Iterator<Item = (&'a Arc<str>, &'a Arc<str>)>,
    ports: &[NamedPort],
) -> u64 {
    let mut state = hasher.build_hasher();
    namespace.hash(&mut state);
    labels.for_each(|label| label.hash(&mut state));
    ports.hash(&mut state);
    state.finish()
}
