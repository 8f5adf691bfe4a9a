//! What the kernel holds, read back: for adoption at start, and for whoever wants to look.

use super::{Family, Socket, TableId, message};
use crate::Error;
use crate::connection::Request;
use crate::nft::info::{ChainInfo, CounterInfo, ElementView, RuleInfo, SetInfo, TableInfo};
use crate::wire::{Message, Writer, flags, message_type, subsystem};

/// What a dump found.
#[derive(Debug, Clone)]
pub struct Listing<T> {
    /// In the kernel's order.
    pub items: Vec<T>,
    /// False: somebody committed to some table while the kernel was listing. What is listed of a table that
    /// nobody else may change is right all the same; otherwise list again.
    pub consistent: bool,
}

impl Socket {
    /// Lists the tables, of one family or of all.
    pub fn tables(&mut self, family: Option<Family>) -> Result<Listing<TableInfo>, Error> {
        self.list("list tables", message::GET_TABLE, family, |_| {}, TableInfo::decode)
    }

    /// Lists the chains of a table.
    pub fn chains(&mut self, table: &TableId) -> Result<Listing<ChainInfo>, Error> {
        let ours = |message: &Message<'_>| ChainInfo::decode(message).filter(|chain| chain.table == *table);
        self.list("list chains", message::GET_CHAIN, Some(table.family), |_| {}, ours)
    }

    /// Lists the sets and maps of a table, without their elements.
    pub fn sets(&mut self, table: &TableId) -> Result<Listing<SetInfo>, Error> {
        let of = |w: &mut Writer| w.string(1, &table.name);
        let ours = |message: &Message<'_>| SetInfo::decode(message).filter(|set| set.table == *table);
        self.list("list sets", message::GET_SET, Some(table.family), of, ours)
    }

    /// Lists the rules of a table, or of one of its chains.
    pub fn rules(&mut self, table: &TableId, chain: Option<&str>) -> Result<Listing<RuleInfo>, Error> {
        let of = |w: &mut Writer| {
            w.string(1, &table.name);
            if let Some(chain) = chain {
                w.string(2, chain);
            }
        };
        let ours = |message: &Message<'_>| {
            RuleInfo::decode(message)
                .filter(|rule| rule.table == *table && chain.is_none_or(|chain| *rule.chain == *chain))
        };
        self.list("list rules", message::GET_RULE, Some(table.family), of, ours)
    }

    /// Lists the counters of a table that have names.
    pub fn counters(&mut self, table: &TableId) -> Result<Listing<CounterInfo>, Error> {
        let of = |w: &mut Writer| {
            w.string(1, &table.name);
            w.be32(3, message::COUNTER);
        };
        let ours = |message: &Message<'_>| CounterInfo::decode(message).filter(|c| c.table == *table);
        self.list("list counters", message::GET_OBJ, Some(table.family), of, ours)
    }

    /// Hands over every element of a set or map, without keeping them: there may be a hundred thousand.
    /// Returns what [`Listing::consistent`] says.
    pub fn elements(
        &mut self,
        table: &TableId,
        set: &str,
        mut each: impl FnMut(ElementView<'_>),
    ) -> Result<bool, Error> {
        let request = self.question(message::GET_SETELEM, Some(table.family), |w| {
            w.string(1, &table.name);
            w.string(2, set);
        })?;
        self.connection.dump(&request, "list elements", |message| {
            for element in message.attrs().filter(|attr| attr.kind == 3).flat_map(|list| list.nested()) {
                if let Some(element) = ElementView::decode(element.nested()) {
                    each(element);
                }
            }
        })
    }

    fn question(
        &mut self,
        kind: u8,
        family: Option<Family>,
        build: impl FnOnce(&mut Writer),
    ) -> Result<Request, Error> {
        let family = family.map_or(0, |family| family as u8);
        self.connection.request(message_type(subsystem::NFTABLES, kind), flags::DUMP, family, build)
    }

    fn list<T>(
        &mut self,
        doing: &'static str,
        kind: u8,
        family: Option<Family>,
        build: impl FnOnce(&mut Writer),
        decode: impl Fn(&Message<'_>) -> Option<T>,
    ) -> Result<Listing<T>, Error> {
        let request = self.question(kind, family, build)?;
        let mut items = Vec::new();
        let consistent = self.connection.dump(&request, doing, |message| items.extend(decode(message)))?;
        Ok(Listing { items, consistent })
    }
}
