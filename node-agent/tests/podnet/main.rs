//! The pod network in the real kernel, asked for by the real plugin: namespaces, veth pairs, packets through them.
//!
//! Every test makes its own nodes and pods, each a network namespace; nothing touches the machine's own network.
#![allow(clippy::unwrap_used, reason = "a test's helper fails by panicking, as the test does")]

mod attach;
mod cnitool;
mod crash;
mod drift;
mod fleet;
mod frozen;
mod heal;
mod hostport;
mod lost;
mod nodes;
mod real;
mod removal;
mod sctp;
mod steps;
mod together;
mod tunnel;
mod unknown;
mod world;
