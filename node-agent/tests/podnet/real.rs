//! A node with the real agent, policy and all, that can be made to die at a point of its work.

use std::fs;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use moat_agent::podnet::{Attachment, read_attachments};

use crate::world::{Namespace, Plugin};

/// How long anything may take on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct RealNode {
    pub(crate) ns: Namespace,
    name: &'static str,
    /// What its agent is told besides.
    pub(crate) arguments: Vec<&'static str>,
    folder: tempfile::TempDir,
    agent: Option<Child>,
}

/// The manifest of a pod of this node, in the namespace `default`.
pub(crate) fn pod(name: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\n\
         spec: {{nodeName: a, containers: [{{name: c, image: i}}]}}\n"
    )
}

/// The manifest of a node.
pub(crate) fn node(name: &str, addresses: [&str; 2], pod_cidrs: &[&str]) -> String {
    let quoted: Vec<String> = pod_cidrs.iter().map(|cidr| format!("'{cidr}'")).collect();
    let addresses = addresses.map(|address| format!("{{type: InternalIP, address: '{address}'}}"));
    format!(
        "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nspec: {{podCIDRs: [{}]}}\n\
         status: {{addresses: [{}]}}\n",
        quoted.join(", "),
        addresses.join(", ")
    )
}

impl RealNode {
    /// A node with these podCIDRs and manifests, and no agent yet.
    pub(crate) fn new(pod_cidrs: &[&str], manifests: &str) -> Self {
        let ns = Namespace::new();
        ns.sh("ip link set lo up; ip link add uplink type veth peer name outside; ip link set outside up
               ip link set uplink up; ip addr add 192.0.2.1/24 dev uplink
               ip addr add 2001:db8::1/64 dev uplink nodad");
        Self::at(ns, "a", &self::node("a", ["192.0.2.1", "2001:db8::1"], pod_cidrs), manifests)
    }

    /// The node `name` in a namespace that has its links, with these manifests of nodes and others, and no agent yet.
    pub(crate) fn at(ns: Namespace, name: &'static str, nodes: &str, manifests: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let node = Self { ns, name, arguments: Vec::new(), folder, agent: None };
        fs::create_dir(node.path("manifests")).unwrap();
        node.write("node.yaml", nodes);
        node.write("rest.yaml", manifests);
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Puts a manifest into the folder, in one step.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let new = self.folder.path().join(name);
        fs::write(&new, text).unwrap();
        fs::rename(new, self.path("manifests").join(name)).unwrap();
    }

    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.path("manifests").join(name)).unwrap();
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("run").join("agent.sock")
    }

    pub(crate) fn plugin(&self) -> Plugin {
        Plugin { netns: Some(self.ns.path.clone()), ..Plugin::new(&self.socket()) }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Starts an agent and waits until it serves.
    #[track_caller]
    pub(crate) fn start(&mut self) {
        self.launch(None);
        self.until("the agent serves", |node| UnixStream::connect(node.socket()).is_ok());
    }

    /// Starts an agent that dies at this point; waits until it serves, or is dead.
    #[track_caller]
    pub(crate) fn start_dying(&mut self, point: &'static str) {
        self.launch(Some(point));
        self.until("the agent serves", |node| node.is_dead() || UnixStream::connect(node.socket()).is_ok());
    }

    fn launch(&mut self, die_at: Option<&'static str>) {
        self.kill();
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_moat-agent"));
        // Without a guard beside it: that one would outlive the agent, as it should.
        command.args([
            "run",
            "--node",
            self.name,
            "--listen",
            "127.0.0.1:9469",
            "--no-owner",
            "--address-rest",
            "0",
        ]);
        command.args(&self.arguments);
        command.arg("--manifests").arg(self.path("manifests"));
        command.arg("--state-dir").arg(self.path("state")).arg("--run-dir").arg(self.path("run"));
        command.envs(die_at.map(|point| (moat_cni::failpoint::VARIABLE, point)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.agent = Some(self.ns.run(move || command.spawn().unwrap()));
    }

    fn is_dead(&mut self) -> bool {
        self.agent.as_mut().is_none_or(|agent| agent.try_wait().unwrap().is_some())
    }

    /// The agent has died, as it was to.
    #[track_caller]
    pub(crate) fn has_died(&mut self) {
        self.until("the agent dies", RealNode::is_dead);
        let status = self.agent.take().unwrap().wait().unwrap();
        assert_eq!(status.signal(), Some(9), "{}", self.log());
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }

    #[track_caller]
    pub(crate) fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(Instant::now() < deadline, "{what}: never; {}", self.log());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn recorded(&self) -> Vec<Attachment> {
        read_attachments(&self.path("state")).unwrap()
    }

    /// What `moat-agent check` says: its exit status, and each difference.
    pub(crate) fn check(&self) -> (Option<i32>, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_moat-agent"));
        command.args(["check", "--node", self.name]).arg("--manifests").arg(self.path("manifests"));
        command.arg("--state-dir").arg(self.path("state"));
        let output = self.ns.run(move || command.output().unwrap());
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        let lines = text.lines().filter(|line| !line.contains("packets walked"));
        (output.status.code(), lines.map(|line| format!("{line}\n")).collect())
    }

    /// Nobody has the agent's records any more.
    pub(crate) fn lose_state(&self) {
        fs::remove_dir_all(self.path("state")).unwrap();
    }

    pub(crate) fn notes(&self) -> usize {
        moat_cni::note::read_all(&moat_cni::note::folder(&self.socket())).unwrap().len()
    }
}

impl Drop for RealNode {
    fn drop(&mut self) {
        self.kill();
    }
}
