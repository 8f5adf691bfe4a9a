//! What an agent must hold in the end, compiled from scratch.

use moat_api::{Change, Told, ToldPod};
use moat_policies::Cluster;

/// What the agent of this node is to have been told when all is as `cluster` has it.
pub(crate) fn told(cluster: &Cluster, node: &str) -> Told {
    let mut scratch = Change { policy: cluster.state(node), ..Change::default() };
    for (pod, programs) in scratch.policy.pods.clone() {
        let uid = cluster.objects().pods().get(&pod).unwrap().uid;
        scratch.put_pod(pod, programs.map(|programs| ToldPod { uid, programs }));
    }
    let nodes = cluster.objects().nodes().iter();
    scratch.nodes = nodes.map(|(name, node)| (name.clone(), Some(node.clone()))).collect();
    let mut told = Told::default();
    told.take(scratch);
    told
}
