//! What the kernel is to enforce, and the plan that every change of it leads to. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use moat_nfnetlink::nft::{Data, Element, IfName, Key, Value, Verdict};
use moat_policies::{
    self as policies, Direction, NamespacedName, PodPrograms, Program, ProgramId, SetChange, SetId, SetKind,
};

use super::concern::Concern;
use super::layout::{
    self, ChainRules, DropPoint, FastPath, LayoutConfig, LocalPod, Part, PodSet, PodVerdict, ProgramObjects,
    Table,
};
use super::op::{Op, Plan};
use super::update::Update;

/// What the kernel is to enforce.
#[derive(Debug, Clone)]
pub(crate) struct State {
    config: LayoutConfig,
    /// Whether somebody looks after connections when something has changed, and says when that is done.
    followed: bool,
    fast: FastPath,
    sets: BTreeMap<SetId, HeldSet>,
    programs: BTreeMap<ProgramId, Arc<Program>>,
    /// What the engine says about each pod.
    pods: BTreeMap<NamespacedName, PodPrograms>,
    /// What the pod network says about each pod.
    local: BTreeMap<NamespacedName, LocalPod>,
    /// Pods whose rules the kernel did not take, until they change: nothing of theirs is in the tables but what drops
    /// everything.
    refused: BTreeSet<NamespacedName>,
    /// How many pods have each program in force, by direction: it has chains as long as there is one.
    used: BTreeMap<(Direction, ProgramId), usize>,
    /// The elements that pods have, and how many pods each.
    held: BTreeMap<(PodSet, Key), Held>,
    /// Whose connections the changes since the last look may have made allowed or denied.
    concern: Concern,
}

#[derive(Debug, Clone)]
struct HeldSet {
    kind: SetKind,
    pods: bool,
    prefixes: Arc<[IpNet]>,
    elements: BTreeSet<policies::Element>,
}

#[derive(Debug, Clone)]
struct Held {
    pods: usize,
    verdict: Option<Verdict>,
}

/// What was, of all that a change touches.
#[derive(Debug, Default)]
struct Touched {
    elements: BTreeMap<(PodSet, Key), Option<Held>>,
    programs: BTreeMap<(Direction, ProgramId), usize>,
}

/// A pod that both the engine and the pod network know.
#[derive(Debug, Clone, PartialEq)]
struct Known {
    ifname: IfName,
    local: LocalPod,
    verdict: PodVerdict,
}

impl State {
    /// Nothing but the fixed chains.
    ///
    /// Where somebody looks after connections, they are judged anew until that is done; also those that are there before the first
    /// change.
    pub(crate) fn new(config: LayoutConfig, followed: bool) -> Self {
        Self {
            config,
            followed,
            fast: if followed { FastPath::Replies } else { FastPath::All },
            sets: BTreeMap::new(),
            programs: BTreeMap::new(),
            pods: BTreeMap::new(),
            local: BTreeMap::new(),
            refused: BTreeSet::new(),
            used: BTreeMap::new(),
            held: BTreeMap::new(),
            concern: Concern::default(),
        }
    }

    /// Whose connections the changes since the last call were about.
    pub(crate) fn take_concern(&mut self) -> Concern {
        std::mem::take(&mut self.concern)
    }

    /// The pods that the pod network knows, and what is in force for each; `None` where the engine does not know it.
    pub(crate) fn local_pods(
        &self,
    ) -> impl Iterator<Item = (&NamespacedName, &LocalPod, Option<PodVerdict>)> {
        self.local.iter().map(|(name, local)| (name, local, self.verdict(name)))
    }

    /// A program that some pod may have.
    pub(crate) fn program(&self, id: ProgramId) -> Option<&Program> {
        self.programs.get(&id).map(|program| &**program)
    }

    /// Whether a packet to or from this peer finds it in an allow set.
    pub(crate) fn set_holds(&self, id: SetId, element: &policies::Element) -> bool {
        let family = if element.address.is_ipv4() { self.config.v4 } else { self.config.v6 };
        family && self.sets.get(&id).is_some_and(|held| held.holds(element))
    }

    /// How many pods are in force.
    pub(crate) fn pods_in_force(&self) -> usize {
        self.held
            .range((PodSet::Pods, Key::from(Value::NfProto(0)))..)
            .take_while(|((set, _), _)| *set == PodSet::Pods)
            .count()
    }

    /// Closes the pods that a change is about, because the kernel did not take it. Their next change opens them again.
    pub(crate) fn refuse(&mut self, update: &Update) {
        let names: BTreeSet<NamespacedName> =
            update.policy.pods.keys().chain(update.pods.keys()).cloned().collect();
        let mut touched = Touched::default();
        for name in names {
            let before = self.known(&name);
            self.refused.insert(name.clone());
            let after = self.known(&name);
            before.iter().for_each(|known| self.hold(known, false, &mut touched));
            after.iter().for_each(|known| self.hold(known, true, &mut touched));
            self.concern.add(before.iter().chain(&after).flat_map(|known| known.local.addresses()));
        }
    }

    /// Takes a change in, and plans what leads the tables there from where they were.
    pub(crate) fn advance(&mut self, update: &Update) -> Plan {
        let mut plan = Plan::default();
        let mut last = Vec::new();
        self.concern.merge(Concern::moved(update.moved.iter().copied()));
        for (id, change) in &update.policy.sets {
            self.set(*id, change, &mut plan, &mut last);
        }
        for (id, program) in &update.policy.programs {
            if let Some(program) = program {
                self.programs.insert(*id, program.clone());
            }
        }
        self.pods(update, &mut plan, &mut last);
        for (id, program) in &update.policy.programs {
            if program.is_none() {
                self.programs.remove(id);
            }
        }
        if self.followed && !plan.is_empty() && self.concern.is_about_others() {
            self.take(FastPath::Replies, &mut plan);
        }
        plan.commit.extend(last);
        plan
    }

    /// Every connection's mark says what is in force: all of them may take the fast path.
    pub(crate) fn followed(&mut self) -> Plan {
        let mut plan = Plan::default();
        self.take(FastPath::All, &mut plan);
        plan
    }

    fn take(&mut self, fast: FastPath, plan: &mut Plan) {
        if std::mem::replace(&mut self.fast, fast) != fast {
            let ChainRules { table, chain, rules } = layout::forward(&self.config, fast);
            plan.commit.push(Op::FlushChain(table, chain.name.clone()));
            plan.commit.push(Op::AddRules(table, chain.name, rules));
        }
    }

    /// One allow set's change. Deletions go to `last`: nothing leads to the set then.
    fn set(&mut self, id: SetId, change: &SetChange, plan: &mut Plan, last: &mut Vec<Op>) {
        match change {
            SetChange::Create(new) => {
                let elements: BTreeSet<policies::Element> = new.elements.iter().copied().collect();
                match self.sets.get(&id) {
                    Some(held) => {
                        let add = elements.difference(&held.elements).copied().collect();
                        let remove = held.elements.difference(&elements).copied().collect();
                        self.change_set(id, add, remove, plan);
                    }
                    None => {
                        let held = HeldSet {
                            kind: new.kind,
                            pods: new.pods,
                            prefixes: new.prefixes.clone(),
                            elements,
                        };
                        for (part, elements) in held.content(&self.config) {
                            let set = part.set(id);
                            plan.stage.push(Op::AddSet(Table::Inet, set.clone()));
                            if !elements.is_empty() {
                                plan.stage.push(Op::AddElements(Table::Inet, set, elements));
                            }
                        }
                        self.sets.insert(id, held);
                    }
                }
            }
            SetChange::Update(update) => {
                let held = self.sets.get(&id).map(|h| &h.elements);
                let there = |e: &&policies::Element| held.is_some_and(|h| h.contains(*e));
                let add = update.add.iter().filter(|e| !there(e)).copied().collect();
                let remove = update.remove.iter().filter(there).copied().collect();
                self.change_set(id, add, remove, plan);
            }
            SetChange::Delete => {
                if let Some(held) = self.sets.remove(&id) {
                    let parts = held.parts(&self.config);
                    last.extend(
                        parts.into_iter().map(|p| Op::DeleteSet(Table::Inet, p.set(id).name().clone())),
                    );
                }
            }
        }
    }

    fn change_set(
        &mut self,
        id: SetId,
        add: Vec<policies::Element>,
        remove: Vec<policies::Element>,
        plan: &mut Plan,
    ) {
        let Some(held) = self.sets.get_mut(&id) else { return };
        self.concern.add(add.iter().chain(&remove).map(|element| element.address));
        let there = held.parts(&self.config);
        let mut ops = |elements: &[policies::Element],
                       op: fn(Table, moat_nfnetlink::nft::Set, Vec<Element>) -> Op| {
            for (part, elements) in by_part(elements) {
                if there.contains(&part) {
                    plan.commit.push(op(Table::Inet, part.set(id), elements));
                }
            }
        };
        ops(&remove, Op::DeleteElements);
        ops(&add, Op::AddElements);
        for element in &remove {
            held.elements.remove(element);
        }
        held.elements.extend(add);
    }

    fn pods(&mut self, update: &Update, plan: &mut Plan, last: &mut Vec<Op>) {
        let names: BTreeSet<&NamespacedName> = update.policy.pods.keys().chain(update.pods.keys()).collect();
        let mut touched = Touched::default();
        let (mut gone_veths, mut new_veths) = (BTreeMap::new(), BTreeMap::new());
        let mut come_or_gone = BTreeSet::new();
        let (mut gone_names, mut new_names) = (BTreeSet::new(), BTreeSet::new());
        for name in names {
            let before = self.known(name);
            let local_before = self.local.get(name).cloned();
            let veth_before = self.guarded(name).cloned();
            gone_names.extend(self.interface(name));
            self.refused.remove(name);
            if let Some(programs) = update.policy.pods.get(name) {
                match programs {
                    Some(programs) => drop(self.pods.insert(name.clone(), *programs)),
                    None => drop(self.pods.remove(name)),
                }
            }
            if let Some(local) = update.pods.get(name) {
                match local {
                    Some(local) => drop(self.local.insert(name.clone(), local.clone())),
                    None => drop(self.local.remove(name)),
                }
            }
            let after = self.known(name);
            let local_after = self.local.get(name);
            let addresses = || local_before.iter().chain(local_after).flat_map(LocalPod::addresses);
            match (&local_before, local_after) {
                (Some(_), Some(_)) if before != after || local_before.as_ref() != local_after => {
                    self.concern.add(addresses());
                }
                (Some(_), None) | (None, Some(_)) => come_or_gone.extend(addresses()),
                _ => {}
            }
            if before != after {
                before.iter().for_each(|known| self.hold(known, false, &mut touched));
                after.iter().for_each(|known| self.hold(known, true, &mut touched));
            }
            new_names.extend(self.interface(name));
            let veth_after = self.guarded(name);
            if veth_before.as_ref() != veth_after {
                gone_veths.extend(veth_before.and_then(|l| Some((IfName::new(&l.ifname).ok()?, l))));
                new_veths.extend(veth_after.and_then(|l| Some((IfName::new(&l.ifname).ok()?, l.clone()))));
            }
        }
        // Theirs are forgotten while they have no interface.
        self.concern.forgo(&come_or_gone);
        veths(gone_veths, &new_veths, plan);
        counts(&gone_names, &new_names, plan);
        self.elements(touched.elements, plan);
        self.chains(&touched.programs, plan, last);
    }

    /// The name of a pod's interface, whatever is in force for it: its drops are counted.
    fn interface(&self, name: &NamespacedName) -> Option<IfName> {
        IfName::new(&self.local.get(name)?.ifname).ok()
    }

    /// The interface of a pod, if it has a chain of its own.
    fn guarded(&self, name: &NamespacedName) -> Option<&LocalPod> {
        self.local.get(name).filter(|_| !self.refused.contains(name))
    }

    /// What is in force for a pod: nothing until both the engine and the pod network know it.
    fn known(&self, name: &NamespacedName) -> Option<Known> {
        let (local, verdict) = (self.local.get(name)?, self.verdict(name)?);
        Some(Known { ifname: IfName::new(&local.ifname).ok()?, local: local.clone(), verdict })
    }

    /// What the engine's word about a pod comes to; `None` where it has not said any.
    fn verdict(&self, name: &NamespacedName) -> Option<PodVerdict> {
        let there = |id: Option<ProgramId>| id.is_none_or(|id| self.programs.contains_key(&id));
        Some(match *self.pods.get(name)? {
            PodPrograms { ingress, egress }
                if there(ingress) && there(egress) && !self.refused.contains(name) =>
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

    /// Plans the chains of programs that came into use or fell out of it.
    fn chains(&self, before: &BTreeMap<(Direction, ProgramId), usize>, plan: &mut Plan, last: &mut Vec<Op>) {
        let now = |program| self.used.contains_key(program);
        for &(direction, id) in before.iter().filter(|(p, n)| **n == 0 && now(p)).map(|(p, _)| p) {
            let Some(objects) = self.objects(direction, id) else { continue };
            for chain in objects.classes {
                add_chain(&mut plan.stage, chain);
            }
            if let Some((map, elements)) = objects.map {
                plan.stage.push(Op::AddSet(Table::Inet, map.clone()));
                plan.stage.push(Op::AddElements(Table::Inet, map, elements));
            }
            add_chain(&mut plan.stage, objects.chain);
        }
        // The reverse order, and before the sets that they look into.
        let mut deletions = Vec::new();
        for &(direction, id) in before.iter().filter(|(p, n)| **n > 0 && !now(p)).map(|(p, _)| p) {
            let Some(objects) = self.objects(direction, id) else { continue };
            deletions.push(Op::DeleteChain(Table::Inet, objects.chain.chain.name));
            deletions.extend(objects.map.map(|(map, _)| Op::DeleteSet(Table::Inet, map.name().clone())));
            deletions.extend(objects.classes.into_iter().map(|c| Op::DeleteChain(Table::Inet, c.chain.name)));
        }
        last.splice(0..0, deletions);
    }

    fn objects(&self, direction: Direction, id: ProgramId) -> Option<ProgramObjects> {
        let parts = |set: SetId| self.sets.get(&set).map(|h| h.parts(&self.config)).unwrap_or_default();
        Some(layout::program(direction, id, self.programs.get(&id)?, &parts))
    }

    /// All that the tables are to hold: sets with their elements, and chains with their rules.
    pub(crate) fn content(&self) -> Content {
        let mut content = Content::default();
        for set in PodSet::ALL {
            content.sets.push((Table::Inet, set.set(), Vec::new()));
        }
        for ((set, key), held) in &self.held {
            // In the order of PodSet::ALL, which is the order of its values.
            content.sets[*set as usize].2.push(held.element(*key));
        }
        for (id, held) in &self.sets {
            let parts = held.content(&self.config);
            content.sets.extend(parts.into_iter().map(|(part, e)| (Table::Inet, part.set(*id), e)));
        }
        let interfaces: BTreeSet<IfName> =
            self.local.keys().filter_map(|name| self.interface(name)).collect();
        for table in Table::ALL {
            for point in DropPoint::all_in(table) {
                content.counters.push((table, point.name().into()));
                let elements = interfaces.iter().copied().map(DropPoint::pod).collect();
                content.sets.push((table, point.pods(), elements));
                content.sets.push((table, point.pairs(table), Vec::new()));
            }
            content.chains.extend(layout::fixed_chains(table, &self.config, self.fast));
        }
        for &(direction, id) in self.used.keys() {
            let Some(objects) = self.objects(direction, id) else { continue };
            content.chains.extend(objects.classes);
            content.sets.extend(objects.map.map(|(map, elements)| (Table::Inet, map, elements)));
            content.chains.push(objects.chain);
        }
        for local in self.local.keys().filter_map(|name| self.guarded(name)) {
            content.chains.extend(IfName::new(&local.ifname).ok().map(|n| layout::veth_chain(n, local)));
        }
        content
    }
}

impl HeldSet {
    fn parts(&self, config: &LayoutConfig) -> Vec<Part> {
        layout::parts(self.kind, self.pods, &self.prefixes, config)
    }

    fn holds(&self, element: &policies::Element) -> bool {
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

    fn content(&self, config: &LayoutConfig) -> Vec<(Part, Vec<Element>)> {
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

impl Held {
    fn element(&self, key: Key) -> Element {
        let element = Element::new(key);
        match &self.verdict {
            Some(verdict) => element.verdict(verdict.clone()),
            None => element,
        }
    }
}

/// All that the tables hold.
#[derive(Debug, Default)]
pub(crate) struct Content {
    /// Sets and maps with their elements.
    pub(crate) sets: Vec<(Table, moat_nfnetlink::nft::Set, Vec<Element>)>,
    /// Counters with names.
    pub(crate) counters: Vec<(Table, Arc<str>)>,
    /// Chains with their rules.
    pub(crate) chains: Vec<ChainRules>,
}

fn by_part<'a>(elements: impl IntoIterator<Item = &'a policies::Element>) -> BTreeMap<Part, Vec<Element>> {
    let mut parts: BTreeMap<Part, Vec<Element>> = BTreeMap::new();
    for element in elements {
        let (part, element) = layout::element(element);
        parts.entry(part).or_default().push(element);
    }
    parts
}

fn add_chain(ops: &mut Vec<Op>, chain: ChainRules) {
    let name = chain.chain.name.clone();
    ops.push(Op::AddChain(chain.table, chain.chain));
    ops.push(Op::AddRules(chain.table, name, chain.rules));
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

/// Plans the anti-spoofing chains. A new one is there before any element leads to its pod.
fn veths(gone: BTreeMap<IfName, LocalPod>, new: &BTreeMap<IfName, LocalPod>, plan: &mut Plan) {
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
