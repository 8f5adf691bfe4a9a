//! What the kernel is to enforce, and the plan that every change of it leads to. Pure.
//!
//! A change is taken in here; each room below plans what follows for its part of the tables.

mod chains;
mod limits;
mod net;
mod pods;
mod sets;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use moat_nfnetlink::nft::{Element, IfName, Key};
use moat_policies::{self as policies, Direction, NamespacedName, PodPrograms, Program, ProgramId, SetId};

use self::pods::{Applied, Held};
use self::sets::HeldSet;

use super::closed::{Closings, Limits, Reason, Subject, sets_of};
use super::concern::Concern;
use super::judge;
use super::layout::{
    self, ChainRules, DropPoint, FastPath, HostPorts, Inside, LayoutConfig, Live, LocalPod, OwnSet, PodSet,
    PodVerdict, Senders, Table,
};
use super::op::{Op, Plan};
use super::revoked::Revoked;
use super::update::Update;

/// What the kernel is to enforce.
#[derive(Debug, Clone)]
pub(crate) struct State {
    config: LayoutConfig,
    /// Whether somebody looks after connections when something has changed, and says when that is done.
    followed: bool,
    fast: FastPath,
    /// Whose connections are revoked, while all may take the fast path.
    revoked: Revoked,
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
    /// How many of them are in [`PodSet::Pods`].
    in_force: usize,
    /// Whose connections the changes since the last look may have made allowed or denied.
    concern: Concern,
    /// The pods as who judges connections sees them, if somebody has asked since the last change.
    by_address: OnceLock<judge::Pods>,
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
            revoked: Revoked::default(),
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
            in_force: 0,
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
        self.in_force
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
                || applied.own().any(|(of, element)| of.name() == set && element.key == *key)
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

    /// Every connection's mark says what is in force, and these are revoked: all of them may take the fast path.
    pub(crate) fn followed(&mut self, revoked: Revoked) -> Plan {
        let mut plan = Plan::default();
        self.revoked = revoked;
        self.take(FastPath::Open, &mut plan);
        plan
    }

    /// Whether connections take the fast path.
    pub(crate) fn is_open(&self) -> bool {
        self.fast == FastPath::Open
    }

    /// Whether a connection with this end may be revoked. While connections are judged anew, any may be.
    fn may_be_revoked(&self, address: IpAddr) -> bool {
        self.fast == FastPath::Shut || self.revoked.may_be_of(address)
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

    /// What of the layout may change; returns what it was, if that is something else. The whole layout is to be written then.
    pub(crate) fn lay_out(&mut self, live: Live) -> Option<LayoutConfig> {
        let config = self.config.with(live);
        (config != self.config).then(|| std::mem::replace(&mut self.config, config))
    }

    /// The layout is as it was before [`lay_out`](Self::lay_out).
    pub(crate) fn lay_out_as_before(&mut self, config: LayoutConfig) {
        self.config = config;
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
        content.sets.extend(self.net_sets());
        let interfaces: BTreeSet<IfName> = self.applied.values().filter_map(Applied::interface).collect();
        for table in Table::ALL {
            for point in DropPoint::all_in(table) {
                content.counters.push((table, point.name().into()));
                let elements = interfaces.iter().copied().map(DropPoint::pod).collect();
                content.sets.push((table, point.pods(), elements));
                content.sets.push((table, point.pairs(table, self.config.drop_log), Vec::new()));
            }
            content.chains.extend(layout::fixed_chains(table, &self.config, self.fast));
        }
        content.chains.extend(self.host_port_chains());
        for &(direction, id) in self.peers.keys() {
            content.chains.extend(self.peer_chains(direction, id));
        }
        for &(direction, id) in self.used.keys() {
            let Some(objects) = self.objects(direction, id) else { continue };
            let maps = objects.maps.into_iter();
            content.sets.extend(maps.map(|(map, elements)| (Table::Inet, map, elements)));
            content.chains.extend(objects.chains);
        }
        for set in OwnSet::ALL {
            let all = self.applied.values().flat_map(Applied::own);
            let elements = all.filter(|(of, _)| *of == set).map(|(_, element)| element).collect();
            content.sets.push((Table::Netdev, set.set(), elements));
        }
        let veths = self.applied.values().filter_map(Applied::veth);
        content.chains.extend(veths.map(|(ifname, local)| layout::veth_chain(ifname, local)));
        content
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
