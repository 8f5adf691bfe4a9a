//! The whole agent as a process, in the real kernel: its folders, its answers, and packets between its pods; started,
//! killed, started again, and its guard beside it.
#![allow(clippy::unwrap_used, reason = "a test's helper fails by panicking, as the test does")]

#[path = "../podnet/world.rs"]
#[allow(dead_code, reason = "shared with the tests of the pod network, which use more of it")]
mod netns;

mod bad_folder;
mod closed;
mod cluster;
mod controller;
mod counts;
mod deleted_link;
mod guard;
mod held;
mod killed;
#[path = "../../../api/tests/level1/policy.rs"]
#[allow(warnings, clippy::all, missing_docs, reason = "generated once and for all")]
mod level1;
mod node;
mod older;
mod packets;
mod pod_to_node;
mod ready;
mod reboot;
mod refused;
mod replicas;
mod reshaped;
mod rights;
#[path = "../dataplane/space.rs"]
#[allow(dead_code, reason = "the data plane's tests use the rest")]
mod space;
mod storm;
mod uninstall;
mod upgrade;
mod world;
