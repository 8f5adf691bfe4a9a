//! A lab that misbehaves: faults by a seed, traffic on every pair, and a verdict on every packet.
//!
//! ```text
//!   plan (seed) ── faults ──▶ run ── writes, kills, edits, pods, links ──▶ the lab
//!                              │                                            ▲
//!   generators, servers ───────┼── packets ─────────────────────────────────┘
//!        └── journal: sent, arrived ──▶ judge: views (what may each node be enforcing?) × law (what does the engine say?) ──▶ report
//! ```
//!
//! Pure: [`plan`], [`views`], [`law`], [`judge`], [`report`]. A *flow* is two addresses and what is between them; a *tuple* a
//! flow with its source port; an *epoch* a state of the folder, from one write to the next; a *chore* what a generator
//! does again and again.
//!
//! Faults happen at the same steps in every run of a seed; when exactly, and what a packet meets, is the machine's doing.

mod clock;
mod journal;
mod judge;
mod law;
mod mind;
mod outsider;
mod plan;
mod prepare;
mod random;
mod report;
mod run;
mod traffic;
mod views;

use serde::{Deserialize, Serialize};

pub use plan::FaultKind;
pub(crate) use prepare::prepare;
pub use report::{ChaosReport, Finding, Restarts};
pub(crate) use run::run;

/// What a run is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChaosOptions {
    /// Which faults follow on each other.
    pub seed: u64,
    /// For how long, in milliseconds.
    pub millis: u64,
    /// How many kills end it earlier.
    pub kills: Option<usize>,
    /// The kinds of faults.
    pub kinds: Vec<FaultKind>,
    /// How many packets a second are begun; answers come on top.
    pub rate: u32,
    /// Whether a change has longer by the time that an agent waits for a processor meanwhile.
    pub allow_for_load: bool,
}
