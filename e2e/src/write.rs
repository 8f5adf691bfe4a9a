//! Objects back to manifests: what the lab tells the agents.

use std::net::IpAddr;

use moat_policies::{Namespace, NamespacedName, Node, Object, Pod};
use serde_json::{Value, json};

/// Objects as one `kind: List`, without policies: what is in force before they are.
pub(crate) fn without_policies(objects: &[Object]) -> Value {
    let items: Vec<Value> = objects
        .iter()
        .filter_map(|o| match o {
            Object::Namespace(n) => Some(namespace(n)),
            Object::Node(n) => Some(node(n)),
            Object::Pod(p) if !p.finished => Some(pod(p)),
            Object::Pod(_) | Object::Policy(_) | Object::Config(_) => None,
        })
        .collect();
    list(items)
}

/// Several objects as one document.
pub(crate) fn list(items: Vec<Value>) -> Value {
    json!({ "apiVersion": "v1", "kind": "List", "items": items })
}

/// A Namespace.
pub(crate) fn namespace(namespace: &Namespace) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "name": *namespace.name, "labels": labels(&namespace.labels) },
    })
}

/// A Node.
pub(crate) fn node(node: &Node) -> Value {
    let addresses: Vec<Value> =
        node.addresses.iter().map(|a| json!({ "type": "InternalIP", "address": a })).collect();
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": *node.name },
        "spec": { "podCIDR": node.pod_cidrs.first(), "podCIDRs": node.pod_cidrs },
        "status": { "addresses": addresses },
    })
}

/// A pod's status, as a kubelet would report it.
pub(crate) fn pod_status(pod: &NamespacedName, node: &str, host: &[IpAddr], own: &[IpAddr]) -> Value {
    let ips = |all: &[IpAddr]| all.iter().map(|ip| json!({ "ip": ip })).collect::<Vec<_>>();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": *pod.namespace, "name": *pod.name },
        "spec": { "nodeName": node },
        "status": {
            "phase": "Running",
            "hostIP": host.first(), "hostIPs": ips(host),
            "podIP": own.first(), "podIPs": ips(own),
        },
    })
}

/// A Pod without status.
pub(crate) fn pod(pod: &Pod) -> Value {
    let container = |(number, port): (usize, &moat_policies::ContainerPort)| {
        let mut entry = json!({ "containerPort": port.port, "protocol": port.protocol.as_str() });
        if let Some(name) = &port.name {
            entry["name"] = json!(**name);
        }
        json!({ "name": format!("c{number}"), "image": "none", "ports": [entry] })
    };
    // A pod has at least one container.
    let mut containers: Vec<Value> = pod.ports.iter().enumerate().map(container).collect();
    if containers.is_empty() {
        containers.push(json!({ "name": "c", "image": "none" }));
    }
    let mut spec = json!({ "containers": containers, "hostNetwork": pod.host_network });
    if let Some(node) = &pod.node {
        spec["nodeName"] = json!(**node);
    }
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": *pod.name.namespace, "name": *pod.name.name, "labels": labels(&pod.labels),
        },
        "spec": spec,
    })
}

fn labels(labels: &moat_policies::Labels) -> Value {
    labels.iter().map(|(k, v)| (k.to_string(), json!(**v))).collect::<serde_json::Map<_, _>>().into()
}
