//! `moat status`: is everything that was applied in force, and where not, and why.
//!
//! ```text
//!   API server ─▶ ask: Seen (nodes, their agents, what they enforce, what is applied) ─▶ report: pure ─▶ text, JSON, exit status
//! ```

mod ask;
mod report;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use tokio::time::{Instant, sleep};

use crate::cluster::Cluster;
use crate::duration::duration;
use crate::output::{self, Format};
use report::Report;

/// How soon is looked again. The controllers write what a node enforces within a few seconds.
const AGAIN: Duration = Duration::from_millis(500);

/// Say whether everything applied is in force on all nodes, and where not, why
///
/// What was applied: all NetworkPolicies, Namespaces and the NetworkConfig, as the API server has them now. A node enforces it when
/// its agent has said so, for new connections and for those that were there. A node of which nothing is heard goes on with what it
/// enforced last.
#[derive(clap::Args)]
#[command(after_help = "Exit status: 0 everything applied is in force on all nodes, 1 it is not, 2 an error.

States of a node:
  current       its agent says that everything that it was told is in force
  behind        for more than five seconds it has not said so
  disconnected  no controller hears of its agent
  unknown       no controller has ever heard of an agent there

Examples:
      moat status
      kubectl apply -f policies/ && moat status --wait --timeout 60s
      moat status -o json | jq -r '.nodes[] | select(.enforced | not) | .node'")]
pub(crate) struct Args {
    /// Wait until everything applied is in force on all nodes
    #[arg(long)]
    wait: bool,
    /// With --wait: for so long at most: 500ms, 60s, 10m, 2h
    #[arg(long, value_name = "TIME", default_value = "2m", requires = "wait", value_parser = duration)]
    timeout: Duration,
    #[command(flatten)]
    cluster: Cluster,
    /// How to print the answer
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: Format,
}

/// Runs the subcommand.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let (runtime, client) = args.cluster.connect()?;
    let report = runtime.block_on(async {
        let deadline = Instant::now() + args.timeout;
        loop {
            let report = Report::of(ask::ask(&client).await?);
            if report.enforced() || !args.wait || Instant::now() >= deadline {
                return Ok::<Report, anyhow::Error>(report);
            }
            sleep(AGAIN).await;
        }
    })?;
    output::print(|out| match args.output {
        Format::Json => report.json(out),
        Format::Text => report.text(output::colours(), out),
    })?;
    if args.wait && !report.enforced() {
        output::note(format_args!("waited {:?}; what keeps each node is above", args.timeout));
    }
    Ok(ExitCode::from(u8::from(!report.enforced())))
}
