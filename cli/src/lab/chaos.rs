//! `moat lab chaos`: faults by a seed, traffic on every pair, a verdict on every packet.

use std::process::ExitCode;
use std::time::Duration;

use moat_lab::{ChaosOptions, ChaosReport, FaultKind, Purpose};

use super::{INTERRUPTED, Make, Progress};
use crate::duration::duration;
use crate::output::{self, Format};

/// Break a lab in every way while packets flow, and judge each packet
///
/// Makes a lab from a copy of the folder, sends packets on every pair of pods, allowed or denied, and meanwhile kills agents,
/// edits the kernel's tables, adds, changes and removes policies, replaces pods by others at the same address, and pulls
/// cables. Each packet is held against the engine's verdict at its moment. Only within 30 ms after a write took effect on
/// disk (and, where the agent that had to act was being started again, until it is ready) either verdict is right, for
/// the flows whose verdict changed: such packets are counted as in grace.
///
/// A seed makes the faults the same in every run, step by step; the folder itself is not touched.
#[derive(clap::Args)]
#[command(after_help = "\
It is a failure when:
  a denied packet arrived, or an allowed one did not
  a connection broke that was allowed all the time
  an agent ended by itself, or did not come back
  somebody could change tables that the kernel should have guarded
  more than 5% of the packets were in grace, or fewer than 1,000 allowed or 1,000 denied ones were judged

Exit status: 0 every verdict was right, 1 a failure, 2 an error, 130 ended by Ctrl-C with nothing wrong until then
(the report of the time until then is printed; press it twice to end at once).

Examples:
  A minute of everything:
      moat lab chaos -f policies/examples/three-tier-web --seed 7
  The agents die a hundred times while policies change:
      moat lab chaos -f DIR --seed 7 --faults kills,policies --kills 100 --for 5m
  Without the kernel's guard: what others change must be right again within a second:
      moat lab chaos -f DIR --seed 7 --no-owner --faults tables,policies")]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) make: Make,
    /// Which faults follow on each other; printed with the report, to see the same again
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// How long: 500ms, 60s, 10m, 2h
    #[arg(long = "for", default_value = "60s", value_name = "TIME", value_parser = duration)]
    lasts: Duration,
    /// End when agents have been killed so often, if that is earlier
    #[arg(long, value_name = "N")]
    kills: Option<usize>,
    /// Which kinds of faults
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Fault::ALL, value_name = "KIND,…")]
    faults: Vec<Fault>,
    /// Packets begun in a second, over all pairs; answers come on top
    #[arg(long, default_value_t = 300, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=5000))]
    rate: u32,
    /// On a machine that is busy with other things: lengthen the 30 ms by the time that an agent waited for a processor,
    /// and report how often and by how much
    #[arg(long)]
    allow_for_load: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
    /// The same as -o json
    #[arg(long, conflicts_with = "output")]
    json: bool,
}

/// A kind of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Fault {
    /// kill -9 of agents
    Kills,
    /// An outsider with nft at the kernel's tables
    Tables,
    /// Policies that come, change and go
    Policies,
    /// Pods that come and go, also one in another's place
    Pods,
    /// Cables that are pulled and put back
    Links,
    /// None: traffic alone, while you break things yourself
    None,
}

impl Fault {
    const ALL: [Fault; 5] = [Fault::Kills, Fault::Tables, Fault::Policies, Fault::Pods, Fault::Links];

    fn kind(self) -> Option<FaultKind> {
        match self {
            Fault::Kills => Some(FaultKind::Kills),
            Fault::Tables => Some(FaultKind::Tables),
            Fault::Policies => Some(FaultKind::Policies),
            Fault::Pods => Some(FaultKind::Pods),
            Fault::Links => Some(FaultKind::Links),
            Fault::None => None,
        }
    }
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let progress = Progress::new();
    let options = ChaosOptions {
        seed: args.seed,
        millis: u64::try_from(args.lasts.as_millis())?,
        kills: args.kills,
        kinds: args.faults.iter().filter_map(|f| f.kind()).collect(),
        rate: args.rate,
        allow_for_load: args.allow_for_load,
    };
    let mut make = args.make.options()?;
    make.purpose = Purpose::Chaos;
    let report = moat_lab::chaos(&make, &options, &|text| progress.tell(text));
    progress.clear();
    let report = report?;
    print(&report, if args.json { Format::Json } else { args.output })?;
    // A report that was ended early has too little of everything.
    let wrong = !(report.wrong.is_empty() && report.broken.is_empty() && report.found.is_empty());
    Ok(match report.interrupted {
        true if wrong => ExitCode::from(1),
        true => ExitCode::from(INTERRUPTED),
        false => ExitCode::from(u8::from(!report.failures().is_empty())),
    })
}

fn print(report: &ChaosReport, format: Format) -> anyhow::Result<()> {
    output::print(|out| match format {
        Format::Text => out.write_all(report.text().as_bytes()),
        Format::Json => {
            let mut value = serde_json::to_value(report)?;
            value["judged"] = report.judged().into();
            value["failures"] = report.failures().into();
            serde_json::to_writer_pretty(&mut *out, &value)?;
            writeln!(out)
        }
    })
}
