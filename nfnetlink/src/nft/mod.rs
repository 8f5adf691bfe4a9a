//! nf_tables: what to write ([`Batch`] and what goes into it), the [`Socket`] that commits it, what the
//! kernel holds, and the [`Events`] of everybody's commits.

mod batch;
mod chain;
mod dump;
mod events;
mod field;
mod info;
mod key;
mod message;
mod name;
mod operation;
#[cfg(test)]
mod round_trip;
mod rule;
mod set;
mod socket;
mod source;
mod statement;
mod table;
pub mod userdata;
mod verdict;

pub use batch::Batch;
pub use chain::{Base, Chain, ChainType, Hook, Policy};
pub use dump::Listing;
pub use events::{Assembler, Commit, Event, Events};
pub use field::{Field, KeyType};
pub use info::{BaseInfo, ChainInfo, CounterInfo, ElementView, RuleInfo, SetInfo, TableInfo};
pub use key::{Key, Value};
pub use name::{Family, IfName, Ref, TableId};
pub use operation::{Object, Operation, Verb};
pub use rule::{Position, Rule};
pub use set::{Data, DataType, Element, Set};
pub use socket::{Committed, Socket};
pub use source::{Base as PayloadBase, Ct, Direction, FibResult, Meta, Options, Source, ct_state, fib};
pub use statement::{Cmp, IcmpError, Limit, Log, Operand, Reject, Statement};
pub use table::{Table, table_flags};
pub use userdata::UserData;
pub use verdict::Verdict;

use crate::wire::Writer;
use name::encode_name;

/// Writes an expression: its kind, and the attributes that `content` writes.
fn expression(writer: &mut Writer, kind: &str, content: impl FnOnce(&mut Writer)) {
    writer.nest(1, |w| {
        w.string(1, kind);
        w.nest(2, content);
    });
}

/// Runs every decoder of the module over a message, for the tests of what they survive.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn decode_any(message: &crate::wire::Message<'_>) {
    let _ = TableInfo::decode(message);
    let _ = ChainInfo::decode(message);
    let _ = SetInfo::decode(message).map(|set| set.declaration());
    let _ = CounterInfo::decode(message);
    let _ = RuleInfo::decode(message).map(|rule| (rule.counter(), rule.expression_names().len()));
    let _ = Operation::of(message).map(|operation| operation.to_string());
    for list in message.attrs() {
        for element in list.nested() {
            let set = Set::new("set", Field::Ipv4Addr).verdict_map();
            let _ = ElementView::decode(element.nested()).map(|view| view.element(&set));
        }
    }
    socket::decode_any(message);
}
