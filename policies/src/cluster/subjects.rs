//! What the policies whose subject is one group say together.

use hashbrown::{HashMap, HashSet};

use super::arena::Ix;
use super::programs::Recipe;
use super::rules::RuleIx;
use crate::Direction;

/// By direction.
#[derive(Default)]
pub(super) struct Subject([SubjectSide; 2]);

#[derive(Default)]
pub(super) struct SubjectSide {
    /// How many policies isolate the group.
    pub(super) policies: u32,
    /// Their rules, each with the number of times that it stands in them.
    pub(super) rules: HashMap<RuleIx, u32>,
    /// How many of `rules` name ports on the subject: none for egress.
    pub(super) named: u32,
    /// The recipes that the group is part of.
    pub(super) recipes: HashSet<Ix<Recipe>>,
}

impl Subject {
    pub(super) fn side(&self, direction: Direction) -> &SubjectSide {
        &self.0[direction as usize]
    }

    pub(super) fn side_mut(&mut self, direction: Direction) -> &mut SubjectSide {
        &mut self.0[direction as usize]
    }
}

/// What a change to a side asks for.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Touched {
    /// The group's profiles must look for their recipes anew.
    pub(super) profiles: bool,
    /// The recipes must be worked out anew.
    pub(super) recipes: bool,
}

impl SubjectSide {
    /// One more policy with these rules; `names` tells which of them name ports on the subject.
    pub(super) fn add(&mut self, rules: &[RuleIx], names: impl Fn(RuleIx) -> bool) -> Touched {
        let mut touched = Touched { profiles: self.policies == 0, recipes: false };
        self.policies += 1;
        for rule in rules {
            let count = self.rules.entry(*rule).or_insert(0);
            *count += 1;
            if *count == 1 {
                touched.recipes = true;
                if names(*rule) {
                    touched.profiles |= self.named == 0;
                    self.named += 1;
                }
            }
        }
        touched
    }

    /// One policy with these rules less.
    pub(super) fn remove(&mut self, rules: &[RuleIx], names: impl Fn(RuleIx) -> bool) -> Touched {
        self.policies -= 1;
        let mut touched = Touched { profiles: self.policies == 0, recipes: false };
        for rule in rules {
            if let Some(count) = self.rules.get_mut(rule) {
                *count -= 1;
                if *count == 0 {
                    self.rules.remove(rule);
                    touched.recipes = true;
                    if names(*rule) {
                        self.named -= 1;
                        touched.profiles |= self.named == 0;
                    }
                }
            }
        }
        touched
    }
}
