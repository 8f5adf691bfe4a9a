//! Real packets: servers that record what arrives, and clients that wait for an answer.
//!
//! ```text
//!   source                                    destination
//!   connect / send, with a number that    ──▶ server: writes the number into the record,
//!   nobody used before                    ◀── and sends it back
//! ```
//!
//! *Allowed* needs both: the destination's record and the answer. *Denied* needs neither. What is in between (it arrived,
//! but the answer did not; somebody refused) is neither, and no prediction equals it.

mod client;
pub(crate) mod icmp;
#[cfg(test)]
mod packet_tests;
mod server;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use moat_policies::{Endpoint, Protocol, Traffic};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::cells::{Cell, Host, served_ports};
use crate::report::Observed;
use crate::space::Space;

/// How long a probe waits at first. A denied cell costs this much; all cells wait together.
pub(crate) const FIRST_WAIT: Duration = Duration::from_millis(300);

/// How long the second try of a cell waits that should have passed: longer than the kernel takes to send a SYN again.
pub(crate) const SECOND_WAIT: Duration = Duration::from_millis(2500);

/// The payload's first eight bytes; the number is the other eight.
const MAGIC: [u8; 8] = *b"moat-lab";
/// Octets of a probe's payload.
pub(crate) const PAYLOAD: usize = 16;

/// A payload with this number.
pub(crate) fn payload(number: u64) -> [u8; PAYLOAD] {
    let mut bytes = [0; PAYLOAD];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    bytes
}

/// The number of a payload of ours.
pub(crate) fn number_in(bytes: &[u8]) -> Option<u64> {
    let rest = bytes.strip_prefix(&MAGIC)?;
    Some(u64::from_be_bytes(rest.get(..8)?.try_into().ok()?))
}

/// What a destination recorded about a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Arrival {
    /// The address that it came from, as the destination saw it.
    from: IpAddr,
    /// The address that it came to.
    to: IpAddr,
}

/// What has arrived, by number.
#[derive(Clone, Default, Debug)]
struct Record(Arc<Entries>);

#[derive(Default, Debug)]
struct Entries {
    arrivals: Mutex<HashMap<u64, Arrival>>,
    written: Notify,
}

impl Record {
    fn write(&self, number: u64, arrival: Arrival) {
        self.0.arrivals.lock().unwrap_or_else(PoisonError::into_inner).insert(number, arrival);
        self.0.written.notify_waiters();
    }

    fn take(&self, number: u64) -> Option<Arrival> {
        self.0.arrivals.lock().unwrap_or_else(PoisonError::into_inner).remove(&number)
    }

    /// The entry, if it is written within this time.
    async fn take_within(&self, number: u64, wait: Duration) -> Option<Arrival> {
        let look = async {
            loop {
                // First: what is written from now on is told.
                let written = self.0.written.notified();
                if let Some(arrival) = self.take(number) {
                    return arrival;
                }
                written.await;
            }
        };
        timeout(wait, look).await.ok()
    }
}

/// How a probe ended, for its sender.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    /// Its number came back.
    Came,
    /// Nothing came back.
    Silence,
    /// Something else did.
    Error(String),
}

/// A host and the namespace it is in.
#[derive(Clone, Debug)]
pub(crate) struct Station {
    /// The host.
    pub host: Host,
    /// Where it sends and listens.
    pub space: Arc<Space>,
    /// The addresses that hosts outside see instead of its own: its node's.
    pub outside_as: Vec<IpAddr>,
}

impl Station {
    /// The address, of those of one family, that it sends from as another sees it.
    fn seen_by(&self, other: &Station, own: IpAddr) -> IpAddr {
        let outside = matches!(other.host.endpoint, Endpoint::Address(_));
        let masked = || self.outside_as.iter().copied().find(|a| a.is_ipv4() == own.is_ipv4());
        outside.then(masked).flatten().unwrap_or(own)
    }
}

/// Serves and probes for a number of stations, until it is told to stop.
#[derive(Debug)]
pub(crate) struct Prober {
    stations: Vec<Station>,
    record: Record,
    next: AtomicU64,
    in_flight: Arc<Semaphore>,
    servers: Vec<JoinHandle<()>>,
}

impl Prober {
    /// Starts the servers: each station on the ports that [`crate::cells`] asks it about, and for ICMP echo.
    pub(crate) async fn start(stations: Vec<Station>) -> io::Result<Self> {
        let hosts: Vec<Host> = stations.iter().map(|s| s.host.clone()).collect();
        let record = Record::default();
        let mut servers = Vec::new();
        // Pods in their node's network share its addresses: each is served once.
        let mut served: BTreeSet<(IpAddr, Option<(Protocol, u16)>)> = BTreeSet::new();
        for (station, ports) in stations.iter().zip(served_ports(&hosts)) {
            let mut wanted = Vec::new();
            for address in &station.host.addresses {
                let all = ports.iter().copied().map(Some).chain([None]);
                wanted.extend(all.map(|p| (*address, p)).filter(|w| served.insert(*w)));
            }
            let record = record.clone();
            let started = station.space.run(server::start(wanted, record)).await?;
            servers.extend(started.map_err(|e| {
                io::Error::new(e.kind(), format!("cannot serve as {}: {e}", station.host.endpoint))
            })?);
        }
        // Anywhere, with room to count up.
        let first = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), ()) >> 1;
        let in_flight = Arc::new(Semaphore::new(probes_at_once()));
        Ok(Self { stations, record, next: AtomicU64::new(first), in_flight, servers })
    }

    /// The hosts that it serves as.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = &Host> {
        self.stations.iter().map(|s| &s.host)
    }

    /// Ends the servers. When it returns, their ports are free.
    pub(crate) async fn stop(self) {
        self.servers.iter().for_each(JoinHandle::abort);
        for server in self.servers {
            // Cancelled: that is what we want.
            let _ = server.await;
        }
    }

    /// Sends one probe for each cell, all at once, and says what became of them, in the cells' order. Hosts' indices are
    /// positions among the stations.
    async fn probe(&self, cells: &[Cell], wait: Duration) -> io::Result<Vec<Probed>> {
        let mut probes = Vec::with_capacity(cells.len());
        for cell in cells {
            let (source, destination) = (&self.stations[cell.source], &self.stations[cell.destination]);
            let ends = source.host.address(cell.family).zip(destination.host.address(cell.family));
            let (from, to) = ends.ok_or_else(|| {
                io::Error::other(format!(
                    "{} and {} have no {} in common",
                    source.host.endpoint, destination.host.endpoint, cell.family
                ))
            })?;
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let (traffic, in_flight) = (cell.traffic, self.in_flight.clone());
            let task = source.space.start(async move {
                let _permit = in_flight.acquire_owned().await;
                match traffic {
                    Traffic::Port(Protocol::Tcp, port) => client::tcp(from, to, port, number, wait).await,
                    Traffic::Port(Protocol::Udp, port) => client::udp(from, to, port, number, wait).await,
                    Traffic::Other(_) => icmp::ask(from, to, number, wait).await,
                    Traffic::Port(Protocol::Sctp, _) => Answer::Error("SCTP is not probed".into()),
                }
            });
            probes.push((number, source.seen_by(destination, from), to, task));
        }
        let mut probed = Vec::with_capacity(probes.len());
        for (number, from, to, task) in probes {
            let answer = task.await.map_err(io::Error::other)?;
            // An echo reply is the kernel's, and may be here before the destination's thread has got round to writing.
            let arrival = match answer {
                Answer::Came => self.record.take_within(number, SECOND_WAIT).await,
                _ => self.record.take(number),
            };
            probed.push(Probed { number, observed: judge(answer, arrival, from, to) });
        }
        Ok(probed)
    }

    /// Waits until every server has seen to what its kernel had for it.
    async fn catch_up(&self) -> io::Result<()> {
        // A timer goes off only after the sockets that were ready have been served.
        let moment = async || tokio::time::sleep(Duration::from_millis(2)).await;
        let tasks: Vec<_> = self.stations.iter().map(|s| s.space.start(moment())).collect();
        for task in tasks {
            task.await.map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// Probes each cell; those that should pass and did not, once more and longer. Returns also how many passed only then.
    pub(crate) async fn probe_with_second_try(
        &self,
        cells: &[Cell],
        predicted: &[bool],
    ) -> io::Result<(Vec<Observed>, usize)> {
        let mut probed = self.probe(cells, FIRST_WAIT).await?;
        let failed = |at: &usize| predicted[*at] && probed[*at].observed != Observed::Allowed;
        let again: Vec<usize> = (0..cells.len()).filter(failed).collect();
        let second: Vec<Cell> = again.iter().map(|at| cells[*at]).collect();
        let mut passed = 0;
        for (at, seen) in again.into_iter().zip(self.probe(&second, SECOND_WAIT).await?) {
            passed += usize::from(seen.observed == Observed::Allowed);
            probed[at] = seen;
        }
        self.catch_up().await?;
        // On a busy machine a packet may arrive when nobody waits for it any more: it was not dropped.
        for one in probed.iter_mut().filter(|p| p.observed == Observed::Denied) {
            if self.record.take(one.number).is_some() {
                one.observed = Observed::Other("arrived late".into());
            }
        }
        Ok((probed.into_iter().map(|p| p.observed).collect(), passed))
    }
}

/// One probe, and what became of it.
struct Probed {
    number: u64,
    observed: Observed,
}

fn judge(answer: Answer, arrival: Option<Arrival>, from: IpAddr, to: IpAddr) -> Observed {
    if let Some(arrival) = arrival.filter(|a| *a != Arrival { from, to }) {
        return Observed::Other(format!("arrived at {} as coming from {}", arrival.to, arrival.from));
    }
    match (answer, arrival) {
        (Answer::Came, Some(_)) => Observed::Allowed,
        (Answer::Silence, None) => Observed::Denied,
        (Answer::Came, None) => Observed::Other("answered by somebody else".into()),
        (Answer::Silence, Some(_)) => Observed::Other("arrived, but no answer came back".into()),
        (Answer::Error(error), Some(_)) => Observed::Other(format!("arrived, but then: {error}")),
        (Answer::Error(error), None) => Observed::Other(error),
    }
}

/// A probe has a socket at each end, and the process has a limit.
fn probes_at_once() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // The soft limit is for programs that use select(); we do not.
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let limit = if setrlimit(Resource::Nofile, raised).is_ok() { raised } else { limit };
    let files = usize::try_from(limit.current.unwrap_or(4096)).unwrap_or(4096);
    (files.saturating_sub(512) / 3).clamp(64, 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allowed_needs_the_record_and_the_answer() {
        let (a, b): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let here = Some(Arrival { from: a, to: b });
        assert_eq!(judge(Answer::Came, here, a, b), Observed::Allowed);
        assert_eq!(judge(Answer::Silence, None, a, b), Observed::Denied);
        for (answer, arrival) in [
            (Answer::Came, None),
            (Answer::Silence, here),
            (Answer::Error("refused".into()), None),
            (Answer::Came, Some(Arrival { from: b, to: b })),
        ] {
            assert!(matches!(judge(answer, arrival, a, b), Observed::Other(_)));
        }
    }

    #[test]
    fn payloads_carry_their_number() {
        assert_eq!(number_in(&payload(7)), Some(7));
        assert_eq!(number_in(b"moat-lab"), None);
        assert_eq!(number_in(b"something else..."), None);
    }
}
