//! The NetworkPolicy engine of moat, pure: values in, values out; no files, sockets or clocks.
//!
//! ```text
//!   Namespace  Pod  Node  NetworkPolicy          (object: what a source hands over)
//!        └──────┬─────────────┘
//!               ▼ apply / delete / reset
//!            Cluster ──┬── evaluate(flow) ─▶ Verdict and its reasons, straight from the policies
//!                      └── commit() ───────▶ NodeDelta: programs and allow sets of each node's pods
//! ```
//!
//! The words: a *policy* is an API object, a *rule* one entry of it. A policy's *subject* is the pods it
//! selects; a *peer* is who a rule lets talk to them. A pod is *isolated* in a direction when some policy
//! selects it there. A *verdict program* is what is left of all policies for one pod and direction: a few
//! disjoint *port classes*, each with one *allow set* of peers. A set's *span* is the nodes that need it.
//!
//! `evaluate` and the compiler share only the objects; property tests hold the two together.

// The random clusters of tests/ serve tests inside the crate, too.
#[cfg(test)]
extern crate self as moat_policies;

mod block;
mod cluster;
mod evaluate;
mod explain;
mod flow;
mod hash;
mod labels;
mod name;
mod network_config;
mod object;
mod objects;
mod pods;
mod prefixes;
mod program;
mod selector;
mod sharing;
mod texts;

pub use block::{Block, BlockError};
pub use cluster::{Cluster, NodeView};
pub use evaluate::{Evaluator, Judgement, Matrix, Party};
pub use flow::{
    Candidate, Endpoint, Family, Flow, Miss, Reason, RuleRef, Side, Traffic, UnknownEndpoint, Verdict,
};
pub use labels::Labels;
pub use name::NamespacedName;
pub use network_config::{DenyAction, LogLimit, NetworkConfig, RouteMode};
pub use object::{
    ContainerPort, Direction, Key, Namespace, NamespaceScope, NetworkPolicy, Node, Object, Peer, Peers, Pod,
    PortMatch, PortRef, Ports, Protocol, Rule,
};
pub use objects::{NAMESPACE_NAME_LABEL, Objects};
pub use pods::Pods;
pub use program::{
    Allow, AllowSet, Element, Excess, Limits, NodeDelta, PodPrograms, PortClass, PortRange, Program,
    ProgramId, SetChange, SetId, SetKind, SetUpdate,
};
pub use selector::{Operator, Requirement, Selector, SelectorError};
pub use sharing::Sharing;
