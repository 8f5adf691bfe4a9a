//! What a change denies is cut, what it allows goes on.

use std::net::SocketAddr;

use moat_agent::dataplane::{DropReason, Ruling, Update};
use moat_nfnetlink::conntrack::{Conntrack, Filter, MarkChange};
use moat_policies::Direction::{Egress, Ingress};

use crate::connection::Connection;
use crate::connection::Way::{self, Back, There};
use crate::probe::From;
use crate::space::privileged;
use crate::watched::Watched;
use crate::world::{NODE_V4, pod_manifest};

pub(crate) fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}}}\nspec: {spec}\n"
    )
}

/// Nobody may talk to b.
pub(crate) fn deny_to_b() -> String {
    policy("deny", "{podSelector: {matchLabels: {app: b}}}")
}

fn each_way(connection: &mut Connection, w: &Watched, passes: bool) {
    for way in [There, Back] {
        assert_eq!(connection.passes(w, way), passes, "{way:?}");
    }
}

#[test]
fn a_denied_flow_is_cut_in_both_directions_and_may_go_on_when_it_is_allowed_again() {
    privileged(|| {
        let mut w = Watched::new(&["a", "b"], &[], "");
        for b in [w.v4("b"), w.v6("b")] {
            let a = if b.is_ipv4() { w.v4("a") } else { w.v6("a") };
            let mut all = [
                Connection::udp(&w, From::Pod("a"), SocketAddr::new(b, 53), None),
                Connection::ping(&w, From::Pod("a"), b),
                Connection::raw(&w, From::Pod("a"), [a, b]),
                Connection::tcp(&w, From::Pod("a"), SocketAddr::new(b, 80), None),
            ];
            w.apply(&deny_to_b());
            for connection in &mut all {
                each_way(connection, &w, false);
            }
            let live = w.between(a, b);
            assert_eq!(live.len(), 4, "{live:?}");
            for flow in &live {
                assert!(flow.revoked, "{flow:?}");
                assert_eq!(flow.ruling, Ruling::Denied(DropReason::Policy.on(Ingress)));
                let names = [&flow.source, &flow.destination].map(|n| n.as_ref().map(|n| n.name.to_string()));
                assert_eq!(names, [Some("a".to_owned()), Some("b".to_owned())]);
            }
            w.delete_policy("deny");
            for connection in &mut all {
                connection.arrives(There);
                connection.arrives(Back);
            }
            assert!(w.between(a, b).iter().all(|f| !f.revoked && f.ruling == Ruling::Allowed));
        }
    });
}

/// A server that streams while its client says nothing.
#[test]
fn answers_alone_are_cut_too() {
    privileged(|| {
        let mut w = Watched::new(&["a", "b"], &["r"], "");
        for (b, r) in [(w.v4("b"), w.v4("r")), (w.v6("b"), w.v6("r"))] {
            let mut all = [
                Connection::udp(&w, From::Pod("a"), SocketAddr::new(b, 53), None),
                Connection::tcp(&w, From::Pod("a"), SocketAddr::new(b, 80), None),
                Connection::udp(&w, From::Outside(r), SocketAddr::new(b, 54), None),
                Connection::tcp(&w, From::Outside(r), SocketAddr::new(b, 81), None),
            ];
            w.apply(&deny_to_b());
            all.iter_mut().for_each(|c| assert!(!c.passes(&w, Back)));
            w.delete_policy("deny");
            all.iter_mut().for_each(|c| c.arrives(Back));
        }
    });
}

#[test]
fn egress_is_cut_as_ingress_is() {
    privileged(|| {
        let mut w = Watched::new(&["a", "b"], &["r"], "");
        let none = policy("none", "{podSelector: {matchLabels: {app: a}}, policyTypes: [Egress]}");
        for (b, r) in [(w.v4("b"), w.v4("r")), (w.v6("b"), w.v6("r"))] {
            let mut out = [
                Connection::udp(&w, From::Pod("a"), SocketAddr::new(b, 53), None),
                Connection::udp(&w, From::Pod("a"), SocketAddr::new(r, 53), None),
                Connection::tcp(&w, From::Pod("a"), SocketAddr::new(r, 80), None),
            ];
            let mut into = Connection::udp(&w, From::Pod("b"), SocketAddr::new(w.same("a", b), 53), None);
            w.apply(&none);
            for connection in &mut out {
                each_way(connection, &w, false);
            }
            each_way(&mut into, &w, true);
            let reasons: Vec<_> = w.between(w.same("a", b), r).iter().map(|f| f.ruling).collect();
            assert_eq!(reasons, [Ruling::Denied(DropReason::Policy.on(Egress)); 2]);
            w.delete_policy("none");
        }
    });
}

/// Flows that a change leaves allowed lose no packet, while others to the same pod and port are cut.
#[test]
fn allowed_flows_do_not_notice() {
    privileged(|| {
        let mut w = Watched::new(&["a", "b", "c"], &["r"], "");
        let only_a = policy(
            "only-a",
            "{podSelector: {matchLabels: {app: b}}, ingress: [{from: [{podSelector: {matchLabels: {app: a}}}],
              ports: [{port: 53, protocol: UDP}, {port: 80}]}]}",
        );
        for b in [w.v4("b"), w.v6("b")] {
            let to = |port| SocketAddr::new(b, port);
            let mut kept = [
                Connection::udp(&w, From::Pod("a"), to(53), None),
                Connection::tcp(&w, From::Pod("a"), to(80), None),
            ];
            let mut cut = [
                Connection::udp(&w, From::Pod("a"), to(54), None),
                Connection::udp(&w, From::Pod("c"), to(55), None),
                Connection::tcp(&w, From::Pod("c"), to(81), None),
                Connection::ping(&w, From::Pod("a"), b),
                Connection::udp(&w, From::Outside(w.same("r", b)), to(56), None),
            ];
            for _ in 0..3 {
                w.apply(&only_a);
                kept.iter_mut().for_each(|c| each_way(c, &w, true));
                cut.iter_mut().for_each(|c| assert!(!c.passes(&w, There)));
                kept.iter_mut().for_each(|c| [There, Back].map(|way| c.arrives(way)).into_iter().collect());
                w.delete_policy("only-a");
                cut.iter_mut().for_each(|c| c.arrives(There));
            }
        }
    });
}

#[test]
fn named_ports_and_blocks() {
    privileged(|| {
        let mut w = Watched::new(&["a", "b"], &["r", "s"], "");
        let (b, r, s) = (w.v4("b"), w.v4("r"), w.v4("s"));
        let mut kept = [
            Connection::tcp(&w, From::Pod("a"), SocketAddr::new(b, 80), None),
            Connection::udp(&w, From::Pod("a"), SocketAddr::new(r, 9), None),
        ];
        let mut cut = [
            Connection::tcp(&w, From::Pod("a"), SocketAddr::new(b, 81), None),
            Connection::udp(&w, From::Pod("a"), SocketAddr::new(s, 9), None),
        ];
        w.apply(&policy(
            "out",
            "{podSelector: {matchLabels: {app: a}}, policyTypes: [Egress], egress: [
              {to: [{podSelector: {}}], ports: [{port: web}]},
              {to: [{ipBlock: {cidr: 10.0.1.0/24, except: [10.0.1.11/32]}}]}]}",
        ));
        kept.iter_mut().for_each(|c| each_way(c, &w, true));
        cut.iter_mut().for_each(|c| assert!(!c.passes(&w, There)));
    });
}

/// A pod that comes to an allow set, and of whose connections none was cut: nobody reads the kernel's table for it.
#[test]
fn who_is_allowed_more_is_looked_at_only_where_something_of_its_was_cut() {
    privileged(|| {
        let only = "{podSelector: {matchLabels: {app: b}}, ingress: [{from: [{podSelector: {matchLabels: {role: friend}}}]}]}";
        let mut w = Watched::new(&["a", "b"], &["r"], "");
        let stranger = |name, node| pod_manifest(name, node, "");
        let friend = |name, node| stranger(name, node).replace("all: pods", "all: pods, role: friend");
        for b in [w.v4("b"), w.v6("b")] {
            let (a, r) = (w.same("a", b), w.same("r", b));
            let mut cut = Connection::udp(&w, From::Pod("a"), SocketAddr::new(b, 53), None);
            w.apply(&policy("only-friends", only));
            each_way(&mut cut, &w, false);
            for _ in 0..2 {
                w.at_rest();
                let looks = w.flows().stats().looks();
                w.apply(&friend("r", "other"));
                assert_eq!(w.flows().stats().looks(), looks, "nothing of r's was cut");
                let mut open = Connection::udp(&w, From::Outside(r), SocketAddr::new(b, 54), None);
                each_way(&mut open, &w, true);
                each_way(&mut cut, &w, false);
                w.apply(&stranger("r", "other"));
                each_way(&mut open, &w, false);
                assert!(w.between(r, b).iter().all(|flow| flow.revoked));
                let looks = w.flows().stats().looks();
                w.apply(&friend("r", "other"));
                assert!(w.flows().stats().looks() > looks, "by now something was");
                each_way(&mut open, &w, true);
                assert!(w.between(r, b).iter().all(|flow| !flow.revoked));
                w.apply(&stranger("r", "other"));
                w.commit(Update { moved: [r].into(), ..Update::default() });
            }
            w.apply(&friend("a", "node"));
            cut.arrives(There);
            cut.arrives(Back);
            assert!(w.between(a, b).iter().all(|flow| !flow.revoked));
            w.delete_policy("only-friends");
            w.apply(&stranger("a", "node"));
        }
    });
}

/// A node and its pods always reach each other: nothing of theirs is revoked, whatever policy says.
#[test]
fn a_nodes_own_flows_are_left_alone() {
    privileged(|| {
        let mut w = Watched::new(&["a", "b"], &[], "");
        let a = w.v4("a");
        let mut probe = Connection::udp(&w, From::Node, SocketAddr::new(a, 53), None);
        let mut call = Connection::tcp(&w, From::Pod("a"), SocketAddr::new(NODE_V4.into(), 8080), None);
        w.apply(&policy("deny", "{podSelector: {}, policyTypes: [Ingress, Egress]}"));
        each_way(&mut probe, &w, true);
        each_way(&mut call, &w, true);
        let all = [w.between(a, NODE_V4.into()), w.between(NODE_V4.into(), a)].concat();
        assert_eq!(all.len(), 2);
        assert!(all.iter().all(|f| !f.revoked && f.ruling == Ruling::Allowed), "{all:?}");
    });
}

/// The mark has other bits, which are others'.
#[test]
fn other_bits_of_the_mark_stay() {
    privileged(|| {
        let mut w = Watched::new(&["a", "b"], &[], "");
        let (a, b) = (w.v4("a"), w.v4("b"));
        let _open = Connection::udp(&w, From::Pod("a"), SocketAddr::new(b, 53), None);
        let tuple = w.between(a, b)[0].original;
        let mut conntrack = w.node.run(Conntrack::open).unwrap();
        let others = MarkChange { tuple, zone: 0, value: 0x0000_1234, mask: 0xf7ff_ffff };
        conntrack.set_marks(&[others]).unwrap();
        let mut mark = || {
            let mut marks = Vec::new();
            conntrack.entries(&Filter::opened_by(a), |e| marks.push(e.mark)).unwrap();
            marks
        };
        w.apply(&deny_to_b());
        assert_eq!(mark(), [0x0800_1234]);
        w.delete_policy("deny");
        assert_eq!(mark(), [0x0000_1234]);
    });
}

/// An agent was dead while policy changed.
#[test]
fn at_the_start_all_connections_are_looked_at() {
    privileged(|| {
        let mut w = Watched::new(&["a", "b"], &["r"], "");
        for b in [w.v4("b"), w.v6("b")] {
            let mut there = [
                Connection::udp(&w, From::Pod("a"), SocketAddr::new(b, 53), None),
                Connection::tcp(&w, From::Outside(w.same("r", b)), SocketAddr::new(b, 80), None),
            ];
            w.die();
            there.iter_mut().for_each(|c| each_way(c, &w, true));
            w.cluster.apply(crate::world::objects(&deny_to_b()).remove(0));
            w.revive();
            there.iter_mut().for_each(|c| each_way(c, &w, false));
            w.die();
            there.iter_mut().for_each(|c| assert!(!c.passes(&w, Way::There), "what was in force stays"));
            w.cluster.delete(&moat_policies::Key::Policy(crate::world::name("deny")));
            w.revive();
            there.iter_mut().for_each(|c| c.arrives(There));
        }
    });
}

/// Before anybody has looked: whoever speaks first finds a denied connection cut at the very commit, and one that is
/// allowed again goes on.
#[test]
fn the_kernel_itself_cuts_until_connections_have_been_looked_at() {
    privileged(|| {
        let mut w = Watched::unwatched(&["a", "b", "c"], &[]);
        for b in [w.v4("b"), w.v6("b")] {
            let mut cut = [
                Connection::udp(&w, From::Pod("a"), SocketAddr::new(b, 53), None),
                Connection::tcp(&w, From::Pod("a"), SocketAddr::new(b, 80), None),
                Connection::ping(&w, From::Pod("a"), b),
            ];
            let mut kept = [
                Connection::udp(&w, From::Pod("c"), SocketAddr::new(b, 54), None),
                Connection::tcp(&w, From::Pod("c"), SocketAddr::new(b, 81), None),
            ];
            w.apply_only(&policy(
                "only-c",
                "{podSelector: {matchLabels: {app: b}}, ingress: [{from: [{podSelector: {matchLabels: {app: c}}}]}]}",
            ));
            cut.iter_mut().for_each(|c| each_way(c, &w, false));
            // What is cut is sent again and again, and counted; so these are asked where they arrive.
            for connection in &mut kept {
                connection.arrives(There);
                connection.arrives(Back);
            }
            w.apply_only(&policy("only-c", "{podSelector: {matchLabels: {app: b}}, ingress: [{}]}"));
            cut.iter_mut().take(2).for_each(|c| c.arrives(There));
        }
    });
}

/// The same for those who answer, each half of a policy by itself: nothing but answers is sent, and nobody looks.
#[test]
fn answers_alone_are_cut_by_the_commit_itself() {
    privileged(|| {
        let mut w = Watched::unwatched(&["a", "b", "c"], &["r"]);
        let ingress = "{podSelector: {matchLabels: {app: b}}, ingress: [{from: [{podSelector: {matchLabels: {app: c}}}],
              ports: [{port: 80, endPort: 89}, {port: 7, endPort: 8, protocol: UDP}]}]}";
        let egress =
            "{podSelector: {matchLabels: {app: a}}, policyTypes: [Egress], egress: [{to: [{podSelector: {
              matchLabels: {app: c}}}], ports: [PORTS]}]}";
        let inline = egress.replace("PORTS", "{port: 80}, {port: 7, protocol: UDP}");
        let mapped =
            egress.replace("PORTS", "{port: 80}, {port: 1}, {port: 3}, {port: 5}, {port: 7, protocol: UDP}");
        for (b, r) in [(w.v4("b"), w.v4("r")), (w.v6("b"), w.v6("r"))] {
            let (a, c) = (w.same("a", b), w.same("c", b));
            let udp = |w: &Watched, from, to, port| Connection::udp(w, from, SocketAddr::new(to, port), None);
            let tcp = |w: &Watched, from, to, port| Connection::tcp(w, from, SocketAddr::new(to, port), None);
            let mut by_ingress = [
                udp(&w, From::Pod("a"), b, 7),
                tcp(&w, From::Pod("a"), b, 80),
                // Who may, elsewhere; and who may not, from outside.
                udp(&w, From::Pod("c"), b, 9),
                tcp(&w, From::Pod("c"), b, 90),
                udp(&w, From::Outside(r), b, 10),
                tcp(&w, From::Outside(r), b, 81),
                Connection::raw(&w, From::Pod("c"), [c, b]),
            ];
            let mut by_egress = [
                udp(&w, From::Pod("a"), b, 17),
                udp(&w, From::Pod("a"), r, 7),
                tcp(&w, From::Pod("a"), r, 80),
                udp(&w, From::Pod("a"), c, 9),
                tcp(&w, From::Pod("a"), c, 81),
                Connection::raw(&w, From::Pod("a"), [a, r]),
            ];
            let mut kept = [udp(&w, From::Pod("c"), b, 8), tcp(&w, From::Pod("c"), b, 82)];
            let mut kept_by_egress = [udp(&w, From::Pod("a"), c, 7), tcp(&w, From::Pod("a"), c, 80)];
            let mut judged = |spec: &str, cut: &mut [Connection], kept: &mut [Connection]| {
                w.apply_only(&policy("only", spec));
                // Before anything is dropped, so that what is counted there is not taken for theirs.
                kept.iter_mut().for_each(|c| each_way(c, &w, true));
                cut.iter_mut().for_each(|c| assert!(!c.passes(&w, Back)));
                kept.iter_mut().for_each(|c| c.arrives(Back));
                w.apply_only(&policy("only", "{podSelector: {matchLabels: {app: d}}}"));
                cut.iter_mut().for_each(|c| c.arrives(Back));
            };
            judged(ingress, &mut by_ingress, &mut kept);
            judged(&inline, &mut by_egress, &mut kept_by_egress);
            judged(&mapped, &mut by_egress, &mut kept_by_egress);
        }
    });
}
