//! The nodes and pods of a lab, each in its namespace: who is there, who comes, who goes.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use moat_policies::{NamespacedName, Node};
use tokio::task::JoinHandle;

use crate::agent::{Agent, AgentOptions, Sources};
use crate::cni::Sandbox;
use crate::error::{LabError, Trying as _};
use crate::fabric::Fabric;
use crate::info::{NodeInfo, PodInfo};
use crate::options::Options;
use crate::space::Space;
use crate::state::{StateDir, write_at_once};
use crate::topology::{Placed, node_addresses};
use crate::write;

/// A node, its namespace and its agent.
struct NodeRoom {
    node: Node,
    space: Arc<Space>,
    agent: Arc<Agent>,
}

/// A pod that runs.
struct PodRoom {
    node: Arc<str>,
    space: Arc<Space>,
    addresses: Vec<IpAddr>,
    /// `None`: it is in its node's network.
    sandbox: Option<Sandbox>,
}

/// An ADD on its way.
type Adding = JoinHandle<Result<Vec<IpAddr>, LabError>>;

/// All nodes and pods.
pub(crate) struct Rooms {
    state: StateDir,
    sources: Sources,
    cni: PathBuf,
    nodes: Vec<NodeRoom>,
    pods: BTreeMap<NamespacedName, PodRoom>,
}

impl Rooms {
    /// Starts the agents of the nodes; no pods yet.
    pub(crate) async fn open(
        state: StateDir,
        sources: Sources,
        options: &Options,
        nodes: Vec<Node>,
        fabric: &Fabric,
    ) -> Result<Self, LabError> {
        let agent = AgentOptions {
            program: options.programs.agent.clone(),
            restart: options.restart,
            arguments: options.agent_arguments(),
        };
        let mut rooms = Vec::with_capacity(nodes.len());
        for (node, space) in nodes.into_iter().zip(fabric.nodes()) {
            let folder = agent_folder(&state, &node.name);
            let agent = Agent::start(&agent, &node.name, space.clone(), folder, &sources).await?;
            rooms.push(NodeRoom { node, space: space.clone(), agent: Arc::new(agent) });
        }
        Ok(Self { state, sources, cni: options.programs.cni.clone(), nodes: rooms, pods: BTreeMap::new() })
    }

    /// The nodes.
    pub(crate) fn nodes(&self) -> Vec<Node> {
        self.nodes.iter().map(|room| room.node.clone()).collect()
    }

    /// Which node each pod is on.
    pub(crate) fn places(&self) -> BTreeMap<NamespacedName, Arc<str>> {
        self.pods.iter().map(|(name, room)| (name.clone(), room.node.clone())).collect()
    }

    /// The pods' addresses.
    pub(crate) fn addresses(&self) -> BTreeMap<NamespacedName, Vec<IpAddr>> {
        self.pods.iter().map(|(name, room)| (name.clone(), room.addresses.clone())).collect()
    }

    /// The namespace that a pod is in.
    pub(crate) fn space_of(&self, pod: &NamespacedName) -> Option<&Arc<Space>> {
        self.pods.get(pod).map(|room| &room.space)
    }

    /// The pods that run and should not, or not there.
    pub(crate) fn outdated(&self, placed: &[Placed]) -> Vec<NamespacedName> {
        let wanted: BTreeMap<&NamespacedName, &Placed> = placed.iter().map(|p| (&p.pod.name, p)).collect();
        let moved =
            |p: &&Placed, room: &PodRoom| p.node != room.node || p.pod.host_network != room.sandbox.is_none();
        let outdated =
            self.pods.iter().filter(|(name, room)| wanted.get(name).is_none_or(|p| moved(p, room)));
        outdated.map(|(name, _)| name.clone()).collect()
    }

    /// The pods that should run and do not.
    pub(crate) fn missing<'p>(&self, placed: &'p [Placed]) -> Vec<&'p Placed> {
        placed.iter().filter(|p| !self.pods.contains_key(&p.pod.name)).collect()
    }

    /// Adds pods, all at once, as kubelets would, and tells every agent their addresses. One that fails does not hold back the others.
    pub(crate) async fn add(&mut self, missing: &[&Placed]) -> Result<(), LabError> {
        let mut adds = Vec::with_capacity(missing.len());
        for p in missing {
            let (room, add) = self.start(p)?;
            adds.push((p.pod.name.clone(), room, add));
        }
        let mut failed = Ok(());
        for (name, mut room, add) in adds {
            if let Err(error) = room.added(add).await {
                failed = Err(error);
                continue;
            }
            self.write_status(&name, &room)?;
            self.pods.insert(name, room);
        }
        failed
    }

    /// A room for the pod, and its ADD; none for a pod in its node's network, whose addresses are the node's.
    fn start(&self, p: &Placed) -> Result<(PodRoom, Option<Adding>), LabError> {
        let name = &p.pod.name;
        let room = self.room_of(&p.node);
        let node = p.node.clone();
        if p.pod.host_network {
            let addresses = node_addresses(&room.node);
            return Ok((PodRoom { node, space: room.space.clone(), addresses, sandbox: None }, None));
        }
        let space = Space::new(&name.name).trying(|| format!("cannot make a namespace for {name}"))?;
        let netns = self.state.join("netns").join(file_name(name));
        space.bind_to(&netns).trying(|| format!("cannot mount {}", netns.display()))?;
        let sandbox = Sandbox {
            pod: name.clone(),
            netns,
            node: room.space.clone(),
            agent_socket: room.agent.socket(),
            program: self.cni.clone(),
        };
        let adding = sandbox.clone();
        let add = tokio::spawn(async move { adding.add().await });
        let space = Arc::new(space);
        Ok((PodRoom { node, space, addresses: Vec::new(), sandbox: Some(sandbox) }, Some(add)))
    }

    /// Removes a pod.
    pub(crate) async fn remove(&mut self, name: &NamespacedName) -> Result<(), LabError> {
        if !self.pods.contains_key(name) {
            return Ok(());
        }
        self.detach(name).await?;
        self.forget(name)
    }

    /// Adds a pod to its node's network, and tells nobody.
    pub(crate) async fn attach(&mut self, p: &Placed) -> Result<Vec<IpAddr>, LabError> {
        let (mut room, add) = self.start(p)?;
        room.added(add).await?;
        let addresses = room.addresses.clone();
        self.pods.insert(p.pod.name.clone(), room);
        Ok(addresses)
    }

    /// Removes a pod from its node's network, and tells nobody.
    pub(crate) async fn detach(&mut self, name: &NamespacedName) -> Result<(), LabError> {
        match self.pods.remove(name).and_then(|room| room.sandbox) {
            Some(sandbox) => discard(&sandbox).await,
            None => Ok(()),
        }
    }

    /// Tells every agent the addresses of a pod that runs.
    pub(crate) fn announce(&self, name: &NamespacedName) -> Result<(), LabError> {
        self.pods.get(name).map_or(Ok(()), |room| self.write_status(name, room))
    }

    /// Tells every agent that a pod has no address any more.
    pub(crate) fn forget(&self, name: &NamespacedName) -> Result<(), LabError> {
        let status = self.status_file(name);
        fs::remove_file(&status).trying(|| format!("cannot remove {}", status.display()))
    }

    fn write_status(&self, name: &NamespacedName, room: &PodRoom) -> Result<(), LabError> {
        let host = node_addresses(&self.room_of(&room.node).node);
        let document = write::pod_status(name, &room.node, &host, &room.addresses);
        let file = self.status_file(name);
        write_at_once(&file, document.to_string().as_bytes())
            .trying(|| format!("cannot write {}", file.display()))
    }

    /// The agent of a node, and the node's namespace.
    pub(crate) fn agent_of(&self, node: &str) -> (&Arc<Agent>, &Arc<Space>) {
        let room = self.room_of(node);
        (&room.agent, &room.space)
    }

    fn status_file(&self, name: &NamespacedName) -> PathBuf {
        self.sources.pod_status.join(format!("{}.json", file_name(name)))
    }

    fn room_of(&self, node: &str) -> &NodeRoom {
        // `place` gives out names of our nodes only, and there is at least one.
        self.nodes.iter().find(|room| &*room.node.name == node).unwrap_or(&self.nodes[0])
    }

    /// Waits until every agent has put into its node's kernel what the folders say now. Agents that have ended are an error, or,
    /// where the lab can go on `without` them, what is returned: their nodes go on enforcing what they last wrote.
    pub(crate) async fn wait_until_applied(&self, without: bool) -> Result<Vec<String>, LabError> {
        let mut notes = Vec::new();
        for room in &self.nodes {
            if without {
                let again =
                    |how| format!("the agent of {} ended ({how}) and was started again", room.node.name);
                notes.extend(room.agent.news().into_iter().map(again));
            }
            match room.agent.ended() {
                Some(status) if without => notes.push(format!(
                    "the agent of {} has ended ({status}); its node enforces what it last wrote",
                    room.node.name
                )),
                _ => room.agent.wait_until_applied(&self.sources).await?,
            }
        }
        Ok(notes)
    }

    /// The fingerprint of what the agents are to apply.
    pub(crate) fn fingerprint(&self) -> Result<String, LabError> {
        self.sources.fingerprint()
    }

    /// Where the nodes and pods are.
    pub(crate) fn info(&self) -> (Vec<NodeInfo>, Vec<PodInfo>) {
        let texts = |addresses: &[IpAddr]| addresses.iter().map(ToString::to_string).collect();
        let nodes = self.nodes.iter().map(|room| NodeInfo {
            name: room.node.name.to_string(),
            addresses: texts(&node_addresses(&room.node)),
            target: room.space.thread_id(),
            agent: room.agent.process().pid(),
            log: room.agent.log(),
        });
        let pods = self.pods.iter().map(|(name, room)| PodInfo {
            name: name.to_string(),
            node: room.node.to_string(),
            addresses: texts(&room.addresses),
            target: room.space.thread_id(),
        });
        (nodes.collect(), pods.collect())
    }
}

impl PodRoom {
    /// Waits until its ADD, where it has one, is done, and takes the addresses that came of it.
    async fn added(&mut self, add: Option<Adding>) -> Result<(), LabError> {
        let Some(add) = add else { return Ok(()) };
        match add.await.trying(|| "a task ended early".into()).flatten() {
            Ok(addresses) => {
                self.addresses = addresses;
                Ok(())
            }
            Err(error) => {
                // As a runtime does: what an ADD left half done is for DEL to undo.
                if let Some(sandbox) = &self.sandbox {
                    let _ = discard(sandbox).await;
                }
                Err(error)
            }
        }
    }
}

/// Detaches a pod from the network, and takes its namespace's path away.
async fn discard(sandbox: &Sandbox) -> Result<(), LabError> {
    let deleted = sandbox.del().await;
    let netns = &sandbox.netns;
    rustix::mount::unmount(netns, rustix::mount::UnmountFlags::DETACH)
        .trying(|| format!("cannot unmount {}", netns.display()))?;
    fs::remove_file(netns).trying(|| format!("cannot remove {}", netns.display()))?;
    deleted
}

/// A Unix socket's path has to fit into 107 bytes: refuses a state folder in which an agent's would not.
pub(crate) fn check_socket_length(state: &StateDir, nodes: &[Node]) -> Result<(), LabError> {
    let sockets = nodes.iter().map(|n| Agent::socket_in(&agent_folder(state, &n.name)));
    match sockets.max_by_key(|path| path.as_os_str().len()) {
        Some(path) if path.as_os_str().len() > 107 => Err(LabError::LongPath(path)),
        _ => Ok(()),
    }
}

/// Where a node's agent has its log, its state and its socket.
fn agent_folder(state: &StateDir, node: &str) -> PathBuf {
    state.join(Path::new("node").join(node))
}

/// Namespaces' and pods' names hold no underscore.
fn file_name(name: &NamespacedName) -> String {
    format!("{}_{}", name.namespace, name.name)
}
