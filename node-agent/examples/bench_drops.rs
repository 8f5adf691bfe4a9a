//! What a dropped packet costs the node: with the drop log, and with a bare drop in its place.
//!
//! ```text
//! cargo run --release -p moat-agent --example bench_drops -- [--rounds 400]
//! ```
//!
//! Needs root, `ip` and `nft`. A pod sends 100,000 UDP datagrams a second to the ports of another pod, which lets nobody in.
//! All worlds exist side by side, each in namespaces of its own, and are measured in turns, a slice of fifty milliseconds
//! each, every round in another order. A slice's cost is the CPU time of the whole process: the sender's, the kernel's on its
//! back, and that of the thread that reads the log, names the ends, asks the engine for its explanation and writes the line
//! (to nowhere). Every port is a kind of its own, so that each record becomes a line. A figure is the median over the rounds; a
//! ratio is the median of the ratios of slices of the same round.
//!
//! "Dropped as it comes in" is the sender's own share: what the packet costs until the node sees it.

#[path = "../tests/dataplane/space.rs"]
#[allow(dead_code, reason = "shared with the kernel tests, which use more of it")]
mod space;

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use moat_agent::dataplane::{Config, Dataplane, DropCounters, LayoutConfig, LocalPod, Update};
use moat_agent::desired::Desired;
use moat_agent::droplog::{DropLog, DropLogConfig};
use moat_agent::podnet::Attachment;
use moat_policies::{
    Cluster, Labels, NamespacedName, NetworkPolicy, Node, Object, Peer, Peers, Pod, Ports, Rule, Selector,
};
use nix::sched::{CloneFlags, setns};
use nix::time::{ClockId, clock_gettime};
use space::Space;

/// Datagrams in a slice, and in each burst of it.
const SLICE: u32 = 5000;
const BURST: u32 = 500;
/// From burst to burst: a hundred thousand datagrams a second.
const PAUSE: Duration = Duration::from_millis(5);
/// Ports that are sent to in turns.
const PORTS: u32 = 1000;
/// Pods of the cluster that the names are found among.
const OTHERS: u32 = 10_000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Dropped before our tables see it.
    Early,
    /// Our tables, with a bare drop where the reasons' chains would count and log.
    Bare,
    /// Counted, not logged.
    Counted,
    /// Counted and logged; nobody reads.
    Unread,
    /// All of it, with the agent's thread.
    Read,
}

const KINDS: [(Kind, &str); 5] = [
    (Kind::Early, "dropped as it comes in"),
    (Kind::Bare, "a bare drop"),
    (Kind::Counted, "counted"),
    (Kind::Unread, "counted and logged, nobody reads"),
    (Kind::Read, "the drop log"),
];

struct World {
    name: &'static str,
    client: Space,
    node: Space,
    _server: Space,
    socket: UdpSocket,
    log: Option<DropLog>,
    sent: u64,
    costs: Vec<f64>,
}

const CLIENT: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 0, 0, 1), 1);
const SERVER: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 0, 0, 2), 2);

fn main() {
    let mut rounds = 400;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--rounds" => rounds = arguments.next().and_then(|n| n.parse().ok()).expect("a number of rounds"),
            other => panic!("unknown argument {other}"),
        }
    }
    tracing_subscriber::fmt().with_writer(std::io::sink).init();
    let mut worlds: Vec<World> = KINDS.into_iter().map(|(kind, name)| World::new(kind, name)).collect();
    for round in 0..=rounds {
        // Another first one each time, and every other time backwards.
        let count = worlds.len();
        for place in 0..count {
            let place = if round % 2 == 0 { place } else { count - 1 - place };
            worlds[(place + round / 2) % count].slice(round > 0);
        }
    }
    for world in &worlds {
        world.verify();
    }
    report(&worlds);
}

impl World {
    fn new(kind: Kind, name: &'static str) -> Self {
        let (client, node, server) = (Space::new("client"), Space::new("node"), Space::new("server"));
        node.sysctl("ipv4/ip_forward", "1");
        plug(&node, &client, "moatclient", CLIENT);
        plug(&node, &server, "moatserver", SERVER);
        // Without an owner, so that the chain can be changed afterwards.
        drop(load(&node));
        let chain = "inet moat policy-ingress";
        let rules = node.command(&format!("nft -a list chain {chain}"));
        let handle = |begin: &str| {
            let line =
                rules.lines().find(|line| line.trim().starts_with(begin)).expect("the chain is as ever");
            line.rsplit(' ').next().expect("a handle").to_owned()
        };
        if kind == Kind::Bare {
            node.command(&format!("nft delete rule {chain} handle {}", handle("counter name")));
        }
        if matches!(kind, Kind::Bare | Kind::Counted) {
            node.command(&format!("nft delete rule {chain} handle {}", handle("update @log-")));
        }
        if kind == Kind::Early {
            node.command("nft add table netdev early");
            node.command("nft add chain netdev early in { type filter hook ingress device moatclient priority -600 ; policy drop ; }");
        }
        let log = (kind == Kind::Read).then(|| read(&node));
        let socket = client.run(|| UdpSocket::bind((CLIENT.0, 0)).expect("binds"));
        Self { name, client, node, _server: server, socket, log, sent: 0, costs: Vec::new() }
    }

    /// Measures a slice.
    fn slice(&mut self, counts: bool) {
        enter(self.client.thread());
        self.burst(BURST / 10);
        let begin = cpu_time();
        let started = Instant::now();
        for burst in 1..=SLICE / BURST {
            self.burst(BURST);
            std::thread::sleep((PAUSE * burst).saturating_sub(started.elapsed()));
        }
        let cost = (cpu_time() - begin).as_secs_f64() * 1e9 / f64::from(SLICE);
        if counts {
            self.costs.push(cost);
        }
    }

    fn burst(&mut self, datagrams: u32) {
        for n in 0..datagrams {
            let port = 1 + (n % PORTS) as u16;
            self.socket.send_to(&[0; 32], SocketAddr::new(SERVER.0.into(), port)).expect("sent");
        }
        self.sent += u64::from(datagrams);
    }

    /// What was measured is what it says.
    fn verify(&self) {
        let counts =
            self.node.run(|| DropCounters::open().and_then(|mut c| c.by_interface()).expect("counters"));
        let counted: u64 = counts.values().sum();
        match self.name {
            "dropped as it comes in" | "a bare drop" => assert_eq!(counted, 0),
            // The first are sent before the links are quite up.
            _ => assert!(counted > self.sent * 99 / 100, "{}: {counted} of {}", self.name, self.sent),
        }
        if let Some(log) = &self.log {
            let (records, overruns) = (log.stats().records(), log.stats().overruns());
            println!("the drop log has read {records} records of {counted} drops, {overruns} overruns");
            assert!(records > 0 && overruns == 0);
        }
    }
}

/// The CPU time of all threads so far, and of the kernel on their behalf.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("a clock").into()
}

fn enter(thread: i32) {
    let namespace = File::open(format!("/proc/self/task/{thread}/ns/net")).expect("a namespace");
    setns(namespace, CloneFlags::CLONE_NEWNET).expect("enters");
}

/// A pod: one end in the node, one in the pod, routes and neighbours on both.
fn plug(node: &Space, pod: &Space, ifname: &str, (v4, n): (Ipv4Addr, u8)) {
    let (mac, host) = (format!("02:00:00:00:00:{n:02x}"), format!("06:00:00:00:00:{n:02x}"));
    let thread = pod.thread();
    node.ip(&format!(
        "link add {ifname} address {host} type veth peer name eth0 address {mac} netns {thread}"
    ));
    pod.ip(&format!("addr add {v4}/32 dev eth0"));
    node.ip(&format!("link set {ifname} up"));
    pod.ip("link set eth0 up");
    pod.ip("route add 169.254.1.1 dev eth0");
    pod.ip("route add default via 169.254.1.1");
    pod.ip(&format!("neigh replace 169.254.1.1 lladdr {host} dev eth0 nud permanent"));
    node.ip(&format!("route add {v4}/32 dev {ifname}"));
    node.ip(&format!("neigh replace {v4} lladdr {mac} dev {ifname} nud permanent"));
}

/// The two pods among many; one lets in only others.
fn objects() -> Vec<Object> {
    let label = |value: &str| Labels::from([(Arc::from("app"), Arc::from(value))]);
    let pod = |name: String, app: &str, node: &str, address: Ipv4Addr| {
        Object::Pod(Pod {
            name: NamespacedName::new("default", name),
            labels: label(app),
            node: Some(node.into()),
            addresses: vec![address.into()],
            ports: Vec::new(),
            host_network: false,
            finished: false,
            uid: None,
        })
    };
    let node = |name: &str, n| {
        let addresses = vec![IpAddr::from([192, 168, 0, n])];
        Object::Node(Node { name: name.into(), addresses, pod_cidrs: Vec::new() })
    };
    let mut all = vec![
        node("node", 1),
        node("other", 2),
        pod("client".into(), "client", "node", CLIENT.0),
        pod("server".into(), "server", "node", SERVER.0),
        Object::Policy(NetworkPolicy {
            name: NamespacedName::new("default", "others-only"),
            subject: Selector::label("app", "server"),
            ingress: Some(vec![Rule {
                peers: Peers::Of(vec![Peer::Pods {
                    namespaces: moat_policies::NamespaceScope::Own,
                    pods: Selector::label("app", "other"),
                }]),
                ports: Ports::Any,
            }]),
            egress: None,
        }),
    ];
    let first = Ipv4Addr::new(10, 1, 0, 0).to_bits();
    all.extend(
        (0..OTHERS).map(|n| pod(format!("other-{n}"), "other", "other", Ipv4Addr::from_bits(first + n))),
    );
    all
}

fn local((v4, n): (Ipv4Addr, u8), ifname: &str) -> LocalPod {
    LocalPod { ifname: ifname.to_owned(), pod_mac: [2, 0, 0, 0, 0, n], v4: Some(v4), v6: None }
}

fn load(node: &Space) -> Dataplane {
    let mut cluster = Cluster::new();
    cluster.reset(objects());
    cluster.commit();
    let pods = BTreeMap::from([
        (NamespacedName::new("default", "client"), Some(local(CLIENT, "moatclient"))),
        (NamespacedName::new("default", "server"), Some(local(SERVER, "moatserver"))),
    ]);
    let update = Update { policy: cluster.state("node"), pods, ..Update::default() };
    let config = Config { owner: false, ..Config::default() };
    node.run(move || Dataplane::start(config, &update)).expect("the tables are loaded")
}

/// The agent's own reader.
fn read(node: &Space) -> DropLog {
    let attachment = |(v4, n): (Ipv4Addr, u8), pod: &str| Attachment {
        container_id: pod.to_owned(),
        ifname: "eth0".into(),
        network: "moat".into(),
        pod_namespace: "default".into(),
        pod_name: pod.to_owned(),
        pod_uid: None,
        netns: "/proc/self/ns/net".into(),
        host_ifname: format!("moat{pod}"),
        host_mac: [6, 0, 0, 0, 0, n],
        pod_mac: [2, 0, 0, 0, 0, n],
        v4: Some(v4),
        v6: None,
        mtu: 1500,
        host_ports: Vec::new(),
    };
    let mut desired =
        Desired::new("node".into(), [attachment(CLIENT, "client"), attachment(SERVER, "server")]);
    desired.start(moat_manifests::Changes { apply: objects(), ..moat_manifests::Changes::default() });
    let desired = Arc::new(Mutex::new(desired));
    node.run(move || DropLog::start(DropLogConfig::of(&LayoutConfig::default()), desired))
        .expect("the drop log")
}

fn report(worlds: &[World]) {
    println!("{:<36} {:>16}", "", "CPU, ns a packet");
    for world in worlds {
        println!("{:<36} {:>16.0}", world.name, median(world.costs.iter().copied()));
    }
    let [early, bare, .., log] = worlds else { return };
    let pairs = || bare.costs.iter().zip(&log.costs);
    println!();
    ratio("the drop log : a bare drop", median(pairs().map(|(b, l)| l / b)), Some(1.3));
    let node = pairs().zip(&early.costs).map(|((b, l), e)| (l - e) / (b - e));
    ratio("the same, without the sender's share", median(node), None);
}

fn ratio(what: &str, value: f64, at_most: Option<f64>) {
    match at_most {
        Some(most) => {
            let word = if value <= most { "" } else { "  MISSED" };
            println!("{what:<40} {value:.3}   (at most: {most:.2}){word}");
        }
        None => println!("{what:<40} {value:.3}"),
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
