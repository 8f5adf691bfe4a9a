//! Connections that are there already follow policy: real packets through the kernel's tables, before and after a change.
//!
//! Needs root, or a kernel that gives plain users namespaces.

mod connection;
mod cut;
#[path = "../dataplane/interrupted.rs"]
mod interrupted;
mod moved;
mod nat;
#[path = "../dataplane/probe.rs"]
#[allow(dead_code, reason = "shared with the data plane's tests, which use more of it")]
mod probe;
mod races;
#[path = "../dataplane/space.rs"]
#[allow(dead_code, reason = "shared with the data plane's tests, which use more of it")]
mod space;
mod watched;
#[path = "../dataplane/world.rs"]
#[allow(dead_code, reason = "shared with the data plane's tests, which use more of it")]
mod world;
