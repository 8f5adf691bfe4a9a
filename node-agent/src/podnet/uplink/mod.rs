//! The way to the pods of other nodes: routes where a link is shared, a VXLAN tunnel where none is.
//!
//! [`wanted`] says what there is to be, from the nodes and from what this node sees around it; [`follow`] makes the difference
//! to what the kernel has. It changes nothing where nothing differs, so it mends as well.

mod kernel;
#[cfg(test)]
mod tests;
pub(crate) mod wanted;

use std::fmt;
use std::str::FromStr;

pub(crate) use kernel::{follow, see};

/// The name of the tunnel's device. Not like a pod's: nothing that is true of a pod's link is true of it.
pub const TUNNEL: &str = "vxlan-moat";

/// The number of moat's network in VXLAN frames.
pub const TUNNEL_ID: u32 = 27_983;

/// How packets get to the pods of other nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// By routes to the nodes that are on a link with this one, through the tunnel to the others.
    #[default]
    Auto,
    /// By routes only.
    Routed,
    /// Through the tunnel only.
    Vxlan,
}

impl Mode {
    /// All of them.
    pub const ALL: [Mode; 3] = [Mode::Auto, Mode::Routed, Mode::Vxlan];
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Auto => "auto",
            Mode::Routed => "routed",
            Mode::Vxlan => "vxlan",
        })
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mode = Self::ALL.into_iter().find(|mode| mode.to_string() == text);
        mode.ok_or_else(|| format!("{text:?} is none of auto, routed, vxlan"))
    }
}
