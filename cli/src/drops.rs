//! `moat drops`: which packets were dropped, and why.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use moat_cni::protocol::{Command, Drops};
use moat_cni::stream::{Dropped, Event, Unlogged};

use crate::agents::Agents;
use crate::columns::Columns;
use crate::output::{self, Format};

/// How long an event waits for older ones of other nodes.
const PATIENCE: Duration = Duration::from_millis(150);

/// Show the packets that were dropped, who sent them to whom, and why
///
/// Asks the agents of a running lab, of this node, or of a cluster's nodes (--node). The first packet of a kind (from, to, port, reason) is shown at
/// once; those that follow are counted and shown every ten seconds. What the kernel's limit for each pair of interfaces
/// keeps from the log is counted and shown as well.
#[derive(clap::Args)]
#[command(after_help = "Exit status: 0, or 2 if no agent could be asked.

Reasons:
  policy          no policy allows it; the line says which isolate the pod, and which rule came nearest
  revoked         its connection was allowed once and is not any more
  invalid         it belongs to no connection and cannot open one
  mid-stream      it would pick up a TCP connection in the middle
  unknown-pod     the pod's policy is not known yet
  spoofed         the pod may not send this: not from its own addresses, or only a router may say it
  tunnel          it is for a tunnel's port, or came there from somebody who is no node
  kernel-refused  the kernel did not take the pod's rules, so the pod is closed

Examples:
  What was dropped lately in the lab, and what is now:
      moat drops --follow
  On a node of a cluster, or on the node of a pod:
      moat drops --follow --node worker-1
      moat drops --follow --pod shop/api
  For one pod, on a node, for programs:
      moat drops --socket /run/moat/agent.sock --pod shop/api --json")]
pub(crate) struct Args {
    /// Go on with what is dropped from now on, until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// End when standard input does: for who runs this far away, and can only hang up
    #[arg(long, hide = true)]
    while_stdin: bool,
    #[command(flatten)]
    agents: Agents,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.while_stdin {
        std::thread::spawn(|| {
            // Whatever comes, and however it ends.
            let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
            std::process::exit(0)
        });
    }
    let command = Command::Drops(Drops { follow: args.follow });
    let events = args.agents.ask(&command)?;
    let pod = args.agents.pod.as_deref();
    let mut page =
        Page { format: args.agents.format(), colours: output::colours(), columns: Columns::default() };
    // By time and then in the order in which they came.
    let mut waiting: BTreeMap<(String, usize), (Instant, Event)> = BTreeMap::new();
    let mut count = 0;
    loop {
        let received = match waiting.is_empty() {
            true => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
            false => events.recv_timeout(PATIENCE),
        };
        let ended = matches!(received, Err(RecvTimeoutError::Disconnected));
        if let Ok(event) = received
            && is_about(&event, pod)
        {
            count += 1;
            waiting.insert((time(&event).to_owned(), count), (Instant::now(), event));
        }
        let mut ready = Vec::new();
        while let Some(entry) = waiting.first_entry() {
            let done = ended || (args.follow && entry.get().0.elapsed() >= PATIENCE);
            if !done {
                break;
            }
            ready.push(entry.remove().1);
        }
        if !ready.is_empty() && !page.print(&ready)? {
            // Nobody reads on.
            break;
        }
        if ended {
            if count == 0 {
                let whose = pod.map(|pod| format!(" from or to {pod}")).unwrap_or_default();
                output::note(format_args!("nothing{whose} was dropped since the agents started"));
            }
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn time(event: &Event) -> &str {
    match event {
        Event::Drop(dropped) => &dropped.time,
        Event::Unlogged(unlogged) => &unlogged.time,
        _ => "",
    }
}

fn is_about(event: &Event, pod: Option<&str>) -> bool {
    let Some(pod) = pod else { return true };
    let is = |name: &Option<String>| name.as_deref() == Some(pod);
    match event {
        Event::Drop(d) => is(&d.pod) || is(&d.source.pod) || is(&d.destination.pod),
        Event::Unlogged(unlogged) => unlogged.pod == pod,
        _ => true,
    }
}

struct Page {
    format: Format,
    colours: bool,
    columns: Columns,
}

impl Page {
    /// Prints events; false: nobody reads on.
    fn print(&mut self, events: &[Event]) -> anyhow::Result<bool> {
        let mut out = io::stdout().lock();
        let mut text = String::new();
        for event in events {
            text += &match self.format {
                Format::Json => serde_json::to_string(event)?,
                Format::Text => self.line(event),
            };
            text.push('\n');
        }
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            result => Ok(result.map(|()| true)?),
        }
    }

    fn line(&mut self, event: &Event) -> String {
        let words = match event {
            Event::Drop(dropped) => words(dropped),
            Event::Unlogged(Unlogged { time, node, pod, direction, reason, count }) => [
                clock(time),
                node.clone(),
                match direction.as_str() {
                    "egress" => format!("{pod} -> …"),
                    _ => format!("… -> {pod}"),
                },
                String::new(),
                format!("{direction} {reason}"),
                format!("x{count}"),
                "more were dropped than are logged one by one".to_owned(),
            ],
            Event::Missed(count) => return format!("… {count} events came faster than they were read"),
            Event::Flow(_) | Event::End => return String::new(),
        };
        let colours = self.colours;
        self.columns.line(&words, |index, word| match index {
            0 | 1 if colours => format!("\x1b[2m{word}\x1b[0m"),
            4 if colours => format!("\x1b[31m{word}\x1b[0m"),
            _ => word.to_owned(),
        })
    }
}

fn words(dropped: &Dropped) -> [String; 7] {
    let Dropped { time, node, source, destination, direction, reason, count, explanation, since, .. } =
        dropped;
    // A pod that speaks as somebody else.
    let from = match &dropped.pod {
        Some(pod) if direction == "egress" && source.pod.as_ref() != Some(pod) => {
            format!("{pod} as {source}")
        }
        _ => source.to_string(),
    };
    let since = since.as_ref().map(|since| format!(" (since {})", clock(since))).unwrap_or_default();
    [
        clock(time),
        node.clone(),
        format!("{from} -> {destination}"),
        dropped.traffic(),
        format!("{direction} {reason}"),
        if *count == 1 { String::new() } else { format!("x{count}") },
        format!("{explanation}{since}"),
    ]
}

/// Hours to milliseconds of an RFC 3339 time, in UTC as it stands there.
fn clock(time: &str) -> String {
    time.get(11..23).unwrap_or(time).to_owned()
}

#[cfg(test)]
mod tests {
    use moat_cni::stream::End;

    use super::*;

    fn dropped() -> Dropped {
        let end = |pod: &str, last| End {
            address: Some([10, 0, 0, last].into()),
            pod: Some(pod.into()),
            node: None,
        };
        Dropped {
            time: "2026-11-22T02:41:07.123456Z".into(),
            node: "node-1".into(),
            source: end("shop/web", 1),
            destination: end("shop/api", 2),
            protocol: "TCP".into(),
            port: Some(9090),
            direction: "ingress".into(),
            pod: Some("shop/api".into()),
            reason: "policy".into(),
            explanation: "shop/api is isolated for ingress by shop/default-deny".into(),
            count: 1,
            since: None,
        }
    }

    #[test]
    fn a_line_says_when_where_who_whom_what_and_why() {
        let mut page = Page { format: Format::Text, colours: false, columns: Columns::default() };
        let mut line = |event| page.line(&event);
        assert_eq!(
            line(Event::Drop(dropped())),
            "02:41:07.123  node-1  shop/web -> shop/api  9090/TCP  ingress policy  \
             shop/api is isolated for ingress by shop/default-deny"
        );
        let again = Dropped { count: 12, since: Some("2026-11-22T02:41:08.000000Z".into()), ..dropped() };
        assert!(
            line(Event::Drop(again)).ends_with(
                "  x12  shop/api is isolated for ingress by shop/default-deny (since 02:41:08.000)"
            )
        );
        let spoofed = Dropped {
            source: End { address: Some([10, 0, 0, 9].into()), ..End::default() },
            destination: End { node: Some("node-2".into()), ..End::default() },
            direction: "egress".into(),
            pod: Some("shop/web".into()),
            reason: "spoofed".into(),
            protocol: "ICMP".into(),
            port: None,
            explanation: "no".into(),
            ..dropped()
        };
        let spoofed = line(Event::Drop(spoofed));
        assert!(
            spoofed.contains("shop/web as 10.0.0.9 -> node node-2  ICMP      egress spoofed"),
            "{spoofed}"
        );
        let more = Unlogged {
            time: "t".into(),
            node: "node-1".into(),
            pod: "shop/api".into(),
            direction: "ingress".into(),
            reason: "policy".into(),
            count: 58_000,
        };
        assert!(line(Event::Unlogged(more)).contains("… -> shop/api"));
    }

    #[test]
    fn only_one_pods() {
        for pod in ["shop/web", "shop/api"] {
            assert!(is_about(&Event::Drop(dropped()), Some(pod)));
        }
        assert!(!is_about(&Event::Drop(dropped()), Some("shop/db")));
        assert!(is_about(&Event::Missed(3), Some("shop/db")));
    }
}
