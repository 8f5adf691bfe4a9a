//! A cluster's objects, as if they had been read from manifests: the same questions can then be asked of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use moat_apiserver::Listing;
use moat_manifests::{Manifests, Workload, WorkloadKind};
use moat_policies::{NamespacedName, Object};

use super::{Cluster, teach};
use crate::output;

/// The label by which a Deployment tells its ReplicaSets apart: their names end with it.
const TEMPLATE_HASH: &str = "pod-template-hash";

/// Objects of a cluster, and the namespace that its kubeconfig's context names.
pub(crate) fn load(cluster: &Cluster) -> Result<(Manifests, String)> {
    let (runtime, client) = cluster.connect()?;
    let listing = runtime.block_on(moat_apiserver::list(&client)).map_err(teach::access)?;
    for (policy, note) in &listing.notes {
        for finding in &note.refused {
            output::warn(format_args!(
                "NetworkPolicy {policy} isolates its pods and allows nothing: {finding}"
            ));
        }
        for finding in &note.warnings {
            output::warn(format_args!("NetworkPolicy {policy}: {finding}"));
        }
    }
    let workloads = workloads(&listing);
    let manifests = Manifests { objects: listing.objects, workloads, ..Manifests::default() };
    Ok((manifests, client.default_namespace().to_owned()))
}

/// The workloads that pods tell of: who controls each, and who controls that by its name.
fn workloads(listing: &Listing) -> Vec<Workload> {
    let hashes: BTreeMap<&NamespacedName, &str> = listing
        .objects
        .iter()
        .filter_map(|object| match object {
            Object::Pod(pod) => Some((&pod.name, &**pod.labels.get(TEMPLATE_HASH)?)),
            _ => None,
        })
        .collect();
    let mut found: BTreeMap<(WorkloadKind, NamespacedName), Vec<NamespacedName>> = BTreeMap::new();
    for (pod, kind, owner) in &listing.owners {
        let Some(kind) = WorkloadKind::ALL.into_iter().find(|known| known.as_str() == &**kind) else {
            continue;
        };
        let above = controller(kind, owner, hashes.get(pod).copied());
        for (kind, name) in [(kind, Arc::clone(owner))].into_iter().chain(above) {
            let name = NamespacedName { namespace: pod.namespace.clone(), name };
            found.entry((kind, name)).or_default().push(pod.clone());
        }
    }
    found.into_iter().map(|((kind, name), pods)| Workload { kind, name, pods }).collect()
}

/// Who made a ReplicaSet or a Job, as its name tells.
fn controller(kind: WorkloadKind, name: &str, hash: Option<&str>) -> Option<(WorkloadKind, Arc<str>)> {
    let (above, end) = name.rsplit_once('-')?;
    match kind {
        WorkloadKind::ReplicaSet if Some(end) == hash => Some((WorkloadKind::Deployment, above.into())),
        // A CronJob's Jobs end with the minute that they are of, since 1970.
        WorkloadKind::Job if end.len() == 8 && end.bytes().all(|b| b.is_ascii_digit()) => {
            Some((WorkloadKind::CronJob, above.into()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deployment_and_a_cron_job_are_known_by_what_they_make() {
        let of = |kind, name, hash| controller(kind, name, hash).map(|(kind, name)| format!("{kind} {name}"));
        let set = WorkloadKind::ReplicaSet;
        assert_eq!(of(set, "web-app-7d4b9c8f5", Some("7d4b9c8f5")).as_deref(), Some("Deployment web-app"));
        assert_eq!(of(set, "web-7d4b9c8f5", None), None, "one that nobody made");
        assert_eq!(of(set, "web", Some("7d4b9c8f5")), None);
        assert_eq!(of(WorkloadKind::Job, "backup-29387520", None).as_deref(), Some("CronJob backup"));
        assert_eq!(of(WorkloadKind::Job, "backup-1", None), None);
        assert_eq!(of(WorkloadKind::StatefulSet, "db-29387520", None), None);
    }

    #[test]
    fn workloads_have_the_pods_that_are_theirs() {
        let pod = |name: &str| NamespacedName::new("shop", name);
        let owner = |name, kind: &str, owner: &str| (pod(name), Arc::from(kind), Arc::from(owner));
        let listing = Listing {
            owners: vec![
                owner("db-0", "StatefulSet", "db"),
                owner("db-1", "StatefulSet", "db"),
                owner("x", "Node", "n"),
            ],
            ..Listing::default()
        };
        let found = workloads(&listing);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].kind, &found[0].name), (WorkloadKind::StatefulSet, &pod("db")));
        assert_eq!(found[0].pods, [pod("db-0"), pod("db-1")]);
    }
}
