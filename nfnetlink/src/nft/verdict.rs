//! What becomes of a packet.

use std::fmt;
use std::sync::Arc;

use super::name::encode_name;
use crate::wire::{Attrs, Writer};

/// A verdict, of a rule or of a verdict map's element.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// Ends this table's chains at this hook; other tables still have their say.
    Accept,
    /// Ends the packet.
    Drop,
    /// Goes on with the next rule.
    Continue,
    /// Goes back to the chain that jumped here; in a base chain, to its policy.
    Return,
    /// Goes to a chain and comes back at its end.
    Jump(Arc<str>),
    /// Goes to a chain; at its end back to whoever jumped here last.
    Goto(Arc<str>),
}

impl Verdict {
    /// A jump to a chain.
    pub fn jump(chain: impl Into<Arc<str>>) -> Self {
        Verdict::Jump(chain.into())
    }

    /// A goto to a chain.
    pub fn goto(chain: impl Into<Arc<str>>) -> Self {
        Verdict::Goto(chain.into())
    }

    /// The chain that it leads to.
    pub fn chain(&self) -> Option<&Arc<str>> {
        match self {
            Verdict::Jump(chain) | Verdict::Goto(chain) => Some(chain),
            _ => None,
        }
    }

    /// The kernel's number (`NF_*`, `NFT_*`).
    fn code(&self) -> i32 {
        match self {
            Verdict::Drop => 0,
            Verdict::Accept => 1,
            Verdict::Continue => -1,
            Verdict::Jump(_) => -3,
            Verdict::Goto(_) => -4,
            Verdict::Return => -5,
        }
    }

    /// Writes `NFTA_DATA_VERDICT`.
    pub(crate) fn encode(&self, writer: &mut Writer) {
        writer.nest(2, |w| {
            w.be32(1, self.code() as u32);
            if let Some(chain) = self.chain() {
                encode_name(w, 2, chain);
            }
        });
    }

    /// Reads the content of `NFTA_DATA_VERDICT`.
    pub(crate) fn decode(attrs: Attrs<'_>) -> Option<Verdict> {
        let code = attrs.find(1)?.be32()? as i32;
        let chain = || Some(Arc::from(attrs.find(2)?.string()?));
        Some(match code {
            0 => Verdict::Drop,
            1 => Verdict::Accept,
            -1 => Verdict::Continue,
            -3 => Verdict::Jump(chain()?),
            -4 => Verdict::Goto(chain()?),
            -5 => Verdict::Return,
            _ => return None,
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Accept => f.write_str("accept"),
            Verdict::Drop => f.write_str("drop"),
            Verdict::Continue => f.write_str("continue"),
            Verdict::Return => f.write_str("return"),
            Verdict::Jump(chain) => write!(f, "jump {chain}"),
            Verdict::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}
