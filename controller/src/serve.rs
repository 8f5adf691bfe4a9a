//! The stream to each agent.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use moat_api::wire::policies_server::{Policies, PoliciesServer};
use moat_api::wire::{self, from_agent, from_controller};
use moat_api::{Attachments, Hello, LARGEST_FROM_AGENT, LARGEST_FROM_CONTROLLER};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::codec::Streaming;
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use crate::complaints::Complaints;
use crate::guests::Visitor;
use crate::index::{AgentId, Index, Outgoing, common_level};
use crate::listen::Listener;
use crate::metrics::Metrics;
use crate::said::{NAME, SENTENCE, said};
use crate::tls;
use crate::tokens::{Refusal, Token, Tokens};

/// How long an agent may take to say who it is.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long an agent may leave unread what it is told: enough for what is large on a way that is slow. What there is to be told grows
/// meanwhile.
const UNREAD: Duration = Duration::from_secs(5 * 60);

/// Most streams of one connection at once: an agent has one.
const STREAMS: u32 = 8;

/// How much of what it says a connection may send ahead of who reads it, in octets: who is not known yet holds so much memory.
const AHEAD: u32 = 128 << 10;

/// How often a connection is asked whether it lives, and how long it may take to answer.
const ALIVE: Duration = Duration::from_secs(10);

/// How long news may wait that no packet depends on yet.
const UNPRESSING: Duration = Duration::from_secs(1);

/// In how many parts those who wait for it are told within that time.
const PARTS: u32 = 50;

/// What all connections work on. Cheap to clone.
#[derive(Clone)]
pub struct Serve {
    index: Arc<Mutex<Index>>,
    metrics: Arc<Metrics>,
    /// This process, for agents: another one counts its revisions otherwise.
    name: Arc<str>,
    /// Says which node an agent may speak for; `None`: any.
    tokens: Option<Arc<Tokens>>,
    complaints: Arc<Mutex<Complaints>>,
    replicas: Replicas,
    /// How long an agent may leave unread what it is told.
    unread: Duration,
    stop: CancellationToken,
}

/// Where all the replicas of the controller are, for agents that announce to each of them; `None` while that is not known.
pub type Replicas = watch::Receiver<Option<Vec<String>>>;

/// Who asks, before it says so.
struct Asking {
    /// Where it asks from, for people.
    from: String,
    /// What it has shown, and the node that it may therefore speak for.
    shown: Option<(Token, Arc<str>)>,
    /// Its connection, where it is one that ends when it is not served.
    visitor: Option<Visitor>,
}

type Message = Result<wire::FromController, Status>;
type Sender = mpsc::Sender<Message>;
type Room<'t> = mpsc::Permit<'t, Message>;

impl Serve {
    /// Serves what `index` holds.
    pub fn new(
        index: Arc<Mutex<Index>>,
        metrics: Arc<Metrics>,
        name: Arc<str>,
        stop: CancellationToken,
    ) -> Self {
        let (_, replicas) = watch::channel(Some(Vec::new()));
        Self {
            index,
            metrics,
            name,
            tokens: None,
            complaints: Arc::default(),
            replicas,
            unread: UNREAD,
            stop,
        }
    }

    /// Serves those alone who show a token that `tokens` takes, as the node that it is of.
    pub fn checking(self, tokens: Option<Arc<Tokens>>) -> Self {
        Self { tokens, ..self }
    }

    /// Says to agents that these replicas are beside it.
    pub fn beside(self, replicas: Replicas) -> Self {
        Self { replicas, ..self }
    }

    /// Serves whoever connects, until the token that it was made with is cancelled.
    pub async fn run(self, listener: Listener) -> Result<(), tonic::transport::Error> {
        let stop = self.stop.clone();
        let metrics = self.metrics.clone();
        let flush = self.clone();
        let flusher = tokio::spawn(async move { flush.flush().await });
        let service = PoliciesServer::new(self)
            .max_decoding_message_size(LARGEST_FROM_AGENT)
            .max_encoding_message_size(LARGEST_FROM_CONTROLLER);
        let router = Server::builder()
            .http2_keepalive_interval(Some(ALIVE))
            .http2_keepalive_timeout(Some(ALIVE))
            .max_concurrent_streams(STREAMS)
            .initial_connection_window_size(AHEAD)
            .initial_stream_window_size(AHEAD)
            .tcp_nodelay(true)
            .add_service(service);
        let stopped = stop.clone().cancelled_owned();
        let served = match listener {
            Listener::Tcp(listener) => {
                router.serve_with_incoming_shutdown(TcpListenerStream::new(listener), stopped).await
            }
            Listener::Tls(listener, config) => {
                let incoming = tls::accept(listener, config, metrics);
                router.serve_with_incoming_shutdown(incoming, stopped).await
            }
            Listener::Unix(listener) => {
                router.serve_with_incoming_shutdown(UnixListenerStream::new(listener), stopped).await
            }
        };
        flusher.abort();
        served
    }

    async fn flush(&self) {
        let mut ticks = time::interval(UNPRESSING / PARTS);
        ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        for turn in 0u64.. {
            ticks.tick().await;
            self.index().flush(turn, PARTS.into());
        }
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves one agent to its end.
    async fn agent(self, mut asking: Asking, mut from: Streaming<wire::FromAgent>, to: Sender) {
        let refuse = async |reason: &'static str, status: Status| {
            self.refused(&asking.from, reason, &status);
            // Who does not read it has gone.
            let _ = to.send(Err(status)).await;
        };
        let hello = match time::timeout(PATIENCE, self.hello(&mut from)).await {
            Ok(Ok(hello)) => hello,
            Ok(Err(status)) => return refuse("hello", status).await,
            Err(_) => return refuse("hello", Status::deadline_exceeded("no Hello")).await,
        };
        if let Some((_, node)) = &asking.shown
            && *node != hello.node
        {
            let (token, claimed) = (node.to_string(), said(&hello.node, NAME));
            let refusal = Refusal::OtherNode { token, claimed };
            return refuse(refusal.reason(), (&refusal).into()).await;
        }
        let Some(level) = common_level(hello.level) else {
            let status = "this agent speaks no level of the protocol that this controller knows";
            return refuse("level", Status::failed_precondition(status)).await;
        };
        let welcome = wire::Welcome { level, controller: self.name.to_string() };
        if to.send(message(from_controller::What::Welcome(welcome))).await.is_err() {
            return;
        }
        let _served = asking.visitor.take().map(Visitor::serve);
        let wake = Arc::new(Notify::new());
        let id = self.index().join(&hello, wake.clone());
        let only = if hello.announces_only { ", and only announces" } else { "" };
        info!(node = %hello.node, version = hello.version, "an agent is there{only}");
        // Before anything is answered: an answer counts for as much as everybody's is known to.
        let replicas = (level >= 2 && !hello.announces_only).then(|| {
            let mut replicas = self.replicas.clone();
            replicas.mark_changed();
            replicas
        });
        let why = tokio::select! {
            () = self.stop.cancelled() => "the controller stops".to_owned(),
            refusal = self.expired(&asking) => {
                self.metrics.refused(refusal.reason());
                let _ = to.try_send(Err((&refusal).into()));
                refusal.to_string()
            }
            () = self.tell(id, &wake, replicas, &to, level) => {
                "it has gone, does not read, or another one speaks for its node".to_owned()
            }
            heard = self.hear(id, &mut from) => match heard {
                Ok(()) => "it has hung up".to_owned(),
                Err(status) => {
                    let why = status.message().to_owned();
                    let _ = to.try_send(Err(status));
                    why
                }
            },
        };
        self.index().leave(id);
        info!(node = %hello.node, "an agent is not served any more: {why}");
    }

    /// Returns once what the agent has shown is no good any more.
    async fn expired(&self, asking: &Asking) -> Refusal {
        match (&self.tokens, &asking.shown) {
            (Some(tokens), Some((token, _))) => tokens.expired(token).await,
            _ => std::future::pending().await,
        }
    }

    /// Counts it, and says it if it was not just said.
    fn refused(&self, from: &str, reason: &'static str, status: &Status) {
        self.metrics.refused(reason);
        let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(others) = complaints.say(format!("{from} {reason}"), Instant::now()) {
            warn!(from, reason, others, "an agent is refused: {}", status.message());
        }
    }

    async fn hello(&self, from: &mut Streaming<wire::FromAgent>) -> Result<Hello, Status> {
        match from.message().await?.and_then(|message| message.what) {
            Some(from_agent::What::Hello(hello)) => {
                let version = said(&hello.version, NAME);
                let hello = Hello { version, ..Hello::try_from(hello).map_err(invalid)? };
                Ok(hello)
            }
            _ => Err(Status::invalid_argument("the first message is to be a Hello")),
        }
    }

    /// Sends what there is to be sent, for as long as this agent speaks for its node and reads.
    async fn tell(
        &self,
        id: AgentId,
        wake: &Notify,
        mut replicas: Option<Replicas>,
        to: &Sender,
        level: u32,
    ) {
        loop {
            tokio::select! {
                biased;
                endpoints = changed(&mut replicas) => {
                    let Some(room) = self.room(to).await else { return };
                    room.send(message(from_controller::What::Replicas(wire::Replicas { endpoints })));
                    continue;
                }
                () = wake.notified() => {}
            }
            // There is room for one message: an agent that does not read leaves its news where they are, as names.
            let Some(room) = self.room(to).await else { return };
            let taken = self.index().take(id);
            let Some(Outgoing { change, announced }) = taken else {
                room.send(Err(Status::aborted("another agent speaks for this node now")));
                return;
            };
            let mut messages = Vec::new();
            if let Some((revision, change)) = change {
                self.metrics.updates.inc();
                messages.push(from_controller::What::Update(moat_api::update(revision, &change)));
            }
            messages.extend(announced.map(|answer| from_controller::What::Announced(answer.at(level))));
            let mut room = Some(room);
            for what in messages {
                if room.is_none() {
                    room = self.room(to).await;
                }
                let Some(room) = room.take() else { return };
                room.send(message(what));
            }
        }
    }

    /// Room for one message more; `None`: the agent has gone, or reads nothing.
    async fn room<'t>(&self, to: &'t Sender) -> Option<Room<'t>> {
        time::timeout(self.unread, to.reserve()).await.ok()?.ok()
    }

    async fn hear(&self, id: AgentId, from: &mut Streaming<wire::FromAgent>) -> Result<(), Status> {
        while let Some(message) = from.message().await? {
            match message.what {
                Some(from_agent::What::Applied(mut applied)) => {
                    applied.error = said(&applied.error, SENTENCE);
                    self.index().applied(id, &applied);
                }
                Some(from_agent::What::Attachments(attachments)) => {
                    let attachments = Attachments::try_from(attachments).map_err(invalid)?;
                    self.index().attached(id, &attachments);
                }
                Some(from_agent::What::Enforced(mut enforced)) => {
                    enforced.error = said(&enforced.error, SENTENCE);
                    enforced.fingerprint = said(&enforced.fingerprint, NAME);
                    self.index().enforced(id, enforced);
                }
                Some(from_agent::What::Hello(_)) => {
                    return Err(Status::invalid_argument("a second Hello"));
                }
                // A later level's; one that matters is not sent to a controller of this one.
                None => {}
            }
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl Policies for Serve {
    type FollowStream = ReceiverStream<Result<wire::FromController, Status>>;

    async fn follow(
        &self,
        request: Request<Streaming<wire::FromAgent>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let visitor = request.extensions().get::<Visitor>().cloned();
        let address = visitor.as_ref().map(|visitor| visitor.address);
        let address = address.or_else(|| Some(request.remote_addr()?.ip().to_canonical()));
        let from = address.map_or_else(|| "this host".to_owned(), |address| address.to_string());
        let shown = match &self.tokens {
            None => None,
            Some(tokens) => Some(shown(tokens, &request).await.map_err(|refusal| {
                let status = Status::from(&refusal);
                self.refused(&from, refusal.reason(), &status);
                status
            })?),
        };
        let (to, stream) = mpsc::channel(1);
        tokio::spawn(self.clone().agent(Asking { from, shown, visitor }, request.into_inner(), to));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// What comes with the request, and the node that it is of.
async fn shown<T>(tokens: &Tokens, request: &Request<T>) -> Result<(Token, Arc<str>), Refusal> {
    let token = Token::of(request.metadata())?;
    let node = tokens.check(&token).await?;
    Ok((token, node))
}

/// The replicas that there are, when they are others than those that were told; never, where nobody is to be told.
async fn changed(replicas: &mut Option<Replicas>) -> Vec<String> {
    if let Some(replicas) = replicas {
        while replicas.changed().await.is_ok() {
            if let Some(endpoints) = replicas.borrow_and_update().clone() {
                return endpoints;
            }
        }
    }
    // Nobody says any more which there are: then those stay.
    std::future::pending().await
}

fn message(what: from_controller::What) -> Message {
    Ok(wire::FromController { what: Some(what) })
}

fn invalid(error: moat_api::Invalid) -> Status {
    Status::invalid_argument(error.to_string())
}

#[cfg(test)]
mod tests;
