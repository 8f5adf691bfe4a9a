//! Netfilter's netlink.

mod error;
pub mod nft;
mod wire;

pub use error::{EncodeError, Error, Failure, Refusal};
