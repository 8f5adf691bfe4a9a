//! A node with the real agent: its folder of manifests, its process, its pods by the real plugin.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::netns::{Namespace, Plugin, addresses};

/// An agent that has not done it by then never will.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9469);

/// The node, and what its agent works on.
pub(crate) struct World {
    pub(crate) node: Namespace,
    root: tempfile::TempDir,
    agent: Option<Child>,
    /// What agent and check are told besides.
    pub(crate) flags: Vec<&'static str>,
    /// The controller that the agent follows, in place of its folder.
    pub(crate) follows: Option<String>,
    /// Whether the agent puts the plugin and its configuration where a runtime would look for them.
    pub(crate) invites: bool,
    /// The only capabilities that the agent is to have; `None`: all of root's.
    pub(crate) capabilities: Option<Vec<String>>,
}

/// A pod that was added.
pub(crate) struct Pod {
    pub(crate) ns: Namespace,
    pub(crate) address: IpAddr,
}

/// What `/readyz` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ready {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl World {
    /// A node `here` with 10.1.0.0/24 for its pods, beside a node `there`; the agent is not started yet.
    pub(crate) fn new() -> Self {
        let node = Namespace::new();
        node.sh("ip link set lo up; ip link add uplink type veth peer name outside
             ip link set outside up; ip link set uplink up
             ip addr add 192.0.2.1/24 dev uplink; sysctl -qw net.ipv4.ip_forward=1");
        let world = Self {
            node,
            root: tempfile::tempdir().unwrap(),
            agent: None,
            flags: Vec::new(),
            follows: None,
            invites: false,
            capabilities: None,
        };
        fs::create_dir(world.manifests()).unwrap();
        for (name, address, cidr) in
            [("here", "192.0.2.1", "10.1.0.0/24"), ("there", "192.0.2.2", "10.2.0.0/16")]
        {
            let text = format!(
                "{{apiVersion: v1, kind: Node, metadata: {{name: {name}}}, spec: {{podCIDR: {cidr}}}, \
                 status: {{addresses: [{{type: InternalIP, address: {address}}}]}}}}\n"
            );
            world.write(&format!("node-{name}.yaml"), &text);
        }
        world
    }

    /// The folder that the agent watches.
    pub(crate) fn manifests(&self) -> PathBuf {
        self.root.path().join("manifests")
    }

    /// Where the agent listens for the plugin.
    pub(crate) fn socket(&self) -> PathBuf {
        self.root.path().join("run/agent.sock")
    }

    /// Where a runtime would look for network configurations.
    pub(crate) fn cni_conf(&self) -> PathBuf {
        self.root.path().join("net.d")
    }

    /// Where a runtime would look for plugins.
    pub(crate) fn cni_bin(&self) -> PathBuf {
        self.root.path().join("bin")
    }

    /// Puts a file into the folder at once, as careful writers do. Returns when rename(2) was done.
    pub(crate) fn write(&self, name: &str, text: &str) -> Instant {
        self.write_bytes(name, text.as_bytes())
    }

    pub(crate) fn write_bytes(&self, name: &str, text: &[u8]) -> Instant {
        let new = self.root.path().join(format!(".{name}.new"));
        fs::write(&new, text).unwrap();
        fs::rename(&new, self.manifests().join(name)).unwrap();
        Instant::now()
    }

    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.manifests().join(name)).unwrap();
    }

    /// Starts the agent.
    pub(crate) fn start(&mut self) {
        let path = |name: &str| self.root.path().join(name);
        let log = fs::OpenOptions::new().create(true).append(true).open(path("log")).unwrap();
        let mut command = self.agent_command();
        command.args(["run", "--node", "here", "--address-rest", "0", "--listen", &LISTEN.to_string()]);
        match &self.follows {
            Some(controller) => command.arg("--controller").arg(controller),
            None => command.arg("--manifests").arg(self.manifests()),
        };
        command.arg("--state-dir").arg(path("state")).arg("--run-dir").arg(path("run"));
        command.args(&self.flags);
        if self.invites {
            command.arg("--cni-conf-dir").arg(self.cni_conf()).arg("--cni-bin-dir").arg(self.cni_bin());
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        fs::create_dir_all(path("run")).unwrap();
        self.agent = Some(self.node.run(move || command.spawn().unwrap()));
    }

    fn agent_command(&self) -> Command {
        let agent = env!("CARGO_BIN_EXE_moat-agent");
        let Some(capabilities) = &self.capabilities else { return Command::new(agent) };
        // What is not in the bounding set, not even root gets.
        let mut command = Command::new("setpriv");
        let set: String = capabilities.iter().map(|name| format!(",+{}", name.to_lowercase())).collect();
        command.arg(format!("--bounding-set=-all{set}")).arg("--inh-caps=-all").arg("--").arg(agent);
        command
    }

    /// The agent's exit status, if it has ended.
    pub(crate) fn ended(&mut self) -> Option<i32> {
        let status = self.agent.as_mut()?.try_wait().unwrap()?;
        Some(status.code().unwrap_or(-1))
    }

    /// Starts the agent, and waits until it holds what the folder says.
    pub(crate) fn start_ready(&mut self) {
        self.start();
        self.until("the agent is ready", |world| world.readyz().is_some_and(|r| r.status == 200));
    }

    /// Ends the agent as nothing could announce.
    pub(crate) fn kill(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.kill().unwrap();
            agent.wait().unwrap();
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.agent.as_ref().unwrap().id()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.root.path().join("log")).unwrap_or_default()
    }

    /// What the agent says of itself; `None` where it does not answer.
    pub(crate) fn readyz(&self) -> Option<Ready> {
        readyz(&self.node)
    }

    /// A page of the agent, head and body.
    pub(crate) fn get(&self, page: &'static str) -> Option<String> {
        get(&self.node, page)
    }

    /// Waits for a condition; what the agent said is shown where it does not come.
    #[track_caller]
    pub(crate) fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            assert!(Instant::now() < deadline, "waited for: {what}; {:?}\n{}", self.readyz(), self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The text of a Pod's manifest, for [`World::write`].
    pub(crate) fn pod_text(name: &str) -> String {
        Self::pod_text_in("default", name)
    }

    /// The same in another namespace.
    pub(crate) fn pod_text_in(namespace: &str, name: &str) -> String {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}, \
             spec: {{nodeName: here, containers: [{{name: c, image: i}}]}}}}\n"
        )
    }

    /// A new pod of this node that some manifest describes.
    #[track_caller]
    pub(crate) fn add(&self, name: &str) -> Pod {
        self.add_in("default", name)
    }

    /// The same in another namespace.
    #[track_caller]
    pub(crate) fn add_in(&self, namespace: &str, name: &str) -> Pod {
        let ns = Namespace::new();
        let plugin = Plugin { namespace: namespace.to_owned(), ..self.plugin() };
        let result = plugin.run("ADD", name, &ns.path).ok();
        Pod { address: addresses(&result)[0], ns }
    }

    pub(crate) fn plugin(&self) -> Plugin {
        Plugin::new(&self.socket())
    }

    /// Takes moat off the node.
    pub(crate) fn uninstall(&self, flags: &[&'static str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_moat-agent"));
        command.arg("uninstall").args(flags).arg("--state-dir").arg(self.state_dir());
        command.arg("--run-dir").arg(self.run_dir());
        command.arg("--cni-conf-dir").arg(self.cni_conf()).arg("--cni-bin-dir").arg(self.cni_bin());
        self.node.run(move || command.output().unwrap())
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.root.path().join("run")
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.root.path().join("state")
    }

    /// Compares what the kernel's tables do with what the manifests say.
    pub(crate) fn check(&self) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_moat-agent"));
        command.args(["check", "--node", "here"]).arg("--manifests").arg(self.manifests());
        command.arg("--state-dir").arg(self.root.path().join("state")).args(&self.flags);
        self.node.run(move || command.output().unwrap())
    }

    /// A number of `/proc/PID/status`, in KiB.
    pub(crate) fn memory(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.unwrap().split_whitespace().next().unwrap().parse().unwrap()
    }

    /// The processor time that the agent has used so far, in clock ticks.
    pub(crate) fn ticks(&self) -> u64 {
        let stat = fs::read_to_string(Path::new("/proc").join(self.pid().to_string()).join("stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }
}

/// What the agent of a node says of itself; `None` where it does not answer.
pub(crate) fn readyz(node: &Namespace) -> Option<Ready> {
    let answer = get(node, "/readyz")?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split_whitespace().nth(1)?.parse().ok()?;
    Some(Ready { status, body: body.to_owned() })
}

/// A page of the agent of a node, head and body.
pub(crate) fn get(node: &Namespace, page: &'static str) -> Option<String> {
    get_from(node, LISTEN, page)
}

/// A page of somebody who listens in the namespace of a node, head and body.
pub(crate) fn get_from(node: &Namespace, address: SocketAddr, page: &'static str) -> Option<String> {
    node.run(move || {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        let request = format!("GET {page} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    })
}

impl Drop for World {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("the agent's log:\n{}", self.log());
        }
    }
}
