//! Two nodes with their real agents, and the real controllers that those follow.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::netns::{Namespace, Plugin, addresses, binary};
use crate::world::{LISTEN, Pod, get, get_from, readyz};

/// What has not come by then never will.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const TRY_AGAIN: u32 = 11;

fn controller_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| binary("moat-controller"))
}

/// A node with its agent.
pub(crate) struct Node {
    name: &'static str,
    pub(crate) ns: Namespace,
    root: PathBuf,
    agent: Option<Child>,
    /// The controllers that it may follow, by their numbers, in the order in which it tries them.
    pub(crate) follows: Vec<usize>,
}

/// Two nodes on one link, and their controllers.
pub(crate) struct Cluster {
    root: tempfile::TempDir,
    pub(crate) here: Node,
    pub(crate) there: Node,
    controllers: Vec<Option<Child>>,
}

impl Node {
    fn new(name: &'static str, root: &Path) -> Self {
        let root = root.join(name);
        fs::create_dir(&root).unwrap();
        let ns = Namespace::new();
        ns.sh("ip link set lo up; sysctl -qw net.ipv4.ip_forward=1");
        Self { name, ns, root, agent: None, follows: vec![0] }
    }

    pub(crate) fn start(&mut self) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.root.join("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_moat-agent"));
        command.args(["run", "--node", self.name, "--address-rest", "0", "--listen", &LISTEN.to_string()]);
        // So long that whoever waits in vain is noticed.
        command.args(["--announce-wait", "60000"]);
        for nth in &self.follows {
            command.arg("--controller").arg(endpoint(self.root.parent().unwrap(), *nth));
        }
        command.arg("--state-dir").arg(self.root.join("state")).arg("--run-dir").arg(self.root.join("run"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        fs::create_dir_all(self.root.join("run")).unwrap();
        self.agent = Some(self.ns.run(move || command.spawn().unwrap()));
    }

    /// Lets the agent's process stand still, or go on: it stays connected either way, for a while.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = self.agent.as_ref().and_then(|agent| Pid::from_raw(agent.id().try_into().unwrap()));
        kill_process(pid.unwrap(), signal).unwrap();
    }

    /// How many addresses wait for an answer.
    pub(crate) fn unanswered(&self) -> Option<usize> {
        let page = get(&self.ns, "/metrics")?;
        let value = page.lines().find_map(|line| line.strip_prefix("moat_agent_addresses_unanswered "));
        value?.trim().parse().ok()
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.kill().unwrap();
            agent.wait().unwrap();
        }
    }

    /// The machine starts anew: its network, its pods and what is in /run are gone, and nothing but --state-dir is there. It has no
    /// link to others yet.
    pub(crate) fn reboot(&mut self) {
        self.kill();
        let run = self.root.join("run");
        let mut stop = Command::new(env!("CARGO_BIN_EXE_moat-agent"));
        stop.args(["guard", "--stop", "--run-dir"]).arg(&run);
        assert!(self.ns.run(move || stop.status().unwrap()).success());
        fs::remove_dir_all(&run).unwrap();
        self.ns = Namespace::new();
        self.ns.sh("ip link set lo up; sysctl -qw net.ipv4.ip_forward=1");
        self.start();
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.root.join("log")).unwrap_or_default()
    }

    pub(crate) fn plugin(&self) -> Plugin {
        Plugin::new(&self.root.join("run/agent.sock"))
    }

    #[track_caller]
    pub(crate) fn add(&self, name: &str) -> Pod {
        let ns = Namespace::new();
        let result = self.plugin().run("ADD", name, &ns.path).ok();
        Pod { address: addresses(&result)[0], ns }
    }

    /// Waits until something of what the agent says of itself is as it ought to be.
    #[track_caller]
    pub(crate) fn until(&self, what: &str, holds: impl Fn(u16, &str) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ready = readyz(&self.ns);
            if ready.as_ref().is_some_and(|ready| holds(ready.status, &ready.body)) {
                return;
            }
            assert!(Instant::now() < deadline, "waited for {what}: {ready:?}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[track_caller]
    pub(crate) fn until_ready(&self) {
        self.until("the agent is ready", |status, _| status == 200);
    }
}

impl Cluster {
    /// Two nodes and these pods, all of them described; nothing is started yet.
    pub(crate) fn new(pods: &[(&str, &str)]) -> Self {
        Self::with("10.1.0.0/24", pods)
    }

    /// The same, with these addresses for the pods `here`.
    pub(crate) fn with(cidr: &str, pods: &[(&str, &str)]) -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("manifests")).unwrap();
        let (here, there) = (Node::new("here", root.path()), Node::new("there", root.path()));
        let other = there.ns.run(|| rustix::thread::gettid().as_raw_nonzero());
        here.ns.sh(&format!("ip link add uplink type veth peer name uplink netns {other}"));
        here.ns.sh("ip addr add 192.0.2.1/24 dev uplink; ip link set uplink up");
        there.ns.sh("ip addr add 192.0.2.2/24 dev uplink; ip link set uplink up");
        let cluster = Self { root, here, there, controllers: Vec::new() };
        let mut text = String::new();
        for (name, address, cidr) in [("here", "192.0.2.1", cidr), ("there", "192.0.2.2", "10.2.0.0/24")] {
            text.push_str(&format!(
                "---\n{{apiVersion: v1, kind: Node, metadata: {{name: {name}}}, spec: {{podCIDR: {cidr}}}, \
                 status: {{addresses: [{{type: InternalIP, address: {address}}}]}}}}\n"
            ));
        }
        for (pod, node) in pods {
            text.push_str(&described(pod, node));
        }
        cluster.write("cluster.yaml", &text);
        cluster
    }

    /// Starts everything, and waits until it serves.
    pub(crate) fn started(pods: &[(&str, &str)]) -> Self {
        let mut cluster = Self::new(pods);
        cluster.start(1);
        cluster
    }

    /// Starts everything, with so many controllers, and waits until it serves.
    pub(crate) fn start(&mut self, controllers: usize) {
        self.controllers.resize_with(controllers, || None);
        (0..controllers).for_each(|nth| self.start_controller_nth(nth));
        // So that each agent finds the one that it is to follow.
        for nth in 0..controllers {
            let endpoint = endpoint(self.root.path(), nth);
            let socket = endpoint.strip_prefix("unix:").unwrap();
            self.until("a controller listens", || UnixStream::connect(socket).is_ok());
        }
        self.here.start();
        self.there.start();
        self.here.until_ready();
        self.there.until_ready();
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let new = self.root.path().join(format!(".{name}.new"));
        fs::write(&new, text).unwrap();
        fs::rename(&new, self.root.path().join("manifests").join(name)).unwrap();
    }

    pub(crate) fn start_controller(&mut self) {
        self.start_controller_nth(0);
    }

    /// Starts one of the controllers; they know of each other.
    pub(crate) fn start_controller_nth(&mut self, nth: usize) {
        let root = self.root.path();
        let log = root.join("controller.log");
        let log = fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        let mut command = Command::new(controller_binary());
        command.arg("--manifests").arg(root.join("manifests")).arg("--listen").arg(endpoint(root, nth));
        command.arg("--http").arg(pages(nth).to_string());
        if self.controllers.len() <= nth {
            self.controllers.resize_with(nth + 1, || None);
        }
        // All of them: which one it is itself is for the agents to find out.
        if self.controllers.len() > 1 {
            for nth in 0..self.controllers.len() {
                command.arg("--replica").arg(endpoint(root, nth));
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        // Where it is has nothing to do with whom it serves: its socket is a file.
        self.controllers[nth] = Some(self.here.ns.run(move || command.spawn().unwrap()));
    }

    pub(crate) fn kill_controller(&mut self) {
        self.kill_controller_nth(0);
    }

    pub(crate) fn kill_controller_nth(&mut self, nth: usize) {
        if let Some(mut controller) = self.controllers.get_mut(nth).and_then(Option::take) {
            controller.kill().unwrap();
            controller.wait().unwrap();
        }
    }

    /// Whether a controller says that the agent of this node follows it.
    pub(crate) fn is_followed(&self, nth: usize, node: &str) -> bool {
        let page = get_from(&self.here.ns, pages(nth), "/readyz").unwrap_or_default();
        page.lines().any(|line| line.starts_with(&format!("agent {node} ")))
    }

    /// Waits until packets pass as they ought to.
    #[track_caller]
    pub(crate) fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds() {
            assert!(Instant::now() < deadline, "waited for: {what}\n{}", self.logs());
        }
    }

    pub(crate) fn logs(&self) -> String {
        let controller = fs::read_to_string(self.root.path().join("controller.log")).unwrap_or_default();
        format!("controller:\n{controller}\nhere:\n{}\nthere:\n{}", self.here.log(), self.there.log())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        (0..self.controllers.len()).for_each(|nth| self.kill_controller_nth(nth));
        self.here.kill();
        self.there.kill();
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
    }
}

/// Where a controller listens for agents.
fn endpoint(root: &Path, nth: usize) -> String {
    format!("unix:{}", root.join(format!("controller-{nth}.sock")).display())
}

/// Where a controller has its pages, in the namespace of the node `here`.
fn pages(nth: usize) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 9470 + 100 * u16::try_from(nth).unwrap()).into()
}

fn described(pod: &str, node: &str) -> String {
    let app = pod.trim_end_matches(char::is_numeric);
    format!(
        "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {pod}, labels: {{app: {app}}}}}, \
         spec: {{nodeName: {node}, containers: [{{name: c, image: i}}]}}}}\n"
    )
}

/// Only pods with this label may reach the pods `api`.
pub(crate) fn only(app: &str) -> String {
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: api}}, spec: {{podSelector: {{matchLabels: \
         {{app: api}}}}, ingress: [{{from: [{{podSelector: {{matchLabels: {{app: {app}}}}}}}]}}]}}}}\n"
    )
}
