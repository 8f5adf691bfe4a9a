//! The stream from a controller: connects, says what this node holds, and hands on what it is told; again and again.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use moat_api::wire::{self, from_controller};
use moat_api::{Announced, Change};
use tokio::sync::mpsc;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tonic::codec::Streaming;
use tracing::info;

use super::announce;
use super::call::{Lost, Speaker};
use super::endpoint::Endpoint;
use super::kept::{Kept, KeptError};
use super::outbox::{Ear, Outbox};
use super::pause::Pause;
use super::{Controllers, News, Told};

struct Follow {
    endpoints: Vec<Endpoint>,
    speaker: Speaker,
    kept: Arc<Kept>,
    outbox: Arc<Outbox>,
    news: mpsc::Sender<News>,
    connections: u64,
}

/// Follows one of `controllers` until `stop`, and announces to its replicas. What was told before, and kept in `state_dir`, comes first.
pub(crate) fn follow(
    controllers: Controllers,
    node: Arc<str>,
    state_dir: PathBuf,
    outbox: Arc<Outbox>,
    stop: CancellationToken,
) -> Result<mpsc::Receiver<News>, KeptError> {
    let (news, receiver) = mpsc::channel(1);
    let kept = Arc::new(Kept::open(&state_dir, &node)?);
    let Controllers { endpoints, trust } = controllers;
    let speaker = Speaker::new(node, trust);
    tokio::spawn(stop.clone().run_until_cancelled_owned(announce::to_all(outbox.clone(), speaker.clone())));
    let follow = Follow { endpoints, speaker, kept: kept.clone(), outbox, news, connections: 0 };
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
        let mut pause = Pause::default();
        let mut said = String::new();
        // What each controller in turn was lost for, since the last that took us in.
        let mut whys: Vec<String> = Vec::new();
        for endpoint in self.endpoints.clone().iter().cycle() {
            self.connections += 1;
            let mut welcomed = false;
            let why = match self.connection(endpoint, &mut welcomed).await {
                Ok(never) => match never {},
                Err(Lost::Stopped) => return,
                Err(lost) => format!("{:#}", anyhow::Error::new(lost)),
            };
            self.outbox.away(&Ear::Followed);
            if welcomed {
                pause = Pause::default();
                said.clear();
                whys.clear();
            }
            whys.push(why);
            // The next may take us in: only who has tried all of them says that there is none, and waits longer.
            if welcomed || whys.len() >= self.endpoints.len() {
                let why = std::mem::take(&mut whys).join("; ");
                if said != why {
                    said.clone_from(&why);
                    if self.news.send(News::Alone(why)).await.is_err() {
                        return;
                    }
                }
                time::sleep(pause.next()).await;
            }
        }
    }

    async fn connection(
        &self,
        endpoint: &Endpoint,
        welcomed: &mut bool,
    ) -> Result<std::convert::Infallible, Lost> {
        let mut call = self.speaker.follow(endpoint, &self.kept.told()).await?;
        *welcomed = true;
        let wire::Welcome { controller, level } = call.welcome.clone();
        info!(controller, %endpoint, "connected");
        self.outbox.follows(self.connections, &controller, level);
        let mouth = call.mouth();
        tokio::select! {
            lost = mouth.speak(&self.outbox, &Ear::Followed) => Err(lost),
            lost = self.listen(&controller, level, &mut call.from) => lost,
        }
    }

    async fn listen(
        &self,
        controller: &str,
        level: u32,
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
                Some(from_controller::What::Announced(said)) => {
                    self.outbox.heard(&Ear::Followed, Announced::heard(said, level));
                }
                Some(from_controller::What::Replicas(replicas)) => self.outbox.lists(endpoints(&replicas)?),
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

/// Where the replicas are. One that cannot be spoken to would never answer: so it must be known that there is one.
fn endpoints(replicas: &wire::Replicas) -> Result<BTreeSet<Endpoint>, Lost> {
    let endpoint = |text: &String| text.parse().map_err(|error| Lost::Replica(text.clone(), error));
    replicas.endpoints.iter().map(endpoint).collect()
}
