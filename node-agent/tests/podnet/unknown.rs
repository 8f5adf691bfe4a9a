//! A pod whose policy is not known: no packet passes, in either direction, also not to its node.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::real::{RealNode, pod};
use crate::world::interrupted::uninterrupted;
use crate::world::{Namespace, addresses, in_world, tcp};

const CIDRS: [&str; 2] = ["10.1.0.0/24", "fd00:1::/64"];
const PORT: u16 = 4000;

/// `late` is isolated in both directions, and may talk with nobody.
const DENY: &str = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
    metadata: {name: late-is-closed}\n\
    spec: {podSelector: {matchLabels: {app: late}}, policyTypes: [Ingress, Egress]}\n";

/// Who sent what a socket received, and when.
type Received = Arc<Mutex<Vec<(Instant, String)>>>;

/// Somebody in a namespace who sends all the time to everybody, and writes down what he receives.
struct Prober {
    stop: Arc<AtomicBool>,
    received: Received,
    threads: Vec<JoinHandle<()>>,
}

impl Prober {
    /// `name` goes into every packet. The addresses need not exist yet, nor any interface.
    fn start(ns: &Namespace, name: &'static str, to: &[IpAddr]) -> Self {
        let (stop, received) = (Arc::new(AtomicBool::new(false)), Received::default());
        let mut threads = Vec::new();
        for any in ["0.0.0.0", "::"] {
            let any: IpAddr = any.parse().unwrap();
            let socket: UdpSocket = ns.run(move || {
                let socket =
                    Socket::new(Domain::for_address(SocketAddr::new(any, PORT)), Type::DGRAM, None).unwrap();
                if any.is_ipv6() {
                    // The other family has a socket of its own.
                    socket.set_only_v6(true).unwrap();
                }
                socket.bind(&SocketAddr::new(any, PORT).into()).unwrap();
                socket.into()
            });
            socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            let to: Vec<IpAddr> = to.iter().copied().filter(|to| to.is_ipv4() == any.is_ipv4()).collect();
            let sender = socket.try_clone().unwrap();
            let stopped = stop.clone();
            threads.push(thread::spawn(move || {
                while !stopped.load(Ordering::SeqCst) {
                    for to in &to {
                        // No interface, no route, no carrier: all of it is how it should be.
                        let _ = sender.send_to(name.as_bytes(), SocketAddr::new(*to, PORT));
                    }
                    thread::sleep(Duration::from_micros(300));
                }
            }));
            let (stopped, received) = (stop.clone(), received.clone());
            threads.push(thread::spawn(move || {
                let mut buffer = [0; 64];
                while !stopped.load(Ordering::SeqCst) {
                    if let Ok((length, _)) = socket.recv_from(&mut buffer) {
                        let from = String::from_utf8_lossy(&buffer[..length]).into_owned();
                        received.lock().unwrap().push((Instant::now(), from));
                    }
                }
            }));
        }
        Self { stop, received, threads }
    }

    fn stop(mut self) -> Vec<(Instant, String)> {
        self.stop.store(true, Ordering::SeqCst);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
        std::mem::take(&mut *self.received.lock().unwrap())
    }
}

fn from(received: &[(Instant, String)], who: &str) -> Vec<Instant> {
    received.iter().filter(|(_, name)| name == who).map(|(at, _)| *at).collect()
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// Everybody sends to everybody from long before ADD is asked for. Nothing reaches the pod and nothing from it reaches its node
/// before somebody says what its policy is; and of what that policy denies, nothing ever does.
#[test]
fn no_packet_passes_before_the_policy_is_known() {
    in_world(|| {
        let mut node = RealNode::new(&CIDRS, &format!("{}{DENY}", pod("peer")));
        node.start();
        let peer = Namespace::new();
        let result = node.plugin().run("ADD", "peer", &peer.path).ok();
        let peer_addresses = addresses(&result);
        assert_eq!(peer_addresses, ips(&["10.1.0.1", "fd00:1::1"]));
        let late = Namespace::new();
        // It will get the next ones.
        let late_addresses = ips(&["10.1.0.2", "fd00:1::2"]);
        let nodes = ips(&["192.0.2.1", "2001:db8::1"]);
        let probers = [
            Prober::start(&late, "late", &[nodes.clone(), peer_addresses.clone()].concat()),
            Prober::start(&node.ns, "node", &[late_addresses.clone(), peer_addresses.clone()].concat()),
            Prober::start(&peer, "peer", &[late_addresses.clone(), nodes].concat()),
        ];
        let (plugin, path) = (node.plugin(), late.path.clone());
        let adding = thread::spawn(move || plugin.run("ADD", "late", &path));
        // While ADD waits for somebody to say who the pod is.
        thread::sleep(Duration::from_millis(400));
        assert!(!adding.is_finished());
        let known = Instant::now();
        node.write("late.yaml", &pod("late"));
        let result = adding.join().unwrap().ok();
        assert_eq!(addresses(&result), late_addresses);
        // ADD has returned: packets between the pod and its node pass at once, in both families.
        let node_ns = &node.ns;
        for to in ips(&["192.0.2.1", "2001:db8::1"]) {
            tcp(&late, node_ns, to);
        }
        late_addresses.iter().for_each(|to| tcp(node_ns, &late, *to));
        thread::sleep(Duration::from_millis(100));
        let [late, node, peer] = probers.map(Prober::stop);
        for (received, who) in [(&late, "node"), (&node, "late")] {
            let first = from(received, who).into_iter().min().expect("after ADD they talk");
            assert!(first > known, "a packet from {who} passed before the policy was known");
        }
        assert_eq!(from(&late, "peer"), [], "what the policy denies");
        assert_eq!(from(&peer, "late"), [], "what the policy denies");
        // The probes themselves worked all the time.
        assert!(from(&peer, "node").iter().any(|at| *at < known), "the node reaches the peer");
        assert!(from(&node, "peer").iter().any(|at| *at < known), "the peer reaches its node");
    });
}

/// ADD of a pod that nobody describes: an error that says so, nothing is made, nothing passes.
#[test]
fn a_pod_that_nobody_describes_gets_nothing() {
    in_world(|| {
        let mut node = RealNode::new(&CIDRS, &pod("peer"));
        node.start();
        let late = Namespace::new();
        let probers = [
            Prober::start(&late, "late", &ips(&["192.0.2.1", "2001:db8::1"])),
            Prober::start(&node.ns, "node", &ips(&["10.1.0.1", "fd00:1::1"])),
        ];
        let error = node.plugin().run("ADD", "late", &late.path).fails_with(11);
        assert!(error["msg"].as_str().unwrap().contains("default/late is not known"), "{error}");
        assert!(node.recorded().is_empty());
        assert!(!late.sh("ip -o link").contains("eth0"));
        for received in probers.map(Prober::stop) {
            assert_eq!(received, []);
        }
    });
}

/// An agent that starts while a pod that is there is described by nobody: the pod is closed until somebody does.
#[test]
fn a_pod_that_nobody_describes_any_more_is_closed_after_a_start() {
    in_world(|| {
        let mut node = RealNode::new(&CIDRS, &pod("peer"));
        node.write("late.yaml", &pod("late"));
        node.start();
        let (peer, late) = (Namespace::new(), Namespace::new());
        let peer_addresses = addresses(&node.plugin().run("ADD", "peer", &peer.path).ok());
        let late_addresses = addresses(&node.plugin().run("ADD", "late", &late.path).ok());
        tcp(&peer, &late, late_addresses[0]);
        node.kill();
        node.remove("late.yaml");
        node.start();
        let nodes = ips(&["192.0.2.1", "2001:db8::1"]);
        let probers = [
            Prober::start(&late, "late", &[nodes, peer_addresses].concat()),
            Prober::start(&peer, "peer", &late_addresses),
        ];
        thread::sleep(Duration::from_millis(200));
        let at_node = node.ns.run(|| {
            let socket = UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, PORT)).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            uninterrupted(|| socket.recv_from(&mut [0; 64])).is_ok()
        });
        assert!(!at_node, "a packet of a pod that nobody describes reached its node");
        for received in probers.map(Prober::stop) {
            assert_eq!(received, []);
        }
        node.write("late.yaml", &pod("late"));
        let (node_ns, deadline) = (&node.ns, Instant::now() + Duration::from_secs(10));
        let passes = || {
            let to = late_addresses[0];
            let listener = late.run(move || std::net::TcpListener::bind((to, 7)).unwrap());
            let reached = node_ns.run(move || {
                std::net::TcpStream::connect_timeout(&(to, 7).into(), Duration::from_millis(200)).is_ok()
            });
            drop(listener);
            reached
        };
        while !passes() {
            assert!(Instant::now() < deadline, "described again, and still closed: {}", node.log());
        }
    });
}

/// A pod that has IPv4 alone has a link with IPv6 all the same: it gives itself an address, the node's end one beside it, and
/// still nothing passes.
#[test]
fn a_pod_without_ipv6_does_not_get_it_by_itself() {
    in_world(|| {
        let mut node = RealNode::new(&["10.1.0.0/24"], &pod("a"));
        node.start();
        let ns = Namespace::new();
        let result = node.plugin().run("ADD", "a", &ns.path).ok();
        let host = result["interfaces"][0]["name"].as_str().unwrap();
        let mac = |end: usize| result["interfaces"][end]["mac"].as_str().unwrap();
        tcp(&node.ns, &ns, addresses(&result)[0]);
        ns.sh(&format!(
            "ip addr add fd00:9::2/64 dev eth0 nodad; ip neigh replace fd00:9::1 lladdr {} dev eth0",
            mac(0)
        ));
        node.ns.sh(&format!("ip addr add fd00:9::1/64 dev {host} nodad"));
        node.ns.sh(&format!("ip neigh replace fd00:9::2 lladdr {} dev {host}", mac(1)));
        for to in ["fd00:9::1", "2001:db8::1"] {
            let to: IpAddr = to.parse().unwrap();
            ns.sh("ip -6 route replace default via fd00:9::1 dev eth0");
            let receiver = node.ns.run(move || UdpSocket::bind((to, 0)).unwrap());
            receiver.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            let port = receiver.local_addr().unwrap().port();
            let sent = ns.run(move || UdpSocket::bind("[::]:0").unwrap().send_to(b"hello", (to, port)));
            assert_eq!(sent.unwrap(), 5, "it left the pod");
            assert!(uninterrupted(|| receiver.recv(&mut [0; 8])).is_err(), "a packet to {to} passed");
        }
    });
}
