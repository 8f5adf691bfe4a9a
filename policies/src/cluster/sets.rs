//! Allow sets: what they select, what they hold, and which nodes they span.

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;

use super::arena::{Arena, Ix};
use super::membership::{GroupIx, Membership, Profile};
use super::nodes::NodeIx;
use super::pods::Claims;
use crate::hash::ContentHash;
use crate::prefixes::Prefixes;
use crate::{AllowSet, Element, Pods, Protocol, SetId, SetKind, SetUpdate};

pub(super) type SetIx = Ix<Set>;

pub(super) struct Set {
    pub(super) id: SetId,
    kind: SetKind,
    /// Sorted, each once.
    terms: Box<[Term]>,
    prefixes: Prefixes,
    /// How many programs refer to it.
    pub(super) refs: u32,
    /// How many programs refer to it on each node of its span.
    pub(super) span: HashMap<NodeIx, u32>,
    /// Elements that came (+1) and went (-1) since the last commit; a 0 is nothing.
    pending: HashMap<Element, i8>,
    /// No node has it yet, so there is nothing to update.
    fresh: bool,
}

/// Some of the pods that a set selects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Term {
    pub(super) group: GroupIx,
    /// Only those that have this port, and only on it.
    pub(super) port: Option<(Protocol, Arc<str>)>,
    /// Only addresses in here.
    pub(super) within: Option<Prefixes>,
}

impl Term {
    pub(super) fn new(group: GroupIx, port: Option<(Protocol, Arc<str>)>) -> Self {
        Self { group, port, within: None }
    }
}

#[derive(Default)]
pub(super) struct Sets {
    pub(super) entries: Arena<Set>,
    pub(super) by_id: HashMap<SetId, SetIx>,
    dirty: Vec<SetIx>,
    unused: Vec<SetIx>,
}

impl Sets {
    /// The set that selects this; new ones hold on to their groups, and go at the next [`Sets::collect`] unless a
    /// program takes them.
    pub(super) fn intern(
        &mut self,
        members: &mut Membership,
        kind: SetKind,
        terms: Vec<Term>,
        prefixes: Prefixes,
    ) -> SetIx {
        let id = content_id(members, kind, &terms, &prefixes);
        if let Some(&ix) = self.by_id.get(&id) {
            return ix;
        }
        let mut groups: Vec<GroupIx> = terms.iter().map(|t| t.group).collect();
        groups.dedup();
        let ix = self.entries.insert(Set {
            id,
            kind,
            terms: terms.into(),
            prefixes,
            refs: 0,
            span: HashMap::new(),
            pending: HashMap::new(),
            fresh: true,
        });
        self.by_id.insert(id, ix);
        self.dirty.push(ix);
        self.unused.push(ix);
        for group in groups {
            members.hold(group);
            members.groups[group].sets.push(ix);
        }
        ix
    }

    /// One program less refers to it.
    pub(super) fn release(&mut self, ix: SetIx) {
        let set = &mut self.entries[ix];
        set.refs -= 1;
        if set.refs == 0 {
            self.unused.push(ix);
        }
    }

    /// A pod's address comes (+1) to a set or goes from it (-1), as far as the set selects it through these groups.
    pub(super) fn shift(
        &mut self,
        ix: SetIx,
        profile: &Profile,
        groups: &[GroupIx],
        addresses: impl Iterator<Item = IpAddr>,
        by: i8,
    ) {
        let set = &mut self.entries[ix];
        if set.fresh {
            return;
        }
        if set.pending.is_empty() {
            self.dirty.push(ix);
        }
        for address in addresses {
            for element in elements(&set.terms, profile, groups, address) {
                *set.pending.entry(element).or_insert(0) += by;
            }
        }
    }

    /// The set whole, as it is now.
    pub(super) fn whole(
        &self,
        ix: SetIx,
        members: &Membership,
        pods: &Pods,
        claims: &Claims,
    ) -> Arc<AllowSet> {
        let set = &self.entries[ix];
        let mut all = Vec::new();
        for group in set.terms.chunk_by(|a, b| a.group == b.group).map(|terms| terms[0].group) {
            for profile in &members.groups[group].profiles {
                let profile = &members.profiles[*profile];
                for pod in &profile.pods {
                    for address in pods.addresses(*pod).filter(|a| claims.owns(a, *pod)) {
                        all.extend(elements(&set.terms, profile, &[group], address));
                    }
                }
            }
        }
        all.sort_unstable();
        all.dedup();
        Arc::new(AllowSet {
            kind: set.kind,
            pods: !set.terms.is_empty(),
            prefixes: set.prefixes.list().clone(),
            elements: all,
        })
    }

    pub(super) fn is_settled(&self) -> bool {
        self.dirty.is_empty()
    }

    /// What has changed in sets that were there at the last commit.
    pub(super) fn take_updates(&mut self) -> Vec<(SetIx, Arc<SetUpdate>)> {
        let mut updates = Vec::new();
        for ix in std::mem::take(&mut self.dirty) {
            let Some(set) = self.entries.get_mut(ix) else { continue };
            let was_fresh = std::mem::take(&mut set.fresh);
            let pending = std::mem::take(&mut set.pending);
            if was_fresh {
                continue;
            }
            let mut update = SetUpdate::default();
            for (element, by) in pending {
                match by {
                    1 => update.add.push(element),
                    -1 => update.remove.push(element),
                    _ => debug_assert_eq!(by, 0, "an element comes or goes once"),
                }
            }
            update.add.sort_unstable();
            update.remove.sort_unstable();
            if !(update.add.is_empty() && update.remove.is_empty()) {
                updates.push((ix, Arc::new(update)));
            }
        }
        updates
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        let Self { entries, by_id, dirty, unused } = self;
        entries.is_empty() && by_id.is_empty() && dirty.is_empty() && unused.is_empty()
    }

    /// Forgets the sets that no program refers to.
    pub(super) fn collect(&mut self, members: &mut Membership) {
        for ix in std::mem::take(&mut self.unused) {
            if self.entries.get(ix).is_none_or(|s| s.refs > 0) {
                continue;
            }
            let set = self.entries.remove(ix);
            self.by_id.remove(&set.id);
            for terms in set.terms.chunk_by(|a, b| a.group == b.group) {
                let group = terms[0].group;
                let sets = &mut members.groups[group].sets;
                if let Some(place) = sets.iter().position(|s| *s == ix) {
                    sets.swap_remove(place);
                }
                members.release(group);
            }
        }
    }
}

/// What one address of a pod is in a set that selects these terms, the pod being in these groups.
fn elements(
    terms: &[Term],
    profile: &Profile,
    groups: &[GroupIx],
    address: IpAddr,
) -> impl Iterator<Item = Element> {
    let mut found: Vec<Element> = Vec::new();
    for group in groups {
        let from = terms.partition_point(|t| t.group < *group);
        for term in terms[from..].iter().take_while(|t| t.group == *group) {
            if term.within.as_ref().is_some_and(|w| !w.contain(address)) {
                continue;
            }
            match &term.port {
                None => found.push(Element { address, port: None }),
                Some((protocol, name)) => found.extend(
                    profile
                        .ports
                        .iter()
                        .filter(|p| p.protocol == *protocol && p.name == *name)
                        .map(|p| Element { address, port: Some((p.protocol, p.port)) }),
                ),
            }
        }
    }
    found.sort_unstable();
    found.dedup();
    found.into_iter()
}

fn content_id(members: &Membership, kind: SetKind, terms: &[Term], prefixes: &Prefixes) -> SetId {
    let mut parts: Vec<[u8; 16]> = terms
        .iter()
        .map(|term| {
            let mut hash = ContentHash::new("term");
            hash.bytes(&members.groups[term.group].id);
            match &term.port {
                None => hash.number(0),
                Some((protocol, name)) => hash.number(1).number(protocol.number().into()).text(name),
            };
            match &term.within {
                None => {
                    hash.number(0);
                }
                Some(within) => {
                    hash.number(1).bytes(within.id());
                }
            }
            hash.finish()
        })
        .collect();
    parts.sort_unstable();
    let mut hash = ContentHash::new(match kind {
        SetKind::Addresses => "addresses",
        SetKind::AddressPorts => "address ports",
    });
    hash.number(parts.len());
    for part in &parts {
        hash.bytes(part);
    }
    hash.bytes(prefixes.id());
    SetId(hash.finish())
}
