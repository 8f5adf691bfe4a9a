//! Progress: which step we are at, and how long each took.

use std::time::Instant;

use anyhow::{Context, Result};

/// Counts the steps of a chore as they are taken.
pub(crate) struct Steps {
    chore: &'static str,
    total: usize,
    taken: usize,
    started: Instant,
}

impl Steps {
    pub(crate) fn new(chore: &'static str, total: usize) -> Self {
        Self { chore, total, taken: 0, started: Instant::now() }
    }

    /// Says what comes, does it, and says how long it took. On failure, nothing after it is tried.
    pub(crate) fn step<T>(&mut self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.taken += 1;
        let place = format!("{} {}/{}", self.chore, self.taken, self.total);
        eprintln!("== {place}: {what}");
        let started = Instant::now();
        let done = work().with_context(|| format!("{place}, {what}"))?;
        eprintln!("== {place}: {what}: done in {:.1} s", started.elapsed().as_secs_f64());
        Ok(done)
    }

    /// Seconds since the first step.
    pub(crate) fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }
}
