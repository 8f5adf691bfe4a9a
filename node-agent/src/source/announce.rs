//! The other replicas of the controller that is followed: each is told which interfaces this node has, and answers for the agents
//! that follow *it*.

use std::collections::BTreeMap;
use std::sync::Arc;

use moat_api::Announced;
use moat_api::wire::from_controller;
use tokio::sync::watch;
use tokio::time;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{info, warn};

use super::call::{Call, Lost, Speaker};
use super::endpoint::Endpoint;
use super::outbox::{Ear, Outbox};
use super::pause::Pause;

/// Announces to every replica that the outbox names, for as long as it does. Never ends.
pub(super) async fn to_all(outbox: Arc<Outbox>, speaker: Speaker) {
    let mut replicas = outbox.replicas();
    let mut spoken_to: BTreeMap<Endpoint, DropGuard> = BTreeMap::new();
    loop {
        let endpoints = replicas.borrow_and_update().clone();
        spoken_to.retain(|endpoint, _| endpoints.contains(endpoint));
        for endpoint in endpoints {
            spoken_to.entry(endpoint.clone()).or_insert_with(|| {
                let stop = CancellationToken::new();
                let replica = Replica {
                    ear: Ear::Replica(endpoint.clone()),
                    endpoint,
                    speaker: speaker.clone(),
                    process: outbox.process(),
                    outbox: outbox.clone(),
                };
                tokio::spawn(stop.clone().run_until_cancelled_owned(replica.run()));
                stop.drop_guard()
            });
        }
        if replicas.changed().await.is_err() {
            return;
        }
    }
}

struct Replica {
    ear: Ear,
    endpoint: Endpoint,
    speaker: Speaker,
    /// Which process is followed.
    process: watch::Receiver<Option<String>>,
    outbox: Arc<Outbox>,
}

impl Replica {
    async fn run(mut self) {
        let mut pause = Pause::default();
        let mut said = String::new();
        loop {
            let lost = match self.speaker.announce(&self.endpoint).await {
                Err(lost) => lost,
                Ok(call) => {
                    pause = Pause::default();
                    said.clear();
                    match self.announce(call).await {
                        Some(lost) => lost,
                        None => continue,
                    }
                }
            };
            self.outbox.away(&self.ear);
            let why = format!("{:#}", anyhow::Error::new(lost));
            if said != why {
                warn!(endpoint = %self.endpoint, "no announcements to a replica of the controller: {why}");
                said = why;
            }
            time::sleep(pause.next()).await;
        }
    }

    /// Announces until the connection is lost; where this is the process that is followed, until it is not any more (`None`).
    async fn announce(&mut self, mut call: Call) -> Option<Lost> {
        let (name, level) = (call.welcome.controller.clone(), call.welcome.level);
        let is_followed = |process: &Option<String>| process.as_deref() == Some(&*name);
        if !self.outbox.is_followed(&self.ear, &name) {
            info!(controller = name, endpoint = %self.endpoint, "announcing to another replica");
            self.outbox.hears(&self.ear);
            let mouth = call.mouth();
            let listen = async {
                loop {
                    match call.from.message().await {
                        Err(status) => return Lost::Status(status),
                        Ok(None) => return Lost::HungUp,
                        Ok(Some(message)) => {
                            if let Some(from_controller::What::Announced(said)) = message.what {
                                self.outbox.heard(&self.ear, Announced::heard(said, level));
                            }
                        }
                    }
                }
            };
            let lost = tokio::select! {
                lost = mouth.speak(&self.outbox, &self.ear) => Some(lost),
                lost = listen => Some(lost),
                _ = self.process.wait_for(is_followed) => None,
            };
            if lost.is_some() || !self.outbox.is_followed(&self.ear, &name) {
                return lost;
            }
        }
        // Not to hold what is of no use: it says there what it says to the one that it follows.
        drop(call);
        // It cannot end before this does.
        let _ = self.process.wait_for(|process| !is_followed(process)).await;
        None
    }
}
