//! One object out of the API server's JSON: what is taken of it, and the metadata by which kube tells objects apart.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use moat_policies::Labels;
use serde::Deserialize;
use serde::de::Deserializer;

use crate::held::Said;

/// A kind of objects that decide verdicts.
pub trait Kind: Clone + Debug + Send + Sync + 'static {
    /// `kind`.
    const KIND: &'static str;
    /// The API group; empty: the core.
    const GROUP: &'static str = "";
    /// The group's version.
    const VERSION: &'static str = "v1";
    /// Whether an API server may never have heard of it. Then there is none.
    const MAY_BE_UNKNOWN: bool = false;
    /// The kind's name in paths.
    const PLURAL: &'static str;
    /// Whether such objects are in a namespace.
    type Scope;

    /// Reads one. What a field says that nobody could have written there is passed over.
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<(Meta, Self), D::Error>;

    /// What it is to the engine.
    fn said(record: Record<Self>) -> Said;
}

/// An object of a kind.
#[derive(Clone, Debug)]
pub struct Record<K> {
    /// Name, namespace and version only.
    meta: ObjectMeta,
    /// What is taken of the object.
    pub(crate) object: K,
    /// Kind and name of the owner that controls it.
    pub(crate) owner: Option<(Arc<str>, Arc<str>)>,
}

impl<K> Record<K> {
    /// `metadata.resourceVersion`.
    pub(crate) fn version(&self) -> Arc<str> {
        self.meta.resource_version.as_deref().unwrap_or_default().into()
    }
}

impl<'de, K: Kind> Deserialize<'de> for Record<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (meta, object) = K::read(deserializer)?;
        let owner = meta.controller();
        let meta = ObjectMeta {
            name: Some(meta.name),
            namespace: meta.namespace,
            resource_version: meta.resource_version,
            ..ObjectMeta::default()
        };
        Ok(Self { meta, object, owner })
    }
}

impl<K: Kind> Resource for Record<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        K::KIND.into()
    }

    fn group((): &()) -> Cow<'_, str> {
        K::GROUP.into()
    }

    fn version((): &()) -> Cow<'_, str> {
        K::VERSION.into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::PLURAL.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

/// `metadata`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Meta {
    pub(crate) name: String,
    pub(crate) namespace: Option<String>,
    pub(crate) uid: Option<Box<str>>,
    pub(crate) resource_version: Option<String>,
    labels: Option<BTreeMap<String, Option<String>>>,
    owner_references: Option<Vec<Owner>>,
}

#[derive(Debug, Deserialize)]
struct Owner {
    kind: Box<str>,
    name: Box<str>,
    controller: Option<bool>,
}

impl Meta {
    /// Of an object of which somebody else has read the rest.
    pub(crate) fn new(name: String, namespace: Option<String>, resource_version: Option<String>) -> Self {
        Self { name, namespace, resource_version, uid: None, labels: None, owner_references: None }
    }

    /// `metadata.labels`.
    pub(crate) fn labels(&mut self) -> Labels {
        let labels = self.labels.take().into_iter().flatten();
        labels.map(|(key, value)| (key.into(), value.unwrap_or_default().into())).collect()
    }

    fn controller(&self) -> Option<(Arc<str>, Arc<str>)> {
        let owner = self.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))?;
        Some((owner.kind.clone().into(), owner.name.clone().into()))
    }
}
