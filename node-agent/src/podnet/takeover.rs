//! Taking a node's pod network over from the agent that ran before: its notes, its records, and what the kernel has.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use moat_cni::note::{self, Note};
use tracing::{error, info, warn};

use super::attachment::{Attachment, AttachmentKey};
use super::clock::Clock;
use super::ipam::Ipam;
use super::journal::{Found, Journal};
use super::links::PodLink;
use super::netlink::Netlink;
use super::netns::{Netns, NetnsError};
use super::node::{NodeNetwork, State};
use super::settle::{Kept, Settled, settle};
use super::wire;
use super::{PodNetConfig, PodNetError};
use crate::dataplane::HostPorts;

impl NodeNetwork {
    /// Takes over what is there; see [`super::PodNet::open`].
    pub(crate) fn open(config: PodNetConfig) -> Result<Self, PodNetError> {
        let clock = Clock::of_this_boot();
        let (mut journal, found) = Journal::open(&config.state_dir, clock.clone())?;
        let mut netlink = Netlink::open()?;
        let notes = config.notes.as_deref().map(read_notes).unwrap_or_default();
        let links = netlink.pod_links()?;
        let links = without_noted(&mut netlink, links, &notes);
        let settled = settle(journal.contents().attachments(), &links);
        let settled = without_ended(&mut netlink, settled);
        let settled = with_ports(settled);

        let now = clock.now();
        record(&mut journal, &settled, now);
        if found == Found::Damaged || (found == Found::Nothing && was_in_use(&mut netlink, &links)?) {
            warn!(
                "the state folder does not tell which addresses were released lately: all others rest for {} s",
                config.address_rest.as_secs_f32()
            );
            journal.contents_mut().forgotten = Some(now);
        }
        if let Err(error) = journal.renew() {
            // The pods that there are go on without it; ADD tries again, and says what is wrong.
            error!(
                error = &error as &dyn std::error::Error,
                "the state file cannot be written: no pod can come"
            );
        }

        let mut ipam = Ipam::new(config.address_rest);
        // Whether these were answered for nobody knows any more: the first announcement tells of them all.
        let number = config.answers.newest();
        if let Some(at) = journal.contents().forgotten {
            ipam.forget_before(at, number);
        }
        for (&address, &at) in &journal.contents().resting {
            ipam.release(address, at, number);
        }
        let closed: BTreeMap<String, Vec<IpAddr>> =
            settled.closed.iter().map(|closed| (closed.link.clone(), closed.addresses.clone())).collect();
        let held = journal.contents().attachments().iter().flat_map(Attachment::addresses);
        held.chain(closed.values().flatten().copied()).for_each(|address| ipam.hold(address));

        restore(&mut netlink, &settled);
        for name in notes.keys() {
            drop_note(config.notes.as_deref(), name);
        }
        let state = State::new(ipam, journal, closed, &config);
        let node = Self::new(config, clock, netlink, state)?;
        settled.kept.iter().filter(|kept| kept.up).for_each(|kept| node.active.add(&kept.attachment));
        Ok(node)
    }

    /// The attachments that a plugin's note says are gone, and that no agent has removed yet. Notes about links that are no
    /// more, whose containers have others now, are dropped.
    pub(crate) fn noted(&self) -> Result<Vec<AttachmentKey>, PodNetError> {
        let notes = self.config.notes.as_deref().map(read_notes).unwrap_or_default();
        let links = if notes.is_empty() { Vec::new() } else { self.netlink(|n| Ok(n.pod_links()?))? };
        let mut gone = Vec::new();
        for (name, note) in notes {
            let link = links.iter().find(|pod| pod.link.name == name);
            if link.is_none_or(|pod| is_about(&note, pod)) {
                gone.push(AttachmentKey::new(note.container_id, note.ifname));
            } else {
                self.drop_note(&name);
            }
        }
        Ok(gone)
    }

    /// Whether a plugin has left a note that this link's pod has gone.
    pub(crate) fn is_noted(&self, link: &str) -> bool {
        self.config.notes.as_deref().map(read_notes).unwrap_or_default().contains_key(link)
    }

    /// Takes a note back that a plugin left about this link.
    pub(crate) fn drop_note(&self, link: &str) {
        drop_note(self.config.notes.as_deref(), link);
    }

    /// Removes the links that look like a pod's and belong to no attachment. One that was closed because nobody knows whose
    /// it is stays where its name is that of a `valid` attachment.
    pub(crate) fn remove_strays(&self, valid: &BTreeSet<AttachmentKey>) -> Result<(), PodNetError> {
        let mut known: BTreeSet<String> = self.attachments().into_iter().map(|a| a.host_ifname).collect();
        let closed: BTreeSet<String> = self.state().closed.keys().cloned().collect();
        known.extend(valid.iter().map(AttachmentKey::host_ifname).filter(|name| closed.contains(name)));
        let mut errors = Vec::new();
        for pod in self.netlink(|netlink| Ok(netlink.pod_links()?))? {
            if !known.contains(&pod.link.name) {
                warn!(link = pod.link.name, "a pod's link that belongs to no attachment: removed");
                errors.extend(self.remove_link(&pod.link.name).err());
            }
        }
        PodNetError::collect(errors)
    }
}

/// The notes that can be read, each by the name of its link.
fn read_notes(folder: &Path) -> BTreeMap<String, Note> {
    let notes = note::read_all(folder).unwrap_or_else(|error| {
        warn!(%error, folder = %folder.display(), "the notes of removed pods cannot be read");
        Vec::new()
    });
    let readable = notes.into_iter().filter_map(|(name, note)| match note {
        Ok(note) => Some((name, note)),
        Err(error) => {
            warn!(%error, link = name, "a note that cannot be read: dropped");
            drop_note(Some(folder), &name);
            None
        }
    });
    readable.collect()
}

fn drop_note(folder: Option<&Path>, link: &str) {
    if let Some(folder) = folder
        && let Err(error) = note::remove(folder, link)
    {
        // It is about a link that is gone, so it is without effect.
        warn!(%error, link, "a note that was worked off stays");
    }
}

/// Whether a note is about this very link, and not about one that had its name before.
fn is_about(note: &Note, pod: &PodLink) -> bool {
    note.link == Some(pod.link.index) && !note.boot.is_empty() && note.boot == note::boot_id()
}

/// Removes the links that a plugin was asked to remove and did not get to.
fn without_noted(netlink: &mut Netlink, links: Vec<PodLink>, notes: &BTreeMap<String, Note>) -> Vec<PodLink> {
    let stays = |pod: &PodLink| {
        if !notes.get(&pod.link.name).is_some_and(|note| is_about(note, pod)) {
            return true;
        }
        info!(link = pod.link.name, "removed: its runtime wanted it to go while no agent ran");
        !removed(netlink, &pod.link.name)
    };
    let mut links = links;
    let mut stays = stays;
    links.retain(|pod| stays(pod));
    links
}

/// Removes the links whose pod's namespace is gone; the kernel does so, too, in its own time.
fn without_ended(netlink: &mut Netlink, mut settled: Settled) -> Settled {
    let (ended, kept) = settled.kept.into_iter().partition::<Vec<_>, _>(|kept| {
        has_ended(&kept.attachment.netns) && removed(netlink, &kept.attachment.host_ifname)
    });
    settled.kept = kept;
    settled.gone.extend(ended.iter().map(|kept| kept.attachment.key()));
    for stray in &settled.stray {
        warn!(link = stray, "a pod's link that was never activated: removed");
        removed(netlink, stray);
    }
    settled
}

/// Of who is known by its link alone, the kernel's tables still say which of the node's ports lead to it.
fn with_ports(mut settled: Settled) -> Settled {
    let alone = |kept: &&mut Kept| kept.rebuilt && kept.attachment.netns.as_os_str().is_empty();
    let mut alone = settled.kept.iter_mut().filter(alone).peekable();
    if alone.peek().is_none() {
        return settled;
    }
    match HostPorts::in_force() {
        Ok(ports) => {
            for kept in alone {
                let addresses: Vec<IpAddr> = kept.attachment.addresses().collect();
                kept.attachment.host_ports = ports.asked_by(&addresses);
            }
        }
        Err(error) => warn!(
            error = &error as &dyn std::error::Error,
            "ports of the node do not lead any more to pods that are known from their links alone"
        ),
    }
    settled
}

/// Whether the pod's namespace was there and is not any more. Where even the folder is missing that it was in, it is our own
/// view of the machine that lacks something.
fn has_ended(netns: &Path) -> bool {
    let visible = netns.starts_with("/proc") || netns.parent().is_some_and(Path::exists);
    !netns.as_os_str().is_empty() && visible && matches!(Netns::open(netns), Err(NetnsError::Missing(_)))
}

fn removed(netlink: &mut Netlink, link: &str) -> bool {
    let removed = wire::remove(netlink, link);
    if let Err(error) = &removed {
        warn!(error = error as &dyn std::error::Error, link, "it stays, and so do its addresses");
    }
    removed.is_ok()
}

/// Writes down what was found.
fn record(journal: &mut Journal, settled: &Settled, now: u64) {
    use super::journal::Record;
    let contents = journal.contents_mut();
    for key in &settled.gone {
        if let Some(gone) = contents.get(key) {
            info!(pod = %gone.pod(), attachment = %key, "its link is gone: released");
        }
        contents.apply(Record::Released { key: key.clone(), at: now });
    }
    for kept in &settled.kept {
        if kept.rebuilt {
            let attachment = &kept.attachment;
            warn!(pod = %attachment.pod(), attachment = %attachment.key(), "known from its link alone: recorded");
            contents.apply(Record::Attached(attachment.clone()));
        }
    }
    // Two interfaces may be of one pod's name; it is the newer that counts.
    let age =
        |a: &Attachment| settled.kept.iter().position(|kept| kept.attachment.host_ifname == a.host_ifname);
    contents.sort_by_key(|a| age(a));
}

/// Whether pods had addresses here before.
fn was_in_use(netlink: &mut Netlink, links: &[PodLink]) -> Result<bool, PodNetError> {
    Ok(!links.is_empty()
        || !netlink.routes(false, true)?.is_empty()
        || !netlink.routes(true, true)?.is_empty())
}

/// Makes of the links and their routes what they should be.
fn restore(netlink: &mut Netlink, settled: &Settled) {
    let mut requests = Vec::new();
    // One that is down was never activated: its runtime was never told that it is there.
    for kept in settled.kept.iter().filter(|kept| kept.up) {
        requests.extend(wire::lead(kept.index, &kept.attachment));
    }
    let mut results = netlink.apply_each(requests);
    for kept in settled.kept.iter().filter(|kept| kept.unmarked) {
        results.push(wire::mark(netlink, &kept.attachment));
    }
    for closed in &settled.closed {
        if let Some(why) = closed.why {
            error!(
                link = closed.link,
                addresses = ?closed.addresses,
                "closed, until its pod is removed: {why}"
            );
        }
        results.push(wire::close(netlink, closed));
    }
    for error in results.into_iter().filter_map(Result::err) {
        warn!(error = &error as &dyn std::error::Error, "a pod's link cannot be restored");
    }
}
