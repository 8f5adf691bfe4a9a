//! Policies and real packets: the same verdict.

use moat_agent::dataplane::DropReason;
use moat_policies::Direction::{Egress, Ingress};

use crate::probe::Fate::{Dropped, Passed};
use crate::probe::From;
use crate::space::privileged;
use crate::world::{OUTSIDE_V4, World};

const DENIED_IN: crate::probe::Fate = Dropped(DropReason::Policy.on(Ingress));
const DENIED_OUT: crate::probe::Fate = Dropped(DropReason::Policy.on(Egress));

pub(crate) fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}}}\nspec: {spec}\n"
    )
}

#[test]
fn without_policies_everything_passes() {
    privileged(|| {
        let w = World::new(&["a", "b"], &["r"], "");
        for (a, b) in [(w.v4("a"), w.v4("b")), (w.v6("a"), w.v6("b"))] {
            assert_eq!(w.tcp(From::Pod("a"), b, 80), Passed);
            assert_eq!(w.udp(From::Pod("a"), b, 53), Passed);
            assert_eq!(w.ping(From::Pod("b"), a), Passed);
            assert_eq!(w.raw(From::Pod("a"), b, 253, b"x"), Passed);
        }
        assert_eq!(w.tcp(From::Pod("a"), w.v4("r"), 80), Passed);
        assert_eq!(w.tcp(From::Outside(w.v6("r")), w.v6("a"), 80), Passed);
        w.check();
    });
}

#[test]
fn ports_ranges_and_names() {
    privileged(|| {
        let spec = "{podSelector: {matchLabels: {app: b}}, ingress: [{from: [{podSelector: {matchLabels: {app: a}}}],
            ports: [{port: web}, {port: 8000, endPort: 8010}, {port: 53, protocol: UDP}, {port: 443}]}]}";
        let w = World::new(&["a", "b", "c"], &[], &policy("p", spec));
        for (b, a) in [(w.v4("b"), w.v4("a")), (w.v6("b"), w.v6("a"))] {
            for (port, fate) in [
                (79, DENIED_IN),
                (80, Passed),
                (81, DENIED_IN),
                (443, Passed),
                (7999, DENIED_IN),
                (8000, Passed),
                (8010, Passed),
                (8011, DENIED_IN),
                (53, DENIED_IN),
            ] {
                assert_eq!(w.tcp(From::Pod("a"), b, port), fate, "{b}:{port}");
            }
            assert_eq!(w.udp(From::Pod("a"), b, 53), Passed);
            assert_eq!(w.udp(From::Pod("a"), b, 80), DENIED_IN);
            assert_eq!(w.tcp(From::Pod("c"), b, 80), DENIED_IN);
            assert_eq!(w.ping(From::Pod("a"), b), DENIED_IN, "ports allow no ICMP");
            assert_eq!(w.ping(From::Pod("b"), a), Passed, "not isolated for egress");
        }
        w.check();
    });
}

#[test]
fn egress_by_a_named_port_of_each_destination() {
    privileged(|| {
        let spec = "{podSelector: {matchLabels: {app: a}}, policyTypes: [Egress],
            egress: [{to: [{podSelector: {}}], ports: [{port: web}]}]}";
        let w = World::new(&["a", "b"], &["r"], &policy("p", spec));
        assert_eq!(w.tcp(From::Pod("a"), w.v4("b"), 80), Passed);
        assert_eq!(w.tcp(From::Pod("a"), w.v6("b"), 80), Passed);
        assert_eq!(w.tcp(From::Pod("a"), w.v4("r"), 80), Passed);
        assert_eq!(w.tcp(From::Pod("a"), w.v4("b"), 81), DENIED_OUT);
        assert_eq!(w.udp(From::Pod("a"), w.v4("b"), 80), DENIED_OUT);
        assert_eq!(w.tcp(From::Pod("a"), OUTSIDE_V4.into(), 80), DENIED_OUT, "no pod");
        w.check();
    });
}

/// A class chain is jumped to; a packet that it allows to leave the node must not come back to the program.
#[test]
fn egress_by_a_port_map_to_the_outside() {
    privileged(|| {
        let spec = "{podSelector: {matchLabels: {app: a}}, policyTypes: [Egress], egress: [{to: [
            {ipBlock: {cidr: 192.168.0.0/24}}, {podSelector: {matchLabels: {app: b}}}],
            ports: [{port: 1}, {port: 3}, {port: 5}, {port: 7, endPort: 9}]}]}";
        let w = World::new(&["a", "b"], &["r"], &policy("p", spec));
        assert_eq!(w.tcp(From::Pod("a"), OUTSIDE_V4.into(), 5), Passed);
        assert_eq!(w.tcp(From::Pod("a"), OUTSIDE_V4.into(), 6), DENIED_OUT);
        assert_eq!(w.tcp(From::Pod("a"), w.v4("b"), 9), Passed);
        assert_eq!(w.tcp(From::Pod("a"), w.v6("b"), 10), DENIED_OUT);
        assert_eq!(w.tcp(From::Pod("a"), w.v4("r"), 5), DENIED_OUT);
        w.check();
    });
}

#[test]
fn prefixes_with_excepts() {
    privileged(|| {
        let out = "{podSelector: {matchLabels: {app: a}}, policyTypes: [Egress], egress: [{to: [
            {ipBlock: {cidr: 192.168.0.0/24, except: [192.168.0.2/32]}}, {ipBlock: {cidr: 'fd00:1::/64'}},
            {podSelector: {matchLabels: {app: b}}}]}]}";
        let into = "{podSelector: {matchLabels: {app: b}}, ingress: [{from: [
            {ipBlock: {cidr: 10.0.1.0/24, except: [10.0.1.11/32]}}]}]}";
        let w = World::new(&["a", "b"], &["r", "s"], &(policy("out", out) + &policy("in", into)));
        w.outside.ip("addr add 192.168.0.7/24 dev eth0");
        assert_eq!(w.tcp(From::Pod("a"), "192.168.0.7".parse().unwrap(), 80), Passed);
        assert_eq!(w.tcp(From::Pod("a"), OUTSIDE_V4.into(), 80), DENIED_OUT);
        assert_eq!(w.udp(From::Pod("a"), w.v6("r"), 80), Passed);
        assert_eq!(w.tcp(From::Pod("a"), w.v4("r"), 80), DENIED_OUT);
        assert_eq!(
            w.tcp(From::Pod("a"), w.v4("b"), 80),
            DENIED_IN,
            "a's egress allows, b's ingress does not"
        );
        assert_eq!(w.tcp(From::Outside(w.v4("r")), w.v4("b"), 80), Passed);
        assert_eq!(w.ping(From::Outside(w.v4("r")), w.v4("b")), Passed);
        assert_eq!(w.tcp(From::Outside(w.v4("s")), w.v4("b"), 80), DENIED_IN);
        assert_eq!(w.tcp(From::Outside(w.v6("r")), w.v6("b"), 80), DENIED_IN, "the block is IPv4");
        w.check();
    });
}

#[test]
fn every_protocol_reads_no_port() {
    privileged(|| {
        // More port ranges than stand inline, so that a map reads the port of every packet.
        let ports = "[{port: 1}, {port: 3}, {port: 5}, {port: 7}, {port: 9}]";
        let spec = format!(
            "{{podSelector: {{matchLabels: {{app: b}}}}, ingress: [
               {{from: [{{podSelector: {{matchLabels: {{app: a}}}}}}]}},
               {{from: [{{podSelector: {{matchLabels: {{app: c}}}}}}], ports: {ports}}}]}}"
        );
        let w = World::new(&["a", "b", "c"], &[], &policy("p", &spec));
        for b in [w.v4("b"), w.v6("b")] {
            for payload in [&b""[..], b"x", b"xx", b"xxx", b"\0\x01\0\x01"] {
                assert_eq!(w.raw(From::Pod("a"), b, 253, payload), Passed, "{payload:?}");
                assert_eq!(w.raw(From::Pod("c"), b, 253, payload), DENIED_IN, "{payload:?}");
            }
            assert_eq!(w.ping(From::Pod("a"), b), Passed);
            assert_eq!(w.tcp(From::Pod("a"), b, 1), Passed);
            assert_eq!(w.tcp(From::Pod("c"), b, 9), Passed);
            assert_eq!(w.tcp(From::Pod("c"), b, 8), DENIED_IN);
            assert_eq!(w.udp(From::Pod("c"), b, 9), DENIED_IN);
        }
        w.check();
    });
}

#[test]
fn a_node_and_its_own_pods_reach_each_other() {
    privileged(|| {
        let deny = policy("deny", "{podSelector: {}, policyTypes: [Ingress, Egress]}");
        let w = World::new(&["a", "b"], &[], &deny);
        let node = crate::world::NODE_V4.into();
        assert_eq!(w.tcp(From::Node, w.v4("a"), 80), Passed);
        assert_eq!(w.udp(From::Node, w.v6("a"), 80), Passed);
        assert_eq!(w.tcp(From::Pod("a"), node, 80), Passed);
        assert_eq!(w.ping(From::Pod("a"), node), Passed);
        assert_eq!(w.tcp(From::Pod("a"), w.v4("b"), 80), DENIED_OUT);
        assert_eq!(w.tcp(From::Outside(OUTSIDE_V4.into()), w.v4("b"), 80), DENIED_IN);
        w.check();
    });
}

#[test]
fn changes_take_effect_and_can_be_taken_back() {
    privileged(|| {
        let mut w = World::new(&["a", "b"], &["r"], "");
        let b = w.v4("b");
        assert_eq!(w.tcp(From::Pod("a"), b, 80), Passed);
        w.apply(&policy("deny", "{podSelector: {matchLabels: {app: b}}}"));
        assert_eq!(w.tcp(From::Pod("a"), b, 80), DENIED_IN);
        w.apply(&policy(
            "allow",
            "{podSelector: {matchLabels: {app: b}}, ingress: [{from: [{podSelector: {matchLabels: {app: a}}},
              {ipBlock: {cidr: 10.0.1.0/24}}], ports: [{port: 80}]}]}",
        ));
        assert_eq!(w.tcp(From::Pod("a"), b, 80), Passed);
        assert_eq!(w.tcp(From::Outside(w.v4("r")), b, 80), Passed);
        assert_eq!(w.tcp(From::Pod("a"), b, 81), DENIED_IN);
        w.check();
        w.delete_policy("allow");
        assert_eq!(w.tcp(From::Pod("a"), b, 80), DENIED_IN);
        w.check();
        w.delete_policy("deny");
        assert_eq!(w.tcp(From::Pod("a"), b, 80), Passed);
        w.check();
    });
}
