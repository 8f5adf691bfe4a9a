//! The words for one end of a question: a pod, a workload, an address.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use moat_manifests::{Manifests, WorkloadKind};
use moat_policies::{Endpoint, NamespacedName, Objects};

/// How many names that come near a wrong one are told.
const NEAR: usize = 3;

/// What a word like `shop/web` or `deploy/api` stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    /// As answers print it: `shop/web`, `Deployment shop/api`, an address.
    pub shown: String,
    /// The pods, more than one for a workload; or an address.
    pub ends: Vec<Endpoint>,
}

/// Finds what a word stands for. `namespace` goes with the words that hold none.
pub(crate) fn find(word: &str, namespace: &str, manifests: &Manifests, objects: &Objects) -> Result<Named> {
    if let Ok(address) = word.parse::<IpAddr>() {
        // Packets never carry an IPv4-mapped IPv6 address: it is another way to write the IPv4 one.
        let address = address.to_canonical();
        return Ok(Named { shown: address.to_string(), ends: vec![Endpoint::Address(address)] });
    }
    let parts: Vec<&str> = word.split('/').collect();
    ensure!(
        !parts.iter().any(|part| part.is_empty()),
        "{word:?} names nobody; write NAMESPACE/POD, pod/NAME, deploy/NAME or an IP address"
    );
    let pod = |namespace: &str, name: &str| find_pod(namespace, name, objects);
    match parts[..] {
        [name] => pod(namespace, name),
        [kind, name] if is_kind(kind) => find_kind(kind, namespace, name, manifests, objects)
            // A namespace may have the name of a kind.
            .or_else(|error| pod(kind, name).map_err(|_| error)),
        [namespace, name] => pod(namespace, name),
        [namespace, kind, name] if is_kind(kind) => find_kind(kind, namespace, name, manifests, objects),
        [_, kind, _] => bail!(
            "{word:?}: {kind} is no kind that has pods; it is one of pod, deploy, sts, ds, rs, job, cronjob"
        ),
        _ => bail!("{word:?} has too many parts; write NAMESPACE/POD, or NAMESPACE/KIND/NAME"),
    }
}

fn is_pod(kind: &str) -> bool {
    matches!(kind, "pod" | "pods" | "po")
}

fn is_kind(word: &str) -> bool {
    is_pod(word) || WorkloadKind::parse(word).is_some()
}

fn find_kind(
    kind: &str,
    namespace: &str,
    name: &str,
    manifests: &Manifests,
    objects: &Objects,
) -> Result<Named> {
    let Some(kind) = WorkloadKind::parse(kind) else {
        return find_pod(namespace, name, objects);
    };
    let full_name = NamespacedName::new(namespace, name);
    let Some(workload) = manifests.workload(kind, &full_name) else {
        let there = manifests.workloads.iter().filter(|w| w.kind == kind).map(|w| &w.name);
        bail!("no {kind} {full_name}{}", near(&full_name, there));
    };
    let ends: Vec<Endpoint> = workload
        .pods
        .iter()
        .filter(|pod| objects.pods().contains(pod))
        .map(|pod| Endpoint::Pod(pod.clone()))
        .collect();
    ensure!(!ends.is_empty(), "{kind} {full_name} has no pods: ask about one that has replicas");
    Ok(Named { shown: format!("{kind} {full_name}"), ends })
}

fn find_pod(namespace: &str, name: &str, objects: &Objects) -> Result<Named> {
    let full_name = NamespacedName::new(namespace, name);
    match objects.pods().contains(&full_name) {
        true => Ok(Named { shown: full_name.to_string(), ends: vec![Endpoint::Pod(full_name)] }),
        false => {
            let there: Vec<NamespacedName> = objects.pods().names().collect();
            bail!("no pod {full_name}{}", near(&full_name, there.iter()))
        }
    }
}

/// Names that somebody may have meant: one that holds this name or is part of it; else those of the namespace; else any.
fn near<'a>(wanted: &NamespacedName, there: impl Iterator<Item = &'a NamespacedName>) -> String {
    let name: &Arc<str> = &wanted.name;
    let mut all: Vec<&NamespacedName> = there.collect();
    if all.is_empty() {
        return "; there are none at all".into();
    }
    let likely = |other: &&&NamespacedName| other.name.contains(&**name) || name.contains(&*other.name);
    let mut close: Vec<&NamespacedName> = all.iter().filter(likely).copied().collect();
    if close.is_empty() {
        let neighbour = |other: &&NamespacedName| other.namespace == wanted.namespace;
        if all.iter().any(neighbour) {
            all.retain(neighbour);
        }
        close = all;
    }
    let more = if close.len() > NEAR { ", ..." } else { "" };
    let close: Vec<String> = close.iter().take(NEAR).map(ToString::to_string).collect();
    format!("; there is {}{more}", close.join(", "))
}
