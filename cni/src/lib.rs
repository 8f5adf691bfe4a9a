//! `moat-cni`: the CNI plugin that gives a pod its network, and the protocol by which it asks the agent for it.
//!
//! ```text
//!   runtime ── environment, network configuration on stdin ─▶ moat-cni ── one JSON line ─▶ agent
//!           ◀─ result or error of the asked CNI version ─────          ◀─ one JSON line ──
//! ```
//!
//! The plugin decides nothing and, as long as there is an agent, touches no network itself: it reads what the CNI
//! specification says a runtime hands over ([`environment`], [`config`]), asks the node's agent ([`protocol`], [`client`]),
//! and puts the answer in the form of the CNI version that the configuration asks for ([`result`]). It is small and
//! synchronous, so that a pod's start waits for the agent and for nothing else.
//!
//! A pod must be able to go when no agent runs, too: then DEL removes the pod's link itself and leaves a [`note`] for the
//! next agent ([`removal`]).
//!
//! Stdout carries the specification's JSON and nothing but it.

pub mod client;
pub mod config;
pub mod environment;
pub mod error;
pub mod failpoint;
pub mod link;
pub mod name;
pub mod note;
pub mod plugin;
pub mod port;
pub mod protocol;
pub mod removal;
pub mod result;
pub mod stream;
pub mod version;
