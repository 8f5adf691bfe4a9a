//! Nodes that share no link: the tunnel between them, and which peers go through it.
//!
//! ```text
//!   a (192.0.2.1) ──┐                       ┌── c (198.51.100.3)
//!                   ├─ bridge ── router ────┘
//!   b (192.0.2.2) ──┘            knows no pod's address; strict about sources, as all nodes are
//! ```

use std::net::IpAddr;

use moat_agent::podnet::{Mode, TUNNEL};

use crate::world::{Namespace, TestNode, in_world, node, tcp, udp};

struct World {
    router: Namespace,
    a: TestNode,
    b: TestNode,
    c: TestNode,
}

/// Lays a cable between two namespaces.
pub(crate) fn cable(from: &Namespace, name: &str, to: &Namespace, other: &str) {
    let peer = to.path.display();
    from.sh(&format!(
        "exec 9<{peer}; ip link add {name} type veth peer name {other} netns /proc/self/fd/9 2>/dev/null ||
         ip link add {name} type veth peer name {other} netns {peer}
         ip link set {name} up"
    ));
    to.sh(&format!("ip link set {other} up"));
}

pub(crate) const STRICT: &str = "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 1 > $f; done";

/// All nodes have addresses and podCIDRs of both families.
fn world(mode: Mode) -> World {
    world_of(mode, |_| true)
}

/// Nodes have those of their addresses and podCIDRs whose family is `there`.
fn world_of(mode: Mode, there: impl Fn(IpAddr) -> bool) -> World {
    let nodes = [
        node("a", &["192.0.2.1", "2001:db8::1"], &["10.1.0.0/24", "fd00:1::/64"]),
        node("b", &["192.0.2.2", "2001:db8::2"], &["10.2.0.0/24", "fd00:2::/64"]),
        node("c", &["198.51.100.3", "2001:db8:3::3"], &["10.3.0.0/24", "fd00:3::/64"]),
    ]
    .map(|mut node| {
        node.addresses.retain(|address| there(*address));
        node.pod_cidrs.retain(|cidr| there(cidr.addr()));
        node
    });
    let router = Namespace::new();
    let [a, b, c] = nodes.clone().map(|local| {
        let mut node = TestNode::stopped(local.clone());
        node.others = nodes.iter().filter(|other| other.name != local.name).cloned().collect();
        node.mode = mode;
        node
    });
    router.sh(
        "nft 'add table inet watch; add chain inet watch forward { type filter hook forward priority 0; }
              add rule inet watch forward iifname to-c ip saddr 10.0.0.0/8 counter
              add rule inet watch forward oifname to-c ip saddr 10.0.0.0/8 counter
              add rule inet watch forward iifname to-c ip6 saddr fd00::/8 counter
              add rule inet watch forward oifname to-c ip6 saddr fd00::/8 counter'",
    );
    router.sh("echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
               ip link add bridge type bridge; ip link set bridge up");
    for (name, node) in [("to-a", &a), ("to-b", &b), ("to-c", &c)] {
        cable(&router, name, &node.ns, "uplink");
    }
    router.sh("ip link set to-a master bridge; ip link set to-b master bridge
               ip addr add 192.0.2.254/24 dev bridge; ip addr add 2001:db8::fe/64 dev bridge nodad
               ip addr add 198.51.100.254/24 dev to-c; ip addr add 2001:db8:3::fe/64 dev to-c nodad");
    for (node, v4, v6) in [
        (&a, "192.0.2.1/24", "2001:db8::1/64"),
        (&b, "192.0.2.2/24", "2001:db8::2/64"),
        (&c, "198.51.100.3/24", "2001:db8:3::3/64"),
    ] {
        let router = |address: &str, host: &str| {
            format!("{}{host}", &address[..address.rfind(['.', ':']).unwrap() + 1])
        };
        node.ns.sh(&format!(
            "ip addr add {v4} dev uplink; ip addr add {v6} dev uplink nodad
             ip route add default via {}; ip -6 route add default via {}",
            router(v4, "254"),
            router(v6, "fe"),
        ));
    }
    for space in [&router, &a.ns, &b.ns, &c.ns] {
        space.sh(STRICT);
    }
    let mut world = World { router, a, b, c };
    for node in [&mut world.a, &mut world.b, &mut world.c] {
        node.start();
    }
    world
}

impl World {
    fn nodes(&self) -> [&TestNode; 3] {
        [&self.a, &self.b, &self.c]
    }

    /// Pods reach each other, nodes reach pods from their own address, and pods reach other nodes.
    fn everybody_reaches_everybody(&self) {
        let pods = self.nodes().map(|node| node.plugin().pod(&format!("pod-{}", node.local.name)));
        for (from, node) in pods.iter().zip(self.nodes()) {
            for (to, other) in pods.iter().zip(self.nodes()).filter(|(to, _)| to.id != from.id) {
                for (&address, &own) in to.addresses.iter().zip(&other.local.addresses) {
                    udp(&from.ns, &to.ns, address);
                    tcp(&from.ns, &to.ns, address);
                    udp(&node.ns, &to.ns, address);
                    tcp(&node.ns, &to.ns, address);
                    tcp(&from.ns, &other.ns, own);
                    let family = if address.is_ipv4() { "-4" } else { "-6" };
                    let route = node.ns.sh(&format!("ip {family} route get {address}"));
                    let own = node.local.addresses.iter().find(|own| own.is_ipv4() == address.is_ipv4());
                    let source = format!(" src {} ", own.unwrap());
                    assert!(route.contains(&source), "{} to {address}: {route}", node.local.name);
                }
            }
        }
    }
}

fn has_tunnel(node: &TestNode) -> bool {
    node.ns.sh("ip -o link show type vxlan").contains(TUNNEL)
}

fn tunnelled(node: &TestNode) -> Vec<String> {
    let text = node.ns.sh(&format!("ip route show proto 109 dev {TUNNEL} 2>/dev/null || true"));
    text.lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect()
}

#[test]
fn each_peer_is_routed_or_tunnelled_as_it_can_be_reached() {
    in_world(|| {
        let world = world(Mode::Auto);
        assert_eq!(tunnelled(&world.a), ["10.3.0.0/24"]);
        assert_eq!(tunnelled(&world.b), ["10.3.0.0/24"]);
        assert_eq!(tunnelled(&world.c), ["10.1.0.0/24", "10.2.0.0/24"]);
        world.everybody_reaches_everybody();
        // The router would not know where to send an answer.
        let seen = world.router.sh("nft list chain inet watch forward");
        assert_eq!(seen.matches("counter packets 0 ").count(), 4, "the router sees pods' addresses: {seen}");
    });
}

#[test]
fn all_peers_can_be_tunnelled() {
    in_world(|| {
        let world = world(Mode::Vxlan);
        assert_eq!(tunnelled(&world.a), ["10.2.0.0/24", "10.3.0.0/24"]);
        world.everybody_reaches_everybody();
    });
}

#[test]
fn a_tunnel_is_in_ipv6_where_nodes_have_nothing_else() {
    in_world(|| {
        let world = world_of(Mode::Auto, |address| address.is_ipv6());
        let link = world.c.ns.sh(&format!("ip -d -o link show {TUNNEL}"));
        assert!(link.contains("local 2001:db8:3::3 ") && link.contains("mtu 1430 "), "{link}");
        world.everybody_reaches_everybody();
    });
}

#[test]
fn what_is_for_a_node_that_is_gone_goes() {
    in_world(|| {
        let mut world = world(Mode::Auto);
        let ours = |node: &TestNode| {
            node.ns.sh(&format!(
                "ip rule; ip -6 rule; ip route show table 109; ip -6 route show table 109
                 ip neigh show dev {TUNNEL}; bridge fdb show dev {TUNNEL}; ip -6 neigh show dev {TUNNEL}"
            ))
        };
        assert!(ours(&world.c).contains("192.0.2.2") && ours(&world.c).contains("192.0.2.1"));
        let a = world.a.local.clone();
        world.c.set_nodes(&[a]).unwrap();
        let left = ours(&world.c);
        assert!(left.contains("192.0.2.1") && !left.contains("192.0.2.2"), "{left}");
        assert_eq!(tunnelled(&world.c), ["10.1.0.0/24"]);
        world.c.set_nodes(&[]).unwrap();
        assert!(!has_tunnel(&world.c));
        let left = world.c.ns.sh("ip rule; ip -6 rule; ip route; ip -6 route");
        assert!(
            !left.contains("109")
                || left.lines().filter(|l| l.contains("109")).all(|l| l.starts_with("unreachable")),
            "{left}"
        );
        // An agent that is told so at its start finds what an earlier one left.
        world.a.stop();
        assert!(has_tunnel(&world.a));
        world.a.others.clear();
        world.a.start();
        assert!(!has_tunnel(&world.a));
    });
}

#[test]
fn what_somebody_takes_away_or_changes_is_made_again() {
    in_world(|| {
        let world = world(Mode::Auto);
        let refresh = |node: &TestNode| node.set_nodes(&node.others).unwrap();
        for damage in [
            format!("ip link del {TUNNEL}"),
            format!("ip link set {TUNNEL} down"),
            format!("ip link set {TUNNEL} mtu 1300 address 02:00:00:00:00:01"),
            format!(
                "ip link del {TUNNEL}; ip link add {TUNNEL} type vxlan id 5 dstport 4789 local 192.0.2.1"
            ),
            "ip rule del pref 10109; ip -6 rule del pref 10109; ip route flush table 109".to_owned(),
            format!(
                "bridge fdb del 0a:01:c6:33:64:03 dev {TUNNEL} dst 198.51.100.3; ip neigh flush dev {TUNNEL} nud permanent"
            ),
            format!("bridge fdb replace 0a:01:c6:33:64:03 dev {TUNNEL} dst 198.51.100.4"),
            "ip route del 10.3.0.0/24".to_owned(),
        ] {
            world.a.ns.sh(&damage);
            refresh(&world.a);
            let (a, c) = (world.a.plugin().pod("pod-a"), world.c.plugin().pod("pod-c"));
            for &address in &c.addresses {
                tcp(&a.ns, &c.ns, address);
                tcp(&world.a.ns, &c.ns, address);
            }
            tcp(&a.ns, &world.c.ns, world.c.local.addresses[0]);
            for (pod, node) in [(&a, &world.a), (&c, &world.c)] {
                node.plugin().run("DEL", &pod.id, &pod.ns.path).ok();
            }
        }
    });
}

#[test]
fn a_link_that_becomes_shared_or_is_no_more_moves_its_peers() {
    in_world(|| {
        let world = world(Mode::Auto);
        // As if the router's other side were on the same link.
        world
            .a
            .ns
            .sh("ip route add 198.51.100.3/32 dev uplink; ip -6 route add 2001:db8:3::3/128 dev uplink");
        world.a.set_nodes(&world.a.others).unwrap();
        assert_eq!(tunnelled(&world.a), [""; 0]);
        assert!(!has_tunnel(&world.a));
        assert!(world.a.ns.sh("ip route show 10.3.0.0/24").contains("via 198.51.100.3 dev uplink"));
        world.a.ns.sh("ip route del 198.51.100.3/32; ip -6 route del 2001:db8:3::3/128");
        world.a.set_nodes(&world.a.others).unwrap();
        assert_eq!(tunnelled(&world.a), ["10.3.0.0/24"]);
    });
}

#[test]
fn pods_have_the_mtu_that_fits_their_way() {
    in_world(|| {
        for (mode, expected) in [(Mode::Routed, 1500), (Mode::Auto, 1450), (Mode::Vxlan, 1450)] {
            let node_b = node("b", &["192.0.2.2"], &["10.2.0.0/24"]);
            let node_c = node("c", &["198.51.100.3"], &["10.3.0.0/24"]);
            let mut a = TestNode::stopped(node("a", &["192.0.2.1"], &["10.1.0.0/24"]));
            a.ns.sh(
                "ip link add uplink type veth peer name other; ip link set other up; ip link set uplink up; ip addr add 192.0.2.1/24 dev uplink
                     ip route add default via 192.0.2.254",
            );
            a.mode = mode;
            a.others = if mode == Mode::Routed { vec![node_b] } else { vec![node_b, node_c] };
            a.start();
            let pod = a.plugin().pod("pod");
            assert_eq!(pod.result["interfaces"][1]["mtu"], expected, "{mode}");
            if mode != Mode::Routed {
                let link = a.ns.sh(&format!("ip -o link show {TUNNEL}"));
                assert!(link.contains("mtu 1450 "), "{link}");
            }
        }
    });
}

#[test]
fn a_packet_that_does_not_fit_the_tunnel_is_answered_and_not_lost() {
    in_world(|| {
        // A pod that was there before a peer was behind the tunnel: its link takes more than the tunnel does. Its own node says
        // so; what the network says is lost.
        let world = world(Mode::Auto);
        world.router.sh("nft 'add rule inet watch forward icmp type destination-unreachable drop
                  add rule inet watch forward icmpv6 type packet-too-big drop'");
        let (a, c) = (world.a.local.clone(), world.c.local.clone());
        world.a.set_nodes(&[]).unwrap();
        world.c.set_nodes(&[]).unwrap();
        let (from, to) = (world.a.plugin().pod("from"), world.c.plugin().pod("to"));
        assert_eq!(from.result["interfaces"][1]["mtu"], 1500);
        world.a.set_nodes(&[c]).unwrap();
        world.c.set_nodes(&[a]).unwrap();
        for (&there, &here) in to.addresses.iter().zip(&from.addresses) {
            crate::world::stream(&from.ns, &to.ns, there, 1 << 20);
            crate::world::stream(&to.ns, &from.ns, here, 1 << 20);
            crate::world::stream(&world.a.ns, &to.ns, there, 1 << 20);
            crate::world::stream(
                &from.ns,
                &world.c.ns,
                world.c.local.addresses[usize::from(there.is_ipv6())],
                1 << 20,
            );
        }
    });
}
