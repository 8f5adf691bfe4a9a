//! The writer: adoption, guarding, restoring, foreign commits.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use moat_agent::dataplane::{Config, Dataplane, DropReason, Error, Update};
use moat_policies::Direction::Ingress;

use crate::interrupted::uninterrupted;
use crate::probe::Fate::{Dropped, Passed};
use crate::probe::{From, udp_socket};
use crate::space::privileged;
use crate::verdicts::policy;
use crate::world::{World, name};

const FROM_A: &str =
    "{podSelector: {matchLabels: {app: b}}, ingress: [{from: [{podSelector: {matchLabels: {app: a}}},
    {ipBlock: {cidr: 10.0.1.0/24}}], ports: [{port: 80, protocol: UDP}, {port: 81, protocol: UDP},
    {port: 83, endPort: 85}, {port: 90}]}]}";

/// Not guarded by the kernel: what older kernels, or `--no-owner`, leave us with.
pub(crate) fn unguarded() -> Config {
    Config { owner: false, ..Config::default() }
}

/// Waits until something holds; fails after ten seconds, and says how long it took.
pub(crate) fn until(mut holds: impl FnMut() -> bool) -> Duration {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < Duration::from_secs(10), "it never holds");
        std::thread::yield_now();
    }
    begin.elapsed()
}

/// Traffic in the background: from a's new port each time, which must arrive, and from c's, which must not.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU32>,
    threads: Vec<std::thread::JoinHandle<(u32, u32)>>,
}

impl Traffic {
    pub(crate) fn start(w: &World, allowed: &[&str], denied: &[&str]) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let mut threads = Vec::new();
        for (sender, expected) in allowed.iter().map(|n| (n, true)).chain(denied.iter().map(|n| (n, false))) {
            let (stop, sent) = (stop.clone(), sent.clone());
            let from = if w.pods.contains_key(*sender) { &w.pods[*sender].space } else { &w.outside };
            let source = w.v4(sender);
            let to = w.v4("b");
            // Each sender has a port of its own, so that nobody's packets are taken for another's.
            let port = if expected { 80 } else { 81 };
            let receiver = w.pods["b"].space.run(move || udp_socket(SocketAddr::new(to, port)));
            receiver.set_nonblocking(false).expect("works");
            receiver
                .set_read_timeout(Some(Duration::from_millis(if expected { 900 } else { 1 })))
                .expect("works");
            let (go, ready) = std::sync::mpsc::channel();
            let run = move || {
                let (mut lost, mut through) = (0, 0);
                let mut buffer = [0; 8];
                while !stop.load(Ordering::Relaxed) {
                    // A new port is a new connection: no fast path.
                    let socket = std::net::UdpSocket::bind(SocketAddr::new(source, 0)).expect("works");
                    let _ = socket.send_to(b"x", (to, port));
                    match uninterrupted(|| receiver.recv(&mut buffer)) {
                        Ok(_) => through += 1,
                        Err(_) => lost += 1,
                    }
                    sent.fetch_add(1, Ordering::Relaxed);
                }
                if expected { (lost, 0) } else { (0, through) }
            };
            from.run(move || drop(go.send(std::thread::spawn(run))));
            threads.push(ready.recv().expect("works"));
        }
        Self { stop, sent, threads }
    }

    /// Allowed packets that were lost, and denied ones that came through.
    pub(crate) fn stop(self) -> (u32, u32) {
        let floor = self.sent.load(Ordering::Relaxed) + 20;
        until(|| self.sent.load(Ordering::Relaxed) > floor);
        self.stop.store(true, Ordering::Relaxed);
        self.threads
            .into_iter()
            .map(|t| t.join().expect("works"))
            .fold((0, 0), |(a, b), (c, d)| (a + c, b + d))
    }
}

#[test]
fn a_restart_loses_no_allowed_packet_and_lets_no_denied_one_through() {
    privileged(|| {
        for config in [Config::default(), unguarded()] {
            let mut w = World::with(&["a", "b", "c"], &["r"], &policy("p", FROM_A), config);
            // a is let in by its address in a hash, and c by nothing.
            let traffic = Traffic::start(&w, &["a"], &["c"]);
            for _ in 0..20 {
                w.restart();
            }
            assert_eq!(traffic.stop(), (0, 0));
            // r is let in by a prefix, whose set the kernel puts in force in its own way.
            let traffic = Traffic::start(&w, &["r"], &["c"]);
            for round in 0..20 {
                w.apply(&policy("other", &format!("{{podSelector: {{matchLabels: {{app: b}}}},
                    ingress: [{{from: [{{ipBlock: {{cidr: 10.9.{round}.0/24}}}}], ports: [{{port: 80, protocol: UDP}}]}}]}}")));
                w.restart();
            }
            assert_eq!(traffic.stop(), (0, 0));
            w.check();
        }
    });
}

#[test]
fn a_restart_brings_what_changed_meanwhile() {
    privileged(|| {
        let mut w = World::new(&["a", "b"], &[], &policy("p", FROM_A));
        assert_eq!(w.udp(From::Pod("a"), w.v4("b"), 80), Passed);
        w.dataplane = None;
        assert_eq!(
            w.tcp(From::Pod("a"), w.v4("b"), 80),
            Dropped(DropReason::Policy.on(Ingress)),
            "still in force"
        );
        w.cluster.delete(&moat_policies::Key::Policy(name("p")));
        w.cluster.commit();
        w.restart();
        assert_eq!(w.tcp(From::Pod("a"), w.v4("b"), 80), Passed);
        w.check();
        assert!(
            !w.node.command("nft list table inet moat").contains("ingress-"),
            "nothing is left of the program"
        );
    });
}

#[test]
fn others_cannot_touch_guarded_tables() {
    privileged(|| {
        let w = World::new(&["a", "b"], &[], &policy("p", FROM_A));
        assert_eq!(w.dataplane().stats().owner(), 1, "this kernel lets tables have owners");
        w.node.command("nft flush ruleset");
        assert!(!w.node.try_command("nft delete table inet moat").0);
        assert!(!w.node.try_command("nft insert rule inet moat forward accept").0);
        assert_eq!(w.tcp(From::Pod("a"), w.v4("b"), 80), Dropped(DropReason::Policy.on(Ingress)));
        let second = {
            let whole = w.whole();
            w.node.run(move || Dataplane::start(Config::default(), &whole).err())
        };
        assert!(matches!(second, Some(Error::Owned { .. })), "{second:?}");
        w.check();
    });
}

#[test]
fn unguarded_tables_are_restored_within_a_second() {
    privileged(|| {
        let w = World::with(&["a", "b"], &[], &policy("p", FROM_A), unguarded());
        assert_eq!(w.dataplane().stats().owner(), 0);
        let listing = || w.node.try_command("nft -s list ruleset").1;
        let sound = listing();
        for damage in [
            "nft flush ruleset",
            "nft delete table inet moat",
            "nft delete table netdev moat",
            "nft insert rule inet moat forward accept",
            "nft flush chain inet moat forward",
            "nft delete element inet moat pods { moata . 02:00:00:00:00:0a }",
            "nft add element inet moat local4 { 10.0.0.77 }",
            "nft add chain inet moat stray",
            "nft add set inet moat stray { type ipv4_addr ; }",
            "nft add chain inet moat backdoor { type filter hook forward priority -10 ; policy accept ; }",
        ] {
            let restores = w.dataplane().stats().restores();
            w.node.command(damage);
            let took = until(|| sorted(&listing()) == sorted(&sound));
            assert!(took < Duration::from_secs(1), "{damage}: {took:?}");
            assert!(w.dataplane().stats().restores() > restores, "{damage}");
            w.check();
        }
        assert_eq!(w.tcp(From::Pod("a"), w.v4("b"), 80), Dropped(DropReason::Policy.on(Ingress)));
    });
}

/// Lines of a listing without what changes by itself: the order of tables, and elements' order in hash tables.
fn sorted(listing: &str) -> Vec<String> {
    let mut lines: Vec<String> = listing
        .lines()
        .flat_map(|l| l.split(", "))
        .map(|l| l.trim().trim_start_matches("elements = {").trim_end_matches([',', '}']).trim().to_owned())
        .filter(|l| !l.is_empty() && !l.starts_with("table"))
        .collect();
    lines.sort_unstable();
    lines
}

#[test]
fn foreign_commits_cost_neither_a_listing_nor_an_update() {
    privileged(|| {
        for config in [Config::default(), unguarded()] {
            let guarded = config.owner;
            let mut w = World::with(&["a", "b"], &["r"], &policy("p", FROM_A), config);
            let foreign = Foreign::start(&w);
            let begin = Instant::now();
            let mut updates = 0;
            // 50 commits a second, for three seconds' worth of them, and updates of our own in between.
            while foreign.commits() < 150 {
                w.apply(&policy(
                    "more",
                    &format!(
                        "{{podSelector: {{matchLabels: {{app: a}}}}, ingress: [{{from: [
                    {{ipBlock: {{cidr: 10.7.{}.0/24}}}}, {{podSelector: {{}}}}]}}]}}",
                        updates % 200
                    ),
                ));
                updates += 1;
            }
            let rate = f64::from(foreign.commits()) / begin.elapsed().as_secs_f64();
            foreign.end();
            assert!(rate >= 45.0, "{rate} foreign commits a second");
            let stats = w.dataplane().stats();
            assert_eq!(
                (stats.listings(), stats.refusals(), stats.restores()),
                (1, 0, 0),
                "{:?}",
                stats.all()
            );
            assert!(updates > 10);
            if !guarded {
                until(|| stats.foreign_commits() >= 150);
            }
            w.check();
        }
    });
}

/// Somebody in a node who commits to a table of his own, as kube-proxy does, 50 times a second.
struct Foreign {
    stop: Arc<AtomicBool>,
    commits: Arc<AtomicU32>,
    thread: std::thread::JoinHandle<()>,
}

impl Foreign {
    /// Starts, and waits for the first commit.
    fn start(w: &World) -> Self {
        let (stop, commits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let thread = {
            let (stop, commits) = (stop.clone(), commits.clone());
            w.node.run(move || std::thread::spawn(move || foreign_commits(&stop, &commits)))
        };
        until(|| commits.load(Ordering::Relaxed) > 0);
        Self { stop, commits, thread }
    }

    fn commits(&self) -> u32 {
        self.commits.load(Ordering::Relaxed)
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the foreigner ends well");
    }
}

fn foreign_commits(stop: &AtomicBool, commits: &AtomicU32) {
    use moat_nfnetlink::nft::{Batch, Chain, Family, Socket, Table, TableId};
    let mut socket = Socket::open().expect("works");
    let table = TableId::new(Family::Ip, "kube-proxy");
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let mut batch = Batch::new();
        batch.add_table(&Table::new(table.clone())).expect("works");
        let count = commits.fetch_add(1, Ordering::Relaxed);
        batch.add_chain(&table, &Chain::new(format!("c{count}"))).expect("works");
        socket.send(&batch, None).expect("works");
        next += Duration::from_millis(20);
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

#[test]
fn tables_of_another_layout_are_replaced() {
    privileged(|| {
        let mut w = World::with(&["a", "b"], &[], &policy("p", FROM_A), unguarded());
        for (table, config) in [("foreign content", Config::default()), ("no flags", unguarded())] {
            w.dataplane = None;
            if table == "foreign content" {
                w.node.command("nft delete table inet moat");
                w.node.command("nft add table inet moat");
                w.node.command(
                    "nft add chain inet moat forward { type filter hook forward priority 5 ; policy drop ; }",
                );
            }
            let whole = w.whole();
            let dataplane = w.node.run(move || Dataplane::start(config, &whole));
            w.dataplane = Some(dataplane.unwrap_or_else(|e| panic!("{table}: {e}")));
            w.check();
            assert_eq!(w.udp(From::Pod("a"), w.v4("b"), 80), Passed);
        }
    });
}

#[test]
fn what_waits_goes_into_one_commit() {
    privileged(|| {
        let mut w = World::new(&["a", "b"], &[], "");
        let mut tickets = Vec::new();
        for round in 0..200_u32 {
            let mut objects = crate::world::objects(&policy(
                "p",
                &format!(
                    "{{podSelector: {{}}, ingress: [{{from: [{{ipBlock: {{cidr: 10.{}.0.0/16}}}}]}}]}}",
                    round % 250
                ),
            ));
            w.cluster.apply(objects.remove(0));
            let update = Update { policy: w.cluster.commit().remove("node").unwrap(), ..Update::default() };
            tickets.push(w.dataplane().submit(update));
        }
        for ticket in tickets {
            ticket.wait().unwrap();
        }
        let stats = w.dataplane().stats();
        assert_eq!(stats.updates(), 200);
        assert_eq!(stats.refusals(), 0);
        assert!(stats.commits() + stats.coalesced() <= 202, "{:?}", stats.all());
        w.check();
        let gone: IpAddr = "10.8.0.1".parse().unwrap();
        assert!(!w.node.command("nft list table inet moat").contains(&gone.to_string()));
    });
}

#[test]
fn a_pods_veth_may_be_gone_before_its_chain() {
    privileged(|| {
        let mut w = World::new(&["a", "b", "c"], &[], &policy("p", FROM_A));
        w.node.ip("link del moatc");
        w.pods.remove("c");
        w.submit(BTreeMap::from([(name("c"), None)]));
        assert!(!w.node.command("nft list ruleset").contains("moatc"));
        // And made again, before the link is there.
        let local = moat_agent::dataplane::LocalPod {
            ifname: "moatc".into(),
            pod_mac: [2, 0, 0, 0, 0, 12],
            v4: Some([10, 0, 0, 12].into()),
            v6: None,
        };
        w.submit(BTreeMap::from([(name("c"), Some(local))]));
        assert!(w.node.command("nft list table netdev moat").contains("moatc"));
        assert_eq!(w.dataplane().stats().refusals(), 0);
    });
}

#[test]
fn an_unguarded_start_amid_foreign_commits_succeeds() {
    privileged(|| {
        let mut w = World::with(&["a", "b"], &["r"], &policy("p", FROM_A), unguarded());
        let foreign = Foreign::start(&w);
        for _ in 0..10 {
            w.restart();
        }
        foreign.end();
        w.check();
    });
}

/// The table is gone and the data plane does not know yet: the update is refused, and is in force all the same when its
/// ticket says so.
#[test]
fn an_update_into_a_damaged_table_repairs_it() {
    privileged(|| {
        let mut w = World::with(&["a", "b"], &[], "", unguarded());
        for round in 0..5 {
            w.node.command("nft delete table inet moat");
            w.apply(&policy(
                "deny",
                &format!(
                    "{{podSelector: {{matchLabels: {{app: b}}}}, ingress: [{{ports: [{{port: {}}}]}}]}}",
                    81 + round
                ),
            ));
            assert_eq!(w.tcp(From::Pod("a"), w.v4("b"), 80), Dropped(DropReason::Policy.on(Ingress)));
            w.check();
        }
    });
}

#[test]
fn a_node_of_one_family_has_sets_of_one_family() {
    privileged(|| {
        let mut config = Config::default();
        config.layout.v6 = false;
        let w = World::with(&["a", "b"], &["r"], &policy("p", FROM_A), config);
        assert_eq!(w.udp(From::Pod("a"), w.v4("b"), 80), Passed);
        assert_eq!(
            w.udp(From::Pod("a"), w.v6("b"), 80),
            Dropped(DropReason::Policy.on(Ingress)),
            "closed, not open"
        );
        assert!(!w.node.command("nft list table inet moat").contains("pods6-"));
    });
}
