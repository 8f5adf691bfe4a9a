//! What the kernel refuses, and what a limit keeps from it: the pods that need it are closed, everybody else goes on.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use moat_agent::dataplane::{Config, DropReason, Limits, Update};
use moat_policies::Direction::Ingress;
use moat_policies::{
    Allow, AllowSet, Element, NodeDelta, PodPrograms, PortClass, PortRange, Program, ProgramId, Protocol,
    SetChange, SetId, SetKind,
};

use crate::probe::Fate::{Dropped, Passed};
use crate::probe::{Fate, From};
use crate::space::{in_user_namespace, privileged};
use crate::world::{World, name};
use crate::writer::{unguarded, until};

const BAD: ProgramId = ProgramId([0xba; 16]);
const DENY: ProgramId = ProgramId([0xde; 16]);
const SET: SetId = SetId([0x5e; 16]);

const DENIED: Fate = Dropped(DropReason::Policy.on(Ingress));
const CLOSED: Fate = Dropped(DropReason::KernelRefused.on(Ingress));

fn ports(first: u16, last: u16) -> PortRange {
    PortRange { protocol: Protocol::Tcp, first, last }
}

fn allow_set(elements: u32, prefixes: u32) -> AllowSet {
    let address = |n| IpAddr::V4(Ipv4Addr::from_bits(0x0b00_0000 + n));
    AllowSet {
        kind: SetKind::Addresses,
        pods: elements > 0,
        // Every other address, so that none touches the next.
        prefixes: (0..prefixes).map(|n| ipnet::IpNet::new(address(n * 2), 32).expect("a prefix")).collect(),
        elements: (0..elements).map(|n| Element { address: address(n), port: None }).collect(),
    }
}

/// A set with ports in it.
fn named_set(elements: u32) -> AllowSet {
    let address = |n| IpAddr::V6(Ipv6Addr::from_bits((0xfd07 << 112) + u128::from(n)));
    let element = |n| Element { address: address(n), port: Some((Protocol::Tcp, 80)) };
    AllowSet {
        kind: SetKind::AddressPorts,
        pods: true,
        prefixes: Arc::default(),
        elements: (0..elements).map(element).collect(),
    }
}

/// `b` gets this ingress program; in the same update, `c` one that lets nobody in.
fn update(program: Program, set: Option<AllowSet>) -> Update {
    let ingress = |id| Some(PodPrograms { ingress: Some(id), egress: None });
    let policy = NodeDelta {
        pods: BTreeMap::from([(name("b"), ingress(BAD)), (name("c"), ingress(DENY))]),
        programs: BTreeMap::from([(BAD, Some(Arc::new(program))), (DENY, Some(Arc::default()))]),
        sets: set.map(|set| (SET, SetChange::Create(Arc::new(set)))).into_iter().collect(),
    };
    Update { policy, ..Update::default() }
}

/// Port classes that overlap, which the engine never makes: the kernel takes no map in which a key has two values.
fn overlapping() -> Program {
    let class = |first, last, allow| PortClass { ports: vec![ports(first, last)], allow };
    Program {
        classes: vec![
            class(10, 20, Allow::Everyone),
            class(15, 30, Allow::Set(SET)),
            class(40, 50, Allow::Everyone),
            class(60, 60, Allow::Set(SET)),
        ],
        ..Program::default()
    }
}

/// One class, open for a set.
fn one_class() -> Program {
    Program { every: Some(Allow::Set(SET)), ..Program::default() }
}

fn submit(w: &World, update: Update) {
    drop(w.dataplane().submit(update).wait().expect("the rest is taken"));
}

fn why(w: &World, pod: &str) -> Option<String> {
    w.dataplane().closed().borrow().get(&name(pod)).cloned()
}

/// b is closed, for this reason; c and d are as the engine says.
#[track_caller]
fn only_b_is_closed(w: &World, words: &str) {
    let reason = why(w, "b").unwrap_or_else(|| panic!("b is not closed: {:?}", w.dataplane().stats().all()));
    assert!(reason.contains(words), "{reason}");
    assert_eq!(w.dataplane().stats().closed(), 1);
    assert_eq!(w.dataplane().stats().behind(), 0);
    assert_eq!(w.tcp(From::Pod("a"), w.v4("b"), 80), CLOSED);
    assert_eq!(w.tcp(From::Pod("a"), w.v6("c"), 80), DENIED);
    assert_eq!(w.tcp(From::Pod("a"), w.v4("d"), 80), Passed);
}

/// b is what it was before any of this.
fn open_again(w: &World) {
    let policy = NodeDelta {
        pods: BTreeMap::from([(name("b"), Some(PodPrograms::default()))]),
        programs: BTreeMap::from([(BAD, None)]),
        sets: BTreeMap::from([(SET, SetChange::Delete)]),
    };
    submit(w, Update { policy, ..Update::default() });
    assert_eq!(why(w, "b"), None);
    assert_eq!(w.tcp(From::Pod("a"), w.v4("b"), 80), Passed);
    assert_eq!(w.tcp(From::Pod("a"), w.v6("c"), 80), DENIED);
}

fn world(config: Config) -> World {
    World::with(&["a", "b", "c", "d"], &[], "", config)
}

#[test]
fn a_program_that_the_kernel_refuses_closes_the_pods_that_have_it() {
    privileged(|| {
        for config in [Config::default(), unguarded()] {
            let w = world(config);
            submit(&w, update(overlapping(), Some(allow_set(3, 0))));
            only_b_is_closed(&w, "the kernel refused to add elements inet moat ingress-ba");
            // It is tried again by itself, and nobody is hurt by that.
            let refusals = w.dataplane().stats().refusals();
            until(|| w.dataplane().stats().refusals() >= refusals + 2);
            only_b_is_closed(&w, "the kernel refused to add elements inet moat ingress-ba");
            open_again(&w);
        }
    });
}

#[test]
fn an_agent_that_starts_with_something_refused_puts_the_rest_in_force() {
    privileged(|| {
        let mut w = world(Config::default());
        w.dataplane = None;
        let mut first = w.whole();
        first.merge(update(overlapping(), Some(allow_set(3, 0))));
        w.start(first);
        only_b_is_closed(&w, "ingress-ba");
        open_again(&w);
    });
}

/// The kernel does not say whose fault it is that a batch does not fit: it is found by halves.
#[test]
fn a_batch_that_is_too_large_closes_the_pod_whose_set_it_is() {
    in_user_namespace(|| {
        let most: u32 =
            std::fs::read_to_string("/proc/sys/net/core/wmem_max").unwrap().trim().parse().unwrap();
        // The kernel doubles what it is told, and an element of an IPv6 address, a protocol and a port has 36 bytes.
        let too_many = named_set(most * 2 / 36 + 1);
        let named = || Program { named: Some(SET), ..Program::default() };
        let mut w = world(Config::default());
        submit(&w, update(named(), Some(too_many.clone())));
        only_b_is_closed(&w, "does not fit the socket's send buffer");
        open_again(&w);

        w.dataplane = None;
        let mut first = w.whole();
        first.merge(update(named(), Some(too_many)));
        w.start(first);
        only_b_is_closed(&w, "does not fit the socket's send buffer");
        // A smaller one is taken.
        let set = SetChange::Create(Arc::new(named_set(10)));
        let policy = NodeDelta { sets: BTreeMap::from([(SET, set)]), ..NodeDelta::default() };
        submit(&w, Update { policy, ..Update::default() });
        assert_eq!(why(&w, "b"), None);
        assert_eq!(w.tcp(From::Pod("a"), w.v4("b"), 80), DENIED);
    });
}

/// Somebody else's set or chain of that name is in the way: it goes, and nobody is closed for it.
#[test]
fn a_name_that_somebody_else_took_is_taken_back() {
    privileged(|| {
        let w = world(unguarded());
        for taken in [
            format!("nft add set inet moat pods4-{SET} {{ type ether_addr ; }}"),
            format!("nft add chain inet moat ingress-{BAD} {{ type filter hook output priority 3 ; }}"),
            format!("nft add map inet moat ingress-{BAD}-ports {{ type mark : verdict ; }}"),
        ] {
            let class = |port| PortClass { ports: vec![ports(port, port)], allow: Allow::Set(SET) };
            let program = Program { classes: [1, 2, 3, 4].map(class).into(), ..Program::default() };
            w.node.command(&taken);
            submit(&w, update(program, Some(allow_set(3, 0))));
            assert_eq!(w.dataplane().closed().borrow().len(), 0, "{taken}");
            assert_eq!(w.tcp(From::Pod("a"), w.v4("b"), 80), DENIED, "{taken}");
            open_again(&w);
        }
    });
}

#[test]
fn above_a_limit_the_pod_is_closed_and_says_why() {
    privileged(|| {
        let limits = Limits { classes: 5, prefixes: 10, elements: 100 };
        let w = world(Config { limits, ..Config::default() });
        let classes = |count| {
            let class = |n| PortClass { ports: vec![ports(n, n)], allow: Allow::Set(SET) };
            Program { classes: (0..count).map(|n| class(100 + 2 * n)).collect(), ..Program::default() }
        };
        for (program, set, words) in [
            (classes(6), allow_set(1, 0), "6 classes of ports for it, and --max-classes-per-pod is 5"),
            (one_class(), allow_set(0, 11), "11 prefixes (CIDRs less their excepts) on one class of ports"),
            (
                one_class(),
                allow_set(101, 0),
                "101 elements, with which the node would have more than --max-elements 100",
            ),
        ] {
            submit(&w, update(program, Some(set)));
            only_b_is_closed(&w, words);
            assert!(
                !w.node.command("nft list table inet moat").contains(&SET.to_string()),
                "its set is not there"
            );
            open_again(&w);
        }
        for (program, set) in
            [(classes(5), allow_set(1, 0)), (one_class(), allow_set(0, 10)), (one_class(), allow_set(100, 0))]
        {
            submit(&w, update(program, Some(set)));
            assert_eq!(why(&w, "b"), None, "at the limit");
            assert_eq!(w.tcp(From::Pod("a"), w.v4("b"), 80), DENIED);
            open_again(&w);
        }
        assert_eq!(w.dataplane().stats().refusals(), 0);
    });
}
