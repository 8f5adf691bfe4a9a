//! moat's own processes die and come back, under traffic.

use std::time::Duration;

use anyhow::{Result, bail};
use moat_lab::Process;

use super::Suite;
use super::field::Field;
use super::stage::Stage;
use super::watchers::Watchers;

pub(super) const SUITE: Suite =
    Suite { name: "restarts", about: "agents and controllers are killed under traffic", play };

/// A kubelet waits the longer the oftener a container has ended.
const BACK: Duration = Duration::from_secs(180);
/// From when a process is there again, it is watched for so long.
const AFTER: Duration = Duration::from_millis(1500);

fn play(stage: &mut Stage) -> Result<()> {
    let mut watchers = Watchers::post(stage)?;
    for node in ["node1", "node2"] {
        let what = format!("kill -9 of the agent of {node}: nobody is cut, nothing gets through");
        watchers.through(stage, &what, AFTER, |stage| {
            let node = stage.field.node(node)?;
            let agents = stage.field.processes_on(node, "moat-agent")?;
            replaced(stage.field, &agents, agents.len(), || stage.field.processes_on(node, "moat-agent"))
        })?;
    }
    watchers.ask(stage, "new connections are judged as before")?;
    watchers.follows(stage, "after the agents were killed")?;
    if stage.field.processes("moat-controller")?.is_empty() {
        return Ok(());
    }
    watchers.through(
        stage,
        "kill -9 of all controllers: nobody is cut, nothing gets through",
        AFTER,
        |stage| {
            let before = stage.field.processes("moat-controller")?;
            replaced(stage.field, &before, before.len(), || stage.field.processes("moat-controller"))
        },
    )?;
    watchers.ask(stage, "new connections are judged as before")?;
    watchers.follows(stage, "after the controllers were killed")
}

/// Kills processes, and waits until there are as many as are to be.
pub(super) fn replaced(
    field: &Field,
    killed: &[Process],
    count: usize,
    now: impl Fn() -> Result<Vec<Process>>,
) -> Result<()> {
    if killed.is_empty() {
        bail!("there is no process to kill");
    }
    for process in killed {
        process.kill()?;
    }
    field.until("as many are there again", BACK, || Ok(now()?.len() >= count))
}
