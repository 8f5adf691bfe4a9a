//! One question from a network, and what became of it.

use std::fmt;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::echo::{ANSWER, Answer, Question};
use crate::network::Network;

/// A protocol that we send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
}

pub(crate) const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
        })
    }
}

/// What became of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Answered { by: u64, from: IpAddr },
    Silence,
    Failed(String),
}

/// An id that nobody had before.
pub(crate) fn fresh_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Asks once, and waits so long for the answer.
pub(crate) fn ask(network: &Network, protocol: Protocol, to: SocketAddr, id: u64, wait: Duration) -> Seen {
    let asked = network.run(|| match protocol {
        Protocol::Tcp => tcp(to, id, wait),
        Protocol::Udp => udp(to, id, wait),
    });
    match asked {
        Ok(seen) => seen,
        Err(error) => match error.downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
            Some(ErrorKind::TimedOut | ErrorKind::WouldBlock) => Seen::Silence,
            _ => Seen::Failed(format!("{error:#}")),
        },
    }
}

fn tcp(to: SocketAddr, id: u64, wait: Duration) -> Result<Seen> {
    let deadline = Instant::now() + wait;
    let mut stream = TcpStream::connect_timeout(&to, wait)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(left(deadline)))?;
    stream.write_all(&Question { id, number: 0 }.bytes())?;
    let mut bytes = [0; ANSWER];
    // The standard library goes on where the kernel was interrupted.
    stream.read_exact(&mut bytes)?;
    Ok(read(&bytes, id))
}

fn udp(to: SocketAddr, id: u64, wait: Duration) -> Result<Seen> {
    let deadline = Instant::now() + wait;
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    socket.send(&Question { id, number: 0 }.bytes())?;
    let mut bytes = [0; ANSWER];
    loop {
        socket.set_read_timeout(Some(left(deadline)))?;
        match socket.recv(&mut bytes) {
            Ok(length) => return Ok(read(&bytes[..length], id)),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// What is left of a wait; never nothing, which would mean for ever.
fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

fn read(bytes: &[u8], id: u64) -> Seen {
    match Answer::read(bytes).filter(|answer| answer.question.id == id) {
        Some(Answer { by, from, .. }) => Seen::Answered { by, from },
        None => Seen::Failed("answered by somebody else".into()),
    }
}

/// What is to become of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    /// It is answered, by whom and seen to come from where, if that is said.
    Passes { by: Option<u64>, from: Option<IpAddr> },
    /// It does not arrive anywhere.
    Blocked,
}

impl Expect {
    pub(crate) const PASSES: Expect = Expect::Passes { by: None, from: None };

    /// Whether this is what was seen, and whether the question arrived.
    pub(crate) fn holds(self, seen: &Seen, arrived: bool) -> bool {
        match (self, seen) {
            (Expect::Passes { by, from }, Seen::Answered { by: who, from: seen }) => {
                by.is_none_or(|by| by == *who) && from.is_none_or(|from| from == *seen)
            }
            (Expect::Blocked, Seen::Silence) => !arrived,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_blocked_did_not_arrive() {
        let (from, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let answered = Seen::Answered { by: 1, from };
        assert!(Expect::Blocked.holds(&Seen::Silence, false));
        assert!(!Expect::Blocked.holds(&Seen::Silence, true));
        assert!(!Expect::Blocked.holds(&Seen::Failed("refused".into()), false));
        assert!(Expect::PASSES.holds(&answered, true));
        assert!(Expect::Passes { by: Some(1), from: Some(from) }.holds(&answered, true));
        assert!(!Expect::Passes { by: Some(2), from: None }.holds(&answered, true));
        assert!(!Expect::Passes { by: None, from: Some(other) }.holds(&answered, true));
        assert!(!Expect::PASSES.holds(&Seen::Silence, true));
    }
}
