//! Ranges of ports, and ports by name.

use anyhow::Result;
use serde_json::{Value, json};

use super::Suite;
use super::probe::{Expect, Protocol};
use super::stage::{Cell, Pod, Stage, cells, pod};

pub(super) const SUITE: Suite =
    Suite { name: "ports", about: "endPort, for TCP and UDP and both directions, and named ports", play };

/// Where the range of a policy begins and ends, and its neighbours.
const AROUND: [u16; 5] = [6999, 7000, 7002, 7004, 7005];

fn play(stage: &mut Stage) -> Result<()> {
    let named = |name: &str, node: &str, number: u16| {
        let mut object = pod(name, node, &[("role", "server")]);
        object["spec"]["containers"][0]["ports"] = json!([{ "name": "web", "containerPort": number }, { "name": "web-udp", "containerPort": number, "protocol": "UDP" }]);
        object
    };
    let pods =
        stage.start(&[named("one", "node1", 80), named("two", "node2", 81), pod("client", "node1", &[])])?;
    let [one, two, client] = &pods[..] else { anyhow::bail!("three pods were started") };
    for pod in [one, two] {
        stage.echo.serve(&pod.network, pod.tag, &AROUND)?;
    }
    let servers = json!({ "matchLabels": { "role": "server" } });
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let range = json!([{ "protocol": protocol.to_string(), "port": 7000, "endPort": 7004 }]);
        let ingress =
            json!({ "podSelector": servers, "policyTypes": ["Ingress"], "ingress": [{ "ports": range }] });
        stage.policy("range", ingress)?;
        let mut asked = range_cells(client, one, protocol);
        asked.extend(range_cells(client, two, protocol));
        stage.check(&format!("an ingress range of {protocol} ports lets in what is in it"), &asked)?;
        stage.remove_policy("range")?;

        let to = json!([{ "podSelector": { "matchLabels": { "pod": "two" } } }]);
        let egress = json!({
            "podSelector": { "matchLabels": { "pod": "client" } },
            "policyTypes": ["Egress"],
            "egress": [{ "to": to, "ports": range }],
        });
        stage.policy("range", egress)?;
        let mut asked = range_cells(client, two, protocol);
        asked.extend(all_cells(client, one, Expect::Blocked));
        stage.check(&format!("an egress range of {protocol} ports, to one pod"), &asked)?;
        stage.remove_policy("range")?;
    }
    by_name(stage, client, one, two)
}

/// One name is another number in each pod.
fn by_name(stage: &mut Stage, client: &Pod, one: &Pod, two: &Pod) -> Result<()> {
    let servers = json!({ "matchLabels": { "role": "server" } });
    let web = json!([{ "port": "web" }]);
    let expected = || {
        let mut asked = Vec::new();
        for (server, web, other) in [(one, 80, 81), (two, 81, 80)] {
            let of = |port, protocol, expect| of_protocol(cells(client, server, port, expect), protocol);
            asked.extend(of(web, Protocol::Tcp, Expect::PASSES));
            asked.extend(of(web, Protocol::Udp, Expect::Blocked));
            asked.extend(cells(client, server, other, Expect::Blocked));
        }
        asked
    };
    let ingress: Value =
        json!({ "podSelector": servers, "policyTypes": ["Ingress"], "ingress": [{ "ports": web }] });
    stage.policy("name", ingress)?;
    stage.check("an ingress port by name, which is another number in each pod", &expected())?;
    stage.remove_policy("name")?;
    let egress = json!({
        "podSelector": { "matchLabels": { "pod": "client" } },
        "policyTypes": ["Egress"],
        "egress": [{ "ports": web }],
    });
    stage.policy("name", egress)?;
    stage.check("an egress port by name, looked up on each destination", &expected())
}

fn of_protocol(cells: Vec<Cell>, protocol: Protocol) -> Vec<Cell> {
    cells.into_iter().filter(|cell| cell.protocol == protocol).collect()
}

/// What is in the range passes, over its protocol.
fn range_cells(from: &Pod, to: &Pod, protocol: Protocol) -> Vec<Cell> {
    let mut asked = all_cells(from, to, Expect::Blocked);
    for cell in asked.iter_mut().filter(|cell| cell.protocol == protocol) {
        if (7000..=7004).contains(&cell.to.port()) {
            cell.expect = Expect::Passes { by: Some(to.tag), from: None };
        }
    }
    asked
}

fn all_cells(from: &Pod, to: &Pod, expect: Expect) -> Vec<Cell> {
    AROUND.into_iter().chain([80]).flat_map(|port| cells(from, to, port, expect)).collect()
}
