//! What the data plane of a large node costs: the time to put everything in force, to take it over, and the memory.
//!
//! ```text
//! cargo xtask bench agent            (cargo bench -p moat-agent --bench agent [-- --limits])
//! ```
//!
//! 250 pods, half of them with a policy each way, a hundred thousand peers in the allow sets of one policy and a hundred in
//! those of each other. Each start is a process of its own, so that its memory is its own. `--limits`: only what the most that
//! one policy, and one node, may ask for costs.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on ends by panicking")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use moat_agent::dataplane::{Config, Dataplane, LayoutConfig, Limits, LocalPod, Update};
use moat_policies::{
    Allow, AllowSet, Element, NamespacedName, PodPrograms, PortClass, PortRange, Program, ProgramId,
    Protocol, SetChange, SetId, SetKind,
};
use nix::sched::{CloneFlags, unshare};

const PODS: u32 = 250;
const PEERS: u32 = 100_000;
const PEERS_OF_EACH: u32 = 100;
const ROUNDS: usize = 10;

/// Set where this program is one start of an agent's data plane.
const START: &str = "MOAT_BENCH_START";

fn number(n: u32) -> [u8; 16] {
    let mut id = [7; 16];
    id[..4].copy_from_slice(&n.to_be_bytes());
    id
}

fn allow_set(first: u32, count: u32) -> SetChange {
    let element = |n| Element { address: IpAddr::V4(Ipv4Addr::from_bits(0x0a10_0000 + n)), port: None };
    SetChange::Create(Arc::new(AllowSet {
        kind: SetKind::Addresses,
        pods: true,
        prefixes: Arc::default(),
        elements: (first..first + count).map(element).collect(),
    }))
}

/// What the engine and the pod network say about a node with so many pods and peers.
fn node(pods: u32, peers: u32) -> Update {
    let mut update = Update::default();
    let class = |n: u32, port| PortClass {
        ports: vec![PortRange { protocol: Protocol::Tcp, first: port, last: port }],
        allow: Allow::Set(SetId(number(n))),
    };
    for n in 0..pods {
        let name = NamespacedName::new("shop", format!("pod-{n}"));
        let local = LocalPod {
            ifname: format!("moat{n:08x}"),
            pod_mac: [2, 0, 0, 0, (n >> 8) as u8, n as u8],
            v4: Some(Ipv4Addr::from_bits(0x0a00_0000 + n)),
            v6: None,
        };
        update.pods.insert(name.clone(), Some(local));
        let mut programs = PodPrograms::default();
        if n % 2 == 0 {
            let id = ProgramId(number(n));
            let program = Program { classes: vec![class(n, 80), class(n, 443)], ..Program::default() };
            update.policy.programs.insert(id, Some(Arc::new(program)));
            let set = if n == 0 { allow_set(0, peers) } else { allow_set(n, PEERS_OF_EACH) };
            update.policy.sets.insert(SetId(number(n)), set);
            programs = PodPrograms { ingress: Some(id), egress: Some(id) };
        }
        update.policy.pods.insert(name, Some(programs));
    }
    update
}

/// One pod more to isolate, with a policy that allows prefixes: every other block of 16 addresses, so that none merge.
fn prefixes(number_of: u32, count: u32, pod: u32) -> Update {
    let block = |n: u32| {
        format!("{}/28", Ipv4Addr::from_bits(0x6440_0000 + number_of * 16 + n * 32)).parse().unwrap()
    };
    let (id, set) = (ProgramId(number(1_000_000 + number_of)), SetId(number(1_000_000 + number_of)));
    let program = Program { every: Some(Allow::Set(set)), ..Program::default() };
    let allowed = AllowSet {
        kind: SetKind::Addresses,
        pods: false,
        prefixes: (0..count).map(block).collect(),
        elements: vec![],
    };
    let mut update = Update::default();
    update.policy.programs.insert(id, Some(Arc::new(program)));
    update.policy.sets.insert(set, SetChange::Create(Arc::new(allowed)));
    let programs = PodPrograms { ingress: Some(id), egress: None };
    update.policy.pods.insert(NamespacedName::new("shop", format!("pod-{pod}")), Some(programs));
    update
}

/// A pod that is not isolated becomes so, or the other way round: a small change.
fn small(n: u32) -> Update {
    let id = ProgramId(number(2));
    let programs = PodPrograms { ingress: n.is_multiple_of(2).then_some(id), egress: None };
    let mut update = Update::default();
    update.policy.pods.insert(NamespacedName::new("shop", "pod-3"), Some(programs));
    update
}

/// Kilobytes that the kernel holds for itself.
fn kernel_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let of = |field: &str| -> u64 {
        let line = text.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    of("SUnreclaim:") + of("VmallocUsed:") + of("Percpu:")
}

/// What the most that one policy and one node may ask for costs, in this process and the namespace that it was born in.
fn limits() {
    let config =
        || Config { layout: LayoutConfig { v6: false, ..LayoutConfig::default() }, ..Config::default() };
    let Limits { prefixes: most, elements, .. } = Limits::default();
    let (most, elements) = (most as u32, elements as u32);
    let submit = |dataplane: &Dataplane, update| {
        let begin = Instant::now();
        dataplane.submit(update).wait().unwrap();
        begin.elapsed()
    };
    let small_changes = |dataplane: &Dataplane| {
        let mut times: Vec<Duration> = (0..40).map(|n| submit(dataplane, small(n))).collect();
        times.sort();
        (times[20], times[39])
    };
    let dataplane = Dataplane::start(config(), &node(PODS, PEERS_OF_EACH)).unwrap();
    println!("a small change beside nothing large: {:?}", small_changes(&dataplane));
    for (n, pods) in [(0, 1), (1, 1), (2, 8)] {
        let (before, update) = (kernel_memory(), prefixes(n, most, 1));
        let mut update = update;
        for pod in 1..pods {
            update.merge(prefixes(n + pod, most, 2 * pod + 5));
        }
        let took = submit(&dataplane, update);
        let held = kernel_memory().saturating_sub(before) / 1024;
        println!(
            "{pods} policies of {most} prefixes: {took:?}, kernel {held} MB more, closed {}",
            dataplane.closed().borrow().len()
        );
        println!("a small change then: {:?}", small_changes(&dataplane));
    }
    drop(dataplane);
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    let update = node(PODS, elements - PEERS_OF_EACH * PODS);
    let before = kernel_memory();
    let begin = Instant::now();
    let dataplane = Dataplane::start(config(), &update).unwrap();
    let took = begin.elapsed();
    drop(update);
    let held = kernel_memory().saturating_sub(before) / 1024;
    println!(
        "{elements} elements put in force: {took:?}, kernel {held} MB more, agent {} MB, at most {} MB, closed {}",
        memory("VmRSS:") / 1024,
        memory("VmHWM:") / 1024,
        dataplane.closed().borrow().len()
    );
    println!("a small change then: {:?}", small_changes(&dataplane));
    drop(dataplane);
    let update = node(PODS, elements - PEERS_OF_EACH * PODS);
    let begin = Instant::now();
    let dataplane = Dataplane::start(config(), &update).unwrap();
    println!("taken over: {:?}, at most {} MB", begin.elapsed(), memory("VmHWM:") / 1024);
    drop(dataplane);
}

/// Kilobytes of this process's memory.
fn memory(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// One start in the namespace that this process was born in: how long it took, and what it holds then.
fn start(pods: u32, peers: u32) {
    let update = node(pods, peers);
    let config =
        Config { layout: LayoutConfig { v6: false, ..LayoutConfig::default() }, ..Config::default() };
    let begin = Instant::now();
    let dataplane = Dataplane::start(config, &update).unwrap();
    let took = begin.elapsed();
    drop(update);
    println!("{} {} {}", took.as_micros(), memory("VmRSS:"), memory("VmHWM:"));
    drop(dataplane);
}

struct Start {
    took: Duration,
    resident: u64,
    most: u64,
}

/// Starts the data plane in a process of its own, here.
fn started(pods: u32, peers: u32) -> Start {
    let output = Command::new(std::env::current_exe().unwrap())
        .env(START, format!("{pods} {peers}"))
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let numbers: Vec<u64> = text.split_whitespace().map(|n| n.parse().unwrap()).collect();
    let [took, resident, most] = numbers[..] else { panic!("{text:?}") };
    Start { took: Duration::from_micros(took), resident, most }
}

fn main() {
    if let Ok(sizes) = std::env::var(START) {
        let sizes: Vec<u32> = sizes.split(' ').map(|n| n.parse().unwrap()).collect();
        return start(sizes[0], sizes[1]);
    }
    if std::env::args().any(|argument| argument == "--limits") {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        return limits();
    }
    println!(
        "{PODS} pods, {PEERS} peers in one allow set, {PEERS_OF_EACH} in each of the others; {ROUNDS} starts each"
    );
    println!("{:<42} {:>10} {:>10} {:>12} {:>12}", "", "median ms", "most ms", "resident MB", "at most MB");
    let mut rows: BTreeMap<&str, Vec<Start>> = BTreeMap::new();
    for _ in 0..ROUNDS {
        // A namespace of its own: nothing is in force there yet.
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        rows.entry("1 nothing there: everything put in force").or_default().push(started(PODS, PEERS));
        rows.entry("2 all of it there: taken over").or_default().push(started(PODS, PEERS));
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        rows.entry("3 no pods, no peers").or_default().push(started(0, 0));
    }
    for (name, mut starts) in rows {
        starts.sort_by_key(|start| start.took);
        let ms = |start: &Start| start.took.as_secs_f64() * 1e3;
        let mb = |of: fn(&Start) -> u64| starts.iter().map(of).max().unwrap() as f64 / 1024.0;
        println!(
            "{:<42} {:>10.0} {:>10.0} {:>12.1} {:>12.1}",
            &name[2..],
            ms(&starts[starts.len() / 2]),
            ms(&starts[starts.len() - 1]),
            mb(|start| start.resident),
            mb(|start| start.most),
        );
    }
}
