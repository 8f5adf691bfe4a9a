//! Who the objects of one file are, in little room: the files of a large cluster describe a hundred thousand pods.
//!
//! The names stand one after the other in one text, sixteen bytes beside each; the namespaces of a file are few, so each is
//! there once.

use std::collections::HashMap;
use std::sync::Arc;

use moat_policies::{Key, NamespacedName, NetworkConfig};

use crate::decode::Identity;
use crate::error::Place;
use crate::workload::{Owner, WorkloadKind};

/// Objects by their number, in the order of the documents.
#[derive(Default)]
pub(super) struct Listing {
    sorts: Box<[Sort]>,
    names: Box<str>,
    entries: Box<[Entry]>,
    /// The pods of these that a workload controls.
    owned: Box<[(Owner, Box<[u32]>)]>,
}

/// Where one object stands.
struct Entry {
    sort: u32,
    /// Its name ends here, and begins where the one before ends.
    end: u32,
    document: u32,
    /// 0: not known.
    line: u32,
}

/// What the objects of one kind and namespace have in common.
struct Sort {
    kind: Kind,
    /// Empty: in none.
    namespace: Arc<str>,
}

/// What an object is told apart by, as [`Identity`] is, but only looked at.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Who<'l> {
    kind: Kind,
    namespace: &'l str,
    name: &'l str,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Namespace,
    Node,
    Pod,
    Policy,
    Config,
    Workload(WorkloadKind),
}

impl Listing {
    /// Lists these objects; `owned` are pods among them, by the workload that controls them.
    pub(super) fn new(
        seen: impl IntoIterator<Item = (Identity, Place)>,
        owned: impl IntoIterator<Item = (Owner, Vec<NamespacedName>)>,
    ) -> Self {
        let mut seen: Vec<(Identity, Place)> = seen.into_iter().collect();
        seen.sort_unstable_by(|(a, at), (b, bt)| (at.document, a).cmp(&(bt.document, b)));
        let whos: Vec<Who<'_>> = seen.iter().map(|(identity, _)| Who::from(identity)).collect();
        let (mut sorts, mut sort_of) = (Vec::new(), HashMap::new());
        let (mut names, mut entries) = (String::new(), Vec::with_capacity(seen.len()));
        for (who, (_, place)) in whos.iter().zip(&seen) {
            let sort = *sort_of.entry((who.kind, who.namespace)).or_insert_with(|| {
                sorts.push(Sort { kind: who.kind, namespace: who.namespace.into() });
                sorts.len() - 1
            });
            names.push_str(who.name);
            let (document, line) = (number(place.document), place.line.unwrap_or(0));
            entries.push(Entry { sort: number(sort), end: number(names.len()), document, line });
        }
        let mut owned = owned.into_iter().peekable();
        let owned = match owned.peek() {
            None => Box::default(),
            Some(_) => {
                let at: HashMap<Who<'_>, usize> =
                    whos.iter().enumerate().map(|(at, who)| (*who, at)).collect();
                let found = |pod: &NamespacedName| at.get(&Who::pod(pod)).copied().map(number);
                owned.map(|(owner, pods)| (owner, pods.iter().filter_map(found).collect())).collect()
            }
        };
        Self { sorts: sorts.into(), names: names.into(), entries: entries.into(), owned }
    }

    /// How many objects there are.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// One of the objects.
    pub(super) fn who(&self, at: usize) -> Who<'_> {
        let entry = &self.entries[at];
        let from = at.checked_sub(1).map_or(0, |before| self.entries[before].end);
        let Sort { kind, namespace } = &self.sorts[entry.sort as usize];
        Who { kind: *kind, namespace, name: &self.names[from as usize..entry.end as usize] }
    }

    /// All of them.
    pub(super) fn all(&self) -> impl Iterator<Item = Who<'_>> {
        (0..self.len()).map(|at| self.who(at))
    }

    /// Where one of them stands, in the file of this name.
    pub(super) fn place(&self, at: usize, file: &Arc<str>) -> Place {
        let Entry { document, line, .. } = self.entries[at];
        Place { file: file.clone(), document: document as usize, line: (line > 0).then_some(line) }
    }

    /// The pods that workloads control.
    pub(super) fn owned(&self) -> impl Iterator<Item = (&Owner, impl Iterator<Item = NamespacedName>)> {
        let name = |at: &u32| self.who(*at as usize).namespaced_name();
        self.owned.iter().map(move |(owner, pods)| (owner, pods.iter().map(name)))
    }

    /// Whether it has to do with which pods workloads stand for.
    pub(super) fn is_population(&self) -> bool {
        self.sorts.iter().any(|sort| matches!(sort.kind, Kind::Workload(_) | Kind::Pod | Kind::Node))
    }
}

/// A file has at most 64 MiB, so whatever counts something in it is less than 2^32.
fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

impl<'l> Who<'l> {
    pub(super) fn pod(name: &'l NamespacedName) -> Self {
        Self { kind: Kind::Pod, namespace: &name.namespace, name: &name.name }
    }

    /// The name, if it is a node.
    pub(super) fn node(self) -> Option<&'l str> {
        (self.kind == Kind::Node).then_some(self.name)
    }

    /// The object's key; none, where it is a workload.
    pub(super) fn key(self) -> Option<Key> {
        match self.identity() {
            Identity::Object(key) => Some(key),
            Identity::Workload(..) => None,
        }
    }

    pub(super) fn identity(self) -> Identity {
        match self.kind {
            Kind::Namespace => Identity::Object(Key::Namespace(self.name.into())),
            Kind::Node => Identity::Object(Key::Node(self.name.into())),
            Kind::Pod => Identity::Object(Key::Pod(self.namespaced_name())),
            Kind::Policy => Identity::Object(Key::Policy(self.namespaced_name())),
            Kind::Config => Identity::Object(Key::Config),
            Kind::Workload(kind) => Identity::Workload(kind, self.namespaced_name()),
        }
    }

    fn namespaced_name(self) -> NamespacedName {
        NamespacedName::new(self.namespace, self.name)
    }
}

impl<'l> From<&'l Key> for Who<'l> {
    fn from(key: &'l Key) -> Self {
        match key {
            Key::Namespace(name) => Self { kind: Kind::Namespace, namespace: "", name },
            Key::Node(name) => Self { kind: Kind::Node, namespace: "", name },
            Key::Pod(name) => Self::pod(name),
            Key::Policy(name) => Self { kind: Kind::Policy, ..Self::pod(name) },
            Key::Config => Self { kind: Kind::Config, namespace: "", name: NetworkConfig::NAME },
        }
    }
}

impl<'l> From<&'l Identity> for Who<'l> {
    fn from(identity: &'l Identity) -> Self {
        match identity {
            Identity::Object(key) => key.into(),
            Identity::Workload(kind, name) => Self { kind: Kind::Workload(*kind), ..Self::pod(name) },
        }
    }
}
