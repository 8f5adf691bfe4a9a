//! How the first SYN of a new pod fares: the pod's only program connects to an allowed peer as soon as it runs, and the pod's own network
//! says whether a segment was sent again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::stage::{AGNHOST_IMAGE, PATIENCE, Pod, Stage, pod};
use crate::api::Kind;

const PORT: u16 = 7777;

/// What became of the starts.
pub(crate) struct Outcome {
    pub(crate) good: usize,
    /// Of each of the others, what was wrong.
    pub(crate) wrong: Vec<String>,
}

/// Starts pods on all nodes, some at once, and removes each when it has told how it fared. They may talk to one peer alone, which is on
/// the first node.
pub(crate) fn run(stage: &Stage, count: usize, at_once: usize) -> Result<Outcome> {
    let peers = stage.start_mute(&[pod("peer", &stage.field.nodes[0].name, &[("role", "peer")])])?;
    let [peer] = &peers[..] else { anyhow::bail!("one pod was started") };
    let subject = |labels: Value| json!({ "podSelector": { "matchLabels": labels } });
    for (name, own, other, direction, rules, side) in [
        ("dial-out", "dial", "peer", "Egress", "egress", "to"),
        ("dial-in", "peer", "dial", "Ingress", "ingress", "from"),
    ] {
        let mut spec = subject(json!({ "role": own }));
        spec["policyTypes"] = json!([direction]);
        spec[rules] = json!([{ side: [subject(json!({ "role": other }))], "ports": [{ "port": PORT }] }]);
        stage.policy(name, spec)?;
    }
    // The other direction of those that dial is denied as well.
    let mut closed = subject(json!({ "role": "dial" }));
    closed["policyTypes"] = json!(["Ingress"]);
    stage.policy("dial-closed", closed)?;

    let connected = Mutex::new(BTreeSet::new());
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let listener = scope.spawn(|| accept(peer, &connected, &stop));
        let outcome = dial(stage, peer, count, at_once, &connected);
        stop.store(true, Ordering::Relaxed);
        let listened = listener.join().unwrap_or_else(|_| anyhow::bail!("the listening thread panicked"));
        listened.and(outcome)
    })
}

/// Who has connected.
fn accept(peer: &Pod, connected: &Mutex<BTreeSet<IpAddr>>, stop: &AtomicBool) -> Result<()> {
    let listener = peer.network.run(|| Ok(TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT))?))?;
    listener.set_nonblocking(true)?;
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((_, from)) => {
                connected.lock().unwrap_or_else(PoisonError::into_inner).insert(from.ip().to_canonical());
            }
            Err(_) => thread::sleep(Duration::from_millis(2)),
        }
    }
    Ok(())
}

fn dial(
    stage: &Stage,
    peer: &Pod,
    count: usize,
    at_once: usize,
    connected: &Mutex<BTreeSet<IpAddr>>,
) -> Result<Outcome> {
    let mut outcome = Outcome { good: 0, wrong: Vec::new() };
    let mut waiting: BTreeMap<String, Instant> = BTreeMap::new();
    let mut started = 0;
    while started < count || !waiting.is_empty() {
        stage.field.interrupt.check()?;
        while started < count && waiting.len() < at_once {
            let node = &stage.field.nodes[started % stage.field.nodes.len()].name;
            let name = format!("dial-{started}");
            stage.field.api.create(Kind::POD, &stage.namespace, &dialler(&name, node, peer))?;
            waiting.insert(name, Instant::now());
            started += 1;
        }
        for object in stage.field.api.list(Kind::POD, &stage.namespace)? {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            let Some(since) = waiting.get(name) else { continue };
            let address = object.pointer("/status/podIP").and_then(|ip| ip.as_str()?.parse::<IpAddr>().ok());
            let came = |address| connected.lock().unwrap_or_else(PoisonError::into_inner).remove(&address);
            let fared = match address {
                Some(address) if came(address) => sent_again(stage, &object),
                _ if since.elapsed() > PATIENCE => {
                    Err(anyhow::anyhow!("it never connected: {}", object["status"]))
                }
                _ => continue,
            };
            match fared {
                Ok(0) => outcome.good += 1,
                Ok(segments) => outcome.wrong.push(format!("{name}: {segments} segments were sent again")),
                Err(error) => outcome.wrong.push(format!("{name}: {error:#}")),
            }
            stage.field.api.delete(Kind::POD, &stage.namespace, name)?;
            waiting.remove(name);
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(outcome)
}

/// How many segments the pod's network has sent again. It is there as long as the pod is.
fn sent_again(stage: &Stage, object: &Value) -> Result<u64> {
    let uid = object.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default();
    stage.field.network_of_pod(uid)?.context("its network is gone")?.retransmissions()
}

/// It connects once, and again when it is started again, which keeps its network there.
fn dialler(name: &str, node: &str, peer: &Pod) -> Value {
    let mut object = pod(name, node, &[("role", "dial")]);
    object["spec"]["containers"] = json!([{
        "name": "c",
        "image": AGNHOST_IMAGE,
        "args": ["connect", "--timeout=30s", format!("{}:{PORT}", peer.addresses[0])],
    }]);
    object
}
