//! The API server's objects as a folder of manifests, for agents that take their objects from one.
//!
//! ```text
//!   kubectl get --watch ──JSON──▶ project: what moat reads of an object ──▶ objects/KIND_NAMESPACE_NAME.json
//! ```
//!
//! One watch a kind, no rights but reading, no state: a new mirror writes everything anew.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufReader, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::kubectl::kubectl;
use crate::plan::Plan;

const KINDS: &[&str] = &["nodes", "namespaces", "pods", "networkpolicies"];

/// Mirrors until a watch ends.
pub(crate) fn run(plan: &Plan) -> Result<()> {
    let folder = plan.objects();
    let (over, ended) = std::sync::mpsc::channel();
    for kind in KINDS {
        let (plan, folder, over) = (plan.clone(), folder.clone(), over.clone());
        thread::spawn(move || {
            let _ = over.send(follow(&plan, kind, &folder));
        });
    }
    ended.recv().context("no watch was started")??;
    bail!("a watch ended")
}

fn follow(plan: &Plan, kind: &str, folder: &Path) -> Result<()> {
    let mut command = kubectl(plan, &plan.inner_kubeconfig("admin"));
    command.args(["get", kind, "--all-namespaces", "--watch", "--output-watch-events", "-o", "json"]);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot run kubectl")?;
    let output = child.stdout.take().context("kubectl has no output")?;
    for event in serde_json::Deserializer::from_reader(BufReader::new(output)).into_iter::<Value>() {
        let event = event.context("kubectl prints no JSON")?;
        match changes(&event) {
            Some(Change::Write(name, text)) => write(folder, &name, &text)?,
            Some(Change::Remove(name)) => remove(&folder.join(name))?,
            None => {}
        }
    }
    bail!("the watch of {kind} ended: {}", child.wait()?)
}

/// What an event does to the folder.
#[derive(Debug, PartialEq)]
enum Change {
    Write(String, String),
    Remove(String),
}

fn changes(event: &Value) -> Option<Change> {
    let object = &event["object"];
    let name = file_name(object)?;
    match event["type"].as_str()? {
        "ADDED" | "MODIFIED" => Some(match project(object) {
            Some(projected) => Change::Write(name, projected.to_string()),
            None => Change::Remove(name),
        }),
        "DELETED" => Some(Change::Remove(name)),
        _ => None,
    }
}

fn file_name(object: &Value) -> Option<String> {
    let kind = object["kind"].as_str()?.to_lowercase();
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
    let name = object["metadata"]["name"].as_str()?;
    // No name holds an underscore.
    Some(format!("{kind}_{namespace}_{name}.json"))
}

/// What moat reads of an object; nothing of a pod that is on no node yet, or that has run to its end.
fn project(object: &Value) -> Option<Value> {
    let metadata = pick(&object["metadata"], &["name", "namespace", "labels", "uid"]);
    let (spec, status) = (&object["spec"], &object["status"]);
    let mut projected = match object["kind"].as_str()? {
        "Namespace" => json!({}),
        "NetworkPolicy" => json!({ "spec": spec }),
        "Node" => json!({
            "spec": pick(spec, &["podCIDR", "podCIDRs"]),
            "status": pick(status, &["addresses"]),
        }),
        "Pod" => {
            spec["nodeName"].as_str()?;
            let containers = spec["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
            let containers: Vec<Value> =
                containers.iter().map(|container| pick(container, &["name", "image", "ports"])).collect();
            let mut seen = pick(spec, &["nodeName", "hostNetwork"]);
            seen["containers"] = json!(containers);
            json!({ "spec": seen, "status": pick(status, &["phase", "podIP", "podIPs", "hostIP", "hostIPs"]) })
        }
        _ => return None,
    };
    projected["apiVersion"] = object["apiVersion"].clone();
    projected["kind"] = object["kind"].clone();
    projected["metadata"] = metadata;
    Some(projected)
}

fn pick(of: &Value, fields: &[&str]) -> Value {
    let there = fields.iter().filter_map(|field| Some((field.to_string(), of.get(field)?.clone())));
    json!(there.collect::<BTreeMap<String, Value>>())
}

/// A reader finds the old text or the new one, whole; the same text is not written again.
fn write(folder: &Path, name: &str, text: &str) -> Result<()> {
    let path = folder.join(name);
    if fs::read_to_string(&path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    // No reader of manifests takes a hidden file for one.
    let new: PathBuf = folder.join(format!(".{name}.new"));
    fs::write(&new, text)
        .and_then(|()| fs::rename(&new, &path))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": "a", "namespace": "x", "uid": "1", "labels": { "pod": "a" },
                "managedFields": [{ "manager": "kubelet" }],
            },
            "spec": {
                "nodeName": "node1",
                "volumes": [{ "name": "token" }],
                "containers": [{ "name": "c", "image": "i", "ports": [{ "containerPort": 80 }], "env": [] }],
            },
            "status": { "phase": "Running", "podIP": "10.244.0.2", "podIPs": [{ "ip": "10.244.0.2" }], "qosClass": "x" },
        })
    }

    #[test]
    fn a_pod_is_mirrored_with_what_decides_verdicts() {
        let Some(Change::Write(name, text)) = changes(&json!({ "type": "ADDED", "object": pod() })) else {
            panic!("not written")
        };
        assert_eq!(name, "pod_x_a.json");
        let written: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(written["spec"]["containers"][0]["ports"][0]["containerPort"], 80);
        assert_eq!(written["status"]["podIPs"][0]["ip"], "10.244.0.2");
        assert_eq!(written["metadata"]["labels"]["pod"], "a");
        for unread in ["managedFields", "volumes", "env", "qosClass"] {
            assert!(!text.contains(unread), "{text}");
        }
    }

    #[test]
    fn a_pod_on_no_node_is_not_there() {
        let mut pod = pod();
        pod["spec"].as_object_mut().unwrap().remove("nodeName");
        let event = json!({ "type": "MODIFIED", "object": pod });
        assert_eq!(changes(&event), Some(Change::Remove("pod_x_a.json".into())));
    }

    #[test]
    fn what_is_deleted_goes() {
        let event = json!({ "type": "DELETED", "object": pod() });
        assert_eq!(changes(&event), Some(Change::Remove("pod_x_a.json".into())));
        assert_eq!(changes(&json!({ "type": "BOOKMARK", "object": { "kind": "Pod" } })), None);
    }

    #[test]
    fn manifests_reads_a_policy_as_it_was_applied() {
        let spec = json!({ "podSelector": {}, "policyTypes": ["Ingress"] });
        let policy = json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": { "name": "deny", "namespace": "x" },
            "spec": spec,
        });
        assert_eq!(project(&policy).unwrap()["spec"], spec);
    }
}
