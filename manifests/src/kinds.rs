//! Which kinds moat reads, which it has no use for, and which it must not pass over in silence.

use crate::workload::WorkloadKind;

/// What to do with an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Namespace,
    Node,
    Pod,
    NetworkPolicy,
    NetworkConfig,
    Workload(WorkloadKind),
    /// It decides no verdict.
    Skip,
}

/// The kinds of the groups that moat reads from: `(apiVersion, kinds)`.
const SERVED: &[(&str, &[&str])] = &[
    (
        "v1",
        &[
            "Binding",
            "ComponentStatus",
            "ConfigMap",
            "Endpoints",
            "Event",
            "LimitRange",
            "Namespace",
            "Node",
            "PersistentVolume",
            "PersistentVolumeClaim",
            "Pod",
            "PodTemplate",
            "ReplicationController",
            "ResourceQuota",
            "Secret",
            "Service",
            "ServiceAccount",
        ],
    ),
    ("apps/v1", &["ControllerRevision", "DaemonSet", "Deployment", "ReplicaSet", "StatefulSet"]),
    ("batch/v1", &["CronJob", "Job"]),
    ("networking.k8s.io/v1", &["Ingress", "IngressClass", "IPAddress", "NetworkPolicy", "ServiceCIDR"]),
    ("networking.k8s.io/v1beta1", &["IPAddress", "ServiceCIDR"]),
    ("moat.dev/v1alpha1", &["NetworkConfig", "NodeEnforcement"]),
];

/// What an object of this `apiVersion` and `kind` is to moat; or which of the two fields is wrong, and why.
pub(crate) fn use_of(api_version: &str, kind: &str) -> Result<Use, (&'static str, String)> {
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    if group == "policy.networking.k8s.io" {
        let reason = format!(
            "{kind} of {api_version} is a policy that this moat does not know; without it verdicts would be wrong"
        );
        return Err(("kind", reason));
    }
    if is_served(api_version, kind) {
        return Ok(match kind {
            "Namespace" => Use::Namespace,
            "Node" => Use::Node,
            "Pod" => Use::Pod,
            "NetworkPolicy" => Use::NetworkPolicy,
            "NetworkConfig" => Use::NetworkConfig,
            _ => WorkloadKind::ALL.into_iter().find(|k| k.as_str() == kind).map_or(Use::Skip, Use::Workload),
        });
    }
    let ours = matches!(group, "" | "apps" | "batch" | "networking.k8s.io" | "extensions" | "moat.dev");
    if ours && let Some((right, _)) = SERVED.iter().find(|(_, kinds)| kinds.contains(&kind)) {
        return Err(("apiVersion", format!("{api_version:?} has no {kind}; it is in {right}")));
    }
    if ours {
        return Err(("kind", format!("{api_version} has no {kind}")));
    }
    if kind.ends_with("NetworkPolicy") || kind == "EgressFirewall" {
        let reason = format!(
            "{kind} of {api_version} is a policy that moat does not enforce; without it verdicts would be wrong"
        );
        return Err(("kind", reason));
    }
    Ok(Use::Skip)
}

/// Whether the kind that is this one and `List` is a list of objects also where it holds none: `List` itself, and those of
/// the kinds that are served.
pub(crate) fn is_list_of(api_version: &str, kind: &str) -> bool {
    (api_version == "v1" && kind.is_empty()) || is_served(api_version, kind)
}

fn is_served(api_version: &str, kind: &str) -> bool {
    SERVED.iter().any(|(version, kinds)| *version == api_version && kinds.contains(&kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds() {
        for (api_version, kind, expected) in [
            ("v1", "Pod", Ok(Use::Pod)),
            ("v1", "Namespace", Ok(Use::Namespace)),
            ("v1", "Service", Ok(Use::Skip)),
            ("v1", "Podd", Err("kind")),
            ("v2", "Pod", Err("apiVersion")),
            ("", "Pod", Err("apiVersion")),
            ("apps/v1", "Deployment", Ok(Use::Workload(WorkloadKind::Deployment))),
            ("apps/v1", "Pod", Err("apiVersion")),
            ("extensions/v1beta1", "Deployment", Err("apiVersion")),
            ("batch/v1", "CronJob", Ok(Use::Workload(WorkloadKind::CronJob))),
            ("batch/v1beta1", "CronJob", Err("apiVersion")),
            ("networking.k8s.io/v1", "NetworkPolicy", Ok(Use::NetworkPolicy)),
            ("networking.k8s.io/v1", "Ingress", Ok(Use::Skip)),
            ("networking.k8s.io/v1", "NetworkPolicies", Err("kind")),
            ("networking.k8s.io/v2", "NetworkPolicy", Err("apiVersion")),
            ("networking.k8s.io/v1beta1", "NetworkPolicy", Err("apiVersion")),
            ("networking.k8s.io/v1alpha9", "Mesh", Err("kind")),
            ("extensions/v1beta1", "NetworkPolicy", Err("apiVersion")),
            ("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy", Err("kind")),
            ("policy.networking.k8s.io/v9", "Whatever", Err("kind")),
            ("crd.projectcalico.org/v1", "NetworkPolicy", Err("kind")),
            ("crd.projectcalico.org/v1", "GlobalNetworkPolicy", Err("kind")),
            ("cilium.io/v2", "CiliumNetworkPolicy", Err("kind")),
            ("cilium.io/v2", "CiliumClusterwideNetworkPolicy", Err("kind")),
            ("crd.antrea.io/v1beta1", "ClusterNetworkPolicy", Err("kind")),
            ("k8s.ovn.org/v1", "EgressFirewall", Err("kind")),
            ("policy/v1", "PodDisruptionBudget", Ok(Use::Skip)),
            ("moat.dev/v1alpha1", "NetworkConfig", Ok(Use::NetworkConfig)),
            ("moat.dev/v1alpha1", "NodeEnforcement", Ok(Use::Skip)),
            ("moat.dev/v1", "NetworkConfig", Err("apiVersion")),
            ("moat.dev/v1alpha1", "NetworkConf", Err("kind")),
            ("example.com/v1", "Node", Ok(Use::Skip)),
            ("rbac.authorization.k8s.io/v1", "Role", Ok(Use::Skip)),
        ] {
            let found = use_of(api_version, kind).map_err(|(field, _)| field);
            assert_eq!(found, expected, "{api_version} {kind}");
        }
    }
}
