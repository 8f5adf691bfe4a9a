//! What a pod's network costs its start: from the runtime's call of the plugin until the first packet of an allowed peer
//! has been answered. The real plugin, the real agent with policy, the real kernel and disk.
//!
//! ```text
//! cargo bench -p moat-agent --bench cni_add
//! cargo bench -p moat-agent --bench cni_add -- --quick
//! cargo bench -p moat-agent --bench cni_add -- --pods 10,250
//! ```
//!
//! "ADD" is the wall time of the plugin's process, as a runtime sees it, and "answered" until a TCP connection from an
//! allowed peer is open after that; with as many pods attached as a full node has. The reference plugins `ptp` and
//! `host-local` (Debian's package containernetworking-plugins) do the same in turns with ours, on a node of their own,
//! with no policy at all.
//!
//! With `--pods` instead: nodes with so many pods each take turns, to see whether a start grows with them.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on ends by panicking")]

#[path = "../tests/podnet/real.rs"]
#[allow(dead_code, reason = "shared with the tests, which use more of it")]
mod real;
#[path = "shared/reference.rs"]
mod reference;
#[path = "../tests/podnet/world.rs"]
#[allow(dead_code, reason = "shared with the tests, which use more of it")]
mod world;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use real::{RealNode, pod};
use reference::Reference;
use socket2::{Domain, Socket, Type};
use world::{Namespace, addresses, in_world};

/// Pods on the node besides those that are measured.
const PRESENT: usize = 100;
/// What a start may take with the most pods, measured by one with the fewest.
const GROWTH: f64 = 1.2;
/// The reference takes a second and more for IPv6: it waits for duplicate address detection.
const SLOW_ROUNDS: usize = 10;
/// How many ADDs there are at once.
const AT_ONCE: usize = 100;

/// How often something is measured.
#[derive(Clone, Copy)]
struct Runs {
    rounds: usize,
    /// Of 100 ADDs at once.
    bursts: usize,
}

const ALL: Runs = Runs { rounds: 200, bursts: 5 };
const QUICK: Runs = Runs { rounds: 40, bursts: 1 };

const PORT: u16 = 7;
const V4: &str = "10.1.0.0/23";
const V6: &str = "fd00:1::/64";

/// Every pod lets in the peer, and nobody else.
const POLICY: &str = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: from-peer}\n\
    spec: {podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: peer}}}]}]}\n";

fn main() {
    in_world(|| {
        world::plugin_binary();
        let arguments: Vec<String> = std::env::args().collect();
        let runs = if arguments.iter().any(|argument| argument == "--quick") { QUICK } else { ALL };
        if let Some(at) = arguments.iter().position(|argument| argument == "--pods") {
            let counts = arguments.get(at + 1).expect("numbers of pods, 10,250 for example").split(',');
            let counts: Vec<usize> = counts.map(|count| count.parse().expect("a number of pods")).collect();
            head();
            for (family, cidrs) in [("IPv4", &[V4][..]), ("dual stack", &[V4, V6][..])] {
                growth(family, cidrs, &counts, runs.rounds);
            }
            return;
        }
        println!("{PRESENT} pods present");
        head();
        for (family, cidrs) in [("IPv4", &[V4][..]), ("IPv6", &[V6][..]), ("dual stack", &[V4, V6][..])] {
            one_at_a_time(family, cidrs, runs.rounds);
        }
        println!(
            "{:<30} {:>6} {:>9} {:>9} {:>9}",
            "100 at once", "ADDs", "answ. p50", "answ. p99", "all done"
        );
        for (family, cidrs) in [("IPv4", &[V4][..]), ("dual stack", &[V4, V6][..])] {
            at_once(family, cidrs, runs.bursts);
        }
    });
}

fn head() {
    println!("every pod isolated for ingress by a policy; milliseconds");
    println!(
        "{:<30} {:>6} {:>8} {:>8} {:>9} {:>9} {:>8} {:>8}",
        "one at a time", "rounds", "ADD p50", "ADD p99", "answ. p50", "answ. p99", "DEL p50", "DEL p99"
    );
}

/// A node whose pods are made by somebody's plugin.
trait Plugins: Sync {
    /// ADD; the pod's addresses.
    fn add(&self, id: &str, netns: &Path) -> Vec<IpAddr>;
    /// DEL.
    fn del(&self, id: &str, netns: &Path);
}

struct Moat {
    node: RealNode,
}

impl Moat {
    fn new(cidrs: &[&str], present: usize) -> Self {
        let mut manifests = pod("peer");
        (0..present).for_each(|n| manifests.push_str(&pod(&format!("present{n}"))));
        (0..ALL.rounds.max(AT_ONCE)).for_each(|n| manifests.push_str(&pod(&format!("measured{n}"))));
        manifests.push_str(POLICY);
        let mut node = RealNode::new(cidrs, &manifests);
        node.start();
        Self { node }
    }
}

impl Plugins for Moat {
    fn add(&self, id: &str, netns: &Path) -> Vec<IpAddr> {
        addresses(&self.node.plugin().run("ADD", id, netns).ok())
    }

    fn del(&self, id: &str, netns: &Path) {
        self.node.plugin().run("DEL", id, netns).ok();
    }
}

/// A node of the reference plugin `ptp`, where it is here.
fn reference(cidrs: &[&str]) -> Option<Reference> {
    reference::is_here().then(|| {
        let node = Namespace::new();
        node.sh("ip link set lo up");
        Reference::at(node, "ptp", cidrs)
    })
}

impl Plugins for Reference {
    fn add(&self, id: &str, netns: &Path) -> Vec<IpAddr> {
        addresses(&self.run("ADD", id, netns))
    }

    fn del(&self, id: &str, netns: &Path) {
        self.run("DEL", id, netns);
    }
}

/// Somebody's node with its peer and the pods that are there.
struct Site<'a> {
    plugins: &'a dyn Plugins,
    peer: Namespace,
    _present: Vec<Namespace>,
}

impl<'a> Site<'a> {
    fn new(plugins: &'a dyn Plugins, present: usize) -> Self {
        let add = |id: String| {
            let ns = Namespace::new();
            plugins.add(&id, &ns.path);
            ns
        };
        let peer = add("peer".into());
        Self { plugins, peer, _present: (0..present).map(|n| add(format!("present{n}"))).collect() }
    }

    /// A pod to be: its namespace, with somebody who listens on any address that it will have.
    fn pod_to_be(&self) -> (Namespace, Socket) {
        let ns = Namespace::new();
        let listener = ns.run(|| {
            let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
            socket.bind(&SocketAddr::new("::".parse().unwrap(), PORT).into()).unwrap();
            socket.listen(16).unwrap();
            socket
        });
        (ns, listener)
    }

    /// Sockets of the peer, made beforehand.
    fn sockets(&self) -> [Socket; 2] {
        self.peer.run(|| [Domain::IPV4, Domain::IPV6].map(|f| Socket::new(f, Type::STREAM, None).unwrap()))
    }

    /// Times ADD, and until the peer has been answered on every address.
    fn add(&self, id: &str, ns: &Namespace, sockets: [Socket; 2]) -> (Duration, Duration) {
        let started = Instant::now();
        let addresses = self.plugins.add(id, &ns.path);
        let added = started.elapsed();
        for address in addresses {
            let socket = &sockets[usize::from(address.is_ipv6())];
            let to = SocketAddr::new(address, PORT).into();
            socket.connect_timeout(&to, Duration::from_secs(10)).unwrap();
        }
        (added, started.elapsed())
    }

    /// A pod comes, is answered, and goes.
    fn round(&self, id: &str, times: &mut Times) {
        let sockets = self.sockets();
        let (ns, _listener) = self.pod_to_be();
        let (added, answered) = self.add(id, &ns, sockets);
        times.add.push(added);
        times.answered.push(answered);
        let started = Instant::now();
        self.plugins.del(id, &ns.path);
        times.del.push(started.elapsed());
    }
}

#[derive(Default)]
struct Times {
    add: Vec<Duration>,
    answered: Vec<Duration>,
    del: Vec<Duration>,
}

fn one_at_a_time(family: &str, cidrs: &[&str], most: usize) {
    let moat = Moat::new(cidrs, PRESENT);
    let reference = reference(cidrs);
    let mut sites = vec![(format!("moat, {family}"), Site::new(&moat, PRESENT), most, Times::default())];
    if let Some(reference) = &reference {
        let rounds = if family == "IPv4" { most } else { SLOW_ROUNDS };
        // With as few pods present where each takes seconds: it has no policy that would have to know them.
        let site = if family == "IPv4" {
            Site::new(reference, PRESENT)
        } else {
            let peer = Namespace::new();
            reference.add("peer", &peer.path);
            Site { plugins: reference, peer, _present: Vec::new() }
        };
        sites.push((format!("ptp, host-local, {family}"), site, rounds, Times::default()));
    }
    for n in 0..most {
        for (_, site, rounds, times) in &mut sites {
            if n < *rounds {
                site.round(&format!("measured{n}"), times);
            }
        }
    }
    for (what, _, rounds, times) in sites {
        let [add, answered, del] = [times.add, times.answered, times.del].map(percentiles);
        println!(
            "{what:<30} {rounds:>6} {:>8.2} {:>8.2} {:>9.2} {:>9.2} {:>8.2} {:>8.2}",
            add.0, add.1, answered.0, answered.1, del.0, del.1
        );
    }
}

fn at_once(family: &str, cidrs: &[&str], bursts_wanted: usize) {
    let moat = Moat::new(cidrs, PRESENT);
    let reference = reference(cidrs).filter(|_| family == "IPv4");
    let mut sites = vec![(format!("moat, {family}"), Site::new(&moat, PRESENT), Vec::new(), Vec::new())];
    if let Some(reference) = &reference {
        sites.push((
            format!("ptp, host-local, {family}"),
            Site::new(reference, PRESENT),
            Vec::new(),
            Vec::new(),
        ));
    }
    for _ in 0..bursts_wanted {
        for (_, site, times, bursts) in &mut sites {
            let pods: Vec<_> = (0..AT_ONCE).map(|_| (site.pod_to_be(), site.sockets())).collect();
            let site: &Site<'_> = site;
            let started = Instant::now();
            let kept: Vec<_> = thread::scope(|scope| {
                let adding: Vec<_> = pods
                    .into_iter()
                    .zip(0..)
                    .map(|((pod, sockets), n)| {
                        scope.spawn(move || (site.add(&format!("measured{n}"), &pod.0, sockets).1, pod))
                    })
                    .collect();
                adding.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            bursts.push(started.elapsed());
            for ((took, (ns, _listener)), n) in kept.into_iter().zip(0..) {
                times.push(took);
                site.plugins.del(&format!("measured{n}"), &ns.path);
            }
        }
    }
    for (what, _, times, bursts) in sites {
        let count = times.len();
        let (times, bursts) = (percentiles(times), percentiles(bursts));
        println!("{what:<30} {count:>6} {:>9.2} {:>9.2} {:>9.2}", times.0, times.1, bursts.0);
    }
}

/// Nodes with different numbers of pods take turns.
fn growth(family: &str, cidrs: &[&str], counts: &[usize], rounds: usize) {
    let nodes: Vec<Moat> = counts.iter().map(|present| Moat::new(cidrs, *present)).collect();
    let sites = nodes.iter().zip(counts).map(|(moat, present)| (Site::new(moat, *present), Times::default()));
    let mut sites: Vec<_> = sites.collect();
    for n in 0..rounds {
        // Nobody is always the first.
        for place in 0..sites.len() {
            let place = (place + n) % counts.len();
            let (site, times) = &mut sites[place];
            site.round(&format!("measured{n}"), times);
        }
    }
    let (least, most) = (counts[0], counts[counts.len() - 1]);
    let mut p50s = Vec::new();
    for (present, (_, times)) in counts.iter().zip(sites) {
        let [add, answered, del] = [times.add, times.answered, times.del].map(percentiles);
        println!(
            "{:<30} {rounds:>6} {:>8.2} {:>8.2} {:>9.2} {:>9.2} {:>8.2} {:>8.2}",
            format!("{present} pods, {family}"),
            add.0,
            add.1,
            answered.0,
            answered.1,
            del.0,
            del.1
        );
        p50s.push(answered.0);
    }
    let ratio = p50s[p50s.len() - 1] / p50s[0];
    let word = if ratio <= GROWTH { "" } else { "  MISSED" };
    println!(
        "{family}: answered with {most} pods : with {least}, p50: {ratio:.3}   (at most: {GROWTH}){word}"
    );
}

/// p50 and p99, in milliseconds.
fn percentiles(mut times: Vec<Duration>) -> (f64, f64) {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    (at(50), at(99))
}
