//! CHECK names what is not as ADD made it; GC mends it.

use crate::world::{TestNode, in_world, tcp, udp};

#[test]
fn check_names_every_drift_and_gc_mends_it() {
    in_world(|| {
        let node = TestNode::new(&["10.1.0.0/24", "fd00:1::/64"]);
        let plugin = node.plugin();
        let (a, b) = (plugin.pod("a"), plugin.pod("b"));
        let host = a.result["interfaces"][0]["name"].as_str().unwrap().to_owned();
        let mended = |found: &[&str], where_: &str| {
            let error = plugin.check("a", &a.ns.path, &a.result).fails_with(103);
            for what in found {
                assert!(error["details"].as_str().unwrap().contains(what), "{where_}: {what} not in {error}");
            }
            plugin.gc(&["a", "b"]).ok();
            plugin.check("a", &a.ns.path, &a.result).ok();
        };
        for (change, found) in [
            ("ip link set eth0 mtu 1300", "the pod's interface eth0 has the MTU 1300, not 1450"),
            ("ip link set eth0 address 02:00:00:00:00:99", "eth0 has another hardware address"),
            ("ip addr del 10.1.0.1/32 dev eth0", "eth0 does not have 10.1.0.1"),
            ("ip neigh del 169.254.1.1 dev eth0", "the pod has no permanent neighbour 169.254.1.1"),
            ("ip -6 route del default", "the pod has no default route by fe80::1"),
            ("echo 1 > /proc/sys/net/ipv6/conf/eth0/accept_ra", "net/ipv6/conf/eth0/accept_ra is 1, not 0"),
            ("ip link set eth0 down", "the pod's interface eth0 is down"),
        ] {
            a.ns.sh(change);
            mended(&[found], change);
        }
        for (change, found) in [
            (format!("ip link set {host} mtu 1400"), format!("{host} has the MTU 1400, not 1450")),
            (format!("ip link set {host} address 06:00:00:00:00:99"), "has another hardware address".into()),
            ("ip route del 10.1.0.1".into(), "the node has no route to 10.1.0.1".into()),
            (format!("ip -6 neigh del fd00:1::1 dev {host}"), "no permanent neighbour fd00:1::1".into()),
            (
                format!("echo 1 > /proc/sys/net/ipv4/conf/{host}/proxy_arp"),
                format!("net/ipv4/conf/{host}/proxy_arp is 1, not 0"),
            ),
            (format!("ip link set {host} down"), format!("the node's end {host} is down")),
            (format!("ip link set {host} alias x"), "does not say whose it is".into()),
        ] {
            node.ns.sh(&change);
            mended(&[&found], &change);
        }
        // A default route of somebody else's is left alone.
        a.ns.sh("ip route replace default dev lo");
        plugin.gc(&["a", "b"]).ok();
        assert!(a.ns.sh("ip route show default").contains("dev lo"));
        a.ns.sh("ip route del default");
        a.ns.sh("ip route add default via 169.254.1.1");
        for (&from, &to) in a.addresses.iter().zip(&b.addresses) {
            tcp(&a.ns, &b.ns, to);
            udp(&b.ns, &a.ns, from);
        }
    });
}

#[test]
fn what_cannot_be_mended_is_said() {
    in_world(|| {
        let node = TestNode::new(&["10.1.0.0/24"]);
        let plugin = node.plugin();
        let (a, b) = (plugin.pod("a"), plugin.pod("b"));
        a.ns.sh("ip link set eth0 down; ip link set eth0 name other0");
        node.ns.sh("ip route del 10.1.0.2");
        let error = plugin.gc(&["a", "b"]);
        assert!(!error.success && error.stdout.contains("eth0"), "{}", error.stdout);
        // The other is mended all the same.
        plugin.check("b", &b.ns.path, &b.result).ok();
    });
}
