//! From what the kernel holds to what it is to hold: at start, and after somebody else changed our tables. Pure.
//!
//! Elements are compared and only the differences written: an address that
//! is there stays. Rules are few and are all written anew, in the one transaction that deletes the old
//! ones; a packet sees either all old rules or all new ones.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use moat_nfnetlink::nft::{BaseInfo, Chain, ChainType, Element, Hook, Policy, Set};

use super::layout::{ChainRules, Table};
use super::op::{Op, Plan};
use super::state::Content;

/// One of our tables as the kernel holds it.
#[derive(Debug, Default)]
pub(crate) struct FoundTable {
    /// Sets and maps; `None`: of a kind that is not ours.
    pub(crate) sets: BTreeMap<Arc<str>, Option<FoundSet>>,
    /// Counters that have names.
    pub(crate) counters: BTreeSet<Arc<str>>,
    /// Chains; base chains with what makes them that.
    pub(crate) chains: BTreeMap<Arc<str>, Option<BaseInfo>>,
}

/// A set as the kernel holds it.
#[derive(Debug)]
pub(crate) struct FoundSet {
    /// As it is declared.
    pub(crate) declaration: Set,
    /// Its elements; `None`: one is of a kind that is not ours. Of a set that is the kernel's own to fill, none.
    pub(crate) elements: Option<Vec<Element>>,
}

/// Plans what leads from tables as they are found to their content. Both tables exist. `None`: something in them has the
/// name of one of ours and is something else, so that they must be replaced as a whole.
pub(crate) fn adopt(mut found: BTreeMap<Table, FoundTable>, content: Content) -> Option<Plan> {
    let mut plan = Plan::default();
    let (mut deletions, mut new_hooks, mut additions) = (Vec::new(), Vec::new(), Vec::new());
    // What nothing leads to yet: sets and counters, chains, and what is in both.
    let (mut new, mut new_chains, mut inside) = (Vec::new(), Vec::new(), Vec::new());
    plan.commit.extend(found.keys().map(|table| Op::FlushTable(*table)));
    // What is found and wanted is taken out of what is found; what is left in the end is nobody's.
    for (table, set, elements) in content.sets {
        let Some(there) = found.get_mut(&table).and_then(|t| t.sets.remove(set.name())) else {
            new.push(Op::AddSet(table, set.clone()));
            if !elements.is_empty() {
                inside.push(Op::AddElements(table, set, elements));
            }
            continue;
        };
        let there = there.filter(|s| alike(&s.declaration, &set))?;
        let (gone, come) = differences(there.elements?, elements);
        if !gone.is_empty() {
            deletions.push(Op::DeleteElements(table, set.clone(), gone));
        }
        if !come.is_empty() {
            additions.push(Op::AddElements(table, set, come));
        }
    }
    for (table, name) in content.counters {
        if !found.get_mut(&table).is_some_and(|t| t.counters.remove(&name)) {
            new.push(Op::AddCounter(table, name));
        }
    }
    for chain in &content.chains {
        match found.get_mut(&chain.table).and_then(|t| t.chains.remove(&chain.chain.name)) {
            // Packets come to it by itself.
            None if chain.chain.base.is_some() => {
                new_hooks.push(Op::AddChain(chain.table, chain.chain.clone()));
            }
            None => {
                new_chains.push(Op::AddChain(chain.table, chain.chain.clone()));
                inside.extend(rules(chain.clone()));
            }
            Some(base) if same_base(&chain.chain, base.as_ref()) => {}
            Some(_) => return None,
        }
    }
    plan.stage.extend(new);
    plan.stage.extend(new_chains);
    plan.stage.extend(inside);
    plan.commit.extend(deletions);
    for (table, strays) in found {
        plan.commit.extend(strays.sets.into_keys().map(|name| Op::DeleteSet(table, name)));
        plan.commit.extend(strays.chains.into_keys().map(|name| Op::DeleteChain(table, name)));
        plan.commit.extend(strays.counters.into_iter().map(|name| Op::DeleteCounter(table, name)));
    }
    plan.commit.extend(new_hooks);
    plan.commit.extend(additions);
    plan.commit.extend(content.chains.into_iter().filter_map(rules));
    Some(plan)
}

/// Plans the content of tables that hold nothing.
pub(crate) fn fill(content: Content) -> Vec<Op> {
    let mut ops: Vec<Op> =
        content.sets.iter().map(|(table, set, _)| Op::AddSet(*table, set.clone())).collect();
    ops.extend(content.counters.into_iter().map(|(table, name)| Op::AddCounter(table, name)));
    ops.extend(content.chains.iter().map(|c| Op::AddChain(c.table, c.chain.clone())));
    let filled = content.sets.into_iter().filter(|(.., elements)| !elements.is_empty());
    ops.extend(filled.map(|(table, set, elements)| Op::AddElements(table, set, elements)));
    ops.extend(content.chains.into_iter().filter_map(rules));
    ops
}

fn rules(chain: ChainRules) -> Option<Op> {
    (!chain.rules.is_empty()).then_some(Op::AddRules(chain.table, chain.chain.name, chain.rules))
}

fn alike(found: &Set, wanted: &Set) -> bool {
    found.key() == wanted.key()
        && found.data() == wanted.data()
        && found.has_intervals() == wanted.has_intervals()
        && found.is_dynamic() == wanted.is_dynamic()
        && found.is_counted() == wanted.is_counted()
}

fn same_base(chain: &Chain, found: Option<&BaseInfo>) -> bool {
    match (&chain.base, found) {
        (None, None) => true,
        (Some(base), Some(found)) => {
            let devices: Vec<&str> = found.devices.iter().map(String::as_str).collect();
            // NF_INET_PRE_ROUTING to NF_INET_POST_ROUTING, NF_NETDEV_INGRESS; our chains have no other hooks.
            let (number, device) = match &base.hook {
                Hook::Ingress(device) => (0, vec![device.as_str()]),
                Hook::Prerouting => (0, Vec::new()),
                Hook::Input => (1, Vec::new()),
                Hook::Forward => (2, Vec::new()),
                Hook::Output => (3, Vec::new()),
                Hook::Postrouting => (4, Vec::new()),
                Hook::Egress(_) => return false,
            };
            found.hook == number
                && base.priority == found.priority
                && (base.policy == Policy::Accept) == found.accept
                && devices == device
                && found.kind
                    == match base.kind {
                        ChainType::Filter => "filter",
                        ChainType::Nat => "nat",
                        ChainType::Route => "route",
                    }
        }
        _ => false,
    }
}

/// The elements that are there and should not be, and those that should be there and are not. The same key with another
/// verdict is both.
fn differences(mut there: Vec<Element>, mut wanted: Vec<Element>) -> (Vec<Element>, Vec<Element>) {
    let key = |e: &Element| (e.key, e.end);
    there.sort_unstable_by_key(key);
    wanted.sort_unstable_by_key(key);
    let (mut gone, mut new) = (Vec::new(), Vec::new());
    let mut there = there.into_iter().peekable();
    for element in wanted {
        while let Some(e) = there.next_if(|e| key(e) < key(&element)) {
            gone.push(e);
        }
        match there.next_if(|e| key(e) == key(&element)) {
            Some(same) if same.data == element.data => {}
            Some(other) => {
                gone.push(other);
                new.push(element);
            }
            None => new.push(element),
        }
    }
    gone.extend(there);
    (gone, new)
}
