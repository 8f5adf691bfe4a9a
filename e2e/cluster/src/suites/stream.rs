//! A connection that is there all the time: a question every few milliseconds, over one TCP connection or one UDP flow, and which of
//! them were answered.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::echo::{ANSWER, Answer, Question, patient};
use super::probe::{Protocol, fresh_id};
use crate::network::Network;

/// Between two questions.
const PERIOD: Duration = Duration::from_millis(5);
/// Before this, an answer is not late.
const IN_FLIGHT: Duration = Duration::from_millis(500);

/// A connection that is kept busy, until it is dropped.
#[derive(Debug)]
pub(crate) struct Stream {
    /// What to call it.
    pub(crate) name: String,
    /// Under which its questions are recorded.
    pub(crate) id: u64,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    log: Mutex<Log>,
}

/// What was sent, by number, and what came back.
#[derive(Debug, Default)]
struct Log {
    sent: Vec<Instant>,
    answered: Vec<bool>,
    last: Option<Instant>,
    error: Option<String>,
}

impl Log {
    /// How many questions, of those from this one on that are old enough, have not been answered.
    fn lost(&self, from: usize, now: Instant) -> usize {
        let old = |at: &&Instant| now.duration_since(**at) > IN_FLIGHT;
        let until = self.sent.iter().take_while(old).count();
        self.answered.get(from..until).unwrap_or_default().iter().filter(|answered| !**answered).count()
    }
}

impl Stream {
    /// Connects, and goes on asking.
    pub(crate) fn start(name: String, network: &Network, protocol: Protocol, to: SocketAddr) -> Result<Self> {
        let id = fresh_id();
        let shared = Arc::new(Shared::default());
        let own = shared.clone();
        let wire = network.run(|| Wire::open(protocol, to)).with_context(|| format!("cannot open {name}"))?;
        let thread = thread::spawn(move || {
            if let Err(error) = talk(wire, id, &own) {
                own.log.lock().unwrap_or_else(PoisonError::into_inner).error = Some(error.to_string());
            }
        });
        Ok(Self { name, id, shared, thread: Some(thread) })
    }

    fn log<T>(&self, read: impl FnOnce(&Log) -> T) -> T {
        read(&self.shared.log.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The number of the next question.
    pub(crate) fn next(&self) -> usize {
        self.log(|log| log.sent.len())
    }

    /// Whether some question from this one on has been answered.
    pub(crate) fn answered_since(&self, number: usize) -> bool {
        self.log(|log| log.answered.get(number..).is_some_and(|rest| rest.contains(&true)))
    }

    /// Whether nothing has come back for this long.
    pub(crate) fn silent_for(&self, long: Duration) -> bool {
        self.log(|log| log.last.is_none_or(|last| last.elapsed() > long))
    }

    /// What is wrong with a connection that nobody was to touch since question `number`.
    pub(crate) fn broken_since(&self, number: usize) -> Option<String> {
        self.log(|log| {
            let lost = log.lost(number, Instant::now());
            match &log.error {
                Some(error) => Some(format!("{}: {error}", self.name)),
                None if lost > 0 => Some(format!("{}: {lost} questions were not answered", self.name)),
                None => None,
            }
        })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // What it ran into is in the log.
            let _ = thread.join();
        }
    }
}

/// The two ways to ask.
enum Wire {
    Udp(UdpSocket),
    /// With what is still to be written, and what was read of the next answer.
    Tcp(TcpStream, Vec<u8>, Vec<u8>),
}

impl Wire {
    fn open(protocol: Protocol, to: SocketAddr) -> Result<Self> {
        Ok(match protocol {
            Protocol::Udp => {
                let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
                let socket = UdpSocket::bind((any, 0))?;
                socket.connect(to)?;
                socket.set_nonblocking(true)?;
                patient(&socket)?;
                Wire::Udp(socket)
            }
            Protocol::Tcp => {
                let stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                Wire::Tcp(stream, Vec::new(), Vec::new())
            }
        })
    }

    /// Whether the question is on its way; not when earlier ones still wait to be sent.
    fn send(&mut self, question: Question) -> std::io::Result<bool> {
        match self {
            Wire::Udp(socket) => match socket.send(&question.bytes()) {
                Ok(_) => Ok(true),
                Err(error) if passing(&error) => Ok(false),
                Err(error) => Err(error),
            },
            Wire::Tcp(stream, unsent, _) => {
                let free = unsent.is_empty();
                if free {
                    unsent.extend(question.bytes());
                }
                match stream.write(unsent) {
                    Ok(written) => drop(unsent.drain(..written)),
                    Err(error) if passing(&error) => {}
                    Err(error) => return Err(error),
                }
                Ok(free)
            }
        }
    }

    /// The answers that have come.
    fn receive(&mut self) -> std::io::Result<Vec<Answer>> {
        let mut answers = Vec::new();
        let mut bytes = [0; 4096];
        loop {
            let received = match self {
                Wire::Udp(socket) => socket.recv(&mut bytes),
                Wire::Tcp(stream, _, _) => stream.read(&mut bytes),
            };
            let length = match received {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(answers),
                Err(error) if passing(&error) => continue,
                Err(error) => return Err(error),
            };
            match self {
                Wire::Udp(_) => answers.extend(Answer::read(&bytes[..length])),
                Wire::Tcp(..) if length == 0 => return Err(ErrorKind::ConnectionReset.into()),
                Wire::Tcp(_, _, unread) => {
                    unread.extend(&bytes[..length]);
                    while unread.len() >= ANSWER {
                        answers.extend(Answer::read(unread));
                        unread.drain(..ANSWER);
                    }
                }
            }
        }
    }
}

/// Whether trying again may do: nothing to read or no room, a signal, or an ICMP message about an earlier datagram.
fn passing(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionRefused)
}

fn talk(mut wire: Wire, id: u64, shared: &Shared) -> std::io::Result<()> {
    let log = || shared.log.lock().unwrap_or_else(PoisonError::into_inner);
    let mut next = Instant::now();
    while !shared.stop.load(Ordering::Relaxed) {
        let number = log().sent.len();
        let sent = wire.send(Question { id, number: number as u64 })?;
        let answers = wire.receive()?;
        let mut log = log();
        if sent {
            log.sent.push(Instant::now());
            log.answered.push(false);
        }
        for answer in answers {
            let number = usize::try_from(answer.question.number).unwrap_or(usize::MAX);
            if let Some(answered) = log.answered.get_mut(number) {
                *answered = true;
                log.last = Some(Instant::now());
            }
        }
        drop(log);
        next += PERIOD;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_in_flight_are_not_lost_yet() {
        let now = Instant::now() + Duration::from_secs(10);
        let ago = |seconds: u64| now - Duration::from_secs(seconds);
        let log = Log {
            sent: vec![ago(4), ago(3), ago(2), now],
            answered: vec![false, true, false, false],
            ..Log::default()
        };
        assert_eq!(log.lost(0, now), 2);
        assert_eq!(log.lost(1, now), 1);
        assert_eq!(log.lost(3, now), 0);
        assert_eq!(log.lost(9, now), 0);
    }
}
