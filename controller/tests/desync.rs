//! Whatever a watch says, however often, in whatever order, with whatever lost and listed again: what is compiled in the end is
//! what a compile from scratch makes of the objects that the API server has. No clock is asked anywhere, so none can jump.
#![allow(clippy::unwrap_used)]

#[path = "../../policies/tests/support/mod.rs"]
#[allow(dead_code, reason = "the engine's tests use the rest")]
mod support;

mod scratch;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use moat_api::{Hello, LEVEL, Told};
use moat_apiserver::{Heard, Held, Said};
use moat_controller::index::Index;
use moat_policies::{Key, Limits, Object, Objects};
use proptest::prelude::*;
use tokio::sync::Notify;

use support::{NODES, compiled, object};

const KINDS: usize = 5;

#[derive(Clone, Debug)]
enum Step {
    Write(Object),
    Remove(Key),
    /// The oldest event of a kind that has not arrived arrives.
    Deliver(usize),
    /// The second oldest overtakes it.
    Overtake(usize),
    /// An event arrives that did so before.
    Repeat(usize, prop::sample::Index),
    /// 410 Gone: a kind is listed again. Events from before are lost, or arrive late.
    Gone(usize, bool),
    /// A list ends before it is complete.
    BreakOff(usize, prop::sample::Index),
    /// The controller begins again, with nothing.
    Restart,
    /// What is known is taken over.
    Take,
}

fn step() -> impl Strategy<Value = Step> {
    let object = object().boxed();
    let kind = 0..KINDS;
    prop_oneof![
        8 => object.clone().prop_map(Step::Write),
        4 => object.prop_map(|object| Step::Remove(object.key())),
        8 => kind.clone().prop_map(Step::Deliver),
        2 => kind.clone().prop_map(Step::Overtake),
        2 => (kind.clone(), any::<prop::sample::Index>()).prop_map(|(kind, at)| Step::Repeat(kind, at)),
        1 => (kind.clone(), any::<bool>()).prop_map(|(kind, late)| Step::Gone(kind, late)),
        1 => (kind, any::<prop::sample::Index>()).prop_map(|(kind, at)| Step::BreakOff(kind, at)),
        1 => Just(Step::Restart),
        4 => Just(Step::Take),
    ]
}

fn kind(key: &Key) -> usize {
    match key {
        Key::Namespace(_) => 0,
        Key::Node(_) => 1,
        Key::Policy(_) => 2,
        Key::Pod(_) => 3,
        Key::Config => 4,
    }
}

/// An API server, and a controller that hears of it.
struct World {
    version: u64,
    stored: BTreeMap<Key, Said>,
    pending: [VecDeque<Heard>; KINDS],
    arrived: [Vec<Heard>; KINDS],
    held: Held,
    index: Index,
}

impl World {
    fn new() -> Self {
        Self {
            version: 9,
            stored: BTreeMap::new(),
            pending: Default::default(),
            arrived: Default::default(),
            held: Held::new(),
            index: Index::new(Limits::default()),
        }
    }

    fn next_version(&mut self) -> Arc<str> {
        self.version += 1;
        self.version.to_string().into()
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Write(object) => {
                let said = Said { version: self.next_version(), object, note: None };
                let key = said.object.key();
                self.pending[kind(&key)].push_back(Heard::Applied(said.clone()));
                self.stored.insert(key, said);
            }
            Step::Remove(key) => {
                if let Some(said) = self.stored.remove(&key) {
                    let said = Said { version: self.next_version(), ..said };
                    self.pending[kind(&key)].push_back(Heard::Deleted(said));
                }
            }
            Step::Deliver(kind) => {
                if let Some(heard) = self.pending[kind].pop_front() {
                    self.arrived[kind].push(heard.clone());
                    self.hear(kind, heard);
                }
            }
            Step::Overtake(kind) => {
                if self.pending[kind].len() > 1 {
                    self.pending[kind].swap(0, 1);
                }
            }
            Step::Repeat(kind, at) => {
                if !self.arrived[kind].is_empty() {
                    let heard = at.get(&self.arrived[kind]).clone();
                    self.hear(kind, heard);
                }
            }
            Step::Gone(kind, late) => {
                if !late {
                    self.pending[kind].clear();
                }
                self.list(kind);
            }
            Step::BreakOff(kind, at) => {
                let list = self.listed(kind);
                self.held.take(kind, Heard::Begin).unwrap();
                let some = at.index(list.len() + 1);
                list.into_iter().take(some).for_each(|heard| self.held.take(kind, heard).unwrap());
                self.list(kind);
            }
            Step::Restart => {
                self.held = Held::new();
                self.index = Index::new(Limits::default());
                (0..KINDS).for_each(|kind| self.list(kind));
            }
            Step::Take => {
                if let Some(news) = self.held.news() {
                    self.index.read(news.changes);
                }
            }
        }
    }

    fn hear(&mut self, kind: usize, heard: Heard) {
        if self.held.take(kind, heard).is_err() {
            self.list(kind);
        }
    }

    fn listed(&self, wanted: usize) -> Vec<Heard> {
        let of_kind = self.stored.iter().filter(|(key, _)| kind(key) == wanted);
        of_kind.map(|(_, said)| Heard::Listed(said.clone())).collect()
    }

    fn list(&mut self, kind: usize) {
        self.held.take(kind, Heard::Begin).unwrap();
        self.listed(kind).into_iter().for_each(|heard| self.held.take(kind, heard).unwrap());
        self.held.take(kind, Heard::End(self.version.to_string().into())).unwrap();
    }

    fn check(mut self) {
        let cluster = compiled(self.stored.values().map(|said| said.object.clone()));
        assert_eq!(self.index.objects(), cluster.objects());
        for name in NODES {
            let hello = Hello {
                level: LEVEL,
                node: name.into(),
                version: String::new(),
                held: Told::default().held(),
                announces_only: false,
                life: "".into(),
            };
            let id = self.index.join(&hello, Arc::new(Notify::new()));
            let (_, change) = self.index.take(id).unwrap().change.unwrap();
            let mut told = Told::default();
            told.take(change);
            assert_eq!(told, scratch::told(&cluster, name), "on {name}");
        }
    }
}

proptest! {
    #[test]
    fn what_is_compiled_in_the_end_is_what_there_is(
        began_with in prop::collection::vec(object(), 0..8),
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let mut world = World::new();
        began_with.into_iter().for_each(|object| world.step(Step::Write(object)));
        world.pending = Default::default();
        prop_assert_eq!(world.held.news(), None, "nothing is known before all kinds were listed");
        (0..KINDS).for_each(|kind| world.list(kind));
        steps.into_iter().for_each(|step| world.step(step));
        for kind in 0..KINDS {
            while !world.pending[kind].is_empty() {
                world.step(Step::Deliver(kind));
            }
        }
        world.step(Step::Take);
        world.check();
    }

    #[test]
    fn versions_are_told_as_they_are(steps in prop::collection::vec(step(), 1..80)) {
        let mut world = World::new();
        (0..KINDS).for_each(|kind| world.list(kind));
        let mut told: BTreeMap<Key, Arc<str>> = BTreeMap::new();
        for step in steps.into_iter().filter(|step| !matches!(step, Step::Restart | Step::Take)) {
            world.step(step);
            for change in world.held.news().into_iter().flat_map(|news| news.versions) {
                let before = match change.now.clone() {
                    Some(now) => told.insert(change.key, now),
                    None => told.remove(&change.key),
                };
                prop_assert_eq!(before, change.before);
            }
        }
        (0..KINDS).for_each(|kind| world.list(kind));
        let last = world.held.news().into_iter().flat_map(|news| news.versions);
        last.for_each(|change| match change.now {
            Some(now) => drop(told.insert(change.key, now)),
            None => drop(told.remove(&change.key)),
        });
        let stored = world.stored.iter().filter(|(key, _)| !matches!(key, Key::Pod(_) | Key::Node(_)));
        let stored: BTreeMap<Key, Arc<str>> = stored.map(|(key, said)| (key.clone(), said.version.clone())).collect();
        prop_assert_eq!(told, stored);
    }
}

#[test]
fn a_list_that_changes_nothing_is_no_news() {
    let mut world = World::new();
    let pod = "
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: shop}
spec: {containers: [{name: c, image: i}]}
";
    let objects: Objects = moat_manifests::decode([("p.yaml", pod.as_bytes())]).unwrap().to_objects();
    objects.into_objects().for_each(|object| world.step(Step::Write(object)));
    (0..KINDS).for_each(|kind| world.list(kind));
    assert!(world.held.news().is_some());
    (0..KINDS).for_each(|kind| world.list(kind));
    assert_eq!(world.held.news(), None);
}
