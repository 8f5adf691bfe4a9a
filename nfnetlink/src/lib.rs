//! Netfilter's netlink.

mod connection;
mod error;
pub mod nft;
mod sys;
mod wire;

pub use error::{EncodeError, Error, Failure, Refusal};
