//! Against a real API server and a real etcd, on loopback, with their data in a folder that goes with the test.
//!
//! Their programs are built by `cargo xtask setup --kubernetes`; `cargo xtask test` says where they are when they are there.
#![allow(clippy::unwrap_used)]

mod proxy;
mod rules;
mod server;

use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use moat_apiserver::{Access, News, Watch, list};
use moat_policies::{Key, NamespacedName, Objects};
use serde_json::json;
use tokio::time::timeout;

use proxy::Proxy;
use server::{Programs, Server};

/// Nothing here takes as long; a test that is stuck says where.
const PATIENCE: Duration = Duration::from_secs(120);

/// What somebody has who follows the news.
#[derive(Default)]
struct Follower(Objects);

impl Follower {
    fn take(&mut self, news: News) {
        let applied: Vec<Key> = news.changes.apply.iter().map(|object| object.key()).collect();
        news.changes.delete.iter().filter(|key| !applied.contains(key)).for_each(|key| self.0.remove(key));
        news.changes.apply.into_iter().for_each(|object| self.0.insert(object));
    }

    /// Follows until it holds what somebody holds who lists everything.
    async fn catch_up(&mut self, watch: &mut Watch, client: &Client) {
        loop {
            let listed: Objects = list(client).await.unwrap().objects.into_iter().collect();
            if self.0 == listed {
                return;
            }
            let news = timeout(PATIENCE, watch.news()).await.expect("news of what is missing").unwrap();
            self.take(news);
        }
    }
}

fn policy(name: &str, spec: serde_json::Value) -> NetworkPolicy {
    let object = json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec});
    serde_json::from_value(object).unwrap()
}

async fn furnish(client: &Client) {
    let post = PostParams::default();
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": "shop"}})).unwrap();
    Api::all(client.clone()).create(&post, &namespace).await.unwrap();
    let node =
        json!({"metadata": {"name": "n1"}, "spec": {"podCIDR": "10.0.1.0/24", "podCIDRs": ["10.0.1.0/24"]}});
    Api::<Node>::all(client.clone()).create(&post, &serde_json::from_value(node).unwrap()).await.unwrap();
    let pod = json!({
        "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i", "ports": [{"name": "http", "containerPort": 80}]}]},
    });
    let pods: Api<Pod> = Api::namespaced(client.clone(), "shop");
    pods.create(&post, &serde_json::from_value(pod).unwrap()).await.unwrap();
    let status = json!({"status": {"phase": "Running", "podIP": "10.0.1.2", "podIPs": [{"ip": "10.0.1.2"}]}});
    pods.patch_status("web", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_followed_is_what_is_listed_whatever_happens_to_the_way() {
    let Some(programs) = Programs::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(programs, folder.path()).await;
    let proxy = Proxy::start(server.port()).await;
    let client = |port: u16| {
        let access =
            Access::Kubeconfig { file: Some(server::kubeconfig(folder.path(), port)), context: None };
        async move { access.client().await.unwrap() }
    };
    let direct = client(server.port()).await;
    furnish(&direct).await;
    let policies: Api<NetworkPolicy> = Api::namespaced(direct.clone(), "shop");
    policies.create(&PostParams::default(), &policy("stays", json!({"podSelector": {}}))).await.unwrap();
    policies.create(&PostParams::default(), &policy("goes", json!({"podSelector": {}}))).await.unwrap();

    // All of it at once, and then as it comes.
    let mut watch = Watch::begin(&client(proxy.port()).await);
    let mut follower = Follower::default();
    follower.take(timeout(PATIENCE, watch.news()).await.unwrap().unwrap());
    let listed: Objects = list(&direct).await.unwrap().objects.into_iter().collect();
    assert_eq!(follower.0, listed, "the first news is everything");
    let web = follower.0.pods().get(&NamespacedName::new("shop", "web")).unwrap();
    assert_eq!((web.addresses.len(), web.ports.len(), web.node.as_deref()), (1, 1, Some("n1")));
    policies.create(&PostParams::default(), &policy("comes", json!({"podSelector": {}}))).await.unwrap();
    follower.catch_up(&mut watch, &direct).await;

    // The way is cut. What happens meanwhile is compacted away, and a server that begins again has it in no cache: 410.
    let lists =
        |watch: &Watch| watch.states().borrow().iter().find(|s| s.kind == "networkpolicies").unwrap().lists;
    assert_eq!(lists(&watch), 1);
    proxy.cut();
    policies.delete("goes", &DeleteParams::default()).await.unwrap();
    let egress = Patch::Merge(json!({"spec": {"policyTypes": ["Egress"]}}));
    policies.patch("stays", &PatchParams::default(), &egress).await.unwrap();
    policies.create(&PostParams::default(), &policy("new", json!({"podSelector": {}}))).await.unwrap();
    server.stop().await;
    server.compact().await;
    server.go_on().await;
    proxy.mend();
    follower.catch_up(&mut watch, &direct).await;
    assert!(lists(&watch) > 1, "what happened can be told from a list only");
    assert!(!follower.0.policies().contains_key(&NamespacedName::new("shop", "goes")));

    // A server that is away: what is known stays, and what comes later comes.
    server.stop().await;
    let mut states = watch.states();
    let away = states.wait_for(|states| states.iter().all(|state| state.error.is_some()));
    timeout(PATIENCE, away).await.expect("all four kinds are known to be away").unwrap();
    server.go_on().await;
    policies.delete("new", &DeleteParams::default()).await.unwrap();
    follower.catch_up(&mut watch, &direct).await;
    let back = states.wait_for(|states| states.iter().all(|state| state.error.is_none()));
    timeout(PATIENCE, back).await.expect("all four kinds are watched again").unwrap();
}
