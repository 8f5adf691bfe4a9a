//! More changes than anybody could want, with pods coming and going: where it ends is where a fresh start begins, and what it
//! took is given back.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::netns::in_world;
use crate::packets::{ANSWER, Server};
use crate::world::World;

/// Changes a second.
const RATE: u32 = 1_000;

/// For so long, unless `MOAT_STORM_SECONDS` says otherwise.
const SECONDS: u64 = 30;

const POLICIES: u32 = 200;

/// Policies in a file, all of which change when it does.
const TOGETHER: u32 = 5;

/// A change is in force so soon after the storm.
const RECOVERED: Duration = Duration::from_secs(1);

/// What a storm may add to the agent's memory, in KiB: files, pods and policies stay as many as they were.
const GROWTH: u64 = 24 * 1024;

fn policy(subject: &str, peer: &str, port: u32) -> String {
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {subject}}}, spec: {{podSelector: \
         {{matchLabels: {{app: {subject}}}}}, ingress: [{{from: [{{podSelector: {{matchLabels: {{app: {peer}}}}}}}], \
         ports: [{{protocol: UDP, port: {port}}}]}}]}}}}\n"
    )
}

fn storm_seconds() -> u64 {
    std::env::var("MOAT_STORM_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(SECONDS)
}

/// The sets and chains that the kernel holds, without what is counted in them. They are named by what they hold.
fn tables(world: &World) -> BTreeSet<String> {
    let listing = world.node.sh("nft -t list table inet moat");
    let mut block = String::new();
    let mut lines = BTreeSet::new();
    // Who owns the table stands behind a `#`.
    let lines_of = listing.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    for line in lines_of.filter(|line| !line.starts_with("packets ")) {
        if line.ends_with('{') {
            block = line.to_owned();
        }
        let words = line.split_whitespace().filter(|word| !word.bytes().all(|b| b.is_ascii_digit()));
        lines.insert(format!("{block} {}", words.collect::<Vec<_>>().join(" ")));
    }
    lines
}

#[test]
fn a_storm_of_changes_ends_where_a_fresh_start_begins() {
    in_world(|| {
        let mut world = World::new();
        let names: Vec<String> = (0..POLICIES).map(|n| format!("app-{n}")).collect();
        for name in names.iter().chain([&"server".to_owned(), &"client".to_owned()]) {
            world.write(&format!("pod-{name}.yaml"), &World::pod_text(name));
        }
        let text = |first: u32, peer: &str, port: u32| -> String {
            let policies = &names[first as usize..(first + TOGETHER) as usize];
            policies.iter().map(|name| policy(name, peer, port) + "---\n").collect()
        };
        for first in (0..POLICIES).step_by(TOGETHER as usize) {
            world.write(&format!("policies-{first}.yaml"), &text(first, "client", 7000));
        }
        world.start_ready();
        let (server_pod, client) = (world.add("server"), world.add("client"));
        let server = Server::start(&server_pod);
        assert!(server.answers(&client));
        let steady: Vec<_> = names.iter().take(20).map(|name| world.add(name)).collect();
        let before = world.memory("VmRSS");

        let over = AtomicBool::new(false);
        let (mut changes, mut most) = (0, 0);
        let churned = std::thread::scope(|scope| {
            let churn = scope.spawn(|| {
                let mut rounds = 0;
                while !over.load(Ordering::Relaxed) {
                    let name = &names[20 + rounds % 20];
                    let pod = world.add(name);
                    assert!(world.plugin().run("DEL", name, &pod.ns.path).success, "DEL in a storm");
                    rounds += 1;
                }
                rounds
            });
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_secs(storm_seconds()) {
                let first = changes / TOGETHER * 7 % (POLICIES / TOGETHER) * TOGETHER;
                let peer = &names[(changes * 13 % POLICIES) as usize];
                world.write(&format!("policies-{first}.yaml"), &text(first, peer, 7001 + changes % 49));
                changes += TOGETHER;
                if changes % RATE == 0 {
                    most = most.max(world.memory("VmRSS"));
                }
                let due = begin + Duration::from_secs(1) * changes / RATE;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            // What comes next is in force soon. An unanswered packet is waited for, too.
            let denied = world.write("policy-server.yaml", &policy("server", "nobody", 7000));
            world.until("denied", |_| !server.answers(&client));
            assert!(denied.elapsed() < RECOVERED + ANSWER, "recovered after {:?}", denied.elapsed());
            over.store(true, Ordering::Relaxed);
            churn.join().unwrap()
        });
        world.until("in force", |world| world.readyz().is_some_and(|r| r.status == 200));
        eprintln!(
            "{changes} changes, {churned} pods came and went; resident {before} KiB before, at most {most}, {} after",
            world.memory("VmRSS")
        );
        assert!(most < before + GROWTH, "{before} KiB grew to {most}");
        assert!(u64::from(changes) > storm_seconds() * u64::from(RATE) * 9 / 10, "only {changes} changes");

        // What the kernel holds does what the policies say; and an agent that starts finds it as it would have made it.
        let check = world.check();
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
        let end = applied(&world);
        let held = tables(&world);
        world.kill();
        world.start_ready();
        assert_eq!(applied(&world), end);
        let fresh = tables(&world);
        let differ: Vec<&String> = held.symmetric_difference(&fresh).collect();
        assert!(differ.is_empty(), "{differ:#?}");
        drop(steady);
    });
}

fn applied(world: &World) -> String {
    let body = world.readyz().unwrap().body;
    body.lines().find(|line| line.starts_with("applied ")).unwrap().to_owned()
}

/// An agent at rest: nothing changes, and nothing is done.
#[test]
fn an_agent_at_rest_uses_no_processor_and_little_memory() {
    in_world(|| {
        let mut world = World::new();
        for n in 0..20 {
            world.write(&format!("pod-{n}.yaml"), &World::pod_text(&format!("p{n}")));
            world.write(&format!("policy-{n}.yaml"), &policy(&format!("p{n}"), "p0", 7000));
        }
        world.start_ready();
        let _pods: Vec<_> = (0..5).map(|n| world.add(&format!("p{n}"))).collect();
        // What the last pod led to ends.
        world.until("at rest", |world| {
            let before = world.ticks();
            std::thread::sleep(Duration::from_millis(500));
            world.ticks() == before
        });
        let ticks = world.ticks();
        std::thread::sleep(Duration::from_secs(30));
        let used = world.ticks() - ticks;
        let (resident, own) = (world.memory("VmRSS"), world.memory("RssAnon"));
        eprintln!("30 s at rest: {used} clock ticks, {resident} KiB resident, {own} of them its own");
        assert_eq!(used, 0, "clock ticks in 30 s");
        // Most of what is resident is the program's file, which without optimisation is several times as large as what
        // ships: that one is held to its bound by `cargo xtask bench memory`.
        assert!(own <= 6 * 1024, "{own} KiB");
        assert!(cfg!(debug_assertions) || resident <= 20 * 1024, "{resident} KiB");
    });
}
