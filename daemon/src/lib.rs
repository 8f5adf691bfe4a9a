//! What moat's long-running programs have in common: how they begin to log and when they end ([`process`]), the socket that
//! is nobody else's ([`socket`]), and the pages for people and probes ([`pages`]).
//!
//! Nothing here knows of policy.

pub mod pages;
pub mod process;
pub mod socket;
