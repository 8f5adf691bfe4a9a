//! Pods that start under default deny: from the moment that their network exists nothing passes that may not, and what may pass does so
//! with the first packet of the first container.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::Suite;
use super::echo::Question;
use super::field::{NodeView, pod_networks};
use super::first_syn;
use super::probe::fresh_id;
use super::stage::{PATIENCE, PORTS, Pod, Stage, pod};
use crate::api::Kind;
use crate::network::Network;

pub(super) const SUITE: Suite = Suite {
    name: "start",
    about: "a pod that starts under default deny, from before it has an interface",
    play,
};

/// How many pods are watched from before they have an interface.
const WATCHED: usize = 6;
/// How many are asked how their first SYN fared.
const FIRST_SYNS: usize = 12;
const PERIOD: Duration = Duration::from_millis(1);
/// For so long after the pod runs, its traffic is watched.
const AFTER: Duration = Duration::from_millis(300);

fn play(stage: &mut Stage) -> Result<()> {
    let pods = stage.start(&[
        pod("friend", "node1", &[]),
        pod("foe", "node1", &[]),
        pod("far-foe", "node2", &[]),
    ])?;
    let [friend, foe, far_foe] = &pods[..] else { bail!("three pods were started") };
    let deny =
        json!({ "podSelector": { "matchLabels": { "start": "yes" } }, "policyTypes": ["Ingress", "Egress"] });
    stage.policy("deny", deny)?;
    let port = json!([{ "port": 80, "protocol": "UDP" }]);
    let peer = json!([{ "podSelector": { "matchLabels": { "pod": "friend" } } }]);
    let allow = json!({
        "podSelector": { "matchLabels": { "start": "yes" } },
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{ "from": peer, "ports": port }],
        "egress": [{ "to": peer, "ports": port }],
    });
    stage.policy("allow", allow)?;
    let nodes: Vec<NodeView> = stage.field.nodes.clone();
    for (number, node) in nodes.iter().cycle().take(WATCHED).enumerate() {
        let began = Began { name: format!("fresh-{number}"), friend, foes: [foe, far_foe] };
        began.watch(stage, node)?;
    }
    let outcome = first_syn::run(stage, FIRST_SYNS, FIRST_SYNS)?;
    stage.verdict(
        &format!("the first SYN of each of {FIRST_SYNS} pods passes, and none is sent again"),
        &outcome.wrong,
    );
    Ok(())
}

/// A pod that is about to start.
struct Began<'a> {
    name: String,
    friend: &'a Pod,
    foes: [&'a Pod; 2],
}

/// One kind of packets that are sent all the time.
struct Barrage {
    what: String,
    id: u64,
    from: Network,
    to: SocketAddr,
    passes: bool,
}

impl Began<'_> {
    /// Starts it, and sends from all sides from before it has an interface until it has run for a while.
    fn watch(&self, stage: &mut Stage, node: &NodeView) -> Result<()> {
        let before = networks(node)?;
        let object = pod(&self.name, &node.name, &[("start", "yes")]);
        stage.field.api.create(Kind::POD, &stage.namespace, &object)?;
        let network = self.appears(stage, node, &before)?;
        stage.echo.serve(&network, fresh_id(), &PORTS)?;
        let stop = AtomicBool::new(false);
        let outwards = self.outwards(&network);
        let inwards = thread::scope(|scope| {
            for barrage in &outwards {
                scope.spawn(|| barrage.send(&stop));
            }
            let told = self.address(stage, &network).map(|address| self.inwards(address));
            let watched = told.and_then(|inwards| {
                thread::scope(|scope| {
                    for barrage in &inwards {
                        scope.spawn(|| barrage.send(&stop));
                    }
                    let waited = self.runs(stage).and_then(|()| stage.field.hold_for(AFTER));
                    stop.store(true, Ordering::Relaxed);
                    waited
                })?;
                Ok(inwards)
            });
            stop.store(true, Ordering::Relaxed);
            watched
        })?;
        let wrong: Vec<String> =
            outwards.iter().chain(&inwards).filter_map(|barrage| barrage.wrong(stage)).collect();
        stage.verdict(
            &format!("{} on {}: only what may pass does, from its first moment", self.name, node.name),
            &wrong,
        );
        Ok(())
    }

    /// The new pod's network, before it has an interface: no other pod starts on the node meanwhile.
    fn appears(&self, stage: &Stage, node: &NodeView, before: &BTreeSet<String>) -> Result<Network> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            for name in networks(node)?.difference(before) {
                // Made first, and then bound: until then it is a file of no network.
                let network = Network::at(pod_networks(node).join(name))?;
                if network.join_on_a_thread().is_ok() {
                    return Ok(network);
                }
            }
            stage.field.interrupt.check()?;
            if Instant::now() > deadline {
                bail!("{} has no network after {} s", self.name, PATIENCE.as_secs());
            }
            thread::sleep(Duration::from_micros(500));
        }
    }

    /// Its address, as soon as it has one: what it would send from.
    fn address(&self, stage: &Stage, network: &Network) -> Result<IpAddr> {
        let peer = SocketAddr::new(self.friend.addresses[0], 80);
        let deadline = Instant::now() + PATIENCE;
        network.run(|| {
            loop {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                if let Ok(local) = socket.connect(peer).and_then(|()| socket.local_addr()) {
                    return Ok(local.ip());
                }
                stage.field.interrupt.check()?;
                if Instant::now() > deadline {
                    bail!("{} has no address after {} s", self.name, PATIENCE.as_secs());
                }
                thread::sleep(Duration::from_micros(500));
            }
        })
    }

    fn runs(&self, stage: &Stage) -> Result<()> {
        stage.field.until(&format!("{} runs", self.name), PATIENCE, || {
            let object = stage.field.api.get(Kind::POD, &stage.namespace, &self.name)?;
            Ok(object.is_some_and(|object| object.pointer("/status/phase") == Some(&Value::from("Running"))))
        })
    }

    fn outwards(&self, network: &Network) -> Vec<Barrage> {
        let to = |pod: &Pod, port: u16, passes: bool| Barrage {
            what: format!("{} to {}:{port}", self.name, pod.name),
            id: fresh_id(),
            from: network.clone(),
            to: SocketAddr::new(pod.addresses[0], port),
            passes,
        };
        vec![
            to(self.friend, 80, true),
            to(self.friend, 81, false),
            to(self.foes[0], 80, false),
            to(self.foes[1], 80, false),
        ]
    }

    fn inwards(&self, address: IpAddr) -> Vec<Barrage> {
        let from = |pod: &Pod, port: u16, passes: bool| Barrage {
            what: format!("{} to {}:{port}", pod.name, self.name),
            id: fresh_id(),
            from: pod.network.clone(),
            to: SocketAddr::new(address, port),
            passes,
        };
        vec![
            from(self.friend, 80, true),
            from(self.friend, 81, false),
            from(self.foes[0], 80, false),
            from(self.foes[1], 80, false),
        ]
    }
}

impl Barrage {
    /// Each packet is a flow of its own: what becomes of one says nothing about the next.
    fn send(&self, stop: &AtomicBool) -> Result<()> {
        self.from.run(|| {
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                // Until there is an interface, there is no way.
                let _ = socket.send_to(&Question { id: self.id, number }.bytes(), self.to);
                number += 1;
                thread::sleep(PERIOD);
            }
            Ok(())
        })
    }

    fn wrong(&self, stage: &Stage) -> Option<String> {
        match (stage.echo.arrived(self.id), self.passes) {
            (Some(arrived), false) => Some(format!("{}: {} packets got through", self.what, arrived.packets)),
            (None, true) => Some(format!("{}: no packet got through", self.what)),
            _ => None,
        }
    }
}

/// The networks of a node's pods, by name. Before the first there is no folder of them.
fn networks(node: &NodeView) -> Result<BTreeSet<String>> {
    let folder = pod_networks(node);
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeSet::new()),
        read => read.with_context(|| format!("cannot read {}", folder.display()))?,
    };
    Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}
