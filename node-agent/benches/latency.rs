//! From the rename of a manifest to the last packet let through, or the first: the real agent, pods by the real plugin.
//!
//! ```text
//! cargo xtask bench latency [--quick]            (or cargo bench -p moat-agent --bench latency -- [--quick]
//!                                            [--new | --established] [--quiet] [--still] [--changing] [--in-force] [--in-force-changing])
//! ```
//!
//! A client sends to a server every half millisecond, all the time: one established flow in the first round, a new flow
//! each packet in the second. The server's policy is replaced by rename(2), by turns by one that lets nobody in and by one
//! that lets the client in. A figure is the time from the return of rename(2) until the sending of the last packet that
//! arrived (deny) or of the first (allow) had returned: packets between namespaces are judged inside send(2), and a packet
//! every half millisecond is how finely it can be seen.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on ends by panicking")]

#[path = "../tests/podnet/world.rs"]
#[allow(dead_code, reason = "shared with the tests, which use more of it")]
mod netns;
#[path = "../tests/agent/world.rs"]
#[allow(dead_code, reason = "shared with the tests, which use more of it")]
mod world;

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use netns::in_world;
use world::{Pod, World};

const PODS: usize = 100;
const ENTRIES: usize = 10_000;
const PERIOD: Duration = Duration::from_micros(500);
/// Nothing arrives for so long: it is denied.
const QUIET: Duration = Duration::from_millis(40);
/// What has not happened by then never will.
const PATIENCE: Duration = Duration::from_secs(20);
const PORT: u16 = 7000;
const NOISY_POLICIES: usize = 5_000;
/// The pods that are in the noisy namespace, where there is one.
const NOISY_PODS: std::ops::Range<usize> = 22..42;
/// How often one of its policies changes, where they do.
const CHANGES: Duration = Duration::from_millis(20);

fn main() {
    let given = |word: &str| std::env::args().any(|argument| argument == word);
    let quick = given("--quick");
    let kinds = [(Flows::Established, "--new"), (Flows::New, "--established")];
    let noises = [
        (Noise::None, "--quiet"),
        (Noise::Still, "--still"),
        (Noise::Changing, "--changing"),
        (Noise::InForce, "--in-force"),
        (Noise::InForceChanging, "--in-force-changing"),
    ];
    let asked = noises.iter().any(|(_, word)| given(word));
    let (trials, entries) = if quick { (20, 1_000) } else { (200, ENTRIES) };
    in_world(|| {
        for (noise, _) in noises.into_iter().filter(|(_, word)| !asked || given(word)) {
            let mut world = World::new();
            let pods = set_up(&mut world, entries, noise);
            let (server, client) = (&pods[0], &pods[1]);
            println!(
                "{}: {PODS} pods, {} files, {} conntrack entries, a packet every {PERIOD:?}, {trials} trials each; milliseconds",
                noise.name(),
                std::fs::read_dir(world.manifests()).unwrap().count(),
                world.node.sh("cat /proc/sys/net/netfilter/nf_conntrack_count").trim(),
            );
            println!("{:<26} {:>7} {:>7} {:>7} {:>7}", "", "p50", "p90", "p99", "most");
            for (kind, _) in kinds.into_iter().filter(|(_, only_other)| !given(only_other)) {
                let still = AtomicBool::new(false);
                let [deny, allow] = thread::scope(|scope| {
                    if noise.changes() {
                        scope.spawn(|| change(&world, noise, &still));
                    }
                    let times = measure(&world, server, client, kind, trials);
                    still.store(true, Ordering::Relaxed);
                    times
                });
                print(&format!("deny, {}", kind.name()), deny);
                print(&format!("allow, {}", kind.name()), allow);
            }
            println!("agent: {} KiB resident", world.memory("VmRSS"));
            // Nothing of this is odd but the namespace that asks for too much, so the agent has nothing else to complain of.
            let log = world.log();
            log.lines()
                .filter(|l| l.contains(" WARN ") || l.contains(" ERROR "))
                .filter(|l| !l.contains("pod=noisy/"))
                .for_each(|l| println!("{l}"));
        }
    });
}

/// What another namespace of the node does meanwhile.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Noise {
    None,
    /// It has many policies, all of which are about each of its pods: these are closed.
    Still,
    /// They change, too.
    Changing,
    /// Each is about one of its pods, so that all are in force.
    InForce,
    /// They change, too.
    InForceChanging,
}

impl Noise {
    fn name(self) -> &'static str {
        match self {
            Noise::None => "nobody else",
            Noise::Still => "a namespace with 5,000 policies and 10,000 excepts beside it",
            Noise::Changing => "the same, one of its policies changing every 20 ms",
            Noise::InForce => {
                "such a namespace, 250 policies and the excepts for each of its 20 pods, so that all are in force"
            }
            Noise::InForceChanging => "the same, all in force and one of its policies changing every 20 ms",
        }
    }

    fn changes(self) -> bool {
        matches!(self, Noise::Changing | Noise::InForceChanging)
    }

    /// Whom policy number `n` is about.
    fn subject(self, n: usize) -> String {
        match self {
            Noise::InForce | Noise::InForceChanging => {
                format!("{{matchLabels: {{app: p{}}}}}", NOISY_PODS.start + n % NOISY_PODS.len())
            }
            _ => "{}".to_owned(),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Flows {
    Established,
    New,
}

impl Flows {
    fn name(self) -> &'static str {
        match self {
            Flows::Established => "an established flow",
            Flows::New => "new flows",
        }
    }
}

/// The agent, its pods, some policies, and what the node's connections are besides.
fn set_up(world: &mut World, entries: usize, noise: Noise) -> Vec<Pod> {
    let name = |n: usize| format!("p{n}");
    let namespace =
        |n: usize| if noise != Noise::None && NOISY_PODS.contains(&n) { "noisy" } else { "default" };
    for n in 0..PODS {
        world.write(&format!("pod-{n}.yaml"), &World::pod_text_in(namespace(n), &name(n)));
    }
    for n in 2..22 {
        world.write(&format!("policy-{n}.yaml"), &policy(&name(n), Some(&name(n + 1))));
    }
    world.write("policy-0.yaml", &policy("p0", Some("p1")));
    world.start_ready();
    let pods: Vec<Pod> = (0..PODS).map(|n| world.add_in(namespace(n), &name(n))).collect();
    if noise != Noise::None {
        make_noise(world, noise);
    }
    // Flows between the pods that no policy is about; those of the measurement itself are soon forgotten.
    let timeout = |seconds: u32| {
        world.node.sh(&format!(
            "sysctl -qw net.netfilter.nf_conntrack_udp_timeout={seconds} net.netfilter.nf_conntrack_udp_timeout_stream=3600"
        ));
    };
    timeout(3600);
    let others = &pods[NOISY_PODS.end..];
    let each = entries.div_ceil(others.len());
    for (n, pod) in others.iter().enumerate() {
        fill(pod, &others[(n + 1) % others.len()], each);
    }
    timeout(2);
    pods
}

/// A namespace whose pods are subject to many policies, each with a port and a peer of its own, and to one that lets a large
/// block in with many holes.
fn make_noise(world: &World, noise: Noise) {
    let peer = |n: usize| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: peer-{n}, namespace: noisy, labels: {{peer: peer-{n}}}}}, spec: \
             {{nodeName: there, containers: [{{name: c, image: i}}]}}, status: {{podIP: 10.2.{}.{}}}}}\n---\n",
            n / 250,
            n % 250 + 1
        )
    };
    world.write("noisy-peers.yaml", &(0..NOISY_POLICIES).map(peer).collect::<String>());
    for n in 0..NOISY_POLICIES {
        world.write(&format!("noisy-{n}.yaml"), &noisy_policy(noise, n, n));
    }
    // Every other block of 16 addresses, so that none of them merge.
    let except = |n: usize| format!("100.{}.{}.{}/28", 64 + n / 2048, n / 8 % 256, n % 8 * 32);
    let excepts: Vec<String> = (0..10_000).map(except).collect();
    world.write(
        "noisy-excepts.yaml",
        &format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: excepts, namespace: noisy}}, spec: \
             {{podSelector: {{}}, ingress: [{{from: [{{ipBlock: {{cidr: 100.64.0.0/10, except: [{}]}}}}], ports: [{{port: \
             60000}}]}}]}}}}\n",
            excepts.join(", ")
        ),
    );
    let sources = moat_manifests::read(&[world.manifests()]).unwrap();
    let all = format!("applied {}\n", moat_manifests::fingerprint(&sources));
    let closed = if matches!(noise, Noise::InForce | Noise::InForceChanging) { 0 } else { NOISY_PODS.len() };
    world.until("the noisy policies are in force, or their pods closed", |world| {
        let says = world.readyz().map(|r| r.body).unwrap_or_default();
        says.starts_with(&all) && says.matches("closed noisy/").count() == closed
    });
}

/// The noisy namespace's policy number `n`, which lets one peer in on a port of its own.
fn noisy_policy(noise: Noise, n: usize, peer: usize) -> String {
    let subject = noise.subject(n);
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: noisy-{n}, namespace: noisy}}, spec: \
         {{podSelector: {subject}, ingress: [{{from: [{{podSelector: {{matchLabels: {{peer: peer-{peer}}}}}}}], ports: \
         [{{port: {}}}]}}]}}}}\n",
        10_000 + n
    )
}

/// Changes one of the noisy policies after the other, until it is to be still.
fn change(world: &World, noise: Noise, still: &AtomicBool) {
    for round in 1.. {
        for n in 0..NOISY_POLICIES {
            if still.load(Ordering::Relaxed) {
                return;
            }
            world.write(&format!("noisy-{n}.yaml"), &noisy_policy(noise, n, (n + round) % NOISY_POLICIES));
            thread::sleep(CHANGES);
        }
    }
}

/// Ingress to one pod, from one other or nobody.
fn policy(subject: &str, peer: Option<&str>) -> String {
    let from = peer.map(|peer| format!("{{from: [{{podSelector: {{matchLabels: {{app: {peer}}}}}}}]}}"));
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {subject}}}, spec: \
         {{podSelector: {{matchLabels: {{app: {subject}}}}}, policyTypes: [Ingress], ingress: [{}]}}}}\n",
        from.unwrap_or_default()
    )
}

/// So many flows from one pod to another, each answered.
fn fill(from: &Pod, to: &Pod, flows: usize) {
    let server = SocketAddr::new(to.address, PORT);
    let sink = to.ns.run(move || UdpSocket::bind(server).unwrap());
    sink.set_read_timeout(Some(PATIENCE)).unwrap();
    let address = from.address;
    let clients = from.ns.run(move || {
        let client = |n: usize| {
            let socket = UdpSocket::bind(SocketAddr::new(address, 10_000 + n as u16)).unwrap();
            socket.send_to(b"fill", server).unwrap();
            socket
        };
        (0..flows).map(client).collect::<Vec<_>>()
    });
    for _ in &clients {
        let (_, client) = sink.recv_from(&mut [0; 8]).unwrap();
        sink.send_to(b"fill", client).unwrap();
    }
    for client in clients {
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.recv(&mut [0; 8]).unwrap();
    }
}

/// What the two ends share: nanoseconds since the start.
struct Clock {
    start: Instant,
    /// When the newest packet arrived.
    arrived: AtomicU64,
    stop: AtomicBool,
}

impl Clock {
    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }
}

/// Changes the policy by turns, and finds what became of each packet. Returns the times of denies and of allows.
fn measure(world: &World, server: &Pod, client: &Pod, kind: Flows, trials: usize) -> [Vec<Duration>; 2] {
    let clock =
        Arc::new(Clock { start: Instant::now(), arrived: AtomicU64::new(0), stop: AtomicBool::new(false) });
    let receiver = receive(server, &clock);
    let sender = send(client, server, kind, &clock);
    let (allowed, denied) = (policy("p0", Some("p1")), policy("p0", None));
    let wait = |what: &str, condition: &dyn Fn() -> bool| {
        let begin = Instant::now();
        while !condition() {
            assert!(begin.elapsed() < PATIENCE, "{what}, {}: never\n{}", kind.name(), world.log());
            thread::sleep(Duration::from_millis(1));
        }
    };
    wait("the first packet", &|| clock.arrived.load(Ordering::Relaxed) > 0);
    let mut changes = Vec::new();
    for trial in 0..2 * trials {
        let deny = trial % 2 == 0;
        // Anywhere between two packets, and between what else happens regularly.
        thread::sleep(QUIET + Duration::from_micros((trial as u64 * 617) % 3_000));
        let begun = clock.now();
        let at = world.write("policy-0.yaml", if deny { &denied } else { &allowed });
        let at = at.duration_since(clock.start).as_nanos() as u64;
        changes.push(Change { begun, at });
        let quiet = QUIET.as_nanos() as u64;
        if deny {
            wait("denied", &|| clock.now() > clock.arrived.load(Ordering::Relaxed).max(at) + quiet);
        } else {
            wait("allowed", &|| clock.arrived.load(Ordering::Relaxed) > at);
        }
    }
    thread::sleep(QUIET);
    clock.stop.store(true, Ordering::Relaxed);
    let sent = sender.join().unwrap();
    let arrived = receiver.join().unwrap();
    judge(&changes, &sent, &arrived)
}

/// When a policy was put in its place: before rename(2), and after. It can be in force before rename(2) has returned.
struct Change {
    begun: u64,
    at: u64,
}

/// `sent`: when the sending of each packet had returned. `arrived`: which of them did.
fn judge(changes: &[Change], sent: &[u64], arrived: &[u64]) -> [Vec<Duration>; 2] {
    let mut times = [Vec::new(), Vec::new()];
    let through: Vec<u64> = arrived.iter().map(|packet| sent[*packet as usize]).collect();
    for (trial, change) in changes.iter().enumerate() {
        let next = changes.get(trial + 1).map_or(u64::MAX, |next| next.begun);
        let mut seen = through.iter().filter(|at| (change.begun..next).contains(*at));
        let at = if trial % 2 == 0 { seen.max() } else { seen.next() };
        times[trial % 2].push(Duration::from_nanos(at.map_or(0, |at| at.saturating_sub(change.at))));
    }
    times
}

fn receive(server: &Pod, clock: &Arc<Clock>) -> JoinHandle<Vec<u64>> {
    let (address, clock) = (SocketAddr::new(server.address, PORT), clock.clone());
    let socket = server.ns.run(move || UdpSocket::bind(address).unwrap());
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    thread::spawn(move || {
        let mut arrived = Vec::new();
        while !clock.stop.load(Ordering::Relaxed) {
            let mut packet = [0; 8];
            let Ok((_, from)) = socket.recv_from(&mut packet) else { continue };
            clock.arrived.store(clock.now(), Ordering::Relaxed);
            // A flow that was answered is established.
            if arrived.len() < 10 {
                let _ = socket.send_to(b"answer", from);
            }
            arrived.push(u64::from_ne_bytes(packet));
        }
        arrived
    })
}

fn send(client: &Pod, server: &Pod, kind: Flows, clock: &Arc<Clock>) -> JoinHandle<Vec<u64>> {
    let (from, to, clock) = (client.address, SocketAddr::new(server.address, PORT), clock.clone());
    client.ns.run(move || {
        thread::spawn(move || {
            let port = |n: usize| 10_000 + (n % 50_000) as u16;
            let open = |n: usize| UdpSocket::bind(SocketAddr::new(from, port(n))).unwrap();
            let mut socket = open(0);
            let mut sent = Vec::new();
            let mut next = Instant::now();
            while !clock.stop.load(Ordering::Relaxed) {
                if kind == Flows::New && !sent.is_empty() {
                    socket = open(sent.len());
                }
                // Where nobody listens any more, an earlier answer is told as an error.
                let _ = socket.send_to(&sent.len().to_ne_bytes(), to);
                sent.push(clock.now());
                next += PERIOD;
                thread::sleep(next.saturating_duration_since(Instant::now()));
            }
            sent
        })
    })
}

fn print(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    println!("{what:<26} {:>7.2} {:>7.2} {:>7.2} {:>7.2}", at(50), at(90), at(99), at(100));
}
