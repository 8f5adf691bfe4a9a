//! Connections that open while policy changes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use moat_agent::dataplane::Ruling;

use crate::connection::{Connection, Way};
use crate::cut::{deny_to_b, policy};
use crate::interrupted::uninterrupted;
use crate::nat::service;
use crate::probe::{From, udp_socket, unspecified};
use crate::space::privileged;
use crate::watched::Watched;

/// Connections open all the time, from two ends at once, while policy flips: whenever it has been said that connections follow a
/// denial, none is left that is denied and not revoked, and none gets a packet through.
#[test]
fn no_connection_slips_through_while_policy_flips() {
    privileged(|| {
        const FLIPS: usize = 40;
        let mut w = Watched::new(&["a", "b", "c"], &[], "");
        let b = w.v4("b");
        let server = w.holder(b).run(move || udp_socket(SocketAddr::new(b, 53)));
        server.set_nonblocking(true).unwrap();
        // Theirs are gone again soon: the table is everybody's on this machine.
        w.node.sysctl("netfilter/nf_conntrack_udp_timeout", "5");
        let (goal, opened) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let openers: Vec<_> = ["a", "c"]
            .into_iter()
            .map(|pod| {
                let (goal, opened) = (goal.clone(), opened.clone());
                w.pods[pod].space.run(move || {
                    std::thread::spawn(move || {
                        loop {
                            match goal.load(Ordering::Relaxed) {
                                u64::MAX => return,
                                goal if goal <= opened.load(Ordering::Relaxed) => std::thread::yield_now(),
                                _ => {
                                    // A socket of its own for each: a new connection.
                                    let socket = udp_socket(SocketAddr::new(unspecified(b), 0));
                                    socket.send_to(b"x", (b, 53)).expect("sent");
                                    opened.fetch_add(1, Ordering::Relaxed);
                                }
                            }
                        }
                    })
                })
            })
            .collect();
        let open = |more: u64, at_least: u64| {
            let before = goal.fetch_add(more, Ordering::Relaxed);
            while opened.load(Ordering::Relaxed) < before + at_least {
                std::thread::yield_now();
            }
        };
        for _ in 0..FLIPS {
            // Some are open, some open during the change, some behind it.
            open(300, 100);
            w.apply(&deny_to_b());
            let mut buffer = [0; 16];
            while server.recv_from(&mut buffer).is_ok() {}
            let mut left = Vec::new();
            w.flows()
                .live(|flow| {
                    if flow.reply.source == b && flow.ruling != Ruling::Allowed && !flow.revoked {
                        left.push(flow);
                    }
                })
                .unwrap();
            assert!(left.is_empty(), "{} denied connections are left: {:?}", left.len(), left[0]);
            // However many try, nothing comes.
            open(50, 50);
            assert!(server.recv_from(&mut buffer).is_err(), "a packet came through a denial");
            w.delete_policy("deny");
        }
        goal.store(u64::MAX, Ordering::Relaxed);
        openers.into_iter().for_each(|thread| thread.join().expect("no panic"));
        assert!(w.flows().stats().cut() > 0);
    });
}

/// Streams of answers that every change leaves allowed lose no packet, while another one's is cut and given back.
#[test]
fn allowed_answers_alone_do_not_notice() {
    privileged(|| {
        const FLIPS: usize = 30;
        let mut w = Watched::new(&["a", "b", "c"], &["r"], "");
        service(&w, "b");
        let mut streams = Vec::new();
        let mut cut = Vec::new();
        for (vip, b, r) in [("10.96.0.1", w.v4("b"), w.v4("r")), ("fd96::1", w.v6("b"), w.v6("r"))] {
            let to = |port| SocketAddr::new(b, port);
            let front = SocketAddr::new(vip.parse().unwrap(), 80);
            streams.extend([
                Connection::udp(&w, From::Pod("a"), to(53), None),
                Connection::udp(&w, From::Outside(r), to(54), None),
                Connection::udp(&w, From::Pod("a"), front, Some(to(8080))),
                Connection::udp(&w, From::Pod("a"), SocketAddr::new(r, 53), None),
            ]);
            cut.push(Connection::udp(&w, From::Pod("c"), to(55), None));
        }
        let stop = Arc::new(AtomicBool::new(false));
        let streams: Vec<_> = streams
            .into_iter()
            .map(|stream| {
                let Connection::Udp { client, server, peer: Some(peer) } = stream else {
                    panic!("it is open")
                };
                client.set_nonblocking(false).expect("an option");
                client.set_read_timeout(Some(Duration::from_secs(20))).expect("an option");
                let stop = stop.clone();
                std::thread::spawn(move || {
                    let mut answers = 0;
                    while !stop.load(Ordering::Relaxed) {
                        server.send_to(b"back", peer).expect("sent");
                        uninterrupted(|| client.recv(&mut [0; 16])).expect("no answer is lost");
                        answers += 1;
                    }
                    answers
                })
            })
            .collect();
        let of_b = "{podSelector: {matchLabels: {app: b}}, ingress: [{from: [{podSelector: {matchExpressions: [
            {key: app, operator: In, values: [WHO]}]}}], ports: [{port: 53, endPort: 55, protocol: UDP}, {port: 8080, protocol: UDP}]}]}";
        w.apply(&policy(
            "of-a",
            "{podSelector: {matchLabels: {app: a}}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}]}]}",
        ));
        for _ in 0..FLIPS {
            w.apply(&policy("of-b", &of_b.replace("WHO", "a, r")));
            cut.iter_mut().for_each(|c| assert!(!c.passes(&w, Way::Back)));
            w.apply(&policy("of-b", &of_b.replace("WHO", "a, c, r")));
            cut.iter_mut().for_each(|c| c.arrives(Way::Back));
        }
        stop.store(true, Ordering::Relaxed);
        let answers: Vec<u64> = streams.into_iter().map(|s| s.join().expect("nothing is lost")).collect();
        assert!(answers.iter().all(|n| *n > FLIPS as u64), "{answers:?}");
    });
}

/// An outsider empties the tables. They are put back; what began meanwhile is looked at, though no policy has changed.
#[test]
fn what_began_while_the_tables_were_open_is_cut() {
    privileged(|| {
        let w = Watched::unguarded(&["a", "b"], &deny_to_b());
        // Somebody else who tracks connections, so that they are tracked while the tables are open, too.
        for line in [
            "add table inet other",
            "add chain inet other f { type filter hook forward priority 5 ; }",
            "add rule inet other f ct state new accept",
        ] {
            w.node.command(&format!("nft {line}"));
        }
        let (a, b) = (w.v4("a"), w.v4("b"));
        let server = w.holder(b).run(move || udp_socket(SocketAddr::new(b, 53)));
        let client = w.pods["a"].space.run(move || udp_socket(SocketAddr::new(unspecified(b), 0)));
        w.node.command("nft flush chain inet moat forward");
        let mut buffer = [0; 16];
        while server.recv_from(&mut buffer).is_err() {
            assert_eq!(w.drops().values().sum::<u64>(), 0, "closed before anything began");
            client.send_to(b"x", (b, 53)).expect("sent");
        }
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !w.between(a, b).iter().all(|flow| flow.revoked) {
            assert!(std::time::Instant::now() < deadline, "it lives on");
            std::thread::yield_now();
        }
    });
}
