//! The CNI server: takes the plugin's requests from a Unix socket and hands them to a [`Handler`].
//!
//! One request a connection ([`moat_cni::protocol`]). People ask over the same socket for streams of events, which wait for
//! nothing and hold nothing up.
//! A request that was read is carried out to its end, whether
//! or not the plugin still waits: half an attachment is nothing that anybody could want. Requests about
//! one attachment are carried out one after the other, so a DEL that follows an ADD which its runtime gave up
//! on finds what that ADD made. GC has the node for itself.

use std::collections::HashMap;
use std::fs;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use moat_cni::error::{CniError, code};
use moat_cni::protocol::{
    self, Add, Attached, Check, Command, Del, Gc, MAX_LINE, OLDEST, Outcome, Request, Response, Status,
};
use moat_cni::stream::Event;
use moat_daemon::socket::{self, BindError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, RwLock, Semaphore, broadcast, mpsc};
use tokio::task::JoinSet;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::streams::Stream;

/// How long a plugin may take to send its line, and to take the answer. It does both at once, so this is for broken ones.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many connections are served at once; more wait in the socket's queue.
const CONNECTIONS: usize = 256;

/// How many streams there may be at once, apart from these.
const STREAMS: usize = 16;

/// Who carries the requests out.
///
/// What [`Handler::add`] answers goes to the pod's runtime, which then starts the pod: it must return only when the pod's
/// policy is in force. A refusal must leave nothing behind.
pub trait Handler: Send + Sync + 'static {
    /// Give a pod an interface.
    fn add(&self, request: Add) -> impl Future<Output = Result<Attached, CniError>> + Send;
    /// Take a pod's interface away; fine where there is none.
    fn del(&self, request: Del) -> impl Future<Output = Result<(), CniError>> + Send;
    /// Is a pod's interface as [`Handler::add`] left it?
    fn check(&self, request: Check) -> impl Future<Output = Result<(), CniError>> + Send;
    /// Remove the attachments that are not in the list.
    fn gc(&self, request: Gc) -> impl Future<Output = Result<(), CniError>> + Send;
    /// Could [`Handler::add`] be served now?
    fn status(&self, request: Status) -> impl Future<Output = Result<(), CniError>> + Send;
    /// What was dropped lately, and what is dropped from now on. Nothing, where there is no drop log.
    fn drops(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        (Vec::new(), broadcast::Sender::new(1).subscribe())
    }
    /// The live flows, and [`Event::End`]. None, where nobody looks after them.
    fn flows(self: &Arc<Self>) -> mpsc::Receiver<Event> {
        let (sender, receiver) = mpsc::channel(1);
        // There is room for one.
        let _ = sender.try_send(Event::End);
        receiver
    }
}

/// Why the server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another agent serves the socket.
    #[error("another agent is listening on {0}; stop it first, or give this one another --run-dir")]
    InUse(PathBuf),
    /// The socket cannot be made.
    #[error("cannot listen on {path}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A socket that is listened on, and that nobody but its owner may connect to (mode 0600).
#[derive(Debug)]
pub struct CniServer {
    listener: UnixListener,
    path: PathBuf,
}

impl CniServer {
    /// Listens on `path`, in place of a socket that a dead agent left there. Requests wait until [`CniServer::serve`].
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        let listener = socket::bind(path).map_err(|error| match error {
            BindError::InUse => ListenError::InUse(path.to_owned()),
            BindError::Io(source) => ListenError::Io { path: path.to_owned(), source },
        })?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Serves requests with `handler` until `shutdown` resolves; then finishes those that were read and returns.
    pub async fn serve<H: Handler>(self, handler: Arc<H>, shutdown: impl Future<Output = ()>) {
        let stop = CancellationToken::new();
        let streams = Arc::new(Semaphore::new(STREAMS));
        let gc = RwLock::new(());
        let state = Arc::new(State { handler, locks: Locks::default(), gc, streams, stop: stop.clone() });
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = JoinSet::new();
        tokio::pin!(shutdown);
        loop {
            while connections.try_join_next().is_some() {}
            let accept = async {
                let slot = Arc::clone(&slots).acquire_owned().await;
                (slot, self.listener.accept().await)
            };
            tokio::select! {
                () = &mut shutdown => break,
                (slot, accepted) = accept => match accepted {
                    Ok((stream, _)) => {
                        let state = Arc::clone(&state);
                        connections.spawn(async move { state.connection(stream, slot).await });
                    }
                    Err(error) => {
                        // Out of descriptors, as a rule: the next try would fail at once as well.
                        warn!(%error, "cannot accept a CNI request");
                        time::sleep(Duration::from_millis(100)).await;
                    }
                },
            }
        }
        // Nobody is served any more: a plugin that comes now must see that at once. A successor may
        // have taken the name over already, and then it is not ours to remove.
        drop(self.listener);
        stop.cancel();
        if std::os::unix::net::UnixStream::connect(&self.path).is_err() {
            let _ = fs::remove_file(&self.path);
        }
        while connections.join_next().await.is_some() {}
    }
}

struct State<H> {
    handler: Arc<H>,
    locks: Locks,
    /// GC holds it for writing: the list of valid attachments knows of none that is made meanwhile.
    gc: RwLock<()>,
    streams: Arc<Semaphore>,
    /// Ends the streams.
    stop: CancellationToken,
}

impl<H: Handler> State<H> {
    async fn connection<S>(&self, stream: UnixStream, slot: S) {
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        let mut limited = (&mut stream).take(MAX_LINE as u64);
        let read = limited.read_until(b'\n', &mut line);
        let mut version = OLDEST;
        let outcome = match time::timeout(PATIENCE, read).await {
            Ok(Ok(0)) => return,
            Ok(Ok(_)) if line.last() == Some(&b'\n') => match protocol::decode_request(&line) {
                Ok(request) => {
                    version = request.version;
                    match self.stream_of(&request) {
                        None => self.execute(request.command, stream.get_ref()).await,
                        Some(Ok(place)) => {
                            drop(slot);
                            return self.stream(stream.into_inner(), request, place).await;
                        }
                        Some(Err(refusal)) => Outcome::Refused(refusal),
                    }
                }
                Err(refusal) => Outcome::Refused(refusal),
            },
            Ok(Ok(_)) if line.len() >= MAX_LINE => Outcome::Refused(CniError::new(
                code::DECODING_FAILURE,
                "the request is too long",
                format!("the agent takes {MAX_LINE} bytes"),
            )),
            Ok(Ok(_)) => return debug!("a CNI client went away in mid-request"),
            Ok(Err(error)) => return debug!(%error, "a CNI request cannot be read"),
            Err(_) => Outcome::Refused(CniError::new(
                code::IO_FAILURE,
                "no request came",
                format!("the agent waited {} s for the line's end", PATIENCE.as_secs()),
            )),
        };
        let answer = protocol::encode(&Response { version, outcome });
        match time::timeout(PATIENCE, stream.get_mut().write_all(&answer)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "a CNI client did not wait for its answer"),
            Err(_) => debug!("a CNI client did not take its answer"),
        }
    }

    /// The place of a stream, if a stream is asked for.
    fn stream_of(&self, request: &Request) -> Option<Result<OwnedSemaphorePermit, CniError>> {
        if !matches!(request.command, Command::Drops(_) | Command::Flows(_)) {
            return None;
        }
        let taken = |_| {
            let more = "end one of them (moat drops --follow) and try again";
            CniError::new(code::TRY_AGAIN, format!("there are {STREAMS} streams already"), more)
        };
        Some(Arc::clone(&self.streams).try_acquire_owned().map_err(taken))
    }

    async fn stream(&self, to: UnixStream, request: Request, _place: OwnedSemaphorePermit) {
        let stream = Stream::begin(to, request.version);
        let sent = match request.command {
            Command::Drops(drops) => {
                let (there, events) = self.handler.drops();
                stream.follow(there, drops.follow.then_some(events), &self.stop).await
            }
            _ => stream.all(self.handler.flows()).await,
        };
        if let Err(error) = sent {
            debug!(%error, "who looked at a stream has gone");
        }
    }

    /// Does what `client` asks for.
    async fn execute(&self, command: Command, client: &UnixStream) -> Outcome {
        let done = |result: Result<(), CniError>| match result {
            Ok(()) => Outcome::Done,
            Err(refusal) => Outcome::Refused(refusal),
        };
        match command {
            Command::Add(add) => {
                let _no_gc = self.gc.read().await;
                let _turn = self.locks.lock(&add.container_id, &add.ifname).await;
                // Its DEL may have had its turn already, and then nobody would ever remove what is made now.
                if has_gone(client) {
                    debug!(container = add.container_id, "whoever asked for an interface has gone");
                    let again = "ask again; nothing was made";
                    return Outcome::Refused(CniError::new(code::TRY_AGAIN, "the plugin went away", again));
                }
                match self.handler.add(add).await {
                    Ok(attached) => Outcome::Attached(attached),
                    Err(refusal) => Outcome::Refused(refusal),
                }
            }
            Command::Del(del) => {
                let _no_gc = self.gc.read().await;
                let _turn = self.locks.lock(&del.container_id, &del.ifname).await;
                done(self.handler.del(del).await)
            }
            Command::Check(check) => {
                let _no_gc = self.gc.read().await;
                let _turn = self.locks.lock(&check.container_id, &check.ifname).await;
                done(self.handler.check(check).await)
            }
            Command::Gc(gc) => {
                let _alone = self.gc.write().await;
                done(self.handler.gc(gc).await)
            }
            Command::Status(status) => done(self.handler.status(status).await),
            // These are streams, and never come here.
            Command::Drops(_) | Command::Flows(_) => Outcome::Done,
        }
    }
}

/// Whether the other end of a connection is closed. Asks the kernel, which knows it from the moment on at which a process dies.
fn has_gone(client: &UnixStream) -> bool {
    let mut asked = [PollFd::new(client, PollFlags::empty())];
    poll(&mut asked, Some(&Timespec::default())).is_ok() && asked[0].revents().contains(PollFlags::HUP)
}

type Turn = tokio::sync::Mutex<()>;

/// One lock for each attachment that is being worked on.
#[derive(Default)]
struct Locks(Mutex<HashMap<(String, String), Weak<Turn>>>);

impl Locks {
    async fn lock(&self, container_id: &str, ifname: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // As many are kept as there are requests under way.
            locks.retain(|_, turn| turn.strong_count() > 0);
            let weak = locks.entry((container_id.to_owned(), ifname.to_owned())).or_default();
            weak.upgrade().unwrap_or_else(|| {
                let turn = Arc::new(Turn::default());
                *weak = Arc::downgrade(&turn);
                turn
            })
        };
        turn.lock_owned().await
    }
}

#[cfg(test)]
mod tests;
