//! `moat-agent check`: does the kernel's table do what the policies say?
//!
//! ```text
//!   nft -j list table inet moat ──reader──▶ Ruleset ──┐
//!   manifests ──▶ Objects ──▶ evaluate ───────────────┴─ compare: every pod, direction, peers, port edges ──▶ Report
//!   nft -j list table inet moat-net, records of pods ──── where ports of the node lead                   ──▶ Report
//! ```
//!
//! An independent party: it shares no code with what writes the table. Of the table it knows what the kernel knows, which
//! chains are hooked in where and what each expression means, and one name besides: that of the chain that answers go
//! through while connections are judged anew. It walks the table packet by packet, each there and its answer back.

mod compare;
mod host_ports;
mod reader;
mod ruleset;
mod run;
mod sample;
mod value;
mod walk;

pub use compare::{CompareError, Difference, Report, Veth, compare};
pub use reader::{ReadError, read};
pub use ruleset::{
    Base, Chain, Datum, Field, FieldKind, Pattern, Right, Ruleset, Set, Statement, Type, Verdict,
};
pub use run::{CheckArgs, CheckError, check, run};
pub use sample::Limits;
pub use walk::{Outcome, Packet, WalkError, walk};
