//! What is counted goes on over a death of the agent.

use crate::netns::in_world;
use crate::packets::Server;
use crate::world::World;

/// What a page of metrics says of denied packets to p0.
fn drops(world: &World) -> Option<u64> {
    let page = world.get("/metrics")?;
    let of_p0 = |line: &&str| {
        line.starts_with("moat_agent_pod_drops_total{")
            && ["pod=\"p0\"", "direction=\"ingress\"", "reason=\"policy\""]
                .iter()
                .all(|label| line.contains(label))
    };
    page.lines().find(of_p0)?.rsplit(' ').next()?.parse().ok()
}

#[test]
fn drops_are_counted_on_over_a_death_also_those_that_nobody_lived_to_see() {
    in_world(|| {
        let mut world = World::new();
        for name in ["p0", "p1"] {
            world.write(&format!("{name}.yaml"), &World::pod_text(name));
        }
        world.write(
            "nobody.yaml",
            "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: nobody}, spec: {podSelector: \
             {matchLabels: {app: p0}}}}\n",
        );
        world.start_ready();
        let (p0, p1) = (world.add("p0"), world.add("p1"));
        let server = Server::start(&p0);
        assert!(!server.answers(&p1));
        assert_eq!(drops(&world), Some(1));
        for dead in 1..4 {
            world.kill();
            assert!(!server.answers(&p1), "nobody is let in meanwhile");
            assert_eq!(drops(&world), None, "nobody is there to ask");
            world.start_ready();
            assert_eq!(drops(&world), Some(1 + dead), "counted by the kernel, told by the next agent");
        }
    });
}
