//! The thread that writes: one commit at a time, everything that came in meanwhile in the next.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use moat_nfnetlink::nft::{Event, Events};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::oneshot;
use tracing::{debug, error, warn};

use super::error::Error;
use super::kernel::Kernel;
use super::layout::Table;
use super::state::State;
use super::stats::Stats;
use super::update::Update;

/// How soon what the kernel refused is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How long our tables are left alone after somebody else changed them, so that a commit of many
/// messages is over and somebody who does it all the time costs little.
const RESTORE_PAUSE: Duration = Duration::from_millis(100);

/// How long a start waits for the tables' owner to go.
const PREDECESSOR: Duration = Duration::from_secs(2);

/// An update, and who waits for it.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) update: Update,
    pub(super) done: oneshot::Sender<Result<(), Error>>,
}

/// Holds the state and the socket, and runs on a thread of its own.
#[derive(Debug)]
pub(super) struct Writer {
    state: State,
    kernel: Kernel,
    /// Everybody's commits, where our tables cannot be guarded.
    events: Option<Events>,
    stats: Arc<Stats>,
    /// When the tables are to be made right by listing them.
    restore_at: Option<Instant>,
}

impl Writer {
    /// Takes over what is in the kernel and makes it hold `initial`.
    pub(super) fn start(
        mut state: State,
        mut kernel: Kernel,
        initial: &Update,
        stats: Arc<Stats>,
    ) -> Result<Self, Error> {
        // Before the listing, so that nothing falls in between.
        let events = if kernel.owns() { None } else { Some(Events::open()?) };
        state.advance(initial);
        let begin = Instant::now();
        loop {
            match kernel.restore(|| state.content()) {
                // A predecessor that was told to end may not be quite gone.
                Err(Error::Owned { .. }) if begin.elapsed() < PREDECESSOR => {
                    std::thread::sleep(PREDECESSOR / 100)
                }
                other => break other?,
            }
        }
        stats.committed(begin.elapsed());
        Stats::set(&stats.owner, kernel.owns().into());
        let writer = Self { state, kernel, events, stats, restore_at: None };
        writer.gauge();
        Ok(writer)
    }

    /// Writes until everybody who could submit is gone. `wake` becomes readable when an order is there.
    pub(super) fn run(mut self, orders: &Receiver<Order>, wake: &OwnedFd) {
        loop {
            self.wait(wake);
            let mut batch = Vec::new();
            let stopped = loop {
                match orders.try_recv() {
                    Ok(order) => batch.push(order),
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
        match self.resync() {
            Ok(()) => self.settled(),
            Err(e) => self.behind(&e),
        }
    }

    fn resync(&mut self) -> Result<(), Error> {
        let begin = Instant::now();
        self.kernel.restore(|| self.state.content())?;
        self.stats.committed(begin.elapsed());
        self.gauge();
        Ok(())
    }

    /// Writes what came in, in one commit.
    fn write(&mut self, orders: Vec<Order>) {
        let mut update = Update::default();
        let mut waiting = Vec::with_capacity(orders.len());
        for order in orders {
            Stats::count(&self.stats.updates);
            if !waiting.is_empty() {
                Stats::count(&self.stats.coalesced);
            }
            update.merge(order.update);
            waiting.push(order.done);
        }
        let result = self.carry_out(&update);
        self.gauge();
        for done in waiting {
            // Who no longer waits does not want to know.
            let _ = done.send(result.clone());
        }
    }

    fn carry_out(&mut self, update: &Update) -> Result<(), Error> {
        let plan = self.state.advance(update);
        if self.restore_at.is_some() {
            // The tables are not what the plan starts from: a restoration brings this change, too.
            return match self.resync() {
                Ok(()) => {
                    self.settled();
                    Ok(())
                }
                Err(why) => self.refuse(update, why),
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
        match self.resync() {
            Ok(()) => Ok(()),
            Err(why) => self.refuse(update, why),
        }
    }

    /// Closes the pods that a refused change is about.
    fn refuse(&mut self, update: &Update, why: Error) -> Result<(), Error> {
        self.state.refuse(update);
        match self.resync() {
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

    fn gauge(&self) {
        Stats::set(&self.stats.pods, self.state.pods_in_force() as u64);
        Stats::set(&self.stats.listings, self.kernel.listings);
    }
}
