//! Who answers, and remembers who asked.
//!
//! ```text
//!   question: magic, id, number            ──▶ recorded under the id
//!   answer:   the question, who answered, the asker's address as it was seen
//! ```

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use crate::network::Network;

const MAGIC: &[u8; 8] = b"moatsuit";
/// Octets of a question.
pub(crate) const QUESTION: usize = 24;
/// Octets of an answer.
pub(crate) const ANSWER: usize = QUESTION + 24;
/// Octets that a socket keeps of what has come and was not read, with what the kernel counts for each datagram.
const ROOM: usize = 8 << 20;

/// A packet of ours: whose, and which of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) id: u64,
    pub(crate) number: u64,
}

impl Question {
    pub(crate) fn bytes(self) -> [u8; QUESTION] {
        let mut bytes = [0; QUESTION];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..16].copy_from_slice(&self.id.to_be_bytes());
        bytes[16..].copy_from_slice(&self.number.to_be_bytes());
        bytes
    }

    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(MAGIC)?;
        let word = |at: usize| Some(u64::from_be_bytes(rest.get(at..at + 8)?.try_into().ok()?));
        Some(Self { id: word(0)?, number: word(8)? })
    }
}

/// What comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) question: Question,
    /// Who answered.
    pub(crate) by: u64,
    /// Where the question came from, as the answerer saw it.
    pub(crate) from: IpAddr,
}

impl Answer {
    fn bytes(self) -> [u8; ANSWER] {
        let from = match self.from {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        let mut bytes = [0; ANSWER];
        bytes[..QUESTION].copy_from_slice(&self.question.bytes());
        bytes[QUESTION..QUESTION + 8].copy_from_slice(&self.by.to_be_bytes());
        bytes[QUESTION + 8..].copy_from_slice(&from.octets());
        bytes
    }

    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let question = Question::read(bytes)?;
        let by = u64::from_be_bytes(bytes.get(QUESTION..QUESTION + 8)?.try_into().ok()?);
        let from: [u8; 16] = bytes.get(QUESTION + 8..ANSWER)?.try_into().ok()?;
        Some(Self { question, by, from: Ipv6Addr::from(from).to_canonical() })
    }
}

/// What has arrived of one id.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrived {
    pub(crate) packets: u64,
    pub(crate) last: Instant,
}

#[derive(Clone, Default, Debug)]
struct Record(Arc<Mutex<HashMap<u64, Arrived>>>);

impl Record {
    fn write(&self, id: u64) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = all.entry(id).or_insert(Arrived { packets: 0, last: Instant::now() });
        entry.packets += 1;
        entry.last = Instant::now();
    }
}

/// All servers of a suite, on one thread. They end with it.
#[derive(Debug)]
pub(crate) struct Echo {
    handle: Handle,
    record: Record,
    _stop: oneshot::Sender<()>,
}

impl Echo {
    pub(crate) fn new() -> Result<Self> {
        let (stop, stopped) = oneshot::channel::<()>();
        let (report, made) = mpsc::sync_channel(1);
        thread::spawn(move || {
            let runtime = match Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(report.send(Err(error))),
            };
            let _ = report.send(Ok(runtime.handle().clone()));
            let _ = runtime.block_on(stopped);
        });
        let handle = made.recv().context("the servers' thread ended")??;
        Ok(Self { handle, record: Record::default(), _stop: stop })
    }

    /// Answers on these ports, over TCP and UDP and both families, in a network.
    pub(crate) fn serve(&self, network: &Network, by: u64, ports: &[u16]) -> Result<()> {
        let open = |port: u16| -> io::Result<_> {
            let all = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
            let (tcp, udp) = (TcpListener::bind(all)?, UdpSocket::bind(all)?);
            tcp.set_nonblocking(true)?;
            udp.set_nonblocking(true)?;
            patient(&udp)?;
            Ok((tcp, udp))
        };
        let sockets = network.run(|| {
            ports
                .iter()
                .map(|port| open(*port).with_context(|| format!("cannot serve port {port}")))
                .collect::<Result<Vec<_>>>()
        })?;
        let _runtime = self.handle.enter();
        for (listener, socket) in sockets {
            let (listener, socket) =
                (tokio::net::TcpListener::from_std(listener)?, tokio::net::UdpSocket::from_std(socket)?);
            self.handle.spawn(tcp(listener, by, self.record.clone()));
            self.handle.spawn(udp(socket, by, self.record.clone()));
        }
        Ok(())
    }

    /// What has arrived of an id, anywhere.
    pub(crate) fn arrived(&self, id: u64) -> Option<Arrived> {
        self.record.0.lock().unwrap_or_else(PoisonError::into_inner).get(&id).copied()
    }
}

/// Makes room for some seconds of datagrams, beyond what the machine allows others: who asks and answers may be kept waiting on a busy
/// machine, and what is lost meanwhile for want of room was not lost on its way.
pub(super) fn patient(socket: &UdpSocket) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_recv_buffer_size_force(socket, ROOM)?)
}

async fn udp(socket: tokio::net::UdpSocket, by: u64, record: Record) {
    let mut bytes = [0; QUESTION];
    loop {
        // An error is an ICMP message about an answer that nobody waited for.
        let Ok((length, peer)) = socket.recv_from(&mut bytes).await else { continue };
        let Some(question) = Question::read(&bytes[..length]) else { continue };
        record.write(question.id);
        let answer = Answer { question, by, from: peer.ip().to_canonical() };
        let _ = socket.send_to(&answer.bytes(), peer).await;
    }
}

async fn tcp(listener: tokio::net::TcpListener, by: u64, record: Record) {
    loop {
        // An error is about one connection, and the next may do.
        let Ok((stream, peer)) = listener.accept().await else {
            tokio::task::yield_now().await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        tokio::spawn(talk(stream, peer.ip().to_canonical(), by, record.clone()));
    }
}

async fn talk(mut stream: tokio::net::TcpStream, from: IpAddr, by: u64, record: Record) {
    let mut bytes = [0; QUESTION];
    while stream.read_exact(&mut bytes).await.is_ok() {
        let Some(question) = Question::read(&bytes) else { return };
        record.write(question.id);
        if stream.write_all(&Answer { question, by, from }.bytes()).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_and_answers_are_read_as_they_were_written() {
        let question = Question { id: 7, number: 9 };
        assert_eq!(Question::read(&question.bytes()), Some(question));
        for from in ["10.0.0.1", "fd00::1"] {
            let answer = Answer { question, by: 3, from: from.parse().unwrap() };
            assert_eq!(Answer::read(&answer.bytes()), Some(answer));
        }
        assert_eq!(Question::read(b"something else that is long enough"), None);
    }
}
