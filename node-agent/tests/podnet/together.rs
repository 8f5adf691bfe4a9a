//! Everything at once: routes, the tunnel, masquerade and host ports, around a router that is strict about sources, drops
//! whatever has a pod's address, and loses every message about packets that are too long.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use crate::fleet::{Fleet, Proto, Server, add, answers, of, pod};
use crate::world::interrupted::uninterrupted;
use crate::world::{Namespace, Pod, in_world};

const BOTH: [Proto; 2] = [Proto::Tcp, Proto::Udp];
const PORTS: [(u16, u16, &str, &str); 2] = [(8080, 80, "tcp", ""), (8080, 80, "udp", "")];

struct World {
    fleet: Fleet,
    pods: [Pod; 3],
    _servers: Vec<Server>,
}

/// A pod on each node, each behind port 8080 of its node; pods, nodes and the world answer.
fn world(mode: &'static str) -> World {
    let manifests = ["a", "b", "c"].map(|node| pod(&format!("pod-{node}"), node)).concat();
    let fleet = Fleet::new(&["--mode", mode], &manifests);
    fleet.router.sh("nft 'add rule inet watch forward icmp type destination-unreachable drop
              add rule inet watch forward icmpv6 type packet-too-big drop'");
    let nodes = [&fleet.a, &fleet.b, &fleet.c];
    let pods = ["pod-a", "pod-b", "pod-c"];
    let pods = [0, 1, 2].map(|n| add(nodes[n], pods[n], &PORTS));
    let spaces = pods.iter().map(|pod| &pod.ns);
    let mut servers: Vec<Server> =
        spaces.zip(["pod a", "pod b", "pod c"]).map(|(ns, word)| Server::new(ns, word, 80)).collect();
    servers.extend(nodes.iter().zip(["a", "b", "c"]).map(|(node, word)| Server::new(&node.ns, word, 7)));
    servers.push(Server::new(&fleet.world, "world", 7));
    World { fleet, pods, _servers: servers }
}

const NAMES: [&str; 3] = ["a", "b", "c"];

impl World {
    fn nodes(&self) -> [&Namespace; 3] {
        [&self.fleet.a, &self.fleet.b, &self.fleet.c].map(|node| &node.ns)
    }

    /// Everybody reaches everybody, and sees who it is. The nodes themselves call only these nodes' host ports.
    fn is_whole(&self, neighbours: &[(usize, usize)]) {
        for (family, world) in of("world").into_iter().enumerate() {
            for (n, name) in NAMES.into_iter().enumerate() {
                let (pod, node) = (self.pods[n].addresses[family], of(name)[family]);
                for protocol in BOTH {
                    // Out in the node's name, in as who it is.
                    answers(&self.pods[n].ns, protocol, SocketAddr::new(world, 7), &format!("world {node}"));
                    answers(
                        &self.fleet.world,
                        protocol,
                        SocketAddr::new(node, 8080),
                        &format!("pod {name} {world}"),
                    );
                    for (m, caller) in NAMES.into_iter().enumerate() {
                        let (from, space) = (self.pods[m].addresses[family], &self.pods[m].ns);
                        let itself = if m == n { node } else { from };
                        answers(
                            space,
                            protocol,
                            SocketAddr::new(node, 8080),
                            &format!("pod {name} {itself}"),
                        );
                        answers(space, protocol, SocketAddr::new(node, 7), &format!("{name} {from}"));
                        if m != n {
                            answers(space, protocol, SocketAddr::new(pod, 80), &format!("pod {name} {from}"));
                            let own = of(caller)[family];
                            answers(
                                self.nodes()[m],
                                protocol,
                                SocketAddr::new(pod, 80),
                                &format!("pod {name} {own}"),
                            );
                        }
                    }
                }
            }
            for &(m, n) in neighbours {
                let (own, node) = (of(NAMES[m])[family], of(NAMES[n])[family]);
                answers(
                    self.nodes()[m],
                    Proto::Tcp,
                    SocketAddr::new(node, 8080),
                    &format!("pod {} {own}", NAMES[n]),
                );
            }
        }
        assert_eq!(self.fleet.pods_at_the_router(), 0);
    }
}

#[test]
fn routes_tunnel_masquerade_and_host_ports_work_beside_each_other() {
    in_world(|| world("auto").is_whole(&[(0, 1), (1, 0)]));
}

#[test]
fn the_same_where_all_nodes_are_behind_the_tunnel() {
    in_world(|| world("vxlan").is_whole(&[]));
}

/// Sends a megabyte each way over one connection; returns the largest segment that it settled on.
#[track_caller]
fn segment(from: &Namespace, to: &Namespace, address: IpAddr) -> u32 {
    const LENGTH: usize = 1 << 20;
    let listener = to.run(move || TcpListener::bind(SocketAddr::new(address, 0)).unwrap());
    let at = listener.local_addr().unwrap();
    let exchange = |mut stream: TcpStream| {
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut writer = stream.try_clone().unwrap();
        let write = thread::spawn(move || writer.write_all(&vec![7; LENGTH]));
        let mut buffer = vec![0; 1 << 16];
        let mut left = LENGTH;
        while left > 0 {
            left -= uninterrupted(|| stream.read(&mut buffer)).expect("all of it comes");
        }
        write.join().unwrap().unwrap();
        stream
    };
    let accept = thread::spawn(move || exchange(listener.accept().unwrap().0));
    let stream = from.run(move || TcpStream::connect_timeout(&at, Duration::from_secs(10)).unwrap());
    let stream = exchange(stream);
    let _other = accept.join().unwrap();
    let port = stream.local_addr().unwrap().port();
    let text = from.sh(&format!("ss -tinH state established '( sport = :{port} )'"));
    let mss = text.split_whitespace().find_map(|word| word.strip_prefix("mss:")).unwrap_or_default();
    mss.parse().unwrap_or_else(|_| panic!("ss says no segment size: {text}"))
}

/// What a segment carries where packets have this length: less the headers and the timestamps.
fn carried(mtu: u32, address: IpAddr) -> u32 {
    mtu - if address.is_ipv4() { 20 } else { 40 } - 20 - 12
}

#[test]
fn segments_fit_their_way_in_each_mode_without_a_word_of_the_network() {
    in_world(|| {
        for (mode, pods_mtu) in [("routed", 1500), ("auto", 1450), ("vxlan", 1450)] {
            let w = world(mode);
            let last = if mode == "routed" { 2 } else { 3 };
            for family in [0, 1] {
                for (from, to) in
                    (0..last).flat_map(|m| (0..last).map(move |n| (m, n))).filter(|(m, n)| m != n)
                {
                    let address = w.pods[to].addresses[family];
                    let expected = carried(pods_mtu, address);
                    assert_eq!(
                        segment(&w.pods[from].ns, &w.pods[to].ns, address),
                        expected,
                        "{mode}: {from} to {to}"
                    );
                    // A node's own packets, which no pod's link bounds.
                    assert_eq!(
                        segment(w.nodes()[from], &w.pods[to].ns, address),
                        expected,
                        "{mode}: node {from} to {to}"
                    );
                    let node = of(NAMES[to])[family];
                    let expected = carried(pods_mtu, node);
                    assert_eq!(
                        segment(&w.pods[from].ns, w.nodes()[to], node),
                        expected,
                        "{mode}: {from} to node {to}"
                    );
                }
                let world = of("world")[family];
                assert_eq!(
                    segment(&w.pods[0].ns, &w.fleet.world, world),
                    carried(pods_mtu, world),
                    "{mode}: out"
                );
            }
        }
    });
}
