//! The cluster as the suites see it: the API server, and the networks of nodes and pods. It makes no difference to them how moat got
//! there.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use moat_lab::Process;
use serde_json::Value;

use super::interrupt::Interrupt;
use crate::api::Api;
use crate::network::Network;
use crate::plan::Plan;
use crate::state::{State, node_process};

/// A cluster that is up, and everything that a suite needs of it.
pub(crate) struct Field {
    pub(crate) plan: Plan,
    pub(crate) api: Api,
    /// Where the control plane is, and what is outside of the cluster for its pods.
    pub(crate) fabric: Network,
    pub(crate) nodes: Vec<NodeView>,
    pub(crate) interrupt: Interrupt,
    /// How long the API server stays away when it is taken away.
    pub(crate) away: Duration,
}

/// A node, seen from outside.
#[derive(Clone, Debug)]
pub(crate) struct NodeView {
    pub(crate) name: String,
    /// Its first process, by its number here.
    pub(crate) process: i32,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) network: Network,
}

impl Field {
    /// The cluster that is up under this name; the API server is away for so long when it is taken away.
    pub(crate) fn of(state: &State, away: Duration) -> Result<Self> {
        let plan = state.plan()?;
        let keeper: Process = state.keeper().context("the cluster has just ended")?;
        let fabric = Network::of_process(keeper.pid())?;
        let api = Api::connect(&plan, &fabric)?;
        let view = |node: crate::plan::Node| {
            let process =
                node_process(&keeper, &node.name).with_context(|| format!("{} does not run", node.name))?;
            let network = Network::of_process(process)?;
            Ok(NodeView { name: node.name, process, addresses: node.addresses, network })
        };
        let nodes = plan.nodes().into_iter().map(view).collect::<Result<_>>()?;
        Ok(Self { plan, api, fabric, nodes, interrupt: Interrupt::install()?, away })
    }

    /// The node of that name.
    pub(crate) fn node(&self, name: &str) -> Result<&NodeView> {
        self.nodes.iter().find(|node| node.name == name).with_context(|| format!("there is no node {name}"))
    }

    /// Waits for a condition, looking often.
    pub(crate) fn until(
        &self,
        what: &str,
        patience: Duration,
        mut there: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        let deadline = Instant::now() + patience;
        while !there()? {
            self.interrupt.check()?;
            if Instant::now() > deadline {
                bail!("not in {} s: {what}", patience.as_secs());
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Goes on for a time, unless somebody asks for the end: for what is to hold all the while.
    pub(crate) fn hold_for(&self, long: Duration) -> Result<()> {
        let until = Instant::now() + long;
        while Instant::now() < until {
            self.interrupt.check()?;
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// The network of a pod that has one of its own: of a process in a control group that has its UID in the name. While a container
    /// starts there are processes in it that are still in the node's network.
    pub(crate) fn network_of_pod(&self, uid: &str) -> Result<Option<Network>> {
        let word = format!("pod{uid}/");
        let nodes = self.nodes.iter().map(|node| node.network.number()).collect::<Result<Vec<_>>>()?;
        let inside = |pid: &u32| {
            fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.contains(&word))
        };
        for pid in numbers().filter(inside) {
            // It may have ended.
            let Ok(network) = Network::at(format!("/proc/{pid}/ns/net")) else { continue };
            if !nodes.contains(&network.number()?) {
                return Ok(Some(network));
            }
        }
        Ok(None)
    }

    /// The processes of the cluster with a program's name, in any of its networks.
    pub(crate) fn processes(&self, program: &str) -> Result<Vec<Process>> {
        let mut networks = vec![self.fabric.number()?];
        for node in &self.nodes {
            networks.push(node.network.number()?);
        }
        Ok(processes(program, &networks))
    }

    /// Those in the network of one node.
    pub(crate) fn processes_on(&self, node: &NodeView, program: &str) -> Result<Vec<Process>> {
        Ok(processes(program, &[node.network.number()?]))
    }
}

/// The kernel keeps 15 characters of a program's name.
fn processes(program: &str, networks: &[u64]) -> Vec<Process> {
    use std::os::unix::fs::MetadataExt as _;
    let short = &program[..program.len().min(15)];
    let ours = |pid: u32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        (name.trim_end() == short).then_some(())?;
        let network = fs::metadata(format!("/proc/{pid}/ns/net")).ok()?.ino();
        networks.contains(&network).then_some(())?;
        Process::of(pid).ok()
    };
    numbers().filter_map(ours).collect()
}

fn numbers() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Where containerd keeps the networks of a node's pods, from before they have an interface.
pub(crate) fn pod_networks(node: &NodeView) -> PathBuf {
    format!("/proc/{}/root/run/netns", node.process).into()
}

/// The texts of an array at a pointer, such as `/status/podIPs`.
pub(crate) fn array<'a>(object: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    object.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}
