//! `ipBlock`: a CIDR without its excepts, as disjoint prefixes.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

/// An `ipBlock`. Host bits are masked; excepts are sorted, each once, none inside another.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Block {
    cidr: IpNet,
    except: Vec<IpNet>,
}

/// Why an `ipBlock` is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// An except that is not a strict subset of the CIDR (this one).
    #[error("except {0} must lie strictly inside the cidr")]
    ExceptNotInside(IpNet),
}

impl Block {
    /// The block `cidr` without `except`, each of which must lie strictly inside it.
    pub fn new(cidr: IpNet, except: impl IntoIterator<Item = IpNet>) -> Result<Self, BlockError> {
        let cidr = cidr.trunc();
        let mut kept: BTreeSet<IpNet> = BTreeSet::new();
        for e in except {
            let e = e.trunc();
            if !cidr.contains(&e) || e == cidr {
                return Err(BlockError::ExceptNotInside(e));
            }
            kept.insert(e);
        }
        // Sorted by address, then by length: a prefix comes before all that it contains.
        let mut except: Vec<IpNet> = Vec::with_capacity(kept.len());
        for e in kept {
            if !except.last().is_some_and(|outer| outer.contains(&e)) {
                except.push(e);
            }
        }
        Ok(Self { cidr, except })
    }

    /// The CIDR, host bits masked.
    pub fn cidr(&self) -> IpNet {
        self.cidr
    }

    /// What is taken away: sorted and disjoint.
    pub fn except(&self) -> &[IpNet] {
        &self.except
    }

    /// Whether an address is in the block.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.cidr.contains(&address) && !self.except.iter().any(|e| e.contains(&address))
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.cidr)?;
        for (i, e) in self.except.iter().enumerate() {
            write!(f, "{}{e}", if i == 0 { " except " } else { ", " })?;
        }
        Ok(())
    }
}
