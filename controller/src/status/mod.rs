//! What people read with `kubectl get nodeenforcements`, written by whoever of the replicas holds the Lease.
//!
//! ```text
//!   index: what agents say ─▶ ledger: what is to be written, and when ─┐
//!   API server: the Lease ─▶ election: whether it is us ───────────────┴─▶ NodeEnforcement, status
//! ```
//!
//! Serving agents takes no Lease, and nothing here keeps anybody from being served.

mod lease;
mod ledger;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, Resource as _, ResourceExt as _};
use moat_crd::{NodeEnforcement, NodeEnforcementSpec, NodeEnforcementStatus};
use serde_json::json;
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::index::Index;
use crate::metrics::Metrics;
use lease::{Election, Found, Step};
use ledger::Ledger;

/// The name of the Lease, in the controllers' namespace.
const LEASE: &str = "moat-controller";

/// How long the API server may take for one request: shorter than a Lease counts.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long nobody looks at the ledger after it was worked off: what happens at once is worked off together.
const REST: Duration = Duration::from_millis(50);

/// Writes what is in force on the nodes, whenever the Lease is this replica's.
pub(crate) struct Status {
    /// What there is to be said.
    pub index: Arc<Mutex<Index>>,
    /// The API server.
    pub client: Client,
    /// Where the Lease is.
    pub namespace: String,
    /// What this replica is called; no other is called so.
    pub name: Arc<str>,
    /// Where writes are counted.
    pub metrics: Arc<Metrics>,
}

impl Status {
    /// Goes on until `stop`, and gives the Lease up then.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), &self.namespace);
        let news = self.index().enforcement_news();
        let mut election = Election::new(self.name.to_string());
        let mut held = None;
        let mut ledger: Option<Ledger> = None;
        let mut look_at = Instant::now();
        let mut said = String::new();
        loop {
            if look_at <= Instant::now() {
                match self.elect(&leases, &mut election, &mut held).await {
                    Ok(()) => said.clear(),
                    Err(error) if error != said => {
                        warn!(
                            "what is in force cannot be told in the API server, and is told later: {error}"
                        );
                        said = error;
                    }
                    Err(_) => {}
                }
                look_at = Instant::now() + election.pace();
            }
            if !election.holds(Instant::now()) {
                ledger = None;
            } else if ledger.is_none() {
                info!("writing NodeEnforcements from now on");
                ledger = self.open().await;
            }
            let mut next = look_at;
            if let Some(ledger) = &mut ledger {
                self.work_off(ledger, &election).await;
                next = ledger.next(Instant::now()).map_or(next, |at| next.min(at.max(Instant::now() + REST)));
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = sleep_until(next.into()) => {}
                () = news.notified(), if ledger.is_some() => tokio::time::sleep(REST).await,
            }
        }
        if election.holds(Instant::now())
            && let Some(lease) = held
        {
            let _ = timeout(PATIENCE, self.give_up(&leases, lease)).await;
        }
    }

    fn index(&self) -> std::sync::MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the Lease, and writes it where it is, or becomes, ours.
    async fn elect(
        &self,
        leases: &Api<Lease>,
        election: &mut Election,
        held: &mut Option<Lease>,
    ) -> Result<(), String> {
        let asked = Instant::now();
        let lease = answer(leases.get_opt(LEASE)).await?;
        let found = lease.as_ref().map(Found::from);
        if election.look(found, asked) == Step::Leave {
            return Ok(());
        }
        let written = match lease {
            None => answer(leases.create(&PostParams::default(), &self.lease(None))).await,
            // With the version that was found: of two that take it at once, one does.
            Some(lease) => {
                answer(leases.replace(LEASE, &PostParams::default(), &self.lease(Some(lease)))).await
            }
        };
        *held = Some(written?);
        election.written(asked);
        Ok(())
    }

    /// The Lease in our name.
    fn lease(&self, found: Option<Lease>) -> Lease {
        let now = || MicroTime(Timestamp::now());
        let mut lease = found.unwrap_or_else(|| Lease {
            metadata: ObjectMeta { name: Some(LEASE.to_owned()), ..ObjectMeta::default() },
            spec: None,
        });
        let before = lease.spec.take().unwrap_or_default();
        let ours = before.holder_identity.as_deref() == Some(&*self.name);
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.name.to_string()),
            lease_duration_seconds: i32::try_from(lease::DURATION.as_secs()).ok(),
            acquire_time: before.acquire_time.filter(|_| ours).or_else(|| Some(now())),
            renew_time: Some(now()),
            lease_transitions: Some(before.lease_transitions.unwrap_or_default() + i32::from(!ours)),
            ..LeaseSpec::default()
        });
        lease
    }

    async fn give_up(&self, leases: &Api<Lease>, mut lease: Lease) {
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = None;
        }
        if let Err(error) = leases.replace(LEASE, &PostParams::default(), &lease).await {
            debug!("the Lease was not given up, and is taken when it has run out: {error}");
        }
    }

    /// Begins with what is written already; `None`: it cannot be read now.
    async fn open(&self) -> Option<Ledger> {
        let api: Api<NodeEnforcement> = Api::all(self.client.clone());
        match answer(api.list(&ListParams::default())).await {
            Ok(list) => {
                let read = list
                    .items
                    .into_iter()
                    .filter_map(|object| Some((object.name_any().into(), object.status?)));
                Some(Ledger::new(self.name.to_string(), read, Instant::now()))
            }
            Err(error) => {
                warn!("NodeEnforcements cannot be read: {error}");
                None
            }
        }
    }

    /// Writes what is due, as long as we are who writes.
    async fn work_off(&self, ledger: &mut Ledger, election: &Election) {
        let now = Instant::now();
        {
            let index = self.index();
            ledger.look(index.fingerprint(), index.nodes().keys(), index.enforcements(), now);
        }
        for (node, status) in ledger.due(now) {
            if !election.holds(Instant::now()) {
                return ledger.failed(&node);
            }
            match self.write(&node, status).await {
                Ok(()) => drop(self.metrics.enforcements.inc()),
                Err(error) => {
                    warn!(%node, "NodeEnforcement is not written, and is tried again: {error}");
                    ledger.failed(&node);
                }
            }
        }
    }

    async fn write(&self, node: &str, mut status: NodeEnforcementStatus) -> Result<(), String> {
        status.changed_at = Some(Time(Timestamp::now()));
        let api: Api<NodeEnforcement> = Api::all(self.client.clone());
        let patch = Patch::Merge(json!({ "status": status }));
        let params = PatchParams::default();
        let patched = || answer(api.patch_status(node, &params, &patch));
        let error = match patched().await {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        if answer(api.get_metadata_opt(node)).await?.is_some() {
            return Err(error);
        }
        let nodes: Api<Node> = Api::all(self.client.clone());
        // A node that is gone meanwhile has nothing to be told of.
        let Some(owner) = answer(nodes.get_metadata_opt(node)).await? else { return Ok(()) };
        let mut object = NodeEnforcement::new(node, NodeEnforcementSpec {});
        object.metadata.owner_references = Some(vec![OwnerReference {
            api_version: Node::api_version(&()).into_owned(),
            kind: Node::kind(&()).into_owned(),
            name: node.to_owned(),
            uid: owner.metadata.uid.unwrap_or_default(),
            ..OwnerReference::default()
        }]);
        answer(api.create(&PostParams::default(), &object)).await?;
        patched().await.map(drop)
    }
}

/// The answer to a request, or why there is none, in words.
async fn answer<T>(asked: impl Future<Output = Result<T, kube::Error>>) -> Result<T, String> {
    match timeout(PATIENCE, asked).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err("the API server does not answer".to_owned()),
    }
}
