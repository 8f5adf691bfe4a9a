//! Asking the agent.
//!
//! An agent that is not there is told apart from one that is there and does not answer: see [`Unanswered`].

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::error::{CniError, code};
use crate::failpoint;
use crate::protocol::{self, Command, MAX_LINE, Outcome, Request};

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unanswered {
    /// Nobody listens, or who did died before it answered.
    NoAgent(CniError),
    /// Anything else: it takes too long, what it says cannot be read, or the socket may not be used.
    Failed(CniError),
}

impl From<Unanswered> for CniError {
    fn from(unanswered: Unanswered) -> Self {
        match unanswered {
            Unanswered::NoAgent(error) | Unanswered::Failed(error) => error,
        }
    }
}

/// Asks the agent that listens on `socket`, and waits at most `patience` in all.
///
/// An agent that cannot be reached, or that does not answer in time, is a passing condition
/// ([`code::TRY_AGAIN`]): it starts again, and the runtime should then ask again.
pub fn call(socket: &Path, command: Command, patience: Duration) -> Result<Outcome, Unanswered> {
    let line = protocol::encode(&Request { version: command.since(), command });
    if line.len() > MAX_LINE {
        return Err(Unanswered::Failed(CniError::new(
            code::INVALID_CONFIG,
            "the request is too long",
            format!("it has {} bytes and the agent takes {MAX_LINE}", line.len()),
        )));
    }
    // A thread of its own, because no timeout of a socket bounds the whole of connect, write and read.
    let (sender, receiver) = mpsc::channel();
    let path = PathBuf::from(socket);
    thread::spawn(move || {
        // Nobody listens any more after the deadline; that is no error here.
        let _ = sender.send(exchange(&path, &line, patience));
    });
    match receiver.recv_timeout(patience) {
        Ok(Ok(answer)) => protocol::decode_response(&answer).map_err(Unanswered::Failed),
        Ok(Err(error)) if is_gone(&error) => Err(Unanswered::NoAgent(unreachable(socket, &error))),
        Ok(Err(error)) => Err(Unanswered::Failed(unreachable(socket, &error))),
        Err(_) => Err(Unanswered::Failed(unreachable(
            socket,
            &io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no answer within {} s", patience.as_secs_f32()),
            ),
        ))),
    }
}

/// Whether an error says that no process is at the other end (any more).
fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::NotFound
            | Kind::ConnectionRefused
            | Kind::ConnectionReset
            | Kind::BrokenPipe
            | Kind::UnexpectedEof
    )
}

fn exchange(socket: &Path, line: &[u8], patience: Duration) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_write_timeout(Some(patience))?;
    stream.set_read_timeout(Some(patience))?;
    failpoint::reach("connected");
    stream.write_all(line)?;
    failpoint::reach("asked");
    let mut answer = Vec::new();
    BufReader::new(stream.take(MAX_LINE as u64)).read_until(b'\n', &mut answer)?;
    failpoint::reach("answered");
    match answer.last() {
        Some(b'\n') => Ok(answer),
        None => {
            Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection without an answer"))
        }
        Some(_) if answer.len() >= MAX_LINE => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "its answer is too long"))
        }
        Some(_) => {
            Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection in mid-answer"))
        }
    }
}

pub(crate) fn unreachable(socket: &Path, error: &io::Error) -> CniError {
    CniError::new(
        code::TRY_AGAIN,
        format!("moat's agent cannot be reached at {}", socket.display()),
        format!("{error}; is moat-agent running on this node?"),
    )
}
