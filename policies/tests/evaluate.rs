//! `evaluate` against the API's text: one test a sentence of the NetworkPolicy reference.

// Helpers outside #[test] functions unwrap what the test wrote itself.
#![allow(clippy::unwrap_used)]

use std::net::IpAddr;
use std::sync::Arc;

use moat_policies::{
    Block, Candidate, Cluster, ContainerPort, Direction, Endpoint, Evaluator, Family, Flow, Key, Matrix,
    Miss, Namespace, NamespaceScope, NamespacedName, NetworkPolicy, Node, Object, Objects, Operator, Peer,
    Peers, Pod, PortMatch, PortRef, Ports, Protocol, Reason, Requirement, Rule, Selector, Traffic,
    UnknownEndpoint, Verdict,
};

fn name(text: &str) -> NamespacedName {
    let (namespace, name) = text.split_once('/').unwrap();
    NamespacedName::new(namespace, name)
}

fn labels(text: &str) -> moat_policies::Labels {
    text.split(',')
        .filter(|p| !p.is_empty())
        .map(|pair| pair.split_once('=').map(|(k, v)| (Arc::from(k), Arc::from(v))).unwrap())
        .collect()
}

/// `k=v,k=v`; empty: everything.
fn selector(text: &str) -> Selector {
    Selector::new(labels(text).into_iter().map(|(k, v)| Requirement::new(k, Operator::In, [v]).unwrap()))
}

fn pod(full_name: &str, label_text: &str, addresses: &[&str]) -> Pod {
    Pod {
        name: name(full_name),
        labels: labels(label_text),
        node: None,
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        ports: Vec::new(),
        host_network: false,
        finished: false,
        uid: None,
    }
}

fn container_port(name: &str, protocol: Protocol, port: u16) -> ContainerPort {
    ContainerPort { name: Some(Arc::from(name)), protocol, port }
}

fn policy(full_name: &str, subject: &str) -> NetworkPolicy {
    NetworkPolicy { name: name(full_name), subject: selector(subject), ingress: None, egress: None }
}

fn ingress(full_name: &str, subject: &str, rules: Vec<Rule>) -> NetworkPolicy {
    NetworkPolicy { ingress: Some(rules), ..policy(full_name, subject) }
}

fn egress(full_name: &str, subject: &str, rules: Vec<Rule>) -> NetworkPolicy {
    NetworkPolicy { egress: Some(rules), ..policy(full_name, subject) }
}

fn own(pods: &str) -> Peer {
    Peer::Pods { namespaces: NamespaceScope::Own, pods: selector(pods) }
}

fn in_namespaces(namespaces: &str, pods: &str) -> Peer {
    Peer::Pods { namespaces: NamespaceScope::Selected(selector(namespaces)), pods: selector(pods) }
}

fn block(cidr: &str, except: &[&str]) -> Peer {
    Peer::Block(Block::new(cidr.parse().unwrap(), except.iter().map(|e| e.parse().unwrap())).unwrap())
}

fn peers(list: Vec<Peer>) -> Rule {
    Rule { peers: Peers::Of(list), ports: Ports::Any }
}

fn ports(list: Vec<(Protocol, PortRef)>) -> Rule {
    Rule { peers: Peers::Any, ports: port_list(list) }
}

fn port_list(list: Vec<(Protocol, PortRef)>) -> Ports {
    Ports::Of(list.into_iter().map(|(protocol, port)| PortMatch { protocol, port }).collect())
}

fn anything() -> Rule {
    Rule { peers: Peers::Any, ports: Ports::Any }
}

use Protocol::{Sctp, Tcp, Udp};

/// Two namespaces (`shop`, labelled team=a; `ops`, labelled team=b), and what the test adds.
fn world(objects: impl IntoIterator<Item = Object>) -> Objects {
    let namespaces = [("shop", "team=a"), ("ops", "team=b")]
        .map(|(name, l)| Object::Namespace(Namespace { name: Arc::from(name), labels: labels(l) }));
    let pods = [
        pod("shop/web", "app=web", &["10.0.1.1"]),
        pod("shop/api", "app=api,tier=back", &["10.0.1.2"]),
        pod("shop/bare", "", &["10.0.1.3"]),
        pod("ops/scraper", "app=scraper", &["10.0.2.1"]),
        pod("ops/web", "app=web", &["10.0.2.2"]),
    ]
    .map(Object::Pod);
    namespaces.into_iter().chain(pods).chain(objects).collect()
}

fn end(text: &str) -> Endpoint {
    match text.parse::<IpAddr>() {
        Ok(address) => Endpoint::Address(address),
        Err(_) => Endpoint::Pod(name(text)),
    }
}

fn flow(source: &str, destination: &str, traffic: Traffic) -> Flow {
    Flow { source: end(source), destination: end(destination), traffic, family: None }
}

fn tcp(port: u16) -> Traffic {
    Traffic::Port(Tcp, port)
}

fn ask(objects: &Objects, source: &str, destination: &str, traffic: Traffic) -> Verdict {
    objects.evaluate(&flow(source, destination, traffic)).unwrap()
}

/// `(egress, ingress)` and, from them, `allowed`.
#[track_caller]
fn expect(objects: &Objects, source: &str, destination: &str, traffic: Traffic, sides: (bool, bool)) {
    let verdict = ask(objects, source, destination, traffic);
    assert_eq!(
        (verdict.egress.allowed, verdict.ingress.allowed),
        sides,
        "{source} -> {destination} {traffic}: {verdict:?}"
    );
    assert_eq!(verdict.allowed, sides.0 && sides.1, "{source} -> {destination} {traffic}");
}

const YES: (bool, bool) = (true, true);
const NO_INGRESS: (bool, bool) = (true, false);
const NO_EGRESS: (bool, bool) = (false, true);
const ICMP: Traffic = Traffic::Other(1);

#[test]
fn a_pod_that_no_policy_selects_is_open_both_ways() {
    let objects = world([Object::Policy(ingress("shop/api", "app=api", vec![]))]);
    expect(&objects, "shop/api", "shop/web", tcp(80), YES);
    expect(&objects, "192.0.2.1", "shop/web", tcp(80), YES);
    expect(&objects, "shop/web", "192.0.2.1", ICMP, YES);
}

#[test]
fn both_sides_must_allow() {
    let objects = world([
        Object::Policy(egress("shop/web-out", "app=web", vec![peers(vec![own("app=api")])])),
        Object::Policy(ingress("shop/api-in", "app=api", vec![peers(vec![own("app=web")])])),
    ]);
    expect(&objects, "shop/web", "shop/api", tcp(80), YES);
    expect(&objects, "shop/web", "shop/bare", tcp(80), NO_EGRESS);
    expect(&objects, "shop/bare", "shop/api", tcp(80), NO_INGRESS);
}

#[test]
fn isolation_is_by_direction_and_by_namespace() {
    let objects = world([
        Object::Policy(ingress("shop/in", "", vec![])),
        Object::Policy(egress("ops/out", "", vec![])),
    ]);
    expect(&objects, "shop/web", "shop/api", tcp(80), NO_INGRESS);
    expect(&objects, "shop/web", "ops/web", tcp(80), YES);
    expect(&objects, "ops/web", "shop/web", tcp(80), (false, false));
}

#[test]
fn an_empty_subject_selector_selects_the_whole_namespace() {
    let objects = world([Object::Policy(ingress("shop/deny", "", vec![]))]);
    for destination in ["shop/web", "shop/api", "shop/bare"] {
        expect(&objects, "ops/web", destination, tcp(1), NO_INGRESS);
    }
    expect(&objects, "shop/web", "ops/web", tcp(1), YES);
}

#[test]
fn policies_add_up() {
    let objects = world([
        Object::Policy(ingress("shop/a-deny", "", vec![])),
        Object::Policy(ingress("shop/b-web", "app=api", vec![peers(vec![own("app=web")])])),
        Object::Policy(ingress(
            "shop/c-443",
            "tier=back",
            vec![ports(vec![(Tcp, PortRef::Range(443, 443))])],
        )),
    ]);
    expect(&objects, "shop/web", "shop/api", tcp(80), YES);
    expect(&objects, "shop/bare", "shop/api", tcp(443), YES);
    expect(&objects, "shop/bare", "shop/api", tcp(80), NO_INGRESS);
}

#[test]
fn a_rule_without_peers_admits_everybody_also_outside() {
    let objects = world([Object::Policy(ingress("shop/open", "", vec![anything()]))]);
    for source in ["shop/web", "ops/web", "192.0.2.1", "2001:db8::1"] {
        let sides = if source.contains(':') { (false, false) } else { YES };
        expect(&objects, source, "shop/api", tcp(80), sides);
    }
}

#[test]
fn a_rule_without_ports_admits_every_protocol_and_icmp() {
    let objects = world([Object::Policy(ingress("shop/web", "app=api", vec![peers(vec![own("app=web")])]))]);
    for traffic in
        [tcp(1), tcp(65535), Traffic::Port(Udp, 53), Traffic::Port(Sctp, 9), ICMP, Traffic::Other(47)]
    {
        expect(&objects, "shop/web", "shop/api", traffic, YES);
        expect(&objects, "shop/bare", "shop/api", traffic, NO_INGRESS);
    }
}

#[test]
fn peers_are_pods_of_the_own_namespace_unless_a_namespace_selector_says_otherwise() {
    for (peer, shop_web, shop_bare, ops_web, ops_scraper) in [
        (own("app=web"), true, false, false, false),
        (own(""), true, true, false, false),
        (in_namespaces("team=b", ""), false, false, true, true),
        (in_namespaces("team=b", "app=web"), false, false, true, false),
        (in_namespaces("", ""), true, true, true, true),
        (in_namespaces("", "app=web"), true, false, true, false),
        (in_namespaces("kubernetes.io/metadata.name=ops", ""), false, false, true, true),
    ] {
        let text = format!("{peer:?}");
        let objects = world([Object::Policy(ingress("shop/in", "app=api", vec![peers(vec![peer])]))]);
        for (source, allowed) in [
            ("shop/web", shop_web),
            ("shop/bare", shop_bare),
            ("ops/web", ops_web),
            ("ops/scraper", ops_scraper),
        ] {
            assert_eq!(ask(&objects, source, "shop/api", tcp(80)).allowed, allowed, "{source} by {text}");
        }
        // No selector finds what is no pod.
        expect(&objects, "192.0.2.1", "shop/api", tcp(80), NO_INGRESS);
    }
}

#[test]
fn one_peer_of_two_parts_is_and_two_peers_are_or() {
    let and = world([Object::Policy(ingress(
        "shop/and",
        "app=api",
        vec![peers(vec![in_namespaces("team=b", "app=web")])],
    ))]);
    expect(&and, "ops/scraper", "shop/api", tcp(80), NO_INGRESS);
    expect(&and, "shop/web", "shop/api", tcp(80), NO_INGRESS);
    let or = world([Object::Policy(ingress(
        "shop/or",
        "app=api",
        vec![peers(vec![in_namespaces("team=b", ""), own("app=web")])],
    ))]);
    expect(&or, "ops/scraper", "shop/api", tcp(80), YES);
    expect(&or, "shop/web", "shop/api", tcp(80), YES);
    expect(&or, "shop/bare", "shop/api", tcp(80), NO_INGRESS);
}

#[test]
fn not_in_and_does_not_exist_match_a_missing_key() {
    let by = |operator, values: &[&str]| {
        let r = Requirement::new("app", operator, values.iter().map(|v| Arc::from(*v))).unwrap();
        let peer = Peer::Pods { namespaces: NamespaceScope::Own, pods: Selector::new([r]) };
        world([Object::Policy(ingress("shop/in", "app=api", vec![peers(vec![peer])]))])
    };
    for (operator, values, web, bare) in [
        (Operator::In, &["web", "x"][..], true, false),
        (Operator::NotIn, &["web"], false, true),
        (Operator::NotIn, &["x"], true, true),
        (Operator::Exists, &[], true, false),
        (Operator::DoesNotExist, &[], false, true),
    ] {
        let objects = by(operator, values);
        assert_eq!(ask(&objects, "shop/web", "shop/api", tcp(1)).allowed, web, "{operator:?} web");
        assert_eq!(ask(&objects, "shop/bare", "shop/api", tcp(1)).allowed, bare, "{operator:?} bare");
    }
}

#[test]
fn a_namespace_that_no_object_describes_has_its_name_for_a_label() {
    let objects = world([
        Object::Pod(pod("lone/x", "", &["10.0.9.1"])),
        Object::Policy(ingress(
            "shop/in",
            "",
            vec![peers(vec![in_namespaces("kubernetes.io/metadata.name=lone", "")])],
        )),
    ]);
    expect(&objects, "lone/x", "shop/api", tcp(80), YES);
    expect(&objects, "ops/web", "shop/api", tcp(80), NO_INGRESS);
}

#[test]
fn a_block_matches_addresses_pods_included_but_not_its_excepts() {
    let objects = world([Object::Policy(ingress(
        "shop/in",
        "app=api",
        vec![peers(vec![block("10.0.0.0/16", &["10.0.2.0/24"])])],
    ))]);
    expect(&objects, "10.0.77.1", "shop/api", tcp(80), YES);
    expect(&objects, "shop/web", "shop/api", tcp(80), YES);
    expect(&objects, "10.0.2.77", "shop/api", tcp(80), NO_INGRESS);
    expect(&objects, "ops/web", "shop/api", tcp(80), NO_INGRESS);
    expect(&objects, "10.1.0.0", "shop/api", tcp(80), NO_INGRESS);
}

#[test]
fn an_except_of_one_peer_does_not_bind_another() {
    let objects = world([Object::Policy(egress(
        "shop/out",
        "app=web",
        vec![peers(vec![block("10.0.0.0/16", &["10.0.2.0/24"]), block("10.0.2.1/32", &[])])],
    ))]);
    expect(&objects, "shop/web", "ops/scraper", tcp(80), YES);
    expect(&objects, "shop/web", "ops/web", tcp(80), NO_EGRESS);
}

#[test]
fn a_block_never_matches_a_pod_whose_address_is_not_known() {
    let objects = world([
        Object::Pod(pod("shop/new", "app=new", &[])),
        Object::Policy(ingress("shop/in", "app=api", vec![peers(vec![block("0.0.0.0/0", &[])])])),
        Object::Policy(ingress("ops/in", "app=web", vec![peers(vec![in_namespaces("", "app=new")])])),
    ]);
    expect(&objects, "shop/new", "shop/api", tcp(80), NO_INGRESS);
    // Selectors need no address.
    expect(&objects, "shop/new", "ops/web", tcp(80), YES);
}

#[test]
fn ports_by_number_range_and_protocol() {
    let objects = world([Object::Policy(ingress(
        "shop/in",
        "app=api",
        vec![ports(vec![
            (Tcp, PortRef::Range(80, 80)),
            (Udp, PortRef::Range(1000, 2000)),
            (Sctp, PortRef::All),
        ])],
    ))]);
    for (traffic, allowed) in [
        (tcp(80), true),
        (tcp(79), false),
        (tcp(81), false),
        (Traffic::Port(Udp, 80), false),
        (Traffic::Port(Udp, 999), false),
        (Traffic::Port(Udp, 1000), true),
        (Traffic::Port(Udp, 2000), true),
        (Traffic::Port(Udp, 2001), false),
        (Traffic::Port(Sctp, 1), true),
        (Traffic::Port(Sctp, 65535), true),
        (ICMP, false),
    ] {
        assert_eq!(ask(&objects, "shop/web", "shop/api", traffic).allowed, allowed, "{traffic}");
    }
}

#[test]
fn a_named_port_is_the_destinations_in_both_directions() {
    let with_port = |full_name: &str, port| {
        let mut p = pod(full_name, "app=db", &[]);
        p.addresses = vec![if port == 5432 { "10.0.3.1" } else { "10.0.3.2" }.parse().unwrap()];
        p.ports = vec![container_port("sql", Tcp, port), container_port("dns", Udp, 53)];
        Object::Pod(p)
    };
    let named =
        || port_list(vec![(Tcp, PortRef::Named(Arc::from("sql"))), (Tcp, PortRef::Named(Arc::from("dns")))]);
    let both = [with_port("shop/db1", 5432), with_port("shop/db2", 3306)];
    let inward = ingress("shop/in", "app=db", vec![Rule { peers: Peers::Any, ports: named() }]);
    let outward = egress("shop/out", "app=web", vec![Rule { peers: Peers::Any, ports: named() }]);
    for (policy, denied) in [(inward, NO_INGRESS), (outward, NO_EGRESS)] {
        let objects = world(both.clone().into_iter().chain([Object::Policy(policy)]));
        expect(&objects, "shop/web", "shop/db1", tcp(5432), YES);
        expect(&objects, "shop/web", "shop/db2", tcp(3306), YES);
        expect(&objects, "shop/web", "shop/db1", tcp(3306), denied);
        expect(&objects, "shop/web", "shop/db2", tcp(5432), denied);
        // The protocol must be the container port's, too: `dns` is UDP there and TCP in the rule.
        expect(&objects, "shop/web", "shop/db1", tcp(53), denied);
        expect(&objects, "shop/web", "shop/db1", Traffic::Port(Udp, 53), denied);
    }
}

#[test]
fn a_named_port_never_matches_what_is_no_pod() {
    let objects = world([Object::Policy(egress(
        "shop/out",
        "app=web",
        vec![ports(vec![(Tcp, PortRef::Named(Arc::from("http")))])],
    ))]);
    expect(&objects, "shop/web", "192.0.2.1", tcp(80), NO_EGRESS);
}

#[test]
fn a_pod_always_reaches_itself() {
    let mut deny = ingress("shop/deny", "", vec![]);
    deny.egress = Some(vec![]);
    let objects = world([Object::Policy(deny)]);
    expect(&objects, "shop/api", "shop/api", tcp(80), YES);
    expect(&objects, "shop/api", "10.0.1.2", tcp(80), YES);
    assert_eq!(ask(&objects, "shop/api", "10.0.1.2", tcp(80)).ingress.reason, Reason::Itself);
}

/// One pod on each of two nodes, a hostNetwork pod on the first, and a deny-all in both directions.
fn two_nodes(extra: impl IntoIterator<Item = Object>) -> Objects {
    let node = |name: &str, address: &str| {
        Object::Node(Node {
            name: Arc::from(name),
            addresses: vec![address.parse().unwrap()],
            pod_cidrs: Vec::new(),
        })
    };
    let on = |node: &str, mut p: Pod| {
        p.node = Some(Arc::from(node));
        p
    };
    let mut host = on("n1", pod("shop/host", "app=host", &["172.16.0.1"]));
    host.host_network = true;
    host.ports = vec![container_port("http", Tcp, 80)];
    let mut deny = ingress("shop/deny", "", vec![]);
    deny.egress = Some(vec![]);
    let objects = [
        node("n1", "172.16.0.1"),
        node("n2", "172.16.0.2"),
        Object::Pod(on("n1", pod("shop/one", "app=one", &["10.1.1.1"]))),
        Object::Pod(on("n2", pod("shop/two", "app=two", &["10.1.2.1"]))),
        Object::Pod(host),
        Object::Policy(deny),
    ];
    objects.into_iter().chain(extra).collect()
}

#[test]
fn a_node_and_its_own_pods_always_reach_each_other_and_remote_nodes_do_not() {
    let objects = two_nodes([]);
    for node in ["172.16.0.1", "shop/host"] {
        expect(&objects, node, "shop/one", tcp(80), YES);
        expect(&objects, "shop/one", node, tcp(80), YES);
        expect(&objects, node, "shop/two", tcp(80), NO_INGRESS);
        expect(&objects, "shop/two", node, tcp(80), NO_EGRESS);
    }
    assert_eq!(ask(&objects, "shop/host", "shop/one", tcp(80)).ingress.reason, Reason::OwnNode);
    assert_eq!(ask(&objects, "shop/host", "shop/one", tcp(80)).egress.reason, Reason::HostNetwork);
}

#[test]
fn a_pod_without_a_node_is_on_a_node_of_its_own() {
    let mut homeless = pod("shop/host2", "", &[]);
    homeless.host_network = true;
    let objects = two_nodes([Object::Pod(homeless), Object::Pod(pod("shop/three", "", &["10.1.3.1"]))]);
    expect(&objects, "shop/host2", "shop/three", tcp(80), NO_INGRESS);
    expect(&objects, "shop/host", "shop/three", tcp(80), NO_INGRESS);
}

#[test]
fn host_network_pods_are_the_node_for_selectors_blocks_and_names() {
    let rules = vec![peers(vec![own("app=host")]), ports(vec![(Tcp, PortRef::Named(Arc::from("http")))])];
    let by_selector = two_nodes([
        Object::Policy(ingress("shop/in", "app=two", vec![rules[0].clone()])),
        Object::Policy(egress("shop/out", "app=two", rules)),
    ]);
    expect(&by_selector, "shop/host", "shop/two", tcp(80), NO_INGRESS);
    expect(&by_selector, "shop/two", "shop/host", tcp(80), NO_EGRESS);
    let by_block = two_nodes([Object::Policy(ingress(
        "shop/in",
        "app=two",
        vec![peers(vec![block("172.16.0.1/32", &[])])],
    ))]);
    expect(&by_block, "shop/host", "shop/two", tcp(80), YES);
    expect(&by_block, "172.16.0.1", "shop/two", tcp(80), YES);
    expect(&by_block, "172.16.0.2", "shop/one", tcp(80), NO_INGRESS);
    // A hostNetwork pod is no policy's subject.
    expect(&by_block, "192.0.2.1", "shop/host", tcp(80), YES);
}

#[test]
fn a_host_network_pod_without_an_address_has_its_nodes() {
    let mut host = pod("shop/late", "app=host", &[]);
    host.host_network = true;
    host.node = Some(Arc::from("n1"));
    let objects = two_nodes([
        Object::Pod(host),
        Object::Policy(ingress("shop/in", "app=two", vec![peers(vec![block("172.16.0.1/32", &[])])])),
    ]);
    expect(&objects, "shop/late", "shop/two", tcp(80), YES);
}

#[test]
fn who_knows_few_pods_knows_those_in_their_nodes_network_too() {
    // Its status says another node's address: that is nobody's own node then.
    let mut host = pod("shop/moved", "app=host", &["172.16.0.1"]);
    host.host_network = true;
    host.node = Some(Arc::from("n2"));
    let objects = two_nodes([Object::Pod(host)]);
    let mut cluster = Cluster::new();
    objects.nodes().values().cloned().for_each(|n| cluster.apply(Object::Node(n)));
    objects.policies().values().cloned().for_each(|p| cluster.apply(Object::Policy(p)));
    objects.pods().iter().for_each(|p| cluster.apply(Object::Pod(p)));
    cluster.commit();
    let flow = flow("172.16.0.1", "10.1.1.1", tcp(80));
    let addresses = ["172.16.0.1".parse().unwrap(), "10.1.1.1".parse().unwrap()];
    let verdict = |e: Evaluator<'_>| e.evaluate(&flow).unwrap().allowed;
    assert!(!verdict(Evaluator::new(cluster.objects())));
    assert!(!verdict(cluster.evaluator_of(&addresses)));
    cluster.delete(&Key::Pod(NamespacedName::new("shop", "moved")));
    cluster.commit();
    assert!(verdict(cluster.evaluator_of(&addresses)));
}

#[test]
fn a_finished_pod_is_nobody() {
    let mut done = pod("shop/job", "app=web", &["10.0.1.50"]);
    done.finished = true;
    let objects = world([
        Object::Pod(done),
        Object::Policy(ingress("shop/in", "app=api", vec![peers(vec![own("app=web")])])),
    ]);
    assert_eq!(
        objects.evaluate(&flow("shop/job", "shop/api", tcp(80))),
        Err(UnknownEndpoint(name("shop/job")))
    );
    // Its address is somebody else's, or nobody's.
    expect(&objects, "10.0.1.50", "shop/api", tcp(80), NO_INGRESS);
}

#[test]
fn an_address_that_a_pod_holds_is_that_pod() {
    let objects = world([Object::Policy(ingress("shop/in", "app=api", vec![peers(vec![own("app=web")])]))]);
    expect(&objects, "10.0.1.1", "shop/api", tcp(80), YES);
    expect(&objects, "10.0.1.3", "10.0.1.2", tcp(80), NO_INGRESS);
}

#[test]
fn an_address_that_several_pods_claim_is_nobodys_as_a_peer() {
    let mut twin = pod("shop/twin", "app=web", &["10.0.1.1"]);
    twin.ports = vec![container_port("http", Tcp, 80)];
    let in_by_selector = ingress("shop/in", "app=api", vec![peers(vec![own("app=web")])]);
    let objects = world([Object::Pod(twin.clone()), Object::Policy(in_by_selector)]);
    assert_eq!(Evaluator::new(&objects).contested(), ["10.0.1.1".parse::<IpAddr>().unwrap()]);
    for source in ["shop/web", "shop/twin", "10.0.1.1"] {
        expect(&objects, source, "shop/api", tcp(80), NO_INGRESS);
    }
    // By address it is still itself, and as a subject each of them is.
    let objects = world([
        Object::Pod(twin),
        Object::Policy(ingress("shop/in", "app=api", vec![peers(vec![block("10.0.1.1/32", &[])])])),
        Object::Policy(egress(
            "shop/out",
            "app=api",
            vec![ports(vec![(Tcp, PortRef::Named(Arc::from("http")))])],
        )),
        Object::Policy(ingress(
            "shop/web",
            "app=web",
            vec![ports(vec![(Tcp, PortRef::Named(Arc::from("http")))])],
        )),
    ]);
    expect(&objects, "shop/twin", "shop/api", tcp(80), YES);
    expect(&objects, "shop/bare", "shop/twin", tcp(80), YES);
    expect(&objects, "shop/api", "shop/twin", tcp(80), NO_EGRESS);
}

#[test]
fn a_connection_runs_over_one_family() {
    let dual = |full_name: &str, label: &str, host: u8| {
        pod(full_name, label, &[&format!("10.5.0.{host}"), &format!("2001:db8::{host}")])
    };
    let base = [Object::Pod(dual("shop/a", "app=a", 1)), Object::Pod(dual("shop/b", "app=b", 2))];
    let split = world(base.clone().into_iter().chain([
        Object::Policy(egress("shop/out", "app=a", vec![peers(vec![block("0.0.0.0/0", &[])])])),
        Object::Policy(ingress("shop/in", "app=b", vec![peers(vec![block("::/0", &[])])])),
    ]));
    let verdict = ask(&split, "shop/a", "shop/b", tcp(80));
    assert_eq!((verdict.egress.allowed, verdict.ingress.allowed, verdict.allowed), (true, true, false));
    assert_eq!(verdict.families, Family::ALL);
    for (family, sides) in [(Family::V4, NO_INGRESS), (Family::V6, NO_EGRESS)] {
        let verdict =
            split.evaluate(&Flow { family: Some(family), ..flow("shop/a", "shop/b", tcp(80)) }).unwrap();
        assert_eq!((verdict.egress.allowed, verdict.ingress.allowed), sides, "{family}");
        assert!(!verdict.allowed);
    }
    let v6_only = world(base.into_iter().chain([
        Object::Pod(pod("shop/six", "app=six", &["2001:db8::6"])),
        Object::Policy(ingress("shop/in", "app=b", vec![peers(vec![block("::/0", &[])])])),
    ]));
    expect(&v6_only, "shop/a", "shop/b", tcp(80), YES);
    expect(&v6_only, "shop/six", "shop/b", tcp(80), YES);
    let none = ask(&v6_only, "shop/six", "shop/api", tcp(80));
    assert!(!none.allowed && none.families.is_empty());
    assert_eq!(none.ingress.reason, Reason::NoCommonFamily);
}

#[test]
fn reasons_name_the_isolating_policies_and_the_first_rule_that_allows() {
    let objects = world([
        Object::Policy(ingress(
            "shop/b",
            "app=api",
            vec![peers(vec![own("app=x")]), peers(vec![own("app=web")])],
        )),
        Object::Policy(ingress("shop/a-deny", "", vec![])),
        Object::Policy(ingress("shop/c", "", vec![anything()])),
    ]);
    let verdict = ask(&objects, "shop/web", "shop/api", tcp(80));
    assert_eq!(verdict.egress.reason, Reason::NotIsolated);
    let Reason::Rule { isolating, by } = verdict.ingress.reason else { panic!("{:?}", verdict.ingress) };
    assert_eq!(isolating, ["shop/a-deny", "shop/b", "shop/c"].map(name));
    assert_eq!(by.to_string(), "shop/b ingress[1]");
}

#[test]
fn candidates_come_nearest_first() {
    let eighty = || port_list(vec![(Tcp, PortRef::Range(80, 80))]);
    let web = || Peers::Of(vec![own("app=web")]);
    let objects = world([Object::Policy(ingress(
        "shop/in",
        "app=api",
        vec![
            Rule { peers: Peers::Of(vec![block("192.0.2.0/24", &[])]), ports: eighty() },
            Rule {
                peers: Peers::Of(vec![in_namespaces("", "app=scraper"), own("app=x")]),
                ports: Ports::Any,
            },
            Rule { peers: web(), ports: eighty() },
        ],
    ))]);
    let flow = flow("shop/web", "shop/api", tcp(9090));
    let verdict = objects.evaluate(&flow).unwrap();
    let Reason::NoRule { candidates, .. } = &verdict.ingress.reason else { panic!() };
    let seen: Vec<(usize, &Miss)> =
        candidates.iter().map(|Candidate { rule, miss }| (rule.index, miss)).collect();
    assert_eq!(
        seen,
        [
            (2, &Miss::Port { allows: "80/TCP".into() }),
            (
                1,
                &Miss::Peer {
                    allows: "pods app=scraper in all namespaces, or pods app=x in namespace shop".into()
                }
            ),
            (0, &Miss::PeerAndPort { peers: "addresses in 192.0.2.0/24".into(), ports: "80/TCP".into() }),
        ]
    );
    assert_eq!(
        verdict.explain(&flow),
        "shop/api is isolated for ingress by shop/in; nearest: shop/in ingress[2] allows 80/TCP, not 9090/TCP"
    );
    let lines: Vec<String> = candidates.iter().map(|c| c.explain(flow.traffic, &flow.source)).collect();
    assert_eq!(
        lines[1..],
        [
            "shop/in ingress[1] allows it from pods app=scraper in all namespaces, or pods app=x in namespace shop, not from shop/web",
            "shop/in ingress[0] allows 80/TCP from addresses in 192.0.2.0/24",
        ]
    );
}

#[test]
fn explanations_are_sentences() {
    let objects = two_nodes([]);
    for (source, destination, text) in [
        ("shop/one", "shop/one", "shop/one always reaches itself; shop/one always reaches itself"),
        (
            "shop/host",
            "shop/one",
            "shop/host is a node, or a pod in its node's network: no policy applies to it; \
             shop/one and its own node (shop/host) always reach each other",
        ),
        ("192.0.2.1", "shop/one", "shop/one is isolated for ingress by shop/deny, which has no ingress rule"),
    ] {
        let flow = flow(source, destination, tcp(80));
        assert_eq!(objects.evaluate(&flow).unwrap().explain(&flow), text);
    }
    assert_eq!(ask(&objects, "shop/one", "192.0.2.1", tcp(80)).egress.direction, Direction::Egress);
}

#[test]
fn a_matrix_says_what_each_question_says() {
    let named = || port_list(vec![(Tcp, PortRef::Named(Arc::from("http"))), (Udp, PortRef::All)]);
    let with_port = |full_name: &str, label: &str, address: &str, port| {
        let mut p = pod(full_name, label, &[address, &format!("2001:db8::{port}")]);
        p.ports = vec![container_port("http", Tcp, port)];
        Object::Pod(p)
    };
    let objects = two_nodes([
        // Alike but for their ports, and two that are alike.
        with_port("shop/x1", "app=x", "10.7.0.1", 80),
        with_port("shop/x2", "app=x", "10.7.0.2", 81),
        Object::Pod(pod("shop/y1", "app=y", &["10.7.0.3"])),
        Object::Pod(pod("shop/y2", "app=y", &[])),
        Object::Policy(ingress(
            "shop/x",
            "app=x",
            vec![Rule { peers: Peers::Of(vec![own("app=y")]), ports: named() }],
        )),
        Object::Policy(egress(
            "shop/y",
            "app=y",
            vec![Rule { peers: Peers::Of(vec![block("10.0.0.0/8", &[]), own("app=x")]), ports: named() }],
        )),
        Object::Policy(ingress(
            "shop/y-in",
            "app=y",
            vec![peers(vec![block("2001:db8::/32", &[]), own("app=y")])],
        )),
    ]);
    let evaluator = Evaluator::new(&objects);
    let mut ends: Vec<Endpoint> = objects.pods().names().map(Endpoint::Pod).collect();
    ends.extend(["192.0.2.1", "172.16.0.2", "2001:db8::7"].map(end));
    let traffics = [tcp(80), tcp(81), Traffic::Port(Udp, 9), ICMP];
    let mut matrix = Matrix::new(&evaluator, &ends, &traffics).unwrap();
    let mut allowed = 0;
    // Twice: what is remembered must be what was found.
    for _ in 0..2 {
        for (i, source) in ends.iter().enumerate() {
            for (j, destination) in ends.iter().enumerate() {
                for (k, &traffic) in traffics.iter().enumerate() {
                    let flow = Flow {
                        source: source.clone(),
                        destination: destination.clone(),
                        traffic,
                        family: None,
                    };
                    let verdict = evaluator.evaluate(&flow).unwrap();
                    let judgement = matrix.judge(i, j, k);
                    let sides = (verdict.allowed, verdict.egress.allowed, verdict.ingress.allowed);
                    assert_eq!((judgement.allowed, judgement.egress, judgement.ingress), sides, "{flow:?}");
                    allowed += usize::from(judgement.allowed);
                }
            }
        }
    }
    let cells = 2 * ends.len() * ends.len() * traffics.len();
    assert!(allowed > cells / 10 && allowed < cells * 9 / 10, "{allowed} of {cells}");
}
