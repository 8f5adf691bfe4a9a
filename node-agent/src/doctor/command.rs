//! The command: looks, prints, and says by its exit status whether there is something to do.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use ipnet::IpNet;

use super::{Severity, gather, judge, render};
use crate::podnet::NetlinkError;

/// Says what on this host keeps moat from doing its work, and what to do about it.
///
/// Exit status: 0 nothing to do, 1 a warning or a refusal, 2 could not look.
#[derive(Debug, Clone, clap::Args)]
pub struct DoctorArgs {
    /// A podCIDR of this node; may be given more than once. Without, those that moat's own routes tell of
    #[arg(long, value_name = "CIDR")]
    pub pod_cidr: Vec<IpNet>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Why a host cannot be looked at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DoctorError {
    /// Its links, routes or neighbours cannot be read.
    #[error("cannot read this host's links and routes")]
    Network(#[from] NetlinkError),
    /// Its firewalls cannot be read.
    #[error("cannot read this host's firewalls; run it as root, in the node's network namespace")]
    Firewall(#[from] moat_nfnetlink::Error),
}

/// Looks, prints what there is to say, and turns it into the exit status.
pub fn run(args: &DoctorArgs) -> ExitCode {
    let findings = match gather(&args.pod_cidr) {
        Ok(facts) => judge(&facts),
        Err(error) => {
            let _ = writeln!(io::stderr().lock(), "error: {:#}", anyhow::Error::new(error));
            return ExitCode::from(2);
        }
    };
    let mut out = io::stdout().lock();
    // Who closed the pipe has read enough.
    let _ = match args.json {
        true => render::json(&findings, &mut out),
        false => render::people(&findings, &mut out, io::stdout().is_terminal()),
    };
    if findings.iter().any(|finding| finding.severity != Severity::Note) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
