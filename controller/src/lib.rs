//! moat's controller: compiles policy, and tells each node's agent what its pods need.
//!
//! ```text
//!   API server, or folders ─ source ─ Changes ─▶ index ◀─ Attachments, Applied ─┐
//!                                                  └──── Change ──▶ serve ◀─────┴── gRPC, one stream an agent
//! ```
//!
//! Any number of controllers serve beside each other: each is a function of what its source says and of what the agents that
//! are connected to it say of their pods' addresses. What is decided is decided in [`index`], which is synchronous; everything
//! else here waits and sends.

pub mod authority;
pub mod complaints;
pub mod entrance;
mod events;
mod guests;
pub mod http;
pub mod index;
pub mod listen;
pub mod metrics;
mod replicas;
pub mod run;
mod said;
pub mod serve;
pub mod source;
mod status;
mod tls;
pub mod tokens;
