//! A controller that serves two nodes, and what an agent does on the wire.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use moat_api::wire::policies_client::PoliciesClient;
use moat_api::wire::{self, from_agent, from_controller};
use moat_api::{Change, Hello, LEVEL, Told};
use moat_controller::authority::leaf::Shown;
use moat_controller::entrance::Entrance;
use moat_controller::index::Index;
use moat_controller::listen::Listener;
use moat_controller::metrics::Metrics;
use moat_controller::serve::Serve;
use moat_manifests::Changes;
use moat_policies::Limits;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status, Streaming};

use crate::PATIENCE;

pub(crate) const NAME: &str = "moat-controller.moat-system.svc";

const OBJECTS: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDR: 10.0.1.0/24}, status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: n2}, spec: {podCIDR: 10.0.2.0/24}, status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}}, spec: {nodeName: n1, containers: [{name: c, image: i}]}, status: {podIP: 10.0.1.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, namespace: shop, labels: {app: db}}, spec: {nodeName: n2, containers: [{name: c, image: i}]}, status: {podIP: 10.0.2.1}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress: [{from: [{ipBlock: {cidr: 198.51.100.7/32}}], ports: [{port: 5432}]}]
";

/// How agents are let in where a test says nothing else.
pub(crate) fn entrance() -> Entrance {
    Entrance::at("127.0.0.1:0".parse().unwrap())
}

/// A controller of two nodes with a pod each.
pub(crate) struct Controller {
    pub(crate) address: SocketAddr,
    metrics: Arc<Metrics>,
    _stop: DropGuard,
}

impl Controller {
    pub(crate) async fn start(entrance: Entrance, client: Option<kube::Client>) -> Self {
        let objects = moat_manifests::decode([("objects.yaml", OBJECTS.as_bytes())]).unwrap().objects;
        let index = Arc::new(Mutex::new(Index::new(Limits::default())));
        index.lock().unwrap().read(Changes { apply: objects, ..Changes::default() });
        let shown = Shown::default();
        let metrics = Arc::new(Metrics::new(index.clone(), None, shown.clone()));
        let stop = CancellationToken::new();
        let gate = entrance.prepare(client, shown, &stop).await.unwrap();
        let listener = gate.listen(&entrance.listen).await.unwrap();
        let address = match &listener {
            Listener::Tcp(listener) | Listener::Tls(listener, _) => listener.local_addr().unwrap(),
            Listener::Unix(_) => unreachable!("it has a port"),
        };
        let serve = Serve::new(index, metrics.clone(), "test".into(), stop.clone()).checking(gate.tokens);
        tokio::spawn(serve.run(listener));
        Self { address, metrics, _stop: stop.drop_guard() }
    }

    /// What `/metrics` says, without `moat_controller_`.
    pub(crate) fn number(&self, name: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, self.metrics.registry()).unwrap();
        let name = format!("moat_controller_{name} ");
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(&name))
            .unwrap_or_else(|| panic!("no {name}: {text}"));
        line.parse().unwrap()
    }

    pub(crate) fn refused(&self, reason: &str) -> u64 {
        self.number(&format!("agents_refused_total{{reason=\"{reason}\"}}"))
    }

    /// A connection to who has a certificate of `bundle` for the controllers' name.
    pub(crate) async fn connect(&self, bundle: &str) -> Result<Channel, tonic::transport::Error> {
        let tls = ClientTlsConfig::new().domain_name(NAME).ca_certificate(Certificate::from_pem(bundle));
        let endpoint = Endpoint::from_shared(format!("https://{}", self.address)).unwrap();
        endpoint.tls_config(tls).unwrap().connect().await
    }
}

/// An agent's stream.
pub(crate) struct Agent {
    from: Streaming<wire::FromController>,
    _to: mpsc::Sender<wire::FromAgent>,
    pub(crate) told: Told,
}

impl Agent {
    /// Says to be this node's, shows this, and waits for what it is to hold.
    pub(crate) async fn follow(channel: Channel, node: &str, token: Option<&str>) -> Result<Self, Status> {
        let held = Told::default().held();
        let version = "test".to_owned();
        let hello =
            Hello { level: LEVEL, node: node.into(), version, held, announces_only: false, life: "".into() };
        let (to, messages) = mpsc::channel(1);
        let hello = from_agent::What::Hello((&hello).into());
        to.send(wire::FromAgent { what: Some(hello) }).await.unwrap();
        let mut request = Request::new(ReceiverStream::new(messages));
        if let Some(token) = token {
            let value = format!("Bearer {token}").parse().unwrap();
            request.metadata_mut().insert("authorization", value);
        }
        let from = PoliciesClient::new(channel).follow(request).await?.into_inner();
        let mut agent = Self { from, _to: to, told: Told::default() };
        while agent.told.nodes.is_empty() {
            agent.hear().await?;
        }
        Ok(agent)
    }

    async fn hear(&mut self) -> Result<(), Status> {
        let message = tokio::time::timeout(PATIENCE, self.from.message()).await.expect("it says nothing")?;
        let message = message.ok_or_else(|| Status::aborted("the end"))?;
        if let Some(from_controller::What::Update(update)) = message.what {
            self.told.take(Change::try_from(update).unwrap());
        }
        Ok(())
    }

    /// What the stream ends with.
    pub(crate) async fn end(mut self) -> Status {
        loop {
            if let Err(status) = self.hear().await {
                return status;
            }
        }
    }

    /// Everything that it was told, as octets: what is not in them it was not told.
    pub(crate) fn octets(&self) -> Vec<u8> {
        moat_api::update(1, &self.told.whole()).encode_to_vec()
    }

    pub(crate) fn pods(&self) -> Vec<String> {
        self.told.pods.keys().map(ToString::to_string).collect()
    }
}
