//! The data plane: what policy means in the kernel, and the thread that keeps it there.
//!
//! ```text
//!   Update ──submit──▶ writer thread: merge what came in ─▶ State::advance ─▶ Plan ─▶ one netlink batch ─▶ Ticket
//!                                                            pure                                  resolved
//!   start, and after trouble:  list our tables ─▶ adopt (pure): only what differs ─▶ one netlink batch
//! ```
//!
//! [`layout`](DropReason) turns policy into chains, sets and elements; the state knows what the kernel is to hold and
//! plans each change of it as a minimal, ordered transaction; the writer is the only one that talks to the kernel.
//! What is in the kernel stays there when the agent ends or dies, and the next agent adopts it.

mod adopt;
mod closed;
mod concern;
mod counters;
mod culprits;
mod error;
mod judge;
mod kernel;
mod layout;
mod leave;
#[cfg(test)]
mod model;
mod op;
#[cfg(test)]
mod properties;
mod revoked;
mod state;
mod stats;
mod update;
mod writer;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::thread::JoinHandle;

use moat_policies::NamespacedName;
use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::debug;

pub use closed::Limits;
pub use concern::Concern;
pub use counters::DropCounters;
pub use error::Error;
pub use judge::{Flow, Judge, Ruling};
pub use layout::{
    DropPoint, DropReason, HostPorts, Inside, LayoutConfig, Live, LocalPod, NET_TABLE, PodToNode, Senders,
    TABLE, TUNNEL_PORT, VETH_PREFIX,
};
pub(crate) use leave::leave;
pub use revoked::Revoked;
pub use stats::Stats;
pub use update::Update;
pub use writer::Commit;

use crate::guard::Launch;
use kernel::Kernel;
use state::State;
use writer::{Listener, Order, Waiter, Writer};

/// How the data plane is to work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What the layout of the tables depends on.
    pub layout: LayoutConfig,
    /// Whether the tables are to be guarded by the kernel, where it can: then nobody else can change them. Else, and
    /// where the kernel cannot, they are watched, and what somebody changes is restored.
    pub owner: bool,
    /// Whether somebody looks after the connections that are there already ([`Dataplane::listen`]). Then, from a change
    /// until they have been looked at, packets of connections are judged like first packets, in both directions.
    pub followed: bool,
    /// Who keeps them guarded while this process does not live. None: nobody, the guard ends with the process.
    pub guard: Option<Launch>,
    /// What pods, policies and the node may ask of the kernel.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            layout: LayoutConfig::default(),
            owner: true,
            followed: false,
            guard: None,
            limits: Limits::default(),
        }
    }
}

/// The tables in the kernel, kept as the last update says. Dropping it leaves them in force.
#[derive(Debug)]
pub struct Dataplane {
    orders: Option<Arc<Sender<Order>>>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
    ended: CancellationToken,
    stats: Arc<Stats>,
    verdicts: Verdicts,
    listener: Arc<Listener>,
    closed: watch::Receiver<Closed>,
}

/// The pods of this node that are closed although the engine has said something about them, and why: the kernel refused
/// what they need, or a limit keeps it from the kernel.
pub type Closed = Arc<BTreeMap<NamespacedName, String>>;

/// What is in force, for whoever judges connections by it. Cheap to clone; outlives the data plane.
#[derive(Debug, Clone)]
pub struct Verdicts(Arc<RwLock<State>>);

/// Says when an update is in the kernel.
#[derive(Debug)]
#[must_use = "an update is in force only when its ticket says so"]
pub struct Ticket {
    done: oneshot::Receiver<Result<(), Error>>,
    cut: oneshot::Receiver<()>,
}

/// Says when the connections that were there before an update follow it, too.
#[derive(Debug)]
pub struct Cut(oneshot::Receiver<()>);

impl Dataplane {
    /// Takes over the tables in the network namespace of the calling thread, and makes them hold exactly `initial`
    /// in one transaction: no packet is judged by half of it. Then starts the thread that writes updates.
    pub fn start(config: Config, initial: &Update) -> Result<Self, Error> {
        let stats = Arc::new(Stats::default());
        let kernel = Kernel::open(config.owner, config.guard, &stats)?;
        let state = Arc::new(RwLock::new(State::new(config.layout, config.limits, config.followed)));
        let listener = Arc::new(Listener::default());
        let (tell_closed, closed) = watch::channel(Closed::default());
        let writer =
            Writer::start(state.clone(), listener.clone(), kernel, initial, stats.clone(), tell_closed)?;
        let thread_failed = |e: std::io::Error| Error::Thread(Arc::new(e));
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).map_err(|e| thread_failed(e.into()))?);
        let (orders, receiver) = channel();
        let woken = wake.clone();
        let ended = CancellationToken::new();
        let alive = ended.clone().drop_guard();
        let work = move || {
            let _alive = alive;
            writer.run(&receiver, &woken);
        };
        let thread =
            std::thread::Builder::new().name("dataplane".to_owned()).spawn(work).map_err(thread_failed)?;
        let verdicts = Verdicts(state);
        let (orders, thread) = (Some(Arc::new(orders)), Some(thread));
        Ok(Self { orders, wake, thread, ended, stats, verdicts, listener, closed })
    }

    /// Hands an update over. Updates take effect in the order in which they were submitted; several that wait go into one
    /// transaction.
    pub fn submit(&self, update: Update) -> Ticket {
        let ((done, is_done), (cut, is_cut)) = (oneshot::channel(), oneshot::channel());
        if let Some(orders) = &self.orders
            && orders.send(Order::Update(Box::new(update), Waiter { done, cut })).is_ok()
        {
            wake(&self.wake);
        }
        Ticket { done: is_done, cut: is_cut }
    }

    /// What is in force.
    pub fn verdicts(&self) -> Verdicts {
        self.verdicts.clone()
    }

    /// Tells of every commit from now on, for whoever looks after the connections that are there already; from now on
    /// [`Cut`] waits for that. One can listen: a later one takes the place of the one before. Must return at once.
    pub fn listen(&self, hear: impl Fn(Commit) + Send + 'static) -> Follower {
        self.listener.set(Box::new(hear));
        let orders = self.orders.as_ref().map(Arc::downgrade).unwrap_or_default();
        Follower { orders, wake: self.wake.clone() }
    }

    /// Cancelled when the thread that writes has ended: before this is dropped, only a defect can make it. No change is carried
    /// out any more then.
    pub fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }

    /// The pods that are closed, now and whenever that changes.
    pub fn closed(&self) -> watch::Receiver<Closed> {
        self.closed.clone()
    }

    /// What the writer has done so far.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }
}

fn wake(event: &OwnedFd) {
    if let Err(e) = rustix::io::write(event, &1_u64.to_ne_bytes()) {
        debug!("cannot wake the data plane: {e}");
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        self.orders = None;
        wake(&self.wake);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Tells the data plane how far connections follow it.
#[derive(Debug)]
pub struct Follower {
    orders: Weak<Sender<Order>>,
    wake: Arc<OwnedFd>,
}

impl Follower {
    /// All connections follow everything up to this commit, and of them these are revoked: where there is no later one, they
    /// may take the fast path.
    pub fn followed(&self, commit: u64, revoked: Revoked) {
        // A data plane that is gone leaves its tables as they are: slower, not wrong.
        if let Some(orders) = self.orders.upgrade()
            && orders.send(Order::Followed(commit, revoked)).is_ok()
        {
            wake(&self.wake);
        }
    }
}

impl Verdicts {
    /// Asks what is in force. Commits wait meanwhile, so that nobody should take long.
    pub fn judge<T>(&self, ask: impl FnOnce(&Judge<'_>) -> T) -> T {
        ask(&Judge::new(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl Ticket {
    /// Waits until the kernel holds the update, or has refused it: from then on new connections follow it. What is returned
    /// says when the others do.
    pub async fn done(self) -> Result<Cut, Error> {
        self.done.await.unwrap_or(Err(Error::Stopped))?;
        Ok(Cut(self.cut))
    }

    /// The same, on a thread that may wait. Must not be called on an asynchronous one.
    pub fn wait(self) -> Result<Cut, Error> {
        self.done.blocking_recv().unwrap_or(Err(Error::Stopped))?;
        Ok(Cut(self.cut))
    }
}

impl Cut {
    /// Waits until connections follow the update, or nobody looks after them (any more).
    pub async fn done(self) {
        // Whoever does not answer has gone: that, too, is an answer.
        let _ = self.0.await;
    }

    /// The same, on a thread that may wait. Must not be called on an asynchronous one.
    pub fn wait(self) {
        let _ = self.0.blocking_recv();
    }
}
