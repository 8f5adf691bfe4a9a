//! One stream to a controller: opened, greeted, and written to.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use moat_api::wire::policies_client::PoliciesClient;
use moat_api::wire::{self, from_agent, from_controller};
use moat_api::{Hello, Invalid, LARGEST_FROM_CONTROLLER, LEVEL, Told};
use tokio::sync::mpsc;
use tokio::time;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::Streaming;

use super::connect::{ConnectError, Trust};
use super::endpoint::{Endpoint, EndpointError};
use super::outbox::{Ear, Outbox};

/// How long a controller may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the controller says: {}", .0.message())]
    Status(tonic::Status),
    #[error("the controller has hung up")]
    HungUp,
    #[error("the controller does not answer")]
    Silent,
    #[error("the controller's first message is no Welcome")]
    NoWelcome,
    #[error("the controller says something that cannot be")]
    Invalid(#[source] Invalid),
    #[error("the controller says something that cannot be: {0}")]
    Dangling(String),
    #[error("the controller names a replica at {0:?}, and nothing can be said there")]
    Replica(String, #[source] EndpointError),
    #[error("nobody listens to the controller any more")]
    Stopped,
}

impl From<tonic::Status> for Lost {
    fn from(status: tonic::Status) -> Self {
        Lost::Status(status)
    }
}

/// Who this agent is, for every controller that it speaks to.
#[derive(Clone, Debug)]
pub(super) struct Speaker {
    node: Arc<str>,
    /// This process: what it says by one connection is older or newer than what it says by another.
    life: Arc<str>,
    trust: Trust,
}

impl Speaker {
    /// This process, for this node; it believes and is believed by this.
    pub(super) fn new(node: Arc<str>, trust: Trust) -> Self {
        let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { node, life: format!("{}-{:x}", std::process::id(), began.as_nanos()).into(), trust }
    }

    /// Calls a controller to follow it: whoever holds this wants the rest.
    pub(super) async fn follow(&self, endpoint: &Endpoint, told: &Told) -> Result<Call, Lost> {
        Call::open(endpoint, &self.trust, &self.hello(told, false)).await
    }

    /// Calls a replica only to announce.
    pub(super) async fn announce(&self, endpoint: &Endpoint) -> Result<Call, Lost> {
        Call::open(endpoint, &self.trust, &self.hello(&Told::default(), true)).await
    }

    fn hello(&self, told: &Told, announces_only: bool) -> Hello {
        Hello {
            level: LEVEL,
            node: self.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            held: told.held(),
            announces_only,
            life: self.life.clone(),
        }
    }
}

/// A stream that a controller has taken up.
pub(super) struct Call {
    pub(super) welcome: wire::Welcome,
    to: mpsc::Sender<wire::FromAgent>,
    pub(super) from: Streaming<wire::FromController>,
}

impl Call {
    /// Connects, greets, and waits to be welcomed.
    async fn open(endpoint: &Endpoint, trust: &Trust, hello: &Hello) -> Result<Self, Lost> {
        let connect = endpoint.connect(trust);
        let connection = time::timeout(PATIENCE, connect).await.map_err(|_| Lost::Silent)??;
        let mut client = PoliciesClient::new(connection).max_decoding_message_size(LARGEST_FROM_CONTROLLER);
        let (to, messages) = mpsc::channel(1);
        send(&to, from_agent::What::Hello(hello.into())).await?;
        let answer = time::timeout(PATIENCE, async {
            let mut from = client.follow(ReceiverStream::new(messages)).await?.into_inner();
            let first = from.message().await?;
            Ok::<_, tonic::Status>((first, from))
        });
        let (first, from) = answer.await.map_err(|_| Lost::Silent)??;
        let Some(from_controller::What::Welcome(welcome)) = first.and_then(|message| message.what) else {
            return Err(Lost::NoWelcome);
        };
        Ok(Self { welcome, to, from })
    }

    /// To write with, beside who reads.
    pub(super) fn mouth(&self) -> Mouth {
        Mouth(self.to.clone())
    }
}

/// Writes to a controller.
pub(super) struct Mouth(mpsc::Sender<wire::FromAgent>);

impl Mouth {
    /// Says what there is to be said to this controller, for as long as it reads.
    pub(super) async fn speak(&self, outbox: &Outbox, ear: &Ear) -> Lost {
        loop {
            for what in outbox.next(ear).await {
                if let Err(lost) = send(&self.0, what).await {
                    return lost;
                }
            }
        }
    }
}

async fn send(to: &mpsc::Sender<wire::FromAgent>, what: from_agent::What) -> Result<(), Lost> {
    to.send(wire::FromAgent { what: Some(what) }).await.map_err(|_| Lost::HungUp)
}
