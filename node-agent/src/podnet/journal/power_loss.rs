//! What a crash can leave of the state file, tried out: every operation on the disk is written down while pods come and
//! go, and every state that the disk can be in after a crash at any of them is read back.
//!
//! What the disk is believed to do is little. A file's bytes are sure to be there when a sync of the file has
//! returned, and a name when a sync of its folder has; before that, of the operations since, any first part may have
//! reached the disk, for each file and for the names apart, and of the last write any first part, or as many zeros, or zeros
//! before the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::prelude::*;

use super::super::disk::Op;
use super::super::links::PodLink;
use super::super::settle::settle;
use super::tests::{attachment, key};
use super::*;

/// What has happened to the pods up to some operation, as their runtimes see it.
#[derive(Clone, Debug, Default)]
struct Told {
    /// ADD has answered, DEL was not asked for.
    living: BTreeMap<String, IpAddr>,
    /// The link exists.
    linked: BTreeMap<String, IpAddr>,
    /// ADD or DEL under way: it may be recorded or not.
    under_way: BTreeMap<String, IpAddr>,
}

impl Told {
    fn mark(&mut self, mark: &str) {
        let words: Vec<&str> = mark.split(' ').collect();
        let [what, container, address] = words[..] else { panic!("{mark}") };
        let entry = (container.to_owned(), address.parse().unwrap());
        match what {
            "asked" => self.under_way.extend([entry]),
            "linked" => self.linked.extend([entry]),
            "told" => {
                self.under_way.remove(container);
                self.living.extend([entry]);
            }
            "unasked" => {
                self.living.remove(container);
                self.under_way.extend([entry]);
            }
            "unlinked" => drop(self.linked.remove(container)),
            "gone" => drop(self.under_way.remove(container)),
            _ => panic!("{mark}"),
        }
    }
}

/// A disk as its operations are believed to work.
#[derive(Clone, Debug, Default)]
struct Model {
    files: BTreeMap<usize, Bytes>,
    /// The names that are sure, and every later state of them.
    names: BTreeMap<String, usize>,
    later: Vec<BTreeMap<String, usize>>,
}

#[derive(Clone, Debug, Default)]
struct Bytes {
    sure: Vec<u8>,
    later: Vec<Vec<u8>>,
}

impl Bytes {
    fn all(&self) -> Vec<u8> {
        self.later.iter().fold(self.sure.clone(), |all, write| [all, write.clone()].concat())
    }

    /// Every state that the file can be in after the machine died.
    fn possible(&self) -> BTreeSet<Vec<u8>> {
        let mut states = BTreeSet::from([self.sure.clone()]);
        let mut before = self.sure.clone();
        for write in &self.later {
            // Every byte of a short line; of a long one, enough places.
            let step = (write.len() / 24).max(1);
            for cut in (0..write.len()).step_by(step).chain([write.len() - 1, write.len()]) {
                let (head, tail) = write.split_at(cut);
                let zeros = |length: usize| vec![0u8; length];
                states.insert([before.as_slice(), head].concat());
                states.insert([before.as_slice(), head, &zeros(tail.len())].concat());
                states.insert([before.as_slice(), &zeros(head.len()), tail].concat());
            }
            before.extend(write);
        }
        // A page of an earlier write that did not make it, before later ones that did.
        if let [first, rest @ ..] = &self.later[..] {
            states.insert([self.sure.clone(), vec![0; first.len()], rest.concat()].concat());
        }
        states
    }
}

impl Model {
    fn apply(&mut self, op: &Op) {
        let mut names = self.now();
        match op {
            Op::Create(id, name) => drop(names.insert(name.clone(), *id)),
            Op::Rename(from, to) => {
                if let Some(id) = names.remove(from) {
                    names.insert(to.clone(), id);
                }
            }
            Op::Append(id, bytes) => self.files.entry(*id).or_default().later.push(bytes.clone()),
            Op::SyncFile(id) => {
                let file = self.files.entry(*id).or_default();
                *file = Bytes { sure: file.all(), later: Vec::new() };
            }
            Op::SyncFolder => {
                self.names = names.clone();
                self.later.clear();
            }
            Op::Mark(_) => {}
        }
        if names != self.now() {
            self.later.push(names);
        }
    }

    fn now(&self) -> BTreeMap<String, usize> {
        self.later.last().unwrap_or(&self.names).clone()
    }

    /// What the state file can be after the machine died: `None` for not there.
    fn possible(&self) -> BTreeSet<Option<Vec<u8>>> {
        let mut states = BTreeSet::new();
        for names in [&self.names].into_iter().chain(&self.later) {
            match names.get(FILE).and_then(|id| self.files.get(id)) {
                None => drop(states.insert(None)),
                Some(bytes) => states.extend(bytes.possible().into_iter().map(Some)),
            }
        }
        states
    }

    /// What it is after only the agent died.
    fn exact(&self) -> Option<Vec<u8>> {
        self.now().get(FILE).and_then(|id| self.files.get(id)).map(Bytes::all)
    }
}

fn read(bytes: Option<&[u8]>) -> Decoded {
    bytes.map_or_else(Decoded::default, |bytes| decode(bytes).unwrap())
}

fn link(container: &str, address: IpAddr, index: u32, alias: bool) -> PodLink {
    let mut pod = PodLink::of(&attachment(container, &address.to_string()), index);
    if !alias {
        pod.link.alias.clear();
    }
    pod
}

/// After the machine died: no link is there, so every attachment's address is about to rest. None that a pod was told may look
/// as if nobody had had it, and none may have two owners.
fn machine_died(told: &Told, bytes: Option<&[u8]>) {
    let contents = read(bytes).contents;
    let mut owners: BTreeMap<IpAddr, &str> = BTreeMap::new();
    for a in contents.attachments() {
        for address in a.addresses() {
            let before = owners.insert(address, &a.container_id);
            assert_eq!(before, None, "{address} has two owners: {contents:?}");
        }
    }
    for (container, address) in &told.living {
        assert_eq!(
            owners.get(address),
            Some(&container.as_str()),
            "{container} was told {address}: {contents:?}"
        );
    }
}

/// After the agent died: the links are there, and each keeps its addresses, whether it tells them itself or not.
fn agent_died(told: &Told, bytes: Option<&[u8]>) {
    let decoded = read(bytes);
    assert_eq!(decoded.damaged, None);
    for with_alias in [true, false] {
        let links: Vec<PodLink> = told
            .linked
            .iter()
            .zip(1..)
            .map(|((container, address), index)| link(container, *address, index, with_alias))
            .collect();
        let settled = settle(decoded.contents.attachments(), &links);
        let kept: BTreeMap<String, IpAddr> = settled
            .kept
            .iter()
            .flat_map(|kept| kept.attachment.addresses().map(|a| (kept.attachment.container_id.clone(), a)))
            .collect();
        assert_eq!(kept, told.linked, "alias: {with_alias}");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Add,
    Del(usize),
    /// The file is written anew, as at a start or when it has grown.
    Renew,
    /// DEL does not wait for the disk; ADD does.
    AddUnsynced,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Add),
        3 => any::<usize>().prop_map(Step::Del),
        1 => Just(Step::Renew),
        1 => Just(Step::AddUnsynced),
    ]
}

/// Runs the steps on a real folder and returns what was asked of the disk.
fn run(steps: &[Step]) -> Vec<Op> {
    let folder = tempfile::tempdir().unwrap();
    let (mut journal, _) = Journal::open(folder.path(), Clock::of_boot("one")).unwrap();
    let recorder = journal.disk.recorder.clone();
    let mark = |what: &str, container: &str, address: IpAddr| {
        recorder.record(Op::Mark(format!("{what} {container} {address}")));
    };
    journal.renew().unwrap();
    let mut living: Vec<(String, IpAddr)> = Vec::new();
    // Few addresses, given again at once: what the rest would otherwise keep apart.
    let free = |living: &[(String, IpAddr)]| {
        (1..=4u8).map(|n| IpAddr::from([10, 1, 0, n])).find(|a| living.iter().all(|(_, held)| held != a))
    };
    for (n, step) in steps.iter().enumerate() {
        match step {
            Step::Renew => journal.renew().unwrap(),
            Step::Add | Step::AddUnsynced => {
                let Some(address) = free(&living) else { continue };
                let container = format!("c{n}");
                mark("asked", &container, address);
                journal.attach(attachment(&container, &address.to_string())).unwrap();
                mark("linked", &container, address);
                if matches!(step, Step::Add) {
                    journal.durable().sync(&journal.path()).unwrap();
                    mark("told", &container, address);
                }
                living.push((container, address));
            }
            Step::Del(_) if living.is_empty() => {}
            Step::Del(which) => {
                let (container, address) = living.remove(which % living.len());
                mark("unasked", &container, address);
                mark("unlinked", &container, address);
                journal.release(&key(&container), journal.clock.now());
                mark("gone", &container, address);
            }
        }
    }
    recorder.ops()
}

/// Tries every crash; returns how many states of the disk were read.
fn try_every_crash(ops: &[Op]) -> usize {
    let (mut model, mut told, mut tried) = (Model::default(), Told::default(), 0);
    for op in ops {
        if let Op::Mark(mark) = op {
            told.mark(mark);
        }
        model.apply(op);
        for state in model.possible() {
            machine_died(&told, state.as_deref());
            tried += 1;
        }
        agent_died(&told, model.exact().as_deref());
    }
    tried
}

#[test]
fn no_crash_makes_an_address_go_out_twice() {
    use Step::{Add, AddUnsynced, Del, Renew};
    let ops = run(&[Add, Add, Del(0), Add, AddUnsynced, Del(1), Renew, Add, Del(0), Del(0), Add, Renew, Add]);
    let tried = try_every_crash(&ops);
    assert!(tried > 1000, "{tried}");
    assert!(ops.iter().any(|op| matches!(op, Op::Rename(..))) && ops.contains(&Op::SyncFolder));
}

/// The model is worth something only if it finds what is wrong: leave out any kind of sync, and it does.
#[test]
fn without_a_sync_it_is_found() {
    let ops = run(&[Step::Add, Step::Add, Step::Renew, Step::Add]);
    let without = |what: fn(&Op) -> bool| -> Vec<Op> { ops.iter().filter(|op| !what(op)).cloned().collect() };
    for left_out in [without(|op| matches!(op, Op::SyncFile(_))), without(|op| *op == Op::SyncFolder)] {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let found = std::panic::catch_unwind(|| try_every_crash(&left_out));
        std::panic::set_hook(hook);
        assert!(found.is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn no_crash_makes_an_address_go_out_twice_whatever_happened(steps in prop::collection::vec(step(), 1..14)) {
        try_every_crash(&run(&steps));
    }
}
