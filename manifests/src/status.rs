//! Pods' states, apart from what describes the pods: where each runs, its addresses, whether it has finished.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use moat_policies::{NamespacedName, Object, Pod};

use crate::error::{Error, Errors};
use crate::fields::{Context, Path, shared};
use crate::meta::{Naming, metadata};
use crate::names::dns_subdomain;
use crate::pod::status;
use crate::stack::on_a_deep_stack;
use crate::text::{Document, documents};
use crate::tree::Node;
use crate::{Manifests, read};

/// Where a pod runs and what became of it: a `kind: Pod` document with `metadata`, `spec.nodeName` and `status` only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodStatus {
    /// `metadata.namespace` and `metadata.name`.
    pub name: NamespacedName,
    /// `spec.nodeName`.
    pub node: Option<Arc<str>>,
    /// `status.podIPs`; of a hostNetwork pod without them, `status.hostIPs`.
    pub addresses: Vec<IpAddr>,
    /// `status.phase` is Succeeded or Failed.
    pub finished: bool,
    /// `metadata.uid`.
    pub uid: Option<Arc<str>>,
}

/// Reads pods' states from files, folders or standard input.
pub fn load_pod_status(paths: &[PathBuf]) -> Result<Vec<PodStatus>, Errors> {
    let sources = read(paths)?;
    decode_pod_status(sources.iter().map(|s| (&*s.file, &s.bytes[..])))
}

/// Decodes pods' states that somebody else has read: names and bytes.
pub fn decode_pod_status<'s>(
    files: impl IntoIterator<Item = (&'s str, &'s [u8])>,
) -> Result<Vec<PodStatus>, Errors> {
    let files: Vec<(&str, &[u8])> = files.into_iter().collect();
    on_a_deep_stack(|| {
        let (mut found, mut errors) = (Vec::new(), Vec::new());
        for (file, bytes) in files {
            decode_states(&Arc::from(file), bytes, &mut found, &mut errors);
        }
        Errors::or(errors, found)
    })
}

/// Decodes one file of pods' states. Needs a deep stack.
pub(crate) fn decode_states(
    file: &Arc<str>,
    bytes: &[u8],
    found: &mut Vec<PodStatus>,
    errors: &mut Vec<Error>,
) {
    let mut warnings = Vec::new();
    for document in documents(file, bytes) {
        match document {
            Ok(Document { place, root }) => {
                let (strict, stored, warnings) = (false, false, &mut warnings);
                let mut c = Context { place: &place, errors, warnings, strict, stored };
                found.extend(pod_status(&mut c, &root));
            }
            Err(error) => errors.push(error),
        }
    }
}

fn pod_status(c: &mut Context<'_>, root: &Node) -> Option<PodStatus> {
    let path = Path::ROOT;
    let is = |field: &str, value: &str| root.get(field).and_then(Node::text) == Some(value);
    if !is("kind", "Pod") || !is("apiVersion", "v1") {
        c.refuse(root, &path.field("kind"), "only Pods of v1 have a state that is read here");
        return None;
    }
    let meta = metadata(c, root, Naming { namespaced: true, rule: dns_subdomain });
    let spec = root.get("spec");
    let node =
        spec.and_then(|spec| c.string(spec, &path.field("spec"), "nodeName")).filter(|n| !n.is_empty());
    let status = status(c, root);
    let (meta, status) = (meta?, status?);
    let addresses = if status.addresses.is_empty()
        && spec.is_some_and(|s| c.boolean(s, &path.field("spec"), "hostNetwork"))
    {
        status.host_addresses
    } else {
        status.addresses
    };
    Some(PodStatus {
        name: meta.namespaced_name(),
        node: node.map(shared),
        addresses,
        finished: status.finished,
        uid: meta.uid,
    })
}

impl Manifests {
    /// Puts pods' states over the pods, by name. A state of a pod that is not there is passed over; what a state does
    /// not say (no node, no addresses) stays as the manifest has it.
    pub fn overlay(&mut self, states: &[PodStatus]) {
        let states: std::collections::HashMap<&NamespacedName, &PodStatus> =
            states.iter().map(|s| (&s.name, s)).collect();
        for object in &mut self.objects {
            let Object::Pod(pod) = object else { continue };
            if let Some(state) = states.get(&pod.name) {
                state.put_over(pod);
            }
        }
    }
}

impl PodStatus {
    /// Puts this state over the pod of its name. What it does not say (no node, no addresses) stays as it is.
    pub fn put_over(&self, pod: &mut Pod) {
        if self.node.is_some() {
            pod.node.clone_from(&self.node);
        }
        if !self.addresses.is_empty() {
            pod.addresses.clone_from(&self.addresses);
        }
        pod.finished |= self.finished;
        if self.uid.is_some() {
            pod.uid.clone_from(&self.uid);
        }
    }
}
