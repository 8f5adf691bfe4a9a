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
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use moat_cni::error::{CniError, code};
use moat_cni::protocol::{
    self, Add, Attached, Check, Command, Del, Gc, MAX_LINE, OLDEST, Outcome, Request, Response, Status,
};
use moat_cni::stream::Event;
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
        let failed = |source| ListenError::Io { path: path.to_owned(), source };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(ListenError::InUse(path.to_owned()));
        }
        // Made under another name, closed to others, and then moved: at no moment is there a socket of that
        // name which others could connect to, or none where there was one.
        let new = path.with_extension("new");
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&new).map_err(failed)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        fs::rename(&new, path).map_err(failed)?;
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
                        None => self.execute(request.command).await,
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

    async fn execute(&self, command: Command) -> Outcome {
        let done = |result: Result<(), CniError>| match result {
            Ok(()) => Outcome::Done,
            Err(refusal) => Outcome::Refused(refusal),
        };
        match command {
            Command::Add(add) => {
                let _no_gc = self.gc.read().await;
                let _turn = self.locks.lock(&add.container_id, &add.ifname).await;
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
mod tests {
    use std::io::{Read, Write};
    use std::sync::atomic::{AtomicUsize, Ordering};

    use moat_cni::protocol::{Drops, Flows};
    use moat_cni::stream::{Events, StreamError};
    use tokio::sync::{Notify, oneshot};

    use super::*;

    /// Counts how many requests are inside at once, and holds them until it is told to let go.
    struct Gate {
        inside: AtomicUsize,
        most: AtomicUsize,
        entered: Notify,
        open: Semaphore,
        events: broadcast::Sender<Event>,
    }

    impl Gate {
        async fn pass(&self) -> Result<(), CniError> {
            let now = self.inside.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(now, Ordering::SeqCst);
            self.entered.notify_one();
            self.open.acquire().await.unwrap().forget();
            self.inside.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        }
    }

    impl Handler for Gate {
        async fn add(&self, _: Add) -> Result<Attached, CniError> {
            self.pass().await?;
            Err(CniError::new(code::TRY_AGAIN, "not today", ""))
        }
        async fn del(&self, _: Del) -> Result<(), CniError> {
            self.pass().await
        }
        async fn check(&self, _: Check) -> Result<(), CniError> {
            self.pass().await
        }
        async fn gc(&self, _: Gc) -> Result<(), CniError> {
            self.pass().await
        }
        async fn status(&self, _: Status) -> Result<(), CniError> {
            Ok(())
        }
        fn drops(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
            (vec![Event::Missed(1)], self.events.subscribe())
        }
        fn flows(self: &Arc<Self>) -> mpsc::Receiver<Event> {
            let (sender, receiver) = mpsc::channel(9);
            (0..8).for_each(|n| sender.try_send(Event::Missed(n)).unwrap());
            sender.try_send(Event::End).unwrap();
            receiver
        }
    }

    struct Running {
        _folder: tempfile::TempDir,
        socket: PathBuf,
        gate: Arc<Gate>,
        stop: oneshot::Sender<()>,
        server: tokio::task::JoinHandle<()>,
    }

    fn start() -> Running {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("run/agent.sock");
        let server = CniServer::bind(&socket).unwrap();
        let gate = Arc::new(Gate {
            inside: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            entered: Notify::new(),
            open: Semaphore::new(0),
            events: broadcast::Sender::new(4),
        });
        let (stop, stopped) = oneshot::channel::<()>();
        let handler = Arc::clone(&gate);
        let server = tokio::spawn(server.serve(handler, async {
            let _ = stopped.await;
        }));
        Running { _folder: folder, socket, gate, stop, server }
    }

    fn del(container: &str) -> Command {
        Command::Del(Del { network: "moat".into(), container_id: container.into(), ifname: "eth0".into() })
    }

    fn ask(socket: &Path, command: Command) -> tokio::task::JoinHandle<Result<Outcome, CniError>> {
        let socket = socket.to_owned();
        tokio::task::spawn_blocking(move || {
            moat_cni::client::call(&socket, command, Duration::from_secs(20)).map_err(CniError::from)
        })
    }

    fn raw(socket: &Path, bytes: &'static [u8]) -> tokio::task::JoinHandle<String> {
        let socket = socket.to_owned();
        tokio::task::spawn_blocking(move || {
            let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
            stream.write_all(bytes).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        })
    }

    #[tokio::test]
    async fn only_the_owner_may_connect_and_only_one_agent_may_listen() {
        let running = start();
        let mode = fs::metadata(&running.socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(CniServer::bind(&running.socket), Err(ListenError::InUse(_))));
        running.stop.send(()).unwrap();
        running.server.await.unwrap();
        assert!(!running.socket.exists());
    }

    #[tokio::test]
    async fn the_socket_of_a_dead_agent_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent.sock");
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        assert!(socket.exists());
        CniServer::bind(&socket).unwrap();
    }

    #[tokio::test]
    async fn one_attachment_is_worked_on_by_one_request_at_a_time() {
        let running = start();
        let requests: Vec<_> = (0..3).map(|_| ask(&running.socket, del("same"))).collect();
        running.gate.open.add_permits(3);
        for request in requests {
            assert_eq!(request.await.unwrap().unwrap(), Outcome::Done);
        }
        assert_eq!(running.gate.most.load(Ordering::SeqCst), 1);

        let requests = [ask(&running.socket, del("one")), ask(&running.socket, del("other"))];
        while running.gate.inside.load(Ordering::SeqCst) < 2 {
            running.gate.entered.notified().await;
        }
        // GC waits for both, and they do not wait for it.
        let gc = ask(&running.socket, Command::Gc(Gc { network: "moat".into(), valid: Vec::new() }));
        running.gate.open.add_permits(2);
        for request in requests {
            assert_eq!(request.await.unwrap().unwrap(), Outcome::Done);
        }
        running.gate.open.add_permits(1);
        assert_eq!(gc.await.unwrap().unwrap(), Outcome::Done);
        assert_eq!(running.gate.most.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_request_goes_on_when_its_plugin_is_gone_and_when_the_server_stops() {
        let running = start();
        let mut stream = UnixStream::connect(&running.socket).await.unwrap();
        stream
            .write_all(&protocol::encode(&Request { version: OLDEST, command: del("gone") }))
            .await
            .unwrap();
        running.gate.entered.notified().await;
        drop(stream);
        running.stop.send(()).unwrap();
        running.gate.open.add_permits(1);
        running.server.await.unwrap();
        assert_eq!(running.gate.inside.load(Ordering::SeqCst), 0, "it was carried out to its end");
    }

    fn look(socket: &Path, command: Command) -> Result<Events, StreamError> {
        Events::open(socket, command)
    }

    #[tokio::test]
    async fn streams_end_with_who_looks_and_with_the_agent_and_hold_nobody_up() {
        let running = start();
        let socket = running.socket.clone();
        let flows = tokio::task::spawn_blocking(move || {
            look(&socket, Command::Flows(Flows {})).unwrap().map(Result::unwrap).collect::<Vec<_>>()
        });
        assert_eq!(flows.await.unwrap(), (0..8).map(Event::Missed).collect::<Vec<_>>());

        let follow = || Command::Drops(Drops { follow: true });
        let (socket, (told, heard)) = (running.socket.clone(), std::sync::mpsc::channel());
        let followers = tokio::task::spawn_blocking(move || {
            let mut all: Vec<Events> = (0..STREAMS).map(|_| look(&socket, follow()).unwrap()).collect();
            let first: Vec<_> = all.iter_mut().map(|events| events.next().unwrap().unwrap()).collect();
            assert!(first.iter().all(|event| *event == Event::Missed(1)));
            let more = look(&socket, follow()).unwrap_err().to_string();
            assert!(more.contains("16 streams already"), "{more}");
            // One goes, and there is room for another.
            drop(all.pop());
            let mut last = loop {
                if let Ok(events) = look(&socket, follow()) {
                    break events;
                }
            };
            assert_eq!(last.next().unwrap().unwrap(), Event::Missed(1));
            told.send(()).unwrap();
            assert_eq!(last.next().unwrap().unwrap(), Event::Missed(2), "what came later");
            told.send(()).unwrap();
            assert!(last.next().is_none(), "it ends well");
        });
        let heard = tokio::task::spawn_blocking(move || {
            heard.recv().unwrap();
            heard
        });
        let heard = heard.await.unwrap();
        running.gate.events.send(Event::Missed(2)).unwrap();
        tokio::task::spawn_blocking(move || heard.recv().unwrap()).await.unwrap();
        let status = ask(&running.socket, Command::Status(Status { network: "moat".into() }));
        assert_eq!(status.await.unwrap().unwrap(), Outcome::Done);
        running.stop.send(()).unwrap();
        running.server.await.unwrap();
        followers.await.unwrap();
    }

    #[tokio::test]
    async fn what_is_no_request_is_refused() {
        let running = start();
        let answer = raw(&running.socket, b"{\"version\":9}\n").await.unwrap();
        assert!(answer.contains("\"code\":100") && answer.contains("the agent is the older"), "{answer}");
        let answer = raw(&running.socket, b"GET / HTTP/1.1\n").await.unwrap();
        assert!(answer.contains("\"code\":6"), "{answer}");
        static LONG: [u8; MAX_LINE] = [b' '; MAX_LINE];
        let answer = raw(&running.socket, &LONG).await.unwrap();
        assert!(answer.contains("too long"), "{answer}");
        let refused = ask(
            &running.socket,
            Command::Add(Add {
                network: "moat".into(),
                container_id: "c".into(),
                ifname: "eth0".into(),
                netns: "/run/netns/x".into(),
                pod_namespace: "default".into(),
                pod_name: "web".into(),
                pod_uid: None,
            }),
        );
        running.gate.open.add_permits(1);
        assert_eq!(
            refused.await.unwrap().unwrap(),
            Outcome::Refused(CniError::new(code::TRY_AGAIN, "not today", ""))
        );
    }
}
