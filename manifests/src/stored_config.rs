//! A NetworkConfig as an API server has stored it.
//!
//! The server has checked it by the type's definition; an older definition than ours may have let something through.

use moat_policies::NetworkConfig;
use serde::de::{Deserialize, Deserializer, Error as _};

use crate::network_config::network_config;
use crate::stored::{Finding, findings};
use crate::tree::{Json, Node};

/// A NetworkConfig out of an API server: read from its JSON, with whatever it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredConfig {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.resourceVersion`.
    pub resource_version: Option<String>,
    /// What it says; or what of it cannot be.
    pub config: Result<NetworkConfig, Vec<Finding>>,
}

/// Fails only where it has no name.
impl<'de> Deserialize<'de> for StoredConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Json(object) = Json::deserialize(deserializer)?;
        let text = |field| object.get("metadata").and_then(|meta| meta.get(field)).and_then(Node::text);
        let name = text("name").ok_or_else(|| D::Error::custom("a NetworkConfig without a name"))?.to_owned();
        let resource_version = text("resourceVersion").map(str::to_owned);
        let (config, refused, _) = findings(|c| network_config(c, &object));
        Ok(Self { name, resource_version, config: config.ok_or(refused) })
    }
}
