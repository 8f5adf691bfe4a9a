//! The stream from a controller: connects, says what this node holds, and hands on what it is told; again and again.

use std::hash::{BuildHasher as _, RandomState};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use moat_api::wire::policies_client::PoliciesClient;
use moat_api::wire::{self, from_agent, from_controller};
use moat_api::{Change, Hello, Invalid, LARGEST_FROM_CONTROLLER, LEVEL};
use tokio::sync::mpsc;
use tokio::time;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::codec::Streaming;
use tracing::info;

use super::connect::ConnectError;
use super::endpoint::Endpoint;
use super::kept::{Kept, KeptError};
use super::outbox::Outbox;
use super::{Controllers, News, Told};

/// How long after a connection that was lost, or did not come, the next is tried: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// How long a controller may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Lost {
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
    #[error("nobody listens to the controller any more")]
    Stopped,
}

impl From<tonic::Status> for Lost {
    fn from(status: tonic::Status) -> Self {
        Lost::Status(status)
    }
}

struct Follow {
    controllers: Controllers,
    node: Arc<str>,
    kept: Arc<Kept>,
    outbox: Arc<Outbox>,
    news: mpsc::Sender<News>,
    connections: u64,
}

/// Follows one of `controllers` until `stop`. What was told before, and kept in `state_dir`, comes first.
pub(crate) fn follow(
    controllers: Controllers,
    node: Arc<str>,
    state_dir: PathBuf,
    outbox: Arc<Outbox>,
    stop: CancellationToken,
) -> Result<mpsc::Receiver<News>, KeptError> {
    let (news, receiver) = mpsc::channel(1);
    let kept = Arc::new(Kept::open(&state_dir, &node)?);
    let follow = Follow { controllers, node, kept: kept.clone(), outbox, news, connections: 0 };
    tokio::spawn(async move {
        stop.run_until_cancelled_owned(follow.run()).await;
        // Waits for the disk, not on a thread that others wait for.
        let _ = tokio::task::spawn_blocking(move || drop(kept)).await;
    });
    Ok(receiver)
}

impl Follow {
    async fn run(mut self) {
        let told = self.kept.told();
        if !told.nodes.is_empty() || !told.pods.is_empty() {
            let name = "the last that was kept".to_owned();
            let change = moat_api::Told::default().take(told.whole());
            let told = Told { connection: 0, revision: 0, name, fingerprint: Arc::default(), change };
            if self.news.send(News::Told(told)).await.is_err() {
                return;
            }
        }
        let mut pause = FIRST_PAUSE;
        let mut said = String::new();
        // What each controller in turn was lost for, since the last that took us in.
        let mut whys: Vec<String> = Vec::new();
        for endpoint in self.controllers.endpoints.clone().iter().cycle() {
            self.connections += 1;
            let mut welcomed = false;
            let why = match self.connection(endpoint, &mut welcomed).await {
                Ok(never) => match never {},
                Err(Lost::Stopped) => return,
                Err(lost) => format!("{:#}", anyhow::Error::new(lost)),
            };
            self.outbox.alone();
            if welcomed {
                pause = FIRST_PAUSE;
                said.clear();
                whys.clear();
            }
            whys.push(why);
            // The next may take us in: only who has tried all of them says that there is none, and waits longer.
            if welcomed || whys.len() >= self.controllers.endpoints.len() {
                let why = std::mem::take(&mut whys).join("; ");
                if said != why {
                    said.clone_from(&why);
                    if self.news.send(News::Alone(why)).await.is_err() {
                        return;
                    }
                }
                time::sleep(pause.mul_f64(jitter(self.connections))).await;
                pause = (pause * 2).min(LAST_PAUSE);
            }
        }
    }

    async fn connection(
        &self,
        endpoint: &Endpoint,
        welcomed: &mut bool,
    ) -> Result<std::convert::Infallible, Lost> {
        let connect = endpoint.connect(&self.controllers.trust);
        let channel = time::timeout(PATIENCE, connect).await.map_err(|_| Lost::Silent)??;
        let mut client = PoliciesClient::new(channel).max_decoding_message_size(LARGEST_FROM_CONTROLLER);
        let (to, messages) = mpsc::channel(1);
        let hello = Hello {
            level: LEVEL,
            node: self.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            held: self.kept.told().held(),
        };
        send(&to, from_agent::What::Hello((&hello).into())).await?;
        let answer = time::timeout(PATIENCE, async {
            let mut from = client.follow(ReceiverStream::new(messages)).await?.into_inner();
            let first = from.message().await?;
            Ok::<_, tonic::Status>((first, from))
        });
        let (first, mut from) = answer.await.map_err(|_| Lost::Silent)??;
        let Some(from_controller::What::Welcome(welcome)) = first.and_then(|message| message.what) else {
            return Err(Lost::NoWelcome);
        };
        *welcomed = true;
        info!(controller = welcome.controller, %endpoint, "connected");
        self.outbox.connected(self.connections);
        tokio::select! {
            lost = self.speak(&to) => lost,
            lost = self.listen(&welcome.controller, &mut from) => lost,
        }
    }

    async fn speak(&self, to: &mpsc::Sender<wire::FromAgent>) -> Result<std::convert::Infallible, Lost> {
        loop {
            for what in self.outbox.next().await {
                send(to, what).await?;
            }
        }
    }

    async fn listen(
        &self,
        controller: &str,
        from: &mut Streaming<wire::FromController>,
    ) -> Result<std::convert::Infallible, Lost> {
        let mut greeted = false;
        let mut fingerprint: Arc<str> = Arc::default();
        loop {
            match from.message().await?.ok_or(Lost::HungUp)?.what {
                Some(from_controller::What::Update(update)) => {
                    let change = self.take(update.clone(), !std::mem::replace(&mut greeted, true))?;
                    // Said first of all, and then whenever it is another.
                    fingerprint = change.fingerprint.clone().unwrap_or(fingerprint);
                    let told = Told {
                        connection: self.connections,
                        revision: update.revision,
                        name: format!("{controller}/{}", update.revision),
                        fingerprint: fingerprint.clone(),
                        change,
                    };
                    // Whoever puts it in force is not hurried: meanwhile the controller is not read, and keeps the rest.
                    self.news.send(News::Told(told)).await.map_err(|_| Lost::Stopped)?;
                }
                Some(from_controller::What::Announced(announced)) => self.outbox.heard(announced.number),
                // A later level's; one that matters is not sent to an agent of this one.
                Some(from_controller::What::Welcome(_)) | None => {}
            }
        }
    }

    /// Takes an update in. The first of a connection is what differs from what we say we hold: it is looked at whole.
    fn take(&self, update: wire::Update, first: bool) -> Result<Change, Lost> {
        let change = Change::try_from(update.clone()).map_err(Lost::Invalid)?;
        if first {
            let mut after = self.kept.told();
            after.take(change.clone());
            if let Some(dangling) = after.dangling() {
                return Err(Lost::Dangling(dangling));
            }
        }
        Ok(self.kept.take(&update, change))
    }
}

async fn send(to: &mpsc::Sender<wire::FromAgent>, what: from_agent::What) -> Result<(), Lost> {
    to.send(wire::FromAgent { what: Some(what) }).await.map_err(|_| Lost::HungUp)
}

/// Between a half and one: a thousand agents that lost their controller at once are not to come back at once.
fn jitter(attempt: u64) -> f64 {
    0.5 + (RandomState::new().hash_one(attempt) % 1024) as f64 / 2048.0
}
