//! A controller of an earlier level of the protocol: the agent follows it, and holds what it says.

use std::collections::BTreeMap;
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;

use moat_api::{Change, ToldPod};
use moat_policies::Cluster;
use prost::Message as _;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::transport::Server as Grpc;
use tonic::{Request, Response, Status, Streaming};

use crate::level1::policies_server::{Policies, PoliciesServer};
use crate::level1::{self, from_agent, from_controller};
use crate::netns::in_world;
use crate::packets::Server;
use crate::world::World;

/// A controller of level 1, which says one state, answers announcements while it is let, and hangs up when it is told to.
pub(crate) struct Old {
    pub(crate) state: level1::Update,
    pub(crate) answers: watch::Receiver<bool>,
    pub(crate) ends: watch::Receiver<()>,
}

#[tonic::async_trait]
impl Policies for Old {
    type FollowStream = ReceiverStream<Result<level1::FromController, Status>>;

    async fn follow(
        &self,
        request: Request<Streaming<level1::FromAgent>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let (to, stream) = mpsc::channel(8);
        let mut ends = self.ends.clone();
        ends.mark_unchanged();
        let speak = speak(request.into_inner(), to, self.state.clone(), self.answers.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = speak => {}
                Ok(()) = ends.changed() => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

async fn speak(
    mut from: Streaming<level1::FromAgent>,
    to: mpsc::Sender<Result<level1::FromController, Status>>,
    state: level1::Update,
    mut answers: watch::Receiver<bool>,
) {
    let say = async |what| {
        let message = level1::FromController { what: Some(what) };
        let _ = to.send(Ok(message)).await;
    };
    let mut announced = 0;
    loop {
        let message = tokio::select! {
            message = from.message() => message,
            _ = answers.changed() => {
                if *answers.borrow_and_update() {
                    say(from_controller::What::Announced(level1::Announced { number: announced })).await;
                }
                continue;
            }
        };
        let Ok(Some(message)) = message else { return };
        match message.what {
            Some(from_agent::What::Hello(_)) => {
                let welcome = level1::Welcome { level: 1, controller: "old".to_owned() };
                say(from_controller::What::Welcome(welcome)).await;
                say(from_controller::What::Update(state.clone())).await;
            }
            Some(from_agent::What::Attachments(attachments)) => {
                announced = attachments.number;
                if *answers.borrow() {
                    say(from_controller::What::Announced(level1::Announced { number: announced })).await;
                }
            }
            Some(from_agent::What::Applied(_)) | None => {}
        }
    }
}

/// What a controller says of this node and these pods, of which one may be reached from an address alone.
pub(crate) fn state(world: &World, pods: &[&str]) -> level1::Update {
    let mut text = String::new();
    for file in ["node-here.yaml", "node-there.yaml"] {
        text.push_str("---\n");
        text.push_str(&std::fs::read_to_string(world.manifests().join(file)).unwrap());
    }
    for pod in pods {
        text.push_str("---\n");
        text.push_str(&World::pod_text(pod));
    }
    // The first address that the node gives is the first pod's.
    text.push_str(
        "---\n{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: api}, spec: {podSelector: \
         {matchLabels: {app: api}}, ingress: [{from: [{ipBlock: {cidr: 10.1.0.1/32}}]}]}}\n",
    );
    let mut cluster = Cluster::new();
    cluster.reset(moat_manifests::decode([("objects.yaml", text.as_bytes())]).unwrap().objects);
    cluster.commit();
    let mut change = Change { pods_whole: true, nodes_whole: true, ..Change::default() };
    let policy = cluster.state("here");
    for (name, programs) in policy.pods.clone() {
        change.put_pod(name, programs.map(|programs| ToldPod { uid: None, programs }));
    }
    change.policy.programs = policy.programs;
    change.policy.sets = policy.sets;
    let nodes = cluster.objects().nodes().iter();
    change.nodes = nodes.map(|(name, node)| (name.clone(), Some(node.clone()))).collect::<BTreeMap<_, _>>();
    level1::Update::decode(&*moat_api::update(1, &change).encode_to_vec()).unwrap()
}

/// Serves until the test ends.
fn serve(socket: &Path, state: level1::Update, answers: watch::Receiver<bool>) {
    let listener = StdListener::bind(socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let incoming = UnixListenerStream::new(UnixListener::from_std(listener).unwrap());
            let (_never, ends) = watch::channel(());
            let old = PoliciesServer::new(Old { state, answers, ends });
            Grpc::builder().add_service(old).serve_with_incoming(incoming).await.unwrap();
        });
    });
}

#[test]
fn a_controller_of_level_1_is_followed() {
    in_world(|| {
        let mut world = World::new();
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("controller.sock");
        let (answer, answers) = watch::channel(true);
        serve(&socket, state(&world, &["web", "other", "api"]), answers);
        world.follows = Some(format!("unix:{}", socket.display()));
        world.start_ready();

        let (web, other, api) = (world.add("web"), world.add("other"), world.add("api"));
        let server = Server::start(&api);
        assert!(server.answers(&web) && !server.answers(&other));

        // Its one number says of what is gone, too, that all follow.
        let unanswered = |world: &World, count: usize| {
            let page = world.get("/metrics").unwrap_or_default();
            page.lines().any(|line| line == format!("moat_agent_addresses_unanswered {count}"))
        };
        answer.send_replace(false);
        world.plugin().run("DEL", "other", &other.ns.path).ok();
        assert!(unanswered(&world, 1));
        answer.send_replace(true);
        world.until("the answer counts", |world| unanswered(world, 0));
    });
}
