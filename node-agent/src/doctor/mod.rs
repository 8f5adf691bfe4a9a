//! Is this host one on which moat does what it says, and if not, what is to be done?
//!
//! ```text
//!   gather, probe (thin edges)          judge (pure)                    command, or the agent's start
//!   links, routes, firewalls  ──▶ Facts ──────────▶ [Finding] ──────▶  a table, lines or JSON; or the log
//!   what the kernel can do              severity, what, what to do      and a refusal
//! ```
//!
//! Nothing here changes anything: a finding says what somebody may do. What is *refused* is a host on which policy would
//! not hold; the agent does not start there.

mod command;
mod facts;
mod firewall;
mod gather;
mod host;
mod kernel;
mod probe;
mod render;

use std::fmt;

use ipnet::IpNet;
use serde::Serialize;

pub use command::{DoctorArgs, DoctorError, run};
pub use facts::{Facts, ForwardChain, HostLink, HostRoute, Probe, Router};
pub use gather::gather;
pub use probe::Feature;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Policy would not hold: the agent does not start.
    Refused,
    /// Something will not work, or is not protected, until somebody does something.
    Warning,
    /// Good to know; nothing is wrong.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Severity::Refused => "refused",
            Severity::Warning => "warning",
            Severity::Note => "note",
        })
    }
}

/// One thing about a host that somebody should know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The same word for the same kind of finding, for programs.
    pub check: &'static str,
    /// What was found, one sentence.
    pub what: String,
    /// What is to be done about it.
    pub to_do: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.check, self.what, self.to_do)
    }
}

/// What there is to say about a host, the worst first. Pure.
pub fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = kernel::judge(facts);
    findings.extend(host::judge(facts));
    findings.extend(firewall::judge(facts));
    findings.sort_by_key(|finding| finding.severity);
    findings
}

/// What the agent can do on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Able {
    /// The kernel translates addresses.
    pub translate: bool,
}

/// What the agent says at its start, in the network namespace of the calling thread: the log gets every finding. An error is
/// the refusals, one a line.
pub fn at_start(pod_cidrs: &[IpNet]) -> Result<Able, String> {
    let facts = match gather(pod_cidrs) {
        Ok(facts) => facts,
        Err(error) => {
            // Not to know is no reason to leave a node without policy.
            tracing::warn!("this host cannot be looked at: {:#}", anyhow::Error::new(error));
            return Ok(Able { translate: true });
        }
    };
    let able = Able { translate: !matches!(facts.probes.get(&Feature::Nat), Some(Probe::Missing(_))) };
    let mut refused = Vec::new();
    for finding in judge(&facts) {
        match finding.severity {
            Severity::Refused => refused.push(finding.to_string()),
            Severity::Warning => tracing::warn!(check = finding.check, "{}; {}", finding.what, finding.to_do),
            Severity::Note => tracing::info!(check = finding.check, "{}; {}", finding.what, finding.to_do),
        }
    }
    if refused.is_empty() { Ok(able) } else { Err(refused.join("\n")) }
}
