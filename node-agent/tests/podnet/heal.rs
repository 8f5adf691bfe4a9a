//! What somebody removes or changes in the node's namespace is back within a second, whatever it was; and moat's own work is
//! no reason to do any.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use moat_agent::podnet::{AttachmentKey, Prepare, TUNNEL};
use prometheus_client::metrics::counter::Counter;

use crate::world::{Namespace, TestNode, in_world, node, tcp, udp};

/// So soon it must be back.
const SOON: Duration = Duration::from_secs(1);
/// A machine that has other things to do may be late; not so often.
const TRIES: usize = 5;

/// A node with a neighbour on its link, and another node behind a router.
fn kept() -> (TestNode, Counter) {
    let mut kept = TestNode::alone(&["10.1.0.0/24", "fd00:1::/64"]);
    kept.others = vec![
        node("b", &["192.0.2.2", "2001:db8::2"], &["10.2.0.0/24", "fd00:2::/64"]),
        node("c", &["198.51.100.3", "2001:db8:3::3"], &["10.3.0.0/24", "fd00:3::/64"]),
    ];
    kept.ns.sh("ip route add default via 192.0.2.254; ip -6 route add default via 2001:db8::fe");
    let mended = Counter::default();
    kept.keep = Some(mended.clone());
    kept.start();
    (kept, mended)
}

/// Everything that moat made in the node's namespace, in words.
fn made(node: &TestNode, link: &str) -> String {
    node.ns.sh(&format!(
        "{{ ip route show table all proto 109; ip -6 route show table all proto 109; ip rule; ip -6 rule
            ip neigh show nud permanent; ip -6 neigh show nud permanent; bridge fdb show dev {TUNNEL} 2>/dev/null || true
            for l in {link} {TUNNEL}; do ip -o link show $l 2>/dev/null | sed 's/^[0-9]*: //; s/@if[0-9]*//; s/qlen.*link/link/' || true; done
            cd /proc/sys/net; grep -H . ipv4/ip_forward ipv6/conf/all/forwarding ipv[46]/conf/{link}/* 2>/dev/null |
                grep -E 'forward|rp_filter|proxy_arp|accept_r|disable_ipv6' || true
         }} | sort"
    ))
}

#[test]
fn what_somebody_removes_is_back_within_a_second() {
    in_world(|| {
        let (node, mended) = kept();
        let pod = node.plugin().pod("a");
        let host = pod.result["interfaces"][0]["name"].as_str().unwrap().to_owned();
        let whole = made(&node, &host);
        assert!(whole.contains("10.3.0.0/24") && whole.contains("10.2.0.0/24 via 192.0.2.2"), "{whole}");
        for damage in [
            "ip route del 10.1.0.1",
            "ip -6 route del fd00:1::1",
            "ip route replace 10.1.0.1 dev uplink",
            "ip neigh del 10.1.0.1 dev HOST",
            "ip -6 neigh del fd00:1::1 dev HOST",
            "ip neigh replace 10.1.0.1 lladdr 02:00:00:00:00:99 dev HOST nud permanent",
            "ip neigh replace 10.1.0.1 lladdr 02:00:00:00:00:99 dev HOST nud reachable",
            "ip link set HOST down",
            "ip link set HOST down; ip link set HOST up",
            "ip link set HOST mtu 1300",
            "ip link set HOST address 06:00:00:00:00:99",
            "ip link set HOST alias nobody",
            "ip link del HOST",
            "ip route del 10.2.0.0/24",
            "ip -6 route del fd00:2::/64",
            "ip route del unreachable 10.1.0.0/24",
            "ip route flush proto 109; ip -6 route flush proto 109",
            "ip link set uplink down; ip link set uplink up; ip addr replace 2001:db8::1/64 dev uplink nodad
             ip route replace default via 192.0.2.254; ip -6 route replace default via 2001:db8::fe",
            "ip addr del 192.0.2.1/24 dev uplink; ip addr add 192.0.2.1/24 dev uplink
             ip route replace default via 192.0.2.254",
            "ip link del TUNNEL",
            "ip link set TUNNEL down",
            "ip route del 10.3.0.0/24",
            "bridge fdb del $(bridge fdb show dev TUNNEL | cut -d' ' -f1,2,3 | head -1) dev TUNNEL",
            "ip neigh flush dev TUNNEL nud permanent",
            "ip rule del priority 10109",
            "ip -6 rule del priority 10109",
            "sysctl -qw net.ipv4.ip_forward=0",
            "sysctl -qw net.ipv6.conf.all.forwarding=0",
            "sysctl -qw net.ipv4.conf.HOST.rp_filter=1",
            "sysctl -qw net.ipv4.conf.HOST.proxy_arp=1",
            "sysctl -qw net.ipv4.conf.HOST.forwarding=0",
            "sysctl -qw net.ipv4.conf.HOST.accept_redirects=1",
            "sysctl -qw net.ipv6.conf.HOST.accept_ra=1",
            "sysctl -qw net.ipv6.conf.HOST.accept_redirects=1",
            "sysctl -qw net.ipv6.conf.HOST.forwarding=0",
            "sysctl -qw net.ipv6.conf.HOST.disable_ipv6=1",
        ] {
            let damage = damage.replace("HOST", &host).replace("TUNNEL", TUNNEL);
            let mut took = Vec::new();
            while took.last().is_none_or(|took| *took > SOON) {
                assert!(took.len() < TRIES, "{damage}: {took:?}");
                let before = mended.get();
                node.ns.sh(&damage);
                let begin = Instant::now();
                while mended.get() == before || made(&node, &host) != whole {
                    let late = begin.elapsed() > 30 * SOON;
                    assert!(!late, "{damage}; it is\n{}\nand was\n{whole}", made(&node, &host));
                    std::thread::yield_now();
                }
                took.push(begin.elapsed());
            }
            println!("{took:?} {damage}");
        }
        for &address in &pod.addresses {
            tcp(&node.ns, &pod.ns, address);
        }
    });
}

#[test]
fn moats_own_work_is_no_damage() {
    in_world(|| {
        let (node, mended) = kept();
        let plugin = node.plugin();
        let (a, b) = (plugin.pod("a"), plugin.pod("b"));
        for n in 0..5 {
            let gone = plugin.pod(&format!("gone-{n}"));
            plugin.run("DEL", &gone.id, &gone.ns.path).ok();
        }
        // A pod that ends by itself: nothing is there to be led to.
        drop(plugin.pod("ended"));
        // Who hears of one thing has heard of all before it.
        let IpAddr::V4(address) = a.addresses[0] else { panic!("IPv4 first") };
        node.ns.sh(&format!("ip route del {address}"));
        let begin = Instant::now();
        while mended.get() == 0 {
            assert!(begin.elapsed() < 30 * SOON);
            std::thread::yield_now();
        }
        assert_eq!(mended.get(), 1);
        udp(&b.ns, &a.ns, a.addresses[0]);
    });
}

/// Its policy may not be in the kernel yet.
#[test]
fn a_link_that_was_not_activated_stays_down() {
    in_world(|| {
        let (node, mended) = kept();
        let a = node.plugin().pod("a");
        let ns = Namespace::new();
        let key = AttachmentKey::new("early", "eth0");
        let request = Prepare {
            key: key.clone(),
            network: "moat".into(),
            pod_namespace: "default".into(),
            pod_name: "early".into(),
            pod_uid: None,
            netns: ns.path.clone(),
            host_ports: Vec::new(),
        };
        let podnet = node.podnet().clone();
        node.ns.run(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let attachment = runtime.block_on(podnet.reserve(request)).unwrap();
            runtime.block_on(podnet.build(&attachment)).unwrap();
        });
        let early = key.host_ifname();
        node.ns.sh(&format!(
            "ip link set {early} mtu 1300; ip link set {early} alias x; ip route del {}",
            a.addresses[0]
        ));
        let begin = Instant::now();
        while mended.get() == 0 {
            assert!(begin.elapsed() < 30 * SOON);
            std::thread::yield_now();
        }
        let link = node.ns.sh(&format!("ip -o link show {early}"));
        assert!(link.contains("state DOWN") && link.contains("mtu 1300"), "{link}");
        assert_eq!(mended.get(), 1);
    });
}
