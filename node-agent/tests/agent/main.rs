//! The agent as a process: started, killed, started again, and its guard beside it.
//!
//! Needs root, or a kernel that lets everybody make user namespaces; and `ip`, `nft` and `unshare`.

mod guard;
mod killed;
mod node;
#[allow(dead_code, reason = "the data plane's tests use the rest")]
#[path = "../dataplane/space.rs"]
mod space;
mod upgrade;
