//! What moat's controller and its agents say to each other.
//!
//! ```text
//!   agent ── Hello: what I hold, as sums ──▶ controller         what a node holds: Told
//!         ◀── Welcome, Update, Update … ──                       what changes there: Change
//!         ── Applied, Attachments ──────▶                        both on the wire: wire
//! ```
//!
//! The protocol itself is `proto/moat/v1/policy.proto`, field by field; [`wire`] is that file in Rust, and the rest of this
//! crate leads from there to the engine's types and back. What comes from a peer is checked as it is decoded: a message that
//! says something that cannot be is [`Invalid`], and nothing of it counts.
//!
//! It does not connect, listen, or keep anything: controller and agent do.

mod change;
mod decode;
mod digest;
mod encode;
mod hello;
mod told;

pub use change::{Change, ToldPod};
pub use decode::Invalid;
pub use digest::Digest;
pub use encode::update;
pub use hello::{Announced, Attached, Attachments, Hello};
pub use told::{Held, Told};

/// The highest level of the protocol that this version understands.
pub const LEVEL: u32 = 2;

/// The largest message that a controller takes from an agent, in bytes: what an agent holds, in sums.
pub const LARGEST_FROM_AGENT: usize = 16 << 20;

/// The largest message that an agent takes from its controller, in bytes. All that a node needs comes in one; policies can
/// make that large, and what is too large for the node is for its own limits to say.
pub const LARGEST_FROM_CONTROLLER: usize = 1 << 30;

/// `policy.proto` in Rust.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated; documented where it comes from")]
pub mod wire {
    tonic::include_proto!("moat.v1");
}
