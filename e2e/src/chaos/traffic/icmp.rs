//! Echo requests, which the destination's kernel answers.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::stamp::{receive, stamped};
use super::{SILENT, Task, conversation_port};
use crate::chaos::journal::Journal;
use crate::chaos::judge::{Kind, Tuple};
use crate::chaos::law::FlowKey;
use crate::probe::icmp::{echo, request, socket, types};

/// By the number of a request: the conversation that waits for its reply.
type Waiting = Arc<Mutex<HashMap<u64, Arc<AtomicU32>>>>;

/// An address's raw socket: requests go out, requests and replies come in.
pub(super) struct Echo {
    socket: Arc<UdpSocket>,
    waiting: Waiting,
    _reader: Task,
}

impl Echo {
    pub(super) fn open(own: IpAddr, journal: Journal) -> io::Result<Self> {
        let socket = Arc::new(socket(own)?);
        stamped(&*socket)?;
        let waiting = Waiting::default();
        let (theirs, asked) = (socket.clone(), waiting.clone());
        let reader = tokio::spawn(async move {
            let mut bytes = [0; 256];
            let (question, answer) = types(own);
            loop {
                let read =
                    theirs.async_io(Interest::READABLE, || receive(&*theirs, &mut bytes, journal.clock));
                let Ok(received) = read.await else { continue };
                let packet = &bytes[..received.length];
                if let Some(number) = echo(packet, own, question) {
                    journal.arrived(number, received.at);
                } else if let Some(number) = echo(packet, own, answer)
                    && let Some(silent) = asked.lock().unwrap_or_else(PoisonError::into_inner).remove(&number)
                {
                    silent.store(0, Ordering::Relaxed);
                }
            }
        });
        Ok(Self { socket, waiting, _reader: Task(reader) })
    }
}

/// A flow that lasts: requests of one identifier.
pub(super) struct Conversation {
    flow: FlowKey,
    generation: u16,
    silent: Arc<AtomicU32>,
    last: u64,
}

impl Conversation {
    pub(super) fn new(flow: FlowKey) -> Self {
        Self { flow, generation: 0, silent: Arc::default(), last: 0 }
    }

    /// One more request.
    pub(super) async fn go_on(&mut self, echo: &Echo, journal: &Journal) {
        if self.silent.load(Ordering::Relaxed) >= SILENT {
            self.generation = self.generation.wrapping_add(1);
            self.silent = Arc::default();
        }
        self.silent.fetch_add(1, Ordering::Relaxed);
        let port = conversation_port(self.flow, self.generation);
        let departure = journal.departs();
        {
            let mut waiting = echo.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.remove(&std::mem::replace(&mut self.last, departure.number));
            waiting.insert(departure.number, self.silent.clone());
        }
        let to = SocketAddr::new(self.flow.destination, 0);
        let message = request(self.flow.source, port, departure.number);
        if SockRef::from(&*echo.socket).send_to(&message, &to.into()).is_ok() {
            journal.sent(&departure, Tuple { flow: self.flow, port }, Kind::Datagram, false, false);
        }
    }
}
