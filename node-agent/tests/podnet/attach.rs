//! One node: ADD, CHECK, DEL and GC, and packets between its pods.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::world::{Namespace, TestNode, in_world, tcp, udp};

const V4: &str = "10.1.0.0/24";
const V6: &str = "fd00:1::/64";

/// Packets pass between two pods, a pod and its node, and a pod and itself; the first one at once.
fn packets_pass(pod_cidrs: &[&str]) {
    let node = TestNode::new(pod_cidrs);
    let plugin = node.plugin();
    let (a, b) = (plugin.pod("a"), plugin.pod("b"));
    assert_eq!(a.addresses.len(), pod_cidrs.len());
    for (&from, &to) in a.addresses.iter().zip(&b.addresses) {
        let first = udp(&a.ns, &b.ns, to);
        assert!(first < Duration::from_millis(100), "the first packet to {to} took {first:?}");
        udp(&b.ns, &a.ns, from);
        tcp(&a.ns, &b.ns, to);
        tcp(&a.ns, &a.ns, from);
        tcp(&node.ns, &a.ns, from);
        let uplink: IpAddr = if from.is_ipv4() { "192.0.2.1" } else { "2001:db8::1" }.parse().unwrap();
        tcp(&a.ns, &node.ns, uplink);
    }
}

#[test]
fn packets_pass_in_ipv4() {
    in_world(|| packets_pass(&[V4]));
}

#[test]
fn packets_pass_in_ipv6() {
    in_world(|| packets_pass(&[V6]));
}

#[test]
fn packets_pass_in_both() {
    in_world(|| packets_pass(&[V4, V6]));
}

#[test]
fn add_answers_what_it_made() {
    in_world(|| {
        let node = TestNode::new(&[V4, V6]);
        // Whatever a node gives its new links otherwise.
        node.ns
            .sh("cd /proc/sys/net/ipv4/conf/default; echo 0 > forwarding; echo 1 | tee rp_filter proxy_arp");
        let pod = node.plugin().pod("a");
        let result = &pod.result;
        let host = result["interfaces"][0]["name"].as_str().unwrap();
        assert_eq!(node.pod_links(), [host]);
        assert_eq!(result["interfaces"][1]["name"], "eth0");
        assert_eq!(result["interfaces"][1]["sandbox"], pod.ns.path.to_str().unwrap());
        assert_eq!(result["ips"][0]["address"], "10.1.0.1/32");
        assert_eq!(result["ips"][1]["address"], "fd00:1::1/128");
        let link = |ns: &Namespace, name: &str| -> Value {
            serde_json::from_str::<Value>(&ns.sh(&format!("ip -d -j addr show {name}"))).unwrap()[0].clone()
        };
        let (inside, outside) = (link(&pod.ns, "eth0"), link(&node.ns, host));
        assert_eq!(inside["address"], result["interfaces"][1]["mac"]);
        assert_eq!(outside["address"], result["interfaces"][0]["mac"]);
        assert_eq!((&inside["mtu"], &outside["mtu"]), (&json!(1450), &json!(1450)), "the uplink's");
        assert_eq!(result["interfaces"][1]["mtu"], 1450);
        // No address that the kernel made up, on either end.
        assert_eq!(inside["addr_info"].as_array().unwrap().len(), 2, "{inside}");
        assert_eq!(outside["addr_info"].as_array().unwrap().len(), 0, "{outside}");
        let sysctl = |name: &str| node.ns.sh(&format!("cat /proc/sys/net/{name}")).trim().to_owned();
        assert_eq!(sysctl("ipv4/ip_forward"), "1");
        assert_eq!(sysctl("ipv6/conf/all/forwarding"), "1");
        for (parameter, value) in [
            ("ipv4", "rp_filter", "0"),
            ("ipv4", "forwarding", "1"),
            ("ipv4", "proxy_arp", "0"),
            ("ipv4", "accept_redirects", "0"),
            ("ipv6", "accept_ra", "0"),
            ("ipv6", "accept_redirects", "0"),
            ("ipv6", "forwarding", "1"),
        ]
        .map(|(family, parameter, value)| (format!("{family}/conf/{host}/{parameter}"), value))
        {
            assert_eq!(sysctl(&parameter), value, "{parameter}");
        }
        for end in [&inside, &outside] {
            assert_eq!((&end["num_tx_queues"], &end["num_rx_queues"]), (&json!(1), &json!(1)), "{end}");
        }
    });
}

#[test]
fn a_free_address_of_the_block_leads_nowhere() {
    in_world(|| {
        let node = TestNode::new(&[V4, V6]);
        let pod = node.plugin().pod("a");
        for free in ["10.1.0.77", "fd00:1::77"] {
            let free: IpAddr = free.parse().unwrap();
            let error = pod.ns.run(move || {
                std::net::TcpStream::connect_timeout(&(free, 80).into(), Duration::from_secs(4)).unwrap_err()
            });
            // The kernel's words for the same answer differ by family.
            let expected = [std::io::ErrorKind::HostUnreachable, std::io::ErrorKind::NetworkUnreachable];
            assert!(expected.contains(&error.kind()), "{free}: {error}");
        }
    });
}

#[test]
fn a_second_add_is_an_error_and_changes_nothing() {
    in_world(|| {
        let node = TestNode::new(&[V4]);
        let plugin = node.plugin();
        let (a, b) = (plugin.pod("a"), plugin.pod("b"));
        let error = plugin.run("ADD", "a", &a.ns.path).fails_with(102);
        assert!(error["msg"].as_str().unwrap().contains("eth0 of container a"), "{error}");
        tcp(&b.ns, &a.ns, a.addresses[0]);
        plugin.check("a", &a.ns.path, &a.result).ok();
    });
}

#[test]
fn an_interface_of_that_name_in_the_pod_is_an_error_and_leaves_nothing() {
    in_world(|| {
        let node = TestNode::new(&[V4]);
        let plugin = node.plugin();
        let ns = Namespace::new();
        ns.sh("ip link add eth0 type veth peer name other");
        plugin.run("ADD", "a", &ns.path).fails_with(102);
        assert_eq!(node.pod_links(), [""; 0]);
        assert!(node.podnet().attachments().is_empty());
        ns.sh("ip link show eth0 | grep -q DOWN");
    });
}

#[test]
fn what_is_no_pods_namespace_is_refused() {
    in_world(|| {
        let node = TestNode::new(&[V4]);
        let plugin = node.plugin();
        let error = plugin.run("ADD", "a", Path::new("/run/netns/not-there")).fails_with(4);
        assert!(error["msg"].as_str().unwrap().contains("CNI_NETNS"), "{error}");
        plugin.run("ADD", "a", Path::new("/proc/self/status")).fails_with(4);
        let error = plugin.run("ADD", "a", &node.ns.path).fails_with(4);
        assert!(error["msg"].as_str().unwrap().contains("node's own"), "{error}");
        assert!(node.podnet().attachments().is_empty());
    });
}

#[test]
fn del_takes_everything_away_and_may_come_twice() {
    in_world(|| {
        let node = TestNode::new(&[V4, V6]);
        let plugin = node.plugin();
        let pod = plugin.pod("a");
        for _ in 0..2 {
            plugin.run("DEL", "a", &pod.ns.path).ok();
            assert_eq!(node.pod_links(), [""; 0]);
            assert!(!pod.ns.sh("ip link").contains("eth0"));
            assert_eq!(node.ns.sh("ip route show proto 109 | grep -v unreachable || true"), "");
        }
        // The runtime may have removed the namespace before, and a container may never have been added.
        let pod = plugin.pod("b");
        let path = pod.ns.path.clone();
        drop(pod);
        plugin.run("DEL", "b", &path).ok();
        plugin.run("DEL", "never", Path::new("/nowhere")).ok();
        assert!(node.podnet().attachments().is_empty());
    });
}

#[test]
fn check_finds_what_was_changed() {
    in_world(|| {
        let node = TestNode::new(&[V4, V6]);
        let plugin = node.plugin();
        let pod = plugin.pod("a");
        let host = pod.result["interfaces"][0]["name"].as_str().unwrap().to_owned();
        let check = || plugin.check("a", &pod.ns.path, &pod.result);
        check().ok();
        plugin.check("unknown", &pod.ns.path, &pod.result).fails_with(3);
        let in_pod = |change: &str, back: &str, found: &str| {
            pod.ns.sh(change);
            let error = check().fails_with(103);
            assert!(error["details"].as_str().unwrap().contains(found), "{change}: {error}");
            pod.ns.sh(back);
            check().ok();
        };
        in_pod(
            "ip route del default",
            "ip route add default via 169.254.1.1",
            "no default route by 169.254.1.1",
        );
        in_pod(
            "ip -6 neigh del fe80::1 dev eth0",
            &format!("ip -6 neigh add fe80::1 lladdr {} nud permanent dev eth0", mac(&pod.result, 0)),
            "no permanent neighbour fe80::1",
        );
        in_pod(
            "ip addr del fd00:1::1/128 dev eth0",
            "ip addr add fd00:1::1/128 dev eth0 nodad",
            "does not have fd00:1::1",
        );
        node.ns.sh("ip route del 10.1.0.1");
        let error = check().fails_with(103);
        assert!(error["details"].as_str().unwrap().contains("no route to 10.1.0.1"), "{error}");
        node.ns.sh(&format!("ip link set {host} down"));
        let error = check().fails_with(103);
        assert!(error["details"].as_str().unwrap().contains("is down"), "{error}");
        // A later plugin may take a default route away: what prevResult does not list is not missed.
        let pod = plugin.pod("b");
        pod.ns.sh("ip route del default");
        let mut result = pod.result.clone();
        result["routes"] = json!([{"dst": "::/0", "gw": "fe80::1"}]);
        plugin.check("b", &pod.ns.path, &result).ok();
        // But its addresses are not for others to change.
        result["ips"][0]["address"] = json!("10.9.9.9/32");
        plugin.check("b", &pod.ns.path, &result).fails_with(103);
    });
}

fn mac(result: &Value, interface: usize) -> &str {
    result["interfaces"][interface]["mac"].as_str().unwrap()
}

#[test]
fn gc_keeps_what_is_valid() {
    in_world(|| {
        let node = TestNode::new(&[V4]);
        let plugin = node.plugin();
        let pods: Vec<_> = ["a", "b", "c"].map(|id| plugin.pod(id)).into();
        // Somebody's attachment to another network of the same agent is not this network's to collect.
        let mut other = plugin.clone();
        other.config["name"] = json!("other");
        let foreign = other.pod("d");
        plugin.gc(&["b"]).ok();
        let left: Vec<String> = node.podnet().attachments().into_iter().map(|a| a.container_id).collect();
        assert_eq!(left, ["b", "d"]);
        assert_eq!(node.pod_links().len(), 2);
        tcp(&pods[1].ns, &foreign.ns, foreign.addresses[0]);
        // A link that nobody knows goes as well.
        node.ns.sh("ip link add moat0123456789a type veth peer name x");
        plugin.gc(&["b"]).ok();
        assert_eq!(node.pod_links().len(), 2);
    });
}

#[test]
fn when_all_addresses_are_taken_the_runtime_shall_try_again() {
    in_world(|| {
        let node = TestNode::new(&["10.1.0.0/30"]);
        let plugin = node.plugin();
        plugin.run("STATUS", "x", Path::new("/x")).ok();
        let (a, _b) = (plugin.pod("a"), plugin.pod("b"));
        let ns = Namespace::new();
        let error = plugin.run("ADD", "c", &ns.path).fails_with(11);
        assert!(
            error["details"].as_str().unwrap().contains("all 2 addresses of 10.1.0.0/30 are taken"),
            "{error}"
        );
        plugin.run("STATUS", "x", Path::new("/x")).fails_with(50);
        plugin.run("DEL", "a", &a.ns.path).ok();
        plugin.run("STATUS", "x", Path::new("/x")).ok();
        let again = plugin.run("ADD", "c", &ns.path).ok();
        assert_eq!(again["ips"][0]["address"], "10.1.0.1/32");
    });
}

#[test]
fn many_pods_at_once_have_an_address_each() {
    in_world(|| {
        let node = TestNode::new(&[V4, V6]);
        let plugin = node.plugin();
        crate::world::plugin_binary();
        let pods: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..24)
                .map(|n| {
                    let plugin = plugin.clone();
                    scope.spawn(move || plugin.pod(&format!("p{n}")))
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let mut addresses: Vec<IpAddr> = pods.iter().flat_map(|pod| pod.addresses.clone()).collect();
        addresses.sort();
        addresses.dedup();
        assert_eq!(addresses.len(), 48);
        for pair in pods.windows(2) {
            tcp(&pair[0].ns, &pair[1].ns, pair[1].addresses[0]);
        }
    });
}
