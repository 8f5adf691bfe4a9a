//! The agent's side: a connection to the guard, which is started where there is none.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::{GuardError, SOCKET, wire};

/// How long the guard may take for an answer: it has nothing else to do.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where the guard is, and how one is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// The agent's run folder.
    pub run_dir: PathBuf,
    /// `moat-agent`: it is started as `moat-agent guard --run-dir …`. `None`: somebody else starts it, and it is waited for.
    pub program: Option<PathBuf>,
}

/// A connection to the guard. While it is open nobody else gets the descriptor.
#[derive(Debug)]
pub struct Lease {
    socket: OwnedFd,
    path: PathBuf,
}

/// What the guard gave.
#[derive(Debug)]
pub struct Taken {
    /// The right to what it keeps.
    pub lease: Lease,
    /// What it keeps.
    pub descriptor: Option<OwnedFd>,
    /// The guard, if it was started here.
    pub started: Option<Child>,
}

impl Launch {
    /// Takes the lease and what the guard keeps; starts a guard if there is none.
    pub fn take(&self) -> Result<Taken, GuardError> {
        let (socket, started) = match connected(&self.socket())? {
            Some(socket) => (socket, None),
            None => {
                let program = self.program.as_deref().ok_or_else(|| GuardError::Absent(self.socket()))?;
                let child = self.start(program)?;
                let socket = connected(&self.socket())?
                    .ok_or(io::Error::from(Errno::CONNREFUSED))
                    .map_err(GuardError::io("connect to", &self.socket()))?;
                (socket, Some(child))
            }
        };
        let lease = Lease { socket, path: self.socket() };
        let message = lease.ask(wire::TAKE, None)?;
        match (message.text.as_str(), message.descriptor) {
            (wire::HELD, descriptor @ Some(_)) => Ok(Taken { lease, descriptor, started }),
            (wire::EMPTY, _) => Ok(Taken { lease, descriptor: None, started }),
            (other, _) => Err(answer(other)),
        }
    }

    fn socket(&self) -> PathBuf {
        self.run_dir.join(SOCKET)
    }

    /// Starts a guard, and waits until it listens or has ended. It keeps nothing of ours open: neither the folder that we
    /// were started in, nor who reads what we write.
    fn start(&self, program: &Path) -> Result<Child, GuardError> {
        let failed = |said, source| GuardError::Start { program: program.to_owned(), said, source };
        let run_dir = std::path::absolute(&self.run_dir).map_err(|e| failed(String::new(), e))?;
        let mut child = Command::new(program)
            .arg0("moat-agent")
            .arg("guard")
            .arg("--run-dir")
            .arg(run_dir)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| failed(String::new(), e))?;
        // It lets go of both when it listens.
        let (mut listens, mut said) = (String::new(), String::new());
        if let Some(mut out) = child.stdout.take() {
            out.read_to_string(&mut listens).map_err(|e| failed(String::new(), e))?;
        }
        if let Some(mut errors) = child.stderr.take() {
            errors.read_to_string(&mut said).map_err(|e| failed(String::new(), e))?;
        }
        if listens.is_empty() {
            let status = child.wait().map_err(|e| failed(String::new(), e))?;
            // Somebody else may have started one in the same moment; then that one is as good.
            if connected(&self.socket())?.is_none() {
                return Err(failed(format!(": {}", said.trim_end()), io::Error::other(status.to_string())));
            }
        }
        Ok(child)
    }
}

impl Lease {
    /// Has the guard keep a descriptor, in place of what it kept.
    pub fn hold(&self, descriptor: BorrowedFd<'_>) -> Result<(), GuardError> {
        match self.ask(wire::HOLD, Some(descriptor))?.text.as_str() {
            wire::KEPT => Ok(()),
            other => Err(answer(other)),
        }
    }

    fn ask(&self, text: &str, descriptor: Option<BorrowedFd<'_>>) -> Result<wire::Message, GuardError> {
        wire::send(&self.socket, text, descriptor).map_err(GuardError::io("write to", &self.path))?;
        wire::receive(&self.socket)
            .and_then(|message| message.ok_or_else(|| Errno::CONNRESET.into()))
            .map_err(GuardError::io("read from", &self.path))
    }
}

impl AsFd for Lease {
    /// Becomes readable when the guard is gone.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Ends the guard of a run folder; `false`: there is none. Without it, tables whose agent has ended are as any others.
pub fn stop(run_dir: &Path) -> Result<bool, GuardError> {
    let path = run_dir.join(SOCKET);
    let Some(socket) = connected(&path)? else { return Ok(false) };
    let lease = Lease { socket, path };
    match lease.ask(wire::STOP, None)?.text.as_str() {
        wire::STOPPING => {}
        other => return Err(answer(other)),
    }
    // It has let go when it is gone.
    wire::receive(&lease.socket).map_err(GuardError::io("read from", &lease.path))?;
    Ok(true)
}

fn answer(text: &str) -> GuardError {
    match text.strip_prefix(wire::BUSY).and_then(|pid| pid.trim().parse().ok()) {
        Some(pid) => GuardError::Busy { pid },
        None => GuardError::Answer(text.to_owned()),
    }
}

/// A connection, if somebody listens.
pub(super) fn connected(path: &Path) -> Result<Option<OwnedFd>, GuardError> {
    let result = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .and_then(|socket| {
            for side in [Timeout::Recv, Timeout::Send] {
                set_socket_timeout(&socket, side, Some(PATIENCE))?;
            }
            connect(&socket, &SocketAddrUnix::new(path)?).map(|()| socket)
        });
    match result {
        Ok(socket) => Ok(Some(socket)),
        Err(Errno::NOENT | Errno::CONNREFUSED) => Ok(None),
        Err(e) => Err(GuardError::io("connect to", path)(e.into())),
    }
}
