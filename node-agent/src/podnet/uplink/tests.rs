//! Tests of what is wanted.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use moat_policies::Node;

use super::super::route::{Hop, MAIN_TABLE, Route};
use super::Mode;
use super::wanted::{METRIC, NODES_TABLE, Seen, Way, mac, plan, wanted};

fn node(name: &str, addresses: &[&str], cidrs: &[&str]) -> Node {
    Node {
        name: name.into(),
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        pod_cidrs: cidrs.iter().map(|c| c.parse().unwrap()).collect(),
    }
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn via(text: &str) -> Way {
    Way::Via(ip(text))
}

fn seen(held: &[&str], near: &[&str]) -> Seen {
    let set = |texts: &[&str]| texts.iter().map(|text| ip(text)).collect();
    Seen { held: set(held), near: set(near), mtu: Some(1500) }
}

#[test]
fn each_family_goes_by_the_nodes_address_of_that_family() {
    let local = node("a", &["192.0.2.1", "2001:db8::1"], &["10.1.0.0/24", "fd00:1::/64"]);
    let others = [
        node("b", &["2001:db8::2", "192.0.2.2", "192.0.2.22"], &["10.2.0.0/24", "fd00:2::/64"]),
        node("c", &["192.0.2.3"], &["10.3.0.0/24", "fd00:3::/64"]),
        // The list of all nodes may well hold the local one.
        local.clone(),
    ];
    let wanted = wanted(&local, &others, Mode::Routed, &seen(&["192.0.2.1"], &[]));
    let own = Some(ip("192.0.2.1"));
    assert_eq!(
        wanted.ways,
        BTreeMap::from([
            ((MAIN_TABLE, net("10.1.0.0/24")), (Way::Unreachable, None)),
            ((MAIN_TABLE, net("fd00:1::/64")), (Way::Unreachable, None)),
            ((MAIN_TABLE, net("10.2.0.0/24")), (via("192.0.2.2"), own)),
            // No link has the node's IPv6 address (yet), and the kernel would refuse a route from it.
            ((MAIN_TABLE, net("fd00:2::/64")), (via("2001:db8::2"), None)),
            ((MAIN_TABLE, net("10.3.0.0/24")), (via("192.0.2.3"), own)),
        ])
    );
    assert_eq!(
        wanted.skipped,
        ["no route to podCIDR fd00:3::/64 of node c: the node has no address of its family"]
    );
    assert_eq!((wanted.tunnel, wanted.pod_mtu), (None, 1500));
}

#[test]
fn a_prefix_has_one_node() {
    let local = node("a", &["192.0.2.1"], &["10.1.0.0/24"]);
    let others = [
        node("c", &["192.0.2.3"], &["10.2.0.0/24", "0.0.0.0/0"]),
        node("b", &["192.0.2.2"], &["10.2.0.0/24", "10.1.0.9/24"]),
    ];
    let wanted = wanted(&local, &others, Mode::Routed, &Seen::default());
    assert_eq!(wanted.ways[&(MAIN_TABLE, net("10.2.0.0/24"))].0, via("192.0.2.2"), "the first by name");
    assert_eq!(wanted.ways[&(MAIN_TABLE, net("10.1.0.0/24"))].0, Way::Unreachable);
    assert_eq!(wanted.skipped.len(), 3);
}

#[test]
fn who_shares_no_link_is_behind_the_tunnel_and_his_node_too() {
    let local = node("a", &["192.0.2.1"], &["10.1.0.0/24", "fd00:1::/64"]);
    let others = [
        node("near", &["192.0.2.2"], &["10.2.0.0/24"]),
        node("far", &["198.51.100.3", "198.51.100.33"], &["10.3.0.0/24", "fd00:3::/64"]),
    ];
    let wanted = wanted(&local, &others, Mode::Auto, &seen(&["192.0.2.1"], &["192.0.2.2"]));
    let (own, far) = (Some(ip("192.0.2.1")), ip("198.51.100.3"));
    let on_tunnel = ip("fe80::a01:c633:6403");
    assert_eq!(wanted.ways[&(MAIN_TABLE, net("10.2.0.0/24"))], (via("192.0.2.2"), own));
    assert_eq!(wanted.ways[&(MAIN_TABLE, net("10.3.0.0/24"))], (Way::Tunnel(far), own));
    // Pods of a family in which the nodes have no address reach each other all the same.
    assert_eq!(wanted.ways[&(MAIN_TABLE, net("fd00:3::/64"))], (Way::Tunnel(on_tunnel), None));
    assert_eq!(wanted.ways[&(NODES_TABLE, net("198.51.100.3/32"))], (Way::Tunnel(far), None));
    assert_eq!(wanted.ways[&(NODES_TABLE, net("198.51.100.33/32"))], (Way::Tunnel(far), None));
    assert_eq!(wanted.rules, [net("10.1.0.0/24")].into(), "no node has an IPv6 address to be answered");
    let mac = [0x0a, 0x01, 198, 51, 100, 3];
    assert_eq!(wanted.forwarding, [(mac, far)].into());
    assert_eq!(wanted.neighbours, [(far, mac), (on_tunnel, mac)].into());
    let tunnel = wanted.tunnel.unwrap();
    assert_eq!((tunnel.local, tunnel.mtu, wanted.pod_mtu), (ip("192.0.2.1"), 1450, 1450));
    assert_eq!(wanted.skipped, [""; 0]);
}

/// The kubelet writes its own Node's addresses: what a node that was taken over says there leads nobody else's packets to it.
#[test]
fn a_node_that_says_others_addresses_is_not_sent_what_is_theirs() {
    let local = node("a", &["192.0.2.1"], &["10.1.0.0/24"]);
    let others = [
        node(
            "bad",
            &["198.51.100.66", "198.51.100.3", "10.3.0.7", "10.1.0.9", "192.0.2.1"],
            &["10.66.0.0/24"],
        ),
        node("good", &["198.51.100.3", "198.51.100.3"], &["10.3.0.0/24"]),
        node("plain", &["198.51.100.4", "198.51.100.4"], &["10.4.0.0/24"]),
    ];
    let wanted = wanted(&local, &others, Mode::Vxlan, &seen(&["192.0.2.1"], &[]));
    let nodes = wanted.ways.keys().filter(|(table, _)| *table == NODES_TABLE).map(|(_, to)| *to);
    assert_eq!(nodes.collect::<Vec<_>>(), [net("198.51.100.4/32"), net("198.51.100.66/32")]);
    assert_eq!(wanted.skipped.len(), 4, "{:?}", wanted.skipped);
    // Pods are reached as before.
    assert_eq!(wanted.ways[&(MAIN_TABLE, net("10.3.0.0/24"))].0, Way::Tunnel(ip("198.51.100.3")));
}

#[test]
fn a_tunnel_in_ipv6_costs_more_and_carries_ipv4() {
    let local = node("a", &["2001:db8::1"], &["10.1.0.0/24", "fd00:1::/64"]);
    let others = [
        node("b", &["2001:db8:2::2"], &["10.2.0.0/24", "fd00:2::/64"]),
        node("c", &["192.0.2.3"], &["10.3.0.0/24"]),
    ];
    let wanted = wanted(&local, &others, Mode::Vxlan, &seen(&["2001:db8::1"], &["2001:db8:2::2"]));
    let gateway = ip("10.2.0.0");
    assert_eq!(wanted.ways[&(MAIN_TABLE, net("10.2.0.0/24"))], (Way::Tunnel(gateway), None));
    assert_eq!(wanted.neighbours[&gateway], mac(ip("2001:db8:2::2")));
    assert_eq!(wanted.tunnel.unwrap().mtu, 1430);
    assert_eq!(wanted.rules, [net("fd00:1::/64")].into());
    assert_eq!(
        wanted.skipped,
        [
            "no route to podCIDR 10.3.0.0/24 of node c: the node has no address of the family that the tunnel is in"
        ]
    );
}

#[test]
fn hardware_addresses_of_ends_are_local_and_unicast() {
    for end in ["192.0.2.1", "2001:db8::1"] {
        assert_eq!(mac(ip(end))[0] & 3, 2);
    }
    assert_ne!(mac(ip("2001:db8::1")), mac(ip("2001:db8:1::1")));
}

#[test]
fn only_what_differs_is_touched() {
    let route = |to: &str, hop: Hop, metric: u32| Route { metric, ..Route::new(net(to), hop) };
    let from = |route: Route, source: &str| Route { source: Some(ip(source)), ..route };
    let hop = |text: &str| Hop::LinkVia(4, ip(text));
    let via = |text: &str| Hop::Via(ip(text));
    let wanted = [
        route("10.1.0.0/24", Hop::Unreachable, METRIC),
        from(route("10.2.0.0/24", via("192.0.2.2"), METRIC), "192.0.2.1"),
        route("10.3.0.0/24", via("192.0.2.3"), METRIC),
        from(route("10.5.0.0/24", via("192.0.2.5"), METRIC), "192.0.2.1"),
        route("10.6.0.0/24", Hop::Onlink(4, ip("192.0.2.6")), METRIC),
        route("10.7.0.0/24", Hop::Onlink(5, ip("192.0.2.6")), METRIC),
        route("10.8.0.0/24", via("192.0.2.8"), METRIC),
    ];
    let present = [
        route("10.1.0.5/32", Hop::Link(7), 0),
        from(route("10.2.0.0/24", hop("192.0.2.2"), METRIC), "192.0.2.1"),
        route("10.3.0.0/24", hop("192.0.2.9"), METRIC),
        route("10.4.0.0/24", hop("192.0.2.4"), METRIC),
        route("10.5.0.0/24", hop("192.0.2.5"), METRIC),
        route("10.6.0.0/24", hop("192.0.2.6"), METRIC),
        route("10.7.0.0/24", hop("192.0.2.6"), METRIC),
        // The same address, and it is known on the tunnel.
        route("10.8.0.0/24", Hop::Onlink(4, ip("192.0.2.8")), METRIC),
        // The same prefix in another table is another route.
        Route { table: NODES_TABLE, ..route("10.1.0.0/24", Hop::Unreachable, METRIC) },
    ];
    let plan = plan(&wanted, &present);
    let expected = [&wanted[0], &wanted[2], &wanted[3], &wanted[5], &wanted[6]].map(Clone::clone);
    assert_eq!(plan.set, expected);
    assert_eq!(plan.remove, [present[8].clone(), present[3].clone()]);
}
