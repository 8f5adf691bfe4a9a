//! One controller with a thousand agents: what it takes, and how long a change is under way.
//!
//! The controller is the real program, in a process of its own. Its API server and its agents are in this one, without a kernel: the
//! first answers lists and watches with objects of the size that real ones have, the others read what they are told, keep it as
//! agents do, and say at once that it is in force. Agents connect by TLS and show tokens, about which the API server is asked.
//!
//! A change is a pod that gets another address: its node's agent announces it, and the API server says it, too. It is under way from
//! there until an agent whose pods may talk to it, or be talked to by it, has it in a set.

mod agent;
mod api_server;
mod cluster;
mod controller;
#[path = "../../../node-agent/src/source/pause.rs"]
mod pause;
#[path = "../../tests/trust/api_server.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "the tests of trust use the rest")]
mod trust;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, timeout};

use agent::Agent;
use api_server::ApiServer;
use cluster::Shape;
use controller::Controller;

/// Changes of pods in a second.
const RATE: u32 = 100;

/// What this waits for takes seconds; if not, something is broken.
const PATIENCE: Duration = Duration::from_secs(180);

/// What all agents have seen.
#[derive(Default)]
pub(crate) struct Seen {
    /// When an address was announced that has not been seen by all yet.
    pub(crate) announced: Mutex<HashMap<IpAddr, Instant>>,
    pub(crate) latencies: Mutex<Vec<Duration>>,
    pub(crate) updates: AtomicU64,
    /// When each agent had everything, since the controller began.
    pub(crate) current: Mutex<Vec<Instant>>,
    pub(crate) news: Notify,
}

impl Seen {
    /// Waits until all agents hold everything. Says how long after `began` the first of them did, half of them, and all.
    async fn all_current(&self, agents: usize, began: Instant) -> Result<[f64; 3]> {
        let current = || self.current.lock().expect("nobody panics with it");
        let all = async {
            while current().len() < agents {
                self.news.notified().await;
            }
        };
        let in_time = timeout(PATIENCE, all).await;
        in_time.map_err(|_| anyhow::anyhow!("only {} of {agents} agents are current", current().len()))?;
        let mut moments = std::mem::take(&mut *current());
        moments.sort_unstable();
        Ok([0, agents / 2, agents - 1].map(|agent| (moments[agent] - began).as_secs_f64()))
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let shape = if quick { Shape { nodes: 100, pods: 10_000 } } else { Shape { nodes: 1000, pods: 100_000 } };
    let seconds = if quick { 10 } else { 60 };
    println!(
        "{} agents, {} pods, {} policies, {RATE} pod changes a second",
        shape.nodes,
        shape.pods,
        shape.policies()
    );
    let api = Arc::new(ApiServer::start(shape).await?);
    let mut controller = Controller::start(api.kubeconfig())?;
    let seen = Arc::new(Seen::default());
    let began = Instant::now();
    let start = |node| Agent::start(shape, node, controller.address(), api.clone(), seen.clone());
    let agents: Vec<Agent> = (0..shape.nodes).map(start).collect();
    let [first, half, all] = seen.all_current(agents.len(), began).await?;
    println!(
        "first start: the first agent current after {first:.2} s, half of them {half:.2} s, all {all:.2} s"
    );

    changes(shape, &api, &agents, RATE * 2).await;
    seen.latencies.lock().expect("nobody panics with it").clear();
    let (updates, used, began) =
        (seen.updates.load(Ordering::Relaxed), controller.processor_time()?, Instant::now());
    changes(shape, &api, &agents, RATE * seconds).await;
    let wall = began.elapsed().as_secs_f64();
    let cores = (controller.processor_time()? - used).as_secs_f64() / wall;
    let updates = (seen.updates.load(Ordering::Relaxed) - updates) as f64 / wall;
    let mut latencies = std::mem::take(&mut *seen.latencies.lock().expect("nobody panics with it"));
    latencies.sort_unstable();
    ensure!(!latencies.is_empty(), "no agent was told of any change");
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    println!(
        "change to the wire, read: p50 {:.2} ms, p99 {:.2} ms (<= 50), most {:.2} ms; {} readings",
        at(0.5),
        at(0.99),
        at(1.0),
        latencies.len()
    );
    println!("processor: {cores:.2} cores (<= 1); {updates:.0} updates a second");
    let memory = controller.memory()?;
    println!("memory: {} MB now, {} MB at most (<= 600)", memory.now, memory.most);

    let reviews = api.reviews();
    // Who came back meanwhile is not to count.
    seen.current.lock().expect("nobody panics with it").clear();
    let began = Instant::now();
    controller.restart()?;
    let [first, half, all] = seen.all_current(agents.len(), began).await?;
    println!(
        "killed and started again: the first agent current after {first:.2} s, half of them {half:.2} s, all {all:.2} s (<= 10); {} tokens reviewed; {:.2} s of the controller's processor time",
        api.reviews() - reviews,
        controller.processor_time()?.as_secs_f64()
    );
    let memory = controller.memory()?;
    println!("memory: {} MB now, {} MB at most (<= 600)", memory.now, memory.most);
    Ok(())
}

/// So many pods get another address, one after the other, evenly in time.
async fn changes(shape: Shape, api: &ApiServer, agents: &[Agent], count: u32) {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let mut ticks = interval(Duration::from_secs(1) / RATE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for _ in 0..count {
        ticks.tick().await;
        // A prime as far from zero as from the number of pods meets nodes and namespaces in no order.
        let pod = (NEXT.fetch_add(1, Ordering::Relaxed) * 61_813) % shape.pods;
        agents[shape.node_of(pod)].move_pod(pod);
        api.moved(pod);
    }
}
