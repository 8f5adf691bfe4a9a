//! Services and host ports: policies are about who sends and where it ends, whatever address was asked for on the way.

use std::net::IpAddr;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Suite;
use super::field::array;
use super::hosts::exactly;
use super::probe::{BOTH, Expect};
use super::stage::{Cell, PATIENCE, Pod, Stage, cell, pairs, pod};
use super::stream::Stream;
use crate::api::Kind;

pub(super) const SUITE: Suite = Suite {
    name: "services",
    about: "ClusterIP, NodePort, hairpin and hostPort, with the cluster's kube-proxy",
    play,
};

/// What a Service is asked at, and where its pods answer.
const ASKED: u16 = 1080;
const TARGET: u16 = 8080;
const HOST_PORT: u16 = 38080;

fn play(stage: &mut Stage) -> Result<()> {
    let mut server = pod("server", "node2", &[("role", "server")]);
    server["spec"]["containers"][0]["ports"] = json!([
        { "containerPort": TARGET, "hostPort": HOST_PORT },
        { "containerPort": TARGET, "hostPort": HOST_PORT, "protocol": "UDP" },
    ]);
    let pods = stage.start(&[
        server,
        pod("client", "node1", &[]),
        pod("near", "node2", &[]),
        pod("other", "node1", &[]),
    ])?;
    let [server, client, near, other] = &pods[..] else { anyhow::bail!("four pods were started") };
    let inner = make(stage, "inner", json!({}))?;
    let outer = make(stage, "outer", json!({ "type": "NodePort" }))?;
    let local = make(stage, "local", json!({ "type": "NodePort", "externalTrafficPolicy": "Local" }))?;

    let mut asked = Vec::new();
    for from in [client, near, other] {
        asked.extend(inner.by_pod(from, server, seen_as(from)));
    }
    asked.extend(inner.by_pod(server, server, |_| None));
    stage.check("a Service leads to its pod, and hides nobody", &asked)?;

    let peers = json!([{ "podSelector": { "matchLabels": { "pod": "client" } } }]);
    let allow = |ports: Value| {
        json!({
            "podSelector": { "matchLabels": { "role": "server" } },
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{ "from": peers, "ports": ports }],
        })
    };
    stage.policy("ingress", allow(numbers(ASKED)))?;
    let asked = blocked(inner.by_pod(client, server, |_| None));
    stage.check("a policy with the Service's own port lets nobody in", &asked)?;
    stage.remove_policy("ingress")?;

    let doomed = inner.streams(stage, other)?;
    stage.policy("ingress", allow(numbers(TARGET)))?;
    let mut asked = inner.by_pod(client, server, seen_as(client));
    asked.extend(blocked(inner.by_pod(other, server, |_| None)));
    asked.extend(blocked(inner.by_pod(near, server, |_| None)));
    stage.check(
        "a policy with the pod's port lets its peer in through the Service, and nobody else",
        &asked,
    )?;
    stage.comes("connections through the Service that it does not allow are cut", PATIENCE, || {
        Ok(doomed.iter().all(|stream| stream.silent_for(std::time::Duration::from_millis(300))))
    })?;
    drop(doomed);
    let hairpin = inner.by_pod(server, server, |_| None);
    stage.check("a pod that may talk to nobody reaches itself through its Service", &hairpin)?;
    node_ports(stage, &outer, &local, server)?;
    host_port(stage, server)?;
    stage.remove_policy("ingress")?;

    let egress = json!({
        "podSelector": { "matchLabels": { "pod": "other" } },
        "policyTypes": ["Egress"],
        "egress": [{ "to": [{ "podSelector": { "matchLabels": { "role": "server" } } }], "ports": numbers(TARGET) }],
    });
    stage.policy("egress", egress)?;
    let mut asked = inner.by_pod(other, server, seen_as(other));
    for (protocol, address) in pairs(&server.addresses) {
        asked.push(cell("other to another port", &other.network, protocol, (address, 80), Expect::Blocked));
    }
    stage.check("an egress policy is about the pod behind the Service", &asked)
}

/// The world through a node's port: seen as that node, where the Service leads anywhere, and as itself where it stays on the node.
fn node_ports(stage: &mut Stage, outer: &Service, local: &Service, server: &Pod) -> Result<()> {
    let (first, second) = (stage.field.node("node1")?.clone(), stage.field.node("node2")?.clone());
    let fabric = stage.field.fabric.clone();
    let world = stage.field.plan.control_plane();
    let through = |service: &Service, node: &[IpAddr], expect| -> Vec<Cell> {
        let there = pairs(node).zip(service.node_ports_of(node));
        there
            .map(|((protocol, address), port)| {
                cell("the world to a node's port", &fabric, protocol, (address, port), expect)
            })
            .collect()
    };
    let passes = Expect::Passes { by: Some(server.tag), from: None };
    let mut asked = through(outer, &first.addresses, Expect::Blocked);
    asked.extend(through(local, &second.addresses, Expect::Blocked));
    stage.check("a NodePort is no way around the policy", &asked)?;
    let allow = |peers: Vec<Value>| json!({ "podSelector": { "matchLabels": { "role": "server" } }, "policyTypes": ["Ingress"], "ingress": [{ "from": peers }] });
    stage.policy("world", allow(exactly(&world)))?;
    let mut asked = through(local, &second.addresses, passes);
    for cell in &mut asked {
        let seen = world.iter().copied().find(|own| own.is_ipv4() == cell.to.is_ipv4());
        cell.expect = Expect::Passes { by: Some(server.tag), from: seen };
    }
    asked.extend(through(outer, &first.addresses, Expect::Blocked));
    stage.check("an ipBlock of the world's is about traffic that stays on its node", &asked)?;
    stage.remove_policy("world")?;
    stage.policy("world", allow(exactly(&first.addresses)))?;
    stage.check(
        "an ipBlock of the node's is about what that node has masked",
        &through(outer, &first.addresses, passes),
    )?;
    stage.remove_policy("world")?;
    Ok(())
}

/// A port of the node that leads to the pod.
fn host_port(stage: &mut Stage, server: &Pod) -> Result<()> {
    let node = stage.field.node("node2")?.addresses.clone();
    let fabric = stage.field.fabric.clone();
    let through = |expect| -> Vec<Cell> {
        pairs(&node)
            .map(|(protocol, address)| {
                cell("the world to a host port", &fabric, protocol, (address, HOST_PORT), expect)
            })
            .collect()
    };
    stage.check("a hostPort is no way around the policy", &through(Expect::Blocked))?;
    let world = stage.field.plan.control_plane();
    let allow = json!({
        "podSelector": { "matchLabels": { "role": "server" } },
        "policyTypes": ["Ingress"],
        "ingress": [{ "from": exactly(&world), "ports": numbers(TARGET) }],
    });
    stage.policy("world", allow)?;
    stage.check(
        "an ipBlock lets the world in by the hostPort",
        &through(Expect::Passes { by: Some(server.tag), from: None }),
    )?;
    stage.remove_policy("world")?;
    Ok(())
}

/// A port of both protocols, as a policy has it.
fn numbers(port: u16) -> Value {
    json!([{ "port": port, "protocol": "TCP" }, { "port": port, "protocol": "UDP" }])
}

/// It is seen by its own address.
fn seen_as(pod: &Pod) -> impl Fn(IpAddr) -> Option<IpAddr> {
    let pod = pod.clone();
    move |to| pod.address_like(to)
}

fn blocked(mut cells: Vec<Cell>) -> Vec<Cell> {
    cells.iter_mut().for_each(|cell| cell.expect = Expect::Blocked);
    cells
}

/// A Service, once it has its addresses.
struct Service {
    addresses: Vec<IpAddr>,
    /// Of TCP and of UDP.
    node_ports: [u16; 2],
}

impl Service {
    /// The questions of a pod to it.
    fn by_pod(&self, from: &Pod, server: &Pod, seen: impl Fn(IpAddr) -> Option<IpAddr>) -> Vec<Cell> {
        let there = pairs(&self.addresses).filter(|(_, to)| from.address_like(*to).is_some());
        there
            .map(|(protocol, address)| {
                let expect = Expect::Passes { by: Some(server.tag), from: seen(address) };
                cell(
                    &format!("{} to the Service", from.name),
                    &from.network,
                    protocol,
                    (address, ASKED),
                    expect,
                )
            })
            .collect()
    }

    /// The node ports in the order of [`pairs`].
    fn node_ports_of(&self, addresses: &[IpAddr]) -> Vec<u16> {
        self.node_ports.iter().flat_map(|port| addresses.iter().map(|_| *port)).collect()
    }

    fn streams(&self, stage: &Stage, from: &Pod) -> Result<Vec<Stream>> {
        let mut streams = Vec::new();
        for (protocol, address) in pairs(&self.addresses) {
            let name = format!("{} to the Service over {protocol} at {address}", from.name);
            streams.push(Stream::start(name, &from.network, protocol, (address, ASKED).into())?);
        }
        stage
            .field
            .until("the Service answers", PATIENCE, || Ok(streams.iter().all(|s| s.answered_since(0))))?;
        Ok(streams)
    }
}

fn make(stage: &Stage, name: &str, more: Value) -> Result<Service> {
    let ports = BOTH.map(|protocol| {
        json!({ "name": protocol.to_string().to_lowercase(), "protocol": protocol.to_string(), "port": ASKED, "targetPort": TARGET })
    });
    let mut object = json!({
        "metadata": { "name": name },
        "spec": { "selector": { "role": "server" }, "ports": ports, "ipFamilyPolicy": "PreferDualStack" },
    });
    for (field, value) in more.as_object().into_iter().flatten() {
        object["spec"][field] = value.clone();
    }
    let made = stage.field.api.create(Kind::SERVICE, &stage.namespace, &object)?.object;
    let addresses = array(&made, "/spec/clusterIPs").filter_map(|ip| ip.as_str()?.parse().ok()).collect();
    let mut node_ports =
        array(&made, "/spec/ports").map(|port| port["nodePort"].as_u64().unwrap_or_default());
    let mut next = || u16::try_from(node_ports.next().unwrap_or_default());
    Ok(Service { addresses, node_ports: [next().context("a node port")?, next().context("a node port")?] })
}
