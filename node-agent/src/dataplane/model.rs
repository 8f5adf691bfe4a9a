//! A model of the kernel's side, for tests of the planner: carries operations out and refuses what the kernel would.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use moat_nfnetlink::nft::{Chain, Data, Element, Key, Rule, Set, Statement, Verdict};

use super::layout::Table;
use super::op::Op;

type Name = (Table, Arc<str>);
type Elements = BTreeMap<(Key, Option<Key>), Element>;
/// The set and the chain that a statement names.
type Reference = (Option<Arc<str>>, Option<Arc<str>>);

#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Model {
    pub(super) sets: BTreeMap<Name, (Set, Elements)>,
    pub(super) chains: BTreeMap<Name, (Chain, Vec<Rule>)>,
    pub(super) counters: BTreeSet<Name>,
}

impl Model {
    pub(super) fn carry_out(&mut self, ops: &[Op]) -> Result<(), String> {
        ops.iter().try_for_each(|op| self.op(op))
    }

    fn op(&mut self, op: &Op) -> Result<(), String> {
        match op {
            Op::AddTable(_) => {}
            Op::DeleteTable(table) => {
                self.sets.retain(|(t, _), _| t != table);
                self.chains.retain(|(t, _), _| t != table);
                self.counters.retain(|(t, _)| t != table);
            }
            Op::AddSet(table, set) => {
                let there = self.sets.insert((*table, set.name().clone()), (set.clone(), BTreeMap::new()));
                no(there.is_some(), "EEXIST", op)?;
            }
            Op::DeleteSet(table, name) => {
                no(self.users_of_set(*table, name), "EBUSY", op)?;
                no(self.sets.remove(&(*table, name.clone())).is_none(), "ENOENT", op)?;
            }
            Op::AddElements(table, set, elements) => {
                no(elements.is_empty(), "EINVAL", op)?;
                for element in elements {
                    let target = match &element.data {
                        Some(Data::Verdict(verdict)) => verdict.chain(),
                        _ => None,
                    };
                    let lost = target.is_some_and(|t| !self.chains.contains_key(&(*table, t.clone())));
                    no(lost, "ENOENT: the verdict's chain", op)?;
                    let held = self
                        .sets
                        .get_mut(&(*table, set.name().clone()))
                        .ok_or_else(|| fault("ENOENT", op))?;
                    no(held.0 != *set, "another set", op)?;
                    let there = held.1.insert((element.key, element.end), element.clone());
                    no(there.is_some(), "EEXIST", op)?;
                }
            }
            Op::DeleteElements(table, set, elements) => {
                no(elements.is_empty(), "EINVAL", op)?;
                let held =
                    self.sets.get_mut(&(*table, set.name().clone())).ok_or_else(|| fault("ENOENT", op))?;
                for element in elements {
                    let there = held.1.remove(&(element.key, element.end));
                    no(there.is_none(), "ENOENT", op)?;
                }
            }
            Op::AddCounter(table, name) => {
                no(!self.counters.insert((*table, name.clone())), "EEXIST", op)?;
            }
            Op::DeleteCounter(table, name) => {
                let counts = |s: &Statement| matches!(s, Statement::CountIn(c) if c == name);
                no(self.rules(*table).flat_map(Rule::statements).any(counts), "EBUSY", op)?;
                no(!self.counters.remove(&(*table, name.clone())), "ENOENT", op)?;
            }
            Op::AddChain(table, chain) => {
                let there = self.chains.insert((*table, chain.name.clone()), (chain.clone(), Vec::new()));
                no(there.is_some(), "EEXIST", op)?;
            }
            Op::AddRules(table, name, rules) => {
                for rule in rules {
                    for statement in rule.statements() {
                        let Statement::CountIn(name) = statement else { continue };
                        let there = self.counters.contains(&(*table, name.clone()));
                        no(!there, "ENOENT: a rule's counter", op)?;
                    }
                    for (set, chain) in references(rule) {
                        let lost = set.is_some_and(|s| !self.sets.contains_key(&(*table, s)))
                            || chain.is_some_and(|c| !self.chains.contains_key(&(*table, c)));
                        no(lost, "ENOENT: what a rule refers to", op)?;
                    }
                }
                let held = self.chains.get_mut(&(*table, name.clone())).ok_or_else(|| fault("ENOENT", op))?;
                held.1.extend(rules.iter().cloned());
            }
            Op::FlushChain(table, name) => {
                let held = self.chains.get_mut(&(*table, name.clone())).ok_or_else(|| fault("ENOENT", op))?;
                held.1.clear();
            }
            Op::FlushTable(table) => {
                self.chains.iter_mut().filter(|((t, _), _)| t == table).for_each(|(_, held)| held.1.clear());
            }
            Op::DeleteChain(table, name) => {
                no(self.users_of_chain(*table, name), "EBUSY", op)?;
                no(self.chains.remove(&(*table, name.clone())).is_none(), "ENOENT", op)?;
            }
        }
        Ok(())
    }

    fn users_of_set(&self, table: Table, name: &Arc<str>) -> bool {
        self.rules(table).flat_map(references).any(|(set, _)| set.as_ref() == Some(name))
    }

    fn users_of_chain(&self, table: Table, name: &Arc<str>) -> bool {
        let own = (table, name.clone());
        let rules = self.chains.iter().filter(|(key, _)| key.0 == table && **key != own);
        rules
            .flat_map(|(_, held)| &held.1)
            .flat_map(references)
            .any(|(_, chain)| chain.as_ref() == Some(name))
            || self
                .elements(table)
                .any(|e| matches!(&e.data, Some(Data::Verdict(v)) if v.chain() == Some(name)))
    }

    fn rules(&self, table: Table) -> impl Iterator<Item = &Rule> {
        self.chains.iter().filter(move |(key, _)| key.0 == table).flat_map(|(_, held)| &held.1)
    }

    fn elements(&self, table: Table) -> impl Iterator<Item = &Element> {
        self.sets.iter().filter(move |(key, _)| key.0 == table).flat_map(|(_, held)| held.1.values())
    }

    /// Names of sets that no rule looks into, and of chains that nothing leads to.
    pub(super) fn strays(&self) -> BTreeSet<Arc<str>> {
        let sets = self.sets.keys().filter(|(t, n)| !self.users_of_set(*t, n)).map(|(_, n)| n);
        let regular = self.chains.iter().filter(|(_, (chain, _))| chain.base.is_none());
        let chains = regular.filter(|((t, n), _)| !self.users_of_chain(*t, n)).map(|((_, n), _)| n);
        sets.chain(chains).cloned().collect()
    }
}

fn no(wrong: bool, what: &str, op: &Op) -> Result<(), String> {
    if wrong { Err(fault(what, op)) } else { Ok(()) }
}

fn fault(what: &str, op: &Op) -> String {
    format!("{what}: {op:?}")
}

fn references(rule: &Rule) -> Vec<Reference> {
    rule.statements()
        .iter()
        .map(|statement| match statement {
            Statement::Lookup { set, .. } => (Some(set.clone()), None),
            Statement::Meter { set, .. } => (Some(set.clone()), None),
            Statement::VerdictMap { map, .. } => (Some(map.clone()), None),
            Statement::Verdict(Verdict::Jump(chain) | Verdict::Goto(chain)) => (None, Some(chain.clone())),
            _ => (None, None),
        })
        .collect()
}
