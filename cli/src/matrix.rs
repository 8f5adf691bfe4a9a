//! `moat matrix`: every pod to every other.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Result, anyhow, ensure};
use comfy_table::{Cell, Color, ContentArrangement, Table, presets};
use moat_policies::{Endpoint, Judgement, Matrix, NamespacedName, Traffic};
use serde::Serialize;

use crate::input::{Input, PodToNode, warn_of_contested};
use crate::output::{self, Format};
use crate::port::Port;

/// Who may talk to whom: every ordered pair of distinct pods, for each --port
///
/// Without -f it asks about what is in the cluster now.
///
/// A workload's rows are the pods that it stands for: as many as it has replicas, at most two (a Job or CronJob: one; a
/// DaemonSet: one a node). A pod that has finished has no row.
///
/// Exit status: 0 whatever the verdicts are, 2 for an error.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  moat matrix -n shop --port 8080/TCP
  moat matrix -f policies/examples/three-tier-web --port 80/TCP
  moat matrix -f manifests/ --port 80/TCP --port 53/UDP --port icmp
  moat matrix -f manifests/ --port 80 -o json | jq '.verdicts[] | select(.allowed)'")]
pub(crate) struct Args {
    #[command(flatten)]
    input: Input,
    /// Only pods of this namespace; may be given more than once
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Vec<String>,
    /// Destination port and protocol (80/TCP, 53/UDP; TCP if left out), or icmp; may be given more than once
    #[arg(long = "port", value_name = "PORT", required = true)]
    ports: Vec<Port>,
    /// Who decides what a pod may send to its own node: what moat-agent's flag of this name says
    #[arg(long, value_enum, default_value_t)]
    pod_to_node: PodToNode,
    /// How to print the answer
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: Format,
}

/// Runs the subcommand.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let ports = args
        .ports
        .iter()
        .map(|port| match port {
            Port::Traffic(traffic) => Ok(*traffic),
            Port::Named(protocol, name) => Err(anyhow!(
                "--port {name}/{protocol}: a name is another number on each pod; a matrix takes numbers, as 80/{protocol}"
            )),
        })
        .collect::<Result<Vec<Traffic>>>()?;
    let objects = args.input.load()?.manifests.to_objects();
    ensure!(!objects.pods().is_empty(), "no pods in the input, so there is nobody to ask about");
    for namespace in &args.namespace {
        ensure!(
            objects.pods().names().any(|pod| *pod.namespace == **namespace),
            "the namespace {namespace} has no pods, or there is none of that name"
        );
    }
    let asked = |pod: &NamespacedName| {
        args.namespace.is_empty() || args.namespace.iter().any(|n| **n == *pod.namespace)
    };
    let evaluator = args.pod_to_node.evaluator(&objects);
    warn_of_contested(&evaluator, &objects);
    let pods: Vec<Endpoint> = objects.pods().names().filter(asked).map(Endpoint::Pod).collect();
    let mut rows = Rows {
        names: pods.iter().map(ToString::to_string).collect(),
        matrix: Matrix::new(&evaluator, &pods, &ports)?,
        ports,
    };
    output::print(|out| match args.output {
        Format::Json => rows.json(out),
        Format::Text => rows.text(output::colours(), out),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// All pods, and what is asked of them.
struct Rows<'a> {
    names: Vec<String>,
    ports: Vec<Traffic>,
    matrix: Matrix<'a>,
}

/// One verdict, as `-o json` prints it.
#[derive(Serialize)]
struct Entry<'a> {
    source: &'a str,
    destination: &'a str,
    protocol: &'a str,
    port: Option<u16>,
    egress: bool,
    ingress: bool,
    allowed: bool,
}

impl Rows<'_> {
    /// One object, its entries one a line, written as they are found: a large matrix is never held whole.
    fn json(&mut self, out: &mut dyn Write) -> io::Result<()> {
        write!(out, "{{\"verdicts\":[")?;
        let mut separator = "\n";
        for (i, source) in self.names.iter().enumerate() {
            for (j, destination) in self.names.iter().enumerate().filter(|(j, _)| *j != i) {
                for (k, &traffic) in self.ports.iter().enumerate() {
                    let Judgement { allowed, egress, ingress } = self.matrix.judge(i, j, k);
                    let (protocol, port) = parts(traffic);
                    out.write_all(separator.as_bytes())?;
                    let entry = Entry { source, destination, protocol, port, egress, ingress, allowed };
                    serde_json::to_writer(&mut *out, &entry)?;
                    separator = ",\n";
                }
            }
        }
        writeln!(out, "\n]}}")
    }

    /// A table a port. Columns are the rows' numbers, so that long names do not make it wide.
    fn text(&mut self, colours: bool, out: &mut dyn Write) -> io::Result<()> {
        let count = self.names.len();
        for (k, traffic) in self.ports.iter().enumerate() {
            let mut table = Table::new();
            table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
            match colours {
                true => table.enforce_styling(),
                false => table.force_no_tty(),
            };
            let number = |i: usize| Cell::new(i + 1);
            let header = [Cell::new(""), Cell::new("from \\ to")].into_iter();
            table.set_header(header.chain((0..count).map(number)));
            let mut allowed = 0;
            for (i, name) in self.names.iter().enumerate() {
                let mut row = vec![number(i), Cell::new(name)];
                for j in 0..count {
                    let judgement = (i != j).then(|| self.matrix.judge(i, j, k));
                    allowed += usize::from(judgement.is_some_and(|j| j.allowed));
                    row.push(judgement.map_or_else(|| Cell::new(""), cell));
                }
                table.add_row(row);
            }
            writeln!(out, "{traffic}")?;
            for line in table.lines() {
                writeln!(out, "{}", line.trim_end())?;
            }
            writeln!(out, "{allowed} of {} allowed\n", count * (count - 1))?;
        }
        writeln!(
            out,
            ". allowed   e denied by egress   i denied by ingress   b denied by both   f no family passes both"
        )
    }
}

fn cell(judgement: Judgement) -> Cell {
    let text = match (judgement.allowed, judgement.egress, judgement.ingress) {
        (true, ..) => return Cell::new(".").fg(Color::Green),
        (false, false, true) => "e",
        (false, true, false) => "i",
        (false, false, false) => "b",
        (false, true, true) => "f",
    };
    Cell::new(text).fg(Color::Red)
}

/// Protocol and port, as JSON has them.
pub(crate) fn parts(traffic: Traffic) -> (&'static str, Option<u16>) {
    match traffic {
        Traffic::Port(protocol, port) => (protocol.as_str(), Some(port)),
        Traffic::Other(_) => ("ICMP", None),
    }
}
