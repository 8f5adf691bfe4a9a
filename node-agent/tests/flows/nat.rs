//! Connections whose addresses or ports are translated on the way.

use std::net::{IpAddr, SocketAddr};

use moat_nfnetlink::conntrack::{Conntrack, Filter};

use crate::connection::Connection;
use crate::connection::Way::{Back, There};
use crate::cut::{deny_to_b, policy};
use crate::probe::From;
use crate::space::privileged;
use crate::watched::Watched;

/// A Service: its address and port lead to b's port 8080, as kube-proxy would do it; and what comes from outside is
/// masqueraded.
pub(crate) fn service(w: &Watched, backend: &str) {
    let (b4, b6) = (w.v4(backend), w.v6(backend));
    let file = tempfile::NamedTempFile::new().expect("a file");
    let text = format!(
        "table inet svc {{
            chain to_pod {{
                type nat hook prerouting priority -100
                ip daddr 10.96.0.1 meta l4proto {{ tcp, udp }} dnat ip to {b4}:8080
                ip6 daddr fd96::1 meta l4proto {{ tcp, udp }} dnat ip6 to [{b6}]:8080
                ip daddr 10.96.0.1 icmp type echo-request dnat ip to {b4}
                ip6 daddr fd96::1 icmpv6 type echo-request dnat ip6 to {b6}
            }}
            chain from_node {{
                type nat hook postrouting priority 100
                ct status dnat ip saddr 192.168.0.2 masquerade
                ct status dnat ip saddr {b4} ip daddr {b4} masquerade
                ct status dnat ip6 saddr {b6} ip6 daddr {b6} masquerade
            }}
        }}\n"
    );
    std::fs::write(file.path(), text).expect("written");
    w.node.command(&format!("nft -f {}", file.path().display()));
    w.outside.ip("route add 10.96.0.1/32 via 192.168.0.1");
    w.outside.ip("-6 route add fd96::1/128 via fd01::1");
}

#[test]
fn flows_through_a_service_are_cut_where_they_really_go() {
    privileged(|| {
        let mut w = Watched::new(&["a", "b"], &["r"], "");
        service(&w, "b");
        for (vip, b) in [("10.96.0.1", w.v4("b")), ("fd96::1", w.v6("b"))] {
            let vip: IpAddr = vip.parse().unwrap();
            let (to, at) = (SocketAddr::new(vip, 80), Some(SocketAddr::new(b, 8080)));
            let mut all = vec![
                Connection::tcp(&w, From::Pod("a"), to, at),
                Connection::tcp(&w, From::Outside(w.same("r", b)), to, at),
                Connection::udp(&w, From::Pod("a"), to, at),
            ];
            if b.is_ipv4() {
                all.push(Connection::tcp(&w, From::Outside([192, 168, 0, 2].into()), to, at));
            }
            // The Service's own port is open, the one behind it is not.
            w.apply(&policy(
                "front",
                "{podSelector: {matchLabels: {app: b}}, ingress: [{ports: [{port: 80}, {port: 80, protocol: UDP}]}]}",
            ));
            for connection in &mut all {
                assert!(!connection.passes(&w, There));
                assert!(!connection.passes(&w, Back));
            }
            w.apply(&policy(
                "front",
                "{podSelector: {matchLabels: {app: b}}, ingress: [{ports: [{port: 8080}, {port: 8080, protocol: UDP}]}]}",
            ));
            for connection in &mut all {
                connection.arrives(There);
                connection.arrives(Back);
            }
            // From a's side: the Service's address is nobody's, b's is b's.
            let out = "{podSelector: {matchLabels: {app: a}}, policyTypes: [Egress], egress: [{to: [PEER]}]}";
            let block = if b.is_ipv4() { "10.96.0.0/16" } else { "fd96::/16" };
            w.apply(&policy("out", &out.replace("PEER", &format!("{{ipBlock: {{cidr: '{block}'}}}}"))));
            assert!(!all[0].passes(&w, There));
            assert!(all[1].passes(&w, Back), "not a's");
            w.apply(&policy("out", &out.replace("PEER", "{podSelector: {matchLabels: {app: b}}}")));
            all[0].arrives(There);
            w.delete_policy("out");
            w.delete_policy("front");
        }
    });
}

/// The protocols that a Service does not know, or does not from outside: translated all the same, and cut.
#[test]
fn pings_and_datagrams_from_everywhere_are_cut_behind_a_translation() {
    privileged(|| {
        for watched in [true, false] {
            let mut w = match watched {
                true => Watched::new(&["a", "b"], &["r"], ""),
                false => Watched::unwatched(&["a", "b"], &["r"]),
            };
            service(&w, "b");
            for (vip, b) in [("10.96.0.1", w.v4("b")), ("fd96::1", w.v6("b"))] {
                let vip: IpAddr = vip.parse().unwrap();
                let (to, at) = (SocketAddr::new(vip, 80), Some(SocketAddr::new(b, 8080)));
                let outside = From::Outside(w.same("r", b));
                let mut all = [
                    Connection::ping(&w, From::Pod("a"), vip),
                    Connection::ping(&w, outside, vip),
                    Connection::udp(&w, outside, to, at),
                ];
                if watched {
                    w.apply(&deny_to_b())
                } else {
                    w.apply_only(&deny_to_b())
                }
                for connection in &mut all {
                    assert!(!connection.passes(&w, Back), "watched: {watched}");
                    assert!(!connection.passes(&w, There), "watched: {watched}");
                }
                match watched {
                    true => w.delete_policy("deny"),
                    false => w.apply_only(&policy("deny", "{podSelector: {matchLabels: {app: nobody}}}")),
                }
                for connection in &mut all {
                    connection.arrives(There);
                    connection.arrives(Back);
                }
            }
        }
    });
}

/// Until somebody has looked, too: an answer comes from where the connection really went.
#[test]
fn answers_through_a_service_are_cut_by_the_commit_itself() {
    privileged(|| {
        let mut w = Watched::unwatched(&["a", "b"], &["r"]);
        service(&w, "b");
        for (vip, b) in [("10.96.0.1", w.v4("b")), ("fd96::1", w.v6("b"))] {
            let (to, at) = (SocketAddr::new(vip.parse().unwrap(), 80), Some(SocketAddr::new(b, 8080)));
            let mut all = vec![
                Connection::udp(&w, From::Pod("a"), to, at),
                Connection::tcp(&w, From::Pod("a"), to, at),
                Connection::tcp(&w, From::Outside(w.same("r", b)), to, at),
            ];
            if b.is_ipv4() {
                all.push(Connection::tcp(&w, From::Outside([192, 168, 0, 2].into()), to, at));
            }
            let front = |port: u16, who: &str| {
                let ports = format!("[{{port: {port}}}, {{port: {port}, protocol: UDP}}]");
                policy(
                    "front",
                    &format!(
                        "{{podSelector: {{matchLabels: {{app: b}}}}, ingress: [{{{who}ports: {ports}}}]}}"
                    ),
                )
            };
            // The Service's own port is open, the one behind it is not.
            w.apply_only(&front(80, ""));
            all.iter_mut().for_each(|c| assert!(!c.passes(&w, Back)));
            w.apply_only(&front(8080, ""));
            all.iter_mut().for_each(|c| c.arrives(Back));
            // Not the node, which outside clients are masqueraded as, but they themselves.
            w.apply_only(&front(
                8080,
                "from: [{ipBlock: {cidr: 192.168.0.2/32}}, {podSelector: {matchLabels: {app: a}}}], ",
            ));
            assert!(!all[2].passes(&w, Back));
            all.iter_mut().skip(3).for_each(|c| c.arrives(Back));
            all[..2].iter_mut().for_each(|c| c.arrives(Back));
            w.apply_only(&front(8080, ""));
            // From a's side: the Service's address is nobody's, b's is b's.
            let out = "{podSelector: {matchLabels: {app: a}}, policyTypes: [Egress], egress: [{to: [PEER]}]}";
            let block = if b.is_ipv4() { "10.96.0.0/16" } else { "fd96::/16" };
            w.apply_only(&policy("out", &out.replace("PEER", &format!("{{ipBlock: {{cidr: '{block}'}}}}"))));
            all[..2].iter_mut().for_each(|c| assert!(!c.passes(&w, Back)));
            w.apply_only(&policy("out", &out.replace("PEER", "{podSelector: {matchLabels: {app: b}}}")));
            all.iter_mut().for_each(|c| c.arrives(Back));
            w.apply_only(&policy("out", &out.replace("[{to: [PEER]}]", "[{}]")));
        }
    });
}

/// A pod that reaches itself through a Service is not cut: it always reaches itself.
#[test]
fn a_pod_to_itself_through_a_service() {
    privileged(|| {
        to_itself(Watched::new(&["b"], &[], ""), Watched::apply);
        to_itself(Watched::unwatched(&["b"], &[]), Watched::apply_only);
    });
}

fn to_itself(mut w: Watched, apply: fn(&mut Watched, &str)) {
    service(&w, "b");
    w.node.command("sysctl -qw net.ipv4.conf.all.send_redirects=0");
    let to = SocketAddr::new("10.96.0.1".parse().expect("an address"), 80);
    let at = Some(SocketAddr::new(w.v4("b"), 8080));
    let mut itself =
        [Connection::udp(&w, From::Pod("b"), to, at), Connection::tcp(&w, From::Pod("b"), to, at)];
    apply(&mut w, &policy("none", "{podSelector: {}, policyTypes: [Ingress, Egress]}"));
    for connection in &mut itself {
        assert!(connection.passes(&w, There));
        assert!(connection.passes(&w, Back));
    }
    apply(&mut w, &deny_to_b());
    let mut marks = Vec::new();
    let mut conntrack = w.node.run(Conntrack::open).expect("a socket");
    conntrack.entries(&Filter::opened_by(w.v4("b")), |e| marks.push(e.mark)).expect("a dump");
    assert_eq!(marks, [0, 0]);
}
