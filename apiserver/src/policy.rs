//! NetworkPolicies, read as strictly as manifests are.

use std::sync::Arc;

use k8s_openapi::NamespaceResourceScope;
use moat_manifests::{Finding, StoredPolicy};
use moat_policies::Object;
use serde::Deserialize;
use serde::de::Deserializer;

use crate::held::Said;
use crate::record::{Kind, Meta, Record};

/// What is wrong or odd about one version of a NetworkPolicy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyNote {
    /// `metadata.uid`.
    pub uid: Option<Arc<str>>,
    /// `metadata.resourceVersion`.
    pub version: Arc<str>,
    /// Why it is not compiled as it stands, and isolates the pods that it may select. Empty: it is.
    pub refused: Vec<Finding>,
    /// What is odd, and does not stand in the way.
    pub warnings: Vec<Finding>,
}

impl Kind for StoredPolicy {
    const KIND: &'static str = "NetworkPolicy";
    const GROUP: &'static str = "networking.k8s.io";
    const PLURAL: &'static str = "networkpolicies";
    type Scope = NamespaceResourceScope;

    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<(Meta, Self), D::Error> {
        let policy = StoredPolicy::deserialize(from)?;
        let (namespace, name) = (&policy.policy.name.namespace, &policy.policy.name.name);
        let version = policy.resource_version.as_deref().map(str::to_owned);
        Ok((Meta::new(name.to_string(), Some(namespace.to_string()), version), policy))
    }

    fn said(record: Record<Self>) -> Said {
        let version = record.version();
        let StoredPolicy { uid, policy, refused, warnings, resource_version: _ } = record.object;
        let note = PolicyNote { uid, version: version.clone(), refused, warnings };
        let note = Some(note).filter(|note| !(note.refused.is_empty() && note.warnings.is_empty()));
        Said { version, object: Object::Policy(policy), note: note.map(Box::new) }
    }
}
