//! From the rules that apply to a pod to its port classes: pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;

use super::membership::{GroupIx, NamedPort};
use super::rules::{RuleKey, RulePeers, RulePorts, merge_ranges};
use super::sets::Term;
use crate::{Direction, PortRange, Protocol, prefixes};

/// A verdict program whose allow sets have no names yet.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Draft {
    pub(super) every: Option<DraftAllow>,
    /// Sorted by first range; each allow once, none equal to `every`.
    pub(super) classes: Vec<(Vec<PortRange>, DraftAllow)>,
    /// Sorted, each once.
    pub(super) named: Vec<Term>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum DraftAllow {
    Everyone,
    Set {
        /// Sorted, each once.
        groups: Vec<GroupIx>,
        /// Canonical.
        prefixes: Arc<[IpNet]>,
    },
}

/// What `rules` say together. `ports` are the named ports of the pod that is their subject.
pub(super) fn assemble(direction: Direction, rules: &[&RuleKey], ports: &[NamedPort]) -> Draft {
    let on_every_port: Vec<&RulePeers> =
        rules.iter().filter(|r| matches!(r.ports, RulePorts::Any)).map(|r| &r.peers).collect();
    let every = union(&on_every_port);
    if every == Some(DraftAllow::Everyone) {
        return Draft { every, classes: Vec::new(), named: Vec::new() };
    }

    let mut spans: Vec<(PortRange, &RulePeers)> = Vec::new();
    let mut named = Vec::new();
    for rule in rules {
        let RulePorts::Of { ranges, named: names } = &rule.ports else { continue };
        spans.extend(ranges.iter().map(|range| (*range, &rule.peers)));
        for (protocol, name) in names {
            match (direction, &rule.peers) {
                // The destination is the subject: the name stands for its own ports.
                (Direction::Ingress, peers) => {
                    let own = ports.iter().filter(|p| p.name == *name && p.protocol == *protocol);
                    spans.extend(
                        own.map(|p| (PortRange { protocol: *protocol, first: p.port, last: p.port }, peers)),
                    );
                }
                // The destination is a peer.
                (Direction::Egress, peers) => {
                    let port = Some((*protocol, name.clone()));
                    let all_pods =
                        |within| rule.all_pods.map(|group| Term { group, port: port.clone(), within });
                    match peers {
                        RulePeers::Everyone => named.extend(all_pods(None)),
                        RulePeers::Of { groups, prefixes } => {
                            named.extend(groups.iter().map(|group| Term::new(*group, port.clone())));
                            if !prefixes.is_empty() {
                                named.extend(all_pods(Some(prefixes.clone())));
                            }
                        }
                    }
                }
            }
        }
    }
    named.sort_unstable();
    named.dedup();

    let mut by_allow: Vec<(DraftAllow, Vec<PortRange>)> = Vec::new();
    let mut place: hashbrown::HashMap<DraftAllow, usize> = hashbrown::HashMap::new();
    for protocol in Protocol::ALL {
        for (range, allow) in segments(protocol, &spans, &on_every_port) {
            if every.as_ref() == Some(&allow) {
                continue;
            }
            let at = *place.entry(allow.clone()).or_insert_with(|| {
                by_allow.push((allow, Vec::new()));
                by_allow.len() - 1
            });
            by_allow[at].1.push(range);
        }
    }
    let mut classes: Vec<(Vec<PortRange>, DraftAllow)> =
        by_allow.into_iter().map(|(allow, ranges)| (merge_ranges(ranges), allow)).collect();
    classes.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    Draft { every, classes, named }
}

/// The ports of one protocol that some rule names, cut where the rules that hold there change.
fn segments(
    protocol: Protocol,
    spans: &[(PortRange, &RulePeers)],
    on_every_port: &[&RulePeers],
) -> Vec<(PortRange, DraftAllow)> {
    // What starts and ends at each port (as u32: one past the last port is a place, too).
    let mut edges: BTreeMap<u32, (Vec<usize>, Vec<usize>)> = BTreeMap::new();
    for (i, (range, _)) in spans.iter().enumerate().filter(|(_, (r, _))| r.protocol == protocol) {
        edges.entry(range.first.into()).or_default().0.push(i);
        edges.entry(u32::from(range.last) + 1).or_default().1.push(i);
    }
    let mut segments = Vec::new();
    let mut open = std::collections::BTreeSet::new();
    let mut from = 0;
    for (at, (starts, ends)) in edges {
        if !open.is_empty() {
            let peers: Vec<&RulePeers> =
                on_every_port.iter().copied().chain(open.iter().map(|i: &usize| spans[*i].1)).collect();
            if let Some(allow) = union(&peers) {
                segments.push((PortRange { protocol, first: from as u16, last: (at - 1) as u16 }, allow));
            }
        }
        open.extend(starts);
        for i in ends {
            open.remove(&i);
        }
        from = at;
    }
    segments
}

fn union(peers: &[&RulePeers]) -> Option<DraftAllow> {
    if peers.is_empty() {
        return None;
    }
    let mut all_groups = Vec::new();
    let mut lists = Vec::new();
    for peer in peers {
        match peer {
            RulePeers::Everyone => return Some(DraftAllow::Everyone),
            RulePeers::Of { groups, prefixes } => {
                all_groups.extend_from_slice(groups);
                if !prefixes.is_empty() && lists.last() != Some(prefixes) {
                    lists.push(prefixes.clone());
                }
            }
        }
    }
    all_groups.sort_unstable();
    all_groups.dedup();
    Some(DraftAllow::Set { groups: all_groups, prefixes: prefixes::union(&lists) })
}
