//! moat is taken off the cluster as docs/upgrade.md says, and leaves every node clean. Afterwards the cluster has no pod network.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::Suite;
use super::field::{Field, NodeView};
use super::stage::{Stage, pod};
use crate::kubectl::kubectl;

pub(super) const SUITE: Suite =
    Suite { name: "uninstall", about: "moat is taken off the cluster and leaves its nodes clean", play };

/// The protocol of moat's routes and rules, as `ip -details -Numeric` prints it.
const MARK: &str = "proto 109";

fn play(stage: &mut Stage) -> Result<()> {
    let field = stage.field;
    let deployed = field.plan.moat.clone().context("moat was not deployed on this cluster")?;
    let uninstall =
        deployed.ancestors().map(|folder| folder.join("uninstall")).find(|folder| folder.is_dir());
    let uninstall = uninstall.context("there is no deploy/uninstall beside what was deployed")?;
    // So that there is something on each node to be left behind.
    let names: Vec<String> = field.nodes.iter().map(|node| node.name.clone()).collect();
    let pods: Vec<_> = names.iter().map(|node| pod(&format!("on-{node}"), node, &[])).collect();
    stage.start(&pods)?;
    stage.policy("deny", json!({ "podSelector": {} }))?;
    let before: Vec<String> = field
        .nodes
        .iter()
        .filter(|node| left(field, node).is_ok_and(|left| left.is_empty()))
        .map(|n| n.name.clone())
        .collect();
    stage.verdict("before, each node has something of moat's", &before);

    run(field, &["delete", "--wait", "-k"], &deployed)?;
    run(field, &["apply", "-k"], &uninstall)?;
    let mut wait = kubectl(&field.plan, &field.plan.kubeconfig());
    wait.args([
        "--namespace=moat-uninstall",
        "rollout",
        "status",
        "daemonset/moat-uninstall",
        "--timeout=180s",
    ]);
    succeed(&mut wait)?;
    // With it goes the last process that is of moat's program.
    run(field, &["delete", "--wait", "-k"], &uninstall)?;
    for node in &field.nodes {
        stage.verdict(&format!("nothing of moat's is left on {}", node.name), &left(field, node)?);
    }
    Ok(())
}

fn run(field: &Field, words: &[&str], folder: &Path) -> Result<()> {
    succeed(kubectl(&field.plan, &field.plan.kubeconfig()).args(words).arg(folder))
}

fn succeed(command: &mut Command) -> Result<()> {
    output(command).map(|_| ())
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What of moat's is on a node.
fn left(field: &Field, node: &NodeView) -> Result<Vec<String>> {
    let inside = |words: &[&str]| {
        let mut command = Command::new("nsenter");
        command.args(["--target", &node.process.to_string(), "--mount", "--net", "--pid", "--"]);
        output(command.args(words))
    };
    let mut left = Vec::new();
    for (what, words, ours) in
        [("table", &["nft", "list", "tables"][..], "moat"), ("link", &["ip", "-brief", "link"], "moat")]
    {
        left.extend(
            inside(words)?.lines().filter(|line| line.contains(ours)).map(|line| format!("{what}: {line}")),
        );
    }
    for program in ["moat-agent", "moat-guard", "moat-controller"] {
        left.extend(field.processes_on(node, program)?.iter().map(|_| format!("process: {program}")));
    }
    for family in ["-4", "-6"] {
        for (what, words) in
            [("route", ["route", "show", "table", "all"].as_slice()), ("rule", ["rule", "show"].as_slice())]
        {
            // Not by a filter of its own: that of rules, `ip` takes and does not heed.
            let lines = inside(&[&["ip", "-details", "-Numeric", family], words].concat())?;
            left.extend(
                lines.lines().filter(|line| line.contains(MARK)).map(|line| format!("{what}: {line}")),
            );
        }
    }
    for path in ["/etc/cni/net.d/05-moat.conflist", "/opt/cni/bin/moat-cni", "/run/moat", "/var/lib/moat"] {
        // As the node sees it.
        if inside(&["test", "-e", path]).is_ok() {
            left.push(format!("file: {path}"));
        }
    }
    Ok(left)
}
