//! The thread that writes: one commit at a time, everything that came in meanwhile in the next.

mod orders;
mod refused;

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};
use std::time::{Duration, Instant};

use moat_nfnetlink::nft::{Event, Events};
use moat_policies::NamespacedName;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::{oneshot, watch};
use tracing::{debug, error, info, warn};

use super::Closed;
use super::concern::Concern;
use super::culprits::Failed;
use super::error::Error;
use super::kernel::{Kernel, PREDECESSOR};
use super::layout::{Live, Table};
use super::op::Plan;
use super::revoked::Revoked;
use super::state::State;
use super::stats::Stats;
use super::update::Update;
pub use orders::Commit;
pub(super) use orders::{Listener, Order, Waiter};

/// How soon what the kernel refused is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How seldom at most.
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// How long our tables are left alone after somebody else changed them, so that a commit of many
/// messages is over and somebody who does it all the time costs little.
const RESTORE_PAUSE: Duration = Duration::from_millis(100);

/// Holds the state and the socket, and runs on a thread of its own.
#[derive(Debug)]
pub(super) struct Writer {
    /// Locked for writing from the moment that a change is taken in until the kernel holds it: who reads it reads what is in
    /// force.
    state: Arc<RwLock<State>>,
    listener: Arc<Listener>,
    kernel: Kernel,
    /// Everybody's commits, where our tables cannot be guarded.
    events: Option<Events>,
    stats: Arc<Stats>,
    /// Who is closed, for those who ask.
    closed: watch::Sender<Closed>,
    /// When the tables are to be made right by listing them.
    restore_at: Option<Instant>,
    /// When what the kernel refused is to be tried again.
    retry: Retry,
    /// Commits that somebody was told of.
    told: u64,
}

/// When what the kernel refused is tried again: soon, and then less and less often.
#[derive(Debug, Default)]
struct Retry {
    at: Option<Instant>,
    pause: Duration,
}

impl Retry {
    /// It has just been refused (again).
    fn later(&mut self) {
        self.pause = (self.pause * 2).clamp(RETRY, LONGEST_RETRY);
        self.at = Some(Instant::now() + self.pause);
    }

    fn is_due(&self) -> bool {
        self.at.is_some_and(|at| at <= Instant::now())
    }
}

impl Writer {
    /// Takes over what is in the kernel and makes it hold `initial`.
    pub(super) fn start(
        state: Arc<RwLock<State>>,
        listener: Arc<Listener>,
        kernel: Kernel,
        initial: &Update,
        stats: Arc<Stats>,
        closed: watch::Sender<Closed>,
    ) -> Result<Self, Error> {
        // Before the listing, so that nothing falls in between.
        let events = if kernel.owns() { None } else { Some(Events::open()?) };
        Stats::set(&stats.owner, kernel.owns().into());
        let retry = Retry::default();
        let mut writer =
            Self { state, listener, kernel, events, stats, closed, restore_at: None, retry, told: 0 };
        let state = writer.state.clone();
        let mut state = write(&state);
        state.advance(initial);
        let begin = Instant::now();
        loop {
            match writer.make_right(&mut state, &BTreeSet::new()) {
                // A predecessor that was told to end may not be quite gone.
                Err(Error::Owned { .. }) if begin.elapsed() < PREDECESSOR => {
                    std::thread::sleep(PREDECESSOR / 100)
                }
                other => break other?,
            }
        }
        // Whoever listens for commits begins with all connections.
        state.take_concern();
        writer.tell_closed(&state);
        Ok(writer)
    }

    /// Writes until everybody who could submit is gone. `wake` becomes readable when an order is there.
    pub(super) fn run(mut self, orders: &Receiver<Order>, wake: &OwnedFd) {
        loop {
            self.wait(wake);
            let mut batch = Vec::new();
            let mut followed = None;
            let stopped = loop {
                match orders.try_recv() {
                    Ok(Order::Update(update, waiter)) => batch.push((*update, waiter)),
                    Ok(Order::Followed(commit, revoked)) => followed = Some((commit, revoked)),
                    Err(TryRecvError::Empty) => break false,
                    Err(TryRecvError::Disconnected) => break true,
                }
            };
            self.hear();
            if self.restore_at.is_some_and(|at| at <= Instant::now()) {
                self.restore();
            }
            if self.retry.is_due() {
                self.try_again();
            }
            if let Some((commit, revoked)) = followed
                && commit == self.told
            {
                self.followed(revoked, batch.is_empty());
            }
            if !batch.is_empty() {
                self.write(batch);
            }
            if stopped {
                return;
            }
        }
    }

    /// Waits for an order, a commit by somebody else, or the time of a restoration.
    fn wait(&self, wake: &OwnedFd) {
        let mut fds = vec![PollFd::new(wake, PollFlags::IN)];
        if let Some(events) = &self.events {
            fds.push(PollFd::from_borrowed_fd(events.as_fd(), PollFlags::IN));
        }
        let next = self.restore_at.into_iter().chain(self.retry.at).min();
        let left = next.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        // An error here is an interruption; the round that follows finds nothing, and waits again.
        if poll(&mut fds, timeout.as_ref()).is_ok() && !fds[0].revents().is_empty() {
            let mut count = [0; 8];
            if let Err(e) = rustix::io::read(wake, &mut count) {
                debug!("cannot reset the event descriptor: {e}");
            }
        }
    }

    /// Looks whether others' commits touched our tables.
    fn hear(&mut self) {
        let Some(events) = &mut self.events else { return };
        let mut touched = false;
        loop {
            match events.try_next() {
                Ok(None) => break,
                Ok(Some(Event::Commit(commit))) if commit.port_id == self.kernel.port_id() => {}
                Ok(Some(Event::Commit(commit))) => {
                    if Table::ALL.iter().any(|table| commit.tables.contains(&table.id())) {
                        let (pid, name) = commit.process.unwrap_or_default();
                        warn!(pid, process = name, "somebody else changed moat's tables; restoring them");
                        touched = true;
                    } else {
                        Stats::count(&self.stats.foreign_commits);
                    }
                }
                Ok(Some(Event::Lost)) => {
                    debug!("events were lost; listing moat's tables to be sure");
                    touched = true;
                }
                Err(e) => {
                    error!("cannot hear of others' commits: {:#}", anyhow::Error::new(e));
                    touched = true;
                    break;
                }
            }
        }
        if touched && self.restore_at.is_none() {
            Stats::count(&self.stats.restores);
            self.restore_at = Some(Instant::now() + RESTORE_PAUSE);
        }
    }

    /// Makes the tables right, whatever is in them.
    fn restore(&mut self) {
        self.locked(|writer, state| writer.make_right(state, &BTreeSet::new()));
    }

    /// Tries again what the kernel refused.
    fn try_again(&mut self) {
        self.retry.at = None;
        self.locked(|writer, state| {
            let suspects = state.closed().into_keys().collect();
            let plan = state.reopen();
            writer.carry_out(state, plan, &suspects)
        });
    }

    /// Does something that no order asked for.
    fn locked(&mut self, work: impl FnOnce(&mut Self, &mut State) -> Result<(), Error>) {
        let state = self.state.clone();
        let mut state = write(&state);
        // An error has been told, and the time of the next try is set.
        let _ = work(self, &mut state);
        self.tell_closed(&state);
        let concern = state.take_concern();
        drop(state);
        if !concern.is_empty() {
            self.tell(concern, Vec::new());
        }
    }

    fn resync(&mut self, state: &State) -> Result<(), Failed> {
        let begin = Instant::now();
        self.kernel.restore(|| state.content())?;
        self.stats.committed(begin.elapsed());
        Ok(())
    }

    /// Writes what came in, in one commit.
    fn write(&mut self, orders: Vec<(Update, Waiter)>) {
        let mut update = Update::default();
        let mut waiting = Vec::with_capacity(orders.len());
        for (later, waiter) in orders {
            Stats::count(&self.stats.updates);
            if !waiting.is_empty() {
                Stats::count(&self.stats.coalesced);
            }
            update.merge(later);
            waiting.push(waiter);
        }
        let state = self.state.clone();
        let mut state = write(&state);
        let laid_out = update.live.map_or(Ok(()), |live| self.lay_out(&mut state, live));
        let plan = state.advance(&update);
        let suspects = update.policy.pods.keys().chain(update.pods.keys()).cloned().collect();
        let result = self.carry_out(&mut state, plan, &suspects).and(laid_out);
        self.tell_closed(&state);
        let concern = state.take_concern();
        drop(state);
        let (done, cut): (Vec<_>, Vec<_>) = waiting.into_iter().map(|w| (w.done, w.cut)).unzip();
        self.tell(concern, cut);
        for done in done {
            // Who no longer waits does not want to know.
            let _ = done.send(result.clone());
        }
    }

    /// Writes the whole layout anew, as it is to be from now on, in one transaction. No verdict changes with it, so no connection
    /// is looked at. Where the kernel refuses, the layout stays as it was.
    fn lay_out(&mut self, state: &mut State, live: Live) -> Result<(), Error> {
        let Some(before) = state.lay_out(live) else { return Ok(()) };
        // Where a restoration is due, the new layout comes with it.
        if self.restore_at.is_some() {
            return Ok(());
        }
        let Err(failed) = self.resync(state) else { return Ok(()) };
        Stats::count(&self.stats.refusals);
        state.lay_out_as_before(before);
        let refused = anyhow::Error::new(failed.error.clone());
        error!("the network cannot be as it is configured, and stays as it was: {refused:#}");
        Err(failed.error)
    }

    /// Gives all connections the fast path, and keeps who is revoked. Where it is shut and a change waits, which mostly would shut it again,
    /// it stays so: the look at that change opens it.
    fn followed(&mut self, revoked: Revoked, nothing_waits: bool) {
        // Where a restoration is due, all connections are looked at once more behind it.
        if self.restore_at.is_none() {
            self.locked(|writer, state| {
                if !nothing_waits && !state.is_open() {
                    return Ok(());
                }
                let plan = state.followed(revoked);
                writer.carry_out(state, plan, &BTreeSet::new())
            });
        }
    }

    /// Tells whoever looks after connections.
    fn tell(&mut self, concern: Concern, waiting: Vec<oneshot::Sender<()>>) {
        self.told += 1;
        self.listener.tell(Commit { number: self.told, concern, waiting });
    }

    /// Carries a plan out. `suspects` are the pods that it is about, in case that it is refused.
    fn carry_out(
        &mut self,
        state: &mut State,
        plan: Plan,
        suspects: &BTreeSet<NamespacedName>,
    ) -> Result<(), Error> {
        // Where a restoration is due, the tables are not what the plan starts from; it brings this change, too.
        if self.restore_at.is_none() {
            if plan.is_empty() {
                return Ok(());
            }
            let begin = Instant::now();
            let Err(first) = self.kernel.carry_out(plan) else {
                self.stats.committed(begin.elapsed());
                return Ok(());
            };
            Stats::count(&self.stats.refusals);
            let first = anyhow::Error::new(first.error);
            warn!("a change was refused, comparing with what the kernel holds: {first:#}");
        }
        self.make_right(state, suspects)
    }

    /// Tells who is closed from now on, and who is not any more.
    fn tell_closed(&mut self, state: &State) {
        Stats::set(&self.stats.pods, state.pods_in_force() as u64);
        Stats::set(&self.stats.listings, self.kernel.listings);
        if !state.any_refused() {
            self.retry = Retry::default();
        } else if self.retry.at.is_none() {
            self.retry.later();
        }
        let now = state.closed();
        Stats::set(&self.stats.closed, now.len() as u64);
        if **self.closed.borrow() == now {
            return;
        }
        let before = self.closed.send_replace(Arc::new(now));
        let now = self.closed.borrow();
        for (pod, why) in now.iter().filter(|(pod, why)| before.get(*pod) != Some(why)) {
            error!(%pod, "closed, no packet of it passes: {why}");
        }
        for pod in before.keys().filter(|pod| !now.contains_key(*pod)) {
            info!(%pod, "not closed any more");
        }
    }

    fn settled(&mut self) {
        Stats::set(&self.stats.behind, 0);
        self.restore_at = None;
    }

    fn behind(&mut self, why: &Error) {
        error!(
            "cannot make moat's tables right, trying again in {RETRY:?}: {:#}",
            anyhow::Error::new(why.clone())
        );
        Stats::set(&self.stats.behind, 1);
        self.restore_at = Some(Instant::now() + RETRY);
    }
}

/// A thread that panics while it holds the state leaves nothing in it half-done that the next listing would not mend.
fn write(state: &RwLock<State>) -> RwLockWriteGuard<'_, State> {
    state.write().unwrap_or_else(PoisonError::into_inner)
}
