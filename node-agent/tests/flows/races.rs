//! Connections that open while policy changes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use moat_agent::dataplane::Ruling;

use crate::cut::deny_to_b;
use crate::probe::{udp_socket, unspecified};
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
