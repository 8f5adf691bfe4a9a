//! The server over real sockets, with a handler that says who is inside.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt as _;
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
    stream.write_all(&protocol::encode(&Request { version: OLDEST, command: del("gone") })).await.unwrap();
    running.gate.entered.notified().await;
    drop(stream);
    running.stop.send(()).unwrap();
    running.gate.open.add_permits(1);
    running.server.await.unwrap();
    assert_eq!(running.gate.inside.load(Ordering::SeqCst), 0, "it was carried out to its end");
}

#[tokio::test]
async fn no_interface_is_made_for_a_plugin_that_has_gone() {
    let running = start();
    let before = ask(&running.socket, del("gone"));
    running.gate.entered.notified().await;
    let add = Command::Add(Add {
        network: "moat".into(),
        container_id: "gone".into(),
        ifname: "eth0".into(),
        netns: "/var/run/netns/gone".into(),
        pod_namespace: "default".into(),
        pod_name: "gone".into(),
        pod_uid: None,
        host_ports: Vec::new(),
    });
    let mut stream = UnixStream::connect(&running.socket).await.unwrap();
    stream.write_all(&protocol::encode(&Request { version: OLDEST, command: add })).await.unwrap();
    drop(stream);
    // It is its turn only now; and whoever comes later has been served before the server ends.
    running.gate.open.add_permits(2);
    assert_eq!(before.await.unwrap().unwrap(), Outcome::Done);
    assert_eq!(ask(&running.socket, del("other")).await.unwrap().unwrap(), Outcome::Done);
    running.stop.send(()).unwrap();
    running.server.await.unwrap();
    assert_eq!(running.gate.open.available_permits(), 0, "both removals passed, and nobody else");
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
            host_ports: Vec::new(),
        }),
    );
    running.gate.open.add_permits(1);
    assert_eq!(
        refused.await.unwrap().unwrap(),
        Outcome::Refused(CniError::new(code::TRY_AGAIN, "not today", ""))
    );
}
