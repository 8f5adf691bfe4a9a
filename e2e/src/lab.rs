//! A running lab: its nodes with their agents, its pods, the outside world.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use moat_policies::{Endpoint, NamespacedName, Node, Object, Objects};
use serde::{Deserialize, Serialize};

use crate::agent::{Agent, Sources};
use crate::cells::{Cell, Host, Named, cells};
use crate::cni::Sandbox;
use crate::error::{LabError, Trying as _};
use crate::fabric::Fabric;
use crate::folder::{self, Loaded};
use crate::predict;
use crate::probe::{Prober, Station};
use crate::report::{Observed, Report};
use crate::space::Space;
use crate::state::{StateDir, write_at_once};
use crate::topology::{self, Families, Origin, Placed};
use crate::world::WorldHost;
use crate::write;

/// What a lab is made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// The folder of manifests; absolute.
    pub folder: PathBuf,
    /// How many nodes, where the manifests hold no Node objects.
    pub nodes: usize,
    /// Of which families, likewise.
    pub families: Families,
    /// The binaries.
    pub programs: Programs,
}

/// The real processes of a lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Programs {
    /// `moat-agent`.
    pub agent: PathBuf,
    /// `moat-cni`.
    pub cni: PathBuf,
}

impl Programs {
    /// Those beside the running binary.
    pub fn beside_this_one() -> Result<Self, LabError> {
        let own = std::env::current_exe().trying(|| "cannot find the running program's folder".into())?;
        let beside = |name: &str| {
            let path = own.with_file_name(name);
            if path.is_file() { Ok(path) } else { Err(LabError::MissingProgram(path)) }
        };
        Ok(Self { agent: beside("moat-agent")?, cni: beside("moat-cni")? })
    }
}

/// A node, its namespace and its agent.
struct NodeRoom {
    node: Node,
    space: Arc<Space>,
    agent: Agent,
}

/// A pod that runs.
struct PodRoom {
    node: Arc<str>,
    space: Arc<Space>,
    addresses: Vec<IpAddr>,
    /// `None`: it is in its node's network.
    sandbox: Option<Sandbox>,
}

/// Everything that runs.
pub(crate) struct Lab {
    options: Options,
    state: StateDir,
    sources: Sources,
    fabric: Fabric,
    nodes: Vec<NodeRoom>,
    origin: Origin,
    pods: BTreeMap<NamespacedName, PodRoom>,
    world: Vec<WorldHost>,
    /// The servers of the pods and of the world, and who probes them.
    prober: Option<Prober>,
    /// How many cells there were when all of them passed.
    baseline: usize,
    /// Built. An agent that ends before that is an error; one that ends later leaves a node that can be probed.
    up: bool,
}

/// Tells whoever waits what is being done.
pub(crate) type Tell<'a> = &'a (dyn Fn(&str) + Sync);

impl Lab {
    /// Builds the lab with no policy in force, sees that all packets pass, puts the policies in, and waits until they are
    /// enforced.
    pub(crate) async fn build(options: Options, state: StateDir, tell: Tell<'_>) -> Result<Self, LabError> {
        let own = folder::load(std::slice::from_ref(&options.folder))?;
        let world = folder::load_world(&options.folder)?;
        let (nodes, origin) = topology::nodes(&own.objects, options.nodes, options.families)?;
        let sources = Sources {
            manifests: vec![state.join("manifests"), state.join("nodes")],
            pod_status: state.join("pods"),
        };
        check_socket_length(&state, &nodes)?;
        for folder in ["nodes", "pods", "baseline", "node"] {
            let path = state.join(folder);
            fs::create_dir_all(&path).trying(|| format!("cannot make {}", path.display()))?;
        }
        if origin == Origin::Lab {
            let documents = nodes.iter().map(write::node).collect();
            state.write_json("nodes/nodes.json", &write::list(documents))?;
        }
        // Read again with the nodes: a DaemonSet stands for one pod a node.
        let loaded = folder::load(&[options.folder.clone(), state.join("nodes")])?;
        let placed = topology::place(&loaded.objects, &nodes, &BTreeMap::new())?;
        // Node objects of the lab's own making are in `nodes/` already.
        state.write_json("baseline/objects.json", &write::without_policies(&own_objects(&loaded, origin)))?;
        point_to(&state, Path::new("baseline"))?;

        tell(&format!("{} nodes: links, addresses, agents", nodes.len()));
        let world: Vec<WorldHost> = topology::reachable_world(&world, &nodes).cloned().collect();
        let fabric = Fabric::build(&nodes, &world).await?;
        let mut rooms = Vec::with_capacity(nodes.len());
        for (node, space) in nodes.into_iter().zip(fabric.nodes()) {
            let folder = agent_folder(&state, &node.name);
            let agent =
                Agent::start(&options.programs.agent, &node.name, space.clone(), folder, &sources).await?;
            rooms.push(NodeRoom { node, space: space.clone(), agent });
        }
        let pods = BTreeMap::new();
        let mut lab = Self {
            options,
            state,
            sources,
            fabric,
            nodes: rooms,
            origin,
            pods,
            world,
            prober: None,
            baseline: 0,
            up: false,
        };
        lab.wait_until_applied().await?;
        lab.bring_up_to_date(&placed, tell).await?;
        lab.wait_until_applied().await?;
        lab.baseline(&loaded, &placed, tell).await?;
        tell("policies: waiting until they are in force on every node");
        point_to(&lab.state, &lab.options.folder)?;
        lab.wait_until_applied().await?;
        lab.up = true;
        Ok(lab)
    }

    /// Before any policy: every packet passes, or else the network is broken and a denied cell would mean nothing.
    async fn baseline(&mut self, loaded: &Loaded, placed: &[Placed], tell: Tell<'_>) -> Result<(), LabError> {
        let hosts = self.hosts(placed);
        let cells = cells(&hosts);
        tell(&format!("{} probes with no policy in force: all must pass", cells.len()));
        let objects = predict::with_places(&loaded.objects, placed, &hosts, true);
        let predicted = predict::predict(&objects, &hosts, &cells)?;
        let (observed, _) = self.observe(&hosts, &cells, &predicted).await?;
        let broken: Vec<String> = cells
            .iter()
            .zip(&observed)
            .filter(|(_, seen)| **seen != Observed::Allowed)
            .map(|(cell, seen)| format!("  {}: {seen}", Named(cell, &hosts)))
            .collect();
        if broken.is_empty() {
            self.baseline = cells.len();
            return Ok(());
        }
        let examples = broken[..broken.len().min(10)].join("\n");
        Err(LabError::DeadNetwork { broken: broken.len(), cells: cells.len(), examples })
    }

    /// Reads the folder as it is now, brings the pods up to date with it, waits until that is enforced, and probes everything.
    pub(crate) async fn probe(&mut self, with_expected: bool, tell: Tell<'_>) -> Result<Report, LabError> {
        let loaded = folder::load(&[self.options.folder.clone(), self.state.join("nodes")])?;
        let mut notes = loaded.warnings.clone();
        let placed = self.place_pods(&loaded, tell).await?;
        notes.extend(self.wait_until_applied().await?);
        let hosts = self.hosts(&placed);
        let cells = cells(&hosts);
        let objects = predict::with_places(&loaded.objects, &placed, &hosts, false);
        let predicted = predict::predict(&objects, &hosts, &cells)?;
        let (expected, odd) = if with_expected {
            folder::load_expected(&self.options.folder, &cells, &hosts)?
        } else {
            (Vec::new(), None)
        };
        notes.extend(odd);
        tell(&format!("{} probes under the policies", cells.len()));
        let (observed, retried) = self.observe(&hosts, &cells, &predicted).await?;
        let mut report = Report::new(&hosts, &cells, &predicted, observed, &expected);
        report.retried = retried;
        report.baseline = self.baseline;
        report.notes = notes;
        Ok(report)
    }

    /// Brings the pods up to date with what was loaded.
    async fn place_pods(&mut self, loaded: &Loaded, tell: Tell<'_>) -> Result<Vec<Placed>, LabError> {
        self.check_nodes(&loaded.objects)?;
        let already = self.pods.iter().map(|(name, room)| (name.clone(), room.node.clone())).collect();
        let placed = topology::place(&loaded.objects, &self.node_objects(), &already)?;
        self.bring_up_to_date(&placed, tell).await?;
        Ok(placed)
    }

    async fn observe(
        &mut self,
        hosts: &[Host],
        cells: &[Cell],
        predicted: &[bool],
    ) -> Result<(Vec<Observed>, usize), LabError> {
        let prober = match self.prober.take() {
            Some(running) if running.hosts().eq(hosts) => running,
            other => {
                if let Some(outdated) = other {
                    outdated.stop().await;
                }
                self.start_prober(hosts).await?
            }
        };
        let probed = prober.probe_with_second_try(cells, predicted).await;
        // It goes on serving, for whoever looks around in the lab.
        self.prober = Some(prober);
        probed.trying(|| "cannot probe".into())
    }

    /// Adds the pods that are missing, and removes those that are no longer there.
    async fn bring_up_to_date(&mut self, placed: &[Placed], tell: Tell<'_>) -> Result<(), LabError> {
        let wanted: BTreeMap<&NamespacedName, &Placed> = placed.iter().map(|p| (&p.pod.name, p)).collect();
        let gone: Vec<NamespacedName> = self
            .pods
            .iter()
            .filter(|(name, room)| {
                wanted
                    .get(name)
                    .is_none_or(|p| p.node != room.node || p.pod.host_network != room.sandbox.is_none())
            })
            .map(|(name, _)| name.clone())
            .collect();
        if !gone.is_empty() {
            // Its servers hold on to the pods' namespaces.
            if let Some(prober) = self.prober.take() {
                prober.stop().await;
            }
        }
        for name in gone {
            self.remove_pod(&name).await?;
        }
        let missing: Vec<&Placed> = placed.iter().filter(|p| !self.pods.contains_key(&p.pod.name)).collect();
        if !missing.is_empty() {
            tell(&format!("{} pods: moat-cni ADD", missing.len()));
        }
        // All at once, as kubelets would.
        let mut adds = Vec::with_capacity(missing.len());
        for p in missing {
            let (room, add) = self.start_pod(p)?;
            adds.push((p.pod.name.clone(), room, add));
        }
        let mut failed = Ok(());
        for (name, mut room, add) in adds {
            let added = match add {
                Some(add) => add.await.trying(|| "a task ended early".into()).flatten(),
                None => Ok(std::mem::take(&mut room.addresses)),
            };
            match added {
                Ok(addresses) => {
                    room.addresses = addresses;
                    self.write_status(&name, &room)?;
                    self.pods.insert(name, room);
                }
                Err(error) => {
                    // As a runtime does: what an ADD left half done is for DEL to undo.
                    if let Some(sandbox) = &room.sandbox {
                        let _ = discard(sandbox).await;
                    }
                    failed = Err(error);
                }
            }
        }
        failed
    }

    /// A room for the pod, and its ADD on the way; none for a pod in its node's network, whose addresses are the node's.
    fn start_pod(&self, p: &Placed) -> Result<(PodRoom, Option<Adding>), LabError> {
        let name = &p.pod.name;
        let room = self.node_room(&p.node);
        let node = p.node.clone();
        if p.pod.host_network {
            let addresses = topology::node_addresses(&room.node);
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
            program: self.options.programs.cni.clone(),
        };
        let adding = sandbox.clone();
        let add = tokio::spawn(async move { adding.add().await });
        let space = Arc::new(space);
        Ok((PodRoom { node, space, addresses: Vec::new(), sandbox: Some(sandbox) }, Some(add)))
    }

    async fn remove_pod(&mut self, name: &NamespacedName) -> Result<(), LabError> {
        let Some(room) = self.pods.remove(name) else { return Ok(()) };
        if let Some(sandbox) = &room.sandbox {
            discard(sandbox).await?;
        }
        let status = self.status_file(name);
        fs::remove_file(&status).trying(|| format!("cannot remove {}", status.display()))
    }

    fn write_status(&self, name: &NamespacedName, room: &PodRoom) -> Result<(), LabError> {
        let host = topology::node_addresses(&self.node_room(&room.node).node);
        let document = write::pod_status(name, &room.node, &host, &room.addresses);
        let file = self.status_file(name);
        write_at_once(&file, document.to_string().as_bytes())
            .trying(|| format!("cannot write {}", file.display()))
    }

    fn status_file(&self, name: &NamespacedName) -> PathBuf {
        self.sources.pod_status.join(format!("{}.json", file_name(name)))
    }

    /// Waits for every agent that runs; says which do not.
    async fn wait_until_applied(&self) -> Result<Vec<String>, LabError> {
        let mut notes = Vec::new();
        for room in &self.nodes {
            match room.agent.ended() {
                Some(status) if self.up => {
                    let node = &room.node.name;
                    notes.push(format!(
                        "the agent of {node} has ended ({status}); its node enforces what it last wrote"
                    ));
                }
                _ => room.agent.wait_until_applied(&self.sources).await?,
            }
        }
        Ok(notes)
    }

    fn check_nodes(&self, objects: &[Object]) -> Result<(), LabError> {
        let given: Objects = objects.iter().filter(|o| matches!(o, Object::Node(_))).cloned().collect();
        let own: Objects = self.node_objects().into_iter().map(Object::Node).collect();
        if given == own { Ok(()) } else { Err(LabError::NodesChanged) }
    }

    fn node_objects(&self) -> Vec<Node> {
        self.nodes.iter().map(|room| room.node.clone()).collect()
    }

    fn node_room(&self, name: &str) -> &NodeRoom {
        // `place` gives out names of our nodes only.
        let found = self.nodes.iter().find(|room| &*room.node.name == name);
        found.unwrap_or(&self.nodes[0])
    }

    fn hosts(&self, placed: &[Placed]) -> Vec<Host> {
        let addresses = self.pods.iter().map(|(name, room)| (name.clone(), room.addresses.clone())).collect();
        topology::hosts(placed, &self.node_objects(), &self.world, &addresses)
    }

    async fn start_prober(&self, hosts: &[Host]) -> Result<Prober, LabError> {
        let mut stations = Vec::with_capacity(hosts.len());
        for host in hosts {
            let space = match &host.endpoint {
                Endpoint::Pod(name) => self.pods.get(name).map(|room| &room.space),
                Endpoint::Address(_) => self.fabric.world(),
            };
            let space = space.ok_or_else(|| LabError::Told(format!("{} does not run", host.endpoint)))?;
            stations.push(Station { host: host.clone(), space: space.clone() });
        }
        Prober::start(stations).await.trying(|| "cannot start the servers of the pods".into())
    }

    /// Adds and removes pods as the folder says. What cannot be done is for the next probe to tell: the folder may be half edited.
    pub(crate) async fn follow(&mut self) {
        let Ok(loaded) = folder::load(&[self.options.folder.clone(), self.state.join("nodes")]) else {
            return;
        };
        let _ = self.place_pods(&loaded, &|_| {}).await;
    }

    /// Where everything is.
    pub(crate) fn info(&self) -> Info {
        let texts = |addresses: &[IpAddr]| addresses.iter().map(ToString::to_string).collect();
        Info {
            folder: self.options.folder.clone(),
            made_nodes: self.origin == Origin::Lab,
            nodes: self
                .nodes
                .iter()
                .map(|room| NodeInfo {
                    name: room.node.name.to_string(),
                    addresses: texts(&topology::node_addresses(&room.node)),
                    target: room.space.thread_id(),
                    agent: i32::try_from(room.agent.pid()).unwrap_or_default(),
                    log: agent_folder(&self.state, &room.node.name).join("agent.log"),
                })
                .collect(),
            pods: self
                .pods
                .iter()
                .map(|(name, room)| PodInfo {
                    name: name.to_string(),
                    node: room.node.to_string(),
                    addresses: texts(&room.addresses),
                    target: room.space.thread_id(),
                })
                .collect(),
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

type Adding = tokio::task::JoinHandle<Result<Vec<IpAddr>, LabError>>;

/// Where everything of a lab is. Process and thread numbers are as the reader's process namespace has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// The folder that the agents watch.
    pub folder: PathBuf,
    /// Whether the lab made the nodes up.
    pub made_nodes: bool,
    /// The nodes.
    pub nodes: Vec<NodeInfo>,
    /// The pods.
    pub pods: Vec<PodInfo>,
}

/// A node of a lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Its name.
    pub name: String,
    /// Its addresses on the fabric.
    pub addresses: Vec<String>,
    /// What `nsenter --target` takes.
    pub target: i32,
    /// Its agent's process number.
    pub agent: i32,
    /// Its agent's log.
    pub log: PathBuf,
}

/// A pod of a lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodInfo {
    /// `namespace/name`.
    pub name: String,
    /// Its node.
    pub node: String,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// What `nsenter --target` takes.
    pub target: i32,
}

/// A Unix socket's path has to fit into 107 bytes.
fn check_socket_length(state: &StateDir, nodes: &[Node]) -> Result<(), LabError> {
    let longest = nodes
        .iter()
        .map(|n| agent_folder(state, &n.name).join("run/agent.sock"))
        .max_by_key(|p| p.as_os_str().len());
    match longest {
        Some(path) if path.as_os_str().len() > 107 => Err(LabError::LongPath(path)),
        _ => Ok(()),
    }
}

/// Where a node's agent has its log, its state and its socket.
fn agent_folder(state: &StateDir, node: &str) -> PathBuf {
    state.join("node").join(node)
}

/// Of what was loaded, what is not of the lab's own making.
fn own_objects(loaded: &Loaded, origin: Origin) -> Vec<Object> {
    let keep = |o: &&Object| origin == Origin::Manifests || !matches!(o, Object::Node(_));
    loaded.objects.iter().filter(keep).cloned().collect()
}

/// Makes the agents watch another folder, in one step: the link that they were given is replaced.
fn point_to(state: &StateDir, folder: &Path) -> Result<(), LabError> {
    let (link, new) = (state.join("manifests"), state.join(".manifests.new"));
    std::os::unix::fs::symlink(folder, &new)
        .and_then(|()| fs::rename(&new, &link))
        .trying(|| format!("cannot point {} to {}", link.display(), folder.display()))
}

/// Namespaces and pods' names hold no underscore.
fn file_name(name: &NamespacedName) -> String {
    format!("{}_{}", name.namespace, name.name)
}
