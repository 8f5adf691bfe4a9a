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

mod enforced;
mod pending;
mod pods;
mod waits;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use moat_api::{Attachments, Change, Hello, LEVEL};
use moat_manifests::Changes;
use moat_policies::{Cluster, Key, Limits, NamespacedName, Node, NodeDelta, Object, Objects, Pod};
use tokio::sync::Notify;

pub use enforced::Enforcement;
use enforced::Enforcements;
use pending::{Pending, Truth};
use pods::Pods;
use waits::{Progress, Until, Waits};

/// One connection of one agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AgentId(u64);

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
    agents: BTreeMap<AgentId, Agent>,
    /// The agent that speaks for a node.
    speaks_for: HashMap<Arc<str>, AgentId>,
    agents_so_far: u64,
}

/// A connected agent.
struct Agent {
    node: Arc<str>,
    pending: Pending,
    /// Woken when there is something to be told.
    wake: Arc<Notify>,
    /// The revision that it was told last.
    told: u64,
    progress: Progress,
    error: String,
    closed: u32,
    waits: Waits,
    /// What it was answered last.
    answered: u64,
}

/// What an agent is to be sent.
#[derive(Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// What changes on its node, and the revision that this leads to.
    pub change: Option<(u64, Change)>,
    /// Up to which number its announcements are in force elsewhere, where that has changed.
    pub announced: Option<u64>,
}

/// What is known of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentState {
    /// The node that it speaks for.
    pub node: Arc<str>,
    /// It holds everything that it is to hold, and has said that it is in force.
    pub current: bool,
    /// Why the newest that it was told is not in force.
    pub error: String,
    /// How many of its pods are closed because of the kernel or a limit.
    pub closed: u32,
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
        self.agents.values().map(|agent| AgentState {
            node: agent.node.clone(),
            current: agent.is_current(),
            error: agent.error.clone(),
            closed: agent.closed,
        })
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
            if !self.objects().nodes().contains_key(&node) && !self.speaks_for.contains_key(&node) {
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
        if let Some(before) = self.speaks_for.insert(hello.node.clone(), id) {
            self.remove(before);
        }
        let pending = Pending::from(&hello.held, &self.cluster.state(&hello.node), &self.truth(&hello.node));
        wake.notify_one();
        let agent = Agent {
            node: hello.node.clone(),
            pending,
            wake,
            told: 0,
            progress: Progress::default(),
            error: String::new(),
            closed: 0,
            waits: Waits::default(),
            answered: 0,
        };
        self.agents.insert(id, agent);
        self.enforced.join(id, hello.node.clone(), hello.version.clone());
        id
    }

    /// An agent has gone. What it said of its node's interfaces is still so.
    pub fn leave(&mut self, id: AgentId) {
        if let Some(agent) = self.remove(id)
            && self.speaks_for.get(&agent.node) == Some(&id)
        {
            self.speaks_for.remove(&agent.node);
        }
    }

    /// An agent says which interfaces there are on its node.
    pub fn attached(&mut self, id: AgentId, attachments: &Attachments) {
        let Some(agent) = self.agents.get(&id) else { return };
        let node = agent.node.clone();
        let mut touched = Touched::default();
        match self.pods.hear(&node, attachments) {
            None => self.locate_all_of(&node, &mut touched),
            Some(pods) => pods.iter().for_each(|pod| self.locate(pod, &mut touched)),
        }
        let moved = !touched.moved.is_empty();
        let concerned = self.note(touched);
        let on = self.agents.keys().filter_map(|agent| match (moved, concerned.contains(agent)) {
            (true, _) => Some((*agent, Until::Followed)),
            (false, true) => Some((*agent, Until::InForce)),
            (false, false) => None,
        });
        let on: Vec<_> = on.collect();
        if let Some(agent) = self.agents.get_mut(&id) {
            agent.waits.add(attachments.number, self.revision, on);
            agent.wake.notify_one();
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
        for agent in self.agents.values_mut() {
            agent.waits.came(id, progress);
            agent.answer();
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
        let node = self.agents.get(&id)?.node.clone();
        let revision = self.revision;
        let mut pending = std::mem::take(&mut self.agents.get_mut(&id)?.pending);
        let change = (!pending.is_empty()).then(|| (revision, pending.take(&self.truth(&node))));
        let agent = self.agents.get_mut(&id)?;
        if change.is_some() {
            agent.told = revision;
        }
        let answered = agent.waits.answered();
        let announced = (answered != agent.answered).then_some(answered);
        agent.answered = answered;
        Some(Outgoing { change, announced })
    }

    /// Wakes those who have only been told of nothing but addresses that are others' now. To be called now and then.
    pub fn flush(&self) {
        for agent in self.agents.values().filter(|agent| !agent.pending.is_empty()) {
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
        let mut concerned = BTreeSet::new();
        for (node, delta) in &deltas {
            if let Some(id) = self.speaks_for.get(node)
                && let Some(agent) = self.agents.get_mut(id)
            {
                agent.pending.policy(delta);
                concerned.insert(*id);
            }
        }
        for (node, pod) in &pods {
            if let Some(id) = self.speaks_for.get(node)
                && let Some(agent) = self.agents.get_mut(id)
            {
                agent.pending.pod(pod);
                concerned.insert(*id);
            }
        }
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
    fn remove(&mut self, id: AgentId) -> Option<Agent> {
        self.enforced.leave(id);
        let removed = self.agents.remove(&id)?;
        // So that whoever sends in its name finds out.
        removed.wake.notify_one();
        let gone = BTreeSet::from([id]);
        for agent in self.agents.values_mut() {
            agent.waits.gone(&gone);
            agent.answer();
        }
        Some(removed)
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

impl Agent {
    fn is_current(&self) -> bool {
        self.pending.is_empty() && self.progress.in_force >= self.told && self.error.is_empty()
    }

    /// There may be an answer for it.
    fn answer(&self) {
        if self.waits.answered() != self.answered {
            self.wake.notify_one();
        }
    }
}

/// The level that both speak; `None` where there is none.
pub fn common_level(theirs: u32) -> Option<u32> {
    Some(theirs.min(LEVEL)).filter(|level| *level > 0)
}

/// Whether the pod is who it was before, and has the address. An address that is a node's, too, is nobody's to lose.
fn still_has(now: Option<&Pod>, before: &Pod, address: &IpAddr) -> bool {
    let another = |now: &Pod| matches!((&now.uid, &before.uid), (Some(now), Some(before)) if now != before);
    let has = |now: &Pod| !now.finished && now.addresses.contains(address) && !another(now);
    before.host_network || now.is_some_and(has)
}
