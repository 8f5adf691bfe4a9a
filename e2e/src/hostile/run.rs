//! Sends each row, and behind it the marks.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use moat_policies::{Family, NamespacedName};

use super::cast::{Cast, NAMESPACE, Place, Seat, Sender, Who};
use super::frame::{Ends, Eth, Ip, Mac, UDP};
use super::report::{HostileReport, HostileRow};
use super::rows::{Row, rows, service_rules};
use super::sight::FIRST_MARK;
use super::wire::{Sights, Watch, Writer, link, send_datagram};
use super::{HostileOptions, flood, state_of};
use crate::error::{LabError, Trying as _};
use crate::fabric::nft;
use crate::lab::{Lab, Tell};
use crate::link::UPLINK;
use crate::probe::payload;
use crate::space::Space;
use crate::topology::{Joined, node_addresses};

/// A mark that takes longer was lost.
const PATIENCE: Duration = Duration::from_secs(10);
/// Nobody listens there.
pub(super) const MARK_PORT: u16 = 7;
const POD_LINK: &str = "eth0";
/// What moat calls a node's end of the tunnel.
const TUNNEL: &str = "vxlan-moat";

/// Everything that sends and watches.
pub(super) struct Stage {
    pub(super) cast: Cast,
    pub(super) sights: Sights,
    pub(super) writers: BTreeMap<Sender, (Arc<Space>, Arc<Writer>)>,
    pub(super) nodes: Vec<Arc<Space>>,
    pub(super) watches: Vec<Arc<Watch>>,
    next_mark: u64,
}

/// Goes through the table, in each family that the lab has.
pub(crate) async fn run(
    lab: &mut Lab,
    options: &HostileOptions,
    tell: Tell<'_>,
) -> Result<HostileReport, LabError> {
    lab.stop_prober().await;
    if options.unprotected {
        unprotect(lab).await?;
    }
    let mut stage = Stage::set(lab).await?;
    let (mut done, mut notes) = (Vec::new(), Vec::new());
    let services = match stage.add_services().await {
        Ok(()) => true,
        Err(error) => {
            notes.push(format!("no row about Services: {error}"));
            false
        }
    };
    let only = |group: &str, name: &str| {
        options.only.as_ref().is_none_or(|part| group.contains(part) || name.contains(part))
    };
    for family in Family::ALL {
        if stage.cast.pod(Who::Near).address(family).is_unspecified() {
            continue;
        }
        for row in rows(&stage.cast, family, services) {
            if !only(row.group, &row.name) {
                continue;
            }
            tell(&format!("{family}, {}: {}", row.group, row.name));
            done.push(stage.perform(&row).await?);
        }
    }
    if !options.no_flood && !options.unprotected {
        let (rows, note) = flood::rows(&mut stage, lab, only, tell).await?;
        done.extend(rows);
        notes.extend(note);
    }
    // A word that nothing contains is a slip, and not a table that is as expected.
    if let Some(part) = options.only.as_ref().filter(|_| done.is_empty() && notes.is_empty()) {
        return Err(LabError::Told(format!(
            "no row's group or text contains {part:?}: leave --only out to see all"
        )));
    }
    Ok(HostileReport { topology: lab.options.joined.to_string(), rows: done, notes })
}

impl Stage {
    async fn set(lab: &Lab) -> Result<Self, LabError> {
        let sights = Sights::default();
        let mut watches = Vec::new();
        let mut writers = BTreeMap::new();
        let mut pods = Vec::new();
        let addresses = lab.rooms.addresses();
        for who in Who::ALL {
            let name = NamespacedName::new(NAMESPACE, who.name());
            let space = lab.rooms.space_of(&name).ok_or_else(|| absent(who.name()))?;
            let own: Vec<IpAddr> = addresses.get(&name).cloned().unwrap_or_default();
            let (mac, next, writer) = in_space(space, POD_LINK, true).await?;
            pods.push(Seat::new(mac, next, &own));
            writers.insert(Sender::Pod(who), (space.clone(), writer));
            let seen = sights.clone();
            let watch = space.run(async move { Watch::links(move |_| Some(Place::Pod(who)), &seen) }).await;
            watches.push(watch.flatten().trying(|| format!("cannot watch {}", who.name()))?);
        }
        let mut nodes = Vec::new();
        for (number, (node, space)) in lab.rooms.nodes().iter().zip(lab.fabric.nodes()).enumerate() {
            let (mac, next, _) = in_space(space, UPLINK, false).await?;
            nodes.push(Seat::new(mac, next, &node_addresses(node)));
            let seen = sights.clone();
            let watch = space.run(async move { Watch::stack(Place::Node(number), &seen) }).await;
            watches.extend(watch.flatten().trying(|| format!("cannot watch {}", node.name))?);
        }
        let wires = lab.fabric.wires().await?;
        let seen = sights.clone();
        let place_of = move |index| wires.iter().position(|wire| *wire == index).map(Place::Wire);
        let watch = lab.fabric.hub().run(async move { Watch::links(place_of, &seen) }).await;
        watches.push(watch.flatten().trying(|| "cannot watch the fabric".into())?);
        let world = lab.fabric.world().ok_or_else(|| absent("the world"))?;
        let (uplink, name) = lab.fabric.uplink().ok_or_else(|| absent("the uplink"))?;
        let (mac, _, writer) = in_space(uplink, &name, false).await?;
        writers.insert(Sender::Uplink, (uplink.clone(), writer));
        let seen = sights.clone();
        let watch = world.run(async move { Watch::links(|_| Some(Place::World), &seen) }).await;
        watches.push(watch.flatten().trying(|| "cannot watch the world".into())?);
        let next = nodes.first().map_or([0; 6], |node: &Seat| node.mac);
        let world = Seat::new(mac, next, lab.fabric.outside());
        // It is there only where nodes share no link.
        let tunnel = match lab.fabric.nodes().first() {
            Some(node) => in_space(node, TUNNEL, false).await.ok().map(|(mac, _, _)| mac),
            None => None,
        };
        let pods = pods.try_into().map_err(|_| absent("a pod"))?;
        let stage = Self {
            cast: Cast { pods, nodes, world, tunnel, routed: lab.options.joined != Joined::Link },
            sights,
            writers,
            nodes: lab.fabric.nodes().to_vec(),
            watches,
            next_mark: FIRST_MARK,
        };
        stage.keep_on_one_processor().await?;
        Ok(stage)
    }

    async fn keep_on_one_processor(&self) -> Result<(), LabError> {
        let senders = self.writers.values().map(|(space, _)| space).chain(&self.nodes);
        for space in senders {
            let pinned = space.run(async {
                let mut allowed = rustix::thread::sched_getaffinity(None)?;
                let first = (0..rustix::thread::CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu));
                allowed.clear();
                allowed.set(first.unwrap_or(0));
                rustix::thread::sched_setaffinity(None, &allowed).map_err(io::Error::from)
            });
            pinned.await.flatten().trying(|| format!("cannot keep {} on one processor", space.name()))?;
        }
        Ok(())
    }

    /// Gives every node the Services that the rows are about.
    async fn add_services(&self) -> Result<(), LabError> {
        for space in &self.nodes {
            let rules = service_rules(&self.cast);
            let loaded = space.run(async move { nft(&rules).await }).await.flatten();
            loaded.trying(|| format!("cannot give {} its Services", space.name()))?;
        }
        Ok(())
    }

    /// Sends a row and the marks, and compares.
    pub(super) async fn perform(&mut self, row: &Row) -> Result<HostileRow, LabError> {
        self.sights.clear();
        let mut odd = Vec::new();
        let before = self.state().await?;
        for (from, frame) in &row.before {
            odd.extend(self.send(*from, vec![frame.clone()]).await.err());
        }
        odd.extend(self.send(row.from, row.frames.clone()).await.err());
        odd.extend(self.mark(row).await?);
        self.watches.iter().for_each(|watch| watch.catch_up());
        let after = self.state().await?;
        for (before, after) in before.iter().zip(&after) {
            odd.extend(state_of::changes(before, after));
        }
        let mut seen: Vec<String> =
            self.sights.of(row.label.into()).iter().map(ToString::to_string).collect();
        seen.append(&mut odd);
        Ok(HostileRow {
            group: row.group.into(),
            name: row.name.clone(),
            family: row.family.to_string(),
            from: row.from.to_string(),
            expected: row.expected.iter().map(ToString::to_string).collect(),
            seen,
        })
    }

    /// Sends frames by somebody's own link; what the kernel says where it refuses.
    pub(super) async fn send(&self, from: Sender, frames: Vec<Vec<u8>>) -> Result<(), String> {
        let Some((space, writer)) = self.writers.get(&from) else { return Err(format!("no {from}")) };
        let writer = writer.clone();
        let sent = space.run(async move { writer.send(&frames) }).await.flatten();
        sent.map_err(|error| format!("not sent: {error}"))
    }

    async fn state(&self) -> Result<Vec<state_of::State>, LabError> {
        let mut all = Vec::with_capacity(self.nodes.len());
        for (number, space) in self.nodes.iter().enumerate() {
            let state = space.run(state_of::read(number)).await.flatten();
            all.push(state.trying(|| format!("cannot read the neighbours of {}", space.name()))?);
        }
        Ok(all)
    }

    /// Sends marks the way that the row's frames may have gone: from the sender to the first node, from there to the others, and
    /// from each node to its pods. Returns what did not arrive.
    async fn mark(&mut self, row: &Row) -> Result<Vec<String>, LabError> {
        let mut lost = Vec::new();
        let home = match row.from {
            Sender::Pod(who) => who.node(),
            Sender::Uplink => 0,
        };
        // By the socket that the row was sent by, so that it is behind it from the start.
        let number = self.number();
        let seat = self.cast.seat(row.from);
        let ends = Ends::new(seat.address(row.family), self.cast.nodes[home].address(row.family));
        let datagram = ends.udp((MARK_PORT, MARK_PORT), &payload(number));
        let frame = Eth::new(seat.mac, seat.next).ip(&Ip::new(ends, 0).packet(UDP, &datagram));
        if let Some((space, writer)) = self.writers.get(&row.from) {
            let writer = writer.clone();
            space
                .run(async move { writer.send(&[frame]) })
                .await
                .flatten()
                .trying(|| "cannot send".into())?;
        }
        if !self.sights.wait(number, Place::Node(home), PATIENCE).await {
            lost.push(lost_at(Place::Node(home)));
        }
        for to in (0..self.nodes.len()).filter(|n| *n != home) {
            let address = self.cast.nodes[to].address(row.family);
            if !self.send_mark(home, address, Place::Node(to)).await? {
                lost.push(lost_at(Place::Node(to)));
            }
        }
        let world = self.cast.world.address(row.family);
        if !self.send_mark(home, world, Place::World).await? {
            lost.push(lost_at(Place::World));
        }
        for who in Who::ALL {
            let address = self.cast.pod(who).address(row.family);
            if !self.send_mark(who.node(), address, Place::Pod(who)).await? {
                lost.push(lost_at(Place::Pod(who)));
            }
        }
        Ok(lost)
    }

    fn number(&mut self) -> u64 {
        self.next_mark += 1;
        self.next_mark
    }

    async fn send_mark(&mut self, from: usize, to: IpAddr, at: Place) -> Result<bool, LabError> {
        let number = self.number();
        let sent =
            self.nodes[from].run(async move { send_datagram((to, MARK_PORT), &payload(number)) }).await;
        sent.flatten().trying(|| format!("cannot send to {to}"))?;
        Ok(self.sights.wait(number, at, PATIENCE).await)
    }
}

/// The hardware address of a link, the one of its gateway where there is one, and a writer.
async fn in_space(space: &Space, name: &str, gateway: bool) -> Result<(Mac, Mac, Arc<Writer>), LabError> {
    let name = name.to_owned();
    let look = async move {
        let (address, mac) = link(&name)?;
        let next = if gateway { state_of::only_neighbour().await? } else { [0; 6] };
        Ok::<_, io::Error>((mac, next, Arc::new(Writer::open(address)?)))
    };
    space.run(look).await.flatten().trying(|| format!("cannot send from {}", space.name()))
}

/// Ends the agents, which are not started again, and deletes their tables, which the kernel does not guard.
async fn unprotect(lab: &Lab) -> Result<(), LabError> {
    for (node, space) in lab.rooms.nodes().iter().zip(lab.fabric.nodes()) {
        let (agent, _) = lab.rooms.agent_of(&node.name);
        let mut life = agent.life();
        agent.process().kill().trying(|| format!("cannot end the agent of {}", node.name))?;
        while !life.borrow_and_update().over {
            life.changed().await.map_err(|_| absent("the agent's watcher"))?;
        }
        let deleted = space.run(nft("delete table inet moat\ndelete table netdev moat\n")).await.flatten();
        deleted.trying(|| format!("cannot delete the tables of {}", node.name))?;
    }
    Ok(())
}

fn lost_at(place: Place) -> String {
    format!("no mark at {place}")
}

fn absent(what: &str) -> LabError {
    LabError::Told(format!("{what} does not run"))
}
