//! What the kernel is to enforce, and the plan that every change of it leads to. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use ipnet::IpNet;
use moat_nfnetlink::nft::{Data, Element, IfName, Key, Value, Verdict};
use moat_policies::{
    self as policies, Direction, NamespacedName, PodPrograms, Program, ProgramId, SetChange, SetId, SetKind,
};

use super::closed::{Closings, Limits, Reason, Subject, sets_of};
use super::concern::Concern;
use super::judge;
use super::layout::{
    self, ChainRules, DropPoint, FastPath, HostPorts, Inside, LayoutConfig, LocalPod, Part, PodSet,
    PodVerdict, ProgramObjects, Senders, Table,
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
    /// Who may send what through the tunnel.
    senders: Senders,
    /// What is the cluster's.
    inside: Inside,
    /// Where ports of the node lead.
    host_ports: HostPorts,
    limits: Limits,
    /// What the kernel did not take, or a limit keeps from it: nothing of the pods that need it is in the tables but what
    /// drops everything.
    closings: Closings,
    /// Allow sets that are not in the tables: those that are closed, and those that only closed programs look into.
    absent: BTreeSet<SetId>,
    /// What each pod has in the tables.
    applied: BTreeMap<NamespacedName, Applied>,
    /// How many pods have each program in force, by direction: it has chains as long as there is one.
    used: BTreeMap<(Direction, ProgramId), usize>,
    /// How many of those programs lead to the chains of an allow set's peers: it has these as long as there is one.
    peers: BTreeMap<(Direction, SetId), usize>,
    /// The elements that pods have, and how many pods each.
    held: BTreeMap<(PodSet, Key), Held>,
    /// Whose connections the changes since the last look may have made allowed or denied.
    concern: Concern,
    /// The pods as who judges connections sees them, if somebody has asked since the last change.
    by_address: OnceLock<judge::Pods>,
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

/// What a pod has in the tables.
#[derive(Debug, Clone, Default, PartialEq)]
struct Applied {
    /// Its elements and programs.
    known: Option<Known>,
    /// Its interface, whose drops are counted.
    local: Option<LocalPod>,
    /// Whether the interface has a chain of its own.
    guarded: bool,
}

/// What a change does to an allow set.
#[derive(Debug, Default)]
struct SetDiff {
    /// The parts that there were, if there was such a set.
    before: Option<Vec<Part>>,
    add: Vec<policies::Element>,
    remove: Vec<policies::Element>,
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
    /// Where somebody looks after connections, they are judged anew until that is done; also those that are there before the
    /// first change.
    pub(crate) fn new(config: LayoutConfig, limits: Limits, followed: bool) -> Self {
        Self {
            config,
            followed,
            fast: if followed { FastPath::Shut } else { FastPath::Open },
            limits,
            closings: Closings::default(),
            absent: BTreeSet::new(),
            applied: BTreeMap::new(),
            sets: BTreeMap::new(),
            programs: BTreeMap::new(),
            pods: BTreeMap::new(),
            local: BTreeMap::new(),
            senders: Senders::default(),
            inside: Inside::default(),
            host_ports: HostPorts::default(),
            used: BTreeMap::new(),
            peers: BTreeMap::new(),
            held: BTreeMap::new(),
            concern: Concern::default(),
            by_address: OnceLock::new(),
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
    pub(crate) fn program(&self, id: ProgramId) -> Option<Arc<Program>> {
        self.programs.get(&id).cloned()
    }

    /// The pods of this node, for who judges.
    pub(crate) fn pods_by_address(&self) -> &judge::Pods {
        self.by_address.get_or_init(|| judge::Pods::of(self))
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

    /// Notes that the kernel did not take these. What leads there is not planned: it is for a listing to find out.
    pub(crate) fn close(&mut self, subjects: impl IntoIterator<Item = Subject>, reason: &Reason) {
        subjects.into_iter().for_each(|subject| self.closings.refuse(subject, reason.clone()));
        self.change(&Update::default(), true);
    }

    /// Lets these be tried again. What leads there is not planned, as before.
    pub(crate) fn open(&mut self, subjects: &[Subject]) {
        self.closings.lift(|subject| subjects.contains(subject));
        self.change(&Update::default(), true);
    }

    /// Lets all that the kernel refused be tried again, and plans it.
    pub(crate) fn reopen(&mut self) -> Plan {
        self.closings.lift(|_| true);
        self.change(&Update::default(), true)
    }

    /// Whether there is anything to be tried again.
    pub(crate) fn any_refused(&self) -> bool {
        self.closings.any_refused()
    }

    /// The pods of this node that are closed although the engine has said something about them, and why.
    pub(crate) fn closed(&self) -> BTreeMap<NamespacedName, String> {
        if self.closings.is_empty() {
            return BTreeMap::new();
        }
        self.local
            .keys()
            .filter_map(|name| Some((name.clone(), self.why_closed(name)?.to_string())))
            .collect()
    }

    /// What the sets and chains are called that are in the tables for a subject's sake.
    pub(crate) fn names(&self) -> BTreeMap<(Table, Arc<str>), Subject> {
        let mut names = BTreeMap::new();
        for (id, held) in &self.sets {
            let parts = held.parts(&self.config).into_iter();
            names.extend(parts.map(|p| ((Table::Inet, p.set(*id).name().clone()), Subject::Set(*id))));
        }
        for &(direction, id) in self.used.keys() {
            let Some(objects) = self.objects(direction, id) else { continue };
            let chains = objects.chains.into_iter().map(|c| c.chain.name);
            let all = chains.chain(objects.maps.into_iter().map(|(map, _)| map.name().clone()));
            names.extend(all.map(|name| ((Table::Inet, name), Subject::Program(id))));
        }
        for &(direction, id) in self.peers.keys() {
            let chains = self.peer_chains(direction, id).into_iter();
            names.extend(chains.map(|c| ((Table::Inet, c.chain.name), Subject::Set(id))));
        }
        for (name, applied) in &self.applied {
            let chain = applied.veth().map(|(ifname, _)| ifname.as_str().into());
            names.extend(chain.map(|chain| ((Table::Netdev, chain), Subject::Pod(name.clone()))));
        }
        names
    }

    /// The pods that have this element in a set of pods.
    pub(crate) fn pods_with(&self, set: &str, key: &Key) -> Vec<NamespacedName> {
        let has = |applied: &Applied| {
            let known = applied.known.iter();
            let elements = known.flat_map(|k| layout::pod_elements(k.ifname, &k.local, k.verdict));
            elements.into_iter().any(|(of, element)| of.name() == set && element.key == *key)
                || applied.interface().is_some_and(|ifname| DropPoint::pod(ifname).key == *key)
        };
        self.applied.iter().filter(|(_, applied)| has(applied)).map(|(name, _)| name.clone()).collect()
    }

    fn why_closed(&self, name: &NamespacedName) -> Option<&Reason> {
        if self.closings.is_empty() {
            return None;
        }
        let PodPrograms { ingress, egress } = *self.pods.get(name)?;
        let program =
            |id: Option<ProgramId>| id.and_then(|id| self.closings.why_program(id, self.programs.get(&id)?));
        self.closings
            .why(&Subject::Pod(name.clone()))
            .or_else(|| program(ingress))
            .or_else(|| program(egress))
    }

    /// Takes a change in, and plans what leads the tables there from where they were.
    pub(crate) fn advance(&mut self, update: &Update) -> Plan {
        self.change(update, false)
    }

    /// The same, and says whether what is closed has changed besides.
    fn change(&mut self, update: &Update, mut closings_changed: bool) -> Plan {
        let mut plan = Plan::default();
        let mut last = Vec::new();
        self.by_address = OnceLock::new();
        self.concern.merge(Concern::moved(update.moved.iter().copied()));
        let mut names: BTreeSet<NamespacedName> =
            update.policy.pods.keys().chain(update.pods.keys()).cloned().collect();
        let mut diffs = BTreeMap::new();
        for (id, change) in &update.policy.sets {
            diffs.insert(*id, self.take_set(*id, change));
        }
        for (id, program) in &update.policy.programs {
            if let Some(program) = program {
                self.programs.insert(*id, program.clone());
            }
        }
        self.take_pods(update);
        // What changes may well be taken now.
        if self.closings.any_refused() {
            let changes = |id: &ProgramId| {
                let mut sets = self.programs.get(id).into_iter().flat_map(|program| sets_of(program));
                update.policy.programs.contains_key(id) || sets.any(|id| update.policy.sets.contains_key(&id))
            };
            let concerned = |name: &NamespacedName| {
                let programs = self.pods.get(name).map(|p| [p.ingress, p.egress]);
                names.contains(name) || programs.into_iter().flatten().flatten().any(|id| changes(&id))
            };
            closings_changed |= self.closings.lift(|subject| match subject {
                Subject::Set(id) => update.policy.sets.contains_key(id),
                Subject::Program(id) => changes(id),
                Subject::Pod(name) => concerned(name),
            });
        }
        closings_changed |= self.limit();
        if closings_changed {
            names.extend(self.local.keys().chain(self.applied.keys()).cloned());
        }
        let absent = self.absent();
        let absent_before = std::mem::replace(&mut self.absent, absent);
        self.sets(diffs, &absent_before, &mut plan, &mut last);
        if update.senders.is_some() || update.inside.is_some() || update.host_ports.is_some() {
            self.net(update, &mut plan);
        }
        self.pods(names, update, &mut plan, &mut last);
        for (id, program) in &update.policy.programs {
            if program.is_none() {
                self.programs.remove(id);
            }
        }
        if self.followed && !plan.is_empty() && self.concern.is_about_others() {
            self.take(FastPath::Shut, &mut plan);
        }
        plan.commit.extend(last);
        plan
    }

    /// Every connection's mark says what is in force: all of them may take the fast path.
    pub(crate) fn followed(&mut self) -> Plan {
        let mut plan = Plan::default();
        self.take(FastPath::Open, &mut plan);
        plan
    }

    /// The tables are not known to have been in force: any connection may be one that they deny. To be asked before they are
    /// made right.
    pub(crate) fn distrust(&mut self) {
        self.concern.merge(Concern::all());
        if self.followed {
            self.fast = FastPath::Shut;
        }
    }

    fn take(&mut self, fast: FastPath, plan: &mut Plan) {
        if std::mem::replace(&mut self.fast, fast) != fast {
            let ChainRules { table, chain, rules } = layout::forward(&self.config, fast);
            plan.commit.push(Op::FlushChain(table, chain.name.clone()));
            plan.commit.push(Op::AddRules(table, chain.name, rules));
        }
    }

    /// Takes one allow set's change in.
    fn take_set(&mut self, id: SetId, change: &SetChange) -> SetDiff {
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
        self.concern.add(diff.add.iter().chain(&diff.remove).map(|element| element.address));
        diff
    }

    fn take_pods(&mut self, update: &Update) {
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

    /// Finds out what is above a limit; tells whether that has changed.
    fn limit(&mut self) -> bool {
        let Limits { classes, prefixes, elements } = self.limits;
        let mut limited = BTreeMap::new();
        for (id, program) in &self.programs {
            let count = program.classes.len();
            let reason = match program.excess {
                Some(excess) => Reason::Excess(excess),
                None if count > classes => Reason::Classes { count, limit: classes },
                None => continue,
            };
            limited.insert(Subject::Program(*id), reason);
        }
        for (id, set) in self.sets.iter().filter(|(_, s)| s.prefixes.len() > prefixes) {
            let reason = Reason::Prefixes { count: set.prefixes.len(), limit: prefixes };
            limited.insert(Subject::Set(*id), reason);
        }
        let all: usize = self.sets.values().map(HeldSet::size).sum();
        let mut changed = self.closings.limit(limited.clone());
        if all > elements {
            // What is left out anyhow does not count.
            let absent = self.absent();
            let mut present: Vec<(usize, SetId)> = self
                .sets
                .iter()
                .filter(|(id, _)| !absent.contains(id))
                .map(|(id, s)| (s.size(), *id))
                .collect();
            present.sort_unstable();
            let mut total: usize = present.iter().map(|(size, _)| size).sum();
            while total > elements
                && let Some((size, id)) = present.pop()
            {
                total -= size;
                limited.insert(Subject::Set(id), Reason::Elements { count: size, limit: elements });
            }
            changed = self.closings.limit(limited) || changed;
        }
        changed
    }

    /// The allow sets that are not to be in the tables.
    fn absent(&self) -> BTreeSet<SetId> {
        if self.closings.is_empty() {
            return BTreeSet::new();
        }
        let mut absent: BTreeSet<SetId> =
            self.sets.keys().filter(|id| self.closings.why(&Subject::Set(**id)).is_some()).copied().collect();
        let open_pods =
            self.pods.iter().filter(|(name, _)| self.closings.why(&Subject::Pod((*name).clone())).is_none());
        let open: BTreeSet<ProgramId> = open_pods
            .flat_map(|(_, programs)| [programs.ingress, programs.egress])
            .flatten()
            .filter(|id| {
                self.programs.get(id).is_some_and(|program| self.closings.why_program(*id, program).is_none())
            })
            .collect();
        let (open, closed): (Vec<_>, Vec<_>) = self.programs.iter().partition(|(id, _)| open.contains(id));
        let needed: BTreeSet<SetId> = open.into_iter().flat_map(|(_, program)| sets_of(program)).collect();
        absent.extend(closed.into_iter().flat_map(|(_, p)| sets_of(p)).filter(|id| !needed.contains(id)));
        absent
    }

    /// Plans the allow sets that come, change and go. Deletions go to `last`: nothing leads to the set then.
    fn sets(
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
                    let mut ops = |elements: &[policies::Element],
                                   op: fn(Table, moat_nfnetlink::nft::Set, Vec<Element>) -> Op| {
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

    fn pods(
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

    /// Plans the sets of the pod network.
    fn net(&mut self, update: &Update, plan: &mut Plan) {
        let before = self.net_sets();
        self.senders = update.senders.clone().unwrap_or_else(|| std::mem::take(&mut self.senders));
        self.inside = update.inside.clone().unwrap_or_else(|| std::mem::take(&mut self.inside));
        self.host_ports = update.host_ports.clone().unwrap_or_else(|| std::mem::take(&mut self.host_ports));
        // One that leads elsewhere now is both gone and come.
        let less = |these: &[Element], those: &[Element]| -> Vec<Element> {
            let those: BTreeMap<_, _> = those.iter().map(|e| ((e.key, e.end), &e.data)).collect();
            these.iter().filter(|e| those.get(&(e.key, e.end)) != Some(&&e.data)).cloned().collect()
        };
        for ((set, before), (_, after)) in before.into_iter().zip(self.net_sets()) {
            let (gone, come) = (less(&before, &after), less(&after, &before));
            if !gone.is_empty() {
                plan.commit.push(Op::DeleteElements(Table::Net, set.clone(), gone));
            }
            if !come.is_empty() {
                plan.commit.push(Op::AddElements(Table::Net, set, come));
            }
        }
    }

    /// The sets of the pod network, always in the same order.
    fn net_sets(&self) -> Vec<(moat_nfnetlink::nft::Set, Vec<Element>)> {
        let mut sets = Vec::new();
        if self.config.tunnel {
            sets.extend(layout::tunnel_sets(&self.senders));
        }
        if self.config.masquerade {
            sets.extend(self.inside.sets());
        }
        if self.config.host_ports {
            sets.extend(self.host_ports.sets());
        }
        sets
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
    fn verdict(&self, name: &NamespacedName) -> Option<PodVerdict> {
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

    /// Plans the chains of programs that came into use or fell out of it. Those of peers stay where another program leads there.
    fn chains(
        &mut self,
        before: &BTreeMap<(Direction, ProgramId), usize>,
        plan: &mut Plan,
        last: &mut Vec<Op>,
    ) {
        let objects = |wanted: fn(bool, bool) -> bool| -> Vec<(Direction, ProgramObjects)> {
            let all = before.iter().filter(|(program, n)| wanted(**n > 0, self.used.contains_key(program)));
            all.filter_map(|(&(direction, id), _)| Some((direction, self.objects(direction, id)?))).collect()
        };
        let (new, gone) = (objects(|before, now| !before && now), objects(|before, now| before && !now));
        let mut touched = BTreeMap::new();
        for (all, comes) in [(&new, true), (&gone, false)] {
            for (direction, id) in
                all.iter().flat_map(|(direction, o)| o.peers.iter().map(|id| (*direction, *id)))
            {
                let count = self.peers.entry((direction, id)).or_default();
                touched.entry((direction, id)).or_insert(*count);
                *count = if comes { *count + 1 } else { count.saturating_sub(1) };
            }
        }
        self.peers.retain(|_, count| *count > 0);
        let now = |peers| self.peers.contains_key(peers);
        for &(direction, id) in touched.iter().filter(|(p, n)| **n == 0 && now(p)).map(|(p, _)| p) {
            self.peer_chains(direction, id).into_iter().for_each(|chain| add_chain(&mut plan.stage, chain));
        }
        for (_, objects) in new {
            for (map, elements) in objects.maps {
                plan.stage.push(Op::AddSet(Table::Inet, map.clone()));
                plan.stage.push(Op::AddElements(Table::Inet, map, elements));
            }
            objects.chains.into_iter().for_each(|chain| add_chain(&mut plan.stage, chain));
        }
        // The reverse order, and before the sets that they look into.
        let delete = |c: ChainRules| Op::DeleteChain(Table::Inet, c.chain.name);
        let mut deletions = Vec::new();
        for (_, objects) in gone {
            deletions.extend(objects.chains.into_iter().map(delete));
            let maps = objects.maps.into_iter();
            deletions.extend(maps.map(|(map, _)| Op::DeleteSet(Table::Inet, map.name().clone())));
        }
        for &(direction, id) in touched.iter().filter(|(p, n)| **n > 0 && !now(p)).map(|(p, _)| p) {
            deletions.extend(self.peer_chains(direction, id).into_iter().map(delete));
        }
        last.splice(0..0, deletions);
    }

    fn parts(&self, set: SetId) -> Vec<Part> {
        self.sets.get(&set).map(|held| held.parts(&self.config)).unwrap_or_default()
    }

    fn peer_chains(&self, direction: Direction, set: SetId) -> [ChainRules; 2] {
        layout::peers(direction, set, self.parts(set))
    }

    fn objects(&self, direction: Direction, id: ProgramId) -> Option<ProgramObjects> {
        Some(layout::program(direction, id, self.programs.get(&id)?, &|set| self.parts(set)))
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
        for (id, held) in self.sets.iter().filter(|(id, _)| !self.absent.contains(id)) {
            let parts = held.content(&self.config);
            content.sets.extend(parts.into_iter().map(|(part, e)| (Table::Inet, part.set(*id), e)));
        }
        let sets = self.net_sets().into_iter();
        content.sets.extend(sets.map(|(set, elements)| (Table::Net, set, elements)));
        let interfaces: BTreeSet<IfName> = self.applied.values().filter_map(Applied::interface).collect();
        for table in Table::ALL {
            for point in DropPoint::all_in(table) {
                content.counters.push((table, point.name().into()));
                let elements = interfaces.iter().copied().map(DropPoint::pod).collect();
                content.sets.push((table, point.pods(), elements));
                content.sets.push((table, point.pairs(table), Vec::new()));
            }
            content.chains.extend(layout::fixed_chains(table, &self.config, self.fast));
        }
        for &(direction, id) in self.peers.keys() {
            content.chains.extend(self.peer_chains(direction, id));
        }
        for &(direction, id) in self.used.keys() {
            let Some(objects) = self.objects(direction, id) else { continue };
            let maps = objects.maps.into_iter();
            content.sets.extend(maps.map(|(map, elements)| (Table::Inet, map, elements)));
            content.chains.extend(objects.chains);
        }
        let veths = self.applied.values().filter_map(Applied::veth);
        content.chains.extend(veths.map(|(ifname, local)| layout::veth_chain(ifname, local)));
        content
    }
}

impl Applied {
    /// The name of its interface, whatever is in force for it.
    fn interface(&self) -> Option<IfName> {
        IfName::new(&self.local.as_ref()?.ifname).ok()
    }

    /// Its interface, if that has a chain of its own.
    fn veth(&self) -> Option<(IfName, &LocalPod)> {
        self.interface().zip(self.local.as_ref()).filter(|_| self.guarded)
    }
}

impl HeldSet {
    /// How many elements it has in the kernel, or a few more: prefixes that touch are one.
    fn size(&self) -> usize {
        self.elements.len() + self.prefixes.len()
    }

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
