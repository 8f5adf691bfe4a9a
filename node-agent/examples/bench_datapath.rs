//! What the data path costs: CPU time of a new TCP connection and of an established packet, between two pods of one
//! node, with the tables that moat really loads.
//!
//! ```text
//! cargo run --release -p moat-agent --example bench_datapath -- [--rounds 2000] [--dump FILE] [--nft FILE]...
//! ```
//!
//! `--nft` adds a world with the tables of a file, to compare another layout with.
//!
//! Needs root, `ip` and `nft`. All worlds exist side by side, each in namespaces of its own, and are measured in
//! turns, a slice of a millisecond each, every round in another order. One thread is client and server, and the kernel
//! forwards on its back, so that a slice's CPU time is the sum of what client, node and server do. A figure is the median
//! over the rounds; a ratio or difference is the median of those of slices of the same round, so that what
//! disturbs the machine for longer than a round disturbs both sides alike.

#[path = "../tests/dataplane/space.rs"]
#[allow(dead_code, reason = "shared with the kernel tests, which use more of it")]
mod space;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use moat_agent::dataplane::{Config, Dataplane, HostPorts, Inside, LayoutConfig, LocalPod, Senders, Update};
use moat_cni::port::{HostPort, Transport};
use moat_policies::{
    Cluster, Labels, NamespacedName, NetworkPolicy, Node, Object, Peer, Peers, Pod, PortMatch, PortRef,
    Ports, Protocol, Rule, Selector,
};
use nix::sched::{CloneFlags, setns};
use nix::time::{ClockId, clock_gettime};
use space::Space;

/// New connections in a slice.
const CONNECTIONS: u32 = 15;
/// Packets in a slice.
const PACKETS: u32 = 150;
/// Peers that each policy lets in; the last policy's are the ones that are measured.
const PEERS: u32 = 10;
const PORT: u16 = 80;
/// The world with the most policies.
const MOST: &str = "1,000 policies";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tables {
    /// Connection tracking, and nothing else.
    Track,
    /// Connection tracking and our anti-spoofing.
    TrackGuard,
    /// The same, and an empty chain that may translate addresses: as on every node with kube-proxy.
    TrackNat,
    /// What moat loads for so many policies that select the server, where it translates no addresses.
    Plain(u32),
    /// All that moat loads for so many policies that select the server.
    Policies(u32),
    /// The same for one policy, where a port of the node leads to the server.
    HostPort,
    /// Connection tracking, and a file for `nft -f`.
    File(&'static str),
}

struct World {
    name: &'static str,
    client: Space,
    node: Space,
    server: Space,
    listener: TcpListener,
    udp: (UdpSocket, UdpSocket),
    udp6: (UdpSocket, UdpSocket),
    is_a_file: bool,
    _dataplane: Option<Dataplane>,
    connections: Vec<f64>,
    packets: Vec<f64>,
    packets6: Vec<f64>,
}

const CLIENT: (Ipv4Addr, Ipv6Addr, u8) =
    (Ipv4Addr::new(10, 0, 0, 1), Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1), 1);
const SERVER: (Ipv4Addr, Ipv6Addr, u8) =
    (Ipv4Addr::new(10, 0, 0, 2), Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2), 2);

fn main() {
    let mut rounds = 2000;
    let mut dump = None;
    let mut others = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--rounds" => rounds = arguments.next().and_then(|n| n.parse().ok()).expect("a number of rounds"),
            "--nft" => others.push(&*arguments.next().expect("a file's name").leak()),
            "--dump" => dump = Some(arguments.next().expect("a file's name")),
            // cargo bench hands this over
            "--bench" => {}
            other => panic!("unknown argument {other}"),
        }
    }
    let mut worlds = vec![
        World::new("conntrack only, no anti-spoofing", Tables::Track),
        World::new("conntrack only", Tables::TrackGuard),
        World::new("conntrack, and a chain for NAT", Tables::TrackNat),
        World::new("1 policy, no NAT", Tables::Plain(1)),
        World::new("1 policy", Tables::Policies(1)),
        World::new("1 policy, and a host port", Tables::HostPort),
        World::new(MOST, Tables::Policies(1000)),
    ];
    worlds.extend(others.into_iter().map(|file| World::new(file, Tables::File(file))));
    if let Some(file) = dump {
        let last = worlds.iter().find(|w| w.name == MOST).expect("a world");
        let text = ["inet moat", "inet moat-net", "netdev moat"]
            .map(|table| last.node.command(&format!("nft list table {table}")));
        std::fs::write(file, shortened(&text.concat())).expect("the dump is written");
    }
    for round in 0..=rounds {
        // Another first one each time, and every other time backwards: nobody always runs in the same one's wake.
        let count = worlds.len();
        for place in 0..count {
            let place = if round % 2 == 0 { place } else { count - 1 - place };
            worlds[(place + round / 2) % count].slice(round > 0);
        }
    }
    report(&worlds);
}

/// A listing with the first elements of each set only.
fn shortened(listing: &str) -> String {
    const LINES: usize = 4;
    let (mut out, mut inside) = (String::new(), None);
    for line in listing.lines() {
        if line.contains("elements = {") {
            inside = Some(0);
        }
        let ends = line.ends_with('}');
        match &mut inside {
            Some(lines) if *lines >= LINES && !ends => *lines += 1,
            Some(lines) => {
                if ends && *lines > LINES {
                    out.push_str(&format!("\t\t\t     # ... {} lines more\n", *lines - LINES));
                }
                *lines += 1;
                out.push_str(line);
                out.push('\n');
            }
            None => {
                out.push_str(line);
                out.push('\n');
            }
        }
        if ends {
            inside = None;
        }
    }
    out
}

impl World {
    fn new(name: &'static str, tables: Tables) -> Self {
        let (client, node, server) = (Space::new("client"), Space::new("node"), Space::new("server"));
        node.sysctl("ipv4/ip_forward", "1");
        node.sysctl("ipv6/conf/all/forwarding", "1");
        plug(&node, &client, "moatclient", CLIENT);
        plug(&node, &server, "moatserver", SERVER);
        client.sysctl("ipv4/tcp_tw_reuse", "1");
        client.sysctl("ipv4/ip_local_port_range", "1024 65000");
        let dataplane = match tables {
            Tables::Track => {
                track(&node);
                None
            }
            Tables::TrackGuard | Tables::TrackNat => {
                // Without an owner, so that the table with the verdicts can be taken away and that with the
                // anti-spoofing stay.
                drop(load(&node, 0, false, true, HostPorts::default()));
                node.command("nft delete table inet moat; delete table inet moat-net");
                track(&node);
                if tables == Tables::TrackNat {
                    node.command(
                        "nft add chain inet track nat { type nat hook postrouting priority srcnat ; }",
                    );
                }
                None
            }
            Tables::File(file) => {
                track(&node);
                node.command(&format!("nft -f {file}"));
                None
            }
            Tables::Plain(count) => Some(load(&node, count, true, false, HostPorts::default())),
            Tables::Policies(count) => Some(load(&node, count, true, true, HostPorts::default())),
            Tables::HostPort => Some(load(&node, 1, true, true, host_port())),
        };
        let listener = server.run(|| TcpListener::bind((SERVER.0, PORT)).expect("listens"));
        let udp = pair(&client, &server, CLIENT.0.into(), SERVER.0.into());
        let udp6 = pair(&client, &server, CLIENT.1.into(), SERVER.1.into());
        Self {
            name,
            client,
            node,
            server,
            listener,
            udp,
            udp6,
            is_a_file: matches!(tables, Tables::File(_)),
            _dataplane: dataplane,
            connections: Vec::new(),
            packets: Vec::new(),
            packets6: Vec::new(),
        }
    }

    /// Measures a slice of each kind.
    fn slice(&mut self, counts: bool) {
        let listener = self.listener.try_clone().expect("a descriptor");
        // New sockets are born in the namespace of the thread that makes them.
        let thread = self.client.thread();
        enter(thread);
        // What the other worlds' slices have driven out of the caches comes back uncounted.
        (0..3).for_each(|_| connection(&listener));
        let begin = cpu_time();
        for _ in 0..CONNECTIONS {
            connection(&listener);
        }
        let connections = micros(cpu_time() - begin, CONNECTIONS);
        let packets = stream(&self.udp);
        let packets6 = stream(&self.udp6);
        if counts {
            self.connections.push(connections);
            self.packets.push(packets);
            self.packets6.push(packets6);
        }
        debug_assert_ne!(self.server.thread(), thread);
    }
}

/// Connect, a byte each way, close.
fn connection(listener: &TcpListener) {
    let mut client = TcpStream::connect((SERVER.0, PORT)).expect("connects");
    let (mut server, _) = listener.accept().expect("accepts");
    let mut byte = [1];
    client.write_all(&byte).expect("sent");
    server.read_exact(&mut byte).expect("received");
    server.write_all(&byte).expect("sent");
    client.read_exact(&mut byte).expect("received");
}

fn stream((client, server): &(UdpSocket, UdpSocket)) -> f64 {
    let mut buffer = [0; 64];
    let mut packet = || {
        client.send(&[0; 32]).expect("sent");
        server.recv(&mut buffer).expect("received");
    };
    (0..20).for_each(|_| packet());
    let begin = cpu_time();
    (0..PACKETS).for_each(|_| packet());
    micros(cpu_time() - begin, PACKETS) * 1000.0
}

/// The CPU time of this thread so far, and of the kernel on its behalf.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock").into()
}

fn micros(time: Duration, count: u32) -> f64 {
    time.as_secs_f64() * 1e6 / f64::from(count)
}

/// Two sockets that have talked both ways, so that their flow is established.
fn pair(client: &Space, server: &Space, from: IpAddr, to: IpAddr) -> (UdpSocket, UdpSocket) {
    let bound = |space: &Space, address: IpAddr| {
        space.run(move || UdpSocket::bind(SocketAddr::new(address, PORT)).expect("binds"))
    };
    let (a, b) = (bound(client, from), bound(server, to));
    a.connect((to, PORT)).expect("connects");
    b.connect((from, PORT)).expect("connects");
    for socket in [&a, &b] {
        socket.set_read_timeout(Some(Duration::from_millis(200))).expect("an option");
    }
    let mut buffer = [0; 8];
    // The links may not be quite up yet.
    let arrives = |_| a.send(b"there").is_ok() && b.recv(&mut buffer).is_ok();
    assert!((0..50).any(arrives), "nothing arrives at {to}");
    for socket in [&a, &b] {
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("an option");
    }
    b.send(b"back").expect("sent");
    a.recv(&mut buffer).expect("received");
    (a, b)
}

fn enter(thread: i32) {
    let namespace = File::open(format!("/proc/self/task/{thread}/ns/net")).expect("a namespace");
    setns(namespace, CloneFlags::CLONE_NEWNET).expect("enters");
}

/// A table that tracks connections and sees no packet.
fn track(node: &Space) {
    node.command("nft add table inet track");
    node.command("nft add chain inet track unused");
    node.command("nft add rule inet track unused ct state new accept");
}

/// A pod: one end in the node, one in the pod, routes and neighbours on both.
fn plug(node: &Space, pod: &Space, ifname: &str, (v4, v6, n): (Ipv4Addr, Ipv6Addr, u8)) {
    let (mac, host) = (format!("02:00:00:00:00:{n:02x}"), format!("06:00:00:00:00:{n:02x}"));
    let thread = pod.thread();
    node.ip(&format!(
        "link add {ifname} address {host} type veth peer name eth0 address {mac} netns {thread}"
    ));
    pod.ip(&format!("addr add {v4}/32 dev eth0"));
    pod.ip(&format!("addr add {v6}/128 dev eth0 nodad"));
    node.ip(&format!("link set {ifname} up"));
    pod.ip("link set eth0 up");
    pod.ip("route add 169.254.1.1 dev eth0");
    pod.ip("route add default via 169.254.1.1");
    pod.ip("-6 route add default via fe80::1 dev eth0");
    pod.ip(&format!("neigh replace 169.254.1.1 lladdr {host} dev eth0 nud permanent"));
    pod.ip(&format!("-6 neigh replace fe80::1 lladdr {host} dev eth0 nud permanent"));
    node.ip(&format!("route add {v4}/32 dev {ifname}"));
    node.ip(&format!("-6 route add {v6}/128 dev {ifname}"));
    node.ip(&format!("neigh replace {v4} lladdr {mac} dev {ifname} nud permanent"));
    node.ip(&format!("-6 neigh replace {v6} lladdr {mac} dev {ifname} nud permanent"));
}

/// A port of the node that leads to the server. Nobody in the benchmark goes by it.
fn host_port() -> HostPorts {
    let port = HostPort { protocol: Transport::Tcp, host_port: 8080, host_ip: None, port: PORT };
    HostPorts::of([(&port, SERVER.0.into()), (&port, SERVER.1.into())])
}

/// Loads what moat loads for so many policies that select the server, each letting in ten peers of its own on the
/// measured port; the client is among the last one's.
fn load(node: &Space, policies: u32, owner: bool, nat: bool, ports: HostPorts) -> Dataplane {
    let about = |name: &str, host: u8, cidrs: [&str; 2]| Node {
        name: name.into(),
        addresses: vec![IpAddr::from([192, 168, 0, host])],
        pod_cidrs: cidrs.map(|cidr| cidr.parse().expect("a prefix")).into(),
    };
    let (here, others) =
        (about("node", 1, ["10.0.0.0/24", "fd00::/64"]), [about("other", 2, ["10.1.0.0/16", "fd00:1::/64"])]);
    let mut objects: Vec<Object> = others.iter().chain([&here]).cloned().map(Object::Node).collect();
    let label = |value: &str| Labels::from([(Arc::from("group"), Arc::from(value))]);
    let group = |k: u32| format!("g{k}");
    let pod = |name: &str, labels: Labels, node: &str, addresses: Vec<IpAddr>| {
        Object::Pod(Pod {
            name: NamespacedName::new("default", name),
            labels,
            node: Some(node.into()),
            addresses,
            ports: Vec::new(),
            host_network: false,
            finished: false,
            uid: None,
        })
    };
    let last = group(policies.saturating_sub(1));
    objects.push(pod("client", label(&last), "node", vec![CLIENT.0.into(), CLIENT.1.into()]));
    objects.push(pod("server", label("server"), "node", vec![SERVER.0.into(), SERVER.1.into()]));
    for k in 0..policies {
        for p in 0..PEERS {
            let address = Ipv4Addr::from_bits(Ipv4Addr::new(10, 1, 0, 0).to_bits() + k * PEERS + p);
            let name = format!("peer-{k}-{p}");
            objects.push(pod(&name, label(&group(k)), "other", vec![address.into()]));
        }
        objects.push(Object::Policy(NetworkPolicy {
            name: NamespacedName::new("default", format!("policy-{k}")),
            subject: Selector::label("group", "server"),
            ingress: Some(vec![Rule {
                peers: Peers::Of(vec![Peer::Pods {
                    namespaces: moat_policies::NamespaceScope::Own,
                    pods: Selector::label("group", group(k)),
                }]),
                ports: Ports::Of(
                    [Protocol::Tcp, Protocol::Udp]
                        .map(|protocol| PortMatch { protocol, port: PortRef::Range(PORT, PORT) })
                        .into(),
                ),
            }]),
            egress: None,
        }));
    }
    let mut cluster = Cluster::new();
    cluster.reset(objects);
    cluster.commit();
    let local = |ifname: &str, (v4, v6, n): (Ipv4Addr, Ipv6Addr, u8)| {
        let ifname = ifname.to_owned();
        Some(LocalPod { ifname, pod_mac: [2, 0, 0, 0, 0, n], v4: Some(v4), v6: Some(v6) })
    };
    let pods = BTreeMap::from([
        (NamespacedName::new("default", "client"), local("moatclient", CLIENT)),
        (NamespacedName::new("default", "server"), local("moatserver", SERVER)),
    ]);
    let (senders, inside) = (Senders::of(&here, &others), Inside::of(&here, &others, &[]));
    let (senders, inside) = (Some(senders), Some(inside));
    let policy = cluster.state("node");
    let update = Update { policy, pods, senders, inside, host_ports: Some(ports), ..Update::default() };
    // All that the agent loads: by default it masquerades, there may be a tunnel, and ports of the node may lead to pods.
    let layout = LayoutConfig { tunnel: true, masquerade: nat, host_ports: nat, ..LayoutConfig::default() };
    let config = Config { owner, layout, ..Config::default() };
    node.run(move || Dataplane::start(config, &update)).expect("the tables are loaded")
}

fn report(worlds: &[World]) {
    println!("{:<34} {:>14} {:>14} {:>14}", "", "connection, us", "packet, ns", "IPv6, ns");
    for w in worlds {
        let figures = [&w.connections, &w.packets, &w.packets6].map(|f| median(f.iter().copied()));
        println!("{:<34} {:>14.1} {:>14.0} {:>14.0}", w.name, figures[0], figures[1], figures[2]);
    }
    let find = |name: &str| worlds.iter().find(|w| w.name == name).expect("a world");
    let bare = find("conntrack only, no anti-spoofing");
    let (guarded, nat) = (find("conntrack only"), find("conntrack, and a chain for NAT"));
    let (plain, one, many) = (find("1 policy, no NAT"), find("1 policy"), find(MOST));
    let ported = find("1 policy, and a host port");
    println!();
    ratio("new connections, 1,000 policies : 1 policy", &one.connections, &many.connections, 0.97);
    for (base, other, what) in [
        (guarded, plain, "no NAT : conntrack only"),
        (nat, one, "1 policy : conntrack and NAT"),
        (nat, many, "1,000 policies : conntrack and NAT"),
        (nat, ported, "and a host port : conntrack and NAT"),
        (guarded, one, "NAT and all : conntrack only"),
    ] {
        ratio(&format!("new connections, {what}"), &base.connections, &other.connections, 0.97);
        ratio("established", &base.packets, &other.packets, 0.96);
        ratio("the same over IPv6", &base.packets6, &other.packets6, 0.96);
    }
    difference("anti-spoofing, a packet", &bare.packets, &guarded.packets, 130.0);
    difference("the same over IPv6", &bare.packets6, &guarded.packets6, 130.0);
    difference("a chain for NAT, a packet", &guarded.packets, &nat.packets, f64::INFINITY);
    difference("the same over IPv6", &guarded.packets6, &nat.packets6, f64::INFINITY);
    let nanos = |figures: &[f64]| figures.iter().map(|us| us * 1000.0).collect::<Vec<_>>();
    difference(
        "the same, a connection",
        &nanos(&guarded.connections),
        &nanos(&nat.connections),
        f64::INFINITY,
    );
    for w in worlds.iter().filter(|w| w.is_a_file) {
        difference(&format!("{}, a packet", w.name), &bare.packets, &w.packets, f64::INFINITY);
        difference("the same over IPv6", &bare.packets6, &w.packets6, f64::INFINITY);
        difference("a connection", &nanos(&bare.connections), &nanos(&w.connections), f64::INFINITY);
    }
}

/// How fast the second is, measured by the first.
fn ratio(what: &str, base: &[f64], other: &[f64], to_reach: f64) {
    let value = median(base.iter().zip(other).map(|(b, o)| b / o));
    let word = if value >= to_reach { "" } else { "  MISSED" };
    println!("{what:<54} {value:.3}   (to reach: {to_reach:.2}){word}");
}

fn difference(what: &str, base: &[f64], other: &[f64], at_most: f64) {
    let value = median(base.iter().zip(other).map(|(b, o)| o - b));
    let word = if value <= at_most { "" } else { "  MISSED" };
    let bound =
        if at_most.is_finite() { format!("   (at most: {at_most:.0} ns){word}") } else { String::new() };
    println!("{what:<54} {value:.0} ns{bound}");
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
