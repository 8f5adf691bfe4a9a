//! Why there is no address to give.

use std::fmt;
use std::time::Duration;

use ipnet::IpNet;

/// Why no address can be handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IpamError {
    /// The node has no podCIDR.
    #[error("the node has no podCIDR to take an address from")]
    NoBlock,
    /// All addresses of a block are held, or rest.
    #[error("{0}")]
    Full(Full),
}

/// Where the addresses of a block are when there is none to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// The block.
    pub block: IpNet,
    /// How many addresses of it are used at all.
    pub usable: u128,
    /// How many are held by pods.
    pub held: usize,
    /// How many are the nodes' own.
    pub reserved: usize,
    /// How many have been released, and not all controllers have answered that yet.
    pub unanswered: usize,
    /// How long an address rests between two pods.
    pub rest: Duration,
    /// When the first that rests, and for which no answer is missing, may go out; `None` where none does.
    pub next: Option<Duration>,
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { block, usable, held, reserved, unanswered, .. } = self;
        write!(f, "all {usable} addresses of {block} are taken: {held} by pods")?;
        if *reserved > 0 {
            write!(f, ", {reserved} by nodes")?;
        }
        let resting = [*held as u128, *reserved as u128, *unanswered as u128]
            .into_iter()
            .fold(*usable, u128::saturating_sub);
        if let Some(next) = self.next {
            let rest = self.rest.as_secs_f32();
            let next = next.as_secs_f32();
            write!(
                f,
                ", and {resting} rest for {rest} s after their last pod; the next is free in {next:.1} s"
            )?;
        }
        match unanswered {
            0 if self.next.is_some() => Ok(()),
            0 => write!(f, "; remove pods, or give the node a larger podCIDR"),
            _ => write!(
                f,
                "; {unanswered} addresses wait for the controller's answer: it comes when the agents of all nodes follow that \
                 their last pods are gone (see moat-controller's /readyz)"
            ),
        }
    }
}
