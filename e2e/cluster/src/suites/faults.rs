//! What moat stands on is taken away for a while, under traffic: what is in force stays in force, nothing opens, and afterwards it
//! catches up alone.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::Suite;
use super::field::Field;
use super::restarts::replaced;
use super::stage::Stage;
use super::watchers::Watchers;
use crate::api::Kind;

pub(super) const SUITE: Suite = Suite {
    name: "faults",
    about: "controllers, API server and etcd are away for a while, under traffic",
    play,
};

/// A kubelet waits the longer the oftener a container has ended; and an API server takes its time on a busy machine.
const BACK: Duration = Duration::from_secs(180);
/// So long there is no controller.
const UNTOLD: Duration = Duration::from_secs(10);
/// From when everything is back, the traffic is watched for so long.
const AFTER: Duration = Duration::from_secs(2);

fn play(stage: &mut Stage) -> Result<()> {
    let mut watchers = Watchers::post(stage)?;
    let away = stage.field.away;
    let controllers = stage.field.processes("moat-controller")?.len();
    if controllers > 0 {
        watchers.through(
            stage,
            "controllers are killed one after the other: nobody notices",
            AFTER,
            |stage| {
                for process in stage.field.processes("moat-controller")? {
                    replaced(stage.field, &[process], controllers, || {
                        stage.field.processes("moat-controller")
                    })?;
                }
                Ok(())
            },
        )?;
        let what = format!(
            "all controllers are away for {} s, and an agent is killed meanwhile: nobody notices",
            UNTOLD.as_secs()
        );
        watchers.through(stage, &what, AFTER, |stage| {
            held_down(stage.field, "moat-controller", UNTOLD, kill_agent)?;
            back(stage.field, "moat-controller", controllers)
        })?;
        watchers.follows(stage, "after that")?;
    }
    let what = format!(
        "the API server is away for {} s, and an agent and the controllers are killed meanwhile: nobody notices",
        away.as_secs()
    );
    watchers.through(stage, &what, AFTER, |stage| {
        held_down(stage.field, "kube-apiserver", away, |field| {
            kill_agent(field)?;
            field.processes("moat-controller")?.iter().try_for_each(|process| Ok(process.kill()?))
        })?;
        answers(stage.field)?;
        back(stage.field, "moat-controller", controllers)
    })?;
    watchers.ask(stage, "new connections are judged as before")?;
    watchers.follows(stage, "after that")?;
    watchers.through(stage, "etcd is killed: nobody notices", AFTER, |stage| {
        let etcd = stage.field.processes("etcd")?;
        replaced(stage.field, &etcd, etcd.len(), || stage.field.processes("etcd"))?;
        answers(stage.field)
    })?;
    watchers.ask(stage, "new connections are judged as before")?;
    watchers.follows(stage, "after that")
}

/// Kills whatever has the name as soon as it is there, for so long; and does something else in the middle of that.
fn held_down(
    field: &Field,
    program: &str,
    away: Duration,
    meanwhile: impl FnOnce(&Field) -> Result<()>,
) -> Result<()> {
    let began = Instant::now();
    let mut meanwhile = Some(meanwhile);
    while began.elapsed() < away {
        field.interrupt.check()?;
        for process in field.processes(program)? {
            process.kill()?;
        }
        if began.elapsed() > away / 3
            && let Some(meanwhile) = meanwhile.take()
        {
            meanwhile(field)?;
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn kill_agent(field: &Field) -> Result<()> {
    let node = field.node("node2")?;
    field.processes_on(node, "moat-agent")?.iter().try_for_each(|process| Ok(process.kill()?))
}

/// Waits until so many run, and moat's agents as well.
fn back(field: &Field, program: &str, count: usize) -> Result<()> {
    field
        .until(&format!("{count} of {program} run"), BACK, || Ok(field.processes(program)?.len() >= count))?;
    field.until("all agents run", BACK, || Ok(field.processes("moat-agent")?.len() >= field.nodes.len()))
}

/// Waits until the API server answers, and every node is ready again.
fn answers(field: &Field) -> Result<()> {
    field.until("the API server answers, and all nodes are ready", BACK, || {
        let Ok(nodes) = field.api.list(Kind::NODE, "") else { return Ok(false) };
        let list = serde_json::json!({ "items": nodes });
        Ok(crate::kubectl::nodes(&list).iter().all(|node| node.ready))
    })
}
