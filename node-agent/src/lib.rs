//! moat's node agent: enforces compiled policy in nftables and runs the pod network.
//!
//! ```text
//!   folders ──source──▶ Reading ─┐                        ┌─ dataplane: writer thread ──▶ nftables
//!                                ├─▶ desired ──▶ Update ──┤
//!   moat-cni ─cni_server─▶ ADD ──┘    (pure)              └─ podnet: veths, addresses, routes
//! ```
//!
//! [`run`] ties it together; [`guard`] is a process of its own that keeps the tables' owner alive; [`check`] is a party of its own that reads the kernel's tables through `nft` and compares
//! what they do with what the engine says.

mod agent;
pub mod check;
pub mod cni_files;
pub mod cni_server;
mod crowding;
pub mod dataplane;
pub mod desired;
pub mod doctor;
pub mod droplog;
pub mod flows;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod guard;
pub mod http;
pub mod metrics;
pub mod network;
pub mod podnet;
pub mod readiness;
mod requests;
pub mod run;
pub mod source;
mod streams;
pub mod uninstall;
