//! Netfilter's netlink: changes to nf_tables as atomic batches, what the kernel holds, everybody's commits,
//! tracked connections, and logged packets. Knows nothing of pods or policies.
//!
//! ```text
//!   Table Chain Set Element Rule ──▶ nft::Batch ──▶ nft::Socket::send ──▶ kernel: all of it, or nothing
//!        values, checked as they are written                 │
//!                                                            └─▶ Error: which message, which element, and
//!                                                                the kernel's own words
//!   nft::Socket::{tables, chains, sets, elements, rules}   what is there, for whoever adopts it
//!   nft::Events           every commit in the namespace: its generation, who made it, which tables it touched
//!   conntrack::Conntrack  tracked connections, and bits of their marks
//!   nflog::Group          packets that a log statement copied
//!   xtables::read         the rules of the older iptables, which netlink does not tell
//! ```
//!
//! A *batch* is one transaction. Every commit of anybody makes a new *generation* of the ruleset; a batch that
//! names the generation it was built on is refused ([`Error::Restart`]) if somebody came in between. A table
//! with the *owner* flag can be changed through the one [`nft::Socket`] that added or took it over. A *verdict
//! map* leads from a key to a verdict; a key is a *concatenation* of fields, each padded to four bytes.
//!
//! ```no_run
//! use moat_nfnetlink::nft::{Batch, Element, Family, Field, Set, Socket, Table, TableId};
//!
//! let table = TableId::new(Family::Inet, "example");
//! let peers = Set::new("peers", Field::Ipv4Addr);
//! let mut batch = Batch::new();
//! batch.add_table(&Table::new(table.clone()))?;
//! batch.add_set(&table, &peers)?;
//! batch.add_elements(&table, &peers, [Element::new(std::net::Ipv4Addr::new(10, 0, 0, 1))])?;
//!
//! let mut socket = Socket::open()?;
//! let committed = socket.send(&batch, None)?;
//! println!("generation {}", committed.genid);
//! # Ok::<(), moat_nfnetlink::Error>(())
//! ```
//!
//! Writing and reading messages is pure and apart from the sockets: [`nft::Batch`], [`nft::Assembler`],
//! [`conntrack::Entry::read`] and [`nflog::Packets`] take and give bytes, and what reads survives any bytes.
//! A socket belongs to the network namespace of the thread that opened it. Calls do not wait for anything but
//! the kernel's work, except those that say so; every socket has a descriptor to poll.
//!
//! What is not here: anonymous sets, sets of one-field ranges (the kernel's structure for them is slow to
//! change), stateful objects other than counters, flow tables. `cargo bench -p moat-nfnetlink` measures the
//! commits that an agent makes.
//!
//! This is the one crate with `unsafe` code: a `setsockopt` and two `getsockopt` in `src/sys.rs`.

mod connection;
pub mod conntrack;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod nflog;
pub mod nft;
#[cfg(test)]
mod robustness;
#[cfg(test)]
#[allow(dead_code, reason = "the kernel tests use the rest")]
#[path = "../tests/kernel/support.rs"]
mod support;
mod sys;
mod wire;
pub mod xtables;

pub use error::{EncodeError, Error, Failure, Refusal};
