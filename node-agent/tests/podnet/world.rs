//! What the tests share: namespaces, a node's CNI server over a bare pod network, and the plugin as a runtime runs it.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use moat_agent::cni_server::{CniServer, Handler};
use moat_agent::podnet::{AttachmentKey, Mode, PodNet, PodNetConfig, PodNetError, Prepare};
use moat_cni::error::{CniError, code};
use moat_cni::protocol::{Add, Attached, Check, Del, Gc, Status};
use moat_policies::Node;
use nix::sched::{CloneFlags, unshare};
use prometheus_client::metrics::counter::Counter;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};
use tokio::sync::oneshot;

#[path = "../dataplane/interrupted.rs"]
pub(crate) mod interrupted;

use self::interrupted::uninterrupted;

/// Runs a test where it may make network namespaces: as it is for root, else once more in a user namespace.
pub(crate) fn in_world(test: impl FnOnce()) {
    const CHILD: &str = "MOAT_TEST_IN_NAMESPACE";
    if nix::unistd::geteuid().is_root() || std::env::var_os(CHILD).is_some() {
        return test();
    }
    let name = thread::current().name().unwrap().to_owned();
    let status = Command::new("unshare")
        .args(["--map-root-user", "--user", "--net", "--mount", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &name, "--nocapture"])
        .env(CHILD, "1")
        .status()
        .expect("unshare (util-linux) is installed");
    assert!(status.success(), "{name} failed in its user namespace");
}

type Work = Box<dyn FnOnce() + Send>;

/// A network namespace, kept by a thread that works in it.
pub(crate) struct Namespace {
    work: Option<Sender<Work>>,
    thread: Option<JoinHandle<()>>,
    pub(crate) path: PathBuf,
}

impl Namespace {
    pub(crate) fn new() -> Self {
        let (work, todo) = channel::<Work>();
        let (tell, path) = channel();
        let thread = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            let thread = rustix::thread::gettid().as_raw_nonzero();
            tell.send(format!("/proc/{}/task/{thread}/ns/net", std::process::id())).unwrap();
            for work in todo {
                work();
            }
        });
        let path = PathBuf::from(path.recv().unwrap());
        Self { work: Some(work), thread: Some(thread), path }
    }

    /// Runs `work` in the namespace and waits for it. A panic in it is one here.
    pub(crate) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, result) = channel();
        let work = move || {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            let _ = answer.send(result);
        };
        self.work.as_ref().unwrap().send(Box::new(work)).unwrap();
        result.recv().unwrap().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// What a command prints that runs in the namespace.
    #[track_caller]
    pub(crate) fn sh(&self, command: &str) -> String {
        let command = command.to_owned();
        self.run(move || {
            let output = Command::new("sh").args(["-ec", &command]).output().unwrap();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{command}: {errors}");
            String::from_utf8(output.stdout).unwrap()
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.work.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The handler of a node without policy: the pod network and nothing else.
pub(crate) struct Bare(pub(crate) PodNet);

impl Handler for Bare {
    async fn add(&self, add: Add) -> Result<Attached, CniError> {
        let key = AttachmentKey::new(add.container_id, add.ifname);
        let request = Prepare {
            key: key.clone(),
            network: add.network,
            pod_namespace: add.pod_namespace,
            pod_name: add.pod_name,
            pod_uid: add.pod_uid,
            netns: add.netns,
            host_ports: add.host_ports,
        };
        let attachment = self.0.reserve(request).await?;
        let up = async { self.0.activate(&attachment, self.0.build(&attachment).await?).await };
        let (up, recorded) = tokio::join!(up, self.0.recorded());
        if let Err(error) = up.and(recorded) {
            self.0.remove(&key).await?;
            return Err(error.into());
        }
        Ok(attachment.attached())
    }

    async fn del(&self, del: Del) -> Result<(), CniError> {
        self.0.remove(&AttachmentKey::new(del.container_id, del.ifname)).await?;
        Ok(())
    }

    async fn check(&self, check: Check) -> Result<(), CniError> {
        let key = AttachmentKey::new(check.container_id, check.ifname);
        Ok(self.0.check(&key, &check.netns, &check.addresses, &check.gateways, &check.host_ports).await?)
    }

    async fn gc(&self, gc: Gc) -> Result<(), CniError> {
        let valid: BTreeSet<AttachmentKey> =
            gc.valid.into_iter().map(|valid| AttachmentKey::new(valid.container_id, valid.ifname)).collect();
        let done = self.0.gc(&gc.network, &valid).await;
        match done.errors.into_iter().next() {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }

    async fn status(&self, _: Status) -> Result<(), CniError> {
        self.0.available().map_err(|error| CniError { code: code::NOT_AVAILABLE, ..CniError::from(error) })
    }
}

/// A node of the tests, in its namespace, with a server that can be stopped and started.
pub(crate) struct TestNode {
    pub(crate) ns: Namespace,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) local: Node,
    pub(crate) others: Vec<Node>,
    pub(crate) rest: Duration,
    /// Counts what is made again, where that is wanted.
    pub(crate) keep: Option<Counter>,
    pub(crate) mode: Mode,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>, PodNet)>,
}

pub(crate) fn node(name: &str, addresses: &[&str], pod_cidrs: &[&str]) -> Node {
    Node {
        name: name.into(),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        pod_cidrs: pod_cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
    }
}

impl TestNode {
    /// A running node with these podCIDRs, alone in its world.
    pub(crate) fn new(pod_cidrs: &[&str]) -> Self {
        let mut node = Self::alone(pod_cidrs);
        node.start();
        node
    }

    /// The same, not yet started.
    pub(crate) fn alone(pod_cidrs: &[&str]) -> Self {
        let node = Self::stopped(self::node("a", &["192.0.2.1", "2001:db8::1"], pod_cidrs));
        node.ns.sh(
            "ip link add uplink type veth peer name outside; ip link set outside up; ip link set uplink mtu 1450 up
             ip addr add 192.0.2.1/24 dev uplink; ip addr add 2001:db8::1/64 dev uplink nodad",
        );
        node
    }

    pub(crate) fn stopped(local: Node) -> Self {
        let ns = Namespace::new();
        ns.sh("ip link set lo up");
        let folder = tempfile::tempdir().unwrap();
        let (others, rest, keep, mode) = (Vec::new(), Duration::ZERO, None, Mode::Auto);
        Self { ns, folder, local, others, rest, keep, mode, running: None }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("agent.sock")
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Starts pod network and server, as an agent's start does.
    pub(crate) fn start(&mut self) {
        let (local, others, rest, mode) = (self.local.clone(), self.others.clone(), self.rest, self.mode);
        let keep = self.keep.clone();
        let (state_dir, socket) = (self.state_dir(), self.socket());
        let (stop, stopped) = oneshot::channel::<()>();
        let (tell, ready) = channel();
        let thread = self.ns.run(move || {
            thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async move {
                    let notes = Some(moat_cni::note::folder(&socket));
                    let config =
                        PodNetConfig { address_rest: rest, notes, mode, ..PodNetConfig::new(state_dir) };
                    let podnet = PodNet::open(config).unwrap();
                    podnet.set_nodes(&local, &others).await.unwrap();
                    if let Some(mended) = keep {
                        podnet.keep(mended, |_| true).unwrap();
                    }
                    let server = CniServer::bind(&socket).unwrap();
                    tell.send(podnet.clone()).unwrap();
                    let shutdown = async {
                        let _ = stopped.await;
                    };
                    server.serve(Arc::new(Bare(podnet)), shutdown).await;
                });
            })
        });
        let podnet = ready.recv().expect("the node's agent starts");
        self.running = Some((stop, thread, podnet));
    }

    pub(crate) fn stop(&mut self) {
        if let Some((stop, thread, podnet)) = self.running.take() {
            drop(podnet);
            let _ = stop.send(());
            let _ = thread.join();
        }
    }

    pub(crate) fn podnet(&self) -> &PodNet {
        &self.running.as_ref().unwrap().2
    }

    pub(crate) fn plugin(&self) -> Plugin {
        Plugin { netns: Some(self.ns.path.clone()), ..Plugin::new(&self.socket()) }
    }

    /// Tells the running node which others there are.
    pub(crate) fn set_nodes(&self, others: &[Node]) -> Result<(), PodNetError> {
        let (podnet, local, others) = (self.podnet().clone(), self.local.clone(), others.to_vec());
        self.ns.run(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(podnet.set_nodes(&local, &others))
        })
    }

    /// The links of pods that there are in the node's namespace.
    pub(crate) fn pod_links(&self) -> Vec<String> {
        let links: Value = serde_json::from_str(&self.ns.sh("ip -j link show type veth")).unwrap();
        let names = links.as_array().unwrap().iter().filter_map(|link| link["ifname"].as_str());
        names.filter(|name| name.starts_with("moat")).map(str::to_owned).collect()
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The plugin's binary, built once.
pub(crate) fn plugin_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| binary("moat-cni"))
}

/// A program of the workspace, built as the tests are. Its package is called as it is.
pub(crate) fn binary(name: &str) -> PathBuf {
    let profile_dir = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_owned();
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--package", name, "--bin", name]);
    if profile_dir.ends_with("release") {
        build.arg("--release");
    }
    build.arg("--target-dir").arg(profile_dir.parent().unwrap());
    let status = build.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap();
    assert!(status.success(), "{name} cannot be built");
    profile_dir.join(name)
}

/// The plugin, configured for one node's socket.
#[derive(Clone)]
pub(crate) struct Plugin {
    pub(crate) config: Value,
    /// The namespace of the pods that it is run for.
    pub(crate) namespace: String,
    /// The network namespace that it is run in: a runtime runs it in the node's.
    pub(crate) netns: Option<PathBuf>,
    /// Where it is to die: see [`moat_cni::failpoint`].
    pub(crate) die_at: Option<&'static str>,
}

pub(crate) struct Answer {
    pub(crate) stdout: String,
    pub(crate) success: bool,
}

impl Answer {
    #[track_caller]
    pub(crate) fn ok(&self) -> Value {
        assert!(self.success, "{}", self.stdout);
        if self.stdout.is_empty() { Value::Null } else { serde_json::from_str(&self.stdout).unwrap() }
    }

    #[track_caller]
    pub(crate) fn fails_with(&self, code: u32) -> Value {
        assert!(!self.success, "it succeeded: {}", self.stdout);
        let error: Value = serde_json::from_str(&self.stdout).unwrap();
        assert_eq!(error["code"], code, "{error}");
        error
    }
}

impl Plugin {
    pub(crate) fn new(socket: &Path) -> Self {
        Self {
            config: json!({"cniVersion": "1.1.0", "name": "moat", "type": "moat-cni", "agentSocket": socket}),
            namespace: "default".to_owned(),
            netns: None,
            die_at: None,
        }
    }

    /// Runs a command about the interface eth0 of the container `id` in the namespace at `netns`.
    pub(crate) fn run(&self, command: &str, id: &str, netns: &Path) -> Answer {
        self.run_with(command, id, netns, &self.config)
    }

    pub(crate) fn run_with(&self, command: &str, id: &str, netns: &Path, config: &Value) -> Answer {
        let mut process = Command::new(plugin_binary());
        process
            .env_clear()
            .envs(self.die_at.map(|point| (moat_cni::failpoint::VARIABLE, point)))
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", id)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", "eth0")
            .env(
                "CNI_ARGS",
                format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={id}", self.namespace),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = match self.netns.clone() {
            None => process.spawn().unwrap(),
            Some(path) => spawn_in(&path, process),
        };
        // One that dies at once does not read.
        let _ = child.stdin.take().unwrap().write_all(config.to_string().as_bytes());
        let output = child.wait_with_output().unwrap();
        Answer { stdout: String::from_utf8(output.stdout).unwrap(), success: output.status.success() }
    }

    pub(crate) fn check(&self, id: &str, netns: &Path, result: &Value) -> Answer {
        let mut config = self.config.clone();
        config["prevResult"] = result.clone();
        self.run_with("CHECK", id, netns, &config)
    }

    pub(crate) fn gc(&self, valid: &[&str]) -> Answer {
        let mut config = self.config.clone();
        config["cni.dev/valid-attachments"] =
            valid.iter().map(|id| json!({"containerID": id, "ifname": "eth0"})).collect();
        self.run_with("GC", "none", Path::new("/none"), &config)
    }

    /// A new pod, added.
    #[track_caller]
    pub(crate) fn pod(&self, id: &str) -> Pod {
        let ns = Namespace::new();
        let result = self.run("ADD", id, &ns.path).ok();
        Pod { ns, id: id.to_owned(), addresses: addresses(&result), result }
    }
}

/// Starts a program in the network namespace at `netns`.
pub(crate) fn spawn_in(netns: &Path, mut process: Command) -> Child {
    let netns = std::fs::File::open(netns).unwrap();
    // A child is born where the thread is that makes it.
    let born = thread::spawn(move || {
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        process.spawn().unwrap()
    });
    born.join().unwrap()
}

/// The addresses of ADD's answer.
pub(crate) fn addresses(result: &Value) -> Vec<IpAddr> {
    let ips = result["ips"].as_array().unwrap().iter();
    ips.map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap()).collect()
}

/// A pod that was added.
pub(crate) struct Pod {
    pub(crate) ns: Namespace,
    pub(crate) id: String,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) result: Value,
}

const PORT: u16 = 7;

/// Sends one UDP packet from one namespace to another and waits for its echo; returns how long that took.
#[track_caller]
pub(crate) fn udp(from: &Namespace, to: &Namespace, address: IpAddr) -> Duration {
    let socket = to.run(move || {
        UdpSocket::bind(SocketAddr::new(address, PORT)).expect("the address can be bound at once")
    });
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let echo = thread::spawn(move || {
        let mut buffer = [0; 16];
        if let Ok((length, sender)) = uninterrupted(|| socket.recv_from(&mut buffer)) {
            socket.send_to(&buffer[..length], sender).unwrap();
        }
    });
    let took = from.run(move || {
        let local: SocketAddr =
            if address.is_ipv4() { "0.0.0.0:0".parse() } else { "[::]:0".parse() }.unwrap();
        let socket = UdpSocket::bind(local).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(4))).unwrap();
        let started = Instant::now();
        socket.send_to(b"hello", SocketAddr::new(address, PORT)).unwrap();
        let mut buffer = [0; 16];
        let received = uninterrupted(|| socket.recv(&mut buffer))
            .unwrap_or_else(|error| panic!("no answer from {address}: {error}"));
        assert_eq!(&buffer[..received], b"hello");
        started.elapsed()
    });
    echo.join().unwrap();
    took
}

/// Listens where an earlier probe may have listened: for as long as another test is about to start a program, that program's
/// process holds a copy of every socket.
fn listen(address: IpAddr) -> TcpListener {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match TcpListener::bind(SocketAddr::new(address, PORT)) {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                thread::yield_now();
            }
            other => return other.unwrap(),
        }
    }
}

/// Makes one TCP connection from one namespace to another.
#[track_caller]
pub(crate) fn tcp(from: &Namespace, to: &Namespace, address: IpAddr) {
    let listener = to.run(move || listen(address));
    let accept = thread::spawn(move || listener.accept().map(|_| ()));
    let connected = from.run(move || {
        TcpStream::connect_timeout(&SocketAddr::new(address, PORT), Duration::from_secs(4)).map(|_| ())
    });
    connected.unwrap_or_else(|error| panic!("no connection to {address}: {error}"));
    accept.join().unwrap().unwrap();
}

/// Sends so many bytes over one TCP connection; the last one of them is waited for.
#[track_caller]
pub(crate) fn stream(from: &Namespace, to: &Namespace, address: IpAddr, bytes: usize) {
    let listener = to.run(move || listen(address));
    let receive = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        std::io::copy(&mut stream, &mut std::io::sink())
    });
    from.run(move || {
        let at = SocketAddr::new(address, PORT);
        let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(4)).expect("a connection");
        stream.write_all(&vec![7; bytes]).expect("room for all of it");
    });
    let received = receive.join().unwrap();
    assert_eq!(received.unwrap_or_else(|error| panic!("not all came to {address}: {error}")), bytes as u64);
}
