//! Against the real kernel, each test in a network namespace of its own.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod adoption;
mod commit;
mod conntrack;
mod counting;
mod events;
mod nflog;
mod ownership;
mod raw;
mod readback;
mod sets;
mod statements;
mod support;
mod xtables;
