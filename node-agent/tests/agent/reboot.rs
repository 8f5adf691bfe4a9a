//! A machine that starts anew where no controller can be reached.

use crate::cluster::{Cluster, TRY_AGAIN, only};
use crate::netns::{Namespace, in_world};
use crate::packets::Server;

/// Everybody in the pods' network may reach the pods `block`.
const BLOCK: &str = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: block}, spec: {podSelector: {matchLabels: \
                     {app: block}}, ingress: [{from: [{ipBlock: {cidr: 10.1.0.0/24}}], ports: [{port: 7000, protocol: UDP}]}]}}\n";

#[test]
fn after_a_reboot_without_a_controller_the_last_policy_holds() {
    in_world(|| {
        let pods = ["web", "other", "api", "block", "free"].map(|pod| (pod, "here"));
        let mut cluster = Cluster::with("10.1.0.0/28", &pods);
        cluster.write("api.yaml", &only("web"));
        cluster.write("block.yaml", BLOCK);
        cluster.start(1);
        let before = pods.map(|(pod, _)| cluster.here.add(pod));
        let server = Server::start(&before[2]);
        assert!(server.answers(&before[0]) && !server.answers(&before[1]));
        cluster.kill_controller();
        let taken: Vec<_> = before.iter().map(|pod| pod.address).collect();
        drop(before);

        cluster.here.reboot();
        cluster.here.until("the agent serves what it was told", |_, body| body.contains("applied"));
        let [web, other, api, block, free] = pods.map(|(pod, _)| cluster.here.add(pod));
        let [to_api, to_block, to_free] = [&api, &block, &free].map(Server::start);
        // Nobody else gets an address by which a policy means a pod that had it.
        assert!([&web, &other, &api, &block, &free].iter().all(|pod| !taken.contains(&pod.address)));
        assert!(
            to_block.answers(&other) && to_free.answers(&other),
            "what any pod may, and who is not isolated"
        );
        assert!(!to_api.answers(&other), "isolated as it was");
        assert!(!to_api.answers(&web), "by which address its peer is known now, only a controller tells");
        let unknown = Namespace::new();
        cluster.here.plugin().run("ADD", "nobody", &unknown.path).fails_with(TRY_AGAIN);

        cluster.start_controller();
        cluster.until("the peer is known again", || to_api.answers(&web));
        assert!(!to_api.answers(&other));
    });
}
