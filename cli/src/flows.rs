//! `moat flows`: which connections there are, and what becomes of each.

use std::process::ExitCode;

use moat_cni::protocol::{Command, Flows};
use moat_cni::stream::{End, Event, LiveFlow};

use crate::agents::Agents;
use crate::columns::Columns;
use crate::output::{self, Format};

/// Show the live connections of pods, and whether policy lets them go on
///
/// Asks the agents of a running lab, of this node, or of a cluster's nodes (--node). Each node shows the connections of its own pods: one between two
/// nodes is shown by both, each with what it says of its side. A connection that a change of policy has denied is cut:
/// it is shown as revoked as long as either end goes on sending.
#[derive(clap::Args)]
#[command(after_help = "Exit status: 0, or 2 if no agent could be asked.

Verdicts:
  allowed   it goes on
  revoked   it was allowed once and is cut; the line says what denies it
  denied    no policy allows it; it is about to be cut
  resuming  it was cut and is allowed again; it is about to go on

Examples:
      moat flows
      moat flows --node worker-1 --revoked
      moat flows --pod shop/api --json")]
pub(crate) struct Args {
    #[command(flatten)]
    agents: Agents,
    /// Only those that are cut
    #[arg(long)]
    revoked: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let events = args.agents.ask(&Command::Flows(Flows {}))?;
    let pod = args.agents.pod.as_deref();
    let wanted = |flow: &LiveFlow| {
        let is = |end: &End| pod.is_none_or(|pod| end.pod.as_deref() == Some(pod));
        (is(&flow.source) || is(&flow.destination)) && (flow.revoked || !args.revoked)
    };
    let flow = |event| match event {
        Event::Flow(flow) => Some(flow).filter(wanted),
        _ => None,
    };
    let mut all: Vec<LiveFlow> = events.into_iter().filter_map(flow).collect();
    all.sort_by_cached_key(|f| {
        (f.source.clone(), f.destination.clone(), f.traffic(), f.source_port, f.node.clone())
    });
    if all.is_empty() {
        output::note(format_args!("no such connections"));
    }
    let colours = output::colours();
    output::print(|out| {
        let mut columns = Columns::default();
        for flow in &all {
            match args.agents.format() {
                Format::Json => serde_json::to_writer(&mut *out, flow)?,
                Format::Text => out.write_all(line(flow, &mut columns, colours).as_bytes())?,
            }
            writeln!(out)?;
        }
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}

/// What becomes of a connection, in a word.
fn verdict(flow: &LiveFlow) -> (&'static str, u8) {
    match (flow.allowed, flow.revoked) {
        (true, false) => ("allowed", 32),
        (false, true) => ("revoked", 31),
        (false, false) => ("denied", 31),
        (true, true) => ("resuming", 33),
    }
}

fn line(flow: &LiveFlow, columns: &mut Columns, colours: bool) -> String {
    let source = match flow.source_port {
        Some(port) => format!("{}:{port}", bracketed(&flow.source)),
        None => flow.source.to_string(),
    };
    let asked = flow.asked.as_ref().map(|asked| format!(" (as {asked})")).unwrap_or_default();
    let (word, colour) = verdict(flow);
    let words = [
        flow.node.clone(),
        format!("{source} -> {}{asked}", flow.destination),
        flow.traffic(),
        word.to_owned(),
        flow.explanation.clone().unwrap_or_default(),
    ];
    columns.line(&words, |index, word| match index {
        0 if colours => format!("\x1b[2m{word}\x1b[0m"),
        3 if colours => format!("\x1b[{colour}m{word}\x1b[0m"),
        _ => word.to_owned(),
    })
}

/// An end that a port follows.
fn bracketed(end: &End) -> String {
    match (&end.pod, &end.node, end.address) {
        (None, None, Some(address)) if address.is_ipv6() => format!("[{address}]"),
        _ => end.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_the_ends_and_the_verdict() {
        let pod = |name: &str| End { pod: Some(name.into()), ..End::default() };
        let flow = LiveFlow {
            node: "node-1".into(),
            protocol: "TCP".into(),
            source: pod("shop/web"),
            source_port: Some(40_000),
            destination: pod("shop/api"),
            destination_port: Some(8080),
            asked: Some("10.96.0.1:80".into()),
            allowed: true,
            revoked: false,
            reason: None,
            explanation: None,
        };
        let mut columns = Columns::default();
        let mut line = |flow: &LiveFlow| super::line(flow, &mut columns, false);
        assert_eq!(line(&flow), "node-1  shop/web:40000 -> shop/api (as 10.96.0.1:80)  8080/TCP  allowed");
        let cut = LiveFlow {
            allowed: false,
            revoked: true,
            explanation: Some("no rule".into()),
            asked: None,
            source: End { address: Some("fd00::1".parse().unwrap()), ..End::default() },
            ..flow.clone()
        };
        let cut_line = line(&cut);
        assert!(cut_line.contains("[fd00::1]:40000 -> shop/api "), "{cut_line}");
        assert!(cut_line.ends_with("8080/TCP  revoked  no rule"), "{cut_line}");
        assert_eq!(verdict(&LiveFlow { revoked: false, ..cut }).0, "denied");
        assert_eq!(verdict(&LiveFlow { revoked: true, ..flow }).0, "resuming");
    }
}
