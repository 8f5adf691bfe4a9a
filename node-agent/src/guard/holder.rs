//! The guard itself: one thread, one descriptor, a handful of connections.

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::fs::{FlockOperation, Mode, flock};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with, sockopt,
};

use super::{GuardError, LOCK, SOCKET, wire};

/// How many may be connected: an agent, its successor, somebody who stops the guard.
const CONNECTIONS: usize = 16;

/// Keeps what it is given, until it is told to end or its socket's file is gone. For a process of its own: says so on
/// standard output when it listens, and then lets go of all that ties it to whoever started it.
pub fn run(run_dir: &Path) -> Result<(), GuardError> {
    let mut guard = Guard::listen(run_dir)?;
    println!("a guard listens at {}", guard.path.display());
    detach().map_err(GuardError::io("part from who started the guard of", run_dir))?;
    while guard.round()? {}
    // Before the lock: who comes next finds either this one or none.
    let _ = fs::remove_file(&guard.path);
    Ok(())
}

/// What ends an agent, a terminal's Ctrl-C or the end of its session, does not end the guard; and nobody who reads what
/// the agent writes waits for the guard's end.
fn detach() -> std::io::Result<()> {
    if let Err(e) = rustix::process::setsid() {
        // Who leads a session or a group already was started by something that sees to that.
        debug_assert_eq!(e, Errno::PERM);
    }
    rustix::thread::set_name(c"moat-guard")?;
    let nothing = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&nothing)?;
    rustix::stdio::dup2_stdout(&nothing)?;
    rustix::stdio::dup2_stderr(&nothing)?;
    Ok(())
}

struct Guard {
    listener: OwnedFd,
    path: PathBuf,
    /// The socket's file, as it was made here.
    file: (u64, u64),
    /// Says when something happens to it.
    changes: OwnedFd,
    _lock: File,
    held: Option<OwnedFd>,
    connections: Vec<Connection>,
}

struct Connection {
    socket: OwnedFd,
    pid: i32,
    /// Whether it has what is held, or gave it.
    leases: bool,
}

impl Guard {
    fn listen(run_dir: &Path) -> Result<Self, GuardError> {
        fs::create_dir_all(run_dir).map_err(GuardError::io("make", run_dir))?;
        let (path, lock_path) = (run_dir.join(SOCKET), run_dir.join(LOCK));
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(GuardError::io("open", &lock_path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Err(GuardError::Running(path)),
            other => other.map_err(|e| GuardError::io("lock", &lock_path)(e.into()))?,
        }
        // Whoever left it there does not live: we have his lock.
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(GuardError::io("replace", &path)(e));
            }
            _ => {}
        }
        let socket = || {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
            // The file must never be there for others, not even for a moment. This process has one thread.
            let mask = rustix::process::umask(Mode::from_raw_mode(0o177));
            let bound = bind(&listener, &SocketAddrUnix::new(&path)?);
            rustix::process::umask(mask);
            bound?;
            listen(&listener, CONNECTIONS as i32)?;
            Ok(listener)
        };
        let listener = socket().map_err(|e: Errno| GuardError::io("listen on", &path)(e.into()))?;
        let watch = || {
            let changes = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
            let gone =
                WatchFlags::DELETE | WatchFlags::MOVED_FROM | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
            inotify::add_watch(&changes, run_dir, gone)?;
            Ok(changes)
        };
        let changes = watch().map_err(|e: Errno| GuardError::io("watch", run_dir)(e.into()))?;
        let file = identity(&path).map_err(GuardError::io("look at", &path))?;
        Ok(Self { listener, path, file, changes, _lock: lock, held: None, connections: Vec::new() })
    }

    /// Waits for something to do, and does it; `false`: to end.
    fn round(&mut self) -> Result<bool, GuardError> {
        let mut fds =
            vec![PollFd::new(&self.listener, PollFlags::IN), PollFd::new(&self.changes, PollFlags::IN)];
        fds.extend(self.connections.iter().map(|c| PollFd::new(&c.socket, PollFlags::IN)));
        match poll(&mut fds, None) {
            Err(Errno::INTR) => return Ok(true),
            other => other.map_err(|e| GuardError::io("wait at", &self.path)(e.into()))?,
        };
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        if ready[1] && !self.reachable() {
            return Ok(false);
        }
        let mut connections = std::mem::take(&mut self.connections).into_iter().zip(&ready[2..]);
        while let Some((mut connection, ready)) = connections.next() {
            if !*ready {
                self.connections.push(connection);
                continue;
            }
            // Who does not speak as we do is as good as gone.
            let Ok(Some(message)) = wire::receive(&connection.socket) else { continue };
            // Somebody else's lease: among those that were seen to, or those that still wait.
            let waiting: Vec<Connection> = connections.by_ref().map(|(c, _)| c).collect();
            let other = self.connections.iter().chain(&waiting).find(|c| c.leases && !gone(c)).map(|c| c.pid);
            let stop = message.text == wire::STOP;
            let said = self.answer(&mut connection, message, other);
            self.connections.extend(waiting);
            if said.is_ok() {
                self.connections.push(connection);
            }
            // What others have to say is still there in the next round.
            return Ok(!stop);
        }
        drop(connections);
        if ready[0] {
            self.accept();
        }
        Ok(true)
    }

    fn answer(
        &mut self,
        from: &mut Connection,
        message: wire::Message,
        other: Option<i32>,
    ) -> std::io::Result<()> {
        match (message.text.as_str(), message.descriptor) {
            (wire::STOP, _) => wire::send(&from.socket, wire::STOPPING, None),
            (wire::TAKE | wire::HOLD, _) if let Some(pid) = other => {
                wire::send(&from.socket, &format!("{} {pid}", wire::BUSY), None)
            }
            (wire::TAKE, _) => {
                from.leases = true;
                match &self.held {
                    Some(held) => wire::send(&from.socket, wire::HELD, Some(held.as_fd())),
                    None => wire::send(&from.socket, wire::EMPTY, None),
                }
            }
            (wire::HOLD, descriptor @ Some(_)) => {
                from.leases = true;
                self.held = descriptor;
                wire::send(&from.socket, wire::KEPT, None)
            }
            _ => wire::send(&from.socket, wire::UNKNOWN, None),
        }
    }

    /// Takes a connection, of nobody but who could as well look into our memory.
    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(socket) = accept_with(&self.listener, flags) else { return };
        let Ok(peer) = sockopt::socket_peercred(&socket) else { return };
        if peer.uid == rustix::process::geteuid() && self.connections.len() < CONNECTIONS {
            let pid = peer.pid.as_raw_nonzero().get();
            self.connections.push(Connection { socket, pid, leases: false });
        }
    }

    /// Whether an agent that looks for us finds us.
    fn reachable(&self) -> bool {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.changes, &mut buffer);
        let mut moved = false;
        while let Ok(event) = events.next() {
            moved |= event.events().intersects(ReadFlags::MOVE_SELF | ReadFlags::DELETE_SELF);
        }
        !moved && identity(&self.path).is_ok_and(|file| file == self.file)
    }
}

fn identity(path: &Path) -> std::io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

/// Whether whoever has this connection has ended, also when nobody has taken note of it yet.
fn gone(connection: &Connection) -> bool {
    let mut fds = [PollFd::new(&connection.socket, PollFlags::empty())];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(PollFlags::HUP)
}
