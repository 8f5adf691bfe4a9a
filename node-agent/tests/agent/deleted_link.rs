//! A pod's link that somebody deletes on the node is made again, and nothing gets through meanwhile that policy denies.

use std::net::UdpSocket;

use crate::netns::in_world;
use crate::packets::Server;
use crate::world::World;

/// How many packets were dropped that pods sent in another's name.
fn spoofed(world: &World) -> u64 {
    let metrics = world.get("/metrics").unwrap();
    let line = "moat_agent_drops_total{direction=\"egress\",reason=\"spoofed\"} ";
    metrics.lines().find_map(|l| l.strip_prefix(line)).unwrap().parse().unwrap()
}

#[test]
fn a_deleted_link_comes_back_with_its_policy() {
    in_world(|| {
        let mut world = World::new();
        for name in ["server", "friend", "stranger"] {
            world.write(&format!("pod-{name}.yaml"), &World::pod_text(name));
        }
        world.write(
            "policy.yaml",
            "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: server}, spec: {podSelector: \
             {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}]}}\n",
        );
        world.start_ready();
        let [server_pod, friend, stranger] = ["server", "friend", "stranger"].map(|name| world.add(name));
        let server = Server::start(&server_pod);
        assert!(server.answers(&friend) && !server.answers(&stranger));
        for pod in [&server_pod, &stranger, &friend] {
            let route = world.node.sh(&format!("ip -o route get {}", pod.address));
            let link = route.split_whitespace().find(|word| word.starts_with("moat")).unwrap().to_owned();
            world.node.sh(&format!("ip link del {link}"));
            world.until("made again", |world| {
                world.log().contains(&format!("the link {link} was deleted")) && !server.answers(&stranger)
            });
            world.until("answered", |_| server.answers(&friend));
            assert!(!server.answers(&stranger));
            // The new link's own chain is there: in another's name nothing passes.
            let before = spoofed(&world);
            pod.ns.sh("ip addr add 10.1.0.77/32 dev eth0");
            let to = friend.address;
            pod.ns
                .run(move || UdpSocket::bind("10.1.0.77:0").unwrap().send_to(b"forged", (to, 7000)).unwrap());
            world.until("dropped", |world| pod.address == to || spoofed(world) > before);
            pod.ns.sh("ip addr del 10.1.0.77/32 dev eth0");
        }
        let check = world.check();
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    });
}
