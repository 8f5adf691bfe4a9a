//! Allow sets: what is held of each, and how the tables follow.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use moat_nfnetlink::nft::{Element, Set};
use moat_policies::{self as policies, SetChange, SetId, SetKind};

use super::State;
use crate::dataplane::layout::{self, LayoutConfig, Part, Table};
use crate::dataplane::op::{Op, Plan};

#[derive(Debug, Clone)]
pub(super) struct HeldSet {
    kind: SetKind,
    pods: bool,
    pub(super) prefixes: Arc<[IpNet]>,
    elements: BTreeSet<policies::Element>,
}

/// What a change does to an allow set.
#[derive(Debug, Default)]
pub(super) struct SetDiff {
    /// The parts that there were, if there was such a set.
    before: Option<Vec<Part>>,
    add: Vec<policies::Element>,
    remove: Vec<policies::Element>,
}

impl State {
    /// Takes one allow set's change in.
    pub(super) fn take_set(&mut self, id: SetId, change: &SetChange) -> SetDiff {
        let held = self.sets.get_mut(&id);
        let mut diff = SetDiff { before: held.as_ref().map(|h| h.parts(&self.config)), ..SetDiff::default() };
        match (change, held) {
            (SetChange::Create(new), None) => {
                let held = HeldSet {
                    kind: new.kind,
                    pods: new.pods,
                    prefixes: new.prefixes.clone(),
                    elements: new.elements.iter().copied().collect(),
                };
                self.sets.insert(id, held);
            }
            (SetChange::Create(new), Some(held)) => {
                let elements: BTreeSet<policies::Element> = new.elements.iter().copied().collect();
                diff.add = elements.difference(&held.elements).copied().collect();
                diff.remove = held.elements.difference(&elements).copied().collect();
                held.elements = elements;
            }
            (SetChange::Update(update), Some(held)) => {
                let there = |e: &&policies::Element| held.elements.contains(*e);
                diff.add = update.add.iter().filter(|e| !there(e)).copied().collect();
                diff.remove = update.remove.iter().filter(there).copied().collect();
                for element in &diff.remove {
                    held.elements.remove(element);
                }
                held.elements.extend(&diff.add);
            }
            (SetChange::Update(_), None) => {}
            (SetChange::Delete, _) => drop(self.sets.remove(&id)),
        }
        // Who is allowed more has connections that are to follow only if they are revoked.
        let resumed: Vec<IpAddr> =
            diff.add.iter().map(|element| element.address).filter(|a| self.may_be_revoked(*a)).collect();
        self.concern.add(resumed);
        self.concern.add(diff.remove.iter().map(|element| element.address));
        diff
    }

    /// Plans the allow sets that come, change and go. Deletions go to `last`: nothing leads to the set then.
    pub(super) fn sets(
        &self,
        mut diffs: BTreeMap<SetId, SetDiff>,
        absent_before: &BTreeSet<SetId>,
        plan: &mut Plan,
        last: &mut Vec<Op>,
    ) {
        for id in self.absent.symmetric_difference(absent_before) {
            let before = || self.sets.get(id).map(|held| held.parts(&self.config));
            diffs.entry(*id).or_insert_with(|| SetDiff { before: before(), ..SetDiff::default() });
        }
        for (id, diff) in diffs {
            let before = diff.before.filter(|_| !absent_before.contains(&id));
            let after = self.sets.get(&id).filter(|_| !self.absent.contains(&id));
            match (before, after) {
                (None, None) => {}
                (Some(parts), None) => {
                    let names = parts.into_iter().map(|part| part.set(id).name().clone());
                    last.extend(names.map(|name| Op::DeleteSet(Table::Inet, name)));
                }
                (None, Some(held)) => {
                    for (part, elements) in held.content(&self.config) {
                        let set = part.set(id);
                        plan.stage.push(Op::AddSet(Table::Inet, set.clone()));
                        if !elements.is_empty() {
                            plan.stage.push(Op::AddElements(Table::Inet, set, elements));
                        }
                    }
                }
                (Some(parts), Some(_)) => {
                    let mut ops = |elements: &[policies::Element], op: fn(Table, Set, Vec<Element>) -> Op| {
                        for (part, elements) in by_part(elements) {
                            if parts.contains(&part) {
                                plan.commit.push(op(Table::Inet, part.set(id), elements));
                            }
                        }
                    };
                    ops(&diff.remove, Op::DeleteElements);
                    ops(&diff.add, Op::AddElements);
                }
            }
        }
    }

    pub(super) fn parts(&self, set: SetId) -> Vec<Part> {
        self.sets.get(&set).map(|held| held.parts(&self.config)).unwrap_or_default()
    }
}

impl HeldSet {
    /// How many elements it has in the kernel, or a few more: prefixes that touch are one.
    pub(super) fn size(&self) -> usize {
        self.elements.len() + self.prefixes.len()
    }

    pub(super) fn parts(&self, config: &LayoutConfig) -> Vec<Part> {
        layout::parts(self.kind, self.pods, &self.prefixes, config)
    }

    pub(super) fn holds(&self, element: &policies::Element) -> bool {
        let prefix = || {
            // Disjoint and sorted: only the last one that does not begin behind the address can hold it.
            let behind = self.prefixes.partition_point(|p| p.network() <= element.address);
            self.prefixes[..behind].last().is_some_and(|p| p.contains(&element.address))
        };
        match self.kind {
            SetKind::Addresses => (self.pods && self.elements.contains(element)) || prefix(),
            SetKind::AddressPorts => self.elements.contains(element),
        }
    }

    pub(super) fn content(&self, config: &LayoutConfig) -> Vec<(Part, Vec<Element>)> {
        let mut pods = by_part(self.elements.iter());
        self.parts(config)
            .into_iter()
            .map(|part| match part {
                Part::Nets4 | Part::Nets6 => (part, layout::prefixes(&self.prefixes, part.is_v4())),
                _ => (part, pods.remove(&part).unwrap_or_default()),
            })
            .collect()
    }
}

fn by_part<'a>(elements: impl IntoIterator<Item = &'a policies::Element>) -> BTreeMap<Part, Vec<Element>> {
    let mut parts: BTreeMap<Part, Vec<Element>> = BTreeMap::new();
    for element in elements {
        let (part, element) = layout::element(element);
        parts.entry(part).or_default().push(element);
    }
    parts
}
