//! What is in force on a node.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// What moat has in force on one node. Its name is the node's, and it goes with the Node. The controllers write it, seldom: never
/// because of a single pod.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[kube(
    group = "moat.dev",
    version = "v1alpha1",
    kind = "NodeEnforcement",
    plural = "nodeenforcements",
    shortname = "nenf",
    category = "moat",
    no_spec,
    status = "NodeEnforcementStatus",
    derive = "PartialEq",
    doc = "What moat has in force on one node. Its name is the node's, and it goes with the Node. The controllers write it, seldom: never because of a single pod.",
    printcolumn(
        name = "State",
        type_ = "string",
        json_path = ".status.state",
        description = "Whether what is applied is in force"
    ),
    printcolumn(
        name = "Revision",
        type_ = "string",
        json_path = ".status.revision",
        description = "What is in force"
    ),
    printcolumn(
        name = "Pods",
        type_ = "integer",
        json_path = ".status.pods",
        description = "Pods that policy is in force for"
    ),
    printcolumn(
        name = "Closed",
        type_ = "integer",
        json_path = ".status.closed",
        description = "Pods that are closed because their policy cannot be put in force"
    ),
    printcolumn(
        name = "Changed",
        type_ = "date",
        json_path = ".status.changedAt",
        description = "When this became so"
    ),
    printcolumn(
        name = "Agent",
        type_ = "string",
        json_path = ".status.agentVersion",
        priority = "1",
        description = "The agent's version"
    ),
    printcolumn(
        name = "Error",
        type_ = "string",
        json_path = ".status.lastError",
        priority = "1",
        description = "What keeps the newest from being in force"
    )
)]
pub struct NodeEnforcementSpec {}

/// What is in force on a node.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NodeEnforcementStatus {
    /// What is in force, for new connections and for those that were there: a name that every change of a NetworkPolicy, a
    /// Namespace or the NetworkConfig changes. The same on all nodes once all follow.
    #[serde(default)]
    pub revision: String,
    /// Whether what is applied is in force.
    #[serde(default)]
    pub state: NodeState,
    /// Pods of the node that policy is in force for. Brought up to date at most once a minute where nothing else changes.
    #[serde(default)]
    #[schemars(with = "i32", range(min = 0))]
    pub pods: u32,
    /// Pods of the node that no packet reaches, because their policy cannot be put in force.
    #[serde(default)]
    #[schemars(with = "i32", range(min = 0))]
    pub closed: u32,
    /// What keeps the newest from being in force, in words; empty where nothing does.
    #[serde(default)]
    pub last_error: String,
    /// The version of the agent.
    #[serde(default)]
    pub agent_version: String,
    /// The controller that wrote this.
    #[serde(default)]
    pub controller: String,
    /// When anything here last became otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "date_time")]
    pub changed_at: Option<Time>,
}

/// Whether what is applied is in force on a node. Current: the agent says that it is. Behind: for more than five seconds it has not
/// said so. Disconnected: no agent of the node is connected; what was in force last stays so.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodeState {
    /// The agent says that everything that it was told is in force.
    Current,
    /// For more than five seconds the agent has not said so.
    Behind,
    /// No agent of this node is connected: what was in force last stays so.
    #[default]
    Disconnected,
}

fn date_time(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "format": "date-time", "nullable": true })
}
