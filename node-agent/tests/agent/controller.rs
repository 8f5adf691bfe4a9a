//! A real controller and the real agents of two nodes: policy comes by the stream, stays where the stream ends, and goes on
//! where it goes on.

use crate::cluster::{Cluster, TRY_AGAIN, only};
use crate::netns::{Namespace, in_world};
use crate::packets::Server;

#[test]
fn policy_comes_by_the_stream_and_stays_without_it() {
    in_world(|| {
        let pods =
            [("web", "here"), ("other", "here"), ("api", "there"), ("late", "here"), ("latecomer", "here")];
        let mut cluster = Cluster::started(&pods);
        let (web, other) = (cluster.here.add("web"), cluster.here.add("other"));
        let api = cluster.there.add("api");
        let server = Server::start(&api);
        assert!(server.answers(&web) && server.answers(&other), "nobody is isolated");

        cluster.write("policy.yaml", &only("web"));
        cluster.until("others are denied", || !server.answers(&other));
        assert!(server.answers(&web));

        // Nobody tells anything any more: what was told holds, also what the folder says otherwise by now.
        cluster.kill_controller();
        cluster.there.until("the agent says that it is alone", |status, body| {
            status == 503 && body.contains("controller")
        });
        cluster.write("policy.yaml", &only("other"));
        assert!(server.answers(&web) && !server.answers(&other));

        // An agent that dies and comes back alone knows what it was told.
        cluster.there.kill();
        assert!(server.answers(&web) && !server.answers(&other), "the kernel holds it");
        cluster.there.start();
        cluster.there.until("the agent serves what it was told", |_, body| body.contains("applied"));
        assert!(server.answers(&web) && !server.answers(&other));
        cluster.here.kill();
        cluster.here.start();
        cluster.here.until("the agent serves what it was told", |_, body| body.contains("applied"));
        // A pod that it was told of gets its network; of another one nobody knows the policy.
        let late = cluster.here.add("late");
        assert!(!server.answers(&late));
        let unknown = Namespace::new();
        cluster.here.plugin().run("ADD", "nobody", &unknown.path).fails_with(TRY_AGAIN);

        cluster.start_controller();
        cluster.until("the folder's newest is in force", || server.answers(&other));
        cluster.until("everywhere", || !server.answers(&web));
        cluster.here.until_ready();
        cluster.there.until_ready();
    });
}

#[test]
fn a_new_pod_is_known_everywhere_when_it_starts() {
    in_world(|| {
        const PODS: [&str; 8] = ["web1", "web2", "web3", "web4", "web5", "web6", "web7", "web8"];
        let mut pods = PODS.map(|pod| (pod, "here")).to_vec();
        pods.push(("api", "there"));
        let cluster = Cluster::started(&pods);
        cluster.write("policy.yaml", &only("web"));
        let api = cluster.there.add("api");
        let server = Server::start(&api);
        for name in PODS {
            let pod = cluster.here.add(name);
            assert!(server.answers(&pod), "the first packet of {name} passes");
            cluster.here.plugin().run("DEL", name, &pod.ns.path).ok();
        }
    });
}

#[test]
fn an_agent_without_a_controller_waits_and_changes_nothing() {
    in_world(|| {
        let mut cluster = Cluster::new(&[("web", "here")]);
        cluster.here.start();
        cluster.here.until("it says why", |status, body| status == 503 && body.contains("cannot connect"));
        assert!(cluster.here.ns.sh("nft list tables").is_empty());
        cluster.start_controller();
        cluster.here.until_ready();
        cluster.here.add("web");
    });
}
