//! What is given when, and that an address has one owner at a time.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::block::WINDOW;
use super::*;

fn ipam(v4: Option<&str>, v6: Option<&str>, rest: Duration) -> Ipam {
    let mut ipam = Ipam::new(rest);
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    ipam.set_blocks(v4.map(net), v6.map(net), BTreeSet::new());
    ipam
}

/// Where nobody is to be told of releases.
fn at(now: u64) -> Moment {
    Moment { now, answered: u64::MAX }
}

fn v4(ipam: &mut Ipam, now: u64) -> Result<String, IpamError> {
    ipam.allocate(at(now)).map(|a| a.v4.unwrap().to_string())
}

#[test]
fn first_and_last_are_left_out() {
    let mut small = ipam(Some("10.1.0.0/30"), None, Duration::ZERO);
    assert_eq!(v4(&mut small, 0).unwrap(), "10.1.0.1");
    assert_eq!(v4(&mut small, 0).unwrap(), "10.1.0.2");
    let full = v4(&mut small, 0).unwrap_err();
    assert_eq!(
        full.to_string(),
        "all 2 addresses of 10.1.0.0/30 are taken: 2 by pods; remove pods, or give the node a larger podCIDR"
    );
    // Two addresses or one: nothing to leave out.
    let mut two = ipam(Some("10.1.0.6/31"), None, Duration::ZERO);
    assert_eq!(v4(&mut two, 0).unwrap(), "10.1.0.6");
    assert_eq!(v4(&mut two, 0).unwrap(), "10.1.0.7");
    let mut one = ipam(None, Some("fd00::9/128"), Duration::ZERO);
    assert_eq!(one.allocate(at(0)).unwrap().v6.unwrap().to_string(), "fd00::9");
    let mut last = ipam(Some("255.255.255.252/30"), None, Duration::ZERO);
    assert_eq!(v4(&mut last, 0).unwrap(), "255.255.255.253");
    let mut top = ipam(None, Some("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/127"), Duration::ZERO);
    assert!(top.allocate(at(0)).is_ok() && top.allocate(at(0)).is_ok() && top.allocate(at(0)).is_err());
}

#[test]
fn a_wide_block_is_used_from_its_start() {
    let mut wide = ipam(None, Some("fd00:1::/64"), Duration::ZERO);
    assert_eq!(wide.allocate(at(0)).unwrap().v6.unwrap().to_string(), "fd00:1::1");
    for _ in 1..WINDOW {
        wide.allocate(at(0)).unwrap();
    }
    assert!(matches!(wide.allocate(at(0)), Err(IpamError::Full(Full { usable: WINDOW, next: None, .. }))));
}

#[test]
fn both_families_or_none() {
    let mut dual = ipam(Some("10.1.0.0/24"), Some("fd00::/127"), Duration::ZERO);
    let first = dual.allocate(at(0)).unwrap();
    assert!(first.v4.is_some() && first.v6.is_some());
    dual.allocate(at(0)).unwrap();
    let before = dual.held.clone();
    assert!(matches!(dual.allocate(at(0)), Err(IpamError::Full(Full { usable: 2, held: 2, .. }))));
    assert_eq!(dual.held, before, "a refusal must hold nothing");
    assert_eq!(Ipam::new(Duration::ZERO).allocate(at(0)), Err(IpamError::NoBlock));
}

#[test]
fn the_longest_rested_goes_first_and_never_too_early() {
    let rest = Duration::from_micros(100);
    let mut ipam = ipam(Some("10.1.0.0/29"), None, rest);
    let all: Vec<IpAddr> = (0..6).map(|_| IpAddr::V4(ipam.allocate(at(0)).unwrap().v4.unwrap())).collect();
    ipam.release(all[3], 10, 0);
    ipam.release(all[0], 20, 0);
    ipam.release(all[5], 30, 0);
    let refused = ipam.allocate(at(109)).unwrap_err();
    let IpamError::Full(full) = refused else { panic!("{refused}") };
    assert_eq!((full.held, full.next), (3, Some(Duration::from_micros(1))));
    assert_eq!(IpAddr::V4(ipam.allocate(at(110)).unwrap().v4.unwrap()), all[3]);
    assert!(ipam.allocate(at(110)).is_err());
    assert_eq!(IpAddr::V4(ipam.allocate(at(200)).unwrap().v4.unwrap()), all[0]);
    assert_eq!(IpAddr::V4(ipam.allocate(at(200)).unwrap().v4.unwrap()), all[5]);
}

#[test]
fn fresh_addresses_go_before_rested_ones() {
    let mut ipam = ipam(Some("10.1.0.0/24"), None, Duration::ZERO);
    let first = v4(&mut ipam, 0).unwrap();
    ipam.release(first.parse().unwrap(), 1, 0);
    assert_eq!(v4(&mut ipam, 2).unwrap(), "10.1.0.2");
}

#[test]
fn a_full_block_says_who_has_its_addresses_and_when_the_next_is_free() {
    let mut ipam = Ipam::new(Duration::from_secs(60));
    let node = ["10.1.0.1".parse().unwrap(), "192.0.2.1".parse().unwrap()];
    ipam.set_blocks(Some("10.1.0.0/29".parse().unwrap()), None, node.into_iter().collect());
    let all: Vec<IpAddr> = (0..5).map(|_| IpAddr::V4(ipam.allocate(at(0)).unwrap().v4.unwrap())).collect();
    ipam.release(all[0], 0, 0);
    ipam.release(all[1], 1, 0);
    assert_eq!(
        ipam.allocate(at(17_600_000)).unwrap_err().to_string(),
        "all 6 addresses of 10.1.0.0/29 are taken: 3 by pods, 1 by nodes, and 2 rest for 60 s after their last \
         pod; the next is free in 42.4 s"
    );
}

#[test]
fn where_the_past_is_forgotten_even_fresh_addresses_rest() {
    let mut ipam = ipam(Some("10.1.0.0/29"), None, Duration::from_micros(100));
    ipam.forget_before(50, 0);
    ipam.hold("10.1.0.1".parse().unwrap());
    ipam.release("10.1.0.2".parse().unwrap(), 60, 0);
    let IpamError::Full(full) = ipam.allocate(at(149)).unwrap_err() else { panic!() };
    assert_eq!((full.held, full.next), (1, Some(Duration::from_micros(1))));
    assert_eq!(v4(&mut ipam, 150).unwrap(), "10.1.0.3");
}

#[test]
fn an_address_waits_for_the_answer_to_its_release_besides_its_rest() {
    let mut ipam = ipam(Some("10.1.0.0/30"), None, Duration::from_micros(100));
    let both: Vec<IpAddr> = (0..2).map(|_| IpAddr::V4(ipam.allocate(at(0)).unwrap().v4.unwrap())).collect();
    ipam.release(both[0], 0, 7);
    ipam.release(both[1], 50, 8);
    let moment = |now, answered| Moment { now, answered };
    assert_eq!((ipam.unanswered(6), ipam.unanswered(7), ipam.unanswered(8)), (2, 1, 0));
    assert_eq!(
        ipam.allocate(moment(1_000_000, 6)).unwrap_err().to_string(),
        "all 2 addresses of 10.1.0.0/30 are taken: 0 by pods; 2 addresses wait for the controller's answer: it comes when the \
         agents of all nodes follow that their last pods are gone (see moat-controller's /readyz)"
    );
    assert!(ipam.available(moment(99, 8)).is_err(), "it rests, whatever was answered");
    // The one that was answered goes, though another has rested longer.
    let mut later = ipam.clone();
    later.release(both[0], 0, 9);
    assert_eq!(IpAddr::V4(later.allocate(moment(150, 8)).unwrap().v4.unwrap()), both[1]);
    let IpamError::Full(full) = later.allocate(moment(150, 8)).unwrap_err() else { panic!() };
    assert_eq!((full.held, full.unanswered, full.next), (1, 1, None));
    assert_eq!(IpAddr::V4(ipam.allocate(moment(100, 7)).unwrap().v4.unwrap()), both[0]);
}

#[test]
fn where_the_past_is_forgotten_nothing_goes_out_unanswered() {
    let mut ipam = ipam(Some("10.1.0.0/29"), None, Duration::ZERO);
    ipam.forget_before(0, 1);
    ipam.hold("10.1.0.1".parse().unwrap());
    ipam.release("10.1.0.2".parse().unwrap(), 0, 1);
    let IpamError::Full(full) = ipam.allocate(Moment { now: 9, answered: 0 }).unwrap_err() else { panic!() };
    assert_eq!((full.held, full.unanswered, full.next), (1, 5, None));
    assert!(ipam.allocate(Moment { now: 9, answered: 1 }).is_ok());
}

#[test]
fn what_is_somebody_elses_is_left_out() {
    let mut ipam = Ipam::new(Duration::ZERO);
    let node = ["10.1.0.1".parse().unwrap()];
    ipam.set_blocks(Some("10.1.0.0/24".parse().unwrap()), None, node.into_iter().collect());
    ipam.hold("10.1.0.2".parse().unwrap());
    assert_eq!(v4(&mut ipam, 0).unwrap(), "10.1.0.3");
}

#[test]
fn another_block_leaves_what_is_held() {
    let mut ipam = ipam(Some("10.1.0.0/30"), None, Duration::ZERO);
    let old = v4(&mut ipam, 0).unwrap();
    ipam.set_blocks(Some("10.2.0.0/30".parse().unwrap()), None, BTreeSet::new());
    assert_eq!(v4(&mut ipam, 0).unwrap(), "10.2.0.1");
    ipam.set_blocks(Some("10.1.0.0/30".parse().unwrap()), None, BTreeSet::new());
    assert_ne!(v4(&mut ipam, 0).unwrap(), old);
}

#[derive(Clone, Debug)]
enum Step {
    Allocate,
    Release(usize),
    Wait(u64),
    Answer(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::Allocate),
        2 => any::<usize>().prop_map(Step::Release),
        1 => (0..80u64).prop_map(Step::Wait),
        1 => (0..4u64).prop_map(Step::Answer),
    ]
}

proptest! {
    /// Whatever happens, an address has one owner at a time, and rests in between.
    #[test]
    fn one_owner_at_a_time(steps in prop::collection::vec(step(), 0..200)) {
        let rest = Duration::from_micros(50);
        let mut ipam = ipam(Some("10.1.0.0/28"), Some("fd00::/125"), rest);
        let mut owned: Vec<Addresses> = Vec::new();
        let mut released: BTreeMap<IpAddr, (u64, u64)> = BTreeMap::new();
        let (mut now, mut newest, mut answered) = (0, 0, 0);
        for step in steps {
            now += 1;
            match step {
                Step::Wait(time) => now += time,
                Step::Answer(more) => answered = newest.min(answered + more),
                Step::Release(which) if !owned.is_empty() => {
                    let gone = owned.remove(which % owned.len());
                    newest += 1;
                    for address in [gone.v4.map(IpAddr::V4), gone.v6.map(IpAddr::V6)].into_iter().flatten() {
                        ipam.release(address, now, newest);
                        released.insert(address, (now, newest));
                    }
                }
                Step::Release(_) => {}
                Step::Allocate => {
                    if let Ok(new) = ipam.allocate(Moment { now, answered }) {
                        prop_assert!(owned.iter().all(|o| o.v4 != new.v4 && o.v6 != new.v6));
                        for address in [new.v4.map(IpAddr::V4), new.v6.map(IpAddr::V6)].into_iter().flatten() {
                            if let Some((since, number)) = released.get(&address) {
                                prop_assert!(now - since >= 50, "{address} rested {} only", now - since);
                                prop_assert!(*number <= answered, "{address} was not answered");
                            }
                        }
                        owned.push(new);
                    }
                }
            }
        }
    }
}
