//! An upgrade: agents and controllers are replaced by a rolling update, under traffic.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Suite;
use super::field::Field;
use super::probe::fresh_id;
use super::stage::Stage;
use super::watchers::Watchers;
use crate::api::Kind;

pub(super) const SUITE: Suite = Suite {
    name: "rollout",
    about: "agents and controllers are replaced by a rolling update, under traffic",
    play,
};

/// moat's own namespace.
pub(super) const NAMESPACE: &str = "moat-system";
/// One node after the other, on a machine that does other things as well.
const PATIENCE: Duration = Duration::from_secs(240);
const AFTER: Duration = Duration::from_secs(2);

fn play(stage: &mut Stage) -> Result<()> {
    let mut watchers = Watchers::post(stage)?;
    for (kind, name) in [(Kind::DAEMON_SET, "moat-agent"), (Kind::DEPLOYMENT, "moat-controller")] {
        let what = format!("a rolling update of {name}: no wrong verdict, no allowed connection broken");
        watchers.through(stage, &what, AFTER, |stage| roll(stage.field, kind, name))?;
        watchers.follows(stage, "after that")?;
    }
    Ok(())
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
