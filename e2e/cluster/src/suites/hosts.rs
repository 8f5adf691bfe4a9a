//! Nodes, pods in their nodes' network, and the world outside: a node and its own pods reach each other always, everybody else as an
//! `ipBlock` says.

use std::net::IpAddr;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Suite;
use super::field::NodeView;
use super::probe::{Expect, fresh_id};
use super::stage::{AGNHOST_IMAGE, Cell, PATIENCE, Pod, Stage, cell, pairs, pod};
use crate::api::Kind;
use crate::network::Network;

pub(super) const SUITE: Suite = Suite {
    name: "hosts",
    about: "kubelet probes, nodes, hostNetwork pods, and ipBlock from nodes and the world",
    play,
};

/// Nobody of Kubernetes' listens there.
const PORT: u16 = 34567;

fn play(stage: &mut Stage) -> Result<()> {
    let deny = json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] });
    stage.policy("deny", deny)?;
    let mut in_host = pod("in-host", "node2", &[("role", "in-host")]);
    in_host["spec"]["hostNetwork"] = json!(true);
    let pods = stage.start(&[pod("inner", "node1", &[])])?;
    let [inner] = &pods[..] else { anyhow::bail!("one pod was started") };
    stage.start_mute(&[in_host])?;
    probed(stage)?;

    let (own, remote) = (stage.field.node("node1")?.clone(), stage.field.node("node2")?.clone());
    let fabric = stage.field.fabric.clone();
    let (own_tag, remote_tag, world_tag) = (fresh_id(), fresh_id(), fresh_id());
    for (network, tag) in [(&own.network, own_tag), (&remote.network, remote_tag), (&fabric, world_tag)] {
        stage.echo.serve(network, tag, &[PORT])?;
    }
    let world = stage.field.plan.control_plane();
    let to_inner = |what: &str, from: &Network, expect| to(what, from, &inner.addresses, 80, expect);
    let passes = |by: u64| Expect::Passes { by: Some(by), from: None };

    let mut asked = to_inner("its own node to the pod", &own.network, passes(inner.tag));
    asked.extend(to("the pod to its own node", &inner.network, &own.addresses, PORT, passes(own_tag)));
    stage.check("under default deny, a node and its own pod reach each other", &asked)?;

    let mut asked = to_inner("another node to the pod", &remote.network, Expect::Blocked);
    asked.extend(to_inner("the world to the pod", &fabric, Expect::Blocked));
    asked.extend(to("the pod to another node", &inner.network, &remote.addresses, PORT, Expect::Blocked));
    asked.extend(to("the pod to the world", &inner.network, &world, PORT, Expect::Blocked));
    stage.check("under default deny, other nodes and the world do not reach the pod, nor it them", &asked)?;

    let asked = to("the world to the hostNetwork pod", &fabric, &remote.addresses, PORT, passes(remote_tag));
    stage.check("no policy is about a pod in its node's network", &asked)?;
    let by_label = json!([{ "from": [{ "podSelector": { "matchLabels": { "role": "in-host" } } }] }]);
    stage.policy("allow", json!({ "podSelector": {}, "policyTypes": ["Ingress"], "ingress": by_label }))?;
    stage.field.hold_for(std::time::Duration::from_millis(500))?;
    let asked = to_inner("the hostNetwork pod to the pod", &remote.network, Expect::Blocked);
    stage.check("and no selector finds it", &asked)?;
    stage.remove_policy("allow")?;

    blocks(stage, inner, &remote, &fabric, &world, world_tag)
}

/// `ipBlock`, both ways.
fn blocks(
    stage: &mut Stage,
    inner: &Pod,
    remote: &NodeView,
    fabric: &Network,
    world: &[IpAddr],
    world_tag: u64,
) -> Result<()> {
    let from_node = |expect| to("another node to the pod", &remote.network, &inner.addresses, 80, expect);
    let from_world = |expect| to("the world to the pod", fabric, &inner.addresses, 80, expect);
    let passes = Expect::Passes { by: Some(inner.tag), from: None };
    let ingress = |peers: Vec<Value>| json!({ "podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{ "from": peers }] });

    stage.policy("allow", ingress(exactly(&remote.addresses)))?;
    let mut asked = from_node(passes);
    asked.extend(from_world(Expect::Blocked));
    stage.check("an ipBlock of a node's address lets that node in", &asked)?;
    stage.remove_policy("allow")?;

    stage.policy("allow", ingress(exactly(world)))?;
    let mut asked = from_node(Expect::Blocked);
    for mut cell in from_world(passes) {
        // It is seen as what it is: nobody has masked it.
        let seen = world.iter().copied().find(|own| own.is_ipv4() == cell.to.is_ipv4());
        cell.expect = Expect::Passes { by: Some(inner.tag), from: seen };
        asked.push(cell);
    }
    stage.check("an ipBlock of the world's lets the world in", &asked)?;
    stage.remove_policy("allow")?;

    let but_the_node = remote.addresses.iter().map(|address| match address {
        IpAddr::V4(_) => json!({ "ipBlock": { "cidr": "192.168.240.0/24", "except": [single(*address)] } }),
        IpAddr::V6(_) => json!({ "ipBlock": { "cidr": "fd10:240::/64", "except": [single(*address)] } }),
    });
    stage.policy("allow", ingress(but_the_node.collect()))?;
    let mut asked = from_node(Expect::Blocked);
    asked.extend(from_world(passes));
    stage.check("an ipBlock with an except lets in all but that", &asked)?;
    stage.remove_policy("allow")?;

    let out = json!({ "podSelector": {}, "policyTypes": ["Egress"], "egress": [{ "to": exactly(world) }] });
    stage.policy("allow", out)?;
    let masked_as = &stage.field.node(&inner.node)?.addresses;
    let mut asked = to("the pod to another node", &inner.network, &remote.addresses, PORT, Expect::Blocked);
    for mut cell in to("the pod to the world", &inner.network, world, PORT, Expect::PASSES) {
        let seen = masked_as.iter().copied().find(|own| own.is_ipv4() == cell.to.is_ipv4());
        cell.expect = Expect::Passes { by: Some(world_tag), from: seen };
        asked.push(cell);
    }
    stage.check("an egress ipBlock lets the pod out, as its node", &asked)
}

/// The kubelet asks a pod over HTTP and TCP whether it lives; under default deny it hears that it does.
fn probed(stage: &mut Stage) -> Result<()> {
    let mut object = pod("probed", "node1", &[]);
    object["spec"]["containers"] = json!([{
        "name": "c",
        "image": AGNHOST_IMAGE,
        "args": ["netexec", "--http-port=8080"],
        "readinessProbe": { "httpGet": { "path": "/hostname", "port": 8080 }, "periodSeconds": 1 },
        "livenessProbe": { "tcpSocket": { "port": 8080 }, "periodSeconds": 1, "failureThreshold": 2 },
    }]);
    stage.field.api.create(Kind::POD, &stage.namespace, &object)?;
    let (api, namespace) = (&stage.field.api, stage.namespace.clone());
    let ready = || {
        let object = api.get(Kind::POD, &namespace, "probed")?.context("the pod is gone")?;
        let restarts = object.pointer("/status/containerStatuses/0/restartCount").and_then(Value::as_u64);
        let ready = object.pointer("/status/containerStatuses/0/ready").and_then(Value::as_bool);
        Ok(ready == Some(true) && restarts == Some(0))
    };
    stage.comes("under default deny, a kubelet's probes of its pod succeed", PATIENCE, ready)
}

fn to(what: &str, from: &Network, addresses: &[IpAddr], port: u16, expect: Expect) -> Vec<Cell> {
    pairs(addresses).map(|(protocol, address)| cell(what, from, protocol, (address, port), expect)).collect()
}

/// Peers that are these addresses and no others.
pub(super) fn exactly(addresses: &[IpAddr]) -> Vec<Value> {
    addresses.iter().map(|address| json!({ "ipBlock": { "cidr": single(*address) } })).collect()
}

fn single(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}
