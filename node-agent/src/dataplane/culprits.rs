//! Whose fault it is that the kernel refused a transaction. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use moat_nfnetlink::nft::Key;

use super::closed::Subject;
use super::error::Error;
use super::layout::Table;
use super::op::Op;
use super::state::State;

/// A place in a transaction that the kernel pointed at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spot {
    /// In this table,
    pub(crate) table: Table,
    /// the set or chain of this name,
    pub(crate) name: Arc<str>,
    /// and there this element, if it is known.
    pub(crate) key: Option<Key>,
    /// Something that it leads to was not there: mostly because that was refused, too.
    pub(crate) follows: bool,
}

/// A transaction that did not go through. Nothing of it is in force.
#[derive(Debug)]
pub(crate) struct Failed {
    /// Why.
    pub(crate) error: Error,
    /// Where, if the kernel pointed at what was to be added.
    pub(crate) spots: Vec<Spot>,
}

impl<E: Into<Error>> From<E> for Failed {
    fn from(error: E) -> Self {
        Failed { error: error.into(), spots: Vec::new() }
    }
}

/// The place of an operation, if it adds something; `element` is the place in its list.
pub(crate) fn spot(op: &Op, element: Option<usize>, follows: bool) -> Option<Spot> {
    let (table, name, key) = match op {
        Op::AddSet(table, set) => (*table, set.name().clone(), None),
        Op::AddElements(table, set, elements) => {
            (*table, set.name().clone(), element.and_then(|n| elements.get(n)).map(|e| e.key))
        }
        Op::AddChain(table, chain) => (*table, chain.name.clone(), None),
        Op::AddRules(table, chain, _) => (*table, chain.clone(), None),
        _ => return None,
    };
    Some(Spot { table, name, key, follows })
}

/// What these places are about. Where something was only missing, what it misses is a place of its own.
pub(crate) fn culprits(spots: &[Spot], state: &State) -> BTreeSet<Subject> {
    let names = state.names();
    let of = |spot: &Spot| -> Vec<Subject> {
        match (names.get(&(spot.table, spot.name.clone())), &spot.key) {
            (Some(subject), _) => vec![subject.clone()],
            (None, Some(key)) => state.pods_with(&spot.name, key).into_iter().map(Subject::Pod).collect(),
            (None, None) => Vec::new(),
        }
    };
    let causes: BTreeSet<Subject> = spots.iter().filter(|s| !s.follows).flat_map(of).collect();
    if !causes.is_empty() {
        return causes;
    }
    spots.iter().flat_map(of).collect()
}
