//! The folder that a run changes: a copy of the user's, one object a file, on nodes that have no address to spare.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;
use moat_policies::{Labels, Namespace, NamespacedName, Node, Object, Objects, Pod};
use serde_json::Value;

use crate::error::{LabError, Trying as _};
use crate::folder;
use crate::options::Options;
use crate::policy_text;
use crate::state::{StateDir, write_at_once};
use crate::topology::{self, Origin, Placed};
use crate::world::WORLD_FILE;
use crate::write;

/// The namespace of the pods that take up the addresses that are left: whoever comes gets the address of who went.
pub(super) const FILLERS: &str = "chaos-fillers";

/// Makes the folder.
pub(crate) fn prepare(options: &Options, state: &StateDir) -> Result<PathBuf, LabError> {
    let target = state.join("chaos");
    fs::create_dir_all(&target).trying(|| format!("cannot make {}", target.display()))?;
    let own = folder::load(std::slice::from_ref(&options.folder))?;
    let (nodes, origin) = topology::nodes(&own.objects, options.nodes, options.families)?;
    put(&target, "nodes.json", &write::list(nodes.iter().map(write::node).collect()))?;
    // A DaemonSet stands for one pod a node.
    let loaded = match origin {
        Origin::Lab => folder::load(&[options.folder.clone(), target.clone()])?,
        Origin::Manifests => own,
    };
    let placed = topology::place(&loaded.objects, &nodes, &Default::default())?;
    let (nodes, fillers) = without_spare(&nodes, &placed);
    let mut objects: Objects = loaded.objects.into_iter().filter(|o| !matches!(o, Object::Node(_))).collect();
    let filler_space = Namespace { name: FILLERS.into(), labels: Labels::new() };
    objects.insert(Object::Namespace(filler_space));
    for pod in placed.into_iter().map(|p| p.pod).chain(fillers) {
        put_pod(&target, &pod)?;
    }
    for policy in objects.policies().values() {
        put(&target, &policy_file(&policy.name), &policy_text::policy(policy))?;
    }
    let namespaces = objects.namespaces().values().map(write::namespace).collect();
    put(&target, "namespaces.json", &write::list(namespaces))?;
    put(&target, "nodes.json", &write::list(nodes.iter().map(write::node).collect()))?;
    let world = options.folder.join(WORLD_FILE);
    if world.exists() {
        fs::copy(&world, target.join(WORLD_FILE)).trying(|| format!("cannot copy {}", world.display()))?;
    }
    Ok(target)
}

/// Writes a pod's manifest.
pub(super) fn put_pod(folder: &Path, pod: &Pod) -> Result<(), LabError> {
    put(folder, &pod_file(&pod.name), &write::pod(pod))
}

/// The file of a policy.
pub(super) fn policy_file(name: &NamespacedName) -> String {
    format!("policy_{}_{}.json", name.namespace, name.name)
}

/// The file of a pod.
pub(super) fn pod_file(name: &NamespacedName) -> String {
    format!("pod_{}_{}.json", name.namespace, name.name)
}

/// Writes a file, at once.
pub(super) fn put(folder: &Path, name: &str, document: &Value) -> Result<(), LabError> {
    let file = folder.join(name);
    write_at_once(&file, document.to_string().as_bytes())
        .trying(|| format!("cannot write {}", file.display()))
}

/// The nodes with podCIDRs that are just large enough, and pods that hold what is left of them.
fn without_spare(nodes: &[Node], placed: &[Placed]) -> (Vec<Node>, Vec<Pod>) {
    let mut fillers = Vec::new();
    let nodes = nodes.iter().map(|node| {
        let pods = placed.iter().filter(|p| p.node == node.name && !p.pod.host_network).count();
        // Without the first and the last address.
        let bits = (2..).find(|bits| (1usize << bits) - 2 >= pods).unwrap_or(2);
        let narrowed: Vec<IpNet> = node.pod_cidrs.iter().map(|cidr| narrow(*cidr, bits)).collect();
        if narrowed.iter().all(|cidr| u32::from(cidr.max_prefix_len() - cidr.prefix_len()) == bits) {
            fillers.extend((pods..(1 << bits) - 2).map(|number| filler(&node.name, number)));
        }
        Node { pod_cidrs: narrowed, ..node.clone() }
    });
    (nodes.collect(), fillers)
}

fn narrow(cidr: IpNet, bits: u32) -> IpNet {
    let network: IpAddr = cidr.network();
    // At most 128.
    let length = cidr.max_prefix_len().saturating_sub(bits as u8).max(cidr.prefix_len());
    IpNet::new(network, length).unwrap_or(cidr)
}

fn filler(node: &Arc<str>, number: usize) -> Pod {
    Pod {
        name: NamespacedName::new(FILLERS, format!("{node}-{number}")),
        uid: None,
        labels: Labels::new(),
        node: Some(node.clone()),
        addresses: Vec::new(),
        ports: Vec::new(),
        host_network: false,
        finished: false,
    }
}
