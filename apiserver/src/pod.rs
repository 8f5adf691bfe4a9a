//! Pods: a hundred thousand of them, each some kilobytes of JSON, of which some hundred bytes matter.

use std::net::IpAddr;

use k8s_openapi::NamespaceResourceScope;
use moat_policies::{ContainerPort, Family, NamespacedName, Object, Pod, Protocol};
use serde::Deserialize;
use serde::de::Deserializer;

use crate::held::Said;
use crate::record::{Kind, Meta, Record};

#[derive(Deserialize)]
struct Text {
    metadata: Meta,
    spec: Option<Spec>,
    status: Option<Status>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    node_name: Option<Box<str>>,
    host_network: Option<bool>,
    containers: Option<Vec<Container>>,
    init_containers: Option<Vec<Container>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    restart_policy: Option<Box<str>>,
    ports: Option<Vec<Port>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    name: Option<Box<str>>,
    protocol: Option<Box<str>>,
    container_port: i64,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    phase: Option<Box<str>>,
    #[serde(rename = "podIP")]
    pod_ip: Option<Box<str>>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<Ip>>,
    #[serde(rename = "hostIP")]
    host_ip: Option<Box<str>>,
    #[serde(rename = "hostIPs")]
    host_ips: Option<Vec<Ip>>,
}

#[derive(Deserialize)]
struct Ip {
    ip: Option<Box<str>>,
}

impl Kind for Pod {
    const KIND: &'static str = "Pod";
    const PLURAL: &'static str = "pods";
    type Scope = NamespaceResourceScope;

    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<(Meta, Self), D::Error> {
        let Text { mut metadata, spec, status } = Text::deserialize(from)?;
        let (spec, status) = (spec.unwrap_or_default(), status.unwrap_or_default());
        let host_network = spec.host_network.unwrap_or(false);
        let mut addresses = self::addresses(status.pod_ips, status.pod_ip);
        // A hostNetwork pod that does not say its address has its node's.
        if host_network && addresses.is_empty() {
            addresses = self::addresses(status.host_ips, status.host_ip);
        }
        let pod = Pod {
            name: NamespacedName::new(metadata.namespace.clone().unwrap_or_default(), &*metadata.name),
            labels: metadata.labels(),
            node: spec.node_name.filter(|node| !node.is_empty()).map(Into::into),
            addresses,
            ports: ports(spec.init_containers, spec.containers),
            host_network,
            finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            uid: metadata.uid.take().map(Into::into),
        };
        Ok((metadata, pod))
    }

    fn said(record: Record<Self>) -> Said {
        Said { version: record.version(), object: Object::Pod(record.object), note: None }
    }
}

/// At most one address of each family.
fn addresses(list: Option<Vec<Ip>>, single: Option<Box<str>>) -> Vec<IpAddr> {
    let listed = list.into_iter().flatten().filter_map(|ip| ip.ip);
    let mut found: Vec<IpAddr> = Vec::new();
    for address in listed.chain(single).filter_map(|text| text.parse::<IpAddr>().ok()) {
        let address = address.to_canonical();
        if !found.iter().any(|f| Family::of(f) == Family::of(&address)) {
            found.push(address);
        }
    }
    found
}

/// The ports of containers, and of the init containers that keep running beside them.
fn ports(init: Option<Vec<Container>>, containers: Option<Vec<Container>>) -> Vec<ContainerPort> {
    let beside = |container: &Container| container.restart_policy.as_deref() == Some("Always");
    let init = init.into_iter().flatten().filter(beside);
    let ports =
        init.chain(containers.into_iter().flatten()).filter_map(|container| container.ports).flatten();
    ports.filter_map(port).collect()
}

fn port(Port { name, protocol, container_port }: Port) -> Option<ContainerPort> {
    let protocol = match protocol.as_deref() {
        None | Some("" | "TCP") => Protocol::Tcp,
        Some("UDP") => Protocol::Udp,
        Some("SCTP") => Protocol::Sctp,
        Some(_) => return None,
    };
    let name = name.filter(|name| !name.is_empty()).map(Into::into);
    Some(ContainerPort { name, protocol, port: u16::try_from(container_port).ok()? })
}
