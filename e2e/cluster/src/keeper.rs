//! The process that holds a cluster: process 1 of the cluster's process namespace. It builds, says when everything is ready,
//! and then watches over the control plane until it is killed.
//!
//! When it ends, however that comes about, the kernel ends every process of the cluster, and with them go the mounts, the networks and
//! all that is in them.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use serde::{Deserialize, Serialize};

use crate::daemon::{Running, hold, wait_until};
use crate::kubectl::{self, kubectl};
use crate::node::{CABLED, JOIN, STARTED};
use crate::plan::{API_PORT, CONTROL_PLANE, Node, Plan, text};
use crate::spaces::{self, spawn_in};
use crate::state::CGROUPS_MADE;
use crate::{cgroups, config, control_plane, deploy, pki};

/// What the front writes to the keeper's stdin when the cluster is to outlive it.
pub(crate) const STAY: &str = "stay";
/// On a machine that does other things as well.
const PATIENCE: Duration = Duration::from_secs(180);

/// What the keeper tells the front, one a line of JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Event {
    /// What is being done.
    Progress(String),
    /// All nodes are ready.
    Ready,
    /// It cannot be done.
    Failed(String),
}

/// Builds and holds the cluster. Returns only with an error.
pub(crate) fn run(plan: &Plan) -> Result<()> {
    let done = settle(plan).and_then(|listener| build(plan, listener));
    match done {
        Ok(all) => {
            say(&Event::Ready);
            hold(all)
        }
        Err(error) => {
            say(&Event::Failed(format!("{error:#}")));
            Err(error)
        }
    }
}

/// The first steps, before there are threads: away from the terminal, own mounts, own network. Returns what is left of the host's
/// network: the socket at which people reach the API server.
fn settle(plan: &Plan) -> Result<TcpListener> {
    rustix::process::setsid().context("cannot leave the terminal")?;
    rustix::thread::set_name(c"moat-cluster")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context("cannot make mounts private")?;
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", "proc", plain, None).context("cannot mount /proc")?;
    let data = plan.state.join("etcd");
    fs::create_dir_all(&data)?;
    mount("etcd", &data, "tmpfs", MountFlags::empty(), None).context("cannot mount etcd's folder")?;
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("cannot listen on 127.0.0.1")?;
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
    cgroups::fresh_sys()?;
    hold_leash();
    Ok(listener)
}

fn build(plan: &Plan, listener: TcpListener) -> Result<Vec<Running>> {
    let started = Instant::now();
    let progress =
        |what: &str| say(&Event::Progress(format!("{:5.1} s  {what}", started.elapsed().as_secs_f64())));
    progress("certificates and configuration");
    write_files(plan, listener.local_addr()?.port())?;
    fs::write(plan.state.join(CGROUPS_MADE), "")?;
    cgroups::make(plan)?;
    spaces::ip(&spaces::fabric(plan))?;
    thread::spawn(move || proxy(&listener));
    progress("etcd, kube-apiserver, and containerd on every node");
    let mut all = vec![control_plane::etcd(plan, &text(plan.state.join("etcd"))).start()?];
    let mut api_server = control_plane::api_server(plan).start()?;
    let mut nodes = Vec::new();
    for node in plan.nodes() {
        nodes.push(Room::open(plan, node)?);
    }
    let admin = plan.inner_kubeconfig("admin");
    let healthy = || {
        let mut command = kubectl(plan, &admin);
        command.args(["get", "--raw", "/readyz"]).output().is_ok_and(|output| output.status.success())
    };
    let listens = || TcpStream::connect((CONTROL_PLANE, API_PORT)).is_ok();
    api_server.wait_until(PATIENCE, listens)?;
    api_server.wait_until(PATIENCE, healthy)?;
    all.push(api_server);
    progress("the API server answers: controller manager, scheduler, kubelets");
    all.push(control_plane::controller_manager(plan).start()?);
    all.push(control_plane::scheduler(plan).start()?);
    deploy::begin(plan)?;
    for node in &mut nodes {
        node.join()?;
    }
    progress("waiting for the nodes");
    let pod_cidrs = registered(plan)?;
    // The API server speaks to pods as well, as a control plane's machine does.
    spaces::ip(&spaces::routes(&pod_cidrs, None))?;
    if plan.moat.is_none() {
        for (room, (node, cidrs)) in nodes.iter().zip(&pod_cidrs) {
            spaces::ip_of(room.child.id(), &spaces::routes(&pod_cidrs, Some(node)))?;
            write_json(&node.cni().join("10-reference.conflist"), &config::reference_cni(cidrs))?;
        }
    }
    ready(plan)?;
    progress("all nodes are ready: waiting for what runs on them");
    deploy::wait(plan, PATIENCE)?;
    progress("all pods are ready");
    Ok(all)
}

/// Certificates, and every configuration file.
fn write_files(plan: &Plan, port: u16) -> Result<()> {
    fs::create_dir_all(plan.logs())?;
    pki::write(plan)?;
    for identity in pki::identities(plan) {
        let file = plan.inner_kubeconfig(&identity.file);
        write_json(&file, &config::kubeconfig(plan, &identity.file, &config::inner_url()))?;
    }
    write_json(&plan.kubeconfig(), &config::kubeconfig(plan, "admin", &format!("https://127.0.0.1:{port}")))?;
    let runc = which("runc")?;
    for node in plan.nodes() {
        for folder in [node.logs(), node.cni(), node.folder.join("config")] {
            fs::create_dir_all(folder)?;
        }
        write_json(&node.config("kubelet.json"), &config::kubelet(plan, &node))?;
        write_json(&node.config("proxy.json"), &config::proxy(plan, &node))?;
        fs::write(node.config("containerd.toml"), config::containerd(&runc))?;
        fs::write(node.config("resolv.conf"), config::resolv_conf())?;
    }
    Ok(())
}

/// Whole or not at all: somebody may be waiting for the file.
fn write_json(path: &std::path::Path, value: &serde_json::Value) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, format!("{value:#}\n"))
        .and_then(|()| fs::rename(&new, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn which(program: &str) -> Result<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file());
    found.map(text).with_context(|| format!("{program} is not on the path"))
}

/// A node's first process, and the pipes to it.
struct Room {
    node: Node,
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Room {
    /// Starts it, lays its cable, and lets it go on.
    fn open(plan: &Plan, node: Node) -> Result<Self> {
        let log = fs::File::create(node.logs().join("node.log"))?;
        let mut command = Command::new("/proc/self/exe");
        command.arg("node").arg(plan.state.join("plan.json")).arg(&node.name);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let namespaces = CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC;
        let mut child = spawn_in(namespaces, command)?;
        let (stdin, stdout) = child.stdin.take().zip(child.stdout.take()).context("a node has no pipes")?;
        spaces::ip(&spaces::cable(&node, child.id()))?;
        let mut room = Self { node, child, stdin, stdout: BufReader::new(stdout) };
        writeln!(room.stdin, "{CABLED}")?;
        Ok(room)
    }

    /// Waits until it can run containers, and lets it join the cluster.
    fn join(&mut self) -> Result<()> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        if line.trim() != STARTED {
            let log = self.node.logs().join("node.log");
            bail!("{} did not start: {}", self.node.name, crate::daemon::log_end(&log));
        }
        writeln!(self.stdin, "{JOIN}").with_context(|| format!("{} is gone", self.node.name))
    }
}

/// Waits until every node has its pods' addresses.
fn registered(plan: &Plan) -> Result<Vec<(Node, Vec<String>)>> {
    let admin = plan.inner_kubeconfig("admin");
    let mut found = Vec::new();
    let all_there = || {
        let Ok(list) = kubectl::json(plan, &admin, &["get", "nodes"]) else { return false };
        let states = kubectl::nodes(&list);
        let cidr = |node: Node| {
            let state = states.iter().find(|state| state.name == node.name)?;
            (state.pod_cidrs.len() == node.addresses.len()).then(|| (node, state.pod_cidrs.clone()))
        };
        found = plan.nodes().into_iter().filter_map(cidr).collect();
        found.len() == usize::from(plan.nodes)
    };
    let waited = wait_until(PATIENCE, all_there, || Ok(()));
    waited.with_context(|| {
        match plan.nodes().iter().find(|node| found.iter().all(|(there, _)| there != *node)) {
            Some(missing) => format!("{} has not joined; {}", missing.name, kubelet_says(missing)),
            None => "the nodes have joined too late".into(),
        }
    })?;
    Ok(found)
}

fn ready(plan: &Plan) -> Result<()> {
    let admin = plan.inner_kubeconfig("admin");
    let mut why = String::new();
    let all_ready = || {
        let Ok(list) = kubectl::json(plan, &admin, &["get", "nodes"]) else { return false };
        let not_ready: Vec<_> = kubectl::nodes(&list).into_iter().filter(|node| !node.ready).collect();
        let says = |state: &kubectl::NodeState| {
            let log = plan.nodes().iter().find(|node| node.name == state.name).map(kubelet_says);
            format!("{}: {}; {}", state.name, state.why, log.unwrap_or_default())
        };
        why = not_ready.first().map(says).unwrap_or_default();
        not_ready.is_empty()
    };
    let waited = wait_until(PATIENCE, all_ready, || Ok(()));
    waited.with_context(|| format!("not all nodes are ready: {why}"))
}

/// For whoever reads of a failure: the folder of logs goes with the cluster.
fn kubelet_says(node: &Node) -> String {
    format!("its kubelet's log ends with:\n{}", crate::daemon::log_end(&node.logs().join("kubelet.log")))
}

/// Carries people's connections from the host's network to the API server on the fabric.
fn proxy(listener: &TcpListener) {
    for from in listener.incoming().flatten() {
        thread::spawn(move || -> std::io::Result<()> {
            let to = TcpStream::connect((CONTROL_PLANE, API_PORT))?;
            let (mut from_too, mut to_too) = (from.try_clone()?, to.try_clone()?);
            let (mut from, mut to) = (from, to);
            let back = thread::spawn(move || {
                let _ = std::io::copy(&mut to_too, &mut from_too);
                let _ = from_too.shutdown(std::net::Shutdown::Both);
            });
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(std::net::Shutdown::Write);
            let _ = back.join();
            Ok(())
        });
    }
}

/// Tells the front; when it is gone, nobody.
fn say(event: &Event) {
    let mut stdout = std::io::stdout().lock();
    let line = serde_json::to_string(event).unwrap_or_default();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

/// Ends the process, and with it the cluster, when the front does (by Ctrl-C, by a crash, by kill -9), unless it said that
/// the cluster stays.
fn hold_leash() {
    static STAYS: AtomicBool = AtomicBool::new(false);
    thread::spawn(|| {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if line == STAY {
                STAYS.store(true, Ordering::Relaxed);
            }
        }
        if !STAYS.load(Ordering::Relaxed) {
            std::process::exit(1);
        }
    });
}
