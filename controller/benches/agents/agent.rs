//! An agent without a kernel: it keeps what it is told, and says at once that it is in force.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context as _, Result};
use moat_api::wire::policies_client::PoliciesClient;
use moat_api::wire::{self, from_agent, from_controller};
use moat_api::{Attached, Attachments, Change, Hello, LARGEST_FROM_CONTROLLER, LEVEL, Told};
use moat_policies::{NamespacedName, SetChange};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

use crate::Seen;
use crate::api_server::ApiServer;
use crate::cluster::{Shape, node_name, pod_name, uid};
use crate::pause::Pause;

/// What the controller's certificate is for.
const CONTROLLER: &str = "moat-controller.moat-system.svc";

/// One agent's end for who says what happens on its node.
pub(crate) struct Agent {
    moves: mpsc::UnboundedSender<usize>,
}

struct Running {
    shape: Shape,
    node: usize,
    api: Arc<ApiServer>,
    token: String,
    seen: Arc<Seen>,
    told: Told,
    /// How often pods of this node have moved.
    moves: HashMap<usize, usize>,
    number: u64,
}

impl Agent {
    pub(crate) fn start(
        shape: Shape,
        node: usize,
        controller: SocketAddr,
        api: Arc<ApiServer>,
        seen: Arc<Seen>,
    ) -> Self {
        let (moves, orders) = mpsc::unbounded_channel();
        let (told, moves_so_far) = (Told::default(), HashMap::new());
        let token = api.token(node);
        let running = Running { shape, node, api, token, seen, told, moves: moves_so_far, number: 0 };
        tokio::spawn(running.run(controller, orders));
        Self { moves }
    }

    /// A pod of its node has its other address from now on.
    pub(crate) fn move_pod(&self, pod: usize) {
        self.moves.send(pod).expect("the agent runs as long as the benchmark");
    }
}

impl Running {
    async fn run(mut self, controller: SocketAddr, mut orders: mpsc::UnboundedReceiver<usize>) {
        let mut pause = Pause::default();
        loop {
            let mut welcomed = false;
            // Whatever it is: the controller is not there, or not any more.
            let _ = self.follow(controller, &mut orders, &mut welcomed).await;
            if welcomed {
                pause = Pause::default();
            }
            sleep(pause.next()).await;
        }
    }

    async fn follow(
        &mut self,
        controller: SocketAddr,
        orders: &mut mpsc::UnboundedReceiver<usize>,
        welcomed: &mut bool,
    ) -> Result<()> {
        let ca = Certificate::from_pem(self.api.bundle());
        let tls = ClientTlsConfig::new().domain_name(CONTROLLER).ca_certificate(ca);
        // As many as agents have of their own: who has shown nothing yet may have few connections from one.
        let own = Ipv4Addr::from(Ipv4Addr::new(127, 1, 0, 1).to_bits() + self.node as u32);
        let endpoint = Endpoint::from_shared(format!("https://{controller}"))?.tls_config(tls)?;
        let endpoint = endpoint.local_address(Some(own.into()));
        let client = PoliciesClient::new(endpoint.connect().await?);
        let mut client = client.max_decoding_message_size(LARGEST_FROM_CONTROLLER);
        let (to, outgoing) = mpsc::channel(16);
        let say = async |what: from_agent::What| to.send(wire::FromAgent { what: Some(what) }).await;
        let hello = Hello {
            level: LEVEL,
            node: node_name(self.node).into(),
            version: String::new(),
            held: self.told.held(),
            announces_only: false,
            life: "".into(),
        };
        say(from_agent::What::Hello((&hello).into())).await?;
        let mut request = Request::new(ReceiverStream::new(outgoing));
        request.metadata_mut().insert("authorization", format!("Bearer {}", self.token).parse()?);
        let mut incoming = client.follow(request).await?.into_inner();
        incoming.message().await?.context("hung up before it has answered")?;
        *welcomed = true;
        let all: Vec<usize> = self.shape.pods_of(self.node).collect();
        let all = self.attachments(true, &all);
        say(from_agent::What::Attachments((&all).into())).await?;
        let mut is_first = true;
        loop {
            tokio::select! {
                message = incoming.message() => {
                    let what = message?.context("hung up")?.what;
                    let Some(from_controller::What::Update(update)) = what else { continue };
                    let (now, revision) = (Instant::now(), update.revision);
                    self.take(update, now)?;
                    let applied = wire::Applied { revision, followed: revision, ..Default::default() };
                    say(from_agent::What::Applied(applied)).await?;
                    if std::mem::take(&mut is_first) {
                        self.seen.current.lock().expect("nobody panics with it").push(now);
                        self.seen.news.notify_one();
                    }
                }
                Some(pod) = orders.recv() => {
                    *self.moves.entry(pod).or_default() += 1;
                    let address = self.address(pod);
                    let announcement = self.attachments(false, &[pod]);
                    self.seen.announced.lock().expect("nobody panics with it").insert(address, Instant::now());
                    say(from_agent::What::Attachments((&announcement).into())).await?;
                }
            }
        }
    }

    fn address(&self, pod: usize) -> IpAddr {
        self.shape.address(pod, self.moves.get(&pod).copied().unwrap_or(0))
    }

    fn attachments(&mut self, whole: bool, pods: &[usize]) -> Attachments {
        self.number += 1;
        let attached = |pod: &usize| {
            let (namespace, name) = pod_name(*pod);
            let attached = Attached { uid: Some(uid(*pod).into()), addresses: vec![self.address(*pod)] };
            (NamespacedName::new(namespace, name), Some(attached))
        };
        let pods: BTreeMap<_, _> = pods.iter().map(attached).collect();
        Attachments { number: self.number, whole, pods }
    }

    /// Takes an update in, and notes how long those changes were under way that it is about.
    fn take(&mut self, update: wire::Update, now: Instant) -> Result<()> {
        self.seen.updates.fetch_add(1, Ordering::Relaxed);
        let change = Change::try_from(update)?;
        let added = change.policy.sets.values().filter_map(|set| match set {
            SetChange::Update(update) => Some(update.add.iter().map(|element| element.address)),
            SetChange::Create(_) | SetChange::Delete => None,
        });
        let added: Vec<IpAddr> = added.flatten().collect();
        if !added.is_empty() {
            let announced = self.seen.announced.lock().expect("nobody panics with it");
            let took = added
                .iter()
                .filter_map(|address| Some(now.saturating_duration_since(*announced.get(address)?)));
            self.seen.latencies.lock().expect("nobody panics with it").extend(took);
        }
        self.told.take(change);
        Ok(())
    }
}
