//! Several nodes: routes between them, and a node's agent that is started again.

use moat_agent::podnet::Mode;

use crate::world::{Namespace, TestNode, in_world, node, tcp, udp};

/// Two nodes on one link, each with its podCIDRs.
fn two_nodes() -> (TestNode, TestNode) {
    let (a, b) = (
        node("a", &["192.0.2.1", "2001:db8::1"], &["10.1.0.0/24", "fd00:1::/64"]),
        node("b", &["192.0.2.2", "2001:db8::2"], &["10.2.0.0/24", "fd00:2::/64"]),
    );
    let (mut first, mut second) = (TestNode::stopped(a.clone()), TestNode::stopped(b.clone()));
    (first.others, second.others) = (vec![b], vec![a]);
    let peer = second.ns.path.display().to_string();
    // By the path of a namespace: `ip` wants a name or a process.
    first.ns.sh(&format!(
        "exec 9<{peer}; ip link add uplink type veth peer name uplink netns /proc/self/fd/9 2>/dev/null ||
         ip link add uplink type veth peer name uplink netns {peer}"
    ));
    for (node, number) in [(&first, 1), (&second, 2)] {
        node.ns.sh(&format!(
            "ip link set uplink up; ip addr add 192.0.2.{number}/24 dev uplink
             ip addr add 2001:db8::{number}/64 dev uplink nodad"
        ));
    }
    first.start();
    second.start();
    (first, second)
}

#[test]
fn packets_pass_between_nodes() {
    in_world(|| {
        let (first, second) = two_nodes();
        let (a, b) = (first.plugin().pod("a"), second.plugin().pod("b"));
        for (&from, &to) in a.addresses.iter().zip(&b.addresses) {
            udp(&a.ns, &b.ns, to);
            udp(&b.ns, &a.ns, from);
            tcp(&a.ns, &b.ns, to);
            tcp(&first.ns, &b.ns, to);
        }
    });
}

#[test]
fn routes_follow_the_nodes() {
    in_world(|| {
        let (mut first, _second) = two_nodes();
        first.stop();
        first.mode = Mode::Routed;
        first.start();
        let routes = || {
            let text = first.ns.sh("ip -4 route show proto 109; ip -6 route show proto 109");
            let mut routes: Vec<String> = text
                .lines()
                .map(|line| {
                    line.split(" dev ").next().unwrap().split(" metric ").next().unwrap().trim().to_owned()
                })
                .collect();
            routes.sort();
            routes
        };
        let own = ["unreachable 10.1.0.0/24", "unreachable fd00:1::/64"];
        assert_eq!(routes(), ["10.2.0.0/24 via 192.0.2.2", "fd00:2::/64 via 2001:db8::2", own[0], own[1]]);
        // A route of somebody else stays whatever happens.
        first.ns.sh("ip route add 10.99.0.0/24 via 192.0.2.2 proto static");
        let moved = node("b", &["192.0.2.22", "2001:db8::22"], &["10.2.0.0/24", "fd00:2::/64"]);
        first.set_nodes(&[moved]).unwrap();
        assert_eq!(routes(), ["10.2.0.0/24 via 192.0.2.22", "fd00:2::/64 via 2001:db8::22", own[0], own[1]]);
        // One that cannot be reached directly is an error and takes no other route with it.
        let far = node("c", &["198.51.100.1"], &["10.3.0.0/24"]);
        let near = node("d", &["192.0.2.4"], &["10.4.0.0/24"]);
        let error = first.set_nodes(&[far, near]).unwrap_err();
        assert!(format!("{:?}", error).contains("10.3.0.0/24"), "{error:?}");
        assert_eq!(routes(), ["10.4.0.0/24 via 192.0.2.4", own[0], own[1]]);
        first.set_nodes(&[]).unwrap();
        assert_eq!(routes(), own);
        first.ns.sh("ip route show 10.99.0.0/24 | grep -q static");
    });
}

#[test]
fn an_agent_that_starts_again_takes_over() {
    in_world(|| {
        let mut node = TestNode::new(&["10.1.0.0/24", "fd00:1::/64"]);
        let plugin = node.plugin();
        let (a, b, gone) = (plugin.pod("a"), plugin.pod("b"), plugin.pod("gone"));
        let before = node.podnet().attachments();
        node.stop();
        plugin.run("ADD", "c", &a.ns.path).fails_with(11);
        // Packets pass without an agent.
        tcp(&a.ns, &b.ns, b.addresses[0]);
        // Meanwhile a pod goes, a route is lost, and a link appears that nobody recorded.
        let gone_addresses = gone.addresses.clone();
        drop(gone);
        node.ns.sh("ip route del 10.1.0.1; ip link add moat0123456789a type veth peer name x");
        node.start();
        let after = node.podnet().attachments();
        assert_eq!(after, before[..2]);
        assert_eq!(node.pod_links().len(), 2);
        udp(&b.ns, &a.ns, a.addresses[0]);
        plugin.check("a", &a.ns.path, &a.result).ok();
        // What the pods have that are there is not given again; what the gone one had rests behind the fresh ones.
        let ns = Namespace::new();
        let new = crate::world::addresses(&plugin.run("ADD", "c", &ns.path).ok());
        for address in &new {
            assert!(!a.addresses.contains(address) && !b.addresses.contains(address));
            assert!(!gone_addresses.contains(address), "fresh addresses go first");
        }
        let recorded = moat_agent::podnet::read_attachments(&node.state_dir()).unwrap();
        assert_eq!(recorded, node.podnet().attachments());
        assert_eq!(a.id, recorded[0].container_id);
    });
}
