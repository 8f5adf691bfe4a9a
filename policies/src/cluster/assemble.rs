//! From the rules that apply to a pod to its port classes: pure.

use std::collections::{BTreeMap, BTreeSet};

use super::membership::{GroupIx, NamedPort};
use super::rules::{RuleKey, RulePeers, RulePorts, merge_ranges};
use super::sets::Term;
use crate::prefixes::Prefixes;
use crate::{Direction, Excess, Limits, PortRange, Protocol, prefixes};

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
        prefixes: Prefixes,
    },
}

/// What `rules` say together. `ports` are the named ports of the pod that is their subject.
///
/// What is above a limit is found out before it is worked out: that rules overlap can make it quadratic.
pub(super) fn assemble(
    direction: Direction,
    rules: &[&RuleKey],
    ports: &[NamedPort],
    limits: &Limits,
) -> Result<Draft, Excess> {
    let on_every_port: Vec<&RulePeers> =
        rules.iter().filter(|r| matches!(r.ports, RulePorts::Any)).map(|r| &r.peers).collect();
    let every = union(&on_every_port);
    if every == Some(DraftAllow::Everyone) {
        return Ok(Draft { every, classes: Vec::new(), named: Vec::new() });
    }

    let mut budget = Budget { left: limits.work, of: limits.work };
    let mut spans: Vec<(PortRange, &RulePeers)> = Vec::new();
    let mut named = Vec::new();
    for rule in rules {
        let RulePorts::Of { ranges, named: names } = &rule.ports else { continue };
        spans.extend(ranges.iter().map(|range| (*range, &rule.peers)));
        let of_a_name = match direction {
            Direction::Ingress => ports.len(),
            Direction::Egress => Work::of(&rule.peers).groups,
        };
        budget.spend(names.len() * of_a_name)?;
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
        each_segment(protocol, &spans, &on_every_port, &mut budget, |range, allow| {
            if every.as_ref() == Some(&allow) {
                return Ok(());
            }
            let at = *place.entry(allow.clone()).or_insert_with(|| {
                by_allow.push((allow, Vec::new()));
                by_allow.len() - 1
            });
            by_allow[at].1.push(range);
            if by_allow.len() > limits.classes { Err(Excess::Classes(limits.classes)) } else { Ok(()) }
        })?;
    }
    let mut classes: Vec<(Vec<PortRange>, DraftAllow)> =
        by_allow.into_iter().map(|(allow, ranges)| (merge_ranges(ranges), allow)).collect();
    classes.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    Ok(Draft { every, classes, named })
}

/// What may still be spent on working a program out.
struct Budget {
    left: usize,
    of: usize,
}

impl Budget {
    fn spend(&mut self, work: usize) -> Result<(), Excess> {
        self.left = self.left.checked_sub(work).ok_or(Excess::Work(self.of))?;
        Ok(())
    }
}

/// How much it is to join some peers. It depends on nothing but what they are, so that the same policies are above the limit in
/// every process.
#[derive(Default, Clone, Copy)]
struct Work {
    groups: usize,
    /// How many of them have prefixes. One list alone is taken as it is.
    lists: usize,
    prefixes: usize,
}

/// Prefixes are sorted, merged and hashed, which takes about so many times as long as what is done with a group.
const WORK_OF_A_PREFIX: usize = 2;

impl Work {
    fn of(peers: &RulePeers) -> Self {
        match peers {
            RulePeers::Everyone => Work { groups: 1, ..Work::default() },
            RulePeers::Of { groups, prefixes } => Work {
                groups: 1 + groups.len(),
                lists: usize::from(!prefixes.is_empty()),
                prefixes: prefixes.len(),
            },
        }
    }

    fn add(&mut self, peers: &RulePeers) {
        let Work { groups, lists, prefixes } = Work::of(peers);
        self.groups += groups;
        self.lists += lists;
        self.prefixes += prefixes;
    }

    fn remove(&mut self, peers: &RulePeers) {
        let Work { groups, lists, prefixes } = Work::of(peers);
        self.groups -= groups;
        self.lists -= lists;
        self.prefixes -= prefixes;
    }

    fn in_all(self) -> usize {
        self.groups + if self.lists > 1 { WORK_OF_A_PREFIX * self.prefixes } else { 0 }
    }
}

/// Tells the ports of one protocol that some rule names, cut where the rules that hold there change.
fn each_segment(
    protocol: Protocol,
    spans: &[(PortRange, &RulePeers)],
    on_every_port: &[&RulePeers],
    budget: &mut Budget,
    mut tell: impl FnMut(PortRange, DraftAllow) -> Result<(), Excess>,
) -> Result<(), Excess> {
    // What starts and ends at each port (as u32: one past the last port is a place, too).
    let mut edges: BTreeMap<u32, (Vec<usize>, Vec<usize>)> = BTreeMap::new();
    for (i, (range, _)) in spans.iter().enumerate().filter(|(_, (r, _))| r.protocol == protocol) {
        edges.entry(range.first.into()).or_default().0.push(i);
        edges.entry(u32::from(range.last) + 1).or_default().1.push(i);
    }
    let mut open = BTreeSet::new();
    let mut work = Work::default();
    on_every_port.iter().for_each(|peers| work.add(peers));
    let mut from = 0;
    for (at, (starts, ends)) in edges {
        if !open.is_empty() {
            budget.spend(work.in_all())?;
            let peers: Vec<&RulePeers> =
                on_every_port.iter().copied().chain(open.iter().map(|i: &usize| spans[*i].1)).collect();
            if let Some(allow) = union(&peers) {
                tell(PortRange { protocol, first: from as u16, last: (at - 1) as u16 }, allow)?;
            }
        }
        starts.iter().for_each(|i| work.add(spans[*i].1));
        open.extend(starts);
        for i in ends {
            work.remove(spans[i].1);
            open.remove(&i);
        }
        from = at;
    }
    Ok(())
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
