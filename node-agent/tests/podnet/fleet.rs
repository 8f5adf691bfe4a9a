//! Nodes with real agents, a router between them that is strict about sources and knows no pod, and a world behind it.
//!
//! ```text
//!   a (192.0.2.1) ──┐                       ┌── c (198.51.100.3)
//!                   ├─ bridge ── router ────┤
//!   b (192.0.2.2) ──┘                       └── world (203.0.113.9)
//! ```

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::real::{self, RealNode};
use crate::tunnel::{STRICT, cable};
use crate::world::interrupted::uninterrupted;
use crate::world::{Namespace, Pod, addresses};

/// How long an answer may take on a machine that has other things to do; and how long none is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
const NO_PATIENCE: Duration = Duration::from_millis(700);

pub(crate) struct Fleet {
    pub(crate) router: Namespace,
    pub(crate) world: Namespace,
    pub(crate) a: RealNode,
    pub(crate) b: RealNode,
    pub(crate) c: RealNode,
}

/// The nodes: name, addresses, podCIDRs.
const NODES: [(&str, [&str; 2], [&str; 2]); 3] = [
    ("a", ["192.0.2.1", "2001:db8::1"], ["10.1.0.0/24", "fd00:1::/64"]),
    ("b", ["192.0.2.2", "2001:db8::2"], ["10.2.0.0/24", "fd00:2::/64"]),
    ("c", ["198.51.100.3", "2001:db8:3::3"], ["10.3.0.0/24", "fd00:3::/64"]),
];

/// The addresses of a node, or of the world.
pub(crate) fn of(name: &str) -> [IpAddr; 2] {
    let there = NODES.iter().find(|(node, ..)| *node == name);
    let texts = there.map_or(["203.0.113.9", "2001:db8:9::9"], |(_, addresses, _)| *addresses);
    texts.map(|address| address.parse().unwrap())
}

/// The manifest of a pod of this node.
pub(crate) fn pod(name: &str, node: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\n\
         spec: {{nodeName: {node}, containers: [{{name: c, image: i}}]}}\n"
    )
}

impl Fleet {
    /// Running agents, told these arguments, with these manifests beside those of the nodes.
    pub(crate) fn new(arguments: &[&'static str], manifests: &str) -> Self {
        let router = Namespace::new();
        router.sh("echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
                   ip link add bridge type bridge; ip link set bridge up
                   nft 'add table inet watch; add chain inet watch forward { type filter hook forward priority 0; }
                        add rule inet watch forward iifname { to-c, to-world } ip saddr 10.0.0.0/8 counter drop
                        add rule inet watch forward oifname { to-c, to-world } ip saddr 10.0.0.0/8 counter drop
                        add rule inet watch forward iifname { to-c, to-world } ip6 saddr fd00::/8 counter drop
                        add rule inet watch forward oifname { to-c, to-world } ip6 saddr fd00::/8 counter drop'");
        let spaces = NODES.map(|(name, ..)| {
            let space = Namespace::new();
            space.sh("ip link set lo up");
            cable(&router, &format!("to-{name}"), &space, "uplink");
            space
        });
        let world = Namespace::new();
        world.sh("ip link set lo up");
        cable(&router, "to-world", &world, "uplink");
        router.sh("ip link set to-a master bridge; ip link set to-b master bridge
                   ip addr add 192.0.2.254/24 dev bridge; ip addr add 2001:db8::fe/64 dev bridge nodad
                   ip addr add 198.51.100.254/24 dev to-c; ip addr add 2001:db8:3::fe/64 dev to-c nodad
                   ip addr add 203.0.113.254/24 dev to-world; ip addr add 2001:db8:9::fe/64 dev to-world nodad");
        for (space, name) in spaces.iter().zip(["a", "b", "c"]).chain([(&world, "world")]) {
            let [v4, v6] = of(name).map(|address| address.to_string());
            let (net4, net6) = (&v4[..v4.rfind('.').unwrap()], &v6[..v6.rfind(':').unwrap()]);
            space.sh(&format!(
                "ip addr add {v4}/24 dev uplink; ip addr add {v6}/64 dev uplink nodad
                 ip route add default via {net4}.254; ip -6 route add default via {net6}:fe"
            ));
            space.sh(STRICT);
        }
        router.sh(STRICT);
        let nodes: String =
            NODES.iter().map(|(name, addresses, cidrs)| real::node(name, *addresses, cidrs)).collect();
        let mut names = NODES.iter().map(|(name, ..)| *name);
        let [a, b, c] = spaces.map(|space| {
            let mut node = RealNode::at(space, names.next().unwrap(), &nodes, manifests);
            node.arguments = arguments.to_vec();
            node.start();
            node
        });
        Self { router, world, a, b, c }
    }

    /// Packets that the router dropped because they bear a pod's address.
    pub(crate) fn pods_at_the_router(&self) -> usize {
        let seen = self.router.sh("nft list chain inet watch forward");
        4 - seen.matches("counter packets 0 ").count()
    }
}

/// What ADD is asked for with host ports, as containerd says it: (node's port, pod's port, protocol, node's address).
pub(crate) fn with_ports(node: &RealNode, ports: &[(u16, u16, &str, &str)]) -> Value {
    let mapping = |&(host, pod, protocol, ip): &(u16, u16, &str, &str)| json!({"HostPort": host, "ContainerPort": pod, "Protocol": protocol, "HostIP": ip});
    let mut config = node.plugin().config;
    config["capabilities"] = json!({"portMappings": true});
    config["runtimeConfig"] = json!({"portMappings": ports.iter().map(mapping).collect::<Vec<_>>()});
    config
}

/// A new pod with host ports, added.
#[track_caller]
pub(crate) fn add(node: &RealNode, id: &str, ports: &[(u16, u16, &str, &str)]) -> Pod {
    let ns = Namespace::new();
    let result = node.plugin().run_with("ADD", id, &ns.path, &with_ports(node, ports)).ok();
    Pod { ns, id: id.to_owned(), addresses: addresses(&result), result }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proto {
    Tcp,
    Udp,
}

/// Answers on a port of all addresses of a namespace, over TCP and UDP, with a word and the address that it sees.
pub(crate) struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn new(ns: &Namespace, word: &'static str, port: u16) -> Self {
        Self::at(ns, word, SocketAddr::new("::".parse().unwrap(), port))
    }

    pub(crate) fn at(ns: &Namespace, word: &'static str, at: SocketAddr) -> Self {
        let (listener, socket) =
            ns.run(move || (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap()));
        let stop = Arc::new(AtomicBool::new(false));
        listener.set_nonblocking(true).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let answer = move |peer: SocketAddr| format!("{word} {}", peer.ip().to_canonical());
        let over = stop.clone();
        let tcp = thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((mut stream, peer)) => drop(stream.write_all(answer(peer).as_bytes())),
                    Err(_) => thread::sleep(Duration::from_millis(2)),
                }
            }
        });
        let over = stop.clone();
        let udp = thread::spawn(move || {
            let mut buffer = [0; 16];
            while !over.load(Ordering::Relaxed) {
                if let Ok((_, peer)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(answer(peer).as_bytes(), peer);
                }
            }
        });
        Self { stop, threads: vec![tcp, udp] }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

/// Asks a [`Server`]; `None` where no answer comes.
pub(crate) fn ask(from: &Namespace, protocol: Proto, to: SocketAddr, patience: Duration) -> Option<String> {
    from.run(move || match protocol {
        Proto::Tcp => {
            let mut stream = TcpStream::connect_timeout(&to, patience).ok()?;
            stream.set_read_timeout(Some(patience)).unwrap();
            let mut text = String::new();
            uninterrupted(|| stream.read_to_string(&mut text)).ok()?;
            Some(text)
        }
        Proto::Udp => Client::here(to.is_ipv4()).ask(to, patience),
    })
}

/// Asks until the answer is this one, or for long enough.
#[track_caller]
pub(crate) fn answers(from: &Namespace, protocol: Proto, to: SocketAddr, expected: &str) {
    let answer = ask(from, protocol, to, PATIENCE);
    assert_eq!(answer.as_deref(), Some(expected), "{protocol:?} to {to}");
}

/// No answer comes.
#[track_caller]
pub(crate) fn is_silent(from: &Namespace, protocol: Proto, to: SocketAddr) {
    let answer = ask(from, protocol, to, NO_PATIENCE);
    assert_eq!(answer, None, "{protocol:?} to {to}");
}

/// Somebody who sends from one and the same port.
pub(crate) struct Client(UdpSocket);

impl Client {
    fn here(ipv4: bool) -> Self {
        let any: SocketAddr = if ipv4 { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
        Self(UdpSocket::bind(any).unwrap())
    }

    pub(crate) fn new(ns: &Namespace, ipv4: bool) -> Self {
        ns.run(move || Self::here(ipv4))
    }

    pub(crate) fn ask(&self, to: SocketAddr, patience: Duration) -> Option<String> {
        self.0.set_read_timeout(Some(patience)).unwrap();
        self.0.send_to(b"who", to).ok()?;
        let mut buffer = [0; 128];
        let length = uninterrupted(|| self.0.recv(&mut buffer)).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    /// Goes on sending until the answer is this one.
    #[track_caller]
    pub(crate) fn hears(&self, to: SocketAddr, expected: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.ask(to, Duration::from_millis(200));
            if answer.as_deref() == Some(expected) {
                return;
            }
            assert!(Instant::now() < deadline, "{to} does not say {expected:?}, but {answer:?}");
        }
    }
}
