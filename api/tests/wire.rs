//! What is said arrives as it was said, and what cannot be is refused.
#![allow(clippy::unwrap_used)]

#[path = "../../policies/tests/support/mod.rs"]
#[allow(dead_code, reason = "the engine's tests use the rest")]
mod support;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use moat_api::{
    Announced, Attached, Attachments, Change, Digest, Held, Hello, Invalid, LEVEL, Told, ToldPod, update,
    wire,
};
use moat_policies::{
    DenyAction, LogLimit, NamespacedName, NetworkConfig, NodeDelta, Object, ProgramId, RouteMode, SetId,
};
use proptest::option::of as option;
use proptest::prelude::*;
use prost::Message as _;

use support::{NODES, compiled, objects};

/// What a node is told of these objects: everything.
fn everything(objects: Vec<Object>, node: &str) -> Change {
    let cluster = compiled(objects);
    let policy = cluster.state(node);
    let mut change = Change { pods_whole: true, nodes_whole: true, ..Change::default() };
    for (name, programs) in policy.pods.clone() {
        change.put_pod(name, programs.map(|programs| ToldPod { uid: Some("one".into()), programs }));
    }
    change.policy = NodeDelta { pods: change.policy.pods, ..policy };
    change.nodes =
        cluster.objects().nodes().iter().map(|(name, node)| (name.clone(), Some(node.clone()))).collect();
    change.moved = cluster.objects().pods().iter().flat_map(|pod| pod.addresses).collect();
    change
}

fn over_the_wire(change: &Change) -> Change {
    let bytes = update(7, change).encode_to_vec();
    wire::Update::decode(&*bytes).unwrap().try_into().unwrap()
}

fn nets() -> impl Strategy<Value = Vec<IpNet>> {
    let nets = ["10.0.0.0/8", "10.1.2.3/32", "0.0.0.0/0", "fd00::/8", "2001:db8::1/128"];
    prop::sample::subsequence(nets.map(|net| net.parse().unwrap()).to_vec(), 0..=nets.len()).prop_shuffle()
}

/// How a network may be to be: each thing said, or not.
fn config() -> impl Strategy<Value = NetworkConfig> {
    let route_mode = prop::sample::select(vec![RouteMode::Auto, RouteMode::Routed, RouteMode::Vxlan]);
    let deny = prop::sample::select(vec![DenyAction::Drop, DenyAction::Reject]);
    let log = (LogLimit::RATE, LogLimit::BURST).prop_map(|(rate, burst)| LogLimit { rate, burst });
    let said =
        (option(route_mode), option(NetworkConfig::MTU), option(any::<bool>()), option(deny), option(log));
    (nets(), nets(), said).prop_map(|(cluster_cidrs, masquerade_except, said)| {
        let (route_mode, mtu, masquerade, deny, drop_log) = said;
        NetworkConfig { cluster_cidrs, route_mode, mtu, masquerade, masquerade_except, deny, drop_log }
    })
}

proptest! {
    #[test]
    fn how_the_network_is_to_be_and_the_states_name_arrive_as_they_were_said(
        config in option(config()),
        fingerprint in option("[0-9a-f]{1,32}"),
    ) {
        let fingerprint = fingerprint.map(|text| text.into());
        let change = Change { config, fingerprint, ..Change::default() };
        prop_assert_eq!(over_the_wire(&change), change);
    }

    #[test]
    fn an_agent_arrives_as_it_said_it_is(
        level: u32,
        [node, version, life] in ["[a-z]{1,9}", "[ -~]{0,9}", "[0-9a-f]{0,32}"],
        announces_only: bool,
        [pods, nodes]: [[u8; 16]; 2],
        sets: BTreeMap<[u8; 16], [u8; 16]>,
        programs: BTreeSet<[u8; 16]>,
    ) {
        let sets = sets.into_iter().map(|(id, sum)| (SetId(id), Digest(sum))).collect();
        let programs = programs.into_iter().map(ProgramId).collect();
        let held = Held { sets, programs, pods: Digest(pods), nodes: Digest(nodes) };
        let (node, life) = (node.into(), life.into());
        let hello = Hello { level, node, version, held, announces_only, life };
        let bytes = wire::Hello::from(&hello).encode_to_vec();
        prop_assert_eq!(Hello::try_from(wire::Hello::decode(&*bytes).unwrap()), Ok(hello));
    }

    #[test]
    fn an_answer_is_heard_as_it_was_meant_at_either_level(number: u64, gone: u64) {
        let answer = Announced { number, gone };
        prop_assert_eq!(Announced::heard(answer.at(2), 2), answer);
        // One number stands for both: no more is promised than holds of each.
        let least = number.min(gone);
        prop_assert_eq!(Announced::heard(answer.at(1), 1), Announced { number: least, gone: least });
    }

    #[test]
    fn a_change_arrives_as_it_was_said(objects in objects()) {
        for node in NODES {
            let change = everything(objects.clone(), node);
            prop_assert_eq!(over_the_wire(&change), change);
        }
    }

    #[test]
    fn from_one_state_to_another_by_what_differs(before in objects(), after in objects()) {
        let mut cluster = compiled(before);
        let mut told = Told::default();
        let whole = |cluster: &moat_policies::Cluster| Change { policy: cluster.state("n1"), ..Change::default() };
        told.take(over_the_wire(&pods_of(whole(&cluster))));
        cluster.reset(after);
        let delta = cluster.commit().remove("n1").unwrap_or_default();
        told.take(over_the_wire(&pods_of(Change { policy: delta, ..Change::default() })));
        let mut scratch = Told::default();
        scratch.take(pods_of(whole(&cluster)));
        prop_assert_eq!(&told, &scratch);
        prop_assert_eq!(told.dangling(), None);
        prop_assert_eq!(told.held(), scratch.held());
    }

    #[test]
    fn what_is_whole_takes_the_place_of_everything(before in objects(), after in objects()) {
        let mut told = Told::default();
        told.take(everything(before, "n1"));
        let mut other = Told::default();
        other.take(everything(after, "n1"));
        let resolved = told.take(other.whole());
        prop_assert!(!resolved.pods_whole && !resolved.nodes_whole);
        prop_assert_eq!((&told.pods, &told.nodes), (&other.pods, &other.nodes));
    }

    #[test]
    fn damaged_messages_are_refused_or_mean_something(objects in objects(), at in any::<prop::sample::Index>(), byte: u8) {
        let mut bytes = update(7, &everything(objects, "n1")).encode_to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(message) = wire::Update::decode(&*bytes)
            && let Ok(change) = Change::try_from(message)
        {
            // What means something means the same to whoever is told it again.
            prop_assert_eq!(over_the_wire(&change), change);
        }
    }
}

fn pods_of(mut change: Change) -> Change {
    let pods = change.policy.pods.clone();
    let told = |programs| ToldPod { uid: None, programs };
    pods.into_iter().for_each(|(name, programs)| change.put_pod(name, programs.map(told)));
    change
}

#[test]
fn an_agent_says_who_it_is_and_what_it_has() {
    let held = Told::default().held();
    let hello = Hello {
        level: LEVEL,
        node: "n1".into(),
        version: "0.1.0".into(),
        held,
        announces_only: true,
        life: "one".into(),
    };
    assert_eq!(Hello::try_from(wire::Hello::from(&hello)), Ok(hello));
    let answer = Announced { number: 7, gone: 3 };
    assert_eq!(Announced::heard(answer.at(2), 2), answer);
    let both = Announced { number: 3, gone: 3 };
    assert_eq!(Announced::heard(answer.at(1), 1), both, "one number stands for both");
    let attached =
        Attached { uid: None, addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()] };
    let pods = BTreeMap::from([
        (NamespacedName::new("shop", "web"), Some(attached)),
        (NamespacedName::new("shop", "api"), None),
    ]);
    let attachments = Attachments { number: 3, whole: false, pods };
    assert_eq!(Attachments::try_from(wire::Attachments::from(&attachments)), Ok(attachments));
}

#[test]
fn a_network_that_cannot_be_is_refused_and_what_a_later_version_says_is_not_said() {
    let read = |config| Change::try_from(wire::Update { config: Some(config), ..Default::default() });
    let refused = |config| read(config).unwrap_err();
    let nothing = wire::Config::default;
    for bad in ["10.0.0.0", "10.0.0.0/33", "fd00::/129", "", "pods"] {
        let nets = || vec![bad.to_owned()];
        assert_eq!(
            refused(wire::Config { cluster_cidrs: nets(), ..nothing() }),
            Invalid::Config("clusterCIDRs")
        );
        assert_eq!(
            refused(wire::Config { masquerade_except: nets(), ..nothing() }),
            Invalid::Config("exceptCIDRs")
        );
    }
    for mtu in [1, 1279, 65_536, u32::MAX] {
        assert_eq!(refused(wire::Config { mtu, ..nothing() }), Invalid::Config("MTU"), "{mtu}");
    }
    for (rate, burst) in [(1001, 1), (1, 0), (1, 10_001)] {
        let drop_log = Some(wire::config::LogLimit { rate, burst });
        assert_eq!(refused(wire::Config { drop_log, ..nothing() }), Invalid::Config("log limit"));
    }
    let later = wire::Config { route_mode: 99, deny: 99, ..nothing() };
    assert_eq!(read(later).unwrap().config, Some(NetworkConfig::default()));
}

#[test]
fn what_cannot_be_is_refused() {
    let change = |update| Change::try_from(update).unwrap_err();
    let id = vec![7; 16];
    let program = |program| change(wire::Update { programs: vec![program], ..Default::default() });
    let everyone = || Some(wire::Allow { who: Some(wire::allow::Who::Everyone(true)) });
    let class = |first, last| wire::PortClass {
        ports: vec![wire::PortRange { protocol: 6, first, last }],
        allow: everyone(),
    };
    assert_eq!(program(wire::Program { id: vec![1], ..Default::default() }), Invalid::Id(1));
    let nobody = wire::Program { id: id.clone(), ..Default::default() };
    let of = |classes| wire::Program { classes, ..nobody.clone() };
    assert_eq!(program(of(vec![class(80, 79)])), Invalid::Ports);
    assert_eq!(program(of(vec![class(80, 70_000)])), Invalid::Ports);
    assert_eq!(program(of(vec![class(80, 90), class(85, 95)])), Invalid::Ports);
    assert_eq!(
        program(of(vec![wire::PortClass { allow: None, ..class(80, 80) }])),
        Invalid::Missing("allow")
    );
    let excess = Some(wire::Excess { what: Some(wire::excess::What::Classes(1)) });
    let allows = wire::Program { every: everyone(), excess, ..nobody.clone() };
    assert_eq!(program(allows), Invalid::Excess);
    assert_eq!(
        change(wire::Update { programs: vec![nobody.clone(), nobody], ..Default::default() }),
        Invalid::Twice("program")
    );

    // What an agent says of its node's interfaces is kept for as long as the node is there.
    let there = |namespace: &str, addresses: (usize, usize)| {
        let addresses = wire::Addresses { v4: vec![1; addresses.0], v6: vec![1; addresses.1] };
        let pod = wire::PodName { namespace: namespace.to_owned(), name: "web".to_owned() };
        let there = wire::Attachment { pod: Some(pod), addresses: Some(addresses), ..Default::default() };
        Attachments::try_from(wire::Attachments { there: vec![there], ..Default::default() })
    };
    assert!(there("shop", (4, 16)).is_ok());
    assert_eq!(there("shop", (8, 0)), Err(Invalid::Addresses));
    assert_eq!(there("shop", (4, 32)), Err(Invalid::Addresses));
    assert_eq!(there(&"x".repeat(254), (4, 0)), Err(Invalid::Name(254)));

    // A pod of which it is not said whether it is isolated is not one that is not.
    let name = Some(wire::PodName { namespace: "shop".into(), name: "web".into() });
    let pod = wire::Pod { name, ..Default::default() };
    assert_eq!(change(wire::Update { pods: vec![pod], ..Default::default() }), Invalid::Missing("side"));

    let set = |set| change(wire::Update { sets: vec![set], ..Default::default() });
    let addresses = wire::Set { id, kind: wire::set::Kind::Addresses.into(), ..Default::default() };
    assert_eq!(set(wire::Set { kind: 0, ..addresses.clone() }), Invalid::Missing("kind"));
    let elements = |elements| Some(wire::Elements { ..elements });
    let odd = wire::Elements { v4: vec![10, 0, 0], ..Default::default() };
    assert_eq!(set(wire::Set { elements: elements(odd), ..addresses.clone() }), Invalid::Packed("elements"));
    let ports = wire::Elements { v4_ports: vec![10, 0, 0, 1, 6, 0, 80], ..Default::default() };
    assert_eq!(set(wire::Set { elements: elements(ports), ..addresses.clone() }), Invalid::Kind);
    let prefixes = |v4: &[u8]| Some(wire::Prefixes { v4: v4.into(), ..Default::default() });
    let bad: [&[u8]; 3] = [&[10, 0, 0, 0, 33], &[10, 0, 0, 1, 8], &[10, 0, 0, 0, 8, 10, 0, 0, 0, 9]];
    for bad in bad {
        assert_eq!(
            set(wire::Set { prefixes: prefixes(bad), ..addresses.clone() }),
            Invalid::Prefix,
            "{bad:?}"
        );
    }
}
