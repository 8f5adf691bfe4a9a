//! Namespaces and Nodes.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::ClusterResourceScope;
use moat_policies::{Family, Namespace, Node, Object};
use serde::Deserialize;
use serde::de::Deserializer;

use crate::held::Said;
use crate::record::{Kind, Meta, Record};

#[derive(Deserialize)]
struct NamespaceText {
    metadata: Meta,
}

#[derive(Deserialize)]
struct NodeText {
    metadata: Meta,
    spec: Option<Spec>,
    status: Option<Status>,
}

#[derive(Default, Deserialize)]
struct Spec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<Box<str>>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<Box<str>>>,
}

#[derive(Default, Deserialize)]
struct Status {
    addresses: Option<Vec<Address>>,
}

#[derive(Deserialize)]
struct Address {
    #[serde(rename = "type")]
    what: Box<str>,
    address: Box<str>,
}

impl Kind for Namespace {
    const KIND: &'static str = "Namespace";
    const PLURAL: &'static str = "namespaces";
    type Scope = ClusterResourceScope;

    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<(Meta, Self), D::Error> {
        let NamespaceText { mut metadata } = NamespaceText::deserialize(from)?;
        let namespace = Namespace { name: metadata.name.as_str().into(), labels: metadata.labels() };
        Ok((metadata, namespace))
    }

    fn said(record: Record<Self>) -> Said {
        Said { version: record.version(), object: Object::Namespace(record.object), note: None }
    }
}

impl Kind for Node {
    const KIND: &'static str = "Node";
    const PLURAL: &'static str = "nodes";
    type Scope = ClusterResourceScope;

    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<(Meta, Self), D::Error> {
        let NodeText { metadata, spec, status } = NodeText::deserialize(from)?;
        let (spec, status) = (spec.unwrap_or_default(), status.unwrap_or_default());
        let is_ip = |address: &Address| matches!(&*address.what, "InternalIP" | "ExternalIP");
        let addresses = status.addresses.into_iter().flatten().filter(is_ip);
        let node = Node {
            name: metadata.name.as_str().into(),
            addresses: addresses
                .filter_map(|a| Some(a.address.parse::<IpAddr>().ok()?.to_canonical()))
                .collect(),
            pod_cidrs: pod_cidrs(spec),
        };
        Ok((metadata, node))
    }

    fn said(record: Record<Self>) -> Said {
        Said { version: record.version(), object: Object::Node(record.object), note: None }
    }
}

/// At most one of each family.
fn pod_cidrs(spec: Spec) -> Vec<IpNet> {
    let mut found: Vec<IpNet> = Vec::new();
    let listed = spec.pod_cidrs.into_iter().flatten().chain(spec.pod_cidr);
    for net in listed.filter_map(|text| text.parse::<IpNet>().ok()) {
        if !found.iter().any(|f| Family::of(&f.addr()) == Family::of(&net.addr())) {
            found.push(net.trunc());
        }
    }
    found
}
