//! A CA through its life, with clocks that jump, kubelets that are slow, and replicas that race.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::authority::certificate::ALWAYS;

const LIFETIMES: Lifetimes = Lifetimes {
    ca: Duration::from_secs(9000),
    settle: Duration::from_secs(600),
    leaf: Duration::from_secs(1000),
};

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + ALWAYS + Duration::from_secs(seconds)
}

fn ca(name: u8, until: u64) -> Certificate {
    Certificate::new(vec![name], at(until))
}

fn state(signing: Option<&Certificate>, next: Option<&Certificate>, bundle: &[&Certificate]) -> State {
    let bundle = bundle.iter().map(|&certificate| certificate.clone()).collect();
    State { signing: signing.cloned(), next: next.cloned(), bundle }
}

#[test]
fn each_state_has_its_step() {
    let (old, one, two) = (ca(0, 5000), ca(1, 9000), ca(2, 15000));
    let settled = |names: &'static [u8]| {
        move |c: &Certificate| match names
            .iter()
            .any(|&name| *c == ca(name, 5000) || *c == ca(name, 9000) || *c == ca(name, 15000))
        {
            true => LIFETIMES.settle,
            false => Duration::ZERO,
        }
    };
    let table = [
        ("nothing", state(None, None, &[]), settled(&[]), 0, Some(Step::MakeSigning)),
        ("lost", state(None, None, &[&one]), settled(&[1]), 0, Some(Step::MakeSigning)),
        (
            "unpublished",
            state(Some(&one), None, &[]),
            settled(&[]),
            0,
            Some(Step::Publish(vec![one.clone()])),
        ),
        ("young", state(Some(&one), None, &[&one]), settled(&[]), 0, None),
        ("two thirds", state(Some(&one), None, &[&one]), settled(&[1]), 6000, None),
        ("a third left", state(Some(&one), None, &[&one]), settled(&[1]), 6001, Some(Step::MakeNext)),
        (
            "the next is not out",
            state(Some(&one), Some(&two), &[&one]),
            settled(&[1]),
            6001,
            Some(Step::Publish(vec![one.clone(), two.clone()])),
        ),
        (
            "the next is not everywhere",
            state(Some(&one), Some(&two), &[&one, &two]),
            settled(&[1]),
            6500,
            None,
        ),
        ("it is", state(Some(&one), Some(&two), &[&one, &two]), settled(&[1, 2]), 6601, Some(Step::Promote)),
        (
            "no time to wait",
            state(Some(&one), Some(&two), &[&one, &two]),
            settled(&[1]),
            9000,
            Some(Step::Promote),
        ),
        (
            "the next is over, too",
            state(Some(&one), Some(&two), &[&one, &two]),
            settled(&[1, 2]),
            15000,
            Some(Step::MakeNext),
        ),
        ("the old one is believed", state(Some(&one), None, &[&one, &old]), settled(&[1]), 4999, None),
        (
            "until it is over",
            state(Some(&one), None, &[&one, &old]),
            settled(&[1]),
            5000,
            Some(Step::Publish(vec![one.clone()])),
        ),
        (
            "or the new one is not everywhere",
            state(Some(&one), None, &[&one, &old]),
            settled(&[]),
            5000,
            None,
        ),
    ];
    for (what, state, settled, now, step) in table {
        assert_eq!(decide(&state, settled, at(now), LIFETIMES), step, "{what}");
    }
}

/// The objects, replicas that keep them, and an agent that has what the kubelet has brought.
struct World {
    state: State,
    version: u64,
    made: u8,
    /// Time that nobody sets.
    clock: u64,
    replicas: Vec<Replica>,
    /// Bundles with the time since when they were there.
    published: Vec<(u64, Vec<Certificate>)>,
}

#[derive(Default)]
struct Replica {
    /// How far its clock of the day is from the right one.
    off: i64,
    /// What it has read, to act on later.
    read: Option<(u64, State)>,
    since: BTreeMap<Vec<u8>, u64>,
    leaf: Option<(Certificate, u64)>,
}

/// How long the slowest kubelet takes.
const DELIVERY: u64 = 300;

impl World {
    fn new(replicas: usize) -> Self {
        let replicas = (0..replicas).map(|_| Replica::default()).collect();
        Self { state: State::default(), version: 0, made: 0, clock: 0, replicas, published: Vec::new() }
    }

    fn today(&self, off: i64) -> SystemTime {
        at(100_000).checked_add(Duration::from_secs(self.clock)).unwrap()
            + Duration::from_secs(off.max(0).unsigned_abs())
            - Duration::from_secs(off.min(0).unsigned_abs())
    }

    fn read(&mut self, who: usize) {
        let replica = &mut self.replicas[who];
        replica.read = Some((self.version, self.state.clone()));
        let names = |c: &Certificate| c.pem().into_bytes();
        let bundle = &self.state.bundle;
        replica.since.retain(|name, _| bundle.iter().any(|c| names(c) == *name));
        for certificate in bundle {
            replica.since.entry(names(certificate)).or_insert(self.clock);
        }
    }

    /// Does what follows from what was read; false if nothing does.
    fn act(&mut self, who: usize) -> bool {
        let Some((version, state)) = self.replicas[who].read.take() else { return false };
        let now = self.today(self.replicas[who].off);
        let (clock, since) = (self.clock, &self.replicas[who].since);
        let settled = |certificate: &Certificate| {
            Duration::from_secs(since.get(certificate.pem().as_bytes()).map_or(0, |since| clock - since))
        };
        let Some(step) = decide(&state, settled, now, LIFETIMES) else {
            let leaf = &mut self.replicas[who].leaf;
            let signing = state.signing.unwrap();
            let old = leaf.as_ref().is_none_or(|(issuer, made)| {
                !state.bundle.contains(issuer) || clock >= made + LIFETIMES.leaf.as_secs() / 2
            });
            if old {
                *leaf = Some((signing, clock));
            }
            return false;
        };
        if version != self.version {
            return true;
        }
        self.version += 1;
        let mut make = || {
            self.made += 1;
            Certificate::new(vec![self.made], now + LIFETIMES.ca)
        };
        match step {
            Step::MakeSigning => self.state.signing = Some(make()),
            Step::MakeNext => self.state.next = Some(make()),
            Step::Promote => self.state.signing = self.state.next.take(),
            Step::Publish(bundle) => {
                self.state.bundle = bundle.clone();
                self.published.push((clock, bundle));
            }
        }
        true
    }

    fn turn(&mut self, who: usize) {
        for _ in 0..16 {
            self.read(who);
            if !self.act(who) {
                return;
            }
        }
        panic!("no end of steps: {:?}", self.state);
    }

    /// What the slowest agent believes.
    fn believed(&self) -> &[Certificate] {
        let old = self.published.iter().rev().find(|(since, _)| since + DELIVERY <= self.clock);
        old.map(|(_, bundle)| bundle.as_slice()).unwrap_or_default()
    }
}

#[derive(Clone, Debug)]
enum Event {
    Wait(u64),
    Turn(usize),
    Read(usize),
    Act(usize),
    Restart(usize),
    Jump(usize, i64),
}

fn events(jumps: bool) -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        6 => (1u64..400).prop_map(Event::Wait),
        4 => (0usize..2).prop_map(Event::Turn),
        1 => (0usize..2).prop_map(Event::Read),
        1 => (0usize..2).prop_map(Event::Act),
        1 => (0usize..2).prop_map(Event::Restart),
        u32::from(jumps) => (0usize..2, -90_000i64..90_000).prop_map(|(who, off)| Event::Jump(who, off)),
    ];
    prop::collection::vec(event, 1..200)
}

fn run(
    events: Vec<Event>,
    mut look: impl FnMut(&World) -> Result<(), TestCaseError>,
) -> Result<(), TestCaseError> {
    let mut world = World::new(2);
    world.turn(0);
    // The first pods start once the first bundle is there.
    world.clock += DELIVERY;
    world.turn(1);
    for event in events {
        match event {
            // Time goes by in the steps in which replicas look.
            Event::Wait(seconds) => {
                for _ in 0..seconds.div_ceil(60) {
                    world.clock += 60;
                    (0..2).for_each(|who| world.turn(who));
                    look(&world)?;
                }
            }
            Event::Turn(who) => world.turn(who),
            Event::Read(who) => world.read(who),
            Event::Act(who) => drop(world.act(who)),
            Event::Restart(who) => {
                let off = world.replicas[who].off;
                world.replicas[who] = Replica { off, ..Replica::default() };
                world.turn(who);
            }
            Event::Jump(who, off) => world.replicas[who].off = off,
        }
        look(&world)?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn agents_always_believe_who_is_shown_to_them(events in events(false)) {
        run(events, |world| {
            for replica in &world.replicas {
                let (issuer, made) = replica.leaf.as_ref().unwrap();
                prop_assert!(world.believed().contains(issuer), "{issuer:?} is not among {:?}", world.believed());
                prop_assert!(world.today(0) < issuer.not_after());
                prop_assert!(world.clock < made + LIFETIMES.leaf.as_secs());
            }
            prop_assert!(world.state.bundle.len() <= 3, "the bundle grows: {:?}", world.state.bundle);
            Ok(())
        })?;
    }

    #[test]
    fn no_jump_takes_what_is_valid_out_of_the_bundle(events in events(true)) {
        let mut before: Vec<Certificate> = Vec::new();
        run(events, |world| {
            let today = world.today(0);
            prop_assert!(world.state.bundle.iter().any(|c| world.state.signing.as_ref() == Some(c)));
            for certificate in before.iter().filter(|&c| !world.state.bundle.contains(c)) {
                // What is valid goes only for one that agents have had for long enough, whatever the clock says.
                let settled = world.state.bundle.iter().any(|c| world.believed().contains(c));
                prop_assert!(certificate.not_after() <= today || settled);
            }
            before.clone_from(&world.state.bundle);
            Ok(())
        })?;
    }
}
