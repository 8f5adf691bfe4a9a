//! Questions to the API server, through kubectl: what people ask it with is what the harness asks it with.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::plan::Plan;

/// kubectl for the cluster, by a kubeconfig.
pub(crate) fn kubectl(plan: &Plan, kubeconfig: &Path) -> Command {
    let mut command = Command::new(plan.kubernetes("kubectl"));
    command.arg("--kubeconfig").arg(kubeconfig);
    // What it remembers of the API goes with the cluster.
    command.env("KUBECACHEDIR", plan.state.join("kubectl-cache"));
    command
}

/// What it prints as JSON.
pub(crate) fn json(plan: &Plan, kubeconfig: &Path, arguments: &[&str]) -> Result<Value> {
    let output = kubectl(plan, kubeconfig)
        .args(arguments)
        .args(["-o", "json"])
        .output()
        .context("cannot run kubectl")?;
    if !output.status.success() {
        bail!("kubectl {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).context("kubectl prints no JSON")
}

/// A node, as far as anybody here asks.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NodeState {
    pub(crate) name: String,
    pub(crate) pod_cidrs: Vec<String>,
    pub(crate) ready: bool,
    /// Why it is not.
    pub(crate) why: String,
}

/// The nodes of a list of Node objects.
pub(crate) fn nodes(list: &Value) -> Vec<NodeState> {
    let items = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    let node = |item: &Value| {
        let conditions = item["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
        let ready = conditions.iter().find(|condition| condition["type"] == "Ready");
        let text = |value: &Value| value.as_str().map(str::to_owned);
        NodeState {
            name: text(&item["metadata"]["name"]).unwrap_or_default(),
            pod_cidrs: item["spec"]["podCIDRs"].as_array().into_iter().flatten().filter_map(&text).collect(),
            ready: ready.is_some_and(|condition| condition["status"] == "True"),
            why: ready.and_then(|condition| text(&condition["message"])).unwrap_or_default(),
        }
    };
    items.iter().map(node).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_is_ready_when_its_condition_says_so() {
        let node = |status: &str| {
            let condition = json!({ "type": "Ready", "status": status, "message": "why" });
            let disk = json!({ "type": "DiskPressure", "status": "False" });
            json!({
                "metadata": { "name": "node1" },
                "spec": { "podCIDRs": ["10.244.0.0/24"] },
                "status": { "conditions": [disk, condition] },
            })
        };
        let list = json!({ "items": [node("True"), node("False"), { "metadata": { "name": "new" } }] });
        let states = nodes(&list);
        assert_eq!(states.iter().map(|n| n.ready).collect::<Vec<_>>(), [true, false, false]);
        assert_eq!(states[0].pod_cidrs, ["10.244.0.0/24"]);
        assert_eq!(states[1].why, "why");
        assert!(states[2].pod_cidrs.is_empty());
    }
}
