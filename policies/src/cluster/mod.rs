//! The compiler: a synchronous state machine from objects to what each node needs.
//!
//! ```text
//!   policy ─▶ rules ─┐                                       pod ─▶ profile
//!      │             ▼                                                 │
//!      └──▶ group's subject ──▶ recipe ──▶ program ──▶ allow sets ◀── groups
//!                             (commit)        └─ span ─┴─▶ NodeDelta
//! ```
//!
//! `apply` and `delete` note what a change touches; `commit` works out just that, once, however many changes came.

mod arena;
mod assemble;
mod membership;
mod nodes;
mod pods;
mod programs;
mod rules;
mod selector_index;
mod sets;
mod subjects;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;

use self::arena::Arena;
use self::membership::{GroupIx, Membership, Moved, ProfileIx};
use self::nodes::Nodes;
use self::pods::{Claims, PodEntry, PodIx};
use self::programs::{ProgramIx, Programs, RecipeKey};
use self::rules::{RuleIx, Rules};
use self::sets::{SetIx, Sets};
use self::subjects::{Subject, Touched};
use crate::{
    Direction, Key, NamespaceScope, NamespacedName, NetworkPolicy, NodeDelta, Object, Objects, Pod,
    PodPrograms, SetChange,
};

/// All objects, and what is compiled from them.
///
/// The order of changes never matters: what the nodes have after a commit depends on the objects alone.
#[derive(Default)]
pub struct Cluster {
    objects: Objects,
    members: Membership,
    rules: Rules,
    policies: HashMap<NamespacedName, Held>,
    pods: Arena<PodEntry>,
    pod_by_name: HashMap<NamespacedName, PodIx>,
    claims: Claims,
    programs: Programs,
    sets: Sets,
    nodes: Nodes,
    dirty_profiles: Vec<ProfileIx>,
    dirty_pods: Vec<PodIx>,
}

/// What a policy holds on to.
struct Held {
    subject: GroupIx,
    /// By direction; `None` where it does not isolate.
    rules: [Option<Box<[RuleIx]>>; 2],
}

impl Cluster {
    /// A cluster without objects.
    pub fn new() -> Self {
        Self::default()
    }

    /// The objects as they were applied.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// An object is there, new or in place of the one with its key.
    pub fn apply(&mut self, object: Object) {
        match &object {
            Object::Namespace(namespace) => {
                if self.objects.namespaces().get(&namespace.name) == Some(namespace) {
                    return;
                }
                let name = namespace.name.clone();
                self.objects.insert(object);
                self.describe_namespace(&name);
                return;
            }
            Object::Node(_) => {}
            Object::Pod(pod) if self.objects.pods().get(&pod.name) == Some(pod) => return,
            Object::Pod(pod) if pod.finished || pod.host_network => self.remove_pod(&pod.name),
            Object::Pod(pod) => self.put_pod(pod),
            Object::Policy(policy) if self.objects.policies().get(&policy.name) == Some(policy) => return,
            Object::Policy(policy) => self.put_policy(policy),
        }
        self.objects.insert(object);
    }

    /// The object with this key is gone.
    pub fn delete(&mut self, key: &Key) {
        self.objects.remove(key);
        match key {
            Key::Namespace(name) => self.describe_namespace(name),
            Key::Node(_) => {}
            Key::Pod(name) => self.remove_pod(name),
            Key::Policy(name) => {
                if let Some(held) = self.policies.remove(name) {
                    self.withdraw(held);
                }
            }
        }
    }

    /// These objects are there, and no others.
    pub fn reset(&mut self, objects: impl IntoIterator<Item = Object>) {
        let objects: Vec<Object> = objects.into_iter().collect();
        let keep: BTreeSet<Key> = objects.iter().map(Object::key).collect();
        let gone: Vec<Key> = self.objects.keys().filter(|key| !keep.contains(key)).collect();
        gone.iter().for_each(|key| self.delete(key));
        objects.into_iter().for_each(|object| self.apply(object));
    }

    /// Works out what the changes since the last commit come to: what changes on which node.
    pub fn commit(&mut self) -> BTreeMap<Arc<str>, NodeDelta> {
        let emptied = self.assign_recipes();
        for changed in self.programs.work_out(&mut self.members, &self.rules, &mut self.sets) {
            let recipe = &self.programs.recipes[changed.recipe];
            let (now, profiles) = (recipe.program, recipe.profiles.iter().copied().collect::<Vec<_>>());
            for profile in profiles {
                self.shift_program(profile, changed.before, now);
            }
        }
        self.tell_pods();
        let deltas = self.take_deltas();
        for profile in emptied {
            if self.members.profiles[profile].pods.is_empty() {
                self.members.remove_profile(profile);
            }
        }
        self.programs.collect(&mut self.members, &mut self.sets);
        self.sets.collect(&mut self.members);
        self.members.collect();
        deltas
    }

    /// Everything that a node has been told by the commits so far, as a change from nothing.
    pub fn state(&self, node: &str) -> NodeDelta {
        let mut state = NodeDelta::default();
        let Some(node) = self.nodes.find(node) else { return state };
        for (_, pod) in self.pods.iter().filter(|(_, p)| p.node == Some(node)) {
            if let Some(told) = pod.told {
                state.pods.insert(pod.name.clone(), Some(self.pod_programs(told)));
            }
        }
        for (_, program) in self.programs.entries.iter().filter(|(_, p)| p.span.contains_key(&node)) {
            state.programs.insert(program.id, Some(program.program.clone()));
        }
        for (ix, set) in self.sets.entries.iter().filter(|(_, s)| s.span.contains_key(&node)) {
            let whole = self.sets.whole(ix, &self.members, &self.pods, &self.claims);
            state.sets.insert(set.id, SetChange::Create(whole));
        }
        state
    }

    fn describe_namespace(&mut self, name: &Arc<str>) {
        let labels = self.objects.namespaces().get(name).map(|n| &n.labels);
        for Moved { profile: ix, before } in self.members.describe_namespace(name, labels) {
            // A subject is always of one namespace, so no recipe changes: only sets gain and lose the profile's pods.
            let profile = &self.members.profiles[ix];
            let touched = sets_of(&self.members, before.iter().chain(&profile.groups));
            for set in touched {
                for (groups, by) in [(&before, -1), (&profile.groups, 1)] {
                    for pod in &profile.pods {
                        let owned = self.pods[*pod].addresses.iter().filter(|a| self.claims.owns(a, *pod));
                        self.sets.shift(set, profile, groups, owned.copied(), by);
                    }
                }
            }
        }
    }

    fn put_policy(&mut self, policy: &NetworkPolicy) {
        let name = &policy.name;
        let subject = self.members.hold_group(&name.namespace, &NamespaceScope::Own, &policy.subject);
        let rules = Direction::ALL.map(|direction| {
            let rules = policy.rules(direction)?.iter();
            Some(rules.map(|rule| self.rules.hold(&mut self.members, name, rule)).collect::<Box<[RuleIx]>>())
        });
        let held = Held { subject, rules };
        self.put_in_force(&held, true);
        // The new one first: what both say does not change meanwhile.
        if let Some(before) = self.policies.insert(name.clone(), held) {
            self.withdraw(before);
        }
    }

    fn withdraw(&mut self, held: Held) {
        self.put_in_force(&held, false);
        for rule in held.rules.into_iter().flatten().flatten() {
            self.rules.release(&mut self.members, rule);
        }
        self.members.release(held.subject);
    }

    fn put_in_force(&mut self, held: &Held, in_force: bool) {
        for direction in Direction::ALL {
            let Some(rules) = &held.rules[direction as usize] else { continue };
            let group = &mut self.members.groups[held.subject];
            let side = group.subject.get_or_insert_with(|| Box::new(Subject::default())).side_mut(direction);
            let names = |rule| direction == Direction::Ingress && self.rules.key(rule).ports.has_names();
            let Touched { profiles, recipes } =
                if in_force { side.add(rules, names) } else { side.remove(rules, names) };
            if recipes {
                side.recipes.iter().for_each(|recipe| self.programs.mark(*recipe));
            }
            if profiles {
                for profile in &group.profiles {
                    mark_profile(&mut self.members.profiles, &mut self.dirty_profiles, *profile);
                }
            }
        }
    }

    fn put_pod(&mut self, pod: &Pod) {
        let profile = self.members.profile(&pod.name.namespace, &pod.labels, &pod.ports);
        let node = pod.node.as_ref().map(|name| self.nodes.hold(name));
        let ix = match self.pod_by_name.get(&pod.name) {
            Some(&ix) => {
                let entry = &self.pods[ix];
                if entry.profile == profile && entry.node == node {
                    // Only the addresses can differ, or nothing that matters here.
                    let before = entry.addresses.clone();
                    node.into_iter().for_each(|node| self.nodes.release(node));
                    self.change_addresses(ix, &before, &pod.addresses);
                    return;
                }
                self.detach(ix);
                let entry = &mut self.pods[ix];
                entry.profile = profile;
                entry.node = node;
                ix
            }
            None => {
                let entry = PodEntry {
                    name: pod.name.clone(),
                    profile,
                    node,
                    addresses: Vec::new(),
                    told: None,
                    dirty: false,
                };
                let ix = self.pods.insert(entry);
                self.pod_by_name.insert(pod.name.clone(), ix);
                ix
            }
        };
        self.members.profiles[profile].pods.insert(ix);
        mark_pod(&mut self.pods, &mut self.dirty_pods, ix);
        if self.members.profiles[profile].pods.len() == 1 {
            mark_profile(&mut self.members.profiles, &mut self.dirty_profiles, profile);
        }
        self.span_pod(ix, 1);
        self.change_addresses(ix, &[], &pod.addresses);
    }

    fn remove_pod(&mut self, name: &NamespacedName) {
        if let Some(ix) = self.pod_by_name.remove(name) {
            self.detach(ix);
            self.pods.remove(ix);
        }
    }

    /// Takes a pod out of its profile and off its node.
    fn detach(&mut self, ix: PodIx) {
        let before = self.pods[ix].addresses.clone();
        self.change_addresses(ix, &before, &[]);
        self.span_pod(ix, -1);
        let entry = &mut self.pods[ix];
        let profile = entry.profile;
        if let Some(node) = entry.node.take() {
            if entry.told.take().is_some() {
                self.nodes.touch(node).told.insert(entry.name.clone(), None);
            }
            self.nodes.release(node);
        }
        self.members.profiles[profile].pods.remove(&ix);
        if self.members.profiles[profile].pods.is_empty() {
            mark_profile(&mut self.members.profiles, &mut self.dirty_profiles, profile);
        }
    }

    fn span_pod(&mut self, ix: PodIx, by: i32) {
        let PodEntry { profile, node: Some(node), .. } = self.pods[ix] else { return };
        for recipe in self.members.profiles[profile].recipes.into_iter().flatten() {
            if let Some(program) = self.programs.recipes[recipe].program {
                self.programs.span(&mut self.sets, &mut self.nodes, program, node, by);
            }
        }
    }

    fn change_addresses(&mut self, ix: PodIx, before: &[IpAddr], after: &[IpAddr]) {
        for address in before.iter().filter(|a| !after.contains(a)) {
            if self.claims.owns(address, ix) {
                self.shift_address(ix, *address, -1);
            }
            if let Some(owner) = self.claims.remove(*address, ix) {
                self.shift_address(owner, *address, 1);
            }
        }
        for address in after.iter().filter(|a| !before.contains(a)) {
            if let Some(owner) = self.claims.add(*address, ix) {
                self.shift_address(owner, *address, -1);
            }
            if self.claims.owns(address, ix) {
                self.shift_address(ix, *address, 1);
            }
        }
        self.pods[ix].addresses = after.to_vec();
    }

    /// An address comes to its owner's sets (+1) or goes from them (-1).
    fn shift_address(&mut self, ix: PodIx, address: IpAddr, by: i8) {
        let profile = &self.members.profiles[self.pods[ix].profile];
        for set in sets_of(&self.members, profile.groups.iter()) {
            self.sets.shift(set, profile, &profile.groups, std::iter::once(address), by);
        }
    }

    /// Gives each profile that asks for it its recipes. Returns those that no pod has any more.
    fn assign_recipes(&mut self) -> Vec<ProfileIx> {
        let mut emptied = Vec::new();
        for ix in std::mem::take(&mut self.dirty_profiles) {
            self.members.profiles[ix].dirty = false;
            if self.members.profiles[ix].pods.is_empty() {
                emptied.push(ix);
            }
            for direction in Direction::ALL {
                let key = self.recipe_key(ix, direction);
                let now = key.map(|key| self.programs.recipe(&mut self.members, key));
                let before = self.members.profiles[ix].recipes[direction as usize];
                if now == before {
                    continue;
                }
                self.members.profiles[ix].recipes[direction as usize] = now;
                if let Some(now) = now {
                    self.programs.recipes[now].profiles.insert(ix);
                }
                let program = |recipe| self.programs.recipes[recipe].program;
                let (program_before, program_now) = (before.and_then(program), now.and_then(program));
                self.shift_program(ix, program_before, program_now);
                if let Some(before) = before {
                    self.programs.leave(before, ix);
                }
            }
        }
        emptied
    }

    fn recipe_key(&self, ix: ProfileIx, direction: Direction) -> Option<RecipeKey> {
        let profile = &self.members.profiles[ix];
        if profile.pods.is_empty() {
            return None;
        }
        let side = |group: &GroupIx| {
            let side = self.members.groups[*group].subject.as_ref()?.side(direction);
            (side.policies > 0).then_some(side)
        };
        let groups: Box<[GroupIx]> = profile.groups.iter().copied().filter(|g| side(g).is_some()).collect();
        if groups.is_empty() {
            return None;
        }
        let named = groups.iter().filter_map(side).any(|side| side.named > 0);
        let ports = if named { profile.ports.clone() } else { Box::default() };
        Some(RecipeKey { direction, groups, ports })
    }

    /// The pods of a profile go from one program to another.
    fn shift_program(&mut self, profile: ProfileIx, before: Option<ProgramIx>, now: Option<ProgramIx>) {
        for pod in &self.members.profiles[profile].pods {
            mark_pod(&mut self.pods, &mut self.dirty_pods, *pod);
            let Some(node) = self.pods[*pod].node else { continue };
            if let Some(now) = now {
                self.programs.span(&mut self.sets, &mut self.nodes, now, node, 1);
            }
            if let Some(before) = before {
                self.programs.span(&mut self.sets, &mut self.nodes, before, node, -1);
            }
        }
    }

    fn tell_pods(&mut self) {
        for ix in std::mem::take(&mut self.dirty_pods) {
            // Gone meanwhile; its node was told then.
            let Some(entry) = self.pods.get(ix).filter(|p| p.dirty) else { continue };
            let recipes = self.members.profiles[entry.profile].recipes;
            let now = recipes.map(|recipe| self.programs.recipes[recipe?].program);
            let (name, node, told) = (entry.name.clone(), entry.node, entry.told);
            let entry = &mut self.pods[ix];
            entry.dirty = false;
            if let Some(node) = node.filter(|_| told != Some(now)) {
                entry.told = Some(now);
                let programs = self.pod_programs(now);
                self.nodes.touch(node).told.insert(name, Some(programs));
            }
        }
    }

    fn pod_programs(&self, programs: [Option<ProgramIx>; 2]) -> PodPrograms {
        let id = |direction: Direction| Some(self.programs.entries[programs[direction as usize]?].id);
        PodPrograms { ingress: id(Direction::Ingress), egress: id(Direction::Egress) }
    }

    fn take_deltas(&mut self) -> BTreeMap<Arc<str>, NodeDelta> {
        let mut deltas: BTreeMap<Arc<str>, NodeDelta> = BTreeMap::new();
        let mut wholes: HashMap<SetIx, SetChange> = HashMap::new();
        let mut created: BTreeSet<(SetIx, nodes::NodeIx)> = BTreeSet::new();
        let touched = self.nodes.take_touched();
        for ix in &touched {
            let node = &mut self.nodes.entries[*ix];
            let mut delta = NodeDelta { pods: std::mem::take(&mut node.told), ..NodeDelta::default() };
            let (programs, sets) = (std::mem::take(&mut node.programs), std::mem::take(&mut node.sets));
            let name = node.name.clone();
            for (program, had) in programs {
                let entry = &self.programs.entries[program];
                let has = entry.span.contains_key(ix);
                if has != had {
                    delta.programs.insert(entry.id, has.then(|| entry.program.clone()));
                }
            }
            for (set, had) in sets {
                let entry = &self.sets.entries[set];
                let has = entry.span.contains_key(ix);
                let change = match (had, has) {
                    (false, true) => {
                        created.insert((set, *ix));
                        let whole = || {
                            SetChange::Create(self.sets.whole(set, &self.members, &self.pods, &self.claims))
                        };
                        wholes.entry(set).or_insert_with(whole).clone()
                    }
                    (true, false) => SetChange::Delete,
                    _ => continue,
                };
                delta.sets.insert(entry.id, change);
            }
            if !delta.is_empty() {
                deltas.insert(name, delta);
            }
        }
        for (set, update) in self.sets.take_updates() {
            let entry = &self.sets.entries[set];
            for node in entry.span.keys().filter(|node| !created.contains(&(set, **node))) {
                let delta = deltas.entry(self.nodes.entries[*node].name.clone()).or_default();
                delta.sets.insert(entry.id, SetChange::Update(update.clone()));
            }
        }
        touched.into_iter().for_each(|node| self.nodes.collect(node));
        deltas
    }
}

/// The sets that hold any of these groups, each once.
fn sets_of<'a>(members: &Membership, groups: impl Iterator<Item = &'a GroupIx>) -> Vec<SetIx> {
    let mut sets: Vec<SetIx> = groups.flat_map(|g| members.groups[*g].sets.iter().copied()).collect();
    sets.sort_unstable();
    sets.dedup();
    sets
}

fn mark_profile(profiles: &mut Arena<membership::Profile>, dirty: &mut Vec<ProfileIx>, ix: ProfileIx) {
    if !std::mem::replace(&mut profiles[ix].dirty, true) {
        dirty.push(ix);
    }
}

fn mark_pod(pods: &mut Arena<PodEntry>, dirty: &mut Vec<PodIx>, ix: PodIx) {
    if !std::mem::replace(&mut pods[ix].dirty, true) {
        dirty.push(ix);
    }
}
