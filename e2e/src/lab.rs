//! A running lab: built without policies, seen to work, then under the policies, and probed as often as anybody likes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use moat_policies::{Endpoint, Object, Objects, Protocol};

use crate::agent::Sources;
use crate::cells::{Cell, Host, Named, cells};
use crate::error::{LabError, Trying as _};
use crate::fabric::Fabric;
use crate::folder::{self, Loaded};
use crate::info::Info;
use crate::options::{Options, Purpose};
use crate::predict;
use crate::probe::{Prober, Station};
use crate::report::{Observed, Report};
use crate::rooms::{Rooms, check_socket_length};
use crate::space::Space;
use crate::state::StateDir;
use crate::topology::{self, Joined, Origin, Placed};
use crate::world::WorldHost;
use crate::write;

/// Everything that runs.
pub(crate) struct Lab {
    pub(crate) options: Options,
    pub(crate) state: StateDir,
    pub(crate) fabric: Fabric,
    pub(crate) rooms: Rooms,
    origin: Origin,
    world: Vec<WorldHost>,
    /// The servers of the pods and of the world, and who probes them.
    prober: Option<Prober>,
    /// How many cells there were when all of them passed.
    baseline: usize,
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
        let fabric = Fabric::build(&nodes, &world, options.joined).await?;
        // Faults and frames are about who shares a link with the pods.
        let asked = options.joined == Joined::Link || options.purpose == Purpose::Probe;
        let world = if asked { world } else { Vec::new() };
        let sources = Sources {
            manifests: vec![state.join("manifests"), state.join("nodes")],
            pod_status: state.join("pods"),
        };
        let rooms = Rooms::open(state.clone(), sources, &options, nodes, &fabric).await?;
        let mut lab = Self { options, state, fabric, rooms, origin, world, prober: None, baseline: 0 };
        lab.rooms.wait_until_applied(false).await?;
        lab.bring_up_to_date(&placed, tell).await?;
        lab.rooms.wait_until_applied(false).await?;
        lab.baseline(&loaded, &placed, tell).await?;
        tell("policies: waiting until they are in force on every node");
        point_to(&lab.state, &lab.options.folder)?;
        lab.rooms.wait_until_applied(false).await?;
        Ok(lab)
    }

    /// Before any policy: every packet passes, or else the network is broken and a denied cell would mean nothing.
    async fn baseline(&mut self, loaded: &Loaded, placed: &[Placed], tell: Tell<'_>) -> Result<(), LabError> {
        let hosts = self.hosts(placed);
        let cells = self.cells(&hosts);
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
        let loaded = self.load()?;
        let mut notes = loaded.warnings.clone();
        let placed = self.follow_placing(&loaded, tell).await?;
        notes.extend(self.rooms.wait_until_applied(true).await?);
        let before = self.rooms.fingerprint().ok();
        let hosts = self.hosts(&placed);
        let cells = self.cells(&hosts);
        let objects = predict::with_places(&loaded.objects, &placed, &hosts, false);
        let predicted = predict::predict(&objects, &hosts, &cells)?;
        let (expected, odd) = if with_expected {
            folder::load_expected(&self.options.folder, &cells, &hosts)?
        } else {
            (Vec::new(), None)
        };
        notes.extend(odd);
        notes.extend(unprobed(&placed));
        tell(&format!("{} probes under the policies", cells.len()));
        let (observed, retried) = self.observe(&hosts, &cells, &predicted).await?;
        if self.rooms.fingerprint().ok() != before {
            notes.push("the folder changed while it was probed: probe again".into());
        }
        let mut report = Report::new(&hosts, &cells, &predicted, observed, &expected);
        report.retried = retried;
        report.baseline = self.baseline;
        report.notes = notes;
        Ok(report)
    }

    /// Adds and removes pods as the folder says. What cannot be done is for the next probe to tell: the folder may be half edited.
    pub(crate) async fn follow(&mut self) {
        if let Ok(loaded) = self.load() {
            let _ = self.follow_placing(&loaded, &|_| {}).await;
        }
    }

    /// Where everything is.
    pub(crate) fn info(&self) -> Info {
        let (nodes, pods) = self.rooms.info();
        Info { folder: self.options.folder.clone(), made_nodes: self.origin == Origin::Lab, nodes, pods }
    }

    /// The folder as it is now, with the lab's own nodes.
    pub(crate) fn load(&self) -> Result<Loaded, LabError> {
        folder::load(&[self.options.folder.clone(), self.state.join("nodes")])
    }

    /// Brings the pods up to date with what was loaded; those that run stay where they are.
    pub(crate) async fn follow_placing(
        &mut self,
        loaded: &Loaded,
        tell: Tell<'_>,
    ) -> Result<Vec<Placed>, LabError> {
        let nodes = self.rooms.nodes();
        let given: Objects =
            loaded.objects.iter().filter(|o| matches!(o, Object::Node(_))).cloned().collect();
        if given != nodes.iter().cloned().map(Object::Node).collect() {
            return Err(LabError::NodesChanged);
        }
        let placed = topology::place(&loaded.objects, &nodes, &self.rooms.places())?;
        self.bring_up_to_date(&placed, tell).await?;
        Ok(placed)
    }

    async fn bring_up_to_date(&mut self, placed: &[Placed], tell: Tell<'_>) -> Result<(), LabError> {
        let outdated = self.rooms.outdated(placed);
        if !outdated.is_empty() {
            // Its servers hold on to the pods' namespaces.
            self.stop_prober().await;
        }
        for name in outdated {
            self.rooms.remove(&name).await?;
        }
        let missing = self.rooms.missing(placed);
        if !missing.is_empty() {
            tell(&format!("{} pods: moat-cni ADD", missing.len()));
        }
        self.rooms.add(&missing).await
    }

    pub(crate) fn hosts(&self, placed: &[Placed]) -> Vec<Host> {
        topology::hosts(placed, &self.rooms.nodes(), &self.world, &self.rooms.addresses())
    }

    /// What is asked. Behind a router that knows no pod, nobody outside can begin a conversation with one.
    fn cells(&self, hosts: &[Host]) -> Vec<Cell> {
        let begins = |cell: &Cell| {
            self.options.joined == Joined::Link || matches!(hosts[cell.source].endpoint, Endpoint::Pod(_))
        };
        cells(hosts).into_iter().filter(begins).collect()
    }

    /// Sends the packets.
    async fn observe(
        &mut self,
        hosts: &[Host],
        cells: &[Cell],
        predicted: &[bool],
    ) -> Result<(Vec<Observed>, usize), LabError> {
        if !self.prober.as_ref().is_some_and(|p| p.hosts().eq(hosts)) {
            self.stop_prober().await;
        }
        let prober = match self.prober.take() {
            Some(running) => running,
            None => self.start_prober(hosts).await?,
        };
        let probed = prober.probe_with_second_try(cells, predicted).await;
        // It goes on serving, for whoever looks around in the lab.
        self.prober = Some(prober);
        probed.trying(|| "cannot probe".into())
    }

    async fn start_prober(&self, hosts: &[Host]) -> Result<Prober, LabError> {
        let mut stations = Vec::with_capacity(hosts.len());
        let nodes = self.rooms.nodes();
        for host in hosts {
            let space = self.space_of(&host.endpoint)?.clone();
            let node = nodes.iter().find(|node| Some(&node.name) == host.node.as_ref());
            let outside_as = node.map(topology::node_addresses).unwrap_or_default();
            stations.push(Station { host: host.clone(), space, outside_as });
        }
        Prober::start(stations).await.trying(|| "cannot start the servers of the pods".into())
    }

    /// The namespace that a host is in.
    pub(crate) fn space_of(&self, host: &Endpoint) -> Result<&Arc<Space>, LabError> {
        let space = match host {
            Endpoint::Pod(name) => self.rooms.space_of(name),
            Endpoint::Address(_) => self.fabric.world(),
        };
        space.ok_or_else(|| LabError::Told(format!("{host} does not run")))
    }

    pub(crate) async fn stop_prober(&mut self) {
        if let Some(prober) = self.prober.take() {
            prober.stop().await;
        }
    }
}

/// What the lab does not ask, though it could be asked.
fn unprobed(placed: &[Placed]) -> Option<String> {
    let sctp = |p: &&Placed| p.pod.ports.iter().any(|c| c.protocol == Protocol::Sctp);
    let first = placed.iter().find(sctp)?;
    Some(format!("SCTP ports, such as {}'s, are not probed", first.pod.name))
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
