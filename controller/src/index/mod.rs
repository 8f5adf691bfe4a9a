//! What is in the cluster, and what each agent has still to be told of it. Synchronous; nothing in here waits or sends.
//!
//! ```text
//!   source ── Changes ──────┐                              ┌─▶ Pending of an agent ─┐ names
//!   agents ── Attachments ──┴─▶ Cluster ─ commit ─ deltas ─┤                        ├─ take ─▶ Change
//!                                  └── contents, asked when something is sent ──────┘
//!   agents ── Applied ─▶ Waits ─▶ Announced
//! ```
//!
//! Every change is worked out and noted before the call returns: whoever takes an agent's change then has all of it.

mod agents;
mod enforced;
mod pending;
mod pods;
mod sums;
mod waits;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use moat_api::{Announced, Attachments, Change, Hello};
use moat_manifests::Changes;
use moat_policies::{Cluster, Key, Limits, NamespacedName, Node, NodeDelta, Object, Objects, Pod};
use tokio::sync::Notify;

use agents::{Agent, Caller};
pub use agents::{AgentId, AgentState, common_level};
pub use enforced::Enforcement;
use enforced::Enforcements;
use pending::{Pending, Truth};
use pods::Pods;
use sums::Sums;
use waits::{Announcements, Progress};

/// All of it.
#[derive(Default)]
pub struct Index {
    cluster: Cluster,
    pods: Pods,
    /// Of each node the pods that are not in its network, with their UIDs.
    on_node: HashMap<Arc<str>, BTreeMap<NamespacedName, Option<Arc<str>>>>,
    /// Counts what changed anything.
    revision: u64,
    /// What people call the source's newest reading.
    fingerprint: Arc<str>,
    /// What agents say for people.
    enforced: Enforcements,
    /// Everybody who is connected.
    callers: BTreeMap<AgentId, Caller>,
    /// Those of them who follow this controller.
    agents: BTreeMap<AgentId, Agent>,
    /// The agent that speaks for a node.
    speaks_for: HashMap<Arc<str>, AgentId>,
    agents_so_far: u64,
    sums: Sums,
}

/// What an agent is to be sent.
#[derive(Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// What changes on its node, and the revision that this leads to.
    pub change: Option<(u64, Change)>,
    /// How far its announcements are in force elsewhere, where that has changed.
    pub announced: Option<Announced>,
}

/// What one call changes, until it is noted with the agents.
#[derive(Default)]
struct Touched {
    /// Pods of these nodes, for what policy does not say of them.
    pods: BTreeSet<(Arc<str>, NamespacedName)>,
    nodes: BTreeSet<Arc<str>>,
    /// Addresses that a pod had and has not any more.
    moved: BTreeSet<IpAddr>,
    /// How the network is to be.
    config: bool,
    /// What people call the state.
    fingerprint: bool,
}

impl Index {
    /// Nothing, in which the policies of one pod may ask for so much.
    pub fn new(limits: Limits) -> Self {
        Self { cluster: Cluster::with_limits(limits), ..Self::default() }
    }

    /// The objects as they are, pods with the addresses that they have.
    pub fn objects(&self) -> &Objects {
        self.cluster.objects()
    }

    /// Counts the changes.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Who is connected, and how far he is.
    pub fn agents(&self) -> impl Iterator<Item = AgentState> {
        self.agents.values().map(Agent::state)
    }

    /// The source says what became different.
    pub fn read(&mut self, changes: Changes) {
        self.take_in(changes, Touched::default());
    }

    /// The same, and what people call the state that this leads to.
    pub fn read_as(&mut self, changes: Changes, fingerprint: &str) {
        let mut touched = Touched::default();
        if *self.fingerprint != *fingerprint {
            self.fingerprint = fingerprint.into();
            touched.fingerprint = true;
            self.enforced.news().notify_one();
        }
        self.take_in(changes, touched);
    }

    /// What people call the source's newest reading.
    pub fn fingerprint(&self) -> &Arc<str> {
        &self.fingerprint
    }

    fn take_in(&mut self, changes: Changes, mut touched: Touched) {
        for key in &changes.delete {
            match key {
                Key::Pod(name) => self.describe(name, None, &mut touched),
                Key::Node(name) => {
                    self.cluster.delete(key);
                    touched.nodes.insert(name.clone());
                }
                Key::Namespace(_) | Key::Policy(_) => self.cluster.delete(key),
                Key::Config => {
                    self.cluster.delete(key);
                    touched.config = true;
                }
            }
        }
        // Nodes first: which addresses their pods may have depends on them.
        let (nodes, others): (Vec<_>, Vec<_>) =
            changes.apply.into_iter().partition(|object| matches!(object, Object::Node(_)));
        for object in nodes {
            if let Object::Node(node) = &object
                && self.objects().nodes().get(&node.name) != Some(node)
            {
                touched.nodes.insert(node.name.clone());
                self.cluster.apply(object);
            }
        }
        for object in others {
            match object {
                Object::Pod(pod) => self.describe(&pod.name.clone(), Some(pod), &mut touched),
                Object::Config(_) => {
                    self.cluster.apply(object);
                    touched.config = true;
                }
                other => self.cluster.apply(other),
            }
        }
        for (name, state) in changes.states {
            self.pods.put_state(name.clone(), state);
            self.locate(&name, &mut touched);
        }
        for node in touched.nodes.clone() {
            let nobody_speaks = || self.callers.values().all(|caller| caller.node != node);
            if !self.objects().nodes().contains_key(&node) && nobody_speaks() {
                self.pods.forget(&node);
            }
            self.locate_all_of(&node, &mut touched);
        }
        self.note(touched);
    }

    /// An agent is there. Another one that spoke for its node does not any more: its [`take`](Self::take) says so.
    pub fn join(&mut self, hello: &Hello, wake: Arc<Notify>) -> AgentId {
        self.agents_so_far += 1;
        let id = AgentId(self.agents_so_far);
        // An agent may follow and, by a connection of its own that is about to end, announce. Another process of it has taken its
        // place, and whatever the one before still has to say is not so any more.
        let follows = |id: &AgentId| self.agents.contains_key(id);
        let replaced = |(other, caller): (&AgentId, &Caller)| {
            let same_life = caller.life == hello.life && !hello.life.is_empty();
            let same_kind = follows(other) != hello.announces_only;
            (caller.node == hello.node && (same_kind || !same_life)).then_some(*other)
        };
        let replaced: Vec<AgentId> = self.callers.iter().filter_map(replaced).collect();
        replaced.into_iter().for_each(|before| self.remove(before));
        let (node, life) = (hello.node.clone(), hello.life.clone());
        if !hello.announces_only {
            self.speaks_for.insert(node.clone(), id);
            let mut sums = std::mem::take(&mut self.sums);
            let pending = Pending::from(&hello.held, &self.truth(&node), &mut sums);
            self.sums = sums;
            self.agents.insert(id, Agent::new(node.clone(), pending, wake.clone()));
        }
        wake.notify_one();
        self.enforced.join(id, node.clone(), hello.version.clone());
        self.callers.insert(id, Caller { node, life, wake, announcements: Announcements::default() });
        id
    }

    /// An agent has gone. What it said of its node's interfaces is still so.
    pub fn leave(&mut self, id: AgentId) {
        self.remove(id);
    }

    /// An agent says which interfaces there are on its node.
    pub fn attached(&mut self, id: AgentId, attachments: &Attachments) {
        let Some(caller) = self.callers.get(&id) else { return };
        let (node, life) = (caller.node.clone(), caller.life.clone());
        let mut touched = Touched::default();
        let about = self.pods.hear(&node, &life, attachments);
        match about.pods {
            None => self.locate_all_of(&node, &mut touched),
            Some(pods) => pods.iter().for_each(|pod| self.locate(pod, &mut touched)),
        }
        let (goes, whole) = (about.goes || !touched.moved.is_empty(), attachments.whole);
        let concerned = self.note(touched);
        // What this call changes is not all: what goes may have been known to go before, from the source; and what is said whole may
        // have been said before by a connection that took who waited with it.
        let known = self.agents.iter().filter(|(id, _)| whole || concerned.contains(id));
        let known: Vec<_> =
            known.filter_map(|(id, a)| Some((*id, a.lags(a.progress.in_force, self.revision)?))).collect();
        let gone = self.agents.iter().filter(|_| goes);
        let gone: Vec<_> =
            gone.filter_map(|(id, a)| Some((*id, a.lags(a.progress.followed, self.revision)?))).collect();
        if let Some(caller) = self.callers.get_mut(&id) {
            caller.announcements.add(attachments.number, known, gone);
            caller.wake.notify_one();
        }
    }

    /// An agent says what is in force.
    pub fn applied(&mut self, id: AgentId, applied: &moat_api::wire::Applied) {
        let Some(agent) = self.agents.get_mut(&id) else { return };
        // Nobody is further than what he was told.
        let up_to = |revision: u64| revision.min(agent.told);
        let progress = Progress { in_force: up_to(applied.revision), followed: up_to(applied.followed) };
        agent.progress = progress;
        agent.error.clone_from(&applied.error);
        agent.closed = applied.closed;
        for caller in self.callers.values_mut() {
            if caller.announcements.came(id, progress) {
                caller.wake.notify_one();
            }
        }
    }

    /// An agent says for people what is in force.
    pub fn enforced(&mut self, id: AgentId, enforced: moat_api::wire::Enforced) {
        self.enforced.hear(id, enforced);
    }

    /// What is in force on the nodes whose agents are connected, one entry a node.
    pub fn enforcements(&self) -> Vec<Enforcement> {
        self.enforced.all(|node| self.pods.on(node))
    }

    /// Told when [`enforcements`](Self::enforcements) or the fingerprint have changed; one may wait for it.
    pub fn enforcement_news(&self) -> Arc<Notify> {
        self.enforced.news().clone()
    }

    /// What an agent is to be sent now; `None` where it does not speak for its node any more.
    pub fn take(&mut self, id: AgentId) -> Option<Outgoing> {
        let announced = self.callers.get_mut(&id)?.announcements.take();
        let Some(agent) = self.agents.get_mut(&id) else {
            return Some(Outgoing { change: None, announced });
        };
        let revision = self.revision;
        let (node, mut pending) = (agent.node.clone(), std::mem::take(&mut agent.pending));
        if pending.is_empty() {
            return Some(Outgoing { change: None, announced });
        }
        agent.told = revision;
        Some(Outgoing { change: Some((revision, pending.take(&self.truth(&node)))), announced })
    }

    /// Wakes those of whom nothing is known but that addresses are others' now: in this turn of so many every one of which is to
    /// come once now and then. All at once they would hold up what cannot wait.
    pub fn flush(&self, turn: u64, of: u64) {
        let due = |(id, agent): &(&AgentId, &Agent)| id.0 % of == turn % of && !agent.pending.is_empty();
        for (_, agent) in self.agents.iter().filter(due) {
            agent.wake.notify_one();
        }
    }

    /// The source describes a pod so, or no longer.
    fn describe(&mut self, name: &NamespacedName, description: Option<Pod>, touched: &mut Touched) {
        let now = self.pods.describe(name, description, self.cluster.objects());
        let before = self.cluster.objects().pods().get(name);
        if before == now {
            return;
        }
        if let Some(before) = &before {
            touched.moved.extend(before.addresses.iter().filter(|a| !still_has(now.as_ref(), before, a)));
        }
        let place = |pod: &Pod| pod.node.clone().filter(|_| !pod.host_network && !pod.finished);
        let whose = |pod: &Pod| Some((place(pod)?, pod.uid.clone()));
        let (here_before, here_now) = (before.as_ref().and_then(whose), now.as_ref().and_then(whose));
        if here_before != here_now {
            for (node, _) in here_before.iter().chain(&here_now) {
                touched.pods.insert((node.clone(), name.clone()));
            }
            if let Some((node, _)) = here_before {
                let empty = self.on_node.get_mut(&node).is_some_and(|pods| {
                    pods.remove(name);
                    pods.is_empty()
                });
                if empty {
                    self.on_node.remove(&node);
                }
            }
            if let Some((node, uid)) = here_now {
                self.on_node.entry(node).or_default().insert(name.clone(), uid);
            }
        }
        match now {
            Some(pod) => self.cluster.apply(Object::Pod(pod)),
            None => self.cluster.delete(&Key::Pod(name.clone())),
        }
    }

    /// Something of where a pod is has changed.
    fn locate(&mut self, name: &NamespacedName, touched: &mut Touched) {
        if let Some(description) = self.pods.description(name, self.cluster.objects()) {
            self.describe(name, Some(description), touched);
        }
    }

    fn locate_all_of(&mut self, node: &str, touched: &mut Touched) {
        let pods: Vec<_> = self.on_node.get(node).into_iter().flat_map(|pods| pods.keys().cloned()).collect();
        pods.iter().for_each(|pod| self.locate(pod, touched));
    }

    /// Works out what was applied, and notes it with the agents. Returns those whose pods it concerns.
    fn note(&mut self, touched: Touched) -> BTreeSet<AgentId> {
        let deltas: BTreeMap<Arc<str>, NodeDelta> = self.cluster.commit();
        let Touched { pods, nodes, moved, config, fingerprint } = touched;
        let listed = !(deltas.is_empty() && pods.is_empty() && nodes.is_empty() && moved.is_empty());
        if !(listed || config || fingerprint) {
            return BTreeSet::new();
        }
        self.revision += 1;
        deltas.values().for_each(|delta| self.sums.change(delta));
        if !nodes.is_empty() {
            self.sums.change_nodes();
        }
        let mut concerned = BTreeSet::new();
        let mut tell = |node: &Arc<str>, what: &dyn Fn(&mut Pending)| {
            let Some(id) = self.speaks_for.get(node) else { return };
            let Some(agent) = self.agents.get_mut(id) else { return };
            what(&mut agent.pending);
            concerned.insert(*id);
        };
        deltas.iter().for_each(|(node, delta)| tell(node, &|pending| pending.policy(delta)));
        pods.iter().for_each(|(node, pod)| tell(node, &|pending| pending.pod(pod)));
        for agent in self.agents.values_mut() {
            nodes.iter().for_each(|node| agent.pending.node(node));
            agent.pending.moved(&moved);
            if config {
                agent.pending.config();
            }
            if fingerprint {
                agent.pending.fingerprint();
            }
            if agent.pending.is_pressing() {
                agent.wake.notify_one();
            }
        }
        concerned
    }

    /// Nobody waits for this one any more.
    fn remove(&mut self, id: AgentId) {
        self.enforced.leave(id);
        let Some(removed) = self.callers.remove(&id) else { return };
        // So that whoever sends in its name finds out.
        removed.wake.notify_one();
        if self.agents.remove(&id).is_none() {
            return;
        }
        if self.speaks_for.get(&removed.node) == Some(&id) {
            self.speaks_for.remove(&removed.node);
        }
        for caller in self.callers.values_mut() {
            if caller.announcements.left(id) {
                caller.wake.notify_one();
            }
        }
    }

    fn truth(&self, node: &str) -> Truth<'_> {
        static NONE: BTreeMap<NamespacedName, Option<Arc<str>>> = BTreeMap::new();
        Truth {
            view: self.cluster.node(node),
            pods: self.on_node.get(node).unwrap_or(&NONE),
            nodes: self.cluster.objects().nodes(),
            config: self.cluster.objects().config(),
            fingerprint: &self.fingerprint,
        }
    }

    /// The nodes of the cluster.
    pub fn nodes(&self) -> &BTreeMap<Arc<str>, Node> {
        self.cluster.objects().nodes()
    }
}

/// Whether the pod is who it was before, and has the address. An address that is a node's, too, is nobody's to lose.
fn still_has(now: Option<&Pod>, before: &Pod, address: &IpAddr) -> bool {
    let another = |now: &Pod| matches!((&now.uid, &before.uid), (Some(now), Some(before)) if now != before);
    let has = |now: &Pod| !now.finished && now.addresses.contains(address) && !another(now);
    before.host_network || now.is_some_and(has)
}
