//! Rules in canonical form, each once: ten thousand policies that say the same share one.

use std::sync::Arc;

use hashbrown::HashMap;

use super::arena::{Arena, Ix};
use super::membership::{GroupIx, Membership};
use crate::{
    NamespaceScope, NamespacedName, Peer, Peers, PortMatch, PortRange, PortRef, Ports, Protocol, Rule,
    Selector,
    prefixes::{self, Prefixes},
};

pub(super) type RuleIx = Ix<RuleEntry>;

pub(super) struct RuleEntry {
    pub(super) key: Arc<RuleKey>,
    refs: u32,
}

#[derive(PartialEq, Eq, Hash)]
pub(super) struct RuleKey {
    pub(super) peers: RulePeers,
    pub(super) ports: RulePorts,
    /// The group of all pods, where `ports` has names and `peers` is more than groups: a name stands for a port on
    /// pods only, so everybody, or a block, is as many pods.
    pub(super) all_pods: Option<GroupIx>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum RulePeers {
    Everyone,
    Of {
        /// Sorted, each once.
        groups: Vec<GroupIx>,
        /// Canonical.
        prefixes: Prefixes,
    },
}

#[derive(PartialEq, Eq, Hash)]
pub(super) enum RulePorts {
    Any,
    Of {
        /// Sorted, disjoint, not adjacent.
        ranges: Vec<PortRange>,
        /// Sorted, each once.
        named: Vec<(Protocol, Arc<str>)>,
    },
}

#[derive(Default)]
pub(super) struct Rules {
    entries: Arena<RuleEntry>,
    by_key: HashMap<Arc<RuleKey>, RuleIx>,
}

impl Rules {
    /// The rule of a policy; the caller holds on to it.
    pub(super) fn hold(&mut self, members: &mut Membership, policy: &NamespacedName, rule: &Rule) -> RuleIx {
        let peers = canonical_peers(members, policy, &rule.peers);
        let ports = canonical_ports(&rule.ports);
        let beyond_groups = match &peers {
            RulePeers::Everyone => true,
            RulePeers::Of { prefixes, .. } => !prefixes.is_empty(),
        };
        let all_pods = (beyond_groups && ports.has_names()).then(|| {
            let all_namespaces = NamespaceScope::Selected(Selector::everything());
            members.hold_group(&policy.namespace, &all_namespaces, &Selector::everything())
        });
        let key = RuleKey { peers, ports, all_pods };
        if let Some(&ix) = self.by_key.get(&key) {
            key.groups().for_each(|g| members.release(g));
            self.entries[ix].refs += 1;
            return ix;
        }
        let key = Arc::new(key);
        let ix = self.entries.insert(RuleEntry { key: key.clone(), refs: 1 });
        self.by_key.insert(key, ix);
        ix
    }

    /// One holder less; the last one takes the rule away.
    pub(super) fn release(&mut self, members: &mut Membership, ix: RuleIx) {
        let entry = &mut self.entries[ix];
        entry.refs -= 1;
        if entry.refs == 0 {
            let key = self.entries.remove(ix).key;
            key.groups().for_each(|g| members.release(g));
            self.by_key.remove(&key);
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.by_key.is_empty()
    }

    pub(super) fn key(&self, ix: RuleIx) -> &RuleKey {
        &self.entries[ix].key
    }
}

impl RuleKey {
    fn groups(&self) -> impl Iterator<Item = GroupIx> {
        match &self.peers {
            RulePeers::Everyone => &[][..],
            RulePeers::Of { groups, .. } => groups,
        }
        .iter()
        .copied()
        .chain(self.all_pods)
    }
}

impl RulePorts {
    pub(super) fn has_names(&self) -> bool {
        matches!(self, RulePorts::Of { named, .. } if !named.is_empty())
    }
}

fn canonical_peers(members: &mut Membership, policy: &NamespacedName, peers: &Peers) -> RulePeers {
    let Peers::Of(peers) = peers else { return RulePeers::Everyone };
    let mut groups = Vec::new();
    let mut blocks = Vec::new();
    for peer in peers {
        match peer {
            Peer::Pods { namespaces, pods } => {
                let group = members.hold_group(&policy.namespace, namespaces, pods);
                match groups.binary_search(&group) {
                    Ok(_) => members.release(group),
                    Err(place) => groups.insert(place, group),
                }
            }
            Peer::Block(block) => blocks.push(prefixes::of_block(block)),
        }
    }
    RulePeers::Of { groups, prefixes: prefixes::union(&blocks) }
}

fn canonical_ports(ports: &Ports) -> RulePorts {
    let Ports::Of(ports) = ports else { return RulePorts::Any };
    let mut ranges = Vec::new();
    let mut named = Vec::new();
    for PortMatch { protocol, port } in ports {
        match port {
            PortRef::All => ranges.push(PortRange { protocol: *protocol, first: 0, last: u16::MAX }),
            PortRef::Range(first, last) => {
                ranges.push(PortRange { protocol: *protocol, first: *first, last: *last });
            }
            PortRef::Named(name) => named.push((*protocol, name.clone())),
        }
    }
    named.sort_unstable();
    named.dedup();
    RulePorts::Of { ranges: merge_ranges(ranges), named }
}

/// Sorted, disjoint, not adjacent.
pub(super) fn merge_ranges(mut ranges: Vec<PortRange>) -> Vec<PortRange> {
    ranges.sort_unstable();
    let mut merged: Vec<PortRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.protocol == range.protocol && range.first <= last.last.saturating_add(1) => {
                last.last = last.last.max(range.last);
            }
            _ => merged.push(range),
        }
    }
    merged
}
