//! The thread's edge: waits for records and for the clock, and hands what the pure parts make of them on.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use moat_cni::stream::{Dropped, Event};
use moat_nfnetlink::nflog::{Group, Options, Received};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};
use tracing::{debug, warn};

use super::fold::{Fold, Repeated, Sight};
use super::packet::Kind;
use super::unlogged::Unlogged;
use super::words::{self, Interfaces};
use super::{DropLogConfig, Shared};
use crate::dataplane::{DropCounters, DropPoint};
use crate::desired::Desired;

/// Kinds of packets that are kept in mind.
const KINDS: usize = 4096;
/// How long until a group that another listener has is tried again: an agent that ends gives it free.
const RETRY: Duration = Duration::from_secs(1);
/// Datagrams that are read before what they held is told.
const ROUND: usize = 64;

/// A record, when it came, and where it was dropped.
type Seen = (Kind, SystemTime);

/// Counted for each side of each pod's interface.
type Place = (DropPoint, String);

/// What the thread works with.
pub(super) struct Reader {
    config: DropLogConfig,
    desired: Arc<Mutex<Desired>>,
    counters: DropCounters,
    shared: Arc<Shared>,
    fold: Fold<Kind, Dropped>,
    unlogged: Unlogged<Place>,
    /// When counts and records are compared; `None`: all is quiet.
    compare: Option<Instant>,
    /// To ask what an interface is called.
    names: Option<OwnedFd>,
}

impl Reader {
    pub(super) fn new(
        config: DropLogConfig,
        desired: Arc<Mutex<Desired>>,
        counters: DropCounters,
        shared: Arc<Shared>,
    ) -> Self {
        let names = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None).ok();
        let (fold, unlogged) = (Fold::new(config.window, KINDS), Unlogged::since(BTreeMap::new()));
        Self { config, desired, counters, shared, fold, unlogged, compare: None, names }
    }

    /// Until `stop` is readable.
    pub(super) fn run(mut self, stop: &OwnedFd) {
        let Some(mut group) = self.bind(stop) else { return };
        match self.counters.by_interface() {
            Ok(counts) => self.unlogged = Unlogged::since(counts),
            Err(error) => debug!("cannot read the counters of drops: {error}"),
        }
        while self.wait(&group, stop) {
            let records = self.receive(&mut group);
            self.records(records);
            let now = Instant::now();
            for repeated in self.fold.due(now) {
                self.shared.tell(told_again(repeated));
            }
            if self.compare.is_some_and(|at| at <= now) {
                self.compare(&mut group);
            }
        }
        let last = std::mem::replace(&mut self.fold, Fold::new(self.config.window, 0)).finish();
        last.into_iter().for_each(|repeated| self.shared.tell(told_again(repeated)));
    }

    /// Listens to the group, as soon as nobody else does. `None`: told to stop before.
    fn bind(&self, stop: &OwnedFd) -> Option<Group> {
        let mut warned = false;
        loop {
            match Group::bind(self.config.group, &Options::default()) {
                Ok(group) => return Some(group),
                Err(error) if !warned => {
                    let error = anyhow::Error::new(error);
                    warn!(
                        "dropped packets are counted and not logged until nflog group {} is free: {error:#}",
                        self.config.group
                    );
                    warned = true;
                }
                Err(_) => {}
            }
            if readable(&mut [PollFd::new(stop, PollFlags::IN)], Some(RETRY)) {
                return None;
            }
        }
    }

    /// Waits for a record or the next thing to do. False: told to stop.
    fn wait(&self, group: &Group, stop: &OwnedFd) -> bool {
        let mut fds =
            [PollFd::new(stop, PollFlags::IN), PollFd::from_borrowed_fd(group.as_fd(), PollFlags::IN)];
        let next = self.fold.next().into_iter().chain(self.compare).min();
        readable(&mut fds, next.map(|at| at.saturating_duration_since(Instant::now())));
        fds[0].revents().is_empty()
    }

    /// Reads what is there, not for ever.
    fn receive(&self, group: &mut Group) -> Vec<Seen> {
        let mut seen = Vec::new();
        for _ in 0..ROUND {
            let received = group.receive(false, |packet| {
                let Some(kind) = Kind::of(&packet) else { return };
                let time = packet.timestamp.map_or_else(SystemTime::now, |t| SystemTime::UNIX_EPOCH + t);
                seen.push((kind, time));
            });
            match received {
                Ok(Received::Packets(_)) => {}
                Ok(Received::Nothing) => break,
                // They are counted, and will be missing among the records.
                Ok(Received::Lost) => count(&self.shared.stats.overruns, 1),
                Err(error) => {
                    warn!("cannot read the drop log: {:#}", anyhow::Error::new(error));
                    break;
                }
            }
        }
        seen
    }

    fn records(&mut self, seen: Vec<Seen>) {
        let now = Instant::now();
        for (kind, time) in seen {
            let interfaces = Interfaces { indev: self.name(kind.indev), outdev: self.name(kind.outdev) };
            let desired = &self.desired;
            let line = || words::dropped(&kind, &interfaces, time, &lock(desired));
            let sight = self.fold.see(kind, now, time, line);
            if sight == Sight::TooMany {
                continue;
            }
            count(&self.shared.stats.records, 1);
            self.compare.get_or_insert(now + self.config.window);
            if let Some(name) = interfaces.on(kind.point.direction) {
                self.unlogged.record((kind.point, name.to_owned()));
            }
            if let Sight::New(line) = sight {
                self.shared.tell(Event::Drop(line));
            }
        }
    }

    /// Tells what was counted and not logged. Goes on as long as there is any.
    fn compare(&mut self, group: &mut Group) {
        self.compare = None;
        let counts = match self.counters.by_interface() {
            Ok(counts) => counts,
            Err(error) => {
                debug!("cannot read the counters of drops: {error}");
                self.compare = Some(Instant::now() + self.config.window);
                return;
            }
        };
        // Whatever was counted before was logged before.
        let late = self.receive(group);
        self.records(late);
        let missing = self.unlogged.counted(&counts);
        if !missing.is_empty() {
            self.compare.get_or_insert(Instant::now() + self.config.window);
        }
        for ((point, interface), packets) in missing {
            count(&self.shared.stats.unlogged, packets);
            let (node, pod) = {
                let desired = lock(&self.desired);
                (desired.node_name().to_string(), desired.pod_of(&interface))
            };
            self.shared.tell(Event::Unlogged(moat_cni::stream::Unlogged {
                time: words::moment(SystemTime::now()),
                node,
                pod: pod.map_or(interface, |pod| pod.to_string()),
                direction: point.direction.to_string(),
                reason: point.reason.to_string(),
                count: packets,
            }));
        }
    }

    fn name(&self, index: Option<u32>) -> Option<String> {
        netdevice::index_to_name(self.names.as_ref()?, index?).ok()
    }
}

fn told_again(repeated: Repeated<Dropped>) -> Event {
    let Repeated { line, packets, first, last } = repeated;
    let since = (packets > 1).then(|| words::moment(first));
    Event::Drop(Dropped { time: words::moment(last), count: packets, since, ..line })
}

fn lock(desired: &Mutex<Desired>) -> MutexGuard<'_, Desired> {
    desired.lock().unwrap_or_else(PoisonError::into_inner)
}

fn count(counter: &std::sync::atomic::AtomicU64, more: u64) {
    counter.fetch_add(more, std::sync::atomic::Ordering::Relaxed);
}

/// Waits until one of these is readable, or the time is over. An interruption is neither: the caller looks, and waits again.
fn readable(fds: &mut [PollFd<'_>], patience: Option<Duration>) -> bool {
    let timeout = patience.and_then(|left| Timespec::try_from(left).ok());
    poll(fds, timeout.as_ref()).is_ok_and(|ready| ready > 0)
}
