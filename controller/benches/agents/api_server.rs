//! What the controller asks of an API server: lists in pages, and watches.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use anyhow::Result;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::cluster::Shape;

/// Objects of one page, if not fewer are asked for.
const PAGE: usize = 500;

pub(crate) struct ApiServer {
    inner: Arc<Inner>,
    folder: tempfile::TempDir,
    address: SocketAddr,
}

struct Inner {
    shape: Shape,
    state: Mutex<Moves>,
}

/// What has changed since the beginning.
struct Moves {
    version: u64,
    /// Of pods that have moved, how often, and the version of that.
    pods: HashMap<usize, (usize, u64)>,
    /// Who watches pods.
    watches: Vec<mpsc::UnboundedSender<Bytes>>,
}

impl ApiServer {
    pub(crate) async fn start(shape: Shape) -> Result<Self> {
        let state = Mutex::new(Moves { version: 1_000_000, pods: HashMap::new(), watches: Vec::new() });
        let inner = Arc::new(Inner { shape, state });
        let router = Router::new()
            .route("/api/v1/{kind}", get(answer))
            .route("/apis/networking.k8s.io/v1/{kind}", get(answer))
            .fallback(async || status(404))
            .with_state(inner.clone());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self { inner, folder: tempfile::tempdir()?, address })
    }

    /// A kubeconfig that leads here.
    pub(crate) fn kubeconfig(&self) -> Result<PathBuf> {
        let file = self.folder.path().join("kubeconfig");
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
            "clusters": [{"name": "it", "cluster": {"server": format!("http://{}", self.address)}}],
            "users": [{"name": "it", "user": {}}],
        });
        std::fs::write(&file, text.to_string())?;
        Ok(file)
    }

    /// A pod has its other address now.
    pub(crate) fn moved(&self, pod: usize) {
        let mut state = self.inner.state.lock().expect("nobody panics with it");
        state.version += 1;
        let version = state.version;
        let (moves, of) = state.pods.entry(pod).or_default();
        (*moves, *of) = (*moves + 1, version);
        let object = self.inner.shape.pod(pod, *moves, version);
        let mut line = json!({"type": "MODIFIED", "object": object}).to_string();
        line.push('\n');
        let line = Bytes::from(line);
        state.watches.retain(|watch| watch.send(line.clone()).is_ok());
    }
}

async fn answer(
    Path(kind): Path<String>,
    RawQuery(query): RawQuery,
    State(inner): State<Arc<Inner>>,
) -> Response {
    let query = query.unwrap_or_default();
    let parameter = |name: &str| query.split('&').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
    if parameter("watch") == Some("true") {
        return inner.watch(&kind);
    }
    let from = parameter("continue").and_then(|token| token.parse().ok()).unwrap_or(0);
    let limit = parameter("limit").and_then(|limit| limit.parse().ok()).unwrap_or(PAGE);
    inner.list(&kind, from, limit)
}

impl Inner {
    fn list(&self, kind: &str, from: usize, limit: usize) -> Response {
        let Self { shape, state } = self;
        let state = state.lock().expect("nobody panics with it");
        type Make = fn(Shape, usize, u64) -> Value;
        let (count, make): (usize, Make) = match kind {
            "namespaces" => (shape.namespaces(), Shape::namespace),
            "nodes" => (shape.nodes, Shape::node),
            "networkpolicies" => (shape.policies(), Shape::policy),
            "pods" => (shape.pods, |shape, number, version| shape.pod(number, 0, version)),
            _ => return status(404),
        };
        let end = (from + limit).min(count);
        let object = |number: usize| match state.pods.get(&number) {
            Some((moves, version)) if kind == "pods" => shape.pod(number, *moves, *version),
            _ => make(*shape, number, 1 + number as u64),
        };
        let items: Vec<Value> = (from..end).map(object).collect();
        let next = if end < count { end.to_string() } else { String::new() };
        let metadata = json!({"resourceVersion": state.version.to_string(), "continue": next});
        drop(state);
        json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items})
            .to_string()
            .into_response()
    }

    /// Only pods change. A watch lasts as long as somebody reads it.
    fn watch(&self, kind: &str) -> Response {
        let (watch, lines) = mpsc::unbounded_channel();
        if kind == "pods" {
            self.state.lock().expect("nobody panics with it").watches.push(watch);
        } else {
            // Nothing ever comes, and it does not end.
            tokio::spawn(async move { watch.closed().await });
        }
        Body::from_stream(UnboundedReceiverStream::new(lines).map(Ok::<_, Infallible>)).into_response()
    }
}

fn status(code: u16) -> Response {
    let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no such kind", "reason": "NotFound", "code": code});
    (StatusCode::from_u16(code).unwrap_or_default(), body.to_string()).into_response()
}
