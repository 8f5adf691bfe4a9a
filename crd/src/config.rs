//! What the network is to be like.

use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// How moat's network is to be on all nodes. There is one, named "default"; what it does not say is as the agents' flags say. A change
/// takes effect at once, without a restart.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[kube(
    group = "moat.dev",
    version = "v1alpha1",
    kind = "NetworkConfig",
    plural = "networkconfigs",
    shortname = "netconf",
    category = "moat",
    derive = "PartialEq",
    doc = "How moat's network is to be on all nodes. There is one, named \"default\"; what it does not say is as the agents' flags say. A change takes effect at once, without a restart.",
    validation = Rule::new("self.metadata.name == 'default'").message("there is one NetworkConfig, and its name is default"),
    printcolumn(name = "Routes", type_ = "string", json_path = ".spec.routeMode", description = "How packets get to the pods of other nodes"),
    printcolumn(name = "MTU", type_ = "integer", json_path = ".spec.mtu", description = "Of the pods' links, in bytes"),
    printcolumn(name = "Masquerade", type_ = "boolean", json_path = ".spec.masquerade.enabled", description = "Whether what leaves the cluster leaves in the node's name"),
    printcolumn(name = "Deny", type_ = "string", json_path = ".spec.denyAction", description = "What becomes of a packet that no policy allows"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct NetworkConfigSpec {
    /// The prefixes that all pods of the cluster have their addresses from. Traffic between them is never masqueraded, also before
    /// the node of an address is known. Missing: the podCIDRs of the Node objects. Where a node's pods get their addresses
    /// from is always its Node's podCIDRs.
    #[serde(default, rename = "clusterCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "cidrs")]
    pub cluster_cidrs: Vec<String>,
    /// How packets get to the pods of other nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route_mode: Option<RouteMode>,
    /// MTU of the pods' links, in bytes. Links of pods that run are changed as well. Missing: that of the node's link with the
    /// node's address, less what the tunnel needs of it while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 1280, max = 65535))]
    pub mtu: Option<u32>,
    /// In whose name pods' packets leave the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub masquerade: Option<Masquerade>,
    /// What becomes of a packet that no policy allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deny_action: Option<DenyAction>,
    /// How many dropped packets the log has a line for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop_log: Option<DropLog>,
}

/// How packets get to the pods of other nodes. Auto: by routes to nodes on a shared link, through a VXLAN tunnel to the others.
/// Routed: by routes alone; nodes that are not on a shared link are not reached. VXLAN: always through the tunnel.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteMode {
    /// By routes to nodes on a shared link, through a VXLAN tunnel to the others.
    Auto,
    /// By routes alone.
    Routed,
    /// Through a VXLAN tunnel.
    #[serde(rename = "VXLAN")]
    Vxlan,
}

/// In whose name pods' packets leave the cluster.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Masquerade {
    /// Whether what goes to no node and no pod is sent in the node's name. False: with the pods' own addresses, for which the
    /// network outside must know the way back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Prefixes outside that pods' packets reach with the pods' own addresses all the same.
    #[serde(default, rename = "exceptCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "cidrs")]
    pub except_cidrs: Vec<String>,
}

/// What becomes of a packet that no policy allows. Drop: nothing; who sent it waits. Reject: who sent it is told at once, by a TCP
/// reset or an ICMP "administratively prohibited", if it has an address of a pod or node of the cluster, of clusterCIDRs or of
/// masquerade.exceptCIDRs; nobody else ever is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum DenyAction {
    /// Nothing: who sent it waits.
    Drop,
    /// Who sent it is told at once, if it is the cluster's own.
    Reject,
}

/// How many dropped packets the log has a line for. All are counted.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq, Eq)]
#[x_kube(validation = Rule::new("!has(self.burst) || has(self.ratePerSecond)").message("burst needs ratePerSecond"))]
#[serde(rename_all = "camelCase")]
pub struct DropLog {
    /// How many packets a second are logged, at most, for each pair of interfaces and each reason. 0: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 0, max = 1000))]
    pub rate_per_second: Option<u32>,
    /// How many may come at once before that limit counts. Missing: twice ratePerSecond.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 1, max = 10000))]
    pub burst: Option<u32>,
}

/// Prefixes without bits behind their length. The API server bounds what checking them costs by their number and length.
fn cidrs(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 64,
        "x-kubernetes-list-type": "set",
        "items": {
            "type": "string",
            "maxLength": 43,
            "x-kubernetes-validations": [{
                "rule": "isCIDR(self) && cidr(self) == cidr(self).masked()",
                "message": "must be a prefix like 10.0.0.0/8 or fd00::/8, with no bits set behind its length",
            }],
        },
    })
}
