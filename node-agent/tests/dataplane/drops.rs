//! What was dropped is counted for whom it is about, and told.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use moat_agent::dataplane::{DropCounters, DropPoint, DropReason, LayoutConfig};
use moat_agent::desired::Desired;
use moat_agent::droplog::{DropLog, DropLogConfig};
use moat_agent::podnet::Attachment;
use moat_cni::stream::{Dropped, Event, Unlogged};
use moat_policies::Direction::{Egress, Ingress};

use crate::hardening::tcp;
use crate::probe::Fate::{Dropped as Lost, Passed};
use crate::probe::{From, udp, udp_socket, unspecified};
use crate::space::privileged;
use crate::verdicts::policy;
use crate::world::{NODE_V4, OUTSIDE_V4, World, name, objects};

type Counts = BTreeMap<(DropPoint, String), u64>;

impl World {
    /// What was counted for each pod's interface.
    fn by_interface(&self) -> Counts {
        self.node.run(|| DropCounters::open().and_then(|mut c| c.by_interface()).expect("counters"))
    }

    /// Makes a drop log for this world's node.
    fn log(&self, window: Duration) -> DropLog {
        self.log_of(window, &self.desired())
    }

    fn log_of(&self, window: Duration, desired: &Arc<Mutex<Desired>>) -> DropLog {
        let config = DropLogConfig { window, ..DropLogConfig::of(&LayoutConfig::default()) };
        let desired = desired.clone();
        self.node.run(move || DropLog::start(config, desired)).expect("a drop log")
    }

    /// What the agent of this world's node knows.
    fn desired(&self) -> Arc<Mutex<Desired>> {
        let attachment = |(pod, p): (&String, &crate::world::Pod)| Attachment {
            container_id: pod.clone(),
            ifname: "eth0".into(),
            network: "moat".into(),
            pod_namespace: "default".into(),
            pod_name: pod.clone(),
            pod_uid: None,
            netns: "/proc/self/ns/net".into(),
            host_ifname: p.local.ifname.clone(),
            host_mac: [6; 6],
            pod_mac: p.local.pod_mac,
            v4: p.local.v4,
            v6: p.local.v6,
            mtu: 1500,
            host_ports: Vec::new(),
        };
        let mut desired = Desired::new("node".into(), self.pods.iter().map(attachment));
        let mut apply = objects(&self.manifests);
        self.address(&mut apply);
        desired.start(moat_manifests::Changes { apply, ..moat_manifests::Changes::default() });
        Arc::new(Mutex::new(desired))
    }
}

/// Waits until the log has told what is wanted, and returns all of it.
fn wait(log: &DropLog, wanted: impl Fn(&[Event]) -> bool) -> Vec<Event> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let (events, _) = log.follow();
        if wanted(&events) {
            return events;
        }
        assert!(Instant::now() < deadline, "it is not told: {events:#?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn dropped(events: &[Event]) -> Vec<&Dropped> {
    events.iter().filter_map(|e| if let Event::Drop(dropped) = e { Some(dropped) } else { None }).collect()
}

/// `b` lets nobody in but `c` to port 80; `d` may not open anything.
fn policies() -> String {
    let from_c =
        "ingress: [{from: [{podSelector: {matchLabels: {app: c}}}], ports: [{port: 80, protocol: UDP}]}]";
    policy("only-c", &format!("{{podSelector: {{matchLabels: {{app: b}}}}, {from_c}}}"))
        + &policy("quiet", "{podSelector: {matchLabels: {app: d}}, policyTypes: [Egress]}")
}

#[test]
fn every_drop_is_counted_for_the_pod_that_it_is_about() {
    privileged(|| {
        let mut w = World::new(&["a", "b", "c", "d"], &[], &policies());
        let mut expected = Counts::new();
        let mut all = 0;
        let mut is = |w: &World, point: DropPoint, interface: &str, fate| {
            assert_eq!(fate, Lost(point));
            if !interface.is_empty() {
                *expected.entry((point, interface.to_owned())).or_default() += 1;
            }
            all += 1;
            assert_eq!(w.by_interface(), expected);
        };
        for (a, b, outside) in
            [(w.v4("a"), w.v4("b"), OUTSIDE_V4.into()), (w.v6("a"), w.v6("b"), "fd01::2".parse().unwrap())]
        {
            let policy = |direction| DropReason::Policy.on(direction);
            is(&w, policy(Ingress), "moatb", w.udp(From::Pod("a"), b, 80));
            is(&w, policy(Ingress), "moatb", w.udp(From::Outside(outside), b, 80));
            is(&w, policy(Egress), "moatd", w.udp(From::Pod("d"), a, 80));
            is(
                &w,
                DropReason::Spoofed.on(Egress),
                "moata",
                w.forge(From::Pod("a"), b, 17, udp(b, a, 1, 2, b"x")),
            );
            // It comes from elsewhere with a pod's address, to another pod.
            w.node.sysctl("ipv4/conf/all/rp_filter", "0");
            w.node.sysctl("ipv4/conf/up0/rp_filter", "0");
            let forged = w.forge(From::Outside(unspecified(b)), b, 17, udp(a, b, 1, 2, b"x"));
            is(&w, DropReason::Spoofed.on(Ingress), "moatb", forged);
            is(&w, DropReason::Tunnel.on(Egress), "moata", w.udp(From::Pod("a"), outside, 4789));
            const ACK: u8 = 0x10;
            const FIN_SYN: u8 = 0x03;
            let segment = |to, flags, port| w.forge(From::Pod("a"), to, 6, tcp(a, to, port, 80, flags));
            is(&w, DropReason::MidStream.on(Ingress), "moatb", segment(b, ACK, 1000));
            let c = if a.is_ipv4() { w.v4("c") } else { w.v6("c") };
            is(&w, DropReason::Invalid.on(Egress), "moata", segment(c, FIN_SYN, 1001));
            let invalid = w.forge(From::Outside(outside), c, 6, tcp(outside, c, 1002, 80, FIN_SYN));
            is(&w, DropReason::Invalid.on(Ingress), "moatc", invalid);
        }
        // A pod that goes takes its counts along, and the sum stays. Who is not known has none of its own.
        let before = w.drops();
        w.submit(BTreeMap::from([(name("b"), None)]));
        let unknown = DropReason::UnknownPod.on(Ingress);
        assert_eq!(w.udp(From::Pod("a"), w.v4("b"), 80), Lost(unknown));
        expected.retain(|(_, interface), _| interface != "moatb");
        assert_eq!(w.by_interface(), expected);
        let now = w.drops();
        assert_eq!(now.values().sum::<u64>(), all + 1);
        assert!(now.iter().all(|(point, n)| *n == before[point] + u64::from(*point == unknown)));
        let again = Some(w.pods["b"].local.clone());
        w.submit(BTreeMap::from([(name("b"), again)]));
        assert_eq!(w.by_interface(), expected, "and begins anew when it comes back");
    });
}

#[test]
fn counts_go_on_when_the_agent_is_another_one() {
    privileged(|| {
        let mut w = World::new(&["a", "b"], &[], &policies());
        let point = DropReason::Policy.on(Ingress);
        for round in 1..4 {
            assert_eq!(w.udp(From::Pod("a"), w.v4("b"), 80), Lost(point));
            assert_eq!(w.by_interface(), BTreeMap::from([((point, "moatb".to_owned()), round)]));
            w.restart();
            assert_eq!(w.by_interface(), BTreeMap::from([((point, "moatb".to_owned()), round)]));
            assert_eq!(w.drops()[&point], round);
        }
    });
}

#[test]
fn a_drop_is_told_with_who_and_whom_and_why() {
    privileged(|| {
        let w = World::new(&["a", "b", "c", "d"], &["r"], &policies());
        let log = w.log(Duration::from_millis(300));
        // The log listens when it tells what is dropped from then on.
        let first = |w: &World| {
            let deadline = Instant::now() + Duration::from_secs(10);
            while dropped(&log.follow().0).is_empty() {
                assert!(Instant::now() < deadline, "nothing is told");
                assert_eq!(w.udp(From::Pod("a"), w.v4("b"), 80), Lost(DropReason::Policy.on(Ingress)));
            }
        };
        first(&w);
        let events = wait(&log, |events| !dropped(events).is_empty());
        let line = dropped(&events)[0];
        assert_eq!(
            (line.source.to_string(), line.destination.to_string()),
            ("default/a".into(), "default/b".into())
        );
        assert_eq!((line.node.as_str(), line.traffic().as_str(), line.count), ("node", "80/UDP", 1));
        assert_eq!((line.direction.as_str(), line.reason.as_str()), ("ingress", "policy"));
        assert_eq!(line.pod.as_deref(), Some("default/b"));
        assert_eq!(line.source.address, Some(w.v4("a")));
        // The same words as the engine's.
        assert_eq!(
            line.explanation,
            "default/b is isolated for ingress by default/only-c; nearest: default/only-c ingress[0] allows it from \
             pods app=c in namespace default, not from default/a"
        );

        w.udp(From::Pod("c"), w.v6("b"), 443);
        w.udp(From::Pod("d"), OUTSIDE_V4.into(), 443);
        w.udp(From::Pod("d"), w.v4("r"), 443);
        w.forge(From::Pod("a"), w.v4("b"), 17, udp(w.v4("c"), w.v4("b"), 1, 2, b"x"));
        w.udp(From::Pod("a"), NODE_V4.into(), 4789);
        let said = |explanation: &str| {
            let has = |d: &&Dropped| d.explanation.contains(explanation);
            let events = wait(&log, |events| dropped(events).iter().any(has));
            dropped(&events).into_iter().find(has).cloned().unwrap()
        };
        assert_eq!(said("allows 80/UDP, not 443/UDP").source.address, Some(w.v6("c")));
        let outside = said("default/d is isolated for egress by default/quiet, which has no egress rule");
        assert_eq!(
            (outside.destination.to_string(), outside.direction.as_str()),
            (OUTSIDE_V4.to_string(), "egress")
        );
        let remote = wait(&log, |events| {
            dropped(events).iter().any(|d| d.destination.pod.as_deref() == Some("default/r"))
        });
        assert!(dropped(&remote).iter().all(|d| d.node == "node"));
        let spoofed = said("the pod may not send this");
        assert_eq!(spoofed.pod.as_deref(), Some("default/a"), "whose interface it came by");
        assert_eq!(spoofed.source.pod.as_deref(), Some("default/c"), "who it says that it is");
        // At the input hook there is no way out, and all the same a record.
        let tunnel = said("tunnel");
        assert_eq!((tunnel.destination.node.as_deref(), tunnel.port), (Some("node"), Some(4789)));
    });
}

#[test]
fn a_noisy_pod_hides_nobody_and_what_is_not_told_is_counted() {
    privileged(|| {
        const NOISE: u64 = 3000;
        let w = World::new(&["a", "b", "c"], &[], &policies());
        let log = w.log(Duration::from_millis(300));
        let b = w.v4("b");
        let shout = |pod: &str, port: u16, times: u64| {
            let socket = w.pods[pod].space.run(move || udp_socket(SocketAddr::new(unspecified(b), 0)));
            socket.set_nonblocking(false).unwrap();
            for _ in 0..times {
                socket.send_to(b"x", (b, port)).unwrap();
            }
        };
        let count = |d: &Dropped| u64::from(d.source.pod.as_deref() == Some("default/a")) * d.count;
        // It listens from the first line on.
        let mut sent = 0;
        while log.stats().records() == 0 {
            shout("a", 1000, 1);
            sent += 1;
        }
        shout("a", 1000, NOISE);
        shout("c", 2000, 1);
        let point = DropReason::Policy.on(Ingress);
        let key = (point, "moatb".to_owned());
        let deadline = Instant::now() + Duration::from_secs(10);
        while w.by_interface().get(&key) != Some(&(sent + NOISE + 1)) {
            assert!(Instant::now() < deadline, "{:?}", w.by_interface());
        }
        let told = |events: &[Event]| dropped(events).iter().map(|d| count(d)).sum::<u64>();
        let unlogged = |events: &[Event]| {
            let count = |e: &Event| if let Event::Unlogged(u) = e { u.count } else { 0 };
            events.iter().map(count).sum::<u64>()
        };
        let events = wait(&log, |events| told(events) + unlogged(events) > NOISE);
        let quiet = |d: &&Dropped| d.source.pod.as_deref() == Some("default/c");
        let quiet: Vec<_> = dropped(&events).into_iter().filter(quiet).collect();
        assert_eq!(quiet.len(), 1, "one packet amid the noise: {events:#?}");
        assert_eq!((quiet[0].port, quiet[0].count), (Some(2000), 1));
        assert!(told(&events) < 200, "the kernel lets few through: {}", told(&events));
        let of = |e: &Event| matches!(e, Event::Unlogged(Unlogged { pod, .. }) if pod != "default/b");
        assert!(!events.iter().any(of), "{events:#?}");
        // Many packets are few lines.
        assert!(dropped(&events).len() < 20, "{events:#?}");
        assert_eq!(log.stats().overruns(), 0);
        assert_eq!(w.udp(From::Pod("c"), b, 80), Passed);
    });
}

#[test]
fn who_is_told_later_is_told_the_last_ones_and_the_log_can_be_taken_over() {
    privileged(|| {
        let w = World::new(&["a", "b"], &[], &policies());
        let first = w.log(Duration::from_secs(60));
        let drop_one = |w: &World, to: IpAddr| assert_ne!(w.udp(From::Pod("a"), to, 80), Passed);
        while first.follow().0.is_empty() {
            drop_one(&w, w.v4("b"));
        }
        let second = w.log(Duration::from_secs(60));
        drop_one(&w, w.v4("b"));
        assert!(second.follow().0.is_empty(), "the group is another's");
        drop(first);
        let deadline = Instant::now() + Duration::from_secs(10);
        while second.follow().0.is_empty() {
            assert!(Instant::now() < deadline, "it does not take over");
            drop_one(&w, w.v6("b"));
        }
        let (there, mut next) = second.follow();
        assert_eq!(dropped(&there).len(), 1);
        assert!(next.try_recv().is_err());
        // So many of this pair's packets are logged a second and no more: until one of these is among them.
        let line = loop {
            assert!(Instant::now() < deadline, "nobody tells who follows");
            assert_eq!(w.udp(From::Pod("a"), w.v4("b"), 81), Lost(DropReason::Policy.on(Ingress)));
            if let Ok(Event::Drop(line)) = next.try_recv() {
                break line;
            }
        };
        assert_eq!(line.port, Some(81));
    });
}

#[test]
fn records_that_nobody_had_room_for_are_counted_and_their_packets_told() {
    privileged(|| {
        const FLOOD: usize = 30_000;
        let w = World::new(&["a", "b", "d"], &[], &policies());
        let desired = w.desired();
        let log = w.log_of(Duration::from_millis(300), &desired);
        // A packet now and then is logged whatever there was before.
        let shout_until = |told: &dyn Fn() -> bool| {
            let deadline = Instant::now() + Duration::from_secs(20);
            for port in 1000.. {
                w.udp(From::Pod("a"), w.v4("b"), port);
                if told() {
                    break;
                }
                assert!(Instant::now() < deadline, "nothing is told");
            }
        };
        // It listens from the first record on.
        shout_until(&|| log.stats().records() > 0);
        // Whoever writes a line has to know names: while that is held up, nobody reads records.
        let held = desired.lock().unwrap();
        let denied = Lost(DropReason::Policy.on(Egress));
        assert_eq!(w.udp(From::Pod("d"), w.v4("a"), 80), denied);
        for command in [
            "ip link set lo up",
            "nft add table ip flood",
            "nft add chain ip flood out { type filter hook output priority 0 ; }",
            "nft add rule ip flood out udp dport 9 log group 86 drop",
        ] {
            w.node.command(command);
        }
        w.node.run(|| {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            // What the rule drops is told to the sender as an error.
            (0..FLOOD).for_each(|_| drop(socket.send_to(b"x", "127.0.0.1:9")));
        });
        assert_eq!(w.udp(From::Pod("d"), w.v4("a"), 81), denied);
        let before = log.stats().records();
        drop(held);
        let events = wait(&log, |events| {
            let of_d = |e: &Event| matches!(e, Event::Unlogged(u) if u.pod == "default/d" && u.count == 1);
            events.iter().any(of_d)
        });
        assert!(log.stats().overruns() >= 1, "{events:#?}");
        shout_until(&|| log.stats().records() > before + 1);
    });
}
