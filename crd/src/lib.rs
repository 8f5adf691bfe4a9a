//! moat's own Kubernetes types, group `moat.dev`.
//!
//! ```text
//!   people ── NetworkConfig "default" ──▶ controllers ──▶ agents        what the network is to be like
//!   people ◀── NodeEnforcement, a node ── controllers ◀── agents        what is in force, and where not
//! ```
//!
//! Both are of the cluster, not of a namespace. Their definitions are in `crd/yaml/`, made from the structs here by
//! `cargo xtask crds`; what an object may say is checked by the API server, with the rules that stand beside the fields. The
//! doc comments of the fields are what `kubectl explain` prints.
//!
//! [`Fingerprint`] names a state of the objects that people apply, so that what is applied and what is in force can be
//! compared. This crate knows nothing of the engine, and asks nobody for anything.

// The derived schema has a copy of each struct inside a function; and two columns may be of one type.
#[allow(unreachable_pub, clippy::duplicated_attributes)]
mod config;
#[allow(unreachable_pub, clippy::duplicated_attributes)]
mod enforcement;
mod fingerprint;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;

pub use config::{DenyAction, DropLog, Masquerade, NetworkConfig, NetworkConfigSpec, RouteMode};
pub use enforcement::{NodeEnforcement, NodeEnforcementSpec, NodeEnforcementStatus, NodeState};
pub use fingerprint::Fingerprint;

/// The name of the only [`NetworkConfig`] of a cluster.
pub const SINGLETON: &str = "default";

/// The definitions of all types here.
pub fn definitions() -> [CustomResourceDefinition; 2] {
    [NetworkConfig::crd(), NodeEnforcement::crd()]
}

/// The definitions as YAML, each with the name of its file.
pub fn yaml() -> Result<Vec<(String, String)>, serde_saphyr::ser::Error> {
    let file = |definition: &CustomResourceDefinition| {
        let name = format!("{}.yaml", definition.spec.names.plural);
        let text = serde_saphyr::to_string(definition)?;
        Ok((name, format!("# Made by `cargo xtask crds` from crd/src: change it there.\n{text}")))
    };
    definitions().iter().map(file).collect()
}
