//! Questions and answers over UDP.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use moat_policies::{Protocol, Traffic};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::stamp::{Received, receive, stamped};
use super::{SECOND_ANSWER_AFTER, SILENT, Task, conversation_port, too_late};
use crate::chaos::journal::Journal;
use crate::chaos::judge::{Kind, Tuple};
use crate::chaos::law::FlowKey;
use crate::probe::{PAYLOAD, number_in, payload};

/// How long a flow of one packet is kept for its answers.
const LINGER: Duration = Duration::from_secs(1);

/// Answers every question, twice.
pub(super) async fn serve(at: SocketAddr, journal: Journal) -> io::Result<()> {
    let socket = Arc::new(bound(at)?);
    tokio::spawn(async move {
        while let Ok((number, from, received)) = next(&socket, &journal).await {
            journal.arrived(number, received);
            let traffic = Traffic::Port(Protocol::Udp, at.port());
            let flow = FlowKey { source: from.ip(), destination: at.ip(), traffic };
            let tuple = Tuple { flow, port: from.port() };
            say(&socket, from, tuple, true, false, &journal);
            let (socket, journal) = (socket.clone(), journal.clone());
            tokio::spawn(async move {
                tokio::time::sleep(SECOND_ANSWER_AFTER).await;
                if !too_late(received, &journal) {
                    say(&socket, from, tuple, true, false, &journal);
                }
            });
        }
    });
    Ok(())
}

/// A flow of one question.
pub(super) async fn once(flow: FlowKey, journal: &Journal) {
    let Ok((socket, port)) = (0..20).find_map_ok(|_| journal.fresh_port(), flow.source) else { return };
    let Some(to) = destination(flow) else { return };
    say(&socket, to, Tuple { flow, port }, false, true, journal);
    let journal = journal.clone();
    tokio::spawn(async move {
        let answers = async {
            while let Ok((number, _, at)) = next(&socket, &journal).await {
                journal.arrived(number, at);
            }
        };
        let _ = tokio::time::timeout(LINGER, answers).await;
    });
}

/// A flow that lasts.
pub(super) struct Conversation {
    flow: FlowKey,
    generation: u16,
    open: Option<Open>,
}

struct Open {
    socket: Arc<UdpSocket>,
    port: u16,
    /// Questions since the last answer.
    silent: Arc<AtomicU32>,
    _reader: Task,
}

impl Conversation {
    pub(super) fn new(flow: FlowKey) -> Self {
        Self { flow, generation: 0, open: None }
    }

    /// One more question; on a new flow, where the old one is no longer answered.
    pub(super) async fn go_on(&mut self, journal: &Journal) {
        if self.open.take_if(|open| open.silent.load(Ordering::Relaxed) >= SILENT).is_some() {
            self.generation += 1;
        }
        if self.open.is_none() {
            self.open = self.begin(journal).ok();
        }
        let (Some(open), Some(to)) = (&self.open, destination(self.flow)) else { return };
        open.silent.fetch_add(1, Ordering::Relaxed);
        say(&open.socket, to, Tuple { flow: self.flow, port: open.port }, false, false, journal);
    }

    fn begin(&mut self, journal: &Journal) -> io::Result<Open> {
        let generation = self.generation;
        let flow = self.flow;
        let (socket, port) = (0..20)
            .find_map_ok(|more| conversation_port(flow, generation.wrapping_add(more)), flow.source)?;
        let (socket, silent) = (Arc::new(socket), Arc::new(AtomicU32::new(0)));
        let (theirs, answered, journal) = (socket.clone(), silent.clone(), journal.clone());
        let reader = tokio::spawn(async move {
            while let Ok((number, _, at)) = next(&theirs, &journal).await {
                answered.store(0, Ordering::Relaxed);
                journal.arrived(number, at);
            }
        });
        Ok(Open { socket, port, silent, _reader: Task(reader) })
    }
}

fn destination(flow: FlowKey) -> Option<SocketAddr> {
    match flow.traffic {
        Traffic::Port(_, port) => Some(SocketAddr::new(flow.destination, port)),
        Traffic::Other(_) => None,
    }
}

/// Sends one packet. It is written down only if the kernel took it.
fn say(socket: &UdpSocket, to: SocketAddr, tuple: Tuple, answer: bool, opens: bool, journal: &Journal) {
    let departure = journal.departs();
    if SockRef::from(socket).send_to(&payload(departure.number), &to.into()).is_ok() {
        journal.sent(&departure, tuple, Kind::Datagram, answer, opens);
    }
}

/// The next packet of ours: its number, who sent it, when it arrived.
async fn next(
    socket: &UdpSocket,
    journal: &Journal,
) -> io::Result<(u64, SocketAddr, crate::chaos::clock::Moment)> {
    let mut bytes = [0; PAYLOAD];
    loop {
        let read = socket.async_io(Interest::READABLE, || receive(socket, &mut bytes, journal.clock)).await;
        // An error is an ICMP message about an earlier packet.
        let Ok(Received { length, from: Some(from), at }) = read else { continue };
        if let Some(number) = number_in(&bytes[..length]) {
            return Ok((number, from, at));
        }
    }
}

fn bound(at: SocketAddr) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind(at)?;
    socket.set_nonblocking(true)?;
    stamped(&socket)?;
    UdpSocket::from_std(socket)
}

/// The first port of several that is free.
trait FirstFree: Iterator<Item = u16> + Sized {
    fn find_map_ok(self, port: impl Fn(u16) -> u16, own: IpAddr) -> io::Result<(UdpSocket, u16)> {
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        for number in self {
            let port = port(number);
            match bound(SocketAddr::new(own, port)) {
                Ok(socket) => return Ok((socket, port)),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

impl<I: Iterator<Item = u16>> FirstFree for I {}
