//! Two controllers at one real API server.
//!
//! Its programs are built by `cargo xtask setup --kubernetes`; `cargo xtask test` says where they are when they are there.
#![allow(clippy::unwrap_used)]

#[path = "../../apiserver/tests/live/server.rs"]
#[allow(dead_code, reason = "the other test uses the rest")]
mod server;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, ListParams, PostParams};
use moat_apiserver::Access;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use server::{Programs, Server, free_port, until};

struct Controller {
    process: Child,
    http: u16,
}

impl Controller {
    fn start(folder: &Path, kubeconfig: &Path, number: u8) -> Self {
        let http = free_port();
        let process = Command::new(env!("CARGO_BIN_EXE_moat-controller"))
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .arg(format!("--listen=unix:{}", folder.join(format!("{number}.sock")).display()))
            .arg(format!("--http=127.0.0.1:{http}"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self { process, http }
    }

    /// A page, status and all; empty where nobody answers.
    async fn page(&self, path: &str) -> String {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.http));
        let Ok(mut stream) = TcpStream::connect(address).await else { return String::new() };
        let request = format!("GET {path} HTTP/1.1\r\nHost: it\r\nConnection: close\r\n\r\n");
        let mut page = String::new();
        let asked = stream.write_all(request.as_bytes()).await;
        let read = stream.read_to_string(&mut page).await;
        if asked.and(read.map(drop)).is_ok() { page } else { String::new() }
    }

    async fn is_ready(&self) -> bool {
        self.page("/readyz").await.starts_with("HTTP/1.1 200")
    }

    async fn number(&self, metric: &str) -> Option<u64> {
        let page = self.page("/metrics").await;
        let line = page.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' '))?;
        line.parse().ok()
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_say_once_what_is_odd_about_a_policy_and_serve_on_when_the_server_is_away() {
    let Some(programs) = Programs::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(programs, folder.path()).await;
    let kubeconfig = server::kubeconfig(folder.path(), server.port());
    let client = Access::Kubeconfig { file: Some(kubeconfig.clone()), context: None }.client().await.unwrap();
    let post = PostParams::default();
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": "shop"}})).unwrap();
    Api::all(client.clone()).create(&post, &namespace).await.unwrap();
    let policies: Api<NetworkPolicy> = Api::namespaced(client.clone(), "shop");
    let odd = json!({"metadata": {"name": "odd"}, "spec": {
        "podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": [{"ipBlock": {"cidr": "10.1.2.3/8"}}]}]}});
    let policy = policies.create(&post, &serde_json::from_value(odd).unwrap()).await.unwrap();

    let controllers = [1, 2].map(|number| Controller::start(folder.path(), &kubeconfig, number));
    for controller in &controllers {
        until("a controller to be ready", async || controller.is_ready().await).await;
        // Written by the one, found by the other.
        let said = async || controller.number("moat_controller_policy_events_total").await == Some(1);
        until("a controller to have said it", said).await;
        assert_eq!(controller.number("moat_controller_policies_refused").await, Some(0));
    }
    let events: Api<Event> = Api::namespaced(client.clone(), "shop");
    let events = events.list(&ListParams::default()).await.unwrap().items;
    let [event] = &events[..] else { panic!("one Event, not {events:?}") };
    assert_eq!(event.reason.as_deref(), Some("PolicyOdd"));
    assert_eq!(event.regarding.as_ref().unwrap().uid, policy.metadata.uid);
    let note =
        "spec.egress[0].to[0].ipBlock.cidr: the string \"10.1.2.3/8\" is taken as 10.0.0.0/8; write that";
    assert_eq!(event.note.as_deref(), Some(note));

    server.stop().await;
    for controller in &controllers {
        let away = async || controller.page("/readyz").await.matches("away: ").count() >= 4;
        until("the page to say that the API server is away", away).await;
        assert!(controller.is_ready().await, "what it said last is what there is to serve");
    }
    server.go_on().await;
    for controller in &controllers {
        let back = async || !controller.page("/readyz").await.contains("away: ");
        until("the page to say that the API server is back", back).await;
    }
}
