//! Where policy comes from: folders of manifests that this agent compiles itself, or a controller that has compiled them.
//!
//! ```text
//!   folders ─▶ Reading ──────────────────────────────────────────────┐
//!   controller ─stream─▶ Update ─▶ Told (all that this node was told) ├─▶ News ─▶ run
//!                                   └─▶ kept: on the disk, for a start without a controller
//! ```

mod announce;
mod call;
mod connect;
mod endpoint;
mod kept;
mod outbox;
mod pause;
mod stream;

use std::sync::Arc;

use moat_api::Change;
use moat_manifests::{Errors, Folders, Reading};

pub use connect::{ConnectError, Trust};
pub use endpoint::{Endpoint, EndpointError};
pub(crate) use kept::FILES;
pub use kept::KeptError;
#[cfg(feature = "fuzzing")]
pub(crate) use kept::rewritten as told_file;
pub(crate) use outbox::Outbox;
pub(crate) use stream::follow;

/// Where policy comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Folders of manifests.
    Folders(Folders),
    /// A controller.
    Controller(Controllers),
}

/// Controllers of which any will do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Controllers {
    /// Where they are: at least one. Where one cannot be followed, the next is tried.
    pub endpoints: Vec<Endpoint>,
    /// How they are known.
    pub trust: Trust,
}

/// What a source says.
#[derive(Debug)]
pub(crate) enum News {
    /// The folders say something else.
    Read(Reading),
    /// The folders say something that cannot be decoded.
    Refused(Errors),
    /// The controller tells a change.
    Told(Told),
    /// There is no controller just now, and why.
    Alone(String),
}

/// What a controller tells.
#[derive(Debug)]
pub(crate) struct Told {
    /// The connection that it came by; its revisions are this one's alone.
    pub(crate) connection: u64,
    /// The revision that this leads to; 0: the last state that was kept on the disk.
    pub(crate) revision: u64,
    /// Names the state, for people.
    pub(crate) name: String,
    /// What people call what they have applied, as of this revision.
    pub(crate) fingerprint: Arc<str>,
    /// What changes. Everything that goes is named.
    pub(crate) change: Change,
}
