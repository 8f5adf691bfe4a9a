//! Namespaces, and the sets of them that selectors select.

use std::sync::Arc;

use hashbrown::HashSet;

use super::{Membership, NamespaceIx, ProfileIx, ScopeIx};
use crate::{Labels, NAMESPACE_NAME_LABEL, NamespaceScope, Operator, Selector, objects};

/// A namespace that an object describes, or that a pod or a policy is in.
pub(in crate::cluster) struct NamespaceEntry {
    name: Arc<str>,
    pub(super) labels: Labels,
    pub(super) described: bool,
    /// The scopes that it is in; its own is among them once somebody asked for it.
    pub(super) scopes: Vec<ScopeIx>,
    pub(super) profiles: HashSet<ProfileIx>,
}

/// A set of namespaces.
pub(in crate::cluster) struct Scope {
    pub(super) kind: ScopeKind,
    pub(super) namespaces: HashSet<NamespaceIx>,
    /// How many groups are in it.
    pub(super) refs: u32,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum ScopeKind {
    One(Arc<str>),
    Selected(Selector),
}

impl Membership {
    pub(super) fn namespace(&mut self, name: &Arc<str>) -> NamespaceIx {
        if let Some(&ix) = self.namespace_by_name.get(name) {
            return ix;
        }
        let ix = self.namespaces.insert(NamespaceEntry {
            name: name.clone(),
            labels: objects::implied_labels(name),
            described: false,
            scopes: Vec::new(),
            profiles: HashSet::new(),
        });
        self.namespace_by_name.insert(name.clone(), ix);
        let scopes = self.scopes_of(ix);
        for scope in &scopes {
            self.scopes[*scope].namespaces.insert(ix);
        }
        self.namespaces[ix].scopes = scopes;
        ix
    }

    /// Forgets a namespace that no object describes and nobody is in.
    pub(super) fn collect_namespace(&mut self, ix: NamespaceIx) {
        let namespace = &self.namespaces[ix];
        if namespace.described || !namespace.profiles.is_empty() || self.own_scope(&namespace.name).is_some()
        {
            return;
        }
        let namespace = self.namespaces.remove(ix);
        for scope in namespace.scopes {
            self.scopes[scope].namespaces.remove(&ix);
        }
        self.namespace_by_name.remove(&namespace.name);
    }

    fn own_scope(&self, namespace: &Arc<str>) -> Option<ScopeIx> {
        self.scope_by_kind.get(&ScopeKind::One(namespace.clone())).copied()
    }

    pub(super) fn scopes_of(&self, ix: NamespaceIx) -> Vec<ScopeIx> {
        let namespace = &self.namespaces[ix];
        let mut scopes: Vec<ScopeIx> = self.own_scope(&namespace.name).into_iter().collect();
        self.selected_scopes.candidates((), namespace.labels.iter(), |scope| {
            if self.scopes[scope].selects(namespace) {
                scopes.push(scope);
            }
        });
        scopes.sort_unstable();
        scopes
    }

    pub(super) fn scope(&mut self, own: &Arc<str>, scope: &NamespaceScope) -> ScopeIx {
        let kind = match scope {
            NamespaceScope::Own => ScopeKind::One(own.clone()),
            NamespaceScope::Selected(selector) => match only_namespace(selector) {
                Some(name) => ScopeKind::One(name.clone()),
                None => ScopeKind::Selected(selector.clone()),
            },
        };
        if let Some(&ix) = self.scope_by_kind.get(&kind) {
            return ix;
        }
        let namespaces: HashSet<NamespaceIx> = match &kind {
            ScopeKind::One(name) => [self.namespace(name)].into_iter().collect(),
            ScopeKind::Selected(selector) => self
                .namespaces
                .iter()
                .filter(|(_, n)| selector.matches(&n.labels))
                .map(|(namespace, _)| namespace)
                .collect(),
        };
        let ix = self.scopes.insert(Scope { kind: kind.clone(), namespaces, refs: 0 });
        if let ScopeKind::Selected(selector) = &kind {
            self.selected_scopes.insert((), selector, ix);
        }
        self.scope_by_kind.insert(kind, ix);
        for namespace in &self.scopes[ix].namespaces {
            let scopes = &mut self.namespaces[*namespace].scopes;
            if let Err(place) = scopes.binary_search(&ix) {
                scopes.insert(place, ix);
            }
        }
        ix
    }

    pub(super) fn release_scope(&mut self, ix: ScopeIx) {
        let scope = &mut self.scopes[ix];
        scope.refs -= 1;
        if scope.refs > 0 {
            return;
        }
        let scope = self.scopes.remove(ix);
        if let ScopeKind::Selected(selector) = &scope.kind {
            self.selected_scopes.remove((), selector, ix);
        }
        self.scope_by_kind.remove(&scope.kind);
        for namespace in scope.namespaces {
            self.namespaces[namespace].scopes.retain(|s| *s != ix);
            self.collect_namespace(namespace);
        }
    }
}

impl Scope {
    fn selects(&self, namespace: &NamespaceEntry) -> bool {
        match &self.kind {
            ScopeKind::One(name) => *name == namespace.name,
            ScopeKind::Selected(selector) => selector.matches(&namespace.labels),
        }
    }
}

/// The namespace that a namespace selector names, where it names exactly one by [`NAMESPACE_NAME_LABEL`].
fn only_namespace(selector: &Selector) -> Option<&Arc<str>> {
    match selector.requirements() {
        [one] if one.operator() == Operator::In && &**one.key() == NAMESPACE_NAME_LABEL => match one.values()
        {
            [name] => Some(name),
            _ => None,
        },
        _ => None,
    }
}
