//! A real controller and the real agents of two nodes: policy comes by the stream, stays where the stream ends, and goes on
//! where it goes on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::netns::{Namespace, Plugin, addresses, binary, in_world};
use crate::packets::Server;
use crate::world::{LISTEN, Pod, readyz};

/// What has not come by then never will.
const PATIENCE: Duration = Duration::from_secs(60);

const TRY_AGAIN: u32 = 11;

fn controller_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| binary("moat-controller"))
}

/// A node with its agent.
struct Node {
    name: &'static str,
    ns: Namespace,
    root: PathBuf,
    agent: Option<Child>,
}

/// Two nodes on one link, and their controller.
struct Cluster {
    root: tempfile::TempDir,
    here: Node,
    there: Node,
    controller: Option<Child>,
}

impl Node {
    fn new(name: &'static str, root: &Path) -> Self {
        let root = root.join(name);
        fs::create_dir(&root).unwrap();
        let ns = Namespace::new();
        ns.sh("ip link set lo up; sysctl -qw net.ipv4.ip_forward=1");
        Self { name, ns, root, agent: None }
    }

    fn start(&mut self) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.root.join("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_moat-agent"));
        command.args(["run", "--node", self.name, "--address-rest", "0", "--listen", &LISTEN.to_string()]);
        let socket = self.root.parent().unwrap().join("controller.sock");
        command.arg("--controller").arg(format!("unix:{}", socket.display()));
        command.arg("--state-dir").arg(self.root.join("state")).arg("--run-dir").arg(self.root.join("run"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        fs::create_dir_all(self.root.join("run")).unwrap();
        self.agent = Some(self.ns.run(move || command.spawn().unwrap()));
    }

    fn kill(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.kill().unwrap();
            agent.wait().unwrap();
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.root.join("log")).unwrap_or_default()
    }

    fn plugin(&self) -> Plugin {
        Plugin::new(&self.root.join("run/agent.sock"))
    }

    #[track_caller]
    fn add(&self, name: &str) -> Pod {
        let ns = Namespace::new();
        let result = self.plugin().run("ADD", name, &ns.path).ok();
        Pod { address: addresses(&result)[0], ns }
    }

    /// Waits until something of what the agent says of itself is as it ought to be.
    #[track_caller]
    fn until(&self, what: &str, holds: impl Fn(u16, &str) -> bool) {
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
    fn until_ready(&self) {
        self.until("the agent is ready", |status, _| status == 200);
    }
}

impl Cluster {
    /// Two nodes and these pods, all of them described; nothing is started yet.
    fn new(pods: &[(&str, &str)]) -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("manifests")).unwrap();
        let (here, there) = (Node::new("here", root.path()), Node::new("there", root.path()));
        let other = there.ns.run(|| rustix::thread::gettid().as_raw_nonzero());
        here.ns.sh(&format!("ip link add uplink type veth peer name uplink netns {other}"));
        here.ns.sh("ip addr add 192.0.2.1/24 dev uplink; ip link set uplink up");
        there.ns.sh("ip addr add 192.0.2.2/24 dev uplink; ip link set uplink up");
        let cluster = Self { root, here, there, controller: None };
        let mut text = String::new();
        for (name, address, cidr) in
            [("here", "192.0.2.1", "10.1.0.0/24"), ("there", "192.0.2.2", "10.2.0.0/24")]
        {
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
    fn started(pods: &[(&str, &str)]) -> Self {
        let mut cluster = Self::new(pods);
        cluster.start_controller();
        cluster.here.start();
        cluster.there.start();
        cluster.here.until_ready();
        cluster.there.until_ready();
        cluster
    }

    fn write(&self, name: &str, text: &str) {
        let new = self.root.path().join(format!(".{name}.new"));
        fs::write(&new, text).unwrap();
        fs::rename(&new, self.root.path().join("manifests").join(name)).unwrap();
    }

    fn start_controller(&mut self) {
        let path = |name: &str| self.root.path().join(name);
        let log = fs::OpenOptions::new().create(true).append(true).open(path("controller.log")).unwrap();
        let mut command = Command::new(controller_binary());
        command.arg("--manifests").arg(path("manifests"));
        command.arg("--listen").arg(format!("unix:{}", path("controller.sock").display()));
        command.args(["--http", "127.0.0.1:9470"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        // Where it is has nothing to do with whom it serves: its socket is a file.
        self.controller = Some(self.here.ns.run(move || command.spawn().unwrap()));
    }

    fn kill_controller(&mut self) {
        if let Some(mut controller) = self.controller.take() {
            controller.kill().unwrap();
            controller.wait().unwrap();
        }
    }

    /// Waits until packets pass as they ought to.
    #[track_caller]
    fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds() {
            assert!(Instant::now() < deadline, "waited for: {what}\n{}", self.logs());
        }
    }

    fn logs(&self) -> String {
        let controller = fs::read_to_string(self.root.path().join("controller.log")).unwrap_or_default();
        format!("controller:\n{controller}\nhere:\n{}\nthere:\n{}", self.here.log(), self.there.log())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.kill_controller();
        self.here.kill();
        self.there.kill();
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
    }
}

fn described(pod: &str, node: &str) -> String {
    let app = pod.trim_end_matches(char::is_numeric);
    format!(
        "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {pod}, labels: {{app: {app}}}}}, \
         spec: {{nodeName: {node}, containers: [{{name: c, image: i}}]}}}}\n"
    )
}

/// Only pods with this label may reach the pods `api`.
fn only(app: &str) -> String {
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: api}}, spec: {{podSelector: {{matchLabels: \
         {{app: api}}}}, ingress: [{{from: [{{podSelector: {{matchLabels: {{app: {app}}}}}}}]}}]}}}}\n"
    )
}

#[test]
fn policy_comes_by_the_stream_and_stays_without_it() {
    in_world(|| {
        let pods =
            [("web", "here"), ("other", "here"), ("api", "there"), ("late", "here"), ("latecomer", "here")];
        let mut cluster = Cluster::started(&pods);
        let (web, other) = (cluster.here.add("web"), cluster.here.add("other"));
        let api = cluster.there.add("api");
        let server = Server::start(&api);
        assert!(server.answers(&web) && server.answers(&other), "nobody is isolated");

        cluster.write("policy.yaml", &only("web"));
        cluster.until("others are denied", || !server.answers(&other));
        assert!(server.answers(&web));

        // Nobody tells anything any more: what was told holds, also what the folder says otherwise by now.
        cluster.kill_controller();
        cluster.there.until("the agent says that it is alone", |status, body| {
            status == 503 && body.contains("controller")
        });
        cluster.write("policy.yaml", &only("other"));
        assert!(server.answers(&web) && !server.answers(&other));

        // An agent that dies and comes back alone knows what it was told.
        cluster.there.kill();
        assert!(server.answers(&web) && !server.answers(&other), "the kernel holds it");
        cluster.there.start();
        cluster.there.until("the agent serves what it was told", |_, body| body.contains("applied"));
        assert!(server.answers(&web) && !server.answers(&other));
        cluster.here.kill();
        cluster.here.start();
        cluster.here.until("the agent serves what it was told", |_, body| body.contains("applied"));
        // A pod that it was told of gets its network; of another one nobody knows the policy.
        let late = cluster.here.add("late");
        assert!(!server.answers(&late));
        let unknown = Namespace::new();
        cluster.here.plugin().run("ADD", "nobody", &unknown.path).fails_with(TRY_AGAIN);

        cluster.start_controller();
        cluster.until("the folder's newest is in force", || server.answers(&other));
        cluster.until("everywhere", || !server.answers(&web));
        cluster.here.until_ready();
        cluster.there.until_ready();
    });
}

#[test]
fn a_new_pod_is_known_everywhere_when_it_starts() {
    in_world(|| {
        const PODS: [&str; 8] = ["web1", "web2", "web3", "web4", "web5", "web6", "web7", "web8"];
        let mut pods = PODS.map(|pod| (pod, "here")).to_vec();
        pods.push(("api", "there"));
        let cluster = Cluster::started(&pods);
        cluster.write("policy.yaml", &only("web"));
        let api = cluster.there.add("api");
        let server = Server::start(&api);
        for name in PODS {
            let pod = cluster.here.add(name);
            assert!(server.answers(&pod), "the first packet of {name} passes");
            cluster.here.plugin().run("DEL", name, &pod.ns.path).ok();
        }
    });
}

#[test]
fn an_agent_without_a_controller_waits_and_changes_nothing() {
    in_world(|| {
        let mut cluster = Cluster::new(&[("web", "here")]);
        cluster.here.start();
        cluster.here.until("it says why", |status, body| status == 503 && body.contains("cannot connect"));
        assert!(cluster.here.ns.sh("nft list tables").is_empty());
        cluster.start_controller();
        cluster.here.until_ready();
        cluster.here.add("web");
    });
}
