//! A NetworkPolicy as an API server has stored it.
//!
//! That server has checked it already, by its own rules: they may be older than ours, so that it took what is refused today, or
//! newer, so that it has fields that mean something we do not know. What older servers took is compiled as it was meant, with a
//! warning. Of what is not known here nobody can say whom it lets in: such a policy lets nobody in, and the pods that it may
//! select are isolated by it.

use std::fmt;
use std::sync::Arc;

use moat_policies::{NamespacedName, NetworkPolicy};
use serde::de::{Deserialize, Deserializer, Error as _};

use crate::error::{Error, Place, Warning};
use crate::fields::{Context, Path, shared};
use crate::policy::{Spec, spec};
use crate::tree::{Json, Node};

/// A NetworkPolicy out of an API server: read from its JSON, with whatever it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredPolicy {
    /// `metadata.uid`.
    pub uid: Option<Arc<str>>,
    /// `metadata.resourceVersion`.
    pub resource_version: Option<Arc<str>>,
    /// What is compiled. Where something is refused, a policy that isolates whomever it may select, and lets nobody talk to them.
    pub policy: NetworkPolicy,
    /// Why it is not what it says. Empty, where it is.
    pub refused: Vec<Finding>,
    /// What is odd, and does not stand in the way.
    pub warnings: Vec<Finding>,
}

/// Something about one field.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Finding {
    /// The field's path, as in `spec.ingress[0].from[1].ipBlock.cidr`.
    pub field: String,
    /// What is wrong or odd with it.
    pub reason: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.reason)
    }
}

/// Fails only where it has no name.
impl<'de> Deserialize<'de> for StoredPolicy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Json(object) = Json::deserialize(deserializer)?;
        Self::read(&object).ok_or_else(|| D::Error::custom("a NetworkPolicy without namespace or name"))
    }
}

impl StoredPolicy {
    fn read(object: &Node) -> Option<Self> {
        let meta = object.get("metadata")?;
        let text = |field| meta.get(field).and_then(Node::text).filter(|text| !text.is_empty());
        let name = NamespacedName::new(text("namespace")?, text("name")?);
        let (spec, refused, warnings) = findings(|c| {
            // Nothing about traffic stands in `metadata` and `status`, whatever later versions put there.
            c.object(object, &Path::ROOT, &["apiVersion", "kind", "metadata", "spec", "status"]);
            spec(c, object)
        });
        let policy = match spec {
            Some(spec) if refused.is_empty() => spec.of(name),
            spec => spec.unwrap_or_else(Spec::everything).closed(name),
        };
        Some(Self {
            uid: text("uid").map(shared),
            resource_version: text("resourceVersion").map(shared),
            policy,
            refused,
            warnings,
        })
    }
}

/// Reads fields of an object that a server has stored: what they say, what of them is refused, and what is odd.
pub(crate) fn findings<T>(read: impl FnOnce(&mut Context<'_>) -> T) -> (T, Vec<Finding>, Vec<Finding>) {
    let place = Place { file: shared("API server"), document: 1, line: None };
    let (mut errors, mut warnings) = (Vec::new(), Vec::new());
    let said = read(&mut Context {
        place: &place,
        errors: &mut errors,
        warnings: &mut warnings,
        strict: true,
        stored: true,
    });
    let refused = errors.into_iter().map(Finding::from).collect();
    (said, refused, warnings.into_iter().map(Finding::from).collect())
}

impl From<Error> for Finding {
    /// Errors of fields are all that there are in an object already; whatever else there is counts all the same.
    fn from(error: Error) -> Self {
        match error {
            Error::Field { field, reason, .. } => Self { field, reason },
            other => Self { field: String::new(), reason: other.to_string() },
        }
    }
}

impl From<Warning> for Finding {
    fn from(Warning { field, reason, .. }: Warning) -> Self {
        Self { field, reason }
    }
}
