//! What the policies of one pod ask for is bounded before it is worked out.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use moat_policies::*;

const HERE: &str = "here";

fn pod(name: &str, app: &str, address: [u8; 4]) -> Object {
    Object::Pod(Pod {
        name: NamespacedName::new("shop", name),
        labels: [(Arc::from("app"), Arc::from(app))].into(),
        node: Some(HERE.into()),
        addresses: vec![address.into()],
        ports: vec![],
        host_network: false,
        finished: false,
        uid: None,
    })
}

fn rule(peer: Peer, ports: impl IntoIterator<Item = (u16, u16)>) -> Rule {
    let port = |(first, last)| PortMatch { protocol: Protocol::Tcp, port: PortRef::Range(first, last) };
    Rule { peers: Peers::Of(vec![peer]), ports: Ports::Of(ports.into_iter().map(port).collect()) }
}

fn app(n: usize) -> Peer {
    Peer::Pods { namespaces: NamespaceScope::Own, pods: Selector::label("app", format!("peer-{n}")) }
}

/// A block from which every other address of so many is taken out, so that no two of what is left merge.
fn holes(excepts: u32) -> Peer {
    let except = |n: u32| format!("100.64.{}.{}/32", n / 128 % 256, n % 128 * 2).parse().unwrap();
    Peer::Block(Block::new("100.64.0.0/16".parse().unwrap(), (0..excepts).map(except)).unwrap())
}

/// One policy a rule, all with the same subject.
fn policies(rules: impl IntoIterator<Item = Rule>) -> Vec<Object> {
    let policy = |(n, rule)| {
        Object::Policy(NetworkPolicy {
            name: NamespacedName::new("shop", format!("policy-{n}")),
            subject: Selector::label("app", "server"),
            ingress: Some(vec![rule]),
            egress: None,
        })
    };
    rules.into_iter().enumerate().map(policy).collect()
}

/// What a commit says about the subject of these policies, and how long it took.
fn compiled(limits: Limits, policies: Vec<Object>) -> (Arc<Program>, NodeDelta, Duration) {
    let mut cluster = Cluster::with_limits(limits);
    cluster.apply(pod("server", "server", [10, 0, 0, 1]));
    policies.into_iter().for_each(|policy| cluster.apply(policy));
    let begin = Instant::now();
    let delta = cluster.commit().remove(HERE).unwrap();
    let took = begin.elapsed();
    let ingress = delta.pods[&NamespacedName::new("shop", "server")].unwrap().ingress.unwrap();
    (delta.programs[&ingress].clone().unwrap(), delta, took)
}

const LIMITS: Limits = Limits { classes: 256, work: 256 << 13 };

/// Generous, since tests run in debug builds on busy machines: what these tests catch takes minutes there.
const SOON: Duration = Duration::from_secs(20);

/// Everything that is above a limit comes to one program that allows nobody, soon, and takes nothing else to the node.
fn assert_exceeds(excess: Excess, policies: Vec<Object>) {
    let (program, delta, took) = compiled(LIMITS, policies);
    assert_eq!(*program, Program { excess: Some(excess), ..Program::default() });
    assert_eq!((delta.programs.len(), delta.sets.len()), (1, 0));
    assert!(took < SOON, "{took:?}");
    println!("{excess:?}: {took:?}");
}

#[test]
fn a_port_and_a_peer_each_are_a_class_each() {
    let each = |n: usize| rule(app(n), [(1_000 + 2 * n as u16, 1_000 + 2 * n as u16)]);
    let (program, delta, _) = compiled(LIMITS, policies((0..256).map(each)));
    assert_eq!((program.classes.len(), delta.sets.len(), program.excess), (256, 256, None), "at the limit");
    assert_exceeds(Excess::Classes(256), policies((0..5_000).map(each)));
}

#[test]
fn ranges_that_overlap_are_not_worked_out() {
    assert_exceeds(Excess::Classes(256), policies((0..20_000).map(|n| rule(app(n), [(n as u16, u16::MAX)]))));
}

#[test]
fn many_peers_on_many_ports_of_few_classes_are_not_worked_out() {
    let everywhere = (0..5_000).map(|n| rule(app(n), [(1, u16::MAX)]));
    let odd = rule(app(5_000), (0..30_000).map(|n| (2 * n + 1, 2 * n + 1)));
    assert_exceeds(Excess::Work(LIMITS.work), policies(everywhere.chain([odd])));
}

#[test]
fn long_lists_of_prefixes_on_many_ports_are_not_worked_out() {
    let mut many: Vec<Rule> =
        (0..60).map(|n| rule(holes((1 << 14) - u32::from(n)), [(1_000 + n, 2_000 - n)])).collect();
    many.extend((0..60).map(|n| rule(holes(n), [(1_000 + n as u16, 2_000)])));
    assert_exceeds(Excess::Work(LIMITS.work), policies(many));
}

#[test]
fn one_long_list_on_many_ports_is_no_work() {
    let on_all = Rule { ports: Ports::Any, ..rule(holes(1 << 14), []) };
    let each = |n: usize| rule(app(n), [(1_000 + 2 * n as u16, 1_000 + 2 * n as u16)]);
    let (program, ..) = compiled(LIMITS, policies((0..256).map(each).chain([on_all])));
    assert_eq!((program.classes.len(), program.excess), (256, None));
}

#[test]
fn above_a_limit_nothing_changes_for_the_node_and_below_it_all_is_there_again() {
    let each = |n: usize, peer: usize| rule(app(peer), [(1_000 + 2 * n as u16, 1_000 + 2 * n as u16)]);
    let mut cluster = Cluster::with_limits(Limits { classes: 5, ..Limits::default() });
    cluster.apply(pod("server", "server", [10, 0, 0, 1]));
    policies((0..6).map(|n| each(n, n))).into_iter().for_each(|policy| cluster.apply(policy));
    cluster.commit();
    policies([each(0, 9)]).into_iter().for_each(|policy| cluster.apply(policy));
    assert_eq!(cluster.commit(), [].into(), "still too many");
    cluster.delete(&Key::Policy(NamespacedName::new("shop", "policy-5")));
    let delta = cluster.commit().remove(HERE).unwrap();
    assert_eq!(delta.sets.len(), 5);
    let programs: Vec<bool> = delta.programs.values().map(Option::is_some).collect();
    assert_eq!(programs.iter().filter(|there| **there).count(), 1);
    assert_eq!(programs.len(), 2, "the new one comes, the one of the excess goes");
}
