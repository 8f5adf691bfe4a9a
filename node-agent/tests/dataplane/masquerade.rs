//! Whose address a pod's packets have when they arrive.

use std::net::{IpAddr, SocketAddr};

use moat_agent::dataplane::{Config, Inside, LayoutConfig, Update};
use moat_policies::Node;

use crate::interrupted::uninterrupted;
use crate::probe::{udp_socket, unspecified};
use crate::space::{Space, privileged};
use crate::world::World;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn world() -> World {
    let layout = LayoutConfig { masquerade: true, ..LayoutConfig::default() };
    let w = World::with(&["a", "b"], &["r"], "", Config { layout, ..Config::default() });
    for address in ["192.168.0.3/24", "192.168.0.7/24", "203.0.113.5/32"] {
        w.outside.ip(&format!("addr add {address} dev eth0"));
    }
    for address in ["fd01::3/64", "2001:db8:5::5/128"] {
        w.outside.ip(&format!("addr add {address} dev eth0 nodad"));
    }
    know(&w, &["192.168.0.7/32"]);
    w
}

fn know(w: &World, more: &[&str]) {
    let node = |name: &str, addresses: &[&str], cidrs: &[&str]| Node {
        name: name.into(),
        addresses: addresses.iter().map(|a| ip(a)).collect(),
        pod_cidrs: cidrs.iter().map(|c| c.parse().expect("a prefix")).collect(),
    };
    let local = node("node", &["192.168.0.1", "fd01::1"], &["10.0.0.0/24", "fd00::/64"]);
    let other = node("other", &["192.168.0.3", "fd01::3"], &["10.0.1.0/24", "fd00:1::/64", "0.0.0.0/0"]);
    let more: Vec<_> = more.iter().map(|net| net.parse().expect("a prefix")).collect();
    let inside = Some(Inside::of(&local, &[other], &more));
    w.dataplane().submit(Update { inside, ..Update::default() }).wait().expect("the kernel takes it");
}

/// Whose address a datagram arrives with, and that an answer to it comes back.
fn seen(w: &World, from: &Space, to: IpAddr) -> IpAddr {
    let receiver = w.holder(to).run(move || udp_socket(SocketAddr::new(to, 53)));
    let sender = from.run(move || udp_socket(SocketAddr::new(unspecified(to), 0)));
    for socket in [&receiver, &sender] {
        socket.set_nonblocking(false).expect("an option");
        socket.set_read_timeout(Some(std::time::Duration::from_secs(5))).expect("an option");
    }
    sender.send_to(b"who", (to, 53)).expect("sent");
    let mut buffer = [0; 8];
    let (_, peer) = uninterrupted(|| receiver.recv_from(&mut buffer)).expect("it arrives");
    receiver.send_to(b"you", peer).expect("answered");
    uninterrupted(|| sender.recv_from(&mut buffer)).expect("the answer comes back");
    peer.ip()
}

#[test]
fn only_what_leaves_the_cluster_is_in_the_nodes_name() {
    privileged(|| {
        let w = world();
        let a = &w.pods["a"].space;
        let (node4, node6) = (ip("192.168.0.1"), ip("fd01::1"));
        let (a4, a6) = (w.v4("a"), w.v6("a"));
        for (to, expected) in [
            // The world.
            ("192.168.0.2", node4),
            ("203.0.113.5", node4),
            ("2001:db8:5::5", node6),
            // Another node, and what the operator named.
            ("192.168.0.3", a4),
            ("fd01::3", a6),
            ("192.168.0.7", a4),
            // The pod's own node.
            ("192.168.0.1", a4),
            ("fd01::1", a6),
        ] {
            assert_eq!(seen(&w, a, ip(to)), expected, "{to}");
        }
        // Pods, here and elsewhere.
        for (to, expected) in [(w.v4("b"), a4), (w.v6("b"), a6), (w.v4("r"), a4), (w.v6("r"), a6)] {
            assert_eq!(seen(&w, a, to), expected, "{to}");
        }
        // Whoever comes in from outside is who he is.
        assert_eq!(seen(&w, &w.outside, a4), ip("192.168.0.2"));
    });
}

#[test]
fn what_is_inside_can_change_and_is_adopted() {
    privileged(|| {
        let mut w = world();
        assert_eq!(seen(&w, &w.pods["a"].space, ip("192.168.0.7")), w.v4("a"));
        know(&w, &["203.0.113.0/24"]);
        assert_eq!(seen(&w, &w.pods["a"].space, ip("192.168.0.7")), ip("192.168.0.1"));
        assert_eq!(seen(&w, &w.pods["a"].space, ip("203.0.113.5")), w.v4("a"));
        w.restart();
        know(&w, &[]);
        assert_eq!(seen(&w, &w.pods["a"].space, ip("203.0.113.5")), ip("192.168.0.1"));
        assert_eq!(w.dataplane().stats().listings(), 1, "adopted at once");
    });
}
