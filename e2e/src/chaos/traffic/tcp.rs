//! TCP: connections that last, with data both ways, and connections for one question.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use moat_policies::{Protocol, Traffic};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::stamp::{receive, stamped};
use super::{SECOND_ANSWER_AFTER, Task, too_late};
use crate::chaos::clock::Moment;
use crate::chaos::journal::Journal;
use crate::chaos::judge::{Event, Kind, Tuple};
use crate::chaos::law::FlowKey;
use crate::probe::{PAYLOAD, number_in, payload};

/// How long a connection may take: less than the kernel waits before it asks again.
const CONNECT: Duration = Duration::from_millis(900);
/// How long a connection for one question waits for its answers.
const LINGER: Duration = Duration::from_secs(1);

/// Answers every question on every connection, twice.
pub(super) fn serve(at: SocketAddr, journal: Journal) -> io::Result<()> {
    let socket = socket(at)?;
    socket.listen(256)?;
    let listener = TcpListener::from_std(socket.into())?;
    tokio::spawn(async move {
        loop {
            let Ok((stream, from)) = listener.accept().await else { continue };
            let traffic = Traffic::Port(Protocol::Tcp, at.port());
            let flow = FlowKey { source: from.ip(), destination: at.ip(), traffic };
            tokio::spawn(answer(stream, Tuple { flow, port: from.port() }, journal.clone()));
        }
    });
    Ok(())
}

async fn answer(stream: TcpStream, tuple: Tuple, journal: Journal) {
    if prepare(&stream).is_err() {
        return;
    }
    let stream = Arc::new(stream);
    while let Ok(Some((number, at))) = next(&stream, &journal).await {
        journal.arrived(number, at);
        say(&stream, tuple, true, &journal);
        let (stream, journal) = (stream.clone(), journal.clone());
        tokio::spawn(async move {
            tokio::time::sleep(SECOND_ANSWER_AFTER).await;
            if !too_late(at, &journal) {
                say(&stream, tuple, true, &journal);
            }
        });
    }
}

/// A connection for one question.
pub(super) async fn once(flow: FlowKey, journal: Journal) {
    let Some((stream, tuple)) = connect(flow, &journal).await else { return };
    say(&stream, tuple, false, &journal);
    let answers = async {
        while let Ok(Some((number, at))) = next(&stream, &journal).await {
            journal.arrived(number, at);
        }
    };
    let _ = timeout(LINGER, answers).await;
    // So that the next one may have the port at once.
    let _ = stream.set_zero_linger();
}

/// A connection that lasts.
pub(super) struct Conversation {
    flow: FlowKey,
    open: Arc<Mutex<Option<Open>>>,
    connecting: Arc<AtomicBool>,
}

struct Open {
    stream: Arc<TcpStream>,
    tuple: Tuple,
    /// A question has not been answered.
    waits: Arc<AtomicBool>,
    _reader: Task,
}

impl Drop for Open {
    fn drop(&mut self) {
        let _ = self.stream.set_zero_linger();
    }
}

impl Conversation {
    pub(super) fn new(flow: FlowKey) -> Self {
        Self { flow, open: Arc::default(), connecting: Arc::default() }
    }

    /// One more question; where the last one was not answered, a new connection is tried, which replaces the old one.
    pub(super) fn go_on(&mut self, journal: &Journal) {
        if let Some(open) = &*self.open.lock().unwrap_or_else(PoisonError::into_inner)
            && !open.waits.swap(true, Ordering::Relaxed)
        {
            say(&open.stream, open.tuple, false, journal);
            return;
        }
        if self.connecting.swap(true, Ordering::Relaxed) {
            return;
        }
        let (flow, place, connecting, journal) =
            (self.flow, self.open.clone(), self.connecting.clone(), journal.clone());
        tokio::spawn(async move {
            if let Some((stream, tuple)) = connect(flow, &journal).await {
                let open = Open::new(stream, tuple, &place, &journal);
                *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(open);
            }
            connecting.store(false, Ordering::Relaxed);
        });
    }
}

impl Open {
    fn new(stream: TcpStream, tuple: Tuple, place: &Arc<Mutex<Option<Open>>>, journal: &Journal) -> Self {
        let (stream, waits) = (Arc::new(stream), Arc::new(AtomicBool::new(false)));
        let (theirs, answered, journal) = (stream.clone(), waits.clone(), journal.clone());
        let place = Arc::downgrade(place);
        let reader = tokio::spawn(async move {
            let how = loop {
                match next(&theirs, &journal).await {
                    Ok(Some((number, at))) => {
                        answered.store(false, Ordering::Relaxed);
                        journal.arrived(number, at);
                    }
                    Ok(None) => break "closed by the other end".to_owned(),
                    Err(error) => break error.to_string(),
                }
            };
            journal.note(Event::Broke { tuple, at: journal.clock.now(), how });
            if let Some(place) = place.upgrade() {
                let mut open = place.lock().unwrap_or_else(PoisonError::into_inner);
                drop(open.take_if(|open| open.tuple == tuple));
            }
        });
        Self { stream, tuple, waits, _reader: Task(reader) }
    }
}

/// Connects from a port that is new, if that can be done.
async fn connect(flow: FlowKey, journal: &Journal) -> Option<(TcpStream, Tuple)> {
    let Traffic::Port(_, to) = flow.traffic else { return None };
    let (socket, port) = (0..20).find_map(|_| {
        let port = journal.fresh_port();
        Some((socket(SocketAddr::new(flow.source, port)).ok()?, port))
    })?;
    let tuple = Tuple { flow, port };
    let departure = journal.departs();
    match socket.connect(&SockAddr::from(SocketAddr::new(flow.destination, to))) {
        Err(error) if error.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {
            return None;
        }
        _ => journal.sent(&departure, tuple, Kind::Connect, false, true),
    }
    let stream = TcpStream::from_std(socket.into()).ok()?;
    let connected = async {
        stream.writable().await?;
        match stream.take_error()? {
            Some(error) => Err(error),
            // Still on its way: the kernel says writable only when it is made, or has failed.
            None => stream.peer_addr().map(drop),
        }
    };
    match timeout(CONNECT, connected).await {
        Ok(Ok(())) => {
            journal.arrived(departure.number, journal.clock.now());
            prepare(&stream).ok()?;
            Some((stream, tuple))
        }
        _ => {
            let _ = stream.set_zero_linger();
            None
        }
    }
}

fn socket(own: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(own), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SockAddr::from(own))?;
    Ok(socket)
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stamped(stream)
}

/// Sends a few octets, which go at once or not at all.
fn say(stream: &TcpStream, tuple: Tuple, answer: bool, journal: &Journal) {
    let departure = journal.departs();
    if SockRef::from(stream).send(&payload(departure.number)).is_ok_and(|length| length == PAYLOAD) {
        journal.sent(&departure, tuple, Kind::Frame, answer, false);
    }
}

/// The next data: its number, and when it arrived; nothing at the end of the connection.
async fn next(stream: &TcpStream, journal: &Journal) -> io::Result<Option<(u64, Moment)>> {
    let mut bytes = [0; PAYLOAD];
    let mut filled = 0;
    let mut at = Moment::default();
    while filled < PAYLOAD {
        let read = stream
            .async_io(Interest::READABLE, || receive(stream, &mut bytes[filled..], journal.clock))
            .await?;
        if read.length == 0 {
            return Ok(None);
        }
        filled += read.length;
        at = read.at;
    }
    number_in(&bytes).map(|number| Some((number, at))).ok_or_else(|| io::Error::other("not the lab's data"))
}
