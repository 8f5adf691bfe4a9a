//! A pod that is closed because its policy cannot be loaded is told of: in the log, in the numbers, by not being ready; and the
//! others go on.

use std::fmt::Write as _;

use crate::netns::in_world;
use crate::packets::Server;
use crate::world::World;

/// Lets the whole node's pods in, and so many hosts elsewhere, no two of which are one prefix.
fn policy(prefixes: u32) -> String {
    let mut text = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: server}, spec: {podSelector: \
                    {matchLabels: {app: server}}, ingress: [{from: [{ipBlock: {cidr: 10.1.0.0/24}}"
        .to_owned();
    for n in 1..prefixes {
        write!(text, ", {{ipBlock: {{cidr: 198.51.100.{}/32}}}}", 2 * n).unwrap();
    }
    text + "]}]}}\n"
}

#[test]
fn a_pod_above_a_limit_is_closed_and_the_node_says_so() {
    in_world(|| {
        let mut world = World::new();
        world.flags = vec!["--max-prefixes", "10"];
        let names = ["server", "other", "client"];
        for name in names {
            world.write(&format!("{name}.yaml"), &World::pod_text(name));
        }
        world.start_ready();
        let [server_pod, other_pod, client] = names.map(|name| world.add(name));
        let (server, other) = (Server::start(&server_pod), Server::start(&other_pod));
        assert!(server.answers(&client) && other.answers(&client));
        let closed = |world: &World, number: u8| {
            let line = format!("moat_agent_dataplane_closed_pods {number}");
            world.get("/metrics").is_some_and(|page| page.lines().any(|text| text == line))
        };
        let ready = |world: &World| world.readyz().is_some_and(|ready| ready.status == 200);
        for _ in 0..2 {
            world.write("policy.yaml", &policy(11));
            world.until("closed and not ready", |world| {
                let said = |body: &str| body.lines().any(|line| line.starts_with("closed default/server: "));
                world.readyz().is_some_and(|ready| ready.status == 503 && said(&ready.body))
            });
            assert!(!server.answers(&client) && other.answers(&client));
            world.until("counted", |world| closed(world, 1));
            let said = |line: &str| {
                ["default/server", "11 prefixes", "--max-prefixes"].iter().all(|word| line.contains(word))
            };
            assert!(world.log().lines().any(said), "{}", world.log());
            world.write("policy.yaml", &policy(10));
            world.until("open again and ready", ready);
            assert!(server.answers(&client) && other.answers(&client));
            world.until("counted", |world| closed(world, 0));
        }
    });
}
