//! An upgrade: agents, their guards and controllers are replaced, under traffic, while somebody tries to change moat's tables.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::Suite;
use super::field::{Field, array};
use super::intruder::Intruders;
use super::probe::fresh_id;
use super::stage::Stage;
use super::watchers::Watchers;
use crate::api::Kind;

pub(super) const SUITE: Suite = Suite {
    name: "rollout",
    about: "agents, their guards and controllers are replaced by an update, under traffic",
    play,
};

/// moat's own namespace.
pub(super) const NAMESPACE: &str = "moat-system";
/// One node after the other, on a machine that does other things as well.
const PATIENCE: Duration = Duration::from_secs(240);
const AFTER: Duration = Duration::from_secs(2);

/// Replaces something, and waits until it is done.
type Update = fn(&Field) -> Result<()>;

fn play(stage: &mut Stage) -> Result<()> {
    let mut watchers = Watchers::post(stage)?;
    let updates: [(&str, &str, Update); 3] = [
        // First, so that the agents' successors find what the new guards were given.
        ("the guards are replaced", "moat-guard", replace_guards),
        ("a rolling update of the agents", "moat-agent", |field| roll(field, Kind::DAEMON_SET, "moat-agent")),
        ("a rolling update of the controllers", "moat-controller", |field| {
            roll(field, Kind::DEPLOYMENT, "moat-controller")
        }),
    ];
    for (what, name, update) in updates {
        let intruders = Intruders::begin(stage.field);
        let check = format!("{what}: no wrong verdict, no allowed connection broken");
        watchers.through(stage, &check, AFTER, |stage| update(stage.field))?;
        stage.verdict(&format!("{what}: nobody else could change moat's tables"), &intruders.end());
        watchers.follows(stage, &format!("after {name}"))?;
    }
    Ok(())
}

/// Ends the guards' pods, as who updates them does: nothing else replaces them.
fn replace_guards(field: &Field) -> Result<()> {
    let of_guards = |pod: &Value| pod["metadata"]["labels"]["app.kubernetes.io/name"] == "moat-guard";
    let guards = || -> Result<Vec<Value>> {
        Ok(field.api.list(Kind::POD, NAMESPACE)?.into_iter().filter(of_guards).collect())
    };
    let old = guards()?;
    if old.len() != field.nodes.len() {
        bail!("there are {} guards on {} nodes", old.len(), field.nodes.len());
    }
    for pod in &old {
        field.api.delete(Kind::POD, NAMESPACE, pod["metadata"]["name"].as_str().unwrap_or_default())?;
    }
    field.until("every guard is another one, and runs", PATIENCE, || {
        let new = |pod: &&Value| {
            let ready = array(pod, "/status/conditions")
                .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
            ready && old.iter().all(|old| old["metadata"]["uid"] != pod["metadata"]["uid"])
        };
        Ok(guards()?.iter().filter(new).count() == field.nodes.len())
    })
}

/// Replaces all pods of a workload as `kubectl rollout restart` does, and waits until it is done.
fn roll(field: &Field, kind: Kind, name: &str) -> Result<()> {
    let annotation = format!("{}-{}", std::process::id(), fresh_id());
    let template =
        json!({ "metadata": { "annotations": { "kubectl.kubernetes.io/restartedAt": annotation } } });
    let changed = field.api.merge(kind, NAMESPACE, name, json!({ "spec": { "template": template } }))?.object;
    let generation = changed.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or_default();
    field.until(&format!("{name} is replaced"), PATIENCE, || {
        let object = field.api.get(kind, NAMESPACE, name)?.with_context(|| format!("{name} is gone"))?;
        Ok(done(&object, generation))
    })
}

/// Whether all pods of a DaemonSet or Deployment are of this generation, and available.
fn done(object: &Value, generation: i64) -> bool {
    let number = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64);
    let status = |field: &str| number(&format!("/status/{field}")).unwrap_or_default();
    if status("observedGeneration") < generation {
        return false;
    }
    match number("/spec/replicas") {
        Some(replicas) => ["updatedReplicas", "availableReplicas", "replicas"].map(status) == [replicas; 3],
        None => {
            let wanted = status("desiredNumberScheduled");
            wanted > 0 && status("updatedNumberScheduled") == wanted && status("numberAvailable") == wanted
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollout_is_done_when_all_pods_are_new_and_available() {
        let deployment = |seen: i64, updated: i64, all: i64| {
            json!({
                "spec": { "replicas": 2 },
                "status": { "observedGeneration": seen, "updatedReplicas": updated, "availableReplicas": 2, "replicas": all },
            })
        };
        assert!(done(&deployment(7, 2, 2), 7));
        assert!(!done(&deployment(6, 2, 2), 7), "the change is not seen yet");
        assert!(!done(&deployment(7, 1, 2), 7));
        assert!(!done(&deployment(7, 2, 3), 7), "an old one is still there");
        let set = |updated: i64| {
            let status = json!({
                "observedGeneration": 3, "desiredNumberScheduled": 3, "updatedNumberScheduled": updated, "numberAvailable": 3,
            });
            json!({ "spec": {}, "status": status })
        };
        assert!(done(&set(3), 3));
        assert!(!done(&set(2), 3));
    }
}
