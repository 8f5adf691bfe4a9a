//! Minds the agents: kills them when told to, and writes down when they died, were started again and were ready.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::clock::Moment;
use super::journal::Journal;
use super::judge::{Event, GRACE};
use super::views::Epoch;
use crate::agent::Agent;
use crate::error::{LabError, Trying as _};
use crate::state::Process;

/// How often an agent that was started is asked whether it is ready.
const ASK_EVERY: Duration = Duration::from_millis(5);
/// An agent that is not ready by then is a finding.
const PATIENCE: Duration = Duration::from_secs(20);

/// However busy the machine is, an agent gets no more time than this for a change.
const AT_MOST: Duration = Duration::from_secs(1);

/// The epochs, by the fingerprint of their folder; the newest of them is the largest.
pub(super) type Epochs = Arc<Mutex<HashMap<String, Epoch>>>;

/// How long each thread of an agent has waited for a processor in its life.
pub(super) struct Waits {
    process: Process,
    threads: HashMap<u32, Duration>,
}

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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The second number of `/proc/PID/task/TID/schedstat`: nanoseconds on a run queue.
fn schedule(process: &Process) -> Option<HashMap<u32, Duration>> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", process.pid())).ok()?;
    let wait = |entry: std::fs::DirEntry| {
        let text = std::fs::read_to_string(entry.path().join("schedstat")).ok()?;
        let nanos = text.split_whitespace().nth(1)?.parse().ok()?;
        Some((entry.file_name().to_str()?.parse().ok()?, Duration::from_nanos(nanos)))
    };
    Some(tasks.flatten().filter_map(wait).collect())
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
        lock(&self.kills)
    }

    /// How long its threads have waited so far; nothing where it is not ready.
    pub(super) fn waits(&self) -> Option<Waits> {
        let process = self.agent.process();
        let threads = if self.is_ready() { schedule(&process) } else { None };
        threads.map(|threads| Waits { process, threads })
    }

    /// Sees to it that a write has the grace of a machine on which the agent need not wait for a processor.
    pub(super) async fn follow(self, before: Waits, epoch: Epoch, written: Moment) {
        let mut until = written + GRACE;
        let mut by = Duration::ZERO;
        loop {
            tokio::time::sleep(until.since(self.journal.clock.now())).await;
            let Some(now) = schedule(&before.process) else { return };
            let waited = |(thread, total): (&u32, &Duration)| {
                total.saturating_sub(before.threads.get(thread).copied().unwrap_or_default())
            };
            // A change goes from one thread to the next, so their waits add up.
            let all = now.iter().map(waited).sum::<Duration>().min(AT_MOST);
            if all <= by + Duration::from_millis(1) {
                break;
            }
            (by, until) = (all, written + GRACE + all);
        }
        if !by.is_zero() {
            self.journal.note(Event::Lengthened { node: self.node, epoch, until, by });
        }
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
            let newest = lock(epochs).values().max().copied();
            let applied = self.agent.applied().await;
            let known = |f: &String| lock(epochs).get(f).copied();
            // What was written while it started has to be in force as well.
            if let Some(epoch) = applied.as_ref().and_then(known).filter(|epoch| Some(*epoch) >= newest) {
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
