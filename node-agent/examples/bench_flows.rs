//! How long connections that are there already take to follow a change, with so many entries in the kernel's connection
//! tracking table.
//!
//! ```text
//! cargo run --release -p moat-agent --example bench_flows -- [--entries 10000]... [--rounds 20]
//! ```
//!
//! Needs root, `ip` and `nft`. 250 pods of this node have opened connections to peers elsewhere: real packets made the
//! entries. One more pod is real, and gets a packet every 0.2 ms from who once answered it, while it says nothing itself. Every round reads the table bare, with nothing decoded, as `ip` and `conntrack` would have to, and then
//! changes policy; so what disturbs the machine disturbs both alike. A ratio is the median of those of the rounds.
//!
//! The table is the whole machine's: all network namespaces share it and its limit, and every dump walks all of it.

#[path = "../tests/dataplane/space.rs"]
#[allow(dead_code, reason = "shared with the kernel tests, which use more of it")]
mod space;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use moat_agent::dataplane::{Config, Dataplane, LayoutConfig, LocalPod, Update};
use moat_agent::flows::Flows;
use moat_nfnetlink::conntrack::{Conntrack, Filter};
use moat_policies::{
    Cluster, Key, Labels, NamespacedName, NetworkPolicy, Node, Object, Peer, Peers, Pod, Ports, Rule,
    Selector,
};
use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_NETFILTER};
use space::Space;

const PODS: u16 = 250;

/// The number of the pod that is real.
const REAL: u16 = PODS;

fn main() {
    let mut sizes = Vec::new();
    let mut rounds = 20;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|n| n.parse().ok()).expect("a number");
        match argument.as_str() {
            "--entries" => sizes.push(number()),
            "--rounds" => rounds = number(),
            // cargo bench hands this over
            "--bench" => {}
            other => panic!("unknown argument {other}"),
        }
    }
    if sizes.is_empty() {
        sizes = vec![10_000, 200_000];
    }
    for entries in sizes {
        for v6 in [false, true] {
            World::new(entries, v6).measure(rounds);
        }
    }
}

fn address(pod: u16, v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, pod + 1).into()
    } else {
        Ipv4Addr::new(10, 0, 0, pod as u8 + 1).into()
    }
}

struct World {
    entries: usize,
    v6: bool,
    node: Space,
    _ends: [Space; 3],
    cluster: Cluster,
    dataplane: Dataplane,
    flows: Flows,
    answers: Answers,
}

impl World {
    /// Pods' addresses on the left, their peer on the right, the node in between; entries first, then policy.
    fn new(entries: usize, v6: bool) -> Self {
        let [left, node, right] = ["left", "node", "right"].map(Space::new);
        for name in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            node.sysctl(name, "1");
        }
        for name in ["netfilter/nf_conntrack_udp_timeout", "netfilter/nf_conntrack_udp_timeout_stream"] {
            node.sysctl(name, "3600");
        }
        for (n, end) in [(1, &left), (2, &right)] {
            let mac = |side: u16| format!("02:00:00:00:{side:02x}:{n:02x}");
            let (here, there) = (mac(1), mac(2));
            node.ip(&format!(
                "link add up{n} address {here} type veth peer name eth0 address {there} netns {}",
                end.thread()
            ));
            for (space, dev, address, peer, mac) in
                [(&node, format!("up{n}"), 1, 2, &there), (end, "eth0".to_owned(), 2, 1, &here)]
            {
                space.ip(&format!("addr add 192.168.{n}.{address}/24 dev {dev}"));
                space.ip(&format!("addr add fd01:{n}::{address}/64 dev {dev} nodad"));
                space.ip(&format!("link set {dev} up"));
                space.ip(&format!("neigh replace 192.168.{n}.{peer} lladdr {mac} dev {dev} nud permanent"));
                space.ip(&format!("-6 neigh replace fd01:{n}::{peer} lladdr {mac} dev {dev} nud permanent"));
            }
            end.ip(&format!("route add default via 192.168.{n}.1"));
            end.ip(&format!("-6 route add default via fd01:{n}::1"));
        }
        node.ip("route add 10.0.0.0/16 via 192.168.1.2");
        node.ip("-6 route add fd00::/64 via fd01:1::2");
        node.ip("route add 10.1.0.0/16 via 192.168.2.2");
        node.ip("-6 route add fd00:1::/64 via fd01:2::2");
        let real = real_pod(&node);
        // Nobody answers, and nobody says so.
        right.ip("addr add 10.1.0.1/32 dev lo");
        right.ip("addr add fd00:1::1/128 dev lo nodad");
        std::fs::write("/tmp/moat-bench-track.nft", TRACK).expect("a file");
        node.command("nft -f /tmp/moat-bench-track.nft");
        right.command("nft -f /tmp/moat-bench-track.nft");
        for pod in 0..PODS {
            left.ip(&match address(pod, v6) {
                IpAddr::V4(a) => format!("addr add {a}/32 dev lo"),
                IpAddr::V6(a) => format!("addr add {a}/128 dev lo nodad"),
            });
        }
        let sockets: Vec<UdpSocket> = left.run(move || {
            let bind = |pod| UdpSocket::bind(SocketAddr::new(address(pod, v6), 0)).expect("a pod's address");
            (0..PODS).map(bind).collect()
        });
        let peer: IpAddr = if v6 { "fd00:1::1" } else { "10.1.0.1" }.parse().expect("an address");
        let mut conntrack = node.run(Conntrack::open).expect("a socket");
        let mut count = || {
            let mut count = 0;
            conntrack.entries(&Filter::all(), |_| count += 1).expect("a dump");
            count
        };
        let begin = Instant::now();
        while count() < entries {
            for n in 0..entries {
                // Until the link is up there may be no route.
                let _ = sockets[n % sockets.len()].send_to(b"x", (peer, 1000 + (n / sockets.len()) as u16));
            }
            assert!(begin.elapsed() < Duration::from_secs(60), "no entries: is there room for them?");
        }
        node.command("nft delete table inet track");

        let mut cluster = Cluster::new();
        cluster.apply(Object::Node(Node { name: "node".into(), addresses: vec![], pod_cidrs: vec![] }));
        let mut pods = BTreeMap::new();
        for pod in 0..=REAL {
            let name = NamespacedName::new("default", format!("pod-{pod}"));
            let mut local = LocalPod {
                ifname: format!("moat{pod}"),
                pod_mac: [2, 0, 0, 0, (pod >> 8) as u8, pod as u8],
                v4: None,
                v6: None,
            };
            match address(pod, v6) {
                IpAddr::V4(a) => local.v4 = Some(a),
                IpAddr::V6(a) => local.v6 = Some(a),
            }
            cluster.apply(Object::Pod(Pod {
                name: name.clone(),
                uid: None,
                labels: Labels::from([("app".into(), format!("pod-{pod}").into())]),
                node: Some("node".into()),
                addresses: vec![address(pod, v6)],
                ports: vec![],
                host_network: false,
                finished: false,
            }));
            pods.insert(name, Some(local));
        }
        let policy = cluster.commit().remove("node").expect("pods");
        let first = Update { policy, pods, ..Update::default() };
        let (dataplane, flows) = node.run(move || {
            let config = Config { followed: true, ..Config::default() };
            let dataplane = Dataplane::start(config, &first).expect("the data plane starts");
            let flows = Flows::start(&dataplane, &LayoutConfig::default(), &[]).expect("flows");
            (dataplane, flows)
        });
        let answers = Answers::start(&real, &right, address(REAL, v6), peer);
        Self { entries, v6, node, _ends: [left, right, real], cluster, dataplane, flows, answers }
    }

    /// Changes policy; says how long it took until the kernel held it, and then until connections followed.
    fn change(&mut self, objects: Vec<Object>, gone: &[&str]) -> [Duration; 2] {
        objects.into_iter().for_each(|o| self.cluster.apply(o));
        gone.iter().for_each(|n| self.cluster.delete(&Key::Policy(NamespacedName::new("default", *n))));
        let policy = self.cluster.commit().remove("node").unwrap_or_default();
        let begin = Instant::now();
        let cut = self.dataplane.submit(Update { policy, ..Update::default() }).wait().expect("taken");
        let committed = begin.elapsed();
        cut.wait();
        let all = begin.elapsed();
        // Not in the next one's way.
        while self.flows.stats().under_way() > 0 {
            std::thread::yield_now();
        }
        // Looks keep apart, to take no more than a fifth of the time; each is to be measured as one that comes alone.
        std::thread::sleep((all - committed) * 5);
        [committed, all - committed]
    }

    /// Changes policy while all connections are looked at; says how long it took until the kernel held it.
    fn commit_amid_a_look(&mut self) -> Duration {
        self.cluster.apply(somebody("all", self.v6));
        let policy = self.cluster.commit().remove("node").unwrap_or_default();
        let seen = self.flows.stats().seen();
        let all = self.dataplane.submit(Update { policy, ..Update::default() }).wait().expect("taken");
        while self.flows.stats().seen() == seen {
            std::thread::yield_now();
        }
        let [committed, _] = self.change(vec![elsewhere("one", "pod-1")], &[]);
        all.wait();
        self.change(vec![], &["one", "all"]);
        committed
    }

    fn measure(&mut self, rounds: usize) {
        let version = if self.v6 { "IPv6" } else { "IPv4" };
        println!("\n{} entries, {version}, {PODS} pods; medians of {rounds} rounds (slowest)", self.entries);
        let mut bare = self.node.run(Bare::open);
        let mut series: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        let mut note =
            |name, value: Duration| series.entry(name).or_default().push(value.as_secs_f64() * 1e3);
        let first = address(7, self.v6);
        for round in 0..=rounds {
            let filtered = (!self.v6).then(|| bare.dump(Some(first)));
            let whole = bare.dump(None);
            let one = format!("pod-{}", round % usize::from(PODS));
            let [commit, one_cut] = self.change(vec![nobody("one", Some(&one))], &[]);
            let [_, one_back] = self.change(vec![], &["one"]);
            let [_, all_same] = self.change(vec![somebody("all", self.v6)], &[]);
            let [_, all_cut] = self.change(vec![nobody("all", None)], &[]);
            let [_, all_back] = self.change(vec![], &["all"]);
            let amid = self.commit_amid_a_look();
            self.answers.come();
            let begin = Instant::now();
            self.change(vec![nobody("real", Some(&format!("pod-{REAL}")))], &[]);
            let last_answer = self.answers.last().saturating_duration_since(begin);
            self.change(vec![], &["real"]);
            if round == 0 {
                continue;
            }
            filtered.into_iter().for_each(|f| note("1 bare dump, filtered by the kernel", f));
            note("2 bare dump, everything", whole);
            note("3 commit, one pod", commit);
            note("A one pod: the last answer that got through", last_answer);
            note("9 commit, while all connections are looked at", amid);
            note("4 one pod: all of its connections cut", one_cut);
            note("5 one pod: all of them resumed", one_back);
            note("6 all pods: concerned, nothing denied", all_same);
            note("7 all pods: all connections cut", all_cut);
            note("8 all pods: all of them resumed", all_back);
        }
        let ratio = |a: &str, b: &str| {
            let ratios = series[a].iter().zip(&series[b]).map(|(a, b)| a / b).collect();
            median(ratios)
        };
        let base = series.keys().next().copied().unwrap_or_default();
        for (name, values) in &series {
            let most = values.iter().copied().fold(0.0, f64::max);
            let of = if name.starts_with(['4', '5']) {
                format!("{:.2} bare dumps of its kind", ratio(name, base))
            } else if name.starts_with(['6', '7', '8']) {
                format!("{:.2} bare dumps of everything", ratio(name, "2 bare dump, everything"))
            } else {
                String::new()
            };
            println!("  {:44} {:9.2} ms ({most:9.2})  {of}", &name[2..], median(values.clone()));
        }
    }
}

/// A pod with an interface.
fn real_pod(node: &Space) -> Space {
    let pod = Space::new("real");
    let (v4, v6) = (address(REAL, false), address(REAL, true));
    let (host, own) = ("02:00:00:00:09:fa", "02:00:00:00:00:fa");
    let dev = format!("moat{REAL}");
    node.ip(&format!(
        "link add {dev} address {host} type veth peer name eth0 address {own} netns {}",
        pod.thread()
    ));
    node.ip(&format!("link set {dev} up"));
    pod.ip("link set eth0 up");
    for (family, address, gateway) in [("-4", v4, "169.254.1.1"), ("-6", v6, "fe80::1")] {
        let length = if v4 == address { "32" } else { "128 nodad" };
        pod.ip(&format!("{family} addr add {address}/{length} dev eth0"));
        pod.ip(&format!("{family} neigh replace {gateway} lladdr {host} dev eth0 nud permanent"));
        pod.ip(&format!("{family} route add default via {gateway} dev eth0 onlink"));
        node.ip(&format!("{family} route add {address} dev {dev}"));
        node.ip(&format!("{family} neigh replace {address} lladdr {own} dev {dev} nud permanent"));
    }
    pod
}

/// A stream of answers to somebody who asked once.
struct Answers {
    begin: Instant,
    client: UdpSocket,
    stop: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl Answers {
    fn start(pod: &Space, right: &Space, own: IpAddr, peer: IpAddr) -> Self {
        let server = right.run(move || UdpSocket::bind(SocketAddr::new(peer, 53)).expect("an address"));
        let client = pod.run(move || UdpSocket::bind(SocketAddr::new(own, 0)).expect("an address"));
        client.send_to(b"stream", (peer, 53)).expect("sent");
        server.set_read_timeout(Some(Duration::from_secs(5))).expect("an option");
        let (_, to) = server.recv_from(&mut [0; 8]).expect("it is asked");
        client.set_nonblocking(true).expect("an option");
        let (begin, stop) = (Instant::now(), Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let stream = move || {
            while !stopped.load(Ordering::Relaxed) {
                let now = begin.elapsed().as_nanos() as u64;
                server.send_to(&now.to_ne_bytes(), to).expect("sent");
                std::thread::sleep(Duration::from_micros(200));
            }
        };
        Self { begin, client, stop, server: Some(std::thread::spawn(stream)) }
    }

    /// Waits until they come.
    fn come(&self) {
        let begin = Instant::now();
        self.last();
        while self.last() < begin {
            assert!(begin.elapsed() < Duration::from_secs(5), "no answers");
            std::thread::yield_now();
        }
    }

    /// When the last answer was sent that has arrived.
    fn last(&self) -> Instant {
        let mut bytes = [0; 8];
        let mut last = 0;
        while self.client.recv(&mut bytes).is_ok() {
            last = u64::from_ne_bytes(bytes);
        }
        self.begin + Duration::from_nanos(last)
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A policy that lets these pods talk to nobody.
fn nobody(name: &str, app: Option<&str>) -> Object {
    policy(name, app, vec![])
}

/// A policy that lets all pods talk to those whom they talk to.
fn somebody(name: &str, v6: bool) -> Object {
    let cidr = if v6 { "fd00:1::/64" } else { "10.1.0.0/16" }.parse().expect("a block");
    let block = moat_policies::Block::new(cidr, []).expect("a block");
    policy(name, None, vec![Rule { peers: Peers::Of(vec![Peer::Block(block)]), ports: Ports::Any }])
}

/// A policy that lets a pod talk to a block that nobody else may talk to: its program is another then.
fn elsewhere(name: &str, app: &str) -> Object {
    let cidr = "192.0.2.0/24".parse().expect("a block");
    let block = moat_policies::Block::new(cidr, []).expect("a block");
    policy(name, Some(app), vec![Rule { peers: Peers::Of(vec![Peer::Block(block)]), ports: Ports::Any }])
}

fn policy(name: &str, app: Option<&str>, egress: Vec<Rule>) -> Object {
    Object::Policy(NetworkPolicy {
        name: NamespacedName::new("default", name),
        subject: app.map_or(Selector::everything(), |app| Selector::label("app", app)),
        ingress: None,
        egress: Some(egress),
    })
}

/// A dump of the table by somebody who does nothing with it.
struct Bare(Socket);

impl Bare {
    fn open() -> Self {
        let mut socket = Socket::new(NETLINK_NETFILTER).expect("a netlink socket");
        socket.bind_auto().expect("a port");
        Self(socket)
    }

    fn dump(&mut self, source: Option<IpAddr>) -> Duration {
        const GET: u16 = 1 << 8 | 1;
        const REQUEST_DUMP: u16 = 0x301;
        let attr = |kind: u16, payload: &[u8]| {
            let mut bytes = Vec::new();
            bytes.extend((4 + payload.len() as u16).to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(payload);
            bytes
        };
        const NESTED: u16 = 0x8000;
        let filter = match source {
            // CTA_TUPLE_ORIG: source; CTA_FILTER: compare it.
            Some(IpAddr::V4(a)) => [
                attr(1 | NESTED, &attr(1 | NESTED, &attr(1, &a.octets()))),
                attr(25 | NESTED, &attr(1, &1_u32.to_ne_bytes())),
            ]
            .concat(),
            _ => vec![],
        };
        let family = if source.is_some() { 2 } else { 0 };
        let mut request = Vec::new();
        request.extend((20 + filter.len() as u32).to_ne_bytes());
        request.extend(GET.to_ne_bytes());
        request.extend(REQUEST_DUMP.to_ne_bytes());
        request.extend([0; 8]);
        request.extend([family, 0, 0, 0]);
        request.extend(filter);
        let begin = Instant::now();
        self.0.send_to(&request, &NetlinkAddr::new(0, 0), 0).expect("sent");
        let mut buffer = Vec::with_capacity(1 << 16);
        loop {
            buffer.clear();
            self.0.recv(&mut buffer, 0).expect("received");
            let kind = u16::from_ne_bytes([buffer[4], buffer[5]]);
            assert_ne!(kind, 2, "an error: {buffer:?}");
            if kind == 3 {
                return begin.elapsed();
            }
        }
    }
}

const TRACK: &str = "
table inet track {
    chain forward {
        type filter hook forward priority 0
        ct state new accept
    }
    chain input {
        type filter hook input priority 0
        udp dport 1000-65535 drop
    }
}
";
