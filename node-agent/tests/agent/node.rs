//! A node with a real agent in it, and pods that it made the network of.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use moat_cni::client::call;
use moat_cni::protocol::{Add, Command as Request, Outcome};

use crate::space::Space;

/// `moat-agent`, as it was built for these tests.
pub(crate) const AGENT: &str = env!("CARGO_BIN_EXE_moat-agent");

const LISTEN: &str = "127.0.0.1:9469";

/// How long anything may take on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Pod {
    pub(crate) space: Space,
    pub(crate) address: IpAddr,
}

pub(crate) struct Node {
    pub(crate) space: Space,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) pods: BTreeMap<String, Pod>,
    agent: Option<Child>,
    flags: Vec<&'static str>,
}

/// Waits until something holds; returns how long that took.
#[track_caller]
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < PATIENCE, "{what}: never");
        std::thread::yield_now();
    }
    begin.elapsed()
}

impl Node {
    /// A node with these pods and policies, and a running agent.
    pub(crate) fn new(pods: &[&str], policies: &str, flags: &[&'static str]) -> Self {
        let space = Space::new("node");
        let dir = tempfile::tempdir().expect("a folder");
        for folder in ["manifests", "state", "run"] {
            std::fs::create_dir(dir.path().join(folder)).expect("a folder");
        }
        let mut node = Self { space, dir, pods: BTreeMap::new(), agent: None, flags: flags.to_vec() };
        node.space.sysctl("ipv4/ip_forward", "1");
        let mut text = String::from(
            "apiVersion: v1\nkind: Node\nmetadata: {name: node}\nspec: {podCIDRs: [10.0.0.0/24]}\n\
             status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}\n",
        );
        for pod in pods {
            text.push_str(&format!(
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {pod}, labels: {{app: {pod}}}}}\n\
                 spec: {{nodeName: node, containers: [{{name: c, image: i}}]}}\n"
            ));
        }
        node.write("node.yaml", &text);
        // An empty file is refused.
        if !policies.is_empty() {
            node.write("policies.yaml", policies);
        }
        node.start();
        pods.iter().for_each(|pod| node.add(pod));
        node
    }

    /// Puts a manifest into the folder, in one step.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let folder = self.dir.path().join("manifests");
        let new = folder.join(format!(".{name}"));
        std::fs::write(&new, text).expect("a file");
        std::fs::rename(new, folder.join(name)).expect("a file");
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Starts the agent, and waits until it serves: then the kernel holds what its folder says.
    pub(crate) fn start(&mut self) {
        self.launch();
        let socket = self.run_dir().join("agent.sock");
        until("the agent serves", || {
            assert_eq!(self.ended(), None, "{}", self.log());
            UnixStream::connect(&socket).is_ok()
        });
    }

    /// Starts the agent.
    pub(crate) fn launch(&mut self) {
        let path = |name: &str| self.dir.path().join(name);
        let log = std::fs::OpenOptions::new().create(true).append(true).open(path("log")).expect("a log");
        let mut command = Command::new(AGENT);
        command.args(["run", "--node", "node", "--listen", LISTEN, "--address-rest", "0"]);
        command.arg("--manifests").arg(path("manifests")).arg("--state-dir").arg(path("state"));
        command.arg("--run-dir").arg(path("run")).args(&self.flags);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.agent = Some(self.space.run(move || command.spawn().expect("moat-agent starts")));
    }

    /// The agent's exit status, if it has ended.
    pub(crate) fn ended(&mut self) -> Option<i32> {
        let status = self.agent.as_mut().expect("an agent").try_wait().expect("a child");
        status.map(|s| s.code().unwrap_or(-1))
    }

    /// SIGKILL, and it is gone.
    pub(crate) fn kill(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.kill().expect("a child");
            agent.wait().expect("a child");
        }
    }

    /// SIGTERM, and it is gone.
    pub(crate) fn stop(&mut self) {
        let mut agent = self.agent.take().expect("an agent");
        let pid = nix::unistd::Pid::from_raw(agent.id() as i32);
        Command::new("kill").arg(pid.to_string()).status().expect("kill");
        agent.wait().expect("a child");
    }

    pub(crate) fn add(&mut self, name: &str) {
        let space = Space::new(name);
        let netns = PathBuf::from(format!("/proc/{}/task/{}/ns/net", std::process::id(), space.thread()));
        let add = Add {
            network: "moat".into(),
            container_id: name.into(),
            ifname: "eth0".into(),
            netns,
            pod_namespace: "default".into(),
            pod_name: name.into(),
            pod_uid: None,
            host_ports: Vec::new(),
        };
        let answer = call(&self.run_dir().join("agent.sock"), Request::Add(add), PATIENCE);
        let Ok(Outcome::Attached(attached)) = answer else { panic!("{name}: {answer:?}\n{}", self.log()) };
        let address = attached.addresses[0].address;
        self.pods.insert(name.to_owned(), Pod { space, address });
    }

    /// Everything in the tables but what counts.
    pub(crate) fn tables(&self) -> String {
        let listing = self.space.command("nft -s list ruleset");
        // nft says beside a table who has its owner open; after a death it is the guard.
        let line = |l: &'_ str| l.split(" # progname").next().unwrap_or_default().trim().to_owned();
        let mut lines: Vec<String> =
            listing.lines().map(line).filter(|l| !l.starts_with("counter")).collect();
        lines.sort_unstable();
        lines.join("\n")
    }

    /// Process numbers of the guards of this node's run folder.
    pub(crate) fn guards(&self) -> Vec<i32> {
        guards(&self.run_dir())
    }
}

/// Process numbers of the guards of a run folder.
pub(crate) fn guards(run_dir: &Path) -> Vec<i32> {
    let wanted = format!("guard\0--run-dir\0{}\0", run_dir.display());
    let processes = std::fs::read_dir("/proc").expect("proc").flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.ends_with(&wanted))
        })
        .collect()
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}
