//! The judge, before a node that is made up: it must believe one that keeps its promises, whatever its agent goes
//! through, and find out one that does not.

use moat_policies::{Labels, NamespacedName, NetworkPolicy, Node, Object, Pod, Protocol, Selector, Traffic};

use super::super::random::Random;
use super::*;

const FROM: &str = "10.0.1.2";
const TO: &str = "10.0.2.2";

fn flow() -> FlowKey {
    let traffic = Traffic::Port(Protocol::Udp, 53);
    FlowKey { source: FROM.parse().unwrap(), destination: TO.parse().unwrap(), traffic }
}

/// Two pods on two nodes; the second may be closed to all.
fn objects(closed: bool) -> Objects {
    let pod = |name: &str, node: &str, address: &str| {
        Object::Pod(Pod {
            name: NamespacedName::new("shop", name),
            uid: None,
            labels: Labels::new(),
            node: Some(node.into()),
            addresses: vec![address.parse().unwrap()],
            ports: vec![],
            host_network: false,
            finished: false,
        })
    };
    let node = |name: &str| Object::Node(Node { name: name.into(), addresses: vec![], pod_cidrs: vec![] });
    let closing = Object::Policy(NetworkPolicy {
        name: NamespacedName::new("shop", "closed"),
        subject: Selector::everything(),
        ingress: Some(vec![]),
        egress: None,
    });
    let all = [pod("a", "one", FROM), pod("b", "two", TO), node("one"), node("two")];
    all.into_iter().chain(closed.then_some(closing)).collect()
}

fn judge() -> Judge {
    let block = |text: &str| vec![text.parse().unwrap()];
    let mut judge = Judge::new(vec![block("10.0.1.0/24"), block("10.0.2.0/24")], objects(false));
    for address in [FROM, TO] {
        judge.note(Event::Came { address: address.parse().unwrap(), at: Moment(0) });
    }
    judge
}

fn at(millis: u64) -> Moment {
    Moment(millis * 1_000_000)
}

/// What a made-up node does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    /// It is late with every change.
    Late,
    /// Once in a while it misses one.
    Misses,
    /// Flows that are there already live on.
    OldFlows,
    /// It lets everything through while its agent is dead.
    OpenWhenDead,
    /// It loses one packet in a hundred.
    Loses,
}

/// A minute of changes, kills and packets. The second node is the one that decides.
fn minute(seed: u64, flaw: Flaw) -> ChaosReport {
    let mut random = Random::new(seed);
    let mut judge = judge();
    let (mut closed, mut in_force, mut epoch) = (false, false, 0);
    let mut number = 0;
    // When the node goes over to what was written last; when its agent is started, and when it is ready.
    let (mut takes_effect, mut starts, mut ready) = (None, None, None);
    let (mut next_fault, mut opened, mut old_verdict) = (300, 0, false);
    for now in 0..60_000u64 {
        if starts == Some(now) {
            starts = None;
            judge.note(Event::Started { node: 1, at: at(now) });
            ready = Some(now + 50 + random.below(200) as u64);
            takes_effect = takes_effect.map(|_| now + 40);
        }
        if takes_effect.is_some_and(|t| t <= now) && starts.is_none() {
            takes_effect = None;
            in_force = closed;
        }
        if ready == Some(now) && takes_effect.is_none() {
            ready = None;
            judge.note(Event::Ready { node: 1, at: at(now), epoch });
        } else if ready == Some(now) {
            ready = Some(now + 1);
        }
        if now == next_fault {
            next_fault = now + 200 + random.below(400) as u64;
            if random.one_in(3) && starts.is_none() && ready.is_none() {
                judge.note(Event::Killed { node: 1, at: at(now) });
                judge.note(Event::Dead { node: 1 });
                starts = Some(now + 1 + random.below(100) as u64);
            } else {
                closed = !closed;
                epoch += 1;
                let objects = Box::new(objects(closed));
                judge.note(Event::Written { objects, before: at(now), after: at(now), early: vec![] });
                let late = if flaw == Flaw::Late { 80 } else { 0 };
                let missed = flaw == Flaw::Misses && random.one_in(10);
                takes_effect = (!missed).then(|| now + late + random.below(30) as u64);
            }
        }
        if now % 2 == 0 {
            // Every second packet is on a flow that lasts.
            let lasts = now % 4 == 0;
            if lasts && now >= opened + 5_000 {
                opened = now;
            }
            let port = if lasts { 1000 + (opened / 5_000) as u16 } else { 2000 + (number % 60_000) as u16 };
            let mut passes = !in_force;
            if lasts && flaw == Flaw::OldFlows {
                passes |= old_verdict;
                old_verdict = passes && now + 4 < opened + 5_000;
            }
            passes |= flaw == Flaw::OpenWhenDead && starts.is_some();
            passes &= !(flaw == Flaw::Loses && random.one_in(100));
            number += 1;
            let tuple = Tuple { flow: flow(), port };
            let (before, after) = (at(now), Moment(at(now).0 + 20_000));
            let sent = Sent { tuple, kind: Kind::Datagram, answer: false, opens: !lasts, before, after };
            judge.note(Event::Sent { number, sent });
            if passes {
                judge.note(Event::Arrived { number, at: after });
            }
        }
        if now % 100 == 0 {
            judge.settle(at(now));
        }
    }
    judge.report(at(60_000))
}

#[test]
fn a_node_that_keeps_its_promises_is_believed() {
    for seed in 0..6 {
        let report = minute(seed, Flaw::None);
        assert!(report.wrong.is_empty(), "seed {seed}: {:?}", report.wrong.first());
        assert!(report.allowed > 5_000 && report.denied > 5_000, "{report:?}");
        assert!(report.grace > 0 && report.resumed == 0);
    }
}

#[test]
fn every_flaw_is_found_in_every_run() {
    for flaw in [Flaw::Late, Flaw::Misses, Flaw::OldFlows, Flaw::OpenWhenDead, Flaw::Loses] {
        for seed in 0..2 {
            let report = minute(seed, flaw);
            assert!(!report.wrong.is_empty(), "{flaw:?}, seed {seed}");
            assert!(report.failures().iter().any(|f| f.contains("wrong verdicts")));
        }
    }
}

fn one(judge: &mut Judge, kind: Kind, sent: u64, arrived: Option<u64>) {
    let tuple = Tuple { flow: flow(), port: 9 };
    let sent = Sent { tuple, kind, answer: false, opens: false, before: at(sent), after: at(sent) };
    judge.note(Event::Sent { number: 1, sent });
    if let Some(arrived) = arrived {
        judge.note(Event::Arrived { number: 1, at: at(arrived) });
    }
}

fn close(judge: &mut Judge, millis: u64, closed: bool) {
    let objects = Box::new(objects(closed));
    judge.note(Event::Written { objects, before: at(millis), after: at(millis), early: vec![] });
}

#[test]
fn data_that_tcp_sends_again_is_judged_by_when_it_arrives() {
    // Written while it was allowed, lost in between, and sent again when that is allowed again.
    let mut allowed = judge();
    close(&mut allowed, 100, true);
    one(&mut allowed, Kind::Frame, 200, Some(700));
    close(&mut allowed, 500, false);
    let report = allowed.report(at(1000));
    assert_eq!((report.allowed, report.wrong.len()), (1, 0));
    // And sent again while it is denied.
    let mut denied = judge();
    one(&mut denied, Kind::Frame, 50, Some(700));
    close(&mut denied, 100, true);
    let report = denied.report(at(1000));
    assert_eq!((report.wrong_denied, report.wrong.len()), (1, 1));
}

/// The node that data leaves has decided upon it before it waits for the other one to be found behind a link that is whole again: it
/// arrives long after, and another policy may be in force then on the side that has decided.
#[test]
fn data_that_waited_behind_a_cut_link_was_decided_upon_before() {
    let arrives = |cut: Option<(u64, u64)>| {
        let mut judge = judge();
        if let Some((from, until)) = cut {
            judge.note(Event::Cut { node: 0, from: at(from), until: at(until) });
        }
        one(&mut judge, Kind::Frame, 6200, Some(6800));
        close(&mut judge, 6600, true);
        let report = judge.report(at(9000));
        (report.grace, report.wrong_denied)
    };
    assert_eq!(arrives(Some((5780, 6150))), (1, 0));
    assert_eq!(arrives(None), (0, 1));
    assert_eq!(arrives(Some((2000, 2400))), (0, 1), "long whole again");
}

#[test]
fn what_has_no_way_is_no_proof_and_what_arrives_all_the_same_is() {
    let cut = Event::Cut { node: 0, from: at(100), until: at(200) };
    let mut lost = judge();
    lost.note(cut);
    one(&mut lost, Kind::Datagram, 150, None);
    let report = lost.report(at(9000));
    assert_eq!((report.undeliverable, report.judged(), report.wrong.len()), (1, 0, 0));

    let mut gone = judge();
    close(&mut gone, 100, true);
    gone.note(Event::Went { address: TO.parse().unwrap(), at: at(1000) });
    one(&mut gone, Kind::Datagram, 2000, Some(2001));
    assert_eq!(gone.report(at(9000)).wrong_denied, 1);
}

#[test]
fn a_connection_may_break_when_it_was_denied_or_its_end_went_away() {
    let broke = |at| {
        let tuple = Tuple { flow: flow(), port: 9 };
        Event::Broke { tuple, at, how: "reset".into() }
    };
    let mut allowed = judge();
    one(&mut allowed, Kind::Connect, 2000, Some(2001));
    allowed.note(broke(at(5000)));
    assert_eq!(allowed.report(at(9000)).broken.len(), 1);

    let mut denied = judge();
    one(&mut denied, Kind::Connect, 2000, Some(2001));
    close(&mut denied, 3000, true);
    close(&mut denied, 4000, false);
    denied.note(broke(at(5000)));
    assert_eq!(denied.report(at(9000)).broken.len(), 0);

    let mut gone = judge();
    one(&mut gone, Kind::Connect, 2000, Some(2001));
    gone.note(Event::Went { address: TO.parse().unwrap(), at: at(4500) });
    gone.note(broke(at(5000)));
    assert_eq!(gone.report(at(9000)).broken.len(), 0);
}

#[test]
fn tables_that_others_changed_have_their_time_to_be_restored() {
    let mut judge = judge();
    close(&mut judge, 100, true);
    judge.note(Event::Damaged { node: 1, from: at(1000), until: at(2000) });
    one(&mut judge, Kind::Datagram, 1900, Some(1901));
    let report = judge.report(at(9000));
    assert_eq!((report.restoring, report.wrong.len()), (1, 0));
}
