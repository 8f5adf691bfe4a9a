//! Minds the agents: kills them when told to, and writes down when they died, were started again and were ready.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::clock::Moment;
use super::journal::Journal;
use super::judge::Event;
use super::views::Epoch;
use crate::agent::Agent;
use crate::error::{LabError, Trying as _};

/// How often an agent that was started is asked whether it is ready.
const ASK_EVERY: Duration = Duration::from_millis(5);
/// An agent that is not ready by then is a finding.
const PATIENCE: Duration = Duration::from_secs(20);

/// The epochs, by the fingerprint of their folder.
pub(super) type Epochs = Arc<Mutex<HashMap<String, Epoch>>>;

/// One node's agent.
#[derive(Clone)]
pub(super) struct Mind {
    node: usize,
    name: Arc<str>,
    agent: Arc<Agent>,
    journal: Journal,
    kills: Arc<Mutex<Kills>>,
}

/// What was done to it.
#[derive(Default)]
struct Kills {
    /// How often it was killed.
    count: usize,
    /// When it was killed last, as long as the next one is not ready.
    last: Option<Moment>,
    /// How long it was away, each time.
    away: Vec<Duration>,
}

impl Mind {
    /// Begins to watch over a node's agent.
    pub(super) fn new(
        node: usize,
        name: Arc<str>,
        agent: Arc<Agent>,
        journal: Journal,
        epochs: Epochs,
    ) -> Self {
        let mind = Self { node, name, agent, journal, kills: Arc::default() };
        tokio::spawn(mind.clone().watch(epochs));
        mind
    }

    /// kill -9. Tells whether there was anybody to kill.
    pub(super) fn kill(&self) -> Result<bool, LabError> {
        let process = self.agent.process();
        if !process.is_alive() {
            return Ok(false);
        }
        let mut kills = self.kills();
        let at = self.journal.clock.now();
        kills.count += 1;
        kills.last = Some(at);
        self.journal.note(Event::Killed { node: self.node, at });
        process.kill().trying(|| format!("cannot kill the agent of {}", self.name))?;
        Ok(true)
    }

    /// Whether the last kill has been made good.
    pub(super) fn is_ready(&self) -> bool {
        self.kills().last.is_none()
    }

    /// How long the agent was away, each time.
    pub(super) fn away(&self) -> Vec<Duration> {
        self.kills().away.clone()
    }

    fn kills(&self) -> MutexGuard<'_, Kills> {
        self.kills.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn watch(self, epochs: Epochs) {
        let mut life = self.agent.life();
        let (mut ends, mut starts) = (life.borrow().ends.len(), life.borrow().starts);
        loop {
            if life.changed().await.is_err() {
                return;
            }
            let now = life.borrow_and_update().clone();
            for (at, how) in &now.ends[ends..] {
                self.ended(self.journal.clock.of(*at), how);
            }
            ends = now.ends.len();
            if now.over {
                let what = format!(
                    "the agent of {} ended and is given up; its log: {}",
                    self.name,
                    self.agent.log().display()
                );
                self.journal.note(Event::Found { at: self.journal.clock.now(), what });
                return;
            }
            if now.starts > starts {
                starts = now.starts;
                self.journal.note(Event::Started { node: self.node, at: self.journal.clock.of(now.started) });
                self.until_ready(&epochs, &mut life).await;
            }
        }
    }

    fn ended(&self, at: Moment, how: &str) {
        let mut kills = self.kills();
        if kills.last.is_none() {
            // Nobody has killed it.
            kills.last = Some(at);
            self.journal.note(Event::Killed { node: self.node, at: at - Duration::from_millis(20) });
            let what = format!("the agent of {} ended by itself ({how})", self.name);
            self.journal.note(Event::Found { at, what });
        }
        self.journal.note(Event::Dead { node: self.node });
    }

    /// Asks until it says that a state of the folder is in force, or has ended again.
    async fn until_ready(
        &self,
        epochs: &Epochs,
        life: &mut tokio::sync::watch::Receiver<crate::agent::Life>,
    ) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (count, at) = (self.kills().count, self.journal.clock.now());
            let applied = self.agent.applied().await;
            let known = |f: &String| epochs.lock().unwrap_or_else(PoisonError::into_inner).get(f).copied();
            if let Some(epoch) = applied.as_ref().and_then(known) {
                let mut kills = self.kills();
                if kills.count == count {
                    self.journal.note(Event::Ready { node: self.node, at, epoch });
                    if let Some(killed) = kills.last.take() {
                        kills.away.push(at.since(killed));
                    }
                }
                return;
            }
            if life.has_changed().unwrap_or(true) {
                return;
            }
            if Instant::now() > deadline {
                let what = format!(
                    "the agent of {} was not ready {} s after its start",
                    self.name,
                    PATIENCE.as_secs()
                );
                self.journal.note(Event::Found { at, what });
                return;
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }
}
