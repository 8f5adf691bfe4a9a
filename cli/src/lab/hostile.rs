//! `moat lab hostile`: what a pod with raw sockets can try, and where it arrived.

use std::path::PathBuf;
use std::process::ExitCode;

use moat_lab::{Colour, Families, HostileOptions, HostileReport, Options, Programs, Purpose};

use super::{Joint, Progress};
use crate::output::{self, Format};

/// Send what pods should not, and see where it arrives
///
/// Makes a lab of its own: two nodes, a pod that is denied everything, one that is allowed one thing, one that no policy
/// selects, and victims. From each of them, and from the uplink, raw frames are sent: spoofed, tagged, fragmented, with odd
/// headers, forged. Watchers at every pod, in every node's stack and on every node's cable say where each arrived. Some must
/// arrive: they prove that the others could have.
#[derive(clap::Args)]
#[command(after_help = "Exit status: 0 every row is as expected, 1 some row is not, 2 an error.

What is expected and what was seen is one of:
  dropped        nobody saw it
  near, far, …   that pod's interface saw it come in
  node-1         the node's own stack took it, behind its firewall
  wire-1         it left the node by its cable
  world          the host outside saw it
  log, metric    the node's agent named the pod there

Examples:
  Everything, in both families:
      moat lab hostile
  IPv4 only, the rows about fragments:
      moat lab hostile --ipv4 --only fragment")]
pub(super) struct Args {
    /// IPv4 only
    #[arg(long, conflicts_with = "ipv6")]
    ipv4: bool,
    /// IPv6 only
    #[arg(long)]
    ipv6: bool,
    /// How the nodes are joined
    #[arg(long, value_enum, default_value_t = Joint::Link)]
    joined: Joint,
    /// Only rows whose group or text contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Leave the rows out that fill a connection tracking table: they take some seconds, and some 80 MB of the kernel's memory
    #[arg(long)]
    no_flood: bool,
    /// Stop the agents and delete their tables first: to see that what moat drops would be seen (needs nft)
    #[arg(long)]
    unprotected: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
    /// The same as -o json
    #[arg(long, conflicts_with = "output")]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let progress = Progress::new();
    let families = match (args.ipv4, args.ipv6) {
        (true, _) => Families::V4,
        (_, true) => Families::V6,
        _ => Families::Dual,
    };
    let make = Options {
        folder: PathBuf::new(),
        nodes: 2,
        families,
        joined: args.joined.into(),
        restart: !args.unprotected,
        owner: !args.unprotected,
        purpose: Purpose::Hostile,
        programs: Programs::beside_this_one()?,
    };
    let options =
        HostileOptions { only: args.only.clone(), no_flood: args.no_flood, unprotected: args.unprotected };
    let report = moat_lab::hostile(&make, &options, &|text| progress.tell(text));
    progress.clear();
    let report = report?;
    print(&report, if args.json { Format::Json } else { args.output })?;
    Ok(ExitCode::from(u8::from(report.differences().next().is_some())))
}

fn print(report: &HostileReport, format: Format) -> anyhow::Result<()> {
    output::print(|out| match format {
        Format::Text => {
            let colour = if output::colours() { Colour::On } else { Colour::Off };
            out.write_all(report.text(colour).as_bytes())
        }
        Format::Json => {
            let mut value = serde_json::to_value(report)?;
            value["differences"] = report.differences().count().into();
            serde_json::to_writer_pretty(&mut *out, &value)?;
            writeln!(out)
        }
    })
}
