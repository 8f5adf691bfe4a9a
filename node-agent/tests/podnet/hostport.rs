//! Ports of the node that lead to pods, asked for by the real plugin, made by the real agent.

use std::net::{IpAddr, SocketAddr};

use moat_cni::error::code;

use crate::fleet::{Client, Fleet, Proto, Server, add, answers, is_silent, of, pod, with_ports};
use crate::real::{self, RealNode};
use crate::world::{Namespace, in_world};

const BOTH: [Proto; 2] = [Proto::Tcp, Proto::Udp];
/// Both protocols, 8080 of the node to 80 of the pod.
const WEB: [(u16, u16, &str, &str); 2] = [(8080, 80, "tcp", ""), (8080, 80, "udp", "")];

fn web(to: IpAddr) -> SocketAddr {
    SocketAddr::new(to, 8080)
}

#[test]
fn a_port_of_the_node_leads_to_its_pod_from_everywhere() {
    in_world(|| {
        let manifests = [pod("web", "a"), pod("near", "a"), pod("far", "c")].concat();
        let fleet = Fleet::new(&[], &manifests);
        let (target, near) = (add(&fleet.a, "web", &WEB), fleet.a.plugin().pod("near"));
        let far = fleet.c.plugin().pod("far");
        let _server = Server::new(&target.ns, "web", 80);
        // What listens on a loopback address is the node's own.
        let _own = [
            Server::at(&fleet.a.ns, "node", "127.0.0.1:8080".parse().unwrap()),
            Server::at(&fleet.a.ns, "node", "[::1]:8080".parse().unwrap()),
        ];
        for protocol in BOTH {
            for (family, to) in of("a").into_iter().enumerate() {
                for (from, seen) in [
                    (&fleet.world, of("world")[family]),
                    (&fleet.b.ns, of("b")[family]),
                    (&far.ns, far.addresses[family]),
                    (&near.ns, near.addresses[family]),
                    (&fleet.a.ns, to),
                    // A pod takes no packet from its own address.
                    (&target.ns, to),
                ] {
                    answers(from, protocol, web(to), &format!("web {seen}"));
                }
                // The pod's own port, as ever.
                let own = SocketAddr::new(target.addresses[family], 80);
                answers(&near.ns, protocol, own, &format!("web {}", near.addresses[family]));
            }
            for own in ["127.0.0.1", "::1"] {
                answers(&fleet.a.ns, protocol, web(own.parse().unwrap()), &format!("node {own}"));
            }
        }
        // From a node behind the tunnel, in its own name: the request comes by a link that the answer does not leave by, and a node
        // that is strict about that on all its links takes it for forged.
        let [v4, v6] = of("a");
        is_silent(&fleet.c.ns, Proto::Tcp, web(v4));
        answers(&fleet.c.ns, Proto::Tcp, web(v6), &format!("web {}", of("c")[1]));
        for node in [&fleet.a, &fleet.c] {
            node.ns.sh("echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter; echo 2 > /proc/sys/net/ipv4/conf/uplink/rp_filter");
        }
        for protocol in BOTH {
            answers(&fleet.c.ns, protocol, web(v4), &format!("web {}", of("c")[0]));
        }
        assert_eq!(fleet.pods_at_the_router(), 0);
    });
}

/// One node with a world on its link.
pub(crate) fn alone(manifests: &str) -> (RealNode, Namespace) {
    alone_with(&[], manifests)
}

/// The same, whose agent is told these arguments.
fn alone_with(arguments: &[&'static str], manifests: &str) -> (RealNode, Namespace) {
    let (space, world) = (Namespace::new(), Namespace::new());
    space.sh("ip link set lo up");
    crate::tunnel::cable(&world, "eth0", &space, "uplink");
    space.sh("ip addr add 192.0.2.1/24 dev uplink; ip addr add 192.0.2.7/24 dev uplink
              ip addr add 2001:db8::1/64 dev uplink nodad");
    world.sh("ip addr add 192.0.2.9/24 dev eth0; ip addr add 192.0.2.10/24 dev eth0
              ip addr add 2001:db8::9/64 dev eth0 nodad");
    let nodes = real::node("a", ["192.0.2.1", "2001:db8::1"], &["10.1.0.0/24", "fd00:1::/64"]);
    let mut node = RealNode::at(space, "a", &nodes, manifests);
    node.arguments = arguments.to_vec();
    node.start();
    (node, world)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

const POLICY: &str = "---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: friend}}}, {ipBlock: {cidr: 192.0.2.9/32}}, {ipBlock: {cidr: '2001:db8::9/128'}}]
    ports: [{port: 80}, {port: 80, protocol: UDP}]
";

#[test]
fn policy_is_about_the_pod_and_whoever_really_sends() {
    in_world(|| {
        let manifests = [&pod("web", "a"), &pod("friend", "a"), &pod("other", "a"), POLICY]
            .map(|t| t.to_owned())
            .concat();
        let (node, world) = alone(&manifests);
        // Its host port 80 leads to a port that no policy opens.
        let ports = [WEB.as_slice(), &[(80, 81, "tcp", ""), (80, 81, "udp", "")]].concat();
        let target = add(&node, "web", &ports);
        let _servers = [Server::new(&target.ns, "web", 80), Server::new(&target.ns, "closed", 81)];
        let [friend, other] = ["friend", "other"].map(|id| node.plugin().pod(id));
        for protocol in BOTH {
            for (family, to) in of("a").into_iter().enumerate() {
                answers(&friend.ns, protocol, web(to), &format!("web {}", friend.addresses[family]));
                is_silent(&other.ns, protocol, web(to));
                for from in [&friend.ns, &world] {
                    is_silent(from, protocol, SocketAddr::new(to, 80));
                }
                answers(&world, protocol, web(to), &format!("web {}", ["192.0.2.9", "2001:db8::9"][family]));
                // A pod always reaches itself, and a node its pods.
                answers(&target.ns, protocol, web(to), &format!("web {to}"));
                answers(&node.ns, protocol, web(to), &format!("web {to}"));
            }
        }
        // The same host from an address that no policy names.
        world.sh("ip addr del 192.0.2.9/24 dev eth0; ip addr add 192.0.2.10/24 dev eth0 || true");
        for protocol in BOTH {
            is_silent(&world, protocol, web(of("a")[0]));
        }
    });
}

#[test]
fn a_host_ip_is_the_only_address_that_leads_there() {
    in_world(|| {
        let (node, world) =
            alone(&[pod("one", "a"), pod("two", "a"), pod("four", "a"), pod("six", "a")].concat());
        let one = add(&node, "one", &[(8080, 80, "tcp", "192.0.2.1"), (8080, 80, "tcp", "2001:db8::1")]);
        let two = add(&node, "two", &[(8080, 80, "tcp", "192.0.2.7")]);
        let four = add(&node, "four", &[(53, 80, "tcp", "0.0.0.0")]);
        let six = add(&node, "six", &[(53, 80, "tcp", "::")]);
        let _servers = [(&one, "one"), (&two, "two"), (&four, "four"), (&six, "six")]
            .map(|(pod, word)| Server::new(&pod.ns, word, 80));
        for (to, expected) in [
            ("192.0.2.1:8080", "one 192.0.2.9"),
            ("[2001:db8::1]:8080", "one 2001:db8::9"),
            ("192.0.2.7:8080", "two 192.0.2.9"),
            ("192.0.2.1:53", "four 192.0.2.9"),
            ("192.0.2.7:53", "four 192.0.2.9"),
            ("[2001:db8::1]:53", "six 2001:db8::9"),
        ] {
            answers(&world, Proto::Tcp, to.parse().unwrap(), expected);
        }
    });
}

/// The elements of all maps that lead to pods, and of the hairpin's sets.
fn led(node: &RealNode) -> String {
    let maps = ["host-ports4", "host-ports6", "host-ports-at4", "host-ports-at6", "hairpin4", "hairpin6"];
    maps.map(|map| {
        node.ns
            .sh(&format!("nft list set inet moat-net {map} 2>/dev/null || nft list map inet moat-net {map}"))
    })
    .concat()
}

/// Whether connections are looked at for host ports: nobody is to pay for that where there are none.
fn translates(node: &RealNode) -> bool {
    node.ns.sh("nft list table inet moat-net").contains("hook output")
}

#[test]
fn a_service_on_the_same_port_goes_first() {
    in_world(|| {
        let (node, world) =
            alone_with(&["--no-masquerade"], &[pod("web", "a"), pod("backend", "a")].concat());
        let target = add(&node, "web", &WEB);
        let backend = node.plugin().pod("backend");
        let _servers = [Server::new(&target.ns, "web", 80), Server::new(&backend.ns, "service", 80)];
        let [v4, _] = of("a");
        answers(&world, Proto::Tcp, web(v4), "web 192.0.2.9");
        let to = backend.addresses[0];
        // As kube-proxy does for a NodePort, in its nftables mode and in its other one.
        for (make, remove) in [
            (
                format!(
                    "nft 'add table ip kube-proxy
                          add chain ip kube-proxy nat-prerouting {{ type nat hook prerouting priority dstnat; }}
                          add rule ip kube-proxy nat-prerouting fib daddr type local tcp dport 8080 dnat to {to}:80'"
                ),
                "nft delete table ip kube-proxy".to_owned(),
            ),
            (
                format!("iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -p tcp --dport 8080 -j DNAT --to {to}:80"),
                "iptables -t nat -F PREROUTING".to_owned(),
            ),
        ] {
            node.ns.sh(&make);
            answers(&world, Proto::Tcp, web(v4), "service 192.0.2.9");
            answers(&world, Proto::Udp, web(v4), "web 192.0.2.9");
            node.ns.sh(&remove);
            answers(&world, Proto::Tcp, web(v4), "web 192.0.2.9");
        }
        // What leaves the cluster may keep its address; what comes back to its sender cannot.
        for protocol in BOTH {
            answers(&target.ns, protocol, web(v4), &format!("web {v4}"));
        }
    });
}

#[test]
fn a_port_goes_with_its_pod() {
    in_world(|| {
        let (node, world) = alone(&[pod("web", "a"), pod("next", "a")].concat());
        for gc in [false, true] {
            let target = add(&node, "web", &WEB);
            let server = Server::new(&target.ns, "web", 80);
            for to in of("a") {
                for protocol in BOTH {
                    assert!(
                        crate::fleet::ask(&world, protocol, web(to), std::time::Duration::from_secs(5))
                            .is_some()
                    );
                }
            }
            assert!(led(&node).contains("elements") && translates(&node));
            match gc {
                false => node.plugin().run("DEL", "web", &target.ns.path).ok(),
                true => node.plugin().gc(&[]).ok(),
            };
            assert!(!led(&node).contains("elements") && !translates(&node), "{}", led(&node));
            drop(server);
            // The port is the node's again.
            let _own = Server::new(&node.ns, "node", 8080);
            for (to, from) in of("a").into_iter().zip(["192.0.2.9", "2001:db8::9"]) {
                for protocol in BOTH {
                    answers(&world, protocol, web(to), &format!("node {from}"));
                }
            }
        }
        // And the next pod's.
        let _next = add(&node, "next", &WEB);
    });
}

#[test]
fn who_goes_on_sending_datagrams_reaches_whom_the_port_leads_to_now() {
    in_world(|| {
        let (node, world) = alone(&pod("dns", "a"));
        let _own = Server::new(&node.ns, "node", 53);
        let clients = of("a").map(|to| (Client::new(&world, to.is_ipv4()), SocketAddr::new(to, 53)));
        let near = Client::new(&node.ns, true);
        let seen = ["192.0.2.9", "2001:db8::9"];
        let all = |word: &str| {
            for ((client, to), seen) in clients.iter().zip(seen) {
                client.hears(*to, &format!("{word} {seen}"));
            }
            near.hears(clients[0].1, &format!("{word} {}", clients[0].1.ip()));
        };
        for _ in 0..2 {
            all("node");
            let target = add(&node, "dns", &[(53, 5353, "udp", "")]);
            let _server = Server::new(&target.ns, "pod", 5353);
            all("pod");
            node.plugin().run("DEL", "dns", &target.ns.path).ok();
        }
        all("node");
    });
}

#[test]
fn ports_outlive_the_agent_its_state_and_who_removes_them() {
    in_world(|| {
        let (mut node, world) = alone(&pod("web", "a"));
        let target = add(&node, "web", &[WEB[0], WEB[1], (9090, 80, "tcp", "192.0.2.7")]);
        let _server = Server::new(&target.ns, "web", 80);
        let all = || {
            for to in of("a") {
                let seen = if to.is_ipv4() { "192.0.2.9" } else { "2001:db8::9" };
                BOTH.into_iter()
                    .for_each(|protocol| answers(&world, protocol, web(to), &format!("web {seen}")));
            }
            answers(&world, Proto::Tcp, SocketAddr::new(ip("192.0.2.7"), 9090), "web 192.0.2.9");
        };
        all();
        let before = led(&node);
        node.kill();
        all();
        node.start();
        all();
        assert_eq!(led(&node), before);
        // Its link tells who it is, and the tables which ports are its.
        node.kill();
        node.lose_state();
        node.start();
        all();
        assert_eq!(led(&node), before);
        assert_eq!(node.recorded()[0].host_ports.len(), 3);
        assert_eq!(node.check(), (Some(0), String::new()));
        // What somebody takes out of the tables is back.
        node.ns.sh("nft delete element inet moat-net host-ports4 '{ 6 . 8080 }'; nft flush chain inet moat-net host-ports");
        node.until("the port leads to the pod again", |node| led(node) == before);
        node.until("the rules are there again", |node| {
            node.ns.sh("nft list chain inet moat-net host-ports").contains("dnat")
        });
        all();
    });
}

#[test]
fn a_port_has_one_pod() {
    in_world(|| {
        let (node, _world) = alone(&[pod("web", "a"), pod("late", "a")].concat());
        let target = add(&node, "web", &WEB);
        let late = Namespace::new();
        let add = |ports: &[(u16, u16, &str, &str)]| {
            node.plugin().run_with("ADD", "late", &late.path, &with_ports(&node, ports))
        };
        let refused = add(&[(8080, 8080, "tcp", "192.0.2.7")]).fails_with(code::TRY_AGAIN);
        let msg = refused["msg"].as_str().unwrap();
        assert!(msg.contains("192.0.2.7:8080/tcp") && msg.contains("default/web"), "{refused}");
        // It left nothing behind.
        assert_eq!(node.recorded().len(), 1);
        for (ports, field) in [
            (&[(4789, 80, "udp", "")], "4789/udp"),
            (&[(0, 80, "tcp", "")], "hostPort"),
            (&[(80, 80, "icmp", "")], "protocol"),
        ] {
            let refused = add(ports).fails_with(code::INVALID_CONFIG);
            assert!(refused["msg"].as_str().unwrap().contains(field), "{refused}");
        }
        add(&[(80, 80, "tcp", "127.0.0.1")]).fails_with(code::UNSUPPORTED_FIELD);
        node.plugin().run("DEL", "web", &target.ns.path).ok();
        add(&[(8080, 8080, "tcp", "192.0.2.7")]).ok();
    });
}

#[test]
fn checks_know_a_pods_ports() {
    in_world(|| {
        let (node, _world) = alone(&pod("web", "a"));
        let target = add(&node, "web", &WEB);
        let check = |ports: &[(u16, u16, &str, &str)]| {
            let mut config = with_ports(&node, ports);
            config["prevResult"] = target.result.clone();
            node.plugin().run_with("CHECK", "web", &target.ns.path, &config)
        };
        check(&WEB).ok();
        let drift = check(&[WEB[0], (8081, 80, "tcp", "")]).fails_with(code::DRIFTED);
        let words = drift["details"].as_str().unwrap();
        assert!(words.contains("8081/tcp") && words.contains("8080/udp"), "{drift}");
        // And as an operator asks, where nobody makes good what somebody did.
        let mut node = node;
        assert_eq!(node.check(), (Some(0), String::new()));
        node.kill();
        node.ns.sh("nft delete element inet moat-net host-ports4 '{ tcp . 8080 }'
             nft add element inet moat-net host-ports6 '{ udp . 53 : fd00:1::9 . 53 }'");
        let (status, said) = node.check();
        assert_eq!(status, Some(1), "{said}");
        assert!(
            said.contains("host port 8080/tcp (IPv4): leads nowhere, and default/web (10.1.0.1:80)"),
            "{said}"
        );
        assert!(said.contains("host port 53/udp (IPv6): leads to [fd00:1::9]:53, and no pod"), "{said}");
    });
}
