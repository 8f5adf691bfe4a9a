//! What a plan consists of: changes to our tables, as values.

use std::sync::Arc;

use moat_nfnetlink::EncodeError;
use moat_nfnetlink::nft::{self, Batch, Chain, Element, Rule, Set};

use super::layout::Table;

/// One change. The kernel carries them out in their order; what one names must be there by then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Op {
    /// A table with these flags and user data; one that exists keeps what it holds.
    AddTable(nft::Table),
    /// A table and all that it holds goes.
    DeleteTable(Table),
    /// A set or map that is not there, empty.
    AddSet(Table, Set),
    /// A set or map goes, with its elements. No rule may look into it.
    DeleteSet(Table, Arc<str>),
    /// Elements that are not there.
    AddElements(Table, Set, Vec<Element>),
    /// A counter; one that exists keeps what it counted.
    AddCounter(Table, Arc<str>),
    /// A counter goes. No rule may count in it.
    DeleteCounter(Table, Arc<str>),
    /// Elements that are there.
    DeleteElements(Table, Set, Vec<Element>),
    /// A chain that is not there, without rules.
    AddChain(Table, Chain),
    /// Rules at the end of a chain.
    AddRules(Table, Arc<str>, Vec<Rule>),
    /// All rules of a chain go.
    FlushChain(Table, Arc<str>),
    /// All rules of all chains of a table go.
    FlushTable(Table),
    /// A chain goes, with its rules. Nothing may lead to it.
    DeleteChain(Table, Arc<str>),
}

impl Op {
    /// Adds the change to a batch.
    pub(crate) fn encode(&self, batch: &mut Batch) -> Result<(), EncodeError> {
        match self {
            Op::AddTable(table) => batch.add_table(table),
            Op::DeleteTable(table) => batch.delete_table(&table.id()),
            Op::AddSet(table, set) => batch.add_set(&table.id(), set),
            Op::DeleteSet(table, name) => batch.delete_set(&table.id(), name),
            Op::AddElements(table, set, elements) => {
                batch.add_elements(&table.id(), set, elements.iter().cloned())
            }
            Op::DeleteElements(table, set, elements) => {
                batch.delete_elements(&table.id(), set, elements.iter().cloned())
            }
            Op::AddCounter(table, name) => batch.add_counter(&table.id(), name),
            Op::DeleteCounter(table, name) => batch.delete_counter(&table.id(), name),
            Op::AddChain(table, chain) => batch.add_chain(&table.id(), chain),
            Op::AddRules(table, chain, rules) => {
                rules.iter().try_for_each(|rule| batch.add_rule(&table.id(), chain, rule))
            }
            Op::FlushChain(table, chain) => batch.flush_chain(&table.id(), chain),
            Op::FlushTable(table) => batch.flush_table(&table.id()),
            Op::DeleteChain(table, name) => batch.delete_chain(&table.id(), name),
        }
    }
}

/// Changes that lead from one state of the tables to another, in one transaction, or in two.
///
/// What is new looks empty for a moment to a packet that is led there by the transaction that makes it. The kernel puts the content
/// of an interval set in force a moment after the rules; and a packet under way keeps to the rules from before the commit,
/// but a map shows it the elements from after it: a new chain has no rules for it then, and its end is the base chain's
/// policy. So both are made in a transaction before the one that leads packets to them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Plan {
    /// What nothing leads to yet.
    pub(crate) stage: Vec<Op>,
    /// What packets notice.
    pub(crate) commit: Vec<Op>,
}

impl Plan {
    /// Whether there is nothing to do.
    pub(crate) fn is_empty(&self) -> bool {
        self.stage.is_empty() && self.commit.is_empty()
    }

    /// The transactions: one, or two where a new chain or interval set is among the changes.
    pub(crate) fn transactions(self) -> Vec<Vec<Op>> {
        let apart = self.stage.iter().any(|op| match op {
            Op::AddSet(_, set) => set.has_intervals(),
            Op::AddChain(..) => true,
            _ => false,
        });
        let mut all = vec![self.stage];
        if apart {
            all.push(self.commit)
        } else {
            all[0].extend(self.commit)
        }
        all.retain(|ops| !ops.is_empty());
        all
    }
}
