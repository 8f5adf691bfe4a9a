//! Every drop has one reason, and each reason has a chain of its own that counts, logs and drops.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use moat_nfnetlink::nft::{Limit, Log, Rule, Verdict};
use moat_policies::Direction;

use super::names::Table;

/// Copies of dropped packets that the kernel makes in a second at most, for each reason.
const LOG_RATE: u64 = 100;
/// How much of a packet a copy holds: all headers that the drop log looks at.
const LOG_BYTES: u32 = 128;

/// Why a packet was dropped. The list is closed: nothing is dropped for another reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DropReason {
    /// No policy allows it, in this direction.
    Policy(Direction),
    /// Its connection was allowed once and is not any more.
    Revoked,
    /// It belongs to no connection and cannot open one.
    Invalid,
    /// It would pick up a TCP connection in the middle, to or from an isolated pod.
    MidStream,
    /// It is to or from a pod that moat does not know yet.
    UnknownPod,
    /// It says that it is from somebody else.
    Spoofed,
    /// It is for a tunnel port, which is no pod's business.
    Tunnel,
    /// It is to or from a pod whose rules the kernel did not take.
    KernelRefused,
}

impl DropReason {
    /// All reasons.
    pub const ALL: [DropReason; 9] = [
        DropReason::Policy(Direction::Ingress),
        DropReason::Policy(Direction::Egress),
        DropReason::Revoked,
        DropReason::Invalid,
        DropReason::MidStream,
        DropReason::UnknownPod,
        DropReason::Spoofed,
        DropReason::Tunnel,
        DropReason::KernelRefused,
    ];

    /// The reason in one word: the name of its chain, and behind `moat ` the prefix of its log records.
    pub const fn as_str(self) -> &'static str {
        match self {
            DropReason::Policy(Direction::Ingress) => "policy-ingress",
            DropReason::Policy(Direction::Egress) => "policy-egress",
            DropReason::Revoked => "revoked",
            DropReason::Invalid => "invalid",
            DropReason::MidStream => "mid-stream",
            DropReason::UnknownPod => "unknown-pod",
            DropReason::Spoofed => "spoofed",
            DropReason::Tunnel => "tunnel",
            DropReason::KernelRefused => "kernel-refused",
        }
    }

    /// The reason that a log record's prefix names.
    pub fn from_prefix(prefix: &str) -> Option<Self> {
        let word = prefix.strip_prefix("moat ")?;
        Self::ALL.into_iter().find(|r| r.as_str() == word)
    }

    /// To the chain of this reason.
    pub(super) fn goto(self) -> Verdict {
        Verdict::goto(self.as_str())
    }

    /// Whether it has a chain in this table.
    pub(crate) fn is_in(self, table: Table) -> bool {
        table == Table::Inet || self == DropReason::Spoofed
    }

    /// The rules that every chain of a reason ends with.
    pub(super) fn rules(self, log_group: u16) -> [Rule; 2] {
        let log = Log {
            group: log_group,
            prefix: Arc::from(format!("moat {}", self.as_str())),
            snaplen: Some(LOG_BYTES),
            threshold: None,
        };
        let limit = Limit { rate: LOG_RATE, per: Duration::from_secs(1), burst: LOG_RATE as u32 };
        // The counter stands before the limit and counts all; the drop in a rule of its own drops all.
        [Rule::new().counter().limit(limit).log(log), Rule::new().verdict(Verdict::Drop)]
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_records_prefix_names_the_reason() {
        for reason in DropReason::ALL {
            assert_eq!(DropReason::from_prefix(&format!("moat {reason}")), Some(reason));
        }
        assert_eq!(DropReason::from_prefix("moat"), None);
        assert_eq!(DropReason::from_prefix("somebody else's policy-ingress"), None);
    }
}
