//! Kubernetes objects from an API server, as the engine takes them.
//!
//! ```text
//!   API server ─ list, then watch ─▶ Record<Pod | Namespace | Node | StoredPolicy | StoredConfig>     one task a kind
//!                                        │ Heard
//!                                        ▼
//!                                     Held: who is there, in which version ─▶ News: what became different
//! ```
//!
//! Of an object only what decides a verdict is kept, and that not here: a record is read out of the API server's JSON field by
//! field, handed on as the engine's object, and forgotten. What stays is each object's name and version, to tell news from what is
//! known already and to find what is gone when a kind has to be listed again.
//!
//! The words: a *kind* is Pod, Namespace, Node, NetworkPolicy or NetworkConfig; a *version* is an object's `metadata.resourceVersion`; a *list* is a
//! consistent one of all objects of a kind, and says which version of the cluster it is of; a *watch* tells what happened since.
//!
//! What it does not do: decide anything about policy, or write to the API server.

mod access;
mod cluster;
mod config;
mod error;
mod follow;
mod held;
mod list;
mod pod;
mod policy;
mod record;
mod watch;

pub use access::Access;
pub use error::Error;
pub use held::{Heard, Held, News, OutOfOrder, Said, Versioned};
pub use list::{Listing, list};
pub use policy::PolicyNote;
pub use record::{Kind, Record};
pub use watch::{KindState, State, Watch};
