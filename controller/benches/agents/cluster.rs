//! A cluster by numbers: what pod, node or policy of that number is.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Value, json};

/// Pods of a namespace; a quarter of them of each app.
const NAMESPACE: usize = 40;
const APPS: usize = 4;

/// How large it is.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) nodes: usize,
    pub(crate) pods: usize,
}

impl Shape {
    pub(crate) fn namespaces(self) -> usize {
        self.pods / NAMESPACE
    }

    pub(crate) fn policies(self) -> usize {
        self.namespaces() * APPS
    }

    /// Pods of one namespace are on as many nodes.
    pub(crate) fn node_of(self, pod: usize) -> usize {
        pod % self.nodes
    }

    pub(crate) fn pods_of(self, node: usize) -> impl Iterator<Item = usize> {
        (node..self.pods).step_by(self.nodes)
    }

    /// The pod's address after it has moved so often: one of two.
    pub(crate) fn address(self, pod: usize, moves: usize) -> IpAddr {
        let (node, slot) = (self.node_of(pod), pod / self.nodes);
        let host = 1 + slot + 100 * (moves % 2);
        IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + (node << 8 | host) as u32))
    }

    pub(crate) fn namespace(self, number: usize, version: u64) -> Value {
        json!({"metadata": {"name": format!("ns{number}"), "resourceVersion": version.to_string()}})
    }

    pub(crate) fn node(self, number: usize, version: u64) -> Value {
        let cidr = format!("10.{}.{}.0/24", number >> 8, number & 255);
        let address = format!("192.168.{}.{}", number >> 8, number & 255);
        json!({
            "metadata": {"name": node_name(number), "resourceVersion": version.to_string(), "managedFields": filler(1500)},
            "spec": {"podCIDR": cidr, "podCIDRs": [cidr]},
            "status": {"addresses": [{"type": "InternalIP", "address": address}]},
        })
    }

    /// An app takes connections from the one before it.
    pub(crate) fn policy(self, number: usize, version: u64) -> Value {
        let (namespace, app) = (number / APPS, number % APPS);
        let select = |app: usize| json!({"matchLabels": {"app": format!("app{app}")}});
        json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": format!("app{app}"), "namespace": format!("ns{namespace}"), "resourceVersion": version.to_string()},
            "spec": {
                "podSelector": select(app),
                "policyTypes": ["Ingress"],
                "ingress": [{"from": [{"podSelector": select((app + APPS - 1) % APPS)}], "ports": [{"port": 80, "protocol": "TCP"}]}],
            },
        })
    }

    pub(crate) fn pod(self, number: usize, moves: usize, version: u64) -> Value {
        let address = self.address(number, moves);
        json!({
            "metadata": {
                "name": pod_name(number).1,
                "namespace": pod_name(number).0,
                "uid": uid(number),
                "resourceVersion": version.to_string(),
                "labels": {"app": format!("app{}", number / (NAMESPACE / APPS) % APPS), "pod-template-hash": "5f7d8c9b6"},
                "managedFields": filler(3000),
            },
            "spec": {
                "nodeName": node_name(self.node_of(number)),
                "containers": [{"name": "main", "image": "example.com/app:1", "ports": [{"name": "http", "containerPort": 80, "protocol": "TCP"}]}],
            },
            "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "hostIP": "192.168.0.1"},
        })
    }
}

pub(crate) fn node_name(number: usize) -> String {
    format!("node{number}")
}

/// Namespace and name.
pub(crate) fn pod_name(number: usize) -> (String, String) {
    (format!("ns{}", number / NAMESPACE), format!("app-5f7d8c9b6-{number:05}"))
}

pub(crate) fn uid(number: usize) -> String {
    format!("00000000-0000-4000-8000-{number:012}")
}

/// What a real object has beside what matters here.
fn filler(bytes: usize) -> Value {
    json!([{"manager": "kubelet", "operation": "Update", "fieldsV1": {"f:status": "x".repeat(bytes)}}])
}
