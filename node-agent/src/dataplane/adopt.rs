//! From what the kernel holds to what it is to hold: at start, and after somebody else changed our tables. Pure.
//!
//! Elements are compared and only the differences written: an address that
//! is there stays. Rules are few and are all written anew, in the one transaction that deletes the old
//! ones; a packet sees either all old rules or all new ones.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use moat_nfnetlink::nft::{BaseInfo, Chain, Element, Hook, Policy, Set};

use super::layout::Table;
use super::op::{Op, Plan};
use super::state::Content;

/// One of our tables as the kernel holds it.
#[derive(Debug, Default)]
pub(crate) struct FoundTable {
    /// Sets and maps; `None`: of a kind that is not ours.
    pub(crate) sets: BTreeMap<Arc<str>, Option<FoundSet>>,
    /// Chains; base chains with what makes them that.
    pub(crate) chains: BTreeMap<Arc<str>, Option<BaseInfo>>,
}

/// A set as the kernel holds it.
#[derive(Debug)]
pub(crate) struct FoundSet {
    /// As it is declared.
    pub(crate) declaration: Set,
    /// Its elements; `None`: one is of a kind that is not ours.
    pub(crate) elements: Option<Vec<Element>>,
}

/// Plans what leads from tables as they are found to their content. Both tables exist. `None`: something in them has the
/// name of one of ours and is something else, so that they must be replaced as a whole.
pub(crate) fn adopt(found: &BTreeMap<Table, FoundTable>, content: &Content) -> Option<Plan> {
    let mut plan = Plan::default();
    let empty = FoundTable::default();
    let of = |table: Table| found.get(&table).unwrap_or(&empty);
    let (mut deletions, mut new_sets, mut additions) = (Vec::new(), Vec::new(), Vec::new());
    for (table, set, elements) in &content.sets {
        let Some(there) = of(*table).sets.get(set.name()) else {
            // Nothing leads to a new set: what the kernel needs a moment to put in force is staged.
            let ops =
                if set.has_intervals() && set.data().is_none() { &mut plan.stage } else { &mut new_sets };
            ops.push(Op::AddSet(*table, set.clone()));
            if !elements.is_empty() {
                let to = if set.has_intervals() && set.data().is_none() {
                    &mut plan.stage
                } else {
                    &mut additions
                };
                to.push(Op::AddElements(*table, set.clone(), elements.clone()));
            }
            continue;
        };
        let there = there.as_ref().filter(|s| alike(&s.declaration, set))?;
        let (gone, new) = differences(there.elements.as_ref()?, elements);
        if !gone.is_empty() {
            deletions.push(Op::DeleteElements(*table, set.clone(), gone));
        }
        if !new.is_empty() {
            additions.push(Op::AddElements(*table, set.clone(), new));
        }
    }
    let mut new_chains = Vec::new();
    for chain in &content.chains {
        match of(chain.table).chains.get(&chain.chain.name) {
            None => new_chains.push(Op::AddChain(chain.table, chain.chain.clone())),
            Some(base) if same_base(&chain.chain, base.as_ref()) => {}
            Some(_) => return None,
        }
    }
    plan.commit.extend(found.keys().map(|table| Op::FlushTable(*table)));
    plan.commit.extend(deletions);
    for (table, there) in found {
        let sets: BTreeSet<&Arc<str>> =
            content.sets.iter().filter(|(t, ..)| t == table).map(|(_, set, _)| set.name()).collect();
        let chains: BTreeSet<&Arc<str>> =
            content.chains.iter().filter(|c| c.table == *table).map(|c| &c.chain.name).collect();
        let strays = there.sets.keys().filter(|name| !sets.contains(name));
        plan.commit.extend(strays.map(|name| Op::DeleteSet(*table, name.clone())));
        let strays = there.chains.keys().filter(|name| !chains.contains(name));
        plan.commit.extend(strays.map(|name| Op::DeleteChain(*table, name.clone())));
    }
    plan.commit.extend(new_sets);
    plan.commit.extend(new_chains);
    plan.commit.extend(additions);
    plan.commit.extend(rules(content));
    Some(plan)
}

/// Plans the content of tables that hold nothing.
pub(crate) fn fill(content: &Content) -> Vec<Op> {
    let mut ops: Vec<Op> =
        content.sets.iter().map(|(table, set, _)| Op::AddSet(*table, set.clone())).collect();
    ops.extend(content.chains.iter().map(|c| Op::AddChain(c.table, c.chain.clone())));
    let filled = content.sets.iter().filter(|(.., elements)| !elements.is_empty());
    ops.extend(filled.map(|(table, set, elements)| Op::AddElements(*table, set.clone(), elements.clone())));
    ops.extend(rules(content));
    ops
}

fn rules(content: &Content) -> impl Iterator<Item = Op> {
    content.chains.iter().filter(|c| !c.rules.is_empty()).map(|c| {
        let rules = c.rules.clone();
        Op::AddRules(c.table, c.chain.name.clone(), rules)
    })
}

fn alike(found: &Set, wanted: &Set) -> bool {
    found.key() == wanted.key()
        && found.data() == wanted.data()
        && found.has_intervals() == wanted.has_intervals()
}

fn same_base(chain: &Chain, found: Option<&BaseInfo>) -> bool {
    match (&chain.base, found) {
        (None, None) => true,
        (Some(base), Some(found)) => {
            let devices: Vec<&str> = found.devices.iter().map(String::as_str).collect();
            // NF_INET_LOCAL_IN, NF_INET_FORWARD, NF_NETDEV_INGRESS; our chains have no other hooks.
            let (number, device) = match &base.hook {
                Hook::Ingress(device) => (0, vec![device.as_str()]),
                Hook::Input => (1, Vec::new()),
                Hook::Forward => (2, Vec::new()),
                _ => return false,
            };
            found.hook == number
                && base.priority == found.priority
                && (base.policy == Policy::Accept) == found.accept
                && devices == device
                && found.kind == "filter"
        }
        _ => false,
    }
}

/// The elements that are there and should not be, and those that should be there and are not. The same key with another
/// verdict is both.
fn differences(there: &[Element], wanted: &[Element]) -> (Vec<Element>, Vec<Element>) {
    let sorted = |elements: &[Element]| {
        elements.iter().map(|e| ((e.key, e.end), e.clone())).collect::<BTreeMap<_, _>>()
    };
    let (there, wanted) = (sorted(there), sorted(wanted));
    let missing = |from: &BTreeMap<_, Element>, other: &BTreeMap<_, Element>| {
        from.iter()
            .filter(|(key, e)| other.get(*key).is_none_or(|o: &Element| o.data != e.data))
            .map(|(_, e)| e.clone())
            .collect()
    };
    (missing(&there, &wanted), missing(&wanted, &there))
}
