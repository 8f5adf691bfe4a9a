//! Who enforces what, and why not: from what was seen, and nothing else.

use std::io::{self, Write};

use moat_crd::{NodeEnforcementStatus, NodeState};
use serde::Serialize;

use super::ask::{Own, Seen};
use crate::columns::Columns;

/// The answer.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// The name of what is applied.
    applied: String,
    /// Whether all nodes enforce it.
    enforced: bool,
    controllers: Controllers,
    nodes: Vec<Line>,
}

/// How many controllers there are.
#[derive(Debug, Serialize)]
struct Controllers {
    ready: usize,
    all: usize,
}

/// One node.
#[derive(Debug, Serialize)]
struct Line {
    node: String,
    state: &'static str,
    /// Whether everything that is applied is in force there.
    enforced: bool,
    revision: String,
    pods: u32,
    closed: u32,
    #[serde(rename = "agentVersion")]
    agent_version: String,
    /// What keeps it from being so, and what to look at.
    why: String,
}

impl Report {
    /// Judges.
    pub(super) fn of(seen: Seen) -> Self {
        let Seen { applied, nodes, pods } = seen;
        let nodes: Vec<Line> = nodes
            .into_iter()
            .map(|(node, written)| {
                let agent = pods.iter().find(|pod| pod.agent && pod.node == node);
                line(node, written.as_ref(), agent, &applied)
            })
            .collect();
        let controllers = || pods.iter().filter(|pod| !pod.agent);
        let controllers =
            Controllers { ready: controllers().filter(|pod| pod.ready).count(), all: controllers().count() };
        let enforced = !nodes.is_empty() && nodes.iter().all(|line| line.enforced);
        Self { applied, enforced, controllers, nodes }
    }

    /// Whether everything applied is in force on all nodes.
    pub(super) fn enforced(&self) -> bool {
        self.enforced
    }

    /// For programs.
    pub(super) fn json(&self, out: &mut dyn Write) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut *out, self)?;
        writeln!(out)
    }

    /// For people.
    pub(super) fn text(&self, colours: bool, out: &mut dyn Write) -> io::Result<()> {
        let head = ["NODE", "STATE", "PODS", "CLOSED", "REVISION", "WHY NOT"].map(str::to_owned);
        let rows = self.nodes.iter().map(|line| {
            let number =
                |number: u32| if line.state == "unknown" { "-".to_owned() } else { number.to_string() };
            [
                line.node.clone(),
                line.state.to_owned(),
                number(line.pods),
                number(line.closed),
                line.revision.clone(),
                line.why.clone(),
            ]
        });
        let rows: Vec<([String; 6], bool)> =
            [(head, true)].into_iter().chain(rows.zip(self.nodes.iter().map(|line| line.enforced))).collect();
        let mut columns = Columns::default();
        // Once for the widths.
        for (row, _) in &rows {
            columns.line(row, |_, word| word.to_owned());
        }
        for (index, (row, enforced)) in rows.iter().enumerate() {
            let colour = if *enforced { 32 } else { 31 };
            let line = columns.line(row, |column, word| match column {
                1 if colours && index > 0 => format!("\x1b[{colour}m{word}\x1b[0m"),
                _ => word.to_owned(),
            });
            writeln!(out, "{line}")?;
        }
        writeln!(out, "\n{}", self.sum())
    }

    fn sum(&self) -> String {
        let (all, there) = (self.nodes.len(), self.nodes.iter().filter(|line| line.enforced).count());
        let Controllers { ready, all: controllers } = self.controllers;
        let sum = match (there, all) {
            (_, 0) => "the cluster has no nodes".to_owned(),
            _ if self.enforced && all == 1 => {
                format!("everything applied ({}) is in force on the node", self.applied)
            }
            _ if self.enforced => {
                format!("everything applied ({}) is in force on all {all} nodes", self.applied)
            }
            _ => format!("everything applied ({}) is in force on {there} of {all} nodes", self.applied),
        };
        match (ready, controllers) {
            (0, 0) => format!("{sum}; no moat-controller runs, so no change reaches a node"),
            (0, _) => format!(
                "{sum}; none of {controllers} controllers is ready, so no change reaches a node: kubectl logs -n moat-system \
                 deployment/moat-controller"
            ),
            _ if ready < controllers => format!("{sum}; {ready} of {controllers} controllers are ready"),
            _ => sum,
        }
    }
}

fn line(node: String, written: Option<&NodeEnforcementStatus>, agent: Option<&Own>, applied: &str) -> Line {
    let none = NodeEnforcementStatus::default();
    let status = written.unwrap_or(&none);
    let state = match (written, status.state) {
        (None, _) => "unknown",
        (_, NodeState::Current) => "current",
        (_, NodeState::Behind) => "behind",
        (_, NodeState::Disconnected) => "disconnected",
    };
    let enforced = state == "current" && status.revision == applied && status.closed == 0;
    let why = if enforced { String::new() } else { why(state, status, agent, applied) };
    Line {
        node,
        state,
        enforced,
        revision: status.revision.clone(),
        pods: status.pods,
        closed: status.closed,
        agent_version: status.agent_version.clone(),
        why,
    }
}

/// The nearest cause first: without an agent nothing else is worth saying.
fn why(state: &str, status: &NodeEnforcementStatus, agent: Option<&Own>, applied: &str) -> String {
    let logs = |pod: &str| format!("kubectl logs -n moat-system {pod} -c agent");
    let of_agent = match agent {
        None => Some(
            "no moat-agent is on this node: kubectl describe -n moat-system daemonset/moat-agent".to_owned(),
        ),
        Some(Own { name, waiting: Some(waiting), .. }) => Some(format!(
            "its agent {name} does not run ({waiting}): kubectl describe -n moat-system pod/{name}"
        )),
        Some(_) => None,
    };
    let pod = agent.map(|agent| agent.name.as_str()).unwrap_or_default();
    let error = status.last_error.split_whitespace().collect::<Vec<_>>().join(" ");
    match (of_agent, state) {
        (Some(why), _) => why,
        (None, "unknown") => format!("no controller has heard of its agent yet: {}", logs(pod)),
        (None, "disconnected") => {
            format!("no controller hears of its agent; what was in force there stays so: {}", logs(pod))
        }
        (None, _) if !error.is_empty() => error,
        (None, _) if status.closed > 0 => {
            format!(
                "{} pods are closed, because their policy cannot be put in force: {}",
                status.closed,
                logs(pod)
            )
        }
        (None, "current") => format!("not yet {applied}"),
        (None, _) => {
            "its agent has not said for more than five seconds that the newest is in force".to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(state: NodeState, revision: &str) -> Option<NodeEnforcementStatus> {
        Some(NodeEnforcementStatus {
            state,
            revision: revision.into(),
            pods: 12,
            agent_version: "0.1.0".into(),
            ..NodeEnforcementStatus::default()
        })
    }

    fn pod(name: &str, node: &str) -> Own {
        let agent = name.starts_with("moat-agent");
        Own { name: name.into(), agent, node: node.into(), ready: true, waiting: None }
    }

    const NOW: &str = "3f9c2a7b10d4e5f6";
    const OLD: &str = "0a1b2c3d4e5f6071";

    /// A cluster on which everything is wrong that can be.
    fn everything() -> Seen {
        let closed = NodeEnforcementStatus { closed: 2, ..status(NodeState::Current, NOW).unwrap() };
        let refused = NodeEnforcementStatus {
            last_error: "the kernel refused\n  a set".into(),
            ..status(NodeState::Behind, OLD).unwrap()
        };
        let nodes = [
            ("a-current", status(NodeState::Current, NOW)),
            ("b-older", status(NodeState::Current, OLD)),
            ("c-refused", Some(refused)),
            ("d-slow", status(NodeState::Behind, OLD)),
            ("e-closed", Some(closed)),
            ("f-silent", status(NodeState::Disconnected, OLD)),
            ("g-crashes", status(NodeState::Disconnected, OLD)),
            ("h-new", None),
            ("i-bare", None),
        ];
        let nodes = nodes.map(|(name, written)| (name.to_owned(), written)).into();
        let mut pods: Vec<Own> =
            ["a-current", "b-older", "c-refused", "d-slow", "e-closed", "f-silent", "h-new"]
                .iter()
                .map(|node| pod(&format!("moat-agent-{}", &node[..1]), node))
                .collect();
        pods.push(Own {
            waiting: Some("CrashLoopBackOff".into()),
            ready: false,
            ..pod("moat-agent-g", "g-crashes")
        });
        pods.push(pod("moat-controller-0", "a-current"));
        pods.push(Own { ready: false, ..pod("moat-controller-1", "b-older") });
        Seen { applied: NOW.into(), nodes, pods }
    }

    fn text(seen: Seen) -> String {
        let mut out = Vec::new();
        Report::of(seen).text(false, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[track_caller]
    fn golden(name: &str, text: &str) {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&path, text).unwrap();
        }
        let expected = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(text == expected, "golden/{name} differs (BLESS=1 accepts this):\n{text}");
    }

    #[test]
    fn every_way_to_lag_is_told_apart() {
        golden("status-lagging.txt", &text(everything()));
        let mut out = Vec::new();
        let report = Report::of(everything());
        assert!(!report.enforced());
        report.json(&mut out).unwrap();
        golden("status-lagging.json", &String::from_utf8(out).unwrap());
    }

    #[test]
    fn all_is_well_in_one_line() {
        let nodes = ["node1", "node2"].map(|name| (name.to_owned(), status(NodeState::Current, NOW))).into();
        let pods = vec![
            pod("moat-agent-a", "node1"),
            pod("moat-agent-b", "node2"),
            pod("moat-controller-0", "node1"),
        ];
        let seen = Seen { applied: NOW.into(), nodes, pods };
        golden("status-current.txt", &text(seen));
    }

    #[test]
    fn a_cluster_without_controllers_is_told() {
        let seen = |pods| {
            let nodes = [("node1".to_owned(), status(NodeState::Current, NOW))].into();
            Seen { applied: NOW.into(), nodes, pods }
        };
        let agent = pod("moat-agent-a", "node1");
        assert!(
            text(seen(vec![agent.clone()]))
                .ends_with("; no moat-controller runs, so no change reaches a node\n")
        );
        let down = Own { ready: false, ..pod("moat-controller-0", "node1") };
        assert!(text(seen(vec![agent, down])).contains("; none of 1 controllers is ready"));
    }

    #[test]
    fn a_cluster_without_nodes_enforces_nothing() {
        assert!(!Report::of(Seen::default()).enforced());
    }
}
