//! The NetworkConfig, read as strictly as a manifest is.

use k8s_openapi::ClusterResourceScope;
use moat_manifests::StoredConfig;
use moat_policies::{NetworkConfig, Object};
use serde::Deserialize;
use serde::de::Deserializer;

use crate::PolicyNote;
use crate::held::Said;
use crate::record::{Kind, Meta, Record};

impl Kind for StoredConfig {
    const KIND: &'static str = "NetworkConfig";
    const GROUP: &'static str = "moat.dev";
    const VERSION: &'static str = "v1alpha1";
    const PLURAL: &'static str = "networkconfigs";
    const MAY_BE_UNKNOWN: bool = true;
    type Scope = ClusterResourceScope;

    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<(Meta, Self), D::Error> {
        let config = StoredConfig::deserialize(from)?;
        Ok((Meta::new(config.name.clone(), None, config.resource_version.clone()), config))
    }

    fn said(record: Record<Self>) -> Said {
        let version = record.version();
        let (config, refused) = match record.object.config {
            Ok(config) => (config, Vec::new()),
            Err(refused) => (NetworkConfig::default(), refused),
        };
        let note = PolicyNote { uid: None, version: version.clone(), refused, warnings: Vec::new() };
        let note = Some(note).filter(|note| !note.refused.is_empty());
        Said { version, object: Object::Config(config), note: note.map(Box::new) }
    }
}
