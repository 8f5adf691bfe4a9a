//! Pods: their elements and interfaces, and how the tables follow.

use std::collections::{BTreeMap, BTreeSet};

use moat_nfnetlink::nft::{Data, Element, IfName, Key, Verdict};
use moat_policies::{Direction, NamespacedName, PodPrograms, ProgramId};

use super::State;
use super::chains::add_chain;
use crate::dataplane::closed::Subject;
use crate::dataplane::layout::{self, DropPoint, LocalPod, OwnSet, PodSet, PodVerdict, Table};
use crate::dataplane::op::{Op, Plan};
use crate::dataplane::update::Update;

#[derive(Debug, Clone)]
pub(super) struct Held {
    pods: usize,
    verdict: Option<Verdict>,
}

/// What a pod has in the tables.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Applied {
    /// Its elements and programs.
    pub(super) known: Option<Known>,
    /// Its interface, whose drops are counted.
    pub(super) local: Option<LocalPod>,
    /// Whether the interface has a chain of its own.
    guarded: bool,
}

/// What was, of all that a change touches.
#[derive(Debug, Default)]
struct Touched {
    elements: BTreeMap<(PodSet, Key), Option<Held>>,
    programs: BTreeMap<(Direction, ProgramId), usize>,
}

/// A pod that both the engine and the pod network know.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Known {
    pub(super) ifname: IfName,
    pub(super) local: LocalPod,
    pub(super) verdict: PodVerdict,
}

impl State {
    pub(super) fn take_pods(&mut self, update: &Update) {
        for (name, programs) in &update.policy.pods {
            match programs {
                Some(programs) => drop(self.pods.insert(name.clone(), *programs)),
                None => drop(self.pods.remove(name)),
            }
        }
        for (name, local) in &update.pods {
            match local {
                Some(local) => drop(self.local.insert(name.clone(), local.clone())),
                None => drop(self.local.remove(name)),
            }
        }
    }

    pub(super) fn pods(
        &mut self,
        names: BTreeSet<NamespacedName>,
        update: &Update,
        plan: &mut Plan,
        last: &mut Vec<Op>,
    ) {
        let mut touched = Touched::default();
        let (mut gone_veths, mut new_veths) = (BTreeMap::new(), BTreeMap::new());
        let mut come_or_gone = BTreeSet::new();
        let (mut gone_names, mut new_names) = (BTreeSet::new(), BTreeSet::new());
        for name in names {
            let before = self.applied.remove(&name).unwrap_or_default();
            let after = self.wanted(&name);
            let addresses = || before.local.iter().chain(&after.local).flat_map(LocalPod::addresses);
            match (&before.local, &after.local) {
                (Some(_), Some(_)) if before.known != after.known || before.local != after.local => {
                    self.concern.add(addresses());
                }
                (None, None) | (Some(_), Some(_)) => {}
                _ if update.pods.contains_key(&name) => come_or_gone.extend(addresses()),
                _ => self.concern.add(addresses()),
            }
            if before.known != after.known {
                before.known.iter().for_each(|known| self.hold(known, false, &mut touched));
                after.known.iter().for_each(|known| self.hold(known, true, &mut touched));
            }
            gone_names.extend(before.interface());
            new_names.extend(after.interface());
            if before.veth() != after.veth() {
                gone_veths.extend(before.veth().map(|(ifname, local)| (ifname, local.clone())));
                new_veths.extend(after.veth().map(|(ifname, local)| (ifname, local.clone())));
            }
            if after != Applied::default() {
                self.applied.insert(name, after);
            }
        }
        // Theirs are forgotten while they have no interface.
        self.concern.forgo(&come_or_gone);
        veths(gone_veths, &new_veths, plan);
        counts(&gone_names, &new_names, plan);
        self.elements(touched.elements, plan);
        self.chains(&touched.programs, plan, last);
    }

    /// What a pod is to have in the tables.
    fn wanted(&self, name: &NamespacedName) -> Applied {
        let Some(local) = self.local.get(name).filter(|_| !self.closings.omits(name)) else {
            return Applied::default();
        };
        Applied {
            known: self.known(name),
            local: Some(local.clone()),
            guarded: self.closings.why(&Subject::Pod(name.clone())).is_none(),
        }
    }

    /// What is in force for a pod: nothing until both the engine and the pod network know it.
    fn known(&self, name: &NamespacedName) -> Option<Known> {
        let (local, verdict) = (self.local.get(name)?, self.verdict(name)?);
        Some(Known { ifname: IfName::new(&local.ifname).ok()?, local: local.clone(), verdict })
    }

    /// What the engine's word about a pod comes to; `None` where it has not said any, or nothing of it is in the tables.
    pub(super) fn verdict(&self, name: &NamespacedName) -> Option<PodVerdict> {
        if self.closings.omits(name) {
            return None;
        }
        let there = |id: Option<ProgramId>| id.is_none_or(|id| self.programs.contains_key(&id));
        Some(match *self.pods.get(name)? {
            PodPrograms { ingress, egress }
                if there(ingress) && there(egress) && self.why_closed(name).is_none() =>
            {
                PodVerdict::Programs { ingress, egress }
            }
            _ => PodVerdict::Closed,
        })
    }

    /// Counts what a pod has in force, or has no longer.
    fn hold(&mut self, known: &Known, comes: bool, touched: &mut Touched) {
        for (set, element) in layout::pod_elements(known.ifname, &known.local, known.verdict) {
            let key = (set, element.key);
            let held = self.held.get(&key).cloned();
            touched.elements.entry(key).or_insert_with(|| held.clone());
            let pods = held.as_ref().map_or(0, |h| h.pods);
            let verdict = match element.data {
                Some(Data::Verdict(verdict)) => Some(verdict),
                _ => None,
            };
            if set == PodSet::Pods {
                match (comes, pods) {
                    (true, 0) => self.in_force += 1,
                    (false, 1) => self.in_force -= 1,
                    _ => {}
                }
            }
            match (comes, pods) {
                (true, _) => drop(self.held.insert(key, Held { pods: pods + 1, verdict })),
                (false, 0 | 1) => drop(self.held.remove(&key)),
                (false, _) => drop(self.held.insert(key, Held { pods: pods - 1, verdict })),
            }
        }
        if let PodVerdict::Programs { ingress, egress } = known.verdict {
            for (direction, id) in [(Direction::Ingress, ingress), (Direction::Egress, egress)] {
                let Some(id) = id else { continue };
                let count = self.used.entry((direction, id)).or_default();
                touched.programs.entry((direction, id)).or_insert(*count);
                *count = if comes { *count + 1 } else { count.saturating_sub(1) };
                if *count == 0 {
                    self.used.remove(&(direction, id));
                }
            }
        }
    }

    /// Plans the elements of pods that differ from what they were. All that go stand before all that come: the same key
    /// with another verdict is both.
    fn elements(&self, touched: BTreeMap<(PodSet, Key), Option<Held>>, plan: &mut Plan) {
        let mut gone: BTreeMap<PodSet, Vec<Element>> = BTreeMap::new();
        let mut come: BTreeMap<PodSet, Vec<Element>> = BTreeMap::new();
        for (key, before) in touched {
            let after = self.held.get(&key);
            let verdicts = (before.as_ref().map(|h| &h.verdict), after.map(|h| &h.verdict));
            if verdicts.0 == verdicts.1 {
                continue;
            }
            if let Some(held) = before {
                gone.entry(key.0).or_default().push(held.element(key.1));
            }
            if let Some(held) = after {
                come.entry(key.0).or_default().push(held.element(key.1));
            }
        }
        plan.commit.extend(gone.into_iter().map(|(set, e)| Op::DeleteElements(Table::Inet, set.set(), e)));
        plan.commit.extend(come.into_iter().map(|(set, e)| Op::AddElements(Table::Inet, set.set(), e)));
    }
}

impl Applied {
    /// The name of its interface, whatever is in force for it.
    pub(super) fn interface(&self) -> Option<IfName> {
        IfName::new(&self.local.as_ref()?.ifname).ok()
    }

    /// Its interface, if that has a chain of its own.
    pub(super) fn veth(&self) -> Option<(IfName, &LocalPod)> {
        self.interface().zip(self.local.as_ref()).filter(|_| self.guarded)
    }

    /// What says whose that one is.
    pub(super) fn own(&self) -> impl Iterator<Item = (OwnSet, Element)> + use<'_> {
        self.veth().into_iter().flat_map(|(ifname, local)| layout::own(ifname, local))
    }
}

impl Held {
    pub(super) fn element(&self, key: Key) -> Element {
        let element = Element::new(key);
        match &self.verdict {
            Some(verdict) => element.verdict(verdict.clone()),
            None => element,
        }
    }
}

/// Plans the elements in which the pods' drops are counted. One that stays is left alone: what it counted is in it.
fn counts(gone: &BTreeSet<IfName>, new: &BTreeSet<IfName>, plan: &mut Plan) {
    let elements = |names: &BTreeSet<IfName>, less: &BTreeSet<IfName>| -> Vec<Element> {
        names.difference(less).copied().map(DropPoint::pod).collect()
    };
    let (gone, new) = (elements(gone, new), elements(new, gone));
    for table in Table::ALL {
        for point in DropPoint::all_in(table) {
            if !gone.is_empty() {
                plan.commit.push(Op::DeleteElements(table, point.pods(), gone.clone()));
            }
            if !new.is_empty() {
                plan.commit.push(Op::AddElements(table, point.pods(), new.clone()));
            }
        }
    }
}

/// Plans the anti-spoofing chains, and what says whose they are. A new one is there before any element leads to its pod.
fn veths(gone: BTreeMap<IfName, LocalPod>, new: &BTreeMap<IfName, LocalPod>, plan: &mut Plan) {
    let own = |veths: &BTreeMap<IfName, LocalPod>| -> BTreeSet<(OwnSet, Key)> {
        let all = veths.iter().flat_map(|(ifname, local)| layout::own(*ifname, local));
        all.map(|(set, element)| (set, element.key)).collect()
    };
    let (own_gone, own_new) = (own(&gone), own(new));
    let of = |set: OwnSet, all: &BTreeSet<(OwnSet, Key)>, less: &BTreeSet<(OwnSet, Key)>| -> Vec<Element> {
        all.difference(less).filter(|(of, _)| *of == set).map(|(_, key)| Element::new(*key)).collect()
    };
    for set in OwnSet::ALL {
        let (gone, new) = (of(set, &own_gone, &own_new), of(set, &own_new, &own_gone));
        if !gone.is_empty() {
            plan.commit.push(Op::DeleteElements(Table::Netdev, set.set(), gone));
        }
        if !new.is_empty() {
            plan.commit.push(Op::AddElements(Table::Netdev, set.set(), new));
        }
    }
    for (ifname, local) in new {
        let chain = layout::veth_chain(*ifname, local);
        match gone.get(ifname) {
            None => add_chain(&mut plan.commit, chain),
            Some(before) if layout::veth_chain(*ifname, before) == chain => {}
            Some(_) => {
                plan.commit.push(Op::FlushChain(chain.table, chain.chain.name.clone()));
                plan.commit.push(Op::AddRules(chain.table, chain.chain.name, chain.rules));
            }
        }
    }
    for (ifname, _) in gone.into_iter().filter(|(name, _)| !new.contains_key(name)) {
        plan.commit.push(Op::DeleteChain(Table::Netdev, ifname.as_str().into()));
    }
}
