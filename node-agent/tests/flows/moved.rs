//! An address has one owner at a time, and the next one gets no connection with it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use moat_agent::dataplane::Update;

use crate::connection::Connection;
use crate::connection::Way::{Back, There};
use crate::probe::From;
use crate::space::privileged;
use crate::watched::Watched;
use crate::world::name;

/// Another pod has the address of `r` on another node from one reading to the next. Nothing changes for policy, but
/// whoever talked to the old one does not go on with the new one.
#[test]
fn a_pod_elsewhere_is_replaced_at_its_address() {
    privileged(|| {
        let mut w = Watched::new(&["a"], &["r"], "");
        for r in [w.v4("r"), w.v6("r")] {
            let a = w.same("a", r);
            let _open = [
                Connection::udp(&w, From::Pod("a"), SocketAddr::new(r, 53), None),
                Connection::tcp(&w, From::Pod("a"), SocketAddr::new(r, 80), None),
                Connection::udp(&w, From::Outside(r), SocketAddr::new(a, 53), None),
            ];
            let ids = |w: &Watched| [w.between(a, r), w.between(r, a)].concat().len();
            assert_eq!(ids(&w), 3);
            w.commit(Update { moved: BTreeSet::from([r]), ..Update::default() });
            assert_eq!(ids(&w), 0, "{:?}", w.between(a, r));
        }
    });
}

/// What went on by an answer's right alone does not reach the next owner, and nothing that the next owner sends goes out by
/// such a right.
#[test]
fn nothing_of_the_old_owners_passes_by_the_right_of_an_answer() {
    privileged(|| {
        // a may be reached by nobody; what it asks for may come back.
        let isolated = crate::cut::policy("in", "{podSelector: {matchLabels: {app: a}}}");
        let mut w = Watched::new(&["a", "b"], &["r"], &isolated);
        for (there, from) in [("r", None), ("b", Some("b"))] {
            for address in [w.v4(there), w.v6(there)] {
                let mut udp = Connection::udp(&w, From::Pod("a"), SocketAddr::new(address, 53), None);
                assert!(udp.passes(&w, Back));
                match from {
                    None => w.commit(Update { moved: BTreeSet::from([address]), ..Update::default() }),
                    // On its own node: out of the tables, forgotten, and in again as another pod's.
                    Some(pod) => {
                        let local = w.pods[pod].local.clone();
                        let addresses = [w.v4(pod), w.v6(pod)];
                        let gone = Update { pods: BTreeMap::from([(name(pod), None)]), ..Update::default() };
                        w.commit(gone);
                        assert!(!w.between(w.same("a", address), address).is_empty());
                        forget(&w, addresses);
                        let back = BTreeMap::from([(name(pod), Some(local))]);
                        w.commit(Update { pods: back, ..Update::default() });
                    }
                }
                // The new owner sends from the very port that a's packets went to.
                assert!(!udp.passes(&w, Back), "judged as new, and denied");
                // What a sends opens a connection of its own, because it may.
                assert!(udp.passes(&w, There));
                assert!(udp.passes(&w, Back));
            }
        }
    });
}

/// A stream that went to the old owner does not go on to the next one, who may not be reached.
#[test]
fn a_stream_to_the_old_owner_does_not_reach_the_next() {
    privileged(|| {
        let mut w = Watched::new(&["a", "b"], &[], "");
        for b in [w.v4("b"), w.v6("b")] {
            let mut udp = Connection::udp(&w, From::Pod("a"), SocketAddr::new(b, 53), None);
            let mut tcp = Connection::tcp(&w, From::Pod("a"), SocketAddr::new(b, 80), None);
            let local = w.pods["b"].local.clone();
            w.commit(Update { pods: BTreeMap::from([(name("b"), None)]), ..Update::default() });
            let addresses = [w.v4("b"), w.v6("b")];
            forget(&w, addresses);
            // The next one is isolated from its first moment on.
            w.apply_quietly(&crate::cut::deny_to_b());
            w.commit(Update { pods: BTreeMap::from([(name("b"), Some(local))]), ..Update::default() });
            assert!(!udp.passes(&w, There));
            assert!(!tcp_any(&mut tcp, &w));
            w.delete_policy("deny");
        }
    });
}

/// TCP's packets are told as dropped in mid-stream, not as denied: whether one gets through is seen at the other end only.
fn tcp_any(tcp: &mut Connection, w: &Watched) -> bool {
    let before: u64 = w.drops().values().sum();
    tcp.send(There);
    loop {
        if tcp.arrived(There) {
            return true;
        }
        if w.drops().values().sum::<u64>() > before {
            return false;
        }
        std::thread::yield_now();
    }
}

fn forget(w: &Watched, addresses: impl IntoIterator<Item = std::net::IpAddr>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(w.flows().forget(addresses));
}

/// An agent was dead while a pod went: whatever is left of that pod's connections goes at the start.
#[test]
fn connections_of_a_pod_that_went_unseen_are_forgotten_at_the_start() {
    privileged(|| {
        let mut w = Watched::new(&["a", "b"], &[], "");
        let (a, b) = (w.v4("a"), w.v4("b"));
        let _open = [
            Connection::udp(&w, From::Pod("a"), SocketAddr::new(b, 53), None),
            Connection::udp(&w, From::Pod("b"), SocketAddr::new(a, 53), None),
            Connection::udp(&w, From::Node, SocketAddr::new(a, 54), None),
        ];
        w.die();
        let gone = w.pods.remove("b");
        w.revive();
        let mut left = 0;
        w.flows().live(|_| left += 1).expect("the table can be read");
        assert_eq!(left, 1, "the node's own is left");
        drop(gone);
    });
}
