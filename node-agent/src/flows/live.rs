//! Which connections there are, and what becomes of each.

use std::collections::BTreeSet;
use std::net::IpAddr;

use moat_nfnetlink::conntrack::{Conntrack, Entry, Filter, Tuple};
use moat_policies::NamespacedName;

use super::FlowsError;
use super::look::{CHUNK, flow};
use crate::dataplane::{Judge, Ruling, Verdicts};

/// A connection of a pod of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveFlow {
    /// As its first packet went.
    pub original: Tuple,
    /// As its answers come: from whom it really goes to, where NAT has changed that.
    pub reply: Tuple,
    /// The pod of this node that opened it.
    pub source: Option<NamespacedName>,
    /// The pod of this node that answers.
    pub destination: Option<NamespacedName>,
    /// What policy says of it now, and why it is denied.
    pub ruling: Ruling,
    /// Whether the kernel drops its packets.
    pub revoked: bool,
    /// Seconds until it is forgotten, if no more packets come.
    pub timeout: u32,
}

/// Lists them all. Judges them by chunks and hands them over in between, so that no commit waits for who listens.
pub(super) fn list(
    conntrack: &mut Conntrack,
    verdicts: &Verdicts,
    own: &BTreeSet<IpAddr>,
    revoked: u32,
    mut each: impl FnMut(LiveFlow),
) -> Result<(), FlowsError> {
    let mut chunk = Vec::with_capacity(CHUNK);
    let mut hand_over = |chunk: &mut Vec<Entry>| {
        let known = |judge: &Judge<'_>| -> Vec<LiveFlow> {
            chunk.drain(..).filter_map(|entry| live(judge, own, revoked, &entry)).collect()
        };
        verdicts.judge(known).into_iter().for_each(&mut each);
    };
    conntrack.entries(&Filter::all(), |entry| {
        chunk.push(entry);
        if chunk.len() == CHUNK {
            hand_over(&mut chunk);
        }
    })?;
    hand_over(&mut chunk);
    Ok(())
}

fn live(judge: &Judge<'_>, own: &BTreeSet<IpAddr>, revoked: u32, entry: &Entry) -> Option<LiveFlow> {
    let flow = flow(entry);
    let ruling = judge.judge(&flow)?;
    // A node and its own pods always reach each other.
    let node = own.contains(&flow.source) || own.contains(&flow.destination);
    Some(LiveFlow {
        original: entry.original,
        reply: entry.reply,
        source: judge.pod(flow.source).cloned(),
        destination: judge.pod(flow.destination).cloned(),
        ruling: if node { Ruling::Allowed } else { ruling },
        revoked: entry.mark & revoked == revoked,
        timeout: entry.timeout,
    })
}
