//! The API server's client: one connection that is kept, from the fabric's network, so that nothing stands between a request and
//! the moment of its answer.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use kube::core::Request;
use kube::core::params::{DeleteParams, GetParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::Value;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use crate::network::Network;
use crate::plan::Plan;

/// So long a request may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A kind of objects, as the API's paths have it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    root: &'static str,
    plural: &'static str,
}

impl Kind {
    pub(crate) const NAMESPACE: Kind = Kind { root: "/api/v1", plural: "namespaces" };
    pub(crate) const NODE: Kind = Kind { root: "/api/v1", plural: "nodes" };
    pub(crate) const POD: Kind = Kind { root: "/api/v1", plural: "pods" };
    pub(crate) const SERVICE: Kind = Kind { root: "/api/v1", plural: "services" };
    pub(crate) const NETWORK_POLICY: Kind =
        Kind { root: "/apis/networking.k8s.io/v1", plural: "networkpolicies" };

    pub(crate) const SERVICE_ACCOUNT: Kind = Kind { root: "/api/v1", plural: "serviceaccounts" };
    pub(crate) const CONFIG_MAP: Kind = Kind { root: "/api/v1", plural: "configmaps" };
    pub(crate) const DAEMON_SET: Kind = Kind { root: "/apis/apps/v1", plural: "daemonsets" };
    pub(crate) const DEPLOYMENT: Kind = Kind { root: "/apis/apps/v1", plural: "deployments" };

    fn path(self, namespace: &str) -> String {
        match namespace {
            "" => format!("{}/{}", self.root, self.plural),
            _ => format!("{}/namespaces/{namespace}/{}", self.root, self.plural),
        }
    }
}

/// What the API server said, and when all of it was there.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) object: Value,
    pub(crate) at: Instant,
}

enum Ask {
    Get(String),
    List,
    Create(Vec<u8>),
    Delete(String),
    Merge(String, Value),
    CreateUnder(String, &'static str, Vec<u8>),
}

/// The client. Its calls wait for the answer.
pub(crate) struct Api {
    handle: Handle,
    client: Client,
    // Dropped: the thread ends.
    _stop: oneshot::Sender<()>,
}

impl Api {
    /// A client with the administrator's rights.
    pub(crate) fn connect(plan: &Plan, fabric: &Network) -> Result<Self> {
        let kubeconfig = Kubeconfig::read_from(plan.inner_kubeconfig("admin"))?;
        let (stop, stopped) = oneshot::channel::<()>();
        let (report, made) = mpsc::sync_channel(1);
        let fabric = fabric.clone();
        thread::spawn(move || {
            let runtime =
                fabric.join().and_then(|()| Ok(Builder::new_current_thread().enable_all().build()?));
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(error) => return drop(report.send(Err(error))),
            };
            let client = runtime.block_on(client(kubeconfig));
            let _ = report.send(client.map(|client| (runtime.handle().clone(), client)));
            // Ends when the sender is dropped.
            let _ = runtime.block_on(stopped);
        });
        let (handle, client) = made.recv().context("the client's thread ended")??;
        Ok(Self { handle, client, _stop: stop })
    }

    /// Reads one object; nothing where there is none. The namespace of kinds that have none is "".
    pub(crate) fn get(&self, kind: Kind, namespace: &str, name: &str) -> Result<Option<Value>> {
        Ok(self.found(kind, namespace, Ask::Get(name.into()))?.map(|answer| answer.object))
    }

    /// Reads all of a namespace, or of the cluster if that is "".
    pub(crate) fn list(&self, kind: Kind, namespace: &str) -> Result<Vec<Value>> {
        let mut list = self.ask(kind, namespace, Ask::List)?.object;
        match list["items"].take() {
            Value::Array(items) => Ok(items),
            _ => Ok(Vec::new()),
        }
    }

    /// Makes an object.
    pub(crate) fn create(&self, kind: Kind, namespace: &str, object: &Value) -> Result<Answer> {
        self.ask(kind, namespace, Ask::Create(serde_json::to_vec(object)?))
    }

    /// Removes an object at once; nothing where there is none.
    pub(crate) fn delete(&self, kind: Kind, namespace: &str, name: &str) -> Result<Option<Answer>> {
        self.found(kind, namespace, Ask::Delete(name.into()))
    }

    /// Changes an object, by a merge patch.
    pub(crate) fn merge(&self, kind: Kind, namespace: &str, name: &str, patch: Value) -> Result<Answer> {
        self.ask(kind, namespace, Ask::Merge(name.into(), patch))
    }

    /// Makes what an object makes, such as a token.
    pub(crate) fn create_under(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        what: &'static str,
        object: &Value,
    ) -> Result<Answer> {
        self.ask(kind, namespace, Ask::CreateUnder(name.into(), what, serde_json::to_vec(object)?))
    }

    fn found(&self, kind: Kind, namespace: &str, ask: Ask) -> Result<Option<Answer>> {
        match self.ask(kind, namespace, ask) {
            Ok(answer) => Ok(Some(answer)),
            Err(error) if code(&error) == Some(404) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn ask(&self, kind: Kind, namespace: &str, ask: Ask) -> Result<Answer> {
        let path = kind.path(namespace);
        let (client, request) = (self.client.clone(), Request::new(path.clone()));
        let (tell, told) = mpsc::sync_channel(1);
        self.handle.spawn(async move {
            let request = match &ask {
                Ask::Get(name) => request.get(name, &GetParams::default()),
                Ask::List => request.list(&ListParams::default()),
                Ask::Create(bytes) => request.create(&PostParams::default(), bytes.clone()),
                // No grace: who is to go has nothing to finish.
                Ask::Delete(name) => request.delete(name, &DeleteParams::default().grace_period(0)),
                Ask::CreateUnder(name, what, bytes) => {
                    request.create_subresource(what, name, &PostParams::default(), bytes.clone())
                }
                Ask::Merge(name, patch) => request.patch(name, &PatchParams::default(), &Patch::Merge(patch)),
            };
            let answer = async {
                match tokio::time::timeout(PATIENCE, client.request::<Value>(request?)).await {
                    Ok(answered) => Ok(Answer { object: answered?, at: Instant::now() }),
                    Err(_elapsed) => Err(anyhow!("no answer in {} s", PATIENCE.as_secs())),
                }
            };
            let _ = tell.send(answer.await);
        });
        told.recv()
            .context("the client's thread ended")?
            .with_context(|| format!("the API server, of {path}"))
    }
}

/// The HTTP status that the API server refused with.
pub(crate) fn code(error: &anyhow::Error) -> Option<u16> {
    match error.downcast_ref::<kube::Error>()? {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

async fn client(kubeconfig: Kubeconfig) -> Result<Client> {
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    // What fails is told: a suite decides itself what may be tried again.
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}
