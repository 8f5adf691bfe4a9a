//! A rule: statements that a packet goes through, until one does not match or decides.

use std::sync::Arc;

use super::{Cmp, Limit, Log, Operand, Reject, Source, Statement, UserData, Value, Verdict, ct_state};
use crate::wire::Writer;

/// A rule, written as a chain of calls.
///
/// ```
/// use moat_nfnetlink::nft::{Rule, Source, Verdict};
/// let rule = Rule::new().eq(Source::L4PROTO, 6).lookup([Source::IP_SADDR], "peers").verdict(Verdict::Accept);
/// assert_eq!(rule.statements().len(), 3);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Rule {
    statements: Vec<Statement>,
    userdata: UserData,
}

/// Where in its chain a rule goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Position {
    /// Behind all others.
    Last,
    /// Before all others.
    First,
    /// Behind the rule with this handle.
    After(u64),
    /// Before the rule with this handle.
    Before(u64),
    /// In place of the rule with this handle.
    Replace(u64),
}

impl Rule {
    /// A rule with no statement: it matches every packet and does nothing.
    pub fn new() -> Self {
        Rule::default()
    }

    /// Its statements in order.
    pub fn statements(&self) -> &[Statement] {
        &self.statements
    }

    /// Its user data.
    pub fn userdata(&self) -> &UserData {
        &self.userdata
    }

    /// Adds any statement.
    pub fn then(mut self, statement: Statement) -> Self {
        self.statements.push(statement);
        self
    }

    /// Goes on if what is read compares so with the value.
    pub fn cmp(self, source: Source, cmp: Cmp, value: impl Into<Operand>) -> Self {
        self.then(Statement::Match { source, mask: None, cmp, value: value.into() })
    }

    /// Goes on if what is read is the value.
    pub fn eq(self, source: Source, value: impl Into<Operand>) -> Self {
        self.cmp(source, Cmp::Eq, value)
    }

    /// Goes on if what is read is not the value.
    pub fn neq(self, source: Source, value: impl Into<Operand>) -> Self {
        self.cmp(source, Cmp::Neq, value)
    }

    /// Goes on if the bits of the mask compare so with the value.
    pub fn masked(
        self,
        source: Source,
        mask: impl Into<Operand>,
        cmp: Cmp,
        value: impl Into<Operand>,
    ) -> Self {
        self.then(Statement::Match { source, mask: Some(mask.into()), cmp, value: value.into() })
    }

    /// Goes on if the connection's state is one of these bits of [`ct_state`].
    pub fn ct_state(self, states: u32) -> Self {
        debug_assert!(states & !(ct_state::UNTRACKED * 2 - 1) == 0, "unknown connection states");
        self.masked(Source::CT_STATE, Value::CtState(states), Cmp::Neq, Value::CtState(0))
    }

    /// Goes on if any of these bits of the connection's mark is set; `any` false: if none is.
    pub fn ct_mark(self, bits: u32, any: bool) -> Self {
        let cmp = if any { Cmp::Neq } else { Cmp::Eq };
        self.masked(Source::CT_MARK, Value::Mark(bits), cmp, Value::Mark(0))
    }

    /// Goes on if what is read lies between two values, both included.
    pub fn range(self, source: Source, from: impl Into<Operand>, to: impl Into<Operand>) -> Self {
        self.then(Statement::Range { source, from: from.into(), to: to.into(), inverted: false })
    }

    /// Goes on if the set holds the key.
    pub fn lookup(self, key: impl Into<Box<[Source]>>, set: impl Into<Arc<str>>) -> Self {
        self.then(Statement::Lookup { key: key.into(), set: set.into(), inverted: false })
    }

    /// Goes on if the set does not hold the key.
    pub fn lookup_missing(self, key: impl Into<Box<[Source]>>, set: impl Into<Arc<str>>) -> Self {
        self.then(Statement::Lookup { key: key.into(), set: set.into(), inverted: true })
    }

    /// Does what the verdict map says for the key.
    pub fn vmap(self, key: impl Into<Box<[Source]>>, map: impl Into<Arc<str>>) -> Self {
        self.then(Statement::VerdictMap { key: key.into(), map: map.into() })
    }

    /// Counts packets and bytes.
    pub fn counter(self) -> Self {
        self.then(Statement::Counter)
    }

    /// Counts packets and bytes in the counter of that name.
    pub fn count_in(self, counter: impl Into<Arc<str>>) -> Self {
        self.then(Statement::CountIn(counter.into()))
    }

    /// Goes on so often for each key; remembers the keys in a dynamic set.
    pub fn meter(self, key: impl Into<Box<[Source]>>, set: impl Into<Arc<str>>, limit: Limit) -> Self {
        self.then(Statement::Meter { key: key.into(), set: set.into(), limit })
    }

    /// Goes on so often.
    pub fn limit(self, limit: Limit) -> Self {
        self.then(Statement::Limit(limit))
    }

    /// Copies the packet to an nflog group.
    pub fn log(self, log: Log) -> Self {
        self.then(Statement::Log(log))
    }

    /// Drops the packet and tells its sender.
    pub fn reject(self, reject: Reject) -> Self {
        self.then(Statement::Reject(reject))
    }

    /// Decides.
    pub fn verdict(self, verdict: Verdict) -> Self {
        self.then(Statement::Verdict(verdict))
    }

    /// Adds a text that `nft list` shows.
    pub fn comment(mut self, text: impl Into<Box<str>>) -> Self {
        self.userdata = self.userdata.comment(text);
        self
    }

    /// Replaces the user data.
    pub fn with_userdata(mut self, userdata: UserData) -> Self {
        self.userdata = userdata;
        self
    }

    pub(crate) fn encode(&self, writer: &mut Writer) {
        writer.nest(4, |w| {
            for statement in &self.statements {
                statement.encode(w);
            }
        });
        self.userdata.encode(writer, 7, super::userdata::COMMENT, &[]);
    }
}
