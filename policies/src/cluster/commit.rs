//! From what was noted to what each node is told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hashbrown::HashMap;

use super::compiler::{Compiler, mark_pod};
use super::membership::{GroupIx, ProfileIx};
use super::nodes::NodeIx;
use super::programs::{ProgramIx, RecipeKey};
use super::sets::SetIx;
use crate::{Direction, NodeDelta, PodPrograms, Pods, SetChange};

impl Compiler {
    /// Works out what the changes since the last commit come to: what changes on which node.
    pub(super) fn commit(&mut self, pods: &Pods) -> BTreeMap<Arc<str>, NodeDelta> {
        let emptied = self.assign_recipes();
        for changed in self.programs.work_out(&mut self.members, &self.rules, &mut self.sets) {
            let recipe = &self.programs.recipes[changed.recipe];
            let (now, profiles) = (recipe.program, recipe.profiles.iter().copied().collect::<Vec<_>>());
            for profile in profiles {
                self.shift_program(profile, changed.before, now);
            }
        }
        self.tell_pods(pods);
        let deltas = self.take_deltas(pods);
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
    pub(super) fn state(&self, node: &str, pods: &Pods) -> NodeDelta {
        debug_assert!(self.is_settled(), "a state is asked for after a commit");
        let mut state = NodeDelta::default();
        let Some(node) = self.nodes.find(node).filter(|node| self.nodes.is_told(*node)) else { return state };
        for (ix, pod) in self.pods.iter().filter(|(_, p)| p.node == Some(node)) {
            if let Some(told) = pod.told {
                state.pods.insert(pods.name(ix), Some(self.pod_programs(told)));
            }
        }
        for (_, program) in self.programs.entries.iter().filter(|(_, p)| p.span.contains_key(&node)) {
            state.programs.insert(program.id, Some(program.program.clone()));
        }
        for (ix, set) in self.sets.entries.iter().filter(|(_, s)| s.span.contains_key(&node)) {
            let whole = self.sets.whole(ix, &self.members, pods, &self.claims);
            state.sets.insert(set.id, SetChange::Create(whole));
        }
        state
    }

    /// Whether nothing waits for a commit.
    fn is_settled(&self) -> bool {
        let here = self.dirty_profiles.is_empty() && self.dirty_pods.is_empty();
        here && self.programs.is_settled() && self.sets.is_settled() && self.nodes.is_settled()
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
            let Some(node) = self.pods.get(*pod).and_then(|entry| entry.node) else { continue };
            if let Some(now) = now {
                self.programs.span(&mut self.sets, &mut self.nodes, now, node, 1);
            }
            if let Some(before) = before {
                self.programs.span(&mut self.sets, &mut self.nodes, before, node, -1);
            }
        }
    }

    fn tell_pods(&mut self, pods: &Pods) {
        for ix in std::mem::take(&mut self.dirty_pods) {
            // Gone meanwhile; its node was told then.
            let Some(entry) = self.pods.get_mut(ix).filter(|p| p.dirty) else { continue };
            let recipes = self.members.profiles[entry.profile].recipes;
            let now = recipes.map(|recipe| self.programs.recipes[recipe?].program);
            entry.dirty = false;
            let told = |node: &NodeIx| self.nodes.is_told(*node) && entry.told != Some(now);
            if let Some(node) = entry.node.filter(told) {
                entry.told = Some(now);
                let programs = self.pod_programs(now);
                self.nodes.touch(node).told.insert(pods.name(ix), Some(programs));
            }
        }
    }

    pub(super) fn pod_programs(&self, programs: [Option<ProgramIx>; 2]) -> PodPrograms {
        let id = |direction: Direction| Some(self.programs.entries[programs[direction as usize]?].id);
        PodPrograms { ingress: id(Direction::Ingress), egress: id(Direction::Egress) }
    }

    fn take_deltas(&mut self, pods: &Pods) -> BTreeMap<Arc<str>, NodeDelta> {
        let mut deltas: BTreeMap<Arc<str>, NodeDelta> = BTreeMap::new();
        let mut wholes: HashMap<SetIx, SetChange> = HashMap::new();
        let mut created: BTreeSet<(SetIx, NodeIx)> = BTreeSet::new();
        let touched = self.nodes.take_touched();
        for ix in &touched {
            let node = &mut self.nodes.entries[*ix];
            let mut delta = NodeDelta { pods: std::mem::take(&mut node.told), ..NodeDelta::default() };
            let (programs, sets) = (std::mem::take(&mut node.programs), std::mem::take(&mut node.sets));
            let name = node.name.clone();
            if !self.nodes.is_told(*ix) {
                continue;
            }
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
                        let whole =
                            || SetChange::Create(self.sets.whole(set, &self.members, pods, &self.claims));
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
            let has = |node: &&NodeIx| self.nodes.is_told(**node) && !created.contains(&(set, **node));
            for node in entry.span.keys().filter(has) {
                let delta = deltas.entry(self.nodes.entries[*node].name.clone()).or_default();
                delta.sets.insert(entry.id, SetChange::Update(update.clone()));
            }
        }
        touched.into_iter().for_each(|node| self.nodes.collect(node));
        deltas
    }
}
