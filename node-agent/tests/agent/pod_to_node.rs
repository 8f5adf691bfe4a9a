//! What pods may send to their own node, as the agent's option says it.

use std::net::{SocketAddr, UdpSocket};

use crate::netns::interrupted::uninterrupted;
use crate::netns::{Namespace, in_world};
use crate::packets::{ANSWER, Server};
use crate::world::{Pod, World};

const NODE: &str = "192.0.2.1:7000";

const POLICIES: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
spec: {podSelector: {matchLabels: {app: closed}}, policyTypes: [Ingress, Egress]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: to-node}
spec: {podSelector: {matchLabels: {app: to-node}}, egress: [{to: [{ipBlock: {cidr: 192.0.2.1/32}}]}]}
";

/// Answers everybody, until the test's process ends.
fn serve(node: &Namespace) {
    let socket = node.run(|| UdpSocket::bind(NODE).unwrap());
    std::thread::spawn(move || {
        let mut packet = [0; 64];
        while let Ok((length, from)) = uninterrupted(|| socket.recv_from(&mut packet)) {
            let _ = socket.send_to(&packet[..length], from);
        }
    });
}

/// Whether the node answers a pod.
fn reaches(pod: &Pod) -> bool {
    let from = SocketAddr::new(pod.address, 0);
    pod.ns.run(move || {
        let socket = UdpSocket::bind(from).unwrap();
        socket.set_read_timeout(Some(ANSWER)).unwrap();
        socket.send_to(b"hello", NODE).unwrap();
        uninterrupted(|| socket.recv(&mut [0; 64])).is_ok()
    })
}

/// Whether a pod answers its node, as it does a probe.
fn answers(node: &Namespace, pod: &Pod) -> bool {
    let to = SocketAddr::new(pod.address, 7000);
    node.run(move || {
        let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
        socket.set_read_timeout(Some(ANSWER)).unwrap();
        socket.send_to(b"alive?", to).unwrap();
        uninterrupted(|| socket.recv(&mut [0; 64])).is_ok()
    })
}

const PODS: [&str; 3] = ["closed", "to-node", "free"];

fn world(flags: &[&'static str]) -> (World, [Pod; 3]) {
    let mut world = World::new();
    world.flags = flags.to_vec();
    world.write("policies.yaml", POLICIES);
    for pod in PODS {
        world.write(&format!("{pod}.yaml"), &World::pod_text(pod));
    }
    world.start_ready();
    serve(&world.node);
    let pods = PODS.map(|pod| world.add(pod));
    for pod in &pods {
        Server::start(pod);
    }
    (world, pods)
}

#[track_caller]
fn is_sound(world: &World) {
    let output = world.check();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn policy_decides_where_the_agent_is_told_so() {
    in_world(|| {
        let (mut world, pods) = world(&["--pod-to-node", "policy"]);
        let sees = |world: &World| {
            assert_eq!(pods.each_ref().map(reaches), [false, true, true]);
            assert!(pods.iter().all(|pod| answers(&world.node, pod)), "a node's probes are answered");
            is_sound(world);
        };
        sees(&world);
        // The next agent says the same, and the one that is told otherwise opens what was closed.
        world.kill();
        world.start_ready();
        sees(&world);
        world.kill();
        world.flags.clear();
        world.start_ready();
        assert_eq!(pods.each_ref().map(reaches), [true; 3]);
        is_sound(&world);
    });
}
