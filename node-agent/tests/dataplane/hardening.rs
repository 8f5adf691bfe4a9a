//! What pods and the outside try against the layout, with real packets.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, TcpListener};

use moat_agent::dataplane::DropReason;
use moat_policies::Direction::{Egress, Ingress};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::probe::Fate::{self, Dropped, Passed};
use crate::probe::{
    From, checksum, forger, packet, patiently, raw_socket, transport_checksum, udp, udp_socket, unspecified,
};
use crate::space::privileged;
use crate::verdicts::policy;
use crate::world::{NODE_V4, OUTSIDE_V4, World, name};

const DENY_ALL: &str = "{podSelector: {}, policyTypes: [Ingress, Egress]}";

impl World {
    /// Sends a packet with its own IP header; a receiver at the destination takes what comes.
    pub(crate) fn forge(&self, from: From<'_>, destination: IpAddr, protocol: u8, packet: Vec<u8>) -> Fate {
        let receiver =
            self.holder(destination).run(move || raw_socket(destination, i32::from(protocol).into(), None));
        let socket = self.space(from).run(move || forger(destination));
        let mut buffer = [0; 2048];
        self.fate(
            || {
                socket.send_to(&packet, &SockAddr::from(SocketAddr::new(destination, 0))).expect("sent");
            },
            || std::io::Read::read(&mut &receiver, &mut buffer).is_ok(),
        )
    }
}

#[test]
fn a_pod_that_is_not_known_has_no_network() {
    privileged(|| {
        let mut w = World::new(&["a", "b"], &[], "");
        w.submit(BTreeMap::from([(name("b"), None)]));
        let unknown = |direction| Dropped(DropReason::UnknownPod.on(direction));
        assert_eq!(w.udp(From::Pod("b"), w.v4("a"), 80), unknown(Egress));
        assert_eq!(w.udp(From::Pod("b"), NODE_V4.into(), 80), unknown(Egress));
        assert_eq!(w.udp(From::Pod("b"), OUTSIDE_V4.into(), 80), unknown(Egress));
        assert_eq!(w.udp(From::Pod("a"), w.v6("b"), 80), unknown(Ingress));
        assert_eq!(w.udp(From::Outside(OUTSIDE_V4.into()), w.v4("b"), 80), unknown(Ingress));
        assert_eq!(w.udp(From::Pod("a"), OUTSIDE_V4.into(), 80), Passed);
        let again = Some(w.pods["b"].local.clone());
        w.submit(BTreeMap::from([(name("b"), again)]));
        assert_eq!(w.udp(From::Pod("b"), NODE_V4.into(), 80), Passed);
        w.check();
    });
}

#[test]
fn a_pod_speaks_for_itself_only() {
    privileged(|| {
        let w = World::new(&["a", "b", "c"], &[], "");
        let spoofed = Dropped(DropReason::Spoofed.on(Egress));
        for (a, b, c) in [(w.v4("a"), w.v4("b"), w.v4("c")), (w.v6("a"), w.v6("b"), w.v6("c"))] {
            let honest = udp(a, b, 1000, 80, b"own");
            assert_eq!(w.forge(From::Pod("a"), b, 17, honest), Passed);
            let other = udp(c, b, 1000, 80, b"c's");
            assert_eq!(w.forge(From::Pod("a"), b, 17, other), spoofed);
        }
        let node = udp(NODE_V4.into(), w.v4("b"), 1000, 80, b"the node's");
        assert_eq!(w.forge(From::Pod("a"), w.v4("b"), 17, node), spoofed);
        let loopback = udp(IpAddr::from([127, 0, 0, 1]), w.v4("b"), 1000, 80, b"loopback");
        assert_eq!(w.forge(From::Pod("a"), w.v4("b"), 17, loopback), spoofed);

        // The right address from the wrong hardware address.
        let a = &w.pods["a"].space;
        let address = |mac: &str| {
            a.ip(&format!("link set eth0 address {mac}"));
            // The kernel forgets all neighbours when the address changes.
            a.ip("neigh replace 169.254.1.1 lladdr 06:00:00:00:00:0a dev eth0 nud permanent");
            a.ip("-6 neigh replace fe80::1 lladdr 06:00:00:00:00:0a dev eth0 nud permanent");
        };
        address("02:00:00:00:00:77");
        assert_eq!(w.udp(From::Pod("a"), w.v4("b"), 80), spoofed);
        assert_eq!(w.udp(From::Pod("a"), w.v6("b"), 80), spoofed);
        assert_eq!(w.udp(From::Pod("a"), NODE_V4.into(), 80), spoofed);
        address("02:00:00:00:00:0a");
        assert_eq!(w.udp(From::Pod("a"), w.v4("b"), 80), Passed);
        assert_eq!(w.udp(From::Pod("a"), w.v6("b"), 80), Passed);
    });
}

#[test]
fn neighbour_discovery_is_for_the_own_address() {
    privileged(|| {
        let w = World::new(&["a", "b"], &[], "");
        let a = &w.pods["a"].space;
        // Somebody to ask for: the node answers for the gateway's address, and the pod has to look for it.
        w.node.ip("addr add 169.254.1.1/32 dev moata");
        a.ip("neigh del 169.254.1.1 dev eth0");
        assert_eq!(w.udp(From::Pod("a"), NODE_V4.into(), 80), Passed, "ARP for the own address");
        a.ip("addr add 10.0.0.99/32 dev eth0");
        a.ip("neigh flush dev eth0");
        let other = a.run(|| udp_socket("10.0.0.99:0".parse().unwrap()));
        let sent = w.fate(|| drop(other.send_to(b"x", (NODE_V4, 80)).map(drop)), || false);
        assert_eq!(sent, Dropped(DropReason::Spoofed.on(Egress)), "ARP for another address");

        let v6 = w.v6("a");
        let advertise = |target: IpAddr, kind: u8| {
            let IpAddr::V6(target) = target else { panic!("IPv6") };
            let mut body = vec![kind, 0, 0, 0, 0x20, 0, 0, 0];
            body.extend(target.octets());
            body
        };
        let node6: IpAddr = "fd01::1".parse().unwrap();
        let icmp6 = |mut body: Vec<u8>| {
            let sum = transport_checksum(v6, node6, 58, &body);
            body[2..4].copy_from_slice(&sum.to_be_bytes());
            packet(v6, node6, 58, &body)
        };
        let fate = |body| w.forge(From::Pod("a"), node6, 58, icmp6(body));
        assert_eq!(fate(advertise(v6, 136)), Passed, "an advertisement of the own address");
        assert_eq!(fate(advertise(w.v6("b"), 136)), Dropped(DropReason::Spoofed.on(Egress)), "of another's");
        assert_eq!(
            fate(advertise(v6, 134)),
            Dropped(DropReason::Spoofed.on(Egress)),
            "a router's advertisement"
        );
        assert_eq!(fate(advertise(v6, 137)), Dropped(DropReason::Spoofed.on(Egress)), "a redirect");
    });
}

#[test]
fn over_ipv4_too_only_routers_say_where_routers_are() {
    privileged(|| {
        let w = World::new(&["a"], &[], "");
        let (a, node) = (w.v4("a"), IpAddr::from(NODE_V4));
        let fate = |kind: u8| {
            let mut message = vec![kind, 0, 0, 0, 1, 2, 7, 8, 10, 0, 0, 10, 0, 0, 0, 0];
            let sum = checksum(&message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            w.forge(From::Pod("a"), node, 1, packet(a, node, 1, &message))
        };
        assert_eq!(fate(8), Passed, "an echo request");
        assert_eq!(fate(10), Passed, "a question for routers");
        let spoofed = Dropped(DropReason::Spoofed.on(Egress));
        assert_eq!(fate(9), spoofed, "a router's advertisement");
        assert_eq!(fate(5), spoofed, "a redirect");
    });
}

#[test]
fn a_fresh_interfaces_own_noise_is_dropped_and_not_counted() {
    privileged(|| {
        let w = World::new(&["a", "b"], &[], "");
        let before = w.drops();
        let a = &w.pods["a"].space;
        let link_local = a.ip("-6 -o addr show dev eth0 scope link");
        let source: IpAddr =
            link_local.split_whitespace().nth(3).unwrap().split('/').next().unwrap().parse().unwrap();
        for kind in [131, 133, 135, 143] {
            let all: IpAddr = "fd01::1".parse().unwrap();
            let mut body = vec![kind, 0, 0, 0, 0, 0, 0, 0];
            let sum = transport_checksum(source, all, 58, &body);
            body[2..4].copy_from_slice(&sum.to_be_bytes());
            let bytes = packet(source, all, 58, &body);
            a.run(move || forger(all).send_to(&bytes, &SockAddr::from(SocketAddr::new(all, 0)))).unwrap();
        }
        // What comes behind them on the same link has passed them.
        assert_eq!(w.udp(From::Pod("a"), NODE_V4.into(), 80), Passed);
        assert_eq!(w.drops(), before);
    });
}

#[test]
fn source_routes_are_dropped() {
    privileged(|| {
        let w = World::new(&["a", "b"], &[], "");
        let (a, b) = (w.v4("a"), w.v4("b"));
        let with_options = |options: &[u8]| {
            let mut bytes = udp(a, b, 1000, 80, b"routed");
            bytes.splice(20..20, options.iter().copied());
            bytes[0] = 0x40 + (5 + options.len() / 4) as u8;
            let length = bytes.len() as u16;
            bytes[2..4].copy_from_slice(&length.to_be_bytes());
            w.forge(From::Pod("a"), b, 17, bytes)
        };
        for kind in [131, 137, 7] {
            // One hop, before it and after it.
            for pointer in [4, 8] {
                let fate = with_options(&[kind, 7, pointer, 10, 0, 0, 1, 0]);
                assert_eq!(fate, Dropped(DropReason::Spoofed.on(Egress)), "option {kind} at {pointer}");
            }
        }
        assert_eq!(with_options(&[148, 4, 0, 0]), Passed, "multicast's router alert");
        let (a, b) = (w.v6("a"), w.v6("b"));
        let datagram = udp(a, b, 1000, 80, b"routed");
        let mut body = vec![17, 0, 4, 0, 0, 0, 0, 0];
        body.extend(&datagram[40..]);
        let routed = packet(a, b, 43, &body);
        assert_eq!(w.forge(From::Pod("a"), b, 17, routed), Dropped(DropReason::Spoofed.on(Egress)));
    });
}

#[test]
fn nobody_outside_speaks_for_a_pod_of_the_node() {
    privileged(|| {
        let spec = "{podSelector: {matchLabels: {app: b}}, ingress: [{from: [{podSelector: {matchLabels: {app: a}}}]}]}";
        let w = World::new(&["a", "b"], &[], &policy("p", spec));
        w.node.sysctl("ipv4/conf/all/rp_filter", "0");
        w.node.sysctl("ipv4/conf/up0/rp_filter", "0");
        for (a, b) in [(w.v4("a"), w.v4("b")), (w.v6("a"), w.v6("b"))] {
            assert_eq!(w.udp(From::Pod("a"), b, 80), Passed);
            let forged = udp(a, b, 1000, 80, b"forged");
            let outside = From::Outside(unspecified(b));
            assert_eq!(w.forge(outside, b, 17, forged), Dropped(DropReason::Spoofed.on(Ingress)));
            if b.is_ipv6() {
                // IPv4 drops what comes with the receiver's own address by itself.
                let itself = udp(b, b, 1000, 80, b"forged");
                assert_eq!(w.forge(outside, b, 17, itself), Dropped(DropReason::Spoofed.on(Ingress)));
            }
        }
    });
}

#[test]
fn tunnel_ports_are_no_pods_business() {
    privileged(|| {
        let w = World::new(&["a", "b"], &["r"], "");
        let tunnel = Dropped(DropReason::Tunnel.on(Egress));
        for to in [NODE_V4.into(), OUTSIDE_V4.into(), w.v4("b"), w.v6("b"), "fd01::1".parse().unwrap()] {
            assert_eq!(w.udp(From::Pod("a"), to, 4789), tunnel, "{to}");
        }
        assert_eq!(w.udp(From::Outside(OUTSIDE_V4.into()), NODE_V4.into(), 4789), Passed);
        assert_eq!(w.tcp(From::Pod("a"), w.v4("b"), 4789), Passed, "TCP is no tunnel");
    });
}

#[test]
fn a_nodes_loopback_is_its_own() {
    privileged(|| {
        let w = World::new(&["a"], &[], "");
        for name in ["ipv4/conf/all/route_localnet", "ipv4/conf/moata/route_localnet"] {
            w.node.sysctl(name, "1");
        }
        let a = &w.pods["a"].space;
        a.ip("route del table local local 127.0.0.0/8 dev lo");
        a.ip("route del table local local 127.0.0.1 dev lo");
        let sender = a.run(|| udp_socket("10.0.0.10:0".parse().unwrap()));
        let receiver = w.node.run(|| udp_socket("127.0.0.1:80".parse().unwrap()));
        let mut buffer = [0; 8];
        let fate = w.fate(
            || drop(sender.send_to(b"x", "127.0.0.1:80").map(drop)),
            || receiver.recv(&mut buffer).is_ok(),
        );
        assert_eq!(fate, Dropped(DropReason::Spoofed.on(Egress)));
    });
}

/// A TCP segment.
pub(crate) fn tcp(source: IpAddr, destination: IpAddr, sport: u16, dport: u16, flags: u8) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(sport.to_be_bytes());
    body.extend(dport.to_be_bytes());
    body.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    let sum = transport_checksum(source, destination, 6, &body);
    body[16..18].copy_from_slice(&sum.to_be_bytes());
    packet(source, destination, 6, &body)
}

#[test]
fn tcp_begins_at_its_beginning() {
    privileged(|| {
        let spec = "{podSelector: {matchLabels: {app: b}}, policyTypes: [Ingress, Egress], ingress: [{}], egress: [{}]}";
        let w = World::new(&["a", "b", "c"], &[], &policy("open", spec));
        const ACK: u8 = 0x10;
        const FIN_SYN: u8 = 0x03;
        for (a, b, c) in [(w.v4("a"), w.v4("b"), w.v4("c")), (w.v6("a"), w.v6("b"), w.v6("c"))] {
            let mid = |direction| Dropped(DropReason::MidStream.on(direction));
            assert_eq!(
                w.forge(From::Pod("a"), b, 6, tcp(a, b, 1000, 80, ACK)),
                mid(Ingress),
                "to an isolated pod"
            );
            assert_eq!(
                w.forge(From::Pod("b"), a, 6, tcp(b, a, 1001, 80, ACK)),
                mid(Egress),
                "from an isolated pod"
            );
            assert_eq!(w.forge(From::Pod("a"), c, 6, tcp(a, c, 1002, 80, ACK)), Passed, "neither");
            let invalid = Dropped(DropReason::Invalid.on(Egress));
            assert_eq!(w.forge(From::Pod("a"), c, 6, tcp(a, c, 1003, 80, FIN_SYN)), invalid);
            assert_eq!(w.tcp(From::Pod("a"), b, 80), Passed);
        }
    });
}

/// Else the answers of a connection that nobody tracks any more, and that policy denies, would open it the other way round.
#[test]
fn nobody_picks_up_a_connection_of_a_pod_that_is_isolated_on_its_other_side() {
    privileged(|| {
        let ingress = "{podSelector: {matchLabels: {app: b}}, ingress: [{}]}";
        let egress = "{podSelector: {matchLabels: {app: c}}, policyTypes: [Egress], egress: [{}]}";
        let w = World::new(&["a", "b", "c"], &[], &(policy("in", ingress) + &policy("out", egress)));
        const ACK: u8 = 0x10;
        for (a, b, c) in [(w.v4("a"), w.v4("b"), w.v4("c")), (w.v6("a"), w.v6("b"), w.v6("c"))] {
            let mid = |direction| Dropped(DropReason::MidStream.on(direction));
            assert_eq!(w.forge(From::Pod("b"), a, 6, tcp(b, a, 1000, 80, ACK)), mid(Egress));
            assert_eq!(w.forge(From::Pod("a"), c, 6, tcp(a, c, 1001, 80, ACK)), mid(Ingress));
            assert_eq!(w.tcp(From::Pod("b"), a, 80), Passed);
            assert_eq!(w.tcp(From::Pod("a"), c, 80), Passed);
        }
    });
}

#[test]
fn icmp_errors_about_the_own_flows_only() {
    privileged(|| {
        let spec = "{podSelector: {matchLabels: {app: b}}, policyTypes: [Ingress, Egress], ingress: [{}]}";
        let deny = "{podSelector: {matchLabels: {app: c}}, policyTypes: [Ingress, Egress]}";
        let w = World::new(&["a", "b", "c"], &[], &(policy("b", spec) + &policy("c", deny)));
        for (a, b, outside) in [
            (w.v4("a"), w.v4("b"), IpAddr::from(OUTSIDE_V4)),
            (w.v6("a"), w.v6("b"), "fd01::2".parse().unwrap()),
        ] {
            // b may open nothing, but it may say that nobody listens, and so may a router or a host outside.
            for to in [b, outside] {
                let socket = w.pods["a"].space.run(move || udp_socket(SocketAddr::new(unspecified(to), 0)));
                socket.connect((to, 9)).unwrap();
                let fate = w.fate(
                    || assert!(socket.send(b"anybody?").is_ok()),
                    || matches!(socket.take_error(), Ok(Some(e)) if e.kind() == std::io::ErrorKind::ConnectionRefused),
                );
                assert_eq!(fate, Passed, "{to}");
            }
            // c says it about a's flow with the outside.
            let socket = w.pods["a"].space.run(move || udp_socket(SocketAddr::new(a, 0)));
            let peer = w.outside.run(move || udp_socket(SocketAddr::new(outside, 7)));
            socket.connect((outside, 7)).unwrap();
            let mut buffer = [0; 8];
            let sent = w.fate(|| assert!(socket.send(b"x").is_ok()), || peer.recv(&mut buffer).is_ok());
            assert_eq!(sent, Passed);
            let port = socket.local_addr().unwrap().port();
            let c = if a.is_ipv4() { w.v4("c") } else { w.v6("c") };
            let forged = unreachable(c, a, &udp(a, outside, port, 7, &[0; 1000]));
            let protocol = if a.is_ipv4() { 1 } else { 58 };
            assert_eq!(w.forge(From::Pod("c"), a, protocol, forged), Dropped(DropReason::Spoofed.on(Egress)));
            assert!(socket.take_error().unwrap().is_none());
        }
    });
}

/// Port unreachable, about this packet.
fn unreachable(source: IpAddr, destination: IpAddr, quoted: &[u8]) -> Vec<u8> {
    let (protocol, head) = if source.is_ipv4() { (1, [3, 3]) } else { (58, [1, 4]) };
    let mut body = [&head[..], &[0; 6], quoted].concat();
    let sum = match protocol {
        1 => checksum(&body),
        _ => transport_checksum(source, destination, protocol, &body),
    };
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    packet(source, destination, protocol, &body)
}

#[test]
fn icmp_errors_from_outside_are_about_what_was_outside() {
    privileged(|| {
        let w = World::new(&["a", "b"], &[], "");
        w.node.sysctl("ipv4/conf/all/rp_filter", "0");
        w.node.sysctl("ipv4/conf/up0/rp_filter", "0");
        for (a, b, outside) in [
            (w.v4("a"), w.v4("b"), IpAddr::from(OUTSIDE_V4)),
            (w.v6("a"), w.v6("b"), "fd01::2".parse().unwrap()),
        ] {
            let protocol = if a.is_ipv4() { 1 } else { 58 };
            let forged = Dropped(DropReason::Spoofed.on(Ingress));
            for (to, holder, allowed) in [(b, &w.pods["b"].space, forged), (outside, &w.outside, Passed)] {
                let socket = w.pods["a"].space.run(move || udp_socket(SocketAddr::new(a, 0)));
                let peer = holder.run(move || udp_socket(SocketAddr::new(to, 7)));
                socket.connect((to, 7)).unwrap();
                let mut buffer = [0; 8];
                let sent = w.fate(|| assert!(socket.send(b"x").is_ok()), || peer.recv(&mut buffer).is_ok());
                assert_eq!(sent, Passed);
                let quoted = udp(a, to, socket.local_addr().unwrap().port(), 7, b"x");
                let from_router = unreachable(outside, a, &quoted);
                let fate = w.forge(From::Outside(outside), a, protocol, from_router);
                assert_eq!(fate, allowed, "{a} {to}");
                let from_pod = unreachable(b, a, &quoted);
                assert_eq!(w.forge(From::Outside(unspecified(b)), a, protocol, from_pod), forged, "{a} {to}");
            }
        }
    });
}

#[test]
fn a_pod_reaches_itself_through_a_service() {
    privileged(|| {
        let w = World::new(&["a", "b"], &[], &policy("deny", DENY_ALL));
        for line in [
            "nft add table ip nat",
            "nft add chain ip nat before { type nat hook prerouting priority -100 ; }",
            "nft add chain ip nat after { type nat hook postrouting priority 100 ; }",
            "nft add rule ip nat before ip daddr 10.96.0.1 dnat to 10.0.0.10",
            "nft add rule ip nat before ip daddr 10.96.0.2 dnat to 10.0.0.11",
            "nft add rule ip nat after ip saddr 10.0.0.10 ip daddr 10.0.0.10 masquerade",
        ] {
            w.node.command(line);
        }
        let connect = |to: IpAddr, holder: &str| {
            let listener = w.pods[holder].space.run(|| patiently(|| TcpListener::bind("0.0.0.0:80")));
            listener.set_nonblocking(true).unwrap();
            let socket = w.pods["a"].space.run(|| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
                socket.set_nonblocking(true).unwrap();
                socket
            });
            let address = SocketAddr::new(to, 80).into();
            w.fate(|| drop(socket.connect(&address)), || listener.accept().is_ok())
        };
        assert_eq!(connect(IpAddr::from([10, 96, 0, 1]), "a"), Passed);
        let denied = Dropped(DropReason::Policy.on(Egress));
        assert_eq!(connect(IpAddr::from([10, 96, 0, 2]), "b"), denied, "the same way to another pod");
    });
}

#[test]
fn a_revoked_flow_is_cut_in_both_directions_and_can_be_given_back() {
    privileged(|| {
        let w = World::new(&["a", "b"], &[], &policy("open", "{podSelector: {}, ingress: [{}]}"));
        let (a, b) = (w.v4("a"), w.v4("b"));
        let client = w.pods["a"].space.run(move || udp_socket(SocketAddr::new(a, 5000)));
        let server = w.pods["b"].space.run(move || udp_socket(SocketAddr::new(b, 5000)));
        let mut buffer = [0; 8];
        let mut there = || {
            w.fate(|| assert!(client.send_to(b"x", (b, 5000)).is_ok()), || server.recv(&mut buffer).is_ok())
        };
        let mut buffer = [0; 8];
        let mut back = || {
            w.fate(|| assert!(server.send_to(b"x", (a, 5000)).is_ok()), || client.recv(&mut buffer).is_ok())
        };
        assert_eq!((there(), back(), there()), (Passed, Passed, Passed));
        let mark = moat_agent::dataplane::LayoutConfig::default().revoked_mark;
        w.node.command(&format!("conntrack -U -p udp -s {a} -d {b} --mark {mark:#x}"));
        let revoked = Dropped(DropReason::Revoked.on(Egress));
        assert_eq!((there(), back()), (revoked, revoked));
        w.node.command(&format!("conntrack -U -p udp -s {a} -d {b} --mark 0"));
        assert_eq!((there(), back()), (Passed, Passed));
    });
}
