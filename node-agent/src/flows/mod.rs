//! Connections that are there already follow policy, too.
//!
//! The kernel judges the first packet of a connection and carries the rest on by its entry in the connection tracking
//! table. So after each commit, and once at the start, the entries of those whom it is about are looked at and judged
//! anew: where they are denied now, a bit of the entry's mark says *revoked*, which the tables' first rule looks at;
//! where they are allowed (again), the bit goes.
//! A commit that only allows somebody more is about nobody, unless he has connections that are revoked; whose are is known from the
//! looks before.
//!
//! ```text
//!   data plane ──commit──▶ concern ── grace: packets that were judged by what was in force before are through
//!                             │         │
//!                             ▼         ▼
//!                         the moved   look: entries of the concerned ─▶ judge ─▶ set or clear the bit, or delete
//! ```
//!
//! Until the look is over, the tables judge packets of connections like first ones: nothing that is denied passes meanwhile.
//! So a look may well come late, and where change follows change it does: looking is not to take more of a node than policy is worth.
//!
//! An address that has moved to another pod takes no connection along: its entries are deleted, at once, and what comes next
//! is judged as new.

mod grace;
mod live;
mod look;
mod pace;
mod ports;
mod stats;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use moat_nfnetlink::conntrack::Conntrack;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::dataplane::{Commit, Concern, Dataplane, Follower, LayoutConfig, Verdicts};
use crate::podnet::{Netlink, NetlinkError};

use grace::Grace;
use look::Looker;
use pace::Pace;

pub use live::LiveFlow;
pub(crate) use stats::FlowNumbers;
pub use stats::FlowStats;

/// How soon a look that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Why connections cannot be looked at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FlowsError {
    /// The connection tracking table cannot be read or changed.
    #[error(transparent)]
    Conntrack(#[from] moat_nfnetlink::Error),
    /// The node's own addresses cannot be read.
    #[error(transparent)]
    Addresses(#[from] NetlinkError),
    /// A thread could not be started.
    #[error("cannot start a thread that looks after connections")]
    Thread(#[from] std::io::Error),
}

/// Looks after the connections of this node's pods, until it is dropped.
#[derive(Debug)]
pub struct Flows {
    events: Sender<Event>,
    thread: Option<JoinHandle<()>>,
    ended: CancellationToken,
    verdicts: Verdicts,
    /// A socket of its own for who asks, so that nobody's question holds up a look.
    asked: Arc<Mutex<(Conntrack, Netlink)>>,
    revoked: u32,
    stats: Arc<FlowStats>,
    addresses: Mutex<Addresses>,
}

/// Which addresses may have connections that are not their next owner's.
#[derive(Debug)]
struct Addresses {
    /// Those in here had none at the start, as far as nobody had them.
    clean: Vec<IpNet>,
    /// Those that somebody has had since, and that have not been forgotten after that.
    used: BTreeSet<IpAddr>,
}

/// What the thread hears of.
#[derive(Debug)]
enum Event {
    /// Something is in force now.
    Commit(Commit),
    /// No packet is under way any more that was judged by what was in force before.
    Through(Due),
    /// Nobody needs it any more.
    Stop,
}

impl Flows {
    /// Looks at all entries once, and from then on at those that a commit of this data plane is about. `blocks` is where this
    /// node's pods get their addresses from: what no pod has of it loses its connections at the start. To be called in
    /// the network namespace of the data plane. Returns when the first look is over.
    pub fn start(dataplane: &Dataplane, layout: &LayoutConfig, blocks: &[IpNet]) -> Result<Self, FlowsError> {
        let stats = Arc::new(FlowStats::default());
        let verdicts = dataplane.verdicts();
        let mut looker = Looker::open(verdicts.clone(), layout.revoked_mark, stats.clone())?;
        let asked = Arc::new(Mutex::new((Conntrack::open()?, Netlink::open()?)));
        let (events, receiver) = channel();
        let tell = events.clone();
        let grace = Grace::start(move |through| tell.send(Event::Through(through)).is_ok())?;
        let tell = events.clone();
        // Whoever waits for a commit that nobody hears of is told by its being dropped.
        let follower = dataplane.listen(move |commit| drop(tell.send(Event::Commit(commit))));
        // The tables may have come into force a moment ago.
        grace::wait();
        looker.look(&Concern::all(), blocks)?;
        follower.followed(0, looker.revoked().clone());
        let ended = CancellationToken::new();
        let alive = ended.clone().drop_guard();
        let work = move || {
            let _alive = alive;
            run(looker, &receiver, &grace, &follower);
        };
        let thread = Some(std::thread::Builder::new().name("flows".to_owned()).spawn(work)?);
        let addresses = Mutex::new(Addresses { clean: blocks.to_vec(), used: BTreeSet::new() });
        let revoked = layout.revoked_mark;
        Ok(Self { events, thread, ended, verdicts, asked, revoked, stats, addresses })
    }

    /// Makes sure that a pod that is about to get addresses gets no connection with them. Costs nothing where that is known:
    /// to read the kernel's table takes longer than to make a pod's interface.
    pub async fn hand_out(&self, addresses: impl IntoIterator<Item = IpAddr>) {
        let addresses: Vec<IpAddr> = addresses.into_iter().collect();
        let unclean: Vec<IpAddr> = {
            let mut known = self.known();
            let clean = |a: &&IpAddr| known.clean.iter().any(|b| b.contains(*a)) && !known.used.contains(*a);
            let unclean = addresses.iter().filter(|a| !clean(a)).copied().collect();
            known.used.extend(&addresses);
            unclean
        };
        if !unclean.is_empty() {
            self.delete(unclean).await;
        }
    }

    /// Deletes the connections of addresses that nobody has just now, so that the next who gets one gets no connection with
    /// it. Waits until that is done. To be called after the last owner's interface is gone and before the next one's comes up.
    pub async fn forget(&self, addresses: impl IntoIterator<Item = IpAddr>) {
        let addresses: Vec<IpAddr> = addresses.into_iter().collect();
        self.delete(addresses.clone()).await;
        let mut known = self.known();
        known.used.retain(|a| !addresses.contains(a));
    }

    fn known(&self) -> MutexGuard<'_, Addresses> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn delete(&self, addresses: Vec<IpAddr>) {
        let (done, waiting) = oneshot::channel();
        let commit = Commit { number: 0, concern: Concern::moved(addresses), waiting: vec![done] };
        if self.events.send(Event::Commit(commit)).is_ok() {
            // A thread that has ended looks after nothing any more; that is said where it ended.
            let _ = waiting.await;
        }
    }

    /// Hands over every connection that an address of a pod of this node has, as it stands. Reads the kernel's table, which
    /// may be long: not to be called on an asynchronous thread.
    pub fn live(&self, each: impl FnMut(LiveFlow)) -> Result<(), FlowsError> {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let (conntrack, node) = &mut *asked;
        let own = own_addresses(node)?;
        live::list(conntrack, &self.verdicts, &own, self.revoked, each)
    }

    /// Cancelled when the thread that looks has ended: before this is dropped, only a defect can make it. Connections do not
    /// follow what is in force any more then.
    pub fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }

    /// What has been done so far.
    pub fn stats(&self) -> &Arc<FlowStats> {
        &self.stats
    }
}

impl Drop for Flows {
    fn drop(&mut self) {
        if self.events.send(Event::Stop).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

/// The addresses of the node itself. A node and its own pods always reach each other, past `forward`.
fn own_addresses(node: &mut Netlink) -> Result<BTreeSet<IpAddr>, NetlinkError> {
    Ok(node.addresses()?.into_iter().map(|(_, address)| address).collect())
}

/// What a look is to be at, and who hears of its end.
#[derive(Debug, Default)]
struct Due {
    concern: Concern,
    waiting: Vec<oneshot::Sender<()>>,
    /// Commits that are followed then.
    asks: u64,
}

impl Due {
    fn merge(&mut self, other: Self) {
        self.concern.merge(other.concern);
        self.waiting.extend(other.waiting);
        self.asks += other.asks;
    }
}

/// Looks, until told to stop. What is heard of during one look goes into the next.
fn run(mut looker: Looker, events: &Receiver<Event>, grace: &Grace, follower: &Follower) {
    // For the moved, a pod waits that starts or ends. For the others, whom the tables judge meanwhile, only what is told of this node
    // waits: that connections follow too.
    let mut at_once = Due::default();
    let mut by_and_by = Due::default();
    let mut pace = Pace::new(Instant::now());
    let (mut last, mut followed) = (0, 0);
    let mut retry: Option<Instant> = None;
    loop {
        let next_look = (by_and_by.asks > 0).then(|| pace.next());
        let first = match retry.or(next_look) {
            None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => events.recv_timeout(at.saturating_duration_since(Instant::now())),
        };
        let mut next = match first {
            Ok(event) => Some(event),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        while let Some(event) = next {
            match event {
                Event::Commit(Commit { number, concern: of, waiting: who }) => {
                    last = last.max(number);
                    at_once.concern.merge(of.the_moved());
                    if of.is_about_others() {
                        // A look before that would miss what they begin, and another would have to follow.
                        FlowStats::count(&looker.stats.under_way, 1);
                        grace.ask(of.others(), who);
                    } else {
                        at_once.waiting.extend(who);
                    }
                }
                Event::Through(due) => by_and_by.merge(due),
                Event::Stop => return,
            }
            next = events.try_recv().ok();
        }
        if retry.is_some_and(|at| at > Instant::now()) {
            continue;
        }
        retry = None;
        let mut due = std::mem::take(&mut at_once);
        let begin = Instant::now();
        if by_and_by.asks > 0 && pace.next() <= begin {
            due.merge(std::mem::take(&mut by_and_by));
        }
        if !due.concern.is_empty()
            && let Err(e) = looker.look(&due.concern, &[])
        {
            error!(
                "connections may go on that policy denies, trying again in {RETRY:?}: {:#}",
                anyhow::Error::new(e)
            );
            FlowStats::count(&looker.stats.failures, 1);
            pace.looked(begin, begin.elapsed());
            retry = Some(Instant::now() + RETRY);
            at_once = due;
            continue;
        }
        if due.asks > 0 {
            pace.looked(begin, begin.elapsed());
        }
        FlowStats::settle(&looker.stats.under_way, due.asks);
        if looker.stats.under_way() == 0 && followed != last {
            follower.followed(last, looker.revoked().clone());
            followed = last;
        }
        // Behind that, so that the next change of who has waited meets what is known by now.
        for done in due.waiting {
            // Who no longer waits does not want to know.
            let _ = done.send(());
        }
    }
}
