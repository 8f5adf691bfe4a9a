//! Agent or plugin die at every step of ADD and DEL, and the kernel and the records are read afterwards.
//!
//! Each run has one death at a known step; then the runtime does one of the things that runtimes do (try again, give up,
//! collect garbage). `MOAT_CRASH_RUNS` says how many runs there are in all; without it each step has two.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::real::{RealNode, pod};
use crate::world::interrupted::uninterrupted;
use crate::world::{Answer, Namespace, addresses, in_world, tcp};

/// Fourteen addresses of each family, less those that have a meaning of their own: a leak of a few is seen.
const CIDRS: [&str; 2] = ["10.1.0.0/28", "fd00:1::/124"];
const USABLE: usize = 14;

/// What dies, in the midst of what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Death {
    AgentInAdd,
    AgentInDel,
    AgentInStart,
    PluginInAdd,
    PluginInDel,
    /// With no agent there.
    PluginAlone,
}

const STEPS: &[(Death, &[&str])] = &[
    (
        Death::AgentInAdd,
        &[
            "before the record",
            "record torn",
            "recorded",
            "veth made",
            "pod's end made",
            "marked",
            "synced",
            "built",
            "in force",
            "before up",
            "up",
            "added",
        ],
    ),
    (Death::AgentInDel, &["before detaching", "detached", "link gone", "record torn", "released", "removed"]),
    (Death::AgentInStart, &["new file written", "new file moved"]),
    (Death::PluginInAdd, &["connected", "asked", "answered", "done"]),
    (Death::PluginInDel, &["connected", "asked", "answered", "done"]),
    (Death::PluginAlone, &["note begun", "note left", "link removed", "done"]),
];

/// What the runtime does about a container that it wanted to add or to remove, and got no answer about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    AddsAgain,
    Removes,
    CollectsGarbage,
}

struct World {
    node: RealNode,
    keeper: (Namespace, Value),
    /// The container's name is the same in every run.
    subject: Namespace,
}

impl World {
    fn new() -> Self {
        let mut node = RealNode::new(&CIDRS, &format!("{}{}", pod("keeper"), pod("subject")));
        node.start();
        let ns = Namespace::new();
        let result = node.plugin().run("ADD", "keeper", &ns.path).ok();
        Self { node, keeper: (ns, result), subject: Namespace::new() }
    }

    fn plugin(&self, command: &str, die_at: Option<&'static str>) -> Answer {
        let mut plugin = self.node.plugin();
        plugin.die_at = die_at;
        plugin.run(command, "subject", &self.subject.path)
    }

    /// The links, records and routes say the same; no address has two owners; the one that nobody touched is as it was.
    fn consistent(&self, what: &str) {
        let recorded = self.node.recorded();
        let links: BTreeSet<String> = self.links();
        let known: BTreeSet<String> = recorded.iter().map(|a| a.host_ifname.clone()).collect();
        assert_eq!(links, known, "{what}: links and records\n{}", self.node.log());
        let mut owners: BTreeMap<IpAddr, &str> = BTreeMap::new();
        for attachment in &recorded {
            for address in attachment.addresses() {
                let other = owners.insert(address, &attachment.host_ifname);
                assert_eq!(other, None, "{what}: {address} has two owners");
            }
        }
        for (address, link) in self.routes() {
            assert_eq!(owners.get(&address), Some(&link.as_str()), "{what}: the route to {address}");
        }
        let keeper: Vec<IpAddr> = addresses(&self.keeper.1);
        let host = self.keeper.1["interfaces"][0]["name"].as_str().unwrap();
        assert!(keeper.iter().all(|address| owners.get(address) == Some(&host)), "{what}: {owners:?}");
        assert_eq!(self.node.notes(), 0, "{what}: notes are left");
    }

    /// The subject is wholly gone, from links, routes, records and tables.
    fn gone(&self, what: &str) {
        self.consistent(what);
        assert_eq!(self.node.recorded().len(), 1, "{what}");
        let link = moat_cni::name::host_ifname("subject", "eth0");
        let tables = self.node.ns.sh("nft list ruleset");
        assert!(!tables.contains(&link), "{what}: the tables still have it\n{tables}");
        assert!(tables.contains(self.keeper.1["interfaces"][0]["name"].as_str().unwrap()), "{what}");
        assert!(!self.subject.sh("ip -o link").contains("eth0"), "{what}: the pod's end is left");
    }

    fn links(&self) -> BTreeSet<String> {
        let text = self.node.ns.sh("ip -o link show type veth");
        let names = text.lines().filter_map(|line| line.split([':', '@']).nth(1)).map(str::trim);
        names.filter(|name| moat_cni::name::is_host_ifname(name)).map(str::to_owned).collect()
    }

    fn routes(&self) -> Vec<(IpAddr, String)> {
        let text = self.node.ns.sh("ip route show proto 109; ip -6 route show proto 109");
        text.lines()
            .filter_map(|line| {
                let words: Vec<&str> = line.split(' ').collect();
                let dev = words.iter().position(|word| *word == "dev")?;
                let address = words[0].parse().ok()?;
                Some((address, words[dev + 1].to_owned()))
            })
            .collect()
    }

    /// While the agent is dead and the pod's policy was never in force, nothing passes between the pod and its node.
    fn nothing_passes(&self, point: &str) {
        let to_node = ["192.0.2.1", "2001:db8::1"].map(|address| address.parse::<IpAddr>().unwrap());
        let held = self.subject.sh("ip -o addr show dev eth0 scope global 2>/dev/null || true");
        let to_pod: Vec<IpAddr> = held
            .lines()
            .filter_map(|line| line.split_whitespace().nth(3)?.split('/').next()?.parse().ok())
            .collect();
        let ways = to_node
            .into_iter()
            .map(|to| (&self.subject, &self.node.ns, to))
            .chain(to_pod.into_iter().map(|to| (&self.node.ns, &self.subject, to)));
        let receivers: Vec<(IpAddr, UdpSocket)> = ways
            .map(|(from, to_ns, to)| {
                let receiver = to_ns.run(move || UdpSocket::bind((to, 0)).unwrap());
                receiver.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
                let port = receiver.local_addr().unwrap().port();
                from.run(move || {
                    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                    // An error is as good as a drop.
                    let _ = UdpSocket::bind(any).unwrap().send_to(b"hello", (to, port));
                });
                (to, receiver)
            })
            .collect();
        for (to, receiver) in receivers {
            assert!(
                uninterrupted(|| receiver.recv(&mut [0; 8])).is_err(),
                "{point}: a packet to {to} passed"
            );
        }
    }

    /// One run: a death, and what the runtime does then. Everything is as before afterwards, but for the record of time.
    fn run(&mut self, death: Death, point: &'static str, then: Then) {
        let what = format!("{death:?} at {point:?}, then it {then:?}");
        let told = match death {
            Death::AgentInAdd => {
                self.node.start_dying(point);
                let answer = self.plugin("ADD", None);
                self.node.has_died();
                // The record is written to the disk beside all of it: when that is done, policy may be in force.
                if !matches!(point, "synced" | "in force" | "before up" | "up" | "added") {
                    self.nothing_passes(point);
                }
                answer.success
            }
            Death::AgentInDel => {
                self.plugin("ADD", None).ok();
                self.node.start_dying(point);
                // The plugin does without it.
                self.plugin("DEL", None).ok();
                self.node.has_died();
                false
            }
            Death::AgentInStart => {
                self.plugin("ADD", None).ok();
                self.node.kill();
                self.node.start_dying(point);
                self.node.has_died();
                true
            }
            Death::PluginInAdd => self.plugin("ADD", Some(point)).success,
            Death::PluginInDel => {
                self.plugin("ADD", None).ok();
                assert!(!self.plugin("DEL", Some(point)).success, "{what}: it did not die");
                false
            }
            Death::PluginAlone => {
                self.plugin("ADD", None).ok();
                self.node.kill();
                assert!(!self.plugin("DEL", Some(point)).success, "{what}: it did not die");
                false
            }
        };
        if death == Death::PluginInAdd {
            assert!(!told, "{what}: it did not die");
        }
        if !matches!(death, Death::PluginInAdd | Death::PluginInDel) {
            self.node.start();
        }
        match then {
            Then::AddsAgain => {
                let again = self.plugin("ADD", None);
                if !again.success {
                    // The one before came to its end, and its answer was lost.
                    again.fails_with(102);
                    self.plugin("DEL", None).ok();
                    self.plugin("ADD", None).ok();
                }
                self.consistent(&what);
                let held = self.node.recorded();
                let subject = held.iter().find(|a| a.container_id == "subject").unwrap();
                tcp(&self.node.ns, &self.subject, subject.addresses().next().unwrap());
                self.plugin("DEL", None).ok();
            }
            Then::Removes => self.plugin("DEL", None).ok().as_null().unwrap(),
            Then::CollectsGarbage => drop(self.node.plugin().gc(&["keeper"]).ok()),
        }
        self.gone(&what);
    }
}

#[test]
fn a_death_at_any_step_leaves_nothing_behind() {
    in_world(|| {
        crate::world::plugin_binary();
        let all: Vec<(Death, &'static str)> =
            STEPS.iter().flat_map(|(death, points)| points.iter().map(|point| (*death, *point))).collect();
        let wanted =
            std::env::var("MOAT_CRASH_RUNS").ok().map(|runs| runs.parse().expect("a number of runs"));
        let runs: usize = wanted.unwrap_or(2 * all.len());
        let thens = [Then::Removes, Then::AddsAgain, Then::CollectsGarbage];
        let mut world = World::new();
        let started = Instant::now();
        for run in 0..runs {
            let (death, point) = all[run % all.len()];
            world.run(death, point, thens[(run + run / all.len()) % thens.len()]);
        }
        // The one that nobody touched has worked through all of it.
        tcp(&world.node.ns, &world.keeper.0, addresses(&world.keeper.1)[0]);
        // No address has leaked: all of them can be given, and then there are no more.
        for n in 1..USABLE {
            world.node.write(&format!("p{n}.yaml"), &pod(&format!("p{n}")));
        }
        world.node.write("more.yaml", &pod("more"));
        let pods: Vec<Namespace> = (1..USABLE).map(|_| Namespace::new()).collect();
        let mut given: BTreeSet<IpAddr> = addresses(&world.keeper.1).into_iter().collect();
        for (ns, n) in pods.iter().zip(1..) {
            given.extend(addresses(&world.node.plugin().run("ADD", &format!("p{n}"), &ns.path).ok()));
        }
        assert_eq!(given.len(), 2 * USABLE);
        let error = world.node.plugin().run("ADD", "more", &world.subject.path).fails_with(11);
        assert!(error["details"].as_str().unwrap().contains("14 by pods"), "{error}");
        println!(
            "{runs} runs, {} steps, {:.0} s: no address leaked, none with two owners, no link left",
            all.len(),
            started.elapsed().as_secs_f64()
        );
    });
}

/// The plugin dies after it has asked, and the runtime asks again at once, while the agent still works on the first request or
/// has just done so: whichever of the two makes the interface, the container has one address, and keeps it.
#[test]
fn who_asks_again_finds_the_same_address() {
    in_world(|| {
        crate::world::plugin_binary();
        let world = World::new();
        for round in 0..5 {
            assert!(!world.plugin("ADD", Some("asked")).success, "it did not die");
            let again = world.plugin("ADD", None);
            let held = |world: &World| {
                let recorded = world.node.recorded().into_iter().filter(|a| a.container_id == "subject");
                recorded.collect::<Vec<_>>()
            };
            let [subject] = &held(&world)[..] else { panic!("round {round}: {:?}", held(&world)) };
            match again.success {
                true => assert_eq!(addresses(&again.ok()), subject.addresses().collect::<Vec<_>>()),
                // The first one came to its end.
                false => drop(again.fails_with(102)),
            }
            world.plugin("ADD", None).fails_with(102);
            assert_eq!(held(&world), std::slice::from_ref(subject), "round {round}");
            world.consistent(&format!("round {round}"));
            for address in subject.addresses() {
                tcp(&world.node.ns, &world.subject, address);
            }
            world.plugin("DEL", None).ok();
            world.gone(&format!("round {round}"));
        }
    });
}
