//! Reads Kubernetes manifests strictly, as the API server would, into the engine's objects.
//!
//! ```text
//!   files, folders, stdin ──read──▶ bytes ──▶ documents (YAML or JSON, each a tree that knows its lines)
//!        ──▶ objects: Namespace, Node, Pod, NetworkPolicy, NetworkConfig; workloads ──▶ the pods that they stand for
//! ```
//!
//! What the API server v1.36 would refuse on create is refused here, with file, document, line, field path and reason;
//! all of an input's errors are told (of very many the first ten thousand), and an input with an error gives no objects
//! at all. So:
//!
//! - In a NetworkPolicy and a NetworkConfig every field is read, and an unknown one is an error: a rule with `form` in place of `from`
//!   would admit everybody. Elsewhere an unknown field is a [`Warning`], and of Pods and workloads only the fields
//!   that moat reads are checked.
//! - CIDRs and addresses have one form only: no leading zeros, no bits beyond the prefix, no IPv4-mapped IPv6. (v1.36
//!   turns `StrictIPCIDRValidation` on for new objects; older servers took such values with a warning.)
//! - Kinds that decide no verdict are skipped and counted. A kind or version of networking.k8s.io or
//!   policy.networking.k8s.io that is not known, and another group's network policies, are errors: verdicts without
//!   them would be wrong. The same object twice is an error that names both places.
//! - A file without any text is an error (one with comments only is not): it is what a writer leaves that was stopped.
//! - A file may be 64 MiB long, a document 100 levels deep and hold 5 million values.
//!
//! [`decode()`] takes all files at once; a [`Collection`] takes them one by one and tells what each changes.
//!
//! [`Folders`] does that for folders, and watches them.
//!
//! A [`StoredPolicy`] comes from an API server, which has checked it already: it is never refused, but what cannot be read of it
//! closes the pods that it may select.
//!
//! What it does not do: keep objects. Decoding is pure; [`read`], [`walk`], [`read_file`] and [`Folders::watch`] are all the
//! input there is.

mod cidr;
mod cluster;
mod collection;
mod decode;
mod error;
mod fields;
mod fingerprint;
mod folders;
mod kinds;
mod meta;
mod names;
mod network_config;
mod pod;
mod policy;
mod source;
mod stack;
mod status;
mod stored;
mod stored_config;
mod text;
mod tree;
mod workload;

use std::collections::BTreeMap;
use std::path::PathBuf;

use moat_policies::{NamespacedName, Object, Objects};

pub use collection::{Changes, Collection};
pub use decode::decode;
pub use error::{Error, Errors, Place, Warning};
pub use fingerprint::fingerprint;
pub use folders::{Folders, Reading};
pub use source::{Part, Position, Source, Walk, is_hidden, is_manifest, read, read_file, walk};
pub use stack::on_a_deep_stack;
pub use status::{PodStatus, decode_pod_status, load_pod_status};
pub use stored::{Finding, StoredPolicy};
pub use stored_config::StoredConfig;
pub use workload::{Workload, WorkloadKind};

/// What an input holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifests {
    /// The objects in the order of the input, then the pods that workloads stand for.
    pub objects: Vec<Object>,
    /// The workloads in the order of the input, each with its pods.
    pub workloads: Vec<Workload>,
    /// How many objects of each kind decide no verdict and were passed over.
    pub skipped: BTreeMap<String, usize>,
    /// What is odd, but does not stand in the way.
    pub warnings: Vec<Warning>,
}

impl Manifests {
    /// The objects as the engine's store.
    pub fn to_objects(&self) -> Objects {
        self.objects.iter().cloned().collect()
    }

    /// A workload by kind and name.
    pub fn workload(&self, kind: WorkloadKind, name: &NamespacedName) -> Option<&Workload> {
        self.workloads.iter().find(|w| w.kind == kind && w.name == *name)
    }
}

/// Reads and decodes manifests: each path is a file, a folder, or `-` for standard input, as [`read`] has it.
pub fn load(paths: &[PathBuf]) -> Result<Manifests, Errors> {
    let sources = read(paths)?;
    decode(sources.iter().map(|s| (&*s.file, &s.bytes[..])))
}
