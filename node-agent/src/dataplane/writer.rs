//! The thread that writes: one commit at a time, everything that came in meanwhile in the next.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockWriteGuard};
use std::time::{Duration, Instant};

use moat_nfnetlink::nft::{Event, Events};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::oneshot;
use tracing::{debug, error, warn};

use super::concern::Concern;
use super::error::Error;
use super::kernel::{Kernel, PREDECESSOR};
use super::layout::Table;
use super::state::State;
use super::stats::Stats;
use super::update::Update;

/// How soon what the kernel refused is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How long our tables are left alone after somebody else changed them, so that a commit of many
/// messages is over and somebody who does it all the time costs little.
const RESTORE_PAUSE: Duration = Duration::from_millis(100);

/// What the writer is asked for.
#[derive(Debug)]
pub(super) enum Order {
    /// An update, and who waits for it.
    Update(Update, Waiter),
    /// Connections follow everything up to the commit of this number.
    Followed(u64),
}

/// Who waits for an update.
#[derive(Debug)]
pub(super) struct Waiter {
    /// Told when the kernel holds it, or has refused it.
    pub(super) done: oneshot::Sender<Result<(), Error>>,
    /// Told when the connections that are there already follow it, too.
    pub(super) cut: oneshot::Sender<()>,
}

/// What the writer tells those who look after connections: something is in force that they may not follow yet.
#[derive(Debug)]
pub struct Commit {
    /// Which one it is of those that were told of. The first is 1.
    pub number: u64,
    /// Whose connections it is about.
    pub concern: Concern,
    /// To be told when they have been looked at, or will not be.
    pub waiting: Vec<oneshot::Sender<()>>,
}

/// Who hears of commits, if somebody does.
#[derive(Default)]
pub(super) struct Listener(Mutex<Option<Box<Hear>>>);

type Hear = dyn Fn(Commit) + Send;

impl Listener {
    pub(super) fn set(&self, hear: Box<Hear>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(hear);
    }

    /// Where nobody hears of it, whoever waits is told by what is dropped here.
    fn tell(&self, commit: Commit) {
        if let Some(hear) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            hear(commit);
        }
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener")
    }
}

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
    /// When the tables are to be made right by listing them.
    restore_at: Option<Instant>,
    /// Commits that somebody was told of.
    told: u64,
}

impl Writer {
    /// Takes over what is in the kernel and makes it hold `initial`.
    pub(super) fn start(
        state: Arc<RwLock<State>>,
        listener: Arc<Listener>,
        mut kernel: Kernel,
        initial: &Update,
        stats: Arc<Stats>,
    ) -> Result<Self, Error> {
        // Before the listing, so that nothing falls in between.
        let events = if kernel.owns() { None } else { Some(Events::open()?) };
        let mut held = write(&state);
        held.advance(initial);
        let begin = Instant::now();
        loop {
            match kernel.restore(|| held.content()) {
                // A predecessor that was told to end may not be quite gone.
                Err(Error::Owned { .. }) if begin.elapsed() < PREDECESSOR => {
                    std::thread::sleep(PREDECESSOR / 100)
                }
                other => break other?,
            }
        }
        stats.committed(begin.elapsed());
        Stats::set(&stats.owner, kernel.owns().into());
        // Whoever listens for commits begins with all connections.
        held.take_concern();
        Stats::set(&stats.pods, held.pods_in_force() as u64);
        Stats::set(&stats.listings, kernel.listings);
        drop(held);
        Ok(Self { state, listener, kernel, events, stats, restore_at: None, told: 0 })
    }

    /// Writes until everybody who could submit is gone. `wake` becomes readable when an order is there.
    pub(super) fn run(mut self, orders: &Receiver<Order>, wake: &OwnedFd) {
        loop {
            self.wait(wake);
            let mut batch = Vec::new();
            let mut followed = None;
            let stopped = loop {
                match orders.try_recv() {
                    Ok(Order::Update(update, waiter)) => batch.push((update, waiter)),
                    Ok(Order::Followed(commit)) => followed = Some(commit),
                    Err(TryRecvError::Empty) => break false,
                    Err(TryRecvError::Disconnected) => break true,
                }
            };
            self.hear();
            if self.restore_at.is_some_and(|at| at <= Instant::now()) {
                self.restore();
            }
            if !batch.is_empty() {
                self.write(batch);
            }
            if followed == Some(self.told) {
                self.followed();
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
        let left = self.restore_at.map(|at| at.saturating_duration_since(Instant::now()));
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
        let state = self.state.clone();
        match self.resync(&mut write(&state)) {
            Ok(()) => self.settled(),
            Err(e) => self.behind(&e),
        }
    }

    fn resync(&mut self, state: &mut State) -> Result<(), Error> {
        let begin = Instant::now();
        self.kernel.restore(|| state.content())?;
        self.stats.committed(begin.elapsed());
        self.gauge(state);
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
        let result = self.carry_out(&mut state, &update);
        self.gauge(&state);
        let concern = state.take_concern();
        drop(state);
        let (done, cut): (Vec<_>, Vec<_>) = waiting.into_iter().map(|w| (w.done, w.cut)).unzip();
        self.told += 1;
        self.listener.tell(Commit { number: self.told, concern, waiting: cut });
        for done in done {
            // Who no longer waits does not want to know.
            let _ = done.send(result.clone());
        }
    }

    /// Gives all connections the fast path.
    fn followed(&mut self) {
        let state = self.state.clone();
        let mut state = write(&state);
        let plan = state.followed();
        if self.restore_at.is_some() || plan.is_empty() {
            // A restoration brings it.
            return;
        }
        let begin = Instant::now();
        match self.kernel.carry_out(plan) {
            Ok(()) => self.stats.committed(begin.elapsed()),
            Err(e) => {
                warn!("cannot give connections the fast path: {:#}", anyhow::Error::new(e));
                match self.resync(&mut state) {
                    Ok(()) => self.settled(),
                    Err(e) => self.behind(&e),
                }
            }
        }
    }

    fn carry_out(&mut self, state: &mut State, update: &Update) -> Result<(), Error> {
        let plan = state.advance(update);
        if self.restore_at.is_some() {
            // The tables are not what the plan starts from: a restoration brings this change, too.
            return match self.resync(state) {
                Ok(()) => {
                    self.settled();
                    Ok(())
                }
                Err(why) => self.refuse(state, update, why),
            };
        }
        if plan.is_empty() {
            return Ok(());
        }
        let begin = Instant::now();
        let Err(first) = self.kernel.carry_out(plan) else {
            self.stats.committed(begin.elapsed());
            return Ok(());
        };
        Stats::count(&self.stats.refusals);
        warn!("a change was refused, comparing with what the kernel holds: {:#}", anyhow::Error::new(first));
        match self.resync(state) {
            Ok(()) => Ok(()),
            Err(why) => self.refuse(state, update, why),
        }
    }

    /// Closes the pods that a refused change is about.
    fn refuse(&mut self, state: &mut State, update: &Update, why: Error) -> Result<(), Error> {
        state.refuse(update);
        match self.resync(state) {
            Ok(()) => {
                self.settled();
                Err(Error::Closed(Box::new(why)))
            }
            Err(e) => {
                self.behind(&e);
                Err(e)
            }
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

    fn gauge(&self, state: &State) {
        Stats::set(&self.stats.pods, state.pods_in_force() as u64);
        Stats::set(&self.stats.listings, self.kernel.listings);
    }
}

/// A thread that panics while it holds the state leaves nothing in it half-done that the next listing would not mend.
fn write(state: &RwLock<State>) -> RwLockWriteGuard<'_, State> {
    state.write().unwrap_or_else(PoisonError::into_inner)
}
