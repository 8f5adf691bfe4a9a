//! Recipes and the verdict programs they come to.
//!
//! A *recipe* is the groups that isolate a profile in one direction: what its program is made from. Profiles with the
//! same recipe are worked out once; recipes that come to the same content share one program.

use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use super::arena::{Arena, Ix};
use super::assemble::{Draft, DraftAllow, assemble};
use super::membership::{GroupIx, Membership, NamedPort, ProfileIx};
use super::nodes::{NodeIx, Nodes};
use super::rules::{RuleIx, Rules};
use super::sets::{SetIx, Sets, Term};
use crate::hash::ContentHash;
use crate::prefixes::Prefixes;
use crate::{Allow, Direction, Limits, PortClass, Program, ProgramId, SetKind};

pub(super) type RecipeIx = Ix<Recipe>;
pub(super) type ProgramIx = Ix<ProgramEntry>;

pub(super) struct Recipe {
    key: RecipeKey,
    pub(super) profiles: HashSet<ProfileIx>,
    /// `None` until it is first worked out.
    pub(super) program: Option<ProgramIx>,
    dirty: bool,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct RecipeKey {
    pub(super) direction: Direction,
    /// Sorted; never empty.
    pub(super) groups: Box<[GroupIx]>,
    /// The subject's own named ports, where a rule asks for them.
    pub(super) ports: Box<[NamedPort]>,
}

pub(super) struct ProgramEntry {
    pub(super) id: ProgramId,
    pub(super) program: Arc<Program>,
    sets: Box<[SetIx]>,
    /// How many recipes come to it.
    recipes: u32,
    /// How many pods use it on each node.
    pub(super) span: HashMap<NodeIx, u32>,
}

#[derive(Default)]
pub(super) struct Programs {
    pub(super) recipes: Arena<Recipe>,
    recipe_by_key: HashMap<RecipeKey, RecipeIx>,
    dirty_recipes: Vec<RecipeIx>,
    unused_recipes: Vec<RecipeIx>,
    pub(super) entries: Arena<ProgramEntry>,
    pub(super) by_id: HashMap<ProgramId, ProgramIx>,
    unused: Vec<ProgramIx>,
    pub(super) limits: Limits,
}

/// A recipe that comes to another program than before.
pub(super) struct Changed {
    pub(super) recipe: RecipeIx,
    pub(super) before: Option<ProgramIx>,
}

impl Programs {
    /// The recipe with this key. It holds on to its groups.
    pub(super) fn recipe(&mut self, members: &mut Membership, key: RecipeKey) -> RecipeIx {
        if let Some(&ix) = self.recipe_by_key.get(&key) {
            return ix;
        }
        let recipe = Recipe { key: key.clone(), profiles: HashSet::new(), program: None, dirty: true };
        let ix = self.recipes.insert(recipe);
        self.dirty_recipes.push(ix);
        for group in &key.groups {
            members.hold(*group);
            if let Some(subject) = &mut members.groups[*group].subject {
                subject.side_mut(key.direction).recipes.insert(ix);
            }
        }
        self.recipe_by_key.insert(key, ix);
        ix
    }

    /// The recipe must be worked out anew.
    pub(super) fn mark(&mut self, ix: RecipeIx) {
        let recipe = &mut self.recipes[ix];
        if !recipe.dirty {
            recipe.dirty = true;
            self.dirty_recipes.push(ix);
        }
    }

    pub(super) fn is_settled(&self) -> bool {
        self.dirty_recipes.is_empty()
    }

    /// A profile leaves the recipe.
    pub(super) fn leave(&mut self, ix: RecipeIx, profile: ProfileIx) {
        let recipe = &mut self.recipes[ix];
        recipe.profiles.remove(&profile);
        if recipe.profiles.is_empty() {
            self.unused_recipes.push(ix);
        }
    }

    /// Works out what must be, and tells which recipes come to another program.
    pub(super) fn work_out(
        &mut self,
        members: &mut Membership,
        rules: &Rules,
        sets: &mut Sets,
    ) -> Vec<Changed> {
        let mut changed = Vec::new();
        for ix in std::mem::take(&mut self.dirty_recipes) {
            let Some(recipe) = self.recipes.get(ix).filter(|r| r.dirty) else { continue };
            let unused = recipe.profiles.is_empty();
            let before = recipe.program;
            let program = if unused { before } else { Some(self.program_of(ix, members, rules, sets)) };
            let recipe = &mut self.recipes[ix];
            recipe.dirty = false;
            if program == before {
                continue;
            }
            recipe.program = program;
            if let Some(program) = program {
                self.entries[program].recipes += 1;
            }
            if let Some(before) = before {
                self.release(before);
            }
            changed.push(Changed { recipe: ix, before });
        }
        changed
    }

    fn program_of(
        &mut self,
        ix: RecipeIx,
        members: &mut Membership,
        rules: &Rules,
        sets: &mut Sets,
    ) -> ProgramIx {
        let RecipeKey { direction, groups, ports } = &self.recipes[ix].key;
        let mut all: Vec<RuleIx> = groups
            .iter()
            .filter_map(|g| members.groups[*g].subject.as_ref())
            .flat_map(|subject| subject.side(*direction).rules.keys().copied())
            .collect();
        all.sort_unstable();
        all.dedup();
        let keys: Vec<_> = all.iter().map(|r| rules.key(*r)).collect();
        let (program, used) = match assemble(*direction, &keys, ports, &self.limits) {
            Ok(draft) => name_sets(draft, members, sets),
            Err(excess) => (Program { excess: Some(excess), ..Program::default() }, Vec::new()),
        };
        let id = ProgramId(ContentHash::new("program").program(&program).finish());
        if let Some(&found) = self.by_id.get(&id) {
            return found;
        }
        for set in &used {
            sets.entries[*set].refs += 1;
        }
        let entry = ProgramEntry {
            id,
            program: Arc::new(program),
            sets: used.into(),
            recipes: 0,
            span: HashMap::new(),
        };
        let ix = self.entries.insert(entry);
        self.by_id.insert(id, ix);
        ix
    }

    /// A node has so many pods more (or fewer) that use a program.
    pub(super) fn span(&mut self, sets: &mut Sets, nodes: &mut Nodes, ix: ProgramIx, node: NodeIx, by: i32) {
        let program = &mut self.entries[ix];
        let Some(had) = shift(&mut program.span, node, by) else { return };
        nodes.touch(node).programs.entry(ix).or_insert(had);
        for set in &program.sets {
            if let Some(had) = shift(&mut sets.entries[*set].span, node, if had { -1 } else { 1 }) {
                nodes.touch(node).sets.entry(*set).or_insert(had);
            }
        }
    }

    /// Forgets recipes without profiles, and programs that no recipe comes to.
    pub(super) fn collect(&mut self, members: &mut Membership, sets: &mut Sets) {
        for ix in std::mem::take(&mut self.unused_recipes) {
            if self.recipes.get(ix).is_none_or(|r| !r.profiles.is_empty()) {
                continue;
            }
            let recipe = self.recipes.remove(ix);
            for group in &recipe.key.groups {
                if let Some(subject) = &mut members.groups[*group].subject {
                    subject.side_mut(recipe.key.direction).recipes.remove(&ix);
                }
                members.release(*group);
            }
            self.recipe_by_key.remove(&recipe.key);
            if let Some(program) = recipe.program {
                self.release(program);
            }
        }
        for ix in std::mem::take(&mut self.unused) {
            if self.entries.get(ix).is_none_or(|p| p.recipes > 0) {
                continue;
            }
            let program = self.entries.remove(ix);
            self.by_id.remove(&program.id);
            program.sets.iter().for_each(|set| sets.release(*set));
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        let Self { recipes, recipe_by_key, dirty_recipes, unused_recipes, entries, by_id, unused, limits: _ } =
            self;
        let recipes = recipes.is_empty() && recipe_by_key.is_empty();
        let pending = dirty_recipes.is_empty() && unused_recipes.is_empty() && unused.is_empty();
        recipes && pending && entries.is_empty() && by_id.is_empty()
    }

    fn release(&mut self, ix: ProgramIx) {
        let program = &mut self.entries[ix];
        program.recipes -= 1;
        if program.recipes == 0 {
            self.unused.push(ix);
        }
    }
}

/// Adds to a node's count. Tells whether it was there before, where that has changed.
fn shift(span: &mut HashMap<NodeIx, u32>, node: NodeIx, by: i32) -> Option<bool> {
    let before = span.get(&node).copied().unwrap_or(0);
    let now = before.saturating_add_signed(by);
    if now == 0 {
        span.remove(&node);
    } else {
        span.insert(node, now);
    }
    ((before > 0) != (now > 0)).then_some(before > 0)
}

fn name_sets(draft: Draft, members: &mut Membership, sets: &mut Sets) -> (Program, Vec<SetIx>) {
    let mut used = Vec::new();
    // A program can have thousands of classes.
    let mut seen = HashSet::new();
    let mut take = |kind, terms, prefixes| {
        let ix = sets.intern(members, kind, terms, prefixes);
        if seen.insert(ix) {
            used.push(ix);
        }
        sets.entries[ix].id
    };
    let mut allow = |draft| match draft {
        DraftAllow::Everyone => Allow::Everyone,
        DraftAllow::Set { groups, prefixes } => {
            let terms = groups.into_iter().map(|g| Term::new(g, None)).collect();
            Allow::Set(take(SetKind::Addresses, terms, prefixes))
        }
    };
    let every = draft.every.map(&mut allow);
    let classes =
        draft.classes.into_iter().map(|(ports, draft)| PortClass { ports, allow: allow(draft) }).collect();
    let named = (!draft.named.is_empty()).then(|| take(SetKind::AddressPorts, draft.named, Prefixes::none()));
    (Program { every, classes, named, excess: None }, used)
}
