//! A pod and its own node: always open by default, and by policy where that is asked for.

use std::net::{IpAddr, SocketAddr};

use moat_agent::dataplane::{Config, DropReason, LayoutConfig, PodToNode};
use moat_policies::Direction::Egress;

use crate::probe::Fate::{Dropped, Passed};
use crate::probe::{From, checksum, packet, udp_socket, unspecified};
use crate::space::privileged;
use crate::verdicts::policy;
use crate::world::{NODE_V4, OUTSIDE_V4, World};

/// `denied` may open nothing, `web` may reach the node's IPv4 address on port 80; `free` is nobody's matter, and `served` is
/// isolated on its other side only.
fn world(pod_to_node: PodToNode) -> World {
    let denied = "{podSelector: {matchLabels: {app: denied}}, policyTypes: [Ingress, Egress]}";
    let web = "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 192.168.0.1/32}}], ports: [{port: 80}]}]}";
    let served = "{podSelector: {matchLabels: {app: served}}, policyTypes: [Ingress]}";
    let policies = policy("denied", denied) + &policy("web", web) + &policy("served", served);
    let layout = LayoutConfig { pod_to_node, ..LayoutConfig::default() };
    World::with(&["denied", "free", "served", "web"], &[], &policies, Config { layout, ..Config::default() })
}

fn node6() -> IpAddr {
    "fd01::1".parse().expect("an address")
}

#[test]
fn by_default_no_policy_keeps_a_pod_from_its_node() {
    privileged(|| {
        let w = world(PodToNode::Allow);
        for pod in ["denied", "free", "served", "web"] {
            for to in [NODE_V4.into(), node6()] {
                assert_eq!(w.udp(From::Pod(pod), to, 53), Passed, "{pod} to {to}");
                assert_eq!(w.tcp(From::Pod(pod), to, 10250), Passed, "{pod} to {to}");
            }
        }
        assert_eq!(w.udp(From::Pod("denied"), OUTSIDE_V4.into(), 53), Dropped(DropReason::Policy.on(Egress)));
    });
}

#[test]
fn policy_decides_where_it_is_asked_to() {
    privileged(|| {
        let w = world(PodToNode::Policy);
        let denied = Dropped(DropReason::Policy.on(Egress));
        for to in [NODE_V4.into(), node6()] {
            assert_eq!(w.udp(From::Pod("denied"), to, 53), denied);
            assert_eq!(w.tcp(From::Pod("denied"), to, 10250), denied);
            assert_eq!(w.ping(From::Pod("denied"), to), denied);
            assert_eq!(w.raw(From::Pod("denied"), to, 253, b"x"), denied);
            for pod in ["free", "served"] {
                assert_eq!(w.udp(From::Pod(pod), to, 53), Passed);
                assert_eq!(w.tcp(From::Pod(pod), to, 10250), Passed);
                assert_eq!(w.ping(From::Pod(pod), to), Passed);
            }
        }
        assert_eq!(w.tcp(From::Pod("web"), NODE_V4.into(), 80), Passed);
        assert_eq!(w.tcp(From::Pod("web"), NODE_V4.into(), 81), denied);
        assert_eq!(w.tcp(From::Pod("web"), node6(), 80), denied);
        w.check();
    });
}

#[test]
fn the_node_reaches_its_pods_and_hears_their_answers() {
    privileged(|| {
        let w = world(PodToNode::Policy);
        for to in [w.v4("denied"), w.v6("denied")] {
            // A connection is there once the pod's answer has come.
            assert_eq!(w.tcp(From::Node, to, 80), Passed);
            assert_eq!(w.ping(From::Node, to), Passed);
            // And the pod may say that nobody listens.
            let socket = w.node.run(move || udp_socket(SocketAddr::new(unspecified(to), 0)));
            socket.connect((to, 9)).unwrap();
            let refused = |e: Option<std::io::Error>| {
                e.is_some_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
            };
            let fate = w.fate(
                || assert!(socket.send(b"anybody?").is_ok()),
                || socket.take_error().is_ok_and(refused),
            );
            assert_eq!(fate, Passed);
        }
    });
}

#[test]
fn an_error_that_a_pod_makes_up_does_not_reach_the_node() {
    privileged(|| {
        let w = world(PodToNode::Allow);
        let socket = w.node.run(|| udp_socket(SocketAddr::new(NODE_V4.into(), 0)));
        let outside = w.outside.run(|| udp_socket(SocketAddr::new(OUTSIDE_V4.into(), 7)));
        socket.connect((OUTSIDE_V4, 7)).unwrap();
        let mut buffer = [0; 8];
        let sent = w.fate(|| assert!(socket.send(b"x").is_ok()), || outside.recv(&mut buffer).is_ok());
        assert_eq!(sent, Passed);
        let port = socket.local_addr().unwrap().port();
        let mut body = vec![3, 3, 0, 0, 0, 0, 0, 0];
        body.extend(crate::probe::udp(NODE_V4.into(), OUTSIDE_V4.into(), port, 7, b"x"));
        let sum = checksum(&body);
        body[2..4].copy_from_slice(&sum.to_be_bytes());
        let forged = packet(w.v4("free"), NODE_V4.into(), 1, &body);
        let fate = w.forge(From::Pod("free"), NODE_V4.into(), 1, forged);
        assert_eq!(fate, Dropped(DropReason::Spoofed.on(Egress)));
    });
}

#[test]
fn a_denial_holds_for_what_is_open_already() {
    privileged(|| {
        let mut w = world(PodToNode::Policy);
        for (from, to) in [(w.v4("free"), NODE_V4.into()), (w.v6("free"), node6())] {
            let server = w.node.run(move || udp_socket(SocketAddr::new(to, 5000)));
            let client = w.pods["free"].space.run(move || udp_socket(SocketAddr::new(from, 5000)));
            let mut buffer = [0; 8];
            let mut there = |w: &World| {
                w.fate(
                    || assert!(client.send_to(b"x", (to, 5000)).is_ok()),
                    || server.recv(&mut buffer).is_ok(),
                )
            };
            let mut buffer = [0; 8];
            let mut back = |w: &World| {
                w.fate(
                    || assert!(server.send_to(b"x", (from, 5000)).is_ok()),
                    || client.recv(&mut buffer).is_ok(),
                )
            };
            assert_eq!((there(&w), back(&w), there(&w)), (Passed, Passed, Passed));
            let all = "{podSelector: {matchLabels: {app: free}}, policyTypes: [Egress]}";
            w.apply(&policy("all", all));
            assert_eq!(there(&w), Dropped(DropReason::Policy.on(Egress)));
            // What the node says to its pods always passes.
            assert_eq!(back(&w), Passed);
            w.delete_policy("all");
            assert_eq!(there(&w), Passed);
        }
    });
}
