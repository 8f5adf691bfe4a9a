//! Packets on every pair of hosts, at a steady pace.
//!
//! ```text
//!   orders: which flows, how fast ──▶ generator (one a host, in its namespace) ── conversations that last, flows of one packet
//!                                     server    (one an address and port)      ── answers at once, and once more a moment later
//!                                        └──── both write into the journal: sent, arrived
//! ```

mod icmp;
mod stamp;
mod tcp;
mod udp;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use moat_policies::{Endpoint, Protocol, Traffic};
use tokio::sync::watch;

use super::clock::Moment;
use super::journal::Journal;
use super::judge::Event;
use super::law::FlowKey;
use crate::cells::{Host, cells, served_ports};
use crate::space::Space;

/// How long after its answer a server speaks once more: what comes back on a flow that has been denied meanwhile.
const SECOND_ANSWER_AFTER: Duration = Duration::from_millis(60);
/// So many questions without any answer, and a conversation is begun anew.
const SILENT: u32 = 3;
/// Source ports of conversations; the same ones for whoever holds an address next.
const CONVERSATIONS: std::ops::Range<u16> = 20_000..40_000;

/// One thing that a host does again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Chore {
    flow: FlowKey,
    /// A flow of its own for each packet, or one that lasts.
    fresh: bool,
}

/// What a host is to do, and how long it waits between two packets.
#[derive(Clone, Debug, Default)]
struct Orders {
    chores: Arc<[Chore]>,
    pause: Duration,
}

/// A host that sends and answers.
struct Running {
    host: Host,
    orders: watch::Sender<Orders>,
}

/// All of them.
pub(crate) struct Generators {
    journal: Journal,
    /// Packets that are begun in a second, answers apart.
    rate: u32,
    running: HashMap<Endpoint, Running>,
}

impl Generators {
    /// Nobody yet.
    pub(crate) fn new(journal: Journal, rate: u32) -> Self {
        Self { journal, rate, running: HashMap::new() }
    }

    /// A host begins to answer, on the ports that it is asked on among `all`. It sends when [`Self::order`] tells it to.
    pub(crate) async fn start(&mut self, host: &Host, all: &[Host], space: &Space) -> io::Result<()> {
        let place = all.iter().position(|h| h == host).unwrap_or_default();
        let ports = served_ports(all).swap_remove(place);
        let (orders, ordered) = watch::channel(Orders::default());
        let (own, journal) = (host.clone(), self.journal.clone());
        let started = space.run(async move {
            let echoes = serve(&own, ports, &journal).await?;
            tokio::spawn(generate(ordered, echoes, journal));
            Ok(())
        });
        started.await.flatten()?;
        let at = self.journal.clock.now();
        host.addresses.iter().for_each(|address| self.journal.note(Event::Came { address: *address, at }));
        self.running.insert(host.endpoint.clone(), Running { host: host.clone(), orders });
        Ok(())
    }

    /// A host is about to go: it asks nothing more, and nobody expects an answer.
    pub(crate) fn stop(&mut self, host: &Endpoint) {
        let Some(gone) = self.running.remove(host) else { return };
        let at = self.journal.clock.now();
        gone.host
            .addresses
            .iter()
            .for_each(|address| self.journal.note(Event::Went { address: *address, at }));
    }

    /// Everybody who runs asks everybody among `all`, whether that one runs or not.
    pub(crate) fn order(&self, all: &[Host]) {
        let mut chores: HashMap<&Endpoint, Vec<Chore>> = HashMap::new();
        for cell in cells(all) {
            let ends = all[cell.source].address(cell.family).zip(all[cell.destination].address(cell.family));
            let Some((source, destination)) = ends else { continue };
            let flow = FlowKey { source, destination, traffic: cell.traffic };
            let kinds: &[bool] =
                if matches!(cell.traffic, Traffic::Other(_)) { &[false] } else { &[false, true] };
            let own = chores.entry(&all[cell.source].endpoint).or_default();
            own.extend(kinds.iter().map(|fresh| Chore { flow, fresh: *fresh }));
        }
        let total: usize =
            chores.iter().filter(|(e, _)| self.running.contains_key(e)).map(|(_, c)| c.len()).sum();
        for (endpoint, running) in &self.running {
            let own = chores.remove(endpoint).unwrap_or_default();
            let share = total as f64 / own.len().max(1) as f64;
            let pause = Duration::from_secs_f64(share / f64::from(self.rate.max(1)));
            let _ = running.orders.send(Orders { chores: own.into(), pause });
        }
    }

    /// Everybody falls silent.
    pub(crate) fn hush(&self) {
        self.order(&[]);
    }
}

/// Starts a host's servers. Echo requests come by the sockets that replies come by.
async fn serve(
    host: &Host,
    ports: std::collections::BTreeSet<(Protocol, u16)>,
    journal: &Journal,
) -> io::Result<HashMap<IpAddr, icmp::Echo>> {
    let mut echoes = HashMap::new();
    for address in &host.addresses {
        for (protocol, port) in &ports {
            let at = SocketAddr::new(*address, *port);
            let served = match protocol {
                Protocol::Udp => udp::serve(at, journal.clone()).await,
                Protocol::Tcp => tcp::serve(at, journal.clone()),
                Protocol::Sctp => Ok(()),
            };
            match served {
                // Pods in their node's network share its addresses: whoever is first serves.
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && host_shares(host) => {}
                served => served?,
            }
        }
        echoes.insert(*address, icmp::Echo::open(*address, journal.clone())?);
    }
    Ok(echoes)
}

/// Whether others may have its addresses, too.
fn host_shares(host: &Host) -> bool {
    matches!(host.endpoint, Endpoint::Pod(_))
}

/// What lasts between two packets of a chore.
enum Lasting {
    Udp(udp::Conversation),
    Tcp(tcp::Conversation),
    Icmp(icmp::Conversation),
}

/// Does the chores in turn.
async fn generate(
    mut orders: watch::Receiver<Orders>,
    echoes: HashMap<IpAddr, icmp::Echo>,
    journal: Journal,
) {
    let mut lasting: HashMap<Chore, Lasting> = HashMap::new();
    let mut turn = 0;
    loop {
        let Orders { chores, pause } = orders.borrow_and_update().clone();
        let Some(chore) = chores.get(turn % chores.len().max(1)).copied() else {
            match orders.changed().await {
                Ok(()) => continue,
                // The host is about to go.
                Err(_) => return,
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            changed = orders.changed() => {
                if changed.is_err() {
                    return;
                }
                let wanted = orders.borrow().chores.clone();
                if !wanted.is_empty() {
                    lasting.retain(|chore, _| wanted.contains(chore));
                }
                continue;
            }
        }
        turn += 1;
        step(chore, &mut lasting, &echoes, &journal).await;
    }
}

/// One packet. What cannot be sent (a link that is cut) is not sent.
async fn step(
    chore: Chore,
    lasting: &mut HashMap<Chore, Lasting>,
    echoes: &HashMap<IpAddr, icmp::Echo>,
    journal: &Journal,
) {
    match (chore.flow.traffic, chore.fresh) {
        (Traffic::Port(Protocol::Udp, _), true) => udp::once(chore.flow, journal).await,
        (Traffic::Port(Protocol::Tcp, _), true) => drop(tokio::spawn(tcp::once(chore.flow, journal.clone()))),
        (Traffic::Port(Protocol::Udp, _), false) => {
            let new = || Lasting::Udp(udp::Conversation::new(chore.flow));
            if let Lasting::Udp(conversation) = lasting.entry(chore).or_insert_with(new) {
                conversation.go_on(journal).await;
            }
        }
        (Traffic::Port(Protocol::Tcp, _), false) => {
            let new = || Lasting::Tcp(tcp::Conversation::new(chore.flow));
            if let Lasting::Tcp(conversation) = lasting.entry(chore).or_insert_with(new) {
                conversation.go_on(journal);
            }
        }
        (Traffic::Other(_), _) => {
            let Some(echo) = echoes.get(&chore.flow.source) else { return };
            let new = || Lasting::Icmp(icmp::Conversation::new(chore.flow));
            if let Lasting::Icmp(conversation) = lasting.entry(chore).or_insert_with(new) {
                conversation.go_on(echo, journal).await;
            }
        }
        (Traffic::Port(Protocol::Sctp, _), _) => {}
    }
}

/// The source port of a conversation: follows from where it goes, so that the next owner of an address has the same.
fn conversation_port(flow: FlowKey, generation: u16) -> u16 {
    let mut hasher = DefaultHasher::new();
    (flow.destination, flow.traffic).hash(&mut hasher);
    let (first, all) = (CONVERSATIONS.start, u64::from(CONVERSATIONS.end - CONVERSATIONS.start));
    // Below the number of ports.
    first + (hasher.finish().wrapping_add(u64::from(generation)) % all) as u16
}

/// Whether who asked may have gone before a second answer would reach it: on a busy machine a timer goes off late.
fn too_late(asked: Moment, journal: &Journal) -> bool {
    journal.clock.now().since(asked) > Duration::from_millis(400)
}

/// A task that ends when this is dropped.
struct Task(tokio::task::JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}
