//! A pod's link that somebody deletes on the node is made again, and nothing gets through meanwhile that policy denies.

use crate::netns::in_world;
use crate::packets::Server;
use crate::world::World;

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
            let forged = format!(
                "ip addr add {0}/32 dev eth0; ip route add {1}/32 via 169.254.1.1 dev eth0 src {0}
                 ping -c 1 -W 1 -I {0} {1} >/dev/null && echo passed || true
                 ip route del {1}/32; ip addr del {0}/32 dev eth0",
                "10.1.0.77", server_pod.address
            );
            if pod.address != server_pod.address {
                assert_eq!(pod.ns.sh(&forged), "");
            }
        }
        let metrics = world.get("/metrics").unwrap();
        let spoofed =
            |line: &&str| line.contains("_drops_total") && line.contains("spoofed") && !line.ends_with(" 0");
        assert!(metrics.lines().any(|line| spoofed(&line)), "{metrics}");
        let check = world.check();
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    });
}
