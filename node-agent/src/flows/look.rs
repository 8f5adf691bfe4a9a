//! One look: reads the entries of those concerned, judges them, and has the kernel follow.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;
use moat_nfnetlink::conntrack::{Conntrack, Deletion, Detail, Entry, Family, Filter, MarkChange};

use super::stats::FlowStats;
use super::{FlowsError, own_addresses};
use crate::dataplane::{Concern, Flow, Judge, Verdicts};
use crate::podnet::Netlink;

/// Entries that are judged before commits get their turn again.
pub(super) const CHUNK: usize = 512;

/// Up to so many addresses are asked for one by one, at two walks of the kernel's table each; for more, all entries are
/// handed over once.
const FEW: usize = 2;

/// Looks at entries. Lives on one thread.
#[derive(Debug)]
pub(super) struct Looker {
    verdicts: Verdicts,
    /// The bits of the mark that say "revoked".
    revoked: u32,
    dump: Conntrack,
    hand: Hand,
    pub(super) stats: Arc<FlowStats>,
}

/// What changes entries while they are listed: it needs a socket of its own.
#[derive(Debug)]
struct Hand {
    conntrack: Conntrack,
    node: Netlink,
}

impl Looker {
    /// Opens sockets in the network namespace of the calling thread.
    pub(super) fn open(verdicts: Verdicts, revoked: u32, stats: Arc<FlowStats>) -> Result<Self, FlowsError> {
        let hand = Hand { conntrack: Conntrack::open()?, node: Netlink::open()? };
        Ok(Self { verdicts, revoked, dump: Conntrack::open()?, hand, stats })
    }

    /// Looks once at all entries of those concerned. Those of addresses in `unused` that no pod has are deleted. What it
    /// cannot change is told after all the others have been.
    pub(super) fn look(&mut self, concern: &Concern, unused: &[IpNet]) -> Result<(), FlowsError> {
        let begin = Instant::now();
        let Self { verdicts, revoked, dump, hand, stats } = self;
        let own = if unused.is_empty() { None } else { Some(own_addresses(&mut hand.node)?) };
        let mut round =
            Round { verdicts, revoked: *revoked, concern, unused, hand, stats, own, failed: None };
        let mut chunk = Vec::with_capacity(CHUNK);
        for filter in filters(concern) {
            dump.entries(&filter, |entry| {
                if concern.covers(entry.original.source, entry.reply.source) {
                    chunk.push(entry);
                    if chunk.len() == CHUNK {
                        round.follow(&mut chunk);
                    }
                }
            })?;
            round.follow(&mut chunk);
        }
        let failed = round.failed;
        stats.looked(begin.elapsed());
        failed.map_or(Ok(()), Err)
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

struct Round<'a> {
    verdicts: &'a Verdicts,
    revoked: u32,
    concern: &'a Concern,
    unused: &'a [IpNet],
    hand: &'a mut Hand,
    stats: &'a FlowStats,
    /// The node's own addresses, once somebody asked.
    own: Option<BTreeSet<IpAddr>>,
    failed: Option<FlowsError>,
}

impl Round<'_> {
    /// Judges entries and has the kernel follow.
    fn follow(&mut self, chunk: &mut Vec<Entry>) {
        FlowStats::count(&self.stats.seen, chunk.len() as u64);
        let mut deletions = Vec::new();
        let mut revoke = Vec::new();
        let mut resume = Vec::new();
        self.verdicts.judge(|judge| {
            for entry in chunk.drain(..) {
                let ends = [entry.original.source, entry.reply.source];
                let own = |a: &IpAddr| self.own.as_ref().is_some_and(|own| own.contains(a));
                let ownerless = |a: &IpAddr| {
                    self.unused.iter().any(|b| b.contains(a)) && judge.pod(*a).is_none() && !own(a)
                };
                if self.concern.has_moved(ends[0], ends[1]) || ends.iter().any(ownerless) {
                    deletions.push(Deletion::of(&entry));
                    continue;
                }
                match (self.denies(judge, &entry), entry.mark & self.revoked == self.revoked) {
                    (true, false) => revoke.push(entry),
                    (false, true) => resume.push(entry),
                    (true, true) | (false, false) => {}
                }
            }
        });
        if let Err(error) = self.write(&deletions, revoke, resume) {
            self.failed.get_or_insert(error);
        }
    }

    /// Whether an entry is a denied flow's, as far as the tables say: flows of the node itself are still among them.
    fn denies(&self, judge: &Judge<'_>, entry: &Entry) -> bool {
        judge.judge(&flow(entry)).is_some_and(|ruling| !ruling.is_allowed())
    }

    fn write(
        &mut self,
        deletions: &[Deletion],
        mut revoke: Vec<Entry>,
        resume: Vec<Entry>,
    ) -> Result<(), FlowsError> {
        if !revoke.is_empty() {
            // Asked for only now: mostly nothing is denied.
            let own = match &self.own {
                Some(own) => own,
                None => self.own.insert(own_addresses(&mut self.hand.node)?),
            };
            revoke.retain(|e| !own.contains(&e.original.source) && !own.contains(&e.reply.source));
        }
        let change = |entry: Entry, value| MarkChange {
            tuple: entry.original,
            zone: entry.zone,
            value,
            mask: self.revoked,
        };
        let revoked = self.revoked;
        let cut: Vec<MarkChange> = revoke.into_iter().map(|entry| change(entry, revoked)).collect();
        let resumed: Vec<MarkChange> = resume.into_iter().map(|entry| change(entry, 0)).collect();
        let conntrack = &mut self.hand.conntrack;
        for (changes, counter) in [(&cut, &self.stats.cut), (&resumed, &self.stats.resumed)] {
            if !changes.is_empty() {
                FlowStats::count(counter, conntrack.set_marks(changes)?.changed as u64);
            }
        }
        if !deletions.is_empty() {
            FlowStats::count(&self.stats.forgotten, conntrack.delete(deletions)?.changed as u64);
        }
        Ok(())
    }
}
