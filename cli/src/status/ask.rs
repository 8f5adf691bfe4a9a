//! What the API server says of moat and of the nodes.

use std::collections::BTreeMap;
use std::fmt::Debug;

use anyhow::{Result, anyhow};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, ListParams};
use kube::{Client, Resource, ResourceExt as _};
use moat_crd::{Fingerprint, NetworkConfig, NodeEnforcement, NodeEnforcementStatus};
use serde::de::DeserializeOwned;

use crate::cluster::{NAMESPACE, explain};

/// Objects of one answer.
const PAGE: u32 = 500;

/// The label that says which of moat's programs a pod is.
const NAME: &str = "app.kubernetes.io/name";

/// What there is to judge by.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The name of what is applied.
    pub(super) applied: String,
    /// All nodes, with what is written of each.
    pub(super) nodes: BTreeMap<String, Option<NodeEnforcementStatus>>,
    /// moat's own pods.
    pub(super) pods: Vec<Own>,
}

/// One of moat's pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Own {
    pub(super) name: String,
    pub(super) agent: bool,
    pub(super) node: String,
    pub(super) ready: bool,
    /// Why one of its containers does not run, in the kubelet's word.
    pub(super) waiting: Option<String>,
}

/// Asks. What is applied comes first: what is written of nodes is then never older than what it is held against.
pub(super) async fn ask(client: &Client) -> Result<Seen> {
    let mut sum = Fingerprint::default();
    for of in metadata::<Namespace>(client).await.map_err(|error| explain(&error, "list namespaces"))? {
        of.add_to(&mut sum, "Namespace");
    }
    for of in
        metadata::<NetworkPolicy>(client).await.map_err(|error| explain(&error, "list networkpolicies"))?
    {
        of.add_to(&mut sum, "NetworkPolicy");
    }
    let configs =
        metadata::<NetworkConfig>(client).await.map_err(|error| missing(&error, "list networkconfigs"))?;
    for of in configs {
        of.add_to(&mut sum, "NetworkConfig");
    }
    let written = Api::<NodeEnforcement>::all(client.clone()).list(&ListParams::default()).await;
    let written = written.map_err(|error| missing(&error, "list nodeenforcements"))?;
    let mut written: BTreeMap<String, NodeEnforcementStatus> =
        written.items.into_iter().filter_map(|of| Some((of.name_any(), of.status?))).collect();
    let nodes = metadata::<Node>(client).await.map_err(|error| explain(&error, "list nodes"))?;
    let nodes = nodes.into_iter().map(|node| (node.name.clone(), written.remove(&node.name))).collect();
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let ours = ListParams::default().labels(&format!("{NAME} in (moat-agent, moat-controller)"));
    let pods = pods.list(&ours).await.map_err(|error| explain(&error, "list pods in moat-system"))?;
    Ok(Seen { applied: sum.to_string(), nodes, pods: pods.items.into_iter().map(own).collect() })
}

/// What of an object's metadata counts.
struct Version {
    namespace: String,
    name: String,
    version: String,
}

impl Version {
    fn add_to(&self, sum: &mut Fingerprint, kind: &str) {
        sum.add(kind, &self.namespace, &self.name, &self.version);
    }
}

/// All objects of a kind, without what is in them. Of the newest version: none is asked for.
async fn metadata<K>(client: &Client) -> Result<Vec<Version>, kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let api = Api::<K>::all(client.clone());
    let (mut all, mut token) = (Vec::new(), None);
    loop {
        let page = ListParams { continue_token: token, ..ListParams::default().limit(PAGE) };
        let list = api.list_metadata(&page).await?;
        all.extend(list.items.into_iter().map(|object| Version {
            namespace: object.metadata.namespace.unwrap_or_default(),
            name: object.metadata.name.unwrap_or_default(),
            version: object.metadata.resource_version.unwrap_or_default(),
        }));
        token = list.metadata.continue_.filter(|token| !token.is_empty());
        if token.is_none() {
            return Ok(all);
        }
    }
}

/// A kind that the cluster does not know is one that moat brings.
fn missing(error: &kube::Error, needs: &str) -> anyhow::Error {
    match error {
        kube::Error::Api(status) if status.code == 404 => {
            anyhow!(
                "moat is not installed in this cluster: it has no resources of moat.dev (docs/install.md)"
            )
        }
        _ => explain(error, needs),
    }
}

fn own(pod: Pod) -> Own {
    let agent = pod.labels().get(NAME).is_some_and(|name| name == "moat-agent");
    let name = pod.name_any();
    let node = pod.spec.and_then(|spec| spec.node_name).unwrap_or_default();
    let status = pod.status.unwrap_or_default();
    let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    let waiting = containers
        .filter_map(|c| c.state.as_ref()?.waiting.as_ref()?.reason.clone())
        .find(|why| why != "PodInitializing");
    Own { name, agent, node, ready, waiting }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn a_cluster_without_moat_is_said_to_have_none() {
        let says = |code: u16| {
            let status = Status { code, message: "no".into(), ..Status::success() };
            missing(&kube::Error::Api(status.boxed()), "list nodeenforcements").to_string()
        };
        assert!(says(404).contains("moat is not installed in this cluster"), "{}", says(404));
        assert!(says(403).contains("list nodeenforcements"), "{}", says(403));
    }
}
