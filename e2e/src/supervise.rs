//! Starts an agent again when it ends, as systemd or a kubelet would.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::process::{Child, Command};
use tokio::sync::watch;

use crate::agent::Life;
use crate::space::Space;
use crate::state::Process;

/// A process that ends by itself sooner than this has failed to start.
const SETTLED: Duration = Duration::from_secs(1);
/// So often in a row it is tried, with a longer pause each time; then it is given up.
const TRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// What to start.
pub(crate) struct Recipe {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<OsString>,
    /// Where what it writes goes.
    pub(crate) log: PathBuf,
}

/// Starts the process in a space, and there watches over it. Tells what becomes of it.
pub(crate) async fn start(
    recipe: Recipe,
    restart: bool,
    space: &Arc<Space>,
) -> io::Result<watch::Receiver<Life>> {
    let first = space.run(async move {
        let started = Instant::now();
        let (child, process) = recipe.spawn()?;
        let life = Life { process, started, ends: Vec::new(), starts: 1, over: false };
        let (sender, receiver) = watch::channel(life);
        tokio::spawn(watch_over(recipe, restart, child, sender));
        Ok(receiver)
    });
    first.await.flatten()
}

async fn watch_over(recipe: Recipe, restart: bool, mut child: Child, life: watch::Sender<Life>) {
    let mut failures = 0;
    loop {
        let ended = child.wait().await;
        let now = Instant::now();
        let alone = !ended.as_ref().is_ok_and(was_killed);
        failures = if alone && now - life.borrow().started < SETTLED { failures + 1 } else { 0 };
        let how = ended.map_or_else(|e| e.to_string(), |status| status.to_string());
        let over = !restart || failures >= TRIES;
        life.send_modify(|life| {
            life.ends.push((now, how));
            life.over = over;
        });
        if over {
            return;
        }
        if failures > 0 {
            tokio::time::sleep(FIRST_PAUSE * 2u32.pow(failures - 1)).await;
        }
        let started = Instant::now();
        match recipe.spawn() {
            Ok((again, process)) => {
                child = again;
                life.send_modify(|life| {
                    life.process = process;
                    life.started = started;
                    life.starts += 1;
                });
            }
            Err(error) => {
                life.send_modify(|life| {
                    life.ends.push((started, format!("cannot be started again: {error}")));
                    life.over = true;
                });
                return;
            }
        }
    }
}

/// Whoever is killed did not fail.
fn was_killed(status: &ExitStatus) -> bool {
    status.code().is_none()
}

impl Recipe {
    fn spawn(&self) -> io::Result<(Child, Process)> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let errors = log.try_clone()?;
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).current_dir("/");
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        let child = command.spawn()?;
        let process = child.id().ok_or_else(|| io::Error::other("it ended at once")).and_then(Process::of)?;
        Ok((child, process))
    }
}
