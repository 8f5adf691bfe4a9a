//! Netfilter's netlink.

mod connection;
pub mod conntrack;
mod error;
pub mod nflog;
pub mod nft;
#[cfg(test)]
#[allow(dead_code, reason = "the kernel tests use the rest")]
#[path = "../tests/kernel/support.rs"]
mod support;
mod sys;
mod wire;

pub use error::{EncodeError, Error, Failure, Refusal};
