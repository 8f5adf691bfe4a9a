//! One look: reads the entries of those concerned, judges them, and has the kernel follow.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use ipnet::IpNet;
use moat_nfnetlink::conntrack::{Conntrack, Deletion, Detail, Entry, Family, Filter, MarkChange};
use tracing::debug;

use super::stats::FlowStats;
use super::{FlowsError, own_addresses};
use crate::dataplane::{Concern, Flow, Judge, Revoked, Verdicts};
use crate::podnet::Netlink;

/// Entries that are judged before commits get their turn again.
pub(super) const CHUNK: usize = 512;

/// So many chunks are read ahead of those that have been followed.
const AHEAD: usize = 4;

/// Up to so many addresses are asked for one by one, at two walks of the kernel's table each; for more, all entries are
/// handed over once.
const FEW: usize = 2;

/// So many buckets of the kernel's table are walked in the time in which one entry is handed over: 65 ns and about 2 µs.
const BUCKETS_AN_ENTRY: u64 = 32;

/// Looks at entries. Lives on one thread.
#[derive(Debug)]
pub(super) struct Looker {
    verdicts: Verdicts,
    /// The bits of the mark that say "revoked".
    mark: u32,
    revoked: Revoked,
    dump: Conntrack,
    hand: Hand,
    pub(super) stats: Arc<FlowStats>,
}

/// What changes entries while they are listed: it needs sockets of its own.
#[derive(Debug)]
struct Hand {
    conntrack: Conntrack,
    node: Netlink,
}

/// What is to become of some entries.
#[derive(Debug, Default)]
struct Changes {
    delete: Vec<Deletion>,
    /// Denied as far as the tables say: flows of the node itself are still among them.
    revoke: Vec<Entry>,
    resume: Vec<Entry>,
    /// The ends of those that are revoked, and stay so.
    stay: Vec<IpAddr>,
}

impl Looker {
    /// Opens sockets in the network namespace of the calling thread.
    pub(super) fn open(verdicts: Verdicts, mark: u32, stats: Arc<FlowStats>) -> Result<Self, FlowsError> {
        let hand = Hand { conntrack: Conntrack::open()?, node: Netlink::open()? };
        Ok(Self { verdicts, mark, revoked: Revoked::default(), dump: Conntrack::open()?, hand, stats })
    }

    /// Whose connections are revoked by now.
    pub(super) fn revoked(&self) -> &Revoked {
        &self.revoked
    }

    /// Looks once at all entries of those concerned. Those of addresses in `unused` that no pod has are deleted. What it
    /// cannot change is told after all the others have been.
    pub(super) fn look(&mut self, concern: &Concern, unused: &[IpNet]) -> Result<(), FlowsError> {
        let begin = Instant::now();
        let Self { verdicts, mark, revoked, dump, hand, stats } = self;
        let own = if unused.is_empty() { BTreeSet::new() } else { own_addresses(&mut hand.node)? };
        let judging = Judging { mark: *mark, concern, unused, own };
        let following = Mutex::new(Following::new(verdicts, judging, hand, stats));
        let listed = list(dump, concern, &following);
        let following = following.into_inner().unwrap_or_else(PoisonError::into_inner);
        let Following { ends, written, .. } = following;
        stats.looked(begin.elapsed());
        listed?;
        written?;
        revoked.looked(concern, ends);
        Ok(())
    }
}

/// Lists the entries that a concern covers, and has somebody follow. Reading many and changing many takes both their times if
/// one thread does it; so where they are more than a chunk a second one follows while this one reads on.
fn list(dump: &mut Conntrack, concern: &Concern, following: &Mutex<Following<'_>>) -> Result<(), FlowsError> {
    let follow = |chunk| following.lock().unwrap_or_else(PoisonError::into_inner).follow(chunk);
    std::thread::scope(|scope| {
        let begin = || -> Option<SyncSender<Vec<Entry>>> {
            let (chunks, waiting) = sync_channel(AHEAD);
            let thread = std::thread::Builder::new().name("flows-follow".to_owned());
            match thread.spawn_scoped(scope, move || waiting.into_iter().for_each(follow)) {
                Ok(_) => Some(chunks),
                Err(error) => {
                    debug!("no thread to follow meanwhile, so this one does: {error}");
                    None
                }
            }
        };
        let mut ahead = None;
        let mut chunk = Vec::with_capacity(CHUNK);
        let listed = cheapest(filters(concern), TableSize::now()).iter().try_for_each(|filter| {
            dump.entries(filter, |entry| {
                if !concern.covers(entry.original.source, entry.reply.source) {
                    return;
                }
                chunk.push(entry);
                if chunk.len() == CHUNK {
                    let full = std::mem::replace(&mut chunk, Vec::with_capacity(CHUNK));
                    hand_over(full, ahead.get_or_insert_with(begin).as_ref(), follow);
                }
            })
        });
        // What was read is followed, also where the rest cannot be read.
        hand_over(chunk, ahead.flatten().as_ref(), follow);
        Ok(listed?)
    })
}

/// To the other thread, if there is one.
fn hand_over(chunk: Vec<Entry>, ahead: Option<&SyncSender<Vec<Entry>>>, follow: impl Fn(Vec<Entry>)) {
    match ahead {
        // It ends before us only by a panic, which ends us as well.
        Some(chunks) => drop(chunks.send(chunk)),
        None => follow(chunk),
    }
}

/// The dumps that together hold every entry that a concern covers.
fn filters(concern: &Concern) -> Vec<Filter> {
    if concern.is_all() {
        return vec![Filter::all()];
    }
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = concern.addresses().partition(IpAddr::is_ipv4);
    let mut filters = Vec::new();
    match v4.len() {
        0..=FEW => filters.extend(v4.iter().flat_map(|&a| [Filter::opened_by(a), Filter::answered_by(a)])),
        _ if !v6.is_empty() => return vec![Filter::all()],
        _ => filters.push(Filter::of(Family::V4)),
    }
    if !v6.is_empty() {
        // The kernel cannot compare IPv6 addresses; one walk hands over what two would.
        filters.push(Filter::of(Family::V6));
    }
    filters
}

/// How large the kernel's table is.
#[derive(Debug, Clone, Copy)]
struct TableSize {
    /// Entries of this network namespace.
    entries: u64,
    /// Where entries of all network namespaces are kept.
    buckets: u64,
}

impl TableSize {
    fn now() -> Option<Self> {
        let read = |name: &str| {
            let text =
                std::fs::read_to_string(format!("/proc/sys/net/netfilter/nf_conntrack_{name}")).ok()?;
            text.trim().parse().ok()
        };
        Some(Self { entries: read("count")?, buckets: read("buckets")? })
    }
}

/// Every dump is a walk through the whole table, however few entries it hands over: where there are few, one walk that
/// hands all of them over is sooner done than several.
fn cheapest(filters: Vec<Filter>, size: Option<TableSize>) -> Vec<Filter> {
    let spared = (filters.len() as u64).saturating_sub(1);
    match size {
        Some(size) if size.entries * BUCKETS_AN_ENTRY < size.buckets * spared => vec![Filter::all()],
        _ => filters,
    }
}

/// The flow that an entry is of, as `forward` sees its first packet: it goes to whom the answers come from.
pub(super) fn flow(entry: &Entry) -> Flow {
    Flow {
        source: entry.original.source,
        destination: entry.reply.source,
        protocol: entry.original.protocol,
        port: match entry.reply.detail {
            Detail::Ports { source, .. } => Some(source),
            Detail::Icmp { .. } | Detail::None => None,
        },
    }
}

/// What entries are judged by besides the tables.
struct Judging<'a> {
    /// The bits of the mark that say "revoked".
    mark: u32,
    concern: &'a Concern,
    unused: &'a [IpNet],
    /// The node's own addresses.
    own: BTreeSet<IpAddr>,
}

impl Judging<'_> {
    fn judge(&self, judge: &Judge<'_>, entries: impl Iterator<Item = Entry>) -> Changes {
        let mut changes = Changes::default();
        for entry in entries {
            let flow = flow(&entry);
            let ends = [flow.source, flow.destination];
            let ownerless = |a: &IpAddr| {
                let unused = self.unused.iter().any(|b| b.contains(a));
                unused && judge.pod(*a).is_none() && !self.own.contains(a)
            };
            if self.concern.has_moved(ends[0], ends[1]) || ends.iter().any(ownerless) {
                changes.delete.push(Deletion::of(&entry));
                continue;
            }
            let denied = judge.judge(&flow).is_some_and(|ruling| !ruling.is_allowed());
            match (denied, entry.mark & self.mark == self.mark) {
                (true, false) => changes.revoke.push(entry),
                (false, true) => changes.resume.push(entry),
                (true, true) => changes.stay.extend(ends),
                (false, false) => {}
            }
        }
        changes
    }
}

/// Judges entries and has the kernel follow, a chunk at a time.
struct Following<'a> {
    verdicts: &'a Verdicts,
    judging: Judging<'a>,
    hand: &'a mut Hand,
    stats: &'a FlowStats,
    /// The node's own addresses, asked for when first something is denied: mostly nothing is.
    own: Option<BTreeSet<IpAddr>>,
    /// The ends of what is revoked then.
    ends: BTreeSet<IpAddr>,
    /// The first thing that went wrong. The others are followed nevertheless.
    written: Result<(), FlowsError>,
}

impl<'a> Following<'a> {
    fn new(verdicts: &'a Verdicts, judging: Judging<'a>, hand: &'a mut Hand, stats: &'a FlowStats) -> Self {
        Self { verdicts, judging, hand, stats, own: None, ends: BTreeSet::new(), written: Ok(()) }
    }

    fn follow(&mut self, chunk: Vec<Entry>) {
        FlowStats::count(&self.stats.seen, chunk.len() as u64);
        let changes = self.verdicts.judge(|judge| self.judging.judge(judge, chunk.into_iter()));
        if let Err(error) = self.write(changes)
            && self.written.is_ok()
        {
            self.written = Err(error);
        }
    }

    fn write(&mut self, changes: Changes) -> Result<(), FlowsError> {
        let Changes { delete, mut revoke, resume, stay } = changes;
        let mark = self.judging.mark;
        if !revoke.is_empty() {
            let own = match &mut self.own {
                Some(own) => own,
                own => own.insert(own_addresses(&mut self.hand.node)?),
            };
            revoke.retain(|e| !own.contains(&e.original.source) && !own.contains(&e.reply.source));
        }
        self.ends.extend(stay);
        self.ends.extend(revoke.iter().flat_map(|e| [e.original.source, e.reply.source]));
        let conntrack = &mut self.hand.conntrack;
        for (entries, value, counter) in [(revoke, mark, &self.stats.cut), (resume, 0, &self.stats.resumed)] {
            let change = |e: Entry| MarkChange { tuple: e.original, zone: e.zone, value, mask: mark };
            let changes: Vec<MarkChange> = entries.into_iter().map(change).collect();
            FlowStats::count(counter, conntrack.set_marks(&changes)?.changed as u64);
        }
        FlowStats::count(&self.stats.forgotten, conntrack.delete(&delete)?.changed as u64);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_table_is_walked_once() {
        let filters = || filters(&Concern::moved(["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()]));
        let size = |entries| Some(TableSize { entries, buckets: 262_144 });
        assert_eq!(filters().len(), 3);
        assert_eq!(cheapest(filters(), size(1_000)).len(), 1);
        assert_eq!(cheapest(filters(), size(20_000)).len(), 3);
        assert_eq!(cheapest(filters(), None).len(), 3);
        assert_eq!(cheapest(vec![Filter::all()], size(0)).len(), 1);
    }
}
