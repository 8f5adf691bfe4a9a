//! What a suite plays on: a namespace with pods and servers in them, the checks and what became of them. All of it goes with the suite.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::echo::Echo;
use super::field::{Field, array};
use super::probe::{BOTH, Expect, Protocol, Seen, ask, fresh_id};
use super::stream::Stream;
use crate::api::{Answer, Kind};
use crate::network::Network;

/// As the image archives name it: a program that waits.
const PAUSE_IMAGE: &str = "registry.k8s.io/pause:3.10.2";
pub(crate) const AGNHOST_IMAGE: &str = "registry.k8s.io/e2e-test-images/agnhost:2.63.0";
/// For what has to come on a machine that does other things as well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// So long a policy may take: far above what it does, and far below what a person would bear.
const IN_FORCE: Duration = Duration::from_secs(15);
/// An answer that has not come by then does not come: for questions that are to be blocked.
const SILENCE: Duration = Duration::from_millis(200);
/// The same for those that are to pass.
const ANSWERED: Duration = Duration::from_secs(3);
/// The ports that servers of a suite answer on.
pub(crate) const PORTS: [u16; 3] = [80, 81, 8080];

/// A pod that runs.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) network: Network,
    /// As whom its servers answer.
    pub(crate) tag: u64,
}

impl Pod {
    /// Its address of the family of another.
    pub(crate) fn address_like(&self, other: IpAddr) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|own| own.is_ipv4() == other.is_ipv4())
    }
}

/// One question and what is to become of it.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    pub(crate) what: String,
    pub(crate) from: Network,
    pub(crate) protocol: Protocol,
    pub(crate) to: SocketAddr,
    pub(crate) expect: Expect,
}

/// A suite's stage.
pub(crate) struct Stage<'a> {
    pub(crate) field: &'a Field,
    pub(crate) namespace: String,
    pub(crate) echo: Echo,
    checks: usize,
    failed: usize,
}

impl<'a> Stage<'a> {
    /// An empty namespace. One that an earlier run left goes first.
    pub(crate) fn set(field: &'a Field, suite: &str) -> Result<Self> {
        let namespace = format!("suite-{suite}");
        field.api.delete(Kind::NAMESPACE, "", &namespace)?;
        field.until(&format!("namespace {namespace} is gone"), PATIENCE, || {
            Ok(field.api.get(Kind::NAMESPACE, "", &namespace)?.is_none())
        })?;
        let object = json!({ "metadata": { "name": namespace, "labels": { "suite": suite } } });
        field.api.create(Kind::NAMESPACE, "", &object)?;
        Ok(Self { field, namespace, echo: Echo::new()?, checks: 0, failed: 0 })
    }

    /// How many checks there were, and how many of them failed.
    pub(crate) fn tally(&self) -> (usize, usize) {
        (self.checks, self.failed)
    }

    /// Starts pods, waits until they run, and serves [`PORTS`] in each.
    pub(crate) fn start(&self, pods: &[Value]) -> Result<Vec<Pod>> {
        let pods = self.start_mute(pods)?;
        for pod in &pods {
            self.echo.serve(&pod.network, pod.tag, &PORTS)?;
        }
        Ok(pods)
    }

    /// Starts pods, waits until they run, and leaves what they serve to them.
    pub(crate) fn start_mute(&self, pods: &[Value]) -> Result<Vec<Pod>> {
        for pod in pods {
            self.field.api.create(Kind::POD, &self.namespace, pod)?;
        }
        let names: Vec<&str> = pods.iter().filter_map(|pod| pod["metadata"]["name"].as_str()).collect();
        let mut found: BTreeMap<String, Pod> = BTreeMap::new();
        let mut missing = String::new();
        let waited = self.field.until("all pods run", PATIENCE, || {
            for object in self.field.api.list(Kind::POD, &self.namespace)? {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                if names.contains(&name) && !found.contains_key(name) {
                    match running(self.field, &object)? {
                        Some(pod) => drop(found.insert(name.to_owned(), pod)),
                        None => missing = format!("{name}: {}", object["status"]),
                    }
                }
            }
            Ok(found.len() == names.len())
        });
        waited.context(missing)?;
        Ok(names.iter().filter_map(|name| found.remove(*name)).collect())
    }

    /// Applies a policy.
    pub(crate) fn policy(&self, name: &str, spec: Value) -> Result<Answer> {
        let object = json!({ "metadata": { "name": name }, "spec": spec });
        self.field.api.create(Kind::NETWORK_POLICY, &self.namespace, &object)
    }

    /// Takes a policy away that is there.
    pub(crate) fn remove_policy(&self, name: &str) -> Result<Answer> {
        let removed = self.field.api.delete(Kind::NETWORK_POLICY, &self.namespace, name)?;
        removed.with_context(|| format!("there is no policy {name}"))
    }

    /// Opens connections from one pod to another, over both protocols and each family that both have, and waits until they are
    /// answered.
    pub(crate) fn streams(&self, from: &Pod, to: &Pod, port: u16) -> Result<Vec<Stream>> {
        let mut streams = Vec::new();
        for (protocol, to_address) in pairs(&to.addresses).filter(|(_, to)| from.address_like(*to).is_some())
        {
            let name = format!("{} to {} over {protocol} at {to_address}", from.name, to.name);
            let to = SocketAddr::new(to_address, port);
            streams.push(Stream::start(name, &from.network, protocol, to)?);
        }
        self.field.until("connections are answered", PATIENCE, || {
            Ok(streams.iter().all(|stream| stream.answered_since(0)))
        })?;
        Ok(streams)
    }

    /// Says what became of a check.
    pub(crate) fn verdict(&mut self, what: &str, wrong: &[String]) {
        self.checks += 1;
        if wrong.is_empty() {
            println!("  ok    {what}");
            return;
        }
        self.failed += 1;
        println!("  FAIL  {what}");
        for line in wrong.iter().take(12) {
            println!("          {line}");
        }
        if wrong.len() > 12 {
            println!("          and {} more", wrong.len() - 12);
        }
    }

    /// A check that a condition comes true.
    pub(crate) fn comes(
        &mut self,
        what: &str,
        patience: Duration,
        there: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        let waited = self.field.until(what, patience, there);
        self.field.interrupt.check()?;
        let wrong: Vec<String> = waited.err().map(|error| format!("{error:#}")).into_iter().collect();
        self.verdict(what, &wrong);
        Ok(())
    }

    /// Asks all questions until each comes out as it should, and then once more, when all of them must.
    pub(crate) fn check(&mut self, what: &str, cells: &[Cell]) -> Result<()> {
        let deadline = Instant::now() + IN_FORCE;
        let mut wrong = self.round(cells);
        while !wrong.is_empty() && Instant::now() < deadline {
            self.field.interrupt.check()?;
            wrong = self.round(cells);
        }
        if wrong.is_empty() {
            wrong = self
                .round(cells)
                .into_iter()
                .map(|wrong| format!("once right, then wrong: {wrong}"))
                .collect();
        }
        self.field.interrupt.check()?;
        self.verdict(&format!("{what} ({} questions)", cells.len()), &wrong);
        Ok(())
    }

    /// Asks all questions at once, and tells which came out otherwise.
    pub(crate) fn round(&self, cells: &[Cell]) -> Vec<String> {
        let ask_one = |cell: &Cell| {
            let id = fresh_id();
            let wait = if cell.expect == Expect::Blocked { SILENCE } else { ANSWERED };
            (id, ask(&cell.from, cell.protocol, cell.to, id, wait))
        };
        let seen: Vec<(u64, Seen)> = thread::scope(|scope| {
            let threads: Vec<_> = cells.iter().map(|cell| scope.spawn(move || ask_one(cell))).collect();
            let panicked = |_| (0, Seen::Failed("the asking thread panicked".into()));
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
        });
        let mut wrong = Vec::new();
        for (cell, (id, seen)) in cells.iter().zip(seen) {
            let arrived = self.echo.arrived(id).is_some();
            if !cell.expect.holds(&seen, arrived) {
                let arrived = if arrived { ", and it arrived" } else { "" };
                let Cell { what, protocol, to, expect, .. } = cell;
                wrong.push(format!("{what} over {protocol} at {to}: {seen:?}{arrived}; expected {expect:?}"));
            }
        }
        wrong
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.field.api.delete(Kind::NAMESPACE, "", &self.namespace) {
            eprintln!("cannot remove namespace {}: {error:#}", self.namespace);
        }
    }
}

/// A pod that waits, on a node, with labels.
pub(crate) fn pod(name: &str, node: &str, labels: &[(&str, &str)]) -> Value {
    let labels: BTreeMap<_, _> = labels.iter().copied().chain([("pod", name)]).collect();
    json!({
        "metadata": { "name": name, "labels": labels },
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "containers": [{ "name": "c", "image": PAUSE_IMAGE }],
        },
    })
}

/// The questions from one pod to another at a port, over both protocols and each family.
pub(crate) fn cells(from: &Pod, to: &Pod, port: u16, expect: Expect) -> Vec<Cell> {
    let expect = match expect {
        Expect::Passes { by: None, from } => Expect::Passes { by: Some(to.tag), from },
        other => other,
    };
    let what = format!("{} to {}", from.name, to.name);
    let there = pairs(&to.addresses).filter(|(_, to)| from.address_like(*to).is_some());
    there.map(|(protocol, address)| cell(&what, &from.network, protocol, (address, port), expect)).collect()
}

/// One question, from any network.
pub(crate) fn cell(
    what: &str,
    from: &Network,
    protocol: Protocol,
    to: impl Into<SocketAddr>,
    expect: Expect,
) -> Cell {
    Cell { what: what.into(), from: from.clone(), protocol, to: to.into(), expect }
}

/// Each protocol with each of these addresses.
pub(crate) fn pairs(addresses: &[IpAddr]) -> impl Iterator<Item = (Protocol, IpAddr)> {
    BOTH.into_iter().flat_map(|protocol| addresses.iter().map(move |address| (protocol, *address)))
}

/// The pod of an object, if it runs and its network is to be found.
fn running(field: &Field, object: &Value) -> Result<Option<Pod>> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let addresses: Vec<IpAddr> =
        array(object, "/status/podIPs").filter_map(|ip| ip["ip"].as_str()?.parse().ok()).collect();
    if text("/status/phase") != "Running" || addresses.is_empty() {
        return Ok(None);
    }
    let node = text("/spec/nodeName");
    let network = match object.pointer("/spec/hostNetwork") {
        Some(Value::Bool(true)) => Some(field.node(node)?.network.clone()),
        _ => field.network_of_pod(text("/metadata/uid"))?,
    };
    let (name, node) = (text("/metadata/name").to_owned(), node.to_owned());
    Ok(network.map(|network| Pod { name, node, addresses, network, tag: fresh_id() }))
}
