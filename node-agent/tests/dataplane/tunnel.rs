//! What comes out of the tunnel, and what does not: frames as a node sends them, and forged ones.
//!
//! The device is the kernel's own; frames are made by hand and sent from the outside, from whatever address.

use std::net::{IpAddr, SocketAddr};

use moat_agent::dataplane::{Config, DropReason, LayoutConfig, Senders, Update};
use moat_policies::Direction::{Egress, Ingress};
use moat_policies::Node;
use socket2::SockAddr;

use crate::probe::Fate::{Dropped, Passed};
use crate::probe::{Fate, checksum, forger, packet, udp, udp_socket, unspecified};
use crate::space::privileged;
use crate::world::World;

const PORT: u16 = 4789;
const VNI: u32 = 27_983;
const DEVICE_MAC: [u8; 6] = [0x0a, 0x01, 192, 168, 0, 1];

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn nodes() -> (Node, Vec<Node>) {
    let node = |name: &str, addresses: &[&str], cidrs: &[&str]| Node {
        name: name.into(),
        addresses: addresses.iter().map(|a| ip(a)).collect(),
        pod_cidrs: cidrs.iter().map(|c| c.parse().expect("a prefix")).collect(),
    };
    let local = node("node", &["192.168.0.1", "fd01::1"], &["10.0.0.0/24", "fd00::/64"]);
    let others = vec![
        node("other", &["192.168.0.3", "fd01::3"], &["10.0.1.0/24", "fd00:1::/64"]),
        node("third", &["192.168.0.4", "fd01::4"], &["10.0.2.0/24", "fd00:2::/64"]),
    ];
    (local, others)
}

/// A node with the tunnel's device, and pods `a` (whom all may reach) and `b` (whom nobody may).
fn world() -> World {
    let layout = LayoutConfig { tunnel: true, ..LayoutConfig::default() };
    let policy = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: closed}\n\
                  spec: {podSelector: {matchLabels: {app: b}}, policyTypes: [Ingress]}\n";
    let w = World::with(&["a", "b"], &[], policy, Config { layout, ..Config::default() });
    for (device, id, local) in [("vxlan-moat", VNI, "192.168.0.1"), ("vxlan-6", VNI, "fd01::1")] {
        let mac = "0a:01:c0:a8:00:01";
        w.node.ip(&format!(
            "link add {device} address {mac} type vxlan id {id} local {local} dstport {PORT} nolearning"
        ));
        w.node.ip(&format!("link set {device} up"));
        // Judged here is what gets to the device at all: whoever is behind it is reached somewhere.
        let path = format!("/proc/sys/net/ipv4/conf/{device}/rp_filter");
        w.node.run(move || std::fs::write(path, "0")).expect("a parameter");
    }
    for (v4, v6) in [("192.168.0.3", "fd01::3"), ("192.168.0.4", "fd01::4"), ("192.168.0.9", "fd01::9")] {
        w.outside.ip(&format!("addr add {v4}/24 dev eth0"));
        w.outside.ip(&format!("addr add {v6}/64 dev eth0 nodad"));
    }
    know(&w, &nodes().1);
    w
}

/// The node knows these others.
fn know(w: &World, others: &[Node]) {
    let senders = Some(Senders::of(&nodes().0, others));
    w.dataplane().submit(Update { senders, ..Update::default() }).wait().expect("the kernel takes it");
}

/// A VXLAN frame that carries an Ethernet frame of this type.
fn frame(ether_type: u16, carries: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x08, 0, 0, 0];
    bytes.extend((VNI << 8).to_be_bytes());
    bytes.extend(DEVICE_MAC);
    bytes.extend([0x0a, 0x01, 192, 168, 0, 3]);
    bytes.extend(ether_type.to_be_bytes());
    bytes.extend(carries);
    bytes
}

fn ether_type(address: IpAddr) -> u16 {
    if address.is_ipv4() { 0x0800 } else { 0x86dd }
}

/// A datagram as it stands in a frame: nobody fills its checksum in.
fn inner(from: IpAddr, to: IpAddr) -> Vec<u8> {
    let mut bytes = udp(from, to, 5353, 80, b"x");
    if to.is_ipv4() {
        let sum = checksum(&bytes[..20]);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    bytes
}

/// What becomes of a datagram in a frame.
fn through(w: &World, outer: &str, from: &str, to: IpAddr) -> Fate {
    carried(w, outer, &frame(ether_type(to), &inner(ip(from), to)), to)
}

/// What becomes of a frame that holds something for port 80 of this address.
fn carried(w: &World, outer: &str, frame: &[u8], to: IpAddr) -> Fate {
    let outer = ip(outer);
    let end = if outer.is_ipv4() { ip("192.168.0.1") } else { ip("fd01::1") };
    let datagram = udp(outer, end, 40_000, PORT, frame);
    let receiver = w.holder(to).run(move || udp_socket(SocketAddr::new(to, 80)));
    let sender = w.outside.run(move || forger(end));
    let mut buffer = [0; 16];
    w.fate(
        || assert!(sender.send_to(&datagram, &SockAddr::from(SocketAddr::new(end, 0))).is_ok()),
        || receiver.recv_from(&mut buffer).is_ok(),
    )
}

const REFUSED: Fate = Dropped(DropReason::Tunnel.on(Ingress));

#[test]
fn a_node_brings_its_own_pods_packets_and_no_others() {
    privileged(|| {
        let w = world();
        let (a4, a6) = (w.v4("a"), w.v6("a"));
        for (outer, from4, from6, itself4, itself6) in [
            ("192.168.0.3", "10.0.1.7", "fd00:1::7", "192.168.0.3", "fd01::3"),
            ("fd01::4", "10.0.2.7", "fd00:2::7", "192.168.0.4", "fd01::4"),
        ] {
            for (from, to) in [(from4, a4), (from6, a6), (itself4, a4), (itself6, a6)] {
                assert_eq!(through(&w, outer, from, to), Passed, "{from} from {outer}");
            }
        }
        for (outer, from) in [
            // Another node's pods, and the other node.
            ("192.168.0.3", "10.0.2.7"),
            ("192.168.0.3", "fd00:2::7"),
            ("192.168.0.3", "192.168.0.4"),
            ("fd01::4", "10.0.1.7"),
            ("fd01::4", "fd00:1::7"),
            // This node's own pods, and itself.
            ("192.168.0.3", "10.0.0.11"),
            ("192.168.0.3", "fd00::b"),
            ("192.168.0.3", "192.168.0.1"),
            ("192.168.0.3", "127.0.0.1"),
            // The world.
            ("192.168.0.3", "203.0.113.1"),
            // Who is no node, whatever it brings.
            ("192.168.0.9", "10.0.1.7"),
            ("192.168.0.2", "192.168.0.2"),
            ("fd01::9", "fd00:1::7"),
        ] {
            let to = if ip(from).is_ipv4() { a4 } else { a6 };
            assert_eq!(through(&w, outer, from, to), REFUSED, "{from} from {outer}");
        }
    });
}

#[test]
fn what_a_known_node_brings_is_judged_by_policy() {
    privileged(|| {
        let w = world();
        let denied = Dropped(DropReason::Policy.on(Ingress));
        assert_eq!(through(&w, "192.168.0.3", "10.0.1.7", w.v4("b")), denied);
        assert_eq!(through(&w, "192.168.0.3", "fd00:1::7", w.v6("b")), denied);
    });
}

#[test]
fn frames_that_are_not_plain_come_from_nobody() {
    privileged(|| {
        let w = world();
        let a = w.v4("a");
        let inner = inner(ip("10.0.1.7"), a);
        let tagged = [&[0, 5, 0x08, 0x00], &inner[..]].concat();
        let tagged_twice = [&[0, 5, 0x81, 0x00, 0, 6, 0x08, 0x00], &inner[..]].concat();
        // An IPv4 packet that says in its frame that it is IPv6, and the other way round.
        let v6 = udp(ip("fd00:1::7"), w.v6("a"), 5353, 80, b"x");
        for (what, bytes) in [
            ("a VLAN tag", frame(0x8100, &tagged)),
            ("802.1ad", frame(0x88a8, &tagged)),
            ("two tags", frame(0x88a8, &tagged_twice)),
            (
                "ARP",
                frame(
                    0x0806,
                    &[0, 1, 8, 0, 6, 4, 0, 1, 2, 2, 2, 2, 2, 2, 10, 0, 1, 7, 0, 0, 0, 0, 0, 0, 10, 0, 0, 10],
                ),
            ),
            ("MPLS", frame(0x8847, &inner)),
            ("IPv4 as IPv6", frame(0x86dd, &inner)),
            ("IPv6 as IPv4", frame(0x0800, &v6)),
            ("nothing", frame(0x0800, &[])),
            ("half a header", frame(0x0800, &inner[..14])),
            ("no frame", vec![0x08, 0, 0, 0]),
            ("no byte", vec![]),
        ] {
            assert_eq!(carried(&w, "192.168.0.3", &bytes, a), REFUSED, "{what}");
        }
    });
}

#[test]
fn a_frame_in_fragments_is_looked_into_as_a_whole() {
    privileged(|| {
        let w = world();
        let a = w.v4("a");
        // The first fragment ends before the inner packet begins; so what is in it is seen only when they are put together.
        let pieces = |from: &str, id: u8| {
            let datagram =
                udp(ip("192.168.0.3"), ip("192.168.0.1"), 40_000, PORT, &frame(0x0800, &inner(ip(from), a)));
            let body = &datagram[20..];
            let piece = |offset: usize, bytes: &[u8], more: bool| {
                let mut whole = packet(ip("192.168.0.3"), ip("192.168.0.1"), 17, bytes);
                let field = (offset / 8) as u16 | if more { 0x2000 } else { 0 };
                whole[4..6].copy_from_slice(&[7, id]);
                whole[6..8].copy_from_slice(&field.to_be_bytes());
                whole
            };
            [piece(0, &body[..24], true), piece(24, &body[24..], false)]
        };
        for (from, expected) in [("10.0.1.7", Passed), ("10.0.2.7", REFUSED)] {
            let receiver = w.holder(a).run(move || udp_socket(SocketAddr::new(a, 80)));
            let sender = w.outside.run(move || forger(ip("192.168.0.1")));
            let mut buffer = [0; 16];
            let fate = w.fate(
                || {
                    for piece in pieces(from, from.as_bytes()[5]) {
                        let to = SockAddr::from(SocketAddr::new(ip("192.168.0.1"), 0));
                        assert!(sender.send_to(&piece, &to).is_ok());
                    }
                },
                || receiver.recv_from(&mut buffer).is_ok(),
            );
            assert_eq!(fate, expected, "{from}");
        }
    });
}

#[test]
fn a_node_that_is_gone_brings_nothing_more() {
    privileged(|| {
        let mut w = world();
        let (_, others) = nodes();
        let a = w.v4("a");
        assert_eq!(through(&w, "192.168.0.3", "10.0.1.7", a), Passed);
        know(&w, &others[1..]);
        assert_eq!(through(&w, "192.168.0.3", "10.0.1.7", a), REFUSED);
        assert_eq!(through(&w, "192.168.0.4", "10.0.2.7", a), Passed);
        // Its podCIDR is another node's now.
        let moved = Node { pod_cidrs: others[0].pod_cidrs.clone(), ..others[1].clone() };
        know(&w, &[moved]);
        assert_eq!(through(&w, "192.168.0.4", "10.0.1.7", a), Passed);
        assert_eq!(through(&w, "192.168.0.4", "10.0.2.7", a), REFUSED);
        // The next agent adopts what is there, and brings it up to date.
        w.restart();
        assert_eq!(through(&w, "192.168.0.4", "10.0.1.7", a), REFUSED, "it has not said yet whom it knows");
        know(&w, &others);
        assert_eq!(through(&w, "192.168.0.3", "10.0.1.7", a), Passed);
    });
}

#[test]
fn a_pods_own_frames_reach_no_tunnel_here_or_elsewhere() {
    privileged(|| {
        let w = world();
        let refused = Dropped(DropReason::Tunnel.on(Egress));
        for to in ["192.168.0.1", "192.168.0.3", "fd01::1", "fd01::3"].map(ip) {
            let sender = w.pods["a"].space.run(move || udp_socket(SocketAddr::new(unspecified(to), 0)));
            let sent = || assert!(sender.send_to(&frame(0x0800, b"x"), (to, PORT)).is_ok());
            assert_eq!(w.fate(sent, || false), refused, "{to}");
        }
    });
}
