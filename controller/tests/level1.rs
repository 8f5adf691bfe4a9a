//! An agent of an earlier level of the protocol: what it understands of what it is told is all of its policy, and nothing more open.
#![allow(clippy::unwrap_used)]

#[path = "../../api/tests/level1/policy.rs"]
#[allow(warnings, clippy::all, missing_docs, reason = "generated once and for all")]
mod level1;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use level1::policies_client::PoliciesClient;
use level1::{from_agent, from_controller};
use moat_api::{Change, Hello, LEVEL, Told, wire};
use moat_controller::authority::leaf::Shown;
use moat_controller::index::Index;
use moat_controller::listen::Listen;
use moat_controller::metrics::Metrics;
use moat_controller::serve::Serve;
use moat_manifests::Changes;
use moat_policies::{Limits, Object};
use prost::Message as _;
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;

/// What has not come by then never will.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long what is said is waited for before something else is done.
const SOON: Duration = Duration::from_millis(20);

const CLUSTER: &str = "
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Node, metadata: {name: here}, spec: {podCIDR: 10.1.0.0/24}}
- {apiVersion: v1, kind: Node, metadata: {name: there}, spec: {podCIDR: 10.2.0.0/24}}
- {apiVersion: v1, kind: Pod, metadata: {name: web, uid: one, labels: {app: web}}, spec: {nodeName: there, containers: [{name: c, image: i}]}, status: {podIPs: [{ip: 10.2.0.1}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: api, uid: two, labels: {app: api}}, spec: {nodeName: here, containers: [{name: c, image: i, ports: [{name: http, containerPort: 80}]}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: open, labels: {app: open}}, spec: {nodeName: here, containers: [{name: c, image: i}]}}
- {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: api}, spec: {podSelector: {matchLabels: {app: api}}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: http}]}, {from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25]}}], ports: [{port: 1000, endPort: 2000}]}], egress: [{to: [{podSelector: {}}], ports: [{port: http}]}]}}
";

const STRICTER: &str = "
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: open}, spec: {podSelector: {matchLabels: {app: open}}}}
";

fn objects(text: &str) -> Vec<Object> {
    moat_manifests::decode([("objects.yaml", text.as_bytes())]).unwrap().objects
}

fn hello(node: &str) -> Hello {
    let (version, held) = (String::new(), Told::default().held());
    Hello { level: LEVEL, node: node.into(), version, held, announces_only: false, life: "today's".into() }
}

/// What an agent of this release is told of the same objects.
fn today(objects: Vec<Object>) -> Told {
    let mut index = Index::new(Limits::default());
    index.read(Changes { apply: objects, ..Changes::default() });
    let id = index.join(&hello("here"), Arc::new(Notify::new()));
    let mut told = Told::default();
    told.take(index.take(id).unwrap().change.unwrap().1);
    told
}

/// What of a state decides verdicts, and how packets find their way. The rest is of later levels.
fn verdicts(told: &Told) -> Told {
    Told { config: moat_policies::NetworkConfig::default(), ..told.clone() }
}

/// An agent of level 1, by what it could read then.
struct Old {
    to: mpsc::Sender<level1::FromAgent>,
    from: tonic::Streaming<level1::FromController>,
    told: Told,
    revision: u64,
    announced: u64,
}

impl Old {
    async fn connect(socket: &std::path::Path) -> Self {
        let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display())).unwrap();
        let mut client = PoliciesClient::new(endpoint.connect().await.unwrap());
        let (to, messages) = mpsc::channel(8);
        let hello = level1::Hello {
            level: 1,
            node: "here".to_owned(),
            version: "0.1.0".to_owned(),
            pods: vec![0; 16],
            nodes: vec![0; 16],
            ..Default::default()
        };
        Self::send(&to, from_agent::What::Hello(hello)).await;
        let mut from = client.follow(ReceiverStream::new(messages)).await.unwrap().into_inner();
        let first = from.message().await.unwrap().unwrap();
        let Some(from_controller::What::Welcome(welcome)) = first.what else { panic!("{first:?}") };
        assert_eq!(welcome.level, 1, "both speak the older one's");
        Self { to, from, told: Told::default(), revision: 0, announced: 0 }
    }

    async fn send(to: &mpsc::Sender<level1::FromAgent>, what: from_agent::What) {
        to.send(level1::FromAgent { what: Some(what) }).await.unwrap();
    }

    /// Takes the next that is said, if something is said soon, and says that it is in force.
    async fn hear(&mut self) {
        let Ok(message) = tokio::time::timeout(SOON, self.from.message()).await else { return };
        match message.unwrap().unwrap().what.expect("something that level 1 does not have") {
            from_controller::What::Update(update) => {
                self.revision = update.revision;
                // Whatever it did not know is gone from these bytes.
                let understood = wire::Update::decode(&*update.encode_to_vec()).unwrap();
                self.told.take(Change::try_from(understood).unwrap());
                assert_eq!(self.told.dangling(), None);
                let (revision, followed) = (self.revision, self.revision);
                let applied = level1::Applied { revision, followed, ..Default::default() };
                Self::send(&self.to, from_agent::What::Applied(applied)).await;
            }
            from_controller::What::Announced(answer) => self.announced = answer.number,
            from_controller::What::Welcome(_) => panic!("a second Welcome"),
        }
    }

    /// Waits until it was told a state after this one.
    async fn until_after(&mut self, revision: u64) {
        let begin = Instant::now();
        while self.revision <= revision {
            assert!(begin.elapsed() < PATIENCE, "nothing is said");
            self.hear().await;
        }
    }
}

fn read(index: &Mutex<Index>, apply: Vec<Object>) {
    index.lock().unwrap().read(Changes { apply, ..Changes::default() });
}

#[tokio::test]
async fn an_agent_of_level_1_is_told_all_of_its_policy() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("controller.sock");
    let index = Arc::new(Mutex::new(Index::new(Limits::default())));
    read(&index, objects(CLUSTER));
    let stop = CancellationToken::new();
    let metrics = Arc::new(Metrics::new(index.clone(), None, Shown::default()));
    let (_others, replicas) = watch::channel(Some(vec!["unix:/nowhere".to_owned()]));
    let serve = Serve::new(index.clone(), metrics, "one".into(), stop.clone()).beside(replicas);
    let listener = Listen::Unix(socket.clone()).bind().await.unwrap();
    let served = tokio::spawn(serve.run(listener));

    let mut old = Old::connect(&socket).await;
    old.until_after(0).await;
    assert_eq!(verdicts(&old.told), verdicts(&today(objects(CLUSTER))));
    let api = &old.told.pods[&moat_policies::NamespacedName::new("default", "api")];
    assert!(api.programs.ingress.is_some() && api.programs.egress.is_some());

    // A change comes as one, and leads to what it leads to today.
    read(&index, objects(STRICTER));
    old.until_after(old.revision).await;
    let all = objects(CLUSTER).into_iter().chain(objects(STRICTER)).collect();
    assert_eq!(verdicts(&old.told), verdicts(&today(all)));

    // What it says of its pods is answered by the one number that it knows, once everybody follows.
    let there = index.lock().unwrap().join(&hello("there"), Arc::new(Notify::new()));
    let catch_up = || {
        let mut index = index.lock().unwrap();
        if let Some((revision, _)) = index.take(there).unwrap().change {
            index.applied(there, &wire::Applied { revision, followed: revision, ..Default::default() });
        }
    };
    let pod = || level1::PodName { namespace: "default".to_owned(), name: "api".to_owned() };
    let addresses = Some(level1::Addresses { v4: vec![10, 1, 0, 1], v6: Vec::new() });
    let there_is = vec![level1::Attachment { pod: Some(pod()), uid: "two".to_owned(), addresses }];
    let comes = level1::Attachments { number: 1, whole: true, there: there_is, ..Default::default() };
    let goes = level1::Attachments { number: 2, gone: vec![pod()], ..Default::default() };
    for (number, attachments) in [(1, comes), (2, goes)] {
        Old::send(&old.to, from_agent::What::Attachments(attachments)).await;
        while old.announced < number {
            catch_up();
            old.hear().await;
        }
    }

    stop.cancel();
    served.await.unwrap().unwrap();
}
